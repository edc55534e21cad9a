--- Locks: the core's machine, asked and waited for.
local call = require("kv.call")
local core = require("kv.core")
local scheduler = require("kv.scheduler")

local NAME = "kv.lock"
local Lock, meta = call.class(NAME)

-- Semaphores are locks in all but their name and how many hold them.
local SEMAPHORE = "kv.semaphore"
local _, semaphore_meta = call.class(SEMAPHORE)
semaphore_meta.__index = Lock

-- The handles with these methods, and what messages call them.
local WORDS = {[NAME] = "lock", [SEMAPHORE] = "semaphore"}

-- The handles that are locks of the core.
local IS_LOCK = {[NAME] = true, [SEMAPHORE] = true, ["kv.election"] = true}

local lock = {}

local finish = call.finish

-- `timeout` for the core, where a negative number waits for ever.
local function for_ever(timeout)
  if timeout == nil or timeout == math.huge then return -1 end
  return timeout
end

-- A request of nginx that goes away in the middle of a wait is never resumed, and what it holds is collected some time.
-- Then the lock goes too: this is given up with the handle. The host sees to it that it is collected.
local function guard(self)
  local held, proxy = {lock = self._lock}, newproxy(true) -- luacheck: ignore 113
  getmetatable(proxy).__gc = function()
    local before = core.refuse(0)
    if held.id then core.cancel(held.id) end
    pcall(core.lock_release, held.lock, -1)
    core.refuse(before)
  end
  self._guard, self._held = proxy, held
  scheduler.guard(proxy)
end

-- As call.finish.
local function acquired(self, tag, ...)
  local held = self._held
  if not tag or not held then return finish(tag, ...) end
  held.id = (...)
  local token, message, code = finish(tag, ...)
  held.id = nil
  return token, message, code
end

--- Get in line by ask(handle, timeout, ...), and wait.
-- @return the token, or nil, message, code
function lock.wait_for(self, timeout, ask, ...)
  scheduler.poll()
  if timeout == nil then timeout = self._timeout end
  if scheduler.may_vanish() and not self._guard then guard(self) end
  local token, message, code = acquired(self, ask(self._lock, for_ever(timeout), ...))
  return token, message, code
end

--- Get in line, and wait until it is ours.
-- @tparam[opt] number timeout seconds; without one here or in the lock's options it waits for ever, 0 tries once
-- @return the lock, now held (lock.token, lock.ttl tell of it), or nil, message, code: "timeout", "held" when this
--   handle has it
function Lock:acquire(timeout, extra)
  if not WORDS[getmetatable(self)] then call.wrong_self("lock:acquire") end
  if extra ~= nil then error("lock:acquire: too many arguments", 2) end
  local wrong = call.check_timeout("lock:acquire", timeout)
  if wrong then return nil, wrong, "invalid" end
  local token, message, code = lock.wait_for(self, timeout, core.lock_acquire)
  if not token then return nil, message, code end
  self.token, self.ttl = token, core.lock_ttl(self._lock)
  return self
end

--- Let go. A successor's lock is never touched.
-- @tparam[opt] number timeout seconds for the answer; the store's without it
-- @return true, or nil, message, code: "not_held", "lost"
function Lock:release(timeout, extra)
  if not WORDS[getmetatable(self)] then call.wrong_self("lock:release") end
  if extra ~= nil then error("lock:release: too many arguments", 2) end
  local wrong = call.check_timeout("lock:release", timeout)
  if wrong then return nil, wrong, "invalid" end
  scheduler.poll()
  local done, message, code = finish(core.lock_release(self._lock, timeout or -1))
  if done then return true end
  return nil, message, code
end

--- Is it ours, by the local deadline? No I/O.
-- @treturn boolean
function Lock:held()
  if not WORDS[getmetatable(self)] then call.wrong_self("lock:held") end
  return core.lock_held(self._lock)
end

--- @treturn string "free", "waiting", "held", "suspended" (renewal fails, the deadline lies ahead) or "lost"
function Lock:state()
  if not WORDS[getmetatable(self)] then call.wrong_self("lock:state") end
  return core.lock_state(self._lock)
