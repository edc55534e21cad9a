/*
 * transaction.c - txn: look at every key, decide, and send one multi that fails when anything that was decided upon
 * has changed.
 *
 * A multi has no "if there create else set", and no "must be absent": which of them a part becomes follows from the
 * look (at one time, behind a sync), and each carries the version that was seen, so that a change in between makes
 * the whole fail, and everything begins again. Absence is asserted by creating the node, and removing it again when
 * it is not to be put.
 *
 * Parents are mostly there. When the server says that something is missing they are looked at, too, and made in the
 * multi: so a transaction that fails leaves none behind.
 *
 * Keys that are put anew are made without data and then set, as the answer to a set has the revision in it. The C
 * client cannot make a node with a time to live in a multi: such a node is made before, without data, so that it is
 * no key until the multi sets it; should that never happen, the server removes it in time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "zookeeper.h"

#define OPS_PER_PART (2 + ZK_SETS_MAX)

struct part {
  struct txn *txn;
  char *path;              /* owned */
  bool is_there, is_key;
  int64_t ttl;
  int64_t marked;          /* of a node with a time to live: the one (by its czxid) whose list we set */
  struct Stat seen, written;
  bool writes;             /* `written` will be filled */
};

/* What must be there for a part's node to be made. */
struct ancestor {
  struct txn *txn;
  char *path;              /* owned */
  bool is_there;
  bool is_ephemeral;       /* nothing can stand below it */
  bool made;               /* by an op so far */
  int version;
};

struct txn {
  struct zk_call *call;
  bool deep;               /* ancestors are looked at */
  struct ancestor *ancestors; /* owned: of parts that are not there */
  size_t ancestor_count, ancestor_capacity;
  size_t count, op_count, bytes;
  int failure;
  int64_t revision;
  struct part *parts;      /* owned */
  zoo_op_t *ops;           /* owned */
  zoo_op_result_t *results; /* owned */
  size_t *owner;           /* owned: the part that an op is for */
};

static void look_at_all(struct zk_call *call);
static void ready(struct zk_call *call);

static void free_txn(struct zk_call *call) {
  struct txn *txn = call->data;
  if (!txn) return;
  for (size_t i = 0; txn->parts && i < txn->count; i++) free(txn->parts[i].path);
  for (size_t i = 0; i < txn->ancestor_count; i++) free(txn->ancestors[i].path);
  free(txn->ancestors);
  free(txn->parts);
  free(txn->ops);
  free(txn->results);
  free(txn->owner);
  free(txn);
}

static char *path_of(const struct kv_part *part) {
  if (part->type != KV_PART_GUARD) return zk_path_copy(part->key);
  char *queue = zk_queue_path(part->place);
  char *path = queue ? malloc(strlen(queue) + strlen(part->place->ticket) + 2) : NULL;
  if (path) sprintf(path, "%s/%s", queue, part->place->ticket);
  free(queue);
  return path;
}

static size_t depth_of(kv_slice key) {
  size_t depth = 0;
  for (size_t i = 0; i < key.size; i++) depth += key.data[i] == '/';
  return depth;
}

static bool make(struct zk_call *call) {
  const struct kv_op *op = call->op;
  struct txn *txn = calloc(1, sizeof *txn);
  size_t count = op->part_count, ops = 1;
  for (size_t i = 0; i < count; i++) ops += OPS_PER_PART + 2 * depth_of(op->parts[i].key);
  call->data = txn;
  call->clear = free_txn;
  if (!txn) return false;
  txn->call = call;
  txn->count = count;
  txn->parts = calloc(count + 1, sizeof *txn->parts);
  txn->ops = calloc(ops, sizeof *txn->ops);
  txn->results = calloc(ops, sizeof *txn->results);
  txn->owner = calloc(ops, sizeof *txn->owner);
  if (!txn->parts || !txn->ops || !txn->results || !txn->owner) return false;
  for (size_t i = 0; i < count; i++) {
    txn->parts[i].txn = txn;
    txn->parts[i].path = path_of(&op->parts[i]);
    if (!txn->parts[i].path) return false;
  }
  return true;
}

/* ------------------------------------------------------------------ building the multi */

