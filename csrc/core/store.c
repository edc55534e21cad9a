/*
 * store.c - views of a backend: opening, naming keys, taking requests. Every check that needs no I/O is made here.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "op.h"
#include "txn.h"


/* ------------------------------------------------------------------ opening and closing */

static kv_store *view_new(struct kv_backend *backend, const char *prefix, size_t prefix_size) {
  static atomic_uint_fast64_t last_view;
  kv_store *store = calloc(1, sizeof *store);
  struct kv_close_request *request = calloc(1, sizeof *request);
  if (!store || !request) {
    free(store);
    free(request);
    return NULL;
  }
  atomic_init(&store->references, 1);
  store->backend = backend;
  store->view = atomic_fetch_add(&last_view, 1) + 1;
  store->fork_count = kv_fork_count();
  store->prefix_size = prefix_size;
  if (prefix_size) memcpy(store->prefix, prefix, prefix_size);
  request->backend = backend;
  request->view = store->view;
  store->close_request = request;
  if (prefix_size && backend->config.scheme->port)
    snprintf(store->label, sizeof store->label, "%s/%.*s", backend->label, (int)prefix_size, prefix);
  else
    snprintf(store->label, sizeof store->label, "%s%s%.*s", backend->label, prefix_size ? "?prefix=" : "",
             (int)prefix_size, prefix_size ? prefix : "");
  return store;
}

kv_store *kv_open(const char *url, const kv_options *options, kv_error *error) {
  struct kv_config config;
  char prefix[KV_KEY_MAX];
  size_t prefix_size = 0;
  const struct kv_driver *driver = NULL;
  kv_fork_watch();
  if (kv_config_make(url, options, &config, prefix, &prefix_size, error) != KV_OK) return NULL;
  kv_scheme_find((kv_slice){config.scheme->name, strlen(config.scheme->name)}, &driver);
  struct kv_backend *backend = kv_backend_new(driver, &config, error);
  if (!backend) return NULL;
  kv_store *store = view_new(backend, prefix, prefix_size);
  if (!store) {
    kv_fail(error, KV_FAILED, "out of memory");
    kv_backend_release(backend);
  }
  return store;
}

kv_store *kv_sub(kv_store *store, kv_slice prefix, kv_error *error) {
  char joined[KV_KEY_MAX];
  size_t size = 0;
  if (kv_store_key(store, "sub", prefix, true, joined, &size, error) != KV_OK) return NULL;
  kv_store *view = view_new(store->backend, joined, size);
  if (!view) {
    kv_fail(error, KV_FAILED, "out of memory");
  } else if (!kv_backend_add_view(store->backend)) {
    kv_fail(error, KV_CLOSED, "sub on %s: the store was closed", store->label);
    free(view->close_request);
    free(view);
    view = NULL;
  }
  return view;
}

static bool inherited(const kv_store *store) {
  return store->fork_count != kv_fork_count();
}

void kv_close(kv_store *store) {
  if (inherited(store) || atomic_exchange(&store->closed, true)) return;
  kv_backend_retain(store->backend); /* for kv_close_wait() and the label */
  kv_backend_close_view(store->close_request);
  store->close_request = NULL;
}

bool kv_close_wait(kv_store *store, double seconds) {
  if (inherited(store)) return true;
  struct kv_backend *backend = store->backend;
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  int64_t at = (int64_t)until.tv_sec * KV_SECOND + until.tv_nsec;
  at = kv_deadline(at, seconds < 0 ? 0 : seconds);
  kv_reactor_nudge(); /* it may lie idle, waiting for this thread to ask more */
  until.tv_sec = (time_t)(at / KV_SECOND);
  until.tv_nsec = (long)(at % KV_SECOND);
  pthread_mutex_lock(&backend->lock);
  int failed = 0;
  while (backend->closing && !backend->closed && !failed)
    failed = pthread_cond_timedwait(&backend->closed_changed, &backend->lock, &until);
  bool done = backend->closed || !backend->closing;
  pthread_mutex_unlock(&backend->lock);
  return done;
}

