--- Makes a program that shows a difference smaller, as long as it still shows one: delta debugging over its steps, then
-- over what is inside of them.
local shrink = {}

local function with_steps(program, steps)
  local smaller = {}
  for name, value in pairs(program) do smaller[name] = value end
  smaller.steps = steps
  return smaller
end

local function without(list, from, to)
  local rest = {}
  for i, item in ipairs(list) do
    if i < from or i > to then rest[#rest + 1] = item end
  end
  return rest
end

local function copy(value)
  if type(value) ~= "table" then return value end
  local result = {}
  for name, part in pairs(value) do result[name] = copy(part) end
  return result
end

-- Try without a piece, again and again with smaller pieces.
local function fewer_steps(program, differs)
  local size = math.max(1, math.floor(#program.steps / 2))
  while true do
    local from, found = 1, false
    while from <= #program.steps do
      local smaller = with_steps(program, without(program.steps, from, from + size - 1))
      if #smaller.steps > 0 and differs(smaller) then
        program, found = smaller, true
      else
        from = from + size
      end
    end
    if size == 1 and not found then return program end
    size = math.max(1, math.floor(size / 2))
  end
end

-- Ways to make one step simpler, each a function that changes a copy of it.
local function simplifications(step)
  local ways = {}
  for i = 1, step.parts and #step.parts or 0 do
    if #step.parts > 1 then ways[#ways + 1] = function(other) table.remove(other.parts, i) end end
    if step.parts[i].life and step.parts[i].life.kind ~= "plain" then
      ways[#ways + 1] = function(other) other.parts[i].life = {kind = "plain"} end
    end
  end
  for name in pairs(step.options or {}) do ways[#ways + 1] = function(other) other.options[name] = nil end end
  for i = 1, step.keys and #step.keys or 0 do
    if #step.keys > 1 then
      ways[#ways + 1] = function(other)
        table.remove(other.keys, i)
        if other.values then table.remove(other.values, i) end
      end
    end
  end
  if step.life and step.life.kind ~= "plain" then
    ways[#ways + 1] = function(other) other.life = {kind = "plain"} end
  end
  if step.value and step.value ~= "1" then ways[#ways + 1] = function(other) other.value = "1" end end
  return ways
end

local function simpler_step(program, at, differs)
  local found = true
  while found do
    found = false
    for _, way in ipairs(simplifications(program.steps[at])) do
      local steps = without(program.steps, 0, 0)
      steps[at] = copy(steps[at])
      way(steps[at])
      local simpler = with_steps(program, steps)
      if differs(simpler) then
        program, found = simpler, true
        break
      end
    end
  end
  return program
end

--- Shrink a program.
-- @tparam table program
-- @tparam function differs differs(program) -> does it still show a difference?
-- @tparam table limits tries, and seconds by the clock `now`
-- @treturn table the smaller program
-- @treturn integer how many were tried
function shrink.shrink(program, differs, limits)
  local tries, deadline = 0, limits.now() + limits.seconds
  local function still_differs(smaller)
    if tries >= limits.tries or limits.now() > deadline then return false end
    tries = tries + 1
    return differs(smaller)
  end
  program = fewer_steps(program, still_differs)
  for at = #program.steps, 1, -1 do program = simpler_step(program, at, still_differs) end
  return program, tries
end

return shrink
