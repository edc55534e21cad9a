--- Runs programs on a backend, and compares what it did with what the model predicts.
--
-- A backend is {name =, traits =, open = function(options) -> store}. The differences that are found are tables:
--    {program =, at = index of the step, expected = line or nil, actual = line or nil}
--    {program =, late = true}    the machine was too slow, again and again, for a key with a short life
local environments = require("spec.differential.environments")
local kv = require("kv")
local native = require("spec.native")
local run_program = require("spec.differential.run_program")
local shrink = require("spec.differential.shrink")

local check = {}

local PATIENCE = {1, 2, 4, 8} -- a program that was too late gets longer lives
local BOUND = 15              -- seconds to wait for what must come
local SHRINK_BOUND = 3

-- ------------------------------------------------------------------ one program

--- Run a program where the caller is: in a task, or, a blocking one, in the main thread.
-- @treturn table|nil the difference
function check.here(backend, program, bound)
  for _, patience in ipairs(PATIENCE) do
    local expected = run_program.run(program, environments.of_model(backend.traits, patience))
    local actual = run_program.run(program, environments.of_backend(backend, patience, bound or BOUND), expected)
    if not actual.late then
      local at = run_program.difference(expected, actual)
      return at and {program = program, at = at, expected = expected.lines[at], actual = actual.lines[at]}
    end
  end
  return {program = program, late = true}
end

--- Run a program from the main thread.
function check.alone(backend, program, bound)
  if program.blocking then return check.here(backend, program, bound) end
  local difference
  kv.run(function() difference = check.here(backend, program, bound) end)
  return difference
end

--- What the model says to a program: its transcript.
function check.predict(traits, program)
  return run_program.run(program, environments.of_model(traits, 1))
end

--- Run many: those that block one after the other, the others side by side.
-- @tparam table backend
-- @tparam table programs
-- @tparam integer lanes so many at once
-- @treturn table differences
function check.all(backend, programs, lanes)
  local differences, waiting = {}, {}
  local function note(difference)
    differences[#differences + 1] = difference
  end
  for _, program in ipairs(programs) do
    if program.blocking then
      note(check.here(backend, program))
    else
      waiting[#waiting + 1] = program
    end
  end
  local at = 0
  local function lane()
    while at < #waiting do
      at = at + 1
      note(check.here(backend, waiting[at]))
    end
  end
  kv.run(function()
    for _ = 1, lanes do kv.spawn(lane) end
  end)
  return differences
end

--- Shrink the program of a difference.
-- @tparam table limits tries, seconds, bound: how long to wait for what must come (3)
-- @treturn table the difference that the smallest program shows: `difference` itself when none showed one again
-- @treturn integer how many were tried
function check.shrink(backend, difference, limits)
  local smallest = difference
  local _, tried = shrink.shrink(difference.program, function(program)
    local other = check.alone(backend, program, limits.bound or SHRINK_BOUND)
    if not other or other.late then return false end
    smallest = other
    return true
  end, {tries = limits.tries, seconds = limits.seconds, now = native.now})
  return smallest, tried
end

return check
