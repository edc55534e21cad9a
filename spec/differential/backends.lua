--- The backends that programs can be run on, by name: how a server of each is had, and in what they differ by contract.
--
-- What a backend can do is asked from its store (`supports`). What else the contract lets differ are traits:
--    nodes           keys are nodes that keep their kind, see nodes.lua
--    directories     a key has a value or children, never both, as everywhere in portable mode
--    whole_trees     a tree is deleted as one: a watch cannot resume behind a revision before that
local kv = require("kv")
local util = require("spec.support.util")

local CAPABILITIES = {"txn", "ttl", "lock", "lease", "resume", "every_version"}

-- start() gives a function that returns a URL each time it is called, and one that ends what was started.
local known = {}

-- A server of spec/support/servers.lua, by the name of its constructor; what it makes has url() and stop().
local function server(name, options)
  return function()
    local one = require("spec.support.servers")[name](options or {})
    return function() return one:url() end, function() one:stop() end
  end
end

-- A cluster: every store begins at another member.
local function cluster(constructor)
  return function()
    local members, hosts, scheme = constructor(), {}, nil
    for i, member in ipairs(members) do
      scheme, hosts[i] = member:url():match("^(%w+)://(.+)$")
    end
    local function url()
      table.insert(hosts, table.remove(hosts, 1))
      return scheme .. "://" .. table.concat(hosts, ",")
    end
    return url, function()
      for _, member in ipairs(members) do member:stop() end
    end
  end
end

known["local"] = {start = function()
  local path = util.folder() .. "/store"
  return function() return "local:" .. path .. "?sync=none" end, function() end
end}
known.etcd = {start = server("etcd")}
known["etcd-plain"] = {start = server("etcd"), options = {leading_slash = false}}
known["etcd-cluster"] = {start = cluster(function() return require("spec.support.servers").cluster(3) end)}
known.etcd2 = {start = server("etcd2"), traits = {directories = true, whole_trees = true}}
known.consul = {start = server("consul")}
known.zookeeper = {start = server("zookeeper"), traits = {nodes = true}}

local backends = {}

--- Is it one that the model takes for granted, or a trait?
function backends.is_capability(name)
  for _, capability in ipairs(CAPABILITIES) do
    if capability == name then return true end
  end
  return false
end

--- Start a backend.
-- @tparam string name
-- @treturn table {name =, traits =, open = function(options) -> store, stop = function()}
function backends.start(name)
  local entry = assert(known[name], "there is no backend " .. name)
  local url, stop = entry.start()
  local backend = {name = name, traits = {}, stop = stop}
  function backend.open(options)
    for option, value in pairs(entry.options or {}) do options[option] = value end
    return kv.open(url(), options)
  end
  local store = assert(backend.open{})
  for _, capability in ipairs(CAPABILITIES) do backend.traits[capability] = store:supports(capability) end
  for trait, value in pairs(entry.traits or {}) do backend.traits[trait] = value end
  store:close()
  return backend
end

return backends
