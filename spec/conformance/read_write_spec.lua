--- put, get, get_many, put_many, exists, delete: values, revisions, missing keys.
local suite = require("spec.support.suite")

local function is_integer(number)
  assert.equal("number", type(number))
  assert.is_true(number > 0 and number < 2 ^ 53 and number % 1 == 0)
  if math.type then assert.equal("integer", math.type(number)) end
end

describe("reading and writing", function()
  suite.both("put gives the pair, get gives it back", function(t)
    local put = assert(t.store:put("key", "value"))
    assert.equal("key", put.key)
    assert.equal("value", put.value)
    is_integer(put.revision)
    is_integer(put.created)
    local got = assert(t.store:get("key"))
    assert.same({key = "key", value = "value", revision = put.revision, created = put.created}, got)
  end)

  suite.both("a missing key is no failure", function(t)
    assert.equal(1, select("#", t.store:get("nothing")))
    local value, message, code = t.store:get("nothing")
    assert.is_nil(value)
    assert.is_nil(message)
    assert.is_nil(code)
    assert.equal(false, t.store:exists("nothing"))
    assert.equal(false, t.store:delete("nothing"))
    assert.same({}, (assert(t.store:get_many{"nothing", "nor/this"})))
  end)

  suite.both("revision grows with each change, created stays for a life", function(t)
    local first = assert(t.store:put("key", "1"))
    local second = assert(t.store:put("key", "2"))
    assert.is_true(second.revision > first.revision)
    assert.equal(first.created, second.created)
    assert.is_true(t.store:delete("key"))
    local third = assert(t.store:put("key", "3"))
    assert.is_true(third.revision > second.revision)
    assert.is_true(third.created > second.created or t.backend == "zookeeper")
    assert.equal(third.created, assert(t.store:get("key")).created)
  end)

  suite.both("putting the same value again is a change", function(t)
    local first = assert(t.store:put("key", "same"))
    local second = assert(t.store:put("key", "same"))
    assert.is_true(second.revision > first.revision)
  end)

  suite.both("another key's change does not touch a revision", function(t)
    local pair = assert(t.store:put("one", "1"))
    assert(t.store:put("two", "2"))
    if t.store:supports("nested") then assert(t.store:put("one/below", "3")) end
    assert.equal(pair.revision, assert(t.store:get("one")).revision)
  end)

  suite.both("an empty value is a value", function(t)
    assert(t.store:put("key", ""))
    assert.equal("", assert(t.store:get("key")).value)
    assert.is_true(t.store:exists("key"))
    assert.equal("", assert(t.store:list(""))[1].value)
    assert(t.store:put("key", "full"))
    assert(t.store:put("key", ""))
    assert.equal("", assert(t.store:get("key")).value)
  end)

  suite.both("a value holds any bytes", function(t)
    local bytes = {}
    for i = 0, 255 do bytes[#bytes + 1] = string.char(i) end
    local value = table.concat(bytes):rep(3)
    assert(t.store:put("bytes", value))
    assert.is_true(value == assert(t.store:get("bytes")).value)
    assert.is_true(value == assert(t.store:list(""))[1].value)
    assert.is_true(value == assert(t.store:get_many{"bytes"}).bytes.value)
  end)

  suite.both("values of many sizes come back whole", function(t)
    for _, size in ipairs{1, 127, 128, 4095, 4096, 16383, 16384, 65535, 65536, 300000} do
      local value = ("%d."):format(size):rep(math.ceil(size / 2)):sub(1, size)
      assert(t.store:put("sized", value))
      assert.is_true(value == assert(t.store:get("sized")).value, "size " .. size)
    end
  end)

  suite.case("a value over the backend's limit is too_large", function(t)
    local huge = ("x"):rep(80 * 1024 * 1024)
    t.fails("too_large", t.store:put("huge", huge))
    assert.is_nil((t.store:get("huge")))
    assert(t.store:put("huge", "small"))
    t.fails("too_large", t.store:atomic_put("huge", huge, assert(t.store:get("huge"))))
    assert.equal("small", assert(t.store:get("huge")).value)
  end)

  suite.both("delete tells whether the key was there", function(t)
    assert(t.store:put("key", "v"))
    assert.equal(true, t.store:delete("key"))
    assert.equal(false, t.store:delete("key"))
    assert.equal(false, t.store:exists("key"))
  end)

  suite.both("get_many gives what is there, by key", function(t)
    local keys = {}
    for i = 1, 300 do
      keys[i] = "dir/" .. i
      if i % 3 ~= 0 then assert(t.store:put(keys[i], "value " .. i)) end
    end
    local found = assert(t.store:get_many(keys))
    for i, key in ipairs(keys) do
      if i % 3 ~= 0 then
        assert.equal("value " .. i, found[key].value)
        assert.equal(key, found[key].key)
        is_integer(found[key].revision)
      else
        assert.is_nil(found[key])
      end
    end
    assert.same({}, (assert(t.store:get_many{})))
  end)

  suite.both("put_many writes all", function(t)
    local values = {}
    for i = 1, 500 do values["many/" .. i] = tostring(i) end
    assert.equal(true, (assert(t.store:put_many(values))))
    local list = assert(t.store:list("many"))
    assert.equal(500, #list)
    for _, pair in ipairs(list) do assert.equal(values[pair.key], pair.value) end
    assert.equal(true, (assert(t.store:put_many{})))
  end)

  suite.both("put_many takes options", function(t)
    assert(t.store:put_many({a = "1", b = "2"}, {keep_alive = true}))
    assert(t.store:put("c", "3"))
    local other = assert(t:open())
    assert.equal("a b c", t.keys(assert(other:list(""))))
    t.store:close()
    t:eventually(function() return t.keys(assert(other:list(""))) == "c" end, "keys kept alive go with their store", 20)
  end, "ttl")

  suite.both("each consistency reads one's own writes here", function(t)
    assert(t.store:put("key", "v"))
    for _, consistency in ipairs{"strong", "fast"} do
      assert.equal("v", assert(t.store:get("key", {consistency = consistency})).value)
      assert.equal(1, #assert(t.store:list("", {consistency = consistency})))
    end
    local fast = assert(t:open{consistency = "fast"})
    assert.equal("v", assert(fast:get("key")).value)
  end)

  suite.both("another handle sees what was written", function(t)
    local other = assert(t:open())
    local pair = assert(t.store:put("shared", "1"))
    assert.same(pair, assert(other:get("shared")))
    assert(other:put("shared", "2"))
    assert.equal("2", assert(t.store:get("shared")).value)
    assert.is_true(other:delete("shared"))
    assert.is_false(t.store:exists("shared"))
  end)

  suite.case("another process sees what was written, and the reverse", function(t)
    local child = t:child()
    local pair = assert(t.store:put("shared", "from the parent"))
    assert.equal(pair.revision .. " from the parent", t.ask(child, "get", "shared"))
    t.ask(child, "put", "shared", "from the child")
    local read = assert(t.store:get("shared"))
    assert.equal("from the child", read.value)
    assert.equal(pair.created, read.created)
    assert.is_true(read.revision > pair.revision)
    assert.equal("true", t.ask(child, "delete", "shared"))
    assert.is_nil((t.store:get("shared")))
  end)

  suite.both("the root is no key", function(t)
    for _, root in ipairs{"", "/"} do
      t.fails("invalid", t.store:get(root))
      t.fails("invalid", t.store:put(root, "v"))
      t.fails("invalid", t.store:exists(root))
      t.fails("invalid", t.store:delete(root))
    end
  end)

  suite.both("each call takes a timeout of its own", function(t)
    assert(t.store:put("key", "v", {timeout = 5}))
    assert.equal("v", assert(t.store:get("key", {timeout = 5})).value)
    assert.is_true(t.store:exists("key", {timeout = 5}))
    assert.equal(1, #assert(t.store:list("", {timeout = 5})))
    assert.is_true(t.store:delete("key", {timeout = 5}))
  end)
end)
