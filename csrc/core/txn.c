/*
 * txn.c - building transactions: every rule that holds on all backends is checked here, before anything is sent: at
 * most KV_TXN_MAX parts, and per key one check and one write.
 */
#include "txn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "op.h"
#include "page.h"

kv_txn *kv_txn_new(kv_store *store, kv_error *error) {
  if (kv_store_closed(store)) {
    kv_fail(error, KV_CLOSED, "transaction on %s: the store was closed", store->label);
    return NULL;
  }
  if (!(store->backend->driver->capabilities & KV_CAN_TXN)) {
    kv_fail(error, KV_UNSUPPORTED, "transaction on %s: this backend has none", store->label);
    return NULL;
  }
  kv_txn *txn = calloc(1, sizeof *txn);
  if (!txn) {
    kv_fail(error, KV_FAILED, "out of memory");
    return NULL;
  }
  atomic_init(&txn->references, 1);
  txn->fork_count = kv_fork_count();
  txn->backend = store->backend;
  kv_backend_retain(txn->backend);
  txn->prefix_size = store->prefix_size;
  memcpy(txn->prefix, store->prefix, store->prefix_size);
  return txn;
}

void kv_txn_retain(const kv_txn *txn) {
  atomic_fetch_add_explicit(&((kv_txn *)(uintptr_t)txn)->references, 1, memory_order_relaxed);
}

static void clear_part(struct kv_part *part) {
  free((char *)(uintptr_t)part->key.data);
  if (part->lease) kv_lease_reference_release(part->lease);
  if (part->place) kv_place_release(part->place);
}

void kv_txn_release(kv_txn *txn) {
  if (atomic_fetch_sub_explicit(&txn->references, 1, memory_order_acq_rel) != 1) return;
  for (size_t i = 0; i < txn->count; i++) clear_part(&txn->parts[i]);
  kv_backend_release(txn->backend);
  free(txn);
}

void kv_txn_free(kv_txn *txn) {
  if (txn && txn->fork_count == kv_fork_count()) kv_txn_release(txn);
}

static bool is_check(enum kv_part_type type) {
  return type == KV_PART_CHECK || type == KV_PART_ABSENT || type == KV_PART_GUARD;
}

static kv_code refuse_twice(const kv_txn *txn, bool check, kv_slice key, kv_error *error) {
  for (size_t i = 0; i < txn->count; i++) {
    const struct kv_part *part = &txn->parts[i];
    if (part->type == KV_PART_GUARD || is_check(part->type) != check) continue;
    if (part->key.size == key.size && memcmp(part->key.data, key.data, key.size) == 0)
      return kv_fail(error, KV_INVALID, "transaction: a second %s of key \"%.*s\"", check ? "check" : "write",
                     (int)key.size, key.data);
  }
  return KV_OK;
}

static bool is_below(kv_slice key, kv_slice above) {
  return key.size > above.size && key.data[above.size] == '/' && memcmp(key.data, above.data, above.size) == 0;
}

/* Portable mode: of two keys that are put none may be the other's directory. What is there before is the driver's to
 * look at. */
static kv_code refuse_nested(const kv_txn *txn, kv_slice key, kv_error *error) {
  if (!txn->backend->config.portable) return KV_OK;
  for (size_t i = txn->checks; i < txn->count; i++) {
    const struct kv_part *part = &txn->parts[i];
    if (part->type != KV_PART_PUT) continue;
    bool above = is_below(part->key, key);
    if (!above && !is_below(key, part->key)) continue;
    return kv_fail(error, above ? KV_IS_DIR : KV_NOT_DIR,
                   "transaction: it puts key \"%.*s\" too, %s \"%.*s\" (portable mode)", (int)part->key.size,
                   part->key.data, above ? "below" : "above", (int)key.size, key.data);
  }
  return KV_OK;
}

static kv_code room_for_one(const kv_txn *txn, kv_error *error) {
  if (txn->count < KV_TXN_MAX) return KV_OK;
  return kv_fail(error, KV_INVALID, "transaction: more than %d operations", KV_TXN_MAX);
}

/* Checks stand before writes, in their own order. */
static void insert(kv_txn *txn, const struct kv_part *part) {
  size_t at = is_check(part->type) ? txn->checks++ : txn->count;
  memmove(&txn->parts[at + 1], &txn->parts[at], (txn->count - at) * sizeof *part);
  txn->parts[at] = *part;
  txn->count++;
}

