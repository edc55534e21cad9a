/*
 * test_lock.c - the lock machine against a server in memory: every way through it, each fault at each step, giving up
 * at every point where it waits. What is always checked in the end: no entry and no lease is left on the server.
 */
#include "lock_server.h"

#include <sys/wait.h>

#include "recipes/lock.h"

/* ------------------------------------------------------------------ helpers */

static kv_lock *new_lock(kv_store *store, double ttl) {
  kv_error error = {0};
  kv_lock_options options = {.name = KV_TEXT("jobs/a"), .ttl = ttl, .value = KV_TEXT("me")};
  kv_lock *lock = kv_lock_new(store, &options, &error);
  if (!lock) fprintf(stderr, "lock: %s\n", error.message);
  return lock;
}

/* The tag of the next reply, which must have this code. */
static uint64_t next_tag(kv_code code) {
  kv_reply *reply = next_reply_within(20);
  if (!reply) return 0;
  CHECK_STR(kv_code_text(kv_reply_code(reply)), kv_code_text(code));
  uint64_t tag = kv_reply_tag(reply);
  kv_reply_free(reply);
  return tag;
}

/* ------------------------------------------------------------------ the plain way */

TEST(acquire_and_release) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lock *lock = new_lock(store, 5);
    REQUIRE(lock);
    CHECK(!kv_lock_held(lock));
    CHECK_EQ(kv_lock_get_state(lock), KV_LOCK_FREE);
    CHECK_EQ(kv_lock_token(lock), 0);
    CHECK(kv_lock_ttl(lock) == 5);
    CHECK(kv_lock_place(lock) == NULL);
    ask_acquire(lock, -1, 77);
    kv_reply *reply = next_reply_within(20);
    REQUIRE(reply);
    CHECK_EQ(kv_reply_code(reply), KV_OK);
    CHECK_EQ(kv_reply_kind(reply), KV_LOCK_ACQUIRE);
    CHECK_EQ(kv_reply_tag(reply), 77);
    CHECK_EQ(kv_reply_revision(reply), kv_lock_token(lock));
    kv_reply_free(reply);
    CHECK(kv_lock_held(lock));
    CHECK_EQ(kv_lock_get_state(lock), KV_LOCK_HOLDING);
    CHECK_EQ(entries_there(), 1);
    CHECK_STR(server.entries[0].name, "app/jobs/a");
    uint64_t token = kv_lock_token(lock);
    CHECK_EQ(release(lock), KV_OK);
    CHECK(!kv_lock_held(lock));
    CHECK_EQ(entries_there(), 0);
    /* The lease was kept: the second time costs two steps. */
    CHECK_EQ(acquire(lock, 5), KV_OK);
    CHECK(kv_lock_token(lock) > token);
    CHECK_EQ(release(lock), KV_OK);
    CHECK_EQ(release(lock), KV_NOT_HELD);
    CHECK_EQ(steps(KV_LEASE_GRANT), 1);
    CHECK_EQ(steps(KV_QUEUE_JOIN), 2);
    CHECK_EQ(steps(KV_QUEUE_AHEAD) + steps(KV_QUEUE_CLAIM), 0);
    CHECK_EQ(steps(KV_QUEUE_LEAVE), 2);
    kv_lock_free(lock);
    check_nothing_left();
    close_store(store);
  }
}

TEST(a_driver_that_does_not_look_ahead_is_asked_to_claim) {
  kv_store *store = fresh(urls[0]);
  server.no_ahead = true;
  kv_lock *lock = new_lock(store, 5);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(steps(KV_QUEUE_AHEAD), 1);
  CHECK_EQ(steps(KV_QUEUE_CLAIM), 1);
  CHECK(kv_lock_token(lock) > 0);
  close_store(store);
  kv_lock_free(lock);
  check_nothing_left();
}

TEST(waiters_are_served_in_turn_and_one_is_woken) {
  for (int i = 0; i < 2; i++) {
    kv_store *stores[4];
    kv_lock *locks[4];
    reset_server();
    for (int n = 0; n < 4; n++) {
      stores[n] = open_at(urls[i]);
      locks[n] = new_lock(stores[n], 5);
      ask_acquire(locks[n], -1, (uint64_t)n + 10);
      WAIT_FOR(entries_there() == (size_t)n + 1);
    }
    CHECK_EQ(next_tag(KV_OK), 10);
    WAIT_FOR(steps(KV_QUEUE_WAIT) == 3);
    uint64_t token = kv_lock_token(locks[0]);
    for (int n = 1; n < 4; n++) {
      CHECK_EQ(kv_lock_get_state(locks[n]), KV_LOCK_WAITING);
      CHECK_EQ(kv_lock_release(locks[n - 1], queue, 5, 2, NULL, NULL), KV_OK);
      uint64_t first = next_tag(KV_OK), second = next_tag(KV_OK);
      CHECK_EQ(first + second, 2 + n + 10);
      CHECK(kv_lock_held(locks[n]));
      CHECK(kv_lock_token(locks[n]) > token);
      token = kv_lock_token(locks[n]);
      CHECK_EQ(server.wakes, n);
    }
    for (int n = 0; n < 4; n++) {
      kv_lock_free(locks[n]);
      close_store(stores[n]);
    }
    check_nothing_left();
  }
}

