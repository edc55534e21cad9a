/*
 * lease.c - leases: grant, revoke, and one stream of keep-alives for all of them.
 *
 * Ids are chosen by us, so that a grant whose answer was lost is recognised when it is made again. The server may
 * raise a TTL; what it returns counts. A keep-alive that answers TTL 0 says that the lease is gone.
 */
#include <inttypes.h>
#include <string.h>

#include "etcd.h"

#define TTL_MAX 9e9 /* etcd's own limit, seconds */

static uint64_t whole_seconds(double seconds) {
  if (!(seconds > 1)) return 1;
  if (seconds >= TTL_MAX) return (uint64_t)TTL_MAX;
  uint64_t whole = (uint64_t)seconds;
  return (double)whole < seconds ? whole + 1 : whole;
}

/* ------------------------------------------------------------------ grant */

static void encode_grant(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_lease_ref *lease = call->op->lease;
  etcd_write_grant(out, lease->id, whole_seconds(lease->ttl));
}

static bool decode_grant(struct etcd_call *call, kv_slice message) {
  struct etcd_lease_reply reply;
  if (!etcd_read_lease(message, &reply) || reply.ttl <= 0 || reply.id != call->lease + call->grants) return false;
  call->granted = (uint64_t)reply.ttl;
  return true;
}

static void grant_done(struct etcd_call *call) {
  if (!call->op) { /* cancelled meanwhile: nobody wants it */
    etcd_lease_abandon(call->etcd, call->lease);
  } else {
    call->op->lease->granted = (double)call->granted;
  }
  call->granted = 0;
  etcd_finish(call, KV_OK, NULL);
}

/* "lease already exists": an earlier try got through. The server cannot have granted less than was asked. */
static bool grant_refused(struct etcd_call *call, int status, const char *message) {
  if (status != GRPC_FAILED_PRECONDITION || !strstr(message, "lease already exists") || !call->op) return false;
  call->op->lease->granted = (double)whole_seconds(call->op->lease->ttl);
  etcd_finish(call, KV_OK, NULL);
  return true;
}

static const struct etcd_exchange grant = {.path = "/etcdserverpb.Lease/LeaseGrant", .write = true, .undo = true,
                                           .encode = encode_grant, .decode = decode_grant, .done = grant_done,
                                           .refused = grant_refused};

void etcd_lease_grant(struct etcd *etcd, struct kv_op *op) {
  struct etcd_call *call = etcd_call_new(etcd, op);
  if (!call) return;
  call->lease = op->lease->id;
  etcd_next(call, &grant);
}

/* ------------------------------------------------------------------ leases of writes with a TTL */

/* A put with a TTL has one lease, a transaction one for each of the different TTLs of its puts, in the order of their
 * first. */

static bool is_first_of_its_ttl(const struct kv_op *op, size_t index) {
  double ttl = op->parts[index].ttl;
  for (size_t i = 0; i < index; i++)
    if (op->parts[i].ttl == ttl) return false;
  return ttl > 0;
}

/* The TTL of the number-th lease, or 0 when there is none. */
static double ttl_of(const struct kv_op *op, unsigned number) {
  if (op->kind == KV_PUT) return number ? 0 : op->ttl;
  for (size_t i = 0; i < op->part_count; i++)
    if (is_first_of_its_ttl(op, i) && number-- == 0) return op->parts[i].ttl;
  return 0;
}

uint64_t etcd_part_lease(const struct etcd_call *call, const struct kv_part *part) {
  uint64_t number = 0;
  if (part->lease) return part->lease->id;
  if (!(part->ttl > 0)) return 0;
  for (size_t i = 0; call->op->parts[i].ttl != part->ttl; i++) number += is_first_of_its_ttl(call->op, i);
  return call->lease + number;
}

static void encode_ttl_grant(struct etcd_call *call, struct pb_writer *out) {
  etcd_write_grant(out, call->lease + call->grants, whole_seconds(ttl_of(call->op, call->grants)));
}

void etcd_ttl_abandon(struct etcd_call *call) {
  for (unsigned i = 0; i < call->grants; i++) etcd_lease_abandon(call->etcd, call->lease + i);
  call->grants = 0;
}

static void ttl_grant_done(struct etcd_call *call);

static const struct etcd_exchange ttl_grant = {.path = "/etcdserverpb.Lease/LeaseGrant", .undo = true,
                                               .encode = encode_ttl_grant, .decode = decode_grant,
                                                .done = ttl_grant_done};

