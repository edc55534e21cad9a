--- Is the history of one register linearizable? The search of Wing and Gong with Lowe's improvements: configurations
-- (state, done operations) advance from one return to the next, each remembered once.
--
--    linear.check(operations)  ->  true
--                                  false, what is wrong, the operation that cannot be explained
--                                  nil, "undecided: ..."          the search grew over its limit
--
-- An operation is {kind=, call=, ret=, ...}; without `ret` its outcome is unknown: it may take effect at any time after
-- its call, or never. Values are strings, each written once; absent is nil.
--
--    read     value               it was there with this value (nil: it was not there)
--    write    value
--    cas      old, value          old = nil: created; value = nil: removed
--    refused  old                 a compare with `old` that failed: the state was another
--    delete   was                 true: it was there, false: it was not; nil when nobody was told
--
-- What keeps the search small: an operation that is allowed and changes nothing is done at once; and of two
-- configurations that differ only in the unknown operations that they used, the one that used fewer stands for both.
local linear = {}

local LIMIT = 400000 -- configurations looked at for one register
local ABSENT = "\0"  -- a state, as values are never this

-- Does the operation fit the state, and what comes of it?
local steps = {}

function steps.read(op, state) return state == (op.value or ABSENT), state end
function steps.write(op) return true, op.value end
function steps.cas(op, state) return state == (op.old or ABSENT), op.value or ABSENT end
function steps.refused(op, state) return state ~= (op.old or ABSENT), state end
function steps.delete(op, state) return op.was == nil or op.was == (state ~= ABSENT), ABSENT end

local function step(op, state)
  return steps[op.kind](op, state)
end

-- ------------------------------------------------------------------ configurations

-- {state=, done={[id]=true} of those that are called and have not returned, used={id...} sorted, of unknown ones}

