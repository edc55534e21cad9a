--- Waiting in copas.
--
-- copas resumes a coroutine when the socket that it waits for is readable, and knows no other reason (Debian's version
-- has no timers either). So whoever waits here waits for something that looks like a socket and becomes "dirty", which
-- for LuaSocket is the same as readable, when it was woken. One thread of copas waits for the module's descriptor and
-- calls kv.step(), as long as somebody waits or there is other work.
--
-- copas.step, addthread and addserver are wrapped, once: to know whether a coroutine is run by copas, to wake up in
-- time for what the module wants to do next, and because copas closes what a handler waited for last, which otherwise
-- would be ours instead of its client. Before the wrapping took place (kv was loaded before copas, and nothing was
-- opened since) calls block.
--
-- What a task raised that nobody joins goes where copas has the errors of its threads go: it prints them.
local copas = require("copas")
local core = require("kv.core")

local host = {}

local scheduler
local inside = 0                                    -- copas is at work, so often
local clients = setmetatable({}, {__mode = "k"})    -- coroutine of a server's handler -> its client
local waiting = 0
local pump                                          -- what the thread that steps waits for, while there is one
local due                                           -- when it wants to step again, a time of the clock

-- ------------------------------------------------------------------ things that look like sockets

local Fake = {}
Fake.__index = Fake

function Fake:getfd()
  if self.polls or self:is_ready() then return self.fd end
  return -1
end

function Fake:dirty()
  return self:is_ready()
end

function Fake:receive()
  if self:is_ready() or self.seen then return "" end
  self.seen = true
  return nil, "timeout"
end

function Fake:settimeout() -- luacheck: ignore 212
  return true
end

function Fake:close()
  if self.client then self.client:close() end
end

-- copas returns from receive() when it is ready; when LuaSocket says that it is readable.
local function wait_for(fake)
  fake.seen = false
  copas.receive(fake, "*l")
end

-- ------------------------------------------------------------------ the thread that steps

local function has_work()
  return waiting > 0 or scheduler.has_work()
end

local function call_again(at)
  if at and (not due or at < due) then due = at end
end

local function run()
  while true do
    due = nil
    local ok, again = pcall(scheduler.step)
    if not ok then
      pump = nil
      if has_work() then host.attend() end
      error(again, 0)
    end
    if not has_work() then break end
    if again then call_again(core.clock() + again) end
    pump.fd = assert(core.fd()) -- another one after fork()
    pump.rung = false
    wait_for(pump)
  end
  pump = nil
end

--- This scheduler's loop it is. (It requires this file's reader, so that this file cannot require it.)
function host.begin(its_scheduler)
  scheduler = its_scheduler
end

--- There is work: see that it is done.
function host.attend()
  if pump then
    pump.rung = true
    return
  end
  pump = setmetatable({polls = true, fd = assert(core.fd())}, Fake)
  function pump.is_ready(self)
    return self.rung or (due ~= nil and core.clock() >= due)
  end
  copas.addthread(run)
end

-- ------------------------------------------------------------------ hooks

local function in_coroutine()
  local co, main = coroutine.running()
  return co ~= nil and main ~= true
end

--- Does copas run the caller?
function host.current()
  return inside > 0 and in_coroutine()
end

host.recognise = host.current

local function is_woken(fake)
  return fake.waiter.state ~= nil
end

--- Suspend the caller until wake(waiter), or the time is up.
function host.wait(waiter, seconds)
  waiting = waiting + 1
  host.attend()
  if seconds then call_again(core.clock() + seconds) end
  wait_for(setmetatable({waiter = waiter, fd = pump.fd, is_ready = is_woken,
    client = copas.autoclose and clients[scheduler.host_coroutine()] or nil}, Fake))
  waiting = waiting - 1
  if waiting == 0 and pump then pump.rung = true end
end

--- Let it go on: the next time that copas looks, its waiter's state has been set.
function host.wake()
end

-- ------------------------------------------------------------------ wrapping

local function leave(ok, ...)
  inside = inside - 1
  if not ok then error((...), 0) end
  return ...
end

local function counted(fn)
  return function(...)
    inside = inside + 1
    return leave(pcall(fn, ...))
  end
end

local step, addserver = counted(copas.step), copas.addserver

function copas.step(timeout)
  if due and pump then
    local left = math.max(0, due - core.clock())
    if not timeout or timeout > left then timeout = left end
  end
  return step(timeout)
end

copas.addthread = counted(copas.addthread)

local function remember(handler)
  return function(client, ...)
    clients[coroutine.running()] = client
    return handler(client, ...)
  end
end

copas.addserver = counted(function(server, handler, ...)
  if type(handler) == "function" then handler = remember(handler) end
  return addserver(server, handler, ...)
end)

return host
