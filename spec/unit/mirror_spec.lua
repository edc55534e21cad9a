--- Mirrors: callbacks, what is left after the end, and the look for news in compiled loops.
local kv = require("kv")
local native = require("spec.native")
local util = require("spec.support.util")

local store

before_each(function() store = assert(kv.open("local:?sync=none")) end)
after_each(function() store:close() end)

local function ready(dir)
  local mirror = assert(store:mirror(dir or ""))
  assert(mirror:wait_ready(5))
  return mirror
end

describe("on_change", function()
  it("sees each change after the mirror has it", function()
    local mirror, seen = ready(), {}
    assert.equal(mirror, mirror:on_change(function(event)
      seen[#seen + 1] = event.type .. " " .. event.key .. " " .. tostring(mirror:get(event.key))
    end))
    assert(store:put("a", "1"))
    assert(store:put("a", "2"))
    assert(store:delete("a"))
    util.eventually(function()
      mirror:size()
      return #seen == 3
    end, "all was told")
    assert.same({"put a 1", "put a 2", "delete a nil"}, seen)
  end)

  it("may use the store and the mirror", function()
    local mirror = ready()
    mirror:on_change(function(event)
      if event.key == "source" then assert(store:put("copy", event.value)) end
    end)
    assert(store:put("source", "v"))
    util.eventually(function() return mirror:get("copy") == "v" end, "the copy arrived")
    kv.run(function()
      assert(store:put("source", "w"))
      local deadline = native.now() + 5
      while mirror:get("copy") ~= "w" and native.now() < deadline do kv.sleep(0.002) end
      assert.equal("w", mirror:get("copy"))
    end)
  end)

  it("that raises is told by the next call, and spoils nothing", function()
    local mirror = ready()
    mirror:on_change(function(event) error("bad " .. event.key) end)
    local other = 0
    mirror:on_change(function() other = other + 1 end)
    assert(store:put("a", "1"))
    local problem
    util.eventually(function()
      local ok, raised = pcall(store.exists, store, "a")
      problem = raised
      return not ok
    end, "it was raised")
    assert.is_truthy(problem:find("bad a", 1, true))
    assert.is_truthy(problem:find("traceback", 1, true))
    assert.equal("1", mirror:get("a"))
    assert.equal(1, other)
    assert.is_true(store:exists("a"))
  end)

  it("that raises in kv.run is raised by it", function()
    local mirror = ready()
    mirror:on_change(function() error("bad news") end)
    local ok, problem = pcall(kv.run, function()
      assert(store:put("a", "1"))
      kv.sleep(30)
    end)
    assert.is_false(ok)
    assert.is_truthy(tostring(problem):find("bad news", 1, true))
  end)

  it("keeps the mirror, until it is closed", function()
    local seen, forgotten = 0, setmetatable({}, {__mode = "v"})
    do
      local mirror = ready()
      mirror:on_change(function() seen = seen + 1 end)
      forgotten[1] = mirror
    end
    collectgarbage()
    collectgarbage()
    assert(store:put("a", "1"))
    util.eventually(function()
      store:exists("a")
      return seen == 1
    end, "it was told though nobody has the mirror")
    forgotten[1]:close()
    collectgarbage()
    collectgarbage()
    assert.is_nil(forgotten[1])
  end)

  it("without one a forgotten mirror is collected", function()
    local forgotten = setmetatable({ready()}, {__mode = "v"})
    collectgarbage()
    collectgarbage()
    assert.is_nil(forgotten[1])
  end)
end)

describe("a mirror", function()
  it("keeps what it had after its end, and grows old", function()
    assert(store:put("a", "1"))
    local mirror = ready()
    local revision = mirror:revision()
    mirror:close()
    assert(store:put("a", "2"))
    native.sleep(0.02)
    assert.equal("1", mirror:get("a"))
    assert.equal(revision, mirror:revision())
    assert.is_true(mirror:age() >= 0.02 and mirror:age() < 10)
    local left = ready()
    store:close()
    assert.equal("2", left:get("a"))
    assert.is_true(left:ready())
  end)

  it("that never got its state says why", function()
    local away = assert(kv.open("etcd://127.0.0.1:1", {timeout = 0.2}))
    local mirror = assert(away:mirror(""))
    assert.equal("timeout", (select(3, mirror:wait_ready(0.05))))
    assert.is_false(mirror:ready())
    assert.equal(math.huge, mirror:age())
    assert.equal(0, mirror:revision())
    away:close()
    assert.equal("closed", (select(3, mirror:wait_ready(5))))
  end)

  it("goes through what there was at the call, whatever happens meanwhile", function()
    for i = 1, 20 do assert(store:put("key/" .. i, "v")) end
    local mirror, count = ready(), 0
    for key in mirror:pairs() do
      count = count + 1
      assert(store:delete(key))
      mirror:size()
    end
    assert.equal(20, count)
    util.eventually(function() return mirror:size() == 0 end, "it followed")
  end)

  it("counts keys, not changes", function()
    local mirror = ready()
    for _ = 1, 3 do assert(store:put("a", "v")) end
    assert(store:put("b", "v"))
    util.eventually(function() return mirror:get("b") end, "all is there")
    assert.equal(2, mirror:size())
    assert(store:delete("a"))
    util.eventually(function() return mirror:size() == 1 end, "one is gone")
    assert(store:put("a", "again"))
    util.eventually(function() return mirror:size() == 2 end, "it is back")
  end)

  -- A loop that does nothing but read is compiled by LuaJIT; the look for news must not be moved out of it.
  it("advances in a loop that does nothing but read", function()
    local folder = util.folder()
    local url = "local:" .. folder .. "/store"
    local own = assert(kv.open(url))
    local mirror = assert(own:mirror(""))
    assert(mirror:wait_ready(5))
    local child = util.lua("spec/support/child.lua", url, "")
    assert.equal("ready", (child:line(10)))
    local rounds = 0
    local deadline = native.now() + 60
    while not mirror:get("key") do
      rounds = rounds + 1
      if rounds == 100000 then assert(child:write("put\tkey\tv\n")) end -- it is compiled long since
      if rounds % 1000000 == 0 and native.now() > deadline then break end
    end
    assert.equal("v", mirror:get("key"))
    child:kill("KILL")
    own:close()
  end)
end)
