/*
 * etcd_server.h - real etcd servers for tests, in folders and on ports of their own, and short ways of asking a
 * store. A test binary includes it once. Servers end with the test, also when it crashes.
 */
#ifndef KV_ETCD_SERVER_H
#define KV_ETCD_SERVER_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "../support/free_port.h"
#include "check.h"
#include "kv.h"

#include "drivers/driver.h"

extern const struct kv_driver kv_driver_etcd;

/* ------------------------------------------------------------------ time, ports, folders */

static inline double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static inline void nap(double seconds) {
  struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
  nanosleep(&time, NULL);
}

/* Wait until `condition` holds, at most `seconds`. Asked no more once it was true: it may pass. */
#define WAIT_FOR(seconds, condition)                                     \
  do {                                                                   \
    double wait_until_ = now() + (seconds);                              \
    bool seen_ = (condition);                                            \
    for (; !seen_ && now() < wait_until_; seen_ = (condition)) nap(0.01); \
    (void)check_true(seen_, #condition, __FILE__, __LINE__);             \
  } while (0)

/* A listening socket on a free port of the loopback. */
static inline int listen_somewhere(int *port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, (void *)&address, size) != 0 || listen(fd, 16) != 0) return -1;
  getsockname(fd, (void *)&address, &size);
  *port = ntohs(address.sin_port);
  return fd;
}

static inline int remove_one(const char *path, const struct stat *info, int type, struct FTW *at) {
  (void)info;
  (void)type;
  (void)at;
  return remove(path);
}

static inline void remove_folder(const char *path) {
  nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline bool make_folder(char *path, size_t size) {
  const char *base = getenv("TMPDIR");
  snprintf(path, size, "%s/kv-etcd-XXXXXX", base && strlen(base) < 30 ? base : "/tmp");
  return mkdtemp(path) != NULL;
}

/* ------------------------------------------------------------------ processes */

static inline pid_t spawn(char *const *arguments, const char *log) {
  pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that crashes leaves nothing behind */
  int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
  dup2(fd, 1);
  dup2(fd, 2);
  execvp(arguments[0], arguments);
  _exit(127);
}

/* Run a program to its end: did it succeed? Words are separated by single spaces. */
static inline bool run_tool(const char *command, const char *log) {
  char copy[1500], *arguments[64];
  size_t count = 0;
  int status;
  snprintf(copy, sizeof copy, "%s", command);
  for (char *rest = copy, *word; (word = strsep(&rest, " ")) && count < 63;) arguments[count++] = word;
  arguments[count] = NULL;
  pid_t pid = spawn(arguments, log);
  return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* ------------------------------------------------------------------ servers */

struct server {
  pid_t pid;
  int port, peer_port;
  bool tls;
  char name[16];
  char dir[64];
  char url[200];
  char cluster[200];     /* of several members; empty: alone */
  const char *extra[24]; /* more arguments */
};

/* It listens, and (without TLS) says that it is well: it listens before it has a leader, and one that is killed
 * before its first election is of no use any more. */
static inline bool server_is_well(const struct server *server) {
  static const char question[] = "GET /health HTTP/1.0\r\n\r\n";
  struct timeval patience = {.tv_sec = 2};
  struct sockaddr_in address = {
    .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)server->port)};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  char answer[1000] = "";
  bool good = connect(fd, (void *)&address, sizeof address) == 0;
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  if (good && !server->tls) {
    size_t size = 0;
    ssize_t got = send(fd, question, sizeof question - 1, MSG_NOSIGNAL);
    while (got > 0 && size < sizeof answer - 1 && (got = recv(fd, answer + size, sizeof answer - 1 - size, 0)) > 0)
      size += (size_t)got;
    good = strstr(answer, "\"true\"") != NULL;
  }
  close(fd);
  return good;
}

