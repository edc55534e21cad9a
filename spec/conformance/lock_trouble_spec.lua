--- What goes wrong around locks: calls in the wrong order, odd names and times, clocks that are set, programs that
-- block, stores that close, processes that fork.
local native = require("spec.native")
local suite = require("spec.support.suite")
local util = require("spec.support.util")

local function acquired(t, name, options, timeout)
  return assert(assert(t.store:lock(name, options)):acquire(timeout or 10))
end

describe("lock: calls in the wrong order", function()
  suite.both("one who does not hold it releases nothing", function(t)
    local lock, other = acquired(t, "door"), assert(assert(t:open()):lock("door"))
    t.fails("not_held", other:release())
    t.fails("not_held", other:wait_lost(1))
    assert.is_true(lock:held())
    t.fails("timeout", other:acquire(0))
    t.fails("not_held", other:release())
    assert.same(lock.token, assert(other:holder()).token)
    assert.equal(true, (lock:release()))
  end, "lock")

  suite.task("one who waits cannot release, nor wait a second time", function(t)
    local lock, waiter = acquired(t, "door"), assert(t.store:lock("door"))
    local task = t.kv.spawn(function() return waiter:acquire(20) end)
    t:eventually(function() return waiter:state() == "waiting" end, "it waits")
    t.fails("not_held", waiter:release())
    t.fails("held", waiter:acquire(1))
    t.fails("held", waiter:acquire(0))
    assert(lock:release())
    assert(task:join(10))
    assert.is_true(waiter:held())
    t.fails("not_held", lock:release())
    assert.is_true(waiter:held())
    assert(waiter:release())
  end, "lock")

  suite.task("the release of a lost lock is lost, once, and then not_held", function(t)
    local child = t:child()
    t.ask(child, "lock", "door", "2", "10")
    child:kill("STOP")
    local lock = assert(t.store:lock("door"))
    local got, _, code = lock:acquire(t.backend == "consul" and 40 or 15)
    child:kill("CONT")
    if not got then
      assert.equal("timeout", code)
      assert.equal("local", t.backend) -- where a process that lives keeps its locks
      return
    end
    assert.is_truthy(t.ask(child, "guard", "data", "late"):find("^error not_held") or
      t.ask(child, "guard", "data", "late"):find("^error modified"))
    assert.equal("lost", t.ask(child, "state"))
    assert.is_truthy(t.ask(child, "release"):find("^error lost"))
    assert.equal("free", t.ask(child, "state"))
    assert.is_truthy(t.ask(child, "release"):find("^error not_held"))
    assert.is_true(lock:held())
    assert.is_nil((t.store:get("data")))
    assert(lock:release())
  end, "lock", "txn")
end)

describe("lock: names and times", function()
  suite.both("slashes at the ends and doubled ones do not count", function(t)
    local lock = acquired(t, "//a///b/")
    t.fails("timeout", assert(t.store:lock("a/b")):acquire(0))
    assert(assert(assert(t.store:lock("a")):acquire(0))):release()
    assert(lock:release())
  end, "lock")

  suite.both("a name may have 200 bytes and any characters that keys may have", function(t)
    local names = {("x"):rep(200), ("a/"):rep(99) .. "ab", "ümläut/日本", "with blank", "100%", "%2F", "a%2Fb", "q",
      "lock"}
    local locks = {}
    for i, name in ipairs(names) do locks[i] = acquired(t, name) end
    for _, lock in ipairs(locks) do assert.is_true(lock:held()) end
    for i, lock in ipairs(locks) do
      t.fails("timeout", assert(t.store:lock(names[i])):acquire(0))
      assert(lock:release())
    end
    t.fails("invalid", t.store:lock(""))
    t.fails("invalid", t.store:lock("///"))
    t.fails("invalid", t.store:lock(("x"):rep(481)))
  end, "lock")

  suite.both("a ttl below the backend's least is raised, and the lock tells", function(t)
    local lock = assert(t.store:lock("door", {ttl = 0.05}))
    assert.is_true(lock.ttl >= 0.05)
    assert(lock:acquire(10))
    assert.is_true(lock.ttl >= 0.05 and lock.ttl < 30)
    local least = lock.ttl
    lock:release() -- which may be lost by now: it is short for a busy machine
    local longer = acquired(t, "door", {ttl = least + 20})
    assert.is_true(longer.ttl > least)
    assert(longer:release())
  end, "lock")

  suite.case("a ttl that is none is refused", function(t)
    for _, ttl in ipairs{0, -1, 0 / 0, math.huge, -math.huge} do
      t.fails("invalid", t.store:lock("door", {ttl = ttl}))
      t.fails("invalid", t.store:with_lock("door", {ttl = ttl}, function() error("it ran") end))
    end
    for _, ttl in ipairs{"2", {}, true} do t.raises(t.store.lock, t.store, "door", {ttl = ttl}) end
    local lock = assert(t.store:lock("door"))
    for _, timeout in ipairs{-1, 0 / 0, -math.huge} do t.fails("invalid", lock:acquire(timeout)) end
    assert.equal("free", lock:state())
    assert(lock:acquire(10))
    assert(lock:release())
  end, "lock")
end)

