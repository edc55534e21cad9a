/*
 * queue.c - completion queues: many threads push, one takes. One eventfd write wakes the taker for any number of
 * replies, and no other is made until it has looked.
 */
#include "queue.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "op.h"

/* ------------------------------------------------------------------ replies */

kv_kind kv_reply_kind(const kv_reply *reply) {
  return reply->kind;
}

uint64_t kv_reply_tag(const kv_reply *reply) {
  return reply->tag;
}

kv_code kv_reply_code(const kv_reply *reply) {
  return reply->code;
}

const char *kv_reply_message(const kv_reply *reply) {
  if (reply->message) return reply->message;
  return reply->code == KV_OK ? "" : kv_code_meaning(reply->code);
}

uint64_t kv_reply_revision(const kv_reply *reply) {
  return reply->revision;
}

uint64_t kv_reply_created(const kv_reply *reply) {
  return reply->created;
}

bool kv_reply_found(const kv_reply *reply) {
  return reply->found;
}

bool kv_reply_more(const kv_reply *reply) {
  return reply->more;
}

int kv_reply_failed_check(const kv_reply *reply) {
  return reply->failed_check;
}

size_t kv_reply_bytes(const kv_reply *reply) {
  return reply->page ? kv_page_bytes(reply->page) : 0;
}

bool kv_reply_pair(kv_reply *reply, kv_pair *pair) {
  return reply->page && kv_page_next(reply->page, &reply->offset, pair);
}

void kv_reply_free(kv_reply *reply) {
  if (!reply) return;
  if (reply->release) {
    reply->release(reply);
    return;
  }
  kv_page_free(reply->page);
  free(reply->message);
  free(reply);
}

/* ------------------------------------------------------------------ gathering */

static _Thread_local unsigned hold_depth;
static _Thread_local kv_reply *held, **held_end;

static void wake(kv_queue *queue) {
  uint64_t one = 1;
  ssize_t written;
  do written = write(queue->fd, &one, sizeof one);
  while (written < 0 && errno == EINTR);
}

/* Push a chain of replies, all for `queue`. Consumes the references that they carry. */
static void push(kv_queue *queue, kv_reply *first, kv_reply **end, unsigned count) {
  pthread_mutex_lock(&queue->lock);
  bool dead = queue->dead, must_wake = false;
  if (!dead) {
    *queue->end = first;
    queue->end = end;
    must_wake = !queue->signalled;
    queue->signalled = true;
    /* Under the lock: the consumer may free the queue right after. */
    if (must_wake) wake(queue);
  }
  pthread_mutex_unlock(&queue->lock);
  while (dead && first) {
    kv_reply *next = first->next;
    kv_reply_free(first);
    first = next;
  }
  while (count--) kv_queue_release(queue);
}

void kv_reply_send(kv_queue *queue, kv_reply *reply) {
  kv_queue_retain(queue);
  reply->queue = queue;
  reply->next = NULL;
  if (!hold_depth) {
    push(queue, reply, &reply->next, 1);
    return;
  }
  if (!held) held_end = &held;
  *held_end = reply;
  held_end = &reply->next;
}

void kv_replies_hold(void) {
  hold_depth++;
}

/* Take the replies for the first one's queue out of the held ones, and push them together. */
static void push_held_of_one_queue(void) {
  kv_queue *queue = held->queue;
  kv_reply *first = NULL, **end = &first, **link = &held;
  unsigned count = 0;
  while (*link) {
    kv_reply *reply = *link;
    if (reply->queue != queue) {
      link = &reply->next;
      continue;
    }
    *link = reply->next;
    reply->next = NULL;
    *end = reply;
    end = &reply->next;
    count++;
  }
  held_end = link;
  push(queue, first, end, count);
}

void kv_replies_release(void) {
  if (--hold_depth) return;
  while (held) push_held_of_one_queue();
}

/* ------------------------------------------------------------------ queues */

