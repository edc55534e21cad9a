/*
 * tree.c - delete_tree; and removing directories that were left without a key, when one of them is in the way of a put.
 *
 * The latter are removed one by one, innermost first, by a request that the server refuses when there is something in
 * them: so nothing is lost that somebody puts there meanwhile.
 */
#include <string.h>

#include "etcd2.h"

#define CLEAR_ROUNDS 300 /* levels; a key has 240 at most */

/* ------------------------------------------------------------------ delete_tree */

static bool same(kv_slice a, kv_slice b) {
  return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

static void delete_next(struct etcd2_call *call);

static void part_deleted(struct etcd2_call *call) {
  if (etcd2_good(call)) call->applied = true;
  if (etcd2_good(call) || call->error.code == ETCD2_NOT_FOUND || call->error.code == ETCD2_NOT_DIR)
    delete_next(call);
  else
    etcd2_refuse(call);
}

static void delete_part(struct etcd2_call *call, kv_slice key) {
  etcd2_path(call, key);
  http_call_query(etcd2_base(call), "dir=true&recursive=true");
  etcd2_send(call, "DELETE", true, part_deleted);
}

/* The names are in call->value, each ended by a zero; `expected` is how far we are. */
static void delete_next(struct etcd2_call *call) {
  if (call->expected >= call->value.size) {
    etcd2_finish(call, KV_OK, NULL);
    return;
  }
  const char *name = call->value.data + call->expected;
  size_t size = strlen(name);
  call->expected += size + 1;
  delete_part(call, (kv_slice){name, size});
}

static bool add_name(struct etcd2_call *call, kv_slice name) {
  if (memchr(name.data, '\0', name.size)) return true;
  return kv_buffer_add(&call->value, name.data, name.size) && kv_buffer_add(&call->value, "", 1);
}

/* Of the root, which cannot be deleted: its children. What is hidden is not among them. */
static void root_read(struct etcd2_call *call) {
  struct json *answer = etcd2_good(call) ? json_read(call->http.answer) : NULL;
  const struct json *children = json_member(json_member(answer, "node"), "nodes");
  bool good = true;
  if (!answer) {
    if (etcd2_good(call)) http_call_garbled(etcd2_base(call));
    else etcd2_refuse(call);
    return;
  }
  for (size_t i = 0; i < json_count(children) && good; i++) {
    struct etcd2_node node;
    if (etcd2_read_node(json_item(children, i), &node) && node.key.size) good = add_name(call, node.key);
  }
  json_free(answer);
  if (good)
    delete_next(call);
  else
    http_call_no_memory(etcd2_base(call));
}

/* What is below and not the key itself: a file has nothing below it. */
static void kind_read(struct etcd2_call *call) {
  const struct etcd2_found *found;
  size_t at = 0;
  if (!etcd2_is_listing(call)) return;
  kv_slice key = call->op->key;
  bool nothing = !etcd2_good(call);
  while (!nothing && etcd2_listing_next(call->listing, &at, &found))
    nothing = !found->dir && same(etcd2_found_key(found), key);
  if (nothing)
    etcd2_finish(call, KV_OK, NULL);
  else
    delete_part(call, key);
}

void etcd2_delete_tree(struct etcd2 *etcd2, struct kv_op *op) {
  struct etcd2_call *call = etcd2_call_new(etcd2, op);
  if (!call) return;
  call->value.limit = ETCD2_ANSWER_MAX;
  if (op->key.size && !(op->flags & KV_BELOW)) {
    delete_part(call, op->key);
    return;
  }
  if (op->key.size && !etcd2_listing_new(call, false, false)) return;
  etcd2_path(call, op->key);
  http_call_query(etcd2_base(call), "quorum=true");
  if (op->key.size)
    etcd2_send_read(call, kind_read);
  else
    etcd2_send(call, "GET", false, root_read);
}

/* ------------------------------------------------------------------ directories in the way */

static void clear_list(struct etcd2_call *call);
static void clear_next(struct etcd2_call *call);

static void clear_end(struct etcd2_call *call, bool cleared) {
  call->cleared = cleared;
  void (*next)(struct etcd2_call *) = call->missed;
  next(call);
}

static void one_cleared(struct etcd2_call *call) {
  unsigned code = call->error.code;
  if (etcd2_good(call) || code == ETCD2_NOT_FOUND || code == ETCD2_NOT_DIR)
    clear_next(call);
  else if (code == ETCD2_NOT_EMPTY) /* by now, or by something hidden */
    clear_end(call, false);
  else if (etcd2_code(call->http.status, &call->error, false) == KV_UNAVAILABLE)
    etcd2_finish(call, KV_UNAVAILABLE, "%s", call->error.cause);
  else
    etcd2_refuse(call);
}

/* The empty ones of the listing, one after the other; then their parents are. */
static void clear_next(struct etcd2_call *call) {
  const struct etcd2_found *found;
  size_t at = (size_t)call->mine;
  if (!etcd2_listing_next(call->listing, &at, &found)) {
    clear_list(call);
    return;
  }
  call->mine = at;
  etcd2_path(call, etcd2_found_key(found));
  http_call_query(etcd2_base(call), "dir=true");
  /* Sent again it does no other harm; and of the put itself nothing was sent. */
  etcd2_send(call, "DELETE", false, one_cleared);
}

static void clear_listed(struct etcd2_call *call) {
  const struct etcd2_found *found;
  size_t at = 0;
  if (!etcd2_is_listing(call)) return;
  if (!etcd2_good(call)) {
    clear_end(call, true);
    return;
  }
  while (etcd2_listing_next(call->listing, &at, &found)) {
    if (found->dir) continue;
    bool itself = found->key_size == call->name.size && memcmp(found->bytes, call->name.data, call->name.size) == 0;
    clear_end(call, itself); /* a file by now */
    return;
  }
  call->mine = 0;
  clear_next(call);
}

static void clear_list(struct etcd2_call *call) {
  if (call->ahead++ > CLEAR_ROUNDS) {
    clear_end(call, false);
    return;
  }
  if (!etcd2_listing_new(call, false, true)) return;
  etcd2_path(call, (kv_slice){call->name.data, call->name.size});
  http_call_query(etcd2_base(call), "recursive=true&quorum=true");
  etcd2_send_read(call, clear_listed);
}

void etcd2_clear(struct etcd2_call *call, kv_slice key, void (*next)(struct etcd2_call *call)) {
  call->missed = next;
  call->ahead = 0;
  call->name.size = key.size;
  memcpy(call->name.data, key.data, key.size);
  clear_list(call);
}
