/*
 * reactor.c - the one thread that does all I/O of all stores of the process.
 *
 * A turn: wait for descriptors, a posted task or a timer; run what is ready; run what was deferred; hand gathered
 * replies to their queues. Everything but kv_post(), kv_clock() and the references may be called on that thread only.
 *
 * The thread starts with the first reference and ends with the last. The last release may come from the thread itself, so
 * nobody joins it: it is detached and frees its own struct. A child after fork() starts with no reactor: what it inherited
 * belongs to a thread that does not exist there, and is left alone.
 */
#include "queue.h"
#include "poller.h"
#include "timer.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define TURN_EVENTS 64

struct reactor {
  int poller;
  struct kv_io wake; /* an eventfd */
  struct kv_timer_heap timers;
  struct kv_task *deferred, **deferred_end;
  int64_t now;
  /* A removed kv_io may still stand in the events of this turn: they are compared with `removed` by generation. */
  struct kv_poller_event *events;
  int event_count;

  pthread_mutex_t lock; /* guards the rest */
  struct kv_task *posted, **posted_end;
  bool sleeping; /* a post must write the eventfd */
  bool stop;
};

/* Guards `current`, `references`; replaced in a forked child, where the parent's may be locked for ever. */
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static struct reactor *current;
static unsigned references;
static unsigned guard_fork_count;

static _Thread_local struct reactor *self;

bool kv_on_reactor(void) {
  return self != NULL;
}

int64_t kv_now(void) {
  return self ? self->now : kv_clock();
}

/* ------------------------------------------------------------------ descriptors */

/* io->core is this mark while it is in the poll set. */
static char in_set;

void kv_io_set(struct kv_io *io, unsigned events) {
  bool is_new = io->core != &in_set;
  if (!is_new && io->events == events) return;
  io->events = events;
  if (kv_poller_set(self->poller, io->fd, events, io, is_new)) io->core = &in_set;
}

void kv_io_remove(struct kv_io *io) {
  if (io->core != &in_set) return;
  kv_poller_remove(self->poller, io->fd);
  io->core = NULL;
  io->events = 0;
  for (int i = 0; i < self->event_count; i++)
    if (self->events[i].data == io) self->events[i].data = NULL;
}

/* ------------------------------------------------------------------ timers */

void kv_timer_set(struct kv_timer *timer, int64_t at) {
  if (at == KV_NEVER) {
    kv_timer_stop(timer);
    return;
  }
  kv_timer_heap_set(&self->timers, timer, at);
}

void kv_timer_stop(struct kv_timer *timer) {
  kv_timer_heap_remove(&self->timers, timer);
}

static void run_timers(struct reactor *reactor) {
  struct kv_timer *timer;
  while ((timer = kv_timer_heap_due(&reactor->timers, reactor->now))) timer->fire(timer);
}

/* ------------------------------------------------------------------ tasks */

/* A task in a list has a non-NULL next: this end mark for the last one. */
static struct kv_task list_end;

static void append(struct kv_task **list, struct kv_task ***end, struct kv_task *task) {
  if (!*list) *end = list;
  task->next = &list_end;
  **end = task;
  *end = &task->next;
}

static void run_list(struct kv_task *task) {
  while (task && task != &list_end) {
    struct kv_task *next = task->next;
    task->next = NULL;
    task->run(task);
    task = next;
  }
}

void kv_defer(struct kv_task *task) {
  if (task->next) return;
  append(&self->deferred, &self->deferred_end, task);
}

static void wake(struct reactor *reactor) {
  uint64_t one = 1;
  ssize_t written;
  do written = write(reactor->wake.fd, &one, sizeof one);
  while (written < 0 && errno == EINTR);
}

static void post_to(struct reactor *reactor, struct kv_task *task) {
  pthread_mutex_lock(&reactor->lock);
  append(&reactor->posted, &reactor->posted_end, task);
  bool asleep = reactor->sleeping;
  reactor->sleeping = false;
  pthread_mutex_unlock(&reactor->lock);
  if (asleep) wake(reactor);
}

bool kv_post_if_running(struct kv_task *task) {
  if (self) {
    post_to(self, task);
    return true;
  }
  /* Under the guard, so that the reactor does not end meanwhile. */
  pthread_mutex_lock(&guard);
  struct reactor *reactor = current;
  if (reactor) post_to(reactor, task);
  pthread_mutex_unlock(&guard);
  return reactor != NULL;
}

void kv_post(struct kv_task *task) {
  (void)kv_post_if_running(task);
}

static void drain_wake(struct kv_io *io, unsigned events) {
  (void)events;
  uint64_t count;
  ssize_t got = read(io->fd, &count, sizeof count);
  (void)got;
}

static void run_posted(struct reactor *reactor) {
  pthread_mutex_lock(&reactor->lock);
  struct kv_task *list = reactor->posted;
  reactor->posted = NULL;
  pthread_mutex_unlock(&reactor->lock);
  run_list(list);
}

