--- Clusters of three for the fault suite, a proxy before each member; local: a folder.
--
--    local cluster = clusters.start("etcd")
--    cluster:url()            through the proxies;  cluster:direct_url() past them; cluster.prefix is in both
--    cluster.members          servers of spec/support/servers.lua;  cluster.proxies  one for each
--    cluster:leader()         the number of the member that leads, or nil
--    cluster:leftovers()      what is on the servers and belongs to locks, leases or sessions, as texts
--    cluster:version()        of the server
--    cluster:part(i, mode)    a member does not hear the others, or they it, or both (etcd); cluster:rejoin()
--    cluster:disagreement(dir)  keys below it that the members, each asked by itself, do not know as the same
--    cluster:heal()           all runs and is reachable again;  cluster:stop()
local kv = require("kv")
local native = require("spec.native")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local clusters = {}

local Cluster = {}
Cluster.__index = Cluster

local COUNT = 3

-- ------------------------------------------------------------------ what differs

-- scheme; start(between) -> members (between: see servers.cluster); leads(member);
-- leftovers(cluster) -> texts; settle: seconds after which nothing of a
-- client that was killed may be left, given its TTL.
local backends = {}

local function lines_with(text, pattern, list)
  for line in text:gmatch("[^\r\n]+") do
    if line:find(pattern) then list[#list + 1] = line end
  end
  return list
end

-- The body of an answer.
local function http(member, path)
  local answer = native.exchange(member.port, ("GET %s HTTP/1.0\r\nHost: kv\r\n\r\n"):format(path), 2) or ""
  return answer:match("\r\n\r\n(.*)$") or ""
end

local etcd = {scheme = "etcd", watch_compaction = true}
backends.etcd = etcd

function etcd.start(between)
  return servers.cluster(COUNT, {arguments = {"--unsafe-no-fsync", "--snapshot-count", "2000"}, between = between})
end

function etcd.leads(member)
  local text = member:try_ctl("endpoint", "status", "-w", "json", "--command-timeout", "1s") or ""
  local me, leader = text:match('"member_id":(%d+)'), text:match('"leader":(%d+)')
  return me ~= nil and me == leader
end

function etcd.leftovers(cluster)
  local member = cluster.members[1]
  local list = lines_with(member:ctl("get", "", "--prefix", "--keys-only"), "%.kv/", {})
  return lines_with(member:ctl("lease", "list"), "^%x+$", list)
end

function etcd.version() return assert(servers.run{"etcd", "--version"}):match("etcd Version: (%S+)") end
function etcd.settle(ttl) return ttl * 2 + 5 end

--- Forget the history, as operators do every hour.
function etcd.compact(member)
  local text = member:try_ctl("get", "any", "-w", "json", "--command-timeout", "1s")
  local revision = text and text:match('"revision":(%d+)')
  return revision and member:try_ctl("compact", revision, "--command-timeout", "1s") ~= nil
end

-- The same servers, by their older interface.
local etcd2 = {scheme = "etcd2", start = etcd.start, leads = etcd.leads, version = etcd.version, settle = etcd.settle}
backends.etcd2 = etcd2

function etcd2.leftovers(cluster)
  local list = {}
  -- Its directories stay: what is in them must not.
  for node in http(cluster.members[1], "/v2/keys/_kv?recursive=true&quorum=true"):gmatch('{"key":"[^{}]*}') do
    if not node:find('"dir":true', 1, true) then list[#list + 1] = node:match('"key":"([^"]*)"') end
  end
  return list
end

local consul = {scheme = "consul"}
backends.consul = consul

function consul.start() return servers.consul_cluster(COUNT) end

function consul.leads(member)
  return http(member, "/v1/status/leader"):find(":" .. member.server_port, 1, true) ~= nil
end

function consul.leftovers(cluster)
  local member, list = cluster.members[1], {}
  local function add(path, pattern)
    for found in http(member, path):gmatch(pattern) do list[#list + 1] = found end
  end
  add("/v1/session/list?consistent", '"(ID":%s*"[^"]+)"')
  add("/v1/kv/.kv/?keys&consistent", '"([^"]+)"')
  return list
end

function consul.version()
  return assert(servers.run{servers.consul_program(), "version"}):match("Consul (%S+)")
end

-- The server lets go of a session after up to twice its TTL, and of its locks after a delay: the TTL, 15 s at the most.
function consul.takeover(ttl) return ttl * 2 + math.min(ttl, 15) + 2 end
function consul.settle(ttl) return consul.takeover(ttl) + 5 end

-- no_lives: a compare may take the next life of a key for the one that it means.
local zookeeper = {scheme = "zk", no_lives = true}
backends.zookeeper = zookeeper

-- They cannot be parted by proxies: members take over their leader's idea of where all are.
function zookeeper.start() return servers.zookeeper_cluster(COUNT) end
function zookeeper.leads(member) return member:mode() == "leader" end

function zookeeper.leftovers(cluster)
  local leader = cluster.members[assert(cluster:leader(), "nobody leads")]
  return lines_with(leader:ask("dump"), "^%s+/", {}) -- paths of ephemeral nodes
end

function zookeeper.version(cluster)
  return cluster.members[1]:ask("srvr"):match("Zookeeper version: ([%d.]+)")
end
function zookeeper.settle(ttl) return ttl * 2 + 5 end

-- ------------------------------------------------------------------ what does not

function Cluster:url(rest)
  if not self.backend then return "local:" .. self.folder .. (rest or "") end
  local hosts = {}
  for i, proxy in ipairs(self.proxies) do hosts[i] = "127.0.0.1:" .. proxy.port end
  return self.backend.scheme .. "://" .. table.concat(hosts, ",") .. (rest or "/" .. self.prefix)
end

function Cluster:direct_url(rest)
  if not self.backend then return self:url(rest) end
  local hosts = {}
  for i, member in ipairs(self.members) do hosts[i] = "127.0.0.1:" .. member.port end
  return self.backend.scheme .. "://" .. table.concat(hosts, ",") .. (rest or "/" .. self.prefix)
end

function Cluster:leader()
  for i, member in ipairs(self.members) do
    if not member.is_paused and member.process:running() and self.backend.leads(member) then return i end
  end
end

function Cluster:leftovers()
  if self.backend then return self.backend.leftovers(self) end
  local list = {}
  for name in require("lfs").dir(self.folder .. "/owners") do
    if name:sub(1, 1) ~= "." then list[#list + 1] = "owners/" .. name end
  end
  return list
end

function Cluster:version()
  if self.backend then return self.backend.version(self) end
  local store = assert(kv.open(self:url()))
  assert(store:ping())
  local version = store:info().server_version
  store:close()
  return version
end

--- After so many seconds nothing of a client that was killed may be left.
function Cluster:settle_seconds(ttl)
  return self.backend and self.backend.settle(ttl) or 5
end

--- When a holder is killed, the next one has the lock after so many seconds.
function Cluster:takeover_seconds(ttl)
  if not self.backend then return 0.1 end
  return (self.backend.takeover or function() return ttl + 2 end)(ttl)
end

function Cluster:pause(i)
  self.members[i]:pause()
  self.members[i].is_paused = true
end

function Cluster:resume(i)
  self.members[i]:resume()
  self.members[i].is_paused = nil
end

function Cluster:kill(i)
  self.members[i]:kill()
  self.members[i].is_paused = nil
end

--- Start it again, if it does not run, without waiting for it.
function Cluster:launch(i)
  if not self.members[i].process:running() then self.members[i]:launch() end
end

function Cluster:tell_proxies(command, which)
  for i, proxy in ipairs(self.proxies) do
    if not which or which == i then proxy:tell(command) end
  end
end

--- Between a member and the others, a proxy's mode ("hold-all", "hold-requests", "hold-answers"). False: it cannot be.
-- etcd's messages to the others go as answers on their connections to it.
function Cluster:part(i, mode)
  if not self.links[i] then return false end
  self.links[i]:tell("now " .. mode)
  return true
end

function Cluster:rejoin()
  for _, link in ipairs(self.links) do
    link:tell("cut-reset")
    link:tell("now pass")
  end
end

local function state_of_member(self, i, dir)
  local url = ("%s://127.0.0.1:%d/%s"):format(self.backend.scheme, self.members[i].port, self.prefix)
  local store = assert(kv.open(url, {timeout = 10}))
  local state = {}
  for _, pair in ipairs(assert(store:list(dir, {consistency = "fast"}))) do state[pair.key] = pair.revision end
  store:close()
  return state
end

--- When all is well and nobody writes: a server's own fault, which is not to be laid at our door, or hidden.
function Cluster:disagreement(dir)
  local keys, states = {}, {}
  for i in ipairs(self.members) do states[i] = state_of_member(self, i, dir) end
  for _, state in ipairs(states) do
    for key, revision in pairs(state) do
      for _, other in ipairs(states) do
        if other[key] ~= revision then keys[key] = true end
      end
    end
  end
  return keys
end

function Cluster:heal()
  self:rejoin()
  for i, member in ipairs(self.members) do
    if member.is_paused then self:resume(i) end
    self:launch(i)
  end
  self:tell_proxies("listen")
  self:tell_proxies("now pass")
  for _, member in ipairs(self.members) do assert(member:wait_healthy()) end
end

function Cluster:stop()
  for _, proxy in ipairs(self.proxies) do proxy:stop() end
  for _, link in ipairs(self.links) do link:stop() end
  for _, member in ipairs(self.members) do member:stop() end
  if self.folder then util.remove(self.folder) end
end

--- @tparam string name "etcd", "etcd2", "consul", "zookeeper" or "local"
function clusters.start(name)
  local self = setmetatable({name = name, backend = backends[name], members = {}, proxies = {}, links = {},
    prefix = backends[name] and "torture" or ""}, Cluster)
  if not self.backend then
    assert(name == "local", "there is no backend " .. name)
    self.folder = util.folder()
    return self
  end
  self.members = self.backend.start(function(i, port)
    self.links[i] = proxies.start(port)
    return self.links[i].port
  end)
  for i, member in ipairs(self.members) do self.proxies[i] = proxies.start(member.port) end
  return self
end

return clusters
