/*
 * connection.c - one link to one member: a socket, TLS on it when wanted, HTTP/2 on that.
 *
 * Reading: everything that is there, in large pieces, fed to the gRPC machine; replies that come of it wake their
 * queues once. Writing: nothing is written when a call is started. At the end of the reactor's turn etcd_link_flush()
 * takes what all calls of that turn produced and hands it to the socket in one piece. A link keeps only what the
 * socket did not take; the large buffers are shared by all links of the process, which are served one after the other.
 *
 * Keep-alive: while calls or watches are open, a silent server is asked by an HTTP/2 PING and must answer it. Where
 * there are other members to go to, we are less patient. A gRPC server takes PINGs that are less than 5 s apart for
 * an attack; ours keep a second more between them, because on the way one may be held up and the next may not.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "etcd.h"

#define OUT_BYTES ((size_t)65536)
#define IN_BYTES ((size_t)65536)
#define READS_PER_TURN 64
#define MESSAGE_MAX ((size_t)48 << 20)
#define WINDOW (4 << 20)

#define PING_GAP (6 * ETCD_SECOND)
#define PATIENT_SILENCE (10 * ETCD_SECOND)
#define PATIENT_ANSWER (5 * ETCD_SECOND)
#define HASTY_SILENCE (2 * ETCD_SECOND)
#define HASTY_ANSWER (2 * ETCD_SECOND)

static uint8_t incoming[IN_BYTES], outgoing[OUT_BYTES];

static void ready(struct kv_io *io, unsigned events);

/* ------------------------------------------------------------------ making and ending */

static void options_for(int fd) {
  int on = 1, idle = 30, interval = 10, count = 3;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on); /* by the kernel: an idle store needs no wake-up of ours */
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

struct etcd_link *etcd_link_new(struct etcd *etcd, int fd, size_t address) {
  const struct kv_address *at = &etcd->config->addresses[address];
  const char *form = strchr(at->host, ':') ? "[%s]:%u" : "%s:%u";
  char authority[300];
  struct etcd_link *link = calloc(1, sizeof *link);
  if (!link) goto failed;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  snprintf(authority, sizeof authority, form, at->host, (unsigned)at->port);
#pragma GCC diagnostic pop
  link->grpc = grpc_connection_new(authority, etcd->config->scheme->tls, MESSAGE_MAX, WINDOW);
  if (!link->grpc) goto failed;
  options_for(fd);
  kv_list_init(&link->node);
  link->etcd = etcd;
  link->address = address;
  link->io.fd = fd;
  link->io.ready = ready;
  link->io.data = link;
  link->heard = kv_etcd->now();
  return link;
failed:
  free(link);
  close(fd);
  return NULL;
}

void etcd_link_free(struct etcd_link *link) {
  kv_list_remove(&link->node);
  kv_etcd->io_remove(&link->io);
  tls_stream_free(link->tls);
  close(link->io.fd);
  grpc_connection_free(link->grpc);
  free(link->out);
  free(link);
}

static bool trouble(struct etcd_link *link, const char *format, const char *detail) {
  if (link->problem[0]) return false;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  snprintf(link->problem, sizeof link->problem, format, detail);
#pragma GCC diagnostic pop
  return false;
}

/* ------------------------------------------------------------------ what the poll set waits for */

static void watch_socket(struct etcd_link *link) {
  unsigned events = KV_IO_READ | link->tls_events;
  if (link->out) events |= KV_IO_WRITE;
  if (link->state == ETCD_LINK_HANDSHAKE) events = link->tls_events;
  if (events != link->io.events) kv_etcd->io_set(&link->io, events);
}

static bool handshake(struct etcd_link *link) {
  int result = tls_handshake(link->tls);
  switch (result) {
    case 0:
      link->tls_events = 0;
      link->state = ETCD_LINK_PROBE;
      etcd_link_connected(link);
      return true;
    case TLS_AGAIN_READ: link->tls_events = KV_IO_READ; break;
    case TLS_AGAIN_WRITE: link->tls_events = KV_IO_WRITE; break;
    case TLS_EOF: return trouble(link, "%s", "the server closed the connection during the TLS handshake");
    default: return trouble(link, "%s", tls_problem(link->tls));
  }
  watch_socket(link);
  return true;
}

