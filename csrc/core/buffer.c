/*
 * buffer.c - a byte buffer that grows up to a cap given at init. What a peer sends is gathered in these, so the cap is
 * what stands between a peer and our memory. Linked into drivers too; it depends on nothing.
 */
#include "buffer.h"

#include <stdlib.h>
#include <string.h>

#define CAPACITY_MIN 256

void kv_buffer_init(struct kv_buffer *buffer, size_t limit) {
  *buffer = (struct kv_buffer){.limit = limit};
}

bool kv_buffer_reserve(struct kv_buffer *buffer, size_t more) {
  if (more <= buffer->capacity - buffer->size) return true;
  if (buffer->size > buffer->limit || more > buffer->limit - buffer->size) return false;
  size_t need = buffer->size + more;
  size_t capacity = buffer->capacity < CAPACITY_MIN ? CAPACITY_MIN : buffer->capacity;
  while (capacity < need) capacity = capacity > buffer->limit / 2 ? buffer->limit : capacity * 2;
  if (capacity > buffer->limit) capacity = buffer->limit;
  char *data = realloc(buffer->data, capacity);
  if (!data && capacity > need) data = realloc(buffer->data, capacity = need); /* short of memory: no spare room then */
  if (!data) return false;
  buffer->data = data;
  buffer->capacity = capacity;
  return true;
}

bool kv_buffer_add(struct kv_buffer *buffer, const void *data, size_t size) {
  if (size == 0) return true;
  if (!kv_buffer_reserve(buffer, size)) return false;
  memcpy(buffer->data + buffer->size, data, size);
  buffer->size += size;
  return true;
}

void kv_buffer_drop(struct kv_buffer *buffer, size_t from_front) {
  if (from_front >= buffer->size) {
    buffer->size = 0;
    return;
  }
  if (from_front == 0) return;
  memmove(buffer->data, buffer->data + from_front, buffer->size - from_front);
  buffer->size -= from_front;
}

void kv_buffer_free(struct kv_buffer *buffer) {
  free(buffer->data);
  buffer->data = NULL;
  buffer->size = buffer->capacity = 0;
}
