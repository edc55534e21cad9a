/*
 * local.c - the table of the embedded store's driver, and the life of one open store.
 *
 * The folder is opened by a helper thread when the first operation comes, because that may wait for files and for
 * other processes; what comes meanwhile waits in a list, and the reactor hands it over. From then on writes go to
 * the writer thread of the environment from whatever thread they come, and reads are answered where they are asked.
 *
 * Closing gives the environment back and waits for what is still in its hands, but not for ever: another process
 * that was stopped inside of a commit may keep it. Then the store is told to be closed, and this memory goes when
 * the last hand has let go.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "local.h"

const struct kv_host *kv_local_host;

/* ------------------------------------------------------------------ memory */

/* Unlocks. Frees when nobody needs it any more. */
static void unlock(struct kv_local_store *store) {
  bool over = store->destroyed && !store->busy && !store->opening && !store->task_posted;
  pthread_mutex_unlock(&store->lock);
  if (!over) return;
  pthread_mutex_destroy(&store->lock);
  free(store->options.path);
  free(store);
}

/* With the lock held. */
static void ask_to_attend(struct kv_local_store *store) {
  if (store->task_posted || store->told) return;
  store->task_posted = true;
  kv_local_host->post(&store->task);
}

void kv_local_finish(struct kv_op *op, kv_code code, const char *text) {
  struct kv_local_store *store = op->data;
  if (code == KV_OK)
    kv_local_host->finish(op, KV_OK, NULL);
  else
    kv_local_host->finish(op, code, "%s", text);
  pthread_mutex_lock(&store->lock);
  if (--store->busy == 0 && store->closing) ask_to_attend(store);
  unlock(store);
}

/* ------------------------------------------------------------------ operations */

static void read_now(struct kv_local_env *env, struct kv_op *op) {
  const struct kv_local_store *store = op->data;
  kv_error error = {.code = KV_OK};
  kv_code code = kv_local_read(env, op, store->options.portable, &error);
  kv_local_finish(op, code, error.message);
}

/* What needs to look only: no commit for it. */
static void look_or_write(struct kv_local_env *env, struct kv_op *op) {
  kv_error error = {.code = KV_OK};
  kv_code code;
  if (kv_local_read_step(env, op, &code, &error))
    kv_local_finish(op, code, error.message);
  else
    kv_local_write(env, op);
}

static void grant(struct kv_local_env *env, struct kv_op *op) {
  struct kv_lease_ref *lease = op->lease;
  if (!lease->for_lock) {
    kv_local_write(env, op);
    return;
  }
  lease->granted = lease->ttl; /* the place in the queue holds its time itself */
  kv_local_finish(op, KV_OK, "");
}

static void begin(struct kv_local_env *env, struct kv_op *op) {
  switch (op->kind) {
    case KV_PING: kv_local_finish(op, KV_OK, ""); break;
    case KV_GET: case KV_LIST: read_now(env, op); break;
    case KV_LEASE_GRANT: grant(env, op); break;
    case KV_LEASE_REVOKE: case KV_QUEUE_AHEAD: case KV_QUEUE_CLAIM: case KV_QUEUE_HEAD: look_or_write(env, op); break;
    case KV_QUEUE_WAIT: kv_local_follow_wait(env, op); break;
    default: kv_local_write(env, op);
  }
}

static void append(struct kv_local_store *store, struct kv_op *op) {
  kv_local_op_set(op, LOCAL_OP_PENDING);
  op->next = NULL;
  op->previous = store->last;
  if (store->last)
    store->last->next = op;
  else
    store->first = op;
  store->last = op;
}

static void unlink_pending(struct kv_local_store *store, struct kv_op *op) {
  if (op->previous)
    op->previous->next = op->next;
  else
    store->first = op->next;
  if (op->next)
    op->next->previous = op->previous;
  else
    store->last = op->previous;
  op->next = op->previous = NULL;
  kv_local_op_set(op, LOCAL_OP_NEW);
}

static void *open_main(void *argument);

/* With the lock held. */
static bool ensure_opening(struct kv_local_store *store) {
  if (!store->opening) store->opening = kv_local_thread(open_main, store);
  return store->opening;
}

