-- What `make demo` plays: the main job on the embedded store, in a temporary folder.
--
--   1. writes, and a watch that reports them
--   2. compare-and-set: a stale write is refused, and many writers lose no update
--   3. three processes compete for one lock; the holder is killed (SIGKILL), the next one gets it with a larger token
--
-- Exit status 0 only when all of that happened as it should. With a URL as argument the same runs elsewhere, for
-- example: lua examples/demo.lua etcd://localhost:2379/demo (where a dead holder's lock is free when its TTL ends).

local kv = require("kv")
local process = require("kv.process")

local PATIENCE = 20 -- seconds that anything may take before the demonstration has failed

-- ---------------------------------------------------------------- how it looks

local colourful = process.isatty(1) and not os.getenv("NO_COLOR")

local function colour(code, text) return colourful and ("\27[%sm%s\27[0m"):format(code, text) or text end

local function say(code, who, text, ...)
  io.write(("  %s %s\n"):format(colour(code, ("%-9s"):format(who)), text:format(...)))
  io.flush()
end

local function title(number, text) io.write("\n", colour("1", ("%d. %s"):format(number, text)), "\n") end

local failures = 0

local function expect(condition, text, ...)
  if condition then return say("32", "ok", text, ...) end
  failures = failures + 1
  say("31", "FAILED", text, ...)
end

-- ---------------------------------------------------------------- 1. writes and a watch

