--- Many requests at once, of which strong reads share what makes them strong; and requests that are let go.
local kv = require("kv")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

describe("etcd2, many at once", function()
  local server, store

  setup(function() server = servers.etcd2{arguments = {"--unsafe-no-fsync"}} end)
  teardown(function() server:stop() end)
  before_each(function() store = assert(kv.open(server:url("/app"), {timeout = 20})) end)
  after_each(function()
    assert(store:delete_tree(""))
    store:close()
  end)

  it("reads give each caller what is there", function()
    local pairs_put = {}
    for i = 1, 40 do pairs_put[i] = assert(store:put("dir/key" .. i, "value " .. i)) end
    util.at_once(kv, 400, function(i)
      local n = i % 50 + 1
      if n > 40 then
        assert.is_nil((store:get("dir/key" .. n)))
      elseif i % 3 == 0 then
        assert.is_true(store:exists("dir/key" .. n))
      else
        assert.same(pairs_put[n], assert(store:get("dir/key" .. n)))
      end
    end)
    local keys = {}
    for i = 1, 60 do keys[i] = "dir/key" .. i end
    local many = assert(store:get_many(keys))
    for i = 1, 60 do assert.same(pairs_put[i], many["dir/key" .. i]) end
  end)

  it("a read is never older than what was written before it was asked for", function()
    local other = assert(kv.open(server:url("/app"), {timeout = 20}))
    util.at_once(kv, 64, function(i)
      for round = 1, 10 do
        local one, two = store, other
        if i % 2 == 0 then one, two = other, store end
        local put = assert(one:put("shared" .. i % 4, i .. "." .. round))
        assert.is_true(assert(two:get("shared" .. i % 4)).revision >= put.revision)
        local own = assert(one:put("own" .. i, tostring(round)))
        assert.same(own, assert(two:get("own" .. i)))
      end
    end)
    other:close()
  end)

  it("requests let go at any moment take nobody else along", function()
    assert(store:put("key", "v"))
    kv.run(function()
      for round = 1, 30 do
        local all = {}
        for i = 1, 40 do
          all[i] = kv.spawn(function()
            if i % 4 == 0 then return store:put("key" .. i, "v") end
            if i % 4 == 1 then return store:get("key") end
            if i % 4 == 2 then return store:list("") end
            return store:get("key" .. i)
          end)
        end
        kv.sleep(0.0005 * (round % 10))
        for i = 1, 40 do
          if (i + round) % 3 == 0 then all[i]:cancel() end
        end
        for i = 1, 40 do
          local value, message, code = all[i]:join(30)
          if (i + round) % 3 == 0 then
            assert.is_truthy(code == nil or code == "cancelled" or code == "unknown", message)
          else
            assert.is_nil(code, message)
            if i % 4 == 1 then assert.equal("v", value.value) end
          end
        end
      end
    end)
  end)

  it("closing with everything under way ends soon", function()
    for _ = 1, 5 do
      local closing = assert(kv.open(server:url("/app")))
      local watches = {}
      for i = 1, 20 do watches[i] = assert(closing:watch("w" .. i)) end
      kv.run(function()
        local all = {}
        for i = 1, 100 do
          all[i] = kv.spawn(function()
            if i % 5 == 0 then return closing:put("k" .. i, "v", {keep_alive = i % 10 == 0}) end
            if i % 5 == 1 then return assert(closing:lock("l" .. i % 3)):acquire(20) end
            return closing:get("k")
          end)
        end
        kv.sleep(0.002)
        closing:close()
        for i = 1, 100 do
          local _, message, code = all[i]:join(10)
          assert.is_truthy(code == nil or code == "closed" or code == "unknown", message)
        end
      end)
      for _, watch in ipairs(watches) do
        local event = watch:next(20)
        assert.is_nil(event)
      end
    end
  end)
end)
