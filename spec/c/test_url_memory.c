/*
 * URLs and options when memory runs out: each allocation fails in turn. Every failure must be told as such, leave
 * nothing behind (the leak checkers see to that) and change nothing. The sources are compiled in here, with
 * allocators that can fail.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"

static long allocations_left = -1; /* negative: any number */

static bool may_allocate(void) {
  if (allocations_left < 0) return true;
  if (allocations_left == 0) return false;
  allocations_left--;
  return true;
}

static void *test_malloc(size_t size) {
  return may_allocate() ? malloc(size) : NULL;
}

static void *test_calloc(size_t count, size_t size) {
  return may_allocate() ? calloc(count, size) : NULL;
}

#define malloc test_malloc
#define calloc test_calloc
#include "core/options.c"
#include "core/url.c"
#undef malloc
#undef calloc

static const struct kv_scheme schemes[] = {{"tnet", true, 2379}, {"tlocal", false, 0}, {0}};
static const struct kv_driver driver = {.abi = KV_DRIVER_ABI, .name = "net", .schemes = schemes};

__attribute__((weak)) const char *kv_driver_name(size_t index) {
  return index == 0 ? driver.name : NULL;
}

__attribute__((weak)) const struct kv_scheme *kv_scheme_find(kv_slice name, const struct kv_driver **found) {
  for (const struct kv_scheme *scheme = schemes; scheme->name; scheme++) {
    if (strlen(scheme->name) != name.size || memcmp(scheme->name, name.data, name.size) != 0) continue;
    if (found) *found = &driver;
    return scheme;
  }
  return NULL;
}

/* How many allocations had to be allowed until the URL was understood. */
static long sweep(const char *url, const kv_options *options) {
  for (long allowed = 0; allowed < 200; allowed++) {
    struct kv_config config;
    kv_error error = {0};
    char prefix[KV_KEY_MAX];
    size_t size;
    allocations_left = allowed;
    kv_code code = kv_config_make(url, options, &config, prefix, &size, &error);
    allocations_left = -1;
    if (code == KV_OK) {
      CHECK_STR(config.token, "t");
      kv_config_clear(&config);
      return allowed;
    }
    CHECK_EQ(code, KV_FAILED);
    CHECK_STR(error.message, "out of memory");
    CHECK(config.addresses == NULL && config.token == NULL && config.path == NULL);
  }
  return 200;
}

TEST(every_allocation_of_a_url_can_fail) {
  kv_options *options = kv_options_new();
  REQUIRE(options != NULL);
  CHECK_EQ(kv_options_set(options, "token", KV_TEXT("t"), NULL), KV_OK);
  CHECK_EQ(kv_options_set(options, "tls.ca", KV_TEXT("c"), NULL), KV_OK);
  long needed = sweep("tnet://me:pw@one:1,two,[::1]/a/b?acl=x&datacenter=y&timeout=3", options);
  CHECK(needed > 15 && needed < 100);
  needed = sweep("tlocal:/some/where?token=t", NULL);
  CHECK(needed > 3 && needed < 20);
  kv_options_free(options);
}

TEST(a_failed_set_keeps_the_old_value) {
  kv_options *options = kv_options_new();
  REQUIRE(options != NULL);
  kv_error error;
  CHECK_EQ(kv_options_set(options, "token", KV_TEXT("old"), &error), KV_OK);
  allocations_left = 0;
  CHECK_EQ(kv_options_set(options, "token", KV_TEXT("new"), &error), KV_FAILED);
  CHECK(kv_options_new() == NULL);
  allocations_left = -1;
  CHECK_STR(options->config.token, "old");
  kv_options_free(options);
}

CHECK_MAIN()
