--- Leases: one heartbeat for many keys.
local call = require("kv.call")
local core = require("kv.core")
local scheduler = require("kv.scheduler")

local NAME = "kv.lease"
local Lease, meta = call.class(NAME)

local finish = call.finish

--- Is it alive, by the local deadline? No I/O.
-- @treturn boolean
function Lease:alive()
  if getmetatable(self) ~= NAME then call.wrong_self("lease:alive") end
  return core.lease_alive(self._lease)
end

--- Wait until the lease has ended.
-- @tparam[opt] number timeout seconds; without it as long as it takes
-- @return the reason, or nil, message, code
function Lease:wait_lost(timeout, extra)
  if getmetatable(self) ~= NAME then call.wrong_self("lease:wait_lost") end
  if extra ~= nil then error("lease:wait_lost: too many arguments", 2) end
  local wrong = call.check_timeout("lease:wait_lost", timeout)
  if wrong then return nil, wrong, "invalid" end
  scheduler.poll()
  if timeout == nil or timeout == math.huge then timeout = -1 end
  local reason, message, code = finish(core.lease_wait_lost(self._lease, timeout))
  if reason then return reason end
  return nil, message, code
end

--- Give it back: its keys go.
-- @tparam[opt] number timeout seconds; the store's without it
-- @return true, or nil, message, code
function Lease:revoke(timeout, extra)
  if getmetatable(self) ~= NAME then call.wrong_self("lease:revoke") end
  if extra ~= nil then error("lease:revoke: too many arguments", 2) end
  local wrong = call.check_timeout("lease:revoke", timeout)
  if wrong then return nil, wrong, "invalid" end
  scheduler.poll()
  local done, message, code = finish(core.lease_close(self._lease, timeout or -1))
  if done then return true end
  return nil, message, code
end

--- As revoke(), and can be called again.
-- @return true, or nil, message, code
function Lease:close()
  if getmetatable(self) ~= NAME then call.wrong_self("lease:close") end
  if not core.lease_alive(self._lease) then return true end
  local done, message, code = self:revoke()
  if done then return true end
  return nil, message, code
end

function meta.__close(self)
  self:close()
end

function meta.__tostring(self)
  return ("kv.lease (%g s, %s)"):format(self.ttl, core.lease_alive(self._lease) and "alive" or "ended")
end

local lease = {}

--- Ask a store for a lease; nil, message, code.
function lease.open(store, ttl, timeout)
  local tag, id, handle = core.lease_open(store._store, ttl, timeout)
  if not tag then return nil, id, handle end
  local done, message, code = scheduler.await(tag, id)
  if not done then return nil, message, code end
  return setmetatable({_lease = handle, _owner = store, ttl = core.lease_ttl(handle)}, meta)
end

--- The core's handle of a lease, or nil when `value` is none.
function lease.handle(value)
  if getmetatable(value) == NAME then return value._lease end
end

return lease
