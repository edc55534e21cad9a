--- Runs the fault suite from a shell: lua spec/faults/run.lua BACKEND [--seconds N] [--seed N] [--keep] [--quiet]
--   [--judge FOLDER]      only look at histories that were kept
--   [--killed ROUNDS]     instead: holders and waiters of locks killed so often, and how long the next one waits
-- Exit status 1 when something is wrong. scripts/run-torture runs it for each backend.
local clusters = require("spec.faults.clusters")
local killed = require("spec.faults.killed")
local lfs = require("lfs")
local torture = require("spec.faults.torture")
local util = require("spec.support.util")

local options = {backend = arg[1], seconds = 60, seed = os.time() % 100000}
local i = 2
while arg[i] do
  local name = arg[i]:match("^%-%-(%w+)$") or error("what is " .. arg[i] .. "?")
  if name == "keep" or name == "quiet" then
    options[name] = true
  else
    options[name] = tonumber(arg[i + 1]) or arg[i + 1]
    i = i + 1
  end
  i = i + 1
end

local LANES = {consul = 10, ["local"] = 1}
local TTL = 2

-- spec/faults/killed.lua against a cluster.
local function kill_holders()
  local cluster = clusters.start(options.backend)
  local wait = cluster:takeover_seconds(TTL)
  io.write(("%s %s: %d times a holder is killed, TTL %d\n"):format(options.backend, tostring(cluster:version()),
    options.killed, TTL))
  local problems, counts = killed.run{cluster = cluster, rounds = options.killed, lanes = LANES[options.backend] or 4,
    waiters = 3, ttl = TTL, promised = wait, limit = math.max(wait, 4)}
  cluster:stop()
  io.write(("  the next one holds after %.3f s on the average, %.3f s at the most; more than %.1f s: %d times"):format(
    counts.sum / counts.rounds, counts.longest, wait, counts.late))
  io.write(("; %d waiters displaced\n"):format(counts.displaced))
  for _, problem in ipairs(problems) do io.write("  PROBLEM ", problem, "\n") end
  os.exit(#problems == 0 and counts.rounds == options.killed and 0 or 1, true)
end

if options.killed then kill_holders() end

local report
if options.judge then
  local files = {}
  for name in lfs.dir(options.judge) do
    if name:find("%.log$") then files[#files + 1] = options.judge .. "/" .. name end
  end
  report = {problems = {}, backend = options.backend, seed = 0, seconds = 0, folder = options.judge}
  report.counts = torture.judge(files, options, report.problems)
else
  if not options.quiet then options.tell = function(text) io.stderr:write(text, "\n") end end
  report = torture.run(options)
  if #report.problems > 0 or options.keep then
    -- The end of this program removes its temporary folders.
    local kept = (os.getenv("KV_BUILD") or "build") .. ("/torture/%s-%d"):format(report.backend, report.seed)
    os.execute(("rm -rf '%s' && mkdir -p '%s' && cp -r '%s/.' '%s'"):format(kept, kept, report.folder, kept))
    util.remove(report.folder)
    report.folder = kept
  end
end
io.write(torture.text(report), "\n")
os.exit(#report.problems == 0 and 0 or 1, true)
