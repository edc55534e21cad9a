/*
 * test_core.c - the life of operations and watches, with a driver that does what the key's name says:
 *   plain/...   succeeds           refuse/N   is not reached N times, then succeeds
 *   hang        never answers      sent       never answers, and was sent
 *   lost        was sent, and the answer was lost
 *   cling       never answers, and is let go of only a while after it was cancelled
 * Its "server" is a small table that the tests change through it, and whose changes it feeds to watches. A second
 * scheme, snap:, feeds whole states instead.
 */
#include "check.h"

#include <math.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "core/core.h"

/* ------------------------------------------------------------------ the driver */

static const struct kv_host *host;

#define SLOTS 64

static struct {
  char key[64], value[64];
  uint64_t revision, created;
} table[SLOTS];
static uint64_t revision;
static struct kv_feed *feeds[16];
static atomic_int open_feeds, cancels, starts;
static bool feed_events = true; /* else changes reach the table only, as when a stream is lost */
static void (*_Atomic replay)(struct kv_feed *feed); /* what a new feed is told first */

static int find_slot(kv_slice key) {
  for (int i = 0; i < SLOTS; i++)
    if (strlen(table[i].key) == key.size && key.size && memcmp(table[i].key, key.data, key.size) == 0) return i;
  return -1;
}

static kv_slice text(const char *string) {
  return (kv_slice){string, strlen(string)};
}

static void tell_feeds(kv_event_type type, kv_slice key, kv_slice value, uint64_t created) {
  for (int i = 0; i < 16; i++) {
    if (!feeds[i] || !feed_events) continue;
    host->feed_event(feeds[i], type, key, value, revision, created);
    if (feeds[i]) host->feed_commit(feeds[i], revision);
  }
}

static void table_put(kv_slice key, kv_slice value, uint64_t *created) {
  int slot = find_slot(key);
  revision++;
  for (int i = 0; slot < 0 && i < SLOTS; i++)
    if (!table[i].key[0]) slot = i;
  if (slot < 0) abort();
  if (!table[slot].key[0]) {
    memcpy(table[slot].key, key.data, key.size);
    table[slot].created = revision;
  }
  memset(table[slot].value, 0, sizeof table[slot].value);
  memcpy(table[slot].value, value.data, value.size);
  table[slot].revision = revision;
  *created = table[slot].created;
  tell_feeds(KV_EVENT_PUT, key, value, *created);
}

static bool table_delete(kv_slice key) {
  int slot = find_slot(key);
  if (slot < 0) return false;
  revision++;
  memset(&table[slot], 0, sizeof table[slot]);
  tell_feeds(KV_EVENT_DELETE, key, text(""), 0);
  return true;
}

enum { PAIRS = 120000 }; /* that many events are more than the cap */
static uint64_t many; /* not 0: so many pairs are there besides, of this revision */

static void list_many(struct kv_op *op) {
  char name[32] = "";
  if (op->after.size) memcpy(name, op->after.data, op->after.size);
  int first = op->after.size ? atoi(name + 2) + 1 : 0;
  for (int i = first; i < PAIRS && i < first + 5000 && many; i++) {
    snprintf(name, sizeof name, "d/%06d", i);
    host->pair(op, text(name), text(""), many, many, false);
  }
  op->result.more = many && first + 5000 < PAIRS;
}

static void answer(struct kv_op *op) {
  switch (op->kind) {
    case KV_PUT:
      table_put(op->key, op->value, &op->result.created);
      op->result.revision = revision;
      break;
    case KV_DELETE: op->result.found = table_delete(op->key); break;
    case KV_GET: {
      int slot = find_slot(op->key);
      if (slot >= 0)
        host->pair(op, text(table[slot].key), text(table[slot].value), table[slot].revision, table[slot].created,
                   false);
      op->result.revision = revision;
      break;
    }
    case KV_LIST:
      for (int i = 0; i < SLOTS; i++) {
        kv_slice key = text(table[i].key);
        if (key.size > op->key.size && memcmp(key.data, op->key.data, op->key.size) == 0)
          host->pair(op, key, text(table[i].value), table[i].revision, table[i].created, false);
      }
      list_many(op);
      op->result.revision = revision;
      break;
    default: break;
  }
  host->finish(op, KV_OK, NULL);
}

static bool is(const struct kv_op *op, const char *word) {
  size_t size = strlen(word);
  return op->key.size >= size && memcmp(op->key.data + op->key.size - size, word, size) == 0;
}

