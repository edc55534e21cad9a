--- The event loops that the module knows, and how it tells which of them the caller runs in.
--
-- kv.host.NAME returns the hooks of scheduler.set_host(), and those of a loop that can be recognised have
--     recognise() -> does the caller run in this loop, and may it wait there? Only called when LIBRARY is loaded.
-- A loop is looked for where a call would block otherwise, so it must cost next to nothing where there is none.
local hosts = {}

local LIBRARIES = {"cqueues", "luv", "copas"} -- a module of this name is loaded where its loop runs

local loaded = package.loaded

--- The hooks of the loop that the caller runs in, or nil.
function hosts.find()
  for i = 1, #LIBRARIES do
    local name = LIBRARIES[i]
    if loaded[name] then
      local hooks = require("kv.host." .. name)
      if hooks.recognise() then return hooks end
    end
  end
end

-- Inside of nginx, where the table exists from the start.
local function in_nginx()
  local nginx = _G.ngx -- luacheck: ignore 113
  return type(nginx) == "table" and nginx.get_phase ~= nil and nginx.worker ~= nil
end

--- The hooks that this process has from the start, or nil.
function hosts.given()
  if in_nginx() then return require("kv.host.openresty") end
end

--- Have the loops that need it see what the program does from now on.
function hosts.prepare()
  if loaded.copas and not loaded["kv.host.copas"] then pcall(require, "kv.host.copas") end
end

local function is_known(name)
  if name == "openresty" then return true end
  for _, known in ipairs(LIBRARIES) do
    if known == name then return true end
  end
  return false
end

--- The hooks of a loop by its name, or nil and why not.
function hosts.named(name)
  if not is_known(name) then return nil, ('the event loop "%s" is not there in this version'):format(name) end
  local ok, hooks = pcall(require, "kv.host." .. name)
  if ok then return hooks end
  return nil, ('the event loop "%s" cannot be used: %s'):format(name, tostring(hooks))
end

return hosts
