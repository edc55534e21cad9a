/*
 * op.c - the life of an operation: begin, try, try again, answer. See op.h for the two ways through, and
 * driver.h for what a driver sees of it.
 *
 * Answering and finishing are two things. The waiter is answered once, by whoever is first of: the driver, the
 * deadline, a cancel, a close. The op itself lives until the driver has finished it.
 */
#include "op.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "txn.h"

#define SESSIONS_TRIED 3 /* that were gone when they were used, one after the other */

bool kv_kind_is_write(kv_kind kind) {
  return kind == KV_PUT || kind == KV_DELETE || kind == KV_DELETE_TREE || kind == KV_TXN;
}

/* ------------------------------------------------------------------ memory */

struct kv_core_op *kv_core_op_new(struct kv_backend *backend, kv_kind kind, size_t bytes, char **room) {
  struct kv_core_op *op = calloc(1, sizeof *op);
  if (!op) return NULL;
  if (bytes) {
    *room = malloc(bytes);
    if (!*room) {
      free(op);
      return NULL;
    }
    op->room = *room;
  }
  op->backend = backend;
  op->pub.kind = kind;
  op->pub.deadline = KV_NEVER;
  op->pub.result.failed_check = -1;
  kv_backend_retain(backend);
  return op;
}

void kv_core_op_free(struct kv_core_op *op) {
  kv_page_free(op->pub.result.page);
  if (op->lease) kv_lease_reference_release(op->lease);
  if (op->txn) kv_txn_release(op->txn);
  if (op->queue) kv_queue_release(op->queue);
  kv_reply_free(op->reply);
  free(op->last_problem);
  free(op->finished_cause);
  free(op->room);
  kv_backend_release(op->backend);
  free(op);
}

static void list_add(struct kv_core_op **list, struct kv_core_op *op) {
  op->next = *list;
  if (op->next) op->next->link = &op->next;
  op->link = list;
  *list = op;
}

static void list_remove(struct kv_core_op *op) {
  if (!op->link) return;
  *op->link = op->next;
  if (op->next) op->next->link = op->link;
  op->link = NULL;
}

static void queue_add(struct kv_core_op *op) {
  kv_queue *queue = op->queue;
  pthread_mutex_lock(&queue->lock);
  op->queue_next = queue->ops;
  if (op->queue_next) op->queue_next->queue_link = &op->queue_next;
  op->queue_link = &queue->ops;
  queue->ops = op;
  pthread_mutex_unlock(&queue->lock);
}

static void queue_remove(struct kv_core_op *op) {
  kv_queue *queue = op->queue;
  pthread_mutex_lock(&queue->lock);
  if (op->queue_link) {
    *op->queue_link = op->queue_next;
    if (op->queue_next) op->queue_next->queue_link = op->queue_link;
    op->queue_link = NULL;
  }
  pthread_mutex_unlock(&queue->lock);
}

/* ------------------------------------------------------------------ pairs */

bool kv_op_pair(struct kv_op *pub, kv_slice key, kv_slice value, uint64_t revision, uint64_t created, bool dir) {
  struct kv_result *result = &pub->result;
  result->found = true;
  if (!result->page && !(result->page = kv_page_new())) return false;
  kv_pair pair = {.key = key, .value = value, .revision = revision, .created = created, .dir = dir};
  return kv_page_add(result->page, &pair);
}

bool kv_op_pair_found(struct kv_op *pub, kv_slice key, kv_slice value, uint64_t revision, uint64_t created, bool dir) {
  struct kv_core_op *op = (struct kv_core_op *)pub;
  if (pub->kind != KV_GET && pub->kind != KV_LIST && pub->kind != KV_TXN)
    return kv_op_pair(pub, key, value, revision, created, dir);
  if (pub->kind == KV_LIST && (key.size <= op->strip || !kv_key_is_canonical(key) || kv_key_is_own(key))) {
    if (!kv_key_is_own(key)) kv_count(op->backend, KV_COUNT_skipped, 1);
    return true;
  }
  kv_slice relative = {key.data + op->strip, key.size - op->strip};
  return kv_op_pair(pub, relative, value, revision, created, dir);
}

