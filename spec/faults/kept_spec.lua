--- Keys that are kept alive, on a store that is cut off for longer than they live: they go, their watchers are told,
-- they do not come back by themselves, and can be put again.
local kv = require("kv")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local TTL = 1.5

describe("a key that is kept alive is gone with its session:", function()
  for _, backend in ipairs{"etcd", "etcd2", "consul", "zookeeper"} do
    it(backend, function()
      local server = servers[backend]{}
      local proxy = proxies.start(server.port)
      local direct = assert(kv.open(server:url("/app")))
      local url = server:url("/app"):gsub(":" .. server.port, ":" .. proxy.port)
      local store = assert(kv.open(url, {session_ttl = TTL, connect_timeout = 1}))
      assert(store:put("kept", "1", {keep_alive = true}))
      local near, far = assert(store:watch("kept")), assert(direct:watch("kept"))
      for _, watch in ipairs{near, far} do assert.equal("1", assert(watch:next(10)).value) end
      proxy:tell("now silent")
      assert.equal("delete", assert(far:next(20)).type)
      proxy:tell("now pass")
      proxy:tell("cut")
      assert.equal("delete", assert(near:next(20)).type)
      assert.is_nil((store:get("kept")))
      util.eventually(function() return store:put("kept", "2", {keep_alive = true}) end, "it is put again", 20)
      assert(direct:put("not kept", "v", {ttl = 2 * TTL}))
      util.eventually(function() return not direct:exists("not kept") end, "another key has gone", 20)
      assert.equal("2", assert(direct:get("kept")).value)
      store:close()
      util.eventually(function() return not direct:exists("kept") end, "it goes with its store", 10)
      direct:close()
      proxy:stop()
      server:stop()
    end)
  end
end)
