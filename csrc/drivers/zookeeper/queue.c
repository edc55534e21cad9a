/*
 * queue.c - the steps of a lock queue.
 *
 * A queue is a container node under /.kv/lock (the server removes it when it has been empty for a while); a place in
 * it is an ephemeral node ID-lock-NUMBER, made by the server with rising numbers, in the session of the lease. The
 * lowest number holds; czxid, the number of the transaction that made it, is the token, as the other numbers begin
 * anew with each life of the container (and wrap: they are compared as distances).
 *
 * The list of names read behind the creation in the same round trip is at least as new as the creation, which a
 * quorum has committed: who was ahead then is in it, unless he has left, which is final. So nobody ahead in that list
 * is as good as a claim.
 *
 * The foreign layouts are the same recipe under the path that the user names; an entry of ours is named as theirs are:
 * "kazoo" (Python) ID__lock__NUMBER, "curator" (Java) _c_UUID-lock-NUMBER. Whoever has a number in that queue stands in
 * line by it, of whichever kind: kazoo's shared locks too, which its exclusive lock overlooks.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "zookeeper.h"

/* Of a step: in call->data. */
struct step {
  char *queue;            /* owned: path of the queue */
  zoo_op_t op;
  zoo_op_result_t result;
  int check;              /* what came of it */
  size_t depth;           /* of queue nodes being made: bytes of the path */
  bool found, read;
  struct zk_lookout *lookout;
};

/* One who watches an entry for others. */
struct zk_lookout {
  struct kv_list node;    /* zk.lookouts */
  struct kv_list calls;   /* that wait */
  struct zk_session *session;
  bool armed, reading;
  char path[];
};

static void join(struct zk_call *call);
static void read_queue(struct zk_call *call, strings_completion_t completion);

static void free_step(struct zk_call *call) {
  struct step *step = call->data;
  if (step) free(step->queue);
  free(step);
}

/* ------------------------------------------------------------------ names in a queue */

static bool number_of(const char *name, int32_t *number) {
  static const char *const infixes[] = {"-lock-", "__lock__", "__rlock__"};
  for (size_t i = 0; i < sizeof infixes / sizeof *infixes; i++) {
    const char *infix = strstr(name, infixes[i]);
    if (!infix) continue;
    const char *digits = infix + strlen(infixes[i]);
    char *end;
    long long value = strtoll(digits, &end, 10);
    *number = (int32_t)value;
    if (end != digits && !*end) return true;
  }
  return false;
}

static bool is_before(int32_t a, int32_t b) {
  return (int32_t)((uint32_t)a - (uint32_t)b) < 0;
}

const char *zk_queue_find(const struct String_vector *names, const char *entry) {
  size_t size = strlen(entry);
  for (int32_t i = 0; names && size && i < names->count; i++)
    if (strncmp(names->data[i], entry, size) == 0) return names->data[i];
  return NULL;
}

static bool has(const struct String_vector *names, const char *name) {
  for (int32_t i = 0; i < names->count; i++)
    if (strcmp(names->data[i], name) == 0) return true;
  return false;
}

/* The last one before `name`, or the first of all when it is NULL. */
static const char *neighbour(const struct String_vector *names, const char *name) {
  int32_t own = 0, best = 0, number;
  const char *found = NULL;
  if (name && !number_of(name, &own)) return NULL;
  for (int32_t i = 0; i < names->count; i++) {
    if (!number_of(names->data[i], &number)) continue;
    if (name && !is_before(number, own)) continue;
    if (found && is_before(number, best) != !name) continue;
    found = names->data[i];
    best = number;
  }
  return found;
}

static char *entry_path(const struct zk_call *call, const char *name) {
  const struct step *step = call->data;
  size_t size = strlen(step->queue) + strlen(name) + 2;
  char *path = malloc(size);
  if (path) snprintf(path, size, "%s/%s", step->queue, name);
  return path;
}

/* False: the name is none that this library could have to do with. */
static bool set_ahead(struct kv_place *place, const char *name) {
  if (strlen(name) >= sizeof place->ahead) return false;
  strcpy(place->ahead, name);
  return true;
}

/* ------------------------------------------------------------------ a semaphore: the nearest before us */

