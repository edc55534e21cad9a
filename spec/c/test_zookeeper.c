/*
 * test_zookeeper.c - the ZooKeeper driver: its small parts alone, and the whole through the public C API on a real
 * server, where nodes that other programs make or look at are made and looked at with the C client, in a process of
 * its own. Without a server the tests that need one are left out, with a note.
 */
#include <poll.h>

#include "proxy.h"
#include "zookeeper_server.h"

#include "drivers/zookeeper/zookeeper.h"

#define WITH_ZK(name, rest)            \
  if (!zk_url()) return;               \
  kv_store *name = open_zk(zk_url(), rest); \
  REQUIRE(name != NULL)

/* ------------------------------------------------------------------ other programs */

/* The C client, in a process of its own. */

enum raw_kind { RAW_CREATE, RAW_SET, RAW_GET };

struct raw {
  enum raw_kind kind;
  const char *path, *data;
  int size, mode;
  bool done;
  int result, got; /* of RAW_GET: bytes, -1 none */
};

static void raw_made(int result, const char *value, const void *data) {
  struct raw *raw = (struct raw *)(uintptr_t)data;
  (void)value;
  raw->result = result;
  raw->done = true;
}

static void raw_set(int result, const struct Stat *stat, const void *data) {
  struct raw *raw = (struct raw *)(uintptr_t)data;
  (void)stat;
  raw->result = result;
  raw->done = true;
}

static void raw_got(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct raw *raw = (struct raw *)(uintptr_t)data;
  (void)value;
  (void)stat;
  raw->got = size;
  raw->result = result;
  raw->done = true;
}

static void raw_event(zhandle_t *handle, int type, int state, const char *path, void *context) {
  (void)handle, (void)type, (void)state, (void)path, (void)context;
}

static void raw_silent(const char *message) {
  (void)message;
}

/* In the child: one request, then exit with how many bytes a get gave (plus 1), or 200 when it failed. */
static void raw_child(struct raw *raw) {
  char host[40];
  bool sent = false;
  snprintf(host, sizeof host, "127.0.0.1:%d", zk_shared.port);
  zhandle_t *handle = zookeeper_init2(host, raw_event, 5000, NULL, NULL, ZOO_NO_LOG_CLIENTENV, raw_silent);
  while (handle && !raw->done) {
    struct timeval timeout;
    int fd = -1, interest = 0;
    if (zookeeper_interest(handle, &fd, &interest, &timeout) != ZOK) continue;
    struct pollfd wanted = {.fd = fd};
    if (interest & ZOOKEEPER_READ) wanted.events |= POLLIN;
    if (interest & ZOOKEEPER_WRITE) wanted.events |= POLLOUT;
    poll(&wanted, 1, 50);
    int events = (wanted.revents & POLLIN ? ZOOKEEPER_READ : 0) | (wanted.revents & POLLOUT ? ZOOKEEPER_WRITE : 0);
    zookeeper_process(handle, events);
    if (sent || zoo_state(handle) != ZOO_CONNECTED_STATE) continue;
    sent = true;
    if (raw->kind == RAW_CREATE)
      zoo_acreate(handle, raw->path, raw->data, raw->size, &ZOO_OPEN_ACL_UNSAFE, raw->mode, raw_made, raw);
    else if (raw->kind == RAW_SET)
      zoo_aset(handle, raw->path, raw->data, raw->size, -1, raw_set, raw);
    else
      zoo_aget(handle, raw->path, 0, raw_got, raw);
  }
  if (handle) zookeeper_close(handle);
  _exit(!handle || raw->result != ZOK ? 200 : raw->got + 1);
}

/* The bytes that a get gives (-1: no data), 0 for others, -2: failed. */
static int raw(struct raw request) {
  int status;
  pid_t pid = fork();
  if (pid == 0) {
    alarm(20);
    raw_child(&request);
  }
  if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) == 200) return -2;
  return WEXITSTATUS(status) - 1;
}

