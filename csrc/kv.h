/*
 * kv.h - one interface over etcd, Consul, ZooKeeper and an embedded local store.
 *
 * This is the whole public C API; the Lua module is one user of it, the C unit tests are another.
 *
 * How it works
 *   A store is a handle on a backend. Every request on it is asynchronous: kv_submit() takes it, and its
 *   reply appears in the queue that was named. One reactor thread per process does all I/O; it starts with
 *   the first request and ends with the last store. A queue belongs to one thread at a time (in Lua: one
 *   per Lua state); its descriptor is readable while replies wait in it.
 *
 *       kv_queue *queue = kv_queue_new(&error);
 *       kv_store *store = kv_open("local:", NULL, &error);
 *       kv_request get = {.kind = KV_GET, .key = KV_TEXT("greeting"), .timeout = 2};
 *       kv_reply *reply = NULL;
 *       if (kv_submit(store, queue, &get, 1, NULL, &reply, &error) != KV_OK) ...misuse or a closed store...
 *       while (!reply) { kv_queue_wait(queue, -1); reply = kv_queue_next(queue); }
 *       ...kv_reply_code(reply), kv_reply_pair(reply, &pair)...
 *       kv_reply_free(reply);
 *
 * Caveats
 *   - After fork() the child finds every handle of its parent closed: calls answer KV_CLOSED, and closing or
 *     freeing them touches nothing that the parent still uses. Open new ones.
 *   - Handles of one store may be used from several threads as long as each uses its own queue; closing a
 *     handle while another thread is inside a call on the same handle is a bug of the caller.
 *   - Link the object that holds the core with -Wl,-z,nodelete: the reactor thread may outlive a dlclose().
 *   - Functions that return kv_code fill *error (when it is not NULL) with a message for people.
 *
 * Times are seconds in doubles; a negative timeout means "the store's default" for requests and "for ever"
 * for waits. Revisions are integers below 2^53. Strings are counted, not terminated, and may hold any byte
 * unless said otherwise.
 */
#ifndef KV_H
#define KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define KV_PRINTF(text, first) __attribute__((__format__(__printf__, text, first)))
#define KV_API __attribute__((visibility("default")))
#else
#define KV_PRINTF(text, first)
#define KV_API
#endif

#define KV_VERSION "0.1.0"

/* ------------------------------------------------------------------ codes */

/*
 * Every code there is: enumerator, the string that Lua and the command line show, what it means.
 * The specs and the documentation are checked against this table.
 */
#define KV_CODES(X)                                                                                       \
  X(KV_OK, "ok", "done")                                                                                  \
  X(KV_INVALID, "invalid", "the URL, key or value can never be accepted")                                 \
  X(KV_EXISTS, "exists", "create-only write, and the key is there")                                       \
  X(KV_MODIFIED, "modified", "compare failed: the key changed, or is gone")                               \
  X(KV_IS_DIR, "is_dir", "a directory where a key is needed")                                             \
  X(KV_NOT_DIR, "not_dir", "a key where a directory is needed")                                           \
  X(KV_TOO_LARGE, "too_large", "value or request over the backend's limit")                               \
  X(KV_DENIED, "denied", "authentication or permission")                                                  \
  X(KV_NO_SPACE, "no_space", "the server's quota or the disk is full")                                    \
  X(KV_FAILED, "failed", "any other definite refusal; nothing was applied")                               \
  X(KV_UNAVAILABLE, "unavailable", "not reached, or no leader: certainly not applied")                    \
  X(KV_TIMEOUT, "timeout", "the deadline passed")                                                         \
  X(KV_UNKNOWN, "unknown", "a write was sent and no answer came: it may or may not have been applied")    \
  X(KV_UNSUPPORTED, "unsupported", "this backend or server version cannot do it")                         \
  X(KV_NOT_HELD, "not_held", "the lock, lease or leadership is not ours")                                 \
  X(KV_LOST, "lost", "the lock, lease or leadership is no longer ours")                                   \
  X(KV_HELD, "held", "acquire on a handle that already holds")                                            \
  X(KV_COMPACTED, "compacted", "'after' lies before the server's history")                                \
  X(KV_CANCELLED, "cancelled", "the task that waited was cancelled")                                      \
  X(KV_CLOSED, "closed", "the handle was closed")                                                         \
  X(KV_PHASE, "phase", "OpenResty: this phase cannot yield")

