/*
 * lease.c - lease handles.
 */
#include "binding.h"

kv_lease *kvl_lease(lua_State *L, int argument) {
  if (lua_isnoneornil(L, argument)) return NULL;
  struct kvl_lease_box *box = kvl_check(L, argument, KVL_LEASE);
  if (!box->lease) luaL_error(L, "kv: a lease that was never granted");
  return box->lease;
}

int kvl_lease_gc(lua_State *L) {
  struct kvl_lease_box *box = lua_touserdata(L, 1);
  kv_lease_free(box->lease);
  box->lease = NULL;
  kvl_store_release(box->store);
  box->store = NULL;
  return 0;
}

/* lease_open(store, ttl, timeout) -> tag, id, lease */
static int lease_open(lua_State *L) {
  struct kvl_state *state = kvl_state(L);
  kv_store *store = kvl_store(L, 1);
  kv_error error;
  uint64_t id = 0;
  kv_queue *queue = kvl_queue_to_wait(state, &error);
  if (!queue) return kvl_fail(L, &error);
  struct kvl_lease_box *box = kvl_new_box(L, sizeof *box, KVL_LEASE);
  box->store = kvl_store_retain(L, 1);
  uint64_t tag = ++state->last_tag;
  kv_code code = kv_lease_open(store, queue, lua_tonumber(L, 2), lua_tonumber(L, 3), tag, &id, &box->lease, &error);
  if (code != KV_OK) return kvl_fail(L, &error);
  kvl_asked(L, tag, id);
  lua_pushvalue(L, -3);
  return 3;
}

static int lease_alive(lua_State *L) {
  kv_lease *lease = kvl_lease(L, 1);
  lua_pushboolean(L, lease && kv_lease_alive(lease));
  return 1;
}

static int lease_ttl(lua_State *L) {
  kv_lease *lease = kvl_lease(L, 1);
  lua_pushnumber(L, lease ? kv_lease_ttl(lease) : 0);
  return 1;
}

typedef kv_code asking(kv_lease *lease, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id, kv_error *error);

static int ask(lua_State *L, asking *function) {
  struct kvl_state *state = kvl_state(L);
  kv_error error;
  uint64_t id = 0;
  luaL_checkany(L, 1);
  kv_lease *lease = kvl_lease(L, 1);
  if (!lease) return luaL_error(L, "kv: no lease");
  kv_queue *queue = kvl_queue_to_wait(state, &error);
  if (!queue) return kvl_fail(L, &error);
  uint64_t tag = ++state->last_tag;
  if (function(lease, queue, lua_tonumber(L, 2), tag, &id, &error) != KV_OK) return kvl_fail(L, &error);
  return kvl_asked(L, tag, id);
}

/* Each: (lease, timeout) -> tag, id */
static int lease_wait_lost(lua_State *L) {
  return ask(L, kv_lease_wait_lost);
}

static int lease_close(lua_State *L) {
  return ask(L, kv_lease_close);
}

const luaL_Reg kvl_lease_functions[] = {
    {"lease_open", lease_open},           {"lease_alive", lease_alive}, {"lease_ttl", lease_ttl},
    {"lease_wait_lost", lease_wait_lost}, {"lease_close", lease_close}, {NULL, NULL},
};
