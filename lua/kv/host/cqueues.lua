--- Waiting in cqueues.
--
-- Whoever waits sleeps on a condition of its own. One coroutine of each controller, the pump, polls the module's
-- descriptor and calls kv.step(), as long as somebody waits there or there is other work: a controller with nothing
-- else to do comes to its end.
local condition = require("cqueues.condition")
local core = require("kv.core")
local cqueues = require("cqueues")

local host = {}

-- controller -> its pump: {waiting = how many wait there, bell = condition}
local pumps = setmetatable({}, {__mode = "k"})
local scheduler

--- This scheduler's loop it is. (It requires this file's reader, so that this file cannot require it.)
function host.begin(its_scheduler)
  scheduler = its_scheduler
end

local function has_work(pump)
  return pump.waiting > 0 or scheduler.has_work()
end

-- An error of kv.step() is that of a task that nobody joins: it is raised where the controller is stepped, and a new
-- pump goes on for those who wait. (PUC 5.1 cannot yield inside of pcall, so only the step is in it.)
local function run(pump, controller)
  local source = {events = "r"}
  while true do
    local ok, again = pcall(scheduler.step)
    if not ok then
      pumps[controller] = nil
      if has_work(pump) then host.pump(controller).waiting = pump.waiting end
      error(again, 0)
    end
    if not has_work(pump) then break end
    source.pollfd = assert(core.fd()) -- another one after fork()
    cqueues.poll(source, pump.bell, again)
  end
  pumps[controller] = nil
end

--- The pump of a controller, started if there is none.
function host.pump(controller)
  local pump = pumps[controller]
  if pump then return pump end
  pump = {waiting = 0, bell = condition.new()}
  pumps[controller] = pump
  controller:wrap(function() run(pump, controller) end)
  return pump
end

--- Is the caller a coroutine that cqueues resumes itself?
function host.current()
  local _, direct = cqueues.running()
  return direct == true
end

host.recognise = host.current

--- Suspend the caller until wake(waiter), or the time is up.
function host.wait(waiter, seconds)
  local controller = cqueues.running()
  local pump = host.pump(controller)
  waiter.condition = waiter.condition or condition.new()
  pump.waiting = pump.waiting + 1
  cqueues.poll(waiter.condition, seconds)
  pump = pumps[controller] or pump
  pump.waiting = pump.waiting - 1
  if pump.waiting == 0 then pump.bell:signal() end
end

function host.wake(waiter)
  if waiter.condition then waiter.condition:signal() end
end

--- There is work beside what coroutines wait for. Outside of a controller the next one that waits sees to it.
function host.attend()
  local controller = cqueues.running()
  if controller then host.pump(controller).bell:signal() end
end

return host
