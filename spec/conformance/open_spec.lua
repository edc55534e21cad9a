--- Opening: URLs, options, what a store tells of itself, views, codecs, closing.
local suite = require("spec.support.suite")
local native = require("spec.native")
local util = require("spec.support.util")

local function opened(t, url, options)
  return t:own(assert(t.kv.open(url, options)))
end

describe("open", function()
  suite.case("knows its version and backends", function(t)
    assert.is_truthy(t.kv._VERSION:find("%d+%.%d+"))
    local found = {}
    for _, name in ipairs(t.kv.backends()) do found[name] = true end
    assert.is_true(found[t.backend], t.backend)
    assert.is_true(found["local"])
  end)

  suite.case("refuses what is no URL", function(t)
    for _, url in ipairs{"nonsense", "://", "etcd:", "etcd://", "etcd://host:0", "etcd://host:65536",
        "etcd://host:port", "etcd://host:", "etcd://[::1", "etcd://[zz]:1", "etcd://host,,other", "etcd://host/%zz",
        "etcd://host/%", "etcd://host/a/../b", "etcd://host/%00", "etcd://host?timeout", "etcd://host?timeout=soon",
        "etcd://host?timeout=-1", "etcd://host?nothing=1", "etcd://ho st", "etcd://us@er@host@/"} do
      local store, message, code = t.kv.open(url)
      assert.is_nil(store, url)
      assert.equal("string", type(message), url)
      assert.equal("invalid", code, url .. ": " .. message)
    end
  end)

  suite.case("a scheme without a backend is unsupported", function(t)
    for _, url in ipairs{"nonsuch://host", "redis://host:1/x"} do
      local message = t.fails("unsupported", t.kv.open(url))
      assert.is_truthy(message:find(url:match("^%w+"), 1, true), message)
    end
  end)

  suite.case("raises for misuse of options", function(t)
    t.raises(t.kv.open, "local:", {timout = 3})
    t.raises(t.kv.open, "local:", {timeout = "soon"})
    t.raises(t.kv.open, "local:", {timeout = {}})
    t.raises(t.kv.open, "local:", "prefix")
    t.raises(t.kv.open, {})
    t.raises(t.kv.open, "local:", {tls = 3})
    t.raises(t.kv.open, "local:", {tls = {cacert = "x"}})
    t.raises(t.kv.open, "local:", {codec = 3})
    t.raises(t.kv.open, "local:", {[1] = "x"})
  end)

  suite.case("an option value that can never be is invalid", function(t)
    for name, value in pairs{timeout = -1, consistency = "weak", sync = "half", prefix = "a/../b"} do
      t.fails("invalid", t.kv.open("local:", {[name] = value}))
    end
  end)

  suite.case("does no I/O", function(t)
    local port = native.port()
    local start = t.now()
    -- Nobody listens there: who asked would try again until the time is over.
    local store = opened(t, ("etcd://127.0.0.1:%d,127.0.0.1:%d/app?timeout=20"):format(port, port))
    assert.is_true(t.now() - start < 10)
    assert.is_false(store:info().connected)
    store:close()
  end)

  suite.case("local: without a path is private and temporary", function(t)
    local one, two = opened(t, "local:"), opened(t, "local:")
    assert(one:put("key", "v"))
    assert.is_nil((two:get("key")))
    assert.equal("v", assert(one:get("key")).value)
  end)

  suite.case("without a URL takes $KV_URL, else local:", function(t)
    native.setenv("KV_URL", t.url)
    local store = opened(t, nil, {prefix = t.prefix})
    native.setenv("KV_URL")
    assert(t.store:put("key", "v"))
    assert.equal("v", assert(store:get("key")).value)
    local other = opened(t)
    assert.equal("local", other:info().backend)
    assert.is_nil((other:get("key")))
  end)

  suite.case("takes a prefix from the URL's path, percent-decoded", function(t)
    if t.backend == "local" then return end
    local store = opened(t, t.url .. "/" .. t.prefix .. "/with%20blank/")
    assert(store:put("key", "v"))
    assert.equal("v", assert(t.store:get("with blank/key")).value)
    assert.equal("key", t.keys(assert(store:list(""))))
  end)

  suite.case("takes options from the query, and the table wins", function(t)
    local join = t.url:find("?", 1, true) and "&" or "?"
    local store = opened(t, t.url .. join .. "prefix=" .. t.prefix .. "%2Fquery&timeout=7")
    assert(store:put("key", "v"))
    assert.equal("v", assert(t.store:get("query/key")).value)
    store = opened(t, t.url .. join .. "prefix=elsewhere", {prefix = t.prefix})
    assert.equal("v", assert(store:get("query/key")).value)
  end)

  suite.case("never shows a secret", function(t)
    local port = native.port()
    local store = opened(t, ("etcd://someone:s3cr3t@127.0.0.1:%d/app"):format(port), {timeout = 0.3, token = "t0k3n"})
    local _, message, code = store:get("key")
    assert.is_truthy(code == "unavailable" or code == "timeout", code)
    for _, text in ipairs{tostring(store), message, store:info().endpoint or ""} do
      assert.is_nil(text:find("s3cr3t", 1, true), text)
      assert.is_nil(text:find("t0k3n", 1, true), text)
    end
    _, message = t.kv.open("etcd://someone:s3cr3t@host:99999/")
    assert.is_nil(message:find("s3cr3t", 1, true), message)
    _, message = t.kv.open("etcd://someone:s3cr3t@host/?nothing=1")
    assert.is_nil(message:find("s3cr3t", 1, true), message)
    _, message = t.kv.open("nonsuch://someone:s3cr3t@host/")
    assert.is_nil(message:find("s3cr3t", 1, true), message)
  end)

  suite.both("tells what it is", function(t)
    assert.equal(true, (t.store:ping(5)))
    local info = t.store:info()
    assert.equal("string", type(info.backend))
    assert.is_true(info.connected)
    assert.equal("string", type(info.server_version))
    assert.equal("string", type(info.endpoint))
    assert.equal("table", type(info.capabilities))
    assert.is_truthy(tostring(t.store):find("kv", 1, true) or tostring(t.store):find(t.backend, 1, true))
    for _, name in ipairs{"txn", "ttl", "lock", "semaphore", "election", "lease", "watch", "resume", "every_version",
      "paging"} do
      assert.equal("boolean", type(t.store:supports(name)))
    end
    assert.is_false(t.store:supports("nothing like that"))
  end)

  suite.both("counts", function(t)
    local before = t.store:stats()
    assert.equal(0, before.in_flight)
    for _ = 1, 5 do assert(t.store:put("key", "v")) end
    t.fails("exists", t.store:atomic_put("key", "v", nil))
    local after = t.store:stats()
    assert.is_true(after.operations >= before.operations + 6)
    assert.equal((before.failures.exists or 0) + 1, after.failures.exists)
    assert.equal(0, after.in_flight)
    assert.equal("number", type(after.watches))
    assert.equal("number", type(after.bytes_sent))
  end)
end)

