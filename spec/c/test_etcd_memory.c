/*
 * test_etcd_memory.c - the etcd driver when memory runs out: each allocation of a life with some of everything fails
 * in turn, those of nghttp2 among them. Whatever fails, every request is answered, the store works when there is
 * memory again, and nothing is left behind.
 *
 * The binary's own malloc() stands before the C library's. Under sanitizers and valgrind, which bring theirs, nothing
 * fails.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

static atomic_bool counting;
static atomic_long fail_at, counted, living;

#include "etcd_server.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

#ifndef SANITIZED
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *pointer, size_t size);
extern void __libc_free(void *pointer);

static bool refused(void) {
  if (!atomic_load(&counting) || atomic_fetch_add(&counted, 1) + 1 != atomic_load(&fail_at)) return false;
  errno = ENOMEM;
  return true;
}

static void *given(void *pointer) {
  if (pointer) atomic_fetch_add(&living, 1);
  return pointer;
}
#pragma GCC visibility push(default) /* nghttp2's calls are to end here as well */
void *malloc(size_t size) { return refused() ? NULL : given(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return refused() ? NULL : given(__libc_calloc(count, size)); }
void *realloc(void *pointer, size_t size) {
  if (refused()) return NULL;
  void *moved = __libc_realloc(pointer, size);
  if (!pointer) given(moved);
  return moved;
}
void free(void *pointer) {
  if (pointer) atomic_fetch_sub(&living, 1);
  __libc_free(pointer);
}
#pragma GCC visibility pop
#endif

/* Take replies until `count` of those to requests came. */
static bool all_answered(int count) {
  for (double until = now() + 10; count > 0 && now() < until;) {
    kv_reply *reply = next_reply(until - now());
    count -= reply && kv_reply_kind(reply) != KV_WATCH_READY;
    kv_reply_free(reply);
  }
  return count == 0;
}

/* Some of everything; whether it goes well does not matter, but each request must be answered. */
static void live(kv_store *store) {
  static const char *const values[] = {"one", "two"};
  int asked = 0;
  kv_watch *watch = NULL;
  kv_lease *lease = NULL;
  kv_watch_options options = {.tree = true, .previous = true};
  (void)kv_watch_open(store, queue, &options, 1, &watch, NULL);
  const kv_request requests[] = {
    {.kind = KV_PUT, .key = KV_TEXT("a/b"), .value = text(values[0])},
    {.kind = KV_GET, .key = KV_TEXT("a/b")},
    {.kind = KV_LIST},
    {.kind = KV_PUT, .key = KV_TEXT("a/b"), .value = text(values[1])},
    {.kind = KV_LIST, .flags = KV_SHALLOW},
    {.kind = KV_PUT, .key = KV_TEXT("ttl"), .ttl = 5},
    {.kind = KV_PUT, .key = KV_TEXT("new"), .condition = KV_IF_ABSENT},
    {.kind = KV_LIST, .flags = KV_KEYS_ONLY}};
  for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) asked += submit(store, &requests[i]) != 0;
  asked += kv_lease_open(store, queue, 5, 5, 2, NULL, &lease, NULL) == KV_OK;
  kv_lock *lock = kv_lock_new(store, &(kv_lock_options){.name = KV_TEXT("x"), .ttl = 2}, NULL);
  asked += lock && kv_lock_acquire(lock, queue, 5, 3, NULL, NULL) == KV_OK;
  CHECK(all_answered(asked));
  asked = lock && kv_lock_release(lock, queue, 5, 4, NULL, NULL) == KV_OK;
  asked += submit(store, &(kv_request){.kind = KV_DELETE_TREE, .timeout = 5}) != 0;
  CHECK(all_answered(asked));
  kv_event event;
  while (watch && kv_watch_next(watch, &event, NULL) == 1) continue;
  kv_watch_free(watch);
  kv_lock_free(lock);
  kv_lease_free(lease);
}

/* Until the reactor's thread is gone too: it frees last. */
static bool back_to(long before) {
  for (double until = now() + 1; atomic_load(&living) > before && now() < until;) nap(0.001);
  return atomic_load(&living) <= before;
}

/* A whole life in which the n-th allocation fails (0: none). False: something is left behind. */
static bool life(long n) {
  long before = atomic_load(&living);
  kv_queue_free(queue);
  queue = kv_queue_new(NULL);
  kv_store *store = open_url(etcd_url(), "/memory");
  if (!store) return false;
  atomic_store(&fail_at, n);
  atomic_store(&counted, 0);
  atomic_store(&counting, true);
  live(store);
  atomic_store(&counting, false);
  CHECK_EQ(put(store, "works", "again"), KV_OK);
  CHECK_STR(get(store, "works"), "again");
  close_store(store);
  kv_queue_free(queue);
  queue = kv_queue_new(NULL);
  return back_to(before);
}

/* The C library keeps the stack of a thread that ended, with what belongs to it: now and then one more. What is left
 * behind each time is ours. */
static bool leaves_nothing(long n) {
  for (int i = 0; i < 4; i++)
    if (life(n)) return true;
  return false;
}

TEST(each_allocation_fails) {
  if (!etcd_url()) return;
  kv_store *first = open_url(etcd_url(), "/memory");
  live(first);
  close_store(first); /* what is made once is made */
  CHECK(leaves_nothing(0));
  long allocations = atomic_load(&counted) + 20; /* threads: the number varies */
  for (long i = 1; i <= allocations && !atomic_load(&check_failures); i++) {
    CHECK(leaves_nothing(i));
    if (atomic_load(&check_failures)) fprintf(stderr, "when allocation %ld of %ld failed\n", i, allocations);
  }
}

CHECK_MAIN()
