--- The binding: whatever it is called with, it answers or raises, and its handles survive the collector in any order.
local core = require("kv.core")
local kv = require("kv")

local unpack = table.unpack or unpack -- luacheck: ignore 143

local functions = {}
for name, value in pairs(core) do
  if type(value) == "function" then functions[#functions + 1] = name end
end
table.sort(functions)

-- Of every type one that is none of ours.
local function odd_values()
  return {false, true, 0, -1, 1.5, 0 / 0, math.huge, 2 ^ 60, "", "text", ("x"):rep(1000), {}, print, io.stdout,
    coroutine.create(function() end)}
end

local function handles()
  local store = assert(kv.open("local:"))
  local watch, lock = assert(store:watch("key")), assert(store:lock("door"))
  local lease, txn = assert(store:lease(10)), store:txn()
  local state, page = core.list(store._store, "", 0, -1, "", 0, 0)
  assert(state == false)
  return store, {store._store, watch._watch, lock._lock, lease._lease, txn._txn, page}
end

-- These would wait, end something that others need, or take an address on trust.
local left_out = {wait = true, register = true, renew = true}

-- The core once more, as another copy of the module would have it.
local function another_core()
  for template in package.cpath:gmatch("[^;]+") do
    local open = package.loadlib((template:gsub("%?", "kv/core")), "luaopen_kv_core")
    if open then return open() end
  end
  error("the core is nowhere")
end

describe("another copy of the core in the same state", function()
  it("has handles of its own, and takes none of ours", function()
    local another, store = another_core(), assert(kv.open("local:"))
    local lock = assert(store:lock("door"))
    assert.equal("free", core.lock_state(lock._lock))
    local ok, message = pcall(another.lock_state, lock._lock)
    assert.is_false(ok)
    assert.is_truthy(message:find("is no lock handle", 1, true), message)
    store:close()
  end)
end)

describe("every function of the core", function()
  -- What was taken for the folder of a socket was made.
  teardown(function()
    for _, value in ipairs(odd_values()) do
      if type(value) == "number" or value == "text" then os.remove(tostring(value)) end
    end
  end)

  it("takes odd values without harm", function()
    for _, name in ipairs(functions) do
      if not left_out[name] then
        pcall(core[name])
        for _, value in ipairs(odd_values()) do
          pcall(core[name], value)
          pcall(core[name], value, value, value, value, value, value, value, value)
        end
      end
    end
  end)

  it("takes the wrong handle without harm", function()
    local store, all = handles()
    for _, name in ipairs(functions) do
      if not left_out[name] and name ~= "close" then
        for _, handle in ipairs(all) do
          pcall(core[name], handle)
          for _, value in ipairs(odd_values()) do
            pcall(core[name], handle, value, value, value, value, value, value)
            pcall(core[name], handle, handle, value, handle)
          end
        end
      end
    end
    store:close()
  end)

  it("takes too many arguments without harm", function()
    local store, all = handles()
    local many = {}
    for i = 1, 200 do many[i] = "argument " .. i end
    for _, name in ipairs(functions) do
      if not left_out[name] and name ~= "close" then
        for _, handle in ipairs(all) do pcall(core[name], handle, unpack(many)) end
      end
    end
    store:close()
  end)

  it("says which handle it wanted", function()
    local store, all = handles()
    local wanted = {get = "store", watch_next = "watch", lock_held = "lock", lease_alive = "lease", txn_check = "txn",
      page_append = "page"}
    for name, kind in pairs(wanted) do
      for _, value in ipairs{1, "x", {}, io.stdout} do
        local ok, problem = pcall(core[name], value, {}, 1)
        assert.is_false(ok, name)
        assert.is_truthy(problem:find("no " .. kind .. " handle", 1, true), problem)
      end
    end
    assert.is_false((pcall(core.get, all[2], "key")))
    assert.is_false((pcall(core.watch_next, all[1])))
    store:close()
  end)

  it("hides the metatables of handles", function()
    local store, all = handles()
    for _, handle in ipairs(all) do assert.is_string(getmetatable(handle)) end
    store:close()
  end)
end)

describe("core.register", function()
  it("takes nothing but the address of a driver", function()
    for _, value in ipairs{1, "x", {}, io.stdout, true} do assert.is_false((pcall(core.register, value))) end
    assert.is_false((pcall(core.register)))
  end)
end)

describe("core.open", function()
  it("takes nothing but texts as options", function()
    for _, bad in ipairs{{"x"}, {timeout = 3}, {[1.5] = "x"}, {prefix = {}}, {[{}] = "x"}} do
      local store, _, code = core.open("local:", bad)
      assert.is_nil(store)
      assert.equal("invalid", code)
    end
  end)
end)

describe("canonical", function()
  it("is that of the core", function()
    assert.equal("a/b", core.canonical("//a///b/", false))
    assert.equal("", core.canonical("/", true))
    local key, message, code = core.canonical("/", false)
    assert.is_nil(key)
    assert.is_string(message)
    assert.equal("invalid", code)
    assert.is_nil((core.canonical("a/../b", true)))
  end)
end)

describe("handles", function()
  -- Everything that a program does, with everything collected as early as can be.
  local function program()
    local store = assert(kv.open("local:?sync=none"))
    for i = 1, 20 do
      local pair = assert(store:put("key/" .. i, ("v"):rep(i * 100)))
      assert.equal(("v"):rep(i * 100), assert(store:get("key/" .. i)).value)
      assert(store:atomic_put("key/" .. i, "w", pair))
    end
    assert.equal(20, #assert(store:list("key")))
    for page in store:pages("key", {limit = 7}) do assert.is_true(#page <= 7) end
    local watch = assert(store:watch_tree("key"))
    for _ = 1, 20 do assert(watch:next(5)) end
    assert(store:with_lock("door", nil, function(lock)
      return store:txn():guard(lock):check_absent("none"):put("guarded", "x"):delete("key/1"):commit()
    end))
    local lease = assert(store:lease(5))
    assert(store:put("leased", "x", {lease = lease}))
    local mirror = assert(store:mirror(""))
    assert(mirror:wait_ready(5))
    assert.equal("x", mirror:get("guarded"))
    kv.run(function()
      local tasks = {}
      for i = 1, 20 do
        tasks[i] = kv.spawn(function()
          assert(store:put("task/" .. i, "v"))
          return assert(store:get_many{"task/" .. i, "key/2"})["task/" .. i].value
        end)
      end
      for _, task in ipairs(tasks) do assert.equal("v", (task:join())) end
    end)
    assert.equal("kv.store", tostring(store:sub("key")):match("^[%w.]+"))
    store:close()
  end

  local function with_collector(setup, restore)
    setup()
    local ok, problem = pcall(program)
    restore()
    assert.is_true(ok, problem)
  end

  it("live under an eager collector", function()
    local pause, step
    with_collector(function()
      pause, step = collectgarbage("setpause", 0), collectgarbage("setstepmul", 10000)
    end, function()
      collectgarbage("setpause", pause)
      collectgarbage("setstepmul", step)
    end)
  end)

  it("live under a full collection at every step", function()
    with_collector(function()
      debug.sethook(function() collectgarbage() end, "", 400)
    end, function()
      debug.sethook()
    end)
  end)

  it("live under the generational collector", function()
    if _VERSION ~= "Lua 5.4" then return end
    with_collector(function() collectgarbage("generational") end, function() collectgarbage("incremental") end)
  end)

  it("may be collected in any order", function()
    for _ = 1, 10 do
      local _, all = handles()
      math.randomseed(7)
      while #all > 0 do
        table.remove(all, math.random(#all))
        collectgarbage()
      end
    end
  end)

  it("that were forgotten while their requests are in flight do no harm", function()
    local written = 0
    kv.run(function()
      for i = 1, 50 do
        kv.spawn(function()
          -- nothing but the waiting task knows the store
          assert(assert(kv.open("local:")):put("key", tostring(i)))
          written = written + 1
        end)
      end
      collectgarbage()
      kv.sleep(0)
      collectgarbage()
    end)
    assert.equal(50, written)
  end)
end)
