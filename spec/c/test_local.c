/*
 * test_local.c - the embedded store in one process: operations, conditions, revisions, listings, transactions, time
 * to live, leases, locks, watches and their history.
 */
#include "local_store.h"

/* ------------------------------------------------------------------ reading and writing */

TEST(put_get_delete) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  CHECK(get(store, "a") == NULL);
  CHECK_EQ(last.code, KV_OK);
  CHECK_EQ(put(store, "a", "1"), KV_OK);
  uint64_t first = last.revision;
  CHECK_EQ(last.created, first);
  CHECK_STR(get(store, "a"), "1");
  CHECK_EQ(last_pair.revision, first);
  CHECK_EQ(put(store, "a", "2"), KV_OK);
  CHECK(last.revision > first);
  CHECK_EQ(last.created, first);
  CHECK_STR(get(store, "a"), "2");
  CHECK_EQ(last_pair.created, first);
  CHECK_EQ(delete_key(store, "a"), KV_OK);
  CHECK(last.found);
  CHECK_EQ(delete_key(store, "a"), KV_OK);
  CHECK(!last.found);
  CHECK(get(store, "a") == NULL);
  CHECK_EQ(put(store, "a", ""), KV_OK);
  CHECK(last.created > first);
  CHECK_STR(get(store, "a"), "");
  close_store(store);
}


/* Is there anything in the folder? */
static bool is_empty(const char *path) {
  return rmdir(path) == 0 && mkdir(path, 0700) == 0;
}

TEST(private_stores_are_apart_and_leave_nothing) {
  setenv("TMPDIR", new_folder(), 1);
  kv_store *one = open_store("local:"), *two = open_store("local:");
  unsetenv("TMPDIR");
  REQUIRE(one && two);
  setenv("TMPDIR", folder, 1);
  CHECK_EQ(put(one, "a", "1"), KV_OK);
  CHECK_EQ(put(two, "b", "2"), KV_OK);
  unsetenv("TMPDIR");
  CHECK_STR(list(one, ""), "a=1");
  CHECK_STR(list(two, ""), "b=2");
  CHECK(is_empty(folder)); /* also when the process is killed now */
  kv_watch *watch = watch_tree(one, "");
  CHECK_STR(next_event(watch, 5), "a=1@1");
  CHECK(wait_synced(watch));
  put(one, "a", "2");
  CHECK_STR(next_event(watch, 5), "a=2@2");
  kv_watch_free(watch);
  kv_lock *lock = new_lock(one, "l", 5), *other = new_lock(one, "l", 5);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(acquire(other, 0), KV_TIMEOUT);
  CHECK_EQ(release(lock), KV_OK);
  kv_lock_free(lock);
  kv_lock_free(other);
  close_store(one);
  close_store(two);
  CHECK(is_empty(folder));
}

TEST(a_store_tells_of_itself) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_info info;
  kv_request ping = {.kind = KV_PING};
  kv_store_info(store, &info);
  CHECK(!info.connected);
  CHECK_EQ(ask(store, &ping), KV_OK);
  kv_store_info(store, &info);
  CHECK(info.connected);
  CHECK_STR(info.backend, "local");
  CHECK_STR(info.endpoint, folder);
  CHECK(strncmp(info.server_version, "LMDB 0.", 7) == 0);
  static const char *const all[] = {"txn", "ttl", "lock", "lease", "watch", "resume", "every_version", "paging",
                                    "nested"};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) CHECK(kv_store_supports(store, all[i]));
  close_store(store);
}

TEST(values_are_bytes_of_any_size) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  static const size_t sizes[] = {0, 1, 2000, 2040, 4096, 100000, 5 << 20};
  char *value = malloc(5 << 20);
  REQUIRE(value != NULL);
  for (size_t i = 0; i < 5 << 20; i++) value[i] = (char)(i * 7 + i / 251);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    kv_request request = {.kind = KV_PUT, .key = text("k"), .value = {value, sizes[i]}};
    CHECK_EQ(ask(store, &request), KV_OK);
    kv_request read = {.kind = KV_GET, .key = text("k")};
    CHECK_EQ(ask(store, &read), KV_OK);
    REQUIRE(kv_reply_pair(last_reply, &last_pair));
    CHECK_EQ(last_pair.value.size, sizes[i]);
    CHECK(memcmp(last_pair.value.data, value, sizes[i]) == 0);
  }
  kv_request large = {.kind = KV_PUT, .key = text("k"), .value = {value, ((size_t)64 << 20) + 1}};
  CHECK_EQ(ask(store, &large), KV_TOO_LARGE); /* refused before it is looked at */
  free(value);
  close_store(store);
}

