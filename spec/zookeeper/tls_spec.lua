--- ZooKeeper through TLS.
local kv = require("kv")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local REFUSED = 4 -- seconds that are tried in vain: more than a handshake may take

describe("ZooKeeper with TLS", function()
  local zk, stores

  local function open(tls)
    local store = assert(kv.open(zk:secure_url(), {tls = tls, connect_timeout = 3, timeout = 30}))
    stores[#stores + 1] = store
    return store
  end

  local function start(options)
    options.tls = true
    zk = servers.zookeeper(options)
  end

  before_each(function() stores = {} end)

  after_each(function()
    for _, store in ipairs(stores) do store:close() end
    zk:stop()
  end)

  it("reads, writes, watches and locks", function()
    start{}
    local store = open{ca = zk.certificates.ca}
    local watch = assert(store:watch_tree("dir"))
    assert(watch:wait_synced(30))
    local big = ("0123456789"):rep(50000)
    assert(store:put("dir/big", big))
    local event = assert(watch:next(10))
    assert.is_true(event.value == big)
    assert.is_true(assert(store:get("dir/big")).value == big)
    local values = {}
    for i = 1, 500 do values["many/" .. i] = ("v%d "):format(i):rep(100) end
    assert(store:put_many(values))
    local list = assert(store:list("many"))
    assert.equal(500, #list)
    for _, pair in ipairs(list) do assert.equal(values[pair.key], pair.value) end
    local lock = assert(assert(store:lock("door")):acquire(5))
    assert(lock:release())
    zk:kill()
    zk:start()
    assert(store:put("dir/after", "restart", {timeout = 30}))
    repeat event = assert(watch:next(30)) until event.key == "dir/after"
  end)

  it("refuses a server that it cannot trust, or that has another name", function()
    start{}
    assert.is_false(open{verify = false}:exists("key")) -- the first handshake of a server takes its time
    local value, message, code = open{ca = zk.certificates.other_ca}:get("key", {timeout = REFUSED})
    assert.is_nil(value)
    assert.equal("unavailable", code, message)
    assert.is_truthy(message:find("certificate", 1, true), message)
    local elsewhere = open{ca = zk.certificates.ca, server_name = "elsewhere.example"}
    value, message, code = elsewhere:get("key", {timeout = REFUSED})
    assert.is_nil(value)
    assert.equal("unavailable", code, message)
    value, message, code = open{ca = "/no/such/file"}:get("key", {timeout = 1})
    assert.is_nil(value)
    assert.is_truthy(code == "unavailable" or code == "invalid" or code == "failed", message)
  end)

  it("shows a certificate to a server that wants one", function()
    start{client_certificates = true}
    local certificates = zk.certificates
    local store = open{ca = certificates.ca, cert = certificates.client_cert, key = certificates.client_key}
    assert(store:put("key", "v"))
    local value, message, code = open{ca = certificates.ca}:get("key", {timeout = REFUSED})
    assert.is_nil(value)
    assert.equal("unavailable", code, message)
  end)

  it("is not confused by a server that does not speak TLS", function()
    start{}
    local store = assert(kv.open(("zks://127.0.0.1:%d"):format(zk.port), {tls = {ca = zk.certificates.ca}}))
    stores[#stores + 1] = store
    local value, message, code = store:get("key", {timeout = 3})
    assert.is_nil(value)
    assert.is_truthy(code == "unavailable" or code == "timeout", message)
    local plain = assert(kv.open(("zk://127.0.0.1:%d"):format(zk.secure_port)))
    stores[#stores + 1] = plain
    value, message, code = plain:get("key", {timeout = 3})
    assert.is_nil(value)
    assert.is_truthy(code == "unavailable" or code == "timeout", message)
    util.eventually(function() return assert(open{ca = zk.certificates.ca}:put("key", "v")) end, "a good client works")
  end)
end)
