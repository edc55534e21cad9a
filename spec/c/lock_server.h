/*
 * lock_server.h - a server with leases, lock queues and a few keys, in memory, behind a driver of its own: for the
 * tests of the recipes. All stores that are open talk to the one server, so two stores compete as two processes would.
 *
 *   lockfake://    answers on the reactor
 *   lockthread://  answers on a thread of its own (KV_CAN_ANY_THREAD)
 *
 * Faults are ordered per kind of step: fault(KV_QUEUE_JOIN, LOSE_ANSWER, 2) does it to the next two. Leases expire in
 * real time.
 */
#ifndef KV_LOCK_SERVER_H
#define KV_LOCK_SERVER_H

#include <pthread.h>
#include <time.h>

#include "check.h"
#include "core/core.h"
#include "core/page.h"

enum fault_type {
  NO_FAULT,
  REFUSE,       /* KV_UNAVAILABLE, not applied */
  LOSE_ANSWER,  /* applied, KV_UNKNOWN */
  LOSE_REQUEST, /* not applied, KV_UNKNOWN */
  HANG,         /* not applied, no answer until it is cancelled */
  HANG_APPLIED, /* applied, no answer until it is cancelled */
  APPLY_LATE,   /* no answer; applied a little after it was cancelled */
  DENY,         /* KV_DENIED */
  SAY_LOST,     /* KV_LOST, nothing done */
  SAY_NOT_FIRST /* QUEUE_CLAIM: found = false, retry_after = 0.05 */
};

struct fake_lease {
  uint64_t id;
  double ttl;
  int64_t expires;
};

struct fake_entry {
  char name[128], id[KV_PLACE_ID_MAX + 1], value[64];
  uint64_t lease, token;
};

struct fake_key {
  char key[64], value[64];
  uint64_t revision, lease;
};

struct fake_late {
  struct kv_op op; /* a copy; the texts it needs are in the entry, and for a transaction in the key */
  struct fake_entry entry;
  struct fake_key key;
  bool puts;
  int64_t at;
};

#define FAKE_MAX 2048

static struct {
  pthread_mutex_t lock;
  double behind;               /* what a grant says of its time */
  struct fake_lease leases[FAKE_MAX];
  struct fake_entry entries[FAKE_MAX]; /* in the order of joining */
  struct fake_key keys[FAKE_MAX];
  struct fake_late late[64];
  size_t lease_count, entry_count, key_count, late_count;
  uint64_t revision;
  uint64_t last_token;  /* of claims that succeeded */
  struct { enum fault_type type; int times; } faults[KV_KIND_COUNT];
  int counts[KV_KIND_COUNT];
  bool away;            /* everything is REFUSEd */
  bool no_ahead;        /* JOIN does not answer AHEAD */
  bool ttl_late;        /* PUT with ttl: keys are not removed by the server */
  int wakes;            /* waits that ended */
  /* ops that wait */
  struct kv_op *waiting; /* WAIT; linked by next */
  struct kv_op *hanging;
} server = {.lock = PTHREAD_MUTEX_INITIALIZER};

static const struct kv_host *host;

struct fake_state {
  struct kv_backend *backend;
  bool threaded, closing, running;
  struct kv_timer tick;
  pthread_t thread;
  pthread_cond_t wake;
  struct kv_op *queue; /* threaded: what is to be answered */
};

__attribute__((unused)) static kv_slice text_of(const char *string) {
  return (kv_slice){string, strlen(string)};
}

/* ------------------------------------------------------------------ what the test does to the server */

__attribute__((unused)) static void fault(kv_kind kind, enum fault_type type, int times) {
  pthread_mutex_lock(&server.lock);
  server.faults[kind].type = type;
  server.faults[kind].times = times;
  pthread_mutex_unlock(&server.lock);
}

__attribute__((unused)) static void server_away(bool away) {
  pthread_mutex_lock(&server.lock);
  server.away = away;
  pthread_mutex_unlock(&server.lock);
}

__attribute__((unused)) static int steps(kv_kind kind) {
  pthread_mutex_lock(&server.lock);
  int count = server.counts[kind];
  pthread_mutex_unlock(&server.lock);
  return count;
}

