--- Locks shared with kazoo's Lock (Python) and Curator's InterProcessMutex (Java).
local kv = require("kv")
local cases = require("spec.interop.cases")
local native = require("spec.native")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local JARS = {"bsh", "curator-recipes", "curator-framework", "curator-client", "zookeeper", "zookeeper-jute", "guava",
  "slf4j-api", "slf4j-nop", "netty-handler", "netty-common", "netty-transport", "netty-buffer", "netty-resolver",
  "netty-codec"}

local server

local function address() return ("127.0.0.1:%d"):format(server.port) end

local function class_path()
  local jars = {}
  for i, name in ipairs(JARS) do jars[i] = ("/usr/share/java/%s.jar"):format(name) end
  return table.concat(jars, ":")
end

--- Debian's Python, which has Debian's kazoo.
local function kazoo(path, ttl, ...)
  return assert(native.spawn{"/usr/bin/python3", "spec/interop/kazoo_lock.py", address(), path, tostring(ttl),
    pipe = true, ...})
end

local function curator(path, ttl)
  return assert(native.spawn{"java", "-XX:TieredStopAtLevel=1", "-cp", class_path(), "bsh.Interpreter",
    "spec/interop/curator_lock.bsh", address(), path, ("%d"):format(ttl * 1000), pipe = true})
end

local function ground_of(kind, contend)
  local ground = {kind = kind, kinds = "kazoo curator", ordered = true, ttl = 6, contend = contend,
    release = cases.release_by_input}

  function ground.url(rest) return server:url(rest) end

  function ground.path(number) return ("/locks/%s/%d"):format(kind, number) end

  --- The names in the queue; a store at the root sees them as keys.
  function ground.names(path)
    local store = assert(kv.open(server:url()))
    local found = assert(store:list(path, {keys_only = true}))
    store:close()
    return found
  end

  function ground.size(path) return #ground.names(path) end

  function ground.remove(path)
    local store = assert(kv.open(server:url()))
    for _, pair in ipairs(ground.names(path)) do assert(store:delete(pair.key)) end
    store:close()
  end

  return ground
end

describe("interop with", function()
  setup(function() server = servers.zookeeper{} end)
  teardown(function() server:stop() end)

  describe("kazoo", function()
    local ground = ground_of("kazoo", kazoo)
    cases.describe(ground)

    it("names its entries as kazoo does, and shows who holds", function()
      local store = assert(kv.open(server:url("/app")))
      local ours = assert(assert(store:lock("shown/kazoo", {interop = "kazoo", value = "me"})):acquire(10))
      assert.is_truthy(ground.names("shown/kazoo")[1].key:find("^shown/kazoo/%x+__lock__0000000000$"))
      assert(ours:release())
      local theirs = kazoo("/shown/kazoo", 30, "worker 7")
      assert(theirs:line(30))
      assert.equal("worker 7", assert(ours:holder()).value)
      ground.release(theirs)
      store:close()
    end)

    it("waits for shared locks too", function()
      local root, store = assert(kv.open(server:url())), assert(kv.open(server:url("/app")))
      assert(root:put("shared/0123456789abcdef0123456789abcdef__rlock__0000000000", "reader", {keep_alive = true}))
      assert(root:put("shared/other", "no entry"))
      -- Our number is larger: the queue has had children before.
      local ours = assert(store:lock("/shared", {interop = "kazoo"}))
      cases.fails("timeout", ours:acquire(0.2))
      assert.equal("reader", assert(ours:holder()).value)
      assert(root:delete("shared/0123456789abcdef0123456789abcdef__rlock__0000000000"))
      assert(ours:acquire(10))
      assert(ours:release())
      root:close()
      store:close()
    end)

    it("does not touch what is the server's own", function()
      local store = assert(kv.open(server:url("/app")))
      cases.fails("unsupported", assert(store:lock("/zookeeper/x", {interop = "kazoo"})):acquire(5))
      store:close()
    end)
  end)

  describe("curator", function()
    local ground = ground_of("curator", curator)
    cases.describe(ground)

    it("names its entries as Curator does, and shows who holds", function()
      local store = assert(kv.open(server:url("/app")))
      local ours = assert(assert(store:lock("//shown/curator/", {interop = "curator", value = "me"})):acquire(10))
      local name = ground.names("shown/curator")[1].key
      local parts = {name:match("^shown/curator/_c_(%x+)%-(%x+)%-(%x+)%-(%x+)%-(%x+)%-lock%-0000000000$")}
      local sizes = {}
      for i, part in ipairs(parts) do sizes[i] = #part end
      assert.same({8, 4, 4, 4, 12}, sizes, name)
      assert(ours:release())
      local theirs = curator("/shown/curator", 30)
      assert(theirs:line(30))
      assert.is_truthy(assert(ours:holder()).value:find("^[%d%.:%x]+$")) -- its address
      ground.release(theirs)
      store:close()
    end)

    it("a lock that Curator asks to revoke is lost", function()
      local root, store = assert(kv.open(server:url())), assert(kv.open(server:url("/app")))
      local ours = assert(assert(store:lock("/revoked", {interop = "curator", ttl = 6})):acquire(10))
      local name = ground.names("revoked")[1].key
      assert(root:put(name, "__REVOKE__", {keep_alive = true}))
      assert(ours:wait_lost(20))
      util.eventually(function() return ground.size("revoked") == 0 end, "the entry goes", 10)
      root:close()
      store:close()
    end)
  end)
end)
