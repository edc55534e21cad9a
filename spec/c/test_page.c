/* test_page.c - packed pairs: what goes in comes out; shallow listings are brought in order. */
#include "check.h"

#include "core/page.h"

static kv_slice text(const char *string) {
  return (kv_slice){string, strlen(string)};
}

static void add(struct kv_page *page, const char *key, const char *value, bool dir) {
  static uint64_t revision;
  kv_pair pair = {.key = text(key), .value = text(value), .revision = ++revision, .created = 1, .dir = dir};
  CHECK(kv_page_add(page, &pair));
}

/* The keys in order, directories with a slash, separated by blanks. */
static const char *keys(const struct kv_page *page) {
  static char out[1024];
  size_t offset = 0, used = 0;
  kv_pair pair;
  out[0] = 0;
  while (kv_page_next(page, &offset, &pair))
    used += (size_t)snprintf(out + used, sizeof out - used, "%s%.*s%s", used ? " " : "", (int)pair.key.size,
                             pair.key.data, pair.dir ? "/" : "");
  return out;
}

TEST(pairs_come_out_as_they_went_in) {
  struct kv_page *page = kv_page_new();
  char large[5000];
  memset(large, 'x', sizeof large);
  for (uint64_t i = 0; i < 300; i++) {
    kv_pair pair = {.key = {large, (size_t)(i % 480)}, .value = {large, (size_t)(i * 16)}, .revision = i,
                    .created = i * 2, .dir = i % 3 == 0};
    CHECK(kv_page_add(page, &pair));
  }
  CHECK_EQ(kv_page_count(page), 300);
  size_t offset = 0;
  kv_pair pair;
  for (uint64_t i = 0; i < 300; i++) {
    REQUIRE(kv_page_next(page, &offset, &pair));
    CHECK_EQ(pair.key.size, i % 480);
    CHECK_EQ(pair.value.size, i * 16);
    CHECK_EQ(pair.revision, i);
    CHECK_EQ(pair.created, i * 2);
    CHECK_EQ(pair.dir, i % 3 == 0);
  }
  CHECK(!kv_page_next(page, &offset, &pair));
  kv_page_free(page);
}

TEST(a_key_that_is_too_long_is_refused) {
  struct kv_page *page = kv_page_new();
  char key[KV_KEY_MAX + 1] = {0};
  kv_pair pair = {.key = {key, sizeof key}};
  CHECK(!kv_page_add(page, &pair));
  CHECK_EQ(kv_page_count(page), 0);
  kv_page_free(page);
}

TEST(arranging_sorts_and_folds) {
  struct kv_page *page = kv_page_new();
  bool more = true;
  add(page, "a.b", "1", false);
  add(page, "a", "", true);
  add(page, "c", "", true);
  add(page, "a", "2", false);
  add(page, "c", "", true);
  add(page, "b", "3", false);
  CHECK(kv_page_arrange(&page, text(""), 0, &more));
  CHECK(!more);
  CHECK_STR(keys(page), "a a.b b c/");
  kv_page_free(page);
}

TEST(arranging_cuts_a_page_out) {
  struct kv_page *page = kv_page_new();
  bool more = false;
  const char *names[] = {"e", "b", "d", "a", "c"};
  for (int i = 0; i < 5; i++) add(page, names[i], "", false);
  CHECK(kv_page_arrange(&page, text("a"), 2, &more));
  CHECK(more);
  CHECK_STR(keys(page), "b c");
  kv_page_free(page);
  page = kv_page_new();
  for (int i = 0; i < 5; i++) add(page, names[i], "", false);
  CHECK(kv_page_arrange(&page, text("c"), 2, &more));
  CHECK(!more);
  CHECK_STR(keys(page), "d e");
  kv_page_free(page);
}

TEST(slices_compare_as_bytes) {
  CHECK(kv_slice_compare(text("a"), text("ab")) < 0);
  CHECK(kv_slice_compare(text("b"), text("ab")) > 0);
  CHECK(kv_slice_compare(text("a\xc3"), text("ab")) > 0);
  CHECK_EQ(kv_slice_compare(text(""), text("")), 0);
}

CHECK_MAIN()
