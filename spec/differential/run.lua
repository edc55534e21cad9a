--- The differential test: random programs, run on every backend given, must do what the model predicts.
--
--    lua5.4 spec/differential/run.lua --seed 1 --programs 300 --backends local,etcd
--
--    --seed N        the first program's seed (1); the next ones have N + 1, N + 2, ...
--    --programs N    how many (300)
--    --backends A,B  where (local); names are in backends.lua
--    --length N      about so many steps at most (50)
--    --lanes N       so many programs at once (12)
--    --shown N       so many differences of a backend are shrunk (3), the others are named
--    --print         print the programs and what the model says to them, and run nothing
--
-- A program that differs anywhere is shrunk and shown with the first difference. The last line is "N passed, N failed",
-- in programs.
local lua = rawget(_G, "jit") and "luajit" or _VERSION:lower():gsub(" ", "")
local build = (os.getenv("KV_BUILD") or "build") .. "/" .. lua
package.path = "./?.lua;./lua/?.lua;./lua/?/init.lua;" .. package.path
package.cpath = build .. "/?.so;" .. package.cpath

local backends = require("spec.differential.backends")
local check = require("spec.differential.check")
local generate = require("spec.differential.generate")
local native = require("spec.native")
local source = require("spec.differential.source")
local util = require("spec.support.util")

local SHOWN = 3
local SHRINK_TRIES = 200
local SHRINK_SECONDS = 40

local function usage(problem)
  io.stderr:write("run.lua: ", problem, "\nusage: run.lua [--seed N] [--programs N] [--backends A,B] [--length N] ",
    "[--lanes N] [--shown N] [--print]\n")
  os.exit(2)
end

local function parse(words)
  local options = {seed = 1, programs = 300, backends = "local", length = 50, lanes = 12, shown = SHOWN}
  local at = 1
  while words[at] do
    local name = words[at]:match("^%-%-(%l+)$")
    if name == "print" then
      options.print = true
      at = at + 1
    elseif name and options[name] then
      local value = words[at + 1]
      if type(options[name]) == "number" then value = tonumber(value) end
      if not value then usage(words[at] .. " needs a value") end
      options[name] = value
      at = at + 2
    else
      usage("what is " .. words[at] .. "?")
    end
  end
  return options
end

local function print_programs(programs)
  local traits = {txn = true, ttl = true, lock = true, lease = true, resume = true, every_version = true}
  for _, program in ipairs(programs) do
    print(("-- seed %d%s%s"):format(program.seed, program.portable and ", portable" or "",
      program.blocking and ", from the main thread" or ""))
    local transcript = check.predict(traits, program)
    for at, step in ipairs(program.steps) do
      print(source.step(step) .. "\n    --> " .. tostring(transcript.lines[at]))
    end
  end
end

local function show(backend, difference, options)
  local program = difference.program
  print(("DIFFERENCE on %s, seed %d%s"):format(backend.name, program.seed, program.blocking and " (main thread)" or ""))
  if difference.late then
    print("  nothing is proved: the machine was too slow for a key with a short life")
  else
    local smallest, tried = check.shrink(backend, difference, {tries = SHRINK_TRIES, seconds = SHRINK_SECONDS})
    if smallest == difference then print("  it did not happen again; does it depend on time, or on other programs?") end
    print(("  shrunk from %d steps to %d in %d tries:"):format(#program.steps, #smallest.program.steps, tried))
    print(source.program(smallest.program, "    ", smallest.at))
    print("  the model: " .. tostring(smallest.expected))
    print(("  %s: %s"):format(backend.name, tostring(smallest.actual)))
  end
  print(("  again: spec/differential/run.lua --seed %d --programs 1 --length %d --backends %s"):format(program.seed,
    options.length, backend.name))
end

-- What it lacks, and what else lets its answers differ by contract.
local function traits_of(backend)
  local texts = {}
  for name, value in pairs(backend.traits) do
    if backends.is_capability(name) ~= value then texts[#texts + 1] = value and name or "no " .. name end
  end
  table.sort(texts)
  return #texts > 0 and " (" .. table.concat(texts, ", ") .. ")" or ""
end

local function run_backend(name, programs, failed, options)
  local started = native.now()
  local backend = backends.start(name)
  local differences = check.all(backend, programs, options.lanes)
  print(("%s%s: %d programs in %.1f s, %d differ"):format(name, traits_of(backend), #programs, native.now() - started,
    #differences))
  table.sort(differences, function(left, right) return left.program.seed < right.program.seed end)
  for i, difference in ipairs(differences) do
    failed[difference.program.seed] = true
    if i <= options.shown then show(backend, difference, options) end
    if i > options.shown then print(("DIFFERENCE on %s, seed %d, not shrunk"):format(name, difference.program.seed)) end
  end
  backend.stop()
end

local function main()
  local options, programs, failed = parse(arg), {}, {}
  for i = 1, options.programs do programs[i] = generate(options.seed + i - 1, options.length) end
  if options.print then return print_programs(programs) end
  for name in options.backends:gmatch("[^,]+") do run_backend(name, programs, failed, options) end
  local count = 0
  for _ in pairs(failed) do count = count + 1 end
  print(("%d passed, %d failed"):format(#programs - count, count))
  util.remove_folders()
  os.exit(count == 0 and 0 or 1, true)
end

main()
