/*
 * test_protobuf.c - the protobuf reader and writer (csrc/wire/protobuf.c), and etcd's messages on top of them: good
 * ones, each byte that may be missing, and numbers that cannot be.
 */
#include "check.h"
#include "drivers/etcd/messages.h"

#define BYTES(...) ((const uint8_t[]){__VA_ARGS__}), sizeof((const uint8_t[]){__VA_ARGS__})

/* ------------------------------------------------------------------ reading */

/* The first field of these bytes, and whether all of them are well. */
static bool read_one(const void *data, size_t size, struct pb_field *field) {
  struct pb_reader reader;
  struct pb_field rest;
  pb_reader_init(&reader, data, size);
  if (!pb_next(&reader, field)) return false;
  while (pb_next(&reader, &rest)) continue;
  return pb_ok(&reader);
}

TEST(reads_all_types) {
  struct pb_field field;
  REQUIRE(read_one(BYTES(0x08, 0x96, 0x01), &field));
  CHECK_EQ(field.number, 1);
  CHECK_EQ(field.type, PB_VARINT);
  CHECK_EQ(field.value, 150);
  static const uint8_t bytes[] = {0x12, 0x03, 'a', 0x00, 'c'}; /* the field points into them */
  REQUIRE(read_one(bytes, sizeof bytes, &field));
  CHECK_EQ(field.number, 2);
  CHECK_EQ(field.type, PB_BYTES);
  CHECK(field.size == 3 && memcmp(field.data, "a\0c", 3) == 0);
  REQUIRE(read_one(BYTES(0x1d, 1, 2, 3, 4), &field));
  CHECK_EQ(field.type, PB_FIXED32);
  CHECK_EQ(field.value, 0x04030201);
  REQUIRE(read_one(BYTES(0x21, 1, 2, 3, 4, 5, 6, 7, 8), &field));
  CHECK_EQ(field.type, PB_FIXED64);
  CHECK_EQ(field.value, INT64_C(0x0807060504030201));
  REQUIRE(read_one(BYTES(0x0a, 0x00), &field));
  CHECK_EQ(field.size, 0);
}

TEST(reads_the_largest_numbers) {
  struct pb_field field;
  REQUIRE(read_one(BYTES(0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01), &field));
  CHECK(field.value == UINT64_MAX);
  REQUIRE(read_one(BYTES(0xf8, 0xff, 0xff, 0xff, 0x0f, 0x01), &field));
  CHECK_EQ(field.number, (1 << 29) - 1);
  REQUIRE(read_one(BYTES(0x08, 0x80, 0x80, 0x00), &field)); /* longer than it needs to be */
  CHECK_EQ(field.value, 0);
}

TEST(an_empty_message_is_one) {
  struct pb_reader reader;
  struct pb_field field;
  pb_reader_init(&reader, NULL, 0);
  CHECK(!pb_next(&reader, &field));
  CHECK(pb_ok(&reader));
}

