/*
 * session.c - sessions: what leases and the time to live of a key are on Consul.
 *
 * All our sessions delete their keys at their end, depend on no health check (the default one loses sessions without
 * need), and have a TTL; Consul lets one live up to twice as long. A TTL below the server's minimum (10 s unless
 * configured otherwise) is refused, and the refusal names the minimum: it is asked for again with that, and
 * remembered.
 *
 * The lock-delay keeps keys of a session that was *lost* from being locked at once. It protects a holder who does not
 * know yet, so sessions of locks have it, as long as their TTL and at most Consul's own default of 15 s. Keys with a
 * time to live need none.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "consul.h"

#define TTL_MAX 86400.0
#define LOCK_DELAY_MAX 15.0

/* ------------------------------------------------------------------ durations */

static bool unit(const char **at, const char *end, double *factor) {
  static const struct { const char *name; double seconds; } units[] = {
    {"ms", 1e-3}, {"us", 1e-6}, {"ns", 1e-9}, {"h", 3600}, {"m", 60}, {"s", 1}};
  for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
    size_t size = strlen(units[i].name);
    if ((size_t)(end - *at) < size || memcmp(*at, units[i].name, size) != 0) continue;
    *at += size;
    *factor = units[i].seconds;
    return true;
  }
  return false;
}

bool consul_duration(kv_slice text, double *seconds) {
  const char *at = text.data, *end = at + text.size;
  *seconds = 0;
  if (!text.size) return false;
  while (at < end) {
    double number = 0, scale = 1, factor;
    const char *from = at;
    for (; at < end && *at >= '0' && *at <= '9' && at - from < 18; at++) number = number * 10 + (*at - '0');
    if (at == from) return false;
    if (at < end && *at == '.')
      for (at++; at < end && *at >= '0' && *at <= '9'; at++) number += (*at - '0') * (scale /= 10);
    if (!unit(&at, end, &factor)) return false;
    *seconds += number * factor;
  }
  return true;
}

/* Invalid Session TTL '2000000000', must be between [10s=24h0m0s] */
static bool told_minimum(kv_slice text, double *seconds) {
  static const char words[] = "must be between [";
  for (size_t i = 0; i + sizeof words - 1 < text.size; i++) {
    if (memcmp(text.data + i, words, sizeof words - 1) != 0) continue;
    const char *from = text.data + i + sizeof words - 1;
    const char *end = memchr(from, '=', text.size - (size_t)(from - text.data));
    return end && consul_duration((kv_slice){from, (size_t)(end - from)}, seconds) && *seconds > 0;
  }
  return false;
}

/* ------------------------------------------------------------------ creating */

static double session_ttl(const struct consul *consul, double wanted) {
  return wanted < consul->ttl_min ? consul->ttl_min : wanted;
}

static void request_session(struct consul_call *call, const char *name, double ttl, double lock_delay,
                            void (*answered)(struct consul_call *call)) {
  char text[240];
  consul_path(call, "/v1/session/create", (kv_slice){NULL, 0}, "");
  snprintf(text, sizeof text,
           "{\"Name\":\"%s\",\"TTL\":\"%.0fms\",\"LockDelay\":\"%.0fms\",\"Behavior\":\"delete\",\"NodeChecks\":[],"
           "\"Checks\":[]}",
           name, ttl * 1000, lock_delay * 1000);
  if (!kv_buffer_add(&call->body, text, strlen(text))) call->failed = true;
  /* A session that nobody knows of holds nothing, and expires: this may be sent again. */
  consul_send(call, "PUT", false, answered);
}

/* True: call->session is set. Otherwise the call is finished, or `again` is set. */
static bool created(struct consul_call *call, bool *again) {
  struct consul *consul = call->consul;
  double minimum;
  kv_slice id;
  *again = false;
  if (call->http.status != 200) {
    *again = told_minimum(call->http.answer, &minimum) && minimum > consul->ttl_min && minimum <= TTL_MAX;
    if (*again)
      consul->ttl_min = minimum;
    else
      consul_refuse(call);
    return false;
  }
  struct json *answer = json_read(call->http.answer);
  bool good = json_text(json_member(answer, "ID"), &id) && id.size == 36 && !memchr(id.data, '\0', id.size);
  for (size_t i = 0; good && i < id.size; i++) good = strchr("0123456789abcdefABCDEF-", id.data[i]) != NULL;
  if (good) {
    memcpy(call->session, id.data, id.size);
    call->session[id.size] = '\0';
  }
  json_free(answer);
  if (!good) consul_garbled(call);
  return good;
}

