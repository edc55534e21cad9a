local cli = require("spec.cli.support")
local native = require("spec.native")
local util = require("spec.support.util")

local function file() return util.folder() .. "/note" end

local function written(path) return function() return util.read(path) end end

describe("kv lock", function()
  it("runs the command while the lock is held, with its token", function()
    local url = cli.url()
    local status, first = cli.run(url, "lock", "job", "--", "sh", "-c", "echo $KV_LOCK_TOKEN")
    assert.equal(0, status)
    local _, second = cli.run(url, "lock", "job", "--", "sh", "-c", "echo $KV_LOCK_TOKEN")
    assert.is_true(tonumber(second) > tonumber(first))
  end)

  it("passes the exit status and signals on", function()
    local url = cli.url()
    assert.equal(7, (cli.run(url, "lock", "job", "--", "sh", "-c", "exit 7")))
    assert.equal(128 + 9, (cli.run(url, "lock", "job", "--", "sh", "-c", "kill -9 $$")))
    local note = file()
    local process = cli.start(url, "lock", "job", "--", "sh", "-c",
      "trap 'echo got it >> " .. note .. "; exit 9' USR1; echo ready > " .. note .. "; while :; do sleep 0.05; done")
    util.eventually(written(note), "the command runs")
    process:kill("USR1")
    assert.same({"exit", 9}, {process:wait(cli.patience)})
    assert.equal("ready\ngot it\n", util.read(note))
    assert.equal(0, (cli.run(url, "lock", "job", "-t", "0", "--", "true")))
  end)

  it("keeps arguments as they are", function()
    local _, out = cli.run(cli.url(), "lock", "job", "--", "printf", "%s|", "a b", "$HOME", "*", "--json", "")
    assert.equal("a b|$HOME|*|--json||", out)
  end)

  it("says when the command cannot be run, and lets go", function()
    local url = cli.url()
    local status, _, err = cli.run(url, "lock", "job", "--", "no-such-command-here")
    assert.equal(127, status)
    assert.truthy(err:find("no-such-command-here", 1, true))
    assert.equal(126, (cli.run(url, "lock", "job", "--", "/etc/passwd")))
    assert.equal(0, (cli.run(url, "lock", "job", "-t", "0", "--", "true")))
  end)

  it("gives up waiting with status 4, on time or by a signal", function()
    local url, note = cli.url(), file()
    local holder = cli.start(url, "lock", "job", "--", "sh", "-c", "echo ready > " .. note .. "; exec sleep 60")
    util.eventually(written(note), "the lock is held")
    local took, status, out, err = util.timed(cli.run, url, "lock", "job", "-t", "0.3", "--", "echo", "never")
    assert.equal(4, status)
    assert.equal("", out)
    assert.truthy(err:find("job", 1, true))
    assert.is_true(took >= 0.3 and took < 5)
    assert.equal(4, (cli.run(url, "lock", "job", "-t", "0", "--", "echo", "never")))

    local waiter = cli.start(url, "lock", "job", "--", "echo", "never")
    native.sleep(0.3) -- it may still be starting: any moment of its life must do
    waiter:kill("TERM")
    local how, number = waiter:wait(cli.patience)
    assert.is_true((how == "exit" and number == 128 + 15) or (how == "signal" and number == 15))
    holder:kill("TERM")
    assert.same({"exit", 128 + 15}, {holder:wait(cli.patience)})
    assert.equal(0, (cli.run(url, "lock", "job", "-t", "5", "--", "true")))
  end)

  it("passes the lock on when its holder is killed", function()
    local url, note, second = cli.url(), file(), file()
    local holder = cli.start(url, "lock", "job", "--ttl", "3", "--", "sh", "-c",
      "echo $$ > " .. note .. "; exec sleep 60")
    util.eventually(written(note), "the lock is held")
    local waiter = cli.start(url, "lock", "job", "-t", "20", "--", "sh", "-c", "echo got it > " .. second)
    native.sleep(0.2)
    assert.is_nil(util.read(second))
    holder:kill("KILL")
    assert.same({"exit", 0}, {waiter:wait(cli.patience)})
    assert.equal("got it\n", util.read(second))
    os.execute("kill " .. tonumber(util.read(note)))
  end)

  it("ends the command when the lock is lost", function()
    local server = require("spec.support.servers").etcd{}
    local note = file()
    local process, _, err = cli.start(server:url(), "lock", "job", "--ttl", "2", "--grace", "0.5", "--", "sh", "-c",
      "trap 'echo term >> " .. note .. "' TERM; echo ready > " .. note .. "; while :; do sleep 0.05; done")
    util.eventually(written(note), "the command runs")
    server:pause() -- no renewal is answered any more
    local how, status = process:wait(cli.patience)
    server:stop()
    assert.same({"exit", 4}, {how, status})
    assert.equal("ready\nterm\n", util.read(note)) -- asked first, then killed
    assert.truthy(util.read(err):find('lock "job" was lost', 1, true))
  end)
end)
