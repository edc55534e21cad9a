/*
 * read.c - reads, in the caller's thread, on LMDB's own snapshots.
 *
 * Read transactions are pooled: reset between calls, so that they hold no pages, and renewed for each call, which
 * touches nothing but our reader slot. A thread takes the one it had last, so threads do not meet.
 *
 * Listings are pages of the present: one that goes on at an old revision is not given that revision's state,
 * because snapshots do not outlive their call. The page's revision tells whether it is the same.
 */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "local.h"

#define LOOK_BACK 10000 /* records of the history, to see that a directory has not changed */

/* ------------------------------------------------------------------ pooled transactions */

static atomic_uint next_hint;
static _Thread_local unsigned hint; /* 1 + index of the slot that this thread had last */

static struct kv_local_reader *take_slot(struct kv_local_env *env) {
  if (!hint) hint = 1 + atomic_fetch_add(&next_hint, 1) % LOCAL_READERS;
  for (;;) {
    for (unsigned i = 0; i < LOCAL_READERS; i++) {
      unsigned at = (hint - 1 + i) % LOCAL_READERS;
      struct kv_local_reader *reader = &env->readers[at];
      if (atomic_load_explicit(&reader->busy, memory_order_relaxed) ||
          atomic_exchange_explicit(&reader->busy, true, memory_order_acquire))
        continue;
      hint = at + 1;
      return reader;
    }
    sched_yield();
  }
}

static int begin(struct kv_local_env *env, struct kv_local_reader *reader) {
  if (reader->txn) {
    int rc = mdb_txn_renew(reader->txn);
    if (!rc) return 0;
    mdb_txn_abort(reader->txn);
    reader->txn = NULL;
  }
  int rc = mdb_txn_begin(env->mdb, NULL, MDB_RDONLY, &reader->txn);
  if (rc != MDB_READERS_FULL) return rc;
  int dead = 0;
  mdb_reader_check(env->mdb, &dead);
  return mdb_txn_begin(env->mdb, NULL, MDB_RDONLY, &reader->txn);
}

int kv_local_reader_take(struct kv_local_env *env, struct kv_local_reader **out) {
  for (int i = 0;; i++) {
    struct kv_local_reader *reader = take_slot(env);
    int rc = begin(env, reader);
    if (!rc) {
      *out = reader;
      return 0;
    }
    reader->txn = NULL;
    atomic_store_explicit(&reader->busy, false, memory_order_release);
    if (rc != MDB_MAP_RESIZED || i == 3) return rc;
    pthread_mutex_lock(&env->writing);
    kv_local_env_remap(env);
    pthread_mutex_unlock(&env->writing);
  }
}

void kv_local_reader_give(struct kv_local_reader *reader) {
  mdb_txn_reset(reader->txn);
  atomic_store_explicit(&reader->busy, false, memory_order_release);
}

static kv_code fail(kv_error *error, int rc) {
  return kv_local_fail(error, kv_local_code(rc), "%s", mdb_strerror(rc));
}

static kv_code fail_damaged(kv_error *error) {
  return kv_local_fail(error, KV_FAILED, "a damaged record in the store");
}

static kv_code fail_memory(kv_error *error) {
  return kv_local_fail(error, KV_FAILED, "out of memory");
}

/* ------------------------------------------------------------------ what is alive */

static int64_t moment_now(struct kv_local_moment *moment) {
  if (!moment->now) moment->now = kv_local_now(moment->env);
  return moment->now;
}

/* A lease without a record of its own: does it serve a living place? */
static bool serves_place(struct kv_local_moment *moment, uint64_t id) {
  struct kv_local_key name, place;
  struct kv_local_place entry;
  MDB_cursor *cursor;
  MDB_val value;
  kv_local_key_attached(&name, id, LOCAL_OF_PLACE, (kv_slice){"", 0});
  MDB_val key = kv_local_val(&name);
  if (mdb_cursor_open(moment->txn, moment->env->dbi, &cursor) != 0) return false;
  bool found = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE) == 0 && kv_local_begins(&key, &name, name.size) &&
               key.mv_size - name.size < sizeof place.bytes;
  if (found) {
    place.bytes[0] = LOCAL_QUEUE;
    place.size = 1 + key.mv_size - name.size;
    memcpy(place.bytes + 1, (const char *)key.mv_data + name.size, place.size - 1);
    key = kv_local_val(&place);
    found = mdb_cursor_get(cursor, &key, &value, MDB_SET) == 0 && kv_local_place_read(&value, &entry) &&
            kv_local_place_alive(moment, &entry);
  }
  mdb_cursor_close(cursor);
  return found;
}

