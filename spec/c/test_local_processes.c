/*
 * test_local_processes.c - the embedded store used by several processes: what they see of each other, and what is
 * left when one of them is forked, stopped or killed.
 *
 * Every child opens a store of its own after fork().
 */
#include "local_store.h"

#include <dirent.h>
#include <lmdb.h>
#include <sys/resource.h>

/* Beside what other processes get: the time that a child with a sanitizer needs to die. */
#define SOON 10.0

static bool wait_for_state(kv_lock *lock, kv_lock_state state) {
  double until = seconds_now() + 20;
  while (kv_lock_get_state(lock) != state) {
    if (seconds_now() > until) return false;
    usleep(200);
  }
  return true;
}

/* ------------------------------------------------------------------ what they see of each other */

static void write_many(void *argument) {
  char key[32];
  (void)argument;
  kv_store *store = open_store(NULL);
  for (int i = 0; i < 200; i++) {
    snprintf(key, sizeof key, "d/%03d", i);
    CHECK_EQ(put(store, key, "v"), KV_OK);
  }
  close_store(store);
}

TEST(a_watch_sees_what_another_process_writes) {
  char expected[64];
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_watch *watch = watch_tree(store, "d"), *other = watch_tree(store, "e");
  CHECK(wait_synced(watch) && wait_synced(other));
  struct child child = start_child(write_many, NULL);
  for (int i = 0; i < 200; i++) {
    snprintf(expected, sizeof expected, "d/%03d=v@%d", i, i + 1);
    CHECK_STR(next_event(watch, 20), expected);
  }
  CHECK_EQ(join_child(&child), 0);
  CHECK_STR(next_event(other, 0), "");
  CHECK_STR(get(store, "d/199"), "v");
  kv_watch_free(watch);
  kv_watch_free(other);
  close_store(store);
}

static void write_below(void *argument) {
  char url[100];
  (void)argument;
  snprintf(url, sizeof url, "local:%s/below", folder);
  kv_store *store = open_store(url);
  CHECK_EQ(put(store, "a", "1"), KV_OK);
  close_store(store);
}

TEST(a_relative_path_is_that_of_the_beginning) {
  char before[1000];
  REQUIRE(getcwd(before, sizeof before) != NULL);
  new_folder();
  REQUIRE(chdir(folder) == 0);
  kv_store *store = open_store("local:below");
  REQUIRE(store != NULL);
  CHECK_EQ(chdir("/"), 0);
  CHECK_EQ(put(store, "b", "1"), KV_OK);
  kv_watch *watch = watch_tree(store, "");
  CHECK_STR(next_event(watch, 5), "b=1@1");
  CHECK(wait_synced(watch));
  struct child child = start_child(write_below, NULL);
  CHECK_STR(next_event(watch, 20), "a=1@2");
  CHECK_EQ(join_child(&child), 0);
  kv_lock *lock = new_lock(store, "l", 5); /* makes a file */
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(release(lock), KV_OK);
  kv_lock_free(lock);
  kv_watch_free(watch);
  close_store(store);
  CHECK_EQ(chdir(before), 0);
}

static void write_short_lived(void *argument) {
  (void)argument;
  kv_store *store = open_store(NULL);
  CHECK_EQ(put_ttl(store, "a", "1", 0.3), KV_OK);
  _exit(0); /* without closing: others have to remove the key */
}

TEST(a_watch_sees_the_end_of_what_another_process_left) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_watch *watch = watch_tree(store, "");
  CHECK(wait_synced(watch));
  struct child child = start_child(write_short_lived, NULL);
  CHECK_EQ(join_child(&child), 0);
  CHECK_STR(next_event(watch, 20), "a=1@1");
  double begun = seconds_now();
  CHECK_STR(next_event(watch, 20), "-a@2");
  CHECK(seconds_now() - begun < 0.3 + SOON);
  kv_watch_free(watch);
  close_store(store);
}

static void open_and_put(void *argument) {
  char key[32];
  (void)argument;
  hear(); /* all at the same time */
  kv_store *store = open_store(NULL);
  snprintf(key, sizeof key, "p%d", (int)getpid());
  for (int i = 0; i < 20; i++) CHECK_EQ(put(store, key, "v"), KV_OK);
  close_store(store);
}

