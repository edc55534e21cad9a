/* Tests of csrc/wire/grpc.c and grpc_answer.c: two machines that talk through buffers. */
#include "grpc_peer.h"

/* ------------------------------------------------------------------ what goes right */

TEST(unary_call) {
  struct pair pair;
  struct probe probe = {.connection = NULL};
  pair_open(&pair);
  REQUIRE(pair.client != NULL);
  CHECK(grpc_wants_write(pair.client));
  CHECK(probe_start(&probe, pair.client, "question", 8, true));
  CHECK_EQ(grpc_calls(pair.client), 1);
  CHECK(!probe.call.sent);
  pump(pair.client, &pair.server, 4096);
  CHECK(probe.call.sent);
  CHECK_EQ(probe.messages, 1);
  CHECK_EQ(probe.bytes, 5);
  CHECK_EQ(probe.ended, 1);
  CHECK_EQ(probe.status, GRPC_OK);
  CHECK_EQ(grpc_calls(pair.client), 0);
  CHECK_EQ(pair.server.streams->received, 5 + 8);
  CHECK_EQ(pair.server.resets, 0);
  CHECK(!grpc_wants_write(pair.client));
  CHECK(!grpc_draining(pair.client));
  CHECK_STR(grpc_problem(pair.client), "");
  pair_close(&pair);
  CHECK_EQ(probe.ended, 1);
}

TEST(headers_of_a_request) {
  struct pair pair;
  struct probe probe = {.call = {.handler = &probe_handler}};
  const struct grpc_metadata metadata[] = {{"token", "secret"}, {"hasleader", "true"}};
  pair_open(&pair);
  CHECK(grpc_start(pair.client, &probe.call, "/a.B/C", "", 0, true, metadata, 2, 1500));
  pump(pair.client, &pair.server, 4096);
  CHECK_STR(pair.server.streams->headers,
            ":method: POST\n:scheme: http\n:path: /a.B/C\n:authority: example:2379\nte: trailers\n"
            "content-type: application/grpc\nuser-agent: grpc-c-kv-lua/0.1\n!grpc-timeout: 1500m\n!token: secret\n"
            "hasleader: true\n");
  pair_close(&pair);
}