void kv_store_retain(kv_store *store) {
  atomic_fetch_add_explicit(&store->references, 1, memory_order_relaxed);
}

void kv_store_release(kv_store *store) {
  if (atomic_fetch_sub_explicit(&store->references, 1, memory_order_acq_rel) == 1) free(store);
}

void kv_store_free(kv_store *store) {
  if (!store) return;
  if (!inherited(store)) {
    kv_close(store);
    kv_backend_release(store->backend);
  }
  kv_store_release(store);
}

bool kv_store_closed(const kv_store *store) {
  return inherited(store) || atomic_load_explicit(&store->closed, memory_order_relaxed);
}

/* ------------------------------------------------------------------ asking about it */

const char *kv_store_label(const kv_store *store) {
  return store->label;
}

double kv_store_timeout(const kv_store *store) {
  return inherited(store) ? 0 : store->backend->config.timeout;
}

static const struct {
  const char *name;
  uint32_t bit;
} capabilities[] = {
    {"txn", KV_CAN_TXN},       {"ttl", KV_CAN_TTL},       {"lock", KV_CAN_LOCK},
    {"lease", KV_CAN_LEASE},   {"watch", KV_CAN_WATCH},   {"resume", KV_CAN_RESUME},
    {"every_version", KV_CAN_EVERY_VERSION}, {"paging", KV_CAN_PAGING},
    {"semaphore", KV_CAN_SEMAPHORE},
    {"election", KV_CAN_LOCK | KV_CAN_TXN | KV_CAN_LEASE | KV_CAN_WATCH},
    {"interop", KV_CAN_INTEROP}, {"interop_order", KV_CAN_INTEROP_ORDER},
    {"nested", KV_CAN_NESTED},
};

#define CAPABILITY_COUNT (sizeof capabilities / sizeof *capabilities)

const char *kv_capability_name(size_t index) {
  return index < CAPABILITY_COUNT ? capabilities[index].name : NULL;
}

bool kv_store_supports(const kv_store *store, const char *capability) {
  for (size_t i = 0; i < CAPABILITY_COUNT; i++)
    if (strcmp(capabilities[i].name, capability) == 0)
      return (store->backend->driver->capabilities & capabilities[i].bit) == capabilities[i].bit;
  return false;
}

void kv_store_info(const kv_store *store, kv_info *info) {
  *info = (kv_info){.backend = ""};
  if (inherited(store)) return;
  pthread_mutex_lock(&store->backend->lock);
  *info = store->backend->info;
  pthread_mutex_unlock(&store->backend->lock);
}

void kv_store_stats(const kv_store *store, kv_stats *stats) {
  *stats = (kv_stats){0};
  if (inherited(store)) return;
  struct kv_backend *backend = store->backend;
#define READ_COUNTER(name, meaning) stats->name = atomic_load(&backend->counters[KV_COUNT_##name]);
  KV_COUNTERS(READ_COUNTER)
#undef READ_COUNTER
  for (int i = 0; i < KV_CODE_COUNT; i++) stats->failures[i] = atomic_load(&backend->failures[i]);
}

/* ------------------------------------------------------------------ keys */

kv_code kv_key_join(const char *prefix, size_t prefix_size, kv_slice key, bool root_allowed, char *out, size_t *size,
                    kv_error *error) {
  size_t room = prefix_size ? KV_KEY_MAX - prefix_size - 1 : KV_KEY_MAX;
  char *at = prefix_size ? out + prefix_size + 1 : out;
  char canonical[KV_KEY_MAX];
  size_t key_size = 0;
  kv_code code = kv_key_canonical(key, root_allowed, canonical, &key_size, error);
  if (code != KV_OK) return code;
  if (prefix_size >= KV_KEY_MAX || key_size > room)
    return kv_fail(error, KV_INVALID, "key \"%.*s...\" with the store's prefix is longer than %d bytes",
                   key_size > 60 ? 60 : (int)key_size, canonical, KV_KEY_MAX);
  if (prefix_size) memcpy(out, prefix, prefix_size);
  if (key_size) {
    if (prefix_size) out[prefix_size] = '/';
    memcpy(at, canonical, key_size);
  }
  *size = !key_size ? prefix_size : (size_t)(at - out) + key_size;
  return KV_OK;
}

