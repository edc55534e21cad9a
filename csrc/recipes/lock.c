/*
 * lock.c - the machine of a lock: a place in a fair queue, verified before it counts, kept by a lease.
 *
 *   FREE -> GRANTING -> JOINING -> LOOKING -> WAITING -> CLAIMING -> HELD <-> SUSPENDED -> LOST
 *                          |__________|__________|__________|__________|
 *                                               LEAVING -> FREE
 *
 * An election has one phase more on each way: CLAIMING -> ANNOUNCING -> HELD, in which the new leader's key is written
 * on the condition that its entry stands, and HELD -> RETRACTING -> LEAVING, in which it is removed again. A semaphore
 * does not look: JOINING -> CLAIMING <-> WAITING, as a claim tells who is before us, and there may be many to wait for.
 *
 * next_phase() alone decides where an event leads; arrive() does what must be true at once (what other threads see,
 * answers, the lease's use); act() starts the one step that a phase is about.
 *
 * There is one step in flight at most. When the phase changes under it, it is cancelled, and the new phase's step
 * begins when the driver has let go of it: so a LEAVE never overtakes its own JOIN. A JOIN that was not answered
 * cleanly may still take effect later; then the lease is revoked after the leave, with whatever appears under it.
 *
 * An entry or a lease that is lost while we wait costs the place in the queue: everything begins again under a new
 * lease. When it is lost while we hold, that is final: LOST.
 */
#include "lock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../core/page.h"

#define LOOKS_ALONE 2        /* at a semaphore's neighbours who know another limit, a tenth of a second apart */
#define LOOKS_WITH_OTHERS 20
#define LAPS_WITHOUT_REST 16 /* waits that ended without making us first, before we slow down */

static void act(struct kv_lock *lock);
static void step_done(struct kv_step *step, kv_code code, const char *message, struct kv_result *result);

/* ------------------------------------------------------------------ entries */

static struct kv_entry *entry_new(const struct kv_lock *lock) {
  /* Who campaigns says each time with what. */
  kv_slice value = lock->leader.size && lock->acquire.op ? lock->acquire.op->value : lock->value;
  struct kv_entry *entry = calloc(1, sizeof *entry + lock->name.size + KV_TOKEN_TEXT + value.size + 1);
  if (!entry) return NULL;
  char *leader = entry->text + lock->name.size;
  atomic_init(&entry->references, 1);
  memcpy(entry->text, lock->name.data, lock->name.size);
  if (value.size) memcpy(leader + KV_TOKEN_TEXT, value.data, value.size);
  entry->pub.name = (kv_slice){entry->text, lock->name.size};
  entry->leader = (kv_slice){leader, KV_TOKEN_TEXT + value.size};
  entry->pub.value = (kv_slice){leader + KV_TOKEN_TEXT, value.size};
  snprintf(entry->pub.id, sizeof entry->pub.id, "%016llx%016llx", (unsigned long long)kv_random(),
           (unsigned long long)kv_random());
  entry->pub.interop = lock->interop;
  entry->pub.limit = lock->limit;
  char limit[KV_LIMIT_TEXT + 1];
  snprintf(limit, sizeof limit, "%08lx", (unsigned long)lock->limit);
  if (lock->limit) memcpy(entry->pub.id, limit, KV_LIMIT_TEXT);
  entry->pub.lease = &lock->lease->ref;
  kv_lease_retain(lock->lease);
  return entry;
}

void kv_place_retain(struct kv_place *place) {
  atomic_fetch_add_explicit(&((struct kv_entry *)place)->references, 1, memory_order_relaxed);
}

void kv_place_release(const struct kv_place *place) {
  struct kv_entry *entry = (struct kv_entry *)(uintptr_t)place;
  if (atomic_fetch_sub_explicit(&entry->references, 1, memory_order_acq_rel) != 1) return;
  kv_lease_reference_release(entry->pub.lease);
  free(entry);
}

static void drop_entry(struct kv_lock *lock) {
  if (lock->entry) kv_place_release(&lock->entry->pub);
  lock->entry = NULL;
}

/* ------------------------------------------------------------------ the lease */

static void detach_lease(struct kv_lock *lock) {
  struct kv_lease *lease = lock->lease;
  lock->lease = NULL;
  if (!lease) return;
  lease->changed = NULL;
  kv_lease_set_place(lease, NULL);
  kv_lease_release(lease);
}

