--- A stand-in for Consul that answers every query at once, blocking or not: no real one can be made to. It prints its
-- port. `/tell/INDEX/KEYS` says what it answers from then on, for example `/tell/7/a=5,b=6`: the index, and keys with
-- the index that each was written at; its answer is the number of queries so far. `/tell/INDEX/KEYS/filtered`: it says,
-- as servers since 1.11 do, that there is more that may not be read. It ends when it is killed.
local serving = require("spec.support.serving")
local socket = require("socket")

local server = assert(socket.bind("127.0.0.1", 0))
local index, body, queries, filtered = "1", "[]", 0, ""

local function tell(path)
  local entries, wanted, keys, more = {}, path:match("^/tell/([^/]+)/([^/]*)(.*)$")
  index = wanted
  filtered = more == "/filtered" and "X-Consul-Results-Filtered-By-ACLs: true\r\n" or ""
  for key, at in keys:gmatch("(%w+)=(%d+)") do
    entries[#entries + 1] = ('{"LockIndex":0,"Key":"app/%s","Flags":%s,"Value":"dg==","CreateIndex":%s,' ..
      '"ModifyIndex":%s}'):format(key, at, at, at)
  end
  body = "[" .. table.concat(entries, ",") .. "]"
end

local function answer(path)
  if path:find("^/tell/") then
    tell(path)
    return "200 OK", tostring(queries)
  elseif path:find("^/v1/kv/") then
    queries = queries + 1
    return body == "[]" and "404 Not Found" or "200 OK", body ~= "[]" and body or ""
  end
  return "200 OK", '"127.0.0.1:8300"'
end

-- One request of a client; false when it has none any more.
local function serve(client)
  local line = client:receive()
  if not line then return false end
  while true do
    local header = client:receive()
    if not header then return false end
    if header == "" then break end
  end
  local path = line:match("^%u+ (%S+)")
  local status, text = answer(path)
  local sent = client:send(("HTTP/1.1 %s\r\nContent-Type: application/json\r\nX-Consul-Index: %s\r\n%s" ..
    "Content-Length: %d\r\n\r\n%s"):format(status, index, filtered, #text, text))
  return sent and not path:find("^/tell/") -- who tells waits for the end
end

serving(server, serve)
