/*
 * test_etcd_faults.c - the etcd driver against servers that are away, silent, broken, restarted, stopped, restored or
 * without a leader: the right code within the deadline, watches that come back with the exact state, and nothing said
 * that is not known.
 */
#include "proxy.h"

/* A store behind a proxy in front of the shared server. */
#define WITH_PROXY(proxy, store, rest)                                  \
  struct proxy proxy;                                                   \
  if (!etcd_url()) return;                                              \
  REQUIRE(proxy_start(&proxy, "etcd", shared_server.port));             \
  kv_store *store = open_url(proxy.url, rest);                          \
  REQUIRE(store != NULL)

static kv_code put_within(kv_store *store, const char *key, const char *value, double timeout) {
  return code_of(store,
                 &(kv_request){.kind = KV_PUT, .key = text(key), .value = text(value), .timeout = timeout});
}

static kv_code get_within(kv_store *store, const char *key, double timeout) {
  return code_of(store, &(kv_request){.kind = KV_GET, .key = text(key), .timeout = timeout});
}

static bool not_reached(kv_code code) {
  return code == KV_UNAVAILABLE || code == KV_TIMEOUT;
}

/* ------------------------------------------------------------------ nobody there */

TEST(away) {
  char url[100];
  snprintf(url, sizeof url, "etcd://127.0.0.1:%d", free_port());
  kv_store *store = open_url(url, "?connect_timeout=0.3");
  REQUIRE(store != NULL);
  double begun = now();
  CHECK_EQ(put_within(store, "k", "v", 0.4), KV_UNAVAILABLE);
  CHECK(strstr(last_message, "refused") != NULL);
  CHECK_EQ(get_within(store, "k", 0.4), KV_UNAVAILABLE);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_LIST, .timeout = 0.4}), KV_UNAVAILABLE);
  CHECK_EQ(ping(store, 0.4), KV_UNAVAILABLE);
  CHECK(now() - begun < 10);
  kv_watch *watch = watch_key(store, "", true);
  CHECK_STR(next_event(watch, 0.3), ""); /* it waits, and does not end */
  CHECK(!kv_watch_connected(watch));
  kv_lock *lock = kv_lock_new(store, &(kv_lock_options){.name = KV_TEXT("x")}, NULL);
  REQUIRE(lock && kv_lock_acquire(lock, queue, 0.4, 9, NULL, NULL) == KV_OK);
  kv_code code = code_and_free(reply_tagged(9, 5));
  CHECK(not_reached(code));
  kv_lock_free(lock);
  kv_watch_free(watch);
  close_store(store);
}

/* It accepts, and is no etcd or a broken one: nothing of ours was sent, so nothing was applied. */
TEST(never_an_etcd) {
  static const char *const modes[] = {"silent", "close", "reset", "garbage", "oversized", "bad-settings", "goaway",
                                      "status 0", "status 14", "status 2", "no-status", "http 503", "http 404",
                                      "long-message", "half-message", "bad-message", "flood"};
  WITH_PROXY(proxy, store, "/never?connect_timeout=0.2");
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
    tell(&proxy, modes[i]);
    tell(&proxy, "cut");
    double begun = now();
    kv_code code = put_within(store, "k", modes[i], 0.5);
    CHECK(not_reached(code));
    if (!not_reached(code)) fprintf(stderr, "%s: %s\n", modes[i], last_message);
    CHECK(now() - begun < 5);
    CHECK(not_reached(get_within(store, "k", 0.3)));
  }
  tell(&proxy, "pass");
  CHECK_STR(get(store, "k"), "(none)");
  CHECK_EQ(put(store, "k", "v"), KV_OK);
  close_store(store);
  proxy_stop(&proxy);
}

