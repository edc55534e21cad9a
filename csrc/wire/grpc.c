/*
 * grpc.c - the connection and its calls: HTTP/2 by nghttp2, without a socket.
 *
 * Every call has a private part (struct grpc_private) from a pool, which nghttp2 knows as the stream's user data. A
 * call ends at one place, end_call(): it takes the private part out of its list and away from nghttp2, so nothing can
 * come for it afterwards, and then tells the owner. The private part goes back to the pool only when no function on
 * the stack still works with it (`busy`), because owners may start, cancel and free inside callbacks.
 *
 * gRPC servers written in Go measure the connection by a PING that goes with an answer as soon as none is under way:
 * with small calls that is a PING for each answer, and four system calls more for each call. So the acknowledgement
 * is the owner's to send a few milliseconds later; there are so many fewer, and what the server learns from them does
 * not suffer.
 *
 * nghttp2 keeps the flow-control windows (updates go out as bytes are consumed, and they are consumed at once: into the
 * owner's hands or into the buffer of an incomplete message, whose size is capped) and the queue of calls beyond the
 * server's limit of streams. Acks that a peer can provoke are bounded by nghttp2's options, endless header blocks by
 * counting bytes between frames.
 */
#include "grpc_internal.h"

#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define METADATA_MAX 16
#define POOL_MAX 256                        /* idle private parts kept */
#define POOL_KEEP ((size_t)2048)            /* buffers up to this stay with an idle private part */
#define SEND_MAX ((size_t)64 << 20)         /* queued messages of one call */
#define HELD_MIN ((size_t)256 << 20)        /* incomplete messages of all calls together, at least */
#define HEADER_BLOCK_MAX ((size_t)1 << 20)  /* bytes of one header block, as they came */
#define OUTBOUND_ACKS_MAX 256
#define ABANDONED_MAX 4096                  /* ended calls in nghttp2's queue while the server takes no streams */
#define LAST_STREAM INT32_C(0x7ffffff0)

struct grpc_private {
  struct grpc_private *next, *previous; /* in one of the connection's lists; `next` alone in the pool */
  struct grpc_connection *connection;
  struct grpc_call *call;               /* NULL: over */
  int32_t stream;
  unsigned busy;                        /* functions on the stack that still need this */
  bool sent;
  bool deferred;                        /* nghttp2 waits for nghttp2_session_resume_data() */
  bool out_end, out_ended;              /* nothing follows `out`; nghttp2 has taken the end */
  uint8_t *out;                         /* framed messages: from out_from to out_size is still to go */
  size_t out_from, out_size, out_capacity;
  struct kv_grpc_reader reader;
  struct kv_grpc_answer answer;
};

struct grpc_connection {
  nghttp2_session *session;
  struct grpc_private open, ending;     /* heads of circular lists */
  struct grpc_private *pool;
  size_t pooled, calls;
  size_t abandoned;
  struct kv_grpc_limits limits;
  const uint8_t *chunk;                 /* what nghttp2 gave and the caller's buffer had no room for */
  size_t chunk_size;
  size_t in_frame;                      /* bytes fed since a frame began, CONTINUATION not counted as one */
  uint64_t ping;                        /* number of the last PING */
  bool ping_pending;
  bool owes;                            /* the server's PING below is not acknowledged yet */
  uint8_t owed[8];
  bool inside;                          /* nghttp2 is on the stack */
  bool fed;
  bool goaway;
  bool doomed;                          /* fail as soon as nghttp2 is not on the stack; `complaint` says why */
  bool failed;
  bool tls;
  char complaint[KV_GRPC_TEXT_MAX + 4]; /* nghttp2's or our last words on what the peer did */
  char farewell[KV_GRPC_TEXT_MAX + 4];  /* what GOAWAY said */
  char problem[KV_GRPC_TEXT_MAX + 60];
  size_t authority_size;
  char authority[];
};

/* ------------------------------------------------------------------ private parts */

static void list_add(struct grpc_private *head, struct grpc_private *own) {
  own->next = head;
  own->previous = head->previous;
  head->previous->next = own;
  head->previous = own;
}

static void list_remove(struct grpc_private *own) {
  own->next->previous = own->previous;
  own->previous->next = own->next;
  own->next = own->previous = own;
}

