--- Waiting in luv: a coroutine that waits yields, and is resumed by a callback of the loop.
--
-- One uv_poll on the module's descriptor and one timer call kv.step(). They hold the loop only while somebody waits or
-- there is other work; a program whose own handles are closed comes to its end.
--
-- luv has no coroutines of its own. As its users do, whoever waits yields to whatever resumed it, which must expect
-- that: so a coroutine counts when the program chose luv, or by itself while the loop runs. An error that is raised in
-- a callback ends the program: luv prints it and exits.
local core = require("kv.core")
local uv = require("luv")

local host = {}

local scheduler
local poller, polled, alarm        -- handles of the loop; the descriptor that is polled
local woken, first, last = {}, 1, 0
local waiting = 0                  -- coroutines that wait
local turning = false              -- turn() is at work
local due                          -- when the alarm rings, a time of the clock, or nil

local turn

--- This scheduler's loop it is. (It requires this file's reader, so that this file cannot require it.)
function host.begin(its_scheduler)
  scheduler = its_scheduler
end

-- The handles hold the loop, or no longer.
local function hold()
  local held = waiting > 0 or first <= last or scheduler.has_work()
  local name = held and "ref" or "unref"
  uv[name](poller)
  uv[name](alarm)
end

-- Have turn() called in so many seconds, or earlier where that was wanted before.
local function call_again(seconds)
  local at = core.clock() + seconds
  if due and due <= at then return end
  due = at
  uv.update_time() -- computing may have made luv's idea of now old
  uv.timer_start(alarm, math.ceil(seconds * 1000), 0, turn)
end

-- The descriptor is another one after fork().
local function attach()
  local fd = assert(core.fd())
  if polled == fd then return end
  if poller then
    uv.poll_stop(poller)
    uv.close(poller)
  end
  alarm = alarm or assert(uv.new_timer())
  poller, polled = assert(uv.new_poll(fd)), fd
  assert(uv.poll_start(poller, "r", function() turn() end))
end

-- What a coroutine raises is raised by the loop, as if a callback of its own had raised it: the others go on first.
local function resume_woken()
  local problem
  while first <= last do
    local waiter = woken[first]
    woken[first] = nil
    first = first + 1
    local co = waiter.co
    waiter.co = nil
    if co and coroutine.status(co) == "suspended" then
      waiting = waiting - 1
      local ok, why = coroutine.resume(co)
      if not ok then problem = problem or debug.traceback(co, tostring(why)) end
    end
  end
  return problem
end

-- When it is to be called again is asked last: those who were resumed may have begun to wait for a time.
function turn()
  if turning then return end
  turning, due = true, nil
  uv.timer_stop(alarm)
  local ok, why = pcall(scheduler.step)
  local problem = resume_woken()
  turning = false
  local again = ok and scheduler.due_in() or not ok and 0 -- after an error there may be more of them
  if again then call_again(again) end
  hold()
  if not ok then problem = why end
  if problem then error(problem, 0) end
end

local function in_coroutine()
  local co, main = coroutine.running()
  return co ~= nil and main ~= true
end

--- Is the caller in a coroutine?
host.current = in_coroutine

--- Is it, while the loop runs?
function host.recognise()
  return in_coroutine() and uv.loop_mode ~= nil and uv.loop_mode() ~= nil
end

--- Suspend the caller until wake(waiter), or the time is up.
function host.wait(waiter, seconds)
  attach()
  waiter.co = scheduler.host_coroutine()
  waiting = waiting + 1
  if seconds and not turning then call_again(seconds) end
  hold()
  coroutine.yield()
end

--- Let it go on, in the loop.
function host.wake(waiter)
  if not waiter.co then return end
  last = last + 1
  woken[last] = waiter
  if not turning then call_again(0) end
end

--- There is work beside what coroutines wait for.
function host.attend()
  attach()
  call_again(0)
  hold()
end

return host
