/*
 * share.c - gets and puts that are asked for at once share a transaction.
 *
 * Most of what an operation costs, the server above all, is the request and, for a write, the entry in the log of the
 * servers with its sync. So no more than a few requests for single keys are out at a time; what comes meanwhile
 * waits for one of them to end, but never for long, and then goes in one transaction. One caller after the other
 * never waits, and shares nothing.
 *
 * It shows in nothing but speed, for these reasons.
 *   - Only operations that no other can make fail are shared: strong gets, and puts without a condition or a time to
 *     live. A transaction that was refused did nothing; each of its operations then goes on its own.
 *   - A transaction gives all that it writes one index, so that it holds a key only once: two writes of a key with the
 *     same index could not be told apart.
 *   - A put whose transaction was sent and not answered is unknown, as it would be alone.
 *   - A get may be answered from a state that is newer than the question, never from an older one: the transaction is
 *     sent after the get was asked for, and read with ?consistent.
 *
 * Reads of keys that are not there are refused with the whole transaction. Where that happens, operations go on their
 * own for a while, and longer each time.
 */
#include <stdlib.h>
#include <string.h>

#include "consul.h"

#define OUT_MAX 4                             /* requests of a lane at a time */
#define PATIENCE (5 * CONSUL_SECOND / 1000)   /* nobody waits longer than this for others */
#define VALUE_MAX ((size_t)16 << 10)          /* larger ones are put on their own */
#define BODY_MAX ((size_t)256 << 10)
#define ANSWER_WANTED ((size_t)1 << 20)       /* no more than about so many bytes of values in one answer */
#define ALONE_FIRST 64
#define ALONE_MAX 8192
#define LOOK_BACK 32

enum place { NOT_SHARED, WAITS, IS_OUT }; /* op->number */

struct consul_shared {
  size_t count;
  struct kv_op *ops[CONSUL_TXN_OPS]; /* NULL: given up */
};

static void flush_task(struct kv_task *task);
static void out_of_patience(struct kv_timer *timer);

/* ------------------------------------------------------------------ who waits */

static void lane_init(struct consul *consul, struct consul_lane *lane, bool writes) {
  lane->consul = consul;
  lane->writes = writes;
  lane->most = writes ? CONSUL_TXN_OPS / 2 : CONSUL_TXN_OPS; /* a put is two operations: see write.c */
  lane->penalty = ALONE_FIRST;
  lane->task = (struct kv_task){.run = flush_task, .data = lane};
  lane->patience = (struct kv_timer){.fire = out_of_patience, .data = lane};
}

void consul_share_init(struct consul *consul) {
  lane_init(consul, &consul->gets, false);
  lane_init(consul, &consul->puts, true);
}

void consul_share_close(struct consul *consul) {
  kv_consul->timer_stop(&consul->gets.patience);
  kv_consul->timer_stop(&consul->puts.patience);
}

static void push(struct consul_lane *lane, struct kv_op *op) {
  op->number = WAITS;
  op->data = lane;
  op->next = NULL;
  op->previous = lane->last;
  if (lane->last) lane->last->next = op;
  else lane->first = op;
  lane->last = op;
  lane->count++;
}

static void take_out(struct consul_lane *lane, struct kv_op *op) {
  if (op->previous) op->previous->next = op->next;
  else lane->first = op->next;
  if (op->next) op->next->previous = op->previous;
  else lane->last = op->previous;
  op->next = op->previous = NULL;
  op->number = NOT_SHARED;
  op->data = NULL;
  lane->count--;
}

/* Is a put of the same key among the last that wait? Then it would be kept waiting by this one. */
static bool is_among_last(const struct consul_lane *lane, const struct kv_op *op) {
  const struct kv_op *other = lane->last;
  for (int i = 0; i < LOOK_BACK && other; i++, other = other->previous)
    if (other->key.size == op->key.size && memcmp(other->key.data, op->key.data, op->key.size) == 0) return true;
  return false;
}

/* ------------------------------------------------------------------ on its own */

static void start_alone(struct consul *consul, struct kv_op *op) {
  op->sent = false;
  op->number = NOT_SHARED;
  op->data = NULL;
  if (op->kind == KV_GET) consul_get(consul, op);
  else consul_put(consul, op);
}

/* As one of the few requests that may be out. */
static void start_counted(struct consul_lane *lane, struct kv_op *op) {
  take_out(lane, op);
  lane->consul->counting = lane;
  start_alone(lane->consul, op);
  lane->consul->counting = NULL;
}

static void refused(struct consul_lane *lane) {
  lane->alone = lane->penalty;
  if (lane->penalty < ALONE_MAX) lane->penalty *= 2;
}

