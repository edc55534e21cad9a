/* Keys: the rules of api.md, each with its message, and the two ways in held against each other. */
#include "check.h"
#include "core/core.h"

static const char *canonical(kv_slice key, bool root_allowed) {
  static char text[KV_KEY_MAX + 1];
  size_t size = 999;
  kv_error error = {0};
  if (kv_key_canonical(key, root_allowed, text, &size, &error) != KV_OK) return NULL;
  text[size] = '\0';
  return text;
}

static const char *problem(kv_slice key) {
  static kv_error error;
  char out[KV_KEY_MAX];
  size_t size;
  error.message[0] = '\0';
  CHECK_EQ(kv_key_canonical(key, false, out, &size, &error), KV_INVALID);
  CHECK_EQ(error.code, KV_INVALID);
  CHECK_EQ(kv_key_canonical(key, false, out, &size, NULL), KV_INVALID);
  return error.message;
}

TEST(slashes_are_joined) {
  CHECK_STR(canonical(KV_TEXT("a"), false), "a");
  CHECK_STR(canonical(KV_TEXT("/a//b/"), false), "a/b");
  CHECK_STR(canonical(KV_TEXT("///a///b///c///"), false), "a/b/c");
  CHECK_STR(canonical(KV_TEXT("a b/c d"), false), "a b/c d");
  CHECK_STR(canonical(KV_TEXT("a\\b\"c"), false), "a\\b\"c");
}

TEST(root_is_a_directory_only) {
  CHECK_STR(canonical(KV_TEXT(""), true), "");
  CHECK_STR(canonical((kv_slice){NULL, 0}, true), "");
  CHECK_STR(canonical(KV_TEXT("///"), true), "");
  CHECK_STR(problem(KV_TEXT("")), "invalid key \"\": it names no key, only the root");
  CHECK_STR(problem(KV_TEXT("//")), "invalid key \"//\": it names no key, only the root");
}

TEST(dots) {
  CHECK_STR(problem(KV_TEXT("a/../b")), "invalid key \"a/../b\": \".\" and \"..\" are not allowed as segments");
  CHECK(strstr(problem(KV_TEXT(".")), "segments"));
  CHECK(strstr(problem(KV_TEXT("a/.")), "segments"));
  CHECK(strstr(problem(KV_TEXT("../a")), "segments"));
  CHECK_STR(canonical(KV_TEXT("..."), false), "...");
  CHECK_STR(canonical(KV_TEXT(".a/b./..c"), false), ".a/b./..c");
}

TEST(the_librarys_own) {
  CHECK_STR(problem(KV_TEXT(".kv")), "invalid key \".kv\": the first segment .kv is the library's own");
  CHECK(strstr(problem(KV_TEXT("//.kv/locks")), "library's own"));
  CHECK_STR(canonical(KV_TEXT("a/.kv"), false), "a/.kv");
  CHECK_STR(canonical(KV_TEXT(".kvs"), false), ".kvs");
  CHECK(kv_key_is_own(KV_TEXT(".kv")));
  CHECK(kv_key_is_own(KV_TEXT(".kv/a")));
  CHECK(!kv_key_is_own(KV_TEXT(".kva")));
  CHECK(!kv_key_is_own(KV_TEXT("a/.kv")));
  CHECK(!kv_key_is_own(KV_TEXT(".k")));
  CHECK(!kv_key_is_own((kv_slice){NULL, 0}));
}

TEST(length) {
  char text[KV_KEY_MAX + 10];
  memset(text, 'x', sizeof text);
  CHECK(canonical((kv_slice){text, KV_KEY_MAX}, false) != NULL);
  CHECK(strstr(problem((kv_slice){text, KV_KEY_MAX + 1}), "longer than 480 bytes"));
  CHECK(strlen(problem((kv_slice){text, KV_KEY_MAX + 1})) < 200);
  text[0] = text[KV_KEY_MAX + 1] = '/'; /* slashes that go away do not count */
  CHECK(canonical((kv_slice){text, KV_KEY_MAX + 2}, false) != NULL);
  text[7] = '/'; /* one that stays does */
  CHECK(canonical((kv_slice){text, KV_KEY_MAX + 1}, false) != NULL);
  CHECK(canonical((kv_slice){text, KV_KEY_MAX + 3}, false) == NULL);
  CHECK(kv_key_is_canonical((kv_slice){text + 1, KV_KEY_MAX}));
  CHECK(!kv_key_is_canonical((kv_slice){text + 8, KV_KEY_MAX + 1}));
}