static inline void server_spawn(struct server *server) {
  char data[100], log[100], client[60], peer[60];
  snprintf(data, sizeof data, "%s/data", server->dir);
  snprintf(log, sizeof log, "%s/log", server->dir);
  snprintf(client, sizeof client, "%s://127.0.0.1:%d", server->tls ? "https" : "http", server->port);
  snprintf(peer, sizeof peer, "http://127.0.0.1:%d", server->peer_port);
  if (!server->cluster[0]) snprintf(server->cluster, sizeof server->cluster, "%s=%s", server->name, peer);
  char *arguments[50] = {"etcd", "--name", server->name, "--data-dir", data, "--listen-client-urls", client,
                         "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls",
                         peer, "--initial-cluster", server->cluster, "--heartbeat-interval", "50", "--election-timeout",
                         "500", "--unsafe-no-fsync"};
  size_t count = 20;
  for (size_t i = 0; server->extra[i]; i++) arguments[count++] = (char *)(uintptr_t)server->extra[i];
  server->pid = spawn(arguments, log);
}

/* Has it ended by itself? Asked after its port was: what answered there may have been another's. */
static inline bool server_ended(struct server *server) {
  if (server->pid > 0 && waitpid(server->pid, NULL, WNOHANG) != server->pid) return false;
  server->pid = 0;
  return true;
}

#define START_SECONDS 60

static inline bool server_await(struct server *server) {
  for (double until = now() + START_SECONDS; now() < until; nap(0.02)) {
    bool well = server_is_well(server);
    if (server_ended(server)) return false;
    if (well) return true;
  }
  return false;
}

static inline bool server_launch(struct server *server) {
  server_spawn(server);
  return server_await(server);
}

static inline bool server_prepare(struct server *server) {
  server->port = free_port();
  server->peer_port = free_port();
  if (!server->name[0]) strcpy(server->name, "default");
  snprintf(server->url, sizeof server->url, "%s://127.0.0.1:%d", server->tls ? "etcds" : "etcd", server->port);
  return server->dir[0] || make_folder(server->dir, sizeof server->dir);
}

static inline bool server_start(struct server *server) {
  return server_prepare(server) && server_launch(server);
}

static inline void server_kill(struct server *server) {
  if (server->pid <= 0) return;
  kill(server->pid, SIGKILL);
  waitpid(server->pid, NULL, 0);
  server->pid = 0;
}

static inline void server_end(struct server *server) {
  server_kill(server);
  if (server->dir[0]) remove_folder(server->dir);
  server->dir[0] = '\0';
}

/* etcdctl on this server. */
static inline bool etcdctl(const struct server *server, const char *command) {
  char whole[800], log[100];
  snprintf(log, sizeof log, "%s/etcdctl", server->dir);
  snprintf(whole, sizeof whole, "etcdctl --endpoints=127.0.0.1:%d %s", server->port, command);
  setenv("ETCDCTL_API", "3", 1);
  return run_tool(whole, log);
}

static struct server shared_server;

static inline void end_shared(void) {
  server_end(&shared_server);
}

static inline bool is_installed(const char *program) {
  char path[500];
  for (const char *at = getenv("PATH"), *end; at && *at; at = *end ? end + 1 : end) {
    end = strchrnul(at, ':');
    snprintf(path, sizeof path, "%.*s/%s", (int)(end - at), at, program);
    if (access(path, X_OK) == 0) return true;
  }
  return false;
}

/* Tests that need a server are left out where there is none, and fail where it does not start. */
static inline void no_server(const char *what, bool installed) {
  if (installed) CHECK(!"the server starts");
  else fprintf(stderr, "note: there is no %s; a test that needs it is left out\n", what);
}

/* The etcd that most tests of a binary use. NULL: there is none on this machine. */
static inline const char *etcd_url(void) {
  static bool tried, there;
  if (!tried) {
    tried = true;
    there = server_start(&shared_server);
    atexit(end_shared);
  }
  if (!there) no_server("etcd", is_installed("etcd"));
  return there ? shared_server.url : NULL;
}

/* ------------------------------------------------------------------ asking */

static kv_queue *queue;

/* Replies that nobody took may hold a watch, and with it a store. */
__attribute__((destructor)) static void give_up_queue(void) {
  kv_queue_free(queue);
}

static inline kv_slice text(const char *string) {
  return (kv_slice){string, strlen(string)};
}

