--- The differential test itself: it must be quiet about stores that are right, and catch those that are not.
local check = require("spec.differential.check")
local environments = require("spec.differential.environments")
local generate = require("spec.differential.generate")
local kv = require("kv")
local operations = require("spec.differential.operations")
local Random = require("spec.differential.random")
local run_program = require("spec.differential.run_program")
local source = require("spec.differential.source")
local util = require("spec.support.util")

local BOUND = 10 -- seconds to wait for what must come; programs that wait for keys to go are left out
local ALL = {txn = true, ttl = true, lock = true, lease = true, resume = true, every_version = true}

local function with(traits)
  local all = {}
  for name, value in pairs(ALL) do all[name] = value end
  for name, value in pairs(traits) do all[name] = value end
  return all
end

-- ------------------------------------------------------------------ stores that are wrong

-- A store with some methods replaced: change(inner) returns them by name; each is called with the store inside.
local function wrap(inner, change)
  local changed = change(inner)
  return setmetatable({}, {__index = function(_, name)
    if name == "sub" then return function(_, prefix) return wrap(assert(inner:sub(prefix)), change) end end
    local fn = changed[name] or inner[name]
    return function(_, ...) return fn(inner, ...) end
  end})
end

local function broken_backend(change)
  local url = "local:" .. util.folder() .. "/store?sync=none"
  local function open(options) return wrap(assert(kv.open(url, options)), change) end
  return {name = "broken", traits = ALL, open = open}
end

-- What tasks do at once does not come out the same way each time, so that it cannot be relied on to shrink.
local function is_race(program)
  for _, step in ipairs(program.steps) do
    if operations[step.op].tasks then return true end
  end
  return false
end

