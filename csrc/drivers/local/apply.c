/*
 * apply.c - what a write does, inside of the writer thread's transaction. Every write that changes something gets a
 * revision and leaves records in the history; the newest of them is where the revision itself is kept, with running
 * totals of bytes and records, so that the bounds of the history are seen from its two ends.
 *
 * A function here returns 0 or an LMDB error, which spoils the whole transaction; that an op is refused is no error,
 * and is written down in its item before anything of it was written.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "local.h"

#define TRIM_SLACK 512 /* records beyond the bound before anything is removed: then many at once */
#define TRIM_STEP 4096 /* at most so many at once */

int kv_local_refuse(struct kv_local_item *item, kv_code code, const char *format, ...) {
  va_list arguments;
  item->code = code;
  va_start(arguments, format);
  vsnprintf(item->text, sizeof item->text, format, arguments);
  va_end(arguments);
  return 0;
}

/* ------------------------------------------------------------------ small things */

int kv_local_put_raw(struct kv_local_batch *batch, struct kv_local_key *key, const void *head, size_t head_size,
                     kv_slice value, unsigned flags) {
  MDB_val name = kv_local_val(key), room = {head_size + value.size, NULL};
  int rc = mdb_put(batch->txn, batch->env->dbi, &name, &room, MDB_RESERVE | flags);
  if (rc) return rc;
  if (head_size) memcpy(room.mv_data, head, head_size);
  if (value.size) memcpy((char *)room.mv_data + head_size, value.data, value.size);
  batch->changed = true;
  return 0;
}

int kv_local_delete_raw(struct kv_local_batch *batch, struct kv_local_key *key) {
  MDB_val name = kv_local_val(key);
  int rc = mdb_del(batch->txn, batch->env->dbi, &name, NULL);
  if (rc == MDB_NOTFOUND) return 0;
  if (!rc) batch->changed = true;
  return rc;
}

/* ------------------------------------------------------------------ history */

void kv_local_next_revision(struct kv_local_batch *batch) {
  batch->revision++;
  batch->sequence = 0;
}

int kv_local_history_add(struct kv_local_batch *batch, enum kv_local_change_type type, kv_slice key, kv_slice value,
                         uint64_t created) {
  struct kv_local_key name;
  unsigned char head[LOCAL_CHANGE_HEAD + KV_KEY_MAX];
  if (batch->silent) {
    batch->silenced = true;
    return 0;
  }
  if (key.size > KV_KEY_MAX) return MDB_BAD_VALSIZE;
  struct kv_local_change change = {
      .type = type,
      .created = created,
      .total_bytes = batch->total_bytes + kv_local_change_bytes(key.size, value.size),
      .total_count = batch->total_count + 1,
      .key = key,
  };
  kv_local_change_head(&change, head);
  if (key.size) memcpy(head + LOCAL_CHANGE_HEAD, key.data, key.size);
  kv_local_key_history(&name, batch->revision, batch->sequence);
  int rc = kv_local_put_raw(batch, &name, head, LOCAL_CHANGE_HEAD + key.size, value, MDB_APPEND);
  if (rc) return rc;
  batch->sequence++;
  batch->total_bytes = change.total_bytes;
  batch->total_count = change.total_count;
  return 0;
}

static int remove_oldest(MDB_cursor *cursor, uint64_t bytes, uint64_t count, uint64_t last_count, unsigned limit) {
  MDB_val key, value;
  struct kv_local_change change;
  unsigned char first = LOCAL_HISTORY;
  key = (MDB_val){1, &first};
  int rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
  while (!rc && limit--) {
    if (!kv_local_change_read(&key, &value, &change)) return MDB_CORRUPTED;
    bool within = change.total_bytes > bytes && change.total_count > count;
    if (within || change.total_count >= last_count) return 0; /* the newest stays: it holds the revision */
    rc = mdb_cursor_del(cursor, 0);
    key = (MDB_val){1, &first};
    if (!rc) rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
  }
  return rc == MDB_NOTFOUND ? 0 : rc;
}