kv_code kv_store_key(const kv_store *store, const char *what, kv_slice key, bool root_allowed, char *out, size_t *size,
                     kv_error *error) {
  kv_error cause;
  if (kv_store_closed(store)) return kv_fail(error, KV_CLOSED, "%s on %s: the store was closed", what, store->label);
  kv_code code = kv_key_join(store->prefix, store->prefix_size, key, root_allowed, out, size, &cause);
  return code == KV_OK ? code : kv_fail(error, code, "%s on %s: %s", what, store->label, cause.message);
}

kv_code kv_store_ready(kv_store *store, kv_error *error) {
  if (kv_store_closed(store)) return kv_fail(error, KV_CLOSED, "%s: the store was closed", store->label);
  return kv_backend_start(store->backend, error);
}

/* ------------------------------------------------------------------ requests */

/* A request after checking: full keys, and what they point to still the caller's. */
struct draft {
  char key[KV_KEY_MAX], after[KV_KEY_MAX];
  size_t key_size, after_size;
  size_t name_offset; /* the key as the user knows it begins here */
  unsigned flags;
};

static bool needs_key(kv_kind kind) {
  return kind == KV_GET || kind == KV_PUT || kind == KV_DELETE;
}

static bool takes_directory(kv_kind kind) {
  return kind == KV_LIST || kind == KV_DELETE_TREE;
}

static kv_code check_key(const kv_store *store, const kv_request *request, struct draft *draft, kv_error *error) {
  if (!needs_key(request->kind) && !takes_directory(request->kind)) return KV_OK;
  const char *what = kv_kind_text(request->kind);
  bool directory = takes_directory(request->kind);
  kv_code code = kv_store_key(store, what, request->key, directory, draft->key, &draft->key_size, error);
  draft->name_offset = store->prefix_size ? store->prefix_size + 1 : 0;
  if (draft->name_offset > draft->key_size) draft->name_offset = draft->key_size;
  if (code != KV_OK || request->kind != KV_LIST || !request->after.size) return code;
  return kv_store_key(store, what, request->after, false, draft->after, &draft->after_size, error);
}

static kv_code check_capability(const kv_store *store, const kv_request *request, kv_error *error) {
  uint32_t can = store->backend->driver->capabilities;
  const char *what = NULL;
  if (request->kind == KV_TXN && !(can & KV_CAN_TXN)) what = "transactions";
  if (request->ttl > 0 && !(can & KV_CAN_TTL)) what = "a time to live";
  if ((request->lease || (request->flags & KV_KEEP_ALIVE)) && !(can & KV_CAN_LEASE)) what = "leases";
  if (!what) return KV_OK;
  return kv_fail(error, KV_UNSUPPORTED, "%s on %s: this backend has no %s", kv_kind_text(request->kind), store->label,
                 what);
}

/* No key has revision 0, which some servers take for "is not there". */
static kv_code check_condition(const kv_store *store, const kv_request *request, kv_error *error) {
  bool conditional = request->kind == KV_PUT || request->kind == KV_DELETE;
  if (!conditional || request->condition != KV_IF_REVISION || request->revision) return KV_OK;
  return kv_fail(error, KV_MODIFIED, "%s \"%.*s\" on %s: no key has revision 0", kv_kind_text(request->kind),
                 request->key.size > 160 ? 160 : (int)request->key.size, request->key.data, store->label);
}

