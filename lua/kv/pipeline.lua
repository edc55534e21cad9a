--- Many requests at once: so many in flight, the next one sent when one is answered, one wait for all of them.
local scheduler = require("kv.scheduler")

local pipeline = {}

local WINDOW = 512 -- in flight: enough to hide any round trip, and bounded memory for any number of requests

local Pipeline = {}
Pipeline.__index = Pipeline

-- One answer: take it, and wake who waits when there is room again.
local function take(self, item, ...)
  self.in_flight = self.in_flight - 1
  local message, code = self.taken(item, ...)
  if message and not self.message then self.message, self.code = message, code end
end

function Pipeline:answer(tag, ...)
  local item = self.items[tag]
  self.items[tag], self.ids[tag] = nil, nil
  take(self, item, ...)
  if self.waiter then scheduler.wake(self.waiter) end
end

local function asked(self, item, state, ...)
  self.in_flight = self.in_flight + 1
  if not state then return take(self, item, ...) end
  self.items[state], self.ids[state] = item, (...)
  scheduler.collect(state, self)
end

-- What a core function returned, as what an answer would be: without the `false` of one that is here already.
local function sent(self, item, state, ...)
  if state == nil then return asked(self, item, nil, nil, ...) end
  return asked(self, item, state, ...)
end

local function abandon_all(self)
  for tag, id in pairs(self.ids) do scheduler.abandon(tag, id) end
  self.items, self.ids = {}, {}
end

-- Until fewer than `limit` are in flight. False, and the code, when the caller cannot wait any longer.
local function wait_for_room(self, limit)
  while self.in_flight >= limit do
    self.waiter = {outside = true}
    local why = scheduler.park(self.waiter)
    self.waiter = nil
    if why ~= "woken" then
      abandon_all(self)
      return false, why
    end
  end
  return true
end

local REASONS = {cancelled = "the task that waited was cancelled", closed = "the worker of nginx ends",
  phase = "this phase of nginx cannot wait"}

local function gave_up(name, code)
  return nil, ("%s: %s"):format(name, REASONS[code] or code), code
end

--- Send a request for every item, and take every answer.
-- @param name of the method
-- @param items array
-- @param send function(item) -> what a function of the core returns
-- @param taken function(item, results...) -> message, code when it failed
-- @return true, or nil, message, code of the first failure; nothing more is sent after one, and all that was sent is
--   waited for
function pipeline.run(name, items, send, taken)
  local self = setmetatable({items = {}, ids = {}, in_flight = 0, taken = taken}, Pipeline)
  for _, item in ipairs(items) do
    if self.message then break end
    local there, why = wait_for_room(self, WINDOW)
    if not there then return gave_up(name, why) end
    sent(self, item, send(item))
  end
  local done, why = wait_for_room(self, 1)
  if not done then return gave_up(name, why) end
  if self.message then return nil, self.message, self.code end
  return true
end

pipeline.WINDOW = WINDOW

return pipeline
