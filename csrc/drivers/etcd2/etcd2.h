/*
 * etcd2.h - what the files of the driver for etcd's v2 API share. Everything runs on the reactor thread.
 *
 *   call.c          calls: the path of a key, reading answers; what an answer without success means
 *   nodes.c         what etcd says of a node; how values are kept
 *   read.c          get, list, ping
 *   share.c         strong reads of keys that are asked for at once
 *   write.c         put, delete, and reading again what a condition missed
 *   tree.c          delete_tree; removing directories that are left empty
 *   lease.c         leases: keys whose time to live is renewed
 *   queue.c         locks: entries in a hidden directory, ordered by their createdIndex
 *   watch.c         long polls
 *   driver.c        the table: create, start, cancel, close
 *
 * etcd v2's rules that shape all of it
 *   - A plain write makes a node anew, with a new createdIndex; only an update (prevExist=true) or a compare-and-swap
 *     keeps it. So a put updates, and creates where there is nothing.
 *   - A node is a file or a directory. Directories come by themselves and stay when they are empty: one that is in the
 *     way of a put is removed, as long as nothing is in it.
 *   - Nodes whose name begins with "_" are hidden: from listings, and from watches above them. Users cannot have such
 *     keys; the library's own things are below "_kv".
 *   - Values are text. What is no UTF-8 is kept encoded, behind a mark.
 *   - Renewing a node's time to live changes its modifiedIndex, which is no change of the key: the mark of a value says
 *     which revision it has in truth.
 */
#ifndef KV_ETCD2_H
#define KV_ETCD2_H

#include "../../wire/http_call.h"
#include "../../wire/json.h"
#include "../driver.h"
#include "../list.h"

#define ETCD2_SECOND INT64_C(1000000000)
#define ETCD2_VALUE_MAX ((size_t)1 << 20)
#define ETCD2_ANSWER_MAX ((size_t)32 << 20) /* a value may be escaped to six times its size, and be there twice */
#define ETCD2_LEAF_MAX ((size_t)16 << 20)
#define ETCD2_LIST_MAX ((size_t)1 << 30)
#define ETCD2_TTL_MAX 1e9
#define ETCD2_KEY_MAX (64 + 3 * KV_KEY_MAX)

extern const struct kv_host *kv_etcd2; /* what the core offers */

/* ------------------------------------------------------------------ nodes.c */

/* In front of a value that is not kept as it is. */
struct etcd2_mark {
  uint64_t lease;    /* under which it was put, 0: none */
  uint64_t revision; /* of the key, 0: the node's modifiedIndex is it */
  bool encoded;      /* base64 */
};

struct etcd2_node {
  kv_slice key;                /* without the leading slash. Belongs to the JSON */
  kv_slice text;               /* the value as it is kept, without its mark. Belongs to the JSON */
  struct etcd2_mark mark;
  bool dir;
  uint64_t modified, created;
  uint64_t revision;           /* of the key */
};

/* Append the text of a value: as it is, or behind a mark, which it has for certain when it is to be `marked`. */
bool etcd2_encode(struct kv_buffer *out, kv_slice value, uint64_t lease, bool marked);
/* The same value with another revision in its mark. */
bool etcd2_remark(struct kv_buffer *out, const struct etcd2_node *node, uint64_t revision);
/* The value of a node; `room` is used when it has to be decoded. False: malformed, or out of memory. */
bool etcd2_value(const struct etcd2_node *node, struct kv_buffer *room, kv_slice *value);
/* From an object. False: malformed. */
bool etcd2_read_node(const struct json *object, struct etcd2_node *node);

/* An event, or the answer to a write. */
struct etcd2_event {
  enum etcd2_action { ETCD2_OTHER, ETCD2_PUT, ETCD2_GONE } action;
  struct etcd2_node node;
  bool replaced;               /* there was a file before */
};
bool etcd2_read_event(const struct json *object, struct etcd2_event *event);

/* The answer to a read, as it comes: each file, and each directory that is empty. */
struct etcd2_nodes {
  struct json_leaves leaves;
  struct kv_buffer value;
  bool root_seen;
  /* False: stop. */
  bool (*visit)(void *context, const struct etcd2_node *node, struct kv_buffer *room);
  void *context;
};
void etcd2_nodes_init(struct etcd2_nodes *nodes,
                      bool (*visit)(void *context, const struct etcd2_node *node, struct kv_buffer *room),
                      void *context);
bool etcd2_nodes_feed(struct etcd2_nodes *nodes, const char *data, size_t size); /* false: malformed, or stopped */
bool etcd2_nodes_complete(const struct etcd2_nodes *nodes);
void etcd2_nodes_free(struct etcd2_nodes *nodes);

