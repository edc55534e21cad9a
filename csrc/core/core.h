/*
 * core.h - what the parts of the core and the recipes share. Nothing here is public, and no driver sees it.
 *
 * Layers inside the core, each file with one subject:
 *   error.c key.c url.c options.c buffer.c clock.c   values, no state
 *   reactor.c timer.c poller_epoll.c                 the one thread: descriptors, timers, tasks
 *   resolve.c dial.c                                 names to addresses (helper thread), connecting, rotation
 *   page.c queue.c                                   packed pairs, replies, what a Lua state waits on
 *   op.c                                             the life of an operation: start, retry, deadline, cancel, answer
 *   backend.c store.c driver_table.c                 open backends, views of them, registered drivers, struct kv_host
 *   watch.c delivered.c                              watches: list, stream, difference, bounded event queue
 *   ../recipes/                                      lock, lease, expiry: built on steps (below), for all drivers
 */
#ifndef KV_CORE_H
#define KV_CORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdarg.h>

#include "../drivers/driver.h"

#define KV_SECOND INT64_C(1000000000)
#define KV_NEVER INT64_MAX

/* ------------------------------------------------------------------ error.c */

/* Fill *error (when not NULL) and return `code`, so that `return kv_fail(error, KV_INVALID, "...")` reads well. */
kv_code kv_fail(kv_error *error, kv_code code, const char *format, ...) KV_PRINTF(3, 4);
kv_code kv_fail_v(kv_error *error, kv_code code, const char *format, va_list arguments);

/* ------------------------------------------------------------------ clock.c */

int64_t kv_clock(void);    /* CLOCK_BOOTTIME now, nanoseconds */
uint64_t kv_random(void);  /* not for secrets; differs between processes and after fork */
/* A deadline from a timeout in seconds: KV_NEVER when negative or too far. */
int64_t kv_deadline(int64_t now, double seconds);
/* Counts forks: an object made under another count belongs to the parent. */
unsigned kv_fork_count(void);
/* pthread_atfork, once. Called before the first thread or lock is made. */
void kv_fork_watch(void);
void kv_reactor_forget_parent(void); /* reactor.c's part of it */
void kv_drivers_forget_parent(void); /* driver_table.c's */

/* ------------------------------------------------------------------ options.c, url.c */

/* Options as given: every field has a "was it set" form, so that URL and table can be merged. */
struct kv_options {
  struct kv_config config; /* only the option fields; strings owned */
  char *prefix;            /* not yet canonical */
  unsigned set;            /* bit i: the i-th option of the table in options.c was given */
};

/* Make *config (all strings owned by it) and the canonical prefix (KV_KEY_MAX bytes at `prefix`) from a URL and options
 * (or NULL); options win over the query part. The scheme must be known: KV_UNSUPPORTED otherwise. */
kv_code kv_config_make(const char *url, const kv_options *options, struct kv_config *config, char *prefix,
                       size_t *prefix_size, kv_error *error);
void kv_config_clear(struct kv_config *config);

/* What a URL says, percent-decoded. For tests and fuzzing on its own. */
struct kv_url {
  char *scheme, *username, *password, *path; /* path: prefix, or the folder of local:PATH (NULL when empty) */
  struct kv_address *addresses;
  size_t address_count;
  kv_options *options; /* of the query part */
};
/* `has_path` tells that this scheme is followed by a path instead of hosts. Errors never show a password. */
kv_code kv_url_parse(const char *text, struct kv_url *url, kv_error *error);
void kv_url_clear(struct kv_url *url);

const struct kv_scheme *kv_scheme_find(kv_slice scheme, const struct kv_driver **driver); /* driver_table.c */

/* ------------------------------------------------------------------ buffer.c */

#include "buffer.h"

/* ------------------------------------------------------------------ key.c */

/* Is it canonical already (the form that kv_key_canonical() gives)? Keys from servers are tested with this. */
bool kv_key_is_canonical(kv_slice key);
/* First segment ".kv"? */
bool kv_key_is_own(kv_slice key);
/* As kv_key_canonical(), where messages call it something else than "key" ("prefix", "lock name"). */
kv_code kv_key_make(const char *noun, kv_slice key, bool root_allowed, char *out, size_t *size, kv_error *error);

/* ------------------------------------------------------------------ reactor.c */

/* As in struct kv_host, where the manual is. */

int64_t kv_now(void);
void kv_io_set(struct kv_io *io, unsigned events);
void kv_io_remove(struct kv_io *io);
void kv_timer_set(struct kv_timer *timer, int64_t at);
void kv_timer_stop(struct kv_timer *timer);
void kv_post(struct kv_task *task);
bool kv_post_if_running(struct kv_task *task); /* false: there is no reactor, and the task will not run */
void kv_defer(struct kv_task *task);
bool kv_on_reactor(void);
/* Keep the reactor running: started by the first reference (KV_FAILED when no thread can be had), ended by the last. */
kv_code kv_reactor_retain(kv_error *error);
void kv_reactor_release(void);
/* Loans (reactor.c): run the reactor in the caller's thread while waiting(argument) is true and it comes soon. 1:
 * waiting() is false now; 0: do without (not lent, or it takes long); -1: a signal came. Any thread but the
 * reactor's. */