-- The first difference among the programs of some seeds, shrunk.
local function find(change, most)
  local backend = broken_backend(change)
  for seed = 1, 200 do
    local program = generate(seed)
    local difference = not program.mortal and not is_race(program) and check.alone(backend, program, BOUND)
    if difference then
      local smallest = check.shrink(backend, difference, {tries = 300, seconds = 60, bound = BOUND})
      assert.is_true(#smallest.program.steps <= most, "not shrunk enough:\n" .. source.program(smallest.program, "  "))
      assert.is_truthy(check.alone(backend, smallest.program, BOUND), "the smallest program shows nothing")
      return smallest, source.program(smallest.program, "")
    end
  end
  error("nothing was found")
end

describe("a broken store is found:", function()
  after_each(util.remove_folders)

  it("one that lists what was deleted", function()
    local ghosts = {}
    local smallest, text = find(function(inner)
      local methods = {}
      function methods.delete(_, key)
        local pair = inner:get(key)
        local found, message, code = inner:delete(key)
        if pair and found then ghosts[inner] = pair end
        return found, message, code
      end
      function methods.list(_, ...)
        local list, revision, code = inner:list(...)
        if list and ghosts[inner] and #list == 0 then list = {ghosts[inner]} end
        return list, revision, code
      end
      return methods
    end, 4)
    assert.is_truthy(text:find(":delete(", 1, true), text)
    assert.is_truthy(text:find(":list(", 1, true), text)
    assert.equal("list", smallest.program.steps[smallest.at].op)
    assert.equal("nothing", smallest.expected)
  end)

  it("one that compares values instead of revisions", function()
    local _, text = find(function(inner)
      return {atomic_put = function(_, key, value, previous, options)
        local now = inner:get(key)
        local same = now and type(previous) == "table" and now.value == previous.value
        return inner:atomic_put(key, value, same and now or previous, options)
      end}
    end, 5)
    assert.is_truthy(text:find(":atomic_put(", 1, true), text)
  end)

  it("one whose transactions forget their checks", function()
    local _, text = find(function(inner)
      return {txn = function()
        local txn = inner:txn()
        return setmetatable({}, {__index = function(self, name)
          if name == "check" or name == "check_absent" then return function() return self end end
          return function(_, ...)
            local result, message, code = txn[name](txn, ...)
            if result == txn then return self end
            return result, message, code
          end
        end})
      end}
    end, 3)
    assert.is_truthy(text:find(":txn()", 1, true), text)
  end)

  -- Every third event that comes is lost; instead the watch says at once that nothing came, so that nobody waits.
  local function forgetful(watch)
    local count = 0
    return setmetatable({}, {__index = function(_, name)
      return function(_, ...)
        if name ~= "next" then return watch[name](watch, ...) end
        local event, message, code = watch:next(...)
        count = count + (event and 1 or 0)
        if event and count % 3 == 0 then return nil, "nothing came", "timeout" end
        return event, message, code
      end
    end})
  end

  it("one whose watches lose events", function()
    local _, text = find(function(inner)
      local methods = {}
      for _, name in ipairs{"watch", "watch_tree"} do
        methods[name] = function(_, ...)
          local watch, message, code = inner[name](inner, ...)
          if not watch then return nil, message, code end
          return forgetful(watch)
        end
      end
      return methods
    end, 6)
    assert.is_truthy(text:find("watch", 1, true), text)
  end)

  it("one whose locks do not exclude", function()
    local count = 0
    local _, text = find(function(inner)
      return {lock = function(_, name, options)
        count = count + 1
        return inner:lock(name .. count, options)
      end}
    end, 4)
    assert.is_truthy(text:find(":acquire(0)", 1, true) or text:find("with_lock", 1, true), text)
  end)
end)

-- ------------------------------------------------------------------ stores that are right in their own way

-- The model as if it were a backend whose watches join what happened to a key: `lossy` ones forget the last word, too.
local function joining_env(traits, random, lossy)
  local env = environments.of_model(traits, 1)
  local world, open = env.world, env.open
  env.world, env.bound = nil, 1
  world.step = 1 -- what has a short life was born some time
  function env.join(task)
    for _, co in ipairs(world.granted) do assert(coroutine.resume(co)) end
    world.granted = {}
    return (unpack or table.unpack)(task.values, 1, 3)
  end
  local function joined(watch)
    if not watch then return nil end
    local next_event = watch.next
    function watch:next()
      local event, message, code = next_event(self)
      if not event then return nil, message, code end
      for i, later in ipairs(self.queue) do
        local joins = later.key == event.key and (event.initial or event.type == "put") and not later.initial
        if joins and later.type == "put" and later.created == event.created and random:chance(70) then
          later.prev, later.initial = event.prev, event.initial
          return self:next()
        end
        if later.key == event.key then break end
        if lossy and i == #self.queue and random:chance(20) then table.remove(self.queue, i) end
      end
      return event
    end
    return watch
  end
  function env.open(options)
    return wrap(open(options), function(inner)
      return {watch = function(_, ...)
        local watch, message, code = inner:watch(...)
        return joined(watch), message, code
      end, watch_tree = function(_, ...)
        local watch, message, code = inner:watch_tree(...)
        return joined(watch), message, code
      end}
    end)
  end
  return env, world
end

local function count_differences(traits, lossy)
  local differences, random = 0, Random.new(1)
  for seed = 1, 300 do
    local program = generate(seed)
    local expected = check.predict(traits, program)
    local env, world = joining_env(traits, random, lossy)
    -- Time does not pass in the model: its short lives end when the program waits for that.
    function env.sleep() world:settle() end
    local actual = run_program.run(program, env, expected)
    if not actual.late and run_program.difference(expected, actual) then differences = differences + 1 end
  end
  return differences
end

describe("watches that join changes", function()
  local traits = with{every_version = false, resume = false}

  it("are right when their last word is", function()
    assert.equal(0, count_differences(traits, false))
  end)

  it("are found out when it is not", function()
    assert.is_true(count_differences(traits, true) > 10)
  end)
end)

-- ------------------------------------------------------------------ programs

describe("programs", function()
  it("are the same for the same seed, and others for another", function()
    local function text(seed) return source.program(generate(seed), "") end
    assert.equal(text(7), text(7))
    assert.not_equal(text(7), text(8))
    -- and in every Lua: these were written down
    local random = Random.new(12345)
    assert.same({260023, 563617, 344481}, {random:upto(1e6), random:upto(1e6), random:upto(1e6)})
  end)

  it("can be run in any part", function()
    for seed = 1, 50 do
      local program = generate(seed)
      local part = {seed = seed, portable = program.portable, blocking = program.blocking, steps = {}}
      for i = 1, #program.steps, 2 do part.steps[#part.steps + 1] = program.steps[i] end
      for _, line in ipairs(check.predict(ALL, part).lines) do assert.is_nil(line:find("RAISED", 1, true), line) end
    end
  end)

  it("do something most of the time", function()
    local skipped, lines = 0, 0
    for seed = 1, 100 do
      for _, line in ipairs(check.predict(ALL, generate(seed)).lines) do
        lines = lines + 1
        if line == "skipped" then skipped = skipped + 1 end
      end
    end
    assert.is_true(skipped < lines / 10, ("%d of %d steps were skipped"):format(skipped, lines))
  end)

  it("know what each capability that is missing means", function()
    for name in pairs(ALL) do
      local traits = with{[name] = false}
      for seed = 1, 30 do
        for _, line in ipairs(check.predict(traits, generate(seed)).lines) do
          assert.is_nil(line:find("RAISED", 1, true), line)
        end
      end
    end
  end)
end)
