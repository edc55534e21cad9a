--- Random numbers that are the same in every Lua: a seed must give the same program everywhere.
local Random = {}
Random.__index = Random

local MODULUS = 2147483647 -- products of its remainders with the factors below are exact in a double

--- @tparam integer seed any whole number
function Random.new(seed)
  local self = setmetatable({state = seed % (MODULUS - 1) + 1}, Random)
  -- Seeds beside each other must not give programs like each other.
  for _ = 1, 3 do self.state = (self.state * 69621 + math.floor(self.state / 32768)) % (MODULUS - 1) + 1 end
  return self
end

--- A whole number from 1 to `most`.
function Random:upto(most)
  self.state = self.state * 48271 % MODULUS
  return math.floor(self.state / MODULUS * most) + 1
end

--- True so many times out of a hundred.
function Random:chance(percent)
  return self:upto(100) <= percent
end

--- One of a list.
function Random:pick(list)
  return list[self:upto(#list)]
end

--- One of {{item, weight}, ...}.
function Random:weighted(list)
  local sum = 0
  for _, entry in ipairs(list) do sum = sum + entry[2] end
  local at = self:upto(sum)
  for _, entry in ipairs(list) do
    at = at - entry[2]
    if at <= 0 then return entry[1] end
  end
end

return Random
