/*
 * lease.c - leases. etcd v2 has none: a lease is what this process does for keys that have a time to live each. A lease
 * of keys also has a node of its own, `_kv/lease/ID`, which tells whether the server still knows of us.
 *
 * A renewal sets the time to live of each key again, only if the node is the one that we know. That changes the
 * modifiedIndex of the node, but nobody who watches is told, and it is no change of the key: so before the first
 * renewal the value gets a mark that says which revision the key has.
 *
 * Each key is renewed by a request of its own, one after the other. What is not ours any more is forgotten.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "etcd2.h"

/* ------------------------------------------------------------------ memory */

static void held_free(struct etcd2_held **at) {
  struct etcd2_held *held = *at;
  *at = held->next;
  free(held);
}

static void lease_free(struct etcd2_lease **at) {
  struct etcd2_lease *lease = *at;
  *at = lease->next;
  while (lease->keys) held_free(&lease->keys);
  free(lease);
}

void etcd2_leases_free(struct etcd2 *etcd2) {
  while (etcd2->leases) lease_free(&etcd2->leases);
}

struct etcd2_lease *etcd2_lease_find(struct etcd2 *etcd2, uint64_t id) {
  struct etcd2_lease *lease = etcd2->leases;
  while (lease && lease->id != id) lease = lease->next;
  return lease;
}

/* Those that nobody gave back have run out long ago. */
static void drop_old(struct etcd2 *etcd2) {
  int64_t now = kv_etcd2->now();
  struct etcd2_lease **at = &etcd2->leases;
  while (*at) {
    struct etcd2_lease *lease = *at;
    if ((double)(now - lease->used) / (double)ETCD2_SECOND > 3 * lease->ttl + 60)
      lease_free(at);
    else
      at = &lease->next;
  }
}

static void forget(struct etcd2 *etcd2, uint64_t id) {
  struct etcd2_lease **at = &etcd2->leases;
  while (*at && (*at)->id != id) at = &(*at)->next;
  if (*at) lease_free(at);
}

static struct etcd2_lease *remember(struct etcd2 *etcd2, const struct kv_lease_ref *ref) {
  struct etcd2_lease *lease = etcd2_lease_find(etcd2, ref->id);
  if (!lease) {
    drop_old(etcd2);
    lease = calloc(1, sizeof *lease);
    if (!lease) return NULL;
    lease->id = ref->id;
    lease->next = etcd2->leases;
    etcd2->leases = lease;
  }
  lease->ttl = ref->ttl;
  lease->used = kv_etcd2->now();
  return lease;
}

bool etcd2_lease_add(struct etcd2 *etcd2, const struct kv_lease_ref *ref, kv_slice key, uint64_t modified) {
  struct etcd2_lease *lease = remember(etcd2, ref);
  if (!lease) return false;
  struct etcd2_held *held = lease->keys;
  while (held && !(held->key_size == key.size && memcmp(held->key, key.data, key.size) == 0)) held = held->next;
  if (held) {
    if (modified > held->modified) {
      held->modified = modified;
      held->marked = false;
    }
    return true;
  }
  held = calloc(1, sizeof *held + key.size);
  if (!held) return false;
  held->modified = modified;
  held->key_size = (uint16_t)key.size;
  memcpy(held->key, key.data, key.size);
  held->next = lease->keys;
  lease->keys = held;
  return true;
}

/* ------------------------------------------------------------------ a key at a time */

/* The key that call->name names, if the lease has it still. */
static struct etcd2_held **current(struct etcd2_call *call) {
  struct etcd2_lease *lease = etcd2_lease_find(call->etcd2, call->lease);
  if (!lease) return NULL;
  struct etcd2_held **at = &lease->keys;
  while (*at && !((*at)->key_size == call->name.size && memcmp((*at)->key, call->name.data, call->name.size) == 0))
    at = &(*at)->next;
  return *at ? at : NULL;
}