bool etcd_link_begin(struct etcd_link *link) {
  struct etcd *etcd = link->etcd;
  if (!etcd->config->scheme->tls) {
    link->state = ETCD_LINK_PROBE;
    watch_socket(link);
    etcd_link_connected(link);
    return true;
  }
  const char *name = etcd->config->tls_server_name;
  if (!name) name = etcd->config->addresses[link->address].host;
  link->tls = tls_stream_new(etcd->tls, link->io.fd, name);
  if (!link->tls) return trouble(link, "%s", "out of memory for TLS");
  link->state = ETCD_LINK_HANDSHAKE;
  return handshake(link);
}

/* ------------------------------------------------------------------ bytes out */

enum { MOVED_NOTHING = 0, MOVED_BROKEN = -1 };

static ptrdiff_t send_some(struct etcd_link *link, const uint8_t *data, size_t size) {
  if (link->tls) {
    ptrdiff_t moved = tls_write(link->tls, data, size);
    if (moved > 0) return moved;
    if (moved == TLS_AGAIN_READ) return MOVED_NOTHING; /* reading is always on */
    if (moved == TLS_AGAIN_WRITE) {
      link->tls_events |= KV_IO_WRITE;
      return MOVED_NOTHING;
    }
    trouble(link, "%s", moved == TLS_EOF ? "the server closed the connection" : tls_problem(link->tls));
    return MOVED_BROKEN;
  }
  for (;;) {
    ssize_t moved = send(link->io.fd, data, size, MSG_NOSIGNAL);
    if (moved >= 0) return moved;
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return MOVED_NOTHING;
    trouble(link, "send: %s", strerror(errno));
    return MOVED_BROKEN;
  }
}

static bool grpc_trouble(struct etcd_link *link) {
  return trouble(link, "%s", grpc_problem(link->grpc));
}

/* As much as the socket takes; how much that was, or MOVED_BROKEN. */
static ptrdiff_t send_all(struct etcd_link *link, const uint8_t *data, size_t size) {
  size_t done = 0;
  while (done < size) {
    ptrdiff_t moved = send_some(link, data + done, size - done);
    if (moved < 0) return MOVED_BROKEN;
    if (moved == MOVED_NOTHING) break;
    done += (size_t)moved;
  }
  if (done) kv_etcd->count_bytes(link->etcd->backend, done, 0);
  return (ptrdiff_t)done;
}

/* What was left over the last time. */
static bool send_kept(struct etcd_link *link) {
  if (!link->out) return true;
  ptrdiff_t moved = send_all(link, link->out + link->out_from, link->out_size - link->out_from);
  if (moved < 0) return false;
  link->out_from += (size_t)moved;
  if (link->out_from < link->out_size) return true;
  free(link->out);
  link->out = NULL;
  link->out_from = link->out_size = 0;
  return true;
}

static bool keep(struct etcd_link *link, const uint8_t *data, size_t size) {
  link->out = malloc(size);
  if (!link->out) return trouble(link, "%s", "out of memory");
  memcpy(link->out, data, size);
  link->out_size = size;
  return true;
}

bool etcd_link_flush(struct etcd_link *link) {
  if (link->state == ETCD_LINK_HANDSHAKE) return true;
  link->tls_events &= ~(unsigned)KV_IO_WRITE;
  if (!send_kept(link)) return false;
  while (!link->out) {
    ptrdiff_t made = grpc_produce(link->grpc, outgoing, OUT_BYTES);
    if (made < 0) return grpc_trouble(link);
    if (made == 0) break;
    etcd_mark_sent(link->etcd);
    ptrdiff_t moved = send_all(link, outgoing, (size_t)made);
    if (moved < 0) return false;
    if (moved < made && !keep(link, outgoing + moved, (size_t)(made - moved))) return false;
  }
  watch_socket(link);
  return true;
}