#define RAW_NONE (-1)

static int raw_size(const char *path) {
  return raw((struct raw){.kind = RAW_GET, .path = path});
}

/* ------------------------------------------------------------------ small parts */

TEST(what_makes_a_node_a_key) {
  struct Stat fresh = {0}, written = {.version = 1}, ephemeral = {.ephemeralOwner = 7};
  CHECK(zk_is_key(3, &fresh));
  CHECK(!zk_is_key(0, &fresh));
  CHECK(!zk_is_key(-1, &fresh));
  CHECK(zk_is_key(0, &written));
  CHECK(!zk_is_key(-1, &written));
  CHECK(zk_is_key(0, &ephemeral));
}

TEST(paths_and_keys) {
  char path[ZK_PATH_MAX];
  zk_path(KV_TEXT("a/b"), path);
  CHECK_STR(path, "/a/b");
  CHECK(zk_key(path).size == 3);
  CHECK(zk_parent(path));
  CHECK_STR(path, "/a");
  CHECK(zk_parent(path));
  CHECK_STR(path, "/");
  CHECK(!zk_parent(path));
  CHECK(zk_is_reserved(KV_TEXT("zookeeper")));
  CHECK(zk_is_reserved(KV_TEXT("zookeeper/x")));
  CHECK(!zk_is_reserved(KV_TEXT("zookeeper2")));
  CHECK(!zk_is_reserved(KV_TEXT("a/zookeeper")));
  CHECK_EQ(zk_milliseconds(1.5), 1500);
  CHECK_EQ(zk_milliseconds(0.0001), 1);
  CHECK_EQ(zk_milliseconds(1e18), INT64_C(0xffffffffff));
}

TEST(lock_names_do_not_nest) {
  struct kv_place place = {.name = KV_TEXT("a/b%c")};
  char *path = zk_queue_path(&place);
  CHECK_STR(path, "/.kv/lock/a%2Fb%25c");
  free(path);
}

