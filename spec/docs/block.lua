--- Runs one block of code of a guide in a process of its own: lua spec/docs/block.lua FILE LINE
--
-- It has what a reader of the guide has: `kv`, and `store`, an embedded one. Blocks that go on for ever (they watch)
-- are done when nothing has happened for a while. What is printed is for the caller to judge.
local documents = require("spec.support.documents")
local kv = require("kv")
local util = require("spec.support.util")

local QUIET = 0.7 -- seconds that a block may wait for what never comes

local function done()
  util.remove_folders()
  os.exit(0)
end

local wanted = tonumber(arg[2])
for _, block in ipairs(documents.blocks(arg[1])) do
  if block.line == wanted then
    local environment = setmetatable({kv = kv, store = assert(kv.open("local:"))}, {__index = _G})
    local before = assert(documents.load(block.before, "before", environment))
    -- A folder that a guide names is one of ours here.
    local code = block.code:gsub("local:/[%w/]+", "local:" .. util.folder() .. "/store")
    local run = assert(documents.load(code, ("%s:%d"):format(arg[1], block.line), environment))
    io.stdout:setvbuf("no")
    before()
    if block.code:find("kv.run(", 1, true) then
      run()
      done()
    end
    kv.run(function()
      local task = kv.spawn(run)
      local _, message, code = task:join(QUIET)
      -- The rest of it would wait for ever: that it came here without an error is what was asked.
      if code == "timeout" then done() end
      if code then error(message, 0) end
      done()
    end)
  end
end
error("there is no block at line " .. tostring(wanted))