/* ------------------------------------------------------------------ bytes in */

/* Bytes, 0: none now, -1: over. */
static ptrdiff_t receive_some(struct etcd_link *link, uint8_t *data, size_t size) {
  if (link->tls) {
    ptrdiff_t moved = tls_read(link->tls, data, size);
    if (moved > 0) return moved;
    if (moved == TLS_AGAIN_READ) return MOVED_NOTHING;
    if (moved == TLS_AGAIN_WRITE) {
      link->tls_events |= KV_IO_WRITE;
      return MOVED_NOTHING;
    }
    trouble(link, "%s", moved == TLS_EOF ? "the server closed the connection" : tls_problem(link->tls));
    return MOVED_BROKEN;
  }
  for (;;) {
    ssize_t moved = recv(link->io.fd, data, size, 0);
    if (moved > 0) return moved;
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return MOVED_NOTHING;
    trouble(link, "%s", moved == 0 ? "the server closed the connection" : strerror(errno));
    return MOVED_BROKEN;
  }
}

/* TLS may hold decrypted bytes of which the descriptor tells nothing: there we read until nothing comes. */
static bool receive(struct etcd_link *link) {
  struct etcd *etcd = link->etcd;
  uint64_t total = 0;
  bool good = true;
  for (unsigned i = 0; good && (link->tls || i < READS_PER_TURN); i++) {
    ptrdiff_t got = receive_some(link, incoming, IN_BYTES);
    if (got < 0) good = false;
    if (got <= 0) break;
    total += (uint64_t)got;
    link->heard = kv_etcd->now();
    if (!grpc_feed(link->grpc, incoming, (size_t)got)) good = grpc_trouble(link);
    if (!link->tls && (size_t)got < IN_BYTES) break;
  }
  if (total) kv_etcd->count_bytes(etcd->backend, 0, total);
  return good;
}

static void ready(struct kv_io *io, unsigned events) {
  struct etcd_link *link = io->data;
  struct etcd *etcd = link->etcd;
  (void)events;
  kv_etcd->hold_replies();
  if (!(link->state == ETCD_LINK_HANDSHAKE ? handshake(link) : receive(link))) etcd_link_broken(link);
  kv_etcd->release_replies();
  etcd_wake(etcd);
}

/* ------------------------------------------------------------------ keep-alive */

bool etcd_link_check(struct etcd_link *link, int64_t *next) {
  struct etcd *etcd = link->etcd;
  bool others = etcd->config->address_count > 1;
  int64_t now = kv_etcd->now(), silence = others ? HASTY_SILENCE : PATIENT_SILENCE;
  int64_t answer = others ? HASTY_ANSWER : PATIENT_ANSWER;
  if (grpc_ping_pending(link->grpc)) {
    int64_t since = link->heard > link->pinged ? link->heard : link->pinged;
    if (now - since >= answer)
      return trouble(link, "%s", "the server is silent and does not answer a ping");
    *next = since + answer;
    return true;
  }
  int64_t due = link->heard + silence;
  if (link->pinged && due < link->pinged + PING_GAP) due = link->pinged + PING_GAP;
  if (now >= due && grpc_ping(link->grpc)) {
    link->pinged = now;
    *next = now + answer;
    etcd_wake(etcd);
    return true;
  }
  *next = now >= due ? now + ETCD_SECOND : due;
  return true;
}

/* A call was given up and the server has said nothing lately: ask now, so that the next caller waits less. */
void etcd_link_doubt(struct etcd_link *link) {
  int64_t now = kv_etcd->now();
  if (now - link->heard < ETCD_SECOND || grpc_ping_pending(link->grpc)) return;
  if (link->pinged && now - link->pinged < PING_GAP) return;
  if (!grpc_ping(link->grpc)) return;
  link->pinged = now;
  link->etcd->alive_armed = false; /* service() arms it anew, sooner */
  etcd_wake(link->etcd);
}
