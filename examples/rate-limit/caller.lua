-- Calls a service that wants at most LIMIT calls within WINDOW seconds, from all machines together:
--
--   lua caller.lua NAME CALLS, with $KV_URL. See README.md.

local kv = require("kv")
local clock = require("kv.process").clock

local LIMIT, WINDOW = 3, 0.5
local PATIENCE = 30 -- seconds that a call may wait for its turn

-- Call fn() when it is our turn; nil, message, code when that does not come in time. A permit is kept for the whole
-- window, so no more than LIMIT calls begin within one.
local function limited(store, name, fn)
  local permit, message, code = store:semaphore(name, LIMIT, {ttl = 10})
  if not permit then return nil, message, code end
  permit, message, code = permit:acquire(PATIENCE)
  if not permit then return nil, message, code end
  local began = clock()
  local results = {kv.pcall(fn, began)}
  kv.spawn(function()
    kv.sleep(math.max(0, began + WINDOW - clock()))
    permit:release()
  end)
  if not results[1] then error(results[2], 0) end
  return results[2]
end

io.stdout:setvbuf("line")
local name, calls = arg[1] or "caller", tonumber(arg[2]) or 5
kv.run(function()
  local store = assert(kv.open())
  for _ = 1, calls do
    assert(limited(store, "the-service", function(now)
      print(("%s calls at %.4f"):format(name, now))
      return true
    end))
  end
end)
