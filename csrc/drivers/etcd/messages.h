/*
 * messages.h - the etcd v3 messages that the driver speaks, as plain structs.
 *
 * Requests are appended to a writer; replies are read from a slice without copying, so every slice in a reply points
 * into the message. The readers trust nothing: they return false for anything malformed, for numbers that cannot be
 * (negative or beyond 2^53 where a revision is expected), and never read outside of the slice.
 */
#ifndef KV_ETCD_MESSAGES_H
#define KV_ETCD_MESSAGES_H

#include "../../kv.h"
#include "../../wire/protobuf.h"

#define ETCD_REVISION_MAX (UINT64_C(1) << 53)

/* ------------------------------------------------------------------ requests */

enum etcd_order { ETCD_UNSORTED, ETCD_ASCENDING, ETCD_DESCENDING };

struct etcd_range {
  kv_slice key, end;        /* end empty: one key */
  uint64_t limit, revision; /* 0: none, now */
  uint64_t max_create;      /* 0: any */
  enum etcd_order by_create;
  bool serializable, keys_only;
};

struct etcd_put {
  kv_slice key, value;
  uint64_t lease;
  bool previous;            /* answer with the pair that was there */
};

enum etcd_target { ETCD_CREATE = 1, ETCD_MOD = 2 };

struct etcd_compare {
  enum etcd_target target;  /* is it equal to `value`? For every key in the range, when `end` is given */
  kv_slice key, end;
  uint64_t value;
};

struct etcd_watch_create {
  kv_slice key, end;
  uint64_t from;            /* 0: now */
  bool deletes_only;
};

void etcd_write_range(struct pb_writer *out, const struct etcd_range *range);
void etcd_write_put(struct pb_writer *out, const struct etcd_put *put);
void etcd_write_delete(struct pb_writer *out, kv_slice key, kv_slice end);
void etcd_write_grant(struct pb_writer *out, uint64_t id, uint64_t ttl);
void etcd_write_lease(struct pb_writer *out, uint64_t id); /* revoke and keep-alive */
void etcd_write_authenticate(struct pb_writer *out, const char *name, const char *password);
void etcd_write_watch_create(struct pb_writer *out, const struct etcd_watch_create *create);
void etcd_write_watch_cancel(struct pb_writer *out, uint64_t id);

/* A transaction: compares first, then what to do when all hold, then what to do otherwise. */
enum etcd_branch { ETCD_THEN = 2, ETCD_ELSE = 3 };
void etcd_write_compare(struct pb_writer *out, const struct etcd_compare *compare);
void etcd_write_range_in(struct pb_writer *out, enum etcd_branch branch, const struct etcd_range *range);
void etcd_write_put_in(struct pb_writer *out, enum etcd_branch branch, const struct etcd_put *put);
void etcd_write_delete_in(struct pb_writer *out, enum etcd_branch branch, kv_slice key, kv_slice end);

/* ------------------------------------------------------------------ replies */

struct etcd_header {
  uint64_t cluster, member;
  uint64_t revision;
};

struct etcd_pair {
  kv_slice key, value;
  uint64_t created, revision, lease;
};

/* Return false to stop: the reader then fails. */
typedef bool etcd_each_pair(void *context, const struct etcd_pair *pair);

struct etcd_range_reply {
  struct etcd_header header;
  uint64_t pairs; /* in this message */
  bool more;
};

/* `each` may be NULL. */
bool etcd_read_range(kv_slice message, struct etcd_range_reply *reply, etcd_each_pair *each, void *context);

struct etcd_put_reply {
  struct etcd_header header;
  bool had_previous;
  struct etcd_pair previous;
};
bool etcd_read_put(kv_slice message, struct etcd_put_reply *reply);

struct etcd_delete_reply {
  struct etcd_header header;
  uint64_t deleted;
};
bool etcd_read_delete(kv_slice message, struct etcd_delete_reply *reply);

/* What one step of a transaction answered: a message of its own. */
enum etcd_part_kind { ETCD_PART_RANGE = 1, ETCD_PART_PUT = 2, ETCD_PART_DELETE = 3 };
struct etcd_part {
  enum etcd_part_kind kind;
  kv_slice message;
};

#define ETCD_PARTS_MAX 136
struct etcd_txn_reply {
  struct etcd_header header;
  bool succeeded;
  size_t count;
  struct etcd_part parts[ETCD_PARTS_MAX];
};
bool etcd_read_txn(kv_slice message, struct etcd_txn_reply *reply);

struct etcd_lease_reply {
  struct etcd_header header;
  uint64_t id;
  int64_t ttl; /* 0 or less: gone */
};
bool etcd_read_lease(kv_slice message, struct etcd_lease_reply *reply); /* of grant and keep-alive */

struct etcd_status_reply {
  struct etcd_header header;
  kv_slice version;
  uint64_t leader; /* 0: none */
};
bool etcd_read_status(kv_slice message, struct etcd_status_reply *reply);

bool etcd_read_authenticate(kv_slice message, kv_slice *token);

struct etcd_watch_reply {
  struct etcd_header header;
  int64_t id;
  bool created, cancelled, fragment;
  uint64_t compacted; /* 0: not */
  kv_slice reason;
  size_t events;
};
bool etcd_read_watch(kv_slice message, struct etcd_watch_reply *reply);

struct etcd_event {
  bool deleted;
  struct etcd_pair pair;
  kv_slice raw; /* the event's own message */
};
/* Read one event's message. */
bool etcd_read_event(kv_slice message, struct etcd_event *event);
/* The next event of a watch reply; the reader was made by etcd_events_init(). False at the end, and when malformed
 * (pb_ok). */
void etcd_events_init(struct pb_reader *reader, kv_slice message);
bool etcd_events_next(struct pb_reader *reader, struct etcd_event *event);

#endif
