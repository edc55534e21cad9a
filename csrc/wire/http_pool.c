/*
 * http_pool.c - the servers of a client and the sockets to them.
 *
 * libcurl decides which kept connection it uses, and asks for a socket when it has none; then it gets the one that
 * the core dialled for this very transfer, or none, and the transfer waits for another dial. Which server a
 * connection belongs to is made known to libcurl by CURLOPT_CONNECT_TO with an address that is never connected to: it
 * only has to differ between servers.
 *
 * A socket that libcurl has put aside stays in the poll set: if it becomes readable then, the server has closed it,
 * and it does not count as a kept connection any more. It also saves taking it out and in again for each request.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http_internal.h"

#define CONNECTIONS 64                 /* for short requests */
#define CONNECTIONS_MIN 2
#define CROWDED_FOR (30 * HTTP_SECOND)
#define CROWDED_PAUSE (HTTP_SECOND / 20)
#define SPARE_FOR (5 * HTTP_SECOND)
#define SEASON_MAX (HTTP_SECOND / 5)
#define BACKOFF_MAX 1.0                /* seconds; a server that comes back is not to be waited for any longer */

/* ------------------------------------------------------------------ servers */

static char *make_base(const struct kv_config *config, const struct kv_address *at) {
  const char *name = config->scheme->tls && config->tls_server_name ? config->tls_server_name : at->host;
  bool brackets = strchr(name, ':') != NULL;
  size_t size = strlen(name) + 32;
  char *base = malloc(size);
  if (base)
    snprintf(base, size, "%s://%s%s%s:%u", config->scheme->tls ? "https" : "http", brackets ? "[" : "", name,
             brackets ? "]" : "", (unsigned)at->port);
  return base;
}

static bool server_init(struct http_client *client, struct http_server *server, size_t address) {
  const struct kv_address *at = &client->config->addresses[address];
  bool brackets = strchr(at->host, ':') != NULL;
  char apart[40];
  snprintf(server->name, sizeof server->name, "%s%s%s:%u", brackets ? "[" : "", at->host, brackets ? "]" : "",
           (unsigned)at->port);
  snprintf(apart, sizeof apart, "::127.0.0.1:%u", (unsigned)(1 + address % 65000));
  server->client = client;
  server->address = address;
  server->base = make_base(client->config, at);
  server->connect_to = curl_slist_append(NULL, apart);
  return server->base && server->connect_to;
}

static void dialled(struct kv_dial *dial, int fd, size_t address, const char *problem);

static void dial_due(struct kv_timer *timer) {
  http_pump_later(timer->data);
}

bool http_pool_init(struct http_client *client) {
  size_t count = client->config->address_count;
  client->servers = calloc(count ? count : 1, sizeof *client->servers);
  if (!client->servers) return false;
  client->most = CONNECTIONS;
  client->dial_timer.fire = dial_due;
  client->dial_timer.data = client;
  for (size_t i = 0; i < HTTP_DIALS; i++) {
    client->dials[i].client = client;
    client->dials[i].dial.done = dialled;
    client->dials[i].dial.data = &client->dials[i];
  }
  for (size_t i = 0; i < count; i++)
    if (!server_init(client, &client->servers[i], i)) return false;
  return true;
}

void http_pool_close(struct http_client *client) {
  for (size_t i = 0; i < HTTP_DIALS; i++)
    if (client->dials[i].busy) client->host->dial_cancel(&client->dials[i].dial);
  for (size_t i = 0; i < client->spare_count; i++) close(client->spares[i].fd);
  client->spare_count = 0;
  client->dialling = 0;
  client->host->timer_stop(&client->dial_timer);
}

void http_pool_free(struct http_client *client) {
  for (size_t i = 0; client->servers && i < client->config->address_count; i++) {
    free(client->servers[i].base);
    curl_slist_free_all(client->servers[i].connect_to);
  }
  free(client->servers);
  free(client->by_fd);
}

/* ------------------------------------------------------------------ what is known of servers */

void http_pool_answered(struct http_client *client, struct http_server *server) {
  server->heard = client->host->now();
  client->rounds = client->failures = 0;
  if (client->told == server) return;
  client->told = server;
  client->host->connected(client->backend, true, server->name, NULL);
}

