/*
 * test_semaphore.c - semaphores on the lock machine, against a server in memory: how many are let in, whom a waiter
 * waits for, faults, giving up, and many users at random.
 */
#include "lock_server.h"

/* ------------------------------------------------------------------ helpers */

static kv_lock *new_semaphore(kv_store *store, uint32_t limit) {
  kv_error error = {0};
  kv_lock_options options = {.name = KV_TEXT("pool"), .ttl = 20, .value = KV_TEXT("me")};
  kv_lock *semaphore = kv_semaphore_new(store, &options, limit, &error);
  if (!semaphore) fprintf(stderr, "semaphore: %s\n", error.message);
  return semaphore;
}

static size_t waits_there(void) {
  size_t count = 0;
  pthread_mutex_lock(&server.lock);
  for (const struct kv_op *op = server.waiting; op; op = op->next) count++;
  pthread_mutex_unlock(&server.lock);
  return count;
}

/* ------------------------------------------------------------------ the plain way */

TEST(as_many_as_the_limit_are_let_in) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lock *all[5];
    uint64_t last = 0;
    for (int n = 0; n < 5; n++) {
      all[n] = new_semaphore(store, 3);
      REQUIRE(all[n]);
    }
    for (int n = 0; n < 3; n++) {
      CHECK_EQ(acquire(all[n], 5), KV_OK);
      CHECK(kv_lock_token(all[n]) > last);
      last = kv_lock_token(all[n]);
    }
    CHECK_EQ(acquire(all[3], 0), KV_TIMEOUT);
    CHECK_EQ(acquire(all[3], 0.05), KV_TIMEOUT);
    WAIT_FOR(entries_there() == 3);
    CHECK_EQ(release(all[1]), KV_OK); /* not the first one */
    CHECK_EQ(acquire(all[3], 5), KV_OK);
    CHECK_EQ(acquire(all[4], 0), KV_TIMEOUT);
    const struct kv_place *place = kv_lock_place(all[3]);
    REQUIRE(place);
    CHECK_EQ(place->limit, 3);
    CHECK(strncmp(place->id, "00000003", 8) == 0);
    kv_place_release(place);
    for (int n = 0; n < 5; n++) kv_lock_free(all[n]);
    close_store(store);
    check_nothing_left();
  }
}

TEST(waiters_wait_for_the_nearest_and_are_served_in_turn) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lock *all[7];
    for (int n = 0; n < 7; n++) {
      all[n] = new_semaphore(store, 2);
      ask_acquire(all[n], -1, (uint64_t)n + 10);
      WAIT_FOR(entries_there() == (size_t)n + 1);
      if (n < 2) CHECK_EQ(next_code(), KV_OK);
    }
    WAIT_FOR(waits_there() == 5 * 2);
    for (int n = 2; n < 7; n++) {
      int claims = steps(KV_QUEUE_CLAIM);
      CHECK_EQ(kv_lock_release(all[n - 2], queue, 5, 2, NULL, NULL), KV_OK);
      kv_reply *first = next_reply_within(20), *second = next_reply_within(20);
      REQUIRE(first && second);
      CHECK_EQ(kv_reply_tag(first) + kv_reply_tag(second), (uint64_t)n + 12);
      kv_reply_free(first);
      kv_reply_free(second);
      CHECK(kv_lock_held(all[n]));
      for (int m = n + 1; m < 7; m++) CHECK_EQ(kv_lock_get_state(all[m]), KV_LOCK_WAITING);
      WAIT_FOR(waits_there() == (size_t)(6 - n) * 2);
      CHECK(steps(KV_QUEUE_CLAIM) - claims <= 2); /* `limit` are woken at most */
    }
    for (int n = 0; n < 7; n++) kv_lock_free(all[n]);
    close_store(store);
    check_nothing_left();
  }
}

