/*
 * reply.c - replies and pages as Lua values.
 *
 * What Lua gets for each kind, on success:
 *   get            value, revision, created; nil when there is no such key
 *   put            revision, created
 *   delete         boolean: it was there
 *   list           page (taken apart by page_append()), revision, more
 *   transaction    revision, and for each put, in their order, when its key's life began
 *   lock acquire   token; campaign too
 *   wait_lost      reason
 *   queue head     value, token; nil when nobody holds it. Find leader too
 *   watch ready    nothing
 *   others         true
 * On failure: nil, message, code, and for a transaction that met a failing check its index (from 1) where it is known.
 */
#include "binding.h"

void kvl_drop_current(struct kvl_state *state) {
  kv_reply_free(state->current);
  state->current = NULL;
}

static int push_failure(lua_State *L, const kv_reply *reply) {
  kvl_fail_text(L, kv_reply_code(reply), kv_reply_message(reply));
  if (kv_reply_kind(reply) != KV_TXN || kv_reply_failed_check(reply) < 0) return 3;
  lua_pushinteger(L, kv_reply_failed_check(reply) + 1);
  return 4;
}

static int push_pair(lua_State *L, kv_reply *reply, bool with_created) {
  kv_pair pair;
  if (!kv_reply_pair(reply, &pair)) {
    lua_pushnil(L);
    return 1;
  }
  kvl_push_slice(L, pair.value);
  kvl_push_integer(L, pair.revision);
  if (!with_created) return 2;
  kvl_push_integer(L, pair.created);
  return 3;
}

static int push_written(lua_State *L, kv_reply *reply) {
  kv_pair pair;
  int count = 1;
  luaL_checkstack(L, KV_TXN_MAX + 1, "transaction");
  kvl_push_integer(L, kv_reply_revision(reply));
  for (; count <= KV_TXN_MAX && kv_reply_pair(reply, &pair); count++) kvl_push_integer(L, pair.created);
  return count;
}

/* The reply moves from state->current into the page. */
static int push_page(lua_State *L, struct kvl_state *state) {
  kv_reply *reply = state->current;
  struct kvl_page_box *box = kvl_new_box(L, sizeof *box, KVL_PAGE);
  box->reply = reply;
  state->current = NULL;
  kvl_push_integer(L, kv_reply_revision(reply));
  lua_pushboolean(L, kv_reply_more(reply));
  return 3;
}

static int push_success(lua_State *L, struct kvl_state *state) {
  kv_reply *reply = state->current;
  switch (kv_reply_kind(reply)) {
    case KV_GET: return push_pair(L, reply, true);
    case KV_QUEUE_HEAD:
    case KV_LEADER: return push_pair(L, reply, false);
    case KV_LIST: return push_page(L, state);
    case KV_PUT:
      kvl_push_integer(L, kv_reply_revision(reply));
      kvl_push_integer(L, kv_reply_created(reply));
      return 2;
    case KV_DELETE: lua_pushboolean(L, kv_reply_found(reply)); return 1;
    case KV_TXN: return push_written(L, reply);
    case KV_LOCK_ACQUIRE:
    case KV_CAMPAIGN: kvl_push_integer(L, kv_reply_revision(reply)); return 1;
    case KV_LOCK_WAIT_LOST:
    case KV_LEASE_WAIT_LOST: lua_pushstring(L, kv_reply_message(reply)); return 1;
    case KV_WATCH_READY: return 0;
    default: lua_pushboolean(L, 1); return 1;
  }
}

int kvl_push_reply(lua_State *L, struct kvl_state *state) {
  int count = kv_reply_code(state->current) == KV_OK ? push_success(L, state) : push_failure(L, state->current);
  kvl_drop_current(state);
  return count;
}

/* ------------------------------------------------------------------ pages */

int kvl_page_gc(lua_State *L) {
  struct kvl_page_box *box = lua_touserdata(L, 1);
  kv_reply_free(box->reply);
  box->reply = NULL;
  return 0;
}

/* Names of a pair's fields, pushed once per page. */
enum { FIELD_KEY = 5, FIELD_VALUE, FIELD_REVISION, FIELD_CREATED };

static void set_field(lua_State *L, int name) {
  lua_pushvalue(L, name);
  lua_insert(L, -2);
  lua_rawset(L, -3);
}

static void push_pair_table(lua_State *L, const kv_pair *pair, bool keys_only) {
  lua_createtable(L, 0, pair->dir ? 2 : keys_only ? 3 : 4);
  kvl_push_slice(L, pair->key);
  set_field(L, FIELD_KEY);
  if (pair->dir) {
    lua_pushboolean(L, 1);
    lua_setfield(L, -2, "dir");
    return;
  }
  if (!keys_only) {
    kvl_push_slice(L, pair->value);
    set_field(L, FIELD_VALUE);
  }
  kvl_push_integer(L, pair->revision);
  set_field(L, FIELD_REVISION);
  kvl_push_integer(L, pair->created);
  set_field(L, FIELD_CREATED);
}

/* page_append(page, array, count, keys_only) -> new count, last key (nil: none). Empties and frees the page. */
static int page_append(lua_State *L) {
  struct kvl_page_box *box = kvl_check(L, 1, KVL_PAGE);
  luaL_checktype(L, 2, LUA_TTABLE);
  int count = (int)luaL_checkinteger(L, 3);
  bool keys_only = lua_toboolean(L, 4);
  kv_pair pair = {.key = {NULL, 0}};
  bool any = false;
  lua_settop(L, 4);
  lua_pushliteral(L, "key");
  lua_pushliteral(L, "value");
  lua_pushliteral(L, "revision");
  lua_pushliteral(L, "created");
  while (box->reply && kv_reply_pair(box->reply, &pair)) {
    push_pair_table(L, &pair, keys_only);
    lua_rawseti(L, 2, ++count);
    any = true;
  }
  lua_pushinteger(L, count);
  if (any)
    kvl_push_slice(L, pair.key);
  else
    lua_pushnil(L);
  kv_reply_free(box->reply);
  box->reply = NULL;
  return 2;
}

const luaL_Reg kvl_reply_functions[] = {{"page_append", page_append}, {NULL, NULL}};