TEST(zero_tries_once) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]), *other = open_at(urls[i]);
    kv_lock *lock = new_lock(store, 5), *rival = new_lock(other, 5);
    CHECK_EQ(acquire(lock, 0), KV_OK);
    CHECK_EQ(acquire(rival, 0), KV_TIMEOUT);
    WAIT_FOR(entries_there() == 1);
    CHECK_EQ(kv_lock_get_state(rival), KV_LOCK_FREE);
    CHECK_EQ(release(lock), KV_OK);
    CHECK_EQ(acquire(rival, 0), KV_OK);
    close_store(store);
    close_store(other);
    kv_lock_free(lock);
    kv_lock_free(rival);
    check_nothing_left();
  }
}

TEST(a_timeout_leaves_nothing_behind) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]), *other = open_at(urls[i]);
    kv_lock *lock = new_lock(store, 5), *rival = new_lock(other, 0.4);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    int64_t before = kv_clock();
    CHECK_EQ(acquire(rival, 0.1), KV_TIMEOUT);
    int64_t took = kv_clock() - before;
    CHECK(took > KV_SECOND / 12 && took < 10 * KV_SECOND);
    WAIT_FOR(entries_there() == 1);
    WAIT_FOR(leases_there() == 1); /* idle: given back after a third of its time */
    CHECK(kv_lock_held(lock));
    close_store(other);
    close_store(store);
    kv_lock_free(lock);
    kv_lock_free(rival);
    check_nothing_left();
  }
}

TEST(an_idle_lease_is_given_back) {
  kv_store *store = fresh(urls[0]);
  kv_lock *lock = new_lock(store, 3);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(release(lock), KV_OK);
  CHECK_EQ(leases_there(), 1);
  WAIT_FOR(leases_there() == 0);
  CHECK_EQ(steps(KV_LEASE_REVOKE), 1);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(steps(KV_LEASE_GRANT), 2);
  close_store(store);
  kv_lock_free(lock);
  check_nothing_left();
}

TEST(closing_does_not_wait_for_an_idle_lease) {
  int64_t quickest = KV_NEVER;
  for (int n = 0; n < CLOSINGS; n++) {
    kv_store *store = fresh(urls[0]);
    kv_lock *lock = new_lock(store, 30), *other = new_lock(store, 20);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    CHECK_EQ(release(lock), KV_OK);
    CHECK_EQ(acquire(other, 5), KV_OK);
    CHECK_EQ(release(other), KV_OK);
    CHECK_EQ(leases_there(), 2);
    close_store_timed(store, &quickest);
    CHECK_EQ(leases_there(), 0);
    /* A handle that outlives its store answers that. */
    CHECK(!kv_lock_held(lock));
    CHECK_EQ(kv_lock_acquire(lock, queue, 1, 1, NULL, NULL), KV_CLOSED);
    kv_lock_free(lock);
    kv_lock_free(other);
  }
  CHECK(quickest < KV_CLOSE_GRACE / 2);
}

TEST(held_is_answered_while_it_holds_or_waits) {
  kv_store *store = fresh(urls[0]), *other = open_at(urls[0]);
  kv_lock *lock = new_lock(store, 5), *rival = new_lock(other, 5);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(acquire(lock, 5), KV_HELD);
  ask_acquire(rival, -1, 5);
  CHECK_EQ(acquire(rival, 0), KV_HELD);
  CHECK_EQ(release(rival), KV_NOT_HELD);
  CHECK_EQ(release(lock), KV_OK);
  CHECK_EQ(next_tag(KV_OK), 5);
  close_store(store);
  close_store(other);
  kv_lock_free(lock);
  kv_lock_free(rival);
  check_nothing_left();
}

TEST(an_acquire_behind_a_leave_waits_for_it) {
  kv_store *store = fresh(urls[0]);
  kv_lock *lock = new_lock(store, 5);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  server.no_ahead = true;
  fault(KV_QUEUE_LEAVE, REFUSE, 2);
  CHECK_EQ(kv_lock_release(lock, queue, 5, 2, NULL, NULL), KV_OK);
  ask_acquire(lock, 5, 3);
  uint64_t first = next_tag(KV_OK), second = next_tag(KV_OK);
  CHECK_EQ(first, 2);
  CHECK_EQ(second, 3);
  CHECK(kv_lock_held(lock));
  CHECK_EQ(entries_there(), 1);
  close_store(store);
  kv_lock_free(lock);
  check_nothing_left();
}

TEST(the_holder_is_told) {
  kv_store *store = fresh(urls[0]);
  kv_lock *lock = new_lock(store, 5);
  CHECK_EQ(kv_lock_holder(lock, queue, 5, 8, NULL, NULL), KV_OK);
  kv_reply *reply = next_reply_within(20);
  REQUIRE(reply);
  kv_pair pair = {0};
  CHECK_EQ(kv_reply_code(reply), KV_OK);
  CHECK(!kv_reply_pair(reply, &pair));
  kv_reply_free(reply);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(kv_lock_holder(lock, queue, 5, 8, NULL, NULL), KV_OK);
  reply = next_reply_within(20);
  REQUIRE(reply);
  CHECK_EQ(kv_reply_kind(reply), KV_QUEUE_HEAD);
  REQUIRE(kv_reply_pair(reply, &pair));
  CHECK(pair.key.size == 6 && memcmp(pair.key.data, "jobs/a", 6) == 0);
  CHECK(pair.value.size == 2 && memcmp(pair.value.data, "me", 2) == 0);
  CHECK_EQ(pair.revision, kv_lock_token(lock));
  kv_reply_free(reply);
  fault(KV_QUEUE_HEAD, HANG, 1);
  uint64_t id = 0;
  CHECK_EQ(kv_lock_holder(lock, queue, 5, 8, &id, NULL), KV_OK);
  kv_cancel(queue, id);
  CHECK_EQ(next_code(), KV_CANCELLED);
  fault(KV_QUEUE_HEAD, HANG, 1);
  CHECK_EQ(kv_lock_holder(lock, queue, 0.05, 8, &id, NULL), KV_OK);
  CHECK_EQ(next_code(), KV_TIMEOUT);
  fault(KV_QUEUE_HEAD, HANG, 1);
  CHECK_EQ(kv_lock_holder(lock, queue, 5, 8, &id, NULL), KV_OK);
  kv_close(store);
  CHECK_EQ(next_code(), KV_CLOSED);
  close_store(store);
  kv_lock_free(lock);
  check_nothing_left();
}

