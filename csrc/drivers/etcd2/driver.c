/* driver.c - the table of the driver for etcd's v2 API, and its beginning and end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "etcd2.h"

#define CLOSE_GRACE 0.5 /* seconds for what is still under way, which is ours alone */

const struct kv_host *kv_etcd2;

static void attach(const struct kv_host *host) {
  kv_etcd2 = host;
}

/* ------------------------------------------------------------------ calls */

static void release(struct http_call *base, kv_code code, const char *cause) {
  struct etcd2_call *call = (struct etcd2_call *)base;
  (void)code;
  (void)cause;
  struct etcd2 *etcd2 = call->etcd2;
  bool was_sync = call->is_sync;
  kv_etcd2->timer_stop(&call->timer);
  etcd2_share_release(call);
  kv_buffer_free(&call->value);
  if (call->listing) etcd2_listing_free(call->listing);
  free(call);
  if (was_sync) etcd2_share_synced(etcd2);
}

static void came(struct http_call *base) {
  struct etcd2 *etcd2 = ((struct etcd2_call *)base)->etcd2;
  if (!etcd2->version_asked) etcd2_ask_version(etcd2);
}

static void closing_now(void *context) {
  etcd2_watches_close(context);
}

/* ------------------------------------------------------------------ beginning */

static struct http_client *make_client(const struct etcd2 *etcd2) {
  const struct kv_config *config = etcd2->config;
  char *login = config->username ? http_login_header(config->username, config->password) : NULL;
  const char *headers[] = {login, NULL};
  struct http_options options = {.host = kv_etcd2, .backend = etcd2->backend, .config = config, .headers = headers,
                                 .probe_path = "/version"};
  struct http_client *client = !config->username || login ? http_client_new(&options) : NULL;
  if (login) memset(login, 0, strlen(login));
  free(login);
  return client;
}

static void *create(struct kv_backend *backend, const struct kv_config *config, kv_error *error) {
  struct etcd2 *etcd2 = calloc(1, sizeof *etcd2);
  if (etcd2) {
    etcd2->backend = backend;
    etcd2->config = config;
    etcd2->calls = (struct http_calls){.host = kv_etcd2, .backend = backend, .http = make_client(etcd2),
                                       .server = "etcd", .answer_max = ETCD2_ANSWER_MAX, .release = release,
                                       .came = came, .closing_now = closing_now, .context = etcd2};
    http_calls_init(&etcd2->calls);
    etcd2_share_init(etcd2);
    etcd2->share_task = (struct kv_task){.run = etcd2_share_turn, .data = etcd2};
    if (etcd2->calls.http) return etcd2;
  }
  free(etcd2);
  error->code = KV_FAILED;
  strcpy(error->message, "out of memory");
  return NULL;
}

static void destroy(void *state) {
  struct etcd2 *etcd2 = state;
  http_client_free(etcd2->calls.http);
  etcd2_leases_free(etcd2);
  free(etcd2);
}

static void close_slot(void *state) {
  struct etcd2 *etcd2 = state;
  http_calls_close(&etcd2->calls, CLOSE_GRACE);
}

/* ------------------------------------------------------------------ operations */

static void start(void *state, struct kv_op *op) {
  struct etcd2 *etcd2 = state;
  if (etcd2_is_hidden(op->key)) {
    kv_etcd2->finish(op, KV_UNSUPPORTED, "etcd v2 hides names that begin with \"_\"");
    return;
  }
  switch (op->kind) {
    case KV_PING: etcd2_ping(etcd2, op); return;
    case KV_GET: etcd2_get(etcd2, op); return;
    case KV_PUT: etcd2_put(etcd2, op); return;
    case KV_DELETE: etcd2_delete(etcd2, op); return;
    case KV_LIST: etcd2_list(etcd2, op); return;
    case KV_DELETE_TREE: etcd2_delete_tree(etcd2, op); return;
    case KV_LEASE_GRANT: etcd2_lease_grant(etcd2, op); return;
    case KV_LEASE_RENEW: etcd2_lease_renew(etcd2, op); return;
    case KV_LEASE_REVOKE: etcd2_lease_revoke(etcd2, op); return;
    case KV_QUEUE_JOIN: case KV_QUEUE_AHEAD: case KV_QUEUE_WAIT: case KV_QUEUE_CLAIM: case KV_QUEUE_LEAVE:
    case KV_QUEUE_HEAD: etcd2_queue_step(etcd2, op); return;
    default: kv_etcd2->finish(op, KV_UNSUPPORTED, "etcd's v2 API cannot do it");
  }
}

static void cancel(void *state, struct kv_op *op) {
  (void)state;
  if (op->data) http_call_cancel(op->data);
}

static const struct kv_scheme schemes[] = {{"etcd2", false, 2379}, {"etcd2s", true, 2379}, {NULL, false, 0}};

const struct kv_driver kv_driver_etcd2 = {
  .abi = KV_DRIVER_ABI,
  .name = "etcd2",
  .schemes = schemes,
  .capabilities =
    KV_CAN_MOVE_PLAIN | KV_CAN_TTL | KV_CAN_LOCK | KV_CAN_SEMAPHORE | KV_CAN_LEASE | KV_CAN_WATCH | KV_CAN_RESUME |
    KV_CAN_EVERY_VERSION,
  .limits = {.value_max = ETCD2_VALUE_MAX, .lease_min = 1},
  .attach = attach,
  .create = create,
  .close = close_slot,
  .destroy = destroy,
  .start = start,
  .cancel = cancel,
  .watch_open = etcd2_watch_open,
  .watch_close = etcd2_watch_close,
};
