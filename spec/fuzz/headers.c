/* Fuzz header lines: what is split off lies inside of the line, has no blanks around it, and means the same when put
 * together again. */
#include "fuzz.h"

#include "wire/http.h"

static bool is_blank(char byte) {
  return byte == ' ' || byte == '\t';
}

static void check_line(kv_slice line) {
  kv_slice name, value, again_name, again_value;
  uint64_t number;
  if (!http_split_header(line, &name, &value)) return;
  MUST(name.size && name.data == line.data && memchr(name.data, ':', name.size) == NULL);
  MUST(value.data >= name.data + name.size + 1 && value.data + value.size <= line.data + line.size);
  if (value.size) MUST(!is_blank(value.data[0]) && !is_blank(value.data[value.size - 1]));
  if (http_number(value, &number)) MUST(value.size > 0);
  size_t size = name.size + 2 + value.size + 2;
  char *together = malloc(size);
  MUST(together);
  memcpy(together, name.data, name.size);
  memcpy(together + name.size, ": ", 2);
  memcpy(together + name.size + 2, value.data, value.size);
  memcpy(together + size - 2, "\r\n", 2);
  MUST(http_split_header((kv_slice){together, size}, &again_name, &again_value));
  MUST(again_name.size == name.size && again_value.size == value.size);
  free(together);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *copy = malloc(size ? size : 1);
  struct http_request request = {.head = {copy, size}};
  struct kv_buffer escaped;
  kv_slice value;
  uint64_t number;
  MUST(copy);
  if (size) memcpy(copy, data, size);
  check_line(request.head);
  if (http_header(&request, "X-Consul-Index", &value))
    MUST(value.data >= copy && value.data + value.size <= copy + size);
  http_header_number(&request, "X-Consul-Index", &number);
  kv_buffer_init(&escaped, 1 << 20);
  if (http_escape(&escaped, request.head, true))
    for (size_t i = 0; i < escaped.size; i++)
      MUST((unsigned char)escaped.data[i] > 0x20 && (unsigned char)escaped.data[i] < 0x7f);
  kv_buffer_free(&escaped);
  free(copy);
  return 0;
}
