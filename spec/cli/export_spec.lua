local cli = require("spec.cli.support")
local json = require("kv.cli.json")
local format = require("kv.cli.format")
local progress = require("kv.cli.progress")
local util = require("spec.support.util")

local fill, contents, ALL_BYTES = cli.fill, cli.contents, cli.all_bytes

local function succeeds(url, ...)
  local status, out, err = cli.run(url, ...)
  assert.equal(0, status, err)
  return out, err
end

local function fails(wanted, url, ...)
  local status, _, err = cli.run(url, ...)
  assert.equal(wanted, status, err)
  return err
end

-- Give a text to `kv import` on its standard input, as a pipe: status, output.
local function pipe_import(url, text, ...)
  local process = cli.pipe(url, "import", ...)
  assert(process:write(text))
  process:close_input()
  local line = process:line(cli.patience)
  local _, status = process:wait(cli.patience)
  return status, line
end

local ODD = {
  plain = "value", empty = "", ["all bytes"] = ALL_BYTES, big = ALL_BYTES:rep(500), ["dir/child"] = "\127",
  ['q"\\/key'] = '"\\/\b\f\n\r\t',
  ["gr\195\188n/\226\130\172"] = "\240\159\142\137", nul = "a\0b", ["~ *'"] = "\194\128\226\128\168",
}

describe("kv export and import", function()
  it("bring every byte back", function()
    local from, to, file = cli.url(), cli.url(), util.folder() .. "/export"
    fill(from, ODD)
    succeeds(from, "export", "-o", file)
    local count = 0
    for _ in pairs(ODD) do count = count + 1 end
    assert.equal(("%d written, 0 the same already\n"):format(count), succeeds(to, "import", file))
    assert.same(ODD, contents(to))
    assert.equal(util.read(file), succeeds(to, "export"))
    assert.equal(("0 written, %d the same already\n"):format(count), succeeds(to, "import", file))
    for line in util.read(file):gmatch("[^\n]+") do assert.is_table(require("cjson").decode(line)) end
    assert.is_nil(util.read(file .. ".partial"))
  end)

  it("take a directory, and leave others out", function()
    local url = cli.url()
    fill(url, {["a/b"] = "1", ["a/c/d"] = "2", ["a/cd"] = "3", ab = "4"})
    assert.equal('{"kv":"export","version":1}\n{"key":"a/b","value":"1"}\n{"key":"a/cd","value":"3"}\n' ..
      '{"end":true,"keys":2}\n', succeeds(url, "export", "a", "--exclude", "a/c"))
    assert.equal('{"kv":"export","version":1}\n{"end":true,"keys":0}\n', succeeds(url, "export", "none"))
  end)

  it("change only what differs, and delete only when told", function()
    local url, text = cli.url(), '{"kv":"export","version":1}\n{"key":"a","value":"1"}\n{"key":"b","value":"2"}\n' ..
      '{"key":"live/x","value":"2"}\n{"end":true,"keys":3}\n'
    local file = util.folder() .. "/export"
    util.write(file, text)
    fill(url, {a = "1", b = "old", c = "3", ["live/y"] = "4"})
    local out, err = succeeds(url, "import", file, "-n", "--delete")
    assert.equal("change\tb\nadd\tlive/x\ndelete\tc\ndelete\tlive/y\n", out)
    assert.equal("kv: import: 2 to write, 1 the same already, 2 to delete\n", err)
    assert.equal("old", contents(url).b)
    assert.equal("1 written, 1 the same already, 1 deleted\n",
      succeeds(url, "import", file, "--delete", "--exclude", "live"))
    assert.same({a = "1", b = "2", ["live/y"] = "4"}, contents(url))
  end)

  it("take what list --json prints, and what jq makes of it", function()
    local from, to = cli.url(), cli.url()
    fill(from, ODD)
    assert.equal(0, (pipe_import(to, (succeeds(from, "list", "--json")))))
    assert.same(ODD, contents(to))
    assert.equal(0, (pipe_import(to,
      '\n { "value" : "\\u00e4\\ud83c\\udf89" , "more" : [1, {"x": null}],"key":"new" } \r\n')))
    assert.equal("\195\164\240\159\142\137", contents(to).new)
  end)

  it("write nothing from a file that is damaged", function()
    local url, file = cli.url(), util.folder() .. "/export"
    fill(url, {k = "1"})
    local head = '{"kv":"export","version":1}\n{"key":"a","value":"1"}\n'
    for text, wanted in pairs{
      [head] = "cut off behind line 2",
      [head .. '{"key":"b","val'] = "line 3",
      [head .. '{"end":true,"keys":2}\n'] = "2 keys were exported, 1 are here",
      [head .. '{"end":true,"keys":1}\n{"key":"b","value":"1"}\n'] = "behind the end",
      [head .. '{"key":"b","base64":"a=b="}\n'] = "line 3: its base64 is none",
      [head .. '{"key":"b"}\n'] = 'line 3: the key "b" has no value',
      [head .. '{"value":"b"}\n'] = "line 3: it has no key",
      [head .. '{"key":"b","value":"1"} x\n'] = "line 3: something behind the end",
      ['{"kv":"export","version":2}\n'] = "version 2",
      [head .. "[" .. ("["):rep(100)] = "too many brackets",
      ["nonsense\n"] = "line 1",
    } do
      util.write(file, text)
      local err = fails(1, url, "import", file, "--delete")
      assert.truthy(err:find(wanted, 1, true), err)
    end
    util.write(file, head .. '{"key":"../x","value":"1"}\n{"end":true,"keys":2}\n')
    fails(2, url, "import", file)
    util.write(file, '{"kv":"export","version":1}\n{"end":true,"keys":0}\n')
    assert.truthy(fails(1, url, "import", file, "--delete"):find("no keys", 1, true))
    assert.same({k = "1"}, contents(url))
    assert.truthy(fails(1, url, "import", file .. "none"):find("none", 1, true))
    assert.equal(1, (pipe_import(url, head))) -- a pipe: what came was written, and it is told
  end)

  it("leave nothing half done where an export cannot be written", function()
    local folder = util.folder()
    util.write(folder .. "/export", "the one before")
    local err = fails(1, ("etcd://127.0.0.1:%d"):format(require("spec.native").port()), "export", "-o",
      folder .. "/export", "--timeout", "0.5")
    assert.is_nil(err:find("internal error", 1, true), err)
    assert.equal("the one before", util.read(folder .. "/export"))
    assert.is_nil(util.read(folder .. "/export.partial"))
    fails(1, cli.url(), "export", "-o", folder .. "/none/export")
  end)

  it("replace a file, also behind a link, and never what is no file", function()
    local lfs, native = require("lfs"), require("spec.native")
    local url, folder = cli.url(), util.folder()
    fill(url, {k = "1"})
    local wanted = succeeds(url, "export")
    util.write(folder .. "/file", "the one before")
    assert(lfs.link("file", folder .. "/link", true))
    succeeds(url, "export", "-o", folder .. "/link")
    assert.equal("link", lfs.symlinkattributes(folder .. "/link", "mode"))
    assert.equal(wanted, util.read(folder .. "/file"))
    os.execute("mkfifo " .. folder .. "/pipe")
    local reader = assert(native.spawn{"cat", folder .. "/pipe", stdout = folder .. "/out"})
    local writer = cli.start(url, "export", "-o", folder .. "/pipe")
    local how, status = writer:wait(cli.patience)
    if lfs.attributes(folder .. "/pipe", "mode") ~= "named pipe" then reader:kill("KILL") end
    reader:wait(cli.patience)
    assert.same({"exit", 0}, {how, status})
    assert.equal("named pipe", lfs.attributes(folder .. "/pipe", "mode"))
    assert.equal(wanted, util.read(folder .. "/out"))
  end)
end)