TEST(another_limit_is_refused) {
  kv_store *store = fresh(urls[0]);
  kv_lock *two = new_semaphore(store, 2), *three = new_semaphore(store, 3);
  CHECK_EQ(acquire(two, 5), KV_OK);
  ask_acquire(three, 5, 4);
  kv_reply *reply = next_reply_within(20);
  REQUIRE(reply);
  CHECK_EQ(kv_reply_code(reply), KV_INVALID);
  CHECK(strstr(kv_reply_message(reply), "its limit is 2 for others, and 3 here"));
  kv_reply_free(reply);
  WAIT_FOR(entries_there() == 1);
  CHECK_EQ(release(two), KV_OK);
  CHECK_EQ(acquire(three, 5), KV_OK);
  CHECK_EQ(release(three), KV_OK);
  kv_lock_free(two);
  kv_lock_free(three);
  close_store(store);
  check_nothing_left();
}

/* One who is about to find out that his limit is another one does not stop others who agree. */
TEST(one_who_disagrees_and_leaves_is_no_hindrance) {
  kv_store *store = fresh(urls[0]), *other = open_at(urls[0]);
  kv_lock *three = new_semaphore(store, 3), *two = new_semaphore(other, 2), *third = new_semaphore(store, 3);
  CHECK_EQ(acquire(three, 5), KV_OK);
  ask_acquire(two, 5, 4);
  WAIT_FOR(steps(KV_QUEUE_JOIN) == 2);
  ask_acquire(third, 5, 5);
  kv_reply *first = next_reply_within(20), *second = next_reply_within(20);
  REQUIRE(first && second);
  for (int i = 0; i < 2; i++) {
    const kv_reply *reply = i ? second : first;
    CHECK_EQ(kv_reply_code(reply), kv_reply_tag(reply) == 4 ? KV_INVALID : KV_OK);
  }
  kv_reply_free(first);
  kv_reply_free(second);
  kv_lock_free(three);
  kv_lock_free(two);
  kv_lock_free(third);
  close_store(other);
  close_store(store);
  check_nothing_left();
}

TEST(bad_limits_are_refused) {
  kv_error error = {0};
  kv_store *store = fresh(urls[0]), *plain = open_at("nolocks://here");
  kv_lock_options options = {.name = KV_TEXT("pool")};
  CHECK(!kv_semaphore_new(store, &options, 0, &error));
  CHECK_EQ(error.code, KV_INVALID);
  CHECK(!kv_semaphore_new(store, &options, KV_SEMAPHORE_MAX + 1, &error));
  CHECK_EQ(error.code, KV_INVALID);
  CHECK(!kv_semaphore_new(plain, &options, 1, &error));
  CHECK_EQ(error.code, KV_UNSUPPORTED);
  options.interop = "fake";
  CHECK(!kv_semaphore_new(store, &options, 1, &error));
  CHECK_EQ(error.code, KV_UNSUPPORTED);
  close_store(plain);
  close_store(store);
}

/* Behind more than are watched: the one who goes is not among those, and it is noticed all the same. */
TEST(behind_a_large_limit_a_waiter_looks_again) {
  enum { MANY = 40 };
  kv_store *store = fresh(urls[0]);
  kv_lock *all[MANY], *waiter = new_semaphore(store, MANY);
  for (int n = 0; n < MANY; n++) {
    all[n] = new_semaphore(store, MANY);
    CHECK_EQ(acquire(all[n], 5), KV_OK);
  }
  ask_acquire(waiter, 10, 7);
  WAIT_FOR(waits_there() == 32);
  CHECK_EQ(release(all[0]), KV_OK);
  CHECK_EQ(next_code(), KV_OK);
  CHECK(kv_lock_held(waiter));
  for (int n = 0; n < MANY; n++) kv_lock_free(all[n]);
  kv_lock_free(waiter);
  close_store(store);
  check_nothing_left();
}

/* ------------------------------------------------------------------ faults and giving up */