static struct grpc_private *private_new(struct grpc_connection *connection) {
  struct grpc_private *own = connection->pool;
  if (own) {
    connection->pool = own->next;
    connection->pooled--;
  } else {
    own = calloc(1, sizeof *own);
    if (!own) return NULL;
    own->connection = connection;
  }
  own->stream = 0;
  own->busy = 0;
  own->sent = own->deferred = own->out_end = own->out_ended = false;
  own->out_from = own->out_size = 0;
  kv_grpc_answer_reset(&own->answer);
  return own;
}

static void private_free(struct grpc_private *own) {
  kv_grpc_reader_reset(&own->reader, &own->connection->limits, 0);
  free(own->out);
  free(own);
}

static void private_release(struct grpc_private *own) {
  struct grpc_connection *connection = own->connection;
  if (connection->pooled >= POOL_MAX) {
    private_free(own);
    return;
  }
  kv_grpc_reader_reset(&own->reader, &connection->limits, POOL_KEEP);
  if (own->out_capacity > POOL_KEEP) {
    free(own->out);
    own->out = NULL;
    own->out_capacity = 0;
  }
  own->next = connection->pool;
  connection->pool = own;
  connection->pooled++;
}

static void private_done(struct grpc_private *own) {
  if (--own->busy == 0 && !own->call) private_release(own);
}

/* ------------------------------------------------------------------ the ends */

enum { NO_RESET = -1 };

/* The only place where a call ends. reset: an HTTP/2 error code for RST_STREAM, or NO_RESET. */
static void end_call(struct grpc_private *own, int status, const char *message, int reset) {
  struct grpc_connection *connection = own->connection;
  struct grpc_call *call = own->call;
  list_remove(own);
  connection->calls--;
  own->call = NULL;
  own->busy++;
  if (!connection->failed) {
    nghttp2_session_set_stream_user_data(connection->session, own->stream, NULL);
    if (!own->sent) connection->abandoned++;
    if (reset != NO_RESET &&
        nghttp2_submit_rst_stream(connection->session, NGHTTP2_FLAG_NONE, own->stream, (uint32_t)reset) != 0) {
      snprintf(connection->complaint, sizeof connection->complaint, "out of memory");
      connection->doomed = true;
    }
  }
  call->own = NULL;
  call->handler->on_end(call, status, message);
  private_done(own);
}

/* The connection is over: sticky. Calls that left get `status`. */
static void fail(struct grpc_connection *connection, int status, const char *problem) {
  if (connection->failed) return;
  connection->failed = true;
  connection->chunk_size = 0;
  connection->ping_pending = connection->owes = false;
  snprintf(connection->problem, sizeof connection->problem, "%s", problem);
  while (connection->ending.next != &connection->ending)
    end_call(connection->ending.next, GRPC_NOT_SENT, connection->problem, NO_RESET);
  while (connection->open.next != &connection->open) {
    struct grpc_private *own = connection->open.next;
    end_call(own, own->sent ? status : GRPC_NOT_SENT, connection->problem, NO_RESET);
  }
}

static void fail_http2(struct grpc_connection *connection, const char *what) {
  char problem[KV_GRPC_TEXT_MAX + 60];
  snprintf(problem, sizeof problem, "HTTP/2: %s", connection->complaint[0] ? connection->complaint : what);
  fail(connection, GRPC_GARBLED, problem);
}

/* After nghttp2 was on the stack. True: the connection lives. */
static bool settle(struct grpc_connection *connection) {
  if (!connection->failed && connection->doomed) fail_http2(connection, "the server broke the protocol");
  return !connection->failed;
}

/* ------------------------------------------------------------------ nghttp2 calls us: receiving */

static struct grpc_private *private_of(nghttp2_session *session, int32_t stream) {
  return stream > 0 ? nghttp2_session_get_stream_user_data(session, stream) : NULL;
}

