--- Drivers: which URL scheme wants which, loaded when a URL first asks for it.
--
-- A driver is a module kv.driver.NAME that returns the address of its table. So a library that is missing costs one
-- backend, and one that nobody asks for is not in the process.
local core = require("kv.core")

local drivers = {}

local KNOWN = {"local", "etcd", "etcd2", "consul", "zookeeper"}
local BY_SCHEME = {zk = "zookeeper", zks = "zookeeper"}
local SCHEMES = {zookeeper = "zk"} -- of those that are not called as their drivers are

local NO_DESCRIPTORS = {[23] = true, [24] = true} -- ENFILE, EMFILE: then nothing can be found

-- Look in the places where a module would be looked for. When it cannot be told: nil, and why not.
local function is_there(module)
  if package.preload[module] or package.loaded[module] then return true end
  local separator = package.config:sub(1, 1)
  local name = module:gsub("%.", separator)
  for template in (package.cpath .. ";" .. package.path):gmatch("[^;]+") do
    local file, problem, number = io.open((template:gsub("%?", (name:gsub("%%", "%%%%")))), "rb")
    if file then
      file:close()
      return true
    end
    if NO_DESCRIPTORS[number] then return nil, problem end
  end
  return false
end

--- The names of the backends that can be had: those in use, and those that are installed.
function drivers.names()
  local seen, names = {}, {}
  local function add(name)
    if not seen[name] then names[#names + 1] = name end
    seen[name] = true
  end
  for _, name in ipairs(core.drivers()) do add(name) end
  for _, name in ipairs(KNOWN) do
    if is_there("kv.driver." .. name) then add(name) end
  end
  table.sort(names)
  return names
end

local function there()
  local names = drivers.names()
  for i, name in ipairs(names) do names[i] = (SCHEMES[name] or name) .. ":" end
  return #names > 0 and "there are: " .. table.concat(names, ", ") or "there is none at all"
end

local function load_driver(name)
  local module = "kv.driver." .. name
  local found, problem = is_there(module)
  if found == nil then return nil, problem, "failed" end
  if not found then return nil end
  local ok, address = pcall(require, module)
  if not ok then
    package.loaded[module] = nil -- 5.1 would not try again
    return nil, tostring(address):match("^[^\n]*")
  end
  local done, message
  ok, done, message = pcall(core.register, address)
  if not ok then return nil, done end
  if not done then return nil, message end
  return true
end

--- See to it that the scheme of a URL is known to the core. Returns true, also for what has no scheme (the core says
-- what is wrong with it), or nil, message, code.
function drivers.need(url)
  local scheme = url:match("^(%a[%w+.-]*):")
  if not scheme or core.known(scheme) then return true end
  local problem, code
  if scheme:find("^%w+$") then
    local tried = {BY_SCHEME[scheme] or scheme, not BY_SCHEME[scheme] and scheme:match("^(.+)s$") or nil}
    for _, name in ipairs(tried) do
      local done, message, its_code = load_driver(name)
      if done and core.known(scheme) then return true end
      if message and not problem then problem, code = message, its_code end
    end
  end
  if problem then
    return nil, ("kv.open: the driver for %s: cannot be loaded: %s"):format(scheme, problem), code or "unsupported"
  end
  if url:find("^[%w.-]+:%d+$") or url:find("^[%w.-]+:%d+[/,]") then -- a host and its port
    return nil, "invalid URL: it must begin with a scheme, as in etcd://" .. url, "invalid"
  end
  return nil, ("kv.open: no backend is installed for %s: (%s)"):format(scheme, there()), "unsupported"
end

return drivers
