--- What a run of busted prints: a character a test, failures and skips in full as they happen, the slowest tests when
-- they are slow, and a last line "N passed, N failed" as the C units print it, so that one reader serves both.
local pretty = require("pl.pretty")

local SLOW = 3 -- seconds from which a test is named at the end

local function text_of(message)
  if message == nil then return "no message" end
  if type(message) == "string" then return message end
  local meta = getmetatable(message)
  if meta and meta.__tostring then return tostring(message) end
  return pretty.write(message)
end

return function()
  local busted = require("busted")
  local handler = require("busted.outputHandlers.base")()
  local passed, failed, skipped, column = 0, 0, {}, 0
  local slow = {}

  local function mark(character)
    io.write(character)
    column = column + 1
    if column % 100 == 0 then io.write("\n") end
    io.flush()
  end

  local function tell(kind, element, message, debug)
    if column % 100 ~= 0 then io.write("\n") end
    column = 0
    local trace = debug or element.trace
    local place = trace and trace.short_src and (trace.short_src .. ":" .. tostring(trace.currentline) .. ": ") or ""
    local text = text_of(message)
    if text:sub(1, #place) ~= place then text = place .. text end
    io.write(kind, " ", handler.getFullName(element), "\n    ", (text:gsub("\n", "\n    ")), "\n")
    if trace and trace.traceback then
      io.write("    ", (trace.traceback:gsub("^\n", ""):gsub("%s+$", ""):gsub("\n", "\n    ")), "\n")
    end
    io.flush()
  end

  local function test_ended(element, _, status)
    if status == "success" then
      passed = passed + 1
      mark(".")
    elseif status == "pending" then
      mark("s")
    end
    if element.duration and element.duration > SLOW then slow[#slow + 1] = element end
    return nil, true
  end

  local function went_wrong(element, _, message, debug)
    failed = failed + 1
    tell("FAILED", element, message, debug)
    return nil, true
  end

  local function pending(element, _, message)
    skipped[#skipped + 1] = handler.getFullName(element) .. (message and ": " .. text_of(message) or "")
    return nil, true
  end

  local function ended()
    io.write("\n")
    for _, line in ipairs(skipped) do io.write("skipped: ", line, "\n") end
    for _, element in ipairs(slow) do
      io.write(("slow: %s: %.1f s\n"):format(handler.getFullName(element), element.duration))
    end
    if passed + failed == 0 then
      io.write("nothing was run\n")
      failed = 1
    end
    io.write(("%d passed, %d failed\n"):format(passed, failed))
    io.flush()
    return nil, true
  end

  handler.subscribe = function(_, options)
    handler.options = options
    require("busted.languages.en")
    busted.subscribe({"test", "end"}, test_ended)
    busted.subscribe({"pending"}, pending)
    busted.subscribe({"failure"}, went_wrong)
    busted.subscribe({"error"}, went_wrong)
    busted.subscribe({"exit"}, ended)
  end
  return handler
end
