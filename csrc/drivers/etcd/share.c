/*
 * share.c - strong reads of keys that are asked for at once go together, as one transaction that only reads.
 *
 * A call of its own costs the server ten times what the read in it does. So what is asked for in one turn of the
 * reactor is one call, and only a few are out at a time on a connection: what comes meanwhile shares the next one.
 * A key that several ask for is read once. A read-only transaction is as strong as a read: the member asks the leader
 * how far the log goes, and answers when it has come that far.
 *
 * One caller after the other never waits for anybody, and sends a plain read. So do all whose shared read was refused
 * for what one of them asked.
 */
#include <stdio.h>
#include <string.h>

#include "etcd.h"

#define OUT_MAX 4        /* reads that are out on a connection before others wait */
#define PARTS_MAX 64     /* keys in a shared one; etcd's default is 128 */
#define ANSWER_AIM ((size_t)1 << 20)

/* By the plain read. */
static void on_its_own(struct etcd_call *call) {
  call->batch = NULL;
  kv_list_remove(&call->wait);
  etcd_next(call, &kv_etcd_get);
}

/* ------------------------------------------------------------------ the shared call */

static struct etcd_call *first_of(const struct kv_list *list) {
  return kv_list_empty(list) ? NULL : kv_list_of(struct etcd_call, wait, list->next);
}

static bool is_same(const struct kv_op *a, const struct kv_op *b) {
  return a->key.size == b->key.size && memcmp(a->key.data, b->key.data, a->key.size) == 0 &&
         ((a->flags ^ b->flags) & KV_KEYS_ONLY) == 0;
}

static void encode_shared(struct etcd_call *batch, struct pb_writer *out) {
  unsigned next = 0;
  for (const struct kv_list *node = batch->members.next; node != &batch->members; node = node->next) {
    const struct etcd_call *call = kv_list_of(struct etcd_call, wait, node);
    struct etcd_key key;
    if (call->part != next) continue; /* as one before */
    next++;
    etcd_key_of(call->etcd, call->op->key, &key);
    etcd_write_range_in(out, ETCD_THEN, &(struct etcd_range){.key = etcd_slice(&key),
                                                             .keys_only = (call->op->flags & KV_KEYS_ONLY) != 0});
  }
}

static bool decode_shared(struct etcd_call *batch, kv_slice message) {
  struct etcd *etcd = batch->etcd;
  struct etcd_txn_reply reply;
  if (!etcd_read_txn(message, &reply) || !reply.succeeded || !reply.count) return false;
  etcd_see_cluster(etcd, reply.header.cluster);
  for (const struct kv_list *node = batch->members.next; node != &batch->members; node = node->next) {
    struct etcd_call *call = kv_list_of(struct etcd_call, wait, node);
    const struct etcd_part *part = &reply.parts[call->part];
    struct etcd_range_reply range;
    if (call->part >= reply.count || part->kind != ETCD_PART_RANGE) return false;
    if (!etcd_read_range(part->message, &range, etcd_take_pair, call) || range.pairs > 1) return false;
    call->op->result.revision = reply.header.revision;
  }
  etcd_note_read(etcd, message.size / reply.count);
  return true;
}

/* Giving one his answer may end others. */
static void shared_done(struct etcd_call *batch) {
  struct etcd_call *call;
  while ((call = first_of(&batch->members))) kv_etcd_get.done(call);
  etcd_finish(batch, KV_OK, NULL);
}

/* Is it about what was asked, rather than about the connection or the member? Then each learns for itself. */
static bool is_about_request(struct etcd_call *batch, int status, const char *message) {
  struct etcd *etcd = batch->etcd;
  if (etcd_token_refused(etcd, status, message)) {
    etcd_token_drop(etcd, batch->token_number);
    return true;
  }
  kv_code code = etcd_code(status, message, false);
  if (code == KV_UNAVAILABLE && status != GRPC_GARBLED) return false;
  if (status == GRPC_GARBLED || status == GRPC_RESOURCE_EXHAUSTED) /* larger than what we take */
    etcd->read_bytes = ANSWER_AIM;
  else if (code == KV_DENIED || status == GRPC_INVALID_ARGUMENT) /* one of the keys, or so many at once */
    etcd->apart = true;
  return true;
}

