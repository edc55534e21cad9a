/* txn.h - a transaction being built, as the core sees it. Counted: a submitted operation keeps it. */
#ifndef KV_TXN_H
#define KV_TXN_H

#include "core.h"

struct kv_txn {
  atomic_uint references;
  unsigned fork_count;
  struct kv_backend *backend;       /* counted */
  size_t prefix_size;
  char prefix[KV_KEY_MAX];
  size_t count, checks;
  struct kv_part parts[KV_TXN_MAX]; /* checks first; key and value bytes owned, lease and place counted */
};

void kv_txn_retain(const kv_txn *txn);
void kv_txn_release(kv_txn *txn);

#endif
