/*
 * local.h - what the files of the embedded store's driver share.
 *
 *   record.c  how keys and values lie in the database: bytes to values and back, nothing else
 *   env.c     a folder that is open: one LMDB environment per folder and process, whoever opens it; forks
 *   owner.c   proof that a process lives, as others see it: a file lock
 *   read.c    reads in the caller's thread: GET, LIST and the reading lock steps, on pooled read transactions
 *   write.c   the writer thread: everything queued becomes one LMDB transaction, one commit and one sync
 *   apply.c   what a write does inside of that transaction; the history
 *   lease.c   leases, expiry, and what dies with them
 *   queue.c   lock queues inside of a write transaction
 *   follow.c  the reactor's side: watches fed from the history, lock waiters, news of other processes, timers
 *   local.c   the driver table, and opening and closing of one backend
 *
 * The folder
 *   data.mdb lock.mdb  LMDB's
 *   notify             one byte; reading it tells every process that watches it of a commit
 *   processes          one locked byte per process that has the folder open: finds a second copy of this code
 *   owners/ID          locked while a process that owns locks or session leases lives
 *
 * Everything lies in LMDB's main database (no lookup of a named one on the way to a key), told apart by the
 * first byte of the key. The history comes last, so its newest record is the last of the database, and holds the
 * revision and what else must change with every write: a put touches one leaf for the key and one for the history.
 *
 * Locks, outermost first: store->lock, env->writing, registry, env->lock. Only env->writing is held across I/O (and the
 * registry while a file is opened, so that no fork comes in between).
 */
#ifndef KV_LOCAL_H
#define KV_LOCAL_H

#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "../driver.h"

#define LOCAL_SECOND INT64_C(1000000000)
#define LOCAL_NEVER INT64_MAX
#define LOCAL_VALUE_MAX ((size_t)64 << 20)
#define LOCAL_PAGE_BYTES ((size_t)1 << 20)   /* of a listing without a limit */
#define LOCAL_READERS 64                     /* pooled read transactions */
#define LOCAL_BATCH_MAX 1024                 /* operations in one commit */
#define LOCAL_BATCH_BYTES ((size_t)16 << 20) /* values in one commit */
#define LOCAL_HISTORY_COUNT UINT64_C(100000) /* records kept for watches */
#define LOCAL_HISTORY_BYTES (UINT64_C(64) << 20)
#define LOCAL_CLOSE_GRACE LOCAL_SECOND

extern const struct kv_host *kv_local_host;

/* ------------------------------------------------------------------ record.c */

enum { LOCAL_META = 1, LOCAL_LEASE, LOCAL_EXPIRY, LOCAL_QUEUE, LOCAL_DATA, LOCAL_HISTORY };

struct kv_local_key {
  size_t size;
  unsigned char bytes[511]; /* LMDB's limit */
};

#define LOCAL_REF_MAX 504 /* what an expiry or attachment may name */

/* What an expiry or a lease's attachment is about. */
enum { LOCAL_OF_KEY = 'k', LOCAL_OF_LEASE = 'l', LOCAL_OF_PLACE = 'q' };

MDB_val kv_local_val(struct kv_local_key *key);
void kv_local_key_meta(struct kv_local_key *key, char what);
void kv_local_key_data(struct kv_local_key *key, kv_slice name);
void kv_local_key_history(struct kv_local_key *key, uint64_t revision, uint32_t sequence);
void kv_local_key_lease(struct kv_local_key *key, uint64_t id);
/* The prefix of all attachments of a lease, or one attachment. */
void kv_local_key_attached(struct kv_local_key *key, uint64_t lease, char type, kv_slice ref);
/* The start of all that expire at or behind `at`, or one of them. */
void kv_local_key_expiry(struct kv_local_key *key, int64_t at, char type, kv_slice ref);
/* A place in a lock's queue; what follows the first byte is how expiry and attachments name it. */
void kv_local_key_place(struct kv_local_key *key, kv_slice name, uint64_t order);
/* Does `key` begin with the `size` first bytes of `prefix`? */
bool kv_local_begins(const MDB_val *key, const struct kv_local_key *prefix, size_t size);
uint64_t kv_local_number(const void *big_endian);

/* The library's own keys stand among the others, and are nobody's: what goes over the whole store leaves them out. */
bool kv_local_of_library(kv_slice key);
#define LOCAL_BEHIND_OWN ".kv0" /* behind all of ".kv/" */

