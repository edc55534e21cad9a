/*
 * pairs.c - what Consul says of a key: {"Key":..., "Value": base64 or null, "Flags":..., "Session":...,
 * "CreateIndex":..., "ModifyIndex":...}, alone or in the array of a listing.
 */
#include <string.h>

#include "consul.h"

static bool read_session(const struct json *object, char *session) {
  kv_slice text;
  session[0] = '\0';
  if (!json_text(json_member(object, "Session"), &text) || !text.size) return true;
  if (text.size >= CONSUL_SESSION_SIZE || memchr(text.data, '\0', text.size)) return false;
  memcpy(session, text.data, text.size);
  session[text.size] = '\0';
  return true;
}

bool consul_read_pair(const struct json *object, struct kv_buffer *value, struct consul_pair *pair) {
  kv_slice text;
  memset(pair, 0, sizeof *pair);
  if (!json_text(json_member(object, "Key"), &pair->key)) return false;
  if (!json_number(json_member(object, "ModifyIndex"), &pair->revision) || !pair->revision) return false;
  if (!json_number(json_member(object, "CreateIndex"), &pair->created) || !pair->created) return false;
  pair->flags = json_rounded(json_member(object, "Flags")); /* ours are exact; somebody else's may be over 2^53 */
  if (!read_session(object, pair->session)) return false;
  if (!value) return true;
  value->size = 0;
  if (json_text(json_member(object, "Value"), &text) && !base64_decode(value, text)) return false; /* null: empty */
  pair->value = (kv_slice){value->data, value->size};
  return true;
}

static bool take_element(void *context, kv_slice text) {
  struct consul_pairs *pairs = context;
  struct consul_pair pair;
  struct json *object = json_read(text);
  bool good = object && consul_read_pair(object, pairs->values ? &pairs->value : NULL, &pair);
  good = good && pairs->visit(pairs->context, &pair);
  json_free(object);
  return good;
}

void consul_pairs_init(struct consul_pairs *pairs, bool values,
                       bool (*visit)(void *context, const struct consul_pair *pair), void *context) {
  memset(pairs, 0, sizeof *pairs);
  json_elements_init(&pairs->elements, CONSUL_ELEMENT_MAX, take_element, pairs);
  kv_buffer_init(&pairs->value, CONSUL_ELEMENT_MAX);
  pairs->values = values;
  pairs->visit = visit;
  pairs->context = context;
}

bool consul_pairs_feed(struct consul_pairs *pairs, const char *data, size_t size) {
  return json_elements_feed(&pairs->elements, data, size);
}

bool consul_pairs_complete(const struct consul_pairs *pairs) {
  return json_elements_complete(&pairs->elements);
}

void consul_pairs_free(struct consul_pairs *pairs) {
  json_elements_free(&pairs->elements);
  kv_buffer_free(&pairs->value);
}
