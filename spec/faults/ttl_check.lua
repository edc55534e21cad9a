--- What the histories say about keys that expire. Each key has one writer, which puts it for a while ("expire KEY VALUE
-- TTL") or for ever (without a TTL) and looks at it ("look KEY", ok VALUE), one after the other. What must hold:
--  1. until its TTL has passed since the put was *sent*, a key is there; one that was put for ever stays;
--  2. in the end, when all has been well for a while, it is gone; before that it may stay longer: without a leader
--     nobody removes it, and a new one may begin to count again;
--  3. its value is the last one written. What was written with an unknown outcome may be there at any
--     time afterwards.
local ttl_check = {}

local EARLY = 0.02 -- clocks of two machines may differ by so much of a second; here it is one machine

-- What is known of a key: {values={[value]=true}, doubtful=, from=, expires=}: it must be there before `from`.
local function put(state, op)
  local value, ttl = op.args[2], tonumber(op.args[3])
  if op.outcome == "fail" then return state end
  local doubtful = state and state.doubtful or {}
  local values = {[value] = true}
  for old in pairs(doubtful) do values[old] = true end
  if op.outcome == "ok" and not next(doubtful) then
    local from = ttl and op.call + ttl - EARLY or math.huge
    return {values = values, doubtful = doubtful, from = from, expires = ttl ~= nil}
  end
  -- Unknown: a leader that hangs may even write it long after the next one, and begin its life then.
  if op.outcome ~= "ok" then
    for old in pairs(state and state.values or {}) do values[old] = true end
    doubtful[value] = true
  end
  return {values = values, doubtful = doubtful, from = 0, expires = false}
end

local function look(key, state, op, problems)
  if not state then return end
  local value = op.result[1]
  local where = ("%s, looked at [%.6f, %.6f]"):format(key, op.call, op.ret)
  if value == nil then
    if op.ret < state.from then
      problems[#problems + 1] = where .. (": it is gone, and should live until %.6f"):format(state.from)
    end
  elseif not state.values[value] then
    problems[#problems + 1] = ("%s: it is %s, which is not what was written last"):format(where, value)
  end
end

--- @tparam table operations of a history
-- @tparam[opt] table left key -> value, of what was there in the end
-- @return problems (texts), counts {keys, puts, looks}
function ttl_check.check(operations, left)
  local problems, counts, states = {}, {keys = 0, puts = 0, looks = 0}, {}
  for _, op in ipairs(operations) do
    local key = op.args[1]
    if op.kind == "expire" then
      if not states[key] then counts.keys = counts.keys + 1 end
      counts.puts = counts.puts + 1
      states[key] = put(states[key], op) or states[key]
    elseif op.kind == "look" and op.outcome == "ok" then
      counts.looks = counts.looks + 1
      look(key, states[key], op, problems)
    end
  end
  for key, value in pairs(left or {}) do
    if states[key] and states[key].expires then
      problems[#problems + 1] = ("%s: it is still there in the end: %s"):format(key, value)
    end
  end
  return problems, counts
end

return ttl_check
