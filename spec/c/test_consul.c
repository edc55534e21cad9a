/*
 * test_consul.c - the Consul driver through the public C API, on a real Consul: keys, conditions, listings,
 * transactions, watches, locks, and letting go in the middle of things. Without a consul the tests are left out, with
 * a note.
 */
#include "consul_server.h"

TEST(put_get_delete) {
  WITH_CONSUL(store, "/basics");
  kv_pair pair;
  CHECK_STR(get(store, "a/b"), "(none)");
  uint64_t first = put_revision(store, "a/b", "one"), second = put_revision(store, "a/b", "one");
  CHECK(first > 0 && second > first); /* the same value is a write too */
  kv_reply *got = ask(store, &(kv_request){.kind = KV_GET, .key = KV_TEXT("/a//b/")});
  REQUIRE(got && kv_reply_pair(got, &pair));
  CHECK_EQ(pair.revision, second);
  CHECK_EQ(pair.created, first);
  CHECK(pair.key.size == 3 && memcmp(pair.key.data, "a/b", 3) == 0);
  kv_reply_free(got);
  CHECK_EQ(put(store, "empty", ""), KV_OK);
  CHECK_STR(get(store, "empty"), "");
  kv_reply *gone = ask(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("a/b")});
  CHECK(gone && kv_reply_code(gone) == KV_OK && kv_reply_found(gone));
  kv_reply *again = ask(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("a/b")});
  CHECK(again && kv_reply_code(again) == KV_OK && !kv_reply_found(again));
  kv_reply_free(gone);
  kv_reply_free(again);
  close_store(store);
}

TEST(conditions) {
  WITH_CONSUL(store, "/conditions");
  kv_request create = {.kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("1"), .condition = KV_IF_ABSENT};
  kv_reply *reply = ask(store, &create);
  REQUIRE(reply && kv_reply_code(reply) == KV_OK);
  uint64_t revision = kv_reply_revision(reply);
  CHECK_EQ(kv_reply_created(reply), revision);
  kv_reply_free(reply);
  CHECK_EQ(code_of(store, &create), KV_EXISTS);
  kv_request change = {
      .kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("2"), .condition = KV_IF_REVISION, .revision = revision};
  CHECK_EQ(code_of(store, &change), KV_OK);
  CHECK_EQ(code_of(store, &change), KV_MODIFIED);
  kv_request drop = {.kind = KV_DELETE, .key = KV_TEXT("k"), .condition = KV_IF_REVISION, .revision = revision};
  CHECK_EQ(code_of(store, &drop), KV_MODIFIED);
  drop.key = KV_TEXT("missing"); /* Consul's own delete-cas would call this a success */
  CHECK_EQ(code_of(store, &drop), KV_MODIFIED);
  close_store(store);
}

TEST(listing) {
  WITH_CONSUL(store, "/listing");
  const char *keys[] = {"d/a", "d/a-b", "d/a/x", "d/a/y/z", "d/b/1", "d/b/2", "d/c", "d0", "dx/1", "e"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) CHECK_EQ(put(store, keys[i], keys[i]), KV_OK);
  CHECK_STR(list(store, "d", 0, 0), "d/a d/a-b d/a/x d/a/y/z d/b/1 d/b/2 d/c");
  CHECK_STR(list(store, "d", KV_KEYS_ONLY, 3), "d/a d/a-b d/a/x | d/a/y/z d/b/1 d/b/2 | d/c");
  CHECK_STR(list(store, "d", KV_SHALLOW, 0), "d/a d/a-b d/b/ d/c");
  CHECK_STR(list(store, "", KV_SHALLOW, 2), "d/ d0 | dx/ e");
  CHECK_STR(list(store, "none", 0, 0), "");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE, .key = KV_TEXT("d")}), KV_OK);
  CHECK_STR(list(store, "", 0, 0), "d0 dx/1 e");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(store);
}

