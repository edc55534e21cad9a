/* Tests of csrc/wire/grpc_answer.c through whole calls: all ways to answer one, and all of them at random. */
#include "grpc_peer.h"
#include "wire/grpc_internal.h"

static void (*scene)(struct peer_stream *stream);

static void scene_request(struct peer *peer, struct peer_stream *stream) {
  peer->request = answer_text; /* the second call finds all in order */
  scene(stream);
}

/* One call meets `act`, another on the same connection is answered. */
static void meets(void (*act)(struct peer_stream *stream), int status, const char *text, int resets) {
  static const size_t pieces[] = {1, 5, 4096};
  for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
    struct pair pair;
    struct probe probe = {.connection = NULL}, other = {.connection = NULL};
    pair_open(&pair);
    scene = act;
    pair.server.request = scene_request;
    CHECK(probe_start(&probe, pair.client, "question", 8, true));
    CHECK(probe_start(&other, pair.client, "question", 8, true));
    pump(pair.client, &pair.server, pieces[i]);
    CHECK_EQ(probe.ended, 1);
    CHECK_EQ(probe.status, status);
    CHECK_STR(probe.text, text);
    CHECK_EQ(pair.server.resets, resets);
    CHECK_EQ(other.ended, 1);
    CHECK_EQ(other.status, GRPC_OK);
    CHECK(!grpc_failed(pair.client));
    pair_close(&pair);
    CHECK_EQ(probe.ended, 1);
  }
}

static void act_trailers_only(struct peer_stream *stream) {
  peer_headers_only(stream, "200", "application/grpc", "5", "not%20here%21 100%");
}
static void act_no_words(struct peer_stream *stream) {
  peer_headers_only(stream, "200", "application/grpc+proto", "14", NULL);
}
static void act_unknown_status(struct peer_stream *stream) {
  peer_headers_only(stream, "200", "application/grpc; x=y", "77", "what");
}
static void act_bad_status(struct peer_stream *stream) {
  peer_headers_only(stream, "200", "application/grpc", "4x", "what");
}
static void act_unprintable(struct peer_stream *stream) {
  peer_headers_only(stream, "200", "application/grpc", "2",
                    "a%0Ab%00c%1b%7F%C3%A4%FF%zz%E2%82%AC%C0%80%ED%A0%80%C2%9B");
}
static void act_trailers(struct peer_stream *stream) {
  stream->peer->message = "etcdserver: mvcc: required revision has been compacted";
  peer_answer(stream, 11);
}