/* `rest`: prefix and query part, or NULL. */
static inline kv_store *open_url(const char *url, const char *rest) {
  char whole[1000];
  kv_error error;
  kv_register(&kv_driver_etcd, NULL);
  if (!queue) queue = kv_queue_new(NULL);
  snprintf(whole, sizeof whole, "%s%s", url, rest ? rest : "");
  kv_store *store = kv_open(whole, NULL, &error);
  if (!store) fprintf(stderr, "open %s: %s\n", whole, error.message);
  return store;
}

static inline void close_store(kv_store *store) {
  kv_close(store);
  CHECK(kv_close_wait(store, 5));
  kv_store_free(store);
}

static inline kv_reply *next_reply(double seconds) {
  kv_reply *reply;
  double until = now() + seconds;
  while (!(reply = kv_queue_next(queue)) && now() < until) kv_queue_wait(queue, until - now());
  return reply;
}

/* The reply that carries `tag`; what watches say is dropped meanwhile. */
static inline kv_reply *reply_tagged(uint64_t tag, double seconds) {
  double until = now() + seconds;
  while (now() < until) {
    kv_reply *reply = next_reply(until - now());
    if (!reply || kv_reply_tag(reply) == tag) return reply;
    if (kv_reply_kind(reply) != KV_WATCH_READY)
      fprintf(stderr, "a reply nobody waits for: %s\n", kv_reply_message(reply));
    kv_reply_free(reply);
  }
  return NULL;
}

static inline uint64_t new_tag(void) {
  static uint64_t last = 1000;
  return ++last;
}

static inline kv_reply *ask(kv_store *store, const kv_request *request) {
  kv_reply *reply = NULL;
  kv_error error;
  uint64_t tag = new_tag();
  if (kv_submit(store, queue, request, tag, NULL, &reply, &error) != KV_OK) {
    fprintf(stderr, "submit: %s\n", error.message);
    return NULL;
  }
  return reply ? reply : reply_tagged(tag, 30);
}

/* Its reply will come with this tag; 0: refused. */
static inline uint64_t submit(kv_store *store, const kv_request *request) {
  kv_reply *reply = NULL;
  uint64_t tag = new_tag();
  return kv_submit(store, queue, request, tag, NULL, &reply, NULL) == KV_OK && !reply ? tag : 0;
}

/* Wait for `count` replies to requests, whichever; how many of them have this code? */
static inline int gather(int count, kv_code code, double seconds) {
  int good = 0;
  for (double until = now() + seconds; count > 0 && now() < until;) {
    kv_reply *reply = next_reply(until - now());
    if (reply && kv_reply_kind(reply) != KV_WATCH_READY) {
      count--;
      good += kv_reply_code(reply) == code;
      if (kv_reply_code(reply) != code) fprintf(stderr, "%s\n", kv_reply_message(reply));
    }
    kv_reply_free(reply);
  }
  return good;
}

static char last_message[KV_MESSAGE_MAX]; /* of the last code_of() */

static inline kv_code code_and_free(kv_reply *reply) {
  if (!reply) return KV_CODE_COUNT;
  kv_code code = kv_reply_code(reply);
  snprintf(last_message, sizeof last_message, "%s", kv_reply_message(reply));
  kv_reply_free(reply);
  return code;
}

/* The code of a request, its reply thrown away. */
static inline kv_code code_of(kv_store *store, const kv_request *request) {
  return code_and_free(ask(store, request));
}

static inline kv_code put(kv_store *store, const char *key, const char *value) {
  return code_of(store, &(kv_request){.kind = KV_PUT, .key = text(key), .value = text(value)});
}

/* The revision of a put; 0 when it failed. */
static inline uint64_t put_revision(kv_store *store, const char *key, const char *value) {
  kv_reply *reply = ask(store, &(kv_request){.kind = KV_PUT, .key = text(key), .value = text(value)});
  uint64_t revision = reply && kv_reply_code(reply) == KV_OK ? kv_reply_revision(reply) : 0;
  kv_reply_free(reply);
  return revision;
}

