--- atomic_put and atomic_delete: compare and set, create only, and races.
local suite = require("spec.support.suite")

describe("atomic_put", function()
  suite.both("creates once", function(t)
    local pair = assert(t.store:atomic_put("key", "first", nil))
    assert.equal("key", pair.key)
    assert.equal("first", pair.value)
    assert.equal(pair.revision, pair.created)
    local message = t.fails("exists", t.store:atomic_put("key", "second", nil))
    assert.is_truthy(message:find("key", 1, true))
    assert.same(pair, assert(t.store:get("key")))
  end)

  suite.both("creates again after a delete", function(t)
    local first = assert(t.store:atomic_put("key", "1", nil))
    assert.is_true(t.store:delete("key"))
    local second = assert(t.store:atomic_put("key", "2", nil))
    assert.is_true(second.revision > first.revision)
  end)

  suite.both("creates below a directory that is not there", function(t)
    local pair = assert(t.store:atomic_put("some/where/new", "v", nil))
    assert.equal("some/where/new", pair.key)
    t.fails("exists", t.store:atomic_put("some/where/new", "w", nil))
  end)

  suite.both("replaces what it expects, by pair and by revision", function(t)
    local first = assert(t.store:put("key", "1"))
    local second = assert(t.store:atomic_put("key", "2", first))
    assert.is_true(second.revision > first.revision)
    assert.equal(first.created, second.created)
    local third = assert(t.store:atomic_put("key", "3", second.revision))
    assert.equal("3", assert(t.store:get("key")).value)
    assert.is_true(third.revision > second.revision)
  end)

  suite.both("takes pairs of get, get_many and list as they are", function(t)
    assert(t.store:put("key", "1"))
    assert(t.store:atomic_put("key", "2", assert(t.store:get("key"))))
    assert(t.store:atomic_put("key", "3", assert(t.store:get_many{"key"}).key))
    assert(t.store:atomic_put("key", "4", assert(t.store:list(""))[1]))
    assert.equal("4", assert(t.store:get("key")).value)
  end)

  suite.both("fails on a wrong revision, and changes nothing", function(t)
    local first = assert(t.store:put("key", "1"))
    local second = assert(t.store:put("key", "2"))
    for _, wrong in ipairs{first, first.revision, second.revision + 1000} do
      t.fails("modified", t.store:atomic_put("key", "3", wrong))
    end
    assert.same(second, assert(t.store:get("key")))
  end)

  suite.both("revision 0 is no key's, and does not mean that there is none", function(t)
    t.fails("modified", t.store:atomic_put("never", "1", 0))
    t.fails("modified", t.store:atomic_delete("never", 0))
    assert(t.store:put("key", "1"))
    t.fails("modified", t.store:atomic_put("key", "2", 0))
    t.fails("modified", t.store:atomic_delete("key", 0))
    if t.store:supports("txn") then
      t.fails("modified", t.store:txn():check("never", 0):put("never", "1"):commit())
    end
    assert.is_false(t.store:exists("never"))
    assert.equal("1", assert(t.store:get("key")).value)
  end)

  suite.both("fails where the key is gone", function(t)
    local pair = assert(t.store:put("key", "1"))
    assert.is_true(t.store:delete("key"))
    t.fails("modified", t.store:atomic_put("key", "2", pair))
    assert.is_nil((t.store:get("key")))
    t.fails("modified", t.store:atomic_put("never", "2", pair.revision))
  end)

  suite.both("is not deceived by delete and create with the same value", function(t)
    local pair = assert(t.store:put("key", "same"))
    assert.is_true(t.store:delete("key"))
    assert(t.store:put("key", "same"))
    t.fails("modified", t.store:atomic_put("key", "other", pair))
    assert.equal("same", assert(t.store:get("key")).value)
  end)

  suite.both("is not deceived by the same value put again", function(t)
    local pair = assert(t.store:put("key", "same"))
    assert(t.store:put("key", "same"))
    t.fails("modified", t.store:atomic_put("key", "other", pair))
  end)

  suite.both("works with an empty value", function(t)
    local pair = assert(t.store:atomic_put("key", "", nil))
    t.fails("exists", t.store:atomic_put("key", "", nil))
    pair = assert(t.store:atomic_put("key", "", pair))
    assert.equal("", assert(t.store:get("key")).value)
    assert(t.store:atomic_put("key", "full", pair))
  end)

  suite.both("takes a time to live", function(t)
    local start = t.now()
    assert(t.store:atomic_put("key", "v", nil, {ttl = 1}))
    t:goes("key", start, 1)
    assert(t.store:atomic_put("key", "again", nil))
  end, "ttl")

  suite.case("refuses a previous that is neither pair nor revision", function(t)
    t.raises(t.store.atomic_put, t.store, "key", "v", "12")
    t.raises(t.store.atomic_put, t.store, "key", "v", {})
    t.raises(t.store.atomic_put, t.store, "key", "v", true)
    assert.is_false(t.store:exists("key"))
  end)

  suite.case("lets one of two racing handles win, a hundred times", function(t)
    local other = assert(t:open())
    local pair = assert(t.store:put("key", "0"))
    local wins = {0, 0}
    for round = 1, 100 do
      t.kv.run(function()
        local results = {}
        local tasks = {}
        for i, store in ipairs{t.store, other} do
          tasks[i] = t.kv.spawn(function()
            local won, message, code = store:atomic_put("key", tostring(round), pair)
            if won then
              results[#results + 1] = won
              wins[i] = wins[i] + 1
            else
              assert.equal("modified", code, message)
            end
          end)
        end
        for _, task in ipairs(tasks) do task:join() end
        assert.equal(1, #results)
        pair = results[1]
      end)
    end
    assert.equal(100, wins[1] + wins[2])
    assert.same(pair, assert(t.store:get("key")))
  end)

  suite.task("creates for one of sixteen tasks", function(t)
    local tasks, winners, codes = {}, 0, {}
    for i = 1, 16 do
      tasks[i] = t.kv.spawn(function()
        local pair, _, code = t.store:atomic_put("once", tostring(i), nil)
        if pair then winners = winners + 1 else codes[code] = (codes[code] or 0) + 1 end
      end)
    end
    for _, task in ipairs(tasks) do task:join() end
    assert.equal(1, winners)
    assert.same({exists = 15}, codes)
  end)
end)

describe("atomic_delete", function()
  suite.both("deletes what it expects, once", function(t)
    local pair = assert(t.store:put("key", "v"))
    assert.equal(true, (t.store:atomic_delete("key", pair)))
    assert.is_false(t.store:exists("key"))
    t.fails("modified", t.store:atomic_delete("key", pair))
    t.fails("modified", t.store:atomic_delete("never", pair.revision))
  end)

  suite.both("takes a revision", function(t)
    local pair = assert(t.store:put("key", "v"))
    assert.equal(true, (t.store:atomic_delete("key", pair.revision)))
    assert.is_false(t.store:exists("key"))
  end)

  suite.both("fails on a wrong revision, and deletes nothing", function(t)
    local first = assert(t.store:put("key", "1"))
    local second = assert(t.store:put("key", "2"))
    t.fails("modified", t.store:atomic_delete("key", first))
    t.fails("modified", t.store:atomic_delete("key", second.revision + 1000))
    assert.same(second, assert(t.store:get("key")))
    assert.equal(true, (t.store:atomic_delete("key", second)))
  end)

  suite.both("is not deceived by another life of the key", function(t)
    local pair = assert(t.store:put("key", "same"))
    assert.is_true(t.store:delete("key"))
    assert(t.store:put("key", "same"))
    t.fails("modified", t.store:atomic_delete("key", pair))
    assert.is_true(t.store:exists("key"))
  end)

  suite.case("needs previous", function(t)
    assert(t.store:put("key", "v"))
    t.raises(t.store.atomic_delete, t.store, "key")
    t.raises(t.store.atomic_delete, t.store, "key", nil)
    t.raises(t.store.atomic_delete, t.store, "key", "1")
    assert.is_true(t.store:exists("key"))
  end)
end)

describe("update", function()
  suite.both("makes, changes and leaves alone", function(t)
    local seen = {}
    local pair = assert(t.store:update("key", function(value, previous)
      seen[1] = {value, previous}
      return "1"
    end))
    assert.equal("1", pair.value)
    assert.same({}, seen[1])
    pair = assert(t.store:update("key", function(value, previous)
      assert.equal("1", value)
      assert.equal("key", previous.key)
      assert.is_true(previous.revision > 0)
      return value .. "2"
    end))
    assert.equal("12", pair.value)
    local kept = t.store:update("key", function() return nil end)
    if kept then assert.equal("12", kept.value) end
    assert.same(pair, assert(t.store:get("key")))
  end)

  suite.both("makes nothing where fn gives nil on an absent key", function(t)
    local value, message, code = t.store:update("key", function() return nil end)
    assert.is_nil(value)
    assert.is_nil(code, message)
    assert.is_false(t.store:exists("key"))
  end)

  suite.task("loses no change of many tasks on two handles", function(t)
    local other = assert(t:open())
    local tasks = {}
    for i = 1, 10 do
      tasks[i] = t.kv.spawn(function()
        for _ = 1, 5 do
          assert((i % 2 == 0 and other or t.store):update("counter", function(value)
            return tostring((tonumber(value) or 0) + 1)
          end, {timeout = 60}))
        end
      end)
    end
    for _, task in ipairs(tasks) do task:join() end
    assert.equal("50", assert(t.store:get("counter")).value)
  end)

  suite.case("loses no change of two processes", function(t)
    local first, second = t:child(), t:child()
    assert(first:write("add\tcounter\t60\n"))
    assert(second:write("add\tcounter\t60\n"))
    assert.equal("done", first:line(60))
    assert.equal("done", second:line(60))
    assert.equal("120", assert(t.store:get("counter")).value)
  end)

  suite.both("raises what fn raises, and changes nothing", function(t)
    assert(t.store:put("key", "v"))
    local caught
    if t.in_task then
      local task = t.kv.spawn(function() t.store:update("key", function() error("mine") end) end)
      local ok, raised = t.kv.pcall(task.join, task)
      assert.is_false(ok)
      caught = raised
    else
      caught = t.raises(t.store.update, t.store, "key", function() error("mine") end)
    end
    assert.is_truthy(tostring(caught):find("mine", 1, true))
    assert.equal("v", assert(t.store:get("key")).value)
  end)

  suite.task("lets fn wait for other things", function(t)
    assert(t.store:put("key", "a"))
    assert(t.store:put("other", "b"))
    local pair = assert(t.store:update("key", function(value)
      return value .. assert(t.store:get("other")).value
    end))
    assert.equal("ab", pair.value)
  end)
end)
