--- ZooKeeper behind a network that fails: lost answers, cuts, names, silence.
local kv = require("kv")
local native = require("spec.native")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local eventually = util.eventually

describe("ZooKeeper's network", function()
  local zk, proxy, direct, stores

  local function open(options)
    local all = {session_ttl = 20, connect_timeout = 1, timeout = 10}
    for name, value in pairs(options or {}) do all[name] = value end
    local store = assert(kv.open("zk://localhost:" .. proxy.port, all))
    stores[#stores + 1] = store
    return store
  end

  before_each(function()
    zk = servers.zookeeper{}
    proxy = proxies.start(zk.port)
    direct = assert(kv.open(zk:url()))
    stores = {direct}
  end)

  after_each(function()
    for _, store in ipairs(stores) do store:close() end
    proxy:stop()
    zk:stop()
  end)

  it("a write whose answer is lost is unknown, and is made once", function()
    local store = open()
    -- A put that guesses wrong needs two round trips, and the answer to the first is lost here: so let it know the key.
    for i = 1, 2 do assert(store:put("key", "before " .. i)) end
    local watch = assert(direct:watch("key", {initial = false}))
    assert(watch:wait_synced(5))
    proxy:tell("now drop-answers")
    local pair, message, code = store:put("key", "v", {timeout = 1})
    assert.is_nil(pair)
    assert.equal("unknown", code, message)
    proxy:tell("now pass")
    local event = assert(watch:next(5))
    assert.equal("v", event.value)
    local value
    value, message, code = watch:next(3)
    assert.is_nil(value, "it was put again")
    assert.equal("timeout", code, message)
    assert.equal("v", assert(store:get("key", {timeout = 10})).value)
  end)

  it("a write that was never sent is not applied", function()
    local store = open()
    assert(store:ping())
    proxy:tell("refuse")
    proxy:tell("cut")
    eventually(function() return not store:info().connected end, "it notices")
    local pair, message, code = store:put("key", "v", {timeout = 3})
    assert.is_nil(pair)
    assert.equal("unavailable", code, message)
    proxy:tell("listen")
    assert.is_false(direct:exists("key"))
    assert(store:put("key", "w", {timeout = 10}))
  end)

  it("reads that wait to share a sync are answered after a cut too", function()
    local store = open()
    for i = 1, 50 do assert(direct:put("key/" .. i, "v" .. i)) end
    assert(store:ping())
    proxy:tell("delay 20")
    kv.run(function()
      local tasks, answered = {}, 0
      for i = 1, 50 do
        tasks[i] = kv.spawn(function()
          for _ = 1, 6 do
            assert.equal("v" .. i, assert(store:get("key/" .. i)).value)
            answered = answered + 1
          end
          assert.is_false(store:exists("none/" .. i))
        end)
      end
      for _, limit in ipairs{0, 60, 140} do
        while answered <= limit and answered < 250 do kv.sleep(0.001) end
        proxy:tell("cut")
      end
      for _, task in ipairs(tasks) do task:join() end
    end)
  end)

  it("a cut in the middle of answers loses no event", function()
    local store = open()
    for i = 1, 200 do assert(direct:put("dir/" .. i, ("x"):rep(100))) end
    local watch, state = assert(store:watch_tree("dir")), {}
    for round = 1, 5 do
      proxy:tell("cut-after " .. 500 * round)
      for i = 1, 200, 7 do assert(direct:put("dir/" .. i, tostring(round))) end
      assert(direct:delete("dir/" .. round * 2))
      local last = "round " .. round
      assert(direct:put("dir/end", last))
      local deadline = native.now() + 20
      while state["dir/end"] ~= last do
        assert.is_true(native.now() < deadline, "the watch does not get there")
        local event = watch:next(1)
        if event then state[event.key] = event.type == "put" and event.value or nil end
      end
    end
    eventually(function()
      local event = watch:next(0)
      if event then state[event.key] = event.type == "put" and event.value or nil end
      local there = assert(direct:list("dir"))
      local count = 0
      for _ in pairs(state) do count = count + 1 end
      for _, pair in ipairs(there) do if state[pair.key] ~= pair.value then return false end end
      return count == #there
    end, "the watch is exact", 20)
  end)

  -- Long paths: one session has no room for all of them. The first host is that of the store's own session, the second
  -- one that of the other session with watches.
  it("of a tree's sessions one expires, and what the others watch is not told to be gone", function()
    local second, count = proxies.start(zk.port), 1500
    second:tell("refuse")
    local store = assert(kv.open(("zk://127.0.0.1:%d,127.0.0.1:%d"):format(proxy.port, second.port),
      {session_ttl = 4, connect_timeout = 1, timeout = 10}))
    stores[#stores + 1] = store
    assert(store:ping())
    second:tell("listen")
    proxy:tell("refuse")
    local values, long = {}, ("k"):rep(420)
    for i = 1, count do values[("dir/%s%d"):format(long, i)] = "v" end
    assert(direct:put_many(values, {timeout = 60}))
    local watch = assert(store:watch_tree("dir"))
    for _ = 1, count do assert.equal("put", assert(watch:next(20)).type) end
    assert.equal("1 1", proxy:number("open") .. " " .. second:number("open"))
    second:tell("refuse")
    proxy:tell("now silent")
    eventually(function()
      return zk:ask("mntr"):match("zk_global_sessions%s+(%d+)") == "2" -- of the other store, and the second of this one
    end, "the server has forgotten the first session", 30)
    second:tell("listen")
    assert(direct:delete("dir/" .. long .. 7))
    assert(direct:put("dir/end", "v"))
    local told = {}
    repeat
      local event = assert(watch:next(20))
      told[#told + 1] = event.type .. " " .. event.key:gsub("k+", "k")
    until #told == 2
    table.sort(told)
    assert.same({"delete dir/k7", "put dir/end"}, told)
    eventually(function() return watch:connected() end, "all is read again", 20)
    local event, message, code = watch:next(0)
    assert.is_nil(event)
    assert.equal("timeout", code, message)
    second:stop()
  end)

  it("a lock that was asked for without an answer leaves nothing behind", function()
    local store = open()
    local lock = assert(store:lock("door", {ttl = 3}))
    assert(lock:acquire(5))
    assert(lock:release())
    proxy:tell("now drop-answers")
    local got, message, code = lock:acquire(1)
    assert.is_nil(got)
    assert.equal("timeout", code, message)
    proxy:tell("now pass")
    local function entries()
      local text = zk:ask("dump")
      assert(text ~= "", "the server does not answer")
      return select(2, text:gsub("%-lock%-", ""))
    end
    local other = assert(direct:lock("door", {ttl = 20}))
    assert(other:acquire(30))
    eventually(function() return entries() == 1 end, "only the holder's entry is there", 30)
    assert(other:release())
    assert(lock:acquire(30))
    assert(lock:release())
    eventually(function() return entries() == 0 end, "no entry is left", 30)
  end)

  it("a lock survives a connection that is cut", function()
    local store = open()
    local lock = assert(assert(store:lock("door", {ttl = 6})):acquire(5))
    for _ = 1, 3 do
      proxy:tell("cut")
      native.sleep(0.3)
      assert.is_true(lock:held())
    end
    eventually(function() return lock:state() == "held" end, "it is renewed", 30)
    assert(lock:release())
  end)

  it("waiters whose connection is cut get their turn", function()
    local store = open()
    local lock = assert(assert(direct:lock("door", {ttl = 20})):acquire(5))
    kv.run(function()
      local waiter = assert(store:lock("door", {ttl = 20}))
      local task = kv.spawn(function() return waiter:acquire(20) end)
      while waiter:state() ~= "waiting" do kv.sleep(0.01) end
      kv.sleep(0.2)
      proxy:tell("cut")
      kv.sleep(0.5)
      assert(lock:release())
      assert(task:join(20))
      assert.is_true(waiter:held())
      assert(waiter:release())
    end)
  end)

  it("a lease that cannot be renewed is lost in time, with its keys", function()
    local store = open()
    local lease = assert(store:lease(3))
    assert(store:put("leased", "v", {lease = lease}))
    proxy:tell("now silent")
    local start = native.now()
    local reason, message = lease:wait_lost(20)
    assert.is_truthy(reason, message)
    assert.is_true(native.now() - start < 8)
    eventually(function() return direct:exists("leased") == false end, "the key went", 30)
    proxy:tell("now pass")
    proxy:tell("cut")
    assert(store:put("leased", "again", {timeout = 30}))
  end)

  it("a lease is given up when the server says so, not before", function()
    local store = open()
    local lease = assert(store:lease(30))
    assert(store:put("leased", "v", {lease = lease}))
    proxy:tell("now silent")
    local done, message, code = lease:revoke(4)
    assert.is_nil(done)
    assert.is_truthy(code == "timeout" or code == "unknown" or code == "unavailable", message)
    assert.is_true(direct:exists("leased"))
    proxy:tell("now pass")
    proxy:tell("pass")
    eventually(function() return direct:exists("leased") == false end, "it is given up", 15)
  end)

  it("a server that closes behind each handshake is not asked again and again", function()
    zk:kill()
    local process = util.lua("spec/support/closing_zookeeper.lua", tostring(zk.port))
    assert.equal(tostring(zk.port), process:line(10))
    local watch = assert(open():watch("key", {initial = false}))
    native.sleep(3)
    local connections = proxy:number("connections")
    assert.is_true(connections > 1)
    assert.is_true(connections < 60, connections .. " connections in three seconds")
    process:kill("KILL")
    process:wait(10)
    zk:start()
    assert(watch:wait_synced(30))
  end)

  it("a handshake that is not answered ends in time", function()
    proxy:tell("silent")
    local store = open()
    local start = native.now()
    local value, message, code = store:get("key", {timeout = 2.5})
    assert.is_nil(value)
    assert.is_truthy(code == "unavailable" or code == "timeout", message)
    assert.is_true(native.now() - start < 15)
    proxy:tell("pass")
    assert.is_false(store:exists("key", {timeout = 30}))
  end)

  it("a handshake has connect_timeout, however short the session is to be", function()
    proxy:tell("hold-requests")
    local store = open{session_ttl = 3, connect_timeout = 20}
    kv.run(function()
      local task = kv.spawn(function() return store:get("key", {timeout = 30}) end)
      util.eventually_task(kv, function() return proxy:number("open") == 1 end, "it connects")
      kv.sleep(3)
      assert.equal(1, proxy:number("connections"))
      proxy:tell("now pass")
      local pair, message, code = task:join()
      assert.is_nil(pair)
      assert.is_nil(code, message)
    end)
  end)

  it("of two hosts the dead one is left alone", function()
    local store = assert(kv.open(("zk://127.0.0.1:%d,127.0.0.1:%d"):format(native.port(), zk.port), {timeout = 30}))
    stores[#stores + 1] = store
    for i = 1, 10 do assert(store:put("key", tostring(i))) end
    assert.equal("127.0.0.1:" .. zk.port, store:info().endpoint)
  end)

  it("a host whose name cannot be resolved is told by its name", function()
    local store = assert(kv.open("zk://no-such-host.invalid", {connect_timeout = 1, timeout = 4}))
    stores[#stores + 1] = store
    local value, message, code = store:get("key")
    assert.is_nil(value)
    assert.equal("unavailable", code, message)
    assert.is_truthy(message:find("no-such-host.invalid", 1, true), message)
  end)
end)
