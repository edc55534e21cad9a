/*
 * operations.c - get, list, delete, delete_tree, ping.
 *
 * Consul has no listing with a limit, no listing that gives names with their indexes, and no page: a listing always is
 * the whole tree, read as it comes, and what was not asked for is left out here.
 */
#include <stdlib.h>
#include <string.h>

#include "consul.h"

#define ROUNDS_MAX 8

struct consul_listing {
  struct consul_pairs pairs;
  struct kv_buffer names;  /* delete_tree: keys, each ended by a zero; and how far we are */
  size_t from;
  uint64_t count;
  char child[KV_KEY_MAX];  /* shallow: the directory that was given last */
  size_t child_size;
  bool failed;             /* out of memory */
};

void consul_listing_free(struct consul_listing *listing) {
  consul_pairs_free(&listing->pairs);
  kv_buffer_free(&listing->names);
  free(listing);
}

static struct consul_call *begin(struct consul *consul, struct kv_op *op,
                                 bool (*visit)(void *, const struct consul_pair *)) {
  struct consul_call *call = consul_call_new(consul, op);
  if (!call) return NULL;
  call->listing = calloc(1, sizeof *call->listing);
  if (!call->listing) {
    consul_no_memory(call);
    return NULL;
  }
  consul_pairs_init(&call->listing->pairs, !(op->flags & KV_KEYS_ONLY), visit, call);
  kv_buffer_init(&call->listing->names, CONSUL_ANSWER_MAX);
  return call;
}

/* The listing is there, or there is nothing (404). False: the call is finished. */
static bool is_listing(struct consul_call *call) {
  uint64_t index = 0;
  if (call->http.status != 200 && call->http.status != 404) {
    consul_refuse(call);
    return false;
  }
  if (call->listing->failed) {
    consul_no_memory(call);
    return false;
  }
  if (!http_header_number(&call->http, "X-Consul-Index", &index) ||
      (call->http.status == 200 && !consul_pairs_complete(&call->listing->pairs))) {
    consul_garbled(call);
    return false;
  }
  if (consul_filtered(&call->http)) {
    consul_finish(call, KV_DENIED, "the token may not read all of it");
    return false;
  }
  call->op->result.revision = index;
  return true;
}

/* ------------------------------------------------------------------ get */

static bool take_pair(void *context, const struct consul_pair *pair) {
  struct consul_call *call = context;
  struct kv_op *op = call->op;
  if (pair->key.size != op->key.size || memcmp(pair->key.data, op->key.data, op->key.size) != 0) return false;
  if (!kv_consul->pair(op, op->key, pair->value, pair->revision, pair->created, false)) call->listing->failed = true;
  return true;
}

static void got(struct consul_call *call) {
  if (is_listing(call)) consul_finish(call, KV_OK, NULL);
}

void consul_get(struct consul *consul, struct kv_op *op) {
  struct consul_call *call = begin(consul, op, take_pair);
  if (!call) return;
  consul_path(call, "/v1/kv/", op->key, "");
  consul_query_consistency(call);
  consul_send_pairs(call, &call->listing->pairs, got);
}

/* ------------------------------------------------------------------ list */

static void give(struct consul_call *call, kv_slice key, const struct consul_pair *pair) {
  struct consul_listing *listing = call->listing;
  struct kv_op *op = call->op;
  size_t before = kv_consul->pair_bytes(op);
  if (pair ? !kv_consul->pair(op, key, pair->value, pair->revision, pair->created, false)
           : !kv_consul->pair(op, key, (kv_slice){NULL, 0}, 0, 0, true))
    listing->failed = true;
  if (kv_consul->pair_bytes(op) > before) listing->count++;
}

/* Children that are directories once; the core sorts, and applies `after` and `limit`. */
static void give_shallow(struct consul_call *call, const struct consul_pair *pair, size_t below) {
  struct consul_listing *listing = call->listing;
  const char *name = pair->key.data + below;
  const char *slash = memchr(name, '/', pair->key.size - below);
  if (!slash) {
    give(call, pair->key, pair);
    return;
  }
  size_t size = (size_t)(slash - name);
  if (size > sizeof listing->child) return; /* no key of ours */
  if (size == listing->child_size && memcmp(listing->child, name, size) == 0) return;
  memcpy(listing->child, name, size);
  listing->child_size = size;
  give(call, (kv_slice){pair->key.data, below + size}, NULL);
}

static int compare(kv_slice a, kv_slice b) {
  size_t common = a.size < b.size ? a.size : b.size;
  int order = common ? memcmp(a.data, b.data, common) : 0;
  return order ? order : (a.size > b.size) - (a.size < b.size);
}

