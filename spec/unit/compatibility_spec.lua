--- docs/compatibility.md: the specs that it names are there, and its table of capabilities is what supports() says.
local kv = require("kv")
local util = require("spec.support.util")

local text = assert(util.read("docs/compatibility.md"))

local URLS = {["local"] = "local:", etcd = "etcd://127.0.0.1:1", etcd2 = "etcd2://127.0.0.1:1",
  consul = "consul://127.0.0.1:1", zookeeper = "zk://127.0.0.1:1"}

-- Cells of a table's row.
local function cells(line)
  local list = {}
  for cell in line:gmatch("%s*([^|]-)%s*|") do list[#list + 1] = cell end
  table.remove(list, 1) -- before the first bar
  return list
end

-- The rows of the table below a heading, its header first.
local function rows_below(heading)
  local at = assert(text:find("\n## " .. heading, 1, true), "there is no heading " .. heading)
  local rows = {}
  for line in text:sub(at + 1):gmatch("([^\n]*)\n") do
    if line:sub(1, 1) == "|" then
      if not line:find("^|%-") then rows[#rows + 1] = cells(line) end
    elseif #rows > 0 then
      return rows
    end
  end
  return rows
end

local function contains(file, phrase)
  local found = util.read("spec/" .. file)
  return found ~= nil and found:find(phrase, 1, true) ~= nil
end

describe("docs/compatibility.md", function()
  it("names specs that are there", function()
    local count = 0
    for file, phrase in text:gmatch("`([%w_/]+_spec%.lua)`%s+\"(.-)\"") do
      assert.is_true(contains(file, phrase), ("spec/%s has no case %q"):format(file, phrase))
      count = count + 1
    end
    local _, named = text:gsub("_spec%.lua`", "")
    assert.equal(named, count, "a spec is named without its case")
    assert.is_true(count > 40)
  end)

  it("backs every promise and every rule", function()
    for _, heading in ipairs{"Operations and promises", "libkv's rules"} do
      local rows = rows_below(heading)
      for i = 2, #rows do
        assert.equal(#rows[1], #rows[i], rows[i][1])
        assert.is_truthy(rows[i][#rows[i]]:find('^`[%w_/]+_spec%.lua` ".+"$'), rows[i][1])
      end
    end
  end)

  it("has a note for every number", function()
    local rows = rows_below("Operations and promises")
    for i = 2, #rows do
      for at = 2, 6 do
        local cell = rows[i][at]
        local number = cell:match("^yes (%d+)$") or cell:match("^no (%d+)$") or cell:match("^(%d+)$")
        local known = number or cell == "yes" or cell == "no" or cell == "" or cell:find("^[%d.]+ [KM]B$")
        assert.is_truthy(known, rows[i][1] .. ": " .. cell)
        if number then assert.is_truthy(text:find("\n" .. number .. ". ", 1, true), "there is no note " .. number) end
      end
    end
  end)

  it("says what supports() says", function()
    local rows = rows_below("What `supports()` says")
    local header, told = rows[1], {}
    for i = 2, #rows do
      local name = rows[i][1]:match("^`([%w_]+)`$")
      told[name] = {}
      for at = 2, #header do told[name][header[at]] = rows[i][at] end
    end
    for backend, url in pairs(URLS) do
      local store, _, code = kv.open(url)
      if not store then
        assert.equal("unsupported", code) -- it was not built
      else
        for name, said in pairs(told) do
          assert.equal(store:supports(name) and "yes" or "no", said[backend], name .. " on " .. backend)
        end
        store:close()
      end
    end
    -- None is left out: lua/kv/meta.lua lists them all.
    local listed = assert(util.read("lua/kv/meta.lua"):match("@alias kv%.capability (.-)\n%-%-%-[^|]"))
    for name in listed:gmatch('"([%w_]+)"') do assert.is_truthy(told[name], name .. " is not in the table") end
  end)
end)
