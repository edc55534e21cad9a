/*
 * nodes.c - what etcd says of a node: {"key": "/a/b", "value": text, "modifiedIndex":..., "createdIndex":...}, or
 * "dir": true in the place of a value; and how values are kept.
 *
 * A value is kept as it is when it is text that JSON can carry. Any other, and that of a key under a lease, stands
 * behind a mark:
 *
 *   U+0001 [L lease as 16 hexadecimal digits] [R revision] = text
 *   U+0001 [L ...]                            [R ...]      : base64
 *
 * What begins with U+0001 and is no mark is somebody else's, and is what it is.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "../../wire/base64.h"
#include "etcd2.h"

#define MARK '\x01'

/* ------------------------------------------------------------------ text */

/* The length of the UTF-8 character at data[at], 0: it is none. */
static size_t character(const unsigned char *data, size_t at, size_t size) {
  unsigned char first = data[at], least = 0x80, most = 0xbf;
  size_t length = first < 0x80 ? 1 : first >= 0xc2 && first <= 0xdf ? 2 : first >= 0xe0 && first <= 0xef ? 3
                                                                      : first >= 0xf0 && first <= 0xf4   ? 4
                                                                                                         : 0;
  if (!length || length > size - at) return 0;
  if (first == 0xe0) least = 0xa0;
  if (first == 0xed) most = 0x9f; /* no surrogates */
  if (first == 0xf0) least = 0x90;
  if (first == 0xf4) most = 0x8f;
  for (size_t i = 1; i < length; i++) {
    if (data[at + i] < least || data[at + i] > most) return 0;
    least = 0x80;
    most = 0xbf;
  }
  return length;
}

static bool is_text(kv_slice value) {
  const unsigned char *data = (const unsigned char *)value.data;
  size_t at = 0, length;
  while (at < value.size && (length = character(data, at, value.size))) at += length;
  return at >= value.size;
}

/* ------------------------------------------------------------------ marks */

static bool add_mark(struct kv_buffer *out, const struct etcd2_mark *mark) {
  char text[64];
  size_t used = 0;
  text[used++] = MARK;
  if (mark->lease) used += (size_t)snprintf(text + used, sizeof text - used, "L%016" PRIx64, mark->lease);
  if (mark->revision) used += (size_t)snprintf(text + used, sizeof text - used, "R%" PRIu64, mark->revision);
  text[used++] = mark->encoded ? ':' : '=';
  return kv_buffer_add(out, text, used);
}

bool etcd2_encode(struct kv_buffer *out, kv_slice value, uint64_t lease, bool marked) {
  struct etcd2_mark mark = {.lease = lease, .encoded = !is_text(value)};
  bool plain = !marked && !lease && !mark.encoded && !(value.size && value.data[0] == MARK);
  if (!plain && !add_mark(out, &mark)) return false;
  if (mark.encoded) return base64_encode(out, value);
  return !value.size || kv_buffer_add(out, value.data, value.size);
}

bool etcd2_remark(struct kv_buffer *out, const struct etcd2_node *node, uint64_t revision) {
  struct etcd2_mark mark = node->mark;
  mark.revision = revision;
  return add_mark(out, &mark) && (!node->text.size || kv_buffer_add(out, node->text.data, node->text.size));
}

static bool read_lease(kv_slice text, size_t *at, uint64_t *lease) {
  *lease = 0;
  for (size_t end = ++*at + 16; *at < end; ++*at) {
    const char *digits = "0123456789abcdef";
    const char *digit = *at < text.size && text.data[*at] ? strchr(digits, text.data[*at]) : NULL;
    if (!digit) return false;
    *lease = *lease << 4 | (uint64_t)(digit - digits);
  }
  return *lease != 0;
}

static bool read_revision(kv_slice text, size_t *at, uint64_t *revision) {
  size_t from = ++*at;
  while (*at < text.size && text.data[*at] >= '0' && text.data[*at] <= '9') ++*at;
  return http_number((kv_slice){text.data + from, *at - from}, revision) && *revision && *revision >> 53 == 0;
}

/* Take the mark off *text. */
static void read_mark(kv_slice *text, struct etcd2_mark *mark) {
  struct etcd2_mark found = {.lease = 0};
  size_t at = 1;
  *mark = found;
  if (!text->size || text->data[0] != MARK) return;
  if (at < text->size && text->data[at] == 'L' && !read_lease(*text, &at, &found.lease)) return;
  if (at < text->size && text->data[at] == 'R' && !read_revision(*text, &at, &found.revision)) return;
  if (at >= text->size || (text->data[at] != '=' && text->data[at] != ':')) return;
  found.encoded = text->data[at++] == ':';
  *mark = found;
  *text = (kv_slice){text->data + at, text->size - at};
}