/* An error: {"errorCode":..., "cause":..., "index":...}. 0: it is none. */
struct etcd2_error {
  unsigned code;
  char cause[200];
};
void etcd2_read_error(kv_slice text, struct etcd2_error *error);

enum {
  ETCD2_NOT_FOUND = 100,
  ETCD2_COMPARE_FAILED = 101,
  ETCD2_NOT_FILE = 102,
  ETCD2_NOT_DIR = 104,
  ETCD2_EXISTS = 105,
  ETCD2_ROOT = 107,
  ETCD2_NOT_EMPTY = 108,
  ETCD2_UNAUTHORIZED = 110,
  ETCD2_RAFT = 300,
  ETCD2_ELECTION = 301,
  ETCD2_WATCHER_CLEARED = 400,
  ETCD2_INDEX_CLEARED = 401
};

/* ------------------------------------------------------------------ call.c */

struct etcd2;
struct etcd2_listing;
struct etcd2_lease;

struct etcd2_name {
  size_t size;
  char data[ETCD2_KEY_MAX];
};

struct etcd2_call {
  HTTP_CALL_FIELDS               /* first */
  struct etcd2 *etcd2;
  void (*then)(struct etcd2_call *call);
  void (*missed)(struct etcd2_call *call);
  struct etcd2_nodes *nodes;     /* the answer is a tree, read as it comes */
  struct etcd2_listing *listing;
  struct etcd2_error error;      /* of the answer, when it is no success */
  uint64_t index;                /* X-Etcd-Index of the answer, 0: none */
  unsigned rounds;
  /* write.c */
  unsigned mode;
  bool cleared;                  /* directories that were in the way are gone */
  uint64_t expected;             /* modifiedIndex for a compare */
  struct kv_buffer value;        /* as it is kept */
  /* lease.c */
  uint64_t lease;                /* id */
  struct etcd2_name name;        /* of a key in question */
  /* queue.c */
  uint64_t mine, ahead;
  char ahead_id[KV_PLACE_ID_MAX + 1];
  struct kv_timer timer;
  /* share.c */
  struct kv_list wait, same;     /* among those who wait; those who wait for what this one reads */
  bool counted, is_sync;
};

static inline struct http_call *etcd2_base(struct etcd2_call *call) {
  return (struct http_call *)call;
}

struct etcd2_call *etcd2_call_new(struct etcd2 *etcd2, struct kv_op *op);
void etcd2_path(struct etcd2_call *call, kv_slice key);
/* "name=value" to the body of a write; the value is escaped. */
void etcd2_field(struct etcd2_call *call, const char *name, kv_slice value);
void etcd2_field_number(struct etcd2_call *call, const char *name, uint64_t number);
void etcd2_strong(struct etcd2_call *call); /* unless the op wants it fast */
/* Send it; then() comes with any status, call->index and call->error filled. */
void etcd2_send(struct etcd2_call *call, const char *method, bool write, void (*then)(struct etcd2_call *call));
/* The same, reading nodes on the way into call->listing. */
void etcd2_send_read(struct etcd2_call *call, void (*then)(struct etcd2_call *call));
#define etcd2_finish(call, ...) http_call_finish(etcd2_base(call), __VA_ARGS__)
static inline bool etcd2_good(const struct etcd2_call *call) {
  return call->http.status == 200 || call->http.status == 201;
}
/* An answer that is no success. */
void etcd2_refuse(struct etcd2_call *call);
kv_code etcd2_code(int status, const struct etcd2_error *error, bool write);
/* What to tell of it: the cause, or the text. */
const char *etcd2_told(int status, const struct etcd2_error *error, kv_slice text, char *out, size_t size);
bool etcd2_is_hidden(kv_slice key);
/* The time to live that the server is asked for, whole seconds. */
uint64_t etcd2_ttl(double seconds);
/* Of the answer to a write. False: the call is finished. */
bool etcd2_written(struct etcd2_call *call, struct etcd2_node *node);

/* ------------------------------------------------------------------ read.c */