TEST(foreign_locks_are_where_they_are_said_to_be) {
  static const struct {
    const char *name, *path;
  } cases[] = {{"a", "/a"}, {"/a/b", "/a/b"}, {"//a///b//", "/a/b"}, {"a%/.lock", "/a%/.lock"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct kv_place place = {.name = {cases[i].name, strlen(cases[i].name)}, .interop = "kazoo"};
    char *path = zk_queue_path(&place);
    CHECK_STR(path, cases[i].path);
    free(path);
  }
}

TEST(entries_are_named_as_others_do) {
  struct kv_place place = {.id = "0123456789abcdef0011223344556677"};
  char name[ZK_ENTRY_MAX];
  zk_entry_name(&place, name);
  CHECK_STR(name, "0123456789abcdef0011223344556677-lock-");
  place.interop = "kazoo";
  zk_entry_name(&place, name);
  CHECK_STR(name, "0123456789abcdef0011223344556677__lock__");
  place.interop = "curator";
  zk_entry_name(&place, name);
  CHECK_STR(name, "_c_01234567-89ab-cdef-0011-223344556677-lock-");
}

TEST(entries_of_a_queue) {
  char *names[] = {"0123-lock-0000000002", "4567-lock-0000000001", "other", "89ab-lock-"};
  struct String_vector vector = {4, names};
  CHECK_STR(zk_queue_find(&vector, "4567-lock-"), names[1]);
  CHECK(!zk_queue_find(&vector, "456-lock-"));
  CHECK(!zk_queue_find(&vector, ""));
  CHECK(!zk_queue_find(NULL, "4567-lock-"));
}

TEST(access_control_lists) {
  const char *problem;
  struct zk_acl acl = {0};
  REQUIRE(zk_acl_make(&acl, "world:anyone:r,digest:user:hash=:cdrwa", &problem));
  CHECK_EQ(acl.vector.count, 2);
  CHECK_EQ(acl.vector.data[0].perms, 1);
  CHECK_STR(acl.vector.data[1].id.scheme, "digest");
  CHECK_STR(acl.vector.data[1].id.id, "user:hash=");
  CHECK_EQ(acl.vector.data[1].perms, 31);
  CHECK_EQ(zk_acl_marked(&acl.vector), 0);
  CHECK_EQ(zk_acl_marked(zk_acl_mark(&acl, 1234)), 1234);
  zk_acl_free(&acl);
  static const char *const wrong[] = {"world", "world:anyone", "world:anyone:x", "world:anyone:",
                                      ":anyone:r", "", ",", "a:b:r,"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    acl = (struct zk_acl){0};
    CHECK(!zk_acl_make(&acl, wrong[i], &problem));
    CHECK(strstr(problem, "acl") != NULL);
    zk_acl_free(&acl);
  }
}

TEST(errors_of_the_library) {
  CHECK_EQ(zk_code(ZCONNECTIONLOSS, false), KV_UNAVAILABLE);
  CHECK_EQ(zk_code(ZCONNECTIONLOSS, true), KV_UNKNOWN);
  CHECK_EQ(zk_code(ZSESSIONEXPIRED, true), KV_UNKNOWN);
  CHECK_EQ(zk_code(ZSESSIONMOVED, true), KV_UNAVAILABLE);
  CHECK_EQ(zk_code(ZNOAUTH, true), KV_DENIED);
  CHECK_EQ(zk_code(-12345, true), KV_FAILED);
}

TEST(refused_when_opened) {
  kv_error error;
  kv_register(&kv_driver_zookeeper, NULL);
  CHECK(!kv_open("zk://host?acl=nonsense", NULL, &error));
  CHECK_EQ(error.code, KV_INVALID);
  CHECK(strstr(error.message, "acl") != NULL);
}

/* ------------------------------------------------------------------ nodes as others see and make them */

TEST(nodes_as_others_see_them) {
  WITH_ZK(store, "/seen");
  CHECK_EQ(put(store, "dir/key", "value"), KV_OK);
  CHECK_EQ(raw_size("/seen/dir/key"), 5);
  CHECK_EQ(raw_size("/seen/dir"), RAW_NONE);
  CHECK_EQ(put(store, "dir/empty", ""), KV_OK);
  CHECK_EQ(raw_size("/seen/dir/empty"), 0);
  CHECK_STR(get(store, "dir/empty"), "");
  CHECK_EQ(put(store, "dir", "both"), KV_OK);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("dir")}), KV_OK);
  CHECK_EQ(raw_size("/seen/dir"), RAW_NONE);
  CHECK_STR(get(store, "dir"), "(none)");
  CHECK_STR(get(store, "dir/key"), "value");
  close_store(store);
}

TEST(nodes_that_others_make) {
  WITH_ZK(store, "/made");
  CHECK_EQ(put(store, "x", "1"), KV_OK);
  CHECK_EQ(raw((struct raw){.kind = RAW_CREATE, .path = "/made/parent", .data = "", .size = 0}), 0);
  CHECK_EQ(raw((struct raw){.kind = RAW_CREATE, .path = "/made/parent/child", .data = "abc", .size = 3}), 0);
  CHECK_EQ(raw((struct raw){.kind = RAW_CREATE, .path = "/made/null", .data = NULL, .size = -1}), 0);
  CHECK_STR(get(store, "parent"), "(none)");
  CHECK_STR(get(store, "parent/child"), "abc");
  CHECK_STR(list(store, "", 0, 0), "parent/child x");
  CHECK_STR(list(store, "", KV_KEYS_ONLY, 0), "parent/child x");
  CHECK_STR(list(store, "", KV_SHALLOW, 0), "parent/ x");
  /* Written on purpose: a value, though an empty one. */
  CHECK_EQ(raw((struct raw){.kind = RAW_SET, .path = "/made/parent", .data = "", .size = 0}), 0);
  CHECK_STR(get(store, "parent"), "");
  CHECK_STR(list(store, "", 0, 0), "parent parent/child x");
  /* What is no key can be made one, once. */
  kv_request create = {.kind = KV_PUT, .key = KV_TEXT("null"), .value = KV_TEXT("v"), .condition = KV_IF_ABSENT};
  CHECK_EQ(code_of(store, &create), KV_OK);
  CHECK_EQ(code_of(store, &create), KV_EXISTS);
  close_store(store);
}

