-- The commands that read and write. Each is a table that main.lua runs and makes the help from.

local export = require("kv.cli.export")
local format = require("kv.cli.format")
local options = require("kv.cli.options")
local tree = require("kv.cli.tree")

local NOT_FOUND = 3

local JSON = {name = "json", kind = "flag",
  help = "print JSON, one object per line; a value that is\nno UTF-8 is in \"base64\""}
local FAST = {name = "fast", kind = "flag", help = "read from any member, perhaps a little old"}

local function consistency(context) return context.options.fast and "fast" or nil end

-- ---------------------------------------------------------------- get

local function get(context)
  local key = context.arguments[1]
  local pair = context:check(context:open():get(key, {consistency = consistency(context)}))
  if not pair then options.fail(NOT_FOUND, 'get "%s": there is no such key', key) end
  if context.options.json then
    context:write(format.pair_json(pair), "\n")
    return
  end
  context:write(pair.value)
  -- Files and pipes get the bytes alone.
  if context.process.isatty(1) and pair.value:sub(-1) ~= "\n" then context:write("\n") end
end

-- ---------------------------------------------------------------- put

local function put(context)
  local key, value, given = context.arguments[1], context.arguments[2], context.options
  if value == "-" then
    local message
    value, message = io.stdin:read("*a")
    if not value then options.fail(1, "standard input: %s", message or "nothing to read") end
  end
  if given.create and given["if"] then options.fail(2, "--create and --if exclude each other") end
  if given.ttl == 0 then options.fail(2, "--ttl must be more than 0") end
  local store, settings = context:open(), {ttl = given.ttl}
  local pair
  if given.create or given["if"] then
    pair = context:check(store:atomic_put(key, value, given["if"], settings))
  else
    pair = context:check(store:put(key, value, settings))
  end
  if given.json then
    context:write(format.json{{"key", pair.key}, {"revision", pair.revision}, {"created", pair.created}}, "\n")
  end
end

-- ---------------------------------------------------------------- delete

local function delete(context)
  local key, given, store = context.arguments[1], context.options, context:open()
  if given.recursive then
    if given["if"] then options.fail(2, "--recursive and --if exclude each other") end
    context:check(store:delete_tree(key))
  elseif given["if"] then
    context:check(store:atomic_delete(key, given["if"]))
  elseif not context:check(store:delete(key)) then
    options.fail(NOT_FOUND, 'delete "%s": there is no such key', key)
  end
end

-- ---------------------------------------------------------------- list

local function print_pair(context, pair)
  local given = context.options
  if given.json then
    if given["keys-only"] then pair.value = nil end
    context:write(format.pair_json(pair), "\n")
  elseif given.values and not pair.dir then
    context:write(pair.key, "\t", format.one_line(pair.value), "\n")
  else
    context:write(pair.key, pair.dir and "/" or "", "\n")
  end
end

-- Only JSON and --values show values; without them they need not travel.
local function list(context)
  local given, store = context.options, context:open()
  if given["keys-only"] and given.values then options.fail(2, "--keys-only and --values exclude each other") end
  local directory = context.arguments[1] or ""
  local settings = {
    consistency = consistency(context),
    keys_only = given["keys-only"] or not (given.json or given.values),
    recursive = not given.shallow,
    limit = given.limit,
    after = given.after,
  }
  if given.limit or given.shallow then
    for _, pair in ipairs(context:check(store:list(directory, settings))) do print_pair(context, pair) end
    return
  end
  for page in tree.pages(context, store, directory, settings) do
    for _, pair in ipairs(page) do print_pair(context, pair) end
  end
end

-- ---------------------------------------------------------------- watch

local function event_line(context, event)
  if context.options.json then return format.event_json(event) end
  local value = event.value and "\t" .. format.one_line(event.value) or ""
  return (event.initial and "initial" or event.type) .. "\t" .. event.key .. value
end

-- Says once when the server is away and once when it is back: the watch itself heals and never ends for that.
local function tell_connection(context, watch, state)
  local connected = watch:connected()
  if connected == state.connected then return end
  if not connected then
    context:note("not connected to %s; trying on", tostring(context:open()))
  elseif state.connected ~= nil then
    context:note("connected again")
  end
  state.connected = connected
end

local LOOK = 1 -- seconds between looks at the connection and at the reader of our output

local function watch(context)
  local given, store = context.options, context:open()
  if given.after and given["no-initial"] then options.fail(2, "--after has no initial pairs anyway") end
  local settings = {after = given.after, prev = given.prev, values = not given["keys-only"]}
  if given["no-initial"] then settings.initial = false end
  local open = given.recursive and store.watch_tree or store.watch
  local events = context:check(open(store, context.arguments[1], settings))
  local state, count, wait = {}, 0, 0
  -- A pipe's reader gets whole lines, each at once. (With line buffering, glibc tells nobody when the disk is full.)
  io.stdout:setvbuf("no")
  while true do
    local event, message, code = events:next(wait)
    if event then
      context:write(event_line(context, event) .. "\n")
      count, wait = count + 1, 0
      if count == given.count then return end
    elseif code == "timeout" then
      -- Nothing more is there: what was printed goes out, then we sleep.
      context:flush()
      if context.process.broken(1) then return 1 end
      if wait > 0 then tell_connection(context, events, state) end
      wait = LOOK
    elseif message then
      context:check(nil, message, code)
    else
      return
    end
  end