static int nearest_first(const void *a, const void *b) {
  int32_t one = 0, other = 0;
  number_of(*(const char *const *)a, &one);
  number_of(*(const char *const *)b, &other);
  return is_before(one, other) ? 1 : is_before(other, one) ? -1 : 0;
}

/* Tell them, as many as may hold it; sets result.found. False: out of memory. */
static bool tell_nearest(struct zk_call *call, const struct String_vector *names) {
  struct kv_op *op = call->op;
  int32_t own = 0, number;
  size_t count = 0, limit = op->place->limit;
  const char **before = calloc((size_t)names->count + 1, sizeof *before);
  if (!before) return false;
  number_of(op->place->ticket, &own);
  for (int32_t i = 0; i < names->count; i++)
    if (number_of(names->data[i], &number) && is_before(number, own)) before[count++] = names->data[i];
  qsort(before, count, sizeof *before, nearest_first);
  bool good = true;
  for (size_t i = 0; i < count && i < limit && good; i++) {
    kv_slice name = {before[i], strlen(before[i])};
    kv_slice id = {before[i], strcspn(before[i], "-")}; /* ID-lock-NUMBER */
    good = kv_zk->pair(op, name, id, 1, 1, false);
  }
  free(before);
  op->result.found = (count >= limit) != (op->kind == KV_QUEUE_CLAIM);
  return good;
}

/* ------------------------------------------------------------------ join */

static void join_list(int result, const struct String_vector *names, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct kv_place *place = call->op->place;
  const struct step *step = call->data;
  if (step->check != ZOK) return; /* the creation failed, and goes its own way */
  if (place->limit && result == ZOK && has(names, place->ticket)) {
    call->op->result.answered_ahead = tell_nearest(call, names);
    zk_finish(call, KV_OK, NULL);
    return;
  }
  const char *ahead = result == ZOK ? neighbour(names, place->ticket) : NULL;
  bool usable = result == ZOK && has(names, place->ticket) && (!ahead || set_ahead(place, ahead));
  call->op->result.answered_ahead = usable;
  call->op->result.found = ahead != NULL;
  zk_finish(call, KV_OK, NULL);
}

static void made_queue(int result, const char *path, const void *data);

/* Is the path so far the queue, and not a node above it? */
static bool is_whole(const struct step *step) {
  return !step->queue[step->depth];
}

/* A queue that is used seldom may go by itself. kazoo makes its own once and expects it to stay; Curator has all go. */
static int queue_mode(const struct zk_call *call) {
  const char *interop = call->op->place->interop;
  bool stays = interop ? strcmp(interop, "kazoo") == 0 : !is_whole(call->data);
  return stays || call->zk->no_containers ? ZOO_PERSISTENT : ZOO_CONTAINER;
}

/* The nodes above the queue and the queue itself, one after the other: the first step->depth bytes of its path. */
static void make_queue(struct zk_call *call) {
  struct step *step = call->data;
  char *path = strdup(step->queue);
  if (!path) {
    zk_finish(call, KV_FAILED, "out of memory");
    return;
  }
  path[step->depth] = '\0';
  zk_sent(call, zoo_acreate(call->session->handle, path, NULL, -1, &call->zk->acl.vector, queue_mode(call), made_queue,
                            call));
  free(path);
}

static void deeper(struct step *step) {
  size_t at = step->depth + 1; /* behind the slash */
  step->depth = at + strcspn(step->queue + at, "/");
}

static void made_queue(int result, const char *path, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)path;
  if (!call) return;
  struct step *step = call->data;
  if (result == ZUNIMPLEMENTED && !call->zk->no_containers) {
    call->zk->no_containers = true;
    make_queue(call);
  } else if (result == ZOK || result == ZNODEEXISTS || (result == ZNOAUTH && !is_whole(step))) {
    if (is_whole(step)) {
      join(call);
      return;
    }
    deeper(step);
    make_queue(call);
  } else if (result == ZNONODE) {
    if (zk_again(call)) join(call);
  } else {
    zk_fail(call, result);
  }
}

static void joined(int result, const char *path, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct step *step = call->data;
  struct kv_place *place = call->op->place;
  step->check = result;
  if (result == ZOK) {
    const char *name = strrchr(path, '/');
    place->token = (uint64_t)stat->czxid;
    snprintf(place->ticket, sizeof place->ticket, "%s", name ? name + 1 : path);
  } else if (result == ZNONODE) {
    step->depth = 0;
    deeper(step);
    call->write_sent = false;
    if (zk_again(call)) make_queue(call);
  } else {
    zk_fail(call, result);
  }
}

