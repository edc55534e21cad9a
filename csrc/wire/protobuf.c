/*
 * protobuf.c - see protobuf.h, which also says why this is written by hand.
 *
 * All lengths are compared as "is there that much left", never as a sum that could wrap. Groups (wire types 3 and 4)
 * are long deprecated and refused, so that passing over an unknown field takes constant space.
 */
#include "protobuf.h"

#include <stdlib.h>
#include <string.h>

#define VARINT_MAX 10
#define FIELD_MAX ((UINT32_C(1) << 29) - 1)

/* ------------------------------------------------------------------ reading */

void pb_reader_init(struct pb_reader *reader, const void *data, size_t size) {
  static const uint8_t nothing[1] = {0};
  reader->at = size ? data : nothing;
  reader->end = reader->at + size;
  reader->failed = false;
}

bool pb_ok(const struct pb_reader *reader) {
  return !reader->failed;
}

bool pb_reject(struct pb_reader *reader) {
  reader->failed = true;
  reader->at = reader->end;
  return false;
}

static bool read_varint(struct pb_reader *reader, uint64_t *value) {
  uint64_t sum = 0;
  const uint8_t *at = reader->at;
  for (unsigned i = 0; i < VARINT_MAX && at < reader->end; i++) {
    uint8_t byte = *at++;
    if (i == VARINT_MAX - 1 && byte > 1) return pb_reject(reader); /* more than 64 bits */
    sum |= (uint64_t)(byte & 0x7f) << (7 * i);
    if (!(byte & 0x80)) {
      reader->at = at;
      *value = sum;
      return true;
    }
  }
  return pb_reject(reader);
}

static bool read_fixed(struct pb_reader *reader, unsigned bytes, uint64_t *value) {
  if ((size_t)(reader->end - reader->at) < bytes) return pb_reject(reader);
  uint64_t sum = 0;
  for (unsigned i = 0; i < bytes; i++) sum |= (uint64_t)reader->at[i] << (8 * i);
  reader->at += bytes;
  *value = sum;
  return true;
}

bool pb_next(struct pb_reader *reader, struct pb_field *field) {
  if (reader->at == reader->end) return false;
  uint64_t tag, length;
  if (!read_varint(reader, &tag)) return false;
  if (tag >> 3 == 0 || tag >> 3 > FIELD_MAX) return pb_reject(reader);
  field->number = (uint32_t)(tag >> 3);
  field->value = 0;
  field->data = NULL;
  field->size = 0;
  switch (tag & 7) {
    case PB_VARINT: field->type = PB_VARINT; return read_varint(reader, &field->value);
    case PB_FIXED64: field->type = PB_FIXED64; return read_fixed(reader, 8, &field->value);
    case PB_FIXED32: field->type = PB_FIXED32; return read_fixed(reader, 4, &field->value);
    case PB_BYTES:
      field->type = PB_BYTES;
      if (!read_varint(reader, &length)) return false;
      if (length > (uint64_t)(reader->end - reader->at)) return pb_reject(reader);
      field->data = reader->at;
      field->size = (size_t)length;
      reader->at += length;
      return true;
    default: return pb_reject(reader);
  }
}

/* ------------------------------------------------------------------ writing */

void pb_writer_init(struct pb_writer *writer, size_t limit) {
  memset(writer, 0, sizeof *writer);
  writer->limit = limit;
}

void pb_writer_free(struct pb_writer *writer) {
  free(writer->data);
  pb_writer_init(writer, writer->limit);
}

void pb_clear(struct pb_writer *writer) {
  writer->size = 0;
  writer->failed = false;
}

static bool reserve(struct pb_writer *writer, size_t more) {
  if (writer->failed) return false;
  if (more > writer->limit - writer->size) {
    writer->failed = true;
    return false;
  }
  size_t need = writer->size + more;
  if (need <= writer->capacity) return true;
  size_t capacity = writer->capacity ? writer->capacity : 256;
  while (capacity < need) capacity = capacity > writer->limit / 2 ? writer->limit : capacity * 2;
  uint8_t *data = realloc(writer->data, capacity);
  if (!data) {
    writer->failed = true;
    return false;
  }
  writer->data = data;
  writer->capacity = capacity;
  return true;
}

static size_t varint_size(uint64_t value) {
  size_t size = 1;
  while (value >= 0x80) {
    value >>= 7;
    size++;
  }
  return size;
}

/* Room for it must be reserved. */
static size_t store_varint(uint8_t *out, uint64_t value) {
  size_t size = 0;
  while (value >= 0x80) {
    out[size++] = (uint8_t)(value | 0x80);
    value >>= 7;
  }
  out[size++] = (uint8_t)value;
  return size;
}

static void write_varint(struct pb_writer *writer, uint64_t value) {
  if (!reserve(writer, varint_size(value))) return;
  writer->size += store_varint(writer->data + writer->size, value);
}

static void write_tag(struct pb_writer *writer, uint32_t field, enum pb_type type) {
  write_varint(writer, (uint64_t)field << 3 | (uint64_t)type);
}

void pb_number_always(struct pb_writer *writer, uint32_t field, uint64_t value) {
  write_tag(writer, field, PB_VARINT);
  write_varint(writer, value);
}

void pb_number(struct pb_writer *writer, uint32_t field, uint64_t value) {
  if (value) pb_number_always(writer, field, value);
}

void pb_bytes_always(struct pb_writer *writer, uint32_t field, const void *data, size_t size) {
  write_tag(writer, field, PB_BYTES);
  write_varint(writer, size);
  if (!size || !reserve(writer, size)) return;
  memcpy(writer->data + writer->size, data, size);
  writer->size += size;
}

void pb_bytes(struct pb_writer *writer, uint32_t field, const void *data, size_t size) {
  if (size) pb_bytes_always(writer, field, data, size);
}

size_t pb_begin(struct pb_writer *writer, uint32_t field) {
  write_tag(writer, field, PB_BYTES);
  return writer->size;
}

/* The length is known only now: the content moves to make room for it. */
void pb_end(struct pb_writer *writer, size_t mark) {
  if (writer->failed) return;
  size_t content = writer->size - mark, prefix = varint_size(content);
  if (!reserve(writer, prefix)) return;
  memmove(writer->data + mark + prefix, writer->data + mark, content);
  store_varint(writer->data + mark, content);
  writer->size += prefix;
}
