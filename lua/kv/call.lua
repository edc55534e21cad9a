--- What the files of handles share: how a call of the core ends, and how misuse of a method is told.
--
-- A handle is a table with a metatable of its name; the core's handle is in it, and the table of its store, so that a
-- store that the program forgot stays open while something made from it is in use.
--
-- A method that waits must not end in a tail call: it would take its own handle off the stack, and the collector could
-- close the store under the request.
local core = require("kv.core")
local options = require("kv.options")
local scheduler = require("kv.scheduler")

local call = {}

local await = scheduler.await

--- The results of a core function (see csrc/lua/binding.h), waited for where they are not here already.
function call.finish(state, ...)
  if state == false then return ... end
  if state == nil then return nil, ... end
  return await(state, (...))
end

--- Raise: a method was called on something else than its handle.
function call.wrong_self(name)
  error(("%s: call it with a colon, on the handle that has it"):format(name), 3)
end

--- Raise (at the caller of the method, or at `level`) unless the optional timeout of a method is a number; nil,
-- message, "invalid" are left to the caller.
-- @return what is wrong with its value, or nil
function call.check_timeout(name, timeout, level)
  if timeout == nil then return nil end
  local wrong = options.check_argument(name, "timeout", "seconds", timeout, level or 4)
  return wrong
end

--- A function that gives the rest of a timeout, as the core takes it, for calls that ask more than once. `timeout` is
-- what options.timeout() gave; a negative one is the store's own.
function call.time_left(timeout, store)
  if timeout < 0 then timeout = core.timeout(store._store) end
  local deadline = core.clock() + timeout
  return function() return math.max(deadline - core.clock(), options.TINY) end
end

--- A class of handles: its methods, its metatable, and the name by which getmetatable() knows it.
function call.class(name)
  local methods = {}
  return methods, {__index = methods, __metatable = name}
end

return call