static void start(void *state, struct kv_op *op) {
  struct kv_local_store *store = state;
  op->data = store;
  pthread_mutex_lock(&store->lock);
  store->busy++;
  struct kv_local_env *env = atomic_load(&store->env);
  bool refused = store->closing || (!env && !ensure_opening(store));
  bool closing = store->closing;
  if (!env && !refused) append(store, op);
  pthread_mutex_unlock(&store->lock);
  if (refused)
    kv_local_finish(op, closing ? KV_CLOSED : KV_FAILED, closing ? "the store was closed" : "cannot start a thread");
  else if (env)
    begin(env, op);
}

/* On the reactor, as is all that moves ops from one list to another, but for the writer who takes them from its own. */
static void cancel(void *state, struct kv_op *op) {
  struct kv_local_store *store = state;
  struct kv_local_env *env = atomic_load(&store->env);
  pthread_mutex_lock(&store->lock);
  bool pending = kv_local_op_get(op) == LOCAL_OP_PENDING;
  if (pending) unlink_pending(store, op);
  pthread_mutex_unlock(&store->lock);
  if (pending)
    kv_local_finish(op, KV_CANCELLED, "let go");
  else if (env && kv_local_op_get(op) == LOCAL_OP_WAITING)
    kv_local_follow_cancel(env, op);
  else if (env && kv_local_write_cancel(env, op))
    kv_local_finish(op, KV_CANCELLED, "let go");
}

static kv_code read_slot(void *state, struct kv_op *op, kv_error *error) {
  struct kv_local_store *store = state;
  struct kv_local_env *env = atomic_load_explicit(&store->env, memory_order_acquire);
  if (env) return kv_local_read(env, op, store->options.portable, error);
  return kv_local_fail(error, KV_UNAVAILABLE, "not opened yet"); /* start() opens */
}

/* ------------------------------------------------------------------ opening */

static void *open_main(void *argument) {
  struct kv_local_store *store = argument;
  kv_error error = {.code = KV_OK};
  struct kv_local_env *env = kv_local_env_open(&store->options, &error);
  pthread_mutex_lock(&store->lock);
  bool abandoned = store->told;
  if (env && !abandoned) {
    kv_local_env_use(env, &store->options);
    atomic_store(&store->env, env);
  }
  store->open_error = error;
  if (!abandoned) {
    store->opening = false;
    ask_to_attend(store);
    unlock(store);
    return NULL;
  }
  pthread_mutex_unlock(&store->lock);
  if (env) kv_local_env_drop(env);
  pthread_mutex_lock(&store->lock);
  store->opening = false;
  unlock(store);
  return NULL;
}

/* Hand over, or refuse, what waited for the environment. */
static void attend_pending(struct kv_local_store *store) {
  struct kv_local_env *env = atomic_load(&store->env);
  for (;;) {
    pthread_mutex_lock(&store->lock);
    struct kv_op *op = store->opening && !store->closing ? NULL : store->first;
    kv_error error = store->open_error;
    bool closing = store->closing;
    if (op) unlink_pending(store, op);
    pthread_mutex_unlock(&store->lock);
    if (!op) return;
    if (closing)
      kv_local_finish(op, KV_CLOSED, "the store was closed");
    else if (env)
      begin(env, op);
    else
      kv_local_finish(op, error.code, error.message);
  }
}

static void tell_opened(struct kv_local_store *store, const struct kv_local_env *env) {
  char version[32];
  int major, minor, patch;
  mdb_version(&major, &minor, &patch);
  snprintf(version, sizeof version, "LMDB %d.%d.%d", major, minor, patch);
  kv_local_host->connected(store->backend, true, env->temporary ? "private and temporary" : env->path, version);
}

/* ------------------------------------------------------------------ closing */

static void tell_closed(struct kv_local_store *store) {
  kv_local_host->timer_stop(&store->close_timer);
  pthread_mutex_lock(&store->lock);
  store->told = true;
  pthread_mutex_unlock(&store->lock);
  kv_local_host->closed(store->backend);
}

static void let_go(struct kv_local_store *store) {
  struct kv_local_env *env = atomic_load(&store->env);
  if (store->released) return;
  store->released = true;
  store->closed = !env || kv_local_env_release(env, store);
}

/* One look at how far closing is: the operations end, the environment is given back, and it is closed. */
static void go_on_closing(struct kv_local_store *store) {
  pthread_mutex_lock(&store->lock);
  bool wait = store->opening || store->busy || store->told;
  pthread_mutex_unlock(&store->lock);
  if (wait) return;
  let_go(store);
  if (store->closed) tell_closed(store);
}

void kv_local_store_closed(struct kv_local_store *store) {
  kv_local_env_free(atomic_load(&store->env));
  store->closed = true;
  go_on_closing(store);
}