static kv_slice name_of(const struct etcd2_call *call) {
  return (kv_slice){call->name.data, call->name.size};
}

/* Go on to the key behind call->name, or the first one. False: there is none. */
static bool next_key(struct etcd2_call *call) {
  struct etcd2_lease *lease = etcd2_lease_find(call->etcd2, call->lease);
  struct etcd2_held **at = call->name.size ? current(call) : NULL;
  struct etcd2_held *held = at ? (*at)->next : lease && !call->name.size ? lease->keys : NULL;
  if (!held) return false;
  call->name.size = held->key_size;
  memcpy(call->name.data, held->key, held->key_size);
  return true;
}

/* As next_key(), and forget the one that it comes from. */
static bool drop_key(struct etcd2_call *call) {
  struct etcd2_held **at = current(call);
  bool more = next_key(call);
  if (at) held_free(at);
  return more;
}

static void read_key(struct etcd2_call *call, void (*then)(struct etcd2_call *call)) {
  etcd2_path(call, name_of(call));
  http_call_query(etcd2_base(call), "quorum=true");
  etcd2_send(call, "GET", false, then);
}

/* Is what was read the key as this lease put it? Then *answer is to be freed by the caller. */
static bool is_ours(struct etcd2_call *call, struct etcd2_node *node, struct json **answer) {
  *answer = etcd2_good(call) ? json_read(call->http.answer) : NULL;
  if (etcd2_read_node(json_member(*answer, "node"), node) && !node->dir && node->mark.lease == call->lease) return true;
  json_free(*answer);
  *answer = NULL;
  return false;
}

static bool is_absent(const struct etcd2_call *call) {
  return call->error.code == ETCD2_NOT_FOUND || call->error.code == ETCD2_NOT_DIR ||
         call->error.code == ETCD2_NOT_FILE;
}

/* ------------------------------------------------------------------ renewing */

static void renew_key(struct etcd2_call *call);

static void renew_end(struct etcd2_call *call) {
  call->op->lease->granted = (double)etcd2_ttl(call->op->lease->ttl);
  etcd2_finish(call, KV_OK, NULL);
}

static void renew_next(struct etcd2_call *call, bool forget_this) {
  bool more = forget_this ? drop_key(call) : next_key(call);
  call->rounds = 0;
  if (more)
    renew_key(call);
  else
    renew_end(call);
}

/* A value with a mark is there, or a time to live was set again: what is its index now? */
static void key_renewed(struct etcd2_call *call) {
  struct etcd2_node node;
  struct etcd2_held **at;
  if (etcd2_good(call)) {
    if (!etcd2_written(call, &node)) return;
    at = current(call);
    if (at) {
      (*at)->modified = node.modified;
      (*at)->marked = true;
    }
    renew_next(call, false);
  } else if (is_absent(call)) {
    renew_next(call, true);
  } else if (call->error.code == ETCD2_COMPARE_FAILED) {
    at = current(call);
    if (at) (*at)->marked = false; /* look at it */
    renew_key(call);
  } else {
    etcd2_refuse(call);
  }
}

static void refresh(struct etcd2_call *call, uint64_t modified) {
  etcd2_path(call, name_of(call));
  etcd2_field(call, "refresh", KV_TEXT("true"));
  etcd2_field_number(call, "prevIndex", modified);
  etcd2_field_number(call, "ttl", etcd2_ttl(call->op->lease->ttl));
  /* The compare makes it harmless when it is sent again. */
  etcd2_send(call, "PUT", false, key_renewed);
}