static zoo_op_t *next_op(struct txn *txn, size_t part) {
  txn->results[txn->op_count] = (zoo_op_result_t){0};
  txn->owner[txn->op_count] = part;
  txn->bytes += strlen(txn->parts[part].path) + 128;
  return &txn->ops[txn->op_count++];
}

static const struct kv_part *request_of(const struct txn *txn, size_t index) {
  return &txn->call->op->parts[index];
}

static bool same_key(kv_slice a, kv_slice b) {
  return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

/* Does a later part write this key? */
static bool is_written(const struct txn *txn, size_t index) {
  for (size_t i = 0; i < txn->count; i++) {
    const struct kv_part *part = request_of(txn, i);
    bool writes = part->type == KV_PART_PUT || part->type == KV_PART_DELETE;
    if (writes && same_key(part->key, request_of(txn, index)->key)) return true;
  }
  return false;
}

static bool puts_below(const struct txn *txn, kv_slice key) {
  for (size_t i = 0; i < txn->count; i++) {
    const struct kv_part *part = request_of(txn, i);
    bool longer = part->type == KV_PART_PUT && part->key.size > key.size && part->key.data[key.size] == '/';
    if (longer && memcmp(part->key.data, key.data, key.size) == 0) return true;
  }
  return false;
}

static bool is_above(const char *path, const char *other) {
  size_t size = strlen(path);
  return strncmp(path, other, size) == 0 && other[size] == '/';
}

/* They stand in the list in the order of their depth. */
static void add_ancestors(struct txn *txn, size_t index) {
  for (size_t i = 0; i < txn->ancestor_count; i++) {
    struct ancestor *ancestor = &txn->ancestors[i];
    if (ancestor->is_there || ancestor->made || !is_above(ancestor->path, txn->parts[index].path)) continue;
    zoo_create_op_init(next_op(txn, index), ancestor->path, NULL, -1, &txn->call->zk->acl.vector, 0, NULL, 0);
    ancestor->made = true;
  }
}

/* The node of a part will be there: others need not make it. */
static void note_made(struct txn *txn, size_t index) {
  for (size_t i = 0; i < txn->ancestor_count; i++)
    if (strcmp(txn->ancestors[i].path, txn->parts[index].path) == 0) txn->ancestors[i].made = true;
}

static struct ancestor *ephemeral_above(struct txn *txn, const char *path) {
  for (size_t i = 0; i < txn->ancestor_count; i++)
    if (txn->ancestors[i].is_ephemeral && is_above(txn->ancestors[i].path, path)) return &txn->ancestors[i];
  return NULL;
}

static void add_absence(struct txn *txn, size_t index) {
  struct part *part = &txn->parts[index];
  const struct ancestor *ephemeral = ephemeral_above(txn, part->path);
  if (ephemeral) {
    zoo_check_op_init(next_op(txn, index), ephemeral->path, ephemeral->version);
    return;
  }
  add_ancestors(txn, index);
  zoo_create_op_init(next_op(txn, index), part->path, NULL, -1, &txn->call->zk->acl.vector, 0, NULL, 0);
  zoo_delete_op_init(next_op(txn, index), part->path, 0);
  for (size_t i = txn->ancestor_count; i-- > 0;) {
    struct ancestor *ancestor = &txn->ancestors[i];
    if (!ancestor->made || !is_above(ancestor->path, part->path)) continue;
    zoo_delete_op_init(next_op(txn, index), ancestor->path, 0);
    ancestor->made = false;
  }
}

/* Is the node that is there one that lives as long as the part wants? */
static bool is_of_kind(const struct txn *txn, size_t index) {
  const struct kv_part *request = request_of(txn, index);
  const struct part *part = &txn->parts[index];
  if (request->lease) return part->seen.ephemeralOwner == zoo_client_id(txn->call->session->handle)->client_id;
  return !part->seen.ephemeralOwner && part->ttl == (request->ttl > 0 ? zk_milliseconds(request->ttl) : 0);
}

static void add_put(struct txn *txn, size_t index) {
  const struct kv_part *request = request_of(txn, index);
  struct part *part = &txn->parts[index];
  const char *value = request->value.size ? request->value.data : "";
  int version = part->seen.version;
  if (!part->is_there || !is_of_kind(txn, index)) {
    add_ancestors(txn, index);
    note_made(txn, index);
    if (part->is_there) zoo_delete_op_init(next_op(txn, index), part->path, part->seen.version);
    zoo_create_op_init(next_op(txn, index), part->path, NULL, -1, &txn->call->zk->acl.vector,
                       request->lease ? ZOO_EPHEMERAL : 0, NULL, 0);
    version = part->is_there ? zk_sets(version) - 1 : 0;
    for (int i = 0; i < version; i++) zoo_set_op_init(next_op(txn, index), part->path, NULL, -1, i, &part->written);
  }
  txn->bytes += request->value.size;
  zoo_set_op_init(next_op(txn, index), part->path, value, (int)request->value.size, version, &part->written);
  part->writes = true;
}

static void add_delete(struct txn *txn, size_t index) {
  struct part *part = &txn->parts[index];
  bool keep = part->seen.numChildren > 0 || puts_below(txn, request_of(txn, index)->key);
  if (!part->is_there) {
    add_absence(txn, index);
  } else if (!part->is_key) {
    zoo_check_op_init(next_op(txn, index), part->path, part->seen.version);
  } else if (keep) {
    zoo_set_op_init(next_op(txn, index), part->path, NULL, -1, part->seen.version, &part->written);
    part->writes = true;
  } else {
    zoo_delete_op_init(next_op(txn, index), part->path, part->seen.version);
  }
}

static void add_part(struct txn *txn, size_t index) {
  struct part *part = &txn->parts[index];
  part->writes = false;
  switch (request_of(txn, index)->type) {
    case KV_PART_CHECK: zoo_check_op_init(next_op(txn, index), part->path, part->seen.version); break;
    case KV_PART_ABSENT:
      if (part->is_there) zoo_check_op_init(next_op(txn, index), part->path, part->seen.version);
      else if (!is_written(txn, index)) add_absence(txn, index);
      break;
    case KV_PART_GUARD: zoo_check_op_init(next_op(txn, index), part->path, 0); break;
    case KV_PART_PUT: add_put(txn, index); break;
    case KV_PART_DELETE: add_delete(txn, index); break;
  }
}

static bool is_put(const struct txn *txn, size_t index) {
  return request_of(txn, index)->type == KV_PART_PUT;
}

static bool removes(const struct txn *txn, size_t index) {
  return request_of(txn, index)->type == KV_PART_DELETE && txn->parts[index].is_key;
}

/* The shortest key that is put and longer than `size`; 0: there is none. */
static size_t next_size(const struct txn *txn, size_t size) {
  size_t found = 0;
  for (size_t i = 0; i < txn->count; i++) {
    size_t own = request_of(txn, i)->key.size;
    if (is_put(txn, i) && own > size && (!found || own < found)) found = own;
  }
  return found;
}

/*
 * Parents are put before what stands below them: a node that is made anew must have nothing there. What is removed may
 * have been the parent of something that is asserted to be absent.
 */
static void add_parts(struct txn *txn) {
  txn->op_count = txn->bytes = 0;
  for (size_t i = 0; i < txn->ancestor_count; i++) txn->ancestors[i].made = false;
  for (size_t i = 0; i < txn->count; i++)
    if (!is_put(txn, i) && !removes(txn, i)) add_part(txn, i);
  for (size_t i = 0; i < txn->count; i++)
    if (removes(txn, i)) add_part(txn, i);
  for (size_t size = next_size(txn, 0); size; size = next_size(txn, size))
    for (size_t i = 0; i < txn->count; i++)
      if (is_put(txn, i) && request_of(txn, i)->key.size == size) add_part(txn, i);
}

/* ------------------------------------------------------------------ the answer */

static void done(struct zk_call *call, int64_t revision) {
  const struct txn *txn = call->data;
  struct kv_op *op = call->op;
  op->result.revision = (uint64_t)revision;
  for (size_t i = 0; i < txn->count; i++) {
    const struct kv_part *request = request_of(txn, i);
    const struct Stat *written = &txn->parts[i].written;
    if (request->type != KV_PART_PUT) continue;
    if (request->ttl > 0) op->result.ttl_late = ZK_REAPER_SECONDS;
    /* Out of memory here would not undo it. */
    kv_zk->pair(op, request->key, (kv_slice){NULL, 0}, (uint64_t)written->mzxid, (uint64_t)written->czxid, false);
  }
  zk_finish(call, KV_OK, NULL);
}

/* Only deletes: the parent of one that is gone knows when. */
static void parent_looked_at(int result, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct txn *txn = call->data;
  if (result == ZOK && stat->pzxid > txn->revision) txn->revision = stat->pzxid;
  done(call, txn->revision);
}

static void committed(struct zk_call *call) {
  struct txn *txn = call->data;
  const char *removed = NULL;
  int64_t revision = 0;
  for (size_t i = 0; i < txn->count; i++) {
    const struct part *part = &txn->parts[i];
    if (part->writes && part->written.mzxid > revision) revision = part->written.mzxid;
    if (request_of(txn, i)->type == KV_PART_DELETE && part->is_key) removed = part->path;
    if (part->is_there && part->seen.mzxid > txn->revision) txn->revision = part->seen.mzxid;
  }
  if (revision || !removed) {
    done(call, revision ? revision : txn->revision);
    return;
  }
  char parent[ZK_PATH_MAX];
  snprintf(parent, sizeof parent, "%s", removed);
  zk_parent(parent);
  zk_sent(call, zoo_aexists(call->session->handle, parent, 0, parent_looked_at, call));
}

static void check_failed(struct zk_call *call, size_t index) {
  call->write_sent = false;
  call->op->result.failed_check = (int)index;
  zk_finish(call, KV_MODIFIED, "the key was changed, or is gone");
}

static void begin_again(struct zk_call *call) {
  call->write_sent = call->op->sent = false;
  if (zk_again(call)) look_at_all(call);
}

/* Those before it would have worked, those behind it were not looked at. */
static size_t first_failure(const struct txn *txn) {
  for (size_t i = 0; i < txn->op_count; i++)
    if (txn->results[i].err != ZOK && txn->results[i].err != ZRUNTIMEINCONSISTENCY) return i;
  return txn->op_count;
}

static void answered(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct txn *txn = call->data;
  if (result == ZOK) {
    committed(call);
    return;
  }
  size_t failed = first_failure(txn);
  bool is_race = result == ZBADVERSION || result == ZNONODE || result == ZNODEEXISTS || result == ZNOTEMPTY;
  if (result == ZNOCHILDRENFOREPHEMERALS && failed < txn->op_count && !is_put(txn, txn->owner[failed]) && !txn->deep)
    is_race = txn->deep = true;
  if (!is_race || failed == txn->op_count) {
    zk_fail(call, result);
  } else if (request_of(txn, txn->owner[failed])->type == KV_PART_GUARD) {
    check_failed(call, txn->owner[failed]);
  } else {
    if (result == ZNONODE) txn->deep = true;
    begin_again(call);
  }
}

/* ------------------------------------------------------------------ deciding */

/* May what was read be older than what the check is about? Revisions only grow. */
static bool may_be_old(const struct kv_part *request, const struct part *part) {
  return request->type != KV_PART_CHECK || !part->is_key || (uint64_t)part->seen.mzxid < request->revision;
}

/* False: the call is finished, or looks once more. */
static bool check_all(struct zk_call *call) {
  const struct txn *txn = call->data;
  for (size_t i = 0; i < txn->count; i++) {
    const struct kv_part *request = request_of(txn, i);
    const struct part *part = &txn->parts[i];
    bool holds = true;
    if (request->type == KV_PART_CHECK) holds = part->is_key && (uint64_t)part->seen.mzxid == request->revision;
    if (request->type == KV_PART_ABSENT) holds = !part->is_key;
    if (request->type == KV_PART_GUARD) holds = part->is_there;
    if (holds) continue;
    if (call->certain || !may_be_old(request, part)) {
      check_failed(call, i);
    } else {
      call->certain = true;
      look_at_all(call);
    }
    return false;
  }
  return true;
}

static bool can_all(struct zk_call *call) {
  const struct txn *txn = call->data;
  for (size_t i = 0; i < txn->count; i++) {
    const struct kv_part *request = request_of(txn, i);
    const struct part *part = &txn->parts[i];
    if (request->type != KV_PART_PUT || !part->is_there || is_of_kind(txn, i)) continue;
    const char *problem = NULL;
    if (part->seen.numChildren) problem = ZK_STUCK;
    else if (request->ttl > 0 && part->is_key) problem = "a key that is there gets no time to live in a transaction";
    if (!problem) continue;
    zk_finish(call, KV_UNSUPPORTED, "\"%.160s\": %s", part->path + 1, problem);
    return false;
  }
  return true;
}

static void commit(struct zk_call *call) {
  struct txn *txn = call->data;
  add_parts(txn);
  if (txn->bytes > ZK_PACKET_MAX) {
    zk_finish(call, KV_TOO_LARGE, "the transaction has %zu bytes, at most %zu are allowed", txn->bytes, ZK_PACKET_MAX);
  } else if (!txn->op_count) {
    done(call, txn->revision);
  } else {
    zk_writing(call);
    zk_sent(call, zoo_amulti(call->session->handle, (int)txn->op_count, txn->ops, txn->results, answered, call));
  }
}

/* ------------------------------------------------------------------ parents */

static bool is_noted(const struct txn *txn, const char *path) {
  for (size_t i = 0; i < txn->ancestor_count; i++)
    if (strcmp(txn->ancestors[i].path, path) == 0) return true;
  return false;
}

/* False: out of memory. */
static bool note_ancestor(struct txn *txn, const char *path) {
  if (is_noted(txn, path)) return true;
  if (txn->ancestor_count == txn->ancestor_capacity) {
    size_t capacity = txn->ancestor_capacity ? txn->ancestor_capacity * 2 : 16;
    struct ancestor *ancestors = realloc(txn->ancestors, capacity * sizeof *ancestors);
    if (!ancestors) return false;
    txn->ancestors = ancestors;
    txn->ancestor_capacity = capacity;
  }
  char *copy = strdup(path);
  if (!copy) return false;
  txn->ancestors[txn->ancestor_count++] = (struct ancestor){.txn = txn, .path = copy};
  return true;
}

/* Those of all parts that are not there, each once; of one part, in the order of their depth. */
static bool note_ancestors(struct txn *txn) {
  for (size_t i = 0; i < txn->ancestor_count; i++) free(txn->ancestors[i].path);
  txn->ancestor_count = 0;
  for (size_t i = 0; i < txn->count; i++) {
    char *path = txn->parts[i].path;
    if (txn->parts[i].is_there || request_of(txn, i)->type == KV_PART_GUARD) continue;
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
      *slash = '\0';
      bool noted = note_ancestor(txn, path);
      *slash = '/';
      if (!noted) return false;
    }
  }
  return true;
}

