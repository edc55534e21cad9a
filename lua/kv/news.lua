--- A look for news that costs next to nothing: what a mirror does at every read.
--
-- LuaJIT does not compile calls of C functions, but it can read the byte that tells. It would move that read out of a
-- loop, being of the opinion that nobody else changes memory; a write in front of it that might concern the same byte
-- keeps it where it is.
local core = require("kv.core")
local scheduler = require("kv.scheduler")

local news = {}

local slow_poll = scheduler.poll

--- Hand out what has arrived, outside of a loop.
news.poll = slow_poll

--- To be called when the queue of this Lua state is there: it may be another one after fork().
function news.attach() end

local ok, ffi = pcall(require, "ffi")
if ok and rawget(_G, "jit") then
  local nothing, guard = ffi.new("uint8_t[1]"), ffi.new("uint8_t[1]")
  local flag = ffi.cast("const uint8_t *", nothing)

  function news.poll()
    guard[0] = guard[0] + 1
    if flag[0] ~= 0 then slow_poll() end
  end

  function news.attach()
    local address = core.pending_flag()
    if address then flag = ffi.cast("const uint8_t *", address) end
  end

  news.keep = nothing -- a pointer does not
end

return news
