/*
 * test_http.c - the HTTP layer against peers that behave and peers that do not.
 *
 * A small driver turns operations into requests: a get asks for its key as path, a put sends its value there. What
 * came of a request is told in the message: "OUTCOME sent=N status=N body". The peer does what the path says, and
 * counts the requests.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <time.h>

#include "../support/free_port.h"
#include "check.h"
#include "core/core.h"
#include "wire/http.h"

static const struct kv_host *host;
static const char *probe_path; /* of stores that are opened from now on */

/* ------------------------------------------------------------------ the driver */

struct client {
  struct kv_backend *backend;
  struct http_client *http;
};

struct request {
  struct http_request http; /* first */
  struct client *client;
  struct kv_op *op;
  struct kv_buffer path, body;
  char type[64];
};

static const char *const outcomes[] = {"answered", "not_sent", "refused", "lost", "too_long", "failed"};

static void request_end(struct request *request, const char *text) {
  struct kv_op *op = request->op;
  kv_buffer_free(&request->path);
  kv_buffer_free(&request->body);
  free(request);
  op->data = NULL;
  host->finish(op, KV_FAILED, "%s", text);
}

static void on_sent(struct http_request *http) {
  ((struct request *)http)->op->sent = true;
}

static void on_done(struct http_request *http) {
  struct request *request = (struct request *)http;
  char text[400];
  kv_slice mark = {"-", 1};
  http_header(http, "X-Mark", &mark);
  int size = http->answer.size > 60 ? 60 : (int)http->answer.size;
  snprintf(text, sizeof text, "%s sent=%d status=%d size=%zu mark=%.*s %.*s%s", outcomes[http->outcome], http->sent,
           http->status, http->answer.size, (int)mark.size, mark.data, size,
           http->answer.data ? http->answer.data : "", http->problem ? http->problem : "");
  request_end(request, text);
}

static void *driver_create(struct kv_backend *backend, const struct kv_config *config, kv_error *error) {
  struct client *client = calloc(1, sizeof *client);
  const char *const headers[] = {"X-Test: yes", NULL};
  (void)error;
  if (!client) return NULL;
  client->backend = backend;
  client->http = http_client_new(&(struct http_options){
      .host = host, .backend = backend, .config = config, .headers = headers, .probe_path = probe_path});
  return client;
}

static void driver_close(void *state) {
  struct client *client = state;
  http_client_close(client->http);
  host->closed(client->backend);
}

static void driver_destroy(void *state) {
  struct client *client = state;
  http_client_free(client->http);
  free(client);
}

static void driver_start(void *state, struct kv_op *op) {
  struct request *request = calloc(1, sizeof *request);
  request->client = state;
  request->op = op;
  op->data = request;
  kv_buffer_init(&request->path, 1000);
  kv_buffer_init(&request->body, 1 << 20);
  kv_buffer_add(&request->path, "/", 1);
  http_escape(&request->path, op->key, true);
  request->http.method = op->kind == KV_PUT ? "PUT" : op->kind == KV_DELETE ? "DELETE" : "GET";
  request->http.path = &request->path;
  request->http.write = op->kind != KV_GET;
  if (op->kind == KV_PUT && op->value.size) {
    kv_buffer_add(&request->body, op->value.data, op->value.size);
    request->http.body = &request->body;
    request->http.content_type = "text/x-test";
  }
  request->http.lasting = op->flags & KV_FAST;
  request->http.timeout = op->flags & KV_FAST ? 0.3 : 0;
  request->http.answer_max = 100000;
  request->http.on_sent = on_sent;
  request->http.done = on_done;
  http_start(request->client->http, &request->http);
}

static void driver_cancel(void *state, struct kv_op *op) {
  struct client *client = state;
  struct request *request = op->data;
  if (!request) return;
  http_doubt(client->http, &request->http);
  http_cancel(client->http, &request->http);
  request_end(request, "cancelled");
}

static void driver_attach(const struct kv_host *table) {
  host = table;
}

static const struct kv_scheme schemes[] = {{"httptest", false, 80}, {"httptests", true, 443}, {NULL, false, 0}};
static const struct kv_driver driver = {.abi = KV_DRIVER_ABI,
                                        .name = "httptest",
                                        .schemes = schemes,
                                        .attach = driver_attach,
                                        .create = driver_create,
                                        .close = driver_close,
                                        .destroy = driver_destroy,
                                        .start = driver_start,
                                        .cancel = driver_cancel};

