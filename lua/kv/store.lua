--- Stores: what kv.open returns.
--
-- A method checks its arguments, asks the core, waits where the answer is not here already, and makes a table of it.
-- get() is the call that is made millions of times: it allocates the pair and its value, nothing else.
local call = require("kv.call")
local codec = require("kv.codec")
local core = require("kv.core")
local election = require("kv.election")
local lease = require("kv.lease")
local listing = require("kv.listing")
local lock = require("kv.lock")
local mirror = require("kv.mirror")
local options = require("kv.options")
local pipeline = require("kv.pipeline")
local scheduler = require("kv.scheduler")
local txn = require("kv.txn")
local watch = require("kv.watch")

local NAME = "kv.store"
local Store, meta = call.class(NAME)

local specs = options.specs
local finish, wrong_self = call.finish, call.wrong_self
local await, poll = scheduler.await, scheduler.enter
local core_get, core_put, canonical = core.get, core.put, core.canonical

local CLOSE_SECONDS = 2      -- close() waits so long for leases and locks to be given back
local UPDATE_CALM = 3        -- conflicts in a row from which update() takes a breath
local UPDATE_BREATH = 0.001

-- ------------------------------------------------------------------ checks

local function wrong_key(name, key, extra)
  if type(key) ~= "string" then error(("%s: the key must be a string, got %s"):format(name, type(key)), 3) end
  if extra ~= nil then error(("%s: too many arguments"):format(name), 3) end
end

-- For calls that may have nothing to ask.
local function closed(self, name)
  return nil, ("%s on %s: the store was closed"):format(name, core.label(self._store)), "closed"
end

-- The value of a string that came from the store; nil, message, code.
local function decoded(self, name, key, text)
  local ok, value = codec.decode(self._codec, text)
  if ok then return value end
  return nil, ('%s "%s" on %s: %s'):format(name, key, core.label(self._store), value), "failed"
end

-- ------------------------------------------------------------------ reading

local function pair_of(self, key, text, revision, created)
  local value = text
  if self._codec then
    local message, code
    value, message, code = decoded(self, "get", key, text)
    if value == nil then return nil, message, code end
  end
  return {key = key, value = value, revision = revision, created = created}
end