size_t kv_op_pair_bytes(const struct kv_op *pub) {
  return pub->result.page ? kv_page_bytes(pub->result.page) : 0;
}

void *kv_op_subject(const struct kv_op *pub) {
  return ((const struct kv_core_op *)pub)->subject;
}

/* ------------------------------------------------------------------ replies */

static char *describe(const struct kv_core_op *op, const char *cause) {
  char text[KV_MESSAGE_MAX];
  const char *kind = kv_kind_text(op->pub.kind);
  int shown = op->name.size > 160 ? 160 : (int)op->name.size;
  if (op->has_name)
    snprintf(text, sizeof text, "%s \"%.*s\"%s on %s: %s", kind, shown, op->name.data ? op->name.data : "",
             op->name.size > 160 ? "..." : "", op->backend->label, cause);
  else
    snprintf(text, sizeof text, "%s on %s: %s", kind, op->backend->label, cause);
  return strdup(text);
}

static void move_result(kv_reply *reply, struct kv_op *pub) {
  reply->revision = pub->result.revision;
  reply->created = pub->result.created;
  reply->found = pub->result.found;
  reply->more = pub->result.more;
  reply->failed_check = pub->result.failed_check;
  reply->page = pub->result.page;
  if (reply->page) kv_page_trim(reply->page);
  pub->result.page = NULL;
}

kv_reply *kv_op_reply_now(struct kv_core_op *op, kv_code code, const char *cause) {
  kv_reply *reply = calloc(1, sizeof *reply);
  if (!reply) return NULL;
  reply->kind = op->pub.kind;
  reply->code = code;
  reply->tag = op->tag;
  if (code != KV_OK && cause) reply->message = describe(op, cause);
  move_result(reply, &op->pub);
  return reply;
}

kv_code kv_op_arrange(struct kv_core_op *op, kv_error *error) {
  struct kv_op *pub = &op->pub;
  if (pub->kind != KV_LIST || !(pub->flags & KV_SHALLOW) || !pub->result.page) return KV_OK;
  kv_slice after = {NULL, 0};
  if (pub->after.size > op->strip) after = (kv_slice){pub->after.data + op->strip, pub->after.size - op->strip};
  if (kv_page_arrange(&pub->result.page, after, pub->limit, &pub->result.more)) return KV_OK;
  return kv_fail(error, KV_FAILED, "out of memory");
}

static void count_answer(struct kv_core_op *op, kv_code code) {
  kv_count(op->backend, KV_COUNT_in_flight, -1);
  atomic_fetch_add_explicit(&op->backend->failures[code], 1, memory_order_relaxed);
}

/* Answer the waiter; `with_result` only when the driver has finished. The op must not be answered yet. */
static void answer(struct kv_core_op *op, kv_code code, const char *cause, bool with_result) {
  op->answered = true;
  queue_remove(op);
  count_answer(op, code);
  kv_reply *reply = op->reply;
  op->reply = NULL;
  reply->code = code;
  if (cause) reply->message = code == KV_OK ? strdup(cause) : describe(op, cause); /* with KV_OK: why a lock was lost */
  if (with_result) move_result(reply, &op->pub);
  kv_reply_send(op->queue, reply);
}

/* ------------------------------------------------------------------ the reactor's way */

static void try_now(struct kv_core_op *op);
static void finish_on_reactor(struct kv_core_op *op, kv_code code, const char *cause);

static void remember_problem(struct kv_core_op *op, kv_code code, const char *cause) {
  char *copy = cause ? strdup(cause) : NULL; /* of what may be remembered already */
  free(op->last_problem);
  op->last_problem = copy;
  op->last_code = code;
}

static void retry_due(struct kv_timer *timer) {
  struct kv_core_op *op = timer->data;
  kv_count(op->backend, KV_COUNT_retries, 1);
  op->pub.attempt++;
  try_now(op);
}