static void drop_lease(struct kv_lock *lock) {
  if (!lock->lease) return;
  lock->lease->changed = NULL;
  kv_lease_drop(lock->lease);
  detach_lease(lock);
}

static void remember(struct kv_lock *lock, kv_code code, const char *message) {
  lock->last_code = code;
  snprintf(lock->problem, sizeof lock->problem, "%s", message);
}

static void lease_changed(struct kv_lease *lease, enum kv_lease_news news, kv_code code, const char *message) {
  struct kv_lock *lock = lease->owner;
  struct kv_outcome outcome = {.code = code, .message = message};
  switch (news) {
    case LEASE_READY: kv_lock_event(lock, LOCK_LEASE_READY, NULL); break;
    case LEASE_RENEWED: kv_lock_event(lock, LOCK_LEASE_RENEWED, NULL); break;
    case LEASE_FAILING: kv_lock_event(lock, LOCK_LEASE_FAILING, NULL); break;
    case LEASE_REFUSED:
      detach_lease(lock);
      kv_asked_answer(&lock->acquire, code, "%s", message);
      kv_lock_event(lock, LOCK_GIVE_UP, NULL);
      break;
    case LEASE_ENDED:
      detach_lease(lock);
      kv_lock_event(lock, LOCK_LEASE_ENDED, &outcome);
      break;
    case LEASE_REVOKE_FAILED: case LEASE_REVOKED: break;
  }
}

/* One that another lock left, or a new one. */
static bool make_lease(struct kv_lock *lock) {
  bool with_key = lock->leader.size > 0;
  struct kv_lease *lease = kv_spare_take(lock->recipes, lock->ttl, with_key);
  if (!lease) lease = kv_lease_make(lock->backend, lock->ttl);
  if (!lease) return false;
  lease->ref.for_lock = true;
  lease->ref.with_key = with_key;
  lease->owner = lock;
  lease->changed = lease_changed;
  lock->lease = lease;
  return true;
}

/* ------------------------------------------------------------------ what other threads see */

static kv_lock_state shown_state(const struct kv_lock *lock) {
  switch (lock->phase) {
    case LOCK_GRANTING: case LOCK_JOINING: case LOCK_LOOKING: case LOCK_WAITING: case LOCK_CLAIMING:
    case LOCK_ANNOUNCING:
      return KV_LOCK_WAITING;
    case LOCK_HELD: return KV_LOCK_HOLDING;
    case LOCK_SUSPENDED: return KV_LOCK_SUSPENDED;
    case LOCK_LOST: return KV_LOCK_LOST;
    case LOCK_RETRACTING: case LOCK_LEAVING: return lock->acquire.op ? KV_LOCK_WAITING : KV_LOCK_FREE;
    case LOCK_FREE: case LOCK_STAY: break;
  }
  return KV_LOCK_FREE;
}

static bool holds(const struct kv_lock *lock) {
  return lock->phase == LOCK_HELD || lock->phase == LOCK_SUSPENDED;
}

static void publish(struct kv_lock *lock) {
  int64_t deadline = 0;
  if (holds(lock) && lock->lease) deadline = atomic_load_explicit(&lock->lease->deadline, memory_order_relaxed);
  if (lock->lease && lock->phase != LOCK_GRANTING)
    atomic_store_explicit(&lock->granted, kv_lease_ttl(lock->lease), memory_order_relaxed);
  atomic_store_explicit(&lock->deadline, deadline, memory_order_release);
  atomic_store_explicit(&lock->state, (int)shown_state(lock), memory_order_release);
}

/* What kv_lock_place() hands out: `entry`, or NULL when it is not held any more. */
static void set_held(struct kv_lock *lock, struct kv_entry *entry) {
  if (entry) kv_place_retain(&entry->pub);
  pthread_mutex_lock(&lock->guard);
  struct kv_entry *before = lock->held;
  lock->held = entry;
  pthread_mutex_unlock(&lock->guard);
  if (before) kv_place_release(&before->pub);
}

bool kv_lock_is_held(const struct kv_lock *lock) {
  return kv_clock() < atomic_load_explicit(&lock->deadline, memory_order_acquire);
}

/* ------------------------------------------------------------------ transitions */

