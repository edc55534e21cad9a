/*
 * test_etcd.c - the etcd driver through the public C API, on a real etcd: keys and values, conditions, listings,
 * transactions, leases, locks. Without an etcd binary the tests are left out, with a note.
 */
#include "etcd_server.h"

/* ------------------------------------------------------------------ keys and values */

TEST(put_get_delete) {
  WITH_ETCD(store, "/basics");
  kv_pair pair;
  CHECK_STR(get(store, "a/b"), "(none)");
  kv_reply *first = ask(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("a/b"), .value = KV_TEXT("one")});
  REQUIRE(first && kv_reply_code(first) == KV_OK);
  CHECK(kv_reply_revision(first) > 0);
  CHECK_EQ(kv_reply_created(first), kv_reply_revision(first));
  kv_reply *second = ask(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("a/b"), .value = KV_TEXT("two")});
  REQUIRE(second && kv_reply_code(second) == KV_OK);
  CHECK(kv_reply_revision(second) > kv_reply_revision(first));
  CHECK_EQ(kv_reply_created(second), kv_reply_created(first));
  kv_reply *got = ask(store, &(kv_request){.kind = KV_GET, .key = KV_TEXT("/a//b/")});
  REQUIRE(got && kv_reply_pair(got, &pair));
  CHECK_EQ(pair.revision, kv_reply_revision(second));
  CHECK_EQ(pair.created, kv_reply_created(first));
  CHECK(pair.key.size == 3 && memcmp(pair.key.data, "a/b", 3) == 0);
  CHECK(pair.value.size == 3 && memcmp(pair.value.data, "two", 3) == 0);
  kv_reply_free(first);
  kv_reply_free(second);
  kv_reply_free(got);
  CHECK_EQ(put(store, "empty", ""), KV_OK);
  CHECK_STR(get(store, "empty"), "");
  kv_reply *gone = ask(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("a/b")});
  CHECK(gone && kv_reply_code(gone) == KV_OK && kv_reply_found(gone));
  kv_reply *again = ask(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("a/b")});
  CHECK(again && kv_reply_code(again) == KV_OK && !kv_reply_found(again));
  kv_reply_free(gone);
  kv_reply_free(again);
  CHECK_STR(get(store, "a/b"), "(none)");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PING}), KV_OK);
  kv_info info;
  kv_store_info(store, &info);
  CHECK(info.connected);
  CHECK(info.server_version[0] == '3');
  close_store(store);
}

TEST(conditions) {
  WITH_ETCD(store, "/conditions");
  kv_request create = {.kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("1"), .condition = KV_IF_ABSENT};
  kv_reply *reply = ask(store, &create);
  REQUIRE(reply && kv_reply_code(reply) == KV_OK);
  uint64_t revision = kv_reply_revision(reply);
  CHECK_EQ(kv_reply_created(reply), revision);
  kv_reply_free(reply);
  CHECK_EQ(code_of(store, &create), KV_EXISTS);
  kv_request change = {.kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("2"), .condition = KV_IF_REVISION,
                       .revision = revision};
  reply = ask(store, &change);
  REQUIRE(reply && kv_reply_code(reply) == KV_OK);
  CHECK_EQ(kv_reply_created(reply), revision);
  uint64_t later = kv_reply_revision(reply);
  CHECK(later > revision);
  kv_reply_free(reply);
  CHECK_EQ(code_of(store, &change), KV_MODIFIED);
  kv_request drop = {.kind = KV_DELETE, .key = KV_TEXT("k"), .condition = KV_IF_REVISION, .revision = revision};
  CHECK_EQ(code_of(store, &drop), KV_MODIFIED);
  drop.revision = later;
  CHECK_EQ(code_of(store, &drop), KV_OK);
  CHECK_EQ(code_of(store, &drop), KV_MODIFIED);
  change.revision = later;
  CHECK_EQ(code_of(store, &change), KV_MODIFIED);
  close_store(store);
}

