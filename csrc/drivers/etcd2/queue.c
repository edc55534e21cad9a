/*
 * queue.c - the steps of a lock's queue: entries with a time to live in a hidden directory of the lock,
 *
 *   _kv/lock/NAME/ID      the value: what the lock shows
 *
 * whose order is that of their createdIndex, as of the keys that etcd makes in order itself. The names are chosen by
 * us, so that an entry whose creation was not answered is found again. The first one holds the lock (of a semaphore the
 * first `limit`), and its createdIndex is the token: it comes from the one log of the servers.
 *
 * Once an entry is first it stays first, for those behind it only get greater indexes. So right after its creation it
 * is enough to read the directory from any server that has come as far in the log.
 *
 * The directory is removed, if it is empty, when the lease of the lock is given back.
 */
#include <stdlib.h>
#include <string.h>

#include "../names.h"
#include "etcd2.h"

#define WAIT_AT_ONCE (30 * ETCD2_SECOND) /* a wait is looked at again after so long */

/* ------------------------------------------------------------------ names */

/* There is always room: the core keeps names below KV_KEY_MAX. */
static void append(struct etcd2_name *out, const char *data, size_t size) {
  out->size = kv_append(out->data, out->size, sizeof out->data, data, size);
}

static void queue_name(const struct kv_place *place, struct etcd2_name *out) {
  out->size = 0;
  append(out, "_kv/lock/", 9);
  out->size = kv_append_escaped(out->data, out->size, sizeof out->data, place->name);
}

static void entry_name(const struct kv_place *place, const char *id, struct etcd2_name *out) {
  queue_name(place, out);
  append(out, "/", 1);
  append(out, id, strlen(id));
}

static void path_of(struct etcd2_call *call, const struct etcd2_name *name) {
  etcd2_path(call, (kv_slice){name->data, name->size});
}

/* ------------------------------------------------------------------ what a lease knows of its entry */

static void queue_left(struct etcd2_call *call) {
  etcd2_finish(call, KV_OK, NULL);
}

/* In the background: the queue that this lease was in before. */
static void leave_queue(struct etcd2 *etcd2, const struct etcd2_name *queue) {
  struct etcd2_call *call = etcd2->calls.closing ? NULL : etcd2_call_new(etcd2, NULL);
  if (!call) return;
  path_of(call, queue);
  http_call_query(etcd2_base(call), "dir=true");
  etcd2_send(call, "DELETE", false, queue_left);
}

static void note_entry(struct etcd2_call *call, bool there) {
  const struct kv_place *place = call->op->place;
  struct etcd2_lease *lease = etcd2_lease_find(call->etcd2, place->lease->id);
  struct etcd2_name queue;
  if (!lease) return;
  queue_name(place, &queue);
  bool other = lease->queue.size && !(lease->queue.size == queue.size &&
                                      memcmp(lease->queue.data, queue.data, queue.size) == 0);
  if (other) leave_queue(call->etcd2, &lease->queue);
  lease->queue = queue;
  lease->entry.size = 0;
  if (there) entry_name(place, place->id, &lease->entry);
}

/* ------------------------------------------------------------------ who is before us? */

/* The id of an entry: the last segment of its key. */
static kv_slice id_of(const struct etcd2_found *found) {
  size_t at = found->key_size;
  while (at && found->bytes[at - 1] != '/') at--;
  return (kv_slice){found->bytes + at, found->key_size - at};
}

static bool is_id(kv_slice id, const char *text) {
  return id.size == strlen(text) && memcmp(id.data, text, id.size) == 0;
}

static void read_queue(struct etcd2_call *call, bool strong, void (*then)(struct etcd2_call *call)) {
  struct etcd2_name queue;
  if (!etcd2_listing_new(call, call->op->kind == KV_QUEUE_HEAD, false)) return;
  queue_name(call->op->place, &queue);
  path_of(call, &queue);
  if (strong) http_call_query(etcd2_base(call), "quorum=true");
  etcd2_send_read(call, then);
}

/* The createdIndex of our entry in the listing, 0: it is not there. */
static uint64_t find_ours(const struct etcd2_call *call) {
  const struct etcd2_found *found;
  size_t at = 0;
  while (etcd2_listing_next(call->listing, &at, &found))
    if (is_id(id_of(found), call->op->place->id)) return found->created;
  return 0;
}