/* Wait before the next step. */
static void rest(struct kv_lock *lock, double seconds) {
  lock->not_before = kv_deadline(kv_now(), seconds);
}

static void rest_after_failure(struct kv_lock *lock) {
  rest(lock, kv_backoff(lock->failures));
  if (lock->failures < 100) lock->failures++;
}

/* Our entry or its lease is gone: begin again, at the end of the queue. */
static enum kv_lock_phase restart(struct kv_lock *lock) {
  drop_lease(lock);
  if (lock->restarts) rest(lock, kv_backoff(lock->restarts));
  if (lock->restarts < 100) lock->restarts++;
  return LOCK_GRANTING;
}

/* Who tries once is told when its entry is gone: else the next one to try might find it there, and nobody behind it. */
static enum kv_lock_phase blocked(struct kv_lock *lock, enum kv_lock_phase next) {
  if (!lock->try_once) return next;
  lock->turned_away = true;
  return LOCK_LEAVING;
}

static void answer_turned_away(struct kv_lock *lock) {
  if (!lock->turned_away) return;
  lock->turned_away = false;
  kv_asked_answer(&lock->acquire, KV_TIMEOUT, lock->limit ? "others hold all of it" : "somebody else holds it");
}

/* It is first in line; an election is won when everybody can see it. */
static enum kv_lock_phase taken(struct kv_lock *lock) {
  if (!lock->lease || !kv_lease_usable(lock->lease)) return restart(lock);
  if (lock->leader.size && lock->phase != LOCK_ANNOUNCING) return LOCK_ANNOUNCING;
  return lock->lease->phase == LEASE_SUSPENDED ? LOCK_SUSPENDED : LOCK_HELD;
}

/* The way out of a phase in which the leader's key may be there. */
static enum kv_lock_phase on_the_way_out(const struct kv_lock *lock) {
  return lock->leader.size ? LOCK_RETRACTING : LOCK_LEAVING;
}

static enum kv_lock_phase not_first(struct kv_lock *lock, const struct kv_result *result) {
  if (result->retry_after > 0) {
    rest(lock, result->retry_after);
    return blocked(lock, LOCK_CLAIMING);
  }
  if (++lock->laps % LAPS_WITHOUT_REST == 0) rest(lock, kv_backoff(1));
  return LOCK_LOOKING;
}

/* A semaphore's join or claim told who is before us. Somebody who knows another limit may be about to find that out and
 * to leave: so he is looked at again, and for longer when there are others who agree with us. */
static enum kv_lock_phase place_known(struct kv_lock *lock, struct kv_result *result, bool holds_now) {
  bool some_agree;
  uint32_t other = kv_semaphore_look(lock, result, &some_agree);
  if (!other) {
    lock->disagreements = 0;
    return holds_now ? taken(lock) : blocked(lock, LOCK_WAITING);
  }
  if (++lock->disagreements < (some_agree ? LOOKS_WITH_OTHERS : LOOKS_ALONE)) {
    rest(lock, 0.1);
    return LOCK_CLAIMING;
  }
  kv_asked_answer(&lock->acquire, KV_INVALID, "its limit is %lu for others, and %lu here", (unsigned long)other,
                  (unsigned long)lock->limit);
  return LOCK_LEAVING;
}

static enum kv_lock_phase after_failure(struct kv_lock *lock, kv_code code, const char *message) {
  remember(lock, code, message);
  if (code == KV_LOST) return restart(lock);
  if (kv_code_passes(code) || (lock->phase == LOCK_WAITING && code == KV_COMPACTED)) {
    rest_after_failure(lock);
    if (lock->phase == LOCK_WAITING) return lock->limit ? LOCK_CLAIMING : LOCK_LOOKING;
    return lock->phase;
  }
  kv_asked_answer(&lock->acquire, code, "%s", message);
  return LOCK_LEAVING;
}

static enum kv_lock_phase after_join(struct kv_lock *lock, struct kv_result *result) {
  if (lock->limit) {
    bool holds_now = !result->found && lock->entry->pub.token;
    return result->answered_ahead ? place_known(lock, result, holds_now) : LOCK_CLAIMING;
  }
  if (!result->answered_ahead) return LOCK_LOOKING;
  if (result->found) return blocked(lock, LOCK_WAITING);
  return lock->entry->pub.token ? taken(lock) : LOCK_CLAIMING;
}

