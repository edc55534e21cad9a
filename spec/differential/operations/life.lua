--- What makes keys go by themselves: the end of a short life, leases, and closing a store.
local life = {}

life.settle = {weight = 0} -- generate.lua places it

function life.settle.make() end

function life.settle.run(run)
  local gone = run:foresee("gone", function(world) return world:settle() end)
  for _, key in ipairs(gone) do
    if not run:await(function() return run:store("s0"):exists(key) == false end) then return "STILL THERE: " .. key end
  end
  return #gone .. " went: " .. table.concat(gone, " ")
end

function life.settle.show()
  return "wait until the keys with a short ttl are gone"
end

life.lease = {weight = 2}

function life.lease.make(maker, step)
  step.store = maker.random:pick{"s0", "s0", "s2"}
end

function life.lease.run(run, step)
  local lease, message, code = run:store(step.store):lease(run.LONG_SECONDS)
  if not lease then return run.failure(message, code) end
  run.leases[step.id], run.lease_stores[step.id] = lease, step.store
  return "alive " .. tostring(lease:alive())
end

function life.lease.show(step)
  return ("local lease%d = %s:lease(600)"):format(step.id, step.store)
end

life.revoke = {weight = 2}

function life.revoke.make(maker, step)
  step.lease = maker:any("lease", function(id)
    return maker.run.leases[id] and maker.run.leases[id]:alive()
  end)
  return step.lease ~= nil
end

function life.revoke.run(run, step)
  local lease = run.leases[step.lease]
  if not lease then return "skipped" end
  if not lease:alive() then return "not alive" end
  local done, message, code = lease:revoke()
  local text = (done and tostring(done) or run.failure(message, code)) .. ", alive " .. tostring(lease:alive())
  local reason, problem, why = lease:wait_lost(run.env.bound)
  return text .. ", lost: " .. (reason or run.failure(problem, why))
end

function life.revoke.show(step)
  return ("lease%d:revoke() lease%d:wait_lost()"):format(step.lease, step.lease)
end

-- Has the lock changed hands, or has nobody got it?
local function is_free(run, name)
  for _, waiter in pairs(run.waiters) do
    if waiter.lock.full == name then return true end
  end
  local holder, message = assert(run:store("s0"):lock(name)):holder()
  return holder == nil and message == nil
end

--- What the other store kept goes with it: keys and locks.
life.close = {weight = 1}

function life.close.make(maker, step)
  step.store = "s2"
  return maker:uses(step.store)
end

function life.close.run(run, step)
  local store = run:store(step.store)
  local gone, freed
  if run.world then
    local _, keys, locks = store:close()
    gone, freed = keys, locks
  end
  gone = run:foresee("gone", function() return gone end)
  freed = run:foresee("freed", function() return freed end)
  if not run.world then store:close() end
  for _, key in ipairs(gone) do
    if not run:await(function() return run:store("s0"):exists(key) == false end) then return "STILL THERE: " .. key end
  end
  for _, name in ipairs(freed) do
    if not run:await(function() return is_free(run, name) end) then return "STILL HELD: " .. name end
  end
  table.sort(gone)
  local alive = 0
  for id, lease in pairs(run.leases) do
    if lease:alive() and run.lease_stores[id] == step.store then alive = alive + 1 end
  end
  for _, lock in pairs(run.locks) do
    if lock.handle:held() and lock.store == step.store then alive = alive + 1 end
  end
  return ("closed, %s went, %s free, %d handles alive"):format(table.concat(gone, " "), table.concat(freed, " "), alive)
end

function life.close.show(step)
  return ("%s:close() and wait until what it kept is gone"):format(step.store)
end

return life
