/* buffer.h - bytes that grow up to a cap. For core, wire and drivers alike: it depends on nothing. */
#ifndef KV_BUFFER_H
#define KV_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

/* A growing byte buffer with a cap given at init: growing past it, or out of memory, fails and changes nothing. */
struct kv_buffer {
  char *data;
  size_t size, capacity, limit;
};
void kv_buffer_init(struct kv_buffer *buffer, size_t limit);
bool kv_buffer_reserve(struct kv_buffer *buffer, size_t more); /* room for `more` bytes behind size */
bool kv_buffer_add(struct kv_buffer *buffer, const void *data, size_t size);
void kv_buffer_drop(struct kv_buffer *buffer, size_t from_front);
void kv_buffer_free(struct kv_buffer *buffer);

#endif
