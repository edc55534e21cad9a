--- Who waits for what: tasks of kv.run, callers that block, and coroutines of another event loop.
--
-- Everything that is asked of the core is known by a tag, and comes back through one queue. `waiting[tag]` gets it:
--     a task               resumed with the results
--     BLOCKED              a caller that cannot yield: it runs the queue itself until its own answer is there
--     a table with answer  anything else: a group of requests, a coroutine of a host's loop
-- A watch has a tag for life; `watching` holds whoever is told when it has something.
--
-- There are two ways to wait. await(tag, id) waits for an answer of the core. park(waiter, deadline) waits until
-- wake(waiter), for conditions that Lua itself decides: an event of a watch, the end of a task, a time.
--
-- A task cannot yield everywhere: not inside of pcall on 5.1, nor below a C function such as table.sort. The error that
-- Lua raises then may be caught by the program, which goes on. So a task remembers what it waits for (task.waits,
-- task.waiter), and an answer for something else is dropped.
--
-- Tasks are resumed by the loop only, never from inside another one. A host's event loop is a table of hooks, see
-- set_host().
local core = require("kv.core")
local hosts = require("kv.host")
local Timers = require("kv.timers")

local unpack = table.unpack or unpack -- luacheck: ignore 143
local create, resume, status, running = coroutine.create, coroutine.resume, coroutine.status, coroutine.running
local yield = coroutine.yield
local yieldable = rawget(coroutine, "isyieldable") -- 5.3, 5.4, LuaJIT
local close_coroutine = rawget(coroutine, "close") -- 5.4
local next_reply, pending, clock = core.next, core.pending, core.clock

local scheduler = {}

local TOKEN = {}           -- what a task yields when it waits; anything else is a yield of the program's own
local REPLIES_AT_ONCE = 1024
local TURN = 100           -- calls of a task that were answered at once, until others have their turn
local GRACE = 1            -- seconds for cancelled tasks to end after a fatal error

local function pack(...)
  return {n = select("#", ...), ...}
end

-- ------------------------------------------------------------------ state

local waiting = {}                                  -- tag -> who gets the answer
local watching = setmetatable({}, {__mode = "v"})   -- tag -> watch or mirror: these may be forgotten
local arrived = {}                                  -- tag -> packed answer of a blocked caller further down the stack
local timers = Timers.new()
local ready, first, last = {}, 1, 0                 -- FIFO of tasks
local tasks = {}                                    -- all that are not done -> true
local alive = 0                                     -- how many these are
local outside = 0                                   -- tasks that only the core can wake
local followers = setmetatable({}, {__mode = "k"})  -- mirrors that call back
local bridged = setmetatable({}, {__mode = "k"})    -- coroutine of kv.pcall in a host's coroutine on 5.1 -> that one
local spawned = setmetatable({}, {__mode = "k"})    -- coroutine that a host runs for kv.spawn -> its task
local guards = setmetatable({}, {__mode = "k"})     -- what gives something up when it is collected -> since when
local failures = {}                                 -- errors that nobody has joined yet
local current                                       -- the task that runs now
local answered = 0                                  -- its calls that did not wait, since it was resumed
local looping = false                               -- kv.run or kv.step is at work
local in_run = false                                -- kv.run is
local host                                          -- hooks of a host's loop, or nil
local recognised = true                             -- false: the program chose, do not look for a loop
local raised                                        -- what a callback raised outside of a loop

--- Can a coroutine yield across pcall here? Not in PUC Lua 5.1. (LuaJIT can; under nginx not every phase can try.)
scheduler.yields_across_pcall = rawget(_G, "jit") ~= nil or (function()
  local co = create(function() return pcall(yield, TOKEN) end)
  local ok, what = resume(co)
  return ok and what == TOKEN
end)()

-- ------------------------------------------------------------------ tasks

local Task = {}
Task.__index = Task

--- The task that the caller runs in, or nil: also nil in a coroutine that the program made itself, which must not yield
-- to us.
local function current_task()
  if current and running() == current.co then return current end
end
scheduler.current_task = current_task

-- Where a loop of the host's calls kv.step(), its descriptor must tell of tasks that became ready outside of it.
-- Looking at an empty queue takes that back.
local function tell_loop()
  if host and not looping and first <= last then core.poke() end