TEST(a_place_outlives_the_hold) {
  kv_store *store = fresh(urls[0]);
  kv_lock *lock = new_lock(store, 5);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  const struct kv_place *place = kv_lock_place(lock);
  REQUIRE(place);
  CHECK_EQ(place->token, kv_lock_token(lock));
  CHECK_EQ(release(lock), KV_OK);
  CHECK(kv_lock_place(lock) == NULL);
  close_store(store);
  kv_lock_free(lock);
  CHECK(place->name.size == 10 && memcmp(place->name.data, "app/jobs/a", 10) == 0);
  CHECK(place->lease->id > 0);
  kv_place_release(place);
}

TEST(bad_options_are_refused) {
  kv_error error = {0};
  kv_store *store = fresh(urls[0]), *plain = open_at("nolocks://here");
  kv_lock_options options = {.name = KV_TEXT("")};
  CHECK(kv_lock_new(store, &options, &error) == NULL);
  CHECK_EQ(error.code, KV_INVALID);
  options.name = KV_TEXT("a/../b");
  CHECK(kv_lock_new(store, &options, &error) == NULL);
  CHECK_EQ(error.code, KV_INVALID);
  options.name = KV_TEXT(".kv/x");
  CHECK(kv_lock_new(store, &options, &error) == NULL);
  CHECK_EQ(error.code, KV_INVALID);
  options.name = KV_TEXT("a");
  CHECK(kv_lock_new(plain, &options, &error) == NULL);
  CHECK_EQ(error.code, KV_UNSUPPORTED);
  options.interop = "etcd";
  CHECK(kv_lock_new(store, &options, &error) == NULL);
  CHECK_EQ(error.code, KV_UNSUPPORTED);
  CHECK(strstr(error.message, "interop"));
  options.interop = NULL;
  options.ttl = 1.0 / 0.0;
  CHECK(kv_lock_new(store, &options, &error) == NULL);
  CHECK_EQ(error.code, KV_INVALID);
  options.ttl = 0.001;
  kv_lock *lock = kv_lock_new(store, &options, &error);
  REQUIRE(lock);
  CHECK(kv_lock_ttl(lock) == 0.03); /* raised to the driver's least */
  kv_lock_free(lock);
  char big[100] = {0};
  options.value = (kv_slice){big, sizeof big};
  CHECK(kv_lock_new(store, &options, &error) == NULL);
  CHECK_EQ(error.code, KV_TOO_LARGE);
  kv_close(store);
  CHECK(kv_lock_new(store, &options, &error) == NULL);
  CHECK_EQ(error.code, KV_CLOSED);
  kv_store_free(store);
  kv_store_free(plain);
}

/* ------------------------------------------------------------------ faults at each step */

static void acquire_with_fault(const char *url, kv_kind kind, enum fault_type type, int times, bool no_ahead) {
  kv_store *store = fresh(url);
  server.no_ahead = no_ahead;
  kv_lock *lock = new_lock(store, 5);
  fault(kind, type, times);
  CHECK_EQ(acquire(lock, 10), KV_OK);
  CHECK(kv_lock_held(lock));
  WAIT_FOR(entries_there() == 1);
  CHECK_EQ(release(lock), KV_OK);
  WAIT_FOR(entries_there() == 0);
  close_store(store);
  kv_lock_free(lock);
  check_nothing_left();
}

TEST(faults_that_pass_are_overcome) {
  static const kv_kind kinds[] = {KV_LEASE_GRANT, KV_QUEUE_JOIN, KV_QUEUE_AHEAD, KV_QUEUE_CLAIM, KV_QUEUE_LEAVE};
  static const enum fault_type types[] = {REFUSE, LOSE_ANSWER, LOSE_REQUEST};
  for (int i = 0; i < 2; i++)
    for (size_t kind = 0; kind < 5; kind++)
      for (size_t type = 0; type < 3; type++) acquire_with_fault(urls[i], kinds[kind], types[type], 2, true);
}

TEST(an_entry_or_lease_that_is_lost_while_waiting_is_made_again) {
  static const kv_kind kinds[] = {KV_QUEUE_JOIN, KV_QUEUE_AHEAD, KV_QUEUE_CLAIM};
  for (int i = 0; i < 2; i++)
    for (size_t kind = 0; kind < 3; kind++) acquire_with_fault(urls[i], kinds[kind], SAY_LOST, 2, true);
}

TEST(a_claim_that_must_wait_is_repeated) {
  acquire_with_fault(urls[0], KV_QUEUE_CLAIM, SAY_NOT_FIRST, 2, true);
  kv_store *store = fresh(urls[0]);
  server.no_ahead = true;
  kv_lock *lock = new_lock(store, 5);
  fault(KV_QUEUE_CLAIM, SAY_NOT_FIRST, 1);
  CHECK_EQ(acquire(lock, 0), KV_TIMEOUT);
  close_store(store);
  kv_lock_free(lock);
  check_nothing_left();
}

