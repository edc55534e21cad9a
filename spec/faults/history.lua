--- Histories: what each client process did and saw, a line each, written before it is done and after it was answered:
-- a process that is killed leaves what it had begun.
--
--    TIME WORKER invoke NUMBER KIND FIELD...       an operation begins
--    TIME WORKER ok|fail|unknown NUMBER FIELD...   it ends (fail: CODE MESSAGE; certainly not applied)
--    TIME WORKER note KIND FIELD...                something seen in passing
--
-- separated by tabs. Times are of the machine's monotonic clock, one for all processes. A file may end in half a line.
local native = require("spec.native")
local util = require("spec.support.util")

local history = {}

local NONE = "\\n" -- a field that is nil

local escapes = {["\t"] = "\\t", ["\n"] = "\\l", ["\\"] = "\\\\"}
local plain = {["\\t"] = "\t", ["\\l"] = "\n", ["\\\\"] = "\\"}

local function packed(value)
  if value == nil then return NONE end
  if type(value) == "number" and value % 1 == 0 then return ("%.0f"):format(value) end
  return (tostring(value):gsub("[\t\n\\]", escapes))
end

local function unpacked(text)
  if text == NONE then return nil end
  return (text:gsub("\\[tl\\]", plain))
end

-- ------------------------------------------------------------------ writing

local Log = {}
Log.__index = Log

--- Append to a file.
function history.open(path)
  local file = assert(io.open(path, "ab"))
  file:setvbuf("no") -- one write per line: a line is there before what it says begins
  return setmetatable({file = file, number = 0}, Log)
end

local function write(self, time, worker, what, ...)
  local fields = {("%.6f"):format(time), worker, what}
  for i = 1, select("#", ...) do fields[#fields + 1] = packed((select(i, ...))) end
  assert(self.file:write(table.concat(fields, "\t"), "\n"))
end

--- An operation begins: its number.
function Log:invoke(worker, kind, ...)
  self.number = self.number + 1
  write(self, native.now(), worker, "invoke", self.number, kind, ...)
  return self.number
end

function Log:ok(worker, number, ...) write(self, native.now(), worker, "ok", number, ...) end
function Log:fail(worker, number, ...) write(self, native.now(), worker, "fail", number, ...) end
function Log:unknown(worker, number, ...) write(self, native.now(), worker, "unknown", number, ...) end
function Log:note(worker, kind, ...) write(self, native.now(), worker, "note", kind, ...) end

function Log:close() self.file:close() end

-- ------------------------------------------------------------------ reading

local function split(line)
  local fields, count = {}, 0
  for field in (line .. "\t"):gmatch("([^\t]*)\t") do
    count = count + 1
    fields[count] = unpacked(field)
  end
  return fields, count
end

-- {kind=, worker=, call=, ret=, outcome=, args={...}, result={...}}
local function begin(open, list, fields)
  local op = {worker = fields[2], call = tonumber(fields[1]), kind = fields[5], args = {}, outcome = "unknown"}
  for i = 6, fields.count do op.args[i - 5] = fields[i] end
  open[fields[2] .. " " .. fields[4]] = op
  list[#list + 1] = op
end

local function finish(open, fields)
  local name = fields[2] .. " " .. fields[4]
  local op = open[name]
  if not op then return end
  open[name] = nil
  op.ret, op.outcome, op.result = tonumber(fields[1]), fields[3], {}
  for i = 5, fields.count do op.result[i - 4] = fields[i] end
end

--- Read files: operations {worker=, kind=, args=, call=, outcome="ok"|"fail"|"unknown", ret=, result=}, and notes
-- {worker=, kind=, time=, args=}, each in the order of its file.
function history.read(paths)
  local operations, notes = {}, {}
  for _, path in ipairs(paths) do
    local open = {}
    for line in assert(util.read(path)):gmatch("([^\n]*)\n") do
      local fields, count = split(line)
      fields.count = count
      local what = fields[3]
      if what == "invoke" and count >= 5 then
        begin(open, operations, fields)
      elseif what == "note" and count >= 4 then
        local note = {worker = fields[2], time = tonumber(fields[1]), kind = fields[4], args = {}}
        for i = 5, count do note.args[i - 4] = fields[i] end
        notes[#notes + 1] = note
      elseif what == "ok" or what == "fail" or what == "unknown" then
        finish(open, fields)
      end
    end
  end
  return operations, notes
end

return history