static void told_lost(struct http_client *client, const struct http_server *server) {
  if (client->told != server) return;
  client->told = NULL;
  client->host->connected(client->backend, false, server->name, NULL);
}

void http_pool_trouble(struct http_client *client, struct http_server *server) {
  client->host->endpoint_failed(client->backend, server->address);
  told_lost(client, server);
}

static struct http_socket *find(const struct http_client *client, curl_socket_t fd) {
  return fd >= 0 && (size_t)fd < client->by_fd_size ? client->by_fd[fd] : NULL;
}

/* Nothing to read, and no end. */
static bool still_open(int fd) {
  char byte;
  ssize_t got = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

static void mark_dead(struct http_socket *sock) {
  if (sock->dead) return;
  sock->dead = true;
  if (sock->server->live) sock->server->live--;
  if (!sock->server->live) sock->server->client->breaks++; /* nobody is left to tell of a restart */
}

/* It was used before, and is closed by the other side. */
static void mark_broken(struct http_socket *sock) {
  if (!sock->dead) sock->server->client->breaks++;
  mark_dead(sock);
}

/* libcurl looks whether a kept connection was closed, but does not see every way in which that happens. */
bool http_pool_is_dead(struct http_server *server, int local_port) {
  struct http_socket *sock = server->sockets;
  while (sock && sock->local_port != local_port) sock = sock->next;
  if (!sock || (!sock->dead && still_open(sock->io.fd))) return false;
  mark_broken(sock);
  return true;
}

/* Nothing came from it for too long. Connections that nobody uses are not used again; with other servers at hand,
 * reads and
 * long polls are taken away from it as well. A write is left to its owner's patience: its answer may still come. */
void http_pool_silent(struct http_client *client, struct http_server *server) {
  http_pool_trouble(client, server);
  for (struct http_socket *sock = server->sockets; sock; sock = sock->next) {
    const struct http_transfer *transfer = sock->in_use ? sock->transfer : NULL;
    bool writes = transfer && transfer->request && transfer->request->write;
    if (sock->in_use && (writes || client->config->address_count < 2)) continue;
    if (!sock->in_use) mark_dead(sock);
    shutdown(sock->io.fd, SHUT_RDWR); /* libcurl sees the end of it, now or before it would use it again */
  }
}

static size_t live_connections(const struct http_client *client) {
  size_t live = 0;
  for (size_t i = 0; i < client->config->address_count; i++) live += client->servers[i].live;
  return live;
}

void http_crowded(struct http_client *client) {
  int64_t now = client->host->now();
  size_t live = live_connections(client);
  size_t fewer = live > client->lasting ? live - client->lasting : 0;
  client->most = fewer < CONNECTIONS_MIN ? CONNECTIONS_MIN : fewer;
  client->crowded_until = now + CROWDED_FOR;
  client->next_dial = now + CROWDED_PAUSE;
  client->tell_crowded = true;
  http_pump_later(client);
}

struct http_server *http_pool_idle(struct http_client *client) {
  for (size_t i = 0; i < client->config->address_count; i++)
    if (client->servers[i].live > client->servers[i].running) return &client->servers[i];
  return NULL;
}

bool http_pool_long_may_begin(const struct http_client *client) {
  return live_connections(client) + client->spare_count >= client->lasting + 2;
}

/* ------------------------------------------------------------------ dialling */

/* A dead peer is noticed even if it never says so. */
static void set_options(int fd) {
  int on = 1, idle = 10, interval = 3, count = 3;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
#ifdef TCP_KEEPIDLE
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
#endif
#ifdef TCP_USER_TIMEOUT
  unsigned unanswered = 15000;
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered, sizeof unanswered);
#endif
}

static size_t connections(const struct http_client *client) {
  return live_connections(client) + client->dialling + client->spare_count;
}

/* When every server was tried, the next round is a little later; and whoever waits is told, unless there is a
 * connection yet. */
static void dial_failed(struct http_client *client, const char *problem) {
  if (++client->failures < client->config->address_count) return;
  double pause = client->host->backoff(client->rounds++);
  if (pause > BACKOFF_MAX) pause = BACKOFF_MAX;
  client->failures = 0;
  client->next_dial = client->host->now() + (int64_t)(pause * (double)HTTP_SECOND);
  if (live_connections(client) + client->spare_count > client->lasting) return;
  if (client->told) told_lost(client, client->told);
  http_fail_waiting(client, HTTP_NOT_SENT, problem);
}

