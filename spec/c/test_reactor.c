/*
 * test_reactor.c - who runs the reactor: its thread, or a caller who waits for one answer after the other (reactor.c,
 * "Loans"). A driver that does nothing but answer notes the thread in which it is asked.
 */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "check.h"
#include "core/core.h"
#include "drivers/driver.h"

/* ------------------------------------------------------------------ a driver */

/* "a" is answered at once, "defer" too, but something is left to do then, "late" in 3 ms, "never" never. */

static const struct kv_host *host;
static _Thread_local char here; /* its address tells threads apart */
static _Atomic(const char *) asked_in;
static atomic_uint done_later;

struct state {
  struct kv_backend *backend;
  struct kv_op *held; /* linked by next */
  struct kv_timer timer;
  struct kv_op *late;
  struct kv_task task;
};

static void do_later(struct kv_task *task) {
  (void)task;
  atomic_fetch_add(&done_later, 1);
}

static void answer_late(struct kv_timer *timer) {
  struct state *state = timer->data;
  struct kv_op *op = state->late;
  state->late = op->next;
  if (state->late) host->timer_set(timer, host->now() + 3000000);
  host->finish(op, KV_OK, NULL);
}

static void *driver_create(struct kv_backend *backend, const struct kv_config *config, kv_error *error) {
  (void)config;
  (void)error;
  struct state *state = calloc(1, sizeof *state);
  if (!state) return NULL;
  state->backend = backend;
  state->timer.fire = answer_late;
  state->timer.data = state;
  state->task.run = do_later;
  return state;
}

static void driver_start(void *data, struct kv_op *op) {
  struct state *state = data;
  atomic_store(&asked_in, &here);
  if (op->key.size == 1) {
    host->finish(op, KV_OK, NULL);
  } else if (strncmp(op->key.data, "defer", op->key.size) == 0) {
    host->defer(&state->task);
    host->finish(op, KV_OK, NULL);
  } else if (op->key.size == 4) {
    op->next = state->late;
    state->late = op;
    if (!op->next) host->timer_set(&state->timer, host->now() + 3000000);
  }
}

static void driver_cancel(void *data, struct kv_op *op) {
  struct state *state = data;
  for (struct kv_op **link = &state->late; *link; link = &(*link)->next) {
    if (*link != op) continue;
    *link = op->next;
    break;
  }
  host->finish(op, KV_CANCELLED, "let go");
}

static void driver_close(void *data) {
  host->timer_stop(&((struct state *)data)->timer);
  host->closed(((struct state *)data)->backend);
}

static void driver_attach(const struct kv_host *table) {
  host = table;
}

static const struct kv_scheme moving[] = {{"moving", false, 1}, {NULL, false, 0}};
static const struct kv_scheme bound[] = {{"bound", false, 1}, {NULL, false, 0}};

static const struct kv_driver drivers[] = {
  {.abi = KV_DRIVER_ABI, .name = "moving", .schemes = moving, .capabilities = KV_CAN_MOVE, .attach = driver_attach,
   .create = driver_create, .close = driver_close, .destroy = free, .start = driver_start, .cancel = driver_cancel},
  {.abi = KV_DRIVER_ABI, .name = "bound", .schemes = bound, .attach = driver_attach,
   .create = driver_create, .close = driver_close, .destroy = free, .start = driver_start, .cancel = driver_cancel},
};

/* ------------------------------------------------------------------ asking */

static kv_store *open_store(const char *url) {
  kv_register(&drivers[0], NULL);
  kv_register(&drivers[1], NULL);
  return kv_open(url, NULL, NULL);
}

static void end_store(kv_store *store) {
  kv_close(store);
  CHECK(kv_close_wait(store, 10));
  kv_store_free(store);
}

static void submit(kv_store *store, kv_queue *queue, const char *key, double timeout) {
  kv_reply *reply;
  kv_request request = {.kind = KV_PUT, .key = {key, strlen(key)}, .timeout = timeout};
  CHECK_EQ(kv_submit(store, queue, &request, 1, NULL, &reply, NULL), KV_OK);
}

static kv_code next_code(kv_queue *queue) {
  kv_reply *reply;
  while (!(reply = kv_queue_next(queue)))
    if (kv_queue_wait(queue, 20) == 0) return KV_CODE_COUNT;
  kv_code code = kv_reply_code(reply);
  kv_reply_free(reply);
  return code;
}

static kv_code ask(kv_store *store, kv_queue *queue, const char *key, double timeout) {
  submit(store, queue, key, timeout);
  return next_code(queue);
}