__attribute__((unused)) static size_t entries_there(void) {
  pthread_mutex_lock(&server.lock);
  size_t count = server.entry_count;
  pthread_mutex_unlock(&server.lock);
  return count;
}

static void remove_lease(size_t index);

/* Time passes for them also while no store is open. */
static void expire_leases(void) {
  int64_t now = kv_clock();
  for (size_t i = server.lease_count; i-- > 0;)
    if (server.leases[i].expires <= now) remove_lease(i);
}

__attribute__((unused)) static size_t leases_there(void) {
  pthread_mutex_lock(&server.lock);
  expire_leases();
  size_t count = server.lease_count;
  pthread_mutex_unlock(&server.lock);
  return count;
}

__attribute__((unused)) static size_t keys_there(void) {
  pthread_mutex_lock(&server.lock);
  size_t count = server.key_count;
  pthread_mutex_unlock(&server.lock);
  return count;
}

static void remove_entry(size_t index) {
  server.entry_count--;
  memmove(&server.entries[index], &server.entries[index + 1], (server.entry_count - index) * sizeof *server.entries);
}

static void remove_lease(size_t index) {
  uint64_t id = server.leases[index].id;
  server.leases[index] = server.leases[--server.lease_count];
  for (size_t i = server.entry_count; i-- > 0;)
    if (server.entries[i].lease == id) remove_entry(i);
  for (size_t i = server.key_count; i-- > 0;)
    if (server.keys[i].lease == id) server.keys[i] = server.keys[--server.key_count];
}

/* All leases end, as after an operator's revocation. */
__attribute__((unused)) static void end_leases(void) {
  pthread_mutex_lock(&server.lock);
  while (server.lease_count) remove_lease(0);
  pthread_mutex_unlock(&server.lock);
}

/* All entries go, the leases stay. */
__attribute__((unused)) static void end_entries(void) {
  pthread_mutex_lock(&server.lock);
  server.entry_count = 0;
  pthread_mutex_unlock(&server.lock);
}

__attribute__((unused)) static void reset_server(void) {
  pthread_mutex_lock(&server.lock);
  server.lease_count = server.entry_count = server.key_count = server.late_count = 0;
  memset(server.faults, 0, sizeof server.faults);
  memset(server.counts, 0, sizeof server.counts);
  server.away = server.no_ahead = server.ttl_late = false;
  server.wakes = 0;
  server.last_token = 0;
  server.behind = 0;
  pthread_mutex_unlock(&server.lock);
}

__attribute__((unused)) static void sleep_ms(int ms) {
  struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};
  nanosleep(&time, NULL);
}

