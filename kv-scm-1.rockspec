rockspec_format = "3.0"
package = "kv"
version = "scm-1"
-- The sources lie beside this file: `luarocks make` in a clone.
source = {url = "file://."}
description = {
  summary = "One interface to etcd, Consul, ZooKeeper and an embedded store on LMDB",
  detailed = [[
Read, write, compare-and-set, watch and lock, the same on every backend. Watches heal by themselves, locks are fair and
carry fencing tokens, every operation has a deadline. The work is done in C, in one thread of its own.]],
  license = "MIT",
  labels = {"etcd", "consul", "zookeeper", "lmdb", "key-value", "lock", "watch"},
}
supported_platforms = {"linux"}
-- lua-cjson is used when it is there (codec = "json", and --json of the command line).
dependencies = {"lua >= 5.1, < 5.5"}
-- Named by library only: headers may lie where LuaRocks does not look; make finds them by pkg-config. Consul wants
-- libcurl and jansson, ZooKeeper its C client: those backends are left out where they are missing, with a note.
external_dependencies = {
  LMDB = {library = "lmdb"},
  NGHTTP2 = {library = "nghttp2"},
  OPENSSL = {library = "ssl"},
}
build = {
  type = "make",
  variables = {
    BUILD = "build/rock",
    LUA = "lua$(LUA_INCDIR)", -- a folder's name: the binding of one Lua is not another's
    LUA_INTERPRETER = "$(LUA)",
    LUA_INCLUDE = "-I$(LUA_INCDIR)",
    CC = "$(CC)",
    CFLAGS = "$(CFLAGS)",
  },
  install_target = "install-module",
  install_variables = {
    LIB = "$(LIBDIR)",
    SHARE = "$(LUADIR)",
  },
  install = {bin = {kv = "lua/kv/cli.lua"}},
}