static void call_cancel(struct kv_core_op *op) {
  if (atomic_load(&op->finished)) return; /* on another thread; its task is on the way to us */
  if (op->recipe)
    op->recipe->cancel(&op->pub, op->subject);
  else
    op->backend->driver->cancel(op->backend->state, &op->pub);
}

static void deliver_step(struct kv_task *task) {
  struct kv_core_op *op = task->data;
  struct kv_step *step = op->step;
  kv_code code = op->last_code;
  if (code != KV_OK && op->cancelled) code = KV_CANCELLED;
  step->op = NULL;
  step->attempts = op->pub.attempt + 1;
  step->done(step, code, op->last_problem ? op->last_problem : kv_code_meaning(code), &op->pub.result);
  kv_core_op_free(op);
}

/* The op is with nobody any more: tell who asked, and free it. */
static void conclude(struct kv_core_op *op, kv_code code, const char *cause) {
  op->concluded = true;
  kv_timer_stop(&op->deadline_timer);
  kv_timer_stop(&op->retry_timer);
  list_remove(op);
  if (op->step) {
    remember_problem(op, code, cause);
    op->task.run = deliver_step;
    kv_defer(&op->task);
    return;
  }
  if (!op->answered) answer(op, code, cause, true);
  kv_core_op_free(op);
}

/* May the driver finish it on another thread, while it is ours on the reactor? */
static bool any_thread(const struct kv_core_op *op) {
  return !op->recipe && (op->backend->driver->capabilities & KV_CAN_ANY_THREAD);
}

/* Only after its cancel() do we know whether the driver had begun: if it has not finished by then, it has. */
static void give_up_any_thread(struct kv_core_op *op, kv_code code, const char *cause) {
  remember_problem(op, code, cause);
  call_cancel(op);
  if (op->step || op->answered || atomic_load(&op->finished)) return;
  answer(op, kv_kind_is_write(op->pub.kind) ? KV_UNKNOWN : code, cause, false);
}

/* The waiter (or step) cannot wait any longer. Answers users at once; the driver follows when it has let go. */
static void give_up(struct kv_core_op *op, kv_code code, const char *cause) {
  kv_timer_stop(&op->deadline_timer);
  if (op->waiting_for_session) {
    kv_session_forget(op->backend, &op->session);
    op->waiting_for_session = false;
  }
  if (!op->in_driver) {
    conclude(op, code, cause);
    return;
  }
  if (any_thread(op)) {
    give_up_any_thread(op, code, cause);
    return;
  }
  if (!op->step && !op->answered) answer(op, code, cause, false);
  call_cancel(op);
}

/* Why nothing came of it so far, or "". Who waited for a connection all the time is told what others failed with. */
static const char *why_late(const struct kv_core_op *op) {
  if (op->last_problem) return op->last_problem;
  if (any_thread(op)) return ""; /* `sent` is the driver's, and it has no connections */
  return op->pub.sent ? "" : op->backend->away;
}

static const char *step_problem(const struct kv_core_op *op) {
  const char *why = why_late(op);
  return *why ? why : "no answer before the deadline";
}

static void deadline_passed(struct kv_timer *timer) {
  struct kv_core_op *op = timer->data;
  char cause[KV_MESSAGE_MAX];
  kv_code code = KV_TIMEOUT;
  op->timed_out = true;
  if (!any_thread(op) && kv_kind_is_write(op->pub.kind) && op->pub.sent && op->in_driver)
    code = KV_UNKNOWN;
  else if (op->last_code == KV_UNAVAILABLE)
    code = KV_UNAVAILABLE;
  if (op->step) /* whoever asked for it has a deadline of its own to tell */
    snprintf(cause, sizeof cause, "%s", step_problem(op));
  else
    snprintf(cause, sizeof cause, "%s%s%s", code == KV_UNKNOWN ? "no answer before the deadline" : "deadline passed",
             *why_late(op) ? ": " : "", why_late(op));
  give_up(op, code, cause);
}

