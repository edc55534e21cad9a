-- kv export, kv import: a tree as a text of one JSON object per line.
--
--   {"kv":"export","version":1}
--   {"key":"config/colour","value":"blue"}
--   {"key":"config/icon","base64":"iVBORw0K"}         a value that is no UTF-8
--   {"end":true,"keys":2}
--
-- The last line tells a whole export from one that was cut off. What `kv list --json` prints has neither first nor last
-- line and can be imported, too.

local format = require("kv.cli.format")
local json = require("kv.cli.json")
local options = require("kv.cli.options")
local progress = require("kv.cli.progress")
local tree = require("kv.cli.tree")

local FAILED = 1
local VERSION = 1
local EXCLUDE = {name = "exclude", argument = "DIRECTORY", kind = "text", many = true,
  help = "leave out what is there, or below; can be given\nseveral times"}

local export = {}

-- ---------------------------------------------------------------- export

-- Where lines go: a function that writes them, one that ends the output, one that gives it up.
local function to_output(context)
  local name = context.options.output
  if not name then
    return function(line) context:write(line, "\n") end, function() context:flush() end, function() end
  end
  -- A file is written under another name until it is whole: what has the name is never half an export. What is no file
  -- must not be replaced by one.
  local whole = context.process.replaceable(name)
  local partial = whole and whole .. ".partial" or name
  local file, message = io.open(partial, "wb")
  if not file then options.fail(FAILED, "%s", message) end
  local function check(ok, problem)
    if not ok then options.fail(FAILED, "%s: %s", partial, tostring(problem)) end
  end
  return function(line) check(file:write(line, "\n")) end, function()
    check(file:close())
    if whole then check(os.rename(partial, whole)) end
  end, function()
    pcall(file.close, file)
    if whole then os.remove(partial) end
  end
end