static void ancestor_seen(int result, const struct Stat *stat, const void *data) {
  struct ancestor *ancestor = (struct ancestor *)(uintptr_t)data;
  struct txn *txn = ancestor->txn;
  struct zk_call *call = txn->call;
  if (!zk_answered(call)) return;
  ancestor->is_there = result == ZOK;
  ancestor->is_ephemeral = result == ZOK && stat->ephemeralOwner;
  ancestor->version = result == ZOK ? stat->version : 0;
  if (result != ZOK && result != ZNONODE) txn->failure = result;
  if (call->pending) return;
  if (txn->failure != ZOK) zk_fail(call, txn->failure);
  else ready(call);
}

/* Needed when the first try said that something is missing. */
static void look_at_ancestors(struct zk_call *call) {
  struct txn *txn = call->data;
  if (!note_ancestors(txn)) {
    zk_finish(call, KV_FAILED, "out of memory");
    return;
  }
  for (size_t i = 0; i < txn->ancestor_count; i++) {
    struct ancestor *ancestor = &txn->ancestors[i];
    if (!zk_sent(call, zoo_aexists(call->session->handle, ancestor->path, 0, ancestor_seen, ancestor))) return;
  }
  if (!call->pending) ready(call);
}

/* ------------------------------------------------------------------ nodes with a time to live, made before */

