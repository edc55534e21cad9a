/*
 * txn.c - transactions being built. Each part answers true, or nil, message, code; commit() is in request.c.
 */
#include "binding.h"

static kv_txn *get(lua_State *L) {
  struct kvl_txn_box *box = kvl_check(L, 1, KVL_TXN);
  if (!box->txn) luaL_error(L, "kv: a transaction that was never begun");
  return box->txn;
}

int kvl_txn_gc(lua_State *L) {
  struct kvl_txn_box *box = lua_touserdata(L, 1);
  kv_txn_free(box->txn);
  box->txn = NULL;
  kvl_store_release(box->store);
  box->store = NULL;
  return 0;
}

/* txn_new(store) -> txn */
static int txn_new(lua_State *L) {
  kv_store *store = kvl_store(L, 1);
  kv_error error;
  struct kvl_txn_box *box = kvl_new_box(L, sizeof *box, KVL_TXN);
  box->store = kvl_store_retain(L, 1);
  box->txn = kv_txn_new(store, &error);
  return box->txn ? 1 : kvl_fail(L, &error);
}

static int result(lua_State *L, kv_code code, const kv_error *error) {
  if (code != KV_OK) return kvl_fail(L, error);
  lua_pushboolean(L, 1);
  return 1;
}

/* txn_check(txn, key, revision) */
static int txn_check(lua_State *L) {
  kv_error error;
  return result(L, kv_txn_check(get(L), kvl_slice(L, 2), kvl_to_integer(L, 3), &error), &error);
}

/* txn_check_absent(txn, key) */
static int txn_check_absent(lua_State *L) {
  kv_error error;
  return result(L, kv_txn_check_absent(get(L), kvl_slice(L, 2), &error), &error);
}

/* txn_guard(txn, lock) */
static int txn_guard(lua_State *L) {
  kv_error error;
  return result(L, kv_txn_guard(get(L), kvl_lock(L, 2), &error), &error);
}

/* txn_put(txn, key, value, ttl, flags, lease or nil) */
static int txn_put(lua_State *L) {
  kv_error error;
  kv_code code = kv_txn_put(get(L), kvl_slice(L, 2), kvl_slice(L, 3), lua_tonumber(L, 4), (unsigned)lua_tointeger(L, 5),
                            kvl_lease(L, 6), &error);
  return result(L, code, &error);
}

/* txn_delete(txn, key) */
static int txn_delete(lua_State *L) {
  kv_error error;
  return result(L, kv_txn_delete(get(L), kvl_slice(L, 2), &error), &error);
}

const luaL_Reg kvl_txn_functions[] = {
    {"txn_new", txn_new}, {"txn_check", txn_check}, {"txn_check_absent", txn_check_absent}, {"txn_guard", txn_guard},
    {"txn_put", txn_put}, {"txn_delete", txn_delete}, {NULL, NULL},
};
