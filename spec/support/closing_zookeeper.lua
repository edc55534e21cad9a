--- Plays a ZooKeeper that closes each connection right after a session is there: lua closing_zookeeper.lua PORT
local serving = require("spec.support.serving")
local socket = require("socket")

local server = assert(socket.bind("127.0.0.1", tonumber(arg[1])))

-- Length, version, time to live (10 s), number, password of 16 bytes, no reading alone.
local ANSWER = "\0\0\0\37" .. "\0\0\0\0" .. "\0\0\39\16" .. "\0\0\0\0\0\0\0\7" .. "\0\0\0\16" .. ("p"):rep(16) .. "\0"

serving(server, function(client)
  if client:receive(49) then client:send(ANSWER) end -- what a client begins with has that many bytes
  socket.sleep(0.01) -- so that he sees it before the end
  return false
end)
