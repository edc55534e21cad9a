--- Locks on etcd v2: each entry has a time to live of its own, which begins when the server makes it.
local kv = require("kv")
local native = require("spec.native")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")

describe("a lock on etcd v2", function()
  local server, proxy, slow, rival

  setup(function()
    server = servers.etcd{arguments = {"--unsafe-no-fsync"}}
    proxy = proxies.start(server.port)
    slow = assert(kv.open(("etcd2://127.0.0.1:%d/app"):format(proxy.port)))
    rival = assert(kv.open(("etcd2://127.0.0.1:%d/app"):format(server.port)))
    assert(slow:ping())
    assert(rival:ping())
  end)

  teardown(function()
    slow:close()
    rival:close()
    proxy:stop()
    server:stop()
  end)

  it("is not held any longer than its entry, however late the answer came that it is there", function()
    local late, other = assert(slow:lock("door", {ttl = 3})), assert(rival:lock("door", {ttl = 3}))
    kv.run(function()
      local begin = native.now()
      proxy:tell("now hold-answers")
      local task = kv.spawn(function() return late:acquire(20) end)
      -- The entry is there all the time, and its lease is renewed meanwhile.
      while native.now() - begin < 2.5 do kv.sleep(0.05) end
      proxy:tell("now pass")
      assert.equal(late, (assert(task:join(20))))
      proxy:tell("now hold-all")
      assert(other:acquire(20))
      assert.is_false(late:held())
      proxy:tell("now pass")
      assert(other:release())
    end)
  end)

  it("has no kinds of other programs", function()
    local lock, message, code = rival:lock("door", {interop = "etcd"})
    assert.is_nil(lock)
    assert.equal("unsupported", code, message)
    assert.is_false(rival:supports("interop"))
  end)
end)
