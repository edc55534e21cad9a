/*
 * test_election.c - elections on the lock machine, against a server in memory: the two steps that locks do not have,
 * each fault at them, giving up at them. What is always checked in the end: no entry, key or lease is left on the
 * server.
 */
#include "lock_server.h"

/* ------------------------------------------------------------------ helpers */

static kv_lock *new_election(kv_store *store, double ttl) {
  kv_error error = {0};
  kv_lock_options options = {.name = KV_TEXT("jobs/a"), .ttl = ttl};
  kv_lock *election = kv_election_new(store, &options, &error);
  if (!election) fprintf(stderr, "election: %s\n", error.message);
  return election;
}

static uint64_t ask_campaign(kv_lock *election, const char *value, double timeout, uint64_t tag) {
  kv_error error = {0};
  uint64_t id = 0;
  CHECK_EQ(kv_election_campaign(election, queue, text_of(value), timeout, tag, &id, &error), KV_OK);
  return id;
}

static kv_code campaign(kv_lock *election, double timeout) {
  ask_campaign(election, "me", timeout, 1);
  return next_code();
}

static kv_code resign(kv_lock *election) {
  kv_error error = {0};
  CHECK_EQ(kv_election_resign(election, queue, 5, 2, NULL, &error), KV_OK);
  return next_code();
}

static void check_no_key_left(void) {
  check_nothing_left();
  CHECK_EQ(keys_there(), 0);
}

/* Who leads, as everybody reads it: "" when nobody does. */
static uint64_t leader(kv_lock *election, char *value) {
  kv_pair pair;
  uint64_t token = 0;
  *value = '\0';
  CHECK_EQ(kv_lock_holder(election, queue, 5, 3, NULL, NULL), KV_OK);
  kv_reply *reply = next_reply_within(20);
  if (!reply) return 0;
  CHECK_EQ(kv_reply_code(reply), KV_OK);
  CHECK_EQ(kv_reply_kind(reply), KV_LEADER);
  if (kv_reply_pair(reply, &pair)) {
    token = pair.revision;
    memcpy(value, pair.value.data, pair.value.size);
    value[pair.value.size] = '\0';
  }
  kv_reply_free(reply);
  return token;
}

/* ------------------------------------------------------------------ the plain way */

TEST(the_leader_is_seen_by_all) {
  for (int i = 0; i < 2; i++) {
    char value[64];
    kv_store *store = fresh(urls[i]), *other = open_at(urls[i]);
    kv_lock *election = new_election(store, 5), *reader = new_election(other, 5);
    REQUIRE(election && reader);
    CHECK_EQ(leader(reader, value), 0);
    CHECK_EQ(campaign(election, 5), KV_OK);
    CHECK(kv_lock_held(election));
    CHECK_STR(server.entries[0].name, ".kv/election/app/jobs/a");
    CHECK_STR(server.keys[0].key, ".kv/leader/app%2Fjobs%2Fa");
    CHECK_EQ(leader(reader, value), kv_lock_token(election));
    CHECK_STR(value, "me");
    ask_campaign(reader, "you", -1, 7);
    WAIT_FOR(steps(KV_QUEUE_WAIT) == 1);
    CHECK_EQ(kv_election_resign(election, queue, 5, 8, NULL, NULL), KV_OK);
    CHECK_EQ(next_code(), KV_OK);
    CHECK_EQ(next_code(), KV_OK);
    CHECK(!kv_lock_held(election));
    CHECK(kv_lock_token(reader) > kv_lock_token(election));
    CHECK_EQ(leader(election, value), kv_lock_token(reader));
    CHECK_STR(value, "you");
    CHECK_EQ(resign(reader), KV_OK);
    CHECK_EQ(resign(reader), KV_NOT_HELD);
    CHECK_EQ(leader(reader, value), 0);
    CHECK_EQ(steps(KV_TXN), 4);
    kv_lock_free(election);
    kv_lock_free(reader);
    close_store(store);
    close_store(other);
    check_no_key_left();
  }
}

TEST(what_is_no_leader_is_not_read_as_one) {
  static const struct {
    const char *record;
    uint64_t token;
  } cases[] = {{"", 0},
               {"000000000000000", 0},
               {"0000000000000000", 0},
               {"000000000000001g", 0},
               {"000000000000001F", 0},
               {"0020000000000000", 0},
               {"001fffffffffffff", (UINT64_C(1) << 53) - 1},
               {"000000000000002avalue", 42}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    uint64_t token = 0;
    kv_slice value = {NULL, 0};
    CHECK_EQ(kv_leader_read(text_of(cases[i].record), &token, &value), cases[i].token != 0);
    CHECK_EQ(token, cases[i].token);
    if (token == 42) CHECK(value.size == 5 && memcmp(value.data, "value", 5) == 0);
  }
}