end

local function make_ready(task, ...)
  if select("#", ...) > 0 then task.results = pack(...) end
  last = last + 1
  ready[last] = task
  tell_loop()
end

local function new_task(fn, ...)
  local co = create(fn)
  -- co: the innermost coroutine (kv.pcall on 5.1 nests them), main: the one that is resumed
  local task = setmetatable({main = co, co = co, joiners = {}}, Task)
  tasks[task] = true
  make_ready(task, ...)
  return task
end

local function describe_error(co, err)
  if type(err) ~= "string" then return err end
  if err:find("\nstack traceback:", 1, true) then return err end
  return debug.traceback(co, err)
end

local function traced(problem)
  if type(problem) ~= "string" then return problem end
  return debug.traceback(problem, 2)
end

local function finish(task, ok, ...)
  task.done, task.ok = true, ok
  if tasks[task] then
    tasks[task] = nil
    alive = alive - 1
  end
  if ok then
    task.values = pack(...)
  elseif not task.co then
    task.problem = (...)
  else
    task.problem = describe_error(task.co, (...))
    failures[#failures + 1] = {problem = task.problem, task = setmetatable({task}, {__mode = "v"}), main = task.is_main,
                               fresh = true}
  end
  for _, waiter in ipairs(task.joiners) do scheduler.wake(waiter) end
  task.joiners = {}
end

-- The task waits for nothing that it began to wait for before.
local function forget_waits(task)
  if task.waits then core.cancel(task.id) end
  task.waits, task.id, task.waiter = nil, nil, nil
end

local function after(task, ...)
  current = nil
  if status(task.main) == "dead" then return finish(task, ...) end
  if select(2, ...) == TOKEN then return end
  forget_waits(task)
  make_ready(task) -- the program yielded by itself: others get a turn
end

local function run_task(task, ...)
  current, answered = task, 0
  return after(task, resume(task.main, ...))
end

local function run_with_results(task)
  local results = task.results
  if not results then return run_task(task) end
  task.results = nil
  return run_task(task, unpack(results, 1, results.n))
end

-- ------------------------------------------------------------------ answers of the core

local BLOCKED = {}
function BLOCKED.answer(_, tag, ...)
  arrived[tag] = pack(...)
end

-- A cancel may come when the answer is on its way already: then it counts for the next wait. Who was told of it has
-- this code, or "unknown" for a write that was sent.
local function settle(task, value, _, code)
  if task.cancelling and value == nil and (code == "cancelled" or code == "unknown") then task.cancelling = nil end
end

-- `direct`: we are the loop, so a task may be resumed right here.
local function deliver(direct, tag, ...)
  local waiter = waiting[tag]
  if waiter ~= nil then
    waiting[tag] = nil
    if waiter.main then
      outside = outside - 1
      if waiter.waits ~= tag then return end
      waiter.waits, waiter.id = nil, nil
      settle(waiter, ...)
      if direct then return run_task(waiter, ...) end
      return make_ready(waiter, ...)
    end
    return waiter:answer(tag, ...)
  end
  local watcher = watching[tag]
  if watcher then return watcher:_ready(direct) end
end