/* Was not done together: each for itself. The call ends. */
static void go_apart(struct consul_call *call, bool was_refused) {
  struct consul *consul = call->consul;
  struct consul_shared *shared = call->shared;
  call->shared = NULL;
  if (was_refused) refused(call->lane);
  consul_finish(call, KV_OK, NULL);
  for (size_t i = 0; i < shared->count; i++)
    if (shared->ops[i]) start_alone(consul, shared->ops[i]);
  free(shared);
}

/* ------------------------------------------------------------------ answers */

static void finish_one(struct consul_shared *shared, size_t index, kv_code code, const char *cause) {
  struct kv_op *op = shared->ops[index];
  shared->ops[index] = NULL;
  op->number = NOT_SHARED;
  op->data = NULL;
  if (code == KV_OK) kv_consul->finish(op, KV_OK, NULL);
  else kv_consul->finish(op, code, "%s", cause);
}

/* All values together may be too much for one answer where each is not. */
void consul_shared_finish(struct consul *consul, struct consul_shared *shared, kv_code code, const char *cause) {
  bool apart = code == KV_TOO_LARGE;
  if (apart) refused(&consul->gets);
  for (size_t i = 0; i < shared->count; i++) {
    if (!shared->ops[i]) continue;
    if (apart) start_alone(consul, shared->ops[i]);
    else finish_one(shared, i, code, cause);
  }
  free(shared);
}

void consul_shared_sent(struct consul_shared *shared) {
  for (size_t i = 0; i < shared->count; i++)
    if (shared->ops[i]) shared->ops[i]->sent = true;
}

/* False: this is not about its key. */
static bool take_result(struct kv_op *op, const struct json *object, struct kv_buffer *value, kv_code *code) {
  struct consul_pair pair;
  bool get = op->kind == KV_GET, valued = get && !(op->flags & KV_KEYS_ONLY);
  if (!consul_read_pair(object, valued ? value : NULL, &pair)) return false;
  if (pair.key.size != op->key.size || memcmp(pair.key.data, op->key.data, op->key.size) != 0) return false;
  *code = KV_OK;
  op->result.revision = pair.revision;
  if (!get) op->result.created = pair.created;
  else if (!kv_consul->pair(op, op->key, pair.value, pair.revision, pair.created, false)) *code = KV_FAILED;
  return true;
}

/* Results come in the order of the operations. A get that has none was not allowed, and is told so on its own; a put
 * always has one. False: it is no such answer. */
static bool take_results(struct consul_call *call, const struct json *results) {
  struct consul_shared *shared = call->shared;
  struct kv_buffer value;
  size_t at = 0, count = json_count(results);
  bool good = count > 0;
  kv_buffer_init(&value, CONSUL_ELEMENT_MAX);
  for (size_t i = 0; i < shared->count && good; i++) {
    kv_code code = KV_OK;
    const struct json *object = json_member(json_item(results, at), "KV");
    if (!shared->ops[i]) {
      at++;
    } else if (object && take_result(shared->ops[i], object, &value, &code)) {
      finish_one(shared, i, code, "out of memory");
      at++;
    } else {
      good = !call->write;
    }
  }
  kv_buffer_free(&value);
  return good;
}

static void answered(struct consul_call *call) {
  struct consul_lane *lane = call->lane;
  int status = call->http.status;
  if (status != 200) {
    kv_code code = consul_code(status, call->http.answer, call->write);
    if (status != 409 && (code == KV_UNKNOWN || code == KV_UNAVAILABLE)) consul_refuse(call);
    else go_apart(call, true);
    return;
  }
  size_t each = call->http.answer.size / call->shared->count;
  lane->each = each > lane->each ? each : lane->each - (lane->each - each) / 8;
  struct json *answer = json_read(call->http.answer);
  bool good = take_results(call, json_member(answer, "Results"));
  json_free(answer);
  if (good) lane->penalty = ALONE_FIRST;
  if (good || !call->write) go_apart(call, !good); /* with those that had no result */
  else consul_garbled(call);
}

/* ------------------------------------------------------------------ together */

static void add_verbs(struct consul_call *call, const struct kv_op *op) {
  if (op->kind == KV_GET) {
    consul_verb(call, &(struct consul_verb){.verb = "get", .key = op->key});
    return;
  }
  consul_verb(call, &(struct consul_verb){
                      .verb = "set", .key = op->key, .has_value = true, .value = op->value, .flags = consul_flags()});
}

/* A key must not go on dying with a session: see write.c. */
static void add_session_checks(struct consul_call *call) {
  const struct consul_shared *shared = call->shared;
  for (size_t i = 0; i < shared->count; i++)
    consul_verb(call, &(struct consul_verb){
                        .verb = "check-session", .key = shared->ops[i]->key, .has_session = true, .session = ""});
}