TEST(closing_while_nobody_answers) {
  WITH_PROXY(proxy, store, "/closing");
  CHECK_EQ(put(store, "k", "v"), KV_OK);
  tell(&proxy, "now hold-answers");
  long before = tell(&proxy, "requests");
  CHECK(submit(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("w"), .timeout = 20}));
  WAIT_FOR(5, tell(&proxy, "requests") > before);
  CHECK(submit(store, &(kv_request){.kind = KV_GET, .key = KV_TEXT("k"), .timeout = 20}));
  double begun = now();
  kv_close(store);
  CHECK(kv_close_wait(store, 5));
  CHECK(now() - begun < 3);
  for (int i = 0; i < 2; i++) {
    kv_reply *reply = next_reply(5);
    REQUIRE(reply != NULL);
    CHECK_EQ(kv_reply_code(reply), kv_reply_kind(reply) == KV_PUT ? KV_UNKNOWN : KV_CLOSED);
    kv_reply_free(reply);
  }
  kv_store_free(store);
  proxy_stop(&proxy);
}

/* ------------------------------------------------------------------ answers that do not come */

TEST(answers_lost) {
  WITH_PROXY(proxy, store, "/lost");
  kv_store *direct = open_url(etcd_url(), "/lost");
  kv_watch *witness = watch_key(direct, "", true);
  CHECK_EQ(put(store, "k", "0"), KV_OK);
  CHECK(strstr(next_event(witness, 10), "k=0") != NULL);
  uint64_t revision = put_revision(store, "k", "1");
  CHECK_STR(next_event(witness, 10), "+k=1");
  tell(&proxy, "now hold-answers");
  double begun = now();
  /* Time enough to arrive: what is given up before is taken back. */
  submit(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("2"), .timeout = 2});
  CHECK_STR(next_event(witness, 10), "+k=2");
  submit(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("new"), .value = KV_TEXT("3"), .timeout = 2,
                              .condition = KV_IF_ABSENT});
  CHECK_STR(next_event(witness, 10), "+new=3");
  CHECK_EQ(gather(2, KV_UNKNOWN, 20), 2);
  submit(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("k"), .timeout = 1, .condition = KV_IF_REVISION,
                              .revision = revision});
  submit(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("other"), .timeout = 1});
  submit(store, &(kv_request){.kind = KV_DELETE_TREE, .key = KV_TEXT("tree"), .timeout = 1});
  CHECK_EQ(gather(3, KV_UNKNOWN, 20), 3);
  submit(store, &(kv_request){.kind = KV_GET, .key = KV_TEXT("k"), .timeout = 0.3});
  submit(store, &(kv_request){.kind = KV_LIST, .timeout = 0.3});
  /* The lease of a put with a TTL: it was asked for, but the put was not sent. */
  submit(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("ttl"), .ttl = 5, .timeout = 0.3});
  CHECK_EQ(gather(3, KV_TIMEOUT, 20), 3);
  CHECK(now() - begun < 15);
  tell(&proxy, "now pass");
  CHECK_STR(get(store, "k"), "2");
  CHECK_STR(get(store, "new"), "3");
  CHECK_STR(get(store, "ttl"), "(none)");
  tell(&proxy, "now hold-requests"); /* nothing arrives, but that is not known here */
  CHECK_EQ(put_within(store, "k", "4", 1), KV_UNKNOWN);
  tell(&proxy, "cut");
  tell(&proxy, "pass");
  CHECK_STR(get(store, "k"), "2");
  /* Answers are dropped for good: the connection is given up, and what comes later goes well. */
  tell(&proxy, "now drop-answers");
  tell(&proxy, "pass");
  CHECK_EQ(put_within(store, "k", "5", 2), KV_UNKNOWN);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_GET, .key = KV_TEXT("k"), .timeout = 20}), KV_OK);
  CHECK_STR(get(store, "k"), "5");
  /* Each was applied once, or not at all. */
  CHECK_EQ(put(direct, "end", ""), KV_OK);
  static const char *const expected[] = {"+k=5", "+end="};
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) CHECK_STR(next_event(witness, 10), expected[i]);
  kv_watch_free(witness);
  CHECK_EQ(code_of(direct, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(direct);
  close_store(store);
  proxy_stop(&proxy);
}

/* Answers that are none, after a good connection was made. */
TEST(broken_answers) {
  static const struct {
    const char *mode;
    kv_code write, read;
  } cases[] = {
    {"status 0", KV_UNKNOWN, KV_UNAVAILABLE},     {"status 1", KV_UNKNOWN, KV_UNAVAILABLE},
    {"status 2", KV_UNKNOWN, KV_FAILED},          {"status 3", KV_FAILED, KV_FAILED},
    {"status 4", KV_UNKNOWN, KV_UNAVAILABLE},     {"status 7", KV_DENIED, KV_DENIED},
    {"status 8", KV_UNKNOWN, KV_FAILED},          {"status 12", KV_UNSUPPORTED, KV_UNSUPPORTED},
    {"status 13", KV_UNKNOWN, KV_FAILED},         {"status 14", KV_UNKNOWN, KV_UNAVAILABLE},
    {"status 16", KV_DENIED, KV_DENIED},          {"status 99", KV_UNKNOWN, KV_FAILED},
    {"no-status", KV_UNKNOWN, KV_UNAVAILABLE},    {"http 503", KV_UNKNOWN, KV_UNAVAILABLE},
    {"http 404", KV_UNSUPPORTED, KV_UNSUPPORTED}, {"long-message", KV_UNKNOWN, KV_UNAVAILABLE},
    {"half-message", KV_UNKNOWN, KV_UNAVAILABLE}, {"bad-message", KV_UNKNOWN, KV_UNAVAILABLE},
    {"flood", KV_UNKNOWN, KV_UNAVAILABLE}};
  WITH_PROXY(proxy, store, "/broken");
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char now_mode[40];
    for (int read = 0; read < 2; read++) {
      CHECK_EQ(ping(store, 10), KV_OK);
      snprintf(now_mode, sizeof now_mode, "now %s", cases[i].mode);
      tell(&proxy, now_mode);
      kv_code wanted = read ? cases[i].read : cases[i].write;
      double timeout = wanted == KV_UNAVAILABLE ? 1 : 10; /* that one is asked again until the time is up */
      kv_code code = read ? get_within(store, "k", timeout) : put_within(store, "k", cases[i].mode, timeout);
      CHECK_EQ(code, wanted);
      if (code != wanted) fprintf(stderr, "%s: %s\n", cases[i].mode, last_message);
      tell(&proxy, "pass");
      tell(&proxy, "cut");
    }
  }
  CHECK_STR(get(store, "k"), "(none)");
  close_store(store);
  proxy_stop(&proxy);
}

