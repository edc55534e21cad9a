--- A Consul that goes away, comes back empty, is silent, or refuses connections: the right code in time, nothing
-- applied twice, watches exact afterwards, and no spin.
local kv = require("kv")
local native = require("spec.native")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local REQUEST = 150         -- bytes, at least
local WATCHES = 60          -- far more than may have a query of their own
local RATE = 100            -- a second, of all that have one
local CONNECTIONS = 100     -- of one store, with all that it does: half of what the server allows an address
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

describe("consul that is away", function()
  it("is unavailable in time, and used again when it is back", function()
    local server = servers.consul{data = true}
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
    local server = servers.consul{}
    local store = assert(kv.open(server:url("/app"), {timeout = 20}))
    for i = 1, 30 do assert(store:put("key" .. i, "v")) end
    local watch, single = assert(store:watch_tree("")), assert(store:watch("key1"))
    for _ = 1, 30 do assert(watch:next(20)) end
    assert.equal("v", assert(single:next(20)).value)
    server:kill()
    server:start()
    util.eventually(function() return store:put("key1", "new") end, "it is used again")
    local gone, value = {}, nil
    repeat
      local event = assert(watch:next(20))
      if event.type == "delete" then gone[event.key] = true else value = event.value end
      if event.key == "key1" and event.type == "put" then gone.key1 = nil end
      local count = 0
      for _ in pairs(gone) do count = count + 1 end
    until count >= 29 and value == "new"
    until_told(single, "put key1 new")
    store:close()
    server:stop()
  end)

  it("with another server at hand work goes on", function()
    local members = servers.consul_cluster(3)
    local hosts = {}
    for i, member in ipairs(members) do hosts[i] = "127.0.0.1:" .. member.port end
    local store = assert(kv.open("consul://" .. table.concat(hosts, ",") .. "/app", {timeout = 20}))
    local watch = assert(store:watch_tree(""))
    assert(watch:wait_synced(10))
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
    assert(store:put("last", "one"))
    local seen = {}
    repeat
      local event = assert(watch:next(30))
      seen[event.key] = event.value
    until event.key == "last"
    for key, value in pairs(written) do assert.equal(value, seen[key]) end
    -- a server that is stopped, not gone
    members[2]:pause()
    local pair, message, code = store:put("key", "x", {timeout = 3})
    assert.is_nil(pair) -- one of three is no majority
    assert.is_truthy(code == "unknown" or code == "unavailable" or code == "timeout", message)
    members[2]:resume()
    local there, problem
    util.eventually(function()
      there, problem = store:get("key", {timeout = 10})
      return not problem
    end, "it is read", 60)
    if code ~= "unknown" then assert.is_nil(there) end
    util.eventually(function() return store:put("key", "y", {timeout = 10}) end, "it goes on", 60)
    store:close()
    for _, member in ipairs(members) do member:stop() end
  end)
end)

