/* names.h - the names of locks and elections as one part of a path, and how drivers put their keys together. */
#ifndef KV_DRIVERS_NAMES_H
#define KV_DRIVERS_NAMES_H

#include <string.h>

#include "../kv.h"

/* Behind the first `size` of the `room` bytes of `out`; what has no room is left out. Returns the new size. */
static inline size_t kv_append(char *out, size_t size, size_t room, const char *data, size_t count) {
  if (count > room - size) count = room - size;
  if (count) memcpy(out + size, data, count);
  return size + count;
}

/* "a/b" stands beside "a" then, not below it. */
static inline const char *kv_escape_of(char byte) {
  return byte == '/' ? "%2F" : byte == '%' ? "%25" : NULL;
}

static inline size_t kv_escaped_size(kv_slice name) {
  size_t size = name.size;
  for (size_t i = 0; i < name.size; i++)
    if (kv_escape_of(name.data[i])) size += 2;
  return size;
}

/* As kv_append(). */
static inline size_t kv_append_escaped(char *out, size_t size, size_t room, kv_slice name) {
  for (size_t i = 0; i < name.size; i++) {
    const char *escape = kv_escape_of(name.data[i]);
    size = kv_append(out, size, room, escape ? escape : name.data + i, escape ? 3 : 1);
  }
  return size;
}

#endif
