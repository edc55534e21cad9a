/* driver.c - the table of the Consul driver, and its beginning and end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "consul.h"

#define CLOSE_GRACE 0.5 /* seconds, for sessions that nobody wants */

const struct kv_host *kv_consul;

static void attach(const struct kv_host *host) {
  kv_consul = host;
}

/* ------------------------------------------------------------------ beginning */

static char *make_token_header(const char *token) {
  size_t size = strlen(token) + 20;
  char *header = malloc(size);
  if (header) snprintf(header, size, "X-Consul-Token: %s", token);
  return header;
}

static void crowded(void *context) {
  consul_watches_crowded(context);
}

static struct http_client *make_client(struct consul *consul) {
  const struct kv_config *config = consul->config;
  const char *headers[3] = {NULL, NULL, NULL};
  size_t count = 0;
  char *token = config->token ? make_token_header(config->token) : NULL;
  char *login = config->username ? http_login_header(config->username, config->password) : NULL;
  struct http_client *client = NULL;
  if (token) headers[count++] = token;
  if (login) headers[count++] = login;
  if ((!config->token || token) && (!config->username || login)) {
    struct http_options options = {.host = kv_consul, .backend = consul->backend, .config = config, .headers = headers,
                                   .probe_path = "/v1/status/leader",
                                   .crowded = crowded, .context = consul};
    client = http_client_new(&options);
  }
  if (token) memset(token, 0, strlen(token));
  if (login) memset(login, 0, strlen(login));
  free(token);
  free(login);
  return client;
}

static void closing_now(void *context) {
  consul_watches_close(context);
  consul_share_close(context);
}

static void *create(struct kv_backend *backend, const struct kv_config *config, kv_error *error) {
  struct consul *consul = calloc(1, sizeof *consul);
  bool good_token = http_is_header_text(config->token);
  if (consul) {
    consul->backend = backend;
    consul->config = config;
    consul->calls = (struct http_calls){.host = kv_consul, .backend = backend, .server = "Consul",
                                        .answer_max = CONSUL_ANSWER_MAX, .release = consul_call_release,
                                        .sent = consul_call_sent, .closing_now = closing_now, .context = consul};
    http_calls_init(&consul->calls);
    if (good_token) consul->calls.http = make_client(consul);
  }
  if (!consul || !consul->calls.http) {
    free(consul);
    error->code = good_token ? KV_FAILED : KV_INVALID;
    strcpy(error->message, good_token ? "out of memory" : "the token holds a control character");
    return NULL;
  }
  consul_watches_init(consul);
  consul_share_init(consul);
  return consul;
}

static void destroy(void *state) {
  struct consul *consul = state;
  http_client_free(consul->calls.http);
  consul_watches_free(consul);
  free(consul);
}

/* ------------------------------------------------------------------ closing */

static void close_slot(void *state) {
  struct consul *consul = state;
  http_calls_close(&consul->calls, CLOSE_GRACE);
}

/* ------------------------------------------------------------------ operations */

static void start(void *state, struct kv_op *op) {
  struct consul *consul = state;
  switch (op->kind) {
    case KV_PING: consul_ping(consul, op); return;
    case KV_GET: case KV_PUT: consul_share(consul, op); return;
    case KV_DELETE: consul_delete(consul, op); return;
    case KV_LIST: consul_list(consul, op); return;
    case KV_DELETE_TREE: consul_delete_tree(consul, op); return;
    case KV_TXN: consul_txn(consul, op); return;
    case KV_LEASE_GRANT: consul_lease_grant(consul, op); return;
    case KV_LEASE_RENEW: consul_lease_renew(consul, op); return;
    case KV_LEASE_REVOKE: consul_lease_revoke(consul, op); return;
    case KV_QUEUE_JOIN: case KV_QUEUE_AHEAD: case KV_QUEUE_WAIT: case KV_QUEUE_CLAIM: case KV_QUEUE_LEAVE:
    case KV_QUEUE_HEAD: consul_queue_step(consul, op); return;
    default: kv_consul->finish(op, KV_UNSUPPORTED, "Consul cannot do it");
  }
}

static void cancel(void *state, struct kv_op *op) {
  if (!consul_share_cancel(state, op) && op->data) consul_call_cancel(op->data);
}

static const struct kv_scheme schemes[] = {{"consul", false, 8500}, {"consuls", true, 8500}, {NULL, false, 0}};
static const char *const interop[] = {"consul", NULL};

const struct kv_driver kv_driver_consul = {
  .abi = KV_DRIVER_ABI,
  .name = "consul",
  .schemes = schemes,
  .capabilities = KV_CAN_MOVE_PLAIN | KV_CAN_TXN | KV_CAN_TTL | KV_CAN_LOCK | KV_CAN_SEMAPHORE | KV_CAN_LEASE |
                  KV_CAN_WATCH | KV_CAN_SNAPSHOT | KV_CAN_INTEROP | KV_CAN_NESTED,
  .limits = {.value_max = CONSUL_VALUE_MAX},
  .interop = interop,
  .attach = attach,
  .create = create,
  .close = close_slot,
  .destroy = destroy,
  .start = start,
  .cancel = cancel,
  .watch_open = consul_watch_open,
  .watch_close = consul_watch_close,
};
