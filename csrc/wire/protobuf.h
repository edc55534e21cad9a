/*
 * protobuf.h - reading and writing the protobuf wire format over slices.
 *
 * Written by hand instead of taken from a library or a generator: a driver needs a dozen message shapes of a few
 * fields each; reading must not copy (values go from the receive buffer straight to where the user reads them) or
 * allocate; and a reader whose every step is a bounds check on one slice is small enough to be tested and fuzzed as a
 * whole.
 *
 * Reading: a reader walks over the fields of one message; fields that the caller does not know are passed over. Any
 * malformed byte makes it fail for good (pb_ok() tells). Nothing is ever read outside of the slice, and nested messages
 * are plain slices again, so that depth is the caller's loop and not a recursion that a peer controls.
 *
 * Writing: a writer appends to a buffer that grows up to a cap and is kept for the next message. The first failure
 * (cap, or out of memory) is remembered; one check at the end suffices.
 */
#ifndef KV_PROTOBUF_H
#define KV_PROTOBUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pb_type { PB_VARINT = 0, PB_FIXED64 = 1, PB_BYTES = 2, PB_FIXED32 = 5 };

struct pb_reader {
  const uint8_t *at, *end;
  bool failed;
};

struct pb_field {
  uint32_t number;     /* 1 .. 2^29 - 1 */
  enum pb_type type;
  uint64_t value;      /* PB_VARINT, PB_FIXED64, PB_FIXED32 */
  const uint8_t *data; /* PB_BYTES: points into the message */
  size_t size;
};

void pb_reader_init(struct pb_reader *reader, const void *data, size_t size);
/* The next field. False at the end of the message, and when it is malformed: pb_ok() tells which. */
bool pb_next(struct pb_reader *reader, struct pb_field *field);
/* The reader has seen nothing malformed. */
bool pb_ok(const struct pb_reader *reader);
/* The caller found a field that cannot be (wrong type, impossible value): the message is malformed. Returns false. */
bool pb_reject(struct pb_reader *reader);

struct pb_writer {
  uint8_t *data;
  size_t size, capacity, limit;
  bool failed;
};

/* `limit`: bytes that a message may have at most. Allocates nothing yet. */
void pb_writer_init(struct pb_writer *writer, size_t limit);
void pb_writer_free(struct pb_writer *writer);
/* Begin a new message in the same memory. */
void pb_clear(struct pb_writer *writer);

/* A varint field; left out when the value is 0, as proto3 does. Negative int64 values are given as their two's
 * complement. */
void pb_number(struct pb_writer *writer, uint32_t field, uint64_t value);
/* The same, but written when 0 too (members of a oneof). */
void pb_number_always(struct pb_writer *writer, uint32_t field, uint64_t value);
/* A bytes or string field; left out when empty. */
void pb_bytes(struct pb_writer *writer, uint32_t field, const void *data, size_t size);
void pb_bytes_always(struct pb_writer *writer, uint32_t field, const void *data, size_t size);
/* A nested message: what is written between begin and end is its content. Written when empty too. */
size_t pb_begin(struct pb_writer *writer, uint32_t field);
void pb_end(struct pb_writer *writer, size_t mark);

#endif
