/*
 * read.c - get, list, ping.
 *
 * etcd v2 has no listing with a limit, no listing of names alone, and no page: a listing always is the whole tree, in
 * an order of its own. It is read as it comes, what was not asked for is left out, and the rest is sorted here.
 */
#include <stdlib.h>
#include <string.h>

#include "etcd2.h"

/* ------------------------------------------------------------------ what was found */

static bool keep(void *context, const struct etcd2_node *node, struct kv_buffer *room) {
  struct etcd2_call *call = context;
  struct etcd2_listing *listing = call->listing;
  kv_slice value = {NULL, 0};
  if (node->dir && !listing->dirs) return true;
  if (node->key.size >= ETCD2_KEY_MAX) return true; /* no key of ours */
  if (listing->values && !etcd2_value(node, room, &value)) value = node->text;
  size_t size = sizeof(struct etcd2_found) + node->key.size + value.size;
  size = (size + 7) & ~(size_t)7;
  if (!kv_buffer_reserve(&listing->found, size)) {
    listing->failed = true;
    return false;
  }
  struct etcd2_found *found = (struct etcd2_found *)(void *)(listing->found.data + listing->found.size);
  *found = (struct etcd2_found){.revision = node->revision, .created = node->created, .modified = node->modified,
                                .mark = node->mark, .value_size = (uint32_t)value.size,
                                .key_size = (uint16_t)node->key.size, .dir = node->dir};
  memcpy(found->bytes, node->key.data, node->key.size);
  if (value.size) memcpy(found->bytes + node->key.size, value.data, value.size);
  listing->found.size += size;
  listing->count++;
  return true;
}

struct etcd2_listing *etcd2_listing_new(struct etcd2_call *call, bool values, bool dirs) {
  struct etcd2_listing *listing = calloc(1, sizeof *listing);
  if (call->listing) etcd2_listing_free(call->listing);
  call->listing = listing;
  if (!listing) {
    http_call_no_memory(etcd2_base(call));
    return NULL;
  }
  etcd2_nodes_init(&listing->nodes, keep, call);
  kv_buffer_init(&listing->found, ETCD2_LIST_MAX);
  listing->values = values;
  listing->dirs = dirs;
  return listing;
}

void etcd2_listing_free(struct etcd2_listing *listing) {
  etcd2_nodes_free(&listing->nodes);
  kv_buffer_free(&listing->found);
  free(listing);
}

bool etcd2_listing_next(const struct etcd2_listing *listing, size_t *at, const struct etcd2_found **found) {
  if (*at >= listing->found.size) return false;
  *found = (const struct etcd2_found *)(const void *)(listing->found.data + *at);
  size_t size = sizeof(struct etcd2_found) + (*found)->key_size + (*found)->value_size;
  *at += (size + 7) & ~(size_t)7;
  return true;
}

bool etcd2_is_listing(struct etcd2_call *call) {
  bool nothing = call->error.code == ETCD2_NOT_FOUND || call->error.code == ETCD2_NOT_DIR;
  if (!etcd2_good(call) && !nothing) {
    etcd2_refuse(call);
    return false;
  }
  if (!call->index || (etcd2_good(call) && !etcd2_nodes_complete(&call->listing->nodes))) {
    http_call_garbled(etcd2_base(call));
    return false;
  }
  return true;
}

/* ------------------------------------------------------------------ get */

void etcd2_answer_get(struct etcd2_call *call, const struct etcd2_listing *listing, uint64_t index) {
  struct kv_op *op = call->op;
  const struct etcd2_found *found;
  size_t at = 0;
  op->result.revision = index;
  while (etcd2_listing_next(listing, &at, &found)) {
    kv_slice key = etcd2_found_key(found);
    if (key.size != op->key.size || memcmp(key.data, op->key.data, key.size) != 0) continue;
    if (kv_etcd2->pair(op, op->key, etcd2_found_value(found), found->revision, found->created, false)) break;
    http_call_no_memory(etcd2_base(call));
    return;
  }
  etcd2_finish(call, KV_OK, NULL);
}

static void got(struct etcd2_call *call) {
  if (etcd2_is_listing(call)) etcd2_answer_get(call, call->listing, call->index);
}

void etcd2_get(struct etcd2 *etcd2, struct kv_op *op) {
  if (!(op->flags & KV_FAST)) {
    etcd2_share_get(etcd2, op);
    return;
  }
  struct etcd2_call *call = etcd2_call_new(etcd2, op);
  if (!call || !etcd2_listing_new(call, !(op->flags & KV_KEYS_ONLY), false)) return;
  etcd2_path(call, op->key);
  etcd2_send_read(call, got);
}

/* ------------------------------------------------------------------ list */

static int compare(kv_slice a, kv_slice b) {
  size_t common = a.size < b.size ? a.size : b.size;
  int order = common ? memcmp(a.data, b.data, common) : 0;
  return order ? order : (a.size > b.size) - (a.size < b.size);
}

