/*
 * lock_handle.c - the lock functions of kv.h: checks, and the requests that the machine of lock.c answers.
 *
 * Answers
 *   acquire  KV_OK, KV_HELD, KV_TIMEOUT (with the last failure, if there was one), or what a server refused it with.
 *   release  KV_OK: our entry was there and is removed. KV_LOST: it was lost before. KV_UNKNOWN: no answer in time; the
 *            lock is not held here any more, and its entry is removed in the background, or expires with its lease.
 */
#include "lock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../core/page.h"

bool kv_lock_inherited(const kv_lock *lock) {
  return lock->fork_count != kv_fork_count();
}

/* ------------------------------------------------------------------ making and freeing */

static kv_code check_options(const kv_store *store, const kv_lock_options *options, const char *noun,
                             kv_error *error) {
  const struct kv_driver *driver = store->backend->driver;
  const char *label = kv_store_label(store);
  int size = options->name.size > 160 ? 160 : (int)options->name.size;
  const char *name = options->name.data ? options->name.data : "";
  if (!(driver->capabilities & KV_CAN_LOCK))
    return kv_fail(error, KV_UNSUPPORTED, "%s \"%.*s\" on %s: this backend has none", noun, size, name, label);
  if (isnan(options->ttl) || isinf(options->ttl))
    return kv_fail(error, KV_INVALID, "%s \"%.*s\" on %s: the ttl must be a number of seconds", noun, size, name,
                   label);
  if (driver->limits.value_max && options->value.size > driver->limits.value_max)
    return kv_fail(error, KV_TOO_LARGE, "%s \"%.*s\" on %s: the value has %zu bytes, at most %zu are allowed", noun,
                   size, name, label, options->value.size, driver->limits.value_max);
  return KV_OK;
}

/* The driver's name of the layout that was asked for. */
static kv_code find_interop(const kv_store *store, const kv_lock_options *options, const char **found,
                            kv_error *error) {
  const struct kv_driver *driver = store->backend->driver;
  const char *wanted = options->interop;
  char known[80] = "";
  size_t used = 0;
  *found = NULL;
  if (!wanted) return KV_OK;
  for (const char *const *layout = driver->interop; layout && *layout; layout++) {
    if (strcmp(*layout, wanted) == 0) {
      *found = *layout;
      return KV_OK;
    }
    int added = snprintf(known + used, sizeof known - used, "%s\"%s\"", used ? ", " : "", *layout);
    if (added > 0 && (size_t)added < sizeof known - used) used += (size_t)added;
  }
  int size = options->name.size > 160 ? 160 : (int)options->name.size;
  return kv_fail(error, KV_UNSUPPORTED, "lock \"%.*s\" on %s: interop \"%.40s\" is no kind of lock there; %s%s", size,
                 options->name.data, kv_store_label(store), wanted,
                 used ? "it shares those of the kind " : "this backend has no locks that other programs know", known);
}

/* The name as the driver gets it. A foreign one is checked as any, but left as others spell it: etcd tells "/a" from
 * "a". */
static kv_code full_name(const kv_store *store, const kv_lock_options *options, const char *noun, char *out,
                         size_t *size, kv_error *error) {
  kv_slice name = options->name;
  kv_error cause;
  if (!options->interop) return kv_store_key(store, noun, name, false, out, size, error);
  kv_code code = KV_CLOSED;
  if (kv_store_closed(store)) kv_fail(&cause, code, "the store was closed");
  else code = kv_key_make("lock", name, false, out, size, &cause);
  if (code == KV_OK && name.size > KV_KEY_MAX)
    code = kv_fail(&cause, KV_INVALID, "the name is longer than 480 bytes");
  if (code != KV_OK) return kv_fail(error, code, "lock on %s: %s", kv_store_label(store), cause.message);
  memcpy(out, name.data, name.size);
  *size = name.size;
  return KV_OK;
}