static void drop_spare(struct http_client *client, size_t index) {
  close(client->spares[index].fd);
  client->spares[index] = client->spares[--client->spare_count];
}

/* Those that are too old, or were closed by the server: NULL, or one of whom the latter is true. */
static struct http_server *drop_closed(struct http_client *client) {
  struct http_server *closed = NULL;
  for (size_t i = client->spare_count; i-- > 0;) {
    struct http_spare *spare = &client->spares[i];
    bool open = still_open(spare->fd);
    if (!open) closed = spare->server;
    if (!open || client->host->now() - spare->since > SPARE_FOR) drop_spare(client, i);
  }
  return closed;
}

void http_pool_unproved(struct http_client *client, struct http_server *server, const char *problem) {
  if (server->live) {
    http_crowded(client);
    return;
  }
  client->host->endpoint_failed(client->backend, server->address);
  dial_failed(client, problem);
}

static void closed_at_once(struct http_client *client, struct http_server *server) {
  char problem[400];
  snprintf(problem, sizeof problem, "%s: the server closed the connection at once", server->name);
  http_pool_unproved(client, server, problem);
}

/* A server over its limit of connections accepts one and closes it at once. What was sent on it would be in doubt: so
 * one
 * that is not the first is only used after a moment. */
bool http_pool_spare(struct http_client *client, struct http_server **server, int *fd) {
  int64_t now = client->host->now(), soonest = INT64_MAX;
  struct http_server *closed = drop_closed(client);
  for (size_t i = client->spare_count; i-- > 0;) {
    struct http_spare *spare = &client->spares[i];
    if (spare->server->live && now < spare->usable_at) {
      if (spare->usable_at < soonest) soonest = spare->usable_at;
      continue;
    }
    *server = spare->server;
    *fd = spare->fd;
    *spare = client->spares[--client->spare_count];
    return true;
  }
  if (closed) closed_at_once(client, closed); /* the lists may be other ones now */
  if (soonest != INT64_MAX) client->host->timer_set(&client->dial_timer, soonest);
  return false;
}

static void dialled(struct kv_dial *dial, int fd, size_t address, const char *problem) {
  struct http_dial *own = dial->data;
  struct http_client *client = own->client;
  own->busy = false;
  client->dialling--;
  http_pump_later(client);
  if (fd < 0) {
    dial_failed(client, problem);
    return;
  }
  if (client->spare_count == HTTP_SPARES) {
    close(fd);
    return;
  }
  set_options(fd);
  int64_t now = client->host->now(), season = (now - own->since) * 3 / 2 + HTTP_SECOND / 500;
  client->spares[client->spare_count++] =
    (struct http_spare){.fd = fd, .server = &client->servers[address], .since = now,
                        .usable_at = now + (season < SEASON_MAX ? season : SEASON_MAX)};
}

/* How many more connections the waiting requests could use. */
static size_t wanted(const struct http_client *client) {
  size_t short_ones = client->waiting.count, long_ones = client->waiting_long.count;
  size_t want = short_ones + long_ones + (long_ones ? 1 : 0), coming = client->dialling + client->spare_count;
  coming += client->probing;
  size_t have = connections(client), most = client->most + client->lasting + long_ones;
  if (want <= coming || have >= most) return 0;
  return want - coming < most - have ? want - coming : most - have;
}

void http_pool_dial(struct http_client *client) {
  int64_t now = client->host->now();
  if (client->crowded_until && client->crowded_until < now) {
    client->most = CONNECTIONS;
    client->crowded_until = 0;
  }
  size_t count = wanted(client);
  if (count && now < client->next_dial) {
    client->host->timer_set(&client->dial_timer, client->next_dial);
    return;
  }
  for (size_t i = 0; i < HTTP_DIALS && count; i++) {
    if (client->dials[i].busy) continue;
    client->dials[i].busy = true;
    client->dials[i].since = now;
    client->dialling++;
    count--;
    client->host->dial(client->backend, &client->dials[i].dial);
  }
}

/* ------------------------------------------------------------------ sockets in libcurl's hands */

