--- Every block of Lua code in README.md and the guides does what it says, on the embedded store.
local documents = require("spec.support.documents")
local native = require("spec.native")
local util = require("spec.support.util")

local PATIENCE = 60

local function files()
  local list = {"README.md"}
  for name in require("lfs").dir("docs") do
    if name:find("%.md$") then list[#list + 1] = "docs/" .. name end
  end
  table.sort(list)
  return list
end

local function run(path, block)
  local out = util.folder() .. "/out"
  local process = assert(native.spawn{util.interpreter(), "spec/docs/block.lua", path, tostring(block.line),
    stdout = out, stderr = out})
  local how, status = process:wait(PATIENCE)
  if not how then process:kill("KILL") end
  local text = util.read(out) or ""
  assert.same({"exit", 0}, {how, status}, text)
  return text
end

for _, path in ipairs(files()) do
  describe(path, function()
    for _, block in ipairs(documents.blocks(path)) do
      it(("is right in line %d"):format(block.line), function()
        local chunk, problem = documents.load(block.code, path, {})
        assert.is_truthy(chunk, problem)
        if block.not_run then return end
        -- What it says that it prints, it prints, in that order.
        local text, at = run(path, block), 1
        for _, line in ipairs(block.prints) do
          local first, last = text:find(line, at, true)
          assert.is_truthy(first, ("no %q in:\n%s"):format(line, text))
          at = last + 1
        end
      end)
    end
  end)
end

describe("the guides", function()
  it("are all named where a reader begins, and link to what is there", function()
    local readme = util.read("README.md")
    for _, path in ipairs(files()) do
      local named = path == "README.md" or readme:find("(" .. path .. ")", 1, true)
      assert.truthy(named, path .. " is not in README.md")
      local folder = path:match("^(.*/)") or ""
      for target in util.read(path):gsub("```.-```", ""):gmatch("%]%(([^)#]+)#?[^)]*%)") do
        if not target:find("^https?:") then
          assert.is_truthy(require("lfs").attributes(folder .. target, "mode"), path .. ": " .. target)
        end
      end
    end
  end)
end)