struct kv_local_record { /* of a user's key */
  uint64_t revision, created;
  int64_t expiry;     /* store time; 0: none */
  uint64_t lease;     /* 0: none */
  kv_slice value;     /* in the map */
};
#define LOCAL_RECORD_HEAD_MAX 32
bool kv_local_record_read(const MDB_val *from, struct kv_local_record *record);
size_t kv_local_record_head(const struct kv_local_record *record, unsigned char *out);

struct kv_local_lease {
  int64_t expiry, ttl; /* store time, nanoseconds */
  uint64_t owner;      /* 0: whoever renews it; else it ends with that process */
};
bool kv_local_lease_read(const MDB_val *from, struct kv_local_lease *lease);

struct kv_local_place { /* an entry in a lock's queue */
  int64_t expiry, ttl;
  uint64_t owner, lease;
  char id[KV_PLACE_ID_MAX];
  kv_slice value; /* in the map */
};
#define LOCAL_PLACE_HEAD (4 * 8 + KV_PLACE_ID_MAX)
bool kv_local_place_read(const MDB_val *from, struct kv_local_place *place);
void kv_local_place_head(const struct kv_local_place *place, unsigned char *out);

enum kv_local_change_type { LOCAL_NOTHING, LOCAL_PUT, LOCAL_DELETE, LOCAL_GONE };

struct kv_local_change { /* a record of the history */
  uint64_t revision;
  uint32_t sequence;
  enum kv_local_change_type type;
  uint64_t created;                  /* PUT: of the key's life. GONE: order of the place that is gone */
  uint64_t total_bytes, total_count; /* of all records ever, this one included */
  kv_slice key, value;               /* in the map */
};
#define LOCAL_CHANGE_HEAD 32
bool kv_local_change_read(const MDB_val *key, const MDB_val *from, struct kv_local_change *change);
void kv_local_change_head(const struct kv_local_change *change, unsigned char *out);
/* What a record counts for in the bound of the history. */
uint64_t kv_local_change_bytes(size_t key, size_t value);

/* ------------------------------------------------------------------ env.c */

struct kv_local_env;
struct kv_local_store;

struct kv_local_reader {
  _Alignas(64) atomic_bool busy;
  MDB_txn *txn; /* reset, or NULL */
};

/* A watch, as the follower knows it. */
struct kv_local_feed {
  struct kv_feed *feed;
  struct kv_local_follower *follower;
  struct kv_local_feed *next, **link;                   /* in its bucket; link NULL: not in one yet */
  struct kv_local_feed *touched_next, **touched_link;   /* to be told that a batch is complete */
  uint64_t hash;
};

struct kv_local_suspect { /* an owner whose file was closed, but whose lock was still there */
  uint64_t owner;
  unsigned tries;
};

#define LOCAL_SUSPECTS 16
#define LOCAL_WAIT_BUCKETS 64

struct kv_local_follower { /* reactor only, but for what is marked */
  struct kv_local_env *env;
  struct kv_local_feed **buckets;
  size_t bucket_count, feed_count;
  struct kv_local_feed *touched;
  struct kv_local_feed *next_feed, *current; /* where a dispatch goes on, who is being fed: kept right by removals */
  struct kv_op *waits[LOCAL_WAIT_BUCKETS];   /* by the order of the place ahead */
  size_t wait_count;
  uint64_t revision;                         /* the next change to look at; 0: not known */
  uint32_t sequence;
  uint64_t told_revision;                    /* every watch was told of this one */
  int inotify;                               /* -1: none yet */
  int notify_watch, owners_watch;
  struct kv_io io;
  bool listening, polling, behind;           /* behind: a slice was done, more is there */
  unsigned polls;
  struct kv_timer due_timer, suspect_timer, poll_timer;
  struct kv_local_suspect suspects[LOCAL_SUSPECTS];
  size_t suspect_count;
  struct kv_task task;                       /* [any thread] guarded by env->lock, with posted and active */
  bool posted, active;                       /* active: a store uses it, so there is a reactor */
  atomic_int_fast64_t armed;                 /* [any thread] when the due timer fires, store time */
};

#define LOCAL_OWNER_JOBS 32

struct kv_local_item;

struct kv_local_env {
  /* guarded by the registry */
  struct kv_local_env *next;
  dev_t device;
  ino_t inode;
  unsigned references, users; /* users: references whose stores are open on the reactor */
  enum { LOCAL_OPENING, LOCAL_OPEN, LOCAL_CLOSING } state;
  struct kv_local_store *closer; /* who waits for the end, or NULL */
  int owner_fd, process_fd;      /* -1: none */