TEST(processes_that_open_a_new_folder_at_the_same_time) {
  enum { COUNT = 6 };
  struct child children[COUNT];
  for (int round = 0; round < 5; round++) {
    new_folder();
    for (int i = 0; i < COUNT; i++) children[i] = start_child(open_and_put, NULL);
    for (int i = 0; i < COUNT; i++) tell(&children[i], 'g');
    for (int i = 0; i < COUNT; i++) CHECK_EQ(join_child(&children[i]), 0);
    kv_store *store = open_store(NULL);
    REQUIRE(store != NULL);
    kv_request request = {.kind = KV_LIST, .key = text("")};
    CHECK_EQ(ask(store, &request), KV_OK);
    CHECK_EQ(last.revision, COUNT * 20);
    int count = 0;
    while (kv_reply_pair(last_reply, &last_pair)) count++;
    CHECK_EQ(count, COUNT);
    close_store(store);
  }
}

static void put_large_map(void *argument) {
  char key[32];
  static char value[10000];
  (void)argument;
  memset(value, 'v', sizeof value - 1);
  kv_store *store = open_store("?sync=none");
  for (int i = 0; i < 1000; i++) {
    snprintf(key, sizeof key, "large/%d", i);
    CHECK_EQ(put(store, key, value), KV_OK);
  }
  close_store(store);
}

TEST(a_process_with_a_smaller_map_follows) {
  new_folder();
  kv_store *store = open_store("?map_size=1048576");
  REQUIRE(store != NULL);
  CHECK_EQ(put(store, "a", "1"), KV_OK);
  kv_watch *watch = watch_tree(store, "after");
  CHECK(wait_synced(watch));
  struct child child = start_child(put_large_map, NULL);
  CHECK_EQ(join_child(&child), 0);
  CHECK_STR(get(store, "a"), "1");
  CHECK(get(store, "large/999") != NULL);
  CHECK_EQ(put(store, "after/a", "2"), KV_OK);
  CHECK_STR(next_event(watch, 5), "after/a=2@1002");
  kv_watch_free(watch);
  close_store(store);
}

/* ------------------------------------------------------------------ owners that die */

static void hold_lock(void *argument) {
  (void)argument;
  kv_store *store = open_store(NULL);
  kv_lock *lock = new_lock(store, "l", 30);
  say(acquire(lock, 20) == KV_OK ? 'h' : 'f');
  for (;;) pause();
}

TEST(a_lock_of_a_killed_process_is_free_at_once) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  int at_once = 0;
  for (int round = 0; round < 10; round++) {
    struct child child = start_child(hold_lock, NULL);
    CHECK_EQ(listen_to(&child), 'h');
    kv_lock *lock = new_lock(store, "l", 30);
    uint64_t tag = ++last_tag;
    CHECK_EQ(kv_lock_acquire(lock, queue, 20, tag, NULL, &last_error), KV_OK);
    CHECK(wait_for_state(lock, KV_LOCK_WAITING));
    CHECK_EQ(acquire(lock, 0), KV_HELD);
    if (round % 2) usleep(20000); /* also when it has not begun to wait yet */
    kill_child(&child);
    double dead = seconds_now();
    CHECK_EQ(keep_reply(next_reply(tag)), KV_OK);
    double took = seconds_now() - dead;
    CHECK(took < SOON);
    if (took < 0.3) at_once++;
    CHECK_EQ(release(lock), KV_OK);
    kv_lock_free(lock);
  }
  CHECK(at_once >= 5 || SANITIZED); /* but when the machine has something else to do */
  close_store(store);
}

static void wait_for_lock(void *argument) {
  (void)argument;
  kv_store *store = open_store(NULL);
  kv_lock *lock = new_lock(store, "l", 30);
  uint64_t tag = ++last_tag;
  CHECK_EQ(kv_lock_acquire(lock, queue, 60, tag, NULL, &last_error), KV_OK);
  CHECK(wait_for_state(lock, KV_LOCK_WAITING));
  double until = seconds_now() + 0.1; /* in line by then: the parent looks at the order */
  while (seconds_now() < until) usleep(1000);
  say('w');
  say(keep_reply(next_reply(tag)) == KV_OK ? 'h' : 'f');
  for (;;) pause();
}

