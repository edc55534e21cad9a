--- Stores: many requests at once, listings, updates, transactions, locks: what conformance does not reach.
local kv = require("kv")
local native = require("spec.native")
local pipeline = require("kv.pipeline")
local util = require("spec.support.util")

local store

before_each(function() store = assert(kv.open("local:?sync=none")) end)
after_each(function() store:close() end)

local function fails(code, value, message, actual)
  assert.is_nil(value)
  assert.is_string(message)
  assert.equal(code, actual, message)
  return message
end

describe("put_many and get_many", function()
  it("have so many in flight, and not more", function()
    local values, keys, most = {}, {}, 0
    for i = 1, 5000 do
      keys[i] = "key/" .. i
      values[keys[i]] = tostring(i)
    end
    kv.run(function()
      local task = kv.spawn(function() return store:put_many(values) end)
      local done = false
      kv.spawn(function()
        task:join()
        done = true
      end)
      while not done do
        most = math.max(most, store:stats().in_flight)
        kv.sleep(0)
      end
      assert.is_true((task:join()))
    end)
    assert.is_true(most <= pipeline.WINDOW, most)
    assert.is_true(most > 1)
    local found = assert(store:get_many(keys))
    for key, value in pairs(values) do assert.equal(value, found[key].value) end
  end)

  it("tell the first failure, with its key", function()
    local small = assert(kv.open("local:?sync=none", {portable = true}))
    local values = {}
    for i = 1, 100 do values["fine/" .. i] = "v" end
    values["culprit"] = ("x"):rep(512 * 1024 + 1)
    local message = fails("too_large", small:put_many(values))
    assert.is_truthy(message:find("culprit", 1, true), message)
    small:close()
  end)

  it("take the time that they have", function()
    local away = assert(kv.open("etcd://127.0.0.1:1"))
    local start = native.now()
    local value, _, code = away:get_many({"a", "b", "c"}, {timeout = 0.1})
    assert.is_nil(value)
    assert.is_truthy(code == "timeout" or code == "unavailable")
    value, _, code = away:put_many({a = "1", b = "2"}, {timeout = 0.1})
    assert.is_nil(value)
    assert.is_truthy(code == "timeout" or code == "unavailable")
    assert.is_true(native.now() - start < 10)
    away:close()
  end)

  it("name keys as they were asked for, pairs as they are", function()
    assert(store:put("a/b", "v"))
    local found = assert(store:get_many{"/a//b/", "a/b"})
    assert.equal("a/b", found["/a//b/"].key)
    assert.equal("a/b", found["a/b"].key)
  end)
end)

describe("locks and leases", function()
  it("say why nobody could be asked in time", function()
    local schemes = {"etcd", "etcd2", "consul", "zk"}
    local answers = util.at_once(kv, #schemes, function(i)
      local away = kv.open(schemes[i] .. "://127.0.0.1:1", {timeout = 0.2})
      if not away then return "left out of this build" end
      local value, message, code = away:lock("door"):acquire(3)
      away:close()
      return "in it", value, message, code
    end)
    for i, answer in ipairs(answers) do
      if answer[1] == "in it" then
        local message = fails("timeout", answer[2], answer[3], answer[4])
        assert.is_truthy(message:find("cannot connect to 127.0.0.1:1", 1, true), schemes[i] .. ": " .. message)
      end
    end
  end)
end)

