/*
 * Fuzz keys. The two ways in must agree on every input, a canonical form must be its own canonical form, and a
 * message must be printable whatever the key was.
 */
#include "fuzz.h"

#include "core/core.h"

static bool is_printable(const char *text) {
  for (; *text; text++)
    if ((unsigned char)*text < 0x20 || *text == 0x7F) return false;
  return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  /* A copy of the exact size, so that a read past the end is seen. */
  char *copy = malloc(size ? size : 1), *out = malloc(KV_KEY_MAX), *again = malloc(KV_KEY_MAX);
  if (!copy || !out || !again) abort();
  if (size) memcpy(copy, data, size);
  kv_slice key = {copy, size};
  kv_error error = {0};
  size_t used = 0, used_again = 0;
  kv_code code = kv_key_canonical(key, false, out, &used, &error);
  bool canonical = kv_key_is_canonical(key);
  if (code == KV_OK) {
    kv_slice made = {out, used};
    MUST(used > 0 && used <= KV_KEY_MAX && used <= size);
    MUST(kv_key_is_canonical(made) && !kv_key_is_own(made));
    MUST(kv_key_canonical(made, false, again, &used_again, &error) == KV_OK);
    MUST(used_again == used && memcmp(again, out, used) == 0);
    MUST(canonical == (used == size && memcmp(out, copy, size) == 0));
  } else {
    MUST(code == KV_INVALID && error.code == KV_INVALID);
    MUST(strncmp(error.message, "invalid key \"", 13) == 0 && is_printable(error.message));
    MUST(!canonical || kv_key_is_own(key));
  }
  free(copy);
  free(out);
  free(again);
  return 0;
}
