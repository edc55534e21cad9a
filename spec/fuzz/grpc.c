/*
 * Fuzzing of csrc/wire/grpc.c: a client with several calls in flight is fed by a hostile server. The first byte of
 * the input chooses how:
 *   bit 7     the rest is a list of frames (type, flags, stream, size, payload) whose heads are made right here, so
 *             that the fuzzer gets past the framing; else the rest is what a server sends, as it is
 *   bit 6     the SETTINGS of the server are sent first
 *   bits 0-5  size of the pieces that are fed, 0: all at once
 * What happens between the pieces (start, send, cancel, produce, ping) follows from the input as well. Each call must
 * end once, messages must lie in memory that can be read, and the sanitizers find nothing.
 */
#include "fuzz.h"

#include "wire/grpc.h"

#define CALLS 12
#define MESSAGE_MAX 5000

struct watched {
  struct grpc_call call;
  struct grpc_connection *connection;
  bool open;
  unsigned sum;
};

static struct watched calls[CALLS];

static bool on_message(struct grpc_call *call, const uint8_t *data, size_t size) {
  struct watched *watched = (struct watched *)call;
  if (!watched->open || size > MESSAGE_MAX) abort();
  for (size_t i = 0; i < size; i++) watched->sum += data[i];
  if (size > 0 && data[0] == 0xee) grpc_cancel(watched->connection, call);
  if (size > 0 && data[0] == 0xef) grpc_break(watched->connection, "broken");
  return size == 0 || data[0] != 0xed;
}

static void on_end(struct grpc_call *call, int status, const char *message) {
  struct watched *watched = (struct watched *)call;
  size_t length = strlen(message);
  if (!watched->open || length == 0 || length > 400 || status < GRPC_GARBLED || status > GRPC_UNAUTHENTICATED) abort();
  for (size_t i = 0; i < length; i++)
    if ((unsigned char)message[i] < 0x20) abort();
  watched->open = false;
}

static const struct grpc_handler handler = {on_message, on_end};

static void start(struct grpc_connection *connection, struct watched *watched, bool end_stream) {
  if (watched->open) return;
  watched->connection = connection;
  watched->call.handler = &handler;
  watched->open = true;
  watched->open = grpc_start(connection, &watched->call, "/a.B/C", "message", 7, end_stream, NULL, 0, 1000);
}

static void produce(struct grpc_connection *connection) {
  uint8_t out[100];
  while (grpc_produce(connection, out, sizeof out) > 0) continue;
}

/* Something that an owner might do. */
static void act(struct grpc_connection *connection, unsigned what) {
  struct watched *watched = &calls[(what >> 3) % CALLS];
  switch (what & 7) {
    case 0: start(connection, watched, true); break;
    case 1: start(connection, watched, false); break;
    case 2:
      if (watched->open) grpc_cancel(connection, &watched->call);
      break;
    case 3:
      if (watched->open) grpc_send(connection, &watched->call, "more", 4);
      break;
    case 4: grpc_ping(connection); break;
    case 5:
      if (grpc_owes_acknowledgement(connection)) grpc_acknowledge(connection);
      break;
    default: produce(connection); break;
  }
}

/* Fed from the heap in its exact size, so that each step beyond is seen. */
static bool feed(struct grpc_connection *connection, const uint8_t *data, size_t size) {
  uint8_t *copy = malloc(size ? size : 1);
  if (!copy) abort();
  if (size > 0) memcpy(copy, data, size);
  bool good = grpc_feed(connection, copy, size);
  free(copy);
  return good;
}

static void feed_bytes(struct grpc_connection *connection, const uint8_t *data, size_t size, size_t piece) {
  if (piece == 0) piece = size ? size : 1;
  for (size_t at = 0; at < size; at += piece) {
    size_t now = size - at < piece ? size - at : piece;
    if (!feed(connection, data + at, now)) break;
    if (data[at] & 1) act(connection, data[at] >> 1);
  }
}

static void feed_frames(struct grpc_connection *connection, const uint8_t *data, size_t size) {
  static const uint8_t streams[16] = {0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 2, 99};
  while (size >= 4) {
    size_t payload = data[3] < size - 4 ? data[3] : size - 4;
    uint8_t frame[9 + 255] = {0, 0, (uint8_t)payload, data[0] % 11, data[1], 0, 0, 0, streams[data[2] & 15]};
    memcpy(frame + 9, data + 4, payload);
    if (!feed(connection, frame, 9 + payload)) return;
    if (data[2] & 16) act(connection, (unsigned)data[2] >> 5 | (unsigned)(data[1] & 0xf0));
    data += 4 + payload;
    size -= 4 + payload;
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 1) return 0;
  struct grpc_connection *connection = grpc_connection_new("host:1", false, MESSAGE_MAX, 65535);
  if (!connection) return 0;
  memset(calls, 0, sizeof calls);
  for (int i = 0; i < 4; i++) start(connection, &calls[i], i != 3);
  produce(connection);
  start(connection, &calls[4], true); /* not sent */
  if (data[0] & 0x40) feed(connection, (const uint8_t *)"\0\0\0\4\0\0\0\0\0", 9);
  if (data[0] & 0x80) feed_frames(connection, data + 1, size - 1);
  else feed_bytes(connection, data + 1, size - 1, data[0] & 0x3f);
  produce(connection);
  grpc_connection_free(connection);
  for (int i = 0; i < CALLS; i++)
    if (calls[i].open) abort();
  return 0;
}