static void fake_start(void *state, struct kv_op *op) {
  (void)state;
  atomic_fetch_add(&starts, 1);
  op->sent = is(op, "sent") || is(op, "lost");
  if (is(op, "hang") || is(op, "sent") || is(op, "cling")) return;
  if (is(op, "lost")) {
    host->finish(op, KV_UNKNOWN, "connection reset");
  } else if (op->key.size > 7 && memcmp(op->key.data, "refuse/", 7) == 0 && (int)op->attempt < op->key.data[7] - '0') {
    host->finish(op, KV_UNAVAILABLE, "connection refused");
  } else {
    answer(op);
  }
}

static struct kv_op *clinging; /* linked by next */

static void let_go(struct kv_task *task) {
  (void)task;
  struct kv_op *op;
  while ((op = clinging)) {
    clinging = op->next;
    host->finish(op, KV_CANCELLED, "let go");
  }
}

static struct kv_task let_go_task = {.run = let_go};

static void fake_cancel(void *state, struct kv_op *op) {
  (void)state;
  atomic_fetch_add(&cancels, 1);
  if (is(op, "cling")) {
    op->next = clinging;
    clinging = op;
    host->defer(&let_go_task);
    return;
  }
  host->finish(op, KV_CANCELLED, "let go");
}

static void fake_watch_open(void *state, struct kv_feed *feed) {
  (void)state;
  for (int i = 0; i < 16; i++) {
    if (feeds[i]) continue;
    feeds[i] = feed;
    break;
  }
  atomic_fetch_add(&open_feeds, 1);
  host->feed_connected(feed, true);
  void (*tell)(struct kv_feed *) = replay;
  if (tell) tell(feed);
}

static void forget_feed(struct kv_feed *feed) {
  for (int i = 0; i < 16; i++)
    if (feeds[i] == feed) feeds[i] = NULL;
  atomic_fetch_sub(&open_feeds, 1);
}

static void fake_watch_close(void *state, struct kv_feed *feed) {
  (void)state;
  forget_feed(feed);
}

static struct kv_backend *fake_backend;

static void *fake_create(struct kv_backend *backend, const struct kv_config *config, kv_error *error) {
  (void)config;
  (void)error;
  fake_backend = backend;
  return malloc(1);
}

static void fake_close(void *state) {
  (void)state;
  host->closed(fake_backend);
}

static void fake_attach(const struct kv_host *table_of_host) {
  host = table_of_host;
}

static const struct kv_scheme schemes[] = {{"fake", false, 1}, {NULL, false, 0}};

static const struct kv_driver fake = {
    .abi = KV_DRIVER_ABI, .name = "fake", .schemes = schemes,
    .capabilities = KV_CAN_MOVE | KV_CAN_WATCH | KV_CAN_RESUME, .limits = {.value_max = 50},
    .attach = fake_attach, .create = fake_create, .close = fake_close, .destroy = free,
    .start = fake_start, .cancel = fake_cancel, .watch_open = fake_watch_open, .watch_close = fake_watch_close};

static const struct kv_scheme snap_schemes[] = {{"snap", false, 1}, {NULL, false, 0}};

static const struct kv_driver snap = {
    .abi = KV_DRIVER_ABI, .name = "snap", .schemes = snap_schemes, .capabilities = KV_CAN_WATCH | KV_CAN_SNAPSHOT,
    .attach = fake_attach, .create = fake_create, .close = fake_close, .destroy = free,
    .start = fake_start, .cancel = fake_cancel, .watch_open = fake_watch_open, .watch_close = fake_watch_close};

/* ------------------------------------------------------------------ helpers */

static kv_queue *queue;

static kv_store *open_store(const char *url) {
  kv_error error = {0};
  kv_register(&fake, NULL);
  kv_register(&snap, NULL);
  memset(table, 0, sizeof table);
  feed_events = true;
  replay = NULL;
  if (!queue) queue = kv_queue_new(NULL);
  kv_store *store = kv_open(url, NULL, &error);
  if (!store) fprintf(stderr, "open: %s\n", error.message);
  return store;
}

static void close_store(kv_store *store) {
  kv_close(store);
  CHECK(kv_close_wait(store, 10));
  kv_store_free(store);
}

static kv_reply *next_reply(void) {
  kv_reply *reply = NULL;
  while (!(reply = kv_queue_next(queue)))
    if (kv_queue_wait(queue, 20) == 0) return NULL;
  return reply;
}

static uint64_t send_request(kv_store *store, kv_kind kind, const char *key, const char *value, double timeout) {
  static uint64_t tag;
  uint64_t id = 0;
  kv_error error = {0};
  kv_reply *reply;
  kv_request request = {.kind = kind, .key = text(key), .value = text(value), .timeout = timeout};
  CHECK_EQ(kv_submit(store, queue, &request, ++tag, &id, &reply, &error), KV_OK);
  CHECK(reply == NULL);
  return id;
}