/* Key (canonical, with prefix) and value in one block, owned by the part. */
static kv_code fill(kv_txn *txn, struct kv_part *part, kv_slice key, kv_slice value, kv_error *error) {
  char canonical[KV_KEY_MAX];
  size_t size = 0;
  if (txn->fork_count != kv_fork_count()) return kv_fail(error, KV_CLOSED, "transaction: opened by the parent process");
  kv_code code = room_for_one(txn, error);
  kv_error cause;
  if (code != KV_OK) return code;
  code = kv_key_join(txn->prefix, txn->prefix_size, key, false, canonical, &size, &cause);
  if (code != KV_OK) return kv_fail(error, code, "transaction: %s", cause.message);
  kv_slice full = {canonical, size};
  if (code == KV_OK) code = refuse_twice(txn, is_check(part->type), full, error);
  if (code == KV_OK && part->type == KV_PART_PUT) code = refuse_nested(txn, full, error);
  if (code != KV_OK) return code;
  size_t limit = kv_backend_value_max(txn->backend);
  if (limit && value.size > limit)
    return kv_fail(error, KV_TOO_LARGE, "transaction: value of key \"%.*s\" has %zu bytes, at most %zu are allowed",
                   (int)size, canonical, value.size, limit);
  char *room = malloc(size + value.size);
  if (!room) return kv_fail(error, KV_FAILED, "out of memory");
  memcpy(room, canonical, size);
  if (value.size) memcpy(room + size, value.data, value.size);
  part->key = (kv_slice){room, size};
  part->value = (kv_slice){room + size, value.size};
  return KV_OK;
}

static kv_code add(kv_txn *txn, struct kv_part part, kv_slice key, kv_slice value, kv_error *error) {
  kv_code code = fill(txn, &part, key, value, error);
  if (code == KV_OK) insert(txn, &part);
  return code;
}

kv_code kv_txn_check(kv_txn *txn, kv_slice key, uint64_t revision, kv_error *error) {
  if (!revision)
    return kv_fail(error, KV_MODIFIED, "transaction: check of key \"%.*s\": no key has revision 0",
                   key.size > 160 ? 160 : (int)key.size, key.data);
  return add(txn, (struct kv_part){.type = KV_PART_CHECK, .revision = revision}, key, KV_TEXT(""), error);
}

kv_code kv_txn_check_absent(kv_txn *txn, kv_slice key, kv_error *error) {
  return add(txn, (struct kv_part){.type = KV_PART_ABSENT}, key, KV_TEXT(""), error);
}

kv_code kv_txn_delete(kv_txn *txn, kv_slice key, kv_error *error) {
  return add(txn, (struct kv_part){.type = KV_PART_DELETE}, key, KV_TEXT(""), error);
}

static kv_code check_life(const kv_txn *txn, double ttl, bool keep_alive, bool lease, kv_error *error) {
  uint32_t can = txn->backend->driver->capabilities;
  if (!(ttl >= 0) || isinf(ttl)) return kv_fail(error, KV_INVALID, "transaction: ttl is no number of seconds");
  if ((ttl > 0) + keep_alive + lease > 1)
    return kv_fail(error, KV_INVALID, "transaction: only one of ttl, lease and keep_alive");
  if (ttl > 0 && !(can & KV_CAN_TTL))
    return kv_fail(error, KV_UNSUPPORTED, "transaction on %s: this backend has no time to live", txn->backend->label);
  if ((keep_alive || lease) && !(can & KV_CAN_LEASE))
    return kv_fail(error, KV_UNSUPPORTED, "transaction on %s: this backend has no leases", txn->backend->label);
  return KV_OK;
}

kv_code kv_txn_put(kv_txn *txn, kv_slice key, kv_slice value, double ttl, unsigned flags, kv_lease *lease,
                   kv_error *error) {
  struct kv_part part = {.type = KV_PART_PUT, .ttl = ttl, .keep_alive = (flags & KV_KEEP_ALIVE) != 0};
  kv_code life = check_life(txn, ttl, part.keep_alive, lease != NULL, error);
  if (life != KV_OK) return life;
  if (lease && !(part.lease = kv_lease_reference(lease)))
    return kv_fail(error, KV_NOT_HELD, "transaction: the lease is not alive");
  kv_code code = add(txn, part, key, value, error);
  if (code != KV_OK && part.lease) kv_lease_reference_release(part.lease);
  return code;
}

kv_code kv_txn_guard(kv_txn *txn, kv_lock *lock, kv_error *error) {
  if (txn->fork_count != kv_fork_count()) return kv_fail(error, KV_CLOSED, "transaction: opened by the parent process");
  kv_code code = room_for_one(txn, error);
  if (code != KV_OK) return code;
  struct kv_part part = {.type = KV_PART_GUARD, .place = kv_lock_place(lock)};
  if (!part.place) return kv_fail(error, KV_NOT_HELD, "transaction: the lock of the guard is not held");
  insert(txn, &part);
  return KV_OK;
}
