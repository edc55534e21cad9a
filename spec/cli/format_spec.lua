local format = require("kv.cli.format")

describe("kv.cli.format", function()
  it("encodes base64 as RFC 4648 says", function()
    local known = {[""] = "", f = "Zg==", fo = "Zm8=", foo = "Zm9v", foob = "Zm9vYg==", fooba = "Zm9vYmE=",
      foobar = "Zm9vYmFy", ["\255\254\253"] = "//79", ["\0"] = "AA=="}
    for plain, encoded in pairs(known) do assert.equal(encoded, format.base64(plain)) end
  end)

  it("knows UTF-8 from other bytes", function()
    for _, good in ipairs{"", "abc", "gr\195\188n", "\226\130\172", "\240\159\142\137", "\244\143\191\191"} do
      assert.is_true(format.is_utf8(good), good)
    end
    local bad = {"\128", "\195", "\195(", "\192\175", "\224\159\191", "\237\160\128", "\240\143\191\191",
      "\244\144\128\128", "\245\128\128\128", "\255", "a\226\130", "\226\130a"}
    for _, text in ipairs(bad) do assert.is_false(format.is_utf8(text), text) end
  end)

  it("writes JSON on one line, numbers exact and slashes plain", function()
    assert.equal('{"key":"a/b","value":"say \\"hi\\"\\n\\u0001\\\\","revision":9007199254740991,"created":1}',
      format.pair_json{key = "a/b", value = 'say "hi"\n\1\\', revision = 9007199254740991, created = 1})
  end)

  it("puts what is no UTF-8 in base64", function()
    assert.equal('{"key":"a","base64":"//4=","revision":2,"created":2}',
      format.pair_json{key = "a", value = "\255\254", revision = 2, created = 2})
    assert.equal('{"type":"delete","key":"a","revision":3,"prev_base64":"/w=="}',
      format.event_json{type = "delete", key = "a", revision = 3, prev = "\255"})
  end)

  it("shows a value on one line", function()
    assert.equal("a\\tb\\nc\\\\d\\x00gr\195\188n", format.one_line("a\tb\nc\\d\0gr\195\188n"))
    assert.equal("\\xff\\xc3\\xbc", format.one_line("\255\195\188"))
  end)
end)
