/*
 * grpc.h - gRPC over one HTTP/2 connection, as a machine that is fed bytes and gives bytes. It touches no
 * socket, reads no clock, and knows nothing of etcd: a driver moves the bytes. Built on nghttp2.
 *
 * Unary and bidirectional streaming calls; many at once. Everything that the peer can grow is capped: a message by
 * `message_max`, headers by a few KB. An error of the connection is sticky: every call gets on_end with it, and feed()
 * and produce() fail from then on. Errors of one call end only that call.
 *
 * One thread at a time. grpc_feed(), grpc_produce() and grpc_connection_free() must not be called inside callbacks
 * (feed breaks the connection then, produce gives nothing); the rest may, grpc_break() too.
 */
#ifndef KV_GRPC_H
#define KV_GRPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct grpc_connection;

/* grpc-status numbers that matter, and our own below zero for calls that ended without one. */
enum grpc_status {
  GRPC_OK = 0, GRPC_CANCELLED = 1, GRPC_UNKNOWN = 2, GRPC_INVALID_ARGUMENT = 3, GRPC_DEADLINE_EXCEEDED = 4,
  GRPC_NOT_FOUND = 5, GRPC_ALREADY_EXISTS = 6, GRPC_PERMISSION_DENIED = 7, GRPC_RESOURCE_EXHAUSTED = 8,
  GRPC_FAILED_PRECONDITION = 9, GRPC_ABORTED = 10, GRPC_OUT_OF_RANGE = 11, GRPC_UNIMPLEMENTED = 12,
  GRPC_INTERNAL = 13, GRPC_UNAVAILABLE = 14, GRPC_DATA_LOSS = 15, GRPC_UNAUTHENTICATED = 16,
  GRPC_NOT_SENT = -1,  /* nothing of the call left this process, or the server said that it did not look at it
                        * (REFUSED_STREAM, GOAWAY): safe to send again */
  GRPC_CUT = -2,       /* the connection or stream broke after the call was sent: may have been executed */
  GRPC_GARBLED = -3    /* the server broke the protocol (no status, half a message, too large...); may have been
                        * executed */
};

struct grpc_call;

/*
 * Callbacks of a call. on_message may come any number of times (unary: once), then on_end exactly once, after which the
 * call is gone (on_end may free it). on_end may come from grpc_feed(), grpc_produce(), grpc_break(), grpc_cancel() or
 * grpc_connection_free(), never from grpc_start() or grpc_send(). Calls may be started and cancelled inside them.
 */
struct grpc_handler {
  /* One whole message; bytes are valid during the call only. Return false to fail the call (it does not understand the
   * message): on_end follows with GRPC_GARBLED. */
  bool (*on_message)(struct grpc_call *call, const uint8_t *data, size_t size);
  /* status: enum grpc_status. `message` is the server's (percent-decoded, printable, bounded) or ours; never NULL,
   * never empty. GRPC_OK says nothing about how many messages came: a unary call's owner checks that itself. */
  void (*on_end)(struct grpc_call *call, int status, const char *message);
};

struct grpc_call {
  const struct grpc_handler *handler;
  void *data;                 /* the user's */
  bool sent;                  /* the first byte was handed out by grpc_produce() */
  /* the rest is grpc.c's own */
  struct grpc_private *own;
};

/* authority: host:port for :authority. message_max: largest message taken. window: flow-control window per connection
 * and stream, bytes (65535 at least). NULL: out of memory. */
struct grpc_connection *grpc_connection_new(const char *authority, bool tls, size_t message_max, int32_t window);
/* Ends all calls (GRPC_CUT / GRPC_NOT_SENT) and frees. Not inside a callback. */
void grpc_connection_free(struct grpc_connection *connection);

struct grpc_metadata { const char *name, *value; };

/*
 * Start a call of `path` ("/etcdserverpb.KV/Range"). The caller owns `call` (embedded) until on_end and fills in
 * `handler` and `data` before. `message` (without the 5-byte prefix) and path are copied. end_stream: nothing follows
 * (unary). Metadata (16 at most, names in lower case) is copied; no header table keeps it. timeout_ms < 0: no
 * grpc-timeout header. False: out of memory or the connection is over or draining; nothing was started.
 */
bool grpc_start(struct grpc_connection *connection, struct grpc_call *call, const char *path, const void *message,
                size_t size, bool end_stream, const struct grpc_metadata *metadata, size_t metadata_count,
                int64_t timeout_ms);
/* Another message on a streaming call. False: out of memory or the call is over. */
bool grpc_send(struct grpc_connection *connection, struct grpc_call *call, const void *message, size_t size);
/* Reset the stream. on_end comes inside this call with GRPC_CANCELLED. Nothing when the call is over (or in on_end). */
void grpc_cancel(struct grpc_connection *connection, struct grpc_call *call);

/* Give received bytes. False: the connection is over (grpc_problem() says why, all calls have ended). */
bool grpc_feed(struct grpc_connection *connection, const uint8_t *data, size_t size);
/* Append bytes to be sent to out (at most `size`); returns how many, 0: nothing now, -1: the connection is over. */
ptrdiff_t grpc_produce(struct grpc_connection *connection, uint8_t *out, size_t size);
bool grpc_wants_write(const struct grpc_connection *connection);
/* The transport broke or the driver gives up: end all calls with `problem`. */
void grpc_break(struct grpc_connection *connection, const char *problem);
/* Send a PING; grpc_ping_pending() is true until its answer came. */
bool grpc_ping(struct grpc_connection *connection);
bool grpc_ping_pending(const struct grpc_connection *connection);
/* The server's own PING is answered by grpc_acknowledge(), or when it sends another one: see grpc.c. */
bool grpc_owes_acknowledgement(const struct grpc_connection *connection);
void grpc_acknowledge(struct grpc_connection *connection);
/* Finish what is in flight, start nothing new here: the server asked to go away (GOAWAY), has long taken no new
 * streams, or the numbers of streams are used up (2^30 calls). Without calls in flight it is only to be closed. */
bool grpc_draining(const struct grpc_connection *connection);
bool grpc_failed(const struct grpc_connection *connection);
/* Why it failed, or what GOAWAY said; "" when neither. */
const char *grpc_problem(const struct grpc_connection *connection);
size_t grpc_calls(const struct grpc_connection *connection); /* in flight */

#endif