/* The session that the last try named is not this try's: it may be another one by now. */
static void let_go_of_session(struct kv_core_op *op) {
  if (!(op->pub.flags & KV_KEEP_ALIVE) || !op->lease) return;
  kv_lease_reference_release(op->lease);
  op->lease = op->pub.lease = NULL;
}

/* A step that reads from a driver that answers reads in the caller's thread. */
static bool reads_at_once(const struct kv_core_op *op) {
  return !op->recipe && op->backend->driver->read && (op->pub.kind == KV_GET || op->pub.kind == KV_LIST);
}

static void read_at_once(struct kv_core_op *op) {
  kv_error error = {.code = KV_OK};
  kv_code code = op->backend->driver->read(op->backend->state, &op->pub, &error);
  if (code == KV_UNAVAILABLE) {
    op->backend->driver->start(op->backend->state, &op->pub);
    return;
  }
  op->in_driver = false;
  finish_on_reactor(op, code, code == KV_OK ? NULL : error.message);
}

static void ask_driver(struct kv_core_op *op) {
  op->in_driver = true;
  if (reads_at_once(op))
    read_at_once(op);
  else if (op->recipe)
    op->recipe->start(&op->pub, op->subject);
  else
    op->backend->driver->start(op->backend->state, &op->pub);
}

static void session_ready(struct kv_session_wait *wait, struct kv_lease_ref *lease, kv_code code, const char *message) {
  struct kv_core_op *op = wait->data;
  op->waiting_for_session = false;
  if (!lease) {
    kv_op_finish(&op->pub, code, "%s", message);
    return;
  }
  op->lease = op->pub.lease = lease;
  struct kv_part *parts = (struct kv_part *)(uintptr_t)op->pub.parts; /* in op->room: ours */
  for (size_t i = 0; i < op->pub.part_count; i++)
    if (parts[i].keep_alive) parts[i].lease = lease;
  ask_driver(op);
}

static void try_now(struct kv_core_op *op) {
  struct kv_op *pub = &op->pub;
  kv_page_free(pub->result.page);
  let_go_of_session(op);
  atomic_store(&op->finished, false);
  free(op->finished_cause);
  op->finished_cause = NULL;
  pub->result = (struct kv_result){.failed_check = -1};
  pub->sent = false;
  pub->data = NULL;
  pub->number = 0;
  pub->next = pub->previous = NULL;
  if ((pub->flags & KV_KEEP_ALIVE) && (pub->kind == KV_PUT || pub->kind == KV_TXN) && !pub->lease) {
    op->waiting_for_session = true;
    op->session.ready = session_ready;
    op->session.data = op;
    kv_session_get(op->backend, &op->session);
  } else {
    ask_driver(op);
  }
}

static void begin(struct kv_task *task) {
  struct kv_core_op *op = task->data;
  list_add(&op->backend->ops, op);
  op->deadline_timer.fire = deadline_passed;
  op->deadline_timer.data = op;
  op->retry_timer.fire = retry_due;
  op->retry_timer.data = op;
  if (op->backend->shut) {
    conclude(op, KV_CLOSED, "the store was closed");
    return;
  }
  kv_timer_set(&op->deadline_timer, op->pub.deadline);
  if (op->cancelled)
    give_up(op, KV_CANCELLED, "cancelled");
  else
    try_now(op);
}

static bool may_retry(const struct kv_core_op *op, kv_code code) {
  if (op->recipe || op->answered || op->cancelled || op->timed_out) return false;
  if (op->backend->driver->capabilities & KV_CAN_ANY_THREAD) return false;
  if (code == KV_UNAVAILABLE) return true;
  return code == KV_UNKNOWN && !kv_kind_is_write(op->pub.kind);
}

