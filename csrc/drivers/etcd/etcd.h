/*
 * etcd.h - what the files of the etcd v3 driver share. Everything runs on the reactor thread.
 *
 *   keys.c          user keys to etcd keys and back
 *   messages.c      the protobuf messages
 *   connection.c    one HTTP/2 connection: sockets, TLS, batching, keep-alive, draining
 *   endpoint.c      which connection: dialling, rotation, the first question, when to give up
 *   call.c          calls: waiting for a connection, started, answered; what errors mean
 *   auth.c          user and password to a token
 *   share.c         strong reads that are asked for at once, in one call
 *   operations.c    get, put, delete, list, delete_tree, ping
 *   transaction.c   txn, and everything that is conditional
 *   lease.c         grant, revoke, and the one stream of keep-alives
 *   queue.c         the steps of a lock queue
 *   watch.c         the one stream of watches
 *   driver.c        the table: create, start, cancel, close
 *
 * There is one current link. A link that is going away (GOAWAY, or its member lost the leader) moves to `old`, where
 * its calls come to their end, and the next work opens a new one. Links are torn down by service() and the socket's
 * own callback alone, never inside a callback of a call.
 */
#ifndef KV_ETCD_H
#define KV_ETCD_H

#include "../../wire/grpc.h"
#include "../../wire/tls.h"
#include "../driver.h"
#include "../list.h"
#include "messages.h"

#define ETCD_SECOND INT64_C(1000000000)
#define ETCD_REQUEST_MAX ((size_t)1572864) /* etcd's default for a request */
#define ETCD_PAGE_BYTES ((size_t)1 << 20)
#define ETCD_RUNNING_MAX 512 /* calls under way; more would only cost memory here and there */

extern const struct kv_host *kv_etcd; /* what the core offers */

/* ------------------------------------------------------------------ calls */

struct etcd;
struct etcd_call;

/* One request and its answer. An operation is a chain of these. */
struct etcd_exchange {
  const char *path;
  bool write;       /* without an answer nobody knows whether it was applied */
  bool any_member;  /* a member without a leader may answer */
  bool urgent;      /* goes before those that wait because too many are under way */
  bool counted;     /* a strong read: only a few are out at a time (share.c) */
  bool undo;        /* when cancelled, the call goes on (with op == NULL) so that done() can take back what it did */
  void (*encode)(struct etcd_call *call, struct pb_writer *out);
  /* Take the answer. False: malformed. */
  bool (*decode)(struct etcd_call *call, kv_slice message);
  /* It was answered well. Ends with etcd_finish() or etcd_next(). */
  void (*done)(struct etcd_call *call);
  /* Optional. The server refused it; true: dealt with (by etcd_finish() or etcd_next()). */
  bool (*refused)(struct etcd_call *call, int status, const char *message);
};

enum etcd_call_state { ETCD_CALL_IDLE, ETCD_CALL_WAITING, ETCD_CALL_RUNNING, ETCD_CALL_STREAMED };

struct etcd_call {
  struct grpc_call grpc;
  struct kv_list node;       /* etcd.waiting, etcd.fresh, or a list of lease.c */
  struct kv_list wait;       /* share.c: etcd.reads, or `members` of another call */
  struct etcd *etcd;
  struct etcd_link *link;      /* while running */
  struct kv_op *op;            /* NULL: ours, nobody waits */
  const struct etcd_exchange *exchange;
  enum etcd_call_state state;
  bool cancelled, answered;
  unsigned logins;             /* how often a new token was fetched for it */
  uint64_t token_number;       /* of the token that it was sent with */
  /* of the operation */
  uint64_t lease, granted;     /* for TTLs: the first of `grants` leases, whose ids follow each other */
  unsigned grants;
  uint64_t revision;           /* of the answer's header, where it matters */
  bool succeeded;
  kv_code failure;             /* of a compare that failed */
  struct etcd_listing *listing;
  struct etcd_watcher *watcher;
  /* share.c */
  struct etcd_call *batch;     /* that reads for it */
  unsigned part;               /* where in the batch's answer */
  struct kv_list members;      /* of a batch */
};

/* ------------------------------------------------------------------ connections */

