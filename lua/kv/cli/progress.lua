-- A progress bar on standard error, when that is a terminal; elsewhere nothing is drawn.
--
--   copying  [##########..........]  52%  5200/10000 keys  1.2 MB/s  4 s left

local progress = {}

local Progress = {}
Progress.__index = Progress

local PERIOD = 0.1 -- seconds between two drawings
local BAR_MOST, BAR_LEAST = 40, 10

--- Whether there is a terminal to draw on.
function progress.wanted(process)
  return process.isatty(2) and os.getenv("TERM") ~= "dumb"
end

--- A bar for `total` keys (nil: not known). `file` and `clock` are for tests.
function progress.new(process, label, total, file)
  local now = process.clock()
  return setmetatable({active = progress.wanted(process) or file ~= nil, file = file or io.stderr, process = process,
    label = label, total = total, count = 0, bytes = 0, begun = now, drawn = now - PERIOD}, Progress)
end

local function size_text(bytes)
  for _, unit in ipairs{"B", "kB", "MB"} do
    if bytes < 1000 then return ((unit == "B" or bytes >= 100) and "%.0f %s" or "%.1f %s"):format(bytes, unit) end
    bytes = bytes / 1000
  end
  return ("%.1f GB"):format(bytes)
end

local function time_text(seconds)
  if seconds < 60 then return ("%.0f s"):format(math.ceil(seconds)) end
  if seconds < 3600 then return ("%d:%02d"):format(math.floor(seconds / 60), math.floor(seconds % 60)) end
  return ("%d:%02d h"):format(math.floor(seconds / 3600), math.floor(seconds % 3600 / 60))
end

--- What is drawn at time `now` on a terminal that is `columns` wide.
function Progress:line(now, columns)
  local took = math.max(now - self.begun, 1e-6)
  local speed = size_text(self.bytes / took) .. "/s"
  if not self.total or self.total == 0 then
    return ("%s  %d keys  %s"):format(self.label, self.count, speed):sub(1, columns)
  end
  -- Keys may be added while we count: never more than all.
  local share = math.min(self.count / self.total, 1)
  local left = share > 0 and share < 1 and "  " .. time_text(took / share - took) .. " left" or ""
  local text = ("  %3d%%  %d/%d keys  %s%s"):format(math.floor(share * 100), self.count, self.total, speed, left)
  local room = math.min(BAR_MOST, columns - #self.label - #text - 4)
  if room < BAR_LEAST then return (self.label .. text):sub(1, columns) end
  local full = math.floor(share * room)
  return ("%s  [%s%s]%s"):format(self.label, ("#"):rep(full), ("."):rep(room - full), text)
end

function Progress:draw(now)
  local columns = self.process.columns(2) or 80
  self.file:write("\r", self:line(now, columns - 1), "\27[K")
  self.file:flush()
  self.drawn, self.shown = now, true
end

--- So many keys and bytes more are done.
function Progress:step(keys, bytes)
  self.count, self.bytes = self.count + keys, self.bytes + bytes
  if not self.active then return end
  local now = self.process.clock()
  if now - self.drawn >= PERIOD then self:draw(now) end
end

--- The last drawing goes away: what is said at the end says it all.
function Progress:finish()
  if self.shown then
    self.file:write("\r\27[K")
    self.file:flush()
  end
  self.shown, self.active = false, false
end

return progress