/* Keys that the server may keep too long. */
static void schedule_expiry(struct kv_core_op *op) {
  struct kv_op *pub = &op->pub;
  if (pub->result.ttl_late <= 0) return;
  if (pub->kind == KV_PUT && pub->ttl > 0)
    kv_expiry_schedule(op->backend, pub->key, pub->result.revision, kv_deadline(kv_now(), pub->ttl));
  for (size_t i = 0; i < pub->part_count; i++)
    if (pub->parts[i].ttl > 0)
      kv_expiry_schedule(op->backend, pub->parts[i].key, pub->result.revision,
                         kv_deadline(kv_now(), pub->parts[i].ttl));
}

/* The session ended on the server, unknown to us: nothing was written, and another session will do. */
static bool needs_new_session(const struct kv_core_op *op, kv_code code) {
  if (code != KV_LOST || op->pub.kind != KV_PUT || !(op->pub.flags & KV_KEEP_ALIVE) || !op->lease) return false;
  return !op->answered && !op->cancelled && !op->timed_out && op->pub.attempt < SESSIONS_TRIED;
}

static void finish_on_reactor(struct kv_core_op *op, kv_code code, const char *cause) {
  op->in_driver = false;
  if (needs_new_session(op, code)) {
    kv_session_lost(op->backend, op->lease);
    kv_timer_set(&op->retry_timer, kv_now());
    return;
  }
  if (may_retry(op, code)) {
    remember_problem(op, code, cause);
    if (code == KV_UNAVAILABLE) snprintf(op->backend->away, sizeof op->backend->away, "%s", cause ? cause : "");
    kv_timer_set(&op->retry_timer, kv_deadline(kv_now(), kv_backoff(op->pub.attempt)));
    return;
  }
  kv_error error;
  if (code == KV_OK && !op->recipe) op->backend->away[0] = '\0';
  if (code == KV_OK) schedule_expiry(op);
  if (code == KV_OK && (code = kv_op_arrange(op, &error)) != KV_OK) cause = "out of memory";
  /* A read whose answer was lost is no ambiguity. Recipes know for themselves. */
  if (code == KV_UNKNOWN && !op->recipe && !kv_kind_is_write(op->pub.kind)) code = KV_UNAVAILABLE;
  /* With what a driver lets go of a step says nothing; what it had told before does. */
  if (op->step && op->timed_out && code == KV_CANCELLED) cause = step_problem(op);
  if (op->step && op->timed_out && (code == KV_UNAVAILABLE || code == KV_CANCELLED)) code = KV_TIMEOUT;
  conclude(op, code, cause);
}

/* ------------------------------------------------------------------ finishing on another thread */

/* What an op answers whose driver let go because it was given up: that, unless it got done after all. */
static kv_code settle(kv_code given_up, kv_code finished) {
  switch (finished) {
    case KV_CANCELLED: case KV_CLOSED: case KV_TIMEOUT: case KV_UNAVAILABLE: return given_up;
    default: return finished;
  }
}

static void finished_elsewhere(struct kv_task *task) {
  struct kv_core_op *op = task->data;
  char *given_up_cause = op->last_problem;
  kv_code code = op->last_code != KV_OK ? settle(op->last_code, op->finished_code) : op->finished_code;
  op->last_problem = NULL;
  finish_on_reactor(op, code, code == op->finished_code ? op->finished_cause : given_up_cause);
  free(given_up_cause);
}

static void post_finish(struct kv_core_op *op, kv_code code, const char *cause) {
  op->finished_code = code;
  op->finished_cause = cause ? strdup(cause) : NULL;
  op->task.run = finished_elsewhere;
  op->task.data = op;
  atomic_store(&op->finished, true);
  kv_post(&op->task);
}

/* ------------------------------------------------------------------ the direct way */

