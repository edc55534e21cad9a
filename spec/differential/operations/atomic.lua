--- Compare and set: atomic_put, atomic_delete, update, and races between tasks.
local atomic = {}

atomic.atomic_put = {weight = 16, theme = "atomic"}

function atomic.atomic_put.make(maker, step)
  step.store, step.value = maker:store(), maker:value()
  step.key = maker.random:chance(70) and maker:known_key(step.store) or maker:key()
  step.previous, step.life = maker:previous(step.store, step.key, true), maker:life(step)
end

function atomic.atomic_put.run(run, step)
  local options = run:options(step, step.life)
  local there, previous = run:previous(step.previous)
  if not there or not options then return "skipped" end
  return run:answer(step, run:store(step.store):atomic_put(step.key, step.value, previous, options))
end

function atomic.atomic_put.show(step, text)
  return ("local r%d = %s:atomic_put(%s, %s, %s%s)"):format(step.id, step.store, text.string(step.key),
    text.string(step.value), text.previous(step.previous), text.life(step.life))
end

atomic.atomic_delete = {weight = 5, theme = "atomic"}

function atomic.atomic_delete.make(maker, step)
  step.store = maker:store()
  step.key = maker:known_key(step.store)
  step.previous = maker:previous(step.store, step.key, false)
  return not step.previous.wrong or maker.random:chance(20)
end

function atomic.atomic_delete.run(run, step)
  local there, previous = run:previous(step.previous)
  if not there then return "skipped" end
  local done, message, code = run:store(step.store):atomic_delete(step.key, previous)
  return done and tostring(done) or run.failure(message, code)
end

function atomic.atomic_delete.show(step, text)
  return ("%s:atomic_delete(%s, %s)"):format(step.store, text.string(step.key), text.previous(step.previous))
end

atomic.update = {weight = 5, theme = "atomic"}

function atomic.update.make(maker, step)
  step.store, step.key, step.life = maker:store(), maker:key(), maker:life(step)
  step.how = maker.random:weighted{{"append", 6}, {"leave", 1}, {"interfere", 3}, {"remove", 2}}
end

function atomic.update.run(run, step)
  local store, first = run:store(step.store), true
  local options = run:options(step, step.life)
  if not options then return "skipped" end
  return run:answer(step, store:update(step.key, function(value, pair)
    if (value == nil) ~= (pair == nil) then return "VALUE AND PAIR DISAGREE" end
    if step.how == "leave" then return nil end
    if step.how == "interfere" and first then store:put(step.key, (value or "") .. "!") end
    if step.how == "remove" and first then store:delete(step.key) end
    first = false
    return (value or ""):sub(1, 20) .. "+"
  end, options))
end

function atomic.update.show(step, text)
  local append, key = "return (value or \"\"):sub(1, 20) .. \"+\"", text.string(step.key)
  local bodies = {append = append, leave = "return nil",
    interfere = ("once(function() %s:put(%s, (value or \"\") .. \"!\") end) "):format(step.store, key) .. append,
    remove = ("once(function() %s:delete(%s) end) "):format(step.store, key) .. append}
  local body = bodies[step.how]
  return ("local r%d = %s:update(%s, function(value) %s end%s)"):format(step.id, step.store, text.string(step.key),
    body, text.life(step.life))
end

-- ------------------------------------------------------------------ races

local function in_tasks(run, count, fn)
  local tasks, results = {}, {}
  for i = 1, count do tasks[i] = run.env.spawn(function() return fn(i) end) end
  for i, task in ipairs(tasks) do results[i] = run.env.join(task, run.env.bound) or "NO RESULT" end
  return results
end

atomic.race = {weight = 2, theme = "atomic", tasks = true}

function atomic.race.make(maker, step)
  step.store, step.value = maker:store(), maker:value()
  step.key = maker:known_key(step.store)
  step.count, step.previous = 1 + maker.random:upto(4), maker:previous(step.store, step.key, true)
end

--- All write the same, so that who wins makes no difference.
function atomic.race.run(run, step)
  local there, previous = run:previous(step.previous)
  if not there then return "skipped" end
  local won
  local codes = in_tasks(run, step.count, function()
    local pair, _, code = run:store(step.store):atomic_put(step.key, step.value, previous)
    won = pair or won
    return pair and "ok" or tostring(code)
  end)
  table.sort(codes)
  return table.concat(codes, " ") .. (won and ": " .. run:answer(step, won) or "")
end

function atomic.race.show(step, text)
  return ("in %d tasks: %s:atomic_put(%s, %s, %s)"):format(step.count, step.store, text.string(step.key),
    text.string(step.value), text.previous(step.previous))
end

atomic.count = {weight = 2, theme = "atomic", tasks = true}

function atomic.count.make(maker, step)
  step.store, step.key, step.count = maker:store(), maker:key(), 1 + maker.random:upto(4)
end

function atomic.count.run(run, step)
  local codes = in_tasks(run, step.count, function()
    local pair, _, code = run:store(step.store):update(step.key, function(value)
      return (value or ""):sub(1, 20) .. "+"
    end)
    return pair and "ok" or tostring(code)
  end)
  return table.concat(codes, " ")
end

function atomic.count.show(step, text)
  return ("in %d tasks: %s:update(%s, function(value) return (value or \"\"):sub(1, 20) .. \"+\" end)"):format(
    step.count, step.store, text.string(step.key))
end

return atomic
