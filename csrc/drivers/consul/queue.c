/*
 * queue.c - the steps of a lock queue.
 *
 * Consul wakes everybody who waits for a lock, and serves none in order. So the lock has two parts, both under the
 * session of the place:
 *
 *   .kv/lock/NAME/q/ID    a ticket for each who waits or holds; ID is his session, the order that of CreateIndex
 *   .kv/lock/NAME/lock    the real key; who has it locked holds the lock
 *
 * Each waiter waits for the ticket before his own to go away; the first in line then locks the real key. The queue
 * gives the order, the key gives the safety, and Consul's lock-delay on the key is respected. The token is the
 * ModifyIndex of the real key while it is ours: it comes from the one log of the servers, so it rises even when the
 * key is deleted and made again.
 *
 * A session serves one place at a time, so it is name enough for the ticket of a lock. With names that are never used
 * again each acquire would leave a tombstone, which Consul keeps for a quarter of an hour, and goes through with each
 * listing.
 *
 * Joining tries to lock the real key in the same transaction: then a lock that nobody wants costs one round trip. If
 * it turns out that somebody stands before us in line, the key is given back before anybody hears of it. Leaving
 * deletes key and ticket, so that nothing is locked when the session is destroyed, which would start the lock-delay.
 *
 * A semaphore has the tickets alone: the first `limit` of them hold, and the CreateIndex is the token.
 *
 * The foreign layout ("consul": consul lock, and its Go API) has no tickets: NAME is the key, and all who wait watch
 * it. A key that is none of a lock's, by its flags, is left alone: it is locked together with a check that it is as it
 * was read, or not there. Leaving deletes it here too, so that nothing is left behind; others take what is not there.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../names.h"
#include "consul.h"

#define FOREIGN_FLAGS UINT64_C(0x2ddccbc058a50c18) /* Consul's own mark of a lock; it refuses a key with another */
#define DELAYED 0.2  /* seconds between tries while the lock-delay lasts */
#define CROSSED 0.005 /* the key is held by one who gives it back at once */
#define NO_LOCK "the key is there, and is none of a lock of Consul's kind (its flags are other ones)"

/* ------------------------------------------------------------------ names */

/* There is always room: the core keeps names below KV_KEY_MAX. */
static void append(struct consul_lock_key *out, const char *data, size_t size) {
  out->size = kv_append(out->data, out->size, sizeof out->data, data, size);
}

static void queue_base(const struct kv_place *place, struct consul_lock_key *out) {
  out->size = 0;
  append(out, ".kv/lock/", 9);
  out->size = kv_append_escaped(out->data, out->size, sizeof out->data, place->name);
  append(out, "/", 1);
}

static void ticket_key(const struct kv_place *place, const char *id, struct consul_lock_key *out) {
  queue_base(place, out);
  append(out, "q/", 2);
  append(out, id, strlen(id));
}

void consul_lock_key(const struct kv_place *place, struct consul_lock_key *out) {
  out->size = 0;
  if (place->limit) {
    ticket_key(place, place->id, out);
    return;
  }
  if (place->interop) {
    append(out, place->name.data, place->name.size);
    return;
  }
  queue_base(place, out);
  append(out, "lock", 4);
}

static kv_slice slice(const struct consul_lock_key *key) {
  return (kv_slice){key->data, key->size};
}

static const char *session(const struct consul_call *call) {
  return call->op->lease ? call->op->lease->text : call->op->place->lease->text;
}

/* Of a semaphore it is called after the place, whose id tells more. */
static void own_ticket(const struct consul_call *call, struct consul_lock_key *out) {
  const struct kv_place *place = call->op->place;
  ticket_key(place, place->limit ? place->id : session(call), out);
}

/* ------------------------------------------------------------------ operations of transactions */

static void begin_txn(struct consul_call *call) {
  consul_path(call, "/v1/txn", (kv_slice){NULL, 0}, "");
}

static void lock_ticket(struct consul_call *call) {
  struct consul_lock_key ticket;
  kv_slice shown = {NULL, 0};
  if (call->op->place->limit) shown = call->op->place->value;
  own_ticket(call, &ticket);
  consul_verb(call, &(struct consul_verb){.verb = "lock",
                                          .key = slice(&ticket),
                                          .has_value = true,
                                          .value = shown,
                                          .flags = consul_flags(),
                                          .has_session = true,
                                          .session = session(call)});
}

