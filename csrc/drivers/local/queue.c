/*
 * queue.c - the queue of a lock, in a write transaction. A place is a record under the lock's name and an order,
 * which is the revision at which it was made: the first living place of a name holds the lock, and its order is the
 * token. A place is alive until its time is up, it is left, or its owner's process is dead; dead ones are removed
 * by whoever meets them.
 *
 * Each place that goes leaves a record in the history, which wakes the one that waits for it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "local.h"

static void place_key(struct kv_local_key *name, kv_slice ref) {
  name->bytes[0] = LOCAL_QUEUE;
  name->size = 1 + ref.size;
  if (name->size > sizeof name->bytes) name->size = sizeof name->bytes;
  memcpy(name->bytes + 1, ref.data, name->size - 1);
}

static int read_place(struct kv_local_batch *batch, struct kv_local_key *name, struct kv_local_place *place,
                      bool *found) {
  MDB_val key = kv_local_val(name), value;
  int rc = mdb_get(batch->txn, batch->env->dbi, &key, &value);
  *found = !rc;
  if (rc) return rc == MDB_NOTFOUND ? 0 : rc;
  return kv_local_place_read(&value, place) ? 0 : MDB_CORRUPTED;
}

int kv_local_place_remove(struct kv_local_batch *batch, kv_slice ref) {
  struct kv_local_key name, other;
  struct kv_local_place place;
  bool found;
  if (ref.size < 9) return 0;
  place_key(&name, ref);
  int rc = read_place(batch, &name, &place, &found);
  if (rc || !found) return rc;
  uint64_t lease = place.lease;
  kv_local_key_expiry(&other, place.expiry, LOCAL_OF_PLACE, ref);
  rc = kv_local_delete_raw(batch, &other);
  kv_local_key_attached(&other, lease, LOCAL_OF_PLACE, ref);
  if (!rc) rc = kv_local_delete_raw(batch, &other);
  if (!rc) rc = kv_local_delete_raw(batch, &name);
  if (!rc) rc = kv_local_lease_remove_keys(batch, lease);
  if (rc) return rc;
  kv_local_next_revision(batch);
  return kv_local_history_add(batch, LOCAL_GONE, (kv_slice){"", 0}, (kv_slice){"", 0},
                              kv_local_number(name.bytes + name.size - 8));
}

static kv_slice ref_of(const struct kv_local_key *name) {
  return (kv_slice){(const char *)name->bytes + 1, name->size - 1};
}

static bool same_id(const struct kv_local_place *entry, const struct kv_place *place) {
  return strncmp(entry->id, place->id, sizeof entry->id) == 0;
}

/* Find the entry of `place` by its ticket, or by its id when the answer to JOIN was lost. Dead: removed, not found. */
static int find(struct kv_local_batch *batch, const struct kv_place *place, struct kv_local_key *name,
                struct kv_local_place *entry, bool *found) {
  MDB_cursor *cursor;
  MDB_val key, value;
  int rc;
  *found = false;
  if (*place->ticket) {
    kv_local_key_place(name, place->name, kv_local_order(place->ticket));
    rc = read_place(batch, name, entry, found);
    if (!rc && *found) *found = same_id(entry, place);
  } else {
    kv_local_key_place(name, place->name, 0);
    size_t prefix = name->size - 8;
    rc = mdb_cursor_open(batch->txn, batch->env->dbi, &cursor);
    if (rc) return rc;
    key = kv_local_val(name);
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    for (; !rc && key.mv_size == name->size && kv_local_begins(&key, name, prefix);
         rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
      *found = kv_local_place_read(&value, entry) && same_id(entry, place);
      if (!*found) continue;
      memcpy(name->bytes, key.mv_data, key.mv_size);
      break;
    }
    mdb_cursor_close(cursor);
    if (rc == MDB_NOTFOUND) rc = 0;
  }
  if (rc || !*found || entry->expiry > batch->moment.now) return rc;
  *found = false;
  return kv_local_place_remove(batch, ref_of(name));
}

/* The nearest living place before `own`; dead ones on the way are removed. 0: there is none. */
static int find_ahead(struct kv_local_batch *batch, const struct kv_local_key *own, uint64_t *order) {
  *order = 0;
  for (;;) {
    struct kv_local_key name = *own;
    struct kv_local_place entry;
    MDB_cursor *cursor;
    MDB_val key = kv_local_val(&name), value;
    int rc = mdb_cursor_open(batch->txn, batch->env->dbi, &cursor);
    if (rc) return rc;
    rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    if (!rc) rc = mdb_cursor_get(cursor, &key, &value, MDB_PREV);
    bool there = !rc && key.mv_size == own->size && kv_local_begins(&key, own, own->size - 8) &&
                 kv_local_place_read(&value, &entry);
    if (there) memcpy(name.bytes, key.mv_data, key.mv_size);
    mdb_cursor_close(cursor);
    if (rc && rc != MDB_NOTFOUND) return rc;
    if (!there) return 0;
    if (kv_local_place_alive(&batch->moment, &entry)) {
      *order = kv_local_number(name.bytes + name.size - 8);
      return 0;
    }
    rc = kv_local_place_remove(batch, ref_of(&name));
    if (rc) return rc;
  }
}

