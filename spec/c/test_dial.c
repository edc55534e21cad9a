/*
 * Connecting, against sockets of this process. getaddrinfo() is replaced by one that the tests control, so that names
 * have the addresses, the failures and the delays that a test wants, and nothing leaves the machine. Other loopback
 * addresses (127.0.0.x) stand for other hosts.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"
#include "core/core.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NO_FORK
#endif
#elif defined(__SANITIZE_THREAD__)
#define NO_FORK
#endif

/* Of queue.c, for a binary that is linked without it. */
void kv_replies_hold(void);
void kv_replies_release(void);
__attribute__((weak)) void kv_replies_hold(void) {
}
__attribute__((weak)) void kv_replies_release(void) {
}

/* ------------------------------------------------------------------ names */

static struct {
  const char *name;
  const char *addresses[3];
} names[] = {{"live.test", {"127.0.0.1"}},
             {"first-refuses.test", {"127.0.0.3", "127.0.0.1"}},
             {"first-is-silent.test", {"127.0.0.2", "127.0.0.1"}},
             {"six-first.test", {"::1", "127.0.0.1"}},
             {"all-refuse.test", {"127.0.0.3", "127.0.0.4"}}};

static atomic_int lookups, running, most_running;
static atomic_bool hang; /* names that begin with "slow" wait until it is false */
static pthread_mutex_t hang_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t hang_changed = PTHREAD_COND_INITIALIZER;

static void set_hang(bool on) {
  pthread_mutex_lock(&hang_lock);
  hang = on;
  pthread_cond_broadcast(&hang_changed);
  pthread_mutex_unlock(&hang_lock);
}

static struct addrinfo *make_info(const char *text, struct addrinfo *next) {
  struct addrinfo *info = calloc(1, sizeof *info + sizeof(struct sockaddr_in6));
  struct sockaddr_in *v4 = (void *)(info + 1);
  struct sockaddr_in6 *v6 = (void *)(info + 1);
  info->ai_addr = (void *)(info + 1);
  info->ai_next = next;
  if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    info->ai_addrlen = sizeof *v4;
  } else if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    info->ai_addrlen = sizeof *v6;
  } else {
    free(info);
    return NULL;
  }
  info->ai_family = info->ai_addr->sa_family;
  return info;
}

static void hang_on(void) {
  int now = atomic_fetch_add(&running, 1) + 1;
  pthread_mutex_lock(&hang_lock);
  if (now > most_running) most_running = now;
  while (hang) pthread_cond_wait(&hang_changed, &hang_lock);
  pthread_mutex_unlock(&hang_lock);
  atomic_fetch_sub(&running, 1);
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
  (void)service;
  *result = make_info(host, NULL);
  if (*result) return 0;
  if (hints->ai_flags & AI_NUMERICHOST) return EAI_NONAME;
  atomic_fetch_add(&lookups, 1);
  bool slow = strncmp(host, "slow", 4) == 0;
  if (slow) {
    hang_on();
    *result = make_info("127.0.0.1", NULL);
    return 0;
  }
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    if (strcmp(names[i].name, host) != 0) continue;
    for (int j = 2; j >= 0; j--)
      if (names[i].addresses[j]) *result = make_info(names[i].addresses[j], *result);
    return 0;
  }
  return EAI_NONAME;
}

void freeaddrinfo(struct addrinfo *info) {
  while (info) {
    struct addrinfo *next = info->ai_next;
    free(info);
    info = next;
  }
}

/* ------------------------------------------------------------------ servers */

static uint16_t port; /* the same one on all addresses */
static int live = -1, silent = -1;
static int fillers[8];

static int listen_on(const char *address, uint16_t on, int backlog) {
  struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(on)};
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  inet_pton(AF_INET, address, &name.sin_addr);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (void *)&name, sizeof name) != 0 || listen(fd, backlog) != 0) {
    close(fd);
    return -1;
  }
  return fd;
}

static uint16_t port_of(int fd) {
  struct sockaddr_in name;
  socklen_t size = sizeof name;
  return getsockname(fd, (void *)&name, &size) == 0 ? ntohs(name.sin_port) : 0;
}