TEST(listing) {
  WITH_ETCD(store, "/listing");
  const char *keys[] = {"d/a", "d/a-b", "d/a/x", "d/a/y/z", "d/b/1", "d/b/2", "d/c", "d0", "dx/1", "e"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) CHECK_EQ(put(store, keys[i], keys[i]), KV_OK);
  CHECK_STR(list(store, "d", 0, 0), "d/a d/a-b d/a/x d/a/y/z d/b/1 d/b/2 d/c");
  CHECK_STR(list(store, "d", KV_KEYS_ONLY, 3), "d/a d/a-b d/a/x | d/a/y/z d/b/1 d/b/2 | d/c");
  CHECK_STR(list(store, "d", KV_SHALLOW, 0), "d/a d/a-b d/b/ d/c");
  CHECK_STR(list(store, "", KV_SHALLOW, 0), "d/ d0 dx/ e");
  CHECK_STR(list(store, "none", 0, 0), "");
  CHECK_STR(list(store, "", 0, 0), "d/a d/a-b d/a/x d/a/y/z d/b/1 d/b/2 d/c d0 dx/1 e");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE, .key = KV_TEXT("d/a")}), KV_OK);
  CHECK_STR(list(store, "d", 0, 0), "d/a-b d/b/1 d/b/2 d/c");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE, .key = KV_TEXT("")}), KV_OK);
  CHECK_STR(list(store, "", 0, 0), "");
  close_store(store);
}

TEST(large_listing) {
  WITH_ETCD(store, "/large");
  enum { COUNT = 3000 };
  static char value[2000];
  memset(value, 'v', sizeof value);
  for (int i = 0; i < COUNT; i++) {
    char key[40];
    snprintf(key, sizeof key, "t/%05d", i);
    kv_request request = {.kind = KV_PUT, .key = text(key), .value = {value, sizeof value}, .timeout = 30};
    REQUIRE(submit(store, &request));
  }
  for (int i = 0; i < COUNT; i++) {
    kv_reply *reply = next_reply(30);
    REQUIRE(reply && kv_reply_code(reply) == KV_OK);
    kv_reply_free(reply);
  }
  int seen = 0, pages = 0;
  char after[60] = "";
  uint64_t revision = 0;
  for (bool more = true; more; pages++) {
    kv_pair pair;
    kv_reply *reply = ask(store, &(kv_request){.kind = KV_LIST, .key = KV_TEXT("t"), .after = text(after),
                                               .revision = revision});
    REQUIRE(reply && kv_reply_code(reply) == KV_OK);
    CHECK(kv_reply_bytes(reply) < 8 << 20);
    while (kv_reply_pair(reply, &pair)) {
      char key[40];
      snprintf(key, sizeof key, "t/%05d", seen++);
      CHECK(pair.key.size == strlen(key) && memcmp(pair.key.data, key, pair.key.size) == 0);
      CHECK_EQ(pair.value.size, sizeof value);
      snprintf(after, sizeof after, "%.*s", (int)pair.key.size, pair.key.data);
    }
    if (revision) CHECK_EQ(kv_reply_revision(reply), revision);
    revision = kv_reply_revision(reply);
    more = kv_reply_more(reply);
    kv_reply_free(reply);
  }
  CHECK_EQ(seen, COUNT);
  CHECK(pages > 2);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE, .key = KV_TEXT("")}), KV_OK);
  close_store(store);
}

/* ------------------------------------------------------------------ names */

/* What etcdctl sees: keys of ours that begin with `prefix`, joined by spaces. Static. */
static const char *raw_keys(const char *prefix) {
  static char joined[2000];
  char command[300];
  snprintf(command, sizeof command,
           "ETCDCTL_API=3 etcdctl --endpoints=127.0.0.1:%d get --keys-only --prefix -- '%s' | tr '\n' ' '",
           shared_server.port, prefix);
  FILE *pipe = popen(command, "r");
  size_t size = pipe ? fread(joined, 1, sizeof joined - 1, pipe) : 0;
  if (pipe) pclose(pipe);
  while (size && joined[size - 1] == ' ') size--;
  joined[size] = '\0';
  return joined;
}