/* Of a semaphore: the nearest places before `own`, as many as may hold it. */
static int answer_nearest(struct kv_local_batch *batch, struct kv_local_item *item, const struct kv_local_key *own) {
  struct kv_place *place = item->op->place;
  struct kv_local_key at = *own;
  struct kv_local_place entry;
  char ticket[LOCAL_ORDER_TEXT];
  uint64_t order;
  uint32_t count = 0;
  bool found;
  int rc = 0;
  while (!rc && count < place->limit && !(rc = find_ahead(batch, &at, &order)) && order) {
    kv_local_key_place(&at, place->name, order);
    rc = read_place(batch, &at, &entry, &found);
    if (rc) return rc;
    kv_local_order_text(ticket, order);
    kv_slice id = {entry.id, strnlen(entry.id, sizeof entry.id)};
    if (!kv_local_host->pair(item->op, (kv_slice){ticket, strlen(ticket)}, id, order, 1, false))
      return kv_local_refuse(item, KV_FAILED, "out of memory");
    count++;
  }
  if (rc) return rc;
  item->result.found = (count < place->limit) == (item->op->kind == KV_QUEUE_CLAIM);
  place->token = kv_local_number(own->bytes + own->size - 8);
  return 0;
}

static int answer_ahead(struct kv_local_batch *batch, struct kv_local_item *item, const struct kv_local_key *own) {
  struct kv_place *place = item->op->place;
  uint64_t order;
  if (place->limit) return answer_nearest(batch, item, own);
  int rc = find_ahead(batch, own, &order);
  if (rc) return rc;
  if (item->op->kind == KV_QUEUE_CLAIM) {
    place->token = kv_local_number(own->bytes + own->size - 8);
    item->result.found = !order;
    return 0;
  }
  item->result.found = order != 0;
  if (!order) return 0;
  place->ahead_revision = order;
  kv_local_order_text(place->ahead, order);
  return 0;
}

static int join(struct kv_local_batch *batch, struct kv_local_item *item) {
  struct kv_place *place = item->op->place;
  struct kv_local_key name, other;
  struct kv_local_place entry;
  unsigned char head[LOCAL_PLACE_HEAD];
  kv_slice none = {"", 0};
  bool found;
  int rc = find(batch, place, &name, &entry, &found);
  if (rc) return rc;
  if (!found) {
    memset(&entry, 0, sizeof entry);
    entry.lease = place->lease->id;
    entry.ttl = kv_local_deadline(0, place->lease->granted > 0 ? place->lease->granted : place->lease->ttl);
    entry.expiry = batch->moment.now + entry.ttl;
    memcpy(entry.id, place->id, strnlen(place->id, sizeof entry.id));
    entry.owner = kv_local_owner_ensure(batch->env);
    if (!entry.owner)
      return kv_local_refuse(item, kv_local_code(errno), "cannot make a file in owners: %s", strerror(errno));
    kv_local_next_revision(batch);
    kv_local_key_place(&name, place->name, batch->revision);
    kv_local_place_head(&entry, head);
    rc = kv_local_put_raw(batch, &name, head, sizeof head, place->value, 0);
    kv_local_key_expiry(&other, entry.expiry, LOCAL_OF_PLACE, ref_of(&name));
    if (!rc) rc = kv_local_put_raw(batch, &other, NULL, 0, none, 0);
    kv_local_key_attached(&other, entry.lease, LOCAL_OF_PLACE, ref_of(&name));
    if (!rc) rc = kv_local_put_raw(batch, &other, NULL, 0, none, 0);
    if (!rc) rc = kv_local_history_add(batch, LOCAL_NOTHING, none, none, 0); /* a revision is never given out twice */
    if (rc) return rc;
  }
  place->token = kv_local_number(name.bytes + name.size - 8);
  kv_local_order_text(place->ticket, place->token);
  item->result.answered_ahead = true;
  return answer_ahead(batch, item, &name);
}

/* Our entry, or KV_LOST. */
static int find_or_lost(struct kv_local_batch *batch, struct kv_local_item *item, struct kv_local_key *name,
                        struct kv_local_place *entry) {
  bool found;
  int rc = find(batch, item->op->place, name, entry, &found);
  if (!rc && !found) kv_local_refuse(item, KV_LOST, "the place in the queue is gone");
  return rc;
}

static int ahead(struct kv_local_batch *batch, struct kv_local_item *item) {
  struct kv_local_key name;
  struct kv_local_place entry;
  int rc = find_or_lost(batch, item, &name, &entry);
  return rc || item->code != KV_OK ? rc : answer_ahead(batch, item, &name);
}

static int leave(struct kv_local_batch *batch, struct kv_local_item *item) {
  struct kv_local_key name;
  struct kv_local_place entry;
  bool found;
  int rc = find(batch, item->op->place, &name, &entry, &found);
  item->result.found = found;
  return rc || !found ? rc : kv_local_place_remove(batch, ref_of(&name));
}

