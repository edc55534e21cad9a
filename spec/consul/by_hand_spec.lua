--- Hands on what locks have in Consul.
local by_hand = require("spec.support.by_hand")
local servers = require("spec.support.servers")

describe("locks of Consul, by hand:", function()
  local server

  setup(function() server = servers.consul{} end)
  teardown(function() server:stop() end)

  local function http(method, path, body)
    return (servers.run{"curl", "-s", "-X", method, ("http://127.0.0.1:%d%s"):format(server.port, path), "-d",
      body or ""})
  end

  local function quoted(key) return (key:gsub("%%", "%%25")) end

  by_hand{
    url = function() return server:url() end,
    keys = function(part)
      local keys = {}
      for key in http("GET", "/v1/kv/.kv/?keys"):gmatch('"([^"]+)"') do
        if key:find(part, 1, true) then keys[#keys + 1] = key end
      end
      return keys
    end,
    delete = function(key) http("DELETE", "/v1/kv/" .. quoted(key)) end,
    overwrite = function(key) http("PUT", "/v1/kv/" .. quoted(key), "by hand") end,
    survives_overwriting = false, -- the token is the index of the last write
  }
end)