TEST(leading_slash_and_prefix) {
  WITH_ETCD(with, "/names/deep");
  CHECK_EQ(put(with, "k", "with"), KV_OK);
  CHECK_STR(raw_keys("/names"), "/names/deep/k");
  kv_store *without = open_url(url_of_with, "/names/deep?leading_slash=false");
  REQUIRE(without != NULL);
  CHECK_STR(get(without, "k"), "(none)");
  CHECK_EQ(put(without, "k/l", "without"), KV_OK);
  CHECK_STR(raw_keys("names"), "names/deep/k/l");
  CHECK_STR(list(without, "", 0, 0), "k/l");
  CHECK_STR(list(with, "", 0, 0), "k");
  kv_store *sub = kv_sub(without, KV_TEXT("k"), NULL);
  REQUIRE(sub != NULL);
  CHECK_STR(get(sub, "l"), "without");
  CHECK_STR(list(sub, "", 0, 0), "l");
  CHECK_EQ(code_of(sub, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  CHECK_STR(raw_keys("names"), "");
  kv_store_free(sub);
  close_store(without);
  close_store(with);
}

/* The root without a slash: everything but the library's own. */
TEST(root_without_slash) {
  WITH_ETCD(store, "?leading_slash=false");
  CHECK_EQ(put(store, "b", "1"), KV_OK);
  CHECK_EQ(put(store, "-first", "1"), KV_OK);
  kv_lock *lock = kv_lock_new(store, &(kv_lock_options){.name = KV_TEXT("stays")}, NULL);
  REQUIRE(lock != NULL);
  REQUIRE(kv_lock_acquire(lock, queue, 5, 7, NULL, NULL) == KV_OK);
  CHECK_EQ(code_and_free(reply_tagged(7, 10)), KV_OK);
  CHECK(strncmp(raw_keys(".kv/lock/"), ".kv/lock/stays/", 15) == 0);
  CHECK(strncmp(list(store, "", 0, 0), "-first ", 7) == 0);
  CHECK(strstr(list(store, "", KV_SHALLOW, 0), ".kv") == NULL);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  CHECK_STR(list(store, "", 0, 0), "");
  CHECK(kv_lock_held(lock));
  CHECK(strncmp(raw_keys(".kv/lock/"), ".kv/lock/stays/", 15) == 0);
  kv_lock_free(lock);
  close_store(store);
  CHECK_STR(raw_keys(".kv/lock/stays/"), "");
}

/* ------------------------------------------------------------------ transactions */

static kv_code commit(kv_store *store, const kv_txn *txn, int *failed_check, uint64_t *revision) {
  kv_reply *reply = ask(store, &(kv_request){.kind = KV_TXN, .txn = txn});
  if (!reply) return KV_CODE_COUNT;
  if (failed_check) *failed_check = kv_reply_failed_check(reply);
  if (revision) *revision = kv_reply_revision(reply);
  return code_and_free(reply);
}

TEST(transactions) {
  WITH_ETCD(store, "/txn");
  uint64_t a = put_revision(store, "a", "1"), revision = 0;
  int failed = -2;
  kv_txn *txn = kv_txn_new(store, NULL);
  REQUIRE(txn != NULL && a > 0);
  CHECK_EQ(kv_txn_check(txn, KV_TEXT("a"), a, NULL), KV_OK);
  CHECK_EQ(kv_txn_check_absent(txn, KV_TEXT("b"), NULL), KV_OK);
  CHECK_EQ(kv_txn_put(txn, KV_TEXT("b"), KV_TEXT("2"), 0, 0, NULL, NULL), KV_OK);
  CHECK_EQ(kv_txn_delete(txn, KV_TEXT("a"), NULL), KV_OK);
  CHECK_EQ(commit(store, txn, &failed, &revision), KV_OK);
  CHECK(revision > a);
  CHECK_EQ(failed, -1);
  CHECK_STR(list(store, "", 0, 0), "b");
  CHECK_EQ(commit(store, txn, &failed, NULL), KV_MODIFIED);
  CHECK_EQ(failed, 0);
  kv_txn_free(txn);
  txn = kv_txn_new(store, NULL);
  CHECK_EQ(kv_txn_check_absent(txn, KV_TEXT("a"), NULL), KV_OK);
  CHECK_EQ(kv_txn_check_absent(txn, KV_TEXT("b"), NULL), KV_OK);
  CHECK_EQ(kv_txn_put(txn, KV_TEXT("c"), KV_TEXT("3"), 0, 0, NULL, NULL), KV_OK);
  CHECK_EQ(commit(store, txn, &failed, NULL), KV_MODIFIED);
  CHECK_EQ(failed, 1);
  CHECK_STR(get(store, "c"), "(none)");
  kv_txn_free(txn);
  txn = kv_txn_new(store, NULL); /* checks alone */
  CHECK_EQ(kv_txn_check_absent(txn, KV_TEXT("a"), NULL), KV_OK);
  CHECK_EQ(commit(store, txn, &failed, NULL), KV_OK);
  kv_txn_free(txn);
  txn = kv_txn_new(store, NULL); /* as large as it may be */
  for (int i = 0; i < KV_TXN_MAX; i++) {
    char key[20];
    snprintf(key, sizeof key, "many/%02d", i);
    CHECK_EQ(kv_txn_put(txn, text(key), KV_TEXT("v"), 0, 0, NULL, NULL), KV_OK);
  }
  CHECK_EQ(commit(store, txn, &failed, NULL), KV_OK);
  CHECK_STR(get(store, "many/63"), "v");
  kv_txn_free(txn);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(store);
}

TEST(portable_mode) {
  WITH_ETCD(store, "/portable?portable=true");
  CHECK_EQ(put(store, "a/b", "1"), KV_OK);
  CHECK_EQ(put(store, "a", "2"), KV_IS_DIR);
  CHECK_EQ(put(store, "a/b/c", "3"), KV_NOT_DIR);
  CHECK_STR(list(store, "a/b", 0, 0), "not_dir");
  CHECK_EQ(put(store, "a/b", "4"), KV_OK);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(store);
}

/* ------------------------------------------------------------------ leases and time to live */

TEST(time_to_live) {
  WITH_ETCD(store, "/ttl");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("kept"), .ttl = 1}), KV_OK);
  CHECK_EQ(put(store, "kept", "for ever"), KV_OK); /* a plain put makes it permanent */
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("alive"), .flags = KV_KEEP_ALIVE}), KV_OK);
  nap(2.2);
  CHECK_STR(get(store, "kept"), "for ever");
  CHECK_STR(get(store, "alive"), "");
  close_store(store);
  store = open_url(etcd_url(), "/ttl");
  WAIT_FOR(10, strcmp(get(store, "alive"), "(none)") == 0);
  CHECK_STR(list(store, "", 0, 0), "kept");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(store);
}