--- Read a key.
-- @tparam string key
-- @tparam[opt] table opts consistency ("strong" or "fast"), timeout
-- @treturn[1] table {key=, value=, revision=, created=}
-- @return[2] a bare nil when there is no such key
-- @return[3] nil, message, code
function Store:get(key, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:get") end
  if type(key) ~= "string" or extra ~= nil then wrong_key("store:get", key, extra) end
  local flags, timeout = 0, -1
  if opts ~= nil then
    local wrong = options.check("store:get", specs.read, opts)
    if wrong then return nil, wrong, "invalid" end
    flags, timeout = options.read_flags(opts), options.timeout(opts)
  end
  poll()
  local state, text, revision, created, other = core_get(self._store, key, flags, timeout)
  if state == nil then return nil, text, revision end
  if state then
    text, revision, created = await(state, text)
    if text ~= nil then other = canonical(key, false) end
  end
  if text == nil then
    if revision then return nil, revision, created end
    return nil
  end
  if self._codec then return pair_of(self, other or key, text, revision, created) end
  return {key = other or key, value = text, revision = revision, created = created}
end

--- Read many keys, pipelined.
-- @tparam table keys array of keys
-- @tparam[opt] table opts consistency, timeout (for all of them)
-- @treturn[1] table pairs by key, as it was written in `keys`; keys that are not there are absent
-- @return[2] nil, message, code
function Store:get_many(keys, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:get_many") end
  if type(keys) ~= "table" then error(("store:get_many: an array of keys is needed, got %s"):format(type(keys)), 2) end
  if extra ~= nil then error("store:get_many: too many arguments", 2) end
  for i, key in ipairs(keys) do
    if type(key) ~= "string" then error(("store:get_many: key %d must be a string, got %s"):format(i, type(key)), 2) end
  end
  local wrong = options.check("store:get_many", specs.read, opts)
  if wrong then return nil, wrong, "invalid" end
  if core.closed(self._store) then return closed(self, "store:get_many") end
  poll()
  local flags, left, found = options.read_flags(opts), call.time_left(options.timeout(opts), self), {}
  local done, message, code = pipeline.run("store:get_many", keys, function(key)
    return core_get(self._store, key, flags, left())
  end, function(key, text, revision, created)
    if text == nil then return revision, created end -- message, code, or nothing
    local pair, problem, why = pair_of(self, canonical(key, false), text, revision, created)
    found[key] = pair
    return problem, why
  end)
  if not done then return nil, message, code end
  return found
end

--- Is the key there?
-- @tparam string key
-- @tparam[opt] table opts consistency, timeout
-- @treturn[1] boolean
-- @return[2] nil, message, code
function Store:exists(key, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:exists") end
  wrong_key("store:exists", key, extra)
  local wrong = options.check("store:exists", specs.read, opts)
  if wrong then return nil, wrong, "invalid" end
  poll()
  local text, message, code = finish(core_get(self._store, key, options.read_flags(opts) + options.KEYS_ONLY,
    options.timeout(opts)))
  if text ~= nil then return true end
  if message then return nil, message, code end
  return false
end

--- The pairs below a directory.
-- @tparam string dir "" for all
-- @tparam[opt] table opts recursive (true), keys_only, limit, after (a key), consistency, timeout
-- @treturn[1] table array of pairs, sorted by the bytes of their keys; {key=, dir=true} for what is only a directory
-- @treturn[1] integer the revision of the listing
-- @return[2] nil, message, code
function Store:list(dir, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:list") end
  wrong_key("store:list", dir, extra)
  local wrong = options.check("store:list", specs.list, opts)
  if wrong then return nil, wrong, "invalid" end
  poll()
  local found, revision, code = listing.all(self, dir, opts)
  if not found then return nil, revision, code end
  return found, revision
end

--- The pairs below a directory, page by page: for page in store:pages(dir) do. For trees that do not fit one table.
-- @tparam string dir "" for all
-- @tparam[opt] table opts as of list; limit is that of a page
-- @return an iterator of arrays of pairs, which raises what goes wrong; or nil, message, code
function Store:pages(dir, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:pages") end
  wrong_key("store:pages", dir, extra)
  local wrong = options.check("store:pages", specs.list, opts)
  if wrong then return nil, wrong, "invalid" end
  local known, message, code = canonical(dir, true)
  if not known then return nil, message, code end
  return listing.pages(self, dir, opts)
end

-- ------------------------------------------------------------------ writing

local function write_flags(opts)
  return (opts.keep_alive and options.KEEP_ALIVE or 0) + (opts.dir and options.DIR or 0)
end

local NOTHING = {}

-- `previous` is nil for any, false for none, or a revision.
local function write(self, name, key, value, previous, opts, extra)
  if extra ~= nil then error(("%s: too many arguments"):format(name), 3) end
  if type(key) ~= "string" then wrong_key(name, key) end
  local wrong = options.check(name, specs.write, opts, 4)
  if wrong then return nil, wrong, "invalid" end
  opts = opts or NOTHING
  local text, problem = codec.text(name, self._codec, key, value, 4)
  if not text then return nil, problem, "invalid" end
  poll()
  local revision, created, code = finish(core_put(self._store, key, text, write_flags(opts), options.timeout(opts),
    opts.ttl or 0, lease.handle(opts.lease), previous))
  if not revision then return nil, created, code end
  return {key = canonical(key, false), value = value, revision = revision, created = created}
end

--- Write a key. Its parents appear by themselves.
-- @tparam string key
-- @param value string, or whatever the store's codec takes
-- @tparam[opt] table opts ttl (seconds to live), keep_alive (while this store is open and its process lives), lease,
--   dir (etcd v2), timeout. Without the first three the key is permanent, whatever it was before.
-- @treturn[1] table the pair
-- @return[2] nil, message, code
function Store:put(key, value, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:put") end
  local pair, message, code = write(self, "store:put", key, value, nil, opts, extra)
  if pair then return pair end
  return nil, message, code
end

--- Write a key only where it is as expected.
-- @tparam string key
-- @param value as of put
-- @tparam table|number|nil previous a pair or a revision that must be there; nil: the key must not be there
-- @tparam[opt] table opts as of put
-- @treturn[1] table the pair
-- @return[2] nil, message, code: "exists", "modified"
function Store:atomic_put(key, value, previous, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:atomic_put") end
  local revision, wrong = false, nil
  if previous ~= nil then revision, wrong = options.revision_of("store:atomic_put", previous, 3) end
  if wrong then return nil, wrong, "invalid" end
  local pair, message, code = write(self, "store:atomic_put", key, value, revision, opts, extra)
  if pair then return pair end
  return nil, message, code
end

local function check_values(self, values, level)
  local items = {}
  for key, value in pairs(values) do
    if type(key) ~= "string" then
      error(("store:put_many: every key must be a string, got %s"):format(type(key)), level + 1)
    end
    local text, problem = codec.text("store:put_many", self._codec, key, value, level + 2)
    if not text then return nil, problem, "invalid" end
    local known, message, code = canonical(key, false)
    if not known then return nil, message, code end
    items[#items + 1] = {key = key, text = text}
  end
  return items
end

--- Write many keys, pipelined; not atomic.
-- @tparam table values value by key
-- @tparam[opt] table opts as of put; timeout is for all of them
-- @return true, or nil, message, code: the message names a key that failed; others may have been written
function Store:put_many(values, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:put_many") end
  if type(values) ~= "table" then
    error(("store:put_many: a table of values is needed, got %s"):format(type(values)), 2)
  end
  if extra ~= nil then error("store:put_many: too many arguments", 2) end
  local wrong = options.check("store:put_many", specs.write, opts)
  if wrong then return nil, wrong, "invalid" end
  local items, message, code = check_values(self, values, 2)
  if not items then return nil, message, code end
  if core.closed(self._store) then return closed(self, "store:put_many") end
  poll()
  opts = opts or NOTHING
  local flags, ttl, held, left = write_flags(opts), opts.ttl or 0, lease.handle(opts.lease),
    call.time_left(options.timeout(opts), self)
  local done
  done, message, code = pipeline.run("store:put_many", items, function(item)
    return core_put(self._store, item.key, item.text, flags, left(), ttl, held, nil)
  end, function(_, revision, problem, why)
    if not revision then return problem, why end
  end)
  if done then return true end
  return nil, message, code
end

--- Remove a key.
-- @tparam string key
-- @tparam[opt] table opts timeout
-- @treturn[1] boolean whether it was there
-- @return[2] nil, message, code
function Store:delete(key, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:delete") end
  wrong_key("store:delete", key, extra)
  local wrong = options.check("store:delete", specs.timed, opts)
  if wrong then return nil, wrong, "invalid" end
  poll()
  local found, message, code = finish(core.delete(self._store, key, options.timeout(opts)))
  if found ~= nil then return found end
  return nil, message, code
end

--- Remove a key only where it is as expected.
-- @tparam string key
-- @tparam table|number previous a pair or a revision
-- @tparam[opt] table opts timeout
-- @return true, or nil, message, code: "modified" also when it is gone
function Store:atomic_delete(key, previous, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:atomic_delete") end
  wrong_key("store:atomic_delete", key, extra)
  local revision, wrong = options.revision_of("store:atomic_delete", previous, 3)
  wrong = wrong or options.check("store:atomic_delete", specs.timed, opts)
  if wrong then return nil, wrong, "invalid" end
  poll()
  local found, message, code = finish(core.delete(self._store, key, options.timeout(opts), revision))
  if found ~= nil then return true end
  return nil, message, code
end

--- Remove everything below a directory, and the directory's own key.
-- @tparam string dir "" for all
-- @tparam[opt] table opts timeout
-- @return true, or nil, message, code
function Store:delete_tree(dir, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:delete_tree") end
  wrong_key("store:delete_tree", dir, extra)
  local wrong = options.check("store:delete_tree", specs.timed, opts)
  if wrong then return nil, wrong, "invalid" end
  poll()
  local done, message, code = finish(core.delete_tree(self._store, dir, options.timeout(opts)))
  if done then return true end
  return nil, message, code
end

-- One round of update(): read, compute, compare and set. Returns true, results... when that was it, false on a
-- conflict.
local function try_update(self, key, fn, opts)
  local pair, message, code = self:get(key, {timeout = opts.timeout, consistency = "strong"})
  if message then return true, nil, message, code end
  local value = fn(pair and pair.value, pair)
  if value == nil then return true, pair end
  if not self._codec and type(value) ~= "string" then
    error(("store:update: the function must return a string or nil, got %s"):format(type(value)), 3)
  end
  local written
  written, message, code = self:atomic_put(key, value, pair, opts)
  if written then return true, written end
  if code == "modified" or code == "exists" then return false, message end
  return true, nil, message, code
end

--- Read a key, compute its new value, and write it if nobody else wrote meanwhile; again after a conflict.
-- @tparam string key
-- @tparam function fn fn(value or nil, pair or nil) -> the new value; nil leaves the key alone. It may wait.
-- @tparam[opt] table opts as of put; timeout is for all rounds: none begins later, and what fn takes is not held
-- against its write
-- @treturn[1] table the pair that is there now; a bare nil when fn left an absent key alone
-- @return[2] nil, message, code
function Store:update(key, fn, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:update") end
  wrong_key("store:update", key, extra)
  if type(fn) ~= "function" then error(("store:update: a function is needed, got %s"):format(type(fn)), 2) end
  local wrong = options.check("store:update", specs.write, opts)
  if wrong then return nil, wrong, "invalid" end
  local mine = {}
  for name, value in pairs(opts or NOTHING) do mine[name] = value end
  local left, round = call.time_left(options.timeout(opts), self), 0
  while true do
    mine.timeout = left()
    local over, result, message, code = try_update(self, key, fn, mine)
    if over then return result, message, code end
    round = round + 1
    if round >= UPDATE_CALM then
      local rested, why, reason = scheduler.sleep(UPDATE_BREATH * math.random() * math.min(round, 32))
      if not rested then return nil, why, reason end
    end
    if left() <= options.TINY then
      local text = "store:update: others changed the key %d times before the deadline; the last try: %s"
      return nil, text:format(round, result), "timeout"
    end
  end
end

--- Build a transaction: store:txn():check(key, pair):put(key, value):commit().
-- @treturn kv.txn
function Store:txn(extra)
  if getmetatable(self) ~= NAME then wrong_self("store:txn") end
  if extra ~= nil then error("store:txn: too many arguments", 2) end
  return txn.new(self)
end

-- ------------------------------------------------------------------ leases, watches, locks

--- A lease: one heartbeat for many keys.
-- @tparam number ttl seconds that the keys live when the heartbeat stops
-- @tparam[opt] table opts timeout
-- @treturn[1] kv.lease
-- @return[2] nil, message, code
function Store:lease(ttl, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:lease") end
  if extra ~= nil then error("store:lease: too many arguments", 2) end
  local wrong = options.check_argument("store:lease", "ttl", "positive", ttl)
  wrong = wrong or options.check("store:lease", specs.timed, opts)
  if wrong then return nil, wrong, "invalid" end
  poll()
  local made, message, code = lease.open(self, ttl, options.timeout(opts))
  if made then return made end
  return nil, message, code
end

local function open_watch(self, name, key, tree, opts, extra)
  if type(key) ~= "string" then error(("%s: the key must be a string, got %s"):format(name, type(key)), 3) end
  if extra ~= nil then error(("%s: too many arguments"):format(name), 3) end
  local wrong = options.check(name, specs.watch, opts, 4)
  if wrong then return nil, wrong, "invalid" end
  poll()
  local handle, message, code = watch.open(self, key, tree, opts)
  return handle, message, code
end

--- Watch a key, which need not exist: for event in store:watch(key) do. 5.4 closes the watch at the end of the loop.
-- @tparam string key
-- @tparam[opt] table opts initial (true), after (a revision to resume behind), values (true), prev (false)
-- @treturn[1] kv.watch
-- @return[2] nil, message, code
function Store:watch(key, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:watch") end
  local handle, message, code = open_watch(self, "store:watch", key, false, opts, extra)
  if handle then return handle, nil, nil, handle end
  return nil, message, code
end

--- Watch everything below a directory, which need not exist.
-- @tparam string dir "" for all
-- @tparam[opt] table opts as of watch
-- @treturn[1] kv.watch
-- @return[2] nil, message, code
function Store:watch_tree(dir, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:watch_tree") end
  local handle, message, code = open_watch(self, "store:watch_tree", dir, true, opts, extra)
  if handle then return handle, nil, nil, handle end
  return nil, message, code
end

--- Keep a live copy of a directory in memory.
-- @tparam string dir "" for all
-- @tparam[opt] table opts prev (false): give on_change the value before
-- @treturn[1] kv.mirror
-- @return[2] nil, message, code
function Store:mirror(dir, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:mirror") end
  wrong_key("store:mirror", dir, extra)
  local wrong = options.check("store:mirror", specs.mirror, opts)
  if wrong then return nil, wrong, "invalid" end
  poll()
  return mirror.open(self, dir, opts)
end

--- A lock, not yet held.
-- @tparam string name
-- @tparam[opt] table opts ttl (seconds, default session_ttl), value (shown to others), timeout (of acquire), interop
-- @treturn[1] kv.lock
-- @return[2] nil, message, code
function Store:lock(name, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:lock") end
  wrong_key("store:lock", name, extra)
  local wrong = options.check("store:lock", specs.lock, opts)
  if wrong then return nil, wrong, "invalid" end
  return lock.new(self, name, opts)
end

--- Call fn(lock, ...) while a lock is held, and let go whatever happens.
-- @tparam string name
-- @tparam table|nil opts as of lock
-- @tparam function fn
-- @param ... its further arguments
-- @return what fn returned; or nil, message, code: it was not obtained (fn did not run), or "lost" before fn ended.
--   Raises what fn raises.
function Store:with_lock(name, opts, fn, ...)
  if getmetatable(self) ~= NAME then wrong_self("store:with_lock") end
  wrong_key("store:with_lock", name)
  local wrong = options.check("store:with_lock", specs.lock, opts)
  if type(fn) ~= "function" then error(("store:with_lock: a function is needed, got %s"):format(type(fn)), 2) end
  if wrong then return nil, wrong, "invalid" end
  return lock.with(self, name, opts, fn, ...)
end

--- An election, in which this handle takes no part yet.
-- @tparam string name
-- @tparam[opt] table opts ttl (seconds, default session_ttl), timeout (of campaign)
-- @treturn[1] kv.election
-- @return[2] nil, message, code
function Store:election(name, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:election") end
  wrong_key("store:election", name, extra)
  local wrong = options.check("store:election", specs.election, opts)
  if wrong then return nil, wrong, "invalid" end
  return election.new(self, name, opts)
end

--- A semaphore, not yet held: a lock with `limit` holders.
-- @tparam string name
-- @tparam integer limit the same for all who use the name
-- @tparam[opt] table opts ttl (seconds, default session_ttl), value (shown to others), timeout (of acquire)
-- @treturn[1] kv.semaphore
-- @return[2] nil, message, code
function Store:semaphore(name, limit, opts, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:semaphore") end
  wrong_key("store:semaphore", name, extra)
  if type(limit) ~= "number" then
    error(("store:semaphore: the limit must be a number, got %s"):format(type(limit)), 2)
  end
  local wrong = options.check("store:semaphore", specs.semaphore, opts)
  if not wrong and limit % 1 ~= 0 then wrong = "store:semaphore: the limit must be an integer" end
  if wrong then return nil, wrong, "invalid" end
  return lock.semaphore(self, name, limit, opts)
end

-- ------------------------------------------------------------------ the store itself

--- Reach the server.
-- @tparam[opt] number timeout seconds
-- @return true, or nil, message, code
function Store:ping(timeout, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:ping") end
  if extra ~= nil then error("store:ping: too many arguments", 2) end
  local wrong = call.check_timeout("store:ping", timeout)
  if wrong then return nil, wrong, "invalid" end
  poll()
  local done, message, code = finish(core.ping(self._store, options.timeout{timeout = timeout}))
  if done then return true end
  return nil, message, code
end

--- What is known of it. No I/O.
-- @treturn table {backend=, server_version=, endpoint=, connected=, capabilities={names}}
function Store:info()
  if getmetatable(self) ~= NAME then wrong_self("store:info") end
  local info = core.info(self._store)
  info.capabilities = {}
  for _, name in ipairs(core.capabilities()) do
    if core.supports(self._store, name) then info.capabilities[#info.capabilities + 1] = name end
  end
  return info
end

--- Can this backend do it? "txn", "ttl", "lock", "semaphore", "election", "lease", "watch", "resume", "every_version",
-- "paging", "nested" (a key may have keys below it).
-- @tparam string name
-- @treturn boolean
function Store:supports(name, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:supports") end
  if type(name) ~= "string" then error(("store:supports: a name is needed, got %s"):format(type(name)), 2) end
  if extra ~= nil then error("store:supports: too many arguments", 2) end
  return core.supports(self._store, name)
end

--- Counters since the store was opened; views share them.
-- @treturn table operations, in_flight, retries, connects, reconnects, watches, events, resyncs, skipped, bytes_sent,
--   bytes_received, and failures: a table of counts by code
function Store:stats()
  if getmetatable(self) ~= NAME then wrong_self("store:stats") end
  return core.stats(self._store)
end

--- A view below a prefix. It shares the connection, and is closed on its own.
-- @tparam string prefix
-- @treturn[1] kv.store
-- @return[2] nil, message, code
function Store:sub(prefix, extra)
  if getmetatable(self) ~= NAME then wrong_self("store:sub") end
  wrong_key("store:sub", prefix, extra)
  local handle, message, code = core.sub(self._store, prefix)
  if not handle then return nil, message, code end
  return setmetatable({_store = handle, _codec = self._codec, _kept = {}}, meta)
end

--- Close it: what waits is answered "closed" (writes that were sent: "unknown"), locks and leases are given back. Waits
-- for that, but not for long. Can be called again.
-- @return true
function Store:close()
  if getmetatable(self) ~= NAME then wrong_self("store:close") end
  if core.closed(self._store) then return true end
  core.close(self._store)
  self._kept = {}
  if not scheduler.may_yield() then
    if scheduler.may_block() then core.close_wait(self._store, CLOSE_SECONDS) end
    poll()
    return true
  end
  local deadline, pause = core.clock() + CLOSE_SECONDS, 0.0005
  while not core.close_wait(self._store, 0) and core.clock() < deadline do
    local why = scheduler.park({brief = true}, core.clock() + pause)
    if why == "phase" or why == "closed" then break end
    pause = math.min(pause * 2, 0.05)
  end
  return true
end

function meta.__close(self)
  self:close()
end

function meta.__tostring(self)
  return ("kv.store (%s%s)"):format(core.label(self._store), core.closed(self._store) and ", closed" or "")
end

local store = {}

--- A store of an open handle of the core.
function store.new(handle, values)
  return setmetatable({_store = handle, _codec = values, _kept = {}}, meta)
end

return store
