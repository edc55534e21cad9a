/*
 * queue.c - the steps of a lock queue.
 *
 * The queue is a range of keys, one for each place, attached to the lease of that place and named by it. Whose key
 * was created first holds; the create revision is the token. A lease has one place at a time, so the
 * name of an entry alone tells one of ours whose creation was not answered. Whatever is said about our place
 * is said by a transaction that also compares its create revision: an entry that expired and a queue that moved on
 * are never taken for ours.
 *
 * The foreign layout ("etcd": Go's concurrency.Mutex, etcdctl lock) is this one under a name of the user's: only the
 * range differs. As in Go it holds all keys that begin with NAME/, those of a lock NAME/MORE too.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "etcd.h"

static const kv_slice none = {NULL, 0};

static kv_slice whole(const struct etcd_lock_key *key) {
  return (kv_slice){key->data, key->size};
}

static kv_slice prefix(const struct etcd_lock_key *key) {
  return (kv_slice){key->data, key->prefix};
}

static bool keep_pair(void *context, const struct etcd_pair *pair) {
  *(struct etcd_pair *)context = *pair;
  return true;
}

/* The one pair of a range inside a transaction; zero when there is none. */
static bool part_pair(const struct etcd_txn_reply *reply, size_t index, struct etcd_pair *pair) {
  struct etcd_range_reply range;
  memset(pair, 0, sizeof *pair);
  return index < reply->count && reply->parts[index].kind == ETCD_PART_RANGE &&
         etcd_read_range(reply->parts[index].message, &range, keep_pair, pair);
}

static void compare_entry(struct pb_writer *out, const struct etcd_lock_key *key, uint64_t token) {
  etcd_write_compare(out, &(struct etcd_compare){ETCD_CREATE, whole(key), none, token});
}

/* The first in line. */
static struct etcd_range first_of(const struct etcd_lock_key *key, struct etcd_lock_key *end) {
  etcd_lock_end(key, end);
  return (struct etcd_range){
    .key = prefix(key), .end = prefix(end), .limit = 1, .by_create = ETCD_ASCENDING, .keys_only = true};
}

/* ------------------------------------------------------------------ a semaphore: join and claim */

/* The nearest before us, as many as may hold it. */
static void write_nearest(const struct kv_place *place, bool with_ours, struct pb_writer *out) {
  struct etcd_lock_key key, end;
  etcd_lock_key(place, &key);
  struct etcd_range before = first_of(&key, &end);
  before.by_create = ETCD_DESCENDING;
  before.limit = place->limit + (with_ours ? 1 : 0);
  before.max_create = with_ours ? 0 : place->token - 1;
  etcd_write_range_in(out, ETCD_THEN, &before);
}

struct nearest {
  struct etcd_call *call;
  struct etcd_lock_key key;
  uint64_t token, from;
  uint32_t count;
};

static bool take_nearest(void *context, const struct etcd_pair *pair) {
  struct nearest *nearest = context;
  const struct etcd_lock_key *key = &nearest->key;
  if (pair->created == nearest->token) return true; /* ourselves */
  if (pair->key.size <= key->prefix || memcmp(pair->key.data, key->data, key->prefix) != 0) return false;
  kv_slice name = {pair->key.data + key->prefix, pair->key.size - key->prefix};
  nearest->count++;
  if (!kv_etcd->pair(nearest->call->op, name, name, nearest->from, 1, false)) nearest->call->failure = KV_FAILED;
  return true;
}

/* Whom the range at `index` tells. False: malformed. */
static bool read_nearest(struct etcd_call *call, const struct etcd_txn_reply *reply, size_t index) {
  struct kv_op *op = call->op;
  struct etcd_range_reply range;
  struct nearest nearest = {.call = call, .token = op->place->token, .from = reply->header.revision + 1};
  etcd_lock_key(op->place, &nearest.key);
  if (index >= reply->count || reply->parts[index].kind != ETCD_PART_RANGE ||
      !etcd_read_range(reply->parts[index].message, &range, take_nearest, &nearest))
    return false;
  bool full = nearest.count >= op->place->limit;
  op->result.found = full != (op->kind == KV_QUEUE_CLAIM);
  return true;
}

static void encode_join_many(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_place *place = call->op->place;
  struct etcd_lock_key key;
  etcd_lock_key(place, &key);
  compare_entry(out, &key, 0);
  etcd_write_put_in(out, ETCD_THEN,
                    &(struct etcd_put){.key = whole(&key), .value = place->value, .lease = place->lease->id});
  write_nearest(place, true, out);
  etcd_write_range_in(out, ETCD_ELSE, &(struct etcd_range){.key = whole(&key), .keys_only = true});
}