TEST(a_refusal_is_told_and_cleaned_up) {
  static const kv_kind kinds[] = {KV_LEASE_GRANT, KV_QUEUE_JOIN, KV_QUEUE_AHEAD, KV_QUEUE_CLAIM};
  for (int i = 0; i < 2; i++) {
    for (size_t kind = 0; kind < 4; kind++) {
      kv_store *store = fresh(urls[i]);
      server.no_ahead = true;
      kv_lock *lock = new_lock(store, 5);
      fault(kinds[kind], DENY, 1);
      CHECK_EQ(acquire(lock, 10), KV_DENIED);
      CHECK(!kv_lock_held(lock));
      CHECK_EQ(acquire(lock, 10), KV_OK); /* the handle is good for another try */
      close_store(store);
      kv_lock_free(lock);
      check_nothing_left();
    }
  }
}

TEST(a_lease_that_ends_while_waiting_costs_the_place_only) {
  kv_store *store = fresh(urls[0]), *other = open_at(urls[0]);
  kv_lock *lock = new_lock(store, 30), *rival = new_lock(other, 2); /* the rival's renewal is the first */
  CHECK_EQ(acquire(lock, 5), KV_OK);
  ask_acquire(rival, -1, 9);
  WAIT_FOR(steps(KV_QUEUE_WAIT) == 1);
  fault(KV_LEASE_RENEW, SAY_LOST, 1);
  WAIT_FOR(steps(KV_LEASE_GRANT) == 3);
  WAIT_FOR(steps(KV_QUEUE_WAIT) == 2);
  CHECK_EQ(kv_lock_get_state(rival), KV_LOCK_WAITING);
  WAIT_FOR(entries_there() == 2); /* and the first one is gone */
  CHECK_EQ(release(lock), KV_OK);
  CHECK_EQ(next_tag(KV_OK), 9);
  close_store(store);
  close_store(other);
  kv_lock_free(lock);
  kv_lock_free(rival);
  check_nothing_left();
}

/* ------------------------------------------------------------------ giving up */

enum giving_up { BY_CANCEL, BY_TIMEOUT, BY_CLOSE, BY_FREE, WAYS_TO_GIVE_UP };

/* Give up an acquire while a step of `kind` hangs. */
static void give_up_at(const char *url, kv_kind kind, enum fault_type type, enum giving_up way) {
  kv_store *store = fresh(url), *other = open_at(url);
  kv_lock *lock = new_lock(store, 5), *rival = new_lock(other, 5);
  server.no_ahead = true;
  if (kind == KV_QUEUE_WAIT) CHECK_EQ(acquire(rival, 5), KV_OK);
  int before = steps(kind);
  fault(kind, type, way == BY_TIMEOUT ? 100 : 1); /* a second try must not get it right before the deadline */
  uint64_t id = ask_acquire(lock, way == BY_TIMEOUT ? 0.1 : -1, 4);
  /* On a slow machine the time may be up before the step. */
  WAIT_FOR(steps(kind) > before || (way == BY_TIMEOUT && kv_queue_wait(queue, 0) == 1));
  if (way == BY_CANCEL) kv_cancel(queue, id);
  if (way == BY_CLOSE) kv_close(store);
  if (way == BY_FREE) kv_lock_free(lock);
  kv_code expected = way == BY_CANCEL ? KV_CANCELLED : way == BY_TIMEOUT ? KV_TIMEOUT : KV_CLOSED;
  CHECK_EQ(next_tag(expected), 4);
  fault(kind, NO_FAULT, 0);
  if (way != BY_FREE) CHECK(!kv_lock_held(lock));
  if (kind == KV_QUEUE_WAIT) CHECK_EQ(release(rival), KV_OK);
  if (way == BY_CANCEL || way == BY_TIMEOUT) { /* the store goes on: others must not wait for what is left */
    WAIT_FOR(entries_there() == 0);
    sleep_ms(40);
    WAIT_FOR(entries_there() == 0);
    CHECK_EQ(acquire(rival, 5), KV_OK);
    CHECK_EQ(acquire(lock, 0), KV_TIMEOUT);
    CHECK_EQ(release(rival), KV_OK);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    CHECK_EQ(release(lock), KV_OK);
  }
  close_store(store);
  close_store(other);
  if (way != BY_FREE) kv_lock_free(lock);
  kv_lock_free(rival);
  check_nothing_left();
}

TEST(giving_up_leaves_nothing_wherever_it_waits) {
  static const kv_kind kinds[] = {KV_LEASE_GRANT, KV_QUEUE_JOIN, KV_QUEUE_AHEAD, KV_QUEUE_WAIT, KV_QUEUE_CLAIM};
  static const enum fault_type types[] = {HANG, HANG_APPLIED, APPLY_LATE};
  for (int i = 0; i < 2; i++)
    for (size_t kind = 0; kind < 5; kind++)
      for (size_t type = 0; type < 3; type++)
        for (int way = 0; way < WAYS_TO_GIVE_UP; way++) {
          if (kinds[kind] == KV_QUEUE_WAIT && types[type] != HANG) continue;
          if (types[type] == APPLY_LATE && (way == BY_CLOSE || way == BY_FREE)) continue; /* the backstop is expiry */
          give_up_at(urls[i], kinds[kind], types[type], (enum giving_up)way);
        }
}

