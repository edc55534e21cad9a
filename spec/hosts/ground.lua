--- What the specs of event loops share: a loop is described by a few functions, and is put through the same work.
--
--     loop.start(fn)      run fn in a coroutine of the loop
--     loop.run()          run the loop until all is done; raises what a coroutine raised
--     loop.sleep(seconds) of the loop's own, in a coroutine
--     loop.echo(text)     send the text through a socket pair of the loop's own and return what came out
--     loop.idle()         does the loop know of nothing to do any more?
local native = require("spec.native")
local suite = require("spec.support.suite")
local busted = require("busted")
local kv = require("kv")

local assert = busted.assert
local plain_assert = suite.plain_assert

local TICK = 0.01
local LATE = 10   -- what a machine that does other things may add to a tick; a call that blocked would wait far longer

local ground = {}

-- Counts ticks until told to stop; remembers the longest pause between two.
local function ticker(loop)
  local state = {count = 0, longest = 0}
  loop.start(function()
    local last = native.now()
    while not state.stop do
      loop.sleep(TICK)
      local now = native.now()
      state.longest = math.max(state.longest, now - last)
      last, state.count = now, state.count + 1
    end
  end)
  return state
end

-- Runs a few coroutines and calls `after` in the last one that ends.
local function together(loop, parts, after)
  local left = #parts
  for _, part in ipairs(parts) do
    loop.start(function()
      part()
      left = left - 1
      if left == 0 and after then after() end
    end)
  end
  loop.run()
  plain_assert(left == 0, "the loop ended with coroutines that wait")
end