/*
 * The answer to a renewal that was given up comes while the next one is on its way, and that one gets no further. The
 * lease lives on the server since the first; should the second be told so, it would be believed to live longer here
 * than there.
 */
TEST(late_answers_to_renewals) {
  WITH_PROXY(proxy, store, "/late");
  kv_store *direct = open_url(etcd_url(), "/late");
  kv_lease *lease = NULL;
  double begun = now();
  REQUIRE(kv_lease_open(store, queue, 6, 5, 5, NULL, &lease, NULL) == KV_OK);
  CHECK_EQ(code_and_free(reply_tagged(5, 10)), KV_OK);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("k"), .lease = lease}), KV_OK);
  nap(0.3); /* all is said: what is sent now is the first renewal */
  tell(&proxy, "now hold-answers");
  long before = tell(&proxy, "requests");
  while (tell(&proxy, "requests") == before && now() < begun + 4) nap(0.01);
  CHECK(tell(&proxy, "requests") > before); /* the first renewal, and it arrives */
  nap(0.5);
  tell(&proxy, "now hold-all");
  before = tell(&proxy, "requests");
  while (tell(&proxy, "requests") == before && now() < begun + 5.9) nap(0.01);
  CHECK(tell(&proxy, "requests") > before); /* the second, and it does not */
  tell(&proxy, "now hold-requests");
  bool gone = false;
  for (double until = begun + 16; !gone && now() < until; nap(0.02)) gone = strcmp(get(direct, "k"), "(none)") == 0;
  CHECK(gone);
  CHECK(!kv_lease_alive(lease));
  tell(&proxy, "cut");
  tell(&proxy, "pass");
  kv_lease_free(lease);
  close_store(direct);
  close_store(store);
  proxy_stop(&proxy);
}

/* Follows a watch: what it says there is, as "key=value key=value". */
struct picture {
  kv_watch *watch;
  char keys[32][20], values[32][40];
  uint64_t revisions[32];
  size_t count;
  char ended[KV_MESSAGE_MAX];
};