int kv_local_history_trim(struct kv_local_batch *batch, bool hard) {
  struct kv_local_env *env = batch->env;
  struct kv_local_change newest, oldest;
  MDB_cursor *cursor;
  bool found;
  int rc = mdb_cursor_open(batch->txn, env->dbi, &cursor);
  if (rc) return rc;
  rc = kv_local_history_ends(cursor, &newest, &oldest, &found);
  if (!rc && found) {
    uint64_t bytes = newest.total_bytes - oldest.total_bytes, count = newest.total_count - oldest.total_count + 1;
    uint64_t max_bytes = hard ? bytes / 2 : env->history_bytes, max_count = hard ? count / 2 : env->history_count;
    bool over = hard ? count > 1 : bytes > max_bytes + max_bytes / 8 || count > max_count + TRIM_SLACK;
    if (over) {
      batch->changed = true;
      rc = remove_oldest(cursor, newest.total_bytes > max_bytes ? newest.total_bytes - max_bytes : 0,
                         newest.total_count > max_count ? newest.total_count - max_count : 0, newest.total_count,
                         hard ? UINT32_MAX : TRIM_STEP);
    }
  }
  mdb_cursor_close(cursor);
  return rc;
}

/* For a change that has no room in the history: whoever watches has to list again. A lone record that is not the
 * first of its revision tells that even that revision is not to be had. */
int kv_local_history_clear(struct kv_local_batch *batch) {
  struct kv_local_key name;
  unsigned char head[LOCAL_CHANGE_HEAD];
  MDB_cursor *cursor;
  int rc = mdb_cursor_open(batch->txn, batch->env->dbi, &cursor);
  if (rc) return rc;
  rc = remove_oldest(cursor, UINT64_MAX - 1, UINT64_MAX - 1, UINT64_MAX, UINT32_MAX);
  mdb_cursor_close(cursor);
  if (rc) return rc;
  struct kv_local_change change = {.type = LOCAL_NOTHING,
                                   .total_bytes = batch->total_bytes + kv_local_change_bytes(0, 0),
                                   .total_count = batch->total_count + 1};
  kv_local_change_head(&change, head);
  kv_local_key_history(&name, batch->revision, 1);
  return kv_local_put_raw(batch, &name, head, sizeof head, (kv_slice){"", 0}, 0);
}

/* ------------------------------------------------------------------ keys */

int kv_local_remove(struct kv_local_batch *batch, kv_slice key, const struct kv_local_record *record) {
  struct kv_local_key name;
  int rc = 0;
  if (record->expiry) {
    kv_local_key_expiry(&name, record->expiry, LOCAL_OF_KEY, key);
    rc = kv_local_delete_raw(batch, &name);
  }
  if (!rc && record->lease) {
    kv_local_key_attached(&name, record->lease, LOCAL_OF_KEY, key);
    rc = kv_local_delete_raw(batch, &name);
  }
  kv_local_key_data(&name, key);
  if (!rc) rc = kv_local_delete_raw(batch, &name);
  return rc ? rc : kv_local_history_add(batch, LOCAL_DELETE, key, (kv_slice){"", 0}, 0);
}

static int look_up(struct kv_local_batch *batch, kv_slice key, struct kv_local_record *record, bool *found) {
  struct kv_local_key name;
  MDB_val value;
  kv_local_key_data(&name, key);
  MDB_val at = kv_local_val(&name);
  int rc = mdb_get(batch->txn, batch->env->dbi, &at, &value);
  *found = !rc;
  if (rc) return rc == MDB_NOTFOUND ? 0 : rc;
  return kv_local_record_read(&value, record) ? 0 : MDB_CORRUPTED;
}

int kv_local_fetch(struct kv_local_batch *batch, kv_slice key, struct kv_local_record *record, bool *found) {
  int rc = look_up(batch, key, record, found);
  if (rc || !*found || kv_local_alive(&batch->moment, record)) return rc;
  *found = false;
  kv_local_next_revision(batch);
  return kv_local_remove(batch, key, record);
}

/* ------------------------------------------------------------------ portable mode */

