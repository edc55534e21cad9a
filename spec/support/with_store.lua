--- Runs a command with a fresh store: lua spec/support/with_store.lua local|etcd|etcd2|consul|zookeeper COMMAND...
-- KV_TEST_URL tells the command where it is, KV_TEST_BACKEND what. Exit status is the command's.
local native = require("spec.native")
local util = require("spec.support.util")

local kind = arg[1]
local command = {}
for i = 2, #arg do command[i - 1] = arg[i] end

local url, server
if kind == "etcd" or kind == "etcd2" or kind == "consul" or kind == "zookeeper" then
  server = require("spec.support.servers")[kind]{}
  url = server:url()
elseif kind == "local" then
  url = "local:" .. util.folder() .. "/store"
else
  io.stderr:write("usage: with_store.lua local|etcd|etcd2|consul|zookeeper COMMAND...\n")
  os.exit(2)
end

native.setenv("KV_TEST_URL", url)
native.setenv("KV_TEST_BACKEND", kind)
local process = assert(native.spawn(command))
local how, code = process:wait()
if server then server:stop() end
util.remove_folders()
if how == "signal" then io.stderr:write("ended by signal ", code, "\n") end
os.exit(how == "exit" and code or 1)
