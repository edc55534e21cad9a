-- A cqueues program whose settings change while it runs: lua with_cqueues.lua, with $KV_URL. See README.md.
local cqueues = require("cqueues")
local kv = require("kv")
local settings = require("settings")

io.stdout:setvbuf("line")
local loop = cqueues.new()
loop:wrap(function()
  local store = assert(kv.open())
  local get = settings.follow(store, "config", function(name, value)
    print(("reloaded: %s is now %s"):format(name, value or "the default"))
  end)
  while true do
    print("working in " .. get("colour"))
    cqueues.sleep(tonumber(get("interval")) or 1)
  end
end)
-- The program's own sockets and timers go on beside it.
loop:wrap(function()
  while true do cqueues.sleep(0.01) end
end)
assert(loop:loop())