TEST(messages_show_the_key_safely) {
  CHECK_STR(problem(KV_TEXT("a\nb")), "invalid key \"a\\x0Ab\": control characters are not allowed");
  CHECK_STR(problem(KV_TEXT("a\0b")), "invalid key \"a\\x00b\": control characters are not allowed");
  CHECK_STR(problem(KV_TEXT("\"\\\x7F")), "invalid key \"\\x22\\x5C\\x7F\": control characters are not allowed");
  CHECK_STR(problem(KV_TEXT("\xC3\xA9/\xFF")), "invalid key \"\xC3\xA9/\\xFF\": it is not valid UTF-8");
  CHECK(strstr(problem(KV_TEXT("\xF0\x9F\x98\x80")), "beyond Unicode's basic plane"));
  CHECK(strstr(problem(KV_TEXT("\xC2\x85")), "control characters"));
  CHECK(strstr(problem(KV_TEXT("\xED\xA0\x80")), "surrogates"));
  CHECK(strstr(problem(KV_TEXT("\xEE\x80\x80")), "private-use"));
  CHECK(strstr(problem(KV_TEXT("\xEF\xBF\xBF")), "private-use and special"));
  CHECK(strstr(problem(KV_TEXT("\xC3")), "not valid UTF-8"));
  CHECK(strstr(problem(KV_TEXT("\xE2\x82")), "not valid UTF-8"));
  CHECK(strstr(problem(KV_TEXT("\xC0\xAF")), "not valid UTF-8"));
  char text[1000];
  memset(text, 1, sizeof text);
  CHECK(strlen(problem((kv_slice){text, sizeof text})) < 400);
  CHECK(strstr(problem((kv_slice){text, sizeof text}), "...\": "));
}

TEST(other_nouns) {
  char out[KV_KEY_MAX];
  size_t size;
  kv_error error;
  CHECK_EQ(kv_key_make("prefix", KV_TEXT(".."), true, out, &size, &error), KV_INVALID);
  CHECK(strstr(error.message, "invalid prefix \"..\":"));
}

static size_t encode(unsigned point, char *out) {
  if (point < 0x80) {
    out[0] = (char)point;
    return 1;
  }
  if (point < 0x800) {
    out[0] = (char)(0xC0 | point >> 6);
    out[1] = (char)(0x80 | (point & 0x3F));
    return 2;
  }
  if (point < 0x10000) {
    out[0] = (char)(0xE0 | point >> 12);
    out[1] = (char)(0x80 | (point >> 6 & 0x3F));
    out[2] = (char)(0x80 | (point & 0x3F));
    return 3;
  }
  out[0] = (char)(0xF0 | point >> 18);
  out[1] = (char)(0x80 | (point >> 12 & 0x3F));
  out[2] = (char)(0x80 | (point >> 6 & 0x3F));
  out[3] = (char)(0x80 | (point & 0x3F));
  return 4;
}

/* ZooKeeper's PathUtils, as ranges. */
static bool is_allowed(unsigned point) {
  if (point <= 0x1F || (point >= 0x7F && point <= 0x9F)) return false;
  if (point >= 0xD800 && point <= 0xF8FF) return false;
  return point < 0xFFF0;
}

TEST(every_code_point) {
  unsigned wrong = 0;
  for (unsigned point = 0; point <= 0x10FFFF; point++) {
    char text[8] = "a";
    size_t size = 1 + encode(point, text + 1);
    text[size++] = 'z';
    kv_slice key = {text, size};
    char out[KV_KEY_MAX];
    size_t out_size;
    bool taken = kv_key_canonical(key, false, out, &out_size, NULL) == KV_OK;
    if (taken != is_allowed(point)) wrong++;
    if (kv_key_is_canonical(key) != (is_allowed(point) && point != '/') && point != '/') wrong++;
  }
  CHECK_EQ(wrong, 0);
}

/* On random short strings of awkward bytes: canonical means that the long way changes nothing. */
TEST(both_ways_agree) {
  static const char *const pieces[] = {"a", "/", ".", "..", ".kv", "\xC3\xA9", "\xE2\x82\xAC", "\x1F", "\x80",
                                       "\xED\xA0\x80", "\xF0\x90\x80\x80", "\xEF\xBF\xB0", "~", " ", "\xC2", "bc"};
  unsigned wrong = 0, good = 0;
  for (unsigned round = 0; round < 300000; round++) {
    char text[64];
    size_t size = 0;
    for (uint64_t n = kv_random() % 6, bits = kv_random(); n > 0; n--, bits >>= 8) {
      const char *piece = pieces[bits & 15];
      if (bits & 0x80 && (bits & 15) > 6) piece = "/";
      memcpy(text + size, piece, strlen(piece));
      size += strlen(piece);
    }
    kv_slice key = {text, size};
    char out[KV_KEY_MAX];
    size_t out_size = 0;
    bool taken = kv_key_canonical(key, false, out, &out_size, NULL) == KV_OK;
    bool same = taken && out_size == size && memcmp(out, text, size) == 0;
    bool canon = kv_key_is_canonical(key) && !kv_key_is_own(key);
    if (same != canon) wrong++;
    if (taken && !kv_key_is_canonical((kv_slice){out, out_size})) wrong++;
    good += same;
  }
  CHECK_EQ(wrong, 0);
  CHECK(good > 10000);
}

TEST(empty_is_no_key_of_a_server) {
  CHECK(!kv_key_is_canonical(KV_TEXT("")));
  CHECK(!kv_key_is_canonical(KV_TEXT("/")));
  CHECK(!kv_key_is_canonical(KV_TEXT("a/")));
  CHECK(!kv_key_is_canonical(KV_TEXT("/a")));
  CHECK(!kv_key_is_canonical(KV_TEXT("a//b")));
  CHECK(kv_key_is_canonical(KV_TEXT(".kv/a")));
}

CHECK_MAIN()
