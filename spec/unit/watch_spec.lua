--- Watches: what the Lua side adds to the core's.
local kv = require("kv")
local util = require("spec.support.util")
local native = require("spec.native")

local PUC_51 = _VERSION == "Lua 5.1" and not rawget(_G, "jit")

local store

before_each(function() store = assert(kv.open("local:?sync=none")) end)
after_each(function() store:close() end)

describe("wait_synced", function()
  it("brings a large state that nobody reads, and next gives it afterwards", function()
    local value, values = ("v"):rep(100000), {}
    for i = 1, 150 do values[("dir/%03d"):format(i)] = value end -- more than the queue of a watch holds unread
    assert(store:put_many(values, {timeout = 60}))
    local watch = assert(store:watch_tree("dir"))
    assert.is_true((assert(watch:wait_synced(30))))
    assert.equal(0, watch:revision()) -- nothing was taken yet
    for i = 1, 150 do
      local event = assert(watch:next(10))
      assert.equal(("dir/%03d"):format(i), event.key)
      assert.is_true(event.initial)
      assert.is_true(event.value == value)
    end
    assert.is_true(watch:revision() > 0)
    local pair = assert(store:put("dir/new", "v"))
    assert.equal("dir/new", assert(watch:next(5)).key)
    -- The event may be taken before the rest of its batch has been told.
    util.eventually(function() return watch:revision() >= pair.revision end, "all up to it is taken")
  end)

  it("gives up in time, and after close", function()
    local away = assert(kv.open("etcd://127.0.0.1:1", {timeout = 0.2}))
    local watch = assert(away:watch("key"))
    assert.equal("timeout", (select(3, watch:wait_synced(0.05))))
    assert.is_false(watch:synced())
    watch:close()
    assert.equal("closed", (select(3, watch:wait_synced(5))))
    watch = assert(away:watch("key"))
    away:close()
    assert.equal("closed", (select(3, watch:wait_synced(5))))
  end)
end)

describe("next", function()
  it("serves two tasks that read one watch, each event once", function()
    local watch = assert(store:watch("key"))
    local seen = {}
    kv.run(function()
      local readers = {}
      for i = 1, 2 do
        readers[i] = kv.spawn(function()
          while true do
            local event = watch:next()
            if not event then return end
            seen[#seen + 1] = tonumber(event.value)
          end
        end)
      end
      assert(watch:wait_synced(5))
      for i = 1, 50 do
        assert(store:put("key", tostring(i)))
        if i % 10 == 0 then kv.sleep(0.002) end
      end
      local deadline = native.now() + 10
      while #seen < 50 and native.now() < deadline do kv.sleep(0.002) end
      watch:close()
      for _, reader in ipairs(readers) do reader:join(5) end
    end)
    table.sort(seen)
    assert.equal(50, #seen)
    for i = 1, 50 do assert.equal(i, seen[i]) end
  end)

  it("returns nothing but nil after close", function()
    local watch = assert(store:watch("key"))
    watch:close()
    assert.equal(1, select("#", (watch:next())))
    assert.is_nil((watch:next(0)))
  end)

  it("tells a terminal end again and again", function()
    local watch = assert(store:watch("key"))
    store:close()
    for _ = 1, 3 do
      local event, message, code = watch:next(5)
      assert.is_nil(event)
      assert.is_string(message)
      assert.equal("closed", code)
    end
  end)
end)

describe("as an iterator", function()
  it("raises a terminal end, naming the line of the loop", function()
    local watch = assert(store:watch("key"))
    store:close()
    local ok, problem = pcall(function()
      for _ in watch do return end -- luacheck: ignore 512
    end)
    assert.is_false(ok)
    assert.is_truthy(tostring(problem):find("watch_spec.lua", 1, true), problem)
    assert.is_truthy(tostring(problem):find("closed", 1, true), problem)
  end)

  it("says why it cannot wait in a task of 5.1", function()
    if not PUC_51 then return end
    assert(store:put("key", "v"))
    kv.run(function()
      local watch = assert(store:watch("key"))
      local ok, problem = kv.pcall(function()
        for _ in watch do return end -- luacheck: ignore 512
      end)
      assert.is_false(ok)
      assert.is_truthy(problem:find("watch:next", 1, true), problem)
      ok, problem = kv.pcall(function()
        for _ in assert(store:pages("")) do return end -- luacheck: ignore 512
      end)
      assert.is_false(ok)
      assert.is_truthy(problem:find("while loop", 1, true), problem)
      -- called directly it can
      assert.equal(1, #assert(store:pages(""))())
    end)
  end)
end)

describe("a watch", function()
  it("gives what options ask for", function()
    assert(store:put("key", "1"))
    local names = assert(store:watch("key", {values = false}))
    local event = assert(names:next(5))
    assert.is_nil(event.value)
    assert.is_true(event.revision > 0 and event.created > 0)
    local before = assert(store:watch("key", {prev = true, initial = false}))
    assert(before:wait_synced(5))
    assert(store:put("key", "2"))
    event = assert(before:next(5))
    assert.equal("1", event.prev)
    assert(store:delete("key"))
    event = assert(before:next(5))
    assert.equal("delete", event.type)
    assert.equal("2", event.prev)
  end)

  it("that was closed lets go of its memory at once", function()
    local watch = assert(store:watch_tree(""))
    assert(watch:wait_synced(5))
    assert.equal(1, store:stats().watches)
    watch:close()
    local deadline = native.now() + 5
    while store:stats().watches > 0 and native.now() < deadline do native.sleep(0.002) end
    assert.equal(0, store:stats().watches)
  end)
end)
