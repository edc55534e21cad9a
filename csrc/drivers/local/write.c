/*
 * write.c - the writer thread. Everything that is queued when it gets LMDB's write lock becomes one transaction: one
 * commit, one sync, many answers. While it waits for the lock (another process has it), nothing is begun yet and can
 * still be taken back.
 *
 * When a transaction does not fit into the map or on the disk, its operations are done again one by one, so that only
 * those fail that have no room. Some pages beyond the map's size are kept for what makes room: deletes need pages too.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "local.h"

#define PLENTY 65536        /* free pages at the end of the map that need no closer look */
#define NEARLY_FULL (UINT64_C(8) << 20) /* bytes left on a disk where a commit did not fit */
#define EXPIRE_STEP 1000    /* things that go in one commit */
#define SPIN_NANOSECONDS 30000
#define CHECK_READERS_EVERY 1000 /* commits */
#define LOCAL_IN_DOUBT (-1) /* beside LMDB's and the system's errors: it may have been committed */

int64_t kv_local_patience = LOCAL_SECOND / 2;

static int64_t monotonic(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * LOCAL_SECOND + now.tv_nsec;
}

/* ------------------------------------------------------------------ state of an op */

void kv_local_op_set(struct kv_op *op, enum kv_local_op_state state) {
  __atomic_store_n(&op->number, (uint64_t)state, __ATOMIC_RELAXED);
}

enum kv_local_op_state kv_local_op_get(const struct kv_op *op) {
  return (enum kv_local_op_state)__atomic_load_n(&op->number, __ATOMIC_RELAXED);
}

/* ------------------------------------------------------------------ one transaction */

/* Pages on LMDB's free list; those of the last two transactions are counted though they cannot be used yet. */
static int64_t free_pages(struct kv_local_env *env) {
  MDB_txn *txn;
  MDB_cursor *cursor;
  MDB_val key, value;
  int64_t pages = 0;
  if (mdb_txn_begin(env->mdb, NULL, MDB_RDONLY, &txn) != 0) return 0;
  if (mdb_cursor_open(txn, 0, &cursor) == 0) {
    while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
      size_t count = 0;
      if (value.mv_size >= sizeof count) memcpy(&count, value.mv_data, sizeof count);
      pages += (int64_t)count;
    }
    mdb_cursor_close(cursor);
  }
  mdb_txn_abort(txn);
  return pages;
}

static void set_budget(struct kv_local_batch *batch) {
  struct kv_local_env *env = batch->env;
  MDB_envinfo info;
  batch->budget = 0;
  if (mdb_env_info(env->mdb, &info) != 0) return;
  batch->budget = (int64_t)env->map_pages - (int64_t)info.me_last_pgno - 1 - (int64_t)env->reserve_pages;
  if (batch->budget < PLENTY) batch->budget += free_pages(env);
}

int kv_local_batch_begin(struct kv_local_batch *batch, struct kv_local_env *env) {
  struct kv_local_change newest;
  MDB_cursor *cursor;
  bool found = false;
  memset(batch, 0, sizeof *batch);
  batch->env = env;
  pthread_mutex_lock(&env->writing);
  int rc = mdb_txn_begin(env->mdb, NULL, 0, &batch->txn);
  if (rc == MDB_MAP_RESIZED) {
    rc = kv_local_env_remap(env);
    if (!rc) rc = mdb_txn_begin(env->mdb, NULL, 0, &batch->txn);
  }
  if (rc) {
    pthread_mutex_unlock(&env->writing);
    return rc;
  }
  set_budget(batch);
  batch->moment = (struct kv_local_moment){.env = env, .txn = batch->txn, .now = kv_local_now(env)};
  rc = mdb_cursor_open(batch->txn, env->dbi, &cursor);
  if (!rc) {
    rc = kv_local_history_ends(cursor, &newest, NULL, &found);
    mdb_cursor_close(cursor);
  }
  if (rc) {
    kv_local_batch_abort(batch);
    return rc;
  }
  if (found) {
    batch->revision = newest.revision;
    batch->total_bytes = newest.total_bytes;
    batch->total_count = newest.total_count;
  }
  return 0;
}

