local cli = require("spec.cli.support")
local native = require("spec.native")
local util = require("spec.support.util")

local function file() return util.folder() .. "/note" end

local function written(path) return function() return util.read(path) end end

describe("kv elect", function()
  it("runs the command while it leads, and tells who does", function()
    local url, note = cli.url(), file()
    assert.equal(3, (cli.run(url, "elect", "boss")))
    local process = cli.start(url, "elect", "boss", "host 7", "--", "sh", "-c",
      "echo $KV_LOCK_TOKEN > " .. note .. "; exec sleep 60")
    util.eventually(written(note), "the command runs")
    local status, out = cli.run(url, "elect", "boss")
    assert.equal(0, status)
    assert.equal("host 7\n", out)
    local token = tonumber(util.read(note))
    process:kill("TERM")
    assert.same({"exit", 128 + 15}, {process:wait(cli.patience)})
    assert.equal(3, (cli.run(url, "elect", "boss")))
    status, out = cli.run(url, "elect", "boss", "x", "--", "sh", "-c", "echo $KV_LOCK_TOKEN; exit 7")
    assert.equal(7, status)
    assert.is_true(tonumber(out) > token)
  end)

  it("shows host and process id unless told otherwise", function()
    local url = cli.url()
    local _, out = cli.run(url, "elect", "boss", "--", "sh", "-c", 'echo "$PPID"; exec "$0" -s "$1" elect boss',
      ("%s/%s/bin/kv"):format(os.getenv("KV_BUILD") or "build", os.getenv("KV_LUA") or "lua5.4"), url)
    local pid, shown = out:match("^(%d+)\n%S+ (%d+)\n$")
    assert.equal(pid, shown, out)
  end)

  it("tries once, waits as long as it is told, and leaves the line by a signal", function()
    local url, note = cli.url(), file()
    local leader = cli.start(url, "elect", "boss", "one", "--", "sh", "-c", "echo ready > " .. note ..
      "; exec sleep 60")
    util.eventually(written(note), "somebody leads")
    local status, out, err = cli.run(url, "elect", "boss", "two", "-n", "--", "echo", "never")
    assert.equal(4, status)
    assert.equal("", out)
    assert.truthy(err:find("boss", 1, true))
    local took = util.timed(cli.run, url, "elect", "boss", "two", "-t", "0.3", "--", "echo", "never")
    assert.is_true(took >= 0.3)
    local waiter = cli.start(url, "elect", "boss", "two", "--", "echo", "never")
    native.sleep(0.3) -- it may still be starting: any moment of its life must do
    waiter:kill("TERM")
    local how, number = waiter:wait(cli.patience)
    assert.is_true((how == "exit" and number == 128 + 15) or (how == "signal" and number == 15))
    leader:kill("TERM")
    leader:wait(cli.patience)
    assert.equal(0, (cli.run(url, "elect", "boss", "three", "-t", "5", "--", "true")))
  end)

  it("passes signals on, and the leadership when the leader is killed", function()
    local url, note, second = cli.url(), file(), file()
    local leader = cli.start(url, "elect", "boss", "one", "--", "sh", "-c",
      "trap 'echo usr1 >> " .. note .. "' USR1; echo $$ > " .. note .. "; while :; do sleep 0.05; done")
    util.eventually(written(note), "the command runs")
    leader:kill("USR1")
    util.eventually(function() return util.read(note):find("usr1") end, "the signal arrives")
    local waiter = cli.start(url, "elect", "boss", "two", "-t", "20", "--", "sh", "-c", "echo got it > " .. second)
    native.sleep(0.2)
    assert.is_nil(util.read(second))
    leader:kill("KILL")
    assert.same({"exit", 0}, {waiter:wait(cli.patience)})
    assert.equal("got it\n", util.read(second))
    os.execute("kill " .. tonumber(util.read(note):match("%d+")))
  end)

  it("ends the command when the leadership is lost", function()
    local server = require("spec.support.servers").etcd{}
    local note = file()
    local process, _, err = cli.start(server:url(), "elect", "boss", "one", "--ttl", "2", "--grace", "0.5", "--", "sh",
      "-c", "trap 'echo term >> " .. note .. "' TERM; echo ready > " .. note .. "; while :; do sleep 0.05; done")
    util.eventually(written(note), "the command runs")
    server:pause() -- no renewal is answered any more
    local how, status = process:wait(cli.patience)
    server:stop()
    assert.same({"exit", 4}, {how, status})
    assert.equal("ready\nterm\n", util.read(note))
    assert.truthy(util.read(err):find('the leadership of "boss" was lost', 1, true))
  end)
end)