local function write_all(context, write, bar, excluded)
  local count = 0
  write(format.json{{"kv", "export"}, {"version", VERSION}})
  for pair in tree.reader(context, context:open(), context.arguments[1] or "", excluded) do
    write(format.pair_json{key = pair.key, value = pair.value})
    count = count + 1
    bar:step(1, #pair.value)
  end
  write(format.json{{"end", true}, {"keys", count}})
end

local function run_export(context)
  local excluded, store, process = tree.canonical(context.options.exclude), context:open(), context.process
  local bar = progress.new(process, "exporting")
  -- Lines on the same terminal would tear the bar apart.
  bar.active = bar.active and (context.options.output ~= nil or not process.isatty(1))
  if bar.active then bar.total = tree.count(context, store, context.arguments[1] or "", excluded) end
  local write, finish, give_up = to_output(context)
  local ok, failure = pcall(write_all, context, write, bar, excluded)
  bar:finish()
  if not ok then
    give_up()
    error(failure, 0)
  end
  finish()
end

export.export = {
  name = "export", usage = "[DIRECTORY] [-o FILE]", arguments = {0, 1}, run = run_export,
  summary = "write a tree as JSON lines",
  details = [[
Writes every key below DIRECTORY (default: all) and its value, one JSON object a line, with keys relative to the store's
prefix, so that import brings them back exactly. A value that is no UTF-8 is in "base64". How long a key has to live
cannot be read: it is imported as a permanent one (leave such out by --exclude).]],
  options = {
    {name = "output", short = "o", argument = "FILE", kind = "text",
      help = "a file, which is replaced when all is written"},
    EXCLUDE,
  },
}

-- ---------------------------------------------------------------- import

local function wrong_line(number, text, ...) options.fail(FAILED, "line %d: " .. text, number, ...) end

-- A line as {key=, value=}, {start=true} or {stop=count}.
local function read_line(line, number)
  local object, problem = json.decode(line)
  if type(object) ~= "table" then wrong_line(number, "%s", problem or "no JSON object") end
  if object.kv == "export" then
    if object.version ~= VERSION then wrong_line(number, "an export of version %s", tostring(object.version)) end
    return {start = true}
  end
  if object["end"] == true and object.key == nil then return {stop = object.keys} end
  local value = object.value
  if object.base64 ~= nil then
    if type(object.base64) ~= "string" then wrong_line(number, "its base64 is no string") end
    value = format.from_base64(object.base64)
    if not value then wrong_line(number, "its base64 is none") end
  end
  if type(object.key) ~= "string" then wrong_line(number, "it has no key") end
  if type(value) ~= "string" then wrong_line(number, 'the key "%s" has no value', object.key) end
  return {key = object.key, value = value}
end

-- Call on_pair for every pair of the file; fails where the file is no whole export.
local function read_pairs(file, on_pair)
  local number, count, started, stopped = 0, 0, false, false
  for line in file:lines() do
    number = number + 1
    if line:find("%S") then
      if stopped then wrong_line(number, "something behind the end of the export") end
      local item = read_line(line, number)
      if item.start then
        if number > 1 then wrong_line(number, "another export begins") end
        started = true
      elseif item.stop ~= nil then
        if item.stop ~= count then
          wrong_line(number, "%s keys were exported, %d are here", tostring(item.stop), count)
        end
        stopped = true
      else
        count = count + 1
        on_pair(item)
      end
    end
  end
  if started and not stopped then options.fail(FAILED, "the export was cut off behind line %d", number) end
  return count
end

-- A first reading, before anything is written: is the file whole, and is every key one? Returns how many there are.
local function check_file(context, file)
  local core = require("kv.core")
  return read_pairs(file, function(pair) context:check(core.canonical(pair.key, false)) end)
end

local function open_input(name)
  if not name or name == "-" then return io.stdin end
  local file, message = io.open(name, "rb")
  if not file then options.fail(FAILED, "%s", message) end
  return file
end

-- Batches: what is there already with that value is left alone.
local function importer(context, store, given, bar)
  local writer, counts, batch = tree.writer(context, store), {put = 0, same = 0}, {}
  local function flush()
    local keys = {}
    for i, pair in ipairs(batch) do keys[i] = pair.key end
    local there = context:check(store:get_many(keys))
    for _, pair in ipairs(batch) do
      local known = there[pair.key]
      if known and known.value == pair.value then
        counts.same = counts.same + 1
      else
        counts.put = counts.put + 1
        if given["dry-run"] then
          context:write(known and "change" or "add", "\t", pair.key, "\n")
        else
          writer:put(pair.key, pair.value)
          there[pair.key] = pair -- the file may have the key again
        end
      end
      bar:step(1, #pair.value)
    end
    writer:flush()
    batch = {}
  end
  local function add(pair)
    batch[#batch + 1] = pair
    if #batch == 256 then flush() end
  end
  return add, flush, counts
end

local function delete_others(context, store, seen, excluded)
  local writer, count = tree.writer(context, store), 0
  for pair in tree.reader(context, store, "", excluded, {keys_only = true}) do
    if not seen[pair.key] then
      count = count + 1
      if context.options["dry-run"] then
        context:write("delete\t", pair.key, "\n")
      else
        writer:delete(pair.key)
      end
    end
  end
  writer:flush()
  return count
end

local function run_import(context)
  local given, store, excluded = context.options, context:open(), tree.canonical(context.options.exclude)
  local file = open_input(context.arguments[1])
  local bar, seen = progress.new(context.process, "importing"), {}
  -- A file is read twice: nothing is written from one that is damaged.
  if file:seek("set", 0) then
    bar.total = check_file(context, file)
    file:seek("set", 0)
  end
  local add, flush, counts = importer(context, store, given, bar)
  local count = read_pairs(file, function(pair)
    if tree.is_in(pair.key, excluded) then return end
    if given.delete then seen[pair.key] = true end
    add(pair)
  end)
  flush()
  bar:finish()
  local dry = given["dry-run"]
  local text = ("%d %s, %d the same already"):format(counts.put, dry and "to write" or "written", counts.same)
  if given.delete then
    if count == 0 then options.fail(FAILED, "there are no keys: --delete would remove everything") end
    local deleted = delete_others(context, store, seen, excluded)
    text = ("%s, %d %s"):format(text, deleted, dry and "to delete" or "deleted")
  end
  if dry then return context:note("%s", text) end
  context:write(text, "\n")
end

export.import = {
  name = "import", usage = "[FILE|-] [--delete] [--dry-run]", arguments = {0, 1}, run = run_import,
  summary = "bring back what export wrote",
  details = [[
Writes the keys of an export (default: from standard input) into the store. A file is checked as a whole before anything
is written; a pipe cannot be, and is an error at its end when it was cut off. Only what differs is written: what was
interrupted is simply run again.]],
  options = {
    {name = "dry-run", short = "n", kind = "flag",
      help = "write nothing, print what would be done: add,\nchange, delete and the key"},
    {name = "delete", kind = "flag", help = "delete every other key of the store"},
    EXCLUDE,
  },
}

return export
