/*
 * delete.c - delete: look, then remove what was seen.
 *
 * The version that was seen goes with the request, so that a key that was put meanwhile is not taken for the one that
 * was looked at. A node with nodes below it cannot be removed: it loses its value, and is a key no more.
 */
#include <stdlib.h>
#include <string.h>

#include "zookeeper.h"

static void begin(struct zk_call *call);

static void again(struct zk_call *call) {
  call->write_sent = false; /* what was sent was refused */
  call->op->sent = false;
  if (zk_again(call)) begin(call);
}

static void done(struct zk_call *call, uint64_t revision) {
  call->op->result.found = true;
  call->op->result.revision = revision;
  zk_finish(call, KV_OK, NULL);
}

static void emptied(int result, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  if (result == ZOK) done(call, (uint64_t)stat->mzxid);
  else if (result == ZBADVERSION || result == ZNONODE) again(call);
  else zk_fail(call, result);
}

static void deleted(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  if (result == ZOK) {
    done(call, 0);
  } else if (result == ZNOTEMPTY) {
    zk_sent(call, zoo_aset(call->session->handle, call->path, NULL, -1, call->stat.version, emptied, call));
  } else if (result == ZBADVERSION || result == ZNONODE) {
    again(call);
  } else {
    zk_fail(call, result);
  }
}

static void looked(struct zk_call *call) {
  struct kv_op *op = call->op;
  bool conditional = op->condition == KV_IF_REVISION, gone = !call->is_key;
  bool matches = !conditional || (call->is_key && (uint64_t)call->stat.mzxid == op->revision);
  bool may_be_old = conditional ? !matches && (gone || (uint64_t)call->stat.mzxid < op->revision) : gone;
  if (may_be_old && !call->certain) {
    call->certain = true;
    begin(call);
  } else if (!matches) {
    zk_finish(call, KV_MODIFIED, "the key was changed, or is gone");
  } else if (!call->is_key) {
    zk_finish(call, KV_OK, NULL);
  } else {
    zk_writing(call);
    zhandle_t *handle = call->session->handle;
    if (call->stat.numChildren > 0)
      zk_sent(call, zoo_aset(handle, call->path, NULL, -1, call->stat.version, emptied, call));
    else
      zk_sent(call, zoo_adelete(handle, call->path, call->stat.version, deleted, call));
  }
}

static void begin(struct zk_call *call) {
  zk_look(call, true, looked);
}

void zk_delete(struct zk *zk, struct kv_op *op) {
  struct zk_call *call = zk_call_new(zk, zk_main(zk), op);
  if (call) zk_call_start(call, begin);
}
