--- Elections: locks that everybody can see. The machine is the core's, as for locks.
local call = require("kv.call")
local core = require("kv.core")
local lock = require("kv.lock")
local scheduler = require("kv.scheduler")
local watch = require("kv.watch")

local NAME = "kv.election"
local Election, meta = call.class(NAME)

local finish = call.finish

-- `self`, and the optional timeout behind which nothing may come; what is wrong with its value.
local function check(self, name, timeout, extra)
  if getmetatable(self) ~= NAME then
    error(("election:%s: call it with a colon, on the handle that has it"):format(name), 3)
  end
  if extra ~= nil then error(("election:%s: too many arguments"):format(name), 3) end
  return call.check_timeout("election:" .. name, timeout, 4)
end

--- Get in line to lead with this value, and wait until it does: then it is what everybody reads.
-- @tparam string value
-- @tparam[opt] number timeout seconds; without one here or in the options it waits for ever, 0 tries once
-- @return the election (election.token, election.ttl tell of it), or nil, message, code: "timeout", "held" when this
--   handle leads or waits
function Election:campaign(value, timeout, extra)
  local wrong = check(self, "campaign", timeout, extra)
  if type(value) ~= "string" then
    error(("election:campaign: the value must be a string, got %s"):format(type(value)), 2)
  end
  if wrong then return nil, wrong, "invalid" end
  local token, message, code = lock.wait_for(self, timeout, core.election_campaign, value)
  if not token then return nil, message, code end
  self.token, self.ttl = token, core.lock_ttl(self._lock)
  return self
end

--- Let the next candidate lead.
-- @tparam[opt] number timeout seconds for the answer; the store's without it
-- @return true, or nil, message, code: "not_held", "lost"
function Election:resign(timeout, extra)
  local wrong = check(self, "resign", timeout, extra)
  if wrong then return nil, wrong, "invalid" end
  scheduler.poll()
  local done, message, code = finish(core.election_resign(self._lock, timeout or -1))
  if done then return true end
  return nil, message, code
end

--- Does this handle lead, by the local deadline? No I/O.
-- @treturn boolean
function Election:is_leader()
  check(self, "is_leader")
  return core.lock_held(self._lock)
end

--- @treturn string "free", "waiting", "held", "suspended" (renewal fails, the deadline lies ahead) or "lost"
function Election:state()
  check(self, "state")
  return core.lock_state(self._lock)
end

--- Who leads now?
-- @tparam[opt] number timeout seconds; the store's without it
-- @return {value=, token=}, or nil when nobody does, or nil, message, code
function Election:leader(timeout, extra)
  local wrong = check(self, "leader", timeout, extra)
  if wrong then return nil, wrong, "invalid" end
  scheduler.poll()
  local value, token, code = finish(core.lock_holder(self._lock, timeout or -1))
  if value then return {value = value, token = token} end
  return nil, token, code
end

-- What an event of the leader's key says of leaders; nil: nothing new. What somebody else wrote there names no leader.
local function leader_event(self, event)
  local token, value
  if event.type == "put" then token, value = core.leader_read(event.value) end
  if token == self._leader_token then return nil end -- written once more, as an answer was lost; or still nobody
  self._leader_token = token
  return {type = token and "put" or "delete", key = self._key, value = value, token = token, revision = event.revision,
    created = token and event.created, initial = event.initial}
end

--- Watch who leads: {type="put", value=, token=, revision=, initial=} for each leader, the present one first, and
-- {type="delete", revision=} when nobody leads any more.
-- @treturn[1] kv.watch
-- @return[2] nil, message, code
function Election:observe(extra)
  check(self, "observe", nil, extra)
  scheduler.poll()
  local handle, message, code = watch.adopt(self._owner, self._name, leader_event, core.election_observe(self._lock))
  if handle then return handle, nil, nil, handle end
  return nil, message, code
end

--- Wait for the bad news.
-- @tparam[opt] number timeout seconds; without it as long as it takes
-- @return the reason; or nil, message, code: "timeout" (it still leads), "not_held" (also after one's own resign)
function Election:wait_lost(timeout, extra)
  local wrong = check(self, "wait_lost", timeout, extra)
  if wrong then return nil, wrong, "invalid" end
  return lock.wait_for_loss(self, timeout)
end

--- Resign if it leads. Can be called again.
-- @return true, or nil, message, code
function Election:close()
  check(self, "close")
  if core.lock_state(self._lock) == "free" then return true end
  local done, message, code = lock.surely(self, self.resign)
  if done or code == "not_held" then return true end
  return nil, message, code
end

function meta.__close(self)
  self:close()
end

function meta.__tostring(self)
  return ('kv.election "%s" (%s)'):format(self._name, core.lock_state(self._lock))
end

local election = {}

--- An election of a store, with checked options; nil, message, code.
function election.new(store, name, opts)
  opts = opts or {}
  local handle, message, code = core.election_new(store._store, name, opts.ttl or -1)
  if not handle then return nil, message, code end
  local self = {_lock = handle, _owner = store, _name = name, _timeout = opts.timeout, ttl = core.lock_ttl(handle)}
  return setmetatable(self, meta)
end

return election