void kv_local_batch_abort(struct kv_local_batch *batch) {
  mdb_txn_abort(batch->txn);
  pthread_mutex_unlock(&batch->env->writing);
}

/* Read one byte: inotify tells whoever watches the file, and nothing gets dirty. */
static void tell_others(struct kv_local_env *env) {
  char byte;
  ssize_t got = pread(env->notify_fd, &byte, 1, 0);
  (void)got;
}

static int set_sync(struct kv_local_env *env) {
  bool nosync = !atomic_load(&env->durable);
  if (nosync == env->nosync) return 0;
  int rc = nosync ? 0 : mdb_env_sync(env->mdb, 1); /* what was committed without */
  if (!rc) rc = mdb_env_set_flags(env->mdb, MDB_NOSYNC, nosync);
  if (!rc) env->nosync = nosync;
  return rc;
}

/* LMDB calls a write that was cut short EIO, but that is how a disk becomes full. */
static int explain(const struct kv_local_env *env, int rc) {
  struct statvfs disk;
  struct rlimit limit;
  struct stat file;
  mdb_filehandle_t fd;
  if (rc != EIO) return rc;
  if (fstatvfs(env->folder_fd, &disk) == 0 && (uint64_t)disk.f_bavail * disk.f_frsize < NEARLY_FULL) return ENOSPC;
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return rc;
  if (mdb_env_get_fd(env->mdb, &fd) != 0 || fstat(fd, &file) != 0) return rc;
  return (uint64_t)file.st_size + NEARLY_FULL > limit.rlim_cur ? EFBIG : rc;
}

/* LMDB gives up after a failure in the very last write of a commit, which may or may not be on the disk. */
static bool gave_up(struct kv_local_env *env) {
  MDB_txn *txn;
  int rc = mdb_txn_begin(env->mdb, NULL, MDB_RDONLY, &txn);
  if (!rc) mdb_txn_abort(txn);
  return rc == MDB_PANIC;
}

int kv_local_batch_commit(struct kv_local_batch *batch) {
  struct kv_local_env *env = batch->env;
  if (!batch->changed) {
    kv_local_batch_abort(batch);
    return 0;
  }
  int rc = kv_local_history_trim(batch, false);
  if (!rc) rc = set_sync(env);
  if (rc) {
    kv_local_batch_abort(batch);
    return rc;
  }
  int64_t due = kv_local_next_expiry(batch->txn, env->dbi);
  rc = mdb_txn_commit(batch->txn);
  pthread_mutex_unlock(&env->writing);
  if (rc) return gave_up(env) ? LOCAL_IN_DOUBT : explain(env, rc);
  tell_others(env);
  kv_local_follow_committed(env, due);
  return 0;
}

/* ------------------------------------------------------------------ space */

static int64_t pages_of(const struct kv_local_env *env, size_t value) {
  return (int64_t)(value / env->page_size) + 1;
}

/* Pages that an op may need; 0: it gives back more than it takes, or too little to ask. */
static int64_t need(const struct kv_local_env *env, const struct kv_op *op) {
  const int64_t path = 6;
  int64_t pages = 0;
  switch (op->kind) {
    case KV_PUT: return 2 * pages_of(env, op->value.size) + path;
    case KV_QUEUE_JOIN: case KV_LEASE_GRANT: return path;
    case KV_TXN:
      for (size_t i = 0; i < op->part_count; i++)
        if (op->parts[i].type == KV_PART_PUT) pages += 2 * pages_of(env, op->parts[i].value.size) + path;
      return pages;
    default: return 0;
  }
}

static bool is_full(int rc) {
  return kv_local_code(rc) == KV_NO_SPACE;
}

static int apply(struct kv_local_batch *batch, struct kv_local_item *item) {
  int64_t pages = need(batch->env, item->op);
  if (pages && pages > batch->budget) return MDB_MAP_FULL;
  batch->budget -= pages;
  return kv_local_apply(batch, item);
}