kv_queue *kv_queue_new(kv_error *error) {
  kv_fork_watch();
  kv_queue *queue = calloc(1, sizeof *queue);
  if (!queue) {
    kv_fail(error, KV_FAILED, "out of memory");
    return NULL;
  }
  queue->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (queue->fd < 0) {
    kv_fail(error, KV_FAILED, "cannot make a descriptor: %s", strerror(errno));
    free(queue);
    return NULL;
  }
  pthread_mutex_init(&queue->lock, NULL);
  queue->end = &queue->first;
  queue->fork_count = kv_fork_count();
  atomic_init(&queue->references, 1);
  return queue;
}

void kv_queue_retain(kv_queue *queue) {
  atomic_fetch_add_explicit(&queue->references, 1, memory_order_relaxed);
}

void kv_queue_release(kv_queue *queue) {
  if (atomic_fetch_sub_explicit(&queue->references, 1, memory_order_acq_rel) != 1) return;
  close(queue->fd);
  pthread_mutex_destroy(&queue->lock);
  free(queue);
}

int kv_queue_fd(const kv_queue *queue) {
  return queue->fd;
}

static bool inherited(const kv_queue *queue) {
  return queue->fork_count != kv_fork_count();
}

/* The list is empty: make the descriptor unreadable. */
static void unsignal(kv_queue *queue) {
  uint64_t count;
  if (!queue->signalled) return;
  ssize_t got = read(queue->fd, &count, sizeof count);
  (void)got;
  queue->signalled = false;
}

static bool refill(kv_queue *queue) {
  pthread_mutex_lock(&queue->lock);
  queue->taken = queue->first;
  queue->first = NULL;
  queue->end = &queue->first;
  if (!queue->taken) unsignal(queue);
  pthread_mutex_unlock(&queue->lock);
  return queue->taken != NULL;
}

kv_reply *kv_queue_next(kv_queue *queue) {
  if (inherited(queue)) return NULL;
  if (!queue->taken && !refill(queue)) return NULL;
  kv_reply *reply = queue->taken;
  queue->taken = reply->next;
  reply->next = NULL;
  if (reply->taken) reply->taken(reply);
  return reply;
}

bool kv_queue_pending(const kv_queue *queue) {
  if (inherited(queue)) return false;
  return queue->taken || atomic_load_explicit(&queue->signalled, memory_order_relaxed);
}

int kv_queue_wait(kv_queue *queue, double seconds) {
  if (inherited(queue)) return 0;
  int64_t deadline = seconds < 0 ? KV_NEVER : kv_deadline(kv_clock(), seconds);
  for (;;) {
    if (queue->taken || refill(queue)) return 1;
    int milliseconds = -1;
    if (deadline != KV_NEVER) {
      int64_t left = deadline - kv_clock();
      if (left <= 0) return 0;
      left = (left + 999999) / 1000000;
      milliseconds = left > 3600000 ? 3600000 : (int)left;
    }
    struct pollfd poll_fd = {.fd = queue->fd, .events = POLLIN};
    if (poll(&poll_fd, 1, milliseconds) < 0 && errno == EINTR) return -1;
  }
}

void kv_queue_free(kv_queue *queue) {
  if (!queue || inherited(queue)) return;
  pthread_mutex_lock(&queue->lock);
  queue->dead = true;
  kv_reply *list = queue->first;
  queue->first = NULL;
  queue->end = &queue->first;
  bool in_flight = queue->ops != NULL;
  pthread_mutex_unlock(&queue->lock);
  kv_reply *lists[] = {queue->taken, list};
  queue->taken = NULL;
  for (int i = 0; i < 2; i++) {
    while (lists[i]) {
      kv_reply *next = lists[i]->next;
      if (lists[i]->taken) lists[i]->taken(lists[i]);
      kv_reply_free(lists[i]);
      lists[i] = next;
    }
  }
  if (in_flight)
    kv_ops_cancel_queue(queue); /* consumes the owner's reference */
  else
    kv_queue_release(queue);
}
