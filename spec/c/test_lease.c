/*
 * test_lease.c - leases, the store's session and late expiry against the server in memory of lock_server.h: what is
 * kept alive, what is lost and when that is told, and that nothing is left on the server in the end.
 */
#include "lock_server.h"

#include "recipes/recipes.h"

/* ------------------------------------------------------------------ helpers */

static kv_lease *ask_lease(kv_store *store, double ttl, double timeout, uint64_t *id) {
  kv_lease *lease = NULL;
  CHECK_EQ(kv_lease_open(store, queue, ttl, timeout, 1, id, &lease, NULL), KV_OK);
  return lease;
}

static kv_lease *open_lease(kv_store *store, double ttl) {
  kv_lease *lease = ask_lease(store, ttl, 5, NULL);
  CHECK_EQ(next_code(), KV_OK);
  return lease;
}

static kv_code close_lease(kv_lease *lease, double timeout) {
  CHECK_EQ(kv_lease_close(lease, queue, timeout, 2, NULL, NULL), KV_OK);
  return next_code();
}

static void wait_lost(kv_lease *lease) {
  CHECK_EQ(kv_lease_wait_lost(lease, queue, 20, 3, NULL, NULL), KV_OK);
}

static uint64_t ask_put(kv_store *store, const char *key, kv_request request) {
  uint64_t id = 0;
  kv_reply *reply = NULL;
  request.kind = KV_PUT;
  request.key = text_of(key);
  CHECK_EQ(kv_submit(store, queue, &request, 4, &id, &reply, NULL), KV_OK);
  return id;
}

static kv_code put(kv_store *store, const char *key, kv_request request) {
  ask_put(store, key, request);
  return next_code();
}

static const kv_request keep_alive = {.flags = KV_KEEP_ALIVE};

/* ------------------------------------------------------------------ public leases */

TEST(a_lease_is_renewed_until_it_is_given_back) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lease *lease = open_lease(store, 1.2);
    CHECK(kv_lease_alive(lease));
    CHECK(kv_lease_ttl(lease) == 1.2);
    CHECK_EQ(put(store, "a", (kv_request){.lease = lease}), KV_OK);
    CHECK_EQ(put(store, "b", (kv_request){.lease = lease}), KV_OK);
    WAIT_FOR(steps(KV_LEASE_RENEW) >= 6); /* twice its time */
    CHECK(kv_lease_alive(lease));
    CHECK_EQ(keys_there(), 2);
    wait_lost(lease);
    CHECK_EQ(kv_lease_close(lease, queue, 5, 2, NULL, NULL), KV_OK);
    CHECK_EQ(next_code(), KV_NOT_HELD); /* wait_lost first */
    CHECK_EQ(next_code(), KV_OK);
    CHECK(!kv_lease_alive(lease));
    CHECK_EQ(keys_there(), 0);
    CHECK_EQ(close_lease(lease, 5), KV_NOT_HELD);
    kv_error error;
    kv_reply *reply;
    kv_request request = {.kind = KV_PUT, .key = text_of("a"), .lease = lease};
    CHECK_EQ(kv_submit(store, queue, &request, 1, NULL, &reply, &error), KV_NOT_HELD);
    kv_lease_free(lease);
    close_store(store);
    check_nothing_left();
  }
}

TEST(a_lease_that_the_server_took_away_is_lost) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lease *lease = open_lease(store, 0.3);
    wait_lost(lease);
    end_leases();
    CHECK_EQ(next_code(), KV_OK);
    CHECK(!kv_lease_alive(lease));
    CHECK_EQ(close_lease(lease, 5), KV_LOST);
    wait_lost(lease);
    CHECK_EQ(next_code(), KV_OK);
    kv_lease_free(lease);
    close_store(store);
    check_nothing_left();
  }
}

TEST(a_lease_that_cannot_be_renewed_is_lost_at_its_deadline) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lease *lease = open_lease(store, 1.2);
    wait_lost(lease);
    server_away(true);
    int64_t deadline = atomic_load(&lease->deadline);
    CHECK(deadline > 0 && deadline <= kv_clock() + KV_SECOND * 12 / 10);
    kv_reply *reply = next_reply_within(20);
    REQUIRE(reply);
    CHECK_EQ(kv_reply_code(reply), KV_OK);
    CHECK(strstr(kv_reply_message(reply), "not renewed in time"));
    kv_reply_free(reply);
    CHECK(!kv_lease_alive(lease));
    CHECK(kv_clock() >= deadline && kv_clock() < deadline + 10 * KV_SECOND);
    server_away(false);
    WAIT_FOR(leases_there() == 0);
    kv_lease_free(lease);
    close_store(store);
  }
}