TEST(timeouts_have_eight_digits_at_most) {
  static const struct {
    int64_t milliseconds;
    const char *text;
  } cases[] = {{0, "timeout: 1m\n"},
               {1, "timeout: 1m\n"},
               {99999999, "timeout: 99999999m\n"},
               {100000000, "timeout: 100000S\n"},
               {INT64_MAX, "timeout: 99999999S\n"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct pair pair;
    struct probe probe = {.call = {.handler = &probe_handler}};
    pair_open(&pair);
    CHECK(grpc_start(pair.client, &probe.call, "/a.B/C", "", 0, true, NULL, 0, cases[i].milliseconds));
    pump(pair.client, &pair.server, 4096);
    CHECK(strstr(pair.server.streams->headers, cases[i].text) != NULL);
    pair_close(&pair);
  }
}

TEST(tls_changes_the_scheme) {
  struct pair pair;
  struct probe probe = {.connection = NULL};
  pair_open(&pair);
  grpc_connection_free(pair.client);
  pair.client = grpc_connection_new("example:2379", true, LARGE, WINDOW);
  CHECK(probe_start(&probe, pair.client, "", 0, true));
  pump(pair.client, &pair.server, 4096);
  CHECK(strstr(pair.server.streams->headers, ":scheme: https\n") != NULL);
  pair_close(&pair);
}

TEST(too_much_metadata_is_refused) {
  struct pair pair;
  struct probe probe = {.call = {.handler = &probe_handler}};
  struct grpc_metadata metadata[17];
  for (size_t i = 0; i < 17; i++) metadata[i] = (struct grpc_metadata){"name", "value"};
  pair_open(&pair);
  CHECK(!grpc_start(pair.client, &probe.call, "/a.B/C", "", 0, true, metadata, 17, -1));
  CHECK(grpc_start(pair.client, &probe.call, "/a.B/C", "", 0, true, metadata, 16, -1));
  pair_close(&pair);
  CHECK_EQ(probe.ended, 1);
}

TEST(huge_metadata_ends_that_call_only) {
  struct pair pair;
  struct probe probe = {.call = {.handler = &probe_handler}}, other = {.connection = NULL};
  char *value = malloc(100001);
  REQUIRE(value != NULL);
  memset(value, 'x', 100000);
  value[100000] = '\0';
  const struct grpc_metadata metadata = {"token", value};
  pair_open(&pair);
  probe.connection = pair.client;
  CHECK(grpc_start(pair.client, &probe.call, "/a.B/C", "", 0, true, &metadata, 1, -1));
  CHECK(probe_start(&other, pair.client, "", 0, true));
  pump(pair.client, &pair.server, 4096);
  CHECK_EQ(probe.ended, 1);
  CHECK_EQ(probe.status, GRPC_NOT_SENT);
  CHECK_EQ(other.status, GRPC_OK);
  CHECK_EQ(other.messages, 1);
  pair_close(&pair);
  free(value);
}

TEST(every_size_of_pieces) {
  for (size_t piece = 1; piece < 80; piece++) {
    struct pair pair;
    struct probe probes[3] = {{.connection = NULL}, {.connection = NULL}, {.connection = NULL}};
    pair_open(&pair);
    for (int i = 0; i < 3; i++) CHECK(probe_start(&probes[i], pair.client, "question", 8, true));
    pump(pair.client, &pair.server, piece);
    for (int i = 0; i < 3; i++) {
      CHECK_EQ(probes[i].ended, 1);
      CHECK_EQ(probes[i].status, GRPC_OK);
      CHECK_EQ(probes[i].bytes, 5);
    }
    pair_close(&pair);
  }
}

static size_t big_size;

static void answer_big(struct peer *peer, struct peer_stream *stream) {
  (void)peer;
  uint8_t *data = malloc(big_size + 1);
  if (!data) abort();
  memset(data, 3, big_size + 1);
  peer_message(stream, data, big_size);
  peer_message(stream, "", 0);
  peer_message(stream, data, 1);
  peer_answer(stream, 0);
  free(data);
}

TEST(messages_of_many_sizes) {
  static const size_t sizes[] = {0, 1, 4, 5, 6, 255, 16378, 16379, 16380, 16384, 65535, 65536, 200000, LARGE};
  static const size_t pieces[] = {7, 1000, 16384, 100000};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (size_t j = 0; j < sizeof pieces / sizeof *pieces; j++) {
      struct pair pair;
      struct probe probe = {.connection = NULL};
      pair_open(&pair);
      pair.server.request = answer_big;
      big_size = sizes[i];
      CHECK(probe_start(&probe, pair.client, "q", 1, true));
      pump(pair.client, &pair.server, pieces[j]);
      CHECK_EQ(probe.messages, 3);
      CHECK_EQ(probe.bytes, big_size + 1);
      CHECK_EQ(probe.sum, 3 * (big_size + 1));
      CHECK_EQ(probe.status, GRPC_OK);
      pair_close(&pair);
    }
}

TEST(large_requests_obey_the_servers_window) {
  static const nghttp2_settings_entry small = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 10};
  struct pair pair;
  struct probe probe = {.connection = NULL};
  uint8_t *data = malloc(300000);
  REQUIRE(data != NULL);
  memset(data, 1, 300000);
  pair_open_with(&pair, &small, 1);
  pump(pair.client, &pair.server, 4096);
  CHECK(probe_start(&probe, pair.client, data, 300000, true));
  pump(pair.client, &pair.server, 4096);
  CHECK_EQ(probe.status, GRPC_OK);
  CHECK_EQ(probe.ended, 1);
  CHECK_EQ(pair.server.streams->received, 300005);
  pair_close(&pair);
  free(data);
}

/* The server's frames of one exchange, to be fed at will. */
static size_t record(uint8_t *into, size_t size, void (*request)(struct peer *, struct peer_stream *), int calls) {
  struct pair pair;
  struct probe probes[8];
  memset(probes, 0, sizeof probes);
  pair_open(&pair);
  pair.server.request = request;
  for (int i = 0; i < calls; i++) CHECK(probe_start(&probes[i], pair.client, "question", 8, true));
  pump_up(pair.client, &pair.server, 4096);
  size_t total = 0;
  const uint8_t *data;
  ssize_t got;
  while ((got = nghttp2_session_mem_send(pair.server.session, &data)) > 0 && total + (size_t)got <= size) {
    memcpy(into + total, data, (size_t)got);
    total += (size_t)got;
  }
  pair_close(&pair);
  return total;
}