static void lock_real(struct consul_call *call) {
  const struct kv_place *place = call->op->place;
  struct consul_lock_key real;
  consul_lock_key(place, &real);
  consul_verb(call, &(struct consul_verb){.verb = "lock", .key = slice(&real), .has_value = true, .value = place->value,
                                          .flags = place->interop ? FOREIGN_FLAGS : consul_flags(), .has_session = true,
                                          .session = session(call)});
}

static void check_ours(struct consul_call *call, const struct consul_lock_key *key) {
  consul_verb(call, &(struct consul_verb){.verb = "check-session", .key = slice(key), .has_session = true,
                                          .session = session(call)});
}

static void get_queue(struct consul_call *call) {
  struct consul_lock_key queue;
  ticket_key(call->op->place, "", &queue);
  consul_verb(call, &(struct consul_verb){.verb = "get-tree", .key = slice(&queue)});
}

static void delete_ours(struct consul_call *call, const struct consul_lock_key *key) {
  check_ours(call, key);
  consul_verb(call, &(struct consul_verb){.verb = "delete", .key = slice(key)});
}

/* A refusal that is about more than who holds what. `what`: of the operation with our session. True: the call is
 * finished. */
static bool refused_for_good(struct consul_call *call, const struct json *answer, kv_slice what) {
  char shown[160];
  bool denied = consul_txn_denied(answer, &what);
  bool gone = http_begins(what, "invalid session") || http_begins(what, "failed session lookup");
  if (denied) consul_finish(call, KV_DENIED, "%s", http_shown(what, shown, sizeof shown));
  else if (gone) consul_finish(call, KV_LOST, "the session is gone");
  return denied || gone;
}

/* The first operation of a transaction, that with our session or our ticket, was refused. */
static void refuse_first(struct consul_call *call, const struct json *answer) {
  kv_slice what = {NULL, 0};
  char shown[160];
  bool told = consul_txn_error(answer, 0, &what);
  if (refused_for_good(call, answer, what)) return;
  if (call->op->kind == KV_QUEUE_CLAIM) consul_finish(call, KV_LOST, "our entry in the queue is gone");
  else consul_finish(call, KV_FAILED, "%s", told ? http_shown(what, shown, sizeof shown) : "refused");
}

/* ------------------------------------------------------------------ who is before us? */

struct line {
  const struct kv_place *place;
  const char *session;
  struct consul_lock_key queue;
  uint64_t mine;       /* CreateIndex of our ticket; 0: it is not there */
  uint64_t ahead;      /* that of the last one before it; 0: nobody */
  char id[CONSUL_SESSION_SIZE];
  bool settled;        /* `mine` is known: the second walk looks for the one before */
};

static void see_ticket(struct line *line, const struct consul_pair *pair) {
  if (pair->key.size <= line->queue.size || memcmp(pair->key.data, line->queue.data, line->queue.size) != 0) return;
  kv_slice id = {pair->key.data + line->queue.size, pair->key.size - line->queue.size};
  if (!pair->session[0] || id.size >= sizeof line->id || memchr(id.data, '\0', id.size)) return; /* none of ours */
  if (!line->settled) {
    bool same = id.size == strlen(line->session) && memcmp(id.data, line->session, id.size) == 0;
    if (same && strcmp(pair->session, line->session) == 0) line->mine = pair->created;
  } else if (pair->created < line->mine && pair->created > line->ahead) {
    line->ahead = pair->created;
    memcpy(line->id, id.data, id.size);
    line->id[id.size] = '\0';
  }
}

static void walk(struct line *line, const struct json *list, bool in_txn) {
  for (size_t i = 0; i < json_count(list); i++) {
    struct consul_pair pair;
    const struct json *item = json_item(list, i);
    if (consul_read_pair(in_txn ? json_member(item, "KV") : item, NULL, &pair)) see_ticket(line, &pair);
  }
}

/* From the results of a transaction, or from a listing. */
static struct line read_line(const struct consul_call *call, const struct json *list, bool in_txn) {
  struct line line = {.place = call->op->place, .session = session(call)};
  ticket_key(line.place, "", &line.queue);
  walk(&line, list, in_txn);
  line.settled = true;
  if (line.mine) walk(&line, list, in_txn);
  return line;
}

