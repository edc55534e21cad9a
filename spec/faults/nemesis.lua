--- What goes wrong, chosen by a seed: one fault of the servers or the network at a time, and one of the clients beside.
--
--    local nemesis = Nemesis.new(cluster, clients, seed, ttl, tell)
--    nemesis:turn(now)      begins and ends what is due; to be called often
--    nemesis:finish()       ends all
--    nemesis.counts         name -> how often
--
-- `clients` has pick(random, to_kill) -> name or nil, kill(name), pause(name), resume(name).
local Random = require("spec.differential.random")

local Nemesis = {}
Nemesis.__index = Nemesis

-- ------------------------------------------------------------------ faults of servers and their network

-- Each: function(self) -> what it did, how to end it (or nil), how long it may last at most.
local servers = {}

local function some_member(self)
  local leader = self.random:chance(60) and self.cluster:leader()
  if leader then return leader, "the leader, " .. leader end
  local i = self.random:upto(#self.cluster.members)
  return i, "member " .. i
end

servers["kill a member"] = function(self)
  local i, who = some_member(self)
  self.cluster:kill(i)
  return who, function() self.cluster:launch(i) end, 4
end

servers["kill all members"] = function(self)
  for i in ipairs(self.cluster.members) do self.cluster:kill(i) end
  return "all", function()
    for i in ipairs(self.cluster.members) do self.cluster:launch(i) end
  end, 2
end

servers["stop a member"] = function(self)
  local i, who = some_member(self)
  self.cluster:pause(i)
  return who, function() self.cluster:resume(i) end, 6
end

-- Two sides of which one may still believe in its leader.
servers["part a member from the others"] = function(self)
  if #self.cluster.links == 0 then return nil end
  local i, who = some_member(self)
  local mode = self.random:pick{"hold-all", "hold-all", "hold-requests", "hold-answers"}
  self.cluster:part(i, mode)
  return who .. ", " .. mode, function() self.cluster:rejoin() end, 8
end

-- The leader takes writes and cannot commit them: what a disk that hangs looks like.
servers["stop all but the leader"] = function(self)
  local leader = self.cluster:leader() or 1
  for i in ipairs(self.cluster.members) do
    if i ~= leader then self.cluster:pause(i) end
  end
  return "all but " .. leader, function()
    for i in ipairs(self.cluster.members) do
      if i ~= leader then self.cluster:resume(i) end
    end
  end, 5
end

-- A proxy mode for a while, before one member or all. `lossy`: what was held back is lost.
local function proxy_mode(mode, lossy)
  return function(self)
    local which = self.random:chance(50) and self.random:upto(#self.cluster.proxies) or nil
    self.cluster:tell_proxies("now " .. mode, which)
    return which and "before member " .. which or "before all", function()
      if lossy or self.random:chance(40) then self.cluster:tell_proxies("cut-reset", which) end
      self.cluster:tell_proxies("now pass", which)
    end, 5
  end
end

servers["cut requests"] = proxy_mode("hold-requests")
servers["cut answers"] = proxy_mode("hold-answers")
servers["cut both ways"] = proxy_mode("hold-all")
servers["drop answers"] = proxy_mode("drop-answers", true)
servers["half-close to servers"] = proxy_mode("half-close-server", true)
servers["half-close to clients"] = proxy_mode("half-close-client", true)

servers["delay"] = function(self)
  local milliseconds = self.random:upto(150)
  self.cluster:tell_proxies("delay " .. milliseconds)
  return milliseconds .. " ms each way", function() self.cluster:tell_proxies("delay 0") end, 4
end

servers["cut connections"] = function(self)
  self.cluster:tell_proxies(self.random:chance(50) and "cut" or "cut-reset")
  return "all"
end

servers["cut in an answer"] = function(self)
  local bytes = self.random:upto(3000)
  self.cluster:tell_proxies("cut-after " .. bytes)
  return "after " .. bytes .. " bytes"
end

servers["refuse connections"] = function(self)
  local which = self.random:chance(50) and self.random:upto(#self.cluster.proxies) or nil
  self.cluster:tell_proxies("refuse", which)
  self.cluster:tell_proxies("cut", which)
  local function listen() self.cluster:tell_proxies("listen", which) end
  return which and "before member " .. which or "before all", listen, 4
end

servers["compact"] = function(self)
  if not self.cluster.backend.compact then return nil end
  local i = self.random:upto(#self.cluster.members)
  return self.cluster.backend.compact(self.cluster.members[i]) and "history" or nil
end

-- ------------------------------------------------------------------ faults of clients

local clients = {}

clients["kill a client"] = function(self)
  local name = self.clients:pick(self.random, true)
  if not name then return nil end
  self.clients:kill(name)
  return name
end

clients["stop a client"] = function(self)
  local name = self.clients:pick(self.random)
  if not name then return nil end
  self.clients:pause(name)
  return name, function() self.clients:resume(name) end, self.ttl * 3
end

-- ------------------------------------------------------------------ when

local function names_of(faults)
  local names = {}
  for name in pairs(faults) do names[#names + 1] = name end
  table.sort(names) -- the same seed, the same faults
  return names
end

local function new_slot(faults, first, calm)
  return {faults = faults, names = names_of(faults), due = first, calm = calm}
end

function Nemesis.new(cluster, victims, seed, options)
  local self = setmetatable({cluster = cluster, clients = victims, random = Random.new(seed), counts = {},
    ttl = options.ttl, tell = options.tell or function() end, slots = {}}, Nemesis)
  if #cluster.members > 0 then self.slots[1] = new_slot(servers, options.now + 1, options.calm or 3) end
  self.slots[#self.slots + 1] = new_slot(clients, options.now + 1.5, cluster.backend and 4 or 0.5)
  return self
end

local function part(self, most)
  return most * self.random:upto(1000) / 1000
end

local function begin(self, slot, now)
  local name = self.random:pick(slot.names)
  local what, ending, most = slot.faults[name](self)
  if what then
    self.counts[name] = (self.counts[name] or 0) + 1
    self.tell(("%s: %s"):format(name, what))
  end
  slot.ending, slot.name = ending, name
  slot.due = now + (ending and 0.3 + part(self, most) or 0.3 + part(self, slot.calm))
end

local function finish(self, slot, now)
  slot.ending()
  self.tell(("%s: over"):format(slot.name))
  slot.ending = nil
  slot.due = now + 0.5 + part(self, slot.calm)
end

function Nemesis:turn(now)
  for _, slot in ipairs(self.slots) do
    if now >= slot.due then
      if slot.ending then finish(self, slot, now) else begin(self, slot, now) end
    end
  end
end

function Nemesis:finish()
  for _, slot in ipairs(self.slots) do
    if slot.ending then finish(self, slot, 0) end
  end
end

return Nemesis