static void ttl_grant_done(struct etcd_call *call) {
  struct kv_op *op = call->op;
  call->grants++;
  if (!op) {
    etcd_ttl_abandon(call);
    etcd_finish(call, KV_OK, NULL);
    return;
  }
  /* Where the server's TTL had to be longer, the core deletes on time; the second is the server's own slackness. */
  double late = (double)call->granted - ttl_of(op, call->grants - 1) + 1.0;
  if (late > 1.0 && late > op->result.ttl_late) op->result.ttl_late = late;
  etcd_write_on_lease(call);
}

void etcd_write_on_lease(struct etcd_call *call) {
  const struct kv_op *op = call->op;
  if (ttl_of(op, call->grants) > 0) {
    if (!call->lease) call->lease = (kv_etcd->random() >> 2) | 1; /* positive, with room for those that follow */
    etcd_next(call, &ttl_grant);
  } else if (op->kind == KV_PUT) {
    etcd_put_go(call);
  } else {
    etcd_txn_go(call);
  }
}

/* ------------------------------------------------------------------ revoke */

static void encode_revoke(struct etcd_call *call, struct pb_writer *out) {
  etcd_write_lease(out, call->lease);
}

static bool decode_revoke(struct etcd_call *call, kv_slice message) {
  (void)call;
  struct etcd_lease_reply reply;
  return etcd_read_lease(message, &reply);
}

static void revoke_done(struct etcd_call *call) {
  etcd_finish(call, KV_OK, NULL);
}

static bool revoke_refused(struct etcd_call *call, int status, const char *message) {
  if (status != GRPC_NOT_FOUND || !strstr(message, "lease not found")) return false;
  etcd_finish(call, KV_OK, NULL);
  return true;
}

static const struct etcd_exchange revoke = {.path = "/etcdserverpb.Lease/LeaseRevoke", .write = true, .undo = true,
                                            .encode = encode_revoke, .decode = decode_revoke, .done = revoke_done,
                                            .refused = revoke_refused};

void etcd_lease_revoke(struct etcd *etcd, struct kv_op *op) {
  struct etcd_call *call = etcd_call_new(etcd, op);
  if (!call) return;
  call->lease = op->lease->id;
  etcd_next(call, &revoke);
}

void etcd_lease_abandon(struct etcd *etcd, uint64_t id) {
  struct etcd_call *call = etcd->closed ? NULL : etcd_call_new(etcd, NULL);
  if (!call) return; /* it will expire */
  call->lease = id;
  etcd_next(call, &revoke);
}

/* ------------------------------------------------------------------ keep-alive: the stream */

/* Calls leave the list before they are answered: what an answer starts may renew again. */
static void fail_renewals(struct etcd *etcd, kv_code code, const char *problem) {
  struct kv_list batch;
  kv_list_init(&batch);
  while (!kv_list_empty(&etcd->leases.renewals)) kv_list_move(&batch, etcd->leases.renewals.next);
  while (!kv_list_empty(&batch)) {
    struct etcd_call *call = kv_list_of(struct etcd_call, node, batch.next);
    call->state = ETCD_CALL_IDLE;
    etcd_finish(call, code, "%s", problem);
  }
}

static void renewed(struct etcd_call *call, int64_t ttl) {
  kv_list_remove(&call->node);
  call->state = ETCD_CALL_IDLE;
  if (!call->op) {
    etcd_finish(call, KV_OK, NULL);
    return;
  }
  struct kv_lease_ref *lease = call->op->lease;
  if (ttl <= 0) {
    etcd_finish(call, KV_LOST, "the lease has expired or was revoked");
    return;
  }
  lease->granted = (double)ttl;
  if (call->op->place && call->op->place->token)
    etcd_queue_prove(call);
  else
    etcd_finish(call, KV_OK, NULL);
}

static bool on_message(struct grpc_call *grpc, const uint8_t *data, size_t size) {
  struct etcd *etcd = kv_list_of(struct etcd_stream, grpc, grpc)->etcd;
  struct etcd_lease_reply reply;
  if (!etcd_read_lease((kv_slice){(const char *)data, size}, &reply)) return false;
  for (struct kv_list *node = etcd->leases.renewals.next; node != &etcd->leases.renewals; node = node->next) {
    struct etcd_call *call = kv_list_of(struct etcd_call, node, node);
    if (call->lease != reply.id) continue;
    renewed(call, reply.ttl);
    break;
  }
  return true;
}

