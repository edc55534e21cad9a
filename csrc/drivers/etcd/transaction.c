/*
 * transaction.c - transactions, and the puts and deletes that are conditional.
 *
 * All of them are one Txn: compares; what to do when all hold; and, in the other branch, a range for each compare,
 * read at the same revision, which tells the one that failed. The conditions of an operation are not stored anywhere:
 * conditions() walks over them again, once to write them and once to read what failed, in the same order.
 *
 * In portable mode a put also requires that no key stands where a directory is needed, and the reverse, as etcd v2
 * does.
 */
#include <string.h>

#include "etcd.h"

/* One condition: the compare that must hold, what it means when it does not, and which of the transaction's checks it
 * is (or -1). */
struct condition {
  struct etcd_compare compare;
  kv_code code;
  int check;
};

struct walk {
  /* False stops the walk. */
  bool (*visit)(struct walk *walk, const struct condition *condition);
  struct pb_writer *out;
  const struct etcd_txn_reply *reply;
  size_t index;
  struct condition failed;
  bool found, malformed;
};

/* ------------------------------------------------------------------ the conditions of an operation */

static bool is_ancestor(kv_slice ancestor, kv_slice key) {
  return key.size > ancestor.size && key.data[ancestor.size] == '/' &&
         memcmp(key.data, ancestor.data, ancestor.size) == 0;
}

/* The parts of the transaction before the `index`-th require the same of this ancestor already. */
static bool is_settled(const struct kv_op *op, size_t index, kv_slice ancestor) {
  for (size_t i = 0; i < index && i < op->part_count; i++)
    if (op->parts[i].type == KV_PART_PUT && is_ancestor(ancestor, op->parts[i].key)) return true;
  return false;
}

static bool absent(struct walk *walk, kv_slice key, kv_slice end, kv_code code, int check) {
  return walk->visit(walk, &(struct condition){{ETCD_CREATE, key, end, 0}, code, check});
}

/* What portable mode wants of a put. */
static bool portable(const struct etcd *etcd, const struct kv_op *op, size_t index, kv_slice key, struct walk *walk) {
  struct etcd_key begin, end;
  for (size_t i = 1; i < key.size; i++) {
    kv_slice ancestor = {key.data, i};
    if (key.data[i] != '/' || is_settled(op, index, ancestor)) continue;
    etcd_key_of(etcd, ancestor, &begin);
    if (!absent(walk, etcd_slice(&begin), (kv_slice){NULL, 0}, KV_NOT_DIR, -1)) return false;
  }
  etcd_directory(etcd, key, &begin, &end);
  return absent(walk, etcd_slice(&begin), etcd_slice(&end), KV_IS_DIR, -1);
}

static bool part_condition(const struct etcd *etcd, const struct kv_op *op, size_t index, struct walk *walk) {
  const struct kv_part *part = &op->parts[index];
  const kv_slice none = {NULL, 0};
  struct etcd_lock_key place;
  struct etcd_key key;
  etcd_key_of(etcd, part->key, &key);
  switch (part->type) {
    case KV_PART_CHECK:
      return walk->visit(walk, &(struct condition){{ETCD_MOD, etcd_slice(&key), none, part->revision},
                                                   KV_MODIFIED, (int)index});
    case KV_PART_ABSENT: return absent(walk, etcd_slice(&key), none, KV_MODIFIED, (int)index);
    case KV_PART_GUARD:
      etcd_lock_key(part->place, &place);
      return walk->visit(walk, &(struct condition){{ETCD_CREATE, {place.data, place.size}, none, part->place->token},
                                                   KV_MODIFIED, (int)index});
    case KV_PART_PUT: return !(op->flags & KV_PORTABLE) || portable(etcd, op, index, part->key, walk);
    default: return true;
  }
}

