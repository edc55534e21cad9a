/*
 * binding.h - what the files of the Lua binding share.
 *
 * The binding knows no policy: a function checks that its handles are handles, makes one call of kv.h, and pushes what
 * came of it. Option names, types and messages about misuse are the business of lua/kv. What a C function returns:
 *
 *     false, results...        the answer is here already (reads of the local backend)
 *     tag, id                  asked; core.next() will give `tag` with the results; `id` is for core.cancel()
 *     nil, message, code       refused, or failed already
 *
 * Every function has the same upvalues: the state of this Lua state's module, and the metatables of the handles. A
 * handle is a userdata with one pointer that is made empty and then filled, so it is valid for __gc at every instant.
 *
 * A Lua error (out of memory) may jump out of any push. A reply that is being pushed therefore hangs in state->current,
 * from where the next call or __gc frees it.
 */
#ifndef KVL_BINDING_H
#define KVL_BINDING_H

#include "../kv.h"
#include "compat.h"

#if defined(__GNUC__)
#define KVL_EXPORT __attribute__((visibility("default")))
#else
#define KVL_EXPORT
#endif

/* Indices of the shared upvalues. */
enum { KVL_STATE = 1, KVL_STORE, KVL_PAGE, KVL_WATCH, KVL_LOCK, KVL_LEASE, KVL_TXN, KVL_UPVALUES = KVL_TXN };

/* One for each Lua state, a userdata. */
struct kvl_state {
  kv_queue *queue;     /* made at the first need; NULL before, and after __gc */
  kv_reply *current;   /* being pushed */
  uint64_t last_tag;
  long process;        /* that made the queue */
  int refusing;        /* what the host cannot do now: see core.refuse() */
  struct kvl_doorbell *doorbell; /* between bell_open() and bell_answer() */
};

/* Handles made from a store keep it, so that they may be collected in any order. Freed with the last reference. */
struct kvl_store {
  kv_store *store;
  unsigned references;
};

struct kvl_store_box {
  struct kvl_store *shared;
};
struct kvl_page_box {
  kv_reply *reply;
};
struct kvl_watch_box {
  kv_watch *watch;
  bool keys_only;
};
struct kvl_lock_box {
  kv_lock *lock;
  struct kvl_store *store;
};
struct kvl_lease_box {
  kv_lease *lease;
  struct kvl_store *store;
};
struct kvl_txn_box {
  kv_txn *txn;
  struct kvl_store *store;
};

/* ------------------------------------------------------------------ core.c */

static inline struct kvl_state *kvl_state(lua_State *L) {
  return lua_touserdata(L, lua_upvalueindex(KVL_STATE));
}

/* The box of a handle; raises when the argument is none of that type. */
void *kvl_check(lua_State *L, int argument, int type);
/* A new, empty box of `size` bytes with the metatable of its type, on the stack. */
void *kvl_new_box(lua_State *L, size_t size, int type);
/* The queue, made now if there is none; NULL with *error. */
kv_queue *kvl_queue(struct kvl_state *state, kv_error *error);

/* The same, for what must be waited for: NULL with KV_PHASE where the host cannot wait now. */
kv_queue *kvl_queue_to_wait(struct kvl_state *state, kv_error *error);
void kvl_phase_error(kv_error *error);

/* Push nil, message, code: always 3. */
int kvl_fail(lua_State *L, const kv_error *error);
int kvl_fail_text(lua_State *L, kv_code code, const char *message);
/* Push tag and id of what was asked: always 2. */
int kvl_asked(lua_State *L, uint64_t tag, uint64_t id);

/* A string argument as a slice; the empty one where it is nil. Not checked further. */
static inline kv_slice kvl_slice(lua_State *L, int argument) {
  kv_slice slice = {NULL, 0};
  slice.data = lua_tolstring(L, argument, &slice.size);
  return slice;
}

static inline void kvl_push_slice(lua_State *L, kv_slice slice) {
  lua_pushlstring(L, slice.size ? slice.data : "", slice.size);
}

/* ------------------------------------------------------------------ reply.c */

/* Push the results of a reply as Lua sees them; returns how many. The reply hangs in state->current: it is freed, or
 * moved into a page. */
int kvl_push_reply(lua_State *L, struct kvl_state *state);
void kvl_drop_current(struct kvl_state *state);
extern const luaL_Reg kvl_reply_functions[];
int kvl_page_gc(lua_State *L);

/* ------------------------------------------------------------------ store.c and the others: functions, __gc */

/* What core.refuse() takes. */
enum { KVL_REFUSE_NOTHING, KVL_REFUSE_WAITS, KVL_REFUSE_ALL };

void kvl_doorbell_free(struct kvl_state *state);
kv_store *kvl_store(lua_State *L, int argument);
struct kvl_store *kvl_store_retain(lua_State *L, int argument);
void kvl_store_release(struct kvl_store *shared);
kv_lock *kvl_lock(lua_State *L, int argument);
kv_lease *kvl_lease(lua_State *L, int argument); /* NULL when the argument is nil */

extern const luaL_Reg kvl_store_functions[];
extern const luaL_Reg kvl_request_functions[];
extern const luaL_Reg kvl_watch_functions[];
extern const luaL_Reg kvl_lock_functions[];
extern const luaL_Reg kvl_lease_functions[];
extern const luaL_Reg kvl_txn_functions[];
extern const luaL_Reg kvl_doorbell_functions[];
int kvl_store_gc(lua_State *L);
int kvl_watch_gc(lua_State *L);
int kvl_lock_gc(lua_State *L);
int kvl_lease_gc(lua_State *L);
int kvl_txn_gc(lua_State *L);

#endif