static kv_reply *ask(kv_store *store, kv_kind kind, const char *key, const char *value, double timeout) {
  send_request(store, kind, key, value, timeout);
  return next_reply();
}

static kv_code code_of(kv_reply *reply) {
  kv_code code = reply ? kv_reply_code(reply) : KV_CODE_COUNT;
  if (reply && code != KV_OK) CHECK(strlen(kv_reply_message(reply)) > 0);
  kv_reply_free(reply);
  return code;
}

/* ------------------------------------------------------------------ operations */

TEST(put_then_get) {
  kv_store *store = open_store("fake://here/app");
  kv_reply *reply = ask(store, KV_PUT, "/plain//a/", "one", 5);
  CHECK_EQ(kv_reply_code(reply), KV_OK);
  uint64_t written = kv_reply_revision(reply);
  CHECK(written > 0);
  kv_reply_free(reply);
  reply = ask(store, KV_GET, "plain/a", "", 5);
  kv_pair pair = {0};
  CHECK(kv_reply_found(reply));
  REQUIRE(kv_reply_pair(reply, &pair));
  CHECK(pair.key.size == 7 && memcmp(pair.key.data, "plain/a", 7) == 0);
  CHECK(pair.value.size == 3 && memcmp(pair.value.data, "one", 3) == 0);
  CHECK_EQ(pair.revision, written);
  CHECK(!kv_reply_pair(reply, &pair));
  kv_reply_free(reply);
  CHECK(strcmp(table[0].key, "app/plain/a") == 0);
  close_store(store);
}

TEST(a_refused_request_is_started_again) {
  kv_store *store = open_store("fake://here");
  int before = atomic_load(&starts);
  CHECK_EQ(code_of(ask(store, KV_PUT, "refuse/3", "x", 10)), KV_OK);
  CHECK_EQ(atomic_load(&starts) - before, 4);
  kv_stats stats;
  kv_store_stats(store, &stats);
  CHECK_EQ(stats.retries, 3);
  CHECK_EQ(stats.in_flight, 0);
  close_store(store);
}

TEST(refused_until_the_deadline_is_unavailable) {
  kv_store *store = open_store("fake://here");
  kv_reply *reply = ask(store, KV_PUT, "refuse/9", "x", 0.05);
  CHECK(strstr(kv_reply_message(reply), "connection refused") != NULL);
  CHECK(strstr(kv_reply_message(reply), "refuse/9") != NULL);
  CHECK_EQ(code_of(reply), KV_UNAVAILABLE);
  close_store(store);
}

TEST(deadlines) {
  kv_store *store = open_store("fake://here");
  int before = atomic_load(&cancels);
  CHECK_EQ(code_of(ask(store, KV_PUT, "hang", "x", 0.02)), KV_TIMEOUT);
  CHECK_EQ(code_of(ask(store, KV_PUT, "sent", "x", 0.02)), KV_UNKNOWN);
  CHECK_EQ(code_of(ask(store, KV_GET, "sent", "x", 0.02)), KV_TIMEOUT);
  CHECK_EQ(atomic_load(&cancels) - before, 3);
  close_store(store);
}

TEST(a_lost_answer_is_unknown_for_a_write_and_asked_again_for_a_read) {
  kv_store *store = open_store("fake://here");
  CHECK_EQ(code_of(ask(store, KV_DELETE, "lost", "", 5)), KV_UNKNOWN);
  int before = atomic_load(&starts);
  CHECK_EQ(code_of(ask(store, KV_GET, "lost", "", 0.2)), KV_TIMEOUT);
  CHECK(atomic_load(&starts) - before >= 2);
  close_store(store);
}

TEST(cancel_answers) {
  kv_store *store = open_store("fake://here");
  kv_cancel(queue, send_request(store, KV_GET, "hang", "", 60));
  CHECK_EQ(code_of(next_reply()), KV_CANCELLED);
  kv_cancel(queue, 123456789);
  close_store(store);
}

