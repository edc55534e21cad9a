--- What must hold between our locks and those of another program, whichever it is. A ground says how to get at it:
--
--    ground.kind              "etcd": what `interop` is called
--    ground.ordered           it serves in the order in which all came, and ground.size(path) counts who is in line
--    ground.path(n)           a name as the other program spells it; the same one for us
--    ground.url(rest)         of the server
--    ground.contend(path, ttl)  another program that wants the lock: a process that prints a line when it holds; ttl:
--                             seconds after which it is gone when it is killed, where that can be said
--    ground.release(process)  it lets go and ends
--    ground.remove(path)      takes our entry away by hand
--    ground.ttl               of those locks, ours and theirs, whose holder is to be killed
local busted = require("busted")
local kv = require("kv")
local util = require("spec.support.util")

-- busted gives these to the files of specs only.
local assert, it, before_each, after_each = busted.assert, busted.it, busted.before_each, busted.after_each

local cases = {}

local PATIENCE = 30

local function fails(code, value, message, actual)
  assert.is_nil(value)
  assert.equal(code, actual, message)
  return message
end

--- It prints a line when it holds.
local function wait_held(process)
  return assert(process:line(PATIENCE))
end

--- That it does not hold can only be waited for a while.
local function is_waiting(process)
  local line, problem = process:line(0.2)
  assert.is_nil(line)
  assert.equal("timeout", problem)
end

--- The first of them that says that it holds.
local function holder_of(processes)
  for i, process in ipairs(processes) do
    if process:line(0.001) then return i end
  end
end

