-- The whole interface in one sitting. Needs nothing but the module:
--
--   lua examples/quickstart.lua                            on a temporary embedded store
--   lua examples/quickstart.lua local:/tmp/quickstart      on one that stays
--   lua examples/quickstart.lua etcd://localhost:2379/try  unchanged on etcd

local kv = require("kv")

local store = assert(kv.open(arg[1] or "local:"))

-- Every call returns a value, or nil, a message for people and a code for programs. assert() prints the message.
local pair = assert(store:put("services/web/1", "10.0.0.1:80"))
print("written at revision", pair.revision)
print("read", assert(store:get("services/web/1")).value)

-- A key that is not there is no error.
print("missing", store:get("services/none"))

-- Directories need not be made; a listing is sorted.
assert(store:put_many{["services/web/2"] = "10.0.0.2:80", ["services/db/1"] = "10.0.0.3:5432"})
for _, found in ipairs(assert(store:list("services"))) do print("listed", found.key, found.value) end

-- Compare-and-set: by hand with the pair that was read, or in a loop that update() makes.
local _, message, code = store:atomic_put("services/web/1", "elsewhere", pair.revision - 1)
print("refused", code, message)
assert(store:update("visits", function(value) return ("%d"):format((value or 0) + 1) end))
print("visits", assert(store:get("visits")).value)

-- All or nothing.
local txn = store:txn():check("services/web/1", pair):delete("services/web/1"):put("services/web/3", pair.value)
print("moved at revision", assert(txn:commit()).revision)

-- A key that goes away by itself.
assert(store:put("sessions/ada", "here", {ttl = 60}))

-- Tasks: whatever waits yields to the others. Outside of kv.run the same calls simply block.
kv.run(function()
  local watch = assert(store:watch_tree("services", {initial = false}))
  kv.spawn(function()
    assert(watch:wait_synced(5))
    assert(store:put("services/web/4", "10.0.0.4:80"))
    assert(store:delete("services/db/1"))
  end)
  for _ = 1, 2 do
    local event = assert(watch:next(5))
    print("watched", event.type, event.key, event.value)
  end
  watch:close()
end)

-- A lock, its fencing token, and a write that only its holder can make.
local result = assert(store:with_lock("report", {ttl = 10, timeout = 5}, function(lock)
  assert(store:txn():guard(lock):put("report", "written under lock"):commit())
  return "done with token " .. ("%d"):format(lock.token)
end))
print("lock", result)

assert(store:delete_tree("services"))
store:close()
