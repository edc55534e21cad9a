--- What is particular to ZooKeeper about keys: nodes that keep their kind, versions that begin anew, what the server
-- removes by itself.
local kv = require("kv")
local servers = require("spec.support.servers")

describe("zookeeper", function()
  local server, stores

  setup(function() server = servers.zookeeper{} end)
  teardown(function() server:stop() end)
  before_each(function()
    stores = {}
    for i = 1, 4 do stores[i] = assert(kv.open(server:url("/app"))) end
  end)
  after_each(function()
    stores[1]:delete_tree("")
    for _, store in ipairs(stores) do store:close() end
  end)

  local function fails(code, value, message, actual)
    assert.is_nil(value)
    assert.equal(code, actual, message)
    return message
  end

  -- What each store's put answers, all at once: how many went well, and the codes of the others.
  local function race(previous, options)
    local won, codes = 0, {}
    kv.run(function()
      local tasks = {}
      for i, store in ipairs(stores) do
        tasks[i] = kv.spawn(function()
          local pair, _, code = store:atomic_put("key", "by " .. i, previous, options)
          return pair and "won" or code
        end)
      end
      for _, task in ipairs(tasks) do
        local result = task:join()
        if result == "won" then won = won + 1 else codes[result] = true end
      end
    end)
    return won, codes
  end

  it("of many conditional puts one wins, whatever kind of node it makes", function()
    local ways = {{nil, nil}, {20, nil}, {nil, 20}, {20, 30}}
    for round = 1, 40 do
      local way = ways[round % #ways + 1]
      -- Twice, as each node begins with version 0: see docs/compatibility.md.
      assert(stores[1]:put("key", "v", {ttl = way[1]}))
      local before = assert(stores[1]:put("key", "w", {ttl = way[1]}))
      if round % 3 == 0 then before = assert(stores[1]:put("key", "x", {ttl = way[1]})) end
      local won, codes = race(before, {ttl = way[2]})
      assert.equal(1, won, "round " .. round)
      assert.same({modified = true}, codes)
      assert.is_true(stores[1]:delete("key"))
    end
  end)

  it("of many that create a key with a time to live one wins, and it goes in time", function()
    for _ = 1, 10 do
      local won, codes = race(nil, {ttl = 0.3})
      assert.equal(1, won)
      assert.same({exists = true}, codes)
      kv.run(function()
        while stores[1]:exists("key") do kv.sleep(0.01) end
      end)
    end
  end)

  it("a key that is put when its time is over stays", function()
    kv.run(function()
      local tasks, lost = {}, {}
      for i = 1, 80 do
        tasks[i] = kv.spawn(function()
          local key, owner, other = "dir/" .. i, stores[i % 4 + 1], stores[(i + 1) % 4 + 1]
          for _ = 1, 2 do
            assert(owner:put(key, "1", {ttl = 0.5 + i % 10 / 10}))
            while other:exists(key) do kv.sleep(0.01) end
            assert(other:put(key, i % 2 == 0 and "" or "stays"))
            kv.sleep(0.7) -- the server looks for what is due three times a second
            if not other:exists(key) then lost[#lost + 1] = key end
          end
        end)
      end
      for _, task in ipairs(tasks) do task:join() end
      assert.same({}, lost)
    end)
  end)

  it("a plain put makes a key permanent that has keys below it", function()
    local store, other = stores[1], stores[2]
    assert(store:put("dir", "short", {ttl = 0.5}))
    assert(store:put("dir/below", "v"))
    local pair = assert(other:put("dir", "long"))
    assert.same(pair, (other:get("dir")))
    assert(other:atomic_put("dir", "longer", pair))
    assert.equal("dir dir/below", table.concat({store:list("")[1].key, store:list("")[2].key}, " "))
    assert(other:delete("dir/below"))
    kv.run(function() kv.sleep(4.5) end) -- beyond what the server allows
    assert.equal("longer", assert(other:get("dir")).value)
    assert.equal(1, #assert(store:list("")))
  end)

  it("says why a key cannot get another kind of life, and changes nothing", function()
    local store = stores[1]
    local before = assert(store:put("dir", "v"))
    assert(store:put("dir/below", "v"))
    local message = fails("unsupported", store:put("dir", "w", {ttl = 20}))
    assert.is_truthy(message:find("below", 1, true), message)
    fails("unsupported", store:put("dir", "w", {keep_alive = true}))
    fails("unsupported", store:txn():put("dir", "w", {ttl = 20}):commit())
    assert.same(before, (store:get("dir")))
    assert(store:put("alive", "v", {keep_alive = true}))
    message = fails("unsupported", store:put("alive/below", "v"))
    assert.is_truthy(message:find("ephemeral", 1, true), message)
  end)

  it("a transaction makes parents itself, and leaves none behind when it fails", function()
    local store = stores[1]
    local pair = assert(store:put("key", "v"))
    fails("modified", store:txn():check("key", pair.revision + 1):put("a/b/c", "v"):commit())
    local result = assert(store:txn():check_absent("x/y/z"):put("a/b/c", "v"):put("a/b", "w"):delete("d/e"):commit())
    assert.equal(result.revision, result.pairs["a/b"].created)
    assert.equal(result.revision, result.pairs["a/b/c"].created)
    -- Neither x nor d is left: a key that is made there is new.
    for _, key in ipairs{"x", "d"} do
      local made = assert(store:put(key, "v"))
      assert.equal(made.revision, made.created)
    end
  end)

  it("asserts that a key is absent where none can be", function()
    local store = stores[1]
    assert(store:put("alive", "v", {keep_alive = true}))
    assert(store:txn():check_absent("alive/below"):put("key", "1"):commit())
    assert(store:txn():delete("alive/below"):delete("alive"):commit())
    assert.is_false(store:exists("alive"))
  end)
end)
