/*
 * operations.c - get, put, delete, list, delete_tree, ping: what needs no condition. A put or delete with one is a
 * transaction (transaction.c).
 *
 * A listing is read in ranges of a size that adapts to the pairs, all at the revision of the first, until there is a
 * page of about a megabyte, or what was asked for. A shallow listing steps over whole subdirectories: one range
 * begins behind each.
 */
#include <stdlib.h>
#include <string.h>

#include "etcd.h"

#define BATCH_FIRST 512   /* pairs in the first range, when nothing is known of their size */
#define BATCH_MAX 16384

static void done_ok(struct etcd_call *call) {
  if (call->failure != KV_OK)
    etcd_finish(call, call->failure, "out of memory");
  else
    etcd_finish(call, KV_OK, NULL);
}

static void run(struct etcd *etcd, struct kv_op *op, const struct etcd_exchange *exchange) {
  struct etcd_call *call = etcd_call_new(etcd, op);
  if (call) etcd_next(call, exchange);
}

/* ------------------------------------------------------------------ get */

bool etcd_take_pair(void *context, const struct etcd_pair *pair) {
  struct etcd_call *call = context;
  struct kv_op *op = call->op;
  if (op && !kv_etcd->pair(op, op->key, pair->value, pair->revision, pair->created, false)) call->failure = KV_FAILED;
  return true;
}

static void encode_get(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_op *op = call->op;
  struct etcd_key key;
  etcd_key_of(call->etcd, op->key, &key);
  etcd_write_range(out, &(struct etcd_range){.key = etcd_slice(&key),
                                             .serializable = (op->flags & KV_FAST) != 0,
                                             .keys_only = (op->flags & KV_KEYS_ONLY) != 0});
}

static bool decode_get(struct etcd_call *call, kv_slice message) {
  struct etcd_range_reply reply;
  if (!etcd_read_range(message, &reply, etcd_take_pair, call)) return false;
  etcd_see_cluster(call->etcd, reply.header.cluster);
  call->op->result.revision = reply.header.revision;
  etcd_note_read(call->etcd, message.size);
  return reply.pairs <= 1;
}

const struct etcd_exchange kv_etcd_get = {
  .path = "/etcdserverpb.KV/Range", .counted = true, .encode = encode_get, .decode = decode_get, .done = done_ok};
static const struct etcd_exchange get_fast = {
  .path = "/etcdserverpb.KV/Range", .any_member = true, .encode = encode_get, .decode = decode_get, .done = done_ok};

void etcd_get(struct etcd *etcd, struct kv_op *op) {
  struct etcd_call *call = etcd_call_new(etcd, op);
  if (!call) return;
  if (op->flags & KV_FAST) etcd_next(call, &get_fast);
  else etcd_share_get(call);
}

/* ------------------------------------------------------------------ put */

static void encode_put(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_op *op = call->op;
  struct etcd_key key;
  etcd_key_of(call->etcd, op->key, &key);
  etcd_write_put(out, &(struct etcd_put){.key = etcd_slice(&key),
                                         .value = op->value,
                                         .lease = op->lease ? op->lease->id : call->lease,
                                         .previous = true});
}

static bool decode_put(struct etcd_call *call, kv_slice message) {
  struct etcd_put_reply reply;
  struct kv_result *result = &call->op->result;
  if (!etcd_read_put(message, &reply) || !reply.header.revision) return false;
  result->revision = reply.header.revision;
  result->created = reply.had_previous ? reply.previous.created : reply.header.revision;
  return true;
}

static const struct etcd_exchange put = {
  .path = "/etcdserverpb.KV/Put", .write = true, .encode = encode_put, .decode = decode_put, .done = done_ok};

void etcd_put_go(struct etcd_call *call) {
  const struct kv_op *op = call->op;
  etcd_next(call, op->condition != KV_ALWAYS || (op->flags & KV_PORTABLE) ? &kv_etcd_put_checked : &put);
}

void etcd_put(struct etcd *etcd, struct kv_op *op) {
  struct etcd_call *call = etcd_call_new(etcd, op);
  if (call) etcd_write_on_lease(call);
}

/* ------------------------------------------------------------------ delete */