static void create_entry(struct zk_call *call) {
  struct kv_place *place = call->op->place;
  struct step *step = call->data;
  char name[ZK_ENTRY_MAX];
  zk_entry_name(place, name);
  char *path = entry_path(call, name);
  if (!path || !zk_lease_note(call->zk, place->lease, step->queue, name)) {
    free(path);
    zk_finish(call, KV_FAILED, "out of memory");
    return;
  }
  place->ahead_revision = 1; /* from here on there may be an entry */
  zk_writing(call);
  const char *value = place->value.size ? place->value.data : "";
  bool sent = zk_sent(call, zoo_acreate2(call->session->handle, path, value, (int)place->value.size,
                                         &call->zk->acl.vector, ZOO_EPHEMERAL_SEQUENTIAL, joined, call));
  free(path);
  if (sent) read_queue(call, join_list);
}

static void adopted(int result, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct kv_place *place = call->op->place;
  if (result == ZNONODE) {
    create_entry(call);
  } else if (result != ZOK) {
    zk_fail(call, result);
  } else if (stat->ephemeralOwner != zoo_client_id(call->session->handle)->client_id) {
    zk_finish(call, KV_LOST, "our entry belongs to an earlier session");
  } else {
    place->token = (uint64_t)stat->czxid;
    zk_finish(call, KV_OK, NULL);
  }
}

/* An earlier attempt was not answered: is its entry there? */
static void join_looked(int result, const struct String_vector *names, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct kv_place *place = call->op->place;
  char entry[ZK_ENTRY_MAX];
  zk_entry_name(place, entry);
  const char *name = result == ZOK ? zk_queue_find(names, entry) : NULL;
  if (result != ZOK && result != ZNONODE) {
    zk_fail(call, result);
  } else if (!name) {
    create_entry(call);
  } else {
    snprintf(place->ticket, sizeof place->ticket, "%s", name);
    char *path = entry_path(call, name);
    if (path) zk_sent(call, zoo_aexists(call->session->handle, path, 0, adopted, call));
    else zk_finish(call, KV_FAILED, "out of memory");
    free(path);
  }
}

static void join(struct zk_call *call) {
  const struct step *step = call->data;
  if (!call->op->place->ahead_revision || (call->rounds && step->check == ZNONODE)) create_entry(call);
  else if (zk_sync(call->session)) read_queue(call, join_looked);
  else zk_fail(call, ZINVALIDSTATE);
}

/* ------------------------------------------------------------------ ahead */

static void read_queue(struct zk_call *call, strings_completion_t completion) {
  const struct step *step = call->data;
  zk_sent(call, zoo_aget_children(call->session->handle, step->queue, 0, completion, call));
}

static void ahead_list(int result, const struct String_vector *names, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct kv_place *place = call->op->place;
  if (result == ZNONODE || (result == ZOK && !has(names, place->ticket))) {
    zk_finish(call, KV_LOST, "our entry in the queue is gone");
  } else if (result != ZOK) {
    zk_fail(call, result);
  } else {
    const char *ahead = neighbour(names, place->ticket);
    call->op->result.found = ahead != NULL;
    if (!ahead || set_ahead(place, ahead)) zk_finish(call, KV_OK, NULL);
    else zk_finish(call, KV_FAILED, "somebody else's node is in the queue");
  }
}

static void ahead(struct zk_call *call) {
  read_queue(call, ahead_list);
}

/* ------------------------------------------------------------------ claim */

static void claim_checked(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct step *step = call->data;
  step->check = result;
  if (result == ZNONODE || result == ZBADVERSION) zk_finish(call, KV_LOST, "our entry in the queue is gone");
  else if (result != ZOK) zk_fail(call, result);
}

static void claim_list(int result, const struct String_vector *names, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  const struct kv_place *place = call->op->place;
  if (result == ZNONODE || (result == ZOK && !has(names, place->ticket))) {
    zk_finish(call, KV_LOST, "our entry in the queue is gone");
  } else if (result != ZOK) {
    zk_fail(call, result);
  } else if (place->limit && !tell_nearest(call, names)) {
    zk_finish(call, KV_FAILED, "out of memory");
  } else {
    if (!place->limit) call->op->result.found = neighbour(names, place->ticket) == NULL;
    zk_finish(call, KV_OK, NULL);
  }
}