TEST(refuses_what_is_malformed) {
  static const struct {
    const char *bytes;
    size_t size;
  } bad[] = {
    {"\x08", 1},                                         /* no value */
    {"\x08\x80", 2},                                     /* half a number */
    {"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11}, /* 65 bits */
    {"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12},
    {"\x00\x01", 2},                                     /* field 0 */
    {"\x80\x80\x80\x80\x10\x01", 6},                     /* field 2^29 */
    {"\x0b\x0c", 2},                                     /* a group */
    {"\x0e\x01", 2}, {"\x0f\x01", 2},                    /* types that are none */
    {"\x0a\x03" "ab", 4},                                /* longer than what is there */
    {"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11}, /* 2^64 - 1 bytes */
    {"\x0a\xff\xff\xff\xff\x0f" "a", 7},
    {"\x0d\x01\x02\x03", 4},
    {"\x09\x01\x02\x03\x04\x05\x06\x07", 8}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    struct pb_reader reader;
    struct pb_field field;
    uint8_t *copy = malloc(bad[i].size); /* of the exact size, so that ASan sees each step beyond */
    REQUIRE(copy != NULL);
    memcpy(copy, bad[i].bytes, bad[i].size);
    pb_reader_init(&reader, copy, bad[i].size);
    while (pb_next(&reader, &field)) continue;
    CHECK(!pb_ok(&reader));
    if (pb_ok(&reader)) fprintf(stderr, "case %zu\n", i);
    CHECK(!pb_next(&reader, &field)); /* for good */
    free(copy);
  }
}

TEST(a_caller_may_refuse) {
  struct pb_reader reader;
  struct pb_field field;
  pb_reader_init(&reader, BYTES(0x08, 0x01, 0x10, 0x02));
  REQUIRE(pb_next(&reader, &field));
  CHECK(!pb_reject(&reader));
  CHECK(!pb_ok(&reader));
  CHECK(!pb_next(&reader, &field));
}

/* ------------------------------------------------------------------ writing */

static bool wrote(const struct pb_writer *writer, const void *bytes, size_t size) {
  return !writer->failed && writer->size == size && (size == 0 || memcmp(writer->data, bytes, size) == 0);
}

TEST(writes) {
  struct pb_writer writer;
  pb_writer_init(&writer, 1000);
  pb_number(&writer, 1, 0); /* left out */
  pb_bytes(&writer, 2, "", 0);
  CHECK(wrote(&writer, "", 0));
  pb_number(&writer, 1, 150);
  pb_number_always(&writer, 2, 0);
  pb_bytes(&writer, 3, "xyz", 3);
  pb_bytes_always(&writer, 4, NULL, 0);
  pb_number(&writer, 16, UINT64_MAX);
  CHECK(wrote(&writer, BYTES(0x08, 0x96, 0x01, 0x10, 0x00, 0x1a, 3, 'x', 'y', 'z', 0x22, 0, 0x80, 0x01, 0xff, 0xff,
                             0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01)));
  pb_clear(&writer);
  size_t outer = pb_begin(&writer, 1), inner = pb_begin(&writer, 2);
  pb_bytes(&writer, 3, "in", 2);
  pb_end(&writer, inner);
  pb_number(&writer, 4, 1);
  pb_end(&writer, outer);
  size_t empty = pb_begin(&writer, 5);
  pb_end(&writer, empty);
  CHECK(wrote(&writer, BYTES(0x0a, 8, 0x12, 4, 0x1a, 2, 'i', 'n', 0x20, 1, 0x2a, 0)));
  pb_writer_free(&writer);
}

/* The length of what is nested takes more than a byte: it moves. */
TEST(writes_long_nested_messages) {
  struct pb_writer writer;
  static char text[300];
  struct pb_field field;
  memset(text, 't', sizeof text);
  pb_writer_init(&writer, 10000);
  size_t mark = pb_begin(&writer, 1);
  pb_bytes(&writer, 2, text, sizeof text);
  pb_end(&writer, mark);
  REQUIRE(read_one(writer.data, writer.size, &field));
  CHECK_EQ(field.size, sizeof text + 3);
  REQUIRE(read_one(field.data, field.size, &field));
  CHECK(field.size == sizeof text && memcmp(field.data, text, sizeof text) == 0);
  pb_writer_free(&writer);
}

TEST(the_limit_holds) {
  for (size_t limit = 0; limit < 40; limit++) {
    struct pb_writer writer;
    pb_writer_init(&writer, limit);
    size_t mark = pb_begin(&writer, 1);
    pb_bytes(&writer, 2, "0123456789", 10);
    pb_number(&writer, 3, 1000);
    pb_end(&writer, mark);
    CHECK(writer.size <= limit);
    CHECK_EQ(writer.failed, limit < 17);
    pb_number(&writer, 4, UINT64_MAX); /* a failure is remembered */
    CHECK_EQ(writer.failed, limit < 17 + 11);
    pb_clear(&writer);
    CHECK(!writer.failed);
    pb_writer_free(&writer);
  }
}

/* ------------------------------------------------------------------ etcd's messages */

struct collected {
  size_t count;
  struct etcd_pair pairs[4];
};

static bool collect(void *context, const struct etcd_pair *pair) {
  struct collected *collected = context;
  if (collected->count == 4) return false;
  collected->pairs[collected->count++] = *pair;
  return true;
}

static void put_header(struct pb_writer *out, uint64_t revision) {
  size_t mark = pb_begin(out, 1);
  pb_number(out, 1, UINT64_MAX);
  pb_number(out, 2, 7);
  pb_number(out, 3, revision);
  pb_end(out, mark);
}

static void put_pair(struct pb_writer *out, uint32_t field, const char *key, uint64_t created, uint64_t revision) {
  size_t mark = pb_begin(out, field);
  pb_bytes(out, 1, key, strlen(key));
  pb_number(out, 2, created);
  pb_number(out, 3, revision);
  pb_number(out, 4, 1);
  pb_bytes(out, 5, "value", 5);
  pb_number(out, 6, 99);
  pb_end(out, mark);
}

static kv_slice message_of(const struct pb_writer *writer) {
  return (kv_slice){(const char *)writer->data, writer->size};
}

TEST(ranges) {
  struct pb_writer writer;
  struct etcd_range_reply reply;
  struct collected collected = {.count = 0};
  pb_writer_init(&writer, 10000);
  put_header(&writer, 12);
  put_pair(&writer, 2, "a", 3, 4);
  put_pair(&writer, 2, "b", 5, ETCD_REVISION_MAX - 1);
  pb_number(&writer, 3, 1);
  pb_number(&writer, 4, 1000);
  pb_number(&writer, 777, 1); /* not known here */
  REQUIRE(etcd_read_range(message_of(&writer), &reply, collect, &collected));
  CHECK(reply.header.cluster == UINT64_MAX);
  CHECK_EQ(reply.header.revision, 12);
  CHECK(reply.more);
  CHECK_EQ(reply.pairs, 2);
  CHECK_EQ(collected.pairs[0].created, 3);
  CHECK_EQ(collected.pairs[0].revision, 4);
  CHECK_EQ(collected.pairs[0].lease, 99);
  CHECK(collected.pairs[1].key.size == 1 && collected.pairs[1].key.data[0] == 'b');
  CHECK(collected.pairs[1].value.size == 5);
  /* Each shorter piece is malformed, or another good message; nothing is read beyond it. */
  for (size_t size = 0; size < writer.size; size++) {
    char *copy = malloc(size ? size : 1);
    REQUIRE(copy != NULL);
    memcpy(copy, writer.data, size);
    collected.count = 0;
    if (etcd_read_range((kv_slice){copy, size}, &reply, collect, &collected)) CHECK(reply.pairs <= 2);
    free(copy);
  }
  /* Stopped by the one who collects. */
  pb_clear(&writer);
  for (int i = 0; i < 5; i++) put_pair(&writer, 2, "k", 1, 1);
  collected.count = 0;
  CHECK(!etcd_read_range(message_of(&writer), &reply, collect, &collected));
  CHECK(etcd_read_range(message_of(&writer), &reply, NULL, NULL));
  pb_writer_free(&writer);
}

TEST(numbers_that_cannot_be) {
  struct pb_writer writer;
  struct etcd_range_reply range;
  struct etcd_put_reply put;
  pb_writer_init(&writer, 10000);
  put_header(&writer, ETCD_REVISION_MAX);
  CHECK(!etcd_read_range(message_of(&writer), &range, NULL, NULL));
  CHECK(!etcd_read_put(message_of(&writer), &put));
  pb_clear(&writer);
  put_pair(&writer, 2, "a", 1, UINT64_MAX); /* -1 */
  CHECK(!etcd_read_range(message_of(&writer), &range, NULL, NULL));
  CHECK(!etcd_read_put(message_of(&writer), &put));
  pb_clear(&writer);
  pb_number(&writer, 1, 5); /* a header that is a number */
  CHECK(!etcd_read_range(message_of(&writer), &range, NULL, NULL));
  pb_clear(&writer);
  pb_bytes(&writer, 3, "x", 1); /* a flag that is bytes */
  CHECK(!etcd_read_range(message_of(&writer), &range, NULL, NULL));
  pb_writer_free(&writer);
}

TEST(transactions) {
  struct pb_writer writer;
  static struct etcd_txn_reply reply;
  struct etcd_delete_reply gone;
  pb_writer_init(&writer, 100000);
  put_header(&writer, 5);
  pb_number(&writer, 2, 1);
  size_t step = pb_begin(&writer, 3), inner = pb_begin(&writer, ETCD_PART_DELETE);
  pb_number(&writer, 2, 3);
  pb_end(&writer, inner);
  pb_end(&writer, step);
  REQUIRE(etcd_read_txn(message_of(&writer), &reply));
  CHECK(reply.succeeded);
  REQUIRE(reply.count == 1 && reply.parts[0].kind == ETCD_PART_DELETE);
  CHECK(etcd_read_delete(reply.parts[0].message, &gone));
  CHECK_EQ(gone.deleted, 3);
  pb_clear(&writer);
  step = pb_begin(&writer, 3); /* an answer of no kind */
  pb_end(&writer, step);
  CHECK(!etcd_read_txn(message_of(&writer), &reply));
  pb_clear(&writer);
  for (int i = 0; i <= ETCD_PARTS_MAX; i++) { /* more than there can be */
    step = pb_begin(&writer, 3);
    pb_bytes_always(&writer, ETCD_PART_PUT, NULL, 0);
    pb_end(&writer, step);
    CHECK_EQ(etcd_read_txn(message_of(&writer), &reply), i < ETCD_PARTS_MAX);
  }
  pb_writer_free(&writer);
}

static void put_event(struct pb_writer *out, uint64_t type, const char *key, uint64_t revision) {
  size_t mark = pb_begin(out, 11);
  pb_number(out, 1, type);
  put_pair(out, 2, key, revision, revision);
  pb_end(out, mark);
}

TEST(watches) {
  struct pb_writer writer;
  struct etcd_watch_reply reply;
  struct etcd_event event;
  struct pb_reader reader;
  pb_writer_init(&writer, 10000);
  put_header(&writer, 9);
  pb_number(&writer, 2, (uint64_t)-1);
  pb_number(&writer, 3, 1);
  pb_number(&writer, 4, 1);
  pb_number(&writer, 5, 77);
  pb_bytes(&writer, 6, "reason", 6);
  pb_number(&writer, 7, 1);
  put_event(&writer, 0, "put", 8);
  put_event(&writer, 1, "gone", 9);
  REQUIRE(etcd_read_watch(message_of(&writer), &reply));
  CHECK_EQ(reply.id, -1);
  CHECK(reply.created && reply.cancelled && reply.fragment);
  CHECK_EQ(reply.compacted, 77);
  CHECK_EQ(reply.reason.size, 6);
  CHECK_EQ(reply.events, 2);
  etcd_events_init(&reader, message_of(&writer));
  REQUIRE(etcd_events_next(&reader, &event));
  CHECK(!event.deleted && event.pair.revision == 8);
  struct etcd_event again;
  REQUIRE(etcd_read_event(event.raw, &again));
  CHECK_EQ(again.pair.revision, 8);
  REQUIRE(etcd_events_next(&reader, &event));
  CHECK(event.deleted && event.pair.key.size == 4);
  CHECK(!etcd_events_next(&reader, &event));
  CHECK(pb_ok(&reader));
  static const struct {
    uint64_t type, revision;
  } bad[] = {{2, 5}, {0, 0}, {0, ETCD_REVISION_MAX}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    pb_clear(&writer);
    put_event(&writer, bad[i].type, "k", bad[i].revision);
    etcd_events_init(&reader, message_of(&writer));
    CHECK(!etcd_events_next(&reader, &event));
    CHECK(!pb_ok(&reader));
  }
  pb_writer_free(&writer);
}

TEST(leases_and_others) {
  struct pb_writer writer;
  struct etcd_lease_reply lease;
  struct etcd_status_reply status;
  kv_slice token;
  pb_writer_init(&writer, 10000);
  put_header(&writer, 1);
  pb_number(&writer, 2, INT64_MAX);
  pb_number(&writer, 3, (uint64_t)-1);
  REQUIRE(etcd_read_lease(message_of(&writer), &lease));
  CHECK_EQ(lease.id, INT64_MAX);
  CHECK_EQ(lease.ttl, -1);
  pb_clear(&writer);
  pb_bytes(&writer, 2, "3.4.23", 6);
  pb_number(&writer, 4, UINT64_MAX);
  REQUIRE(etcd_read_status(message_of(&writer), &status));
  CHECK_EQ(status.version.size, 6);
  CHECK(status.leader != 0);
  pb_clear(&writer);
  pb_bytes(&writer, 2, "token.1", 7);
  REQUIRE(etcd_read_authenticate(message_of(&writer), &token));
  CHECK_EQ(token.size, 7);
  pb_clear(&writer);
  pb_number(&writer, 2, 5);
  CHECK(!etcd_read_authenticate(message_of(&writer), &token));
  pb_writer_free(&writer);
}

/* What the server will read, against the same written by hand after rpc.proto. */
TEST(requests) {
  struct pb_writer writer;
  pb_writer_init(&writer, 10000);
  etcd_write_range(&writer, &(struct etcd_range){.key = KV_TEXT("a"), .end = KV_TEXT("b"), .limit = 2, .revision = 3,
                                                 .serializable = true, .keys_only = true});
  CHECK(wrote(&writer, BYTES(0x0a, 1, 'a', 0x12, 1, 'b', 0x18, 2, 0x20, 3, 0x38, 1, 0x40, 1)));
  pb_clear(&writer);
  etcd_write_range(&writer, &(struct etcd_range){.key = KV_TEXT("a"), .by_create = ETCD_DESCENDING, .max_create = 9});
  CHECK(wrote(&writer, BYTES(0x0a, 1, 'a', 0x28, 2, 0x30, 2, 0x68, 9)));
  pb_clear(&writer);
  etcd_write_put(&writer, &(struct etcd_put){.key = KV_TEXT("k"), .value = KV_TEXT("v"), .lease = 5, .previous = true});
  CHECK(wrote(&writer, BYTES(0x0a, 1, 'k', 0x12, 1, 'v', 0x18, 5, 0x20, 1)));
  pb_clear(&writer);
  etcd_write_compare(&writer, &(struct etcd_compare){.target = ETCD_CREATE, .key = KV_TEXT("k"), .end = KV_TEXT("l")});
  CHECK(wrote(&writer, BYTES(0x0a, 11, 0x10, 1, 0x1a, 1, 'k', 0x28, 0, 0x82, 0x04, 1, 'l')));
  pb_clear(&writer);
  etcd_write_delete_in(&writer, ETCD_ELSE, KV_TEXT("k"), (kv_slice){NULL, 0});
  CHECK(wrote(&writer, BYTES(0x1a, 5, 0x1a, 3, 0x0a, 1, 'k')));
  pb_clear(&writer);
  etcd_write_watch_create(&writer, &(struct etcd_watch_create){.key = KV_TEXT("k"), .from = 4, .deletes_only = true});
  CHECK(wrote(&writer, BYTES(0x0a, 10, 0x0a, 1, 'k', 0x18, 4, 0x2a, 1, 0, 0x40, 1)));
  pb_clear(&writer);
  etcd_write_watch_cancel(&writer, 3);
  CHECK(wrote(&writer, BYTES(0x12, 2, 0x08, 3)));
  pb_writer_free(&writer);
}

CHECK_MAIN()
