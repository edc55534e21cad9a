/*
 * local_store.h - what the tests of the embedded store share: folders of their own, requests that wait for their
 * answer, watches and locks that are waited for, and child processes.
 */
#ifndef KV_TEST_LOCAL_STORE_H
#define KV_TEST_LOCAL_STORE_H

#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "kv.h"

#define UNUSED __attribute__((unused))

extern const struct kv_driver kv_driver_local;

/* Sanitizers have threads of their own, and take their time. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* ------------------------------------------------------------------ folders */

static char folder[64];

UNUSED static int remove_one(const char *path, const struct stat *status, int type, struct FTW *walk) {
  (void)status;
  (void)type;
  (void)walk;
  return remove(path);
}

UNUSED static void remove_folder(void) {
  if (folder[0]) nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
  folder[0] = 0;
}

/* A fresh folder; that of the test before is removed. */
UNUSED static const char *new_folder(void) {
  static bool registered;
  remove_folder();
  strcpy(folder, "/tmp/kv-test-XXXXXX");
  if (!mkdtemp(folder)) abort();
  if (!registered) atexit(remove_folder);
  registered = true;
  return folder;
}

/* ------------------------------------------------------------------ stores */

static kv_queue *queue;

/* Replies that nobody took may hold a watch, and with it a store. */
__attribute__((destructor)) static void give_up_queue(void) {
  kv_queue_free(queue);
}
static kv_error last_error;

/* Replies that came while another one was waited for. */
static kv_reply *early[256];
static size_t early_count;

UNUSED static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

UNUSED static kv_slice text(const char *string) {
  return (kv_slice){string, strlen(string)};
}

/* `url` as it is, or local:FOLDER with this query part when it begins with '?' or is NULL. */
UNUSED static kv_store *open_store(const char *url) {
  char full[300];
  kv_register(&kv_driver_local, NULL);
  if (!queue) queue = kv_queue_new(NULL);
  if (!url || *url == '?') {
    snprintf(full, sizeof full, "local:%s%s", folder, url ? url : "");
    url = full;
  }
  kv_store *store = kv_open(url, NULL, &last_error);
  if (!store) fprintf(stderr, "open %s: %s\n", url, last_error.message);
  return store;
}

UNUSED static void close_store(kv_store *store) {
  kv_close(store);
  CHECK(kv_close_wait(store, 10));
  kv_store_free(store);
}

/* In a child after fork: nothing of the parent's is used. */
UNUSED static void forget_parent(void) {
  queue = NULL;
  early_count = 0;
}

/* ------------------------------------------------------------------ requests */

/* Of the last request: what its reply said. */
static struct {
  kv_code code;
  char message[KV_MESSAGE_MAX];
  uint64_t revision, created;
  bool found, more;
  int failed_check;
} last;
static kv_reply *last_reply; /* freed by the next request */

#define WATCH_TAG 1

UNUSED static void keep_early(kv_reply *reply) {
  if (!reply) return;
  if (kv_reply_tag(reply) == WATCH_TAG || early_count == sizeof early / sizeof *early)
    kv_reply_free(reply);
  else
    early[early_count++] = reply;
}

UNUSED static kv_reply *next_reply(uint64_t tag) {
  for (size_t i = 0; i < early_count; i++) {
    kv_reply *reply = early[i];
    if (kv_reply_tag(reply) != tag) continue;
    early[i] = early[--early_count];
    return reply;
  }
  for (;;) {
    kv_reply *reply = kv_queue_next(queue);
    if (reply && kv_reply_tag(reply) == tag) return reply;
    keep_early(reply);
    if (!reply && kv_queue_wait(queue, 30) == 0) return NULL;
  }
}

static uint64_t last_tag = 1000;

UNUSED static kv_code keep_reply(kv_reply *reply) {
  kv_reply_free(last_reply);
  last_reply = reply;
  if (!reply) return last.code = KV_CODE_COUNT;
  last.code = kv_reply_code(reply);
  snprintf(last.message, sizeof last.message, "%s", kv_reply_message(reply));
  last.revision = kv_reply_revision(reply);
  last.created = kv_reply_created(reply);
  last.found = kv_reply_found(reply);
  last.more = kv_reply_more(reply);
  last.failed_check = kv_reply_failed_check(reply);
  return last.code;
}