TEST(closing_answers_everyone) {
  kv_store *store = open_store("fake://here");
  send_request(store, KV_GET, "hang", "", 60);
  CHECK_EQ(code_of(ask(store, KV_GET, "plain", "", 5)), KV_OK); /* the first one has begun by now */
  send_request(store, KV_PUT, "sent", "x", 60);
  CHECK_EQ(code_of(ask(store, KV_GET, "plain", "", 5)), KV_OK);
  kv_close(store);
  int closed = 0, unknown = 0;
  for (int i = 0; i < 2; i++) {
    kv_code code = code_of(next_reply());
    closed += code == KV_CLOSED;
    unknown += code == KV_UNKNOWN;
  }
  CHECK_EQ(closed, 1);
  CHECK_EQ(unknown, 1);
  kv_reply *reply;
  kv_request request = {.kind = KV_GET, .key = text("a")};
  CHECK_EQ(kv_submit(store, queue, &request, 1, NULL, &reply, NULL), KV_CLOSED);
  CHECK(kv_close_wait(store, 10));
  kv_store_free(store);
}

TEST(closing_with_very_many_requests_is_quick) {
  enum { MANY = 60000 };
  kv_store *store = open_store("fake://here");
  int64_t begun = kv_clock();
  for (int i = 0; i < MANY; i++) send_request(store, KV_GET, "cling", "", 60);
  CHECK_EQ(code_of(ask(store, KV_GET, "plain", "", 60)), KV_OK);
  int64_t before = kv_clock(), asking_took = before - begun;
  kv_close(store);
  for (int i = 0; i < MANY; i++) CHECK_EQ(code_of(next_reply()), KV_CLOSED);
  CHECK(kv_close_wait(store, 60));
  CHECK(kv_clock() - before < 10 * asking_took + KV_SECOND); /* quadratic would be a hundred times as long */
  kv_store_free(store);
}

TEST(a_view_closes_alone) {
  kv_store *store = open_store("fake://here");
  kv_store *view = kv_sub(store, text("sub"), NULL);
  REQUIRE(view != NULL);
  CHECK_EQ(code_of(ask(view, KV_PUT, "plain", "x", 5)), KV_OK);
  send_request(view, KV_GET, "hang", "", 60);
  kv_close(view);
  CHECK_EQ(code_of(next_reply()), KV_CLOSED);
  kv_reply *reply = ask(store, KV_GET, "sub/plain", "", 5);
  CHECK(kv_reply_found(reply));
  kv_reply_free(reply);
  kv_store_free(view);
  close_store(store);
}

TEST(a_queue_that_is_given_up_cancels) {
  kv_store *store = open_store("fake://here");
  kv_queue *kept = queue;
  queue = kv_queue_new(NULL);
  int before = atomic_load(&cancels);
  send_request(store, KV_GET, "hang", "", 60);
  send_request(store, KV_GET, "refuse/9", "", 60);
  kv_queue_free(queue);
  queue = kept;
  kv_stats stats = {.in_flight = 1};
  while (stats.in_flight) {
    CHECK_EQ(code_of(ask(store, KV_PING, "", "", 5)), KV_OK);
    kv_store_stats(store, &stats);
  }
  CHECK_EQ(atomic_load(&cancels) - before, 1); /* the other one was between two tries */
  close_store(store);
}

TEST(bad_requests) {
  kv_store *store = open_store("fake://here");
  kv_reply *reply;
  kv_error error;
  kv_request request = {.kind = KV_PUT, .key = text("a/../b"), .value = text("x")};
  CHECK_EQ(kv_submit(store, queue, &request, 1, NULL, &reply, &error), KV_INVALID);
  request.key = text(".kv/x");
  CHECK_EQ(kv_submit(store, queue, &request, 1, NULL, &reply, &error), KV_INVALID);
  request.key = text("");
  CHECK_EQ(kv_submit(store, queue, &request, 1, NULL, &reply, &error), KV_INVALID);
  request.key = text("a");
  request.ttl = 5;
  CHECK_EQ(kv_submit(store, queue, &request, 1, NULL, &reply, &error), KV_UNSUPPORTED);
  request.ttl = 0;
  request.value = text("123456789012345678901234567890123456789012345678901");
  CHECK_EQ(kv_submit(store, queue, &request, 1, NULL, &reply, &error), KV_TOO_LARGE);
  request.kind = KV_LEASE_GRANT;
  CHECK_EQ(kv_submit(store, queue, &request, 1, NULL, &reply, &error), KV_INVALID);
  close_store(store);
}

TEST(a_store_that_was_never_used_closes) {
  kv_store *store = open_store("fake://here");
  close_store(store);
}