  /* fixed once open */
  char *path;
  bool temporary;
  int folder_fd, notify_fd;
  MDB_env *mdb;
  MDB_dbi dbi;
  int64_t shift; /* store time = CLOCK_BOOTTIME + shift: goes on over boots */
  uint64_t map_pages, reserve_pages, page_size;
  uint64_t history_bytes, history_count;
  atomic_uint_fast64_t owner; /* this process's id, 0 until it owned something */
  /* A store wants its writes synced: then all are, as a commit is only as safe as those before it. */
  atomic_bool durable;

  struct kv_local_reader readers[LOCAL_READERS];

  pthread_mutex_t writing; /* held from begin to commit, and to move the map */

  pthread_mutex_t lock; /* guards what follows */
  pthread_cond_t wake;
  struct kv_op *first, *last; /* queued */
  atomic_size_t queued;
  bool started, sleeping, stop;
  bool due, sweep;                      /* work beside the queue */
  uint64_t owner_jobs[LOCAL_OWNER_JOBS]; /* perhaps dead: look after what was theirs */
  size_t owner_job_count;
  atomic_bool polled;                    /* the follower is to be told of our own commits: there is no inotify */

  /* writer thread only */
  struct kv_local_item *items;
  bool nosync; /* LMDB's flag */
  unsigned batches;
  size_t last_batch;
  int64_t patience;

  struct kv_local_follower follower;
};

/* Of a store's configuration: a copy, because opening may take longer than the core waits for a store that is
 * closed. */
struct kv_local_options {
  char *path; /* owned; NULL: private and temporary */
  uint64_t map_size;
  bool sync_none, portable;
};

/* Open the folder, or share it when this process has it open. May block on files. NULL with *error. */
struct kv_local_env *kv_local_env_open(const struct kv_local_options *options, kv_error *error);
/* A store takes it into use; kv_local_env_release() follows on the reactor. */
void kv_local_env_use(struct kv_local_env *env, const struct kv_local_options *options);
/* Give it back unused, because nobody waits for it any longer [any thread but the reactor]. */
void kv_local_env_drop(struct kv_local_env *env);
/* Give it back (reactor). True: that was not the last reference, all is done. False: `store` is told by
 * kv_local_store_closed() on the reactor when the environment is closed. */
bool kv_local_env_release(struct kv_local_env *env, struct kv_local_store *store);
/* `store` waits no longer. False: it is being told already. */
bool kv_local_env_abandon(struct kv_local_env *env, struct kv_local_store *store);
/* Close for good and tell whoever waits: the last act of the writer thread, or of a helper when there was none. */
void kv_local_env_end(struct kv_local_env *env);
void kv_local_env_free(struct kv_local_env *env);
/* Keep a descriptor that a forked child must close; -1 when it could not be opened. The registry is held meanwhile. */
int kv_local_env_keep(int *slot, int directory, const char *name, int flags);
void kv_local_env_unkeep(int *slot);
/* Another process uses a larger map: take over its size. */
int kv_local_env_remap(struct kv_local_env *env);

/* Store time. */
int64_t kv_local_now(const struct kv_local_env *env);
/* When something with this time to live ends. */
int64_t kv_local_deadline(int64_t now, double seconds);

/* What an LMDB or system error means, and its text for people. */
kv_code kv_local_code(int rc);
kv_code kv_local_fail(kv_error *error, kv_code code, const char *format, ...) KV_PRINTF(3, 4);

/* ------------------------------------------------------------------ owner.c */

/* Make this process provable; its id, or 0 with errno. Writer thread only. */
uint64_t kv_local_owner_ensure(struct kv_local_env *env);
bool kv_local_owner_alive(struct kv_local_env *env, uint64_t owner);
/* Remove the file of a dead owner. */
void kv_local_owner_forget(struct kv_local_env *env, uint64_t owner);
/* Up to `max` owners that are dead but whose file is there. */
size_t kv_local_owner_dead(struct kv_local_env *env, uint64_t *owners, size_t max);
void kv_local_owner_drop(struct kv_local_env *env);
/* The id in a file name; 0: it is none. */
uint64_t kv_local_owner_parse(const char *name);

/* ------------------------------------------------------------------ read.c */

/* A read transaction of the present; an LMDB error otherwise. Give it back before returning to the caller. */
int kv_local_reader_take(struct kv_local_env *env, struct kv_local_reader **reader);
void kv_local_reader_give(struct kv_local_reader *reader);