static void key_read(struct etcd2_call *call) {
  struct etcd2_node node;
  struct json *answer;
  if (!etcd2_good(call) && !is_absent(call)) {
    etcd2_refuse(call);
    return;
  }
  if (!is_ours(call, &node, &answer)) {
    renew_next(call, true);
    return;
  }
  bool marked = node.mark.revision != 0;
  call->value.size = 0;
  if (!marked && !etcd2_remark(&call->value, &node, node.modified)) call->failed = true;
  uint64_t modified = node.modified;
  json_free(answer);
  if (marked) {
    refresh(call, modified);
    return;
  }
  etcd2_path(call, name_of(call));
  etcd2_field(call, "value", (kv_slice){call->value.data, call->value.size});
  etcd2_field_number(call, "prevIndex", modified);
  etcd2_field_number(call, "ttl", etcd2_ttl(call->op->lease->ttl));
  etcd2_send(call, "PUT", false, key_renewed);
}

static void renew_key(struct etcd2_call *call) {
  struct etcd2_held **at = current(call);
  if (!at || call->rounds++ > 8) {
    renew_next(call, at != NULL);
    return;
  }
  if ((*at)->marked)
    refresh(call, (*at)->modified);
  else
    read_key(call, key_read);
}

/* ------------------------------------------------------------------ the lease's own node */

static void lease_path(struct etcd2_call *call) {
  char text[40];
  int size = snprintf(text, sizeof text, "_kv/lease/%016" PRIx64, call->lease);
  etcd2_path(call, (kv_slice){text, (size_t)size});
}

static void node_renewed(struct etcd2_call *call) {
  if (call->error.code == ETCD2_NOT_FOUND) {
    forget(call->etcd2, call->lease);
    etcd2_finish(call, KV_LOST, "the lease has expired");
  } else if (!etcd2_good(call)) {
    etcd2_refuse(call);
  } else {
    call->name.size = 0;
    renew_next(call, false);
  }
}

void etcd2_lease_renew(struct etcd2 *etcd2, struct kv_op *op) {
  struct etcd2_lease *lease = remember(etcd2, op->lease);
  if (!lease || (op->lease->for_lock && !op->place && !lease->entry.size)) { /* nothing of it is on the server */
    op->lease->granted = (double)etcd2_ttl(op->lease->ttl);
    kv_etcd2->finish(op, lease ? KV_OK : KV_FAILED, lease ? NULL : "out of memory");
    return;
  }
  struct etcd2_call *call = etcd2_call_new(etcd2, op);
  if (!call) return;
  call->lease = op->lease->id;
  if (op->lease->for_lock) {
    etcd2_queue_renew(call, &lease->entry);
    return;
  }
  lease_path(call);
  etcd2_field(call, "refresh", KV_TEXT("true"));
  etcd2_field(call, "prevExist", KV_TEXT("true"));
  etcd2_field_number(call, "ttl", etcd2_ttl(op->lease->ttl));
  etcd2_send(call, "PUT", false, node_renewed);
}

static void granted(struct etcd2_call *call) {
  if (!etcd2_good(call)) {
    etcd2_refuse(call);
    return;
  }
  if (call->op) call->op->lease->granted = (double)etcd2_ttl(call->op->lease->ttl);
  etcd2_finish(call, KV_OK, NULL);
}

/* The entry of a lock is its lease. */
void etcd2_lease_grant(struct etcd2 *etcd2, struct kv_op *op) {
  struct etcd2_lease *lease = remember(etcd2, op->lease);
  if (!lease || op->lease->for_lock) {
    op->lease->granted = (double)etcd2_ttl(op->lease->ttl);
    kv_etcd2->finish(op, lease ? KV_OK : KV_FAILED, lease ? NULL : "out of memory");
    return;
  }
  struct etcd2_call *call = etcd2_call_new(etcd2, op);
  if (!call) return;
  call->lease = op->lease->id;
  lease_path(call);
  etcd2_field(call, "value", KV_TEXT("lease"));
  etcd2_field_number(call, "ttl", etcd2_ttl(op->lease->ttl));
  etcd2_send(call, "PUT", false, granted); /* the same once more when it is sent again */
}

/* ------------------------------------------------------------------ giving it back */

static void revoke_key(struct etcd2_call *call);

