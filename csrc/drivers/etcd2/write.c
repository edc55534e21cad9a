/*
 * write.c - put and delete.
 *
 * A put without a condition is an update, which keeps the beginning of the key's life, or else a creation; each tells
 * for certain that it is the other's turn. What the last put was is tried first: keys are made in rows and changed in
 * rows. With a condition it is a creation or a compare-and-swap.
 *
 * A compare that fails may have met a key under a lease, whose node's modifiedIndex is another one than its revision:
 * it is read, and compared once more with what it is now.
 */
#include <string.h>

#include "etcd2.h"

#define ROUNDS_MAX 24

enum mode { MODE_CREATE, MODE_UPDATE, MODE_SWAP, MODE_DELETE, MODE_DELETE_IF };

static void go(struct etcd2_call *call, enum mode mode);

/* ------------------------------------------------------------------ a compare that missed */

static bool is_key(const struct etcd2_call *call, const struct etcd2_found *found) {
  kv_slice key = call->op->key;
  return found->key_size == key.size && memcmp(found->bytes, key.data, key.size) == 0;
}

/* What stands there now; NULL: nothing. */
static const struct etcd2_found *there(const struct etcd2_call *call) {
  const struct etcd2_found *found;
  size_t at = 0;
  while (etcd2_listing_next(call->listing, &at, &found))
    if (is_key(call, found)) return found;
  return NULL;
}

static void look(struct etcd2_call *call, void (*then)(struct etcd2_call *call)) {
  if (!etcd2_listing_new(call, false, true)) return;
  etcd2_path(call, call->op->key);
  http_call_query(etcd2_base(call), "quorum=true");
  etcd2_send_read(call, then);
}

static void tell_modified(struct etcd2_call *call) {
  etcd2_finish(call, KV_MODIFIED, "the key was changed, or is gone");
}

static void compared(struct etcd2_call *call) {
  if (!etcd2_is_listing(call)) return;
  const struct etcd2_found *found = there(call);
  if (!found || found->dir || found->revision != call->op->revision) {
    tell_modified(call);
    return;
  }
  call->expected = found->modified;
  go(call, call->op->kind == KV_PUT ? MODE_SWAP : MODE_DELETE_IF);
}

/* ------------------------------------------------------------------ something is in the way of a put */

static void again(struct etcd2_call *call) {
  const struct kv_op *op = call->op;
  if (call->cleared)
    go(call, op->condition == KV_IF_ABSENT || call->etcd2->creating ? MODE_CREATE : MODE_UPDATE);
  else
    etcd2_finish(call, KV_IS_DIR, "the key is a directory");
}

static void seen(struct etcd2_call *call) {
  if (!etcd2_is_listing(call)) return;
  const struct etcd2_found *found = there(call);
  bool dir = etcd2_good(call) && !(found && !found->dir);
  if (found && !found->dir)
    etcd2_finish(call, KV_EXISTS, "the key is there");
  else if (dir)
    etcd2_clear(call, call->op->key, again);
  else
    go(call, MODE_CREATE);
}

/* ------------------------------------------------------------------ put */

static void put_done(struct etcd2_call *call) {
  struct kv_op *op = call->op;
  struct etcd2_node node = {.modified = call->index, .created = call->index};
  if (call->mode == MODE_CREATE ? !call->index : !etcd2_written(call, &node)) {
    if (call->mode == MODE_CREATE) http_call_garbled(etcd2_base(call));
    return;
  }
  if (node.dir) { /* etcd takes an update without a value for one of a directory's time to live, which it had none of */
    op->sent = false;
    etcd2_clear(call, op->key, again);
    return;
  }
  if (op->condition == KV_ALWAYS) call->etcd2->creating = call->mode == MODE_CREATE;
  op->result.revision = node.modified;
  op->result.created = node.created;
  if (op->ttl > 0) op->result.ttl_late = (double)etcd2_ttl(op->ttl) - op->ttl;
  if (op->lease && !etcd2_lease_add(call->etcd2, op->lease, op->key, node.modified))
    etcd2_finish(call, KV_FAILED, "out of memory: the key will not live longer than its lease's present time");
  else
    etcd2_finish(call, KV_OK, NULL);
}

static void put_refused(struct etcd2_call *call) {
  const struct kv_op *op = call->op;
  unsigned code = call->error.code;
  bool swap = call->mode == MODE_SWAP;
  if (swap && (code == ETCD2_NOT_FOUND || code == ETCD2_NOT_FILE || code == ETCD2_NOT_DIR))
    tell_modified(call);
  else if (swap && code == ETCD2_COMPARE_FAILED)
    look(call, compared);
  else if (call->mode == MODE_UPDATE && code == ETCD2_NOT_FOUND)
    go(call, MODE_CREATE);
  else if (call->mode == MODE_CREATE && code == ETCD2_EXISTS && op->condition == KV_ALWAYS)
    go(call, MODE_UPDATE);
  else if (call->mode == MODE_CREATE && code == ETCD2_EXISTS)
    look(call, seen);
  else if (code == ETCD2_NOT_FILE)
    etcd2_clear(call, op->key, again);
  else if (code == ETCD2_NOT_DIR)
    etcd2_finish(call, KV_NOT_DIR, "a key above it has a value");
  else
    etcd2_refuse(call);
}

