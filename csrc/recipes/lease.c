/*
 * lease.c - the machine that has a lease granted, renews it, and gives it back. Locks, the store's session and public
 * leases each own one.
 *
 *   NEW -> GRANTING -> ALIVE <-> SUSPENDED -> REVOKING -> GONE
 *
 * The local deadline is the time at which the last grant or renewal that succeeded was *begun*, plus what was granted,
 * minus a margin. Once it has passed the lease is lost for us, whatever a late answer says: somebody may have asked
 * already and been told so. A lease is renewed every third of its time. It is SUSPENDED after a failed renewal, or when
 * half its time went by without an answer.
 *
 * A grant that had to be repeated may have been made long before its answer: it is renewed once before anybody hears of
 * it. A lease that was given up is revoked until the server agrees, or until it has expired by itself even on a server
 * that counts to twice its time.
 */
#include "recipes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RENEW_PART 3.0   /* renewals in the time of a lease */
#define SUSPECT_PART 2.0 /* unanswered for 1/this of it: suspended */
#define DRIFT_PART 100.0 /* 1/this of it for clocks that run at different speeds */

static void work(struct kv_lease *lease);
static void timer_fired(struct kv_timer *timer);
static void step_done(struct kv_step *step, kv_code code, const char *message, struct kv_result *result);

/* ------------------------------------------------------------------ memory */

static uint64_t new_id(void) {
  uint64_t id;
  do id = kv_random() & INT64_MAX;
  while (!id);
  return id;
}

struct kv_lease *kv_lease_make(const struct kv_backend *backend, double ttl) {
  struct kv_lease *lease = calloc(1, sizeof *lease);
  if (!lease) return NULL;
  double least = backend->driver->limits.lease_min;
  lease->ref.id = new_id();
  lease->ref.ttl = ttl < least ? least : ttl;
  lease->fork_count = kv_fork_count();
  lease->phase = LEASE_NEW;
  lease->timer.fire = timer_fired;
  lease->timer.data = lease;
  atomic_init(&lease->references, 1);
  atomic_init(&lease->deadline, 0);
  atomic_init(&lease->granted, lease->ref.ttl);
  return lease;
}

void kv_lease_retain(struct kv_lease *lease) {
  atomic_fetch_add_explicit(&lease->references, 1, memory_order_relaxed);
}

void kv_lease_release(struct kv_lease *lease) {
  if (atomic_fetch_sub_explicit(&lease->references, 1, memory_order_acq_rel) == 1) free(lease);
}

struct kv_lease_ref *kv_lease_reference(kv_lease *lease) {
  if (lease->fork_count != kv_fork_count() || !kv_lease_usable(lease)) return NULL;
  kv_lease_retain(lease);
  return &lease->ref;
}

void kv_lease_reference_release(struct kv_lease_ref *ref) {
  kv_lease_release((struct kv_lease *)ref);
}

bool kv_lease_usable(const struct kv_lease *lease) {
  return kv_clock() < atomic_load_explicit(&lease->deadline, memory_order_acquire);
}

static void link_in(struct kv_lease *lease, struct kv_recipes *recipes) {
  lease->recipes = recipes;
  lease->next = recipes->leases;
  if (lease->next) lease->next->link = &lease->next;
  lease->link = &recipes->leases;
  recipes->leases = lease;
  kv_lease_retain(lease);
}

static void tell(struct kv_lease *lease, enum kv_lease_news news, kv_code code, const char *message) {
  if (lease->changed) lease->changed(lease, news, code, message);
}

/* ------------------------------------------------------------------ time */

static bool is_alive(const struct kv_lease *lease) {
  return lease->phase == LEASE_ALIVE || lease->phase == LEASE_SUSPENDED;
}

static int64_t deadline_of(const struct kv_lease *lease) {
  return atomic_load_explicit(&lease->deadline, memory_order_relaxed);
}

static int64_t earlier(int64_t a, int64_t b) {
  return a < b ? a : b;
}