static void encode_delete(struct etcd_call *call, struct pb_writer *out) {
  struct etcd_key key;
  etcd_key_of(call->etcd, call->op->key, &key);
  etcd_write_delete(out, etcd_slice(&key), (kv_slice){NULL, 0});
}

static bool decode_delete(struct etcd_call *call, kv_slice message) {
  struct etcd_delete_reply reply;
  if (!etcd_read_delete(message, &reply)) return false;
  call->op->result.revision = reply.header.revision;
  call->op->result.found = reply.deleted > 0;
  return true;
}

static const struct etcd_exchange delete_key = {.path = "/etcdserverpb.KV/DeleteRange", .write = true,
                                                .encode = encode_delete, .decode = decode_delete, .done = done_ok};

void etcd_delete(struct etcd *etcd, struct kv_op *op) {
  run(etcd, op, op->condition != KV_ALWAYS ? &kv_etcd_delete_checked : &delete_key);
}

/* The directory's pairs and the directory in one transaction. The root never takes the library's own area along. */
static void encode_delete_tree(struct etcd_call *call, struct pb_writer *out) {
  struct etcd *etcd = call->etcd;
  kv_slice dir = call->op->key;
  struct etcd_key begin, end, key;
  etcd_directory(etcd, dir, &begin, &end);
  if (!dir.size && !etcd->config->leading_slash) {
    etcd_write_delete_in(out, ETCD_THEN, (kv_slice){"\0", 1}, KV_TEXT(".kv/"));
    etcd_write_delete_in(out, ETCD_THEN, KV_TEXT(".kv0"), (kv_slice){"\0", 1});
    return;
  }
  etcd_write_delete_in(out, ETCD_THEN, etcd_slice(&begin), etcd_slice(&end));
  if (call->op->flags & KV_BELOW) return;
  etcd_key_of(etcd, dir, &key);
  etcd_write_delete_in(out, ETCD_THEN, etcd_slice(&key), (kv_slice){NULL, 0});
}

static bool decode_delete_tree(struct etcd_call *call, kv_slice message) {
  struct etcd_txn_reply reply;
  struct kv_result *result = &call->op->result;
  if (!etcd_read_txn(message, &reply) || !reply.succeeded) return false;
  result->revision = reply.header.revision;
  for (size_t i = 0; i < reply.count; i++) {
    struct etcd_delete_reply part;
    if (reply.parts[i].kind != ETCD_PART_DELETE || !etcd_read_delete(reply.parts[i].message, &part)) return false;
    if (part.deleted) result->found = true;
  }
  return true;
}

static const struct etcd_exchange delete_tree = {.path = "/etcdserverpb.KV/Txn", .write = true,
                                                 .encode = encode_delete_tree, .decode = decode_delete_tree,
                                                 .done = done_ok};

void etcd_delete_tree(struct etcd *etcd, struct kv_op *op) {
  run(etcd, op, &delete_tree);
}

/* ------------------------------------------------------------------ list */

struct etcd_listing {
  struct etcd_key begin, end;
  kv_slice dir;
  char *from;               /* the next range begins here */
  size_t from_size, from_capacity;
  uint64_t revision;        /* 0: not known yet */
  uint64_t asked;           /* pairs in the range that is out */
  uint64_t accepted;        /* by the core */
  size_t bytes;             /* of the last message */
  uint64_t pairs;
  bool more;
  bool failed;              /* out of memory */
  /* Shallow: the child that was seen last, and which of its beginnings are keys: "a" may be one, then "a-b" comes,
   * then "a/c". */
  char child[KV_KEY_MAX];
  size_t child_size;
  bool is_key[KV_KEY_MAX + 1];
  bool in_child;            /* the last key lies in the directory `child` */
};

void etcd_listing_free(struct etcd_listing *listing) {
  if (listing) free(listing->from);
  free(listing);
}

static bool set_from(struct etcd_listing *listing, const char *data, size_t size) {
  if (size > listing->from_capacity) {
    char *from = realloc(listing->from, size);
    if (!from) return false;
    listing->from = from;
    listing->from_capacity = size;
  }
  memcpy(listing->from, data, size);
  listing->from_size = size;
  return true;
}