int kv_reactor_run_while(bool (*waiting)(void *argument), void *argument, int64_t deadline);
void kv_reactor_answered(const void *whom); /* `argument` of somebody got what he waits for [any thread] */
void kv_reactor_waited(void);  /* this thread has just got an answer that it waited for */
void kv_reactor_nudge(void);   /* make whoever runs the reactor look at what he waits for [any thread] */
void kv_reactor_bind(int by);  /* backends (more, fewer) for which it must not be lent */

/* ------------------------------------------------------------------ dial.c, resolve.c */

struct kv_endpoints; /* per backend: addresses, which are dead and until when, whose turn it is */
struct kv_endpoints *kv_endpoints_new(const struct kv_config *config);
void kv_endpoints_free(struct kv_endpoints *endpoints);
void kv_dial_start(struct kv_endpoints *endpoints, struct kv_dial *dial);
void kv_dial_cancel(struct kv_dial *dial);
void kv_endpoint_failed(struct kv_endpoints *endpoints, size_t address);
double kv_backoff(unsigned n);

/* ------------------------------------------------------------------ backends and stores */

struct kv_backend {
  const struct kv_driver *driver;
  void *state;                  /* the driver's */
  struct kv_config config;
  struct kv_endpoints *endpoints;
  char label[360];              /* scheme and hosts, no secrets */
  unsigned fork_count;
  atomic_uint references;       /* views, operations, watches, locks, leases */
  pthread_mutex_t lock;         /* guards what follows up to "reactor only" */
  unsigned views;               /* open views; 0: close */
  bool started, closing, closed;
  pthread_cond_t closed_changed;
  kv_info info;
  struct kv_core_op *direct;    /* ops of KV_CAN_ANY_THREAD drivers in flight */
  int64_t direct_deadline;      /* the armed deadline scan, KV_NEVER: none */
  bool direct_arming;           /* direct_task is on its way */
  atomic_uint_fast64_t counters[32]; /* in the order of KV_COUNTERS */
  atomic_uint_fast64_t failures[KV_CODE_COUNT];
  /* reactor only */
  bool shut;                    /* the last view was closed: nothing new begins */
  char away[200];               /* why it was not reached last; "" since something was done */
  struct kv_core_op *ops;       /* in flight */
  struct kv_watch *watches;
  unsigned pages_asked;         /* by watches, and not answered */
  struct kv_watch *page_first, *page_last; /* watches that wait until they may ask */
  void *recipes;                /* struct kv_recipes: held locks, leases, pending expiries */
  struct kv_timer direct_timer;
  struct kv_task direct_task, closed_task;
};

struct kv_store {
  atomic_uint references;       /* the user's handle, locks and leases that were made by it */
  struct kv_backend *backend;
  uint64_t view;                /* tells its operations and watches from other views' */
  struct kv_close_request *close_request;
  atomic_bool closed;
  atomic_bool ready;            /* the backend was started */
  unsigned fork_count;
  size_t prefix_size;
  char prefix[KV_KEY_MAX];
  char label[KV_KEY_MAX + 400];
};

void kv_store_retain(kv_store *store);
void kv_store_release(kv_store *store); /* the last one frees the memory of the handle, and no more; any thread */
void kv_backend_retain(struct kv_backend *backend);
void kv_backend_release(struct kv_backend *backend); /* the last one frees it; any thread */
/* Join the store's prefix and a user's key into `out` (KV_KEY_MAX), checking all rules; KV_CLOSED for a closed or
 * inherited store. */
kv_code kv_store_key(const kv_store *store, const char *what, kv_slice key, bool root_allowed, char *out, size_t *size,
                     kv_error *error);
/* The same for a prefix on its own. */
kv_code kv_key_join(const char *prefix, size_t prefix_size, kv_slice key, bool root_allowed, char *out, size_t *size,
                    kv_error *error);
/* KV_CLOSED when the store was closed or belongs to the parent process; starts the backend (reactor reference) at first
 * use. */
kv_code kv_store_ready(kv_store *store, kv_error *error);

enum kv_counter {
#define KV_COUNTER_ENUM(name, meaning) KV_COUNT_##name,
  KV_COUNTERS(KV_COUNTER_ENUM)
#undef KV_COUNTER_ENUM
};
void kv_count(struct kv_backend *backend, enum kv_counter counter, int64_t by);