TEST(a_grant_whose_answer_was_lost_is_one_lease) {
  static const enum fault_type types[] = {REFUSE, LOSE_ANSWER, LOSE_REQUEST};
  for (int i = 0; i < 2; i++) {
    for (int type = 0; type < 3; type++) {
      kv_store *store = fresh(urls[i]);
      fault(KV_LEASE_GRANT, types[type], 2);
      kv_lease *lease = open_lease(store, 5);
      CHECK_EQ(leases_there(), 1);
      CHECK_EQ(close_lease(lease, 5), KV_OK);
      kv_lease_free(lease);
      close_store(store);
      check_nothing_left();
    }
  }
}

TEST(an_open_that_is_given_up_leaves_nothing) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    server_away(true);
    kv_lease *lease = ask_lease(store, 5, 1, NULL); /* long enough that the reactor is not late, however loaded */
    CHECK_EQ(next_code(), KV_UNAVAILABLE);
    CHECK(!kv_lease_alive(lease));
    CHECK_EQ(close_lease(lease, 5), KV_NOT_HELD);
    kv_lease_free(lease);
    server_away(false);
    fault(KV_LEASE_GRANT, HANG_APPLIED, 100);
    lease = ask_lease(store, 5, 0.1, NULL);
    CHECK_EQ(next_code(), KV_TIMEOUT);
    kv_lease_free(lease);
    uint64_t id = 0;
    lease = ask_lease(store, 5, 5, &id);
    WAIT_FOR(leases_there() > 0);
    kv_cancel(queue, id);
    CHECK_EQ(next_code(), KV_CANCELLED);
    kv_lease_free(lease);
    lease = ask_lease(store, 5, 5, NULL);
    kv_lease_free(lease);
    CHECK_EQ(next_code(), KV_CLOSED);
    fault(KV_LEASE_GRANT, DENY, 1);
    lease = ask_lease(store, 5, 5, NULL);
    CHECK_EQ(next_code(), KV_DENIED);
    kv_lease_free(lease);
    WAIT_FOR(leases_there() == 0);
    close_store(store);
  }
}

TEST(a_close_without_an_answer_is_unknown_and_goes_on) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lease *lease = open_lease(store, 30);
    CHECK_EQ(put(store, "a", (kv_request){.lease = lease}), KV_OK);
    server_away(true);
    CHECK_EQ(close_lease(lease, 0.1), KV_UNKNOWN);
    CHECK(!kv_lease_alive(lease));
    CHECK_EQ(keys_there(), 1);
    server_away(false);
    WAIT_FOR(keys_there() == 0);
    kv_lease_free(lease);
    close_store(store);
    check_nothing_left();
  }
}

TEST(a_lease_outlives_its_handle_until_the_store_closes) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    kv_lease *lease = open_lease(store, 1.2);
    CHECK_EQ(put(store, "a", (kv_request){.lease = lease}), KV_OK);
    kv_lease_free(lease);
    WAIT_FOR(steps(KV_LEASE_RENEW) >= 4);
    CHECK_EQ(keys_there(), 1);
    lease = open_lease(store, 1.2);
    close_store(store);
    CHECK_EQ(keys_there(), 0);
    CHECK(!kv_lease_alive(lease));
    CHECK_EQ(kv_lease_close(lease, queue, 1, 1, NULL, NULL), KV_CLOSED);
    kv_lease_free(lease);
    check_nothing_left();
  }
}

/* ------------------------------------------------------------------ the store's session */

TEST(keys_that_are_kept_alive_share_one_session) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    for (int n = 0; n < 20; n++) {
      char key[16];
      snprintf(key, sizeof key, "k%d", n);
      ask_put(store, key, keep_alive);
    }
    for (int n = 0; n < 20; n++) CHECK_EQ(next_code(), KV_OK);
    CHECK_EQ(keys_there(), 20);
    CHECK_EQ(steps(KV_LEASE_GRANT), 1);
    CHECK_EQ(put(store, "k0", (kv_request){.value = KV_TEXT("stays")}), KV_OK);
    close_store(store);
    CHECK_EQ(keys_there(), 1);
    check_nothing_left();
  }
}

TEST(a_session_that_ended_unknown_to_us_is_made_again) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    CHECK_EQ(put(store, "a", keep_alive), KV_OK);
    for (int n = 0; n < 3; n++) {
      end_leases();
      CHECK_EQ(put(store, "b", keep_alive), KV_OK);
      CHECK_EQ(keys_there(), 1);
    }
    CHECK_EQ(steps(KV_LEASE_GRANT), 4);
    fault(KV_PUT, SAY_LOST, 100); /* a server that never knows it: not for ever */
    CHECK_EQ(put(store, "b", keep_alive), KV_LOST);
    close_store(store);
    check_nothing_left();
  }
}