/* What a claim makes on some backends may appear late, under the lease: nobody may hold by it then. */
TEST(a_claim_in_doubt_costs_the_lease) {
  static const char *const layouts[] = {NULL, "fake"};
  for (size_t i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[0]);
    kv_error error = {0};
    kv_lock_options options = {.name = KV_TEXT("/door/"), .ttl = 60, .interop = layouts[i]};
    kv_lock *lock = kv_lock_new(store, &options, &error);
    REQUIRE(lock);
    server.no_ahead = true;
    fault(KV_QUEUE_CLAIM, HANG, 1);
    uint64_t id = ask_acquire(lock, -1, 4);
    WAIT_FOR(steps(KV_QUEUE_CLAIM) == 1);
    kv_cancel(queue, id);
    CHECK_EQ(next_tag(KV_CANCELLED), 4);
    WAIT_FOR(entries_there() == 0);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    CHECK_STR(server.entries[0].name, layouts[i] ? "/door/" : "app/door");
    CHECK_EQ(steps(KV_LEASE_GRANT), 2);
    WAIT_FOR(leases_there() == 1);
    kv_lock_free(lock);
    close_store(store);
    check_nothing_left();
  }
}

TEST(cancelling_at_once_is_harmless) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lock *lock = new_lock(store, 5);
    for (int n = 0; n < 200; n++) {
      uint64_t id = ask_acquire(lock, -1, 6);
      if (n % 3 == 1) sleep_ms(1);
      kv_cancel(queue, id);
      kv_code code = next_code();
      CHECK(code == KV_OK || code == KV_CANCELLED);
      if (code == KV_OK) CHECK_EQ(release(lock), KV_OK);
    }
    WAIT_FOR(entries_there() == 0);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    kv_lock_free(lock);
    close_store(store);
    check_nothing_left();
  }
}

TEST(a_leave_is_repeated_until_it_is_certain) {
  kv_store *store = fresh(urls[0]), *other = open_at(urls[0]);
  kv_lock *lock = new_lock(store, 5), *rival = new_lock(other, 30);
  CHECK_EQ(acquire(rival, 5), KV_OK);
  fault(KV_QUEUE_LEAVE, LOSE_REQUEST, 4);
  CHECK_EQ(acquire(lock, 0), KV_TIMEOUT);
  WAIT_FOR(steps(KV_QUEUE_LEAVE) == 5);
  WAIT_FOR(entries_there() == 1);
  close_store(store);
  close_store(other);
  kv_lock_free(lock);
  kv_lock_free(rival);
  check_nothing_left();
}

/* ------------------------------------------------------------------ losing */

static void wait_lost(kv_lock *lock, double timeout, uint64_t tag) {
  CHECK_EQ(kv_lock_wait_lost(lock, queue, timeout, tag, NULL, NULL), KV_OK);
}

TEST(a_renewal_that_fails_for_a_while_suspends) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lock *lock = new_lock(store, 2);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    wait_lost(lock, -1, 3);
    server_away(true);
    WAIT_FOR(kv_lock_get_state(lock) == KV_LOCK_SUSPENDED);
    int64_t first_deadline = atomic_load(&lock->deadline);
    CHECK(kv_lock_held(lock));
    CHECK_EQ(acquire(lock, 0), KV_HELD);
    server_away(false);
    WAIT_FOR(kv_lock_get_state(lock) == KV_LOCK_HOLDING);
    WAIT_FOR(kv_clock() > first_deadline); /* it must have been moved */
    CHECK(kv_lock_held(lock));
    CHECK_EQ(release(lock), KV_NOT_HELD); /* the answer to wait_lost comes first */
    CHECK_EQ(next_tag(KV_OK), 2);
    close_store(store);
    kv_lock_free(lock);
    check_nothing_left();
  }
}

TEST(a_renewal_without_an_answer_suspends_and_is_repeated) {
  kv_store *store = fresh(urls[0]);
  kv_lock *lock = new_lock(store, 3);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  fault(KV_LEASE_RENEW, HANG, 100);
  WAIT_FOR(kv_lock_get_state(lock) == KV_LOCK_SUSPENDED);
  fault(KV_LEASE_RENEW, NO_FAULT, 0);
  WAIT_FOR(kv_lock_get_state(lock) == KV_LOCK_HOLDING);
  CHECK(kv_lock_held(lock));
  close_store(store);
  kv_lock_free(lock);
  check_nothing_left();
}

TEST(a_lease_that_is_counted_from_earlier_is_held_no_longer) {
  static const double told[] = {0, 1.5, 1000}, counted[] = {0, 1.5, 3};
  for (size_t i = 0; i < 3; i++) {
    kv_store *store = fresh(urls[0]);
    server.behind = told[i];
    kv_lock *lock = new_lock(store, 10);
    fault(KV_LEASE_RENEW, HANG, 100);
    int64_t before = kv_clock();
    CHECK_EQ(acquire(lock, 5), KV_OK);
    int64_t deadline = atomic_load(&lock->deadline), held = kv_deadline(0, 9.9 - counted[i]); /* the hundredth: drift */
    CHECK(deadline >= before + held - KV_SECOND / 1000 && deadline <= kv_clock() + held);
    if (i == 2) WAIT_FOR(steps(KV_LEASE_RENEW) == 1); /* the third of its time is over soon */
    close_store(store);
    kv_lock_free(lock);
  }
}

