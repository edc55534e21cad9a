/* test_json.c - JSON and base64: values, elements of arrays in pieces of every size, what is refused; and Consul's
 * pairs from them. */
#include "check.h"
#include "drivers/consul/consul.h"

static kv_slice text(const char *string) {
  return (kv_slice){string, strlen(string)};
}

TEST(values) {
  struct json *value = json_read(
      text("{\"a\": [1, \"two\\u00e4\", null, 9007199254740992, -1, 1.5, 18446744073709551615], \"b\": {}}"));
  REQUIRE(value != NULL);
  const struct json *list = json_member(value, "a");
  uint64_t number = 0;
  kv_slice string;
  CHECK_EQ(json_count(list), 7);
  CHECK(json_number(json_item(list, 0), &number) && number == 1);
  CHECK(json_text(json_item(list, 1), &string) && string.size == 5 && memcmp(string.data, "two\xc3\xa4", 5) == 0);
  CHECK(!json_text(json_item(list, 2), &string));
  CHECK(json_number(json_item(list, 3), &number) && number == UINT64_C(9007199254740992));
  CHECK(!json_number(json_item(list, 4), &number));
  CHECK(!json_number(json_item(list, 5), &number));
  CHECK(!json_number(json_item(list, 6), &number));
  CHECK(!json_number(json_item(list, 7), &number));
  CHECK(json_item(value, 0) == NULL);
  CHECK(json_member(list, "a") == NULL);
  CHECK(json_member(NULL, "a") == NULL && json_item(NULL, 0) == NULL && json_count(NULL) == 0);
  CHECK(!json_text(NULL, &string) && !json_number(NULL, &number));
  json_free(value);
  json_free(NULL);
  const char *const bad[] = {"", "{", "[1,]", "{\"a\":}", "\"\xff\"", "nul", "[1] x", "{\"a\":1"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(json_read(text(bad[i])) == NULL);
}

/* ------------------------------------------------------------------ elements */

static char seen[4000];
static int stop_at;

static bool note(void *context, kv_slice element) {
  int *count = context;
  snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "<%.*s>", (int)element.size, element.data);
  return ++*count != stop_at;
}

/* All at once and in pieces of every size must be the same. NULL: refused. */
static const char *elements(const char *json, size_t max, bool *complete) {
  static char first[sizeof seen];
  bool good = true;
  size_t size = strlen(json);
  for (size_t piece = size ? size : 1; piece > 0; piece--) {
    struct json_elements machine;
    int count = 0;
    seen[0] = '\0';
    json_elements_init(&machine, max, note, &count);
    bool fed = true;
    for (size_t at = 0; at < size && fed; at += piece)
      fed = json_elements_feed(&machine, json + at, size - at < piece ? size - at : piece);
    if (!fed) CHECK(!json_elements_feed(&machine, "]", 1)); /* sticky */
    *complete = fed && json_elements_complete(&machine);
    json_elements_free(&machine);
    if (piece == (size ? size : 1)) {
      good = fed;
      strcpy(first, seen);
    }
    CHECK_EQ(fed, good);
    CHECK_STR(seen, first);
  }
  return good ? first : NULL;
}