/* A listener whose queue is full drops further attempts without a word. */
static void fill(int fd) {
  struct sockaddr_in name;
  socklen_t size = sizeof name;
  getsockname(fd, (void *)&name, &size);
  for (size_t i = 0; i < sizeof fillers / sizeof fillers[0]; i++) {
    fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int status = connect(fillers[i], (void *)&name, sizeof name);
    struct pollfd one = {.fd = fillers[i], .events = POLLOUT};
    if (status != 0) poll(&one, 1, 20);
  }
}

static void start_servers(void) {
  for (int tries = 0; tries < 20 && (live < 0 || silent < 0); tries++) {
    if (live >= 0) close(live);
    live = listen_on("127.0.0.1", 0, 1000);
    port = port_of(live);
    silent = listen_on("127.0.0.2", port, 0);
  }
  fill(silent);
}

/* ------------------------------------------------------------------ on the reactor */

struct call {
  struct kv_task task;
  void (*function)(void *argument);
  void *argument;
  sem_t done;
};

static void run_call(struct kv_task *task) {
  struct call *call = task->data;
  call->function(call->argument);
  sem_post(&call->done);
}

/* Call a function on the reactor thread and wait for it. */
static void on_reactor(void (*function)(void *argument), void *argument) {
  struct call call = {.function = function, .argument = argument};
  call.task = (struct kv_task){.run = run_call, .data = &call};
  sem_init(&call.done, 0, 0);
  kv_post(&call.task);
  while (sem_wait(&call.done) != 0) continue;
  sem_destroy(&call.done);
}

struct client {
  struct kv_config config;
  struct kv_address addresses[4];
  struct kv_endpoints *endpoints;
};

static void open_client(struct client *client, double connect_timeout, size_t count, const char *const *hosts) {
  *client = (struct client){.config = {.connect_timeout = connect_timeout, .address_count = count}};
  for (size_t i = 0; i < count; i++) client->addresses[i] = (struct kv_address){(char *)(uintptr_t)hosts[i], port};
  client->config.addresses = client->addresses;
  client->endpoints = kv_endpoints_new(&client->config);
  CHECK(client->endpoints != NULL);
}

#define OPEN(client, seconds, ...)                                                     \
  do {                                                                                 \
    const char *const hosts_[] = {__VA_ARGS__};                                        \
    open_client((client), (seconds), sizeof hosts_ / sizeof hosts_[0], hosts_);        \
  } while (0)

static void close_client(struct client *client) {
  kv_endpoints_free(client->endpoints);
}

struct outcome {
  struct client *client;
  struct kv_dial dial;
  bool starting, inside;
  atomic_int calls;
  int fd;
  size_t address;
  char problem[600];
  sem_t done;
};

static void dial_done(struct kv_dial *dial, int fd, size_t address, const char *problem) {
  struct outcome *outcome = dial->data;
  outcome->inside = outcome->starting || dial->core != NULL;
  outcome->fd = fd;
  outcome->address = address;
  snprintf(outcome->problem, sizeof outcome->problem, "%s", problem ? problem : "");
  outcome->calls++;
  sem_post(&outcome->done);
}

static void start(void *argument) {
  struct outcome *outcome = argument;
  outcome->starting = true;
  kv_dial_start(outcome->client->endpoints, &outcome->dial);
  outcome->starting = false;
}

static void cancel(void *argument) {
  struct outcome *outcome = argument;
  kv_dial_cancel(&outcome->dial);
}

static void start_and_cancel(void *argument) {
  start(argument);
  cancel(argument);
}

static void prepare(struct outcome *outcome, struct client *client) {
  *outcome = (struct outcome){.client = client, .dial = {.done = dial_done, .data = outcome}, .fd = -2};
  sem_init(&outcome->done, 0, 0);
}

static void begin(struct outcome *outcome, struct client *client) {
  prepare(outcome, client);
  on_reactor(start, outcome);
}

/* Take what was connected, or the queue of the living server fills up too. */
static void accept_all(void) {
  int fd;
  while ((fd = accept(live, NULL, NULL)) >= 0) close(fd);
}

static bool finish(struct outcome *outcome) {
  while (sem_wait(&outcome->done) != 0) continue;
  accept_all();
  CHECK(!outcome->inside);
  CHECK_EQ(outcome->calls, 1);
  sem_destroy(&outcome->done);
  if (outcome->fd >= 0) close(outcome->fd);
  CHECK((outcome->fd >= 0) == (outcome->problem[0] == '\0'));
  return outcome->fd >= 0;
}

static bool dial(struct outcome *outcome, struct client *client) {
  begin(outcome, client);
  return finish(outcome);
}

