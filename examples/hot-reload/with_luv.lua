-- A luv program whose settings change while it runs: lua with_luv.lua, with $KV_URL. See README.md.
local uv = require("luv")
local kv = require("kv")
local settings = require("settings")

io.stdout:setvbuf("line")
kv.use("luv")

-- Everything that may wait is in a coroutine; callbacks of luv's do not wait.
local function main()
  local store = assert(kv.open())
  local get = settings.follow(store, "config", function(name, value)
    print(("reloaded: %s is now %s"):format(name, value or "the default"))
  end)
  local timer = uv.new_timer()
  local function work()
    print("working in " .. get("colour"))
    timer:start(math.ceil((tonumber(get("interval")) or 1) * 1000), 0, work)
  end
  work()
end

local ok, problem = coroutine.resume(coroutine.create(main))
if not ok then error(problem, 0) end
uv.run()
