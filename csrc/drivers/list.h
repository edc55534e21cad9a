/* list.h - lists that drivers keep: circular, with a head, the nodes embedded in what they list. */
#ifndef KV_DRIVERS_LIST_H
#define KV_DRIVERS_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct kv_list {
  struct kv_list *next, *previous;
};

static inline void kv_list_init(struct kv_list *list) {
  list->next = list->previous = list;
}

static inline bool kv_list_empty(const struct kv_list *list) {
  return list->next == list;
}

/* Harmless for a node that is in no list. */
static inline void kv_list_remove(struct kv_list *node) {
  node->next->previous = node->previous;
  node->previous->next = node->next;
  kv_list_init(node);
}

/* At the end of `list`; out of the list where it was. */
static inline void kv_list_move(struct kv_list *list, struct kv_list *node) {
  kv_list_remove(node);
  node->previous = list->previous;
  node->next = list;
  list->previous->next = node;
  list->previous = node;
}

/* What a node is embedded in. */
#define kv_list_of(type, member, pointer) ((type *)(void *)((char *)(pointer) - offsetof(type, member)))

#endif
