--- kv in an event loop of one's own: here coroutines, a table of times and one select().
--
--     lua5.4 examples/own_loop.lua [URL]
--
-- A loop must do two things. It polls kv.fd() along with its own descriptors, and calls kv.step() when that is
-- readable, and after as many seconds as the last kv.step() said. And it tells kv.use() how a coroutine of its own
-- waits: wait() suspends the caller until wake() is called with the same waiter, or the seconds are up.
local kv = require("kv")
local socket = require("socket") -- LuaSocket, for select() and its clock

-- ------------------------------------------------------------------ the loop

local ready, times, alive = {}, {}, 0 -- coroutines that can go on; coroutine -> when it goes on at the latest
local running                         -- the coroutine that the loop resumed, while it runs

local function spawn(fn)
  alive = alive + 1
  ready[#ready + 1] = coroutine.create(fn)
end

local function sleep(seconds)
  times[running] = socket.gettime() + seconds
  coroutine.yield()
end

local function wake(co)
  times[co] = nil
  ready[#ready + 1] = co
end

local function run_ready()
  local batch = ready
  ready = {}
  for _, co in ipairs(batch) do
    running = co
    local ok, problem = coroutine.resume(co)
    running = nil
    if not ok then error(debug.traceback(co, problem), 0) end
    if coroutine.status(co) == "dead" then alive = alive - 1 end
  end
end

-- Wakes whose time has come; returns the seconds until the next one.
local function look_at_times()
  local now, left, due = socket.gettime(), math.huge, {}
  for co, at in pairs(times) do
    if at <= now then due[#due + 1] = co else left = math.min(left, at - now) end
  end
  for _, co in ipairs(due) do wake(co) end
  return left
end

local function run()
  local descriptor = {getfd = kv.fd} -- what select() takes; sockets of the program would stand beside it
  while alive > 0 do
    run_ready()
    local again = kv.step() or math.huge
    local rest = math.min(again, look_at_times())
    if alive > 0 then socket.select({descriptor}, nil, #ready > 0 and 0 or rest < math.huge and rest or nil) end
  end
end

-- ------------------------------------------------------------------ how it waits for kv

kv.use{
  -- May the caller wait by wait()? Elsewhere calls block.
  current = function() return running ~= nil and coroutine.running() == running end,
  wait = function(waiter, seconds)
    waiter.co = running -- not coroutine.running(): on Lua 5.1 kv.pcall has a coroutine inside of it
    times[running] = seconds and socket.gettime() + seconds or nil
    coroutine.yield()
    waiter.co = nil
  end,
  wake = function(waiter)
    if waiter.co then wake(waiter.co) end
    waiter.co = nil
  end,
}

-- ------------------------------------------------------------------ a program

local store = assert(kv.open((...)))
local ticks, done = 0, false
local held, waits_since -- the first has the lock; ticks when the second began to wait

spawn(function()
  while not done do
    sleep(0.01)
    ticks = ticks + 1
  end
end)

spawn(function()
  local lock = assert(store:lock("door"):acquire())
  print("first has the lock")
  held = true
  repeat sleep(0.01) until waits_since and ticks >= waits_since + 10
  assert(lock:release())
end)

spawn(function()
  repeat sleep(0.01) until held
  waits_since = ticks
  local lock = assert(store:lock("door"):acquire(10))
  print(("second got it after %d ticks of the loop"):format(ticks - waits_since))
  assert(lock:release())
  local task = kv.spawn(function() return assert(store:put("from a task", "v")).value end)
  print("a task returned", (task:join()))
  local watch = store:watch("nothing")
  print("nothing came", select(3, watch:next(0.05)))
  watch:close()
  done = true
end)

run()
store:close()
