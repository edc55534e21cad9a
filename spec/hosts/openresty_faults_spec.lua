--- OpenResty: what goes wrong, and what there is much of.
local native = require("spec.native")
local nginx = require("spec.support.nginx")
local util = require("spec.support.util")

local STORE = [[
  init_worker_by_lua_block {
    kv = require("kv")
    store = assert(kv.open(os.getenv("KV_TEST_URL"), {prefix = "openresty-faults", socket_dir = %q}))
  }
]]

describe("OpenResty, faults:", function()
  local server

  local function start(options)
    options.http = options.http or STORE:format("/tmp")
    server = nginx.start(options)
  end

  local function no_errors()
    for line in server:errors():gmatch("[^\n]+") do
      assert.is_falsy(line:find("[error]", 1, true) or line:find("[alert]", 1, true), line)
    end
  end

  after_each(function() server:stop() end)

  it("says that there are no descriptors left, and goes on when there are", function()
    start{main = "worker_rlimit_nofile 60;", server = [[
      location = /exhaust { content_by_lua_block {
        local files, said = {}, {}
        for free = 0, 8 do
          repeat
            local file = io.open("/dev/null")
            files[#files + 1] = file
          until not file
          for _ = 1, free do table.remove(files):close() end
          local pair, message, code = store:put("key", "v", {timeout = 0.2})
          said[#said + 1] = pair and "put" or #message > 0 and code
        end
        for _, file in ipairs(files) do file:close() end
        local pair, message = store:put("key", "v")
        ngx.print(table.concat(said, " "), ", ", pair and pair.value or message)
      } }
      location = /get { content_by_lua_block { ngx.print(assert(store:get("key")).value) } }
    ]]}
    local said, last = server:body("/exhaust"):match("^(.*), (.*)$")
    assert.is_truthy(said:find("^failed"), said)
    for word in said:gmatch("%S+") do
      assert.is_truthy(("failed unavailable timeout unknown put"):find(word, 1, true), said)
    end
    assert.equal("v", last)
    assert.equal("v", server:body("/get"))
    assert.equal(1, #server:workers())
    assert.is_falsy(server:errors():find("exited on signal", 1, true), server:errors())
  end)

  -- A full disk and a folder that forbids writing look the same from here: the socket cannot be made.
  for what, folder in pairs{["a file"] = "/dev/null", ["a path that is too long"] = "/tmp/" .. ("x"):rep(120),
      ["a file system that takes nothing"] = "/proc"} do
    it("works where the socket's folder is " .. what, function()
      start{http = STORE:format(folder), server = [[
        location = /round { content_by_lua_block {
          assert(store:put("key", "v"))
          local first = assert(assert(store:lock("door")):acquire(10))
          local waiter = ngx.thread.spawn(function() return assert(store:lock("door"):acquire(10)):release() end)
          ngx.sleep(0.01)
          assert(first:release())
          local _, released = ngx.thread.wait(waiter)
          ngx.print(assert(store:get("key")).value, " ", tostring(released))
        } }
      ]]}
      for _ = 1, 3 do assert.equal("v true", server:body("/round")) end
      assert.is_truthy(server:errors():find("socket_dir", 1, true), server:errors())
    end)
  end

  it("serves others while a watch is not read, and gives that one the final state", function()
    start{server = [[
      location = /slow { content_by_lua_block {
        local watch = assert(store:watch_tree("slow"))
        assert(watch:wait_synced(10))
        ngx.print("watching ") ngx.flush(true)
        while not store:get("stop") do ngx.sleep(0.01) end
        local seen, count = {}, 0
        while seen["slow/last"] ~= "done" do
          local event = assert(watch:next(20))
          seen[event.key] = event.value
          count = count + 1
        end
        local wrong = 0
        for i = 1, 20 do if seen["slow/" .. i]:sub(1, 4) ~= "0200" then wrong = wrong + 1 end end
        ngx.print(wrong, " ", tostring(count > 20))
      } }
      location = /write { content_by_lua_block {
        for round = 1, 200 do
          local values = {}
          for i = 1, 20 do values["slow/" .. i] = ("%04d"):format(round) .. ("x"):rep(4096) end
          assert(store:put_many(values))
        end
        assert(store:put("slow/last", "done"))
        assert(store:put("stop", "now"))
        while store:stats().resyncs == 0 do ngx.sleep(0.01) end
        ngx.print("resynced")
      } }
      location = /clear { content_by_lua_block { ngx.print(tostring(store:delete_tree(""))) } }
    ]]}
    local out = server.folder .. "/slow"
    local slow = assert(native.spawn{"curl", "-sS", "-N", "--max-time", "120", stdout = out,
      ("http://127.0.0.1:%d/slow"):format(server.port)})
    util.eventually(function() return util.read(out) == "watching " end, "the watch has begun")
    assert.equal("resynced", server:body("/write", "--max-time", "50"))
    assert.equal("exit", (slow:wait(60)))
    assert.equal("watching 0 true", util.read(out))
    assert.equal("true", server:body("/clear"))
    no_errors()
  end)

  it("runs two copies of the module in one worker", function()
    local folder = util.folder()
    os.execute(("mkdir -p %s/so && cp -r lua %s/lua && cp -r %s/luajit/kv %s/so/kv"):format(folder, folder,
      os.getenv("KV_BUILD") or "build", folder))
    start{server = ([[
      location = /two { content_by_lua_block {
        local ours, path, cpath = {}, package.path, package.cpath
        for name, value in pairs(package.loaded) do
          if name == "kv" or name:find("^kv%%.") then ours[name], package.loaded[name] = value, nil end
        end
        package.path, package.cpath = "$folder/lua/?.lua;$folder/lua/?/init.lua;" .. path, "$folder/so/?.so;" .. cpath
        local other = require("kv")
        local second = assert(other.open(os.getenv("KV_TEST_URL"), {prefix = "openresty-faults"}))
        for name in pairs(package.loaded) do
          if name:find("^kv%%.") or name == "kv" then package.loaded[name] = ours[name] end
        end
        package.path, package.cpath = path, cpath
        assert(other ~= kv and require("kv") == kv)
        local pair, message, code = second:put("two", "second")
        if not pair then return ngx.print(message, " ", code) end
        local threads = {}
        local inside, most = 0, 0
        for i = 1, 10 do
          threads[i] = ngx.thread.spawn(function()
            local lock = assert((i %% 2 == 0 and store or second):lock("both"):acquire(10))
            inside = inside + 1
            most = math.max(most, inside)
            ngx.sleep(0.005)
            inside = inside - 1
            assert(lock:release())
          end)
        end
        for i = 1, 10 do assert(ngx.thread.wait(threads[i])) end
        local task = other.spawn(function() return second:get("two").value end)
        ngx.print(most, " ", store:get("two").value, " ", task:join(10), " ", tostring(second:close()))
      } }
      location = /one { content_by_lua_block { ngx.print(assert(store:put("one", "v")).value) } }
    ]]):gsub("%%%%", "%%"):gsub("%$folder", folder)}
    assert.equal("v", server:body("/one"))
    local said = server:body("/two")
    if os.getenv("KV_TEST_BACKEND") == "local" then
      -- Two copies of LMDB must not have the same files open in one process.
      assert.is_truthy(said:find("another copy", 1, true), said)
    else
      assert.equal("1 second second true", said)
    end
    assert.equal("v", server:body("/one"))
    server:quit()
    assert.equal("exit", (server.process:wait(10)))
    no_errors()
    util.remove(folder)
  end)

  it("is not woken by 10,000 idle watches, and ends at once with them", function()
    start{server = [[
      location = /watch { content_by_lua_block {
        watches = watches or {}
        local from = #watches
        for i = from + 1, from + 2000 do watches[i] = assert(store:watch("idle/" .. i)) end
        for i = from + 1, from + 2000 do assert(watches[i]:wait_synced(30)) end
        ngx.print(#watches)
      } }
      location = /tell { content_by_lua_block {
        assert(store:put("idle/7777", "v"))
        ngx.print(assert(watches[7777]:next(10)).value)
      } }
    ]]}
    for i = 1, 5 do assert.equal(tostring(2000 * i), server:body("/watch")) end
    local pid = server:workers()[1]
    local function switches()
      local sum = 0
      for thread in require("lfs").dir("/proc/" .. pid .. "/task") do
        local text = util.read("/proc/" .. pid .. "/task/" .. thread .. "/status") or ""
        sum = sum + (tonumber(text:match("\nvoluntary_ctxt_switches:%s+(%d+)")) or 0)
      end
      return sum
    end
    util.eventually(function()
      local before = switches()
      native.sleep(0.5)
      return switches() - before < 10
    end, "the worker rests")
    assert.equal("v", server:body("/tell"))
    server:reload()
    nginx.gone({pid})
    no_errors()
  end)

  it("looks up what a TLS handshake needs", function()
    local folder = util.folder()
    assert(os.execute(("openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout %s/key.pem " ..
      "-out %s/cert.pem 2>/dev/null"):format(folder, folder)))
    local port = assert(native.port())
    start{http = STORE:format("/tmp") .. ([[
      init_by_lua_block { seen = {} }
      server {
        listen 127.0.0.1:$port ssl;
        ssl_certificate $folder/cert.pem;
        ssl_certificate_key $folder/key.pem;
        # Debian's nginx lacks OpenResty's patch: nothing can be waited for here, ngx.sleep included.
        ssl_client_hello_by_lua_block { seen.hello = mirror:get("tls/cert") ~= nil }
        ssl_certificate_by_lua_block {
          local ssl = require("ngx.ssl")
          local lock = assert(store:lock("certificate"):acquire(5))
          local found = assert(store:get_many{"tls/cert", "tls/key"})
          assert(ssl.clear_certs())
          assert(ssl.set_der_cert(assert(ssl.cert_pem_to_der(found["tls/cert"].value))))
          assert(ssl.set_der_priv_key(assert(ssl.priv_key_pem_to_der(found["tls/key"].value))))
          assert(lock:release())
          seen.certificate = mirror:size()
        }
        location / { return 200 "over TLS"; }
      }
    ]]):gsub("%$(%l+)", {port = port, folder = folder}), server = [[
      location = /pem { content_by_lua_block {
        ngx.req.read_body()
        mirror = mirror or store:mirror("tls")
        assert(store:put("tls/" .. ngx.var.arg_name, ngx.req.get_body_data()))
        ngx.print(tostring(mirror:wait_ready(5)))
      } }
      location = /size { content_by_lua_block { ngx.print(mirror:size()) } }
      location = /seen { content_by_lua_block { ngx.print(tostring(seen.hello), " ", tostring(seen.certificate)) } }
    ]]}
    for _, name in ipairs{"cert", "key"} do
      local file = ("@%s/%s.pem"):format(folder, name)
      assert.equal("true", (server:get("/pem?name=" .. name, "--data-binary", file)))
    end
    util.eventually(function() return server:body("/size") == "2" end, "the mirror has both")
    local out = folder .. "/out"
    local curl = assert(native.spawn{"curl", "-sS", "-k", "--max-time", "15", "https://127.0.0.1:" .. port .. "/",
      stdout = out, stderr = out})
    assert.equal("exit", (curl:wait(20)))
    assert.equal("over TLS", util.read(out), server:errors())
    assert.equal("true 2", server:body("/seen"))
    no_errors()
    util.remove(folder)
  end)
end)
