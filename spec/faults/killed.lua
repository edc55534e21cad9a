--- Holders and waiters of a lock, killed with -9 again and again: who gets it next, and when?
--
--    killed.run{cluster=, rounds=100, lanes=4, ttl=2, waiters=3}  ->  problems, {rounds=, longest=, average=}
--
-- A lane is one lock with its queue. In every round its holder is killed, in every third one a waiter as well; the
-- first of the survivors must be next, with a larger token, and within the time that the backend needs.
local native = require("spec.native")
local util = require("spec.support.util")

local killed = {}

local Lane = {}
Lane.__index = Lane

-- Something on the servers that was not there before.
local function newcomer(cluster, before)
  for _, text in ipairs(cluster:leftovers()) do
    if not before[text] then return true end
  end
end

-- A waiter at the end of the queue; the next one comes when its entry is on the server.
local function join(self)
  local before = {}
  for _, text in ipairs(self.cluster:leftovers()) do before[text] = true end
  local process = util.lua("spec/support/child.lua", self.cluster:url(), self.cluster.prefix,
    "session_ttl=" .. self.ttl)
  assert(process:line(20) == "ready", "a child does not start")
  assert(process:write(("lock\t%s\t%g\t1000\n"):format(self.name, self.ttl)))
  util.eventually(function() return newcomer(self.cluster, before) end, "a waiter's entry", 20)
  native.sleep(0.1) -- its owner or lease may be there before its entry
  self.queue[#self.queue + 1] = process
end

local function told(line)
  return tonumber((line or ""):match("^held (%d+)$"))
end

local function kill(process)
  process:kill("KILL")
  process:wait(10)
end

-- Is the first in the queue told? True when it is time for the next round.
function Lane:look(now, problems)
  local line = self.queue[1]:line(0)
  if line then
    local token = told(line)
    local took = now - self.killed
    if not token then problems[#problems + 1] = self.name .. ": the next one is told " .. line end
    if token and token <= self.token then
      problems[#problems + 1] = ("%s: token %d after %d"):format(self.name, token, self.token)
    end
    self.token = token or self.token
    self.took[#self.took + 1] = took
    return true
  end
  if now - self.killed > self.limit then
    problems[#problems + 1] = ("%s: nobody holds it %.1f s after its holder was killed"):format(self.name, self.limit)
    return true
  end
  for i = 2, #self.queue do
    local early = self.queue[i]:line(0)
    if early then problems[#problems + 1] = ("%s: number %d in the queue is told %s"):format(self.name, i, early) end
  end
  return false
end

function Lane:begin_round()
  join(self)
  self.round = self.round + 1
  if self.round % 3 == 0 and #self.queue > 2 then kill(table.remove(self.queue, 2)) end
  self.killed = native.now()
  kill(table.remove(self.queue, 1))
end

local function new_lane(options, i)
  local self = setmetatable({cluster = options.cluster, name = "lane" .. i, ttl = options.ttl, queue = {}, round = 0,
    took = {}, limit = options.limit}, Lane)
  for _ = 1, options.waiters do join(self) end
  self.token = assert(told(self.queue[1]:line(30)), "the first one does not get the lock")
  return self
end

function killed.run(options)
  local problems, lanes, busy = {}, {}, 0
  for i = 1, options.lanes do lanes[i] = new_lane(options, i) end
  local left = options.rounds
  local function next_round(lane)
    lane.running = left > 0 and #problems == 0
    if not lane.running then return end
    left, busy = left - 1, busy + 1
    lane:begin_round()
  end
  for _, lane in ipairs(lanes) do next_round(lane) end
  while busy > 0 do
    for _, lane in ipairs(lanes) do
      if lane.running and lane:look(native.now(), problems) then
        busy = busy - 1
        next_round(lane)
      end
    end
    native.sleep(0.002)
  end
  local counts = {rounds = 0, longest = 0, sum = 0}
  for _, lane in ipairs(lanes) do
    for _, process in ipairs(lane.queue) do kill(process) end
    for _, took in ipairs(lane.took) do
      counts.rounds, counts.sum = counts.rounds + 1, counts.sum + took
      counts.longest = math.max(counts.longest, took)
    end
  end
  return problems, counts
end

return killed
