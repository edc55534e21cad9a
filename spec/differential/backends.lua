--- The backends that programs can be run on, by name: how a server of each is had, and in what they differ by contract.
--
-- What a backend can do is asked from its store (`supports`). What else the contract lets differ are traits:
--    loose_created   `created` may be older where a parent became a key
--    directories     a key has a value or children, never both, as everywhere in portable mode
local kv = require("kv")
local util = require("spec.support.util")

local CAPABILITIES = {"txn", "ttl", "lock", "lease", "resume", "every_version"}

-- `server` is a constructor of spec/support/servers.lua; what it makes has url() and stop().
local known = {
  ["local"] = {url = function() return "local:" .. util.folder() .. "/store?sync=none" end},
  etcd = {server = "etcd"},
  etcd2 = {server = "etcd2", traits = {directories = true}},
  consul = {server = "consul"},
  zookeeper = {server = "zookeeper", traits = {loose_created = true}},
}

local backends = {}

--- Start a backend.
-- @tparam string name
-- @treturn table {name =, traits =, open = function(options) -> store, stop = function()}
function backends.start(name)
  local entry = assert(known[name], "there is no backend " .. name)
  local server = entry.server and require("spec.support.servers")[entry.server]{}
  local url = server and server:url() or entry.url()
  local backend = {name = name, traits = {}}
  function backend.open(options) return kv.open(url, options) end
  function backend.stop()
    if server then server:stop() end
  end
  local store = assert(backend.open{})
  for _, capability in ipairs(CAPABILITIES) do backend.traits[capability] = store:supports(capability) end
  for trait, value in pairs(entry.traits or {}) do backend.traits[trait] = value end
  store:close()
  return backend
end

return backends
