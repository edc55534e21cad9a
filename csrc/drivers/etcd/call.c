/*
 * call.c - calls: from an operation to a gRPC call and back.
 *
 * A call waits in etcd.waiting until there is a connection that may be used, is started (its bytes leave at the end
 * of the turn, together with all others of that turn), and is answered or ends. Calls come from a pool. What the
 * server's refusals mean is decided in etcd_code(), by the table of what may be sent again: only what was certainly
 * not applied is KV_UNAVAILABLE.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "etcd.h"

#define POOL_MAX 256
#define LOGINS_MAX 2

/* ------------------------------------------------------------------ what errors mean */

static bool says(const char *message, const char *words) {
  return strstr(message, words) != NULL;
}

static kv_code lost_code(bool write) {
  return write ? KV_UNKNOWN : KV_UNAVAILABLE;
}

static kv_code unavailable_code(const char *message, bool write) {
  static const char *const definite[] = {"etcdserver: no leader", "etcdserver: not capable",
                                         "etcdserver: rpc not supported for learner"};
  for (size_t i = 0; i < sizeof definite / sizeof *definite; i++)
    if (says(message, definite[i])) return KV_UNAVAILABLE;
  return lost_code(write);
}

static kv_code exhausted_code(const char *message, bool write) {
  if (says(message, "database space exceeded")) return KV_NO_SPACE;
  if (says(message, "too many requests")) return KV_UNAVAILABLE;
  if (says(message, "larger than max")) return KV_TOO_LARGE;
  return write ? KV_UNKNOWN : KV_FAILED;
}

static kv_code argument_code(const char *message) {
  if (says(message, "request is too large")) return KV_TOO_LARGE;
  if (says(message, "authentication failed") || says(message, "user name is empty")) return KV_DENIED;
  if (says(message, "revision of auth store is old")) return KV_UNAVAILABLE;
  return KV_FAILED;
}

kv_code etcd_code(int status, const char *message, bool write) {
  switch (status) {
    case GRPC_OK: return KV_OK;
    case GRPC_NOT_SENT: return KV_UNAVAILABLE;
    case GRPC_CUT: case GRPC_GARBLED: case GRPC_CANCELLED: case GRPC_DEADLINE_EXCEEDED: return lost_code(write);
    case GRPC_UNAVAILABLE: return unavailable_code(message, write);
    case GRPC_RESOURCE_EXHAUSTED: return exhausted_code(message, write);
    case GRPC_INVALID_ARGUMENT: return argument_code(message);
    case GRPC_UNAUTHENTICATED: case GRPC_PERMISSION_DENIED: return KV_DENIED;
    case GRPC_NOT_FOUND: return says(message, "lease not found") ? KV_LOST : KV_FAILED;
    case GRPC_OUT_OF_RANGE:
      return says(message, "compacted") || says(message, "future revision") ? KV_COMPACTED : KV_FAILED;
    case GRPC_FAILED_PRECONDITION:
      return says(message, "user name not found") || says(message, "role name not found") ? KV_DENIED : KV_FAILED;
    case GRPC_UNIMPLEMENTED: return KV_UNSUPPORTED;
    case GRPC_DATA_LOSS: case GRPC_ALREADY_EXISTS: return KV_FAILED;
    default: return write ? KV_UNKNOWN : KV_FAILED; /* UNKNOWN, ABORTED, INTERNAL and what will be invented */
  }
}

bool etcd_token_refused(const struct etcd *etcd, int status, const char *message) {
  if (!etcd->config->username) return false;
  if (status == GRPC_UNAUTHENTICATED) return true;
  return says(message, "invalid auth token") || says(message, "user name is empty") ||
         says(message, "revision of auth store is old");
}

bool etcd_member_unfit(int status, const char *message) {
  if (status != GRPC_UNAVAILABLE) return false;
  return says(message, "no leader") || says(message, "server stopped") || says(message, "request timed out") ||
         says(message, "not supported for learner") || says(message, "unhealthy cluster");
}

/* ------------------------------------------------------------------ memory */

struct etcd_call *etcd_call_new(struct etcd *etcd, struct kv_op *op) {
  struct etcd_call *call;
  if (!kv_list_empty(&etcd->pool)) {
    call = kv_list_of(struct etcd_call, node, etcd->pool.next);
    kv_list_remove(&call->node);
    etcd->pooled--;
  } else {
    call = malloc(sizeof *call);
  }
  if (!call) {
    if (op) kv_etcd->finish(op, KV_FAILED, "out of memory");
    return NULL;
  }
  memset(call, 0, sizeof *call);
  kv_list_init(&call->node);
  kv_list_init(&call->wait);
  kv_list_init(&call->members);
  call->etcd = etcd;
  call->op = op;
  if (op) op->data = call;
  return call;
}

