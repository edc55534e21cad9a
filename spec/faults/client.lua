--- A client process of the fault suite: works on a store until its input ends, and writes down what it does and sees
-- (spec/faults/history.lua). It is killed and stopped in the middle of anything.
--
--    lua spec/faults/client.lua ROLE URL FILE WORKER SEED [NAME=VALUE...]
--
--    register   reads, writes, compares-and-sets and deletes keys below r/     tasks=3 pause=0.02 lives=1
--    lock       takes locks, writes under their guard, lets go; elections      tasks=2 names=2 ttl=3 broken=
--    ttl        puts keys that expire, some of which it makes permanent        tasks=2 ttl=3
--    watch      follows r/ to the end
--
-- It prints "ready", and "done" at its end. `broken` leaves the guard out: the checkers must see that.
local kv = require("kv")
local native = require("spec.native")
local history = require("spec.faults.history")
local Random = require("spec.differential.random")
local util = require("spec.support.util")

local role, url, file, worker, seed = arg[1], arg[2], arg[3], arg[4], tonumber(arg[5])
local options = {tasks = 2, pause = 0.02, names = 2, ttl = 3, epoch = 10, keys = 3, session_ttl = 3}
for i = 6, #arg do
  local name, value = arg[i]:match("^([%w_]+)=(.*)$")
  options[name] = tonumber(value) or value
end

local log = history.open(file)
local stopping = false
local store

local function open()
  store = assert(kv.open(url, {timeout = 5, connect_timeout = 1, session_ttl = options.session_ttl}))
end

local function watch_input()
  while not native.poll(0, 0) do kv.sleep(0.05) end
  stopping = true
end

-- How the answer of a write (value, message, code) is written down: nil when it is one of the failures.
local function failed(me, number, value, message, code)
  if value ~= nil then return false end
  if code == "unknown" then
    log:unknown(me, number, message)
  else
    log:fail(me, number, code, message)
  end
  return true
end

-- ------------------------------------------------------------------ registers

local Register = {}
Register.__index = Register

local function fresh_value(self)
  self.count = self.count + 1
  return ("%s-%d"):format(self.me, self.count)
end

function Register:read(key, timeout)
  local number = log:invoke(self.me, "read", key)
  local pair, message, code = store:get(key, {timeout = timeout})
  if pair == nil and code then
    log:fail(self.me, number, code, message)
    return nil
  end
  log:ok(self.me, number, pair and pair.value, pair and pair.revision)
  self.seen[key] = pair or false
end

function Register:write(key, timeout)
  local value = fresh_value(self)
  local number = log:invoke(self.me, "write", key, value)
  local pair, message, code = store:put(key, value, {timeout = timeout})
  if failed(self.me, number, pair, message, code) then return end
  log:ok(self.me, number, pair.revision)
  self.seen[key] = pair
end

-- With what was seen last, which may be old.
function Register:cas(key, timeout)
  local previous = self.seen[key]
  if previous == nil then return self:read(key, timeout) end
  local value = fresh_value(self)
  local number = log:invoke(self.me, "cas", key, previous and previous.value or nil, value)
  local pair, message, code = store:atomic_put(key, value, previous or nil, {timeout = timeout})
  self.seen[key] = nil
  if failed(self.me, number, pair, message, code) then return end
  log:ok(self.me, number, pair.revision)
  self.seen[key] = pair
end

-- The same through a transaction.
function Register:txn(key, timeout)
  local previous = self.seen[key]
  if previous == nil then return self:read(key, timeout) end
  if not store:supports("txn") then return self:cas(key, timeout) end
  local value = fresh_value(self)
  local number = log:invoke(self.me, "cas", key, previous and previous.value or nil, value)
  local txn = store:txn()
  if previous then txn:check(key, previous) else txn:check_absent(key) end
  local done, message, code = txn:put(key, value):commit{timeout = timeout}
  self.seen[key] = nil
  if failed(self.me, number, done, message, code) then return end
  log:ok(self.me, number, done.revision)
end

function Register:remove(key, timeout)
  local previous = self.seen[key]
  if not previous then return self:read(key, timeout) end
  local number = log:invoke(self.me, "cas", key, previous.value, nil)
  local done, message, code = store:atomic_delete(key, previous, {timeout = timeout})
  self.seen[key] = nil
  if failed(self.me, number, done, message, code) then return end
  log:ok(self.me, number)
end

function Register:delete(key, timeout)
  local number = log:invoke(self.me, "delete", key)
  local done, message, code = store:delete(key, {timeout = timeout})
  self.seen[key] = nil
  if failed(self.me, number, done, message, code) then return end
  log:ok(self.me, number, tostring(done))
end

local MIX = {{"read", 40}, {"write", 24}, {"cas", 20}, {"txn", 8}, {"remove", 4}, {"delete", 4}}