/* Waited long enough. */
static void close_late(struct kv_timer *timer) {
  struct kv_local_store *store = timer->data;
  pthread_mutex_lock(&store->lock);
  bool opening = store->opening;
  if (opening) store->told = true; /* what is opened is given back there */
  pthread_mutex_unlock(&store->lock);
  if (!opening) let_go(store);
  if (!opening && !store->closed && !kv_local_env_abandon(atomic_load(&store->env), store)) return; /* any moment now */
  tell_closed(store);
}

static void attend(struct kv_task *task) {
  struct kv_local_store *store = task->data;
  pthread_mutex_lock(&store->lock);
  store->task_posted = false;
  bool told = store->told, closing = store->closing;
  if (told) {
    unlock(store);
    return;
  }
  struct kv_local_env *env = atomic_load(&store->env);
  pthread_mutex_unlock(&store->lock);
  if (env && !closing) tell_opened(store, env);
  attend_pending(store);
  if (closing) go_on_closing(store);
}

static void close_slot(void *state) {
  struct kv_local_store *store = state;
  pthread_mutex_lock(&store->lock);
  store->closing = true;
  pthread_mutex_unlock(&store->lock);
  kv_local_host->timer_set(&store->close_timer, kv_local_host->now() + LOCAL_CLOSE_GRACE);
  struct kv_local_env *env = atomic_load(&store->env);
  if (env) kv_local_follow_leave(env, store);
  attend_pending(store);
  go_on_closing(store);
}

/* A relative path is meant from where we are now, not from where the process is when the folder is opened. */
static char *absolute(const char *path) {
  char *here = *path == '/' ? NULL : getcwd(NULL, 0), *joined = NULL;
  if (!here) return strdup(path);
  size_t size = strlen(here) + strlen(path) + 2;
  joined = malloc(size);
  if (joined) snprintf(joined, size, "%s/%s", here, path);
  free(here);
  return joined;
}

static void *create(struct kv_backend *backend, const struct kv_config *config, kv_error *error) {
  struct kv_local_store *store = calloc(1, sizeof *store);
  char *path = store && config->path ? absolute(config->path) : NULL;
  if (!store || (config->path && !path)) {
    free(store);
    kv_local_fail(error, KV_FAILED, "out of memory");
    return NULL;
  }
  store->backend = backend;
  store->options = (struct kv_local_options){path, config->map_size, config->sync_none, config->portable};
  pthread_mutex_init(&store->lock, NULL);
  atomic_init(&store->env, NULL);
  store->task = (struct kv_task){.run = attend, .data = store};
  store->close_timer = (struct kv_timer){.fire = close_late, .data = store};
  return store;
}

static void destroy(void *state) {
  struct kv_local_store *store = state;
  pthread_mutex_lock(&store->lock);
  store->destroyed = true;
  unlock(store);
}

/* ------------------------------------------------------------------ watches */

static void watch_open(void *state, struct kv_feed *feed) {
  struct kv_local_store *store = state;
  struct kv_local_env *env = atomic_load(&store->env);
  if (env)
    kv_local_follow_open(env, feed);
  else /* cannot be: it was listed first */
    kv_local_host->feed_lost(feed, KV_UNAVAILABLE, "not opened yet");
}

static void watch_close(void *state, struct kv_feed *feed) {
  (void)state;
  kv_local_follow_close(feed);
}

/* ------------------------------------------------------------------ the table */

static void attach(const struct kv_host *host) {
  kv_local_host = host;
}

static const struct kv_scheme schemes[] = {{"local", false, 0}, {NULL, false, 0}};

const struct kv_driver kv_driver_local = {
  .abi = KV_DRIVER_ABI,
  .name = "local",
  .schemes = schemes,
  .capabilities = KV_CAN_MOVE | KV_CAN_TXN | KV_CAN_TTL | KV_CAN_LOCK | KV_CAN_SEMAPHORE | KV_CAN_LEASE | KV_CAN_WATCH |
                  KV_CAN_RESUME | KV_CAN_NESTED | KV_CAN_EVERY_VERSION | KV_CAN_PAGING | KV_CAN_ANY_THREAD,
  .limits = {.value_max = LOCAL_VALUE_MAX},
  .attach = attach,
  .create = create,
  .close = close_slot,
  .destroy = destroy,
  .start = start,
  .cancel = cancel,
  .read = read_slot,
  .watch_open = watch_open,
  .watch_close = watch_close,
};
