--- Locks: handles on two names, by several stores, with one waiter for each name, since the order in which two begin to
-- wait cannot be told from outside.
local locks = {}

local NAMES = {{"l", 4}, {"a/l", 1}} -- the second is s1's "l"

locks.lock = {weight = 4, theme = "lock"}

function locks.lock.make(maker, step)
  step.store, step.name = maker.random:pick{"s0", "s2", "s1"}, maker.random:weighted(NAMES)
  step.value = maker.random:pick{"", "mine", "yours"}
end

function locks.lock.run(run, step)
  local handle, message, code = run:store(step.store):lock(step.name, {value = step.value, ttl = 60})
  if not handle then return run.failure(message, code) end
  run.locks[step.id] = {handle = handle, full = run:full(step.store, step.name), store = step.store}
  return handle:state()
end

function locks.lock.show(step, text)
  return ("local lock%d = %s:lock(%s, {value = %s, ttl = 60})"):format(step.id, step.store, text.string(step.name),
    text.string(step.value))
end

-- Makes a step on a handle, mostly one in a state that likely(handle, holder) accepts.
local function on_lock(likely)
  return function(maker, step)
    step.lock = maker:any("lock", function(id)
      local lock = maker.run.locks[id]
      return lock and likely(lock.handle:state(), lock.handle:holder() ~= nil)
    end)
    return step.lock ~= nil
  end
end

local function is_held(state) return state == "held" end
local function is_free(state, somebody) return state == "free" and not somebody end
local function is_others(state, somebody) return state == "free" and somebody end

-- A handle that waits is left alone until it is granted.
local function waits(run, id)
  for _, waiter in pairs(run.waiters) do
    if waiter.id == id then return true end
  end
end

local function of_handle(fn)
  return function(run, step)
    local lock = run.locks[step.lock]
    if not lock or waits(run, step.lock) then return "skipped" end
    return fn(run, lock, step)
  end
end

locks.acquire = {weight = 6, theme = "lock", make = on_lock(is_free)}

locks.acquire.run = of_handle(function(run, lock)
  local got, message, code = lock.handle:acquire(0)
  if not got then return run.failure(message, code) end
  return run:token(lock)
end)

function locks.acquire.show(step)
  return ("lock%d:acquire(0)"):format(step.lock)
end

locks.release = {weight = 5, theme = "lock", make = on_lock(is_held)}

locks.release.run = of_handle(function(run, lock)
  local done, message, code = lock.handle:release()
  if not done then return run.failure(message, code) end
  local reason, problem, why = lock.handle:wait_lost(run.env.bound)
  return tostring(done) .. ", lost: " .. (reason or run.failure(problem, why))
end)

function locks.release.show(step)
  return ("lock%d:release() lock%d:wait_lost()"):format(step.lock, step.lock)
end

locks.look = {weight = 3, theme = "lock", make = on_lock(is_held)}

locks.look.run = of_handle(function(run, lock)
  local holder, message, code = lock.handle:holder()
  local text = ("held %s, "):format(tostring(lock.handle:held()))
  if not holder then return text .. run.failure(message, code) end
  return text .. ("by %s with %s"):format(run.quote(holder.value), run.names:give("lock " .. lock.full, holder.token))
end)

function locks.look.show(step)
  return ("lock%d:held() lock%d:holder()"):format(step.lock, step.lock)
end

locks.queue = {weight = 3, theme = "lock", make = on_lock(is_others), tasks = true}

--- Acquire in a task that waits. Who waits gets it in the step that lets it go: see run_program.lua.
locks.queue.run = of_handle(function(run, lock, step)
  for _, waiter in pairs(run.waiters) do
    if waiter.lock.full == lock.full then return "skipped" end
  end
  local task = run.env.spawn(function() return lock.handle:acquire(60) end)
  run.waiters[step.id] = {task = task, lock = lock, id = step.lock}
  local begun = run:await(function() return lock.handle:state() ~= "free" or task.done end)
  return begun and "begun" or "NOT BEGUN"
end)

function locks.queue.show(step)
  return ("kv.spawn(function() lock%d:acquire(60) end)"):format(step.lock)
end

locks.give_up = {weight = 1, theme = "lock", tasks = true}

function locks.give_up.make(maker, step)
  step.queue = maker:any("queue", function(id) return maker.run.waiters[id] end)
  return step.queue ~= nil
end

function locks.give_up.run(run, step)
  local waiter = run.waiters[step.queue]
  if not waiter then return "skipped" end
  run.env.cancel(waiter.task, waiter.lock.handle)
  return "cancelled"
end

function locks.give_up.show(step)
  return ("cancel the task of step %d"):format(step.queue)
end

locks.with_lock = {weight = 2, theme = "lock"}

function locks.with_lock.make(maker, step)
  step.store, step.name = maker.random:pick{"s0", "s2", "s1"}, maker.random:weighted(NAMES)
  step.key, step.value = maker:key(), maker:value()
end

function locks.with_lock.run(run, step)
  local store = run:store(step.store)
  local result, message, code = store:with_lock(step.name, {timeout = 0}, function(lock)
    local pair, problem, why = store:txn():guard(lock):put(step.key, step.value):commit()
    return ("held %s, %s"):format(tostring(lock:held()), pair and "written" or run.failure(problem, why))
  end)
  return result or run.failure(message, code)
end

function locks.with_lock.show(step, text)
  local body = ("%s:txn():guard(lock):put(%s, %s):commit()"):format(step.store, text.string(step.key),
    text.string(step.value))
  return ("%s:with_lock(%s, {timeout = 0}, function(lock) return %s end)"):format(step.store,
    text.string(step.name), body)
end

return locks
