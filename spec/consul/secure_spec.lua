--- TLS and tokens on a real Consul.
local kv = require("kv")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local REFUSED = 3 -- seconds for what is to fail: a handshake has come to its end by then

local function fails(code, value, message, actual)
  assert.is_nil(value)
  assert.equal(code, actual, message)
  return message
end

describe("consuls", function()
  local server

  setup(function() server = servers.consul{tls = true, client_certificates = true} end)
  teardown(function() server:stop() end)

  local function open(tls, timeout, host)
    local url = server:url("/app")
    if host then url = url:gsub("127%.0%.0%.1", host) end
    return assert(kv.open(url, {tls = tls, timeout = timeout or 20}))
  end

  local function full()
    local files = server.certificates
    return {ca = files.ca, cert = files.client_cert, key = files.client_key}
  end

  it("works with the right certificates, for an address and for a name", function()
    for _, host in ipairs{"127.0.0.1", "localhost"} do
      local store = open(full(), 20, host)
      local pair = assert(store:put("key", "v"))
      assert.same(pair, assert(store:get("key")))
      local watch = assert(store:watch("key"))
      assert.equal("v", assert(watch:next(20)).value)
      assert(store:put("key", "w"))
      assert.equal("w", assert(watch:next(20)).value)
      watch:close()
      local values = {}
      for i = 1, 200 do values["many/" .. i] = "v" end
      assert(store:put_many(values))
      assert.equal(200, #assert(store:list("many")))
      assert(store:delete_tree(""))
      store:close()
    end
  end)

  it("certificate and key may be in one file", function()
    local files = server.certificates
    local both = util.folder() .. "/both.pem"
    util.write(both, util.read(files.client_cert) .. util.read(files.client_key))
    local store = open{ca = files.ca, cert = both}
    assert(store:ping())
    store:close()
  end)

  local function refused(what, tls, words, host)
    it("refuses " .. what, function()
      local store = open(tls(), REFUSED, host)
      for _, result in ipairs(util.put_and_get(kv, store)) do
        local message = fails("unavailable", result[1], result[2], result[3])
        assert.is_truthy(message:lower():find(words), message)
      end
      store:close()
    end)
  end

  refused("a certificate of an unknown authority", function()
    local tls = full()
    tls.ca = server.certificates.other_ca
    return tls
  end, "certificate")
  refused("a server of another name", function()
    local tls = full()
    tls.server_name = "elsewhere.example"
    return tls
  end, "elsewhere%.example")

  it("goes by tls.server_name when it is given", function()
    local tls = full()
    tls.server_name = "localhost"
    local store = open(tls)
    assert(store:put("key", "v"))
    store:close()
  end)

  it("verifies unless it is told not to", function()
    local tls = full()
    tls.ca = nil
    local store = open(tls, REFUSED)
    fails("unavailable", store:get("key"))
    store:close()
    tls.verify = false
    store = open(tls)
    assert(store:put("key", "v"))
    store:close()
  end)

  it("without a client certificate nothing is said", function()
    local store = open({ca = server.certificates.ca}, REFUSED)
    local put, get = (unpack or table.unpack)(util.put_and_get(kv, store))
    assert.is_nil(put[1])
    assert.is_truthy(put[3] == "unavailable" or put[3] == "unknown", put[2])
    assert.is_truthy(get[3] == "unavailable" or get[3] == "timeout", get[2])
    store:close()
  end)

  it("files that cannot be used are invalid", function()
    local files = server.certificates
    for _, tls in ipairs{{ca = "/nowhere/ca.pem"}, {ca = files.ca, cert = "/nowhere/cert.pem"},
      {ca = files.ca, cert = files.client_cert, key = files.key}} do
      local store = open(tls)
      fails("invalid", store:put("key", "v"))
      store:close()
    end
  end)

  it("a server that speaks no TLS is not available", function()
    local plain = servers.consul{}
    local tls = {ca = server.certificates.ca}
    local store = assert(kv.open("consuls://127.0.0.1:" .. plain.port, {timeout = REFUSED, tls = tls}))
    fails("unavailable", store:get("key"))
    store:close()
    store = assert(kv.open("consul://127.0.0.1:" .. server.port, {timeout = REFUSED}))
    local _, _, code = store:get("key")
    assert.is_truthy(code == "failed" or code == "unavailable", code)
    store:close()
    plain:stop()
  end)
end)

describe("consul with tokens", function()
  local server, master

  setup(function()
    server = servers.consul{acl = true}
    master = assert(kv.open(server:url("/app"), {token = server.token}))
  end)
  teardown(function()
    master:close()
    server:stop()
  end)

  local function policy(name, rules)
    local file = util.folder() .. "/rules.hcl"
    util.write(file, rules)
    server:ctl("acl", "policy", "create", "-name", name, "-rules", "@" .. file)
    local text = server:ctl("acl", "token", "create", "-policy-name", name)
    return assert(text:match("SecretID:%s*(%S+)")), assert(text:match("AccessorID:%s*(%S+)"))
  end

  it("the master token may do all", function()
    assert(master:put("key", "v"))
    assert.equal("v", assert(master:get("key")).value)
    util.eventually(function() return master:info().server_version:sub(1, 2) == "1." end, "the version is known")
    assert(master:delete_tree(""))
  end)

  it("no token and a wrong token are denied", function()
    for _, token in ipairs{"", "11111111-2222-3333-4444-555555555555"} do
      local store = assert(kv.open(server:url("/app"), {token = token ~= "" and token or nil}))
      local message = fails("denied", store:put("key", "v"))
      assert.is_nil(message:find(token == "" and "\0" or token, 1, true))
      fails("denied", store:put("key", "v", {ttl = 20}))
      fails("denied", store:delete("key"))
      fails("denied", store:delete_tree("key"))
      fails("denied", store:txn():put("key", "v"):commit())
      fails("denied", assert(store:lock("door")):acquire(20))
      if token ~= "" then
        fails("denied", store:get("key"))
        fails("denied", store:list(""))
        local watch = assert(store:watch("key"))
        fails("denied", watch:next(20))
      end
      store:close()
    end
  end)

  it("a token for a part may write there and nowhere else", function()
    local token = policy("part", 'key_prefix "app/mine/" { policy = "write" }\nkey_prefix "app/" { policy = "read" }')
    local store = assert(kv.open(server:url("/app"), {token = token}))
    assert(store:put("mine/key", "v"))
    assert(master:put("theirs", "v"))
    assert.equal("v", assert(store:get("theirs")).value)
    fails("denied", store:put("theirs", "w"))
    fails("denied", store:delete("theirs"))
    fails("denied", store:txn():put("mine/key", "w"):put("theirs", "w"):commit())
    assert.equal("v", assert(store:get("mine/key")).value)
    store:close()
    master:delete_tree("")
  end)

  it("a watch whose token is revoked says denied, and no false deletes", function()
    local token, accessor = policy("watching", 'key_prefix "app/" { policy = "write" }')
    local store = assert(kv.open(server:url("/app"), {token = token}))
    assert(master:put("key", "1"))
    local watch = assert(store:watch_tree(""))
    assert.equal("1", assert(watch:next(20)).value)
    server:ctl("acl", "token", "delete", "-id", accessor)
    local event, message, code
    for i = 2, 200 do
      assert(master:put("key", tostring(i)))
      event, message, code = watch:next(0.1)
      if event then assert.equal("put", event.type) end
      if code and code ~= "timeout" then break end
    end
    assert.equal("denied", code, message)
    store:close()
  end)

  -- This server leaves out of a listing what may not be read, without a word.
  it("a watch whose token may read less than before says denied, and no false deletes", function()
    local token = policy("narrowed", 'key_prefix "app/" { policy = "write" }')
    local store = assert(kv.open(server:url("/app"), {token = token}))
    for _, key in ipairs{"dir/hidden", "dir/1", "dir/2", "dir/3"} do assert(master:put(key, "v")) end
    local watch = assert(store:watch_tree("dir"))
    for _ = 1, 4 do assert.equal("put", assert(watch:next(20)).type) end
    local file = util.folder() .. "/rules.hcl"
    util.write(file, 'key_prefix "app/" { policy = "write" }\nkey "app/dir/hidden" { policy = "deny" }')
    server:ctl("acl", "policy", "update", "-name", "narrowed", "-rules", "@" .. file)
    -- The query that waits was allowed to read all; those after it are not.
    assert(master:delete("dir/1"))
    assert.equal("dir/1", assert(watch:next(10)).key)
    assert(master:delete("dir/2"))
    assert(master:put("dir/3", "w"))
    local event, message, code = watch:next(10)
    while event do
      assert.is_true(event.type == "put" or event.key == "dir/2", event.key)
      event, message, code = watch:next(10)
    end
    assert.equal("denied", code, message)
    store:close()
    master:delete_tree("")
  end)

  it("a watch with a token tells what is gone, and what came again meanwhile", function()
    local token = policy("all", 'key_prefix "app/" { policy = "write" }')
    local store = assert(kv.open(server:url("/app"), {token = token}))
    local values, known = {}, 0
    for i = 1, 150 do values["dir/" .. i] = "v" end
    assert(master:put_many(values))
    local watch = assert(store:watch_tree(""))
    for _ = 1, 150 do assert.equal("put", assert(watch:next(20)).type) end
    kv.run(function()
      local over = false
      local task = kv.spawn(function()
        for round = 1, 100 do
          for i = 1, 5 do
            assert(master:delete("dir/" .. i))
            assert(master:put("dir/" .. i, "round " .. round))
          end
        end
        over = true
      end)
      assert(master:delete("dir/150"))
      while not over do
        local event, message, code = watch:next(0.1)
        if not event then assert.equal("timeout", code, message) end
      end
      task:join()
    end)
    assert(master:put("end", "v"))
    repeat until assert(watch:next(10)).key == "end"
    assert(master:delete_tree("dir"))
    local told = {}
    while known < 149 do
      local event = assert(watch:next(10))
      if event.type == "delete" and not told[event.key] then known = known + 1 end
      told[event.key] = true
      assert.is_true(event.type == "delete" or tonumber(event.key:sub(5)) <= 5, event.key)
    end
    assert.is_nil(told["dir/150"])
    store:close()
    master:delete_tree("")
  end)

  it("many watches work where the directory that they have in common may not be listed", function()
    local strict = servers.consul{acl = true, arguments = {"-hcl", "acl { enable_key_list_policy = true }"}}
    local boss = assert(kv.open(strict:url("/app"), {token = strict.token}))
    local file = util.folder() .. "/rules.hcl"
    util.write(file, 'key_prefix "app/" { policy = "read" }')
    strict:ctl("acl", "policy", "create", "-name", "reads", "-rules", "@" .. file)
    local token = assert(strict:ctl("acl", "token", "create", "-policy-name", "reads"):match("SecretID:%s*(%S+)"))
    local store = assert(kv.open(strict:url("/app"), {token = token}))
    fails("denied", store:list("dir"))
    local watches = {}
    for i = 1, 40 do watches[i] = assert(store:watch("dir/key" .. i)) end
    for _, watch in ipairs(watches) do assert(watch:wait_synced(10)) end
    for i = 1, 40 do assert(boss:put("dir/key" .. i, "v")) end
    for _, watch in ipairs(watches) do assert.equal("v", assert(watch:next(10)).value) end
    store:close()
    boss:close()
    strict:stop()
  end)

  it("a token never shows", function()
    local secret = "deadbeef-0000-1111-2222-333333333333"
    local store = assert(kv.open(server:url("/app"), {token = secret}))
    local _, message = store:put("key", "v")
    assert.is_nil(message:find(secret, 1, true))
    assert.is_nil(tostring(store):find(secret, 1, true))
    store:close()
    fails("invalid", kv.open(server:url("/app"), {token = "a\r\nX-Other: b"}))
  end)
end)