TEST(status_of_the_server) {
  meets(act_trailers_only, GRPC_NOT_FOUND, "not here! 100%", 0);
  meets(act_no_words, GRPC_UNAVAILABLE, "unavailable", 0);
  meets(act_unknown_status, GRPC_UNKNOWN, "what", 0);
  meets(act_bad_status, GRPC_UNKNOWN, "what", 0);
  meets(act_unprintable, GRPC_UNKNOWN, "a b c  \xc3\xa4?%zz\xe2\x82\xac?????" "??", 0);
  meets(act_trailers, GRPC_OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", 0);
}

static const char *http_status, *http_type;
static void act_http(struct peer_stream *stream) { peer_headers_only(stream, http_status, http_type, NULL, NULL); }

static ssize_t read_page(nghttp2_session *session, int32_t id, uint8_t *into, size_t size, uint32_t *flags,
                         nghttp2_data_source *source, void *data) {
  (void)session, (void)id, (void)source, (void)data;
  if (size > 6) size = 6;
  memcpy(into, "<html>", size);
  *flags |= NGHTTP2_DATA_FLAG_EOF;
  return (ssize_t)size;
}
static void act_page(struct peer_stream *stream) {
  const nghttp2_nv list[] = {peer_nv(":status", http_status), peer_nv("content-type", http_type)};
  const nghttp2_data_provider provider = {{.ptr = NULL}, read_page};
  nghttp2_submit_response(stream->peer->session, stream->id, list, 2, &provider);
}

TEST(answers_that_are_not_grpc) {
  static const struct {
    const char *status;
    int code;
  } cases[] = {{"400", GRPC_INTERNAL},    {"401", GRPC_UNAUTHENTICATED}, {"403", GRPC_PERMISSION_DENIED},
               {"404", GRPC_UNIMPLEMENTED}, {"429", GRPC_UNAVAILABLE},   {"502", GRPC_UNAVAILABLE},
               {"503", GRPC_UNAVAILABLE}, {"504", GRPC_UNAVAILABLE},     {"500", GRPC_UNKNOWN},
               {"302", GRPC_UNKNOWN}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[80];
    snprintf(text, sizeof text, "the server answered with HTTP status %s", cases[i].status);
    http_status = cases[i].status;
    http_type = "text/html";
    meets(act_http, cases[i].code, text, 0);
  }
  http_status = "503";
  meets(act_page, GRPC_UNAVAILABLE, "the server answered with HTTP status 503", 1);
  http_status = "200";
  meets(act_page, GRPC_GARBLED, "the answer is not gRPC (content-type text/html)", 1);
  http_type = "application/grpcat";
  meets(act_http, GRPC_GARBLED, "the answer is not gRPC (content-type application/grpcat)", 0);
  http_type = NULL;
  meets(act_http, GRPC_GARBLED, "the answer is not gRPC (no content-type)", 0);
  http_type = "application/grpc";
  meets(act_http, GRPC_GARBLED, "the server ended the stream without grpc-status", 0);
}

static void act_no_trailers(struct peer_stream *stream) {
  peer_message(stream, "hello", 5);
  peer_answer(stream, -1);
}
static void act_half_message(struct peer_stream *stream) {
  peer_prefix(stream, 0, 100);
  peer_raw(stream, "half", 4);
  peer_answer(stream, 0);
}
static void act_half_prefix(struct peer_stream *stream) {
  peer_raw(stream, "\0\0", 2);
  peer_answer(stream, 0);
}
static void act_half_no_trailers(struct peer_stream *stream) {
  peer_raw(stream, "\0\0", 2);
  peer_answer(stream, -1);
}
static void act_half_error(struct peer_stream *stream) {
  peer_raw(stream, "\0\0", 2);
  peer_answer(stream, 8);
}
static void act_compressed(struct peer_stream *stream) {
  peer_prefix(stream, 1, 4);
  peer_raw(stream, "data", 4);
  peer_answer(stream, 0);
}
static void act_too_large(struct peer_stream *stream) {
  peer_prefix(stream, 0, LARGE + 1);
  peer_answer(stream, -2);
}
static void act_absurd(struct peer_stream *stream) {
  peer_prefix(stream, 0, 0xffffffff);
  peer_answer(stream, -2);
}

TEST(broken_messages) {
  meets(act_no_trailers, GRPC_GARBLED, "the server ended the stream without grpc-status", 0);
  meets(act_half_message, GRPC_GARBLED, "the server ended the stream inside a message", 0);
  meets(act_half_prefix, GRPC_GARBLED, "the server ended the stream inside a message", 0);
  meets(act_half_no_trailers, GRPC_GARBLED, "the server ended the stream without grpc-status, inside a message", 0);
  meets(act_half_error, GRPC_RESOURCE_EXHAUSTED, "resource exhausted", 0);
  meets(act_compressed, GRPC_GARBLED, "the server sent a compressed message, which was not asked for", 1);
  meets(act_too_large, GRPC_GARBLED, "the server sent a message of 1048577 bytes, more than 1048576 are not taken", 1);
  meets(act_absurd, GRPC_GARBLED, "the server sent a message of 4294967295 bytes, more than 1048576 are not taken", 1);
}

static void act_reset(struct peer_stream *stream) {
  nghttp2_submit_rst_stream(stream->peer->session, 0, stream->id, NGHTTP2_INTERNAL_ERROR);
}
static void act_refuse(struct peer_stream *stream) {
  nghttp2_submit_rst_stream(stream->peer->session, 0, stream->id, NGHTTP2_REFUSED_STREAM);
}
static void act_calm(struct peer_stream *stream) {
  peer_message(stream, "hello", 5);
  peer_answer(stream, -2);
  nghttp2_submit_rst_stream(stream->peer->session, 0, stream->id, NGHTTP2_ENHANCE_YOUR_CALM);
}

TEST(resets) {
  meets(act_reset, GRPC_CUT, "the server reset the stream (INTERNAL_ERROR)", 0);
  meets(act_refuse, GRPC_NOT_SENT, "the server reset the stream (REFUSED_STREAM)", 0);
  meets(act_calm, GRPC_CUT, "the server reset the stream (ENHANCE_YOUR_CALM)", 0);
}

static void large_headers(struct peer_stream *stream, size_t each, size_t count) {
  char *value = malloc(each + 1);
  nghttp2_nv list[64];
  if (!value) abort();
  memset(value, 'v', each);
  value[each] = '\0';
  list[0] = peer_nv(":status", "200");
  list[1] = peer_nv("content-type", "application/grpc");
  list[2] = peer_nv("grpc-status", "0");
  for (size_t i = 3; i < 3 + count; i++) list[i] = peer_nv("x-filler", value);
  nghttp2_submit_response(stream->peer->session, stream->id, list, 3 + count, NULL);
  free(value);
}
static void act_large_header(struct peer_stream *stream) { large_headers(stream, 17000, 1); }
static void act_many_headers(struct peer_stream *stream) { large_headers(stream, 1000, 20); }
static void act_enough_headers(struct peer_stream *stream) { large_headers(stream, 1000, 10); }
static void act_long_words(struct peer_stream *stream) {
  char words[1001];
  memset(words, 'w', 1000);
  words[1000] = '\0';
  peer_headers_only(stream, "200", "application/grpc", "2", words);
}

TEST(large_headers_end_a_call) {
  char words[201];
  memset(words, 'w', 200);
  words[200] = '\0';
  meets(act_large_header, GRPC_GARBLED, "the server sent too large headers", 1);
  meets(act_many_headers, GRPC_GARBLED, "the server sent too large headers", 1);
  meets(act_enough_headers, GRPC_OK, "ok", 0);
  meets(act_long_words, GRPC_UNKNOWN, words, 0);
}

static void act_informational(struct peer_stream *stream) {
  const nghttp2_nv hint = peer_nv(":status", "103");
  for (int i = 0; i < 3; i++) nghttp2_submit_headers(stream->peer->session, 0, stream->id, NULL, &hint, 1, NULL);
  answer_text(stream->peer, stream);
}
static void act_endless_informational(struct peer_stream *stream) {
  const nghttp2_nv hint[] = {peer_nv(":status", "103"), peer_nv("link", "0123456789012345678901234567890123456789")};
  for (int i = 0; i < 1000; i++) nghttp2_submit_headers(stream->peer->session, 0, stream->id, NULL, hint, 2, NULL);
}

TEST(informational_answers) {
  meets(act_informational, GRPC_OK, "ok", 0);
  meets(act_endless_informational, GRPC_GARBLED, "the server sent too large headers", 1);
}

/* ------------------------------------------------------------------ memory */

static const uint8_t *feed_at;
static size_t feed_left;
static char why[KV_GRPC_TEXT_MAX + 4];

static enum kv_grpc_read take(struct kv_grpc_reader *reader, struct kv_grpc_limits *limits, const void *data,
                              size_t size) {
  const uint8_t *message;
  size_t message_size;
  feed_at = data;
  feed_left = size;
  return kv_grpc_reader_take(reader, limits, &feed_at, &feed_left, &message, &message_size, why);
}

TEST(claimed_sizes_are_not_believed) {
  struct kv_grpc_limits limits = {.message_max = (size_t)1 << 30, .held_max = (size_t)1 << 31};
  struct kv_grpc_reader reader = {.data = NULL};
  CHECK_EQ(take(&reader, &limits, "\0\x40\0\0\0data", 9), KV_GRPC_READ_MORE); /* says that a gigabyte follows */
  CHECK(kv_grpc_reader_half(&reader));
  CHECK_EQ(feed_left, 0);
  CHECK_EQ(limits.held, (size_t)1 << 20);
  kv_grpc_reader_reset(&reader, &limits, 0);
  CHECK_EQ(limits.held, 0);
  CHECK(!kv_grpc_reader_half(&reader));
}

TEST(incomplete_messages_share_a_limit) {
  struct kv_grpc_limits limits = {.message_max = 1000, .held_max = 1500};
  struct kv_grpc_reader first = {.data = NULL}, second = {.data = NULL}, third = {.data = NULL};
  CHECK_EQ(take(&first, &limits, "\0\0\0\3\xe8one", 8), KV_GRPC_READ_MORE);
  CHECK_EQ(limits.held, 1000);
  CHECK_EQ(take(&second, &limits, "\0\0\0\3\xe8one", 8), KV_GRPC_READ_FAILED);
  CHECK_STR(why, "the answers in flight are too large together (over 1500 bytes)");
  CHECK_EQ(take(&third, &limits, "\0\0\0\0\4data", 9), KV_GRPC_READ_MESSAGE); /* whole: takes no room */
  CHECK_EQ(limits.held, 1000);
  kv_grpc_reader_reset(&first, &limits, 0);
  kv_grpc_reader_reset(&second, &limits, 0);
  CHECK_EQ(limits.held, 0);
}

TEST(texts_are_cut_between_characters) {
  char text[8];
  static const uint8_t euros[] = "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac";
  kv_grpc_printable(text, sizeof text, euros, 9, false);
  CHECK_STR(text, "\xe2\x82\xac\xe2\x82\xac");
  kv_grpc_printable(text, sizeof text, euros, 5, false);
  CHECK_STR(text, "\xe2\x82\xac??");
  kv_grpc_printable(text, sizeof text, (const uint8_t *)"%41%4", 5, true);
  CHECK_STR(text, "A%4");
  kv_grpc_printable(text, sizeof text, (const uint8_t *)"%41", 3, false);
  CHECK_STR(text, "%41");
  kv_grpc_printable(text, sizeof text, NULL, 0, true);
  CHECK_STR(text, "");
}

/* ------------------------------------------------------------------ all at once */

static uint32_t dice_state;
static uint32_t dice(uint32_t sides) {
  dice_state = dice_state * 1664525u + 1013904223u;
  return (dice_state >> 8) % sides;
}

static void act_at_random(struct peer *peer, struct peer_stream *stream) {
  static uint8_t data[30000];
  switch (dice(12)) {
    case 0: act_reset(stream); break;
    case 1: act_refuse(stream); break;
    case 2: act_trailers_only(stream); break;
    case 3: act_half_message(stream); break;
    case 4: act_compressed(stream); break;
    case 5: act_many_headers(stream); break;
    case 6: break;
    case 7: answer_three(peer, stream); break;
    default:
      for (uint32_t i = dice(5); i > 0; i--) peer_message(stream, data, dice(sizeof data));
      peer_answer(stream, 0);
  }
}

TEST(random_life) {
  enum { CALLS = 400 };
  static struct probe probes[CALLS];
  for (uint32_t seed = 1; seed <= 60; seed++) {
    struct pair pair;
    dice_state = seed;
    memset(probes, 0, sizeof probes);
    const nghttp2_settings_entry limit = {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 1 + dice(100)};
    pair_open_with(&pair, &limit, 1);
    pair.server.request = act_at_random;
    bool started[CALLS] = {false};
    for (int i = 0; i < CALLS; i++) {
      probes[i].cancel_in_message = dice(20) == 0;
      probes[i].refuse = dice(20) == 0;
      if (dice(10) == 0) probes[i].cancel_in_end = &probes[dice(CALLS)];
      started[i] = probe_start(&probes[i], pair.client, "question", dice(9), dice(4) > 0);
      if (dice(3) == 0) pump_up(pair.client, &pair.server, 1 + dice(300));
      if (dice(3) == 0) pump_down(pair.client, &pair.server, 1 + dice(3000));
      if (dice(10) == 0) grpc_cancel(pair.client, &probes[dice((uint32_t)i + 1)].call);
      if (dice(10) == 0) grpc_send(pair.client, &probes[dice((uint32_t)i + 1)].call, "more", 4);
      if (dice(1000) == 0) nghttp2_submit_goaway(pair.server.session, 0, pair.server.opened * 2 - 1, 0, NULL, 0);
      if (dice(2000) == 0) grpc_break(pair.client, "bad luck");
    }
    pump(pair.client, &pair.server, 1 + dice(5000));
    pair_close(&pair);
    for (int i = 0; i < CALLS; i++) CHECK_EQ(probes[i].ended, started[i]);
  }
}

CHECK_MAIN()
