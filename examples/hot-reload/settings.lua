-- What both programs of this folder share: settings that are always current, with defaults.
local settings = {}

local DEFAULTS = {colour = "blue", interval = "1"}

--- Follow a directory of the store. on_reload(name, value) is called after each change, and must not wait.
function settings.follow(store, directory, on_reload)
  local mirror = assert(store:mirror(directory))
  -- Without the store a program starts with its defaults, and gets the rest later.
  if not mirror:wait_ready(2) then print("no answer yet: starting with the defaults") end
  mirror:on_change(function(event)
    on_reload(event.key:match("[^/]+$"), event.value)
  end)
  return function(name) return mirror:get(directory .. "/" .. name) or DEFAULTS[name] end
end

return settings
