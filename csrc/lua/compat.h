/*
 * compat.h - one dialect of the C API for Lua 5.1, 5.2, 5.3, 5.4 and LuaJIT: what the binding uses and not all of them
 * have.
 */
#ifndef KVL_COMPAT_H
#define KVL_COMPAT_H

#include <lauxlib.h>
#include <lua.h>
#include <stdint.h>

#if LUA_VERSION_NUM < 502

#ifndef lua_rawlen
#define lua_rawlen lua_objlen
#endif

/* As luaL_setfuncs() of 5.2: the upvalues on top of the stack are shared by all functions, and popped. */
static inline void kvl_setfuncs(lua_State *L, const luaL_Reg *functions, int upvalues) {
  luaL_checkstack(L, upvalues + 2, "too many upvalues");
  for (; functions->name; functions++) {
    lua_pushstring(L, functions->name);
    for (int i = 0; i < upvalues; i++) lua_pushvalue(L, -(upvalues + 1));
    lua_pushcclosure(L, functions->func, upvalues);
    lua_settable(L, -(upvalues + 3));
  }
  lua_pop(L, upvalues);
}

#else
#define kvl_setfuncs luaL_setfuncs
#endif

/* Revisions and counters stay below 2^53: exact in a double where there are no integers. */
static inline void kvl_push_integer(lua_State *L, uint64_t number) {
#if LUA_VERSION_NUM >= 503
  lua_pushinteger(L, (lua_Integer)number);
#else
  lua_pushnumber(L, (lua_Number)number);
#endif
}

/* A number that Lua code has checked to be a whole one from 0 to 2^53. */
static inline uint64_t kvl_to_integer(lua_State *L, int index) {
  lua_Number number = lua_tonumber(L, index);
  return number >= 0 && number <= 9007199254740992.0 ? (uint64_t)number : 0;
}

#endif
