-- What kv lock and kv elect share: a command that runs while something is held.
--
-- The lock is renewed by kv's own thread. This one waits for the command, and looks several times a second whether the
-- lock is still held, which costs no I/O. A lost lock ends the command: somebody else may be doing its work already.
--
-- What is held is a table of functions: acquire(seconds), held(), release(), token(), and words for messages.

local options = require("kv.cli.options")

local hold = {}

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
  local caught, answered
  local got, message, code = kv.run(function()
    local task = kv.spawn(function()
      local got, message, code = lock.acquire(wait)
      answered = true
      return got, message, code
    end)
    while true do
      task:join(LOOK)
      -- Our own look ending is not the lock's timeout.
      if answered then return task:join() end
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
  local environment = {KV_LOCK_TOKEN = ("%d"):format(lock.token())}
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
    if how == "exit" then return number, not lock.held() end
    if how == "signal" then return SIGNALED + number, not lock.held() end
    -- The terminal sends ^C to the command as well.
    if how == "caught" and not from_terminal then child:kill(number) end
    if not lock.held() then
      terminate(context, child, grace)
      return NO_LOCK, true
    end
  end
end

--- Run context.behind while `lock` is held; the exit status.
function hold.run(context, lock)
  local given, process, command = context.options, context.process, context.behind
  catch_signals(process)
  local got = acquire(context, lock, given.once and 0 or given.wait)
  -- A signal that came since has no command to go to yet.
  local caught = got == true and process.caught()
  if caught then
    lock.release()
    got = caught
  end
  if got ~= true then return SIGNALED + got end
  local child, status, message = spawn(context, lock)
  if not child then
    lock.release()
    options.fail(status, "%s", message)
  end
  local lost
  status, lost = supervise(context, lock, child, given.grace or GRACE)
  if not lost then
    local released, _, code = lock.release()
    lost = not released and (code == "lost" or code == "not_held")
  end
  if lost then options.fail(NO_LOCK, "%s was lost while %s was running", lock.words, command[1]) end
  return status
end

--- Checks that both commands make, before anything is asked of a store.
function hold.check(context, usage)
  if not context.behind or #context.behind == 0 then options.fail(MISUSE, "the command is missing: %s", usage) end
  if context.options.ttl == 0 then options.fail(MISUSE, "--ttl must be more than 0") end
  if context.options.once and context.options.wait then options.fail(MISUSE, "-n and -t exclude each other") end
end

--- What is shown to others unless something else is said: host and process id.
function hold.value(context)
  return ("%s %d"):format(context.process.hostname(), context.process.getpid())
end

--- The options of both. `noun` is what is waited for.
function hold.options(noun)
  return {
    {name = "once", short = "n", kind = "flag", help = "do not wait: exit status 4 when somebody else has it"},
    {name = "wait", short = "t", argument = "SECONDS", kind = "seconds",
      help = ("how long to wait for the %s; default: for ever, 0: as -n"):format(noun)},
    {name = "ttl", argument = "SECONDS", kind = "seconds",
      help = ("when others may have the %s after this machine died; default: 15"):format(noun)},
    {name = "grace", argument = "SECONDS", kind = "seconds",
      help = ("time between TERM and KILL when the %s is lost; default: 5"):format(noun)},
  }
end

return hold