describe("consul behind a bad network", function()
  local server, proxy, store

  setup(function() server = servers.consul{} end)
  teardown(function() server:stop() end)
  before_each(function()
    proxy = proxies.start(server.port)
    store = assert(kv.open("consul://127.0.0.1:" .. proxy.port .. "/app", {timeout = 20}))
  end)
  after_each(function()
    store:close()
    proxy:stop()
  end)

  it("writes without an answer are unknown, and applied once at most", function()
    local first = assert(store:put("key", "1"))
    for _, fault in ipairs{"drop-answers", "silent"} do
      util.eventually(function() return store:put("other", "v") end, "a connection has proved itself")
      proxy:tell("now " .. fault)
      fails("unknown", store:put("key", "2", SHORT))
      -- On a new connection, which has to prove itself first, nothing was sent.
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

  it("a watch comes back with the exact state", function()
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
      direct:delete("a")
      assert(direct:put("b", "round " .. round))
      assert(direct:put("a", "again " .. round))
      assert.equal(false, (direct:delete("c")))
      if round % 2 == 1 then assert.equal(true, (direct:delete("a"))) end
      proxy:tell("now pass")
      until_told(watch, "put b round " .. round)
    end
    local event = watch:next(0.3)
    while event do
      assert.equal("a", event.key)
      event = watch:next(0.3)
    end
    direct:delete_tree("")
    direct:close()
  end)

  it("an answer cut in the middle is no state", function()
    for i = 1, 200 do assert(store:put("key" .. i, ("v"):rep(1000))) end
    local watch = assert(store:watch_tree(""))
    assert(watch:wait_synced(10))
    for _ = 1, 200 do assert(watch:next(20)) end
    for i = 1, 10 do
      proxy:tell("cut-after " .. 5000 * i)
      local direct = assert(kv.open(server:url("/app")))
      assert(direct:put("key1", "round " .. i))
      direct:close()
      until_told(watch, "put key1 round " .. i)
      local event = watch:next(0)
      assert.is_nil(event, event and event.type)
    end
    proxy:tell("now pass")
    store:delete_tree("")
  end)

  it("does not spin while nobody answers, or while all is refused", function()
    local watches = {}
    for i = 1, WATCHES do watches[i] = assert(store:watch("key" .. i)) end
    for _, watch in ipairs(watches) do assert(watch:wait_synced(10)) end
    for _, fault in ipairs{"close", "garbage", "http 503", "http 429", "http 500"} do
      proxy:tell("now " .. fault)
      proxy:tell("cut")
      native.sleep(0.5)
      local begin, connections, bytes = native.now(), proxy:number("connections"), proxy:number("requests")
      native.sleep(2)
      local rate = (proxy:number("connections") - connections) / (native.now() - begin)
      assert.is_true(rate < RATE, fault .. ": " .. rate .. " connections a second")
      rate = (proxy:number("requests") - bytes) / (native.now() - begin) / REQUEST
      assert.is_true(rate < RATE, fault .. ": " .. rate .. " requests a second")
      for _, watch in ipairs(watches) do assert.is_false(watch:connected()) end
    end
    proxy:tell("now pass")
    proxy:tell("cut")
    for i, watch in ipairs(watches) do
      util.eventually(function() return store:put("key" .. i, "v") end, "it is there")
      until_told(watch, "put key" .. i .. " v")
    end
    store:delete_tree("")
  end)
end)

describe("consul with few connections", function()
  it("300 watches, and locks that wait, work within the server's 200 connections", function()
    local server = servers.consul{}
    local proxy = proxies.start(server.port)
    local store = assert(kv.open("consul://127.0.0.1:" .. proxy.port .. "/app", {timeout = 20}))
    local watches = {}
    for i = 1, 250 do watches[i] = assert(store:watch(("dir%d/key%d"):format(i % 7, i))) end
    for i = 251, 300 do watches[i] = assert(store:watch_tree(("tree/%d"):format(i))) end
    for _, watch in ipairs(watches) do assert(watch:wait_synced(20)) end
    for round = 1, 3 do
      for i = 1, 250 do assert(store:put(("dir%d/key%d"):format(i % 7, i), "round " .. round)) end
      for i = 251, 300 do assert(store:put(("tree/%d/sub/key"):format(i), "round " .. round)) end
      for i = 1, 250 do until_told(watches[i], ("put dir%d/key%d round %d"):format(i % 7, i, round)) end
      for i = 251, 300 do until_told(watches[i], ("put tree/%d/sub/key round %d"):format(i, round)) end
    end
    assert(store:delete_tree("dir3"))
    for i = 3, 250, 7 do until_told(watches[i], ("delete dir3/key%d"):format(i)) end
    for _, watch in ipairs(watches) do fails("timeout", watch:next(0)) end
    kv.run(function()
      local tasks = {}
      for i = 1, 40 do
        tasks[i] = kv.spawn(function()
          local lock = assert(assert(store:lock("door" .. i % 4)):acquire(60))
          kv.sleep(0.002)
          assert(lock:release())
        end)
      end
      util.join(tasks, 60)
    end)
    -- 64 for requests and 24 for blocking queries, at the most: others at this address need some, too.
    assert.is_true(proxy:number("open") <= CONNECTIONS, proxy:number("open") .. " connections")
    -- Slots that become free are used by those that had none.
    for i = 1, 280 do watches[i]:close() end
    assert(store:put("tree/300/x", "last"))
    until_told(watches[300], "put tree/300/x last")
    store:close()
    proxy:stop()
    server:stop()
  end)

  it("a server that allows ten is lived with", function()
    local server = servers.consul{connections = 10}
    local store = assert(kv.open(server:url("/app"), {timeout = 20}))
    local watches = {}
    for i = 1, 30 do watches[i] = assert(store:watch("key" .. i)) end
    for i, watch in ipairs(watches) do
      util.eventually(function() return watch:wait_synced(1) end, "watch " .. i .. " has its state", 40)
    end
    local values = {}
    for i = 1, 30 do values["key" .. i] = "v" end
    for key, value in pairs(values) do
      util.eventually(function()
        local pair, message, code = store:put(key, value)
        assert.is_truthy(pair or code == "unknown", message)
        return pair
      end, key .. " is written", 30)
    end
    for i, watch in ipairs(watches) do until_told(watch, "put key" .. i .. " v", 40) end
    store:close()
    server:stop()
  end)
end)

-- What takes more than one request, some of which came through: `unavailable` would be a lie, and to begin again too.
describe("consul that is lost between two requests of one write", function()
  local server, process, store

  local function open(pattern, count, what)
    process = util.lua("spec/support/between.lua", tostring(server.port), pattern, tostring(count), what)
    local port = assert(tonumber((assert(process:line(10)))))
    store = assert(kv.open(("consul://127.0.0.1:%d/app"):format(port), {timeout = 20}))
  end

  setup(function() server = servers.consul{} end)
  teardown(function() server:stop() end)
  after_each(function()
    store:close()
    process:kill("KILL")
    process:wait(10)
  end)

  it("a large value that was put, and could not be looked at", function()
    local large, direct = ("0123456789abcdef"):rep(32 * 1024), assert(kv.open(server:url("/app")))
    open("^GET /v1/kv/app/large%?", 0, "lose")
    fails("unknown", store:atomic_put("large", large, nil))
    local pair = assert(direct:get("large"))
    assert.is_true(pair.value == large)
    fails("unknown", store:atomic_put("large", large, pair, {ttl = 30}))
    assert.is_true(assert(direct:get("large")).revision > pair.revision)
    fails("unknown", store:put("large", large))
    assert(direct:delete("large"))
    direct:close()
  end)

  it("a transaction of deletes alone, whose index could not be asked for", function()
    local direct = assert(kv.open(server:url("/app")))
    local pair = assert(direct:put("key", "v"))
    open("^GET /v1/kv/.kv/none", 0, "lose")
    fails("unknown", store:txn():check("key", pair):delete("key"):commit())
    assert.is_nil((direct:get("key")))
    direct:close()
  end)

  it("a tree of which a part was deleted", function()
    local direct = assert(kv.open(server:url("/app")))
    for i = 1, 70 do assert(direct:put("tree/key" .. i, "v")) end
    open("^PUT /v1/txn", 1, "end")
    fails("unknown", store:delete_tree("tree"))
    assert.equal(6, #assert(direct:list("tree")))
    direct:close()
  end)
end)