static inline kv_code ping(kv_store *store, double timeout) {
  return code_of(store, &(kv_request){.kind = KV_PING, .timeout = timeout});
}

/* The value, "(none)", or the code as text. Static. */
static inline const char *get(kv_store *store, const char *key) {
  static char value[1000];
  kv_pair pair;
  kv_reply *reply = ask(store, &(kv_request){.kind = KV_GET, .key = text(key)});
  if (!reply) return "(no reply)";
  if (kv_reply_code(reply) != KV_OK)
    snprintf(value, sizeof value, "%s", kv_code_text(kv_reply_code(reply)));
  else if (kv_reply_pair(reply, &pair))
    snprintf(value, sizeof value, "%.*s", (int)pair.value.size, pair.value.data);
  else
    snprintf(value, sizeof value, "(none)");
  kv_reply_free(reply);
  return value;
}

/* All keys of a listing, joined by spaces, directories with a slash, pages parted by a bar where there is a limit.
 * Static. */
static inline const char *list(kv_store *store, const char *dir, unsigned flags, uint32_t limit) {
  static char joined[20000];
  char after[500] = "";
  uint64_t revision = 0;
  size_t size = 0;
  joined[0] = '\0';
  for (;;) {
    kv_pair pair;
    kv_reply *reply = ask(store, &(kv_request){.kind = KV_LIST, .key = text(dir), .flags = flags, .limit = limit,
                                               .after = text(after), .revision = revision});
    if (!reply || kv_reply_code(reply) != KV_OK) {
      snprintf(joined, sizeof joined, "%s", reply ? kv_code_text(kv_reply_code(reply)) : "(no reply)");
      kv_reply_free(reply);
      return joined;
    }
    while (kv_reply_pair(reply, &pair)) {
      size += (size_t)snprintf(joined + size, sizeof joined - size, "%s%.*s%s", size ? " " : "", (int)pair.key.size,
                               pair.key.data, pair.dir ? "/" : "");
      snprintf(after, sizeof after, "%.*s", (int)pair.key.size, pair.key.data);
    }
    bool more = kv_reply_more(reply);
    revision = kv_reply_revision(reply);
    kv_reply_free(reply);
    if (!more) return joined;
    if (limit) size += (size_t)snprintf(joined + size, sizeof joined - size, " |");
  }
}

/* ------------------------------------------------------------------ watching */

/* The next event as text: "+key=value" ("*" when it was there from the beginning), "-key", "" when none comes in
 * time, or the code of the end. Static. */
static inline const char *next_event(kv_watch *watch, double seconds) {
  static char told[700];
  kv_event event;
  kv_error error;
  double until = now() + seconds;
  for (;;) {
    int got = kv_watch_next(watch, &event, &error);
    if (got < 0) {
      snprintf(told, sizeof told, "%s", kv_code_text(error.code));
      return told;
    }
    if (got > 0) {
      bool is_put = event.type == KV_EVENT_PUT;
      snprintf(told, sizeof told, "%s%.*s%s%.*s", !is_put ? "-" : event.initial ? "*" : "+", (int)event.key.size,
               event.key.data, is_put ? "=" : "", is_put ? (int)event.value.size : 0, is_put ? event.value.data : "");
      return told;
    }
    if (now() >= until) return "";
    kv_reply *reply = next_reply(until - now() < 0.1 ? until - now() : 0.1);
    kv_reply_free(reply); /* says only that there may be something */
  }
}

static inline kv_watch *watch_key(kv_store *store, const char *key, bool tree) {
  kv_watch *watch = NULL;
  kv_error error;
  kv_watch_options options = {.key = text(key), .tree = tree};
  if (kv_watch_open(store, queue, &options, 1, &watch, &error) != KV_OK) fprintf(stderr, "watch: %s\n", error.message);
  return watch;
}

#define WITH_ETCD(store, rest)                          \
  const char *url_of_##store = etcd_url();              \
  if (!url_of_##store) return;                          \
  kv_store *store = open_url(url_of_##store, rest);     \
  REQUIRE(store != NULL)

#endif
