--- Names for what differs from backend to backend: revisions and tokens become #1, #2, ... in their order, for each key
-- (or lock) on its own.
--
-- Only what an operation itself returned gets a name: events of a watch may be joined on some backends, and must not
-- count the others. A revision without a name that lies behind #2 is shown as #2+. A later revision must be larger than
-- all that were named before: one that is not is shown with "NOT LARGER".
local Names = {}
Names.__index = Names

function Names.new()
  return setmetatable({known = {}, values = {}}, Names)
end

local function place(list, number)
  local below = 0
  for i, other in ipairs(list) do
    if other == number then return i, true end
    if other < number then below = i end
  end
  return below, false
end

--- The name of a number that an operation returned, now or before.
function Names:give(scope, number)
  if type(number) ~= "number" or number < 1 or number % 1 ~= 0 then return "NO REVISION " .. tostring(number) end
  local list = self.known[scope] or {}
  self.known[scope] = list
  local at, found = place(list, number)
  if found then return "#" .. at end
  if at < #list then return "NOT LARGER than #" .. #list end
  list[#list + 1] = number
  return "#" .. #list
end

--- How a number is shown that came by a watch.
function Names:show(scope, number)
  if type(number) ~= "number" then return "NO REVISION " .. tostring(number) end
  local at, found = place(self.known[scope] or {}, number)
  return found and "#" .. at or "#" .. at .. "+"
end

--- Remember which value a revision had; false when it is known to have another one.
function Names:agrees(scope, number, value)
  local name = scope .. "\0" .. ("%.0f"):format(number)
  if self.values[name] == nil then self.values[name] = value end
  return self.values[name] == value
end

return Names
