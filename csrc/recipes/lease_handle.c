/*
 * lease_handle.c - public leases: the functions of kv.h over the machine of lease.c.
 *
 * A handle that is freed leaves its lease alive: the keys attached to it are there until the store closes.
 */
#include "recipes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool inherited(const kv_lease *lease) {
  return lease->fork_count != kv_fork_count();
}

/* ------------------------------------------------------------------ what the machine tells */

static void ended(kv_lease *lease, const char *reason) {
  lease->end = KV_LOST;
  snprintf(lease->reason, sizeof lease->reason, "%s", reason);
  kv_op_list_answer(&lease->lost_waiters, KV_OK, lease->reason);
}

static void revoke_failed(kv_lease *lease, kv_code code, const char *message) {
  snprintf(lease->problem, sizeof lease->problem, "%s", message);
  if (!kv_code_passes(code)) kv_asked_answer(&lease->close, code, "%s", message);
}

static void changed(struct kv_lease *lease, enum kv_lease_news news, kv_code code, const char *message) {
  switch (news) {
    case LEASE_READY: kv_asked_answer(&lease->open, KV_OK, NULL); break;
    case LEASE_REFUSED:
      lease->end = KV_NOT_HELD;
      kv_asked_answer(&lease->open, code, "%s", message);
      kv_op_list_answer(&lease->lost_waiters, KV_NOT_HELD, "the lease was not granted");
      break;
    case LEASE_ENDED: ended(lease, message); break;
    case LEASE_REVOKE_FAILED: revoke_failed(lease, code, message); break;
    case LEASE_REVOKED:
      if (code == KV_OK) kv_asked_answer(&lease->close, KV_OK, NULL);
      else kv_asked_answer(&lease->close, code, "%s", message);
      break;
    case LEASE_RENEWED: case LEASE_FAILING: break;
  }
}

/* ------------------------------------------------------------------ opening */

static void give_up_opening(kv_lease *lease) {
  lease->end = KV_NOT_HELD;
  kv_lease_drop(lease);
}

static void open_late(struct kv_timer *timer) {
  kv_lease *lease = timer->data;
  const char *problem = lease->problem[0] ? lease->problem : "no answer";
  kv_code code = lease->problem_code == KV_UNAVAILABLE ? KV_UNAVAILABLE : KV_TIMEOUT;
  kv_asked_answer(&lease->open, code, "deadline passed: %s", problem);
  give_up_opening(lease);
}

static void start_open(struct kv_op *op, void *subject) {
  kv_lease *lease = subject;
  struct kv_recipes *recipes = kv_recipes_of(lease->backend);
  if (!recipes || recipes->closing) {
    kv_op_finish(op, recipes ? KV_CLOSED : KV_FAILED, recipes ? "the store was closed" : "out of memory");
    return;
  }
  kv_asked_take(&lease->open, op, open_late, lease);
  lease->changed = changed;
  lease->try_until = kv_step_deadline_for(lease->backend, op);
  kv_lease_begin(lease, recipes);
}

static void cancel_open(struct kv_op *op, void *subject) {
  kv_lease *lease = subject;
  if (lease->open.op != op) return;
  kv_asked_answer(&lease->open, KV_CANCELLED, NULL);
  give_up_opening(lease);
}

static const struct kv_recipe open_recipe = {.start = start_open, .cancel = cancel_open};

static void free_handle(struct kv_handle *handle) {
  kv_lease *lease = (kv_lease *)((char *)handle - offsetof(kv_lease, handle));
  struct kv_backend *backend = lease->backend;
  kv_store_release(lease->store);
  if (lease->open.op) {
    kv_asked_answer(&lease->open, KV_CLOSED, "the lease was closed");
    give_up_opening(lease);
  }
  kv_lease_release(lease);
  kv_backend_release(backend);
}

static kv_code check_open(const kv_store *store, double ttl, kv_error *error) {
  if (kv_store_closed(store))
    return kv_fail(error, KV_CLOSED, "lease on %s: the store was closed", kv_store_label(store));
  if (!(store->backend->driver->capabilities & KV_CAN_LEASE))
    return kv_fail(error, KV_UNSUPPORTED, "lease on %s: this backend has none", kv_store_label(store));
  if (!(ttl > 0) || !isfinite(ttl))
    return kv_fail(error, KV_INVALID, "lease on %s: the ttl must be a positive number", kv_store_label(store));
  return KV_OK;
}

static double request_timeout(const kv_store *store, double timeout) {
  return timeout > 0 ? timeout : kv_store_timeout(store);
}

