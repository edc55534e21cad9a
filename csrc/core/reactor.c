/*
 * reactor.c - the one thread that does all I/O of all stores of the process.
 *
 * A turn: wait for descriptors, a posted task or a timer; run what is ready; run what was deferred; hand gathered
 * replies to their queues. Everything but kv_post(), kv_clock() and the references may be called on that thread only.
 *
 * The thread starts with the first reference and ends with the last. The last release may come from the thread itself,
 * so nobody joins it: it is detached and frees its own struct. A child after fork() starts with no reactor: what it
 * inherited belongs to a thread that does not exist there, and is left alone.
 *
 * Loans. A caller who does nothing but wait for one answer after the other would pay two thread switches for each. So
 * the thread lends the reactor to him: he runs the turns himself, inside of kv_queue_wait(), and nobody else does
 * meanwhile. Who has it says `owner`; it changes under the lock, so all that the reactor owns is seen by whoever comes
 * next. After an answer the reactor lies IDLE for the next question, which usually comes within microseconds; the
 * thread looks every LOAN_CHECK whether it still does, and takes the reactor back when not. A wait that gets long gives
 * it back by itself, so an idle process has no wake-ups of this. The turn that brought the answer may be left at that:
 * whoever runs the next one ends it first.
 */
#include "queue.h"
#include "poller.h"
#include "timer.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define TURN_EVENTS 64
#define LOAN_CHECK (2 * KV_SECOND / 1000)
#define LOAN_PATIENCE (5 * KV_SECOND / 1000) /* a borrower waits no longer than this in one go */
#define LOAN_HOT (KV_SECOND / 1000)          /* who waits again within this time may borrow */
#define LOAN_FRUITLESS 3                     /* so many waits in a row may end by their own time */
#define LOAN_RELUCTANCE 32                   /* waits in the common way after a loan that was in vain */

enum owner { OWNER_THREAD, OWNER_BORROWER, OWNER_IDLE };

struct reactor {
  int poller;
  struct kv_io wake; /* an eventfd */
  struct kv_timer_heap timers;
  struct kv_task *deferred, **deferred_end;
  bool left; /* the last turn has not ended: what was deferred is to be done */
  int64_t now;
  /* A removed kv_io may still stand in the events of this turn: they are compared with `removed` by generation. */
  struct kv_poller_event events[TURN_EVENTS];
  int event_count;

  pthread_mutex_t lock; /* guards the rest */
  struct kv_task *posted, **posted_end;
  bool sleeping; /* a post must write the eventfd */
  bool stop;
  enum owner owner;
  bool nudged;          /* the borrower is not to sleep: look at what he waits for */
  bool recall;          /* the thread is to take the reactor back now */
  unsigned loans;       /* counts them */
  const void *borrower; /* the thread that borrowed last, or would like to */
  pthread_cond_t returned;

  _Atomic(const void *) wanted_by; /* who waits for an answer, and would like to borrow after it */
  bool lend;                       /* owner only: it was answered in this turn */
};

/* Guards `current`, `references`; replaced in a forked child, where the parent's may be locked for ever. */
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static struct reactor *current;
static unsigned references;

/* Backends at work whose drivers want the reactor's own thread. */
static atomic_uint bound_backends;

static _Thread_local struct reactor *self; /* the one that this thread runs */
static _Thread_local int64_t waited_at;    /* when this thread last had an answer; its address tells threads apart */

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

/* With the lock held. */
static void recall(struct reactor *reactor) {
  reactor->recall = true;
  pthread_cond_signal(&reactor->returned);
}

static void post_to(struct reactor *reactor, struct kv_task *task) {
  pthread_mutex_lock(&reactor->lock);
  append(&reactor->posted, &reactor->posted_end, task);
  bool asleep = reactor->sleeping;
  reactor->sleeping = false;
  /* The borrower will look himself when he waits for what he just asked. */
  if (reactor->owner == OWNER_IDLE && reactor->borrower != &waited_at) recall(reactor);
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
  if (reactor->posted || reactor->nudged)
    until = 0;
  else
    reactor->sleeping = true;
  reactor->nudged = false;
  *stop = reactor->stop && !reactor->posted && !reactor->deferred;
  pthread_mutex_unlock(&reactor->lock);
  return until;
}

