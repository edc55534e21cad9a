--- Failures: their shape, their words, and the portable mode that makes every backend refuse the same.
local suite = require("spec.support.suite")

local plain_assert = suite.plain_assert -- not luassert's, which raises tables

describe("errors", function()
  suite.both("name the operation, the key and the backend", function(t)
    local pair = assert(t.store:put("some/key", "v"))
    local message = t.fails("exists", t.store:atomic_put("some/key", "v", nil))
    assert.is_truthy(message:find("put", 1, true), message)
    assert.is_truthy(message:find("some/key", 1, true), message)
    assert.is_truthy(message:find((t.backend:gsub("%d$", "")), 1, true), message)
    message = t.fails("modified", t.store:atomic_delete("some/key", pair.revision + 1))
    assert.is_truthy(message:find("delete", 1, true), message)
    assert.is_truthy(message:find("some/key", 1, true), message)
    message = t.fails("invalid", t.store:get("a/../b"))
    assert.is_truthy(message:find("..", 1, true), message)
  end)

  suite.both("print well under assert", function(t)
    if t.in_task then
      local task = t.kv.spawn(function() plain_assert(t.store:get("a/./b")) end)
      local ok, raised = t.kv.pcall(task.join, task)
      assert.is_false(ok)
      assert.is_truthy(tostring(raised):find("get", 1, true))
    else
      local raised = t.raises(function() plain_assert(t.store:get("a/./b")) end)
      assert.equal("string", type(raised))
      assert.is_truthy(raised:find("get", 1, true), raised)
    end
  end)

  suite.case("misuse raises with the caller's line", function(t)
    local function misuse() t.store:get({}) end
    local line = debug.getinfo(misuse, "S").linedefined
    local ok, raised = pcall(misuse)
    assert.is_false(ok)
    assert.is_truthy(tostring(raised):find("errors_spec.lua:" .. line, 1, true), tostring(raised))
    local function unknown() t.store:put("key", "value", {tttl = 3}) end
    line = debug.getinfo(unknown, "S").linedefined
    ok, raised = pcall(unknown)
    assert.is_false(ok)
    assert.is_truthy(tostring(raised):find("errors_spec.lua:" .. line, 1, true), tostring(raised))
    assert.is_truthy(tostring(raised):find("tttl", 1, true), tostring(raised))
  end)

  suite.case("every call refuses options that it does not know", function(t)
    local bad = {no_such_option = 1}
    t.raises(t.store.get, t.store, "key", bad)
    t.raises(t.store.put, t.store, "key", "v", bad)
    t.raises(t.store.put_many, t.store, {key = "v"}, bad)
    t.raises(t.store.atomic_put, t.store, "key", "v", nil, bad)
    t.raises(t.store.update, t.store, "key", function() return "v" end, bad)
    t.raises(t.store.list, t.store, "", bad)
    t.raises(t.store.pages, t.store, "", bad)
    t.raises(t.store.watch, t.store, "key", bad)
    t.raises(t.store.watch_tree, t.store, "", bad)
    t.raises(t.store.mirror, t.store, "", bad)
    t.raises(t.store.lock, t.store, "door", bad)
    assert.same({}, (t.store:list("")))
  end)

  suite.case("a method called without its store raises", function(t)
    t.raises(t.store.get, "key")
    t.raises(t.store.get, {}, "key")
    t.raises(t.store.close)
    t.raises(t.store.put, t.kv, "key", "v")
  end)

  suite.case("a handle's metatable is not to be had", function(t)
    local meta = getmetatable(t.store)
    if type(meta) == "table" and meta.__gc then
      -- calling the collector's function by hand must do no harm
      pcall(meta.__gc, t.store)
      pcall(meta.__gc, t.store)
      pcall(meta.__gc, {})
      pcall(t.store.get, t.store, "key")
    end
    local fresh = assert(t:open())
    assert(fresh:put("key", "v"))
  end)

  suite.both("a deadline that has passed is timeout or done, never silence", function(t)
    local start = t.now()
    local value, message, code = t.store:get("key", {timeout = 0.000001})
    assert.is_true(value == nil)
    if code then assert.equal("timeout", code, message) end
    assert.is_true(t.now() - start < 10)
    local pair, text, why = t.store:put("key", "v", {timeout = 0.000001})
    if not pair then assert.is_truthy(why == "timeout" or why == "unknown", text) end
    if why == "timeout" then
      t:sleep(0.2)
      assert.is_false(t.store:exists("key"))
    end
  end)
end)

