/*
 * grpc_internal.h - what grpc.c (connection, calls, sending) and grpc_answer.c (what a server answers) share.
 */
#ifndef KV_GRPC_INTERNAL_H
#define KV_GRPC_INTERNAL_H

#include "grpc.h"

#define KV_GRPC_TEXT_MAX 200           /* bytes of a message for people */
#define KV_GRPC_HEADER_LIST_MAX 16384  /* names and values of one answer, headers and trailers together */
#define KV_GRPC_PREFIX 5               /* compressed flag, length in big-endian order */

/* The headers and trailers of one answer, as far as they matter. */
struct kv_grpc_answer {
  int http_status;      /* 0: none yet */
  int status;           /* grpc-status, -1: none yet */
  bool is_grpc;         /* content-type said so */
  bool head_done;       /* the first header block (not 1xx) is complete */
  uint32_t bytes;       /* of all headers, to bound them */
  char type[48];        /* content-type, printable, when it is not gRPC's */
  char message[KV_GRPC_TEXT_MAX + 4]; /* grpc-message, decoded */
};

void kv_grpc_answer_reset(struct kv_grpc_answer *answer);
/* Take one header. False: more headers than we take. */
bool kv_grpc_answer_header(struct kv_grpc_answer *answer, const uint8_t *name, size_t name_size, const uint8_t *value,
                           size_t value_size);
/* A header block is complete. False: the call is over, with *status and `text` (KV_GRPC_TEXT_MAX + 4 bytes). */
bool kv_grpc_answer_block(struct kv_grpc_answer *answer, bool end_stream, int *status, char *text);
/* The stream ended: the status of the call and a text that is never empty. `half`: inside a message. */
int kv_grpc_answer_end(const struct kv_grpc_answer *answer, bool half, char *text);

/* Copy bytes of a peer into `text` (size bytes, always terminated): printable, UTF-8 kept whole, cut where it must be.
 * `percent`: decode %XX first. */
void kv_grpc_printable(char *text, size_t size, const uint8_t *data, size_t data_size, bool percent);

/* Puts messages together from the pieces in which they come. */
struct kv_grpc_reader {
  uint8_t prefix[KV_GRPC_PREFIX];
  uint8_t prefix_size;
  bool body;                 /* the prefix is complete, and `wanted` known */
  uint8_t *data;
  size_t size, capacity, wanted;
};

/* What all readers of a connection may use. */
struct kv_grpc_limits {
  size_t message_max;
  size_t held, held_max;     /* bytes in buffers of messages that are not complete, and their cap */
};

enum kv_grpc_read { KV_GRPC_READ_MORE, KV_GRPC_READ_MESSAGE, KV_GRPC_READ_FAILED };

/*
 * Take from *data, *size (both move on). READ_MESSAGE: *message, *message_size is one whole message, valid until the
 * next call; call again for the rest. READ_MORE: all is taken. READ_FAILED: `text` (as above) says why.
 */
enum kv_grpc_read kv_grpc_reader_take(struct kv_grpc_reader *reader, struct kv_grpc_limits *limits,
                                      const uint8_t **data, size_t *size, const uint8_t **message,
                                      size_t *message_size, char *text);
static inline bool kv_grpc_reader_half(const struct kv_grpc_reader *reader) {
  return reader->body || reader->prefix_size > 0;
}
/* Forget what was read; buffers larger than `keep` are freed. */
void kv_grpc_reader_reset(struct kv_grpc_reader *reader, struct kv_grpc_limits *limits, size_t keep);

#endif
