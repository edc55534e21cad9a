/*
 * check.h - what a C unit test needs and no more. One test binary is one file:
 *
 *     #include "check.h"
 *     TEST(adds_up) {
 *       CHECK(1 + 1 == 2);
 *       CHECK_EQ(sum(1, 2), 3);        integers of any kind
 *       CHECK_STR(name(), "three");    strings, NULL allowed
 *       REQUIRE(pointer != NULL);      like CHECK, and leaves the test when it fails
 *     }
 *     CHECK_MAIN()
 *
 * Tests register themselves and run in the order of the file; arguments choose those whose name contains one of them.
 * A failed check is told with file and line and the test goes on. The last line is "N passed, N failed" (tests), and
 * the exit status is 1 when one failed or none ran. Checks may be made on any thread. A binary that hangs is ended by
 * SIGALRM after CHECK_SECONDS. At the end threads get a moment to go.
 */
#ifndef KV_CHECK_H
#define KV_CHECK_H

#include <dirent.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef CHECK_SECONDS
#define CHECK_SECONDS 300
#endif

struct check_test {
  const char *name;
  void (*run)(void);
  struct check_test *next;
};

static struct check_test *check_first, **check_end = &check_first;
static atomic_int check_failures;

__attribute__((unused)) static void check_add(struct check_test *test) {
  *check_end = test;
  check_end = &test->next;
}

#define TEST(test_name)                                                             \
  static void test_name(void);                                                      \
  static struct check_test check_test_##test_name = {#test_name, test_name, NULL};  \
  __attribute__((constructor)) static void check_register_##test_name(void) {       \
    check_add(&check_test_##test_name);                                             \
  }                                                                                 \
  static void test_name(void)

__attribute__((unused)) static bool check_true(bool good, const char *text, const char *file, int line) {
  if (good) return true;
  atomic_fetch_add(&check_failures, 1);
  fprintf(stderr, "%s:%d: failed: %s\n", file, line, text);
  return false;
}

__attribute__((unused)) static bool check_equal(long long left, long long right, const char *text, const char *file,
                                                int line) {
  if (left == right) return true;
  atomic_fetch_add(&check_failures, 1);
  fprintf(stderr, "%s:%d: failed: %s: %lld is not %lld\n", file, line, text, left, right);
  return false;
}

__attribute__((unused)) static bool check_string(const char *left, const char *right, const char *text,
                                                 const char *file, int line) {
  if (left == right || (left && right && strcmp(left, right) == 0)) return true;
  atomic_fetch_add(&check_failures, 1);
  fprintf(stderr, "%s:%d: failed: %s: \"%s\" is not \"%s\"\n", file, line, text, left ? left : "(NULL)",
          right ? right : "(NULL)");
  return false;
}

#define CHECK(condition) ((void)check_true((condition), #condition, __FILE__, __LINE__))
#define CHECK_EQ(left, right) \
  ((void)check_equal((long long)(left), (long long)(right), #left " == " #right, __FILE__, __LINE__))
#define CHECK_STR(left, right) ((void)check_string((left), (right), #left " is " #right, __FILE__, __LINE__))
#define REQUIRE(condition)                                                       \
  do {                                                                           \
    if (!check_true((condition), #condition, __FILE__, __LINE__)) return;        \
  } while (0)

__attribute__((unused)) static bool check_chosen(const char *name, int count, char **words) {
  for (int i = 1; i < count; i++)
    if (strstr(name, words[i])) return true;
  return count <= 1;
}

__attribute__((unused)) static int check_threads(void) {
  DIR *folder = opendir("/proc/self/task");
  int count = 0;
  if (!folder) return 1;
  for (struct dirent *entry; (entry = readdir(folder));) count += entry->d_name[0] != '.';
  closedir(folder);
  return count;
}

__attribute__((unused)) static int check_run(int count, char **words) {
  int passed = 0, failed = 0;
  alarm(CHECK_SECONDS);
  for (struct check_test *test = check_first; test; test = test->next) {
    if (!check_chosen(test->name, count, words)) continue;
    int before = atomic_load(&check_failures);
    test->run();
    if (atomic_load(&check_failures) == before) {
      passed++;
    } else {
      failed++;
      fprintf(stderr, "FAILED %s\n", test->name);
    }
  }
  /* Threads on their way out still hold something: a leak checker would take it for lost. */
  for (int tries = 0; tries < 2000 && check_threads() > 1; tries++) usleep(1000);
  printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed ? 1 : 0;
}

#define CHECK_MAIN()                            \
  int main(int check_count, char **check_words) { \
    return check_run(check_count, check_words); \
  }

#endif
