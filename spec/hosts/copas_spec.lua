--- copas: the work of spec/hosts/ground.lua, beside its own sockets. Debian's copas has no timers: what sleeps waits
-- for a datagram that nobody sends, and the loop is stepped with a short timeout.
local copas = require("copas")
local ground = require("spec.hosts.ground")
local kv = require("kv")
local native = require("spec.native")
local socket = require("socket")
local suite = require("spec.support.suite")

local alive, problems, sleepers -- alive[thread], of this case: one of a former case may end later

local loop = {}

function loop.reset() alive, problems, sleepers = {}, {}, {} end

function loop.start(fn)
  local mine, faults = alive, problems
  mine[fn] = true
  copas.addthread(function()
    copas.setErrorHandler(function(problem) faults[#faults + 1] = problem end)
    fn()
    mine[fn] = nil
  end)
end

-- A timer wheel as programs build it: a readable thing when the time has come.
function loop.sleep(seconds)
  local sleeper = {at = native.now() + seconds}
  function sleeper.getfd() return native.now() >= sleeper.at and 0 or -1 end
  function sleeper.dirty() return native.now() >= sleeper.at end
  function sleeper.receive()
    if native.now() >= sleeper.at then return "" end
    return nil, "timeout"
  end
  function sleeper.close() end
  sleepers[sleeper] = true
  copas.receive(sleeper, "*l")
  sleepers[sleeper] = nil
end

local function rest()
  local left = 1
  for sleeper in pairs(sleepers) do left = math.min(left, math.max(0, sleeper.at - native.now())) end
  return left
end

function loop.run()
  local globals = package.loaded._G
  local said = globals.print
  globals.print = function(problem) problems[#problems + 1] = tostring(problem) end
  local deadline = native.now() + 20
  while next(alive) and #problems == 0 and native.now() < deadline do copas.step(rest()) end
  globals.print = said
  if #problems > 0 then error(problems[1], 0) end
end

-- Nothing is readable any more, soon after the last thread has ended.
function loop.idle()
  for _ = 1, 20 do
    if not copas.step(0.01) then return true end
  end
  return false
end

function loop.echo(text)
  local listener = assert(socket.bind("127.0.0.1", 0))
  local _, port = listener:getsockname()
  local client = assert(socket.tcp())
  assert(copas.connect(client, "127.0.0.1", port))
  local server = assert(listener:accept())
  server:settimeout(0)
  copas.send(client, text .. "\n")
  copas.send(server, copas.receive(server) .. "\n")
  local got = copas.receive(client)
  for _, each in ipairs{listener, client, server} do each:close() end
  return got
end

describe("copas", function()
  ground.describe(loop, nil)
  ground.describe(loop, "copas")

  suite.case("has the clients of its servers closed after a handler that waited last", function(t)
    kv.use("copas")
    loop.reset()
    local listener = assert(socket.bind("127.0.0.1", 0))
    local _, port = listener:getsockname()
    copas.addserver(listener, function(client)
      local key = copas.receive(client)
      client:send(suite.plain_assert(t.store:put(key, "v")).value .. "\n")
      suite.plain_assert(t.store:get(key, {consistency = "strong"}))
      suite.plain_assert(t.store:ping())
    end, 0)
    local all
    loop.start(function()
      local client = assert(socket.tcp())
      assert(copas.connect(client, "127.0.0.1", port))
      copas.send(client, "key\n")
      local whole, _, part = copas.receive(client, "*a") -- until it is closed
      all = whole or part
      client:close()
    end)
    loop.run()
    assert.equal("v\n", all)
    kv.use(nil)
  end)
end)