static void prepared(struct zk_call *call, int result) {
  struct txn *txn = call->data;
  bool is_race = result == ZNODEEXISTS || result == ZNONODE || result == ZBADVERSION || result == ZNOTEMPTY;
  if (result == ZNONODE) txn->deep = true;
  if (result == ZNONODE && call->parents != ZOK) txn->failure = call->parents;
  if (result != ZOK && !is_race && txn->failure == ZOK) txn->failure = result;
  if (call->pending) return;
  if (txn->failure == ZUNIMPLEMENTED) zk_finish(call, KV_UNSUPPORTED, ZK_NO_TTL);
  else if (txn->failure != ZOK) zk_fail(call, txn->failure);
  else begin_again(call);
}

static void step_prepared(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (call) prepared(call, result);
}

/* One that may not be made may be there all the same. */
static void timed_parent_made(int result, const char *path, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)path;
  if (!call) return;
  bool is_definite = zk_code(result, false) != KV_UNAVAILABLE;
  if (is_definite && result != ZOK && result != ZNODEEXISTS && result != ZNONODE) call->parents = result;
  prepared(call, is_definite ? ZOK : result);
}

/* The server answers in order: the node is asked for behind its parents. False: the call is finished. */
static bool make_timed_parents(struct zk_call *call, char *path) {
  for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    int result =
      zoo_acreate(call->session->handle, path, NULL, -1, &call->zk->acl.vector, 0, timed_parent_made, call);
    *slash = '/';
    if (!zk_sent(call, result)) return false;
  }
  return true;
}