/* The name with area and prefix, the value, and the leader's key, in one block that lock->name owns. */
static bool copy_texts(kv_lock *lock, const char *area, kv_slice name, size_t prefix_size, kv_slice value,
                       kv_slice leader) {
  size_t area_size = strlen(area), cut = area_size + (prefix_size ? prefix_size + 1 : 0);
  size_t size = area_size + name.size;
  char *room = malloc(size + value.size + leader.size + 1);
  if (!room) return false;
  memcpy(room, area, area_size);
  memcpy(room + area_size, name.data, name.size);
  if (value.size) memcpy(room + size, value.data, value.size);
  if (leader.size) memcpy(room + size + value.size, leader.data, leader.size);
  lock->name = (kv_slice){room, size};
  lock->shown = (kv_slice){room + cut, size - cut};
  lock->value = (kv_slice){room + size, value.size};
  lock->leader = (kv_slice){room + size + value.size, leader.size};
  return true;
}

kv_lock *kv_lock_new(kv_store *store, const kv_lock_options *options, kv_error *error) {
  static const struct kv_lock_use use = {.noun = "lock", .area = ""};
  return kv_lock_make(store, options, &use, KV_TEXT(""), error);
}

kv_lock *kv_lock_make(kv_store *store, const kv_lock_options *options, const struct kv_lock_use *use, kv_slice leader,
                      kv_error *error) {
  char name[KV_KEY_MAX];
  size_t size = 0;
  const char *interop;
  if (full_name(store, options, use->noun, name, &size, error) != KV_OK) return NULL;
  if (check_options(store, options, use->noun, error) != KV_OK) return NULL;
  if (find_interop(store, options, &interop, error) != KV_OK) return NULL;
  if (size + strlen(use->area) > KV_KEY_MAX) {
    kv_fail(error, KV_INVALID, "%s on %s: its name is too long", use->noun, kv_store_label(store));
    return NULL;
  }
  size_t prefix_size = interop ? 0 : store->prefix_size;
  kv_lock *lock = calloc(1, sizeof *lock);
  if (!lock || !copy_texts(lock, use->area, (kv_slice){name, size}, prefix_size, options->value, leader)) {
    free(lock);
    kv_fail(error, KV_FAILED, "out of memory");
    return NULL;
  }
  double least = store->backend->driver->limits.lease_min;
  lock->ttl = options->ttl > 0 ? options->ttl : store->backend->config.session_ttl;
  if (lock->ttl < least) lock->ttl = least;
  lock->interop = interop;
  lock->store = store;
  kv_store_retain(store);
  lock->view = store->view;
  lock->backend = store->backend;
  kv_backend_retain(lock->backend);
  lock->fork_count = kv_fork_count();
  atomic_init(&lock->state, KV_LOCK_FREE);
  atomic_init(&lock->deadline, 0);
  atomic_init(&lock->token, 0);
  atomic_init(&lock->granted, lock->ttl);
  pthread_mutex_init(&lock->guard, NULL);
  return lock;
}

static void free_handle(struct kv_handle *handle) {
  kv_lock *lock = (kv_lock *)((char *)handle - offsetof(kv_lock, handle));
  if (lock->recipes) kv_lock_orphan(lock);
  else kv_lock_destroy(lock);
}

void kv_lock_free(kv_lock *lock) {
  /* What a child inherited is the parent's, its reactor's view of it included. */
  if (!lock || kv_lock_inherited(lock)) return;
  kv_handle_free(lock->backend, &lock->handle, free_handle);
}

/* ------------------------------------------------------------------ looking at it, any thread */

bool kv_lock_held(const kv_lock *lock) {
  return !kv_lock_inherited(lock) && !kv_store_closed(lock->store) && kv_lock_is_held(lock);
}

kv_lock_state kv_lock_get_state(const kv_lock *lock) {
  if (kv_lock_inherited(lock)) return KV_LOCK_FREE;
  kv_lock_state state = (kv_lock_state)atomic_load_explicit(&lock->state, memory_order_acquire);
  bool holding = state == KV_LOCK_HOLDING || state == KV_LOCK_SUSPENDED;
  if (!holding || kv_lock_is_held(lock)) return state;
  /* Past its deadline, or let go between the two reads. */
  kv_lock_state again = (kv_lock_state)atomic_load_explicit(&lock->state, memory_order_acquire);
  return again == state ? KV_LOCK_LOST : again;
}

