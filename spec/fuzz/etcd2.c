/*
 * Fuzz what an etcd sends by its v2 API: a tree, read in pieces as it comes and in one piece, must give the same nodes
 * and the same verdict; an event, an error and the mark of a value must be read without harm whatever they are; and a
 * value must come back from what is kept of it. The first byte is the size of the pieces.
 */
#include "fuzz.h"

#include "drivers/etcd2/etcd2.h"

static bool add(void *context, const struct etcd2_node *node, struct kv_buffer *room) {
  struct sum *sum = context;
  kv_slice value;
  bool root = !node->key.size;
  MUST(root || (node->modified && node->created && node->revision));
  MUST(node->revision <= node->modified);
  if (!etcd2_value(node, room, &value)) value = node->text;
  sum->count++;
  sum->mark = mix(mix(sum->mark, node->key), value) + node->revision * 3 + node->created * 7 + node->mark.lease;
  return true;
}

static bool read_nodes(const char *data, size_t size, size_t piece, struct sum *sum) {
  struct etcd2_nodes nodes;
  bool good = true;
  *sum = (struct sum){0, 0};
  etcd2_nodes_init(&nodes, add, sum);
  for (size_t at = 0; at < size && good; at += piece) {
    /* A copy of the exact size, so that a read past the end is seen. */
    size_t part = size - at < piece ? size - at : piece;
    char *copy = malloc(part);
    MUST(copy);
    memcpy(copy, data + at, part);
    good = etcd2_nodes_feed(&nodes, copy, part);
    free(copy);
  }
  good = good && etcd2_nodes_complete(&nodes);
  etcd2_nodes_free(&nodes);
  return good;
}

/* What a tree has as JSON, every leaf must have been found of. */
static size_t leaves(const struct json *node) {
  const struct json *nodes = json_member(node, "nodes");
  size_t count = 0;
  if (!nodes) return 1;
  for (size_t i = 0; i < json_count(nodes); i++) count += leaves(json_item(nodes, i));
  return count;
}

static void read_answer(kv_slice text, bool good, const struct sum *whole) {
  struct json *answer = json_read(text);
  struct etcd2_event event;
  struct etcd2_error error;
  char told[120];
  const struct json *node = json_member(answer, "node");
  /* A server's answer has nothing nested but its nodes. */
  if (good && node && !json_member(answer, "prevNode")) MUST(whole->count >= 1 && leaves(node) >= 1);
  if (answer && etcd2_read_event(answer, &event)) MUST(event.node.revision <= event.node.modified);
  json_free(answer);
  etcd2_read_error(text, &error);
  MUST(strlen(error.cause) < sizeof error.cause);
  etcd2_code(500, &error, true);
  MUST(strlen(etcd2_told(404, &error, text, told, sizeof told)) < sizeof told);
}

/* As it is kept, and back. */
static void keep(kv_slice value, uint64_t lease, bool with_mark) {
  struct kv_buffer kept, marked, quoted, room;
  struct etcd2_node node, again;
  kv_slice back;
  kv_buffer_init(&kept, 1 << 24);
  kv_buffer_init(&marked, 1 << 24);
  kv_buffer_init(&quoted, 1 << 24);
  kv_buffer_init(&room, 1 << 24);
  MUST(etcd2_encode(&kept, value, lease, with_mark));
  static const char before[] = "{\"key\":\"/k\",\"modifiedIndex\":9,\"createdIndex\":3,\"value\":";
  MUST(kv_buffer_add(&quoted, before, sizeof before - 1));
  MUST(json_quote(&quoted, (kv_slice){kept.data, kept.size}) && kv_buffer_add(&quoted, "}", 1));
  struct json *object = json_read((kv_slice){quoted.data, quoted.size});
  MUST(object && etcd2_read_node(object, &node));
  MUST(node.mark.lease == lease && node.revision == 9);
  MUST(etcd2_value(&node, &room, &back));
  MUST(back.size == value.size && (!value.size || memcmp(back.data, value.data, value.size) == 0));
  if (lease) { /* the first heartbeat */
    quoted.size = sizeof before - 1;
    MUST(etcd2_remark(&marked, &node, 7));
    MUST(json_quote(&quoted, (kv_slice){marked.data, marked.size}) && kv_buffer_add(&quoted, "}", 1));
    struct json *later = json_read((kv_slice){quoted.data, quoted.size});
    MUST(later && etcd2_read_node(later, &again) && again.revision == 7 && again.mark.lease == lease);
    MUST(etcd2_value(&again, &room, &back));
    MUST(back.size == value.size && (!value.size || memcmp(back.data, value.data, value.size) == 0));
    json_free(later);
  }
  json_free(object);
  kv_buffer_free(&kept);
  kv_buffer_free(&marked);
  kv_buffer_free(&quoted);
  kv_buffer_free(&room);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct sum whole, parts;
  if (!size) return 0;
  size_t piece = data[0] ? data[0] : 256;
  kv_slice text = {(const char *)data + 1, size - 1};
  bool good = read_nodes(text.data, text.size, text.size ? text.size : 1, &whole);
  MUST(read_nodes(text.data, text.size, piece, &parts) == good);
  MUST(whole.count == parts.count && whole.mark == parts.mark);
  read_answer(text, good, &whole);
  keep(text, 0, false);
  keep(text, 0, true);
  keep(text, UINT64_C(0x123456789abcdef) | data[0], false);
  return 0;
}
