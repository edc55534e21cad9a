-- How values, pairs and events look on a terminal and as JSON.
--
-- JSON is written here rather than by lua-cjson: these objects are flat, cjson rounds integers to 14 digits and writes
-- "/" as "\/", and so the command line needs nothing but kv itself.

local format = {}

-- Length of the UTF-8 character that starts at byte `at` of `text`, or nil when there is no valid one.
local function character_length(text, at)
  local first, second = text:byte(at, at + 1)
  if first < 0x80 then return 1 end
  local length = first >= 0xF0 and 4 or first >= 0xE0 and 3 or 2
  if first < 0xC2 or first > 0xF4 or not second then return nil end
  local low, high = 0x80, 0xBF
  if first == 0xE0 then low = 0xA0 end -- overlong
  if first == 0xED then high = 0x9F end -- surrogates
  if first == 0xF0 then low = 0x90 end -- overlong
  if first == 0xF4 then high = 0x8F end -- beyond U+10FFFF
  if second < low or second > high then return nil end
  for i = at + 2, at + length - 1 do
    local byte = text:byte(i)
    if not byte or byte < 0x80 or byte > 0xBF then return nil end
  end
  return length
end

function format.is_utf8(text)
  if not text:find("[\128-\255]") then return true end
  local at = 1
  while at <= #text do
    local length = character_length(text, at)
    if not length then return false end
    at = at + length
  end
  return true
end

local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function digit(value) return ALPHABET:sub(value + 1, value + 1) end

function format.base64(text)
  local out = {}
  for i = 1, #text, 3 do
    local a, b, c = text:byte(i, i + 2)
    local bits = a * 65536 + (b or 0) * 256 + (c or 0)
    out[#out + 1] = digit(math.floor(bits / 262144)) .. digit(math.floor(bits / 4096) % 64) ..
      (b and digit(math.floor(bits / 64) % 64) or "=") .. (c and digit(bits % 64) or "=")
  end
  return table.concat(out)
end

local VALUE_OF = {}
for i = 1, #ALPHABET do VALUE_OF[ALPHABET:byte(i)] = i - 1 end

-- The bytes behind base64; nil when it is none.
function format.from_base64(text)
  local body, padding = text:match("^([%w+/]*)(=?=?)$")
  if not body or #text % 4 ~= 0 then return nil end
  local out = {}
  for i = 1, #body, 4 do
    local a, b, c, d = body:byte(i, i + 3)
    local bits = VALUE_OF[a] * 262144 + VALUE_OF[b] * 4096 + (VALUE_OF[c] or 0) * 64 + (VALUE_OF[d] or 0)
    out[#out + 1] = string.char(math.floor(bits / 65536), math.floor(bits / 256) % 256, bits % 256)
  end
  local bytes = table.concat(out)
  return bytes:sub(1, #bytes - #padding)
end

local SHORT = {['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t"}

local function json_string(text)
  return '"' .. text:gsub('[%c"\\]', function(c) return SHORT[c] or ("\\u%04x"):format(c:byte()) end) .. '"'
end

local function json_value(value)
  if type(value) == "string" then return json_string(value) end
  if type(value) == "number" then return (value == math.floor(value) and "%.0f" or "%.14g"):format(value) end
  if type(value) == "boolean" then return tostring(value) end
  local parts = {}
  for i, element in ipairs(value) do parts[i] = json_value(element) end
  return "[" .. table.concat(parts, ",") .. "]"
end

-- One line of JSON from a list of {name, value}; fields without a value are left out.
function format.json(fields)
  local parts = {}
  for i = 1, #fields do
    local name, value = fields[i][1], fields[i][2]
    if value ~= nil then parts[#parts + 1] = json_string(name) .. ":" .. json_value(value) end
  end
  return "{" .. table.concat(parts, ",") .. "}"
end

-- A byte string as a field: as it is when it is UTF-8, else in base64 under a name that says so.
local function bytes_field(name, base64_name, value)
  if value == nil or format.is_utf8(value) then return {name, value} end
  return {base64_name, format.base64(value)}
end

function format.pair_json(pair)
  return format.json{
    {"key", pair.key},
    bytes_field("value", "base64", pair.value),
    {"revision", pair.revision},
    {"created", pair.created},
    {"dir", pair.dir or nil},
  }
end

function format.event_json(event)
  return format.json{
    {"type", event.type},
    {"key", event.key},
    bytes_field("value", "base64", event.value),
    {"revision", event.revision},
    {"created", event.created},
    bytes_field("prev", "prev_base64", event.prev),
    {"initial", event.initial or nil},
  }
end

-- A value on one line of a terminal: control characters, backslashes and bytes that are no UTF-8 as in C.
local ESCAPES = {["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t", ["\\"] = "\\\\"}

function format.one_line(text)
  local pattern = format.is_utf8(text) and "[%c\\]" or "[%c\\\128-\255]"
  return (text:gsub(pattern, function(c) return ESCAPES[c] or ("\\x%02x"):format(c:byte()) end))
end

return format
