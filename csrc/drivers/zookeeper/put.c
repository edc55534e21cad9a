/*
 * put.c - put. ZooKeeper has no upsert: a put sets, and creates when there is nothing to set, or the reverse, decided
 * by what the server answers. The first guess is what the last put of this store found, so that both many new keys
 * and many changes cost one round trip each.
 *
 * A node is permanent, has a time to live, or is ephemeral (keys under a lease), for all its life. A put that wants
 * it of another kind deletes and creates it: in one multi, except for nodes with a time to live, which the C client
 * cannot make in a multi: there the two requests follow each other in one packet, and a key may be seen missing for a
 * moment.
 *
 * A node with a time to live (see names.c) is made without data, so that it is no key yet; then its list is set once
 * more and its value is set. A plain put by somebody else that comes in between takes it for a parent and does not
 * make it permanent: our own set then fails, and we do it for him. A put like ours that comes in between sees the mark
 * in the list, and does the rest instead of us. Should we die in between, a plain put that is the first to set the
 * node looks at its list, which tells the time to live from the beginning.
 *
 * Versions begin at 0 in each node, so one that was seen might belong to the next node of that name. When a node is
 * made anew its version ends behind the old one's (zk_sets()), so that of several who saw the old one only the first
 * wins. Where that cannot be done at once, a conditional put claims the key first, by setting it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "zookeeper.h"

#define ZK_PIN "/.kv" /* below a key; see pin() */
#define NO_ADMIN "a time to live needs the permission \"a\" (admin) in option \"acl\""

enum kind { PERMANENT, TIMED, EPHEMERAL };

/* A multi under way; results are written until its completion came. */
struct batch {
  zoo_op_t ops[2 + ZK_SETS_MAX];
  zoo_op_result_t results[2 + ZK_SETS_MAX];
  struct Stat stat;
  int count;
  char *value; /* owned: of somebody else, being repaired */
};

static void begin(struct zk_call *call);
static void create(struct zk_call *call);
static void look(struct zk_call *call);
static void fill(struct zk_call *call);

static enum kind wanted(const struct zk_call *call) {
  if (call->op->lease) return EPHEMERAL;
  return call->op->ttl > 0 ? TIMED : PERMANENT;
}

static int64_t wanted_ttl(const struct zk_call *call) {
  return zk_milliseconds(call->op->ttl);
}

static bool is_plain(const struct zk_call *call) {
  const struct kv_op *op = call->op;
  return op->condition == KV_ALWAYS && wanted(call) == PERMANENT && !(op->flags & KV_PORTABLE);
}

static int64_t own_session(const struct zk_call *call) {
  return zoo_client_id(call->session->handle)->client_id;
}

static void done(struct zk_call *call, const struct Stat *stat) {
  struct kv_result *result = &call->op->result;
  result->revision = (uint64_t)stat->mzxid;
  result->created = (uint64_t)stat->czxid;
  if (wanted(call) == TIMED) result->ttl_late = ZK_REAPER_SECONDS;
  zk_finish(call, KV_OK, NULL);
}

/* The last request was refused, and nothing was applied. */
static void again(struct zk_call *call, void (*run)(struct zk_call *call)) {
  call->write_sent = call->op->sent = false;
  if (zk_again(call)) run(call);
}

static void clear_batch(struct zk_call *call) {
  struct batch *batch = call->data;
  if (batch) free(batch->value);
  free(batch);
}

static struct batch *batch_of(struct zk_call *call) {
  struct batch *batch = call->data;
  if (!batch) call->data = batch = calloc(1, sizeof *batch);
  call->clear = clear_batch;
  if (!batch) {
    zk_finish(call, KV_FAILED, "out of memory");
    return NULL;
  }
  batch->count = 0;
  return batch;
}

static zoo_op_t *next_op(struct batch *batch) {
  batch->results[batch->count] = (zoo_op_result_t){0};
  return &batch->ops[batch->count++];
}

static void send_batch(struct zk_call *call, struct batch *batch, void_completion_t completion) {
  zk_writing(call);
  zk_sent(call, zoo_amulti(call->session->handle, batch->count, batch->ops, batch->results, completion, call));
}