static int threads(void) {
  DIR *folder = opendir("/proc/self/task");
  int count = 0;
  for (struct dirent *entry; folder && (entry = readdir(folder));) count += entry->d_name[0] != '.';
  if (folder) closedir(folder);
  return count;
}

static int threads_before;

static void *end_at_once(void *argument) {
  return argument;
}

static void set_up(void) {
  static bool done;
  if (done) return;
  done = true;
  /* With the first thread a sanitizer may start one of its own, which stays. */
  pthread_t thread;
  if (pthread_create(&thread, NULL, end_at_once, NULL) == 0) pthread_join(thread, NULL);
  threads_before = threads();
  start_servers();
  CHECK(live >= 0 && silent >= 0);
  CHECK_EQ(kv_reactor_retain(NULL), KV_OK);
}

static double seconds_since(int64_t start_time) {
  return (double)(kv_clock() - start_time) / 1e9;
}

/* ------------------------------------------------------------------ tests */

TEST(connects_to_a_literal_address) {
  set_up();
  struct client client;
  struct outcome outcome;
  OPEN(&client, 5, "127.0.0.1");
  int before = lookups;
  begin(&outcome, &client);
  while (sem_wait(&outcome.done) != 0) continue;
  sem_destroy(&outcome.done);
  REQUIRE(outcome.fd >= 0);
  CHECK_EQ(lookups, before);
  CHECK_EQ(outcome.address, 0);
  CHECK(fcntl(outcome.fd, F_GETFD) & FD_CLOEXEC);
  CHECK(fcntl(outcome.fd, F_GETFL) & O_NONBLOCK);
  int value = 0;
  socklen_t size = sizeof value;
  CHECK_EQ(getsockopt(outcome.fd, IPPROTO_TCP, TCP_NODELAY, &value, &size), 0);
  CHECK(value != 0);
  CHECK_EQ(write(outcome.fd, "x", 1), 1);
  close(outcome.fd);
  close_client(&client);
}

TEST(refusal_names_the_endpoint) {
  set_up();
  struct client client;
  struct outcome outcome;
  char expected[100];
  OPEN(&client, 5, "127.0.0.3");
  CHECK(!dial(&outcome, &client));
  snprintf(expected, sizeof expected, "cannot connect to 127.0.0.3:%u: Connection refused", (unsigned)port);
  CHECK_STR(outcome.problem, expected);
  close_client(&client);
}

TEST(names_are_resolved_once_in_a_while) {
  set_up();
  struct client client;
  struct outcome outcome;
  OPEN(&client, 5, "live.test");
  int before = lookups;
  for (int i = 0; i < 5; i++) CHECK(dial(&outcome, &client));
  CHECK_EQ(lookups, before + 1);
  close_client(&client);
}

TEST(a_name_that_failed_is_asked_for_again) {
  set_up();
  struct client client;
  struct outcome outcome;
  OPEN(&client, 5, "all-refuse.test");
  int before = lookups;
  for (int i = 0; i < 3; i++) {
    CHECK(!dial(&outcome, &client));
    CHECK(strstr(outcome.problem, "refused") != NULL);
  }
  CHECK_EQ(lookups, before + 3);
  close_client(&client);
  OPEN(&client, 5, "nothing.test");
  CHECK(!dial(&outcome, &client));
  CHECK(strstr(outcome.problem, "cannot resolve nothing.test: ") == outcome.problem);
  CHECK_EQ(lookups, before + 4);
  close_client(&client);
}

TEST(all_addresses_of_a_name_are_tried) {
  set_up();
  struct client client;
  struct outcome outcome;
  OPEN(&client, 5, "first-refuses.test");
  CHECK(dial(&outcome, &client));
  close_client(&client);
  OPEN(&client, 5, "six-first.test");
  CHECK(dial(&outcome, &client));
  close_client(&client);
}

TEST(a_silent_address_does_not_hold_up_the_others) {
  set_up();
  struct client client;
  struct outcome outcome;
  OPEN(&client, 5, "first-is-silent.test");
  int64_t now = kv_clock();
  CHECK(dial(&outcome, &client));
  CHECK(seconds_since(now) >= 0.2 && seconds_since(now) < 2.5);
  close_client(&client);
}

