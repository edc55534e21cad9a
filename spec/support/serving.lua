--- The loop of a program that plays a server: prints the port, and calls serve(client) for each request that comes, one
-- at a time; false closes the connection.
local socket = require("socket")

local function accept(server)
  local client = server:accept()
  client:settimeout(5)
  client:setoption("tcp-nodelay", true)
  return client
end

local function forget(sockets, gone)
  gone:close()
  for i, one in ipairs(sockets) do
    if one == gone then table.remove(sockets, i) end
  end
end

return function(server, serve)
  local _, port = server:getsockname()
  print(port)
  io.stdout:flush()
  local sockets = {server}
  while true do
    for _, ready in ipairs((socket.select(sockets))) do
      if ready == server then
        sockets[#sockets + 1] = accept(server)
      elseif not serve(ready) then
        forget(sockets, ready)
      end
    end
  end
end
