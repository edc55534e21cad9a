/*
 * core.c - luaopen_kv_core(): the module table, the queue of this Lua state, codes, clock and drivers.
 */
#include "binding.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STATE_NAME "kv.state"

static const char *const type_names[KVL_UPVALUES + 1] = {
    [KVL_STORE] = "kv.core.store", [KVL_PAGE] = "kv.core.page",   [KVL_WATCH] = "kv.core.watch",
    [KVL_LOCK] = "kv.core.lock",   [KVL_LEASE] = "kv.core.lease", [KVL_TXN] = "kv.core.txn",
};

/* ------------------------------------------------------------------ helpers for all */

void *kvl_check(lua_State *L, int argument, int type) {
  void *box = lua_touserdata(L, argument);
  if (box && lua_getmetatable(L, argument)) {
    int same = lua_rawequal(L, -1, lua_upvalueindex(type));
    lua_pop(L, 1);
    if (same) return box;
  }
  luaL_error(L, "kv: argument %d is no %s handle (methods are called with a colon)", argument, type_names[type] + 8);
  return NULL;
}

void *kvl_new_box(lua_State *L, size_t size, int type) {
  void *box = lua_newuserdata(L, size);
  memset(box, 0, size);
  lua_pushvalue(L, lua_upvalueindex(type));
  lua_setmetatable(L, -2);
  return box;
}

int kvl_fail_text(lua_State *L, kv_code code, const char *message) {
  lua_pushnil(L);
  lua_pushstring(L, message);
  lua_pushstring(L, kv_code_text(code));
  return 3;
}

int kvl_fail(lua_State *L, const kv_error *error) {
  return kvl_fail_text(L, error->code, error->message);
}

int kvl_asked(lua_State *L, uint64_t tag, uint64_t id) {
  kvl_push_integer(L, tag);
  kvl_push_integer(L, id);
  return 2;
}

/* ------------------------------------------------------------------ the queue */

kv_queue *kvl_queue(struct kvl_state *state, kv_error *error) {
  if (!state->queue) {
    state->queue = kv_queue_new(error);
    state->process = (long)getpid();
  }
  return state->queue;
}

void kvl_phase_error(kv_error *error) {
  error->code = KV_PHASE;
  snprintf(error->message, sizeof error->message,
           "this phase of nginx cannot wait; hand it to a timer (ngx.timer.at or kv.spawn)");
}

kv_queue *kvl_queue_to_wait(struct kvl_state *state, kv_error *error) {
  if (state->refusing) {
    kvl_phase_error(error);
    return NULL;
  }
  return kvl_queue(state, error);
}

/* After fork() the queue is the parent's. True when there was one and it was given up. */
static bool renew(struct kvl_state *state) {
  if (!state->queue || state->process == (long)getpid()) return false;
  kv_queue_free(state->queue); /* touches nothing of the parent's */
  state->queue = NULL;
  return true;
}

/* renew() -> true when this process inherited a queue by fork(): nothing that was waited for will come. */
static int core_renew(lua_State *L) {
  lua_pushboolean(L, renew(kvl_state(L)));
  return 1;
}

/* fd() -> descriptor, or nil, message, code */
static int core_fd(lua_State *L) {
  kv_error error;
  kv_queue *queue = kvl_queue(kvl_state(L), &error);
  if (!queue) return kvl_fail(L, &error);
  lua_pushinteger(L, kv_queue_fd(queue));
  return 1;
}

/* poke(): make the descriptor readable until next() finds nothing */
static int core_poke(lua_State *L) {
  kv_error error;
  kv_queue *queue = kvl_queue(kvl_state(L), &error);
  if (!queue) return kvl_fail(L, &error);
  kv_queue_poke(queue);
  return 0;
}

/* refuse(what) -> what it was: 0 nothing, 1 whatever must be waited for, 2 watches too */
static int core_refuse(lua_State *L) {
  struct kvl_state *state = kvl_state(L);
  lua_pushinteger(L, state->refusing);
  state->refusing = (int)lua_tointeger(L, 1);
  return 1;
}

