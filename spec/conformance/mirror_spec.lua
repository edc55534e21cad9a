--- mirror: a live copy in memory.
local suite = require("spec.support.suite")

local function ready(t, dir, options)
  local mirror = t:own(assert(t.store:mirror(dir, options)))
  assert(mirror:wait_ready(60))
  return mirror
end

describe("mirror", function()
  suite.both("has what is there when it is ready", function(t)
    assert(t.store:put("dir/a", "1"))
    assert(t.store:put("dir/sub/b", ""))
    assert(t.store:put("other", "x"))
    local mirror = ready(t, "dir")
    assert.is_true(mirror:ready())
    assert.equal("1", mirror:get("dir/a"))
    assert.equal("", mirror:get("dir/sub/b"))
    assert.is_nil(mirror:get("other"))
    assert.is_nil(mirror:get("dir/none"))
    assert.equal(2, mirror:size())
  end)

  suite.both("follows changes and deletes", function(t)
    local mirror = ready(t, "dir")
    assert.equal(0, mirror:size())
    assert(t.store:put("dir/a", "1"))
    t:eventually(function() return mirror:get("dir/a") == "1" end, "the mirror has the new key")
    assert(t.store:put("dir/a", "2"))
    t:eventually(function() return mirror:get("dir/a") == "2" end, "the mirror has the new value")
    assert(t.store:delete("dir/a"))
    t:eventually(function() return mirror:get("dir/a") == nil end, "the mirror forgot the key")
    assert.equal(0, mirror:size())
  end)

  suite.both("takes keys in any form, as the store does", function(t)
    assert(t.store:put("dir/a", "1"))
    local mirror = ready(t, "/dir/")
    assert.equal("1", mirror:get("dir/a"))
    assert.equal("1", mirror:get("/dir//a/"))
  end)

  suite.both("gives pairs", function(t)
    local pair = assert(t.store:put("dir/a", "1"))
    assert(t.store:put("dir/b", "2"))
    local mirror = ready(t, "dir")
    local mine = mirror:pair("dir/a")
    assert.equal("dir/a", mine.key)
    assert.equal("1", mine.value)
    assert.equal(pair.revision, mine.revision)
    assert.equal(pair.created, mine.created)
    assert.is_nil(mirror:pair("dir/none"))
    assert(t.store:atomic_put("dir/a", "3", mine))
  end)

  suite.both("goes through all", function(t)
    local expected = {}
    for i = 1, 100 do expected["dir/" .. i] = tostring(i) end
    assert(t.store:put_many(expected))
    local mirror = ready(t, "dir")
    local seen = {}
    for key, value in mirror:pairs() do
      seen[key] = type(value) == "table" and value.value or value
    end
    assert.same(expected, seen)
    assert.equal(100, mirror:size())
  end)

  suite.both("tells how old it is, and at which revision", function(t)
    assert(t.store:put("dir/a", "1"))
    local mirror = ready(t, "dir")
    assert.is_true(mirror:age() >= 0 and mirror:age() < 60)
    assert.is_true(mirror:revision() >= assert(t.store:get("dir/a")).revision)
  end)

  suite.both("tells of changes", function(t)
    assert(t.store:put("dir/a", "1"))
    local mirror = t:own(assert(t.store:mirror("dir")))
    local seen = {}
    mirror:on_change(function(event)
      seen[#seen + 1] = event.type .. " " .. event.key .. " " .. tostring(event.value)
    end)
    assert(mirror:wait_ready(10))
    assert(t.store:put("dir/a", "2"))
    t:eventually(function() return mirror:get("dir/a") == "2" and seen[#seen] == "put dir/a 2" end,
      "the change was told")
    assert(t.store:delete("dir/a"))
    t:eventually(function() return mirror:get("dir/a") == nil and seen[#seen] == "delete dir/a nil" end,
      "the delete was told")
  end)

  suite.case("advances when it is asked, outside of any loop", function(t)
    local child = t:child()
    local mirror = ready(t, "")
    t.ask(child, "put", "key", "from outside")
    t:eventually(function() return mirror:get("key") == "from outside" end, "the mirror advanced by get alone")
  end)

  suite.task("get never yields", function(t)
    assert(t.store:put("key", "v"))
    local mirror = ready(t, "")
    local turns = 0
    local other = t.kv.spawn(function()
      for _ = 1, 3 do
        turns = turns + 1
        t.kv.sleep(0)
      end
    end)
    for _ = 1, 1000 do
      assert.equal("v", mirror:get("key"))
      mirror:pair("key")
      mirror:size()
    end
    assert.is_true(turns <= 1, "another task ran meanwhile")
    other:join()
  end)

  suite.both("of the root, and of a view", function(t)
    local sub = t:own(assert(t.store:sub("below")))
    assert(sub:put("key", "v"))
    local all = ready(t, "")
    assert.equal("v", all:get("below/key"))
    local mirror = t:own(assert(sub:mirror("")))
    assert(mirror:wait_ready(10))
    assert.equal("v", mirror:get("key"))
  end)

  suite.both("ends with close", function(t)
    assert(t.store:put("key", "v"))
    local mirror = ready(t, "")
    local before = t.store:stats().watches
    mirror:close()
    mirror:close()
    t:eventually(function() return t.store:stats().watches < before end, "its watch is gone")
  end)

  suite.case("holds ten thousand keys", function(t)
    local values = {}
    for i = 1, 10000 do values["dir/" .. i] = "value " .. i end
    assert(t.store:put_many(values, {timeout = 60}))
    local mirror = ready(t, "dir")
    assert.equal(10000, mirror:size())
    for i = 1, 10000, 7 do assert.equal("value " .. i, mirror:get("dir/" .. i)) end
    assert(t.store:delete_tree("dir", {timeout = 60}))
    t:eventually(function() return mirror:size() == 0 end, "the mirror is empty", 60)
  end)
end)
