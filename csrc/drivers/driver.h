/*
 * driver.h - what a backend driver is to the core, and what the core offers to a driver.
 *
 * A driver is one `struct kv_driver`, usually in a shared object of its own. It includes this header and
 * nothing else of the core, and links against nothing of it: everything it may call comes in `struct kv_host`,
 * a table of functions that kv_register() hands to driver->attach().
 *
 * Threads
 *   Every slot runs on the reactor thread unless its comment says otherwise. Nothing there may block.
 *   host functions may be called on the reactor thread only, unless marked [any thread].
 *
 * The life of an operation
 *   core: start(op) -> driver works -> driver: host->finish(op, ...) exactly once.
 *   - The driver sets op->sent right before the first byte of a write may leave the process. It decides what a
 *     deadline, a cancel or a close answers: a write with `sent` answers KV_UNKNOWN.
 *   - When the deadline passes, or the op is cancelled, the core answers the waiter itself and calls cancel(op). The
 *     driver still owes its one finish() (at once, inside cancel(), or later), with whatever code; it is dropped. Until
 *     then `op` is valid.
 *   - finish(op, KV_UNAVAILABLE): certainly not applied. The core starts the op again after a back-off until its
 *     deadline.
 *   - finish(op, KV_UNKNOWN): may have been applied. The core starts reads and steps that are idempotent by
 *     construction again; anything else is answered with KV_UNKNOWN.
 *   - every other code is final.
 *   `start` never reports failure by other means than finish(), which it may call before it returns.
 *
 * Keys are canonical, include the store's prefix, and have no leading slash; "" is the root. The driver maps them to
 * its own names, and gives them back in the same form to host->pair() and host->feed_event(), which drop what is not
 * canonical, belongs to ".kv", or lies outside of what was asked, and cut the prefix.
 *
 * Why the shape holds for the others
 *   - Consul, ZooKeeper: no change stream with deletes. They set KV_CAN_SNAPSHOT and feed whole states between
 *     feed_begin() and feed_end(); the core finds the difference. etcd v2 streams events and reports KV_COMPACTED when
 *     history was cleared.
 *   - A Consul session or a ZooKeeper session is a `struct kv_lease_ref` whose text the driver fills; `session`
 *     marks the store's own (ZooKeeper: ephemeral nodes).
 *   - Consul's lock-delay is op->result.retry_after of KV_QUEUE_CLAIM; its ticket and its real key are both the
 *     driver's business inside JOIN/CLAIM/LEAVE. ZooKeeper's token is the czxid, known at JOIN; etcd's the create
 *     revision.
 *   - Expiry that is late on the server (Consul, ZooKeeper, etcd's minimum) is made exact by the core: result.ttl_late.
 */
#ifndef KV_DRIVER_H
#define KV_DRIVER_H

#include "../kv.h"

#define KV_DRIVER_ABI 1

struct kv_host;
struct kv_backend; /* the core's side of an open backend; opaque to drivers */
struct kv_feed;    /* the core's side of one watch; see below */

/* ------------------------------------------------------------------ what a backend can do */

enum kv_capability {
  KV_CAN_TXN = 1 << 0,
  KV_CAN_TTL = 1 << 1,
  KV_CAN_LOCK = 1 << 2,
  KV_CAN_LEASE = 1 << 3,
  KV_CAN_WATCH = 1 << 4,
  KV_CAN_RESUME = 1 << 5,        /* watches can start behind a revision */
  KV_CAN_EVERY_VERSION = 1 << 6, /* each change is an event of its own */
  KV_CAN_PAGING = 1 << 7,        /* listings come in pages of one revision */
  KV_CAN_INTEROP = 1 << 8,       /* locks in the layout of other programs: driver->interop */
  KV_CAN_INTEROP_ORDER = 1 << 9, /* and these serve in the order in which all came, ours and others' */
  KV_CAN_NESTED = 1 << 10,       /* a key may have keys below it (never in portable mode) */
  KV_CAN_SEMAPHORE = 1 << 11,    /* places with a limit */
  /* not shown to users: */
  KV_CAN_SNAPSHOT = 1 << 16,   /* watches feed whole states, the first one included */
  /* start() and cancel() may run on any thread, and finish() be called on any; no retries are made */
  KV_CAN_ANY_THREAD = 1 << 17,
  /* "The reactor thread" may be whichever thread runs the reactor at the moment: one at a time, but a user's own, with
   * signals not blocked. So: no thread-local state, and no write that may raise SIGPIPE. */
  KV_CAN_MOVE = 1 << 18,
  /* The same, but only for schemes without TLS: the library that does TLS writes in a way that may raise SIGPIPE. */
  KV_CAN_MOVE_PLAIN = 1 << 19,
};

