/*
 * event_queue.h - events of one watch on their way from the reactor to the consumer. It also remembers, with each
 * event, what was known of its key before: so events that nobody took can be taken back, newest first.
 */
#ifndef KV_EVENT_QUEUE_H
#define KV_EVENT_QUEUE_H

#include "core.h"

struct kv_event_node {
  struct kv_event_node *next, *previous;
  kv_event_type type;
  bool initial, had_before;
  uint64_t revision, created;
  uint64_t position;                        /* all up to here is taken with this event; 0: says nothing */
  uint64_t before_revision, before_created, before_stamp; /* of the key, when had_before */
  char *before_value;                       /* owned; the consumer's `prev` */
  uint32_t before_size;
  uint32_t value_size;
  uint16_t key_size, strip;                 /* the key in full, and how much of it the consumer does not see */
  char bytes[];                             /* key, value */
};

struct kv_event_queue {
  struct kv_event_node *first, *last;
  size_t bytes; /* held by the nodes */
};

/* NULL: out of memory. The node is not in the queue yet. */
struct kv_event_node *kv_event_node_new(kv_slice key, kv_slice value);
void kv_event_node_free(struct kv_event_node *node); /* NULL is fine */
void kv_event_queue_push(struct kv_event_queue *queue, struct kv_event_node *node);
struct kv_event_node *kv_event_queue_pop(struct kv_event_queue *queue);      /* oldest, or NULL */
struct kv_event_node *kv_event_queue_pop_last(struct kv_event_queue *queue); /* newest, or NULL */

#endif