static void conditions(const struct etcd *etcd, const struct kv_op *op, struct walk *walk) {
  const kv_slice none = {NULL, 0};
  struct etcd_key key;
  if (op->kind == KV_TXN) {
    for (size_t i = 0; i < op->part_count; i++)
      if (!part_condition(etcd, op, i, walk)) return;
    return;
  }
  etcd_key_of(etcd, op->key, &key);
  if (op->condition == KV_IF_ABSENT && !absent(walk, etcd_slice(&key), none, KV_EXISTS, -1)) return;
  if (op->condition == KV_IF_REVISION &&
      !walk->visit(walk, &(struct condition){{ETCD_MOD, etcd_slice(&key), none, op->revision}, KV_MODIFIED, -1}))
    return;
  if (op->kind == KV_PUT && (op->flags & KV_PORTABLE)) portable(etcd, op, 0, op->key, walk);
}

/* ------------------------------------------------------------------ writing and reading them */

static bool write_condition(struct walk *walk, const struct condition *condition) {
  const struct etcd_compare *compare = &condition->compare;
  etcd_write_compare(walk->out, compare);
  etcd_write_range_in(walk->out, ETCD_ELSE,
                      &(struct etcd_range){.key = compare->key, .end = compare->end, .limit = 1, .keys_only = true});
  return true;
}

static bool keep_pair(void *context, const struct etcd_pair *pair) {
  *(struct etcd_pair *)context = *pair;
  return true;
}

static bool read_condition(struct walk *walk, const struct condition *condition) {
  struct etcd_range_reply range;
  struct etcd_pair pair = {.created = 0};
  size_t index = walk->index++;
  if (index >= walk->reply->count || walk->reply->parts[index].kind != ETCD_PART_RANGE ||
      !etcd_read_range(walk->reply->parts[index].message, &range, keep_pair, &pair)) {
    walk->malformed = true;
    return false;
  }
  uint64_t is = condition->compare.target == ETCD_CREATE ? pair.created : pair.revision;
  if (is == condition->compare.value) return true;
  walk->failed = *condition;
  walk->found = true;
  return false;
}

static void write_conditions(struct etcd_call *call, struct pb_writer *out) {
  struct walk walk = {.visit = write_condition, .out = out};
  conditions(call->etcd, call->op, &walk);
}

/* The compares did not hold: which? False: malformed. */
static bool find_failure(struct etcd_call *call, const struct etcd_txn_reply *reply) {
  struct walk walk = {.visit = read_condition, .reply = reply};
  conditions(call->etcd, call->op, &walk);
  if (walk.malformed || !walk.found) return false;
  call->failure = walk.failed.code;
  call->op->result.failed_check = walk.failed.check;
  return true;
}

static void finish_checked(struct etcd_call *call) {
  switch (call->failure) {
    case KV_OK: etcd_finish(call, KV_OK, NULL); return;
    case KV_EXISTS: etcd_finish(call, KV_EXISTS, "the key is there"); return;
    case KV_NOT_DIR: etcd_finish(call, KV_NOT_DIR, "a key stands where a directory is needed"); return;
    case KV_FAILED: etcd_finish(call, KV_FAILED, "out of memory"); return;
    case KV_IS_DIR: etcd_finish(call, KV_IS_DIR, "the key is a directory"); return;
    default: etcd_finish(call, KV_MODIFIED, "the key was changed, or is gone"); return;
  }
}

/* ------------------------------------------------------------------ put and delete with conditions */

static void encode_put(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_op *op = call->op;
  struct etcd_key key;
  write_conditions(call, out);
  etcd_key_of(call->etcd, op->key, &key);
  etcd_write_put_in(out, ETCD_THEN, &(struct etcd_put){.key = etcd_slice(&key),
                                                       .value = op->value,
                                                       .lease = op->lease ? op->lease->id : call->lease});
  if (op->condition != KV_IF_ABSENT) /* when did this life of the key begin? */
    etcd_write_range_in(out, ETCD_THEN, &(struct etcd_range){.key = etcd_slice(&key), .keys_only = true});
}

static bool decode_put(struct etcd_call *call, kv_slice message) {
  struct etcd_txn_reply reply;
  struct kv_result *result = &call->op->result;
  struct etcd_range_reply range;
  struct etcd_pair pair = {.created = 0};
  if (!etcd_read_txn(message, &reply)) return false;
  if (!reply.succeeded) return find_failure(call, &reply);
  result->revision = result->created = reply.header.revision;
  if (call->op->condition == KV_IF_ABSENT) return true;
  if (reply.count != 2 || reply.parts[1].kind != ETCD_PART_RANGE ||
      !etcd_read_range(reply.parts[1].message, &range, keep_pair, &pair) || !pair.created)
    return false;
  result->created = pair.created;
  return true;
}

