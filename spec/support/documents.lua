--- The blocks of Lua code in README.md and docs/, for the specs that run them.
--
-- A block is what stands between ```lua and ```. A comment before it that readers do not see tells what is special:
--
--    <!-- before: job = "x" -->        code that is run first; `kv` and `store` are always there
--    <!-- goes on -->                  it does not end: it watches
--    <!-- not run: nginx -->           only compiled: the reason why
local util = require("spec.support.util")

local documents = {}

local function note(text, name)
  return text:match("<!%-%- " .. name .. ":?%s*(.-)%s*%-%->")
end

--- The blocks of a file: {line=, code=, before=, goes_on=, not_run=, prints=}.
function documents.blocks(path)
  local found, number, special, block, fence = {}, 0, "", nil, nil
  for line in (assert(util.read(path), path) .. "\n"):gmatch("(.-)\n") do
    number = number + 1
    if fence then
      if line:match("^```%s*$") then
        if block then
          block.code = table.concat(block, "\n")
          found[#found + 1] = block
        end
        fence, block, special = nil, nil, ""
      elseif block then
        block[#block + 1] = line
        local printed = line:match("%-%-> (.*)$")
        if printed then block.prints[#block.prints + 1] = printed end
      end
    elseif line:match("^```") then
      fence = true
      if line == "```lua" then
        block = {line = number, prints = {}, before = note(special, "before") or "",
          goes_on = note(special, "goes on") ~= nil, not_run = note(special, "not run")}
      end
    elseif line ~= "" then
      special = line:find("^<!%-%-") and special .. line or (special:find("%-%->") or special == "") and "" or
        special .. "\n" .. line
    end
  end
  return found
end

--- load() of every Lua, with an environment.
function documents.load(code, name, environment)
  if setfenv then
    local chunk, problem = loadstring(code, "=" .. name)
    if chunk then setfenv(chunk, environment) end
    return chunk, problem
  end
  return load(code, "=" .. name, "t", environment)
end

return documents