/* The range goes on behind this key. */
static bool set_from_behind(struct etcd_listing *listing, kv_slice key) {
  if (key.size + 1 > listing->from_capacity) {
    size_t capacity = (key.size + 1) * 2;
    char *from = realloc(listing->from, capacity);
    if (!from) return false;
    listing->from = from;
    listing->from_capacity = capacity;
  }
  memcpy(listing->from, key.data, key.size);
  listing->from[key.size] = '\0';
  listing->from_size = key.size + 1;
  return true;
}

static void give(struct etcd_call *call, kv_slice key, const struct etcd_pair *pair, bool dir) {
  struct etcd_listing *listing = call->listing;
  size_t before = kv_etcd->pair_bytes(call->op);
  kv_slice nothing = {NULL, 0};
  if (dir ? !kv_etcd->pair(call->op, key, nothing, 0, 0, true)
          : !kv_etcd->pair(call->op, key, pair->value, pair->revision, pair->created, false))
    listing->failed = true;
  if (kv_etcd->pair_bytes(call->op) > before) listing->accepted++;
}

/* `name` is the key below the directory. */
static void give_shallow(struct etcd_call *call, kv_slice key, kv_slice name, const struct etcd_pair *pair) {
  struct etcd_listing *listing = call->listing;
  const char *slash = name.size ? memchr(name.data, '/', name.size) : NULL;
  size_t size = slash ? (size_t)(slash - name.data) : name.size, common = 0;
  if (size > sizeof listing->child) return; /* no key of ours */
  while (common < size && common < listing->child_size && listing->child[common] == name.data[common]) common++;
  bool same = common == size && common == listing->child_size && listing->in_child;
  for (size_t i = common + 1; i <= listing->child_size; i++) listing->is_key[i] = false;
  memcpy(listing->child, name.data, size);
  listing->child_size = size;
  if (!slash) {
    listing->in_child = false;
    listing->is_key[size] = true;
    give(call, key, pair, false);
    return;
  }
  listing->in_child = true;
  if (same || listing->is_key[size]) return;
  give(call, (kv_slice){key.data, key.size - (name.size - size)}, pair, true);
}

static bool list_pair(void *context, const struct etcd_pair *pair) {
  struct etcd_call *call = context;
  struct etcd_listing *listing = call->listing;
  size_t below = listing->dir.size ? listing->dir.size + 1 : 0;
  kv_slice key = etcd_key_shown(call->etcd, pair->key);
  if (!set_from_behind(listing, pair->key)) listing->failed = true;
  if (key.size <= below) return true;
  if (call->op->flags & KV_SHALLOW)
    give_shallow(call, key, (kv_slice){key.data + below, key.size - below}, pair);
  else
    give(call, key, pair, false);
  return !listing->failed;
}

static void encode_list(struct etcd_call *call, struct pb_writer *out) {
  const struct etcd_listing *listing = call->listing;
  const struct kv_op *op = call->op;
  etcd_write_range(out, &(struct etcd_range){.key = {listing->from, listing->from_size},
                                             .end = etcd_slice(&listing->end),
                                             .limit = listing->asked,
                                             .revision = listing->revision,
                                             .serializable = (op->flags & KV_FAST) != 0,
                                             .keys_only = (op->flags & KV_KEYS_ONLY) != 0});
}

static bool decode_list(struct etcd_call *call, kv_slice message) {
  struct etcd_listing *listing = call->listing;
  struct etcd_range_reply reply;
  if (!etcd_read_range(message, &reply, list_pair, call) && !listing->failed) return false;
  if (reply.more && !reply.pairs) return false; /* would never end */
  etcd_see_cluster(call->etcd, reply.header.cluster);
  if (!listing->revision) listing->revision = reply.header.revision;
  listing->bytes = message.size;
  listing->pairs = reply.pairs;
  listing->more = reply.more;
  return true;
}