static bool has_key(const struct consul_shared *shared, const struct kv_op *op) {
  for (size_t i = 0; i < shared->count; i++) {
    const struct kv_op *other = shared->ops[i];
    if (other->key.size == op->key.size && memcmp(other->key.data, op->key.data, op->key.size) == 0) return true;
  }
  return false;
}

static void start_together(struct consul_lane *lane, size_t most) {
  struct consul *consul = lane->consul;
  struct consul_shared *shared = calloc(1, sizeof *shared);
  consul->counting = lane;
  struct consul_call *call = shared ? consul_call_new(consul, NULL) : NULL;
  consul->counting = NULL;
  if (!call) {
    free(shared);
    start_counted(lane, lane->first); /* which says so */
    return;
  }
  call->shared = shared;
  consul_path(call, "/v1/txn", (kv_slice){NULL, 0}, "");
  if (!lane->writes) consul_query(call, "consistent");
  struct kv_op *next;
  for (struct kv_op *op = lane->first; op && shared->count < most && call->body.size < BODY_MAX; op = next) {
    next = op->next;
    if (lane->writes && has_key(shared, op)) continue; /* with the next one */
    take_out(lane, op);
    op->number = IS_OUT;
    op->data = call;
    shared->ops[shared->count++] = op;
    add_verbs(call, op);
  }
  if (lane->writes) add_session_checks(call);
  consul_send_txn(call, lane->writes, answered);
}

static size_t most_together(const struct consul_lane *lane) {
  size_t most = lane->most;
  if (lane->each > ANSWER_WANTED / most) most = ANSWER_WANTED / lane->each;
  return most ? most : 1;
}

static void flush(struct consul_lane *lane, bool all) {
  while (lane->count && (all || lane->out < OUT_MAX)) {
    size_t most = most_together(lane);
    size_t count = lane->count < most ? lane->count : most;
    if (lane->alone || count == 1) {
      if (lane->alone) lane->alone--;
      start_counted(lane, lane->first);
    } else {
      start_together(lane, count);
    }
  }
  if (!lane->count) kv_consul->timer_stop(&lane->patience);
  else if (!lane->patience.slot) kv_consul->timer_set(&lane->patience, kv_consul->now() + PATIENCE);
}

static void flush_task(struct kv_task *task) {
  flush(task->data, false);
}

static void out_of_patience(struct kv_timer *timer) {
  flush(timer->data, true);
}

void consul_lane_freed(struct consul_lane *lane) {
  lane->out--;
  if (lane->count && !lane->consul->calls.closed) kv_consul->defer(&lane->task);
}

/* ------------------------------------------------------------------ for driver.c */

static bool may_share(const struct kv_op *op) {
  if (op->kind == KV_GET) return !(op->flags & (KV_FAST | KV_DATED));
  return op->condition == KV_ALWAYS && !(op->ttl > 0) && !op->lease && !(op->flags & (KV_PORTABLE | KV_KEEP_ALIVE)) &&
         op->value.size <= VALUE_MAX;
}

void consul_share(struct consul *consul, struct kv_op *op) {
  struct consul_lane *lane = op->kind == KV_GET ? &consul->gets : &consul->puts;
  if (!may_share(op) || lane->alone || (lane->writes && is_among_last(lane, op))) {
    if (lane->alone) lane->alone--;
    start_alone(consul, op);
    return;
  }
  push(lane, op);
  kv_consul->defer(&lane->task);
}

/* Not sent yet, and with a put in it that is not to be made any more: the others wait for another one. */
static void take_back(struct consul_call *call) {
  struct consul_lane *lane = call->lane;
  struct consul_shared *shared = call->shared;
  call->shared = NULL;
  consul_finish(call, KV_OK, NULL);
  for (size_t i = 0; i < shared->count; i++)
    if (shared->ops[i]) push(lane, shared->ops[i]);
  free(shared);
  kv_consul->defer(&lane->task);
}

bool consul_share_cancel(struct consul *consul, struct kv_op *op) {
  if (op->number == NOT_SHARED) return false;
  if (op->number == WAITS) {
    take_out(op->data, op);
    kv_consul->finish(op, KV_CANCELLED, "cancelled");
    return true;
  }
  struct consul_call *call = op->data;
  struct consul_shared *shared = call->shared;
  bool others = false;
  http_doubt(consul->calls.http, &call->http);
  for (size_t i = 0; i < shared->count; i++) {
    if (shared->ops[i] == op) finish_one(shared, i, KV_CANCELLED, "cancelled");
    others = others || shared->ops[i];
  }
  if (call->write && !call->http.sent) take_back(call);
  else if (!others && !call->write) consul_finish(call, KV_CANCELLED, "cancelled");
  return true;
}