static void direct_submit(struct kv_core_op *op) {
  struct kv_backend *backend = op->backend;
  bool arm = false, closed;
  pthread_mutex_lock(&backend->lock);
  closed = backend->closing;
  if (!closed) list_add(&backend->direct, op);
  if (!closed && op->pub.deadline < backend->direct_deadline) {
    backend->direct_deadline = op->pub.deadline;
    arm = !backend->direct_arming;
    backend->direct_arming = true;
  }
  pthread_mutex_unlock(&backend->lock);
  if (arm) kv_post(&backend->direct_task);
  if (closed)
    kv_op_finish(&op->pub, KV_CLOSED, "the store was closed");
  else
    backend->driver->start(backend->state, &op->pub);
}

static void direct_finish(struct kv_core_op *op, kv_code code, const char *cause) {
  struct kv_backend *backend = op->backend;
  kv_error error;
  if (code == KV_OK && (code = kv_op_arrange(op, &error)) != KV_OK) cause = "out of memory";
  pthread_mutex_lock(&backend->lock);
  if (op->pinned) {
    remember_problem(op, code, cause);
    atomic_store(&op->finished, true);
    pthread_mutex_unlock(&backend->lock);
    return;
  }
  list_remove(op);
  bool answered = op->answered;
  pthread_mutex_unlock(&backend->lock);
  if (!answered) answer(op, code, cause, true);
  kv_core_op_free(op);
}

/* Give up one pinned op: ask the driver to let go, and answer by what it did. */
static void direct_give_up(struct kv_core_op *op, kv_code code, const char *cause) {
  struct kv_backend *backend = op->backend;
  if (!atomic_load(&op->finished)) backend->driver->cancel(backend->state, &op->pub);
  pthread_mutex_lock(&backend->lock);
  op->pinned = false;
  bool finished = atomic_load(&op->finished);
  if (finished)
    list_remove(op);
  else if (!op->answered) /* begun: under the lock, because it may be finished and freed right after */
    answer(op, kv_kind_is_write(op->pub.kind) ? KV_UNKNOWN : code, cause, false);
  pthread_mutex_unlock(&backend->lock);
  if (!finished) return;
  kv_code settled = settle(code, op->last_code);
  if (!op->answered) answer(op, settled, settled == code ? cause : op->last_problem, true);
  kv_core_op_free(op);
}

/* Pin the next op that `matches`, or NULL. backend->lock is taken inside. */
static struct kv_core_op *direct_pin(struct kv_backend *backend,
                                     bool (*matches)(const struct kv_core_op *, const void *), const void *argument) {
  pthread_mutex_lock(&backend->lock);
  struct kv_core_op *op = backend->direct;
  while (op && (op->answered || op->pinned || !matches(op, argument))) op = op->next;
  if (op) op->pinned = true;
  pthread_mutex_unlock(&backend->lock);
  return op;
}

void kv_direct_arm(struct kv_task *task) {
  struct kv_backend *backend = task->data;
  pthread_mutex_lock(&backend->lock);
  backend->direct_arming = false;
  int64_t at = backend->direct_deadline;
  pthread_mutex_unlock(&backend->lock);
  kv_timer_set(&backend->direct_timer, at);
}

static bool is_overdue(const struct kv_core_op *op, const void *now) {
  return op->pub.deadline <= *(const int64_t *)now;
}

void kv_direct_scan(struct kv_timer *timer) {
  struct kv_backend *backend = timer->data;
  struct kv_core_op *op;
  int64_t now = kv_now(), next = KV_NEVER;
  while ((op = direct_pin(backend, is_overdue, &now))) direct_give_up(op, KV_TIMEOUT, "deadline passed");
  pthread_mutex_lock(&backend->lock);
  for (op = backend->direct; op; op = op->next)
    if (!op->answered && op->pub.deadline < next) next = op->pub.deadline;
  backend->direct_deadline = next;
  pthread_mutex_unlock(&backend->lock);
  kv_timer_set(timer, next);
}

/* ------------------------------------------------------------------ finishing */

