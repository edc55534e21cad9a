--- The checker of histories of locks, on histories by hand: each rule with one that keeps it and one that breaks it.
local lock_check = require("spec.faults.lock_check")

local operations, notes

local function add(kind, call, ret, worker, args, result, outcome)
  operations[#operations + 1] = {worker = worker, kind = kind, args = args, call = call, ret = ret,
    outcome = outcome or "ok", result = result}
end

local function acquire(worker, call, ret, token, limit) add("acquire", call, ret, worker, {"L", limit}, {token}) end
local function guard(worker, call, token, revision)
  add("guard", call, call + 0.1, worker, {"L", token}, {revision})
end
local function held(worker, token, before, after)
  notes[#notes + 1] = {worker = worker, time = after, kind = "held", args = {"L", token, before}}
end

local function problems() return (lock_check.check(operations, notes)) end
local function good() assert.same({}, problems()) end
local function bad(text, count)
  local found = problems()
  assert.equal(count or 1, #found, table.concat(found, "\n"))
  assert.truthy(found[1]:find(text, 1, true), found[1])
end

describe("the checker of locks", function()
  before_each(function() operations, notes = {}, {} end)

  it("takes holders one after the other", function()
    acquire("a", 1, 2, "10")
    held("a", "10", 2.1, 2.2)
    guard("a", 2.5, "10", "100")
    held("a", "10", 2.9, 3)
    acquire("b", 1.5, 4, "20")
    held("b", "20", 4.1, 4.2)
    guard("b", 4.5, "20", "101")
    add("guard", 5, 5.1, "a", {"L", "10"}, {"not_held", "lost"}, "fail")
    add("guard", 5, 5.1, "a", {"L", "10"}, {"no answer"}, "unknown")
    held("b", "20", 5, 5.1)
    good()
    local _, counts = lock_check.check(operations, notes)
    assert.same({locks = 1, holds = 2, guarded = 2, refused = 1}, counts)
  end)

  it("sees a resource that accepts an older holder, by its revisions", function()
    acquire("a", 1, 2, "10")
    acquire("b", 1, 4, "20")
    guard("b", 3.5, "20", "100") -- b knows it before its acquire has returned: only revisions tell
    guard("a", 3.6, "10", "101")
    bad("the resource accepted token 10")
  end)

  it("sees a write of an older holder that began after the younger one was told", function()
    acquire("a", 1, 2, "10")
    acquire("b", 1, 4, "20")
    guard("a", 5, "10", "100")
    bad("was accepted after b")
  end)

  it("sees two who hold at once, and not what only may be so", function()
    acquire("a", 1, 2, "10")
    held("a", "10", 2.1, 2.2)
    acquire("b", 1, 4, "20")
    held("b", "20", 4.1, 4.2)
    held("b", "20", 6, 6.1)
    held("a", "10", 4.15, 9) -- it was asked at 4.15 or later, and may have been told before b's time
    good()
    held("a", "10", 5, 9)
    bad("2 holders at once")
  end)

  it("lays at the server's door what a deposed leader revoked", function()
    acquire("a", 1, 2, "10")
    held("a", "10", 2.1, 2.2)
    held("a", "10", 5, 9)
    acquire("b", 1, 4, "20")
    held("b", "20", 4.1, 4.2)
    held("b", "20", 6, 6.1)
    for resumed, blamed in pairs{[3] = 1, [1.5] = 0, [5] = 0} do
      local found, _, of_server = lock_check.check(operations, notes, {resumed})
      assert.equal(1 - blamed, #found)
      assert.equal(blamed, #of_server)
    end
  end)

  it("counts the permits of a semaphore", function()
    for i, worker in ipairs{"a", "b", "c"} do
      acquire(worker, i, i + 0.5, tostring(i * 10), "2")
      held(worker, tostring(i * 10), i + 0.5, i + 0.6)
    end
    held("a", "10", 2.9, 3)
    held("b", "20", 5, 5.1)
    held("c", "30", 5, 5.1)
    good()
    held("a", "10", 4, 4.1)
    bad("3 holders at once where 2 may be")
  end)

  it("sees tokens that do not rise, or come twice", function()
    acquire("a", 1, 2, "10")
    acquire("b", 1.5, 3, "9") -- they overlap: either may have been first
    good()
    acquire("c", 2.5, 4, "8")
    bad("the token did not rise")
    operations = {}
    acquire("a", 1, 2, "10")
    acquire("b", 1.5, 3, "10")
    bad("the same token twice")
  end)

  it("sees who is told of an older leader", function()
    acquire("a", 1, 2, "10")
    acquire("b", 1.5, 4, "20")
    add("leader", 3.9, 4.5, "c", {"L"}, {"10"})
    add("leader", 4.1, 4.5, "c", {"L"}, {nil})
    add("leader", 4.1, 4.5, "c", {"L"}, {"20"})
    good()
    add("leader", 4.1, 4.5, "c", {"L"}, {"10"})
    bad("was told of token 10 after b")
  end)

  it("sees failures that cannot be", function()
    add("acquire", 1, 2, "a", {"L"}, {"denied", "no"}, "fail")
    add("release", 1, 2, "a", {"L", "1"}, {"modified", "no"}, "fail")
    bad("failed with denied", 2)
  end)
end)
