/* call.c - calls: the path of a key, the fields of a write, what came of it, and what a refusal means. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "etcd2.h"

#define FORM "application/x-www-form-urlencoded"

/* ------------------------------------------------------------------ what answers mean */

/* With 300, Raft's own words: what was not even proposed was not applied. */
static kv_code raft_code(const struct etcd2_error *error, bool write) {
  static const char *const definite[] = {"too many requests", "proposal dropped", "no leader", "not started", NULL};
  kv_slice cause = {error->cause, strlen(error->cause)};
  for (const char *const *words = definite; *words; words++)
    if (http_says(cause, *words)) return KV_UNAVAILABLE;
  return write ? KV_UNKNOWN : KV_UNAVAILABLE;
}

kv_code etcd2_code(int status, const struct etcd2_error *error, bool write) {
  switch (error->code) {
    case ETCD2_COMPARE_FAILED: return KV_MODIFIED;
    case ETCD2_NOT_FILE: case ETCD2_NOT_EMPTY: return KV_IS_DIR;
    case ETCD2_NOT_DIR: return KV_NOT_DIR;
    case ETCD2_EXISTS: return KV_EXISTS;
    case ETCD2_UNAUTHORIZED: return KV_DENIED;
    case ETCD2_RAFT: case ETCD2_ELECTION: return raft_code(error, write);
    case ETCD2_WATCHER_CLEARED: case ETCD2_INDEX_CLEARED: return KV_COMPACTED;
    case 0: break;
    default: return status >= 500 ? (write ? KV_UNKNOWN : KV_UNAVAILABLE) : KV_FAILED;
  }
  if (status >= 500) return write ? KV_UNKNOWN : KV_UNAVAILABLE;
  switch (status) {
    case 401: case 403: return KV_DENIED;
    case 404: return KV_UNSUPPORTED;
    case 408: case 429: return KV_UNAVAILABLE;
    case 413: return KV_TOO_LARGE;
    default: return KV_FAILED;
  }
}

const char *etcd2_told(int status, const struct etcd2_error *error, kv_slice text, char *out, size_t size) {
  char shown[200];
  if (status == 404 && !error->code)
    snprintf(out, size, "the server's v2 API is not enabled (etcd --enable-v2=true)");
  else if (error->code || error->cause[0])
    snprintf(out, size, "%s (etcd's error %u, HTTP status %d)", error->cause, error->code, status);
  else
    snprintf(out, size, "%s%sHTTP status %d", http_shown(text, shown, sizeof shown), text.size ? ", " : "", status);
  return out;
}

void etcd2_refuse(struct etcd2_call *call) {
  char told[300];
  int status = call->http.status;
  if (status == 429) http_crowded(call->calls->http);
  etcd2_told(status, &call->error, http_call_text(etcd2_base(call)), told, sizeof told);
  etcd2_finish(call, etcd2_code(status, &call->error, call->write), "%s", told);
}

/* ------------------------------------------------------------------ making a request */

struct etcd2_call *etcd2_call_new(struct etcd2 *etcd2, struct kv_op *op) {
  struct etcd2_call *call = http_call_new(&etcd2->calls, sizeof *call, op);
  if (!call) return NULL;
  call->etcd2 = etcd2;
  kv_list_init(&call->wait);
  kv_list_init(&call->same);
  call->content_type = FORM;
  kv_buffer_init(&call->value, 2 * ETCD2_VALUE_MAX);
  return call;
}

void etcd2_path(struct etcd2_call *call, kv_slice key) {
  http_call_path(etcd2_base(call), "/v2/keys/", key, "");
}

void etcd2_field(struct etcd2_call *call, const char *name, kv_slice value) {
  struct http_call *base = etcd2_base(call);
  if (call->body.size) http_call_body(base, "&", 1);
  http_call_body(base, name, strlen(name));
  http_call_body(base, "=", 1);
  if (!http_escape(&call->body, value, true)) call->failed = true;
}

void etcd2_field_number(struct etcd2_call *call, const char *name, uint64_t number) {
  char text[24];
  int size = snprintf(text, sizeof text, "%" PRIu64, number);
  etcd2_field(call, name, (kv_slice){text, (size_t)size});
}

void etcd2_strong(struct etcd2_call *call) {
  if (!call->op || !(call->op->flags & KV_FAST)) http_call_query(etcd2_base(call), "quorum=true");
}

static void came(struct http_call *base) {
  struct etcd2_call *call = (struct etcd2_call *)base;
  if (!http_header_number(&call->http, "X-Etcd-Index", &call->index)) call->index = 0;
  call->error.code = 0;
  if (!etcd2_good(call)) etcd2_read_error(http_call_text(base), &call->error);
  call->then(call);
}

void etcd2_send(struct etcd2_call *call, const char *method, bool write, void (*then)(struct etcd2_call *call)) {
  call->then = then;
  call->on_piece = NULL;
  http_call_send(etcd2_base(call), method, write, came);
}

static bool take_piece(struct http_call *base, const char *data, size_t size) {
  struct etcd2_call *call = (struct etcd2_call *)base;
  return etcd2_nodes_feed(call->nodes, data, size);
}

void etcd2_send_read(struct etcd2_call *call, void (*then)(struct etcd2_call *call)) {
  call->then = then;
  call->nodes = &call->listing->nodes;
  call->on_piece = take_piece;
  http_call_send(etcd2_base(call), "GET", false, came);
}

/* ------------------------------------------------------------------ small things */

bool etcd2_is_hidden(kv_slice key) {
  for (size_t i = 0; i < key.size; i++)
    if (key.data[i] == '_' && (!i || key.data[i - 1] == '/')) return true;
  return false;
}

uint64_t etcd2_ttl(double seconds) {
  if (!(seconds < ETCD2_TTL_MAX)) return (uint64_t)ETCD2_TTL_MAX;
  double whole = ceil(seconds);
  return whole < 1 ? 1 : (uint64_t)whole;
}

bool etcd2_written(struct etcd2_call *call, struct etcd2_node *node) {
  struct etcd2_event event;
  struct json *answer = json_read(call->http.answer);
  bool good = answer && etcd2_read_event(answer, &event) && event.node.modified;
  json_free(answer);
  if (!good) {
    http_call_garbled(etcd2_base(call));
    return false;
  }
  *node = event.node;
  node->key = node->text = (kv_slice){NULL, 0}; /* they went with the answer */
  return true;
}