/* Stops nghttp2 in the middle of its work when a callback of an owner broke the connection. */
static int go_on(const struct grpc_connection *connection) {
  return connection->failed || connection->doomed ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                     const uint8_t *value, size_t value_size, uint8_t flags, void *data) {
  (void)flags;
  struct grpc_connection *connection = data;
  struct grpc_private *own = private_of(session, frame->hd.stream_id);
  if (own && !kv_grpc_answer_header(&own->answer, name, name_size, value, value_size)) {
    end_call(own, GRPC_GARBLED, "the server sent too large headers", NO_RESET);
    return connection->failed ? NGHTTP2_ERR_CALLBACK_FAILURE : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* resets */
  }
  return go_on(connection);
}

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *head, void *data) {
  (void)session;
  struct grpc_connection *connection = data;
  if (head->type != NGHTTP2_CONTINUATION) connection->in_frame = 0;
  return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *bytes, size_t size,
                   void *data) {
  (void)flags;
  struct grpc_connection *connection = data;
  struct grpc_private *own = private_of(session, stream);
  if (!own) return go_on(connection);
  own->busy++;
  while (own->call && size > 0) {
    const uint8_t *message;
    size_t message_size;
    char text[KV_GRPC_TEXT_MAX + 4];
    enum kv_grpc_read got =
      kv_grpc_reader_take(&own->reader, &connection->limits, &bytes, &size, &message, &message_size, text);
    if (got == KV_GRPC_READ_MORE) break;
    if (got == KV_GRPC_READ_FAILED) {
      end_call(own, GRPC_GARBLED, text, NGHTTP2_CANCEL);
    } else if (!own->call->handler->on_message(own->call, message, message_size) && own->call) {
      end_call(own, GRPC_GARBLED, "a message of the server could not be understood", NGHTTP2_CANCEL);
    }
  }
  private_done(own);
  return go_on(connection);
}

/* The server has said all that it will say on this stream. */
static void stream_ended(struct grpc_private *own) {
  char text[KV_GRPC_TEXT_MAX + 4];
  int status = kv_grpc_answer_end(&own->answer, kv_grpc_reader_half(&own->reader), text);
  end_call(own, status, text, own->out_ended ? NO_RESET : NGHTTP2_CANCEL);
}

static void header_block_ended(struct grpc_private *own, bool end_stream) {
  char text[KV_GRPC_TEXT_MAX + 4];
  int status;
  if (!kv_grpc_answer_block(&own->answer, end_stream, &status, text))
    end_call(own, status, text, end_stream && own->out_ended ? NO_RESET : NGHTTP2_CANCEL);
  else if (end_stream) stream_ended(own);
}

static void stream_reset(struct grpc_private *own, uint32_t code) {
  char text[KV_GRPC_TEXT_MAX + 4];
  snprintf(text, sizeof text, "the server reset the stream (%s)", nghttp2_http2_strerror(code));
  end_call(own, code == NGHTTP2_REFUSED_STREAM || !own->sent ? GRPC_NOT_SENT : GRPC_CUT, text, NO_RESET);
}

/* What the server will not look at ends now, and what it may have begun goes on. */
static void going_away(struct grpc_connection *connection, const nghttp2_goaway *frame) {
  connection->goaway = true;
  if (frame->error_code != NGHTTP2_NO_ERROR || frame->opaque_data_len > 0) {
    char said[120];
    kv_grpc_printable(said, sizeof said, frame->opaque_data, frame->opaque_data_len, false);
    snprintf(connection->farewell, sizeof connection->farewell, "the server closes the connection (%s%s%s)",
             nghttp2_http2_strerror(frame->error_code), said[0] ? ": " : "", said);
  } else {
    snprintf(connection->farewell, sizeof connection->farewell, "the server closes the connection");
  }
  struct grpc_private *own = connection->open.next, *next;
  for (; own != &connection->open; own = next) {
    next = own->next;
    if (own->sent && own->stream <= frame->last_stream_id) continue;
    list_remove(own);
    list_add(&connection->ending, own);
  }
  while (!connection->failed && connection->ending.next != &connection->ending)
    end_call(connection->ending.next, GRPC_NOT_SENT, connection->farewell, NO_RESET);
}

void grpc_acknowledge(struct grpc_connection *connection) {
  if (!connection->owes || connection->failed) return;
  connection->owes = false;
  int error = nghttp2_submit_ping(connection->session, NGHTTP2_FLAG_ACK, connection->owed);
  if (error == 0) return;
  snprintf(connection->complaint, sizeof connection->complaint, "%s", nghttp2_strerror(error));
  connection->doomed = true;
}

bool grpc_owes_acknowledgement(const struct grpc_connection *connection) { return connection->owes; }