TEST(a_whole_message_is_not_copied) {
  uint8_t bytes[2048];
  size_t size = record(bytes, sizeof bytes, answer_text, 1);
  struct probe probe = {.connection = NULL};
  struct grpc_connection *client = grpc_connection_new("a", false, LARGE, WINDOW);
  CHECK(probe_start(&probe, client, "question", 8, true));
  drain(client);
  CHECK(grpc_feed(client, bytes, size));
  CHECK_EQ(probe.messages, 1);
  CHECK(probe.at > bytes && probe.at < bytes + size);
  grpc_connection_free(client);
}

TEST(broken_at_every_position) {
  uint8_t bytes[4096];
  size_t size = record(bytes, sizeof bytes, answer_text, 3);
  CHECK(size > 100);
  for (size_t cut = 0; cut <= size; cut++) {
    for (int then = 0; then < 3; then++) { /* the rest, the end, or something else */
      struct probe probes[4];
      memset(probes, 0, sizeof probes);
      struct grpc_connection *client = grpc_connection_new("a", false, LARGE, WINDOW);
      for (int i = 0; i < 3; i++) CHECK(probe_start(&probes[i], client, "question", 8, true));
      drain(client);
      CHECK(probe_start(&probes[3], client, "question", 8, true)); /* never leaves */
      CHECK(grpc_feed(client, bytes, cut));
      if (then == 0) {
        CHECK(grpc_feed(client, bytes + cut, size - cut));
      } else if (then == 2) {
        uint8_t noise[64];
        memset(noise, 0xff, sizeof noise);
        grpc_feed(client, noise, sizeof noise);
      }
      grpc_break(client, "gone");
      CHECK(grpc_failed(client));
      CHECK(!grpc_feed(client, bytes, 1));
      CHECK_EQ(grpc_produce(client, bytes, 0), -1);
      CHECK(!probe_start(&probes[0], client, "", 0, true));
      for (int i = 0; i < 3; i++) {
        CHECK_EQ(probes[i].ended, 1);
        if (then == 0) CHECK_EQ(probes[i].status, GRPC_OK);
        else if (then == 1) CHECK(probes[i].status == GRPC_OK || probes[i].status == GRPC_CUT);
        else CHECK(probes[i].status != GRPC_NOT_SENT);
      }
      CHECK_EQ(probes[3].ended, 1);
      CHECK_EQ(probes[3].status, GRPC_NOT_SENT);
      CHECK_EQ(grpc_calls(client), 0);
      grpc_connection_free(client);
      for (int i = 0; i < 4; i++) CHECK_EQ(probes[i].ended, 1);
    }
  }
}

/* ------------------------------------------------------------------ streams */

static void echo_part(struct peer *peer, struct peer_stream *stream, const uint8_t *data, size_t size) {
  (void)peer;
  peer_raw(stream, data, size);
  peer_answer(stream, -2);
}

static void end_stream(struct peer *peer, struct peer_stream *stream) {
  (void)peer;
  peer_answer(stream, 0);
}

TEST(streaming_both_ways) {
  struct pair pair;
  struct probe probe = {.connection = NULL};
  pair_open(&pair);
  pair.server.part = echo_part;
  pair.server.request = end_stream;
  CHECK(probe_start(&probe, pair.client, "one", 3, false));
  CHECK(grpc_send(pair.client, &probe.call, "two", 3)); /* before anything was sent */
  pump(pair.client, &pair.server, 10);
  CHECK_EQ(probe.messages, 2);
  for (int i = 0; i < 100; i++) {
    CHECK(grpc_send(pair.client, &probe.call, "another", 7));
    if (i % 3 == 0) pump(pair.client, &pair.server, (size_t)(i + 1));
  }
  pump(pair.client, &pair.server, 1000);
  CHECK_EQ(probe.messages, 102);
  CHECK_EQ(probe.bytes, 706);
  CHECK_EQ(probe.ended, 0);
  peer_answer(pair.server.streams, 0);
  pump(pair.client, &pair.server, 1000);
  CHECK_EQ(probe.ended, 1);
  CHECK_EQ(probe.status, GRPC_OK);
  CHECK_EQ(pair.server.resets, 1); /* our half was still open */
  CHECK(!grpc_send(pair.client, &probe.call, "late", 4));
  pair_close(&pair);
}

