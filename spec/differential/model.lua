--- The model: a store in a Lua table with the interface of kv's, which predicts what every backend must answer.
--
--    local world = model.new(traits)          one server; traits: see backends.lua
--    local store = world:open{prefix = "p", portable = false}
--
-- Nothing here waits or fails, and time does not pass: a key with a short life goes when world:settle() says that its
-- time is over. What a handle does that is more than a read or a write is in model_handles.lua.
local handles = require("spec.differential.model_handles")
local Nodes = require("spec.differential.nodes")

local VALUE_MAX = 512 * 1024 -- in portable mode
local MORTAL = 30            -- a shorter time to live ends within the program

local World = {}
World.__index = World

local Store = {}
Store.__index = Store

local model = {}

function model.new(traits)
  local world = setmetatable({traits = traits, revision = 0, keys = {}, history = {}, locks = {}, token = 0,
    watches = {}, granted = {}, unordered = {}}, World)
  world.nodes = traits.nodes and Nodes.new()
  return world
end

-- ------------------------------------------------------------------ keys

--- The canonical form, or nil where the contract forbids the key.
local function canonical(key, root_allowed)
  local segments = {}
  for segment in key:gmatch("[^/]+") do
    if segment == "." or segment == ".." or segment:find("%c") then return nil end
    segments[#segments + 1] = segment
  end
  if segments[1] == ".kv" or (#segments == 0 and not root_allowed) then return nil end
  return table.concat(segments, "/")
end

local function is_below(key, dir)
  return dir == "" or key:sub(1, #dir + 1) == dir .. "/"
end
model.is_below = is_below

--- Key as the world has it; nil, message, code.
function Store:full(key, root_allowed)
  local known = canonical(key, root_allowed)
  if not known then return nil, "a bad key", "invalid" end
  if self.prefix == "" then return known end
  return known == "" and self.prefix or self.prefix .. "/" .. known
end

--- Key as this view shows it.
function Store:relative(full)
  return self.prefix == "" and full or full:sub(#self.prefix + 2)
end

-- ------------------------------------------------------------------ changes

function World:next_revision()
  self.revision = self.revision + 1
  return self.revision
end

local function tell(self, change)
  self.history[#self.history + 1] = change
  for watch in pairs(self.watches) do watch:see(change) end
end

local function kind_of(life)
  return life.owner or life.ttl or "permanent"
end

World.kind_of = kind_of

--- What a backend whose keys are nodes asks before a key is put: nil, or a code.
function World:refuses(key, life, in_txn)
  if not self.nodes then return nil end
  local changes = self.nodes:changes(key, kind_of(life))
  if in_txn and changes and life.ttl and self.keys[key] then return "unsupported" end
  return self.nodes:refuses(key, kind_of(life), in_txn)
end

--- A place for one key: a revision, and what its `created` is if the key is a node; or nil, code.
function World:place(key, life)
  if not self.nodes then return self:next_revision() end
  local made, code = self.nodes:make_parents(key, self:next_revision())
  if not made then return nil, code end
  if self.nodes:needs_node(key, life.ttl) then self.nodes:make(key, life.ttl, self:next_revision()) end
  local revision = self:next_revision()
  return revision, self.nodes:write(key, kind_of(life), revision)
end

--- Write at a revision. `life` is what options_of() gave, `place` what the key's node says.
function World:write(key, value, life, revision, place)
  local old = self.keys[key]
  local created = place or (old and old.created) or revision
  local record = {value = value, revision = revision, created = created, owner = life.owner,
    born = life.mortal and self.step or nil}
  self.keys[key] = record
  tell(self, {type = "put", key = key, value = value, revision = revision, created = record.created})
  return record
end

function World:remove(key, revision)
  self.keys[key] = nil
  if self.nodes then self.nodes:prune(key) end
  tell(self, {type = "delete", key = key, revision = revision})
end

--- Names of the keys for which `wanted(key, record)`, sorted.
function World:find(wanted)
  local found = {}
  for key, record in pairs(self.keys) do
    if wanted(key, record) then found[#found + 1] = key end
  end
  table.sort(found)
  return found
end

function World:remove_all(keys)
  if #keys == 0 then return keys end
  local revision = self:next_revision()
  for _, key in ipairs(keys) do self:remove(key, revision) end
  return keys
end

--- The short lives end now. Returns their keys.
function World:settle()
  return self:remove_all(self:find(function(_, record) return record.born end))
end

--- The steps whose keys with a short life are still there.
function World:mortal_steps()
  local steps = {}
  for _, record in pairs(self.keys) do
    if record.born then steps[record.born] = true end
  end
  return steps
end

--- Whatever belongs to an owner (a lease, or an open store) goes. Returns its keys.
function World:end_owner(owner)
  return self:remove_all(self:find(function(_, record) return record.owner == owner end))
end

-- ------------------------------------------------------------------ opening

--- @tparam table options prefix, portable
function World:open(options)
  return setmetatable({world = self, prefix = canonical(options.prefix or "", true), handle = {leases = {}, locks = {}},
    directories = options.portable or self.traits.directories, portable = options.portable}, Store)
end

function Store:sub(prefix)
  local full, message, code = self:full(prefix, true)
  if not full then return nil, message, code end
  return setmetatable({world = self.world, prefix = full, handle = self.handle, directories = self.directories,
    portable = self.portable}, Store)
end

--- Ends the handle with all its views. Returns true, the keys that go with it, and the names of the locks that it
-- frees.
function Store:close()
  local handle, world = self.handle, self.world
  if handle.closed then return true, {}, {} end
  handle.closed = true
  local gone, freed = world:end_owner(handle), {}
  for lease in pairs(handle.leases) do
    for _, key in ipairs(lease:finish()) do gone[#gone + 1] = key end
  end
  for lock in pairs(handle.locks) do lock:give_up("closed") end
  for lock in pairs(handle.locks) do
    if lock:abandon() then freed[#freed + 1] = lock.full end
  end
  table.sort(freed)
  return true, gone, freed
end

-- ------------------------------------------------------------------ checks

local function refuse(code)
  return nil, "the model refuses", code
end

--- What every operation on a key asks first: the full key, or nil, message, code.
local function admit(self, key, root_allowed)
  if self.handle.closed then return refuse("closed") end
  return self:full(key, root_allowed)
end

--- The life that options ask for: {owner =, mortal =}, or nil, code.
local function life_of(self, options)
  options = options or {}
  local traits = self.world.traits
  if options.ttl and not traits.ttl then return nil, "unsupported" end
  if (options.keep_alive or options.lease) and not traits.lease then return nil, "unsupported" end
  if options.lease and not options.lease:alive() then return nil, "not_held" end
  return {owner = options.lease or (options.keep_alive and self.handle) or nil, ttl = options.ttl,
    mortal = options.ttl ~= nil and options.ttl < MORTAL}
end

local function has_children(world, key)
  return #world:find(function(other) return is_below(other, key) end) > 0
end

--- Where directories are directories: may a new key stand here? nil, or a code.
local function wrong_place(self, full)
  if not self.directories or self.world.keys[full] then return nil end
  for at in full:gmatch("()/") do
    if self.world.keys[full:sub(1, at - 1)] then return "not_dir" end
  end
  if has_children(self.world, full) then return "is_dir" end
end

-- A listing or a watch of what is a key: nothing is below it; only portable mode minds.
local function wrong_directory(self, full)
  return self.portable and self.world.keys[full] ~= nil
end

local function pair_of(self, full, record, keys_only)
  return {key = self:relative(full), value = not keys_only and record.value or nil, revision = record.revision,
    created = record.created}
end
Store.pair_of = pair_of

-- ------------------------------------------------------------------ reading

function Store:get(key)
  local full, message, code = admit(self, key)
  if not full then return nil, message, code end
  local record = self.world.keys[full]
  if not record then return nil end
  return pair_of(self, full, record)
end

function Store:exists(key)
  local pair, message, code = self:get(key)
  if message then return nil, message, code end
  return pair ~= nil
end

function Store:get_many(keys)
  local found = {}
  for _, key in ipairs(keys) do
    local pair, message, code = self:get(key)
    if message then return nil, message, code end
    found[key] = pair
  end
  return found
end

-- Every entry of a directory, in order.
local function entries(self, full, options)
  local found, seen = {}, {}
  for _, key in ipairs(self.world:find(function(other) return is_below(other, full) end)) do
    local rest = full == "" and key or key:sub(#full + 2)
    local slash = options.recursive == false and rest:find("/", 1, true)
    local name = slash and key:sub(1, #key - #rest + slash - 1) or key
    if not slash then
      found[#found + 1] = pair_of(self, key, self.world.keys[key], options.keys_only)
    elseif not seen[name] and not self.world.keys[name] then
      seen[name] = true
      found[#found + 1] = {key = self:relative(name), dir = true}
    end
  end
  table.sort(found, function(left, right) return left.key < right.key end)
  return found
end

function Store:list(dir, options)
  options = options or {}
  local full, message, code = admit(self, dir, true)
  if not full then return nil, message, code end
  if (options.after or "") ~= "" and not canonical(options.after) then return refuse("invalid") end
  if wrong_directory(self, full) then return refuse("not_dir") end
  local found, after = {}, canonical(options.after or "", true)
  for _, entry in ipairs(entries(self, full, options)) do
    if entry.key > after and #found < (options.limit or math.huge) then found[#found + 1] = entry end
  end
  return found, self.world.revision
end

function Store:pages(dir, options)
  local full, message, code = self:full(dir, true)
  if not full then return nil, message, code end
  local after, over = options.after, false
  return function()
    if over then return nil end
    local page, problem, why = self:list(dir, {recursive = options.recursive, keys_only = options.keys_only,
      limit = options.limit, after = after})
    if not page then error(("store:pages: %s (%s)"):format(problem, why), 2) end
    over = #page == 0
    if over then return nil end
    after = page[#page].key
    return page
  end
end

-- ------------------------------------------------------------------ writing

-- `previous`: nil for any, false for none, or a revision.
local function write(self, key, value, previous, options)
  local full, message, code = admit(self, key)
  if not full then return nil, message, code end
  local life, problem = life_of(self, options)
  if problem == "unsupported" then return refuse(problem) end
  if self.portable and #value > VALUE_MAX then return refuse("too_large") end
  if previous == 0 then return refuse("modified") end
  if problem then return refuse(problem) end
  local record = self.world.keys[full]
  if previous == false and record then return refuse("exists") end
  if previous and not (record and record.revision == previous) then return refuse("modified") end
  local wrong = wrong_place(self, full) or self.world:refuses(full, life)
  if wrong then return refuse(wrong) end
  local revision, place = self.world:place(full, life)
  if not revision then return refuse(place) end
  return pair_of(self, full, self.world:write(full, value, life, revision, place))
end

function Store:put(key, value, options)
  return write(self, key, value, nil, options)
end

local function revision_of(previous)
  return type(previous) == "table" and previous.revision or previous
end

function Store:atomic_put(key, value, previous, options)
  if previous == nil then return write(self, key, value, false, options) end
  return write(self, key, value, revision_of(previous), options)
end

function Store:put_many(values, options)
  local keys = {}
  for key in pairs(values) do
    if not canonical(key) then return refuse("invalid") end
    keys[#keys + 1] = key
  end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local pair, message, code = self:put(key, values[key], options)
    if not pair then return nil, message, code end
    self.world.unordered[pair.revision] = #keys > 1 -- backends write them in any order
  end
  return true
end

function Store:delete(key)
  local full, message, code = admit(self, key)
  if not full then return nil, message, code end
  if not self.world.keys[full] then return false end
  self.world:remove(full, self.world:next_revision())
  return true
end

function Store:atomic_delete(key, previous)
  local full, message, code = admit(self, key)
  if not full then return nil, message, code end
  local record = self.world.keys[full]
  if not record or record.revision ~= revision_of(previous) then return refuse("modified") end
  self.world:remove(full, self.world:next_revision())
  return true
end

function Store:delete_tree(dir)
  local full, message, code = admit(self, dir, true)
  if not full then return nil, message, code end
  local root = full == self.prefix
  self.world:remove_all(self.world:find(function(key) return is_below(key, full) or (key == full and not root) end))
  if self.world.nodes then self.world.nodes:clear(full, root) end
  return true
end

function Store:update(key, fn, options)
  while true do
    local pair, message, code = self:get(key)
    if message then return nil, message, code end
    local value = fn(pair and pair.value, pair)
    if value == nil then return pair end
    local written
    written, message, code = self:atomic_put(key, value, pair, options)
    if written then return written end
    if code ~= "modified" and code ~= "exists" then return nil, message, code end
  end
end

-- ------------------------------------------------------------------ handles

handles.add_to(Store, {admit = admit, life_of = life_of, wrong_place = wrong_place, wrong_directory = wrong_directory,
  canonical = canonical, is_below = is_below, refuse = refuse, VALUE_MAX = VALUE_MAX})

return model
