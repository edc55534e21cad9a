/*
 * lease.c - what goes by itself: keys with a time to live, leases with their keys, places in lock queues. One index
 * holds all of it by time. Whoever finds that something is due may remove it: each process with the store open does
 * so on time, the first one wins, and the others find nothing.
 *
 * A lease that serves a place in a lock queue is not written here: the place itself holds its time, so that getting in
 * line is one commit. A key that is put under such a lease lives as long as the place.
 */
#include <errno.h>
#include <string.h>

#include "local.h"

static int write_lease(struct kv_local_batch *batch, uint64_t id, const struct kv_local_lease *lease,
                       const struct kv_local_lease *old) {
  struct kv_local_key name;
  unsigned char bytes[8];
  kv_slice ref = {(char *)bytes, sizeof bytes}, none = {"", 0};
  for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(id >> (8 * (7 - i)));
  int rc = 0;
  batch->moment.lease = 0;
  if (old) {
    kv_local_key_expiry(&name, old->expiry, LOCAL_OF_LEASE, ref);
    rc = kv_local_delete_raw(batch, &name);
  }
  if (!rc && lease) {
    kv_local_key_expiry(&name, lease->expiry, LOCAL_OF_LEASE, ref);
    rc = kv_local_put_raw(batch, &name, NULL, 0, none, 0);
  }
  kv_local_key_lease(&name, id);
  if (rc) return rc;
  return lease ? kv_local_put_raw(batch, &name, lease, sizeof *lease, none, 0) : kv_local_delete_raw(batch, &name);
}

static int read_lease(struct kv_local_batch *batch, uint64_t id, struct kv_local_lease *lease, bool *found) {
  struct kv_local_key name;
  MDB_val value;
  kv_local_key_lease(&name, id);
  MDB_val key = kv_local_val(&name);
  int rc = mdb_get(batch->txn, batch->env->dbi, &key, &value);
  *found = !rc;
  if (rc) return rc == MDB_NOTFOUND ? 0 : rc;
  return kv_local_lease_read(&value, lease) ? 0 : MDB_CORRUPTED;
}

/* The first attachment of this type; its ref is copied. */
static int first_attached(struct kv_local_batch *batch, uint64_t id, char type, struct kv_local_key *ref) {
  struct kv_local_key name;
  MDB_cursor *cursor;
  MDB_val key, value;
  kv_local_key_attached(&name, id, type, (kv_slice){"", 0});
  int rc = mdb_cursor_open(batch->txn, batch->env->dbi, &cursor);
  if (rc) return rc;
  key = kv_local_val(&name);
  rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
  if (!rc && !kv_local_begins(&key, &name, name.size)) rc = MDB_NOTFOUND;
  if (!rc) {
    ref->size = key.mv_size - name.size;
    memcpy(ref->bytes, (const char *)key.mv_data + name.size, ref->size);
  }
  mdb_cursor_close(cursor);
  return rc;
}

/* Remove one key of a lease; under `*revision` if that was begun, else under a new one. */
static int remove_key_of(struct kv_local_batch *batch, uint64_t id, kv_slice key, bool *begun) {
  struct kv_local_key name;
  struct kv_local_record record;
  MDB_val value;
  kv_local_key_attached(&name, id, LOCAL_OF_KEY, key);
  int rc = kv_local_delete_raw(batch, &name);
  if (rc) return rc;
  kv_local_key_data(&name, key);
  MDB_val at = kv_local_val(&name);
  rc = mdb_get(batch->txn, batch->env->dbi, &at, &value);
  if (rc) return rc == MDB_NOTFOUND ? 0 : rc;
  if (!kv_local_record_read(&value, &record)) return MDB_CORRUPTED;
  if (record.lease != id) return 0;
  if (!*begun) kv_local_next_revision(batch);
  *begun = true;
  return kv_local_remove(batch, key, &record);
}

int kv_local_lease_remove_keys(struct kv_local_batch *batch, uint64_t id) {
  struct kv_local_key ref;
  bool begun = false;
  int rc = 0;
  while (!rc && !(rc = first_attached(batch, id, LOCAL_OF_KEY, &ref)))
    rc = remove_key_of(batch, id, (kv_slice){(char *)ref.bytes, ref.size}, &begun);
  return rc == MDB_NOTFOUND ? 0 : rc;
}

