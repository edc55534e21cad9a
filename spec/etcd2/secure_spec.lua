--- TLS and users on a real etcd, by its v2 API.
local kv = require("kv")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local REFUSED = 3 -- seconds for what is to fail: a handshake has come to its end by then

local function fails(code, value, message, actual)
  assert.is_nil(value)
  assert.equal(code, actual, message)
  return message
end

describe("etcd2s", function()
  local server

  setup(function()
    server = servers.etcd2{tls = true, client_certificates = true, arguments = {"--unsafe-no-fsync"}}
  end)
  teardown(function() server:stop() end)

  local function open(tls, timeout)
    return assert(kv.open(server:url("/app"), {tls = tls, timeout = timeout or 20}))
  end

  local function full()
    local files = server.certificates
    return {ca = files.ca, cert = files.client_cert, key = files.client_key}
  end

  it("works with the right certificates", function()
    local store = open(full())
    local pair = assert(store:put("key", "v"))
    assert.same(pair, assert(store:get("key")))
    local watch = assert(store:watch("key"))
    assert.equal("v", assert(watch:next(20)).value)
    assert(store:put("key", "w"))
    assert.equal("w", assert(watch:next(20)).value)
    local lock = assert(assert(store:lock("door")):acquire(20))
    assert(lock:release())
    assert(store:delete_tree(""))
    store:close()
  end)

  local function refused(what, change, words)
    it("refuses " .. what, function()
      local tls = full()
      change(tls)
      local store = open(tls, REFUSED)
      for _, result in ipairs(util.put_and_get(kv, store)) do
        local message = fails("unavailable", result[1], result[2], result[3])
        assert.is_truthy(message:lower():find(words), message)
      end
      store:close()
    end)
  end

  refused("a certificate of an unknown authority", function(tls) tls.ca = server.certificates.other_ca end,
    "certificate")
  refused("a server of another name", function(tls) tls.server_name = "elsewhere.example" end, "elsewhere%.example")

  it("without a client certificate nothing is said", function()
    local store = open({ca = server.certificates.ca}, REFUSED)
    local value, message, code = store:put("key", "v")
    assert.is_nil(value)
    assert.is_truthy(code == "unavailable" or code == "unknown", message)
    store:close()
  end)

  it("files that cannot be used are invalid", function()
    local store = open{ca = "/nowhere/ca.pem"}
    fails("invalid", store:put("key", "v"))
    store:close()
  end)
end)

describe("etcd2 with users", function()
  local server

  setup(function() server = servers.etcd2{users = true, arguments = {"--unsafe-no-fsync"}} end)
  teardown(function() server:stop() end)

  local function open(user, password, prefix)
    return assert(kv.open(server:url(prefix), {username = user, password = password, timeout = 20}))
  end

  it("root may do all, by the URL too", function()
    local store = open("root", server.password, "/app")
    assert(store:put("key", "v"))
    assert.equal("v", assert(store:get("key")).value)
    store:close()
    store = assert(kv.open(server:url("/app", "root:" .. server.password)))
    assert(store:delete_tree(""))
    assert.is_nil(tostring(store):find(server.password, 1, true))
    store:close()
  end)

  it("nobody, and a wrong password, are denied", function()
    for _, password in ipairs{false, "wr0ng-secret"} do
      local store = open(password and "root" or nil, password or nil, "/app")
      local message = fails("denied", store:put("key", "v"))
      assert.is_nil(message:find("wr0ng", 1, true))
      fails("denied", store:get("key"))
      fails("denied", store:list(""))
      fails("denied", store:delete("key"))
      fails("denied", store:delete_tree("key"))
      fails("denied", store:atomic_put("key", "v", nil))
      fails("denied", store:put("key", "v", {keep_alive = true}))
      fails("denied", assert(store:lock("door")):acquire(20))
      local watch = assert(store:watch("key"))
      fails("denied", watch:next(20))
      store:close()
    end
  end)

  it("a user for a part may write there and nowhere else", function()
    local store = open("worker", "w0rk")
    assert(store:put("allowed/key", "v"))
    assert.equal("v", assert(store:get("allowed/key")).value)
    fails("denied", store:put("other", "v"))
    fails("denied", store:get("other"))
    store:close()
  end)

  it("a watch whose user loses his rights says denied, and no false deletes", function()
    local root, store = open("root", server.password), open("worker", "w0rk")
    assert(root:put("allowed/key", "1"))
    local watch = assert(store:watch_tree("allowed"))
    assert.equal("1", assert(watch:next(20)).value)
    server:v2("/auth/roles/limited", "-u", "root:" .. server.password, "-X", "PUT", "-H",
      "Content-Type: application/json", "-d", '{"role": "limited", "revoke": {"kv": {"read": ["/allowed*"]}}}')
    local code, message
    util.eventually(function()
      assert(root:put("allowed/key", "2"))
      local event
      event, message, code = watch:next(0.1)
      if event then assert.equal("put", event.type) end
      return code and code ~= "timeout"
    end, "it is told")
    assert.equal("denied", code, message)
    root:close()
    store:close()
  end)

  it("a name or password with control characters is invalid, or harmless", function()
    local store = assert(kv.open(server:url("/app"), {username = "a\r\nX: b", password = "c", timeout = 20}))
    fails("denied", store:put("key", "v"))
    store:close()
  end)
end)
