/*
 * op.h - the core's side of an operation: where its answer goes, its timers, and what keeps its memory valid.
 *
 * Two ways through the core:
 *   - on the reactor: submitted by kv_post(), retried, timed and cancelled there. Steps and recipe requests too.
 *   - direct (drivers with KV_CAN_ANY_THREAD): started in the caller's thread, finished on any; backend->lock guards
 *     who answers. The reactor only scans deadlines.
 */
#ifndef KV_OP_H
#define KV_OP_H

#include "core.h"
#include "queue.h"

struct kv_core_op {
  struct kv_op pub; /* first: a driver's kv_op is ours */
  struct kv_backend *backend;
  uint64_t view;    /* which view asked: closing it answers its operations */

  char *room;       /* owned: key, value and what else the request points to */
  kv_queue *queue;  /* user requests; counted. NULL for steps */
  kv_reply *reply;  /* made at submission, so that answering cannot fail */
  uint64_t tag, id;
  struct kv_core_op *queue_next, **queue_link; /* in queue->ops, guarded by its lock; queue_link NULL: not in it */
  bool has_name;                               /* messages name a subject */
  kv_slice name;                               /* what messages call it: the key as the user wrote it, canonical */
  size_t strip;                                /* bytes of prefix to cut from keys */

  struct kv_step *step;
  const struct kv_recipe *recipe;
  void *subject;

  /* in backend->ops (reactor) or backend->direct (backend->lock); link NULL: not in it */
  struct kv_core_op *next, **link;
  struct kv_timer deadline_timer, retry_timer;
  struct kv_task task;             /* to the reactor: begin, or deliver */
  struct kv_session_wait session;
  bool direct, in_driver, waiting_for_session, answered, cancelled, timed_out, concluded;
  /* Drivers of KV_CAN_ANY_THREAD: */
  char *finished_cause; /* owned */
  kv_code finished_code;
  atomic_bool finished; /* the driver has let go */
  bool pinned;          /* direct, guarded by backend->lock: somebody is giving it up; finish leaves the rest to him */

  kv_code last_code;               /* of the last try */
  char *last_problem;              /* owned */

  struct kv_lease_ref *lease;      /* counted, when the user named one */
  kv_txn *txn;                     /* counted: owns what the parts point to */
};

/* Room for `bytes` of the op's own behind it, at *room. NULL: out of memory. */
struct kv_core_op *kv_core_op_new(struct kv_backend *backend, kv_kind kind, size_t bytes, char **room);
void kv_core_op_free(struct kv_core_op *op);
/* Who asked, and where the answer goes. op->reply must be there. */
void kv_core_op_bind(struct kv_core_op *op, kv_store *store, kv_queue *queue, uint64_t tag, uint64_t *id);
/* Get it going: on the reactor, or directly. The queue's list knows it from here on. */
void kv_core_op_submit(struct kv_core_op *op);

/* For struct kv_host: adds a pair a driver found, if it is one of ours. */
bool kv_op_pair_found(struct kv_op *op, kv_slice key, kv_slice value, uint64_t revision, uint64_t created, bool dir);
size_t kv_op_pair_bytes(const struct kv_op *op);

/* Bring a shallow listing in order, fold it, apply `after` and `limit`. */
kv_code kv_op_arrange(struct kv_core_op *op, kv_error *error);
/* The answer of a read that was done in the caller's thread. NULL: out of memory. */
kv_reply *kv_op_reply_now(struct kv_core_op *op, kv_code code, const char *cause);

/* Answer what is in flight: of one view (or every one: 0) of a backend that closes. Reactor. */
void kv_ops_close_view(struct kv_backend *backend, uint64_t view);
/* Cancel everything in flight for a queue whose owner gave it up; takes over his reference. Any thread. */
void kv_ops_cancel_queue(kv_queue *queue);
/* Of the deadline scan of direct operations. */
void kv_direct_scan(struct kv_timer *timer);
void kv_direct_arm(struct kv_task *task);

bool kv_kind_is_write(kv_kind kind);

#endif