static void put_told(struct etcd2_call *call) {
  if (etcd2_good(call)) {
    put_done(call);
    return;
  }
  kv_code code = etcd2_code(call->http.status, &call->error, true);
  if (code != KV_UNKNOWN) call->op->sent = false; /* refused: nothing was applied */
  put_refused(call);
}

/* ------------------------------------------------------------------ delete */

static void delete_told(struct etcd2_call *call) {
  struct kv_op *op = call->op;
  bool conditional = op->condition == KV_IF_REVISION;
  unsigned code = call->error.code;
  bool absent = code == ETCD2_NOT_FOUND || code == ETCD2_NOT_FILE || code == ETCD2_NOT_DIR;
  if (etcd2_good(call)) {
    op->result.found = true;
    etcd2_finish(call, KV_OK, NULL);
    return;
  }
  if (etcd2_code(call->http.status, &call->error, true) != KV_UNKNOWN) op->sent = false;
  if (absent && conditional)
    tell_modified(call);
  else if (absent)
    etcd2_finish(call, KV_OK, NULL); /* a directory is no key */
  else if (conditional && code == ETCD2_COMPARE_FAILED)
    look(call, compared);
  else
    etcd2_refuse(call);
}

/* ------------------------------------------------------------------ one request */

static void add_fields(struct etcd2_call *call, enum mode mode) {
  const struct kv_op *op = call->op;
  double ttl = op->lease ? op->lease->ttl : op->ttl;
  etcd2_field(call, "value", (kv_slice){call->value.data, call->value.size});
  if (mode == MODE_SWAP)
    etcd2_field_number(call, "prevIndex", call->expected);
  else
    etcd2_field(call, "prevExist", mode == MODE_UPDATE ? KV_TEXT("true") : KV_TEXT("false"));
  if (mode == MODE_CREATE) etcd2_field(call, "noValueOnSuccess", KV_TEXT("true"));
  if (ttl > 0) etcd2_field_number(call, "ttl", etcd2_ttl(ttl));
}

static void go(struct etcd2_call *call, enum mode mode) {
  if (call->rounds++ >= ROUNDS_MAX) {
    etcd2_finish(call, KV_UNAVAILABLE, "the key changes all the time");
    return;
  }
  call->mode = mode;
  etcd2_path(call, call->op->key);
  if (mode == MODE_DELETE || mode == MODE_DELETE_IF) {
    if (mode == MODE_DELETE_IF) http_call_query_number(etcd2_base(call), "prevIndex", call->expected);
    etcd2_send(call, "DELETE", true, delete_told);
    return;
  }
  add_fields(call, mode);
  etcd2_send(call, "PUT", true, put_told);
}

/* A directory that stays: something hidden in it tells it from those that are merely left over. */
static void dir_told(struct etcd2_call *call) {
  struct etcd2_node node;
  if (call->error.code == ETCD2_NOT_DIR)
    etcd2_finish(call, KV_NOT_DIR, "it, or a key above it, has a value");
  else if (!etcd2_good(call))
    etcd2_refuse(call);
  else if (etcd2_written(call, &node)) {
    call->op->result.revision = node.modified;
    call->op->result.created = node.created;
    etcd2_finish(call, KV_OK, NULL);
  }
}

static void put_dir(struct etcd2_call *call) {
  http_call_path(etcd2_base(call), "/v2/keys/", call->op->key, "/_kv_dir");
  etcd2_field(call, "value", KV_TEXT("directory"));
  etcd2_send(call, "PUT", true, dir_told);
}

void etcd2_put(struct etcd2 *etcd2, struct kv_op *op) {
  struct etcd2_call *call = etcd2_call_new(etcd2, op);
  if (!call) return;
  if (op->flags & KV_DIR) {
    put_dir(call);
    return;
  }
  /* An empty value with a time to live would be given to a directory that stands there, with all that is in it. */
  bool marked = !op->value.size && op->ttl > 0;
  if (!etcd2_encode(&call->value, op->value, op->lease ? op->lease->id : 0, marked)) {
    http_call_no_memory(etcd2_base(call));
    return;
  }
  call->expected = op->revision;
  if (op->condition == KV_IF_REVISION && !op->revision)
    tell_modified(call); /* etcd takes 0 for no condition */
  else if (op->condition == KV_IF_REVISION)
    go(call, MODE_SWAP);
  else
    go(call, op->condition == KV_IF_ABSENT || etcd2->creating ? MODE_CREATE : MODE_UPDATE);
}

void etcd2_delete(struct etcd2 *etcd2, struct kv_op *op) {
  struct etcd2_call *call = etcd2_call_new(etcd2, op);
  if (!call) return;
  call->expected = op->revision;
  if (op->condition == KV_IF_REVISION && !op->revision)
    tell_modified(call);
  else
    go(call, op->condition == KV_IF_REVISION ? MODE_DELETE_IF : MODE_DELETE);
}