static bool lease_alive(struct kv_local_moment *moment, uint64_t id) {
  if (moment->lease == id) return moment->lease_alive;
  struct kv_local_key name;
  struct kv_local_lease lease;
  MDB_val value;
  kv_local_key_lease(&name, id);
  MDB_val key = kv_local_val(&name);
  bool alive;
  if (mdb_get(moment->txn, moment->env->dbi, &key, &value) != 0)
    alive = serves_place(moment, id);
  else
    alive = kv_local_lease_read(&value, &lease) && lease.expiry > moment_now(moment) &&
            kv_local_owner_alive(moment->env, lease.owner);
  moment->lease = id;
  moment->lease_alive = alive;
  return alive;
}

bool kv_local_alive(struct kv_local_moment *moment, const struct kv_local_record *record) {
  if (record->expiry && record->expiry <= moment_now(moment)) return false;
  return !record->lease || lease_alive(moment, record->lease);
}

bool kv_local_place_alive(struct kv_local_moment *moment, const struct kv_local_place *place) {
  return place->expiry > moment_now(moment) && kv_local_owner_alive(moment->env, place->owner);
}

/* ------------------------------------------------------------------ history */

int kv_local_history_ends(MDB_cursor *cursor, struct kv_local_change *newest, struct kv_local_change *oldest,
                          bool *found) {
  MDB_val key, value;
  *found = false;
  memset(newest, 0, sizeof *newest);
  if (oldest) memset(oldest, 0, sizeof *oldest);
  int rc = mdb_cursor_get(cursor, &key, &value, MDB_LAST);
  if (rc == MDB_NOTFOUND) return 0;
  if (rc) return rc;
  if (*(const unsigned char *)key.mv_data != LOCAL_HISTORY) return 0;
  if (!kv_local_change_read(&key, &value, newest)) return MDB_CORRUPTED;
  *found = true;
  if (!oldest) return 0;
  unsigned char first = LOCAL_HISTORY;
  key = (MDB_val){1, &first};
  rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
  if (rc) return rc;
  return kv_local_change_read(&key, &value, oldest) ? 0 : MDB_CORRUPTED;
}

bool kv_local_history_reaches(const struct kv_local_change *newest, const struct kv_local_change *oldest,
                              uint64_t revision, uint32_t sequence) {
  if (revision > newest->revision) return revision == newest->revision + 1;
  return oldest->revision < revision || (oldest->revision == revision && oldest->sequence <= sequence);
}

/* ------------------------------------------------------------------ GET */

static int tell_revision(struct kv_local_env *env, MDB_txn *txn, struct kv_op *op) {
  struct kv_local_change newest;
  MDB_cursor *cursor;
  bool found;
  int rc = mdb_cursor_open(txn, env->dbi, &cursor);
  if (rc) return rc;
  rc = kv_local_history_ends(cursor, &newest, NULL, &found);
  mdb_cursor_close(cursor);
  op->result.revision = newest.revision;
  return rc;
}

static kv_code get(struct kv_local_env *env, MDB_txn *txn, struct kv_op *op, kv_error *error) {
  struct kv_local_key name;
  struct kv_local_record record;
  MDB_val value;
  kv_local_key_data(&name, op->key);
  MDB_val key = kv_local_val(&name);
  int rc = op->flags & KV_DATED ? tell_revision(env, txn, op) : 0;
  if (!rc) rc = mdb_get(txn, env->dbi, &key, &value);
  if (rc == MDB_NOTFOUND) return KV_OK;
  if (rc) return fail(error, rc);
  if (!kv_local_record_read(&value, &record)) return fail_damaged(error);
  if (record.expiry || record.lease) {
    struct kv_local_moment moment = {.env = env, .txn = txn};
    if (!kv_local_alive(&moment, &record)) return KV_OK;
  }
  if (op->flags & KV_KEYS_ONLY) record.value.size = 0;
  return kv_local_host->pair(op, op->key, record.value, record.revision, record.created, false) ? KV_OK
                                                                                              : fail_memory(error);
}

/* ------------------------------------------------------------------ LIST */

struct listing {
  struct kv_local_env *env;
  struct kv_op *op;
  MDB_cursor *cursor;
  struct kv_local_moment moment;
  struct kv_local_key prefix; /* of every key that belongs to it */
  MDB_val key, value;
  uint32_t count;
  bool ended;
};