/* As a put does, also with a node that another one made: see put.c. False: the call is finished. */
static bool mark(struct zk_call *call, struct part *part, int64_t czxid) {
  size_t index = (size_t)(part - part->txn->parts);
  struct ACL_vector *acl = zk_acl_mark(&call->zk->acl, zk_milliseconds(request_of(part->txn, index)->ttl));
  part->marked = czxid;
  return zk_sent(call, zoo_aset_acl(call->session->handle, part->path, -1, acl, step_prepared, call));
}

static void timed_made(int result, const char *path, const struct Stat *stat, const void *data) {
  struct part *part = (struct part *)(uintptr_t)data;
  struct zk_call *call = part->txn->call;
  (void)path;
  if (!zk_answered(call)) return;
  if (result != ZOK || mark(call, part, stat->czxid)) prepared(call, result);
}

static bool needs_mark(const struct part *part) {
  return part->is_there && zk_is_blank(&part->seen) && part->marked != part->seen.czxid;
}

static bool needs_node(const struct txn *txn, size_t index) {
  const struct kv_part *request = request_of(txn, index);
  const struct part *part = &txn->parts[index];
  return request->type == KV_PART_PUT && request->ttl > 0 &&
         (!part->is_there || !is_of_kind(txn, index) || needs_mark(part));
}