enum etcd_link_state {
  ETCD_LINK_HANDSHAKE, /* TLS */
  ETCD_LINK_PROBE,     /* the first question is out */
  ETCD_LINK_READY,
  ETCD_LINK_OLD,       /* nothing new is started on it */
  ETCD_LINK_DEAD       /* to be freed */
};

struct etcd_link {
  struct kv_list node; /* etcd.old, or none */
  struct etcd *etcd;
  struct kv_io io;
  enum etcd_link_state state;
  size_t address;
  struct tls_stream *tls;
  struct grpc_connection *grpc;
  bool condemned;        /* service() is to break it, for `problem` */
  bool retire;           /* service() is to let it go when its calls are done */
  bool blamed;           /* endpoint_failed() was told */
  bool leaderless;       /* when it was asked first */
  unsigned tls_events;   /* what TLS waits for */
  size_t reads;          /* strong ones that are out */
  int64_t heard;         /* when bytes came last */
  int64_t pinged;        /* when the last PING went out; 0: never */
  size_t out_from, out_size;
  uint8_t *out;          /* produced, not taken by the socket; NULL: nothing */
  char problem[320];
};

enum etcd_auth { ETCD_AUTH_NEEDED, ETCD_AUTH_RUNNING, ETCD_AUTH_DONE };

/* A bidirectional stream on the current link. */
struct etcd_stream {
  struct grpc_call grpc;
  struct etcd *etcd;
  struct etcd_link *link; /* NULL: not open */
  uint64_t token_number;
};

struct etcd_watches {
  struct etcd_stream stream;
  struct kv_list waiting;  /* no stream yet */
  struct kv_list creating; /* sent, in the order in which the server will answer */
  struct kv_list open;
  struct etcd_watcher **table; /* open ones by id */
  size_t buckets, count;       /* count: in `table` */
  struct etcd_watcher *feeding; /* its events are being delivered; NULL when it was closed meanwhile */
  size_t held;                  /* bytes held back by all of them */
};

struct etcd_leases {
  struct etcd_stream stream;
  struct kv_list renewals; /* calls that wait for an answer on the stream, in order; op == NULL: given up */
};

struct etcd {
  struct kv_backend *backend;
  const struct kv_config *config;
  /* endpoint.c */
  struct kv_dial dial;
  bool dialing;
  struct etcd_link *link;      /* the current one, or NULL */
  struct kv_list old;
  unsigned attempts;           /* endpoints tried in this round */
  unsigned rounds;             /* that failed in a row */
  int64_t next_dial;           /* not before */
  char problem[400];           /* of the last attempt that failed */
  bool leaderless;             /* a member without a leader was met in this round */
  bool any_member;             /* in this round one will do */
  struct kv_timer dial_timer;  /* next_dial */
  struct kv_timer answer_timer; /* TLS and the first question must be answered */
  struct kv_timer alive_timer; /* is the server still there? */
  struct kv_timer acknowledge_timer; /* the server's PING is to be answered */
  bool acknowledge_armed;
  bool alive_armed;
  struct kv_task service;
  struct tls_context *tls;
  uint64_t tls_files;          /* which files it was made of */
  uint64_t cluster;            /* its id, 0: not known */
  uint64_t pair_average;       /* bytes of a pair in the last range that was listed, 0: not known */
  /* call.c */
  struct kv_list waiting, fresh; /* calls without a connection; calls of which nothing was sent yet */
  struct kv_list pool;
  size_t pooled;
  size_t running;
  struct pb_writer out;        /* every request is encoded here */
  /* share.c */
  struct kv_list reads;        /* calls that read, until the end of the turn or longer */
  size_t read_bytes;           /* what a read gives, about */
  bool apart;                  /* each read is a call of its own */
  /* auth.c */
  enum etcd_auth auth;
  char *token;
  uint64_t token_number;
  struct etcd_watches watches;
  struct etcd_leases leases;
  /* driver.c */
  bool closing, closed;
  int64_t close_until;
  struct kv_timer close_timer;
  struct kv_task close_task;
};

/* ------------------------------------------------------------------ keys.c */