TEST(keys_of_every_length) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  char key[KV_KEY_MAX + 1];
  memset(key, 'k', KV_KEY_MAX);
  key[KV_KEY_MAX] = 0;
  CHECK_EQ(put_ttl(store, key, "v", 100), KV_OK); /* it also names an expiry and an attachment */
  CHECK_STR(get(store, key), "v");
  kv_lease *lease = new_lease(store, 100);
  CHECK_EQ(put_lease(store, key, "w", lease), KV_OK);
  CHECK_STR(get(store, key), "w");
  kv_lock *lock = new_lock(store, key, 5);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(release(lock), KV_OK);
  kv_lock_free(lock);
  kv_lease_free(lease);
  CHECK_EQ(delete_key(store, key), KV_OK);
  CHECK(last.found);
  close_store(store);
}

TEST(conditions) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  CHECK_EQ(put_if(store, "a", "1", 7), KV_MODIFIED);
  CHECK(strstr(last.message, "\"a\"") && strstr(last.message, "gone"));
  CHECK_EQ(put_if(store, "a", "1", 0), KV_OK);
  uint64_t first = last.revision;
  CHECK_EQ(put_if(store, "a", "2", 0), KV_EXISTS);
  CHECK_EQ(put_if(store, "a", "2", first), KV_OK);
  uint64_t second = last.revision;
  CHECK_EQ(last.created, first);
  CHECK_EQ(put_if(store, "a", "3", first), KV_MODIFIED);
  CHECK_STR(get(store, "a"), "2");
  kv_request request = {.kind = KV_DELETE, .key = text("a"), .condition = KV_IF_REVISION, .revision = first};
  CHECK_EQ(ask(store, &request), KV_MODIFIED);
  request.revision = second;
  CHECK_EQ(ask(store, &request), KV_OK);
  CHECK(last.found);
  CHECK_EQ(ask(store, &request), KV_MODIFIED);
  close_store(store);
}

/* ------------------------------------------------------------------ listings */

TEST(listings) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  CHECK_STR(list(store, ""), "");
  CHECK_EQ(last.revision, 0);
  static const char *const keys[] = {"a", "a/b", "a/b/c", "a/d", "a!", "a0", "ab", "b/x/y"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) put(store, keys[i], "");
  CHECK_STR(list(store, "a"), "a/b= a/b/c= a/d=");
  CHECK_EQ(last.revision, 8);
  CHECK_STR(list(store, ""), "a= a!= a/b= a/b/c= a/d= a0= ab= b/x/y=");
  CHECK_STR(list(store, "b/x/y"), "");
  kv_request shallow = {.kind = KV_LIST, .key = text(""), .flags = KV_SHALLOW};
  CHECK_STR(list_with(store, &shallow), "a= a!= a0= ab= b/");
  shallow.key = text("a");
  CHECK_STR(list_with(store, &shallow), "a/b= a/d=");
  kv_request page = {.kind = KV_LIST, .key = text("a"), .limit = 2};
  CHECK_STR(list_with(store, &page), "a/b= a/b/c=");
  CHECK(last.more);
  page.after = text("a/b/c");
  CHECK_STR(list_with(store, &page), "a/d=");
  CHECK(!last.more);
  page.after = text("a/z");
  CHECK_STR(list_with(store, &page), "");
  page.after = text("A");
  CHECK_STR(list_with(store, &page), "a/b= a/b/c=");
  close_store(store);
}

