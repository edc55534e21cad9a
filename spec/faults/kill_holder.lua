--- A holder is killed with -9, again and again: the next one in line must have it in time, with a larger token. For
-- locks, elections and semaphores, on one server. (spec/faults/run.lua --killed does it with locks on clusters of
-- three, and kills waiters too.)
--
--    lua spec/support/with_store.lua BACKEND LUA spec/faults/kill_holder.lua [ROUNDS [TTL]]
--
-- Prints what was measured for each kind, then "N passed, N failed" in rounds.
local kv = require("kv")
local native = require("spec.native")
local util = require("spec.support.util")

local rounds, ttl = tonumber(arg[1]) or 100, tonumber(arg[2]) or 2
local next_ttl = math.max(ttl, 20) -- who gets it is not to lose it
local url = assert(os.getenv("KV_TEST_URL"), "KV_TEST_URL must name a store (spec/support/with_store.lua sets it)")
local prefix = ("killed%d-%d"):format(os.time(), math.floor(native.now() * 1e6) % 1000000)
local store = assert(kv.open(url, {prefix = prefix, session_ttl = next_ttl}))
local backend = store:info().backend

-- How long the next one may wait. On `local:` the system tells at once: well before the holder's time is up, in most
-- rounds, as the machine may be busy with something else in one.
local SOON, LATE = math.min(ttl / 4, 0.5), 8
local LOCK_DELAY = 15

local function limit(kind, granted)
  if backend == "local" then return LATE end
  if backend == "consul" then return 2 * granted + (kind == "semaphore" and 0 or LOCK_DELAY) + LATE end
  return granted + LATE
end

-- For each kind: what a child is asked so that it holds, and our own handle with what gets it.
local KINDS = {
  lock = {ask = {"lock", "door", ttl, 10}, new = function() return assert(store:lock("door", {ttl = next_ttl})) end,
    get = function(lock) return lock:acquire(120) end, release = function(lock) return lock:release() end},
  election = {ask = {"campaign", "boss", "child", ttl, 10},
    new = function() return assert(store:election("boss", {ttl = next_ttl})) end,
    get = function(election) return election:campaign("next", 120) end,
    release = function(election)
      local leader = assert(election:leader())
      assert(leader.value == "next" and leader.token == election.token, "somebody else is shown as the leader")
      return election:resign()
    end},
  semaphore = {ask = {"enter", "pool", 2, ttl, 10},
    new = function() return assert(store:semaphore("pool", 2, {ttl = next_ttl})) end,
    get = function(semaphore) return semaphore:acquire(120) end,
    release = function(semaphore) return semaphore:release() end},
}

local function start_holder(kind)
  local child = util.lua("spec/support/child.lua", url, prefix, "")
  assert(child:line(20) == "ready", "a child does not start")
  assert(child:write(table.concat(KINDS[kind].ask, "\t") .. "\n"))
  local answer = assert(child:line(30))
  return child, assert(tonumber(answer:match("^%a+ (%d+)$")), answer)
end

-- One round: seconds until the next one had it; nil, what is wrong.
local function round(kind, handle)
  local child, token = start_holder(kind)
  local took, problem
  kv.run(function()
    local task = kv.spawn(function() return assert(KINDS[kind].get(handle)), native.now() end)
    util.eventually_task(kv, function() return handle:state() == "waiting" end, "the next one waits")
    kv.sleep(0.1) -- its entry is on the server
    child:kill("KILL")
    local start = native.now()
    local _, got = task:join(130)
    took = got - start
  end)
  child:wait(10)
  if handle.token <= token then problem = ("token %d after %d"):format(handle.token, token) end
  if took > limit(kind, ttl) then problem = ("it took %.2f s"):format(took) end
  local done, message = KINDS[kind].release(handle)
  if not done then problem = message end
  return not problem and took or nil, problem
end

local passed, failed = 0, 0
for _, kind in ipairs{"lock", "election", "semaphore"} do
  if store:supports(kind) then
    local handle, times, late = KINDS[kind].new(), {}, 0
    local keeper, other = assert(kv.open(url, {prefix = prefix}))
    if kind == "semaphore" then -- one permit is somebody else's, who is in no hurry
      other = assert(assert(keeper:semaphore("pool", 2, {ttl = 30})):acquire(10))
    end
    for n = 1, rounds do
      local took, problem = round(kind, handle)
      times[#times + 1] = took
      if took then passed = passed + 1 else failed = failed + 1 end
      if problem then print(("FAILED %s, round %d: %s"):format(kind, n, problem)) end
      if took and took > SOON then late = late + 1 end
    end
    if other then assert(other:held() and other:release()) end
    keeper:close()
    table.sort(times)
    local sum = 0
    for _, took in ipairs(times) do sum = sum + took end
    print(("%s %s: holder killed %d times, TTL %g; the next one had it after %.3f s on average, %.3f s in the " ..
      "middle, %.3f s at most"):format(backend, kind, rounds, ttl, sum / math.max(#times, 1),
      times[math.ceil(#times / 2)] or 0, times[#times] or 0))
    if backend == "local" and late * 2 > rounds then
      failed = failed + 1
      print(("FAILED %s: %d of %d took more than %g s"):format(kind, late, rounds, SOON))
    end
  end
end
store:close()
print(("%d passed, %d failed"):format(passed, failed))
os.exit(failed == 0 and passed > 0 and 0 or 1)