/* So often, with the value in the end. */
static void add_sets(struct zk_call *call, struct batch *batch, int sets, const char *value, int size) {
  for (int i = 0; i < sets - 1; i++) zoo_set_op_init(next_op(batch), call->path, NULL, -1, i, &batch->stat);
  zoo_set_op_init(next_op(batch), call->path, value, size, sets - 1, &batch->stat);
}

/* Delete the node and make another, with a value; the version becomes one that the old node did not have. */
static void make_anew(struct zk_call *call, struct batch *batch, const struct Stat *old, int flags, const char *value,
                      int size) {
  zoo_delete_op_init(next_op(batch), call->path, old->version);
  zoo_create_op_init(next_op(batch), call->path, NULL, -1, &call->zk->acl.vector, flags, NULL, 0);
  add_sets(call, batch, zk_sets(old->version), value, size);
}

/* ------------------------------------------------------------------ set */

static void recreate(struct zk_call *call);

static bool is_stuck_timed(const struct zk_call *call) {
  return call->ttl && call->stat.numChildren > 0;
}

/* The value was set, but the node lives no longer than before. */
static void half_done(struct zk_call *call, int result) {
  if (zk_code(result, true) == KV_UNKNOWN) zk_fail(call, result);
  else zk_finish(call, KV_UNKNOWN, "it was put, but could not be made permanent: %s", zerror(result));
}

static void pinned(struct zk_call *call, int result) {
  if (result != ZOK && result != ZNODEEXISTS && call->result == ZOK) call->result = result;
  if (call->pending) return;
  if (call->result == ZOK) done(call, &call->stat);
  else half_done(call, call->result);
}

static void pin_made(int result, const char *path, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)path;
  if (call) pinned(call, result);
}

static void pin_unmarked(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (call) pinned(call, result);
}

/*
 * A node with a time to live that has nodes below it cannot be made anew, but it is kept as long as something stands
 * below it. So it gets a node there that nobody sees, as it has no data, and its list tells no time to live any more.
 */
static void pin(struct zk_call *call) {
  zhandle_t *handle = call->session->handle;
  const struct ACL_vector *acl = &call->zk->acl.vector;
  char path[ZK_PATH_MAX + sizeof ZK_PIN];
  snprintf(path, sizeof path, "%s" ZK_PIN, call->path);
  call->result = ZOK;
  if (!zk_sent(call, zoo_acreate(handle, path, NULL, -1, acl, 0, pin_made, call))) return;
  zk_sent(call, zoo_aset_acl(handle, call->path, -1, (struct ACL_vector *)(uintptr_t)acl, pin_unmarked, call));
}

/* Its value is set already. */
static void recreate_set(struct zk_call *call) {
  call->claimed = true;
  call->claim = call->stat;
  recreate(call);
}

static void acl_of_set(int result, struct ACL_vector *vector, struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  bool same = result == ZOK && stat->czxid == call->stat.czxid;
  if (same && zk_acl_marked(vector)) (call->stat.numChildren > 0 ? pin : recreate_set)(call);
  else if (result == ZOK || result == ZNONODE || result == ZNOAUTH) done(call, &call->stat);
  else zk_fail(call, result);
}

/* It may be one with a time to live, as its maker set its list. A node that nobody had set before may be one too: its
 * maker may have died before that. */
static bool may_be_timed(const struct Stat *stat) {
  return stat->aversion > 0 || stat->version <= 1;
}

static void was_set(int result, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  if (result == ZOK) {
    call->zk->create_first = false;
    call->stat = *stat;
    if (wanted(call) != PERMANENT || (!may_be_timed(stat) && !stat->ephemeralOwner)) done(call, stat);
    else if (stat->ephemeralOwner) recreate_set(call);
    else if (call->is_there && !call->ttl && call->stat.czxid == stat->czxid) done(call, stat); /* looked at before */
    else zk_sent(call, zoo_aget_acl(call->session->handle, call->path, acl_of_set, call));
  } else if (result == ZNONODE && call->may_not_create) {
    zk_fail(call, ZNOAUTH);
  } else if (result == ZNONODE && is_plain(call)) {
    again(call, create);
  } else if (result == ZNONODE || result == ZBADVERSION) {
    again(call, look);
  } else {
    zk_fail(call, result);
  }
}