TEST(connect_timeout) {
  set_up();
  struct client client;
  struct outcome outcome;
  OPEN(&client, 0.15, "127.0.0.2");
  int64_t now = kv_clock();
  CHECK(!dial(&outcome, &client));
  CHECK(seconds_since(now) >= 0.149 && seconds_since(now) < 2);
  CHECK(strstr(outcome.problem, "no answer within connect_timeout") != NULL);
  close_client(&client);
}

TEST(connect_timeout_covers_the_name) {
  set_up();
  struct client client;
  struct outcome outcome;
  set_hang(true);
  OPEN(&client, 0.1, "slow-0.test");
  CHECK(!dial(&outcome, &client));
  CHECK(strstr(outcome.problem, "not resolved within connect_timeout") != NULL);
  close_client(&client);
  set_hang(false);
}

TEST(endpoints_take_turns_from_a_random_one) {
  set_up();
  struct client client;
  struct outcome outcome;
  unsigned first_seen = 0;
  for (int round = 0; round < 60; round++) {
    OPEN(&client, 5, "127.0.0.1", "127.0.0.1", "127.0.0.1");
    size_t last = 0;
    for (size_t i = 0; i < 4; i++) {
      CHECK(dial(&outcome, &client));
      if (i == 0) first_seen |= 1u << outcome.address;
      if (i > 0) CHECK_EQ(outcome.address, (last + 1) % 3);
      last = outcome.address;
    }
    close_client(&client);
  }
  CHECK_EQ(first_seen, 7);
}

struct failing {
  struct client *client;
  size_t address;
};

static void endpoint_failed(void *argument) {
  struct failing *failing = argument;
  kv_endpoint_failed(failing->client->endpoints, failing->address);
  kv_endpoint_failed(failing->client->endpoints, 99); /* harmless */
}

TEST(dead_endpoints_are_left_and_tried_when_all_are) {
  set_up();
  struct client client;
  struct outcome outcome;
  OPEN(&client, 5, "127.0.0.3", "127.0.0.1");
  unsigned failures = 0;
  for (int i = 0; i < 2; i++) failures += !dial(&outcome, &client);
  CHECK_EQ(failures, 1); /* each had its turn */
  struct failing failing = {&client, 0};
  for (int i = 0; i < 5; i++) on_reactor(endpoint_failed, &failing); /* dead for seconds now */
  for (int i = 0; i < 6; i++) CHECK(dial(&outcome, &client));
  failing.address = 1; /* dead too, but not for long */
  on_reactor(endpoint_failed, &failing);
  CHECK(dial(&outcome, &client));
  CHECK_EQ(outcome.address, 1);
  close_client(&client);
}

TEST(a_dead_endpoint_heals) {
  set_up();
  struct client client;
  struct outcome outcome;
  OPEN(&client, 5, "127.0.0.1", "127.0.0.1");
  struct failing failing = {&client, 0};
  on_reactor(endpoint_failed, &failing);
  int64_t now = kv_clock();
  do {
    poll(NULL, 0, 5);
    CHECK(dial(&outcome, &client));
  } while (outcome.address != 0 && seconds_since(now) < 10);
  CHECK_EQ(outcome.address, 0);
  CHECK(seconds_since(now) > 0.3);
  close_client(&client);
}

TEST(no_host_at_all) {
  set_up();
  struct client client = {.config = {.connect_timeout = 1}};
  client.endpoints = kv_endpoints_new(&client.config);
  REQUIRE(client.endpoints != NULL);
  struct outcome outcomes[3];
  for (int i = 0; i < 3; i++) begin(&outcomes[i], &client);
  for (int i = 0; i < 3; i++) CHECK(!finish(&outcomes[i]));
  prepare(&outcomes[0], &client);
  on_reactor(start_and_cancel, &outcomes[0]);
  begin(&outcomes[1], &client);
  CHECK(!finish(&outcomes[1]));
  CHECK_EQ(outcomes[0].calls, 0);
  close_client(&client);
}