static void call_free(struct etcd_call *call) {
  struct etcd *etcd = call->etcd;
  kv_list_remove(&call->node);
  kv_list_remove(&call->wait);
  etcd_listing_free(call->listing);
  call->listing = NULL;
  if (etcd->pooled >= POOL_MAX) {
    free(call);
    return;
  }
  etcd->pooled++;
  kv_list_move(&etcd->pool, &call->node);
}

void etcd_pool_free(struct etcd *etcd) {
  while (!kv_list_empty(&etcd->pool)) {
    struct etcd_call *call = kv_list_of(struct etcd_call, node, etcd->pool.next);
    kv_list_remove(&call->node);
    free(call);
  }
  etcd->pooled = 0;
}

void etcd_finish(struct etcd_call *call, kv_code code, const char *format, ...) {
  struct kv_op *op = call->op;
  char cause[KV_MESSAGE_MAX];
  if (format) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(cause, sizeof cause, format, arguments);
    va_end(arguments);
  }
  /* Leases granted for a write that certainly did not happen are for nobody. */
  bool in_doubt = code == KV_UNKNOWN || (code == KV_CANCELLED && call->grpc.sent);
  if (code != KV_OK && !in_doubt) etcd_ttl_abandon(call);
  call_free(call);
  if (!op) return;
  op->data = NULL;
  if (code == KV_OK)
    kv_etcd->finish(op, KV_OK, NULL);
  else
    kv_etcd->finish(op, code, "%s", format ? cause : "failed");
}

/* ------------------------------------------------------------------ answers */

static bool on_message(struct grpc_call *grpc, const uint8_t *data, size_t size) {
  struct etcd_call *call = kv_list_of(struct etcd_call, grpc, grpc);
  if (call->answered) return false; /* an unary call has one answer */
  call->answered = true;
  if (call->cancelled) return true;
  return call->exchange->decode(call, (kv_slice){(const char *)data, size});
}

/* The token was not valid (any more): with a new one, the call is made again. */
static bool log_in_again(struct etcd_call *call, int status, const char *message) {
  struct etcd *etcd = call->etcd;
  if (!etcd_token_refused(etcd, status, message) || call->logins >= LOGINS_MAX || !call->op) return false;
  call->logins++;
  etcd_token_drop(etcd, call->token_number);
  etcd_next(call, call->exchange);
  return true;
}

static void refused(struct etcd_call *call, struct etcd_link *link, int status, const char *message) {
  if (link && etcd_member_unfit(status, message)) etcd_link_retire(link, message);
  if (call->cancelled) {
    etcd_finish(call, KV_CANCELLED, "cancelled");
    return;
  }
  if (log_in_again(call, status, message)) return;
  if (call->exchange->refused && call->exchange->refused(call, status, message)) return;
  etcd_finish(call, etcd_code(status, message, call->exchange->write), "%s", message);
}

static void on_end(struct grpc_call *grpc, int status, const char *message) {
  struct etcd_call *call = kv_list_of(struct etcd_call, grpc, grpc);
  struct etcd *etcd = call->etcd;
  struct etcd_link *link = call->link;
  etcd->running--;
  if (call->exchange->counted) link->reads--;
  call->state = ETCD_CALL_IDLE;
  call->link = NULL;
  kv_list_remove(&call->node);
  bool others = !kv_list_empty(&etcd->waiting) || !kv_list_empty(&etcd->reads);
  if (link->state == ETCD_LINK_OLD || others) etcd_wake(etcd);
  if (status == GRPC_OK && call->answered && !call->cancelled)
    call->exchange->done(call);
  else if (status == GRPC_OK)
    refused(call, link, GRPC_GARBLED, "the server sent no answer");
  else
    refused(call, link, status, message);
}

static const struct grpc_handler handler = {.on_message = on_message, .on_end = on_end};

/* ------------------------------------------------------------------ starting */

static void wait_for_link(struct etcd_call *call) {
  const char *reason = etcd_pause_reason(call->etcd);
  /* Told once, in case its deadline comes before our next attempt; after that it waits. */
  if (reason && call->op && !call->op->attempt) {
    etcd_finish(call, KV_UNAVAILABLE, "%s", reason);
    return;
  }
  call->state = ETCD_CALL_WAITING;
  kv_list_move(call->exchange->urgent ? call->etcd->waiting.next : &call->etcd->waiting, &call->node);
  etcd_wake(call->etcd);
}