static int seek(struct listing *listing, struct kv_local_key *to) {
  listing->key = kv_local_val(to);
  return mdb_cursor_get(listing->cursor, &listing->key, &listing->value, MDB_SET_RANGE);
}

static void set_prefix(struct listing *listing) {
  struct kv_local_key *prefix = &listing->prefix;
  kv_local_key_data(prefix, listing->op->key);
  if (listing->op->key.size && prefix->size < sizeof prefix->bytes) prefix->bytes[prefix->size++] = '/';
}

/* To the first position. */
static int list_begin(struct listing *listing) {
  const struct kv_op *op = listing->op;
  struct kv_local_key *prefix = &listing->prefix, from;
  if (!op->after.size || (op->flags & KV_SHALLOW)) return seek(listing, prefix);
  kv_local_key_data(&from, op->after);
  int order = memcmp(from.bytes, prefix->bytes, from.size < prefix->size ? from.size : prefix->size);
  if (order < 0 || (order == 0 && from.size <= prefix->size)) return seek(listing, prefix);
  int rc = seek(listing, &from);
  if (!rc && listing->key.mv_size == from.size && memcmp(listing->key.mv_data, from.bytes, from.size) == 0)
    rc = mdb_cursor_get(listing->cursor, &listing->key, &listing->value, MDB_NEXT);
  return rc;
}

static bool page_full(const struct listing *listing) {
  const struct kv_op *op = listing->op;
  if (op->flags & KV_SHALLOW) return false; /* the core needs all of it to sort */
  if (op->limit) return listing->count >= op->limit;
  return listing->count && kv_local_host->pair_bytes(op) >= LOCAL_PAGE_BYTES;
}

/* A key deeper than a direct child: its directory, and on to what follows that directory. */
static kv_code list_directory(struct listing *listing, size_t end, int *rc, kv_error *error) {
  struct kv_local_key next;
  kv_slice name = {(const char *)listing->key.mv_data + 1, end - 1};
  next.size = end + 1;
  memcpy(next.bytes, listing->key.mv_data, end);
  next.bytes[end] = '/' + 1;
  if (!kv_local_host->pair(listing->op, name, (kv_slice){"", 0}, 0, 0, true)) return fail_memory(error);
  listing->count++;
  *rc = seek(listing, &next);
  return KV_OK;
}

/* The pair at the cursor, and on. */
static kv_code list_one(struct listing *listing, int *rc, kv_error *error) {
  struct kv_local_record record;
  struct kv_op *op = listing->op;
  if (!kv_local_record_read(&listing->value, &record)) return fail_damaged(error);
  kv_slice name = {(const char *)listing->key.mv_data + 1, listing->key.mv_size - 1};
  if (listing->prefix.size == 1 && kv_local_of_library(name)) {
    struct kv_local_key behind;
    kv_local_key_data(&behind, (kv_slice){LOCAL_BEHIND_OWN, sizeof LOCAL_BEHIND_OWN - 1});
    *rc = seek(listing, &behind);
    return KV_OK;
  }
  if (kv_local_alive(&listing->moment, &record)) {
    if (page_full(listing)) {
      op->result.more = listing->ended = true;
      return KV_OK;
    }
    const char *bytes = listing->key.mv_data;
    size_t prefix = listing->prefix.size;
    if (op->flags & KV_SHALLOW) {
      const char *slash = memchr(bytes + prefix, '/', listing->key.mv_size - prefix);
      if (slash) return list_directory(listing, (size_t)(slash - bytes), rc, error);
    }
    if (op->flags & KV_KEYS_ONLY) record.value.size = 0;
    if (!kv_local_host->pair(op, name, record.value, record.revision, record.created, false))
      return fail_memory(error);
    listing->count++;
  }
  *rc = mdb_cursor_get(listing->cursor, &listing->key, &listing->value, MDB_NEXT);
  return KV_OK;
}

/* In portable mode a key that has a value is no directory. */
static kv_code refuse_key(struct kv_local_env *env, MDB_txn *txn, const struct kv_op *op, kv_error *error) {
  struct kv_local_key name;
  struct kv_local_record record;
  MDB_val value;
  struct kv_local_moment moment = {.env = env, .txn = txn};
  if (!op->key.size) return KV_OK;
  kv_local_key_data(&name, op->key);
  MDB_val key = kv_local_val(&name);
  if (mdb_get(txn, env->dbi, &key, &value) != 0 || !kv_local_record_read(&value, &record)) return KV_OK;
  if (!kv_local_alive(&moment, &record)) return KV_OK;
  return kv_local_fail(error, KV_NOT_DIR, "it has a value (portable mode)");
}

