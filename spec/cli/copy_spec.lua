local cli = require("spec.cli.support")
local native = require("spec.native")
local util = require("spec.support.util")
local servers = require("spec.support.servers")
local kv = require("kv")

local fill, contents, ALL_BYTES = cli.fill, cli.contents, cli.all_bytes

local function succeeds(...)
  local status, out, err = cli.run(nil, ...)
  assert.equal(0, status, err)
  return out, err
end

local function fails(wanted, ...)
  local status, _, err = cli.run(nil, ...)
  assert.equal(wanted, status, err)
  assert.equal("kv: ", err:sub(1, 4))
  return err
end

-- What must arrive byte by byte.
local ODD = {
  ["plain"] = "value", ["empty"] = "", ["all bytes"] = ALL_BYTES, ["big"] = ALL_BYTES:rep(1000),
  ["dir"] = "also a key", ["dir/child"] = "\n", ["dir/deep/er"] = "\0", ["dirt"] = "not below dir",
  ['quote"s'] = '"', ["back\\slash"] = "\\u0041\\", ["gr\195\188n/\226\130\172"] = "\195\188",
  ["%41+a?b#c&d=e"] = "%00", ["~/*'$(x)`"] = "\194", ["-starts/with"] = "-", ["a.b/..c"] = "\127",
}