end

-- ---------------------------------------------------------------- info, version

-- Names that are supported, sorted, from a list or a set.
local function capability_names(capabilities)
  local names = {}
  for name, value in pairs(capabilities or {}) do
    if type(name) == "number" then names[#names + 1] = value elseif value then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

local function info(context)
  local store = context:open()
  context:check(store:ping())
  local known = context:check(store:info())
  local names = capability_names(known.capabilities)
  if context.options.json then
    context:write(format.json{{"store", tostring(store)}, {"backend", known.backend}, {"endpoint", known.endpoint},
      {"server_version", known.server_version}, {"connected", known.connected}, {"capabilities", names}}, "\n")
    return
  end
  local function line(name, value)
    if value ~= nil and value ~= "" then context:write(("%-14s %s\n"):format(name, tostring(value))) end
  end
  line("backend", known.backend)
  line("endpoint", known.endpoint)
  line("server version", known.server_version)
  line("capabilities", table.concat(names, " "))
end

local function version(context)
  local kv = context.kv
  local backends = kv.backends()
  table.sort(backends)
  context:write(("kv %s (%s; backends: %s)\n"):format(tostring(kv._VERSION):gsub("^kv ", ""),
    type(jit) == "table" and jit.version or _VERSION, table.concat(backends, ", ")))
end

-- ---------------------------------------------------------------- the table

return {
  {
    name = "get", usage = "KEY [--json]", arguments = {1, 1}, run = get, summary = "print the value of a key",
    details = "Prints the value of KEY, its bytes and nothing else (on a terminal a newline is added).\n" ..
      "Exit status 3 when there is no such key.",
    options = {JSON, FAST},
  },
  {
    name = "put", usage = "KEY VALUE|- [--ttl SECONDS] [--create | --if REVISION]", arguments = {2, 2}, run = put,
    summary = "write a key",
    details = "Writes VALUE to KEY; \"-\" reads the value from standard input. Parents appear by themselves.\n" ..
      "With --create or --if nothing is written, and the exit status is 1, when the condition does not hold.",
    options = {
      {name = "ttl", argument = "SECONDS", kind = "seconds", help = "let the key go away after that time"},
      {name = "create", kind = "flag", help = "only when the key is not there"},
      {name = "if", argument = "REVISION", kind = "revision", help = "only when this is still the key's revision"},
      {name = "json", kind = "flag", help = "print the key's new revision as JSON"},
    },
  },
  {
    name = "delete", usage = "KEY [--if REVISION] | -r DIRECTORY", arguments = {1, 1}, run = delete,
    summary = "delete a key or a tree",
    details = "Deletes KEY. Exit status 3 when it was not there.\n" ..
      "With -r everything below DIRECTORY, and the directory; \"\" is everything in the store's prefix.",
    options = {
      {name = "recursive", short = "r", kind = "flag", help = "everything below, too"},
      {name = "if", argument = "REVISION", kind = "revision", help = "only when this is still the key's revision"},
    },
  },
  {
    name = "list", usage = "[DIRECTORY]", arguments = {0, 1}, run = list, summary = "list the keys below a directory",
    details = "Prints the keys below DIRECTORY (default: all), sorted, one per line.",
    options = {
      {name = "values", short = "l", kind = "flag", help = "add a tab and the value, control characters as in C"},
      JSON,
      {name = "keys-only", kind = "flag", help = "leave values out of JSON"},
      {name = "shallow", short = "1", kind = "flag", help = "direct children only; directories end in /"},
      {name = "limit", argument = "COUNT", kind = "count", help = "at most so many"},
      {name = "after", argument = "KEY", kind = "text", help = "only keys behind this one"},
      FAST,
    },
  },
  {
    name = "watch", usage = "KEY | -r DIRECTORY", arguments = {1, 1}, run = watch,
    summary = "print changes as they happen",
    details = "Prints what is there (\"initial\"), then every change (\"put\", \"delete\"), one per line: type,\n" ..
      "key and value, separated by tabs, control characters as in C. KEY need not exist. A lost connection is\n" ..
      "healed, and what changed meanwhile is printed then.",
    options = {
      {name = "recursive", short = "r", kind = "flag", help = "everything below DIRECTORY; \"\" is the whole store"},
      JSON,
      {name = "no-initial", kind = "flag", help = "leave out what is there now"},
      {name = "after", argument = "REVISION", kind = "revision", help = "changes behind this revision"},
      {name = "keys-only", kind = "flag", help = "leave values out"},
      {name = "prev", kind = "flag", help = "with --json: the value before, as \"prev\""},
      {name = "count", short = "n", argument = "COUNT", kind = "count", help = "end after so many lines"},
    },
  },
  require("kv.cli.lock"),
  require("kv.cli.elect"),
  require("kv.cli.copy"),
  export.export,
  export.import,
  require("kv.cli.bench"),
  {
    name = "info", usage = "[--json]", arguments = {0, 0}, run = info, summary = "reach the store and tell about it",
    details = "Reaches the server, and prints what it is and what it can do.",
    options = {{name = "json", kind = "flag", help = "print JSON"}},
  },
  {
    name = "version", usage = "", arguments = {0, 0}, run = version, summary = "print the version",
    details = "Prints kv's version, the Lua that runs it and the backends that were built.",
  },
}
