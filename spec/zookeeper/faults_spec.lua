--- ZooKeeper servers that fail: restarts, lost data, silence, sessions that expire, leaders that die.
local kv = require("kv")
local native = require("spec.native")
local proxies = require("spec.support.proxy")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local eventually = util.eventually

local open_stores, running = {}, {}

local function open(url, options)
  local all = {session_ttl = 20, connect_timeout = 1}
  for name, value in pairs(options or {}) do all[name] = value end
  local store = assert(kv.open(url, all))
  open_stores[#open_stores + 1] = store
  return store
end

local function server(options)
  local one = servers.zookeeper(options)
  running[#running + 1] = one
  return one
end

local function finish()
  for _, store in ipairs(open_stores) do store:close() end
  for _, one in ipairs(running) do one:stop() end
  open_stores, running = {}, {}
end

--- The final state that a watch tells, until `key` has `value`.
local function follow(watch, state, key, value)
  local deadline = native.now() + 30
  while state[key] ~= value do
    assert(native.now() < deadline, "the watch does not get there")
    local event, message, code = watch:next(1)
    if event then
      state[event.key] = event.type == "put" and event.value or nil
    else
      assert(code == "timeout", message)
    end
  end
  return state
end

--- Servers of a cluster that is not taken for lost when all of it stands still for some seconds; who leads it.
local function cluster(options)
  local all = {tick = 1000}
  for name, value in pairs(options or {}) do all[name] = value end
  local members = servers.zookeeper_cluster(3, all)
  for _, member in ipairs(members) do running[#running + 1] = member end
  return members
end

local function leader_of(members)
  return eventually(function()
    for i, member in ipairs(members) do if member:mode() == "leader" then return i end end
  end, "there is a leader", 60)
end

describe("ZooKeeper", function()
  after_each(finish)

  it("comes back after a kill: writes are there, the watch tells what happened", function()
    local zk = server()
    local store = open(zk:url("/app"))
    local other = open(zk:url("/app"))
    for i = 1, 20 do assert(store:put("dir/" .. i, "1")) end
    local watch = assert(store:watch_tree("dir"))
    local state = follow(watch, {}, "dir/20", "1")
    zk:kill()
    eventually(function() return not watch:connected() end, "the watch notices")
    local value, message, code = store:put("dir/1", "lost", {timeout = 0.3})
    assert.is_nil(value)
    assert.is_truthy(code == "unavailable" or code == "timeout", message)
    zk:start()
    assert(other:put("dir/2", "changed", {timeout = 10}))
    assert(other:delete("dir/3"))
    assert(other:put("dir/new", "end"))
    follow(watch, state, "dir/new", "end")
    assert.equal("1", state["dir/1"])
    assert.equal("changed", state["dir/2"])
    assert.is_nil(state["dir/3"])
    eventually(function() return watch:connected() end, "the watch is connected again")
    assert(store:put("dir/1", "now", {timeout = 10}))
    follow(watch, state, "dir/1", "now")
  end)

  it("heals watches when its session has expired meanwhile", function()
    local zk = server()
    local store, other = open(zk:url()), open(zk:url())
    local function sessions() return tonumber(zk:ask("mntr"):match("zk_global_sessions%s+(%d+)")) end
    for i = 1, 10 do assert(other:put("dir/sub/" .. i, "1")) end
    local tree, key = assert(store:watch_tree("dir")), assert(store:watch("dir/sub/1"))
    local absent = assert(store:watch("none"))
    local state = follow(tree, {}, "dir/sub/10", "1")
    local one = follow(key, {}, "dir/sub/1", "1")
    assert(absent:wait_synced(5))
    local without = sessions()
    local child = util.lua("spec/support/child.lua", zk:url(), "", "session_ttl=1")
    assert.equal("ready", child:line(30))
    assert(child:write("watch\tdir/sub/1\n"))
    assert.equal("true", child:line(30))
    assert(child:write("next\n"))
    assert.equal("put dir/sub/1 1", child:line(30))
    child:kill("STOP")
    eventually(function() return sessions() == without end, "the server has forgotten its session", 30)
    assert(other:put("dir/sub/1", "2"))
    assert(other:delete("dir/sub/1"))
    assert(other:put("dir/sub/1", "3"))
    assert(other:put("none", "now"))
    child:kill("CONT")
    assert(child:write("next\n"))
    local told = child:line(20)
    while told ~= "put dir/sub/1 3" do -- the library may have read in between
      assert(child:write("next\n"))
      told = assert(child:line(20))
    end
    child:kill("KILL")
    child:wait(5)
    follow(key, one, "dir/sub/1", "3")
    follow(tree, state, "dir/sub/1", "3")
    follow(absent, {}, "none", "now")
  end)

  it("that lost its data is followed all the same", function()
    local zk = server()
    local store = open(zk:url())
    for i = 1, 50 do assert(store:put("dir/" .. i, "old")) end
    local watch, state = assert(store:watch_tree("dir")), {}
    follow(watch, state, "dir/50", "old")
    while next(state) and not state["dir/1"] do follow(watch, state, "dir/1", "old") end
    zk:kill()
    zk:wipe()
    zk:start()
    assert(store:put("dir/new", "fresh", {timeout = 20}))
    follow(watch, state, "dir/new", "fresh")
    eventually(function()
      local event = watch:next(0.05)
      if event then state[event.key] = event.type == "put" and event.value or nil end
      local count = 0
      for _ in pairs(state) do count = count + 1 end
      return count == 1
    end, "the old keys are gone", 20)
    assert.equal(1, #assert(store:list("dir")))
  end)

  -- Its numbers begin anew, and are the same when the same is done again.
  it("that lost its data and got other data with the same numbers is followed all the same", function()
    local zk = server()
    local function fill(value)
      -- An attempt to connect that is given up leaves a session behind, which counts as well.
      local store = assert(kv.open(zk:url(), {timeout = 20, connect_timeout = 20}))
      local pairs_there = {}
      for i = 1, 5 do pairs_there[i] = assert(store:put("dir/" .. i, value)) end
      store:close()
      return pairs_there
    end
    local old, proxy = fill("old"), proxies.start(zk.port)
    local store = open("zk://127.0.0.1:" .. proxy.port)
    local tree, key = assert(store:watch_tree("dir")), assert(store:watch("dir/1"))
    local state, one = follow(tree, {}, "dir/5", "old"), follow(key, {}, "dir/1", "old")
    proxy:tell("refuse") -- nobody else may do anything there
    zk:kill()
    zk:wipe()
    zk:start()
    local new = fill("new")
    proxy:tell("listen")
    for i, pair in ipairs(old) do assert.equal(pair.revision, new[i].revision) end
    for i = 1, 5 do follow(tree, state, "dir/" .. i, "new") end
    follow(key, one, "dir/1", "new")
    proxy:stop()
  end)

  it("that is silent delays its own store alone", function()
    local silent, lively = server(), server()
    local slow, quick = open(silent:url()), open(lively:url())
    assert(slow:put("key", "v"))
    assert(quick:put("key", "v"))
    silent:pause()
    local start = native.now()
    kv.run(function()
      local over, reads = false, 0
      local task = kv.spawn(function()
        local pair, message, code = slow:put("key", "w", {timeout = 2})
        over = true
        return pair, message, code
      end)
      while not over do
        assert(quick:get("key"))
        reads = reads + 1
      end
      local pair, message, code = task:join(10)
      assert.is_nil(pair)
      assert.equal("unknown", code, message)
      assert.is_true(reads > 20, "only " .. reads .. " reads")
    end)
    assert.is_true(native.now() - start < 15)
    start = native.now()
    slow:close()
    assert.is_true(native.now() - start < 15, "closing took " .. native.now() - start)
    silent:resume()
  end)

  it("takes a lock from a holder that it does not hear, not before he knows", function()
    local zk = server()
    local store = open(zk:url())
    local lock = assert(assert(store:lock("door", {ttl = 1})):acquire(5))
    zk:pause()
    local lost, message = lock:wait_lost(5)
    assert.is_truthy(lost, message)
    assert.is_false(lock:held())
    assert.equal("lost", lock:state())
    zk:resume()
    local next_lock = assert(assert(store:lock("door", {ttl = 1})):acquire(20))
    assert.is_true(next_lock.token > lock.token)
    assert(next_lock:release())
  end)

  it("that is not there is unavailable in time, and costs nothing meanwhile", function()
    local store = open(("zk://127.0.0.1:%d"):format(native.port()))
    local start = native.now()
    local value, message, code = store:get("key", {timeout = 0.5})
    assert.is_nil(value)
    assert.equal("unavailable", code, message)
    assert.is_true(native.now() - start < 2)
    local watch = assert(store:watch("key"))
    local before = os.clock()
    native.sleep(1)
    assert.is_true(os.clock() - before < 0.2, "it spins")
    watch:close()
  end)

  it("a key that is put over one whose maker died in the middle of a put with a time to live, stays", function()
    local zk = server()
    local store = open(zk:url("/app"))
    local children = {}
    for i = 1, 24 do
      children[i] = util.lua("spec/support/child.lua", zk:url(), "app", "session_ttl=2")
      assert.equal("ready", children[i]:line(20))
      assert(children[i]:write("put\twarm\tup\n"))
      assert(children[i]:line(20))
    end
    for i, child in ipairs(children) do
      child:write(("put\tkey%d\tfirst\t0.7\n"):format(i))
      native.sleep(i / 6000) -- anywhere in its three round trips
      child:kill("KILL")
      child:wait(10)
      assert(store:put("key" .. i, "stays"))
    end
    -- One that is left alone shows when the server has removed what it wants to remove.
    local last = util.lua("spec/support/child.lua", zk:url(), "app", "session_ttl=20")
    assert.equal("ready", last:line(20))
    assert(last:write("put\tcontrol\tfirst\t1\n"))
    assert.truthy(last:line(20):find("^%d+ first"))
    last:kill("KILL")
    last:wait(10)
    eventually(function() return store:exists("control") == false end, "the reaper was there", 20)
    for i = 1, #children do
      local pair = store:get("key" .. i)
      assert.equal("stays", pair and pair.value, "key" .. i)
    end
  end)

  it("that hears of everything late does not answer strong reads before", function()
    local between = {}
    local members = cluster{between = function(i, port)
      between[i] = proxies.start(port)
      return between[i].port
    end}
    local leader = leader_of(members)
    local follower = members[leader % 3 + 1]
    local store, late = open(members[leader]:url("/app"), {timeout = 20}), open(follower:url("/app"), {timeout = 20})
    assert(store:put("key", "0"))
    assert.equal("0", assert(late:get("key")).value)
    between[leader]:tell("delay 100") -- the third one is late as well, so that a write takes some time
    local behind = 0
    for i = 1, 10 do
      local pair = assert(store:put("key", tostring(i)))
      if assert(late:get("key", {consistency = "fast"})).value ~= tostring(i) then behind = behind + 1 end
      if i % 2 == 0 then assert.same(pair, (late:get("key"))) else assert.same({pair}, (late:list(""))) end
    end
    assert.is_true(behind > 0)
    for _, proxy in pairs(between) do proxy:stop() end
  end)

  it("without quorum is unavailable, and a cluster survives its leader", function()
    local members = cluster()
    local hosts = {}
    for i, member in ipairs(members) do hosts[i] = "127.0.0.1:" .. member.port end
    local store = open("zk://" .. table.concat(hosts, ",") .. "/app", {timeout = 30})
    local watch, state = assert(store:watch_tree("")), {}
    local acknowledged, unknown, leader = {}, {}, nil
    local lock = assert(assert(store:lock("door", {ttl = 20})):acquire(10))
    for i = 1, 150 do
      if i == 50 then
        leader = members[leader_of(members)]
        leader:kill()
      end
      local pair, message, code = store:put("key" .. i % 10, tostring(i))
      if pair then
        acknowledged["key" .. i % 10] = i
      else
        assert.equal("unknown", code, message)
        unknown[i] = true
      end
    end
    for key, last in pairs(acknowledged) do
      local value = tonumber(assert(store:get(key)).value)
      assert.is_true(value == last or value > last and unknown[value], key)
    end
    assert(store:put("end", "reached"))
    follow(watch, state, "end", "reached")
    for _, pair in ipairs(assert(store:list(""))) do assert.equal(pair.value, state[pair.key]) end
    assert.is_true(lock:held())
    assert(lock:release())
    for _, member in ipairs(members) do
      if member ~= leader then
        member:kill()
        break
      end
    end
    local pair, message, code = store:put("key1", "no", {timeout = 2})
    assert.is_nil(pair)
    assert.is_truthy(code == "unknown" or code == "unavailable" or code == "timeout", message)
  end)
end)
