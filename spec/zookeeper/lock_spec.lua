--- How long a lock is held when the server that a client talks to is cut off from the others: not longer than they
-- believe the session to live.
local kv = require("kv")
local servers = require("spec.support.servers")

local TTL = 12 -- seconds; heartbeats come every third of it, and the leader hears of sessions every half tick
local TICK = 1000

describe("zookeeper lock", function()
  local members, ours, theirs

  setup(function() members = servers.zookeeper_cluster(3, {tick = TICK}) end)
  teardown(function()
    if theirs then theirs:close() end
    if ours then ours:close() end
    for _, member in ipairs(members) do member:stop() end
  end)

  --- Waits until the server has answered another heartbeat of a lock.
  local function wait_heartbeat(member)
    local function last()
      local text
      repeat text = member:ask("cons") until text ~= ""
      return text:match("lop=MULT.-lcxid=(0x%x+)") -- nil: something else was the last
    end
    local now
    local before = last()
    repeat
      kv.sleep(0.01)
      now = last()
    until now and now ~= before
  end

  it("is not held any more when others have it, if a follower hangs right behind a heartbeat", function()
    local follower, other
    for _, member in ipairs(members) do
      if not follower and member:mode() == "follower" then follower = member else other = member end
    end
    ours, theirs = assert(kv.open(follower:url("/app"))), assert(kv.open(other:url("/app")))
    local lock, rival = assert(ours:lock("door", {ttl = TTL})), assert(theirs:lock("door", {ttl = TTL}))
    assert(lock:acquire(10))
    kv.run(function()
      local task = kv.spawn(function() return assert(rival:acquire(3 * TTL)) end)
      wait_heartbeat(follower)
      follower:pause()
      assert(task:join(3 * TTL))
      assert.is_false(lock:held())
      assert.is_true(rival.token > lock.token)
    end)
    follower:resume()
    assert(rival:release())
  end)
end)