/* Is a record alive? Reads the clock and the lease only when there is something to ask; `moment` keeps both for
 * the next. */
struct kv_local_moment {
  struct kv_local_env *env;
  MDB_txn *txn;
  int64_t now;          /* 0: not asked yet */
  uint64_t lease;       /* the last one asked for */
  bool lease_alive;
};
bool kv_local_alive(struct kv_local_moment *moment, const struct kv_local_record *record);
bool kv_local_place_alive(struct kv_local_moment *moment, const struct kv_local_place *place);

/* Newest and oldest of the history. found = false: it is empty, and both are zero. */
int kv_local_history_ends(MDB_cursor *cursor, struct kv_local_change *newest, struct kv_local_change *oldest,
                          bool *found);

/* Is everything from this change on still there? Behind the newest: yes, if it is the very next one. */
bool kv_local_history_reaches(const struct kv_local_change *newest, const struct kv_local_change *oldest,
                              uint64_t revision, uint32_t sequence);

kv_code kv_local_read(struct kv_local_env *env, struct kv_op *op, bool portable, kv_error *error);
/* QUEUE_AHEAD, QUEUE_CLAIM, QUEUE_HEAD, LEASE_REVOKE. False: it takes a write transaction to answer. */
bool kv_local_read_step(struct kv_local_env *env, struct kv_op *op, kv_code *code, kv_error *error);
uint64_t kv_local_order(const char *ticket);
#define LOCAL_ORDER_TEXT 17
void kv_local_order_text(char *out, uint64_t order);

/* ------------------------------------------------------------------ write.c */

extern int64_t kv_local_patience; /* with readers that hold pages, for one batch; longer in tests with a slow one */

/* Where an op is; kept in op->number. */
enum kv_local_op_state {
  LOCAL_OP_NEW,
  LOCAL_OP_PENDING, /* for the environment to be opened */
  LOCAL_OP_QUEUED,  /* for the writer */
  LOCAL_OP_BEGUN,
  LOCAL_OP_WAITING, /* for a place in a lock's queue to go */
  LOCAL_OP_DONE
};
void kv_local_op_set(struct kv_op *op, enum kv_local_op_state state);
enum kv_local_op_state kv_local_op_get(const struct kv_op *op);

/* Queue a write [any thread]. */
void kv_local_write(struct kv_local_env *env, struct kv_op *op);
/* Take it back if it was not begun. */
bool kv_local_write_cancel(struct kv_local_env *env, struct kv_op *op);
/* Work for the writer thread beside the queue: due keys, dead owners (0: none in particular, look for them). */
void kv_local_write_due(struct kv_local_env *env);
void kv_local_write_owner(struct kv_local_env *env, uint64_t owner);
/* End the writer thread; false: there is none. env->lock must not be held. */
bool kv_local_write_stop(struct kv_local_env *env);
/* A thread of ours: detached, with all signals blocked. */
bool kv_local_thread(void *(*run)(void *), void *argument);

/* ------------------------------------------------------------------ apply.c, lease.c, queue.c: in the writer thread */

struct kv_local_item {
  struct kv_op *op;
  kv_code code;
  struct kv_result result; /* moved into the op when the commit is done */
  uint64_t created[KV_TXN_MAX];
  char text[120];
};

struct kv_local_batch {
  struct kv_local_env *env;
  MDB_txn *txn;
  struct kv_local_moment moment;
  uint64_t revision;       /* the last one given out */
  uint32_t sequence;
  uint64_t total_bytes, total_count;
  bool changed;
  bool silent, silenced;   /* the history has no room for this one: clear it instead */
  int64_t budget;          /* pages that may still be used */
};

int kv_local_batch_begin(struct kv_local_batch *batch, struct kv_local_env *env);
void kv_local_batch_abort(struct kv_local_batch *batch);
int kv_local_batch_commit(struct kv_local_batch *batch);

/* Apply one op: the answer is in item; an LMDB error means that the transaction is spoilt. */
int kv_local_apply(struct kv_local_batch *batch, struct kv_local_item *item);
void kv_local_next_revision(struct kv_local_batch *batch);
int kv_local_history_add(struct kv_local_batch *batch, enum kv_local_change_type type, kv_slice key, kv_slice value,
                         uint64_t created);
