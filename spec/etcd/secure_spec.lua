--- etcd with users, passwords and TLS, as a program meets them. spec/c/test_etcd_secure.c tries more.
local kv = require("kv")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local SECRETS = {"w0rk", "wr0ng"}

local function without_secrets(text)
  for _, secret in ipairs(SECRETS) do assert.is_nil(text:find(secret, 1, true), text) end
  return text
end

describe("etcd with users", function()
  local server
  setup(function() server = servers.etcd{auth = true, arguments = {"--unsafe-no-fsync"}} end)
  teardown(function() server:stop() end)

  it("lets in who has the password, in the URL or in the options", function()
    for _, store in ipairs{
      assert(kv.open(server:url("/allowed", "worker:w0rk"))),
      assert(kv.open(server:url("/allowed"), {username = "worker", password = "w0rk"})),
    } do
      assert(store:put("key", "1"))
      assert.equal("1", assert(store:get("key")).value)
      assert.equal(true, (store:ping()))
      without_secrets(tostring(store))
      store:close()
    end
  end)

  it("says denied of what is not allowed", function()
    local store = assert(kv.open(server:url("/elsewhere", "worker:w0rk")))
    local value, message, code = store:put("key", "1")
    assert.is_nil(value)
    assert.equal("denied", code)
    without_secrets(message)
    code = select(3, store:get("key"))
    assert.equal("denied", code)
    local watch = assert(store:watch("key"))
    code = select(3, watch:next(20))
    assert.equal("denied", code)
    store:close()
  end)

  it("says denied to the wrong password and to nobody, without telling the password", function()
    for _, user in ipairs{"worker:wr0ng", false} do
      local store = assert(kv.open(server:url("/allowed", user or nil)))
      local value, message, code = store:put("key", "1")
      assert.is_nil(value)
      assert.equal("denied", code)
      without_secrets(message)
      store:close()
    end
  end)
end)

describe("etcd over TLS", function()
  local server, folder
  setup(function()
    server = servers.etcd{tls = true, client_certificates = true, arguments = {"--unsafe-no-fsync"}}
    folder = server.certificates
  end)
  teardown(function() server:stop() end)

  local function try(tls, timeout)
    local store = assert(kv.open(server:url("/tls"), {tls = tls, connect_timeout = timeout}))
    local pair, message, code = store:put("key", "1", {timeout = timeout or 20})
    store:close()
    return pair and "ok" or code, message
  end

  it("verifies the server, and shows our certificate", function()
    local mine = {ca = folder.ca, cert = folder.client_cert, key = folder.client_key}
    assert.equal("ok", (try(mine)))
    local refused = {
      {words = "certificate", tls = {ca = folder.other_ca, cert = mine.cert, key = mine.key}},
      {words = "somebody.else", tls = {ca = mine.ca, cert = mine.cert, key = mine.key, server_name = "somebody.else"}},
      {words = "certificate", tls = {ca = mine.ca}},
    }
    -- They try again until their time is up: all at once.
    for i, result in ipairs(util.at_once(kv, #refused, function(n) return try(refused[n].tls, 3) end)) do
      assert.equal("unavailable", result[1], result[2])
      assert.truthy(result[2]:find(refused[i].words, 1, true), result[2])
    end
    assert.equal("ok", (try{verify = false, cert = mine.cert, key = mine.key}))
    assert.equal("ok", (try{ca = mine.ca, cert = mine.cert, key = mine.key, server_name = "localhost"}))
  end)

  it("says invalid of files that are no good", function()
    assert.equal("invalid", (try{ca = "/nowhere/at/all.pem"}))
    assert.equal("invalid", (try{ca = folder.ca, cert = folder.client_cert, key = folder.key}))
  end)
end)
