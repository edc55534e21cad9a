/* base64.c - see base64.h. Decoding is strict: no white space, padding where it belongs, no bits set behind the last
 * byte. */
#include "base64.h"

#include <stdint.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

bool base64_encode(struct kv_buffer *out, kv_slice bytes) {
  const unsigned char *from = (const unsigned char *)bytes.data;
  size_t left = bytes.size;
  if (left > SIZE_MAX / 4 * 3 - 2 || !kv_buffer_reserve(out, BASE64_SIZE(left))) return false;
  if (!left) return true;
  char *to = out->data + out->size;
  for (; left >= 3; left -= 3, from += 3, to += 4) {
    uint32_t group = (uint32_t)from[0] << 16 | (uint32_t)from[1] << 8 | from[2];
    to[0] = alphabet[group >> 18];
    to[1] = alphabet[group >> 12 & 63];
    to[2] = alphabet[group >> 6 & 63];
    to[3] = alphabet[group & 63];
  }
  if (left) {
    uint32_t group = (uint32_t)from[0] << 16 | (left > 1 ? (uint32_t)from[1] << 8 : 0);
    to[0] = alphabet[group >> 18];
    to[1] = alphabet[group >> 12 & 63];
    to[2] = left > 1 ? alphabet[group >> 6 & 63] : '=';
    to[3] = '=';
  }
  out->size += BASE64_SIZE(bytes.size);
  return true;
}

/* 0..63, or 64 and above for what is none of the alphabet. */
static uint32_t digit(char byte) {
  if (byte >= 'A' && byte <= 'Z') return (uint32_t)(byte - 'A');
  if (byte >= 'a' && byte <= 'z') return (uint32_t)(byte - 'a') + 26;
  if (byte >= '0' && byte <= '9') return (uint32_t)(byte - '0') + 52;
  if (byte == '+') return 62;
  return byte == '/' ? 63 : 64;
}

bool base64_decode(struct kv_buffer *out, kv_slice text) {
  size_t size = text.size, padding = 0;
  if (size % 4) return false;
  if (!size) return true;
  if (text.data[size - 1] == '=') padding = text.data[size - 2] == '=' ? 2 : 1;
  if (!kv_buffer_reserve(out, size / 4 * 3)) return false;
  unsigned char *to = (unsigned char *)out->data + out->size;
  for (size_t i = 0; i < size; i += 4, to += 3) {
    size_t pads = i + 4 == size ? padding : 0;
    uint32_t a = digit(text.data[i]), b = digit(text.data[i + 1]);
    uint32_t c = pads > 1 ? 0 : digit(text.data[i + 2]), d = pads ? 0 : digit(text.data[i + 3]);
    if ((a | b | c | d) > 63) return false;
    if ((pads > 1 && (b & 15)) || (pads == 1 && (c & 3))) return false;
    uint32_t group = a << 18 | b << 12 | c << 6 | d;
    to[0] = (unsigned char)(group >> 16);
    to[1] = (unsigned char)(group >> 8);
    to[2] = (unsigned char)group;
  }
  out->size += size / 4 * 3 - padding;
  return true;
}
