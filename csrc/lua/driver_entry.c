/*
 * driver_entry.c - the way from `require "kv.driver.NAME"` to a driver's table.
 *
 * Compiled once for each driver with -DKV_DRIVER_NAME=NAME and linked with it: luaopen_kv_driver_NAME() returns the
 * address of kv_driver_NAME, which lua/kv/init.lua hands to core.register(). A driver by somebody else may do the same
 * with this file.
 */
#include <lauxlib.h>
#include <lua.h>

#include "../drivers/driver.h"

#ifndef KV_DRIVER_NAME
#error "compile with -DKV_DRIVER_NAME=name"
#endif

#define JOIN_NOW(a, b) a##b
#define JOIN(a, b) JOIN_NOW(a, b)
#define DRIVER JOIN(kv_driver_, KV_DRIVER_NAME)
#define OPEN JOIN(luaopen_kv_driver_, KV_DRIVER_NAME)

extern const struct kv_driver DRIVER;

KV_API int OPEN(lua_State *L);

KV_API int OPEN(lua_State *L) {
  lua_pushlightuserdata(L, (void *)(uintptr_t)&DRIVER);
  return 1;
}