static void take_ping(struct grpc_connection *connection, const nghttp2_ping *frame) {
  if (!(frame->hd.flags & NGHTTP2_FLAG_ACK)) {
    grpc_acknowledge(connection);
    memcpy(connection->owed, frame->opaque_data, sizeof connection->owed);
    connection->owes = true;
  } else if (memcmp(frame->opaque_data, &connection->ping, sizeof connection->ping) == 0) {
    connection->ping_pending = false;
  }
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *data) {
  struct grpc_connection *connection = data;
  bool end_stream = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
  struct grpc_private *own;
  switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
      if ((own = private_of(session, frame->hd.stream_id))) header_block_ended(own, end_stream);
      break;
    case NGHTTP2_DATA:
      if (end_stream && (own = private_of(session, frame->hd.stream_id))) stream_ended(own);
      break;
    case NGHTTP2_RST_STREAM:
      if ((own = private_of(session, frame->hd.stream_id))) stream_reset(own, frame->rst_stream.error_code);
      break;
    case NGHTTP2_GOAWAY:
      going_away(connection, &frame->goaway);
      break;
    case NGHTTP2_PING:
      take_ping(connection, &frame->ping);
      break;
    default:
      break;
  }
  return go_on(connection);
}

static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *data) {
  struct grpc_private *own = private_of(session, frame->hd.stream_id);
  char text[KV_GRPC_TEXT_MAX + 4];
  snprintf(text, sizeof text, "the server broke HTTP/2 (%s)", nghttp2_strerror(error));
  if (own) end_call(own, own->sent ? GRPC_GARBLED : GRPC_NOT_SENT, text, NO_RESET); /* nghttp2 resets the stream */
  return go_on(data);
}

/* nghttp2's words on what is wrong; fail_http2() uses the last ones. */
static int on_error(nghttp2_session *session, int error, const char *text, size_t size, void *data) {
  (void)session;
  (void)error;
  struct grpc_connection *connection = data;
  while (size > 0 && (text[size - 1] == '\n' || text[size - 1] == '.' || text[size - 1] == ' ')) size--;
  if (!connection->doomed)
    kv_grpc_printable(connection->complaint, KV_GRPC_TEXT_MAX, (const uint8_t *)text, size, false);
  return 0;
}

/* A stream that ended by nghttp2's own decision, such as DATA that does not fit content-length. */
static int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t code, void *data) {
  struct grpc_private *own = private_of(session, stream);
  if (own) {
    char text[KV_GRPC_TEXT_MAX + 4];
    bool again = code == NGHTTP2_REFUSED_STREAM || !own->sent;
    snprintf(text, sizeof text, "the stream broke (%s)", nghttp2_http2_strerror(code));
    end_call(own, again ? GRPC_NOT_SENT : GRPC_GARBLED, text, NO_RESET);
  }
  return go_on(data);
}

/* ------------------------------------------------------------------ nghttp2 calls us: sending */

static int before_frame(nghttp2_session *session, const nghttp2_frame *frame, void *data) {
  struct grpc_connection *connection = data;
  if (frame->hd.type == NGHTTP2_HEADERS) {
    struct grpc_private *own = private_of(session, frame->hd.stream_id);
    if (own) own->sent = own->call->sent = true;
  } else if (frame->hd.type == NGHTTP2_GOAWAY) {
    connection->doomed = true; /* only nghttp2 says this, when the peer broke the protocol */
  }
  return 0;
}

static int on_frame_not_sent(nghttp2_session *session, const nghttp2_frame *frame, int error, void *data) {
  struct grpc_connection *connection = data;
  if (frame->hd.type != NGHTTP2_HEADERS) return go_on(connection);
  struct grpc_private *own = private_of(session, frame->hd.stream_id);
  if (own) {
    char text[KV_GRPC_TEXT_MAX + 4];
    snprintf(text, sizeof text, "the call could not be sent (%s)", nghttp2_strerror(error));
    end_call(own, GRPC_NOT_SENT, text, NO_RESET);
  }
  if (connection->abandoned > 0) connection->abandoned--;
  return go_on(connection);
}

