--- The checker of keys that expire, on histories by hand.
local ttl_check = require("spec.faults.ttl_check")

local operations

local function put(call, value, ttl, outcome)
  operations[#operations + 1] = {kind = "expire", call = call, ret = call + 0.1, outcome = outcome or "ok",
    args = {"k", value, ttl and tostring(ttl)}, result = {"1"}}
end

local function look(call, value)
  operations[#operations + 1] = {kind = "look", call = call, ret = call + 0.1, outcome = "ok", args = {"k"},
    result = {value}}
end

local function problems(left) return (ttl_check.check(operations, left)) end

local function bad(text, left)
  local found = problems(left)
  assert.equal(1, #found)
  assert.truthy(found[1]:find(text, 1, true), found[1])
end

describe("the checker of keys that expire", function()
  before_each(function() operations = {} end)

  it("takes keys that live as long as they should", function()
    put(1, "1", 3)
    look(2, "1")
    look(3.8, "1")
    look(4.1, nil)
    put(5, "2", 3)
    put(6, "3")
    look(100, "3")
    put(101, "4", 3)
    look(107, "4")
    look(108, nil)
    assert.same({}, problems())
  end)

  it("takes a write in doubt that comes after the next one", function()
    put(1, "1", 3)
    put(2, "2", 3, "unknown")
    put(3, "3")
    look(4, "3")
    look(5, "2")
    look(6, nil)
    assert.same({}, problems())
    look(7, "1")
    bad("not what was written last")
  end)

  it("sees one that goes early", function()
    put(1, "1", 3)
    look(3.8, nil)
    bad("it is gone, and should live until")
  end)

  it("sees one that goes though it was made permanent", function()
    put(1, "1", 3)
    put(2, "2")
    look(50, nil)
    bad("it is gone, and should live until")
  end)

  it("sees one that stays", function()
    put(1, "1", 3)
    look(7.2, "1") -- while things go wrong it may
    bad("still there in the end", {k = "1"})
    put(8, "2")
    assert.same({}, problems{k = "2"})
  end)

  it("sees an old value, and knows that an unknown one may be either", function()
    put(1, "1", 3)
    put(2, "2", 3, "unknown")
    look(2.5, "1")
    look(50, "2")
    look(51, nil)
    put(60, "3", 3, "fail")
    put(61, "4", 3)
    assert.same({}, problems())
    look(62, "3")
    bad("not what was written last")
  end)
end)
