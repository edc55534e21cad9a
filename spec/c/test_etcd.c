/*
 * test_etcd.c - the etcd driver through the public C API, on a real etcd that this test starts on free ports in a folder
 * of its own, and against servers that are none. Without an etcd binary the tests that need it are left out, with a note.
 */
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

#include "check.h"
#include "kv.h"

#include "drivers/driver.h"

extern const struct kv_driver kv_driver_etcd;

/* ------------------------------------------------------------------ processes */

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void nap(double seconds) {
  struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
  nanosleep(&time, NULL);
}

/* A listening socket on a free port of the loopback. */
static int listen_somewhere(int *port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, (void *)&address, size) != 0 || listen(fd, 16) != 0) return -1;
  getsockname(fd, (void *)&address, &size);
  *port = ntohs(address.sin_port);
  return fd;
}

static int free_port(void) {
  int port = 0, fd = listen_somewhere(&port);
  close(fd);
  return port;
}

struct server {
  pid_t pid;
  int port, peer_port;
  char dir[64];
  char url[200];
  const char *extra[16]; /* more arguments, for starting it again */
};

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *at) {
  (void)info;
  (void)type;
  (void)at;
  return remove(path);
}

static bool make_folder(char *path, size_t size) {
  const char *base = getenv("TMPDIR");
  snprintf(path, size, "%s/kv-etcd-XXXXXX", base && strlen(base) < 30 ? base : "/tmp");
  return mkdtemp(path) != NULL;
}

static pid_t spawn(char *const *arguments, const char *log) {
  pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that crashes leaves nothing behind */
  int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
  dup2(fd, 1);
  dup2(fd, 2);
  execvp(arguments[0], arguments);
  _exit(127);
}

static bool run_tool(char *const *arguments, const char *log) {
  int status;
  pid_t pid = spawn(arguments, log);
  return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool server_listens(const struct server *server) {
  struct sockaddr_in address = {
    .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)server->port)};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  bool good = connect(fd, (void *)&address, sizeof address) == 0;
  close(fd);
  return good;
}

static bool server_launch(struct server *server) {
  char data[100], log[100], client[60], peer[60], cluster[100];
  bool tls = server->extra[0] != NULL;
  snprintf(data, sizeof data, "%s/data", server->dir);
  snprintf(log, sizeof log, "%s/log", server->dir);
  snprintf(client, sizeof client, "%s://127.0.0.1:%d", tls ? "https" : "http", server->port);
  snprintf(peer, sizeof peer, "http://127.0.0.1:%d", server->peer_port);
  snprintf(cluster, sizeof cluster, "default=%s", peer);
  char *arguments[40] = {"etcd", "--data-dir", data, "--listen-client-urls", client, "--advertise-client-urls", client,
                         "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster,
                         "--heartbeat-interval", "50", "--election-timeout", "500", "--unsafe-no-fsync"};
  size_t count = 18;
  for (size_t i = 0; server->extra[i]; i++) arguments[count++] = (char *)(uintptr_t)server->extra[i];
  server->pid = spawn(arguments, log);
  for (double until = now() + 20; now() < until; nap(0.02)) {
    int status;
    if (waitpid(server->pid, &status, WNOHANG) == server->pid) {
      server->pid = 0;
      return false;
    }
    if (server_listens(server)) return true;
  }
  return false;
}

static bool server_start(struct server *server) {
  server->port = free_port();
  server->peer_port = free_port();
  snprintf(server->url, sizeof server->url, "etcd://127.0.0.1:%d", server->port);
  return make_folder(server->dir, sizeof server->dir) && server_launch(server);
}

static void server_kill(struct server *server) {
  if (server->pid <= 0) return;
  kill(server->pid, SIGKILL);
  waitpid(server->pid, NULL, 0);
  server->pid = 0;
}

