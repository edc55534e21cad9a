/*
 * consul.h - what the files of the Consul driver share. Everything runs on the reactor thread.
 *
 *   call.c          requests: path, query, token; what an answer without success means
 *   pairs.c         what Consul says of a key, from JSON
 *   operations.c    get, list, delete, delete_tree, ping
 *   write.c         put and transactions: one /v1/txn that also tells the new index
 *   share.c         gets and puts that are asked for at once, in one transaction
 *   large.c         put of a value that does not fit a transaction
 *   session.c       sessions: leases, and the time to live of a key
 *   queue.c         locks: a ticket per waiter, and the real key
 *   watch.c         blocking queries, shared by watches and lock waiters
 *   doubt.c         keys that a state does not have any more: gone, or hidden from this token?
 *   driver.c        the table: create, start, cancel, close
 *
 * Consul's rules that shape all of it
 *   - A write that changes neither value nor flags gets no new index: each write carries random bits in Flags.
 *   - A plain write leaves the session on a key, and the key would still die with it. So each put checks, in its own
 *     transaction, that there is none, and when there is one takes the key away from it in a second transaction.
 *   - A transaction is all or nothing, tells the new index at once, and may hold 64 operations and 512 KB of body.
 */
#ifndef KV_CONSUL_H
#define KV_CONSUL_H

#include "../../wire/base64.h"
#include "../../wire/http_call.h"
#include "../../wire/json.h"
#include "../driver.h"

#define CONSUL_SECOND INT64_C(1000000000)
#define CONSUL_VALUE_MAX ((size_t)512 << 10)
#define CONSUL_TXN_BYTES ((size_t)512 << 10)
#define CONSUL_TXN_OPS 64
#define CONSUL_SESSION_SIZE 40     /* 36 and the end */
#define CONSUL_ANSWER_MAX ((size_t)64 << 20)
/* one pair as text; a server may be configured to take values over 512 KB */
#define CONSUL_ELEMENT_MAX ((size_t)16 << 20)

extern const struct kv_host *kv_consul; /* what the core offers */

/* ------------------------------------------------------------------ pairs.c */

struct consul_pair {
  kv_slice key, value;             /* value: decoded; empty unless asked for */
  uint64_t revision, created, flags;
  char session[CONSUL_SESSION_SIZE]; /* "": none */
};

/* Reads the array of a listing as it comes. */
struct consul_pairs {
  struct json_elements elements;
  struct kv_buffer value;
  bool values;                     /* decode them */
  /* False: stop. */
  bool (*visit)(void *context, const struct consul_pair *pair);
  void *context;
};
void consul_pairs_init(struct consul_pairs *pairs, bool values,
                       bool (*visit)(void *context, const struct consul_pair *pair), void *context);
bool consul_pairs_feed(struct consul_pairs *pairs, const char *data, size_t size); /* false: malformed, or stopped */
bool consul_pairs_complete(const struct consul_pairs *pairs);
void consul_pairs_free(struct consul_pairs *pairs);
/* From one object; `value` keeps the decoded value, or NULL: not wanted. False: malformed. */
bool consul_read_pair(const struct json *object, struct kv_buffer *value, struct consul_pair *pair);

/* ------------------------------------------------------------------ call.c */

struct consul;
struct consul_write;
struct consul_large;
struct consul_listing;
struct consul_shared;
struct consul_doubt;

/* Gets or puts that wait to share a transaction. */
struct consul_lane {
  struct consul *consul;
  bool writes;
  struct kv_op *first, *last;      /* that wait */
  size_t count, most;
  unsigned out;                    /* requests */
  unsigned alone, penalty;         /* so many operations go on their own, as what was shared was refused */
  size_t each;                     /* bytes of answer for one operation, about */
  struct kv_timer patience;
  struct kv_task task;
};

/* An operation, or something of ours (op == NULL): a chain of requests. */
struct consul_call {
  HTTP_CALL_FIELDS                 /* first */
  struct consul *consul;
  void (*answered)(struct consul_call *call);
  void (*then)(struct consul_call *call); /* when the session of a put is there */
  double ttl;
  bool single;
  struct consul_pairs *pairs;      /* the answer is a listing, read as it comes */
  unsigned rounds;
  char session[CONSUL_SESSION_SIZE];
  bool kept;                       /* the sessions that were made for a put are in use now */
  uint64_t flags;
  struct consul_write *wrote;
  struct consul_large *large;
  struct consul_listing *listing;
  struct consul_waiter *waiter;
  struct consul_shared *shared;    /* many operations, op is NULL */
  struct consul_lane *lane;        /* it counts there, or NULL */
  struct consul_doubt *doubt;      /* asked for it, op is NULL */
};

