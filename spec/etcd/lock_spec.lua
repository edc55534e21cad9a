--- A waiter of a lock whose way to etcd is long: between its look at who is before it, and the watch on that entry, the
-- holder lets go.
local kv = require("kv")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local PATIENCE = 20
local DELAY = 500 -- ms, on each way

describe("a lock on etcd that is let go before its waiter watches", function()
  local server, near, far, proxy

  setup(function() server = servers.etcd{arguments = {"--unsafe-no-fsync"}} end)
  teardown(function() server:stop() end)
  before_each(function()
    proxy = proxies.start(server.port)
    near = assert(kv.open(server:url("/app"), {timeout = PATIENCE}))
    far = assert(kv.open("etcd://127.0.0.1:" .. proxy.port .. "/app", {timeout = PATIENCE}))
    assert(far:ping())
    proxy:tell("delay " .. DELAY)
  end)
  after_each(function()
    near:close()
    far:close()
    proxy:stop()
  end)

  -- fn() makes a waiter, which comes (one call of the server) and looks who is before it (another one).
  local function looked(fn)
    local before = server:kv_calls()
    local waiter = kv.spawn(fn)
    util.eventually_task(kv, function() return server:kv_calls() >= before + 2 end, "it has looked", PATIENCE)
    return waiter
  end

  it("is given to it", function()
    kv.run(function()
      local held, lock = assert(assert(near:lock("one")):acquire(PATIENCE)), assert(far:lock("one", {ttl = 60}))
      local waiter = looked(function() return lock:acquire(PATIENCE) end)
      assert(held:release())
      assert.equal(lock, (assert(waiter:join(PATIENCE * 2))))
    end)
  end)

  it("is given to it when the entry before is there again, behind it", function()
    kv.run(function()
      local held = assert(assert(near:lock("two", {ttl = 60})):acquire(PATIENCE))
      local lock = assert(far:lock("two", {ttl = 60}))
      local waiter = looked(function() return lock:acquire(PATIENCE) end)
      assert(held:release())
      local next_one = kv.spawn(function() return held:acquire(PATIENCE * 2) end)
      assert.equal(lock, (assert(waiter:join(PATIENCE * 2))))
      assert.equal("waiting", held:state())
      assert(lock:release())
      assert.equal(held, (assert(next_one:join(PATIENCE * 2))))
    end)
  end)
end)