uint64_t kv_lock_token(const kv_lock *lock) {
  return atomic_load_explicit(&lock->token, memory_order_relaxed);
}

double kv_lock_ttl(const kv_lock *lock) {
  return atomic_load_explicit(&lock->granted, memory_order_relaxed);
}

const struct kv_place *kv_lock_place(kv_lock *lock) {
  if (kv_lock_inherited(lock) || !kv_lock_is_held(lock)) return NULL;
  pthread_mutex_lock(&lock->guard);
  struct kv_entry *entry = lock->held;
  if (entry) kv_place_retain(&entry->pub);
  pthread_mutex_unlock(&lock->guard);
  return entry ? &entry->pub : NULL;
}

kv_code kv_lock_submit(kv_lock *lock, kv_queue *queue, const struct kv_recipe *recipe, kv_kind kind, kv_slice value,
                       double timeout, uint64_t tag, uint64_t *id, kv_error *error) {
  if (kv_lock_inherited(lock))
    return kv_fail(error, KV_CLOSED, "%s \"%.*s\": opened by the parent process", kv_kind_text(kind),
                   (int)lock->shown.size, lock->shown.data);
  return kv_recipe_submit(lock->store, queue, recipe, lock, kind, lock->shown, value, timeout, tag, id, error);
}

static kv_code submit(kv_lock *lock, kv_queue *queue, const struct kv_recipe *recipe, kv_kind kind, double timeout,
                      uint64_t tag, uint64_t *id, kv_error *error) {
  return kv_lock_submit(lock, queue, recipe, kind, KV_TEXT(""), timeout, tag, id, error);
}

double kv_lock_timeout(const kv_lock *lock, double timeout) {
  return timeout > 0 || kv_lock_inherited(lock) ? timeout : lock->backend->config.timeout;
}

/* Is the lock in the machine, and has its deadline been looked at? Otherwise op is answered. */
static bool ready(kv_lock *lock, struct kv_op *op) {
  kv_code code = KV_OK;
  const char *message = "";
  if (kv_lock_attach(lock, &code, &message)) {
    kv_lock_event(lock, LOCK_LOOK, NULL);
    return true;
  }
  kv_op_finish(op, code, "%s", message);
  return false;
}

/* ------------------------------------------------------------------ acquire */

static void acquire_late(struct kv_timer *timer) {
  kv_lock *lock = timer->data;
  const char *lease_problem = lock->lease ? lock->lease->problem : "";
  const char *problem = lock->problem[0] ? lock->problem : lease_problem;
  bool in_line = lock->phase != LOCK_GRANTING && lock->phase != LOCK_JOINING;
  const char *taken = lock->limit ? "others hold all of it" : "somebody else holds it";
  if (!problem[0]) problem = in_line ? taken : "no answer before the deadline";
  kv_asked_answer(&lock->acquire, KV_TIMEOUT, "%s", problem);
  kv_lock_event(lock, LOCK_GIVE_UP, NULL);
}

static void begin_acquire(struct kv_op *op, kv_lock *lock, bool try_once) {
  if (!ready(lock, op)) return;
  if (lock->acquire.op || lock->phase == LOCK_HELD || lock->phase == LOCK_SUSPENDED) {
    kv_op_finish(op, KV_HELD, lock->acquire.op ? "this handle waits for it already" : "this handle holds it already");
    return;
  }
  kv_asked_take(&lock->acquire, op, acquire_late, lock);
  lock->try_once = try_once;
  lock->turned_away = false;
  lock->restarts = lock->laps = lock->disagreements = 0;
  lock->problem[0] = '\0';
  kv_lock_event(lock, LOCK_ACQUIRE, NULL);
}

static void start_acquire(struct kv_op *op, void *subject) {
  begin_acquire(op, subject, false);
}

static void start_try(struct kv_op *op, void *subject) {
  begin_acquire(op, subject, true);
}

