--- Keys that are kept alive, on a store that is cut off for longer than they live: they go, their watchers are told,
-- they do not come back by themselves, and can be put again.
local kv = require("kv")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local TTL = 4
local PATIENCE = 30

local BACKENDS = {"etcd", "etcd2", "consul", "zookeeper"}

describe("keys that are kept alive", function()
  local grounds

  setup(function()
    grounds = {}
    for i, backend in ipairs(BACKENDS) do
      local server = servers[backend]{}
      grounds[i] = {server = server, proxy = proxies.start(server.port)}
    end
  end)
  teardown(function()
    for _, ground in ipairs(grounds) do
      ground.proxy:stop()
      ground.server:stop()
    end
  end)

  local function try(ground)
    local server, proxy = ground.server, ground.proxy
    local function eventually(condition, what)
      return util.eventually_task(kv, condition, server:url() .. ": " .. what, PATIENCE)
    end
    local direct = assert(kv.open(server:url("/app"), {timeout = PATIENCE}))
    local url = server:url("/app"):gsub(":" .. server.port, ":" .. proxy.port)
    local store = assert(kv.open(url, {session_ttl = TTL, connect_timeout = 1}))
    assert(store:put("kept", "1", {keep_alive = true}))
    local near, far = assert(store:watch("kept")), assert(direct:watch("kept"))
    for _, watch in ipairs{near, far} do assert.equal("1", assert(watch:next(PATIENCE)).value) end
    proxy:tell("now silent")
    assert.equal("delete", assert(far:next(PATIENCE)).type)
    proxy:tell("now pass")
    proxy:tell("cut")
    assert.equal("delete", assert(near:next(PATIENCE)).type)
    local there, problem
    eventually(function()
      there, problem = store:get("kept")
      return not problem
    end, "it is read")
    assert.is_nil(there)
    eventually(function() return store:put("kept", "2", {keep_alive = true}) end, "it is put again")
    -- It lives longer than the time that it was put for: a key that nobody renews goes before.
    assert(direct:put("not kept", "v", {ttl = 1.5 * TTL}))
    eventually(function() return direct:exists("not kept") == false end, "another key has gone")
    assert.equal("2", assert(direct:get("kept")).value)
    store:close()
    eventually(function() return direct:exists("kept") == false end, "it goes with its store")
    direct:close()
  end

  it("are gone with their session, and do not come back (on each backend, beside each other)", function()
    util.at_once(kv, #BACKENDS, function(i) try(grounds[i]) end)
  end)
end)