TEST(the_server_own_nodes_and_ours) {
  if (!zk_url()) return;
  kv_store *store = open_zk(zk_url(), NULL);
  REQUIRE(store != NULL);
  CHECK_EQ(put(store, "zookeeper/x", "v"), KV_UNSUPPORTED);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_LIST, .key = KV_TEXT("zookeeper")}), KV_UNSUPPORTED);
  CHECK_EQ(put(store, "at-the-root", "v"), KV_OK);
  CHECK(strstr(list(store, "", 0, 0), "at-the-root") != NULL);
  CHECK(strstr(list(store, "", KV_SHALLOW, 0), "zookeeper") == NULL);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE, .key = KV_TEXT("")}), KV_OK);
  CHECK_STR(list(store, "", 0, 0), "");
  close_store(store);
}

/* ------------------------------------------------------------------ how long nodes live */

static kv_code put_ttl(kv_store *store, const char *key, double ttl) {
  return code_of(store, &(kv_request){.kind = KV_PUT, .key = text(key), .value = KV_TEXT("v"), .ttl = ttl});
}

static kv_code keep(kv_store *store, const char *key) {
  return code_of(store, &(kv_request){.kind = KV_PUT, .key = text(key), .value = KV_TEXT("v"), .flags = KV_KEEP_ALIVE});
}

TEST(kinds_of_nodes_change) {
  WITH_ZK(store, "/kinds");
  CHECK_EQ(put(store, "k", "plain"), KV_OK);
  CHECK_EQ(put_ttl(store, "k", 60), KV_OK);
  CHECK_STR(get(store, "k"), "v");
  CHECK_EQ(put_ttl(store, "k", 60), KV_OK);
  CHECK_EQ(put_ttl(store, "k", 50), KV_OK);
  CHECK_EQ(keep(store, "k"), KV_OK);
  CHECK_EQ(keep(store, "k"), KV_OK);
  CHECK_EQ(put(store, "k/below", "no"), KV_UNSUPPORTED);
  CHECK(strstr(last_message, "ephemeral") != NULL);
  CHECK_EQ(put_ttl(store, "k", 60), KV_OK);
  CHECK_EQ(put(store, "k", "plain"), KV_OK);
  CHECK_EQ(put(store, "k/below", "yes"), KV_OK);
  CHECK_EQ(put_ttl(store, "k", 60), KV_UNSUPPORTED);
  CHECK_EQ(keep(store, "k"), KV_UNSUPPORTED);
  CHECK_STR(get(store, "k"), "plain");
  close_store(store);
}

TEST(a_put_that_begins_again_keeps_nothing_of_its_first_round) {
  WITH_ZK(other, "/again");
  struct proxy proxy;
  REQUIRE(proxy_start(&proxy, "zk", zk_shared.port));
  kv_store *store = open_zk(proxy.url, "/again?portable=true");
  REQUIRE(store != NULL);
  CHECK_EQ(put_ttl(other, "k", 60), KV_OK);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PING}), KV_OK);
  tell(&proxy, "stop-at 14"); /* a multi */
  kv_request put = {.kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("w"), .timeout = 20};
  uint64_t tag = submit(store, &put);
  WAIT_FOR(10, tell(&proxy, "stopped") == 1);
  CHECK_EQ(code_of(other, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("k")}), KV_OK);
  tell(&proxy, "stop-at 0");
  CHECK_EQ(code_and_free(reply_tagged(tag, 20)), KV_OK);
  CHECK_STR(get(other, "k"), "w");
  close_store(store);
  close_store(other);
  proxy_stop(&proxy);
}