/* A grant or renewal that was begun at `good` has succeeded. */
static void set_times(struct kv_lease *lease, int64_t good) {
  double granted = lease->ref.granted;
  if (!(granted > 0) || !isfinite(granted)) granted = lease->ref.ttl; /* a driver or server that does not tell */
  double margin = lease->recipes->backend->driver->limits.renew_margin + granted / DRIFT_PART;
  if (margin > granted / 4) margin = granted / 4; /* what is left must be enough for a renewal that was late */
  double behind = lease->ref.behind > 0 ? lease->ref.behind : 0;
  if (behind > granted * 0.3) behind = granted * 0.3; /* it is to be renewed after a third of its time */
  lease->good = good;
  lease->next_try = kv_deadline(good, granted / RENEW_PART - behind);
  lease->suspect_at = kv_deadline(good, granted / SUSPECT_PART);
  atomic_store_explicit(&lease->granted, granted, memory_order_relaxed);
  if (lease->phase == LEASE_ALIVE)
    atomic_store_explicit(&lease->deadline, kv_deadline(good, granted - margin - behind), memory_order_release);
}

static void set_timer(struct kv_lease *lease) {
  int64_t at = KV_NEVER, next_try = lease->busy ? KV_NEVER : lease->next_try;
  switch (lease->phase) {
    case LEASE_GRANTING: at = next_try; break;
    case LEASE_ALIVE:
      at = deadline_of(lease);
      if (lease->use != LEASE_RESTING) at = earlier(at, earlier(next_try, lease->suspect_at));
      break;
    case LEASE_SUSPENDED:
      at = deadline_of(lease);
      if (lease->use != LEASE_RESTING) at = earlier(at, next_try);
      break;
    case LEASE_REVOKING:
      if (!lease->busy || lease->gone_at > kv_now()) at = earlier(lease->gone_at, next_try);
      break;
    case LEASE_NEW: case LEASE_GONE: break;
  }
  kv_timer_set(&lease->timer, at);
}

static void try_later(struct kv_lease *lease) {
  lease->next_try = kv_deadline(kv_now(), kv_backoff(lease->failures));
  if (lease->failures < 100) lease->failures++;
}

/* ------------------------------------------------------------------ steps */

static void start_step(struct kv_lease *lease, kv_kind kind, int64_t deadline) {
  lease->step =
    (struct kv_step){.kind = kind, .lease = &lease->ref, .deadline = deadline, .done = step_done, .data = lease};
  if (kind == KV_LEASE_RENEW && lease->place) {
    lease->place_in_step = lease->place;
    kv_place_retain(lease->place_in_step);
    lease->step.place = lease->place_in_step;
  }
  lease->busy = true;
  lease->sent = kv_now();
  if (kind != KV_LEASE_REVOKE) {
    lease->asked = true;
    /* Whatever this makes, or makes live on, is gone by then. */
    lease->gone_at = kv_deadline(deadline, 2 * atomic_load_explicit(&lease->granted, memory_order_relaxed));
  }
  kv_recipes_step(lease->recipes, &lease->step);
}

/* A third of the time: when the first renewal is lost on a dead connection, a second one still comes in time. */
static int64_t renewal_deadline(const struct kv_lease *lease) {
  double part = atomic_load_explicit(&lease->granted, memory_order_relaxed) / RENEW_PART;
  int64_t at = kv_deadline(kv_now(), part);
  return lease->phase == LEASE_GRANTING ? at : earlier(at, deadline_of(lease));
}

static void grant_or_confirm(struct kv_lease *lease) {
  if (lease->granted_once) {
    start_step(lease, KV_LEASE_RENEW, renewal_deadline(lease));
    return;
  }
  if (!lease->asked) lease->good = kv_now();
  int64_t deadline = kv_step_deadline(lease->recipes->backend);
  if (lease->try_until > kv_now()) deadline = earlier(deadline, lease->try_until);
  start_step(lease, KV_LEASE_GRANT, deadline);
}

/* ------------------------------------------------------------------ transitions */

static void revoke(struct kv_lease *lease) {
  lease->phase = LEASE_REVOKING;
  atomic_store_explicit(&lease->deadline, 0, memory_order_release);
  kv_lease_set_place(lease, NULL);
  lease->failures = 0;
  lease->next_try = kv_now();
  if (lease->busy) kv_step_cancel(&lease->step);
}

/* The end. The lease may be freed inside. */
static void gone(struct kv_lease *lease, kv_code code, const char *message) {
  struct kv_recipes *recipes = lease->recipes;
  lease->phase = LEASE_GONE;
  atomic_store_explicit(&lease->deadline, 0, memory_order_release);
  kv_lease_set_place(lease, NULL);
  kv_timer_stop(&lease->timer);
  *lease->link = lease->next;
  if (lease->next) lease->next->link = lease->link;
  lease->link = NULL;
  tell(lease, LEASE_REVOKED, code, message);
  kv_lease_release(lease);
  kv_recipes_settle(recipes);
}

