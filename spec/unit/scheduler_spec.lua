--- Tasks: errors, deadlocks, cancelling, waits that cannot begin, loops of the program's own.
local kv = require("kv")
local native = require("spec.native")
local scheduler = require("kv.scheduler")
local util = require("spec.support.util")

local PUC_51 = _VERSION == "Lua 5.1" and not rawget(_G, "jit")

local function raised_by(fn, ...)
  local ok, problem = pcall(fn, ...)
  assert.is_false(ok, "nothing was raised")
  return problem
end

-- Afterwards everything works as if nothing had been.
local function assert_clean()
  assert.equal(3, kv.run(function()
    local task = kv.spawn(function()
      kv.sleep(0.001)
      return 3
    end)
    return (task:join(5))
  end))
end

describe("kv.run", function()
  it("cannot be nested", function()
    local text = kv.run(function()
      local ok, problem = kv.pcall(kv.run, function() end)
      assert.is_false(ok)
      return problem
    end)
    assert.is_truthy(text:find("kv.spawn", 1, true), text)
    assert.is_truthy(text:find("running already", 1, true), text)
    assert_clean()
  end)

  it("keeps error objects as they are", function()
    local object = setmetatable({}, {__tostring = function() return "an object" end})
    assert.equal(object, raised_by(kv.run, function() error(object) end))
    assert.equal(object, raised_by(kv.run, function()
      kv.spawn(function() error(object) end):join()
    end))
    kv.run(function()
      local task = kv.spawn(function() error(object) end)
      local ok, problem = kv.pcall(task.join, task)
      assert.is_false(ok)
      assert.equal(object, problem)
      -- and again
      ok, problem = kv.pcall(task.join, task)
      assert.is_false(ok)
      assert.equal(object, problem)
    end)
    assert.is_nil(raised_by(kv.run, function() error(nil) end))
    assert_clean()
  end)

  it("adds the traceback of the task that failed, once", function()
    local function culprit() error("the cause") end
    local text = raised_by(kv.run, function()
      kv.spawn(function()
        kv.sleep(0.001)
        culprit()
      end):join()
    end)
    assert.is_truthy(text:find("the cause", 1, true))
    local _, tracebacks = text:gsub("stack traceback:", "")
    assert.equal(1, tracebacks)
    assert.is_truthy(text:find("culprit", 1, true), text)
  end)

  it("tells when all tasks wait for each other", function()
    local text = raised_by(kv.run, function()
      local one, two
      one = kv.spawn(function() two:join() end)
      two = kv.spawn(function() one:join() end)
      one:join()
    end)
    assert.is_truthy(text:find("wait for each other", 1, true), text)
    assert.is_truthy(text:find("scheduler_spec", 1, true), text)
    assert_clean()
  end)

  it("is no deadlock while something is in flight or a time is set", function()
    local store = assert(kv.open("local:"))
    assert.equal("v", kv.run(function()
      local watch = assert(store:watch("key"))
      local reader = kv.spawn(function() return watch:next().value end)
      kv.spawn(function()
        kv.sleep(0.02)
        assert(store:put("key", "v"))
      end)
      return (reader:join())
    end))
    store:close()
  end)

  it("cancels the others when its function fails, and waits for their ends", function()
    local seen = {}
    local text = raised_by(kv.run, function()
      for i = 1, 3 do
        kv.spawn(function()
          local _, _, code = kv.sleep(60)
          seen[i] = code
        end)
      end
      kv.sleep(0.01)
      error("main is over")
    end)
    assert.is_truthy(text:find("main is over", 1, true))
    assert.same({"cancelled", "cancelled", "cancelled"}, seen)
    assert_clean()
  end)

  it("drops tasks that do not end when they are told to", function()
    local start, rounds = native.now(), 0
    raised_by(kv.run, function()
      kv.spawn(function()
        while true do
          kv.sleep(0.01)
          rounds = rounds + 1
        end
      end)
      kv.sleep(0.05)
      error("main is over")
    end)
    assert.is_true(native.now() - start < 10)
    local before = rounds
    kv.run(function() kv.sleep(0.05) end)
    assert.equal(before, rounds)
    assert_clean()
  end)

  it("closes what dropped tasks had in <close> variables", function()
    if _VERSION ~= "Lua 5.4" then return end
    local chunk = assert((loadstring or load)([[
      local kv, closed = ...
      kv.run(function()
        kv.spawn(function()
          local guard <close> = setmetatable({}, {__close = function() closed[1] = true end})
          while true do kv.sleep(0.01) end
        end)
        kv.sleep(0.02)
        error("main is over")
      end)
    ]]))
    local closed = {}
    raised_by(chunk, kv, closed)
    assert.is_true(closed[1])
  end)

  it("does not count a dropped task that another one's <close> wakes", function()
    if _VERSION ~= "Lua 5.4" then return end
    local store = assert(kv.open("local:"))
    local chunk = assert((loadstring or load)([[
      local kv, store = ...
      local watch = assert(store:watch("key", {initial = false}))
      local function wakes()
        local guard <close> = setmetatable({}, {__close = function() watch:close() end})
        while true do kv.sleep(10) end
      end
      local function waits()
        while select(3, watch:next()) do end
      end
      kv.run(function()
        for _ = 1, 20 do kv.spawn(wakes) end
        kv.spawn(waits)
        kv.sleep(0)
        error("main is over")
      end)
    ]]))
    raised_by(chunk, kv, store)
    local held = assert(assert(store:lock("taken")):acquire(5))
    assert.equal("timeout", kv.run(function() return select(3, store:lock("taken"):acquire(0.05)) end))
    held:release()
    store:close()
  end)

  it("raises the error of a forgotten task before the others are done", function()
    local start = native.now()
    local text = raised_by(kv.run, function()
      kv.spawn(function() error("lonely") end)
      kv.sleep(30)
    end)
    assert.is_truthy(text:find("lonely", 1, true))
    assert.is_true(native.now() - start < 15)
  end)

  it("leaves no waiting task that disturbs the next run", function()
    local store = assert(kv.open("local:"))
    local watch = assert(store:watch("key"))
    raised_by(kv.run, function()
      kv.spawn(function() while true do watch:next() end end)
      kv.sleep(0.01)
      error("over")
    end)
    for i = 1, 5 do assert(store:put("key", tostring(i))) end
    kv.run(function()
      local reader = kv.spawn(function()
        local last
        repeat last = assert(watch:next(5)).value until last == "5"
        return last
      end)
      assert.equal("5", (reader:join(10)))
    end)
    assert_clean()
    store:close()
  end)

  if rawget(coroutine, "isyieldable") then
    it("gives others a turn while a task makes calls that are answered at once", function()
      local store = assert(kv.open("local:?sync=none"))
      local stop, before, seen
      kv.run(function()
        assert(store:put("key", "v"))
        local watch = assert(store:watch("key", {initial = false}))
        assert(watch:wait_synced(10))
        kv.spawn(function()
          kv.sleep(0.001)
          stop = true
        end)
        local deadline = native.now() + 10
        while not stop and native.now() < deadline do assert(store:get("key")) end
        before, stop = stop, false
        for i = 1, 300 do assert(store:put("key", tostring(i))) end
        seen = 0
        kv.spawn(function() stop = seen end)
        for _ = 1, 300 do
          assert(watch:next(10))
          seen = seen + 1
        end
        -- Where it cannot yield it goes on.
        local list = {}
        for i = 1, 200 do list[i] = i * 7919 % 200 end
        table.sort(list, function(left, right) return assert(store:get("key")) and left < right end)
      end)
      assert.is_true(before)
      assert.is_true(stop < 300)
      store:close()
    end)
  end

  it("runs ten thousand tasks", function()
    local store = assert(kv.open("local:?sync=none"))
    local start = native.now()
    local sum = kv.run(function()
      local tasks, total = {}, 0
      for i = 1, 10000 do
        tasks[i] = kv.spawn(function()
          kv.sleep(i % 10 / 1000)
          assert(store:put("key/" .. i % 100, tostring(i)))
          return i
        end)
      end
      for _, task in ipairs(tasks) do total = total + task:join() end
      return total
    end)
    assert.equal(50005000, sum)
    assert.is_true(native.now() - start < 60)
    store:close()
  end)
end)

