/* The growing buffer: caps, and that a failure changes nothing. */
#include "check.h"
#include "core/core.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#endif

TEST(adds_and_drops) {
  struct kv_buffer buffer;
  kv_buffer_init(&buffer, 1 << 20);
  CHECK_EQ(buffer.size, 0);
  CHECK(kv_buffer_add(&buffer, "hello ", 6));
  CHECK(kv_buffer_add(&buffer, "world", 5));
  CHECK(kv_buffer_add(&buffer, NULL, 0));
  CHECK(buffer.size == 11 && memcmp(buffer.data, "hello world", 11) == 0);
  kv_buffer_drop(&buffer, 0);
  CHECK_EQ(buffer.size, 11);
  kv_buffer_drop(&buffer, 6);
  CHECK(buffer.size == 5 && memcmp(buffer.data, "world", 5) == 0);
  kv_buffer_drop(&buffer, 100);
  CHECK_EQ(buffer.size, 0);
  kv_buffer_free(&buffer);
  kv_buffer_free(&buffer);
}

TEST(cap_is_exact) {
  static const size_t limits[] = {0, 1, 2, 255, 256, 257, 300, 1000, 4096, 100000};
  for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
    struct kv_buffer buffer;
    kv_buffer_init(&buffer, limits[i]);
    for (size_t n = 0; n < limits[i]; n++)
      if (!kv_buffer_add(&buffer, "x", 1)) CHECK(false);
    CHECK_EQ(buffer.size, limits[i]);
    CHECK(buffer.capacity <= limits[i]);
    char *before = buffer.data;
    CHECK(!kv_buffer_add(&buffer, "y", 1));
    CHECK(!kv_buffer_reserve(&buffer, 1));
    CHECK(!kv_buffer_reserve(&buffer, SIZE_MAX));
    CHECK(kv_buffer_reserve(&buffer, 0));
    CHECK(buffer.data == before && buffer.size == limits[i]);
    if (limits[i]) {
      kv_buffer_drop(&buffer, 1);
      CHECK(kv_buffer_add(&buffer, "y", 1));
      CHECK_EQ(buffer.data[limits[i] - 1], 'y');
    }
    kv_buffer_free(&buffer);
  }
}

TEST(no_memory_changes_nothing) {
  struct kv_buffer buffer;
  kv_buffer_init(&buffer, SIZE_MAX / 2);
  CHECK(kv_buffer_add(&buffer, "abc", 3));
  /* The system refuses this much; sanitizers would end the process. */
#ifndef SANITIZED
  CHECK(!kv_buffer_reserve(&buffer, SIZE_MAX / 4));
#endif
  CHECK(buffer.size == 3 && memcmp(buffer.data, "abc", 3) == 0);
  CHECK(kv_buffer_add(&buffer, "d", 1));
  kv_buffer_free(&buffer);
}

TEST(reserve_gives_room) {
  struct kv_buffer buffer;
  kv_buffer_init(&buffer, 5000);
  for (size_t n = 1; n <= 5000; n += 97) {
    CHECK(kv_buffer_reserve(&buffer, n));
    CHECK(buffer.capacity - buffer.size >= n);
    memset(buffer.data, 'z', n);
  }
  kv_buffer_free(&buffer);
}

CHECK_MAIN()