/* Asked no more once it was true: it may pass. */
#define WAIT_FOR(condition)                                                  \
  do {                                                                       \
    bool seen_ = (condition);                                                \
    for (int64_t until_ = kv_clock() + 20 * KV_SECOND; !seen_ && kv_clock() < until_; seen_ = (condition)) \
      sleep_ms(1);                                                           \
    (void)check_true(seen_, #condition, __FILE__, __LINE__);                 \
  } while (0)

/* ------------------------------------------------------------------ what it answers; all under its lock */

static struct fake_lease *find_lease(uint64_t id) {
  for (size_t i = 0; i < server.lease_count; i++)
    if (server.leases[i].id == id) return &server.leases[i];
  return NULL;
}

static struct fake_entry *find_entry(const char *id) {
  for (size_t i = 0; i < server.entry_count; i++)
    if (strcmp(server.entries[i].id, id) == 0) return &server.entries[i];
  return NULL;
}

/* The one that is right before `entry` in its queue, or NULL. */
static struct fake_entry *entry_before(const struct fake_entry *entry) {
  struct fake_entry *before = NULL;
  for (struct fake_entry *other = server.entries; other < entry; other++)
    if (strcmp(other->name, entry->name) == 0) before = other;
  return before;
}

static void copy_text(char *out, size_t room, kv_slice text) {
  size_t size = text.size < room - 1 ? text.size : room - 1;
  if (size) memcpy(out, text.data, size);
  out[size] = '\0';
}

static void describe_entry(struct fake_entry *entry, const struct kv_place *place) {
  memset(entry, 0, sizeof *entry);
  copy_text(entry->name, sizeof entry->name, place->name);
  copy_text(entry->value, sizeof entry->value, place->value);
  strcpy(entry->id, place->id);
  entry->lease = place->lease ? place->lease->id : 0;
}

static struct fake_entry *add_entry(const struct fake_entry *entry) {
  struct fake_entry *there = find_entry(entry->id);
  if (there) return there;
  if (!find_lease(entry->lease) || server.entry_count == FAKE_MAX) return NULL;
  there = &server.entries[server.entry_count++];
  *there = *entry;
  there->token = ++server.revision;
  return there;
}

static kv_code answer_grant(struct kv_op *op) {
  struct fake_lease *lease = find_lease(op->lease->id);
  if (!lease && server.lease_count < FAKE_MAX) {
    lease = &server.leases[server.lease_count++];
    *lease = (struct fake_lease){.id = op->lease->id, .ttl = op->lease->ttl,
                                 .expires = kv_deadline(kv_clock(), op->lease->ttl)};
  }
  if (!lease) return KV_NO_SPACE;
  op->lease->granted = lease->ttl;
  op->lease->behind = server.behind;
  return KV_OK;
}

static kv_code answer_renew(struct kv_op *op) {
  struct fake_lease *lease = find_lease(op->lease->id);
  if (!lease || (op->place && !find_entry(op->place->id))) return KV_LOST;
  lease->expires = kv_deadline(kv_clock(), lease->ttl);
  op->lease->granted = lease->ttl;
  return KV_OK;
}

static kv_code look_ahead(struct kv_op *op, const struct fake_entry *entry) {
  struct fake_entry *before = entry_before(entry);
  op->result.found = before != NULL;
  if (before) strcpy(op->place->ahead, before->id);
  return KV_OK;
}

/* Of a semaphore: the nearest before `entry`. */
static kv_code look_around(struct kv_op *op, struct fake_entry *entry) {
  uint32_t count = 0;
  for (struct fake_entry *at = entry; count < op->place->limit && (at = entry_before(at)) != NULL; count++)
    if (!host->pair(op, text_of(at->id), text_of(at->id), 1, 1, false)) return KV_FAILED;
  bool is_free = count < op->place->limit;
  op->place->token = entry->token;
  op->result.answered_ahead = true;
  op->result.found = is_free == (op->kind == KV_QUEUE_CLAIM);
  return KV_OK;
}

static kv_code answer_join(struct kv_op *op) {
  struct fake_entry new_entry, *entry;
  describe_entry(&new_entry, op->place);
  entry = add_entry(&new_entry);
  if (!entry) return KV_LOST;
  if (server.no_ahead) return KV_OK;
  if (op->place->limit) return look_around(op, entry);
  op->place->token = entry->token;
  op->result.answered_ahead = true;
  look_ahead(op, entry);
  if (!op->result.found) server.last_token = entry->token;
  return KV_OK;
}

static kv_code answer_claim(struct kv_op *op) {
  struct fake_entry *entry = find_entry(op->place->id);
  if (!entry) return KV_LOST;
  if (op->place->limit) return look_around(op, entry);
  op->result.found = !entry_before(entry);
  if (op->result.found) server.last_token = op->place->token = entry->token;
  return KV_OK;
}

static kv_code answer_leave(struct kv_op *op) {
  struct fake_entry *entry = find_entry(op->place->id);
  op->result.found = entry != NULL;
  if (entry) remove_entry((size_t)(entry - server.entries));
  return KV_OK;
}

static kv_code answer_head(struct kv_op *op) {
  char name[128];
  copy_text(name, sizeof name, op->place->name);
  for (size_t i = 0; i < server.entry_count; i++) {
    struct fake_entry *entry = &server.entries[i];
    if (strcmp(entry->name, name) != 0) continue;
    kv_slice value = {entry->value, strlen(entry->value)};
    host->pair(op, op->place->name, value, entry->token, entry->token, false);
    break;
  }
  return KV_OK;
}

static struct fake_key *find_key(kv_slice key) {
  for (size_t i = 0; i < server.key_count; i++)
    if (strlen(server.keys[i].key) == key.size && memcmp(server.keys[i].key, key.data, key.size) == 0)
      return &server.keys[i];
  return NULL;
}

static kv_code answer_put(struct kv_op *op) {
  struct fake_key *key = find_key(op->key);
  if (op->lease && !find_lease(op->lease->id)) return KV_LOST;
  if (!key && server.key_count == FAKE_MAX) return KV_NO_SPACE;
  if (!key) key = &server.keys[server.key_count++];
  copy_text(key->key, sizeof key->key, op->key);
  key->revision = ++server.revision;
  key->lease = op->lease ? op->lease->id : 0;
  op->result.revision = op->result.created = key->revision;
  if (op->ttl > 0 && server.ttl_late) op->result.ttl_late = 60;
  return KV_OK;
}

static kv_code answer_delete(struct kv_op *op) {
  struct fake_key *key = find_key(op->key);
  if (op->condition == KV_IF_REVISION && (!key || key->revision != op->revision)) return KV_MODIFIED;
  op->result.found = key != NULL;
  if (key) *key = server.keys[--server.key_count];
  return KV_OK;
}

static kv_code answer_get(struct kv_op *op) {
  struct fake_key *key = find_key(op->key);
  bool good = !key || host->pair(op, op->key, text_of(key->value), key->revision, key->revision, false);
  return good ? KV_OK : KV_FAILED;
}

/* Of a guarded transaction with one write: what an election asks. */
static kv_code write_guarded(const char *id, uint64_t token, bool puts, const struct fake_key *wanted) {
  struct fake_entry *entry = find_entry(id);
  struct fake_key *key = find_key(text_of(wanted->key));
  if (!entry || entry->token != token) return KV_MODIFIED;
  if (!puts && key) *key = server.keys[--server.key_count];
  if (!puts) return KV_OK;
  if (!find_lease(wanted->lease)) return KV_LOST;
  if (!key) key = &server.keys[server.key_count++];
  *key = *wanted;
  key->revision = ++server.revision;
  return KV_OK;
}

static void describe_write(struct fake_key *key, const struct kv_part *part) {
  memset(key, 0, sizeof *key);
  copy_text(key->key, sizeof key->key, part->key);
  copy_text(key->value, sizeof key->value, part->value);
  key->lease = part->lease ? part->lease->id : 0;
}

static kv_code answer_txn(struct kv_op *op) {
  struct fake_key key;
  if (op->part_count != 2 || op->parts[0].type != KV_PART_GUARD) return KV_OK;
  describe_write(&key, &op->parts[1]);
  return write_guarded(op->parts[0].place->id, op->parts[0].place->token, op->parts[1].type == KV_PART_PUT, &key);
}

static kv_code apply(struct kv_op *op) {
  switch (op->kind) {
    case KV_LEASE_GRANT: return answer_grant(op);
    case KV_LEASE_RENEW: return answer_renew(op);
    case KV_LEASE_REVOKE:
      for (size_t i = 0; i < server.lease_count; i++)
        if (server.leases[i].id == op->lease->id) remove_lease(i);
      return KV_OK;
    case KV_QUEUE_JOIN: return answer_join(op);
    case KV_QUEUE_AHEAD: {
      struct fake_entry *entry = find_entry(op->place->id);
      return entry ? look_ahead(op, entry) : KV_LOST;
    }
    case KV_QUEUE_CLAIM: return answer_claim(op);
    case KV_QUEUE_LEAVE: return answer_leave(op);
    case KV_QUEUE_HEAD: return answer_head(op);
    case KV_PUT: return answer_put(op);
    case KV_DELETE: return answer_delete(op);
    case KV_GET: return answer_get(op);
    case KV_TXN: return answer_txn(op);
    default: return KV_OK;
  }
}

static void push_op(struct kv_op **list, struct kv_op *op) {
  op->next = *list;
  *list = op;
}

static bool take_op(struct kv_op **list, const struct kv_op *op) {
  while (*list && *list != op) list = &(*list)->next;
  if (!*list) return false;
  *list = op->next;
  return true;
}

enum { NO_ANSWER = -1 };

static enum fault_type next_fault(kv_kind kind) {
  if (server.away) return REFUSE;
  if (server.faults[kind].times <= 0) return NO_FAULT;
  server.faults[kind].times--;
  return server.faults[kind].type;
}

/* The code to finish with, or NO_ANSWER: the op is in a list now. */
static int serve_locked(struct kv_op *op) {
  server.counts[op->kind]++;
  op->sent = true;
  enum fault_type type = next_fault(op->kind);
  op->number = (uint64_t)type;
  switch (type) {
    case REFUSE: return KV_UNAVAILABLE;
    case LOSE_ANSWER:
      apply(op);
      kv_page_free(op->result.page);
      op->result = (struct kv_result){0};
      return KV_UNKNOWN;
    case LOSE_REQUEST: return KV_UNKNOWN;
    case HANG: case APPLY_LATE: push_op(&server.hanging, op); return NO_ANSWER;
    case HANG_APPLIED: apply(op); push_op(&server.hanging, op); return NO_ANSWER;
    case DENY: return KV_DENIED;
    case SAY_LOST: return KV_LOST;
    case SAY_NOT_FIRST: op->result.found = false; op->result.retry_after = 0.05; return KV_OK;
    case NO_FAULT: break;
  }
  if (op->kind != KV_QUEUE_WAIT || !find_entry(op->place->ahead)) return (int)apply(op);
  push_op(&server.waiting, op);
  return NO_ANSWER;
}

static void finish_with(struct kv_op *op, int code) {
  if (code == KV_OK) host->finish(op, KV_OK, NULL);
  else if (code != NO_ANSWER) host->finish(op, (kv_code)code, "the fake server says so");
}

/* Of this state's backend: waits that have ended. Time passes for leases too. */
static struct kv_op *pass_time(const struct fake_state *state);

static void apply_late(void) {
  for (size_t i = server.late_count; i-- > 0;) {
    struct fake_late *late = &server.late[i];
    if (late->at > kv_clock()) continue;
    if (late->op.kind == KV_QUEUE_JOIN) add_entry(&late->entry);
    if (late->op.kind == KV_TXN) write_guarded(late->entry.id, late->entry.token, late->puts, &late->key);
    if (late->op.kind == KV_LEASE_GRANT && !find_lease(late->entry.lease) && server.lease_count < FAKE_MAX)
      server.leases[server.lease_count++] =
          (struct fake_lease){.id = late->entry.lease, .ttl = 1, .expires = kv_deadline(kv_clock(), 1)};
    *late = server.late[--server.late_count];
  }
}

static struct kv_op *pass_time(const struct fake_state *state) {
  struct kv_op *ended = NULL, **link = &server.waiting;
  expire_leases();
  apply_late();
  while (*link) {
    struct kv_op *op = *link;
    if (op->data != state || find_entry(op->place->ahead)) {
      link = &op->next;
      continue;
    }
    *link = op->next;
    server.wakes++;
    push_op(&ended, op);
  }
  return ended;
}

static void finish_ended(struct kv_op *ended) {
  while (ended) {
    struct kv_op *op = ended;
    ended = op->next;
    host->finish(op, KV_OK, NULL);
  }
}

/* ------------------------------------------------------------------ the driver */

static void tick(struct kv_timer *timer) {
  struct fake_state *state = timer->data;
  pthread_mutex_lock(&server.lock);
  struct kv_op *ended = pass_time(state);
  pthread_mutex_unlock(&server.lock);
  host->timer_set(timer, host->now() + 2 * 1000000);
  finish_ended(ended);
}

static void *serve_thread(void *argument) {
  struct fake_state *state = argument;
  pthread_mutex_lock(&server.lock);
  while (!state->closing) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 2000000;
    if (until.tv_nsec >= 1000000000) {
      until.tv_sec++;
      until.tv_nsec -= 1000000000;
    }
    if (!state->queue) pthread_cond_timedwait(&state->wake, &server.lock, &until);
    struct kv_op *ended = pass_time(state), *op = state->queue;
    int code = NO_ANSWER;
    if (op) {
      state->queue = op->next;
      code = serve_locked(op);
    }
    pthread_mutex_unlock(&server.lock);
    finish_ended(ended);
    if (op) finish_with(op, code);
    pthread_mutex_lock(&server.lock);
  }
  pthread_mutex_unlock(&server.lock);
  return NULL;
}