/* Not ours any more. `certain`: the server said so, and nothing of it can be left there. */
static void lost(struct kv_lease *lease, const char *reason, bool certain) {
  kv_lease_retain(lease);
  revoke(lease);
  tell(lease, LEASE_ENDED, KV_LOST, reason);
  if (certain && !lease->busy && lease->phase == LEASE_REVOKING)
    gone(lease, KV_LOST, reason);
  else if (lease->phase == LEASE_REVOKING)
    work(lease);
  kv_lease_release(lease);
}

static void lost_in_time(struct kv_lease *lease) {
  char reason[220];
  snprintf(reason, sizeof reason, "not renewed in time%s%s", lease->problem[0] ? ": " : "", lease->problem);
  lost(lease, reason, false);
}

static void suspend(struct kv_lease *lease, const char *problem) {
  lease->phase = LEASE_SUSPENDED;
  tell(lease, LEASE_FAILING, KV_UNAVAILABLE, problem);
}

/* Do what is due, and set the timer for the rest. Nothing may be done with the lease behind it. */
static void work(struct kv_lease *lease) {
  int64_t now = kv_now();
  bool due = !lease->busy && lease->next_try <= now && !lease->recipes->over;
  if (is_alive(lease) && kv_clock() >= deadline_of(lease)) {
    lost_in_time(lease);
    return;
  }
  if (lease->phase == LEASE_ALIVE && lease->use != LEASE_RESTING && lease->suspect_at <= now) {
    suspend(lease, "no answer to a renewal");
    if (!is_alive(lease)) return;
    due = !lease->busy && lease->next_try <= now && !lease->recipes->over;
  }
  if (lease->phase == LEASE_GRANTING && due) {
    grant_or_confirm(lease);
  } else if (is_alive(lease) && due && lease->use == LEASE_USED) {
    start_step(lease, KV_LEASE_RENEW, renewal_deadline(lease));
  } else if (is_alive(lease) && due && lease->use == LEASE_IDLE) {
    kv_lease_retain(lease);
    revoke(lease);
    tell(lease, LEASE_ENDED, KV_OK, "not needed any more");
    if (lease->phase == LEASE_REVOKING) work(lease);
    kv_lease_release(lease);
    return;
  } else if (lease->phase == LEASE_REVOKING && !lease->busy && (lease->gone_at <= now || !lease->asked)) {
    gone(lease, lease->asked ? KV_LOST : KV_OK, "it has expired");
    return;
  } else if (lease->phase == LEASE_REVOKING && lease->busy && lease->gone_at <= now) {
    kv_step_cancel(&lease->step);
  } else if (lease->phase == LEASE_REVOKING && due) {
    start_step(lease, KV_LEASE_REVOKE, earlier(kv_step_deadline(lease->recipes->backend), lease->gone_at));
  }
  set_timer(lease);
}

static void timer_fired(struct kv_timer *timer) {
  work(timer->data);
}

/* The server does not know the id: begin again under another one. */
static void grant_afresh(struct kv_lease *lease) {
  lease->ref.id = new_id();
  lease->ref.text[0] = '\0';
  lease->asked = lease->granted_once = false;
  try_later(lease);
  work(lease);
}

static void refused(struct kv_lease *lease, kv_code code, const char *message) {
  bool nothing_made = !lease->granted_once && lease->step.attempts <= 1 && !lease->failures;
  kv_lease_retain(lease);
  revoke(lease);
  if (nothing_made) lease->asked = false;
  tell(lease, LEASE_REFUSED, code, message);
  if (lease->phase == LEASE_REVOKING) work(lease);
  kv_lease_release(lease);
}