TEST(a_killed_waiter_is_passed_over) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_lock *lock = new_lock(store, "l", 30);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  uint64_t token = kv_lock_token(lock);
  struct child second = start_child(wait_for_lock, NULL);
  CHECK_EQ(listen_to(&second), 'w');
  struct child third = start_child(wait_for_lock, NULL);
  CHECK_EQ(listen_to(&third), 'w');
  kill_child(&second);
  CHECK_EQ(release(lock), KV_OK);
  CHECK_EQ(listen_to(&third), 'h');
  CHECK_EQ(acquire(lock, 0), KV_TIMEOUT);
  kill_child(&third);
  CHECK_EQ(acquire(lock, 20), KV_OK);
  CHECK(kv_lock_token(lock) > token + 2);
  CHECK_EQ(release(lock), KV_OK);
  kv_lock_free(lock);
  close_store(store);
}

static void keep_key_alive(void *argument) {
  (void)argument;
  kv_store *store = open_store(NULL);
  kv_request request = {.kind = KV_PUT, .key = text("a"), .value = text("1"), .flags = KV_KEEP_ALIVE};
  say(ask(store, &request) == KV_OK ? 'p' : 'f');
  for (;;) pause();
}

TEST(a_key_kept_alive_ends_with_its_process) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_watch *watch = watch_tree(store, "");
  CHECK(wait_synced(watch));
  struct child child = start_child(keep_key_alive, NULL);
  CHECK_EQ(listen_to(&child), 'p');
  CHECK_STR(next_event(watch, 5), "a=1@1");
  CHECK_STR(get(store, "a"), "1");
  kill_child(&child);
  CHECK(get(store, "a") == NULL); /* at once, whether somebody removed it or not */
  CHECK_STR(next_event(watch, SOON), "-a@2");
  kv_watch_free(watch);
  close_store(store);
}

TEST(what_dead_processes_left_is_removed_by_the_next_one) {
  char path[100];
  new_folder();
  struct child child = start_child(hold_lock, NULL);
  CHECK_EQ(listen_to(&child), 'h');
  kill_child(&child);
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_lock *lock = new_lock(store, "l", 30);
  CHECK_EQ(acquire(lock, 0), KV_OK);
  CHECK_EQ(release(lock), KV_OK);
  kv_lock_free(lock);
  close_store(store);
  snprintf(path, sizeof path, "%s/owners", folder);
  CHECK(rmdir(path) == 0); /* nobody's file is left */
}

/* Hold a lock, be stopped, and go on. */
static void be_stopped(void *argument) {
  (void)argument;
  kv_store *store = open_store(NULL);
  kv_lock *lock = new_lock(store, "l", 2);
  kv_txn *txn = kv_txn_new(store, NULL);
  say(acquire(lock, 20) == KV_OK && kv_txn_guard(txn, lock, NULL) == KV_OK ? 'h' : 'f');
  kv_txn_put(txn, text("a"), text("late"), 0, 0, NULL, NULL);
  hear(); /* stopped in here */
  bool held = kv_lock_held(lock);
  kv_request request = {.kind = KV_TXN, .txn = txn};
  kv_code code = ask(store, &request);
  say(!held && code == KV_MODIFIED ? 'r' : 'f');
  close_store(store);
}

TEST(a_stopped_holder_loses_its_lock) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  struct child child = start_child(be_stopped, NULL);
  CHECK_EQ(listen_to(&child), 'h');
  kill(child.pid, SIGSTOP);
  kv_lock *lock = new_lock(store, "l", 5);
  double begun = seconds_now();
  CHECK_EQ(acquire(lock, 20), KV_OK);
  CHECK(seconds_now() - begun < 2 + SOON);
  tell(&child, 'g');
  kill(child.pid, SIGCONT);
  CHECK_EQ(listen_to(&child), 'r');
  CHECK(kv_lock_held(lock));
  CHECK_EQ(join_child(&child), 0);
  CHECK(get(store, "a") == NULL);
  CHECK_EQ(release(lock), KV_OK);
  kv_lock_free(lock);
  close_store(store);
}

/* ------------------------------------------------------------------ fork */

static kv_store *inherited;
static kv_watch *inherited_watch;
static kv_lock *inherited_lock;

static void use_inherited(void *argument) {
  (void)argument;
  kv_event event;
  kv_queue *own = kv_queue_new(NULL);
  kv_reply *reply = NULL;
  kv_request request = {.kind = KV_PUT, .key = text("a"), .value = text("child")};
  CHECK_EQ(kv_submit(inherited, own, &request, 1, NULL, &reply, NULL), KV_CLOSED);
  CHECK_EQ(kv_watch_next(inherited_watch, &event, &last_error), -1);
  CHECK(!kv_lock_held(inherited_lock));
  kv_watch_free(inherited_watch);
  kv_lock_free(inherited_lock);
  kv_store_free(inherited);
  kv_queue_free(own);
  kv_store *store = open_store(NULL);
  CHECK_EQ(put(store, "b", "child"), KV_OK);
  kv_lock *lock = new_lock(store, "l", 30);
  CHECK_EQ(acquire(lock, 0), KV_TIMEOUT); /* the parent's, still */
  kv_lock_free(lock);
  say('d');
  hear();
  close_store(store);
}

