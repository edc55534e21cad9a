--- Codecs: finding, encoding, decoding, and what happens when one fails.
local codec = require("kv.codec")
local kv = require("kv")

local reversing = {encode = string.reverse, decode = string.reverse}

describe("codec", function()
  it("is found by name or taken as it is", function()
    assert.is_nil((codec.find(nil)))
    assert.is_nil((codec.find("none")))
    assert.equal("cba", codec.find(reversing).encode("abc"))
    local found, message, code = codec.find("yaml")
    assert.is_false(found)
    assert.is_truthy(message:find("yaml", 1, true))
    assert.equal("invalid", code)
  end)

  it("json is lua-cjson's, or unsupported where that is not", function()
    local found, message, code = codec.find("json")
    if pcall(require, "cjson") then
      assert.equal('{"a":1}', found.encode{a = 1})
    else
      assert.is_false(found)
      assert.is_truthy(message:find("cjson", 1, true))
      assert.equal("unsupported", code)
    end
  end)

  it("tells what it cannot encode", function()
    local function raising() error("no way\nstack traceback: long") end
    local text, why = codec.encode({encode = raising}, 1)
    assert.is_nil(text)
    assert.is_truthy(why:find("no way", 1, true))
    assert.is_nil(why:find("\n", 1, true))
    text, why = codec.encode({encode = function() return nil, "not a thing" end}, 1)
    assert.is_nil(text)
    assert.is_truthy(why:find("not a thing", 1, true))
    assert.is_nil((codec.encode({encode = function() return 12 end}, 1)))
  end)

  it("tells what it cannot decode", function()
    local ok, why = codec.decode({decode = function() error("odd") end}, "x")
    assert.is_false(ok)
    assert.is_truthy(why:find("odd", 1, true))
    assert.is_false((codec.decode({decode = function() return nil end}, "x")))
    assert.same({true, false}, {codec.decode({decode = function() return false end}, "x")})
  end)

  it("leaves an event without a value that it cannot decode", function()
    local event = codec.decode_event({decode = function(text) return assert(tonumber(text), "no number") end},
      {type = "put", key = "k", value = "x", prev = "7"})
    assert.is_nil(event.value)
    assert.equal(7, event.prev)
    assert.is_truthy(event.error:find("no number", 1, true))
  end)
end)

describe("a store with a codec", function()
  local numbers = {
    encode = function(value) return ("%d"):format(value) end,
    decode = function(text) return assert(tonumber(text), "no number") end,
  }
  local store, plain

  before_each(function()
    plain = assert(kv.open("local:"))
    store = plain
  end)
  after_each(function() plain:close() end)

  local function coded(values)
    local util = require("spec.support.util")
    local url = "local:" .. util.folder() .. "/store"
    plain:close()
    plain = assert(kv.open(url))
    store = assert(kv.open(url, {codec = values}))
    return store
  end

  it("answers invalid for what it cannot encode, and sends nothing", function()
    coded(numbers)
    for _, call in ipairs{
      function() return store:put("key", "word") end,
      function() return store:put_many{key = "word"} end,
      function() return store:atomic_put("key", "word", nil) end,
      function() return store:update("key", function() return "word" end) end,
      function() return store:txn():put("other", 1):put("key", "word"):commit() end,
    } do
      local value, message, code = call()
      assert.is_nil(value)
      assert.equal("invalid", code, message)
    end
    assert.same({}, (plain:list("")))
    assert.has_error(function() return store:put("key", nil), 0 end)
    store:close()
  end)

  it("answers failed for what it cannot decode, and names the key", function()
    coded(numbers)
    assert(store:put_many{a = 1, c = 3})
    assert(plain:put("b", "word"))
    for _, call in ipairs{
      function() return store:get("b") end,
      function() return store:get_many{"a", "b", "c"} end,
      function() return store:list("") end,
      function() return store:update("b", function() return 1 end) end,
    } do
      local value, message, code = call()
      assert.is_nil(value)
      assert.equal("failed", code)
      assert.is_truthy(message:find('"b"', 1, true), message)
    end
    local ok, problem = pcall(function() for _ in store:pages("") do end end) -- luacheck: ignore 542
    assert.is_false(ok)
    assert.is_truthy(tostring(problem):find('"b"', 1, true), tostring(problem))
    assert.equal(3, #assert(store:list("", {keys_only = true})))
    assert.is_true(store:exists("b"))
    store:close()
  end)

  it("goes on watching and mirroring behind it", function()
    coded(numbers)
    assert(plain:put("b", "word"))
    assert(store:put("c", 3))
    local watch = assert(store:watch_tree(""))
    local first, second = assert(watch:next(5)), assert(watch:next(5))
    assert.equal("b", first.key)
    assert.is_nil(first.value)
    assert.is_string(first.error)
    assert.equal(3, second.value)
    local mirror = assert(store:mirror(""))
    assert(mirror:wait_ready(5))
    assert.is_nil(mirror:get("b"))
    assert.is_string(mirror:pair("b").error)
    assert.equal(3, mirror:get("c"))
    store:close()
  end)

  it("may be chosen in the URL", function()
    if not pcall(require, "cjson") then return end
    store = assert(kv.open("local:?codec=json"))
    assert(store:put("key", {1, 2}))
    assert.same({1, 2}, assert(store:get("key")).value)
    store:close()
    store = assert(kv.open("local:?sync=none&codec=none&timeout=3"))
    assert(store:put("key", "text"))
    assert.equal("text", assert(store:get("key")).value)
    store:close()
    local none, _, code = kv.open("local:?codec=yaml")
    assert.is_nil(none)
    assert.equal("invalid", code)
  end)
end)