static void answer_ahead(struct consul_call *call, const struct line *line, uint64_t revision) {
  struct kv_op *op = call->op;
  op->result.found = line->ahead != 0;
  if (!line->ahead) return;
  /* His session may come back with another ticket of the same name. */
  snprintf(op->place->ahead, sizeof op->place->ahead, "%s %" PRIu64, line->id, line->ahead);
  op->place->ahead_revision = revision;
}

/* ------------------------------------------------------------------ taking the real key, and giving it back */

/* Somebody stands before us, and the key is ours: he shall have it. */
static void given_back(struct consul_call *call) {
  struct json *answer = call->http.status == 200 ? NULL : consul_txn_answer(call);
  if (call->http.status != 200 && !answer) return;
  json_free(answer); /* refused: then it is not ours any more */
  consul_finish(call, KV_OK, NULL);
}

/* As it was taken: when this is late, and meets the key taken once more under the same session, it does nothing. */
static void give_back(struct consul_call *call, uint64_t index) {
  struct consul_lock_key real;
  consul_lock_key(call->op->place, &real);
  begin_txn(call);
  consul_verb(call, &(struct consul_verb){.verb = "check-index", .key = slice(&real), .has_index = true,
                                          .index = index});
  consul_verb(call, &(struct consul_verb){.verb = "delete", .key = slice(&real)});
  consul_send_txn(call, true, given_back);
}

static bool *crowd_mark(const struct consul_call *call);

/* The transaction locked the real key, and has read the line. False: malformed. */
static bool taken(struct consul_call *call, const struct json *answer) {
  struct kv_op *op = call->op;
  struct consul_lock_key real;
  struct consul_pair pair;
  consul_lock_key(op->place, &real);
  if (!consul_txn_result(answer, slice(&real), NULL, &pair)) return false;
  struct line line = read_line(call, json_member(answer, "Results"), true);
  if (!line.mine) return false;
  answer_ahead(call, &line, pair.revision);
  if (line.ahead) {
    *crowd_mark(call) = true;
    if (op->kind == KV_QUEUE_CLAIM) op->result.found = false; /* look again */
    give_back(call, pair.revision);
    return true;
  }
  op->place->token = pair.revision;
  op->result.found = op->kind == KV_QUEUE_CLAIM;
  consul_finish(call, KV_OK, NULL);
  return true;
}

/* ------------------------------------------------------------------ a semaphore: its line */

struct consul_ticket {
  uint64_t created;
  kv_slice id;
};

static int nearest_first(const void *a, const void *b) {
  uint64_t one = ((const struct consul_ticket *)a)->created, other = ((const struct consul_ticket *)b)->created;
  return one < other ? 1 : one > other ? -1 : 0;
}

/* Tell the nearest before the ticket that was made at `mine`, as many as may hold it; sets result.found. False: out of
 * memory. */
static bool tell_nearest(struct consul_call *call, const struct json *results, uint64_t mine, uint64_t index) {
  struct kv_op *op = call->op;
  size_t count = 0, limit = op->place->limit;
  struct consul_lock_key queue;
  struct consul_pair pair;
  struct consul_ticket *before = calloc(json_count(results) + 1, sizeof *before);
  if (!before) return false;
  ticket_key(op->place, "", &queue);
  for (size_t i = 0; i < json_count(results); i++) {
    if (!consul_read_pair(json_member(json_item(results, i), "KV"), NULL, &pair)) continue;
    bool is_ticket = pair.key.size > queue.size && memcmp(pair.key.data, queue.data, queue.size) == 0;
    if (!is_ticket || !pair.session[0] || pair.created >= mine) continue;
    before[count++] = (struct consul_ticket){pair.created, {pair.key.data + queue.size, pair.key.size - queue.size}};
  }
  qsort(before, count, sizeof *before, nearest_first);
  bool good = true;
  for (size_t i = 0; i < count && i < limit && good; i++)
    good = kv_consul->pair(op, before[i].id, before[i].id, index, 1, false);
  free(before);
  op->result.found = (count >= limit) != (op->kind == KV_QUEUE_CLAIM);
  return good;
}

