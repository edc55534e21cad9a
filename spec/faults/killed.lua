--- Holders and waiters of a lock, killed with -9 again and again: who gets it next, and when?
--
--    killed.run{cluster=, rounds=100, lanes=4, ttl=2, waiters=3, limit=4}
--      ->  problems, {rounds=, longest=, sum=, late=, displaced=}
--
-- in seconds; late: how often it took longer than `promised`; displaced: waiters that the server took for dead, as a
-- machine that does too much let them renew too late: their place is gone, and they stand in line again.
--
-- A lane is one lock with its queue. In every round its holder is killed, in every third one a waiter as well; the
-- first of the survivors must be next, with a larger token, and within the time that the backend needs.
local native = require("spec.native")
local util = require("spec.support.util")

local killed = {}

local Lane = {}
Lane.__index = Lane

-- What is on the servers and belongs to a lane's queue; local: owners of any, which come before their entries.
local function entries(self)
  local found, pattern = {}, self.cluster.backend and self.name .. "%f[%D]" or ""
  for _, text in ipairs(self.cluster:leftovers()) do
    if text:find(pattern) then found[text] = true end
  end
  return found
end

local function newcomer(self, before)
  for text in pairs(entries(self)) do
    if not before[text] then return text end
  end
end

-- A waiter at the end of the queue; the next one comes when its entry is on the server.
local function join(self)
  local before = entries(self)
  local process = util.lua("spec/support/child.lua", self.cluster:url(), self.cluster.prefix,
    "session_ttl=" .. self.ttl)
  assert(process:line(20) == "ready", "a child does not start")
  assert(process:write(("lock\t%s\t%g\t1000\n"):format(self.name, self.ttl)))
  local entry = util.eventually(function() return newcomer(self, before) end, "a waiter's entry", 20)
  if not self.cluster.backend then native.sleep(0.2) end
  self.queue[#self.queue + 1] = {process = process, entry = entry}
end

local function told(line)
  return tonumber((line or ""):match("^held (%d+)$"))
end

local function kill(waiter)
  waiter.process:kill("KILL")
  waiter.process:wait(10)
end

-- Who is told before those ahead of him is in order only if they have lost their places.
local function overtaken(self, i, line, problems)
  local standing = entries(self)
  for j = 1, i - 1 do
    if not self.cluster.backend or standing[self.queue[1].entry] then
      problems[#problems + 1] = ("%s: number %d in the queue is told %s before number %d"):format(self.name, i, line, j)
      return
    end
    self.displaced = self.displaced + 1
    table.insert(self.queue, table.remove(self.queue, 1))
  end
end

-- Is the first in the queue told? True when it is time for the next round.
function Lane:look(now, problems)
  local line
  for i, waiter in ipairs(self.queue) do
    line = waiter.process:line(0)
    if line and i > 1 then overtaken(self, i, line, problems) end
    if line then break end
  end
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
    took = {}, limit = options.limit, displaced = 0}, Lane)
  for _ = 1, options.waiters do join(self) end
  self.token = assert(told(self.queue[1].process:line(30)), "the first one does not get the lock")
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
  local counts = {rounds = 0, longest = 0, sum = 0, late = 0, displaced = 0}
  for _, lane in ipairs(lanes) do
    counts.displaced = counts.displaced + lane.displaced
    for _, waiter in ipairs(lane.queue) do kill(waiter) end
    for _, took in ipairs(lane.took) do
      counts.rounds, counts.sum = counts.rounds + 1, counts.sum + took
      counts.longest = math.max(counts.longest, took)
      if took > (options.promised or options.limit) then counts.late = counts.late + 1 end
    end
  end
  return problems, counts
end

return killed