static int compare_found(const void *a, const void *b) {
  const struct etcd2_found *const *left = a, *const *right = b;
  return compare(etcd2_found_key(*left), etcd2_found_key(*right));
}

static bool give_all(struct kv_op *op, const struct etcd2_found **sorted, size_t count) {
  size_t below = op->key.size ? op->key.size + 1 : 0;
  uint64_t given = 0;
  for (size_t i = 0; i < count; i++) {
    kv_slice key = etcd2_found_key(sorted[i]);
    size_t before = kv_etcd2->pair_bytes(op);
    if (key.size <= below || (op->after.size && compare(key, op->after) <= 0)) continue;
    if (op->limit && given >= op->limit) {
      op->result.more = true;
      return true;
    }
    if (!kv_etcd2->pair(op, key, etcd2_found_value(sorted[i]), sorted[i]->revision, sorted[i]->created, false))
      return false;
    if (kv_etcd2->pair_bytes(op) > before) given++;
  }
  return true;
}

/* Children that are directories once; the core sorts, and applies `after` and `limit`. */
static bool give_shallow(struct kv_op *op, const struct etcd2_found **sorted, size_t count) {
  size_t below = op->key.size ? op->key.size + 1 : 0;
  kv_slice last = {NULL, 0};
  for (size_t i = 0; i < count; i++) {
    kv_slice key = etcd2_found_key(sorted[i]);
    if (key.size <= below) continue;
    const char *slash = memchr(key.data + below, '/', key.size - below);
    kv_slice child = {key.data, slash ? (size_t)(slash - key.data) : key.size};
    if (slash && last.data && compare(child, last) == 0) continue;
    last = slash ? child : last;
    if (!kv_etcd2->pair(op, child, slash ? (kv_slice){NULL, 0} : etcd2_found_value(sorted[i]),
                        slash ? 0 : sorted[i]->revision, slash ? 0 : sorted[i]->created, slash != NULL))
      return false;
  }
  return true;
}

static void listed(struct etcd2_call *call) {
  struct kv_op *op = call->op;
  const struct etcd2_found *found;
  size_t at = 0, count = 0;
  if (!etcd2_is_listing(call)) return;
  op->result.revision = call->index;
  const struct etcd2_found **sorted = calloc(call->listing->count + 1, sizeof *sorted);
  while (sorted && etcd2_listing_next(call->listing, &at, &found)) sorted[count++] = found;
  bool is_key = count == 1 && op->key.size && sorted && compare(etcd2_found_key(sorted[0]), op->key) == 0;
  if (is_key && (op->flags & KV_PORTABLE)) {
    free(sorted);
    etcd2_finish(call, KV_NOT_DIR, "it has a value (portable mode)");
    return;
  }
  if (sorted) qsort(sorted, count, sizeof *sorted, compare_found);
  bool good = sorted && ((op->flags & KV_SHALLOW) ? give_shallow(op, sorted, count) : give_all(op, sorted, count));
  free(sorted);
  if (good)
    etcd2_finish(call, KV_OK, NULL);
  else
    http_call_no_memory(etcd2_base(call));
}

void etcd2_list(struct etcd2 *etcd2, struct kv_op *op) {
  struct etcd2_call *call = etcd2_call_new(etcd2, op);
  if (!call || !etcd2_listing_new(call, !(op->flags & KV_KEYS_ONLY), false)) return;
  etcd2_path(call, op->key);
  http_call_query(etcd2_base(call), "recursive=true");
  etcd2_strong(call);
  etcd2_send_read(call, listed);
}

/* ------------------------------------------------------------------ ping, version */

static void pinged(struct etcd2_call *call) {
  if (etcd2_good(call) || call->error.code == ETCD2_NOT_FOUND)
    etcd2_finish(call, KV_OK, NULL);
  else
    etcd2_refuse(call);
}

/* Of something that is not there, through the quorum: it takes a leader to answer. */
void etcd2_ping(struct etcd2 *etcd2, struct kv_op *op) {
  struct etcd2_call *call = etcd2_call_new(etcd2, op);
  if (!call) return;
  etcd2_path(call, KV_TEXT("_kv/ping"));
  http_call_query(etcd2_base(call), "quorum=true");
  etcd2_send(call, "GET", false, pinged);
}

static void version_told(struct etcd2_call *call) {
  kv_slice version;
  char text[64];
  struct json *object = call->http.status == 200 ? json_read(call->http.answer) : NULL;
  if (json_text(json_member(object, "etcdserver"), &version))
    kv_etcd2->connected(call->etcd2->backend, true, NULL, http_shown(version, text, sizeof text));
  json_free(object);
  etcd2_finish(call, KV_OK, NULL);
}

void etcd2_ask_version(struct etcd2 *etcd2) {
  etcd2->version_asked = true;
  struct etcd2_call *call = etcd2->calls.closing ? NULL : etcd2_call_new(etcd2, NULL);
  if (!call) return;
  http_call_path(etcd2_base(call), "/version", (kv_slice){NULL, 0}, "");
  etcd2_send(call, "GET", false, version_told);
}