/* mdb_reader_list() gives text: process, thread, and the transaction that it reads, or "-". */
static int note_reader(const char *line, void *argument) {
  size_t *oldest = argument, txn;
  if (sscanf(line, "%*d %*x %zu", &txn) == 1 && txn < *oldest) *oldest = txn;
  return 0;
}

/* Does a reader keep pages from being used again that were given back? The dead are removed. */
static bool held_back(struct kv_local_env *env) {
  MDB_envinfo info;
  size_t oldest = SIZE_MAX;
  int dead = 0;
  mdb_reader_check(env->mdb, &dead);
  if (mdb_env_info(env->mdb, &info) != 0 || mdb_reader_list(env->mdb, note_reader, &oldest) < 0) return false;
  return oldest < info.me_last_txnid;
}

/* A reader that the system let sleep in the middle of a read is worth a moment, before anything is refused. */
static bool wait_for_readers(struct kv_local_env *env) {
  const struct timespec moment = {.tv_nsec = 1000000};
  if (env->patience <= 0 || !held_back(env)) return false;
  int64_t begun = monotonic();
  nanosleep(&moment, NULL);
  env->patience -= monotonic() - begun;
  return true;
}

/* Give up half of the history for room. False: there is none left, or it did not work. */
static bool make_room(struct kv_local_env *env) {
  struct kv_local_batch batch;
  if (kv_local_batch_begin(&batch, env) != 0) return false;
  if (kv_local_history_trim(&batch, true) != 0 || !batch.changed) {
    kv_local_batch_abort(&batch);
    return false;
  }
  return kv_local_batch_commit(&batch) == 0;
}

static void reset_item(struct kv_local_item *item) {
  item->code = KV_OK;
  item->result = (struct kv_result){.failed_check = -1};
  item->text[0] = 0;
  memset(item->created, 0, sizeof item->created);
}

static int apply_alone(struct kv_local_env *env, struct kv_local_item *item, bool silent) {
  struct kv_local_batch batch;
  int rc = kv_local_batch_begin(&batch, env);
  if (rc) return rc;
  reset_item(item);
  batch.silent = silent;
  rc = apply(&batch, item);
  if (!rc && batch.silenced) rc = kv_local_history_clear(&batch);
  if (!rc) return kv_local_batch_commit(&batch);
  kv_local_batch_abort(&batch);
  return rc;
}

static void refuse_in_doubt(struct kv_local_item *item) {
  reset_item(item);
  kv_local_refuse(item, KV_UNKNOWN, "the commit failed at its end; all stores of this folder have to be opened again");
}

/* One op in a transaction of its own, with what can be done when it has no room. */
static void run_alone(struct kv_local_env *env, struct kv_local_item *item) {
  int rc = apply_alone(env, item, false);
  while (is_full(rc) && wait_for_readers(env)) rc = apply_alone(env, item, false);
  /* Pages that are given back can be used two transactions later. */
  for (int i = 0; is_full(rc) && i < 3 && make_room(env); i++) rc = apply_alone(env, item, false);
  if (is_full(rc) && item->op->kind == KV_DELETE_TREE) rc = apply_alone(env, item, true);
  if (!rc) return;
  reset_item(item);
  if (rc == LOCAL_IN_DOUBT)
    refuse_in_doubt(item);
  else if (rc == MDB_MAP_FULL)
    kv_local_refuse(item, KV_NO_SPACE, "the store is full (option map_size)");
  else
    kv_local_refuse(item, kv_local_code(rc), "%s", mdb_strerror(rc));
}

/* ------------------------------------------------------------------ the queue */

static void unlink_op(struct kv_local_env *env, struct kv_op *op) {
  if (op->previous)
    op->previous->next = op->next;
  else
    env->first = op->next;
  if (op->next)
    op->next->previous = op->previous;
  else
    env->last = op->previous;
  op->next = op->previous = NULL;
  atomic_fetch_sub_explicit(&env->queued, 1, memory_order_relaxed);
}