/* ------------------------------------------------------------------ operations of the core's own: steps */

/*
 * A request that a recipe or a watch makes, embedded in its machine. Fill the request fields, then kv_step_start() on
 * the reactor thread. done() comes exactly once, on the reactor thread, never inside kv_step_start(). Until then
 * everything that the step points to (lease, place, key...) must stay valid: also after kv_step_cancel(), which only
 * makes done() come soon (with KV_CANCELLED unless the driver finished before). Retries on definite and idempotent
 * failures are made until the deadline.
 */
struct kv_step {
  kv_kind kind;
  unsigned flags;
  kv_slice key, value, after;
  kv_condition condition;
  uint64_t revision;
  uint32_t limit;
  struct kv_lease_ref *lease;
  struct kv_place *place;
  const struct kv_part *parts; /* KV_TXN, which is repeated after a definite failure only */
  size_t part_count;
  int64_t deadline;  /* KV_NEVER: none */
  void (*done)(struct kv_step *step, kv_code code, const char *message, struct kv_result *result);
  void *data;
  /* set before done(): how often a driver was asked. More than once: a first try may have been applied */
  unsigned attempts;
  struct kv_core_op *op; /* in flight, else NULL; the core's */
  struct kv_task task;   /* the core's */
};
void kv_step_start(struct kv_backend *backend, struct kv_step *step);
void kv_step_cancel(struct kv_step *step); /* harmless when not in flight */

/* ------------------------------------------------------------------ requests that recipes answer */

/*
 * A recipe answers some user requests itself (KV_LOCK_ACQUIRE...). It gets each as a kv_op under the same rules as a
 * driver: start(), perhaps cancel(), and one kv_op_finish(). `subject` is the machine it is about.
 */
struct kv_recipe {
  void (*start)(struct kv_op *op, void *subject);  /* reactor thread */
  void (*cancel)(struct kv_op *op, void *subject); /* reactor thread; the waiter was answered, finish() is still owed */
};
/* timeout: negative waits for ever. `name` is what messages call the subject; `value` is copied, and is op->value.
 * subject must stay valid until finish. */
kv_code kv_recipe_submit(kv_store *store, kv_queue *queue, const struct kv_recipe *recipe, void *subject, kv_kind kind,
                         kv_slice name, kv_slice value, double timeout, uint64_t tag, uint64_t *id, kv_error *error);
void *kv_op_subject(const struct kv_op *op);
void kv_op_finish(struct kv_op *op, kv_code code, const char *format, ...) KV_PRINTF(3, 4);
/* Add a pair to the op's answer as is (no prefix is cut). */
bool kv_op_pair(struct kv_op *op, kv_slice key, kv_slice value, uint64_t revision, uint64_t created, bool dir);

/* What the core asks of recipes/, all on the reactor thread. */
/* A put with ttl succeeded and the server may be late: delete the key at `at` if its revision is still `revision`. */
void kv_expiry_schedule(struct kv_backend *backend, kv_slice key, uint64_t revision, int64_t at);
/* The backend closes: let go of locks, leases (the session too) and expiries as far as the server answers,
 * KV_CLOSE_GRACE at most; give all waiting requests back with KV_CLOSED; then call done(backend) once. */
#define KV_CLOSE_GRACE (1 * KV_SECOND)
void kv_recipes_close(struct kv_backend *backend, void (*done)(struct kv_backend *backend));
/* One view of several closes: let go of its locks and leases. */
void kv_recipes_close_view(struct kv_backend *backend, uint64_t view);
void kv_recipes_free(struct kv_backend *backend);
/* The store's own lease for KV_KEEP_ALIVE, made when first asked for; ready() comes once, perhaps at once. lease is
 * NULL on failure and otherwise counted for the waiter: kv_lease_reference_release(). */
struct kv_session_wait {
  void (*ready)(struct kv_session_wait *wait, struct kv_lease_ref *lease, kv_code code, const char *message);
  void *data;
  struct kv_session_wait *next;
};
void kv_session_get(struct kv_backend *backend, struct kv_session_wait *wait);
void kv_session_forget(struct kv_backend *backend, struct kv_session_wait *wait); /* ready() will not come */
/* the server does not know it: make another one */
void kv_session_lost(struct kv_backend *backend, const struct kv_lease_ref *lease);

/* Of public handles, for requests that name them. */
struct kv_lease_ref *kv_lease_reference(kv_lease *lease);          /* NULL when not alive */
/* Copy the place of a lock that is held now (name, id, token, ticket); the strings stay valid until
 * kv_place_release(). */
const struct kv_place *kv_lock_place(kv_lock *lock);               /* NULL when not held; counted */
void kv_place_release(const struct kv_place *place);
void kv_lease_reference_release(struct kv_lease_ref *lease);       /* any thread; pairs with kv_lease_reference() */

#endif