TEST(a_long_listing_comes_in_pages_of_one_revision) {
  new_folder();
  kv_store *store = open_store("local:");
  REQUIRE(store != NULL);
  static char value[2000];
  memset(value, 'v', sizeof value - 1);
  char key[32];
  for (int i = 0; i < 1500; i++) {
    snprintf(key, sizeof key, "d/%04d", i);
    put(store, key, value);
  }
  kv_request page = {.kind = KV_LIST, .key = text("d")};
  kv_pair pair;
  int count = 0, pages = 0;
  char after[32];
  uint64_t revision = 0;
  do {
    CHECK_EQ(ask(store, &page), KV_OK);
    pages++;
    CHECK(kv_reply_bytes(last_reply) < 2 << 20);
    if (!revision) revision = last.revision;
    CHECK_EQ(last.revision, revision);
    while (kv_reply_pair(last_reply, &pair)) {
      count++;
      snprintf(after, sizeof after, "%.*s", (int)pair.key.size, pair.key.data);
    }
    page.after = text(after);
    page.revision = revision;
    bool more = last.more;
    put(store, "elsewhere", ""); /* does not matter */
    last.more = more;
  } while (last.more && pages < 10);
  CHECK_EQ(count, 1500);
  CHECK(pages > 1);
  page.after = text("d/0100");
  put(store, "d/0000", "changed");
  CHECK_EQ(ask(store, &page), KV_OK);
  CHECK(last.revision > revision); /* not the same any more, and it says so */
  close_store(store);
}

TEST(delete_tree_takes_all_below) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  static const char *const keys[] = {"a", "a/b", "a/b/c", "ab", "b"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) put(store, keys[i], "");
  kv_lock *lock = new_lock(store, "a/l", 5);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  kv_request request = {.kind = KV_DELETE_TREE, .key = text("a")};
  CHECK_EQ(ask(store, &request), KV_OK);
  CHECK_STR(list(store, ""), "ab= b=");
  request.key = text("nothing");
  CHECK_EQ(ask(store, &request), KV_OK);
  request.key = text("");
  CHECK_EQ(ask(store, &request), KV_OK);
  CHECK_STR(list(store, ""), "");
  CHECK(kv_lock_held(lock));
  CHECK_EQ(release(lock), KV_OK); /* it was not touched */
  kv_lock_free(lock);
  close_store(store);
}

/* ------------------------------------------------------------------ transactions */

static kv_code commit(kv_store *store, kv_txn *txn) {
  kv_request request = {.kind = KV_TXN, .txn = txn};
  return ask(store, &request);
}

TEST(transactions_are_all_or_nothing) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  put(store, "a", "1");
  put(store, "gone", "1");
  uint64_t a = 1;
  kv_txn *txn = kv_txn_new(store, NULL);
  REQUIRE(txn != NULL);
  kv_txn_check(txn, text("a"), a, NULL);
  kv_txn_check_absent(txn, text("b"), NULL);
  kv_txn_put(txn, text("a"), text("2"), 0, 0, NULL, NULL);
  kv_txn_put(txn, text("b"), text("1"), 0, 0, NULL, NULL);
  kv_txn_delete(txn, text("gone"), NULL);
  kv_txn_delete(txn, text("never"), NULL);
  CHECK_EQ(commit(store, txn), KV_OK);
  uint64_t revision = last.revision;
  kv_pair pair;
  REQUIRE(kv_reply_pair(last_reply, &pair));
  CHECK_EQ(pair.revision, revision);
  CHECK_EQ(pair.created, a);
  REQUIRE(kv_reply_pair(last_reply, &pair));
  CHECK_EQ(pair.created, revision);
  CHECK_STR(list(store, ""), "a=2 b=1");
  CHECK_EQ(last.revision, revision); /* one revision for all of it */
  CHECK_EQ(commit(store, txn), KV_MODIFIED);
  CHECK_EQ(last.failed_check, 0);
  CHECK_STR(list(store, ""), "a=2 b=1");
  kv_txn_free(txn);
  txn = kv_txn_new(store, NULL);
  kv_txn_check(txn, text("a"), revision, NULL);
  kv_txn_check_absent(txn, text("b"), NULL);
  kv_txn_put(txn, text("c"), text("1"), 0, 0, NULL, NULL);
  CHECK_EQ(commit(store, txn), KV_MODIFIED);
  CHECK_EQ(last.failed_check, 1);
  CHECK(get(store, "c") == NULL);
  kv_txn_free(txn);
  close_store(store);
}

