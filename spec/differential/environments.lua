--- Where programs run: what run_program.lua needs of the model, and of a backend.
--
--    traits              see backends.lua
--    open(options)       a store; now(), sleep(seconds), pcall
--    spawn(fn), join(task, seconds), cancel(task, lock)
--    patience            a factor for short lives, for machines that are slow
--    bound               seconds to wait for what must come
--    world               the model's only: what there is, see model.lua
local kv = require("kv")
local model = require("spec.differential.model")
local native = require("spec.native")

local environments = {}

local count = 0
local start = ("%x"):format(math.floor(native.now() * 1000) % 2 ^ 31)

--- The model's, with a new world.
function environments.of_model(traits, patience)
  local world = model.new(traits)
  local env = {world = world, traits = traits, patience = patience, bound = 0, pcall = pcall, now = native.now}
  function env.open(options) return world:open(options) end
  function env.spawn(fn)
    local task = {}
    task.co = coroutine.create(function()
      task.values = {fn()}
      task.done = true
    end)
    assert(coroutine.resume(task.co))
    return task
  end
  function env.join(task) return (unpack or table.unpack)(task.values, 1, 3) end
  function env.cancel(_, lock) lock:give_up("cancelled") end
  return env
end

--- A backend's, with a place of its own there.
function environments.of_backend(backend, patience, bound)
  count = count + 1
  local prefix = ("differential-%s-%d"):format(start, count)
  local env = {traits = backend.traits, patience = patience, bound = bound, pcall = kv.pcall, now = native.now,
    sleep = kv.sleep, spawn = kv.spawn}
  function env.open(options)
    options.prefix = options.prefix == "" and prefix or prefix .. "/" .. options.prefix
    return backend.open(options)
  end
  function env.join(task, seconds) return task:join(seconds) end
  function env.cancel(task) task:cancel() end
  return env
end

return environments