/* A server raises what is less than one and a half of its election timeout. */
TEST(a_time_to_live_that_etcd_would_prolong_is_kept_by_us) {
  struct server server = {.extra = {"--election-timeout", "6000"}};
  if (!etcd_url()) return;
  REQUIRE(server_start(&server));
  kv_store *store = open_url(server.url, NULL);
  REQUIRE(store != NULL);
  double begun = now();
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("short"), .ttl = 1.5}), KV_OK);
  CHECK_STR(get(store, "short"), "");
  WAIT_FOR(20, strcmp(get(store, "short"), "(none)") == 0);
  CHECK(now() - begun >= 1.5 && now() - begun < 9);
  close_store(store);
  server_end(&server);
}

TEST(leases) {
  WITH_ETCD(store, "/lease");
  kv_lease *lease = NULL;
  REQUIRE(kv_lease_open(store, queue, 3, 5, 5, NULL, &lease, NULL) == KV_OK);
  CHECK_EQ(code_and_free(reply_tagged(5, 10)), KV_OK);
  CHECK(kv_lease_alive(lease));
  CHECK(kv_lease_ttl(lease) >= 3);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("a"), .lease = lease}), KV_OK);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("b"), .lease = lease,
                                        .condition = KV_IF_ABSENT}), KV_OK);
  nap(4.5); /* past its TTL: it is renewed */
  CHECK(kv_lease_alive(lease));
  CHECK_STR(list(store, "", 0, 0), "a b");
  REQUIRE(kv_lease_wait_lost(lease, queue, 10, 6, NULL, NULL) == KV_OK);
  char command[600]; /* behind our back; what others left there goes, too */
  snprintf(command, sizeof command,
           "export ETCDCTL_API=3; ctl='etcdctl --endpoints=127.0.0.1:%d'; for id in $($ctl lease list | tail -n +2); "
           "do $ctl lease revoke $id; done >/dev/null 2>&1", shared_server.port);
  CHECK(system(command) != -1);
  CHECK_EQ(code_and_free(reply_tagged(6, 10)), KV_OK);
  CHECK(!kv_lease_alive(lease));
  CHECK_STR(list(store, "", 0, 0), "");
  kv_lease_free(lease);
  REQUIRE(kv_lease_open(store, queue, 30, 5, 7, NULL, &lease, NULL) == KV_OK);
  CHECK_EQ(code_and_free(reply_tagged(7, 10)), KV_OK);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("c"), .lease = lease}), KV_OK);
  REQUIRE(kv_lease_close(lease, queue, 5, 8, NULL, NULL) == KV_OK);
  CHECK_EQ(code_and_free(reply_tagged(8, 10)), KV_OK);
  CHECK_STR(list(store, "", 0, 0), "");
  kv_lease_free(lease);
  close_store(store);
}

