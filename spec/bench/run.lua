-- make bench: measures kv and its peers side by side and prints one table with the goals.
--
--   lua5.4 spec/bench/run.lua [local] [etcd] [watches] [list]     default: all of them
--
-- The contenders of a row take turns, BENCH_ROUNDS times (3) for BENCH_SECONDS (2) each; a row shows their medians and
-- the ratio of these. Servers are started here. Exit status is 1 when a goal is missed and BENCH_STRICT is set.

local native = require("spec.native")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local BUILD = os.getenv("BUILD") or "build"
local SECONDS = tonumber(os.getenv("BENCH_SECONDS")) or 2
local ROUNDS = tonumber(os.getenv("BENCH_ROUNDS")) or 3
local PAIRS = tonumber(os.getenv("BENCH_PAIRS")) or 100000
local WATCHES = tonumber(os.getenv("BENCH_WATCHES")) or 10000
local SIZE = 64
local KEY = "bench/key"

-- ---------------------------------------------------------------- running contenders

local function quoted(word) return "'" .. tostring(word):gsub("'", "'\\''") .. "'" end

local function output_of(...)
  local words = {}
  for i = 1, select("#", ...) do words[i] = quoted((select(i, ...))) end
  local pipe = assert(io.popen(table.concat(words, " ")))
  local text = pipe:read("a")
  local ok, how, status = pipe:close()
  if not ok then error(("%s: %s %d\n%s"):format(table.concat(words, " "), how, status, text), 0) end
  return text
end