struct kv_scheme {
  const char *name; /* "etcds" */
  bool tls;
  uint16_t port;    /* default; 0: the URL has a path instead of hosts (local:PATH) */
};

struct kv_limits {
  size_t value_max;   /* larger values are KV_TOO_LARGE before sending; 0: unknown */
  double lease_min;   /* shorter TTLs of locks and leases are raised to this, seconds; 0: none */
  double renew_margin; /* seconds taken off a lock's local deadline (ZooKeeper: a tick) */
};

struct kv_address {
  char *host;    /* without brackets */
  uint16_t port;
};

/* How to open. Owned by the core, valid until destroy(). Strings may be NULL when not given. */
struct kv_config {
  const struct kv_scheme *scheme;
  struct kv_address *addresses;
  size_t address_count;
  char *path;            /* local; NULL: private and temporary */
  char *username, *password, *token, *datacenter, *acl;
  char *tls_ca, *tls_cert, *tls_key, *tls_server_name;
  bool tls_verify;
  bool leading_slash;
  bool fast_reads;       /* consistency=fast */
  bool portable;
  bool sync_none;
  uint64_t map_size;     /* 0: the driver's default */
  double timeout, connect_timeout, session_ttl;
};

/* ------------------------------------------------------------------ operations */

/* A lease or session. Owned by the core, valid until every op that names it has finished. */
struct kv_lease_ref {
  uint64_t id;      /* random, positive, below 2^63, chosen by the core before KV_LEASE_GRANT */
  double ttl;       /* asked for, seconds */
  double granted;   /* set by the driver at GRANT and RENEW */
  double behind;    /* set at GRANT: the server may count from so many seconds before it began. Over with a RENEW */
  char text[64];    /* the driver's own name of it (Consul: session id) */
  bool session;     /* the store's own lease, for KV_KEEP_ALIVE */
  bool for_lock;    /* serves one place in a lock queue, not keys */
  /* for_lock, and beside the place one key is put under it (who leads an election): it must go with the lease too */
  bool with_key;
};

#define KV_PLACE_ID_MAX 32
#define KV_TICKET_MAX 128
#define KV_LIMIT_TEXT 8

/* One place in the queue of a lock. Owned by the lock recipe, valid until every op that names it has finished. */
struct kv_place {
  /* The lock's full name: prefix and name, canonical; escape it where '/' would nest. With `interop` the backend's own
   * name as the user wrote it, slashes at its ends and all, without the prefix. */
  kv_slice name;
  kv_slice value;                /* shown by KV_QUEUE_HEAD */
  /* unique per acquire, lower-case hex: finds an entry whose creation was not answered */
  char id[KV_PLACE_ID_MAX + 1];
  struct kv_lease_ref *lease;    /* granted before JOIN */
  /* 0: of a lock. Else of a semaphore: the first so many in line hold. The ids of its entries begin with the limit that
   * their owners know, KV_LIMIT_TEXT digits in hex. */
  uint32_t limit;
  uint64_t token;                /* set by JOIN or CLAIM: rises with every later holder of the name */
  char ticket[KV_TICKET_MAX];    /* the driver's name of our entry, set by JOIN (ZooKeeper: node name) */
  char ahead[KV_TICKET_MAX];     /* the driver's name of the entry before ours, set by AHEAD (or JOIN), read by WAIT */
  uint64_t ahead_revision;       /* driver's own: from where to watch it */
  const char *interop;           /* NULL, or the foreign layout: one of driver->interop, the pointer itself */
};