UNUSED static kv_code ask(kv_store *store, const kv_request *request) {
  kv_reply *reply = NULL;
  uint64_t tag = ++last_tag;
  kv_code code = kv_submit(store, queue, request, tag, NULL, &reply, &last_error);
  if (code != KV_OK) {
    keep_reply(NULL);
    snprintf(last.message, sizeof last.message, "%s", last_error.message);
    return last.code = code;
  }
  return keep_reply(reply ? reply : next_reply(tag));
}

UNUSED static kv_code put(kv_store *store, const char *key, const char *value) {
  kv_request request = {.kind = KV_PUT, .key = text(key), .value = text(value)};
  return ask(store, &request);
}

UNUSED static kv_code put_if(kv_store *store, const char *key, const char *value, uint64_t revision) {
  kv_request request = {.kind = KV_PUT, .key = text(key), .value = text(value), .revision = revision,
                        .condition = revision ? KV_IF_REVISION : KV_IF_ABSENT};
  return ask(store, &request);
}

UNUSED static kv_code put_ttl(kv_store *store, const char *key, const char *value, double ttl) {
  kv_request request = {.kind = KV_PUT, .key = text(key), .value = text(value), .ttl = ttl};
  return ask(store, &request);
}

UNUSED static kv_code put_lease(kv_store *store, const char *key, const char *value, kv_lease *lease) {
  kv_request request = {.kind = KV_PUT, .key = text(key), .value = text(value), .lease = lease};
  return ask(store, &request);
}

UNUSED static kv_code delete_key(kv_store *store, const char *key) {
  kv_request request = {.kind = KV_DELETE, .key = text(key)};
  return ask(store, &request);
}

static kv_pair last_pair;

/* The value, terminated, or NULL. */
UNUSED static const char *get(kv_store *store, const char *key) {
  static char value[4096];
  kv_request request = {.kind = KV_GET, .key = text(key)};
  if (ask(store, &request) != KV_OK || !kv_reply_pair(last_reply, &last_pair)) return NULL;
  snprintf(value, sizeof value, "%.*s", (int)last_pair.value.size, last_pair.value.data);
  return value;
}

/* "a=1 b=2 dir/" of a listing. */
UNUSED static const char *list_with(kv_store *store, const kv_request *request) {
  static char out[8192];
  size_t used = 0;
  kv_pair pair;
  out[0] = 0;
  if (ask(store, request) != KV_OK) return NULL;
  while (kv_reply_pair(last_reply, &pair) && used < sizeof out - 1)
    used += (size_t)snprintf(out + used, sizeof out - used, pair.dir ? "%s%.*s/" : "%s%.*s=%.*s", used ? " " : "",
                             (int)pair.key.size, pair.key.data, (int)pair.value.size, pair.value.data);
  return out;
}

UNUSED static const char *list(kv_store *store, const char *directory) {
  kv_request request = {.kind = KV_LIST, .key = text(directory)};
  return list_with(store, &request);
}

/* ------------------------------------------------------------------ watches */

UNUSED static kv_watch *watch_with(kv_store *store, const kv_watch_options *options) {
  kv_watch *watch = NULL;
  if (kv_watch_open(store, queue, options, WATCH_TAG, &watch, &last_error) != KV_OK) {
    fprintf(stderr, "watch: %s\n", last_error.message);
    abort();
  }
  return watch;
}

UNUSED static kv_watch *watch_tree(kv_store *store, const char *directory) {
  kv_watch_options options = {.key = text(directory), .tree = true};
  return watch_with(store, &options);
}

/* The next event as "key=value@revision", "-key@revision", "!code" at the end, or "" when none came in time. */
UNUSED static const char *next_event(kv_watch *watch, double seconds) {
  static char out[4096];
  kv_event event;
  double until = seconds_now() + seconds;
  for (;;) {
    int got = kv_watch_next(watch, &event, &last_error);
    if (got < 0) snprintf(out, sizeof out, "!%s", kv_code_text(last_error.code));
    if (got > 0 && event.type == KV_EVENT_DELETE)
      snprintf(out, sizeof out, "-%.*s@%llu", (int)event.key.size, event.key.data, (unsigned long long)event.revision);
    if (got > 0 && event.type == KV_EVENT_PUT)
      snprintf(out, sizeof out, "%.*s=%.*s@%llu", (int)event.key.size, event.key.data, (int)event.value.size,
               event.value.data, (unsigned long long)event.revision);
    if (got) return out;
    double left = until - seconds_now();
    if (left <= 0) return "";
    kv_queue_wait(queue, left);
    keep_early(kv_queue_next(queue));
  }
}