/* How many pairs fill what is left of the page. */
static void choose_batch(struct etcd_call *call) {
  struct etcd_listing *listing = call->listing;
  const struct kv_op *op = call->op;
  size_t have = kv_etcd->pair_bytes(op), left = have < ETCD_PAGE_BYTES ? ETCD_PAGE_BYTES - have : 1;
  if (op->flags & KV_SHALLOW) left = ETCD_PAGE_BYTES;
  uint64_t average = call->etcd->pair_average;
  uint64_t batch = average ? left / average + 1 : BATCH_FIRST;
  if (listing->pairs && batch > listing->pairs * 16) batch = listing->pairs * 16;
  if (batch > BATCH_MAX) batch = BATCH_MAX;
  if (op->limit && !(op->flags & KV_SHALLOW) && batch > op->limit - listing->accepted)
    batch = op->limit - listing->accepted;
  listing->asked = batch;
}

static void list_next(struct etcd_call *call);

static void list_done(struct etcd_call *call) {
  struct etcd_listing *listing = call->listing;
  struct kv_op *op = call->op;
  bool shallow = (op->flags & KV_SHALLOW) != 0;
  if (listing->failed) {
    etcd_finish(call, KV_FAILED, "out of memory");
    return;
  }
  if (listing->pairs) call->etcd->pair_average = listing->bytes / listing->pairs + 1;
  bool full = !shallow && listing->accepted &&
              (kv_etcd->pair_bytes(op) >= ETCD_PAGE_BYTES || (op->limit && listing->accepted >= op->limit));
  if (!listing->more || full) {
    op->result.revision = listing->revision;
    op->result.more = listing->more;
    etcd_finish(call, KV_OK, NULL);
    return;
  }
  if (shallow && listing->in_child) { /* step over the rest of that directory */
    struct etcd_key next = listing->begin;
    if (!listing->dir.size && !call->etcd->config->leading_slash) next.size = 0;
    memcpy(next.data + next.size, listing->child, listing->child_size);
    next.size += listing->child_size;
    next.data[next.size++] = '/' + 1;
    if (!set_from(listing, next.data, next.size)) {
      etcd_finish(call, KV_FAILED, "out of memory");
      return;
    }
  }
  list_next(call);
}

/* Perhaps a message over our limit, because the values are unexpectedly large: ask for fewer. */
static bool list_refused(struct etcd_call *call, int status, const char *message) {
  (void)message;
  struct etcd_listing *listing = call->listing;
  if (status != GRPC_GARBLED || listing->asked <= 1) return false;
  listing->asked /= 8;
  if (!listing->asked) listing->asked = 1;
  etcd_next(call, call->exchange);
  return true;
}

static const struct etcd_exchange list = {.path = "/etcdserverpb.KV/Range", .encode = encode_list,
                                          .decode = decode_list, .done = list_done, .refused = list_refused};
static const struct etcd_exchange list_fast = {.path = "/etcdserverpb.KV/Range", .any_member = true,
                                               .encode = encode_list, .decode = decode_list, .done = list_done,
                                               .refused = list_refused};

static void list_next(struct etcd_call *call) {
  choose_batch(call);
  etcd_next(call, call->op->flags & KV_FAST ? &list_fast : &list);
}

/* Portable mode: listing a key that is no directory is refused, as etcd v2 does. */
static bool decode_is_key(struct etcd_call *call, kv_slice message) {
  struct etcd_range_reply reply;
  if (!etcd_read_range(message, &reply, NULL, NULL)) return false;
  call->succeeded = reply.pairs == 0;
  return true;
}

static void is_key_done(struct etcd_call *call) {
  if (call->succeeded)
    list_next(call);
  else
    etcd_finish(call, KV_NOT_DIR, "a key, not a directory");
}

static void encode_is_key(struct etcd_call *call, struct pb_writer *out) {
  struct etcd_key key;
  etcd_key_of(call->etcd, call->op->key, &key);
  etcd_write_range(out, &(struct etcd_range){.key = etcd_slice(&key), .keys_only = true});
}

static const struct etcd_exchange is_key = {
  .path = "/etcdserverpb.KV/Range", .encode = encode_is_key, .decode = decode_is_key, .done = is_key_done};

static int order(const struct etcd_key *left, const struct etcd_key *right) {
  int difference = memcmp(left->data, right->data, left->size < right->size ? left->size : right->size);
  return difference ? difference : (left->size > right->size) - (left->size < right->size);
}

