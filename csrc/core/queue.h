/*
 * queue.h - replies and the queues that carry them from the reactor (or a driver's thread) to a Lua state.
 */
#ifndef KV_QUEUE_H
#define KV_QUEUE_H

#include "core.h"
#include "page.h"

struct kv_reply {
  kv_kind kind;
  kv_code code;
  uint64_t tag;
  uint64_t revision, created;
  bool found, more;
  int failed_check;
  struct kv_page *page;
  size_t offset;
  char *message;                            /* owned, or NULL */
  kv_queue *queue;                          /* where it goes; counted while it is on its way */
  kv_reply *next;
  void (*release)(struct kv_reply *reply);  /* of a reply embedded in something else; NULL: it is freed */
  void (*taken)(struct kv_reply *reply);    /* called when a consumer takes it out of its queue */
};

struct kv_queue {
  pthread_mutex_t lock;
  kv_reply *first, **end;    /* pushed */
  atomic_bool pending;       /* something was pushed that nobody looked at; written under the lock */
  bool signalled;            /* the eventfd is readable */
  bool attended;             /* its owner runs the reactor and needs no eventfd */
  bool dead;                 /* given up by its owner: replies are dropped */
  struct kv_core_op *ops;    /* in flight for this queue */
  kv_reply *taken;           /* the consumer's own: taken out of the list in one go */
  int fd;
  int socket;                /* gets a byte whenever fd becomes readable; -1: there is none */
  unsigned fork_count;
  atomic_uint references;
  struct kv_task cancel_all;
};

void kv_queue_retain(kv_queue *queue);
void kv_queue_release(kv_queue *queue);
/* Hand a reply over: it is pushed at once, or gathered between hold and release. Any thread. */
void kv_reply_send(kv_queue *queue, kv_reply *reply);
void kv_replies_hold(void);
void kv_replies_release(void);

#endif
