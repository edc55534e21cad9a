/*
 * zookeeper.h - what the files of the ZooKeeper driver share. Everything runs on the reactor thread, or whichever
 * thread runs the reactor: the C client's single-threaded library has static state, but nothing of a thread's own.
 *
 *   names.c         keys to paths and back, what a node must look like to be a key, access control lists
 *   session.c       one session: a handle of the C client on a connection of ours, its life, expiry and end
 *   relay.c         TLS under the library
 *   link.c          the connection under a session: dialling, descriptors, events, the handshake, the quiet end
 *   call.c          calls: waiting for a session, requests in flight, answers; what errors mean
 *   read.c          get, ping, and the strong reading that others build on
 *   put.c           put: create or set, and what makes a node permanent, short-lived or ephemeral
 *   delete.c        delete
 *   tree.c          list and delete_tree: pipelined walks
 *   transaction.c   txn
 *   lease.c         leases: sessions of their own, or shared ones for locks
 *   queue.c         the steps of a lock queue
 *   watch.c         feeds: one key or a tree, from one-shot watches
 *   driver.c        the table: create, start, cancel, close
 *
 * What is a key? A node with data, or with empty data that somebody put there: parents made on the way have no data
 * at all (null), and so have keys that were deleted while nodes stand below. Other programs make parents with empty
 * data too, once, and never write to them: empty data counts as a value only when the node was written to after it
 * was made (our own empty values always are), or when it is ephemeral and can be no parent.
 */
#ifndef KV_ZOOKEEPER_H
#define KV_ZOOKEEPER_H

#include <zookeeper/zookeeper.h>

#include "../driver.h"
#include "../list.h"

#define ZK_SECOND INT64_C(1000000000)
#define ZK_PACKET_MAX ((size_t)1048575)      /* the server's default jute.maxbuffer */
#define ZK_VALUE_MAX (ZK_PACKET_MAX - 4096)  /* path, access control list and headers come on top */
#define ZK_PATH_MAX (KV_KEY_MAX + 2)
#define ZK_REAPER_SECONDS 90                 /* the server looks once a minute */
#define ZK_WATCH_BYTES_MAX ((size_t)700000)  /* of paths watched by one session: they are sent again in one packet */

extern const struct kv_host *kv_zk; /* what the core offers */

/* ------------------------------------------------------------------ sessions */

struct zk;
struct zk_call;

enum zk_role {
  ZK_MAIN,   /* operations, and watches as long as there is room */
  ZK_SHARD,  /* more watches */
  ZK_LEASE,  /* one lease with the keys under it */
  ZK_LOCKS   /* the places of locks that ask for the same time to live */
};

enum zk_state {
  ZK_DOWN,     /* no connection; the session may live on the server */
  ZK_DIALING,
  ZK_LINKING,  /* connected, the session is being established */
  ZK_READY,
  ZK_CLOSING,  /* the session is being ended */
  ZK_GONE      /* to be freed by service() */
};

/* A connected pair of descriptors: the library's, and ours of the same connection. */
struct zk_link {
  struct kv_dial dial;
  struct kv_io io;      /* ours; fd -1: none */
  int library;          /* the library's descriptor, or -1 */
  size_t address;
  struct zk_relay *relay; /* TLS, or NULL */
  bool corked;
  unsigned char last[20];  /* what came last behind the goodbye: its answer has that many bytes */
};

