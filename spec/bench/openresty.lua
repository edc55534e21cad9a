--- The bench's section about OpenResty: one nginx worker whose handlers do one get or put on etcd, by kv and by what
-- there is without it: a cosocket and etcd's JSON gateway, as lua-resty-etcd does it (which is no Debian package).
local contest = require("spec.bench.contest")
local native = require("spec.native")
local nginx = require("spec.support.nginx")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local IN_FLIGHT = 64
local WATCHES, STEP = 10000, 1000
local IDLE_SECONDS = 5

local HTTP = [[
  init_worker_by_lua_block {
    kv = require("kv")
    store = assert(kv.open("etcd://127.0.0.1:$etcd"))
    value, watches = ("x"):rep($size), {}

    local cjson, head = require("cjson"), "POST %s HTTP/1.1\r\nHost: etcd\r\nContent-Length: %d\r\n\r\n%s"

    -- One request over a connection that is kept; the answer's body, decoded.
    function gateway(path, body)
      local sock = ngx.socket.tcp()
      assert(sock:connect("127.0.0.1", $etcd))
      local text = cjson.encode(body)
      assert(sock:send(head:format(path, #text, text)))
      assert(sock:receive("*l") == "HTTP/1.1 200 OK")
      local length
      repeat
        local line = assert(sock:receive("*l"))
        length = length or line:match("^Content%%-Length: (%%d+)")
      until line == ""
      local answer = assert(sock:receive(tonumber(length)))
      assert(sock:setkeepalive(60000, 128))
      return cjson.decode(answer)
    end
  }
]]

local SERVER = [[
  location = /kv/get { content_by_lua_block { ngx.print(assert(store:get("bench/key")).value) } }
  location = /kv/put { content_by_lua_block { ngx.print(assert(store:put("bench/key", value)).revision) } }
  location = /gateway/get { content_by_lua_block {
    local answer = gateway("/v3/kv/range", {key = ngx.encode_base64("/bench/key")})
    ngx.print(ngx.decode_base64(answer.kvs[1].value))
  } }
  location = /gateway/put { content_by_lua_block {
    local answer = gateway("/v3/kv/put", {key = ngx.encode_base64("/bench/key"), value = ngx.encode_base64(value),
      prev_kv = true})
    ngx.print(answer.header.revision)
  } }
  location = /watch { content_by_lua_block {
    local from = #watches
    for i = from + 1, from + $step do watches[i] = assert(store:watch("idle/" .. i)) end
    for i = from + 1, from + $step do assert(watches[i]:wait_synced(60)) end
    ngx.print(#watches)
  } }
]]

-- Processor time of a process and of all its threads, in seconds.
local function used(pid)
  local fields = assert(util.read("/proc/" .. pid .. "/stat")):match("%) (.*)")
  local user, system = fields:match("^" .. ("%S+ "):rep(11) .. "(%d+) (%d+)")
  return (tonumber(user) + tonumber(system)) / 100
end

-- Requests per second, the 99th percentile of their times in milliseconds, and the worker's processor time for each in
-- microseconds.
local function load(server, path, seconds)
  local pid, url = server:workers()[1], ("http://127.0.0.1:%d%s"):format(server.port, path)
  local before = used(pid)
  local text = contest.output_of("wrk", "--latency", "-t", 1, "-c", IN_FLIGHT, "-d", math.ceil(seconds) .. "s", url)
  assert(not text:find("Non-2xx", 1, true) and not text:find("Socket errors", 1, true), text)
  local number, unit = assert(text:match("99%%%s+([%d.]+)(%l+)"))
  local factor = assert(({us = 0.001, ms = 1, s = 1000})[unit], text)
  local requests = assert(tonumber(text:match("(%d+) requests in")), text)
  return {(assert(tonumber(text:match("Requests/sec:%s+([%d.]+)")), text)), tonumber(number) * factor,
    (used(pid) - before) * 1e6 / requests}
end

local function idle(server)
  for i = STEP, WATCHES, STEP do assert(server:body("/watch") == tostring(i)) end
  local pid = server:workers()[1]
  native.sleep(2) -- what the beginning of so many watches leaves to be done
  local before, begin = used(pid), native.now()
  native.sleep(IDLE_SECONDS)
  local share = (used(pid) - before) / (native.now() - begin) * 100
  contest.row(("OpenResty, %d idle watches: %% of a core"):format(WATCHES), share, nil, nil, "<= 0.5", share)
end

--- Measure and print the rows.
return function(seconds, size)
  local etcd = servers.etcd{}
  local words = {etcd = etcd.port, size = size, step = STEP}
  local ok, server = pcall(nginx.start, {http = (HTTP:gsub("%$(%l+)", words):gsub("%%%%", "%%")),
    server = (SERVER:gsub("%$(%l+)", words))})
  if ok then
    local problem
    ok, problem = xpcall(function()
      server:body("/kv/put")
      for _, name in ipairs{"put", "get"} do
        local contenders = {}
        for i, who in ipairs{"kv", "gateway"} do
          contenders[i] = {who, function() return load(server, ("/%s/%s"):format(who, name), seconds) end}
        end
        local found = contest.compete(contenders)
        contest.against(("OpenResty, etcd %s, %d in flight / JSON gateway, /s"):format(name, IN_FLIGHT), found.kv[1],
          found.gateway[1], ">= 2")
        contest.against("  p99, ms", found.kv[2], found.gateway[2], "<= 1")
        contest.against("  CPU of the worker, us each", found.kv[3], found.gateway[3])
      end
      idle(server)
    end, debug.traceback)
    local errors = server:errors():match("[^\n]*%[error%][^\n]*")
    server:stop()
    if ok and errors then ok, problem = false, errors end
    server = problem
  end
  etcd:stop()
  if not ok then error(server, 0) end
end