/* Out of memory finishes op. NULL then. */
struct consul_call *consul_call_new(struct consul *consul, struct kv_op *op);
/* Begin the next request of the call: path "/v1/...", `key` behind it percent-encoded, then `tail` ("/" for a
 * directory). */
void consul_path(struct consul_call *call, const char *prefix, kv_slice key, const char *tail);
/* Add "name" or "name=value" to the query. */
void consul_query(struct consul_call *call, const char *text);
void consul_query_number(struct consul_call *call, const char *name, uint64_t number);
/* "consistent" or "stale", as the op wants it. */
void consul_query_consistency(struct consul_call *call);
/* Send it; answered() comes with any status. Without an answer the call is finished as that deserves. */
void consul_send(struct consul_call *call, const char *method, bool write, void (*answered)(struct consul_call *call));
/* The same, reading pairs on the way. `pairs` is the caller's until answered(). */
void consul_send_pairs(struct consul_call *call, struct consul_pairs *pairs,
                       void (*answered)(struct consul_call *call));
/* The end of the call and its op. format: NULL with KV_OK. */
#define consul_finish(call, ...) http_call_finish((struct http_call *)(call), __VA_ARGS__)
/* An answer that is no success. */
void consul_refuse(struct consul_call *call);
void consul_garbled(struct consul_call *call);
void consul_no_memory(struct consul_call *call);
void consul_call_cancel(struct consul_call *call);
void consul_call_release(struct http_call *base, kv_code code, const char *cause); /* of struct http_calls */
void consul_call_sent(struct http_call *base);
/* What the status and text mean. Keys stand in the middle of what transactions say, and may hold any words: only the
 * ends are Consul's. */
kv_code consul_code(int status, kv_slice text, bool write);
/* Does a header say that something was held back? Then it is no picture of what is there. */
bool consul_filtered(const struct http_request *http);
uint64_t consul_flags(void);

/* ------------------------------------------------------------------ operations */

void consul_get(struct consul *consul, struct kv_op *op);
void consul_list(struct consul *consul, struct kv_op *op);
void consul_delete(struct consul *consul, struct kv_op *op);
void consul_delete_tree(struct consul *consul, struct kv_op *op);
void consul_ping(struct consul *consul, struct kv_op *op);
void consul_listing_free(struct consul_listing *listing);
void consul_ask_version(struct consul *consul);

void consul_put(struct consul *consul, struct kv_op *op);
void consul_txn(struct consul *consul, struct kv_op *op);
void consul_write_free(struct consul_write *wrote);
void consul_write_abandon(struct consul_call *call); /* the sessions that were made for it */
void consul_large_go(struct consul_call *call);
void consul_large_free(struct consul_large *large);

/* Get or put, shared where that may be. */
void consul_share(struct consul *consul, struct kv_op *op);
bool consul_share_cancel(struct consul *consul, struct kv_op *op); /* false: it is not shared */
void consul_share_init(struct consul *consul);
void consul_share_close(struct consul *consul);
void consul_lane_freed(struct consul_lane *lane);
void consul_shared_sent(struct consul_shared *shared);
/* And free it. */
void consul_shared_finish(struct consul *consul, struct consul_shared *shared, kv_code code, const char *cause);

/* Operations of a transaction, for write.c, share.c and queue.c. */
struct consul_verb {
  const char *verb;
  kv_slice key;
  bool has_value, has_index, has_session;
  kv_slice value;
  uint64_t flags, index;
  const char *session;
};
void consul_verb(struct consul_call *call, const struct consul_verb *verb);
void consul_send_txn(struct consul_call *call, bool write, void (*answered)(struct consul_call *call));
/* The answer of a transaction; NULL: malformed (the call is finished). */
struct json *consul_txn_answer(struct consul_call *call);
/* What it says is wrong with the index-th operation. False: nothing. */
bool consul_txn_error(const struct json *answer, size_t index, kv_slice *what);
/* Was any of them refused for want of permission? */
bool consul_txn_denied(const struct json *answer, kv_slice *what);
/* The last result about this key. `value` as consul_read_pair(). False: none. */
bool consul_txn_result(const struct json *answer, kv_slice key, struct kv_buffer *value, struct consul_pair *pair);
/* The session that a failed check-session names. */
bool consul_current_session(kv_slice what, char *session);

