/* page.c - packed pairs. See page.h. */
#include "page.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 256
#define ALIGNMENT 8
#define TRIM_FROM ((size_t)16384) /* less is not worth a call */

struct kv_page {
  char *data;
  size_t size, capacity, count;
};

struct header {
  uint64_t revision, created;
  uint32_t key_size, value_size;
  uint32_t dir;
  uint32_t unused;
};

struct kv_page *kv_page_new(void) {
  return calloc(1, sizeof(struct kv_page));
}

void kv_page_free(struct kv_page *page) {
  if (!page) return;
  free(page->data);
  free(page);
}

static bool reserve(struct kv_page *page, size_t more) {
  if (page->capacity - page->size >= more) return true;
  size_t capacity = page->capacity ? page->capacity : FIRST_CAPACITY;
  while (capacity - page->size < more) {
    if (capacity > SIZE_MAX / 2) return false;
    capacity *= 2;
  }
  char *data = realloc(page->data, capacity);
  if (!data) return false;
  page->data = data;
  page->capacity = capacity;
  return true;
}

bool kv_page_add(struct kv_page *page, const kv_pair *pair) {
  if (pair->key.size > KV_KEY_MAX || pair->value.size > UINT32_MAX) return false;
  size_t bytes = sizeof(struct header) + pair->key.size + pair->value.size;
  bytes = (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
  if (!reserve(page, bytes)) return false;
  struct header header = {.revision = pair->revision, .created = pair->created,
                          .key_size = (uint32_t)pair->key.size, .value_size = (uint32_t)pair->value.size,
                          .dir = pair->dir};
  char *at = page->data + page->size;
  memcpy(at, &header, sizeof header);
  if (pair->key.size) memcpy(at + sizeof header, pair->key.data, pair->key.size);
  if (pair->value.size) memcpy(at + sizeof header + pair->key.size, pair->value.data, pair->value.size);
  page->size += bytes;
  page->count++;
  return true;
}

void kv_page_trim(struct kv_page *page) {
  if (page->capacity < TRIM_FROM || page->capacity - page->size < page->capacity / 8) return;
  char *data = realloc(page->data, page->size);
  if (!data) return;
  page->data = data;
  page->capacity = page->size;
}

bool kv_page_next(const struct kv_page *page, size_t *offset, kv_pair *pair) {
  if (*offset >= page->size) return false;
  struct header header;
  const char *at = page->data + *offset;
  memcpy(&header, at, sizeof header);
  pair->key = (kv_slice){at + sizeof header, header.key_size};
  pair->value = (kv_slice){at + sizeof header + header.key_size, header.value_size};
  pair->revision = header.revision;
  pair->created = header.created;
  pair->dir = header.dir != 0;
  size_t bytes = sizeof header + header.key_size + header.value_size;
  *offset += (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
  return true;
}

size_t kv_page_bytes(const struct kv_page *page) {
  return page->size;
}

size_t kv_page_count(const struct kv_page *page) {
  return page->count;
}

int kv_slice_compare(kv_slice a, kv_slice b) {
  size_t common = a.size < b.size ? a.size : b.size;
  int order = common ? memcmp(a.data, b.data, common) : 0;
  if (order) return order;
  return a.size < b.size ? -1 : a.size > b.size;
}

/* By key; a directory behind the pair of the same key. */
static int compare_pairs(const void *left, const void *right) {
  const kv_pair *a = left, *b = right;
  int order = kv_slice_compare(a->key, b->key);
  return order ? order : (int)a->dir - (int)b->dir;
}

static struct kv_page *select_pairs(const kv_pair *pairs, size_t count, kv_slice after, uint32_t limit, bool *more) {
  struct kv_page *out = kv_page_new();
  if (!out) return NULL;
  const kv_pair *last = NULL;
  for (size_t i = 0; i < count; i++) {
    if (last && kv_slice_compare(last->key, pairs[i].key) == 0) continue;
    last = &pairs[i];
    if (after.size && kv_slice_compare(last->key, after) <= 0) continue;
    if (limit && out->count == limit) {
      *more = true;
      break;
    }
    if (!kv_page_add(out, last)) {
      kv_page_free(out);
      return NULL;
    }
  }
  return out;
}

bool kv_page_arrange(struct kv_page **page, kv_slice after, uint32_t limit, bool *more) {
  size_t count = (*page)->count, offset = 0;
  *more = false;
  if (!count) return true;
  kv_pair *pairs = malloc(count * sizeof *pairs);
  if (!pairs) return false;
  for (size_t i = 0; i < count; i++) kv_page_next(*page, &offset, &pairs[i]);
  qsort(pairs, count, sizeof *pairs, compare_pairs);
  struct kv_page *arranged = select_pairs(pairs, count, after, limit, more);
  free(pairs);
  if (!arranged) return false;
  kv_page_free(*page);
  *page = arranged;
  return true;
}
