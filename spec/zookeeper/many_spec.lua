--- A directory of many more children than a watch has reads under way: written, listed, watched, deleted.
local kv = require("kv")
local native = require("spec.native")
local servers = require("spec.support.servers")

local COUNT = 60000
local PATIENCE = 60

-- The next `count` events, each of another key of the directory, all of this type.
local function expect(watch, kind, count)
  local seen, deadline = {}, native.now() + PATIENCE
  for n = 1, count do
    local event, message = watch:next(math.max(deadline - native.now(), 0))
    if not event then error(("%s after %d of %d"):format(message, n - 1, count), 2) end
    assert(event.type == kind and event.key:find("^dir/%d+$"), event.type .. " " .. event.key)
    assert(not seen[event.key], event.key .. " is told twice")
    seen[event.key] = true
  end
end

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
  it("writes, lists and watches them, and tells every delete of delete_tree", function()
    local zk = servers.zookeeper()
    local store, other = assert(kv.open(zk:url("/app"), {timeout = PATIENCE})), assert(kv.open(zk:url("/app")))
    local values = {}
    for i = 1, COUNT do values["dir/" .. i] = "v" end
    assert(store:put_many(values))
    local pairs_there = assert(store:list("dir"))
    assert.equal(COUNT, #pairs_there)
    for i, pair in ipairs(pairs_there) do
      assert(values[pair.key] == pair.value and (i == 1 or pairs_there[i - 1].key < pair.key), pair.key)
    end
    local watch = assert(other:watch_tree("dir"))
    assert(watch:wait_synced(PATIENCE))
    expect(watch, "put", COUNT)
    assert(store:delete_tree("dir"))
    expect(watch, "delete", COUNT)
    local event, message, code = watch:next(0.2)
    assert.is_nil(event)
    assert.equal("timeout", code, message)
    assert.same({}, (store:list("dir")))
    store:close()
    other:close()
    zk:stop()
  end)

  -- A watch holds that many reads under way; here most of them are of nodes that go meanwhile, on several sessions.
  it("a watch that begins while they are being deleted gets to the end", function()
    local zk = servers.zookeeper()
    local store = assert(kv.open(zk:url("/app"), {timeout = PATIENCE}))
    local values, long = {}, ("x"):rep(300)
    for i = 1, 4000 do values["dir/" .. long .. i] = "v" end
    for round = 1, 2 do
      local watchers = {}
      assert(store:put_many(values))
      kv.run(function()
        local over = false
        local deleting = kv.spawn(function()
          assert(store:delete_tree("dir"))
          over = true
        end)
        while not over do
          local other = assert(kv.open(zk:url("/app")))
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
end)