/* ------------------------------------------------------------------ the peer */

static atomic_bool refuse_new; /* accept and close at once, as a server over its limit of connections does */

static struct {
  int port, listener;
  pthread_t thread;
  atomic_int connections, open, requests, puts, drops, most_open;
  atomic_bool stop;
  pthread_mutex_t lock;
  char last[1000]; /* the last request's head */
  bool talks[1024]; /* by descriptor */
} peer = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int listen_at(int *port) {
  struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)*port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, (void *)&address, size) != 0 || listen(fd, 128) != 0) return -1;
  getsockname(fd, (void *)&address, &size);
  *port = ntohs(address.sin_port);
  return fd;
}

static int listen_anywhere(int *port) {
  *port = 0;
  return listen_at(port);
}

/* After shutdown(). */
static void listen_again(void) {
  int fd = listen_at(&peer.port);
  if (fd < 0 || dup2(fd, peer.listener) < 0) perror("listen_again");
  close(fd);
}

static void say(int fd, const char *text) {
  if (send(fd, text, strlen(text), MSG_NOSIGNAL) < 0) return;
}

/* Answer by what the path asks for. False: close. */
static bool answer(int fd, const char *head) {
  atomic_fetch_add(&peer.requests, 1);
  if (strncmp(head, "PUT ", 4) == 0) atomic_fetch_add(&peer.puts, 1);
  const char *path = strchr(head, ' ');
  path = path ? path + 1 : "";
  if (strncmp(path, "/ok", 3) == 0) {
    say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-MARK:  first\r\nX-Mark: here \r\n\r\nhello");
  } else if (strncmp(path, "/continue", 9) == 0) {
    say(fd, "HTTP/1.1 100 Continue\r\nX-Mark: no\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nhi");
  } else if (strncmp(path, "/chunked", 8) == 0) {
    say(fd, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n3\r\nefg\r\n0\r\n\r\n");
  } else if (strncmp(path, "/last", 5) == 0) {
    say(fd, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbye");
    return false;
  } else if (strncmp(path, "/soon-over", 10) == 0) {
    say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsoon");
    nanosleep(&(struct timespec){0, 300000000}, NULL);
    listen_again(); /* as a server that was started anew */
    return false;
  } else if (strncmp(path, "/drop", 5) == 0) {
    atomic_fetch_add(&peer.drops, 1);
    return false;
  } else if (strncmp(path, "/half", 5) == 0) {
    say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf of it");
    return false;
  } else if (strncmp(path, "/cut-line", 9) == 0) {
    say(fd, "HTTP/1.1 2");
    return false;
  } else if (strncmp(path, "/cut-head", 9) == 0) {
    say(fd, "HTTP/1.1 200 OK\r\nX-Mark: fir");
    return false;
  } else if (strncmp(path, "/garbage", 8) == 0) {
    say(fd, "\1\2\3 this is no HTTP\r\n\r\n");
    return false;
  } else if (strncmp(path, "/redirect", 9) == 0) {
    say(fd, "HTTP/1.1 301 Moved\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n");
  } else if (strncmp(path, "/headers", 8) == 0) {
    say(fd, "HTTP/1.1 200 OK\r\n");
    for (int i = 0; i < 4000; i++) say(fd, "X-Filler: 0123456789012345678901234567890123456789\r\n");
    say(fd, "Content-Length: 0\r\n\r\n");
  } else if (strncmp(path, "/large", 6) == 0) {
    char body[4096];
    memset(body, 'x', sizeof body - 1);
    body[sizeof body - 1] = '\0';
    say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 204750\r\n\r\n");
    for (int i = 0; i < 50; i++) say(fd, body);
  } else if (strncmp(path, "/slow", 5) == 0) {
    nanosleep(&(struct timespec){0, 50000000}, NULL);
    say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow");
  } else if (strncmp(path, "/never", 6) == 0) {
    char byte;
    while (recv(fd, &byte, 1, 0) > 0) continue;
    return false;
  } else {
    say(fd, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
  }
  return true;
}

/* How many connections the client has open: not those that it has closed, and whose threads are late. */
static int open_now(void) {
  int count = 0;
  char byte;
  for (int fd = 0; fd < 1024; fd++)
    if (peer.talks[fd] && recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0) count++;
  return count;
}

static void set_talks(int fd, bool talks) {
  pthread_mutex_lock(&peer.lock);
  if (fd < 1024) peer.talks[fd] = talks;
  int count = talks ? open_now() : 0;
  if (count > atomic_load(&peer.most_open)) atomic_store(&peer.most_open, count);
  pthread_mutex_unlock(&peer.lock);
}

static void *converse(void *argument) {
  int fd = (int)(intptr_t)argument;
  char head[8192];
  size_t size = 0;
  atomic_fetch_add(&peer.open, 1);
  set_talks(fd, true);
  for (;;) {
    ssize_t got = recv(fd, head + size, sizeof head - 1 - size, 0);
    if (got <= 0) break;
    size += (size_t)got;
    head[size] = '\0';
    char *end = strstr(head, "\r\n\r\n");
    if (!end) continue;
    const char *length = strcasestr(head, "content-length:");
    size_t body = length && length < end ? (size_t)atol(length + 15) : 0;
    if (size < (size_t)(end + 4 - head) + body) continue;
    pthread_mutex_lock(&peer.lock);
    snprintf(peer.last, sizeof peer.last, "%.*s", (int)sizeof peer.last - 1, head);
    pthread_mutex_unlock(&peer.lock);
    size = 0;
    if (!answer(fd, head)) break;
  }
  set_talks(fd, false);
  close(fd);
  atomic_fetch_sub(&peer.open, 1);
  return NULL;
}

static void *serve(void *argument) {
  (void)argument;
  while (!atomic_load(&peer.stop)) {
    int fd = accept(peer.listener, NULL, NULL);
    pthread_t thread;
    if (fd < 0) continue;
    atomic_fetch_add(&peer.connections, 1);
    if (atomic_load(&refuse_new)) {
      char byte;
      recv(fd, &byte, 1, 0); /* it even reads a little */
      close(fd);
      continue;
    }
    if (pthread_create(&thread, NULL, converse, (void *)(intptr_t)fd) == 0) pthread_detach(thread);
  }
  return NULL;
}

static void peer_begin(void) {
  if (!peer.listener) {
    peer.listener = listen_anywhere(&peer.port);
    if (pthread_create(&peer.thread, NULL, serve, NULL) == 0) pthread_detach(peer.thread);
  }
  peer.requests = peer.puts = peer.drops = peer.connections = 0;
  atomic_store(&peer.most_open, 0);
}

/* ------------------------------------------------------------------ asking */

static kv_queue *queue;

static kv_store *open_store(const char *url) {
  kv_error error;
  kv_register(&driver, NULL);
  if (!queue) queue = kv_queue_new(NULL);
  kv_store *store = kv_open(url, NULL, &error);
  if (!store) fprintf(stderr, "%s\n", error.message);
  return store;
}

static kv_store *open_peer(void) {
  char url[100];
  peer_begin();
  snprintf(url, sizeof url, "httptest://127.0.0.1:%d", peer.port);
  return open_store(url);
}

static void end(kv_store *store) {
  kv_close(store);
  CHECK(kv_close_wait(store, 5));
  kv_store_free(store);
}

static char told[KV_MESSAGE_MAX];

static const char *take(double seconds) {
  kv_reply *reply;
  while (!(reply = kv_queue_next(queue)))
    if (kv_queue_wait(queue, seconds) == 0) return "(nothing)";
  const char *colon = strstr(kv_reply_message(reply), ": ");
  snprintf(told, sizeof told, "%s%s", kv_reply_code(reply) == KV_FAILED ? "" : kv_code_text(kv_reply_code(reply)),
           kv_reply_code(reply) == KV_FAILED ? (colon ? colon + 2 : "") : "");
  kv_reply_free(reply);
  return told;
}

static void submit(kv_store *store, kv_kind kind, const char *path, const char *body, unsigned flags, double timeout) {
  kv_reply *reply = NULL;
  kv_error error;
  kv_request request = {
      .kind = kind, .key = {path, strlen(path)}, .value = {body, strlen(body)}, .flags = flags, .timeout = timeout};
  if (kv_submit(store, queue, &request, 1, NULL, &reply, &error) != KV_OK) fprintf(stderr, "%s\n", error.message);
}

static const char *get(kv_store *store, const char *path) {
  submit(store, KV_GET, path, "", 0, 5);
  return take(10);
}

static const char *put(kv_store *store, const char *path, const char *body) {
  submit(store, KV_PUT, path, body, 0, 5);
  return take(10);
}

static bool begins(const char *text, const char *words) {
  if (strncmp(text, words, strlen(words)) == 0) return true;
  fprintf(stderr, "\"%s\" does not begin with \"%s\"\n", text, words);
  return false;
}

/* ------------------------------------------------------------------ tests */

TEST(answers) {
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  CHECK_STR(get(store, "ok"), "answered sent=1 status=200 size=5 mark=here hello");
  CHECK(strstr(peer.last, "\r\nX-Test: yes\r\n") != NULL);
  CHECK_STR(get(store, "nowhere"), "answered sent=1 status=404 size=0 mark=- ");
  CHECK_STR(get(store, "continue"), "answered sent=1 status=201 size=2 mark=- hi");
  CHECK_STR(get(store, "chunked"), "answered sent=1 status=200 size=7 mark=- abcdefg");
  CHECK_STR(get(store, "redirect"), "answered sent=1 status=301 size=0 mark=- ");
  CHECK_STR(put(store, "ok", "the body"), "answered sent=1 status=200 size=5 mark=here hello");
  CHECK(strstr(peer.last, "PUT /ok HTTP/1.1\r\n") == peer.last);
  CHECK(strstr(peer.last, "\r\n\r\nthe body") != NULL);
  CHECK(strstr(peer.last, "\r\nContent-Type: text/x-test\r\n") != NULL);
  CHECK(strcasestr(peer.last, "\r\nexpect:") == NULL);
  CHECK_STR(put(store, "ok", ""), "answered sent=1 status=200 size=5 mark=here hello");
  CHECK(strcasestr(peer.last, "\r\ncontent-length: 0\r\n") != NULL);
  CHECK(strcasestr(peer.last, "\r\ncontent-type:") == NULL);
  submit(store, KV_DELETE, "ok", "", 0, 5);
  CHECK_STR(take(10), "answered sent=1 status=200 size=5 mark=here hello");
  CHECK(strstr(peer.last, "DELETE /ok HTTP/1.1\r\n") == peer.last);
  CHECK_STR(get(store, "ok/a b%/\xc3\xa4"), "answered sent=1 status=200 size=5 mark=here hello");
  CHECK(strstr(peer.last, "GET /ok/a%20b%25/%C3%A4 HTTP/1.1\r\n") == peer.last);
  CHECK_EQ(peer.connections, 1); /* kept all the time */
  end(store);
}

TEST(environment_does_not_matter) {
  setenv("http_proxy", "http://127.0.0.1:1", 1);
  setenv("ALL_PROXY", "http://127.0.0.1:1", 1);
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  CHECK(begins(get(store, "ok"), "answered"));
  end(store);
  unsetenv("http_proxy");
  unsetenv("ALL_PROXY");
}

TEST(a_closed_connection_is_replaced) {
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  for (int i = 0; i < 5; i++) CHECK(begins(put(store, "last", "x"), "answered sent=1 status=200 size=3 mark=- bye"));
  CHECK_EQ(peer.connections, 5);
  CHECK_EQ(peer.requests, 5);
  end(store);
}

/* libcurl by itself sends again what a kept connection swallowed. */
TEST(a_write_is_never_sent_twice) {
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  for (int i = 0; i < 20; i++) {
    CHECK(begins(get(store, "ok"), "answered"));
    CHECK(begins(put(store, "drop", i % 2 ? "body" : ""), "lost sent=1 status=0"));
    CHECK_EQ(peer.drops, i + 1);
  }
  end(store);
}

/* Two kept connections: the second one would be at hand for sending it again. */
TEST(a_write_is_never_sent_twice_though_another_connection_waits) {
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  for (int i = 0; i < 4; i++) submit(store, KV_GET, "slow", "", 0, 5);
  for (int i = 0; i < 4; i++) CHECK(begins(take(5), "answered"));
  CHECK(peer.connections >= 2);
  CHECK(begins(put(store, "drop", "x"), "lost sent=1 status=0"));
  submit(store, KV_DELETE, "drop", "", 0, 5);
  CHECK(begins(take(5), "lost sent=1 status=0"));
  CHECK_EQ(peer.drops, 2);
  end(store);
}

TEST(broken_answers) {
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  CHECK(begins(get(store, "half"), "lost sent=1 status=200"));
  CHECK(begins(get(store, "cut-line"), "lost sent=1 status=0"));
  CHECK(begins(get(store, "cut-head"), "lost sent=1 status=0"));
  CHECK(begins(put(store, "cut-head", "x"), "lost sent=1 status=0"));
  CHECK(begins(get(store, "garbage"), "lost sent=1"));
  CHECK(begins(get(store, "headers"), "too_long sent=1") || begins(told, "lost sent=1"));
  CHECK(begins(get(store, "large"), "too_long sent=1 status=200"));
  CHECK(begins(get(store, "ok"), "answered"));
  end(store);
}

TEST(nobody_listens) {
  char url[100];
  snprintf(url, sizeof url, "httptest://127.0.0.1:%d", free_port());
  kv_store *store = open_store(url);
  REQUIRE(store != NULL);
  CHECK(begins(put(store, "ok", "x"), "not_sent sent=0 status=0"));
  CHECK(strstr(told, "refused") != NULL);
  CHECK(begins(put(store, "ok", "x"), "not_sent sent=0 status=0"));
  kv_info info;
  kv_store_info(store, &info);
  CHECK(!info.connected);
  end(store);
}

TEST(the_other_server_is_used) {
  int port = free_port();
  char url[100];
  peer_begin();
  snprintf(url, sizeof url, "httptest://127.0.0.1:%d,127.0.0.1:%d,127.0.0.1:%d", port, peer.port, port);
  kv_store *store = open_store(url);
  REQUIRE(store != NULL);
  for (int i = 0; i < 30; i++) {
    CHECK(begins(put(store, "ok", "x"), "answered"));
    CHECK(begins(put(store, "last", "x"), "answered"));
  }
  kv_info info;
  kv_store_info(store, &info);
  CHECK(info.connected);
  char expected[40];
  snprintf(expected, sizeof expected, "127.0.0.1:%d", peer.port);
  CHECK_STR(info.endpoint, expected);
  end(store);
}

/* Only reads may meet a connection that the server does not want: what is in doubt with a write is not with them. */
TEST(a_new_connection_proves_itself_before_a_write) {
  probe_path = "/ok/probe";
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  CHECK(begins(put(store, "ok", "x"), "answered"));
  CHECK_EQ(peer.requests, 2);
  atomic_store(&refuse_new, true);
  CHECK(begins(put(store, "ok", "x"), "answered")); /* on the kept one */
  CHECK(begins(put(store, "last", "x"), "answered"));
  for (int i = 0; i < 3; i++) CHECK(begins(put(store, "ok", "x"), "not_sent sent=0"));
  atomic_store(&refuse_new, false);
  const char *what = put(store, "ok", "x");
  for (int i = 0; i < 50 && strncmp(what, "not_sent", 8) == 0; i++) what = put(store, "ok", "x");
  CHECK(begins(what, "answered"));
  end(store);
  probe_path = NULL;
}

TEST(many_share_few_connections) {
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  for (int i = 0; i < 1000; i++) submit(store, KV_GET, "ok", "", 0, 20);
  int good = 0;
  for (int i = 0; i < 1000; i++) good += strncmp(take(20), "answered", 8) == 0;
  CHECK_EQ(good, 1000);
  for (int i = 0; i < 200; i++) submit(store, KV_GET, "slow", "", 0, 20);
  for (int i = 0, slow = 0; i < 200; i++) {
    slow += strncmp(take(20), "answered", 8) == 0;
    if (i == 199) CHECK_EQ(slow, 200);
  }
  CHECK(atomic_load(&peer.most_open) <= 64);
  CHECK(atomic_load(&peer.most_open) >= 8);
  end(store);
}

/* It counts on what was told by a server that may have lost it since. */
TEST(a_long_poll_does_not_wait_for_the_next_server) {
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  CHECK(begins(get(store, "soon-over"), "answered"));
  shutdown(peer.listener, SHUT_RDWR); /* the poll needs a second connection */
  submit(store, KV_GET, "never", "", KV_FAST, 20);
  CHECK(begins(take(20), "not_sent sent=0"));
  CHECK(begins(get(store, "ok"), "answered"));
  end(store);
}

/* libcurl by itself sends again what a kept connection swallowed. */
TEST(a_long_poll_is_not_sent_twice) {
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  for (int i = 0; i < 4; i++) submit(store, KV_GET, "slow", "", 0, 5);
  for (int i = 0; i < 4; i++) CHECK(begins(take(5), "answered"));
  submit(store, KV_GET, "drop", "", KV_FAST, 5);
  CHECK(begins(take(5), "lost sent=1 status=0"));
  CHECK_EQ(peer.drops, 1);
  end(store);
}

TEST(deadlines) {
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  submit(store, KV_PUT, "never", "x", 0, 2);
  CHECK_STR(take(20), "unknown");
  submit(store, KV_GET, "never", "", 0, 0.2);
  CHECK_STR(take(20), "timeout");
  submit(store, KV_GET, "never", "", KV_FAST, 20); /* a timeout of its own */
  CHECK(begins(take(20), "lost sent=1 status=0"));
  CHECK(begins(get(store, "ok"), "answered"));
  end(store);
}

TEST(closing_drops_what_is_out) {
  kv_store *store = open_peer();
  REQUIRE(store != NULL);
  for (int i = 0; i < 100; i++) submit(store, i % 2 ? KV_PUT : KV_GET, "never", "x", 0, 20);
  submit(store, KV_GET, "ok", "", 0, 20);
  for (int i = 0; i < 2000 && !atomic_load(&peer.puts); i++) nanosleep(&(struct timespec){0, 10000000}, NULL);
  kv_close(store);
  int closed = 0, unknown = 0;
  for (int i = 0; i < 101; i++) {
    const char *what = take(5);
    closed += strcmp(what, "closed") == 0;
    unknown += strcmp(what, "unknown") == 0;
  }
  CHECK_EQ(closed + unknown, 101);
  CHECK(unknown > 0 && unknown <= 50);
  CHECK(kv_close_wait(store, 5));
  kv_store_free(store);
  for (int i = 0; i < 500 && atomic_load(&peer.open); i++) nanosleep(&(struct timespec){0, 10000000}, NULL);
  CHECK_EQ(atomic_load(&peer.open), 0);
}

/* ------------------------------------------------------------------ text */

static const char *split(const char *line) {
  static char out[100];
  kv_slice name, value;
  if (!http_split_header((kv_slice){line, strlen(line)}, &name, &value)) return NULL;
  snprintf(out, sizeof out, "[%.*s][%.*s]", (int)name.size, name.data, (int)value.size, value.data);
  return out;
}

TEST(header_lines) {
  CHECK_STR(split("A-b: c d \r\n"), "[A-b][c d]");
  CHECK_STR(split("A:"), "[A][]");
  CHECK_STR(split("A:\t \t\r\n"), "[A][]");
  CHECK_STR(split("A::b"), "[A][:b]");
  CHECK_STR(split(": x"), NULL);
  CHECK_STR(split("A b: x"), NULL);
  CHECK_STR(split("A"), NULL);
  CHECK_STR(split(""), NULL);
  CHECK_STR(split("\r\n"), NULL);
  CHECK_STR(split("HTTP/1.1 200 OK\r\n"), NULL);
}

TEST(numbers) {
  uint64_t number = 7;
  CHECK(http_number((kv_slice){"18446744073709551615", 20}, &number));
  CHECK(number == UINT64_MAX);
  CHECK(!http_number((kv_slice){"18446744073709551616", 20}, &number));
  CHECK(!http_number((kv_slice){"", 0}, &number));
  CHECK(!http_number((kv_slice){"-1", 2}, &number));
  CHECK(!http_number((kv_slice){"1 ", 2}, &number));
  CHECK(http_number((kv_slice){"0", 1}, &number) && number == 0);
}

CHECK_MAIN()