TEST(a_child_finds_everything_closed) {
  kv_store *store = open_store("fake://here");
  CHECK_EQ(code_of(ask(store, KV_PUT, "plain", "x", 5)), KV_OK);
  pid_t child = fork();
  if (child == 0) {
    kv_reply *reply;
    kv_request request = {.kind = KV_GET, .key = text("plain")};
    kv_code inherited = kv_submit(store, queue, &request, 1, NULL, &reply, NULL);
    kv_store_free(store);
    queue = kv_queue_new(NULL);
    kv_store *own = kv_open("fake://here", NULL, NULL);
    kv_code fresh = code_of(ask(own, KV_PUT, "plain", "y", 5));
    kv_close(own);
    bool closed = kv_close_wait(own, 10);
    _exit(inherited == KV_CLOSED && fresh == KV_OK && closed ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK_EQ(code_of(ask(store, KV_GET, "plain", "", 5)), KV_OK);
  close_store(store);
}

static atomic_bool asking;

static void *ask_all_the_time(void *argument) {
  kv_store *store = argument;
  kv_queue *own = kv_queue_new(NULL);
  kv_request request = {.kind = KV_GET, .key = text("plain"), .timeout = 5};
  while (atomic_load(&asking)) {
    kv_reply *reply;
    CHECK_EQ(kv_submit(store, own, &request, 1, NULL, &reply, NULL), KV_OK);
    while (!(reply = kv_queue_next(own))) kv_queue_wait(own, 5);
    kv_reply_free(reply);
  }
  kv_queue_free(own);
  return NULL;
}

/* Whatever locks the other thread and the reactor hold at that moment. */
TEST(a_child_works_whenever_it_was_forked) {
  kv_store *store = open_store("fake://here");
  pthread_t thread;
  atomic_store(&asking, true);
  pthread_create(&thread, NULL, ask_all_the_time, store);
  for (int i = 0; i < 50; i++) {
    pid_t child = fork();
    if (child == 0) {
      alarm(20);
      queue = kv_queue_new(NULL);
      kv_store *own = kv_open("fake://here", NULL, NULL);
      kv_code code = own ? code_of(ask(own, KV_PING, "", "", 5)) : KV_FAILED;
      _exit(code == KV_OK ? 0 : 1);
    }
    int status = -1;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
  }
  atomic_store(&asking, false);
  pthread_join(thread, NULL);
  close_store(store);
}

/* ------------------------------------------------------------------ watches */

static kv_watch *open_watch(kv_store *store, kv_watch_options options) {
  kv_watch *watch = NULL;
  kv_error error = {0};
  CHECK_EQ(kv_watch_open(store, queue, &options, 7, &watch, &error), KV_OK);
  return watch;
}

static int next_event(kv_watch *watch, kv_event *event) {
  kv_error error;
  int result;
  while ((result = kv_watch_next(watch, event, &error)) == 0) {
    kv_reply *reply = next_reply();
    if (!reply) return 0;
    kv_reply_free(reply);
  }
  return result;
}

static bool event_is(const kv_event *event, kv_event_type type, const char *key, const char *value) {
  return event->type == type && event->key.size == strlen(key) && memcmp(event->key.data, key, event->key.size) == 0 &&
         event->value.size == strlen(value) && memcmp(event->value.data, value, event->value.size) == 0;
}

static void drain_queue(void) {
  kv_reply *reply;
  while ((reply = kv_queue_next(queue))) kv_reply_free(reply);
}

struct change {
  struct kv_task task;
  atomic_bool done;
  void (*make)(void);
};

static void run_change(struct kv_task *task) {
  struct change *change = task->data;
  change->make();
  atomic_store(&change->done, true);
}

/* Do something as the server would, on the reactor thread. */
static void on_server(void (*make)(void)) {
  struct change change = {.task = {.run = run_change}, .make = make};
  change.task.data = &change;
  host->post(&change.task);
  while (!atomic_load(&change.done)) usleep(100);
}

static void put_a1(void) { uint64_t created; table_put(text("d/a"), text("1"), &created); }
static void put_a2(void) { uint64_t created; table_put(text("d/a"), text("2"), &created); }
static void put_b(void) { uint64_t created; table_put(text("d/b"), text("b"), &created); }
static void put_elsewhere(void) { uint64_t created; table_put(text("da"), text("x"), &created); }
static void delete_a(void) { table_delete(text("d/a")); }
static void go_deaf(void) { feed_events = false; }
static void lose(kv_code code) {
  feed_events = true;
  for (int i = 0; i < 16; i++) {
    struct kv_feed *feed = feeds[i];
    if (!feed) continue;
    forget_feed(feed);
    host->feed_lost(feed, code, "lost on purpose");
  }
}
static void lose_compacted(void) { lose(KV_COMPACTED); }
static void lose_denied(void) { lose(KV_DENIED); }

TEST(a_watch_gives_what_is_there_then_changes) {
  kv_store *store = open_store("fake://here/d");
  kv_event event;
  CHECK_EQ(code_of(ask(store, KV_PUT, "a", "0", 5)), KV_OK);
  kv_watch *watch = open_watch(store, (kv_watch_options){.tree = true, .previous = true});
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK(event_is(&event, KV_EVENT_PUT, "a", "0"));
  CHECK(event.initial && !event.has_previous);
  while (!kv_watch_synced(watch)) kv_reply_free(next_reply());
  CHECK(kv_watch_revision(watch) == revision);
  while (!kv_watch_connected(watch)) kv_reply_free(next_reply());
  on_server(put_elsewhere);
  on_server(put_a1);
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK(event_is(&event, KV_EVENT_PUT, "a", "1"));
  CHECK(!event.initial && event.has_previous && event.previous.size == 1 && event.previous.data[0] == '0');
  on_server(delete_a);
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK(event_is(&event, KV_EVENT_DELETE, "a", ""));
  CHECK(event.has_previous && event.previous.data[0] == '1');
  kv_watch_close(watch);
  CHECK_EQ(next_event(watch, &event), -1);
  kv_watch_free(watch);
  close_store(store);
  drain_queue();
  CHECK_EQ(atomic_load(&open_feeds), 0);
}

TEST(the_value_before_is_of_the_same_life) {
  kv_store *store = open_store("fake://here");
  kv_event event;
  CHECK_EQ(code_of(ask(store, KV_PUT, "d/a", "0", 5)), KV_OK);
  kv_watch *watch = open_watch(store, (kv_watch_options){.key = text("d"), .tree = true, .previous = true});
  CHECK_EQ(next_event(watch, &event), 1);
  while (!kv_watch_connected(watch)) kv_reply_free(next_reply());
  on_server(go_deaf);
  on_server(delete_a);
  on_server(put_a1);
  on_server(lose_compacted); /* both are joined into one put */
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK(event_is(&event, KV_EVENT_PUT, "d/a", "1") && event.created == event.revision);
  CHECK(!event.has_previous && !event.previous.size);
  while (!kv_watch_connected(watch)) kv_reply_free(next_reply());
  on_server(go_deaf);
  on_server(put_a2);
  on_server(lose_compacted);
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK(event.has_previous && event.previous.size == 1 && event.previous.data[0] == '1');
  kv_watch_free(watch);
  close_store(store);
  drain_queue();
}

TEST(after_compaction_the_difference_comes) {
  kv_store *store = open_store("fake://here");
  kv_event event;
  CHECK_EQ(code_of(ask(store, KV_PUT, "d/a", "0", 5)), KV_OK);
  CHECK_EQ(code_of(ask(store, KV_PUT, "d/b", "b", 5)), KV_OK);
  kv_watch *watch = open_watch(store, (kv_watch_options){.key = text("d"), .tree = true});
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK_EQ(next_event(watch, &event), 1);
  while (!kv_watch_connected(watch)) kv_reply_free(next_reply());
  on_server(go_deaf);
  on_server(delete_a);
  on_server(put_a1);
  on_server(put_a2);
  on_server(lose_compacted);
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK(event_is(&event, KV_EVENT_PUT, "d/a", "2"));
  while (!kv_watch_connected(watch)) kv_reply_free(next_reply());
  on_server(go_deaf);
  on_server(delete_a);
  on_server(lose_compacted);
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK(event_is(&event, KV_EVENT_DELETE, "d/a", ""));
  while (!kv_watch_connected(watch)) kv_reply_free(next_reply());
  on_server(put_b); /* nothing came between: b was not told again */
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK(event_is(&event, KV_EVENT_PUT, "d/b", "b"));
  on_server(lose_denied);
  CHECK_EQ(next_event(watch, &event), -1);
  kv_error error;
  CHECK_EQ(kv_watch_next(watch, &event, &error), -1);
  CHECK_EQ(error.code, KV_DENIED);
  CHECK(strstr(error.message, "lost on purpose") != NULL);
  kv_watch_free(watch);
  close_store(store);
  drain_queue();
}

static void flood(void) {
  /* Far more than the cap: each event weighs over 100 bytes. */
  for (int i = 0; i < 200000; i++) {
    uint64_t created;
    table_put(text("d/a"), text("flood"), &created);
  }
  table_delete(text("d/b"));
}

TEST(a_slow_consumer_gets_the_final_state) {
  kv_store *store = open_store("fake://here");
  kv_event event;
  CHECK_EQ(code_of(ask(store, KV_PUT, "d/a", "0", 5)), KV_OK);
  CHECK_EQ(code_of(ask(store, KV_PUT, "d/b", "b", 5)), KV_OK);
  kv_watch *watch = open_watch(store, (kv_watch_options){.key = text("d"), .tree = true});
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK_EQ(next_event(watch, &event), 1);
  while (!kv_watch_connected(watch)) kv_reply_free(next_reply());
  on_server(flood);
  bool deleted = false;
  uint64_t seen = 0;
  int count = 0;
  while (!deleted || seen + 1 < revision) {
    if (next_event(watch, &event) != 1) break;
    count++;
    if (event.type == KV_EVENT_DELETE) deleted = true;
    else seen = event.revision;
  }
  CHECK(deleted);
  CHECK_EQ(seen, revision - 1);
  CHECK(count < 150000);
  kv_stats stats;
  kv_store_stats(store, &stats);
  CHECK(stats.resyncs >= 1);
  kv_watch_free(watch);
  close_store(store);
  drain_queue();
}

/* ------------------------------------------------------------------ watches that resume */

static uint64_t resume_after, flood_until, gone_at;

static bool is_open(const struct kv_feed *feed) {
  for (int i = 0; i < 16; i++)
    if (feeds[i] == feed) return true;
  return false;
}

/* From the history: d/a was written at each revision, but d/gone ended at `gone_at`. */
static void replay_history(struct kv_feed *feed) {
  for (uint64_t at = feed->from; at <= flood_until && is_open(feed); at++) {
    if (at == gone_at) host->feed_event(feed, KV_EVENT_DELETE, text("d/gone"), text(""), at, 0);
    else host->feed_event(feed, KV_EVENT_PUT, text("d/a"), text("flood"), at, resume_after);
    if (is_open(feed)) host->feed_commit(feed, at);
  }
}

/* A batch that breaks off. */
static void replay_one_and_lose(struct kv_feed *feed) {
  host->feed_event(feed, KV_EVENT_PUT, text("d/b"), text("1"), resume_after + 1, resume_after + 1);
  forget_feed(feed);
  host->feed_lost(feed, KV_UNAVAILABLE, "lost on purpose");
  replay = NULL;
}

/* Things have happened since, d/gone's end among them. */
static kv_store *open_with_history(uint64_t revisions) {
  kv_store *store = open_store("fake://here");
  CHECK_EQ(code_of(ask(store, KV_PUT, "d/a", "0", 5)), KV_OK);
  resume_after = revision;
  flood_until = revision += revisions;
  gone_at = resume_after + revisions / 2;
  return store;
}

static kv_watch *resume_watch(kv_store *store) {
  kv_watch_options options = {.key = text("d"), .tree = true, .resume = true, .after = resume_after};
  return open_watch(store, options);
}

TEST(a_slow_consumer_who_resumed_misses_no_delete) {
  kv_store *store = open_with_history(150000); /* far more than the cap */
  replay = replay_history;
  kv_event event;
  kv_watch *watch = resume_watch(store);
  uint64_t seen = resume_after;
  bool in_order = true, gone = false;
  while (seen < flood_until && next_event(watch, &event) == 1) {
    if (seen == resume_after) usleep(100000); /* what comes meanwhile does not fit */
    in_order = in_order && event.revision == seen + 1;
    gone = gone || (event.type == KV_EVENT_DELETE && event_is(&event, KV_EVENT_DELETE, "d/gone", ""));
    seen = event.revision;
  }
  CHECK_EQ(seen, flood_until);
  CHECK(in_order);
  CHECK(gone);
  kv_stats stats;
  kv_store_stats(store, &stats);
  CHECK_EQ(stats.resyncs, 0);
  kv_watch_free(watch);
  close_store(store);
  drain_queue();
}

TEST(a_history_that_is_cut_before_a_resumed_watch_caught_up_ends_it) {
  kv_store *store = open_with_history(100);
  replay = replay_one_and_lose;
  kv_event event;
  kv_error error;
  kv_watch *watch = resume_watch(store);
  while (replay || !kv_watch_connected(watch)) kv_reply_free(next_reply()); /* again */
  on_server(lose_compacted);
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK(event_is(&event, KV_EVENT_PUT, "d/b", "1"));
  CHECK_EQ(next_event(watch, &event), -1);
  CHECK_EQ(kv_watch_next(watch, &event, &error), -1);
  CHECK_EQ(error.code, KV_COMPACTED);
  kv_watch_free(watch);
  close_store(store);
  drain_queue();
}

TEST(a_history_that_is_cut_later_is_healed) {
  kv_store *store = open_with_history(100);
  replay = replay_history;
  kv_event event;
  kv_watch *watch = resume_watch(store);
  for (int i = 0; i < 100; i++) CHECK_EQ(next_event(watch, &event), 1);
  on_server(go_deaf);
  on_server(delete_a);
  on_server(put_b);
  on_server(lose_compacted);
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK(event_is(&event, KV_EVENT_PUT, "d/b", "b"));
  CHECK_EQ(next_event(watch, &event), 1);
  CHECK(event_is(&event, KV_EVENT_DELETE, "d/a", ""));
  kv_watch_free(watch);
  close_store(store);
  drain_queue();
}

/* ------------------------------------------------------------------ watches that are fed whole states */

static void feed_many(struct kv_feed *feed) {
  char name[32];
  host->feed_begin(feed);
  for (int i = 0; i < PAIRS && is_open(feed); i++) {
    snprintf(name, sizeof name, "d/%06d", i);
    host->feed_pair(feed, text(name), text(""), many, many);
  }
  if (is_open(feed)) host->feed_end(feed, revision);
}

static void feed_nothing(void) {
  struct kv_feed *feed = feeds[0];
  many = 0;
  replay = NULL;
  revision++;
  host->feed_begin(feed);
  host->feed_end(feed, revision);
}

TEST(a_whole_state_may_be_larger_than_the_cap) {
  kv_store *store = open_store("snap://here");
  replay = feed_many;
  many = ++revision;
  kv_event event;
  kv_watch *watch = open_watch(store, (kv_watch_options){.key = text("d"), .tree = true});
  int puts = 0, deletes = 0;
  while (puts < PAIRS && next_event(watch, &event) == 1) puts += event.type == KV_EVENT_PUT;
  CHECK_EQ(puts, PAIRS);
  while (!kv_watch_synced(watch)) kv_reply_free(next_reply());
  on_server(feed_nothing);
  while (deletes < PAIRS && next_event(watch, &event) == 1) deletes += event.type == KV_EVENT_DELETE;
  CHECK_EQ(deletes, PAIRS);
  kv_watch_free(watch);
  close_store(store);
  drain_queue();
}

TEST(closing_the_store_ends_a_watch) {
  kv_store *store = open_store("fake://here");
  kv_event event;
  kv_error error;
  kv_watch *watch = open_watch(store, (kv_watch_options){.key = text("d"), .tree = true});
  kv_close(store);
  CHECK_EQ(next_event(watch, &event), -1);
  CHECK_EQ(kv_watch_next(watch, &event, &error), -1);
  CHECK_EQ(error.code, KV_CLOSED);
  kv_watch_free(watch);
  kv_close_wait(store, 10);
  kv_store_free(store);
  drain_queue();
}

/* ------------------------------------------------------------------ queues that tell a socket */

static ssize_t bytes_in(int fd) {
  char bytes[16];
  return recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
}

static bool is_readable(const kv_queue *told) {
  struct pollfd descriptor = {.fd = kv_queue_fd(told), .events = POLLIN};
  return poll(&descriptor, 1, 0) == 1;
}

TEST(a_socket_is_told_when_the_descriptor_becomes_readable) {
  kv_error error;
  kv_queue *told = kv_queue_new(&error);
  int first[2], second[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, first) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, second) == 0);
  kv_queue_notify(told, first[0]);
  CHECK_EQ(bytes_in(first[1]), -1);
  kv_queue_poke(told);
  kv_queue_poke(told);
  CHECK(is_readable(told) && kv_queue_pending(told));
  CHECK_EQ(bytes_in(first[1]), 1);
  CHECK(!kv_queue_next(told));
  CHECK(!is_readable(told) && !kv_queue_pending(told));

  kv_store *store = open_store("fake://here");
  kv_request put = {.kind = KV_PUT, .key = text("plain/told"), .value = text("v"), .timeout = 5};
  kv_reply *reply = NULL;
  CHECK_EQ(kv_submit(store, told, &put, 1, NULL, &reply, &error), KV_OK);
  struct pollfd listener = {.fd = first[1], .events = POLLIN};
  CHECK_EQ(poll(&listener, 1, 10000), 1);
  kv_queue_notify(told, second[0]); /* the byte in the first one may be lost with its reader */
  CHECK_EQ(bytes_in(second[1]), 1);
  CHECK_EQ(bytes_in(first[1]), 1);
  CHECK_EQ(bytes_in(first[1]), 0); /* the end */
  CHECK((reply = kv_queue_next(told)) != NULL);
  kv_reply_free(reply);
  CHECK(!kv_queue_next(told));
  CHECK_EQ(bytes_in(second[1]), -1);

  close(first[1]);
  close(second[1]);
  kv_queue_poke(told); /* nobody reads any more: no signal, no harm */
  CHECK(is_readable(told));
  kv_queue_free(told);
  close_store(store);
  drain_queue();
}

CHECK_MAIN()
