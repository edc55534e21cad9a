--- OpenResty: a real nginx, its handlers' calls yield.
local native = require("spec.native")
local nginx = require("spec.support.nginx")
local util = require("spec.support.util")

local HTTP = [[
  init_worker_by_lua_block {
    local kv = require("kv")
    store = assert(kv.open(os.getenv("KV_TEST_URL"), {prefix = "openresty"}))
    mirror = assert(store:mirror("flags"))
    local value, message, code = store:put("from_init_worker", "v")
    init_worker_code = tostring(value) .. " " .. tostring(code)
    logged = {}
  }
]]

local SERVER = [[
    location = /put { content_by_lua_block {
      local pair, message, code = store:put(ngx.var.arg_key, ngx.var.arg_value)
      ngx.print(pair and pair.value or message .. " " .. code)
    } }
    location = /get { content_by_lua_block {
      local pair, message, code = store:get(ngx.var.arg_key)
      ngx.print(pair and pair.value or tostring(message))
    } }
    location = /who { content_by_lua_block {
      assert(store:put(ngx.var.arg_key, ngx.var.arg_value))
      ngx.say(ngx.worker.pid())
    } }
    location = /mirror { content_by_lua_block {
      assert(mirror:wait_ready(10))
      ngx.print(tostring(mirror:get("flags/" .. ngx.var.arg_key)))
    } }
    location = /init_worker { content_by_lua_block { ngx.print(init_worker_code) } }
    location = /ticks { content_by_lua_block {
      local kv = require("kv")
      local ticks, stop, before = 0, false, nil
      local first = assert(assert(store:lock("door")):acquire(10))
      local ticker = ngx.thread.spawn(function()
        while not stop do ngx.sleep(0.01) ticks = ticks + 1 end
      end)
      local waiter = ngx.thread.spawn(function()
        local second = store:lock("door")
        before = ticks
        assert(second:acquire(10))
        local seen = ticks - before
        assert(second:release())
        return seen
      end)
      while ticks < 20 do ngx.sleep(0.01) end
      assert(first:release())
      local ok, seen = ngx.thread.wait(waiter)
      stop = true
      ngx.thread.wait(ticker)
      ngx.print(tostring(seen))
    } }
    location = /many { content_by_lua_block {
      local threads = {}
      for i = 1, 10 do
        threads[i] = ngx.thread.spawn(function()
          for j = 1, 10 do
            local key = "many/" .. i .. "/" .. j
            assert(store:put(key, "v" .. j))
            assert(assert(store:get(key)).value == "v" .. j)
          end
          return 20
        end)
      end
      local sum = 0
      for i = 1, 10 do
        local ok, done = ngx.thread.wait(threads[i])
        sum = sum + (ok and done or 0)
      end
      ngx.print(sum)
    } }
    location = /watch { content_by_lua_block {
      local watch = assert(store:watch_tree("watched"))
      assert(watch:wait_synced(10))
      local writer = ngx.thread.spawn(function()
        for i = 1, 20 do assert(store:put("watched/key", tostring(i))) end
      end)
      local last
      repeat last = assert(watch:next(10)).value until last == "20"
      watch:close()
      local _, _, code = store:watch("nothing"):next(0.05)
      ngx.print(last, " ", code)
    } }
    location = /spawn { content_by_lua_block {
      local kv = require("kv")
      local task = kv.spawn(function(a) kv.sleep(0.01) return a, store:put("spawned", "v").value end, "a")
      ngx.print(table.concat({task:join(10)}, " "))
    } }
    location = /cancel { content_by_lua_block {
      local kv = require("kv")
      local held = assert(assert(store:lock("cancelled")):acquire(10))
      local watch = assert(store:watch("nothing"))
      local cleaned, inside
      local line = store:lock("cancelled")
      local tasks = {
        sleep = kv.spawn(function() return select(3, kv.sleep(30)) end),
        lock = kv.spawn(function() return select(3, line:acquire()) end),
        watch = kv.spawn(function() return select(3, watch:next()) end),
        join = kv.spawn(function() return select(3, kv.spawn(function() kv.sleep(0.5) end):join()) end),
        with_lock = kv.spawn(function()
          return select(3, store:with_lock("another", {}, function()
            inside = true
            local _, _, code = kv.sleep(30)
            cleaned = true
            return nil, nil, code
          end))
        end),
      }
      while not (inside and line:state() == "waiting") do ngx.sleep(0.005) end
      tasks.early = kv.spawn(function() return select(3, kv.sleep(30)) end)
      for _, task in pairs(tasks) do assert(task:cancel()) end
      local said = {}
      for _, name in ipairs{"early", "join", "lock", "sleep", "watch", "with_lock"} do
        said[#said + 1] = name .. " " .. tostring((tasks[name]:join(5)))
      end
      watch:close()
      assert(held:release())
      local free = store:lock("cancelled"):acquire(1) -- nobody is in line, and nobody got it
      local other = store:lock("another"):acquire(1)
      ngx.print(table.concat(said, ", "), ", ", tostring(free ~= nil and free:release()), " ",
        tostring(other ~= nil and other:release()), " ", tostring(cleaned), " ", tostring(tasks.sleep:cancel()))
    } }
    location = /log {
      content_by_lua_block { ngx.print("logged") }
      log_by_lua_block {
        local pair, message, code = store:put("from log", "v")
        logged.put = tostring(pair) .. " " .. tostring(code)
        logged.mirror = mirror:get("flags/a")
        local _, _, why = store:watch("nothing"):next()
        logged.watch = why
        require("kv").spawn(function() store:put("handed_over", "v") end)
      }
    }
    location = /logged { content_by_lua_block {
      ngx.print(tostring(logged.put), ", ", tostring(logged.mirror), ", ", tostring(logged.watch))
    } }
    location = /slow { content_by_lua_block {
      local lock = assert(store:lock("slow"))
      assert(lock:acquire(10))
      ngx.print("has it, ") ngx.flush(true)
      ngx.sleep(tonumber(ngx.var.arg_seconds))
      assert(store:put("slow", "v"))
      assert(lock:release())
      ngx.print("slow")
    } }
    location = /abandoned {
      lua_check_client_abort on;
      content_by_lua_block {
        ngx.on_abort(function() ngx.exit(499) end)
        local lock = assert(store:lock("abandoned"))
        assert(lock:acquire(10))
        ngx.print("taken ") ngx.flush(true)
        ngx.sleep(30)
      }
    }
    location = /killed { content_by_lua_block {
      local held = assert(assert(store:lock("abandoned")):acquire(10))
      local watch = assert(store:watch("nothing"))
      local threads = {}
      local function start(fn) threads[#threads + 1] = ngx.thread.spawn(fn) end
      for _ = 1, 20 do
        start(function() store:lock("abandoned"):acquire() end)
        start(function() watch:next() end)
        start(function() require("kv").sleep(100) end)
        start(function() for i = 1, 1000 do store:put("killed", tostring(i)) end end)
        start(function() store:with_lock("abandoned", {}, function() end) end)
      end
      ngx.sleep(0.05)
      for _, thread in ipairs(threads) do assert(ngx.thread.kill(thread)) end
      watch:close()
      assert(held:release())
      ngx.print(tostring(store:stats().watches))
    } }
    location = /free { content_by_lua_block {
      local got, message, code = store:lock("abandoned"):acquire(0.2)
      if got then got:release() end
      ngx.print(got and "free" or code)
    } }
    location = /of_a_timer { content_by_lua_block {
      local lock, message, code = store:lock("of a timer"):acquire(5)
      ngx.print(lock and tostring(lock:release()) or code)
    } }
    location = /timers { content_by_lua_block {
      for i = 1, 20 do
        assert(ngx.timer.at(0, function()
          local watch = store:watch("key" .. i)
          for event in watch do end
        end))
      end
      ngx.timer.at(0, function()
        local lock = store:lock("slow"):acquire()
        if lock then lock:release() end
      end)
      local own = assert(require("kv").open(os.getenv("KV_TEST_URL"), {prefix = "openresty"}))
      assert(own:lock("of a timer", {ttl = 30}):acquire(10))
      assert(ngx.timer.at(1000, function() own:close() end)) -- comes early when the worker ends
      local away = assert(require("kv").open("etcd://127.0.0.1:1", {timeout = 20}))
      assert(ngx.timer.at(0, function() away:put_many{a = "1", b = "2"} end))
      ngx.print("started")
    } }
]]

describe("OpenResty", function()
  local server

  before_each(function() server = nginx.start{http = HTTP, server = SERVER} end)
  after_each(function()
    local errors = server:errors()
    server:stop()
    for line in errors:gmatch("[^\n]+") do
      for _, level in ipairs{"[warn]", "[error]", "[crit]", "[alert]"} do
        assert.is_falsy(line:find(level, 1, true), line)
      end
    end
  end)

  it("does 200 operations in light threads", function()
    assert.equal("v", server:body("/put?key=a&value=v"))
    assert.equal("v", server:body("/get?key=a"))
    assert.equal("200", server:body("/many"))
  end)

  it("goes on ticking while a lock waits", function()
    assert.is_true(tonumber(server:body("/ticks")) >= 10)
  end)

  it("waits for watches and tasks", function()
    assert.equal("20 timeout", server:body("/watch"))
    assert.equal("a v", server:body("/spawn"))
  end)

  it("wakes a task that is cancelled, from what it waits for, and cleans up", function()
    assert.equal("early cancelled, join cancelled, lock cancelled, sleep cancelled, watch cancelled, " ..
      "with_lock cancelled, true true true false", server:body("/cancel"))
  end)

  it("refuses what a phase cannot wait for, and reads the mirror everywhere", function()
    assert.equal("nil phase", server:body("/init_worker"))
    assert.equal("on", server:body("/put?key=flags/a&value=on"))
    util.eventually(function() return server:body("/mirror?key=a") == "on" end)
    assert.equal("nil", server:body("/get?key=from_init_worker"))
    assert.equal("logged", server:body("/log"))
    assert.equal("nil phase, on, phase", server:body("/logged"))
    util.eventually(function() return server:body("/get?key=handed_over") == "v" end, "a write from the log phase")
  end)

  it("gives a lock back whose request was aborted", function()
    local out = server.folder .. "/abandoned"
    local curl = assert(native.spawn{"curl", "-sS", "-N", stdout = out,
      ("http://127.0.0.1:%d/abandoned"):format(server.port)})
    util.eventually(function() return util.read(out) == "taken " end, "the request has the lock")
    assert.equal("timeout", server:body("/free"))
    curl:kill("KILL")
    curl:wait(10)
    util.eventually(function() return server:body("/free") == "free" end, "the lock is free", 15)
  end)

  it("keeps nothing of light threads that were killed while they waited", function()
    assert.equal("1", server:body("/killed")) -- the mirror's
    assert.equal("v", server:body("/put?key=killed&value=v"))
    util.eventually(function() return server:body("/free") == "free" end, "the lock is free", 15)
    assert.equal("v", server:body("/get?key=killed"))
  end)

  it("lets old workers go at once, with watches and locks in timers", function()
    assert.equal("started", server:body("/timers"))
    assert.equal("v", server:body("/put?key=a&value=v"))
    local old = server:workers()
    server:reload()
    nginx.gone(old)
    assert.equal("v", server:body("/get?key=a"))
    assert.equal("true", server:body("/of_a_timer"))
    server:quit()
    assert.equal("exit", (server.process:wait(10)))
  end)

  it("loses no request when it is reloaded under load", function()
    assert.equal("up", server:body("/up"))
    local old, stop, loads = server:workers(), server.folder .. "/stop", {}
    -- The load goes on until the new worker has its part of it.
    for i = 1, 2 do
      local url = ("http://127.0.0.1:%d/who?key=load%d&value=[1-50]"):format(server.port, i)
      loads[i] = {out = server.folder .. "/load" .. i}
      loads[i].process = assert(native.spawn{"sh", "-c",
        'while [ ! -e "$0" ]; do curl -sS --fail --max-time 30 "$1" || exit 1; done', stop, url,
        stdout = loads[i].out, stderr = loads[i].out .. ".errors"})
    end
    local function served_by(load, pid)
      return (util.read(load.out) or ""):find(pid .. "\n", 1, true) ~= nil
    end
    for _, load in ipairs(loads) do
      util.eventually(function() return served_by(load, old[1]) end, "the load has begun")
    end
    local slow_url = ("http://127.0.0.1:%d/slow?seconds=1"):format(server.port)
    local slow = assert(native.spawn{"curl", "-sS", "-N", "--fail", slow_url,
      stdout = server.folder .. "/slow", stderr = server.folder .. "/slow_errors"})
    util.eventually(function() return util.read(server.folder .. "/slow") == "has it, " end, "the slow one has begun")
    server:reload()
    local new
    util.eventually(function()
      for _, pid in ipairs(server:workers()) do if pid ~= old[1] then new = pid end end
      return new and served_by(loads[1], new) and served_by(loads[2], new)
    end, "the new worker serves")
    util.write(stop, "")
    for _, load in ipairs(loads) do
      local how, code = load.process:wait(60)
      assert.equal("exit 0", how .. " " .. code, util.read(load.out .. ".errors"))
    end
    local how, code = slow:wait(30)
    assert.equal("exit 0", how .. " " .. code, util.read(server.folder .. "/slow_errors"))
    assert.equal("has it, slow", util.read(server.folder .. "/slow"))
    nginx.gone(old)
  end)
end)

describe("OpenResty, elsewhere:", function()
  local server

  local function start(options)
    server = nginx.start(options)
  end

  after_each(function()
    server:stop()
  end)

  local OPEN = [[
    local kv = require("kv")
    store = assert(kv.open(os.getenv("KV_TEST_URL"), {prefix = "openresty", socket_dir = %q}))
  ]]
  local function opened_by_worker(socket_dir)
    return "init_worker_by_lua_block {" .. OPEN:format(socket_dir) .. "mirror = store:mirror('flags') }"
  end
  local PUT_AND_GET = [[
    location = /round { content_by_lua_block {
      local pair, message, code = store:put(ngx.var.arg_key, "v" .. ngx.worker.pid())
      if not pair then return ngx.print(message, " ", code) end
      ngx.print(assert(store:get(ngx.var.arg_key)).value)
    } }
  ]]

  it("leaves no socket behind in its folder, which is made when it is not there", function()
    local folder = util.folder() .. "/sockets"
    start{http = opened_by_worker(folder), server = PUT_AND_GET, workers = 3}
    for i = 1, 30 do assert.is_truthy(server:body("/round?key=key" .. i):match("^v%d+$")) end
    assert.equal(3, #server:workers())
    util.eventually(function()
      local names = {}
      for name in require("lfs").dir(folder) do names[#names + 1] = name end
      return #names == 2
    end, "the folder is empty")
    util.remove(folder)
  end)

  it("works without a place for its socket, and says so", function()
    start{http = opened_by_worker("/proc/no/such"), server = PUT_AND_GET}
    for i = 1, 5 do assert.is_truthy(server:body("/round?key=key" .. i):match("^v%d+$")) end
    assert.is_truthy(server:errors():find("socket_dir", 1, true), server:errors())
    local old = server:workers()
    server:reload()
    nginx.gone(old)
    assert.is_truthy(server:body("/round?key=again"):match("^v%d+$"))
  end)

  it("works without a code cache", function()
    start{http = "lua_code_cache off;", server = ("location = /round { content_by_lua_block {" .. OPEN .. [[
      assert(store:put("key", "v"))
      local watch = store:watch("key")
      assert(watch:next(10))
      ngx.print(assert(store:get("key")).value)
    } }]]):format("/tmp")}
    assert.equal("up", server:body("/up"))
    assert.equal(1, #server:workers())
    -- Each request had a store of its own, and a watch that it forgot; not one is left.
    local folder = "/proc/" .. server:workers()[1] .. "/"
    local function count(what)
      local entries = 0
      for _ in require("lfs").dir(folder .. what) do entries = entries + 1 end
      return entries
    end
    local descriptors, threads = count("fd"), count("task")
    for _ = 1, 30 do assert.equal("v", server:body("/round")) end
    util.eventually(function()
      return count("fd") <= descriptors and count("task") <= threads
    end, "all is given back", 60)
    assert.is_falsy(server:errors():find("exited on signal", 1, true), server:errors())
  end)

  it("answers closed for a store that was opened in init, before the fork", function()
    start{http = "init_by_lua_block {" .. OPEN:format("/tmp") .. [[
      local pair, message, code = store:put("from_init", "v")
      early = tostring(pair) .. " " .. tostring(code)
      local mirror, problem, why = store:mirror("flags")
      early_mirror = tostring(mirror) .. " " .. tostring(why)
    }]], server = PUT_AND_GET .. [[
      location = /early { content_by_lua_block { ngx.print(early, ", ", early_mirror) } }
    ]]}
    assert.equal("nil phase, nil phase", server:body("/early"))
    assert.is_truthy(server:body("/round?key=key"):find("closed", 1, true))
  end)

  it("starts with a backend that is away, and heals", function()
    local etcd = require("spec.support.servers").etcd{}
    etcd:kill()
    start{http = ([[init_worker_by_lua_block {
      store = assert(require("kv").open("etcd://127.0.0.1:%d", {timeout = 0.3}))
      mirror = assert(store:mirror(""))
    }]]):format(etcd.port), server = PUT_AND_GET .. [[
      location = /ready { content_by_lua_block { ngx.print(tostring(mirror:ready()), " ", tostring(mirror:get("a"))) } }
    ]]}
    assert.equal("false nil", server:body("/ready"))
    local said = server:body("/round?key=key")
    assert.is_truthy(said:find(" unavailable$") or said:find(" timeout$"), said)
    etcd:start()
    util.eventually(function() return server:body("/round?key=a"):find("^v%d+$") end, "a write after the healing", 15)
    util.eventually(function() return server:body("/ready"):find("^true v%d+$") end, "the mirror after the healing", 15)
    etcd:stop()
  end)

  it("ends the lock of a worker that was killed", function()
    start{http = opened_by_worker("/tmp"), server = [[
      location = /take { content_by_lua_block {
        lock = store:lock("of a worker", {ttl = 2})
        ngx.print(tostring(lock:acquire(10) ~= nil))
      } }
      location = /wait { content_by_lua_block {
        local other, message, code = store:lock("of a worker", {ttl = 2}):acquire(12)
        if other then other:release() end
        ngx.print(tostring(other ~= nil), " ", tostring(message))
      } }
    ]]}
    assert.equal("true", server:body("/take"))
    local pid = server:workers()[1]
    os.execute("kill -9 " .. pid)
    nginx.gone({pid})
    assert.equal("true nil", server:body("/wait"))
  end)

  it("reads the mirror in every phase of a request", function()
    start{http = opened_by_worker("/tmp") .. [[
      upstream nowhere {
        server 0.0.0.1;
        balancer_by_lua_block {
          ngx.ctx.balancer = tostring(mirror:get("flags/a"))
          require("ngx.balancer").set_current_peer("127.0.0.1", tonumber(mirror:get("flags/port")))
        }
      }]], server = PUT_AND_GET .. [[
      location = /set { content_by_lua_block {
        assert(store:put_many{["flags/a"] = "on", ["flags/port"] = ngx.var.server_port})
        assert(mirror:wait_ready(10))
        while not mirror:get("flags/port") do ngx.sleep(0.005) end
        ngx.print("set")
      } }
      location = /phases {
        set_by_lua_block $set { return tostring(mirror:get("flags/a")) }
        rewrite_by_lua_block { ngx.ctx.rewrite = mirror:get("flags/a") store:put("in_rewrite", "v") }
        access_by_lua_block { ngx.ctx.access = assert(store:get("in_rewrite")).value }
        proxy_pass http://nowhere/up;
        header_filter_by_lua_block {
          ngx.header["X-Seen"] = table.concat({ngx.var.set, tostring(ngx.ctx.rewrite), tostring(ngx.ctx.access),
            tostring(ngx.ctx.balancer), tostring(mirror:get("flags/a"))}, " ")
          ngx.header.content_length = nil
        }
        body_filter_by_lua_block { ngx.arg[1] = ngx.arg[1] .. tostring(mirror:get("flags/a")) }
      }
    ]]}
    assert.equal("set", server:body("/set"))
    local text = assert(server:get("/phases", "-i"))
    assert.is_truthy(text:find("X-Seen: on on v on on", 1, true), text .. server:errors())
    assert.is_truthy(text:find("up?on"), text)
  end)
end)
