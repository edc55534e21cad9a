/*
 * grpc_peer.h - the other end for tests of csrc/wire/grpc.c: a server made of nghttp2 that does what a test says, and
 * probes that record what happens to a call. Both machines stand in one process and talk through pump().
 */
#ifndef KV_GRPC_PEER_H
#define KV_GRPC_PEER_H

#include <nghttp2/nghttp2.h>

#include "check.h"
#include "wire/grpc.h"

#define UNUSED __attribute__((unused))

/* ------------------------------------------------------------------ a call, watched */

struct probe {
  struct grpc_call call;
  struct grpc_connection *connection;
  int messages, ended, status;
  size_t bytes;                 /* of all messages */
  uint64_t sum;                 /* of all their bytes */
  const uint8_t *at;            /* where the last one lay */
  char text[256];
  bool refuse;                  /* on_message answers false */
  bool cancel_in_message;
  struct probe *cancel_in_end;  /* cancelled when this one ends */
  struct probe *start_in_end;   /* started when this one ends */
  bool break_in_message, break_in_end;
};

static bool probe_message(struct grpc_call *call, const uint8_t *data, size_t size) {
  struct probe *probe = (struct probe *)call;
  probe->messages++;
  probe->bytes += size;
  probe->at = data;
  for (size_t i = 0; i < size; i++) probe->sum += data[i];
  if (probe->cancel_in_message) grpc_cancel(probe->connection, call);
  if (probe->break_in_message) grpc_break(probe->connection, "broken by the test");
  return !probe->refuse;
}

static bool probe_start(struct probe *probe, struct grpc_connection *connection, const void *message, size_t size,
                        bool end_stream);

static void probe_end(struct grpc_call *call, int status, const char *message) {
  struct probe *probe = (struct probe *)call;
  probe->ended++;
  probe->status = status;
  snprintf(probe->text, sizeof probe->text, "%s", message);
  CHECK(message[0] != '\0');
  grpc_cancel(probe->connection, call); /* nothing */
  if (probe->cancel_in_end) grpc_cancel(probe->connection, &probe->cancel_in_end->call);
  if (probe->start_in_end) probe_start(probe->start_in_end, probe->connection, "next", 4, true);
  if (probe->break_in_end) grpc_break(probe->connection, "broken by the test");
}

static const struct grpc_handler probe_handler = {probe_message, probe_end};

static bool probe_start(struct probe *probe, struct grpc_connection *connection, const void *message, size_t size,
                        bool end_stream) {
  probe->connection = connection;
  probe->call.handler = &probe_handler;
  return grpc_start(connection, &probe->call, "/test.Service/Method", message, size, end_stream, NULL, 0, -1);
}

/* ------------------------------------------------------------------ the server */

struct peer;

struct peer_stream {
  struct peer_stream *next;
  struct peer *peer;
  int32_t id;
  size_t received;        /* bytes of DATA */
  uint64_t sum;
  bool ended;             /* the client has */
  bool answered, half;    /* half: DATA goes on */
  char headers[2048];     /* "name: value\n"... '!' in front: never indexed */
  uint8_t *out;
  size_t out_from, out_size, out_capacity;
  int end_status;         /* grpc-status of the trailers; -1: no trailers but END_STREAM on DATA; -2: open */
};

struct peer {
  nghttp2_session *session;
  struct peer_stream *streams;                             /* newest first */
  void (*request)(struct peer *peer, struct peer_stream *stream); /* the client has ended its side */
  void (*part)(struct peer *peer, struct peer_stream *stream, const uint8_t *data, size_t size);
  int opened, resets, goaways;
  uint32_t reset_code;
  size_t text_size;
  const char *message;                                     /* grpc-message of trailers, or NULL */
};

static nghttp2_nv peer_nv(const char *name, const char *value) {
  return (nghttp2_nv){(uint8_t *)(uintptr_t)name, (uint8_t *)(uintptr_t)value, strlen(name), strlen(value), 0};
}

static void peer_trailers(struct peer_stream *stream) {
  char status[12];
  snprintf(status, sizeof status, "%d", stream->end_status);
  nghttp2_nv list[2] = {peer_nv("grpc-status", status), peer_nv("grpc-message", "")};
  size_t count = 1;
  if (stream->peer->message) list[count++] = peer_nv("grpc-message", stream->peer->message);
  nghttp2_submit_trailer(stream->peer->session, stream->id, list, count);
}