TEST(past_the_deadline_it_is_lost_once_and_for_all) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]), *other = open_at(urls[i]);
    kv_lock *lock = new_lock(store, 1.5), *rival = new_lock(other, 5);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    ask_acquire(rival, -1, 9);
    WAIT_FOR(steps(KV_QUEUE_WAIT) == 1);
    wait_lost(lock, -1, 3);
    wait_lost(lock, 0.01, 4);
    CHECK_EQ(next_tag(KV_TIMEOUT), 4);
    server_away(true);
    int64_t last_sure = kv_clock(), deadline = atomic_load(&lock->deadline);
    CHECK(deadline > 0 && deadline <= last_sure + KV_SECOND * 3 / 2);
    kv_reply *reply = next_reply_within(20);
    REQUIRE(reply);
    CHECK_EQ(kv_reply_tag(reply), 3);
    CHECK_EQ(kv_reply_code(reply), KV_OK);
    CHECK(strstr(kv_reply_message(reply), "not renewed in time"));
    kv_reply_free(reply);
    CHECK(kv_clock() >= deadline && kv_clock() < deadline + 10 * KV_SECOND);
    CHECK(!kv_lock_held(lock));
    CHECK_EQ(kv_lock_get_state(lock), KV_LOCK_LOST);
    CHECK(kv_lock_place(lock) == NULL);
    uint64_t token = kv_lock_token(lock);
    wait_lost(lock, -1, 5);
    CHECK_EQ(next_tag(KV_OK), 5);
    server_away(false);
    CHECK_EQ(next_tag(KV_OK), 9);
    CHECK(kv_lock_token(rival) > token);
    CHECK_EQ(release(lock), KV_LOST);
    CHECK_EQ(release(lock), KV_NOT_HELD);
    CHECK(kv_lock_held(rival));
    wait_lost(lock, -1, 6);
    CHECK_EQ(next_tag(KV_NOT_HELD), 6);
    CHECK_EQ(acquire(lock, 0), KV_TIMEOUT);
    CHECK_EQ(release(rival), KV_OK);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    CHECK(kv_lock_token(lock) > kv_lock_token(rival));
    close_store(store);
    close_store(other);
    kv_lock_free(lock);
    kv_lock_free(rival);
    check_nothing_left();
  }
}

TEST(a_renewal_that_hangs_past_the_deadline_loses) {
  kv_store *store = fresh(urls[0]);
  kv_lock *lock = new_lock(store, 0.3);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  fault(KV_LEASE_RENEW, HANG_APPLIED, 100);
  WAIT_FOR(!kv_lock_held(lock));
  WAIT_FOR(kv_lock_get_state(lock) == KV_LOCK_LOST);
  fault(KV_LEASE_RENEW, NO_FAULT, 0);
  CHECK_EQ(acquire(lock, 5), KV_OK); /* LOST is no end for the handle */
  close_store(store);
  kv_lock_free(lock);
  check_nothing_left();
}

TEST(a_lock_that_the_server_took_away_is_lost) {
  for (int i = 0; i < 4; i++) {
    kv_store *store = fresh(urls[i % 2]);
    kv_lock *lock = new_lock(store, 0.5);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    wait_lost(lock, 10, 3);
    if (i < 2) end_leases();
    else end_entries();
    CHECK_EQ(next_tag(KV_OK), 3);
    CHECK(!kv_lock_held(lock));
    CHECK_EQ(kv_lock_get_state(lock), KV_LOCK_LOST);
    close_store(store);
    kv_lock_free(lock);
    check_nothing_left();
  }
}

TEST(a_release_tells_that_the_entry_was_gone) {
  kv_store *store = fresh(urls[0]);
  kv_lock *lock = new_lock(store, 30);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  end_entries();
  CHECK_EQ(release(lock), KV_LOST);
  CHECK_EQ(kv_lock_get_state(lock), KV_LOCK_FREE);
  close_store(store);
  kv_lock_free(lock);
  check_nothing_left();
}

TEST(a_release_whose_answer_was_lost_is_done) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lock *lock = new_lock(store, 30);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    fault(KV_QUEUE_LEAVE, LOSE_ANSWER, 1);
    CHECK_EQ(release(lock), KV_OK);
    close_store(store);
    kv_lock_free(lock);
    check_nothing_left();
  }
}

/* The first request may arrive after the second one, and then meets whatever stands under the same lease. */
TEST(a_leave_that_was_repeated_costs_the_lease) {
  static const enum fault_type types[] = {NO_FAULT, LOSE_ANSWER, LOSE_REQUEST};
  for (size_t i = 0; i < 3; i++) {
    kv_store *store = fresh(urls[0]);
    kv_lock *lock = new_lock(store, 30);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    if (i) fault(KV_QUEUE_LEAVE, types[i], 1);
    CHECK_EQ(release(lock), KV_OK);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    CHECK_EQ(steps(KV_LEASE_GRANT), i ? 2 : 1);
    close_store(store);
    kv_lock_free(lock);
    check_nothing_left();
  }
}

TEST(a_release_without_an_answer_is_unknown_and_goes_on) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lock *lock = new_lock(store, 30);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    server_away(true);
    CHECK_EQ(kv_lock_release(lock, queue, 0.1, 2, NULL, NULL), KV_OK);
    CHECK_EQ(next_tag(KV_UNKNOWN), 2);
    CHECK(!kv_lock_held(lock));
    CHECK_EQ(entries_there(), 1);
    server_away(false);
    WAIT_FOR(entries_there() == 0);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    close_store(store);
    kv_lock_free(lock);
    check_nothing_left();
  }
}

TEST(a_release_that_is_denied_is_told) {
  kv_store *store = fresh(urls[0]);
  kv_lock *lock = new_lock(store, 30);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  fault(KV_QUEUE_LEAVE, DENY, 1);
  CHECK_EQ(release(lock), KV_DENIED);
  WAIT_FOR(leases_there() == 0); /* the lease goes instead, and the entry with it */
  CHECK_EQ(entries_there(), 0);
  close_store(store);
  kv_lock_free(lock);
}