static void reactor_free(struct reactor *reactor) {
  if (reactor->wake.fd >= 0) close(reactor->wake.fd);
  if (reactor->poller >= 0) kv_poller_close(reactor->poller);
  kv_timer_heap_free(&reactor->timers);
  pthread_cond_destroy(&reactor->returned);
  pthread_mutex_destroy(&reactor->lock);
  free(reactor);
}

enum turn_end { TURN_DONE, TURN_INTERRUPTED, TURN_STOP };

/* What the caller of a turn waits for; the thread waits for nothing. */
struct waiter {
  bool (*waiting)(void *argument);
  void *argument;
};

static bool has_it(const struct waiter *waiter) {
  return waiter && !waiter->waiting(waiter->argument);
}

static void end_turn(struct reactor *reactor) {
  reactor->left = false;
  kv_replies_hold();
  run_deferred(reactor);
  kv_replies_release();
}

/* One turn, which sleeps until `limit` at the latest. Answers go out before its end: what was deferred sends requests,
 * and those who serve them may well run in our place then. A borrower who has what he waits for does not even wait for
 * that: his next turn, or the thread's, begins with the end of this one. */
static enum turn_end turn(struct reactor *reactor, int64_t limit, const struct waiter *waiter) {
  bool stop;
  if (reactor->left) {
    reactor->now = kv_clock();
    end_turn(reactor);
    if (has_it(waiter)) return TURN_DONE;
  }
  int64_t until = sleep_until(reactor, &stop);
  if (stop) return TURN_STOP;
  int count = kv_poller_wait(reactor->poller, reactor->events, TURN_EVENTS, until < limit ? until : limit);
  reactor->event_count = count < 0 ? 0 : count;
  pthread_mutex_lock(&reactor->lock);
  reactor->sleeping = false;
  pthread_mutex_unlock(&reactor->lock);
  reactor->now = kv_clock();
  kv_replies_hold();
  run_events(reactor);
  run_posted(reactor);
  run_timers(reactor);
  kv_replies_release();
  reactor->left = reactor->deferred && has_it(waiter);
  if (reactor->deferred && !reactor->left) end_turn(reactor);
  return count < 0 ? TURN_INTERRUPTED : TURN_DONE;
}

static void wait_for_return(struct reactor *reactor) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_nsec += LOAN_CHECK;
  if (until.tv_nsec >= KV_SECOND) {
    until.tv_nsec -= KV_SECOND;
    until.tv_sec++;
  }
  pthread_cond_timedwait(&reactor->returned, &reactor->lock, &until);
}

/* The thread's side of a loan: out of the way until nobody borrows any more. */
static void lend(struct reactor *reactor) {
  unsigned seen;
  reactor->lend = false;
  atomic_store(&reactor->wanted_by, NULL);
  self = NULL;
  pthread_mutex_lock(&reactor->lock);
  reactor->owner = OWNER_IDLE;
  reactor->recall = false;
  do {
    seen = reactor->loans;
    /* Also when it is to stop: a borrower ends his turn first, and needs the lock for it. */
    if (!reactor->stop || reactor->owner == OWNER_BORROWER) wait_for_return(reactor);
  } while (reactor->owner == OWNER_BORROWER || (reactor->loans != seen && !reactor->recall && !reactor->stop));
  reactor->owner = OWNER_THREAD;
  pthread_mutex_unlock(&reactor->lock);
  self = reactor;
}

static void *reactor_main(void *argument) {
  struct reactor *reactor = argument;
  self = reactor;
  while (turn(reactor, KV_NEVER, NULL) != TURN_STOP)
    if (reactor->lend) lend(reactor);
  self = NULL;
  reactor_free(reactor);
  return NULL;
}

static struct reactor *reactor_new(void) {
  struct reactor *reactor = calloc(1, sizeof *reactor);
  if (!reactor) return NULL;
  pthread_mutex_init(&reactor->lock, NULL);
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&reactor->returned, &attributes);
  pthread_condattr_destroy(&attributes);
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

