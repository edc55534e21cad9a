local cli = require("spec.cli.support")
local cjson = require("cjson")

local function put(url, key, value) assert.equal(0, (cli.run(url, "put", key, value))) end

describe("kv watch", function()
  it("prints what is there, then every change, at once", function()
    local url = cli.url()
    put(url, "s/a", "1")
    local process = cli.pipe(url, "watch", "-r", "s")
    assert.equal("initial\ts/a\t1", process:line(cli.patience))
    put(url, "s/b", "two\nlines")
    assert.equal("put\ts/b\ttwo\\nlines", process:line(cli.patience))
    assert.equal(0, (cli.run(url, "delete", "s/a")))
    assert.equal("delete\ts/a", process:line(cli.patience))
    process:kill("TERM")
    assert.equal("signal", (process:wait(cli.patience)))
  end)

  it("prints JSON, ends after a count, and resumes", function()
    local url = cli.url()
    local process = cli.pipe(url, "watch", "k", "--json", "--prev", "-n", "3")
    put(url, "other", "x")
    put(url, "k", "1")
    local first = cjson.decode(process:line(cli.patience))
    assert.same({"k", "1"}, {first.key, first.value})
    put(url, "k", "\255")
    local second = cjson.decode(process:line(cli.patience))
    assert.same({"put", "/w==", "1"}, {second.type, second.base64, second.prev})
    assert.equal(0, (cli.run(url, "delete", "k")))
    assert.equal("delete", cjson.decode(process:line(cli.patience)).type)
    assert.same({"exit", 0}, {process:wait(cli.patience)})
    local status, out = cli.run(url, "watch", "k", "--after", ("%d"):format(first.revision), "-n", "2")
    assert.equal(0, status)
    assert.equal("put\tk\t\\xff\ndelete\tk\n", out)
  end)

  it("ends when its reader has gone", function()
    local url = cli.url()
    put(url, "k", "1")
    local native = require("spec.native")
    local shell = assert(native.spawn{"sh", "-c", '"$0" "$@" | head -n 1', ("%s/%s/bin/kv"):format(
      os.getenv("KV_BUILD") or "build", os.getenv("KV_LUA") or "lua5.4"), "-s", url, "watch", "k", pipe = true})
    assert.equal("initial\tk\t1", shell:line(cli.patience))
    assert.equal("exit", (shell:wait(cli.patience)))
  end)

  it("says that its output cannot be written, and ends", function()
    local url = cli.url()
    put(url, "k", "1")
    local native, util = require("spec.native"), require("spec.support.util")
    for _, command in ipairs{"watch k --json", "watch k", "list", "get k", "export"} do
      local said = util.folder() .. "/said"
      local script = ('"$0" -s "$1" %s >/dev/full'):format(command)
      local shell = assert(native.spawn{"sh", "-c", script, ("%s/%s/bin/kv"):format(os.getenv("KV_BUILD") or "build",
        os.getenv("KV_LUA") or "lua5.4"), url, stderr = said})
      local how, status = shell:wait(cli.patience)
      if not how then shell:kill("KILL") end
      assert.same({"exit", 1}, {how, status}, command)
      local text = util.read(said)
      assert.truthy(text:find("cannot be written: No space left", 1, true), command .. ": " .. text)
    end
  end)

  it("gives a pipe whole lines", function()
    local url, values = cli.url(), {}
    for i = 1, 500 do values["s/k" .. i] = ("v"):rep(i % 50) end
    local store = assert(require("kv").open(url))
    assert(store:put_many(values))
    store:close()
    -- dd shows what one read() gives: a buffer that is simply full would end in the middle of a line.
    local native, util = require("spec.native"), require("spec.support.util")
    local out = util.folder() .. "/out"
    local program = ("%s/%s/bin/kv"):format(os.getenv("KV_BUILD") or "build", os.getenv("KV_LUA") or "lua5.4")
    local shell = assert(native.spawn{"sh", "-c", '"$0" "$@" | dd bs=65536 count=1 status=none', program, "-s", url,
      "watch", "-r", "s", "--json", "-n", "500", stdout = out})
    assert.equal("exit", (shell:wait(cli.patience)))
    assert.truthy(util.read(out):find('^{"type":"put","key":"s/k1",.*}\n$'), util.read(out):sub(-100))
  end)

  it("says that the server is away and goes on trying", function()
    local native, util = require("spec.native"), require("spec.support.util")
    local port = native.port()
    local process, _, err = cli.start(("etcd://127.0.0.1:%d"):format(port), "watch", "k")
    util.eventually(function() return (util.read(err) or ""):find("not connected", 1, true) end, "a note", 20)
    assert.is_true(process:running())
    process:kill("TERM")
    process:wait(cli.patience)
  end)
end)
