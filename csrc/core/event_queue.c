/* event_queue.c - a doubly linked list of events. See event_queue.h. */
#include "event_queue.h"

#include <stdlib.h>
#include <string.h>

struct kv_event_node *kv_event_node_new(kv_slice key, kv_slice value) {
  struct kv_event_node *node = calloc(1, sizeof *node + key.size + value.size);
  if (!node) return NULL;
  node->key_size = (uint16_t)key.size;
  node->value_size = (uint32_t)value.size;
  if (key.size) memcpy(node->bytes, key.data, key.size);
  if (value.size) memcpy(node->bytes + key.size, value.data, value.size);
  return node;
}

void kv_event_node_free(struct kv_event_node *node) {
  if (!node) return;
  free(node->before_value);
  free(node);
}

static size_t weight(const struct kv_event_node *node) {
  return sizeof *node + node->key_size + node->value_size + node->before_size;
}

void kv_event_queue_push(struct kv_event_queue *queue, struct kv_event_node *node) {
  node->previous = queue->last;
  node->next = NULL;
  if (queue->last)
    queue->last->next = node;
  else
    queue->first = node;
  queue->last = node;
  queue->bytes += weight(node);
}

static struct kv_event_node *unlink_node(struct kv_event_queue *queue, struct kv_event_node *node) {
  if (!node) return NULL;
  if (node->previous)
    node->previous->next = node->next;
  else
    queue->first = node->next;
  if (node->next)
    node->next->previous = node->previous;
  else
    queue->last = node->previous;
  queue->bytes -= weight(node);
  return node;
}

struct kv_event_node *kv_event_queue_pop(struct kv_event_queue *queue) {
  return unlink_node(queue, queue->first);
}

struct kv_event_node *kv_event_queue_pop_last(struct kv_event_queue *queue) {
  return unlink_node(queue, queue->last);
}