local function writes_and_watch(store)
  title(1, "Writes, and a watch that reports them")
  local seen = {}
  kv.run(function()
    local watch = assert(store:watch_tree("config"))
    local reader = kv.spawn(function()
      while #seen < 4 do
        local event = assert(watch:next(PATIENCE))
        seen[#seen + 1] = event
        local shown = event.type == "put" and ("%s = %s"):format(event.key, event.value) or event.key
        say("36", "watch", "%-6s %s (revision %d)", event.type, shown, event.revision)
      end
    end)
    assert(watch:wait_synced(PATIENCE))
    for _, write in ipairs{{"colour", "blue"}, {"size", "12"}, {"colour", "green"}} do
      say("33", "writer", "put    config/%s = %s", write[1], write[2])
      assert(store:put("config/" .. write[1], write[2]))
      kv.sleep(0.1)
    end
    say("33", "writer", "delete config/size")
    assert(store:delete("config/size"))
    reader:join(PATIENCE)
    watch:close()
  end)
  local rising = true
  for i = 2, #seen do rising = rising and seen[i].revision > seen[i - 1].revision end
  expect(#seen == 4 and rising and seen[4].type == "delete" and seen[3].value == "green",
    "every change was seen, in order")
end

-- ---------------------------------------------------------------- 2. compare and set

local WRITERS, TIMES = 4, 25

local function compare_and_set(store)
  title(2, "Compare-and-set")
  local old = assert(store:put("seat", "free"))
  assert(store:atomic_put("seat", "taken by Ada", old))
  say("33", "Ada", "takes the seat that was free at revision %d", old.revision)
  local pair, message, code = store:atomic_put("seat", "taken by Bob", old)
  say("33", "Bob", "tries the same: %s", tostring(message))
  expect(pair == nil and code == "modified" and assert(store:get("seat")).value == "taken by Ada",
    "the stale write was refused with the code \"modified\"")

  assert(store:put("counter", "0"))
  kv.run(function()
    for _ = 1, WRITERS do
      kv.spawn(function()
        for _ = 1, TIMES do
          assert(store:update("counter", function(value) return ("%d"):format(value + 1) end))
        end
      end)
    end
  end)
  expect(assert(store:get("counter")).value == tostring(WRITERS * TIMES),
    "%d tasks added 1 to one counter %d times each: no update was lost", WRITERS, TIMES)
end

-- ---------------------------------------------------------------- 3. a lock between processes

local LOCK_TTL = 5

-- A worker's whole life. It tells what it does by writing to the store; the guard refuses the write of a former holder.
local function work(url, name)
  local store = assert(kv.open(url))
  local function tell(state, lock)
    local text = ("%s %d"):format(state, lock and lock.token or 0)
    if lock then return assert(store:txn():guard(lock):put("workers/" .. name, text):commit()) end
    assert(store:put("workers/" .. name, text))
  end
  local lock = assert(store:lock("printer", {ttl = LOCK_TTL, value = name}))
  tell("waits")
  assert(lock:acquire(PATIENCE))
  tell("holds", lock)
  -- Work: the first holder is not given the time to end it.
  kv.sleep(store:exists("somebody-died") and 0.3 or 3600)
  tell("done", lock)
  assert(lock:release())
  store:close()
end

local function interpreter()
  local first = 0
  while arg[first - 1] do first = first - 1 end
  return arg[first]
end

local function start_workers(url)
  local workers = {}
  for _, name in ipairs{"Ada", "Bob", "Cyd"} do
    workers[name] = assert(process.spawn{interpreter(), arg[0], "--worker", url, name})
    say("33", name, "started as process %d", workers[name].pid)
  end
  return workers
end

-- Events of the workers until `enough` says so; `state` collects who waits, and who held with which token.
local function follow(watch, state, enough)
  local deadline = process.clock() + PATIENCE
  while not enough() do
    local event, message = watch:next(math.max(deadline - process.clock(), 0))
    if not event then error("waiting for the workers: " .. tostring(message)) end
    local name = event.key:match("[^/]+$")
    local what, token = event.value:match("^(%a+) (%d+)$")
    if what == "waits" then
      state.waiting[name] = true
      say("36", name, "waits for the lock")
    elseif what == "holds" then
      state.holders[#state.holders + 1] = {name = name, token = tonumber(token), at = process.clock()}
      say("35", name, "holds the lock with token %s", token)
    else
      state.done = state.done + 1
      say("36", name, "is done, and lets go")
    end
  end
end

local function count(set)
  local n = 0
  for _ in pairs(set) do n = n + 1 end
  return n
end

local function check_holders(holders, dead, killed_at)
  expect(#holders == 3 and holders[2].name ~= dead.name and holders[3].name ~= dead.name,
    "each got the lock once, one after the other")
  expect(#holders == 3 and dead.token < holders[2].token and holders[2].token < holders[3].token,
    "each token is larger than the one before")
  say("36", "time", "from the kill to the next holder: %.1f ms", (holders[2].at - killed_at) * 1000)
end

local function one_lock_three_processes(store, url)
  title(3, "Three processes compete for one lock, and the holder is killed")
  local watch = assert(store:watch_tree("workers", {initial = false}))
  assert(watch:wait_synced(PATIENCE))
  local workers = start_workers(url)
  local state = {waiting = {}, holders = {}, done = 0}
  local ok, message = pcall(function()
    follow(watch, state, function() return #state.holders == 1 and count(state.waiting) == 3 end)
    local dead = state.holders[1]
    assert(store:put("somebody-died", dead.name))
    process.sleep(0.3)
    local killed_at = process.clock()
    workers[dead.name]:kill(process.signal("KILL"))
    local how, number = workers[dead.name]:wait(PATIENCE)
    workers[dead.name] = nil
    say("31", dead.name, "was killed with SIGKILL while holding the lock")
    expect(how == "signal" and number == process.signal("KILL"), "its process is gone, and it never let go")
    follow(watch, state, function() return state.done == 2 end)
    check_holders(state.holders, dead, killed_at)
  end)
  watch:close()
  for name, child in pairs(workers) do
    if ok then
      local how, status = child:wait(PATIENCE)
      expect(how == "exit" and status == 0, "%s ended well", name)
    else
      child:kill(process.signal("KILL"))
      child:wait(PATIENCE)
    end
  end
  if not ok then error(message, 0) end
end

-- ---------------------------------------------------------------- all of it

local function temporary_folder()
  local path = os.tmpname()
  os.remove(path)
  return path
end

local function main(url)
  local folder
  if not url then
    folder = temporary_folder()
    url = "local:" .. folder
  end
  local begin = process.clock()
  io.write(colour("1", ("kv %s, %s"):format(kv._VERSION:gsub("^kv ", ""), url)), "\n")
  local store = assert(kv.open(url))
  local ok, message = pcall(function()
    if not folder then assert(store:delete_tree("")) end
    writes_and_watch(store)
    compare_and_set(store)
    one_lock_three_processes(store, url)
  end)
  store:close()
  -- The name is one that os.tmpname() gave, without anything that a shell would take apart.
  if folder then os.execute("rm -rf '" .. folder .. "'") end
  if not ok then expect(false, "%s", tostring(message)) end
  local verdict = failures == 0 and colour("1;32", "The demonstration worked") or
    colour("1;31", ("The demonstration FAILED in %d point(s)"):format(failures))
  io.write(("\n%s (%.1f s).\n"):format(verdict, process.clock() - begin))
  return failures == 0
end

if arg[1] == "--worker" then
  work(arg[2], arg[3])
else
  os.exit(main(arg[1]), true)
end
