--- Which keys there are, and in which form they come back.
local suite = require("spec.support.suite")

describe("keys", function()
  -- The forms that libkv's suite writes to.
  for _, key in ipairs{"k", "k/", "k/d/", "k/d/x", "/k", "//k//d///x/"} do
    suite.both("put, get, exists, delete of '" .. key .. "'", function(t)
      local canonical = key:gsub("/+", "/"):gsub("^/", ""):gsub("/$", "")
      local pair = assert(t.store:put(key, "value"))
      assert.equal(canonical, pair.key)
      assert.equal("value", pair.value)
      local read = assert(t.store:get(key))
      assert.equal(canonical, read.key)
      assert.equal("value", read.value)
      assert.equal(pair.revision, read.revision)
      assert.is_true(t.store:exists(key))
      assert.is_true(t.store:exists("/" .. canonical .. "/"))
      assert.is_true(t.store:delete(key))
      assert.is_false(t.store:exists(key))
      assert.is_nil((t.store:get(key)))
    end)
  end

  local invalid = {
    ["nothing"] = "",
    ["slashes only"] = "//",
    ["a dot"] = ".",
    ["two dots"] = "..",
    ["a dot inside"] = "a/./b",
    ["two dots inside"] = "a/../b",
    ["two dots at the end"] = "a/..",
    ["a zero byte"] = "a\0b",
    ["a control character"] = "a\nb",
    ["an escape"] = "\27[1m",
    ["DEL"] = "a\127",
    ["a C1 control character"] = "a\194\128",
    ["a byte that is no UTF-8"] = "a\255",
    ["an overlong form"] = "a\192\175",
    ["half a character"] = "a\195",
    ["a surrogate"] = "a\237\160\128",
    ["a private-use character"] = "a\238\128\128",
    ["a special character"] = "a\239\191\191",
    ["a character beyond the basic plane"] = "a\240\159\152\128",
    ["the library's own segment"] = ".kv",
    ["a key below the library's own segment"] = "/.kv/locks",
    ["481 bytes"] = ("x"):rep(481),
  }
  for what, key in pairs(invalid) do
    suite.case("refuses " .. what, function(t)
      local calls = {
        function() return t.store:get(key) end,
        function() return t.store:put(key, "v") end,
        function() return t.store:exists(key) end,
        function() return t.store:delete(key) end,
        function() return t.store:atomic_put(key, "v", nil) end,
        function() return t.store:atomic_delete(key, 1) end,
        function() return t.store:get_many{"good", key} end,
        function() return t.store:put_many{good = "v", [key] = "v"} end,
        function() return t.store:watch(key) end,
      }
      for _, call in ipairs(calls) do t.fails("invalid", call()) end
      -- put_many did nothing at all
      assert.same({}, (t.store:list("")))
    end)
  end

  suite.both("is invalid in directories as in keys", function(t)
    for _, dir in ipairs{"a/../b", "a\0", ".kv"} do
      t.fails("invalid", t.store:list(dir))
      t.fails("invalid", t.store:delete_tree(dir))
      t.fails("invalid", t.store:watch_tree(dir))
    end
  end)

  suite.both("takes letters of all of the basic plane", function(t)
    for _, key in ipairs{"gr\195\188n", "\230\151\165\230\156\172/\232\170\158", "a b", "a%2Fb", "a+b&c=d?e#f",
        "'\"`$(x)", "-", "...", ".hidden", "a/.kv", ".kvx", "zookeeper2", "a:b@c", "[x]{y}"} do
      local put = assert(t.store:put(key, key))
      assert.equal(key, put.key)
      assert.equal(key, assert(t.store:get(key)).value)
    end
    assert.equal(14, #assert(t.store:list("")))
  end)

  suite.case("is at most 480 bytes with the prefix", function(t)
    local room = 480 - #t.prefix - 1
    local longest = ("k"):rep(room)
    assert(t.store:put(longest, "v"))
    assert.equal("v", assert(t.store:get(longest)).value)
    assert.equal(longest, assert(t.store:list(""))[1].key)
    t.fails("invalid", t.store:put(longest .. "k", "v"))
    -- slashes that are dropped do not count
    assert(t.store:put("//" .. longest .. "//", "w"))
    assert.equal("w", assert(t.store:get(longest)).value)
  end)

  suite.both("does not take a name for a directory's beginning", function(t)
    assert(t.store:put("foo/x", "1"))
    assert(t.store:put("foobar", "2"))
    assert(t.store:put("foobars/x", "3"))
    assert.equal("foo/x", t.keys(assert(t.store:list("foo"))))
    assert(t.store:delete_tree("foo"))
    assert.equal("foobar foobars/x", t.keys(assert(t.store:list(""))))
  end)

  suite.both("a parent that nobody put is no key", function(t)
    assert(t.store:put("a/b/c", "deep"))
    for _, parent in ipairs{"a", "a/b"} do
      assert.is_nil((t.store:get(parent)))
      assert.is_false(t.store:exists(parent))
      assert.is_false(t.store:delete(parent))
      t.fails("modified", t.store:atomic_delete(parent, 1))
    end
    assert.equal("a/b/c", t.keys(assert(t.store:list(""))))
    assert.equal("deep", assert(t.store:get("a/b/c")).value)
  end)

  suite.both("a key may have keys below it", function(t)
    assert(t.store:put("a", "parent"))
    assert(t.store:put("a/b", "child"))
    assert.equal("parent", assert(t.store:get("a")).value)
    assert.equal("child", assert(t.store:get("a/b")).value)
    assert.is_true(t.store:delete("a"))
    assert.is_nil((t.store:get("a")))
    assert.equal("child", assert(t.store:get("a/b")).value)
  end, "nested")

  suite.case("raises for what is no string", function(t)
    for _, key in ipairs{{}, true, print} do
      t.raises(t.store.get, t.store, key)
      t.raises(t.store.put, t.store, key, "v")
      t.raises(t.store.list, t.store, key)
      t.raises(t.store.watch, t.store, key)
    end
    t.raises(t.store.get, t.store)
    t.raises(t.store.put, t.store, "key")
    t.raises(t.store.put, t.store, "key", {})
    t.raises(t.store.put, t.store, "key", nil)
  end)
end)
