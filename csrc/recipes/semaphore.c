/*
 * semaphore.c - semaphores: a lock queue of which the first `limit` hold.
 *
 * Who is before us never becomes more, as entries stand in the order in which they were made. So whoever was once
 * among the first `limit` stays there until his entry goes, and clients that agree on the limit never let in one too
 * many, whatever expires when. That they agree is part of the entries: each one's id begins with its owner's limit, and
 * nobody is let in behind one who knows another.
 *
 * Whom to wait for: of those before us, any `limit` will do. If none of these has gone, at least `limit` are still
 * before us. We take the nearest, so that those far behind sleep while holders come and go: a release wakes `limit`
 * waiters at most, however many there are. Beyond WATCHED_MAX we look once a second as well.
 */
#include "lock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../core/page.h"

#define WATCHED_MAX 32
#define LOOK_AGAIN 1.0 /* seconds */

/* ------------------------------------------------------------------ who is before us */

static uint32_t limit_of(kv_slice id) {
  uint32_t limit = 0;
  if (id.size < KV_LIMIT_TEXT) return UINT32_MAX; /* none of ours */
  for (size_t i = 0; i < KV_LIMIT_TEXT; i++) {
    char c = id.data[i];
    if (!(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'f')) return UINT32_MAX;
    limit = limit << 4 | (uint32_t)(c <= '9' ? c - '0' : c - 'a' + 10);
  }
  return limit ? limit : UINT32_MAX;
}

uint32_t kv_semaphore_look(struct kv_lock *lock, struct kv_result *result, bool *some_agree) {
  kv_pair pair;
  size_t offset = 0;
  uint32_t other = 0;
  *some_agree = false;
  kv_page_free(lock->nearest);
  lock->nearest = result->page;
  result->page = NULL;
  while (lock->nearest && kv_page_next(lock->nearest, &offset, &pair)) {
    uint32_t limit = limit_of(pair.value);
    if (limit == lock->limit) *some_agree = true;
    else other = limit;
  }
  return other;
}

/* ------------------------------------------------------------------ waiting for some of them */

static void wait_done(struct kv_step *step, kv_code code, const char *message, struct kv_result *result) {
  struct kv_wait *wait = step->data;
  struct kv_lock *lock = wait->lock;
  struct kv_outcome outcome = {.code = code, .message = message, .result = result};
  bool matters = !wait->stopped && lock->phase == LOCK_WAITING;
  *wait->link = wait->next;
  if (wait->next) wait->next->link = wait->link;
  kv_recipes_step_done(lock->recipes);
  if (matters) kv_lock_event(lock, LOCK_STEP_DONE, &outcome);
  kv_place_release(&wait->entry->pub);
  free(wait);
  kv_lock_reap_later(lock);
}

static struct kv_wait *find(const struct kv_lock *lock, kv_slice ticket) {
  for (struct kv_wait *wait = lock->waits; wait; wait = wait->next) {
    bool same = strlen(wait->place.ahead) == ticket.size && memcmp(wait->place.ahead, ticket.data, ticket.size) == 0;
    if (same && wait->entry == lock->entry) return wait;
  }
  return NULL;
}

static bool start(struct kv_lock *lock, const kv_pair *ahead) {
  if (ahead->key.size >= KV_TICKET_MAX) return false;
  struct kv_wait *wait = calloc(1, sizeof *wait);
  if (!wait) return false;
  wait->lock = lock;
  wait->wanted = true;
  wait->entry = lock->entry;
  kv_place_retain(&wait->entry->pub);
  wait->place = lock->entry->pub;
  memcpy(wait->place.ahead, ahead->key.data, ahead->key.size);
  wait->place.ahead[ahead->key.size] = '\0';
  wait->place.ahead_revision = ahead->revision;
  wait->step = (struct kv_step){.kind = KV_QUEUE_WAIT, .place = &wait->place, .lease = wait->place.lease,
                                .deadline = KV_NEVER, .done = wait_done, .data = wait};
  wait->next = lock->waits;
  if (wait->next) wait->next->link = &wait->next;
  wait->link = &lock->waits;
  lock->waits = wait;
  kv_recipes_step(lock->recipes, &wait->step);
  return true;
}

static void stop(struct kv_wait *wait) {
  if (wait->stopped) return;
  wait->stopped = true;
  kv_step_cancel(&wait->step);
}

bool kv_semaphore_wait(struct kv_lock *lock) {
  kv_pair pair;
  size_t offset = 0;
  unsigned count = 0;
  if (lock->recipes->over) return true;
  for (struct kv_wait *wait = lock->waits; wait; wait = wait->next) wait->wanted = false;
  while (lock->nearest && kv_page_next(lock->nearest, &offset, &pair) && count++ < WATCHED_MAX) {
    struct kv_wait *wait = find(lock, pair.key);
    if (wait && !wait->stopped) wait->wanted = true;
    else if (!start(lock, &pair)) return false;
  }
  for (struct kv_wait *wait = lock->waits; wait; wait = wait->next)
    if (!wait->wanted) stop(wait);
  bool all = count && count <= WATCHED_MAX;
  if (!all) kv_timer_set(&lock->pause, kv_deadline(kv_now(), LOOK_AGAIN));
  return true;
}

void kv_semaphore_stop(struct kv_lock *lock) {
  for (struct kv_wait *wait = lock->waits; wait; wait = wait->next) stop(wait);
  kv_page_free(lock->nearest);
  lock->nearest = NULL;
}

/* ------------------------------------------------------------------ handles */

kv_lock *kv_semaphore_new(kv_store *store, const kv_lock_options *options, uint32_t limit, kv_error *error) {
  static const struct kv_lock_use use = {.noun = "semaphore", .area = ".kv/semaphore/"};
  int size = options->name.size > 160 ? 160 : (int)options->name.size;
  const char *name = options->name.data ? options->name.data : "", *label = kv_store_label(store), *problem = NULL;
  if (!limit || limit > KV_SEMAPHORE_MAX) {
    kv_fail(error, KV_INVALID, "semaphore \"%.*s\" on %s: its limit must be 1 to %d", size, name, label,
            KV_SEMAPHORE_MAX);
    return NULL;
  }
  if (!kv_store_supports(store, "semaphore")) problem = "this backend has none";
  else if (options->interop) problem = "only locks are shared with other programs";
  if (problem) {
    kv_fail(error, KV_UNSUPPORTED, "semaphore \"%.*s\" on %s: %s", size, name, label, problem);
    return NULL;
  }
  kv_lock *lock = kv_lock_make(store, options, &use, KV_TEXT(""), error);
  if (lock) lock->limit = limit;
  return lock;
}
