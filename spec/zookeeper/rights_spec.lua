--- Rights that are taken away while a store is in use: somebody gives a node to another digest user. Reads and writes
-- are denied at once, new watches end so, and those that are there tell no deletes and nothing of what they may not
-- read; nothing spins, and all is well when the rights are given back.
local kv = require("kv")
local native = require("spec.native")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")

-- give PATH FROM TO: FROM ("user:password") gives a node to TO, who alone may use it then; set PATH USER VALUE
local SCRIPT = [[
import sys
from kazoo.client import KazooClient
from kazoo.security import make_digest_acl
zk = KazooClient(hosts=sys.argv[1], auth_data=[("digest", sys.argv[4])])
zk.start(timeout=20)
if sys.argv[2] == "give": zk.set_acls(sys.argv[3], [make_digest_acl(*sys.argv[5].split(":"), all=True)])
else: zk.set(sys.argv[3], sys.argv[5].encode())
zk.stop()
]]
local OURS, THEIRS = "alice:secret", "bob:hidden"

local function fails(code, value, message, actual)
  assert.is_nil(value)
  assert.equal(code, actual, message)
  return message
end

-- Not a delete, and not what they wrote. Servers since 3.8.4 (and Debian's) do not tell a change to those that may not
-- read it; older ones do, and reading it ends the watch.
local function tells_nothing(watch)
  local event, message, code = watch:next(0.5)
  assert.is_nil(event)
  assert.is_true(code == "timeout" or code == "denied", message)
end

describe("zookeeper: rights taken away", function()
  local server, proxy, store

  setup(function() server = servers.zookeeper{} end)
  teardown(function() server:stop() end)
  before_each(function()
    proxy = proxies.start(server.port)
    store = assert(kv.open(("zk://%s@127.0.0.1:%d/app"):format(OURS, proxy.port), {acl = "creator"}))
  end)
  after_each(function()
    store:delete_tree("")
    store:close()
    proxy:stop()
  end)

  local function by_hand(...)
    assert(servers.run{"/usr/bin/python3", "-c", SCRIPT, "127.0.0.1:" .. server.port, ...})
  end

  local function is_quiet()
    local bytes, processor = proxy:number("requests"), os.clock()
    native.sleep(2)
    assert.is_true(proxy:number("requests") - bytes < 1000, proxy:number("requests") - bytes .. " bytes in two seconds")
    assert.is_true(os.clock() - processor < 0.1, "it spins")
  end

  it("of a key: denied, and as good as before when they are back", function()
    local pair = assert(store:put("key", "1"))
    assert(store:put("free", "1"))
    local watch, tree = assert(store:watch("key")), assert(store:watch_tree(""))
    local free = assert(store:watch("free"))
    assert.equal("1", assert(watch:next(10)).value)
    assert.equal("1", assert(free:next(10)).value)
    for _ = 1, 2 do assert(tree:next(10)) end

    by_hand("give", "/app/key", OURS, THEIRS)
    local start = native.now()
    local message = fails("denied", store:get("key"))
    assert.is_nil(message:find("secret", 1, true))
    fails("denied", store:put("key", "2"))
    fails("denied", store:atomic_put("key", "2", pair))
    fails("denied", store:put_many{key = "2"})
    fails("denied", store:txn():check("free", assert(store:get("free"))):put("key", "2"):commit())
    fails("denied", store:list(""))
    assert.is_true(native.now() - start < 4, "that took " .. native.now() - start)
    is_quiet()
    by_hand("set", "/app/key", THEIRS, "theirs")
    tells_nothing(watch)
    tells_nothing(tree)
    assert(store:put("free", "2"))
    assert.equal("2", assert(free:next(10)).value)
    local late = assert(store:watch("key"))
    fails("denied", late:next(10))
    is_quiet()

    by_hand("give", "/app/key", THEIRS, OURS)
    local there = assert(store:get("key"))
    assert.equal("theirs", there.value)
    local again = assert(store:watch_tree(""))
    assert(again:wait_synced(10))
    assert(store:atomic_put("key", "3", there))
    local event
    repeat event = assert(again:next(10)) until event.value == "3"
    assert.equal("key", event.key)
  end)

  it("of a directory: what may be read still is told, the rest is denied, and told when the rights are back", function()
    assert(store:put("dir", "v"))
    for i = 1, 5 do assert(store:put("dir/" .. i, "v")) end
    local tree = assert(store:watch_tree("dir"))
    for _ = 1, 5 do assert.equal("put", assert(tree:next(10)).type) end
    by_hand("give", "/app/dir", OURS, THEIRS)
    fails("denied", store:list("dir"))
    fails("denied", store:put("dir/new", "v"))
    assert.equal("v", assert(store:get("dir/1")).value)
    assert(store:atomic_put("dir/1", "w", assert(store:get("dir/1")))) -- the node itself is ours still
    assert.equal("w", assert(tree:next(10)).value)
    fails("denied", store:delete("dir/1"))
    fails("denied", assert(store:watch_tree("dir")):next(10))
    is_quiet()
    by_hand("give", "/app/dir", THEIRS, OURS)
    assert(store:put("dir/new", "v"))
    assert.equal("dir/new", assert(tree:next(10)).key)
  end)

  it("of a directory: its keys are changed as before, and there are no new ones", function()
    assert(store:put("folder/key", "1"))
    assert(store:put("new", "1")) -- after a key that is new, a put begins with making one
    by_hand("give", "/app/folder", OURS, THEIRS)
    assert(store:put("folder/key", "2"))
    assert.equal("2", assert(store:get("folder/key")).value)
    assert(store:put("other", "1"))
    fails("denied", store:put("folder/new", "1"))
    by_hand("give", "/app/folder", THEIRS, OURS)
    assert(store:put("folder/new", "1"))
  end)
end)
