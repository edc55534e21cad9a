/*
 * election.c - elections: locks that everybody can see.
 *
 * An election is a lock in an area of its own, and a key, ".kv/leader/NAME", that says who leads. The winner writes it
 * when his entry is first in line, in a transaction that requires the entry to stand, and under the lease of the entry;
 * campaign() answers behind that. It is removed, in the same way, before the entry is. So the key never tells of one
 * who does not lead, however late a write arrives, and goes with the lease of one who died. Reading it tells the
 * leader, and an ordinary watch tells every change that the backend's watches tell.
 *
 * What the key says: the token in hex, KV_TOKEN_TEXT bytes, and the leader's value.
 */
#include "lock.h"

#include <stdio.h>
#include <string.h>

#include "../core/backend.h"
#include "../core/watch.h"
#include "../drivers/names.h"

static const struct kv_lock_use election_use = {.noun = "election", .area = ".kv/election/"};

/* ------------------------------------------------------------------ what the key says */

bool kv_leader_read(kv_slice record, uint64_t *token, kv_slice *value) {
  uint64_t number = 0;
  if (record.size < KV_TOKEN_TEXT) return false;
  for (size_t i = 0; i < KV_TOKEN_TEXT; i++) {
    char c = record.data[i];
    if (!(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'f')) return false;
    number = number << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
  }
  if (!number || number >> 53) return false;
  *token = number;
  *value = (kv_slice){record.data + KV_TOKEN_TEXT, record.size - KV_TOKEN_TEXT};
  return true;
}

/* ------------------------------------------------------------------ the steps */

static void guard_part(struct kv_lock *lock) {
  lock->parts[0] = (struct kv_part){.type = KV_PART_GUARD, .place = &lock->entry->pub};
}

void kv_election_announce_parts(struct kv_lock *lock) {
  struct kv_entry *entry = lock->entry;
  char token[KV_TOKEN_TEXT + 1];
  snprintf(token, sizeof token, "%016llx", (unsigned long long)entry->pub.token);
  memcpy((char *)(uintptr_t)entry->leader.data, token, KV_TOKEN_TEXT); /* in entry->text: ours */
  guard_part(lock);
  lock->parts[1] = (struct kv_part){
    .type = KV_PART_PUT, .key = lock->leader, .value = entry->leader, .lease = entry->pub.lease};
}

void kv_election_retract_parts(struct kv_lock *lock) {
  guard_part(lock);
  lock->parts[1] = (struct kv_part){.type = KV_PART_DELETE, .key = lock->leader};
}

/* ------------------------------------------------------------------ handles */

/* The leader's key is one level deep, as what lives no longer than a session has no children on some backends. */
static bool leader_key(kv_slice name, char *out, size_t *size) {
  static const char area[] = ".kv/leader/";
  if (sizeof area - 1 + kv_escaped_size(name) > KV_KEY_MAX) return false;
  *size = kv_append(out, 0, KV_KEY_MAX, area, sizeof area - 1);
  *size = kv_append_escaped(out, *size, KV_KEY_MAX, name);
  return true;
}

kv_lock *kv_election_new(kv_store *store, const kv_lock_options *options, kv_error *error) {
  char name[KV_KEY_MAX], leader[KV_KEY_MAX];
  size_t size = 0, leader_size = 0;
  if (kv_store_key(store, election_use.noun, options->name, false, name, &size, error) != KV_OK) return NULL;
  if (!kv_store_supports(store, "election")) {
    kv_fail(error, KV_UNSUPPORTED, "election \"%.*s\" on %s: this backend has none", (int)size, name,
            kv_store_label(store));
    return NULL;
  }
  if (options->interop) {
    kv_fail(error, KV_UNSUPPORTED, "election \"%.*s\" on %s: only locks are shared with other programs", (int)size,
            name, kv_store_label(store));
    return NULL;
  }
  if (!leader_key((kv_slice){name, size}, leader, &leader_size)) {
    kv_fail(error, KV_INVALID, "election on %s: its name is too long (%d bytes, where slashes count three)",
            kv_store_label(store), KV_KEY_MAX - (int)sizeof ".kv/leader");
    return NULL;
  }
  return kv_lock_make(store, options, &election_use, (kv_slice){leader, leader_size}, error);
}

static kv_code wrong_handle(const kv_lock *lock, kv_kind kind, kv_error *error) {
  return kv_fail(error, KV_INVALID, "%s \"%.*s\": that is no election", kv_kind_text(kind), (int)lock->shown.size,
                 lock->shown.data);
}

kv_code kv_election_campaign(kv_lock *lock, kv_queue *queue, kv_slice value, double timeout, uint64_t tag, uint64_t *id,
                             kv_error *error) {
  bool once = timeout == 0;
  if (!lock->leader.size) return wrong_handle(lock, KV_CAMPAIGN, error);
  size_t limit = kv_lock_inherited(lock) ? 0 : kv_backend_value_max(lock->backend);
  if (limit && value.size + KV_TOKEN_TEXT > limit)
    return kv_fail(error, KV_TOO_LARGE, "campaign \"%.*s\": the value has %zu bytes, at most %zu are allowed",
                   (int)lock->shown.size, lock->shown.data, value.size, limit - KV_TOKEN_TEXT);
  return kv_lock_submit(lock, queue, once ? &kv_lock_try_recipe : &kv_lock_acquire_recipe, KV_CAMPAIGN, value,
                        once ? kv_lock_timeout(lock, 0) : timeout, tag, id, error);
}

kv_code kv_election_resign(kv_lock *lock, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id,
                           kv_error *error) {
  if (!lock->leader.size) return wrong_handle(lock, KV_RESIGN, error);
  return kv_lock_submit(lock, queue, &kv_lock_release_recipe, KV_RESIGN, KV_TEXT(""), kv_lock_timeout(lock, timeout),
                        tag, id, error);
}

kv_code kv_election_observe(kv_lock *lock, kv_queue *queue, uint64_t tag, kv_watch **watch, kv_error *error) {
  *watch = NULL;
  if (!lock->leader.size) return wrong_handle(lock, KV_LEADER, error);
  if (kv_lock_inherited(lock))
    return kv_fail(error, KV_CLOSED, "observe \"%.*s\": opened by the parent process", (int)lock->shown.size,
                   lock->shown.data);
  return kv_watch_open_own(lock->store, queue, lock->leader, tag, watch, error);
}
