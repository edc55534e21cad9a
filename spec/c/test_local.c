/*
 * test_local.c - the embedded store in one process: operations, conditions, revisions, listings, transactions, time to live,
 * leases, locks, watches and their history.
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

TEST(private_store) {
  kv_store *one = open_store("local:"), *two = open_store("local:");
  REQUIRE(one && two);
  CHECK_EQ(put(one, "a", "1"), KV_OK);
  CHECK_EQ(put(two, "b", "2"), KV_OK);
  CHECK_STR(list(one, ""), "a=1");
  CHECK_STR(list(two, ""), "b=2");
  kv_info info;
  kv_store_info(one, &info);
  CHECK(access(info.endpoint, F_OK) == 0);
  close_store(one);
  CHECK(access(info.endpoint, F_OK) != 0);
  close_store(two);
}

TEST(watch_tells) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_watch *watch = watch_tree(store, "d");
  CHECK(wait_synced(watch));
  put(store, "d/a", "1");
  put(store, "e", "1");
  delete_key(store, "d/a");
  CHECK_STR(next_event(watch, 5), "d/a=1@1");
  CHECK_STR(next_event(watch, 5), "-d/a@3");
  kv_watch_free(watch);
  close_store(store);
}

TEST(locks_are_handed_over) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_lock *one = new_lock(store, "l", 5), *two = new_lock(store, "l", 5);
  CHECK_EQ(acquire(one, 5), KV_OK);
  uint64_t token = last.revision;
  CHECK_EQ(acquire(two, 0), KV_TIMEOUT);
  uint64_t tag = ++last_tag;
  CHECK_EQ(kv_lock_acquire(two, queue, 20, tag, NULL, &last_error), KV_OK);
  CHECK_EQ(release(one), KV_OK);
  CHECK_EQ(keep_reply(next_reply(tag)), KV_OK);
  CHECK(last.revision > token);
  CHECK_EQ(release(two), KV_OK);
  kv_lock_free(one);
  kv_lock_free(two);
  close_store(store);
}

TEST(a_time_to_live_ends) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_watch *watch = watch_tree(store, "");
  CHECK(wait_synced(watch));
  CHECK_EQ(put_ttl(store, "a", "1", 0.2), KV_OK);
  CHECK_STR(next_event(watch, 5), "a=1@1");
  CHECK_STR(next_event(watch, 5), "-a@2");
  CHECK(get(store, "a") == NULL);
  kv_lease *lease = new_lease(store, 5);
  CHECK_EQ(last.code, KV_OK);
  CHECK_EQ(put_lease(store, "b", "1", lease), KV_OK);
  CHECK_STR(next_event(watch, 5), "b=1@3");
  uint64_t tag = ++last_tag;
  CHECK_EQ(kv_lease_close(lease, queue, 5, tag, NULL, NULL), KV_OK);
  CHECK_EQ(keep_reply(next_reply(tag)), KV_OK);
  CHECK_STR(next_event(watch, 5), "-b@4");
  kv_lease_free(lease);
  kv_watch_free(watch);
  close_store(store);
}

CHECK_MAIN()
