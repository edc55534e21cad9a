--- Transactions.
local txn = {}

txn.txn = {weight = 10}

local MANY = 65

local function make_part(maker, step, kind, key)
  local part = {kind = kind, key = key}
  if kind == "check" and maker.random:chance(60) then part.key = maker:known_key(step.store) end
  if kind == "check" then part.previous = maker:previous(step.store, part.key, false) end
  if kind == "guard" then
    part.key, part.lock = nil, maker:any("lock", function(id)
      return maker.run.locks[id] and maker.run.locks[id].handle:held()
    end)
    if not part.lock then return nil end
  end
  if kind == "put" then part.value, part.life = maker:value(), maker:life(step) end
  return part
end

function txn.txn.make(maker, step)
  local random = maker.random
  step.store, step.parts = maker:store(), {}
  if random:chance(2) then
    for i = 1, MANY do step.parts[i] = {kind = "put", key = "many/" .. i, value = ""} end
    return
  end
  -- Each key once as a check and once as a write, but for the odd mistake.
  local checked, written = maker:distinct_keys(random:upto(3) - 1), maker:distinct_keys(random:upto(4))
  if random:chance(3) then written[#written + 1] = maker:key() end
  for _, key in ipairs(checked) do
    local kind = random:weighted{{"check", 5}, {"absent", 4}, {"guard", 2}}
    step.parts[#step.parts + 1] = make_part(maker, step, kind, key)
  end
  for _, key in ipairs(written) do
    step.parts[#step.parts + 1] = make_part(maker, step, random:weighted{{"put", 6}, {"delete", 3}}, key)
  end
end

local function add_part(run, step, building, part)
  if part.kind == "absent" then building:check_absent(part.key) end
  if part.kind == "delete" then building:delete(part.key) end
  if part.kind == "check" then
    local there, previous = run:previous(part.previous)
    if not there then return false end
    building:check(part.key, previous)
  end
  if part.kind == "guard" then
    local lock = run.locks[part.lock]
    if not lock then return false end
    building:guard(lock.handle)
  end
  if part.kind == "put" then
    local options = run:options(step, part.life)
    if not options then return false end
    building:put(part.key, part.value, options)
  end
  return true
end

local function written(run, step, result)
  local found, largest = {}, 0
  for key, pair in pairs(result.pairs) do
    if pair.key ~= key then return "PAIRS BY WRONG KEYS" end
    found[#found + 1] = pair
    largest = math.max(largest, pair.revision)
  end
  table.sort(found, function(left, right) return left.key < right.key end)
  run.results[step.id] = found
  if type(result.revision) ~= "number" or (#found > 0 and largest ~= result.revision) then return "NOT ITS REVISION" end
  return "committed: " .. run:list(step.store, found)
end

function txn.txn.run(run, step)
  local building = run:store(step.store):txn()
  for _, part in ipairs(step.parts) do
    if not add_part(run, step, building, part) then return "skipped" end
  end
  local result, message, code = building:commit()
  if not result then return run.failure(message, code) end
  return written(run, step, result)
end

function txn.txn.show(step, text)
  local parts = {}
  for i, part in ipairs(step.parts) do
    local key = part.key and text.string(part.key)
    if part.kind == "absent" then parts[i] = (":check_absent(%s)"):format(key) end
    if part.kind == "delete" then parts[i] = (":delete(%s)"):format(key) end
    if part.kind == "check" then parts[i] = (":check(%s, %s)"):format(key, text.previous(part.previous)) end
    if part.kind == "guard" then parts[i] = (":guard(lock%d)"):format(part.lock) end
    if part.kind == "put" then
      parts[i] = (":put(%s, %s%s)"):format(key, text.string(part.value), text.life(part.life))
    end
  end
  return ("local r%d = %s:txn()%s:commit()"):format(step.id, step.store, table.concat(parts))
end

return txn