TEST(arrays_in_pieces) {
  bool complete;
  CHECK_STR(elements("[]", 100, &complete), "");
  CHECK(complete);
  CHECK_STR(elements(" [ ] \n", 100, &complete), "");
  CHECK_STR(elements("[{\"a\": \"]}\\\"\"}, [1,[2]],\"x,]\\\\\" , 12,null]", 100, &complete),
            "<{\"a\": \"]}\\\"\"}><[1,[2]]><\"x,]\\\\\"><12><null>");
  CHECK(complete);
  CHECK_STR(elements("[1,2", 100, &complete), "<1>");
  CHECK(!complete);
  CHECK_STR(elements("[{\"a\":", 100, &complete), "");
  CHECK(!complete);
  CHECK_STR(elements("", 100, &complete), "");
  CHECK(!complete);
  const char *const bad[] = {"{}", "[,", "[1,,", "[1,]", "[1 2]", "[}", "[{}}", "[] x", "[:", "1"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_STR(elements(bad[i], 100, &complete), NULL);
  CHECK_STR(elements("[\"0123456789\"]", 12, &complete), "<\"0123456789\">");
  CHECK_STR(elements("[\"0123456789\"]", 11, &complete), NULL);
  stop_at = 2;
  CHECK_STR(elements("[1,2,3]", 100, &complete), NULL);
  CHECK_STR(seen, "<1><2>");
  stop_at = 0;
}

TEST(depth_is_bounded) {
  struct json_elements machine;
  int count = 0;
  json_elements_init(&machine, 1 << 20, note, &count);
  bool good = true;
  for (int i = 0; i < 1000 && good; i++) good = json_elements_feed(&machine, "[", 1);
  CHECK(!good);
  json_elements_free(&machine);
}

TEST(quotes) {
  struct kv_buffer out;
  kv_buffer_init(&out, 1000);
  CHECK(json_quote(&out, (kv_slice){"a\"b\\c\n\0\x1f\xc3\xa4", 10}));
  CHECK(kv_buffer_add(&out, "", 1));
  CHECK_STR(out.data, "\"a\\\"b\\\\c\\u000a\\u0000\\u001f\xc3\xa4\"");
  kv_buffer_free(&out);
}

/* ------------------------------------------------------------------ base64 */

static const char *encoded(const char *bytes) {
  static char out[100];
  struct kv_buffer buffer;
  kv_buffer_init(&buffer, 90);
  CHECK(base64_encode(&buffer, text(bytes)));
  snprintf(out, sizeof out, "%.*s", (int)buffer.size, buffer.data ? buffer.data : "");
  kv_buffer_free(&buffer);
  return out;
}

static const char *decoded(const char *string) {
  static char out[100];
  struct kv_buffer buffer;
  kv_buffer_init(&buffer, 90);
  bool good = base64_decode(&buffer, text(string));
  snprintf(out, sizeof out, "%.*s", (int)buffer.size, buffer.data ? buffer.data : "");
  kv_buffer_free(&buffer);
  return good ? out : NULL;
}

TEST(base64) {
  CHECK_STR(encoded(""), "");
  CHECK_STR(encoded("f"), "Zg==");
  CHECK_STR(encoded("fo"), "Zm8=");
  CHECK_STR(encoded("foo"), "Zm9v");
  CHECK_STR(encoded("foobar"), "Zm9vYmFy");
  CHECK_STR(encoded("\xff\xfe\xfd"), "//79");
  CHECK_STR(decoded(""), "");
  CHECK_STR(decoded("Zg=="), "f");
  CHECK_STR(decoded("Zm8="), "fo");
  CHECK_STR(decoded("Zm9vYmFy"), "foobar");
  CHECK_STR(decoded("//79"), "\xff\xfe\xfd");
  const char *const bad[] = {"Z", "Zg", "Zg=", "Zh==", "Zm9=", "====", "Z===", "Zg==Zg==", "Zm 9", "Zm9v\n", "Zm-_"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_STR(decoded(bad[i]), NULL);
}

TEST(base64_of_everything) {
  unsigned char bytes[600];
  for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)(i * 7 + i / 256);
  for (size_t size = 0; size <= sizeof bytes; size++) {
    struct kv_buffer there, back;
    kv_buffer_init(&there, 1000);
    kv_buffer_init(&back, 1000);
    CHECK(base64_encode(&there, (kv_slice){(char *)bytes, size}));
    CHECK_EQ(there.size, BASE64_SIZE(size));
    CHECK(base64_decode(&back, (kv_slice){there.data, there.size}));
    CHECK(back.size == size && (!size || memcmp(back.data, bytes, size) == 0));
    kv_buffer_free(&there);
    kv_buffer_free(&back);
  }
}

/* ------------------------------------------------------------------ Consul */

static bool note_pair(void *context, const struct consul_pair *pair) {
  int *count = context;
  ++*count;
  snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%.*s=%.*s@%d/%d%s%s ", (int)pair->key.size, pair->key.data,
           (int)pair->value.size, pair->value.data ? pair->value.data : "", (int)pair->revision, (int)pair->created,
           pair->session[0] ? "," : "", pair->session);
  return true;
}