TEST(a_child_does_not_touch_what_it_inherited) {
  new_folder();
  inherited = open_store(NULL);
  REQUIRE(inherited != NULL);
  CHECK_EQ(put(inherited, "a", "1"), KV_OK);
  inherited_watch = watch_with(inherited, &(kv_watch_options){.key = text("b")});
  inherited_lock = new_lock(inherited, "l", 30);
  CHECK_EQ(acquire(inherited_lock, 5), KV_OK);
  CHECK(wait_synced(inherited_watch));
  struct child child = start_child(use_inherited, NULL);
  CHECK_EQ(listen_to(&child), 'd');
  CHECK(strncmp(next_event(inherited_watch, 5), "b=child@", 8) == 0);
  CHECK_EQ(put(inherited, "a", "2"), KV_OK);
  tell(&child, 'e');
  CHECK_EQ(join_child(&child), 0);
  CHECK(kv_lock_held(inherited_lock));
  CHECK_STR(get(inherited, "a"), "2");
  /* A second one, to see that the end of the first took no lock of ours along. */
  child = start_child(use_inherited, NULL);
  CHECK_EQ(listen_to(&child), 'd');
  tell(&child, 'e');
  CHECK_EQ(join_child(&child), 0);
  CHECK_EQ(release(inherited_lock), KV_OK);
  kv_lock_free(inherited_lock);
  kv_watch_free(inherited_watch);
  close_store(inherited);
}

TEST(descriptors_are_closed_on_exec) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_lock *lock = new_lock(store, "l", 5);
  kv_watch *watch = watch_tree(store, "");
  CHECK(wait_synced(watch));
  CHECK_EQ(acquire(lock, 5), KV_OK);
  DIR *directory = opendir("/proc/self/fd");
  REQUIRE(directory != NULL);
  struct dirent *entry;
  int ours = 0;
  while ((entry = readdir(directory))) {
    char path[300], target[200];
    int fd = atoi(entry->d_name);
    snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
    ssize_t size = readlink(path, target, sizeof target - 1);
    target[size > 0 ? size : 0] = 0;
    bool is_ours = strncmp(target, folder, strlen(folder)) == 0 || strstr(target, "inotify") ||
                   strstr(target, "eventfd") || strstr(target, "eventpoll");
    if (!is_ours) continue;
    ours++;
    if (!(fcntl(fd, F_GETFD) & FD_CLOEXEC)) fprintf(stderr, "%s stays open\n", target);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  }
  closedir(directory);
  CHECK(ours >= 8);
  kv_watch_free(watch);
  CHECK_EQ(release(lock), KV_OK);
  kv_lock_free(lock);
  close_store(store);
}

/* ------------------------------------------------------------------ a process that is stopped inside of a commit */

static void hold_write_lock(void *argument) {
  MDB_env *env;
  MDB_txn *txn;
  (void)argument;
  bool good = mdb_env_create(&env) == 0 && mdb_env_set_mapsize(env, 1 << 30) == 0 &&
              mdb_env_open(env, folder, MDB_NOTLS, 0600) == 0 && mdb_txn_begin(env, NULL, 0, &txn) == 0;
  say(good ? 'h' : 'f');
  for (;;) pause();
}