/* The transaction is done: our ticket is there, and the whole line was read behind it. */
static void line_told(struct consul_call *call) {
  struct kv_op *op = call->op;
  struct json *answer = consul_txn_answer(call);
  struct consul_lock_key ticket;
  struct consul_pair pair;
  if (!answer) return;
  own_ticket(call, &ticket);
  if (call->http.status == 409) {
    refuse_first(call, answer);
  } else if (!consul_txn_result(answer, slice(&ticket), NULL, &pair)) {
    consul_garbled(call);
  } else if (!tell_nearest(call, json_member(answer, "Results"), pair.created, pair.revision)) {
    consul_no_memory(call);
  } else {
    op->place->token = pair.created;
    op->result.answered_ahead = true;
    consul_finish(call, KV_OK, NULL);
  }
  json_free(answer);
}

/* Our ticket, and who is in the queue with it. */
static void stand_in_line(struct consul_call *call, void (*then)(struct consul_call *call)) {
  begin_txn(call);
  lock_ticket(call);
  get_queue(call);
  consul_send_txn(call, true, then);
}

static void join_many(struct consul_call *call) {
  stand_in_line(call, line_told);
}

static void claim_one_of(struct consul_call *call) {
  struct consul_lock_key ticket;
  own_ticket(call, &ticket);
  begin_txn(call);
  check_ours(call, &ticket);
  get_queue(call);
  consul_send_txn(call, true, line_told);
}

static void first_told(struct consul_call *call) {
  struct json *answer = call->http.status == 200 ? json_read(call->http.answer) : NULL;
  struct consul_pair pair, first = {.created = 0};
  struct kv_buffer value;
  size_t at = 0;
  if (call->http.status != 200 && call->http.status != 404) {
    consul_refuse(call);
    return;
  }
  for (size_t i = 0; i < json_count(answer); i++) {
    if (!consul_read_pair(json_item(answer, i), NULL, &pair) || !pair.session[0]) continue;
    if (first.created && first.created <= pair.created) continue;
    first = pair;
    at = i;
  }
  kv_buffer_init(&value, CONSUL_ELEMENT_MAX);
  bool good = !first.created || (consul_read_pair(json_item(answer, at), &value, &first) &&
                                 kv_consul->pair(call->op, call->op->place->name, first.value, first.created,
                                                 first.created, false));
  kv_buffer_free(&value);
  json_free(answer);
  if (good) consul_finish(call, KV_OK, NULL);
  else consul_no_memory(call);
}

static void read_first(struct consul_call *call) {
  struct consul_lock_key queue;
  ticket_key(call->op->place, "", &queue);
  consul_path(call, "/v1/kv/", slice(&queue), "");
  consul_query(call, "recurse");
  consul_query(call, "consistent");
  consul_send(call, "GET", false, first_told);
}

/* ------------------------------------------------------------------ join */

/* Was somebody before us when we last came? Of this lock, or of another with the same place in the table. */
static bool *crowd_mark(const struct consul_call *call) {
  kv_slice name = call->op->place->name;
  unsigned hash = 0;
  for (size_t i = 0; i < name.size; i++) hash = hash * 31 + (unsigned char)name.data[i];
  return &call->consul->crowded_locks[hash % CONSUL_LOCK_MARKS];
}

static void joined(struct consul_call *call) {
  struct json *answer = consul_txn_answer(call);
  struct consul_lock_key ticket;
  struct consul_pair pair;
  if (!answer) return;
  own_ticket(call, &ticket);
  if (call->http.status == 409) {
    refuse_first(call, answer);
  } else if (!consul_txn_result(answer, slice(&ticket), NULL, &pair)) {
    consul_garbled(call);
  } else {
    struct line line = read_line(call, json_member(answer, "Results"), true);
    call->op->result.answered_ahead = line.mine != 0;
    *crowd_mark(call) = line.ahead != 0;
    answer_ahead(call, &line, pair.revision);
    consul_finish(call, KV_OK, NULL);
  }
  json_free(answer);
}

static void joined_and_taken(struct consul_call *call) {
  struct json *answer = consul_txn_answer(call);
  kv_slice what = {NULL, 0};
  if (!answer) return;
  if (call->http.status == 200) {
    call->op->result.answered_ahead = true;
    if (!taken(call, answer)) consul_garbled(call);
  } else if (consul_txn_error(answer, 0, &what) || consul_txn_denied(answer, &what)) {
    refuse_first(call, answer);
  } else { /* somebody holds it */
    stand_in_line(call, joined);
  }
  json_free(answer);
}