TEST(a_session_that_is_lost_is_made_again) {
  for (int i = 0; i < 2; i++) {
    reset_server();
    kv_store *store = open_at(i ? "lockthread://here?session_ttl=1.2" : "lockfake://here?session_ttl=1.2");
    CHECK_EQ(put(store, "a", keep_alive), KV_OK);
    for (int n = 0; n < 4; n++) {
      int before = steps(KV_LEASE_RENEW);
      end_leases();
      WAIT_FOR(steps(KV_LEASE_RENEW) > before);
      CHECK_EQ(put(store, "a", keep_alive), KV_OK);
      CHECK_EQ(keys_there(), 1);
    }
    CHECK_EQ(steps(KV_LEASE_GRANT), 5);
    close_store(store);
    check_nothing_left();
  }
}

TEST(a_session_that_nobody_waits_for_any_more_is_given_back) {
  for (int i = 0; i < 2; i++) {
    kv_store *store = fresh(urls[i]);
    fault(KV_LEASE_GRANT, HANG_APPLIED, 1);
    uint64_t id = ask_put(store, "a", keep_alive);
    WAIT_FOR(leases_there() == 1);
    kv_cancel(queue, id);
    CHECK_EQ(next_code(), KV_CANCELLED);
    WAIT_FOR(leases_there() == 0);
    server_away(true);
    CHECK_EQ(put(store, "a", (kv_request){.flags = KV_KEEP_ALIVE, .timeout = 0.1}), KV_TIMEOUT);
    server_away(false);
    CHECK_EQ(put(store, "a", keep_alive), KV_OK);
    CHECK_EQ(leases_there(), 1);
    close_store(store);
    check_nothing_left();
  }
}

/* ------------------------------------------------------------------ late expiry */

static kv_store *late_server(void) {
  kv_store *store = fresh(urls[0]);
  server.ttl_late = true;
  return store;
}

TEST(a_server_that_is_late_is_helped) {
  kv_store *store = late_server();
  int64_t before = kv_clock();
  CHECK_EQ(put(store, "a", (kv_request){.ttl = 1}), KV_OK);
  CHECK_EQ(keys_there(), 1);
  WAIT_FOR(keys_there() == 0);
  CHECK(kv_clock() - before >= KV_SECOND);
  CHECK_EQ(steps(KV_DELETE), 1);
  close_store(store);
}

TEST(a_newer_write_is_never_removed) {
  kv_store *store = late_server();
  CHECK_EQ(put(store, "plain", (kv_request){.ttl = 1.5}), KV_OK);
  CHECK_EQ(put(store, "plain", (kv_request){.ttl = 0}), KV_OK);
  CHECK_EQ(put(store, "longer", (kv_request){.ttl = 1.5}), KV_OK);
  CHECK_EQ(put(store, "longer", (kv_request){.ttl = 30}), KV_OK);
  CHECK_EQ(put(store, "marker", (kv_request){.ttl = 1.6}), KV_OK);
  WAIT_FOR(keys_there() == 2);
  CHECK_EQ(steps(KV_DELETE), 2); /* of "plain", in vain, and of the marker */
  close_store(store);
  CHECK_EQ(keys_there(), 2);
}

TEST(a_late_delete_is_repeated) {
  static const enum fault_type types[] = {REFUSE, LOSE_ANSWER, LOSE_REQUEST};
  for (int type = 0; type < 3; type++) {
    kv_store *store = late_server();
    fault(KV_DELETE, types[type], 2);
    CHECK_EQ(put(store, "a", (kv_request){.ttl = 0.05}), KV_OK);
    WAIT_FOR(keys_there() == 0);
    close_store(store);
  }
}

TEST(many_keys_expire) {
  enum { MANY = 1500 };
  kv_store *store = late_server();
  for (int n = 0; n < MANY; n++) {
    char key[16];
    snprintf(key, sizeof key, "k%d", n);
    ask_put(store, key, (kv_request){.ttl = 0.3});
  }
  for (int n = 0; n < MANY; n++) CHECK_EQ(next_code(), KV_OK);
  WAIT_FOR(keys_there() == 0);
  CHECK_EQ(steps(KV_DELETE), MANY);
  close_store(store);
}

TEST(closing_leaves_expiry_to_the_server) {
  int64_t quickest = KV_NEVER;
  for (int n = 0; n < CLOSINGS; n++) {
    kv_store *store = late_server();
    fault(KV_DELETE, HANG, 1);
    CHECK_EQ(put(store, "now", (kv_request){.ttl = 0.02}), KV_OK);
    CHECK_EQ(put(store, "later", (kv_request){.ttl = 30}), KV_OK);
    WAIT_FOR(steps(KV_DELETE) == 1);
    close_store_timed(store, &quickest);
    CHECK_EQ(keys_there(), 2);
  }
  CHECK(quickest < KV_CLOSE_GRACE / 2);
}

TEST(the_queue_is_given_up) {
  kv_queue_free(queue);
  queue = NULL;
}

CHECK_MAIN()