struct zk_session {
  struct kv_list node;       /* zk.sessions */
  struct zk *zk;
  enum zk_role role;
  enum zk_state state;
  zhandle_t *handle;         /* NULL: there is no session */
  struct zk_link link;
  int timeout;               /* asked for, milliseconds */
  double granted;            /* seconds */
  bool established;          /* the handle had a session once */
  bool awake;                /* service() is to come */
  bool condemned;            /* service() is to break the connection, for `problem` */
  bool expired;              /* service() is to give up the handle: its session is gone, or of no use any more */
  bool auth_refused;
  bool leaving;              /* end it as soon as nothing needs it */
  bool ending;               /* with its lease, which was given up: until the server has said so, or its time is over */
  unsigned attempts;         /* endpoints tried in this round */
  unsigned rounds;           /* that failed in a row */
  unsigned refusals;         /* handshakes that were cut off, in a row, with an old session */
  int64_t lost_at;           /* when the connection was lost; 0: never had one */
  int64_t told_at;           /* the leader is known to count from then at the earliest */
  int64_t ready_at;          /* when the server took the session up on the present one: the leader was asked then */
  int64_t next_dial;
  struct zk_call *closer;    /* waits for the end, or NULL */
  struct kv_timer wake;      /* the library's timeouts */
  struct kv_timer limit;     /* the handshake must be over; or the end of the session */
  struct kv_timer again;     /* next_dial, or the session's certain expiry */
  struct kv_task service;
  struct kv_list waiting;    /* calls without a connection */
  struct kv_list running;    /* calls with requests in flight */
  struct kv_list held;       /* reads that wait for an earlier sync to be answered */
  size_t calls;              /* that name it */
  size_t watch_bytes;        /* of paths watched here */
  size_t places;             /* leases that live on it */
  bool synced;               /* a sync was sent in this turn */
  unsigned syncs;            /* in flight */
  int sync_result;           /* of the last one answered */
  uint64_t generation;       /* counts handles: watches of an older one are dead */
  char problem[300];
};

/* ------------------------------------------------------------------ calls */

/* An operation on its way, or work of our own (op NULL from the start, `own` set). */
struct zk_call {
  struct kv_list node;   /* session->waiting or running */
  struct zk *zk;
  struct zk_session *session;
  struct kv_op *op;      /* NULL: given up */
  bool own;
  bool write_sent;       /* a lost answer means that nobody knows */
  unsigned pending;      /* requests without an answer */
  size_t step;           /* txn in portable mode: the part to be looked around */
  unsigned rounds;       /* how often it began again after a race */
  void (*run)(struct zk_call *call);      /* the session is ready */
  void (*failed)(struct zk_call *call, kv_code code, const char *problem); /* own calls: instead of finish() */
  void (*clear)(struct zk_call *call);    /* frees `data` */
  void *data;
  /* What many need. */
  char *path;
  int result;            /* of a request that others were pipelined behind */
  int parents;           /* why a parent could not be made, or ZOK */
  struct Stat stat;
  struct Stat claim;     /* put: when it was set, to be made anew then: `claimed` */
  int sets;              /* put: how often to set a node with a time to live that was made anew */
  bool claimed, made;    /* put: `made`: the node that has `stat` is this call's */
  bool deleted;          /* put: and it took the place of one that this call deleted */
  bool is_there, is_key, may_not_create;
  bool certain;          /* what is looked at stands behind something that a quorum commits: see zk_commit() */
  int64_t ttl;           /* of the node, milliseconds, 0: none */
};

/* ------------------------------------------------------------------ a store */

struct zk_acl {
  struct ACL_vector vector;  /* owned */
  struct ACL_vector marked;  /* the same with one entry more, for nodes with a time to live; filled by zk_acl_mark() */
  char mark[48];
};

struct zk {
  struct kv_backend *backend;
  const struct kv_config *config;
  struct tls_context *tls;
  struct zk_acl acl;
  struct kv_list sessions;
  struct zk_session *main;
  struct kv_list leases;      /* hashed would be better for thousands; see lease.c */
  struct kv_list feeds;
  struct kv_list lookouts;
  bool create_first;          /* the last put made its key: the next one likely does too */
  bool no_containers;         /* the server knows none */
  bool makes_ttl;             /* it has taken a node with a time to live */
  bool closing, closed;
  struct kv_task close_task;
};

/* ------------------------------------------------------------------ names.c */

