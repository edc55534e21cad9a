--- etcd that fails under a Lua program: killed, silent, compacted, without a leader. What the driver does byte by byte
-- is tried in spec/c/test_etcd_faults.c; here it is what a program sees, in tasks and out of them.
local kv = require("kv")
local native = require("spec.native")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

-- What a watch says that there is, key -> value, until `key` has `value` (nil: is gone).
local function follow(watch, picture, key, value)
  local deadline = native.now() + 20
  repeat
    local event, message, code = watch:next(0.2)
    if event then
      if event.type == "put" then picture[event.key] = event.value else picture[event.key] = nil end
    elseif code ~= "timeout" then
      error(("the watch ended: %s (%s)"):format(tostring(message), tostring(code)))
    end
    if picture[key] == value then return picture end
  until native.now() > deadline
  error(("the watch does not say that %s is %s"):format(key, tostring(value)))
end

describe("etcd that is killed", function()
  it("loses no acknowledged write, says unknown of others, and watches see the same", function()
    local server = servers.etcd{arguments = {"--unsafe-no-fsync"}}
    local store = assert(kv.open(server:url("/killed")))
    local watch, picture = assert(store:watch_tree("")), {}
    assert(store:put("mark", "begin"))
    local codes, acknowledged = {}, {}
    kv.run(function()
      local stop = false
      local writers = {}
      for worker = 1, 8 do
        writers[worker] = kv.spawn(function()
          local n = 0
          while not stop do
            n = n + 1
            local key, value = ("w%d/%d"):format(worker, n % 5), tostring(n)
            local pair, message, code = store:put(key, value, {timeout = 60})
            if pair then
              acknowledged[key] = {value = value, revision = pair.revision}
            else
              codes[code] = message
              acknowledged[key] = nil -- either value may be there
            end
          end
        end)
      end
      for _ = 1, 2 do
        kv.sleep(0.3)
        server:kill()
        kv.sleep(0.1)
        server:launch()
        kv.sleep(1.5)
      end
      stop = true
      for _, writer in ipairs(writers) do writer:join() end
    end)
    codes.unknown = nil
    assert.is_nil((next(codes)), "no other code: " .. tostring(next(codes)))
    assert(store:put("mark", "end", {timeout = 60}))
    follow(watch, picture, "mark", "end")
    for key, last in pairs(acknowledged) do
      local pair = assert(store:get(key))
      assert.is_true(pair.revision >= last.revision, key)
      if pair.revision == last.revision then assert.equal(last.value, pair.value) end
      assert.equal(pair.value, picture[key])
    end
    assert.is_true(store:stats().reconnects >= 1)
    store:close()
    server:stop()
  end)

  it("keeps a lock whose time is not up", function()
    local server = servers.etcd{arguments = {"--unsafe-no-fsync"}}
    local store = assert(kv.open(server:url("/lock")))
    local lock = assert(store:lock("job", {ttl = 60}):acquire(20))
    server:kill()
    assert.is_true(lock:held())
    server:start()
    assert.is_true(lock:held())
    -- Guarded by it, a write goes well; and nobody else gets in.
    assert(store:txn():guard(lock):put("guarded", "1"):commit())
    local other = assert(kv.open(server:url("/lock")))
    local _, _, code = other:lock("job"):acquire(0)
    assert.equal("timeout", code)
    local token = lock.token
    assert(lock:release())
    local following = assert(other:lock("job"):acquire(20))
    assert.is_true(following.token > token)
    store:close()
    other:close()
    server:stop()
  end)
end)