/* The files of an answer, and the directories that are empty. */
struct etcd2_listing {
  struct etcd2_nodes nodes;
  struct kv_buffer found;      /* struct etcd2_found, and its bytes behind it, again and again */
  size_t count;
  bool values, dirs;           /* what to keep */
  bool failed;                 /* out of memory, or too large */
};
struct etcd2_found {
  uint64_t revision, created, modified;
  struct etcd2_mark mark;
  uint32_t value_size;
  uint16_t key_size;
  bool dir;
  char bytes[];                /* key, value */
};
/* NULL: out of memory, the call is finished. */
struct etcd2_listing *etcd2_listing_new(struct etcd2_call *call, bool values, bool dirs);
void etcd2_listing_free(struct etcd2_listing *listing);
/* Walk: start with *at = 0. False: none left. */
bool etcd2_listing_next(const struct etcd2_listing *listing, size_t *at, const struct etcd2_found **found);
static inline kv_slice etcd2_found_key(const struct etcd2_found *found) {
  return (kv_slice){found->bytes, found->key_size};
}
static inline kv_slice etcd2_found_value(const struct etcd2_found *found) {
  return (kv_slice){found->bytes + found->key_size, found->value_size};
}
/* The listing is there, or there is nothing. False: the call is finished. */
bool etcd2_is_listing(struct etcd2_call *call);

void etcd2_get(struct etcd2 *etcd2, struct kv_op *op);
/* The end of a get, by what was read (for this call or another one). */
void etcd2_answer_get(struct etcd2_call *call, const struct etcd2_listing *listing, uint64_t index);
void etcd2_list(struct etcd2 *etcd2, struct kv_op *op);
void etcd2_ping(struct etcd2 *etcd2, struct kv_op *op);
void etcd2_ask_version(struct etcd2 *etcd2);

/* ------------------------------------------------------------------ share.c */

void etcd2_share_init(struct etcd2 *etcd2);
void etcd2_share_get(struct etcd2 *etcd2, struct kv_op *op);
void etcd2_share_turn(struct kv_task *task);
void etcd2_share_synced(struct etcd2 *etcd2);        /* the sync has ended, whatever came of it */
void etcd2_share_release(struct etcd2_call *call);

/* ------------------------------------------------------------------ write.c, tree.c */

void etcd2_put(struct etcd2 *etcd2, struct kv_op *op);
void etcd2_delete(struct etcd2 *etcd2, struct kv_op *op);
void etcd2_delete_tree(struct etcd2 *etcd2, struct kv_op *op);
/* Remove directories without a key at `key`, which is one. then(): call->cleared tells whether it is gone. */
void etcd2_clear(struct etcd2_call *call, kv_slice key, void (*next)(struct etcd2_call *call));

/* ------------------------------------------------------------------ lease.c */

struct etcd2_held {
  struct etcd2_held *next;
  uint64_t modified;           /* the node's modifiedIndex as far as we know */
  bool marked;                 /* its value says which revision it has */
  uint16_t key_size;
  char key[];
};

struct etcd2_lease {
  struct etcd2_lease *next;
  uint64_t id;
  double ttl;
  int64_t used;                /* last granted or renewed */
  struct etcd2_held *keys, **at; /* `at`: how far a renewal is */
  struct etcd2_name queue, entry; /* of a lock: where its entry is, or was; and which. Empty: none */
};

void etcd2_lease_grant(struct etcd2 *etcd2, struct kv_op *op);
void etcd2_lease_renew(struct etcd2 *etcd2, struct kv_op *op);
void etcd2_lease_revoke(struct etcd2 *etcd2, struct kv_op *op);
/* A key was put under it. */
bool etcd2_lease_add(struct etcd2 *etcd2, const struct kv_lease_ref *ref, kv_slice key, uint64_t modified);
struct etcd2_lease *etcd2_lease_find(struct etcd2 *etcd2, uint64_t id);
void etcd2_leases_free(struct etcd2 *etcd2);

/* ------------------------------------------------------------------ queue.c */

void etcd2_queue_step(struct etcd2 *etcd2, struct kv_op *op);
/* The entry of the op's place, renewed; KV_LOST when it is gone. Without a place `noted`, which may not be there. */
void etcd2_queue_renew(struct etcd2_call *call, const struct etcd2_name *noted);

/* ------------------------------------------------------------------ watch.c */

struct etcd2_poll;
void etcd2_watch_open(void *state, struct kv_feed *feed);
void etcd2_watch_close(void *state, struct kv_feed *feed);
void etcd2_watches_close(struct etcd2 *etcd2);

/* ------------------------------------------------------------------ driver.c */

struct etcd2 {
  struct kv_backend *backend;
  const struct kv_config *config;
  struct http_calls calls;
  struct etcd2_lease *leases;
  struct etcd2_poll *polls;
  bool version_asked;
  bool creating;               /* the last put that could be either made a new key */
  /* share.c */
  struct kv_list waiting, synced; /* calls: for the next sync, and for the one that is out */
  bool syncing, apart;         /* apart: this user may not read what a sync reads */
  uint64_t sync_index;         /* what it told, 0: nothing */
  unsigned reads_out;
  struct kv_task share_task;
};

#endif