/* Take what is queued, behind `count` items. From here on it is begun. */
static size_t take(struct kv_local_env *env, size_t count, size_t *bytes) {
  pthread_mutex_lock(&env->lock);
  while (env->first && count < LOCAL_BATCH_MAX && *bytes < LOCAL_BATCH_BYTES) {
    struct kv_op *op = env->first;
    unlink_op(env, op);
    op->sent = true;
    kv_local_op_set(op, LOCAL_OP_BEGUN);
    *bytes += op->value.size;
    env->items[count].op = op;
    reset_item(&env->items[count++]);
  }
  pthread_mutex_unlock(&env->lock);
  return count;
}

/* Wait a moment for the queue to fill: cheaper than a sleep, or a commit of its own for one op. */
static bool spin(struct kv_local_env *env, int64_t nanoseconds) {
  int64_t until = monotonic() + nanoseconds;
  do {
    if (atomic_load_explicit(&env->queued, memory_order_relaxed)) return true;
    sched_yield();
  } while (monotonic() < until);
  return false;
}

static void answer_txn(struct kv_local_item *item) {
  struct kv_op *op = item->op;
  for (size_t i = 0; i < op->part_count; i++) {
    const struct kv_part *part = &op->parts[i];
    if (part->type != KV_PART_PUT) continue;
    if (!kv_local_host->pair(op, part->key, (kv_slice){"", 0}, item->result.revision, item->created[i], false)) return;
  }
}

static void count_bytes(const struct kv_op *op) {
  const struct kv_local_store *store = op->data;
  uint64_t bytes = op->value.size;
  for (size_t i = 0; i < op->part_count; i++) bytes += op->parts[i].value.size;
  if (bytes) kv_local_host->count_bytes(store->backend, bytes, 0);
}

static void answer(struct kv_local_item *item) {
  struct kv_op *op = item->op;
  struct kv_page *page = op->result.page;
  bool found = op->result.found;
  op->result = item->result;
  op->result.page = page; /* QUEUE_HEAD has put its pair there */
  if (found && op->kind == KV_QUEUE_HEAD) op->result.found = true;
  if (op->kind == KV_TXN && item->code == KV_OK) answer_txn(item);
  if (item->code == KV_OK) count_bytes(op);
  kv_local_finish(op, item->code, item->text);
}

static void answer_all(struct kv_local_env *env, size_t count) {
  kv_local_host->hold_replies();
  for (size_t i = 0; i < count; i++) answer(&env->items[i]);
  kv_local_host->release_replies();
}

/* No transaction can be had at all. */
static void refuse_all(struct kv_local_env *env, int rc) {
  size_t bytes = 0, count = take(env, 0, &bytes);
  for (size_t i = 0; i < count; i++) kv_local_refuse(&env->items[i], kv_local_code(rc), "%s", mdb_strerror(rc));
  answer_all(env, count);
}

/* Apply what is queued and what comes while we do. */
static int apply_queue(struct kv_local_batch *batch, size_t *count) {
  struct kv_local_env *env = batch->env;
  size_t done = 0, bytes = 0;
  int rc = 0;
  *count = take(env, 0, &bytes);
  while (!rc && done < *count) {
    while (!rc && done < *count) rc = apply(batch, &env->items[done++]);
    if (rc) break;
    /* Answers of the last batch make their waiters ask again: let them come along. */
    if (!atomic_load_explicit(&env->queued, memory_order_relaxed) && *count < env->last_batch / 2)
      spin(env, SPIN_NANOSECONDS);
    *count = take(env, *count, &bytes);
  }
  return rc;
}