const struct etcd_exchange kv_etcd_put_checked = {
  .path = "/etcdserverpb.KV/Txn", .write = true, .encode = encode_put, .decode = decode_put, .done = finish_checked};

static void encode_delete(struct etcd_call *call, struct pb_writer *out) {
  struct etcd_key key;
  write_conditions(call, out);
  etcd_key_of(call->etcd, call->op->key, &key);
  etcd_write_delete_in(out, ETCD_THEN, etcd_slice(&key), (kv_slice){NULL, 0});
}

static bool decode_delete(struct etcd_call *call, kv_slice message) {
  struct etcd_txn_reply reply;
  if (!etcd_read_txn(message, &reply)) return false;
  if (!reply.succeeded) return find_failure(call, &reply);
  call->op->result.revision = reply.header.revision;
  call->op->result.found = true;
  return true;
}

const struct etcd_exchange kv_etcd_delete_checked = {.path = "/etcdserverpb.KV/Txn", .write = true,
                                                     .encode = encode_delete, .decode = decode_delete,
                                                     .done = finish_checked};

/* ------------------------------------------------------------------ transactions */

static void encode_txn(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_op *op = call->op;
  struct etcd_key key;
  write_conditions(call, out);
  for (size_t i = 0; i < op->part_count; i++) {
    const struct kv_part *part = &op->parts[i];
    etcd_key_of(call->etcd, part->key, &key);
    if (part->type == KV_PART_DELETE) etcd_write_delete_in(out, ETCD_THEN, etcd_slice(&key), (kv_slice){NULL, 0});
    if (part->type != KV_PART_PUT) continue;
    etcd_write_put_in(out, ETCD_THEN, &(struct etcd_put){.key = etcd_slice(&key), .value = part->value,
                                                         .lease = etcd_part_lease(call, part)});
    /* When did this life of the key begin? */
    etcd_write_range_in(out, ETCD_THEN, &(struct etcd_range){.key = etcd_slice(&key), .keys_only = true});
  }
}

/* The answers to the puts: each is followed by its key's pair. False: malformed. */
static bool read_written(struct etcd_call *call, const struct etcd_txn_reply *reply) {
  struct kv_op *op = call->op;
  size_t index = 0;
  for (size_t i = 0; i < op->part_count; i++) {
    const struct kv_part *part = &op->parts[i];
    struct etcd_range_reply range;
    struct etcd_pair pair = {.created = 0};
    if (part->type == KV_PART_DELETE) index++;
    if (part->type != KV_PART_PUT) continue;
    index += 2;
    if (index > reply->count || reply->parts[index - 1].kind != ETCD_PART_RANGE ||
        !etcd_read_range(reply->parts[index - 1].message, &range, keep_pair, &pair) || !pair.created)
      return false;
    if (!kv_etcd->pair(op, part->key, (kv_slice){"", 0}, op->result.revision, pair.created, false))
      call->failure = KV_FAILED;
  }
  return true;
}

static bool decode_txn(struct etcd_call *call, kv_slice message) {
  struct etcd_txn_reply reply;
  call->op->result.failed_check = -1;
  if (!etcd_read_txn(message, &reply)) return false;
  if (!reply.succeeded) return find_failure(call, &reply);
  call->op->result.revision = reply.header.revision;
  return read_written(call, &reply);
}

static const struct etcd_exchange txn = {
  .path = "/etcdserverpb.KV/Txn", .write = true, .encode = encode_txn, .decode = decode_txn, .done = finish_checked};

void etcd_txn_go(struct etcd_call *call) {
  etcd_next(call, &txn);
}

void etcd_txn(struct etcd *etcd, struct kv_op *op) {
  struct etcd_call *call = etcd_call_new(etcd, op);
  if (call) etcd_write_on_lease(call);
}