static void picture_apply(struct picture *picture, const kv_event *event) {
  size_t at = 0;
  while (at < picture->count &&
         (strlen(picture->keys[at]) != event->key.size || memcmp(picture->keys[at], event->key.data, event->key.size)))
    at++;
  if (at < picture->count) CHECK(event->revision > picture->revisions[at]);
  if (event->type == KV_EVENT_DELETE) {
    CHECK(at < picture->count); /* no delete of what was never told */
    if (at >= picture->count) return;
    picture->count--;
    memcpy(picture->keys[at], picture->keys[picture->count], sizeof picture->keys[0]);
    memcpy(picture->values[at], picture->values[picture->count], sizeof picture->values[0]);
    picture->revisions[at] = picture->revisions[picture->count];
    return;
  }
  if (at == picture->count) picture->count++;
  snprintf(picture->keys[at], sizeof picture->keys[0], "%.*s", (int)event->key.size, event->key.data);
  snprintf(picture->values[at], sizeof picture->values[0], "%.*s", (int)event->value.size, event->value.data);
  picture->revisions[at] = event->revision;
}

static bool picture_has(const struct picture *picture, const char *key, const char *value) {
  for (size_t i = 0; i < picture->count; i++)
    if (strcmp(picture->keys[i], key) == 0) return value && strcmp(picture->values[i], value) == 0;
  return !value;
}

/* Take events until `key` has this value (NULL: is not there). */
static bool picture_until(struct picture *picture, const char *key, const char *value, double seconds) {
  double until = now() + seconds;
  kv_event event;
  kv_error error;
  while (now() < until) {
    int got = kv_watch_next(picture->watch, &event, &error);
    if (got > 0) picture_apply(picture, &event);
    if (got < 0) {
      fprintf(stderr, "the watch ended: %s\n", error.message);
      return false;
    }
    if (picture_has(picture, key, value)) return true;
    if (!got) kv_reply_free(next_reply(0.05));
  }
  return false;
}