/* ------------------------------------------------------------------ session.c */

void consul_lease_grant(struct consul *consul, struct kv_op *op);
void consul_lease_renew(struct consul *consul, struct kv_op *op);
void consul_lease_revoke(struct consul *consul, struct kv_op *op);
/* Make a session for keys with a time to live (`single`: for one key): call->session, then next(). */
void consul_ttl_session(struct consul_call *call, double ttl, bool single, void (*next)(struct consul_call *call));
void consul_session_abandon(struct consul *consul, const char *session); /* in the background */
/* "1m30.5s" */
bool consul_duration(kv_slice text, double *seconds);

/* ------------------------------------------------------------------ queue.c */

void consul_queue_step(struct consul *consul, struct kv_op *op);
void consul_queue_prove(struct consul_call *call); /* our entry stands, else KV_LOST */
#define CONSUL_LOCK_MARKS 64
#define CONSUL_LOCK_KEY_MAX (64 + 3 * KV_KEY_MAX)
struct consul_lock_key {
  size_t size;
  char data[CONSUL_LOCK_KEY_MAX];
};
void consul_lock_key(const struct kv_place *place, struct consul_lock_key *out);

/* ------------------------------------------------------------------ doubt.c */

struct consul_doubt {
  struct consul *consul;           /* this, and the next two, are the caller's */
  /* KV_OK: they are gone, or can be read again. KV_DENIED: one is there and may not be read. Else: not known. */
  void (*done)(struct consul_doubt *doubt, kv_code code);
  void *data;
  struct kv_buffer keys;           /* each with a zero behind it */
  bool failed;                     /* out of memory: they are not all */
  struct consul_call *call;        /* NULL: nothing is out */
  size_t at, end, count;           /* of `keys`: what is being asked for */
  size_t apart;                    /* up to there one by one, 0: nowhere */
};
void consul_doubt_init(struct consul_doubt *doubt);
void consul_doubt_add(struct consul_doubt *doubt, kv_slice key);
/* done() may come inside. The keys are forgotten then. */
void consul_doubt_ask(struct consul_doubt *doubt);
void consul_doubt_drop(struct consul_doubt *doubt); /* done() does not come any more */
void consul_doubt_failed(struct consul_doubt *doubt, kv_code code); /* for call.c */

/* ------------------------------------------------------------------ watch.c */

struct consul_source;

struct consul_watches {
  struct consul_source *first, **end; /* all that is watched, the oldest first */
  struct consul_source **table;       /* the same by what they watch */
  size_t buckets, count;
  struct consul_source *ancestor;     /* stands for those without a slot */
  struct consul_source *retired;      /* former ones whose query is not over */
  unsigned slots, slots_max;          /* sources that may have a blocking query of their own */
  unsigned reading;                   /* sources without a slot that are being read */
  bool fewer;                         /* the server has refused connections */
  struct kv_timer growth;             /* of slots_max */
  struct kv_feed *next_feed;          /* while feeds are walked */
  struct kv_task service;
};

void consul_watches_init(struct consul *consul);
void consul_watches_close(struct consul *consul);
void consul_watches_free(struct consul *consul);
void consul_watches_crowded(struct consul *consul);
void consul_watch_open(void *state, struct kv_feed *feed);
void consul_watch_close(void *state, struct kv_feed *feed);
/* Finish the call's op when this key is gone: the one that was made at index `created`, when that is not 0; with
 * `holder`, also when that session does not hold it any more. */
void consul_wait_gone(struct consul_call *call, kv_slice key, uint64_t index, const char *holder, uint64_t created);
void consul_waiter_free(struct consul_call *call);

/* ------------------------------------------------------------------ driver.c */

struct consul {
  struct kv_backend *backend;
  const struct kv_config *config;
  struct http_calls calls;
  struct consul_watches watches;
  bool crowded_locks[CONSUL_LOCK_MARKS]; /* see join() in queue.c */
  struct consul_lane gets, puts;
  struct consul_lane *counting;    /* of a call that is being made, or NULL */
  double ttl_min;                  /* what the server told, 0: not known */
  bool version_asked;
};

#endif