static void fake_start(void *argument, struct kv_op *op) {
  struct fake_state *state = argument;
  op->data = state;
  pthread_mutex_lock(&server.lock);
  bool first = !state->running;
  state->running = true;
  if (state->threaded) {
    struct kv_op **link = &state->queue;
    while (*link) link = &(*link)->next;
    op->next = NULL;
    *link = op;
    if (first) pthread_create(&state->thread, NULL, serve_thread, state);
    pthread_cond_signal(&state->wake);
    pthread_mutex_unlock(&server.lock);
    return;
  }
  int code = serve_locked(op);
  pthread_mutex_unlock(&server.lock);
  if (first) tick(&state->tick);
  finish_with(op, code);
}

static void fake_cancel(void *argument, struct kv_op *op) {
  struct fake_state *state = argument;
  pthread_mutex_lock(&server.lock);
  bool mine = take_op(&server.hanging, op) || take_op(&server.waiting, op) || take_op(&state->queue, op);
  if (mine && op->number == APPLY_LATE && server.late_count < 64) {
    struct fake_late *late = &server.late[server.late_count++];
    late->op = *op;
    const struct kv_place *place = op->part_count ? op->parts[0].place : op->place;
    if (place) describe_entry(&late->entry, place);
    else late->entry.lease = op->lease->id;
    if (op->part_count) {
      late->entry.token = place->token;
      late->puts = op->parts[1].type == KV_PART_PUT;
      describe_write(&late->key, &op->parts[1]);
    }
    late->at = kv_deadline(kv_clock(), 0.02);
  }
  pthread_mutex_unlock(&server.lock);
  if (mine) host->finish(op, KV_CANCELLED, "let go");
}