TEST(time_to_live_must_be_enabled) {
  if (!zk_url()) return;
  struct server plain = {0};
  REQUIRE(zk_prepare(&plain) && zk_launch(&plain, "false"));
  kv_store *store = open_zk(plain.url, NULL);
  REQUIRE(store != NULL);
  CHECK_EQ(put_ttl(store, "k", 60), KV_UNSUPPORTED);
  CHECK(strstr(last_message, "extendedTypesEnabled") != NULL);
  CHECK_EQ(put(store, "k", "v"), KV_OK);
  CHECK_EQ(put_ttl(store, "k", 60), KV_UNSUPPORTED);
  CHECK_STR(get(store, "k"), "v");
  close_store(store);
  server_end(&plain);
}

/* ------------------------------------------------------------------ rights */

TEST(credentials_and_lists) {
  if (!zk_url()) return;
  char url[200];
  snprintf(url, sizeof url, "zk://worker:s3cret@127.0.0.1:%d", zk_shared.port);
  kv_store *owner = open_zk(url, "/rights?acl=creator"), *other = open_zk(zk_url(), "/rights");
  REQUIRE(owner && other);
  CHECK_EQ(put(owner, "dir/key", "mine"), KV_OK);
  CHECK_STR(get(owner, "dir/key"), "mine");
  CHECK_STR(get(other, "dir/key"), "denied");
  CHECK_EQ(put(other, "dir/key", "theirs"), KV_DENIED);
  CHECK_EQ(put(other, "dir/new", "theirs"), KV_DENIED);
  CHECK_STR(list(other, "", 0, 0), "denied");
  CHECK_EQ(code_of(other, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("dir/key")}), KV_DENIED);
  CHECK_STR(get(owner, "dir/key"), "mine");
  CHECK_EQ(put_ttl(owner, "dir/short", 60), KV_OK);
  CHECK_STR(get(owner, "dir/short"), "v");
  close_store(owner);
  close_store(other);
  /* Read-only for everybody else, and no right to set lists: then nothing can get a time to live. */
  snprintf(url, sizeof url, "zk://worker:s3cret@127.0.0.1:%d", zk_shared.port);
  owner = open_zk(url, "/limited?acl=auth%3A%3Acdrw%2Cworld%3Aanyone%3Ar");
  other = open_zk(zk_url(), "/limited");
  REQUIRE(owner && other);
  CHECK_EQ(put(owner, "key", "mine"), KV_OK);
  CHECK_STR(get(other, "key"), "mine");
  CHECK_EQ(put(other, "key", "theirs"), KV_DENIED);
  CHECK_EQ(put_ttl(owner, "short", 60), KV_DENIED);
  CHECK_STR(get(owner, "short"), "(none)");
  CHECK_EQ(put_ttl(owner, "key", 60), KV_DENIED);
  CHECK_STR(get(owner, "key"), "mine");
  close_store(owner);
  close_store(other);
}

/* ------------------------------------------------------------------ sessions */

static int count_of(const char *haystack, const char *needle) {
  int count = 0;
  for (; (haystack = strstr(haystack, needle)); haystack++) count++;
  return count;
}

TEST(closing_ends_its_sessions) {
  WITH_ZK(store, "/sessions");
  CHECK_EQ(keep(store, "alive"), KV_OK);
  CHECK_EQ(put(store, "stays", "v"), KV_OK);
  CHECK(count_of(four_letters(&zk_shared, "dump"), "/sessions/alive") == 1);
  close_store(store);
  CHECK(count_of(four_letters(&zk_shared, "dump"), "/sessions/alive") == 0);
  WAIT_FOR(5, strstr(four_letters(&zk_shared, "dump"), "Sessions with Ephemerals (0)"));
}