TEST(messages_pile_up_behind_a_small_window) {
  static const nghttp2_settings_entry small = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 100};
  struct pair pair;
  struct probe probe = {.connection = NULL};
  uint64_t sum = 0;
  pair_open_with(&pair, &small, 1);
  pump(pair.client, &pair.server, 1000);
  CHECK(probe_start(&probe, pair.client, "", 0, false));
  for (int i = 0; i < 200; i++) {
    uint8_t data[60];
    memset(data, i, sizeof data);
    CHECK(grpc_send(pair.client, &probe.call, data, sizeof data));
    sum += (uint64_t)i * sizeof data + sizeof data; /* its prefix says 60 */
    if (i % 2 == 0) pump_up(pair.client, &pair.server, 33);
    if (i % 7 == 0) pump_down(pair.client, &pair.server, 33);
  }
  pump(pair.client, &pair.server, 1000);
  CHECK_EQ(pair.server.streams->received, 5 + 200 * 65);
  CHECK_EQ(pair.server.streams->sum, sum);
  answer_text(&pair.server, pair.server.streams);
  pump(pair.client, &pair.server, 1000);
  CHECK_EQ(probe.status, GRPC_OK);
  pair_close(&pair);
}

TEST(nothing_can_follow_the_end_of_a_request) {
  struct pair pair;
  struct probe probe = {.connection = NULL};
  pair_open(&pair);
  CHECK(probe_start(&probe, pair.client, "one", 3, true));
  CHECK(!grpc_send(pair.client, &probe.call, "two", 3));
  pump(pair.client, &pair.server, 1000);
  CHECK_EQ(probe.status, GRPC_OK);
  pair_close(&pair);
}

TEST(cancel) {
  struct pair pair;
  struct probe early = {.connection = NULL}, late = {.connection = NULL};
  pair_open(&pair);
  pair.server.request = answer_nothing;
  CHECK(probe_start(&early, pair.client, "one", 3, true));
  grpc_cancel(pair.client, &early.call);
  CHECK_EQ(early.ended, 1);
  CHECK_EQ(early.status, GRPC_CANCELLED);
  CHECK(!early.call.sent);
  CHECK(probe_start(&late, pair.client, "one", 3, true));
  pump(pair.client, &pair.server, 1000);
  CHECK_EQ(pair.server.opened, 1); /* the first was never heard of */
  CHECK_EQ(pair.server.resets, 0);
  CHECK(late.call.sent);
  grpc_cancel(pair.client, &late.call);
  CHECK_EQ(late.ended, 1);
  peer_message(pair.server.streams, "too late", 8);
  peer_answer(pair.server.streams, 0);
  pump(pair.client, &pair.server, 1000);
  CHECK_EQ(pair.server.resets, 1);
  CHECK_EQ(pair.server.reset_code, NGHTTP2_CANCEL);
  CHECK_EQ(late.ended, 1);
  CHECK_EQ(late.messages, 0);
  pair_close(&pair);
}

TEST(cancel_in_the_middle_of_a_request) {
  struct pair pair;
  struct probe probe = {.connection = NULL}, other = {.connection = NULL};
  uint8_t out[64], *data = calloc(1, LARGE);
  REQUIRE(data != NULL);
  pair_open(&pair);
  CHECK(probe_start(&probe, pair.client, data, LARGE, true));
  for (int i = 0; i < 10; i++) {
    ptrdiff_t size = grpc_produce(pair.client, out, sizeof out);
    CHECK(size > 0 && nghttp2_session_mem_recv(pair.server.session, out, (size_t)size) == size);
  }
  CHECK(probe.call.sent);
  grpc_cancel(pair.client, &probe.call);
  CHECK(probe_start(&other, pair.client, "one", 3, true)); /* takes over the pooled part */
  pump(pair.client, &pair.server, 1000);
  CHECK_EQ(other.status, GRPC_OK);
  CHECK_EQ(other.messages, 1);
  CHECK_EQ(pair.server.streams->received, 8);
  CHECK_EQ(probe.ended, 1);
  pair_close(&pair);
  free(data);
}

TEST(many_calls_wait_for_the_servers_limit) {
  static const nghttp2_settings_entry ten = {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 10};
  static struct probe probes[500];
  struct pair pair;
  memset(probes, 0, sizeof probes);
  pair_open_with(&pair, &ten, 1);
  pair.server.request = answer_nothing;
  pump(pair.client, &pair.server, 1000);
  for (int i = 0; i < 500; i++) CHECK(probe_start(&probes[i], pair.client, "one", 3, true));
  pump(pair.client, &pair.server, 1000);
  CHECK_EQ(pair.server.opened, 10);
  CHECK(probes[9].call.sent);
  CHECK(!probes[10].call.sent);
  CHECK(!grpc_wants_write(pair.client));
  pair.server.request = answer_text;
  for (struct peer_stream *at = pair.server.streams; at; at = at->next) answer_text(&pair.server, at);
  pump(pair.client, &pair.server, 1000);
  for (int i = 0; i < 500; i++) CHECK_EQ(probes[i].status, GRPC_OK), CHECK_EQ(probes[i].ended, 1);
  CHECK_EQ(pair.server.opened, 500);
  pair_close(&pair);
}

