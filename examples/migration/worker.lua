-- A worker that goes on while its keys are moved from one store to another: lua worker.lua OLD NEW NAME
--
-- It counts in the key count/NAME, ROUNDS times after the move, and says how far it came. A write to the old store has
-- the condition that the mark of the move is not there, in the same transaction: so behind the mark not one write lands
-- in the old store, and none is lost.

local kv = require("kv")

local MARK = "moved" -- in the old store: no more writes here; in the new one: go on here
local ROUNDS = tonumber(os.getenv("ROUNDS")) or 500
local old_url, new_url, name = arg[1], arg[2], arg[3]
local key = "count/" .. name

-- One step in a store. True, or nil and why not.
local function step(store, guarded)
  local pair, message, code = store:get(key)
  if message then return nil, code, message end
  local txn = store:txn()
  if guarded then txn:check_absent(MARK) end
  if pair then txn:check(key, pair) else txn:check_absent(key) end
  local done
  done, message, code = txn:put(key, ("%d"):format((pair and pair.value or 0) + 1)):commit()
  if done then return true end
  return nil, code, message
end

local function move_on(old)
  local new = assert(kv.open(new_url))
  local watch = assert(new:watch(MARK))
  repeat until assert(watch:next()).type == "put"
  watch:close()
  old:close()
  return new
end

io.stdout:setvbuf("line")
local store, guarded, count, last = assert(kv.open(old_url)), true, 0, math.huge
while count < last do
  local done, code, message = step(store, guarded)
  if done then
    count = count + 1
    kv.sleep(0.002)
  elseif code ~= "modified" then
    error(message, 0)
  elseif guarded and assert(store:get(MARK)) then
    print(("%s goes on in the new store from %d"):format(name, count))
    store, guarded, last = move_on(store), false, count + ROUNDS
  end
end
print(("%s has counted to %d"):format(name, count))
store:close()
