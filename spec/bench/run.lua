-- make bench: measures kv and its peers side by side and prints one table with the goals.
--
--   lua5.4 spec/bench/run.lua [local] [etcd] [consul] [zookeeper] [etcd2] [watches] [list] [openresty]     default: all
--
-- The contenders of a row take turns, BENCH_ROUNDS times (3) for BENCH_SECONDS (1.5) each; a row shows their
-- medians and the ratio of these. Servers are started here. A backend that is not built is left out with a
-- note. Exit status is 1 when something failed, or a goal was missed and BENCH_STRICT is set.
--
-- The peers: LMDB's C API (lmdb_put.c); in Go (peer/) etcd's clientv3 with its concurrency package, and libkv
-- for etcd v2, Consul, ZooKeeper and BoltDB; h2load and wrk for what the server and the wire give at most.
-- libkv's reads on ZooKeeper are plain ones, ours go through the leader (sync), as everywhere.

local kv = require("kv")
local native = require("spec.native")
local contest = require("spec.bench.contest")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local SECONDS = tonumber(os.getenv("BENCH_SECONDS")) or 1.5
local PAIRS = tonumber(os.getenv("BENCH_PAIRS")) or 100000
local WATCHES = tonumber(os.getenv("BENCH_WATCHES")) or 10000
local KEYS = 10000 -- of a watched tree
local LOCKS = 1000 -- held by one process
local WAITERS = 8
local SIZE = 64
local KEY = "bench/key"
local MANY = "bench-many" -- the directory of a peer's 1,000 keys

local compete, row, against, ours = contest.compete, contest.row, contest.against, contest.ours
local sections = {}

-- ---------------------------------------------------------------- what is done to every server

-- The Go peer's work on this backend, or nil when it was not built with that client.
local function peer_of(b, ...)
  if not b.peer then return nil end
  local words = table.pack(...)
  return {"peer", function() return contest.peer(b.peer, b.endpoint, table.unpack(words, 1, words.n)) end}
end

