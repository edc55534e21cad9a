-- Jobs that run once an interval, on one machine of several: lua cron.lua NAME, with $KV_URL. See README.md.
--
-- Whoever leads runs the jobs. The time of the last run lies in the store and is written on the condition that we still
-- lead, so that two who think that they lead do not run a job twice.

local kv = require("kv")

local JOBS = {{name = "report", every = 1}, {name = "cleanup", every = 3}}
local TTL = 3 -- seconds until another may lead after this machine died
local name = arg[1] or "host " .. math.random(1e6)

-- The work: it gets a token that is larger for every later leader, to be checked by whatever it writes to.
local function run_job(job, token)
  print(("%s runs %s (token %d)"):format(name, job.name, token))
end

-- Claim a run: true when it is due, and the store took it as ours.
local function claim(store, election, job, now)
  local key = "cron/" .. job.name
  local last, message = store:get(key)
  if message then return nil, message end
  if last and now - tonumber(last.value) < job.every then return false end
  local txn = store:txn():guard(election):put(key, ("%.3f"):format(now))
  if last then txn:check(key, last) else txn:check_absent(key) end
  local done, problem = txn:commit()
  return done and true, problem
end

local function lead(store, election)
  while election:is_leader() do
    for _, job in ipairs(JOBS) do
      local claimed, message = claim(store, election, job, os.time())
      if claimed then run_job(job, election.token) end
      if message then print(name .. ": " .. message) end
    end
    kv.sleep(0.1)
  end
end

io.stdout:setvbuf("line")
local store = assert(kv.open())
while true do
  local election = assert(store:election("cron", {ttl = TTL}))
  assert(election:campaign(name)) -- waits until the one before is gone
  print(name .. " leads")
  lead(store, election)
  print(name .. " leads no longer")
  election:close()
end