TEST(queued_calls_were_not_sent) {
  static const nghttp2_settings_entry one = {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 1};
  struct pair pair;
  struct probe probes[3] = {{.connection = NULL}, {.connection = NULL}, {.connection = NULL}};
  pair_open_with(&pair, &one, 1);
  pair.server.request = answer_nothing;
  pump(pair.client, &pair.server, 1000);
  for (int i = 0; i < 3; i++) CHECK(probe_start(&probes[i], pair.client, "one", 3, true));
  pump(pair.client, &pair.server, 1000);
  grpc_break(pair.client, "connection reset");
  CHECK_EQ(probes[0].status, GRPC_CUT);
  CHECK_STR(probes[0].text, "connection reset");
  CHECK_EQ(probes[1].status, GRPC_NOT_SENT);
  CHECK_EQ(probes[2].status, GRPC_NOT_SENT);
  CHECK_STR(grpc_problem(pair.client), "connection reset");
  pair_close(&pair);
}

TEST(a_server_that_takes_no_streams_is_given_up) {
  static const nghttp2_settings_entry none = {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 0};
  struct pair pair;
  int started = 0;
  pair_open_with(&pair, &none, 1);
  pump(pair.client, &pair.server, 1000);
  for (int i = 0; i < 100000 && !grpc_draining(pair.client); i++) {
    struct probe probe = {.connection = NULL};
    started += probe_start(&probe, pair.client, "one", 3, true);
    grpc_cancel(pair.client, &probe.call);
    CHECK_EQ(probe.ended, 1);
  }
  CHECK(started > 1000 && started < 10000);
  CHECK(grpc_draining(pair.client));
  CHECK(!grpc_failed(pair.client));
  pair_close(&pair);
}

/* Calls that were cancelled before they went leave nothing behind once the server takes streams. */
TEST(cancelled_queued_calls_are_forgotten) {
  struct pair pair;
  pair_open(&pair);
  pump(pair.client, &pair.server, 1000);
  for (int i = 0; i < 20000; i++) {
    struct probe probe = {.connection = NULL};
    CHECK(probe_start(&probe, pair.client, "one", 3, true));
    grpc_cancel(pair.client, &probe.call);
    if (i % 100 == 0) pump(pair.client, &pair.server, 1000);
  }
  CHECK(!grpc_draining(pair.client));
  CHECK_EQ(pair.server.opened, 0);
  pair_close(&pair);
}

static int acknowledged;
static uint8_t acknowledged_last[8];

static int count_acknowledgements(nghttp2_session *session, const nghttp2_frame *frame, void *data) {
  (void)session;
  (void)data;
  if (frame->hd.type != NGHTTP2_PING || !(frame->hd.flags & NGHTTP2_FLAG_ACK)) return 0;
  acknowledged++;
  memcpy(acknowledged_last, frame->ping.opaque_data, 8);
  return 0;
}

/* The server's PING is acknowledged when the owner says so, or when the next one comes: in order, and each once. */
TEST(acknowledges_pings) {
  struct pair pair;
  nghttp2_session_callbacks *callbacks;
  pair_open(&pair);
  nghttp2_session_del(pair.server.session);
  REQUIRE(nghttp2_session_callbacks_new(&callbacks) == 0);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, count_acknowledgements);
  REQUIRE(nghttp2_session_server_new(&pair.server.session, callbacks, &pair.server) == 0);
  nghttp2_session_callbacks_del(callbacks);
  nghttp2_submit_settings(pair.server.session, NGHTTP2_FLAG_NONE, NULL, 0);
  pump(pair.client, &pair.server, 100);
  CHECK(!grpc_owes_acknowledgement(pair.client));
  nghttp2_submit_ping(pair.server.session, NGHTTP2_FLAG_NONE, (const uint8_t *)"ping one");
  pump(pair.client, &pair.server, 100);
  CHECK(grpc_owes_acknowledgement(pair.client));
  CHECK_EQ(acknowledged, 0);
  nghttp2_submit_ping(pair.server.session, NGHTTP2_FLAG_NONE, (const uint8_t *)"ping two");
  pump(pair.client, &pair.server, 100);
  CHECK_EQ(acknowledged, 1);
  CHECK(memcmp(acknowledged_last, "ping one", 8) == 0);
  grpc_acknowledge(pair.client);
  grpc_acknowledge(pair.client);
  CHECK(!grpc_owes_acknowledgement(pair.client));
  pump(pair.client, &pair.server, 100);
  CHECK_EQ(acknowledged, 2);
  CHECK(memcmp(acknowledged_last, "ping two", 8) == 0);
  /* One who sends nothing but PINGs, and takes no answers, is not put up with. */
  for (int i = 0; i < 1000; i++)
    nghttp2_submit_ping(pair.server.session, NGHTTP2_FLAG_NONE, (const uint8_t *)"ping all");
  while (pump_down(pair.client, &pair.server, 1000)) continue;
  CHECK(grpc_failed(pair.client));
  pair_close(&pair);
}

