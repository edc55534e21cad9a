--- Watches: the core's queue of events, waited for.
--
-- The scheduler tells when a watch has something to look at; whoever is parked here is woken then and looks. Waking
-- without cause is harmless.
local call = require("kv.call")
local codec = require("kv.codec")
local core = require("kv.core")
local scheduler = require("kv.scheduler")

local NAME = "kv.watch"
local Watch, meta = call.class(NAME)

local watch_next, poll = core.watch_next, scheduler.enter

local NOBODY = {}

-- Events that wait_synced() took before next() was called, oldest first: a large state arrives only while somebody
-- takes it.
local function take_ahead(self)
  local ahead = self._ahead
  local event = ahead[ahead.first]
  ahead[ahead.first] = nil
  ahead.first = ahead.first + 1
  if ahead.first > ahead.last then self._ahead = nil end
  return event
end

-- As the program gets it. Nil: it does not.
local function shaped(self, event)
  if self._shape then return self:_shape(event) end
  local values = self._owner._codec
  if values then return codec.decode_event(values, event) end
  return event
end

-- False when there is nothing now; nil, message, code when the watch has ended.
local function take(self)
  if self._ahead then return take_ahead(self) end
  local event, message, code
  repeat
    event, message, code = watch_next(self._watch)
    if not event then return event, message, code end
    event = shaped(self, event)
  until event
  return event
end

local function fetch_ahead(self)
  local revision = core.watch_revision(self._watch)
  while true do
    local event, message, code = watch_next(self._watch)
    if not event then return message, code end
    event = shaped(self, event)
    if event then
      if not self._ahead then self._ahead, self._revision = {first = 1, last = 0}, revision end
      self._ahead.last = self._ahead.last + 1
      self._ahead[self._ahead.last] = event
    end
  end
end

-- ------------------------------------------------------------------ waiting

-- Wait until something has changed, or the deadline. Returns "woken", "timeout" or "cancelled".
local function wait(self, deadline)
  local waiter = {outside = true}
  local waiters = self._waiters or {}
  self._waiters = waiters
  waiters[waiter] = true
  local why = scheduler.park(waiter, deadline)
  waiters[waiter] = nil
  if self._waiters == waiters and next(waiters) == nil then self._waiters = nil end
  return why
end

function Watch:_ready()
  for waiter in pairs(self._waiters or NOBODY) do scheduler.wake(waiter) end
end

local function give_up(self, method, why)
  if why == "phase" then return nil, method .. ": this phase of nginx cannot wait; look from a timer", "phase" end
  if why == "timeout" then
    return nil, ("%s: nothing came in time from %s"):format(method, tostring(self)), "timeout"
  end
  return nil, ("%s: the task that waited for %s was cancelled"):format(method, tostring(self)), "cancelled"
end

-- ------------------------------------------------------------------ methods

--- The next event: what was there when the watch began (`initial`), then every change.
-- @tparam[opt] number timeout seconds; without it as long as it takes
-- @treturn[1] table {type="put"|"delete", key=, value=, revision=, created=, prev=, initial=}
-- @return[2] nil after close()
-- @return[3] nil, message, code; after "timeout" and "cancelled" the watch is good, after any other code it has ended
function Watch:next(timeout, extra)
  if getmetatable(self) ~= NAME then call.wrong_self("watch:next") end
  if extra ~= nil then error("watch:next: too many arguments", 2) end
  local wrong = call.check_timeout("watch:next", timeout)
  if wrong then return nil, wrong, "invalid" end
  poll()
  local deadline = scheduler.deadline(timeout)
  while not self._closed do
    local event, message, code = take(self)
    if event then return event end
    if event == nil then return nil, message, code end
    local why = wait(self, deadline)
    if why == "closed" then
      self:close()
    elseif why ~= "woken" then
      return give_up(self, "watch:next", why)
    end
  end
end

--- Has the initial state arrived, read or not?
-- @treturn boolean
function Watch:synced()
  if getmetatable(self) ~= NAME then call.wrong_self("watch:synced") end
  return not self._closed and core.watch_synced(self._watch)
end

--- Wait until the initial state has arrived.
-- @tparam[opt] number timeout seconds; without it as long as it takes
-- @return true, or nil, message, code
function Watch:wait_synced(timeout)
  if getmetatable(self) ~= NAME then call.wrong_self("watch:wait_synced") end
  local wrong = call.check_timeout("watch:wait_synced", timeout)
  if wrong then return nil, wrong, "invalid" end
  poll()
  local deadline = scheduler.deadline(timeout)
  while not self._closed do
    if core.watch_synced(self._watch) then return true end
    local message, code = fetch_ahead(self)
    if message then return nil, message, code end
    if core.watch_synced(self._watch) then return true end
    local why = wait(self, deadline)
    if why == "closed" then
      self:close()
    elseif why ~= "woken" then
      return give_up(self, "watch:wait_synced", why)
    end
  end
  return nil, "watch:wait_synced: the watch was closed", "closed"
end

--- Is the watch in step with a server now?
-- @treturn boolean
function Watch:connected()
  if getmetatable(self) ~= NAME then call.wrong_self("watch:connected") end
  return not self._closed and core.watch_connected(self._watch)
end

--- Everything up to this revision has been taken by next(): a later watch with `after` goes on from there.
-- @treturn integer 0 before the initial state
function Watch:revision()
  if getmetatable(self) ~= NAME then call.wrong_self("watch:revision") end
  if self._closed or self._ahead then return self._revision end
  return core.watch_revision(self._watch)
end

--- End the watch. Whoever waits for it gets a bare nil. Can be called again.
-- @return true
function Watch:close()
  if getmetatable(self) ~= NAME then call.wrong_self("watch:close") end
  if self._closed then return true end
  self._revision = self:revision()
  self._closed, self._ahead = true, nil
  core.watch_close(self._watch)
  scheduler.watch(self._tag, nil)
  self:_ready()
  return true
end

-- ------------------------------------------------------------------ as an iterator

function meta.__call(self)
  if not scheduler.yields_across_pcall and scheduler.current_task() then
    error("watch: a for loop cannot wait in a task of Lua 5.1; call watch:next() in a while loop", 2)
  end
  local event, message = self:next()
  if message then error(message, 2) end
  return event
end

function meta.__close(self)
  self:close()
end

function meta.__tostring(self)
  return ('kv.watch "%s" (%s)'):format(self._key, self._closed and "closed" or self._tree and "tree" or "key")
end

-- ------------------------------------------------------------------ opening

local watch = {}

--- A watch on a store, with checked options; nil, message, code.
function watch.open(store, key, tree, opts)
  opts = opts or {}
  local handle, tag, code = core.watch_open(store._store, key, tree, opts.initial == false, opts.after,
    opts.values == false, opts.prev == true)
  if not handle then return nil, tag, code end
  -- As few fields as can be: there may be ten thousand of these. The others appear when they are needed.
  local self = setmetatable({_watch = handle, _tag = tag, _key = key, _owner = store}, meta)
  if tree then self._tree = true end
  scheduler.watch(tag, self)
  return self
end

--- A watch on something else, of which shape(watch, event) makes what the program gets, or nil for nothing. The last
-- arguments are the results of the core.
function watch.adopt(store, name, shape, handle, tag, code)
  if not handle then return nil, tag, code end
  local self = setmetatable({_watch = handle, _tag = tag, _key = name, _owner = store, _shape = shape}, meta)
  scheduler.watch(tag, self)
  return self
end

return watch
