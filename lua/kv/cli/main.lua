-- The command line as a whole: options that every command takes, choosing the command, help, and how a failure ends.
--
-- A command is a table (see commands.lua): name, usage, summary, details, options, arguments = {least, most} and
-- run(context), which returns an exit status, or nothing for 0; it fails by options.fail() or context:check().

local commands = require("kv.cli.commands")
local COMMON = require("kv.cli.common")
local options = require("kv.cli.options")

local main = {}

local DONE, FAILED, MISUSE, NOT_FOUND, NO_LOCK = 0, 1, 2, 3, 4
main.status = {done = DONE, failed = FAILED, misuse = MISUSE, not_found = NOT_FOUND, no_lock = NO_LOCK}

-- Codes that are the caller's mistake. Everything else is 1, and locks have their own.
local STATUS_OF = {invalid = MISUSE}

-- ---------------------------------------------------------------- help

local function overall_help()
  local lines = {
    "Usage: kv [-s URL] COMMAND ...",
    "",
    "Reads, writes, watches and locks in etcd, Consul, ZooKeeper or an embedded store.",
    "",
    "Commands:",
  }
  for _, command in ipairs(commands) do lines[#lines + 1] = ("  %-9s%s"):format(command.name, command.summary) end
  lines[#lines + 1] = ""
  lines[#lines + 1] = "Options:"
  lines[#lines + 1] = options.help(COMMON)
  lines[#lines + 1] = [[

Stores:
  local:/var/lib/app               a folder, shared by the processes that open it
  etcd://host:2379,other:2379/app  etcd, v3 API; etcds:// with TLS
  etcd2://host:2379/app            etcd, v2 API; etcd2s:// with TLS
  consul://host:8500/app           Consul; consuls:// with TLS
  zk://host:2181,other:2181/app    ZooKeeper; zks:// with TLS

Exit status: 0 done, 1 failed, 2 misuse, 3 not found, 4 lock not obtained or lost.
"kv COMMAND --help" tells more about a command.]]
  return table.concat(lines, "\n") .. "\n"
end

local function command_options(command)
  local all = {}
  for _, option in ipairs(command.options or {}) do all[#all + 1] = option end
  for _, option in ipairs(COMMON) do all[#all + 1] = option end
  return all
end

local function usage_line(command)
  return "Usage: kv [-s URL] " .. command.name .. (command.usage ~= "" and " " .. command.usage or "")
end

local function command_help(command)
  local known = options.help(command_options(command))
  return ("%s\n\n%s\n\nOptions:\n%s\n"):format(usage_line(command), command.details, known)
end

-- ---------------------------------------------------------------- what commands get

local context_methods = {}
local context_meta = {__index = context_methods}

-- The command's output. A reader that has gone ends the command quietly.
local function written(context, ok, problem)
  if ok then return end
  if context.process.broken(1) then options.fail(FAILED, "") end
  options.fail(FAILED, "the output cannot be written: %s", tostring(problem))
end

function context_methods:write(...) written(self, io.stdout:write(...)) end

function context_methods:flush() written(self, io.stdout:flush()) end

-- For people, while the command goes on.
function context_methods:note(text, ...)
  self:flush() -- what was printed before stands before it
  io.stderr:write("kv: ", self.command.name, ": ", text:format(...), "\n")
end

-- kv's convention: what a call returned, or its failure as this command's.
function context_methods:check(...)
  local result, message, code = ...
  if result == nil and message and code then options.fail(STATUS_OF[code] or FAILED, "%s", message) end
  return ...
end

-- A store of this URL, closed when the command ends.
function context_methods:open_url(url)
  if self.options.timeout == 0 then options.fail(MISUSE, "--timeout must be more than 0") end
  local settings = self.options.timeout and {timeout = self.options.timeout} or nil
  local store = self:check(self.kv.open(url, settings))
  self.opened[#self.opened + 1] = store
  return store
end

-- The store that was named, opened when first asked for.
function context_methods:open()
  if self.store then return self.store end
  local url = self.options.store or os.getenv("KV_URL")
  if not url or url == "" then
    options.fail(MISUSE, "which store? Give -s URL or set KV_URL, for example: kv -s local:/tmp/try %s",
      self.command.name)
  end
  self.store = self:open_url(url)
  return self.store
end

-- ---------------------------------------------------------------- running

local function find_command(name)
  local names = {}
  for i, command in ipairs(commands) do
    if command.name == name then return command end
    names[i] = command.name
  end
  local hint = options.suggestion(name, names)
  options.fail(MISUSE, 'unknown command "%s"%s; "kv --help" lists them', name, hint)
end

local function check_count(command, arguments)
  local least, most = command.arguments[1], command.arguments[2]
  if #arguments < least then options.fail(MISUSE, "an argument is missing. %s", usage_line(command)) end
  if #arguments > most then
    options.fail(MISUSE, 'one argument too many: "%s". %s', arguments[most + 1], usage_line(command))
  end
end

local function load_module(name)
  local ok, module = pcall(require, name)
  if not ok then options.fail(FAILED, "the module %s cannot be loaded: %s", name, tostring(module)) end
  return module
end

-- "kv help COMMAND" is what people try first.
local function show_help(word)
  io.stdout:write(word and command_help(find_command(word)) or overall_help())
  return DONE
end

local function dispatch(words, state)
  local given = {}
  local _, at = options.parse(COMMON, words, 1, given, {stop_early = true})
  local name = words[at]
  if name == "help" then return show_help(words[at + 1]) end
  if given.help then return show_help(name) end
  if not name then
    io.stderr:write(overall_help())
    return MISUSE
  end
  local command = find_command(name)
  state.command = command
  local arguments, _, behind = options.parse(command_options(command), words, at + 1, given, {split = command.split})
  if given.help then return show_help(name) end
  check_count(command, arguments)
  local context = {command = command, options = given, arguments = arguments, behind = behind,
    opened = {}}
  setmetatable(context, context_meta)
  state.context = context
  context.process = load_module("kv.process")
  -- ^C ends the program as it ends any other, without a Lua traceback.
  context.process.reset{context.process.signal("INT")}
  context.kv = load_module("kv")
  local status = command.run(context) or DONE
  context:flush()
  return status
end

local function report(failure, state)
  if type(failure) ~= "table" or not failure.status then
    io.stderr:write("kv: internal error: ", tostring(failure), "\n")
    return FAILED
  end
  local message = failure.message
  if message == "" then return failure.status end
  local name = state.command and state.command.name
  -- Messages of the module begin with the operation already.
  if name and message:sub(1, #name + 1) ~= name .. " " then message = name .. ": " .. message end
  io.stderr:write("kv: ", message, "\n")
  return failure.status
end

-- Run one command line (a list of words); returns the exit status.
function main.run(words)
  local state = {}
  local function handler(failure)
    if type(failure) == "table" then return failure end
    return debug.traceback(tostring(failure), 2)
  end
  local ok, result = xpcall(function() return dispatch(words, state) end, handler)
  if not ok then result = report(result, state) end
  for _, store in ipairs(state.context and state.context.opened or {}) do store:close() end
  return result
end

return main