typedef enum kv_code {
#define KV_CODE_ENUM(name, text, meaning) name,
  KV_CODES(KV_CODE_ENUM)
#undef KV_CODE_ENUM
      KV_CODE_COUNT
} kv_code;

/* The string of a code, e.g. "modified". Never NULL. */
KV_API const char *kv_code_text(kv_code code);

/* What a code means, in a few words. Never NULL. */
KV_API const char *kv_code_meaning(kv_code code);

#define KV_MESSAGE_MAX 512

/* An error for people and programs. The caller owns it; messages are cut at KV_MESSAGE_MAX - 1 bytes. */
typedef struct kv_error {
  kv_code code;
  char message[KV_MESSAGE_MAX];
} kv_error;

/* ------------------------------------------------------------------ plain values */

/* A counted string. Who owns the bytes, and until when, is said where a slice appears. */
typedef struct kv_slice {
  const char *data;
  size_t size;
} kv_slice;

#define KV_TEXT(literal) ((kv_slice){(literal), sizeof(literal) - 1})

/* A key with what is known of it. The slices belong to the reply or page that the pair came from. */
typedef struct kv_pair {
  kv_slice key;       /* canonical, relative to the store's prefix */
  kv_slice value;     /* empty with KV_KEYS_ONLY */
  uint64_t revision;  /* of the last change of this key */
  uint64_t created;   /* revision at which this life of the key began */
  bool dir;           /* only a directory (KV_LIST with KV_SHALLOW) */
} kv_pair;

/* ------------------------------------------------------------------ drivers */

struct kv_driver; /* drivers/driver.h */

/*
 * Make a driver known. Returns KV_INVALID when it was built for another version of the driver interface, or when one of
 * its URL schemes is taken by another driver; the same table twice is fine. The table must stay valid for
 * the life of the process.
 */
KV_API kv_code kv_register(const struct kv_driver *driver, kv_error *error);

/* Is there a driver for URLs that start with this scheme (e.g. "etcds")? */
KV_API bool kv_scheme_known(kv_slice scheme);

/* The name of the index-th registered driver, or NULL past the last one. */
KV_API const char *kv_driver_name(size_t index);

/* ------------------------------------------------------------------ stores */

typedef struct kv_store kv_store;
typedef struct kv_options kv_options;

/* Options for kv_open(). NULL when out of memory. Freed by kv_options_free(). */
KV_API kv_options *kv_options_new(void);
KV_API void kv_options_free(kv_options *options);

/*
 * Set an option by its name, its value as text ("true"/"false" for switches). Names are those of the URL's
 * query part: prefix timeout connect_timeout username password token datacenter session_ttl acl
 * leading_slash consistency portable sync map_size, and tls.ca tls.cert tls.key tls.verify tls.server_name.
 * KV_INVALID names the option and what is wrong with the value.
 */
KV_API kv_code kv_options_set(kv_options *options, const char *name, kv_slice value, kv_error *error);

/*
 * Open a store. No I/O is done, no thread started: the first request does that. `options` may be NULL and
 * wins over the URL's query part. Returns NULL with KV_INVALID (bad URL or option) or KV_UNSUPPORTED (no driver
 * for this scheme).
 */
KV_API kv_store *kv_open(const char *url, const kv_options *options, kv_error *error);

/* A view of the same store below `prefix`. It shares the connection, and is closed on its own; the
 * connection ends with the last view. */
KV_API kv_store *kv_sub(kv_store *store, kv_slice prefix, kv_error *error);

/*
 * Stop using a store. Everything in flight is answered: KV_CLOSED, or KV_UNKNOWN for writes that were already
 * sent. Locks are released and leases given back by the reactor on a best-effort basis; kv_close() does not
 * wait for that. The handle stays valid (calls answer KV_CLOSED) until kv_store_free(). Idempotent.
 */
KV_API void kv_close(kv_store *store);

/* Wait until a closed store's backend has given everything back, `seconds` at most. True if it has. */
KV_API bool kv_close_wait(kv_store *store, double seconds);

/* Close if open, and free the handle. Never waits. Watches, locks, leases and transactions that it made stay valid
 * until they are freed, and answer KV_CLOSED. */