local function numbers_of(...)
  local numbers = {}
  for word in output_of(...):gmatch("%S+") do numbers[#numbers + 1] = assert(tonumber(word), word) end
  return numbers
end

local function ours(lua, ...)
  return numbers_of("env", ("LUA_CPATH=%s/%s/?.so;;"):format(BUILD, lua), lua, "spec/bench/work.lua", ...)
end

local function h2load(port, method, frame, in_flight)
  local text = output_of("h2load", "-c", 1, "-m", in_flight, "-D", math.ceil(SECONDS), "--warm-up-time", 1, "-d", frame,
    "-H", "content-type: application/grpc", "-H", "te: trailers",
    ("http://127.0.0.1:%d/etcdserverpb.KV/%s"):format(port, method))
  local failed = text:match("(%d+) failed")
  assert(failed == "0", text)
  return {(assert(tonumber(text:match("finished in [^,]+, ([%d.]+) req/s")), text))}
end

local function median(list)
  table.sort(list)
  local middle = #list // 2
  return #list % 2 == 1 and list[middle + 1] or (list[middle] + list[middle + 1]) / 2
end

-- {name = function} in order; each is called in turn. Returns name -> list of medians, one for each number it gives.
local function compete(contenders)
  local seen = {}
  for _ = 1, ROUNDS do
    for _, contender in ipairs(contenders) do
      local name, run = contender[1], contender[2]
      seen[name] = seen[name] or {}
      for i, number in ipairs(run()) do
        seen[name][i] = seen[name][i] or {}
        table.insert(seen[name][i], number)
      end
    end
  end
  for _, columns in pairs(seen) do
    for i, list in ipairs(columns) do columns[i] = median(list) end
  end
  return seen
end

-- ---------------------------------------------------------------- the table

local missed = 0
local LINE = "%-40s %14s %14s %8s  %-10s %s\n"

local function shown(number)
  if number == nil then return "" end
  if type(number) == "string" then return number end
  if number >= 1e6 then return ("%.2f M"):format(number / 1e6) end
  if number >= 1e4 then return ("%.1f k"):format(number / 1e3) end
  if number >= 100 then return ("%.0f"):format(number) end
  return ("%.2f"):format(number)
end

-- `value` is what the goal is about; goal is ">= 1.3", "<= 2" or nil.
local function row(work, our, peer, ratio, goal, value)
  local verdict = ""
  if goal then
    local sign, limit = goal:match("^([<>]=) ([%d.]+)")
    value = value or ratio
    local good
    if sign == ">=" then good = value >= tonumber(limit) else good = value <= tonumber(limit) end
    verdict = good and "ok" or "miss"
    if not good then missed = missed + 1 end
  end
  io.write(LINE:format(work, shown(our), shown(peer), ratio and ("%.2f"):format(ratio) or "", goal or "", verdict))
  io.flush()
end

local function against(work, our, peer, goal) row(work, our, peer, our / peer, goal) end

-- ---------------------------------------------------------------- local

local sections = {}

sections["local"] = function()
  local base = util.folder()
  local made = 0
  local function fresh()
    made = made + 1
    return ("%s/%d"):format(base, made)
  end
  local store = "local:" .. fresh()
  local reads = compete{{"kv", function() return ours("lua5.4", "loop", store, SECONDS, KEY, SIZE) end}}
  row("local get, one Lua 5.4 loop, /s", reads.kv[1], nil, nil, ">= 1000000", reads.kv[1])

  local writes = compete{
    {"one", function() return ours("lua5.4", "puts", "local:" .. fresh(), 1, SECONDS, SIZE) end},
    {"lmdb", function()
      local folder = fresh()
      output_of("mkdir", folder)
      return numbers_of(BUILD .. "/bench/lmdb_put", folder, SECONDS, SIZE)
    end},
    {"many", function() return ours("lua5.4", "puts", "local:" .. fresh(), 64, SECONDS, SIZE) end},
  }
  against("local durable put, one writer / LMDB, /s", writes.one[1], writes.lmdb[1], ">= 0.85")
  row("  its CPU, us each", writes.one[2], writes.lmdb[2], writes.one[2] / writes.lmdb[2])
  against("local durable put, 64 tasks / one, /s", writes.many[1], writes.one[1], ">= 10")

  local mirror = compete{{"luajit", function() return ours("luajit", "mirror", "local:" .. fresh(), SECONDS) end}}
  local copy, plain = mirror.luajit[1], mirror.luajit[2]
  row("mirror get / Lua table read, LuaJIT, ns", 1e9 / copy, 1e9 / plain, plain / copy, "<= 2")
  util.remove(base)
end

-- ---------------------------------------------------------------- etcd

-- A gRPC frame with a message of text fields {number, text}.
local function write_frame(path, ...)
  local parts = {}
  for i, field in ipairs{...} do parts[i] = string.char(field[1] * 8 + 2, #field[2]) .. field[2] end
  local message = table.concat(parts)
  util.write(path, "\0" .. string.pack(">I4", #message) .. message)
end

function sections.etcd()
  local server, folder = servers.etcd{}, util.folder()
  local methods = {put = "Put", get = "Range"}
  write_frame(folder .. "/put", {1, "/" .. KEY}, {2, ("x"):rep(SIZE)})
  write_frame(folder .. "/get", {1, "/" .. KEY})
  local goals = {
    put = {[64] = {">= 1.3", ">= 0.9"}, [1] = {">= 1.0", nil, "<= 0.34"}},
    get = {[64] = {">= 1.3", ">= 0.9"}, [1] = {">= 1.2", nil, "<= 0.34"}},
  }
  for _, in_flight in ipairs{64, 1} do
    for _, name in ipairs{"put", "get"} do
      local found = compete{
        {"kv", function() return ours("lua5.4", "load", server:url(), name, in_flight, SECONDS, KEY, SIZE) end},
        {"go", function()
          return numbers_of(BUILD .. "/bench/clientv3", ("127.0.0.1:%d"):format(server.port), name, in_flight, SECONDS,
            "/" .. KEY, SIZE)
        end},
        {"h2load", function() return h2load(server.port, methods[name], folder .. "/" .. name, in_flight) end},
      }
      local goal, work = goals[name][in_flight], ("etcd %s, %d in flight"):format(name, in_flight)
      against(work .. " / clientv3, /s", found.kv[1], found.go[1], goal[1])
      against(work .. " / h2load, /s", found.kv[1], found.h2load[1], goal[2])
      row("  CPU of the client, us each", found.kv[2], found.go[2], found.kv[2] / found.go[2], goal[3])
    end
  end
  server:stop()
  util.remove(folder)
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

local function listing(name, url)
  local bytes = ours("lua5.4", "fill", url, PAIRS, 1024)[1]
  local found = ours("lua5.4", "list", url, PAIRS)
  row(("%s, %d pairs listed: peak bytes / theirs"):format(name, PAIRS), found[1], bytes, found[1] / bytes, "<= 2")
  row("  of it mapped files", found[2], bytes, found[2] / bytes)
end

function sections.list()
  local folder = util.folder()
  listing("local", "local:" .. folder .. "/store")
  util.remove(folder)
  local server = servers.etcd{}
  listing("etcd", server:url())
  server:stop()
end

-- ---------------------------------------------------------------- all

local wanted = #arg > 0 and arg or {"local", "etcd", "watches", "list"}
local begin = native.now()
io.write(LINE:format("work", "kv", "peer", "ratio", "goal", ""))
local broken = 0
for _, name in ipairs(wanted) do
  local ok, problem = pcall(assert(sections[name], "no such section: " .. name))
  if not ok then
    broken = broken + 1
    io.write(("%-40s %s\n"):format(name, "FAILED: " .. tostring(problem)))
  end
end
io.write(("%d missed, %d failed; medians of %d rounds of %g s, %d-byte values (%.0f s in all)\n"):format(missed, broken,
  ROUNDS, SECONDS, SIZE, native.now() - begin))
os.exit(broken == 0 and (missed == 0 or not os.getenv("BENCH_STRICT")), true)
