-- Trees of keys, for the commands that move them: reading one key by key, and writing in batches.

local options = require("kv.cli.options")

local tree = {}

local BATCH_KEYS, BATCH_BYTES = 256, 1024 * 1024
local FAILED = 1

--- The pages below a directory; what goes wrong is this command's failure.
function tree.pages(context, store, directory, settings)
  local pages = context:check(store:pages(directory, settings))
  return function()
    local ok, page = pcall(pages)
    if not ok then options.fail(FAILED, "%s", (tostring(page):gsub("^store:pages: ", ""))) end
    return page
  end
end

--- Is `key` in one of these directories, or one of them itself?
function tree.is_in(key, directories)
  for _, directory in ipairs(directories) do
    if key == directory or key:sub(1, #directory + 1) == directory .. "/" then return true end
  end
  return false
end

--- Directories that were named on the command line, in the form in which keys come back.
function tree.canonical(names)
  local directories = {}
  for i, name in ipairs(names or {}) do
    local known = name:gsub("/+", "/"):gsub("^/", ""):gsub("/$", "")
    if known == "" then options.fail(2, "--exclude takes a directory, and \"%s\" is everything", name) end
    directories[i] = known
  end
  return directories
end

--- An iterator of all pairs below a directory, sorted, without those below the excluded directories.
function tree.reader(context, store, directory, excluded, settings)
  local pages = tree.pages(context, store, directory, settings)
  local page, at = {}, 0
  local function following()
    at = at + 1
    while page and not page[at] do page, at = pages(), 1 end
    return page and page[at]
  end
  return function()
    local pair = following()
    while pair and tree.is_in(pair.key, excluded) do pair = following() end
    return pair
  end
end

--- How many keys there are, for a progress bar.
function tree.count(context, store, directory, excluded)
  local count = 0
  for _ in tree.reader(context, store, directory, excluded, {keys_only = true}) do count = count + 1 end
  return count
end

-- ---------------------------------------------------------------- writing

local Writer = {}
Writer.__index = Writer

--- Writes and deletes, gathered into batches that are pipelined. Call flush() at the end.
function tree.writer(context, store)
  return setmetatable({context = context, store = store, values = {}, keys = 0, bytes = 0, doomed = {}}, Writer)
end

-- One task a key: deletes travel together.
local function delete_all(context, store, keys)
  context.kv.run(function()
    local tasks = {}
    for i, key in ipairs(keys) do tasks[i] = context.kv.spawn(function() return store:delete(key) end) end
    for _, task in ipairs(tasks) do context:check(task:join()) end
  end)
end

function Writer:flush()
  local values, doomed = self.values, self.doomed
  self.values, self.keys, self.bytes, self.doomed = {}, 0, 0, {}
  if next(values) ~= nil then self.context:check(self.store:put_many(values)) end
  if #doomed > 0 then delete_all(self.context, self.store, doomed) end
end

--- The last value that is put for a key is the one that stands.
function Writer:put(key, value)
  self.values[key] = value
  self.keys, self.bytes = self.keys + 1, self.bytes + #value
  if self.keys >= BATCH_KEYS or self.bytes >= BATCH_BYTES then self:flush() end
end

function Writer:delete(key)
  self.doomed[#self.doomed + 1] = key
  if #self.doomed >= BATCH_KEYS then self:flush() end
end

return tree
