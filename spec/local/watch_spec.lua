--- Watches of the embedded store when its history has been cut.
local kv = require("kv")

local HISTORY = 100000 -- records that are kept
local KEYS = 1000

describe("watch", function()
  it("begins and follows, be the history cut or not", function()
    local store = assert(kv.open("local:"))
    local values = {}
    for i = 1, KEYS do values["key" .. i] = "v" end
    assert(store:put("gone", "1"))
    assert(store:delete("gone"))
    for _ = 1, HISTORY * 1.3 / KEYS do assert(store:put_many(values, {timeout = 60})) end
    local handles = {assert(store:watch("gone")), assert(store:watch("key1")), assert(store:watch_tree("gone"))}
    for _, watch in ipairs(handles) do assert(watch:wait_synced(10)) end
    assert.equal("key1", assert(handles[2]:next(10)).key)
    for i = 1, 3 do
      assert(store:put("gone", tostring(i)))
      assert(store:put("gone/below", tostring(i)))
      assert(store:put("key1", tostring(i)))
      for _, watch in ipairs(handles) do assert.equal(tostring(i), assert(watch:next(10)).value) end
    end
    for _, watch in ipairs(handles) do assert.is_true(watch:connected()) end
    assert.equal(0, store:stats().resyncs)
    store:close()
  end)
end)
