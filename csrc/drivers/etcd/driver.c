/*
 * driver.c - the table of the etcd v3 driver, and its beginning and end.
 */
#include <stdlib.h>
#include <string.h>

#include "etcd.h"

#define CLOSE_GRACE (1 * ETCD_SECOND)
#define VALUE_MAX (ETCD_REQUEST_MAX - KV_KEY_MAX - 512)

const struct kv_host *kv_etcd;

static void attach(const struct kv_host *host) {
  kv_etcd = host;
}

static void close_late(struct kv_timer *timer);
static void close_now(struct kv_task *task);

static void *create(struct kv_backend *backend, const struct kv_config *config, kv_error *error) {
  struct etcd *etcd = calloc(1, sizeof *etcd);
  if (!etcd) {
    if (error) {
      error->code = KV_FAILED;
      strcpy(error->message, "out of memory");
    }
    return NULL;
  }
  etcd->backend = backend;
  etcd->config = config;
  etcd->auth = config->username ? ETCD_AUTH_NEEDED : ETCD_AUTH_DONE;
  kv_list_init(&etcd->waiting);
  kv_list_init(&etcd->fresh);
  kv_list_init(&etcd->pool);
  kv_list_init(&etcd->reads);
  pb_writer_init(&etcd->out, ETCD_REQUEST_MAX);
  etcd_endpoint_init(etcd);
  etcd_watches_init(etcd);
  etcd_leases_init(etcd);
  etcd->close_timer.fire = close_late;
  etcd->close_timer.data = etcd;
  etcd->close_task.run = close_now;
  etcd->close_task.data = etcd;
  return etcd;
}

static void destroy(void *state) {
  struct etcd *etcd = state;
  etcd_pool_free(etcd);
  etcd_watches_free(etcd);
  pb_writer_free(&etcd->out);
  tls_context_free(etcd->tls);
  if (etcd->token) explicit_bzero(etcd->token, strlen(etcd->token));
  free(etcd->token);
  free(etcd);
}

/* ------------------------------------------------------------------ closing */

/* What is still under way is ours alone: leases that nobody wants. They get a moment, if there is a connection. */
static void close_now(struct kv_task *task) {
  struct etcd *etcd = task->data;
  if (etcd->closed) return;
  bool hopeful = etcd->running > 0 && etcd->link && kv_etcd->now() < etcd->close_until;
  if (hopeful) {
    kv_etcd->timer_set(&etcd->close_timer, kv_etcd->now() + ETCD_SECOND / 50);
    return;
  }
  kv_etcd->timer_stop(&etcd->close_timer);
  etcd_disconnect(etcd, "the store was closed");
  etcd->closed = true;
  etcd_fail_waiting(etcd, KV_CLOSED, "the store was closed");
  kv_etcd->timer_stop(&etcd->dial_timer);
  kv_etcd->closed(etcd->backend);
}

static void close_late(struct kv_timer *timer) {
  struct etcd *etcd = timer->data;
  close_now(&etcd->close_task);
}

static void close_slot(void *state) {
  struct etcd *etcd = state;
  etcd->closing = true;
  etcd->close_until = kv_etcd->now() + CLOSE_GRACE;
  kv_etcd->defer(&etcd->close_task); /* perhaps we are inside a callback of a call */
}

/* ------------------------------------------------------------------ operations */

static void start(void *state, struct kv_op *op) {
  struct etcd *etcd = state;
  switch (op->kind) {
    case KV_PING: etcd_ping(etcd, op); return;
    case KV_GET: etcd_get(etcd, op); return;
    case KV_PUT: etcd_put(etcd, op); return;
    case KV_DELETE: etcd_delete(etcd, op); return;
    case KV_LIST: etcd_list(etcd, op); return;
    case KV_DELETE_TREE: etcd_delete_tree(etcd, op); return;
    case KV_TXN: etcd_txn(etcd, op); return;
    case KV_LEASE_GRANT: etcd_lease_grant(etcd, op); return;
    case KV_LEASE_RENEW: etcd_lease_renew(etcd, op); return;
    case KV_LEASE_REVOKE: etcd_lease_revoke(etcd, op); return;
    case KV_QUEUE_JOIN: case KV_QUEUE_AHEAD: case KV_QUEUE_WAIT: case KV_QUEUE_CLAIM: case KV_QUEUE_LEAVE:
    case KV_QUEUE_HEAD: etcd_queue_step(etcd, op); return;
    default: kv_etcd->finish(op, KV_UNSUPPORTED, "etcd cannot do it");
  }
}

static void cancel(void *state, struct kv_op *op) {
  (void)state;
  if (op->data) etcd_call_cancel(op->data);
}

static const struct kv_scheme schemes[] = {{"etcd", false, 2379}, {"etcds", true, 2379}, {NULL, false, 0}};
static const char *const interop[] = {"etcd", NULL};

const struct kv_driver kv_driver_etcd = {
  .abi = KV_DRIVER_ABI,
  .name = "etcd",
  .schemes = schemes,
  .capabilities = KV_CAN_MOVE | KV_CAN_TXN | KV_CAN_TTL | KV_CAN_LOCK | KV_CAN_SEMAPHORE | KV_CAN_LEASE | KV_CAN_WATCH |
                  KV_CAN_RESUME | KV_CAN_EVERY_VERSION | KV_CAN_PAGING | KV_CAN_INTEROP |
                  KV_CAN_INTEROP_ORDER | KV_CAN_NESTED,
  .limits = {.value_max = VALUE_MAX, .lease_min = 1},
  .interop = interop,
  .attach = attach,
  .create = create,
  .close = close_slot,
  .destroy = destroy,
  .start = start,
  .cancel = cancel,
  .watch_open = etcd_watch_open,
  .watch_close = etcd_watch_close,
};
