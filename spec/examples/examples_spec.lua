local native = require("spec.native")
local util = require("spec.support.util")

local PATIENCE = 60
local unpack = table.unpack or unpack -- luacheck: ignore 143

-- Run an example to its end: exit status, output.
local function run(name, ...)
  local out = util.folder() .. "/out"
  local process = assert(native.spawn{util.interpreter(), "examples/" .. name, stdout = out, stderr = out, ...})
  local how, status = process:wait(PATIENCE)
  if not how then process:kill("KILL") end
  local text = util.read(out) or ""
  assert.equal("exit", how, text)
  return status, text
end

local function line_with(process, wanted) return util.line_with(process, wanted, PATIENCE) end

local function url() return "local:" .. util.folder() .. "/store" end

describe("examples", function()
  it("quickstart runs through", function()
    local status, text = run("quickstart.lua", url())
    assert.equal(0, status, text)
    assert.truthy(text:find("refused\tmodified", 1, true), text)
    assert.truthy(text:find("watched\tdelete\tservices/db/1", 1, true), text)
    assert.truthy(text:find("lock\tdone with token ", 1, true), text)
  end)

  it("the demonstration shows what it promises", function()
    local took, status, text = util.timed(run, "demo.lua")
    assert.equal(0, status, text)
    assert.truthy(text:find("The demonstration worked", 1, true), text)
    assert.truthy(text:find("was killed with SIGKILL while holding the lock", 1, true), text)
    assert.is_nil(text:find("\27", 1, true)) -- colours are for terminals
    assert.is_true(took < 30)
  end)

  it("the demonstration fails when the store does", function()
    local file = util.folder() .. "/file"
    util.write(file, "no folder")
    local status, text = run("demo.lua", "local:" .. file)
    assert.equal(1, status, text)
    assert.truthy(text:find("FAILED", 1, true), text)
  end)

  it("the configuration watcher reacts", function()
    local where = url()
    local watcher = util.lua("examples/config_watcher.lua", where)
    line_with(watcher, "working in blue")
    local kv = require("kv")
    local store = assert(kv.open(where))
    assert(store:put("config/interval", "0.1"))
    line_with(watcher, "changed: put config/interval 0.1")
    assert(store:put("config/colour", "green"))
    line_with(watcher, "working in green")
    store:close()
    watcher:kill("KILL")
    watcher:wait(PATIENCE)
  end)

  it("the lock goes from process to process", function()
    local where = url()
    local first = util.lua("examples/lock_between_processes.lua", where, "60")
    local token = tonumber(line_with(first, "got the lock"):match("%d+"))
    local second = util.lua("examples/lock_between_processes.lua", where, "0.1")
    line_with(second, ("waiting: somebody holds the lock with token %d"):format(token))
    first:kill("KILL")
    assert.is_true(tonumber(line_with(second, "got the lock"):match("%d+")) > token)
    line_with(second, "the work is written")
    line_with(second, "released\ttrue")
    second:wait(PATIENCE)
    first:wait(PATIENCE)
  end)

  it("a loop of one's own goes on while a lock waits", function()
    local status, text = run("own_loop.lua", url())
    assert.equal(0, status, text)
    assert.is_true(tonumber(text:match("after (%d+) ticks")) >= 10, text)
    assert.truthy(text:find("a task returned\tv", 1, true), text)
    assert.truthy(text:find("nothing came\ttimeout", 1, true), text)
  end)

  it("OpenResty's workers share a lock, started by one command", function()
    local port = assert(native.port())
    local said = util.folder() .. "/said"
    local command = ("PORT=%d MAKE=true BUILD=%s exec examples/openresty/run"):format(port,
      os.getenv("KV_BUILD") or "build")
    local nginx = assert(native.spawn{"sh", "-c", command, stdout = said, stderr = said})
    util.eventually(function() return native.listening(port) end, "nginx listens", PATIENCE)
    local function get(path, more)
      local out = util.folder() .. "/out"
      local curl = assert(native.spawn{"curl", "-sS", "--max-time", "30", stdout = out, stderr = out,
        ("http://127.0.0.1:%d%s"):format(port, path), unpack(more or {})})
      return function()
        curl:wait(PATIENCE)
        return util.read(out)
      end
    end
    local first, second = get("/lock"), get("/lock")
    local one, other = first():match("with token (%d+)"), second():match("with token (%d+)")
    assert.is_truthy(one and other and one ~= other, util.read(said))
    assert.equal("1\n", get("/count")())
    assert.equal("2\n", get("/count")())
    assert.is_truthy(get("/flags/dark", {"-X", "PUT", "--data", "on"})():find("^revision %d+"))
    util.eventually(function() return get("/flags/dark")() == "on\n" end, "every worker sees the flag")
    assert.is_truthy(get("/")():find("dark = on", 1, true))
    nginx:kill("TERM")
    local how, status = nginx:wait(PATIENCE)
    assert.equal("exit 0", how .. " " .. tostring(status), util.read(said))
  end)

  it("OpenResty's does not start with a URL that is none, nor with a word that is no URL", function()
    for word, wanted in pairs{["localhost:2379"] = "as in etcd://localhost:2379", ["--help"] = "run [URL]"} do
      local said = util.folder() .. "/said"
      local process = assert(native.spawn{"examples/openresty/run", word, stdout = said, stderr = said,
        env = {"MAKE=true", "BUILD=" .. (os.getenv("KV_BUILD") or "build"), "PORT=" .. native.port()}})
      local how, status = process:wait(PATIENCE)
      if not how then process:kill("TERM") end
      local text = util.read(said)
      assert.equal("exit", how, text)
      assert.is_true(status ~= 0, text)
      assert.is_truthy(text:find(wanted, 1, true), text)
    end
  end)
end)
