/* timer.c - a binary heap of embedded timers. Each timer knows its slot, so moving and removing cost O(log n). */
#include "timer.h"

#include <stdlib.h>

static void place(struct kv_timer_heap *heap, struct kv_timer *timer, size_t slot) {
  heap->slots[slot] = timer;
  timer->slot = slot;
}

static void sift_up(struct kv_timer_heap *heap, struct kv_timer *timer) {
  size_t slot = timer->slot;
  while (slot > 1 && heap->slots[slot / 2]->at > timer->at) {
    place(heap, heap->slots[slot / 2], slot);
    slot /= 2;
  }
  place(heap, timer, slot);
}

static void sift_down(struct kv_timer_heap *heap, struct kv_timer *timer) {
  size_t slot = timer->slot;
  for (;;) {
    size_t child = slot * 2;
    if (child > heap->count) break;
    if (child < heap->count && heap->slots[child + 1]->at < heap->slots[child]->at) child++;
    if (heap->slots[child]->at >= timer->at) break;
    place(heap, heap->slots[child], slot);
    slot = child;
  }
  place(heap, timer, slot);
}

static bool grow(struct kv_timer_heap *heap) {
  if (heap->count + 1 < heap->capacity) return true;
  size_t capacity = heap->capacity ? heap->capacity * 2 : 64;
  struct kv_timer **slots = realloc(heap->slots, capacity * sizeof *slots);
  if (!slots) return false;
  heap->slots = slots;
  heap->capacity = capacity;
  return true;
}

bool kv_timer_heap_set(struct kv_timer_heap *heap, struct kv_timer *timer, int64_t at) {
  if (!timer->slot) {
    if (!grow(heap)) return false;
    timer->at = at;
    place(heap, timer, ++heap->count);
  }
  timer->at = at;
  sift_up(heap, timer);
  sift_down(heap, timer);
  return true;
}

void kv_timer_heap_remove(struct kv_timer_heap *heap, struct kv_timer *timer) {
  if (!timer->slot) return;
  size_t slot = timer->slot;
  struct kv_timer *last = heap->slots[heap->count--];
  timer->slot = 0;
  if (last == timer) return;
  place(heap, last, slot);
  sift_up(heap, last);
  sift_down(heap, last);
}

struct kv_timer *kv_timer_heap_due(struct kv_timer_heap *heap, int64_t now) {
  if (!heap->count || heap->slots[1]->at > now) return NULL;
  struct kv_timer *timer = heap->slots[1];
  kv_timer_heap_remove(heap, timer);
  return timer;
}

int64_t kv_timer_heap_next(const struct kv_timer_heap *heap) {
  return heap->count ? heap->slots[1]->at : KV_NEVER;
}

void kv_timer_heap_free(struct kv_timer_heap *heap) {
  free(heap->slots);
  *heap = (struct kv_timer_heap){0};
}
