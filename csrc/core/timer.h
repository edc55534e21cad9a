/* timer.h - a binary heap of struct kv_timer (embedded in their owners), earliest first. */
#ifndef KV_TIMER_H
#define KV_TIMER_H

#include "core.h"

struct kv_timer_heap {
  struct kv_timer **slots; /* 1-based: a timer's slot is 0 when it is not set */
  size_t count, capacity;
};

/* Insert or move. False: no memory for a larger heap. */
bool kv_timer_heap_set(struct kv_timer_heap *heap, struct kv_timer *timer, int64_t at);
void kv_timer_heap_remove(struct kv_timer_heap *heap, struct kv_timer *timer);
/* The earliest timer due at `now`, taken out of the heap, or NULL. */
struct kv_timer *kv_timer_heap_due(struct kv_timer_heap *heap, int64_t now);
int64_t kv_timer_heap_next(const struct kv_timer_heap *heap); /* KV_NEVER when empty */
void kv_timer_heap_free(struct kv_timer_heap *heap);

#endif
