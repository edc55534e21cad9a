--- Every public function is documented for editors, and everything documented is there.
local kv = require("kv")
local util = require("spec.support.util")

-- The public methods of a handle; what begins with an underscore is the module's own.
local function methods(handle)
  local found = {}
  for name, value in pairs(debug.getmetatable(handle).__index) do
    if type(value) == "function" and name:sub(1, 1) ~= "_" then found[#found + 1] = name end
  end
  table.sort(found)
  return found
end

local function documented(meta, class, separator)
  local found = {}
  for name in meta:gmatch("\nfunction " .. class .. separator .. "([%w_]+)%(") do found[#found + 1] = name end
  table.sort(found)
  return found
end

describe("annotations", function()
  local meta = assert(util.read("lua/kv/meta.lua"))

  it("name the functions of the module", function()
    local names = {}
    for name, value in pairs(kv) do
      if type(value) == "function" then names[#names + 1] = name end
    end
    table.sort(names)
    assert.same(names, documented(meta, "kv", "%."))
    for name in pairs(kv) do assert.is_true(type(kv[name]) == "function" or name == "_VERSION", name) end
  end)

  it("name the methods of every handle", function()
    local store = assert(kv.open("local:"))
    local lock, lease = assert(store:lock("door")), assert(store:lease(10))
    local election = assert(store:election("boss"))
    local watch, mirror, txn = assert(store:watch("key")), assert(store:mirror("")), store:txn()
    local task = kv.run(function() return kv.spawn(function() end) end)
    for class, handle in pairs{Store = store, Lock = lock, Election = election, Lease = lease, Watch = watch,
      Mirror = mirror, Txn = txn, Task = task} do
      assert.same(methods(handle), documented(meta, class, ":"), class)
    end
    store:close()
  end)

  it("name every code, and no other", function()
    local core = require("kv.core")
    local known, named = {}, {}
    for code in pairs(core.codes) do known[#known + 1] = code end
    for code in meta:match("@alias kv%.code (.-)\n\n"):gmatch('"([%w_]+)"') do named[#named + 1] = code end
    table.sort(known)
    table.sort(named)
    assert.same(known, named)
  end)

  it("describe what each function returns", function()
    for comment, name in meta:gmatch("\n((%-%-%-[^\n]*\n)+)function ([%w_:%.]+)") do
      assert.is_truthy(comment:find("@return", 1, true), name)
    end
    local bare = {}
    for line, name in meta:gmatch("([^\n]*)\nfunction ([%w_:%.]+)") do
      if not line:find("^%-%-%-@return") then bare[#bare + 1] = name end
    end
    assert.same({}, bare)
  end)
end)

describe("the list of methods in README.md", function()
  it("names methods that are there", function()
    local store = assert(kv.open("local:"))
    local text = assert(util.read("README.md"))
    for name in text:gmatch("`store:([%w_]+)%(") do assert.is_function(store[name], name) end
    for name in text:gmatch("`kv%.([%w_]+)%(") do assert.is_function(kv[name], name) end
    store:close()
  end)
end)
