--- One run of the fault suite against one backend: processes as clients, faults by a seed, histories, checkers.
--
--    torture.run{backend="etcd", seconds=60, seed=1}  ->  report
--
-- report.problems is what is wrong (texts; empty when all is well); report.folder keeps the histories when it is not.
local kv = require("kv")
local native = require("spec.native")
local clusters = require("spec.faults.clusters")
local history = require("spec.faults.history")
local lock_check = require("spec.faults.lock_check")
local Nemesis = require("spec.faults.nemesis")
local register_check = require("spec.faults.register_check")
local ttl_check = require("spec.faults.ttl_check")
local util = require("spec.support.util")
local watch_check = require("spec.faults.watch_check")

local torture = {}

local END_SECONDS = 60 -- a client that was told to stop has ended by then
local CREW = {register = 2, lock = 3, ttl = 1, watch = 2}
local TASKS = {register = 3, lock = 2, ttl = 6, watch = 1}
local ROLES = {"watch", "register", "lock", "ttl"}
local MOST_SECONDS = 120 -- of a run that is to go on until enough was done
local TTLS = {2, 3, 4}   -- of locks and keys, by the seed
local CALMS = {1, 2, 3}  -- seconds between two faults at most, by the seed

-- ------------------------------------------------------------------ the clients

local Crew = {}
Crew.__index = Crew

