--- Waiting in OpenResty: a light thread that waits sleeps on a semaphore of its own, nothing else stops.
--
-- nginx cannot poll the module's descriptor. So each worker that waits has a light thread in a timer, the dispatcher,
-- which reads from a unix socket that gets a byte whenever there is something to do (csrc/lua/doorbell.c), and calls
-- kv.step(). Where that socket cannot be had it looks again and again, which works, and is said in the error log.
--
-- A timer looks now and then whether the dispatcher is needed any more: it holds its Lua state, which without a code
-- cache is one request's. That timer is also run early when the worker is to end, and tells so: from then on whatever
-- waits in timers is ended, and the dispatcher stays as long as requests wait.
--
-- Another timer is there while requests have locks. When one has had its lock for a while, it collects garbage, a
-- little at a time: a request that died is found that way only.
local core = require("kv.core")
local hosts = require("kv.host")
local ngx = ngx -- luacheck: ignore 113
if not ngx then error("this is not nginx", 0) end
local semaphore = require("ngx.semaphore")

local get_phase = ngx.get_phase

local host = {never_blocks = true}

local LOOK = 10            -- seconds between two looks whether somebody needs the dispatcher
local SWEEP = 2            -- seconds between two looks whether a request has had a lock for so long
local STEP = 50            -- of a collection, see collectgarbage("step")
local LONGEST = 3600       -- seconds of one wait for a semaphore
local READ = 1000000       -- seconds of one wait for the socket; nginx would log a time-out as an error
local LIFE = 10000         -- times that one dispatcher is woken before it hands over: a timer gives no memory back
local POLL = 0.005         -- seconds between two looks without the socket
local LEAVING = 0.01       -- the same while the worker ends
local PAUSE = 0.001        -- seconds between two steps of a collection; nginx logs a warning of ngx.sleep(0)
local GRACE = 1            -- seconds for what timers had asked for before the worker was to end

local NOTHING, WAITS, ALL = 0, 1, 2 -- what a phase refuses, see core.refuse()

local refused = {
  rewrite = NOTHING, server_rewrite = NOTHING, access = NOTHING, content = NOTHING, timer = NOTHING, preread = NOTHING,
  ssl_cert = NOTHING, ssl_session_fetch = NOTHING, ssl_client_hello = NOTHING,
  init = ALL, exit_worker = ALL,
}
local of_requests = {rewrite = true, server_rewrite = true, access = true, content = true, preread = true}

local scheduler
local sleepers = setmetatable({}, {__mode = "k"}) -- waiter -> is it in a timer? Those of ended requests are collected.
local running = false                             -- there is a dispatcher
local watched = false                             -- the timer that looks is there
local used = false                                -- since it looked
local idle = false                                -- the dispatcher may end
local swept = false                               -- garbage was collected since it was used
local leaving                                     -- when the worker was told to end, or nil
local collected                                   -- when the dead were last looked for while leaving
local told = false                                -- of the socket that cannot be had
local refusing = NOTHING

--- This scheduler's loop it is. (It requires this file's reader, so that this file cannot require it.)
function host.begin(its_scheduler)
  scheduler = its_scheduler
end

-- ------------------------------------------------------------------ the end of a worker

local look_again, sweep

local function look(premature)
  watched = false
  if premature then
    leaving = core.clock()
  elseif used or next(sleepers) ~= nil or scheduler.has_watches() or scheduler.has_guards() then
    local rests = not used and next(sleepers) == nil
    used = false
    look_again()
    -- Watches that nobody has any more may be what holds it: nothing else collects garbage in a request's own state.
    if rests and not swept then
      swept = true
      sweep()
    end
    return
  else
    idle = true
  end
  core.poke()
end

function look_again()
  if watched or leaving then return end
  watched = ngx.timer.at(LOOK, look) and true or false
end

-- Timers wait for nothing any more: what is parked goes on at once, what asked the core for something a little later.
-- Who closes a store waits for milliseconds, and has locks to give back.
local function end_timers()
  local late = core.clock() > leaving + GRACE
  for waiter, in_timer in pairs(sleepers) do
    if in_timer and waiter.host and not waiter.brief then
      scheduler.wake_as(waiter, "closed")
    elseif in_timer and late and waiter.id then
      core.cancel(waiter.id)
    end
  end
end

-- ------------------------------------------------------------------ requests that died

local sweeping = false