TEST(cut_in_the_middle) {
  static const int places[] = {0, 1, 5, 8, 9, 10, 12, 17, 18, 25, 33, 40, 55, 70, 90, 120};
  WITH_PROXY(proxy, store, "/cut");
  kv_store *direct = open_url(etcd_url(), "/cut");
  static struct picture picture;
  picture.watch = watch_key(store, "", true);
  int unknown = 0;
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    char command[40], value[40];
    snprintf(value, sizeof value, "warm%zu", i);
    CHECK_EQ(put(direct, "w", value), KV_OK);
    CHECK(picture_until(&picture, "w", value, 10)); /* the watch is there again */
    snprintf(value, sizeof value, "at%d", places[i]);
    snprintf(command, sizeof command, "cut-after %d", places[i]);
    tell(&proxy, command);
    kv_code code = put_within(store, "k", value, 5);
    CHECK(code == KV_UNKNOWN || code == KV_OK);
    unknown += code == KV_UNKNOWN;
    tell(&proxy, "cut");
    char is[100];
    snprintf(is, sizeof is, "%s", get(store, "k"));
    if (code == KV_OK) CHECK_STR(is, value);
  }
  CHECK(unknown > 0);
  CHECK_EQ(code_of(direct, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  CHECK_EQ(put(direct, "last", "1"), KV_OK);
  CHECK(picture_until(&picture, "last", "1", 10));
  CHECK_EQ(picture.count, 1);
  kv_watch_free(picture.watch);
  close_store(direct);
  close_store(store);
  proxy_stop(&proxy);
}

TEST(corrupted) {
  WITH_PROXY(proxy, store, "/corrupt");
  for (int i = 0; i < 40; i++) {
    char command[40];
    CHECK_EQ(ping(store, 10), KV_OK);
    snprintf(command, sizeof command, "corrupt-after %d", i * 3);
    tell(&proxy, command);
    double begun = now();
    (void)put_within(store, "k", "v", 0.3);
    (void)get_within(store, "k", 0.3);
    CHECK(now() - begun < 10);
    tell(&proxy, "corrupt-after -1");
    tell(&proxy, "cut");
  }
  CHECK_EQ(put(store, "k", "healed"), KV_OK);
  CHECK_STR(get(store, "k"), "healed");
  close_store(store);
  proxy_stop(&proxy);
}

/* ------------------------------------------------------------------ servers that go and come */

/* Writers go on while the server is killed and started again. What was acknowledged is there, and the watch shows the
 * same. */
TEST(killed_and_started) {
  struct server server = {.name = ""};
  if (!etcd_url()) return;
  REQUIRE(server_start(&server));
  kv_store *store = open_url(server.url, "/kill");
  static struct picture picture;
  picture.watch = watch_key(store, "", true);
  enum { ROUNDS = 3, BATCH = 40 };
  for (int round = 0; round < ROUNDS; round++) {
    uint64_t tags[BATCH];
    kv_code codes[BATCH];
    int left = 0;
    for (int i = 0; i < BATCH; i++) {
      char key[20], value[40];
      snprintf(key, sizeof key, "k%02d", i % 20);
      snprintf(value, sizeof value, "%d.%d", round, i);
      tags[i] = submit(store, &(kv_request){.kind = KV_PUT, .key = text(key), .value = text(value), .timeout = 15});
      codes[i] = KV_CODE_COUNT;
      left += tags[i] != 0;
      if (i == BATCH / 2) server_kill(&server);
    }
    REQUIRE(server_launch(&server));
    for (double until = now() + 20; left > 0 && now() < until;) {
      kv_reply *reply = next_reply(until - now());
      for (int i = 0; reply && i < BATCH; i++) {
        if (kv_reply_tag(reply) != tags[i]) continue;
        codes[i] = kv_reply_code(reply);
        CHECK(codes[i] == KV_OK || codes[i] == KV_UNKNOWN);
        if (codes[i] != KV_OK && codes[i] != KV_UNKNOWN) fprintf(stderr, "%s\n", kv_reply_message(reply));
        left--;
      }
      kv_reply_free(reply);
    }
    CHECK_EQ(left, 0);
    char mark[20];
    snprintf(mark, sizeof mark, "%d", round);
    CHECK_EQ(put(store, "mark", mark), KV_OK);
    CHECK(picture_until(&picture, "mark", mark, 15));
    for (int i = 0; i < 20; i++) {
      char key[20];
      snprintf(key, sizeof key, "k%02d", i);
      CHECK(strcmp(get(store, key), "(none)") == 0 ? picture_has(&picture, key, NULL)
                                                  : picture_has(&picture, key, get(store, key)));
    }
  }
  kv_stats stats;
  kv_store_stats(store, &stats);
  CHECK(stats.reconnects >= ROUNDS - 1);
  kv_watch_free(picture.watch);
  close_store(store);
  server_end(&server);
}

/* A server that ends in good order says GOAWAY first. */
TEST(ended_in_good_order) {
  struct server server = {.name = ""};
  if (!etcd_url()) return;
  REQUIRE(server_start(&server));
  kv_store *store = open_url(server.url, "/term");
  static struct picture picture;
  picture.watch = watch_key(store, "", true);
  CHECK_EQ(put(store, "a", "1"), KV_OK);
  CHECK(picture_until(&picture, "a", "1", 10));
  kill(server.pid, SIGTERM);
  waitpid(server.pid, NULL, 0);
  WAIT_FOR(10, !kv_watch_connected(picture.watch)); /* its farewell has been read */
  CHECK(not_reached(put_within(store, "a", "2", 0.4)));
  REQUIRE(server_launch(&server));
  CHECK_EQ(put(store, "a", "3"), KV_OK);
  CHECK(picture_until(&picture, "a", "3", 10));
  kv_watch_free(picture.watch);
  close_store(store);
  server_end(&server);
}

TEST(stopped) {
  struct server server = {.name = ""};
  if (!etcd_url()) return;
  REQUIRE(server_start(&server));
  kv_store *store = open_url(server.url, "/stop");
  CHECK_EQ(put(store, "k", "1"), KV_OK);
  kill(server.pid, SIGSTOP);
  REQUIRE(waitpid(server.pid, NULL, WUNTRACED) == server.pid);
  double begun = now();
  CHECK_EQ(put_within(store, "k", "2", 1), KV_UNKNOWN);
  CHECK_EQ(get_within(store, "k", 0.4), KV_TIMEOUT);
  CHECK(now() - begun < 10);
  kill(server.pid, SIGCONT);
  const char *value = get(store, "k"); /* it reads the write and that we gave it up: either may win */
  CHECK(strcmp(value, "1") == 0 || strcmp(value, "2") == 0);
  CHECK_EQ(put(store, "k", "3"), KV_OK);
  CHECK_STR(get(store, "k"), "3");
  close_store(store);
  server_end(&server);
}

/* The history that the watch stands on is cleared while it is away. */
TEST(compacted_meanwhile) {
  WITH_PROXY(proxy, store, "/compact");
  kv_store *direct = open_url(etcd_url(), "/compact");
  static struct picture picture;
  picture.watch = watch_key(store, "", true);
  CHECK_EQ(put(direct, "stays", "1"), KV_OK);
  CHECK_EQ(put(direct, "goes", "1"), KV_OK);
  CHECK_EQ(put(direct, "changes", "1"), KV_OK);
  CHECK(picture_until(&picture, "changes", "1", 10));
  tell(&proxy, "refuse");
  tell(&proxy, "cut");
  CHECK_EQ(put(direct, "changes", "2"), KV_OK);
  CHECK_EQ(put(direct, "passes by", "2"), KV_OK);
  CHECK_EQ(code_of(direct, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("goes")}), KV_OK);
  CHECK_EQ(code_of(direct, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("passes by")}), KV_OK);
  uint64_t revision = put_revision(direct, "new", "2");
  char command[60];
  snprintf(command, sizeof command, "compaction %llu", (unsigned long long)revision);
  REQUIRE(etcdctl(&shared_server, command));
  tell(&proxy, "listen");
  CHECK(picture_until(&picture, "goes", NULL, 15));
  CHECK(picture_until(&picture, "new", "2", 5));
  CHECK(picture_has(&picture, "stays", "1"));
  CHECK(picture_has(&picture, "changes", "2"));
  CHECK_EQ(picture.count, 3);
  kv_stats stats;
  kv_store_stats(store, &stats);
  CHECK_EQ(stats.resyncs, 1);
  CHECK_EQ(put(direct, "changes", "3"), KV_OK);
  CHECK(picture_until(&picture, "changes", "3", 10));
  kv_watch_free(picture.watch);
  CHECK_EQ(code_of(direct, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(direct);
  close_store(store);
  proxy_stop(&proxy);
}

/* A backup is put back in place: the revision goes back, and perhaps the cluster is another one. */
static void restore(struct server *server, const char *token) {
  char command[500], log[100];
  snprintf(log, sizeof log, "%s/restore", server->dir);
  snprintf(command, sizeof command,
           "etcdctl snapshot restore %s/backup --data-dir %s/data --name default --initial-cluster %s "
           "--initial-advertise-peer-urls http://127.0.0.1:%d --initial-cluster-token %s",
           server->dir, server->dir, server->cluster, server->peer_port, token);
  char data[100];
  snprintf(data, sizeof data, "%s/data", server->dir);
  server_kill(server);
  remove_folder(data);
  CHECK(run_tool(command, log));
  CHECK(server_launch(server));
}

static void restored(const char *token) {
  struct server server = {.name = ""};
  if (!etcd_url()) return;
  REQUIRE(server_start(&server));
  kv_store *store = open_url(server.url, "/backup");
  static struct picture picture;
  memset(&picture, 0, sizeof picture);
  picture.watch = watch_key(store, "", true);
  CHECK_EQ(put(store, "old", "1"), KV_OK);
  CHECK_EQ(put(store, "gone later", "1"), KV_OK);
  char command[100];
  snprintf(command, sizeof command, "snapshot save %s/backup", server.dir);
  REQUIRE(etcdctl(&server, command));
  for (int i = 0; i < 20; i++) CHECK_EQ(put(store, "lost", "2"), KV_OK);
  CHECK_EQ(put(store, "old", "2"), KV_OK);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("gone later")}), KV_OK);
  CHECK(picture_until(&picture, "lost", "2", 10));
  CHECK(picture_until(&picture, "gone later", NULL, 10));
  for (size_t i = 0; i < picture.count; i++) picture.revisions[i] = 0; /* revisions begin anew */
  restore(&server, token);
  CHECK(picture_until(&picture, "lost", NULL, 15));
  CHECK(picture_until(&picture, "old", "1", 5));
  CHECK(picture_until(&picture, "gone later", "1", 5));
  CHECK_EQ(put(store, "after", "3"), KV_OK);
  CHECK(picture_until(&picture, "after", "3", 10));
  CHECK_EQ(picture.count, 3);
  kv_watch_free(picture.watch);
  close_store(store);
  server_end(&server);
}

