/*
 * key.c - what a key may be: the rules that every backend can keep, checked before any I/O.
 *
 * Two ways in. kv_key_canonical() takes what a user wrote, joins its segments by single slashes, and says in words
 * what is wrong. kv_key_is_canonical() looks at what a server sent, millions of times, and only answers yes or no;
 * plain ASCII takes a table look-up per byte.
 */
#include "core.h"

#include <stdio.h>
#include <string.h>

/* Bytes of a user's key that a message shows. */
#define SHOWN_MAX 64

/* ------------------------------------------------------------------ characters */

/*
 * The length (1..3) of the allowed character at `at`, or 0. Forbidden, besides what is no UTF-8: control characters
 * (C0, DEL, C1), surrogates, the private use area, U+FFF0..U+FFFF, and everything beyond the basic plane.
 */
static size_t character(const unsigned char *at, size_t left) {
  unsigned first = at[0];
  if (first < 0x80) return first >= 0x20 && first != 0x7F ? 1 : 0;
  if (first < 0xC2 || first > 0xEF) return 0; /* stray continuation, overlong, or four bytes */
  if (left < 2 || (at[1] & 0xC0) != 0x80) return 0;
  if (first < 0xE0) {
    unsigned point = (first & 0x1F) << 6 | (at[1] & 0x3Fu);
    return point >= 0xA0 ? 2 : 0;
  }
  if (left < 3 || (at[2] & 0xC0) != 0x80) return 0;
  unsigned point = (first & 0x0F) << 12 | (at[1] & 0x3Fu) << 6 | (at[2] & 0x3Fu);
  if (point < 0x800) return 0;                      /* overlong */
  if (point >= 0xD800 && point <= 0xF8FF) return 0; /* surrogates, private use */
  return point < 0xFFF0 ? 3 : 0;
}

static bool is_dots(const char *segment, size_t size) {
  return (size == 1 && segment[0] == '.') || (size == 2 && segment[0] == '.' && segment[1] == '.');
}

/* ------------------------------------------------------------------ keys of servers */

/* Printable ASCII without the slash: needs no second look. */
static bool is_plain(unsigned char byte) {
  return byte >= 0x20 && byte < 0x7F && byte != '/';
}

bool kv_key_is_canonical(kv_slice key) {
  const unsigned char *data = (const unsigned char *)key.data;
  if (key.size == 0 || key.size > KV_KEY_MAX) return false;
  size_t segment = 0; /* where the present segment starts */
  for (size_t at = 0; at <= key.size;) {
    if (at < key.size && is_plain(data[at])) {
      at++;
    } else if (at == key.size || data[at] == '/') {
      if (at == segment || is_dots(key.data + segment, at - segment)) return false;
      segment = ++at;
    } else {
      size_t size = character(data + at, key.size - at);
      if (size == 0) return false;
      at += size;
    }
  }
  return true;
}

bool kv_key_is_own(kv_slice key) {
  return key.size >= 3 && memcmp(key.data, ".kv", 3) == 0 && (key.size == 3 || key.data[3] == '/');
}

/* ------------------------------------------------------------------ keys of users */

/* Write `key` so that it can stand in a message: odd bytes escaped, cut when long. `out` holds SHOWN_MAX * 4 + 8. */
static void show(kv_slice key, char *out) {
  const unsigned char *data = (const unsigned char *)key.data;
  size_t at = 0, used = 0;
  while (at < key.size && at < SHOWN_MAX) {
    size_t size = data[at] == '"' || data[at] == '\\' ? 0 : character(data + at, key.size - at);
    if (size == 0) {
      used += (size_t)snprintf(out + used, 5, "\\x%02X", data[at]);
      at++;
    } else {
      memcpy(out + used, data + at, size);
      used += size;
      at += size;
    }
  }
  memcpy(out + used, at < key.size ? "..." : "", at < key.size ? 4 : 1);
}

static kv_code refuse(kv_error *error, const char *noun, kv_slice key, const char *reason) {
  if (!error) return KV_INVALID;
  char shown[SHOWN_MAX * 4 + 8];
  show(key, shown);
  return kv_fail(error, KV_INVALID, "invalid %s \"%s\": %s", noun, shown, reason);
}

static const char *why_not(const unsigned char *at, size_t left) {
  if (at[0] < 0x20 || at[0] == 0x7F) return "control characters are not allowed";
  if (at[0] >= 0xF0 && at[0] <= 0xF4) return "characters beyond Unicode's basic plane are not allowed";
  bool two = left >= 2 && (at[1] & 0xC0) == 0x80;
  bool three = two && left >= 3 && (at[2] & 0xC0) == 0x80;
  if (at[0] == 0xC2 && two) return "control characters are not allowed";
  if (at[0] == 0xED && three) return "surrogates are not allowed";
  if ((at[0] == 0xEE || at[0] == 0xEF) && three) return "private-use and special characters are not allowed";
  return "it is not valid UTF-8";
}

/* Copy one segment (no slash in it) behind `used` bytes of `out`; NULL, or what is wrong. */
static const char *add_segment(const char *segment, size_t size, char *out, size_t *used) {
  const unsigned char *data = (const unsigned char *)segment;
  if (is_dots(segment, size)) return "\".\" and \"..\" are not allowed as segments";
  for (size_t at = 0; at < size;) {
    size_t length = character(data + at, size - at);
    if (length == 0) return why_not(data + at, size - at);
    at += length;
  }
  size_t slash = *used > 0;
  if (size + slash > KV_KEY_MAX - *used) return "it is longer than 480 bytes";
  if (slash) out[(*used)++] = '/';
  memcpy(out + *used, segment, size);
  *used += size;
  return NULL;
}

_Static_assert(KV_KEY_MAX == 480, "the message above says 480");

kv_code kv_key_make(const char *noun, kv_slice key, bool root_allowed, char *out, size_t *size, kv_error *error) {
  size_t used = 0;
  for (size_t at = 0; at < key.size;) {
    const char *slash = memchr(key.data + at, '/', key.size - at);
    size_t end = slash ? (size_t)(slash - key.data) : key.size;
    if (end > at) {
      const char *wrong = add_segment(key.data + at, end - at, out, &used);
      if (wrong) return refuse(error, noun, key, wrong);
    }
    at = end + 1;
  }
  if (used == 0 && !root_allowed) return refuse(error, noun, key, "it names no key, only the root");
  if (kv_key_is_own((kv_slice){out, used}))
    return refuse(error, noun, key, "the first segment .kv is the library's own");
  *size = used;
  return KV_OK;
}

kv_code kv_key_canonical(kv_slice key, bool root_allowed, char *out, size_t *size, kv_error *error) {
  return kv_key_make("key", key, root_allowed, out, size, error);
}
