--- Blocking queries that come back without news: because other keys changed (a real Consul), or because the server
-- answers at once, with the same index or with an older one (a stand-in), or says that it held something back. Nothing
-- is told that did not happen, and nothing spins.
local kv = require("kv")
local native = require("spec.native")
local servers = require("spec.support.servers")
local proxies = require("spec.support.proxy")
local util = require("spec.support.util")

-- Answers without news are followed by pauses that grow to a tenth of a second; the first few come quickly.
local RATE = 20
local BYTES = 250 -- of a query, at most

local function quiet(watch)
  local event, message, code = watch:next(0)
  assert.is_nil(event, event and event.type .. " " .. event.key)
  assert.equal("timeout", code, message)
end

local function told(watch, kind, key, revision)
  local event = assert(watch:next(10))
  assert.equal(kind .. " " .. key, event.type .. " " .. event.key)
  if revision then assert.equal(revision, event.revision) end
end

describe("consul: a blocking query that comes back without news", function()
  it("as other keys change: watches of what is not there, and of a neighbour, tell nothing", function()
    local server = servers.consul{}
    local proxy = proxies.start(server.port)
    local writer = assert(kv.open(server:url("/app")))
    local store = assert(kv.open("consul://127.0.0.1:" .. proxy.port .. "/app"))
    assert(writer:put("dir/key", "v"))
    local watches = {assert(store:watch("none")), assert(store:watch_tree("nothing")), assert(store:watch("dir/key")),
      assert(store:watch_tree("dir"))}
    for _, watch in ipairs(watches) do assert(watch:wait_synced(10)) end
    told(watches[3], "put", "dir/key")
    told(watches[4], "put", "dir/key")
    local before, start, count = proxy:number("requests"), native.now(), 0
    while native.now() - start < 3 do
      assert(writer:put("n" .. count % 50, tostring(count)))
      count = count + 1
    end
    local seconds = native.now() - start
    local rate = (proxy:number("requests") - before) / seconds
    assert.is_true(rate <= #watches * RATE * BYTES, ("%.0f bytes a second"):format(rate))
    assert.is_true(count / seconds > 2 * RATE, "writes were too slow to show anything")
    for _, watch in ipairs(watches) do quiet(watch) end
    for _, key in ipairs{"none", "nothing/key"} do assert(writer:put(key, "now")) end
    told(watches[1], "put", "none")
    told(watches[2], "put", "nothing/key")
    store:close()
    writer:close()
    proxy:stop()
    server:stop()
  end)
end)

describe("a consul that answers blocking queries at once", function()
  local process, port, store

  local function tell(index, keys)
    local request = ("GET /tell/%s/%s HTTP/1.1\r\n\r\n"):format(index, keys)
    return assert(tonumber(assert(native.exchange(port, request, 20)):match("\r\n\r\n(%d+)")))
  end

  -- The same words again tell how many queries there were meanwhile.
  local function rate(index, keys)
    local before, begin = tell(index, keys), native.now()
    native.sleep(2)
    return (tell(index, keys) - before) / (native.now() - begin)
  end

  before_each(function()
    process = util.lua("spec/support/early_consul.lua")
    port = assert(tonumber(assert(process:line(10))))
    store = assert(kv.open(("consul://127.0.0.1:%d/app"):format(port)))
  end)

  after_each(function()
    store:close()
    process:kill("KILL")
    process:wait(10)
  end)

  local function watch_two()
    tell(9, "a=5,b=6")
    local watch = assert(store:watch_tree(""))
    told(watch, "put", "a", 5)
    told(watch, "put", "b", 6)
    assert(watch:wait_synced(10))
    return watch
  end

  it("with the same index: nothing is told, nothing spins, and what changes is told", function()
    local watch = watch_two()
    local queries = rate(9, "a=5,b=6")
    assert.is_true(queries <= RATE, queries .. " queries a second")
    quiet(watch)
    assert.is_true(watch:connected())
    tell(12, "a=5,b=12")
    told(watch, "put", "b", 12)
    quiet(watch)
  end)

  it("with an index that went back, and the same keys: nothing is told; then what is gone, is", function()
    local watch = watch_two()
    local queries = rate(3, "a=5,b=6")
    assert.is_true(queries <= RATE, queries .. " queries a second")
    quiet(watch)
    tell(2, "a=5")
    told(watch, "delete", "b")
    tell(4, "a=5,b=4")
    told(watch, "put", "b")
    quiet(watch)
  end)

  it("with the index 0, which tells nothing: it is no state, and nothing spins", function()
    local watch = watch_two()
    local queries = rate(0, "")
    assert.is_true(queries <= RATE, queries .. " queries a second")
    quiet(watch)
    assert.is_false(watch:connected())
    tell(20, "a=5,b=20")
    told(watch, "put", "b", 20)
    assert.is_true(watch:connected())
  end)

  it("with less than there is, as the token may not read all: denied, and nothing is told to be gone", function()
    local watch = watch_two()
    tell(7, "b=6/filtered")
    for _, told_by in ipairs{function() return watch:next(10) end, function() return store:list("") end} do
      local value, message, code = told_by()
      assert.is_nil(value)
      assert.equal("denied", code, message)
    end
    tell(8, "/filtered")
    local value, message, code = assert(store:watch_tree("")):next(10)
    assert.is_nil(value)
    assert.equal("denied", code, message)
  end)
end)