/* ------------------------------------------------------------------ locks */

static kv_code acquire(kv_lock *lock, double timeout) {
  uint64_t tag = new_tag();
  if (kv_lock_acquire(lock, queue, timeout, tag, NULL, NULL) != KV_OK) return KV_CODE_COUNT;
  return code_and_free(reply_tagged(tag, 20));
}

static kv_code release(kv_lock *lock) {
  uint64_t tag = new_tag();
  if (kv_lock_release(lock, queue, 5, tag, NULL, NULL) != KV_OK) return KV_CODE_COUNT;
  return code_and_free(reply_tagged(tag, 20));
}

/* How many watches there are on the server, or -1. */
static int server_watchers(void) {
  static const char ask[] = "GET /metrics HTTP/1.0\r\n\r\n", name[] = "\netcd_debugging_mvcc_watcher_total ";
  static char text[1 << 20];
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)shared_server.port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  size_t size = 0;
  ssize_t got = -1;
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (fd < 0) return -1;
  if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && write(fd, ask, sizeof ask - 1) > 0)
    while (size < sizeof text - 1 && (got = read(fd, text + size, sizeof text - 1 - size)) > 0) size += (size_t)got;
  close(fd);
  text[size] = '\0';
  const char *line = strstr(text, name);
  return line ? atoi(line + sizeof name - 1) : -1;
}