/* Begin behind `after`, which may also lie before or behind all of the directory. */
static void go_behind(const struct etcd *etcd, const struct etcd_listing *listing, kv_slice after,
                      struct etcd_key *from) {
  struct etcd_key behind;
  etcd_key_after(etcd, after, &behind);
  if (order(&behind, from) <= 0) return;
  bool to_the_end = listing->end.size == 1 && listing->end.data[0] == '\0';
  *from = !to_the_end && order(&behind, &listing->end) > 0 ? listing->end : behind;
}

void etcd_list(struct etcd *etcd, struct kv_op *op) {
  struct etcd_call *call = etcd_call_new(etcd, op);
  struct etcd_key from;
  if (!call) return;
  struct etcd_listing *listing = calloc(1, sizeof *listing);
  call->listing = listing;
  if (listing) {
    etcd_directory(etcd, op->key, &listing->begin, &listing->end);
    from = listing->begin;
    if (op->after.size && !(op->flags & KV_SHALLOW)) go_behind(etcd, listing, op->after, &from);
    listing->dir = op->key;
    listing->revision = op->revision;
  }
  if (!listing || !set_from(listing, from.data, from.size))
    etcd_finish(call, KV_FAILED, "out of memory");
  else if ((op->flags & KV_PORTABLE) && op->key.size)
    etcd_next(call, &is_key);
  else
    list_next(call);
}

/* ------------------------------------------------------------------ the first question, and ping */

static void encode_nothing(struct etcd_call *call, struct pb_writer *out) {
  (void)call;
  (void)out;
}

static bool decode_ping(struct etcd_call *call, kv_slice message) {
  struct etcd_status_reply reply;
  if (!etcd_read_status(message, &reply)) return false;
  etcd_see_cluster(call->etcd, reply.header.cluster);
  call->succeeded = reply.leader != 0;
  return true;
}

static void ping_done(struct etcd_call *call) {
  if (call->succeeded)
    etcd_finish(call, KV_OK, NULL);
  else
    etcd_finish(call, KV_UNAVAILABLE, "the server has no leader");
}

static const struct etcd_exchange ping = {.path = "/etcdserverpb.Maintenance/Status", .any_member = true,
                                          .encode = encode_nothing, .decode = decode_ping, .done = ping_done};

void etcd_ping(struct etcd *etcd, struct kv_op *op) {
  run(etcd, op, &ping);
}

static bool decode_probe(struct etcd_call *call, kv_slice message) {
  struct etcd_status_reply reply;
  if (!etcd_read_status(message, &reply)) return false;
  etcd_see_cluster(call->etcd, reply.header.cluster);
  etcd_link_usable(call->link, reply.version, reply.leader != 0);
  return true;
}

/* Any answer by etcd will do: it may want a token even for this. */
static bool probe_refused(struct etcd_call *call, int status, const char *message) {
  struct etcd *etcd = call->etcd;
  struct etcd_link *link = etcd->link;
  kv_slice nothing = {NULL, 0};
  etcd_finish(call, KV_OK, NULL);
  if (!link || link->state != ETCD_LINK_PROBE || status < 0) {
    if (link && link->state == ETCD_LINK_PROBE && !grpc_failed(link->grpc)) etcd_link_condemn(link, message);
  } else if (status == GRPC_UNAUTHENTICATED || status == GRPC_PERMISSION_DENIED || status == GRPC_INVALID_ARGUMENT) {
    etcd_link_usable(link, nothing, true);
  } else {
    etcd_link_condemn(link, status == GRPC_UNIMPLEMENTED ? "the server does not speak etcd's v3 API" : message);
  }
  return true;
}

static const struct etcd_exchange probe = {.path = "/etcdserverpb.Maintenance/Status", .any_member = true,
                                           .encode = encode_nothing, .decode = decode_probe, .done = done_ok,
                                           .refused = probe_refused};

void etcd_probe(struct etcd_link *link) {
  struct etcd_call *call = etcd_call_new(link->etcd, NULL);
  if (call)
    etcd_next_on(call, &probe, link);
  else
    etcd_link_condemn(link, "out of memory");
}
