/*
 * host.c - a Lua 5.4 interpreter for instrumented runs. A sanitizer's runtime must be in the program before anything
 * else is loaded, which Debian's lua5.4 cannot offer; this program is linked with the static library, exports the Lua
 * API to the modules that it loads, and otherwise does what `lua FILE ARGUMENT...` does. It closes the state at the
 * end, so that a leak checker sees what is left.
 */
#include <stdio.h>
#include <stdlib.h>

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

static int with_traceback(lua_State *L) {
  const char *message = lua_tostring(L, 1);
  if (!message) message = luaL_tolstring(L, 1, NULL);
  luaL_traceback(L, L, message, 1);
  return 1;
}

/* The global `arg`, as Lua's own interpreter makes it. */
static void set_arguments(lua_State *L, int count, char **words) {
  lua_createtable(L, count, 1);
  for (int i = 0; i < count; i++) {
    lua_pushstring(L, words[i]);
    lua_rawseti(L, -2, i - 1);
  }
  lua_setglobal(L, "arg");
}

int main(int count, char **words) {
  if (count < 2) {
    fprintf(stderr, "usage: %s FILE [ARGUMENT...]\n", words[0]);
    return 2;
  }
  lua_State *L = luaL_newstate();
  if (!L) return 1;
  luaL_openlibs(L);
  set_arguments(L, count, words);
  lua_pushcfunction(L, with_traceback);
  int status = luaL_loadfile(L, words[1]);
  if (status == LUA_OK) {
    for (int i = 2; i < count; i++) lua_pushstring(L, words[i]);
    status = lua_pcall(L, count - 2, 0, 1);
  }
  if (status != LUA_OK) fprintf(stderr, "%s: %s\n", words[0], lua_tostring(L, -1));
  lua_close(L);
  return status == LUA_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
