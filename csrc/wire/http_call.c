/* http_call.c - see http_call.h. */
#include "http_call.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base64.h"

#define SECOND INT64_C(1000000000)
#define PATH_BYTES ((size_t)32 << 10)
#define BODY_BYTES ((size_t)8 << 20)

/* ------------------------------------------------------------------ text from servers */

bool http_says(kv_slice text, const char *words) {
  size_t size = strlen(words);
  for (size_t i = 0; i + size <= text.size; i++)
    if (memcmp(text.data + i, words, size) == 0) return true;
  return false;
}

bool http_begins(kv_slice text, const char *words) {
  size_t size = strlen(words);
  return text.size >= size && memcmp(text.data, words, size) == 0;
}

bool http_ends(kv_slice text, const char *words) {
  size_t size = strlen(words);
  return text.size >= size && memcmp(text.data + text.size - size, words, size) == 0;
}

const char *http_shown(kv_slice text, char *out, size_t size) {
  size_t used = 0;
  for (size_t i = 0; i < text.size && used + 1 < size; i++) {
    if (text.data[i] == '\n' && i + 1 < text.size && used) break;
    if ((unsigned char)text.data[i] >= 0x20 && text.data[i] != 0x7f) out[used++] = text.data[i];
  }
  out[used] = '\0';
  return out;
}

kv_code http_lost_code(enum http_outcome outcome, bool write) {
  switch (outcome) {
    case HTTP_NOT_SENT: return KV_UNAVAILABLE;
    case HTTP_REFUSED: return KV_INVALID;
    case HTTP_FAILED: return KV_FAILED;
    case HTTP_TOO_LONG: return write ? KV_UNKNOWN : KV_TOO_LARGE;
    default: return write ? KV_UNKNOWN : KV_UNAVAILABLE;
  }
}

/* ------------------------------------------------------------------ headers */

char *http_login_header(const char *username, const char *password) {
  static const char name[] = "Authorization: Basic ";
  struct kv_buffer plain, header;
  bool good = true;
  kv_buffer_init(&plain, 16384);
  kv_buffer_init(&header, 32768);
  good = good && kv_buffer_add(&plain, username, strlen(username)) && kv_buffer_add(&plain, ":", 1);
  good = good && (!password || kv_buffer_add(&plain, password, strlen(password)));
  good = good && kv_buffer_add(&header, name, sizeof name - 1);
  good = good && base64_encode(&header, (kv_slice){plain.data, plain.size}) && kv_buffer_add(&header, "", 1);
  if (plain.data) memset(plain.data, 0, plain.size);
  kv_buffer_free(&plain);
  if (!good) kv_buffer_free(&header);
  return good ? header.data : NULL;
}

bool http_is_header_text(const char *text) {
  for (; text && *text; text++)
    if ((unsigned char)*text < 0x20 || *text == 0x7f) return false;
  return true;
}

/* ------------------------------------------------------------------ memory */

void *http_call_new(struct http_calls *calls, size_t size, struct kv_op *op) {
  struct http_call *call = calloc(1, size);
  if (!call) {
    if (op) calls->host->finish(op, KV_FAILED, "out of memory");
    return NULL;
  }
  kv_buffer_init(&call->path, PATH_BYTES);
  kv_buffer_init(&call->body, BODY_BYTES);
  kv_buffer_init(&call->text, HTTP_CALL_TEXT);
  call->calls = calls;
  call->op = op;
  if (op) op->data = call;
  call->next = calls->first;
  if (call->next) call->next->link = &call->next;
  call->link = &calls->first;
  calls->first = call;
  return call;
}

static void end(struct http_call *call, kv_code code, const char *cause) {
  struct http_calls *calls = call->calls;
  struct kv_op *op = call->op;
  if (call->applied && code == KV_UNAVAILABLE) code = KV_UNKNOWN;
  http_cancel(calls->http, &call->http);
  *call->link = call->next;
  if (call->next) call->next->link = call->link;
  kv_buffer_free(&call->path);
  kv_buffer_free(&call->body);
  kv_buffer_free(&call->text);
  calls->release(call, code, cause ? cause : "failed");
  if (!op) return;
  op->data = NULL;
  if (code == KV_OK)
    calls->host->finish(op, KV_OK, NULL);
  else
    calls->host->finish(op, code, "%s", cause ? cause : "failed");
}

void http_call_finish(struct http_call *call, kv_code code, const char *format, ...) {
  char cause[KV_MESSAGE_MAX];
  if (format) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(cause, sizeof cause, format, arguments);
    va_end(arguments);
  }
  end(call, code, format ? cause : NULL);
}

void http_call_garbled(struct http_call *call) {
  http_call_finish(call, call->write ? KV_UNKNOWN : KV_FAILED, "the answer is not what %s sends", call->calls->server);
}

