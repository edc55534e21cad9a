/*
 * lock.c - lock handles. All of the machine is in the core; here are its questions and answers.
 */
#include "binding.h"

static struct kvl_lock_box *check(lua_State *L, int argument) {
  struct kvl_lock_box *box = kvl_check(L, argument, KVL_LOCK);
  if (!box->lock) luaL_error(L, "kv: the lock was closed");
  return box;
}

kv_lock *kvl_lock(lua_State *L, int argument) {
  return check(L, argument)->lock;
}

int kvl_lock_gc(lua_State *L) {
  struct kvl_lock_box *box = lua_touserdata(L, 1);
  kv_lock_free(box->lock);
  box->lock = NULL;
  kvl_store_release(box->store);
  box->store = NULL;
  return 0;
}

/* lock_new(store, name, ttl, value, interop or nil) -> lock */
static int lock_new(lua_State *L) {
  kv_store *store = kvl_store(L, 1);
  kv_error error;
  kv_lock_options options = {.name = kvl_slice(L, 2), .ttl = lua_tonumber(L, 3), .value = kvl_slice(L, 4),
                             .interop = lua_tostring(L, 5)};
  struct kvl_lock_box *box = kvl_new_box(L, sizeof *box, KVL_LOCK);
  box->store = kvl_store_retain(L, 1);
  box->lock = kv_lock_new(store, &options, &error);
  return box->lock ? 1 : kvl_fail(L, &error);
}

/* semaphore_new(store, name, limit, ttl, value) -> lock */
static int semaphore_new(lua_State *L) {
  kv_store *store = kvl_store(L, 1);
  kv_error error;
  kv_lock_options options = {.name = kvl_slice(L, 2), .ttl = lua_tonumber(L, 4), .value = kvl_slice(L, 5)};
  lua_Number limit = lua_tonumber(L, 3);
  bool fits = limit >= 1 && limit <= KV_SEMAPHORE_MAX;
  struct kvl_lock_box *box = kvl_new_box(L, sizeof *box, KVL_LOCK);
  box->store = kvl_store_retain(L, 1);
  box->lock = kv_semaphore_new(store, &options, fits ? (uint32_t)limit : 0, &error);
  return box->lock ? 1 : kvl_fail(L, &error);
}

/* election_new(store, name, ttl) -> lock */
static int election_new(lua_State *L) {
  kv_store *store = kvl_store(L, 1);
  kv_error error;
  kv_lock_options options = {.name = kvl_slice(L, 2), .ttl = lua_tonumber(L, 3)};
  struct kvl_lock_box *box = kvl_new_box(L, sizeof *box, KVL_LOCK);
  box->store = kvl_store_retain(L, 1);
  box->lock = kv_election_new(store, &options, &error);
  return box->lock ? 1 : kvl_fail(L, &error);
}

typedef kv_code asking(kv_lock *lock, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id, kv_error *error);

static int ask(lua_State *L, asking *function) {
  struct kvl_state *state = kvl_state(L);
  kv_lock *lock = kvl_lock(L, 1);
  kv_error error;
  uint64_t id = 0;
  kv_queue *queue = kvl_queue_to_wait(state, &error);
  if (!queue) return kvl_fail(L, &error);
  uint64_t tag = ++state->last_tag;
  if (function(lock, queue, lua_tonumber(L, 2), tag, &id, &error) != KV_OK) return kvl_fail(L, &error);
  return kvl_asked(L, tag, id);
}

/* Each: (lock, timeout) -> tag, id */
static int lock_acquire(lua_State *L) {
  return ask(L, kv_lock_acquire);
}

static int lock_release(lua_State *L) {
  return ask(L, kv_lock_release);
}

static int lock_wait_lost(lua_State *L) {
  return ask(L, kv_lock_wait_lost);
}

static int lock_holder(lua_State *L) {
  return ask(L, kv_lock_holder);
}

static int election_resign(lua_State *L) {
  return ask(L, kv_election_resign);
}

/* election_campaign(lock, timeout, value) -> tag, id */
static int election_campaign(lua_State *L) {
  struct kvl_state *state = kvl_state(L);
  kv_lock *lock = kvl_lock(L, 1);
  kv_error error;
  uint64_t id = 0;
  kv_queue *queue = kvl_queue_to_wait(state, &error);
  if (!queue) return kvl_fail(L, &error);
  uint64_t tag = ++state->last_tag;
  if (kv_election_campaign(lock, queue, kvl_slice(L, 3), lua_tonumber(L, 2), tag, &id, &error) != KV_OK)
    return kvl_fail(L, &error);
  return kvl_asked(L, tag, id);
}

/* election_observe(lock) -> watch, tag */
static int election_observe(lua_State *L) {
  struct kvl_state *state = kvl_state(L);
  kv_lock *lock = kvl_lock(L, 1);
  kv_error error;
  kv_queue *queue = state->refusing == KVL_REFUSE_ALL ? kvl_queue_to_wait(state, &error) : kvl_queue(state, &error);
  if (!queue) return kvl_fail(L, &error);
  struct kvl_watch_box *box = kvl_new_box(L, sizeof *box, KVL_WATCH);
  uint64_t tag = ++state->last_tag;
  if (kv_election_observe(lock, queue, tag, &box->watch, &error) != KV_OK) return kvl_fail(L, &error);
  kvl_push_integer(L, tag);
  return 2;
}

/* leader_read(record) -> token, value; nothing when it is none */
static int leader_read(lua_State *L) {
  uint64_t token;
  kv_slice value;
  if (!kv_leader_read(kvl_slice(L, 1), &token, &value)) return 0;
  kvl_push_integer(L, token);
  kvl_push_slice(L, value);
  return 2;
}

static int lock_held(lua_State *L) {
  lua_pushboolean(L, kv_lock_held(kvl_lock(L, 1)));
  return 1;
}

static int lock_state(lua_State *L) {
  static const char *const names[] = {[KV_LOCK_FREE] = "free",
                                      [KV_LOCK_WAITING] = "waiting",
                                      [KV_LOCK_HOLDING] = "held",
                                      [KV_LOCK_SUSPENDED] = "suspended",
                                      [KV_LOCK_LOST] = "lost"};
  lua_pushstring(L, names[kv_lock_get_state(kvl_lock(L, 1))]);
  return 1;
}

/* lock_token(lock) -> integer, or nil before the first hold */
static int lock_token(lua_State *L) {
  uint64_t token = kv_lock_token(kvl_lock(L, 1));
  if (token)
    kvl_push_integer(L, token);
  else
    lua_pushnil(L);
  return 1;
}

static int lock_ttl(lua_State *L) {
  lua_pushnumber(L, kv_lock_ttl(kvl_lock(L, 1)));
  return 1;
}

const luaL_Reg kvl_lock_functions[] = {
    {"lock_new", lock_new},           {"lock_acquire", lock_acquire}, {"lock_release", lock_release},
    {"lock_wait_lost", lock_wait_lost}, {"lock_holder", lock_holder}, {"lock_held", lock_held},
    {"lock_state", lock_state},       {"lock_token", lock_token},     {"lock_ttl", lock_ttl},
    {"semaphore_new", semaphore_new}, {"election_new", election_new},
    {"election_campaign", election_campaign}, {"election_resign", election_resign},
    {"election_observe", election_observe}, {"leader_read", leader_read},
    {NULL, NULL},
};
