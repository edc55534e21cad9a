--- LuaRocks: from a clone and from packed rocks into fresh trees, without a network, for each Lua.
local native = require("spec.native")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local PATIENCE = 300
local CWD = os.getenv("PWD")

-- What is told to luarocks about each Lua. Optimising the C code would only take time here.
local LUAS = {
  {version = "5.4", program = "lua5.4"},
  {version = "5.3", program = "lua5.3"},
  {version = "5.1", program = "lua5.1"},
  {version = "5.1", program = "luajit", more = {"LUA=/usr/bin/luajit", "LUA_INCDIR=/usr/include/luajit-2.1"}},
}
-- No proxy answers there: who asks the network fails. HOME is ours, so that nobody's settings are used.
local home = util.folder()
local OFFLINE = {"http_proxy=http://127.0.0.1:9", "https_proxy=http://127.0.0.1:9", "HOME=" .. home, "LUA_PATH=;;",
  "LUA_CPATH=;;", "MAKEFLAGS="}

-- Run a command in a folder to its end: exit status, output.
local function run(folder, environment, ...)
  local out = util.folder() .. "/out"
  local process = assert(native.spawn{"sh", "-c", 'cd "$0" && exec "$@"', folder, stdout = out, stderr = out,
    env = environment, ...})
  local how, status = process:wait(PATIENCE)
  if not how then process:kill("KILL") end
  local text = util.read(out) or ""
  assert.equal("exit", how, text)
  return status, text
end

local function luarocks(folder, lua, tree, ...)
  local words = {"luarocks", "--lua-version", lua.version, "--tree", tree}
  for i = 1, select("#", ...) do words[#words + 1] = (select(i, ...)) end
  for _, word in ipairs(lua.more or {}) do words[#words + 1] = word end
  return run(folder, OFFLINE, (unpack or table.unpack)(words))
end

local function succeeds(status, text)
  assert.equal(0, status, text)
  return text
end

-- What a tree that holds kv must be able to do, with nothing else in the paths.
local function try_tree(tree, lua)
  local script = util.folder() .. "/try.lua"
  util.write(script, [[
    local kv = require("kv")
    local store = assert(kv.open("local:"))
    assert(store:put("a", "b"))
    assert(assert(store:get("a")).value == "b")
    store:close()
    local backends = kv.backends()
    table.sort(backends)
    print((jit and "LuaJIT" or _VERSION) .. ": " .. table.concat(backends, " "))
  ]])
  local share, lib = tree .. "/share/lua/" .. lua.version, tree .. "/lib/lua/" .. lua.version
  local paths = {"LUA_PATH=" .. share .. "/?.lua;" .. share .. "/?/init.lua", "LUA_CPATH=" .. lib .. "/?.so"}
  local text = succeeds(run("/", paths, lua.program, script))
  local name = lua.program == "luajit" and "LuaJIT" or "Lua " .. lua.version
  assert.equal(name .. ": consul etcd local zookeeper\n", text:gsub(" etcd2", ""))
  -- The wrapper that LuaRocks made for the command finds everything by itself.
  assert.truthy(succeeds(run("/", {"LUA_PATH=;;", "LUA_CPATH=;;"}, tree .. "/bin/kv", "version")):find("^kv %d"))
end

-- Sources as they lie in a clone.
local function clone()
  local folder = util.folder()
  succeeds(run(CWD, nil, "sh", "-c", 'cp -r Makefile LICENSE README.md csrc lua ./*.rockspec "$0"', folder))
  return folder
end

describe("LuaRocks", function()
  if not servers.run{"luarocks", "--version"} then
    pending("there is no luarocks")
    return
  end
  local folder = clone()

  for _, lua in ipairs(LUAS) do
    it("makes, packs and installs it for " .. lua.program, function()
      local made, fresh = util.folder(), util.folder()
      succeeds(luarocks(folder, lua, made, "make", "CFLAGS=-O0"))
      try_tree(made, lua)
      local packed = succeeds(luarocks(folder, lua, made, "pack", "kv")):match("Packed: ([^\n]+%.rock)")
      succeeds(luarocks("/", lua, fresh, "install", packed))
      os.remove(packed)
      try_tree(fresh, lua)
    end)
  end

  it("installs the source rock that make rock packs", function()
    local tree, lua = util.folder(), LUAS[1]
    succeeds(run(folder, OFFLINE, "make", "-s", "rock"))
    succeeds(luarocks("/", lua, tree, "install", folder .. "/build/rocks/kv-scm-1.src.rock", "CFLAGS=-O0"))
    try_tree(tree, lua)
  end)

  it("says which library is missing, and how it is told where that is", function()
    local status, text = luarocks(folder, LUAS[1], util.folder(), "make", "LMDB_DIR=/nowhere")
    assert.is_true(status ~= 0)
    assert.truthy(text:find("Could not find library file for LMDB", 1, true), text)
    assert.truthy(text:find("LMDB_DIR", 1, true), text)
  end)
end)

describe("make", function()
  it("names what is missing, and how it is called in Debian", function()
    local folder = clone()
    -- A pkg-config that knows nothing but lmdb.
    local fake = folder .. "/fake-pkg-config"
    util.write(fake, '#!/bin/sh\ncase "$*" in *lmdb*|--version) exec pkg-config "$@" ;; esac\nexit 1\n')
    os.execute("chmod +x " .. fake)
    local status, text = run(folder, {"MAKEFLAGS="}, "make", "-s", "notes", "PKG_CONFIG=" .. fake,
      "LUA_INCLUDE=-I/usr/include/lua5.4")
    assert.equal(0, status, text)
    assert.truthy(text:find("backend etcd is left out: libnghttp2 openssl", 1, true), text)
    assert.truthy(text:find("libnghttp2-dev libssl-dev", 1, true), text)
    assert.is_nil(text:find("backend local", 1, true), text)
    status, text = run(folder, {"MAKEFLAGS="}, "make", "-s", "notes", "PKG_CONFIG=false",
      "LUA_INCLUDE=-I/usr/include/lua5.4")
    assert.is_true(status ~= 0)
    assert.truthy(text:find("no backend can be built", 1, true), text)
    assert.truthy(text:find("liblmdb-dev", 1, true), text)
    status, text = run(folder, {"MAKEFLAGS="}, "make", "-s", "notes", "LUA=lua5.9")
    assert.is_true(status ~= 0)
    assert.truthy(text:find("lua.h of lua5.9 was not found", 1, true), text)
  end)
end)