/* Is there a key that is alive below `key`? */
static int has_children(struct kv_local_batch *batch, kv_slice key, bool *has) {
  struct kv_local_key prefix;
  struct kv_local_record record;
  MDB_cursor *cursor;
  MDB_val at, value;
  *has = false;
  kv_local_key_data(&prefix, key);
  prefix.bytes[prefix.size++] = '/';
  int rc = mdb_cursor_open(batch->txn, batch->env->dbi, &cursor);
  if (rc) return rc;
  at = kv_local_val(&prefix);
  rc = mdb_cursor_get(cursor, &at, &value, MDB_SET_RANGE);
  while (!rc && !*has && kv_local_begins(&at, &prefix, prefix.size)) {
    *has = kv_local_record_read(&value, &record) && kv_local_alive(&batch->moment, &record);
    rc = mdb_cursor_get(cursor, &at, &value, MDB_NEXT);
  }
  mdb_cursor_close(cursor);
  return rc == MDB_NOTFOUND ? 0 : rc;
}

/* Would a backend with real directories take a value here? */
static int check_portable(struct kv_local_batch *batch, struct kv_local_item *item, kv_slice key) {
  struct kv_local_record record;
  bool found;
  int rc = 0;
  for (size_t i = 0; i < key.size && !rc; i++) {
    if (key.data[i] != '/') continue;
    rc = look_up(batch, (kv_slice){key.data, i}, &record, &found);
    if (!rc && found && kv_local_alive(&batch->moment, &record))
      return kv_local_refuse(item, KV_NOT_DIR, "a key above it has a value (portable mode)");
  }
  if (rc) return rc;
  rc = has_children(batch, key, &found);
  if (!rc && found) return kv_local_refuse(item, KV_IS_DIR, "there are keys below it (portable mode)");
  return rc;
}

/* ------------------------------------------------------------------ PUT and DELETE */

/* Write under the present revision, over `old` when that was found. */
static int write_pair(struct kv_local_batch *batch, kv_slice key, kv_slice value, double ttl, uint64_t lease,
                      const struct kv_local_record *old, uint64_t *created) {
  struct kv_local_key name;
  unsigned char head[LOCAL_RECORD_HEAD_MAX];
  struct kv_local_record record = {.revision = batch->revision,
                                   .created = old ? old->created : batch->revision,
                                   .expiry = ttl > 0 ? kv_local_deadline(batch->moment.now, ttl) : 0,
                                   .lease = lease};
  kv_slice none = {"", 0};
  int rc = 0;
  *created = record.created;
  if (old && old->expiry) {
    kv_local_key_expiry(&name, old->expiry, LOCAL_OF_KEY, key);
    rc = kv_local_delete_raw(batch, &name);
  }
  if (!rc && old && old->lease && old->lease != lease) {
    kv_local_key_attached(&name, old->lease, LOCAL_OF_KEY, key);
    rc = kv_local_delete_raw(batch, &name);
  }
  if (!rc && record.expiry) {
    kv_local_key_expiry(&name, record.expiry, LOCAL_OF_KEY, key);
    rc = kv_local_put_raw(batch, &name, NULL, 0, none, 0);
  }
  if (!rc && lease) {
    kv_local_key_attached(&name, lease, LOCAL_OF_KEY, key);
    rc = kv_local_put_raw(batch, &name, NULL, 0, none, 0);
  }
  size_t head_size = kv_local_record_head(&record, head);
  kv_local_key_data(&name, key);
  if (!rc) rc = kv_local_put_raw(batch, &name, head, head_size, value, 0);
  return rc ? rc : kv_local_history_add(batch, LOCAL_PUT, key, value, record.created);
}

static int check_condition(struct kv_local_item *item, const struct kv_op *op, bool found,
                           const struct kv_local_record *record) {
  if (op->condition == KV_IF_ABSENT && found)
    return kv_local_refuse(item, KV_EXISTS, "the key is there, at revision %llu", (unsigned long long)record->revision);
  if (op->condition != KV_IF_REVISION || (found && record->revision == op->revision)) return 0;
  if (!found) return kv_local_refuse(item, KV_MODIFIED, "the key is gone");
  return kv_local_refuse(item, KV_MODIFIED, "the key is at revision %llu, not %llu",
                         (unsigned long long)record->revision, (unsigned long long)op->revision);
}

