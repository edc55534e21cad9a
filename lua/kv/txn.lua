--- Transactions: a builder over the core's. What is wrong with a part is remembered and told by commit(), so that the
-- parts can be written in one chain.
local call = require("kv.call")
local codec = require("kv.codec")
local core = require("kv.core")
local lease = require("kv.lease")
local lock = require("kv.lock")
local options = require("kv.options")
local scheduler = require("kv.scheduler")

local NAME = "kv.txn"
local Txn, meta = call.class(NAME)

local specs = options.specs

local function remember(self, ok, message, code)
  if not ok and not self._message then self._message, self._code = message, code end
  return self
end

-- Add a part, unless something is wrong already.
local function add(self, part, ...)
  if self._message then return self end
  return remember(self, part(self._txn, ...))
end

local function check_key(method, key, extra)
  if type(key) ~= "string" then error(("%s: the key must be a string, got %s"):format(method, type(key)), 3) end
  if extra ~= nil then error(("%s: too many arguments"):format(method), 3) end
end

--- Commit only if the key is still at this revision.
-- @tparam string key
-- @tparam table|number previous a pair or a revision
-- @return the transaction
function Txn:check(key, previous, extra)
  if getmetatable(self) ~= NAME then call.wrong_self("txn:check") end
  check_key("txn:check", key, extra)
  local revision, wrong = options.revision_of("txn:check", previous, 3)
  if not revision then return remember(self, nil, wrong, "invalid") end
  self._checks[#self._checks + 1] = key
  return add(self, core.txn_check, key, revision)
end

--- Commit only if the key is not there.
-- @tparam string key
-- @return the transaction
function Txn:check_absent(key, extra)
  if getmetatable(self) ~= NAME then call.wrong_self("txn:check_absent") end
  check_key("txn:check_absent", key, extra)
  self._checks[#self._checks + 1] = key
  return add(self, core.txn_check_absent, key)
end

--- Commit only while this lock is held, with the token that it has now.
-- @tparam kv.lock held
-- @return the transaction
function Txn:guard(held, extra)
  if getmetatable(self) ~= NAME then call.wrong_self("txn:guard") end
  local handle = lock.handle(held)
  if not handle then error(("txn:guard: a lock is needed, got %s"):format(type(held)), 2) end
  if extra ~= nil then error("txn:guard: too many arguments", 2) end
  self._checks[#self._checks + 1] = held
  return add(self, core.txn_guard, handle)
end

--- Write a key.
-- @tparam string key
-- @param value string, or whatever the store's codec takes
-- @tparam[opt] table opts ttl, keep_alive, lease: as store:put
-- @return the transaction
function Txn:put(key, value, opts, extra)
  if getmetatable(self) ~= NAME then call.wrong_self("txn:put") end
  check_key("txn:put", key, extra)
  local wrong = options.check("txn:put", specs.txn_put, opts, 3)
  if wrong then return remember(self, nil, wrong, "invalid") end
  local text, problem = codec.text("txn:put", self._owner._codec, key, value, 3)
  if not text then return remember(self, nil, problem, "invalid") end
  opts = opts or {}
  self._puts[#self._puts + 1] = {key = core.canonical(key, false), value = value}
  return add(self, core.txn_put, key, text, opts.ttl or 0, opts.keep_alive and options.KEEP_ALIVE or 0,
    lease.handle(opts.lease))
end

--- Remove a key; that it is not there is fine.
-- @tparam string key
-- @return the transaction
function Txn:delete(key, extra)
  if getmetatable(self) ~= NAME then call.wrong_self("txn:delete") end
  check_key("txn:delete", key, extra)
  return add(self, core.txn_delete, key)
end

-- The message of a commit that met a failing check, with the check's key where the backend told which it was.
local function failed(self, message, code, index)
  local what = index and self._checks[index]
  if type(what) == "string" then message = ('%s: key "%s"'):format(message, what) end
  if what and type(what) ~= "string" then message = ("%s: %s"):format(message, tostring(what)) end
  return nil, message, code
end

local function written(self, revision, ...)
  local pairs_by_key = {}
  for i, put in ipairs(self._puts) do
    local created = select(i, ...)
    pairs_by_key[put.key] = {key = put.key, value = put.value, revision = revision, created = created}
  end
  return {revision = revision, pairs = pairs_by_key}
end

local function committed(self, revision, ...)
  if revision == nil then return failed(self, ...) end
  return written(self, revision, ...)
end

--- Do it, all or nothing.
-- @tparam[opt] table opts timeout
-- @treturn[1] table {revision=, pairs=}: pairs by key, of what was put
-- @return[2] nil, message, code: "modified" when a check failed
function Txn:commit(opts, extra)
  if getmetatable(self) ~= NAME then call.wrong_self("txn:commit") end
  if extra ~= nil then error("txn:commit: too many arguments", 2) end
  local wrong = options.check("txn:commit", specs.timed, opts, 3)
  if wrong then return nil, wrong, "invalid" end
  if self._message then return nil, self._message, self._code end
  scheduler.poll()
  return committed(self, call.finish(core.commit(self._owner._store, self._txn, options.timeout(opts))))
end

function meta.__tostring(self)
  return ("kv.txn (%d checks, %d puts)"):format(#self._checks, #self._puts)
end

local txn = {}

--- A transaction of a store. One that cannot be begun says so at commit().
function txn.new(store)
  local self = setmetatable({_owner = store, _checks = {}, _puts = {}}, meta)
  local handle, message, code = core.txn_new(store._store)
  if handle then
    self._txn = handle
  else
    self._message, self._code = message, code
  end
  return self
end

return txn
