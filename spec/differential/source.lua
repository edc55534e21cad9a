--- Programs as Lua that people can read, and with little work run.
local operations = require("spec.differential.operations")
local Run = require("spec.differential.run_program").Run

local text = {}

function text.string(value)
  local first = value:sub(1, 1)
  if #value > 60 and value == first:rep(#value) then return ("(%s):rep(%d)"):format(text.string(first), #value) end
  return '"' .. value:gsub('[%c"\\\127-\255]', function(byte) return ("\\%03d"):format(byte:byte()) end) .. '"'
end

function text.strings(list)
  local parts = {}
  for i, value in ipairs(list) do parts[i] = text.string(value) end
  return table.concat(parts, ", ")
end

--- Options as a further argument, or nothing.
function text.options(options, more)
  local parts = {}
  for name, value in pairs(options) do
    parts[#parts + 1] = ("%s = %s"):format(name, type(value) == "string" and text.string(value) or tostring(value))
  end
  table.sort(parts)
  if more then parts[#parts + 1] = more end
  return #parts > 0 and (", {%s}"):format(table.concat(parts, ", ")) or ""
end

function text.life(life)
  local kind = life and life.kind or "plain"
  if kind == "plain" then return "" end
  if kind == "lease" then return (", {lease = lease%d}"):format(life.lease) end
  if kind == "keep" then return ", {keep_alive = true}" end
  return (", {ttl = %g}"):format(kind == "long" and Run.LONG_SECONDS or Run.MORTAL_SECONDS)
end

function text.previous(previous)
  if previous.none then return "nil" end
  if previous.wrong then return "2 ^ 52" end
  if previous.zero then return "0" end
  local nth = (previous.nth or 1) > 1 and ("[%d]"):format(previous.nth) or ""
  return ("r%d%s%s"):format(previous.ref, nth, previous.plain and ".revision" or "")
end

local source = {}

--- One step.
function source.step(step)
  return operations[step.op].show(step, text)
end

local function opening(program, name)
  if name == "s1" then return 'local s1 = s0:sub("a")' end
  local prefix = Run.PREFIXES[name]
  local place = prefix == "" and "PREFIX" or ('PREFIX .. "/%s"'):format(prefix)
  local portable = program.portable and ", portable = true" or ""
  return ("local %s = kv.open(URL, {prefix = %s%s})"):format(name, place, portable)
end

--- The whole program: lines, each indented by `indent`; the step at `mark` is marked.
function source.program(program, indent, mark)
  local used, lines = {s0 = true}, {}
  for _, step in ipairs(program.steps) do
    if step.store then used[step.store] = true end
  end
  for _, name in ipairs{"s0", "s1", "s2", "s3"} do
    if used[name] then lines[#lines + 1] = indent .. opening(program, name) end
  end
  for at, step in ipairs(program.steps) do
    lines[#lines + 1] = indent .. source.step(step) .. (at == mark and "   -- differs" or "")
  end
  return table.concat(lines, "\n")
end

return source