static bool list_pair(void *context, const struct consul_pair *pair) {
  struct consul_call *call = context;
  struct kv_op *op = call->op;
  size_t below = op->key.size ? op->key.size + 1 : 0;
  if (pair->key.size <= below) return true;
  if (op->flags & KV_SHALLOW) {
    give_shallow(call, pair, below);
    return !call->listing->failed;
  }
  if (op->after.size && compare(pair->key, op->after) <= 0) return true;
  if (op->limit && call->listing->count >= op->limit) {
    op->result.more = true;
    return true;
  }
  give(call, pair->key, pair);
  return !call->listing->failed;
}

static void listed(struct consul_call *call) {
  if (is_listing(call)) consul_finish(call, KV_OK, NULL);
}

static void list_now(struct consul_call *call) {
  const struct kv_op *op = call->op;
  consul_path(call, "/v1/kv/", op->key, op->key.size ? "/" : "");
  consul_query(call, "recurse");
  consul_query_consistency(call);
  consul_send_pairs(call, &call->listing->pairs, listed);
}

static void own_key_read(struct consul_call *call) {
  if (call->http.status == 200)
    consul_finish(call, KV_NOT_DIR, "it has a value (portable mode)");
  else if (call->http.status == 404)
    list_now(call);
  else
    consul_refuse(call);
}

void consul_list(struct consul *consul, struct kv_op *op) {
  struct consul_call *call = begin(consul, op, list_pair);
  if (!call) return;
  if (!(op->flags & KV_PORTABLE) || !op->key.size) {
    list_now(call);
    return;
  }
  consul_path(call, "/v1/kv/", op->key, "");
  consul_query_consistency(call);
  consul_send(call, "GET", false, own_key_read);
}

/* ------------------------------------------------------------------ delete */

static void delete_now(struct consul_call *call);

/* A key that was there is found by a check of its session, which needs no value to travel. */
static void deleted(struct consul_call *call) {
  struct kv_op *op = call->op;
  struct json *answer;
  kv_slice what;
  if (call->http.status == 200) {
    op->result.found = true;
    consul_finish(call, KV_OK, NULL);
    return;
  }
  if (!(answer = consul_txn_answer(call))) return;
  op->sent = false; /* refused as a whole */
  bool denied = consul_txn_denied(answer, &what), refused = denied || consul_txn_error(answer, 0, &what);
  bool conditional = op->condition == KV_IF_REVISION;
  char shown[160];
  http_shown(refused ? what : (kv_slice){NULL, 0}, shown, sizeof shown);
  bool another = refused && !conditional && consul_current_session(what, call->session);
  bool gone = refused && http_ends(what, "doesn't exist");
  json_free(answer);
  if (denied)
    consul_finish(call, KV_DENIED, "%s", shown);
  else if (another && call->rounds++ < ROUNDS_MAX)
    delete_now(call);
  else if (another)
    consul_finish(call, KV_UNAVAILABLE, "its session changes all the time");
  else if (refused && conditional)
    consul_finish(call, KV_MODIFIED, "the key was changed, or is gone");
  else if (gone)
    consul_finish(call, KV_OK, NULL);
  else
    consul_finish(call, KV_FAILED, "%s", shown[0] ? shown : "refused");
}

static void delete_now(struct consul_call *call) {
  struct kv_op *op = call->op;
  consul_path(call, "/v1/txn", (kv_slice){NULL, 0}, "");
  if (op->condition == KV_IF_REVISION)
    consul_verb(
        call, &(struct consul_verb){.verb = "check-index", .key = op->key, .has_index = true, .index = op->revision});
  else
    consul_verb(call, &(struct consul_verb){
                        .verb = "check-session", .key = op->key, .has_session = true, .session = call->session});
  consul_verb(call, &(struct consul_verb){.verb = "delete", .key = op->key});
  consul_send_txn(call, true, deleted);
}

void consul_delete(struct consul *consul, struct kv_op *op) {
  struct consul_call *call = consul_call_new(consul, op);
  if (call) delete_now(call);
}

/* ------------------------------------------------------------------ delete_tree */

/*
 * Consul has a verb that deletes a whole tree, but then does not wake everybody who waits for a change further down:
 * it leaves one mark of the deletion, at the directory that was named, and forgets some of those who wait. So the
 * keys are listed, and deleted by their names, as many in a transaction as it takes.
 */