/* In a child after fork: the parent's reactor and references are not ours, nor is its part in it of the thread that
 * forked. */
__attribute__((no_sanitize("thread"))) /* which does not know that no other thread is left */
void kv_reactor_forget_parent(void) {
  guard = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
  current = NULL;
  references = 0;
  self = NULL;
  atomic_store(&bound_backends, 0);
}

kv_code kv_reactor_retain(kv_error *error) {
  kv_fork_watch();
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
    pthread_cond_signal(&last->returned);
    pthread_mutex_unlock(&last->lock);
  }
  pthread_mutex_unlock(&guard);
}

/* ------------------------------------------------------------------ loans, the borrower's side */

void kv_reactor_bind(int by) {
  atomic_fetch_add(&bound_backends, (unsigned)by);
}

void kv_reactor_nudge(void) {
  pthread_mutex_lock(&guard);
  if (current) {
    pthread_mutex_lock(&current->lock);
    bool asleep = current->sleeping;
    current->sleeping = false;
    current->nudged = true;
    if (current->owner == OWNER_IDLE) recall(current);
    pthread_mutex_unlock(&current->lock);
    if (asleep) wake(current);
  }
  pthread_mutex_unlock(&guard);
}

void kv_reactor_answered(const void *whom) {
  if (self && atomic_load_explicit(&self->wanted_by, memory_order_relaxed) == whom) self->lend = true;
}

/* NULL: it is not to be had now, but perhaps after the next answer. */
static struct reactor *borrow(const void *who) {
  struct reactor *reactor;
  bool granted = false;
  pthread_mutex_lock(&guard);
  reactor = current;
  if (reactor) {
    pthread_mutex_lock(&reactor->lock);
    granted = reactor->owner == OWNER_IDLE && !reactor->stop && !reactor->recall;
    if (granted) {
      reactor->owner = OWNER_BORROWER;
      reactor->borrower = &waited_at;
      reactor->loans++;
    } else if (reactor->owner == OWNER_THREAD) {
      atomic_store(&reactor->wanted_by, who);
      reactor->borrower = &waited_at;
    }
    pthread_mutex_unlock(&reactor->lock);
  }
  pthread_mutex_unlock(&guard);
  return granted ? reactor : NULL;
}

/* It may be gone right after. */
static void give_back(struct reactor *reactor, bool for_good) {
  self = NULL;
  pthread_mutex_lock(&reactor->lock);
  reactor->owner = OWNER_IDLE;
  if (for_good || reactor->stop) recall(reactor);
  pthread_mutex_unlock(&reactor->lock);
}

static _Thread_local unsigned reluctance; /* not again soon: the last loan was in vain */
static _Thread_local unsigned fruitless;  /* loans without an answer since the last with one */

int kv_reactor_run_while(bool (*waiting)(void *argument), void *argument, int64_t deadline) {
  int64_t now = kv_clock();
  if (self || atomic_load(&bound_backends) || now - waited_at > LOAN_HOT) return 0;
  if (reluctance && reluctance--) return 0;
  struct reactor *reactor = borrow(argument);
  if (!reactor) return 0;
  self = reactor;
  reactor->lend = false;
  int64_t limit = now + LOAN_PATIENCE < deadline ? now + LOAN_PATIENCE : deadline;
  struct waiter waiter = {waiting, argument};
  enum turn_end end = TURN_DONE;
  while (end == TURN_DONE && waiting(argument) && !atomic_load(&bound_backends) && kv_clock() < limit)
    end = turn(reactor, limit, &waiter);
  bool answered = !waiting(argument), interrupted = end == TURN_INTERRUPTED && !answered;
  /* A short sleep between two questions is no reason to give it back; one after the other is. */
  fruitless = answered ? 0 : fruitless + 1;
  bool vain = !answered && (limit != deadline || fruitless > LOAN_FRUITLESS);
  if (vain) reluctance = LOAN_RELUCTANCE;
  else waited_at = kv_clock();
  give_back(reactor, vain || interrupted || atomic_load(&bound_backends));
  return interrupted ? -1 : answered;
}

void kv_reactor_waited(void) {
  waited_at = kv_clock();
}