TEST(nobody_waits_for_ever_for_a_stopped_process) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  CHECK_EQ(put(store, "a", "1"), KV_OK);
  struct child child = start_child(hold_write_lock, NULL);
  REQUIRE(listen_to(&child) == 'h');
  kv_request request = {.kind = KV_PUT, .key = text("a"), .value = text("2"), .timeout = 0.2};
  CHECK_EQ(ask(store, &request), KV_TIMEOUT); /* not begun: certainly not applied */
  CHECK_STR(get(store, "a"), "1");
  kv_lock *lock = new_lock(store, "l", 5);
  CHECK_EQ(acquire(lock, 0.2), KV_TIMEOUT);
  kv_lock_free(lock);
  /* A close in the meantime is bounded, and so is one of a store that shares the folder. */
  kv_store *other = open_store(NULL);
  REQUIRE(other != NULL);
  CHECK_STR(get(other, "a"), "1");
  uint64_t tag = ++last_tag;
  kv_reply *reply = NULL;
  request.timeout = 20;
  CHECK_EQ(kv_submit(other, queue, &request, tag, NULL, &reply, NULL), KV_OK);
  double begun = seconds_now();
  close_store(other);
  close_store(store);
  CHECK(seconds_now() - begun < 5);
  CHECK_EQ(keep_reply(next_reply(tag)), KV_CLOSED);
  /* The folder is still being closed: a new store has to wait for that, and is told so in time. */
  other = open_store(NULL);
  REQUIRE(other != NULL);
  kv_request read = {.kind = KV_GET, .key = text("a"), .timeout = 0.2};
  CHECK_EQ(ask(other, &read), KV_TIMEOUT);
  begun = seconds_now();
  close_store(other);
  CHECK(seconds_now() - begun < 5);
  /* It dies with the lock: whoever comes next takes over. */
  kill_child(&child);
  store = open_store(NULL);
  REQUIRE(store != NULL);
  CHECK_STR(get(store, "a"), "1");
  CHECK_EQ(put(store, "a", "3"), KV_OK);
  close_store(store);
}

/* ------------------------------------------------------------------ kill -9 in the middle of durable writes */

#define KILL_ROUNDS 50
#define WRITERS 4 /* requests in flight */

struct written {
  uint32_t key, value;
};

/* Write one key after the other, several in flight, and tell of each acknowledged one. */
static void write_until_killed(void *argument) {
  uint32_t next = *(const uint32_t *)argument;
  char key[32], value[300];
  kv_store *store = open_store(NULL);
  kv_reply *reply = NULL;
  memset(value, 'v', sizeof value);
  for (int i = 0; i < WRITERS; i++, next++) {
    snprintf(key, sizeof key, "k%u", next % 97);
    memcpy(value, &next, sizeof next);
    kv_request request = {.kind = KV_PUT, .key = text(key), .value = {value, sizeof value}};
    CHECK_EQ(kv_submit(store, queue, &request, next, NULL, &reply, NULL), KV_OK);
  }
  for (;;) {
    while (!(reply = kv_queue_next(queue))) kv_queue_wait(queue, 10);
    uint32_t done = (uint32_t)kv_reply_tag(reply);
    CHECK_EQ(kv_reply_code(reply), KV_OK);
    kv_reply_free(reply);
    struct written written = {done % 97, done};
    if (write(child_out, &written, sizeof written) != sizeof written) _exit(3);
    snprintf(key, sizeof key, "k%u", next % 97);
    memcpy(value, &next, sizeof next);
    kv_request request = {.kind = KV_PUT, .key = text(key), .value = {value, sizeof value}};
    CHECK_EQ(kv_submit(store, queue, &request, next++, NULL, &reply, NULL), KV_OK);
  }
}

/* Read what it tells until it was killed, after `limit` writes. */
static uint32_t hear_until_killed(struct child *child, uint32_t *latest, unsigned limit, uint32_t next) {
  struct written written;
  unsigned count = 0;
  bool killed = false;
  while (read(child->from, &written, sizeof written) == sizeof written) {
    if (written.value > latest[written.key]) latest[written.key] = written.value;
    if (written.value >= next) next = written.value + 1;
    if (++count < limit || killed) continue;
    kill(child->pid, SIGKILL);
    killed = true;
  }
  return next;
}