/*
 * The steps (kinds from KV_LEASE_GRANT to KV_QUEUE_HEAD). All are idempotent by construction, so the core repeats
 * them after KV_UNKNOWN.
 *   LEASE_GRANT   make op->lease, fill granted. A grant that is already there under its id is a success.
 *   LEASE_RENEW   heartbeat of op->lease, and with op->place also whatever proves that our entry stands. Fills granted.
 *                 KV_LOST when it is gone.
 *   LEASE_REVOKE  end it with its keys. One that is gone is a success.
 *   QUEUE_JOIN    make our entry in op->place under its lease; adopt it when place->id is there already. May also
 *                 answer like AHEAD in the same round trip: result.answered_ahead = true, result.found, place->ahead.
 *                 When it then finds nobody ahead and sets place->token, that answer must be as strong as CLAIM's (read
 *                 in one linearizable step with the creation): CLAIM is left out. Leave the token 0 where it is not.
 *   QUEUE_AHEAD   who is before us? result.found = false: nobody, CLAIM next. Otherwise place->ahead is set. KV_LOST:
 *                 our entry is gone.
 *   QUEUE_WAIT    finish when place->ahead is gone; finishing early is harmless. Has no deadline of its own.
 *   QUEUE_CLAIM   verify by a strong read that our entry stands and is first (Consul: take the real key). result.found
 *                 = true: held, place->token is set. false: not first after all (AHEAD again), or retry after
 *                 result.retry_after seconds. KV_LOST: entry gone.
 *   QUEUE_LEAVE   remove our entry if it is ours; result.found tells whether it was there. Never touches a successor.
 *   QUEUE_HEAD    who holds place->name: host->pair() with the value, revision = token; nothing when free.
 *
 * For a place with a limit (KV_CAN_SEMAPHORE), AHEAD is not asked. JOIN, when it answers, and CLAIM say who is before
 * us with host->pair(): of the entries that were made before ours the `limit` nearest (all, when there are fewer), the
 * nearest first, each with key = its ticket, value = its id, revision = what ahead_revision is to be for a WAIT for it,
 * created = 1. Then they set result.found (which host->pair() sets too): JOIN as for a lock (true: `limit` or more are
 * before us), CLAIM to whether we hold: fewer than `limit` are. WAIT names one of those entries at a time; there may be
 * many at once, with places of their own. HEAD tells the first in line.
 */

enum kv_part_type { KV_PART_CHECK, KV_PART_ABSENT, KV_PART_GUARD, KV_PART_PUT, KV_PART_DELETE };

/* One part of a transaction. Checks and guards come first, in the order in which they were added. */
struct kv_part {
  enum kv_part_type type;
  kv_slice key;
  kv_slice value;
  uint64_t revision;             /* CHECK */
  double ttl;                    /* PUT: seconds, 0: none. Never together with lease */
  struct kv_lease_ref *lease;    /* PUT, or NULL */
  bool keep_alive;               /* the core's: lease becomes the store's own before start() */
  const struct kv_place *place;  /* GUARD: holds iff our entry stands with place->token */
};

struct kv_page; /* pairs, packed; opaque to drivers */

/* What a driver answers. Zeroed before start(). */
struct kv_result {
  uint64_t revision;    /* PUT, TXN: of the write. LIST: of the listing. GET: of the read, with KV_DATED always */
  uint64_t created;     /* PUT: of the key's life */
  bool found;           /* GET: is set by host->pair(). DELETE: it was there. Steps: see above */
  bool more;            /* LIST: pairs lie behind the last one given */
  bool answered_ahead;  /* JOIN */
  int failed_check;     /* TXN, KV_MODIFIED: index of the failing check, or -1 */
  double retry_after;   /* CLAIM, seconds */
  /* PUT with ttl, TXN with one that has: the server may keep the key so many seconds too long: the core deletes it on
   * time. 0: exact */
  double ttl_late;
  struct kv_page *page; /* filled through host->pair(). TXN: a pair for each PUT, in their order, without its value */
};

struct kv_op {
  /* The request: read-only, valid until finish(). */
  kv_kind kind;
  unsigned flags;            /* KV_FAST is resolved against the store's default: set means fast. KV_PORTABLE too */
  kv_slice key;
  kv_slice value;
  kv_condition condition;
  uint64_t revision;
  double ttl;                /* seconds, 0: none. Never together with lease */
  struct kv_lease_ref *lease;
  kv_slice after;            /* LIST: full key, as `key` */
  uint32_t limit;            /* LIST; 0: the driver chooses a page of about a megabyte */
  const struct kv_part *parts;
  size_t part_count;
  struct kv_place *place;
  int64_t deadline;          /* nanoseconds of host->now(), INT64_MAX: none */
  unsigned attempt;          /* 0 the first time */
  /* The driver's. Zeroed before every start(). */
  struct kv_result result;
  bool sent;
  void *data;
  uint64_t number;
  struct kv_op *next, *previous;
};

/* ------------------------------------------------------------------ watches */