static void run_queue(struct kv_local_env *env) {
  struct kv_local_batch batch;
  size_t count = 0;
  if (env->batches++ % CHECK_READERS_EVERY == 0) {
    int dead = 0;
    mdb_reader_check(env->mdb, &dead);
  }
  int rc = kv_local_batch_begin(&batch, env);
  if (rc) {
    refuse_all(env, rc);
    return;
  }
  rc = apply_queue(&batch, &count);
  if (rc)
    kv_local_batch_abort(&batch);
  else
    rc = kv_local_batch_commit(&batch);
  env->patience = kv_local_patience;
  for (size_t i = 0; rc && i < count; i++) {
    if (rc == LOCAL_IN_DOUBT)
      refuse_in_doubt(&env->items[i]);
    else
      run_alone(env, &env->items[i]);
  }
  env->last_batch = count;
  answer_all(env, count);
}

/* ------------------------------------------------------------------ work beside the queue */

static int expire_some(struct kv_local_env *env, bool *more) {
  struct kv_local_batch batch;
  int rc = kv_local_batch_begin(&batch, env);
  if (rc) return rc;
  rc = kv_local_expire(&batch, EXPIRE_STEP, more);
  if (!rc) return kv_local_batch_commit(&batch);
  kv_local_batch_abort(&batch);
  return rc;
}

static void run_due(struct kv_local_env *env) {
  struct kv_local_reader *reader;
  bool more = true;
  int rc = 0;
  if (kv_local_reader_take(env, &reader) != 0) return;
  int64_t due = kv_local_next_expiry(reader->txn, env->dbi);
  kv_local_reader_give(reader);
  if (due > kv_local_now(env)) { /* others were faster, or it was renewed */
    kv_local_follow_committed(env, due);
    return;
  }
  rc = expire_some(env, &more);
  for (int i = 0; is_full(rc) && i < 3 && make_room(env); i++) rc = expire_some(env, &more);
  if (rc) { /* try again then */
    kv_local_follow_committed(env, kv_local_now(env) + LOCAL_SECOND);
    return;
  }
  pthread_mutex_lock(&env->lock);
  env->due = more || env->due; /* what is queued comes in between */
  pthread_mutex_unlock(&env->lock);
}

static int try_to_purge(struct kv_local_env *env, uint64_t owner) {
  struct kv_local_batch batch;
  int rc = kv_local_batch_begin(&batch, env);
  if (rc) return rc;
  rc = kv_local_owner_purge(&batch, owner);
  if (!rc) return kv_local_batch_commit(&batch);
  kv_local_batch_abort(&batch);
  return rc;
}

static bool purge_owner(struct kv_local_env *env, uint64_t owner) {
  int rc = try_to_purge(env, owner);
  for (int i = 0; is_full(rc) && i < 3 && make_room(env); i++) rc = try_to_purge(env, owner);
  if (!rc) kv_local_owner_forget(env, owner);
  return rc == 0;
}

static void run_owners(struct kv_local_env *env, bool sweep, uint64_t *owners, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (!kv_local_owner_alive(env, owners[i])) purge_owner(env, owners[i]);
  if (!sweep) return;
  uint64_t dead[LOCAL_OWNER_JOBS];
  bool all = true;
  count = kv_local_owner_dead(env, dead, LOCAL_OWNER_JOBS);
  for (size_t i = 0; i < count; i++) all = purge_owner(env, dead[i]) && all;
  if (count < LOCAL_OWNER_JOBS || !all) return;
  pthread_mutex_lock(&env->lock);
  env->sweep = true; /* there may be more */
  pthread_mutex_unlock(&env->lock);
}

/* env->lock is held, but not while working. */
static void run_jobs(struct kv_local_env *env) {
  uint64_t owners[LOCAL_OWNER_JOBS];
  size_t count = env->owner_job_count;
  bool due = env->due, sweep = env->sweep;
  memcpy(owners, env->owner_jobs, count * sizeof *owners);
  env->owner_job_count = 0;
  env->due = env->sweep = false;
  if (!count && !due && !sweep) return;
  pthread_mutex_unlock(&env->lock);
  run_owners(env, sweep, owners, count);
  if (due) run_due(env);
  pthread_mutex_lock(&env->lock);
}

/* ------------------------------------------------------------------ the thread */

/* Nothing to do: spin a little after a commit, because a caller that waits for its answer asks again at once;
 * then sleep. */