static ssize_t read_out(nghttp2_session *session, int32_t stream, uint8_t *into, size_t size, uint32_t *flags,
                        nghttp2_data_source *source, void *data) {
  (void)source;
  (void)data;
  struct grpc_private *own = private_of(session, stream);
  if (!own) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* ended; its RST_STREAM is on the way */
  size_t left = own->out_size - own->out_from;
  if (size > left) size = left;
  if (size > 0) memcpy(into, own->out + own->out_from, size);
  own->out_from += size;
  if (size == left) {
    own->out_from = own->out_size = 0;
    if (own->out_end) {
      *flags |= NGHTTP2_DATA_FLAG_EOF;
      own->out_ended = true;
    } else if (size == 0) {
      own->deferred = true;
      return NGHTTP2_ERR_DEFERRED;
    }
  }
  return (ssize_t)size;
}

/* ------------------------------------------------------------------ the connection */

static nghttp2_session *session_new(struct grpc_connection *connection) {
  nghttp2_session_callbacks *callbacks = NULL;
  nghttp2_option *option = NULL;
  nghttp2_session *session = NULL;
  if (nghttp2_session_callbacks_new(&callbacks) == 0 && nghttp2_option_new(&option) == 0) {
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, on_invalid_frame);
    nghttp2_session_callbacks_set_error_callback2(callbacks, on_error);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    nghttp2_session_callbacks_set_before_frame_send_callback(callbacks, before_frame);
    nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks, on_frame_not_sent);
    nghttp2_option_set_no_closed_streams(option, 1);
    nghttp2_option_set_no_auto_ping_ack(option, 1);
    nghttp2_option_set_max_outbound_ack(option, OUTBOUND_ACKS_MAX);
    nghttp2_option_set_max_reserved_remote_streams(option, 0);
    if (nghttp2_session_client_new2(&session, callbacks, connection, option) != 0) session = NULL;
  }
  nghttp2_session_callbacks_del(callbacks);
  nghttp2_option_del(option);
  return session;
}

struct grpc_connection *grpc_connection_new(const char *authority, bool tls, size_t message_max, int32_t window) {
  size_t size = strlen(authority);
  struct grpc_connection *connection = calloc(1, sizeof *connection + size + 1);
  if (!connection) return NULL;
  memcpy(connection->authority, authority, size + 1);
  connection->authority_size = size;
  connection->tls = tls;
  connection->open.next = connection->open.previous = &connection->open;
  connection->ending.next = connection->ending.previous = &connection->ending;
  connection->limits.message_max = message_max;
  connection->limits.held_max = message_max > HELD_MIN / 4 ? message_max * 4 : HELD_MIN;
  if (window < NGHTTP2_INITIAL_WINDOW_SIZE) window = NGHTTP2_INITIAL_WINDOW_SIZE;
  const nghttp2_settings_entry settings[] = {
    {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
    {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, (uint32_t)window},
    {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, KV_GRPC_HEADER_LIST_MAX}};
  connection->session = session_new(connection);
  if (!connection->session ||
      nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings, sizeof settings / sizeof *settings) ||
      nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, window)) {
    grpc_connection_free(connection);
    return NULL;
  }
  return connection;
}

void grpc_connection_free(struct grpc_connection *connection) {
  if (!connection) return;
  fail(connection, GRPC_CUT, "the connection was closed");
  nghttp2_session_del(connection->session);
  while (connection->pool) {
    struct grpc_private *own = connection->pool;
    connection->pool = own->next;
    private_free(own);
  }
  free(connection);
}

void grpc_break(struct grpc_connection *connection, const char *problem) { fail(connection, GRPC_CUT, problem); }

bool grpc_draining(const struct grpc_connection *connection) {
  return connection->goaway || connection->failed || connection->doomed || connection->abandoned > ABANDONED_MAX ||
         nghttp2_session_get_next_stream_id(connection->session) > (uint32_t)LAST_STREAM;
}

bool grpc_failed(const struct grpc_connection *connection) { return connection->failed; }

const char *grpc_problem(const struct grpc_connection *connection) {
  return connection->failed ? connection->problem : connection->farewell;
}

size_t grpc_calls(const struct grpc_connection *connection) { return connection->calls; }

bool grpc_ping(struct grpc_connection *connection) {
  if (connection->failed) return false;
  if (connection->ping_pending) return true;
  uint8_t opaque[8];
  connection->ping++;
  memcpy(opaque, &connection->ping, sizeof opaque);
  if (nghttp2_submit_ping(connection->session, NGHTTP2_FLAG_NONE, opaque) != 0) return false;
  connection->ping_pending = true;
  return true;
}