static enum kv_lock_phase after_queue_step(struct kv_lock *lock, const struct kv_outcome *outcome) {
  struct kv_result *result = outcome->result;
  if (outcome->code != KV_OK) return after_failure(lock, outcome->code, outcome->message);
  lock->failures = 0;
  lock->problem[0] = '\0';
  switch (lock->phase) {
    case LOCK_JOINING: return after_join(lock, result);
    case LOCK_LOOKING: return result->found ? blocked(lock, LOCK_WAITING) : LOCK_CLAIMING;
    case LOCK_WAITING: return LOCK_CLAIMING; /* which reads again, strongly */
    default:
      if (lock->limit) return place_known(lock, result, result->found);
      return result->found ? taken(lock) : not_first(lock, result);
  }
}

static enum kv_lock_phase after_announce(struct kv_lock *lock, const struct kv_outcome *outcome) {
  if (outcome->code == KV_OK) {
    lock->failures = 0;
    lock->problem[0] = '\0';
    return taken(lock);
  }
  lock->doubtful = true; /* also when it is refused now, it may have been done by an earlier try */
  remember(lock, outcome->code, outcome->message);
  if (outcome->code == KV_MODIFIED || outcome->code == KV_LOST) return restart(lock);
  if (kv_code_passes(outcome->code)) {
    rest_after_failure(lock);
    return LOCK_ANNOUNCING;
  }
  kv_asked_answer(&lock->acquire, outcome->code, "%s", outcome->message);
  return LOCK_RETRACTING;
}

static enum kv_lock_phase after_retract(struct kv_lock *lock, const struct kv_outcome *outcome) {
  if (outcome->code == KV_OK) return LOCK_LEAVING;
  lock->doubtful = true; /* then it goes with the lease */
  if (!kv_code_passes(outcome->code) || !lock->lease || !kv_lease_usable(lock->lease)) return LOCK_LEAVING;
  remember(lock, outcome->code, outcome->message);
  rest_after_failure(lock);
  return LOCK_RETRACTING;
}

static enum kv_lock_phase left(const struct kv_lock *lock) {
  return lock->acquire.op ? LOCK_GRANTING : LOCK_FREE;
}

static enum kv_lock_phase after_leave(struct kv_lock *lock, const struct kv_outcome *outcome) {
  kv_code code = outcome->code;
  /* A repeated leave that finds nothing may have found it the first time. And the first request may still be on its
   * way: it must not meet the next entry under this lease. */
  bool repeated = lock->step.attempts > 1 || lock->failures > 0;
  if (repeated) lock->doubtful = true;
  if (code == KV_OK && (outcome->result->found || repeated)) {
    kv_asked_answer(&lock->release, KV_OK, NULL);
  } else if (code == KV_OK || code == KV_LOST) {
    kv_asked_answer(&lock->release, KV_LOST, "our entry was gone already");
  } else if (!kv_code_passes(code)) {
    lock->doubtful = true;
    kv_asked_answer(&lock->release, code, "%s; the entry goes with its lease", outcome->message);
  } else if (!lock->lease) {
    kv_asked_answer(&lock->release, KV_UNKNOWN, "the lease expired before an answer came: %s", outcome->message);
  } else {
    remember(lock, code, outcome->message);
    rest_after_failure(lock);
    return LOCK_LEAVING;
  }
  return left(lock);
}

static enum kv_lock_phase lease_ended_leaving(struct kv_lock *lock, const char *reason) {
  if (lock->busy && !lock->stale) return LOCK_STAY; /* the answer to our leave is still to come */
  kv_asked_answer(&lock->release, KV_UNKNOWN, "the lease ended before the entry was removed: %s", reason);
  return left(lock);
}