#define ETCD_KEY_MAX (KV_KEY_MAX + 8)
struct etcd_key {
  size_t size;
  char data[ETCD_KEY_MAX];
};

static inline kv_slice etcd_slice(const struct etcd_key *key) {
  return (kv_slice){key->data, key->size};
}

void etcd_key_of(const struct etcd *etcd, kv_slice key, struct etcd_key *out);
/* The range of everything below a directory: from begin up to, not including, end. */
void etcd_directory(const struct etcd *etcd, kv_slice dir, struct etcd_key *begin, struct etcd_key *end);
/* The smallest key behind `key`. */
void etcd_key_after(const struct etcd *etcd, kv_slice key, struct etcd_key *out);
/* As users see it. */
kv_slice etcd_key_shown(const struct etcd *etcd, kv_slice key);

#define ETCD_LOCK_KEY_MAX (96 + 3 * KV_KEY_MAX)
struct etcd_lock_key {
  size_t prefix; /* the queue: everything that begins with this many bytes */
  size_t size;
  char data[ETCD_LOCK_KEY_MAX];
};
void etcd_lock_key(const struct kv_place *place, struct etcd_lock_key *out);
/* The end of the range of the queue. */
void etcd_lock_end(const struct etcd_lock_key *key, struct etcd_lock_key *out);

/* ------------------------------------------------------------------ call.c */

/* Begin an operation's first exchange; out of memory finishes it. NULL then. */
struct etcd_call *etcd_call_new(struct etcd *etcd, struct kv_op *op);
/* Send this exchange: now, or when there is a connection. The call may be gone when this returns. */
void etcd_next(struct etcd_call *call, const struct etcd_exchange *exchange);
/* Send it on this very link, ready or not. */
void etcd_next_on(struct etcd_call *call, const struct etcd_exchange *exchange, struct etcd_link *link);
/* End of the call, and of its operation (if somebody still waits). format: NULL with KV_OK. */
void etcd_finish(struct etcd_call *call, kv_code code, const char *format, ...) KV_PRINTF(3, 4);
void etcd_call_cancel(struct etcd_call *call);
/* Answer its operation with KV_CANCELLED; the call goes on for itself. */
void etcd_call_detach(struct etcd_call *call);
/* Start what waits; the link is ready. */
void etcd_start_waiting(struct etcd *etcd);
/* No connection can be had: answer everything that waits for one. */
void etcd_fail_waiting(struct etcd *etcd, kv_code code, const char *problem);
/* Some calls left: tell their operations. */
void etcd_mark_sent(struct etcd *etcd);
void etcd_pool_free(struct etcd *etcd);

/* What a status means for a write whose call was sent, or for a read. */
kv_code etcd_code(int status, const char *message, bool write);
/* Is it about the token, and worth a new one? */
bool etcd_token_refused(const struct etcd *etcd, int status, const char *message);
/* The member cannot serve us while another may. */
bool etcd_member_unfit(int status, const char *message);

/* ------------------------------------------------------------------ endpoint.c, connection.c */

/* Look after connections at the end of this turn: open, flush, tear down. */
void etcd_wake(struct etcd *etcd);
void etcd_service(struct kv_task *task);
void etcd_endpoint_init(struct etcd *etcd);
/* Why there is no connection and none is tried now, or NULL. */
const char *etcd_pause_reason(const struct etcd *etcd);
/* Everything connected, dialled or armed ends. Not inside a callback of a call. */
void etcd_disconnect(struct etcd *etcd, const char *problem);
bool etcd_ready(const struct etcd *etcd); /* calls may be started */
bool etcd_has_work(const struct etcd *etcd); /* something waits for a connection */
/* The first question was answered. */
void etcd_link_usable(struct etcd_link *link, kv_slice version, bool leader);
/* A call says that this member is of no use: go elsewhere when its calls are done. */
void etcd_link_retire(struct etcd_link *link, const char *problem);
void etcd_link_condemn(struct etcd_link *link, const char *problem);
/* A call on this link was given up: is the server still there? */
void etcd_link_doubt(struct etcd_link *link);
void etcd_see_cluster(struct etcd *etcd, uint64_t cluster);

