--- A program that ends in the middle of things: lua spec/support/leaving.lua URL HOW
-- It has writes, reads, a watch with a callback, a held lock, a waiter and a lease in flight when it ends. HOW:
--   return, error   by the end of the main chunk, or by an error there
--   exit, quick     os.exit(0, true) closes the state; os.exit(0) does not
--   task            os.exit(0, true) from inside of a task
--   raised          an error out of kv.run
--   stopped         as return, with the collector stopped
--   frozen          as return, after the store was closed
local kv = require("kv")

local url, how = arg[1], arg[2]
local store = assert(kv.open(url, {timeout = 60})) -- whoever waited for an answer at the end would be seen
local mirror = assert(store:mirror(""))
mirror:on_change(function(event) assert(event.key) end)
local held = assert(assert(store:lock("held")):acquire(10))
local lease = assert(store:lease(10))
assert(store:put("leased", "v", {lease = lease}))
assert(store:put("kept", "v", {keep_alive = true}))
local watch = assert(store:watch_tree(""))

local function fill()
  for i = 1, 200 do
    kv.spawn(function() store:put("key/" .. i, ("x"):rep(10000)) end)
    kv.spawn(function() store:get("key/" .. i) end)
  end
  kv.spawn(function() assert(store:lock("held")):acquire() end)
  kv.spawn(function() held:wait_lost() end)
  kv.spawn(function() while watch:next() do end end) -- luacheck: ignore 542
end

local function main()
  fill()
  kv.sleep(0)
  if how == "task" then os.exit(0, true) end
  if how == "raised" then error("out of kv.run") end
end

-- Leave everything in flight: a loop of the program's own that makes a few steps.
kv.use{}
if how == "task" then
  kv.run(main)
elseif how == "raised" then
  kv.run(main)
else
  main()
  for _ = 1, 3 do kv.step() end
end
if how == "error" then error("at the end") end
if how == "exit" then os.exit(0, true) end
if how == "quick" then os.exit(0) end
if how == "stopped" then collectgarbage("stop") end
if how == "frozen" then store:close() end