/* Ask until the driver is asked in our thread: at most 10 seconds, because a loaded machine may not let us be quick
 * enough. */
static bool becomes_ours(kv_store *store, kv_queue *queue) {
  int64_t until = kv_clock() + 10 * KV_SECOND;
  do {
    if (ask(store, queue, "a", 5) != KV_OK) return false;
    if (atomic_load(&asked_in) == &here) return true;
  } while (kv_clock() < until);
  return false;
}

static bool readable(kv_queue *queue, int milliseconds) {
  struct pollfd poll_fd = {.fd = kv_queue_fd(queue), .events = POLLIN};
  return poll(&poll_fd, 1, milliseconds) == 1;
}

/* ------------------------------------------------------------------ tests */

TEST(a_caller_who_asks_again_and_again_runs_it_himself) {
  kv_queue *queue = kv_queue_new(NULL);
  kv_store *store = open_store("moving://here");
  CHECK(becomes_ours(store, queue));
  end_store(store);
  kv_queue_free(queue);
}

TEST(a_driver_that_wants_the_thread_keeps_it) {
  kv_queue *queue = kv_queue_new(NULL);
  kv_store *other = open_store("moving://here"), *store = open_store("bound://here");
  CHECK(becomes_ours(other, queue));
  for (int i = 0; i < 300; i++) {
    CHECK_EQ(ask(store, queue, "a", 5), KV_OK);
    CHECK(i == 0 || atomic_load(&asked_in) != &here);
    CHECK_EQ(ask(other, queue, "a", 5), KV_OK);
    CHECK(atomic_load(&asked_in) != &here);
  }
  end_store(store);
  CHECK(becomes_ours(other, queue));
  end_store(other);
  kv_queue_free(queue);
}

TEST(what_nobody_waits_for_is_done_all_the_same) {
  kv_queue *queue = kv_queue_new(NULL);
  kv_store *store = open_store("moving://here");
  for (int i = 0; i < 20; i++) {
    CHECK(becomes_ours(store, queue));
    /* Now the reactor lies idle, and we turn to another event loop, with something in flight. */
    submit(store, queue, i % 2 ? "a" : "never", 0.02);
    CHECK(readable(queue, 10000));
    CHECK_EQ(next_code(queue), i % 2 ? KV_OK : KV_TIMEOUT);
    CHECK(atomic_load(&asked_in) != &here);
  }
  end_store(store);
  kv_queue_free(queue);
}

static bool comes_to(unsigned count) {
  int64_t until = kv_clock() + 10 * KV_SECOND;
  while (atomic_load(&done_later) < count && kv_clock() < until) nanosleep(&(struct timespec){0, 100000}, NULL);
  return atomic_load(&done_later) == count;
}

TEST(what_an_answer_leaves_to_do_is_done) {
  kv_queue *queue = kv_queue_new(NULL);
  kv_store *store = open_store("moving://here");
  atomic_store(&done_later, 0);
  for (unsigned i = 1; i <= 20; i++) {
    CHECK(becomes_ours(store, queue));
    CHECK_EQ(ask(store, queue, "defer", 5), KV_OK);
    if (i % 2) CHECK_EQ(ask(store, queue, "a", 5), KV_OK); /* by the next turn, else by the thread */
    CHECK(comes_to(i));
  }
  /* One answer after the other does not keep it from being done. */
  CHECK(becomes_ours(store, queue));
  for (unsigned i = 0; i < 1000; i++) {
    CHECK_EQ(ask(store, queue, "defer", 5), KV_OK);
    CHECK(atomic_load(&done_later) + 2 >= 20 + i / 2);
  }
  end_store(store);
  kv_queue_free(queue);
}

TEST(short_sleeps_between_questions_keep_it) {
  kv_queue *queue = kv_queue_new(NULL);
  kv_store *store = open_store("moving://here");
  int ours = 0;
  for (int64_t until = kv_clock() + 20 * KV_SECOND; ours < 10 && kv_clock() < until;) {
    ours = ask(store, queue, "a", 5) == KV_OK && atomic_load(&asked_in) == &here ? ours + 1 : 0;
    CHECK_EQ(kv_queue_wait(queue, 0.001), 0);
  }
  CHECK_EQ(ours, 10);
  end_store(store);
  kv_queue_free(queue);
}