describe("etcd that does not answer", function()
  local server, proxy, store
  before_each(function()
    server = servers.etcd{arguments = {"--unsafe-no-fsync"}}
    proxy = proxies.start(server.port)
    store = assert(kv.open(("etcd://127.0.0.1:%d/silent"):format(proxy.port), {timeout = 60}))
    assert(store:put("key", "0"))
  end)
  after_each(function()
    store:close()
    proxy:stop()
    server:stop()
  end)

  it("leaves writes unknown and reads timed out, within the time that they were given", function()
    proxy:tell("now hold-answers")
    -- Long enough that the writes are with etcd before they are given up, all at once.
    local short = {timeout = 2}
    local asked = {
      {"unknown", function() return store:put("key", "1", short) end},
      {"unknown", function() return store:atomic_put("new", "1", nil, short) end},
      {"timeout", function() return store:get("key", short) end},
      {"timeout", function() return store:list("", short) end},
    }
    local elapsed, results = util.timed(util.at_once, kv, #asked, function(i) return asked[i][2]() end)
    assert.is_true(elapsed < 20, elapsed)
    for i, result in ipairs(results) do
      assert.is_nil(result[1])
      assert.equal(asked[i][1], result[3])
      assert.truthy(result[2]:find("etcd://127.0.0.1", 1, true), result[2])
    end
    proxy:tell("now pass")
    assert.equal("1", assert(store:get("key")).value)
    assert.equal("1", assert(store:get("new")).value)
    assert.equal(2, store:stats().failures.unknown)
  end)

  it("holds up only the tasks that ask it", function()
    proxy:tell("now hold-answers")
    kv.run(function()
      local answered = false
      local asked = kv.spawn(function()
        local pair = assert(store:get("key"))
        answered = true
        return pair
      end)
      kv.sleep(0.05)
      assert.is_false(answered)
      proxy:tell("now pass")
      assert.equal("0", assert(asked:join(60)).value)
    end)
  end)

  it("is healed in mirrors, also when its history was cleared meanwhile", function()
    local direct = assert(kv.open(server:url("/silent")))
    local mirror = assert(store:mirror("tree"))
    assert(direct:put("tree/stays", "1"))
    assert(direct:put("tree/goes", "1"))
    util.eventually(function() return mirror:get("tree/goes") == "1" end, "the mirror follows")
    proxy:tell("refuse")
    proxy:tell("cut")
    assert(direct:delete("tree/goes"))
    assert(direct:put("tree/stays", "2"))
    server:ctl("compact", server:revision())
    proxy:tell("listen")
    util.eventually(function() return mirror:get("tree/stays") == "2" end, "the mirror is healed", 30)
    assert.is_nil(mirror:get("tree/goes"))
    assert.equal(1, mirror:size())
    assert.equal(1, store:stats().resyncs)
    mirror:close()
    direct:close()
  end)
end)

describe("a cluster", function()
  it("goes on without the member that a store was using, and says so when it cannot", function()
    local members = servers.cluster(3, {arguments = {"--unsafe-no-fsync"}})
    local hosts = {}
    for i, member in ipairs(members) do hosts[i] = "127.0.0.1:" .. member.port end
    local store = assert(kv.open("etcd://" .. table.concat(hosts, ",") .. "/cluster"))
    local watch = assert(store:watch_tree(""))
    assert(store:put("key", "1", {timeout = 60}))
    follow(watch, {}, "key", "1")
    local used
    for i, member in ipairs(members) do
      if store:info().endpoint == "127.0.0.1:" .. member.port then used = i end
    end
    members[used]:kill()
    util.eventually(function() return store:put("key", "2") end, "another member takes over", 60)
    follow(watch, {}, "key", "2")
    local second = used % 3 + 1
    members[second]:kill()
    local function refused(value, _, code)
      assert.is_nil(value)
      return code
    end
    local code = refused(store:get("key", {timeout = 2}))
    assert.is_true(code == "unavailable" or code == "timeout", code)
    util.eventually(function() return not watch:connected() end, "the watch knows", 20)
    assert.equal("2", assert(store:get("key", {timeout = 20, consistency = "fast"})).value)
    members[used]:start()
    util.eventually(function() return store:put("key", "3") end, "the cluster is back", 60)
    follow(watch, {}, "key", "3")
    store:close()
    for _, member in ipairs(members) do member:stop() end
  end)
end)