/* "/" and the key; `path` holds ZK_PATH_MAX bytes. */
void zk_path(kv_slice key, char *path);
char *zk_path_copy(kv_slice key);
kv_slice zk_key(const char *path);
/* "/zookeeper" belongs to the server. */
bool zk_is_reserved(kv_slice key);
bool zk_is_key(int size, const struct Stat *stat);
/* A parent, or a node with a time to live that is about to get its value: the list tells. */
bool zk_is_blank(const struct Stat *stat);
#define ZK_SETS_MAX 16
/* How often to set a node that follows one of this version, for a version that the old one did not have. */
int zk_sets(int version);
int64_t zk_milliseconds(double ttl); /* as the server takes it */
/*
 * When the server is to remove a node of that time to live. Later than we do: it notes what is due, and then deletes
 * what stands there, even if that was made anew meanwhile and is permanent (seen with 3.8.0).
 */
int64_t zk_reaped(int64_t ttl);
/* The directory of a path, in place; false at the root. */
bool zk_parent(char *path);
/* ACLs. False: *problem says why. */
bool zk_acl_make(struct zk_acl *acl, const char *text, const char **problem);
void zk_acl_free(struct zk_acl *acl);
/* May anybody set the lists of nodes that are made with it? */
bool zk_acl_may_admin(const struct zk_acl *acl);
/* The list for a node that lives so long (milliseconds). */
struct ACL_vector *zk_acl_mark(struct zk_acl *acl, int64_t ttl);
/* The time to live that such a list tells, 0: none. */
int64_t zk_acl_marked(const struct ACL_vector *vector);
/* "/.kv/lock/NAME", NAME escaped; of a foreign layout the path itself. NULL: out of memory. */
char *zk_queue_path(const struct kv_place *place);
/* What our entry is called, before its number. */
#define ZK_ENTRY_MAX (KV_PLACE_ID_MAX + 16)
void zk_entry_name(const struct kv_place *place, char *name);

/* ------------------------------------------------------------------ session.c, link.c */

struct zk_session *zk_session_new(struct zk *zk, enum zk_role role, double ttl);
struct zk_session *zk_main(struct zk *zk); /* NULL: out of memory */
/* Look after it at the end of this turn. */
void zk_wake(struct zk_session *session);
void zk_condemn(struct zk_session *session, const char *problem);
/* Is it neither at its end nor on the way there? */
bool zk_session_lasts(const struct zk_session *session);
/* Nothing needs it any more: end it on the server, then free it. */
void zk_session_leave(struct zk_session *session);
/* Before a strong read in the same turn. False: it could not be sent. */
bool zk_sync(struct zk_session *session);
/* The same, of whichever server: what follows is as new as all that was answered before. Costs a write. For what would
 * be refused, or left undone, because of what was read. */
bool zk_commit(struct zk_session *session);
/* Would one more sync be one too many in flight? Then the call is held back, and runs when one was answered. */
bool zk_sync_hold(struct zk_call *call);
/* What a read's answer is worth that stands behind a sync, if it is a strong one. */
int zk_behind_sync(const struct zk_call *call, bool strong, int result);

/* Takes over fd, a connected socket; *library is the end for the library. NULL: `problem` says why, fd is not taken. */
struct zk_relay *zk_relay_new(struct zk_session *session, int fd, int *library, char *problem, size_t size);
void zk_relay_free(struct zk_relay *relay); /* NULL is fine */
bool zk_link_dial(struct zk_session *session);
void zk_link_interest(struct zk_session *session); /* ask the library what it waits for */
void zk_link_cork(struct zk_session *session, bool on); /* what is sent in a turn leaves at its end, together */
void zk_link_drop(struct zk_session *session);     /* our half; the library has lost or will lose its own */
void zk_link_cut(struct zk_session *session);      /* the library notices */
bool zk_link_say_goodbye(struct zk_session *session); /* false: cannot */
/* session.c, for link.c: */
void zk_session_linked(struct zk_session *session, const char *problem); /* dialled; NULL: well */
void zk_session_check(struct zk_session *session); /* after the library ran */
/* After our goodbye the server closed, or said nothing for too long. */
void zk_session_ended(struct zk_session *session, bool answered);
zhandle_t *zk_session_handle(struct zk_session *session); /* made when there is none */

/* ------------------------------------------------------------------ call.c */