/* What the driver sees of a watch. The core owns it. */
struct kv_feed {
  struct kv_backend *backend;
  kv_slice key;       /* key or directory */
  bool tree;
  bool keys_only;
  uint64_t from;      /* deliver changes with revision >= from (unused with KV_CAN_SNAPSHOT) */
  void *data;         /* the driver's; NULL at watch_open() */
  uint64_t number;    /* the driver's */
  /* the driver's, kept from one opening to the next (0 at first): whose revisions `from` is one of */
  uint64_t history;
  /* Set before feed_pair(): what else tells this write from another with the same revision, which may be there after a
   * store has lost its data. 0: nothing. */
  uint64_t stamp;
  struct kv_feed *next, *previous; /* the driver's */
};

/* ------------------------------------------------------------------ reactor services */

/* A descriptor in the poll set. Embedded in the driver's own struct. Events: KV_IO_READ | KV_IO_WRITE; errors and
 * hang-ups arrive as both. It may be removed (and freed) inside its own `ready`. */
enum { KV_IO_READ = 1, KV_IO_WRITE = 2 };
struct kv_io {
  int fd;
  unsigned events;
  void (*ready)(struct kv_io *io, unsigned events);
  void *data;
  void *core; /* the reactor's */
};

/* Embedded timer; zero it before first use. `fire` runs once per timer_set(); setting again moves it. */
struct kv_timer {
  int64_t at;
  size_t slot; /* the reactor's; 0: not set */
  void (*fire)(struct kv_timer *timer);
  void *data;
};

/* A function to run on the reactor thread, embedded in the caller's struct; it must stay valid until it ran. */
struct kv_task {
  void (*run)(struct kv_task *task);
  void *data;
  struct kv_task *next; /* the reactor's */
};

/* An attempt to connect to one of the backend's addresses: name resolution (helper thread, cached), non-blocking
 * connect, rotation over addresses, leaving dead ones for a while, connect_timeout. */
struct kv_dial {
  /* fd < 0: failed, problem says why */
  void (*done)(struct kv_dial *dial, int fd, size_t address, const char *problem);
  void *data;
  void *core;
};

struct kv_host {
  uint32_t abi;

  /* -- reactor */
  /* [any thread] CLOCK_BOOTTIME in nanoseconds, as of this turn of the loop on the reactor thread, fresh elsewhere */
  int64_t (*now)(void);
  void (*io_set)(struct kv_io *io, unsigned events); /* add, or change what is waited for; 0: nothing but stay */
  void (*io_remove)(struct kv_io *io);               /* harmless when it is not in the set. Does not close fd */
  void (*timer_set)(struct kv_timer *timer, int64_t at);
  void (*timer_stop)(struct kv_timer *timer);        /* harmless when not set */
  void (*post)(struct kv_task *task);                /* [any thread] run on the reactor thread soon */
  /* run at the end of this turn, once however often deferred (run must not rely on order) */
  void (*defer)(struct kv_task *task);

  /* -- operations */
  /* [any thread with KV_CAN_ANY_THREAD] Answer. `format` describes the cause only ("connection refused"): the core
   * names the operation, key and backend. Must be NULL with KV_OK. Moves op->result; op is gone afterwards. */
  void (*finish)(struct kv_op *op, kv_code code, const char *format, ...) KV_PRINTF(3, 4);
  /* [any thread with KV_CAN_ANY_THREAD] Add a pair to op->result (sets found). False: out of memory; the driver then
   * finishes with KV_FAILED. */
  bool (*pair)(struct kv_op *op, kv_slice key, kv_slice value, uint64_t revision, uint64_t created, bool dir);
  /* [any thread] Bytes of the pairs added so far, to decide where a page ends. */
  size_t (*pair_bytes)(const struct kv_op *op);
  /* [any thread] Between hold and release, replies of this thread are gathered and their queues woken once. */
  void (*hold_replies)(void);
  void (*release_replies)(void);

  /* -- connections */
  /* Start to connect to the next address that is due. `done` comes later, never inside this call. */
  void (*dial)(struct kv_backend *backend, struct kv_dial *dial);
  void (*dial_cancel)(struct kv_dial *dial);         /* done will not come; harmless when not dialling */
  void (*endpoint_failed)(struct kv_backend *backend, size_t address); /* leave it for a while */
  /* Seconds to wait before trying again for the n-th time in a row (n from 0): exponential, capped, with jitter. */
  double (*backoff)(unsigned n);
  /* For kv_store_info() and stats. version may be NULL (unchanged). */
  void (*connected)(struct kv_backend *backend, bool connected, const char *endpoint, const char *version);
  void (*count_bytes)(struct kv_backend *backend, uint64_t sent, uint64_t received); /* [any thread] */

