--- kv.open and its kin: URLs, drivers, what is told where one is missing.
local core = require("kv.core")
local drivers = require("kv.drivers")
local kv = require("kv")
local native = require("spec.native")
local util = require("spec.support.util")

local function fails(code, value, message, actual)
  assert.is_nil(value)
  assert.is_string(message)
  assert.equal(code, actual, message)
  return message
end

describe("kv", function()
  it("tells its version", function()
    assert.is_truthy(kv._VERSION:find("^kv %d+%.%d+%.%d+$"))
  end)

  it("tells which backends can be had, sorted", function()
    local names = kv.backends()
    local sorted = {}
    for i, name in ipairs(names) do sorted[i] = name end
    table.sort(sorted)
    assert.same(sorted, names)
    assert.equal("table", type(names))
    assert.is_truthy(table.concat(names, " "):find("local", 1, true))
  end)
end)

describe("a driver", function()
  local function with_driver(name, loader, fn)
    local module = "kv.driver." .. name
    package.preload[module] = loader
    local ok, problem = pcall(fn)
    package.preload[module], package.loaded[module] = nil, nil
    if not ok then error(problem, 0) end
  end

  it("that is not there is unsupported, and the message names those that are", function()
    local message = fails("unsupported", kv.open("nonesuch://host"))
    assert.is_truthy(message:find("nonesuch", 1, true), message)
    assert.is_truthy(message:find("local", 1, true), message)
    -- names of modules are not made from just anything
    for _, url in ipairs{"../../x://host", "a.b://host", "a-b://host", "a+b://host"} do
      local store, _, code = kv.open(url)
      assert.is_nil(store)
      assert.is_truthy(code == "unsupported" or code == "invalid", url)
    end
  end)

  it("that cannot be loaded is unsupported, and the message says why", function()
    with_driver("broken", function() error("libbroken.so.1: cannot open shared object file") end, function()
      local message = fails("unsupported", kv.open("broken://host"))
      assert.is_truthy(message:find("libbroken.so.1", 1, true), message)
      message = fails("unsupported", kv.open("brokens://host"))
      assert.is_truthy(message:find("libbroken.so.1", 1, true), message)
    end)
  end)

  it("that is none is unsupported", function()
    for _, value in ipairs{"text", 12, {}, true} do
      with_driver("broken", function() return value end, function() fails("unsupported", kv.open("broken://host")) end)
    end
  end)

  it("is loaded once, by any of its schemes", function()
    assert.is_true(drivers.need("local:"))
    assert.is_true(core.known("local"))
    assert.is_true(drivers.need("local:/somewhere"))
    assert.is_true(drivers.need("no scheme at all")) -- the core says what is wrong with it
    fails("invalid", kv.open("no scheme at all"))
  end)
end)

describe("kv.open", function()
  it("takes $KV_URL, else a private store", function()
    local folder = util.folder()
    native.setenv("KV_URL", "local:" .. folder .. "/from-environment")
    local store = assert(kv.open())
    native.setenv("KV_URL")
    assert(store:put("key", "v"))
    assert.is_truthy(store:info().endpoint:find("from-environment", 1, true))
    store:close()
    store = assert(kv.open())
    assert.is_nil((store:get("key")))
    store:close()
  end)

  it("hands every kind of option on", function()
    local store = assert(kv.open("local:", {prefix = "a/b", timeout = 2.5, connect_timeout = 1, session_ttl = 3,
      consistency = "fast", portable = true, sync = "none", map_size = 2 ^ 26, leading_slash = false,
      tls = {verify = false, server_name = "name"}, username = "someone", password = "secret"}))
    assert.equal(2.5, core.timeout(store._store))
    assert(store:put("dir/key", "v"))
    local pair, _, code = store:put("dir", "v")
    assert.is_nil(pair)
    assert.equal("is_dir", code)
    store:close()
  end)

  it("says what a URL lacks", function()
    for _, url in ipairs{"localhost:2379", "localhost:2379/app", "a.b:1,c.d:2"} do
      local message = fails("invalid", kv.open(url))
      assert.is_truthy(message:find("begin with a scheme, as in etcd://" .. url, 1, true), message)
    end
    local message = fails("unsupported", kv.open("zookeeper://localhost"))
    assert.is_truthy(message:find("local:", 1, true), message) -- schemes, not drivers' names
  end)

  it("says that there are no descriptors left, and works when there are", function()
    local folder = util.folder()
    util.write(folder .. "/program.lua", [[
      local kv, files = require("kv"), {}
      repeat
        local file = io.open("/dev/null")
        files[#files + 1] = file
      until not file
      local store, message, code = kv.open(arg[1])
      print(store, message, code)
      print((pcall(kv.run, function() return kv.sleep(0.001) end)))
      for _, file in ipairs(files) do file:close() end
      store = assert(kv.open(arg[1]))
      print(kv.run(function() return assert(store:put("key", "v")).value end))
      store:close()
    ]])
    local process = assert(native.spawn{"sh", "-c", 'ulimit -n 40 && exec "$0" "$@"', util.interpreter(),
      folder .. "/program.lua", "local:" .. folder .. "/store", stdout = folder .. "/out", stderr = folder .. "/out"})
    local how, status = process:wait(30)
    local text = util.read(folder .. "/out")
    assert.same({"exit", 0}, {how, status}, text)
    local opened, ran, value = text:match("^(.-)\n(.-)\n(.-)\n$")
    assert.is_truthy(opened:find("^nil\t.*Too many open files\tfailed$"), text)
    assert.same({"false", "v"}, {ran, value}, text)
  end)

  it("answers invalid for what can never be", function()
    for _, opts in ipairs{{timeout = -1}, {timeout = 0}, {timeout = 0 / 0}, {consistency = "weak"}, {sync = "half"},
      {prefix = "a/../b"}, {prefix = ".kv"}, {map_size = 0}, {map_size = 1.5}, {codec = "yaml"}} do
      fails("invalid", kv.open("local:", opts))
    end
  end)

  it("opens nothing until it is used", function()
    local before = util.count_proc("fd")
    local stores = {}
    for i = 1, 20 do stores[i] = assert(kv.open("local:" .. util.folder() .. "/store")) end
    assert.is_true(util.count_proc("fd") <= before + 1)
    for _, store in ipairs(stores) do store:close() end
  end)

  it("shows no secret in what it prints", function()
    local store = assert(kv.open("etcd://someone:s3cr3t@127.0.0.1:1/app", {token = "t0k3n", password = "0ther"}))
    for _, secret in ipairs{"s3cr3t", "t0k3n", "0ther"} do
      assert.is_nil(tostring(store):find(secret, 1, true))
    end
    store:close()
  end)
end)