KV_API void kv_store_free(kv_store *store);

KV_API bool kv_store_closed(const kv_store *store);

/* Scheme, hosts and prefix for messages: never a password or token. Valid while the handle is. */
KV_API const char *kv_store_label(const kv_store *store);

/* The store's default timeout in seconds. */
KV_API double kv_store_timeout(const kv_store *store);

/* Is the capability there? Names: txn ttl lock lease watch resume every_version paging election
 * semaphore nested. */
KV_API bool kv_store_supports(const kv_store *store, const char *capability);

/* The index-th capability name known at all, or NULL past the last. */
KV_API const char *kv_capability_name(size_t index);

typedef struct kv_info {
  const char *backend;     /* driver name, static */
  bool connected;
  char server_version[64]; /* "" until a server told it */
  char endpoint[300];      /* host:port in use, or the last one tried; a path for local */
} kv_info;

KV_API void kv_store_info(const kv_store *store, kv_info *info);

/* Counters since the backend was opened; views share them. */
#define KV_COUNTERS(X)                                                     \
  X(operations, "requests submitted")                                      \
  X(in_flight, "requests without an answer yet")                           \
  X(retries, "requests started again after a definite failure")            \
  X(connects, "connections established")                                   \
  X(reconnects, "connections established again")                           \
  X(watches, "open watches")                                               \
  X(events, "watch events delivered to queues")                            \
  X(resyncs, "watches that listed again and sent the difference")          \
  X(skipped, "keys of other programs that are not canonical, left out")    \
  X(bytes_sent, "bytes written to the network or disk")                    \
  X(bytes_received, "bytes read from the network")

typedef struct kv_stats {
#define KV_COUNTER_FIELD(name, meaning) uint64_t name;
  KV_COUNTERS(KV_COUNTER_FIELD)
#undef KV_COUNTER_FIELD
  uint64_t failures[KV_CODE_COUNT]; /* replies by code; [KV_OK] counts successes */
} kv_stats;

KV_API void kv_store_stats(const kv_store *store, kv_stats *stats);

/* ------------------------------------------------------------------ keys */

#define KV_KEY_MAX 480 /* bytes, the store's prefix and a separating slash included */

/*
 * Bring a key to its canonical form: no leading, trailing or doubled slash. `out` must hold KV_KEY_MAX bytes;
 * *size receives the length. KV_INVALID (with the reason) for anything the rules forbid, and for the root
 * ("") unless `root_allowed`.
 */
KV_API kv_code kv_key_canonical(kv_slice key, bool root_allowed, char *out, size_t *size, kv_error *error);

/* ------------------------------------------------------------------ queues and replies */

typedef struct kv_queue kv_queue;
typedef struct kv_reply kv_reply;

/* NULL when out of memory or descriptors. */
KV_API kv_queue *kv_queue_new(kv_error *error);

/* Readable while something waits in the queue. Owned by the queue: poll it, never read or close it. */
KV_API int kv_queue_fd(const kv_queue *queue);

/* Make the descriptor readable although no reply is there, until kv_queue_next() finds nothing. */
KV_API void kv_queue_poke(kv_queue *queue);

/* Also send a byte through a connected socket whenever the descriptor becomes readable, for hosts that cannot poll it.
 * The queue owns the socket from then on, and closes the one it had; -1 for none. */
KV_API void kv_queue_notify(kv_queue *queue, int stream);

/* The next reply, or NULL when there is none now. The caller owns it: kv_reply_free(). */
KV_API kv_reply *kv_queue_next(kv_queue *queue);

/* Is there probably a reply? Takes no lock and no system call; now and then it says so without cause. */
KV_API bool kv_queue_pending(const kv_queue *queue);

/* The byte that tells: true when something came since kv_queue_next() last looked for more. For languages that read
 * memory faster than they call. Valid while the queue is. */
KV_API const bool *kv_queue_flag(const kv_queue *queue);

/* Wait until a reply is there, at most `seconds` (negative: for ever). Returns 1 there is one, 0 time is up,
 * -1 interrupted by a signal. */
KV_API int kv_queue_wait(kv_queue *queue, double seconds);