/* From the listing: call->mine, call->ahead, and the id of that. */
static void read_line(struct etcd2_call *call) {
  const struct etcd2_found *found;
  size_t at = 0;
  call->ahead = 0;
  call->mine = find_ours(call);
  while (call->mine && etcd2_listing_next(call->listing, &at, &found)) {
    kv_slice id = id_of(found);
    if (found->created >= call->mine || found->created <= call->ahead || id.size > KV_PLACE_ID_MAX) continue;
    call->ahead = found->created;
    memcpy(call->ahead_id, id.data, id.size);
    call->ahead_id[id.size] = '\0';
  }
}

static void tell_gone(struct etcd2_call *call) {
  etcd2_finish(call, KV_LOST, "our entry in the queue is gone");
}

static int nearest_first(const void *a, const void *b) {
  const struct etcd2_found *const *left = a, *const *right = b;
  return ((*left)->created < (*right)->created) - ((*left)->created > (*right)->created);
}

/* Of a semaphore: all that are before us, the nearest first. */
static bool give_nearest(struct etcd2_call *call, size_t *before) {
  struct kv_op *op = call->op;
  const struct etcd2_found *found, **line = calloc(call->listing->count + 1, sizeof *line);
  size_t at = 0, count = 0;
  bool good = line != NULL;
  while (good && etcd2_listing_next(call->listing, &at, &found))
    if (found->created < call->mine && id_of(found).size <= KV_PLACE_ID_MAX) line[count++] = found;
  if (good) qsort(line, count, sizeof *line, nearest_first);
  for (size_t i = 0; i < count && i < op->place->limit && good; i++)
    good = kv_etcd2->pair(op, id_of(line[i]), id_of(line[i]), call->index, 1, false);
  free(line);
  *before = count;
  return good;
}

static void answer_many(struct etcd2_call *call) {
  struct kv_op *op = call->op;
  size_t before;
  if (!give_nearest(call, &before)) {
    http_call_no_memory(etcd2_base(call));
    return;
  }
  op->place->token = call->mine;
  op->result.answered_ahead = op->kind == KV_QUEUE_JOIN;
  op->result.found = (before < op->place->limit) == (op->kind == KV_QUEUE_CLAIM);
  etcd2_finish(call, KV_OK, NULL);
}

static void answer_ahead(struct etcd2_call *call) {
  struct kv_op *op = call->op;
  struct kv_place *place = op->place;
  if (place->limit) {
    answer_many(call);
    return;
  }
  bool first = !call->ahead;
  if (!first) {
    memcpy(place->ahead, call->ahead_id, sizeof call->ahead_id);
    place->ahead_revision = call->index;
  }
  if (first && op->kind != KV_QUEUE_AHEAD) place->token = call->mine;
  op->result.answered_ahead = op->kind == KV_QUEUE_JOIN;
  op->result.found = op->kind == KV_QUEUE_CLAIM ? first : !first;
  etcd2_finish(call, KV_OK, NULL);
}

static void line_read(struct etcd2_call *call) {
  if (!etcd2_is_listing(call)) return;
  read_line(call);
  if (call->mine)
    answer_ahead(call);
  else
    tell_gone(call);
}

/* ------------------------------------------------------------------ join */

static void line_seen(struct etcd2_call *call) {
  if (!etcd2_is_listing(call)) return;
  read_line(call);
  if (call->mine && call->index >= call->expected)
    answer_ahead(call);
  else /* from a server that lags behind, or it is gone */
    read_queue(call, true, line_read);
}

static void joined(struct etcd2_call *call) {
  bool was_there = call->error.code == ETCD2_EXISTS;
  if (!etcd2_good(call) && !was_there) {
    etcd2_refuse(call);
    return;
  }
  call->expected = call->index;
  read_queue(call, false, line_seen);
}

static void join(struct etcd2_call *call) {
  const struct kv_place *place = call->op->place;
  struct etcd2_name entry;
  entry_name(place, place->id, &entry);
  note_entry(call, true);
  path_of(call, &entry);
  if (!etcd2_encode(&call->value, place->value, 0, false)) call->failed = true;
  etcd2_field(call, "value", (kv_slice){call->value.data, call->value.size});
  etcd2_field(call, "prevExist", KV_TEXT("false"));
  etcd2_field_number(call, "ttl", etcd2_ttl(place->lease->ttl));
  etcd2_field(call, "noValueOnSuccess", KV_TEXT("true"));
  etcd2_send(call, "PUT", true, joined);
}

