/*
 * failing_memory.h - each allocation of ours fails in turn, in lives with some of everything on a real server. The
 * linker gives us our own malloc() and the others (see the Makefile); those of other libraries do not fail, as libcurl
 * does not survive it. What we free is overwritten.
 */
#ifndef KV_FAILING_MEMORY_H
#define KV_FAILING_MEMORY_H

#include <malloc.h>
#include <stdatomic.h>

#include "etcd_server.h" /* for its ways of asking */

static atomic_bool counting;
static atomic_long fail_at, counted;

extern void *__real_malloc(size_t size);
extern void *__real_calloc(size_t count, size_t size);
extern void *__real_realloc(void *pointer, size_t size);
extern void __real_free(void *pointer);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *pointer, size_t size);
void __wrap_free(void *pointer);

static bool refused(void) {
  if (!atomic_load(&counting) || atomic_fetch_add(&counted, 1) + 1 != atomic_load(&fail_at)) return false;
  errno = ENOMEM;
  return true;
}

void *__wrap_malloc(size_t size) { return refused() ? NULL : __real_malloc(size); }
void *__wrap_calloc(size_t count, size_t size) { return refused() ? NULL : __real_calloc(count, size); }
void *__wrap_realloc(void *pointer, size_t size) { return refused() ? NULL : __real_realloc(pointer, size); }
void __wrap_free(void *pointer) {
  if (pointer) memset(pointer, 0xdd, malloc_usable_size(pointer));
  __real_free(pointer);
}

/* Take replies until `count` of those to requests came. */
static inline bool all_answered(int count) {
  for (double until = now() + 10; count > 0 && now() < until;) {
    kv_reply *reply = next_reply(until - now());
    count -= reply && kv_reply_kind(reply) != KV_WATCH_READY;
    kv_reply_free(reply);
  }
  return count == 0;
}

/* Some of everything; whether it goes well does not matter, but each request must be answered. Gets of few keys are
 * made at once, so that they share requests and answers. */
static inline void live(kv_store *store) {
  static const char *const keys[] = {"a", "b", "c/d"};
  const kv_request requests[] = {
    {.kind = KV_PUT, .key = KV_TEXT("a"), .value = KV_TEXT("v"), .timeout = 5},
    {.kind = KV_PUT, .key = KV_TEXT("b"), .value = KV_TEXT("v"), .timeout = 5},
    {.kind = KV_PUT, .key = KV_TEXT("e"), .value = KV_TEXT("v"), .timeout = 5},
    {.kind = KV_PUT, .key = KV_TEXT("new"), .condition = KV_IF_ABSENT, .timeout = 5},
    {.kind = KV_PUT, .key = KV_TEXT("ttl"), .ttl = 5, .timeout = 5},
    {.kind = KV_LIST, .timeout = 5},
    {.kind = KV_LIST, .flags = KV_SHALLOW, .timeout = 5},
    {.kind = KV_DELETE, .key = KV_TEXT("e"), .timeout = 5},
    {.kind = KV_DELETE_TREE, .key = KV_TEXT("none"), .timeout = 5}};
  int asked = 0;
  kv_watch *watch = NULL;
  kv_lease *lease = NULL;
  (void)kv_watch_open(store, queue, &(kv_watch_options){.tree = true}, 1, &watch, NULL);
  for (int i = 0; i < 30; i++)
    asked += submit(store, &(kv_request){.kind = KV_GET, .key = text(keys[i % 3]), .timeout = 5}) != 0;
  for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) asked += submit(store, &requests[i]) != 0;
  kv_txn *txn = kv_store_supports(store, "txn") ? kv_txn_new(store, NULL) : NULL;
  if (txn && kv_txn_check_absent(txn, KV_TEXT("not/there"), NULL) == KV_OK &&
      kv_txn_put(txn, KV_TEXT("f/g"), KV_TEXT("v"), 0, 0, NULL, NULL) == KV_OK &&
      kv_txn_delete(txn, KV_TEXT("b"), NULL) == KV_OK)
    asked += submit(store, &(kv_request){.kind = KV_TXN, .txn = txn, .timeout = 5}) != 0;
  asked += kv_lease_open(store, queue, 10, 5, 2, NULL, &lease, NULL) == KV_OK;
  kv_lock_options options = {.name = KV_TEXT("x"), .ttl = 2};
  kv_lock *locks[] = {kv_lock_new(store, &options, NULL), kv_semaphore_new(store, &options, 2, NULL),
                      kv_store_supports(store, "election") ? kv_election_new(store, &options, NULL) : NULL};
  enum { LOCKS = sizeof locks / sizeof *locks };
  for (int i = 0; i < LOCKS; i++) asked += locks[i] && kv_lock_acquire(locks[i], queue, 5, 3, NULL, NULL) == KV_OK;
  CHECK(all_answered(asked));
  for (int i = 0; i < LOCKS; i++) {
    asked = 0; /* one that is held and forgotten stays: once more, where it could not be asked */
    for (int j = 0; j < 2 && locks[i] && !asked; j++)
      asked = kv_lock_release(locks[i], queue, 5, 4, NULL, NULL) == KV_OK;
    CHECK(all_answered(asked));
    kv_lock_free(locks[i]);
  }
  kv_watch_free(watch);
  kv_txn_free(txn);
  kv_lease_free(lease);
}

/* The n-th allocation fails (0: none). */
static inline void life(kv_store *store, long n) {
  atomic_store(&fail_at, n);
  atomic_store(&counted, 0);
  atomic_store(&counting, true);
  live(store);
  atomic_store(&counting, false);
  CHECK_EQ(put(store, "works", "again"), KV_OK);
  CHECK_STR(get(store, "works"), "again");
}

/* A life for each of them, on one store. */
static inline void fail_each(kv_store *store) {
  CHECK_EQ(put(store, "c/d", "v"), KV_OK);
  life(store, 0); /* what is made once is made */
  life(store, 0);
  long allocations = atomic_load(&counted) + 20; /* threads: the number varies */
  for (long i = 1; i <= allocations && !atomic_load(&check_failures); i++) {
    life(store, i);
    if (atomic_load(&check_failures)) fprintf(stderr, "when allocation %ld of %ld failed\n", i, allocations);
  }
  close_store(store);
}

#endif