TEST(closing_does_not_wait_for_a_silent_server) {
  double quickest = 60; /* of several: a machine may be slow */
  for (int round = 0; round < 3; round++) {
    WITH_ZK(store, "/silent");
    CHECK_EQ(keep(store, "alive"), KV_OK);
    kill(zk_shared.pid, SIGSTOP);
    double start = now();
    kv_close(store);
    if (now() - start < quickest) quickest = now() - start;
    CHECK(kv_close_wait(store, 10));
    kill(zk_shared.pid, SIGCONT);
    kv_store_free(store);
  }
  CHECK(quickest < 0.5);
}

TEST(locks_of_one_time_to_live_share_a_session) {
  WITH_ZK(store, "/locks");
  kv_lock *locks[20];
  kv_error error;
  for (int i = 0; i < 20; i++) {
    char name[20];
    snprintf(name, sizeof name, "lock%d", i);
    locks[i] = kv_lock_new(store, &(kv_lock_options){.name = text(name), .ttl = 10}, &error);
    REQUIRE(locks[i] != NULL);
    uint64_t tag = new_tag();
    CHECK_EQ(kv_lock_acquire(locks[i], queue, 10, tag, NULL, &error), KV_OK);
    CHECK_EQ(code_and_free(reply_tagged(tag, 10)), KV_OK);
  }
  /* Those of a client that was cut off are listed for a while. */
  WAIT_FOR(20, count_of(four_letters(&zk_shared, "cons"), "sid=") <= 2);
  CHECK_EQ(count_of(four_letters(&zk_shared, "dump"), "-lock-"), 20);
  for (int i = 0; i < 20; i++) kv_lock_free(locks[i]);
  close_store(store);
  CHECK_EQ(count_of(four_letters(&zk_shared, "dump"), "-lock-"), 0);
}

TEST(idle_costs_nothing) {
  WITH_ZK(store, "/idle");
  kv_watch *watch;
  kv_error error;
  struct timespec before, after;
  CHECK_EQ(keep(store, "alive"), KV_OK);
  REQUIRE(kv_watch_open(store, queue, &(kv_watch_options){.tree = true, .key = text("")}, 1, &watch, &error) == KV_OK);
  WAIT_FOR(10, kv_watch_connected(watch));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  nap(1);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  double used = (double)(after.tv_sec - before.tv_sec) + (double)(after.tv_nsec - before.tv_nsec) / 1e9;
  CHECK(used < 0.1);
  kv_watch_free(watch);
  close_store(store);
}

/* ------------------------------------------------------------------ many watches */

#define MANY 1200

static void long_key(int number, char *key) {
  memset(key, 'k', 470);
  snprintf(key + 400, 71, "%070d", number);
}

/* More paths than the server takes in one packet when a client connects again. */
TEST(many_watches_survive_a_restart) {
  WITH_ZK(store, "/m?session_ttl=4");
  static kv_watch *watches[MANY];
  char key[480], told[600];
  kv_error error;
  for (int i = 0; i < MANY; i++) {
    long_key(i, key);
    REQUIRE(kv_watch_open(store, queue, &(kv_watch_options){.key = text(key)}, 1, &watches[i], &error) == KV_OK);
  }
  for (int i = 0; i < MANY; i++) WAIT_FOR(30, kv_watch_synced(watches[i]));
  CHECK(count_of(four_letters(&zk_shared, "cons"), "sid=") >= 2);
  server_kill(&zk_shared);
  REQUIRE(zk_launch(&zk_shared, "true"));
  for (int i = 0; i < MANY; i++) WAIT_FOR(30, kv_watch_connected(watches[i]));
  for (int i = 0; i < MANY; i++) {
    long_key(i, key);
    CHECK_EQ(put(store, key, "v"), KV_OK);
  }
  for (int i = 0; i < MANY; i++) {
    long_key(i, key);
    snprintf(told, sizeof told, "+%s=v", key);
    CHECK_STR(next_event(watches[i], 10), told);
    kv_watch_free(watches[i]);
  }
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE, .key = KV_TEXT("")}), KV_OK);
  close_store(store);
}

CHECK_MAIN()