static void server_end(struct server *server) {
  server_kill(server);
  if (server->dir[0]) nftw(server->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static struct server shared;

static void end_shared(void) {
  server_end(&shared);
}

/* The etcd that most tests use. NULL: there is none on this machine. */
static const char *etcd_url(void) {
  static bool tried, there;
  if (!tried) {
    tried = true;
    there = server_start(&shared);
    if (there)
      atexit(end_shared);
    else
      fprintf(stderr, "note: no etcd could be started; tests that need it are left out\n");
  }
  return there ? shared.url : NULL;
}

/* ------------------------------------------------------------------ asking */

static kv_queue *queue;

static kv_store *open_url(const char *url, const char *query) {
  char whole[400];
  kv_error error;
  kv_register(&kv_driver_etcd, NULL);
  if (!queue) queue = kv_queue_new(NULL);
  snprintf(whole, sizeof whole, "%s%s", url, query ? query : "");
  kv_store *store = kv_open(whole, NULL, &error);
  if (!store) fprintf(stderr, "open %s: %s\n", whole, error.message);
  return store;
}

static void close_store(kv_store *store) {
  kv_close(store);
  CHECK(kv_close_wait(store, 5));
  kv_store_free(store);
}

static kv_slice text(const char *string) {
  return (kv_slice){string, strlen(string)};
}

static kv_reply *next_reply(double seconds) {
  kv_reply *reply;
  double until = now() + seconds;
  while (!(reply = kv_queue_next(queue)) && now() < until) kv_queue_wait(queue, until - now());
  return reply;
}

static kv_reply *ask(kv_store *store, const kv_request *request) {
  kv_reply *reply = NULL;
  kv_error error;
  if (kv_submit(store, queue, request, 1, NULL, &reply, &error) != KV_OK) {
    fprintf(stderr, "submit: %s\n", error.message);
    return NULL;
  }
  return reply ? reply : next_reply(30);
}

/* Its reply will come from next_reply(). */
static bool submit(kv_store *store, const kv_request *request) {
  kv_reply *reply = NULL;
  return kv_submit(store, queue, request, 0, NULL, &reply, NULL) == KV_OK && !reply;
}

/* The code of a request, its reply thrown away. */
static kv_code code_of(kv_store *store, const kv_request *request) {
  kv_reply *reply = ask(store, request);
  if (!reply) return KV_CODE_COUNT;
  kv_code code = kv_reply_code(reply);
  kv_reply_free(reply);
  return code;
}

static kv_code put(kv_store *store, const char *key, const char *value) {
  return code_of(store, &(kv_request){.kind = KV_PUT, .key = text(key), .value = text(value)});
}

/* The value, "(none)", or the code as text. Static. */
static const char *get(kv_store *store, const char *key) {
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

/* All keys of a listing, joined by spaces, directories with a slash. Static. */
static const char *list(kv_store *store, const char *dir, unsigned flags, uint32_t limit) {
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

#define WITH_ETCD(store, query)                         \
  const char *url_of_##store = etcd_url();              \
  if (!url_of_##store) return;                          \
  kv_store *store = open_url(url_of_##store, query);    \
  REQUIRE(store != NULL)

/* ------------------------------------------------------------------ keys and values */

TEST(put_get_delete) {
  WITH_ETCD(store, "/basics");
  kv_pair pair;
  CHECK_STR(get(store, "a/b"), "(none)");
  kv_reply *first = ask(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("a/b"), .value = KV_TEXT("one")});
  REQUIRE(first && kv_reply_code(first) == KV_OK);
  CHECK(kv_reply_revision(first) > 0);
  CHECK_EQ(kv_reply_created(first), kv_reply_revision(first));
  kv_reply *second = ask(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("a/b"), .value = KV_TEXT("two")});
  REQUIRE(second && kv_reply_code(second) == KV_OK);
  CHECK(kv_reply_revision(second) > kv_reply_revision(first));
  CHECK_EQ(kv_reply_created(second), kv_reply_created(first));
  kv_reply *got = ask(store, &(kv_request){.kind = KV_GET, .key = KV_TEXT("/a//b/")});
  REQUIRE(got && kv_reply_pair(got, &pair));
  CHECK_EQ(pair.revision, kv_reply_revision(second));
  CHECK_EQ(pair.created, kv_reply_created(first));
  CHECK(pair.key.size == 3 && memcmp(pair.key.data, "a/b", 3) == 0);
  CHECK(pair.value.size == 3 && memcmp(pair.value.data, "two", 3) == 0);
  kv_reply_free(first);
  kv_reply_free(second);
  kv_reply_free(got);
  CHECK_EQ(put(store, "empty", ""), KV_OK);
  CHECK_STR(get(store, "empty"), "");
  kv_reply *gone = ask(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("a/b")});
  CHECK(gone && kv_reply_code(gone) == KV_OK && kv_reply_found(gone));
  kv_reply *again = ask(store, &(kv_request){.kind = KV_DELETE, .key = KV_TEXT("a/b")});
  CHECK(again && kv_reply_code(again) == KV_OK && !kv_reply_found(again));
  kv_reply_free(gone);
  kv_reply_free(again);
  CHECK_STR(get(store, "a/b"), "(none)");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PING}), KV_OK);
  kv_info info;
  kv_store_info(store, &info);
  CHECK(info.connected);
  CHECK(info.server_version[0] == '3');
  close_store(store);
}