static void cancel_acquire(struct kv_op *op, void *subject) {
  kv_lock *lock = subject;
  if (lock->acquire.op != op) return;
  kv_asked_answer(&lock->acquire, KV_CANCELLED, NULL);
  kv_lock_event(lock, LOCK_GIVE_UP, NULL);
}

const struct kv_recipe kv_lock_acquire_recipe = {.start = start_acquire, .cancel = cancel_acquire};
const struct kv_recipe kv_lock_try_recipe = {.start = start_try, .cancel = cancel_acquire};

kv_code kv_lock_acquire(kv_lock *lock, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id, kv_error *error) {
  bool once = timeout == 0;
  return submit(lock, queue, once ? &kv_lock_try_recipe : &kv_lock_acquire_recipe, KV_LOCK_ACQUIRE,
                once ? kv_lock_timeout(lock, 0) : timeout, tag, id, error);
}

/* ------------------------------------------------------------------ release */

static void release_late(struct kv_timer *timer) {
  kv_lock *lock = timer->data;
  kv_asked_answer(&lock->release, KV_UNKNOWN, "%s; the entry is removed in the background, or expires",
                  lock->problem[0] ? lock->problem : "no answer before the deadline");
}

static void start_release(struct kv_op *op, void *subject) {
  kv_lock *lock = subject;
  if (!ready(lock, op)) return;
  if (lock->phase != LOCK_HELD && lock->phase != LOCK_SUSPENDED && lock->phase != LOCK_LOST) {
    kv_op_finish(op, KV_NOT_HELD, "this handle does not hold it");
    return;
  }
  kv_op_list_answer(&lock->lost_waiters, KV_NOT_HELD, "it was released");
  kv_asked_take(&lock->release, op, release_late, lock);
  lock->problem[0] = '\0';
  kv_lock_event(lock, LOCK_RELEASE, NULL);
}

static void cancel_release(struct kv_op *op, void *subject) {
  kv_lock *lock = subject;
  if (lock->release.op == op) kv_asked_answer(&lock->release, KV_CANCELLED, NULL);
}

const struct kv_recipe kv_lock_release_recipe = {.start = start_release, .cancel = cancel_release};

kv_code kv_lock_release(kv_lock *lock, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id, kv_error *error) {
  return submit(lock, queue, &kv_lock_release_recipe, KV_LOCK_RELEASE, kv_lock_timeout(lock, timeout), tag, id, error);
}

/* ------------------------------------------------------------------ waiting for the loss */

static void start_wait_lost(struct kv_op *op, void *subject) {
  kv_lock *lock = subject;
  if (!ready(lock, op)) return;
  if (lock->phase == LOCK_HELD || lock->phase == LOCK_SUSPENDED) kv_op_list_add(&lock->lost_waiters, op);
  else if (lock->phase == LOCK_LOST) kv_op_finish(op, KV_OK, "%s", lock->reason);
  else kv_op_finish(op, KV_NOT_HELD, "this handle does not hold it");
}

static void cancel_wait_lost(struct kv_op *op, void *subject) {
  kv_lock *lock = subject;
  if (kv_op_list_remove(&lock->lost_waiters, op)) kv_op_finish(op, KV_CANCELLED, NULL);
}

static const struct kv_recipe wait_lost_recipe = {.start = start_wait_lost, .cancel = cancel_wait_lost};

kv_code kv_lock_wait_lost(kv_lock *lock, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id, kv_error *error) {
  return submit(lock, queue, &wait_lost_recipe, KV_LOCK_WAIT_LOST, timeout, tag, id, error);
}

/* ------------------------------------------------------------------ who holds it */

/* One question, on its own: it needs nothing of the machine, and may outlive the lock. Of an election it is the
 * leader's key that tells. */
struct kv_holder {
  struct kv_holder *next, **link; /* in recipes->holders */
  struct kv_recipes *recipes;
  struct kv_op *op;               /* NULL once answered */
  struct kv_step step;
  struct kv_place place;
  bool of_election;
  size_t shown_size;
  char text[];                    /* the name, with the prefix, and the leader's key */
};