/* next() -> tag, results...; nothing when no reply is there */
static int core_next(lua_State *L) {
  struct kvl_state *state = kvl_state(L);
  kvl_drop_current(state);
  if (!state->queue) return 0;
  state->current = kv_queue_next(state->queue);
  if (!state->current) return 0;
  kvl_push_integer(L, kv_reply_tag(state->current));
  return 1 + kvl_push_reply(L, state);
}

/* wait(seconds) -> 1 there is a reply, 0 time is up, -1 a signal came, -2 the queue belongs to the parent process */
static int core_wait(lua_State *L) {
  struct kvl_state *state = kvl_state(L);
  kv_error error;
  kv_queue *queue = kvl_queue(state, &error);
  if (!queue) return luaL_error(L, "kv: %s", error.message);
  int result = kv_queue_wait(queue, lua_tonumber(L, 1));
  if (result == 0 && state->process != (long)getpid()) result = -2;
  lua_pushinteger(L, result);
  return 1;
}

/* cancel(id) */
static int core_cancel(lua_State *L) {
  struct kvl_state *state = kvl_state(L);
  if (state->queue) kv_cancel(state->queue, kvl_to_integer(L, 1));
  return 0;
}

static bool is_pending(const kv_queue *queue) {
  return queue && kv_queue_pending(queue);
}

/* pending() -> is a reply there? No lock, no system call. */
static int core_pending(lua_State *L) {
  lua_pushboolean(L, is_pending(kvl_state(L)->queue));
  return 1;
}

/* pending_flag() -> address of a byte that is not 0 when something came, as light userdata, for LuaJIT to read */
static int core_pending_flag(lua_State *L) {
  kv_error error;
  kv_queue *queue = kvl_queue(kvl_state(L), &error);
  if (!queue) return kvl_fail(L, &error);
  lua_pushlightuserdata(L, (void *)(uintptr_t)kv_queue_flag(queue));
  return 1;
}

/* ------------------------------------------------------------------ drivers */

/* register(address) -> true */
static int core_register(lua_State *L) {
  kv_error error;
  const struct kv_driver *driver = lua_touserdata(L, 1);
  if (!driver || !lua_islightuserdata(L, 1))
    return luaL_error(L, "kv: the driver module did not return a driver's address");
  if (kv_register(driver, &error) != KV_OK) return kvl_fail(L, &error);
  lua_pushboolean(L, 1);
  return 1;
}

/* known(scheme) -> boolean */
static int core_known(lua_State *L) {
  luaL_checkstring(L, 1);
  lua_pushboolean(L, kv_scheme_known(kvl_slice(L, 1)));
  return 1;
}

