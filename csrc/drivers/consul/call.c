/*
 * call.c - calls: from an operation to HTTP requests and back.
 *
 * A call is a chain of requests; each answer leads to the next request or to the end. What a refusal means is decided
 * in consul_code(): only what was certainly not applied is KV_UNAVAILABLE.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "consul.h"

#define PATH_BYTES ((size_t)32 << 10)
#define BODY_BYTES ((size_t)4 << 20)
#define TEXT_BYTES 4096

/* ------------------------------------------------------------------ what answers mean */

bool consul_says(kv_slice text, const char *words) {
  size_t size = strlen(words);
  for (size_t i = 0; i + size <= text.size; i++)
    if (memcmp(text.data + i, words, size) == 0) return true;
  return false;
}

bool consul_begins(kv_slice text, const char *words) {
  size_t size = strlen(words);
  return text.size >= size && memcmp(text.data, words, size) == 0;
}

bool consul_ends(kv_slice text, const char *words) {
  size_t size = strlen(words);
  return text.size >= size && memcmp(text.data + text.size - size, words, size) == 0;
}

const char *consul_shown(kv_slice text, char *out, size_t size) {
  size_t used = 0;
  for (size_t i = 0; i < text.size && used + 1 < size; i++) {
    if (text.data[i] == '\n' && i + 1 < text.size && used) break;
    if ((unsigned char)text.data[i] >= 0x20 && text.data[i] != 0x7f) out[used++] = text.data[i];
  }
  out[used] = '\0';
  return out;
}

static kv_code server_code(kv_slice text, bool write) {
  if (consul_says(text, "No cluster leader")) return KV_UNAVAILABLE;
  if (consul_says(text, "Permission denied") || consul_says(text, "ACL not found")) return KV_DENIED;
  if (consul_says(text, "No path to datacenter")) return KV_FAILED;
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

static kv_code lost_code(const struct consul_call *call) {
  switch (call->http.outcome) {
    case HTTP_NOT_SENT: return KV_UNAVAILABLE;
    case HTTP_REFUSED: return KV_INVALID;
    case HTTP_FAILED: return KV_FAILED;
    case HTTP_TOO_LONG: return call->write ? KV_UNKNOWN : KV_TOO_LARGE;
    default: return call->write ? KV_UNKNOWN : KV_UNAVAILABLE;
  }
}

void consul_refuse(struct consul_call *call) {
  kv_slice text = call->pairs ? (kv_slice){call->text.data, call->text.size} : call->http.answer;
  char shown[200];
  int status = call->http.status;
  if (status == 429) http_crowded(call->consul->http);
  consul_shown(text, shown, sizeof shown);
  kv_code code = consul_code(status, text, call->write);
  consul_finish(call, code, "%s%sHTTP status %d", shown, shown[0] ? ", " : "", status);
}

void consul_garbled(struct consul_call *call) {
  consul_finish(call, call->write ? KV_UNKNOWN : KV_FAILED, "the answer is not what Consul sends");
}

void consul_no_memory(struct consul_call *call) {
  consul_finish(call, KV_FAILED, "out of memory");
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
  struct consul_call *call = calloc(1, sizeof *call);
  if (!call) {
    if (op) kv_consul->finish(op, KV_FAILED, "out of memory");
    return NULL;
  }
  kv_buffer_init(&call->path, PATH_BYTES);
  kv_buffer_init(&call->body, BODY_BYTES);
  kv_buffer_init(&call->text, TEXT_BYTES);
  call->consul = consul;
  call->op = op;
  if (op) op->data = call;
  call->next = consul->calls;
  if (call->next) call->next->link = &call->next;
  call->link = &consul->calls;
  consul->calls = call;
  call->lane = consul->counting;
  if (call->lane) call->lane->out++;
  return call;
}

static void call_free(struct consul_call *call) {
  *call->link = call->next;
  if (call->next) call->next->link = call->link;
  kv_buffer_free(&call->path);
  kv_buffer_free(&call->body);
  kv_buffer_free(&call->text);
  if (call->wrote) consul_write_free(call->wrote);
  if (call->large) consul_large_free(call->large);
  if (call->listing) consul_listing_free(call->listing);
  if (call->waiter) consul_waiter_free(call);
  if (call->lane) consul_lane_freed(call->lane);
  free(call);
}

void consul_finish(struct consul_call *call, kv_code code, const char *format, ...) {
  struct kv_op *op = call->op;
  struct consul_shared *shared = call->shared;
  char cause[KV_MESSAGE_MAX];
  if (format) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(cause, sizeof cause, format, arguments);
    va_end(arguments);
  }
  http_cancel(call->consul->http, &call->http);
  if (call->wrote && !call->kept && code != KV_UNKNOWN && !(code == KV_CANCELLED && op && op->sent))
    consul_write_abandon(call);
  call_free(call);
  if (shared) consul_shared_finish(shared, code, format ? cause : "failed");
  if (!op) return;
  op->data = NULL;
  if (code == KV_OK)
    kv_consul->finish(op, KV_OK, NULL);
  else
    kv_consul->finish(op, code, "%s", format ? cause : "failed");
}

