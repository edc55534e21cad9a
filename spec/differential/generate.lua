--- Makes programs: a seed gives the same one everywhere.
--
-- A program is {seed =, portable =, blocking =, steps = {...}}: plain tables. A step has an `op` (operations.lua), an
-- `id` that stays when others are taken out, and what the operation put there. Steps refer to earlier ones by their
-- ids; one whose reference is not there is skipped when it is run, so any part of a program is a program.
--
-- The model runs with the maker, which so knows what is there: most steps shall do something.
local environments = require("spec.differential.environments")
local operations = require("spec.differential.operations")
local Random = require("spec.differential.random")
local run_program = require("spec.differential.run_program")

local ALL = {txn = true, ttl = true, lock = true, lease = true, resume = true, every_version = true}

local Maker = {}
Maker.__index = Maker

-- Parents and children, names that begin like others, bytes that sort around the slash, and what needs escapes on the
-- way.
local KEYS = {"a", "b", "a/b", "a/c", "a/b/c", "a/b0", "ab", "a-b", "a.b", "b/x", "b/y/z", "c/d/e", "A", "a/\195\188/n",
  "b/x y+%", "c/d"}
local BAD_KEYS = {"", "/", "a/../b", ".", ".kv/a", "a/\1"}
local DIRS = {"", "a", "a/b", "b", "c", "c/d", "nowhere", "/a/", "ab"}
-- The same value again is a change, too.
local VALUES = {"1", "1", "1", "2", "3", "4", "", "\0\255\n\"", ("x"):rep(3000)}
local TOO_LARGE = ("x"):rep(512 * 1024 + 1)

local STORES = {{"s0", 60}, {"s1", 15}, {"s2", 15}, {"s3", 10}}
local PREFIXES = {s0 = "", s1 = "a/", s2 = "", s3 = "b/"}

-- Half of the programs are about something: its operations are so many times as likely.
local THEMES = {{"all", 50}, {"watch", 20}, {"atomic", 15}, {"lock", 15}}
local THEME_FACTOR = 5

local MORTAL_STEPS = 5  -- so many more before the short lives are waited for
local MORTAL_TIMES = 2

-- ------------------------------------------------------------------ what operations ask for

function Maker:store()
  return self.random:weighted(STORES)
end

--- Has a step used this store?
function Maker:uses(name)
  for _, step in ipairs(self.program.steps) do
    if step.store == name then return true end
  end
  return false
end

function Maker:store_of(id)
  for _, step in ipairs(self.program.steps) do
    if step.id == id then return step.store end
  end
end

function Maker:key()
  if self.random:chance(2) then return self.random:pick(BAD_KEYS) end
  local key = self.random:chance(30) and self.last_key or self.random:pick(self.keys)
  self.last_key = key
  if self.random:chance(4) then key = "/" .. key:gsub("/", "//") .. "/" end
  return key
end

