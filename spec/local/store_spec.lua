--- What only the embedded store can show, from Lua: its folder, its limits, its history, processes that are killed.
local kv = require("kv")
local native = require("spec.native")
local util = require("spec.support.util")

local BUILD = os.getenv("KV_BUILD") or "build"

local store

local function open(url)
  store = assert(kv.open(url))
  return store
end

local function fails(code, value, message, actual)
  assert.is_nil(value)
  assert.equal(code, actual, message)
  return message
end

after_each(function()
  if store then store:close() end
  store = nil
  util.remove_folders()
end)

describe("a folder", function()
  it("is made, kept, and opened again", function()
    local url = "local:" .. util.folder() .. "/a/b"
    assert(open(url):put("key", "value"))
    store:close()
    assert.equal("value", assert(open(url):get("key")).value)
    local info = store:info()
    assert.equal("local", info.backend)
    assert.equal(url, "local:" .. info.endpoint)
    assert.is_truthy(info.server_version:find("^LMDB "))
  end)

  it("that cannot be used is told with its path", function()
    local path = util.folder() .. "/file"
    util.write(path, "x")
    open("local:" .. path .. "/below")
    local message = fails("failed", store:put("key", "value"))
    assert.is_truthy(message:find(path, 1, true), message)
    assert.is_truthy(message:find("Not a directory", 1, true), message)
    fails("failed", store:get("key"))
    fails("failed", store:list(""))
    fails("failed", store:watch("key"):next(10))
    fails("failed", store:lock("l"):acquire(10))
  end)

  it("is private without a path", function()
    local other = assert(kv.open("local:"))
    assert(open("local:"):put("key", "value"))
    assert.is_nil((other:get("key")))
    other:close()
  end)
end)

describe("limits", function()
  it("a full store refuses, and takes again what fits after deletes", function()
    open("local:" .. util.folder() .. "/s?map_size=1048576&sync=none")
    local value, count = ("x"):rep(3000), 0
    local message, code
    repeat
      local pair
      count = count + 1
      pair, message, code = store:put(("d/%d"):format(count), value)
    until not pair
    assert.equal("no_space", code)
    assert.is_truthy(message:find("map_size", 1, true), message)
    assert.is_true(count > 50)
    for i = 1, count / 2 do assert.is_true(assert(store:delete(("d/%d"):format(i)))) end
    for i = 1, count / 4 do assert(store:put(("e/%d"):format(i), value)) end
  end)

  it("a value has at most 64 MB", function()
    fails("too_large", open("local:"):put("key", ("x"):rep(64 * 1024 * 1024 + 1)))
  end)
end)

describe("history", function()
  it("lets a watch resume after the store was closed", function()
    local url = "local:" .. util.folder() .. "/s"
    local first = assert(open(url):put("key", "1"))
    assert(store:delete("key"))
    assert(store:put("key", "2"))
    store:close()
    local watch = assert(open(url):watch("key", {after = first.revision}))
    assert.equal("delete", assert(watch:next(10)).type)
    assert.equal("2", assert(watch:next(10)).value)
    watch:close()
  end)

  it("is bounded", function()
    open("local:" .. util.folder() .. "/s?map_size=2097152&sync=none")
    for _ = 1, 1000 do assert(store:put("key", ("x"):rep(2000))) end
    fails("compacted", store:watch("key", {after = 1}):next(10))
  end)
end)

-- Writes keys one after the other, and tells of each that was acknowledged.
local WRITER = [[
local kv = require("kv")
local store = assert(kv.open(arg[1]))
for i = tonumber(arg[2]), math.huge do
  assert(store:put(("k/%d"):format(i), tostring(i)))
  io.write(i, "\n")
  io.flush()
end
]]

describe("a process that is killed while it writes", function()
  it("has lost nothing that was acknowledged", function()
    local url, path = "local:" .. util.folder() .. "/s", util.folder() .. "/writer.lua"
    util.write(path, WRITER)
    open(url)
    local last = 0
    for round = 1, 5 do
      local writer = util.lua(path, url, tostring(last + 1))
      for _ = 1, 5 + round * 3 do last = tonumber(assert(writer:line(20))) end
      writer:kill()
      writer:wait()
      repeat -- what it told before it died
        local line = writer:line(5)
        last = tonumber(line) or last
      until not line
      assert(store:put("mine", tostring(round))) -- goes on at once
      for i = 1, last do assert.equal(tostring(i), assert(store:get(("k/%d"):format(i))).value) end
    end
  end)
end)

-- Tasks that each write 32 keys, one after the other.
local WRITERS = [[
local kv = require("kv")
local store = assert(kv.open(arg[1]))
kv.run(function()
  for task = 1, tonumber(arg[2]) do
    kv.spawn(function()
      for i = 1, 32 do assert(store:put(("t/%d/%d"):format(task, i), "v", {timeout = 60})) end
    end)
  end
end)
store:close()
print("done")
]]

describe("many tasks", function()
  local function syncs(tasks)
    local folder = util.folder()
    util.write(folder .. "/writers.lua", WRITERS)
    local process = assert(native.spawn{util.interpreter(), folder .. "/writers.lua", "local:" .. folder .. "/s",
      tostring(tasks), pipe = true, env = {("LD_PRELOAD=%s/support/slow_disk.so"):format(BUILD),
      "KV_COUNT_SYNCS=" .. folder .. "/syncs"}})
    assert.equal("done", (process:line(120)))
    process:wait(20)
    return #util.read(folder .. "/syncs")
  end

  it("share commits", function()
    local alone, together = syncs(1), syncs(32)
    assert.is_true(alone >= 32, "each put is on the disk when it is answered")
    assert.is_true(together < alone * 16, ("%d syncs for 1 x 32, %d for 32 x 32"):format(alone, together))
  end)
end)