/* Bring the history back into its bounds; `hard`: halve it. */
int kv_local_history_trim(struct kv_local_batch *batch, bool hard);
int kv_local_history_clear(struct kv_local_batch *batch);
/* Look up a user's key; one that has expired is removed first. */
int kv_local_fetch(struct kv_local_batch *batch, kv_slice key, struct kv_local_record *record, bool *found);
/* Remove a user's key with all that refers to it, under the present revision. */
int kv_local_remove(struct kv_local_batch *batch, kv_slice key, const struct kv_local_record *record);
int kv_local_refuse(struct kv_local_item *item, kv_code code, const char *format, ...) KV_PRINTF(3, 4);

int kv_local_put_raw(struct kv_local_batch *batch, struct kv_local_key *key, const void *head, size_t head_size,
                     kv_slice value, unsigned flags);
/* Remove a key that may be missing. */
int kv_local_delete_raw(struct kv_local_batch *batch, struct kv_local_key *key);

int kv_local_lease_step(struct kv_local_batch *batch, struct kv_local_item *item);
/* Find a lease that is alive. */
int kv_local_lease_find(struct kv_local_batch *batch, uint64_t id, struct kv_local_lease *lease, bool *found);
/* Remove what is due, `limit` things at most; *more: something is left. */
int kv_local_expire(struct kv_local_batch *batch, unsigned limit, bool *more);
/* Remove what was a dead owner's. */
int kv_local_owner_purge(struct kv_local_batch *batch, uint64_t owner);
/* When the next thing expires; LOCAL_NEVER: nothing will. */
int64_t kv_local_next_expiry(MDB_txn *txn, MDB_dbi dbi);

int kv_local_queue_step(struct kv_local_batch *batch, struct kv_local_item *item);
/* Remove a place by what follows the first byte of its key. */
int kv_local_place_remove(struct kv_local_batch *batch, kv_slice ref);
/* Remove the keys of a lease that serves a place: they go with it. */
int kv_local_lease_remove_keys(struct kv_local_batch *batch, uint64_t id);
/* The living place that a lease serves. */
int kv_local_place_find(struct kv_local_batch *batch, uint64_t lease, bool *found);
/* Does the entry of `place` stand? */
int kv_local_guard(struct kv_local_batch *batch, const struct kv_place *place, bool *stands);

/* ------------------------------------------------------------------ follow.c */

void kv_local_follow_init(struct kv_local_env *env);
/* Feed a watch from the history [reactor]. */
void kv_local_follow_open(struct kv_local_env *env, struct kv_feed *feed);
void kv_local_follow_close(struct kv_feed *feed);
/* Wait for a place to go [reactor]. */
void kv_local_follow_wait(struct kv_local_env *env, struct kv_op *op);
void kv_local_follow_cancel(struct kv_local_env *env, struct kv_op *op);
/* A store closes: finish what it waits for [reactor]. */
void kv_local_follow_leave(struct kv_local_env *env, struct kv_local_store *store);
/* Something was committed; `due`: when the next thing expires [writer thread]. */
void kv_local_follow_committed(struct kv_local_env *env, int64_t due);
/* The first store comes [any thread], the last one leaves [reactor]: between them there may be posts, timers and
 * descriptors. */
void kv_local_follow_start(struct kv_local_env *env);
void kv_local_follow_stop(struct kv_local_env *env);
/* Wait until what was posted has run [any thread but the reactor]. */
void kv_local_follow_settle(struct kv_local_env *env);
/* Close its descriptor, which may take a moment [any thread but the reactor]. */
void kv_local_follow_shut(struct kv_local_env *env);
void kv_local_follow_free(struct kv_local_env *env);

/* ------------------------------------------------------------------ local.c */

struct kv_local_store {
  struct kv_backend *backend;
  struct kv_local_options options;
  _Atomic(struct kv_local_env *) env; /* NULL until it was opened */
  pthread_mutex_t lock;               /* guards the rest up to "reactor only" */
  bool opening, closing, told, destroyed;
  struct kv_op *first, *last;         /* wait for the environment */
  size_t busy;                        /* ops in our hands. They, opening and task_posted keep this memory valid */
  bool task_posted;
  kv_error open_error;                /* why the last try failed */
  struct kv_task task;                /* attend(), on the reactor */
  struct kv_task closed_task;
  /* reactor only */
  bool released, closed;              /* the environment was given back; it is gone, or others have it */
  struct kv_timer close_timer;
};

/* Finish an op that was in the environment's hands [any thread]. */
void kv_local_finish(struct kv_op *op, kv_code code, const char *text);
/* The environment of a store that closes is gone [reactor]. */
void kv_local_store_closed(struct kv_local_store *store);

#endif