/* NULL: out of memory, and op is finished. */
struct zk_call *zk_call_new(struct zk *zk, struct zk_session *session, struct kv_op *op);
/* Run it now, or when the session is ready. The call may be gone when this returns. */
void zk_call_start(struct zk_call *call, void (*run)(struct zk_call *call));
/* A request was made: count it. False: it was not sent, and the call is finished. */
bool zk_sent(struct zk_call *call, int result);
/* In a completion: the call that it is for, or NULL when nobody waits any more. */
struct zk_call *zk_answered(const void *data);
/* End of the call and of its operation. format: NULL with KV_OK. The call may be gone then. */
void zk_finish(struct zk_call *call, kv_code code, const char *format, ...) KV_PRINTF(3, 4);
/* With what an error of the library means. */
void zk_fail(struct zk_call *call, int result);
kv_code zk_code(int result, bool write_sent);
#define ZK_RESERVED "\"zookeeper\" at the root is the server's own"
#define ZK_STUCK "keys stand below it, so that ZooKeeper cannot change how long it lives"
#define ZK_NO_TTL                                                                        \
  "a time to live needs a server that is started with -Dzookeeper.extendedTypesEnabled=true " \
  "(ZooKeeper 3.5.4 or later)"
void zk_call_cancel(struct zk_call *call);
void zk_calls_run(struct zk_session *session);
void zk_calls_fail(struct zk_session *session, kv_code code, const char *problem);
/* A write is about to be made. */
void zk_writing(struct zk_call *call);
/* Began again too often after races? Then it is finished. */
bool zk_again(struct zk_call *call);
/* Make the parents of call->path, all at once; then `run`. Fails when it was tried before and one could not be made. */
void zk_make_parents(struct zk_call *call, void (*run)(struct zk_call *call));

/* ------------------------------------------------------------------ operations */

void zk_get(struct zk *zk, struct kv_op *op);
void zk_ping(struct zk *zk, struct kv_op *op);
void zk_put(struct zk *zk, struct kv_op *op);
void zk_delete(struct zk *zk, struct kv_op *op);
void zk_list_tree(struct zk *zk, struct kv_op *op);
void zk_delete_tree(struct zk *zk, struct kv_op *op);
void zk_txn(struct zk *zk, struct kv_op *op);
/* Read call->path into is_there, is_key, stat and ttl, then `run`. `strong`: behind a sync. */
void zk_look(struct zk_call *call, bool strong, void (*run)(struct zk_call *call));

/* Portable mode: no key stands above `key`, which is that of call->path, and none below; then `run`. Uses
 * call->data. */
void zk_check_portable(struct zk_call *call, kv_slice key, void (*run)(struct zk_call *call));

/* lease.c */
void zk_lease_grant(struct zk *zk, struct kv_op *op);
void zk_lease_renew(struct zk *zk, struct kv_op *op);
void zk_lease_revoke(struct zk *zk, struct kv_op *op);
/* The session of a lease, NULL: gone. */
struct zk_session *zk_lease_session(struct zk *zk, const struct kv_lease_ref *ref);
/* An entry may be or is in a queue under this lease; NULL: certainly not any more. */
bool zk_lease_note(struct zk *zk, const struct kv_lease_ref *ref, const char *queue, const char *entry);
void zk_leases_lost(struct zk_session *session); /* the session has expired */
void zk_leases_free(struct zk *zk);

/* queue.c */
void zk_queue_step(struct zk *zk, struct kv_op *op);
/* Find the entry that is called so, before its number; NULL: none. */
const char *zk_queue_find(const struct String_vector *names, const char *entry);
void zk_lookouts_lost(struct zk_session *session);
void zk_queue_cancel_wait(struct zk_call *call);

/* watch.c */
void zk_watch_open(void *state, struct kv_feed *feed);
void zk_watch_close(void *state, struct kv_feed *feed);
void zk_watches_ready(struct zk_session *session);   /* connected again: what was cut off goes on */
void zk_watches_down(struct zk_session *session);
void zk_watches_expired(struct zk_session *session); /* all its watches are gone */
bool zk_watches_any(const struct zk_session *session);

#endif