describe("a task", function()
  it("gives others a turn when the program yields by itself", function()
    local order = {}
    kv.run(function()
      local one = kv.spawn(function()
        for i = 1, 3 do
          order[#order + 1] = "a" .. i
          coroutine.yield("something of the program's")
        end
      end)
      local two = kv.spawn(function()
        for i = 1, 3 do
          order[#order + 1] = "b" .. i
          coroutine.yield()
        end
      end)
      one:join()
      two:join()
    end)
    assert.same({"a1", "b1", "a2", "b2", "a3", "b3"}, order)
  end)

  it("blocks in a coroutine of the program's own, whose yields stay its own", function()
    local store = assert(kv.open("local:"))
    local seen = kv.run(function()
      local produce = coroutine.wrap(function()
        for i = 1, 3 do
          assert(store:put("key", tostring(i)))
          kv.sleep(0.001)
          coroutine.yield(assert(store:get("key")).value)
        end
      end)
      return produce() .. produce() .. produce()
    end)
    assert.equal("123", seen)
    store:close()
  end)

  -- Where Lua cannot yield, the wait raises; what was asked all the same must not disturb what comes.
  it("survives a wait that could not begin", function()
    local store = assert(kv.open("local:"))
    kv.run(function()
      local function below_c(fn)
        return kv.pcall(string.gsub, "x", "x", fn) -- no Lua yields across gsub
      end
      for _, wait in ipairs{
        function() store:put("key", "v") end,
        function() kv.sleep(0.01) end,
        function() assert(store:watch("key")):next() end,
      } do
        local ok, problem = below_c(wait)
        assert.is_false(ok)
        assert.is_truthy(tostring(problem):find("yield", 1, true), tostring(problem))
        local start = native.now()
        assert.is_true((kv.sleep(0.05)))
        assert.is_true(native.now() - start >= 0.049)
        assert.is_true((assert(store:put_many{a = "1", b = "2"})))
        assert.equal("2", assert(store:get("b")).value)
        assert.is_true(store:delete("b"))
      end
    end)
    assert_clean()
    store:close()
  end)

  it("of 5.1 that pcalls a wait goes on as well", function()
    if not PUC_51 then return end
    local store = assert(kv.open("local:"))
    kv.run(function()
      local ok, problem = pcall(store.put, store, "key", "v")
      assert.is_false(ok)
      assert.is_truthy(tostring(problem):find("yield", 1, true))
      assert.equal(2, (assert(store:put("key2", "w"))).value == "w" and 2)
      assert.equal("w", assert(store:get("key2")).value)
    end)
    store:close()
  end)
end)

describe("cancel", function()
  local store

  before_each(function() store = assert(kv.open("local:")) end)
  after_each(function() store:close() end)

  -- Each is a wait without an end of its own.
  local waits = {
    ["kv.sleep"] = function() return kv.sleep(60) end,
    ["watch:next"] = function() return assert(store:watch("key", {initial = false})):next() end,
    ["lock:acquire"] = function() return assert(store:lock("taken")):acquire() end,
    ["lock:wait_lost"] = function(held) return held:wait_lost() end,
    ["lease:wait_lost"] = function() return assert(store:lease(10)):wait_lost() end,
    ["task:join"] = function(_, other) return other:join() end,
  }
  for name, wait in pairs(waits) do
    it("wakes " .. name .. " once, and what follows works", function()
      kv.run(function()
        local held = assert(assert(store:lock("taken")):acquire(5))
        local other = kv.spawn(function() return kv.sleep(60) end)
        local results
        local task = kv.spawn(function()
          results = {wait(held, other)}
          assert(store:put("after", "v"))
          kv.sleep(0.001)
          return "went on"
        end)
        kv.sleep(0.05)
        assert.is_true(task:cancel())
        assert.equal("went on", (task:join(5)))
        assert.is_nil(results[1])
        assert.is_string(results[2])
        assert.equal("cancelled", results[3])
        assert.is_true(held:held())
        assert.is_false(task:cancel())
        other:cancel()
        assert(held:release())
      end)
    end)
  end

  it("that comes when the answer is on its way counts for the next wait", function()
    local core = require("kv.core")
    local value, code, later
    kv.run(function()
      local task
      -- On a busy machine the answer may come before the turn in which it was asked for ends: then once more.
      util.eventually_task(kv, function()
        if task then
          task:cancel()
          task:join()
        end
        value, code, later = nil, nil, nil
        task = kv.spawn(function()
          local pair = store:put("key", "v")
          value = pair and pair.value
          code = select(3, kv.sleep(30))
          later = kv.sleep(0.001)
        end)
        kv.sleep(0)
        return pcall(util.eventually, core.pending, nil, 1)
      end, "the answer is in the queue, and nobody has looked", 30)
      assert.is_true(task:cancel())
      task:join(10)
    end)
    assert.equal("v", value)
    assert.equal("cancelled", code)
    assert.is_true(later)
  end)

  it("before the first wait counts for it", function()
    kv.run(function()
      local codes = {}
      local task = kv.spawn(function()
        codes[1] = select(3, kv.sleep(60))
        codes[2] = kv.sleep(0.001)
      end)
      task:cancel()
      task:join(5)
      assert.same({"cancelled", true}, codes)
      task = kv.spawn(function()
        codes[1] = select(3, assert(store:lock("door")):acquire())
        codes[2] = assert(assert(store:lock("door")):acquire(5)):release()
      end)
      task:cancel()
      task:join(5)
      -- the lock was free: it may have been quicker than the cancel
      assert.is_truthy(codes[1] == "cancelled" or codes[1] == nil)
    end)
  end)

  it("of put_many lets go of everything in flight", function()
    kv.run(function()
      local values = {}
      for i = 1, 5000 do values["key/" .. i] = ("x"):rep(1000) end
      local results
      local task = kv.spawn(function() results = {store:put_many(values)} end)
      kv.sleep(0)
      task:cancel()
      task:join(20)
      assert.is_truthy(results[1] or results[3] == "cancelled" or results[3] == "unknown", results[2])
    end)
    local stats
    repeat
      stats = store:stats()
      native.sleep(0.005)
    until stats.in_flight == 0
    assert_clean()
  end)

  it("inside of with_lock releases the lock", function()
    kv.run(function()
      local inside = false
      local task = kv.spawn(function()
        return store:with_lock("door", nil, function()
          inside = true
          return kv.sleep(60)
        end)
      end)
      while not inside do kv.sleep(0.001) end
      task:cancel()
      local _, _, code = task:join(5)
      assert.equal("cancelled", code)
      assert(assert(store:lock("door")):acquire(1)):release()
    end)
  end)

  it("between the function of with_lock and its release does not keep the lock", function()
    kv.run(function()
      local task
      task = kv.spawn(function()
        return store:with_lock("door", nil, function()
          task:cancel() -- itself: the next wait is that of the release
          return "done"
        end)
      end)
      assert.equal("done", (task:join(5)))
      assert(assert(store:lock("door")):acquire(1)):release()
    end)
  end)
end)

describe("task:join", function()
  it("refuses what makes no sense", function()
    local kept
    kv.run(function()
      local task = kv.spawn(function() kv.sleep(0.01) end)
      kept = kv.spawn(function() end)
      for _, wrong in ipairs{"1", -1, 0 / 0, {}} do
        assert.is_false((kv.pcall(task.join, task, wrong)))
      end
      local self
      self = kv.spawn(function()
        local ok, problem = kv.pcall(self.join, self)
        assert.is_false(ok)
        assert.is_truthy(problem:find("itself", 1, true))
      end)
      self:join()
    end)
    kept:join() -- is done: fine
    local left
    raised_by(kv.run, function()
      left = kv.spawn(function() while true do kv.sleep(0.01) end end)
      kv.sleep(0)
      error("over")
    end)
    assert.is_truthy(raised_by(left.join, left):find("ended", 1, true))
    assert.equal("kv.task (dropped)", tostring(left))
    assert.equal("kv.task (done)", tostring(kept))
  end)
end)

describe("misuse", function()
  it("raises at the caller's line", function()
    local line = debug.getinfo(1, "l").currentline + 2
    local calls = {
      function() kv.run("x") end,
      function() kv.spawn({}) end,
      function() kv.sleep("x") end,
      function() kv.sleep(-1) end,
      function() kv.spawn(function() end) end, -- nothing runs tasks here
      function() kv.open({}) end,
      function() kv.open("local:", {timout = 1}) end,
      function() kv.open("local:", {tls = {cacert = "x"}}) end,
      function() kv.open("local:", nil, 3) end,
      function() kv.use(3) end,
    }
    for i, fn in ipairs(calls) do
      local problem = raised_by(fn)
      assert.is_truthy(problem:find("scheduler_spec.lua:" .. (line + i - 1) .. ":", 1, true), problem)
    end
  end)
end)

describe("kv.step", function()
  after_each(function() kv.use(nil) end)

  it("runs tasks for a loop of the program's own", function()
    kv.use{}
    local store = assert(kv.open("local:"))
    local done
    local task = kv.spawn(function()
      assert(store:put("key", "v"))
      kv.sleep(0.02)
      done = assert(store:get("key")).value
    end)
    local fd = assert(kv.fd())
    local deadline = native.now() + 10
    repeat
      local again = kv.step()
      if not done then native.poll(fd, math.min(again or 1, 1)) end
    until done or native.now() > deadline
    assert.equal("v", done)
    kv.step()
    assert.equal("kv.task (done)", tostring(task))
    store:close()
  end)

  it("is asked for when a call outside of it took the answer that a task waits for", function()
    kv.use{}
    local store, done = assert(kv.open("local:")), false
    local fd = assert(kv.fd())
    -- On a busy machine the answer may come before the step in which it was asked for ends: then once more.
    for _ = 1, 1000 do
      done = false
      kv.spawn(function() done = assert(store:put("key", "v")) end)
      kv.step()
      if not done then break end
    end
    assert.is_truthy(native.poll(fd, 10), "the answer came")
    assert(store:get("key")) -- hands out what is there
    assert.is_truthy(native.poll(fd, 0), "the descriptor tells of the task")
    kv.step()
    assert.is_truthy(done)
    kv.step()
    assert.is_falsy(native.poll(fd, 0))
    store:close()
  end)

  it("raises what a task raised that nobody joins, once", function()
    kv.use{}
    kv.spawn(function() error("in a step") end)
    local ok, problem
    local deadline = native.now() + 5
    repeat ok, problem = pcall(kv.step) until not ok or native.now() > deadline
    assert.is_false(ok)
    assert.is_truthy(tostring(problem):find("in a step", 1, true))
    assert.is_true((pcall(kv.step)))
  end)

  it("cannot be called by a task", function()
    kv.run(function()
      local ok, problem = kv.pcall(kv.step)
      assert.is_false(ok)
      assert.is_truthy(problem:find("kv.run", 1, true))
    end)
  end)
end)

describe("hooks", function()
  after_each(function() kv.use(nil) end)

  -- A small scheduler of the program's own: coroutines that wait are resumed when they are woken, or their time is up.
  local function own_loop()
    local loop = {ready = {}, sleeping = {}, mine = setmetatable({}, {__mode = "k"})}
    function loop.go(fn)
      local co = coroutine.create(fn)
      loop.mine[co] = true
      loop.ready[#loop.ready + 1] = co
    end
    function loop.resume(co)
      local ok, problem = coroutine.resume(co)
      if not ok then error(debug.traceback(co, problem), 0) end
    end
    function loop.run()
      local fd = kv.fd()
      while #loop.ready > 0 or next(loop.sleeping) do
        local ready = loop.ready
        loop.ready = {}
        for _, co in ipairs(ready) do loop.resume(co) end
        local again = kv.step()
        if #loop.ready == 0 and next(loop.sleeping) then native.poll(fd, math.min(again or 0.05, 0.05)) end
        for waiter, item in pairs(loop.sleeping) do
          if item.at and native.now() >= item.at then
            loop.sleeping[waiter] = nil
            loop.ready[#loop.ready + 1] = item.co
          end
        end
      end
    end
    loop.hooks = {
      current = function()
        local co = coroutine.running()
        return co ~= nil and loop.mine[co] == true
      end,
      wait = function(waiter, seconds)
        loop.sleeping[waiter] = {co = coroutine.running(), at = seconds and native.now() + seconds}
        coroutine.yield()
      end,
      wake = function(waiter)
        local item = loop.sleeping[waiter]
        loop.sleeping[waiter] = nil
        if item then loop.ready[#loop.ready + 1] = item.co end
      end,
    }
    return loop
  end

  it("let coroutines of another loop wait", function()
    local loop, store, order = own_loop(), assert(kv.open("local:")), {}
    kv.use(loop.hooks)
    local watch = assert(store:watch("key"))
    loop.go(function()
      local event = assert(watch:next(10))
      order[#order + 1] = "event " .. event.value
    end)
    loop.go(function()
      assert(kv.sleep(0.02))
      order[#order + 1] = "slept"
      assert(store:put("key", "v"))
      local _, _, code = assert(store:watch("another key")):next(0.05)
      order[#order + 1] = code or "an event"
    end)
    loop.go(function()
      local values = {}
      for i = 1, 2000 do values["many/" .. i] = "v" end
      assert(store:put_many(values))
      assert.equal(2000, #assert(store:list("many")))
      local lock = assert(assert(store:lock("door")):acquire(5))
      assert.is_nil((assert(store:lock("door")):acquire(0.02)))
      assert(lock:release())
    end)
    loop.go(function()
      local task = kv.spawn(function()
        kv.sleep(0.01)
        return "from a task"
      end)
      local result = task:join(5)
      order[#order + 1] = "joined " .. result
    end)
    loop.run()
    table.sort(order)
    assert.same({"event v", "joined from a task", "slept", "timeout"}, order)
    kv.use(nil)
    store:close()
  end)

  it("lose nothing and keep nothing when a coroutine that waits is forgotten by its loop", function()
    local store = assert(kv.open("local:"))
    local mine = setmetatable({}, {__mode = "k"})
    kv.use{
      current = function() return mine[coroutine.running() or 1] == true end,
      wait = function(waiter)
        waiter.co = coroutine.running()
        coroutine.yield()
      end,
      wake = function(waiter) waiter.woken = true end, -- nobody resumes it
    }
    local gone = setmetatable({}, {__mode = "v"})
    local function forget(fn)
      local co = coroutine.create(fn)
      mine[co], gone[#gone + 1] = true, co
      assert(coroutine.resume(co))
      assert.equal("suspended", coroutine.status(co))
    end
    forget(function() assert(store:watch("key")):next() end)
    forget(function() store:put("key", "v") end)
    forget(function() store:lock("door"):acquire(5) end)
    forget(function() assert(store:mirror("tree")):wait_ready() end)
    util.eventually(function()
      kv.step() -- what was asked is answered, for nobody
      collectgarbage()
      return next(gone) == nil and store:stats().watches == 0 and store:stats().in_flight == 0
    end, "everything is collected")
    kv.use(nil)
    assert.equal("v", assert(store:get("key")).value)
    assert(store:put("key", "w"))
    store:close()
  end)

  it("that are not known are unsupported", function()
    local ok, message, code = kv.use("no such loop")
    assert.is_nil(ok)
    assert.is_truthy(message:find("no such loop", 1, true))
    assert.equal("unsupported", code)
    ok, message, code = kv.use("openresty")
    assert.is_nil(ok)
    assert.is_truthy(message:find("this is not nginx", 1, true))
    assert.equal("unsupported", code)
  end)
end)

describe("fork", function()
  it("in the middle of tasks ends their waits in the child, and not in the parent", function()
    local store = assert(kv.open("local:"))
    local codes, pid = {}, nil
    kv.run(function()
      local watch = assert(store:watch("key"))
      assert(watch:wait_synced(5))
      local held = assert(assert(store:lock("door")):acquire(5))
      local reader = kv.spawn(function()
        local event, _, code = watch:next()
        codes[#codes + 1] = code or event.value
      end)
      local waiter = kv.spawn(function()
        local _, _, code = assert(store:lock("door")):acquire()
        codes[#codes + 1] = code or "acquired"
      end)
      kv.sleep(0.05)
      pid = assert(native.fork())
      if pid == 0 then
        local ok = kv.pcall(function()
          assert(waiter:join(10) == nil)
          assert(codes[1] == "closed", codes[1])
          assert(select(3, store:get("key")) == "closed")
          local own = assert(kv.open("local:"))
          assert(own:put("mine", "v"))
          assert(assert(own:get("mine")).value == "v")
          own:close()
        end)
        native.exit(ok and 0 or 1)
      end
      assert(held:release())
      waiter:join(10)
      assert(store:put("key", "v"))
      reader:join(10)
    end)
    assert.same({"acquired", "v"}, codes)
    assert.equal(0, native.reap(pid))
    store:close()
  end)
end)

describe("scheduler", function()
  it("knows whether this Lua yields across pcall", function()
    assert.equal(not PUC_51, scheduler.yields_across_pcall)
  end)
end)
