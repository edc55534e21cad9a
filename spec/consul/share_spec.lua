--- Gets and puts that are asked for at once share a transaction: it must show in nothing but their number.
local kv = require("kv")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local COUNT = 100

describe("consul, many at once", function()
  local server, store

  setup(function() server = servers.consul{acl = true} end)
  teardown(function() server:stop() end)
  before_each(function() store = assert(kv.open(server:url("/app"), {token = server.token})) end)
  after_each(function()
    store:delete_tree("")
    store:close()
  end)

  local function at_once(fn) return util.at_once(kv, COUNT, fn) end

  local function key(i) return ("key/%d"):format(i) end

  local function put_all(value)
    return at_once(function(i) return store:put(key(i), value .. i) end)
  end

  it("puts share revisions, and each pair is right", function()
    local proxy = proxies.start(server.port)
    local far = assert(kv.open("consul://127.0.0.1:" .. proxy.port .. "/app", {token = server.token, timeout = 60}))
    assert(far:ping())
    local put = util.asked_at_once(kv, COUNT, proxy, function(i) return far:put(key(i), "v" .. i) end)
    far:close()
    proxy:stop()
    local seen, distinct = {}, 0
    for i = 1, COUNT do
      local pair = assert(unpack and unpack(put[i]) or table.unpack(put[i]))
      assert.equal(pair.revision, pair.created)
      if not seen[pair.revision] then distinct = distinct + 1 end
      seen[pair.revision] = true
    end
    assert.is_true(distinct < COUNT / 2, distinct .. " transactions")
    local got = at_once(function(i) return store:get(key(i)) end)
    for i = 1, COUNT do assert.same(put[i][1], got[i][1]) end
    local again = put_all("w")
    for i = 1, COUNT do
      assert.is_true(again[i][1].revision > put[i][1].revision)
      assert.equal(put[i][1].created, again[i][1].created)
    end
  end)

  it("puts of one key each have a revision of their own", function()
    local seen, last = {}, nil
    for _, result in ipairs(at_once(function(i) return store:put(i % 2 == 0 and "one" or "other", tostring(i)) end)) do
      local pair = assert(result[1], result[2])
      local name = pair.key .. pair.revision
      assert.is_nil(seen[name])
      seen[name] = pair.value
      if pair.key == "one" and (not last or pair.revision > last) then last = pair.revision end
    end
    assert.equal(seen["one" .. last], assert(store:get("one")).value)
  end)

  it("keys that are not there do not hide those that are", function()
    for _ = 1, 3 do
      for i = 1, COUNT, 3 do assert(store:put(key(i), "v" .. i)) end
      for i, result in ipairs(at_once(function(i) return store:get(key(i)) end)) do
        assert.is_nil(result[2])
        assert.equal(i % 3 == 1 and "v" .. i or nil, result[1] and result[1].value)
      end
      for i, result in ipairs(at_once(function(i) return store:exists(key(i)) end)) do
        assert.equal(i % 3 == 1, result[1])
      end
    end
  end)

  it("what may not be read or written is denied, and the rest is done", function()
    local file = util.folder() .. "/rules.hcl"
    util.write(file, 'key_prefix "app/" { policy = "write" }\nkey_prefix "app/key/7" { policy = "deny" }')
    server:ctl("acl", "policy", "create", "-name", "shared", "-rules", "@" .. file)
    local token = assert(server:ctl("acl", "token", "create", "-policy-name", "shared"):match("SecretID:%s*(%S+)"))
    put_all("before")
    local limited = assert(kv.open(server:url("/app"), {token = token}))
    local function check(results, value)
      for i, result in ipairs(results) do
        if tostring(i):sub(1, 1) == "7" then
          assert.equal("denied", result[3], result[2])
        else
          assert.equal(value .. i, assert(result[1], result[2]).value)
        end
      end
    end
    check(at_once(function(i) return limited:get(key(i)) end), "before")
    check(at_once(function(i) return limited:put(key(i), "after" .. i) end), "after")
    for i, result in ipairs(at_once(function(i) return store:get(key(i)) end)) do
      assert.equal((tostring(i):sub(1, 1) == "7" and "before" or "after") .. i, result[1].value)
    end
    limited:close()
  end)

  it("makes keys permanent that would have gone", function()
    local lease = assert(store:lease(20))
    for i = 1, COUNT, 10 do assert(store:put(key(i), "leased", {lease = lease})) end
    for i, result in ipairs(put_all("v")) do assert.equal("v" .. i, assert(result[1], result[2]).value) end
    assert(lease:revoke())
    for i = 1, COUNT, 10 do assert.equal("v" .. i, assert(store:get(key(i))).value) end
  end)

  it("large values among small ones", function()
    local sizes = {0, 10, 16384, 16385, 40000, 150000}
    local function value(i) return string.char(97 + i % 26):rep(sizes[i % #sizes + 1]) end
    at_once(function(i) return assert(store:put(key(i), value(i))) end)
    for _ = 1, 2 do
      for i, result in ipairs(at_once(function(i) return store:get(key(i)) end)) do
        assert.is_true(value(i) == assert(result[1], result[2]).value)
      end
    end
  end)

  it("answers that are lost make every put unknown, and nothing is put twice", function()
    put_all("before")
    local proxy = proxies.start(server.port)
    local far = assert(kv.open("consul://127.0.0.1:" .. proxy.port .. "/app", {token = server.token, timeout = 20}))
    assert(far:put("first", "v")) -- a connection is there then, and nobody uses it when the version is known
    util.eventually(function() return far:info().server_version:sub(1, 2) == "1." end, "the version is known")
    proxy:tell("now drop-answers")
    local put = at_once(function(i) return far:put(key(i), "after" .. i, {timeout = 1}) end)
    local unknown = 0
    for _, result in ipairs(put) do
      assert.is_nil(result[1])
      if result[3] == "unknown" then unknown = unknown + 1 end
      assert.is_truthy(("unknown timeout unavailable"):find(result[3], 1, true), result[3])
    end
    assert.is_true(unknown > 0)
    proxy:tell("now pass")
    for i, result in ipairs(at_once(function(i) return store:get(key(i)) end)) do
      local value = assert(result[1], result[2]).value
      if put[i][3] ~= "unknown" then assert.equal("before" .. i, value) end
      assert.is_truthy(value == "before" .. i or value == "after" .. i)
    end
    far:close()
    put_all("later")
    for i, result in ipairs(at_once(function(i) return store:get(key(i)) end)) do
      assert.equal("later" .. i, assert(result[1], result[2]).value)
    end
    proxy:stop()
  end)

  it("some are cancelled and the others are not", function()
    put_all("v")
    local got = kv.run(function()
      local tasks, results = {}, {}
      for i = 1, COUNT do
        tasks[i] = kv.spawn(function()
          if i % 2 == 0 then results[i] = {store:get(key(i))} else results[i] = {store:put(key(i), "w" .. i)} end
        end)
      end
      kv.sleep(0)
      for i = 1, COUNT, 5 do tasks[i]:cancel() end
      for i = 1, COUNT do tasks[i]:join() end
      return results
    end)
    for i, result in ipairs(got) do
      local value = result[1] and result[1].value
      if i % 5 == 1 then
        assert.is_truthy(value or result[3] == "cancelled" or result[3] == "unknown", result[2])
      else
        assert.equal((i % 2 == 0 and "v" or "w") .. i, value)
      end
    end
  end)
end)