static kv_code check_write(const kv_store *store, const kv_request *request, kv_error *error) {
  if (request->kind != KV_PUT) return KV_OK;
  size_t limit = kv_backend_value_max(store->backend);
  if (limit && request->value.size > limit)
    return kv_fail(error, KV_TOO_LARGE, "put \"%.*s\" on %s: the value has %zu bytes, at most %zu are allowed",
                   request->key.size > 160 ? 160 : (int)request->key.size, request->key.data, store->label,
                   request->value.size, limit);
  int lives = (request->ttl > 0) + (request->lease != NULL) + ((request->flags & KV_KEEP_ALIVE) != 0);
  if (lives > 1) return kv_fail(error, KV_INVALID, "put: only one of ttl, lease and keep_alive");
  if (!(request->ttl >= 0) || isinf(request->ttl))
    return kv_fail(error, KV_INVALID, "put: ttl is no number of seconds");
  return KV_OK;
}

static kv_code check(const kv_store *store, const kv_request *request, struct draft *draft, kv_error *error) {
  if (request->kind > KV_TXN) return kv_fail(error, KV_INVALID, "a request of this kind cannot be submitted");
  if (request->kind == KV_TXN && (!request->txn || request->txn->backend != store->backend))
    return kv_fail(error, KV_INVALID, "transaction: it was built for another store");
  kv_code code = check_key(store, request, draft, error);
  if (code == KV_OK) code = check_capability(store, request, error);
  if (code == KV_OK) code = check_write(store, request, error);
  if (code == KV_OK) code = check_condition(store, request, error);
  draft->flags = request->flags & ~(unsigned)(KV_PORTABLE | KV_BELOW | KV_DATED);
  if (request->kind == KV_DELETE_TREE && draft->key_size == store->prefix_size) draft->flags |= KV_BELOW;
  if (request->flags & KV_STRONG)
    draft->flags &= ~(unsigned)KV_FAST;
  else if (store->backend->config.fast_reads)
    draft->flags |= KV_FAST;
  if (store->backend->config.portable) draft->flags |= KV_PORTABLE;
  return code;
}

/* Fields that point nowhere. */
static void set_plain(struct kv_core_op *op, const kv_store *store, const kv_request *request,
                      const struct draft *draft) {
  struct kv_op *pub = &op->pub;
  pub->flags = draft->flags;
  pub->condition = request->condition;
  pub->revision = request->revision;
  pub->ttl = request->ttl;
  pub->limit = request->limit;
  op->strip = store->prefix_size ? store->prefix_size + 1 : 0;
  op->has_name = needs_key(request->kind) || takes_directory(request->kind);
  double timeout = request->timeout > 0 ? request->timeout : store->backend->config.timeout;
  pub->deadline = kv_deadline(kv_clock(), timeout);
}

static void set_slices(struct kv_core_op *op, const struct draft *draft, const char *key, kv_slice value,
                       const char *after) {
  op->pub.key = (kv_slice){key, draft->key_size};
  op->pub.value = value;
  op->pub.after = (kv_slice){after, draft->after_size};
  op->name = (kv_slice){key + draft->name_offset, draft->key_size - draft->name_offset};
}

/* Local reads: the answer at once, without an op of its own on the heap. KV_UNAVAILABLE: it takes an operation after
 * all. */
static kv_code read_now(kv_store *store, const kv_request *request, const struct draft *draft, uint64_t tag,
                        kv_reply **reply, kv_error *error) {
  struct kv_backend *backend = store->backend;
  struct kv_core_op op = {.backend = backend, .tag = tag, .pub.kind = request->kind, .pub.result.failed_check = -1};
  kv_error cause = {.code = KV_OK};
  set_plain(&op, store, request, draft);
  set_slices(&op, draft, draft->key, (kv_slice){NULL, 0}, draft->after);
  kv_code code = backend->driver->read(backend->state, &op.pub, &cause);
  if (code == KV_UNAVAILABLE) return code;
  if (code == KV_OK) code = kv_op_arrange(&op, &cause);
  kv_count(backend, KV_COUNT_operations, 1);
  atomic_fetch_add_explicit(&backend->failures[code], 1, memory_order_relaxed);
  *reply = kv_op_reply_now(&op, code, cause.message);
  if (*reply) return KV_OK;
  kv_page_free(op.pub.result.page);
  return kv_fail(error, KV_FAILED, "out of memory");
}

