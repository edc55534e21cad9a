--- kv.run, spawn, join, sleep, cancel, pcall, fd and step.
local suite = require("spec.support.suite")
local native = require("spec.native")

describe("tasks", function()
  suite.case("run returns what its function returned", function(t)
    local a, b, c, d = t.kv.run(function(x, y) return x, nil, y, nil end, 1, 2)
    assert.same({1, nil, 2, nil}, {a, b, c, d})
    assert.equal(0, select("#", t.kv.run(function() end)))
    assert.equal(3, select("#", t.kv.run(function() return nil, nil, nil end)))
  end)

  suite.case("run ends when all that was spawned has ended", function(t)
    local done = 0
    t.kv.run(function()
      for i = 1, 5 do
        t.kv.spawn(function()
          t.kv.sleep(0.01 * i)
          assert(t.store:put("key" .. i, "v"))
          done = done + 1
        end)
      end
    end)
    assert.equal(5, done)
  end)

  suite.case("run can be used again and again", function(t)
    for i = 1, 50 do
      assert.equal("v" .. i, t.kv.run(function()
        assert(t.store:put("key", "v" .. i))
        return assert(t.store:get("key")).value
      end))
    end
  end)

  suite.case("run raises what its function raised", function(t)
    local raised = t.raises(t.kv.run, function() error("mine") end)
    assert.is_truthy(tostring(raised):find("mine", 1, true))
    raised = t.raises(t.kv.run, function()
      assert(t.store:put("key", "v"))
      error("after waiting")
    end)
    assert.is_truthy(tostring(raised):find("after waiting", 1, true))
    -- and it is usable afterwards
    assert.equal("v", t.kv.run(function() return assert(t.store:get("key")).value end))
  end)

  suite.case("an error that nobody joins is raised by run", function(t)
    local slept
    local raised = t.raises(t.kv.run, function()
      t.kv.spawn(function()
        t.kv.sleep(0.01)
        error("lonely")
      end)
      slept = {t.kv.sleep(60)}
    end)
    assert.is_truthy(tostring(raised):find("lonely", 1, true))
    assert.equal("cancelled", slept[3])
    assert.equal(1, t.kv.run(function() return 1 end))
  end)

  suite.task("join returns what the task returned", function(t)
    local task = t.kv.spawn(function(a, b)
      t.kv.sleep(0.01)
      return b, nil, a
    end, 1, 2)
    local x, y, z = task:join()
    assert.same({2, nil, 1}, {x, y, z})
    -- again, after its end
    assert.equal(2, (task:join()))
  end)

  suite.task("join raises what the task raised, with a traceback", function(t)
    local function deep_inside() error("from inside") end
    local task = t.kv.spawn(function()
      t.kv.sleep(0.01)
      deep_inside()
    end)
    local ok, raised = t.kv.pcall(task.join, task)
    assert.is_false(ok)
    local text = tostring(raised)
    assert.is_truthy(text:find("from inside", 1, true))
    assert.is_truthy(text:find("tasks_spec", 1, true))
    assert.is_truthy(text:find("traceback", 1, true), text)
  end)

  suite.task("join gives up in time", function(t)
    local given_up = false
    local task = t.kv.spawn(function()
      t:eventually(function() return given_up end, "the join has given up", 20)
      return "late"
    end)
    t.fails("timeout", task:join(0.1))
    given_up = true
    assert.equal("late", (task:join(10)))
  end)

  suite.task("several may join one task", function(t)
    local task = t.kv.spawn(function()
      t.kv.sleep(0.02)
      return "shared"
    end)
    local joiners = {}
    for i = 1, 3 do joiners[i] = t.kv.spawn(function() return task:join(5) end) end
    for _, joiner in ipairs(joiners) do assert.equal("shared", (joiner:join(5))) end
  end)

  suite.task("sleeps overlap", function(t)
    local start, tasks = t.now(), {}
    for i = 1, 50 do tasks[i] = t.kv.spawn(function() t.kv.sleep(0.2) end) end
    for _, task in ipairs(tasks) do task:join() end
    local took = t.now() - start
    assert.is_true(took >= 0.19 and took < 8, "it took " .. took) -- one after the other they take 10
  end)

  suite.task("sleepers wake in the order of their times", function(t)
    local order, tasks = {}, {}
    for _, tenth in ipairs{3, 1, 2} do
      tasks[#tasks + 1] = t.kv.spawn(function()
        t.kv.sleep(tenth / 10)
        order[#order + 1] = tenth
      end)
    end
    for _, task in ipairs(tasks) do task:join() end
    assert.same({1, 2, 3}, order)
  end)

  suite.case("sleep works from the main thread", function(t)
    local start = t.now()
    t.kv.sleep(0.1)
    assert.is_true(t.now() - start >= 0.09)
    t.kv.sleep(0)
  end)

  suite.task("operations of many tasks are in flight together", function(t)
    local watch = t:own(assert(t.store:watch("gate")))
    assert(watch:wait_synced(10))
    -- One waits for what another writes later: impossible if one blocked the others.
    local waiter = t.kv.spawn(function() return watch:next(10) end)
    local tasks = {}
    for i = 1, 200 do
      tasks[i] = t.kv.spawn(function()
        assert(t.store:put("key/" .. i, tostring(i)))
        return assert(t.store:get("key/" .. i)).value
      end)
    end
    for i, task in ipairs(tasks) do assert.equal(tostring(i), (task:join(20))) end
    assert(t.store:put("gate", "open"))
    assert.equal("open", (waiter:join(10)).value)
    assert.equal(200, #assert(t.store:list("key")))
  end)

  suite.task("cancel wakes a sleeper", function(t)
    local result
    local task = t.kv.spawn(function()
      result = {t.kv.sleep(60)}
      return "went on"
    end)
    t.kv.sleep(0.01)
    assert.is_true(task:cancel())
    assert.equal("went on", (task:join(30)))
    t.fails("cancelled", result[1], result[2], result[3])
  end)

  suite.task("cancel wakes a watch, and the watch stays good", function(t)
    local watch = t:own(assert(t.store:watch("key")))
    assert(watch:wait_synced(10))
    local task = t.kv.spawn(function() return watch:next() end)
    t.kv.sleep(0.02)
    task:cancel()
    t.fails("cancelled", task:join(5))
    assert(t.store:put("key", "v"))
    assert.equal("put key v", t.told(watch))
  end)

  suite.task("cancel of a task that has ended does nothing", function(t)
    local task = t.kv.spawn(function() return "done" end)
    assert.equal("done", (task:join(5)))
    task:cancel()
    assert.equal("done", (task:join(5)))
  end)

  suite.task("kv.pcall catches across waits", function(t)
    local ok, value = t.kv.pcall(function(key)
      assert(t.store:put(key, "v"))
      return assert(t.store:get(key)).value
    end, "key")
    assert.is_true(ok)
    assert.equal("v", value)
    local bad, problem = t.kv.pcall(function()
      assert(t.store:put("key", "w"))
      error("thrown")
    end)
    assert.is_false(bad)
    assert.is_truthy(tostring(problem):find("thrown", 1, true))
    local table_error = {}
    bad, problem = t.kv.pcall(function() error(table_error) end)
    assert.is_false(bad)
    assert.equal(table_error, problem)
    -- nested
    local outer, inner, text = t.kv.pcall(function()
      return t.kv.pcall(function()
        t.kv.sleep(0.001)
        error("deep")
      end)
    end)
    assert.is_true(outer)
    assert.is_false(inner)
    assert.is_truthy(tostring(text):find("deep", 1, true))
  end)

  suite.case("kv.pcall works from the main thread", function(t)
    local ok, value = t.kv.pcall(function() return assert(t.store:put("key", "v")).value end)
    assert.is_true(ok)
    assert.equal("v", value)
    assert.is_false((t.kv.pcall(error, "x")))
  end)

  suite.task("tasks may spawn tasks, deeply", function(t)
    local depth = 0
    local function go(n)
      depth = math.max(depth, n)
      if n < 50 then t.kv.spawn(go, n + 1):join(10) end
      return n
    end
    go(1)
    assert.equal(50, depth)
  end)

  suite.task("a thousand tasks", function(t)
    local tasks = {}
    for i = 1, 1000 do
      tasks[i] = t.kv.spawn(function()
        t.kv.sleep(0.001)
        return i
      end)
    end
    local sum = 0
    for _, task in ipairs(tasks) do sum = sum + task:join(20) end
    assert.equal(500500, sum)
  end)

  suite.case("collects garbage while tasks wait", function(t)
    t.kv.run(function()
      local tasks = {}
      for i = 1, 20 do
        tasks[i] = t.kv.spawn(function()
          for n = 1, 10 do
            assert(t.store:put("key" .. i, tostring(n)))
            collectgarbage()
          end
        end)
      end
      for _, task in ipairs(tasks) do task:join(60) end
    end)
    assert.equal(20, #assert(t.store:list("")))
  end)

  suite.case("fd and step drive it from outside", function(t)
    local fd = t.kv.fd()
    assert.equal("number", type(fd))
    assert.is_true(fd >= 0)
    local watch = t:own(assert(t.store:watch("key")))
    assert(watch:wait_synced(10))
    local child = t:child()
    t.ask(child, "put", "key", "from outside")
    -- The descriptor becomes readable because of what happened elsewhere, without any call of ours.
    assert.is_true(native.poll(fd, 10))
    local again = t.kv.step()
    assert.is_truthy(again == nil or type(again) == "number")
    assert.equal("put key from outside", t.told(watch, 5))
  end)

  suite.case("step is harmless when there is nothing to do", function(t)
    for _ = 1, 10 do t.kv.step() end
    assert(t.store:put("key", "v"))
    for _ = 1, 10 do t.kv.step() end
  end)

  suite.case("raises for misuse", function(t)
    t.raises(t.kv.run)
    t.raises(t.kv.run, 1)
    t.raises(t.kv.spawn)
    t.raises(t.kv.spawn, "x")
    t.raises(t.kv.sleep, "x")
    t.raises(t.kv.sleep)
  end)
end)