static void *fake_create(struct kv_backend *backend, const struct kv_config *config, kv_error *error) {
  struct fake_state *state = calloc(1, sizeof *state);
  (void)error;
  if (!state) return NULL;
  state->backend = backend;
  state->threaded = strcmp(config->scheme->name, "lockthread") == 0;
  state->tick.fire = tick;
  state->tick.data = state;
  pthread_cond_init(&state->wake, NULL);
  return state;
}

static void fake_close(void *argument) {
  struct fake_state *state = argument;
  host->timer_stop(&state->tick);
  pthread_mutex_lock(&server.lock);
  state->closing = true;
  bool running = state->threaded && state->running;
  pthread_cond_signal(&state->wake);
  pthread_mutex_unlock(&server.lock);
  if (running) pthread_join(state->thread, NULL); /* a real driver would not wait on the reactor */
  host->closed(state->backend);
}

static void fake_destroy(void *argument) {
  struct fake_state *state = argument;
  pthread_cond_destroy(&state->wake);
  free(state);
}

static void fake_attach(const struct kv_host *table) {
  host = table;
}

static void fake_watch(void *state, struct kv_feed *feed) {
  (void)state;
  (void)feed;
}

static const struct kv_scheme fake_schemes[] = {{"lockfake", false, 1}, {NULL, false, 0}};
static const struct kv_scheme thread_schemes[] = {{"lockthread", false, 1}, {NULL, false, 0}};
static const struct kv_scheme plain_schemes[] = {{"nolocks", false, 1}, {NULL, false, 0}};

