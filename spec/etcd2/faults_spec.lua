--- An etcd that goes away, comes back empty, loses its history, is silent, or answers nonsense: the right code in time,
-- nothing applied twice, watches exact afterwards, and no spin.
local kv = require("kv")
local native = require("spec.native")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local REQUEST = 150         -- bytes, at least
local SHORT = {timeout = 1} -- for what is not to come to an end

local function fails(code, value, message, actual)
  assert.is_nil(value)
  assert.equal(code, actual, message)
  return message
end

-- What a watch says until it gives this event ("put key value", "delete key").
local function until_told(watch, wanted, seconds)
  local deadline = native.now() + (seconds or 20)
  while native.now() < deadline do
    local event, message, code = watch:next(0.5)
    if event and event.type .. " " .. event.key .. (event.value and " " .. event.value or "") == wanted then return end
    if not event and code ~= "timeout" then error(message) end
  end
  error("never told: " .. wanted, 2)
end

-- Follow a watch until what it told is what is there.
local function settles(watch, state, expected)
  util.eventually(function()
    local event = watch:next(0.05)
    while event do
      if event.type == "put" then state[event.key] = event.value else state[event.key] = nil end
      event = watch:next(0)
    end
    for key, value in pairs(expected) do
      if state[key] ~= value then return false end
    end
    for key in pairs(state) do
      if expected[key] == nil then return false end
    end
    return true
  end, "the watch has the state", 20)
end

describe("etcd2 that is away", function()
  it("is unavailable in time, and used again when it is back", function()
    local server = servers.etcd2{arguments = {"--unsafe-no-fsync"}}
    local store = assert(kv.open(server:url("/app"), {timeout = 30}))
    assert(store:put("key", "1"))
    local watch = assert(store:watch_tree(""))
    assert.equal("1", assert(watch:next(20)).value)
    server:kill()
    local start = native.now()
    -- Long enough for a try of their own.
    fails("unavailable", store:put("key", "2", {timeout = 2}))
    fails("unavailable", store:get("key", {timeout = 2}))
    assert.is_true(native.now() - start < 20)
    util.eventually(function() return not watch:connected() end, "the watch knows")
    server:start()
    util.eventually(function() return store:put("key", "3") end, "it is used again")
    until_told(watch, "put key 3")
    assert.is_true(watch:connected())
    store:close()
    server:stop()
  end)

  it("comes back without its data: the watch tells what is gone", function()
    local server = servers.etcd2{arguments = {"--unsafe-no-fsync"}}
    local store = assert(kv.open(server:url("/app"), {timeout = 20}))
    for i = 1, 30 do assert(store:put("key" .. i, "v")) end
    local watch, single = assert(store:watch_tree("")), assert(store:watch("key1"))
    local state = {}
    for _ = 1, 30 do
      local event = assert(watch:next(20))
      state[event.key] = event.value
    end
    assert.equal("v", assert(single:next(20)).value)
    server:kill()
    server:wipe()
    server:start()
    util.eventually(function() return store:put("key1", "new") end, "it is used again")
    settles(watch, state, {key1 = "new"})
    until_told(single, "put key1 new")
    store:close()
    server:stop()
  end)

  it("a lock is lost with the data, and can be had again", function()
    local server = servers.etcd2{arguments = {"--unsafe-no-fsync"}}
    local store = assert(kv.open(server:url("/app"), {timeout = 20}))
    local lock = assert(assert(store:lock("door", {ttl = 6})):acquire(20))
    local kept = assert(store:put("kept", "v", {keep_alive = true}))
    assert.is_true(kept.revision > 0)
    server:kill()
    server:wipe()
    server:start()
    assert(lock:wait_lost(20))
    fails("lost", lock:release())
    assert(lock:acquire(20))
    assert(lock:release())
    store:close()
    server:stop()
  end)

  it("the history is cleared while a watch is cut off: it lists, and tells the difference", function()
    local server = servers.etcd2{arguments = {"--unsafe-no-fsync"}}
    local proxy = proxies.start(server.port)
    local store = assert(kv.open("etcd2://127.0.0.1:" .. proxy.port .. "/app", {timeout = 20}))
    local direct = assert(kv.open(server:url("/app")))
    for i = 1, 10 do assert(direct:put("old" .. i, "v")) end
    local watch, single = assert(store:watch_tree("")), assert(store:watch("old1"))
    local state = {}
    assert(watch:wait_synced(20))
    assert.equal("v", assert(single:next(20)).value)
    local expected = {}
    for i = 1, 10 do expected["old" .. i] = "v" end
    settles(watch, state, expected)
    proxy:tell("now close")
    proxy:tell("cut")
    util.eventually(function() return not watch:connected() end, "the watch knows")
    for i = 1, 5 do
      assert.is_true(direct:delete("old" .. i))
      expected["old" .. i] = nil
    end
    for round = 1, 1100 do assert(direct:put("busy", tostring(round))) end
    expected.busy = "1100"
    proxy:tell("now pass")
    settles(watch, state, expected)
    until_told(single, "delete old1")
    assert.is_true(store:stats().resyncs > 0)
    store:close()
    direct:close()
    proxy:stop()
    server:stop()
  end)

  it("with other members at hand work goes on", function()
    local members = servers.etcd2_cluster(3, {arguments = {"--unsafe-no-fsync"}})
    local hosts = {}
    for i, member in ipairs(members) do hosts[i] = "127.0.0.1:" .. member.port end
    local store = assert(kv.open("etcd2://" .. table.concat(hosts, ",") .. "/app", {timeout = 20}))
    local watch = assert(store:watch_tree(""))
    assert(watch:wait_synced(10))
    local lock = assert(assert(store:lock("door")):acquire(10))
    local written = {}
    for i = 1, 40 do
      if i == 10 then members[1]:kill() end
      local pair, message, code = store:put("key" .. i % 5, tostring(i))
      if pair then
        written["key" .. i % 5] = tostring(i)
      else
        assert.equal("unknown", code, message)
        written["key" .. i % 5] = assert(store:get("key" .. i % 5)).value
      end
    end
    for key, value in pairs(written) do assert.equal(value, assert(store:get(key)).value) end
    settles(watch, {}, written)
    assert.is_true(lock:held())
    assert(lock:release())
    -- Without a quorum nothing is applied for certain, and reads say so.
    members[2]:kill()
    local _, message, code = store:put("key1", "x", SHORT)
    assert.is_truthy(code == "unknown" or code == "unavailable" or code == "timeout", message)
    local _, _, read = store:get("key1", SHORT)
    assert.is_truthy(read == "unavailable" or read == "timeout", read)
    members[2]:start()
    util.eventually(function() return store:put("key1", "y", {timeout = 10}) end, "it goes on", 60)
    store:close()
    for _, member in ipairs(members) do member:stop() end
  end)
end)