function cases.describe(ground)
  local store, count, open = nil, 0, {}

  before_each(function()
    store = assert(kv.open(ground.url("/app"))) -- the prefix does not count
    count = count + 1
  end)

  after_each(function()
    for _, process in ipairs(open) do
      process:kill("KILL")
      process:wait(10)
    end
    open = {}
    store:close()
  end)

  -- By itself it lives longer than any case, whatever holds it up.
  local function contend(path, ttl)
    local process = ground.contend(path, ttl or PATIENCE)
    open[#open + 1] = process
    return process
  end

  local function path() return ground.path(count) end

  local function lock(name, value, options)
    options = options or {}
    options.interop, options.value = ground.kind, value
    return assert(store:lock(name, options))
  end

  --- Waits until so many are in line, where that can be seen.
  local function in_line(name, expected)
    if ground.ordered then
      util.eventually(function() return ground.size(name) == expected end, expected .. " in line", PATIENCE)
    end
  end

  it("theirs keeps us out until they let go", function()
    local ours = lock(path(), "ours")
    assert.is_nil((ours:holder()))
    local theirs = contend(path())
    wait_held(theirs)
    fails("timeout", ours:acquire(0))
    local token = assert(ours:holder()).token
    kv.run(function()
      local task = kv.spawn(function() return ours:acquire(PATIENCE) end)
      util.eventually_task(kv, function() return ours:state() == "waiting" end, "it waits", PATIENCE)
      if ground.ordered then
        util.eventually_task(kv, function() return ground.size(path()) == 2 end, "it is in line", PATIENCE)
      end
      assert.is_false(ours:held())
      ground.release(theirs)
      util.join({task}, PATIENCE)
    end)
    assert.is_true(ours:held())
    assert.is_true(ours.token > token)
    assert.same({value = "ours", token = ours.token}, ours:holder())
    assert(ours:release())
    assert.is_nil((ours:holder()))
    in_line(path(), 0)
  end)

  it("ours keeps them out until we let go", function()
    local ours = assert(lock(path()):acquire(PATIENCE))
    local theirs = contend(path())
    in_line(path(), 2)
    is_waiting(theirs)
    assert(ours:release())
    wait_held(theirs)
    fails("timeout", ours:acquire(0))
    assert.is_true(assert(ours:holder()).token > ours.token)
    ground.release(theirs)
    assert(ours:acquire(PATIENCE))
    assert(ours:release())
  end)

  it("ours goes to them when our process dies", function()
    local child = util.lua("spec/support/child.lua", ground.url(), "")
    assert.equal("ready", child:line(PATIENCE))
    assert(child:write(("lock\t%s\t%s\t%s\tours\t%s\n"):format(path(), ground.ttl, PATIENCE, ground.kind)))
    assert.is_truthy(assert(child:line(PATIENCE)):find("^held"))
    local theirs = contend(path())
    in_line(path(), 2)
    child:kill("KILL")
    wait_held(theirs)
    ground.release(theirs)
    child:wait(10)
  end)

  it("theirs goes to us when their process dies", function()
    local ours, theirs = lock(path()), contend(path(), ground.ttl)
    wait_held(theirs)
    fails("timeout", ours:acquire(0))
    if ground.die then ground.die(theirs, path()) else theirs:kill("KILL") end
    assert(ours:acquire(PATIENCE))
    assert(ours:release())
  end)

  it("a waiter that gives up leaves nothing behind", function()
    local theirs, ours = contend(path()), lock(path())
    wait_held(theirs)
    fails("timeout", ours:acquire(0.3))
    fails("timeout", ours:acquire(0))
    in_line(path(), 1)
    ground.release(theirs)
    in_line(path(), 0)
  end)

  it("guards transactions, and notices that its entry is gone", function()
    local ours = assert(lock(path(), "x", {ttl = ground.ttl}):acquire(PATIENCE))
    assert(store:txn():guard(ours):put("guarded", "1"):commit())
    local guarded = store:txn():guard(ours):put("guarded", "2")
    ground.remove(path())
    fails("modified", guarded:commit())
    assert.equal("1", assert(store:get("guarded")).value)
    assert(ours:wait_lost(PATIENCE))
    assert.is_false(ours:held())
    fails("lost", ours:release())
    assert(lock(path()):acquire(PATIENCE)):release()
    assert(store:delete("guarded"))
  end)

  it("is no lock of this library's own, and other kinds are none of this backend", function()
    local ours = assert(lock(path()):acquire(PATIENCE))
    local own = assert(store:lock(path()))
    assert(own:acquire(0))
    assert(own:release())
    assert(ours:release())
    for _, kind in ipairs{"etcd", "consul", "kazoo", "curator"} do
      if not ground.kinds:find(kind, 1, true) then
        local message = fails("unsupported", store:lock("door", {interop = kind}))
        assert.is_truthy(message:find(ground.kind, 1, true), message)
      end
    end
    assert.is_true(store:supports("interop"))
    assert.equal(ground.ordered or false, store:supports("interop_order"))
    fails("invalid", store:lock("", {interop = ground.kind}))
    fails("invalid", store:lock("a/../b", {interop = ground.kind}))
    fails("invalid", store:lock(".kv/lock/x", {interop = ground.kind}))
    fails("invalid", store:lock(("/"):rep(300) .. ("x/"):rep(100), {interop = ground.kind}))
  end)

  if not ground.ordered then return end

  it("theirs and ours are served in the order in which they came", function()
    local first, third = contend(path()), nil
    wait_held(first)
    kv.run(function()
      local tokens = {}
      local second, fourth = lock(path(), "second"), lock(path(), "fourth")
      local function wait_line(expected)
        util.eventually_task(kv, function() return ground.size(path()) == expected end, expected .. " wait", PATIENCE)
      end
      local waits = {kv.spawn(function() return assert(second:acquire(PATIENCE)) end)}
      wait_line(2)
      third = contend(path())
      wait_line(3)
      waits[2] = kv.spawn(function() return assert(fourth:acquire(PATIENCE)) end)
      wait_line(4)
      tokens[1] = second:holder().token
      ground.release(first)
      util.join({waits[1]}, PATIENCE)
      tokens[2] = second.token
      is_waiting(third)
      assert(second:release())
      wait_held(third)
      tokens[3] = second:holder().token
      assert.is_false(fourth:held())
      ground.release(third)
      util.join({waits[2]}, PATIENCE)
      tokens[4] = fourth.token
      assert(fourth:release())
      for i = 2, 4 do assert.is_true(tokens[i] > tokens[i - 1], table.concat(tokens, " ")) end
    end)
    in_line(path(), 0)
  end)

  it("many of both never hold at the same time", function()
    local inside, most, rounds = 0, 0, 0
    local processes = {}
    kv.run(function()
      for i = 1, 3 do processes[i] = contend(path()) end
      local tasks = {}
      for i = 1, 4 do
        tasks[i] = kv.spawn(function()
          local ours = lock(path())
          for _ = 1, 5 do
            assert(ours:acquire(PATIENCE))
            inside = inside + 1
            most = math.max(most, inside)
            kv.sleep(0.002)
            inside = inside - 1
            rounds = rounds + 1
            assert(ours:release())
          end
        end)
      end
      -- They hold until they are told: nobody of ours may be inside then.
      for _ = 1, 3 do
        local at = util.eventually_task(kv, function() return holder_of(processes) end, "one holds", PATIENCE)
        most = math.max(most, inside + 1)
        local before = rounds
        kv.sleep(0.05)
        assert.equal(before, rounds)
        ground.release(table.remove(processes, at))
      end
      util.join(tasks, PATIENCE)
    end)
    assert.equal(1, most)
    assert.equal(20, rounds)
    in_line(path(), 0)
  end)
end

--- For processes that hold until their input ends, and say so with a last line.
function cases.release_by_input(process)
  process:close_input()
  local line
  repeat line = process:line(PATIENCE) until line == nil or line == "released"
  assert.equal("released", line)
  local how, status = process:wait(PATIENCE)
  assert.equal("exit 0", ("%s %s"):format(tostring(how), tostring(status)))
end

cases.fails = fails

return cases