/* False: the call is finished. */
static bool prepare_part(struct zk_call *call, size_t index) {
  struct txn *txn = call->data;
  struct part *part = &txn->parts[index];
  zhandle_t *handle = call->session->handle;
  int64_t ttl = zk_milliseconds(request_of(txn, index)->ttl);
  const struct ACL_vector *acl = zk_acl_mark(&call->zk->acl, ttl);
  if (part->is_there && is_of_kind(txn, index)) return mark(call, part, part->seen.czxid);
  if (!part->is_there && txn->deep && !make_timed_parents(call, part->path)) return false;
  int version = part->seen.version;
  if (part->is_there && !zk_sent(call, zoo_adelete(handle, part->path, version, step_prepared, call))) return false;
  return zk_sent(call, zoo_acreate2_ttl(handle, part->path, NULL, -1, acl, ZOO_PERSISTENT_WITH_TTL, zk_reaped(ttl),
                                        timed_made, part));
}

/* Parents first. True: it was begun, or failed. */
static bool prepare(struct zk_call *call) {
  struct txn *txn = call->data;
  bool begun = false;
  for (size_t size = next_size(txn, 0); size; size = next_size(txn, size)) {
    for (size_t i = 0; i < txn->count; i++) {
      if (request_of(txn, i)->key.size != size || !needs_node(txn, i)) continue;
      begun = true;
      if (!prepare_part(call, i)) return true;
    }
  }
  return begun;
}