TEST(a_guard_lets_only_the_holder_write) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_lock *lock = new_lock(store, "l", 5);
  kv_txn *txn = kv_txn_new(store, NULL);
  CHECK_EQ(kv_txn_guard(txn, lock, &last_error), KV_NOT_HELD);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(kv_txn_guard(txn, lock, &last_error), KV_OK);
  kv_txn_put(txn, text("a"), text("1"), 0, 0, NULL, NULL);
  CHECK_EQ(commit(store, txn), KV_OK);
  CHECK_EQ(release(lock), KV_OK);
  CHECK_EQ(commit(store, txn), KV_MODIFIED);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(commit(store, txn), KV_MODIFIED); /* held again, but by another token */
  CHECK_STR(get(store, "a"), "1");
  CHECK_EQ(last_pair.revision, 2);
  kv_txn_free(txn);
  kv_lock_free(lock);
  close_store(store);
}

TEST(portable_mode_refuses_what_fails_elsewhere) {
  new_folder();
  kv_store *store = open_store("?portable=true");
  REQUIRE(store != NULL);
  CHECK_EQ(put(store, "a/b", "1"), KV_OK);
  CHECK_EQ(put(store, "a", "1"), KV_IS_DIR);
  CHECK_EQ(put(store, "a/b/c", "1"), KV_NOT_DIR);
  CHECK(list(store, "a/b") == NULL);
  CHECK_EQ(last.code, KV_NOT_DIR);
  kv_txn *txn = kv_txn_new(store, NULL);
  kv_txn_put(txn, text("x"), text("1"), 0, 0, NULL, NULL);
  kv_txn_put(txn, text("a"), text("1"), 0, 0, NULL, NULL);
  CHECK_EQ(commit(store, txn), KV_IS_DIR);
  CHECK(get(store, "x") == NULL); /* all of it was undone */
  CHECK_EQ(put(store, "y", "1"), KV_OK);
  CHECK_STR(list(store, ""), "a/b=1 y=1");
  kv_txn_free(txn);
  close_store(store);
}

/* ------------------------------------------------------------------ what ends by itself */

TEST(a_time_to_live_ends) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_watch *watch = watch_tree(store, "");
  CHECK(wait_synced(watch));
  double begun = seconds_now();
  CHECK_EQ(put_ttl(store, "a", "1", 2), KV_OK);
  CHECK_EQ(put_ttl(store, "b", "1", 2), KV_OK);
  CHECK_EQ(put(store, "b", "2"), KV_OK); /* permanent again */
  CHECK_STR(get(store, "a"), "1");
  CHECK_STR(next_event(watch, 5), "a=1@1");
  CHECK_STR(next_event(watch, 5), "b=1@2");
  CHECK_STR(next_event(watch, 5), "b=2@3");
  CHECK_STR(next_event(watch, 20), "-a@4");
  double took = seconds_now() - begun;
  CHECK(took >= 2 && took < 10);
  CHECK_STR(list(store, ""), "b=2");
  kv_watch_free(watch);
  close_store(store);
}

TEST(what_is_due_is_not_seen_before_it_is_removed) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  CHECK_EQ(put_ttl(store, "a", "1", 0.05), KV_OK);
  close_store(store); /* nobody is there to remove it */
  double until = seconds_now() + 0.06;
  while (seconds_now() < until) usleep(1000);
  store = open_store(NULL);
  REQUIRE(store != NULL);
  CHECK(get(store, "a") == NULL);
  CHECK_STR(list(store, ""), "");
  CHECK_EQ(put_if(store, "a", "2", 0), KV_OK);
  CHECK_EQ(last.created, last.revision);
  close_store(store);
}

static kv_code close_lease(kv_lease *lease) {
  uint64_t tag = ++last_tag;
  kv_code code = kv_lease_close(lease, queue, 5, tag, NULL, &last_error);
  return code == KV_OK ? keep_reply(next_reply(tag)) : code;
}

