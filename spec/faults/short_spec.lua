--- The fault suite for seconds, on each backend; `make torture` runs it for longer (scripts/run-torture).
local torture = require("spec.faults.torture")

describe("a short torture of", function()
  -- So that it is no empty show.
  local function enough(backend)
    return function(counts)
      return counts.registers.operations > 100 and counts.locks.holds > 5 and
        (counts.locks.guarded > 5 or backend == "etcd2") and counts.watches.events > 50
    end
  end

  for _, case in ipairs{{"local", 6}, {"etcd", 12}, {"consul", 12}, {"zookeeper", 12}, {"etcd2", 8}} do
    local backend, seconds = case[1], case[2]
    it(backend .. " shows nothing wrong", function()
      local report = torture.run{backend = backend, seconds = seconds, seed = 1, calm = 1,
        until_counts = enough(backend)}
      local counts = assert(report.counts, table.concat(report.problems, "\n"))
      assert.equal(0, #report.problems, torture.text(report))
      assert.is_true(enough(backend)(counts), torture.text(report))
    end)
  end
end)
