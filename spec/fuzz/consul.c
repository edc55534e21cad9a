/*
 * Fuzz what a Consul sends: a listing, read in pieces as it comes and in one piece, must give the same pairs and the
 * same verdict; and the answer of a transaction, a refusal and a duration must be read without harm whatever they
 * are. The first byte is the size of the pieces.
 */
#include "fuzz.h"

#include "drivers/consul/consul.h"

static bool add(void *context, const struct consul_pair *pair) {
  struct sum *sum = context;
  MUST(pair->revision && pair->created && strlen(pair->session) < CONSUL_SESSION_SIZE);
  sum->count++;
  sum->mark = mix(mix(sum->mark, pair->key), pair->value) + pair->revision * 3 + pair->created * 7 + pair->flags;
  return true;
}

static bool read_pairs(const char *data, size_t size, size_t piece, struct sum *sum) {
  struct consul_pairs pairs;
  bool good = true;
  *sum = (struct sum){0, 0};
  consul_pairs_init(&pairs, true, add, sum);
  for (size_t at = 0; at < size && good; at += piece) {
    /* A copy of the exact size, so that a read past the end is seen. */
    size_t part = size - at < piece ? size - at : piece;
    char *copy = malloc(part);
    MUST(copy);
    memcpy(copy, data + at, part);
    good = consul_pairs_feed(&pairs, copy, part);
    free(copy);
  }
  good = good && consul_pairs_complete(&pairs);
  consul_pairs_free(&pairs);
  return good;
}

static void read_answer(kv_slice text) {
  struct json *answer = json_read(text);
  struct consul_pair pair;
  struct kv_buffer value;
  kv_slice what = {NULL, 0};
  kv_buffer_init(&value, 1 << 20);
  for (size_t i = 0; i < 4; i++) consul_txn_error(answer, i, &what);
  consul_txn_denied(answer, &what);
  consul_txn_result(answer, (kv_slice){"a", 1}, &value, &pair);
  kv_buffer_free(&value);
  json_free(answer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct sum whole, parts;
  char session[CONSUL_SESSION_SIZE], shown[80];
  double seconds;
  if (!size) return 0;
  size_t piece = data[0] ? data[0] : 256;
  kv_slice text = {(const char *)data + 1, size - 1};
  bool good = read_pairs(text.data, text.size, text.size ? text.size : 1, &whole);
  MUST(read_pairs(text.data, text.size, piece, &parts) == good);
  MUST(whole.count == parts.count && whole.mark == parts.mark);
  read_answer(text);
  if (consul_current_session(text, session)) MUST(strlen(session) == 36);
  if (consul_duration(text, &seconds)) MUST(seconds >= 0);
  MUST(strlen(http_shown(text, shown, sizeof shown)) < sizeof shown);
  consul_code(500, text, true);
  return 0;
}