static enum kv_lock_phase next_phase(struct kv_lock *lock, enum kv_lock_event event, const struct kv_outcome *outcome) {
  switch (lock->phase) {
    case LOCK_FREE:
      if (event == LOCK_ACQUIRE) return LOCK_GRANTING;
      return event == LOCK_CLOSE ? LOCK_FREE : LOCK_STAY;
    case LOCK_LOST:
      if (event == LOCK_ACQUIRE) return LOCK_GRANTING;
      if (event != LOCK_RELEASE) return LOCK_STAY;
      kv_asked_answer(&lock->release, KV_LOST, "%s", lock->reason);
      return LOCK_FREE;
    case LOCK_GRANTING:
      if (event == LOCK_LEASE_READY) return LOCK_JOINING;
      if (event == LOCK_LEASE_ENDED || event == LOCK_PAUSE_OVER) return LOCK_GRANTING;
      return event == LOCK_GIVE_UP || event == LOCK_CLOSE ? LOCK_FREE : LOCK_STAY;
    case LOCK_JOINING: case LOCK_LOOKING: case LOCK_WAITING: case LOCK_CLAIMING:
      if (event == LOCK_STEP_DONE) return after_queue_step(lock, outcome);
      if (event == LOCK_PAUSE_OVER) return lock->limit && lock->phase == LOCK_WAITING ? LOCK_CLAIMING : lock->phase;
      if (event == LOCK_LEASE_ENDED) return restart(lock);
      return event == LOCK_GIVE_UP || event == LOCK_CLOSE ? LOCK_LEAVING : LOCK_STAY;
    case LOCK_ANNOUNCING:
      if (event == LOCK_STEP_DONE) return after_announce(lock, outcome);
      if (event == LOCK_PAUSE_OVER) return LOCK_ANNOUNCING;
      if (event == LOCK_LEASE_ENDED) return restart(lock);
      if (event != LOCK_GIVE_UP && event != LOCK_CLOSE) return LOCK_STAY;
      lock->doubtful = true;
      return LOCK_RETRACTING;
    case LOCK_HELD: case LOCK_SUSPENDED:
      if (event == LOCK_LEASE_RENEWED) return LOCK_HELD;
      if (event == LOCK_LEASE_FAILING) return LOCK_SUSPENDED;
      if (event == LOCK_LEASE_ENDED) return LOCK_LOST;
      return event == LOCK_RELEASE || event == LOCK_CLOSE ? on_the_way_out(lock) : LOCK_STAY;
    case LOCK_RETRACTING:
      if (event == LOCK_STEP_DONE) return after_retract(lock, outcome);
      if (event == LOCK_PAUSE_OVER) return LOCK_RETRACTING;
      return event == LOCK_LEASE_ENDED ? LOCK_LEAVING : LOCK_STAY;
    case LOCK_LEAVING:
      if (event == LOCK_STEP_DONE || event == LOCK_LEASE_ENDED || event == LOCK_CLOSE) answer_turned_away(lock);
      if (event == LOCK_STEP_DONE) return after_leave(lock, outcome);
      if (event == LOCK_PAUSE_OVER) return LOCK_LEAVING;
      return event == LOCK_LEASE_ENDED ? lease_ended_leaving(lock, outcome->message) : LOCK_STAY;
    case LOCK_STAY: break;
  }
  return LOCK_STAY;
}

/* ------------------------------------------------------------------ arriving in a phase */

static void arrive_held(struct kv_lock *lock, bool before) {
  if (before) {
    publish(lock);
    return;
  }
  struct kv_op *op = lock->acquire.op;
  lock->restarts = lock->laps = 0;
  atomic_store_explicit(&lock->token, lock->entry->pub.token, memory_order_relaxed);
  set_held(lock, lock->entry);
  publish(lock);
  if (!op) return;
  op->result.revision = lock->entry->pub.token;
  kv_asked_answer(&lock->acquire, KV_OK, NULL);
}

/* The lease is kept for a while: the next acquire then costs one round trip. */
static void arrive_free(struct kv_lock *lock) {
  drop_entry(lock);
  if (!lock->lease) return;
  if (!lock->doubtful && kv_lease_usable(lock->lease) && kv_spare_put(lock->recipes, lock->lease))
    lock->lease = NULL;
  else
    drop_lease(lock);
}

static void arrive_lost(struct kv_lock *lock, const char *reason) {
  snprintf(lock->reason, sizeof lock->reason, "%s", reason);
  drop_entry(lock);
  drop_lease(lock);
  kv_op_list_answer(&lock->lost_waiters, KV_OK, lock->reason);
}