TEST(ping) {
  struct pair pair;
  pair_open(&pair);
  pump(pair.client, &pair.server, 1000);
  CHECK(!grpc_ping_pending(pair.client));
  CHECK(grpc_ping(pair.client));
  CHECK(grpc_ping_pending(pair.client));
  CHECK(grpc_wants_write(pair.client));
  CHECK(grpc_ping(pair.client));
  pump_up(pair.client, &pair.server, 1000);
  CHECK(grpc_ping_pending(pair.client));
  pump(pair.client, &pair.server, 1000);
  CHECK(!grpc_ping_pending(pair.client));
  grpc_break(pair.client, "gone");
  CHECK(!grpc_ping(pair.client));
  CHECK(!grpc_ping_pending(pair.client));
  pair_close(&pair);
}

TEST(early_answer_to_a_large_request) {
  static const nghttp2_settings_entry small = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 10};
  struct pair pair;
  struct probe probe = {.connection = NULL};
  uint8_t *data = calloc(1, 100000);
  REQUIRE(data != NULL);
  pair_open_with(&pair, &small, 1);
  nghttp2_session_set_local_window_size(pair.server.session, 0, 0, 65535);
  CHECK(probe_start(&probe, pair.client, data, 100000, true));
  pump_up(pair.client, &pair.server, 4096);
  peer_headers_only(pair.server.streams, "200", "application/grpc", "8", "request%20too%20large");
  pump(pair.client, &pair.server, 4096);
  CHECK_EQ(probe.ended, 1);
  CHECK_EQ(probe.status, GRPC_RESOURCE_EXHAUSTED);
  CHECK_EQ(pair.server.resets, 1);
  CHECK(!grpc_wants_write(pair.client));
  pair_close(&pair);
  free(data);
}


/* ------------------------------------------------------------------ going away */

TEST(goaway_lets_begun_calls_finish) {
  struct pair pair;
  struct probe probes[4] = {{.connection = NULL}, {.connection = NULL}, {.connection = NULL}, {.connection = NULL}};
  pair_open(&pair);
  pair.server.request = answer_nothing;
  for (int i = 0; i < 3; i++) CHECK(probe_start(&probes[i], pair.client, "question", 8, true));
  pump(pair.client, &pair.server, 1000);
  CHECK(probe_start(&probes[3], pair.client, "question", 8, true)); /* not sent yet */
  nghttp2_submit_goaway(pair.server.session, 0, 3, NGHTTP2_ENHANCE_YOUR_CALM, (const uint8_t *)"too_many_pings", 14);
  pump_down(pair.client, &pair.server, 1000);
  CHECK(grpc_draining(pair.client));
  CHECK(!grpc_failed(pair.client));
  CHECK_STR(grpc_problem(pair.client), "the server closes the connection (ENHANCE_YOUR_CALM: too_many_pings)");
  CHECK_EQ(probes[0].ended, 0);
  CHECK_EQ(probes[1].ended, 0);
  CHECK_EQ(probes[2].status, GRPC_NOT_SENT);
  CHECK_EQ(probes[3].status, GRPC_NOT_SENT);
  CHECK_STR(probes[3].text, grpc_problem(pair.client));
  CHECK_EQ(grpc_calls(pair.client), 2);
  struct probe late = {.connection = NULL};
  CHECK(!probe_start(&late, pair.client, "question", 8, true));
  answer_text(&pair.server, peer_find(&pair.server, 1));
  pump(pair.client, &pair.server, 1000);
  CHECK_EQ(probes[0].status, GRPC_OK);
  CHECK_EQ(probes[0].messages, 1);
  CHECK_EQ(probes[1].ended, 0);
  grpc_break(pair.client, "closed by the server");
  CHECK_EQ(probes[1].status, GRPC_CUT);
  CHECK_EQ(late.ended, 0);
  pair_close(&pair);
  for (int i = 0; i < 4; i++) CHECK_EQ(probes[i].ended, 1);
}

