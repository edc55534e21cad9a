--- Hands on what locks have in ZooKeeper.
local by_hand = require("spec.support.by_hand")
local servers = require("spec.support.servers")

-- keys PART | delete PATH | set PATH, below /.kv
local SCRIPT = [[
import sys
from kazoo.client import KazooClient
zk = KazooClient(hosts=sys.argv[1])
zk.start(timeout=20)
found = []
def walk(path):
    for name in zk.get_children(path):
        child = path + "/" + name
        stat = zk.exists(child)
        if stat and stat.ephemeralOwner and sys.argv[3] in child: found.append((stat.czxid, child))
        walk(child)
if sys.argv[2] == "keys":
    if zk.exists("/.kv"): walk("/.kv")
    for zxid, path in sorted(found): print(path)
elif sys.argv[2] == "delete": zk.delete(sys.argv[3])
else: zk.set(sys.argv[3], b"by hand")
zk.stop()
]]

describe("locks of ZooKeeper, by hand:", function()
  local server

  setup(function() server = servers.zookeeper{} end)
  teardown(function() server:stop() end)

  local function kazoo(...)
    return assert(servers.run{"/usr/bin/python3", "-c", SCRIPT, "127.0.0.1:" .. server.port, ...})
  end

  by_hand{
    url = function() return server:url() end,
    keys = function(part)
      local keys = {}
      for path in kazoo("keys", part):gmatch("[^\n]+") do keys[#keys + 1] = path end
      return keys
    end,
    delete = function(path) kazoo("delete", path) end,
    overwrite = function(path) kazoo("set", path) end,
    survives_overwriting = false, -- whoever holds checks the version of his node
  }
end)
