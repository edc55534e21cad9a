--- The conformance suite's ground: cases that run the same on every backend, against the store of $KV_TEST_URL.
--
--    local suite = require("spec.support.suite")
--    suite.both("a name", function(t) ... end)     from the main thread, and once more in a task of kv.run
--    suite.case("a name", function(t) ... end)     from the main thread only
--    suite.task("a name", function(t) ... end)     in a task only
--
-- Each case gets a `t` with t.store (a prefix of its own, removed afterwards), t.kv, and the helpers below. Names after
-- the case name are capabilities: a store that says that it lacks one skips the case, and that is printed.
local busted = require("busted")
local native = require("spec.native")
local util = require("spec.support.util")
local kv = require("kv")

-- busted gives these to the files of specs only.
local plain_assert = assert
local assert, it, pending = busted.assert, busted.it, busted.pending

local suite = {plain_assert = plain_assert}

local URL = assert(os.getenv("KV_TEST_URL"), "KV_TEST_URL must name a store (spec/support/with_store.lua sets it)")

local T = {}
T.__index = T

local count = 0

-- ------------------------------------------------------------------ what a case can ask for

--- Another handle on the same place, closed at the end of the case.
function T:open(options)
  local all = {prefix = self.prefix}
  for name, value in pairs(options or {}) do all[name] = value end
  local store, message, code = kv.open(URL, all)
  if store then self.stores[#self.stores + 1] = store end
  return store, message, code
end

--- Something with close(), to be closed at the end.
function T:own(handle)
  self.stores[#self.stores + 1] = handle
  return handle
end

--- The results of a call that must fail with this code: checks their shape, returns the message.
function T.fails(code, value, message, actual, ...)
  assert.is_nil(value)
  assert.equal("string", type(message))
  assert.equal(code, actual, message)
  assert.is_true(#message > 0)
  assert.equal(0, select("#", ...))
  return message
end

--- A call that must raise: returns what it raised.
function T.raises(fn, ...)
  local arguments, size = {...}, select("#", ...)
  local ok, raised = pcall(function() return fn((unpack or table.unpack)(arguments, 1, size)) end)
  assert.is_false(ok, "no error was raised")
  return raised
end

--- Waits until condition() is true, by asking again.
function T:eventually(condition, what, seconds)
  if self.in_task then return util.eventually_task(kv, condition, what, seconds) end
  return util.eventually(condition, what, seconds)
end

function T:sleep(seconds)
  if self.in_task then return kv.sleep(seconds) end
  return native.sleep(seconds)
end

T.now = native.now

--- The next event, which must come.
function T.event(watch, seconds)
  local event, message, code = watch:next(seconds or 10)
  if not event then error(("no event: %s (%s)"):format(tostring(message), tostring(code)), 2) end
  return event
end

--- The next event as "put key value", with "initial " before it where it is one.
function T.told(watch, seconds)
  local event = T.event(watch, seconds)
  local text = event.type .. " " .. event.key
  if event.value then text = text .. " " .. event.value end
  return (event.initial and "initial " or "") .. text
end

--- Nothing may come for a while: the one thing that cannot be waited for by a condition.
function T.quiet(watch, seconds)
  local event, message, code = watch:next(seconds or 0.15)
  assert.is_nil(event, event and ("unexpected event: " .. event.type .. " " .. event.key))
  assert.equal("timeout", code, message)
end

--- Waits until a lock, a semaphore or an election that somebody else holds has `waiter` in its line. Its state alone
-- does not tell: it waits from the call on. So `probe`, another handle of the same name, tries once behind it: when
-- that one was in the line and has left it again, the waiter is there.
function T:in_line(waiter, probe)
  self:eventually(function() return waiter:state() == "waiting" end, "it waits")
  T.fails("timeout", probe:acquire(0))
end

--- Within how many seconds others have what a process held that was killed: by its time to live (on Consul twice that,
-- and the lock-delay), and with ten seconds for a busy machine.
function T:inherited_within(ttl)
  return (self.backend == "consul" and 2 * ttl or ttl) + 10
end

--- Waits until a key has gone that was written at `start` or later with this time to live: not before its time.
function T:goes(key, start, ttl)
  self:eventually(function() return self.store:exists(key) == false end, key .. " went away", 15)
  local took = native.now() - start
  assert.is_true(took >= 0.9 * ttl, "too early: " .. took)
end

--- Keys of a list of pairs, joined by blanks.
function T.keys(pairs_found)
  local names = {}
  for i, pair in ipairs(pairs_found) do names[i] = pair.key .. (pair.dir and "/" or "") end
  return table.concat(names, " ")
end

--- Another process with a store on the same place; see spec/support/child.lua for what it can be asked. `environment`:
-- a list of "NAME=value", or nil.
function T:child(options, environment)
  local process = assert(native.spawn{util.interpreter(), "spec/support/child.lua", URL, self.prefix, options or "",
    pipe = true, env = environment})
  self.children[#self.children + 1] = process
  local line, problem = process:line(20)
  assert.equal("ready", line, problem)
  return process
end

--- Ask a child, and return its answer line.
function T.ask(child, ...)
  assert(child:write(table.concat({...}, "\t") .. "\n"))
  return assert(child:line(30))
end

-- ------------------------------------------------------------------ cases

local function new_case(in_task)
  count = count + 1
  local prefix = ("case-%x-%d-%d"):format(os.time(), math.floor(native.now() * 1e6) % 1000000, count)
  local t = setmetatable({kv = kv, url = URL, prefix = prefix, in_task = in_task, stores = {}, children = {}}, T)
  t.store = assert(t:open())
  t.backend = t.store:info().backend
  return t
end

local function end_case(t)
  for _, child in ipairs(t.children) do
    child:kill("KILL")
    child:wait(10)
  end
  for i = #t.stores, 1, -1 do t.stores[i]:close() end
  local cleaner = assert(kv.open(URL, {prefix = t.prefix}))
  cleaner:delete_tree("")
  cleaner:close()
end

local function lacking(t, wanted)
  for _, name in ipairs(wanted) do
    if not t.store:supports(name) then return name end
  end
end

local function run_case(fn, wanted, in_task)
  local t = new_case(in_task)
  local missing = lacking(t, wanted)
  if missing then
    end_case(t)
    pending(("%s has no %s"):format(t.backend, missing))
    return
  end
  local ok, problem
  if in_task then
    ok, problem = xpcall(function() kv.run(fn, t) end, suite.keep)
  else
    ok, problem = xpcall(function() fn(t) end, suite.keep)
  end
  local cleaned, cleaning = pcall(end_case, t)
  if not ok then error(problem, 0) end
  if not cleaned then error(cleaning, 0) end
end

--- Errors of luassert are tables that busted shows well; others get a traceback.
function suite.keep(problem)
  if type(problem) ~= "string" then return problem end
  return debug.traceback(problem, 2)
end

function suite.case(name, fn, ...)
  local wanted = {...}
  it(name, function() run_case(fn, wanted, false) end)
end

function suite.task(name, fn, ...)
  local wanted = {...}
  it(name .. " (in a task)", function() run_case(fn, wanted, true) end)
end

function suite.both(name, fn, ...)
  suite.case(name, fn, ...)
  suite.task(name, fn, ...)
end

return suite
