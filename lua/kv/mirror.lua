--- Mirrors: a live copy of a directory in memory, fed by a watch.
--
-- Reading is a table read. In kv.run and kv.step the loop feeds the mirror; outside of a loop every call of the module
-- does, and the reading methods look for news first, which costs no system call.
local call = require("kv.call")
local codec = require("kv.codec")
local core = require("kv.core")
local news = require("kv.news")
local scheduler = require("kv.scheduler")

local NAME = "kv.mirror"
local Mirror, meta = call.class(NAME)

local poll = news.poll

-- ------------------------------------------------------------------ feeding

local function apply(self, event)
  local key = event.key
  local old = self._pairs[key]
  if event.type == "delete" then
    self._pairs[key], self._values[key] = nil, nil
    if old then self._size = self._size - 1 end
    return
  end
  local value = event.value
  self._values[key] = value
  self._pairs[key] = {key = key, value = value, revision = event.revision, created = event.created, error = event.error}
  if not old then self._size = self._size + 1 end
end

-- Each callback gets every event; what one raises is kept, and raised where the program can see it.
local function tell(self, event)
  for _, fn in ipairs(self._callbacks) do
    local ok, problem = xpcall(function() fn(event) end, debug.traceback)
    if not ok then scheduler.fail(problem) end
  end
end

local function wake_all(self)
  for waiter in pairs(self._waiters) do scheduler.wake(waiter) end
end

local function drain(self)
  local synced = core.watch_synced(self._watch)
  while not self._closed do
    local event, message, code = core.watch_next(self._watch)
    if event == nil then
      self._message, self._code = message, code
      break
    elseif not event then
      break
    end
    if self._codec then codec.decode_event(self._codec, event) end
    apply(self, event)
    tell(self, event)
  end
  if synced then self._ready_now = true end
  if self._code then scheduler.follow(self, false) end
end

function Mirror:_ready()
  if self._closed or self._draining then return end -- a callback may come here again
  self._draining = true
  drain(self)
  self._draining = false
  if self._ready_now or self._code then wake_all(self) end
end

-- ------------------------------------------------------------------ reading

-- A key that is not there as it was written: perhaps in another form.
local function canonical(key)
  if type(key) ~= "string" then error(("mirror: the key must be a string, got %s"):format(type(key)), 3) end
  if key:find("//", 1, true) or key:byte(1) == 47 or key:byte(-1) == 47 then return core.canonical(key, false) end
end

--- The value of a key, as of the last news. Never waits.
-- @tparam string key as the store's
-- @return the value, or nil
function Mirror:get(key)
  poll()
  local value = self._values[key]
  if value ~= nil then return value end
  local other = canonical(key)
  if other then return self._values[other] end
  return nil
end

--- As get, with its revisions.
-- @tparam string key
-- @treturn table|nil {key=, value=, revision=, created=}
function Mirror:pair(key)
  poll()
  local pair = self._pairs[key]
  if pair then return pair end
  local other = canonical(key)
  if other then return self._pairs[other] end
  return nil
end

--- Iterate over all, as of this moment: for key, value in mirror:pairs() do. The order is none.
function Mirror:pairs()
  if getmetatable(self) ~= NAME then call.wrong_self("mirror:pairs") end
  poll()
  local copy = {}
  for key, value in pairs(self._values) do copy[key] = value end
  return next, copy, nil
end

--- @treturn integer how many keys there are
function Mirror:size()
  if getmetatable(self) ~= NAME then call.wrong_self("mirror:size") end
  poll()
  return self._size
end

--- Has the whole directory arrived?
-- @treturn boolean
function Mirror:ready()
  if getmetatable(self) ~= NAME then call.wrong_self("mirror:ready") end
  poll()
  return self._ready_now
end