static void arrive(struct kv_lock *lock, enum kv_lock_phase before, const struct kv_outcome *outcome) {
  bool held_before = before == LOCK_HELD || before == LOCK_SUSPENDED;
  if (lock->limit && lock->phase != LOCK_WAITING && lock->phase != LOCK_CLAIMING) kv_semaphore_stop(lock);
  if (holds(lock)) {
    arrive_held(lock, held_before);
    return;
  }
  publish(lock);
  if (held_before) set_held(lock, NULL);
  switch (lock->phase) {
    case LOCK_FREE: arrive_free(lock); break;
    case LOCK_LOST: arrive_lost(lock, outcome ? outcome->message : "not renewed in time"); break;
    case LOCK_GRANTING:
      if (lock->doubtful) drop_lease(lock);
      drop_entry(lock);
      break;
    case LOCK_JOINING:
      if (before == LOCK_GRANTING) kv_lease_set_use(lock->lease, LEASE_USED);
      break;
    case LOCK_RETRACTING: case LOCK_LEAVING:
      if (!lock->lease) break;
      kv_lease_set_place(lock->lease, NULL);
      kv_lease_set_use(lock->lease, LEASE_RESTING);
      break;
    default: break;
  }
}

/* The phase's step begins now, or when the one in flight is out of the way. */
static void change(struct kv_lock *lock, enum kv_lock_phase next, const struct kv_outcome *outcome) {
  enum kv_lock_phase before = lock->phase;
  lock->phase = next;
  kv_timer_stop(&lock->pause);
  bool leaves = next != before && (next == LOCK_RETRACTING || next == LOCK_LEAVING);
  bool begins = before == LOCK_FREE || before == LOCK_LOST;
  if (leaves) lock->failures = 0;
  if (begins || leaves) lock->not_before = 0; /* rests of something else */
  arrive(lock, before, outcome);
  if (lock->phase == LOCK_FREE || lock->phase == LOCK_LOST) {
    kv_lock_reap_later(lock);
    kv_recipes_settle(lock->recipes);
  }
  if (!lock->busy) {
    act(lock);
  } else if (!holds(lock)) {
    lock->stale = true;
    kv_step_cancel(&lock->step);
  }
}

void kv_lock_event(struct kv_lock *lock, enum kv_lock_event event, const struct kv_outcome *outcome) {
  /* A process that was stopped may see its timers last: the deadline comes before everything. */
  if (holds(lock) && event != LOCK_LEASE_ENDED && lock->lease && !kv_lease_usable(lock->lease)) {
    struct kv_outcome late = {.code = KV_LOST, .message = "not renewed in time"};
    change(lock, LOCK_LOST, &late);
  }
  enum kv_lock_phase next = next_phase(lock, event, outcome);
  if (next != LOCK_STAY) change(lock, next, outcome);
  else if (event == LOCK_ACQUIRE || event == LOCK_GIVE_UP) publish(lock); /* an acquire behind a leave comes or goes */
}

/* ------------------------------------------------------------------ steps */

static void start(struct kv_lock *lock, kv_kind kind, int64_t deadline) {
  if (lock->recipes->over) return;
  lock->step = (struct kv_step){.kind = kind, .place = &lock->entry->pub, .lease = lock->entry->pub.lease,
                                .deadline = deadline, .done = step_done, .data = lock};
  lock->entry_in_step = lock->entry;
  kv_place_retain(&lock->entry->pub);
  lock->busy = true;
  kv_recipes_step(lock->recipes, &lock->step);
}

/* The leader's key, under the condition that our entry stands. */
static void start_txn(struct kv_lock *lock, void (*make_parts)(struct kv_lock *lock), int64_t deadline) {
  if (lock->recipes->over) return;
  make_parts(lock);
  lock->step = (struct kv_step){.kind = KV_TXN, .parts = lock->parts, .part_count = 2, .deadline = deadline,
                                .done = step_done, .data = lock};
  lock->entry_in_step = lock->entry;
  kv_place_retain(&lock->entry->pub);
  lock->busy = true;
  kv_recipes_step(lock->recipes, &lock->step);
}

static int64_t acquire_deadline(const struct kv_lock *lock) {
  return kv_step_deadline_for(lock->backend, lock->acquire.op);
}

static void fail_acquire(struct kv_lock *lock, const char *message) {
  kv_asked_answer(&lock->acquire, KV_FAILED, "%s", message);
  kv_lock_event(lock, LOCK_GIVE_UP, NULL);
}