local function operations(loop, t)
  local ticks, echoes = ticker(loop), 0
  local parts = {}
  for worker = 1, 10 do
    parts[worker] = function()
      for i = 1, 10 do
        local key = ("worker%d/%d"):format(worker, i)
        plain_assert(t.store:put(key, "v" .. i))
        plain_assert(plain_assert(t.store:get(key)).value == "v" .. i)
      end
    end
  end
  parts[#parts + 1] = function()
    for i = 1, 20 do
      plain_assert(loop.echo("text " .. i) == "text " .. i)
      echoes = echoes + 1
      loop.sleep(0.001)
    end
  end
  together(loop, parts, function() ticks.stop = true end)
  assert.equal(20, echoes)
  assert.equal(100, #assert(t.store:list("")))
  assert.is_true(ticks.longest < LATE, ("the longest pause of a ticker: %.3f s"):format(ticks.longest))
end

local function waiting_lock(loop, t)
  local first, second = assert(t.store:lock("door")), assert(t.store:lock("door"))
  local ticks = ticker(loop)
  local while_waiting, order = nil, {}
  together(loop, {
    function()
      plain_assert(first:acquire(10))
      order[#order + 1] = "first"
      local before = ticks.count -- a lock that blocked the loop would not see these, and time out
      while ticks.count < before + 20 do loop.sleep(TICK) end
      plain_assert(first:release())
    end,
    function()
      while not first:held() do loop.sleep(0.001) end
      local before = ticks.count
      plain_assert(second:acquire(60))
      while_waiting = ticks.count - before
      order[#order + 1] = "second"
      local _, _, code = t.store:lock("door"):acquire(0.05)
      plain_assert(code == "timeout", code)
      plain_assert(second:release())
    end,
  }, function() ticks.stop = true end)
  assert.same({"first", "second"}, order)
  assert.is_true(while_waiting >= 10, ("%d ticks while a lock waited"):format(while_waiting))
  assert.is_true(ticks.longest < LATE, ("the longest pause of a ticker: %.3f s"):format(ticks.longest))
end

local function watches(loop, t)
  local seen, codes = {}, {}
  local watch = t:own(assert(t.store:watch_tree("tree")))
  local quiet = t:own(assert(t.store:watch("nothing")))
  local closed = t:own(assert(t.store:watch("closed")))
  together(loop, {
    function()
      while #seen < 50 do seen[#seen + 1] = plain_assert(watch:next(10)).value end
    end,
    function() codes.quiet = select(3, quiet:next(0.05)) end,
    function() codes.closed = select("#", closed:next()) + (closed:next() == nil and 0 or 10) end,
    function()
      plain_assert(watch:wait_synced(10))
      for i = 1, 50 do
        plain_assert(t.store:put("tree/key", tostring(i)))
        if i % 10 == 0 then loop.sleep(0.002) end
      end
      closed:close()
    end,
  })
  assert.equal(50, #seen)
  for i = 1, 50 do assert.equal(tostring(i), seen[i]) end
  assert.equal("timeout", codes.quiet)
  assert.is_true(codes.closed < 10)
end

-- Nothing but what the last answer began holds the loop: a time that is forgotten is waited for ever.
local function times(loop, t)
  local codes = {}
  together(loop, {function()
    local watch = plain_assert(t.store:watch("nothing"))
    plain_assert(t.store:put("key", "v"))
    codes.slept = kv.sleep(0.01)
    plain_assert(t.store:get("key", {consistency = "strong"}))
    codes.watch = select(3, watch:next(0.01))
    plain_assert(t.store:put("key", "w"))
    codes.later = select(3, watch:next(0.01))
    watch:close()
  end})
  assert.same({slept = true, watch = "timeout", later = "timeout"}, codes)
end

local function tasks(loop, t)
  local results = {}
  together(loop, {
    function()
      local task = kv.spawn(function()
        plain_assert(kv.sleep(0.01))
        plain_assert(t.store:put("from a task", "v"))
        return plain_assert(t.store:get("from a task")).value
      end)
      results.joined = task:join(10)
    end,
    function()
      local started = native.now()
      plain_assert(kv.sleep(0.03))
      results.slept = native.now() - started
      local values = {}
      for i = 1, 600 do values["many/" .. i] = "v" end
      plain_assert(t.store:put_many(values))
      results.many = #plain_assert(t.store:list("many"))
    end,
    function()
      results.locked = plain_assert(t.store:with_lock("room", {ttl = 5}, function(lock)
        kv.sleep(0.01) -- not the loop's: on 5.1 the function runs in a coroutine of its own
        return lock:held()
      end))
    end,
    function()
      kv.spawn(function()
        kv.sleep(0.01)
        results.unjoined = plain_assert(t.store:put("nobody joins", "v")).value
      end)
    end,
    function()
      results.run = kv.run(function(value)
        kv.sleep(0.01)
        return plain_assert(t.store:put("in kv.run", value)).value
      end, "w")
    end,
    function()
      local task = kv.spawn(function() return select(3, kv.sleep(20)) end)
      loop.sleep(0.01)
      task:cancel()
      results.cancelled = task:join(10)
    end,
  })
  assert.equal("v", results.joined)
  assert.is_true(results.slept >= 0.029 and results.slept < 5, results.slept)
  assert.equal(600, results.many)
  assert.is_true(results.locked)
  assert.equal("v", results.unjoined)
  assert.equal("w", results.run)
  assert.equal("cancelled", results.cancelled)
end

local function mirrors(loop, t)
  local told = {}
  local mirror = t:own(assert(t.store:mirror("flags")))
  together(loop, {
    function()
      plain_assert(mirror:wait_ready(10))
      mirror:on_change(function(event)
        told[#told + 1] = event.key
        if #told == 2 then mirror:close() end -- until then it holds a loop that would end
      end)
    end,
    function()
      plain_assert(mirror:wait_ready(10))
      local other = plain_assert(t:open())
      loop.sleep(0.01)
      plain_assert(other:put("flags/a", "1"))
      plain_assert(other:put("flags/b", "2"))
    end,
    function() -- calls nothing of the module meanwhile
      local deadline = native.now() + 10
      while #told < 2 and native.now() < deadline do loop.sleep(0.005) end
    end,
  })
  assert.same({"flags/a", "flags/b"}, told)
end

local function blocking(_, t)
  assert(t.store:put("key", "from outside of the loop"))
  assert.equal("from outside of the loop", assert(t.store:get("key")).value)
  local _, _, code = assert(t.store:watch("other")):next(0.02)
  assert.equal("timeout", code)
end

local function failing(loop, t)
  loop.start(function()
    plain_assert(t.store:put("key", "v"))
    kv.spawn(function()
      kv.sleep(0.001)
      error("nobody joins this")
    end)
    kv.sleep(0.05)
  end)
  local ok, problem = pcall(loop.run)
  assert.is_false(ok)
  assert.is_truthy(tostring(problem):find("nobody joins this", 1, true), problem)
  loop.reset()
  together(loop, {function() plain_assert(t.store:put("key", "after it")) end})
end

--- Describe the cases for a loop. `name` is what kv.use() knows it by, or nil to have it recognised.
function ground.describe(loop, name)
  local function case(text, fn)
    suite.case(text, function(t)
      plain_assert(kv.use(name))
      if name == nil then require("kv.scheduler").set_host("find") end
      loop.reset()
      fn(loop, t)
      assert.is_true(loop.idle(), "the loop has nothing left to do")
    end)
  end
  busted.describe(name and "chosen" or "recognised", function()
    busted.after_each(function() kv.use(nil) end)
    case("does 200 operations beside timers and sockets", operations)
    case("goes on ticking while a lock waits", waiting_lock)
    case("waits for watches", watches)
    case("wakes in time who waits after an answer", times)
    case("runs tasks", tasks)
    case("feeds mirrors that call back", mirrors)
    case("blocks outside of it", blocking)
    if not loop.errors_end_the_program then case("raises what a task raised that nobody joins", failing) end
  end)
end

return ground
