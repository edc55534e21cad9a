--- One interface to distributed key-value stores.
--
--     local kv = require("kv")
--     local store = assert(kv.open("local:/var/lib/app"))     -- or "etcd://localhost:2379/app"
--     assert(store:put("greeting", "hello"))
--     print(assert(store:get("greeting")).value)
--
-- Success returns a value, failure nil, message, code. Misuse (a wrong type, an unknown option) raises an error. Times
-- are seconds.
local codec = require("kv.codec")
local core = require("kv.core")
local drivers = require("kv.drivers")
local hosts = require("kv.host")
local options = require("kv.options")
local scheduler = require("kv.scheduler")
local store = require("kv.store")

local kv = {_VERSION = "kv " .. core.version}

-- ------------------------------------------------------------------ opening

local OURS = {codec = true, socket_dir = true} -- options that the core does not know

-- Options as the core takes them: name -> text.
local function texts(opts)
  local all = {}
  local function set(name, value)
    if type(value) == "number" then value = ("%.17g"):format(value) end
    all[name] = tostring(value)
  end
  for name, value in pairs(opts or {}) do
    if name == "tls" then
      for part, what in pairs(value) do set("tls." .. part, what) end
    elseif not OURS[name] then
      set(name, value)
    end
  end
  return all
end

-- Take our own options out of a URL's query. Returns the URL without them, and them by name.
local function split_query(url)
  local base, query = url:match("^([^?]*)%?(.*)$")
  if not base then return url, {} end
  local rest, ours = {}, {}
  for part in query:gmatch("[^&]+") do
    local name, value = part:match("^([^=]*)=(.*)$")
    if name and OURS[name] then
      ours[name] = value:gsub("%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end)
    else
      rest[#rest + 1] = part
    end
  end
  if next(ours) == nil then return url, ours end
  return #rest > 0 and base .. "?" .. table.concat(rest, "&") or base, ours
end

local function check_options(opts)
  local wrong = options.check("kv.open", options.specs.open, opts, 4)
  if not wrong and opts and opts.tls then wrong = options.check("kv.open", options.specs.tls, opts.tls, 4) end
  return wrong
end

--- Open a store. No I/O: the first operation connects.
-- @tparam[opt] string url without it $KV_URL, else "local:"
-- @tparam[opt] table opts prefix, timeout (5), connect_timeout (2), username, password, token, datacenter, session_ttl
--   (15), tls = {ca, cert, key, verify = true, server_name}, acl, leading_slash (true), consistency ("strong"), codec,
--   portable (false), sync ("full"), map_size, socket_dir
-- @treturn[1] kv.store
-- @return[2] nil, message, code
function kv.open(url, opts, extra)
  if url == nil then url = os.getenv("KV_URL") or "local:" end
  if type(url) ~= "string" then error(("kv.open: the URL must be a string, got %s"):format(type(url)), 2) end
  if extra ~= nil then error("kv.open: too many arguments", 2) end
  local wrong = check_options(opts)
  if wrong then return nil, wrong, "invalid" end
  scheduler.check_fork()
  hosts.prepare()
  local rest, ours = split_query(url)
  local found, message, code = codec.find(opts and opts.codec or ours.codec)
  if found == false then return nil, message, code end
  local known
  known, message, code = drivers.need(rest)
  if not known then return nil, message, code end
  if opts and opts.socket_dir or ours.socket_dir then hosts.socket_dir = opts and opts.socket_dir or ours.socket_dir end
  local handle
  handle, message, code = core.open(rest, texts(opts))
  if not handle then return nil, message, code end
  return store.new(handle, found)
end

--- The backends that can be had here.
-- @treturn table array of names
function kv.backends()
  return drivers.names()
end

-- ------------------------------------------------------------------ running

kv.run = scheduler.run
kv.spawn = scheduler.spawn
kv.sleep = scheduler.sleep
kv.pcall = scheduler.pcall
kv.fd = scheduler.fd
kv.step = scheduler.step

--- Choose the event loop that waits.
-- @tparam string|table|nil loop the name of one that the module knows; or hooks of your own: current() -> may the
--   caller wait by wait()?, wait(waiter, seconds or nil), wake(waiter), with kv.fd() and kv.step() called by your loop;
--   nil for none
-- @return true, or nil, message, "unsupported"
function kv.use(loop, extra)
  if extra ~= nil then error("kv.use: too many arguments", 2) end
  if loop == nil or type(loop) == "table" then
    scheduler.set_host(loop)
    return true
  end
  if type(loop) ~= "string" then error(("kv.use: a name or a table is needed, got %s"):format(type(loop)), 2) end
  local hooks, message = hosts.named(loop)
  if not hooks then return nil, "kv.use: " .. message, "unsupported" end
  scheduler.set_host(hooks)
  return true
end

hosts.prepare()
local given = hosts.given()
if given then scheduler.set_host(given) end

return kv
