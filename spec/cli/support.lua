-- Runs the installed-like launcher build/LUA/bin/kv as a user would, and collects what it says.
local kv = require("kv")
local native = require("spec.native")
local util = require("spec.support.util")

local cli = {}

local LAUNCHER = ("%s/%s/bin/kv"):format(os.getenv("KV_BUILD") or "build", os.getenv("KV_LUA") or "lua5.4")
local PATIENCE = 30

local function words_of(url, ...)
  local words = {LAUNCHER}
  if url then
    words[2], words[3] = "-s", url
  end
  for i = 1, select("#", ...) do words[#words + 1] = tostring((select(i, ...))) end
  return words
end

-- Start `kv -s url ...`. Returns the process and the names of the files that take its output.
function cli.start(url, ...)
  local folder = util.folder()
  local words = words_of(url, ...)
  words.stdout, words.stderr = folder .. "/out", folder .. "/err"
  return assert(native.spawn(words)), words.stdout, words.stderr
end

-- Run it to its end: exit status, output, messages.
function cli.run(url, ...)
  local process, out, err = cli.start(url, ...)
  local how, status = process:wait(PATIENCE)
  if not how then process:kill("KILL") end
  assert(how == "exit", ("%s: %s %s"):format(table.concat(words_of(url, ...), " "), how or "runs", status or ""))
  return status, util.read(out) or "", util.read(err) or ""
end

-- With pipes: process:write(), process:close_input(), process:line().
function cli.pipe(url, ...)
  local words = words_of(url, ...)
  words.pipe = true
  return assert(native.spawn(words))
end

-- A store of its own for one case.
function cli.url() return "local:" .. util.folder() .. "/store" end

-- Run a process's output lines up to one that contains `text`.
function cli.wait_line(process, text, seconds) return util.line_with(process, text, seconds or PATIENCE) end

-- A file that a command writes notes into, and the condition that the first one is there, to its end.
function cli.note() return util.folder() .. "/note" end

function cli.written(path)
  return function() return (util.read(path) or ""):find("\n", 1, true) end
end

-- Put into the store what the table says.
function cli.fill(url, values)
  local store = assert(kv.open(url))
  assert(store:put_many(values, {timeout = 60}))
  store:close()
end

-- {key = value} of all that is in the store.
function cli.contents(url)
  local store, found = assert(kv.open(url)), {}
  for _, pair in ipairs(assert(store:list(""))) do found[pair.key] = pair.value end
  store:close()
  return found
end

-- Each byte there is, once.
local bytes = {}
for i = 0, 255 do bytes[i + 1] = string.char(i) end
cli.all_bytes = table.concat(bytes)

cli.patience = PATIENCE

return cli
