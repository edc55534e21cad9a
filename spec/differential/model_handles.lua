--- What the model's stores hand out: watches, mirrors, leases, locks and transactions. See model.lua.
local handles = {}

local ours -- what model.lua gave to add_to()

-- ------------------------------------------------------------------ watches

local Watch = {}
Watch.__index = Watch

local function concerns(self, key)
  if self.tree then return ours.is_below(key, self.full) end
  return key == self.full
end

local function push(self, change, initial)
  local event = {type = change.type, key = self.store:relative(change.key), value = change.value,
    revision = change.revision, created = change.created, initial = initial}
  -- Nothing is from before where a life begins. Only where keys are nodes does one begin without a delete.
  local seen = self.seen[change.key]
  local same_life = seen and (change.type == "delete" or seen.created == change.created)
  if self.options.prev and same_life then event.prev = seen.value end
  self.seen[change.key] = change.type == "put" and {value = change.value, created = change.created} or nil
  if self.options.values == false then event.value = nil end
  self.queue[#self.queue + 1] = event
end

--- Called by the world for every change.
function Watch:see(change)
  if concerns(self, change.key) then push(self, change) end
end

local function begin(self)
  local world, options = self.store.world, self.options
  for _, key in ipairs(world:find(function(key) return concerns(self, key) end)) do
    local record = world.keys[key]
    if options.after or options.initial == false then
      self.seen[key] = not options.after and {value = record.value, created = record.created} or nil
    else
      push(self, {type = "put", key = key, value = record.value, revision = record.revision, created = record.created},
        true)
      self.queue[#self.queue].prev = nil
    end
  end
  for _, change in ipairs(options.after and world.history or {}) do
    if change.revision > options.after then self:see(change) end
  end
end

local function open_watch(store, key, tree, options)
  options = options or {}
  local full, message, code = ours.admit(store, key, tree)
  if not full then return nil, message, code end
  if options.after and not store.world.traits.resume then return ours.refuse("unsupported") end
  local self = setmetatable({store = store, full = full, tree = tree, options = options, seen = {}, queue = {}}, Watch)
  if tree and ours.wrong_directory(store, full) then
    self.ended = "not_dir"
  else
    begin(self)
    store.world.watches[self] = true
  end
  return self
end

function Watch:wait_synced()
  if self.store.handle.closed then return ours.refuse("closed") end
  if self.ended then return ours.refuse(self.ended) end
  return true
end

function Watch:next()
  if self.is_closed then return nil end
  if self.store.handle.closed then return ours.refuse("closed") end
  if self.ended then return ours.refuse(self.ended) end
  if #self.queue == 0 then return ours.refuse("timeout") end
  return table.remove(self.queue, 1)
end

function Watch:revision()
  return self.store.world.revision
end

function Watch:close()
  self.is_closed = true
  self.store.world.watches[self] = nil
  return true
end

-- ------------------------------------------------------------------ mirrors

local Mirror = {}
Mirror.__index = Mirror

local function open_mirror(store, dir)
  local full, message, code = ours.admit(store, dir, true)
  if not full then return nil, message, code end
  return setmetatable({store = store, dir = dir, ended = ours.wrong_directory(store, full) and "not_dir"}, Mirror)
end

function Mirror:wait_ready()
  if self.ended then return ours.refuse(self.ended) end
  return true
end

function Mirror:pair(key)
  local full = self.store:full(key)
  local record = full and self.store.world.keys[full]
  if record and ours.is_below(full, self.store:full(self.dir, true)) then return self.store:pair_of(full, record) end
end

function Mirror:get(key)
  local pair = self:pair(key)
  return pair and pair.value
end

function Mirror:pairs()
  local values, world = {}, self.store.world
  local dir = self.store:full(self.dir, true)
  for key, record in pairs(world.keys) do
    if ours.is_below(key, dir) then values[self.store:relative(key)] = record.value end
  end
  return next, values, nil
end

function Mirror:size()
  local count = 0
  for _ in self:pairs() do count = count + 1 end
  return count
end

function Mirror.close()
  return true
end

-- ------------------------------------------------------------------ leases

local Lease = {}
Lease.__index = Lease

local function open_lease(store, ttl)
  if not store.world.traits.lease then return ours.refuse("unsupported") end
  if store.handle.closed then return ours.refuse("closed") end
  local self = setmetatable({store = store, ttl = ttl}, Lease)
  store.handle.leases[self] = true
  return self
end

function Lease:alive()
  return not self.ended
end

--- Its keys go; returns them.
function Lease:finish()
  if self.ended then return {} end
  self.ended = true
  return self.store.world:end_owner(self)
end

function Lease:revoke()
  if self.ended then return ours.refuse("not_held") end
  self:finish()
  return true
end

function Lease:wait_lost()
  return ours.refuse(self.ended and "not_held" or "timeout")
end

-- ------------------------------------------------------------------ locks

local Lock = {}
Lock.__index = Lock

local function new_lock(store, name, options)
  local full, message, code = ours.admit(store, name)
  if not full then return nil, message, code end
  if not store.world.traits.lock then return ours.refuse("unsupported") end
  local self = setmetatable({store = store, full = full, value = options and options.value or ""}, Lock)
  store.handle.locks[self] = true
  return self
end

local function line_of(self)
  local locks = self.store.world.locks
  locks[self.full] = locks[self.full] or {waiters = {}}
  return locks[self.full]
end

local function hold(self, line)
  local world = self.store.world
  world.token = world.token + 1
  line.holder, self.token = self, world.token
end

-- The next in line holds; its coroutine goes on in handles.turn().
local function pass_on(line)
  line.holder = nil
  local waiter = table.remove(line.waiters, 1)
  if not waiter then return end
  hold(waiter, line)
  local granted = waiter.store.world.granted
  granted[#granted + 1] = waiter.waits
end

function Lock:acquire(timeout)
  if self.store.handle.closed then return ours.refuse("closed") end
  local line = line_of(self)
  if line.holder == self then return ours.refuse("held") end
  if not line.holder then
    hold(self, line)
    return self
  end
  if timeout == 0 then return ours.refuse("timeout") end
  line.waiters[#line.waiters + 1] = self
  self.waits, self.gives_up = coroutine.running(), nil
  coroutine.yield()
  if self.gives_up then return ours.refuse(self.gives_up) end
  return self
end

--- Take it out of the line, its acquire() answers `code`.
function Lock:give_up(code)
  local waiters = line_of(self).waiters
  for i, other in ipairs(waiters) do
    if other == self then
      table.remove(waiters, i)
      self.gives_up = code
      local granted = self.store.world.granted
      granted[#granted + 1] = self.waits
      return
    end
  end
end

--- The handle's store is closed. Was it held?
function Lock:abandon()
  local line = line_of(self)
  if line.holder ~= self then return false end
  pass_on(line)
  return true
end

function Lock:release()
  if self.store.handle.closed then return ours.refuse("closed") end
  local line = line_of(self)
  if line.holder ~= self then return ours.refuse("not_held") end
  pass_on(line)
  return true
end

function Lock:wait_lost()
  return ours.refuse(self:held() and "timeout" or "not_held")
end

function Lock:held()
  return line_of(self).holder == self
end

function Lock:state()
  if self:held() then return "held" end
  for _, waiter in ipairs(line_of(self).waiters) do
    if waiter == self then return "waiting" end
  end
  return "free"
end

function Lock:holder()
  if self.store.handle.closed then return ours.refuse("closed") end
  local holder = line_of(self).holder
  return holder and {value = holder.value, token = holder.token} or nil
end

local function with_lock(store, name, options, fn, ...)
  local lock, message, code = new_lock(store, name, options)
  if not lock then return nil, message, code end
  local held
  held, message, code = lock:acquire(options and options.timeout)
  if not held then return nil, message, code end
  local value = fn(lock, ...)
  lock:release()
  return value
end

-- ------------------------------------------------------------------ transactions

local Txn = {}
Txn.__index = Txn

local TXN_MAX = 64

local function new_txn(store)
  local self = setmetatable({store = store, parts = {}, checked = {}, written = {}}, Txn)
  if store.handle.closed then
    self.code = "closed"
  elseif not store.world.traits.txn then
    self.code = "unsupported"
  end
  return self
end

-- The first thing that is wrong is what commit() answers.
local function add(self, part, taken, key)
  if self.code then return self end
  if #self.parts >= TXN_MAX then
    self.code = "invalid"
  elseif key then
    part.full = self.store:full(key)
    if not part.full or taken[part.full] then self.code = "invalid" else taken[part.full] = true end
  end
  self.parts[#self.parts + 1] = part
  return self
end

function Txn:check(key, previous)
  local revision = type(previous) == "table" and previous.revision or previous
  if revision == 0 then self.code = self.code or "modified" end
  return add(self, {kind = "check", revision = revision}, self.checked, key)
end

function Txn:check_absent(key)
  return add(self, {kind = "absent"}, self.checked, key)
end

function Txn:guard(lock)
  if not self.code and not lock:held() then self.code = "not_held" end
  return add(self, {kind = "guard", lock = lock, token = lock.token})
end

-- Where directories are directories, of two keys that are put none may be the other's.
local function nested(self, part)
  for _, other in ipairs(self.parts) do
    if other.kind == "put" and ours.is_below(other.full, part.full) then return "is_dir" end
    if other.kind == "put" and ours.is_below(part.full, other.full) then return "not_dir" end
  end
end

function Txn:put(key, value, options)
  local life, problem = ours.life_of(self.store, options)
  if not self.code and problem then self.code = problem end
  local part = {kind = "put", value = value, life = life, key = ours.canonical(key)}
  add(self, part, self.written, key)
  if not self.code and self.store.directories then self.code = nested(self, part) end
  if not self.code and self.store.portable and #value > ours.VALUE_MAX then self.code = "too_large" end
  return self
end

function Txn:delete(key)
  return add(self, {kind = "delete"}, self.written, key)
end

local function holds(self, part)
  local record = part.full and self.store.world.keys[part.full]
  if part.kind == "check" then return record and record.revision == part.revision end
  if part.kind == "absent" then return not record end
  if part.kind == "guard" then return part.lock:held() and part.lock.token == part.token end
  return true
end

-- Where keys are nodes: puts before deletes, parents before what stands below them.
local function in_order(self)
  if not self.store.world.nodes then return self.parts end
  local parts = {}
  for i, part in ipairs(self.parts) do
    parts[i] = part
    part.order = (part.kind == "put" and 0 or 1e6) + #(part.full or "") * 100 + i
  end
  table.sort(parts, function(left, right) return left.order < right.order end)
  return parts
end

-- Where keys are nodes, those with a time to live are made before.
local function make_timed(world, parts)
  local nodes = world.nodes
  for _, part in ipairs(parts) do
    if part.kind == "put" and nodes:needs_node(part.full, part.life.ttl) then
      if nodes:refuses(part.full, part.life.ttl) then return "unsupported" end
      local made, code = nodes:make_parents(part.full, world:next_revision())
      if not made then return code end
      nodes:make(part.full, part.life.ttl, world:next_revision())
    end
  end
end

-- Then all become what they are to be, or none.
local function make_nodes(world, parts, revision)
  local nodes, before = world.nodes, world.nodes:copy()
  for _, part in ipairs(parts) do
    if part.kind == "put" then
      local wrong, made = world:refuses(part.full, part.life, true), true
      if not wrong then made, wrong = nodes:make_parents(part.full, revision) end
      if not made or wrong then
        nodes:restore(before)
        return wrong
      end
      part.place = nodes:write(part.full, world.kind_of(part.life), revision)
    end
  end
end

-- What is looked at before anything is made. Returns a code when it cannot be.
local function refused(world, parts)
  for _, part in ipairs(parts) do
    local wrong = part.kind == "put" and world:refuses(part.full, part.life, true)
    if wrong then return wrong end
  end
end

local function apply(self)
  local world, pairs_by_key, parts = self.store.world, {}, in_order(self)
  local wrong = world.nodes and (refused(world, parts) or make_timed(world, parts))
  if wrong then return ours.refuse(wrong) end
  local revision = world:next_revision()
  wrong = world.nodes and make_nodes(world, parts, revision)
  if wrong then return ours.refuse(wrong) end
  for _, part in ipairs(parts) do
    if part.kind == "put" then
      local record = world:write(part.full, part.value, part.life, revision, part.place)
      pairs_by_key[part.key] = self.store:pair_of(part.full, record)
    elseif part.kind == "delete" and world.keys[part.full] then
      world:remove(part.full, revision)
    end
  end
  return {revision = revision, pairs = pairs_by_key}
end

-- Where each lease is a session, a transaction belongs to one.
local function count_owners(self)
  local seen, count = {}, 0
  for _, part in ipairs(self.parts) do
    local owner = part.kind == "put" and part.life.owner
    if owner and not seen[owner] then seen[owner], count = true, count + 1 end
  end
  return count
end

function Txn:commit()
  if self.code then return ours.refuse(self.code) end
  if self.store.handle.closed then return ours.refuse("closed") end
  if self.store.world.nodes and count_owners(self) > 1 then return ours.refuse("unsupported") end
  for _, part in ipairs(self.parts) do
    if not holds(self, part) then return ours.refuse("modified") end
  end
  for _, part in ipairs(self.parts) do
    local life = part.kind == "put" and part.life
    if life and type(life.owner) == "table" and life.owner.ended then return ours.refuse("lost") end
    local wrong = part.kind == "put" and ours.wrong_place(self.store, part.full)
    if wrong then return ours.refuse(wrong) end
  end
  return apply(self)
end

-- ------------------------------------------------------------------ joining

--- Give the model's stores these methods.
function handles.add_to(Store, helpers)
  ours = helpers
  function Store:watch(key, options) return open_watch(self, key, false, options) end
  function Store:watch_tree(dir, options) return open_watch(self, dir, true, options) end
  Store.mirror, Store.lease, Store.txn = open_mirror, open_lease, new_txn
  Store.lock, Store.with_lock = new_lock, with_lock
end

return handles