bool grpc_ping_pending(const struct grpc_connection *connection) { return connection->ping_pending; }

/* ------------------------------------------------------------------ calls */

static bool out_add(struct grpc_private *own, const void *message, size_t size) {
  if (size > SEND_MAX || own->out_size - own->out_from + size > SEND_MAX) return false;
  size_t need = own->out_size + KV_GRPC_PREFIX + size;
  if (need > own->out_capacity && own->out_from > 0) {
    memmove(own->out, own->out + own->out_from, own->out_size - own->out_from);
    own->out_size -= own->out_from;
    need -= own->out_from;
    own->out_from = 0;
  }
  if (need > own->out_capacity) {
    size_t capacity = own->out_capacity * 2 > 256 ? own->out_capacity * 2 : 256;
    if (capacity < need) capacity = need;
    uint8_t *out = realloc(own->out, capacity);
    if (!out) return false;
    own->out = out;
    own->out_capacity = capacity;
  }
  uint8_t *at = own->out + own->out_size;
  at[0] = 0;
  at[1] = (uint8_t)(size >> 24);
  at[2] = (uint8_t)(size >> 16);
  at[3] = (uint8_t)(size >> 8);
  at[4] = (uint8_t)size;
  if (size > 0) memcpy(at + KV_GRPC_PREFIX, message, size);
  own->out_size = need;
  return true;
}

static nghttp2_nv header(const char *name, size_t name_size, const char *value, size_t value_size, uint8_t flags) {
  return (nghttp2_nv){(uint8_t *)(uintptr_t)name, (uint8_t *)(uintptr_t)value, name_size, value_size, flags};
}

#define KEPT (NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE)
#define FIXED(name, value) header(name, sizeof(name) - 1, value, sizeof(value) - 1, KEPT)

/* Digits and unit: at most eight digits, as the protocol wants. */
static size_t timeout_text(char *text, size_t size, int64_t timeout_ms) {
  if (timeout_ms < 1) timeout_ms = 1;
  bool seconds = timeout_ms > 99999999;
  int64_t value = seconds ? timeout_ms / 1000 : timeout_ms;
  if (value > 99999999) value = 99999999;
  return (size_t)snprintf(text, size, "%d%c", (int)value, seconds ? 'S' : 'm');
}

/* All headers of a request into `list` (9 + METADATA_MAX entries); returns how many. */
static size_t request_headers(const struct grpc_connection *connection, nghttp2_nv *list, const char *path,
                              const struct grpc_metadata *metadata, size_t metadata_count, const char *timeout,
                              size_t timeout_size) {
  size_t count = 0;
  list[count++] = FIXED(":method", "POST");
  list[count++] = connection->tls ? FIXED(":scheme", "https") : FIXED(":scheme", "http");
  list[count++] = header(":path", 5, path, strlen(path), NGHTTP2_NV_FLAG_NO_COPY_NAME);
  list[count++] = header(":authority", 10, connection->authority, connection->authority_size, KEPT);
  list[count++] = FIXED("te", "trailers");
  list[count++] = FIXED("content-type", "application/grpc");
  list[count++] = FIXED("user-agent", "grpc-c-kv-lua/0.1");
  if (timeout_size > 0) /* a new value each time would only push the others out of the table */
    list[count++] =
      header("grpc-timeout", 12, timeout, timeout_size, NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_INDEX);
  for (size_t i = 0; i < metadata_count; i++) {
    const char *name = metadata[i].name;
    bool harmless = strcmp(name, "hasleader") == 0; /* anything else may be a secret: no table keeps it */
    list[count++] = header(name, strlen(name), metadata[i].value, strlen(metadata[i].value),
                           harmless ? NGHTTP2_NV_FLAG_NONE : NGHTTP2_NV_FLAG_NO_INDEX);
  }
  return count;
}