#define FAKE_SLOTS \
  .attach = fake_attach, .create = fake_create, .close = fake_close, .destroy = fake_destroy, .start = fake_start, \
  .cancel = fake_cancel, .watch_open = fake_watch, .watch_close = fake_watch

static const char *const fake_interop[] = {"fake", NULL};

static const struct kv_driver fake_driver = {
    .abi = KV_DRIVER_ABI, .name = "lockfake", .schemes = fake_schemes,
    .capabilities = KV_CAN_MOVE | KV_CAN_LOCK | KV_CAN_LEASE | KV_CAN_TTL | KV_CAN_TXN | KV_CAN_WATCH |
                    KV_CAN_SEMAPHORE,
    .limits = {.value_max = 60, .lease_min = 0.03}, .interop = fake_interop,
    FAKE_SLOTS};

static const struct kv_driver thread_driver = {
    .abi = KV_DRIVER_ABI, .name = "lockthread", .schemes = thread_schemes,
    .capabilities = KV_CAN_MOVE | KV_CAN_LOCK | KV_CAN_LEASE | KV_CAN_TTL | KV_CAN_TXN | KV_CAN_WATCH |
                    KV_CAN_SEMAPHORE | KV_CAN_ANY_THREAD,
    .limits = {.value_max = 60},
    FAKE_SLOTS};