static void set(struct zk_call *call, int version) {
  struct kv_op *op = call->op;
  const char *value = op->value.size ? op->value.data : "";
  zk_writing(call);
  zk_sent(call, zoo_aset(call->session->handle, call->path, value, (int)op->value.size, version, was_set, call));
}

static void set_any(struct zk_call *call) {
  set(call, -1);
}

/* ------------------------------------------------------------------ create */

static void after_create(struct zk_call *call, int result, const struct Stat *stat) {
  if (result == ZOK) {
    call->zk->create_first = true;
    done(call, stat);
  } else if (result == ZNODEEXISTS) {
    again(call, is_plain(call) ? set_any : look);
  } else if (result == ZNOAUTH && is_plain(call) && !call->may_not_create) {
    call->may_not_create = true; /* but set it, perhaps: the server looks at rights before it looks for the node */
    again(call, set_any);
  } else if (result == ZNONODE) {
    call->write_sent = call->op->sent = false;
    if (zk_again(call)) zk_make_parents(call, create);
  } else {
    zk_fail(call, result);
  }
}

static void created(int result, const char *path, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)path;
  if (call) after_create(call, result, stat);
}

static void created_empty(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (call) after_create(call, result, &((struct batch *)call->data)->stat);
}

/* Empty values are written to the node after it was made: that makes them values. */
static void create_empty(struct zk_call *call) {
  struct batch *batch = batch_of(call);
  if (!batch) return;
  zoo_create_op_init(next_op(batch), call->path, NULL, -1, &call->zk->acl.vector, 0, NULL, 0);
  zoo_set_op_init(next_op(batch), call->path, "", 0, 0, &batch->stat);
  send_batch(call, batch, created_empty);
}

/* ------------------------------------------------------------------ create with a time to live */

static void timed_parents(struct zk_call *call);
static void create_timed(struct zk_call *call);
static bool is_of_kind(const struct zk_call *call);

/* We took the key away, to make it anew, and another one was faster. If that was no whole put, the rest is ours: he may
 * die, or take his node away again. */
static void successor_seen(struct zk_call *call) {
  if (!call->is_there) create_timed(call);
  else if (call->is_key) done(call, &call->claim);
  else if (zk_is_blank(&call->stat) && is_of_kind(call)) fill(call);
  else zk_finish(call, KV_UNKNOWN, "it was put, but another client's node took its place");
}

/* Another write came behind ours, or before it. A key that was claimed had our value. */
static void overtaken(struct zk_call *call) {
  if (call->claimed && call->deleted) zk_look(call, true, successor_seen);
  else if (call->claimed) done(call, &call->claim);
  else again(call, look);
}

/* What was claimed was taken away by another's hand: the node that was made in its place is, too. */
static void undone(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)result;
  if (call) done(call, &call->claim);
}

static void timed_created(int result, const char *path, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)path;
  if (!call) return;
  if (result == ZOK || result == ZNODEEXISTS) call->zk->makes_ttl = true;
  if (result == ZOK && call->claimed && !call->deleted) {
    zk_sent(call, zoo_adelete(call->session->handle, call->path, 0, undone, call));
  } else if (result == ZOK) {
    call->stat = *stat;
    call->made = true;
    fill(call);
  } else if (result == ZUNIMPLEMENTED) {
    zk_finish(call, KV_UNSUPPORTED, ZK_NO_TTL);
  } else if (result == ZNODEEXISTS) {
    overtaken(call);
  } else if (result == ZNONODE && call->claimed) {
    done(call, &call->claim);
  } else if (result == ZNONODE) {
    call->write_sent = call->op->sent = false;
    if (zk_again(call)) timed_parents(call);
  } else {
    zk_fail(call, result);
  }
}

static void create_timed(struct zk_call *call) {
  int64_t ttl = wanted_ttl(call);
  const struct ACL_vector *acl = zk_acl_mark(&call->zk->acl, ttl);
  zk_writing(call);
  zk_sent(call, zoo_acreate2_ttl(call->session->handle, call->path, NULL, -1, acl, ZOO_PERSISTENT_WITH_TTL,
                                 zk_reaped(ttl), timed_created, call));
}

