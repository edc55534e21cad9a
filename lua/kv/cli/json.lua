-- Reads JSON: what `kv export`, `kv list --json` or a tool between them (jq) wrote. The counterpart of format.json().

local json = {}

local DEPTH_MAX = 64 -- brackets within brackets: what we read is flat
local ESCAPES = {b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/"}

local function fail(at, text) error({problem = ("%s at byte %d"):format(text, at)}, 0) end

local function skip_blanks(text, at) return text:match("^[ \t\r\n]*()", at) end

-- The UTF-8 bytes of a code point.
local function utf8_bytes(code)
  if code < 0x80 then return string.char(code) end
  local function low(shift) return 0x80 + math.floor(code / 2 ^ shift) % 64 end
  if code < 0x800 then return string.char(0xC0 + math.floor(code / 64), low(0)) end
  if code < 0x10000 then return string.char(0xE0 + math.floor(code / 4096), low(6), low(0)) end
  return string.char(0xF0 + math.floor(code / 262144), low(12), low(6), low(0))
end

-- Four hexadecimal digits of "\u....", at the digits.
local function hexadecimal(text, at)
  local digits = text:match("^%x%x%x%x", at)
  if not digits then fail(at, "four hexadecimal digits are needed") end
  return tonumber(digits, 16)
end

-- The character of an escape whose backslash is at `at`, and where it ends.
local function read_escape(text, at)
  local letter = text:sub(at + 1, at + 1)
  if ESCAPES[letter] then return ESCAPES[letter], at + 2 end
  if letter ~= "u" then fail(at, "an unknown escape") end
  local code = hexadecimal(text, at + 2)
  if code < 0xD800 or code > 0xDFFF then return utf8_bytes(code), at + 6 end
  if code > 0xDBFF or text:sub(at + 6, at + 7) ~= "\\u" then fail(at, "half a pair of surrogates") end
  local second = hexadecimal(text, at + 8)
  if second < 0xDC00 or second > 0xDFFF then fail(at, "half a pair of surrogates") end
  return utf8_bytes(0x10000 + (code - 0xD800) * 1024 + (second - 0xDC00)), at + 12
end

-- `at` is behind the opening quote.
local function read_string(text, at)
  local parts = {}
  while true do
    local plain, stop = text:match('^([^"\\]*)()', at)
    parts[#parts + 1] = plain
    local byte = text:sub(stop, stop)
    if byte == '"' then return table.concat(parts), stop + 1 end
    if byte == "" then fail(stop, "a string without its end") end
    parts[#parts + 1], at = read_escape(text, stop)
  end
end

local read_value

local function read_object(text, at, depth)
  local object = {}
  at = skip_blanks(text, at)
  if text:sub(at, at) == "}" then return object, at + 1 end
  while true do
    if text:sub(at, at) ~= '"' then fail(at, "a name is missing") end
    local name
    name, at = read_string(text, at + 1)
    at = skip_blanks(text, at)
    if text:sub(at, at) ~= ":" then fail(at, '":" is missing') end
    object[name], at = read_value(text, at + 1, depth)
    at = skip_blanks(text, at)
    local byte = text:sub(at, at)
    if byte == "}" then return object, at + 1 end
    if byte ~= "," then fail(at, '"," or "}" is missing') end
    at = skip_blanks(text, at + 1)
  end
end

local function read_array(text, at, depth)
  local array = {}
  at = skip_blanks(text, at)
  if text:sub(at, at) == "]" then return array, at + 1 end
  while true do
    array[#array + 1], at = read_value(text, at, depth)
    at = skip_blanks(text, at)
    local byte = text:sub(at, at)
    if byte == "]" then return array, at + 1 end
    if byte ~= "," then fail(at, '"," or "]" is missing') end
    at = at + 1
  end
end

local WORDS = {["true"] = true, ["false"] = false}

function read_value(text, at, depth)
  at = skip_blanks(text, at)
  local byte = text:sub(at, at)
  if byte == '"' then return read_string(text, at + 1) end
  if byte == "{" or byte == "[" then
    if depth >= DEPTH_MAX then fail(at, "too many brackets") end
    return (byte == "{" and read_object or read_array)(text, at + 1, depth + 1)
  end
  local word = text:match("^%l+", at)
  if word == "null" then return nil, at + 4 end
  if WORDS[word] ~= nil then return WORDS[word], at + #word end
  local number = text:match("^-?%d+%.?%d*[eE]?[+-]?%d*", at)
  if not number or not tonumber(number) then fail(at, "no JSON") end
  return tonumber(number), at + #number
end

--- The value of a JSON text (null is nil); or nil and what is wrong with it.
function json.decode(text)
  local ok, value, at = pcall(read_value, text, 1, 0)
  if not ok then
    if type(value) == "table" then return nil, value.problem end
    error(value, 0)
  end
  at = skip_blanks(text, at)
  if at <= #text then return nil, ("something behind the end at byte %d"):format(at) end
  return value
end

return json