describe("kv.cli.json", function()
  it("reads what format writes", function()
    for i = 0, 127 do
      local text = "a" .. string.char(i) .. "b"
      assert.same({key = text}, json.decode(format.json{{"key", text}}))
    end
    assert.same({a = 1, b = {true, false}, c = -2.5e3}, json.decode('{"a":1,"b":[true,false],"c":-2.5e3,"d":null}'))
    assert.equal("\226\130\172/\240\159\152\128", json.decode('"\\u20AC\\/\\uD83D\\uDE00"'))
  end)

  it("says what is wrong with anything else", function()
    for _, text in ipairs{"", "{", '{"a"}', '{"a":}', '{"a":1,}', "[1", '"', '"\\x"', '"\\u12g4"', '"\\ud800"',
      '"\\ud800\\u0041"', '"\\udc00"', "tru", "1 2", "{1:2}"} do
      local value, problem = json.decode(text)
      assert.is_nil(value)
      assert.equal("string", type(problem), text)
    end
  end)
end)

describe("kv.cli.format.from_base64", function()
  it("is the way back", function()
    for length = 0, 70 do
      local text = ALL_BYTES:sub(256 - length)
      assert.equal(text, format.from_base64(format.base64(text)))
    end
    for _, bad in ipairs{"a", "ab", "abc", "=abc", "a===", "ab=c", "ab c", "abcd="} do
      assert.is_nil(format.from_base64(bad), bad)
    end
  end)
end)

describe("kv.cli.progress", function()
  local process = {isatty = function() return false end, clock = function() return 100 end}

  it("fits into the line, whatever is known", function()
    local bar = progress.new(process, "copying", 10000)
    bar.count, bar.bytes = 5200, 12345678
    assert.equal("copying  [##########..........]   52%  5200/10000 keys  1.2 MB/s  10 s left",
      bar:line(110, 75))
    for columns = 20, 120 do assert.is_true(#bar:line(110, columns) <= columns) end
    bar.count = 10001
    assert.truthy(bar:line(110, 80):find("100%", 1, true))
    bar.total = nil
    assert.equal("copying  10001 keys  1.2 MB/s", bar:line(110, 80))
  end)

  it("draws nothing where there is no terminal", function()
    local bar = progress.new(process, "copying", 10)
    bar:step(5, 5)
    bar:finish()
    assert.is_falsy(bar.shown)
  end)
end)