static void timed_parents(struct zk_call *call) {
  zk_make_parents(call, create_timed);
}

/* Of our own value nothing was applied, or it was claimed. True: the call is finished. */
static bool lost(struct zk_call *call, int result) {
  if (zk_code(result, false) != KV_UNAVAILABLE) return false;
  call->write_sent = call->op->sent = false;
  if (call->claimed) done(call, &call->claim);
  else zk_fail(call, result);
  return true;
}

static void repaired(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (call && !lost(call, result)) overtaken(call);
}

/*
 * Somebody's plain put came between: his value is to stay. Nobody but those who want a time to live set lists: when
 * another one did, it was his put, and as he wanted it. And whoever made the node is the one to repair it.
 */
static void repair(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call || lost(call, result)) return;
  bool is_ours = call->made && result == ZOK && stat->czxid == call->stat.czxid;
  if (!is_ours || stat->aversion > 1 || !zk_is_key(size, stat)) {
    overtaken(call);
    return;
  }
  struct batch *batch = batch_of(call);
  if (!batch) return;
  free(batch->value);
  batch->value = malloc((size_t)size + 1);
  if (!batch->value) {
    zk_finish(call, KV_FAILED, "out of memory");
    return;
  }
  if (size) memcpy(batch->value, value, (size_t)size);
  make_anew(call, batch, stat, 0, batch->value, size);
  send_batch(call, batch, repaired);
}

static void removed(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)result;
  if (!call) return;
  call->write_sent = false;
  zk_finish(call, KV_DENIED, "%s", NO_ADMIN);
}

static void after_fill(struct zk_call *call, int result, const struct Stat *stat) {
  zhandle_t *handle = call->session->handle;
  if (result == ZOK && call->result == ZNOAUTH)
    zk_sent(call, zoo_adelete(handle, call->path, stat->version, removed, call));
  else if (result == ZOK && call->result == ZOK) done(call, stat);
  else if (result == ZBADVERSION) zk_sent(call, zoo_aget(handle, call->path, 0, repair, call));
  else if (result == ZNONODE) overtaken(call);
  else zk_fail(call, result == ZOK ? call->result : result);
}

static void filled(int result, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (call) after_fill(call, result, stat);
}

static void filled_anew(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (call) after_fill(call, result, &((struct batch *)call->data)->stat);
}

static void list_was_set(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (call) call->result = result;
}

/* The node is there, and ours: now its list, as a hint, and its value. The list in any case: that it was set twice
 * tells its maker that not a plain put was before him. */
static void fill(struct zk_call *call) {
  struct kv_op *op = call->op;
  zhandle_t *handle = call->session->handle;
  struct ACL_vector *acl = zk_acl_mark(&call->zk->acl, wanted_ttl(call));
  const char *value = op->value.size ? op->value.data : "";
  struct batch *batch = call->sets > 1 ? batch_of(call) : NULL;
  if (call->sets > 1 && !batch) return;
  if (!zk_sent(call, zoo_aset_acl(handle, call->path, -1, acl, list_was_set, call))) return;
  if (batch) {
    add_sets(call, batch, call->sets, value, (int)op->value.size);
    send_batch(call, batch, filled_anew);
  } else {
    zk_sent(call, zoo_aset(handle, call->path, value, (int)op->value.size, 0, filled, call));
  }
}

/* ------------------------------------------------------------------ another kind of node */

/* Ours was set, and another write followed before the node was made anew. It is not set again over that one. */
static void set_overtaken(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  kv_slice own = call->op->value;
  if (result == ZNONODE || (result == ZOK && !zk_is_key(size, stat))) {
    again(call, begin); /* the server removed it, as its time was over */
  } else if (result != ZOK) {
    half_done(call, result);
  } else {
    /* Whoever made it with a time to live may have made it anew for us: see repair(). */
    bool same = (size_t)size == own.size && (!size || memcmp(value, own.data, own.size) == 0);
    done(call, same ? stat : &call->claim);
  }
}