static ssize_t peer_read(nghttp2_session *session, int32_t id, uint8_t *into, size_t size, uint32_t *flags,
                         nghttp2_data_source *source, void *data) {
  (void)session;
  (void)id;
  (void)data;
  struct peer_stream *stream = source->ptr;
  size_t left = stream->out_size - stream->out_from;
  if (size > left) size = left;
  if (size == 0 && stream->end_status == -2) return NGHTTP2_ERR_DEFERRED;
  if (size > 0) memcpy(into, stream->out + stream->out_from, size);
  stream->out_from += size;
  if (size == left && stream->end_status != -2) {
    *flags |= NGHTTP2_DATA_FLAG_EOF;
    if (stream->end_status >= 0) {
      *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
      peer_trailers(stream);
    }
  }
  return (ssize_t)size;
}

/* Bytes to follow as DATA, as they are. */
UNUSED static void peer_raw(struct peer_stream *stream, const void *data, size_t size) {
  if (stream->out_size + size > stream->out_capacity) {
    stream->out_capacity = (stream->out_size + size) * 2;
    stream->out = realloc(stream->out, stream->out_capacity);
    if (!stream->out) abort();
  }
  if (size > 0) memcpy(stream->out + stream->out_size, data, size);
  stream->out_size += size;
}

UNUSED static void peer_prefix(struct peer_stream *stream, uint8_t flag, size_t size) {
  const uint8_t prefix[5] = {flag, (uint8_t)(size >> 24), (uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size};
  peer_raw(stream, prefix, sizeof prefix);
}

UNUSED static void peer_message(struct peer_stream *stream, const void *data, size_t size) {
  peer_prefix(stream, 0, size);
  peer_raw(stream, data, size);
}

/* Send what is queued; end_status as in the struct. */
UNUSED static void peer_answer(struct peer_stream *stream, int end_status) {
  stream->end_status = end_status;
  if (stream->answered) {
    nghttp2_session_resume_data(stream->peer->session, stream->id);
    return;
  }
  const nghttp2_nv list[] = {peer_nv(":status", "200"), peer_nv("content-type", "application/grpc")};
  const nghttp2_data_provider provider = {{.ptr = stream}, peer_read};
  nghttp2_submit_response(stream->peer->session, stream->id, list, 2, &provider);
  stream->answered = true;
}

/* Headers alone, with END_STREAM. NULL: not that one. */
UNUSED static void peer_headers_only(struct peer_stream *stream, const char *status, const char *type, const char *grpc,
                                     const char *message) {
  nghttp2_nv list[4];
  size_t count = 0;
  list[count++] = peer_nv(":status", status);
  if (type) list[count++] = peer_nv("content-type", type);
  if (grpc) list[count++] = peer_nv("grpc-status", grpc);
  if (message) list[count++] = peer_nv("grpc-message", message);
  nghttp2_submit_response(stream->peer->session, stream->id, list, count, NULL);
}

static struct peer_stream *peer_find(struct peer *peer, int32_t id) {
  struct peer_stream *stream = peer->streams;
  while (stream && stream->id != id) stream = stream->next;
  return stream;
}

static int peer_on_begin(nghttp2_session *session, const nghttp2_frame *frame, void *data) {
  (void)session;
  struct peer *peer = data;
  struct peer_stream *stream = calloc(1, sizeof *stream);
  if (!stream) abort();
  stream->id = frame->hd.stream_id;
  stream->peer = peer;
  stream->next = peer->streams;
  peer->streams = stream;
  peer->opened++;
  return 0;
}

static int peer_on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                          const uint8_t *value, size_t value_size, uint8_t flags, void *data) {
  (void)session;
  struct peer_stream *stream = peer_find(data, frame->hd.stream_id);
  size_t at = strlen(stream->headers);
  snprintf(stream->headers + at, sizeof stream->headers - at, "%s%.*s: %.*s\n",
           flags & NGHTTP2_NV_FLAG_NO_INDEX ? "!" : "", (int)name_size, (const char *)name, (int)value_size,
           (const char *)value);
  return 0;
}

static int peer_on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes, size_t size,
                        void *data) {
  (void)session;
  (void)flags;
  struct peer *peer = data;
  struct peer_stream *stream = peer_find(peer, id);
  stream->received += size;
  for (size_t i = 0; i < size; i++) stream->sum += bytes[i];
  if (peer->part) peer->part(peer, stream, bytes, size);
  return 0;
}