TEST(locks) {
  WITH_ETCD(store, "/locks");
  kv_store *other = open_url(etcd_url(), "/locks");
  REQUIRE(other != NULL);
  kv_lock *first = kv_lock_new(store, &(kv_lock_options){.name = KV_TEXT("x"), .value = KV_TEXT("me"), .ttl = 5}, NULL);
  kv_lock *second = kv_lock_new(other, &(kv_lock_options){.name = KV_TEXT("x"), .ttl = 5}, NULL);
  REQUIRE(first && second);
  CHECK_EQ(acquire(first, 5), KV_OK);
  CHECK(kv_lock_held(first));
  uint64_t token = kv_lock_token(first);
  CHECK(token > 0);
  CHECK_EQ(acquire(second, 0), KV_TIMEOUT);
  CHECK_EQ(acquire(second, 0.3), KV_TIMEOUT);
  kv_pair pair;
  REQUIRE(kv_lock_holder(second, queue, 5, 3, NULL, NULL) == KV_OK);
  kv_reply *holder = reply_tagged(3, 10);
  REQUIRE(holder && kv_reply_pair(holder, &pair));
  CHECK(pair.value.size == 2 && memcmp(pair.value.data, "me", 2) == 0);
  CHECK_EQ(pair.revision, token);
  kv_reply_free(holder);
  kv_txn *txn = kv_txn_new(store, NULL);
  CHECK_EQ(kv_txn_guard(txn, first, NULL), KV_OK);
  CHECK_EQ(kv_txn_put(txn, KV_TEXT("guarded"), KV_TEXT("1"), 0, 0, NULL, NULL), KV_OK);
  CHECK_EQ(commit(store, txn, NULL, NULL), KV_OK);
  REQUIRE(kv_lock_acquire(second, queue, 10, 4, NULL, NULL) == KV_OK);
  WAIT_FOR(5, server_watchers() == 1);
  REQUIRE(kv_lock_release(first, queue, 5, 5, NULL, NULL) == KV_OK);
  CHECK_EQ(gather(2, KV_OK, 20), 2); /* the next holder may be told before the one who released */
  CHECK(kv_lock_token(second) > token);
  CHECK_EQ(commit(store, txn, NULL, NULL), KV_MODIFIED);
  kv_txn_free(txn);
  CHECK_EQ(release(first), KV_NOT_HELD);
  WAIT_FOR(5, server_watchers() == 0); /* who waited leaves no watch behind */
  CHECK_EQ(release(second), KV_OK);
  kv_lock_free(first);
  kv_lock_free(second);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(other);
  close_store(store);
}

/* ------------------------------------------------------------------ refusals */

TEST(too_large) {
  WITH_ETCD(store, "/sizes");
  size_t size = 3 << 20;
  char *value = calloc(1, size);
  REQUIRE(value != NULL);
  kv_request request = {.kind = KV_PUT, .key = KV_TEXT("big"), .value = {value, size}};
  kv_reply *reply = NULL;
  CHECK_EQ(kv_submit(store, queue, &request, 1, NULL, &reply, NULL), KV_TOO_LARGE);
  request.value.size = 1572864 - 2000;
  CHECK_EQ(code_of(store, &request), KV_OK);
  kv_txn *txn = kv_txn_new(store, NULL);
  CHECK_EQ(kv_txn_put(txn, KV_TEXT("1"), (kv_slice){value, 800000}, 0, 0, NULL, NULL), KV_OK);
  CHECK_EQ(kv_txn_put(txn, KV_TEXT("2"), (kv_slice){value, 800000}, 0, 0, NULL, NULL), KV_OK);
  CHECK_EQ(commit(store, txn, NULL, NULL), KV_TOO_LARGE);
  kv_txn_free(txn);
  free(value);
  CHECK_STR(list(store, "", KV_KEYS_ONLY, 0), "big");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(store);
}

TEST(compacted) {
  WITH_ETCD(store, "/old");
  char command[100];
  uint64_t first = put_revision(store, "a", "1"), last = put_revision(store, "a", "2");
  snprintf(command, sizeof command, "compaction %llu", (unsigned long long)last);
  REQUIRE(etcdctl(&shared_server, command));
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_LIST, .revision = first}), KV_COMPACTED);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_LIST, .revision = last}), KV_OK);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_LIST, .revision = last + 1000000}), KV_COMPACTED);
  kv_watch *watch = NULL;
  kv_watch_options options = {.tree = true, .resume = true, .after = first - 1};
  REQUIRE(kv_watch_open(store, queue, &options, 1, &watch, NULL) == KV_OK);
  CHECK_STR(next_event(watch, 10), "compacted");
  kv_watch_free(watch);
  close_store(store);
}