/* Was nothing below the directory changed behind this revision, as far as a short look tells? */
static bool unchanged(struct listing *listing, uint64_t revision) {
  struct kv_local_key from;
  struct kv_local_change change;
  const struct kv_local_key *prefix = &listing->prefix;
  kv_local_key_history(&from, revision + 1, 0);
  int rc = seek(listing, &from);
  for (int i = 0; !rc && i < LOOK_BACK; i++) {
    if (!kv_local_change_read(&listing->key, &listing->value, &change)) return false;
    bool of_key = (change.type == LOCAL_PUT || change.type == LOCAL_DELETE) && !kv_local_of_library(change.key);
    if (of_key && change.key.size >= prefix->size - 1 &&
        memcmp(change.key.data, prefix->bytes + 1, prefix->size - 1) == 0)
      return false;
    rc = mdb_cursor_get(listing->cursor, &listing->key, &listing->value, MDB_NEXT);
  }
  return rc == MDB_NOTFOUND;
}

/* The revision of this page: the one asked for, if what is there now is what was there then. Pages of a directory
 * that is written meanwhile show it by their revisions. */
static int list_revision(struct listing *listing) {
  const struct kv_op *op = listing->op;
  struct kv_local_change newest, oldest;
  bool found;
  int rc = kv_local_history_ends(listing->cursor, &newest, &oldest, &found);
  if (rc) return rc;
  bool same = op->revision && op->revision < newest.revision &&
              kv_local_history_reaches(&newest, &oldest, op->revision + 1, 0) && unchanged(listing, op->revision);
  listing->op->result.revision = same ? op->revision : newest.revision;
  return 0;
}

static kv_code list(struct kv_local_env *env, MDB_txn *txn, struct kv_op *op, bool portable, kv_error *error) {
  struct listing listing = {.env = env, .op = op, .moment = {.env = env, .txn = txn}};
  kv_code code = portable ? refuse_key(env, txn, op, error) : KV_OK;
  if (code != KV_OK) return code;
  int rc = mdb_cursor_open(txn, env->dbi, &listing.cursor);
  if (rc) return fail(error, rc);
  set_prefix(&listing);
  rc = list_revision(&listing);
  if (!rc) rc = list_begin(&listing);
  while (!rc && code == KV_OK && !listing.ended && kv_local_begins(&listing.key, &listing.prefix, listing.prefix.size))
    code = list_one(&listing, &rc, error);
  mdb_cursor_close(listing.cursor);
  if (code == KV_OK && rc && rc != MDB_NOTFOUND) code = fail(error, rc);
  return code;
}

kv_code kv_local_read(struct kv_local_env *env, struct kv_op *op, bool portable, kv_error *error) {
  struct kv_local_reader *reader;
  int rc = kv_local_reader_take(env, &reader);
  if (rc) return fail(error, rc);
  kv_code code = op->kind == KV_GET ? get(env, reader->txn, op, error) : list(env, reader->txn, op, portable, error);
  kv_local_reader_give(reader);
  return code;
}

/* ------------------------------------------------------------------ lock steps that only look */

uint64_t kv_local_order(const char *ticket) {
  return strtoull(ticket, NULL, 16);
}

void kv_local_order_text(char *out, uint64_t order) {
  snprintf(out, LOCAL_ORDER_TEXT, "%llx", (unsigned long long)order);
}

/* Read the place under the cursor's key, if it belongs to the queue that `queue` is a key of. */
static bool in_queue(const MDB_val *key, const MDB_val *value, const struct kv_local_key *queue,
                     struct kv_local_place *place) {
  return key->mv_size == queue->size && kv_local_begins(key, queue, queue->size - 8) &&
         kv_local_place_read(value, place);
}

/* Is our own entry there? 0: yes, with the cursor on it. */
static int find_own(MDB_cursor *cursor, const struct kv_place *place, struct kv_local_key *name,
                    struct kv_local_place *entry, bool *found) {
  MDB_val value;
  kv_local_key_place(name, place->name, kv_local_order(place->ticket));
  MDB_val key = kv_local_val(name);
  int rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_KEY);
  *found = !rc && kv_local_place_read(&value, entry) && strncmp(entry->id, place->id, sizeof entry->id) == 0;
  return rc == MDB_NOTFOUND ? 0 : rc;
}

/* To the nearest place before the cursor's that counts. False: it takes a write to tell. Whose owner is dead
 * cannot come back, and is passed over. Whose time is up might just be renewed by a commit that we do not see
 * yet: only a write puts us behind it. */
