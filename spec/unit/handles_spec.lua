--- Handles in general: what every method makes of wrong arguments, how handles print, what closing does.
local kv = require("kv")
local util = require("spec.support.util")

local store, all

before_each(function()
  store = assert(kv.open("local:"))
  all = {store = store, lock = assert(store:lock("door")), lease = assert(store:lease(10)),
    watch = assert(store:watch("key")), mirror = assert(store:mirror("")), txn = store:txn()}
end)
after_each(function() store:close() end)

local function methods(handle)
  local found = {}
  for name, value in pairs(debug.getmetatable(handle).__index) do
    if type(value) == "function" and name:sub(1, 1) ~= "_" then found[#found + 1] = name end
  end
  table.sort(found)
  return found
end

describe("every method", function()
  it("refuses to be called on something else, at the caller's line", function()
    local hot = {get = true, pair = true} -- of mirrors: a table read, which does not look at what it is called on
    for kind, handle in pairs(all) do
      for _, name in ipairs(methods(handle)) do
        if not (kind == "mirror" and hot[name]) then
          local method = handle[name]
          for _, other in ipairs{{}, "text", 12, io.stdout, all.store ~= handle and all.store or all.lock} do
            local function caller()
              local result = method(other, "key", "value")
              return result
            end
            local ok, problem = pcall(caller)
            assert.is_false(ok, kind .. ":" .. name)
            local line = debug.getinfo(caller, "S").linedefined + 1
            assert.is_truthy(tostring(problem):find("handles_spec.lua:" .. line .. ":", 1, true), tostring(problem))
            assert.is_truthy(tostring(problem):find(name, 1, true), tostring(problem))
          end
        end
      end
    end
    assert.is_false((pcall(all.mirror.get, {}, "key")))
    assert.is_false((pcall(all.mirror.get, "text", "key")))
  end)

  it("refuses arguments of a wrong type, at the caller's line", function()
    local lock, watch, mirror, lease, txn = all.lock, all.watch, all.mirror, all.lease, all.txn
    local first = debug.getinfo(1, "l").currentline + 2
    local calls = {
      function() store:get(1) end,
      function() store:get("key", "fast") end,
      function() store:get("key", {}, 1) end,
      function() store:get_many("key") end,
      function() store:get_many{1} end,
      function() store:get_many({}, {ttl = 1}) end,
      function() store:put("key", 1) end,
      function() store:put("key", "v", {}, 1) end,
      function() store:put("key", "v", {ttl = "1"}) end,
      function() store:put_many("x") end,
      function() store:put_many{"x"} end,
      function() store:put_many{key = 1} end,
      function() store:put_many({key = "v"}, 1) end,
      function() store:exists({}) end,
      function() store:delete() end,
      function() store:delete("key", 1) end,
      function() store:list() end,
      function() store:list("", {limit = "x"}) end,
      function() store:pages(1) end,
      function() store:delete_tree() end,
      function() store:atomic_put("key", "v", "x") end,
      function() store:atomic_put("key", 1, nil) end,
      function() store:atomic_put("key", "v", nil, {x = 1}) end,
      function() store:atomic_delete("key") end,
      function() store:atomic_delete("key", {}) end,
      function() store:update("key") end,
      function() store:update("key", print, {x = 1}) end,
      function() store:txn(1) end,
      function() store:lease() end,
      function() store:lease("x") end,
      function() store:lease(1, {x = 1}) end,
      function() store:watch() end,
      function() store:watch("key", {x = 1}) end,
      function() store:watch_tree({}) end,
      function() store:mirror(1) end,
      function() store:mirror("", {x = 1}) end,
      function() store:lock() end,
      function() store:lock("x", {ttl = {}}) end,
      function() store:with_lock("x", {}, "fn") end,
      function() store:with_lock(1, {}, print) end,
      function() store:election() end,
      function() store:semaphore({}) end,
      function() store:semaphore("pool") end,
      function() store:semaphore("pool", "3") end,
      function() store:ping("x") end,
      function() store:supports() end,
      function() store:sub() end,
      function() lock:acquire("x") end,
      function() lock:acquire(1, 2) end,
      function() lock:release({}) end,
      function() lock:wait_lost("x") end,
      function() lock:holder(true) end,
      function() lease:wait_lost("x") end,
      function() lease:revoke("x") end,
      function() watch:next("x") end,
      function() watch:next(1, 2) end,
      function() watch:wait_synced({}) end,
      function() mirror:wait_ready("x") end,
      function() mirror:on_change("x") end,
      function() mirror:get({}) end,
      function() txn:check("key") end,
      function() txn:check(1, 1) end,
      function() txn:check_absent() end,
      function() txn:guard({}) end,
      function() txn:guard(all.lease) end,
      function() txn:put("key", 1) end,
      function() txn:put("key", "v", {dir = true}) end,
      function() txn:delete({}) end,
      function() txn:commit(1) end,
      function() txn:commit({}, 1) end,
    }
    for i, fn in ipairs(calls) do
      local ok, problem = pcall(fn)
      assert.is_false(ok, "call " .. i)
      assert.is_truthy(tostring(problem):find("handles_spec.lua:" .. first + i - 1 .. ":", 1, true), tostring(problem))
    end
    assert.same({}, (store:list("")))
  end)

  it("answers invalid for a timeout that cannot be", function()
    for _, wrong in ipairs{-1, 0 / 0} do
      for _, call in ipairs{
        function() return store:get("key", {timeout = wrong}) end,
        function() return store:get_many({"key"}, {timeout = wrong}) end,
        function() return store:put_many({key = "v"}, {timeout = wrong}) end,
        function() return store:update("key", function() return "v" end, {timeout = wrong}) end,
        function() return store:ping(wrong) end,
        function() return all.lock:acquire(wrong) end,
        function() return all.lock:holder(wrong) end,
        function() return all.watch:next(wrong) end,
        function() return all.mirror:wait_ready(wrong) end,
        function() return all.lease:wait_lost(wrong) end,
        function() return all.txn:commit{timeout = wrong} end,
      } do
        local value, message, code = call()
        assert.is_nil(value)
        assert.is_string(message)
        assert.equal("invalid", code)
      end
    end
  end)

  it("takes no timeout for as long as it takes", function()
    assert(store:put("key", "v", {timeout = math.huge}))
    assert.equal("v", assert(store:get("key", {timeout = math.huge})).value)
    assert(all.lock:acquire(math.huge))
    assert(all.lock:release(math.huge))
    assert.is_truthy(all.watch:next(math.huge))
    assert(all.mirror:wait_ready(math.huge))
  end)
end)

describe("every handle", function()
  it("prints what it is", function()
    assert.is_truthy(tostring(store):find("^kv%.store %(local:.*%)$"))
    assert.equal('kv.lock "door" (free)', tostring(all.lock))
    assert.equal("kv.lease (10 s, alive)", tostring(all.lease))
    assert.equal('kv.watch "key" (key)', tostring(all.watch))
    assert.is_truthy(tostring(all.mirror):find('^kv%.mirror ""'))
    assert.equal("kv.txn (0 checks, 0 puts)", tostring(all.txn))
    for kind, handle in pairs(all) do
      assert.equal("kv." .. kind, getmetatable(handle))
      assert.is_false((pcall(setmetatable, handle, {})))
    end
    store:close()
    for _, handle in pairs(all) do assert.is_string(tostring(handle)) end
  end)

  it("can be closed more than once, and after its store", function()
    for _ = 1, 2 do
      assert.is_true(all.watch:close())
      assert.is_true(all.mirror:close())
      assert.is_true(all.lease:close())
    end
    store:close()
    for _ = 1, 2 do
      assert.is_true(all.watch:close())
      assert.is_true(all.mirror:close())
      assert.is_true(all.lease:close())
      assert.is_true(store:close())
    end
  end)

  it("answers after its store was closed", function()
    store:close()
    assert.is_false(all.lock:held())
    assert.is_string(all.lock:state())
    assert.is_false(all.lease:alive())
    assert.is_boolean(all.watch:synced())
    assert.is_false(all.watch:connected())
    assert.is_true(all.watch:revision() >= 0)
    assert.is_true(all.mirror:age() >= 0)
    assert.equal(0, all.mirror:size())
    for _, call in ipairs{
      function() return all.lock:acquire(1) end,
      function() return all.lock:holder() end,
      function() return all.watch:next(5) end,
      function() return all.txn:put("key", "v"):commit() end,
      function() return store:txn():put("key", "v"):commit() end,
      function() return store:lock("door") end,
      function() return store:lease(10) end,
      function() return store:sub("x") end,
      function() return store:put_many{} end,
      function() return store:pages("")() end,
    } do
      local ok, value, message, code = pcall(call)
      if ok then
        assert.is_nil(value)
        assert.equal("closed", code, message)
      else
        assert.is_truthy(tostring(value):find("closed", 1, true), tostring(value)) -- of pages
      end
    end
    assert.is_table(store:info())
    assert.is_table(store:stats())
    assert.is_boolean(store:supports("txn"))
  end)

  it("keeps a store open that the program forgot", function()
    local url = "local:" .. util.folder() .. "/store"
    local function forget(make)
      local handle = make(assert(kv.open(url)))
      collectgarbage()
      collectgarbage()
      return handle
    end
    local watch = forget(function(own) return (assert(own:watch("key"))) end)
    local lock = forget(function(own) return assert(own:lock("door")) end)
    local lease = forget(function(own) return assert(own:lease(10)) end)
    local txn = forget(function(own) return own:txn():put("key", "v") end)
    local mirror = forget(function(own) return assert(own:mirror("")) end)
    assert(txn:commit())
    assert.equal("v", assert(watch:next(5)).value)
    assert(lock:acquire(5))
    collectgarbage()
    assert.is_true(lock:held())
    assert.is_true(lease:alive())
    assert(mirror:wait_ready(5))
    assert.equal("v", mirror:get("key"))
    assert(lock:release())
  end)

  it("is closed at the end of a 5.4 block", function()
    if _VERSION ~= "Lua 5.4" then return end
    local chunk = assert((loadstring or load)([[
      local store = ...
      local lock, lease, watch, mirror
      do
        local a <close> = assert(assert(store:lock("closing")):acquire(5))
        local b <close> = assert(store:lease(10))
        local c <close> = assert(store:watch("key"))
        local d <close> = assert(store:mirror(""))
        lock, lease, watch, mirror = a, b, c, d
      end
      return lock, lease, watch, mirror
    ]]))
    for _, run in ipairs{function(fn, ...) return fn(...) end, kv.run} do
      local lock, lease, watch, mirror = run(chunk, store)
      assert.equal("free", lock:state())
      assert.is_false(lease:alive())
      local event, why = watch:next(1)
      assert.is_true(event == nil and why == nil, why)
      local ready, _, code = mirror:wait_ready(0)
      assert.is_truthy(ready or code == "closed")
    end
    -- and the error that ends a block is not covered up
    chunk = assert((loadstring or load)([[
      local store = ...
      local lock <close> = assert(assert(store:lock("closing")):acquire(5))
      error("mine", 0)
    ]]))
    local ok, problem = pcall(chunk, store)
    assert.is_false(ok)
    assert.equal("mine", problem)
    assert(assert(store:lock("closing")):acquire(5)):release()
  end)
end)

describe("what is not built yet", function()
  it("is unsupported, politely", function()
    for _, call in ipairs{
      function() return store:lock("door", {interop = "etcd"}) end,
    } do
      local value, message, code = call()
      assert.is_nil(value)
      assert.is_string(message)
      assert.equal("unsupported", code)
    end
  end)
end)

describe("locks of other programs", function()
  it("are none on this backend, and the message says so", function()
    local here = assert(kv.open("local:"))
    assert.is_false(here:supports("interop"))
    assert.is_false(here:supports("interop_order"))
    for _, kind in ipairs{"etcd", "consul", "kazoo", "curator"} do
      local value, message, code = here:lock("door", {interop = kind})
      assert.is_nil(value)
      assert.equal("unsupported", code)
      assert.is_truthy(message:find('"door"', 1, true) and message:find(kind, 1, true), message)
      assert.is_truthy(message:find("no locks that other programs know", 1, true), message)
    end
    here:close()
    local value, message, code = here:lock("door", {interop = "etcd"})
    assert.is_nil(value)
    assert.equal("closed", code, message)
  end)
end)
