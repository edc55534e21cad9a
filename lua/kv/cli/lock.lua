-- kv lock NAME [-t SECONDS] -- COMMAND...: run a command while a lock is held.
--
-- The lock is renewed by kv's own thread. This one waits for the command, and looks several times a second whether the
-- lock is still held, which costs no I/O. A lost lock ends the command: somebody else may be doing its work already.

local options = require("kv.cli.options")

local FAILED, MISUSE, NO_LOCK = 1, 2, 4
local NOT_EXECUTABLE, NOT_FOUND = 126, 127 -- as env(1) and shells say it
local SIGNALED = 128

local LOOK = 0.1 -- seconds between two looks at the lock
local GRACE = 5 -- seconds between TERM and KILL

-- Signals that are passed on to the command, or that end the wait for the lock.
local function catch_signals(process)
  local numbers = {}
  for i, name in ipairs{"HUP", "INT", "QUIT", "TERM", "USR1", "USR2"} do numbers[i] = process.signal(name) end
  process.catch(numbers)
end

-- Get in line. Returns true, or the number of the signal that ended the wait; fails with NO_LOCK when time is up.
local function acquire(context, lock, wait)
  local kv, process = context.kv, context.process
  local caught
  local got, message, code = kv.run(function()
    local task = kv.spawn(function() return lock:acquire(wait) end)
    while true do
      local result, why, what = task:join(LOOK)
      -- Our own look ending is not the lock's timeout: then the task is still waiting for the lock.
      if result or what ~= "timeout" or lock:state() ~= "waiting" then return result, why, what end
      caught = process.caught()
      if caught then
        task:cancel()
        return task:join()
      end
    end
  end)
  if got then return true end
  if caught then return caught end
  if code == "timeout" then options.fail(NO_LOCK, "%s", message) end
  return context:check(nil, message, code)
end

local function spawn(context, lock)
  local environment = {KV_LOCK_TOKEN = ("%d"):format(lock.token)}
  local child, message, name = context.process.spawn(context.behind, {env = environment})
  if child then return child end
  return nil, name == "ENOENT" and NOT_FOUND or name == "EACCES" and NOT_EXECUTABLE or FAILED, message
end

-- TERM, and KILL when that does not help in time.
local function terminate(context, child, grace)
  local process = context.process
  local deadline = process.clock() + grace
  child:kill(process.signal("TERM"))
  child:kill(process.signal("CONT")) -- a stopped command cannot end
  while true do
    local left = deadline - process.clock()
    local how = child:wait(math.max(left, 0))
    if how == "exit" or how == "signal" then return end
    if how == nil then
      child:kill(process.signal("KILL"))
      deadline = process.clock() + 3600
    end
  end
end

-- Wait for the command and the lock. Returns the exit status, and true when the lock was lost.
local function supervise(context, lock, child, grace)
  while true do
    local how, number, from_terminal = child:wait(LOOK)
    if how == "exit" then return number, not lock:held() end
    if how == "signal" then return SIGNALED + number, not lock:held() end
    -- The terminal sends ^C to the command as well.
    if how == "caught" and not from_terminal then child:kill(number) end
    if not lock:held() then
      terminate(context, child, grace)
      return NO_LOCK, true
    end
  end
end

local function run(context)
  local given, process = context.options, context.process
  local name, command = context.arguments[1], context.behind
  if not command or #command == 0 then
    options.fail(MISUSE, 'the command is missing: kv lock %s -- COMMAND...', name)
  end
  if given.ttl == 0 then options.fail(MISUSE, "--ttl must be more than 0") end
  local store = context:open()
  local value = given.value or ("%s %d"):format(process.hostname(), process.getpid())
  local lock = context:check(store:lock(name, {ttl = given.ttl, value = value, interop = given.interop}))
  catch_signals(process)
  local got = acquire(context, lock, given.wait)
  -- A signal that came since has no command to go to yet.
  local caught = got == true and process.caught()
  if caught then
    lock:release()
    got = caught
  end
  if got ~= true then return SIGNALED + got end
  local child, status, message = spawn(context, lock)
  if not child then
    lock:release()
    options.fail(status, "%s", message)
  end
  local lost
  status, lost = supervise(context, lock, child, given.grace or GRACE)
  if not lost then
    local released, _, code = lock:release()
    lost = not released and (code == "lost" or code == "not_held")
  end
  if lost then options.fail(NO_LOCK, 'the lock "%s" was lost while %s was running', name, command[1]) end
  return status
end

return {
  name = "lock", usage = "NAME [-t SECONDS] -- COMMAND...", arguments = {1, 1}, split = true, run = run,
  summary = "run a command while a lock is held",
  details = "Waits for the lock NAME, runs COMMAND while it is held, lets go and passes on COMMAND's exit status\n" ..
    "(128 + number when a signal ended it). The lock is renewed as long as COMMAND runs, and free soon after this\n" ..
    "process dies. When the lock is lost, COMMAND is ended (TERM, then KILL). Its environment has KV_LOCK_TOKEN:\n" ..
    "a number that is larger for each later holder, to be checked by whatever COMMAND writes to.\n" ..
    "Exit status 4: the lock was not obtained in time, or lost; 126, 127: COMMAND could not be run, was not found.",
  options = {
    {name = "wait", short = "t", argument = "SECONDS", kind = "seconds",
      help = "how long to wait for the lock; default: for ever, 0: try once"},
    {name = "ttl", argument = "SECONDS", kind = "seconds",
      help = "when others may have the lock after this machine died; default: 15"},
    {name = "grace", argument = "SECONDS", kind = "seconds",
      help = "time between TERM and KILL when the lock is lost; default: 5"},
    {name = "value", argument = "TEXT", kind = "text", help = "shown to others; default: host and process id"},
    {name = "interop", argument = "KIND", kind = "text",
      help = "share the lock with other programs: etcd, consul, kazoo or curator. NAME is then theirs"},
  },
}