/* Give up the queue and what is in it. Requests in flight are cancelled, their replies dropped. */
KV_API void kv_queue_free(kv_queue *queue);

/* What is asked. The kinds from KV_LEASE_GRANT on are the steps that recipes ask of drivers (driver.h says what each
 * means); kv_submit() refuses them. */
typedef enum kv_kind {
  KV_PING,        /* reach the server and nothing else */
  KV_GET,         /* one pair, or none */
  KV_PUT,         /* write one key; reply has the new pair's revision and created */
  KV_DELETE,      /* remove one key; kv_reply_found() tells whether it was there */
  KV_LIST,        /* pairs below a directory, one page a request */
  KV_DELETE_TREE, /* a directory's pairs and the directory */
  KV_TXN,         /* checks, then writes: all or nothing */
  KV_LEASE_GRANT,
  KV_LEASE_RENEW,
  KV_LEASE_REVOKE,
  KV_QUEUE_JOIN,
  KV_QUEUE_AHEAD,
  KV_QUEUE_WAIT,
  KV_QUEUE_CLAIM,
  KV_QUEUE_LEAVE,
  KV_QUEUE_HEAD,
  KV_LOCK_ACQUIRE, /* asked of the lock recipe, by the functions below */
  KV_LOCK_RELEASE,
  KV_LOCK_WAIT_LOST,
  KV_LEASE_OPEN,
  KV_LEASE_CLOSE,
  KV_LEASE_WAIT_LOST,
  KV_CAMPAIGN,
  KV_RESIGN,
  KV_LEADER,
  KV_WATCH_READY, /* not an operation: the reply that says a watch has something to look at */
  KV_KIND_COUNT
} kv_kind;

/* "get", "put", ... as messages name it. */
KV_API const char *kv_kind_text(kv_kind kind);

enum kv_flags {
  KV_FAST = 1 << 0,      /* read from any member, perhaps old */
  KV_STRONG = 1 << 1,    /* linearizable read, whatever the store's default */
  KV_KEYS_ONLY = 1 << 2, /* leave values out */
  KV_SHALLOW = 1 << 3,   /* KV_LIST: direct children only */
  KV_KEEP_ALIVE = 1 << 4,/* KV_PUT: the key lives as long as this store is open and reachable */
  KV_DIR = 1 << 5,       /* KV_PUT: make a directory (etcd v2; elsewhere ignored) */
  KV_PORTABLE = 1 << 6,  /* set by the store in portable mode */
  /* set by the store for KV_DELETE_TREE of its root: what lies below only; the key of that name is another's */
  KV_BELOW = 1 << 7,
  KV_DATED = 1 << 8      /* set by watches for KV_GET: the reply must tell the revision of the read, found or not */
};

typedef enum kv_condition {
  KV_ALWAYS,     /* no condition */
  KV_IF_ABSENT,  /* KV_EXISTS when the key is there */
  KV_IF_REVISION /* KV_MODIFIED unless the key's revision is request.revision */
} kv_condition;

typedef struct kv_lease kv_lease;
typedef struct kv_lock kv_lock;
typedef struct kv_txn kv_txn;

/* A request. Zero it, set what the kind needs; everything is copied by kv_submit(). */
typedef struct kv_request {
  kv_kind kind;
  unsigned flags;         /* enum kv_flags */
  double timeout;         /* seconds for the whole request, retries included; 0 or less: the store's default */
  kv_slice key;           /* key, or directory for KV_LIST and KV_DELETE_TREE */
  kv_slice value;         /* KV_PUT */
  kv_condition condition; /* KV_PUT, KV_DELETE */
  /* KV_IF_REVISION: the expected one. KV_LIST: read at this revision, 0 for now (continuing a listing) */
  uint64_t revision;
  double ttl;             /* KV_PUT: seconds to live, 0 for ever */
  kv_lease *lease;        /* KV_PUT: attach to this lease, or NULL */
  kv_slice after;         /* KV_LIST: only keys behind this one */
  uint32_t limit;         /* KV_LIST: at most so many pairs in this page, 0 for the driver's choice */
  const kv_txn *txn;      /* KV_TXN */
} kv_request;

