--- Small things that many specs need: waiting for a condition, temporary folders, files.
local native = require("spec.native")

local util = {}

local folders = {}

--- Poll `condition` until it gives something true, and return that. Fails after `seconds` (10) with `what` and the last
-- error. `sleep` is native.sleep, which blocks; a task passes kv.sleep.
function util.eventually(condition, what, seconds, sleep)
  local deadline = native.now() + (seconds or 10)
  local rest = sleep or native.sleep
  local pause = 0.002
  local last
  repeat
    local ok, value = pcall(condition)
    if ok and value then return value end
    last = value
    rest(pause)
    pause = math.min(pause * 1.5, 0.05)
  until native.now() > deadline
  error(("not within %s s: %s (last: %s)"):format(seconds or 10, what or "the condition", tostring(last)), 2)
end

--- As eventually(), in a task: PUC 5.1 cannot yield inside of pcall, so errors pass through.
function util.eventually_task(kv, condition, what, seconds)
  local deadline = native.now() + (seconds or 10)
  repeat
    local value = condition()
    if value then return value end
    kv.sleep(0.005)
  until native.now() > deadline
  error(("not within %s s: %s"):format(seconds or 10, what or "the condition"), 2)
end

--- fn(i) for i from 1 to `count`, in tasks, all at once: what each returned, as tables.
function util.at_once(kv, count, fn)
  return kv.run(function()
    local tasks, results = {}, {}
    for i = 1, count do tasks[i] = kv.spawn(function() results[i] = {fn(i)} end) end
    for i = 1, count do tasks[i]:join() end
    return results
  end)
end

--- The same through a proxy that lets no answer pass before all have asked, however quick the server is.
function util.asked_at_once(kv, count, proxy, fn)
  proxy:tell("now hold-answers")
  local asked = 0
  return util.at_once(kv, count, function(i)
    asked = asked + 1
    if asked == count then proxy:tell("now pass") end
    return fn(i)
  end)
end

--- What a put and a get return, as at_once does. Where they are refused they try until their time is up: both at once.
function util.put_and_get(kv, store)
  return util.at_once(kv, 2, function(i)
    if i == 1 then return store:put("key", "v") end
    return store:get("key")
  end)
end

--- Wait until these tasks have ended, for `seconds` at most each. Fails when one has not, or gave a code.
function util.join(tasks, seconds)
  for i, task in ipairs(tasks) do
    local _, message, code = task:join(seconds)
    if code then error(("task %d: %s (%s)"):format(i, tostring(message), code), 2) end
  end
end

--- How long does fn(...) take? Returns seconds and what fn returned (up to three values).
function util.timed(fn, ...)
  local start = native.now()
  local a, b, c = fn(...)
  return native.now() - start, a, b, c
end

--- A new temporary folder, removed by remove_folders() or when the program ends.
function util.folder()
  local path = assert(native.tempdir())
  folders[#folders + 1] = path
  return path
end

local function quoted(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

function util.remove(path)
  assert(path:find("kv-spec-", 1, true), "only temporary folders are removed")
  os.execute("rm -rf " .. quoted(path))
end

function util.remove_folders()
  for _, path in ipairs(folders) do util.remove(path) end
  folders = {}
end

function util.read(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read("*a")
  file:close()
  return text
end

function util.write(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  file:close()
end

--- The names in a folder of /proc, e.g. "fd" or "task", counted.
function util.count_proc(what)
  local count = 0
  for _ in require("lfs").dir("/proc/self/" .. what) do count = count + 1 end
  return count - 2
end

--- What runs this program, so that a spec can start another like it.
function util.interpreter()
  local lowest = 0
  while arg[lowest - 1] do lowest = lowest - 1 end
  return arg[lowest]
end

--- Start Lua with a script and arguments, its input and output ours.
function util.lua(script, ...)
  return assert(native.spawn{util.interpreter(), script, pipe = true, ...})
end

-- The end of the program removes what a spec forgot: 5.1 knows __gc of userdata only.
local function at_end()
  util.remove_folders()
end
if newproxy then -- luacheck: ignore 113
  util.guard = newproxy(true) -- luacheck: ignore 113
  getmetatable(util.guard).__gc = at_end
else
  util.guard = setmetatable({}, {__gc = at_end})
end

-- Read lines of a process up to one for which found(line) is true, or gives something; within `seconds` in all.
local function read_lines(process, what, found, seconds)
  local deadline, seen = native.now() + seconds, {}
  while true do
    local line, problem = process:line(math.max(deadline - native.now(), 0.01))
    if not line then error(("no line %s: %s; seen:\n%s"):format(what, problem, table.concat(seen, "\n")), 3) end
    seen[#seen + 1] = line
    local first, second = found(line)
    if first then return first, second end
  end
end

-- The next line of a process that contains `text`.
function util.line_with(process, text, seconds)
  local line = read_lines(process, ("with %q"):format(text), function(line)
    return line:find(text, 1, true) and line
  end, seconds)
  return line
end

-- What the pattern captures in the next line that matches it, two captures at the most.
function util.line_like(process, pattern, seconds)
  local first, second = read_lines(process, ("like %q"):format(pattern), function(line)
    return line:match(pattern)
  end, seconds)
  return first, second
end

return util
