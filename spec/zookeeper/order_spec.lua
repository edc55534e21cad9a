--- Two clients that meet at one key, in an order that is made here: one of them has its requests behind a proxy that
-- stops them at the first of a kind (numbered as ZooKeeper does), the other one comes in between.
local kv = require("kv")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local DELETE, GET, SET, SET_LIST, MULTI, CREATE_TIMED = 2, 4, 5, 7, 14, 21

describe("zookeeper, in a certain order", function()
  local zk, proxy, slow, other

  setup(function() zk = servers.zookeeper{tick = 1000} end) -- for long sessions
  teardown(function() zk:stop() end)
  before_each(function()
    proxy = proxies.start(zk.port)
    slow = assert(kv.open("zk://127.0.0.1:" .. proxy.port .. "/app", {timeout = 30, session_ttl = 16}))
    other = assert(kv.open(zk:url("/app"), {timeout = 20}))
    assert(slow:ping())
  end)
  after_each(function()
    other:delete_tree("")
    slow:close()
    other:close()
    proxy:stop()
  end)

  local function wait_until_stopped()
    util.eventually_task(kv, function() return proxy:number("stopped") == 1 end, "it gets there")
  end

  -- What `first` returns, when it was stopped at a request of that type and `second` has run meanwhile.
  local function meet(first, type, second)
    local result
    kv.run(function()
      proxy:tell("stop-at " .. type)
      local task = kv.spawn(function() result = {first()} end)
      wait_until_stopped()
      second()
      proxy:tell("stop-at 0")
      task:join()
    end)
    return result[1], result[3], result[2]
  end

  local function goes_in_time(key)
    util.eventually(function() return not other:exists(key) end, "its time to live is over", 8)
  end

  it("two that create a key with a time to live: it goes in time, whoever fills the node of the other", function()
    for round = 1, 3 do
      local short, way = {ttl = 0.4}, ({SET_LIST, SET, SET_LIST})[round]
      local made, code = meet(function() return slow:atomic_put("key", "slow", nil, short) end, way, function()
        if round < 3 then assert(other:atomic_put("key", "other", nil, short))
        else assert(other:txn():check_absent("key"):put("key", "other", short):commit()) end
      end)
      assert.is_nil(made)
      assert.equal("exists", code)
      assert.equal("other", assert(other:get("key")).value)
      goes_in_time("key")
    end
  end)

  it("a condition on a key that was deleted meanwhile does not hold, though its place is free", function()
    assert(slow:put("key", "1"))
    local before = assert(slow:put("key", "2"))
    local put = function() return slow:atomic_put("key", "3", before, {ttl = 20}) end
    local made, code = meet(put, CREATE_TIMED, function() assert.is_true(other:delete("key")) end)
    assert.is_nil(made)
    assert.equal("modified", code)
    assert.is_false(other:exists("key"))
  end)

  it("a key that is deleted while another one changes how long it lives does not come back", function()
    assert(slow:put("known", "a server that makes such nodes", {ttl = 20}))
    assert(slow:put("key", "1"))
    local before = assert(slow:put("key", "2"))
    local put = function() return slow:atomic_put("key", "3", before, {ttl = 20}) end
    local made, _, message = meet(put, DELETE, function()
      assert.equal("3", assert(other:get("key")).value)
      assert.is_true(other:delete("key"))
    end)
    assert.is_truthy(made, message)
    assert.is_false(other:exists("key"))
  end)

  it("a key that gives way to one that lives shorter or longer is there, though another one made its node", function()
    local second = proxies.start(zk.port)
    local third = assert(kv.open("zk://127.0.0.1:" .. second.port .. "/app", {timeout = 30, session_ttl = 16}))
    assert(slow:put("known", "a server that makes such nodes", {ttl = 20}))
    assert(slow:put("key", "1"))
    local before = assert(slow:put("key", "2"))
    kv.run(function()
      local theirs
      second:tell("stop-at " .. SET_LIST)
      proxy:tell("stop-at " .. CREATE_TIMED)
      local ours = kv.spawn(function() return slow:atomic_put("key", "3", before, {ttl = 20}) end)
      wait_until_stopped()
      theirs = kv.spawn(function() return third:atomic_put("key", "4", nil, {ttl = 20}) end)
      util.eventually_task(kv, function() return second:number("stopped") == 1 end, "the node is there, and empty")
      proxy:tell("stop-at 0")
      local made = assert(ours:join())
      assert.same(made, (other:get("key")))
      second:tell("stop-at 0")
      local _, message, code = theirs:join()
      assert.equal("exists", code, message)
      assert.equal("3", assert(other:get("key")).value)
    end)
    third:close()
    second:stop()
  end)

  it("a key below that comes while a put makes a key permanent hinders it not", function()
    assert(other:put("key", "1", {ttl = 20}))
    local made, _, message = meet(function() return slow:put("key", "2") end, MULTI, function()
      assert(other:put("key/below", "v"))
    end)
    assert.same(assert(made, message), (other:get("key")))
  end)

  it("a put that makes a key permanent is not made a second time over what others wrote meanwhile", function()
    assert(other:put("key", "1", {ttl = 20}))
    local made, _, message = meet(function() return slow:put("key", "2") end, MULTI, function()
      local pair = assert(other:get("key"))
      assert.equal("2", pair.value)
      assert(other:atomic_put("key", "3", pair))
    end)
    assert.is_truthy(made, message)
    assert.equal("3", assert(other:get("key")).value)
  end)

  it("a put that loses its connection while it looks who was faster tries again at once", function()
    local took, made, code = util.timed(function()
      return meet(function() return slow:atomic_put("key", "slow", nil, {ttl = 60}) end, SET_LIST, function()
        assert(other:put("key", "other"))
        proxy:tell("stop-at " .. GET)
        wait_until_stopped()
        proxy:tell("cut")
      end)
    end)
    assert.is_nil(made)
    assert.equal("exists", code)
    assert.is_true(took < 10, took .. " s") -- otherwise with its session
    assert.equal("other", assert(other:get("key")).value)
  end)
end)
