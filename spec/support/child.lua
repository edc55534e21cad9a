--- A second process for specs: lua spec/support/child.lua URL PREFIX [OPTION=VALUE,...]
-- It opens a store, prints "ready", then answers commands, one a line, fields separated by tabs. Each gets one line:
-- the result, or "error CODE MESSAGE".
local kv = require("kv")
local native = require("spec.native")

local options = {prefix = arg[2]}
for name, value in (arg[3] or ""):gmatch("([%w_]+)=([^,]*)") do options[name] = tonumber(value) or value end
local store = assert(kv.open(arg[1], options))
local lock, election, watch, lease, since

local function show(value, message, code)
  if value == nil and code then return "error " .. code .. " " .. message end
  if type(value) == "table" and value.revision then return ("%d %s"):format(value.revision, tostring(value.value)) end
  return tostring(value)
end

local commands = {}

function commands.put(key, value, ttl, timeout)
  return show(store:put(key, value, {ttl = tonumber(ttl), timeout = tonumber(timeout)}))
end
function commands.keep(key, value) return show(store:put(key, value, {keep_alive = true})) end
function commands.get(key) return show(store:get(key)) end
function commands.delete(key) return show(store:delete(key)) end
function commands.lease(ttl, key, value)
  lease = assert(store:lease(tonumber(ttl)))
  return show(store:put(key, value, {lease = lease}))
end

--- Adds one to a number, n times.
function commands.add(key, times)
  for _ = 1, tonumber(times) do
    local pair, message, code = store:update(key, function(value) return tostring((tonumber(value) or 0) + 1) end)
    if not pair then return show(pair, message, code) end
  end
  return "done"
end

function commands.lock(name, ttl, timeout, value, interop)
  lock = assert(store:lock(name, {ttl = tonumber(ttl), value = value, interop = interop}))
  local got, message, code = lock:acquire(tonumber(timeout))
  since = native.now()
  if not got then return show(nil, message, code) end
  return ("held %d"):format(lock.token)
end
--- When that was, by the machine's clock: acquire gives it the lock not before it holds it.
function commands.since() return ("%.6f"):format(since) end
function commands.enter(name, limit, ttl, timeout)
  lock = assert(store:semaphore(name, tonumber(limit), {ttl = tonumber(ttl)}))
  local got, message, code = lock:acquire(tonumber(timeout))
  if not got then return show(nil, message, code) end
  return ("held %d"):format(lock.token)
end
function commands.release() return show(lock:release()) end

--- As guard, for those who want the revision.
function commands.guarded(key, value)
  local done, message, code = store:txn():guard(lock):put(key, value):commit()
  if not done then return show(nil, message, code) end
  return ("%d"):format(done.revision)
end
function commands.held() return tostring(lock:held()) end
function commands.state() return lock:state() end
function commands.day() return tostring(os.time()) end
--- A write that is only done while the lock is held.
function commands.guard(key, value)
  local done, message, code = store:txn():guard(lock):put(key, value):commit()
  return done and "done" or show(nil, message, code)
end

function commands.campaign(name, value, ttl, timeout)
  election = assert(store:election(name, {ttl = tonumber(ttl)}))
  local got, message, code = election:campaign(value, tonumber(timeout))
  if not got then return show(nil, message, code) end
  return ("leads %d"):format(election.token)
end
function commands.leads() return tostring(election:is_leader()) end
function commands.resign() return show(election:resign()) end

function commands.watch(key)
  watch = assert(store:watch(key))
  return show(watch:wait_synced(10))
end
function commands.next()
  local event, message, code = watch:next(20)
  if not event then return show(nil, message or "ended", code or "nil") end
  return event.type .. " " .. event.key .. " " .. tostring(event.value)
end

--- Sleep without letting the library do anything: what a computing program looks like.
function commands.compute(seconds)
  native.sleep(tonumber(seconds))
  return "done"
end
function commands.close() return show(store:close()) end

io.stdout:write("ready\n")
io.stdout:flush()
for line in io.lines() do
  local words = {}
  for word in (line .. "\t"):gmatch("(.-)\t") do words[#words + 1] = word end
  local command = table.remove(words, 1)
  io.stdout:write(commands[command]((unpack or table.unpack)(words)), "\n")
  io.stdout:flush()
end
