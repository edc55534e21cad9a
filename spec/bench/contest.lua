--- Running contenders in turn, and the table of what they did.
local contest = {missed = 0}

local BUILD = os.getenv("BUILD") or "build"
local ROUNDS = tonumber(os.getenv("BENCH_ROUNDS")) or 3
local LINE = "%-50s %12s %12s %7s  %-10s %s\n"

contest.rounds = ROUNDS
contest.build = BUILD

-- ---------------------------------------------------------------- programs

local function quoted(word) return "'" .. tostring(word):gsub("'", "'\\''") .. "'" end

--- What a program writes; raises when it fails.
function contest.output_of(...)
  local words = {}
  for i = 1, select("#", ...) do words[i] = quoted((select(i, ...))) end
  local pipe = assert(io.popen(table.concat(words, " ")))
  local text = pipe:read("a")
  local ok, how, status = pipe:close()
  if not ok then error(("%s: %s %d\n%s"):format(table.concat(words, " "), how, status, text), 0) end
  return text
end

function contest.numbers_of(...)
  local numbers = {}
  for word in contest.output_of(...):gmatch("%S+") do numbers[#numbers + 1] = assert(tonumber(word), word) end
  return numbers
end

--- Our side, by this Lua: spec/bench/work.lua.
function contest.ours(lua, ...)
  local path = ("LUA_CPATH=%s/%s/?.so;;"):format(BUILD, lua)
  return contest.numbers_of("env", path, "timeout", 120, lua, "spec/bench/work.lua", ...)
end

--- The peer in Go: spec/bench/peer.
function contest.peer(...)
  return contest.numbers_of("timeout", 120, BUILD .. "/bench/peer", ...)
end

--- gRPC calls of one kind, as fast as the server takes them.
function contest.h2load(url, frame, in_flight, seconds)
  local text = contest.output_of("h2load", "-c", 1, "-m", in_flight, "-D", math.ceil(seconds), "--warm-up-time", 1,
    "-d", frame, "-H", "content-type: application/grpc", "-H", "te: trailers", "-H", "hasleader: true", url)
  assert(text:match("(%d+) failed") == "0", text)
  return {(assert(tonumber(text:match("finished in [^,]+, ([%d.]+) req/s")), text))}
end

--- HTTP requests of one kind, as fast as the server takes them; `script` is a file of wrk's own Lua, nil for a plain
-- GET.
function contest.wrk(url, script, in_flight, seconds)
  local words = {"wrk", "-t", 1, "-c", in_flight, "-d", math.ceil(seconds) .. "s"}
  if script then
    words[#words + 1] = "-s"
    words[#words + 1] = script
  end
  words[#words + 1] = url
  local text = contest.output_of(table.unpack(words))
  assert(not text:find("Non-2xx", 1, true) and not text:find("Socket errors", 1, true), text)
  return {(assert(tonumber(text:match("Requests/sec:%s+([%d.]+)")), text))}
end

-- ---------------------------------------------------------------- rounds

local function median(list)
  table.sort(list)
  local middle = #list // 2
  return #list % 2 == 1 and list[middle + 1] or (list[middle] + list[middle + 1]) / 2
end

--- Contenders {name, function}, called in turn, as often as there are rounds. Returns name -> list of medians,
-- one for each number that the function gives.
function contest.compete(contenders, rounds)
  local seen = {}
  for _ = 1, rounds or ROUNDS do
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

-- ---------------------------------------------------------------- others on the machine

-- Clock ticks that all programs used since the machine started, those that this one and its children used, and those
-- that there were.
local function ticks()
  local stat = assert(io.open("/proc/stat"))
  local numbers = {}
  for number in stat:read("l"):gmatch("%d+") do numbers[#numbers + 1] = tonumber(number) end
  stat:close()
  local all, idle = 0, numbers[4] + numbers[5]
  for i = 1, 8 do all = all + numbers[i] end
  local file = assert(io.open("/proc/self/stat"))
  local fields, own = file:read("a"):match("%) (.*)"), 0
  file:close()
  local i = 0
  for field in fields:gmatch("%S+") do
    i = i + 1
    if i >= 12 and i <= 15 then own = own + tonumber(field) end -- ours and our children's, user and system
  end
  return all - idle, own, all
end

local begin_busy, begin_own, begin_all = ticks()

--- The share of the processors, in percent, that other programs took since this module was loaded. To be asked when all
-- children have ended.
function contest.others()
  local busy, own, all = ticks()
  return math.max(0, (busy - begin_busy) - (own - begin_own)) / math.max(1, all - begin_all) * 100
end

-- ---------------------------------------------------------------- the table

local function shown(number)
  if number == nil then return "" end
  if number >= 1e6 then return ("%.2f M"):format(number / 1e6) end
  if number >= 1e4 then return ("%.1f k"):format(number / 1e3) end
  if number >= 100 or number == math.floor(number) then return ("%.0f"):format(number) end
  return ("%.2f"):format(number)
end

function contest.head()
  io.write(LINE:format("work", "kv", "peer", "ratio", "goal", ""))
  io.flush()
end

function contest.note(text)
  io.write(text, "\n")
  io.flush()
end

--- One row. `goal` is ">= 1.3", "<= 2" or nil; `value` is what it is about, the ratio when it is not given.
function contest.row(work, our, peer, ratio, goal, value)
  local verdict = ""
  if goal then
    local sign, limit = goal:match("^([<>]=) ([%d.]+)$")
    value, limit = value or ratio, tonumber(limit)
    local good
    if sign == ">=" then good = value >= limit else good = value <= limit end
    verdict = good and "ok" or "miss"
    if not good then contest.missed = contest.missed + 1 end
  end
  io.write(LINE:format(work, shown(our), shown(peer), ratio and ("%.2f"):format(ratio) or "", goal or "", verdict))
  io.flush()
end

--- A row about our number beside a peer's. Without the peer (it was not found) ours stands alone, and no goal
-- is met or missed.
function contest.against(work, our, peer, goal)
  if peer then
    contest.row(work, our, peer, our / peer, goal)
  else
    contest.row(work .. " (no peer)", our)
  end
end

return contest