describe("portable mode", function()
  suite.both("refuses values on directories and below keys", function(t)
    local store = assert(t:open{portable = true})
    assert(store:put("dir/key", "v"))
    t.fails("is_dir", store:put("dir", "v"))
    t.fails("not_dir", store:put("dir/key/below", "v"))
    assert.equal("dir/key", t.keys(assert(t.store:list(""))))
    assert(store:put("dir/key", "w"))
    assert(store:delete("dir/key"))
    assert(store:put("dir", "now a key"))
  end)

  suite.both("refuses the same in transactions, by what is there before", function(t)
    local store = assert(t:open{portable = true})
    assert(store:put("dir/key", "v"))
    t.fails("is_dir", store:txn():put("other", "v"):put("dir", "v"):commit())
    t.fails("not_dir", store:txn():put("other", "v"):put("dir/key/below", "v"):commit())
    t.fails("is_dir", store:txn():delete("dir/key"):put("dir", "v"):commit())
    t.fails("not_dir", store:txn():put("new", "v"):put("new/below", "v"):commit())
    t.fails("is_dir", store:txn():put("new/below", "v"):put("new", "v"):commit())
    t.fails("too_large", store:txn():put("other", ("x"):rep(512 * 1024 + 1)):commit())
    assert.equal("dir/key", t.keys(assert(t.store:list(""))))
    assert(store:txn():put("dir/key", "w"):put("dir/other", "v"):delete("new"):commit())
  end, "txn")

  suite.both("refuses list and watch_tree of a key", function(t)
    local store = assert(t:open{portable = true})
    assert(store:put("key", "v"))
    t.fails("not_dir", store:list("key"))
    local watch, message, code = store:watch_tree("key")
    if watch then
      t:own(watch)
      local event
      event, message, code = watch:next(5)
      assert.is_nil(event)
    end
    assert.equal("not_dir", code, message)
    assert.same({}, (store:list("nothing")))
  end)

  suite.both("refuses values over 512 KB", function(t)
    local store = assert(t:open{portable = true})
    assert(store:put("key", ("x"):rep(512 * 1024)))
    t.fails("too_large", store:put("key", ("x"):rep(512 * 1024 + 1)))
    assert.equal(512 * 1024, #assert(store:get("key")).value)
  end)

  suite.both("holds in conditional and in many writes too", function(t)
    local store = assert(t:open{portable = true})
    assert(store:put("dir/key", "v"))
    t.fails("is_dir", store:atomic_put("dir", "v", nil))
    t.fails("not_dir", store:atomic_put("dir/key/below", "v", nil))
    t.fails("is_dir", store:put_many{dir = "v"})
    t.fails("not_dir", store:update("dir/key/below", function() return "v" end))
    t.fails("not_dir", store:put("dir/key/below", "v", {ttl = 10}))
    assert.equal("dir/key", t.keys(assert(t.store:list(""))))
  end)

  suite.both("refuses to mirror a key", function(t)
    local store = assert(t:open{portable = true})
    assert(store:put("key", "v"))
    local mirror = t:own(assert(store:mirror("key")))
    t.fails("not_dir", mirror:wait_ready(10))
    mirror = t:own(assert(store:mirror("nothing/yet")))
    assert(mirror:wait_ready(10))
    assert(store:put("nothing/yet/key", "v"))
    t:eventually(function() return mirror:get("nothing/yet/key") == "v" end, "it follows")
  end)
end)