TEST(graceful_goaway) {
  struct pair pair;
  struct probe sent = {.connection = NULL}, queued = {.connection = NULL};
  pair_open(&pair);
  pair.server.request = answer_nothing;
  CHECK(probe_start(&sent, pair.client, "question", 8, true));
  pump(pair.client, &pair.server, 1000);
  CHECK(probe_start(&queued, pair.client, "question", 8, true));
  nghttp2_submit_shutdown_notice(pair.server.session);
  pump_down(pair.client, &pair.server, 1000);
  CHECK(grpc_draining(pair.client));
  CHECK_EQ(queued.status, GRPC_NOT_SENT);
  CHECK_EQ(sent.ended, 0);
  answer_text(&pair.server, pair.server.streams);
  nghttp2_submit_goaway(pair.server.session, 0, 1, NGHTTP2_NO_ERROR, NULL, 0);
  pump(pair.client, &pair.server, 1000);
  CHECK_EQ(sent.status, GRPC_OK);
  CHECK(!grpc_failed(pair.client));
  pair_close(&pair);
}

/* While the calls that GOAWAY refuses are told one by one, the first cancels the second, starts another, and breaks. */
TEST(goaway_and_its_callbacks) {
  for (int with_break = 0; with_break < 2; with_break++) {
    struct pair pair;
    struct probe probes[4] = {{.connection = NULL}, {.connection = NULL}, {.connection = NULL}, {.connection = NULL}};
    struct probe next = {.connection = NULL};
    pair_open(&pair);
    pair.server.request = answer_nothing;
    for (int i = 0; i < 4; i++) CHECK(probe_start(&probes[i], pair.client, "question", 8, true));
    probes[0].cancel_in_end = &probes[2];
    probes[0].start_in_end = &next;
    probes[1].break_in_end = with_break;
    pump_up(pair.client, &pair.server, 1000);
    nghttp2_submit_goaway(pair.server.session, 0, 0, NGHTTP2_NO_ERROR, NULL, 0);
    pump_down(pair.client, &pair.server, 1000);
    CHECK_EQ(probes[0].status, GRPC_NOT_SENT);
    CHECK_EQ(probes[1].status, GRPC_NOT_SENT);
    CHECK_EQ(probes[2].status, GRPC_CANCELLED);
    CHECK_EQ(probes[3].status, GRPC_NOT_SENT);
    CHECK_EQ(next.ended, 0);
    CHECK_EQ(grpc_failed(pair.client), with_break);
    pair_close(&pair);
    for (int i = 0; i < 4; i++) CHECK_EQ(probes[i].ended, 1);
  }
}

/* ------------------------------------------------------------------ callbacks that do things */

TEST(cancel_inside_on_message) {
  for (size_t piece = 1; piece < 4096; piece *= 4) {
    struct pair pair;
    struct probe probe = {.cancel_in_message = true}, next = {.connection = NULL};
    pair_open(&pair);
    pair.server.request = answer_three;
    probe.start_in_end = &next; /* takes the pooled part, if it were given back too early */
    CHECK(probe_start(&probe, pair.client, "question", 8, true));
    pump(pair.client, &pair.server, piece);
    CHECK_EQ(probe.messages, 1);
    CHECK_EQ(probe.status, GRPC_CANCELLED);
    CHECK_EQ(probe.ended, 1);
    CHECK_EQ(next.messages, 3);
    CHECK_EQ(next.status, GRPC_OK);
    pair_close(&pair);
  }
}

TEST(message_that_is_refused) {
  struct pair pair;
  struct probe probe = {.refuse = true}, both = {.refuse = true, .cancel_in_message = true};
  pair_open(&pair);
  pair.server.request = answer_three;
  CHECK(probe_start(&probe, pair.client, "question", 8, true));
  CHECK(probe_start(&both, pair.client, "question", 8, true));
  pump(pair.client, &pair.server, 4096);
  CHECK_EQ(probe.messages, 1);
  CHECK_EQ(probe.status, GRPC_GARBLED);
  CHECK_EQ(both.status, GRPC_CANCELLED);
  CHECK_EQ(both.ended, 1);
  pair_close(&pair);
}

