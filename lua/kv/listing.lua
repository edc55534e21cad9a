--- Listings: pages of the core, joined to one table or given out one by one.
--
-- All pages of a listing are read at the revision of the first, where the backend can. If that is compacted away
-- meanwhile, or a page says that it is of a later one, list() begins again, at last with all in one page; pages() goes
-- on with what is there now, because its first pages are gone already.
local call = require("kv.call")
local codec = require("kv.codec")
local core = require("kv.core")
local options = require("kv.options")
local scheduler = require("kv.scheduler")

local listing = {}

local RESTARTS = 3
local ONE_PAGE = 4e9 -- pairs: the most that can be asked for
local NOTHING = {}

local function flags_of(opts)
  local flags = options.read_flags(opts)
  if opts.keys_only then flags = flags + options.KEYS_ONLY end
  if opts.recursive == false then flags = flags + options.SHALLOW end
  return flags
end

-- Decode the values from index `from` on. Returns message, code when one cannot be.
local function decode(store, found, from)
  for i = from, #found do
    local pair = found[i]
    if pair.value ~= nil then
      local ok, value = codec.decode(store._codec, pair.value)
      if not ok then
        return ('list: the key "%s" on %s: %s'):format(pair.key, core.label(store._store), value), "failed"
      end
      pair.value = value
    end
  end
end

-- What goes on from page to page: where, at which revision, how many are still wanted.
local function new_state(store, dir, opts)
  opts = opts or NOTHING
  return {store = store, dir = dir, flags = flags_of(opts), keys_only = opts.keys_only == true,
    after = opts.after or "", limit = opts.limit or 0, revision = 0}
end

-- Append the next page to `found`, which has `count`. Returns the new count, more; or nil, message, code.
local function next_page(state, found, count, timeout)
  local store = state.store
  local page, revision, more = call.finish(core.list(store._store, state.dir, state.flags, timeout, state.after,
    state.limit, state.revision))
  if not page then return nil, revision, more end
  local sum, last = core.page_append(page, found, count, state.keys_only)
  state.revision, state.after = revision, last or state.after
  if store._codec and not state.keys_only then
    local message, code = decode(store, found, count + 1)
    if message then return nil, message, code end
  end
  return sum, more and sum > count
end

local function try_all(state, left, in_one_page)
  local found, wanted = {}, state.limit
  if in_one_page and wanted == 0 then state.limit = ONE_PAGE end
  repeat
    local have, revision = #found, state.revision
    if wanted > 0 then state.limit = wanted - have end
    local count, more, code = next_page(state, found, have, left())
    if not count then return nil, more, code end
    if have > 0 and state.revision ~= revision then return nil, "it changed while it was read", "compacted" end
  until not more or (wanted > 0 and count >= wanted)
  return found, state.revision
end

--- All pairs of a listing: array, revision; or nil, message, code.
function listing.all(store, dir, opts)
  local left = call.time_left(options.timeout(opts), store)
  for attempt = 1, RESTARTS do
    local found, revision, code = try_all(new_state(store, dir, opts), left, attempt == RESTARTS)
    if found then return found, revision end
    if code ~= "compacted" or attempt == RESTARTS then return nil, revision, code end
  end
end

-- Lua 5.1 calls an iterator in a way that it cannot wait in: say so, instead of what 5.1 says.
local function refuse_for_loop()
  if scheduler.yields_across_pcall or not scheduler.current_task() then return end
  local info = debug.getinfo(2, "n")
  if info and info.name == "(for generator)" then
    error("store:pages: a for loop cannot wait in a task of Lua 5.1; call the iterator in a while loop", 3)
  end
end

--- An iterator of pages.
function listing.pages(store, dir, opts)
  local state, over = new_state(store, dir, opts), false
  local timeout = options.timeout(opts)
  return function()
    refuse_for_loop()
    if over then return nil end
    scheduler.poll()
    local found = {}
    local count, more, code = next_page(state, found, 0, timeout)
    if not count and code == "compacted" then
      state.revision = 0
      count, more, code = next_page(state, found, 0, timeout)
    end
    if not count then
      over = true
      error(("store:pages: %s (%s)"):format(more, code), 2)
    end
    over = not more
    if count == 0 then return nil end
    return found
  end
end

return listing