bool etcd2_value(const struct etcd2_node *node, struct kv_buffer *room, kv_slice *value) {
  *value = node->text;
  if (!node->mark.encoded) return true;
  room->size = 0;
  if (!base64_decode(room, node->text)) return false;
  *value = (kv_slice){room->data, room->size};
  return true;
}

/* ------------------------------------------------------------------ nodes */

bool etcd2_read_node(const struct json *object, struct etcd2_node *node) {
  memset(node, 0, sizeof *node);
  node->dir = json_flag(json_member(object, "dir"));
  if (!json_text(json_member(object, "key"), &node->key)) {
    if (!node->dir) return false;
    node->key = (kv_slice){"/", 1}; /* the root has none */
  }
  if (!node->key.size || node->key.data[0] != '/') return false;
  node->key = (kv_slice){node->key.data + 1, node->key.size - 1};
  bool root = !node->key.size;
  if (!json_number(json_member(object, "modifiedIndex"), &node->modified) && !root) return false;
  if (!json_number(json_member(object, "createdIndex"), &node->created) && !root) return false;
  if (!root && (!node->modified || !node->created)) return false;
  json_text(json_member(object, "value"), &node->text); /* the node of a delete has none */
  read_mark(&node->text, &node->mark);
  node->revision = node->mark.revision && node->mark.revision <= node->modified ? node->mark.revision : node->modified;
  return true;
}

static bool is_one_of(kv_slice word, const char *const *words) {
  for (; *words; words++)
    if (word.size == strlen(*words) && memcmp(word.data, *words, word.size) == 0) return true;
  return false;
}

bool etcd2_read_event(const struct json *object, struct etcd2_event *event) {
  static const char *const puts[] = {"set", "create", "update", "compareAndSwap", NULL};
  static const char *const gone[] = {"delete", "expire", "compareAndDelete", NULL};
  const struct json *before = json_member(object, "prevNode");
  kv_slice action;
  if (!json_text(json_member(object, "action"), &action)) return false;
  if (!etcd2_read_node(json_member(object, "node"), &event->node)) return false;
  event->action = is_one_of(action, puts) ? ETCD2_PUT : is_one_of(action, gone) ? ETCD2_GONE : ETCD2_OTHER;
  event->replaced = before && !json_flag(json_member(before, "dir"));
  return true;
}

void etcd2_read_error(kv_slice text, struct etcd2_error *error) {
  struct json *object = json_read(text);
  uint64_t code;
  kv_slice cause, message;
  *error = (struct etcd2_error){.code = 0};
  if (json_number(json_member(object, "errorCode"), &code) && code < 1000) error->code = (unsigned)code;
  bool told = json_text(json_member(object, "cause"), &cause) && cause.size;
  if (!json_text(json_member(object, "message"), &message)) message = (kv_slice){"", 0};
  int shown = message.size > 90 ? 90 : (int)message.size;
  snprintf(error->cause, sizeof error->cause, "%.*s%s%.*s", shown, message.data, told && shown ? ": " : "",
           !told ? 0 : cause.size > 100 ? 100 : (int)cause.size, told ? cause.data : "");
  json_free(object);
}

/* ------------------------------------------------------------------ the answer to a read */

static bool take_leaf(void *context, kv_slice text, unsigned depth) {
  struct etcd2_nodes *nodes = context;
  struct etcd2_node node;
  struct json *object = depth > 1 ? json_read(text) : NULL; /* the outermost one is about the request */
  bool good = object && etcd2_read_node(object, &node);
  if (good) nodes->root_seen = true;
  good = good && nodes->visit(nodes->context, &node, &nodes->value);
  json_free(object);
  return good;
}

void etcd2_nodes_init(struct etcd2_nodes *nodes,
                      bool (*visit)(void *context, const struct etcd2_node *node, struct kv_buffer *room),
                      void *context) {
  memset(nodes, 0, sizeof *nodes);
  json_leaves_init(&nodes->leaves, ETCD2_LEAF_MAX, take_leaf, nodes);
  kv_buffer_init(&nodes->value, ETCD2_LEAF_MAX);
  nodes->visit = visit;
  nodes->context = context;
}

bool etcd2_nodes_feed(struct etcd2_nodes *nodes, const char *data, size_t size) {
  return json_leaves_feed(&nodes->leaves, data, size);
}

bool etcd2_nodes_complete(const struct etcd2_nodes *nodes) {
  return nodes->root_seen && json_leaves_complete(&nodes->leaves);
}

void etcd2_nodes_free(struct etcd2_nodes *nodes) {
  json_leaves_free(&nodes->leaves);
  kv_buffer_free(&nodes->value);
}
