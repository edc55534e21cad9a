--- The heap of what is due when.
local Timers = require("kv.timers")

describe("timers", function()
  it("give what is due, the earliest first", function()
    local timers = Timers.new()
    for _, at in ipairs{5, 1, 4, 2, 3} do timers:add(at, "at " .. at) end
    assert.equal(1, timers:next_at())
    assert.is_nil(timers:take(0.5))
    assert.equal("at 1", timers:take(3))
    assert.equal("at 2", timers:take(3))
    assert.equal("at 3", timers:take(3))
    assert.is_nil(timers:take(3))
    assert.equal(4, timers:next_at())
    assert.equal("at 4", timers:take(100))
    assert.equal("at 5", timers:take(100))
    assert.is_nil(timers:take(100))
    assert.is_nil(timers:next_at())
  end)

  it("leave out what was stopped", function()
    local timers = Timers.new()
    local first, second = timers:add(1, "first"), timers:add(2, "second")
    timers:stop(first)
    timers:stop(first)
    assert.equal(2, timers:next_at())
    assert.equal("second", timers:take(10))
    timers:stop(second) -- taken already
    assert.is_nil(timers:next_at())
  end)

  it("do not keep what was stopped", function()
    local timers = Timers.new()
    timers:add(0, "the only one")
    for i = 1, 10000 do timers:stop(timers:add(i, {})) end
    assert.is_true(timers.size < 200, timers.size)
    assert.equal("the only one", timers:take(1))
  end)

  it("agree with a sorted list, in any order of doing", function()
    math.randomseed(1)
    local timers, model = Timers.new(), {}
    for step = 1, 5000 do
      local what = math.random(3)
      if what == 1 or #model == 0 then
        local at = math.random(1000)
        local entry = timers:add(at, step)
        model[#model + 1] = {at = at, entry = entry}
      elseif what == 2 then
        timers:stop(table.remove(model, math.random(#model)).entry)
      else
        table.sort(model, function(left, right) return left.at < right.at end)
        local at = timers:next_at()
        assert.equal(model[1].at, at)
        local taken, found = timers:take(at), false
        assert.is_truthy(taken)
        for i, item in ipairs(model) do
          if item.at == at and item.entry.what == nil then
            table.remove(model, i)
            found = true
            break
          end
        end
        assert.is_true(found)
      end
    end
    for _ = 1, #model do assert.is_truthy(timers:take(1000)) end
    assert.is_nil(timers:next_at())
  end)
end)
