/* test_timer.c - the heap gives timers in order, whatever was set, moved and removed before. */
#include "check.h"

#include "core/timer.h"

#define COUNT 500

static uint32_t next_random(void) {
  static uint32_t state = 12345;
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

TEST(timers_come_in_order) {
  struct kv_timer_heap heap = {0};
  static struct kv_timer timers[COUNT];
  for (int i = 0; i < COUNT; i++) CHECK(kv_timer_heap_set(&heap, &timers[i], next_random() % 1000));
  for (int i = 0; i < COUNT; i += 3) CHECK(kv_timer_heap_set(&heap, &timers[i], next_random() % 1000));
  int removed = 0;
  for (int i = 1; i < COUNT; i += 5, removed++) kv_timer_heap_remove(&heap, &timers[i]);
  kv_timer_heap_remove(&heap, &timers[1]); /* harmless */
  int64_t last = 0;
  int seen = 0;
  struct kv_timer *timer;
  while ((timer = kv_timer_heap_due(&heap, 2000))) {
    CHECK(timer->at >= last);
    CHECK_EQ(timer->slot, 0);
    last = timer->at;
    seen++;
  }
  CHECK_EQ(seen, COUNT - removed);
  CHECK_EQ(kv_timer_heap_next(&heap), KV_NEVER);
  kv_timer_heap_free(&heap);
}

TEST(only_due_timers_come) {
  struct kv_timer_heap heap = {0};
  struct kv_timer soon = {0}, late = {0};
  CHECK(kv_timer_heap_set(&heap, &late, 20));
  CHECK(kv_timer_heap_set(&heap, &soon, 10));
  CHECK_EQ(kv_timer_heap_next(&heap), 10);
  CHECK(kv_timer_heap_due(&heap, 9) == NULL);
  CHECK(kv_timer_heap_due(&heap, 10) == &soon);
  CHECK(kv_timer_heap_due(&heap, 19) == NULL);
  CHECK(kv_timer_heap_set(&heap, &late, 5));
  CHECK(kv_timer_heap_due(&heap, 5) == &late);
  kv_timer_heap_free(&heap);
}

CHECK_MAIN()
