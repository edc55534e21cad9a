--- What is particular to Consul about locks: its sessions and its lock-delay. (Locks of others: spec/interop.)
local kv = require("kv")
local native = require("spec.native")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local function fails(code, value, message, actual)
  assert.is_nil(value)
  assert.equal(code, actual, message)
  return message
end

describe("consul lock", function()
  local server, store

  setup(function() server = servers.consul{} end)
  teardown(function() server:stop() end)
  before_each(function() store = assert(kv.open(server:url("/app"))) end)
  after_each(function() store:close() end)

  local function http(method, path, body)
    local out = util.folder() .. "/answer"
    os.execute(("curl -s -X %s 'http://127.0.0.1:%d%s' -d '%s' >%s"):format(method, server.port, path, body or "", out))
    return util.read(out)
  end

  local function count(path, what)
    local _, found = http("GET", path):gsub(what, "")
    return found
  end

  it("leaves neither keys nor sessions behind", function()
    for i = 1, 5 do
      local lock = assert(assert(store:lock("door" .. i % 2)):acquire(20))
      assert(lock:release())
    end
    local waiter = assert(store:lock("busy"))
    local lock = assert(assert(store:lock("busy")):acquire(20))
    fails("timeout", waiter:acquire(0.2))
    assert(lock:release())
    -- Who gave up leaves in the background.
    util.eventually(function() return count("/v1/kv/.kv/?recurse", '"Key"') == 0 end, "keys are deleted", 20)
    store:close()
    util.eventually(function() return count("/v1/session/list", '"kv lock"') == 0 end, "sessions are destroyed", 20)
  end)

  it("destroying a session in use makes the lock lost, and starts the lock-delay", function()
    local lock = assert(assert(store:lock("door", {ttl = 3})):acquire(20))
    local id = http("GET", "/v1/kv/.kv/lock/app%252Fdoor/lock"):match('"Session": *"([^"]+)"')
    assert.is_truthy(id)
    local start = native.now()
    http("PUT", "/v1/session/destroy/" .. id)
    assert(lock:wait_lost(10))
    assert.equal("lost", lock:state())
    fails("lost", lock:release())
    local other = assert(kv.open(server:url("/app")))
    local next_lock = assert(assert(other:lock("door")):acquire(20))
    assert.is_true(native.now() - start > 2, "it took " .. native.now() - start)
    assert.is_true(next_lock.token > lock.token)
    other:close()
  end)

  it("hands over quickly", function()
    kv.run(function()
      local tasks, times, last = {}, {}, native.now()
      for i = 1, 8 do
        tasks[i] = kv.spawn(function()
          local lock = assert(store:lock("busy"))
          for _ = 1, 10 do
            assert(lock:acquire(60))
            local now = native.now()
            times[#times + 1], last = now - last, now
            assert(lock:release())
          end
        end)
      end
      util.join(tasks, 120)
      -- Some may be held up by something else; a pause before the next look, or a lock-delay, would hold up all.
      table.sort(times)
      assert.equal(80, #times)
      assert.is_true(times[40] < 0.3, "the middle one of 80 rounds took " .. times[40])
    end)
  end)

  it("another acquire of the same handle is another hold for guards", function()
    local lock = assert(assert(store:lock("door")):acquire(20))
    local txn = store:txn():guard(lock):put("guarded", "old")
    assert(lock:release())
    assert(lock:acquire(20))
    fails("modified", txn:commit())
    assert(store:txn():guard(lock):put("guarded", "new"):commit())
    assert(lock:release())
    assert(store:delete("guarded"))
  end)

  it("names that look like refusals are names", function()
    local names = {'Permission denied', 'invalid session', 'a%2Fb', 'x", current session "y', "lock is already held"}
    for _, name in ipairs(names) do
      local lock = assert(assert(store:lock(name)):acquire(20))
      local other = assert(store:lock(name))
      fails("timeout", other:acquire(0))
      assert(lock:release())
      assert(other:acquire(20))
      assert(other:release())
    end
  end)
end)

describe("consul with its own minimum of sessions", function()
  it("raises short times to live, and says so", function()
    local server = servers.consul{session_ttl_min = "10s"}
    local store = assert(kv.open(server:url("/app")))
    local lock = assert(assert(store:lock("door", {ttl = 2})):acquire(20))
    assert.equal(10, lock.ttl)
    assert(lock:release())
    local lease = assert(store:lease(1))
    assert(store:put("leased", "v", {lease = lease}))
    assert(store:put("key", "v", {ttl = 3}))
    assert.is_true(store:exists("key"))
    util.eventually(function() return not store:exists("key") end, "the key goes before its session would", 9)
    assert.is_true(store:exists("leased"))
    assert(lease:revoke())
    assert.is_false(store:exists("leased"))
    fails("unsupported", store:put("key", "v", {ttl = 90000}))
    store:close()
    server:stop()
  end)
end)
