--- What is particular to Consul about keys: other programs' keys and sessions, flags, sizes, times to live.
local kv = require("kv")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

describe("consul", function()
  local server, store

  setup(function() server = servers.consul{} end)
  teardown(function() server:stop() end)
  before_each(function() store = assert(kv.open(server:url("/app"))) end)
  after_each(function()
    store:delete_tree("")
    store:close()
  end)

  local function fails(code, value, message, actual)
    assert.is_nil(value)
    assert.equal(code, actual, message)
    return message
  end

  -- A session of somebody else, with a behavior.
  local function session(behavior, ttl)
    local path = util.folder() .. "/session"
    local command = ("curl -s -X PUT http://127.0.0.1:%d/v1/session/create -d '%s' >%s"):format(server.port,
      ('{"TTL":"%s","Behavior":"%s","LockDelay":"0s","Checks":[]}'):format(ttl or "60s", behavior), path)
    os.execute(command)
    return (assert(util.read(path)):match('"ID": *"([^"]+)"'))
  end

  local function http(method, path, body)
    local out = util.folder() .. "/answer"
    os.execute(("curl -s -X %s 'http://127.0.0.1:%d%s' -d '%s' >%s"):format(method, server.port, path, body or "", out))
    return util.read(out)
  end

  it("gives every write a new revision, of the same value too", function()
    local last, created = 0, nil
    for _ = 1, 20 do
      local pair = assert(store:put("key", "same"))
      assert.is_true(pair.revision > last)
      assert.equal(created or pair.created, pair.created)
      last, created = pair.revision, pair.created
    end
    assert.equal(last, assert(store:get("key")).revision)
  end)

  it("skips keys that are not canonical, and counts them", function()
    assert(store:put("good", "v"))
    for _, name in ipairs{"app/a/", "app//b", "app/c//d", "app/./e", "app/.."} do
      http("PUT", "/v1/txn", ('[{"KV":{"Verb":"set","Key":"%s","Value":"eA=="}}]'):format(name))
    end
    local before = store:stats().skipped
    local list = assert(store:list(""))
    assert.equal(1, #list)
    assert.equal("good", list[1].key)
    assert.is_true(store:stats().skipped >= before + 4)
    local watch = assert(store:watch_tree(""))
    assert.equal("good", assert(watch:next(20)).key)
    fails("timeout", watch:next(0.1))
    watch:close()
  end)

  it("reads flags of any size", function()
    http("PUT", "/v1/kv/app/flagged?flags=18446744073709551615", "v")
    assert.equal("v", assert(store:get("flagged")).value)
    assert.equal("flagged", assert(store:list(""))[1].key)
  end)

  it("a plain put takes a key off the session that would delete it", function()
    local id = session("delete")
    assert.is_truthy(http("PUT", "/v1/kv/app/held?acquire=" .. id, "theirs"):find("true"))
    local before = assert(store:get("held"))
    local pair = assert(store:put("held", "mine"))
    assert.equal(before.created, pair.created)
    assert.same(pair, assert(store:get("held")))
    http("PUT", "/v1/session/destroy/" .. id)
    assert.equal("mine", assert(store:get("held")).value)
  end)

  it("a plain put leaves somebody's lock on a key alone", function()
    local id = session("release")
    assert.is_truthy(http("PUT", "/v1/kv/app/held?acquire=" .. id, "theirs"):find("true"))
    assert.same(assert(store:put("held", "mine")), assert(store:get("held")))
    assert.is_truthy(http("GET", "/v1/kv/app/held"):find(id, 1, true))
    local message = fails("failed", store:put("held", "mine", {ttl = 20}))
    assert.is_truthy(message:find("lock", 1, true))
    assert.equal(true, (store:delete("held")))
  end)

  it("transactions of any size make keys permanent", function()
    for _, count in ipairs{3, 64} do
      for i = 1, 3 do assert(store:put("key" .. i, "short", {ttl = 1})) end
      local txn = store:txn()
      for i = 1, count do txn:put("key" .. i, "long") end
      local result = assert(txn:commit())
      for i = 1, 3 do
        assert.same(assert(store:get("key" .. i)), result.pairs["key" .. i])
        assert.is_nil(http("GET", "/v1/kv/app/key" .. i):find("Session", 1, true))
      end
      store:delete_tree("")
    end
  end)

  it("a time to live is renewed, ended and moved to a lease", function()
    local lease = assert(store:lease(30))
    local first = assert(store:put("key", "1", {ttl = 20}))
    local second = assert(store:put("key", "2", {ttl = 30}))
    assert.equal(first.created, second.created)
    local third = assert(store:put("key", "3", {lease = lease}))
    assert.equal(first.created, third.created)
    local fourth = assert(store:put("key", "4", {keep_alive = true}))
    assert.same(fourth, assert(store:get("key")))
    assert(store:atomic_put("key", "5", fourth, {ttl = 30}))
    assert.equal("5", assert(store:get("key")).value)
    assert(lease:revoke())
    assert.equal("5", assert(store:get("key")).value)
    fails("exists", store:atomic_put("key", "6", nil, {ttl = 30}))
    fails("modified", store:atomic_put("key", "6", first, {ttl = 30}))
  end)

  it("puts with a time to live leave no sessions behind", function()
    local function sessions()
      local _, count = http("GET", "/v1/session/list"):gsub('"ID"', "")
      return count
    end
    local before = sessions()
    for i = 1, 10 do assert(store:put("key", tostring(i), {ttl = 60})) end
    util.eventually(function() return sessions() <= before + 1 end, "old sessions are destroyed")
    fails("exists", store:atomic_put("key", "x", nil, {ttl = 60}))
    util.eventually(function() return sessions() <= before + 1 end, "the session of a refused put is destroyed")
  end)

  it("takes values up to 512 KB, with all that a put can have", function()
    local large = ("0123456789abcdef"):rep(32 * 1024)
    assert.equal(512 * 1024, #large)
    local first = assert(store:put("large", large))
    local got = assert(store:get("large"))
    assert.is_true(got.value == large)
    assert.equal(first.revision, got.revision)
    assert.equal(first.created, got.created)
    fails("too_large", store:put("large", large .. "x"))
    fails("exists", store:atomic_put("large", large, nil))
    local second = assert(store:atomic_put("large", large, first))
    assert.is_true(second.revision > first.revision)
    assert.equal(first.created, second.created)
    fails("modified", store:atomic_put("large", large, first))
    local third = assert(store:put("large", large, {ttl = 30}))
    assert.equal(third.revision, assert(store:get("large")).revision)
    assert.is_truthy(http("GET", "/v1/kv/app/large"):find("Session", 1, true))
    local fourth = assert(store:put("large", large))
    assert.equal(fourth.revision, assert(store:get("large")).revision)
    assert.is_nil(http("GET", "/v1/kv/app/large"):find("Session", 1, true))
    assert(store:atomic_put("large2", large, nil, {ttl = 30}))
    assert.is_truthy(http("GET", "/v1/kv/app/large2"):find("Session", 1, true))
    fails("too_large", store:txn():put("a", large):put("b", "x"):commit())
  end)

  it("sizes around the limit of a transaction", function()
    for _, size in ipairs{392000, 392800, 393000, 393100, 393216, 400000} do
      local value = ("v"):rep(size)
      local pair = assert(store:put("size", value))
      local got = assert(store:get("size"))
      assert.equal(size, #got.value)
      assert.equal(pair.revision, got.revision)
    end
  end)

  it("deletes a key under a session, and says whether it was there", function()
    assert(store:put("key", "v", {ttl = 60}))
    assert.equal(true, (store:delete("key")))
    assert.equal(false, (store:delete("key")))
  end)

  it("delete_tree of the root takes other prefixes, but not the locks", function()
    local root = assert(kv.open(server:url()))
    local lock = assert(assert(root:lock("kept")):acquire(20))
    for i = 1, 70 do assert(root:put("top" .. i .. "/x", "v")) end
    assert(root:put("top1", "v"))
    assert(root:put("ptop1", "v"))
    assert(root:delete_tree(""))
    assert.same({}, (root:list("")))
    assert.is_true(lock:held())
    assert(root:txn():guard(lock):put("guarded", "v"):commit())
    assert(lock:release())
    root:delete_tree("")
    root:close()
  end)

  it("a datacenter that is not there is an error, not silence", function()
    local other = assert(kv.open(server:url("/app?datacenter=nowhere")))
    fails("failed", other:get("key", {timeout = 20}))
    fails("failed", other:put("key", "v", {timeout = 20}))
    other:close()
    local same = assert(kv.open(server:url("/app?datacenter=dc1")))
    assert(same:put("key", "v"))
    same:close()
  end)
end)