/* ------------------------------------------------------------------ renew */

static void entry_renewed(struct etcd2_call *call) {
  bool absent = call->error.code == ETCD2_NOT_FOUND;
  if (absent && call->op->place) {
    tell_gone(call);
  } else if (!absent && !etcd2_good(call)) {
    etcd2_refuse(call);
  } else {
    call->op->lease->granted = (double)etcd2_ttl(call->op->lease->ttl);
    etcd2_finish(call, KV_OK, NULL);
  }
}

/*
 * Nobody waits for an entry whose creation was not answered yet, but it may be there, and its time runs: what is said
 * of the lease must be true of it as well. When it is not there, it is made later than now, or never.
 */
void etcd2_queue_renew(struct etcd2_call *call, const struct etcd2_name *noted) {
  const struct kv_place *place = call->op->place;
  struct etcd2_name entry;
  if (place) entry_name(place, place->id, &entry);
  path_of(call, place ? &entry : noted);
  etcd2_field(call, "refresh", KV_TEXT("true"));
  etcd2_field(call, "prevExist", KV_TEXT("true"));
  etcd2_field_number(call, "ttl", etcd2_ttl(call->op->lease->ttl));
  etcd2_send(call, "PUT", false, entry_renewed); /* once more does no harm */
}

/* ------------------------------------------------------------------ wait */

/* Whatever came: CLAIM looks. */
static void waited(struct etcd2_call *call) {
  kv_code code = etcd2_code(call->http.status, &call->error, false);
  if (etcd2_good(call) || code == KV_COMPACTED)
    etcd2_finish(call, KV_OK, NULL);
  else
    etcd2_refuse(call);
}

static void long_enough(struct kv_timer *timer) {
  etcd2_finish((struct etcd2_call *)timer->data, KV_OK, NULL);
}

static void wait_for(struct etcd2_call *call) {
  const struct kv_place *place = call->op->place;
  struct etcd2_name entry;
  entry_name(place, place->ahead, &entry);
  path_of(call, &entry);
  http_call_query(etcd2_base(call), "wait=true");
  http_call_query_number(etcd2_base(call), "waitIndex", place->ahead_revision + 1);
  call->lasting = true;
  call->timer.fire = long_enough;
  call->timer.data = call;
  kv_etcd2->timer_set(&call->timer, kv_etcd2->now() + WAIT_AT_ONCE);
  etcd2_send(call, "GET", false, waited);
}

/* ------------------------------------------------------------------ leave, head */

static void left(struct etcd2_call *call) {
  bool gone = call->error.code == ETCD2_NOT_FOUND;
  if (!etcd2_good(call) && !gone) {
    etcd2_refuse(call);
    return;
  }
  note_entry(call, false);
  call->op->result.found = !gone;
  etcd2_finish(call, KV_OK, NULL);
}

static void leave(struct etcd2_call *call) {
  struct etcd2_name entry;
  entry_name(call->op->place, call->op->place->id, &entry);
  path_of(call, &entry);
  etcd2_send(call, "DELETE", true, left);
}

static void head_told(struct etcd2_call *call) {
  const struct etcd2_found *found, *first = NULL;
  size_t at = 0;
  if (!etcd2_is_listing(call)) return;
  while (etcd2_listing_next(call->listing, &at, &found))
    if (!first || found->created < first->created) first = found;
  bool good = !first || kv_etcd2->pair(call->op, call->op->place->name, etcd2_found_value(first), first->created,
                                       first->created, false);
  if (good)
    etcd2_finish(call, KV_OK, NULL);
  else
    http_call_no_memory(etcd2_base(call));
}

/* ------------------------------------------------------------------ which step */

void etcd2_queue_step(struct etcd2 *etcd2, struct kv_op *op) {
  struct etcd2_call *call = etcd2_call_new(etcd2, op);
  if (!call) return;
  switch (op->kind) {
    case KV_QUEUE_JOIN: join(call); break;
    case KV_QUEUE_AHEAD: case KV_QUEUE_CLAIM: read_queue(call, true, line_read); break;
    case KV_QUEUE_WAIT: wait_for(call); break;
    case KV_QUEUE_LEAVE: leave(call); break;
    default: read_queue(call, true, head_told); break;
  }
}
