--- The checker of what watches told, on histories by hand; and histories as they are written and read.
local history = require("spec.faults.history")
local util = require("spec.support.util")
local watch_check = require("spec.faults.watch_check")

local operations, notes

local function write(call, key, value, revision, outcome, kind)
  outcome = outcome or "ok"
  local args = kind == "cas" and {key, "old", value} or {key, value}
  operations[#operations + 1] = {worker = "w", kind = kind or "write", args = args, call = call, ret = call + 0.1,
    outcome = outcome, result = {outcome == "ok" and tostring(revision) or "modified", "no"}}
end

local function note(time, kind, ...) notes[#notes + 1] = {worker = "v", time = time, kind = kind, args = {"r", ...}} end
local function put(time, key, value, revision) note(time, "event", "put", key, value, tostring(revision)) end
local function delete(time, key, revision) note(time, "event", "delete", key, nil, tostring(revision)) end
local function final(key, value, revision) note(100, "final", key, value, revision and tostring(revision)) end

local function good() assert.same({}, (watch_check.check(operations, notes, "r/"))) end
local function bad(...)
  local found = watch_check.check(operations, notes, "r/")
  assert.equal(select("#", ...), #found, table.concat(found, "\n"))
  for i, text in ipairs{...} do assert.truthy(found[i]:find(text, 1, true), found[i]) end
end

describe("the checker of watches", function()
  before_each(function()
    operations, notes = {}, {}
    write(1, "r/a", "1", 10)
    write(2, "r/a", "2", 11, "ok", "cas")
    write(3, "r/b", "1", 12)
    write(4, "r/b", "x", 0, "fail", "cas")
    write(5, "r/b", "2", 0, "unknown")
    write(6, "other", "1", 13)
    note(0, "begin")
  end)

  it("takes what is exact, and joined changes", function()
    put(1.1, "r/a", "1", 10)
    put(2.1, "r/a", "2", 11)
    put(3.1, "r/b", "1", 12)
    delete(4, "r/b", 14)
    final()
    final("r/a", "2", 11)
    good()
    note(100, "complete")
    good()
    notes = {}
    put(2.1, "r/a", "2", 11)
    put(7, "r/b", "2", 15)
    final("r/a", "2", 11)
    final("r/b", "2", 15)
    good()
  end)

  it("sees what was not told though every version was promised", function()
    put(2.1, "r/a", "2", 11)
    put(3.1, "r/b", "1", 12)
    final("r/a", "2", 11)
    final("r/b", "1", 12)
    note(100, "complete")
    bad("r/a: 1 (10) was written and never told")
  end)

  it("sees revisions that do not grow, and deletes of nothing", function()
    put(2.1, "r/a", "2", 11)
    put(2.2, "r/a", "1", 10)
    bad("the revision did not grow")
    notes = {}
    delete(2, "r/a", 10)
    bad("it was not there")
  end)

  it("sees what nobody wrote, what was refused, what comes early, and another revision", function()
    put(2.1, "r/a", "9", 9)
    put(4.1, "r/b", "x", 13)
    put(4.2, "r/b", "2", 14)
    put(4.3, "r/a", "2", 12)
    bad("nobody wrote 9", "was told that it is not written", "before it was written", "its writer was told 11")
  end)

  it("sees another state at the end", function()
    put(1.1, "r/a", "1", 10)
    put(3.1, "r/b", "1", 12)
    final("r/a", "2", 11)
    bad("at the end it is 2", "at the end it is gone")
    local _, counts = watch_check.check(operations, {notes[1], notes[2]}, "r/")
    assert.equal(1, counts.unfinished)
  end)
end)

describe("a history", function()
  it("is read as it was written, also when its end is missing", function()
    local folder = util.folder()
    local path = folder .. "/one.log"
    local log = history.open(path)
    local first = log:invoke("w", "write", "a\tb", "line\nline \\t")
    log:ok("w", first, 12345678901234)
    local second = log:invoke("w", "cas", "k", nil, "v")
    log:fail("w", second, "modified", "the key was changed")
    log:note("w", "held", "L", 3, "1.5")
    local third = log:invoke("x", "read", "k")
    log:unknown("x", third, "no answer")
    log:invoke("x", "write", "k", "never answered")
    log:close()
    local file = io.open(path, "ab")
    file:write("17.5\tx\tok\t4\thalf a li")
    file:close()
    local operations_read, notes_read = history.read{path}
    assert.equal(4, #operations_read)
    local one, two, three, four = (unpack or table.unpack)(operations_read)
    assert.same({"a\tb", "line\nline \\t"}, one.args)
    assert.same({"ok", "12345678901234"}, {one.outcome, one.result[1]})
    assert.is_true(one.ret >= one.call)
    assert.is_nil(two.args[2])
    assert.equal("v", two.args[3])
    assert.same({"fail", "modified"}, {two.outcome, two.result[1]})
    assert.equal("unknown", three.outcome)
    assert.same({"unknown", nil}, {four.outcome, four.ret})
    assert.same({"L", "3", "1.5"}, notes_read[1].args)
    util.remove(folder)
  end)
end)