static bool shared_refused(struct etcd_call *batch, int status, const char *message) {
  char told[KV_MESSAGE_MAX];
  struct etcd_call *call;
  bool again = is_about_request(batch, status, message);
  snprintf(told, sizeof told, "%s", message);
  while ((call = first_of(&batch->members))) {
    if (again) on_its_own(call);
    else etcd_finish(call, etcd_code(status, told, false), "%s", told);
  }
  etcd_finish(batch, KV_OK, NULL);
  return true;
}

static const struct etcd_exchange shared = {.path = "/etcdserverpb.KV/Txn", .counted = true, .encode = encode_shared,
                                            .decode = decode_shared, .done = shared_done,
                                            .refused = shared_refused};

/* ------------------------------------------------------------------ who goes together */

/* How much a read gives, by the last ones. */
void etcd_note_read(struct etcd *etcd, size_t bytes) {
  etcd->read_bytes = (etcd->read_bytes * 7 + bytes) / 8;
}

/* So many that the answer is not too large. */
static unsigned parts_at_once(const struct etcd *etcd) {
  size_t parts = etcd->read_bytes ? ANSWER_AIM / etcd->read_bytes : PARTS_MAX;
  return parts < 1 ? 1 : parts > PARTS_MAX ? PARTS_MAX : (unsigned)parts;
}

/* Those who wait become members of this call, with a part of the transaction for each key. Returns how many. */
static size_t gather(struct etcd *etcd, struct etcd_call *batch) {
  const struct kv_op *parts[PARTS_MAX];
  unsigned count = 0, most = parts_at_once(etcd);
  size_t members = 0;
  struct etcd_call *call;
  while ((call = first_of(&etcd->reads))) {
    unsigned part = 0;
    while (part < count && !is_same(parts[part], call->op)) part++;
    if (part == most) break;
    if (part == count) parts[count++] = call->op;
    call->part = part;
    call->batch = batch;
    kv_list_move(&batch->members, &call->wait);
    members++;
  }
  return members;
}

static void send_next(struct etcd *etcd) {
  bool alone = etcd->reads.next->next == &etcd->reads;
  struct etcd_call *batch = alone || etcd->apart ? NULL : etcd_call_new(etcd, NULL);
  if (!batch) {
    on_its_own(first_of(&etcd->reads));
  } else if (gather(etcd, batch) == 1) {
    on_its_own(first_of(&batch->members));
    etcd_finish(batch, KV_OK, NULL);
  } else {
    etcd_next_on(batch, &shared, etcd->link);
  }
}

void etcd_share_get(struct etcd_call *call) {
  kv_list_move(&call->etcd->reads, &call->wait);
  etcd_wake(call->etcd);
}

void etcd_share_turn(struct etcd *etcd) {
  struct kv_list batch;
  while (!kv_list_empty(&etcd->reads) && etcd_ready(etcd) && (etcd->apart || etcd->link->reads < OUT_MAX))
    send_next(etcd);
  if (etcd_ready(etcd)) return;
  kv_list_init(&batch); /* they wait with all others */
  while (!kv_list_empty(&etcd->reads)) kv_list_move(&batch, etcd->reads.next);
  while (!kv_list_empty(&batch)) on_its_own(first_of(&batch));
}

void etcd_share_fail(struct etcd *etcd, kv_code code, const char *problem) {
  struct etcd_call *call;
  while ((call = first_of(&etcd->reads))) etcd_finish(call, code, "%s", problem);
}

/* When nobody is left, the call for all ends too. */
void etcd_share_cancel(struct etcd_call *call) {
  struct etcd_call *batch = call->batch;
  if (batch->link) etcd_link_doubt(batch->link);
  etcd_finish(call, KV_CANCELLED, "cancelled");
  if (batch->state != ETCD_CALL_RUNNING || batch->cancelled || !kv_list_empty(&batch->members)) return;
  batch->cancelled = true;
  grpc_cancel(batch->link->grpc, &batch->grpc);
  etcd_wake(batch->etcd);
}
