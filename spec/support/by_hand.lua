--- Somebody removes or overwrites by hand what locks, semaphores and elections have on a server: cases for the specs of
-- the backends, which know how that is done there.
--
--    by_hand{url = function() ... end,       the store to use
--      keys = function(part) ... end,        raw keys below .kv whose names contain `part`, oldest first
--      delete = function(key) ... end, overwrite = function(key) ... end,
--      survives_overwriting = boolean}       is a lock still held whose entry somebody wrote over?
local busted = require("busted")
local kv = require("kv")
local util = require("spec.support.util")

local assert, it, before_each, after_each = busted.assert, busted.it, busted.before_each, busted.after_each

local TTL = 4

local function fails(code, value, message, actual)
  assert.is_nil(value)
  assert.equal(code, actual, message)
end

local function lost(ground, lock)
  assert.is_string((assert(lock:wait_lost(20))))
  assert.equal("lost", lock:state())
  if lock.release then fails("lost", lock:release()) else fails("lost", lock:resign()) end
  return ground
end

return function(ground)
  local stores, count = {}, 0

  local function open()
    local store = assert(kv.open(ground.url(), {prefix = "hand" .. count, session_ttl = TTL}))
    stores[#stores + 1] = store
    return store
  end

  before_each(function() count = count + 1 end)
  after_each(function()
    for _, store in ipairs(stores) do store:close() end
    stores = {}
  end)

  it("a holder whose entry is deleted has lost it, and the next one gets it", function()
    local store = open()
    local lock = assert(assert(store:lock("door")):acquire(10))
    local txn = store:txn():guard(lock):put("data", "late")
    for _, key in ipairs(ground.keys("door")) do ground.delete(key) end
    fails("modified", txn:commit()) -- at once, whatever the holder knows
    lost(ground, lock)
    local next_one = assert(assert(open():lock("door")):acquire(40))
    assert.is_true(next_one.token > lock.token)
    fails("not_held", lock:release()) -- it was told; and the next one's is not touched
    assert.is_true(next_one:held())
    assert(store:txn():guard(next_one):put("data", "good"):commit())
    assert(next_one:release())
  end)

  it("whose queue is deleted while they hold and wait, they lose it or get in line again", function()
    local store, other = open(), open()
    local lock, waiters, tasks = assert(assert(store:lock("door")):acquire(10)), {}, {}
    local alone = #ground.keys("door")
    kv.run(function()
      for i = 1, 2 do
        waiters[i] = assert(other:lock("door"))
        tasks[i] = kv.spawn(function()
          assert(waiters[i]:acquire(60))
          local done, message, code = waiters[i]:release()
          -- Keys are deleted one after the other: one who was next for a moment has lost it again.
          assert(done or code == "lost", message)
          return waiters[i].token
        end)
      end
      local keys
      util.eventually_task(kv, function()
        keys = ground.keys("door")
        return #keys == alone + 2
      end, "both are in the line", 30)
      for i = #keys, 1, -1 do ground.delete(keys[i]) end
      lost(ground, lock)
      local first, second = tasks[1]:join(60), tasks[2]:join(60)
      assert.is_true(first > lock.token and second > lock.token and first ~= second)
    end)
    assert(assert(assert(store:lock("door")):acquire(30))):release()
    assert.same({}, ground.keys("door"))
  end)

  it("an entry that is written over is kept or lost, and never two hold", function()
    local store = open()
    local lock, other = assert(assert(store:lock("door")):acquire(10)), assert(open():lock("door"))
    for _, key in ipairs(ground.keys("door")) do ground.overwrite(key) end
    if ground.survives_overwriting then
      fails("timeout", other:acquire(TTL * 1.2))
      assert.is_true(lock:held())
      assert(store:txn():guard(lock):put("data", "good"):commit())
      assert.equal(true, (lock:release()))
    else
      lost(ground, lock)
    end
    assert(other:acquire(40))
    assert.is_true(other.token > lock.token)
    assert.is_false(lock:held())
    assert(other:release())
  end)

  it("one holder of a semaphore loses his permit, the others keep theirs", function()
    local store = open()
    local one, before = assert(assert(store:semaphore("pool", 2)):acquire(10)), ground.keys("pool")
    local two = assert(assert(store:semaphore("pool", 2)):acquire(10))
    local txn = store:txn():guard(one):put("data", "late")
    for _, key in ipairs(before) do ground.delete(key) end
    fails("modified", txn:commit())
    lost(ground, one)
    assert.is_true(two:held())
    local three = assert(assert(open():semaphore("pool", 2)):acquire(40))
    fails("timeout", assert(open():semaphore("pool", 2)):acquire(0.2))
    assert(two:release())
    assert(three:release())
  end)

  it("a leader's key that is deleted or written over names nobody, and the leader leads on", function()
    local store = open()
    local election = assert(assert(store:election("boss")):campaign("me", 10))
    local watch = assert(assert(open():election("boss")):observe())
    assert.equal("me", assert(watch:next(10)).value)
    local keys = ground.keys("leader")
    assert.equal(1, #keys)
    ground.overwrite(keys[1])
    assert.equal("delete", assert(watch:next(20)).type)
    assert.is_nil((election:leader()))
    ground.delete(keys[1])
    assert.is_nil((election:leader()))
    assert.is_true(election:is_leader())
    assert(store:txn():guard(election):put("data", "good"):commit())
    fails("timeout", assert(open():election("boss")):campaign("you", 0.2))
    assert.equal(true, (election:resign()))
    local second = assert(assert(open():election("boss")):campaign("you", 40))
    assert.equal("you", assert(second:leader()).value)
    assert(second:resign())
  end)
end
