/* http_text.c - the little that is text in HTTP for us: header lines, numbers, percent-encoding. No state, and no
 * libcurl. */
#include <string.h>
#include <strings.h>

#include "http.h"

static bool is_blank(char byte) {
  return byte == ' ' || byte == '\t';
}

static bool is_token(char byte) {
  if ((byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z')) return true;
  return byte && strchr("!#$%&'*+-.^_`|~", byte) != NULL;
}

bool http_split_header(kv_slice line, kv_slice *name, kv_slice *value) {
  size_t colon = 0, end = line.size;
  while (end && (line.data[end - 1] == '\n' || line.data[end - 1] == '\r')) end--;
  while (colon < end && is_token(line.data[colon])) colon++;
  if (!colon || colon == end || line.data[colon] != ':') return false;
  size_t from = colon + 1;
  while (from < end && is_blank(line.data[from])) from++;
  while (end > from && is_blank(line.data[end - 1])) end--;
  for (size_t i = from; i < end; i++)
    if (line.data[i] == '\r' || line.data[i] == '\n' || !line.data[i]) return false;
  *name = (kv_slice){line.data, colon};
  *value = (kv_slice){line.data + from, end - from};
  return true;
}

bool http_number(kv_slice text, uint64_t *value) {
  uint64_t number = 0;
  if (!text.size) return false;
  for (size_t i = 0; i < text.size; i++) {
    if (text.data[i] < '0' || text.data[i] > '9') return false;
    uint64_t digit = (uint64_t)(text.data[i] - '0');
    if (number > (UINT64_MAX - digit) / 10) return false;
    number = number * 10 + digit;
  }
  *value = number;
  return true;
}

static bool is_plain(char byte, bool slashes) {
  if ((byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z')) return true;
  return byte == '-' || byte == '.' || byte == '_' || byte == '~' || (slashes && byte == '/');
}

bool http_escape(struct kv_buffer *out, kv_slice text, bool slashes) {
  static const char digits[] = "0123456789ABCDEF";
  if (!kv_buffer_reserve(out, text.size * 3)) return false;
  for (size_t i = 0; i < text.size; i++) {
    unsigned char byte = (unsigned char)text.data[i];
    if (is_plain((char)byte, slashes)) {
      out->data[out->size++] = (char)byte;
      continue;
    }
    out->data[out->size++] = '%';
    out->data[out->size++] = digits[byte >> 4];
    out->data[out->size++] = digits[byte & 15];
  }
  return true;
}

bool http_header(const struct http_request *request, const char *name, kv_slice *value) {
  kv_slice head = request->head;
  size_t length = strlen(name), from = 0;
  bool found = false;
  while (from < head.size) {
    const char *line = head.data + from;
    const char *end = memchr(line, '\n', head.size - from);
    size_t size = end ? (size_t)(end - line) + 1 : head.size - from;
    kv_slice its_name, its_value;
    if (http_split_header((kv_slice){line, size}, &its_name, &its_value) && its_name.size == length &&
        strncasecmp(its_name.data, name, length) == 0) {
      *value = its_value;
      found = true;
    }
    from += size;
  }
  return found;
}

bool http_header_number(const struct http_request *request, const char *name, uint64_t *value) {
  kv_slice text;
  return http_header(request, name, &text) && http_number(text, value);
}