TEST(leases_take_their_keys_along) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_lease *lease = new_lease(store, 5), *other = new_lease(store, 5);
  CHECK_EQ(put_lease(store, "a", "1", lease), KV_OK);
  CHECK_EQ(put_lease(store, "b", "1", lease), KV_OK);
  CHECK_EQ(put_lease(store, "c", "1", lease), KV_OK);
  CHECK_EQ(put(store, "b", "2"), KV_OK);
  CHECK_EQ(put_lease(store, "c", "2", other), KV_OK);
  kv_watch *watch = watch_tree(store, "");
  CHECK(wait_synced(watch));
  CHECK_STR(next_event(watch, 5), "a=1@1");
  CHECK_STR(next_event(watch, 5), "b=2@4");
  CHECK_STR(next_event(watch, 5), "c=2@5");
  CHECK_EQ(close_lease(lease), KV_OK);
  CHECK(!kv_lease_alive(lease));
  CHECK_STR(next_event(watch, 5), "-a@6");
  CHECK_STR(list(store, ""), "b=2 c=2");
  CHECK_EQ(put_lease(store, "d", "1", lease), KV_NOT_HELD);
  CHECK_EQ(close_lease(other), KV_OK);
  CHECK_STR(list(store, ""), "b=2");
  kv_watch_free(watch);
  kv_lease_free(lease);
  kv_lease_free(other);
  close_store(store);
}

TEST(a_lease_is_renewed) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_lease *lease = new_lease(store, 1.5);
  CHECK_EQ(put_lease(store, "a", "1", lease), KV_OK);
  double until = seconds_now() + 3;
  while (seconds_now() < until) {
    if (!get(store, "a")) break;
    usleep(10000);
  }
  CHECK_STR(get(store, "a"), "1");
  CHECK(kv_lease_alive(lease));
  kv_lease_free(lease);
  close_store(store);
}

TEST(keep_alive_ends_with_the_store) {
  new_folder();
  kv_store *store = open_store(NULL), *other = open_store(NULL);
  REQUIRE(store && other);
  kv_request request = {.kind = KV_PUT, .key = text("a"), .value = text("1"), .flags = KV_KEEP_ALIVE};
  CHECK_EQ(ask(store, &request), KV_OK);
  CHECK_STR(get(other, "a"), "1");
  kv_watch *watch = watch_tree(other, "");
  CHECK_STR(next_event(watch, 5), "a=1@1");
  CHECK(wait_synced(watch));
  close_store(store);
  CHECK_STR(next_event(watch, 5), "-a@2");
  CHECK(get(other, "a") == NULL);
  kv_watch_free(watch);
  close_store(other);
}

/* ------------------------------------------------------------------ watches */

TEST(a_watch_of_one_key) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_watch *watch = watch_with(store, &(kv_watch_options){.key = text("a/b")});
  CHECK(wait_synced(watch));
  put(store, "a/b", "1");
  put(store, "a/b/c", "1");
  put(store, "a", "1");
  put(store, "a/b", "2");
  delete_key(store, "a/b");
  put(store, "a/b", "3");
  CHECK_STR(next_event(watch, 5), "a/b=1@1");
  CHECK_STR(next_event(watch, 5), "a/b=2@4");
  CHECK_STR(next_event(watch, 5), "-a/b@5");
  CHECK_STR(next_event(watch, 5), "a/b=3@6");
  kv_watch_close(watch);
  CHECK_STR(next_event(watch, 5), "!closed");
  kv_watch_free(watch);
  close_store(store);
}

TEST(a_watch_of_a_directory) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  put(store, "a/old", "1");
  kv_watch *watch = watch_tree(store, "a"), *root = watch_tree(store, "");
  CHECK_STR(next_event(watch, 5), "a/old=1@1");
  CHECK_STR(next_event(root, 5), "a/old=1@1");
  CHECK(wait_synced(watch) && wait_synced(root));
  put(store, "ab", "1");
  put(store, "a", "1");
  put(store, "a/b/c", "1");
  kv_request request = {.kind = KV_DELETE_TREE, .key = text("a")};
  CHECK_EQ(ask(store, &request), KV_OK);
  CHECK_STR(next_event(watch, 5), "a/b/c=1@4");
  CHECK_STR(next_event(watch, 5), "-a/b/c@5");
  CHECK_STR(next_event(watch, 5), "-a/old@5");
  CHECK_STR(next_event(root, 5), "ab=1@2");
  CHECK_STR(next_event(root, 5), "a=1@3");
  CHECK_STR(next_event(root, 5), "a/b/c=1@4");
  CHECK_STR(next_event(root, 5), "-a@5");
  kv_watch_free(watch);
  kv_watch_free(root);
  close_store(store);
}