-- Two whole cycles: what has a finalizer is found in the first one, and gone after it. Others have their turns.
function sweep()
  for _ = 1, 2 do
    while not leaving and not collectgarbage("step", STEP) do ngx.sleep(PAUSE) end
  end
end

local function sweep_timer(premature)
  sweeping = false
  if premature or not scheduler.has_guards() then return end
  if scheduler.has_guards(SWEEP) then sweep() end
  host.guarded()
end

--- Something gives something up when it is collected.
function host.guarded()
  if sweeping or leaving then return end
  sweeping = ngx.timer.at(SWEEP, sweep_timer) and true or false
end

-- ------------------------------------------------------------------ the dispatcher

local function connect()
  local path, message = core.bell_open(hosts.socket_dir)
  if not path then return nil, message end
  local sock = ngx.socket.tcp()
  sock:settimeout(READ * 1000)
  local ok
  ok, message = sock:connect("unix:" .. path)
  if not ok then return nil, ("the notification socket %s: %s"):format(path, message) end
  for _ = 1, 100 do
    local taken
    taken, message = core.bell_answer()
    if taken then return sock end
    if taken == nil then break end
    ngx.sleep(0.001)
  end
  sock:close()
  return nil, message or "the notification socket does not answer"
end

local function step()
  local ok, problem = pcall(scheduler.step)
  if not ok then host.complain(problem) end
end

-- A step hands out so many answers and no more: what is left has rung already.
local function rest(sock)
  if scheduler.due_in() == 0 then
    ngx.sleep(PAUSE)
    return true
  end
  if leaving or not sock then return ngx.sleep(leaving and LEAVING or POLL) end
  local got, message = sock:receiveany(64)
  if got or message == "timeout" then return true end
  return nil, message
end

-- Those who wait and will never go on must not hold the worker.
local function find_dead()
  if collected and core.clock() < collected + GRACE then return end
  collected = core.clock()
  collectgarbage()
end

local function work(sock)
  for _ = 1, LIFE do
    step()
    if idle then return false end
    if leaving then
      find_dead()
      end_timers()
      if next(sleepers) == nil then return false end
    end
    local ok, message = rest(sock)
    if not ok and sock and not leaving then return true, message end
  end
  return true
end

local start

local function dispatch()
  local sock, message = connect()
  if not sock and not told then
    told = true
    host.complain(message .. "; looking every few milliseconds instead")
  end
  local ok, more = pcall(work, sock)
  if not ok then host.complain(more) end
  core.bell_close()
  if sock then sock:close() end
  running = false
  if not ok or more or (idle and next(sleepers) ~= nil) then start() end
end

function start()
  if running then return true end
  idle = false
  local ok, message = ngx.timer.at(0, dispatch)
  running = ok and true or false
  return ok, message
end

--- Something is to be dispatched from now on.
function host.listen()
  used, idle, swept = true, false, false
  look_again()
  return start()
end

-- ------------------------------------------------------------------ hooks

--- Can the caller's light thread wait?
function host.current()
  return refused[get_phase()] == NOTHING
end

--- Tell the core what the caller's phase refuses.
function host.enter()
  local now = refused[get_phase()] or WAITS
  if now == refusing then return end
  refusing = now
  core.refuse(now)
end

--- May the caller's request be ended in the middle of a wait?
function host.may_vanish()
  return of_requests[get_phase()] == true
end

--- Suspend the caller until wake(waiter), or the time is up.
function host.wait(waiter, seconds)
  local in_timer = get_phase() == "timer"
  if leaving and in_timer and waiter.host and not waiter.brief then return scheduler.wake_as(waiter, "closed") end
  if not waiter.semaphore then waiter.semaphore = semaphore.new() end
  sleepers[waiter] = in_timer
  local longest = math.min(seconds or LONGEST, LONGEST)
  if not host.listen() then longest = math.min(longest, POLL) end
  waiter.semaphore:wait(longest)
  if not running then step() end -- no timer can be had: every one who waits looks
  sleepers[waiter] = nil
end

--- Let it go on.
function host.wake(waiter)
  if waiter.semaphore then waiter.semaphore:post(1) end
end

--- Run it in a timer of its own.
function host.spawn(fn)
  return ngx.timer.at(0, fn)
end

--- What nobody is there to catch.
function host.complain(problem)
  ngx.log(ngx.ERR, "kv: ", tostring(problem))
end

return host
