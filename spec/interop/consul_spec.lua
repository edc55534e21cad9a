--- Locks shared with `consul lock`, which is Lock of Consul's Go api on the key PREFIX/.lock.
local kv = require("kv")
local cases = require("spec.interop.cases")
local native = require("spec.native")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local GO_FLAGS = "3304740253564472344" -- LockFlagValue of the Go api

describe("interop with consul lock", function()
  local server
  local ground = {kind = "consul", kinds = "consul", ttl = 3, release = cases.release_by_input}

  setup(function() server = servers.consul{} end)
  teardown(function() server:stop() end)

  local function http(method, path, body)
    local out = util.folder() .. "/answer"
    os.execute(("curl -s -X %s 'http://127.0.0.1:%d%s' -d '%s' >%s"):format(method, server.port, path, body or "", out))
    return util.read(out)
  end

  function ground.url(rest) return server:url(rest) end

  function ground.path(number) return ("jobs/%d/.lock"):format(number) end

  --- Its command says when it runs, and ends with its input.
  function ground.contend(path)
    return assert(native.spawn{servers.consul_program(), "lock", "-pass-stdin", (path:gsub("/%.lock$", "")),
      "echo held; cat; echo released", env = {("CONSUL_HTTP_ADDR=http://127.0.0.1:%d"):format(server.port)},
      pipe = true})
  end

  --- Its session would live 15 to 30 s on: it is ended here. Consul's lock-delay of 15 s then goes on.
  function ground.die(process, path)
    process:kill("KILL")
    local session = assert(http("GET", "/v1/kv/" .. path):match('"Session": *"([^"]+)"'))
    http("PUT", "/v1/session/destroy/" .. session)
  end

  function ground.remove(path) http("DELETE", "/v1/kv/" .. path) end

  cases.describe(ground)

  local function new_session(delay)
    return assert(http("PUT", "/v1/session/create", ('{"LockDelay": "%s", "TTL": "60s"}'):format(delay))
      :match('"ID": *"([^"]+)"'))
  end

  it("takes what the Go api has let go of and left there, and leaves nothing itself", function()
    local store = assert(kv.open(server:url("/app")))
    local session = new_session("1s")
    local acquire = ("/v1/kv/left?acquire=%s&flags=%s"):format(session, GO_FLAGS)
    assert.is_truthy(http("PUT", acquire, "theirs"):find("true"))
    local ours = assert(store:lock("left", {interop = "consul", value = "ours"}))
    local theirs = assert(ours:holder())
    assert.equal("theirs", theirs.value)
    cases.fails("timeout", ours:acquire(0))
    assert.is_truthy(http("PUT", ("/v1/kv/left?release=%s&flags=%s"):format(session, GO_FLAGS)):find("true"))
    assert.is_nil((ours:holder()))
    assert(ours:acquire(0))
    assert.is_true(ours.token > theirs.token)
    assert.is_truthy(http("GET", "/v1/kv/left"):find(GO_FLAGS))
    assert.is_truthy(http("PUT", acquire, "theirs"):find("false"))
    assert(ours:release())
    assert.equal("", http("GET", "/v1/kv/left"))
    -- And by the session's end, behind its lock-delay.
    assert.is_truthy(http("PUT", acquire, "theirs"):find("true"))
    http("PUT", "/v1/session/destroy/" .. session)
    cases.fails("timeout", ours:acquire(0))
    assert(ours:acquire(20))
    assert(ours:release())
    store:close()
  end)

  it("leaves keys alone that are none of a lock's", function()
    local store = assert(kv.open(server:url()))
    local pair = assert(store:put("data/x", "precious"))
    local ours = assert(store:lock("data/x", {interop = "consul"}))
    local message = cases.fails("failed", ours:acquire(20))
    assert.is_truthy(message:find("flags", 1, true), message)
    cases.fails("failed", ours:acquire(0))
    assert.same(pair, (assert(store:get("data/x"))))
    cases.fails("invalid", assert(store:lock("/data/y", {interop = "consul"})):acquire(20))
    store:close()
  end)

  it("many handles of ours on one key exclude each other, and leave no session", function()
    local store = assert(kv.open(server:url("/app")))
    local inside, most, rounds = 0, 0, 0
    kv.run(function()
      local tasks = {}
      for i = 1, 6 do
        tasks[i] = kv.spawn(function()
          local ours = assert(store:lock("busy", {interop = "consul"}))
          for round = 1, 5 do
            -- Some give up at any moment of it.
            if ours:acquire((i + round) % 3 == 0 and 0.004 * round or 30) then
              inside = inside + 1
              most = math.max(most, inside)
              kv.sleep(0.002)
              inside = inside - 1
              rounds = rounds + 1
              assert(ours:release())
            end
          end
        end)
      end
      util.join(tasks, 60)
    end)
    assert.equal(1, most)
    assert.is_true(rounds >= 20, rounds)
    -- Who gave up leaves in the background.
    util.eventually(function() return http("GET", "/v1/kv/busy") == "" end, "the key goes", 20)
    store:close()
    util.eventually(function() return not http("GET", "/v1/session/list"):find('"kv lock"') end, "sessions go", 20)
  end)
end)
