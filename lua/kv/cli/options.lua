-- Options of a command line: what they may be is a table, and the same table makes the help.
--
--   {name = "ttl", short = "t", argument = "SECONDS", kind = "seconds", help = "..."}
--
-- kind: "flag" (without argument), "text", "seconds" (0 or more), "count" (whole, from 1), "revision" (whole, from 0).
-- many = true: may be given several times; the result is a list.

local options = {}

local MISUSE = 2

-- Failures travel as tables, so that they cannot be taken for errors of the program itself.
function options.fail(status, text, ...)
  error({status = status, message = select("#", ...) > 0 and text:format(...) or text}, 0)
end

local function misuse(...) options.fail(MISUSE, ...) end

-- How many letters must change to make one word of the other, with a swap of neighbours as one change.
local function distance(a, b)
  local rows = {[0] = {}}
  for j = 0, #b do rows[0][j] = j end
  for i = 1, #a do
    local row, last = {[0] = i}, rows[i - 1]
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      row[j] = math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + cost)
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        row[j] = math.min(row[j], rows[i - 2][j - 2] + 1)
      end
    end
    rows[i] = row
  end
  return rows[#a][#b]
end

-- The known word that was probably meant, as " (did you mean ...?)", or "".
function options.suggestion(word, known, prefix)
  local best, best_distance = nil, math.max(1, math.floor(#word / 3)) + 1
  for _, candidate in ipairs(known) do
    local d = distance(word, candidate)
    if candidate:sub(1, #word) == word and #word >= 2 then d = math.min(d, 1) end
    if d < best_distance then best, best_distance = candidate, d end
  end
  return best and (" (did you mean %s%s?)"):format(prefix or "", best) or ""
end

local READERS = {
  text = function(text) return text end,
  seconds = function(text)
    local number = tonumber(text)
    if number and number >= 0 and number < math.huge then return number end
    return nil, "a number of seconds"
  end,
  count = function(text)
    local number = text:match("^%d+$") and tonumber(text)
    if number and number >= 1 and number < 2 ^ 31 then return number end
    return nil, "a whole number from 1"
  end,
  revision = function(text)
    local number = text:match("^%d+$") and tonumber(text)
    if number and number < 2 ^ 53 then return number end
    return nil, "a revision (a whole number)"
  end,
}

local function read_value(known, shown, text)
  if text == nil then misuse("%s needs an argument (%s)", shown, known.argument) end
  local value, wanted = READERS[known.kind](text)
  if value == nil then misuse('%s takes %s, not "%s"', shown, wanted, text) end
  return value
end

local function set(result, option, value)
  if not option.many then
    result[option.name] = value
    return
  end
  local list = result[option.name] or {}
  list[#list + 1] = value
  result[option.name] = list
end

local function long_names(known)
  local names = {}
  for i, option in ipairs(known) do names[i] = option.name end
  return names
end

local function find(known, field, wanted)
  for _, option in ipairs(known) do
    if option[field] == wanted then return option end
  end
end

-- "--name", "--name=value", "--name value". Returns how many further words were used.
local function read_long(known, word, following, result)
  local name, text = word:match("^%-%-([^=]+)=(.*)$")
  name = name or word:sub(3)
  local option = find(known, "name", name)
  if not option then misuse("unknown option --%s%s", name, options.suggestion(name, long_names(known), "--")) end
  if option.kind == "flag" then
    if text then misuse("--%s takes no argument", name) end
    result[name] = true
    return 0
  end
  set(result, option, read_value(option, "--" .. name, text or following))
  return text and 0 or 1
end

-- "-r", "-rj", "-t5", "-t 5".
local function read_short(known, word, following, result)
  for i = 2, #word do
    local letter = word:sub(i, i)
    local option = find(known, "short", letter)
    if not option then
      misuse('unknown option -%s (write "--" before an argument that starts with "-")', letter)
    elseif option.kind ~= "flag" then
      local text = word:sub(i + 1)
      set(result, option, read_value(option, "-" .. letter, text ~= "" and text or following))
      return text ~= "" and 0 or 1
    end
    result[option.name] = true
  end
  return 0
end

-- Read words from `first` on into result; stops at the first word that is no option when `stop_early`. Returns the
-- other words, where reading stopped, and the words behind "--" apart when `split` (nil when there was no "--").
function options.parse(known, words, first, result, how)
  how = how or {}
  local rest, i = {}, first
  while i <= #words do
    local word = words[i]
    if word == "--" then
      local behind = {}
      for j = i + 1, #words do behind[#behind + 1] = words[j] end
      if how.split then return rest, #words + 1, behind end
      for _, other in ipairs(behind) do rest[#rest + 1] = other end
      return rest, #words + 1
    elseif word:sub(1, 2) == "--" then
      i = i + read_long(known, word, words[i + 1], result)
    elseif word:sub(1, 1) == "-" and word ~= "-" then
      i = i + read_short(known, word, words[i + 1], result)
    elseif how.stop_early then
      return rest, i
    else
      rest[#rest + 1] = word
    end
    i = i + 1
  end
  return rest, i
end

-- Lines of help, one per option, in two columns.
function options.help(known)
  local left, width = {}, 0
  for i, option in ipairs(known) do
    left[i] = (option.short and "-" .. option.short .. ", " or "    ") .. "--" .. option.name ..
      (option.argument and " " .. option.argument or "")
    width = math.max(width, #left[i])
  end
  local lines = {}
  for i, option in ipairs(known) do
    local indent = "\n" .. (" "):rep(width + 4)
    lines[i] = "  " .. left[i] .. (" "):rep(width - #left[i] + 2) .. option.help:gsub("\n", indent)
  end
  return table.concat(lines, "\n")
end

return options
