--- make docs: a page on which every public function is, and the guides, with links that lead somewhere.
local native = require("spec.native")
local util = require("spec.support.util")

describe("make docs", function()
  local out = util.folder()

  setup(function()
    local process = assert(native.spawn{"scripts/make-docs", stdout = out .. "/log", stderr = out .. "/log",
      env = {"DOCS=" .. out .. "/pages", "LUA=" .. util.interpreter()}})
    assert.same({"exit", 0}, {process:wait(60)}, util.read(out .. "/log"))
  end)

  it("shows every function and every field that the annotations name", function()
    local page = util.read(out .. "/pages/index.html")
    local meta = util.read("lua/kv/meta.lua")
    local count = 0
    for name in meta:gmatch("\nfunction ([%w_.:]+)%(") do
      local shown = name:gsub("^kv%.", "")
      assert.truthy(page:find('<a name = "' .. shown .. '"></a>', 1, true), name)
      count = count + 1
    end
    assert.is_true(count > 50)
    for name in meta:gmatch("\n%-%-%-@field (%l[%w_]+)") do
      assert.truthy(page:find('<span class="parameter">' .. name .. "</span>", 1, true), name)
    end
  end)

  it("has every guide, and no link to what is not there", function()
    local pages = {}
    for name in require("lfs").dir("docs") do
      if name:find("%.md$") then pages[#pages + 1] = name end
    end
    pages[#pages + 1] = "README.md"
    for _, name in ipairs(pages) do
      local folder = out .. "/pages/topics/"
      for target in assert(util.read(folder .. name .. ".html"), name):gmatch('href="([^"#]+)[^"]*"') do
        if not target:find("^https?:") then
          local path = target:match("^file://(.*)") or folder .. target
          assert.is_truthy(require("lfs").attributes(path, "mode"), name .. ": " .. target)
        end
      end
    end
  end)
end)