static bool remember(struct http_client *client, struct http_socket *sock) {
  size_t need = (size_t)sock->io.fd + 1;
  if (need > client->by_fd_size) {
    size_t size = need < 64 ? 64 : need * 2;
    struct http_socket **by_fd = realloc(client->by_fd, size * sizeof *by_fd);
    if (!by_fd) return false;
    memset(by_fd + client->by_fd_size, 0, (size - client->by_fd_size) * sizeof *by_fd);
    client->by_fd = by_fd;
    client->by_fd_size = size;
  }
  client->by_fd[sock->io.fd] = sock;
  return true;
}

static void ready(struct kv_io *io, unsigned events) {
  struct http_socket *sock = io->data;
  struct http_client *client = sock->server->client;
  int what = 0;
  if (!sock->in_use) { /* closed by the server, or it speaks out of turn */
    client->host->io_remove(io);
    mark_broken(sock);
    return;
  }
  sock->server->heard = client->host->now();
  if (events & KV_IO_READ) what |= CURL_CSELECT_IN;
  if (events & KV_IO_WRITE) what |= CURL_CSELECT_OUT;
  http_act(client, io->fd, what);
}

static int port_of(int fd) {
  union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
  } address;
  socklen_t size = sizeof address;
  if (getsockname(fd, &address.any, &size) != 0) return -1;
  return ntohs(address.any.sa_family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port);
}

static curl_socket_t open_socket(void *context, curlsocktype purpose, struct curl_sockaddr *address) {
  struct http_transfer *transfer = context;
  struct http_server *server = transfer->server;
  (void)purpose;
  (void)address;
  if (transfer->fd < 0) {
    transfer->wants_socket = true;
    return CURL_SOCKET_BAD;
  }
  struct http_socket *sock = calloc(1, sizeof *sock);
  if (!sock) return CURL_SOCKET_BAD;
  sock->server = server;
  sock->transfer = transfer;
  sock->io.fd = transfer->fd;
  sock->io.ready = ready;
  sock->io.data = sock;
  sock->local_port = port_of(transfer->fd);
  if (!remember(server->client, sock)) {
    free(sock);
    return CURL_SOCKET_BAD;
  }
  sock->next = server->sockets;
  if (sock->next) sock->next->link = &sock->next;
  sock->link = &server->sockets;
  server->sockets = sock;
  transfer->fd = -1;
  return sock->io.fd;
}

static int is_connected(void *context, curl_socket_t fd, curlsocktype purpose) {
  (void)context;
  (void)fd;
  (void)purpose;
  return CURL_SOCKOPT_ALREADY_CONNECTED;
}

/* The context is the client: a socket outlives the transfer that opened it. */
static int close_socket(void *context, curl_socket_t fd) {
  struct http_client *client = context;
  struct http_socket *sock = find(client, fd);
  if (!sock) return close(fd);
  mark_dead(sock);
  client->host->io_remove(&sock->io);
  client->by_fd[fd] = NULL;
  *sock->link = sock->next;
  if (sock->next) sock->next->link = sock->link;
  free(sock);
  return close(fd);
}

int http_pool_socket(CURL *easy, curl_socket_t fd, int what, void *context, void *own) {
  struct http_client *client = context;
  struct http_socket *sock = find(client, fd);
  char *transfer = NULL;
  (void)own;
  if (!sock) return 0;
  if (what == CURL_POLL_REMOVE) {
    sock->in_use = false;
    sock->transfer = NULL;
    if (!sock->dead) client->host->io_set(&sock->io, KV_IO_READ);
    return 0;
  }
  curl_easy_getinfo(easy, CURLINFO_PRIVATE, &transfer);
  sock->transfer = (struct http_transfer *)(void *)transfer;
  sock->in_use = true;
  unsigned events = 0;
  if (what & CURL_POLL_IN) events |= KV_IO_READ;
  if (what & CURL_POLL_OUT) events |= KV_IO_WRITE;
  client->host->io_set(&sock->io, events);
  return 0;
}

void http_pool_setup(struct http_client *client, CURL *easy, struct http_transfer *transfer) {
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, open_socket);
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, transfer);
  curl_easy_setopt(easy, CURLOPT_SOCKOPTFUNCTION, is_connected);
  curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, close_socket);
  curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, client);
}