TEST(restored_backup) {
  restored("etcd-cluster"); /* etcd's default: the same cluster */
}

TEST(restored_as_another_cluster) {
  restored("another");
}

/* ------------------------------------------------------------------ several members */

static bool cluster_start(struct server *members, char *url, size_t url_size) {
  char cluster[200] = "";
  size_t size = 0, at;
  for (int i = 0; i < 3; i++) {
    snprintf(members[i].name, sizeof members[i].name, "m%d", i);
    if (!server_prepare(&members[i])) return false;
    size += (size_t)snprintf(cluster + size, sizeof cluster - size, "%s%s=http://127.0.0.1:%d", i ? "," : "",
                             members[i].name, members[i].peer_port);
  }
  at = (size_t)snprintf(url, url_size, "etcd://");
  for (int i = 0; i < 3; i++) {
    strcpy(members[i].cluster, cluster);
    at += (size_t)snprintf(url + at, url_size - at, "%s127.0.0.1:%d", i ? "," : "", members[i].port);
    server_spawn(&members[i]);
  }
  for (int i = 0; i < 3; i++)
    if (!server_await(&members[i])) return false;
  return true;
}

TEST(one_endpoint_is_dead) {
  if (!etcd_url()) return;
  char url[100];
  snprintf(url, sizeof url, "etcd://127.0.0.1:%d,127.0.0.1:%d", free_port(), shared_server.port);
  for (int i = 0; i < 4; i++) { /* either may be the first */
    kv_store *store = open_url(url, "/dead");
    double begun = now();
    CHECK_EQ(put(store, "k", "v"), KV_OK);
    CHECK(now() - begun < 4);
    close_store(store);
  }
}