describe("sub", function()
  suite.both("is a view below a prefix", function(t)
    local sub = t:own(assert(t.store:sub("a/b/")))
    local pair = assert(sub:put("c/d", "v"))
    assert.equal("c/d", pair.key)
    assert.equal("a/b/c/d", t.keys(assert(t.store:list(""))))
    assert.equal("c/d", t.keys(assert(sub:list(""))))
    assert.equal("v", assert(t.store:get("a/b/c/d")).value)
    local deeper = t:own(assert(sub:sub("c")))
    assert.equal("v", assert(deeper:get("d")).value)
    assert.equal("d", t.keys(assert(deeper:list(""))))
    assert.equal(1, #assert(sub:list("c")))
    assert.is_true(deeper:delete("d"))
    assert.is_false(t.store:exists("a/b/c/d"))
  end)

  suite.both("cannot leave its prefix", function(t)
    local sub = t:own(assert(t.store:sub("inner")))
    t.fails("invalid", sub:get("../outer"))
    t.fails("invalid", t.store:sub("../outer"))
    t.fails("invalid", t.store:sub(".kv"))
    assert(t.store:put("outer", "v"))
    assert.same({}, (sub:list("")))
  end)

  suite.both("is closed on its own", function(t)
    local sub = assert(t.store:sub("a"))
    assert(sub:put("key", "v"))
    sub:close()
    t.fails("closed", sub:get("key"))
    assert.equal("v", assert(t.store:get("a/key")).value)
    local parent = assert(t:open())
    local kept = t:own(assert(parent:sub("a")))
    parent:close()
    t.fails("closed", parent:get("a/key"))
    assert.equal("v", assert(kept:get("key")).value)
  end)

  suite.case("shares the connection", function(t)
    local subs = {}
    assert(t.store:ping())
    assert.is_false(t.store:exists("key")) -- everything that a connection needs is there from here on
    local before = util.count_proc("fd")
    for i = 1, 50 do
      subs[i] = t:own(assert(t.store:sub("sub" .. i)))
      assert(subs[i]:put("key", tostring(i)))
    end
    assert.is_true(util.count_proc("fd") - before <= 4)
    assert.equal(50, #assert(t.store:list("")))
  end)
end)

describe("codec", function()
  local function reversing()
    return {
      encode = function(value) return table.concat(value, ",") end,
      decode = function(text)
        if text == "bad" then error("cannot decode this") end
        local value = {}
        for word in text:gmatch("[^,]+") do value[#value + 1] = word end
        return value
      end,
    }
  end

  suite.both("encodes and decodes values wherever they appear", function(t)
    local store = assert(t:open{codec = reversing()})
    local pair = assert(store:put("key", {"a", "b"}))
    assert.same({"a", "b"}, pair.value)
    assert.equal("a,b", assert(t.store:get("key")).value)
    assert.same({"a", "b"}, assert(store:get("key")).value)
    assert.same({"a", "b"}, assert(store:list(""))[1].value)
    assert.same({"a", "b"}, assert(store:get_many{"key"}).key.value)
    assert(store:atomic_put("key", {"c"}, pair))
    assert(store:put_many{other = {"d", "e"}})
    assert.equal("d,e", assert(t.store:get("other")).value)
    assert(store:update("key", function(value)
      value[#value + 1] = "more"
      return value
    end))
    assert.equal("c,more", assert(t.store:get("key")).value)
    local watch = t:own(assert(store:watch("key")))
    assert.same({"c", "more"}, t.event(watch).value)
    if store:supports("txn") then
      assert(store:txn():put("key", {"t"}):commit())
      assert.equal("t", assert(t.store:get("key")).value)
    end
    local mirror = t:own(assert(store:mirror("")))
    assert(mirror:wait_ready(10))
    assert.same({"d", "e"}, mirror:get("other"))
  end)

  suite.both("json comes with lua-cjson", function(t)
    if not pcall(require, "cjson") then return end
    local store = assert(t:open{codec = "json"})
    assert(store:put("key", {name = "x", list = {1, 2}}))
    assert.same({name = "x", list = {1, 2}}, assert(store:get("key")).value)
    assert.is_truthy(assert(t.store:get("key")).value:find('"name"', 1, true))
  end)

  suite.case("a codec that fails is told, with the key", function(t)
    local store = assert(t:open{codec = reversing()})
    assert(t.store:put("key", "bad"))
    local value, message, code = store:get("key")
    assert.is_nil(value)
    assert.equal("string", type(code))
    assert.is_truthy(message:find("key", 1, true), message)
    assert(store:put("key", {"good"}))
    assert.same({"good"}, assert(store:get("key")).value)
  end)
end)

describe("close", function()
  suite.both("is idempotent, and everything after it is closed", function(t)
    local store = assert(t:open())
    assert(store:put("key", "v"))
    store:close()
    store:close()
    t.fails("closed", store:get("key"))
    t.fails("closed", store:put("key", "w"))
    t.fails("closed", store:delete("key"))
    t.fails("closed", store:exists("key"))
    t.fails("closed", store:list(""))
    t.fails("closed", store:get_many{"key"})
    t.fails("closed", store:put_many{key = "v"})
    t.fails("closed", store:delete_tree(""))
    t.fails("closed", store:atomic_put("key", "v", nil))
    t.fails("closed", store:atomic_delete("key", 1))
    t.fails("closed", store:update("key", function() return "x" end))
    t.fails("closed", store:watch("key"))
    t.fails("closed", store:watch_tree(""))
    t.fails("closed", store:mirror(""))
    t.fails("closed", store:ping())
    assert.equal("v", assert(t.store:get("key")).value)
    assert.equal("string", type(tostring(store)))
  end)

  suite.case("of a store that did nothing is fine", function(t)
    for _ = 1, 20 do assert(t:open()):close() end
  end)

  suite.task("answers what waits", function(t)
    local store = assert(t:open())
    local watch = assert(store:watch("key"))
    assert(watch:wait_synced(10))
    local waiting = t.kv.spawn(function() return watch:next(30) end)
    t.kv.sleep(0.02)
    store:close()
    t.fails("closed", waiting:join(20))
  end)

  suite.task("answers a lock's waiter", function(t)
    local holder = assert(assert(t.store:lock("door")):acquire(10))
    local store = assert(t:open())
    local lock = assert(store:lock("door"))
    local waiting = t.kv.spawn(function() return lock:acquire(30) end)
    t:eventually(function() return lock:state() == "waiting" end, "it waits")
    store:close()
    t.fails("closed", waiting:join(5))
    assert(holder:release())
    assert(assert(t.store:lock("door")):acquire(10)):release()
  end, "lock")

  suite.task("with writes in flight answers each of them", function(t)
    local store = assert(t:open())
    local tasks, codes = {}, {}
    for i = 1, 100 do
      tasks[i] = t.kv.spawn(function()
        local pair, _, code = store:put("key" .. i, "v")
        return pair and "ok" or code
      end)
    end
    t.kv.sleep(0)
    store:close()
    for i, task in ipairs(tasks) do codes[i] = assert(task:join(10)) end
    local there = {}
    for _, pair in ipairs(assert(t.store:list(""))) do there[pair.key] = true end
    for i, code in ipairs(codes) do
      assert.is_truthy(code == "ok" or code == "closed" or code == "unknown", code)
      if code == "ok" then assert.is_true(there["key" .. i], "acknowledged and not there: " .. i) end
      if code == "closed" then assert.is_nil(there["key" .. i], "said to be closed and is there: " .. i) end
    end
  end)

  suite.case("gives descriptors and threads back", function(t)
    local function round()
      for _ = 1, 10 do
        local store = assert(t.kv.open(t.url, {prefix = t.prefix}))
        assert(store:put("key", "v"))
        local watch = assert(store:watch("key"))
        assert(watch:wait_synced(10))
        store:close()
      end
    end
    round()
    local fds, threads
    t:eventually(function()
      local now_fds, now_threads = util.count_proc("fd"), util.count_proc("task")
      local same = now_fds == fds and now_threads == threads
      fds, threads = now_fds, now_threads
      native.sleep(0.2)
      return same
    end, "things settled")
    round()
    t:eventually(function() return util.count_proc("fd") <= fds and util.count_proc("task") <= threads end,
      "descriptors and threads are given back")
  end)

  suite.case("forgotten stores are collected", function(t)
    local before = util.count_proc("fd")
    for _ = 1, 20 do
      local store = assert(t.kv.open(t.url, {prefix = t.prefix}))
      assert(store:put("key", "v"))
    end
    t:eventually(function()
      collectgarbage()
      return util.count_proc("fd") <= before + 8
    end, "descriptors of forgotten stores are given back", 20)
  end)

  suite.case("happens at the end of a 5.4 block", function(t)
    if _VERSION ~= "Lua 5.4" then return end
    local chunk = assert((loadstring or load)([[
      local kv, url, prefix = ...
      local kept
      do
        local store <close> = assert(kv.open(url, {prefix = prefix}))
        assert(store:put("key", "v"))
        kept = store
      end
      return kept
    ]]))
    local store = chunk(t.kv, t.url, t.prefix)
    t.fails("closed", store:get("key"))
  end)

  suite.case("a forked child finds its parent's stores closed", function(t)
    assert(t.store:put("key", "v"))
    local watch = t:own(assert(t.store:watch("key")))
    assert.equal("initial put key v", t.told(watch))
    local lock = t.store:supports("lock") and assert(assert(t.store:lock("door")):acquire(10))
    local pid = assert(native.fork())
    if pid == 0 then
      local status = 0
      local ok = pcall(function()
        local value, _, code = t.store:get("key")
        if value ~= nil or code ~= "closed" then status = status + 1 end
        value, _, code = t.store:put("key", "from the child")
        if value ~= nil or code ~= "closed" then status = status + 2 end
        if lock and lock:held() then status = status + 4 end
        t.store:close()
        local own = t.kv.open(t.url, {prefix = t.prefix})
        local pair = own and own:put("child", "v")
        if not pair then status = status + 8 end
        if own then own:close() end
      end)
      native.exit(ok and status or 99)
    end
    assert.equal(0, native.reap(pid))
    assert.equal("v", assert(t.store:get("key")).value)
    assert.equal("v", assert(t.store:get("child")).value)
    assert(t.store:put("key", "w"))
    assert.equal("put key w", t.told(watch))
    if lock then
      assert.is_true(lock:held())
      assert(lock:release())
    end
  end)
end)