/* ------------------------------------------------------------------ requests */

static void add(struct consul_call *call, const char *data, size_t size) {
  if (!kv_buffer_add(&call->path, data, size)) call->failed = true;
}

void consul_path(struct consul_call *call, const char *prefix, kv_slice key, const char *tail) {
  call->path.size = 0;
  call->body.size = 0;
  call->has_query = false;
  add(call, prefix, strlen(prefix));
  if (!http_escape(&call->path, key, true)) call->failed = true;
  add(call, tail, strlen(tail));
}

void consul_query(struct consul_call *call, const char *text) {
  add(call, call->has_query ? "&" : "?", 1);
  add(call, text, strlen(text));
  call->has_query = true;
}

void consul_query_number(struct consul_call *call, const char *name, uint64_t number) {
  char text[80];
  snprintf(text, sizeof text, "%s=%" PRIu64, name, number);
  consul_query(call, text);
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

static void on_sent(struct http_request *http) {
  struct consul_call *call = (struct consul_call *)http;
  if (call->op && call->write) call->op->sent = true;
  if (call->shared && call->write) consul_shared_sent(call->shared);
}

/* What is no listing is kept as text for people. */
static bool on_pairs(struct http_request *http, const char *data, size_t size) {
  struct consul_call *call = (struct consul_call *)http;
  if (http->status == 200) return consul_pairs_feed(call->pairs, data, size);
  size_t room = TEXT_BYTES - call->text.size;
  kv_buffer_add(&call->text, data, size < room ? size : room);
  return true;
}

static void on_done(struct http_request *http) {
  struct consul_call *call = (struct consul_call *)http;
  if (http->outcome != HTTP_ANSWERED) {
    consul_finish(call, lost_code(call), "%s", http->problem);
    return;
  }
  if (!call->consul->version_asked) consul_ask_version(call->consul);
  call->answered(call);
}

static void send_request(struct consul_call *call, const char *method, bool write) {
  struct http_request *http = &call->http;
  add_datacenter(call);
  if (call->failed) {
    consul_no_memory(call);
    return;
  }
  memset(http, 0, sizeof *http);
  http->method = method;
  http->path = &call->path;
  http->body = call->body.size ? &call->body : NULL;
  http->write = call->write = write;
  http->answer_max = CONSUL_ANSWER_MAX;
  http->on_sent = on_sent;
  http->on_body = call->pairs ? on_pairs : NULL;
  http->done = on_done;
  call->text.size = 0;
  http_start(call->consul->http, http);
}

void consul_send(struct consul_call *call, const char *method, bool write, void (*answered)(struct consul_call *call)) {
  call->answered = answered;
  call->pairs = NULL;
  send_request(call, method, write);
}

void consul_send_pairs(struct consul_call *call, struct consul_pairs *pairs,
                       void (*answered)(struct consul_call *call)) {
  call->answered = answered;
  call->pairs = pairs;
  send_request(call, "GET", false);
}

/* ------------------------------------------------------------------ giving up */

void consul_call_cancel(struct consul_call *call) {
  http_doubt(call->consul->http, &call->http);
  if (call->undo && call->http.sent) {
    struct kv_op *op = call->op;
    call->op = NULL;
    op->data = NULL;
    kv_consul->finish(op, KV_CANCELLED, "cancelled");
    return;
  }
  consul_finish(call, KV_CANCELLED, "cancelled");
}