end

--- Wait for the bad news.
-- @tparam[opt] number timeout seconds; without it as long as it takes
-- @return the reason; or nil, message, code: "timeout" (still held), "not_held" (also after one's own release)
function Lock:wait_lost(timeout, extra)
  if not WORDS[getmetatable(self)] then call.wrong_self("lock:wait_lost") end
  if extra ~= nil then error("lock:wait_lost: too many arguments", 2) end
  local wrong = call.check_timeout("lock:wait_lost", timeout)
  if wrong then return nil, wrong, "invalid" end
  return lock.wait_for_loss(self, timeout)
end

--- wait_lost() with checked arguments.
function lock.wait_for_loss(self, timeout)
  scheduler.poll()
  local reason, message, code = finish(core.lock_wait_lost(self._lock, for_ever(timeout)))
  if reason then return reason end
  return nil, message, code
end

--- Who holds it now?
-- @tparam[opt] number timeout seconds; the store's without it
-- @return {value=, token=}, or nil when nobody does, or nil, message, code
function Lock:holder(timeout, extra)
  if not WORDS[getmetatable(self)] then call.wrong_self("lock:holder") end
  if extra ~= nil then error("lock:holder: too many arguments", 2) end
  local wrong = call.check_timeout("lock:holder", timeout)
  if wrong then return nil, wrong, "invalid" end
  scheduler.poll()
  local value, token, code = finish(core.lock_holder(self._lock, timeout or -1))
  if value then return {value = value, token = token} end
  return nil, token, code
end

--- Let go whatever happens to the task: a cancel answers one wait only.
function lock.surely(self, release)
  local done, message, code
  repeat done, message, code = release(self) until code ~= "cancelled"
  return done, message, code
end

local function release_surely(self)
  local done, message, code = lock.surely(self, self.release)
  return done, message, code
end

function meta.__close(self)
  if core.lock_state(self._lock) ~= "free" then release_surely(self) end
end

function meta.__tostring(self)
  return ('%s "%s" (%s)'):format(getmetatable(self), self._name, core.lock_state(self._lock))
end

semaphore_meta.__close, semaphore_meta.__tostring = meta.__close, meta.__tostring

--- A lock of a store, with checked options; nil, message, code.
function lock.new(store, name, opts)
  opts = opts or {}
  local handle, message, code = core.lock_new(store._store, name, opts.ttl or -1, opts.value or "", opts.interop or nil)
  if not handle then return nil, message, code end
  local self = {_lock = handle, _owner = store, _name = name, _timeout = opts.timeout, ttl = core.lock_ttl(handle)}
  return setmetatable(self, meta)
end

--- A semaphore of a store, with checked options; nil, message, code.
function lock.semaphore(store, name, limit, opts)
  opts = opts or {}
  local handle, message, code = core.semaphore_new(store._store, name, limit, opts.ttl or -1, opts.value or "")
  if not handle then return nil, message, code end
  local self = {_lock = handle, _owner = store, _name = name, _timeout = opts.timeout, limit = limit,
    ttl = core.lock_ttl(handle)}
  return setmetatable(self, semaphore_meta)
end

-- After the function: let go, and say so if the lock was gone before it had ended.
local function leave(self, ok, ...)
  local held = core.lock_held(self._lock)
  local done, message, code = release_surely(self)
  if not ok then error((...), 0) end
  if not held or (not done and code == "lost") then
    return nil, ('with_lock "%s": the lock was lost before the function had ended%s'):format(self._name,
      message and ": " .. message or ""), "lost"
  end
  return ...
end

--- Run fn(lock, ...) under the lock.
function lock.with(store, name, opts, fn, ...)
  local self, message, code = lock.new(store, name, opts)
  if not self then return nil, message, code end
  local got
  got, message, code = self:acquire()
  if not got then return nil, message, code end
  return leave(self, scheduler.pcall(fn, self, ...))
end

--- The core's handle of a lock, semaphore or election, or nil when `value` is none.
function lock.handle(value)
  if IS_LOCK[getmetatable(value)] then return value._lock end
end

return lock