static int check_lease(struct kv_local_batch *batch, struct kv_local_item *item, const struct kv_lease_ref *lease) {
  struct kv_local_lease state;
  bool found;
  if (!lease) return 0;
  int rc = lease->for_lock ? kv_local_place_find(batch, lease->id, &found)
                           : kv_local_lease_find(batch, lease->id, &state, &found);
  if (!rc && !found) return kv_local_refuse(item, KV_LOST, "the lease is gone");
  return rc;
}

static int put(struct kv_local_batch *batch, struct kv_local_item *item) {
  const struct kv_op *op = item->op;
  struct kv_local_record old;
  bool found;
  int rc = kv_local_fetch(batch, op->key, &old, &found);
  if (!rc) rc = check_condition(item, op, found, &old);
  if (!rc && item->code == KV_OK) rc = check_lease(batch, item, op->lease);
  if (!rc && item->code == KV_OK && (op->flags & KV_PORTABLE) && !found) rc = check_portable(batch, item, op->key);
  if (rc || item->code != KV_OK) return rc;
  kv_local_next_revision(batch);
  item->result.revision = batch->revision;
  return write_pair(batch, op->key, op->value, op->ttl, op->lease ? op->lease->id : 0, found ? &old : NULL,
                    &item->result.created);
}

static int delete_one(struct kv_local_batch *batch, struct kv_local_item *item) {
  const struct kv_op *op = item->op;
  struct kv_local_record old;
  bool found;
  int rc = kv_local_fetch(batch, op->key, &old, &found);
  if (!rc) rc = check_condition(item, op, found, &old);
  if (rc || item->code != KV_OK || !found) return rc;
  kv_local_next_revision(batch);
  item->result.revision = batch->revision;
  item->result.found = true;
  return kv_local_remove(batch, op->key, &old);
}

/* The next key at or behind `from` with this prefix; its name is copied to `found`. */
static int next_key(MDB_cursor *cursor, struct kv_local_key *from, size_t prefix, struct kv_local_key *found,
                    struct kv_local_record *record) {
  MDB_val key = kv_local_val(from), value;
  int rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
  if (rc) return rc;
  if (!kv_local_begins(&key, from, prefix)) return MDB_NOTFOUND;
  if (!kv_local_record_read(&value, record)) return MDB_CORRUPTED;
  found->size = key.mv_size;
  memcpy(found->bytes, key.mv_data, key.mv_size);
  return 0;
}

static int delete_tree(struct kv_local_batch *batch, struct kv_local_item *item) {
  const struct kv_op *op = item->op;
  struct kv_local_key from, key;
  struct kv_local_record record;
  MDB_cursor *cursor = NULL;
  bool found = false;
  int rc = op->flags & KV_BELOW ? 0 : look_up(batch, op->key, &record, &found);
  if (rc) return rc;
  if (found) {
    kv_local_next_revision(batch);
    rc = kv_local_remove(batch, op->key, &record);
    if (rc) return rc;
  }
  kv_local_key_data(&from, op->key);
  if (op->key.size) from.bytes[from.size++] = '/';
  rc = mdb_cursor_open(batch->txn, batch->env->dbi, &cursor);
  size_t prefix = from.size;
  while (!rc && !(rc = next_key(cursor, &from, prefix, &key, &record))) {
    kv_slice name = {(const char *)key.bytes + 1, key.size - 1};
    if (prefix == 1 && kv_local_of_library(name)) {
      kv_local_key_data(&from, (kv_slice){LOCAL_BEHIND_OWN, sizeof LOCAL_BEHIND_OWN - 1});
      continue;
    }
    if (!found) kv_local_next_revision(batch);
    found = true;
    rc = kv_local_remove(batch, name, &record);
  }
  if (cursor) mdb_cursor_close(cursor);
  item->result.found = found;
  item->result.revision = batch->revision;
  return rc == MDB_NOTFOUND ? 0 : rc;
}

/* ------------------------------------------------------------------ TXN */