static kv_code attach(struct kv_core_op *op, const kv_request *request, kv_error *error) {
  if (request->lease) {
    op->lease = kv_lease_reference(request->lease);
    if (!op->lease) return kv_fail(error, KV_NOT_HELD, "put: the lease is not alive");
    op->pub.lease = op->lease;
  }
  if (request->kind == KV_TXN) {
    kv_txn_retain(request->txn);
    op->txn = (kv_txn *)(uintptr_t)request->txn;
    op->pub.part_count = request->txn->count;
    op->pub.parts = (const struct kv_part *)(const void *)op->room;
    memcpy(op->room, request->txn->parts, request->txn->count * sizeof(struct kv_part));
    for (size_t i = 0; i < op->pub.part_count; i++)
      if (op->pub.parts[i].keep_alive) op->pub.flags |= KV_KEEP_ALIVE;
  }
  return KV_OK;
}

static struct kv_core_op *build(kv_store *store, const kv_request *request, const struct draft *draft,
                                kv_error *error) {
  size_t parts = request->kind == KV_TXN ? request->txn->count * sizeof(struct kv_part) : 0;
  size_t value_size = request->kind == KV_PUT ? request->value.size : 0;
  size_t size = parts + draft->key_size + draft->after_size + value_size + 1;
  char *room = NULL;
  struct kv_core_op *op = kv_core_op_new(store->backend, request->kind, size, &room);
  if (!op || !(op->reply = calloc(1, sizeof *op->reply))) {
    if (op) kv_core_op_free(op);
    kv_fail(error, KV_FAILED, "out of memory");
    return NULL;
  }
  char *key = room + parts, *after = key + draft->key_size, *value = after + draft->after_size;
  memcpy(key, draft->key, draft->key_size);
  memcpy(after, draft->after, draft->after_size);
  if (value_size) memcpy(value, request->value.data, value_size);
  set_plain(op, store, request, draft);
  set_slices(op, draft, key, (kv_slice){value, value_size}, after);
  if (attach(op, request, error) == KV_OK) return op;
  kv_core_op_free(op);
  return NULL;
}

kv_code kv_submit(kv_store *store, kv_queue *queue, const kv_request *request, uint64_t tag, uint64_t *id,
                  kv_reply **reply, kv_error *error) {
  struct draft draft;
  draft.key_size = draft.after_size = draft.name_offset = 0;
  kv_error local;
  if (!error) error = &local;
  *reply = NULL;
  kv_code code = kv_store_closed(store) ? kv_fail(error, KV_CLOSED, "%s on %s: the store was closed",
                                                  kv_kind_text(request->kind), store->label)
                                        : check(store, request, &draft, error);
  /* Relaxed: `started` only ever becomes true, and the slow path looks again. */
  if (code == KV_OK && !atomic_load_explicit(&store->ready, memory_order_relaxed)) {
    code = kv_store_ready(store, error);
    atomic_store_explicit(&store->ready, code == KV_OK, memory_order_relaxed);
  }
  if (code != KV_OK) return code;
  bool is_read = request->kind == KV_GET || request->kind == KV_LIST;
  if (is_read && store->backend->driver->read) {
    code = read_now(store, request, &draft, tag, reply, error);
    if (code != KV_UNAVAILABLE) return code;
  }
  struct kv_core_op *op = build(store, request, &draft, error);
  if (!op) return error->code;
  kv_core_op_bind(op, store, queue, tag, id);
  kv_core_op_submit(op);
  return KV_OK;
}
