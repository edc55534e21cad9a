-- A program whose settings live in the store and change while it runs.
--
--   lua examples/config_watcher.lua [URL [DIRECTORY]]      default: $KV_URL, and "config"
--
-- and beside it, in another terminal:
--
--   kv -s URL put config/colour green
--
-- The mirror is a copy of the directory in memory, kept up to date by a watch: reading it costs what reading a
-- table costs, and it goes on with the last known values while the server is away.

local kv = require("kv")

local url, directory = arg[1] or os.getenv("KV_URL"), arg[2] or "config"
if not url then
  io.stderr:write("usage: lua config_watcher.lua URL [DIRECTORY]   (for example local:/tmp/try)\n")
  os.exit(2)
end

local DEFAULTS = {colour = "blue", interval = "2"}

kv.run(function()
  local store = assert(kv.open(url))
  local mirror = assert(store:mirror(directory))
  if not mirror:wait_ready(5) then print("no answer yet: starting with the defaults") end

  local function setting(name) return mirror:get(directory .. "/" .. name) or DEFAULTS[name] end

  -- One task reacts to changes...
  kv.spawn(function()
    local watch = assert(store:watch_tree(directory, {initial = false}))
    while true do
      local event = assert(watch:next())
      print(("changed: %s %s %s"):format(event.type, event.key, event.value or ""))
    end
  end)

  -- ...and one does the program's work with whatever is valid now.
  while true do
    print(("working in %s (settings are %.1f s old)"):format(setting("colour"), mirror:age()))
    kv.sleep(tonumber(setting("interval")) or 2)
  end
end)
