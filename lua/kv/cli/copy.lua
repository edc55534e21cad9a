-- kv copy SRC DST: make one tree like another, between any two backends.
--
-- Both trees are read sorted, side by side, so that what differs is known without keeping either in memory. Only what
-- differs is written: a copy that was interrupted is simply run again. In the end both are read once more.

local options = require("kv.cli.options")
local progress = require("kv.cli.progress")
local tree = require("kv.cli.tree")

local FAILED, MISUSE = 1, 2
local SHOWN_MOST = 5 -- keys that are named when the check finds differences
local FIRST_STATE = 60 -- seconds that the watch of --follow has for its beginning
local STEP = 64      -- keys between two looks at the clock

-- Walk both trees: on.put(pair, previous) for what is missing or different at the destination, on.same(pair),
-- on.extra(pair) for what only the destination has.
local function compare(source, destination, on)
  local from, to = source(), destination()
  while from or to do
    if from and to and from.key == to.key then
      if from.value == to.value then on.same(from) else on.put(from, to) end
      from, to = source(), destination()
    elseif not to or (from and from.key < to.key) then
      on.put(from)
      from = source()
    else
      on.extra(to)
      to = destination()
    end
  end
end

-- A bar that is stepped now and then only.
local function counter(context, label, total)
  local bar, keys, bytes = progress.new(context.process, label, total), 0, 0
  local function step(pair)
    keys, bytes = keys + 1, bytes + #pair.value
    if keys == STEP then
      bar:step(keys, bytes)
      keys, bytes = 0, 0
    end
  end
  return step, function() bar:finish() end
end

local function readers(context, job)
  return tree.reader(context, job.source, "", job.excluded), tree.reader(context, job.destination, "", job.excluded)
end

-- With --dry-run the lines are what would be done.
local function tell(context, what, key)
  if context.options["dry-run"] then context:write(what, "\t", key, "\n") end
end

local function transfer(context, job)
  local given, counts = context.options, {put = 0, same = 0, extra = 0, deleted = 0}
  local dry, writer = given["dry-run"], tree.writer(context, job.destination)
  local step, finish = counter(context, dry and "comparing" or "copying", job.total)
  local source, destination = readers(context, job)
  local first = source()
  -- A slip in SRC must not empty DST.
  if not first and given.delete then
    options.fail(FAILED, "%s has no keys: --delete would remove everything from %s", tostring(job.source),
      tostring(job.destination))
  end
  local function from_first()
    if not first then return source() end
    local pair = first
    first = nil
    return pair
  end
  compare(from_first, destination, {
    put = function(pair, previous)
      if previous and given.keep then
        counts.kept = (counts.kept or 0) + 1
        return step(pair)
      end
      counts.put = counts.put + 1
      tell(context, previous and "change" or "add", pair.key)
      if not dry then writer:put(pair.key, pair.value) end
      step(pair)
    end,
    same = function(pair)
      counts.same = counts.same + 1
      step(pair)
    end,
    extra = function(pair)
      if not given.delete then
        counts.extra = counts.extra + 1
        return
      end
      counts.deleted = counts.deleted + 1
      tell(context, "delete", pair.key)
      if not dry then writer:delete(pair.key) end
    end,
  })
  writer:flush()
  finish()
  return counts
end