TEST(a_release_ends_with_the_lease) {
  kv_store *store = fresh(urls[0]);
  kv_lock *lock = new_lock(store, 1.5);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  server_away(true);
  CHECK_EQ(kv_lock_release(lock, queue, 600, 2, NULL, NULL), KV_OK);
  CHECK_EQ(next_code(), KV_UNKNOWN); /* not after the time of the release */
  CHECK_EQ(kv_lock_get_state(lock), KV_LOCK_FREE);
  server_away(false);
  CHECK_EQ(acquire(lock, 20), KV_OK);
  close_store(store);
  kv_lock_free(lock);
  check_nothing_left();
}

/* ------------------------------------------------------------------ handles and closing */

TEST(a_held_lock_outlives_its_handle) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]), *other = open_at(urls[i]);
    kv_lock *lock = new_lock(store, 1.2), *rival = new_lock(other, 5);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    kv_lock_free(lock);
    WAIT_FOR(steps(KV_LEASE_RENEW) >= 4); /* past its first deadline */
    CHECK_EQ(acquire(rival, 0), KV_TIMEOUT);
    ask_acquire(rival, 10, 9);
    WAIT_FOR(steps(KV_QUEUE_WAIT) == 1);
    close_store(store);
    CHECK_EQ(next_tag(KV_OK), 9);
    close_store(other);
    kv_lock_free(rival);
    check_nothing_left();
  }
}

TEST(a_lock_without_a_handle_is_freed_when_lost) {
  kv_store *store = fresh(urls[0]);
  kv_lock *lock = new_lock(store, 1.5);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  kv_lock_free(lock);
  end_leases();
  WAIT_FOR(steps(KV_LEASE_RENEW) > 0);
  sleep_ms(20);
  CHECK_EQ(entries_there(), 0);
  close_store(store);
}

TEST(handles_may_be_freed_at_any_time) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lock_free(new_lock(store, 5)); /* before the store was started */
    kv_lock *used = new_lock(store, 5), *unused = new_lock(store, 5), *held = new_lock(store, 5);
    CHECK_EQ(acquire(used, 5), KV_OK);
    CHECK_EQ(release(used), KV_OK);
    CHECK_EQ(acquire(held, 5), KV_OK);
    close_store(store); /* frees the store too */
    check_nothing_left();
    CHECK(!kv_lock_held(held));
    CHECK_EQ(kv_lock_get_state(held), KV_LOCK_FREE);
    kv_lock_free(used);
    kv_lock_free(unused);
    kv_lock_free(held);
    kv_lock_free(NULL);
  }
}

TEST(closing_answers_and_ends_in_time) {
  static const enum fault_type types[] = {NO_FAULT, HANG, HANG_APPLIED, REFUSE, LOSE_ANSWER};
  for (size_t type = 0; type < 5; type++) {
    int64_t quickest = KV_NEVER;
    for (int i = 0; i < 4; i++) {
      kv_store *store = fresh(urls[i % 2]), *other = open_at(urls[i % 2]);
      kv_lock *held = new_lock(store, 30), *waiting = new_lock(store, 30), *rival = new_lock(other, 30);
      CHECK_EQ(acquire(held, 5), KV_OK);
      ask_acquire(waiting, -1, 7);
      wait_lost(held, -1, 8);
      WAIT_FOR(steps(KV_QUEUE_WAIT) == 1);
      fault(KV_QUEUE_LEAVE, types[type], 1000);
      int64_t before = kv_clock();
      kv_close(store);
      uint64_t tags = next_tag(KV_CLOSED);
      tags += next_tag(KV_CLOSED);
      CHECK_EQ(tags, 15);
      int64_t took = kv_clock() - before;
      if (took < quickest) quickest = took;
      CHECK(kv_close_wait(store, 10));
      CHECK_EQ(leases_there(), 0); /* what could not leave has gone with its lease */
      CHECK_EQ(entries_there(), 0);
      fault(KV_QUEUE_LEAVE, NO_FAULT, 0);
      CHECK_EQ(acquire(rival, 10), KV_OK);
      kv_store_free(store);
      close_store(other);
      kv_lock_free(held);
      kv_lock_free(waiting);
      kv_lock_free(rival);
      check_nothing_left();
    }
    CHECK(quickest < KV_CLOSE_GRACE / 2); /* the answers do not wait for the leaves */
  }
}