UNUSED static bool wait_synced(kv_watch *watch) {
  double until = seconds_now() + 20;
  while (!kv_watch_synced(watch) || !kv_watch_connected(watch)) {
    if (seconds_now() > until) return false;
    kv_queue_wait(queue, 0.2);
    keep_early(kv_queue_next(queue));
  }
  return true;
}

/* ------------------------------------------------------------------ locks and leases */

UNUSED static kv_lock *new_lock(kv_store *store, const char *name, double ttl) {
  kv_lock_options options = {.name = text(name), .ttl = ttl, .value = text("me")};
  kv_lock *lock = kv_lock_new(store, &options, &last_error);
  if (!lock) abort();
  return lock;
}

UNUSED static kv_code acquire(kv_lock *lock, double timeout) {
  uint64_t tag = ++last_tag;
  kv_code code = kv_lock_acquire(lock, queue, timeout, tag, NULL, &last_error);
  return code == KV_OK ? keep_reply(next_reply(tag)) : code;
}

UNUSED static kv_code release(kv_lock *lock) {
  uint64_t tag = ++last_tag;
  kv_code code = kv_lock_release(lock, queue, 10, tag, NULL, &last_error);
  return code == KV_OK ? keep_reply(next_reply(tag)) : code;
}

UNUSED static kv_lease *new_lease(kv_store *store, double ttl) {
  uint64_t tag = ++last_tag;
  kv_lease *lease = NULL;
  if (kv_lease_open(store, queue, ttl, 5, tag, NULL, &lease, &last_error) != KV_OK) abort();
  keep_reply(next_reply(tag));
  return lease;
}

/* ------------------------------------------------------------------ children */

struct child {
  pid_t pid;
  int from, to; /* pipes: what it says, what it is told */
};

/* Run `body` in a forked child, which tells us by say() and waits for us by hear(). */
static int child_out = -1, child_in = -1;

UNUSED static struct child start_child(void (*body)(void *), void *argument) {
  int up[2], down[2];
  struct child child = {-1, -1, -1};
  if (pipe(up) != 0 || pipe(down) != 0) abort();
  fflush(NULL);
  child.pid = fork();
  if (child.pid == 0) {
    close(up[0]);
    close(down[1]);
    child_out = up[1];
    child_in = down[0];
    forget_parent();
    atomic_store(&check_failures, 0);
    signal(SIGPIPE, SIG_IGN);
    body(argument);
    _exit(atomic_load(&check_failures) ? 1 : 0);
  }
  close(up[1]);
  close(down[0]);
  child.from = up[0];
  child.to = down[1];
  return child;
}

UNUSED static void say(char what) {
  if (write(child_out, &what, 1) != 1) _exit(2);
}

/* What the parent says, or 0 when it closed the pipe. */
UNUSED static char hear(void) {
  char what;
  return read(child_in, &what, 1) == 1 ? what : 0;
}

UNUSED static char listen_to(const struct child *child) {
  char what;
  struct pollfd wait = {.fd = child->from, .events = POLLIN};
  if (poll(&wait, 1, 30000) != 1) return 0;
  return read(child->from, &what, 1) == 1 ? what : 0;
}

UNUSED static void tell(const struct child *child, char what) {
  CHECK_EQ(write(child->to, &what, 1), 1);
}

/* Its exit status, or 128 + the signal that ended it. */
UNUSED static int join_child(struct child *child) {
  int status = 0;
  close(child->to);
  while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR) continue;
  close(child->from);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

UNUSED static void kill_child(struct child *child) {
  kill(child->pid, SIGKILL);
  CHECK_EQ(join_child(child), 128 + SIGKILL);
}

#endif
