--- Values as something else than byte strings.
--
-- A store opened with a codec hands every value through it: encode(value) -> string on the way in, decode(string) ->
-- value on the way out (put, get, list, update, transactions, watches, mirrors; not the values of locks). "json" is
-- lua-cjson's.
--
-- A value that cannot be encoded is `invalid`: nothing was sent. One that cannot be decoded was written by somebody
-- else: get, list and their kind answer `failed` and name the key; an event of a watch or mirror comes without a value
-- and with the reason in `event.error`, because one odd key must not stop everything behind it.
local codec = {}

local function load_json()
  local ok, cjson = pcall(require, "cjson")
  if not ok then
    return nil, 'codec "json" needs lua-cjson, which cannot be loaded: ' .. tostring(cjson):match("^[^\n]*")
  end
  local own = cjson.new and cjson.new() or cjson -- its settings are ours alone
  return {encode = own.encode, decode = own.decode}
end

--- The codec for an option's value: nil for none; false, message, code when it cannot be had.
function codec.find(wanted)
  if wanted == nil or wanted == "none" then return nil end
  if type(wanted) == "table" then return {encode = wanted.encode, decode = wanted.decode} end
  if wanted ~= "json" then
    return false, ('kv.open: option "codec" must be "json", "none" or a table, got "%s"'):format(wanted), "invalid"
  end
  local found, message = load_json()
  if not found then return false, "kv.open: " .. message, "unsupported" end
  return found
end

local function reason(err)
  return tostring(err):gsub("\n.*", "")
end

--- The string for a value, or nil, message.
function codec.encode(self, value)
  local ok, text, why = pcall(self.encode, value)
  if ok and type(text) == "string" then return text end
  if ok then return nil, "the codec did not give a string" .. (why and ": " .. reason(why) or "") end
  return nil, "the value cannot be encoded: " .. reason(text)
end

--- The string to store for a value of a method's argument, or nil, message. Without a codec (nil) only strings will do:
-- anything else is misuse, raised `level` calls up.
function codec.text(method, self, key, value, level)
  if self then
    if value == nil then error(("%s: a value is needed"):format(method), level) end
    local text, why = codec.encode(self, value)
    if text then return text end
    return nil, ('%s "%s": %s'):format(method, key, why)
  end
  if type(value) ~= "string" then
    error(("%s: the value must be a string, got %s"):format(method, type(value)), level)
  end
  return value
end

--- True and the value of a string, or false, message.
function codec.decode(self, text)
  local ok, value, why = pcall(self.decode, text)
  if ok and value ~= nil then return true, value end
  if ok then return false, "the value cannot be decoded" .. (why and ": " .. reason(why) or "") end
  return false, "the value cannot be decoded: " .. reason(value)
end

--- Decode the values of an event in place.
function codec.decode_event(self, event)
  for _, name in ipairs{"value", "prev"} do
    if event[name] ~= nil then
      local ok, value = codec.decode(self, event[name])
      if ok then
        event[name] = value
      else
        event[name], event.error = nil, value
      end
    end
  end
  return event
end

return codec
