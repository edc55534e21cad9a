--- What each function takes in its options table, and how wrong arguments are told.
--
-- A wrong type or an unknown name is misuse: an error at the caller's line that names the function and the option. A
-- value of the right type that can never be accepted (timeout = -1) is a failure like any other: nil, message,
-- "invalid". So checks return a message, or nil when all is well, and raise for misuse; their callers are the API's
-- functions, hence the level 3 below.
local core = require("kv.core")

local options = {}

-- Flags of requests: FAST, STRONG, KEYS_ONLY, SHALLOW, KEEP_ALIVE, DIR.
for name, flag in pairs(core.flags) do options[name] = flag end

local MAX_REVISION = 2 ^ 53

--- A timeout of 0, for a core that reads 0 as "the default".
options.TINY = 1e-9

-- A whole number from 0 on, exact in a double; NaN is none.
local function is_whole(value)
  return value >= 0 and value < MAX_REVISION and value % 1 == 0
end

-- ------------------------------------------------------------------ kinds of values

-- Each returns nil, "type" for misuse, "message" for a value that cannot be.
local kinds = {}

function kinds.seconds(value)
  if type(value) ~= "number" then return "a number of seconds" end
  if value ~= value or value < 0 then return nil, "must be a number of seconds, 0 or more" end
end

function kinds.positive(value)
  if type(value) ~= "number" then return "a number of seconds" end
  if value ~= value or value <= 0 or value == math.huge then return nil, "must be a number of seconds larger than 0" end
end

function kinds.boolean(value)
  if type(value) ~= "boolean" then return "a boolean" end
end

function kinds.string(value)
  if type(value) ~= "string" then return "a string" end
end

function kinds.count(value)
  if type(value) ~= "number" then return "a number" end
  if not is_whole(value) or value < 1 then return nil, "must be a whole number of at least 1" end
end

function kinds.revision(value)
  if type(value) ~= "number" then return "a revision (a number)" end
  if not is_whole(value) then return nil, "must be a revision" end
end

function kinds.consistency(value)
  if type(value) ~= "string" then return "a string" end
  if value ~= "strong" and value ~= "fast" then return nil, 'must be "strong" or "fast"' end
end

function kinds.sync(value)
  if type(value) ~= "string" then return "a string" end
  if value ~= "full" and value ~= "none" then return nil, 'must be "full" or "none"' end
end

function kinds.interop(value)
  if value == false then return end
  if type(value) ~= "string" then return "a string or false" end
  if value ~= "etcd" and value ~= "consul" and value ~= "kazoo" and value ~= "curator" then
    return nil, 'must be "etcd", "consul", "kazoo" or "curator"'
  end
end

function kinds.lease(value)
  if type(value) ~= "table" or getmetatable(value) ~= "kv.lease" then return "a lease" end
end

function kinds.codec(value)
  if type(value) == "string" then return end
  if type(value) ~= "table" or type(value.encode) ~= "function" or type(value.decode) ~= "function" then
    return 'a name like "json", or a table with the functions encode and decode'
  end
end

function kinds.table(value)
  if type(value) ~= "table" then return "a table" end
end

-- ------------------------------------------------------------------ what each function takes

local function with(base, more)
  local all = {}
  for name, kind in pairs(base) do all[name] = kind end
  for name, kind in pairs(more) do all[name] = kind end
  return all
end

local timed = {timeout = "seconds"}
local read = with(timed, {consistency = "consistency"})
local write = with(timed, {ttl = "positive", keep_alive = "boolean", lease = "lease", dir = "boolean"})

options.specs = {
  timed = timed,
  read = read,
  write = write,
  list = with(read, {recursive = "boolean", keys_only = "boolean", limit = "count", after = "string"}),
  watch = {initial = "boolean", after = "revision", values = "boolean", prev = "boolean"},
  mirror = {prev = "boolean"},
  lock = {ttl = "positive", value = "string", timeout = "seconds", interop = "interop"},
  semaphore = {ttl = "positive", value = "string", timeout = "seconds"},
  election = {ttl = "positive", timeout = "seconds"},
  txn_put = {ttl = "positive", keep_alive = "boolean", lease = "lease"},
  tls = {ca = "string", cert = "string", key = "string", verify = "boolean", server_name = "string"},
  open = {
    prefix = "string", timeout = "positive", connect_timeout = "positive", username = "string", password = "string",
    token = "string", datacenter = "string", session_ttl = "positive", tls = "table", acl = "string",
    leading_slash = "boolean", consistency = "consistency", codec = "codec", portable = "boolean", sync = "sync",
    map_size = "count", socket_dir = "string",
  },
}

-- ------------------------------------------------------------------ checking

--- Check an options table (or nil) against a spec. Returns nil, or what is wrong with a value. Raises for misuse,
-- `level` calls up.
function options.check(name, spec, opts, level)
  if opts == nil then return nil end
  level = (level or 3)
  if type(opts) ~= "table" then
    error(("%s: options must be a table, got %s"):format(name, type(opts)), level)
  end
  local problem
  for key, value in pairs(opts) do
    local kind = spec[key]
    if not kind then error(('%s: unknown option "%s"'):format(name, tostring(key)), level) end
    local wrong_type, wrong = kinds[kind](value)
    if wrong_type then
      error(('%s: option "%s" must be %s, got %s'):format(name, tostring(key), wrong_type, type(value)), level)
    end
    if wrong then problem = ('%s: option "%s" %s'):format(name, key, wrong) end
  end
  return problem
end

--- Check one positional argument of a kind in the same way.
function options.check_argument(name, argument, kind, value, level)
  local wrong_type, wrong = kinds[kind](value)
  if wrong_type then
    error(("%s: %s must be %s, got %s"):format(name, argument, wrong_type, type(value)), level or 3)
  end
  if wrong then return ("%s: %s %s"):format(name, argument, wrong) end
end

--- Raise unless `key` is a string and nothing follows the last argument.
function options.need_key(name, key, extra)
  if type(key) ~= "string" then error(("%s: the key must be a string, got %s"):format(name, type(key)), 3) end
  if extra ~= nil then error(("%s: too many arguments"):format(name), 3) end
end

--- The timeout for the core: negative for the store's own.
function options.timeout(opts)
  local timeout = opts and opts.timeout
  if timeout == nil then return -1 end
  return timeout > 0 and timeout or options.TINY
end

--- Flags of a read.
function options.read_flags(opts)
  local consistency = opts and opts.consistency
  if consistency == "fast" then return options.FAST end
  return consistency == "strong" and options.STRONG or 0
end

--- The revision in a pair, or the number itself; raises when it is neither. `level` as of error().
function options.revision_of(name, previous, level)
  local revision = previous
  if type(previous) == "table" then revision = previous.revision end
  if type(revision) ~= "number" then
    error(("%s: previous must be a pair or a revision, got %s"):format(name, type(previous) == "table"
      and "a table without a revision" or type(previous)), level or 3)
  end
  if not is_whole(revision) then
    return nil, ("%s: previous is no revision"):format(name)
  end
  return revision
end

return options
