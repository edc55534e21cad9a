/*
 * page.h - pairs packed into one growing block: a short header, the key's bytes, the value's bytes, and the next. A
 * listing of many small pairs costs one allocation and little more than its bytes.
 */
#ifndef KV_PAGE_H
#define KV_PAGE_H

#include "core.h"

struct kv_page *kv_page_new(void);
void kv_page_free(struct kv_page *page); /* NULL is fine */
bool kv_page_add(struct kv_page *page, const kv_pair *pair);
/* The pair at *offset (start at 0), which moves on; false at the end. Slices point into the page. */
bool kv_page_next(const struct kv_page *page, size_t *offset, kv_pair *pair);
/* Nothing more will be added: give back room that is not needed. */
void kv_page_trim(struct kv_page *page);
size_t kv_page_bytes(const struct kv_page *page);
size_t kv_page_count(const struct kv_page *page);
/* Sort by key; of pairs with the same key (a key that is a directory too) the one that is no mere directory stays. Keep
 * those behind `after`, and `limit` at most (0: all); *more tells whether some were cut. False: out of memory, page as
 * before. */
bool kv_page_arrange(struct kv_page **page, kv_slice after, uint32_t limit, bool *more);

int kv_slice_compare(kv_slice a, kv_slice b); /* by bytes, a shorter one first */

#endif