static void revoke_end(struct etcd2_call *call) {
  forget(call->etcd2, call->lease);
  etcd2_finish(call, KV_OK, NULL);
}

/* The last request: whatever is left of a directory, or of nothing, is no failure. */
static void rest_deleted(struct etcd2_call *call) {
  bool settled = etcd2_good(call) || call->error.code == ETCD2_NOT_EMPTY || is_absent(call);
  if (settled)
    revoke_end(call);
  else
    etcd2_refuse(call);
}

/* Unless others are in it. */
static void delete_queue(struct etcd2_call *call, const struct etcd2_lease *lease) {
  etcd2_path(call, (kv_slice){lease->queue.data, lease->queue.size});
  http_call_query(etcd2_base(call), "dir=true");
  etcd2_send(call, "DELETE", false, rest_deleted);
}

static void entry_deleted(struct etcd2_call *call) {
  struct etcd2_lease *lease = etcd2_lease_find(call->etcd2, call->lease);
  if (!etcd2_good(call) && !is_absent(call)) {
    etcd2_refuse(call);
  } else if (!lease) {
    etcd2_finish(call, KV_OK, NULL);
  } else {
    delete_queue(call, lease);
  }
}

static void revoke_rest(struct etcd2_call *call) {
  struct etcd2_lease *lease = etcd2_lease_find(call->etcd2, call->lease);
  if (lease && lease->queue.size) {
    if (!lease->entry.size) {
      delete_queue(call, lease);
      return;
    }
    etcd2_path(call, (kv_slice){lease->entry.data, lease->entry.size});
    etcd2_send(call, "DELETE", false, entry_deleted);
    return;
  }
  if (call->op && call->op->lease->for_lock) {
    revoke_end(call);
    return;
  }
  lease_path(call);
  etcd2_send(call, "DELETE", false, rest_deleted);
}

static void revoke_next(struct etcd2_call *call) {
  call->rounds = 0;
  if (drop_key(call))
    revoke_key(call);
  else
    revoke_rest(call);
}

static void key_revoked(struct etcd2_call *call);

static void delete_key(struct etcd2_call *call, uint64_t modified) {
  etcd2_path(call, name_of(call));
  http_call_query_number(etcd2_base(call), "prevIndex", modified);
  etcd2_send(call, "DELETE", false, key_revoked);
}

static void revoke_read(struct etcd2_call *call) {
  struct etcd2_node node;
  struct json *answer;
  if (!etcd2_good(call) && !is_absent(call)) {
    etcd2_refuse(call);
  } else if (is_ours(call, &node, &answer)) {
    uint64_t modified = node.modified;
    json_free(answer);
    delete_key(call, modified);
  } else {
    revoke_next(call);
  }
}

static void key_revoked(struct etcd2_call *call) {
  if (call->error.code == ETCD2_COMPARE_FAILED && call->rounds++ < 8)
    read_key(call, revoke_read);
  else if (etcd2_good(call) || is_absent(call) || call->error.code == ETCD2_COMPARE_FAILED)
    revoke_next(call);
  else
    etcd2_refuse(call);
}

static void revoke_key(struct etcd2_call *call) {
  struct etcd2_held **at = current(call);
  if (at)
    delete_key(call, (*at)->modified);
  else
    revoke_rest(call);
}

void etcd2_lease_revoke(struct etcd2 *etcd2, struct kv_op *op) {
  struct etcd2_lease *lease = etcd2_lease_find(etcd2, op->lease->id);
  if (op->lease->for_lock && (!lease || !lease->queue.size)) {
    forget(etcd2, op->lease->id);
    kv_etcd2->finish(op, KV_OK, NULL);
    return;
  }
  struct etcd2_call *call = etcd2_call_new(etcd2, op);
  if (!call) return;
  call->lease = op->lease->id;
  call->undo = true;
  if (next_key(call))
    revoke_key(call);
  else
    revoke_rest(call);
}