/* End a lease with all that goes with it. `lease`: its record, or NULL when only places know of it. */
static int end_lease(struct kv_local_batch *batch, uint64_t id, const struct kv_local_lease *lease) {
  struct kv_local_key ref;
  int rc = kv_local_lease_remove_keys(batch, id);
  while (!rc && !(rc = first_attached(batch, id, LOCAL_OF_PLACE, &ref))) {
    kv_slice place = {(char *)ref.bytes, ref.size};
    struct kv_local_key name;
    kv_local_key_attached(&name, id, LOCAL_OF_PLACE, place);
    rc = kv_local_delete_raw(batch, &name);
    if (!rc) rc = kv_local_place_remove(batch, place);
  }
  if (rc == MDB_NOTFOUND) rc = 0;
  return rc || !lease ? rc : write_lease(batch, id, NULL, lease);
}

int kv_local_lease_find(struct kv_local_batch *batch, uint64_t id, struct kv_local_lease *lease, bool *found) {
  int rc = read_lease(batch, id, lease, found);
  if (rc || !*found) return rc;
  if (lease->expiry > batch->moment.now && kv_local_owner_alive(batch->env, lease->owner)) return 0;
  *found = false;
  return end_lease(batch, id, lease);
}

static int grant(struct kv_local_batch *batch, struct kv_local_item *item) {
  struct kv_lease_ref *ref = item->op->lease;
  struct kv_local_lease lease;
  bool found;
  int rc = kv_local_lease_find(batch, ref->id, &lease, &found);
  if (rc) return rc;
  if (!found) {
    lease = (struct kv_local_lease){.ttl = kv_local_deadline(0, ref->ttl)};
    lease.expiry = batch->moment.now + lease.ttl;
    if (ref->session && !(lease.owner = kv_local_owner_ensure(batch->env)))
      return kv_local_refuse(item, kv_local_code(errno), "cannot make a file in owners: %s", strerror(errno));
    rc = write_lease(batch, ref->id, &lease, NULL);
  }
  if (!rc) ref->granted = (double)lease.ttl / (double)LOCAL_SECOND;
  return rc;
}

static int renew(struct kv_local_batch *batch, struct kv_local_item *item) {
  struct kv_lease_ref *ref = item->op->lease;
  struct kv_local_lease old, lease;
  bool found;
  int rc = kv_local_lease_find(batch, ref->id, &old, &found);
  if (rc) return rc;
  if (!found) return kv_local_refuse(item, KV_LOST, "the lease is gone");
  lease = old;
  lease.expiry = batch->moment.now + lease.ttl;
  ref->granted = (double)lease.ttl / (double)LOCAL_SECOND;
  return write_lease(batch, ref->id, &lease, &old);
}

static int revoke(struct kv_local_batch *batch, struct kv_local_item *item) {
  struct kv_local_lease lease;
  bool found;
  int rc = read_lease(batch, item->op->lease->id, &lease, &found);
  return rc ? rc : end_lease(batch, item->op->lease->id, found ? &lease : NULL);
}

int kv_local_lease_step(struct kv_local_batch *batch, struct kv_local_item *item) {
  const struct kv_op *op = item->op;
  if (op->kind == KV_LEASE_REVOKE) return revoke(batch, item);
  if (op->lease->for_lock) return kv_local_queue_step(batch, item);
  return op->kind == KV_LEASE_GRANT ? grant(batch, item) : renew(batch, item);
}

/* ------------------------------------------------------------------ what is due */

int64_t kv_local_next_expiry(MDB_txn *txn, MDB_dbi dbi) {
  struct kv_local_key from;
  MDB_cursor *cursor;
  MDB_val key, value;
  int64_t at = LOCAL_NEVER;
  kv_local_key_expiry(&from, 0, 0, (kv_slice){"", 0});
  if (mdb_cursor_open(txn, dbi, &cursor) != 0) return at;
  key = kv_local_val(&from);
  if (mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE) == 0 && kv_local_begins(&key, &from, 1) && key.mv_size > 9)
    at = (int64_t)kv_local_number((const char *)key.mv_data + 1);
  mdb_cursor_close(cursor);
  return at;
}

/* The first thing that is due; MDB_NOTFOUND: nothing. */
static int first_due(struct kv_local_batch *batch, struct kv_local_key *name) {
  struct kv_local_key from;
  MDB_cursor *cursor;
  MDB_val key, value;
  kv_local_key_expiry(&from, 0, 0, (kv_slice){"", 0});
  int rc = mdb_cursor_open(batch->txn, batch->env->dbi, &cursor);
  if (rc) return rc;
  key = kv_local_val(&from);
  rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
  if (!rc && (!kv_local_begins(&key, &from, 1) || key.mv_size < 11)) rc = MDB_NOTFOUND;
  if (!rc && (int64_t)kv_local_number((const char *)key.mv_data + 1) > batch->moment.now) rc = MDB_NOTFOUND;
  if (!rc) {
    name->size = key.mv_size;
    memcpy(name->bytes, key.mv_data, key.mv_size);
  }
  mdb_cursor_close(cursor);
  return rc;
}