/*
 * Ask for something. On KV_OK either *reply is the answer already (local reads), or it is NULL and the reply
 * will appear in `queue` carrying `tag`; *id (when not NULL) then names the request for kv_cancel().
 * Any other code means that nothing was started: KV_INVALID (bad key, size, combination), KV_CLOSED,
 * KV_UNSUPPORTED, KV_TOO_LARGE, KV_FAILED (out of memory, no thread).
 */
KV_API kv_code kv_submit(kv_store *store, kv_queue *queue, const kv_request *request, uint64_t tag,
                         uint64_t *id, kv_reply **reply, kv_error *error);

/* Answer a request of this queue with KV_CANCELLED now, unless it is answered. What it began is cleaned up behind
 * it. */
KV_API void kv_cancel(kv_queue *queue, uint64_t id);

KV_API kv_kind kv_reply_kind(const kv_reply *reply);
KV_API uint64_t kv_reply_tag(const kv_reply *reply);
KV_API kv_code kv_reply_code(const kv_reply *reply);
/* For people: operation, key, backend and cause. "" on KV_OK. Valid while the reply is. */
KV_API const char *kv_reply_message(const kv_reply *reply);
/* KV_PUT, KV_TXN: revision of the write. KV_LIST: revision of the listing. KV_LOCK_ACQUIRE: the token. */
KV_API uint64_t kv_reply_revision(const kv_reply *reply);
/* KV_PUT: revision at which this life of the key began. */
KV_API uint64_t kv_reply_created(const kv_reply *reply);
/* KV_GET, KV_DELETE: was the key there? */
KV_API bool kv_reply_found(const kv_reply *reply);
/* KV_LIST: more pairs lie behind the last one of this page (go on with `after` and `revision`). */
KV_API bool kv_reply_more(const kv_reply *reply);
/* KV_TXN with KV_MODIFIED: index of the failing check among the transaction's checks, or -1 where the backend does not
 * tell. */
KV_API int kv_reply_failed_check(const kv_reply *reply);
/* Bytes held by the reply's pairs. */
KV_API size_t kv_reply_bytes(const kv_reply *reply);
/* Take the next pair; false when there is none left. KV_TXN has one for each put, in their order, without its value.
 * Slices are valid while the reply is. */
KV_API bool kv_reply_pair(kv_reply *reply, kv_pair *pair);
KV_API void kv_reply_free(kv_reply *reply);

/* ------------------------------------------------------------------ transactions */

#define KV_TXN_MAX 64 /* operations, checks and guards counted */

/* A transaction being built, to be submitted with KV_TXN. It may be submitted again, and is freed by its owner. */
KV_API kv_txn *kv_txn_new(kv_store *store, kv_error *error);
KV_API kv_code kv_txn_check(kv_txn *txn, kv_slice key, uint64_t revision, kv_error *error);
KV_API kv_code kv_txn_check_absent(kv_txn *txn, kv_slice key, kv_error *error);
/* Commit only while this lock is held with its present token. KV_NOT_HELD when it is not held now. */
KV_API kv_code kv_txn_guard(kv_txn *txn, kv_lock *lock, kv_error *error);
/* As KV_PUT: of `ttl` (0: none), KV_KEEP_ALIVE in `flags`, and `lease` (or NULL) at most one. */
KV_API kv_code kv_txn_put(kv_txn *txn, kv_slice key, kv_slice value, double ttl, unsigned flags, kv_lease *lease,
                          kv_error *error);
KV_API kv_code kv_txn_delete(kv_txn *txn, kv_slice key, kv_error *error);
KV_API void kv_txn_free(kv_txn *txn);

/* ------------------------------------------------------------------ watches */

typedef struct kv_watch kv_watch;

typedef struct kv_watch_options {
  kv_slice key;     /* key, or directory when `tree` */
  bool tree;
  bool no_initial;  /* leave out the pairs that are there now */
  bool resume;      /* start behind `after`: no initial pairs */
  uint64_t after;
  bool keys_only;   /* no values in events */
  bool previous;    /* keep and give the last value this watch saw of the key */
} kv_watch_options;

typedef enum kv_event_type { KV_EVENT_PUT, KV_EVENT_DELETE } kv_event_type;

typedef struct kv_event {
  kv_event_type type;
  kv_slice key;
  kv_slice value;        /* KV_EVENT_PUT without keys_only */
  kv_slice previous;     /* when asked for */
  bool has_previous;
  bool initial;          /* was there when the watch began */
  uint64_t revision;
  uint64_t created;      /* KV_EVENT_PUT */
} kv_event;

