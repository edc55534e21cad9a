/*
 * json.c - see json.h.
 *
 * jansson reads integers into 64 signed bits and refuses larger ones, and with them all that stands around: one key
 * whose flags have the highest bit set would hide a whole listing. So integers are read as doubles; what we need of
 * them is below 2^53 and exact.
 */
#include "json.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#define NUMBER_MAX 9007199254740992.0 /* 2^53 */
#define DEPTH_MAX 64

static const json_t *plain(const struct json *value) {
  return (const json_t *)(const void *)value;
}

struct json *json_read(kv_slice text) {
  json_error_t error;
  if (!text.size) return NULL;
  json_t *value = json_loadb(text.data, text.size,
                             JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, &error);
  return (struct json *)(void *)value;
}

void json_free(struct json *value) {
  json_decref((json_t *)(void *)value);
}

const struct json *json_member(const struct json *value, const char *name) {
  if (!value || !json_is_object(plain(value))) return NULL;
  return (const struct json *)(const void *)json_object_get(plain(value), name);
}

const struct json *json_item(const struct json *value, size_t index) {
  if (!value || !json_is_array(plain(value))) return NULL;
  return (const struct json *)(const void *)json_array_get(plain(value), index);
}

size_t json_count(const struct json *value) {
  return value && json_is_array(plain(value)) ? json_array_size(plain(value)) : 0;
}

bool json_text(const struct json *value, kv_slice *text) {
  if (!value || !json_is_string(plain(value))) return false;
  *text = (kv_slice){json_string_value(plain(value)), json_string_length(plain(value))};
  return true;
}

bool json_number(const struct json *value, uint64_t *number) {
  if (!value || !json_is_real(plain(value))) return false;
  double real = json_real_value(plain(value));
  if (!(real >= 0 && real <= NUMBER_MAX) || real != floor(real)) return false;
  *number = (uint64_t)real;
  return true;
}

uint64_t json_rounded(const struct json *value) {
  if (!value || !json_is_real(plain(value))) return 0;
  double real = json_real_value(plain(value));
  return real >= 0 && real < 18446744073709551616.0 ? (uint64_t)real : 0;
}

bool json_flag(const struct json *value) {
  return value && json_typeof(plain(value)) == JSON_TRUE;
}

/* ------------------------------------------------------------------ elements */

enum { BEFORE, FIRST, NEXT, INSIDE, SCALAR, BEHIND, END, BROKEN };

void json_elements_init(struct json_elements *elements, size_t element_max,
                        bool (*element)(void *context, kv_slice text), void *context) {
  memset(elements, 0, sizeof *elements);
  elements->element = element;
  elements->context = context;
  elements->state = BEFORE;
  kv_buffer_init(&elements->held, element_max);
}

void json_elements_free(struct json_elements *elements) {
  kv_buffer_free(&elements->held);
}

bool json_elements_complete(const struct json_elements *elements) {
  return elements->state == END;
}

static bool is_space(char byte) {
  return byte == ' ' || byte == '\n' || byte == '\t' || byte == '\r';
}

static void begin_element(struct json_elements *elements, char byte) {
  elements->depth = byte == '{' || byte == '[';
  elements->in_string = byte == '"';
  elements->escaped = false;
  elements->state = elements->depth || elements->in_string ? INSIDE : SCALAR;
}

/* A byte outside of elements. False: malformed. */
static bool outside(struct json_elements *elements, char byte) {
  if (is_space(byte)) return true;
  switch (elements->state) {
    case BEFORE:
      elements->state = FIRST;
      return byte == '[';
    case FIRST: case NEXT:
      if (byte == ']' && elements->state == FIRST)
        elements->state = END;
      else if (byte == ',' || byte == ']' || byte == '}' || byte == ':')
        return false;
      else
        begin_element(elements, byte);
      return true;
    case BEHIND:
      elements->state = byte == ',' ? NEXT : END;
      return byte == ',' || byte == ']';
    default: return false; /* something behind the end */
  }
}

/* A byte inside of an element. True: it is its last. */
static bool inside(struct json_elements *elements, char byte) {
  if (elements->in_string) {
    if (elements->escaped)
      elements->escaped = false;
    else if (byte == '\\')
      elements->escaped = true;
    else if (byte == '"')
      elements->in_string = false;
    return !elements->in_string && !elements->depth;
  }
  if (byte == '"') elements->in_string = true;
  if (byte == '{' || byte == '[') elements->depth++;
  if ((byte == '}' || byte == ']') && elements->depth) elements->depth--;
  return !elements->depth;
}

/* The element that ends in front of data[end]: held bytes, then those from data[from]. */
static bool end_element(struct json_elements *elements, const char *data, size_t from, size_t end) {
  struct kv_buffer *held = &elements->held;
  kv_slice text = {data + from, end - from};
  if (!held->size && text.size > held->limit) return false;
  if (held->size) {
    if (!kv_buffer_add(held, text.data, text.size)) return false;
    text = (kv_slice){held->data, held->size};
  }
  elements->state = BEHIND;
  bool good = elements->element(elements->context, text);
  held->size = 0;
  return good;
}

/* In strings, most bytes mean nothing: step over them. */
static size_t skip_plain(const struct json_elements *elements, const char *data, size_t at, size_t size) {
  if (!elements->in_string || elements->escaped) return at;
  while (at < size && data[at] != '"' && data[at] != '\\') at++;
  return at;
}

