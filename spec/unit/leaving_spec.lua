--- The end of a program in the middle of things: quick, without a crash, and without harm to what others see.
local kv = require("kv")
local native = require("spec.native")
local util = require("spec.support.util")

local expected = {["return"] = 0, error = 1, exit = 0, quick = 0, task = 0, raised = 1, stopped = 0, frozen = 0}

describe("a program that ends", function()
  for how, status in pairs(expected) do
    it("by " .. how .. " with everything in flight ends at once and well", function()
      local folder = util.folder()
      local url = "local:" .. folder .. "/store"
      for _ = 1, 3 do
        local start = native.now()
        local process = assert(native.spawn{util.interpreter(), "spec/support/leaving.lua", url, how,
          stdout = folder .. "/output", stderr = folder .. "/output"})
        local ended, code = process:wait(30)
        assert.equal("exit", ended, tostring(code) .. ": " .. tostring(util.read(folder .. "/output")))
        assert.equal(status, code, util.read(folder .. "/output"))
        assert.is_true(native.now() - start < 10, "it took " .. native.now() - start)
        -- The lock, and what was kept alive, go with the process.
        local store = assert(kv.open(url))
        assert(assert(store:lock("held")):acquire(10)):release()
        util.eventually(function() return not store:exists("kept") end, "the key went with its process")
        store:close()
      end
    end)
  end
end)

describe("a program that waits for ever", function()
  local waits = {
    ["a lock"] = [[store:lock("held"):acquire()]],
    ["an event"] = [[store:watch("key"):next()]],
    ["a task"] = [[kv.run(function() kv.spawn(function() store:watch("key"):next() end):join() end)]],
    ["many writes"] = [[while true do
        local values = {}
        for i = 1, 100 do values["key/" .. i] = "v" end
        assert(store:put_many(values))
      end]],
  }
  for what, code in pairs(waits) do
    it("for " .. what .. " ends at Ctrl-C, with a traceback", function()
      if util.interpreter():find("host$") then return end -- the sanitizers' interpreter has no handler
      local folder = util.folder()
      local url = "local:" .. folder .. "/store"
      local store = assert(kv.open(url))
      assert(assert(store:lock("held")):acquire(5))
      local script = ([[
        local kv = require("kv")
        local store = assert(kv.open(%q, {sync = "none"}))
        assert(store:put("ready", "v"))
        %s
      ]]):format(url, code)
      local process = assert(native.spawn{util.interpreter(), "-e", script, stdout = folder .. "/output",
        stderr = folder .. "/output"})
      util.eventually(function() return store:exists("ready") end, "it waits")
      native.sleep(0.1) -- it is on its way into the wait
      process:kill("INT")
      local ended, status = process:wait(10)
      assert.equal("exit", ended, tostring(status))
      assert.equal(1, status)
      assert.is_truthy(util.read(folder .. "/output"):find("interrupted!", 1, true), util.read(folder .. "/output"))
      store:close()
    end)
  end
end)