bool grpc_start(struct grpc_connection *connection, struct grpc_call *call, const char *path, const void *message,
                size_t size, bool end_stream, const struct grpc_metadata *metadata, size_t metadata_count,
                int64_t timeout_ms) {
  call->sent = false;
  call->own = NULL;
  if (metadata_count > METADATA_MAX || grpc_draining(connection)) return false;
  struct grpc_private *own = private_new(connection);
  if (!own) return false;
  if (!out_add(own, message, size)) {
    private_release(own);
    return false;
  }
  own->out_end = end_stream;
  nghttp2_nv list[9 + METADATA_MAX];
  char timeout[24];
  size_t timeout_size = timeout_ms < 0 ? 0 : timeout_text(timeout, sizeof timeout, timeout_ms);
  size_t count = request_headers(connection, list, path, metadata, metadata_count, timeout, timeout_size);
  const nghttp2_data_provider provider = {.source = {.ptr = NULL}, .read_callback = read_out};
  int32_t stream = nghttp2_submit_request(connection->session, NULL, list, count, &provider, own);
  if (stream < 0) {
    private_release(own);
    return false;
  }
  own->stream = stream;
  own->call = call;
  call->own = own;
  connection->calls++;
  list_add(&connection->open, own);
  return true;
}

bool grpc_send(struct grpc_connection *connection, struct grpc_call *call, const void *message, size_t size) {
  struct grpc_private *own = call->own;
  if (!own || connection->failed || own->out_end || !out_add(own, message, size)) return false;
  if (own->deferred) {
    own->deferred = false;
    nghttp2_session_resume_data(connection->session, own->stream); /* fails when the stream is closing: its end comes */
  }
  return true;
}

void grpc_cancel(struct grpc_connection *connection, struct grpc_call *call) {
  (void)connection;
  if (call->own) end_call(call->own, GRPC_CANCELLED, "cancelled", NGHTTP2_CANCEL);
}

/* ------------------------------------------------------------------ bytes */

/* Servers that do not speak HTTP/2 are told apart by their first bytes, for a message that helps. */
static const char *first_bytes(const struct grpc_connection *connection, const uint8_t *data, size_t size) {
  if (size >= 5 && memcmp(data, "HTTP/", 5) == 0) return "the server answers with HTTP/1, not HTTP/2";
  if (size >= 3 && !connection->tls && data[0] == 0x15 && data[1] == 3) return "the server wants TLS";
  return NULL;
}

bool grpc_feed(struct grpc_connection *connection, const uint8_t *data, size_t size) {
  if (connection->failed || size == 0) return !connection->failed;
  if (connection->inside) {
    fail(connection, GRPC_CUT, "grpc_feed() inside a callback");
    return false;
  }
  if (!connection->fed) {
    const char *problem = first_bytes(connection, data, size);
    connection->fed = true;
    if (problem) {
      fail(connection, GRPC_GARBLED, problem);
      return false;
    }
  }
  connection->in_frame += size;
  if (!connection->doomed) connection->complaint[0] = '\0';
  connection->inside = true;
  ssize_t taken = nghttp2_session_mem_recv(connection->session, data, size);
  connection->inside = false;
  if (!settle(connection)) return false;
  if (taken < 0)
    fail_http2(connection, nghttp2_strerror((int)taken));
  else if (connection->in_frame > size + HEADER_BLOCK_MAX)
    fail(connection, GRPC_GARBLED, "HTTP/2: endless headers");
  else if (!grpc_draining(connection) && !nghttp2_session_check_request_allowed(connection->session))
    fail_http2(connection, "the server broke the protocol"); /* nghttp2 is about to say GOAWAY */
  return !connection->failed;
}

ptrdiff_t grpc_produce(struct grpc_connection *connection, uint8_t *out, size_t size) {
  size_t filled = 0;
  if (connection->failed) return -1;
  if (connection->inside) return 0;
  while (filled < size) {
    if (connection->chunk_size == 0) {
      connection->inside = true;
      ssize_t given = nghttp2_session_mem_send(connection->session, &connection->chunk);
      connection->inside = false;
      if (!settle(connection)) return -1;
      if (given < 0) fail_http2(connection, nghttp2_strerror((int)given));
      if (connection->failed) return -1;
      if (given == 0) break;
      connection->chunk_size = (size_t)given;
    }
    size_t piece = connection->chunk_size < size - filled ? connection->chunk_size : size - filled;
    memcpy(out + filled, connection->chunk, piece);
    filled += piece;
    connection->chunk += piece;
    connection->chunk_size -= piece;
  }
  return (ptrdiff_t)filled;
}

bool grpc_wants_write(const struct grpc_connection *connection) {
  if (connection->failed) return false;
  return connection->chunk_size > 0 || nghttp2_session_want_write(connection->session) != 0;
}