describe("kv copy", function()
  it("copies what differs, exactly, and says so", function()
    local from, to = cli.url(), cli.url()
    fill(from, ODD)
    fill(to, {plain = "old", dirt = "not below dir", other = "x"})
    local count = 0
    for _ in pairs(ODD) do count = count + 1 end
    local out, err = succeeds("copy", from, to)
    assert.equal("", err)
    assert.equal(("%d copied, 1 the same already, 1 only in the destination; checked\n"):format(count - 1), out)
    local wanted = contents(from)
    assert.same(ODD, wanted)
    wanted.other = "x"
    assert.same(wanted, contents(to))
    assert.equal(("0 copied, %d the same already, 1 deleted; checked\n"):format(count),
      succeeds("copy", from, to, "--delete"))
    assert.same(ODD, contents(to))
  end)

  it("draws a bar on a terminal, and takes it away", function()
    local from, values = cli.url(), {}
    for i = 1, 200 do values["key/" .. i] = "v" end
    fill(from, values)
    for term, drawn in pairs{xterm = true, dumb = false} do
      local out = util.folder() .. "/out"
      local command = ("%s/%s/bin/kv copy %s %s"):format(os.getenv("KV_BUILD") or "build",
        os.getenv("KV_LUA") or "lua5.4", from, cli.url())
      -- It runs the command in a pseudo terminal.
      local terminal = assert(native.spawn{"script", "-qec", command, "/dev/null", stdout = out,
        env = {"TERM=" .. term}})
      local how, status = terminal:wait(cli.patience)
      if not how then terminal:kill("KILL") end
      local text = util.read(out)
      assert.same({"exit", 0}, {how, status}, text)
      for _, label in ipairs{"copying", "checking"} do
        local bar = "\r" .. label .. "  %[[#.]+%] +%d+%%  %d+/200 keys [^\r]*\27%[K\r\27%[K"
        assert.equal(drawn, text:find(bar) ~= nil, text)
      end
      assert.truthy(text:find((drawn and "\27[K" or "") .. "200 copied, 0 the same already; checked", 1, true), text)
    end
  end)

  it("shows what it would do, and does nothing", function()
    local from, to = cli.url(), cli.url()
    fill(from, {a = "1", b = "2", c = "3"})
    fill(to, {b = "2", c = "old", d = "4"})
    local out, err = succeeds("copy", from, to, "--dry-run", "--delete")
    assert.equal("add\ta\nchange\tc\ndelete\td\n", out)
    assert.equal("kv: copy: 2 to copy, 1 the same already, 1 to delete\n", err)
    assert.same({b = "2", c = "old", d = "4"}, contents(to))
  end)

  it("keeps and leaves out what it is told to", function()
    local from, to = cli.url(), cli.url()
    fill(from, {a = "1", ["live/x"] = "1", ["livery"] = "1", new = "1"})
    fill(to, {a = "mine", ["live/y"] = "2", old = "2"})
    succeeds("copy", from, to, "--keep", "--delete", "--exclude", "live")
    assert.same({a = "mine", livery = "1", new = "1", ["live/y"] = "2"}, contents(to))
  end)

  it("goes from a prefix to a prefix", function()
    local from, to = cli.url(), cli.url()
    fill(from .. "?prefix=one", {k = "1"})
    fill(from, {outside = "x"})
    succeeds("copy", from .. "?prefix=one", to .. "?prefix=two/deep")
    assert.same({["two/deep/k"] = "1"}, contents(to))
  end)

  it("refuses what would do harm", function()
    local from, to = cli.url(), cli.url()
    fill(to, {k = "1"})
    assert.truthy(fails(1, "copy", from, to, "--delete"):find("no keys", 1, true))
    assert.same({k = "1"}, contents(to))
    fails(2, "copy", from, from)
    fails(2, "copy", from)
    fails(2, "copy", from, to, "--follow", "--dry-run")
    fails(2, "copy", from, to, "--exclude", "/")
    fails(2, "-s", from, "copy", from, to)
  end)

  it("tells when the copy is not like the original", function()
    local source = assert(kv.open("local:"))
    assert(source:put("a", "1"))
    -- A destination that says yes and forgets.
    local destination = {put_many = function() return true end, pages = function() return function() end end}
    local context = {options = {}, arguments = {"from", "to"}, process = require("kv.process"), kv = kv,
      open_url = function(_, url) return url == "from" and source or destination end,
      check = function(_, ...) return ... end, write = function() end}
    local ok, failure = pcall(require("kv.cli.copy").run, context)
    source:close()
    assert.is_false(ok)
    assert.equal(1, failure.status)
    assert.truthy(failure.message:find('1 key(s) differ after copying: "a"', 1, true))
  end)

  it("follows its source until it is ended", function()
    local from, to = cli.url(), cli.url()
    fill(from, {a = "1", b = "2"})
    local process, out, err = cli.start(nil, "copy", from, to, "--follow", "--exclude", "own")
    util.eventually(function() return (util.read(err) or ""):find("following", 1, true) end, "it follows", 20)
    assert.same({a = "1", b = "2"}, contents(to))
    fill(from, {b = "new", ["c/d"] = ALL_BYTES, ["own/key"] = "x"})
    assert.equal(0, (cli.run(from, "delete", "a")))
    util.eventually(function()
      assert.same({b = "new", ["c/d"] = ALL_BYTES}, contents(to))
      return true
    end, "the changes arrive", 20)
    process:kill("TERM")
    assert.same({"exit", 0}, {process:wait(cli.patience)})
    assert.truthy(util.read(out):find("delete\ta\n", 1, true))
  end)

  it("draws a bar on a terminal, and nowhere else", function()
    local from, to, values = cli.url(), cli.url(), {}
    for i = 1, 200 do values["key" .. i] = "v" end
    fill(from, values)
    local out = util.folder() .. "/out"
    local process = assert(native.spawn{"script", "-qec", ("stty cols 70; exec %s/%s/bin/kv copy %s %s"):format(
      os.getenv("KV_BUILD") or "build", os.getenv("KV_LUA") or "lua5.4", from, to), "/dev/null", stdout = out,
      env = {"TERM=vt100"}})
    assert.same({"exit", 0}, {process:wait(cli.patience)})
    local text = util.read(out)
    assert.truthy(text:find("\rcopying  %[#+%.+%]   32%%  64/200 keys"), text)
    assert.truthy(text:find("\r\27[K200 copied, 0 the same already; checked", 1, true), text)
    for line in text:gmatch("\r([^\r\n\27]*)") do assert.is_true(#line < 70, line) end
  end)
end)

describe("kv copy between backends", function()
  it("loses nothing from one to the next and back", function()
    local first, last = cli.url(), cli.url()
    fill(first, ODD)
    local etcd, consul, zookeeper = servers.etcd{}, servers.consul{}, servers.zookeeper{}
    local chain = {first, etcd:url("/copy"), consul:url("/copy"), zookeeper:url("/copy"), last}
    for i = 2, #chain do
      assert.truthy(succeeds("copy", chain[i - 1], chain[i]):find("; checked\n", 1, true))
      assert.same(ODD, contents(chain[i]), chain[i])
      -- What is there only is deleted on each of them.
      fill(chain[i], {["extra/one"] = "1", plain = "changed"})
      succeeds("copy", chain[i - 1], chain[i], "--delete")
      assert.same(ODD, contents(chain[i]), chain[i])
    end
    for _, server in ipairs{etcd, consul, zookeeper} do server:stop() end
  end)

  it("brings what libkv wrote with etcd's v2 API to v3", function()
    local etcd, first = servers.etcd{}, cli.url()
    local old, values = ("etcd2://127.0.0.1:%d/app"):format(etcd.port), {}
    -- There a key has no keys below it.
    for key, value in pairs(ODD) do values[key == "dir" and "file" or key] = value end
    fill(first, values)
    succeeds("copy", first, old)
    succeeds("copy", old, etcd:url("/app"))
    assert.same(values, contents(etcd:url("/app")))
    etcd:stop()
  end)

  it("goes on after it was interrupted", function()
    local from, values, total = cli.url(), {}, 20000
    for i = 1, total do values[("key/%05d"):format(i)] = "v" .. i end
    fill(from .. "?sync=none", values)
    local etcd = servers.etcd{}
    -- A long way for each part: the end is far when the first keys are there.
    local proxy = require("spec.support.proxy").start(etcd.port)
    proxy:tell("delay 100")
    local to = ("etcd://127.0.0.1:%d/to"):format(proxy.port)
    local process, _, err = cli.start(nil, "copy", from, to, "--timeout", "2")
    local store = assert(kv.open(etcd:url("/to")))
    util.eventually(function() return #store:list("", {limit = 1, keys_only = true}) > 0 end, "the first keys")
    proxy:tell("now hold-all")
    assert.same({"exit", 1}, {process:wait(cli.patience)})
    assert.truthy(util.read(err):find('put "key/%d+" on etcd'), util.read(err))
    proxy:stop()
    local copied, same = succeeds("copy", from, etcd:url("/to")):match("^(%d+) copied, (%d+) the same already; checked")
    assert.is_true(tonumber(copied) > 0 and tonumber(same) > 0)
    assert.equal(total, copied + same)
    store:close()
    etcd:stop()
  end)
end)