static void begin_lease(struct kv_lock *lock) {
  if (lock->lease && lock->lease->phase == LEASE_GRANTING) return; /* on its way */
  if (!lock->lease || !kv_lease_usable(lock->lease)) drop_lease(lock);
  if (!lock->lease && !make_lease(lock)) {
    fail_acquire(lock, "out of memory");
    return;
  }
  if (kv_lease_usable(lock->lease)) {
    kv_lock_event(lock, LOCK_LEASE_READY, NULL);
    return;
  }
  lock->lease->try_until = acquire_deadline(lock);
  kv_lease_begin(lock->lease, lock->recipes);
}

static void join(struct kv_lock *lock) {
  if (!lock->entry) {
    lock->doubtful = false;
    lock->entry = entry_new(lock);
    if (!lock->entry) {
      fail_acquire(lock, "out of memory");
      return;
    }
  }
  start(lock, KV_QUEUE_JOIN, acquire_deadline(lock));
}

/* Not for long after the lease: the entry is gone with it. */
static int64_t leave_deadline(const struct kv_lock *lock) {
  int64_t at = kv_step_deadline(lock->backend);
  int64_t lease_end = atomic_load_explicit(&lock->lease->deadline, memory_order_relaxed);
  int64_t end = kv_deadline(lease_end > kv_now() ? lease_end : kv_now(), kv_lease_ttl(lock->lease) / 3);
  return end < at ? end : at;
}

static void retract(struct kv_lock *lock) {
  if (lock->lease && lock->entry) {
    start_txn(lock, kv_election_retract_parts, leave_deadline(lock));
    return;
  }
  struct kv_outcome outcome = {.code = KV_LOST, .message = "it is gone"};
  kv_lock_event(lock, LOCK_LEASE_ENDED, &outcome);
}

static void leave(struct kv_lock *lock) {
  if (lock->lease && lock->entry) {
    start(lock, KV_QUEUE_LEAVE, leave_deadline(lock));
    return;
  }
  struct kv_outcome outcome = {.code = KV_LOST, .message = "it is gone"};
  kv_lock_event(lock, LOCK_LEASE_ENDED, &outcome);
}

static void wait_for_those_ahead(struct kv_lock *lock) {
  if (!lock->limit) start(lock, KV_QUEUE_WAIT, KV_NEVER);
  else if (!kv_semaphore_wait(lock)) fail_acquire(lock, "out of memory");
}

static void act(struct kv_lock *lock) {
  if (lock->not_before > kv_now()) {
    kv_timer_set(&lock->pause, lock->not_before);
    return;
  }
  switch (lock->phase) {
    case LOCK_GRANTING: begin_lease(lock); break;
    case LOCK_JOINING: join(lock); break;
    case LOCK_LOOKING: start(lock, KV_QUEUE_AHEAD, acquire_deadline(lock)); break;
    case LOCK_WAITING: wait_for_those_ahead(lock); break;
    case LOCK_CLAIMING: start(lock, KV_QUEUE_CLAIM, acquire_deadline(lock)); break;
    case LOCK_ANNOUNCING: start_txn(lock, kv_election_announce_parts, acquire_deadline(lock)); break;
    case LOCK_RETRACTING: retract(lock); break;
    case LOCK_LEAVING: leave(lock); break;
    default: break;
  }
}

static void pause_over(struct kv_timer *timer) {
  kv_lock_event(timer->data, LOCK_PAUSE_OVER, NULL);
}

/* What a join tells even when its phase has passed. A claim makes something on Consul, and may appear late as well. */
static void note_step(struct kv_lock *lock, kv_code code) {
  bool joins = lock->step.kind == KV_QUEUE_JOIN;
  if (!joins && lock->step.kind != KV_QUEUE_CLAIM) return;
  bool clean = code == KV_OK && lock->step.attempts <= 1;
  if (!clean) lock->doubtful = true;
  if (joins && code == KV_OK && !lock->stale && lock->lease) kv_lease_set_place(lock->lease, &lock->entry->pub);
}

static void step_done(struct kv_step *step, kv_code code, const char *message, struct kv_result *result) {
  struct kv_lock *lock = step->data;
  struct kv_entry *entry = lock->entry_in_step;
  struct kv_outcome outcome = {.code = code, .message = message, .result = result};
  bool stale = lock->stale;
  note_step(lock, code);
  lock->busy = lock->stale = false;
  lock->entry_in_step = NULL;
  kv_recipes_step_done(lock->recipes);
  if (stale) act(lock);
  else kv_lock_event(lock, LOCK_STEP_DONE, &outcome);
  kv_place_release(&entry->pub);
  kv_lock_reap_later(lock);
}

