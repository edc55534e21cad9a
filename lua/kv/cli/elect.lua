-- kv elect NAME [VALUE] -- COMMAND...: run a command while this process leads. kv elect NAME: who leads?

local hold = require("kv.cli.hold")
local options = require("kv.cli.options")

local MISUSE, NOT_FOUND = 2, 3

local function tell(context, election)
  if context.arguments[2] then
    options.fail(MISUSE, "the command is missing: kv elect %s VALUE -- COMMAND...", context.arguments[1])
  end
  local leader = context:check(election:leader())
  if not leader then options.fail(NOT_FOUND, 'nobody leads "%s"', context.arguments[1]) end
  context:write(leader.value, "\n")
end

local function run(context)
  local given, name, value = context.options, context.arguments[1], context.arguments[2]
  if context.behind then hold.check(context, ("kv elect %s VALUE -- COMMAND..."):format(name)) end
  local election = context:check(context:open():election(name, {ttl = given.ttl}))
  if not context.behind then return tell(context, election) end
  value = value or hold.value(context)
  return hold.run(context, {
    words = ('the leadership of "%s"'):format(name),
    acquire = function(seconds) return election:campaign(value, seconds) end,
    release = function() return election:resign() end,
    held = function() return election:is_leader() end,
    token = function() return election.token end,
  })
end

return {
  name = "elect", usage = "NAME [[VALUE] -- COMMAND...]", arguments = {1, 2}, split = true, run = run,
  summary = "run a command while this process leads",
  details = "Waits until this process leads the election NAME, runs COMMAND while it does, resigns and passes on\n" ..
    "COMMAND's exit status. VALUE (default: host and process id) is what everybody reads as long as it leads:\n" ..
    "kv elect NAME prints it, with exit status 3 when nobody leads. All else is as in kv lock: COMMAND is ended\n" ..
    "when the leadership is lost, signals are passed on to it, and KV_LOCK_TOKEN is larger for each later leader.\n" ..
    "Exit status 4: it did not come to lead in time, or lost that; 126, 127: COMMAND could not be run, was not found.",
  options = hold.options("election"),
}