/* An entry that was there already leaves the question to a claim. */
static bool decode_join_many(struct etcd_call *call, kv_slice message) {
  struct kv_place *place = call->op->place;
  struct etcd_txn_reply reply;
  struct etcd_pair mine = {.created = 0};
  if (!etcd_read_txn(message, &reply)) return false;
  if (!reply.succeeded) {
    if (!part_pair(&reply, 0, &mine) || !mine.created) return false;
    place->token = mine.created;
    return true;
  }
  place->token = reply.header.revision;
  call->op->result.answered_ahead = true;
  return read_nearest(call, &reply, 1);
}

static void encode_claim_one_of(struct etcd_call *call, struct pb_writer *out) {
  struct etcd_lock_key key;
  etcd_lock_key(call->op->place, &key);
  compare_entry(out, &key, call->op->place->token);
  write_nearest(call->op->place, false, out);
}

static bool decode_claim_one_of(struct etcd_call *call, kv_slice message) {
  struct etcd_txn_reply reply;
  if (!etcd_read_txn(message, &reply)) return false;
  if (reply.succeeded) return read_nearest(call, &reply, 0);
  call->failure = KV_LOST;
  return true;
}

/* ------------------------------------------------------------------ join */

static void encode_join(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_place *place = call->op->place;
  struct etcd_lock_key key, end;
  etcd_lock_key(place, &key);
  struct etcd_range first = first_of(&key, &end);
  compare_entry(out, &key, 0);
  etcd_write_put_in(out, ETCD_THEN,
                    &(struct etcd_put){.key = whole(&key), .value = place->value, .lease = place->lease->id});
  etcd_write_range_in(out, ETCD_THEN, &first);
  etcd_write_range_in(out, ETCD_ELSE, &(struct etcd_range){.key = whole(&key), .keys_only = true});
  etcd_write_range_in(out, ETCD_ELSE, &first);
}

static bool decode_join(struct etcd_call *call, kv_slice message) {
  struct kv_place *place = call->op->place;
  struct etcd_txn_reply reply;
  struct etcd_pair mine = {.created = 0}, first;
  if (!etcd_read_txn(message, &reply) || !part_pair(&reply, 1, &first)) return false;
  if (reply.succeeded)
    mine.created = reply.header.revision;
  else if (!part_pair(&reply, 0, &mine))
    return false;
  if (!mine.created || !first.created) return false;
  place->token = mine.created;
  snprintf(place->ticket, sizeof place->ticket, "%" PRIx64, place->lease->id);
  call->op->result.answered_ahead = first.created == mine.created; /* nobody; who else it is, AHEAD tells */
  call->op->result.found = false;
  return true;
}

static void done(struct etcd_call *call) {
  if (call->failure == KV_LOST)
    etcd_finish(call, KV_LOST, "our entry in the queue is gone");
  else if (call->failure != KV_OK)
    etcd_finish(call, call->failure, "the queue could not be read");
  else
    etcd_finish(call, KV_OK, NULL);
}

static const struct etcd_exchange join = {
  .path = "/etcdserverpb.KV/Txn", .write = true, .encode = encode_join, .decode = decode_join, .done = done};

static const struct etcd_exchange join_many = {
  .path = "/etcdserverpb.KV/Txn", .write = true, .encode = encode_join_many, .decode = decode_join_many, .done = done};

static const struct etcd_exchange claim_one_of = {
  .path = "/etcdserverpb.KV/Txn", .encode = encode_claim_one_of, .decode = decode_claim_one_of, .done = done};

/* ------------------------------------------------------------------ ahead */

static void encode_ahead(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_place *place = call->op->place;
  struct etcd_lock_key key, end;
  etcd_lock_key(place, &key);
  struct etcd_range before = first_of(&key, &end);
  before.by_create = ETCD_DESCENDING;
  before.max_create = place->token - 1;
  compare_entry(out, &key, place->token);
  etcd_write_range_in(out, ETCD_THEN, &before);
}

static bool decode_ahead(struct etcd_call *call, kv_slice message) {
  struct kv_place *place = call->op->place;
  struct etcd_txn_reply reply;
  struct etcd_pair ahead;
  struct etcd_lock_key key;
  if (!etcd_read_txn(message, &reply)) return false;
  if (!reply.succeeded) {
    call->failure = KV_LOST;
    return true;
  }
  if (!part_pair(&reply, 0, &ahead)) return false;
  call->op->result.found = ahead.created != 0;
  if (!ahead.created) return true;
  etcd_lock_key(place, &key);
  if (ahead.key.size < key.prefix || memcmp(ahead.key.data, key.data, key.prefix) != 0) return false;
  kv_slice name = {ahead.key.data + key.prefix, ahead.key.size - key.prefix};
  if (name.size >= sizeof place->ahead || memchr(name.data, '\0', name.size)) {
    call->failure = KV_FAILED; /* somebody else's key in our queue */
    return true;
  }
  memcpy(place->ahead, name.data, name.size);
  place->ahead[name.size] = '\0';
  place->ahead_revision = reply.header.revision + 1;
  return true;
}

