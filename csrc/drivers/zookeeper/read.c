/*
 * read.c - get and ping, and zk_look(), by which others learn what stands at a path.
 *
 * A strong read follows a sync in the same round trip: the server answers requests of a session in order, so what is
 * read behind the sync's answer is at least as new as what the leader had committed when it came by. Not so where the
 * server is the leader itself: it takes a sync for nothing, and its own state may be a moment behind what it has told
 * its followers to commit (Leader.tryToCommit). Only what a quorum commits would help, at the price of a write: that is
 * paid where a write would be refused, or nothing be deleted, for what was read.
 */
#include <stdlib.h>
#include <string.h>

#include "zookeeper.h"

/* False: the call is finished. */
static bool begin_read(struct zk_call *call, bool strong) {
  if (!strong || (call->certain ? zk_commit : zk_sync)(call->session)) return true;
  zk_finish(call, KV_UNAVAILABLE, "the request could not be sent");
  return false;
}

/* ------------------------------------------------------------------ get */

/* Since when is it not there? Its nearest ancestor tells. */
static void climbed(int result, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  if (result == ZNONODE && zk_parent(call->path)) {
    zk_sent(call, zoo_aexists(call->session->handle, call->path, 0, climbed, call));
  } else if (result != ZOK) {
    zk_fail(call, result);
  } else {
    call->op->result.revision = (uint64_t)stat->pzxid;
    zk_finish(call, KV_OK, NULL);
  }
}

static void got(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct kv_op *op = call->op;
  result = zk_behind_sync(call, !(op->flags & KV_FAST), result);
  if (result == ZNONODE && (op->flags & KV_DATED) && zk_parent(call->path)) {
    zk_sent(call, zoo_aexists(call->session->handle, call->path, 0, climbed, call));
  } else if (result == ZNONODE || (result == ZOK && !zk_is_key(size, stat))) {
    if (result == ZOK) op->result.revision = (uint64_t)stat->mzxid;
    zk_finish(call, KV_OK, NULL);
  } else if (result != ZOK) {
    zk_fail(call, result);
  } else {
    bool silent = (op->flags & KV_KEYS_ONLY) || size <= 0;
    kv_slice shown = {silent ? NULL : value, silent ? 0 : (size_t)size};
    uint64_t revision = (uint64_t)stat->mzxid;
    op->result.revision = revision;
    if (kv_zk->pair(op, op->key, shown, revision, (uint64_t)stat->czxid, false)) zk_finish(call, KV_OK, NULL);
    else zk_finish(call, KV_FAILED, "out of memory");
  }
}

static void get(struct zk_call *call) {
  if (!(call->op->flags & KV_FAST) && zk_sync_hold(call)) return;
  if (begin_read(call, !(call->op->flags & KV_FAST)))
    zk_sent(call, zoo_aget(call->session->handle, call->path, 0, got, call));
}

void zk_get(struct zk *zk, struct kv_op *op) {
  struct zk_call *call = zk_call_new(zk, zk_main(zk), op);
  if (call) zk_call_start(call, get);
}

/* ------------------------------------------------------------------ ping */

static void ping_answered(int result, const char *value, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)value;
  if (!call) return;
  if (result == ZOK) zk_finish(call, KV_OK, NULL);
  else zk_fail(call, result);
}

static void ping(struct zk_call *call) {
  zk_sent(call, zoo_async(call->session->handle, "/", ping_answered, call));
}

void zk_ping(struct zk *zk, struct kv_op *op) {
  struct zk_call *call = zk_call_new(zk, zk_main(zk), op);
  if (call) zk_call_start(call, ping);
}

/* ------------------------------------------------------------------ looking at a node */

static void acl_looked_at(int result, struct ACL_vector *vector, struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  if (result == ZNONODE || (result == ZOK && stat->czxid != call->stat.czxid)) { /* removed, or made anew, meanwhile */
    if (zk_again(call)) zk_look(call, call->result == 1, call->run);
    return;
  }
  if (result != ZOK && result != ZNOAUTH) {
    zk_fail(call, result);
    return;
  }
  if (result == ZOK) call->ttl = zk_acl_marked(vector);
  call->run(call);
}

static void looked_at(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)value;
  if (!call) return;
  result = zk_behind_sync(call, call->result == 1, result);
  call->ttl = 0;
  call->is_there = result == ZOK;
  call->is_key = result == ZOK && zk_is_key(size, stat);
  if (result == ZOK) call->stat = *stat;
  if (result != ZOK && result != ZNONODE) {
    zk_fail(call, result);
  } else if (result == ZOK && (stat->aversion > 0 || zk_is_blank(stat))) {
    /* Its list was set after it was made, or was to be: perhaps one that tells a time to live. */
    zk_sent(call, zoo_aget_acl(call->session->handle, call->path, acl_looked_at, call));
  } else {
    call->run(call);
  }
}

void zk_look(struct zk_call *call, bool strong, void (*run)(struct zk_call *call)) {
  call->run = run;
  call->result = strong ? 1 : 0;
  if (begin_read(call, strong)) zk_sent(call, zoo_aget(call->session->handle, call->path, 0, looked_at, call));
}