static void run_deferred(struct reactor *reactor) {
  /* What a deferred task defers runs in this turn too, but not for ever: the poller gets its turn. */
  for (int round = 0; reactor->deferred && round < 8; round++) {
    struct kv_task *list = reactor->deferred;
    reactor->deferred = NULL;
    run_list(list);
  }
}

/* ------------------------------------------------------------------ the thread */

static void run_events(struct reactor *reactor) {
  for (int i = 0; i < reactor->event_count; i++) {
    struct kv_io *io = reactor->events[i].data;
    if (!io) continue; /* removed by an earlier one of this turn */
    unsigned seen = reactor->events[i].events;
    io->ready(io, seen);
  }
  reactor->event_count = 0;
}

/* May the thread sleep, and until when? Posts from here on write the eventfd. */
static int64_t sleep_until(struct reactor *reactor, bool *stop) {
  int64_t until = reactor->deferred ? 0 : kv_timer_heap_next(&reactor->timers);
  pthread_mutex_lock(&reactor->lock);
  if (reactor->posted)
    until = 0;
  else
    reactor->sleeping = true;
  *stop = reactor->stop && !reactor->posted;
  pthread_mutex_unlock(&reactor->lock);
  return until;
}

static void reactor_free(struct reactor *reactor) {
  if (reactor->wake.fd >= 0) close(reactor->wake.fd);
  if (reactor->poller >= 0) kv_poller_close(reactor->poller);
  kv_timer_heap_free(&reactor->timers);
  pthread_mutex_destroy(&reactor->lock);
  free(reactor);
}

static void *reactor_main(void *argument) {
  struct reactor *reactor = argument;
  struct kv_poller_event events[TURN_EVENTS];
  self = reactor;
  reactor->events = events;
  for (;;) {
    bool stop;
    int64_t until = sleep_until(reactor, &stop);
    if (stop) break;
    reactor->event_count = kv_poller_wait(reactor->poller, events, TURN_EVENTS, until);
    pthread_mutex_lock(&reactor->lock);
    reactor->sleeping = false;
    pthread_mutex_unlock(&reactor->lock);
    reactor->now = kv_clock();
    kv_replies_hold();
    run_events(reactor);
    run_posted(reactor);
    run_timers(reactor);
    run_deferred(reactor);
    kv_replies_release();
  }
  self = NULL;
  reactor_free(reactor);
  return NULL;
}

static struct reactor *reactor_new(void) {
  struct reactor *reactor = calloc(1, sizeof *reactor);
  if (!reactor) return NULL;
  pthread_mutex_init(&reactor->lock, NULL);
  reactor->poller = kv_poller_open();
  reactor->wake.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  reactor->wake.ready = drain_wake;
  reactor->now = kv_clock();
  if (reactor->poller < 0 || reactor->wake.fd < 0 ||
      !kv_poller_set(reactor->poller, reactor->wake.fd, KV_IO_READ, &reactor->wake, true)) {
    reactor_free(reactor);
    return NULL;
  }
  return reactor;
}

static bool start_thread(struct reactor *reactor) {
  sigset_t all, before;
  pthread_attr_t attributes;
  pthread_t thread;
  sigfillset(&all);
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int failed = pthread_create(&thread, &attributes, reactor_main, reactor);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return failed == 0;
}

/* In a child after fork: the parent's reactor and references are not ours. */
static void forget_parent(void) {
  if (guard_fork_count == kv_fork_count()) return;
  guard_fork_count = kv_fork_count();
  guard = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
  current = NULL;
  references = 0;
}

kv_code kv_reactor_retain(kv_error *error) {
  kv_fork_watch();
  forget_parent();
  kv_code code = KV_OK;
  pthread_mutex_lock(&guard);
  if (references == 0) {
    struct reactor *reactor = reactor_new();
    int reason = errno;
    if (!reactor) {
      code = kv_fail(error, KV_FAILED, "cannot start the reactor: %s", strerror(reason));
    } else if (!start_thread(reactor)) {
      reactor_free(reactor);
      code = kv_fail(error, KV_FAILED, "cannot start the reactor's thread");
    } else {
      current = reactor;
    }
  }
  if (code == KV_OK) references++;
  pthread_mutex_unlock(&guard);
  return code;
}

void kv_reactor_release(void) {
  pthread_mutex_lock(&guard);
  struct reactor *last = --references == 0 ? current : NULL;
  if (last) {
    current = NULL;
    pthread_mutex_lock(&last->lock);
    last->stop = true;
    bool asleep = last->sleeping;
    last->sleeping = false;
    /* Under the lock: the thread frees the reactor as soon as it sees `stop`. */
    if (asleep) wake(last);
    pthread_mutex_unlock(&last->lock);
  }
  pthread_mutex_unlock(&guard);
}