void http_call_no_memory(struct http_call *call) {
  http_call_finish(call, KV_FAILED, "out of memory");
}

/* ------------------------------------------------------------------ requests */

static void add(struct http_call *call, const char *data, size_t size) {
  if (!kv_buffer_add(&call->path, data, size)) call->failed = true;
}

void http_call_path(struct http_call *call, const char *prefix, kv_slice key, const char *tail) {
  call->path.size = 0;
  call->body.size = 0;
  call->has_query = false;
  add(call, prefix, strlen(prefix));
  if (!http_escape(&call->path, key, true)) call->failed = true;
  add(call, tail, strlen(tail));
}

void http_call_query(struct http_call *call, const char *text) {
  add(call, call->has_query ? "&" : "?", 1);
  add(call, text, strlen(text));
  call->has_query = true;
}

void http_call_query_number(struct http_call *call, const char *name, uint64_t number) {
  char text[80];
  snprintf(text, sizeof text, "%s=%" PRIu64, name, number);
  http_call_query(call, text);
}

void http_call_body(struct http_call *call, const char *data, size_t size) {
  if (!kv_buffer_add(&call->body, data, size)) call->failed = true;
}

static void on_sent(struct http_request *http) {
  struct http_call *call = (struct http_call *)http;
  if (call->op && call->write) call->op->sent = true;
  if (call->write && call->calls->sent) call->calls->sent(call);
}

static bool on_body(struct http_request *http, const char *data, size_t size) {
  struct http_call *call = (struct http_call *)http;
  if (http->status == 200) return call->on_piece(call, data, size);
  size_t room = HTTP_CALL_TEXT - call->text.size;
  kv_buffer_add(&call->text, data, size < room ? size : room);
  return true;
}

static void on_done(struct http_request *http) {
  struct http_call *call = (struct http_call *)http;
  if (http->outcome != HTTP_ANSWERED) {
    http_call_finish(call, http_lost_code(http->outcome, call->write), "%s", http->problem);
    return;
  }
  if (call->calls->came) call->calls->came(call);
  call->on_answer(call);
}

void http_call_send(struct http_call *call, const char *method, bool write, void (*on_answer)(struct http_call *call)) {
  struct http_request *http = &call->http;
  if (call->failed) {
    http_call_no_memory(call);
    return;
  }
  memset(http, 0, sizeof *http);
  http->method = method;
  http->path = &call->path;
  http->body = call->body.size ? &call->body : NULL;
  http->write = call->write = write;
  http->lasting = call->lasting;
  http->content_type = http->body ? call->content_type : NULL;
  http->answer_max = call->calls->answer_max;
  http->on_sent = on_sent;
  http->on_body = call->on_piece ? on_body : NULL;
  http->done = on_done;
  call->on_answer = on_answer;
  call->text.size = 0;
  http_start(call->calls->http, http);
}

kv_slice http_call_text(const struct http_call *call) {
  return call->on_piece ? (kv_slice){call->text.data, call->text.size} : call->http.answer;
}

/* ------------------------------------------------------------------ giving up, closing */

void http_call_cancel(struct http_call *call) {
  http_doubt(call->calls->http, &call->http);
  if (call->undo && call->http.sent) {
    struct kv_op *op = call->op;
    call->op = NULL;
    op->data = NULL;
    call->calls->host->finish(op, KV_CANCELLED, "cancelled");
    return;
  }
  http_call_finish(call, KV_CANCELLED, "cancelled");
}

static void close_now(struct kv_task *task) {
  struct http_calls *calls = task->data;
  const struct kv_host *host = calls->host;
  if (calls->closed) return;
  if (calls->first && host->now() < calls->close_until) {
    host->timer_set(&calls->close_timer, host->now() + SECOND / 100);
    return;
  }
  host->timer_stop(&calls->close_timer);
  calls->closed = true;
  if (calls->closing_now) calls->closing_now(calls->context);
  while (calls->first) http_call_finish(calls->first, KV_CLOSED, "the store was closed");
  http_client_close(calls->http);
  host->closed(calls->backend);
}

static void close_late(struct kv_timer *timer) {
  struct http_calls *calls = timer->data;
  close_now(&calls->close_task);
}

void http_calls_init(struct http_calls *calls) {
  calls->close_timer.fire = close_late;
  calls->close_timer.data = calls;
  calls->close_task.run = close_now;
  calls->close_task.data = calls;
}

void http_calls_close(struct http_calls *calls, double grace) {
  calls->closing = true;
  calls->close_until = calls->host->now() + (int64_t)(grace * (double)SECOND);
  calls->host->defer(&calls->close_task); /* perhaps we are inside an answer */
}