TEST(faults_that_pass_are_overcome) {
  static const kv_kind kinds[] = {KV_LEASE_GRANT, KV_QUEUE_JOIN, KV_QUEUE_CLAIM, KV_QUEUE_WAIT, KV_QUEUE_LEAVE};
  static const enum fault_type types[] = {REFUSE, LOSE_ANSWER, LOSE_REQUEST};
  for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++)
    for (size_t type = 0; type < sizeof types / sizeof *types; type++)
      for (int url = 0; url < 2; url++) {
        kv_store *store = fresh(urls[url]);
        server.no_ahead = kinds[kind] == KV_QUEUE_CLAIM;
        kv_lock *one = new_semaphore(store, 2), *two = new_semaphore(store, 2), *three = new_semaphore(store, 2);
        CHECK_EQ(acquire(one, 5), KV_OK);
        CHECK_EQ(acquire(two, 5), KV_OK);
        fault(kinds[kind], types[type], 2);
        ask_acquire(three, 10, 7);
        WAIT_FOR(entries_there() == 3 && waits_there() >= 2);
        CHECK_EQ(release(one), KV_OK);
        CHECK_EQ(next_code(), KV_OK);
        CHECK(kv_lock_held(three) && kv_lock_held(two));
        kv_lock_free(one);
        kv_lock_free(two);
        kv_lock_free(three);
        close_store(store);
        check_nothing_left();
      }
}

/* 0: it times out, 1: cancelled, 2: the handle is freed, 3: the store closes. */
static void give_up(const char *url, int how) {
  kv_store *store = fresh(url), *other = open_at(url);
  kv_lock *held[2] = {new_semaphore(other, 2), new_semaphore(other, 2)}, *waiter = new_semaphore(store, 2);
  CHECK_EQ(acquire(held[0], 5), KV_OK);
  CHECK_EQ(acquire(held[1], 5), KV_OK);
  uint64_t id = ask_acquire(waiter, how ? -1 : 1, 7);
  WAIT_FOR(waits_there() == 2);
  if (how == 1) kv_cancel(queue, id);
  if (how == 2) kv_lock_free(waiter);
  if (how == 3) kv_close(store);
  kv_code code = next_code();
  CHECK_EQ(code, how == 0 ? KV_TIMEOUT : how == 1 ? KV_CANCELLED : KV_CLOSED);
  WAIT_FOR(waits_there() == 0);
  WAIT_FOR(entries_there() == 2);
  if (how < 2) {
    CHECK_EQ(release(held[0]), KV_OK);
    CHECK_EQ(acquire(waiter, 5), KV_OK);
  }
  if (how != 2) kv_lock_free(waiter);
  close_store(store);
  kv_lock_free(held[0]);
  kv_lock_free(held[1]);
  close_store(other);
  check_nothing_left();
}

TEST(a_waiter_that_gives_up_leaves_nothing) {
  for (int url = 0; url < 2; url++)
    for (int how = 0; how < 4; how++) give_up(urls[url], how);
}

TEST(an_entry_that_is_lost_while_waiting_is_made_again) {
  kv_store *store = fresh(urls[0]);
  kv_lock *one = new_semaphore(store, 1), *two = new_semaphore(store, 1);
  CHECK_EQ(acquire(one, 5), KV_OK);
  ask_acquire(two, 10, 7);
  WAIT_FOR(waits_there() == 1);
  end_entries(); /* the holder's and the waiter's: the waiter is woken, finds its own gone and gets in line anew */
  CHECK_EQ(next_code(), KV_OK);
  CHECK(kv_lock_held(two));
  CHECK_EQ(entries_there(), 1);
  kv_lock_free(one);
  kv_lock_free(two);
  close_store(store);
  check_nothing_left();
}

/* ------------------------------------------------------------------ many at once, with faults */

enum { USERS = 6, LIMIT = 3, ROUNDS = 40 };
static atomic_int holders_now, most_holders, holds;

