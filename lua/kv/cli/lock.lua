-- kv lock NAME [-n | -t SECONDS] -- COMMAND...: run a command while a lock is held.

local hold = require("kv.cli.hold")

local function run(context)
  local given, name = context.options, context.arguments[1]
  hold.check(context, ("kv lock %s -- COMMAND..."):format(name))
  local value = given.value or hold.value(context)
  local lock = context:check(context:open():lock(name, {ttl = given.ttl, value = value, interop = given.interop}))
  return hold.run(context, {
    words = ('the lock "%s"'):format(name),
    acquire = function(seconds) return lock:acquire(seconds) end,
    release = function() return lock:release() end,
    held = function() return lock:held() end,
    token = function() return lock.token end,
  })
end

local known = hold.options("lock")
known[#known + 1] = {name = "value", argument = "TEXT", kind = "text",
  help = "shown to others; default: host and process id"}
known[#known + 1] = {name = "interop", argument = "KIND", kind = "text",
  help = "share the lock with other programs: etcd, consul, kazoo or curator. NAME is then theirs"}

return {
  name = "lock", usage = "NAME [-n | -t SECONDS] -- COMMAND...", arguments = {1, 1}, split = true, run = run,
  summary = "run a command while a lock is held",
  details = "Waits for the lock NAME, runs COMMAND while it is held, lets go and passes on COMMAND's exit status\n" ..
    "(128 + number when a signal ended it). The lock is renewed as long as COMMAND runs, and free soon after this\n" ..
    "process dies. When the lock is lost, COMMAND is ended (TERM, then KILL). Signals are passed on to it. Its\n" ..
    "environment has KV_LOCK_TOKEN: a number that is larger for each later holder, to be checked by whatever\n" ..
    "COMMAND writes to.\n" ..
    "Exit status 4: the lock was not obtained in time, or lost; 126, 127: COMMAND could not be run, was not found.",
  options = known,
}