-- The queue was the parent's: nothing that we waited for will come.
local function forked()
  core.renew()
  local lost = {}
  for tag in pairs(waiting) do lost[#lost + 1] = tag end
  for _, tag in ipairs(lost) do
    deliver(false, tag, nil, "the process was forked: what the parent had asked for is not answered here", "closed")
  end
end

--- Called before a store is opened: a child of fork() gets a queue of its own.
function scheduler.check_fork()
  if core.renew() then forked() end
end

local function wait_for_reply(seconds)
  if core.wait(seconds) == -2 then forked() end
end

-- Hand out what is there. Returns whether something was.
local function handle(direct, tag, ...)
  if tag == nil then return false end
  deliver(direct, tag, ...)
  return true
end

local function raise_kept()
  local problem = raised
  raised = nil
  error(problem, 0)
end

--- Hand out what is in the queue without waiting, when no loop does it. Outside of a loop every call of the module does
-- this first. Raises what a callback has raised since.
function scheduler.poll()
  if raised then raise_kept() end
  if host and host.enter then host.enter() end
  if looping or not pending() then return end
  while handle(false, next_reply()) do end -- to the end: the sign that something came is gone after the first
  tell_loop()
  if raised then raise_kept() end
end

-- Where the task can yield; on 5.1 and 5.2 it cannot be told.
local function give_turn()
  local task = current_task()
  if not (task and yieldable and yieldable()) then return end
  forget_waits(task)
  make_ready(task)
  yield(TOKEN)
end

--- As poll(), at the start of what may wait. The embedded store answers many calls at once: a task that makes them in
-- a loop would never let others run, which it does on any other store.
function scheduler.enter()
  scheduler.poll()
  if not looping then return end
  answered = answered + 1
  if answered >= TURN then give_turn() end
end

--- A callback of the program raised: kv.run and kv.step raise it, outside of them the next call of the module.
function scheduler.fail(problem)
  if looping then
    failures[#failures + 1] = {problem = problem, task = {}}
  elseif raised == nil then
    raised = problem
  end
end

-- May the caller, who is no task, wait in a host's loop? A loop that the module knows is found when somebody waits in
-- it.
local function in_host()
  if not scheduler.yields_across_pcall and bridged[running() or 1] then return true end
  if host then return host.current() end
  if not recognised then return false end
  local hooks = hosts.find()
  if not hooks then return false end
  if hooks.begin then hooks.begin(scheduler) end
  host = hooks
  return true
end

--- Would a wait of the caller yield, so that others go on?
function scheduler.may_yield()
  return current_task() ~= nil or in_host() == true
end

--- May the caller's thread be stopped? Not in a host's process that serves others too.
function scheduler.may_block()
  return not (host and host.never_blocks)
end

--- Does the caller run for somebody who may go away, so that it never goes on?
function scheduler.may_vanish()
  return host ~= nil and host.may_vanish ~= nil and host.may_vanish()
end

--- This gives something up when it is collected, which must not take for ever.
function scheduler.guard(object)
  guards[object] = clock()
  if host and host.guarded then host.guarded() end
end

--- Is there something of that kind, so many seconds old?
function scheduler.has_guards(age)
  local before = clock() - (age or 0)
  for _, since in pairs(guards) do
    if since <= before then return true end
  end
  return false
end

--- Tell `watcher:_ready(direct)` whenever the watch with this tag has something. Held weakly.
function scheduler.watch(tag, watcher)
  watching[tag] = watcher
  if watcher and host and host.listen then host.listen() end
end

--- Is there a watch or a mirror?
function scheduler.has_watches()
  return next(watching) ~= nil
end

local PHASE = "this phase of nginx cannot wait; hand it to a timer (ngx.timer.at or kv.spawn)"

-- ------------------------------------------------------------------ waiting for an answer

-- Returns what came for `own`; what comes for others is handed out on the way.
local function block_for(own, tag, ...)
  if tag == own then
    waiting[own] = nil
    return ...
  end
  if tag == nil then wait_for_reply(-1) else deliver(false, tag, ...) end
  local results = arrived[own]
  if results then
    arrived[own] = nil
    return unpack(results, 1, results.n)
  end
  return block_for(own, next_reply())
end

local function blocked(tag, id, ok, ...)
  tell_loop()
  if ok then return ... end
  waiting[tag], arrived[tag] = nil, nil -- a hook raised (Ctrl-C): nobody waits any more
  core.cancel(id)
  error((...), 0)
end

local function forget(tag, id, waiter, ok, ...)
  if ok then return ... end
  if waiting[tag] == waiter then
    waiting[tag] = nil
    core.cancel(id)
  end
  error((...), 0)
end

local function wait_in_host(waiter)
  repeat host.wait(waiter) until waiter.state
  if waiter.of then
    waiter.of.id = nil
    settle(waiter.of, unpack(waiter.results, 1, waiter.results.n))
  end
  return unpack(waiter.results, 1, waiter.results.n)
end

-- The task of kv.spawn that the host runs the caller for: task:cancel() must know what it waits for.
local function spawned_task()
  return next(spawned) ~= nil and spawned[scheduler.host_coroutine()] or nil
end

local function await_in_host(tag, id)
  local waiter = {id = id, of = spawned_task()}
  function waiter.answer(self, _, ...)
    self.results, self.state = pack(...), "woken"
    host.wake(self)
  end
  waiting[tag] = waiter
  local task = waiter.of
  if task then
    task.id = id
    if task.cancelling then core.cancel(id) end
  end
  if not scheduler.yields_across_pcall then return wait_in_host(waiter) end
  return forget(tag, id, waiter, pcall(wait_in_host, waiter))
end

--- Wait for the answer to what the core knows as `tag` and `id`; returns its results.
function scheduler.await(tag, id)
  local task = current_task()
  if task then
    forget_waits(task)
    waiting[tag], task.waits, task.id = task, tag, id
    outside = outside + 1
    if task.cancelling then core.cancel(id) end
    return yield(TOKEN)
  end
  if in_host() then return await_in_host(tag, id) end
  if not scheduler.may_block() then
    core.cancel(id)
    return nil, PHASE, "phase"
  end
  waiting[tag] = BLOCKED
  return blocked(tag, id, pcall(block_for, tag, next_reply()))
end

--- Have the answers to many requests go to `collector:answer(tag, ...)`.
function scheduler.collect(tag, collector)
  waiting[tag] = collector
end

--- Nobody waits for this any more: cancel it in the core, and drop its answer.
function scheduler.abandon(tag, id)
  waiting[tag] = nil
  core.cancel(id)
end

-- ------------------------------------------------------------------ waiting for a condition

local function wake_task(task, waiter)
  if task.dropped then return end
  if waiter.outside then outside = outside - 1 end
  if task.waiter == waiter then make_ready(task) end
end

--- Have who is parked with this waiter go on with that result of park().
function scheduler.wake_as(waiter, state)
  if waiter.state then return end
  scheduler.wake(waiter)
  waiter.state = state
end

--- Wake who is parked with this waiter. Once; later calls do nothing.
function scheduler.wake(waiter)
  if waiter.state then return end
  waiter.state = "woken"
  if waiter.timer then timers:stop(waiter.timer) end
  if waiter.task then
    wake_task(waiter.task, waiter)
  elseif waiter.host then
    waiter.host.wake(waiter)
  end
end

local wake_as = scheduler.wake_as

local function park_task(task, waiter, deadline)
  if task.cancelling then
    task.cancelling = nil
    waiter.state = "cancelled"
    return waiter.state
  end
  forget_waits(task)
  waiter.task, task.waiter = task, waiter
  if deadline then waiter.timer = timers:add(deadline, waiter) end
  if waiter.outside then outside = outside + 1 end
  yield(TOKEN)
  task.waiter = nil
  return waiter.state
end

local function park_in_host(waiter, deadline)
  local task = spawned_task()
  if task then
    if task.cancelling then
      task.cancelling = nil
      return "cancelled"
    end
    task.waiter = waiter
  end
  waiter.host = host
  if deadline then waiter.timer = timers:add(deadline, waiter) end
  while not waiter.state do
    local left = deadline and math.max(0, deadline - clock()) or nil
    host.wait(waiter, left)
    if deadline and not waiter.state and clock() >= deadline then wake_as(waiter, "timeout") end
  end
  if task then task.waiter = nil end
  return waiter.state
end

local function park_blocked(waiter, deadline)
  while not waiter.state do
    if not handle(false, next_reply()) then
      local left = deadline and deadline - clock() or -1
      if deadline and left <= 0 then
        waiter.state = "timeout"
      else
        wait_for_reply(left)
      end
    end
  end
  tell_loop()
  return waiter.state
end

--- Wait until wake(waiter) or the deadline (of core.clock; nil: none). Returns "woken", "timeout", "cancelled"; under
-- OpenResty also "phase", and "closed" where the worker ends. `waiter` is a fresh table; waiter.outside = true says
-- that something outside of Lua will wake it, waiter.brief = true that an ending worker waits for this.
function scheduler.park(waiter, deadline)
  if waiter.state then return waiter.state end
  local task = current_task()
  if task then return park_task(task, waiter, deadline) end
  if in_host() then return park_in_host(waiter, deadline) end
  if not scheduler.may_block() then return "phase" end
  return park_blocked(waiter, deadline)
end

--- The deadline of a timeout in seconds from now, or nil for none.
function scheduler.deadline(seconds)
  if seconds == nil or seconds == math.huge then return nil end
  return clock() + seconds
end

-- ------------------------------------------------------------------ the loop

local function run_ready()
  local upto = last
  if first > upto then return false end
  while first <= upto do
    local task = ready[first]
    ready[first] = nil
    first = first + 1
    if not task.dropped then run_with_results(task) end
  end
  if first > last then first, last = 1, 0 end
  return true
end

local function run_replies()
  for count = 1, REPLIES_AT_ONCE do
    if not handle(true, next_reply()) then return count > 1 end
  end
  return true
end

local function run_timers()
  if timers.size == 0 then return false end
  local now = clock()
  local waiter = timers:take(now)
  if not waiter then return false end
  repeat
    wake_as(waiter, "timeout")
    waiter = timers:take(now)
  until not waiter
  return true
end

local function turn()
  local busy = run_ready()
  busy = run_replies() or busy
  return run_timers() or busy
end

-- The first error that nobody can join any more. The handle of a task that failed is looked for by a full collection,
-- once: a failure is rare, and waiting for the end of everything would hide it.
local function unjoined(at_end)
  if #failures == 0 then return nil end
  local index, fresh = 1, false
  while failures[index] do
    local failure = failures[index]
    local task = failure.task[1]
    if task and task.joined then
      table.remove(failures, index)
    else
      if at_end or failure.main then return failure end
      fresh, failure.fresh = fresh or failure.fresh, false
      index = index + 1
    end
  end
  if fresh then collectgarbage() end
  for _, failure in ipairs(failures) do
    if not failure.task[1] then return failure end
  end
end

local function deadlock()
  local lines = {"kv.run: all tasks wait for each other and nothing is in flight"}
  for task in pairs(tasks) do
    if #lines <= 3 then lines[#lines + 1] = debug.traceback(task.main, "a task waits here:") end
  end
  error(table.concat(lines, "\n"), 0)
end

local function cancel_all()
  local all = {}
  for task in pairs(tasks) do all[#all + 1] = task end
  for _, task in ipairs(all) do task:cancel() end
end

-- Wait for what may come next. `limit` is a time of the clock, or nil.
local function rest(limit)
  local at = timers:next_at()
  if limit and (not at or at > limit) then at = limit end
  if not at and outside == 0 then deadlock() end
  wait_for_reply(at and math.max(0, at - clock()) or -1)
end

local function loop()
  local fatal, stop_at
  while alive > 0 do
    local busy = turn()
    if not fatal and #failures > 0 then
      fatal = unjoined(alive == 0)
      if fatal then
        stop_at = clock() + GRACE
        cancel_all()
        busy = true
      end
    end
    if fatal and clock() >= stop_at then break end
    if not busy and alive > 0 then rest(stop_at) end
  end
  fatal = fatal or unjoined(true)
  if fatal then error(fatal.problem, 0) end
end

local function drop(task)
  if task.waits then core.cancel(task.id) end
  if task.waiter and task.waiter.timer then timers:stop(task.waiter.timer) end
  if close_coroutine and status(task.main) ~= "dead" then pcall(close_coroutine, task.main) end -- its <close> variables
end

-- Leave nothing behind: whatever is still there waits for nothing any more. All are marked before the first one's
-- <close> variables are closed, which may wake others.
local function drop_tasks()
  local all = tasks
  for tag, waiter in pairs(waiting) do
    if waiter.main then waiting[tag] = nil end
  end
  for index = first, last do ready[index] = nil end
  first, last, tasks, alive, outside, failures, current = 1, 0, {}, 0, 0, {}, nil
  for task in pairs(all) do task.dropped = true end
  for task in pairs(all) do drop(task) end
end

local function need_function(name, fn)
  if type(fn) ~= "function" then error(("kv.%s: a function is needed, got %s"):format(name, type(fn)), 3) end
end

--- Run `fn(...)` as a task, and everything that it spawns, until all is done.
-- @tparam function fn
-- @param ... its arguments
-- @return what fn returned
-- Raises what fn raised, or what a task raised that nobody joins, with its traceback; and says so when all tasks wait
-- for each other.
function scheduler.run(fn, ...)
  need_function("run", fn)
  if looping then error("kv.run: it is running already; use kv.spawn", 2) end
  if in_host() then return scheduler.spawn(fn, ...):join() end
  if not scheduler.may_block() then error("kv.run: " .. PHASE, 2) end
  local task = new_task(fn, ...)
  task.is_main = true
  alive = alive + 1
  looping, in_run = true, true
  local ok, problem = pcall(loop)
  looping, in_run = false, false
  drop_tasks()
  if not ok then error(problem, 0) end
  return unpack(task.values, 1, task.values.n)
end

-- A coroutine of the host's; here it is known by its end, and by what it waits for.
local function spawn_in_host(fn, ...)
  local task = setmetatable({joiners = {}}, Task)
  local arguments = pack(...)
  local ok, message = host.spawn(function()
    spawned[running()] = task
    finish(task, xpcall(function() return fn(unpack(arguments, 1, arguments.n)) end, traced))
    if not task.ok and not task.joined then host.complain(task.problem) end
  end)
  if not ok then error("kv.spawn: " .. message, 3) end
  return task
end

--- Start `fn(...)` as a task beside the caller's.
-- @tparam function fn
-- @param ... its arguments
-- @treturn kv.task
function scheduler.spawn(fn, ...)
  need_function("spawn", fn)
  if not in_run and not host and not in_host() then
    error("kv.spawn: nothing runs tasks here; call it inside kv.run", 2)
  end
  if host and host.spawn then return spawn_in_host(fn, ...) end
  alive = alive + 1
  local task = new_task(fn, ...)
  if not in_run and host.attend then host.attend() end
  return task
end

--- Is there work for kv.step() beside what coroutines of a host wait for: tasks, and mirrors that call back?
function scheduler.has_work()
  return alive > 0 or next(followers) ~= nil
end

--- This mirror calls back from now on, or (false) no longer. Held weakly.
function scheduler.follow(mirror, calls)
  followers[mirror] = calls or nil
  if calls and not in_run and in_host() and host.attend then host.attend() end
end

--- Wait. In a task others go on meanwhile; with 0 they get one turn.
-- @tparam number seconds
-- @return true, or nil, message, "cancelled"
function scheduler.sleep(seconds)
  if type(seconds) ~= "number" or seconds ~= seconds or seconds < 0 then
    error(("kv.sleep: seconds must be a number of at least 0, got %s"):format(tostring(seconds)), 2)
  end
  local why = scheduler.park({}, clock() + seconds)
  if why == "cancelled" then return nil, "kv.sleep: the task was cancelled", "cancelled" end
  if why == "phase" then return nil, "kv.sleep: " .. PHASE, "phase" end
  if why == "closed" then return nil, "kv.sleep: the worker ends", "closed" end
  return true
end

-- ------------------------------------------------------------------ handles of tasks

--- Wait for the end of the task.
-- @tparam[opt] number timeout seconds; without it as long as it takes
-- @return what the task returned, or nil, message, code ("timeout", "cancelled": of the wait). Raises what the task
--   raised, with its traceback.
function Task:join(timeout)
  if timeout ~= nil and (type(timeout) ~= "number" or timeout ~= timeout or timeout < 0) then
    error(("task:join: timeout must be a number of at least 0, got %s"):format(tostring(timeout)), 2)
  end
  if not self.done then
    if self == current_task() then error("task:join: a task cannot wait for itself", 2) end
    if self.dropped or not (looping or host) then
      error("task:join: the task is not done, and its kv.run has ended", 2)
    end
    local waiter = {}
    self.joiners[#self.joiners + 1] = waiter
    local why = scheduler.park(waiter, scheduler.deadline(timeout))
    if why ~= "woken" then
      for i, other in ipairs(self.joiners) do
        if other == waiter then table.remove(self.joiners, i) break end
      end
      if why == "timeout" then return nil, "task:join: the task is still at work", "timeout" end
      if why == "cancelled" then return nil, "task:join: the task that waited was cancelled", "cancelled" end
      return nil, "task:join: it cannot be waited for here or now", why
    end
  end
  self.joined = true
  if not self.ok then error(self.problem, 0) end
  return unpack(self.values, 1, self.values.n)
end

--- Make what the task waits for, or else what it waits for next, answer nil, message, "cancelled".
-- @treturn boolean whether the task was still there
function Task:cancel()
  if self.done or self.dropped then return false end
  if self.waiter and not self.waiter.state then
    wake_as(self.waiter, "cancelled")
    return true
  end
  self.cancelling = true
  if self.id then core.cancel(self.id) end
  return true
end

function Task:__tostring()
  if self.done then return self.ok and "kv.task (done)" or "kv.task (failed)" end
  return self.dropped and "kv.task (dropped)" or "kv.task (alive)"
end

-- ------------------------------------------------------------------ protected calls

local function pass(task, outer, co, ok, ...)
  if status(co) == "suspended" then return pass(task, outer, co, resume(co, yield(...))) end
  task.co = outer
  if ok then return true, ... end
  return false, (...)
end

-- PUC 5.1 cannot yield across pcall: the function gets a coroutine of its own, whose yields are passed on.
local function call_in_coroutine(task, fn, ...)
  local co = create(function(...) return fn(...) end)
  local outer = task.co
  task.co = co
  if task.in_host then bridged[co] = bridged[outer] or outer end
  return pass(task, outer, co, resume(co, ...))
end

--- As pcall, and operations inside may yield, on 5.1 too.
-- @tparam function fn
-- @param ... its arguments
-- @return true and what fn returned, or false and what it raised
function scheduler.pcall(fn, ...)
  if scheduler.yields_across_pcall then return pcall(fn, ...) end
  local task = current_task()
  if task then return call_in_coroutine(task, fn, ...) end
  if not in_host() then return pcall(fn, ...) end
  return call_in_coroutine({co = running(), in_host = true}, fn, ...)
end

--- The coroutine of the host's loop that the caller runs in: not always the innermost one, see kv.pcall.
function scheduler.host_coroutine()
  local co = running()
  return bridged[co] or co
end

-- ------------------------------------------------------------------ other loops

--- Hand over to a loop of the program's own. `hooks` may have:
--   current() -> true when the calling coroutine may wait by wait()
--   wait(waiter, seconds or nil): suspend it until wake(waiter) is called, or the time is up; early returns are fine
--   wake(waiter): let it go on; may be called from step()
--   begin(scheduler): it is to be used from now on
--   attend(): there is work that nobody waits for, call kv.step() while scheduler.has_work()
-- and for OpenResty
--   never_blocks: who cannot wait by wait() does not wait at all
--   enter(): a function of the module was called
--   listen(): there is a watch, call kv.step() from now on
--   guarded(): something gives something up when it is collected, see that it is
--   spawn(fn): run it in a coroutine of its own, instead of as a task of kv.step()
--   may_vanish() -> may the caller be ended in the middle of a wait?
-- Without current() calls block, and tasks of kv.spawn are run by kv.step(). nil or false: no loop. "find": the
-- one that the caller of a function that waits runs in, as it is at the start.
function scheduler.set_host(hooks)
  recognised = hooks == "find"
  if recognised then hooks = nil end
  if hooks then
    if hooks.begin then hooks.begin(scheduler) end
    local function never() end
    local copy = {current = never}
    for name, hook in pairs(hooks) do copy[name] = hook end
    hooks = copy
  end
  host = hooks
end

--- One descriptor that is readable when kv.step() has something to do. It belongs to the module: poll it, never read or
-- close it.
-- @treturn[1] integer
-- @return[2] nil, message, code
function scheduler.fd()
  return core.fd()
end

--- Seconds until kv.step() wants to be called at the latest, or nil for no such time. It is another one as soon as
-- somebody waits: a host that resumes coroutines after a step asks again.
function scheduler.due_in()
  if first <= last or core.pending() then return 0 end
  local at = timers:next_at()
  return at and math.max(0, at - clock()) or nil
end

--- Do what there is to do, without waiting: hand out answers, run tasks that can go on.
-- @treturn number|nil seconds until it wants to be called again at the latest, nil for no such time
-- Raises what a task raised that nobody joins.
function scheduler.step()
  if looping then error("kv.step: kv.run is at work", 2) end
  looping = true
  local ok, problem = pcall(turn)
  looping = false
  if not ok then error(problem, 0) end
  if #failures > 0 then
    local failure = unjoined(false)
    if failure then
      for i, other in ipairs(failures) do
        if other == failure then table.remove(failures, i) break end
      end
      error(failure.problem, 0)
    end
  end
  return scheduler.due_in()
end

return scheduler
