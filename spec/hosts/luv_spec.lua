--- luv: the work of spec/hosts/ground.lua, beside its own timers and pipes.
local ground = require("spec.hosts.ground")
local native = require("spec.native")
local util = require("spec.support.util")
local uv = require("luv")

-- Resume, as a callback of luv's does; an error is raised by uv.run().
local function resume(co)
  local ok, problem = coroutine.resume(co)
  if not ok then error(debug.traceback(co, tostring(problem)), 0) end
end

local loop = {errors_end_the_program = true}
function loop.reset() end

-- From a callback: so that the loop runs.
function loop.start(fn)
  local timer = uv.new_timer()
  timer:start(0, 0, function()
    timer:close()
    resume(coroutine.create(fn))
  end)
end

-- A loop that hangs is stopped: those who wait are missed then.
function loop.run()
  local guard = uv.new_timer()
  guard:start(20000, 0, function() uv.stop() end)
  guard:unref()
  uv.run()
  guard:close()
  uv.run("nowait")
end

function loop.sleep(seconds)
  local co, timer = coroutine.running(), uv.new_timer()
  timer:start(math.ceil(seconds * 1000), 0, function()
    timer:close()
    resume(co)
  end)
  coroutine.yield()
end

function loop.idle() return not uv.loop_alive() end

function loop.echo(text)
  local co = coroutine.running()
  local pair = assert(uv.socketpair("stream", nil, {nonblock = true}, {nonblock = true}))
  local left, right = uv.new_pipe(false), uv.new_pipe(false)
  assert(left:open(pair[1]))
  assert(right:open(pair[2]))
  local got
  right:read_start(function(_, data) right:write(data) end)
  left:read_start(function(_, data)
    got = data
    left:close()
    right:close()
    resume(co)
  end)
  left:write(text)
  coroutine.yield()
  return got
end

describe("luv", function()
  ground.describe(loop, nil)
  ground.describe(loop, "luv")

  it("ends the program with what a task raised that nobody joins", function()
    local folder = util.folder()
    util.write(folder .. "/program.lua", [[
      local kv, uv = require("kv"), require("luv")
      kv.use("luv")
      coroutine.wrap(function()
        kv.spawn(function() kv.sleep(0.001) error("nobody joins this") end)
        kv.sleep(10)
      end)()
      uv.run()]])
    local process = assert(native.spawn{util.interpreter(), folder .. "/program.lua", stderr = folder .. "/said"})
    local how, code = process:wait(10)
    assert.equal("exit", how)
    assert.not_equal(0, code)
    local said = util.read(folder .. "/said")
    assert.is_truthy(said:find("nobody joins this", 1, true), said)
    util.remove(folder)
  end)
end)