static int expire_key(struct kv_local_batch *batch, kv_slice key, int64_t at) {
  struct kv_local_key name;
  struct kv_local_record record;
  MDB_val value;
  kv_local_key_data(&name, key);
  MDB_val where = kv_local_val(&name);
  int rc = mdb_get(batch->txn, batch->env->dbi, &where, &value);
  if (rc) return rc == MDB_NOTFOUND ? 0 : rc;
  if (!kv_local_record_read(&value, &record)) return MDB_CORRUPTED;
  if (record.expiry != at) return 0;
  kv_local_next_revision(batch);
  return kv_local_remove(batch, key, &record);
}

static int expire_lease(struct kv_local_batch *batch, kv_slice ref, int64_t at) {
  struct kv_local_lease lease;
  bool found;
  if (ref.size != 8) return 0;
  uint64_t id = kv_local_number(ref.data);
  int rc = read_lease(batch, id, &lease, &found);
  return rc || !found || lease.expiry != at ? rc : end_lease(batch, id, &lease);
}

int kv_local_expire(struct kv_local_batch *batch, unsigned limit, bool *more) {
  struct kv_local_key name;
  int rc = 0;
  *more = true;
  while (!rc && limit-- && !(rc = first_due(batch, &name))) {
    kv_slice ref = {(char *)name.bytes + 10, name.size - 10};
    int64_t at = (int64_t)kv_local_number(name.bytes + 1);
    switch (name.bytes[9]) {
      case LOCAL_OF_KEY: rc = expire_key(batch, ref, at); break;
      case LOCAL_OF_LEASE: rc = expire_lease(batch, ref, at); break;
      case LOCAL_OF_PLACE: rc = kv_local_place_remove(batch, ref); break;
      default: break;
    }
    if (!rc) rc = kv_local_delete_raw(batch, &name); /* gone already, unless it was stale */
  }
  if (rc != MDB_NOTFOUND) return rc;
  *more = false;
  return 0;
}

/* ------------------------------------------------------------------ dead owners */

/* The first lease or place behind `from` that was `owner`'s. `from` moves to it. */
static int first_owned(struct kv_local_batch *batch, uint64_t owner, struct kv_local_key *from, size_t prefix) {
  MDB_cursor *cursor;
  MDB_val key = kv_local_val(from), value;
  int rc = mdb_cursor_open(batch->txn, batch->env->dbi, &cursor);
  if (rc) return rc;
  rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
  for (; !rc; rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) {
    struct kv_local_lease lease;
    struct kv_local_place place;
    if (!kv_local_begins(&key, from, prefix)) {
      rc = MDB_NOTFOUND;
      break;
    }
    bool is_place = *(const unsigned char *)key.mv_data == LOCAL_QUEUE;
    if (is_place ? kv_local_place_read(&value, &place) && place.owner == owner
                 : kv_local_lease_read(&value, &lease) && lease.owner == owner)
      break;
  }
  if (!rc) {
    from->size = key.mv_size;
    memcpy(from->bytes, key.mv_data, key.mv_size);
  }
  mdb_cursor_close(cursor);
  return rc;
}

int kv_local_owner_purge(struct kv_local_batch *batch, uint64_t owner) {
  struct kv_local_key name;
  int rc = 0;
  kv_local_key_lease(&name, 0);
  while (!rc && !(rc = first_owned(batch, owner, &name, 2))) {
    struct kv_local_lease lease;
    bool found;
    uint64_t id = kv_local_number(name.bytes + 2);
    rc = read_lease(batch, id, &lease, &found);
    if (!rc && found) rc = end_lease(batch, id, &lease);
  }
  if (rc != MDB_NOTFOUND) return rc;
  rc = 0;
  name.bytes[0] = LOCAL_QUEUE;
  name.size = 1;
  while (!rc && !(rc = first_owned(batch, owner, &name, 1)))
    rc = kv_local_place_remove(batch, (kv_slice){(char *)name.bytes + 1, name.size - 1});
  return rc == MDB_NOTFOUND ? 0 : rc;
}
