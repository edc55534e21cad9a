--- ZooKeeper's nodes, for the model: which there are, and of which kind.
--
-- There a key is a node, so are its parents, and a node keeps its kind for all its life: permanent, with a time to
-- live, or ephemeral (kept alive, or leased). So where nodes stand below, some puts are `unsupported`; and a key's
-- `created` is that of its node, which may have been a parent before. This tells both, to the letter.
--
--    local nodes = Nodes.new()
--    nodes:make_parents(key, revision) nil and a code where it cannot be
--    nodes:refuses(key, kind, in_txn)  a code, or nil: could the key get this kind?
--    nodes:write(key, kind, revision)  the key's `created`
--    nodes:prune(key)                  the key is gone
--
-- A kind is "permanent", a number (the time to live) or a table (what an ephemeral node belongs to).
local Nodes = {}
Nodes.__index = Nodes

local PIN = "/.kv" -- what keeps a node with a time to live that has become permanent

function Nodes.new()
  return setmetatable({known = {}}, Nodes)
end

--- What there is now, for restore().
function Nodes:copy()
  local known = {}
  for key, node in pairs(self.known) do known[key] = {kind = node.kind, created = node.created} end
  return known
end

function Nodes:restore(known)
  self.known = known
end

function Nodes:has_below(key)
  for other in pairs(self.known) do
    if other:sub(1, #key + 1) == key .. "/" then return true end
  end
  return false
end

local function is_ephemeral(node)
  return node ~= nil and type(node.kind) == "table"
end

--- An ephemeral node has no nodes below it.
function Nodes:is_barred(key)
  for at in key:gmatch("()/") do
    if is_ephemeral(self.known[key:sub(1, at - 1)]) then return true end
  end
  return false
end

function Nodes:make_parents(key, revision)
  if self:is_barred(key) then return nil, "unsupported" end
  for at in key:gmatch("()/") do
    local path = key:sub(1, at - 1)
    self.known[path] = self.known[path] or {kind = "permanent", created = revision}
  end
  return true
end

--- Must the node be made anew to become of this kind?
function Nodes:changes(key, kind)
  local node = self.known[key]
  return node ~= nil and node.kind ~= kind
end

function Nodes:refuses(key, kind, in_txn)
  if not self:changes(key, kind) or not self:has_below(key) then return nil end
  -- One with a time to live is kept by what stands below it.
  if not in_txn and kind == "permanent" and type(self.known[key].kind) == "number" then return nil end
  return "unsupported"
end

--- Must a node with a time to live be made before its key is written?
function Nodes:needs_node(key, kind)
  return type(kind) == "number" and (not self.known[key] or self:changes(key, kind))
end

--- Make one, or make it anew.
function Nodes:make(key, kind, revision)
  self.known[key] = {kind = kind, created = revision}
end

function Nodes:write(key, kind, revision)
  local node = self.known[key]
  if node and node.kind == kind then return node.created end
  if node and self:has_below(key) then
    node.kind = kind
    self.known[key .. PIN] = {kind = "permanent", created = revision}
    return node.created
  end
  self:make(key, kind, revision)
  return revision
end

--- A node with others below it stays, without a value.
function Nodes:prune(key)
  if not self:has_below(key) then self.known[key] = nil end
end

--- All below it goes, and the node itself unless it is `kept`.
function Nodes:clear(key, kept)
  for other in pairs(self.known) do
    if key == "" or other:sub(1, #key + 1) == key .. "/" then self.known[other] = nil end
  end
  if not kept then self.known[key] = nil end
end

return Nodes