/* The pair that tells who holds it; false: it says nothing. */
static bool told(const struct kv_holder *holder, const struct kv_result *result, kv_pair *pair) {
  size_t offset = 0;
  if (!result || !result->page || !kv_page_next(result->page, &offset, pair)) return false;
  if (!holder->of_election) return true;
  kv_slice record = pair->value;
  return kv_leader_read(record, &pair->revision, &pair->value);
}

static void answer_holder(struct kv_holder *holder, kv_code code, const char *message, const struct kv_result *result) {
  struct kv_op *op = holder->op;
  kv_pair pair;
  if (!op) return;
  holder->op = NULL;
  if (code != KV_OK) {
    kv_op_finish(op, code, "%s", message);
    return;
  }
  if (told(holder, result, &pair)) {
    const char *name = holder->text + holder->place.name.size - holder->shown_size;
    if (!kv_op_pair(op, (kv_slice){name, holder->shown_size}, pair.value, pair.revision, pair.created, false)) {
      kv_op_finish(op, KV_FAILED, "out of memory");
      return;
    }
  }
  kv_op_finish(op, KV_OK, NULL);
}

static void holder_found(struct kv_step *step, kv_code code, const char *message, struct kv_result *result) {
  struct kv_holder *holder = step->data;
  struct kv_recipes *recipes = holder->recipes;
  answer_holder(holder, code, message, result);
  *holder->link = holder->next;
  if (holder->next) holder->next->link = holder->link;
  free(holder);
  kv_recipes_step_done(recipes);
}

static void start_holder(struct kv_op *op, void *subject) {
  kv_lock *lock = subject;
  struct kv_recipes *recipes = kv_recipes_of(lock->backend);
  struct kv_holder *holder = recipes ? calloc(1, sizeof *holder + lock->name.size + lock->leader.size) : NULL;
  if (!holder) {
    kv_op_finish(op, KV_FAILED, "out of memory");
    return;
  }
  memcpy(holder->text, lock->name.data, lock->name.size);
  if (lock->leader.size) memcpy(holder->text + lock->name.size, lock->leader.data, lock->leader.size);
  holder->of_election = lock->leader.size > 0;
  holder->shown_size = lock->shown.size;
  holder->place.name = (kv_slice){holder->text, lock->name.size};
  holder->place.interop = lock->interop;
  holder->place.limit = lock->limit;
  holder->recipes = recipes;
  holder->op = op;
  op->data = holder;
  holder->next = recipes->holders;
  if (holder->next) holder->next->link = &holder->next;
  holder->link = &recipes->holders;
  recipes->holders = holder;
  holder->step = (struct kv_step){.deadline = op->deadline, .done = holder_found, .data = holder};
  if (holder->of_election) {
    holder->step.kind = KV_GET;
    holder->step.key = (kv_slice){holder->text + lock->name.size, lock->leader.size};
  } else {
    holder->step.kind = KV_QUEUE_HEAD;
    holder->step.place = &holder->place;
  }
  kv_recipes_step(recipes, &holder->step);
}

static void cancel_holder(struct kv_op *op, void *subject) {
  struct kv_holder *holder = op->data;
  (void)subject;
  holder->op = NULL;
  kv_step_cancel(&holder->step);
  kv_op_finish(op, KV_CANCELLED, NULL);
}

static const struct kv_recipe holder_recipe = {.start = start_holder, .cancel = cancel_holder};

kv_code kv_lock_holder(kv_lock *lock, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id, kv_error *error) {
  kv_kind kind = lock->leader.size ? KV_LEADER : KV_QUEUE_HEAD;
  return submit(lock, queue, &holder_recipe, kind, kv_lock_timeout(lock, timeout), tag, id, error);
}

void kv_holders_cancel(struct kv_recipes *recipes) {
  struct kv_holder *next;
  for (struct kv_holder *holder = recipes->holders; holder; holder = next) {
    next = holder->next;
    answer_holder(holder, KV_CLOSED, "the store was closed", NULL);
    kv_step_cancel(&holder->step);
  }
}