/* ------------------------------------------------------------------ the session of a put with a time to live */

static void ask_ttl_session(struct consul_call *call);

static void ttl_created(struct consul_call *call) {
  bool again;
  if (!created(call, &again)) {
    if (again) ask_ttl_session(call);
    return;
  }
  struct kv_op *op = call->op;
  /* It may live twice as long, and a moment more until the key is gone. */
  double late = 2 * session_ttl(call->consul, call->ttl) - call->ttl + 1;
  if (late > op->result.ttl_late) op->result.ttl_late = late;
  call->then(call);
}

static void ask_ttl_session(struct consul_call *call) {
  request_session(call, call->single ? "kv ttl" : "kv ttls", session_ttl(call->consul, call->ttl), 0, ttl_created);
}

void consul_ttl_session(struct consul_call *call, double ttl, bool single, void (*next)(struct consul_call *call)) {
  if (ttl > TTL_MAX) {
    consul_finish(call, KV_UNSUPPORTED, "Consul's longest time to live is a day");
    return;
  }
  call->then = next;
  call->ttl = ttl;
  call->single = single;
  ask_ttl_session(call);
}

/* ------------------------------------------------------------------ leases */

static void grant(struct consul_call *call);

static void granted(struct consul_call *call) {
  bool again;
  struct kv_op *op = call->op;
  if (!op) { /* cancelled meanwhile: nobody wants it */
    if (created(call, &again))
      consul_session_abandon(call->consul, call->session);
    else if (!again)
      return;
    consul_finish(call, KV_OK, NULL);
    return;
  }
  if (!created(call, &again)) {
    if (again) grant(call);
    return;
  }
  memcpy(op->lease->text, call->session, sizeof call->session);
  op->lease->granted = session_ttl(call->consul, op->lease->ttl);
  consul_finish(call, KV_OK, NULL);
}

static void grant(struct consul_call *call) {
  const struct kv_lease_ref *lease = call->op->lease;
  double ttl = session_ttl(call->consul, lease->ttl);
  double delay = !lease->for_lock ? 0 : ttl < LOCK_DELAY_MAX ? ttl : LOCK_DELAY_MAX;
  request_session(call, lease->for_lock ? "kv lock" : "kv lease", ttl, delay, granted);
}

void consul_lease_grant(struct consul *consul, struct kv_op *op) {
  if (op->lease->ttl > TTL_MAX) {
    kv_consul->finish(op, KV_UNSUPPORTED, "Consul's longest time to live is a day");
    return;
  }
  struct consul_call *call = consul_call_new(consul, op);
  if (!call) return;
  call->undo = true;
  grant(call);
}

static void renewed(struct consul_call *call) {
  struct kv_op *op = call->op;
  if (call->http.status == 404) {
    consul_finish(call, KV_LOST, "the session has expired or was destroyed");
  } else if (call->http.status != 200) {
    consul_refuse(call);
  } else {
    op->lease->granted = session_ttl(call->consul, op->lease->ttl);
    if (op->place)
      consul_queue_prove(call);
    else
      consul_finish(call, KV_OK, NULL);
  }
}

static void with_session(struct consul_call *call, const char *prefix, const char *session,
                         void (*answered)(struct consul_call *call)) {
  consul_path(call, prefix, (kv_slice){session, strlen(session)}, "");
  consul_send(call, "PUT", false, answered); /* may be sent again: it only says the same once more */
}

void consul_lease_renew(struct consul *consul, struct kv_op *op) {
  struct consul_call *call = consul_call_new(consul, op);
  if (call) with_session(call, "/v1/session/renew/", op->lease->text, renewed);
}

static void destroyed(struct consul_call *call) {
  if (call->http.status == 200)
    consul_finish(call, KV_OK, NULL);
  else
    consul_refuse(call);
}

void consul_lease_revoke(struct consul *consul, struct kv_op *op) {
  if (!op->lease->text[0]) { /* its creation was never answered: if there is one, it holds nothing */
    kv_consul->finish(op, KV_OK, NULL);
    return;
  }
  struct consul_call *call = consul_call_new(consul, op);
  if (!call) return;
  call->undo = true;
  with_session(call, "/v1/session/destroy/", op->lease->text, destroyed);
}

void consul_session_abandon(struct consul *consul, const char *session) {
  struct consul_call *call = consul->calls.closed ? NULL : consul_call_new(consul, NULL);
  if (call) with_session(call, "/v1/session/destroy/", session, destroyed); /* else it expires */
}
