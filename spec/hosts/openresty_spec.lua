--- OpenResty: a real nginx, its handlers' calls yield.
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
        taken = true
        ngx.sleep(30)
      }
    }
    location = /free { content_by_lua_block {
      collectgarbage() collectgarbage()
      local got, message, code = store:lock("abandoned"):acquire(0.2)
      if got then got:release() end
      ngx.print(got and "free" or code)
    } }
    location = /timers { content_by_lua_block {
      for i = 1, 20 do
        assert(ngx.timer.at(0, function()
          local watch = store:watch("key" .. i)
          for event in watch do end
        end))
      end
      local done = ngx.timer.at(0, function() local lock = store:lock("slow"):acquire() if lock then lock:release() end end)
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
      assert.is_falsy(line:find("[error]", 1, true) or line:find("[alert]", 1, true), line)
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
    assert.is_nil((server:get("/abandoned", "--max-time", "0.3")))
    util.eventually(function() return server:body("/free") == "free" end, "the lock is free", 10)
  end)

  it("lets old workers go at once, with watches and locks in timers", function()
    assert.equal("started", server:body("/timers"))
    assert.equal("v", server:body("/put?key=a&value=v"))
    local old = server:workers()
    server:reload()
    nginx.gone(old, 2.5)
    assert.equal("v", server:body("/get?key=a"))
    server:quit()
    assert.equal("exit", (server.process:wait(5)))
  end)

  it("loses no request when it is reloaded under load", function()
    local native = require("spec.native")
    local url = ("http://127.0.0.1:%d/put?key=load&value=[1-400]"):format(server.port)
    local load = {}
    for i = 1, 2 do
      load[i] = assert(native.spawn{"curl", "-sS", "--fail", url, stdout = server.folder .. "/load" .. i, stderr =
        server.folder .. "/load_errors" .. i})
    end
    local slow = assert(native.spawn{"curl", "-sS", "--fail", ("http://127.0.0.1:%d/slow?seconds=1"):format(server.port),
      stdout = server.folder .. "/slow", stderr = server.folder .. "/slow_errors"})
    util.eventually(function() return #(util.read(server.folder .. "/load1") or "") > 20 end, "the load has begun")
    local old = server:workers()
    server:reload()
    for i = 1, 2 do
      local how, code = load[i]:wait(30)
      assert.equal("exit 0", how .. " " .. code, util.read(server.folder .. "/load_errors" .. i))
    end
    local how, code = slow:wait(30)
    assert.equal("exit 0", how .. " " .. code, util.read(server.folder .. "/slow_errors"))
    assert.equal("slow", util.read(server.folder .. "/slow"))
    nginx.gone(old, 2.5)
  end)
end)