static void was_recreated(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  if (result == ZOK) done(call, &((struct batch *)call->data)->stat);
  else if (result == ZNOTEMPTY && call->claimed) pin(call);
  else if (result == ZNOTEMPTY && wanted(call) == PERMANENT) again(call, begin);
  else if (result == ZNOTEMPTY) zk_finish(call, KV_UNSUPPORTED, "%s", ZK_STUCK);
  else if (result == ZBADVERSION && call->claimed)
    zk_sent(call, zoo_aget(call->session->handle, call->path, 0, set_overtaken, call));
  else if (result == ZBADVERSION || result == ZNONODE || result == ZNODEEXISTS) again(call, begin);
  else if (call->claimed) half_done(call, result);
  else zk_fail(call, result);
}

static void old_deleted(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (call) call->result = result;
}

static void timed_recreated(int result, const char *path, const struct Stat *stat, const void *data) {
  struct zk_call *call = (struct zk_call *)(uintptr_t)data;
  call->deleted = call->result == ZOK;
  /* Its delete did not go through: the answer to the create says no more than that. */
  if (call->deleted || result == ZOK) {
    timed_created(result, path, stat, data);
    return;
  }
  call = zk_answered(data);
  if (!call) return;
  if (call->result == ZNOTEMPTY && call->claimed) zk_finish(call, KV_UNKNOWN, "it was put, but " ZK_STUCK);
  else if (call->result == ZNOTEMPTY) zk_finish(call, KV_UNSUPPORTED, "%s", ZK_STUCK);
  else if (call->result == ZBADVERSION || call->result == ZNONODE) overtaken(call);
  else zk_fail(call, call->result);
}

static void recreate_timed(struct zk_call *call);

/* A server that makes no nodes with a time to live says so before it looks at anything else, and the root is there. */
static void probed(int result, const char *path, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)path, (void)stat;
  if (!call) return;
  if (result == ZUNIMPLEMENTED) {
    zk_finish(call, KV_UNSUPPORTED, ZK_NO_TTL);
  } else if (zk_code(result, false) == KV_UNAVAILABLE) {
    zk_fail(call, result);
  } else {
    call->zk->makes_ttl = true;
    recreate_timed(call);
  }
}

static void probe(struct zk_call *call) {
  int64_t ttl = wanted_ttl(call);
  zk_sent(call, zoo_acreate2_ttl(call->session->handle, "/", NULL, -1, &call->zk->acl.vector,
                                 ZOO_PERSISTENT_WITH_TTL, zk_reaped(ttl), probed, call));
}

static void was_claimed(int result, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  if (result == ZOK) {
    call->claimed = true;
    call->claim = call->stat = *stat;
    recreate_timed(call);
  } else if (result == ZBADVERSION || result == ZNONODE) {
    again(call, look);
  } else {
    zk_fail(call, result);
  }
}

static void claim(struct zk_call *call) {
  struct kv_op *op = call->op;
  const char *value = op->value.size ? op->value.data : "";
  int version = call->stat.version;
  zk_writing(call);
  zk_sent(call, zoo_aset(call->session->handle, call->path, value, (int)op->value.size, version, was_claimed, call));
}

/* Nothing is deleted for a server that does not make what is to follow. */
static void recreate_timed(struct zk_call *call) {
  zhandle_t *handle = call->session->handle;
  if (!call->zk->makes_ttl) {
    probe(call);
    return;
  }
  if (call->op->condition == KV_IF_REVISION && !call->claimed) {
    claim(call);
    return;
  }
  int64_t ttl = wanted_ttl(call);
  const struct ACL_vector *acl = zk_acl_mark(&call->zk->acl, ttl);
  call->sets = zk_sets(call->stat.version);
  zk_writing(call);
  if (!zk_sent(call, zoo_adelete(handle, call->path, call->stat.version, old_deleted, call))) return;
  zk_sent(call, zoo_acreate2_ttl(handle, call->path, NULL, -1, acl, ZOO_PERSISTENT_WITH_TTL, zk_reaped(ttl),
                                 timed_recreated, call));
}