/* A put that a leader's election overtook is repeated. */
static kv_code put_at_last(kv_store *store, const char *key, const char *value) {
  kv_code code = KV_UNKNOWN;
  for (double until = now() + 30; code != KV_OK && now() < until;) code = put_within(store, key, value, 5);
  return code;
}

TEST(members_fail) {
  static struct server members[3];
  char url[200];
  if (!etcd_url()) return;
  REQUIRE(cluster_start(members, url, sizeof url));
  kv_store *store = open_url(url, "/cluster");
  static struct picture picture;
  picture.watch = watch_key(store, "", true);
  CHECK_EQ(put_at_last(store, "k", "1"), KV_OK);
  CHECK(picture_until(&picture, "k", "1", 15));
  /* The member that we talk to is killed: another one takes over. */
  kv_info info;
  kv_store_info(store, &info);
  int port = atoi(strrchr(info.endpoint, ':') + 1), first = 0;
  while (first < 2 && members[first].port != port) first++;
  CHECK_EQ(members[first].port, port);
  server_kill(&members[first]);
  CHECK_EQ(put_at_last(store, "k", "2"), KV_OK);
  CHECK(picture_until(&picture, "k", "2", 10));
  /* Another one: no leader can be had. Reads are not answered, writes not made, and the watch knows. */
  int second = (first + 1) % 3, third = (first + 2) % 3;
  server_kill(&members[second]);
  WAIT_FOR(15, !kv_watch_connected(picture.watch));
  kv_code code = put_within(store, "k", "3", 2);
  CHECK(not_reached(code) || code == KV_UNKNOWN);
  CHECK(not_reached(get_within(store, "k", 2)));
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_GET, .key = KV_TEXT("k"), .flags = KV_FAST, .timeout = 5}),
           KV_OK);
  REQUIRE(server_launch(&members[first]));
  CHECK_EQ(put_at_last(store, "k", "4"), KV_OK);
  CHECK(picture_until(&picture, "k", "4", 20));
  kv_watch_free(picture.watch);
  close_store(store);
  server_end(&members[first]);
  server_end(&members[second]);
  server_end(&members[third]);
}

CHECK_MAIN()
