--- Locks: one holder, in order of arrival, with tokens that rise, and nothing left behind.
local suite = require("spec.support.suite")

local function acquired(t, name, options, timeout)
  return assert(assert(t.store:lock(name, options)):acquire(timeout or 10))
end

describe("lock", function()
  suite.both("is acquired and released", function(t)
    local lock = assert(t.store:lock("door"))
    assert.equal("free", lock:state())
    assert.is_false(lock:held())
    assert.equal(lock, (assert(lock:acquire(10))))
    assert.is_true(lock:held())
    assert.equal("held", lock:state())
    assert.is_true(lock.token > 0 and lock.token % 1 == 0)
    assert.is_true(lock.ttl > 0)
    assert.equal(true, (lock:release()))
    assert.is_false(lock:held())
    assert.equal("free", lock:state())
  end, "lock")

  suite.both("excludes a second handle, and frees on release", function(t)
    local lock = acquired(t, "door")
    local other = assert(t.store:lock("door"))
    t.fails("timeout", other:acquire(0))
    t.fails("timeout", other:acquire(0.2))
    assert.is_false(other:held())
    assert.equal("free", other:state())
    assert(lock:release())
    assert(other:acquire(10))
    assert.is_true(other:held())
    assert.is_false(lock:held())
    assert(other:release())
  end, "lock")

  suite.both("can be taken again after release, with a larger token each time", function(t)
    local lock, last = assert(t.store:lock("door")), 0
    for _ = 1, 10 do
      assert(lock:acquire(10))
      assert.is_true(lock.token > last)
      last = lock.token
      assert(lock:release())
    end
    local other = acquired(t, "door")
    assert.is_true(other.token > last)
    assert(other:release())
  end, "lock")

  suite.both("who tries once and fails is in nobody's way afterwards", function(t)
    local other = assert(t:open():lock("door"))
    local lock = assert(t.store:lock("door"))
    for _ = 1, 20 do
      assert(lock:acquire(0))
      t.fails("timeout", other:acquire(0))
      assert(lock:release())
    end
  end, "lock")

  suite.both("two names do not hinder each other, nested ones neither", function(t)
    local outer, inner = acquired(t, "a"), acquired(t, "a/b")
    local deeper, beside = acquired(t, "a/b/c"), acquired(t, "ab")
    for _, lock in ipairs{outer, inner, deeper, beside} do assert.is_true(lock:held()) end
    for _, lock in ipairs{deeper, outer, beside, inner} do assert(lock:release()) end
  end, "lock")

  suite.both("a held handle cannot be acquired again", function(t)
    local lock = acquired(t, "door")
    t.fails("held", lock:acquire(1))
    assert.is_true(lock:held())
    assert(lock:release())
  end, "lock")

  suite.both("a second release is not_held", function(t)
    local lock = assert(t.store:lock("door"))
    t.fails("not_held", lock:release())
    assert(lock:acquire(10))
    assert(lock:release())
    t.fails("not_held", lock:release())
    t.fails("not_held", lock:wait_lost(5))
  end, "lock")

  suite.both("shows its value and token to others", function(t)
    local other = assert(t:open())
    local watcher = assert(other:lock("door"))
    assert.is_nil((watcher:holder()))
    local lock = acquired(t, "door", {value = "worker 7"})
    local holder = assert(watcher:holder())
    assert.equal("worker 7", holder.value)
    assert.equal(lock.token, holder.token)
    assert.same(holder, assert(lock:holder()))
    assert(lock:release())
    assert.is_nil((watcher:holder()))
  end, "lock")

  suite.both("takes its timeout from its options", function(t)
    local lock = acquired(t, "door")
    local other = assert(t.store:lock("door", {timeout = 0.3}))
    local start = t.now()
    t.fails("timeout", other:acquire())
    local took = t.now() - start
    assert.is_true(took >= 0.29 and took < 10, "it took " .. took)
    assert(lock:release())
    assert(other:acquire())
    assert(other:release())
  end, "lock")

  suite.task("without a timeout waits longer than the store's default", function(t)
    local impatient = assert(t:open{timeout = 0.3})
    local lock = acquired(t, "door")
    local waiter = t.kv.spawn(function() return assert(impatient:lock("door")):acquire() end)
    t.kv.sleep(1)
    assert(lock:release())
    local got = assert(waiter:join(10))
    assert.is_true(got:held())
    assert(got:release())
  end, "lock")

  suite.task("serves waiters in the order in which they came", function(t)
    local lock, probe = acquired(t, "door"), assert(t.store:lock("door"))
    local order, tasks = {}, {}
    for i = 1, 6 do
      local mine = assert(t.store:lock("door"))
      tasks[i] = t.kv.spawn(function()
        assert(mine:acquire(30))
        order[#order + 1] = {i, mine.token}
        assert(mine:release())
      end)
      t:in_line(mine, probe)
    end
    assert(lock:release())
    for _, task in ipairs(tasks) do task:join(30) end
    local last = lock.token
    for i, entry in ipairs(order) do
      assert.equal(i, entry[1])
      assert.is_true(entry[2] > last)
      last = entry[2]
    end
    assert.equal(6, #order)
  end, "lock")

  suite.task("has one holder at a time among many on two handles", function(t)
    local other = assert(t:open())
    local inside, entered, tasks = 0, 0, {}
    for i = 1, 20 do
      tasks[i] = t.kv.spawn(function()
        local lock = assert((i % 2 == 0 and other or t.store):lock("door"))
        assert(lock:acquire(60))
        inside = inside + 1
        assert.equal(1, inside)
        t.kv.sleep(0.002)
        assert.is_true(lock:held())
        inside = inside - 1
        entered = entered + 1
        assert(lock:release())
      end)
    end
    for _, task in ipairs(tasks) do task:join(60) end
    assert.equal(20, entered)
  end, "lock")

  suite.task("a waiter that gives up or is cancelled leaves the line", function(t)
    local lock = acquired(t, "door")
    local impatient, cancelled, patient = assert(t.store:lock("door")), assert(t.store:lock("door")),
      assert(t.store:lock("door"))
    local first = t.kv.spawn(function() return impatient:acquire(0.3) end)
    local second = t.kv.spawn(function() return cancelled:acquire(30) end)
    local third = t.kv.spawn(function() return patient:acquire(30) end)
    t:eventually(function() return patient:state() == "waiting" end, "all wait")
    t.fails("timeout", first:join(10))
    second:cancel()
    t.fails("cancelled", second:join(10))
    assert(lock:release())
    assert(third:join(10))
    assert.is_true(patient:held())
    assert.is_false(impatient:held())
    assert.is_false(cancelled:held())
    assert(patient:release())
    -- nobody is left in the line: the next one gets it at once
    assert(assert(t.store:lock("door")):acquire(0)):release()
    -- and the handles can be used again
    assert(cancelled:acquire(5))
    assert(cancelled:release())
  end, "lock")

  suite.case("is renewed past its ttl, as long as its store is open when it is forgotten", function(t)
    local lock = acquired(t, "door", {ttl = 6})
    do
      local forgotten = acquired(t, "forgotten", {ttl = 6})
      assert.is_true(forgotten:held())
    end
    collectgarbage()
    collectgarbage()
    local other = assert(t.store:lock("door"))
    t.fails("timeout", other:acquire(lock.ttl * 1.2))
    assert.is_true(lock:held())
    assert.equal("held", lock:state())
    assert(lock:release())
    assert(other:acquire(5))
    assert(other:release())
    t.fails("timeout", assert(t.store:lock("forgotten")):acquire(0.5))
  end, "lock")

  suite.case("of a killed process goes to the next, with a larger token", function(t)
    local child = t:child()
    local token = tonumber(t.ask(child, "lock", "door", "2", "10"):match("^held (%d+)$"))
    local other = assert(t.store:lock("door"))
    t.fails("timeout", other:acquire(0))
    child:kill("KILL")
    local start = t.now()
    assert(other:acquire(60))
    assert.is_true(other.token > token)
    assert.is_true(t.now() - start < t:inherited_within(2), "it took " .. t.now() - start)
    assert(other:release())
  end, "lock")

  suite.case("a killed waiter does not hold up the line", function(t)
    local lock = acquired(t, "door")
    local child = t:child()
    assert(child:write("lock\tdoor\t2\t30\n"))
    assert.is_nil((child:line(0.5)))
    child:kill("KILL")
    local other = assert(t.store:lock("door"))
    assert(lock:release())
    assert(other:acquire(15))
    assert(other:release())
  end, "lock")

  suite.case("of a stopped process is lost to it before it notices", function(t)
    local child = t:child()
    local token = tonumber(t.ask(child, "lock", "door", "2", "10"):match("^held (%d+)$"))
    child:kill("STOP")
    local other = assert(t.store:lock("door"))
    local got, _, code = other:acquire(t.backend == "consul" and 40 or 15)
    child:kill("CONT")
    if got then
      -- The ttl has passed on the server: the first question after the pause must say no.
      assert.is_true(other.token > token)
      assert.equal("false", t.ask(child, "held"))
      assert.is_truthy(t.ask(child, "release"):find("^error lost"))
      assert.is_true(other:held())
      assert(other:release())
    else
      -- A backend that frees by the end of the process keeps it for one that is only stopped.
      assert.equal("timeout", code)
      assert.equal("local", t.backend)
    end
  end, "lock")

  suite.case("goes between processes in turn", function(t)
    local first, second = t:child(), t:child()
    local last = 0
    for _ = 1, 5 do
      for _, child in ipairs{first, second} do
        local token = tonumber(t.ask(child, "lock", "door", "10", "10"):match("^held (%d+)$"))
        assert.is_true(token > last)
        last = token
        assert.equal("true", t.ask(child, "release"))
      end
    end
  end, "lock")

  suite.case("goes over to a waiting process at release", function(t)
    local lock = acquired(t, "door")
    local child = t:child()
    assert(child:write("lock\tdoor\t10\t30\n"))
    assert.is_nil((child:line(0.5)))
    assert(lock:release())
    local answer = assert(child:line(10))
    assert.is_true(tonumber(answer:match("^held (%d+)$")) > lock.token)
  end, "lock")

  suite.both("does not show in lists, and delete_tree does not touch it", function(t)
    local lock = acquired(t, "dir/door", {value = "v"})
    local waiting = assert(t.store:lock("dir/door"))
    t.fails("timeout", waiting:acquire(0.1))
    assert.same({}, (t.store:list("")))
    assert.same({}, (t.store:list("", {recursive = false})))
    assert.same({}, (t.store:list("dir")))
    assert.is_nil((t.store:get("dir/door")))
    assert(t.store:put("dir/key", "v"))
    assert.equal("dir/key", t.keys(assert(t.store:list(""))))
    assert(t.store:delete_tree("dir"))
    assert(t.store:delete_tree(""))
    assert.is_true(lock:held())
    t.fails("timeout", waiting:acquire(0.2))
    assert(lock:release())
  end, "lock")

  suite.both("goes when the view that it was made from is closed", function(t)
    local view = t:own(assert(t.store:sub("view")))
    local gone = assert(assert(view:lock("mine", {ttl = 60})):acquire(5))
    local kept = assert(assert(t.store:lock("kept")):acquire(5))
    assert.is_true(view:close())
    assert.is_false(gone:held())
    local again = t:own(assert(t.store:sub("view")))
    local next_one = assert(assert(again:lock("mine")):acquire(5))
    assert.is_true(kept:held())
    assert.is_true(kept:release())
    assert.is_true(next_one:release())
  end, "lock")

  suite.both("of a view has the view's prefix", function(t)
    local sub = t:own(assert(t.store:sub("below")))
    local mine, theirs = acquired(t, "door"), assert(sub:lock("door"))
    assert(theirs:acquire(10))
    local same = assert(t.store:lock("below/door"))
    assert(mine:release())
    t.fails("timeout", same:acquire(0))
    assert(theirs:release())
    assert(same:acquire(5)):release()
    assert(assert(sub:lock("door")):acquire(5)):release()
  end, "lock")

  suite.both("is let go when its store closes", function(t)
    local other = assert(t:open())
    local lock = assert(assert(other:lock("door", {ttl = 30})):acquire(10))
    other:close()
    assert.is_false(lock:held())
    local mine = assert(t.store:lock("door"))
    assert(mine:acquire(10))
    assert(mine:release())
    t.fails("closed", lock:acquire(1))
    t.fails("closed", other:lock("door2"))
  end, "lock")

  suite.case("is released at the end of a 5.4 block", function(t)
    if _VERSION ~= "Lua 5.4" then return end
    local chunk = assert((loadstring or load)([[
      local store = ...
      local lock <close> = assert(store:lock("door"):acquire(5))
      assert(lock:held())
    ]]))
    chunk(t.store)
    assert(acquired(t, "door", nil, 5)):release()
  end, "lock")

  suite.case("refuses bad names and options", function(t)
    for _, name in ipairs{"", "a/../b", ".kv", "a\0"} do
      t.fails("invalid", t.store:lock(name))
    end
    t.raises(t.store.lock, t.store)
    t.raises(t.store.lock, t.store, {})
    t.raises(t.store.lock, t.store, "door", {tll = 3})
    t.raises(t.store.lock, t.store, "door", {ttl = "long"})
    t.raises(t.store.lock, t.store, "door", 3)
  end, "lock")

  suite.both("wait_lost gives up in time while it is held", function(t)
    local lock = acquired(t, "door")
    t.fails("timeout", lock:wait_lost(0.1))
    assert.is_true(lock:held())
    assert(lock:release())
  end, "lock")

  suite.task("wait_lost is woken by one's own release", function(t)
    local lock = acquired(t, "door")
    local task = t.kv.spawn(function() return lock:wait_lost(20) end)
    t.kv.sleep(0.05)
    assert(lock:release())
    t.fails("not_held", task:join(5))
  end, "lock")

  suite.case("a hundred rounds leave nothing in the store", function(t)
    local lock = assert(t.store:lock("door"))
    for _ = 1, 100 do
      assert(lock:acquire(10))
      assert(lock:release())
    end
    assert.same({}, (t.store:list("")))
    assert.is_nil((lock:holder()))
  end, "lock")
end)

describe("with_lock", function()
  suite.both("runs its function under the lock and gives what it returns", function(t)
    local a, b, c = t.store:with_lock("door", {ttl = 10}, function(lock, x, y)
      assert.is_true(lock:held())
      assert.is_nil((assert(t.store:lock("door")):acquire(0)))
      return x + y, nil, "third"
    end, 1, 2)
    assert.equal(3, a)
    assert.is_nil(b)
    assert.equal("third", c)
    assert(acquired(t, "door", nil, 5)):release()
  end, "lock")

  suite.both("takes no options", function(t)
    assert.equal("done", (t.store:with_lock("door", nil, function() return "done" end)))
  end, "lock")

  suite.case("releases when its function raises, and raises on", function(t)
    local raised = t.raises(t.store.with_lock, t.store, "door", {}, function() error("mine") end)
    assert.is_truthy(tostring(raised):find("mine", 1, true))
    assert(acquired(t, "door", nil, 5)):release()
  end, "lock")

  suite.task("releases when its function raises after waiting", function(t)
    local task = t.kv.spawn(function()
      return t.store:with_lock("door", {}, function()
        t.kv.sleep(0.01)
        error("mine")
      end)
    end)
    local ok, raised = t.kv.pcall(task.join, task)
    assert.is_false(ok)
    assert.is_truthy(tostring(raised):find("mine", 1, true))
    assert(acquired(t, "door", nil, 5)):release()
  end, "lock")

  suite.both("does not run its function without the lock", function(t)
    local lock = acquired(t, "door")
    local ran = false
    t.fails("timeout", t.store:with_lock("door", {timeout = 0.2}, function() ran = true end))
    assert.is_false(ran)
    assert(lock:release())
  end, "lock")

  suite.task("serves many in turn", function(t)
    local inside, sum, tasks = 0, 0, {}
    for i = 1, 10 do
      tasks[i] = t.kv.spawn(function()
        assert(t.store:with_lock("door", {timeout = 60}, function()
          inside = inside + 1
          assert.equal(1, inside)
          t.kv.sleep(0.001)
          inside = inside - 1
          sum = sum + i
          return true
        end))
      end)
    end
    for _, task in ipairs(tasks) do task:join(60) end
    assert.equal(55, sum)
  end, "lock")
end)
