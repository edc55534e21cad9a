/* delivered.c - a chained hash table that grows with its content; a watch of one key costs one bucket. */
#include "delivered.h"

#include <stdlib.h>
#include <string.h>

static uint32_t hash_of(kv_slice key) {
  uint32_t hash = 2166136261u; /* FNV-1a */
  for (size_t i = 0; i < key.size; i++) hash = (hash ^ (unsigned char)key.data[i]) * 16777619u;
  return hash;
}

static struct kv_known **slot_of(const struct kv_delivered *delivered, uint32_t hash, kv_slice key) {
  struct kv_known **slot = &delivered->buckets[hash & (delivered->bucket_count - 1)];
  while (*slot && ((*slot)->hash != hash || (*slot)->key_size != key.size ||
                   memcmp((*slot)->key, key.data, key.size) != 0))
    slot = &(*slot)->next;
  return slot;
}

struct kv_known *kv_delivered_find(const struct kv_delivered *delivered, kv_slice key) {
  if (!delivered->count) return NULL;
  return *slot_of(delivered, hash_of(key), key);
}

static bool grow(struct kv_delivered *delivered) {
  size_t bucket_count = delivered->bucket_count ? delivered->bucket_count * 2 : 1;
  struct kv_known **buckets = calloc(bucket_count, sizeof *buckets);
  if (!buckets) return delivered->bucket_count > 0; /* longer chains then */
  for (size_t i = 0; i < delivered->bucket_count; i++) {
    struct kv_known *known = delivered->buckets[i];
    while (known) {
      struct kv_known *next = known->next, **to = &buckets[known->hash & (bucket_count - 1)];
      known->next = *to;
      *to = known;
      known = next;
    }
  }
  free(delivered->buckets);
  delivered->buckets = buckets;
  delivered->bucket_count = bucket_count;
  return true;
}

struct kv_known *kv_delivered_add(struct kv_delivered *delivered, kv_slice key) {
  uint32_t hash = hash_of(key);
  if (delivered->count) {
    struct kv_known *known = *slot_of(delivered, hash, key);
    if (known) return known;
  }
  if (delivered->count >= delivered->bucket_count && !grow(delivered)) return NULL;
  struct kv_known *known = calloc(1, sizeof *known + key.size);
  if (!known) return NULL;
  known->hash = hash;
  known->key_size = (uint16_t)key.size;
  if (key.size) memcpy(known->key, key.data, key.size);
  struct kv_known **bucket = &delivered->buckets[hash & (delivered->bucket_count - 1)];
  known->next = *bucket;
  *bucket = known;
  delivered->count++;
  return known;
}

void kv_delivered_remove(struct kv_delivered *delivered, struct kv_known *known) {
  struct kv_known **slot = &delivered->buckets[known->hash & (delivered->bucket_count - 1)];
  while (*slot != known) slot = &(*slot)->next;
  *slot = known->next;
  delivered->count--;
  free(known->value);
  free(known);
}

void kv_delivered_each(struct kv_delivered *delivered, void (*visit)(void *argument, struct kv_known *known),
                       void *argument) {
  for (size_t i = 0; i < delivered->bucket_count; i++) {
    struct kv_known *known = delivered->buckets[i];
    while (known) {
      struct kv_known *next = known->next;
      visit(argument, known);
      known = next;
    }
  }
}

static void forget(void *argument, struct kv_known *known) {
  kv_delivered_remove(argument, known);
}

void kv_delivered_clear(struct kv_delivered *delivered) {
  kv_delivered_each(delivered, forget, delivered);
  free(delivered->buckets);
  *delivered = (struct kv_delivered){0};
}
