/* Codes, kinds and messages; the clock and chance. */
#include <math.h>
#include <sys/wait.h>

#include "check.h"
#include "core/core.h"

TEST(every_code_and_kind_has_words) {
  for (int i = 0; i < KV_CODE_COUNT; i++) {
    CHECK(kv_code_text((kv_code)i) && *kv_code_text((kv_code)i));
    CHECK(kv_code_meaning((kv_code)i) && *kv_code_meaning((kv_code)i));
    for (int j = 0; j < i; j++) CHECK(strcmp(kv_code_text((kv_code)i), kv_code_text((kv_code)j)) != 0);
  }
  for (int i = 0; i < KV_KIND_COUNT; i++) CHECK(kv_kind_text((kv_kind)i) && *kv_kind_text((kv_kind)i));
  CHECK_STR(kv_code_text(KV_MODIFIED), "modified");
  CHECK_STR(kv_kind_text(KV_LOCK_ACQUIRE), "acquire lock");
  CHECK_STR(kv_kind_text(KV_DELETE_TREE), "delete_tree");
  CHECK(kv_code_text((kv_code)999) != NULL && kv_code_meaning((kv_code)-1) != NULL);
  CHECK(kv_kind_text((kv_kind)999) != NULL);
}

TEST(fail_fills_the_error) {
  kv_error error;
  CHECK_EQ(kv_fail(&error, KV_DENIED, "%s %d", "no", 7), KV_DENIED);
  CHECK_EQ(error.code, KV_DENIED);
  CHECK_STR(error.message, "no 7");
  CHECK_EQ(kv_fail(NULL, KV_CLOSED, "nobody reads this"), KV_CLOSED);
}

TEST(long_messages_are_cut_between_characters) {
  char text[KV_MESSAGE_MAX + 20];
  kv_error error;
  for (size_t shift = 0; shift < 4; shift++) {
    memset(text, 'a', sizeof text);
    size_t at = shift;
    while (at + 4 < sizeof text) {
      memcpy(text + at, "\xE2\x82\xAC", 3);
      at += 3;
    }
    text[at] = '\0';
    kv_fail(&error, KV_FAILED, "%s", text);
    size_t size = strlen(error.message);
    CHECK(size < KV_MESSAGE_MAX && size >= KV_MESSAGE_MAX - 4);
    CHECK_EQ((size - shift) % 3, 0);
  }
  memset(text, 'a', sizeof text - 1);
  text[sizeof text - 1] = '\0';
  kv_fail(&error, KV_FAILED, "%s", text);
  CHECK_EQ(strlen(error.message), KV_MESSAGE_MAX - 1);
}

TEST(deadlines) {
  int64_t now = kv_clock();
  CHECK(now > 0 && kv_clock() >= now);
  CHECK_EQ(kv_deadline(now, 0), now);
  CHECK_EQ(kv_deadline(now, 0.25), now + KV_SECOND / 4);
  CHECK_EQ(kv_deadline(now, -1), KV_NEVER);
  CHECK_EQ(kv_deadline(now, NAN), KV_NEVER);
  CHECK_EQ(kv_deadline(now, HUGE_VAL), KV_NEVER);
  CHECK_EQ(kv_deadline(now, 1e30), KV_NEVER);
  CHECK_EQ(kv_deadline(now, 9.3e9), KV_NEVER);
  CHECK(kv_deadline(now, 9.2e9 - 1e8) > now);
  double edge = (double)(KV_NEVER - now) / 1e9;
  for (double d = -1e-5; d < 1e-5; d += 1e-6) CHECK(kv_deadline(now, edge + d) >= now);
}

TEST(forks_are_counted_and_chance_differs) {
  kv_fork_watch();
  kv_fork_watch();
  unsigned before = kv_fork_count();
  (void)kv_random();
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  pid_t child = fork();
  if (child == 0) {
    uint64_t told[2] = {kv_fork_count() - before, kv_random()};
    _exit(write(ends[1], told, sizeof told) == (ssize_t)sizeof told ? 0 : 1);
  }
  REQUIRE(child > 0);
  uint64_t told[2] = {0, 0};
  CHECK_EQ(read(ends[0], told, sizeof told), (ssize_t)sizeof told);
  int status = 1;
  waitpid(child, &status, 0);
  CHECK_EQ(status, 0);
  CHECK_EQ(told[0], 1);
  CHECK_EQ(kv_fork_count(), before);
  CHECK(told[1] != kv_random());
  close(ends[0]);
  close(ends[1]);
}

TEST(chance_covers_all_bits) {
  uint64_t ones = 0, zeros = 0;
  for (int i = 0; i < 1000; i++) {
    uint64_t value = kv_random();
    ones |= value;
    zeros |= ~value;
  }
  CHECK(ones == UINT64_MAX && zeros == UINT64_MAX);
}

CHECK_MAIN()