-- What is done instead where a compare may take the next life of a key for the one that it means (ZooKeeper, whose
-- versions begin again): the first key is deleted and never compared with a value, the others are never deleted.
local function without_lives(self, key, action)
  if action == "read" or action == "write" then return action end
  if key:find("/1$") then return (action == "delete" or self.seen[key] == false) and action or "delete" end
  return (action == "delete" or action == "remove") and "write" or action
end
local TIMEOUTS = {0.3, 1, 3}

-- Keys change with the time, so that each has a short history: what is unknown stays in doubt for the rest of a key's.
local function work_on_registers(me, random)
  local self = setmetatable({me = me, count = 0, seen = {}}, Register)
  local epoch
  while not stopping do
    local now = math.floor(native.now() / options.epoch)
    if now ~= epoch then epoch, self.seen = now, {} end
    local key = ("r/%d/%d"):format(epoch, random:upto(options.keys))
    local action = random:weighted(MIX)
    if options.lives == 0 then action = without_lives(self, key, action) end
    self[action](self, key, random:pick(TIMEOUTS))
    kv.sleep(options.pause * random:upto(20) / 10)
  end
end

-- ------------------------------------------------------------------ locks

-- What locks, elections and semaphores have in common: {acquire=, release=, held=, limit=}, functions of the handle.
local kinds = {}

kinds.lock = {limit = 1,
  open = function(name, me) return store:lock(name, {ttl = options.ttl, value = me}) end,
  acquire = function(lock, timeout) return lock:acquire(timeout) end,
  release = function(lock) return lock:release() end,
  held = function(lock) return lock:held() end}

kinds.election = {limit = 1,
  open = function(name) return store:election(name, {ttl = options.ttl}) end,
  acquire = function(election, timeout, me) return election:campaign(me, timeout) end,
  release = function(election) return election:resign() end,
  held = function(election) return election:is_leader() end}

kinds.semaphore = {limit = 2,
  open = function(name, me) return store:semaphore(name, 2, {ttl = options.ttl, value = me}) end,
  acquire = kinds.lock.acquire, release = kinds.lock.release, held = kinds.lock.held}

local function note_held(me, kind, lock, name)
  local before = native.now()
  local held = kind.held(lock)
  if held then log:note(me, "held", name, lock.token, ("%.6f"):format(before)) end
  return held
end

-- `pause`, when given, comes between asking whether it is held and writing: there a process may be stopped.
local function guarded_write(me, lock, name, value, pause)
  local key = "g/" .. name
  if pause then pause() end
  local number = log:invoke(me, "guard", name, lock.token, value)
  local done, message, code
  if options.broken then
    done, message, code = store:put(key, value, {timeout = 2})
  else
    done, message, code = store:txn():guard(lock):put(key, value):commit{timeout = 2}
  end
  if failed(me, number, done, message, code) then return end
  log:ok(me, number, done.revision)
end

-- Who is said to lead, by anybody.
local function ask_leader(me, election, name)
  local number = log:invoke(me, "leader", name)
  local leader, message, code = election:leader(1)
  if leader == nil and code then return log:fail(me, number, code, message) end
  log:ok(me, number, leader and leader.token, leader and leader.value)
end

local function hold(me, kind, lock, name, random)
  for i = 1, random:upto(4) do
    if not note_held(me, kind, lock, name) then return end
    local pause = random:chance(50) and function() kv.sleep(random:upto(50) / 1000) end
    if kind == kinds.lock and store:supports("txn") then
      guarded_write(me, lock, name, ("%.0f:%s:%d"):format(lock.token, me, i), pause)
    end
    kv.sleep(random:upto(60) / 1000)
  end
  if random:chance(2) then native.sleep(options.ttl * 1.3) end -- a program that computes keeps its lock
  note_held(me, kind, lock, name)
end

local function take(me, kind, lock, name, random)
  local timeout = random:weighted{{0, 10}, {0.2, 20}, {2, 40}, {10, 30}}
  if kind == kinds.election and random:chance(50) then ask_leader(me, lock, name) end
  local number = log:invoke(me, "acquire", name, kind.limit)
  local got, message, code = kind.acquire(lock, timeout, me)
  if not got then return log:fail(me, number, code, message) end
  log:ok(me, number, lock.token, lock.ttl)
  hold(me, kind, lock, name, random)
  number = log:invoke(me, "release", name, lock.token)
  got, message, code = kind.release(lock)
  if not failed(me, number, got, message, code) then log:ok(me, number) end
end