TEST(a_child_process_holds_nothing) {
  kv_store *store = fresh(urls[0]);
  kv_lock *lock = new_lock(store, 5);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  pid_t child = fork();
  if (child == 0) {
    bool right = !kv_lock_held(lock) && kv_lock_get_state(lock) == KV_LOCK_FREE && !kv_lock_place(lock);
    right = right && kv_lock_acquire(lock, queue, 0, 1, NULL, NULL) == KV_CLOSED;
    right = right && kv_lock_release(lock, queue, 0, 1, NULL, NULL) == KV_CLOSED;
    kv_lock_free(lock);
    kv_store_free(store);
    _exit(right ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(kv_lock_held(lock));
  CHECK_EQ(release(lock), KV_OK);
  close_store(store);
  kv_lock_free(lock);
}

/* ------------------------------------------------------------------ many */

TEST(a_thousand_locks) {
  kv_store *store = fresh(urls[0]);
  static kv_lock *locks[1000];
  for (int n = 0; n < 1000; n++) {
    char name[32];
    kv_lock_options options = {.name = {name, (size_t)snprintf(name, sizeof name, "many/%d", n)}, .ttl = 3};
    locks[n] = kv_lock_new(store, &options, NULL);
    REQUIRE(locks[n]);
    ask_acquire(locks[n], -1, 1);
  }
  for (int n = 0; n < 1000; n++) CHECK_EQ(next_code(), KV_OK);
  WAIT_FOR(steps(KV_LEASE_RENEW) >= 3500); /* all are past their first deadlines */
  for (int n = 0; n < 1000; n++) CHECK(kv_lock_held(locks[n]));
  for (int n = 0; n < 1000; n++) kv_lock_free(locks[n]);
  close_store(store);
  CHECK_EQ(leases_there(), 0);
  check_nothing_left();
}

/* Random users, faults and cancels on one name: at most one holds at a time, tokens rise, nothing is left. */
struct user {
  const char *url;
  unsigned seed;
  int rounds;
  kv_code worst;
};

static atomic_int holders_now;
static atomic_uint_fast64_t highest_token;
static atomic_int acquired, broken;

static kv_reply *wait_for_tag(kv_queue *own, uint64_t tag) {
  for (;;) {
    kv_reply *reply = kv_queue_next(own);
    if (!reply) {
      if (kv_queue_wait(own, 30) == 0) return NULL;
      continue;
    }
    if (kv_reply_tag(reply) == tag) return reply;
    kv_reply_free(reply);
  }
}

static kv_code wait_for_code(kv_queue *own, uint64_t tag) {
  kv_reply *reply = wait_for_tag(own, tag);
  kv_code code = reply ? kv_reply_code(reply) : KV_CODE_COUNT;
  kv_reply_free(reply);
  return code;
}

static void hold_for_a_while(kv_lock *lock, unsigned *seed) {
  if (!kv_lock_held(lock)) return;
  if (atomic_fetch_add(&holders_now, 1) != 0) atomic_fetch_add(&broken, 1);
  uint64_t token = kv_lock_token(lock);
  if (token <= atomic_load(&highest_token)) atomic_fetch_add(&broken, 1);
  atomic_store(&highest_token, token);
  atomic_fetch_add(&acquired, 1);
  if (rand_r(seed) % 4 == 0) sleep_ms(1);
  atomic_fetch_sub(&holders_now, 1);
}

static void *use_lock(void *argument) {
  struct user *user = argument;
  kv_queue *own = kv_queue_new(NULL);
  kv_store *store = kv_open(user->url, NULL, NULL);
  kv_lock_options options = {.name = KV_TEXT("soak"), .ttl = 20};
  kv_lock *lock = kv_lock_new(store, &options, NULL);
  for (int n = 1; n <= user->rounds; n++) {
    uint64_t id = 0, tag = (uint64_t)n * 2;
    double timeout = rand_r(&user->seed) % 3 == 0 ? 0.01 : -1;
    if (kv_lock_acquire(lock, own, timeout, tag, &id, NULL) != KV_OK) break;
    if (rand_r(&user->seed) % 4 == 0) kv_cancel(own, id);
    kv_code code = wait_for_code(own, tag);
    if (code == KV_OK) {
      hold_for_a_while(lock, &user->seed);
      kv_lock_release(lock, own, 20, tag + 1, NULL, NULL);
      code = wait_for_code(own, tag + 1);
    }
    bool fine = code == KV_OK || code == KV_CANCELLED || code == KV_TIMEOUT;
    if (!fine) user->worst = code;
    if (rand_r(&user->seed) % 16 == 0) {
      kv_lock_free(lock);
      lock = kv_lock_new(store, &options, NULL);
    }
  }
  kv_lock_free(lock);
  kv_close(store);
  if (!kv_close_wait(store, 20)) atomic_fetch_add(&broken, 1);
  kv_store_free(store);
  kv_queue_free(own);
  return NULL;
}

TEST(users_faults_and_cancels_at_random) {
  enum { USERS = 6 };
  static const kv_kind kinds[] = {KV_LEASE_GRANT, KV_QUEUE_JOIN, KV_QUEUE_AHEAD, KV_QUEUE_WAIT, KV_QUEUE_CLAIM,
                                  KV_QUEUE_LEAVE, KV_LEASE_REVOKE};
  static const enum fault_type types[] = {REFUSE, LOSE_ANSWER, LOSE_REQUEST};
  pthread_t threads[USERS];
  struct user users[USERS];
  unsigned seed = (unsigned)getpid();
  kv_store *store = fresh(urls[0]); /* registers the drivers, too */
  printf("seed %u\n", seed);
  for (int n = 0; n < USERS; n++) {
    users[n] = (struct user){.url = urls[n % 2], .seed = seed + (unsigned)n, .rounds = 60, .worst = KV_OK};
    pthread_create(&threads[n], NULL, use_lock, &users[n]);
  }
  for (int n = 0; n < 150; n++) {
    fault(kinds[rand_r(&seed) % 7], types[rand_r(&seed) % 3], 1 + rand_r(&seed) % 2);
    sleep_ms(2);
  }
  for (int n = 0; n < USERS; n++) {
    pthread_join(threads[n], NULL);
    CHECK_STR(kv_code_text(users[n].worst), "ok");
  }
  CHECK_EQ(atomic_load(&broken), 0);
  CHECK(atomic_load(&acquired) > 50);
  check_nothing_left();
  close_store(store);
}

TEST(the_queue_is_given_up) {
  kv_queue_free(queue);
  queue = NULL;
}

CHECK_MAIN()
