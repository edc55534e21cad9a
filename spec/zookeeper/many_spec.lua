--- A directory of many more children than a watch has reads under way, which are being deleted. (More of them, which
-- are not: spec/faults/children_spec.lua.)
local kv = require("kv")
local native = require("spec.native")
local servers = require("spec.support.servers")
local eventually = require("spec.support.util").eventually

local PATIENCE = 60
local WATCHERS = 15 -- more of them would slow down the deleting that they wait for

-- How many keys of the directory a watch has told and not taken back when it tells the key "end" with this value.
local function known_at_end(watch, value)
  local known = 0
  while true do
    local event = assert(watch:next(PATIENCE))
    if event.key ~= "end" then
      known = known + (event.type == "put" and 1 or -1)
    elseif event.value == value then
      return known
    end
  end
end

describe("ZooKeeper with very many children", function()
  -- A watch holds that many reads under way; here most of them are of nodes that go meanwhile, on several sessions.
  it("a watch that begins while they are being deleted gets to the end", function()
    local zk = servers.zookeeper{arguments = {"-Xmx512m"}}
    local store = assert(kv.open(zk:url("/app"), {timeout = PATIENCE, session_ttl = PATIENCE}))
    local values, long = {}, ("x"):rep(300)
    for i = 1, 4000 do values["dir/" .. long .. i] = "v" end
    for round = 1, 2 do
      local watchers = {}
      assert(store:put_many(values))
      kv.run(function()
        local over = false
        local deleting = kv.spawn(function()
          local done, message = store:delete_tree("dir")
          over = true
          assert(done, message)
        end)
        while not over and #watchers < WATCHERS do
          local other = assert(kv.open(zk:url("/app"), {session_ttl = PATIENCE}))
          watchers[#watchers + 1] = {store = other, watch = assert(other:watch_tree(""))}
          kv.sleep(0.1)
        end
        deleting:join()
      end)
      for _, one in ipairs(watchers) do assert(one.watch:wait_synced(PATIENCE)) end
      assert(store:put("end", tostring(round)))
      for _, one in ipairs(watchers) do
        assert.equal(0, known_at_end(one.watch, tostring(round)))
        one.store:close()
      end
    end
    store:close()
    zk:stop()
  end)

  it("a tree that is larger than what a watch keeps is told a slow consumer in a few steps", function()
    local zk = servers.zookeeper()
    local store = assert(kv.open(zk:url("/app"), {timeout = PATIENCE, session_ttl = PATIENCE}))
    local large, count = ("x"):rep(500000), 50 -- 25 MB, where 8 are kept
    for i = 1, count do assert(store:put("dir/" .. i, large)) end
    local watch = assert(store:watch_tree("dir"))
    eventually(function() return store:stats().resyncs > 0 end, "there is more than it keeps", PATIENCE)
    for _ = 1, count do
      assert.equal(#large, #assert(watch:next(PATIENCE)).value)
      native.sleep(0.05)
    end
    assert(watch:wait_synced(PATIENCE))
    local resyncs = store:stats().resyncs
    assert.is_true(resyncs < 10, resyncs .. " times from the beginning")
    assert(store:put("dir/end", "v"))
    assert.equal("dir/end", assert(watch:next(PATIENCE)).key)
    store:close()
    zk:stop()
  end)
end)