static void recreate(struct zk_call *call) {
  struct kv_op *op = call->op;
  if (wanted(call) == TIMED) {
    recreate_timed(call);
    return;
  }
  struct batch *batch = batch_of(call);
  if (!batch) return;
  const char *value = op->value.size ? op->value.data : "";
  int flags = wanted(call) == EPHEMERAL ? ZOO_EPHEMERAL : 0;
  make_anew(call, batch, &call->stat, flags, value, (int)op->value.size);
  send_batch(call, batch, was_recreated);
}

static void create(struct zk_call *call) {
  struct kv_op *op = call->op;
  enum kind kind = wanted(call);
  if (kind == TIMED) {
    create_timed(call);
  } else if (kind == PERMANENT && !op->value.size) {
    create_empty(call);
  } else {
    int mode = kind == EPHEMERAL ? ZOO_EPHEMERAL : ZOO_PERSISTENT;
    const char *value = op->value.size ? op->value.data : "";
    zk_writing(call);
    zk_sent(call, zoo_acreate2(call->session->handle, call->path, value, (int)op->value.size, &call->zk->acl.vector,
                               mode, created, call));
  }
}

/* ------------------------------------------------------------------ deciding */

static bool is_of_kind(const struct zk_call *call) {
  switch (wanted(call)) {
    case PERMANENT: return !call->stat.ephemeralOwner && !call->ttl;
    case TIMED: return call->ttl == wanted_ttl(call);
    default: return call->stat.ephemeralOwner == own_session(call);
  }
}

/* False: the call is finished, or looks once more, as what it saw may be old. Revisions only grow. */
static bool condition_holds(struct zk_call *call) {
  const struct kv_op *op = call->op;
  uint64_t revision = call->is_key ? (uint64_t)call->stat.mzxid : 0;
  bool exists = op->condition == KV_IF_ABSENT && call->is_key;
  bool differs = op->condition == KV_IF_REVISION && (!call->is_key || revision != op->revision);
  if (!exists && !differs) return true;
  if (!call->certain && (exists || revision < op->revision)) {
    call->certain = true;
    zk_look(call, true, call->run);
  } else if (exists) {
    zk_finish(call, KV_EXISTS, "the key is there");
  } else {
    zk_finish(call, KV_MODIFIED, "the key was changed, or is gone");
  }
  return false;
}

static void decide(struct zk_call *call) {
  if (!condition_holds(call)) return;
  if (!call->is_there) {
    create(call);
  } else if (wanted(call) == TIMED && is_of_kind(call) && zk_is_blank(&call->stat)) {
    fill(call);
  } else if (is_of_kind(call) || (is_stuck_timed(call) && wanted(call) == PERMANENT)) {
    set(call, call->stat.version);
  } else if (call->stat.numChildren > 0) {
    zk_finish(call, KV_UNSUPPORTED, "%s", ZK_STUCK);
  } else {
    recreate(call);
  }
}

static void look(struct zk_call *call) {
  call->made = call->deleted = false;
  call->sets = 1;
  zk_look(call, true, decide);
}

static void look_around(struct zk_call *call) {
  if (condition_holds(call)) zk_check_portable(call, call->op->key, look);
}

static void begin(struct zk_call *call) {
  const struct kv_op *op = call->op;
  bool create_only = op->condition == KV_IF_ABSENT && wanted(call) != TIMED;
  /* Not found out when the list is set: a key that was there before would be gone then. */
  if (wanted(call) == TIMED && !zk_acl_may_admin(&call->zk->acl)) zk_finish(call, KV_DENIED, "%s", NO_ADMIN);
  else if (op->flags & KV_PORTABLE) zk_look(call, true, look_around);
  else if (is_plain(call)) (call->zk->create_first ? create : set_any)(call);
  else if (create_only) create(call);
  else look(call);
}

void zk_put(struct zk *zk, struct kv_op *op) {
  struct zk_session *session = op->lease ? zk_lease_session(zk, op->lease) : zk_main(zk);
  if (op->lease && !session) {
    kv_zk->finish(op, KV_LOST, "the lease is gone");
    return;
  }
  struct zk_call *call = zk_call_new(zk, session, op);
  if (call) zk_call_start(call, begin);
}