TEST(bad_arguments_are_refused) {
  kv_error error = {0};
  char long_name[KV_KEY_MAX + 1];
  memset(long_name, '/', sizeof long_name);
  for (size_t i = 0; i < sizeof long_name; i += 2) long_name[i] = 'x';
  long_name[KV_KEY_MAX - 20] = '\0';
  kv_store *store = fresh(urls[0]);
  kv_lock_options options = {.name = text_of(long_name)};
  CHECK(!kv_election_new(store, &options, &error));
  CHECK_EQ(error.code, KV_INVALID);
  options = (kv_lock_options){.name = KV_TEXT("a"), .interop = "fake"};
  CHECK(!kv_election_new(store, &options, &error));
  CHECK_EQ(error.code, KV_UNSUPPORTED);
  options = (kv_lock_options){.name = KV_TEXT("a")};
  kv_lock *lock = kv_lock_new(store, &options, &error), *election = kv_election_new(store, &options, &error);
  kv_watch *watch = NULL;
  CHECK_EQ(kv_election_campaign(lock, queue, KV_TEXT("x"), 1, 1, NULL, &error), KV_INVALID);
  CHECK_EQ(kv_election_resign(lock, queue, 1, 1, NULL, &error), KV_INVALID);
  CHECK_EQ(kv_election_observe(lock, queue, 1, &watch, &error), KV_INVALID);
  char large[50] = {0};
  CHECK_EQ(kv_election_campaign(election, queue, (kv_slice){large, sizeof large}, 1, 1, NULL, &error), KV_TOO_LARGE);
  kv_store *plain = open_at("nolocks://here");
  CHECK(!kv_election_new(plain, &options, &error));
  CHECK_EQ(error.code, KV_UNSUPPORTED);
  close_store(plain);
  close_store(store);
  CHECK_EQ(kv_election_campaign(election, queue, KV_TEXT("x"), 1, 1, NULL, &error), KV_CLOSED);
  CHECK_EQ(kv_election_observe(election, queue, 1, &watch, &error), KV_CLOSED);
  kv_lock_free(lock);
  kv_lock_free(election);
}

/* ------------------------------------------------------------------ faults */

static void win_with(const char *url, enum fault_type type, int times) {
  char value[64];
  kv_store *store = fresh(url);
  kv_lock *election = new_election(store, 5);
  fault(KV_TXN, type, times);
  CHECK_EQ(campaign(election, 10), KV_OK);
  CHECK_EQ(leader(election, value), kv_lock_token(election));
  CHECK_EQ(resign(election), KV_OK);
  CHECK_EQ(leader(election, value), 0);
  kv_lock_free(election);
  close_store(store);
  check_no_key_left();
}

TEST(an_announcement_is_repeated_until_it_is_certain) {
  static const enum fault_type types[] = {REFUSE, LOSE_ANSWER, LOSE_REQUEST, SAY_LOST};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    for (int url = 0; url < 2; url++) win_with(urls[url], types[i], i == 3 ? 1 : 2);
}

TEST(an_announcement_that_is_denied_is_told) {
  kv_store *store = fresh(urls[0]);
  kv_lock *election = new_election(store, 5);
  fault(KV_TXN, DENY, 1);
  CHECK_EQ(campaign(election, 5), KV_DENIED);
  CHECK_EQ(kv_lock_get_state(election), KV_LOCK_FREE);
  CHECK_EQ(campaign(election, 5), KV_OK);
  CHECK_EQ(resign(election), KV_OK);
  kv_lock_free(election);
  close_store(store);
  check_no_key_left();
}

/* The entry goes between the claim and the announcement: everything begins again. */
TEST(who_is_not_in_line_any_more_announces_nothing) {
  kv_store *store = fresh(urls[0]);
  kv_lock *election = new_election(store, 5);
  fault(KV_TXN, LOSE_REQUEST, 1);
  ask_campaign(election, "me", 10, 1);
  WAIT_FOR(steps(KV_TXN) >= 1);
  end_entries();
  CHECK_EQ(next_code(), KV_OK);
  CHECK_EQ(entries_there(), 1);
  CHECK_EQ(keys_there(), 1);
  CHECK_EQ(resign(election), KV_OK);
  kv_lock_free(election);
  close_store(store);
  check_no_key_left();
}

