/*
 * auth.c - user and password to a token, which goes with every call as metadata.
 *
 * The token is fetched when the first call needs it and kept across connections: tokens belong to the cluster. A call
 * that the server refuses because of its token was not applied; it drops the token (once, however many calls were
 * refused with it) and is made again with the next.
 */
#include <stdlib.h>
#include <string.h>

#include "etcd.h"

size_t etcd_metadata(const struct etcd *etcd, bool any_member, struct grpc_metadata *list) {
  size_t count = 0;
  if (!any_member) list[count++] = (struct grpc_metadata){"hasleader", "true"};
  if (etcd->token) list[count++] = (struct grpc_metadata){"token", etcd->token};
  return count;
}

static void forget(struct etcd *etcd) {
  if (etcd->token) explicit_bzero(etcd->token, strlen(etcd->token));
  free(etcd->token);
  etcd->token = NULL;
}

void etcd_token_drop(struct etcd *etcd, uint64_t number) {
  if (!etcd->config->username || number != etcd->token_number || etcd->auth == ETCD_AUTH_RUNNING) return;
  forget(etcd);
  etcd->token_number++;
  etcd->auth = ETCD_AUTH_NEEDED;
  etcd_wake(etcd);
}

static void encode(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_config *config = call->etcd->config;
  etcd_write_authenticate(out, config->username, config->password ? config->password : "");
}

/* It goes into a header: anything else than printable ASCII would break the connection. */
static bool is_token(kv_slice token) {
  for (size_t i = 0; i < token.size; i++)
    if (token.data[i] < 0x21 || token.data[i] > 0x7e) return false;
  return token.size > 0 && token.size <= 8192;
}

static bool decode(struct etcd_call *call, kv_slice message) {
  struct etcd *etcd = call->etcd;
  kv_slice token;
  if (!etcd_read_authenticate(message, &token) || !is_token(token)) return false;
  forget(etcd);
  etcd->token = malloc(token.size + 1);
  if (!etcd->token) return false;
  memcpy(etcd->token, token.data, token.size);
  etcd->token[token.size] = '\0';
  return true;
}

static void logged_in(struct etcd *etcd) {
  etcd->token_number++;
  etcd->auth = ETCD_AUTH_DONE;
  etcd_wake(etcd);
}

static void done(struct etcd_call *call) {
  struct etcd *etcd = call->etcd;
  etcd_finish(call, KV_OK, NULL);
  logged_in(etcd);
}

static bool refused(struct etcd_call *call, int status, const char *message) {
  struct etcd *etcd = call->etcd;
  etcd_finish(call, KV_OK, NULL);
  if (status == GRPC_FAILED_PRECONDITION && strstr(message, "authentication is not enabled")) {
    forget(etcd); /* so we need no token */
    logged_in(etcd);
    return true;
  }
  etcd->auth = ETCD_AUTH_NEEDED;
  kv_code code = etcd_code(status, message, false);
  etcd_fail_waiting(etcd, code == KV_FAILED ? KV_DENIED : code, message);
  return true;
}

static const struct etcd_exchange authenticate = {
  .path = "/etcdserverpb.Auth/Authenticate", .encode = encode, .decode = decode, .done = done, .refused = refused};

void etcd_auth_begin(struct etcd *etcd) {
  struct etcd_call *call = etcd_call_new(etcd, NULL);
  if (!call) {
    etcd_fail_waiting(etcd, KV_FAILED, "out of memory");
    return;
  }
  forget(etcd);
  etcd->auth = ETCD_AUTH_RUNNING;
  etcd_next_on(call, &authenticate, etcd->link);
}
