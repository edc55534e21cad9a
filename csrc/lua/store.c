/*
 * store.c - store handles: opening, closing, asking about them.
 */
#include "binding.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ the handle */

kv_store *kvl_store(lua_State *L, int argument) {
  struct kvl_store_box *box = kvl_check(L, argument, KVL_STORE);
  if (!box->shared) luaL_error(L, "kv: a store that was never opened");
  return box->shared->store;
}

struct kvl_store *kvl_store_retain(lua_State *L, int argument) {
  kvl_store(L, argument);
  struct kvl_store_box *box = lua_touserdata(L, argument);
  box->shared->references++;
  return box->shared;
}

void kvl_store_release(struct kvl_store *shared) {
  if (!shared || --shared->references) return;
  kv_store_free(shared->store);
  free(shared);
}

/* The store is closed even when locks or leases still name it. */
int kvl_store_gc(lua_State *L) {
  struct kvl_store_box *box = lua_touserdata(L, 1);
  struct kvl_store *shared = box->shared;
  box->shared = NULL;
  if (shared && shared->store) kv_close(shared->store);
  kvl_store_release(shared);
  return 0;
}

/* An empty handle on the stack, ready for its kv_store. */
static struct kvl_store *new_store(lua_State *L) {
  struct kvl_store_box *box = kvl_new_box(L, sizeof *box, KVL_STORE);
  box->shared = calloc(1, sizeof *box->shared);
  if (!box->shared) luaL_error(L, "kv: out of memory");
  box->shared->references = 1;
  return box->shared;
}

/* ------------------------------------------------------------------ opening */

struct opening {
  const char *url;
  kv_options *options;
  kv_store *store;
  kv_error error;
};

/* The option whose name and value are at the top. */
static bool set_option(lua_State *L, struct opening *opening) {
  if (lua_type(L, -2) != LUA_TSTRING || lua_type(L, -1) != LUA_TSTRING) {
    opening->error.code = KV_INVALID;
    strcpy(opening->error.message, "options must be names and texts");
    return false;
  }
  return kv_options_set(opening->options, lua_tostring(L, -2), kvl_slice(L, -1), &opening->error) == KV_OK;
}

/* Set each option of the table at the top. */
static bool set_options(lua_State *L, struct opening *opening) {
  int table = lua_gettop(L);
  bool good = true;
  for (lua_pushnil(L); good && lua_next(L, table); lua_pop(L, 1)) good = set_option(L, opening);
  return good;
}

/* open(url, options) -> store, or nil, message, code. Options are name = text. */
static int store_open(lua_State *L) {
  struct opening opening = {.url = luaL_checkstring(L, 1)};
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  struct kvl_store *shared = new_store(L);
  opening.options = kv_options_new();
  if (!opening.options) return kvl_fail_text(L, KV_FAILED, "out of memory");
  /* Nothing below raises before the options are freed. */
  lua_pushvalue(L, 2);
  if (set_options(L, &opening)) shared->store = kv_open(opening.url, opening.options, &opening.error);
  kv_options_free(opening.options);
  if (!shared->store) return kvl_fail(L, &opening.error);
  lua_pushvalue(L, 3);
  return 1;
}

/* sub(store, prefix) -> store */
static int store_sub(lua_State *L) {
  kv_error error;
  kv_store *parent = kvl_store(L, 1);
  luaL_checkstring(L, 2);
  struct kvl_store *shared = new_store(L);
  shared->store = kv_sub(parent, kvl_slice(L, 2), &error);
  return shared->store ? 1 : kvl_fail(L, &error);
}

/* close(store) */
static int store_close(lua_State *L) {
  kv_close(kvl_store(L, 1));
  return 0;
}

/* close_wait(store, seconds) -> true when all was given back */
static int store_close_wait(lua_State *L) {
  lua_pushboolean(L, kv_close_wait(kvl_store(L, 1), lua_tonumber(L, 2)));
  return 1;
}

/* ------------------------------------------------------------------ asking about it */

static int store_closed(lua_State *L) {
  lua_pushboolean(L, kv_store_closed(kvl_store(L, 1)));
  return 1;
}

static int store_label(lua_State *L) {
  lua_pushstring(L, kv_store_label(kvl_store(L, 1)));
  return 1;
}

static int store_timeout(lua_State *L) {
  lua_pushnumber(L, kv_store_timeout(kvl_store(L, 1)));
  return 1;
}

static int store_supports(lua_State *L) {
  lua_pushboolean(L, kv_store_supports(kvl_store(L, 1), luaL_checkstring(L, 2)));
  return 1;
}

/* info(store) -> {backend, connected, server_version, endpoint} */
static int store_info(lua_State *L) {
  kv_info info;
  kv_store_info(kvl_store(L, 1), &info);
  lua_createtable(L, 0, 5);
  lua_pushstring(L, info.backend);
  lua_setfield(L, -2, "backend");
  lua_pushboolean(L, info.connected);
  lua_setfield(L, -2, "connected");
  lua_pushstring(L, info.server_version);
  lua_setfield(L, -2, "server_version");
  lua_pushstring(L, info.endpoint);
  lua_setfield(L, -2, "endpoint");
  return 1;
}

/* stats(store) -> counters, with `failures` by code */
static int store_stats(lua_State *L) {
  kv_stats stats;
  kv_store_stats(kvl_store(L, 1), &stats);
  lua_newtable(L);
#define PUSH_COUNTER(name, meaning)    \
  kvl_push_integer(L, stats.name);     \
  lua_setfield(L, -2, #name);
  KV_COUNTERS(PUSH_COUNTER)
#undef PUSH_COUNTER
  lua_createtable(L, 0, KV_CODE_COUNT);
  for (int code = KV_OK + 1; code < KV_CODE_COUNT; code++) {
    kvl_push_integer(L, stats.failures[code]);
    lua_setfield(L, -2, kv_code_text((kv_code)code));
  }
  lua_setfield(L, -2, "failures");
  return 1;
}

const luaL_Reg kvl_store_functions[] = {
    {"open", store_open},         {"sub", store_sub},         {"close", store_close},
    {"close_wait", store_close_wait}, {"closed", store_closed}, {"label", store_label},
    {"timeout", store_timeout},   {"supports", store_supports}, {"info", store_info},
    {"stats", store_stats},       {NULL, NULL},
};