void kv_op_finish(struct kv_op *pub, kv_code code, const char *format, ...) {
  struct kv_core_op *op = (struct kv_core_op *)pub;
  char cause[KV_MESSAGE_MAX] = "";
  if (format) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(cause, sizeof cause, format, arguments);
    va_end(arguments);
  }
  const char *told = format ? cause : code == KV_OK ? NULL : kv_code_meaning(code);
  if (op->direct)
    direct_finish(op, code, told);
  else if (any_thread(op) && op->in_driver)
    post_finish(op, code, told);
  else
    finish_on_reactor(op, code, told);
}

/* ------------------------------------------------------------------ submitting */

void kv_core_op_submit(struct kv_core_op *op) {
  struct kv_backend *backend = op->backend;
  kv_count(backend, KV_COUNT_operations, 1);
  kv_count(backend, KV_COUNT_in_flight, 1);
  op->task.data = op;
  op->task.run = begin;
  op->direct = any_thread(op) && !(op->pub.flags & KV_KEEP_ALIVE);
  op->in_driver = op->direct;
  queue_add(op);
  if (op->direct)
    direct_submit(op);
  else
    kv_post(&op->task);
}

/* ------------------------------------------------------------------ steps */

static void step_failed_early(struct kv_task *task) {
  struct kv_step *step = task->data;
  struct kv_result nothing = {.failed_check = -1};
  step->done(step, KV_FAILED, "out of memory", &nothing);
}

void kv_step_start(struct kv_backend *backend, struct kv_step *step) {
  struct kv_core_op *op = kv_core_op_new(backend, step->kind, 0, NULL);
  if (!op) {
    step->task.run = step_failed_early;
    step->task.data = step;
    kv_defer(&step->task);
    return;
  }
  op->step = step;
  step->op = op;
  op->pub.flags = step->flags;
  op->pub.key = step->key;
  op->pub.value = step->value;
  op->pub.after = step->after;
  op->pub.condition = step->condition;
  op->pub.revision = step->revision;
  op->pub.limit = step->limit;
  op->pub.lease = step->lease;
  op->pub.place = step->place;
  op->pub.parts = step->parts;
  op->pub.part_count = step->part_count;
  op->pub.deadline = step->deadline;
  op->task.data = op;
  op->deadline_timer.fire = deadline_passed;
  op->deadline_timer.data = op;
  op->retry_timer.fire = retry_due;
  op->retry_timer.data = op;
  list_add(&backend->ops, op);
  kv_timer_set(&op->deadline_timer, op->pub.deadline);
  try_now(op);
}

void kv_step_cancel(struct kv_step *step) {
  struct kv_core_op *op = step->op;
  if (!op || op->cancelled || op->concluded) return;
  op->cancelled = true;
  give_up(op, KV_CANCELLED, "cancelled");
}

/* ------------------------------------------------------------------ requests to recipes */

kv_code kv_recipe_submit(kv_store *store, kv_queue *queue, const struct kv_recipe *recipe, void *subject, kv_kind kind,
                         kv_slice name, kv_slice value, double timeout, uint64_t tag, uint64_t *id, kv_error *error) {
  kv_code code = kv_store_ready(store, error);
  if (code != KV_OK) return code;
  char *room = NULL;
  struct kv_core_op *op = kv_core_op_new(store->backend, kind, name.size + value.size + 1, &room);
  if (!op || !(op->reply = calloc(1, sizeof *op->reply))) {
    if (op) kv_core_op_free(op);
    return kv_fail(error, KV_FAILED, "out of memory");
  }
  if (name.size) memcpy(room, name.data, name.size);
  if (value.size) memcpy(room + name.size, value.data, value.size);
  op->name = (kv_slice){room, name.size};
  op->pub.value = (kv_slice){room + name.size, value.size};
  op->has_name = name.size > 0;
  op->recipe = recipe;
  op->subject = subject;
  op->pub.deadline = timeout < 0 ? KV_NEVER : kv_deadline(kv_clock(), timeout);
  kv_core_op_bind(op, store, queue, tag, id);
  kv_core_op_submit(op);
  return KV_OK;
}