-- Some handles are used once, some again and again.
local function work_on_locks(me, random)
  local handles = {}
  local mix = {{"lock", 70}}
  if store:election("any") then mix[#mix + 1] = {"election", 15} end
  if store:semaphore("any", 2) then mix[#mix + 1] = {"semaphore", 15} end
  while not stopping do
    local kind = random:weighted(mix)
    local name = ({lock = "L", election = "E", semaphore = "S"})[kind] .. random:upto(options.names)
    local handle = random:chance(50) and handles[name] or assert(kinds[kind].open(name, me))
    handles[name] = handle
    take(me, kinds[kind], handle, name, random)
    kv.sleep(options.pause * random:upto(20) / 10)
  end
end

-- A key that lives as long as this process.
local function stay_alive(me)
  while not stopping do
    if store:get("alive/" .. me) == nil then store:put("alive/" .. me, "1", {keep_alive = true, timeout = 2}) end
    kv.sleep(1)
  end
end

-- ------------------------------------------------------------------ keys that expire

local function put_for(me, key, value, ttl)
  local number = log:invoke(me, "expire", key, value, ttl)
  local pair, message, code = store:put(key, value, {ttl = ttl, timeout = 2})
  if failed(me, number, pair, message, code) then return end
  log:ok(me, number, pair.revision)
end

local function look_at(me, key)
  local number = log:invoke(me, "look", key)
  local pair, message, code = store:get(key, {timeout = 1})
  if pair == nil and code then return log:fail(me, number, code, message) end
  log:ok(me, number, pair and pair.value)
end

-- A key of its own each time: put for a while, put again for a while or for ever, looked at until it should be gone.
local function work_on_expiry(me, random)
  local count = 0
  while not stopping do
    count = count + 1
    local key, ttl = ("t/%s/%d"):format(me, count), options.ttl
    put_for(me, key, "1", ttl)
    for i = 2, 1 + random:upto(3) do
      kv.sleep(ttl * random:upto(70) / 100)
      look_at(me, key)
      put_for(me, key, tostring(i), random:chance(50) and ttl or nil)
    end
    local until_then = native.now() + ttl * 2.5
    while native.now() < until_then and not stopping do
      kv.sleep(ttl * random:upto(40) / 100)
      look_at(me, key)
    end
    store:delete(key, {timeout = 1})
  end
end

-- ------------------------------------------------------------------ watches

local FINAL_SECONDS = 40

local function note_event(me, state, event)
  log:note(me, "event", "r", event.type, event.key, event.value, event.revision)
  state[event.key] = event.type == "put" and event.revision or nil
end

local function same(state, list)
  local count = 0
  for _, pair in ipairs(list) do
    if state[pair.key] ~= pair.revision then return false end
  end
  for _ in pairs(state) do count = count + 1 end
  return count == #list
end

-- Nobody writes any more: read on until what was told is what is there.
local function finish_watch(me, watch, state)
  local deadline = native.now() + FINAL_SECONDS
  local list
  repeat
    local event, message, code = watch:next(0.2)
    while event do
      note_event(me, state, event)
      event, message, code = watch:next(0.2)
    end
    assert(code == "timeout", message)
    list = store:list("r") or list
  until (list and same(state, list)) or native.now() > deadline
  log:note(me, "final", "r")
  for _, pair in ipairs(assert(list, "the final state cannot be read")) do
    log:note(me, "final", "r", pair.key, pair.value, pair.revision)
  end
  if store:supports("every_version") and store:stats().resyncs == 0 then log:note(me, "complete", "r") end
end

local function work_on_watches(me)
  local watch, state = assert(store:watch_tree("r")), {}
  while not stopping and not watch:synced() do kv.sleep(0.01) end
  log:note(me, "begin", "r")
  while not stopping do
    local event, message, code = watch:next(0.2)
    if event then
      note_event(me, state, event)
    else
      assert(code == "timeout", message)
    end
  end
  finish_watch(me, watch, state)
  watch:close()
end

-- ------------------------------------------------------------------ the process

local function memory()
  return tonumber((util.read("/proc/self/status") or ""):match("VmRSS:%s*(%d+)"))
end

-- What a leak would show in: descriptors, memory, threads.
local function note_size(when)
  log:note(worker, "size", when, util.count_proc("fd"), memory(), util.count_proc("task"))
end

local function watch_size()
  while not stopping do
    note_size("now")
    for _ = 1, 50 do
      if stopping then break end
      kv.sleep(0.1)
    end
  end
end

local roles = {register = work_on_registers, lock = work_on_locks, ttl = work_on_expiry, watch = work_on_watches}

local function work()
  local tasks = {kv.spawn(watch_input), kv.spawn(watch_size)}
  if role == "lock" then tasks[#tasks + 1] = kv.spawn(stay_alive, worker) end
  for i = 1, role == "watch" and 1 or options.tasks do
    tasks[#tasks + 1] = kv.spawn(roles[role], ("%s.%d"):format(worker, i), Random.new(seed * 100 + i))
  end
  for _, task in ipairs(tasks) do task:join() end
end

-- And wait for the library's thread, which ends behind it.
local function close(when)
  store:close()
  local deadline = native.now() + 5
  while util.count_proc("task") > 1 and native.now() < deadline do native.sleep(0.01) end
  collectgarbage()
  note_size(when)
end

io.stdout:write("ready\n")
io.stdout:flush()
-- What one open and close leaves is what they all may leave.
open()
store:ping(1)
close("first")
open()
kv.run(work)
note_size("open")
close("closed")
log:close()
io.stdout:write("done\n")
io.stdout:flush()