TEST(conditions) {
  WITH_ETCD(store, "/conditions");
  kv_request create = {.kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("1"), .condition = KV_IF_ABSENT};
  kv_reply *reply = ask(store, &create);
  REQUIRE(reply && kv_reply_code(reply) == KV_OK);
  uint64_t revision = kv_reply_revision(reply);
  CHECK_EQ(kv_reply_created(reply), revision);
  kv_reply_free(reply);
  CHECK_EQ(code_of(store, &create), KV_EXISTS);
  kv_request change = {.kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("2"), .condition = KV_IF_REVISION,
                       .revision = revision};
  reply = ask(store, &change);
  REQUIRE(reply && kv_reply_code(reply) == KV_OK);
  CHECK_EQ(kv_reply_created(reply), revision);
  uint64_t later = kv_reply_revision(reply);
  CHECK(later > revision);
  kv_reply_free(reply);
  CHECK_EQ(code_of(store, &change), KV_MODIFIED);
  kv_request drop = {.kind = KV_DELETE, .key = KV_TEXT("k"), .condition = KV_IF_REVISION, .revision = revision};
  CHECK_EQ(code_of(store, &drop), KV_MODIFIED);
  drop.revision = later;
  CHECK_EQ(code_of(store, &drop), KV_OK);
  CHECK_EQ(code_of(store, &drop), KV_MODIFIED);
  change.revision = later;
  CHECK_EQ(code_of(store, &change), KV_MODIFIED);
  close_store(store);
}

TEST(listing) {
  WITH_ETCD(store, "/listing");
  const char *keys[] = {"d/a", "d/a-b", "d/a/x", "d/a/y/z", "d/b/1", "d/b/2", "d/c", "d0", "dx/1", "e"};
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) CHECK_EQ(put(store, keys[i], keys[i]), KV_OK);
  CHECK_STR(list(store, "d", 0, 0), "d/a d/a-b d/a/x d/a/y/z d/b/1 d/b/2 d/c");
  CHECK_STR(list(store, "d", KV_KEYS_ONLY, 3), "d/a d/a-b d/a/x | d/a/y/z d/b/1 d/b/2 | d/c");
  CHECK_STR(list(store, "d", KV_SHALLOW, 0), "d/a d/a-b d/b/ d/c");
  CHECK_STR(list(store, "", KV_SHALLOW, 0), "d/ d0 dx/ e");
  CHECK_STR(list(store, "none", 0, 0), "");
  CHECK_STR(list(store, "", 0, 0), "d/a d/a-b d/a/x d/a/y/z d/b/1 d/b/2 d/c d0 dx/1 e");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE, .key = KV_TEXT("d/a")}), KV_OK);
  CHECK_STR(list(store, "d", 0, 0), "d/a-b d/b/1 d/b/2 d/c");
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE, .key = KV_TEXT("")}), KV_OK);
  CHECK_STR(list(store, "", 0, 0), "");
  close_store(store);
}

TEST(large_listing) {
  WITH_ETCD(store, "/large");
  enum { COUNT = 3000 };
  static char value[2000];
  memset(value, 'v', sizeof value);
  for (int i = 0; i < COUNT; i++) {
    char key[40];
    snprintf(key, sizeof key, "t/%05d", i);
    kv_request request = {.kind = KV_PUT, .key = text(key), .value = {value, sizeof value}, .timeout = 30};
    REQUIRE(submit(store, &request));
  }
  for (int i = 0; i < COUNT; i++) {
    kv_reply *reply = next_reply(30);
    REQUIRE(reply && kv_reply_code(reply) == KV_OK);
    kv_reply_free(reply);
  }
  int seen = 0, pages = 0;
  char after[60] = "";
  uint64_t revision = 0;
  for (bool more = true; more; pages++) {
    kv_pair pair;
    kv_reply *reply = ask(store, &(kv_request){.kind = KV_LIST, .key = KV_TEXT("t"), .after = text(after),
                                               .revision = revision});
    REQUIRE(reply && kv_reply_code(reply) == KV_OK);
    CHECK(kv_reply_bytes(reply) < 8 << 20);
    while (kv_reply_pair(reply, &pair)) {
      char key[40];
      snprintf(key, sizeof key, "t/%05d", seen++);
      CHECK(pair.key.size == strlen(key) && memcmp(pair.key.data, key, pair.key.size) == 0);
      CHECK_EQ(pair.value.size, sizeof value);
      snprintf(after, sizeof after, "%.*s", (int)pair.key.size, pair.key.data);
    }
    if (revision) CHECK_EQ(kv_reply_revision(reply), revision);
    revision = kv_reply_revision(reply);
    more = kv_reply_more(reply);
    kv_reply_free(reply);
  }
  CHECK_EQ(seen, COUNT);
  CHECK(pages > 2);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE, .key = KV_TEXT("")}), KV_OK);
  close_store(store);
}

CHECK_MAIN()
