--- Hands on what locks have in etcd.
local by_hand = require("spec.support.by_hand")
local servers = require("spec.support.servers")

describe("locks of etcd, by hand:", function()
  local server

  setup(function() server = servers.etcd{arguments = {"--unsafe-no-fsync"}} end)
  teardown(function() server:stop() end)

  by_hand{
    url = function() return server:url() end,
    keys = function(part)
      local keys = {}
      for key in server:ctl("get", ".kv/", "--prefix", "--keys-only", "--sort-by=CREATE"):gmatch("[^\n]+") do
        if key:find(part, 1, true) then keys[#keys + 1] = key end
      end
      return keys
    end,
    delete = function(key) server:ctl("del", key) end,
    overwrite = function(key) server:ctl("put", key, "by hand") end,
    survives_overwriting = true, -- it is still the key that was created first
  }
end)