static int peer_on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *data) {
  (void)session;
  struct peer *peer = data;
  if (frame->hd.type == NGHTTP2_RST_STREAM) {
    peer->resets++;
    peer->reset_code = frame->rst_stream.error_code;
  } else if (frame->hd.type == NGHTTP2_GOAWAY) {
    peer->goaways++;
  } else if (frame->hd.type == NGHTTP2_DATA || frame->hd.type == NGHTTP2_HEADERS) {
    struct peer_stream *stream = peer_find(peer, frame->hd.stream_id);
    if (stream && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) && !stream->ended) {
      stream->ended = true;
      if (peer->request) peer->request(peer, stream);
    }
  }
  return 0;
}

UNUSED static void peer_open(struct peer *peer, const nghttp2_settings_entry *settings, size_t count) {
  nghttp2_session_callbacks *callbacks;
  memset(peer, 0, sizeof *peer);
  if (nghttp2_session_callbacks_new(&callbacks) != 0) abort();
  nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, peer_on_begin);
  nghttp2_session_callbacks_set_on_header_callback(callbacks, peer_on_header);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, peer_on_data);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, peer_on_frame);
  if (nghttp2_session_server_new(&peer->session, callbacks, peer) != 0) abort();
  nghttp2_session_callbacks_del(callbacks);
  nghttp2_submit_settings(peer->session, NGHTTP2_FLAG_NONE, settings, count);
}

UNUSED static void peer_close(struct peer *peer) {
  nghttp2_session_del(peer->session);
  while (peer->streams) {
    struct peer_stream *next = peer->streams->next;
    free(peer->streams->out);
    free(peer->streams);
    peer->streams = next;
  }
}

/* ------------------------------------------------------------------ both */

/* Client's bytes to the server. False: nothing moved. */
UNUSED static bool pump_up(struct grpc_connection *client, struct peer *peer, size_t piece) {
  uint8_t *buffer = malloc(piece); /* of the exact size, so that ASan sees each step beyond */
  bool moved = false;
  ptrdiff_t size;
  while (buffer && (size = grpc_produce(client, buffer, piece)) > 0) {
    moved = true;
    CHECK((size_t)size <= piece);
    if (nghttp2_session_mem_recv(peer->session, buffer, (size_t)size) != size) break;
  }
  free(buffer);
  return moved;
}

/* Server's bytes to the client, in pieces. */
UNUSED static bool pump_down(struct grpc_connection *client, struct peer *peer, size_t piece) {
  bool moved = false;
  const uint8_t *data;
  ssize_t size;
  while ((size = nghttp2_session_mem_send(peer->session, &data)) > 0) {
    moved = true;
    for (ssize_t at = 0; at < size; at += (ssize_t)piece) {
      size_t now = (size_t)(size - at) < piece ? (size_t)(size - at) : piece;
      uint8_t *copy = malloc(now);
      if (!copy) abort();
      memcpy(copy, data + at, now);
      bool good = grpc_feed(client, copy, now);
      free(copy);
      if (!good) return false;
    }
  }
  return moved;
}

UNUSED static void pump(struct grpc_connection *client, struct peer *peer, size_t piece) {
  bool moved = true;
  while (moved) {
    moved = pump_up(client, peer, piece);
    moved = pump_down(client, peer, piece) || moved;
  }
}

/* All that the client has to say goes nowhere. */
UNUSED static void drain(struct grpc_connection *client) {
  uint8_t buffer[4096];
  while (grpc_produce(client, buffer, sizeof buffer) > 0) continue;
}

/* ------------------------------------------------------------------ a client, a server, and simple answers */

#define WINDOW 65535
#define LARGE ((size_t)1 << 20) /* the largest message that the client takes */

UNUSED static void answer_text(struct peer *peer, struct peer_stream *stream) {
  (void)peer;
  peer_message(stream, "hello", 5);
  peer_answer(stream, 0);
}

UNUSED static void answer_nothing(struct peer *peer, struct peer_stream *stream) {
  (void)peer;
  (void)stream;
}

struct pair {
  struct grpc_connection *client;
  struct peer server;
};

UNUSED static void pair_open_with(struct pair *pair, const nghttp2_settings_entry *settings, size_t count) {
  pair->client = grpc_connection_new("example:2379", false, LARGE, WINDOW);
  peer_open(&pair->server, settings, count);
  pair->server.request = answer_text;
}

UNUSED static void pair_open(struct pair *pair) { pair_open_with(pair, NULL, 0); }

UNUSED static void pair_close(struct pair *pair) {
  grpc_connection_free(pair->client);
  peer_close(&pair->server);
}

UNUSED static void answer_three(struct peer *peer, struct peer_stream *stream) {
  (void)peer;
  for (int i = 0; i < 3; i++) peer_message(stream, "hello", 5);
  peer_answer(stream, 0);
}

#endif
