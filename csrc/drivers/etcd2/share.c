/*
 * share.c - strong reads of keys that are asked for at once share what makes them strong.
 *
 * A read with quorum=true is an entry in the log of the servers, written and synced as a put is. So only a few are out
 * at a time. Those that come meanwhile wait, and then one such read serves them all: its answer tells an index that
 * lies behind everything that was answered before they were asked for, and a plain read from any server that has come
 * that far is as good. One that has not is asked again, through the quorum. Of several reads of a key one is sent.
 *
 * One caller after the other never waits, and shares nothing.
 */
#include <string.h>

#include "etcd2.h"

#define OUT_MAX 4      /* reads through the quorum at a time */
#define LOOK_BACK 32   /* so many reads are looked through for one of the same key */

static void sync_again(struct etcd2 *etcd2);

void etcd2_share_init(struct etcd2 *etcd2) {
  kv_list_init(&etcd2->waiting);
  kv_list_init(&etcd2->synced);
}

/* ------------------------------------------------------------------ one read */

static void ask(struct etcd2_call *call, bool strong);

/* To those who asked for the same. Giving one his answer may end others. */
static void answer_all(struct etcd2_call *call) {
  while (!kv_list_empty(&call->same)) {
    struct etcd2_call *other = kv_list_of(struct etcd2_call, wait, call->same.next);
    kv_list_remove(&other->wait);
    etcd2_answer_get(other, call->listing, call->index);
  }
  etcd2_answer_get(call, call->listing, call->index);
}

static void read_told(struct etcd2_call *call) {
  bool strong = call->mode != 0;
  if (!strong && call->index < call->expected)
    ask(call, true);
  else if (etcd2_is_listing(call))
    answer_all(call);
}

static void ask(struct etcd2_call *call, bool strong) {
  call->mode = strong;
  if (strong && !call->counted) {
    call->counted = true;
    call->etcd2->reads_out++;
  }
  if (!etcd2_listing_new(call, !(call->op->flags & KV_KEYS_ONLY), false)) return;
  etcd2_path(call, call->op->key);
  if (strong) http_call_query(etcd2_base(call), "quorum=true");
  etcd2_send_read(call, read_told);
}

/* ------------------------------------------------------------------ many */

static bool is_same(const struct etcd2_call *a, const struct etcd2_call *b) {
  return a->op->key.size == b->op->key.size && memcmp(a->op->key.data, b->op->key.data, a->op->key.size) == 0 &&
         ((a->op->flags ^ b->op->flags) & KV_KEYS_ONLY) == 0;
}

/* One among the last of those that are sent which reads the same. */
static struct etcd2_call *find_same(struct etcd2_call *const *last, size_t count, const struct etcd2_call *call) {
  for (size_t i = 0; i < count && i < LOOK_BACK; i++)
    if (last[i] && is_same(last[i], call)) return last[i];
  return NULL;
}

/* All whom this sync served: they read what is there at `index`, or (0) each for itself. Who asks is settled before
 * any does: one may end right there. */
static void go_on(struct etcd2 *etcd2, uint64_t index) {
  struct etcd2_call *last[LOOK_BACK] = {NULL};
  struct kv_list asking;
  size_t count = 0;
  kv_list_init(&asking);
  while (!kv_list_empty(&etcd2->synced)) {
    struct etcd2_call *call = kv_list_of(struct etcd2_call, wait, etcd2->synced.next);
    struct etcd2_call *other = index ? find_same(last, count, call) : NULL;
    call->expected = index;
    kv_list_move(other ? &other->same : &asking, &call->wait);
    if (!other) last[count++ % LOOK_BACK] = call;
  }
  while (!kv_list_empty(&asking)) {
    struct etcd2_call *call = kv_list_of(struct etcd2_call, wait, asking.next);
    kv_list_remove(&call->wait);
    ask(call, !index);
  }
}

static void synced(struct etcd2_call *call) {
  struct etcd2 *etcd2 = call->etcd2;
  bool good = etcd2_good(call) || call->error.code == ETCD2_NOT_FOUND;
  etcd2->sync_index = good ? call->index : 0;
  if (!good && etcd2_code(call->http.status, &call->error, false) == KV_DENIED) etcd2->apart = true;
  etcd2_finish(call, KV_OK, NULL); /* and on with etcd2_share_synced() */
}

void etcd2_share_synced(struct etcd2 *etcd2) {
  uint64_t index = etcd2->sync_index;
  etcd2->syncing = false;
  etcd2->sync_index = 0;
  go_on(etcd2, index);
  sync_again(etcd2);
}

static void sync_again(struct etcd2 *etcd2) {
  if (etcd2->syncing || kv_list_empty(&etcd2->waiting)) return;
  struct etcd2_call *call = etcd2_call_new(etcd2, NULL);
  while (!kv_list_empty(&etcd2->waiting)) kv_list_move(&etcd2->synced, etcd2->waiting.next);
  if (!call) {
    go_on(etcd2, 0);
    return;
  }
  call->is_sync = etcd2->syncing = true;
  etcd2_path(call, KV_TEXT("_kv/ping"));
  http_call_query(etcd2_base(call), "quorum=true");
  etcd2_send(call, "GET", false, synced);
}

void etcd2_share_get(struct etcd2 *etcd2, struct kv_op *op) {
  struct etcd2_call *call = etcd2_call_new(etcd2, op);
  if (!call) return;
  if (etcd2->apart || (!etcd2->syncing && etcd2->reads_out < OUT_MAX)) {
    ask(call, true);
    return;
  }
  kv_list_move(&etcd2->waiting, &call->wait);
  kv_etcd2->defer(&etcd2->share_task); /* what else comes in this turn goes along */
}

void etcd2_share_turn(struct kv_task *task) {
  struct etcd2 *etcd2 = task->data;
  if (!etcd2->calls.closed) sync_again(etcd2);
}

/* A call ends: whoever waits for what it would have read asks for himself. */
void etcd2_share_release(struct etcd2_call *call) {
  kv_list_remove(&call->wait);
  if (call->counted) call->etcd2->reads_out--;
  struct etcd2_call *next = NULL;
  if (!kv_list_empty(&call->same)) next = kv_list_of(struct etcd2_call, wait, call->same.next);
  if (!next) return;
  kv_list_remove(&next->wait);
  while (!kv_list_empty(&call->same)) kv_list_move(&next->same, call->same.next);
  ask(next, true);
}