/*
 * Watch a key or a directory. A KV_WATCH_READY reply carrying `tag` appears in `queue` when there is something to look
 * at (events, synchronisation, an end); at most one is there at a time, and it may come without cause.
 */
KV_API kv_code kv_watch_open(kv_store *store, kv_queue *queue, const kv_watch_options *options, uint64_t tag,
                             kv_watch **watch, kv_error *error);

/* Take the next event: 1 with *event filled (slices valid until the next call on this watch), 0 none now,
 * -1 the watch has ended: *error says why (KV_CLOSED after kv_watch_close or kv_close). */
KV_API int kv_watch_next(kv_watch *watch, kv_event *event, kv_error *error);
/* Has the initial state arrived (taken or not)? */
KV_API bool kv_watch_synced(const kv_watch *watch);
/* Is the watch in step with a server now? */
KV_API bool kv_watch_connected(const kv_watch *watch);
/* Everything up to this revision has been taken by kv_watch_next(). 0 before the initial state. */
KV_API uint64_t kv_watch_revision(const kv_watch *watch);
/* Seconds since the watch was last known to be current, HUGE_VAL before the first time. */
KV_API double kv_watch_age(const kv_watch *watch);
/* End the watch: no event follows. Idempotent. */
KV_API void kv_watch_close(kv_watch *watch);
/* Close and free. */
KV_API void kv_watch_free(kv_watch *watch);

/* ------------------------------------------------------------------ leases */

/*
 * One heartbeat for many keys. kv_lease_open() makes the handle and asks the server; the KV_LEASE_OPEN reply tells
 * whether it is alive. It is renewed by the reactor until it is closed or lost, even when the handle was freed.
 */
KV_API kv_code kv_lease_open(kv_store *store, kv_queue *queue, double ttl, double timeout, uint64_t tag,
                             uint64_t *id, kv_lease **lease, kv_error *error);
/* Compared with the local deadline at every call; no I/O. */
KV_API bool kv_lease_alive(const kv_lease *lease);
/* What the server granted, in seconds. */
KV_API double kv_lease_ttl(const kv_lease *lease);
/* A KV_LEASE_WAIT_LOST reply comes when the lease ends (KV_OK; the message is the reason), or with KV_TIMEOUT. */
KV_API kv_code kv_lease_wait_lost(kv_lease *lease, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id,
                                  kv_error *error);
/* Give the lease back with its keys; a KV_LEASE_CLOSE reply tells. */
KV_API kv_code kv_lease_close(kv_lease *lease, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id,
                              kv_error *error);
/* Free the handle. The lease goes on until its store closes. */
KV_API void kv_lease_free(kv_lease *lease);

/* ------------------------------------------------------------------ locks */

typedef enum kv_lock_state {
  KV_LOCK_FREE,
  KV_LOCK_WAITING,
  KV_LOCK_HOLDING,
  KV_LOCK_SUSPENDED,
  KV_LOCK_LOST
} kv_lock_state;

typedef struct kv_lock_options {
  kv_slice name;    /* as a key; with `interop` the backend's own name, without the store's prefix */
  double ttl;       /* seconds; 0 or less: the store's session_ttl */
  kv_slice value;   /* shown to others */
  /* NULL, or whose locks to share: "etcd", "consul", "kazoo", "curator". KV_UNSUPPORTED: the backend has none such */
  const char *interop;
} kv_lock_options;

/* A lock handle, not yet held. */
KV_API kv_lock *kv_lock_new(kv_store *store, const kv_lock_options *options, kv_error *error);

/*
 * Get in line. `timeout`: negative waits for ever, 0 tries once. The KV_LOCK_ACQUIRE reply says KV_OK (held; its
 * revision is the token) or why not (KV_TIMEOUT, ...); KV_HELD is answered when the handle already holds or waits.
 */
KV_API kv_code kv_lock_acquire(kv_lock *lock, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id,
                               kv_error *error);
/* Let go. Reply KV_LOCK_RELEASE: KV_OK, KV_NOT_HELD or KV_LOST; a successor's lock is never touched. */
KV_API kv_code kv_lock_release(kv_lock *lock, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id,
                               kv_error *error);