void etcd_next_on(struct etcd_call *call, const struct etcd_exchange *exchange, struct etcd_link *link) {
  struct etcd *etcd = call->etcd;
  struct grpc_metadata metadata[2];
  call->exchange = exchange;
  call->answered = false;
  pb_clear(&etcd->out);
  exchange->encode(call, &etcd->out);
  if (etcd->out.failed) {
    static const char problem[] = "the request is larger than etcd takes (1.5 MiB)";
    if (!exchange->refused || !exchange->refused(call, GRPC_DATA_LOSS, problem))
      etcd_finish(call, KV_TOO_LARGE, "%s", problem);
    return;
  }
  size_t count = etcd_metadata(etcd, exchange->any_member, metadata);
  call->token_number = etcd->token_number;
  call->grpc.handler = &handler;
  call->grpc.data = NULL;
  if (!grpc_start(link->grpc, &call->grpc, exchange->path, etcd->out.data, etcd->out.size, true, metadata, count, -1)) {
    bool over = grpc_failed(link->grpc) || grpc_draining(link->grpc);
    if (over && call->op)
      wait_for_link(call);
    else
      refused(call, NULL, over ? GRPC_NOT_SENT : GRPC_DATA_LOSS, over ? "the connection is over" : "out of memory");
    return;
  }
  call->state = ETCD_CALL_RUNNING;
  call->link = link;
  etcd->running++;
  if (exchange->counted) link->reads++;
  kv_list_move(&etcd->fresh, &call->node);
  etcd_wake(etcd);
}

static void begin(struct etcd_call *call) {
  if (call->exchange == &kv_etcd_keep_alive)
    etcd_leases_start(call);
  else
    etcd_next_on(call, call->exchange, call->etcd->link);
}

void etcd_next(struct etcd_call *call, const struct etcd_exchange *exchange) {
  call->exchange = exchange;
  call->grpc.sent = false;
  if (call->op) call->op->sent = false; /* what came before was answered */
  if (etcd_ready(call->etcd) && (exchange->urgent || call->etcd->running < ETCD_RUNNING_MAX))
    begin(call);
  else
    wait_for_link(call);
}

void etcd_start_waiting(struct etcd *etcd) {
  while (!kv_list_empty(&etcd->waiting) && etcd_ready(etcd)) {
    struct etcd_call *call = kv_list_of(struct etcd_call, node, etcd->waiting.next); /* urgent ones are in front */
    if (!call->exchange->urgent && etcd->running >= ETCD_RUNNING_MAX) break;
    kv_list_remove(&call->node);
    begin(call);
  }
}

void etcd_fail_waiting(struct etcd *etcd, kv_code code, const char *problem) {
  struct kv_list batch;
  kv_list_init(&batch);
  while (!kv_list_empty(&etcd->waiting)) kv_list_move(&batch, etcd->waiting.next);
  while (!kv_list_empty(&batch)) {
    struct etcd_call *call = kv_list_of(struct etcd_call, node, batch.next);
    call->state = ETCD_CALL_IDLE;
    etcd_finish(call, code, "%s", problem);
  }
  etcd_share_fail(etcd, code, problem);
  etcd_watches_fail(etcd, code, problem);
}

/* Bytes were produced and are about to leave: from here on a lost answer means something. */
void etcd_mark_sent(struct etcd *etcd) {
  struct kv_list *node = etcd->fresh.next, *next;
  for (; node != &etcd->fresh; node = next) {
    struct etcd_call *call = kv_list_of(struct etcd_call, node, node);
    next = node->next;
    if (!call->grpc.sent) continue;
    kv_list_remove(node);
    if (call->op && call->exchange->write) call->op->sent = true;
  }
}

/* ------------------------------------------------------------------ giving up */

void etcd_call_detach(struct etcd_call *call) {
  struct kv_op *op = call->op;
  call->op = NULL;
  op->data = NULL;
  kv_etcd->finish(op, KV_CANCELLED, "cancelled");
}

void etcd_call_cancel(struct etcd_call *call) {
  if (call->batch) {
    etcd_share_cancel(call);
    return;
  }
  if (call->watcher) {
    etcd_watch_cancel(call);
    return;
  }
  if (call->state == ETCD_CALL_STREAMED) {
    etcd_renewal_cancel(call);
    return;
  }
  if (call->state != ETCD_CALL_RUNNING) {
    etcd_finish(call, KV_CANCELLED, "cancelled");
    return;
  }
  struct etcd_link *link = call->link;
  etcd_link_doubt(link);
  if (call->exchange->undo && call->grpc.sent) {
    etcd_call_detach(call);
    return;
  }
  call->cancelled = true;
  grpc_cancel(link->grpc, &call->grpc); /* on_end finishes */
  etcd_wake(call->etcd);
}