static void idle(struct kv_local_env *env, bool worked) {
  if (worked) {
    pthread_mutex_unlock(&env->lock);
    spin(env, SPIN_NANOSECONDS);
    pthread_mutex_lock(&env->lock);
  }
  while (!env->first && !env->due && !env->sweep && !env->owner_job_count && !env->stop) {
    env->sleeping = true;
    pthread_cond_wait(&env->wake, &env->lock);
  }
  env->sleeping = false;
}

static void *writer_main(void *argument) {
  struct kv_local_env *env = argument;
  bool worked = false;
  pthread_mutex_lock(&env->lock);
  for (;;) {
    idle(env, worked);
    if (env->stop && !env->first) break;
    run_jobs(env);
    worked = env->first != NULL;
    if (!worked) continue;
    pthread_mutex_unlock(&env->lock);
    run_queue(env);
    pthread_mutex_lock(&env->lock);
  }
  pthread_mutex_unlock(&env->lock);
  kv_local_env_end(env);
  return NULL;
}

bool kv_local_thread(void *(*run)(void *), void *argument) {
  sigset_t all, before;
  pthread_attr_t attributes;
  pthread_t thread;
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int failed = pthread_create(&thread, &attributes, run, argument);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return failed == 0;
}

/* With env->lock held. */
static bool ensure_thread(struct kv_local_env *env) {
  if (env->started) return true;
  if (env->stop) return false;
  if (!env->items) env->items = calloc(LOCAL_BATCH_MAX, sizeof *env->items);
  env->sweep = true; /* what dead owners left */
  env->started = env->items && kv_local_thread(writer_main, env);
  return env->started;
}

/* Unlock, and wake the thread: in this order, so that it does not wake only to wait for the lock. Our caller's
 * store is open, so the environment stays. */
static void unlock_and_wake(struct kv_local_env *env) {
  bool sleeping = env->started && env->sleeping;
  if (sleeping) env->sleeping = false;
  pthread_mutex_unlock(&env->lock);
  if (sleeping) pthread_cond_signal(&env->wake);
}

void kv_local_write(struct kv_local_env *env, struct kv_op *op) {
  pthread_mutex_lock(&env->lock);
  if (!ensure_thread(env)) {
    pthread_mutex_unlock(&env->lock);
    kv_local_finish(op, KV_FAILED, "cannot start the writer thread");
    return;
  }
  op->next = NULL;
  op->previous = env->last;
  if (env->last)
    env->last->next = op;
  else
    env->first = op;
  env->last = op;
  kv_local_op_set(op, LOCAL_OP_QUEUED);
  atomic_fetch_add_explicit(&env->queued, 1, memory_order_relaxed);
  unlock_and_wake(env);
}

bool kv_local_write_cancel(struct kv_local_env *env, struct kv_op *op) {
  pthread_mutex_lock(&env->lock);
  bool queued = kv_local_op_get(op) == LOCAL_OP_QUEUED;
  if (queued) {
    unlink_op(env, op);
    kv_local_op_set(op, LOCAL_OP_DONE);
  }
  pthread_mutex_unlock(&env->lock);
  return queued;
}

void kv_local_write_due(struct kv_local_env *env) {
  pthread_mutex_lock(&env->lock);
  env->due = true;
  ensure_thread(env);
  unlock_and_wake(env);
}

void kv_local_write_owner(struct kv_local_env *env, uint64_t owner) {
  pthread_mutex_lock(&env->lock);
  if (owner && env->owner_job_count < LOCAL_OWNER_JOBS)
    env->owner_jobs[env->owner_job_count++] = owner;
  else
    env->sweep = true;
  ensure_thread(env);
  unlock_and_wake(env);
}

bool kv_local_write_stop(struct kv_local_env *env) {
  pthread_mutex_lock(&env->lock);
  env->stop = true;
  bool started = env->started;
  pthread_cond_broadcast(&env->wake); /* under the lock: the thread frees all of this */
  pthread_mutex_unlock(&env->lock);
  return started;
}