static int head(struct kv_local_batch *batch, struct kv_local_item *item) {
  struct kv_place *place = item->op->place;
  struct kv_local_key end;
  struct kv_local_place entry;
  uint64_t order, last = 0;
  bool found = false;
  kv_local_key_place(&end, place->name, UINT64_MAX);
  int rc = find_ahead(batch, &end, &order);
  while (!rc && order) { /* down to the first */
    last = order;
    kv_local_key_place(&end, place->name, order);
    rc = find_ahead(batch, &end, &order);
  }
  if (rc || !last) return rc;
  kv_local_key_place(&end, place->name, last);
  rc = read_place(batch, &end, &entry, &found);
  if (rc || !found) return rc;
  if (!kv_local_host->pair(item->op, place->name, entry.value, last, last, false))
    return kv_local_refuse(item, KV_FAILED, "out of memory");
  return 0;
}

/* Give a place a new time. */
static int renew_entry(struct kv_local_batch *batch, struct kv_local_item *item, struct kv_local_key *name,
                       const struct kv_local_place *entry) {
  struct kv_local_key other;
  MDB_val key = kv_local_val(name), value;
  int64_t expiry = batch->moment.now + entry->ttl;
  kv_local_key_expiry(&other, entry->expiry, LOCAL_OF_PLACE, ref_of(name));
  int rc = kv_local_delete_raw(batch, &other);
  kv_local_key_expiry(&other, expiry, LOCAL_OF_PLACE, ref_of(name));
  if (!rc) rc = kv_local_put_raw(batch, &other, NULL, 0, (kv_slice){"", 0}, 0);
  if (!rc) rc = mdb_get(batch->txn, batch->env->dbi, &key, &value);
  if (rc) return rc;
  char *bytes = malloc(value.mv_size); /* the value may not be written from the map it lies in */
  if (!bytes) return ENOMEM;
  memcpy(bytes, value.mv_data, value.mv_size);
  memcpy(bytes, &expiry, sizeof expiry); /* it comes first */
  item->op->lease->granted = (double)entry->ttl / (double)LOCAL_SECOND;
  rc = kv_local_put_raw(batch, name, NULL, 0, (kv_slice){bytes, value.mv_size}, 0);
  free(bytes);
  return rc;
}

/* The place that a lease serves, when the op does not name it. */
static int find_by_lease(struct kv_local_batch *batch, uint64_t lease, struct kv_local_key *name,
                         struct kv_local_place *entry, bool *found) {
  struct kv_local_key prefix;
  MDB_cursor *cursor;
  MDB_val key, value;
  *found = false;
  kv_local_key_attached(&prefix, lease, LOCAL_OF_PLACE, (kv_slice){"", 0});
  int rc = mdb_cursor_open(batch->txn, batch->env->dbi, &cursor);
  if (rc) return rc;
  key = kv_local_val(&prefix);
  rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
  if (!rc && kv_local_begins(&key, &prefix, prefix.size)) {
    place_key(name, (kv_slice){(const char *)key.mv_data + prefix.size, key.mv_size - prefix.size});
    *found = true;
  }
  mdb_cursor_close(cursor);
  if (rc == MDB_NOTFOUND) rc = 0;
  if (!rc && *found) rc = read_place(batch, name, entry, found);
  if (!rc && *found && entry->expiry <= batch->moment.now) *found = false;
  return rc;
}

int kv_local_place_find(struct kv_local_batch *batch, uint64_t lease, bool *found) {
  struct kv_local_key name;
  struct kv_local_place entry;
  return find_by_lease(batch, lease, &name, &entry, found);
}

static int renew(struct kv_local_batch *batch, struct kv_local_item *item) {
  const struct kv_op *op = item->op;
  struct kv_local_key name;
  struct kv_local_place entry;
  bool found;
  int rc = op->place ? find(batch, op->place, &name, &entry, &found)
                     : find_by_lease(batch, op->lease->id, &name, &entry, &found);
  if (rc) return rc;
  if (!found) return kv_local_refuse(item, KV_LOST, "the place in the queue is gone");
  return renew_entry(batch, item, &name, &entry);
}

int kv_local_queue_step(struct kv_local_batch *batch, struct kv_local_item *item) {
  switch (item->op->kind) {
    case KV_QUEUE_JOIN: return join(batch, item);
    case KV_QUEUE_AHEAD: case KV_QUEUE_CLAIM: return ahead(batch, item);
    case KV_QUEUE_LEAVE: return leave(batch, item);
    case KV_QUEUE_HEAD: return head(batch, item);
    case KV_LEASE_RENEW: return renew(batch, item);
    default: return 0;
  }
}

int kv_local_guard(struct kv_local_batch *batch, const struct kv_place *place, bool *stands) {
  struct kv_local_key name;
  struct kv_local_place entry;
  *stands = false;
  if (!place->token) return 0;
  kv_local_key_place(&name, place->name, place->token);
  int rc = read_place(batch, &name, &entry, stands);
  if (!rc && *stands) *stands = same_id(&entry, place) && entry.expiry > batch->moment.now;
  return rc;
}
