--- The checker of histories of registers: good and bad ones by hand, thousands made by chance and compared with trying
-- every order, and large ones made by a register that is right, or wrong in one place.
local linear = require("spec.faults.linear")
local native = require("spec.native")
local Random = require("spec.differential.random")
local register_check = require("spec.faults.register_check")

local function op(kind, call, ret, fields)
  local all = {kind = kind, call = call, ret = ret}
  for name, value in pairs(fields or {}) do all[name] = value end
  return all
end

local function read(call, ret, value) return op("read", call, ret, {value = value}) end
local function write(call, ret, value) return op("write", call, ret, {value = value}) end
local function cas(call, ret, old, value) return op("cas", call, ret, {old = old, value = value}) end

local function good(operations) assert.is_true(linear.check(operations)) end
local function bad(operations)
  local fine, problem = linear.check(operations)
  assert.is_false(fine)
  assert.truthy(problem:find("cannot be explained", 1, true))
end

describe("the checker of registers takes", function()
  it("nothing, and what is one after the other", function()
    good{}
    good{read(1, 2, nil), write(3, 4, "a"), read(5, 6, "a"), cas(7, 8, "a", "b"), read(9, 10, "b"),
      op("delete", 11, 12, {was = true}), read(13, 14, nil), op("delete", 15, 16, {was = false}),
      cas(17, 18, nil, "c"), op("refused", 19, 20, {old = nil}), op("refused", 21, 22, {old = "b"}), read(23, 24, "c")}
  end)

  it("either order of what is at the same time", function()
    good{write(1, 4, "a"), write(2, 3, "b"), read(5, 6, "a")}
    good{write(1, 4, "a"), write(2, 3, "b"), read(5, 6, "b")}
    good{write(1, 10, "a"), read(2, 3, nil), read(4, 5, "a")}
  end)

  it("a write of unknown outcome at any time after its call, or never", function()
    good{write(1, 2, "a"), write(3, nil, "b"), read(4, 5, "a"), read(6, 7, "a")}
    good{write(1, 2, "a"), write(3, nil, "b"), read(4, 5, "a"), read(6, 7, "b")}
    good{write(1, 2, "a"), write(3, nil, "b"), write(4, 5, "c"), read(6, 7, "c"), read(8, 9, "b")}
    good{write(1, 2, "a"), cas(3, nil, "a", "b"), op("refused", 4, 5, {old = "a"})}
    good{write(1, 2, "a"), op("delete", 3, nil), read(4, 5, nil)}
  end)
end)

describe("the checker of registers refuses", function()
  it("a lost write, and an old read", function()
    bad{write(1, 2, "a"), read(3, 4, nil)}
    bad{write(1, 2, "a"), write(3, 4, "b"), read(5, 6, "a")}
    bad{write(1, 10, "a"), read(2, 3, "a"), read(4, 5, nil)}
  end)

  it("two who won the same compare", function()
    bad{write(1, 2, "a"), cas(3, 6, "a", "b"), cas(4, 5, "a", "c")}
    bad{cas(1, 4, nil, "a"), cas(2, 3, nil, "b")}
  end)

  it("a compare that failed though nothing had changed", function()
    bad{write(1, 2, "a"), op("refused", 3, 4, {old = "a"})}
    bad{write(1, 2, "a"), op("delete", 3, 4, {was = false})}
  end)

  it("what is unknown done twice, before its call, or undone", function()
    bad{write(1, nil, "b"), write(2, 3, "a"), read(4, 5, "b"), write(6, 7, "c"), read(8, 9, "b")}
    bad{write(1, 2, "a"), read(3, 4, "b"), write(5, nil, "b")}
    bad{write(1, 2, "a"), write(3, nil, "b"), read(4, 5, "b"), read(6, 7, "a")}
  end)
end)

-- ------------------------------------------------------------------ by chance

-- Tries every order: right by its shortness.
local function possible(operations, done, state)
  local open = false
  for i, one in ipairs(operations) do
    if not done[i] then
      if one.ret then open = true end
      local first = true
      for j, other in ipairs(operations) do
        if not done[j] and other.ret and other.ret < one.call and j ~= i then first = false end
      end
      local fits, after
      if one.kind == "read" then fits, after = state == one.value, state
      elseif one.kind == "write" then fits, after = true, one.value
      elseif one.kind == "cas" then fits, after = state == one.old, one.value
      elseif one.kind == "refused" then fits, after = state ~= one.old, state
      else fits, after = one.was == nil or one.was == (state ~= nil), nil end
      if first and fits then
        done[i] = true
        if possible(operations, done, after) then
          done[i] = nil
          return true
        end
        done[i] = nil
      end
    end
  end
  return not open
end

local function any_history(random)
  local list, values, times = {}, {"a", "b", "c"}, {}
  local size = 2 + random:upto(4)
  for i = 1, 2 * size do times[i] = i end
  for i = 2 * size, 2, -1 do
    local j = random:upto(i)
    times[i], times[j] = times[j], times[i]
  end
  local function value() return random:chance(80) and random:pick(values) or nil end
  for i = 1, size do
    local from, to = times[2 * i - 1], times[2 * i]
    if from > to then from, to = to, from end
    local kind = random:weighted{{"read", 4}, {"write", 4}, {"cas", 4}, {"refused", 1}, {"delete", 1}}
    local one = op(kind, from, to)
    if kind == "read" then one.value = value()
    elseif kind == "write" then one.value = random:pick(values)
    elseif kind == "delete" then one.was = random:chance(50)
    else one.old, one.value = value(), kind == "cas" and value() or nil end
    if random:chance(25) and kind ~= "read" and kind ~= "refused" then
      one.ret = nil
      one.was = nil
    end
    list[i] = one
  end
  return list
