/*
 * request.c - reads and writes: build a kv_request, submit it, push what came at once or what it will be known by.
 *
 * `flags` are those of kv.h; Lua has their numbers in core.flags. A negative timeout means the store's own. get() is
 * the call that is made millions of times: it allocates nothing but the value's string.
 */
#include "binding.h"

#include <string.h>

/* Some backends answer reads at once: these are asked even where the host cannot wait. */
static bool may_be_here(const kv_request *request) {
  return request->kind == KV_GET || request->kind == KV_LIST;
}

/* Submit. 0: the answer hangs in state->current; otherwise the number of results to return. */
static int submit(lua_State *L, kv_store *store, const kv_request *request) {
  struct kvl_state *state = kvl_state(L);
  kv_error error;
  uint64_t id = 0;
  kvl_drop_current(state);
  kv_queue *queue = may_be_here(request) ? kvl_queue(state, &error) : kvl_queue_to_wait(state, &error);
  if (!queue) return kvl_fail(L, &error);
  uint64_t tag = ++state->last_tag;
  if (kv_submit(store, queue, request, tag, &id, &state->current, &error) != KV_OK) return kvl_fail(L, &error);
  if (state->current) return 0;
  if (!state->refusing) return kvl_asked(L, tag, id);
  kv_cancel(queue, id); /* a read: nothing was changed */
  kvl_phase_error(&error);
  return kvl_fail(L, &error);
}

/* As above, with an answer that is here already pushed as false, results... (or nil, message, code). */
static int submit_and_push(lua_State *L, kv_store *store, const kv_request *request) {
  int pushed = submit(L, store, request);
  if (pushed) return pushed;
  struct kvl_state *state = kvl_state(L);
  if (kv_reply_code(state->current) != KV_OK) return kvl_push_reply(L, state);
  lua_pushboolean(L, 0);
  return 1 + kvl_push_reply(L, state);
}

/* ping(store, timeout) */
static int request_ping(lua_State *L) {
  kv_request request = {.kind = KV_PING, .timeout = lua_tonumber(L, 2)};
  return submit_and_push(L, kvl_store(L, 1), &request);
}

/* get(store, key, flags, timeout) -> false, value, revision, created [, key where it differs from the argument] */
static int request_get(lua_State *L) {
  kv_store *store = kvl_store(L, 1);
  kv_request request = {.kind = KV_GET, .key = kvl_slice(L, 2), .flags = (unsigned)lua_tointeger(L, 3),
                        .timeout = lua_tonumber(L, 4)};
  int pushed = submit(L, store, &request);
  if (pushed) return pushed;
  struct kvl_state *state = kvl_state(L);
  kv_reply *reply = state->current;
  kv_pair pair;
  if (kv_reply_code(reply) != KV_OK) return kvl_push_reply(L, state);
  lua_pushboolean(L, 0);
  int count = 1;
  if (kv_reply_pair(reply, &pair)) {
    kvl_push_slice(L, pair.value);
    kvl_push_integer(L, pair.revision);
    kvl_push_integer(L, pair.created);
    count = 4;
    if (pair.key.size != request.key.size || memcmp(pair.key.data, request.key.data, pair.key.size) != 0) {
      kvl_push_slice(L, pair.key);
      count = 5;
    }
  }
  kvl_drop_current(state);
  return count;
}

static kv_condition condition(lua_State *L, int argument) {
  if (lua_isboolean(L, argument)) return KV_IF_ABSENT;
  return lua_isnil(L, argument) || lua_isnone(L, argument) ? KV_ALWAYS : KV_IF_REVISION;
}

/* put(store, key, value, flags, timeout, ttl, lease or nil, previous)
 * previous: nil for any, false for none, or a revision */
static int request_put(lua_State *L) {
  kv_store *store = kvl_store(L, 1);
  kv_request request = {.kind = KV_PUT,
                        .key = kvl_slice(L, 2),
                        .value = kvl_slice(L, 3),
                        .flags = (unsigned)lua_tointeger(L, 4),
                        .timeout = lua_tonumber(L, 5),
                        .ttl = lua_tonumber(L, 6),
                        .lease = kvl_lease(L, 7),
                        .condition = condition(L, 8),
                        .revision = kvl_to_integer(L, 8)};
  return submit_and_push(L, store, &request);
}

/* delete(store, key, timeout, previous) */
static int request_delete(lua_State *L) {
  kv_store *store = kvl_store(L, 1);
  kv_request request = {.kind = KV_DELETE,
                        .key = kvl_slice(L, 2),
                        .timeout = lua_tonumber(L, 3),
                        .condition = condition(L, 4),
                        .revision = kvl_to_integer(L, 4)};
  return submit_and_push(L, store, &request);
}

/* list(store, dir, flags, timeout, after, limit, revision) -> false, page, revision, more */
static int request_list(lua_State *L) {
  kv_store *store = kvl_store(L, 1);
  lua_Number limit = lua_tonumber(L, 6);
  kv_request request = {.kind = KV_LIST,
                        .key = kvl_slice(L, 2),
                        .flags = (unsigned)lua_tointeger(L, 3),
                        .timeout = lua_tonumber(L, 4),
                        .after = kvl_slice(L, 5),
                        .limit = limit > 4e9 ? 0 : (uint32_t)limit,
                        .revision = kvl_to_integer(L, 7)};
  return submit_and_push(L, store, &request);
}

/* delete_tree(store, dir, timeout) */
static int request_delete_tree(lua_State *L) {
  kv_store *store = kvl_store(L, 1);
  kv_request request = {.kind = KV_DELETE_TREE, .key = kvl_slice(L, 2), .timeout = lua_tonumber(L, 3)};
  return submit_and_push(L, store, &request);
}

/* commit(store, txn, timeout) */
static int request_commit(lua_State *L) {
  kv_store *store = kvl_store(L, 1);
  struct kvl_txn_box *box = kvl_check(L, 2, KVL_TXN);
  if (!box->txn) return luaL_error(L, "kv: a transaction that was never begun");
  kv_request request = {.kind = KV_TXN, .txn = box->txn, .timeout = lua_tonumber(L, 3)};
  return submit_and_push(L, store, &request);
}

const luaL_Reg kvl_request_functions[] = {
    {"ping", request_ping},   {"get", request_get},   {"put", request_put},
    {"delete", request_delete}, {"list", request_list}, {"delete_tree", request_delete_tree},
    {"commit", request_commit}, {NULL, NULL},
};
