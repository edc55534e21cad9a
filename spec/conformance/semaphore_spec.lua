--- Semaphores: never more holders than the limit, in order of arrival, with tokens that rise.
local suite = require("spec.support.suite")

local function acquired(t, name, limit, options)
  return assert(assert(t.store:semaphore(name, limit, options)):acquire(10))
end

describe("semaphore", function()
  suite.both("lets in as many as its limit, and the next one at a release", function(t)
    local held, last = {}, 0
    for i = 1, 3 do
      held[i] = acquired(t, "pool", 3)
      assert.is_true(held[i]:held())
      assert.equal("held", held[i]:state())
      assert.is_true(held[i].token > last)
      assert.is_true(held[i].ttl > 0)
      assert.equal(3, held[i].limit)
      last = held[i].token
    end
    local other = assert(assert(t:open()):semaphore("pool", 3))
    t.fails("timeout", other:acquire(0))
    t.fails("timeout", other:acquire(0.2))
    t.fails("held", held[1]:acquire(1))
    assert.equal("free", other:state())
    assert.equal(true, (held[2]:release()))
    assert(other:acquire(10))
    assert.is_true(other.token > last)
    assert.is_false(held[2]:held())
    for _, semaphore in ipairs{held[1], held[3], other} do
      assert.is_true(semaphore:held())
      assert(semaphore:release())
      t.fails("not_held", semaphore:release())
      t.fails("not_held", semaphore:wait_lost(1))
    end
  end, "semaphore")

  suite.both("with a limit of one is a lock", function(t)
    local one, two = acquired(t, "pool", 1), assert(t.store:semaphore("pool", 1))
    t.fails("timeout", two:acquire(0.1))
    assert(one:release())
    assert(two:acquire(10))
    assert(two:release())
  end, "semaphore")

  suite.both("does not hinder locks, elections and semaphores of other names", function(t)
    local lock = assert(assert(t.store:lock("pool")):acquire(10))
    local a, b, c = acquired(t, "pool", 1), acquired(t, "pool/b", 1), acquired(t, "pool/b/c", 1)
    for _, handle in ipairs{b, a, c, lock} do assert(handle:release()) end
  end, "semaphore")

  suite.both("tells who has held longest, by value and token", function(t)
    local watcher = assert(assert(t:open()):semaphore("pool", 2))
    assert.is_nil((watcher:holder()))
    local one, two = acquired(t, "pool", 2, {value = "one"}), acquired(t, "pool", 2, {value = "two"})
    assert.same({value = "one", token = one.token}, assert(watcher:holder()))
    assert(one:release())
    assert.same({value = "two", token = two.token}, assert(watcher:holder()))
    assert(two:release())
    assert.is_nil((watcher:holder()))
  end, "semaphore")

  suite.both("refuses another limit than that of those who are there", function(t)
    local held = acquired(t, "pool", 2)
    for _, limit in ipairs{1, 3} do
      local other = assert(t.store:semaphore("pool", limit))
      local message = t.fails("invalid", other:acquire(5))
      assert.is_truthy(message:find("its limit is 2 for others, and " .. limit .. " here", 1, true), message)
      assert.equal("free", other:state())
    end
    -- whoever was refused left nothing behind, and the others went on
    local second = acquired(t, "pool", 2)
    assert(second:release())
    assert(held:release())
    -- with nobody there, any limit will do
    assert(acquired(t, "pool", 5)):release()
  end, "semaphore")

  suite.task("serves waiters in the order in which they came", function(t)
    local held, probe = {acquired(t, "pool", 2), acquired(t, "pool", 2)}, assert(t.store:semaphore("pool", 2))
    local order, tasks = {}, {}
    for i = 1, 6 do
      local mine = assert(t.store:semaphore("pool", 2))
      tasks[i] = t.kv.spawn(function()
        assert(mine:acquire(30))
        order[#order + 1] = {i, mine.token}
        assert.is_true(mine:held())
        assert(mine:release())
      end)
      t:in_line(mine, probe)
    end
    assert(held[1]:release()) -- the other one holds on: everybody goes through one place
    for _, task in ipairs(tasks) do task:join(30) end
    local last = held[2].token
    for i, entry in ipairs(order) do
      assert.equal(i, entry[1])
      assert.is_true(entry[2] > last)
      last = entry[2]
    end
    assert.equal(6, #order)
    assert(held[2]:release())
  end, "semaphore")

  suite.task("never has more holders than its limit, among many on several handles", function(t)
    local others = {t.store, assert(t:open()), assert(t:open())}
    local inside, most, entered, tasks = 0, 0, 0, {}
    for i = 1, 30 do
      tasks[i] = t.kv.spawn(function()
        local semaphore = assert(others[i % 3 + 1]:semaphore("pool", 4))
        assert(semaphore:acquire(60))
        inside = inside + 1
        most = math.max(most, inside)
        t.kv.sleep(0.01)
        assert.is_true(semaphore:held())
        inside = inside - 1
        entered = entered + 1
        assert(semaphore:release())
      end)
    end
    for _, task in ipairs(tasks) do task:join(60) end
    assert.equal(30, entered)
    assert.is_true(most <= 4, "there were " .. most)
    assert.is_true(most >= 2, "there were never two at a time")
    assert.is_nil((assert(t.store:semaphore("pool", 4)):holder()))
  end, "semaphore")

  suite.task("goes on when holders leave in any order, and waiters give up", function(t)
    local held = {}
    for i = 1, 3 do held[i] = acquired(t, "pool", 3) end
    local waiters, tasks, probe = {}, {}, assert(t.store:semaphore("pool", 3))
    for i = 1, 4 do
      waiters[i] = assert(t.store:semaphore("pool", 3))
      tasks[i] = t.kv.spawn(function() return waiters[i]:acquire(i == 2 and 2 or 30) end)
      t:in_line(waiters[i], probe)
    end
    t.fails("timeout", tasks[2]:join(10))
    tasks[3]:cancel()
    t.fails("cancelled", tasks[3]:join(10))
    assert(held[2]:release())
    assert(tasks[1]:join(10))
    assert.equal("waiting", waiters[4]:state())
    assert(held[1]:release())
    assert(tasks[4]:join(10))
    assert.is_true(waiters[4].token > waiters[1].token)
    for _, semaphore in ipairs{held[3], waiters[1], waiters[4]} do assert(semaphore:release()) end
    assert(waiters[3]:acquire(5))
    assert(waiters[3]:release())
  end, "semaphore")

  suite.task("cancelled at any moment, it leaves no holder behind", function(t)
    local semaphore, other = assert(t.store:semaphore("pool", 1)), assert(t.store:semaphore("pool", 1))
    for i = 0, 8 do
      local task = t.kv.spawn(function() return semaphore:acquire(30) end)
      if i > 0 then t.kv.sleep(i * 0.0007) end
      task:cancel()
      if task:join(10) then assert(semaphore:release()) end
      assert(other:acquire(30))
      assert(other:release())
      assert.is_nil((other:holder()))
    end
  end, "semaphore")

  suite.task("waits behind a large limit", function(t)
    local held, tasks = {}, {}
    for i = 1, 40 do
      held[i] = assert(t.store:semaphore("pool", 40))
      tasks[i] = t.kv.spawn(function() assert(held[i]:acquire(30)) end)
    end
    for _, task in ipairs(tasks) do task:join(30) end
    local waiter = assert(t.store:semaphore("pool", 40))
    t.fails("timeout", waiter:acquire(0))
    local task = t.kv.spawn(function() return waiter:acquire(30) end)
    t:in_line(waiter, assert(t.store:semaphore("pool", 40)))
    table.sort(held, function(a, b) return a.token < b.token end)
    assert(held[1]:release()) -- the one who is furthest from the waiter
    assert(task:join(10))
  end, "semaphore")

  suite.task("is renewed past its ttl", function(t)
    local held = {acquired(t, "pool", 2, {ttl = 6}), acquired(t, "pool", 2, {ttl = 6})}
    local other = assert(t.store:semaphore("pool", 2))
    t.fails("timeout", other:acquire(held[1].ttl * 1.2))
    for _, semaphore in ipairs(held) do assert.is_true(semaphore:held()) end
    assert(held[1]:release())
    assert(other:acquire(5))
    assert(other:release())
    assert(held[2]:release())
  end, "semaphore")

  suite.case("of a killed process goes to the next, and the others keep theirs", function(t)
    local mine = acquired(t, "pool", 2)
    local child = t:child()
    local token = tonumber(t.ask(child, "enter", "pool", "2", "2", "10"):match("^held (%d+)$"))
    local other = assert(t.store:semaphore("pool", 2))
    t.fails("timeout", other:acquire(0))
    child:kill("KILL")
    assert(other:acquire(40))
    assert.is_true(other.token > token)
    assert.is_true(mine:held())
    assert(other:release())
    assert(mine:release())
  end, "semaphore")

  suite.case("of a stopped process is lost to it before another gets it", function(t)
    local mine = acquired(t, "pool", 2)
    local child = t:child()
    local token = tonumber(t.ask(child, "enter", "pool", "2", "2", "10"):match("^held (%d+)$"))
    child:kill("STOP")
    local other = assert(t.store:semaphore("pool", 2))
    local got, _, code = other:acquire(t.backend == "consul" and 40 or 15)
    child:kill("CONT")
    if got then
      assert.is_true(other.token > token)
      assert.equal("false", t.ask(child, "held"))
      assert.is_truthy(t.ask(child, "release"):find("^error lost"))
      assert.is_true(other:held())
    else
      assert.equal("timeout", code)
      assert.equal("local", t.backend)
    end
    assert.is_true(mine:held())
  end, "semaphore")

  suite.both("guards a transaction", function(t)
    local one, two = acquired(t, "pool", 2), acquired(t, "pool", 2)
    assert(t.store:txn():guard(one):guard(two):put("data", "1"):commit())
    local txn = t.store:txn():guard(two):put("data", "2")
    assert(two:release())
    t.fails("modified", txn:commit())
    assert.equal("1", assert(t.store:get("data")).value)
    assert(t.store:txn():guard(one):put("data", "3"):commit())
    assert(one:release())
  end, "semaphore", "txn")

  suite.both("does not show in lists, and delete_tree does not touch it", function(t)
    local held = acquired(t, "dir/pool", 1, {value = "v"})
    assert.same({}, (t.store:list("")))
    assert(t.store:delete_tree(""))
    assert.is_true(held:held())
    t.fails("timeout", assert(t.store:semaphore("dir/pool", 1)):acquire(0.2))
    assert(held:release())
  end, "semaphore")

  suite.both("is let go when its store closes", function(t)
    local other = assert(t:open())
    local held = assert(assert(other:semaphore("pool", 1, {ttl = 30})):acquire(10))
    local task
    if t.in_task then
      task = t.kv.spawn(function() return assert(other:semaphore("pool", 1)):acquire(20) end)
      t.kv.sleep(0.1)
    end
    other:close()
    if task then t.fails("closed", task:join(10)) end
    assert.is_false(held:held())
    assert(acquired(t, "pool", 1)):release()
    t.fails("closed", held:acquire(1))
  end, "semaphore")

  suite.case("refuses bad names, limits and options", function(t)
    for _, name in ipairs{"", "a/../b", ".kv", "a\0", ("x"):rep(480)} do
      t.fails("invalid", t.store:semaphore(name, 1))
    end
    assert(acquired(t, ("x"):rep(200), 1)):release()
    for _, limit in ipairs{0, -1, 1.5, 1001, math.huge, 0 / 0} do
      t.fails("invalid", t.store:semaphore("pool", limit))
    end
    t.raises(t.store.semaphore, t.store, "pool")
    t.raises(t.store.semaphore, t.store, "pool", "3")
    t.raises(t.store.semaphore, t.store, "pool", 3, {interop = "etcd"})
    t.raises(t.store.semaphore, t.store, "pool", 3, {ttl = "long"})
    local semaphore = assert(t.store:semaphore("pool", 3))
    t.raises(semaphore.acquire, semaphore, "soon")
    t.fails("invalid", semaphore:acquire(-1))
  end, "semaphore")
end)