TEST(watching) {
  WITH_CONSUL(store, "/watching");
  CHECK_EQ(put(store, "t/a", "1"), KV_OK);
  kv_watch *tree = watch_key(store, "t", true), *key = watch_key(store, "t/a", false);
  REQUIRE(tree && key);
  CHECK_STR(next_event(tree, 5), "*t/a=1");
  CHECK_STR(next_event(key, 5), "*t/a=1");
  CHECK_EQ(put(store, "t/a", "2"), KV_OK);
  CHECK_STR(next_event(tree, 5), "+t/a=2");
  CHECK_STR(next_event(key, 5), "+t/a=2");
  CHECK_EQ(put(store, "t/b", "3"), KV_OK);
  CHECK_STR(next_event(tree, 5), "+t/b=3");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("t/a")}), KV_OK);
  CHECK_STR(next_event(tree, 5), "-t/a");
  CHECK_STR(next_event(key, 5), "-t/a");
  CHECK_STR(next_event(key, 0.2), "");
  kv_watch *late = watch_key(store, "t", true); /* joins the query that is on */
  CHECK_STR(next_event(late, 5), "*t/b=3");
  kv_watch_free(tree);
  CHECK_EQ(put(store, "t/c", "4"), KV_OK);
  CHECK_STR(next_event(late, 5), "+t/c=4");
  kv_watch_free(late);
  kv_watch_free(key);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(store);
}

/* Each request is let go at a different moment; nothing may be left hanging, and the store must close. */
TEST(cancelling_at_every_moment) {
  WITH_CONSUL(store, "/cancelling");
  for (int i = 0; i < 60; i++) {
    kv_reply *reply = NULL;
    uint64_t id = 0, tag = new_tag();
    kv_request request = {.kind = i % 3 == 0 ? KV_DELETE : KV_PUT, .key = KV_TEXT("key"), .value = KV_TEXT("v"),
                          .ttl = i % 3 == 2 ? 30 : 0};
    REQUIRE(kv_submit(store, queue, &request, tag, &id, &reply, NULL) == KV_OK);
    nap(0.0001 * i);
    kv_cancel(queue, id);
    reply = reply_tagged(tag, 5);
    REQUIRE(reply != NULL);
    kv_code code = kv_reply_code(reply);
    CHECK(code == KV_OK || code == KV_CANCELLED || code == KV_UNKNOWN);
    kv_reply_free(reply);
  }
  /* A write that was let go may still be on its way, and come after the next one. */
  for (int i = 0; i < 50; i++) {
    CHECK_EQ(put(store, "key", "end"), KV_OK);
    nap(0.02);
    if (strcmp(get(store, "key"), "end") == 0) break;
  }
  CHECK_STR(get(store, "key"), "end");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE}), KV_OK);
  close_store(store);
}

TEST(closing_with_everything_under_way) {
  WITH_CONSUL(store, "/closing");
  kv_watch *watches[40];
  char name[20];
  for (int i = 0; i < 40; i++) {
    snprintf(name, sizeof name, "w%d", i);
    watches[i] = watch_key(store, name, i % 2);
  }
  for (int i = 0; i < 200; i++)
    submit(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("v"), .ttl = i % 5});
  kv_close(store);
  CHECK(kv_close_wait(store, 10));
  for (int i = 0; i < 40; i++) kv_watch_free(watches[i]);
  kv_store_free(store);
  for (kv_reply *reply; (reply = next_reply(0.2));) kv_reply_free(reply);
}

/* Gets and puts that share transactions, some of them let go on the way, then all by closing. */
TEST(letting_go_of_what_is_shared) {
  enum { COUNT = 240 };
  WITH_CONSUL(store, "/shared");
  static char names[COUNT][20];
  for (int round = 0; round < 12; round++) {
    uint64_t ids[COUNT], tags[COUNT];
    for (int i = 0; i < COUNT; i++) {
      kv_reply *reply = NULL;
      snprintf(names[i], sizeof names[i], "key/%d", i / 2);
      kv_slice key = {names[i], strlen(names[i])};
      kv_request request = {.kind = i % 2 ? KV_GET : KV_PUT, .key = key, .value = KV_TEXT("v")};
      tags[i] = new_tag();
      REQUIRE(kv_submit(store, queue, &request, tags[i], &ids[i], &reply, NULL) == KV_OK);
    }
    nap(0.0003 * round);
    for (int i = 0; i < COUNT; i++)
      if (round == 11 || (i + round) % 3 == 0) kv_cancel(queue, ids[i]);
    if (round == 11) break;
    for (int answers = 0; answers < COUNT; answers++) {
      kv_reply *reply = next_reply(5);
      REQUIRE(reply != NULL);
      int i = (int)(kv_reply_tag(reply) - tags[0]);
      kv_code code = kv_reply_code(reply);
      CHECK(code == KV_OK || ((i + round) % 3 == 0 && (code == KV_CANCELLED || code == KV_UNKNOWN)));
      kv_reply_free(reply);
    }
  }
  kv_close(store);
  CHECK(kv_close_wait(store, 5));
  kv_store_free(store);
  for (kv_reply *reply; (reply = next_reply(0.2));) kv_reply_free(reply);
}

CHECK_MAIN()
