--- list, pages, delete_tree.
local suite = require("spec.support.suite")

local function fill(t, keys)
  local values = {}
  for _, key in ipairs(keys) do values[key] = "of " .. key end
  assert(t.store:put_many(values))
end

describe("list", function()
  suite.both("gives everything below a directory, and nothing else", function(t)
    fill(t, {"dir/a", "dir/b", "dir/sub/c", "dir/sub/sub/d", "dirx", "other/e"})
    local list, revision = assert(t.store:list("dir"))
    assert.equal("dir/a dir/b dir/sub/c dir/sub/sub/d", t.keys(list))
    for _, pair in ipairs(list) do
      assert.equal("of " .. pair.key, pair.value)
      assert.is_true(pair.revision > 0 and pair.created > 0)
    end
    assert.is_true(revision >= list[4].revision)
  end)

  suite.both("is the same with and without slashes", function(t)
    fill(t, {"dir/a", "dir/sub/b"})
    for _, form in ipairs{"dir", "dir/", "/dir", "//dir//"} do
      assert.equal("dir/a dir/sub/b", t.keys(assert(t.store:list(form))))
    end
    assert.equal("dir/sub/b", t.keys(assert(t.store:list("dir/sub/"))))
  end)

  suite.both("of the root gives all", function(t)
    fill(t, {"a", "b/c", "b/d/e"})
    for _, root in ipairs{"", "/"} do assert.equal("a b/c b/d/e", t.keys(assert(t.store:list(root)))) end
  end)

  suite.both("of nothing is an empty table, not a failure", function(t)
    local list, revision = t.store:list("nowhere")
    assert.same({}, list)
    assert.equal("number", type(revision))
    assert.same({}, (t.store:list("")))
  end)

  suite.both("of a key without children is empty", function(t)
    fill(t, {"leaf"})
    assert.same({}, (t.store:list("leaf")))
  end)

  suite.both("leaves out the directory's own key", function(t)
    fill(t, {"dir", "dir/a"})
    assert.equal("dir/a", t.keys(assert(t.store:list("dir"))))
  end, "nested")

  suite.both("is sorted by the bytes of keys", function(t)
    local keys = {"a-b", "a.b", "a/b-c", "a/b/c", "a/b0", "a0", "aa", "B", "b", "\195\188", "z", "~"}
    if t.store:supports("nested") then
      table.insert(keys, 1, "a")
      table.insert(keys, 4, "a/b")
    end
    fill(t, keys)
    local sorted = {}
    for _, pair in ipairs(assert(t.store:list(""))) do sorted[#sorted + 1] = pair.key end
    local expected = {(unpack or table.unpack)(keys)}
    table.sort(expected, function(left, right)
      for i = 1, math.min(#left, #right) do
        if left:byte(i) ~= right:byte(i) then return left:byte(i) < right:byte(i) end
      end
      return #left < #right
    end)
    assert.same(expected, sorted)
  end)

  suite.both("keys_only leaves values out", function(t)
    fill(t, {"dir/a", "dir/b"})
    local list = assert(t.store:list("dir", {keys_only = true}))
    assert.equal("dir/a dir/b", t.keys(list))
    for _, pair in ipairs(list) do
      assert.is_nil(pair.value)
      assert.is_true(pair.revision > 0)
    end
  end)

  suite.both("recursive=false gives children, and directories as such", function(t)
    fill(t, {"dir/a", "dir/sub/b", "dir/sub/c", "dir/tub/x/y", "dir/z"})
    local list = assert(t.store:list("dir", {recursive = false}))
    assert.equal("dir/a dir/sub/ dir/tub/ dir/z", t.keys(list))
    assert.equal("of dir/a", list[1].value)
    assert.is_nil(list[1].dir)
    assert.same({key = "dir/sub", dir = true}, list[2])
    list = assert(t.store:list("", {recursive = false}))
    assert.equal("dir/", t.keys(list))
    list = assert(t.store:list("dir/sub", {recursive = false, keys_only = true}))
    assert.equal("dir/sub/b dir/sub/c", t.keys(list))
    assert.is_nil(list[1].value)
  end)

  suite.both("recursive=false gives a key that is a directory too once, as a key", function(t)
    fill(t, {"dir/a", "dir/a/below", "dir/a-b", "dir/b"})
    local list = assert(t.store:list("dir", {recursive = false}))
    local seen = {}
    for _, pair in ipairs(list) do
      if pair.value then
        assert.is_nil(seen[pair.key])
        seen[pair.key] = pair.value
      end
    end
    assert.same({["dir/a"] = "of dir/a", ["dir/a-b"] = "of dir/a-b", ["dir/b"] = "of dir/b"}, seen)
  end, "nested")

  suite.both("limit and after give parts in order", function(t)
    fill(t, {"d/1", "d/2", "d/3", "d/4", "d/5"})
    assert.equal("d/1 d/2", t.keys(assert(t.store:list("d", {limit = 2}))))
    assert.equal("d/3 d/4", t.keys(assert(t.store:list("d", {limit = 2, after = "d/2"}))))
    assert.equal("d/5", t.keys(assert(t.store:list("d", {limit = 2, after = "d/4"}))))
    assert.same({}, (t.store:list("d", {limit = 2, after = "d/5"})))
    assert.equal("d/3 d/4 d/5", t.keys(assert(t.store:list("d", {after = "d/2"}))))
    -- a key that is not there is a place all the same
    assert.equal("d/3 d/4 d/5", t.keys(assert(t.store:list("d", {after = "d/25"}))))
    assert.equal("d/1 d/2 d/3 d/4 d/5", t.keys(assert(t.store:list("d", {limit = 100}))))
  end)

  suite.both("after may lie outside of the directory", function(t)
    fill(t, {"a", "c/1", "d/1", "d/2", "d-", "d0", "e/1"})
    for _, before in ipairs{"a", "b", "c/1", "d", "d-"} do
      assert.equal("d/1 d/2", t.keys(assert(t.store:list("d", {after = before}))))
      assert.equal("d/1 d/2", t.keys(assert(t.store:list("d", {after = before, recursive = false}))))
    end
    for _, behind in ipairs{"d0", "e", "e/1", "z"} do
      assert.same({}, (t.store:list("d", {after = behind})))
      assert.same({}, (t.store:list("d", {after = behind, recursive = false})))
      local page = t.store:pages("d", {after = behind})()
      assert.is_true(page == nil or #page == 0)
    end
  end)

  suite.both("limit counts directories as one with recursive=false", function(t)
    fill(t, {"d/a/1", "d/a/2", "d/a/3", "d/b", "d/c/1", "d/e"})
    assert.equal("d/a/ d/b", t.keys(assert(t.store:list("d", {recursive = false, limit = 2}))))
    assert.equal("d/c/ d/e", t.keys(assert(t.store:list("d", {recursive = false, limit = 2, after = "d/b"}))))
    assert.equal("d/b d/c/ d/e", t.keys(assert(t.store:list("d", {recursive = false, after = "d/a"}))))
  end)

  suite.case("is whole when it is larger than one reply", function(t)
    local values = {}
    for i = 1, 3000 do values[("big/%05d"):format(i)] = ("%d "):format(i):rep(400) end
    local store = assert(t:open{timeout = 60})
    assert(store:put_many(values))
    local list = assert(store:list("big"))
    assert.equal(3000, #list)
    for i, pair in ipairs(list) do
      assert.equal(("big/%05d"):format(i), pair.key)
      assert.is_true(values[pair.key] == pair.value)
    end
    assert.equal(3000, #assert(store:list("big", {keys_only = true})))
    assert.equal(2500, #assert(store:list("big", {limit = 2500})))
  end)

  suite.both("pages go through a tree", function(t)
    local values = {}
    for i = 1, 250 do values[("tree/%03d"):format(i)] = tostring(i) end
    assert(t.store:put_many(values))
    local seen, pages = {}, 0
    local next_page, state, control = t.store:pages("tree", {limit = 100})
    while true do
      local page = next_page(state, control)
      if page == nil then break end
      control = page
      pages = pages + 1
      assert.is_true(#page <= 100)
      for _, pair in ipairs(page) do seen[#seen + 1] = pair.key end
    end
    assert.equal(250, #seen)
    for i, key in ipairs(seen) do assert.equal(("tree/%03d"):format(i), key) end
    assert.is_true(pages >= 3)
  end)

  suite.case("pages work in a for loop, keys_only too, and of nothing", function(t)
    fill(t, {"p/a", "p/b", "p/c"})
    local seen = {}
    for page in t.store:pages("p", {limit = 2, keys_only = true}) do
      for _, pair in ipairs(page) do
        assert.is_nil(pair.value)
        seen[#seen + 1] = pair.key
      end
    end
    assert.same({"p/a", "p/b", "p/c"}, seen)
    for page in t.store:pages("nowhere") do assert.same({}, page) end
  end)

  suite.both("refuses options that make no sense", function(t)
    t.raises(t.store.list, t.store, "d", {recursiv = true})
    t.raises(t.store.list, t.store, "d", {limit = "many"})
    t.raises(t.store.list, t.store, "d", {after = {}})
    t.raises(t.store.list, t.store, "d", "recursive")
  end)
end)

describe("delete_tree", function()
  suite.both("takes everything below, and the directory's own key", function(t)
    fill(t, {"dir/a", "dir/b/c", "dir/b/d/e", "dirx", "di"})
    if t.store:supports("nested") then assert(t.store:put("dir", "itself")) end
    assert.equal(true, (t.store:delete_tree("dir")))
    assert.is_false(t.store:exists("dir"))
    assert.same({}, (t.store:list("dir")))
    assert.equal("di dirx", t.keys(assert(t.store:list(""))))
  end)

  suite.both("of nothing is fine", function(t)
    assert.equal(true, (t.store:delete_tree("nowhere")))
    assert.equal(true, (t.store:delete_tree("nowhere/")))
    assert.equal(true, (t.store:delete_tree("")))
  end)

  suite.both("of the root empties the store, and no other", function(t)
    fill(t, {"a", "b/c"})
    local sub = assert(t.store:sub("b"))
    local longer = assert(t.kv.open(t.url, {prefix = t.prefix .. "x"}))
    assert(longer:put("beside", "1"))
    assert.equal(true, (sub:delete_tree("")))
    assert.equal("a", t.keys(assert(t.store:list(""))))
    assert.equal(true, (t.store:delete_tree("")))
    assert.same({}, (t.store:list("")))
    assert.equal("1", assert(longer:get("beside")).value)
    assert(longer:delete("beside"))
    longer:close()
    sub:close()
  end)

  suite.both("of a view's root leaves alone the key of that name, which the view does not have", function(t)
    fill(t, {"dir", "dir/a", "dir/b/c"})
    local sub = t:own(assert(t.store:sub("dir")))
    assert.equal(true, (sub:delete_tree("")))
    assert.equal("dir", t.keys(assert(t.store:list(""))))
  end, "nested")

  suite.case("takes thousands", function(t)
    local values = {}
    for i = 1, 3000 do values["many/" .. i] = "v" end
    local store = assert(t:open{timeout = 60})
    assert(store:put_many(values))
    assert.equal(true, (store:delete_tree("many")))
    assert.same({}, (t.store:list("")))
  end)
end)
