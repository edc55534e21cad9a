--- Listings of the embedded store while another process writes.
local kv = require("kv")
local native = require("spec.native")
local util = require("spec.support.util")

local LAST = 1500
local VALUE = ("x"):rep(2000) -- so that a listing takes several pages

-- Writes the first and the last key of a directory together, over and over.
local WRITER = [[
local kv = require("kv")
local store = assert(kv.open(arg[1]))
io.write("ready\n")
io.flush()
for i = 1, math.huge do
  assert(store:txn():put("d/0000", tostring(i)):put("d/9999", tostring(i)):commit())
end
]]

local store, url, writer

before_each(function()
  url = "local:" .. util.folder() .. "/store?sync=none"
  store = assert(kv.open(url))
  for i = 1, LAST do assert(store:put(("d/%04d"):format(i), VALUE)) end
  local path = util.folder() .. "/writer.lua"
  util.write(path, WRITER)
  writer = util.lua(path, url)
  assert.equal("ready", writer:line(20))
end)

after_each(function()
  writer:kill()
  writer:wait()
  store:close()
  util.remove_folders()
end)

describe("list", function()
  it("is of one revision, though its directory is written all the time", function()
    local deadline, changed, before = native.now() + 20, 0, nil
    repeat
      local found, revision = assert(store:list("d"))
      assert.is_true(#found >= LAST)
      local first, last = found[1], found[#found]
      if first.key == "d/0000" then
        assert.equal(LAST + 2, #found)
        assert.equal("d/9999", last.key)
        assert.equal(first.value, last.value)
        assert.equal(first.revision, last.revision)
        assert.is_true(revision >= first.revision)
        if first.value ~= before then changed = changed + 1 end
        before = first.value
      end
    until changed >= 20 or native.now() > deadline
    assert.is_true(changed >= 20)
  end)

  it("comes in pages of what is there when each is asked for", function()
    local seen, count, last = {}, 0, nil
    for page in store:pages("d") do
      for _, pair in ipairs(page) do
        assert.is_nil(seen[pair.key])
        assert.is_true(not last or pair.key > last)
        seen[pair.key], last = true, pair.key
        count = count + 1
      end
    end
    assert.is_true(count >= LAST and count <= LAST + 2)
  end)
end)