TEST(cancelled_dials_are_silent) {
  set_up();
  struct client quick, mute, slow;
  struct outcome gone[4], outcome;
  OPEN(&quick, 5, "127.0.0.1");
  OPEN(&mute, 0.1, "127.0.0.2");
  OPEN(&slow, 0.1, "slow-1.test");
  set_hang(true);
  for (int i = 0; i < 4; i++) prepare(&gone[i], i < 2 ? &quick : i == 2 ? &mute : &slow);
  on_reactor(cancel, &gone[0]); /* never started */
  on_reactor(start_and_cancel, &gone[1]);
  on_reactor(start, &gone[2]);
  on_reactor(start, &gone[3]);
  on_reactor(cancel, &gone[2]);
  on_reactor(cancel, &gone[3]);
  on_reactor(cancel, &gone[3]);
  CHECK(!dial(&outcome, &mute)); /* takes as long as any of them would have */
  set_hang(false);
  close_client(&slow);
  OPEN(&slow, 5, "slow-1.test");
  CHECK(dial(&outcome, &slow));
  for (int i = 0; i < 4; i++) CHECK_EQ(gone[i].calls, 0);
  close_client(&quick);
  close_client(&mute);
  close_client(&slow);
}

TEST(lookups_are_shared_and_few_at_a_time) {
  set_up();
  enum { NAMES = 20, EACH = 3 };
  static struct client clients[NAMES];
  static struct outcome outcomes[NAMES][EACH];
  static char hosts[NAMES][40];
  int before = lookups;
  set_hang(true);
  most_running = 0;
  for (int i = 0; i < NAMES; i++) {
    snprintf(hosts[i], sizeof hosts[i], "slow-many-%d.test", i);
    OPEN(&clients[i], 20, hosts[i]);
    for (int j = 0; j < EACH; j++) begin(&outcomes[i][j], &clients[i]);
  }
  on_reactor(cancel, &outcomes[NAMES - 1][1]);
  on_reactor(cancel, &outcomes[NAMES - 1][0]);
  on_reactor(cancel, &outcomes[NAMES - 1][2]); /* nobody wants the last name any more */
  while (running < 8) sched_yield();
  set_hang(false);
  for (int i = 0; i < NAMES - 1; i++)
    for (int j = 0; j < EACH; j++) CHECK(finish(&outcomes[i][j]));
  CHECK_EQ(lookups, before + NAMES - 1);
  CHECK(most_running <= 8);
  for (int i = 0; i < NAMES; i++) close_client(&clients[i]);
}

TEST(backoff_grows_with_jitter) {
  double lowest = 1, highest = 0, sum_first = 0, sum_late = 0;
  for (int i = 0; i < 2000; i++) {
    for (unsigned n = 0; n < 12; n++) {
      double seconds = kv_backoff(n);
      double cap = n < 7 ? 0.02 * (1 << n) : 2;
      if (!(seconds > 0 && seconds <= cap)) CHECK(false);
    }
    double late = kv_backoff(1000000);
    sum_first += kv_backoff(0);
    sum_late += late;
    if (late < lowest) lowest = late;
    if (late > highest) highest = late;
  }
  CHECK(lowest < 0.1 && highest > 1.9 && highest <= 2);
  CHECK(sum_first / 2000 < 0.02 && sum_late / 2000 > 0.5);
}

/* In a child the parent's helper threads and tables are gone, and everything works anew. */
TEST(works_in_a_forked_child) {
  set_up();
#ifndef NO_FORK
  struct client slow;
  struct outcome pending;
  set_hang(true);
  OPEN(&slow, 20, "slow-fork.test");
  begin(&pending, &slow);
  while (running < 1) sched_yield();
  pid_t child = fork();
  if (child == 0) {
    struct client client;
    struct outcome outcome;
    alarm(20);
    if (kv_reactor_retain(NULL) != KV_OK) _exit(2);
    OPEN(&client, 5, "live.test");
    bool first = dial(&outcome, &client);
    close_client(&client);
    OPEN(&client, 5, "127.0.0.3");
    bool second = dial(&outcome, &client);
    close_client(&client);
    _exit(first && !second ? 0 : 1);
  }
  REQUIRE(child > 0);
  int status = 1;
  waitpid(child, &status, 0);
  CHECK_EQ(status, 0);
  set_hang(false);
  CHECK(finish(&pending));
  close_client(&slow);
#endif
}

/* The last one: the reactor and all helper threads end. */
TEST(no_thread_stays) {
  set_up();
  CHECK(threads() > threads_before);
  kv_reactor_release();
  for (int tries = 0; tries < 5000 && threads() > threads_before; tries++) poll(NULL, 0, 1);
  CHECK_EQ(threads(), threads_before);
  accept_all();
  for (size_t i = 0; i < sizeof fillers / sizeof fillers[0]; i++) close(fillers[i]);
  close(live);
  close(silent);
}

CHECK_MAIN()