describe("lock: a program that does something else", function()
  suite.case("that blocks for longer than the ttl keeps it", function(t)
    local lock = acquired(t, "door", {ttl = 6})
    local child = t:child()
    assert(child:write("lock\tdoor\t10\t60\n"))
    native.sleep(1.5 * lock.ttl) -- and nothing of the library runs in this thread
    assert.is_true(lock:held())
    assert.equal("held", lock:state())
    assert.is_nil((child:line(0)))
    if t.store:supports("txn") then assert(t.store:txn():guard(lock):put("data", "mine"):commit()) end
    assert(lock:release())
    assert.is_true(tonumber(assert(child:line(20)):match("^held (%d+)$")) > lock.token)
  end, "lock")

  suite.case("whose clock is set by an hour, back and forth, keeps it and waits as long as it should", function(t)
    local clock = util.folder() .. "/step"
    local environment = {("LD_PRELOAD=./%s/support/stepped_clock.so"):format(os.getenv("KV_BUILD") or "build"),
      "KV_STEPPED_CLOCK=" .. clock}
    local child = t:child("", environment)
    local ttl = 6
    local token = tonumber(t.ask(child, "lock", "door", tostring(ttl), "10"):match("^held (%d+)$"))
    local other = assert(t.store:lock("door"))
    for _, step in ipairs{3600, -3600} do
      util.write(clock, tostring(step))
      local off = tonumber(t.ask(child, "day")) - os.time()
      assert.is_true(math.abs(off - step) <= 30, "the clock is not set: " .. off)
      -- Forward it would seem to be over at once; back, its renewals would come an hour late.
      t.fails("timeout", other:acquire(step > 0 and 0.5 * ttl or 1.2 * ttl))
      assert.equal("true", t.ask(child, "held"))
      assert.equal("held", t.ask(child, "state"))
    end
    assert.equal("true", t.ask(child, "release"))
    assert(other:acquire(10))
    assert.is_true(other.token > token)
    -- and its own waiting is not cut short or drawn out
    local start = t.now()
    assert(child:write("lock\tdoor\t2\t1.5\n"))
    native.sleep(0.2)
    util.write(clock, "3600")
    assert.is_truthy(assert(child:line(20)):find("^error timeout"))
    assert.is_true(t.now() - start >= 1.4 and t.now() - start < 15)
    assert(other:release())
  end, "lock")

  suite.task("whose store is closed while it waits is told so", function(t)
    local lock, other = acquired(t, "door"), assert(t:open())
    local tasks = {
      t.kv.spawn(function() return assert(other:lock("door")):acquire() end),
      t.kv.spawn(function() return assert(other:lock("door")):acquire(30) end),
      t.kv.spawn(function() return other:with_lock("door", {}, function() error("it ran") end) end),
    }
    t.kv.sleep(0.3)
    other:close()
    for _, task in ipairs(tasks) do t.fails("closed", task:join(10)) end
    assert.is_true(lock:held())
    assert(lock:release())
    assert(assert(assert(t.store:lock("door")):acquire(5))):release() -- they have left the line
  end, "lock")

  suite.case("that forks holds it in the parent alone", function(t)
    local lock = acquired(t, "door", {ttl = 6})
    local pid = assert(native.fork())
    if pid == 0 then
      local problem = 0
      local function check(number, good) if not good and problem == 0 then problem = number end end
      local _, _, code = lock:release()
      check(1, not lock:held())
      check(2, lock:state() == "free")
      check(3, code == "closed")
      check(4, select(3, lock:acquire(0)) == "closed")
      check(5, select(3, lock:wait_lost(0.1)) == "closed")
      check(6, select(3, lock:holder(0.1)) == "closed")
      lock = nil -- luacheck: ignore
      collectgarbage()
      native.exit(problem)
    end
    assert.equal(0, native.reap(pid))
    assert.is_true(lock:held())
    t.fails("timeout", assert(t.store:lock("door")):acquire(lock.ttl * 1.2)) -- renewed, too
    assert.is_true(lock:held())
    assert(lock:release())
  end, "lock")
end)
