--- Runs one program on one store, step by step, and writes its transcript: a line for each step, with nothing in it
-- that may differ between backends.
--
-- The model runs first. Besides the transcript it leaves hints for the real run, step by step: how many events a watch
-- will have, which keys will go, which waiter gets the lock. With them a real run waits for what must come instead of
-- sleeping, and ends at the first difference. What an operation does is in operations.lua.
local Names = require("spec.differential.names")
local operations = require("spec.differential.operations")

local Run = {}
Run.__index = Run

-- The stores of a program: where each one is in the program's own key space, and how it is had.
Run.PREFIXES = {s0 = "", s1 = "a", s2 = "", s3 = "b"}

Run.MORTAL_SECONDS = 1.5 -- a short time to live; a slow machine gets a multiple of it
Run.LONG_SECONDS = 600   -- one that does not end within the program

-- ------------------------------------------------------------------ what operations ask for

--- A store of the program by its name, opened when first asked for.
function Run:store(name)
  local store = self.stores[name]
  if store then return store end
  local prefix = self.PREFIXES[name]
  if name == "s1" then
    store = assert(self:store("s0"):sub(prefix))
  else
    store = assert(self.env.open{prefix = prefix, portable = self.program.portable})
  end
  self.stores[name] = store
  return store
end

--- A key of a store in the program's key space: names of revisions are by it.
function Run:full(name, key)
  local prefix = self.PREFIXES[name]
  return prefix == "" and key or prefix .. "/" .. key
end

--- What the model knows and a real run needs: `fn(world)` is called in the model, its result is had in both.
function Run:foresee(field, fn)
  local hints = self.hints[self.at]
  if self.world then hints[field] = fn(self.world) end
  return hints[field]
end

--- Wait for a condition; what it gave last.
function Run:await(condition)
  if self.world then return condition() end
  local deadline = self.env.now() + self.env.bound
  local value = condition()
  while not value and self.env.now() < deadline do
    self.env.sleep(0.01)
    value = condition()
  end
  return value
end

-- ------------------------------------------------------------------ how results are written