/* A check that a quorum commits, and the list behind it. */
static void claim(struct zk_call *call) {
  struct step *step = call->data;
  char *path = entry_path(call, call->op->place->ticket);
  if (!path) {
    zk_finish(call, KV_FAILED, "out of memory");
    return;
  }
  zoo_check_op_init(&step->op, path, 0);
  bool sent = zk_sent(call, zoo_amulti(call->session->handle, 1, &step->op, &step->result, claim_checked, call));
  free(path);
  if (sent) read_queue(call, claim_list);
}

/* ------------------------------------------------------------------ leave */

static void left(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  if (result != ZOK && result != ZNONODE) {
    zk_fail(call, result);
    return;
  }
  zk_lease_note(call->zk, call->op->place->lease, NULL, NULL);
  call->op->result.found = result == ZOK;
  zk_finish(call, KV_OK, NULL);
}

static void leave_entry(struct zk_call *call, const char *name) {
  char *path = entry_path(call, name);
  if (path) zk_sent(call, zoo_adelete(call->session->handle, path, -1, left, call));
  else zk_finish(call, KV_FAILED, "out of memory");
  free(path);
}

static void leave_list(int result, const struct String_vector *names, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  char entry[ZK_ENTRY_MAX];
  zk_entry_name(call->op->place, entry);
  const char *name = result == ZOK ? zk_queue_find(names, entry) : NULL;
  if (result != ZOK && result != ZNONODE) {
    zk_fail(call, result);
  } else if (name) {
    leave_entry(call, name);
  } else {
    zk_lease_note(call->zk, call->op->place->lease, NULL, NULL);
    zk_finish(call, KV_OK, NULL);
  }
}

/* A join that was not answered has left no ticket: the entry is looked for by its id. */
static void leave(struct zk_call *call) {
  if (call->op->place->ticket[0]) leave_entry(call, call->op->place->ticket);
  else if (zk_sync(call->session)) read_queue(call, leave_list);
  else zk_fail(call, ZINVALIDSTATE);
}

/* ------------------------------------------------------------------ head */

static void head(struct zk_call *call);

static void head_read(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  if (result == ZNONODE) {
    if (zk_again(call)) head(call);
  } else if (result != ZOK) {
    zk_fail(call, result);
  } else {
    kv_slice shown = {value, size > 0 ? (size_t)size : 0};
    uint64_t token = (uint64_t)stat->czxid;
    if (kv_zk->pair(call->op, call->op->place->name, shown, token, token, false)) zk_finish(call, KV_OK, NULL);
    else zk_finish(call, KV_FAILED, "out of memory");
  }
}

static void head_list(int result, const struct String_vector *names, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  const char *first = result == ZOK ? neighbour(names, NULL) : NULL;
  if (result != ZOK && result != ZNONODE) {
    zk_fail(call, result);
  } else if (!first) {
    zk_finish(call, KV_OK, NULL);
  } else {
    char *path = entry_path(call, first);
    if (path) zk_sent(call, zoo_aget(call->session->handle, path, 0, head_read, call));
    else zk_finish(call, KV_FAILED, "out of memory");
    free(path);
  }
}

static void head(struct zk_call *call) {
  if (zk_sync(call->session)) read_queue(call, head_list);
  else zk_fail(call, ZINVALIDSTATE);
}

/* ------------------------------------------------------------------ wait */

static void lookout_free(struct zk_lookout *lookout) {
  kv_list_remove(&lookout->node);
  free(lookout);
}

/* Whoever waits is told: to look again, or that all is lost. */
static void release(struct zk_lookout *lookout, kv_code code) {
  struct kv_list batch;
  kv_list_init(&batch);
  while (!kv_list_empty(&lookout->calls)) kv_list_move(&batch, lookout->calls.next);
  while (!kv_list_empty(&batch)) {
    struct zk_call *call = kv_list_of(struct zk_call, node, batch.next);
    kv_list_remove(&call->node);
    if (code == KV_OK) zk_finish(call, KV_OK, NULL);
    else zk_finish(call, code, "the session has expired");
  }
  if (!lookout->armed && !lookout->reading) lookout_free(lookout);
}