static kv_code wait_for_code(kv_queue *own, uint64_t tag) {
  for (;;) {
    kv_reply *reply = kv_queue_next(own);
    if (!reply) {
      if (kv_queue_wait(own, 30) == 0) return KV_CODE_COUNT;
      continue;
    }
    bool wanted = kv_reply_tag(reply) == tag;
    kv_code code = kv_reply_code(reply);
    kv_reply_free(reply);
    if (wanted) return code;
  }
}

struct user {
  pthread_t thread;
  const char *url;
  unsigned seed;
  kv_code worst;
};

static void hold_for_a_while(const kv_lock *semaphore, unsigned *seed) {
  if (!kv_lock_held(semaphore)) return;
  int now = atomic_fetch_add(&holders_now, 1) + 1, most = atomic_load(&most_holders);
  while (now > most && !atomic_compare_exchange_weak(&most_holders, &most, now)) continue;
  atomic_fetch_add(&holds, 1);
  if (rand_r(seed) % 2 == 0) sleep_ms(1);
  atomic_fetch_sub(&holders_now, 1);
}

static void *use_semaphore(void *argument) {
  struct user *user = argument;
  kv_queue *own = kv_queue_new(NULL);
  kv_store *store = kv_open(user->url, NULL, NULL);
  kv_lock *semaphore = new_semaphore(store, LIMIT);
  for (uint64_t n = 1; n <= ROUNDS; n++) {
    uint64_t id = 0, tag = n * 2;
    double timeout = rand_r(&user->seed) % 3 == 0 ? 0.01 : -1;
    if (kv_lock_acquire(semaphore, own, timeout, tag, &id, NULL) != KV_OK) break;
    if (rand_r(&user->seed) % 4 == 0) kv_cancel(own, id);
    kv_code code = wait_for_code(own, tag);
    if (code == KV_OK) {
      hold_for_a_while(semaphore, &user->seed);
      kv_lock_release(semaphore, own, 20, tag + 1, NULL, NULL);
      code = wait_for_code(own, tag + 1);
    }
    if (code != KV_OK && code != KV_CANCELLED && code != KV_TIMEOUT) user->worst = code;
  }
  kv_lock_free(semaphore);
  kv_close(store);
  kv_close_wait(store, 20);
  kv_store_free(store);
  kv_queue_free(own);
  return NULL;
}

TEST(users_faults_and_cancels_at_random) {
  static const kv_kind kinds[] = {KV_QUEUE_JOIN, KV_QUEUE_CLAIM, KV_QUEUE_WAIT, KV_QUEUE_LEAVE, KV_LEASE_GRANT};
  static const enum fault_type types[] = {REFUSE, LOSE_ANSWER, LOSE_REQUEST};
  for (int url = 0; url < 2; url++) {
    struct user users[USERS];
    unsigned seed = 7;
    reset_server();
    close_store(open_at(urls[url])); /* the drivers are known */
    atomic_store(&most_holders, 0);
    atomic_store(&holds, 0);
    for (unsigned i = 0; i < USERS; i++) {
      users[i] = (struct user){.url = urls[url], .seed = i + 1};
      pthread_create(&users[i].thread, NULL, use_semaphore, &users[i]);
    }
    for (int i = 0; i < 60; i++) {
      fault(kinds[rand_r(&seed) % 5], types[rand_r(&seed) % 3], 1);
      sleep_ms(2);
    }
    for (int i = 0; i < USERS; i++) {
      pthread_join(users[i].thread, NULL);
      CHECK_STR(kv_code_text(users[i].worst), "ok");
    }
    CHECK(atomic_load(&most_holders) <= LIMIT);
    CHECK(atomic_load(&most_holders) > 1);
    CHECK(atomic_load(&holds) > ROUNDS);
    check_nothing_left();
  }
}

CHECK_MAIN()
