/*
 * grpc_answer.c - what a server answers to one call: its headers and trailers become a status and a text for people,
 * its bytes become messages. No HTTP/2 and no call is known here, so that each rule can be tested on its own.
 *
 * Everything in here was said by a peer. Text is made printable and cut, numbers are checked, a message's buffer grows
 * with the bytes that came and not with the length that was claimed.
 */
#include "grpc_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_BUFFER ((size_t)1 << 20) /* a claimed length up to this is believed */
#define KEEP_BUFFER ((size_t)1 << 16)  /* a buffer up to this stays with the stream */

/* ------------------------------------------------------------------ text */

static int hex(uint8_t c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/* Bytes of the UTF-8 sequence at p. 0: it is none; overlong forms, surrogates, C1 controls and what lies beyond
 * U+10FFFF are none. */
static size_t utf8_sequence(const uint8_t *p, size_t size) {
  size_t need = p[0] >= 0xc2 && p[0] <= 0xdf ? 2 : (p[0] & 0xf0) == 0xe0 ? 3 : p[0] >= 0xf0 && p[0] <= 0xf4 ? 4 : 0;
  if (need == 0 || need > size) return 0;
  for (size_t i = 1; i < need; i++)
    if ((p[i] & 0xc0) != 0x80) return 0;
  if (p[0] == 0xc2 && p[1] < 0xa0) return 0;
  if (p[0] == 0xe0 && p[1] < 0xa0) return 0;
  if (p[0] == 0xed && p[1] > 0x9f) return 0;
  if (p[0] == 0xf0 && p[1] < 0x90) return 0;
  if (p[0] == 0xf4 && p[1] > 0x8f) return 0;
  return need;
}

void kv_grpc_printable(char *text, size_t size, const uint8_t *data, size_t data_size, bool percent) {
  uint8_t plain[KV_GRPC_TEXT_MAX + 4];
  size_t count = 0;
  for (size_t i = 0; i < data_size && count < sizeof plain; i++) {
    int high = percent && data[i] == '%' && i + 2 < data_size ? hex(data[i + 1]) : -1;
    int low = high >= 0 ? hex(data[i + 2]) : -1;
    if (low >= 0) {
      plain[count++] = (uint8_t)(high << 4 | low);
      i += 2;
    } else {
      plain[count++] = data[i];
    }
  }
  size_t at = 0;
  for (size_t i = 0; i < count;) {
    size_t sequence = plain[i] >= 0x80 ? utf8_sequence(plain + i, count - i) : 1;
    if (at + (sequence ? sequence : 1) >= size) break;
    if (sequence == 0) {
      text[at++] = '?';
      i++;
    } else if (sequence == 1) {
      text[at++] = plain[i] < 0x20 || plain[i] == 0x7f ? ' ' : (char)plain[i];
      i++;
    } else {
      memcpy(text + at, plain + i, sequence);
      at += sequence;
      i += sequence;
    }
  }
  text[at] = '\0';
}

/* ------------------------------------------------------------------ headers */

void kv_grpc_answer_reset(struct kv_grpc_answer *answer) {
  answer->http_status = 0;
  answer->status = -1;
  answer->is_grpc = false;
  answer->head_done = false;
  answer->bytes = 0;
  answer->type[0] = '\0';
  answer->message[0] = '\0';
}

static int number(const uint8_t *text, size_t size) {
  int value = 0;
  if (size == 0 || size > 4) return -1;
  for (size_t i = 0; i < size; i++) {
    if (text[i] < '0' || text[i] > '9') return -1;
    value = value * 10 + (text[i] - '0');
  }
  return value;
}

static bool content_type_is_grpc(const uint8_t *value, size_t size) {
  static const char wanted[] = "application/grpc";
  const size_t length = sizeof wanted - 1;
  if (size < length || memcmp(value, wanted, length) != 0) return false;
  return size == length || value[length] == '+' || value[length] == ';';
}

bool kv_grpc_answer_header(struct kv_grpc_answer *answer, const uint8_t *name, size_t name_size, const uint8_t *value,
                           size_t value_size) {
  if (value_size > KV_GRPC_HEADER_LIST_MAX || name_size > KV_GRPC_HEADER_LIST_MAX) return false;
  answer->bytes += (uint32_t)(name_size + value_size + 32);
  if (answer->bytes > KV_GRPC_HEADER_LIST_MAX) return false;
  if (name_size == 7 && memcmp(name, ":status", 7) == 0) {
    int status = number(value, value_size);
    answer->http_status = status < 0 ? 0 : status;
  } else if (name_size == 11 && memcmp(name, "grpc-status", 11) == 0) {
    int status = number(value, value_size);
    answer->status = status < 0 || status > GRPC_UNAUTHENTICATED ? GRPC_UNKNOWN : status;
  } else if (name_size == 12 && memcmp(name, "grpc-message", 12) == 0) {
    kv_grpc_printable(answer->message, KV_GRPC_TEXT_MAX + 1, value, value_size, true);
  } else if (name_size == 12 && memcmp(name, "content-type", 12) == 0) {
    answer->is_grpc = content_type_is_grpc(value, value_size);
    if (!answer->is_grpc) kv_grpc_printable(answer->type, sizeof answer->type, value, value_size, false);
  }
  return true;
}

/* As gRPC's own table of HTTP statuses has it. */
static int status_of_http(int http_status) {
  switch (http_status) {
    case 400: return GRPC_INTERNAL;
    case 401: return GRPC_UNAUTHENTICATED;
    case 403: return GRPC_PERMISSION_DENIED;
    case 404: return GRPC_UNIMPLEMENTED;
    case 429: case 502: case 503: case 504: return GRPC_UNAVAILABLE;
    default: return GRPC_UNKNOWN;
  }
}

bool kv_grpc_answer_block(struct kv_grpc_answer *answer, bool end_stream, int *status, char *text) {
  if (answer->head_done) return true; /* trailers: judged at the end of the stream */
  if (answer->http_status >= 100 && answer->http_status < 200) {
    uint32_t bytes = answer->bytes;
    kv_grpc_answer_reset(answer);
    answer->bytes = bytes; /* or 1xx without end would not be bounded */
    return true;
  }
  answer->head_done = true;
  if (end_stream && answer->status >= 0 && answer->is_grpc) return true;
  if (answer->http_status != 200) {
    *status = status_of_http(answer->http_status);
    snprintf(text, KV_GRPC_TEXT_MAX, "the server answered with HTTP status %d", answer->http_status);
    return false;
  }
  if (!answer->is_grpc) {
    *status = GRPC_GARBLED;
    if (answer->type[0]) snprintf(text, KV_GRPC_TEXT_MAX, "the answer is not gRPC (content-type %s)", answer->type);
    else snprintf(text, KV_GRPC_TEXT_MAX, "the answer is not gRPC (no content-type)");
    return false;
  }
  if (!end_stream) answer->status = -1; /* a status counts in trailers only */
  return true;
}

static const char *status_text(int status) {
  static const char *const names[] = {
    "ok", "cancelled by the server", "unknown error", "invalid argument", "deadline exceeded", "not found",
    "already exists", "permission denied", "resource exhausted", "failed precondition", "aborted", "out of range",
    "unimplemented", "internal error", "unavailable", "data loss", "unauthenticated"};
  return status >= 0 && status <= GRPC_UNAUTHENTICATED ? names[status] : "unknown error";
}

int kv_grpc_answer_end(const struct kv_grpc_answer *answer, bool half, char *text) {
  if (answer->status < 0) {
    snprintf(text, KV_GRPC_TEXT_MAX, "the server ended the stream without grpc-status%s",
             half ? ", inside a message" : "");
    return GRPC_GARBLED;
  }
  if (answer->status == GRPC_OK && half) {
    snprintf(text, KV_GRPC_TEXT_MAX, "the server ended the stream inside a message");
    return GRPC_GARBLED;
  }
  const char *said = answer->message[0] ? answer->message : status_text(answer->status);
  memcpy(text, said, strlen(said) + 1); /* `message` is as long as `text` at most */
  return answer->status;
}

/* ------------------------------------------------------------------ messages */

static void drop_large(struct kv_grpc_reader *reader, struct kv_grpc_limits *limits, size_t keep) {
  if (reader->capacity <= keep) return;
  limits->held -= reader->capacity;
  free(reader->data);
  reader->data = NULL;
  reader->capacity = 0;
}

void kv_grpc_reader_reset(struct kv_grpc_reader *reader, struct kv_grpc_limits *limits, size_t keep) {
  reader->prefix_size = 0;
  reader->body = false;
  reader->size = reader->wanted = 0;
  drop_large(reader, limits, keep);
}

/* Room for `more` bytes behind size, never beyond `wanted`. */
static bool reserve(struct kv_grpc_reader *reader, struct kv_grpc_limits *limits, size_t more, char *text) {
  size_t need = reader->size + more;
  if (need <= reader->capacity) return true;
  size_t capacity = reader->capacity * 2 > FIRST_BUFFER ? reader->capacity * 2 : FIRST_BUFFER;
  if (capacity < need) capacity = need;
  if (capacity > reader->wanted) capacity = reader->wanted;
  if (capacity - reader->capacity > limits->held_max - limits->held) {
    snprintf(text, KV_GRPC_TEXT_MAX, "the answers in flight are too large together (over %zu bytes)", limits->held_max);
    return false;
  }
  uint8_t *data = realloc(reader->data, capacity);
  if (!data) {
    snprintf(text, KV_GRPC_TEXT_MAX, "out of memory for an answer of %zu bytes", reader->wanted);
    return false;
  }
  limits->held += capacity - reader->capacity;
  reader->data = data;
  reader->capacity = capacity;
  return true;
}

/* Collect and check the prefix. False with READ_FAILED or READ_MORE in *result. */
static bool take_prefix(struct kv_grpc_reader *reader, const struct kv_grpc_limits *limits, const uint8_t **data,
                        size_t *size, enum kv_grpc_read *result, char *text) {
  const uint8_t *prefix = *data;
  size_t used = KV_GRPC_PREFIX;
  if (reader->prefix_size > 0 || *size < KV_GRPC_PREFIX) {
    used = KV_GRPC_PREFIX - reader->prefix_size;
    if (used > *size) used = *size;
    if (used > 0) memcpy(reader->prefix + reader->prefix_size, *data, used);
    reader->prefix_size = (uint8_t)(reader->prefix_size + used);
    prefix = reader->prefix;
  }
  *data += used;
  *size -= used;
  if (prefix == reader->prefix && reader->prefix_size < KV_GRPC_PREFIX) {
    *result = KV_GRPC_READ_MORE;
    return false;
  }
  *result = KV_GRPC_READ_FAILED;
  if (prefix[0] != 0) {
    snprintf(text, KV_GRPC_TEXT_MAX, "the server sent a compressed message, which was not asked for");
    return false;
  }
  size_t wanted = (size_t)prefix[1] << 24 | (size_t)prefix[2] << 16 | (size_t)prefix[3] << 8 | prefix[4];
  if (wanted > limits->message_max) {
    snprintf(text, KV_GRPC_TEXT_MAX, "the server sent a message of %zu bytes, more than %zu are not taken", wanted,
             limits->message_max);
    return false;
  }
  reader->prefix_size = 0;
  reader->wanted = wanted;
  reader->size = 0;
  reader->body = true;
  return true;
}

enum kv_grpc_read kv_grpc_reader_take(struct kv_grpc_reader *reader, struct kv_grpc_limits *limits,
                                      const uint8_t **data, size_t *size, const uint8_t **message,
                                      size_t *message_size, char *text) {
  enum kv_grpc_read result;
  if (!reader->body) {
    drop_large(reader, limits, KEEP_BUFFER); /* of the message before */
    if (!take_prefix(reader, limits, data, size, &result, text)) return result;
  }
  if (reader->size == 0 && *size >= reader->wanted) { /* whole, right where it came: no copy */
    *message = *data;
    *message_size = reader->wanted;
    *data += reader->wanted;
    *size -= reader->wanted;
    reader->body = false;
    return KV_GRPC_READ_MESSAGE;
  }
  size_t piece = reader->wanted - reader->size;
  if (piece > *size) piece = *size;
  if (piece == 0) return KV_GRPC_READ_MORE;
  if (!reserve(reader, limits, piece, text)) return KV_GRPC_READ_FAILED;
  memcpy(reader->data + reader->size, *data, piece);
  reader->size += piece;
  *data += piece;
  *size -= piece;
  if (reader->size < reader->wanted) return KV_GRPC_READ_MORE;
  *message = reader->data;
  *message_size = reader->size;
  reader->body = false;
  return KV_GRPC_READ_MESSAGE;
}