static void ready(struct zk_call *call) {
  if (!prepare(call)) commit(call);
}

static void look_around(struct zk_call *call);

/* In portable mode each key that is put is looked around once the checks are known to hold; then all begins again. */
static bool is_unknown_ground(const struct zk_call *call) {
  return (call->op->flags & KV_PORTABLE) && call->step < call->op->part_count;
}

static void decide(struct zk_call *call) {
  struct txn *txn = call->data;
  if (txn->failure != ZOK) zk_fail(call, txn->failure);
  else if (!check_all(call)) return;
  else if (is_unknown_ground(call)) look_around(call);
  else if (can_all(call)) (txn->deep ? look_at_ancestors : ready)(call);
}

/* ------------------------------------------------------------------ looking */

static void acl_seen(int result, struct ACL_vector *vector, struct Stat *stat, const void *data) {
  struct part *part = (struct part *)(uintptr_t)data;
  struct txn *txn = part->txn;
  struct zk_call *call = txn->call;
  (void)stat;
  if (!zk_answered(call)) return;
  if (result == ZOK) part->ttl = zk_acl_marked(vector);
  else if (result != ZNONODE && result != ZNOAUTH) txn->failure = result;
  if (!call->pending) decide(call);
}

static void seen(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct part *part = (struct part *)(uintptr_t)data;
  struct txn *txn = part->txn;
  struct zk_call *call = txn->call;
  (void)value;
  if (!zk_answered(call)) return;
  result = zk_behind_sync(call, true, result);
  part->is_there = result == ZOK;
  part->is_key = result == ZOK && zk_is_key(size, stat);
  part->ttl = 0;
  part->seen = (struct Stat){0};
  if (result == ZOK) part->seen = *stat;
  else if (result != ZNONODE) txn->failure = result;
  bool sent = true;
  if (result == ZOK && (stat->aversion > 0 || zk_is_blank(stat)))
    sent = zk_sent(call, zoo_aget_acl(call->session->handle, part->path, acl_seen, part));
  if (sent && !call->pending) decide(call);
}

static void look_at_all(struct zk_call *call) {
  struct txn *txn = call->data;
  txn->failure = ZOK;
  if (!(call->certain ? zk_commit : zk_sync)(call->session)) {
    zk_finish(call, KV_UNAVAILABLE, "the request could not be sent");
    return;
  }
  for (size_t i = 0; i < txn->count; i++)
    if (!zk_sent(call, zoo_aget(call->session->handle, txn->parts[i].path, 0, seen, &txn->parts[i]))) return;
  if (!call->pending) decide(call);
}

static void begin(struct zk_call *call) {
  if (make(call)) look_at_all(call);
  else zk_finish(call, KV_FAILED, "out of memory");
}

/* One key that is put after the other. */
static void look_around(struct zk_call *call) {
  const struct kv_op *op = call->op;
  if (call->clear == free_txn) {
    free_txn(call);
    call->data = NULL;
    call->clear = NULL;
  }
  while (call->step < op->part_count && op->parts[call->step].type != KV_PART_PUT) call->step++;
  if (call->step == op->part_count) {
    begin(call);
    return;
  }
  kv_slice key = op->parts[call->step++].key;
  free(call->path);
  call->path = zk_path_copy(key);
  if (call->path) zk_check_portable(call, key, look_around);
  else zk_finish(call, KV_FAILED, "out of memory");
}

void zk_txn(struct zk *zk, struct kv_op *op) {
  struct zk_session *session = zk_main(zk);
  const struct kv_lease_ref *lease = NULL;
  for (size_t i = 0; i < op->part_count; i++) {
    const struct kv_part *part = &op->parts[i];
    if (!part->lease || part->lease == lease) continue;
    if (lease) {
      kv_zk->finish(op, KV_UNSUPPORTED, "on ZooKeeper each lease is a session, and a transaction belongs to one");
      return;
    }
    lease = part->lease;
    session = zk_lease_session(zk, lease);
    if (!session) {
      kv_zk->finish(op, KV_LOST, "the lease is gone");
      return;
    }
  }
  struct zk_call *call = zk_call_new(zk, session, op);
  if (call) zk_call_start(call, begin);
}