static bool find_ahead(struct kv_local_moment *moment, MDB_cursor *cursor, const struct kv_local_key *own,
                       uint64_t *order) {
  struct kv_local_place before;
  MDB_val key, value;
  int rc;
  *order = 0;
  while (!(rc = mdb_cursor_get(cursor, &key, &value, MDB_PREV)) && in_queue(&key, &value, own, &before)) {
    if (!kv_local_owner_alive(moment->env, before.owner)) continue;
    if (!kv_local_place_alive(moment, &before)) return false;
    *order = kv_local_number((const char *)key.mv_data + key.mv_size - 8);
    return true;
  }
  return !rc || rc == MDB_NOTFOUND;
}

/* AHEAD and CLAIM. */
static bool look_ahead(struct kv_local_moment *moment, MDB_cursor *cursor, struct kv_op *op, kv_code *code) {
  struct kv_place *place = op->place;
  struct kv_local_key name;
  struct kv_local_place entry;
  uint64_t order;
  bool found;
  if (!*place->ticket || place->limit || find_own(cursor, place, &name, &entry, &found)) return false;
  if (!found || !kv_local_place_alive(moment, &entry)) {
    *code = KV_LOST;
    return true;
  }
  if (!find_ahead(moment, cursor, &name, &order)) return false;
  if (op->kind == KV_QUEUE_CLAIM) {
    place->token = kv_local_order(place->ticket);
    op->result.found = !order;
  } else if (order) {
    place->ahead_revision = order;
    kv_local_order_text(place->ahead, order);
    op->result.found = true;
  }
  *code = KV_OK;
  return true;
}

static bool look_at_head(struct kv_local_moment *moment, MDB_cursor *cursor, struct kv_op *op, kv_code *code) {
  struct kv_local_key name;
  struct kv_local_place entry;
  MDB_val value;
  *code = KV_OK;
  kv_local_key_place(&name, op->place->name, 0);
  MDB_val key = kv_local_val(&name);
  int rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
  while (!rc && in_queue(&key, &value, &name, &entry)) {
    if (kv_local_place_alive(moment, &entry)) {
      uint64_t order = kv_local_number((const char *)key.mv_data + key.mv_size - 8);
      if (!kv_local_host->pair(op, op->place->name, entry.value, order, order, false)) *code = KV_FAILED;
      return true;
    }
    rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
  }
  return !rc || rc == MDB_NOTFOUND;
}

/* A lease that left nothing need not be revoked with a commit. */
static bool nothing_to_revoke(struct kv_local_moment *moment, MDB_cursor *cursor, const struct kv_op *op) {
  static const char types[] = {LOCAL_OF_KEY, LOCAL_OF_PLACE};
  struct kv_local_key name;
  MDB_val key, value;
  kv_local_key_lease(&name, op->lease->id);
  key = kv_local_val(&name);
  if (mdb_get(moment->txn, moment->env->dbi, &key, &value) != MDB_NOTFOUND) return false;
  for (size_t i = 0; i < sizeof types; i++) {
    kv_local_key_attached(&name, op->lease->id, types[i], (kv_slice){"", 0});
    key = kv_local_val(&name);
    int rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    if (rc == MDB_NOTFOUND) continue;
    if (rc || kv_local_begins(&key, &name, name.size)) return false;
  }
  return true;
}

bool kv_local_read_step(struct kv_local_env *env, struct kv_op *op, kv_code *code, kv_error *error) {
  struct kv_local_reader *reader;
  MDB_cursor *cursor;
  if (kv_local_reader_take(env, &reader)) return false;
  struct kv_local_moment moment = {.env = env, .txn = reader->txn};
  bool answered = false;
  *code = KV_OK;
  if (mdb_cursor_open(reader->txn, env->dbi, &cursor) == 0) {
    switch (op->kind) {
      case KV_QUEUE_AHEAD: case KV_QUEUE_CLAIM: answered = look_ahead(&moment, cursor, op, code); break;
      case KV_QUEUE_HEAD: answered = look_at_head(&moment, cursor, op, code); break;
      case KV_LEASE_REVOKE: answered = nothing_to_revoke(&moment, cursor, op); break;
      default: break;
    }
    mdb_cursor_close(cursor);
  }
  kv_local_reader_give(reader);
  if (answered && *code == KV_LOST) kv_local_fail(error, KV_LOST, "the place in the queue is gone");
  if (answered && *code == KV_FAILED) fail_memory(error);
  return answered;
}
