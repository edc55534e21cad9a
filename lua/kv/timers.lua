--- A binary heap of what is due when. Entries that nobody wants any more are left in it until their time comes, or
-- until they are the majority: stopping one is a mark, not a search.
local Timers = {}
Timers.__index = Timers

--- A new, empty heap.
function Timers.new()
  return setmetatable({size = 0, stopped = 0}, Timers)
end

local function before(left, right)
  return left.at < right.at
end

local function sift_up(heap, index)
  local entry = heap[index]
  while index > 1 do
    local parent = (index - index % 2) / 2
    if not before(entry, heap[parent]) then break end
    heap[index] = heap[parent]
    index = parent
  end
  heap[index] = entry
end

local function sift_down(heap, index)
  local entry, size = heap[index], heap.size
  while true do
    local child = 2 * index
    if child > size then break end
    if child < size and before(heap[child + 1], heap[child]) then child = child + 1 end
    if not before(heap[child], entry) then break end
    heap[index] = heap[child]
    index = child
  end
  heap[index] = entry
end

local function pop(heap)
  local entry, size = heap[1], heap.size
  heap[1] = heap[size]
  heap[size] = nil
  heap.size = size - 1
  if size > 1 and heap.size > 0 then sift_down(heap, 1) end
  return entry
end

-- Leave the stopped ones out.
local function rebuild(heap)
  local kept = {}
  for i = 1, heap.size do
    if heap[i].what then kept[#kept + 1] = heap[i] end
    heap[i] = nil
  end
  heap.size, heap.stopped = 0, 0
  for _, entry in ipairs(kept) do
    heap.size = heap.size + 1
    heap[heap.size] = entry
    sift_up(heap, heap.size)
  end
end

--- Remember `what` until the clock says `at`. Returns the entry, for stop().
function Timers:add(at, what)
  local entry = {at = at, what = what}
  self.size = self.size + 1
  self[self.size] = entry
  sift_up(self, self.size)
  return entry
end

--- It is not wanted any more. Harmless when it was taken already.
function Timers:stop(entry)
  if not entry.what then return end
  entry.what = nil
  self.stopped = self.stopped + 1
  if self.stopped > 64 and self.stopped > self.size / 2 then rebuild(self) end
end

--- When the next one is due, or nil.
function Timers:next_at()
  while self.size > 0 and not self[1].what do
    pop(self)
    self.stopped = self.stopped - 1
  end
  return self.size > 0 and self[1].at or nil
end

--- The next one that is due at `now`, taken out; nil when there is none.
function Timers:take(now)
  local at = self:next_at()
  if not at or at > now then return nil end
  local entry = pop(self)
  local what = entry.what
  entry.what = nil
  return what
end

return Timers