/*
 * Where many want the lock, one who comes while it is handed over would take the real key from under the next in line,
 * who would have to wait until it was given back. So there nobody tries that.
 */
static void join(struct consul_call *call) {
  if (*crowd_mark(call)) {
    stand_in_line(call, joined);
    return;
  }
  begin_txn(call);
  lock_ticket(call);
  lock_real(call);
  get_queue(call);
  consul_send_txn(call, true, joined_and_taken);
}

/* ------------------------------------------------------------------ ahead, and the line when a claim was refused */

static void line_read(struct consul_call *call) {
  struct kv_op *op = call->op;
  uint64_t index = 0;
  struct json *answer = call->http.status == 200 ? json_read(call->http.answer) : NULL;
  if (call->http.status != 200 && call->http.status != 404) {
    consul_refuse(call);
    return;
  }
  if ((call->http.status == 200 && !answer) || !http_header_number(&call->http, "X-Consul-Index", &index)) {
    json_free(answer);
    consul_garbled(call);
    return;
  }
  struct line line = read_line(call, answer, false);
  json_free(answer);
  if (!line.mine) {
    consul_finish(call, KV_LOST, "our entry in the queue is gone");
    return;
  }
  answer_ahead(call, &line, index);
  if (op->kind == KV_QUEUE_CLAIM) {
    if (!op->result.found) op->result.retry_after = CROSSED;
    op->result.found = false;
  }
  consul_finish(call, KV_OK, NULL);
}

static void read_queue(struct consul_call *call) {
  struct consul_lock_key queue;
  ticket_key(call->op->place, "", &queue);
  consul_path(call, "/v1/kv/", slice(&queue), "");
  consul_query(call, "recurse");
  consul_query(call, "consistent");
  consul_send(call, "GET", false, line_read);
}

/* One key as it is now: false when the call is finished, pair->revision 0 when there is none. */
static bool key_answer(struct consul_call *call, struct kv_buffer *value, struct consul_pair *pair) {
  memset(pair, 0, sizeof *pair);
  if (call->http.status == 404) return true;
  if (call->http.status != 200) {
    consul_refuse(call);
    return false;
  }
  struct json *answer = json_read(call->http.answer);
  bool good = answer && consul_read_pair(json_item(answer, 0), value, pair);
  pair->key = (kv_slice){NULL, 0};
  json_free(answer);
  if (!good) consul_garbled(call);
  return good;
}

static void read_real(struct consul_call *call, void (*answered)(struct consul_call *call)) {
  struct consul_lock_key real;
  consul_lock_key(call->op->place, &real);
  consul_path(call, "/v1/kv/", slice(&real), "");
  consul_query(call, "consistent");
  consul_send(call, "GET", false, answered);
}

/* ------------------------------------------------------------------ claim */

static void claimed(struct consul_call *call) {
  struct kv_op *op = call->op;
  struct json *answer = consul_txn_answer(call);
  kv_slice what = {NULL, 0};
  if (!answer) return;
  bool locked = !consul_txn_error(answer, 1, &what);
  if (call->http.status == 200) {
    if (!taken(call, answer)) consul_garbled(call);
  } else if (!locked && refused_for_good(call, answer, what)) {
    /* finished */
  } else if (consul_txn_error(answer, 0, &what)) {
    if (!refused_for_good(call, answer, what)) consul_finish(call, KV_LOST, "our entry in the queue is gone");
  } else if (!locked && http_ends(what, "lock delay")) {
    op->result.retry_after = DELAYED;
    consul_finish(call, KV_OK, NULL);
  } else {
    read_queue(call);
  }
  json_free(answer);
}

static void claim(struct consul_call *call) {
  struct consul_lock_key ticket;
  own_ticket(call, &ticket);
  begin_txn(call);
  check_ours(call, &ticket);
  lock_real(call);
  get_queue(call);
  consul_send_txn(call, true, claimed);
}

/* ------------------------------------------------------------------ the foreign layout: the key alone */

static void take_foreign(struct consul_call *call, uint64_t seen);