  /* -- watches: all between watch_open and watch_close of the feed */
  void (*feed_event)(struct kv_feed *feed, kv_event_type type, kv_slice key, kv_slice value, uint64_t revision,
                     uint64_t created);
  /* This key, and all below it that are older, are gone since this revision: a directory was deleted as one. */
  void (*feed_gone)(struct kv_feed *feed, kv_slice dir, uint64_t revision);
  /* everything up to this revision was fed (end of a batch, or progress) */
  void (*feed_commit)(struct kv_feed *feed, uint64_t revision);
  void (*feed_begin)(struct kv_feed *feed);                     /* KV_CAN_SNAPSHOT: a whole state follows */
  void (*feed_pair)(struct kv_feed *feed, kv_slice key, kv_slice value, uint64_t revision, uint64_t created);
  /* Before feed_end(): the keys that it would tell as deleted. visit() must feed nothing. */
  void (*feed_missing)(struct kv_feed *feed, void (*visit)(void *argument, kv_slice key), void *argument);
  void (*feed_end)(struct kv_feed *feed, uint64_t revision);
  /* the stream is up (watch created on the server), or interrupted but healing by itself */
  void (*feed_connected)(struct kv_feed *feed, bool connected);
  /* The stream ended. KV_COMPACTED (or a store that went back in time): the core lists again. KV_UNAVAILABLE,
   * KV_UNKNOWN: the core opens it again behind the last revision after a back-off. Other codes end the watch with an
   * error. The core has closed the feed when this returns: watch_close() is not called, feed->data is dropped. */
  void (*feed_lost)(struct kv_feed *feed, kv_code code, const char *format, ...) KV_PRINTF(3, 4);

  /* -- closing */
  void (*closed)(struct kv_backend *backend); /* [any thread] close() is complete */

  /* -- randomness: jitter, ids. [any thread] */
  uint64_t (*random)(void);
};

/* ------------------------------------------------------------------ the driver */

struct kv_driver {
  uint32_t abi;                      /* KV_DRIVER_ABI */
  const char *name;                  /* "etcd" */
  const struct kv_scheme *schemes;   /* ended by name == NULL */
  uint32_t capabilities;             /* enum kv_capability */
  struct kv_limits limits;
  const char *const *interop;        /* layouts of other programs' locks that it knows, ended by NULL; NULL: none */

  /* [any thread] Called once by kv_register(). */
  void (*attach)(const struct kv_host *host);

  /* [any thread] Make the state of one backend from config: no I/O, no thread, no descriptor. On failure NULL with
   * *error (only the cause). */
  void *(*create)(struct kv_backend *backend, const struct kv_config *config, kv_error *error);

  /* Begin to close: the core has answered or cancelled all operations and watches, given back leases and locks that it
   * could. Give back what remains on the server within a bounded time, close descriptors, then call host->closed(). No
   * slot but destroy() follows. */
  void (*close)(void *state);

  /* [any thread] Free the state: after closed(), or right after create() when nothing was ever started. */
  void (*destroy)(void *state);

  /* [any thread with KV_CAN_ANY_THREAD] See "The life of an operation". */
  void (*start)(void *state, struct kv_op *op);

  /* [any thread with KV_CAN_ANY_THREAD] The waiter was answered; let go of op soon: finish() is still owed. What the op
   * began is to be undone where that is possible (a lease granted for nobody). With KV_CAN_ANY_THREAD it may come while
   * start() runs, or just before it: finish() as start() alone would, then. */
  void (*cancel)(void *state, struct kv_op *op);

  /* [any thread] Optional (NULL): answer a GET or LIST at once in the caller's thread, filling op->result through
   * host->pair(). Returns the code; on failure *error has the cause. Must not keep op. KV_UNAVAILABLE: it would have to
   * wait, start() comes instead. */
  kv_code (*read)(void *state, struct kv_op *op, kv_error *error);

  /* Begin to feed. host->feed_* never come before it returns is NOT promised: they may come inside. */
  void (*watch_open)(void *state, struct kv_feed *feed);
  /* Stop feeding; nothing for this feed may follow. */
  void (*watch_close)(void *state, struct kv_feed *feed);
};

#endif
