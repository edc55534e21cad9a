/*
 * doubt.c - keys that were in one state of a directory and are not in the next: are they gone, or may they not be read
 * any more? A server leaves out what the token may not read, and before version 1.11 does not say so.
 *
 * A transaction of gets tells: it is refused, and names each key that does not exist, whoever asks. A key that it does
 * not name is there. When nothing is refused, the keys that may be read are in the answer, and the others are not. So
 * all are asked for together first, and then, one by one, those that were not named.
 */
#include <string.h>

#include "consul.h"

#define KEYS_MAX ((size_t)1 << 30)

static void ask(struct consul_doubt *doubt);

void consul_doubt_init(struct consul_doubt *doubt) {
  kv_buffer_init(&doubt->keys, KEYS_MAX);
}

void consul_doubt_add(struct consul_doubt *doubt, kv_slice key) {
  if (!kv_buffer_add(&doubt->keys, key.data, key.size) || !kv_buffer_add(&doubt->keys, "", 1)) doubt->failed = true;
}

void consul_doubt_drop(struct consul_doubt *doubt) {
  struct consul_call *call = doubt->call;
  doubt->call = NULL;
  doubt->failed = false;
  kv_buffer_free(&doubt->keys);
  if (!call) return;
  call->doubt = NULL;
  consul_finish(call, KV_CANCELLED, "cancelled");
}

static void over(struct consul_doubt *doubt, kv_code code) {
  consul_doubt_drop(doubt);
  doubt->done(doubt, code);
}

void consul_doubt_failed(struct consul_doubt *doubt, kv_code code) {
  doubt->call = NULL;
  over(doubt, code);
}

static kv_slice key_at(const struct consul_doubt *doubt, size_t at) {
  return (kv_slice){doubt->keys.data + at, strlen(doubt->keys.data + at)};
}

/* Refused: does the answer say of each key that it is not there? */
static bool all_are_gone(const struct consul_doubt *doubt, const struct json *answer) {
  kv_slice what;
  for (size_t i = 0; i < doubt->count; i++)
    if (!consul_txn_error(answer, i, &what) || !http_ends(what, "doesn't exist")) return false;
  return true;
}

/* Not refused: all are there. */
static bool all_can_be_read(const struct consul_doubt *doubt, const struct json *answer) {
  struct consul_pair pair;
  for (size_t i = 0, at = doubt->at; i < doubt->count; i++, at += key_at(doubt, at).size + 1)
    if (!consul_txn_result(answer, key_at(doubt, at), NULL, &pair)) return false;
  return true;
}

static void answered(struct consul_call *call) {
  struct consul_doubt *doubt = call->doubt;
  struct json *answer = consul_txn_answer(call);
  kv_slice what;
  if (!answer) return; /* the call has ended */
  bool refused = call->http.status == 409, denied = consul_txn_denied(answer, &what);
  bool good = !denied && (refused ? all_are_gone(doubt, answer) : all_can_be_read(doubt, answer));
  json_free(answer);
  call->doubt = NULL;
  doubt->call = NULL;
  consul_finish(call, KV_OK, NULL);
  if (good) {
    doubt->at = doubt->end;
    if (doubt->at >= doubt->apart) doubt->apart = 0;
    ask(doubt);
  } else if (denied || !refused) {
    over(doubt, KV_DENIED);
  } else if (doubt->count > 1) {
    doubt->apart = doubt->end;
    ask(doubt);
  } else {
    over(doubt, KV_UNAVAILABLE);
  }
}

static void ask(struct consul_doubt *doubt) {
  if (doubt->at >= doubt->keys.size) {
    over(doubt, KV_OK);
    return;
  }
  struct consul_call *call = consul_call_new(doubt->consul, NULL);
  if (!call) {
    over(doubt, KV_UNAVAILABLE);
    return;
  }
  call->doubt = doubt;
  doubt->call = call;
  doubt->end = doubt->at;
  consul_path(call, "/v1/txn", (kv_slice){NULL, 0}, "");
  consul_query(call, "consistent");
  size_t most = doubt->apart ? 1 : CONSUL_TXN_OPS;
  for (doubt->count = 0; doubt->count < most && doubt->end < doubt->keys.size; doubt->count++) {
    kv_slice key = key_at(doubt, doubt->end);
    consul_verb(call, &(struct consul_verb){.verb = "get", .key = key});
    doubt->end += key.size + 1;
  }
  consul_send_txn(call, false, answered);
}

void consul_doubt_ask(struct consul_doubt *doubt) {
  doubt->at = doubt->apart = 0;
  if (doubt->failed) over(doubt, KV_UNAVAILABLE);
  else ask(doubt);
}