TEST(a_watch_resumes_from_the_history) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  put(store, "d/a", "1");
  put(store, "d/b", "1");
  delete_key(store, "d/a");
  put(store, "d/b", "2");
  close_store(store);
  store = open_store(NULL); /* it lies in the folder */
  REQUIRE(store != NULL);
  kv_watch *watch = watch_with(store, &(kv_watch_options){.key = text("d"), .tree = true, .resume = true, .after = 1});
  CHECK_STR(next_event(watch, 5), "d/b=1@2");
  CHECK_STR(next_event(watch, 5), "-d/a@3");
  CHECK_STR(next_event(watch, 5), "d/b=2@4");
  put(store, "d/c", "1");
  CHECK_STR(next_event(watch, 5), "d/c=1@5");
  CHECK_EQ(kv_watch_revision(watch), 5);
  kv_watch_free(watch);
  watch = watch_with(store, &(kv_watch_options){.key = text("d"), .tree = true, .resume = true, .after = 5});
  CHECK(wait_synced(watch));
  put(store, "d/d", "1");
  CHECK_STR(next_event(watch, 5), "d/d=1@6");
  kv_watch_free(watch);
  watch = watch_with(store, &(kv_watch_options){.key = text("d"), .tree = true, .resume = true, .after = 100});
  CHECK_STR(next_event(watch, 5), "!compacted"); /* nobody can have been there */
  kv_watch_free(watch);
  close_store(store);
}

TEST(the_history_is_bounded) {
  new_folder();
  kv_store *store = open_store("?map_size=2097152&sync=none"); /* an eighth of it for the history */
  REQUIRE(store != NULL);
  static char value[2048];
  memset(value, 'v', sizeof value - 1);
  kv_watch *slow = watch_tree(store, "");
  CHECK(wait_synced(slow));
  for (int i = 0; i < 1000; i++) CHECK_EQ(put(store, "a", value), KV_OK);
  CHECK_EQ(put(store, "b", "1"), KV_OK);
  uint64_t revision = last.revision;
  kv_watch *watch = watch_with(store, &(kv_watch_options){.key = text(""), .tree = true, .resume = true, .after = 1});
  CHECK_STR(next_event(watch, 5), "!compacted");
  kv_watch_free(watch);
  watch = watch_with(store, &(kv_watch_options){.key = text(""), .tree = true, .resume = true, .after = revision - 1});
  CHECK_STR(next_event(watch, 5), "b=1@1001");
  kv_watch_free(watch);
  /* Who was watching all the time has lost nothing. */
  uint64_t seen = 0;
  for (int i = 0; i < 1001; i++) {
    const char *event = next_event(slow, 5), *at = strrchr(event, '@');
    REQUIRE(at != NULL);
    CHECK(strtoull(at + 1, NULL, 10) > seen);
    seen = strtoull(at + 1, NULL, 10);
    if (seen == revision) break;
  }
  CHECK_EQ(seen, revision);
  kv_watch_free(slow);
  close_store(store);
}

TEST(many_watches) {
  enum { COUNT = 2000 };
  static kv_watch *watches[COUNT];
  new_folder();
  kv_store *store = open_store("local:");
  REQUIRE(store != NULL);
  char key[32];
  for (int i = 0; i < COUNT; i++) {
    snprintf(key, sizeof key, "d/%d", i);
    watches[i] = watch_with(store, &(kv_watch_options){.key = text(key)});
  }
  for (int i = 0; i < COUNT; i++) CHECK(wait_synced(watches[i]));
  for (int i = 0; i < COUNT; i += 100) {
    snprintf(key, sizeof key, "d/%d", i);
    put(store, key, "v");
  }
  for (int i = 0; i < COUNT; i += 100) {
    snprintf(key, sizeof key, "d/%d=v@%d", i, i / 100 + 1);
    CHECK_STR(next_event(watches[i], 5), key);
  }
  CHECK_STR(next_event(watches[1], 0), "");
  for (int i = 0; i < COUNT; i++) kv_watch_free(watches[i]);
  close_store(store);
}

TEST(idle_watches_are_told_how_far_the_store_is) {
  new_folder();
  kv_store *store = open_store("local:");
  REQUIRE(store != NULL);
  kv_watch *watch = watch_tree(store, "quiet");
  CHECK(wait_synced(watch));
  for (int i = 0; i < 9000; i++) put(store, "loud", "v");
  double until = seconds_now() + 10;
  while (kv_watch_revision(watch) < 4000 && seconds_now() < until) usleep(1000);
  CHECK(kv_watch_revision(watch) >= 4000);
  kv_watch_free(watch);
  close_store(store);
}

