/* fuzz.h - what fuzzers share. */
#ifndef KV_FUZZ_H
#define KV_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kv.h"

#define MUST(condition)                                                     \
  do {                                                                      \
    if (!(condition)) {                                                     \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      abort();                                                              \
    }                                                                       \
  } while (0)

/* What a reader gave, so that two ways of reading can be compared. */
struct sum {
  uint64_t count, mark;
};

static inline uint64_t mix(uint64_t mark, kv_slice bytes) {
  for (size_t i = 0; i < bytes.size; i++) mark = (mark ^ (unsigned char)bytes.data[i]) * UINT64_C(1099511628211);
  return mark;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