/* drivers() -> array of names */
static int core_drivers(lua_State *L) {
  const char *name;
  lua_newtable(L);
  for (int i = 0; (name = kv_driver_name((size_t)i)); i++) {
    lua_pushstring(L, name);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

/* ------------------------------------------------------------------ the rest */

/* clock() -> seconds that only grow, suspend included where the system can */
static int core_clock(lua_State *L) {
  struct timespec now;
#ifdef CLOCK_BOOTTIME
  clock_gettime(CLOCK_BOOTTIME, &now);
#else
  clock_gettime(CLOCK_MONOTONIC, &now);
#endif
  lua_pushnumber(L, (lua_Number)now.tv_sec + (lua_Number)now.tv_nsec / 1e9);
  return 1;
}

/* canonical(key, root_allowed) -> key, or nil, message, code */
static int core_canonical(lua_State *L) {
  char out[KV_KEY_MAX];
  size_t size = 0;
  kv_error error;
  luaL_checkstring(L, 1);
  if (kv_key_canonical(kvl_slice(L, 1), lua_toboolean(L, 2), out, &size, &error) != KV_OK) return kvl_fail(L, &error);
  lua_pushlstring(L, out, size);
  return 1;
}

/* capabilities() -> array of all names */
static int core_capabilities(lua_State *L) {
  const char *name;
  lua_newtable(L);
  for (int i = 0; (name = kv_capability_name((size_t)i)); i++) {
    lua_pushstring(L, name);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

static const luaL_Reg core_functions[] = {
    {"renew", core_renew},       {"fd", core_fd},
    {"poke", core_poke},         {"refuse", core_refuse},
    {"next", core_next},         {"wait", core_wait},
    {"cancel", core_cancel},     {"pending", core_pending},
    {"register", core_register}, {"pending_flag", core_pending_flag},
    {"known", core_known},       {"drivers", core_drivers},
    {"clock", core_clock},       {"canonical", core_canonical},
    {"capabilities", core_capabilities},
    {NULL, NULL},
};

/* ------------------------------------------------------------------ opening the module */

static int state_gc(lua_State *L) {
  struct kvl_state *state = lua_touserdata(L, 1);
  kvl_drop_current(state);
  kvl_doorbell_free(state);
  kv_queue_free(state->queue);
  state->queue = NULL;
  return 0;
}

/* Not in the registry: another copy of this module in the state would find it there, and put its own __gc into it. */
static void push_metatable(lua_State *L, const char *name, lua_CFunction gc) {
  lua_createtable(L, 0, 3);
  lua_pushcfunction(L, gc);
  lua_setfield(L, -2, "__gc");
  lua_pushstring(L, name);
  lua_setfield(L, -2, "__metatable"); /* nobody else calls __gc */
  lua_pushstring(L, name);
  lua_setfield(L, -2, "__name"); /* for messages */
}

static void push_codes(lua_State *L) {
  lua_createtable(L, 0, KV_CODE_COUNT);
  for (int code = KV_OK + 1; code < KV_CODE_COUNT; code++) {
    lua_pushstring(L, kv_code_meaning((kv_code)code));
    lua_setfield(L, -2, kv_code_text((kv_code)code));
  }
}

static void push_flags(lua_State *L) {
  static const struct {
    const char *name;
    unsigned flag;
  } flags[] = {{"FAST", KV_FAST},       {"STRONG", KV_STRONG},         {"KEYS_ONLY", KV_KEYS_ONLY},
               {"SHALLOW", KV_SHALLOW}, {"KEEP_ALIVE", KV_KEEP_ALIVE}, {"DIR", KV_DIR}};
  lua_createtable(L, 0, (int)(sizeof flags / sizeof *flags));
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
    kvl_push_integer(L, flags[i].flag);
    lua_setfield(L, -2, flags[i].name);
  }
}

static void push_upvalues(lua_State *L) {
  struct kvl_state *state = lua_newuserdata(L, sizeof *state);
  memset(state, 0, sizeof *state);
  push_metatable(L, STATE_NAME, state_gc);
  lua_setmetatable(L, -2);
  push_metatable(L, type_names[KVL_STORE], kvl_store_gc);
  push_metatable(L, type_names[KVL_PAGE], kvl_page_gc);
  push_metatable(L, type_names[KVL_WATCH], kvl_watch_gc);
  push_metatable(L, type_names[KVL_LOCK], kvl_lock_gc);
  push_metatable(L, type_names[KVL_LEASE], kvl_lease_gc);
  push_metatable(L, type_names[KVL_TXN], kvl_txn_gc);
}

KVL_EXPORT int luaopen_kv_core(lua_State *L);

KVL_EXPORT int luaopen_kv_core(lua_State *L) {
  static const luaL_Reg *const parts[] = {core_functions,      kvl_store_functions, kvl_request_functions,
                                          kvl_reply_functions, kvl_watch_functions, kvl_lock_functions,
                                          kvl_lease_functions, kvl_txn_functions, kvl_doorbell_functions};
  luaL_checkstack(L, 3 * KVL_UPVALUES, "kv");
  lua_newtable(L);
  int module = lua_gettop(L);
  push_upvalues(L);
  for (size_t part = 0; part < sizeof parts / sizeof *parts; part++) {
    lua_pushvalue(L, module);
    for (int i = 1; i <= KVL_UPVALUES; i++) lua_pushvalue(L, module + i);
    kvl_setfuncs(L, parts[part], KVL_UPVALUES);
    lua_pop(L, 1);
  }
  lua_settop(L, module);
  push_codes(L);
  lua_setfield(L, -2, "codes");
  push_flags(L);
  lua_setfield(L, -2, "flags");
  lua_pushliteral(L, KV_VERSION);
  lua_setfield(L, -2, "version");
  return 1;
}
