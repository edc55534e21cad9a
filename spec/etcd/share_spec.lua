--- Strong reads that are asked for at once go together: it must show in nothing but the number of calls.
local kv = require("kv")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local COUNT = 200

local function at_once(fn) return util.at_once(kv, COUNT, fn) end

local function key(i) return ("key/%d"):format(i) end

describe("etcd, many reads at once", function()
  local server, store

  setup(function() server = servers.etcd{arguments = {"--unsafe-no-fsync"}} end)
  teardown(function() server:stop() end)
  before_each(function() store = assert(kv.open(server:url("/app"), {timeout = 20})) end)
  after_each(function()
    assert(store:delete_tree(""))
    store:close()
  end)

  it("give each caller what is there, by far fewer calls", function()
    local put = {}
    for i = 1, COUNT, 2 do put[i] = assert(store:put(key(i), "v" .. i)) end
    local proxy = proxies.start(server.port)
    local far = assert(kv.open("etcd://127.0.0.1:" .. proxy.port .. "/app", {timeout = 60}))
    assert(far:ping())
    local before = server:kv_calls()
    local revision = put[COUNT - 1].revision
    for _ = 1, 5 do
      for i, result in ipairs(util.asked_at_once(kv, COUNT, proxy, function(i) return far:get(key(i)) end)) do
        assert.is_nil(result[2])
        assert.same(put[i], result[1])
      end
    end
    for i, result in ipairs(util.asked_at_once(kv, COUNT, proxy, function(i) return far:exists(key(i)) end)) do
      assert.equal(put[i] ~= nil, result[1])
    end
    for i, result in ipairs(at_once(function(i) return far:get(key(i), {consistency = "fast"}) end)) do
      assert.same(put[i], result[1])
    end
    far:close()
    proxy:stop()
    local shared = server:kv_calls() - before - COUNT -- fast ones are no part of it
    assert.is_true(shared >= 6 and shared < COUNT * 6 / 4, shared .. " calls")
    assert.equal(revision, assert(store:get(key(COUNT - 1))).revision)
  end)

  it("one after the other are calls of their own", function()
    assert(store:put("key", "v"))
    local before = server:kv_calls()
    for _ = 1, 20 do assert(store:get("key")) end
    assert.equal(20, server:kv_calls() - before)
  end)

  it("one key that all ask for is never older than what was written before", function()
    local other = assert(kv.open(server:url("/app"), {timeout = 20}))
    at_once(function(i)
      for round = 1, 5 do
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

  it("more than a message may hold are read all the same", function()
    local count, size = 60, 1000000
    for i = 1, count do assert(store:put("big" .. i, string.char(i + 32):rep(size))) end
    for _ = 1, 2 do
      for i, result in ipairs(at_once(function(i) return store:get("big" .. (i % count + 1)) end)) do
        local value = assert(result[1], result[2]).value
        assert.is_true(#value == size and value:byte(1) == i % count + 33 and value:byte(-1) == value:byte(1))
      end
    end
  end)

  it("some are cancelled and the others are not", function()
    for i = 1, COUNT do assert(store:put(key(i), "v" .. i)) end
    for round = 1, 20 do
      kv.run(function()
        local tasks = {}
        for i = 1, COUNT do tasks[i] = kv.spawn(function() return store:get(key(i)) end) end
        kv.sleep(0.0005 * (round % 7))
        for i = 1, COUNT do
          if round == 20 or (i + round) % 3 == 0 then tasks[i]:cancel() end
        end
        for i = 1, COUNT do
          local pair, message, code = tasks[i]:join(20)
          if pair then assert.equal("v" .. i, pair.value)
          else assert.is_true(code == "cancelled" and (round == 20 or (i + round) % 3 == 0), message) end
        end
      end)
    end
    assert.equal("v1", assert(store:get(key(1))).value)
  end)

  it("who hears nothing is told in time, and the next ones are served when all is well", function()
    local proxy = proxies.start(server.port)
    local far = assert(kv.open("etcd://127.0.0.1:" .. proxy.port .. "/app", {timeout = 60}))
    assert(far:put("key", "v"))
    proxy:tell("now hold-answers")
    for _ = 1, 2 do
      local elapsed, results = util.timed(at_once, function(i) return far:get(key(i), {timeout = 1}) end)
      for _, result in ipairs(results) do
        assert.is_nil(result[1])
        assert.is_truthy(result[3] == "timeout" or result[3] == "unavailable", result[2])
      end
      assert.is_true(elapsed < 20, elapsed)
    end
    proxy:tell("now pass")
    util.eventually(function() return far:get("key") end, "it is read")
    for _, result in ipairs(at_once(function() return far:get("key") end)) do
      assert.equal("v", assert(result[1], result[2]).value)
    end
    far:close()
    proxy:stop()
  end)

  it("a server that dies under them costs no answer", function()
    for i = 1, COUNT do assert(store:put(key(i), "v" .. i)) end
    kv.run(function()
      local reads, stop = 0, false
      local tasks = {}
      for i = 1, 50 do
        tasks[i] = kv.spawn(function()
          while not stop do
            assert.equal("v" .. i, assert(store:get(key(i))).value)
            reads = reads + 1
          end
        end)
      end
      util.eventually_task(kv, function() return reads > 1000 end, "they read", 30)
      server:kill()
      server:start()
      local before = reads
      util.eventually_task(kv, function() return reads > before + 1000 end, "they read again", 30)
      stop = true
      util.join(tasks, 30)
    end)
  end)

  it("closing with all of them under way ends soon", function()
    for round = 1, 5 do
      local closing = assert(kv.open(server:url("/app")))
      kv.run(function()
        local tasks = {}
        for i = 1, COUNT do tasks[i] = kv.spawn(function() return closing:get(key(i)) end) end
        kv.sleep(0.001 * round)
        closing:close()
        for i = 1, COUNT do
          local _, message, code = tasks[i]:join(10)
          assert.is_truthy(code == nil or code == "closed", message)
        end
      end)
    end
  end)
end)

describe("etcd with users, many reads at once", function()
  it("what may not be read is denied, and the rest is read", function()
    local server = servers.etcd{auth = true, arguments = {"--unsafe-no-fsync"}}
    local root = assert(kv.open(server:url("", "root:" .. server.password)))
    local function name(i) return (i % 10 == 7 and "elsewhere/" or "allowed/") .. i end
    for i = 1, COUNT do assert(root:put(name(i), "v" .. i)) end
    local limited = assert(kv.open(server:url("", "worker:w0rk")))
    for _ = 1, 2 do
      for i, result in ipairs(at_once(function(i) return limited:get(name(i)) end)) do
        if i % 10 == 7 then
          assert.equal("denied", result[3], result[2])
        else
          assert.equal("v" .. i, assert(result[1], result[2]).value)
        end
      end
    end
    limited:close()
    root:close()
    server:stop()
  end)
end)
