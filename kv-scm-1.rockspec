rockspec_format = "3.0"
package = "kv"
version = "scm-1"
-- The sources lie beside this file: `luarocks make` in a clone.
source = {url = "file://."}
description = {
  summary = "One interface to distributed key-value stores: etcd, and an embedded one on LMDB",
  detailed = [[
Read, write, compare-and-set, watch and lock, the same on every backend. Watches heal by themselves, locks are fair and
carry fencing tokens, every operation has a deadline. The work is done in C, in one thread of its own.]],
  license = "MIT",
  labels = {"etcd", "lmdb", "key-value", "lock", "watch"},
}
supported_platforms = {"linux"}
-- lua-cjson is used when it is there (codec = "json", and --json of the command line).
dependencies = {"lua >= 5.1, < 5.5"}
-- Named by library only: headers may lie where LuaRocks does not look; make finds them by pkg-config.
external_dependencies = {
  LMDB = {library = "lmdb"},
  NGHTTP2 = {library = "nghttp2"},
  OPENSSL = {library = "ssl"},
}
build = {
  type = "make",
  variables = {
    BUILD = "build/rock$(LUA_INCDIR)", -- objects of one Lua are not another's
    LUA = "lua",
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
