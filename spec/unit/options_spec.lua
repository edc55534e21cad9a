--- Options tables: what is misuse, what is invalid, where an error points to.
local options = require("kv.options")

-- As a method of the API calls it: the error must point at whoever called that method.
local function method(opts, spec)
  local problem = options.check("store:method", spec or options.specs.write, opts)
  return problem
end

local function raised_by(fn)
  local ok, problem = pcall(fn)
  assert.is_false(ok)
  return problem
end

describe("options", function()
  it("may be left out or empty", function()
    assert.is_nil(method(nil))
    assert.is_nil(method{})
  end)

  it("must be a table", function()
    for _, wrong in ipairs{"ttl", 3, true, print} do
      assert.is_truthy(raised_by(function() return method(wrong), 0 end):find("options must be a table", 1, true))
    end
  end)

  it("that nobody knows are misuse, at the caller's line", function()
    local line
    local problem = raised_by(function()
      line = debug.getinfo(1, "l").currentline + 1
      local result = method{tttl = 3}
      return result
    end)
    assert.is_truthy(problem:find("options_spec.lua:" .. line .. ":", 1, true), problem)
    assert.is_truthy(problem:find("store:method", 1, true), problem)
    assert.is_truthy(problem:find('"tttl"', 1, true), problem)
  end)

  it("of a wrong type are misuse", function()
    for name, wrong in pairs{ttl = "3", keep_alive = 1, lease = {}, dir = "yes", timeout = {}} do
      local problem = raised_by(function() return method{[name] = wrong}, 0 end)
      assert.is_truthy(problem:find('"' .. name .. '"', 1, true), problem)
    end
  end)

  it("of a value that cannot be are told", function()
    for _, wrong in ipairs{0, -1, 0 / 0, math.huge} do assert.is_string(method{ttl = wrong}) end
    for _, wrong in ipairs{-1, 0 / 0, -math.huge} do assert.is_string(method{timeout = wrong}) end
    for _, right in ipairs{0, 0.25, 1e9, math.huge} do assert.is_nil(method{timeout = right}) end
    local list = options.specs.list
    for _, wrong in ipairs{0, -1, 1.5, 2 ^ 53, 0 / 0} do assert.is_string(method({limit = wrong}, list)) end
    for _, right in ipairs{1, 1000, 2 ^ 53 - 1} do assert.is_nil(method({limit = right}, list)) end
    assert.is_string(method({consistency = "weak"}, list))
    local watch = options.specs.watch
    for _, wrong in ipairs{-1, 1.5, 2 ^ 53, 0 / 0} do assert.is_string(method({after = wrong}, watch)) end
    for _, right in ipairs{0, 17} do assert.is_nil(method({after = right}, watch)) end
    assert.is_string(method({interop = "other"}, options.specs.lock))
    assert.is_nil(method({interop = false}, options.specs.lock))
    assert.is_string(method({sync = "half"}, options.specs.open))
  end)

  it("as a timeout for the core", function()
    assert.equal(-1, options.timeout(nil))
    assert.equal(-1, options.timeout{})
    assert.equal(3, options.timeout{timeout = 3})
    local none = options.timeout{timeout = 0}
    assert.is_true(none > 0 and none < 1e-6)
  end)

  it("as flags of a read", function()
    assert.equal(0, options.read_flags(nil))
    assert.equal(options.FAST, options.read_flags{consistency = "fast"})
    assert.equal(options.STRONG, options.read_flags{consistency = "strong"})
  end)

  it("take revisions from pairs and numbers", function()
    local function revision(previous) return options.revision_of("store:method", previous, 2) end
    assert.equal(7, revision(7))
    assert.equal(7, revision{key = "k", revision = 7})
    for _, wrong in ipairs{-1, 1.5, 0 / 0, 2 ^ 53} do
      local none, problem = revision(wrong)
      assert.is_nil(none)
      assert.is_string(problem)
    end
    for _, wrong in ipairs{"7", true, {}, {revision = "7"}} do
      assert.is_truthy(raised_by(function() return revision(wrong), 0 end):find("previous", 1, true))
    end
    assert.is_truthy(raised_by(function() return revision(nil), 0 end):find("previous", 1, true))
  end)

  it("are the same that the annotations for editors name", function()
    local util = require("spec.support.util")
    local meta = assert(util.read("lua/kv/meta.lua"))
    local classes = {open = "open_options", read = "read_options", write = "write_options", list = "list_options",
      watch = "watch_options", mirror = "mirror_options", lock = "lock_options", txn_put = "txn_put_options",
      timed = "timeout_options", tls = "tls"}
    local function fields(class, into)
      local head, body = meta:match("%-%-%-@class kv%." .. class .. "(:?[^\n]*)\n(.-)\n\n")
      assert.is_truthy(body, class)
      local parent = head:match("^:%s*kv%.([%w_]+)")
      if parent then fields(parent, into) end
      for name in body:gmatch("@field ([%w_]+)%??") do into[name] = true end
      return into
    end
    for name, class in pairs(classes) do
      local expected = {}
      for option in pairs(options.specs[name]) do expected[option] = true end
      assert.same(expected, fields(class, {}), class)
    end
  end)
end)