/* ------------------------------------------------------------------ locks */

TEST(locks_are_handed_over_in_order) {
  enum { COUNT = 5 };
  new_folder();
  kv_store *store = open_store(NULL), *other = open_store(NULL);
  REQUIRE(store && other);
  kv_lock *locks[COUNT];
  uint64_t tags[COUNT], token = 0;
  for (int i = 0; i < COUNT; i++) {
    locks[i] = new_lock(i % 2 ? store : other, "l", 5);
    tags[i] = ++last_tag;
    CHECK_EQ(kv_lock_acquire(locks[i], queue, 30, tags[i], NULL, &last_error), KV_OK);
    while (i && kv_lock_get_state(locks[i]) != KV_LOCK_WAITING) usleep(100);
    if (!i) CHECK_EQ(keep_reply(next_reply(tags[0])), KV_OK);
    /* In line, not only on its way: nobody can tell but by asking. */
    double until = seconds_now() + 0.05;
    while (i && seconds_now() < until) usleep(1000);
  }
  for (int i = 0; i < COUNT; i++) {
    if (i) CHECK_EQ(keep_reply(next_reply(tags[i])), KV_OK);
    CHECK(kv_lock_held(locks[i]));
    CHECK(kv_lock_token(locks[i]) > token);
    token = kv_lock_token(locks[i]);
    for (int j = i + 1; j < COUNT; j++) CHECK(!kv_lock_held(locks[j]));
    CHECK_EQ(release(locks[i]), KV_OK);
  }
  for (int i = 0; i < COUNT; i++) kv_lock_free(locks[i]);
  close_store(store);
  close_store(other);
}

static kv_code holder(kv_lock *lock, kv_pair *pair) {
  uint64_t tag = ++last_tag;
  if (kv_lock_holder(lock, queue, 5, tag, NULL, &last_error) != KV_OK) return last_error.code;
  keep_reply(next_reply(tag));
  *pair = (kv_pair){.revision = 0};
  kv_reply_pair(last_reply, pair);
  return last.code;
}

TEST(a_lock_shows_its_holder) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_lock *lock = new_lock(store, "l", 5), *nested = new_lock(store, "l/m", 5);
  kv_pair pair;
  CHECK_EQ(holder(lock, &pair), KV_OK);
  CHECK_EQ(pair.revision, 0);
  CHECK_EQ(acquire(nested, 5), KV_OK); /* another lock, though its name begins alike */
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(holder(lock, &pair), KV_OK);
  CHECK_EQ(pair.revision, kv_lock_token(lock));
  CHECK(pair.value.size == 2 && memcmp(pair.value.data, "me", 2) == 0);
  CHECK_EQ(release(lock), KV_OK);
  CHECK_EQ(release(lock), KV_NOT_HELD);
  CHECK_EQ(release(nested), KV_OK);
  kv_lock_free(lock);
  kv_lock_free(nested);
  close_store(store);
}

TEST(waiters_that_give_up_leave_nothing) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_lock *lock = new_lock(store, "l", 5), *second = new_lock(store, "l", 5), *third = new_lock(store, "l", 5);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(acquire(second, 0.05), KV_TIMEOUT);
  uint64_t tag = ++last_tag, id = 0;
  CHECK_EQ(kv_lock_acquire(second, queue, 30, tag, &id, &last_error), KV_OK);
  kv_cancel(queue, id);
  CHECK_EQ(keep_reply(next_reply(tag)), KV_CANCELLED);
  tag = ++last_tag;
  CHECK_EQ(kv_lock_acquire(third, queue, 30, tag, NULL, &last_error), KV_OK);
  CHECK_EQ(release(lock), KV_OK);
  CHECK_EQ(keep_reply(next_reply(tag)), KV_OK); /* not behind one that is gone */
  CHECK_EQ(release(third), KV_OK);
  kv_lock_free(lock);
  kv_lock_free(second);
  kv_lock_free(third);
  close_store(store);
}

/* ------------------------------------------------------------------ several handles */