struct etcd_link *etcd_link_new(struct etcd *etcd, int fd, size_t address);
void etcd_link_free(struct etcd_link *link);
bool etcd_link_begin(struct etcd_link *link); /* false: link->problem */
bool etcd_link_flush(struct etcd_link *link); /* false: broken, link->problem */
void etcd_link_broken(struct etcd_link *link); /* endpoint.c: it is over, for link->problem */
void etcd_link_connected(struct etcd_link *link); /* endpoint.c: bytes can flow */
bool etcd_link_check(struct etcd_link *link, int64_t *next); /* keep-alive; false: silent for too long */

/* ------------------------------------------------------------------ auth.c */

void etcd_auth_begin(struct etcd *etcd);
/* The token with this number was refused. */
void etcd_token_drop(struct etcd *etcd, uint64_t number);
size_t etcd_metadata(const struct etcd *etcd, bool any_member, struct grpc_metadata *list); /* room for 2 */

/* ------------------------------------------------------------------ operations */

void etcd_get(struct etcd *etcd, struct kv_op *op);
void etcd_put(struct etcd *etcd, struct kv_op *op);
void etcd_delete(struct etcd *etcd, struct kv_op *op);
void etcd_list(struct etcd *etcd, struct kv_op *op);
void etcd_listing_free(struct etcd_listing *listing);
void etcd_delete_tree(struct etcd *etcd, struct kv_op *op);
void etcd_ping(struct etcd *etcd, struct kv_op *op);
void etcd_probe(struct etcd_link *link);

/* What a get answers, also when it was read by another call. */
extern const struct etcd_exchange kv_etcd_get;
bool etcd_take_pair(void *call, const struct etcd_pair *pair);

/* share.c */
void etcd_share_get(struct etcd_call *call);
void etcd_share_turn(struct etcd *etcd); /* send what may be sent */
void etcd_share_fail(struct etcd *etcd, kv_code code, const char *problem);
void etcd_share_cancel(struct etcd_call *call);
void etcd_note_read(struct etcd *etcd, size_t bytes);

void etcd_put_go(struct etcd_call *call); /* the lease is there, or none is needed */
void etcd_txn(struct etcd *etcd, struct kv_op *op);
void etcd_txn_go(struct etcd_call *call);
extern const struct etcd_exchange kv_etcd_put_checked; /* a put with conditions */
extern const struct etcd_exchange kv_etcd_delete_checked;

/* lease.c */
void etcd_lease_grant(struct etcd *etcd, struct kv_op *op);
void etcd_lease_renew(struct etcd *etcd, struct kv_op *op);
void etcd_lease_revoke(struct etcd *etcd, struct kv_op *op);
void etcd_lease_abandon(struct etcd *etcd, uint64_t id); /* in the background */
void etcd_leases_init(struct etcd *etcd);
void etcd_leases_start(struct etcd_call *call);
void etcd_renewal_cancel(struct etcd_call *call);        /* on the stream */
extern const struct etcd_exchange kv_etcd_keep_alive;
void etcd_write_on_lease(struct etcd_call *call);        /* a put or transaction, after the leases that its TTLs need */
uint64_t etcd_part_lease(const struct etcd_call *call, const struct kv_part *part); /* 0: none */
void etcd_ttl_abandon(struct etcd_call *call);

/* queue.c */
void etcd_queue_step(struct etcd *etcd, struct kv_op *op);
void etcd_queue_prove(struct etcd_call *call);           /* our entry stands, else KV_LOST */

/* watch.c */
void etcd_watches_init(struct etcd *etcd);
void etcd_watches_free(struct etcd *etcd);
void etcd_watch_open(void *state, struct kv_feed *feed);
void etcd_watch_close(void *state, struct kv_feed *feed);
void etcd_watch_place(struct etcd *etcd, struct kv_op *op); /* KV_QUEUE_WAIT */
void etcd_watch_cancel(struct etcd_call *call);
void etcd_watches_start(struct etcd *etcd);
void etcd_watches_fail(struct etcd *etcd, kv_code code, const char *problem); /* those that wait for a connection */
size_t etcd_watches_active(const struct etcd *etcd);
void etcd_stream_cancel(struct etcd_stream *stream); /* if it is open */

#endif