--- Keys that are different and good.
function Maker:distinct_keys(count)
  local left, keys = {}, {}
  for i, key in ipairs(self.keys) do left[i] = key end
  for i = 1, math.min(count, #left) do keys[i] = table.remove(left, self.random:upto(#left)) end
  return keys
end

--- A directory: mostly one that has or had something.
function Maker:dir()
  if self.random:chance(30) then return self.random:pick(DIRS) end
  return self.random:pick(self.keys):match("^(.*)/[^/]*$") or ""
end

function Maker:value()
  if self.program.portable and self.random:chance(1) then return TOO_LARGE end
  return self.random:pick(VALUES)
end

--- The id of an earlier step of this kind, or nil; mostly one for which likely(id) is true, if there is one.
function Maker:any(op, likely)
  local ids, wanted = self.made[op], {}
  if not ids then return nil end
  for _, id in ipairs(ids) do
    if likely and likely(id) then wanted[#wanted + 1] = id end
  end
  return self.random:pick(#wanted > 0 and self.random:chance(85) and wanted or ids)
end

-- Leases belong to a store and its views.
local function lease_for(self, store)
  local ids = {}
  for _, step in ipairs(self.program.steps) do
    local fits = step.op == "lease" and (step.store == store or (step.store == "s0" and store == "s1"))
    if fits then ids[#ids + 1] = step.id end
  end
  return #ids > 0 and self.random:pick(ids) or nil
end

--- How long what the step writes shall live.
function Maker:life(step)
  local kind = self.random:weighted{{"plain", 75}, {"long", 8}, {"lease", 10}, {"keep", 8}, {"mortal", 8}}
  if kind == "keep" and step.store ~= "s2" then kind = "plain" end
  if kind == "mortal" then
    if not self.program.mortal or self.settled >= MORTAL_TIMES then return {kind = "long"} end
    self.mortal_since = self.mortal_since or #self.program.steps
  end
  if kind ~= "lease" then return {kind = kind} end
  local lease = lease_for(self, step.store)
  return lease and {kind = "lease", lease = lease} or {kind = "plain"}
end

local function canonical(store, key)
  return PREFIXES[store] .. key:gsub("^/+", ""):gsub("/+$", ""):gsub("/+", "/")
end

-- Is the key still as it was in this pair of an earlier step?
local function is_current(self, full, pair)
  local record = self.run.world.keys[full]
  return record ~= nil and record.revision == pair.revision
end

--- A key of this store that is there, of which an earlier step gave the pair, if there is one.
function Maker:known_key(store)
  local prefix = PREFIXES[store]
  for i = #self.pairs, 1, -1 do
    local full, pair = self.pairs[i].full, self.pairs[i].pair
    local fits = #full > #prefix and full:sub(1, #prefix) == prefix and is_current(self, full, pair)
    if fits and self.random:chance(50) then return full:sub(#prefix + 1) end
  end
  return self:key()
end

--- A reference to a pair that an earlier step gave, the newer the likelier; or nil. With `full` it is of that key, and
-- `current` or not.
function Maker:reference(full, current)
  for i = #self.pairs, 1, -1 do
    local entry = self.pairs[i]
    local fits = not full or (entry.full == full and is_current(self, full, entry.pair) == current)
    if fits and self.random:chance(70) then
      return {ref = entry.id, nth = entry.nth, plain = self.random:chance(25) or nil}
    end
  end
end

--- A reference to any pair with a revision that is certain, as one to resume behind must be: keys that put_many() wrote
-- may share theirs, and come in any order; or nil.
function Maker:past()
  local reference = self:reference()
  if not reference then return nil end
  local pair = self.run.results[reference.ref][reference.nth]
  return not self.run.world.unordered[pair.revision] and reference or nil
end

--- What to compare a key with: nothing, its pair, an older one, another key's, or one that never was.
function Maker:previous(store, key, can_be_none)
  local full, found = canonical(store, key), nil
  local none = {"none", not can_be_none and 0 or self.run.world.keys[full] and 15 or 60}
  local how = self.random:weighted{none, {"same", 60}, {"old", 25}, {"other", 5}, {"wrong", 4}, {"zero", 2}}
  if how == "none" then return {none = true} end
  if how == "zero" then return {zero = true} end
  if how == "same" then found = self:reference(full, true) end
  if how == "old" then found = self:reference(full, false) end
  if how == "other" then found = self:past() end
  if not found and can_be_none and self.random:chance(70) then return {none = true} end
  return found or {wrong = true}
end

-- ------------------------------------------------------------------ making a program

-- Remember which pairs the step gave.
local function note_pairs(self, step)
  for nth, pair in ipairs(self.run.results[step.id] or {}) do
    local full = PREFIXES[step.store] .. pair.key
    if pair.revision then self.pairs[#self.pairs + 1] = {id = step.id, nth = nth, full = full, pair = pair} end
  end
end

local function add(self, op, fields)
  local step = fields or {}
  self.last_id = self.last_id + 1
  step.op, step.id = op, self.last_id
  if not fields and operations[op].make(self, step) == false then return end
  self.program.steps[#self.program.steps + 1] = step
  self.made[op] = self.made[op] or {}
  table.insert(self.made[op], step.id)
  run_program.step(self.run, #self.program.steps)
  note_pairs(self, step)
end

local function settle_in_time(self)
  if not self.mortal_since or #self.program.steps - self.mortal_since < MORTAL_STEPS then return end
  add(self, "settle")
  self.mortal_since, self.settled = nil, self.settled + 1
end

local function choices(program)
  local list = {}
  for name, operation in pairs(operations) do
    local weight = operation.weight * (operation.theme == program.theme and THEME_FACTOR or 1)
    if not (program.blocking and operation.tasks) then list[#list + 1] = {name, weight} end
  end
  table.sort(list, function(left, right) return left[1] < right[1] end)
  return list
end

local function choose_keys(random)
  local left, keys = {}, {}
  for i, key in ipairs(KEYS) do left[i] = key end
  for i = 1, 1 + random:upto(5) do keys[i] = table.remove(left, random:upto(#left)) end
  return keys
end

-- Whatever happened is looked at in the end.
local function add_end(self)
  for _, id in ipairs(self.made.watch or {}) do add(self, "events", {watch = id}) end
  for _, id in ipairs(self.made.mirror or {}) do add(self, "reflect", {mirror = id, store = self:store_of(id)}) end
  add(self, "list", {store = "s0", dir = "", options = {}})
  add(self, "list", {store = "s0", dir = "", options = {recursive = false}})
end

--- The program of a seed.
-- @tparam integer seed
-- @tparam[opt=50] integer length about so many steps at most
return function(seed, length)
  local random = Random.new(seed)
  local program = {seed = seed, steps = {}}
  program.portable = random:chance(25)
  program.theme = random:weighted(THEMES)
  program.blocking = random:chance(20)
  program.mortal = not program.blocking and random:chance(25)
  local self = setmetatable({random = random, program = program, keys = choose_keys(random), made = {}, pairs = {},
    last_id = 0, settled = 0}, Maker)
  self.run = run_program.begin(program, environments.of_model(ALL, 1), {})
  local list = choices(program)
  for _ = 1, 5 + random:upto(length or 50) do
    add(self, random:weighted(list))
    settle_in_time(self)
  end
  if self.mortal_since then add(self, "settle") end
  add_end(self)
  return program
end