/* An earlier renewal of the same lease was given up, and is not answered yet. */
static bool is_stuck(const struct etcd_call *call) {
  const struct kv_list *list = &call->etcd->leases.renewals;
  for (const struct kv_list *node = list->next; node != &call->node && node != list; node = node->next) {
    const struct etcd_call *other = kv_list_of(struct etcd_call, node, node);
    if (other->lease == call->lease && !other->op) return true;
  }
  return false;
}

static void on_end(struct grpc_call *grpc, int status, const char *message) {
  struct etcd_stream *stream = kv_list_of(struct etcd_stream, grpc, grpc);
  struct etcd *etcd = stream->etcd;
  struct etcd_link *link = stream->link;
  stream->link = NULL;
  kv_code code = etcd_code(status, message, false);
  if (etcd_token_refused(etcd, status, message)) {
    etcd_token_drop(etcd, stream->token_number);
    code = KV_UNAVAILABLE;
  }
  if (link && etcd_member_unfit(status, message)) etcd_link_retire(link, message);
  /* The lease itself was not judged. */
  if (code == KV_OK || code == KV_LOST || code == KV_FAILED) code = KV_UNAVAILABLE;
  fail_renewals(etcd, code, message);
}

static const struct grpc_handler handler = {.on_message = on_message, .on_end = on_end};

void etcd_stream_cancel(struct etcd_stream *stream) {
  if (stream->link) grpc_cancel(stream->link->grpc, &stream->grpc);
}

/*
 * Its answer may still come, and must not be taken for that of the next renewal: that one would be told to hold since
 * it was sent, which is later than what the server knows. So the call stays in line, and takes its answer. A server
 * that owes two is not waited for.
 */
void etcd_renewal_cancel(struct etcd_call *call) {
  struct etcd *etcd = call->etcd;
  bool stuck = is_stuck(call);
  etcd_call_detach(call);
  if (stuck) etcd_stream_cancel(&etcd->leases.stream);
  etcd_wake(etcd);
}

/* The link is ready: ask on the stream, which is opened by the first. */
void etcd_leases_start(struct etcd_call *call) {
  struct etcd *etcd = call->etcd;
  struct etcd_stream *stream = &etcd->leases.stream;
  struct grpc_metadata metadata[2];
  bool good;
  call->state = ETCD_CALL_STREAMED;
  call->lease = call->op->lease->id;
  kv_list_move(&etcd->leases.renewals, &call->node);
  pb_clear(&etcd->out);
  etcd_write_lease(&etcd->out, call->lease);
  if (stream->link) {
    good = grpc_send(stream->link->grpc, &stream->grpc, etcd->out.data, etcd->out.size);
  } else {
    stream->grpc.handler = &handler;
    stream->etcd = etcd;
    stream->token_number = etcd->token_number;
    good = grpc_start(etcd->link->grpc, &stream->grpc, "/etcdserverpb.Lease/LeaseKeepAlive", etcd->out.data,
                      etcd->out.size, false, metadata, etcd_metadata(etcd, false, metadata), -1);
    if (good) stream->link = etcd->link;
  }
  etcd_wake(etcd);
  if (good && !etcd->out.failed) return;
  call->state = ETCD_CALL_IDLE;
  etcd_finish(call, KV_UNAVAILABLE, "the stream of keep-alives could not be used");
}

static void encode_nothing(struct etcd_call *call, struct pb_writer *out) {
  (void)call;
  (void)out;
}

static bool decode_nothing(struct etcd_call *call, kv_slice message) {
  (void)call;
  (void)message;
  return false;
}

/* Never sent as a call of its own: call.c hands it to etcd_leases_start(). */
const struct etcd_exchange kv_etcd_keep_alive = {
  .path = "", .urgent = true, .encode = encode_nothing, .decode = decode_nothing};

void etcd_lease_renew(struct etcd *etcd, struct kv_op *op) {
  struct etcd_call *call = etcd_call_new(etcd, op);
  if (call) etcd_next(call, &kv_etcd_keep_alive);
}

void etcd_leases_init(struct etcd *etcd) {
  kv_list_init(&etcd->leases.renewals);
  etcd->leases.stream.etcd = etcd;
}
