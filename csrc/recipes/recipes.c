/*
 * recipes.c - what belongs to all recipes of one backend, and closing them.
 *
 * Closing: locks leave their queues, each lease is revoked as soon as no lock needs it, all in parallel. When half the
 * grace is gone, the leases of locks that could not leave are revoked all the same: an entry goes with its lease. When
 * the grace is over, what is still in flight is cancelled; the servers' own expiry does the rest. done() comes when the
 * driver has let go of every step.
 */
#include "recipes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void settle(struct kv_task *task);
static void grace_half_over(struct kv_timer *timer);
static void grace_over(struct kv_timer *timer);

struct kv_recipes *kv_recipes_of(struct kv_backend *backend) {
  struct kv_recipes *recipes = backend->recipes;
  if (recipes) return recipes;
  recipes = calloc(1, sizeof *recipes);
  if (!recipes) return NULL;
  recipes->backend = backend;
  recipes->settle.run = settle;
  recipes->settle.data = recipes;
  recipes->grace.fire = grace_half_over;
  recipes->grace.data = recipes;
  backend->recipes = recipes;
  return recipes;
}

void kv_recipes_free(struct kv_backend *backend) {
  struct kv_recipes *recipes = backend->recipes;
  if (!recipes) return;
  free(recipes);
  backend->recipes = NULL;
}

/* ------------------------------------------------------------------ steps */

void kv_recipes_step(struct kv_recipes *recipes, struct kv_step *step) {
  recipes->busy++;
  kv_step_start(recipes->backend, step);
}

void kv_recipes_step_done(struct kv_recipes *recipes) {
  recipes->busy--;
  kv_recipes_settle(recipes);
}

int64_t kv_step_deadline(const struct kv_backend *backend) {
  double timeout = backend->config.timeout;
  return kv_deadline(kv_now(), timeout > 0 ? timeout : 5);
}

int64_t kv_step_deadline_for(const struct kv_backend *backend, const struct kv_op *op) {
  int64_t now = kv_now(), at = kv_step_deadline(backend);
  if (!op || op->deadline == KV_NEVER || op->deadline >= at) return at;
  int64_t left_over = (op->deadline - now) / 20, most = KV_SECOND / 20;
  return op->deadline - (left_over < most ? left_over : most);
}

bool kv_code_passes(kv_code code) {
  switch (code) {
    case KV_UNAVAILABLE: case KV_TIMEOUT: case KV_UNKNOWN: case KV_CANCELLED: case KV_CLOSED: return true;
    default: return false;
  }
}

/* ------------------------------------------------------------------ requests */

void kv_asked_take(struct kv_asked *asked, struct kv_op *op, void (*late)(struct kv_timer *timer), void *data) {
  asked->op = op;
  asked->timer.fire = late;
  asked->timer.data = data;
  kv_timer_set(&asked->timer, op->deadline == KV_NEVER ? KV_NEVER : op->deadline - 1);
}

void kv_asked_answer(struct kv_asked *asked, kv_code code, const char *format, ...) {
  struct kv_op *op = asked->op;
  if (!op) return;
  kv_timer_stop(&asked->timer);
  asked->op = NULL;
  if (!format) {
    kv_op_finish(op, code, NULL);
    return;
  }
  char message[KV_MESSAGE_MAX];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  kv_op_finish(op, code, "%s", message);
}

void kv_op_list_add(struct kv_op **list, struct kv_op *op) {
  op->next = *list;
  *list = op;
}

bool kv_op_list_remove(struct kv_op **list, const struct kv_op *op) {
  while (*list && *list != op) list = &(*list)->next;
  if (!*list) return false;
  *list = op->next;
  return true;
}

void kv_op_list_answer(struct kv_op **list, kv_code code, const char *message) {
  struct kv_op *op;
  while ((op = *list)) {
    *list = op->next;
    kv_op_finish(op, code, "%s", message);
  }
}

/* ------------------------------------------------------------------ handles */

static void run_posted(struct kv_task *task) {
  struct kv_handle *handle = task->data;
  handle->run(handle);
  kv_reactor_release();
}

void kv_handle_free(struct kv_backend *backend, struct kv_handle *handle, void (*run)(struct kv_handle *handle)) {
  pthread_mutex_lock(&backend->lock);
  bool idle = backend->closed || !backend->started;
  pthread_mutex_unlock(&backend->lock);
  if (idle) {
    run(handle);
    return;
  }
  /* The reference keeps the reactor until the task ran, even if the backend closes meanwhile. It runs already, so this
   * cannot fail; if it did, a leak is better than a race. */
  if (kv_reactor_retain(NULL) != KV_OK) return;
  handle->run = run;
  handle->task.run = run_posted;
  handle->task.data = handle;
  kv_post(&handle->task);
}

/* ------------------------------------------------------------------ closing */

void kv_recipes_settle(struct kv_recipes *recipes) {
  if (recipes->closing && !recipes->settled) kv_defer(&recipes->settle);
}

static void finish_closing(struct kv_recipes *recipes) {
  recipes->settled = true;
  kv_timer_stop(&recipes->grace);
  while (recipes->leases) kv_lease_abandon(recipes->leases);
  kv_locks_detach(recipes);
  recipes->closed(recipes->backend);
}

static void settle(struct kv_task *task) {
  struct kv_recipes *recipes = task->data;
  if (recipes->settled || recipes->busy) return;
  if (recipes->over || (!recipes->leases && kv_locks_settled(recipes))) finish_closing(recipes);
}

static void drop_leases(struct kv_recipes *recipes, bool of_locks) {
  struct kv_lease *next;
  for (struct kv_lease *lease = recipes->leases; lease; lease = next) {
    next = lease->next;
    if (of_locks || !lease->ref.for_lock) kv_lease_drop(lease);
  }
}

static void grace_half_over(struct kv_timer *timer) {
  struct kv_recipes *recipes = timer->data;
  timer->fire = grace_over;
  kv_timer_set(timer, kv_now() + KV_CLOSE_GRACE / 2);
  drop_leases(recipes, true);
}

static void grace_over(struct kv_timer *timer) {
  struct kv_recipes *recipes = timer->data;
  recipes->over = true;
  kv_locks_cancel(recipes);
  for (struct kv_lease *lease = recipes->leases; lease; lease = lease->next) kv_step_cancel(&lease->step);
  kv_recipes_settle(recipes);
}

void kv_recipes_close_view(struct kv_backend *backend, uint64_t view) {
  struct kv_recipes *recipes = backend->recipes;
  struct kv_lease *next;
  if (!recipes) return;
  kv_locks_close(recipes, view);
  for (struct kv_lease *lease = recipes->leases; lease; lease = next) {
    next = lease->next;
    if (lease->view == view) kv_lease_drop(lease);
  }
}

void kv_recipes_close(struct kv_backend *backend, void (*done)(struct kv_backend *backend)) {
  struct kv_recipes *recipes = backend->recipes;
  if (!recipes) {
    done(backend);
    return;
  }
  recipes->closing = true;
  recipes->closed = done;
  kv_timer_set(&recipes->grace, kv_now() + KV_CLOSE_GRACE / 2);
  kv_expiry_close(recipes);
  kv_holders_cancel(recipes);
  kv_locks_close(recipes, 0);
  kv_spares_close(recipes);
  kv_session_close(recipes);
  /* Those that locks still need to leave their queues go when these have left. */
  drop_leases(recipes, false);
  kv_recipes_settle(recipes);
}
