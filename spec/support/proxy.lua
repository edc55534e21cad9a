--- Starts spec/support/proxy.c, a TCP proxy that misbehaves when told to; its file says which commands there are.
--
--    local proxy = require("spec.support.proxy").start(server.port)
--    proxy:tell("hold-answers")        proxy:number("connections")        proxy:stop()
local native = require("spec.native")

local Proxy = {}
Proxy.__index = Proxy

local PATIENCE = 30

local BUILD = os.getenv("KV_BUILD") or "build"

--- A proxy for a port (0: none, only the modes that play a server themselves).
function Proxy.start(target)
  local process = assert(native.spawn{BUILD .. "/support/proxy", tostring(target), pipe = true})
  local port = tonumber((assert(process:line(PATIENCE), "the proxy did not start")))
  return setmetatable({process = process, port = port}, Proxy)
end

local function ask(self, command)
  assert(self.process:write(command .. "\n"))
  return assert(self.process:line(PATIENCE))
end

function Proxy:tell(command)
  local answer = ask(self, command)
  if answer ~= "ok" then error("proxy: " .. command .. ": " .. answer, 2) end
end

function Proxy:number(command)
  return assert(tonumber(ask(self, command)))
end

function Proxy:stop()
  self.process:kill("KILL")
  self.process:wait(5)
end

return Proxy