kv_code kv_lease_open(kv_store *store, kv_queue *queue, double ttl, double timeout, uint64_t tag, uint64_t *id,
                      kv_lease **lease_out, kv_error *error) {
  kv_code code = check_open(store, ttl, error);
  if (code != KV_OK) return code;
  kv_lease *lease = kv_lease_make(store->backend, ttl);
  if (!lease) return kv_fail(error, KV_FAILED, "out of memory");
  lease->store = store;
  kv_store_retain(store);
  lease->view = store->view;
  lease->backend = store->backend;
  kv_backend_retain(lease->backend);
  code = kv_recipe_submit(store, queue, &open_recipe, lease, KV_LEASE_OPEN, KV_TEXT(""), KV_TEXT(""),
                          request_timeout(store, timeout), tag, id, error);
  if (code == KV_OK) {
    *lease_out = lease;
    return KV_OK;
  }
  kv_store_release(store);
  kv_backend_release(lease->backend);
  kv_lease_release(lease);
  return code;
}

void kv_lease_free(kv_lease *lease) {
  /* what a child inherited is the parent's, its reactor's view of it included */
  if (!lease || inherited(lease)) return;
  kv_handle_free(lease->backend, &lease->handle, free_handle);
}

/* ------------------------------------------------------------------ asking */

bool kv_lease_alive(const kv_lease *lease) {
  return !inherited(lease) && !kv_store_closed(lease->store) && kv_lease_usable(lease);
}

double kv_lease_ttl(const kv_lease *lease) {
  return atomic_load_explicit(&lease->granted, memory_order_relaxed);
}

static kv_code submit(kv_lease *lease, kv_queue *queue, const struct kv_recipe *recipe, kv_kind kind, double timeout,
                      uint64_t tag, uint64_t *id, kv_error *error) {
  if (inherited(lease)) return kv_fail(error, KV_CLOSED, "%s: opened by the parent process", kv_kind_text(kind));
  return kv_recipe_submit(lease->store, queue, recipe, lease, kind, KV_TEXT(""), KV_TEXT(""), timeout, tag, id, error);
}

static bool is_held(const kv_lease *lease) {
  return lease->phase == LEASE_ALIVE || lease->phase == LEASE_SUSPENDED;
}

static void start_wait_lost(struct kv_op *op, void *subject) {
  kv_lease *lease = subject;
  if (is_held(lease)) kv_op_list_add(&lease->lost_waiters, op);
  else if (lease->end == KV_LOST) kv_op_finish(op, KV_OK, "%s", lease->reason);
  else kv_op_finish(op, KV_NOT_HELD, lease->end == KV_NOT_HELD ? "the lease was closed" : "the lease is not granted");
}

static void cancel_wait_lost(struct kv_op *op, void *subject) {
  kv_lease *lease = subject;
  if (kv_op_list_remove(&lease->lost_waiters, op)) kv_op_finish(op, KV_CANCELLED, NULL);
}

static const struct kv_recipe wait_lost_recipe = {.start = start_wait_lost, .cancel = cancel_wait_lost};

kv_code kv_lease_wait_lost(kv_lease *lease, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id,
                           kv_error *error) {
  return submit(lease, queue, &wait_lost_recipe, KV_LEASE_WAIT_LOST, timeout, tag, id, error);
}

/* ------------------------------------------------------------------ closing */

static void close_late(struct kv_timer *timer) {
  kv_lease *lease = timer->data;
  const char *problem = lease->problem[0] ? lease->problem : "no answer";
  kv_asked_answer(&lease->close, KV_UNKNOWN, "deadline passed, its keys go when it expires: %s", problem);
}

static void start_close(struct kv_op *op, void *subject) {
  kv_lease *lease = subject;
  if (!is_held(lease)) {
    if (lease->end == KV_LOST) kv_op_finish(op, KV_LOST, "%s", lease->reason);
    else kv_op_finish(op, KV_NOT_HELD, "the lease was closed, or never granted");
    return;
  }
  lease->end = KV_NOT_HELD;
  lease->problem[0] = '\0';
  kv_asked_take(&lease->close, op, close_late, lease);
  kv_op_list_answer(&lease->lost_waiters, KV_NOT_HELD, "the lease was closed");
  kv_lease_drop(lease);
}

static void cancel_close(struct kv_op *op, void *subject) {
  kv_lease *lease = subject;
  if (lease->close.op == op) kv_asked_answer(&lease->close, KV_CANCELLED, NULL);
}

static const struct kv_recipe close_recipe = {.start = start_close, .cancel = cancel_close};

kv_code kv_lease_close(kv_lease *lease, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id, kv_error *error) {
  double seconds = inherited(lease) ? 0 : request_timeout(lease->store, timeout);
  return submit(lease, queue, &close_recipe, KV_LEASE_CLOSE, seconds, tag, id, error);
}
