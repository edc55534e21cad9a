/*
 * test_local_memory.c - the embedded store, and the core around it, when memory runs out: each allocation of a
 * session fails once, in turn, on whatever thread it is made. What is asked then may fail, and says so; nothing
 * crashes or hangs, and everything works again as soon as there is memory.
 *
 * Linked with --wrap for the allocators (Makefile): LMDB's own and the C library's are not concerned.
 */
#include "local_store.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *block, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *block, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

static atomic_long until_failure = -1; /* allocations that still succeed before one fails; negative: none will */

static bool fails(void) {
  long left = atomic_load(&until_failure);
  while (left >= 0)
    if (atomic_compare_exchange_weak(&until_failure, &left, left - 1)) return left == 0;
  return false;
}

void *__wrap_malloc(size_t size) {
  return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size) {
  return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *block, size_t size) {
  return fails() ? NULL : __real_realloc(block, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) {
  return fails() ? NULL : __real_aligned_alloc(alignment, size);
}

/* ------------------------------------------------------------------ a session */

static void use_watch(kv_store *store) {
  kv_watch *watch = NULL;
  kv_watch_options options = {.key = text("d"), .tree = true, .previous = true};
  if (kv_watch_open(store, queue, &options, WATCH_TAG, &watch, &last_error) != KV_OK) return;
  double until = seconds_now() + 5;
  const char *event = "";
  while (!kv_watch_synced(watch) && *event != '!' && seconds_now() < until) event = next_event(watch, 0.01);
  put(store, "d/b", "2");
  bool told = last.code != KV_OK;
  while (!told && *event != '!' && seconds_now() < until) {
    event = next_event(watch, 0.2);
    told = strncmp(event, "d/b=2@", 6) == 0;
  }
  CHECK(told || *event == '!'); /* it came, or the watch said that it has ended */
  kv_watch_free(watch);
}

/* A release that could not begin leaves the lock held. */
static void release_surely(kv_lock *lock) {
  if (release(lock) != KV_OK && kv_lock_held(lock)) CHECK_EQ(release(lock), KV_OK);
}

static void use_locks(kv_store *store) {
  kv_lock_options options = {.name = text("l"), .ttl = 30};
  kv_lock *one = kv_lock_new(store, &options, &last_error), *two = kv_lock_new(store, &options, &last_error);
  uint64_t tag = ++last_tag;
  if (one && two && acquire(one, 5) == KV_OK) {
    kv_code waiting = kv_lock_acquire(two, queue, 5, tag, NULL, &last_error);
    release_surely(one);
    if (waiting == KV_OK && keep_reply(next_reply(tag)) == KV_OK) release_surely(two);
    CHECK(waiting != KV_OK || last.code != KV_CODE_COUNT);
  }
  kv_lock_free(one);
  kv_lock_free(two);
}

static void use_leases(kv_store *store) {
  kv_lease *lease = NULL;
  uint64_t tag = ++last_tag;
  if (kv_lease_open(store, queue, 30, 5, tag, NULL, &lease, &last_error) != KV_OK) return;
  if (keep_reply(next_reply(tag)) == KV_OK) put_lease(store, "leased", "1", lease);
  tag = ++last_tag;
  if (kv_lease_close(lease, queue, 5, tag, NULL, &last_error) == KV_OK) keep_reply(next_reply(tag));
  kv_lease_free(lease);
}

static void use_store(kv_store *store) {
  put(store, "d/a", "1");
  if (last.code == KV_OK) {
    const char *value = get(store, "d/a");
    CHECK(last.code == KV_OK ? value && strcmp(value, "1") == 0 : true);
  }
  put_ttl(store, "short", "1", 20);
  kv_request keep = {.kind = KV_PUT, .key = text("kept"), .value = text("1"), .flags = KV_KEEP_ALIVE};
  ask(store, &keep);
  list(store, "");
  kv_request shallow = {.kind = KV_LIST, .key = text(""), .flags = KV_SHALLOW};
  list_with(store, &shallow);
  kv_txn *txn = kv_txn_new(store, NULL);
  if (txn) {
    kv_txn_put(txn, text("t/a"), text("1"), 0, 0, NULL, NULL);
    kv_txn_delete(txn, text("d/a"), NULL);
    kv_request commit = {.kind = KV_TXN, .txn = txn};
    ask(store, &commit);
    kv_txn_free(txn);
  }
  use_watch(store);
  use_locks(store);
  use_leases(store);
  kv_request tree = {.kind = KV_DELETE_TREE, .key = text("d")};
  ask(store, &tree);
}

TEST(every_allocation_can_fail_once) {
  long failures = 0;
  for (long n = 0; n < 2000; n++) {
    new_folder();
    kv_store *store = open_store("?sync=none");
    REQUIRE(store != NULL);
    atomic_store(&until_failure, n);
    use_store(store);
    bool failed = atomic_exchange(&until_failure, -1) < 0;
    CHECK_EQ(put(store, "after", "1"), KV_OK);
    CHECK_STR(get(store, "after"), "1");
    kv_lock *lock = new_lock(store, "l", 30);
    CHECK_EQ(acquire(lock, 10), KV_OK); /* nothing of those before is left in line */
    CHECK_EQ(release(lock), KV_OK);
    kv_lock_free(lock);
    close_store(store);
    if (atomic_load(&check_failures)) {
      fprintf(stderr, "when allocation %ld failed\n", n);
      return;
    }
    if (!failed) break;
    failures++;
  }
  CHECK(failures > 50 && failures < 2000);
}

CHECK_MAIN()
