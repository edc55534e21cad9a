/*
 * call.c - calls: from an operation to HTTP requests and back.
 *
 * A call is a chain of requests; each answer leads to the next request or to the end. What a refusal means is decided
 * in consul_code(): only what was certainly not applied is KV_UNAVAILABLE.
 */
#include <stdlib.h>
#include <string.h>

#include "consul.h"

static struct http_call *base_of(struct consul_call *call) {
  return (struct http_call *)call;
}

/* ------------------------------------------------------------------ what answers mean */

static kv_code server_code(kv_slice text, bool write) {
  if (http_says(text, "No cluster leader")) return KV_UNAVAILABLE;
  if (http_says(text, "Permission denied") || http_says(text, "ACL not found")) return KV_DENIED;
  if (http_says(text, "No path to datacenter")) return KV_FAILED;
  return write ? KV_UNKNOWN : KV_UNAVAILABLE;
}

kv_code consul_code(int status, kv_slice text, bool write) {
  if (status >= 500) return server_code(text, write);
  switch (status) {
    case 401: case 403: return KV_DENIED;
    case 405: case 501: return KV_UNSUPPORTED;
    case 408: case 429: return KV_UNAVAILABLE;
    case 413: return KV_TOO_LARGE;
    default: return KV_FAILED;
  }
}

void consul_refuse(struct consul_call *call) {
  kv_slice text = http_call_text(base_of(call));
  char shown[200];
  int status = call->http.status;
  if (status == 429) http_crowded(call->consul->calls.http);
  http_shown(text, shown, sizeof shown);
  kv_code code = consul_code(status, text, call->write);
  consul_finish(call, code, "%s%sHTTP status %d", shown, shown[0] ? ", " : "", status);
}

void consul_garbled(struct consul_call *call) {
  http_call_garbled(base_of(call));
}

void consul_no_memory(struct consul_call *call) {
  http_call_no_memory(base_of(call));
}

bool consul_filtered(const struct http_request *http) {
  kv_slice value;
  return http_header(http, "X-Consul-Results-Filtered-By-ACLs", &value) && value.size == 4 &&
         memcmp(value.data, "true", 4) == 0;
}

/* 52 bits, never 0: exact in a double, which is what many read JSON numbers into. */
uint64_t consul_flags(void) {
  return (kv_consul->random() & ((UINT64_C(1) << 52) - 1)) | 1;
}

/* ------------------------------------------------------------------ memory */

struct consul_call *consul_call_new(struct consul *consul, struct kv_op *op) {
  struct consul_call *call = http_call_new(&consul->calls, sizeof *call, op);
  if (!call) return NULL;
  call->consul = consul;
  call->lane = consul->counting;
  if (call->lane) call->lane->out++;
  return call;
}

void consul_call_release(struct http_call *base, kv_code code, const char *cause) {
  struct consul_call *call = (struct consul_call *)base;
  struct consul *consul = call->consul;
  struct consul_shared *shared = call->shared;
  struct consul_doubt *doubt = call->doubt;
  const struct kv_op *op = call->op;
  if (call->wrote && !call->kept && code != KV_UNKNOWN && !(code == KV_CANCELLED && op && op->sent))
    consul_write_abandon(call);
  if (call->wrote) consul_write_free(call->wrote);
  if (call->large) consul_large_free(call->large);
  if (call->listing) consul_listing_free(call->listing);
  if (call->waiter) consul_waiter_free(call);
  if (call->lane) consul_lane_freed(call->lane);
  free(call);
  if (shared) consul_shared_finish(consul, shared, code, cause);
  if (doubt) consul_doubt_failed(doubt, code);
}

void consul_call_sent(struct http_call *base) {
  const struct consul_call *call = (struct consul_call *)base;
  if (call->shared) consul_shared_sent(call->shared);
}

/* ------------------------------------------------------------------ requests */

void consul_path(struct consul_call *call, const char *prefix, kv_slice key, const char *tail) {
  http_call_path(base_of(call), prefix, key, tail);
}

void consul_query(struct consul_call *call, const char *text) {
  http_call_query(base_of(call), text);
}

void consul_query_number(struct consul_call *call, const char *name, uint64_t number) {
  http_call_query_number(base_of(call), name, number);
}

void consul_query_consistency(struct consul_call *call) {
  consul_query(call, call->op && (call->op->flags & KV_FAST) ? "stale" : "consistent");
}

static void add_datacenter(struct consul_call *call) {
  const char *datacenter = call->consul->config->datacenter;
  if (!datacenter) return;
  consul_query(call, "dc=");
  if (!http_escape(&call->path, (kv_slice){datacenter, strlen(datacenter)}, false)) call->failed = true;
}

static bool take_pairs(struct http_call *base, const char *data, size_t size) {
  return consul_pairs_feed(((struct consul_call *)base)->pairs, data, size);
}

static void came(struct http_call *base) {
  struct consul_call *call = (struct consul_call *)base;
  if (!call->consul->version_asked) consul_ask_version(call->consul);
  call->answered(call);
}

static void send_request(struct consul_call *call, const char *method, bool write, struct consul_pairs *pairs,
                         void (*answered)(struct consul_call *call)) {
  call->answered = answered;
  call->pairs = pairs;
  call->on_piece = pairs ? take_pairs : NULL;
  add_datacenter(call);
  http_call_send(base_of(call), method, write, came);
}

void consul_send(struct consul_call *call, const char *method, bool write, void (*answered)(struct consul_call *call)) {
  send_request(call, method, write, NULL, answered);
}

void consul_send_pairs(struct consul_call *call, struct consul_pairs *pairs,
                       void (*answered)(struct consul_call *call)) {
  send_request(call, "GET", false, pairs, answered);
}

void consul_call_cancel(struct consul_call *call) {
  http_call_cancel(base_of(call));
}