function Crew:spawn(role)
  self.number = self.number + 1
  local name = role .. self.number
  local base = self.folder .. "/" .. name
  local words = {util.interpreter(), "spec/faults/client.lua", role, self.url, base .. ".log", name,
    tostring(self.seed * 1000 + self.number), "ttl=" .. self.ttl, "session_ttl=" .. self.ttl, "tasks=" .. TASKS[role],
    "lives=" .. self.lives, pipe = true, stderr = base .. ".err"}
  for option, value in pairs(self.options) do words[#words + 1] = option .. "=" .. tostring(value) end
  local process = assert(native.spawn(words))
  assert(process:line(20) == "ready", "a client does not start: " .. (util.read(base .. ".err") or ""))
  self.files[#self.files + 1] = base .. ".log"
  self.living[name] = {process = process, role = role, base = base, paused = false}
end

local function names_of(set)
  local names = {}
  for name in pairs(set) do names[#names + 1] = name end
  table.sort(names)
  return names
end

--- One to hurt that is not stopped already; to be killed not the first of each role, whose memory is looked at.
function Crew:pick(random, to_kill)
  local names = {}
  for _, name in ipairs(names_of(self.living)) do
    local client = self.living[name]
    if not client.paused and not (to_kill and client.spared) then names[#names + 1] = name end
  end
  if #names > 0 then return random:pick(names) end
end

function Crew:kill(name)
  local client = self.living[name]
  client.process:kill("KILL")
  client.process:wait(10)
  self.living[name] = nil
  self:spawn(client.role)
end

function Crew:pause(name)
  self.living[name].paused = true
  self.living[name].process:kill("STOP")
end

function Crew:resume(name)
  self.living[name].paused = false
  self.living[name].process:kill("CONT")
end

--- None may have ended by itself.
function Crew:look(problems)
  for _, name in ipairs(names_of(self.living)) do
    local client = self.living[name]
    if not client.process:running() then
      problems[#problems + 1] = ("%s ended by itself: %s"):format(name, util.read(client.base .. ".err") or "")
      self.living[name] = nil
    end
  end
end

--- Tell those of a role to stop, and wait for them.
function Crew:finish(role, problems)
  for _, client in pairs(self.living) do
    if client.role == role then client.process:close_input() end
  end
  local deadline = native.now() + END_SECONDS
  for _, name in ipairs(names_of(self.living)) do
    local client = self.living[name]
    if client.role == role then
      local line, problem = client.process:line(math.max(deadline - native.now(), 0))
      local how, code = client.process:wait(10)
      if line ~= "done" or how ~= "exit" or code ~= 0 then
        problems[#problems + 1] = ("%s does not end well: %s, %s %s: %s"):format(name, tostring(line or problem),
          tostring(how), tostring(code), util.read(client.base .. ".err") or "")
        client.process:kill("KILL")
      end
      self.living[name] = nil
    end
  end
end

local function new_crew(cluster, options, folder)
  local self = setmetatable({folder = folder, url = cluster:url(), seed = options.seed, ttl = options.ttl,
    lives = cluster.backend and cluster.backend.no_lives and 0 or 1,
    number = 0, files = {}, living = {}, options = options.client or {}}, Crew)
  for _, role in ipairs(ROLES) do
    for i = 1, (options.crew or CREW)[role] or 0 do
      self:spawn(role)
      if i == 1 then self.living[role .. self.number].spared = true end
    end
  end
  return self
end

-- ------------------------------------------------------------------ the end of a run

-- Is it empty in time? What is left otherwise.
local function soon_empty(seconds, list)
  local deadline = native.now() + seconds
  local found
  repeat
    found = list()
    if #found == 0 then return found end
    native.sleep(0.1)
  until native.now() > deadline
  return found
end

-- Everything works again, and nothing is left of anybody.
-- @return the keys of those that expire that are still there
local function check_peace(cluster, names, ttl, problems)
  local seconds = cluster:settle_seconds(ttl)
  local store = assert(kv.open(cluster:direct_url(), {timeout = 10}))
  local started = native.now()
  for i = 1, names do
    local lock = assert(store:lock("L" .. i, {ttl = ttl}))
    local got, message = lock:acquire(math.max(seconds - (native.now() - started), 1))
    if got then
      local fine, problem = lock:release()
      if not fine then problems[#problems + 1] = ("lock L%d is not released: %s"):format(i, problem) end
    else
      problems[#problems + 1] = ("lock L%d cannot be had %d s after the end: %s"):format(i, seconds, message)
    end
  end
  local alive = soon_empty(seconds, function() return assert(store:list("alive")) end)
  for _, pair in ipairs(alive) do problems[#problems + 1] = "a key outlived its process: " .. pair.key end
  local left = {}
  for _, pair in ipairs(soon_empty(seconds, function() return assert(store:list("t")) end)) do
    left[pair.key] = pair.value
  end
  store:close()
  for _, text in ipairs(soon_empty(seconds, function() return cluster:leftovers() end)) do
    problems[#problems + 1] = "left on the server: " .. text
  end
  return left
end

local FD_SLACK, MEMORY_SLACK = 24, 24 * 1024

-- Descriptors and memory of the clients that lived through it all, in the later half of their time.
local function check_sizes(notes, problems)
  local sizes = {}
  for _, note in ipairs(notes) do
    if note.kind == "size" then
      local list = sizes[note.worker] or {}
      sizes[note.worker] = list
      list[#list + 1] = {when = note.args[1], fds = tonumber(note.args[2]), memory = tonumber(note.args[3]),
        threads = tonumber(note.args[4])}
    end
  end
  local most = 0
  for name, list in pairs(sizes) do
    local middle, last = list[math.ceil(#list / 2)], list[#list]
    most = math.max(most, last.memory or 0)
    if last.when == "closed" then
      local first = list[1]
      if last.fds > first.fds then
        problems[#problems + 1] = ("%s has %d descriptors after closing, %d at first"):format(name, last.fds, first.fds)
      end
      if last.fds > middle.fds + FD_SLACK or last.memory > middle.memory + MEMORY_SLACK then
        problems[#problems + 1] = ("%s grew: %d -> %d descriptors, %d -> %d KB"):format(name, middle.fds, last.fds,
          middle.memory, last.memory)
      end
    end
  end
  return most
end

local function add_all(list, more, most)
  for i, text in ipairs(more) do
    if i > most then
      list[#list + 1] = ("... and %d more of these"):format(#more - most)
      break
    end
    list[#list + 1] = text
  end
end

--- What the histories in these files say.
function torture.judge(files, options, problems)
  local operations, notes = history.read(files)
  local counts = {}
  local found
  found, counts.registers = register_check.check(operations, {late_reads = options.backend == "zookeeper"})
  add_all(problems, found, 5)
  found, counts.locks, counts.of_server = lock_check.check(operations, notes, options.resumed)
  add_all(problems, found, 10)
  found, counts.watches = watch_check.check(operations, notes, "r/")
  add_all(problems, found, 10)
  found, counts.expiry = ttl_check.check(operations, options.left)
  add_all(problems, found, 5)
  counts.memory = check_sizes(notes, problems)
  if counts.registers.undecided > 0 then
    problems[#problems + 1] = counts.registers.undecided .. " registers undecided"
  end
  return counts
end

-- ------------------------------------------------------------------ a run

local function work(cluster, crew, options, problems)
  local begin = native.now()
  local log = assert(io.open(crew.folder .. "/nemesis", "w"))
  local nemesis = Nemesis.new(cluster, crew, options.seed, {ttl = options.ttl, now = begin, calm = options.calm,
    tell = function(text)
      if options.backend == "etcd" and text:find("^stop a.*: over$") and not text:find("client", 1, true) then
        options.resumed[#options.resumed + 1] = native.now()
      end
      log:write(("%.6f %s\n"):format(native.now(), text))
      log:flush()
      if options.tell then options.tell(("%6.1f  %s"):format(native.now() - begin, text)) end
    end})
  local seconds = options.seconds
  local function enough()
    return not options.until_counts or seconds > MOST_SECONDS or
      options.until_counts(torture.judge(crew.files, options, {}))
  end
  while true do
    if native.now() - begin >= seconds then
      if enough() then break end
      seconds = native.now() - begin + 3
    end
    nemesis:turn(native.now())
    crew:look(problems)
    native.sleep(0.05)
  end
  nemesis:finish()
  log:close()
  return nemesis.counts
end

-- Problems with keys on which the servers themselves do not agree are theirs.
local function lay_at_their_door(report, keys)
  local ours = {}
  for _, problem in ipairs(report.problems) do
    local theirs = false
    for key in pairs(keys) do theirs = theirs or problem:find(key .. ":", 1, true) ~= nil end
    local list = theirs and report.of_servers or ours
    list[#list + 1] = problem
  end
  for key in pairs(keys) do report.of_servers[#report.of_servers + 1] = "the members do not agree on " .. key end
  report.problems = ours
end

--- Options: backend, seconds, seed, crew {register=, lock=, watch=}, calm (seconds between faults at most), tell (a
-- function for lines as they happen), ttl, client (more options of client.lua), keep (keep the folder in any case),
-- until_counts (a function of the counts so far: when `seconds` are over it goes on until that is true).
function torture.run(given)
  local problems, folder = {}, util.folder()
  local options = {ttl = TTLS[given.seed % #TTLS + 1], calm = CALMS[math.floor(given.seed / 3) % #CALMS + 1]}
  for name, value in pairs(given) do options[name] = value end
  options.resumed = {}
  local cluster = clusters.start(options.backend)
  local report = {problems = problems, of_servers = {}, folder = folder, backend = options.backend, seed = options.seed,
    seconds = options.seconds, ttl = options.ttl, version = cluster:version()}
  local crew
  local ok, problem = xpcall(function()
    crew = new_crew(cluster, options, folder)
    report.faults = work(cluster, crew, options, problems)
    cluster:heal()
    for _, role in ipairs{"register", "lock", "ttl", "watch"} do crew:finish(role, problems) end
    options.left = check_peace(cluster, (options.client or {}).names or 2, options.ttl, problems)
    local disagreement = cluster:disagreement("r")
    report.counts = torture.judge(crew.files, options, problems)
    lay_at_their_door(report, disagreement)
    add_all(report.of_servers, report.counts.of_server, 10)
  end, debug.traceback)
  if not ok then report.problems[#report.problems + 1] = problem end
  for _, client in pairs(crew and crew.living or {}) do client.process:kill("KILL") end
  cluster:stop()
  if #report.problems == 0 and not options.keep then util.remove(folder) end
  return report
end

-- ------------------------------------------------------------------ telling

local function count_text(counts)
  local parts, sum = {}, 0
  for _, name in ipairs(names_of(counts)) do
    parts[#parts + 1] = ("%s %d"):format(name, counts[name])
    sum = sum + counts[name]
  end
  return ("%d (%s)"):format(sum, table.concat(parts, ", "))
end

--- A report as lines for people.
function torture.text(report)
  local lines = {("%s %s, seed %d, %d s, TTL %s"):format(report.backend, tostring(report.version), report.seed,
    report.seconds, tostring(report.ttl))}
  if report.faults then lines[#lines + 1] = "  faults: " .. count_text(report.faults) end
  local counts = report.counts
  if counts then
    local registers, locks, watches = counts.registers, counts.locks, counts.watches
    lines[#lines + 1] = ("  registers: %d operations on %d keys, %d of unknown outcome, %d keys with late reads")
      :format(registers.operations, registers.keys, registers.unknown, registers.late)
    lines[#lines + 1] = ("  locks: %d holds, %d guarded writes accepted, %d refused"):format(locks.holds, locks.guarded,
      locks.refused)
    lines[#lines + 1] = ("  expiry: %d keys put %d times, looked at %d times"):format(counts.expiry.keys,
      counts.expiry.puts, counts.expiry.looks)
    lines[#lines + 1] = ("  watches: %d, %d events, %d killed before their end; largest client %.1f MB"):format(
      watches.watches, watches.events, watches.unfinished, counts.memory / 1024)
  end
  for _, text in ipairs(report.of_servers or {}) do lines[#lines + 1] = "  SERVER " .. text:gsub("\n", "\n    ") end
  for _, problem in ipairs(report.problems) do lines[#lines + 1] = "  PROBLEM " .. problem:gsub("\n", "\n    ") end
  if #report.problems > 0 then lines[#lines + 1] = "  the histories are kept in " .. report.folder end
  return table.concat(lines, "\n")
end

return torture