-- Read both again. Keys that differ are the failure.
local function verify(context, job)
  local given, wrong, shown = context.options, 0, {}
  local step, finish = counter(context, "checking", job.total)
  local function differs(pair)
    wrong = wrong + 1
    if #shown < SHOWN_MOST then shown[#shown + 1] = ('"%s"'):format(pair.key) end
  end
  local source, destination = readers(context, job)
  compare(source, destination, {
    put = function(pair, previous)
      if not (previous and given.keep) then differs(pair) end
      step(pair)
    end,
    same = step,
    extra = function(pair) if given.delete then differs(pair) end end,
  })
  finish()
  if wrong == 0 then return end
  options.fail(FAILED, "%d key(s) differ after copying: %s%s. Was something written meanwhile? Run it again, or use " ..
    "--follow", wrong, table.concat(shown, ", "), wrong > #shown and ", ..." or "")
end

local function summary(counts, dry)
  local parts = {("%d %s"):format(counts.put, dry and "to copy" or "copied"),
    ("%d the same already"):format(counts.same)}
  if counts.kept then parts[#parts + 1] = ("%d different and kept"):format(counts.kept) end
  if counts.deleted > 0 then parts[#parts + 1] = ("%d %s"):format(counts.deleted, dry and "to delete" or "deleted") end
  if counts.extra > 0 then parts[#parts + 1] = ("%d only in the destination"):format(counts.extra) end
  return table.concat(parts, ", ")
end

-- ---------------------------------------------------------------- --follow

local LOOK = 0.2 -- seconds between looks at signals while nothing happens

local function apply(context, destination, event)
  if event.type == "put" then
    context:check(destination:put(event.key, event.value))
  else
    context:check(destination:delete(event.key))
  end
  context:write(event.type, "\t", event.key, "\n")
end

-- Says once when the source is away and once when it is back; the watch itself heals.
local function tell_connection(context, job, watch, connected)
  if watch:connected() == connected then return connected end
  context:note(connected and "not connected to %s; trying on" or "connected again to %s", tostring(job.source))
  return not connected
end

-- Take what the source's watch says, in the order in which it comes: so the destination ends as the source does.
local function follow(context, job, watch)
  local process, connected = context.process, true
  io.stdout:setvbuf("line")
  process.catch{process.signal("INT"), process.signal("TERM")}
  while not process.caught() do
    local event, message, code = watch:next(LOOK)
    if event then
      if not tree.is_in(event.key, job.excluded) then apply(context, job.destination, event) end
    elseif code == "timeout" then
      connected = tell_connection(context, job, watch, connected)
    else
      context:check(nil, message or "the watch has ended", code or "closed")
    end
  end
end

-- ---------------------------------------------------------------- the command

local function run(context)
  local given, from, to = context.options, context.arguments[1], context.arguments[2]
  if from == to then options.fail(MISUSE, "SRC and DST are the same store") end
  if given.store then options.fail(MISUSE, "the stores of copy are SRC and DST; -s has no meaning here") end
  for _, other in ipairs{"dry-run", "keep"} do
    if given.follow and given[other] then options.fail(MISUSE, "--follow and --%s exclude each other", other) end
  end
  local job = {excluded = tree.canonical(given.exclude)}
  job.source, job.destination = context:open_url(from), context:open_url(to)
  -- The watch begins before the copy: nothing that is written in between is missed.
  local watch
  if given.follow then
    watch = context:check(job.source:watch_tree("", {initial = false}))
    context:check(watch:wait_synced(given.timeout or FIRST_STATE))
  end
  if progress.wanted(context.process) then job.total = tree.count(context, job.source, "", job.excluded) end
  local counts = transfer(context, job)
  if given["dry-run"] then
    context:note("%s", summary(counts, true))
    return
  end
  if watch then
    context:note("%s; following", summary(counts))
    return follow(context, job, watch)
  end
  verify(context, job)
  context:write(summary(counts), "; checked\n")
end

return {
  name = "copy", usage = "SRC DST [--delete] [--dry-run | --follow]", arguments = {2, 2}, run = run,
  summary = "copy a tree from one store to another",
  details = [[
Copies every key below SRC, a store's URL with its prefix, to DST, between any two backends. Only what differs is
written, so an interrupted copy is simply run again. At the end both are read and compared; exit status 1 when they
differ. Keys are copied as permanent ones: how long a key has to live cannot be read (leave such out by --exclude).
With --follow it goes on, until it is interrupted, to write every change of SRC to DST.]],
  options = {
    {name = "dry-run", short = "n", kind = "flag",
      help = "write nothing, print what would be done: add,\nchange, delete and the key"},
    {name = "delete", kind = "flag", help = "delete from DST what SRC does not have"},
    {name = "keep", kind = "flag", help = "leave keys alone that are in DST with another value"},
    {name = "exclude", argument = "DIRECTORY", kind = "text", many = true,
      help = "neither copy nor delete what is there, or below;\ncan be given several times"},
    {name = "follow", kind = "flag", help = "then go on with every change, until interrupted"},
  },
}