TEST(two_stores_on_one_folder) {
  new_folder();
  kv_store *one = open_store(NULL), *two = open_store(NULL);
  REQUIRE(one && two);
  kv_watch *watch = watch_tree(two, "");
  CHECK(wait_synced(watch));
  CHECK_EQ(put(one, "a", "1"), KV_OK);
  CHECK_STR(get(two, "a"), "1");
  CHECK_STR(next_event(watch, 5), "a=1@1");
  close_store(one);
  CHECK_EQ(put(two, "a", "2"), KV_OK);
  CHECK_STR(next_event(watch, 5), "a=2@2");
  char link[80];
  snprintf(link, sizeof link, "%s-link", folder);
  CHECK_EQ(symlink(folder, link), 0);
  char url[120];
  snprintf(url, sizeof url, "local:%s", link);
  kv_store *three = open_store(url); /* the same folder by another name */
  REQUIRE(three != NULL);
  CHECK_EQ(put(three, "a", "3"), KV_OK);
  CHECK_STR(next_event(watch, 5), "a=3@3");
  CHECK_STR(get(two, "a"), "3");
  unlink(link);
  close_store(three);
  kv_watch_free(watch);
  close_store(two);
}

TEST(opening_and_closing_many_times) {
  new_folder();
  char key[32];
  for (int i = 0; i < 30; i++) {
    kv_store *store = open_store(NULL);
    REQUIRE(store != NULL);
    snprintf(key, sizeof key, "k%02d", i);
    kv_watch *watch = i % 3 ? NULL : watch_tree(store, "");
    CHECK_EQ(put(store, key, "v"), KV_OK);
    if (i % 2) { /* not waited for: the next one opens while it closes */
      kv_watch_free(watch);
      kv_store_free(store);
    } else {
      kv_watch_free(watch);
      close_store(store);
    }
  }
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_request request = {.kind = KV_LIST, .key = text("")};
  CHECK_EQ(ask(store, &request), KV_OK);
  kv_pair pair;
  int count = 0;
  while (kv_reply_pair(last_reply, &pair)) count++;
  CHECK_EQ(count, 30);
  close_store(store);
}

TEST(close_answers_what_is_in_flight) {
  enum { COUNT = 500 };
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  char key[32];
  uint64_t first = last_tag + 1;
  for (int i = 0; i < COUNT; i++) {
    snprintf(key, sizeof key, "k%d", i);
    kv_request request = {.kind = KV_PUT, .key = text(key), .value = text("v")};
    kv_reply *reply = NULL;
    CHECK_EQ(kv_submit(store, queue, &request, ++last_tag, NULL, &reply, NULL), KV_OK);
  }
  double begun = seconds_now();
  kv_close(store);
  int answered = 0, done = 0;
  while (answered < COUNT && seconds_now() < begun + 20) {
    kv_reply *reply = kv_queue_next(queue);
    if (!reply) {
      kv_queue_wait(queue, 5);
      continue;
    }
    if (kv_reply_tag(reply) >= first) {
      kv_code code = kv_reply_code(reply);
      CHECK(code == KV_OK || code == KV_CLOSED || code == KV_UNKNOWN);
      if (code == KV_OK) done++;
      answered++;
    }
    kv_reply_free(reply);
  }
  CHECK_EQ(answered, COUNT);
  CHECK(kv_close_wait(store, 10));
  CHECK(seconds_now() - begun < 5);
  kv_store_free(store);
  store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_request request = {.kind = KV_LIST, .key = text("")};
  CHECK_EQ(ask(store, &request), KV_OK);
  kv_pair pair;
  int there = 0;
  while (kv_reply_pair(last_reply, &pair)) there++;
  CHECK(there >= done);
  close_store(store);
}

TEST(sync_none_is_a_choice) {
  new_folder();
  kv_store *loose = open_store("?sync=none");
  REQUIRE(loose != NULL);
  CHECK_EQ(put(loose, "a", "1"), KV_OK);
  kv_store *safe = open_store(NULL);
  REQUIRE(safe != NULL);
  CHECK_EQ(put(safe, "b", "1"), KV_OK);
  CHECK_EQ(put(loose, "a", "2"), KV_OK);
  CHECK_STR(list(safe, ""), "a=2 b=1");
  close_store(loose);
  close_store(safe);
}

CHECK_MAIN()
