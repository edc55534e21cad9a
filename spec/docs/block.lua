--- Runs one block of code of a guide in a process of its own: lua spec/docs/block.lua FILE LINE
--
-- It has what a reader of the guide has: `kv`, and `store`, an embedded one. Blocks that go on for ever
-- are done when they have printed what they say and wait. What is printed is for the caller to judge.
local documents = require("spec.support.documents")
local kv = require("kv")
local util = require("spec.support.util")

local QUIET = 0.5 -- seconds between looks at a block that goes on for ever

local function done()
  util.remove_folders()
  os.exit(0)
end

local wanted = tonumber(arg[2])
for _, block in ipairs(documents.blocks(arg[1])) do
  if block.line == wanted then
    local environment = setmetatable({kv = kv, store = assert(kv.open("local:"))}, {__index = _G})
    local printed = 0
    function environment.print(...)
      print(...)
      printed = printed + 1
    end
    local before = assert(documents.load(block.before, "before", environment))
    -- A folder that a guide names is one of ours here.
    local code = block.code:gsub("local:/?%l[%w/]*", "local:" .. util.folder() .. "/store")
    local run = assert(documents.load(code, ("%s:%d"):format(arg[1], block.line), environment))
    io.stdout:setvbuf("no")
    before()
    if block.code:find("kv.run(", 1, true) then
      run()
      done()
    end
    kv.run(function()
      local task = kv.spawn(run)
      repeat
        local _, _, why = task:join(block.goes_on and QUIET or nil)
      until why ~= "timeout" or printed >= #block.prints
      done()
    end)
  end
end
error("there is no block at line " .. tostring(wanted))