static void entry_changed(zhandle_t *handle, int type, int state, const char *path, void *context) {
  struct zk_lookout *lookout = context;
  (void)handle;
  (void)state;
  (void)path;
  if (type == ZOO_SESSION_EVENT) return;
  lookout->armed = false;
  release(lookout, KV_OK);
}

static void entry_read(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct zk_lookout *lookout = (struct zk_lookout *)(uintptr_t)data;
  (void)value;
  (void)size;
  (void)stat;
  lookout->reading = false;
  lookout->armed = result == ZOK;
  if (result != ZOK) release(lookout, KV_OK); /* gone, or to be found out */
}

void zk_lookouts_lost(struct zk_session *session) {
  struct kv_list *lookouts = &session->zk->lookouts, *next;
  for (struct kv_list *at = lookouts->next; at != lookouts; at = next) {
    struct zk_lookout *lookout = kv_list_of(struct zk_lookout, node, at);
    next = at->next;
    if (lookout->session != session) continue;
    lookout->armed = lookout->reading = false;
    release(lookout, KV_LOST);
  }
}

static struct zk_lookout *find_lookout(const struct zk_call *call, const char *path) {
  struct kv_list *lookouts = &call->zk->lookouts;
  for (struct kv_list *at = lookouts->next; at != lookouts; at = at->next) {
    struct zk_lookout *lookout = kv_list_of(struct zk_lookout, node, at);
    if (lookout->session == call->session && strcmp(lookout->path, path) == 0) return lookout;
  }
  return NULL;
}

static struct zk_lookout *new_lookout(struct zk_call *call, const char *path) {
  struct zk_lookout *lookout = calloc(1, sizeof *lookout + strlen(path) + 1);
  if (!lookout) return NULL;
  strcpy(lookout->path, path);
  lookout->session = call->session;
  kv_list_init(&lookout->node);
  kv_list_init(&lookout->calls);
  kv_list_move(&call->zk->lookouts, &lookout->node);
  lookout->reading = true;
  zk_wake(call->session);
  /* A get leaves no watch behind when there is nothing, unlike exists. */
  if (zoo_awget(call->session->handle, path, entry_changed, lookout, entry_read, lookout) == ZOK) return lookout;
  lookout_free(lookout);
  return NULL;
}

/* Given up waiters leave their lookout to the next ones, until the entry goes. */
static void wait_ahead(struct zk_call *call) {
  char *path = entry_path(call, call->op->place->ahead);
  struct zk_lookout *lookout = path ? find_lookout(call, path) : NULL;
  if (path && !lookout) lookout = new_lookout(call, path);
  free(path);
  if (lookout) kv_list_move(&lookout->calls, &call->node);
  else zk_finish(call, KV_UNAVAILABLE, "the request could not be sent");
}

/* ------------------------------------------------------------------ which step */

static void run(struct zk_call *call) {
  switch (call->op->kind) {
    case KV_QUEUE_JOIN: join(call); return;
    case KV_QUEUE_AHEAD: ahead(call); return;
    case KV_QUEUE_WAIT: wait_ahead(call); return;
    case KV_QUEUE_CLAIM: claim(call); return;
    case KV_QUEUE_LEAVE: leave(call); return;
    default: head(call); return;
  }
}

void zk_queue_step(struct zk *zk, struct kv_op *op) {
  struct zk_session *session = op->kind == KV_QUEUE_HEAD ? zk_main(zk) : zk_lease_session(zk, op->place->lease);
  if (!session && op->kind != KV_QUEUE_HEAD) {
    if (op->kind == KV_QUEUE_LEAVE) kv_zk->finish(op, KV_OK, NULL); /* it went with its session */
    else kv_zk->finish(op, KV_LOST, "the session has expired");
    return;
  }
  struct zk_call *call = zk_call_new(zk, session, op);
  if (!call) return;
  struct step *step = calloc(1, sizeof *step);
  call->data = step;
  call->clear = free_step;
  if (step) step->queue = zk_queue_path(op->place); /* with at least one segment, as the core checks names */
  if (!step || !step->queue) zk_finish(call, KV_FAILED, "out of memory");
  else if (zk_is_reserved(zk_key(step->queue))) zk_finish(call, KV_UNSUPPORTED, ZK_RESERVED);
  else zk_call_start(call, run);
}