/* Reply KV_LOCK_WAIT_LOST: KV_OK when it was lost (the message is the reason), KV_NOT_HELD, KV_TIMEOUT. */
KV_API kv_code kv_lock_wait_lost(kv_lock *lock, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id,
                                 kv_error *error);
/* Who holds it: reply KV_QUEUE_HEAD (KV_LEADER for an election) with one pair (value, and the token as revision), or
 * none. */
KV_API kv_code kv_lock_holder(kv_lock *lock, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id,
                              kv_error *error);
/* Compared with the local deadline at every call; no I/O. */
KV_API bool kv_lock_held(const kv_lock *lock);
KV_API kv_lock_state kv_lock_get_state(const kv_lock *lock);
/* Fencing token of the present or last hold, 0 before the first. */
KV_API uint64_t kv_lock_token(const kv_lock *lock);
/* The TTL that the server granted (before the first hold: the one that will be asked for). */
KV_API double kv_lock_ttl(const kv_lock *lock);
/* Free the handle. A held lock stays held until its store closes; a waiting acquire is given up. */
KV_API void kv_lock_free(kv_lock *lock);

/* ------------------------------------------------------------------ semaphores */

#define KV_SEMAPHORE_MAX 1000 /* the largest limit */

/*
 * A semaphore is a lock with `limit` holders, in a name space of its own. All functions of locks work on it,
 * kv_txn_guard() too; kv_lock_holder() tells the one who has held longest. Whoever came first is served first, and
 * tokens rise in that order. All who use a name must say the same limit: acquiring behind somebody who said another is
 * KV_INVALID. KV_UNSUPPORTED without kv_store_supports(store, "semaphore").
 */
KV_API kv_lock *kv_semaphore_new(kv_store *store, const kv_lock_options *options, uint32_t limit, kv_error *error);

/* ------------------------------------------------------------------ elections */

/*
 * An election is a lock whose holder everybody can see: he is the leader, and his value is read with one request and
 * watched. It is a kv_lock of its own kind, in a name space of its own (election "a" and lock "a" do not hinder each
 * other). What is said of locks holds: the order of candidates, the token, the local deadline, the states. Of the
 * functions above these are for elections too: kv_lock_wait_lost, kv_lock_held (does this handle lead?),
 * kv_lock_get_state, kv_lock_token, kv_lock_ttl, kv_lock_free, kv_txn_guard, and kv_lock_holder: the leader.
 *
 * KV_UNSUPPORTED on backends without kv_store_supports(store, "election"): they need transactions. Names are some bytes
 * shorter than a key's (KV_INVALID tells). options->value does not count.
 */
KV_API kv_lock *kv_election_new(kv_store *store, const kv_lock_options *options, kv_error *error);

/*
 * Get in line to lead with this value. As kv_lock_acquire(), with a KV_CAMPAIGN reply: KV_OK comes when it leads
 * and its value is what everybody reads.
 */
KV_API kv_code kv_election_campaign(kv_lock *election, kv_queue *queue, kv_slice value, double timeout, uint64_t tag,
                                    uint64_t *id, kv_error *error);
/* Let the next candidate lead. As kv_lock_release(), with a KV_RESIGN reply. Nobody reads our value any more before the
 * next one can lead. */
KV_API kv_code kv_election_resign(kv_lock *election, kv_queue *queue, double timeout, uint64_t tag, uint64_t *id,
                                  kv_error *error);
/*
 * Watch who leads: a KV_EVENT_PUT for each leader, the present one first (`initial`), and a KV_EVENT_DELETE when nobody
 * does. The value of a put is taken apart by kv_leader_read(); keys are the library's own. Changes may be joined where
 * kv_store_supports(store, "every_version") is false. All other promises are those of kv_watch_open().
 */
KV_API kv_code kv_election_observe(kv_lock *election, kv_queue *queue, uint64_t tag, kv_watch **watch, kv_error *error);
/* What an observer's event says of a leader: his token, and his value in the memory of `record`. False: somebody else
 * has written there. */
KV_API bool kv_leader_read(kv_slice record, uint64_t *token, kv_slice *value);

#ifdef __cplusplus
}
#endif
#endif