static void tree_refused(struct consul_call *call) {
  struct json *answer = consul_txn_answer(call);
  kv_slice what = {NULL, 0};
  char shown[160];
  if (!answer) return;
  bool denied = consul_txn_denied(answer, &what);
  bool told = denied || json_text(json_member(json_item(json_member(answer, "Errors"), 0), "What"), &what);
  kv_code code = denied ? KV_DENIED : KV_FAILED;
  http_shown(what, shown, sizeof shown);
  json_free(answer);
  consul_finish(call, code, "%s", told ? shown : "refused");
}

static void delete_next(struct consul_call *call);

static void part_deleted(struct consul_call *call) {
  if (call->http.status != 200) {
    tree_refused(call);
  } else if (call->listing->from < call->listing->names.size) {
    call->applied = true;
    delete_next(call);
  } else {
    consul_finish(call, KV_OK, NULL);
  }
}

static void delete_next(struct consul_call *call) {
  struct consul_listing *listing = call->listing;
  consul_path(call, "/v1/txn", (kv_slice){NULL, 0}, "");
  for (size_t i = 0; i < CONSUL_TXN_OPS && listing->from < listing->names.size; i++) {
    const char *name = listing->names.data + listing->from;
    consul_verb(call, &(struct consul_verb){.verb = "delete", .key = {name, strlen(name)}});
    listing->from += strlen(name) + 1;
  }
  consul_send_txn(call, true, part_deleted);
}

static void add_name(struct consul_listing *listing, kv_slice key) {
  if (!kv_buffer_add(&listing->names, key.data, key.size) || !kv_buffer_add(&listing->names, "", 1))
    listing->failed = true;
}

/* All but the library's own below the root of all, and keys that no text can name. */
static void choose(struct consul_call *call, const struct json *keys) {
  kv_slice key;
  for (size_t i = 0; i < json_count(keys); i++) {
    if (!json_text(json_item(keys, i), &key) || !key.size || memchr(key.data, '\0', key.size)) continue;
    bool own = !call->op->key.size && key.size >= 4 && memcmp(key.data, ".kv/", 4) == 0;
    if (!own) add_name(call->listing, key);
  }
}

static void keys_listed(struct consul_call *call) {
  const struct kv_op *op = call->op;
  if (call->http.status != 404) {
    struct json *keys = call->http.status == 200 ? json_read(call->http.answer) : NULL;
    if (call->http.status != 200) {
      consul_refuse(call);
      return;
    }
    if (keys) choose(call, keys);
    json_free(keys);
    if (!keys) {
      consul_garbled(call);
      return;
    }
  }
  if (op->key.size && !(op->flags & KV_BELOW)) add_name(call->listing, op->key);
  if (call->listing->failed)
    consul_no_memory(call);
  else if (call->listing->names.size)
    delete_next(call);
  else
    consul_finish(call, KV_OK, NULL);
}

void consul_delete_tree(struct consul *consul, struct kv_op *op) {
  struct consul_call *call = begin(consul, op, list_pair);
  if (!call) return;
  consul_path(call, "/v1/kv/", op->key, op->key.size ? "/" : "");
  consul_query(call, "keys");
  consul_query(call, "consistent");
  consul_send(call, "GET", false, keys_listed);
}

/* ------------------------------------------------------------------ ping, version */

static void pinged(struct consul_call *call) {
  if (call->http.status != 200)
    consul_refuse(call);
  else if (call->http.answer.size < 4) /* an empty string */
    consul_finish(call, KV_UNAVAILABLE, "Consul has no leader");
  else
    consul_finish(call, KV_OK, NULL);
}

void consul_ping(struct consul *consul, struct kv_op *op) {
  struct consul_call *call = consul_call_new(consul, op);
  if (!call) return;
  consul_path(call, "/v1/status/leader", (kv_slice){NULL, 0}, "");
  consul_send(call, "GET", false, pinged);
}

static void version_told(struct consul_call *call) {
  kv_slice version;
  char text[64];
  struct json *self = call->http.status == 200 ? json_read(call->http.answer) : NULL;
  if (json_text(json_member(json_member(self, "Config"), "Version"), &version))
    kv_consul->connected(call->consul->backend, true, NULL, http_shown(version, text, sizeof text));
  json_free(self);
  consul_finish(call, KV_OK, NULL);
}

/* A token that may not know it changes nothing else. */
void consul_ask_version(struct consul *consul) {
  consul->version_asked = true;
  struct consul_call *call = consul->calls.closing ? NULL : consul_call_new(consul, NULL);
  if (!call) return;
  consul_path(call, "/v1/agent/self", (kv_slice){NULL, 0}, "");
  consul_send(call, "GET", false, version_told);
}