static void after_grant(struct kv_lease *lease, kv_code code, const char *message) {
  if (code == KV_OK) {
    bool confirmed = lease->step.kind == KV_LEASE_RENEW;
    lease->granted_once = true;
    if (confirmed) lease->ref.behind = 0;
    set_times(lease, confirmed ? lease->sent : lease->good);
    if (lease->next_try <= kv_clock() && !confirmed) { /* granted who knows when */
      lease->next_try = kv_now();
      work(lease);
      return;
    }
    lease->phase = LEASE_ALIVE;
    lease->failures = 0;
    lease->problem[0] = '\0';
    set_times(lease, lease->good);
    set_timer(lease);
    tell(lease, LEASE_READY, KV_OK, NULL);
  } else if (code == KV_LOST) {
    grant_afresh(lease);
  } else if (kv_code_passes(code)) {
    snprintf(lease->problem, sizeof lease->problem, "%s", message);
    lease->problem_code = code;
    try_later(lease);
    work(lease);
  } else {
    refused(lease, code, message);
  }
}

static void renewal_failed(struct kv_lease *lease, const char *message) {
  snprintf(lease->problem, sizeof lease->problem, "%s", message);
  try_later(lease);
  kv_lease_retain(lease);
  if (lease->phase == LEASE_ALIVE) suspend(lease, message);
  if (is_alive(lease)) work(lease);
  kv_lease_release(lease);
}

static void after_renewal(struct kv_lease *lease, kv_code code, const char *message, bool with_old_place,
                          bool with_place) {
  if (kv_clock() >= deadline_of(lease)) {
    if (code != KV_OK) snprintf(lease->problem, sizeof lease->problem, "%s", message);
    lost_in_time(lease);
  } else if (code == KV_OK) {
    lease->phase = LEASE_ALIVE;
    lease->failures = 0;
    lease->problem[0] = '\0';
    lease->ref.behind = 0;
    set_times(lease, lease->sent);
    set_timer(lease);
    tell(lease, LEASE_RENEWED, KV_OK, NULL);
  } else if (code == KV_LOST && with_old_place) {
    lease->next_try = kv_now(); /* an entry that we left meanwhile was missed: that says nothing of the lease */
    work(lease);
  } else if (code == KV_LOST) {
    lost(lease, message, !with_place);
  } else {
    renewal_failed(lease, message);
  }
}

static void after_revoke(struct kv_lease *lease, kv_code code, const char *message) {
  if (code == KV_OK || code == KV_LOST) {
    gone(lease, KV_OK, NULL);
    return;
  }
  try_later(lease);
  kv_lease_retain(lease);
  tell(lease, LEASE_REVOKE_FAILED, code, message);
  if (lease->phase == LEASE_REVOKING) work(lease);
  kv_lease_release(lease);
}

static void step_done(struct kv_step *step, kv_code code, const char *message, struct kv_result *result) {
  struct kv_lease *lease = step->data;
  struct kv_place *place = lease->place_in_step;
  bool with_old_place = place && place != lease->place;
  (void)result;
  lease->busy = false;
  lease->place_in_step = NULL;
  kv_lease_retain(lease);
  kv_recipes_step_done(lease->recipes);
  if (lease->phase == LEASE_REVOKING && step->kind == KV_LEASE_REVOKE)
    after_revoke(lease, code, message);
  else if (lease->phase == LEASE_REVOKING)
    work(lease);
  else if (lease->phase == LEASE_GRANTING)
    after_grant(lease, code, message);
  else if (is_alive(lease))
    after_renewal(lease, code, message, with_old_place, place != NULL);
  if (place) kv_place_release(place);
  kv_lease_release(lease);
}

/* ------------------------------------------------------------------ for owners */

void kv_lease_begin(struct kv_lease *lease, struct kv_recipes *recipes) {
  link_in(lease, recipes);
  lease->phase = LEASE_GRANTING;
  lease->next_try = kv_now();
  work(lease);
}

void kv_lease_drop(struct kv_lease *lease) {
  if (lease->phase == LEASE_NEW || lease->phase == LEASE_REVOKING || lease->phase == LEASE_GONE) return;
  revoke(lease);
  work(lease);
}

void kv_lease_set_use(struct kv_lease *lease, enum kv_lease_use use) {
  if (lease->use == use) return;
  lease->use = use;
  if (is_alive(lease)) set_timer(lease);
}

void kv_lease_set_place(struct kv_lease *lease, struct kv_place *place) {
  if (lease->place == place) return;
  if (place) kv_place_retain(place);
  if (lease->place) kv_place_release(lease->place);
  lease->place = place;
}

void kv_lease_abandon(struct kv_lease *lease) {
  if (lease->phase == LEASE_GONE) return;
  gone(lease, KV_CLOSED, "the store was closed");
}
