--- Stands between a client and a server that speaks HTTP, and fails at a certain request: of those whose first line
-- matches PATTERN (as Lua has them) it passes the first COUNT on. Then:
--
--    lose    each further one is closed upon, and the server is not asked
--    end     it is over right behind the last answer, as a server that was killed
--
--    lua between.lua SERVER_PORT PATTERN COUNT lose|end
--
-- It prints its port.
local serving = require("spec.support.serving")
local socket = require("socket")

local target, pattern, left, what = tonumber(arg[1]), arg[2], tonumber(arg[3]), arg[4]
local server = assert(socket.bind("127.0.0.1", 0))

local function read_head(from)
  local first, length, lines = from:receive(), 0, {}
  if not first then return nil end
  while true do
    local line = from:receive()
    if not line or line == "" then break end
    length = tonumber(line:lower():match("^content%-length: *(%d+)")) or length
    local name = line:lower():match("^[%w-]+")
    if name ~= "content-length" and name ~= "connection" then lines[#lines + 1] = line end
  end
  return first, lines, length
end

-- By HTTP/1.0, which ends an answer with the connection.
local function ask(first, lines, body)
  local to = assert(socket.connect("127.0.0.1", target))
  assert(to:send(("%s\r\n%s\r\nContent-Length: %d\r\n\r\n%s"):format(first:gsub("HTTP/1.1", "HTTP/1.0"),
    table.concat(lines, "\r\n"), #body, body)))
  local status, headers = read_head(to)
  local answer = to:receive("*a") or ""
  to:close()
  return status:gsub("HTTP/1.0", "HTTP/1.1"), headers, answer
end

-- False: the connection is over.
local function serve(client)
  local first, lines, length = read_head(client)
  if not first then return false end
  local body = length > 0 and client:receive(length) or ""
  local counts = first:find(pattern) ~= nil
  if counts and left == 0 then return false end
  local status, headers, answer = ask(first, lines, body)
  if counts then left = left - 1 end
  local ends = counts and left == 0 and what == "end"
  if ends then
    headers[#headers + 1] = "Connection: close"
    server:close()
  end
  client:send(("%s\r\n%s\r\nContent-Length: %d\r\n\r\n%s"):format(status, table.concat(headers, "\r\n"), #answer,
    answer))
  if ends then os.exit(0) end
  return true
end

serving(server, serve)
