/*
 * Tests of csrc/wire/grpc.c when memory runs out: each allocation of a life with several calls fails in turn, those
 * of nghttp2 among them. Whatever fails, every call that was started ends once, and nothing is left behind.
 *
 * The binary's own malloc() stands before the C library's. Under sanitizers and valgrind, which bring theirs, nothing
 * fails.
 */
#include "wire/grpc.h"

#include <stdbool.h>
#include <stddef.h>

static bool counting;        /* the client is at work, not the server of the test */
static long fail_at, counted, living;

static bool feed_counted(struct grpc_connection *connection, const uint8_t *data, size_t size) {
  counting = true;
  bool good = grpc_feed(connection, data, size);
  counting = false;
  return good;
}
static ptrdiff_t produce_counted(struct grpc_connection *connection, uint8_t *out, size_t size) {
  counting = true;
  ptrdiff_t got = grpc_produce(connection, out, size);
  counting = false;
  return got;
}

#define grpc_feed feed_counted
#define grpc_produce produce_counted
#include "grpc_peer.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

#ifndef SANITIZED
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *pointer, size_t size);
extern void __libc_free(void *pointer);

static bool refused(void) { return counting && ++counted == fail_at; }

static void *given(void *pointer) {
  if (pointer) living++;
  return pointer;
}
#pragma GCC visibility push(default) /* nghttp2's calls are to end here as well */
void *malloc(size_t size) { return refused() ? NULL : given(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return refused() ? NULL : given(__libc_calloc(count, size)); }
void *realloc(void *pointer, size_t size) {
  if (refused()) return NULL;
  void *moved = __libc_realloc(pointer, size);
  if (!pointer) given(moved);
  return moved;
}
void free(void *pointer) {
  if (pointer) living--;
  __libc_free(pointer);
}
#pragma GCC visibility pop
#endif

static void answer_some(struct peer *peer, struct peer_stream *stream) {
  static uint8_t data[40000];
  (void)peer;
  if (stream->id % 8 == 7) {
    peer_headers_only(stream, "200", "application/grpc", "5", "no");
    return;
  }
  peer_message(stream, data, stream->id % 3 == 0 ? sizeof data : 10);
  peer_answer(stream, 0);
}

/* One life; the allocation number `at` of the client fails. Returns how many calls went well. */
static int live(long at) {
  static const char *const token = "a token of some length, as servers give them";
  static const nghttp2_settings_entry ten = {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 10};
  struct probe probes[20];
  bool started[20] = {false};
  struct peer server;
  int good = 0;
  memset(probes, 0, sizeof probes);
  counted = 0;
  fail_at = at;
  counting = true;
  struct grpc_connection *client = grpc_connection_new("example:2379", false, LARGE, 1 << 18);
  counting = false;
  if (!client) return 0;
  peer_open(&server, &ten, 1);
  server.request = answer_some;
  for (int i = 0; i < 20; i++) {
    const struct grpc_metadata metadata = {"token", token};
    probes[i].connection = client;
    probes[i].call.handler = &probe_handler;
    counting = true;
    started[i] = grpc_start(client, &probes[i].call, "/a.B/C", token, 40, i % 4 > 0, &metadata, 1, 5000);
    if (i % 4 == 0) grpc_send(client, &probes[i].call, token, 30);
    if (i % 5 == 4) grpc_ping(client);
    counting = false;
    if (i % 3 == 2) pump(client, &server, 700);
    counting = true;
    if (i % 4 == 0) grpc_send(client, &probes[i].call, token, 30);
    if (i % 8 == 4) grpc_cancel(client, &probes[i].call);
    counting = false;
  }
  pump(client, &server, 3000);
  counting = true;
  grpc_connection_free(client);
  counting = false;
  for (int i = 0; i < 20; i++) {
    CHECK_EQ(probes[i].ended, started[i]);
    good += probes[i].ended && probes[i].status == GRPC_OK;
  }
  peer_close(&server);
  return good;
}

/* Is it our malloc() that answers? */
static bool hooked(void) {
  counted = fail_at = 0;
  counting = true;
  void *volatile pointer = malloc(1);
  counting = false;
  free(pointer);
  return counted == 1;
}

TEST(every_allocation_fails_once) {
  int all = live(0);
  long total = counted;
  CHECK(all >= 10);
  if (!hooked()) return;
  CHECK(total > 50);
  for (long at = 1; at <= total; at++) {
    long before = living;
    live(at);
    CHECK_EQ(living, before);
  }
  CHECK_EQ(live(0), all);
}

CHECK_MAIN()
