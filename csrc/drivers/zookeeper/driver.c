/*
 * driver.c - the table of the ZooKeeper driver, and its beginning and end.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../wire/tls.h"
#include "zookeeper.h"

const struct kv_host *kv_zk;

static void attach(const struct kv_host *host) {
  kv_zk = host;
}

static void close_now(struct kv_task *task);

static void *refuse(struct zk *zk, kv_error *error, kv_code code, const char *problem) {
  if (zk) zk_acl_free(&zk->acl);
  free(zk);
  if (error) {
    error->code = code;
    snprintf(error->message, sizeof error->message, "%s", problem);
  }
  return NULL;
}

static void *create(struct kv_backend *backend, const struct kv_config *config, kv_error *error) {
  struct zk *zk = calloc(1, sizeof *zk);
  const char *problem;
  if (!zk) return refuse(NULL, error, KV_FAILED, "out of memory");
  if (!zk_acl_make(&zk->acl, config->acl, &problem))
    return refuse(zk, error, strcmp(problem, "out of memory") == 0 ? KV_FAILED : KV_INVALID, problem);
  zk->backend = backend;
  zk->config = config;
  kv_list_init(&zk->sessions);
  kv_list_init(&zk->leases);
  kv_list_init(&zk->feeds);
  kv_list_init(&zk->lookouts);
  zk->close_task = (struct kv_task){.run = close_now, .data = zk};
  return zk;
}

static void destroy(void *state) {
  struct zk *zk = state;
  zk_leases_free(zk);
  zk_acl_free(&zk->acl);
  tls_context_free(zk->tls);
  free(zk);
}

/* ------------------------------------------------------------------ closing */

/* Each session says goodbye, all at once; the last one that is gone ends it. */
static void close_now(struct kv_task *task) {
  struct zk *zk = task->data;
  if (zk->closed || !kv_list_empty(&zk->sessions)) return;
  zk->closed = true;
  kv_zk->closed(zk->backend);
}

static void close_slot(void *state) {
  struct zk *zk = state;
  zk->closing = true;
  for (struct kv_list *at = zk->sessions.next; at != &zk->sessions; at = at->next)
    zk_session_leave(kv_list_of(struct zk_session, node, at));
  kv_zk->defer(&zk->close_task);
}

/* ------------------------------------------------------------------ operations */

static bool touches_reserved(const struct kv_op *op) {
  if (op->kind >= KV_LEASE_GRANT) return false;
  if (op->kind != KV_TXN) return zk_is_reserved(op->key);
  for (size_t i = 0; i < op->part_count; i++)
    if (op->parts[i].type != KV_PART_GUARD && zk_is_reserved(op->parts[i].key)) return true;
  return false;
}

static void start(void *state, struct kv_op *op) {
  struct zk *zk = state;
  if (touches_reserved(op)) {
    kv_zk->finish(op, KV_UNSUPPORTED, ZK_RESERVED);
    return;
  }
  switch (op->kind) {
    case KV_PING: zk_ping(zk, op); return;
    case KV_GET: zk_get(zk, op); return;
    case KV_PUT: zk_put(zk, op); return;
    case KV_DELETE: zk_delete(zk, op); return;
    case KV_LIST: zk_list_tree(zk, op); return;
    case KV_DELETE_TREE: zk_delete_tree(zk, op); return;
    case KV_TXN: zk_txn(zk, op); return;
    case KV_LEASE_GRANT: zk_lease_grant(zk, op); return;
    case KV_LEASE_RENEW: zk_lease_renew(zk, op); return;
    case KV_LEASE_REVOKE: zk_lease_revoke(zk, op); return;
    case KV_QUEUE_JOIN: case KV_QUEUE_AHEAD: case KV_QUEUE_WAIT: case KV_QUEUE_CLAIM: case KV_QUEUE_LEAVE:
    case KV_QUEUE_HEAD: zk_queue_step(zk, op); return;
    default: kv_zk->finish(op, KV_UNSUPPORTED, "ZooKeeper cannot do it");
  }
}

static void cancel(void *state, struct kv_op *op) {
  (void)state;
  if (op->data) zk_call_cancel(op->data);
}

static const struct kv_scheme schemes[] = {{"zk", false, 2181}, {"zks", true, 2181}, {NULL, false, 0}};
static const char *const interop[] = {"kazoo", "curator", NULL};

const struct kv_driver kv_driver_zookeeper = {
  .abi = KV_DRIVER_ABI,
  .name = "zookeeper",
  .schemes = schemes,
  .capabilities = KV_CAN_MOVE | KV_CAN_TXN | KV_CAN_TTL | KV_CAN_LOCK | KV_CAN_SEMAPHORE | KV_CAN_LEASE | KV_CAN_WATCH |
                  KV_CAN_SNAPSHOT | KV_CAN_INTEROP | KV_CAN_INTEROP_ORDER | KV_CAN_NESTED,
  /* A tick, as servers are delivered. Where it is longer than a quarter of a session, a quarter is enough: the shortest
   * session has two ticks, and followers tell the leader twice a tick who is alive. */
  .limits = {.value_max = ZK_VALUE_MAX, .lease_min = 0.2, .renew_margin = 2},
  .interop = interop,
  .attach = attach,
  .create = create,
  .close = close_slot,
  .destroy = destroy,
  .start = start,
  .cancel = cancel,
  .watch_open = zk_watch_open,
  .watch_close = zk_watch_close,
};
