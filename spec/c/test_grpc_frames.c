/* Tests of csrc/wire/grpc.c against servers made of raw bytes: what breaks HTTP/2, and floods. */
#include "grpc_peer.h"

#define GOOD_HEADERS "\x88\x5f\x10" "application/grpc" /* HPACK: :status 200, content-type */

struct bytes {
  uint8_t data[1 << 16];
  size_t size;
};

static void add(struct bytes *bytes, const void *data, size_t size) {
  if (bytes->size + size > sizeof bytes->data) abort();
  if (size > 0) memcpy(bytes->data + bytes->size, data, size);
  bytes->size += size;
}

static void add_frame(struct bytes *bytes, int type, int flags, int stream, const void *data, size_t size) {
  const uint8_t head[9] = {(uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size, (uint8_t)type, (uint8_t)flags,
                           (uint8_t)(stream >> 24), (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream};
  add(bytes, head, sizeof head);
  add(bytes, data, size);
}

static struct bytes raw;

static void raw_begin(void) {
  raw.size = 0;
  add_frame(&raw, 4, 0, 0, NULL, 0);
}

/* A client with one call that was sent and one that was not is fed `raw`. */
static void raw_fed(bool fails, int status, const char *text, int line) {
  int before = atomic_load(&check_failures);
  for (size_t piece = 1; piece <= sizeof raw.data; piece = piece * 37) {
    struct probe sent = {.connection = NULL}, queued = {.connection = NULL};
    struct grpc_connection *client = grpc_connection_new("a", false, LARGE, WINDOW);
    CHECK(probe_start(&sent, client, "question", 8, true));
    drain(client);
    CHECK(probe_start(&queued, client, "question", 8, true));
    bool good = true;
    for (size_t at = 0; good && at < raw.size; at += piece)
      good = grpc_feed(client, raw.data + at, raw.size - at < piece ? raw.size - at : piece);
    if (fails) {
      CHECK(!good);
      CHECK(grpc_failed(client));
      CHECK_EQ(queued.status, GRPC_NOT_SENT);
      CHECK(strstr(grpc_problem(client), text) != NULL);
    } else {
      CHECK(good);
      CHECK_EQ(queued.ended, 0);
    }
    CHECK_EQ(sent.ended, 1);
    CHECK_EQ(sent.status, status);
    if (text) CHECK(strstr(sent.text, text) != NULL);
    grpc_connection_free(client);
    CHECK_EQ(sent.ended + queued.ended, 2);
  }
  if (atomic_load(&check_failures) > before) fprintf(stderr, "  with the bytes of line %d\n", line);
}

#define raw_end(fails, status, text) raw_fed(fails, status, text, __LINE__)

TEST(other_protocols) {
  raw.size = 0;
  add(&raw, "HTTP/1.1 400 Bad Request\r\n\r\n", 28);
  for (int i = 0; i < 1; i++) {
    struct probe probe = {.connection = NULL};
    struct grpc_connection *client = grpc_connection_new("a", false, LARGE, WINDOW);
    CHECK(probe_start(&probe, client, "question", 8, true));
    drain(client);
    CHECK(!grpc_feed(client, raw.data, raw.size));
    CHECK_EQ(probe.status, GRPC_GARBLED);
    CHECK_STR(probe.text, "the server answers with HTTP/1, not HTTP/2");
    grpc_connection_free(client);
    client = grpc_connection_new("a", false, LARGE, WINDOW);
    CHECK(!grpc_feed(client, (const uint8_t *)"\x15\x03\x01\x00\x02\x02\x46", 7));
    CHECK_STR(grpc_problem(client), "the server wants TLS");
    grpc_connection_free(client);
  }
  raw.size = 0;
  add(&raw, "SSH-2.0-OpenSSH_9.2\r\nand much more of that", 42);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw.size = 0;
  for (int i = 0; i < 100; i++) add(&raw, "\0\0\0\0", 4);
  raw_end(true, GRPC_GARBLED, "unexpected data while we expected SETTINGS");
}

TEST(frames_that_break_the_connection) {
  uint8_t zeros[64] = {0};
  raw_begin(); /* a frame larger than we announced */
  add(&raw, "\x01\x00\x00\x00\x00\x00\x00\x00\x01", 9);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* DATA on the connection */
  add_frame(&raw, 0, 0, 0, "data", 4);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* PUSH_PROMISE, which was switched off, and the server has said that it knows */
  add_frame(&raw, 4, 1, 0, NULL, 0);
  add_frame(&raw, 5, 4, 1, "\0\0\0\2\x82", 5);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* CONTINUATION of nothing */
  add_frame(&raw, 9, 4, 1, "\x88", 1);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* headers of a stream of the server */
  add_frame(&raw, 1, 5, 2, "\x88", 1);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* headers of a stream that never was */
  add_frame(&raw, 1, 5, 99, "\x88", 1);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* HPACK: index beyond every table */
  add_frame(&raw, 1, 5, 1, "\xff\xff\xff\x7f", 4);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* window update of nothing */
  add_frame(&raw, 8, 0, 1, "\0\0\0\0", 4);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* window beyond 2^31 */
  add_frame(&raw, 8, 0, 0, "\x7f\xff\xff\xff", 4);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* SETTINGS of an odd size */
  add_frame(&raw, 4, 0, 0, zeros, 5);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* SETTINGS ack that nobody owes */
  add_frame(&raw, 4, 1, 0, NULL, 0);
  add_frame(&raw, 4, 1, 0, NULL, 0);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* padding larger than the frame */
  add_frame(&raw, 1, 4, 1, GOOD_HEADERS, sizeof GOOD_HEADERS - 1);
  add_frame(&raw, 0, 8, 1, "\xff""a", 2);
  raw_end(true, GRPC_GARBLED, "");
}

TEST(frames_that_break_one_call) {
  raw_begin(); /* DATA before headers */
  add_frame(&raw, 0, 0, 1, "data", 4);
  raw_end(true, GRPC_GARBLED, "HTTP/2");
  raw_begin(); /* headers without :status */
  add_frame(&raw, 1, 4, 1, "\x00\x01""a\x01""b", 5);
  raw_end(false, GRPC_GARBLED, "the server broke HTTP/2");
}

/* Feed the same frame for ever, or a million times, without sending anything back. */
static int flood(struct bytes *first, struct bytes *again, const char *text, struct probe *probe) {
  struct grpc_connection *client = grpc_connection_new("a", false, LARGE, WINDOW);
  CHECK(probe_start(probe, client, "question", 8, true));
  drain(client);
  int fed = 0;
  bool good = grpc_feed(client, first->data, first->size);
  while (good && fed < 1000000) good = grpc_feed(client, again->data, again->size), fed++;
  CHECK_EQ(good, text == NULL);
  if (text) CHECK_STR(grpc_problem(client), text);
  grpc_connection_free(client);
  CHECK_EQ(probe->ended, 1);
  return fed;
}

TEST(floods_are_bounded) {
  static const char flooded[] = "HTTP/2: Flooding was detected in this HTTP/2 session, and it must be closed";
  static struct bytes again;
  struct probe probe = {.connection = NULL};
  raw_begin();
  again.size = 0;
  add_frame(&again, 6, 0, 0, "12345678", 8);
  CHECK(flood(&raw, &again, flooded, &probe) < 1000);
  again.size = 0;
  add_frame(&again, 4, 0, 0, NULL, 0);
  probe = (struct probe){.connection = NULL};
  CHECK(flood(&raw, &again, flooded, &probe) < 1000);
  /* CONTINUATION without end, with and without anything in it */
  for (int empty = 0; empty < 2; empty++) {
    char value[1100] = {0x00, 0x01, 'a', 0x7f, (char)0x81, 0x07}; /* a literal of 1024 bytes */
    raw_begin();
    add_frame(&raw, 1, 0, 1, "\x88", 1);
    again.size = 0;
    add_frame(&again, 9, 0, 1, value, empty ? 0 : 6 + 1024);
    probe = (struct probe){.connection = NULL};
    struct grpc_connection *client = grpc_connection_new("a", false, LARGE, WINDOW);
    CHECK(probe_start(&probe, client, "question", 8, true));
    drain(client);
    int fed = 0;
    bool good = grpc_feed(client, raw.data, raw.size);
    while (good && fed < 1000000) good = grpc_feed(client, again.data, again.size), fed++;
    CHECK(!good);
    CHECK(fed < 200000);
    CHECK_EQ(probe.status, GRPC_GARBLED);
    grpc_connection_free(client);
  }
  /* empty DATA only costs the sender */
  raw_begin();
  add_frame(&raw, 1, 4, 1, GOOD_HEADERS, sizeof GOOD_HEADERS - 1);
  again.size = 0;
  add_frame(&again, 0, 0, 1, NULL, 0);
  probe = (struct probe){.connection = NULL};
  CHECK_EQ(flood(&raw, &again, NULL, &probe), 1000000);
  CHECK_EQ(probe.messages, 0);
  /* resets of streams that are over */
  raw_begin();
  again.size = 0;
  add_frame(&again, 3, 0, 1, "\0\0\0\2", 4);
  probe = (struct probe){.connection = NULL};
  CHECK_EQ(flood(&raw, &again, NULL, &probe), 1000000);
}

CHECK_MAIN()