static const struct kv_driver plain_driver = {
    .abi = KV_DRIVER_ABI, .name = "nolocks", .schemes = plain_schemes, FAKE_SLOTS};

/* ------------------------------------------------------------------ helpers */

static kv_queue *queue;

static kv_store *open_at(const char *url) {
  kv_error error = {0};
  kv_register(&fake_driver, NULL);
  kv_register(&thread_driver, NULL);
  kv_register(&plain_driver, NULL);
  if (!queue) queue = kv_queue_new(NULL);
  kv_store *store = kv_open(url, NULL, &error);
  if (!store) fprintf(stderr, "open: %s\n", error.message);
  return store;
}

/* Locks of the server that has its own thread, and of the other one, behave alike. */
__attribute__((unused)) static const char *const urls[] = {"lockfake://here/app", "lockthread://here/app"};

/* On a server that knows nothing. */
__attribute__((unused)) static kv_store *fresh(const char *url) {
  reset_server();
  return open_at(url);
}

static void close_store(kv_store *store) {
  kv_close(store);
  CHECK(kv_close_wait(store, 10));
  kv_store_free(store);
}

/* A store that had to wait for something when it was closed took at least KV_CLOSE_GRACE / 2 for it, each time. The
 * quickest of several is not late because a machine is slow. */
enum { CLOSINGS = 5 };

__attribute__((unused)) static void close_store_timed(kv_store *store, int64_t *quickest) {
  int64_t before = kv_clock();
  close_store(store);
  int64_t took = kv_clock() - before;
  if (took < *quickest) *quickest = took;
}

__attribute__((unused)) static kv_reply *next_reply_within(double seconds) {
  kv_reply *reply = NULL;
  while (!(reply = kv_queue_next(queue)))
    if (kv_queue_wait(queue, seconds) == 0) return kv_queue_next(queue);
  return reply;
}

/* The code of the next reply; KV_CODE_COUNT when none came. */
__attribute__((unused)) static kv_code next_code(void) {
  kv_reply *reply = next_reply_within(20);
  kv_code code = reply ? kv_reply_code(reply) : KV_CODE_COUNT;
  kv_reply_free(reply);
  return code;
}

__attribute__((unused)) static uint64_t ask_acquire(kv_lock *lock, double timeout, uint64_t tag) {
  kv_error error = {0};
  uint64_t id = 0;
  CHECK_EQ(kv_lock_acquire(lock, queue, timeout, tag, &id, &error), KV_OK);
  return id;
}

__attribute__((unused)) static kv_code acquire(kv_lock *lock, double timeout) {
  ask_acquire(lock, timeout, 1);
  return next_code();
}

__attribute__((unused)) static kv_code release(kv_lock *lock) {
  kv_error error = {0};
  CHECK_EQ(kv_lock_release(lock, queue, 5, 2, NULL, &error), KV_OK);
  return next_code();
}

/* Nothing of us is on the server. */
__attribute__((unused)) static void check_nothing_left(void) {
  WAIT_FOR(entries_there() == 0);
  WAIT_FOR(leases_there() == 0);
}

#endif