--- Wait until the whole directory has arrived.
-- @tparam[opt] number timeout seconds; without it as long as it takes
-- @return true, or nil, message, code
function Mirror:wait_ready(timeout, extra)
  if getmetatable(self) ~= NAME then call.wrong_self("mirror:wait_ready") end
  if extra ~= nil then error("mirror:wait_ready: too many arguments", 2) end
  local wrong = call.check_timeout("mirror:wait_ready", timeout)
  if wrong then return nil, wrong, "invalid" end
  poll()
  local deadline = scheduler.deadline(timeout)
  while not self._ready_now do
    if self._closed then return nil, "mirror:wait_ready: the mirror was closed", "closed" end
    if self._code then return nil, self._message, self._code end
    local waiter = {outside = true}
    self._waiters[waiter] = true
    local why = scheduler.park(waiter, deadline)
    self._waiters[waiter] = nil
    if why == "timeout" then return nil, ("mirror:wait_ready: %s is not here yet"):format(tostring(self)), "timeout" end
    if why == "cancelled" then return nil, "mirror:wait_ready: the task that waited was cancelled", "cancelled" end
    if why ~= "woken" then return nil, "mirror:wait_ready: it cannot be waited for here or now", why end
  end
  return true
end

--- Seconds since the mirror was last known to be current: 0 while it is in step with a server, math.huge before the
-- first time.
-- @treturn number
function Mirror:age()
  if getmetatable(self) ~= NAME then call.wrong_self("mirror:age") end
  poll()
  if not self._closed then return core.watch_age(self._watch) end
  return self._age + (core.clock() - self._closed_at)
end

--- @treturn integer everything up to this revision is in the mirror; 0 before the first state
function Mirror:revision()
  if getmetatable(self) ~= NAME then call.wrong_self("mirror:revision") end
  poll()
  if not self._closed then self._revision = core.watch_revision(self._watch) end
  return self._revision
end

--- Have fn(event) called after each change of the mirror, the first state's included where it has not arrived yet. fn
-- must not wait. The store keeps the mirror from then on, until close(). What fn raises is raised by kv.run or kv.step,
-- or outside of them by the next call of the module; the mirror goes on.
-- @tparam function fn
-- @return the mirror
function Mirror:on_change(fn)
  if getmetatable(self) ~= NAME then call.wrong_self("mirror:on_change") end
  if type(fn) ~= "function" then error(("mirror:on_change: a function is needed, got %s"):format(type(fn)), 2) end
  self._callbacks[#self._callbacks + 1] = fn
  if self._closed or self._code then return self end
  self._owner._kept[self] = true
  scheduler.follow(self, true)
  return self
end

--- Stop following. What the mirror has stays readable, and grows old. Can be called again.
-- @return true
function Mirror:close()
  if getmetatable(self) ~= NAME then call.wrong_self("mirror:close") end
  if self._closed then return true end
  self:revision()
  self._age, self._closed_at = core.watch_age(self._watch), core.clock()
  self._closed = true
  self._owner._kept[self] = nil
  scheduler.follow(self, false)
  core.watch_close(self._watch)
  scheduler.watch(self._tag, nil)
  wake_all(self)
  return true
end

function meta.__close(self)
  self:close()
end

function meta.__tostring(self)
  return ('kv.mirror "%s" (%d keys)'):format(self._key, self._size)
end

local mirror = {}

--- A mirror of a directory of a store, with checked options; nil, message, code.
function mirror.open(store, dir, opts)
  local prev = opts ~= nil and opts.prev == true
  local handle, tag, code = core.watch_open(store._store, dir, true, false, nil, false, prev)
  if not handle then return nil, tag, code end
  local self = setmetatable({_watch = handle, _tag = tag, _key = dir, _codec = store._codec, _owner = store,
    _values = {}, _pairs = {}, _size = 0, _revision = 0, _callbacks = {}, _waiters = {}, _closed = false,
    _ready_now = false}, meta)
  scheduler.watch(tag, self)
  news.attach()
  return self
end

return mirror
