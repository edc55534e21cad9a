/*
 * watch.c - watch handles. Events become Lua tables here, in one step, because a mirror of a large tree takes many.
 */
#include "binding.h"

/* The handle; NULL when it was never opened. */
static kv_watch *get(lua_State *L) {
  return ((struct kvl_watch_box *)kvl_check(L, 1, KVL_WATCH))->watch;
}

int kvl_watch_gc(lua_State *L) {
  struct kvl_watch_box *box = lua_touserdata(L, 1);
  kv_watch_free(box->watch);
  box->watch = NULL;
  return 0;
}

/* watch_open(store, key, tree, no_initial, after or nil, keys_only, previous) -> watch, tag */
static int watch_open(lua_State *L) {
  struct kvl_state *state = kvl_state(L);
  kv_store *store = kvl_store(L, 1);
  kv_error error;
  kv_watch_options options = {.key = kvl_slice(L, 2),
                              .tree = lua_toboolean(L, 3),
                              .no_initial = lua_toboolean(L, 4),
                              .resume = lua_isnumber(L, 5),
                              .after = kvl_to_integer(L, 5),
                              .keys_only = lua_toboolean(L, 6),
                              .previous = lua_toboolean(L, 7)};
  kv_queue *queue = state->refusing == KVL_REFUSE_ALL ? kvl_queue_to_wait(state, &error) : kvl_queue(state, &error);
  if (!queue) return kvl_fail(L, &error);
  struct kvl_watch_box *box = kvl_new_box(L, sizeof *box, KVL_WATCH);
  box->keys_only = options.keys_only;
  uint64_t tag = ++state->last_tag;
  if (kv_watch_open(store, queue, &options, tag, &box->watch, &error) != KV_OK) return kvl_fail(L, &error);
  kvl_push_integer(L, tag);
  return 2;
}

static void set_slice(lua_State *L, const char *name, kv_slice slice) {
  kvl_push_slice(L, slice);
  lua_setfield(L, -2, name);
}

static void push_event(lua_State *L, const kv_event *event, bool keys_only) {
  bool is_put = event->type == KV_EVENT_PUT;
  lua_createtable(L, 0, 4 + (is_put ? 2 : 0) + (event->initial ? 1 : 0) + (event->has_previous ? 1 : 0));
  if (is_put)
    lua_pushliteral(L, "put");
  else
    lua_pushliteral(L, "delete");
  lua_setfield(L, -2, "type");
  set_slice(L, "key", event->key);
  kvl_push_integer(L, event->revision);
  lua_setfield(L, -2, "revision");
  if (is_put) {
    kvl_push_integer(L, event->created);
    lua_setfield(L, -2, "created");
    if (!keys_only) set_slice(L, "value", event->value);
  }
  if (event->has_previous) set_slice(L, "prev", event->previous);
  if (!event->initial) return;
  lua_pushboolean(L, 1);
  lua_setfield(L, -2, "initial");
}

/* watch_next(watch) -> event; false when there is none now; nil, message, code when it has ended */
static int watch_next(lua_State *L) {
  struct kvl_watch_box *box = kvl_check(L, 1, KVL_WATCH);
  kv_event event;
  kv_error error;
  if (!box->watch) return kvl_fail_text(L, KV_CLOSED, "the watch was closed");
  int result = kv_watch_next(box->watch, &event, &error);
  if (result < 0) return kvl_fail(L, &error);
  if (result == 0)
    lua_pushboolean(L, 0);
  else
    push_event(L, &event, box->keys_only);
  return 1;
}

static int watch_synced(lua_State *L) {
  kv_watch *watch = get(L);
  lua_pushboolean(L, watch && kv_watch_synced(watch));
  return 1;
}

static int watch_connected(lua_State *L) {
  kv_watch *watch = get(L);
  lua_pushboolean(L, watch && kv_watch_connected(watch));
  return 1;
}

static int watch_revision(lua_State *L) {
  kv_watch *watch = get(L);
  kvl_push_integer(L, watch ? kv_watch_revision(watch) : 0);
  return 1;
}

static int watch_age(lua_State *L) {
  kv_watch *watch = get(L);
  lua_pushnumber(L, watch ? kv_watch_age(watch) : 0);
  return 1;
}

/* watch_close(watch): what it held goes now, not when the handle is collected. */
static int watch_close(lua_State *L) {
  struct kvl_watch_box *box = kvl_check(L, 1, KVL_WATCH);
  kv_watch_free(box->watch);
  box->watch = NULL;
  return 0;
}

const luaL_Reg kvl_watch_functions[] = {
    {"watch_open", watch_open},           {"watch_next", watch_next},
    {"watch_synced", watch_synced},       {"watch_connected", watch_connected},
    {"watch_revision", watch_revision},   {"watch_age", watch_age},
    {"watch_close", watch_close},         {NULL, NULL},
};