/* ------------------------------------------------------------------ joining and leaving the reactor */

bool kv_lock_attach(struct kv_lock *lock, kv_code *code, const char **message) {
  if (lock->recipes) return true;
  struct kv_recipes *recipes = kv_recipes_of(lock->backend);
  if (!recipes || recipes->closing) {
    *code = recipes ? KV_CLOSED : KV_FAILED;
    *message = recipes ? "the store was closed" : "out of memory";
    return false;
  }
  lock->recipes = recipes;
  lock->pause.fire = pause_over;
  lock->pause.data = lock;
  lock->next = recipes->locks;
  if (lock->next) lock->next->link = &lock->next;
  lock->link = &recipes->locks;
  recipes->locks = lock;
  return true;
}

static void unlink_lock(struct kv_lock *lock) {
  *lock->link = lock->next;
  if (lock->next) lock->next->link = lock->link;
  lock->recipes = NULL;
}

static bool at_rest(const struct kv_lock *lock) {
  return (lock->phase == LOCK_FREE || lock->phase == LOCK_LOST) && !lock->busy && !lock->waits;
}

static void reap(struct kv_task *task) {
  struct kv_lock *lock = task->data;
  if (lock->recipes && !at_rest(lock)) return;
  if (lock->recipes) {
    drop_lease(lock);
    kv_timer_stop(&lock->pause);
    unlink_lock(lock);
  }
  kv_lock_destroy(lock);
}

/* Not at once: it may be in use further up the stack. */
void kv_lock_reap_later(struct kv_lock *lock) {
  if (!lock->freed || (lock->recipes && !at_rest(lock))) return;
  lock->handle.task.run = reap;
  lock->handle.task.data = lock;
  kv_defer(&lock->handle.task);
}

void kv_lock_orphan(struct kv_lock *lock) {
  lock->freed = true;
  if (lock->acquire.op) {
    kv_asked_answer(&lock->acquire, KV_CLOSED, "the lock was closed");
    kv_lock_event(lock, LOCK_GIVE_UP, NULL);
  } else if (lock->phase == LOCK_FREE) {
    drop_lease(lock);
  }
  kv_lock_reap_later(lock);
}

void kv_lock_destroy(struct kv_lock *lock) {
  struct kv_backend *backend = lock->backend;
  kv_store_release(lock->store);
  kv_page_free(lock->nearest);
  pthread_mutex_destroy(&lock->guard);
  free((char *)(uintptr_t)lock->name.data);
  free(lock);
  kv_backend_release(backend);
}

/* ------------------------------------------------------------------ closing */

void kv_locks_close(struct kv_recipes *recipes, uint64_t view) {
  struct kv_lock *next;
  for (struct kv_lock *lock = recipes->locks; lock; lock = next) {
    next = lock->next;
    if (view && lock->view != view) continue;
    kv_asked_answer(&lock->acquire, KV_CLOSED, "the store was closed");
    kv_asked_answer(&lock->release, KV_CLOSED, "the store was closed");
    kv_op_list_answer(&lock->lost_waiters, KV_CLOSED, "the store was closed");
    kv_lock_event(lock, LOCK_CLOSE, NULL);
  }
}

bool kv_locks_settled(const struct kv_recipes *recipes) {
  for (const struct kv_lock *lock = recipes->locks; lock; lock = lock->next)
    if (!at_rest(lock)) return false;
  return true;
}

void kv_locks_cancel(struct kv_recipes *recipes) {
  for (struct kv_lock *lock = recipes->locks; lock; lock = lock->next) {
    kv_step_cancel(&lock->step);
    kv_semaphore_stop(lock);
  }
}

void kv_locks_detach(struct kv_recipes *recipes) {
  struct kv_lock *lock;
  while ((lock = recipes->locks)) {
    kv_timer_stop(&lock->pause);
    detach_lease(lock);
    drop_entry(lock);
    set_held(lock, NULL);
    lock->phase = LOCK_FREE;
    publish(lock);
    unlink_lock(lock);
    kv_lock_reap_later(lock);
  }
}
