--- The faults that are named one by one, each made on purpose, on a cluster of three of each backend and on local.
local kv = require("kv")
local clusters = require("spec.faults.clusters")
local killed = require("spec.faults.killed")
local lock_check = require("spec.faults.lock_check")
local native = require("spec.native")
local Random = require("spec.differential.random")
local util = require("spec.support.util")

local TTL = 2
local STOPPED = 3 -- of a lock whose holder is stopped: it has to live until then
local LONG = 30   -- of what is not to expire

local cluster, children, stores

local function child(ttl)
  local process = util.lua("spec/support/child.lua", cluster:url(), cluster.prefix, "timeout=10,session_ttl=" .. ttl)
  children[#children + 1] = process
  assert.equal("ready", (process:line(20)))
  return process
end

local function open(options)
  local all = {timeout = 10, session_ttl = TTL}
  for name, value in pairs(options or {}) do all[name] = value end
  local store = assert(kv.open(cluster:url(), all))
  stores[#stores + 1] = store
  return store
end

local function send(process, ...)
  assert(process:write(table.concat({...}, "\t") .. "\n"))
end

local function ask(process, ...)
  send(process, ...)
  return assert(process:line(60))
end

-- What was done, as the checker of locks reads it.
local History = {}
History.__index = History

local function new_history() return setmetatable({operations = {}, notes = {}}, History) end

function History:add(kind, worker, begin, args, result)
  self.operations[#self.operations + 1] = {kind = kind, worker = worker, call = begin, ret = native.now(), args = args,
    result = {result}, outcome = "ok"}
end

local function code_of(line) return line:match("^error (%S+)") end

-- ------------------------------------------------------------------ the faults

-- SIGSTOP past the TTL, and on: held() is false at once, what is guarded is refused. The same without the guard is
-- accepted, and the checker says so.
local function holder_is_stopped()
  local history = new_history()
  local first, second = child(STOPPED), child(LONG)
  local begin = native.now()
  local old = assert(ask(first, "lock", "stopped", STOPPED, 10):match("^held (%d+)"))
  history:add("acquire", "first", begin, {"stopped"}, old)
  begin = native.now()
  local written = ask(first, "guarded", "resource", "1")
  history:add("guard", "first", begin, {"stopped", old}, assert(written:match("^%d+$"), written))
  first:kill("STOP")
  begin = native.now()
  local new = assert(ask(second, "lock", "stopped", LONG, 50):match("^held (%d+)"))
  history:add("acquire", "second", begin, {"stopped"}, new)
  begin = native.now()
  written = ask(second, "guarded", "resource", "2")
  history:add("guard", "second", begin, {"stopped", new}, assert(written:match("^%d+$"), written))
  first:kill("CONT")
  assert.equal("false", ask(first, "held"))
  local code = code_of(ask(first, "guarded", "resource", "3"))
  assert.is_true(code == "modified" or code == "not_held" or code == "lost", code)
  assert.same({}, (lock_check.check(history.operations, history.notes)))
  assert.truthy(ask(first, "get", "resource"):find(" 2$"))
  -- A broken lock: it believed what held() had said before.
  begin = native.now()
  local revision = assert(ask(first, "put", "resource", "4"):match("^(%d+)"))
  history:add("guard", "first", begin, {"stopped", old}, revision)
  local problems = lock_check.check(history.operations, history.notes)
  assert.is_true(#problems >= 1, "the broken lock was not seen")
  assert.equal("lost", code_of(ask(first, "release")))
  assert.equal("true", ask(second, "release"))
  assert.equal("true", ask(second, "close")) -- or what it has would be left for a long time
end

-- etcd v2 has no transactions, so nothing can be guarded: held(), the tokens, and a release that is refused are all.
local function holder_without_guard_is_stopped()
  local first, second = child(STOPPED), child(LONG)
  local old = tonumber((assert(ask(first, "lock", "stopped", STOPPED, 10):match("^held (%d+)"))))
  assert.equal("unsupported", code_of(ask(first, "guarded", "resource", "1")))
  first:kill("STOP")
  local new = tonumber((assert(ask(second, "lock", "stopped", LONG, 50):match("^held (%d+)"))))
  assert.is_true(new > old)
  first:kill("CONT")
  assert.equal("false", ask(first, "held"))
  assert.equal("lost", code_of(ask(first, "release")))
  assert.equal("true", ask(second, "release"))
  assert.equal("true", ask(second, "close"))
end

-- The server's leader stops: fail-over, and the lock is kept, or lost before another one has it.
local function leader_is_stopped()
  local store, other = open(), child(LONG)
  local lock = assert(assert(store:lock("led", {ttl = TTL * 3})):acquire(20))
  send(other, "lock", "led", LONG, "120")
  local leader = util.eventually(function() return cluster:leader() end, "there is a leader", 20)
  cluster:pause(leader)
  local last = 0
  util.eventually(function()
    local before = native.now()
    if lock:held() then last = before end
    return store:put("after", "fail-over", {timeout = 2})
  end, "the others take over", 60)
  if lock:held() then
    local done, message, code = store:txn():guard(lock):put("resource", "kept"):commit()
    assert.is_true(done ~= nil or code == "unknown" or code == "unsupported" or not lock:held(), message)
  end
  cluster:resume(leader)
  local line = other:line(0.5)
  if line then
    assert.is_false(lock:held(), line)
  else
    local before = native.now()
    if lock:held() then last = before end
    lock:release()
    line = assert(other:line(60))
  end
  local token = assert(line:match("^held (%d+)"), line)
  assert.is_true(tonumber(token) > lock.token)
  assert.is_true(last <= tonumber((ask(other, "since"))), "both held it at a time")
  assert.equal("true", ask(other, "release"))
  assert.equal("true", ask(other, "close"))
end

-- The leader takes a write and cannot commit it: unknown, for it may come yet.
local function commit_hangs()
  local store = open()
  for i = 1, 5 do assert(store:put("hangs", "before " .. i)) end
  local leader = util.eventually(function() return cluster:leader() end, "there is a leader", 20)
  for i in ipairs(cluster.members) do
    if i ~= leader then cluster:pause(i) end
  end
  local codes = {}
  for i = 1, 4 do
    -- The first one has to be on its way by then.
    local pair, message, code = store:put("hangs", "during " .. i, {timeout = i == 1 and 2 or 0.4})
    assert.is_nil(pair)
    codes[i] = code .. ": " .. message
    -- After the first the store may have noticed, and may not have sent the next.
    assert.is_true(code == "unknown" or (i > 1 and (code == "unavailable" or code == "timeout")), codes[i])
  end
  for i in ipairs(cluster.members) do
    if i ~= leader then cluster:resume(i) end
  end
  local pair = util.eventually(function() return store:get("hangs", {timeout = 2}) end, "it is read again", 30)
  local sent = pair.value:match("^during (%d)$")
  assert.is_true(pair.value == "before 5" or codes[tonumber(sent)]:find("^unknown") ~= nil, pair.value)
end

-- Cancelled after any time: nothing is left of it.
local function cancelled_anywhere(count)
  local store, random = open(), Random.new(5)
  assert(store:put("warm", "up"))
  kv.run(function()
    local function held_by_another(fn)
      return store:with_lock("cancelled", {ttl = TTL}, fn)
    end
    for i = 1, count do
      local function trial()
        local lock = assert(store:lock("cancelled", {ttl = TTL}))
        local task = kv.spawn(function()
          if lock:acquire(10) then lock:release() end
        end)
        kv.sleep(random:upto(60) / 1000)
        task:cancel()
        task:join()
        util.eventually_task(kv, function() return lock:state() == "free" end, "it is given up", 20)
      end
      if i % 2 == 0 then held_by_another(trial) else trial() end
      local lease = kv.spawn(function()
        local lease = store:lease(TTL)
        if lease then
          store:put("leased/" .. i, "v", {lease = lease})
          lease:revoke()
        end
      end)
      kv.sleep(random:upto(30) / 1000)
      lease:cancel()
      lease:join()
    end
  end)
  local lock = assert(assert(store:lock("cancelled", {ttl = LONG})):acquire(60))
  assert(lock:release())
  store:close()
  local left
  local fine, problem = pcall(util.eventually, function()
    left = cluster:leftovers()
    return #left == 0
  end, "nothing is left", cluster:settle_seconds(TTL))
  assert.is_true(fine, tostring(problem) .. ": " .. table.concat(left, ", "))
end

local function killed_in_a_queue(rounds)
  local problems, counts = killed.run{cluster = cluster, rounds = rounds, lanes = 2, waiters = 3, ttl = TTL,
    limit = cluster:settle_seconds(TTL)}
  assert.same({}, problems)
  assert.equal(rounds, counts.rounds)
end

for _, name in ipairs{"local", "etcd", "consul", "zookeeper", "etcd2"} do
  describe("faults on " .. name .. ":", function()
    setup(function() cluster = clusters.start(name) end)
    teardown(function() cluster:stop() end)
    before_each(function() children, stores = {}, {} end)
    after_each(function()
      for _, process in ipairs(children) do
        process:kill("KILL")
        process:wait(10)
      end
      for _, store in ipairs(stores) do store:close() end
      if name ~= "local" then cluster:heal() end
    end)

    it("the holder is stopped past its time; a lock without its guard is caught",
      name == "etcd2" and holder_without_guard_is_stopped or holder_is_stopped)
    it("a task is cancelled anywhere", function() cancelled_anywhere(name == "local" and 60 or 25) end)
    it("holders and waiters are killed", function() killed_in_a_queue(name == "consul" and 2 or 6) end)
    if name ~= "local" then
      it("the leader is stopped", leader_is_stopped)
      it("a commit hangs", commit_hangs)
    end
  end)
end
