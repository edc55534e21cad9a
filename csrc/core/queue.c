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
#include <sys/socket.h>
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

/* A full socket needs no further byte: its reader has enough to wake for. */
static void tell_socket(kv_queue *queue) {
  ssize_t sent;
  do sent = send(queue->socket, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
}

/* Under the lock, so that `signalled` tells the truth. */
static void signal_owner(kv_queue *queue) {
  if (!queue->signalled) {
    wake(queue);
    if (queue->socket >= 0) tell_socket(queue);
  }
  queue->signalled = true;
}

/* Push a chain of replies, all for `queue`. Consumes the references that they carry. */
static void push(kv_queue *queue, kv_reply *first, kv_reply **end, unsigned count) {
  pthread_mutex_lock(&queue->lock);
  bool dead = queue->dead;
  if (!dead) {
    *queue->end = first;
    queue->end = end;
    queue->pending = true;
    kv_reactor_answered(queue);
    if (!queue->attended)
      signal_owner(queue);
    else if (!kv_on_reactor())
      kv_reactor_nudge();
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
  queue->socket = -1;
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
  if (queue->socket >= 0) close(queue->socket);
  pthread_mutex_destroy(&queue->lock);
  free(queue);
}

int kv_queue_fd(const kv_queue *queue) {
  return queue->fd;
}

static bool inherited(const kv_queue *queue) {
  return queue->fork_count != kv_fork_count();
}

void kv_queue_poke(kv_queue *queue) {
  if (inherited(queue)) return;
  pthread_mutex_lock(&queue->lock);
  queue->pending = true;
  signal_owner(queue);
  pthread_mutex_unlock(&queue->lock);
}

void kv_queue_notify(kv_queue *queue, int stream) {
  pthread_mutex_lock(&queue->lock);
  int before = queue->socket;
  queue->socket = stream;
  /* What the former one was told may never have been read. */
  if (stream >= 0 && queue->signalled) tell_socket(queue);
  pthread_mutex_unlock(&queue->lock);
  if (before >= 0) close(before);
}

/* The list is empty: make the descriptor unreadable. */
static void unsignal(kv_queue *queue) {
  uint64_t count;
  queue->pending = false;
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
  return queue->taken || atomic_load_explicit(&queue->pending, memory_order_relaxed);
}

static bool is_empty(void *queue) {
  return !atomic_load_explicit(&((kv_queue *)queue)->pending, memory_order_relaxed);
}

/* False: there is something to take already. */
static bool attend(kv_queue *queue) {
  pthread_mutex_lock(&queue->lock);
  bool nothing = !queue->first && !queue->signalled;
  queue->attended = nothing;
  pthread_mutex_unlock(&queue->lock);
  return nothing;
}

/* True: there is something to take. */
static bool attend_no_more(kv_queue *queue) {
  pthread_mutex_lock(&queue->lock);
  queue->attended = false;
  bool something = queue->first != NULL;
  /* The first reply is taken at once by who waited for it; the descriptor tells of any others. */
  if (something && queue->first->next) signal_owner(queue);
  pthread_mutex_unlock(&queue->lock);
  return something;
}

/* Run the reactor ourselves if it is lent: answers then come without a switch of threads. 1: there is something to
 * take, 0: wait in the common way, -1: a signal came. */
static int wait_as_reactor(kv_queue *queue, int64_t deadline) {
  if (!attend(queue)) return 0;
  int result = kv_reactor_run_while(is_empty, queue, deadline);
  return attend_no_more(queue) ? 1 : result < 0 ? -1 : 0;
}

static int wait_for_descriptor(const kv_queue *queue, int64_t deadline) {
  int milliseconds = -1;
  if (deadline != KV_NEVER) {
    int64_t left = (deadline - kv_clock() + 999999) / 1000000;
    milliseconds = left < 0 ? 0 : left > 3600000 ? 3600000 : (int)left;
  }
  struct pollfd poll_fd = {.fd = queue->fd, .events = POLLIN};
  return poll(&poll_fd, 1, milliseconds) < 0 && errno == EINTR ? -1 : 0;
}

const bool *kv_queue_flag(const kv_queue *queue) {
  return (const bool *)(const void *)&queue->pending;
}

int kv_queue_wait(kv_queue *queue, double seconds) {
  if (inherited(queue)) return 0;
  int64_t deadline = seconds < 0 ? KV_NEVER : kv_deadline(kv_clock(), seconds);
  while (!queue->taken && !refill(queue)) {
    if (deadline != KV_NEVER && kv_clock() >= deadline) return 0;
    int result = wait_as_reactor(queue, deadline);
    if (result == 0) result = wait_for_descriptor(queue, deadline);
    if (result < 0) return -1;
  }
  kv_reactor_waited();
  return 1;
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