TEST(the_descriptor_tells_of_what_was_not_taken) {
  kv_queue *queue = kv_queue_new(NULL);
  kv_store *store = open_store("moving://here");
  for (int i = 0; i < 20; i++) {
    CHECK(becomes_ours(store, queue));
    for (int n = 0; n < 3; n++) submit(store, queue, "a", 5);
    CHECK_EQ(next_code(queue), KV_OK);
    for (int n = 0; n < 2; n++) {
      CHECK(readable(queue, 10000));
      CHECK(kv_queue_pending(queue));
      CHECK_EQ(next_code(queue), KV_OK);
    }
    CHECK(kv_queue_next(queue) == NULL);
    CHECK(!readable(queue, 0));
    CHECK(!kv_queue_pending(queue));
  }
  end_store(store);
  kv_queue_free(queue);
}

TEST(long_waits_end_in_time) {
  kv_queue *queue = kv_queue_new(NULL);
  kv_store *store = open_store("moving://here");
  for (int i = 0; i < 10; i++) {
    CHECK(becomes_ours(store, queue));
    CHECK_EQ(ask(store, queue, "late", 5), KV_OK);
    CHECK(becomes_ours(store, queue));
    CHECK_EQ(ask(store, queue, "never", 0.03), KV_TIMEOUT);
    CHECK(becomes_ours(store, queue));
    CHECK_EQ(kv_queue_wait(queue, 0.002), 0);
    CHECK_EQ(kv_queue_wait(queue, 0), 0);
  }
  end_store(store);
  kv_queue_free(queue);
}

struct asker {
  kv_store *store;
  int count;
  const char *key;
};

static void *ask_often(void *argument) {
  struct asker *asker = argument;
  kv_queue *queue = kv_queue_new(NULL);
  for (int i = 0; i < asker->count; i++) CHECK_EQ(ask(asker->store, queue, asker->key, 20), KV_OK);
  kv_queue_free(queue);
  return NULL;
}

TEST(many_threads_at_once) {
  kv_store *store = open_store("moving://here"), *other = open_store("moving://there");
  struct asker askers[] = {{store, 3000, "a"}, {store, 3000, "a"}, {other, 3000, "a"}, {other, 50, "late"}};
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, ask_often, &askers[i]);
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  end_store(store);
  end_store(other);
}

TEST(stores_come_and_go_while_it_is_lent) {
  kv_queue *queue = kv_queue_new(NULL);
  for (int i = 0; i < 50; i++) {
    kv_store *store = open_store("moving://here");
    CHECK(becomes_ours(store, queue));
    if (i % 2) submit(store, queue, "never", 60);
    kv_close(store);
    if (i % 2) CHECK_EQ(next_code(queue), KV_CLOSED);
    if (i % 3) CHECK(kv_close_wait(store, 10));
    kv_store_free(store);
  }
  kv_queue_free(queue);
}

/* The reactor ends under the hands of the one who runs it. */
TEST(the_last_store_closes_while_we_run_it) {
  kv_queue *queue = kv_queue_new(NULL);
  for (int i = 0; i < 20; i++) {
    kv_store *store = open_store("moving://here");
    CHECK(becomes_ours(store, queue));
    kv_close(store);
    CHECK_EQ(kv_queue_wait(queue, 0.01), 0);
    CHECK(kv_close_wait(store, 10));
    kv_store_free(store);
  }
  kv_queue_free(queue);
}

static void note_signal(int number) {
  (void)number;
}

static atomic_bool pestering;

/* Again and again: a signal that comes before the wait begins is not seen by it. */
static void *pester(void *argument) {
  const struct timespec pause = {0, 2000000};
  while (atomic_load(&pestering)) {
    pthread_kill(*(pthread_t *)argument, SIGUSR1);
    nanosleep(&pause, NULL);
  }
  return NULL;
}

TEST(a_signal_ends_the_wait) {
  kv_queue *queue = kv_queue_new(NULL);
  kv_store *store = open_store("moving://here");
  struct sigaction action = {.sa_handler = note_signal}, before;
  pthread_t thread, main_thread = pthread_self();
  sigaction(SIGUSR1, &action, &before);
  for (int i = 0; i < 10; i++) {
    CHECK(becomes_ours(store, queue));
    submit(store, queue, "never", 60);
    atomic_store(&pestering, true);
    pthread_create(&thread, NULL, pester, &main_thread);
    CHECK_EQ(kv_queue_wait(queue, 30), -1);
    atomic_store(&pestering, false);
    pthread_join(thread, NULL);
  }
  sigaction(SIGUSR1, &before, NULL);
  kv_close(store);
  for (int i = 0; i < 10; i++) CHECK_EQ(next_code(queue), KV_CLOSED);
  CHECK(kv_close_wait(store, 10));
  kv_store_free(store);
  kv_queue_free(queue);
}

CHECK_MAIN()
