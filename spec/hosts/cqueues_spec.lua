--- cqueues: the work of spec/hosts/ground.lua, beside its own timers and sockets.
local cqueues = require("cqueues")
local ground = require("spec.hosts.ground")
local socket = require("cqueues.socket")

local controller

local loop = {}
function loop.reset() controller = cqueues.new() end
function loop.start(fn) controller:wrap(fn) end
function loop.run() assert(controller:loop(20)) end -- those who still wait then are missed
function loop.sleep(seconds) cqueues.sleep(seconds) end
function loop.idle() return controller:empty() end
function loop.echo(text)
  local left, right = assert(socket.pair())
  local got
  controller:wrap(function() right:write(right:read("*l"), "\n") right:flush() end)
  left:write(text, "\n")
  left:flush()
  got = left:read("*l")
  left:close()
  right:close()
  return got
end

describe("cqueues", function()
  ground.describe(loop, nil)
  ground.describe(loop, "cqueues")
end)
