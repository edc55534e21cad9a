-- One at a time, between any number of processes and machines. Start it in several terminals:
--
--   lua examples/lock_between_processes.lua [URL [SECONDS]]   default: $KV_URL or local:/tmp/kv-example, 5
--
-- Stop the holder with ^C or kill -9: the next one in line gets the lock. Stop it with ^Z for longer than the TTL and
-- wake it again: it finds that it lost the lock, and its write is refused.

local kv = require("kv")

local store = assert(kv.open(arg[1] or os.getenv("KV_URL") or "local:/tmp/kv-example"))
local seconds = tonumber(arg[2]) or 5

local lock = assert(store:lock("example", {ttl = 10}))
local holder = lock:holder()
if holder then print(("waiting: somebody holds the lock with token %d"):format(holder.token)) end
assert(lock:acquire())
print(("got the lock with token %d"):format(lock.token))

-- The lock is renewed by a thread of its own, so this could as well compute.
local reason = lock:wait_lost(seconds)
if reason then print("lost: " .. reason) end

-- held() says what we know; guard() lets the store itself refuse the write of a former holder.
local result, message, code = store:txn():guard(lock):put("example/last-token", ("%d"):format(lock.token)):commit()
print(result and "the work is written" or ("refused (%s): %s"):format(code, message))

print("released", lock:release())
store:close()