local function sorted_keys(set)
  local list = {}
  for id in pairs(set) do list[#list + 1] = id end
  table.sort(list)
  return list
end

local function group_of(config)
  return config.state .. "\0" .. table.concat(sorted_keys(config.done), ",")
end

local function is_subset(small, large)
  if #small > #large then return false end
  local at = 1
  for _, id in ipairs(small) do
    while large[at] and large[at] < id do at = at + 1 end
    if large[at] ~= id then return false end
  end
  return true
end

-- A set of configurations without those that another one stands for.
local Set = {}
Set.__index = Set

local function new_set()
  return setmetatable({groups = {}, count = 0}, Set)
end

--- False: it is there already, or a better one is.
function Set:add(config)
  local name = group_of(config)
  local group = self.groups[name]
  if not group then
    group = {}
    self.groups[name] = group
  end
  local kept = {}
  for _, other in ipairs(group) do
    if is_subset(other.used, config.used) then return false end
    if is_subset(config.used, other.used) then other.dropped = true else kept[#kept + 1] = other end
  end
  kept[#kept + 1] = config
  self.groups[name] = kept
  self.count = self.count + 1
  return true
end

function Set:list()
  local list = {}
  for _, group in pairs(self.groups) do
    for _, config in ipairs(group) do list[#list + 1] = config end
  end
  return list
end

local function with_done(config, id, state)
  local done = {}
  for other in pairs(config.done) do done[other] = true end
  done[id] = true
  return {state = state, done = done, used = config.used}
end

local function with_used(config, id, state)
  local used, placed = {}, false
  for _, other in ipairs(config.used) do
    if not placed and id < other then
      used[#used + 1] = id
      placed = true
    end
    used[#used + 1] = other
  end
  if not placed then used[#used + 1] = id end
  return {state = state, done = config.done, used = used}
end

-- ------------------------------------------------------------------ the search

local Search = {}
Search.__index = Search

-- Whatever the state is. (A write of what is there may be needed later, after another one.)
local function changes_nothing(op)
  return op.kind == "read" or op.kind == "refused" or op.was == false
end

-- Do what is allowed and changes nothing: whatever else is done, that can be done now. `config` is ours.
local function settle(self, config)
  local fresh
  for id, op in pairs(self.pending) do
    if not config.done[id] then
      if changes_nothing(op) and step(op, config.state) then
        fresh = fresh or {}
        fresh[id] = true
      end
    end
  end
  if not fresh then return config end
  for id in pairs(config.done) do fresh[id] = true end
  return {state = config.state, done = fresh, used = config.used}
end

local function is_used(config, id)
  for _, other in ipairs(config.used) do
    if other == id then return true end
  end
  return false
end

-- What may happen next in a configuration.
local function followers(self, config, give)
  for id, op in pairs(self.pending) do
    if not config.done[id] then
      local fits, state = step(op, config.state)
      if fits then give(settle(self, with_done(config, id, state))) end
    end
  end
  for id, op in pairs(self.unknown) do
    if not is_used(config, id) then
      local fits, state = step(op, config.state)
      if fits and state ~= config.state then give(settle(self, with_used(config, id, state))) end
    end
  end
end

local function without(config, id)
  local done = {}
  for other in pairs(config.done) do
    if other ~= id then done[other] = true end
  end
  return {state = config.state, done = done, used = config.used}
end

-- The operation returns: only configurations in which it is done live on.
local function returned(self, target)
  local seen, queue, out = new_set(), {}, new_set()
  local function give(config)
    if seen:add(config) then queue[#queue + 1] = config end
  end
  for _, config in ipairs(self.configs) do give(settle(self, config)) end
  local at = 0
  while at < #queue do
    at = at + 1
    local config = queue[at]
    if config.done[target] then
      out:add(without(config, target))
    elseif not config.dropped then
      self.looked_at = self.looked_at + 1
      if self.looked_at > LIMIT then return nil end
      followers(self, config, give)
    end
  end
  self.pending[target] = nil
  self.configs = out:list()
  return #self.configs > 0
end

local function shown(value)
  if value == nil then return "(absent)" end
  if value == ABSENT then return "(absent)" end
  return tostring(value)
end

--- An operation as a reader wants to see it.
function linear.show(op)
  local what = ({
    read = function() return "read " .. shown(op.value) end,
    write = function() return "write " .. shown(op.value) end,
    cas = function() return ("cas %s -> %s"):format(shown(op.old), shown(op.value)) end,
    refused = function() return "cas refused " .. shown(op.old) end,
    delete = function() return "delete " .. (op.was == nil and "" or op.was and "(was there)" or "(was not there)") end,
  })[op.kind]()
  return ("%s %s [%.6f, %s]"):format(op.worker or "?", what, op.call, op.ret and ("%.6f"):format(op.ret) or "unknown")
end

local function complaint(before, self, target)
  local states = {}
  for _, config in ipairs(before) do states[shown(config.state)] = true end
  local lines = {("cannot be explained: %s"):format(linear.show(target)),
    "the state before may have been: " .. table.concat(sorted_keys(states), " | ")}
  for _, op in pairs(self.pending) do
    if op ~= target then lines[#lines + 1] = "  beside it: " .. linear.show(op) end
  end
  for _, op in pairs(self.unknown) do lines[#lines + 1] = "  outcome unknown: " .. linear.show(op) end
  return table.concat(lines, "\n")
end

--- @tparam table operations of one register, in any order
-- @tparam[opt] string initial its value at the beginning
function linear.check(operations, initial)
  local events = {}
  for id, op in ipairs(operations) do
    -- Without an outcome a read told nobody anything.
    local matters = op.ret or (op.kind ~= "read" and op.kind ~= "refused")
    if matters then events[#events + 1] = {time = op.call, id = id, rank = 1} end
    if op.ret then events[#events + 1] = {time = op.ret, id = id, rank = 2} end
  end
  table.sort(events, function(a, b)
    if a.time ~= b.time then return a.time < b.time end
    if a.rank ~= b.rank then return a.rank < b.rank end
    return a.id < b.id
  end)
  local self = setmetatable({pending = {}, unknown = {}, looked_at = 0,
    configs = {{state = initial or ABSENT, done = {}, used = {}}}}, Search)
  for _, event in ipairs(events) do
    local op = operations[event.id]
    if event.rank == 1 then
      if op.ret then self.pending[event.id] = op else self.unknown[event.id] = op end
    else
      local before = self.configs
      local fine = returned(self, event.id)
      if fine == nil then return nil, "undecided: the search grew over its limit at " .. linear.show(op), op end
      if not fine then return false, complaint(before, self, op), op end
    end
  end
  return true
end

return linear