TEST(nothing_acknowledged_is_lost_by_a_kill) {
  uint32_t latest[97] = {0}, next = 1;
  unsigned seed = (unsigned)getpid();
  char key[32];
  new_folder();
  kv_store *store = open_store(NULL); /* open all the time: a second process that goes on */
  REQUIRE(store != NULL);
  CHECK_EQ(put(store, "parent", "0"), KV_OK);
  for (int round = 0; round < KILL_ROUNDS; round++) {
    struct child child = start_child(write_until_killed, &next);
    next = hear_until_killed(&child, latest, 5 + (unsigned)rand_r(&seed) % 30, next);
    next += WRITERS; /* those may have been applied without being told */
    CHECK_EQ(join_child(&child), 128 + SIGKILL);
    double begun = seconds_now();
    CHECK_EQ(put(store, "parent", "1"), KV_OK);
    CHECK(seconds_now() - begun < SOON);
    for (uint32_t i = 0; i < 97; i++) {
      if (!latest[i]) continue;
      uint32_t value = 0;
      snprintf(key, sizeof key, "k%u", i);
      kv_request request = {.kind = KV_GET, .key = text(key)};
      CHECK_EQ(ask(store, &request), KV_OK);
      REQUIRE(kv_reply_pair(last_reply, &last_pair));
      CHECK_EQ(last_pair.value.size, 300);
      memcpy(&value, last_pair.value.data, sizeof value);
      CHECK(value >= latest[i] && value % 97 == i);
    }
    if (round % 10 == 9) { /* and from the files alone */
      close_store(store);
      store = open_store(NULL);
      REQUIRE(store != NULL);
    }
  }
  CHECK(next > 1000 / 2);
  close_store(store);
}

/* ------------------------------------------------------------------ many at once */

enum { TREE_KEYS = 40, TREE_WRITES = 600 };

static void write_at_random(void *argument) {
  static char value[20000];
  unsigned seed = *(const unsigned *)argument;
  char key[32];
  kv_store *store = open_store("?map_size=67108864&sync=none");
  for (int i = 0; i < TREE_WRITES; i++) {
    snprintf(key, sizeof key, "d/%d", rand_r(&seed) % TREE_KEYS);
    snprintf(value, sizeof value, "%u/%d", *(const unsigned *)argument, i);
    kv_request request = {.kind = KV_PUT, .key = text(key), .value = {value, sizeof value}};
    if (rand_r(&seed) % 3 == 0) request.kind = KV_DELETE;
    CHECK_EQ(ask(store, &request), KV_OK);
  }
  close_store(store);
}

/* Take all events there are; `state` is what they add up to. */
static void take_events(kv_watch *watch, char state[][32]) {
  const char *event;
  while (*(event = next_event(watch, 0.05))) {
    int key = atoi(strstr(event, "d/") + 2);
    REQUIRE(event[0] != '!' && key >= 0 && key < TREE_KEYS);
    const char *value = event[0] == '-' ? "" : strchr(event, '=') + 1;
    snprintf(state[key], 32, "%.*s", (int)strcspn(value, "@"), value);
  }
}

/* The queue of events is too short for those who are slow: they list again and get the difference. */
TEST(a_watch_ends_with_the_true_state_whatever_happened) {
  static char state[TREE_KEYS][32], slow_state[TREE_KEYS][32];
  enum { COUNT = 3 };
  struct child children[COUNT];
  unsigned seeds[COUNT];
  char key[32];
  new_folder();
  kv_store *store = open_store("?map_size=67108864&sync=none");
  REQUIRE(store != NULL);
  kv_watch *watch = watch_tree(store, "d"), *slow = watch_tree(store, "d");
  CHECK(wait_synced(watch) && wait_synced(slow));
  for (unsigned i = 0; i < COUNT; i++) {
    seeds[i] = i + (unsigned)getpid();
    children[i] = start_child(write_at_random, &seeds[i]);
  }
  for (int i = 0; i < 20; i++) take_events(watch, state);
  for (int i = 0; i < COUNT; i++) CHECK_EQ(join_child(&children[i]), 0);
  bool same = false;
  for (int round = 0; round < 100 && !same; round++) {
    take_events(watch, state);
    take_events(slow, slow_state);
    same = true;
    for (int i = 0; i < TREE_KEYS && same; i++) {
      snprintf(key, sizeof key, "d/%d", i);
      const char *value = get(store, key);
      same = strcmp(value ? value : "", state[i]) == 0 && strcmp(value ? value : "", slow_state[i]) == 0;
    }
  }
  CHECK(same);
  kv_stats stats;
  kv_store_stats(store, &stats);
  CHECK(stats.resyncs > 0); /* or this test tests nothing */
  kv_watch_free(watch);
  kv_watch_free(slow);
  close_store(store);
}

enum { LOCK_ROUNDS = 40 };