static void foreign_refused(struct consul_call *call, const struct json *answer) {
  struct kv_op *op = call->op;
  kv_slice what = {NULL, 0};
  bool told = consul_txn_error(answer, 1, &what);
  if (refused_for_good(call, answer, what)) return;
  if (told && http_ends(what, "lock delay")) op->result.retry_after = DELAYED;
  /* Else somebody was faster: AHEAD tells whether he holds it. */
  consul_finish(call, KV_OK, NULL);
}

static void foreign_answered(struct consul_call *call) {
  struct kv_op *op = call->op;
  struct json *answer = consul_txn_answer(call);
  struct consul_lock_key real;
  struct consul_pair pair;
  if (!answer) return;
  consul_lock_key(op->place, &real);
  if (call->http.status != 200) {
    foreign_refused(call, answer);
  } else if (!consul_txn_result(answer, slice(&real), NULL, &pair)) {
    consul_garbled(call);
  } else {
    op->place->token = pair.revision;
    op->result.answered_ahead = op->kind == KV_QUEUE_JOIN;
    op->result.found = op->kind == KV_QUEUE_CLAIM;
    consul_finish(call, KV_OK, NULL);
  }
  json_free(answer);
}

/* Lock it as it was seen at this index, 0: not there. */
static void take_foreign(struct consul_call *call, uint64_t seen) {
  struct consul_lock_key real;
  consul_lock_key(call->op->place, &real);
  begin_txn(call);
  consul_verb(call, &(struct consul_verb){.verb = seen ? "check-index" : "check-not-exists", .key = slice(&real),
                                          .has_index = seen != 0, .index = seen});
  lock_real(call);
  consul_send_txn(call, true, foreign_answered);
}

static void foreign_seen(struct consul_call *call) {
  struct kv_op *op = call->op;
  struct consul_pair pair;
  uint64_t index = 0;
  if (!key_answer(call, NULL, &pair)) return;
  bool held = pair.session[0] && strcmp(pair.session, session(call)) != 0;
  if (pair.revision && pair.flags != (uint64_t)(double)FOREIGN_FLAGS) { /* as near as they are read */
    consul_finish(call, KV_FAILED, "%s", NO_LOCK);
  } else if (op->kind == KV_QUEUE_CLAIM && !held) {
    take_foreign(call, pair.revision);
  } else {
    http_header_number(&call->http, "X-Consul-Index", &index);
    op->result.found = op->kind == KV_QUEUE_AHEAD && held;
    memcpy(op->place->ahead, pair.session, sizeof pair.session);
    op->place->ahead_revision = index;
    consul_finish(call, KV_OK, NULL);
  }
}

/* ------------------------------------------------------------------ leave */

/* The parts that the last transaction was to delete. */
enum { PART_REAL = 1, PART_TICKET = 2 };

static void leave_parts(struct consul_call *call, unsigned parts);

static void left(struct consul_call *call) {
  struct kv_op *op = call->op;
  struct json *answer = consul_txn_answer(call);
  kv_slice what;
  if (!answer) return;
  unsigned parts = call->rounds, there = parts;
  unsigned telling = (op->place->token && !op->place->limit) || op->place->interop ? PART_REAL : PART_TICKET;
  if (call->http.status == 409) {
    if (consul_txn_error(answer, 0, &what)) there &= parts & PART_REAL ? ~(unsigned)PART_REAL : ~(unsigned)PART_TICKET;
    if (parts == (PART_REAL | PART_TICKET) && consul_txn_error(answer, 2, &what)) there &= ~(unsigned)PART_TICKET;
  }
  bool denied = call->http.status == 409 && refused_for_good(call, answer, (kv_slice){NULL, 0});
  json_free(answer);
  if (denied) return;
  if (call->http.status == 200) {
    if (parts & telling) op->result.found = true;
    consul_finish(call, KV_OK, NULL);
  } else if (there && there != parts) {
    leave_parts(call, there);
  } else {
    consul_finish(call, KV_OK, NULL);
  }
}

static void leave_parts(struct consul_call *call, unsigned parts) {
  const struct kv_place *place = call->op->place;
  struct consul_lock_key real, ticket;
  consul_lock_key(place, &real);
  call->rounds = parts;
  begin_txn(call);
  if (parts & PART_REAL) delete_ours(call, &real);
  if (parts & PART_TICKET) {
    own_ticket(call, &ticket);
    delete_ours(call, &ticket);
  }
  consul_send_txn(call, true, left);
}

