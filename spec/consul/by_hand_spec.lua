--- Hands on what locks have in Consul.
local kv = require("kv")
local by_hand = require("spec.support.by_hand")
local servers = require("spec.support.servers")

describe("locks of Consul, by hand:", function()
  local server

  setup(function() server = servers.consul{} end)
  teardown(function() server:stop() end)

  local function http(method, path, body)
    return (servers.run{"curl", "-s", "-X", method, ("http://127.0.0.1:%d%s"):format(server.port, path), "-d",
      body or ""})
  end

  local function quoted(key) return (key:gsub("%%", "%%25")) end

  by_hand{
    url = function() return server:url() end,
    keys = function(part)
      local keys = {}
      for key in http("GET", "/v1/kv/.kv/?keys"):gmatch('"([^"]+)"') do
        if key:find(part, 1, true) then keys[#keys + 1] = key end
      end
      return keys
    end,
    delete = function(key) http("DELETE", "/v1/kv/" .. quoted(key)) end,
    overwrite = function(key) http("PUT", "/v1/kv/" .. quoted(key), "by hand") end,
    survives_overwriting = false, -- the token is the index of the last write
  }

  it("a leader whose session is destroyed has lost, and the next one leads behind the lock-delay", function()
    local store, other = assert(kv.open(server:url("/app"))), assert(kv.open(server:url("/app")))
    local first = assert(assert(store:election("boss", {ttl = 3})):campaign("first", 20))
    local watch = assert(assert(other:election("boss")):observe())
    assert.equal("first", assert(watch:next(20)).value)
    local id = http("GET", "/v1/kv/.kv/leader/app%252Fboss"):match('"Session": *"([^"]+)"')
    assert.is_string(id)
    http("PUT", "/v1/session/destroy/" .. id)
    assert(first:wait_lost(10))
    assert.is_false(first:is_leader())
    assert.equal("delete", assert(watch:next(20)).type)
    local second = assert(assert(other:election("boss", {ttl = 30})):campaign("second", 40))
    assert.is_true(second.token > first.token)
    assert.same({value = "second", token = second.token}, assert(first:leader()))
    assert.equal("second", assert(watch:next(20)).value)
    assert(second:resign())
    store:close()
    other:close()
  end)
end)