TEST(full) {
  struct server small = {.extra = {"--quota-backend-bytes", "200000"}};
  if (!etcd_url()) return;
  REQUIRE(server_start(&small));
  kv_store *store = open_url(small.url, NULL);
  static char value[100000];
  kv_code code = KV_OK;
  for (double until = now() + 20; code == KV_OK && now() < until;) /* its size is only looked at now and then */
    code = code_of(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("k"), .value = {value, sizeof value}});
  CHECK_EQ(code, KV_NO_SPACE);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("k"), .condition = KV_IF_ABSENT}), KV_NO_SPACE);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("k"), .ttl = 5}), KV_NO_SPACE);
  close_store(store);
  server_end(&small);
}

/* ------------------------------------------------------------------ watches */

TEST(watching) {
  WITH_ETCD(store, "/watching");
  CHECK_EQ(put(store, "d/a", "1"), KV_OK);
  kv_watch *tree = watch_key(store, "d", true), *key = watch_key(store, "d/a", false);
  REQUIRE(tree && key);
  CHECK_STR(next_event(tree, 10), "*d/a=1");
  CHECK_STR(next_event(key, 10), "*d/a=1");
  WAIT_FOR(10, kv_watch_synced(tree) && kv_watch_connected(tree) && kv_watch_connected(key));
  CHECK_EQ(put(store, "d/a", "2"), KV_OK);
  uint64_t mark = put_revision(store, "d/b", "3");
  CHECK_EQ(put(store, "dx", "elsewhere"), KV_OK);
  CHECK_EQ(put(store, "d", "itself"), KV_OK);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("d/a")}), KV_OK);
  CHECK_STR(next_event(tree, 10), "+d/a=2");
  CHECK_STR(next_event(tree, 10), "+d/b=3");
  CHECK_STR(next_event(tree, 10), "-d/a");
  CHECK_STR(next_event(key, 10), "+d/a=2");
  CHECK_STR(next_event(key, 10), "-d/a");
  CHECK_STR(next_event(tree, 0.05), "");
  kv_watch *resumed = NULL;
  kv_watch_options options = {.key = KV_TEXT("d"), .tree = true, .resume = true, .after = mark};
  REQUIRE(kv_watch_open(store, queue, &options, 1, &resumed, NULL) == KV_OK);
  CHECK_STR(next_event(resumed, 10), "-d/a");
  kv_watch_close(resumed);
  CHECK_STR(next_event(resumed, 1), "closed");
  kv_watch_free(resumed);
  kv_watch_free(tree);
  kv_watch_free(key);
  WAIT_FOR(5, server_watchers() == 0);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(store);
}

/* One revision with more bytes than the server puts into one message: it comes in fragments. */
TEST(fragments) {
  WITH_ETCD(store, "/fragments");
  kv_watch *watch = watch_key(store, "", true);
  REQUIRE(watch != NULL);
  WAIT_FOR(10, kv_watch_connected(watch));
  enum { PARTS = 60, SIZE = 24000, ROUNDS = 4 };
  static char value[SIZE];
  memset(value, 'v', sizeof value);
  kv_txn *txn = kv_txn_new(store, NULL);
  for (int i = 0; i < PARTS; i++) {
    char key[20];
    snprintf(key, sizeof key, "f/%02d", i);
    CHECK_EQ(kv_txn_put(txn, text(key), (kv_slice){value, sizeof value}, 0, 0, NULL, NULL), KV_OK);
  }
  uint64_t revision = 0;
  for (int i = 0; i < ROUNDS; i++) CHECK_EQ(commit(store, txn, NULL, &revision), KV_OK);
  kv_txn_free(txn);
  int seen = 0;
  uint64_t before = 0;
  for (double until = now() + 20; seen < PARTS * ROUNDS && now() < until;) {
    kv_event event;
    if (kv_watch_next(watch, &event, NULL) != 1) {
      kv_reply_free(next_reply(0.1));
      continue;
    }
    CHECK(event.revision >= before);
    CHECK_EQ(event.value.size, SIZE);
    before = event.revision;
    seen++;
  }
  CHECK_EQ(seen, PARTS * ROUNDS);
  WAIT_FOR(5, kv_watch_revision(watch) >= revision);
  kv_watch_free(watch);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(store);
}

CHECK_MAIN()