end

-- A register that is right, used by several at once: `clients` operations at a time.
local function true_history(random, count, clients, values_from)
  local list, state, now, free = {}, nil, 0, {}
  for i = 1, clients do free[i] = 0 end
  for i = 1, count do
    local client = random:upto(clients)
    local from = math.max(free[client], now) + random:upto(100) / 1000
    local at = from + random:upto(100) / 1000
    list[i] = {from = from, at = at, to = at + random:upto(100) / 1000}
    free[client] = list[i].to
  end
  table.sort(list, function(a, b) return a.at < b.at end)
  for i, one in ipairs(list) do
    local value = ("v%d"):format(values_from + i)
    local made
    local choice = random:upto(10)
    if choice <= 4 then made = read(one.from, one.to, state)
    elseif choice <= 7 then made, state = write(one.from, one.to, value), value
    elseif choice <= 9 then made, state = cas(one.from, one.to, state, value), value
    else made, state = op("delete", one.from, one.to, {was = state ~= nil}), nil end
    -- Some lose their answers; some of those were never done, which a later state shows.
    if made.kind ~= "read" and random:chance(4) then made.ret, made.was = nil, nil end
    list[i] = made
  end
  return list
end

describe("the checker of registers", function()
  it("says what trying every order says", function()
    local random, seen = Random.new(7), {[true] = 0, [false] = 0}
    for _ = 1, 4000 do
      local list = any_history(random)
      local wanted = possible(list, {}, nil)
      seen[wanted] = seen[wanted] + 1
      local got, problem = linear.check(list)
      if got ~= wanted then
        local lines = {}
        for i, one in ipairs(list) do lines[i] = linear.show(one) end
        error(("%s, but trying says %s:\n%s\n%s"):format(tostring(got), tostring(wanted), table.concat(lines, "\n"),
          tostring(problem)))
      end
    end
    assert.is_true(seen[true] > 400 and seen[false] > 400)
  end)

  it("takes thousands of operations of a register that is right, and finds one wrong read among them", function()
    local random = Random.new(11)
    local start = native.now()
    for key = 1, 6 do
      local list = true_history(random, 500, 6, key * 1000)
      assert.is_true(linear.check(list))
      -- One read tells what was overwritten long before.
      local reads = {}
      for i, one in ipairs(list) do
        if one.kind == "read" and i > 400 then reads[#reads + 1] = one end
      end
      local wrong = random:pick(reads)
      wrong.value = list[1].value or "v-none"
      local fine, _, culprit = linear.check(list)
      assert.is_false(fine)
      assert.equal(wrong, culprit)
    end
    assert.is_true(native.now() - start < 60, "it does not end in time")
  end)
end)

describe("histories of registers", function()
  local function entry(kind, key, outcome, args, result, call, ret)
    table.insert(args, 1, key)
    return {worker = "w", kind = kind, args = args, call = call, ret = ret, outcome = outcome, result = result}
  end

  it("are taken apart by key", function()
    local problems, counts = register_check.check{
      entry("write", "a", "ok", {"1"}, {"10"}, 1, 2), entry("read", "a", "ok", {}, {"1", "10"}, 3, 4),
      entry("read", "b", "ok", {}, {}, 3, 4), entry("cas", "b", "ok", {nil, "2"}, {"11"}, 5, 6),
      entry("cas", "b", "fail", {nil, "3"}, {"exists", "it is there"}, 7, 8),
      entry("write", "b", "unknown", {"4"}, {"no answer"}, 9, 10), entry("read", "b", "ok", {}, {"4", "12"}, 11, 12)}
    assert.same({}, problems)
    assert.same({keys = 2, operations = 7, unknown = 1, late = 0, undecided = 0}, counts)
  end)

  it("show a write that was not applied for certain, and was", function()
    local problems = register_check.check{entry("write", "a", "fail", {"1"}, {"unavailable", "no leader"}, 1, 2),
      entry("read", "a", "ok", {}, {"1", "10"}, 3, 4)}
    assert.equal(1, #problems)
    assert.truthy(problems[1]:find("not linearizable", 1, true))
  end)

  it("show a revision that is another for the next reader, and failures with a strange code", function()
    local problems = register_check.check{entry("write", "a", "ok", {"1"}, {"10"}, 1, 2),
      entry("read", "a", "ok", {}, {"1", "11"}, 3, 4), entry("delete", "a", "fail", {}, {"is_dir", "what?"}, 5, 6)}
    assert.equal(2, #problems)
  end)

  it("may have late reads where that is said, and nothing else", function()
    local late = {entry("write", "a", "ok", {"1"}, {"10"}, 1, 2), entry("write", "a", "ok", {"2"}, {"11"}, 3, 4),
      entry("read", "a", "ok", {}, {"1", "10"}, 5, 6)}
    assert.equal(1, #register_check.check(late))
    local problems, counts = register_check.check(late, {late_reads = true})
    assert.same({}, problems)
    assert.equal(1, counts.late)
    late[#late + 1] = entry("cas", "a", "ok", {"1", "3"}, {"12"}, 7, 8)
    assert.equal(1, #register_check.check(late, {late_reads = true}))
  end)
end)