static int refuse_check(struct kv_local_item *item, size_t index, kv_slice key, const char *why) {
  item->result.failed_check = (int)index;
  int shown = key.size > 60 ? 60 : (int)key.size;
  return kv_local_refuse(item, KV_MODIFIED, "check %zu (%.*s): %s", index + 1, shown, key.data, why);
}

static int check_part(struct kv_local_batch *batch, struct kv_local_item *item, size_t index) {
  const struct kv_part *part = &item->op->parts[index];
  struct kv_local_record record;
  bool found;
  int rc;
  switch (part->type) {
    case KV_PART_GUARD:
      rc = kv_local_guard(batch, part->place, &found);
      if (!rc && !found) return refuse_check(item, index, part->place->name, "the lock is not held any more");
      return rc;
    case KV_PART_CHECK: case KV_PART_ABSENT:
      rc = kv_local_fetch(batch, part->key, &record, &found);
      if (rc) return rc;
      if (part->type == KV_PART_ABSENT) return found ? refuse_check(item, index, part->key, "the key is there") : 0;
      if (!found) return refuse_check(item, index, part->key, "the key is gone");
      return record.revision == part->revision ? 0 : refuse_check(item, index, part->key, "the key has changed");
    default:
      /* What has expired goes now, under a revision of its own. */
      rc = kv_local_fetch(batch, part->key, &record, &found);
      if (rc || part->type != KV_PART_PUT) return rc;
      rc = check_lease(batch, item, part->lease);
      if (!rc && item->code == KV_OK && (item->op->flags & KV_PORTABLE) && !found)
        rc = check_portable(batch, item, part->key);
      return rc;
  }
}

static int write_part(struct kv_local_batch *batch, struct kv_local_item *item, size_t index) {
  const struct kv_part *part = &item->op->parts[index];
  struct kv_local_record old;
  bool found;
  if (part->type != KV_PART_PUT && part->type != KV_PART_DELETE) return 0;
  int rc = look_up(batch, part->key, &old, &found);
  if (rc) return rc;
  if (part->type == KV_PART_DELETE) return found ? kv_local_remove(batch, part->key, &old) : 0;
  return write_pair(batch, part->key, part->value, part->ttl, part->lease ? part->lease->id : 0, found ? &old : NULL,
                    &item->created[index]);
}

static int write_parts(struct kv_local_batch *batch, struct kv_local_item *item) {
  int rc = 0;
  kv_local_next_revision(batch);
  uint64_t count = batch->total_count;
  for (size_t i = 0; !rc && i < item->op->part_count; i++) rc = write_part(batch, item, i);
  if (!rc && count == batch->total_count && !batch->silenced)
    batch->revision--; /* nothing but deletes of what was not there */
  item->result.revision = batch->revision;
  return rc;
}

static int txn(struct kv_local_batch *batch, struct kv_local_item *item) {
  const struct kv_op *op = item->op;
  int rc = 0;
  if (op->part_count > KV_TXN_MAX) return kv_local_refuse(item, KV_INVALID, "too many operations");
  for (size_t i = 0; !rc && item->code == KV_OK && i < op->part_count; i++) rc = check_part(batch, item, i);
  return rc || item->code != KV_OK ? rc : write_parts(batch, item);
}

int kv_local_apply(struct kv_local_batch *batch, struct kv_local_item *item) {
  switch (item->op->kind) {
    case KV_PUT: return put(batch, item);
    case KV_DELETE: return delete_one(batch, item);
    case KV_DELETE_TREE: return delete_tree(batch, item);
    case KV_TXN: return txn(batch, item);
    case KV_LEASE_GRANT: case KV_LEASE_RENEW: case KV_LEASE_REVOKE: return kv_local_lease_step(batch, item);
    case KV_QUEUE_JOIN: case KV_QUEUE_AHEAD: case KV_QUEUE_CLAIM: case KV_QUEUE_LEAVE: case KV_QUEUE_HEAD:
      return kv_local_queue_step(batch, item);
    default: return kv_local_refuse(item, KV_UNSUPPORTED, "not an operation of this backend");
  }
}
