/*
 * large.c - put of a value that does not fit a transaction (its body, base64 included, is at most 512 KB; a value
 * alone may have 512 KB).
 *
 *   PUT    with ?cas=, ?acquire=, ?release=, or none of them; the answer is true or false
 *   look   read the key: the random flags tell whether what is there now is ours, and its session whether it will stay
 *
 * A bare PUT tells no index. When somebody has written the key again before we looked, ours is not known, only that
 * it lies below his: the one right below is answered, which no condition will ever find there.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "consul.h"

#define ROUNDS_MAX 12

enum step { STEP_PLAIN, STEP_CAS, STEP_ACQUIRE, STEP_RELEASE };

struct consul_large {
  enum step step;
  char holder[CONSUL_SESSION_SIZE];  /* the session that is in the way */
  uint64_t revision, created;        /* as seen last */
};

void consul_large_free(struct consul_large *large) {
  free(large);
}

static void look(struct consul_call *call);

static const char *wanted_session(const struct consul_call *call) {
  return call->op->lease ? call->op->lease->text : call->session;
}

static void finish_written(struct consul_call *call, uint64_t revision, uint64_t created) {
  call->op->result.revision = revision;
  call->op->result.created = created < revision ? created : revision;
  call->kept = true;
  consul_finish(call, KV_OK, NULL);
}

/* ------------------------------------------------------------------ writing */

static void written(struct consul_call *call);

static void put_value(struct consul_call *call, enum step step) {
  struct kv_op *op = call->op;
  char query[80];
  if (call->rounds++ >= ROUNDS_MAX) {
    consul_finish(call, KV_UNAVAILABLE, "the session of the key changes all the time");
    return;
  }
  call->large->step = step;
  consul_path(call, "/v1/kv/", op->key, "");
  consul_query_number(call, "flags", call->flags);
  if (step == STEP_CAS) consul_query_number(call, "cas", op->condition == KV_IF_REVISION ? op->revision : 0);
  if (step == STEP_ACQUIRE || step == STEP_RELEASE) {
    const char *session = step == STEP_ACQUIRE ? wanted_session(call) : call->large->holder;
    snprintf(query, sizeof query, "%s=%s", step == STEP_ACQUIRE ? "acquire" : "release", session);
    consul_query(call, query);
  }
  if (!kv_buffer_add(&call->body, op->value.data, op->value.size)) call->failed = true;
  consul_send(call, "PUT", true, written);
}

static void written(struct consul_call *call) {
  struct consul_large *large = call->large;
  kv_slice answer = call->http.answer;
  if (call->http.status != 200) {
    consul_refuse(call);
    return;
  }
  bool good = http_says(answer, "true");
  if (!good && !call->applied) call->op->sent = false; /* refused */
  if (!good && large->step == STEP_CAS) {
    bool creates = call->op->condition == KV_IF_ABSENT;
    consul_finish(call, creates ? KV_EXISTS : KV_MODIFIED,
                  creates ? "the key is there" : "the key was changed, or is gone");
    return;
  }
  if (good) call->applied = true; /* the value was there once */
  bool not_held_yet = good && (large->step == STEP_CAS || large->step == STEP_RELEASE) && wanted_session(call)[0];
  if (not_held_yet)
    put_value(call, STEP_ACQUIRE);
  else
    look(call);
}

/* ------------------------------------------------------------------ looking */

/* The session on the key is not the one that is wanted: does the key die with it? */
static void holder_told(struct consul_call *call) {
  struct consul_large *large = call->large;
  kv_slice behavior = {NULL, 0};
  struct json *answer = call->http.status == 200 ? json_read(call->http.answer) : NULL;
  if (!answer) {
    consul_refuse(call);
    return;
  }
  bool there = json_text(json_member(json_item(answer, 0), "Behavior"), &behavior);
  bool deletes = there && http_says(behavior, "delete");
  json_free(answer);
  if (!there && call->rounds++ < ROUNDS_MAX)
    look(call);
  else if (deletes)
    put_value(call, STEP_RELEASE);
  else if (!there || wanted_session(call)[0])
    consul_finish(call, KV_FAILED, "the key is somebody's lock: it cannot have a time to live");
  else /* a plain put leaves somebody's lock alone */
    finish_written(call, large->revision, large->created);
}

static void ask_holder(struct consul_call *call, const char *session) {
  memcpy(call->large->holder, session, CONSUL_SESSION_SIZE);
  consul_path(call, "/v1/session/info/", (kv_slice){session, strlen(session)}, "");
  consul_query(call, "consistent");
  consul_send(call, "GET", false, holder_told);
}

static void seen(struct consul_call *call, const struct consul_pair *pair) {
  struct consul_large *large = call->large;
  const char *wanted = wanted_session(call);
  bool ours = pair->flags == call->flags;
  large->revision = pair->revision;
  large->created = pair->created;
  if (!ours && call->applied)
    finish_written(call, pair->revision - 1, pair->created);
  else if (ours && strcmp(pair->session, wanted) == 0)
    finish_written(call, pair->revision, pair->created);
  else if (pair->session[0] && strcmp(pair->session, wanted) != 0)
    ask_holder(call, pair->session);
  else if (call->rounds > 2)
    consul_finish(call, KV_UNAVAILABLE, "the key is under a lock-delay");
  else
    put_value(call, STEP_ACQUIRE);
}

static void looked(struct consul_call *call) {
  struct consul_pair pair;
  uint64_t index = 0;
  if (call->http.status != 200 && call->http.status != 404) {
    consul_refuse(call);
    return;
  }
  if (call->http.status == 404) { /* deleted already, or it never was there */
    http_header_number(&call->http, "X-Consul-Index", &index);
    if (call->applied)
      finish_written(call, index, index);
    else
      put_value(call, STEP_ACQUIRE);
    return;
  }
  struct json *answer = json_read(call->http.answer);
  bool good = answer && consul_read_pair(json_item(answer, 0), NULL, &pair);
  json_free(answer);
  if (!good) {
    consul_garbled(call);
    return;
  }
  seen(call, &pair);
}

static void look(struct consul_call *call) {
  consul_path(call, "/v1/kv/", call->op->key, "");
  consul_query(call, "consistent");
  consul_send(call, "GET", false, looked);
}

/* ------------------------------------------------------------------ beginning */

void consul_large_go(struct consul_call *call) {
  call->large = calloc(1, sizeof *call->large);
  if (!call->large) {
    consul_no_memory(call);
    return;
  }
  call->rounds = 0;
  if (call->op->condition != KV_ALWAYS)
    put_value(call, STEP_CAS);
  else
    put_value(call, wanted_session(call)[0] ? STEP_ACQUIRE : STEP_PLAIN);
}