describe("etcd2 behind a bad network", function()
  local server, proxy, store

  setup(function() server = servers.etcd2{arguments = {"--unsafe-no-fsync"}} end)
  teardown(function() server:stop() end)
  before_each(function()
    proxy = proxies.start(server.port)
    store = assert(kv.open("etcd2://127.0.0.1:" .. proxy.port .. "/app", {timeout = 20}))
  end)
  after_each(function()
    store:close()
    proxy:stop()
    local direct = assert(kv.open(server:url("/app")))
    assert(direct:delete_tree(""))
    direct:close()
  end)

  it("writes without an answer are unknown, and applied once at most", function()
    local first = assert(store:put("key", "1"))
    for _, fault in ipairs{"drop-answers", "silent"} do
      util.eventually(function() return store:put("other", "v") end, "a connection has proved itself")
      proxy:tell("now " .. fault)
      fails("unknown", store:put("key", "2", SHORT))
      local _, message, code = store:delete("nothing", SHORT)
      assert.is_truthy(code == "unknown" or code == "timeout" or code == "unavailable", message)
      proxy:tell("now pass")
      util.eventually(function() return store:get("key") end, "it goes on")
    end
    local pair = assert(store:get("key"))
    assert.equal(first.created, pair.created)
    proxy:tell("now reset")
    local _, message, code = store:put("key", "3", SHORT)
    assert.is_truthy(code == "unknown" or code == "unavailable", message)
    proxy:tell("now pass")
  end)

  it("a connection that is cut is unknown for the write on it, and nothing for the next", function()
    for i = 1, 20 do
      assert(store:put("key", tostring(i)))
      proxy:tell(i % 2 == 0 and "cut" or "cut-reset")
      local pair, message, code = store:put("key", "after " .. i)
      if not pair then assert.equal("unknown", code, message) end
    end
    assert(store:put("key", "end"))
  end)

  it("garbage is no answer", function()
    assert(store:put("key", "1"))
    proxy:tell("now garbage")
    proxy:tell("cut")
    local _, message, code = store:put("key", "2", SHORT)
    assert.is_truthy(code == "unknown" or code == "unavailable" or code == "timeout", message)
    local _, _, read = store:get("key", SHORT)
    assert.is_truthy(read == "unavailable" or read == "timeout", read)
    proxy:tell("now pass")
    proxy:tell("cut")
    util.eventually(function() return store:get("key") end, "it goes on")
  end)

  it("a watch comes back and tells each change", function()
    assert(store:put("a", "1"))
    assert(store:put("b", "1"))
    local watch = assert(store:watch_tree(""))
    assert(watch:next(20))
    assert(watch:next(20))
    local direct = assert(kv.open(server:url("/app")))
    for round = 1, 5 do
      proxy:tell("now close")
      proxy:tell("cut")
      util.eventually(function() return not watch:connected() end, "the watch knows")
      assert.is_true(direct:delete("a"))
      assert(direct:put("b", "round " .. round))
      assert(direct:put("a", "again " .. round))
      proxy:tell("now pass")
      for _, wanted in ipairs{"delete a", "put b round " .. round, "put a again " .. round} do
        local event = assert(watch:next(20))
        assert.equal(wanted, event.type .. " " .. event.key .. (event.value and " " .. event.value or ""))
      end
    end
    direct:close()
  end)

  it("an answer cut in the middle is no state", function()
    for i = 1, 200 do assert(store:put("key" .. i, ("v"):rep(1000))) end
    for i = 1, 10 do
      proxy:tell("cut-after " .. 5000 * i)
      local list, message, code = store:list("")
      if list then
        assert.equal(200, #list)
      else
        assert.is_truthy(code == "unavailable" or code == "timeout", message)
      end
    end
    proxy:tell("now pass")
    util.eventually(function() return store:list("") end, "it goes on")
  end)

  it("does not spin while nobody answers, or while all is refused", function()
    local watches = {}
    for i = 1, 10 do watches[i] = assert(store:watch("key" .. i)) end
    for _, watch in ipairs(watches) do assert(watch:wait_synced(10)) end
    for _, fault in ipairs{"close", "garbage", "http 503", "http 429", "http 500"} do
      proxy:tell("now " .. fault)
      proxy:tell("cut")
      native.sleep(0.5)
      local begin, connections, bytes = native.now(), proxy:number("connections"), proxy:number("requests")
      native.sleep(2)
      local rate = (proxy:number("connections") - connections) / (native.now() - begin)
      assert.is_true(rate < 60, fault .. ": " .. rate .. " connections a second")
      rate = (proxy:number("requests") - bytes) / (native.now() - begin) / REQUEST
      assert.is_true(rate < 60, fault .. ": " .. rate .. " requests a second")
      for _, watch in ipairs(watches) do assert.is_false(watch:connected()) end
    end
    proxy:tell("now pass")
    proxy:tell("cut")
    for i, watch in ipairs(watches) do
      util.eventually(function() return store:put("key" .. i, "v") end, "it is there")
      until_told(watch, "put key" .. i .. " v")
    end
  end)

  it("two hundred watches at a time are as good as one", function()
    local direct = assert(kv.open(server:url("/app"), {timeout = 20}))
    local watches = {}
    for i = 1, 200 do watches[i] = assert(direct:watch(("dir%d/key%d"):format(i % 7, i))) end
    for _, watch in ipairs(watches) do assert(watch:wait_synced(20)) end
    for i = 1, 200 do assert(direct:put(("dir%d/key%d"):format(i % 7, i), "v")) end
    for i = 1, 200 do until_told(watches[i], ("put dir%d/key%d v"):format(i % 7, i)) end
    assert(direct:delete_tree("dir3"))
    for i = 3, 200, 7 do until_told(watches[i], ("delete dir3/key%d"):format(i)) end
    for _, watch in ipairs(watches) do fails("timeout", watch:next(0)) end
    direct:close()
  end)
end)

describe("etcd2 that is lost between two requests of one write", function()
  it("the root, of which a part was deleted", function()
    local server = servers.etcd2{arguments = {"--unsafe-no-fsync"}}
    local direct = assert(kv.open(server:url("")))
    for i = 1, 3 do assert(direct:put("key" .. i, "v")) end
    local process = util.lua("spec/support/between.lua", tostring(server.port), "^DELETE ", "1", "end")
    local port = assert(tonumber((assert(process:line(10)))))
    local store = assert(kv.open(("etcd2://127.0.0.1:%d"):format(port), {timeout = 20}))
    fails("unknown", store:delete_tree(""))
    assert.equal(2, #assert(direct:list("")))
    store:close()
    process:wait(10)
    direct:close()
    server:stop()
  end)
end)
