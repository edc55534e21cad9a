--- Locks shared with etcdctl lock, which is Go's concurrency.Mutex of etcd's own client.
local kv = require("kv")
local cases = require("spec.interop.cases")
local cli = require("spec.cli.support")
local native = require("spec.native")
local servers = require("spec.support.servers")

describe("interop with etcdctl lock", function()
  local server
  local ground = {kind = "etcd", kinds = "etcd", ordered = true, ttl = 6}

  setup(function() server = servers.etcd{arguments = {"--unsafe-no-fsync"}} end)
  teardown(function() server:stop() end)

  function ground.url(rest) return server:url(rest) end

  function ground.path(number) return "/jobs/nightly " .. number end

  function ground.size(path)
    local _, count = server:ctl("get", "--prefix", "--keys-only", path .. "/"):gsub("[^\n]+\n", "")
    return count
  end

  --- Its line is the key that it holds by.
  function ground.contend(path, ttl)
    return assert(native.spawn{"etcdctl", "--endpoints", ("http://127.0.0.1:%d"):format(server.port), "lock", "--ttl",
      tostring(ttl), path, env = {"ETCDCTL_API=3"}, pipe = true})
  end

  function ground.release(process)
    assert(process:kill("INT"))
    assert(process:wait(30))
  end

  function ground.remove(path) server:ctl("del", "--prefix", path .. "/") end

  cases.describe(ground)

  it("names are spelled as others spell them: a slash at the beginning makes another lock", function()
    local store = assert(kv.open(server:url("/app")))
    local theirs = ground.contend("spelled/x", 30)
    local key = assert(theirs:line(30))
    assert.is_truthy(key:find("^spelled/x/%x+$"), key)
    cases.fails("timeout", assert(store:lock("spelled/x", {interop = "etcd"})):acquire(0))
    local other = assert(assert(store:lock("/spelled/x", {interop = "etcd"})):acquire(10))
    assert(other:release())
    other = assert(assert(store:lock("spelled/x/", {interop = "etcd"})):acquire(10))
    assert(other:release())
    -- As in Go, what begins with the name and a slash is in line.
    cases.fails("timeout", assert(store:lock("spelled", {interop = "etcd"})):acquire(0))
    ground.release(theirs)
    store:close()
  end)

  it("kv lock --interop is one of them", function()
    local theirs = ground.contend("/from the shell", 30)
    assert(theirs:line(30))
    assert.equal(4, (cli.run(server:url(), "lock", "/from the shell", "-t", "0", "--interop", "etcd", "--", "true")))
    ground.release(theirs)
    assert.equal(7, (cli.run(server:url(), "lock", "/from the shell", "--interop", "etcd", "--", "sh", "-c",
      "exit 7")))
    assert.equal(2, (cli.run(server:url(), "lock", "/from the shell", "--interop", "other", "--", "true")))
  end)

  it("a program run under etcdctl lock sees ours released only after it", function()
    local store = assert(kv.open(server:url("/app")))
    local ours = assert(assert(store:lock("/run", {interop = "etcd"})):acquire(10))
    local runner = assert(native.spawn{"etcdctl", "--endpoints", ("http://127.0.0.1:%d"):format(server.port), "lock",
      "/run", "printenv", "ETCD_LOCK_REV", env = {"ETCDCTL_API=3"}, pipe = true})
    assert(ours:release())
    local revision = tonumber((assert(runner:line(30))))
    assert.is_true(revision > ours.token)
    assert(runner:wait(30))
    store:close()
  end)
end)