TEST(break_inside_callbacks) {
  for (int where = 0; where < 2; where++) {
    struct pair pair;
    struct probe probe = {.break_in_message = where == 0, .break_in_end = where == 1}, other = {.connection = NULL};
    pair_open(&pair);
    pair.server.request = answer_three;
    CHECK(probe_start(&probe, pair.client, "question", 8, true));
    CHECK(probe_start(&other, pair.client, "question", 8, true));
    pump(pair.client, &pair.server, 4096);
    CHECK_EQ(probe.status, where == 0 ? GRPC_CUT : GRPC_OK);
    CHECK_EQ(other.status, GRPC_CUT);
    CHECK_EQ(probe.ended + other.ended, 2);
    CHECK(grpc_failed(pair.client));
    CHECK_STR(grpc_problem(pair.client), "broken by the test");
    pair_close(&pair);
  }
}

TEST(chain_of_calls_started_in_on_end) {
  static struct probe probes[2000];
  struct pair pair;
  memset(probes, 0, sizeof probes);
  pair_open(&pair);
  for (int i = 0; i < 1999; i++) probes[i].start_in_end = &probes[i + 1];
  CHECK(probe_start(&probes[0], pair.client, "question", 8, true));
  pump(pair.client, &pair.server, 4096);
  for (int i = 0; i < 2000; i++) CHECK_EQ(probes[i].ended, 1), CHECK_EQ(probes[i].status, GRPC_OK);
  pair_close(&pair);
}

static struct grpc_connection *reentered;
static bool reenter_message(struct grpc_call *call, const uint8_t *data, size_t size) {
  uint8_t out[16];
  (void)call;
  CHECK_EQ(grpc_produce(reentered, out, sizeof out), 0);
  CHECK(!grpc_feed(reentered, data, size));
  return true;
}
static int heap_ends;
static void heap_end(struct grpc_call *call, int status, const char *message) {
  (void)status;
  (void)message;
  heap_ends++;
  free(call);
}

TEST(owner_frees_its_call_and_feed_cannot_be_entered_twice) {
  static const struct grpc_handler handler = {reenter_message, heap_end};
  struct pair pair;
  pair_open(&pair);
  reentered = pair.client;
  heap_ends = 0;
  for (int i = 0; i < 3; i++) {
    struct grpc_call *call = calloc(1, sizeof *call);
    REQUIRE(call != NULL);
    call->handler = &handler;
    CHECK(grpc_start(pair.client, call, "/a.B/C", "", 0, true, NULL, 0, -1));
  }
  pump(pair.client, &pair.server, 4096);
  CHECK(grpc_failed(pair.client));
  CHECK_EQ(heap_ends, 3);
  pair_close(&pair);
}

TEST(free_with_calls_in_flight) {
  struct pair pair;
  struct probe probes[3] = {{.connection = NULL}, {.connection = NULL}, {.connection = NULL}};
  pair_open(&pair);
  pair.server.request = answer_nothing;
  CHECK(probe_start(&probes[0], pair.client, "question", 8, true));
  pump(pair.client, &pair.server, 4096);
  CHECK(probe_start(&probes[1], pair.client, "question", 8, true));
  probes[0].start_in_end = &probes[2];
  pair_close(&pair);
  CHECK_EQ(probes[0].status, GRPC_CUT);
  CHECK_EQ(probes[1].status, GRPC_NOT_SENT);
  CHECK_EQ(probes[2].ended, 0);
  grpc_connection_free(NULL);
}

/* Data of a call that was cancelled is thrown away, however much of it comes, and the connection's window with it. */
TEST(data_of_cancelled_calls_is_dropped) {
  struct pair pair;
  struct probe probe = {.connection = NULL}, other = {.connection = NULL};
  static uint8_t data[60000];
  pair_open(&pair);
  pair.server.request = answer_nothing;
  for (int i = 0; i < 100; i++) {
    memset(&probe, 0, sizeof probe);
    CHECK(probe_start(&probe, pair.client, "question", 8, true));
    pump(pair.client, &pair.server, 4096);
    peer_message(pair.server.streams, data, sizeof data);
    peer_answer(pair.server.streams, 0);
    grpc_cancel(pair.client, &probe.call);
    pump_down(pair.client, &pair.server, 16384); /* the server does not know yet */
    pump(pair.client, &pair.server, 4096);
    CHECK_EQ(probe.ended, 1);
  }
  pair.server.request = answer_text;
  CHECK(probe_start(&other, pair.client, "question", 8, true));
  pump(pair.client, &pair.server, 4096);
  CHECK_EQ(other.status, GRPC_OK);
  CHECK(!grpc_failed(pair.client));
  pair_close(&pair);
}

CHECK_MAIN()