static const struct etcd_exchange ahead = {
  .path = "/etcdserverpb.KV/Txn", .encode = encode_ahead, .decode = decode_ahead, .done = done};

/* ------------------------------------------------------------------ claim */

static void encode_claim(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_place *place = call->op->place;
  struct etcd_lock_key key, end;
  etcd_lock_key(place, &key);
  struct etcd_range first = first_of(&key, &end);
  compare_entry(out, &key, place->token);
  etcd_write_range_in(out, ETCD_THEN, &first);
}

static bool decode_claim(struct etcd_call *call, kv_slice message) {
  struct etcd_txn_reply reply;
  struct etcd_pair first;
  if (!etcd_read_txn(message, &reply)) return false;
  if (!reply.succeeded) {
    call->failure = KV_LOST;
    return true;
  }
  if (!part_pair(&reply, 0, &first)) return false;
  call->op->result.found = first.created == call->op->place->token;
  return true;
}

static const struct etcd_exchange claim = {
  .path = "/etcdserverpb.KV/Txn", .encode = encode_claim, .decode = decode_claim, .done = done};

/* ------------------------------------------------------------------ leave */

/* Without a token the join was not answered: the name is ours alone all the same. */
static void encode_leave(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_place *place = call->op->place;
  struct etcd_lock_key key;
  etcd_lock_key(place, &key);
  if (place->token) compare_entry(out, &key, place->token);
  etcd_write_delete_in(out, ETCD_THEN, whole(&key), none);
}

static bool decode_leave(struct etcd_call *call, kv_slice message) {
  struct etcd_txn_reply reply;
  struct etcd_delete_reply part = {.deleted = 0};
  if (!etcd_read_txn(message, &reply)) return false;
  if (reply.succeeded && (reply.count != 1 || reply.parts[0].kind != ETCD_PART_DELETE ||
                          !etcd_read_delete(reply.parts[0].message, &part)))
    return false;
  call->op->result.found = part.deleted > 0;
  return true;
}

static const struct etcd_exchange leave = {
  .path = "/etcdserverpb.KV/Txn", .write = true, .encode = encode_leave, .decode = decode_leave, .done = done};

/* ------------------------------------------------------------------ head */

static void encode_head(struct etcd_call *call, struct pb_writer *out) {
  struct etcd_lock_key key, end;
  etcd_lock_key(call->op->place, &key);
  struct etcd_range first = first_of(&key, &end);
  first.keys_only = false;
  etcd_write_range(out, &first);
}

static bool take_head(void *context, const struct etcd_pair *pair) {
  struct etcd_call *call = context;
  const struct kv_place *place = call->op->place;
  /* The token is the revision of a lock's holder. */
  if (!kv_etcd->pair(call->op, place->name, pair->value, pair->created, pair->created, false))
    call->failure = KV_FAILED;
  return true;
}

static bool decode_head(struct etcd_call *call, kv_slice message) {
  struct etcd_range_reply reply;
  return etcd_read_range(message, &reply, take_head, call) && reply.pairs <= 1;
}

static const struct etcd_exchange head = {
  .path = "/etcdserverpb.KV/Range", .encode = encode_head, .decode = decode_head, .done = done};

/* ------------------------------------------------------------------ proof, while it is held */

static void encode_proof(struct etcd_call *call, struct pb_writer *out) {
  struct etcd_lock_key key;
  etcd_lock_key(call->op->place, &key);
  etcd_write_range(out, &(struct etcd_range){.key = whole(&key), .keys_only = true});
}

static bool decode_proof(struct etcd_call *call, kv_slice message) {
  struct etcd_range_reply reply;
  struct etcd_pair mine = {.created = 0};
  if (!etcd_read_range(message, &reply, keep_pair, &mine)) return false;
  if (mine.created != call->op->place->token) call->failure = KV_LOST;
  return true;
}

static const struct etcd_exchange proof = {
  .path = "/etcdserverpb.KV/Range", .urgent = true, .encode = encode_proof, .decode = decode_proof, .done = done};

/* A keep-alive is answered by the leader alone, and tells nothing of the entry: this read is a quorum's, and does. */
void etcd_queue_prove(struct etcd_call *call) {
  etcd_next(call, &proof);
}

/* ------------------------------------------------------------------ which step */

void etcd_queue_step(struct etcd *etcd, struct kv_op *op) {
  const struct etcd_exchange *exchange;
  switch (op->kind) {
    case KV_QUEUE_JOIN: exchange = op->place->limit ? &join_many : &join; break;
    case KV_QUEUE_AHEAD: exchange = &ahead; break;
    case KV_QUEUE_CLAIM: exchange = op->place->limit ? &claim_one_of : &claim; break;
    case KV_QUEUE_LEAVE: exchange = &leave; break;
    case KV_QUEUE_HEAD: exchange = &head; break;
    default: etcd_watch_place(etcd, op); return;
  }
  struct etcd_call *call = etcd_call_new(etcd, op);
  if (call) etcd_next(call, exchange);
}