void kv_core_op_bind(struct kv_core_op *op, kv_store *store, kv_queue *queue, uint64_t tag, uint64_t *id) {
  static atomic_uint_fast64_t last_id;
  op->view = store->view;
  op->queue = queue;
  kv_queue_retain(queue);
  op->tag = tag;
  op->id = atomic_fetch_add_explicit(&last_id, 1, memory_order_relaxed) + 1;
  if (id) *id = op->id;
  op->reply->kind = op->pub.kind;
  op->reply->tag = tag;
  op->reply->failed_check = -1;
}

/* ------------------------------------------------------------------ cancelling and closing */

static bool of_view(const struct kv_core_op *op, const void *view) {
  uint64_t wanted = *(const uint64_t *)view;
  return !wanted || op->view == wanted;
}

/* Each op is looked at once, whatever the drivers do to the list meanwhile. */
void kv_ops_close_view(struct kv_backend *backend, uint64_t view) {
  struct kv_core_op *op, *seen = NULL;
  while ((op = direct_pin(backend, of_view, &view))) direct_give_up(op, KV_CLOSED, "the store was closed");
  while ((op = backend->ops)) {
    list_remove(op);
    list_add(&seen, op);
    if (op->step || op->answered || !of_view(op, &view)) continue;
    bool sent = kv_kind_is_write(op->pub.kind) && op->in_driver && !any_thread(op) && op->pub.sent;
    give_up(op, sent ? KV_UNKNOWN : KV_CLOSED, "the store was closed");
  }
  backend->ops = seen;
  if (seen) seen->link = &backend->ops;
}

struct cancel_request {
  struct kv_task task;
  kv_queue *queue; /* counted */
  uint64_t id;     /* 0: all, and the queue's owner is gone */
};

static bool has_id(const struct kv_core_op *op, const void *id) {
  return op->id == *(const uint64_t *)id;
}

/*
 * Cancel one op of the queue; false when there is none left. Ops of the reactor's way end on this thread only, so the
 * pointer stays good without the lock; direct ones may be gone by then, and are looked up again by their id.
 */
static bool cancel_next(const struct cancel_request *request) {
  kv_queue *queue = request->queue;
  pthread_mutex_lock(&queue->lock);
  struct kv_core_op *op = queue->ops;
  while (op && (op->cancelled || (request->id && op->id != request->id))) op = op->queue_next;
  if (!op) {
    pthread_mutex_unlock(&queue->lock);
    return false;
  }
  op->cancelled = true;
  bool direct = op->direct;
  uint64_t id = op->id;
  struct kv_backend *backend = op->backend;
  kv_backend_retain(backend);
  pthread_mutex_unlock(&queue->lock);
  if (direct) {
    op = direct_pin(backend, has_id, &id);
    if (op) direct_give_up(op, KV_CANCELLED, "cancelled");
  } else if (op->link) { /* else its begin() is still on the way, and will see `cancelled` */
    give_up(op, KV_CANCELLED, "cancelled");
  }
  kv_backend_release(backend);
  return true;
}

static void run_cancel(struct kv_task *task) {
  struct cancel_request *request = task->data;
  while (cancel_next(request) && !request->id) continue;
  kv_queue_release(request->queue);
  free(request);
  kv_reactor_release();
}

static bool post_cancel(kv_queue *queue, uint64_t id) {
  struct cancel_request *request = calloc(1, sizeof *request);
  if (!request || kv_reactor_retain(NULL) != KV_OK) {
    free(request);
    return false;
  }
  request->queue = queue;
  request->id = id;
  request->task.run = run_cancel;
  request->task.data = request;
  kv_post(&request->task);
  return true;
}

void kv_cancel(kv_queue *queue, uint64_t id) {
  if (queue->fork_count != kv_fork_count() || !id) return;
  kv_queue_retain(queue);
  if (!post_cancel(queue, id)) kv_queue_release(queue);
}

void kv_ops_cancel_queue(kv_queue *queue) {
  if (!post_cancel(queue, 0)) kv_queue_release(queue);
}