local function quote(value)
  if #value > 60 then
    local sum = 0
    for i = 1, #value, 97 do sum = (sum * 31 + value:byte(i)) % 65521 end
    return ("<%d bytes, %d>"):format(#value, sum)
  end
  return '"' .. value:gsub('[%c"\\\127-\255]', function(byte) return ("\\%03d"):format(byte:byte()) end) .. '"'
end
Run.quote = quote

--- A failure. `message` and `code` are what came behind the nil.
function Run.failure(message, code)
  if message == nil and code == nil then return "nil" end
  if type(message) ~= "string" or message == "" then return "NO MESSAGE" end
  return tostring(code)
end

--- A pair that an operation on the store `name` gave.
function Run:pair(name, pair)
  if pair.dir then return pair.key .. "/ (a directory)" end
  local scope = self:full(name, pair.key)
  local text = pair.key
  if pair.value ~= nil then text = text .. " " .. quote(pair.value) end
  if pair.value ~= nil and not self.names:agrees(scope, pair.revision, pair.value) then
    text = text .. " NOT ITS VALUE"
  end
  local created = self.names:give(scope, pair.created)
  local revision = self.names:give(scope, pair.revision)
  return text .. " " .. revision .. (created ~= revision and " since " .. created or "")
end

--- What an operation that gives a pair gave; later steps can refer to it.
function Run:answer(step, pair, message, code)
  if pair == nil then return self.failure(message, code) end
  self.results[step.id] = {pair}
  return self:pair(step.store, pair)
end

--- Pairs in a row.
function Run:list(name, found)
  local texts = {}
  for i, pair in ipairs(found) do texts[i] = self:pair(name, pair) end
  return #texts == 0 and "nothing" or table.concat(texts, "; ")
end

-- ------------------------------------------------------------------ how arguments are found

--- Options for a life: {kind = "plain" | "long" | "mortal" | "keep" | "lease", lease = step}. Nil: the lease is not
-- there.
function Run:options(step, life)
  local kind = life and life.kind or "plain"
  if kind == "long" then return {ttl = self.LONG_SECONDS} end
  if kind == "keep" then return {keep_alive = true} end
  if kind == "lease" then return self.leases[life.lease] and {lease = self.leases[life.lease]} end
  if kind == "mortal" then
    self.born[step.id] = self.env.now()
    return {ttl = self.MORTAL_SECONDS * self.env.patience}
  end
  return {}
end

--- What `previous` stands for: {ref = step, nth = 1, plain = true} is a pair (plain: its revision) of an earlier step,
-- {wrong = true} a revision that never was, {none = true} nil. Returns whether it is there, and it.
function Run:previous(previous)
  if previous.none then return true, nil end
  if previous.wrong then return true, 2 ^ 52 end
  if previous.zero then return true, 0 end
  local found = self.results[previous.ref]
  local pair = found and found[previous.nth or 1]
  if not pair or not pair.revision then return false end
  return true, previous.plain and pair.revision or pair
end

-- ------------------------------------------------------------------ waiters of locks

-- Whoever is cancelled is told at once, and his entry goes afterwards: one who tries once over another connection may
-- still find it there. The handle itself tries when it is gone, and fails, as somebody else holds the lock.
local function out_of_line(self, handle)
  return not self.world and handle:acquire(0) and " | AND GOT IT" or ""
end

-- Those whose wait is over: what they got is part of this step.
local function end_waits(self)
  local over = self:foresee("granted", function(world)
    for _, co in ipairs(world.granted) do assert(coroutine.resume(co)) end
    world.granted = {}
    local ids = {}
    for id, waiter in pairs(self.waiters) do
      if waiter.task.done then ids[#ids + 1] = id end
    end
    table.sort(ids)
    return ids
  end)
  local text = ""
  for _, id in ipairs(over) do
    local waiter = self.waiters[id]
    self.waiters[id] = nil
    local got, message, code = self.env.join(waiter.task, self.env.bound)
    text = text .. (" | waiter of step %d: "):format(id)
    text = text .. (got and self:token(waiter.lock) or self.failure(message, code))
    if code == "cancelled" then text = text .. out_of_line(self, waiter.lock.handle) end
  end
  return text
end

--- How a lock that was obtained is written.
function Run:token(lock)
  return "token " .. self.names:give("lock " .. lock.full, lock.handle.token)
end

-- ------------------------------------------------------------------ the steps

-- Is everything that was seen in this step beyond doubt? A key with a short life may have ended while the model has it,
-- also one that the step itself has made permanent.
local function in_time(self)
  local steps, oldest = self:foresee("mortal", function(world) return world:mortal_steps() end), nil
  local before = self.hints[self.at - 1]
  for _, born in ipairs{steps, before and before.mortal or {}} do
    for id in pairs(born) do oldest = math.min(oldest or math.huge, self.born[id]) end
  end
  if self.program.steps[self.at].op == "settle" then return true end -- it waits for their end
  return not oldest or self.world or self.env.now() < oldest + self.MORTAL_SECONDS * self.env.patience
end

local function run_step(self, step)
  if self.world then
    self.world.step = step.id
    self.hints[self.at] = {}
  end
  local ok, text = self.env.pcall(operations[step.op].run, self, step)
  if not ok then return "RAISED " .. tostring(text) end
  return text .. end_waits(self)
end

--- The end of a program: nobody waits, and nothing is left on the server.
local function finish(self)
  for _, waiter in pairs(self.waiters) do
    self.env.cancel(waiter.task, waiter.lock.handle)
    if not self.world then self.env.join(waiter.task, self.env.bound) end
  end
  for _, watch in pairs(self.watches) do watch.handle:close() end
  for _, mirror in pairs(self.mirrors) do mirror:close() end
  if not self.world then self:store("s0"):delete_tree("") end
  for _, store in pairs(self.stores) do store:close() end
end

local run_program = {Run = Run}

--- Begin to run a program, step by step.
-- @tparam table program see generate.lua
-- @tparam table env see environments.lua
-- @tparam table hints what the model foresaw; filled by the model
function run_program.begin(program, env, hints)
  return setmetatable({program = program, env = env, world = env.world, traits = env.traits, names = Names.new(),
    hints = hints, stores = {}, results = {}, leases = {}, lease_stores = {}, watches = {}, mirrors = {}, locks = {},
    waiters = {}, born = {}}, Run)
end

--- Run its step at `at`.
-- @treturn string its line of the transcript, or nil when it is beyond doubt no more: a short life was too short
function run_program.step(self, at)
  self.at = at
  local line = run_step(self, self.program.steps[at])
  return in_time(self) and line or nil
end

--- Run a program.
-- @tparam table program
-- @tparam table env
-- @tparam[opt] table expected what the model's run returned: the run ends where it differs
-- @treturn table transcript: lines, hints, late (nothing is proved: the machine was too slow for a short life)
function run_program.run(program, env, expected)
  local self = run_program.begin(program, env, expected and expected.hints or {})
  local transcript = {lines = {}, hints = self.hints}
  for at = 1, #program.steps do
    local line = run_program.step(self, at)
    transcript.lines[at] = line
    transcript.late = line == nil
    if not line or (expected and line ~= expected.lines[at]) then break end
  end
  local ok, problem = env.pcall(finish, self)
  if not ok then transcript.lines[#transcript.lines + 1] = "RAISED at the end: " .. tostring(problem) end
  return transcript
end

--- The first step in which two transcripts differ, or nil.
function run_program.difference(expected, actual)
  for at = 1, math.max(#expected.lines, #actual.lines) do
    if expected.lines[at] ~= actual.lines[at] then return at end
  end
end

return run_program