local function contend(b, kv_words, peer_words, limit)
  local list = {{"kv", function() return ours("lua5.4", kv_words[1], b.url, table.unpack(kv_words, 2)) end}}
  list[#list + 1] = peer_of(b, table.unpack(peer_words))
  list[#list + 1] = limit and {"limit", limit}
  local found = compete(list)
  found.peer = found.peer or {}
  return found
end

-- b.goals[operation][in flight] = {by the peer, by the limit, CPU by the peer's}. "put" and "get" are about one key,
-- "puts" and "gets" go through 1,000 keys. b.put_alone: puts/s with one in flight.
local function loads(b)
  for _, in_flight in ipairs{64, 1} do
    for _, name in ipairs{"put", "get"} do
      local goal = (b.goals[name] or {})[in_flight] or {}
      local limit = b.limit and function() return b.limit(name, in_flight) end or nil
      local found = contend(b, {"load", name, in_flight, SECONDS, KEY, SIZE},
        {"load", name, in_flight, SECONDS, b.slash .. KEY, SIZE}, limit)
      local work = ("%s %s, %d in flight"):format(b.name, name, in_flight)
      against(("%s / %s, /s"):format(work, b.peer_name), found.kv[1], found.peer[1], goal[1])
      if found.limit then
        against(("%s / %s, /s"):format(work, b.limit_name), found.kv[1], found.limit[1], goal[2])
      end
      against("  CPU of the client, us each", found.kv[2], found.peer[2], goal[3])
      if name == "put" then b.put_alone = found.kv[1] end
    end
  end
  for _, name in ipairs{"puts", "gets"} do
    local found = contend(b, {name, 64, SECONDS, SIZE}, {"load", name, 64, SECONDS, b.slash .. MANY, SIZE})
    against(("%s %s 1000 keys, 64 in flight / %s, /s"):format(b.name, name == "puts" and "put to" or "get of",
      b.peer_name), found.kv[1], found.peer[1], b.goals[name])
    against("  CPU of the client, us each", found.kv[2], found.peer[2])
  end
end

-- Overlapping holders would make every other number of a lock worthless: they are an error. The peers' are shown.
local function check_overlaps(b, found)
  assert(found.kv[3] == 0, "two held the lock at once")
  if found.peer[3] and found.peer[3] > 0 then
    contest.note(("  (%s: the lock had two holders at once, %d times)"):format(b.peer_name, found.peer[3]))
  end
end

local function locks(b)
  local found = contend(b, {"lock", SECONDS, "bench-lock"}, {"lock", SECONDS, "bench-peer-lock"})
  against(("%s lock + unlock / %s, /s"):format(b.name, b.peer_name), found.kv[1], found.peer[1], ">= 1.5")
  row("  CPU of the client, us each", found.kv[2], found.peer[2], found.peer[2] and found.kv[2] / found.peer[2])
  if b.put_alone then against("  / two puts, one after the other, /s", found.kv[1], b.put_alone / 2) end
  found = contend(b, {"handover", WAITERS, SECONDS, "bench-line"}, {"handover", WAITERS, SECONDS, "bench-peer-line"})
  check_overlaps(b, found)
  against(("%s lock handed over, %d wait / %s, /s"):format(b.name, WAITERS, b.peer_name), found.kv[1], found.peer[1],
    ">= 1.5")
  if b.goals.handover then row("  in numbers", found.kv[1], nil, nil, b.goals.handover, found.kv[1]) end
  if found.peer[2] and found.peer[2] > found.peer[1] * 1.05 then
    row("  acquired, by the last holder again too, /s", found.kv[2], found.peer[2], found.kv[2] / found.peer[2])
  end
end

local function held(b)
  local found = ours("lua5.4", "held", b.url, LOCKS, 4)
  row(("%s, %d locks held: %% of a core"):format(b.name, LOCKS), found[1], nil, nil, "<= 1", found[1])
  row("  threads", found[2], nil, nil, "<= 4", found[2])
end

local function latency(b)
  local found = contend(b, {"latency", SECONDS, "bench/watched", SIZE},
    {"latency", SECONDS, b.slash .. "bench/watched", SIZE})
  against(("%s put -> event, p50 / %s, us"):format(b.name, b.peer_name), found.kv[1], found.peer[1],
    found.peer[1] and "<= 0.7")
  row("  p99", found.kv[2], found.peer[2], found.peer[2] and found.kv[2] / found.peer[2])
  if b.put_alone then against("  p50 / a put, us", found.kv[1], 1e6 / b.put_alone) end
  assert(found.kv[3] == 0, "an event was lost")
  if found.peer[3] and found.peer[3] > 0 then
    contest.note(("  (%s: %d events never came)"):format(b.peer_name, found.peer[3]))
  end
end

-- The fastest listing that anybody does is what the watch is measured by: ours or the peer's.
local function tree(b)
  ours("lua5.4", "fill", b.url, KEYS, SIZE)
  local list = {{"kv", function() return ours("lua5.4", "tree", b.url, "tree", KEYS) end}}
  list[#list + 1] = peer_of(b, "tree", b.slash .. "tree", KEYS)
  local found = compete(list)
  local peer = found.peer or {}
  local fastest = math.min(found.kv[1], peer[1] or math.huge)
  against(("%s, %d keys listed / %s, ms"):format(b.name, KEYS, b.peer_name), found.kv[1], peer[1])
  row("  watched and read / the fastest listing, ms", found.kv[3], fastest, found.kv[3] / fastest, b.goals.tree)
  against(("  watched and read / %s, ms"):format(b.peer_name), found.kv[3], peer[2])
  local memory = compete({{"kv", function() return ours("luajit", "tree_memory", b.url, "tree", KEYS) end}}, 1)
  row("  memory of the watch for a key, bytes", memory.kv[1], nil, nil, b.goals.tree_memory, memory.kv[1])
end

local broken = 0

local function guarded(name, run, ...)
  local ok, problem = xpcall(run, debug.traceback, ...)
  if ok then return end
  broken = broken + 1
  contest.note(("%s FAILED: %s"):format(name, tostring(problem)))
end

-- What fails takes nothing else with it.
local function everything(b)
  for _, part in ipairs{{"loads", loads}, {"locks", locks}, {"held", held}, {"latency", latency}, {"tree", tree}} do
    guarded(b.name .. " " .. part[1], part[2], b)
  end
end

-- libkv's Consul part is there when it could be had; see scripts/run-bench.
local function consul_peer()
  local clients = contest.output_of(contest.build .. "/bench/peer", "clients")
  return clients:find("consul", 1, true) and "consul" or nil
end

-- Run a section on a server that is started for it, if the backend is there.
local function on_server(driver, start, body)
  for _, name in ipairs(kv.backends()) do
    if name == driver then
      if not start then return contest.note(("%s is left out: there is no server to start"):format(driver)) end
      local server, folder = start(), util.folder()
      local ok, problem = pcall(body, server, folder)
      server:stop()
      util.remove(folder)
      return assert(ok, problem)
    end
  end
  contest.note(("%s is left out: the backend is not built"):format(driver))
end

-- ---------------------------------------------------------------- local

local function local_store(fresh)
  local store = "local:" .. fresh()
  local function bolt(...) return contest.peer("bolt", fresh() .. "/db", ...) end
  local reads = compete{
    {"kv", function() return ours("lua5.4", "loop", store, SECONDS, KEY, SIZE) end},
    {"bolt", function() return bolt("load", "get", 1, SECONDS, KEY, SIZE) end},
  }
  row("local get, one Lua 5.4 loop, /s", reads.kv[1], nil, nil, ">= 1000000", reads.kv[1])
  against("  / libkv with BoltDB, /s", reads.kv[1], reads.bolt[1])

  local writes = compete{
    {"one", function() return ours("lua5.4", "puts", "local:" .. fresh(), 1, SECONDS, SIZE) end},
    {"lmdb", function()
      local folder = fresh()
      contest.output_of("mkdir", folder)
      return contest.numbers_of(contest.build .. "/bench/lmdb_put", folder, SECONDS, SIZE)
    end},
    {"bolt", function() return bolt("load", "puts", 1, SECONDS, "bench", SIZE) end},
    {"many", function() return ours("lua5.4", "puts", "local:" .. fresh(), 64, SECONDS, SIZE) end},
    {"lock", function() return ours("lua5.4", "lock", "local:" .. fresh(), SECONDS, "bench-lock") end},
    {"line", function() return ours("lua5.4", "handover", "local:" .. fresh(), WAITERS, SECONDS, "bench-line") end},
  }
  against("local durable put, one writer / LMDB, /s", writes.one[1], writes.lmdb[1], ">= 0.85")
  row("  its CPU, us each", writes.one[2], writes.lmdb[2], writes.one[2] / writes.lmdb[2])
  against("  / libkv with BoltDB, /s", writes.one[1], writes.bolt[1])
  against("local durable put, 64 tasks / one, /s", writes.many[1], writes.one[1], ">= 10")
  -- Nobody else has locks on an embedded store: two commits of LMDB are what taking and giving back must cost.
  against("local lock + unlock / two puts of LMDB, /s", writes.lock[1], writes.lmdb[1] / 2)
  assert(writes.line[3] == 0, "two held the lock at once")
  row(("local lock handed over, %d wait, /s"):format(WAITERS), writes.line[1])
end

sections["local"] = function()
  local base, made = util.folder(), 0
  local function fresh()
    made = made + 1
    return ("%s/%d"):format(base, made)
  end
  local_store(fresh)
  local b = {name = "local", url = "local:" .. fresh(), peer_name = "nobody", slash = "", goals = {}}
  held(b)
  local waited = compete{
    {"kv", function() return ours("lua5.4", "latency", b.url, SECONDS, "bench/watched", SIZE) end},
  }
  row("local put -> event, p50, us", waited.kv[1])

  local mirror = compete{{"luajit", function() return ours("luajit", "mirror", "local:" .. fresh(), SECONDS) end}}
  local copy, plain = mirror.luajit[1], mirror.luajit[2]
  row("mirror get / Lua table read, LuaJIT, ns", 1e9 / copy, 1e9 / plain, plain / copy, "<= 2")
  util.remove(base)
end

-- ---------------------------------------------------------------- etcd

-- A gRPC frame with a message of fields {number, text or true}.
local function write_frame(path, ...)
  local parts = {}
  for i, field in ipairs{...} do
    local number, value = field[1], field[2]
    parts[i] = value == true and string.char(number * 8, 1) or string.char(number * 8 + 2, #value) .. value
  end
  local message = table.concat(parts)
  util.write(path, "\0" .. string.pack(">I4", #message) .. message)
end

function sections.etcd()
  on_server("etcd", function() return servers.etcd{} end, function(server, folder)
    local methods = {put = "Put", get = "Range"}
    -- h2load sends the very call that kv sends: a put asks for the pair that was there, for when its life began.
    write_frame(folder .. "/put", {1, "/" .. KEY}, {2, ("x"):rep(SIZE)}, {4, true})
    write_frame(folder .. "/get", {1, "/" .. KEY})
    everything{
      name = "etcd", url = server:url(), endpoint = ("127.0.0.1:%d"):format(server.port), peer = "clientv3",
      peer_name = "clientv3", slash = "/", limit_name = "h2load",
      limit = function(name, in_flight)
        local url = ("http://127.0.0.1:%d/etcdserverpb.KV/%s"):format(server.port, methods[name])
        return contest.h2load(url, folder .. "/" .. name, in_flight, SECONDS)
      end,
      goals = {
        put = {[64] = {">= 1.3", ">= 0.9"}, [1] = {">= 1.0", nil, "<= 0.34"}},
        get = {[64] = {">= 1.3", ">= 0.9"}, [1] = {">= 1.2", nil, "<= 0.34"}}, gets = ">= 1.3",
      },
    }
  end)
end

-- ---------------------------------------------------------------- Consul, etcd v2: HTTP

-- The same requests by wrk. base: the URL of the key; query: of a read; body: of a put, with its kind.
local function http_limit(folder, base, query, body, kind)
  util.write(folder .. "/put.lua", ([[
    wrk.method, wrk.body = "PUT", %q
    wrk.headers["Content-Type"] = %q
  ]]):format(body, kind))
  return function(name, in_flight)
    if name == "get" then return contest.wrk(base .. query, nil, in_flight, SECONDS) end
    return contest.wrk(base, folder .. "/put.lua", in_flight, SECONDS)
  end
end

-- -dev keeps the log in memory: what is measured is the way to Consul, not the disk. It still counts the connections of
-- contenders that have just ended, and would cut those of the next one at its limit of 200.
function sections.consul()
  local start = servers.consul and function() return servers.consul{session_ttl_min = "10s", connections = 1000} end
  on_server("consul", start, function(server, folder)
    local address = ("127.0.0.1:%d"):format(server.port)
    everything{
      name = "Consul", url = server:url(), endpoint = address, peer = consul_peer(), peer_name = "libkv", slash = "",
      limit_name = "wrk",
      limit = http_limit(folder, ("http://%s/v1/kv/%s"):format(address, KEY), "?consistent", ("x"):rep(SIZE),
        "application/octet-stream"),
      goals = {
        put = {[64] = {">= 2.2"}}, puts = ">= 2.2", get = {[64] = {">= 4", ">= 0.85"}, [1] = {">= 2"}},
        gets = ">= 4", handover = ">= 100", tree = "<= 1.5", tree_memory = "<= 300",
      },
    }
  end)
end

function sections.etcd2()
  on_server("etcd2", function() return servers.etcd{} end, function(server, folder)
    local address = ("127.0.0.1:%d"):format(server.port)
    everything{
      name = "etcd v2", url = "etcd2://" .. address, endpoint = address, peer = "etcd2", peer_name = "libkv",
      slash = "", limit_name = "wrk",
      limit = http_limit(folder, ("http://%s/v2/keys/%s"):format(address, KEY), "?quorum=true",
        "value=" .. ("x"):rep(SIZE), "application/x-www-form-urlencoded"),
      goals = {put = {[64] = {">= 1.5"}}, get = {[64] = {">= 2.2"}}, gets = ">= 2.2"},
    }
  end)
end

-- ---------------------------------------------------------------- ZooKeeper

-- As it is in production: the tests' server has short ticks, no sync and a compiler that stops early.
local SERVER = {tick = 2000, arguments = {"-XX:TieredStopAtLevel=4", "-Xmx512m", "-Dzookeeper.forceSync=yes"}}

function sections.zookeeper()
  on_server("zookeeper", servers.zookeeper and function() return servers.zookeeper(SERVER) end, function(server)
    everything{
      name = "ZooKeeper", url = server:url(), endpoint = ("127.0.0.1:%d"):format(server.port), peer = "zookeeper",
      peer_name = "libkv", slash = "",
      goals = {
        put = {[64] = {">= 2", nil, "<= 0.5"}}, get = {[64] = {">= 1", nil, "<= 0.5"}}, gets = ">= 1",
        tree = "<= 1.5", tree_memory = "<= 300",
      },
    }
  end)
end

-- ---------------------------------------------------------------- many watches, idleness

function sections.watches()
  local server = servers.etcd{}
  local found = ours("lua5.4", "watches", server:url(), WATCHES, 5)
  row(("etcd, %d watches: connections"):format(WATCHES), found[1], nil, nil, "<= 1", found[1])
  row("  memory for each, bytes", found[2], nil, nil, "<= 2048", found[2])
  row("  wake-ups of the idle process, /s", found[3], nil, nil, "<= 1", found[3])
  server:stop()
end

-- ---------------------------------------------------------------- large listings

-- The goal is about memory that is the process's own. The local store's pairs lie in a file that is mapped, and
-- a listing touches all of it: those pages are the system's page cache, which is there with or without us (see
-- work.lua), and have a row of their own.
local function listing(name, url)
  local bytes = ours("lua5.4", "fill", url, PAIRS, 1024)[1]
  local found = ours("lua5.4", "list", url, PAIRS)
  row(("%s, %d pairs listed: peak bytes / theirs"):format(name, PAIRS), found[1], bytes, found[1] / bytes, "<= 2")
  row("  pages of mapped files beside", found[2], bytes, found[2] / bytes)
end

function sections.list()
  local folder = util.folder()
  listing("local", "local:" .. folder .. "/store")
  util.remove(folder)
  local server = servers.etcd{}
  listing("etcd", server:url())
  server:stop()
end

-- ---------------------------------------------------------------- OpenResty

function sections.openresty()
  require("spec.bench.openresty")(SECONDS, SIZE)
end

-- ---------------------------------------------------------------- all

local wanted = #arg > 0 and arg or {"local", "etcd", "consul", "zookeeper", "etcd2", "watches", "list", "openresty"}
for _, name in ipairs(wanted) do
  if not sections[name] then
    io.stderr:write("run.lua: there is no section ", name, "\n")
    os.exit(2)
  end
end
local begin = native.now()
contest.head()
for _, name in ipairs(wanted) do guarded(name, sections[name]) end
contest.note(("%d missed, %d failed; medians of %d rounds of %g s, %d-byte values (%.0f s in all)"):format(
  contest.missed, broken, contest.rounds, SECONDS, SIZE, native.now() - begin))
contest.note(("Other programs took %.0f %% of the processors meanwhile%s"):format(contest.others(),
  contest.others() > 10 and ": do not rely on the ratios, least of all where one is in flight." or "."))
os.exit(broken == 0 and (contest.missed == 0 or not os.getenv("BENCH_STRICT")), true)
