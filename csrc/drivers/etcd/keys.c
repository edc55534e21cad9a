/*
 * keys.c - names in etcd.
 *
 * A user's key `a/b` is stored as `/a/b` (option leading_slash, the default, as libkv and others do) or as `a/b`.
 * What is the library's own lives under `.kv/`, always without the slash: so with leading slashes nothing that
 * watches the root sees it. The queue of a lock is a range of its own: its name is escaped, so that lock `a` does not
 * wait for lock `a/b`.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "../names.h"
#include "etcd.h"

/* There is always room: the core keeps keys below KV_KEY_MAX. */
static void append(struct etcd_key *out, const char *data, size_t size) {
  out->size = kv_append(out->data, out->size, sizeof out->data, data, size);
}

void etcd_key_of(const struct etcd *etcd, kv_slice key, struct etcd_key *out) {
  bool own = key.size > 4 && memcmp(key.data, ".kv/", 4) == 0;
  out->size = 0;
  if (etcd->config->leading_slash && !own) append(out, "/", 1);
  append(out, key.data, key.size);
}

void etcd_directory(const struct etcd *etcd, kv_slice dir, struct etcd_key *begin, struct etcd_key *end) {
  etcd_key_of(etcd, dir, begin);
  if (dir.size) append(begin, "/", 1);
  if (!begin->size) { /* the root without a slash: everything there is */
    append(begin, "", 1);
    *end = *begin;
    return;
  }
  *end = *begin;
  end->data[end->size - 1] = '/' + 1;
}

void etcd_key_after(const struct etcd *etcd, kv_slice key, struct etcd_key *out) {
  etcd_key_of(etcd, key, out);
  append(out, "", 1);
}

kv_slice etcd_key_shown(const struct etcd *etcd, kv_slice key) {
  if (etcd->config->leading_slash && key.size && key.data[0] == '/') return (kv_slice){key.data + 1, key.size - 1};
  return key;
}

/* ------------------------------------------------------------------ lock queues */

/* The foreign layout is that of Go's concurrency.Mutex and etcdctl lock: NAME/LEASE. */
void etcd_lock_key(const struct kv_place *place, struct etcd_lock_key *out) {
  size_t room = sizeof out->data - 64; /* for "/", the lease and a zero */
  if (place->interop) {
    out->size = kv_append(out->data, 0, room, place->name.data, place->name.size);
  } else {
    out->size = kv_append(out->data, 0, room, ".kv/lock/", 9);
    out->size = kv_append_escaped(out->data, out->size, room, place->name);
  }
  out->data[out->size++] = '/';
  out->prefix = out->size;
  if (place->limit) out->size += (size_t)snprintf(out->data + out->size, sizeof place->id, "%s", place->id);
  else if (place->lease) out->size += (size_t)snprintf(out->data + out->size, 20, "%" PRIx64, place->lease->id);
}

void etcd_lock_end(const struct etcd_lock_key *key, struct etcd_lock_key *out) {
  memcpy(out->data, key->data, key->prefix);
  out->size = out->prefix = key->prefix;
  out->data[out->size - 1] = '/' + 1;
}
