--- The examples that have a folder: each is started by its one command, as a reader would, and used.
local browser = require("spec.support.browser")
local native = require("spec.native")
local servers = require("spec.support.servers")
local util = require("spec.support.util")
local kv = require("kv")

local PATIENCE = 60

local running = {}

-- Start examples/NAME/run with these words. Its lines are read by line_with().
local function start(name, environment, ...)
  environment = environment or {}
  -- It is built already, and LUA is the one that runs this.
  for _, word in ipairs{"MAKE=true", "BUILD=" .. (os.getenv("KV_BUILD") or "build"), "LUA=" .. (os.getenv("KV_LUA") or
    "lua5.4")} do
    environment[#environment + 1] = word
  end
  local process = assert(native.spawn{"examples/" .. name .. "/run", pipe = true, env = environment, ...})
  running[#running + 1] = process
  return process
end

-- Read lines up to one that has `wanted`; returns it.
local function line_with(process, wanted) return util.line_with(process, wanted, PATIENCE) end

-- Read lines up to one that is like this; returns what it captures.
local function line_like(process, pattern) return util.line_like(process, pattern, PATIENCE) end

-- End it as Ctrl-C does, all of it: nothing that it started stays.
local function stop(process)
  process:kill("TERM")
  local how = process:wait(PATIENCE)
  assert.is_truthy(how, "it does not end")
end

local function lives(pid)
  local stat = util.read("/proc/" .. pid .. "/stat")
  return stat ~= nil and stat:match("%) (%a)") ~= "Z"
end

local function url() return "local:" .. util.folder() .. "/store" end

local function with_store(where, fn)
  local store = assert(kv.open(where))
  fn(store)
  store:close()
end

describe("examples in folders", function()
  after_each(function()
    for _, process in ipairs(running) do
      if process:running() then stop(process) end
    end
    running = {}
  end)

  it("service-registry: who is ill, hangs or dies is gone, and comes back", function()
    local registry = start("service-registry", nil, url())
    local first = line_with(registry, "instance 10.0.0.1:80 is process"):match("(%d+)$")
    local second = line_with(registry, "instance 10.0.0.2:80 is process"):match("(%d+)$")
    local ill = line_with(registry, "or touch "):match("touch (.*)$")
    -- Who is there is what counts: on a busy machine a healthy one may be missing for a moment.
    local function there(...) line_like(registry, ("(now: %s)$"):format(table.concat({...}, " "):gsub("%.", "%%."))) end
    there("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
    os.execute("kill -KILL " .. second)
    there("10.0.0.1:80", "10.0.0.3:80")
    util.write(ill, "")
    there("10.0.0.1:80")
    os.remove(ill)
    there("10.0.0.1:80", "10.0.0.3:80")
    os.execute("kill -STOP " .. first)
    there("10.0.0.3:80")
    os.execute("kill -CONT " .. first)
    there("10.0.0.1:80", "10.0.0.3:80")
    stop(registry)
    assert.is_false(lives(first))
  end)

  for _, host in ipairs{"cqueues", "luv"} do
    it("hot-reload: settings change while it runs in " .. host, function()
      local where = url()
      local program = start("hot-reload", nil, host, where)
      line_with(program, "working in blue")
      with_store(where, function(store)
        assert(store:put("config/interval", "0.01"))
        line_with(program, "reloaded: interval is now 0.01")
        assert(store:put("config/colour", "green"))
        line_with(program, "reloaded: colour is now green")
        line_with(program, "working in green")
        assert(store:delete("config/colour"))
        line_with(program, "reloaded: colour is now the default")
        line_with(program, "working in blue")
      end)
    end)
  end

  it("migration: no count is lost between ZooKeeper and etcd", function()
    local zookeeper, etcd = servers.zookeeper{}, servers.etcd{}
    local old, new = zookeeper:url("/app"), etcd:url("/app")
    with_store(old, function(store) assert(store:put("other/key", "\0\255")) end)
    local migration = start("migration", {"ROUNDS=300"}, old, new)
    local counted = {}
    for _ = 1, 2 do
      local name, count = line_like(migration, "^(%a+) has counted to (%d+)$")
      counted[name] = count
    end
    line_with(migration, "the counts in the new store:")
    migration:wait(PATIENCE)
    with_store(new, function(store)
      assert.same(counted, {ada = store:get("count/ada").value, bob = store:get("count/bob").value})
      assert.equal("\0\255", store:get("other/key").value)
    end)
    with_store(old, function(store)
      -- Not one write came behind the mark.
      for name, count in pairs(counted) do
        local pair = store:get("count/" .. name)
        assert.equal(count - 300, pair and tonumber(pair.value) or 0)
      end
    end)
    zookeeper:stop()
    etcd:stop()
  end)

  it("rate-limit: no more calls begin within a window than may", function()
    local limit, times = start("rate-limit", nil, url()), {}
    while #times < 15 do times[#times + 1] = tonumber(line_with(limit, " calls at "):match("at ([%d.]+)$")) end
    table.sort(times)
    for i = 4, #times do assert.is_true(times[i] - times[i - 3] >= 0.5, table.concat(times, " ")) end
    assert.same({"exit", 0}, {limit:wait(PATIENCE)})
  end)

  it("leader-cron: one leads, and another goes on when it dies", function()
    local where = url()
    local cron, pids = start("leader-cron", nil, where), {}
    for _, name in ipairs{"ada", "bob", "cyd"} do
      pids[name] = line_with(cron, name .. " is process"):match("(%d+)$")
    end
    local first = line_like(cron, "^(%a+) leads$")
    local token = tonumber((line_like(cron, "^" .. first .. " runs report %(token (%d+)%)$")))
    os.execute("kill -KILL " .. pids[first])
    local second = line_like(cron, "^(%a+) leads$")
    assert.is_true(second ~= first)
    assert.is_true(tonumber((line_like(cron, "^" .. second .. " runs report %(token (%d+)%)$"))) > token)
    stop(cron)
    for _, pid in pairs(pids) do assert.is_false(lives(pid)) end
  end)
end)

-- ------------------------------------------------------------------ in nginx

local function curl(...)
  return assert(servers.run{"curl", "-sS", "--max-time", "20", ...})
end

describe("feature-flags", function()
  local missing = browser.missing()
  local where, port, program, base

  setup(function()
    where, port = url(), native.port()
    base = ("http://127.0.0.1:%d"):format(port)
    program = start("feature-flags", {"PORT=" .. port}, where)
    util.eventually(function() return native.listening(port) end, "nginx listens", PATIENCE)
  end)

  teardown(function() stop(program) end)

  it("answers handlers from memory, and changes while it runs", function()
    assert.equal("the old checkout\n", curl(base .. "/checkout"))
    assert.equal("done\n", curl("-X", "PUT", "--data", "on", base .. "/flags/new-checkout"))
    util.eventually(function() return curl(base .. "/checkout") == "the new checkout\n" end, "the flag is on")
    with_store(where, function(store)
      assert.equal("on", store:get("flags/new-checkout").value)
      assert(store:delete("flags/new-checkout"))
    end)
    util.eventually(function() return curl(base .. "/checkout") == "the old checkout\n" end, "the flag is off")
  end)

  it("sends events to every reader", function()
    local out = util.folder() .. "/events"
    local reader = assert(native.spawn{"curl", "-sN", "--max-time", "20", base .. "/events", stdout = out})
    local function seen(text) return function() return (util.read(out) or ""):find(text, 1, true) end end
    util.eventually(seen("data: \n"), "the first state")
    with_store(where, function(store) assert(store:put("flags/a b", "x&y")) end)
    util.eventually(seen("data: a%20b=x%26y\n\n"), "the change")
    with_store(where, function(store) assert(store:delete("flags/a b")) end)
    reader:kill("TERM")
    reader:wait(10)
  end)

  it("has a page that follows", function()
    if missing then
      pending(("%s is not installed: the page was NOT tested in a browser"):format(missing))
      return
    end
    local page = browser.start()
    local ok, problem = pcall(function()
      page:open(base .. "/")
      local function text() return page:run("return document.getElementById('flags').innerText") end
      local function shows(wanted)
        util.eventually(function() return text():find(wanted, 1, true) end, "the page shows " .. wanted, 20)
      end
      util.eventually(function() return page:run("return document.getElementById('state').innerText") == "live" end,
        "the page is live", 20)
      with_store(where, function(store)
        -- From outside to the page, without loading it again...
        page:run("window.same = true")
        assert(store:put("flags/dark", "on"))
        shows("dark is on")
        -- ...from the page to the store, and back.
        page:run("document.getElementById('flag-dark').click()")
        util.eventually(function() return store:get("flags/dark").value == "off" end, "the click is written")
        shows("dark is off")
        page:run("document.getElementById('name').value = 'team/new'; document.querySelector('#new button').click()")
        util.eventually(function() return store:get("flags/team/new") end, "the new flag is written")
        shows("team/new is off")
        assert(store:delete("flags/dark"))
        util.eventually(function() return not text():find("dark", 1, true) end, "the flag goes")
        assert.is_true(page:run("return window.same"))
      end)
    end)
    page:stop()
    if not ok then error(problem, 0) end
  end)
end)
