-- kv bench: how fast is this store from here? Puts, gets, locks and watch events, in a corner of its own that is
-- removed afterwards. For a first impression of a server and a network; `make bench` measures kv itself.

local format = require("kv.cli.format")
local options = require("kv.cli.options")

local MISUSE = 2
local SECONDS, TASKS, SIZE, KEYS = 3, 32, 100, 1000

-- ---------------------------------------------------------------- what is measured

local function key_of(bench, number) return ("key/%d"):format(number % bench.keys) end

local WORK = {}

function WORK.put(bench, number) return bench.store:put(key_of(bench, number), bench.value) end

-- A key that was not put yet is an answer as any other.
function WORK.get(bench, number)
  local pair, message, code = bench.store:get(key_of(bench, number))
  if message then return nil, message, code end
  return pair or true
end

-- Each task has a lock of its own: what is measured is acquiring and releasing, not waiting for others.
function WORK.lock(bench, _, task)
  local lock, message, code = bench.store:lock("lock" .. task)
  if not lock then return nil, message, code end
  lock, message, code = lock:acquire(bench.patience)
  if not lock then return nil, message, code end
  return lock:release()
end

-- Each task has a watch of its own, too.
local function watch_of(bench, task)
  if bench.watches[task] then return bench.watches[task] end
  local watch, message, code = bench.store:watch("watched/" .. task, {initial = false})
  if not watch then return nil, message, code end
  bench.watches[task] = watch
  local synced, problem, why = watch:wait_synced(bench.patience)
  if not synced then return nil, problem, why end
  return watch
end

-- From a put to the event that tells of it.
function WORK.watch(bench, number, task)
  local watch, message, code = watch_of(bench, task)
  if not watch then return nil, message, code end
  local pair
  pair, message, code = bench.store:put("watched/" .. task, tostring(number))
  if not pair then return nil, message, code end
  repeat
    local event
    event, message, code = watch:next(bench.patience)
    if not event then return nil, message, code end
  until event.revision >= pair.revision
  return true
end

local ORDER = {"put", "get", "lock", "watch"}

-- ---------------------------------------------------------------- measuring

-- Seconds that every call took, sorted; how long all of it took.
local function measure(context, bench, name)
  local clock, work, taken, number = context.process.clock, WORK[name], {}, 0
  bench.watches = {}
  local begun = clock()
  local deadline = begun + bench.seconds
  context.kv.run(function()
    local tasks = {}
    for task = 1, bench.tasks do
      tasks[task] = context.kv.spawn(function()
        local before = clock()
        while before < deadline and not bench.stopped do
          number = number + 1
          context:check(work(bench, number, task))
          local now = clock()
          taken[#taken + 1], before = now - before, now
          bench.stopped = bench.stopped or context.process.caught()
        end
      end)
    end
    for _, task in ipairs(tasks) do task:join() end
  end)
  local took = clock() - begun
  for _, watch in pairs(bench.watches) do watch:close() end
  table.sort(taken)
  return taken, took
end

local function at(taken, share) return taken[math.max(1, math.ceil(#taken * share))] * 1000 end

local function report(context, name, taken, took)
  if #taken == 0 then return end
  local rate = #taken / took
  if context.options.json then
    context:write(format.json{{"operation", name}, {"count", #taken}, {"per_second", rate}, {"p50_ms", at(taken, 0.5)},
      {"p99_ms", at(taken, 0.99)}, {"max_ms", at(taken, 1)}}, "\n")
  else
    context:write(("%-6s %10.0f %10.3f %10.3f %10.3f\n"):format(name, rate, at(taken, 0.5), at(taken, 0.99),
      at(taken, 1)))
  end
  context:flush()
end

local function chosen(context)
  if #context.arguments == 0 then return ORDER end
  for _, name in ipairs(context.arguments) do
    if not WORK[name] then
      options.fail(MISUSE, 'no such operation: "%s"; there are %s', name, table.concat(ORDER, ", "))
    end
  end
  return context.arguments
end

local function run_all(context, bench, names)
  if not context.options.json then
    context:write(("%-6s %10s %10s %10s %10s\n"):format("", "per second", "p50 ms", "p99 ms", "max ms"))
  end
  for _, name in ipairs(names) do
    if bench.stopped then return end
    report(context, name, measure(context, bench, name))
  end
end

local function run(context)
  local given, process, names = context.options, context.process, chosen(context)
  if given.seconds == 0 then options.fail(MISUSE, "--seconds must be more than 0") end
  local corner = ("kv-bench-%s-%d"):format(process.hostname():gsub("[^%w.-]", ""), process.getpid())
  local store = context:check(context:open():sub(corner))
  local bench = {store = store, seconds = given.seconds or SECONDS, tasks = given.tasks or TASKS,
    keys = given.keys or KEYS, value = ("v"):rep(given.size or SIZE), patience = 30}
  context:check(store:ping())
  -- What was written is removed after ^C, too.
  process.catch{process.signal("INT"), process.signal("TERM")}
  local ok, failure = pcall(run_all, context, bench, names)
  local removed, message, code = store:delete_tree("")
  store:close()
  if not ok then error(failure, 0) end
  context:check(removed, message, code)
  if bench.stopped then return 128 + bench.stopped end
end

return {
  name = "bench", usage = "[put|get|lock|watch]...", arguments = {0, #ORDER}, run = run,
  summary = "measure how fast the store is from here",
  details = "Measures operations (default: all of them), each for some seconds with many calls in flight, in a\n" ..
    "directory of its own that is removed afterwards. watch is the way from a put to its event.",
  options = {
    {name = "seconds", argument = "SECONDS", kind = "seconds", help = "time for each operation; default: 3"},
    {name = "tasks", argument = "COUNT", kind = "count", help = "calls in flight; default: 32"},
    {name = "size", argument = "BYTES", kind = "count", help = "size of values; default: 100"},
    {name = "keys", argument = "COUNT", kind = "count", help = "different keys; default: 1000"},
    {name = "json", kind = "flag", help = "print JSON, one object per line"},
  },
}