static void count_under_lock(void *argument) {
  char value[32];
  (void)argument;
  kv_store *store = open_store(NULL);
  kv_lock *lock = new_lock(store, "l", 30);
  for (int i = 0; i < LOCK_ROUNDS; i++) {
    CHECK_EQ(acquire(lock, 60), KV_OK);
    const char *before = get(store, "count");
    snprintf(value, sizeof value, "%d", before ? atoi(before) + 1 : 1);
    const char *token = get(store, "token");
    CHECK(!token || strtoull(token, NULL, 10) < kv_lock_token(lock));
    CHECK_EQ(put(store, "count", value), KV_OK);
    snprintf(value, sizeof value, "%llu", (unsigned long long)kv_lock_token(lock));
    CHECK_EQ(put(store, "token", value), KV_OK);
    CHECK_EQ(release(lock), KV_OK);
  }
  kv_lock_free(lock);
  close_store(store);
}

TEST(a_lock_excludes_processes_from_each_other) {
  enum { COUNT = 4 };
  struct child children[COUNT];
  new_folder();
  for (int i = 0; i < COUNT; i++) children[i] = start_child(count_under_lock, NULL);
  for (int i = 0; i < COUNT; i++) CHECK_EQ(join_child(&children[i]), 0);
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  const char *count = get(store, "count");
  CHECK_EQ(count ? atoi(count) : 0, COUNT * LOCK_ROUNDS);
  close_store(store);
}

/* ------------------------------------------------------------------ without inotify */

static void watch_by_looking(void *argument) {
  struct rlimit before, none;
  (void)argument;
  kv_store *store = open_store(NULL);
  CHECK_EQ(put(store, "a", "1"), KV_OK);
  kv_lock *lock = new_lock(store, "l", 30);
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  int probe = dup(0);
  close(probe);
  none = before;
  none.rlim_cur = (rlim_t)probe; /* no descriptor more */
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  kv_watch *watch = watch_tree(store, "d");
  CHECK(wait_synced(watch));
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  say('w');
  CHECK_STR(next_event(watch, 20), "d/a=1@2");
  CHECK_EQ(put(store, "d/b", "1"), KV_OK);
  CHECK(strncmp(next_event(watch, 20), "d/b=1@", 6) == 0);
  say('s');
  CHECK_EQ(acquire(lock, 20), KV_OK); /* its holder is killed */
  CHECK_EQ(release(lock), KV_OK);
  kv_lock_free(lock);
  kv_watch_free(watch);
  close_store(store);
}

TEST(watches_and_locks_work_without_inotify) {
  new_folder();
  struct child child = start_child(watch_by_looking, NULL);
  REQUIRE(listen_to(&child) == 'w');
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  CHECK_EQ(put(store, "d/a", "1"), KV_OK);
  struct child holder = start_child(hold_lock, NULL);
  CHECK_EQ(listen_to(&child), 's');
  CHECK_EQ(listen_to(&holder), 'h');
  usleep(50000);
  kill_child(&holder);
  CHECK_EQ(join_child(&child), 0);
  close_store(store);
}

/* ------------------------------------------------------------------ idle */

/* Times that threads of ours were woken. */
static long wake_ups(void) {
  long sum = 0, count;
  char path[300], line[200];
  DIR *directory = opendir("/proc/self/task");
  if (!directory) return -1;
  struct dirent *entry;
  while ((entry = readdir(directory))) {
    if (entry->d_name[0] == '.' || atoi(entry->d_name) == getpid()) continue;
    snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
      if (sscanf(line, "voluntary_ctxt_switches: %ld", &count) == 1) sum += count;
    if (file) fclose(file);
  }
  closedir(directory);
  return sum;
}

/* How often they have been by the time that nothing wakes them any more; at last after ten seconds. */
static long wake_ups_at_rest(void) {
  long count = wake_ups(), before;
  double until = seconds_now() + 10;
  do {
    before = count;
    usleep(200000);
    count = wake_ups();
  } while (count != before && seconds_now() < until);
  return count;
}

TEST(an_idle_store_causes_no_wake_ups) {
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  kv_watch *watch = watch_tree(store, "");
  CHECK(wait_synced(watch));
  kv_lock *lock = new_lock(store, "l", 600);
  CHECK_EQ(acquire(lock, 5), KV_OK);
  CHECK_EQ(put_ttl(store, "a", "1", 600), KV_OK);
  CHECK(*next_event(watch, 5) != 0);
  long before = wake_ups_at_rest();
  usleep(400000);
  if (!SANITIZED) CHECK_EQ(wake_ups() - before, 0);
  CHECK(before > 0);
  kv_watch_free(watch);
  CHECK_EQ(release(lock), KV_OK);
  kv_lock_free(lock);
  close_store(store);
}

CHECK_MAIN()