/* ------------------------------------------------------------------ head, and proof while it is held */

static void head_told(struct consul_call *call) {
  struct consul_pair pair;
  struct kv_buffer value;
  kv_buffer_init(&value, CONSUL_ELEMENT_MAX);
  if (key_answer(call, &value, &pair)) {
    bool good = !pair.session[0] ||
                kv_consul->pair(call->op, call->op->place->name, pair.value, pair.revision, pair.revision, false);
    if (good)
      consul_finish(call, KV_OK, NULL);
    else
      consul_no_memory(call);
  }
  kv_buffer_free(&value);
}

static void real_proved(struct consul_call *call) {
  const struct kv_place *place = call->op->place;
  struct consul_pair pair;
  if (!key_answer(call, NULL, &pair)) return;
  bool same = !place->token || place->limit || pair.revision == place->token;
  if (same && strcmp(pair.session, session(call)) == 0) consul_finish(call, KV_OK, NULL);
  else consul_finish(call, KV_LOST, "the key of the lock is not ours any more");
}

/* The lock may have become ours since it was asked: the answer is about the ticket all the same. */
static void ticket_proved(struct consul_call *call) {
  struct consul_pair pair;
  if (!key_answer(call, NULL, &pair)) return;
  if (strcmp(pair.session, session(call)) == 0) consul_finish(call, KV_OK, NULL);
  else consul_finish(call, KV_LOST, "our entry in the queue is gone");
}

/* A renewal is answered by the leader alone, and tells nothing of the keys: this read is a quorum's, and does. */
void consul_queue_prove(struct consul_call *call) {
  const struct kv_place *place = call->op->place;
  struct consul_lock_key ticket;
  if (place->token) {
    read_real(call, real_proved);
    return;
  }
  if (place->interop) {
    consul_finish(call, KV_OK, NULL);
    return;
  }
  own_ticket(call, &ticket);
  consul_path(call, "/v1/kv/", slice(&ticket), "");
  consul_query(call, "consistent");
  consul_send(call, "GET", false, ticket_proved);
}

/* ------------------------------------------------------------------ which step */

static void wait_for(struct consul_call *call) {
  const struct kv_place *place = call->op->place;
  struct consul_lock_key key;
  if (place->interop) {
    consul_lock_key(place, &key);
    consul_wait_gone(call, slice(&key), place->ahead_revision, place->ahead, 0);
  } else {
    char id[CONSUL_SESSION_SIZE];
    uint64_t created = 0;
    if (sscanf(place->ahead, "%39s %" SCNu64, id, &created) < 1) id[0] = '\0';
    ticket_key(place, id, &key);
    consul_wait_gone(call, slice(&key), place->ahead_revision, NULL, created);
  }
}

static void foreign_step(struct consul_call *call) {
  switch (call->op->kind) {
    case KV_QUEUE_JOIN: take_foreign(call, 0); break;
    case KV_QUEUE_AHEAD: case KV_QUEUE_CLAIM: read_real(call, foreign_seen); break;
    case KV_QUEUE_LEAVE: leave_parts(call, PART_REAL); break;
    case KV_QUEUE_HEAD: read_real(call, head_told); break;
    default: wait_for(call); break;
  }
}

void consul_queue_step(struct consul *consul, struct kv_op *op) {
  if (op->place->interop && op->place->name.data[0] == '/') {
    kv_consul->finish(op, KV_INVALID, "keys of Consul do not begin with a slash");
    return;
  }
  struct consul_call *call = consul_call_new(consul, op);
  if (!call) return;
  if (op->place->interop) {
    foreign_step(call);
    return;
  }
  switch (op->kind) {
    case KV_QUEUE_JOIN: (op->place->limit ? join_many : join)(call); break;
    case KV_QUEUE_AHEAD: read_queue(call); break;
    case KV_QUEUE_CLAIM: (op->place->limit ? claim_one_of : claim)(call); break;
    case KV_QUEUE_LEAVE: leave_parts(call, op->place->limit ? PART_TICKET : PART_REAL | PART_TICKET); break;
    case KV_QUEUE_HEAD: op->place->limit ? read_first(call) : read_real(call, head_told); break;
    default: wait_for(call); break;
  }
}