describe("list", function()
  it("joins pages up to a limit that is larger than one", function()
    local values = {}
    for i = 1, 300 do values[("dir/%03d"):format(i)] = ("x"):rep(10000) end
    assert(store:put_many(values))
    assert.equal(300, #assert(store:list("dir")))
    local found = assert(store:list("dir", {limit = 299}))
    assert.equal(299, #found)
    assert.equal("dir/299", found[299].key)
    assert.equal(300, #assert(store:list("dir", {limit = 1000})))
    local pages, count = 0, 0
    for page in store:pages("dir") do
      pages, count = pages + 1, count + #page
    end
    assert.equal(300, count)
    assert.is_true(pages > 1)
  end)

  it("raises inside of pages what goes wrong on the way", function()
    for i = 1, 20 do assert(store:put("key/" .. i, "v")) end
    local ok, problem = pcall(function()
      for page in store:pages("", {limit = 5}) do
        assert.equal(5, #page)
        store:close()
      end
    end)
    assert.is_false(ok)
    assert.is_truthy(tostring(problem):find("closed", 1, true), problem)
    fails("invalid", store:pages("a/../b"))
  end)
end)

describe("update", function()
  it("gives up in time while others are always quicker", function()
    assert(store:put("key", "0"))
    local rounds, deadline = 0, native.now() + 2
    local message = fails("timeout", store:update("key", function(value)
      rounds = rounds + 1
      assert(store:put("key", tostring(rounds)))
      if rounds == 5 then native.sleep(deadline - native.now() + 0.1) end
      return value .. "!"
    end, {timeout = 2}))
    assert.is_truthy(message:find("times", 1, true), message)
    assert.equal(5, rounds)
  end)

  it("hands its options to the write", function()
    local start = native.now()
    assert(store:update("short", function() return "v" end, {ttl = 0.2}))
    util.eventually(function() return not store:exists("short") end, "it went away")
    assert.is_true(native.now() - start >= 0.18)
    fails("invalid", store:update("key", function() return "v" end, {ttl = -1}))
  end)

  it("raises for a value that is none", function()
    local line = debug.getinfo(1, "l").currentline + 1
    local ok, problem = pcall(function() store:update("key", function() return 12 end) end)
    assert.is_false(ok)
    assert.is_truthy(problem:find("store_spec.lua:" .. line .. ":", 1, true), problem)
    assert.is_false(store:exists("key"))
  end)
end)

describe("a transaction", function()
  it("remembers the first thing that was wrong, and sends nothing", function()
    local message = fails("invalid", store:txn():put("good", "1"):put("a/../b", "2"):put("a/./c", "3"):commit())
    assert.is_truthy(message:find("..", 1, true), message)
    fails("invalid", store:txn():check("key", -1):put("good", "1"):commit())
    fails("invalid", store:txn():put("good", "1", {ttl = 0}):commit())
    fails("invalid", store:txn():put("good", "1", {ttl = 1, keep_alive = true}):commit())
    fails("invalid", store:txn():put("good", "1", {ttl = 1, lease = assert(store:lease(10))}):commit())
    assert.same({}, (store:list("")))
  end)

  it("gives its keys the lives that they should have", function()
    local url = "local:" .. util.folder() .. "/store"
    local mine, others = assert(kv.open(url)), assert(kv.open(url))
    local lease = assert(others:lease(10))
    assert(mine:txn():put("short", "v", {ttl = 0.3}):put("shorter", "v", {ttl = 0.1})
      :put("mine", "v", {keep_alive = true}):put("for ever", "v"):commit())
    assert(others:txn():put("leased", "v", {lease = lease}):commit())
    util.eventually(function() return not others:exists("shorter") end, "the first went")
    util.eventually(function() return not others:exists("short") end, "the second went")
    assert.equal(3, #assert(others:list("")))
    mine:close()
    util.eventually(function() return not others:exists("mine") end, "it went with its store")
    assert(lease:revoke())
    assert.equal("for ever", assert(others:list(""))[1].key)
    others:close()
  end)

  it("tells the lives of keys that it wrote over", function()
    local old = assert(store:put("old", "1"))
    local result = assert(store:txn():put("/new/", "n"):put("old", "2"):delete("nothing"):commit())
    assert.equal(old.created, result.pairs.old.created)
    assert.equal(result.revision, result.pairs.old.revision)
    assert.equal(result.revision, result.pairs.new.created)
    assert.same(assert(store:get("new")), result.pairs.new)
    assert.is_nil(result.pairs.nothing)
  end)

  it("names the check that failed", function()
    local pair = assert(store:put("one", "1"))
    local message = fails("modified", store:txn():check("one", pair):check_absent("two"):check("three", 7):put("x", "y")
      :commit())
    assert.is_truthy(message:find("three", 1, true), message)
  end)

  it("is refused when its guard's lock is gone", function()
    local lock = assert(assert(store:lock("door")):acquire(5))
    local txn = store:txn():guard(lock):put("inside", "1")
    assert(lock:release())
    fails("modified", txn:commit())
    fails("not_held", store:txn():guard(lock):put("inside", "1"):commit())
    assert.is_false(store:exists("inside"))
  end)
end)

describe("with_lock", function()
  it("tells a lock that was lost before the function ended", function()
    local own = assert(kv.open("local:"))
    local message = fails("lost", own:with_lock("door", nil, function()
      own:close()
      return "not to be seen"
    end))
    assert.is_truthy(message:find("door", 1, true), message)
  end)

  it("keeps what was raised as it is", function()
    local object = {}
    local ok, problem = pcall(store.with_lock, store, "door", nil, function() error(object) end)
    assert.is_false(ok)
    assert.equal(object, problem)
    ok, problem = pcall(store.with_lock, store, "door", nil, function() error("plain", 0) end)
    assert.is_false(ok)
    assert.equal("plain", problem)
  end)

  it("passes any number of arguments and results", function()
    local function count(_, ...) return select("#", ...), ... end
    assert.equal(0, (store:with_lock("door", nil, count)))
    local n, a, b, c = store:with_lock("door", nil, count, nil, 2, nil)
    assert.same({3, nil, 2, nil}, {n, a, b, c})
    assert.equal(0, select("#", store:with_lock("door", nil, function() end)))
  end)
end)

describe("close", function()
  it("lets other tasks go on while it gives back what there is", function()
    local turns, before, after = 0, nil, nil
    kv.run(function()
      local away = assert(kv.open("etcd://127.0.0.1:1"))
      fails("timeout", away:lock("door"):acquire(0.1)) -- nobody answers there, when it is given back neither
      local ticker = kv.spawn(function()
        while kv.sleep(0) do turns = turns + 1 end
      end)
      kv.sleep(0)
      before = turns
      away:close()
      after = turns
      for i = 1, 20 do assert(assert(store:lock("door/" .. i)):acquire(5)) end
      store:close()
      ticker:cancel()
    end)
    assert.is_true(after > before)
    fails("closed", store:get("key"))
  end)
end)
