/*
 * delivered.h - what a watch has delivered: for each key that exists in its consumer's eyes, the revision (and on
 * request the value) that he was told last. Compared with a listing it gives the difference to send.
 */
#ifndef KV_DELIVERED_H
#define KV_DELIVERED_H

#include "core.h"

struct kv_known {
  struct kv_known *next;   /* in its bucket */
  uint64_t revision, created;
  uint64_t stamp;          /* of the feed when it was told */
  uint32_t hash;
  uint32_t pass;           /* the listing that saw it last */
  char *value;             /* owned; NULL unless values are kept */
  uint32_t value_size;
  uint16_t key_size;
  char key[];
};

struct kv_delivered {
  struct kv_known **buckets;
  size_t bucket_count, count;
};

struct kv_known *kv_delivered_find(const struct kv_delivered *delivered, kv_slice key);
/* Find or add; NULL: out of memory. */
struct kv_known *kv_delivered_add(struct kv_delivered *delivered, kv_slice key);
void kv_delivered_remove(struct kv_delivered *delivered, struct kv_known *known);
/* Visit all; the visited one may be removed. */
void kv_delivered_each(struct kv_delivered *delivered, void (*visit)(void *argument, struct kv_known *known),
                       void *argument);
void kv_delivered_clear(struct kv_delivered *delivered);

#endif