TEST(a_lease_that_ends_while_announcing_costs_the_place_only) {
  kv_store *store = fresh(urls[0]);
  kv_lock *election = new_election(store, 1.5);
  fault(KV_TXN, HANG, 1);
  ask_campaign(election, "me", 10, 1);
  WAIT_FOR(steps(KV_TXN) == 1);
  end_leases();
  CHECK_EQ(next_code(), KV_OK);
  CHECK(kv_lock_held(election));
  CHECK_EQ(resign(election), KV_OK);
  kv_lock_free(election);
  close_store(store);
  check_no_key_left();
}

static void give_up_with(const char *url, enum fault_type type, bool close) {
  kv_store *store = fresh(url);
  kv_lock *election = new_election(store, 5);
  fault(KV_TXN, type, 1);
  uint64_t id = ask_campaign(election, "me", 20, 1);
  WAIT_FOR(steps(KV_TXN) == 1);
  if (close) kv_close(store);
  else kv_cancel(queue, id);
  CHECK_EQ(next_code(), close ? KV_CLOSED : KV_CANCELLED);
  if (close) {
    kv_lock_free(election);
    close_store(store);
    sleep_ms(30); /* what is applied late has been */
    check_no_key_left();
    return;
  }
  WAIT_FOR(entries_there() == 0);
  CHECK(!kv_lock_held(election));
  sleep_ms(30);
  WAIT_FOR(keys_there() == 0);
  CHECK_EQ(campaign(election, 10), KV_OK); /* the handle is as good as new */
  CHECK_EQ(resign(election), KV_OK);
  kv_lock_free(election);
  close_store(store);
  check_no_key_left();
}

TEST(giving_up_an_announcement_leaves_nothing) {
  static const enum fault_type types[] = {HANG, HANG_APPLIED, APPLY_LATE};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
    give_up_with(urls[0], types[i], false);
    give_up_with(urls[0], types[i], true);
    give_up_with(urls[1], types[i], false);
    give_up_with(urls[1], types[i], true);
  }
}

static void resign_with(enum fault_type type, int times, kv_code wanted) {
  kv_store *store = fresh(urls[0]);
  kv_lock *election = new_election(store, 5);
  CHECK_EQ(campaign(election, 5), KV_OK);
  fault(KV_TXN, type, times);
  CHECK_EQ(resign(election), wanted);
  CHECK(!kv_lock_held(election));
  WAIT_FOR(keys_there() == 0);
  CHECK_EQ(campaign(election, 10), KV_OK);
  CHECK_EQ(resign(election), KV_OK);
  kv_lock_free(election);
  close_store(store);
  check_no_key_left();
}

TEST(a_retraction_is_repeated_or_the_key_goes_with_the_lease) {
  resign_with(REFUSE, 2, KV_OK);
  resign_with(LOSE_ANSWER, 2, KV_OK);
  resign_with(LOSE_REQUEST, 2, KV_OK);
  resign_with(DENY, 1, KV_OK);
  resign_with(SAY_LOST, 1, KV_OK);
}

TEST(a_leader_whose_lease_has_ended_has_lost) {
  kv_store *store = fresh(urls[0]);
  kv_lock *election = new_election(store, 1.5);
  CHECK_EQ(campaign(election, 5), KV_OK);
  CHECK_EQ(kv_lock_wait_lost(election, queue, 10, 4, NULL, NULL), KV_OK);
  end_leases();
  CHECK_EQ(next_code(), KV_OK);
  CHECK(!kv_lock_held(election));
  CHECK_EQ(kv_lock_get_state(election), KV_LOCK_LOST);
  CHECK_EQ(resign(election), KV_LOST);
  CHECK_EQ(campaign(election, 5), KV_OK);
  kv_lock_free(election); /* it leads on without a handle, until the store closes */
  CHECK_EQ(keys_there(), 1);
  close_store(store);
  check_no_key_left();
}

/* The lease ends while the key is being removed, which then goes with it. */
TEST(a_resignation_ends_with_the_lease) {
  kv_store *store = fresh(urls[0]);
  kv_lock *election = new_election(store, 1.5);
  CHECK_EQ(campaign(election, 5), KV_OK);
  fault(KV_TXN, HANG, 100);
  fault(KV_QUEUE_LEAVE, HANG, 100);
  fault(KV_LEASE_REVOKE, REFUSE, 3);
  kv_code code = resign(election);
  CHECK(code == KV_UNKNOWN || code == KV_LOST);
  kv_lock_free(election);
  close_store(store);
  check_no_key_left();
}

CHECK_MAIN()