static const char *pairs(const char *json) {
  struct consul_pairs machine;
  int count = 0;
  seen[0] = '\0';
  consul_pairs_init(&machine, true, note_pair, &count);
  bool good = consul_pairs_feed(&machine, json, strlen(json)) && consul_pairs_complete(&machine);
  consul_pairs_free(&machine);
  return good ? seen : NULL;
}

TEST(pairs_of_consul) {
  CHECK_STR(pairs("[{\"LockIndex\":0,\"Key\":\"a\",\"Flags\":0,\"Value\":null,\"CreateIndex\":5,\"ModifyIndex\":7},"
                  "{\"Key\":\"b/"
                  "c\",\"Flags\":18446744073709551615,\"Value\":\"Zm9v\",\"Session\":\"S\",\"CreateIndex\":1,"
                  "\"ModifyIndex\":1}]"),
            "a=@7/5 b/c=foo@1/1,S ");
  const char *const bad[] = {"[{}]",
                             "[1]",
                             "[{\"Key\":1,\"CreateIndex\":1,\"ModifyIndex\":1}]",
                             "[{\"Key\":\"a\",\"CreateIndex\":1}]",
                             "[{\"Key\":\"a\",\"CreateIndex\":1,\"ModifyIndex\":0}]",
                             "[{\"Key\":\"a\",\"CreateIndex\":-1,\"ModifyIndex\":1}]",
                             "[{\"Key\":\"a\",\"Value\":\"*\",\"CreateIndex\":1,\"ModifyIndex\":1}]",
                             ("[{\"Key\":\"a\",\"Session\":\"0123456789012345678901234567890123456789\","
                              "\"CreateIndex\":1,\"ModifyIndex\":1}]")};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_STR(pairs(bad[i]), NULL);
}

TEST(durations) {
  double seconds;
  CHECK(consul_duration(text("10s"), &seconds) && seconds == 10);
  CHECK(consul_duration(text("24h0m0s"), &seconds) && seconds == 86400);
  CHECK(consul_duration(text("1m1.5s"), &seconds) && seconds == 61.5);
  CHECK(consul_duration(text("500ms"), &seconds) && seconds > 0.49 && seconds < 0.51);
  const char *const bad[] = {"", "10", "s", "10x", "1.5", "-1s", "1s2"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(!consul_duration(text(bad[i]), &seconds));
}

TEST(sessions_in_refusals) {
  char session[CONSUL_SESSION_SIZE];
  CHECK(consul_current_session(text("failed session check for key \"k\", current session "
                                    "\"0b9b9e5d-d5a1-caf2-e0c1-356750aa8c41\" != \"\""), session));
  CHECK_STR(session, "0b9b9e5d-d5a1-caf2-e0c1-356750aa8c41");
  CHECK(!consul_current_session(text("failed session check for key \"k\", current session \"\" != \"x\""), session));
  CHECK(!consul_current_session(text("failed to check session, key \"k\" doesn't exist"), session));
  /* a key that looks like a refusal */
  CHECK(consul_current_session(
      text("failed session check for key \"\", current session \"ffffffff-ffff-ffff-ffff-ffffffffffff\", "
           "current session \"0b9b9e5d-d5a1-caf2-e0c1-356750aa8c41\" != \"\""),
      session));
  CHECK_STR(session, "0b9b9e5d-d5a1-caf2-e0c1-356750aa8c41");
}

TEST(codes) {
  CHECK_EQ(consul_code(500, text("No cluster leader"), true), KV_UNAVAILABLE);
  CHECK_EQ(consul_code(500, text("rpc error: timeout"), true), KV_UNKNOWN);
  CHECK_EQ(consul_code(500, text("rpc error: timeout"), false), KV_UNAVAILABLE);
  CHECK_EQ(consul_code(403, text("ACL not found"), true), KV_DENIED);
  CHECK_EQ(consul_code(429, text(""), true), KV_UNAVAILABLE);
  CHECK_EQ(consul_code(413, text("too large"), true), KV_TOO_LARGE);
  CHECK_EQ(consul_code(400, text("bad"), true), KV_FAILED);
}

CHECK_MAIN()
