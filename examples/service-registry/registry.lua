-- A service registry: a service is listed for as long as it is healthy and alive.
--
--   lua registry.lua serve SERVICE ADDRESS [CHECK COMMAND...]     be an instance (until it is killed)
--   lua registry.lua follow SERVICE                               print who is there, and every change
--
-- The store is $KV_URL. An instance writes services/SERVICE/ADDRESS with a time to live, and again and again while its
-- check succeeds. One that hangs, is killed or is ill is not written again, and goes away by itself.

local kv = require("kv")

local TTL, PERIOD = 3, 1 -- seconds; servers that cannot do so short a time raise it

-- What Lua 5.1 calls 0, others call true.
local function succeeds(command)
  local result = os.execute(command)
  return result == true or result == 0
end

local function serve(store, service, address, check)
  local key, listed = ("services/%s/%s"):format(service, address), false
  while true do
    local healthy = check == "" or succeeds(check)
    if healthy then
      -- While the store is away the instance works on; it is listed again when the store is back.
      local ok, message = store:put(key, os.date("!%H:%M:%S"), {ttl = TTL})
      if not ok then io.stderr:write(message, "\n") end
    end
    if healthy ~= listed then print(address, healthy and "is healthy" or "is ill: not listed much longer") end
    listed = healthy
    kv.sleep(PERIOD)
  end
end

-- Addresses, sorted.
local function shown(addresses)
  local list = {}
  for address in pairs(addresses) do list[#list + 1] = address end
  table.sort(list)
  return #list > 0 and table.concat(list, " ") or "nobody"
end

local function follow(store, service)
  local addresses = {}
  local watch = assert(store:watch_tree("services/" .. service, {values = false}))
  while true do
    local event = assert(watch:next())
    local address = event.key:match("[^/]+$")
    local new = event.type == "put" and not addresses[address]
    addresses[address] = event.type == "put" or nil
    if new or event.type == "delete" then
      print(("%s %s; now: %s"):format(new and "came" or "gone", address, shown(addresses)))
    end
  end
end

io.stdout:setvbuf("line")
local mode, service, address = arg[1], arg[2], arg[3]
if mode == "serve" and address then
  serve(assert(kv.open()), service, address, table.concat(arg, " ", 4))
elseif mode == "follow" and service then
  follow(assert(kv.open()), service)
else
  io.stderr:write("usage: registry.lua serve SERVICE ADDRESS [CHECK COMMAND...] | follow SERVICE\n")
  os.exit(2)
end