static bool feed(struct json_elements *elements, const char *data, size_t size) {
  size_t from = 0, at = 0;
  while (at < size) {
    if (elements->state == INSIDE) {
      at = skip_plain(elements, data, at, size);
      if (at == size) break;
      bool last = inside(elements, data[at++]);
      if (elements->depth > DEPTH_MAX) return false;
      if (last && !end_element(elements, data, from, at)) return false;
      continue;
    }
    if (elements->state == SCALAR) {
      bool over = is_space(data[at]) || data[at] == ',' || data[at] == ']';
      if (over && !end_element(elements, data, from, at)) return false;
      if (!over) at++;
      continue;
    }
    from = at;
    if (!outside(elements, data[at++])) return false;
  }
  if (elements->state != INSIDE && elements->state != SCALAR) return true;
  return kv_buffer_add(&elements->held, data + from, size - from);
}

bool json_elements_feed(struct json_elements *elements, const char *data, size_t size) {
  if (elements->state == BROKEN) return false;
  if (feed(elements, data, size)) return true;
  elements->state = BROKEN;
  return false;
}

/* ------------------------------------------------------------------ leaves */

#define NESTED_MAX 2048 /* a key of 480 bytes has 240 segments; each is an object and an array */

void json_leaves_init(struct json_leaves *leaves, size_t leaf_max,
                      bool (*leaf)(void *context, kv_slice text, unsigned depth), void *context) {
  memset(leaves, 0, sizeof *leaves);
  leaves->leaf = leaf;
  leaves->context = context;
  kv_buffer_init(&leaves->held, leaf_max);
}

void json_leaves_free(struct json_leaves *leaves) {
  kv_buffer_free(&leaves->held);
}

bool json_leaves_complete(const struct json_leaves *leaves) {
  return leaves->begun && !leaves->depth && !leaves->broken;
}

/* The leaf that ends in front of data[end]: what is held, then the bytes from data[from]. */
static bool end_leaf(struct json_leaves *leaves, const char *data, size_t from, size_t end) {
  struct kv_buffer *held = &leaves->held;
  kv_slice text = {data + from, end - from};
  if (held->size + text.size > held->limit) return false;
  if (held->size) {
    if (!kv_buffer_add(held, text.data, text.size)) return false;
    text = (kv_slice){held->data, held->size};
  }
  leaves->inside = false;
  bool good = leaves->leaf(leaves->context, text, leaves->depth);
  held->size = 0;
  return good;
}

/* A byte outside of strings; *from is where the text of a leaf begins in this piece. False: malformed, or stop. */
static bool structure(struct json_leaves *leaves, const char *data, size_t at, size_t *from) {
  char byte = data[at];
  if (byte == '{' || byte == '[') {
    if ((!leaves->depth && leaves->begun) || leaves->depth >= NESTED_MAX) return false;
    leaves->begun = true;
    leaves->depth++;
    leaves->inside = byte == '{';
    leaves->held.size = 0;
    *from = at;
    return true;
  }
  if (byte == '}' || byte == ']') {
    if (!leaves->depth || (byte == ']' && leaves->inside)) return false;
    if (leaves->inside && !end_leaf(leaves, data, *from, at + 1)) return false;
    leaves->depth--;
    return true;
  }
  if (byte == '"') {
    leaves->in_string = true;
    leaves->escaped = false;
  }
  return leaves->depth || is_space(byte);
}

static size_t skip_string(struct json_leaves *leaves, const char *data, size_t at, size_t size) {
  if (leaves->escaped) {
    leaves->escaped = false;
    return at + 1;
  }
  while (at < size && data[at] != '"' && data[at] != '\\') at++;
  if (at == size) return at;
  leaves->escaped = data[at] == '\\';
  leaves->in_string = data[at] != '"';
  return at + 1;
}

bool json_leaves_feed(struct json_leaves *leaves, const char *data, size_t size) {
  size_t from = 0, at = 0;
  if (leaves->broken) return false;
  while (at < size) {
    if (leaves->in_string)
      at = skip_string(leaves, data, at, size);
    else if (!structure(leaves, data, at++, &from))
      leaves->broken = true;
    if (leaves->broken) return false;
  }
  if (leaves->inside && !kv_buffer_add(&leaves->held, data + from, size - from)) leaves->broken = true;
  return !leaves->broken;
}

/* ------------------------------------------------------------------ writing */

bool json_quote(struct kv_buffer *out, kv_slice text) {
  static const char digits[] = "0123456789abcdef";
  if (text.size > (SIZE_MAX - 2) / 6 || !kv_buffer_reserve(out, text.size * 6 + 2)) return false;
  out->data[out->size++] = '"';
  for (size_t i = 0; i < text.size; i++) {
    unsigned char byte = (unsigned char)text.data[i];
    if (byte == '"' || byte == '\\') {
      out->data[out->size++] = '\\';
      out->data[out->size++] = (char)byte;
    } else if (byte < 0x20) {
      memcpy(out->data + out->size, "\\u00", 4);
      out->data[out->size + 4] = digits[byte >> 4];
      out->data[out->size + 5] = digits[byte & 15];
      out->size += 6;
    } else {
      out->data[out->size++] = (char)byte;
    }
  }
  out->data[out->size++] = '"';
  return true;
}
