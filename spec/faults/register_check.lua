--- What the histories say about registers: each key linearizable, and its revisions true.
local linear = require("spec.faults.linear")

local register_check = {}

local UNAPPLIED = {unavailable = true, timeout = true, failed = true, closed = true, cancelled = true}

-- How each kind of a history becomes an operation of linear.lua; nil when it tells nothing.
local shapes = {}

function shapes.read(op)
  if op.outcome == "ok" then return {kind = "read", value = op.result[1], revision = tonumber(op.result[2])} end
end

function shapes.write(op)
  return {kind = "write", value = op.args[2], revision = op.outcome == "ok" and tonumber(op.result[1]) or nil}
end

function shapes.cas(op)
  local code = op.outcome == "fail" and op.result[1]
  if code == "modified" or code == "exists" then return {kind = "refused", old = op.args[2]} end
  return {kind = "cas", old = op.args[2], value = op.args[3],
    revision = op.outcome == "ok" and op.args[3] and tonumber(op.result[1]) or nil}
end

function shapes.delete(op)
  local was
  if op.outcome == "ok" then was = op.result[1] == "true" end
  return {kind = "delete", was = was}
end

--- Operations of a history, by key, for linear.check; and failures whose code says nothing about whether they were
-- applied, which must not be.
function register_check.by_key(operations)
  local keys, strange = {}, {}
  for _, op in ipairs(operations) do
    local shape = shapes[op.kind] and shapes[op.kind](op)
    local failed = op.outcome == "fail" and not (shape and shape.kind == "refused")
    if failed and shape and op.kind ~= "read" and not UNAPPLIED[op.result[1]] then strange[#strange + 1] = op end
    if shape and not failed then
      shape.worker, shape.call = op.worker, op.call
      if op.outcome ~= "unknown" then shape.ret = op.ret end
      local list = keys[op.args[1]] or {}
      keys[op.args[1]] = list
      list[#list + 1] = shape
    end
  end
  return keys, strange
end

-- A value is written once, so it has one revision, whoever tells it.
local function check_revisions(key, list, problems)
  local revisions = {}
  for _, op in ipairs(list) do
    if op.value and op.revision then
      local known = revisions[op.value]
      if known and known ~= op.revision then
        problems[#problems + 1] = ("%s: value %s has revisions %d and %d"):format(key, op.value, known, op.revision)
      end
      revisions[op.value] = op.revision
    end
  end
end

-- Without the reads: what remains must be explained even where a read may be late.
local function writes_only(list)
  local writes = {}
  for _, op in ipairs(list) do
    if op.kind ~= "read" then writes[#writes + 1] = op end
  end
  return writes
end

--- Check all registers of a history. `options.late_reads`: a key that is only wrong because of its reads is counted in
-- `late`, not complained of (ZooKeeper: a leader may be a moment behind).
-- @return problems (texts), counts {keys, operations, unknown, late, undecided}
function register_check.check(operations, options)
  local problems, counts = {}, {keys = 0, operations = 0, unknown = 0, late = 0, undecided = 0}
  local keys, strange = register_check.by_key(operations)
  for _, op in ipairs(strange) do
    problems[#problems + 1] = ("%s %s %s failed with %s: %s"):format(op.worker, op.kind, op.args[1],
      tostring(op.result[1]), tostring(op.result[2]))
  end
  for key, list in pairs(keys) do
    counts.keys, counts.operations = counts.keys + 1, counts.operations + #list
    for _, op in ipairs(list) do
      if not op.ret then counts.unknown = counts.unknown + 1 end
    end
    check_revisions(key, list, problems)
    local fine, problem = linear.check(list)
    if fine == nil then
      counts.undecided = counts.undecided + 1
    elseif not fine and options and options.late_reads and linear.check(writes_only(list)) then
      counts.late = counts.late + 1
    elseif not fine then
      problems[#problems + 1] = key .. ": not linearizable: " .. problem
    end
  end
  return problems, counts
end

return register_check
