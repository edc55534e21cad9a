--- Watches when one session of a store has no connection, or is slower than the other: a directory of so many long
-- keys that two sessions share its watches, and locks, which have sessions of their own.
local kv = require("kv")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local PREFIX, COUNT = "/app", 900
local LONG = ("x"):rep(445) -- leaves some hundred bytes to the first session, for short keys

describe("ZooKeeper's sessions", function()
  local zk, direct, proxy, store

  setup(function()
    zk = servers.zookeeper()
    direct = assert(kv.open(zk:url(PREFIX), {timeout = 20}))
    local values = {}
    for i = 1, COUNT do values["dir/" .. LONG .. i] = "1" end
    assert(direct:put_many(values))
  end)
  teardown(function()
    direct:close()
    zk:stop()
  end)
  before_each(function() proxy = proxies.start(zk.port) end)
  after_each(function()
    store:close()
    proxy:stop()
  end)

  local function open(options)
    store = assert(kv.open("zk://127.0.0.1:" .. proxy.port .. PREFIX, options))
  end

  -- Of the directory: its first watches are on the connection 0 of the proxy, the others on 1.
  local function watch_all()
    local watch = assert(store:watch_tree("dir", {initial = false}))
    assert(watch:wait_synced(20))
    assert.equal(2, proxy:number("open"))
    return watch
  end

  -- A key that the session with the fewest watches watches.
  local function one_of_the_second()
    local key, fewest, current, count = nil, math.huge, nil, 0
    local function take()
      if current and count < fewest then key, fewest = current, count end
      current, count = nil, 0
    end
    for line in zk:ask("wchc"):gmatch("[^\n]+") do
      local path = line:match("^\t(.+)")
      if not path then take()
      else current, count = path:match("^" .. PREFIX .. "/(dir/.+)") or current, count + 1 end
    end
    take()
    return assert(key)
  end

  local function told(watch, key, value)
    repeat
      local event = assert(watch:next(10))
    until event.key == key and event.value == value
  end

  it("a key that is made anew in one step is told, whichever of two hears of it first", function()
    open()
    local watch = watch_all()
    local key = one_of_the_second()
    proxy:tell("one 1 hold-answers")
    assert(direct:put(key, "2", {keep_alive = true})) -- another kind of node
    assert(direct:put("dir/mark", "v"))
    told(watch, "dir/mark", "v") -- the names were read meanwhile
    proxy:tell("one 1 pass")
    told(watch, key, "2")
  end)

  it("what one of them watches is told while the other one is away", function()
    open{session_ttl = 3, connect_timeout = 0.3}
    local watch = watch_all()
    proxy:tell("silent")
    proxy:tell("one 1 half-close-client")
    util.eventually(function() return not watch:connected() end, "it notices")
    kv.run(function() kv.sleep(3.5) end) -- the session expires, and there is no other
    assert(direct:put("dir/late", "v"))
    told(watch, "dir/late", "v")
    assert.is_false(watch:connected())
    proxy:tell("pass")
    util.eventually(function() return watch:connected() end, "it is whole again", 20)
  end)

  it("a watch is not connected again when a lock's session is", function()
    open{connect_timeout = 30}
    local watch = assert(store:watch("key"))
    util.eventually(function() return watch:connected() end, "it is connected")
    local count = proxy:number("connections")
    proxy:tell("silent")
    proxy:tell("one 0 half-close-client")
    util.eventually(function() return proxy:number("connections") > count end, "it tries again")
    proxy:tell("pass")
    local lock = assert(store:lock("lock"))
    assert(lock:acquire(20))
    assert.is_false(watch:connected())
    assert(lock:release())
    proxy:tell("cut")
    util.eventually(function() return watch:connected() end, "it is connected again", 20)
  end)
end)
