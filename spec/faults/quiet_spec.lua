--- What an idle store costs: bytes of requests and connections, counted at a proxy, and the processor's time, for a
-- store that watches a directory and holds a lock; while all is well, and while every connection is closed at once, or
-- no request is answered, or the answers are errors.
local kv = require("kv")
local native = require("spec.native")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local TTL = 9
local SECONDS = 3

-- In that time the lock is renewed once or twice, in some 150 bytes (a third of its time to live), and ZooKeeper's
-- session is kept by as little; the watch asks anew after many seconds, if at all. Nobody connects.
local IDLE = {bytes = 600, connections = 0}
-- While nothing works, the watch, the renewal and the session try again, each with pauses that grow up to a second; the
-- first few tries come quickly. A request has a few hundred bytes.
local TROUBLE = {bytes = 4000, connections = 20}
local PROCESSOR = 0.05

local FAULTS = {
  etcd = {"close", "silent", "status 14"},
  etcd2 = {"close", "silent"},
  consul = {"close", "silent"},
  zookeeper = {"close", "silent"},
}

local function count(proxy)
  return {bytes = proxy:number("requests"), connections = proxy:number("connections"), processor = os.clock()}
end

local function check(proxy, limits, what)
  local begin, before = native.now(), count(proxy)
  native.sleep(SECONDS)
  local after = count(proxy)
  local seconds = native.now() - begin
  for name, value in pairs(after) do
    local rate, limit = (value - before[name]) / seconds, limits[name] or PROCESSOR
    assert.is_true(rate <= limit, ("%s: %.2f of %s in a second, at most %.2f"):format(what, rate, name, limit))
  end
end

-- What was begun before has come to its end.
local function settle(proxy)
  local last, since
  util.eventually(function()
    local connections = proxy:number("connections")
    if connections ~= last then last, since = connections, native.now() end
    return native.now() - since > 0.5
  end, "nobody connects", 20)
end

describe("an idle store is quiet:", function()
  local server, proxy, store

  after_each(function()
    store:close()
    proxy:stop()
    server:stop()
  end)

  for backend, faults in pairs(FAULTS) do
    it(backend, function()
      server = servers[backend]{}
      proxy = proxies.start(server.port)
      local url = server:url("/idle"):gsub(":" .. server.port, ":" .. proxy.port)
      store = assert(kv.open(url, {session_ttl = TTL}))
      local watch = assert(store:watch_tree(""))
      assert(watch:wait_synced(10))
      local lock = assert(assert(store:lock("door", {ttl = TTL})):acquire(10))
      settle(proxy)
      check(proxy, IDLE, "idle")
      assert.is_true(lock:held())
      for _, fault in ipairs(faults) do
        proxy:tell("now " .. fault)
        proxy:tell("cut")
        util.eventually(function() return not watch:connected() end, "the watch knows", 20)
        check(proxy, TROUBLE, fault)
      end
      proxy:tell("now pass")
      proxy:tell("cut")
      util.eventually(function() return store:put("key", "v") end, "it heals", 20)
      assert.equal("v", assert(watch:next(20)).value)
    end)
  end
end)
