--- watch and watch_tree: nothing lost, nothing made up, in order.
local suite = require("spec.support.suite")

describe("watch", function()
  suite.both("gives the present value first, then changes", function(t)
    assert(t.store:put("key", "old"))
    local watch = t:own(assert(t.store:watch("key")))
    local first = t.event(watch)
    assert.equal("put", first.type)
    assert.equal("key", first.key)
    assert.equal("old", first.value)
    assert.is_true(first.initial)
    local pair = assert(t.store:put("key", "new"))
    local second = t.event(watch)
    assert.equal("put", second.type)
    assert.equal("new", second.value)
    assert.equal(pair.revision, second.revision)
    assert.equal(pair.created, second.created)
    assert.is_falsy(second.initial)
    assert.is_true(t.store:delete("key"))
    local third = t.event(watch)
    assert.equal("delete", third.type)
    assert.equal("key", third.key)
    assert.is_nil(third.value)
    assert.is_true(third.revision > second.revision)
    t.quiet(watch)
  end)

  suite.both("of a key that is not there waits for it", function(t)
    local watch = t:own(assert(t.store:watch("some/where/key")))
    assert.equal(true, (watch:wait_synced(10)))
    t.quiet(watch, 0.05)
    assert(t.store:put("some/where/key", "1"))
    assert.equal("put some/where/key 1", t.told(watch))
  end)

  suite.both("of a key that is gone is not told of its former life", function(t)
    assert(t.store:put("key", "1"))
    assert(t.store:put("key", "2"))
    assert(t.store:delete("key"))
    local watch = t:own(assert(t.store:watch("key")))
    assert(watch:wait_synced(10))
    t.quiet(watch, 0.05)
    assert(t.store:put("key", "3"))
    assert.equal("put key 3", t.told(watch))
  end)

  suite.both("of a key sees that key only", function(t)
    local watch = t:own(assert(t.store:watch("key")))
    assert(watch:wait_synced(10))
    assert(t.store:put("key2", "x"))
    assert(t.store:put("ke", "x"))
    if t.store:supports("nested") then assert(t.store:put("key/below", "x")) end
    assert(t.store:put("other/key", "x"))
    assert(t.store:put("key", "mine"))
    assert.equal("put key mine", t.told(watch))
    t.quiet(watch)
  end)

  suite.both("tells of delete and creation again", function(t)
    assert(t.store:put("key", "1"))
    local watch = t:own(assert(t.store:watch("key", {initial = false})))
    assert(watch:wait_synced(10))
    assert(t.store:delete("key"))
    assert.equal("delete key", t.told(watch))
    local pair = assert(t.store:put("key", "2"))
    local event = t.event(watch)
    assert.equal("2", event.value)
    assert.equal(pair.created, event.created)
  end)

  suite.both("without initial gives changes only", function(t)
    assert(t.store:put("key", "old"))
    local watch = t:own(assert(t.store:watch("key", {initial = false})))
    assert(watch:wait_synced(10))
    assert(t.store:put("key", "new"))
    assert.equal("put key new", t.told(watch))
  end)

  suite.both("gives every change inside the history", function(t)
    local watch = t:own(assert(t.store:watch("key")))
    assert(watch:wait_synced(10))
    local revisions = {}
    for i = 1, 200 do revisions[i] = assert(t.store:put("key", tostring(i))).revision end
    for i = 1, 200 do
      local event = t.event(watch)
      assert.equal(tostring(i), event.value)
      assert.equal(revisions[i], event.revision)
    end
    t.quiet(watch)
  end, "every_version")

  suite.both("ends with the last value, in growing order", function(t)
    local watch = t:own(assert(t.store:watch("key")))
    for i = 1, 100 do assert(t.store:put("key", tostring(i))) end
    local last = 0
    repeat
      local event = t.event(watch)
      assert.is_true(event.revision > last)
      last = event.revision
    until event.value == "100"
    t.quiet(watch)
  end)

  suite.both("values=false gives keys and revisions", function(t)
    assert(t.store:put("key", "old"))
    local watch = t:own(assert(t.store:watch("key", {values = false})))
    local event = t.event(watch)
    assert.equal("key", event.key)
    assert.is_nil(event.value)
    local pair = assert(t.store:put("key", "new"))
    event = t.event(watch)
    assert.is_nil(event.value)
    assert.equal(pair.revision, event.revision)
  end)

  suite.both("prev gives what the watch saw before", function(t)
    assert(t.store:put("key", "1"))
    local watch = t:own(assert(t.store:watch("key", {prev = true})))
    local event = t.event(watch)
    assert.is_nil(event.prev)
    assert(t.store:put("key", "2"))
    assert.equal("1", t.event(watch).prev)
    assert(t.store:put("key", ""))
    assert.equal("2", t.event(watch).prev)
    assert(t.store:delete("key"))
    assert.equal("", t.event(watch).prev)
    assert(t.store:put("key", "4"))
    assert.is_nil(t.event(watch).prev)
  end)

  suite.both("prev is absent unless asked for", function(t)
    local watch = t:own(assert(t.store:watch("key")))
    assert(watch:wait_synced(10))
    assert(t.store:put("key", "1"))
    assert(t.store:put("key", "2"))
    repeat
      local event = t.event(watch)
      assert.is_nil(event.prev)
    until event.value == "2"
  end)

  suite.both("after resumes behind a revision", function(t)
    local first = assert(t.store:put("key", "1"))
    assert(t.store:put("key", "2"))
    assert(t.store:delete("key"))
    assert(t.store:put("key", "3"))
    local watch = t:own(assert(t.store:watch("key", {after = first.revision})))
    assert.equal("put key 2", t.told(watch))
    assert.equal("delete key", t.told(watch))
    assert.equal("put key 3", t.told(watch))
    t.quiet(watch)
  end, "resume")

  suite.both("after its own revision nothing is repeated and nothing lost", function(t)
    local watch = t:own(assert(t.store:watch_tree("")))
    assert(watch:wait_synced(10))
    assert(t.store:put("a", "1"))
    assert.equal("put a 1", t.told(watch))
    t:eventually(function() return watch:revision() >= assert(t.store:get("a")).revision end,
      "the watch knows its revision")
    local revision = watch:revision()
    watch:close()
    assert(t.store:put("b", "2"))
    assert(t.store:delete("a"))
    local second = t:own(assert(t.store:watch_tree("", {after = revision})))
    assert.equal("put b 2", t.told(second))
    assert.equal("delete a", t.told(second))
    t.quiet(second)
  end, "resume")

  suite.both("next gives up in time and goes on", function(t)
    local watch = t:own(assert(t.store:watch("key")))
    assert(watch:wait_synced(10))
    local start = t.now()
    t.fails("timeout", watch:next(0.2))
    assert.is_true(t.now() - start >= 0.19 and t.now() - start < 10)
    t.fails("timeout", watch:next(0))
    assert(t.store:put("key", "v"))
    assert.equal("put key v", t.told(watch))
  end)

  suite.both("close ends it with a bare nil", function(t)
    assert(t.store:put("key", "v"))
    local watch = assert(t.store:watch("key"))
    watch:close()
    watch:close()
    local event, message, code = watch:next(1)
    assert.is_nil(event)
    assert.is_nil(message)
    assert.is_nil(code)
    assert.is_false(watch:connected())
  end)

  suite.both("closing the store ends it with a code", function(t)
    local other = assert(t:open())
    local watch = assert(other:watch("key"))
    assert(watch:wait_synced(10))
    other:close()
    local event, message, code = watch:next(5)
    assert.is_nil(event)
    assert.equal("closed", code, message)
    t.fails("closed", other:watch("key"))
  end)

  suite.case("is an iterator", function(t)
    assert(t.store:put("key", "1"))
    local watch, state, control, closing = t.store:watch("key")
    assert.is_nil(state)
    assert.is_nil(control)
    assert.equal(watch, closing)
    local seen = {}
    for event in watch do
      seen[#seen + 1] = event.value
      if #seen == 3 then watch:close() else assert(t.store:put("key", tostring(#seen + 1))) end
    end
    assert.same({"1", "2", "3"}, seen)
  end)

  suite.case("raises its end in a for loop unless it was closed", function(t)
    local other = assert(t:open())
    assert(other:put("key", "1"))
    local raised = t.raises(function()
      for _ in other:watch("key") do other:close() end
    end)
    assert.is_truthy(tostring(raised):find("close", 1, true))
  end)

  suite.case("is closed by 5.4's for loop", function(t)
    if _VERSION ~= "Lua 5.4" then return end
    assert(t.store:put("key", "1"))
    local before = t.store:stats().watches
    for _ in t.store:watch("key") do break end -- luacheck: ignore 512
    t:eventually(function() return t.store:stats().watches == before end, "no watch is left")
  end)

  suite.task("a for loop in a task works, or says why not", function(t)
    assert(t.store:put("key", "1"))
    local watch = t:own(assert(t.store:watch("key")))
    local task = t.kv.spawn(function()
      for event in watch do return event.value end -- luacheck: ignore 512
    end)
    local ok, value = t.kv.pcall(task.join, task)
    if _VERSION == "Lua 5.1" and not rawget(_G, "jit") then
      assert.is_false(ok)
      assert.is_truthy(tostring(value):find("next", 1, true), tostring(value))
    else
      assert.is_true(ok, tostring(value))
      assert.equal("1", value)
    end
  end)

  suite.task("next is woken by close", function(t)
    local watch = assert(t.store:watch("key"))
    assert(watch:wait_synced(10))
    local task = t.kv.spawn(function() return select("#", watch:next()), watch:next() end)
    t.kv.sleep(0.05)
    watch:close()
    local _, event, message = task:join(5)
    assert.is_nil(event)
    assert.is_nil(message)
  end)

  suite.task("next is woken by an event while others work", function(t)
    local watch = t:own(assert(t.store:watch("key")))
    assert(watch:wait_synced(10))
    local order = {}
    local reader = t.kv.spawn(function()
      for _ = 1, 3 do order[#order + 1] = watch:next(10).value end
    end)
    for i = 1, 3 do
      assert(t.store:put("key", tostring(i)))
      t:eventually(function() return #order == i end, "event " .. i)
    end
    reader:join(10)
    assert.same({"1", "2", "3"}, order)
  end)

  suite.both("synced and connected tell", function(t)
    assert(t.store:put("key", "v"))
    local watch = t:own(assert(t.store:watch("key")))
    assert.equal(true, (watch:wait_synced(10)))
    assert.is_true(watch:synced())
    t:eventually(function() return watch:connected() end, "it is connected")
    assert.equal("initial put key v", t.told(watch))
    assert.is_true(watch:revision() > 0)
  end)

  suite.case("sees the writes of another process, and deletes", function(t)
    local child = t:child()
    local watch = t:own(assert(t.store:watch_tree("")))
    assert(watch:wait_synced(10))
    for i = 1, 20 do
      t.ask(child, "put", "key", tostring(i))
      assert.equal("put key " .. i, t.told(watch))
    end
    t.ask(child, "delete", "key")
    assert.equal("delete key", t.told(watch))
  end)

  suite.case("in another process sees ours", function(t)
    local child = t:child()
    assert.equal("true", t.ask(child, "watch", "key"))
    assert(child:write("next\n"))
    assert(t.store:put("key", "hello"))
    assert.equal("put key hello", child:line(20))
  end)

  suite.case("goes on while its process was stopped", function(t)
    local child = t:child()
    assert.equal("true", t.ask(child, "watch", "key"))
    child:kill("STOP")
    for i = 1, 10 do assert(t.store:put("key", tostring(i))) end
    child:kill("CONT")
    local answer
    repeat answer = t.ask(child, "next") until answer == "put key 10" or not answer:find("^put key %d+$")
    assert.equal("put key 10", answer)
  end)

  suite.case("a hundred on one store each see their key", function(t)
    local watches = {}
    for i = 1, 100 do watches[i] = t:own(assert(t.store:watch("key/" .. i))) end
    for _, watch in ipairs(watches) do assert(watch:wait_synced(20)) end
    for i = 100, 1, -1 do assert(t.store:put("key/" .. i, "value " .. i)) end
    for i, watch in ipairs(watches) do
      assert.equal(("put key/%d value %d"):format(i, i), t.told(watch))
      t.fails("timeout", watch:next(0))
    end
    assert.is_true(t.store:stats().watches >= 100)
    for i = 1, 99 do watches[i]:close() end
    assert(t.store:put("key/100", "still"))
    assert.equal("put key/100 still", t.told(watches[100]))
  end)

  suite.case("two on one key both see it", function(t)
    local one, two = t:own(assert(t.store:watch("key"))), t:own(assert(t.store:watch("key")))
    assert(one:wait_synced(10))
    assert(two:wait_synced(10))
    assert(t.store:put("key", "v"))
    assert.equal("put key v", t.told(one))
    one:close()
    assert.equal("put key v", t.told(two))
    assert(t.store:put("key", "w"))
    assert.equal("put key w", t.told(two))
  end)

  suite.case("opened and closed a thousand times leaves nothing", function(t)
    local before = t.store:stats().watches
    for i = 1, 1000 do
      local watch = assert(t.store:watch("key" .. i % 7))
      if i % 10 == 0 then assert(watch:wait_synced(10)) end
      watch:close()
    end
    t:eventually(function() return t.store:stats().watches == before end, "no watch is left", 20)
    local watch = t:own(assert(t.store:watch("key1")))
    assert(watch:wait_synced(10))
    assert(t.store:put("key1", "v"))
    assert.equal("put key1 v", t.told(watch))
  end)

  suite.case("forgotten ones are collected", function(t)
    local before = t.store:stats().watches
    for _ = 1, 50 do assert(t.store:watch("key")) end
    t:eventually(function()
      collectgarbage()
      return t.store:stats().watches <= before + 1
    end, "forgotten watches are gone", 20)
  end)

  suite.case("a slow reader gets the final state in bounded memory", function(t)
    local watch = t:own(assert(t.store:watch_tree("")))
    assert(watch:wait_synced(10))
    -- Far more than any queue should hold: 64 keys, 64 MB of values.
    local value = ("v"):rep(16 * 1024)
    for round = 1, 64 do
      local values = {}
      for i = 1, 64 do values["key" .. i] = round .. value end
      assert(t.store:put_many(values, {timeout = 60}))
    end
    for i = 1, 32 do assert(t.store:delete("key" .. i)) end
    assert(t.store:put("zzz", "end"))
    local state, last = {}, {}
    repeat
      local event = t.event(watch, 30)
      assert.is_true(event.revision >= (last[event.key] or 0))
      last[event.key] = event.revision
      state[event.key] = event.type == "put" and event.value or nil
      -- Where the backend tells whole states, deletes come behind what is there.
      local left = 0
      for i = 1, 32 do left = left + (state["key" .. i] and 1 or 0) end
    until state.zzz and left == 0
    for i = 33, 64 do assert.is_true(state["key" .. i] == 64 .. value) end
  end)

  suite.case("carries large values", function(t)
    local watch = t:own(assert(t.store:watch("big")))
    assert(watch:wait_synced(10))
    for _, size in ipairs{100000, 500000} do
      local value = ("%d"):format(size):rep(size):sub(1, size)
      assert(t.store:put("big", value))
      assert.is_true(t.event(watch).value == value)
    end
  end)

  suite.case("raises for misuse", function(t)
    t.raises(t.store.watch, t.store)
    t.raises(t.store.watch, t.store, "key", {intial = false})
    t.raises(t.store.watch, t.store, "key", {after = "x"})
    t.fails("invalid", t.store:watch(""))
  end)
end)

describe("watch_tree", function()
  suite.both("gives what is there, then every change below", function(t)
    assert(t.store:put("dir/a", "1"))
    assert(t.store:put("dir/sub/b", "2"))
    assert(t.store:put("dirx", "no"))
    local watch = t:own(assert(t.store:watch_tree("dir")))
    local initial = {t.told(watch), t.told(watch)}
    table.sort(initial)
    assert.same({"initial put dir/a 1", "initial put dir/sub/b 2"}, initial)
    assert(watch:wait_synced(10))
    assert(t.store:put("dir/c", "3"))
    assert.equal("put dir/c 3", t.told(watch))
    assert(t.store:put("dir/sub/b", "4"))
    assert.equal("put dir/sub/b 4", t.told(watch))
    assert(t.store:put("dirx", "no"))
    assert(t.store:put("other", "no"))
    assert(t.store:delete("dir/a"))
    assert.equal("delete dir/a", t.told(watch))
    t.quiet(watch)
  end)

  suite.both("sees changes of values, not of names only", function(t)
    assert(t.store:put("dir/a", "1"))
    local watch = t:own(assert(t.store:watch_tree("dir")))
    assert.equal("initial put dir/a 1", t.told(watch))
    for i = 2, 5 do
      assert(t.store:put("dir/a", tostring(i)))
      assert.equal("put dir/a " .. i, t.told(watch))
    end
  end)

  suite.both("of a directory that is not there waits for it", function(t)
    local watch = t:own(assert(t.store:watch_tree("not/there")))
    assert(watch:wait_synced(10))
    assert(t.store:put("not/there/yet", "1"))
    assert.equal("put not/there/yet 1", t.told(watch))
    assert(t.store:delete_tree("not"))
    assert.equal("delete not/there/yet", t.told(watch))
    assert(t.store:put("not/there/again", "2"))
    assert.equal("put not/there/again 2", t.told(watch))
  end)

  suite.both("of the root sees all, but not the library's own", function(t)
    local watch = t:own(assert(t.store:watch_tree("")))
    assert(watch:wait_synced(10))
    if t.store:supports("lock") then
      local lock = assert(assert(t.store:lock("quiet")):acquire(10))
      assert(lock:release())
    end
    assert(t.store:put("a", "1"))
    assert(t.store:put("b/c", "2"))
    assert.equal("put a 1", t.told(watch))
    assert.equal("put b/c 2", t.told(watch))
    t.quiet(watch)
  end)

  suite.both("tells of each key of a delete_tree", function(t)
    local expected = {}
    for i = 1, 50 do
      assert(t.store:put("dir/" .. i, "v"))
      expected["dir/" .. i] = true
    end
    local watch = t:own(assert(t.store:watch_tree("dir", {initial = false})))
    assert(watch:wait_synced(10))
    assert(t.store:delete_tree("dir"))
    for _ = 1, 50 do
      local event = t.event(watch)
      assert.equal("delete", event.type)
      assert.is_true(expected[event.key])
      expected[event.key] = nil
    end
    t.quiet(watch)
  end)

  suite.both("keys are relative to the store that was asked", function(t)
    local sub = t:own(assert(t.store:sub("below")))
    local watch = t:own(assert(sub:watch_tree("")))
    assert(watch:wait_synced(10))
    assert(t.store:put("below/key", "1"))
    assert.equal("put key 1", t.told(watch))
    assert(t.store:put("belowx", "1"))
    assert(sub:put("dir/key", "2"))
    assert.equal("put dir/key 2", t.told(watch))
  end)

  suite.case("has no gap between what was there and what changes, with a writer at work", function(t)
    local child = t:child()
    for round = 1, 10 do
      assert(child:write("add\tcount\t30\n"))
      local watch = assert(t.store:watch_tree(""))
      local last, before
      repeat
        local event = t.event(watch, 20)
        assert.is_true(event.revision > (before or 0))
        before = event.revision
        local number = tonumber(event.value)
        if last and t.store:supports("every_version") then assert.equal(last + 1, number) end
        last = number
      until last == round * 30
      assert.equal("done", child:line(20))
      watch:close()
    end
  end)

  suite.case("gives a large directory", function(t)
    local values = {}
    for i = 1, 2000 do values["dir/" .. i] = ("%d "):format(i):rep(100) end
    assert(t.store:put_many(values, {timeout = 60}))
    local watch = t:own(assert(t.store:watch_tree("dir")))
    local seen = 0
    while seen < 2000 do
      local event = t.event(watch, 20)
      assert.is_true(event.initial)
      assert.is_true(values[event.key] == event.value)
      values[event.key] = nil
      seen = seen + 1
    end
    assert(watch:wait_synced(60))
    assert(t.store:put("dir/new", "x"))
    assert.equal("put dir/new x", t.told(watch))
  end)

  suite.both("prev on a tree is by key", function(t)
    assert(t.store:put("dir/a", "a1"))
    local watch = t:own(assert(t.store:watch_tree("dir", {prev = true})))
    assert.equal("initial put dir/a a1", t.told(watch))
    assert(t.store:put("dir/b", "b1"))
    assert.is_nil(t.event(watch).prev)
    assert(t.store:put("dir/a", "a2"))
    assert.equal("a1", t.event(watch).prev)
    assert(t.store:delete("dir/b"))
    assert.equal("b1", t.event(watch).prev)
  end)
end)
