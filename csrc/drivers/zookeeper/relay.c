/*
 * relay.c - TLS under the library.
 *
 * The C client has TLS in some builds only, and there it blocks while it shakes hands and takes any name in a
 * certificate. So the library talks plainly into one end of a socket pair; from the other end its bytes go through
 * TLS (csrc/wire/tls.c) to the server, and the answers back. It may begin to talk before the handshake is done: the
 * pair keeps what it says.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../wire/tls.h"
#include "zookeeper.h"

#define ROOM ((size_t)16384)
#define ROUNDS 64 /* in one turn, so that one busy session leaves the others their turns */

struct pipe {
  size_t from, size;
  char data[ROOM];
};

struct zk_relay {
  struct zk_session *session;
  struct kv_io plain, secure; /* both ours */
  struct tls_stream *tls;
  bool shaken;
  struct pipe up, down;       /* to the server; to the library */
};

static void ready(struct kv_io *io, unsigned events);

/* ------------------------------------------------------------------ making */

static bool have_context(struct zk *zk, char *problem, size_t size) {
  const struct kv_config *config = zk->config;
  if (zk->tls) return true;
  struct tls_options options = {
    .ca = config->tls_ca, .cert = config->tls_cert, .key = config->tls_key, .verify = config->tls_verify};
  zk->tls = tls_context_new(&options, problem, size);
  return zk->tls != NULL;
}

struct zk_relay *zk_relay_new(struct zk_session *session, int fd, int *library, char *problem, size_t size) {
  struct zk *zk = session->zk;
  const struct kv_config *config = zk->config;
  int pair[2];
  if (!have_context(zk, problem, size)) return NULL;
  snprintf(problem, size, "no TLS connection could be made: out of memory or descriptors");
  struct zk_relay *relay = calloc(1, sizeof *relay);
  if (!relay || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) {
    free(relay);
    return NULL;
  }
  const char *name = config->tls_server_name;
  if (!name) name = config->addresses[session->link.address].host;
  relay->tls = tls_stream_new(zk->tls, fd, name);
  if (!relay->tls) {
    close(pair[0]);
    close(pair[1]);
    free(relay);
    return NULL;
  }
  relay->session = session;
  relay->secure = (struct kv_io){.fd = fd, .ready = ready, .data = relay};
  relay->plain = (struct kv_io){.fd = pair[1], .ready = ready, .data = relay};
  *library = pair[0];
  kv_zk->io_set(&relay->secure, KV_IO_READ | KV_IO_WRITE);
  return relay;
}

void zk_relay_free(struct zk_relay *relay) {
  if (!relay) return;
  kv_zk->io_remove(&relay->plain);
  kv_zk->io_remove(&relay->secure);
  tls_stream_free(relay->tls);
  close(relay->plain.fd);
  close(relay->secure.fd);
  free(relay);
}

/* ------------------------------------------------------------------ moving bytes */

enum outcome { MOVED, IDLE, ENDED };

/* What waits in the pipe goes on; it is filled again when it is empty. */
static enum outcome fill(struct pipe *pipe, ptrdiff_t got) {
  pipe->from = 0;
  pipe->size = (size_t)got;
  return MOVED;
}

static void emptied(struct pipe *pipe, ptrdiff_t sent) {
  pipe->from += (size_t)sent;
  pipe->size -= (size_t)sent;
}

static enum outcome of_system(ptrdiff_t result) {
  if (result > 0) return MOVED;
  return result < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) ? IDLE : ENDED;
}

static enum outcome of_tls(ptrdiff_t result, unsigned *wanted) {
  if (result > 0) return MOVED;
  if (result == TLS_AGAIN_READ) *wanted |= KV_IO_READ;
  if (result == TLS_AGAIN_WRITE) *wanted |= KV_IO_WRITE;
  return result == TLS_AGAIN_READ || result == TLS_AGAIN_WRITE ? IDLE : ENDED;
}

static enum outcome move_up(struct zk_relay *relay, unsigned *wanted) {
  struct pipe *up = &relay->up;
  if (!up->size) {
    ptrdiff_t got = recv(relay->plain.fd, up->data, ROOM, 0);
    if (of_system(got) != MOVED) return of_system(got);
    fill(up, got);
  }
  ptrdiff_t sent = tls_write(relay->tls, up->data + up->from, up->size);
  enum outcome outcome = of_tls(sent, wanted);
  if (outcome == MOVED) emptied(up, sent);
  return outcome;
}

static enum outcome move_down(struct zk_relay *relay, unsigned *wanted) {
  struct pipe *down = &relay->down;
  if (!down->size) {
    ptrdiff_t got = tls_read(relay->tls, down->data, ROOM);
    enum outcome outcome = of_tls(got, wanted);
    if (outcome != MOVED) return outcome;
    fill(down, got);
  }
  ptrdiff_t sent = send(relay->plain.fd, down->data + down->from, down->size, MSG_NOSIGNAL);
  if (of_system(sent) == MOVED) emptied(down, sent);
  return of_system(sent);
}

/* The library finds its end closed, and the session with it. */
static void end(struct zk_relay *relay) {
  const char *problem = tls_problem(relay->tls);
  struct zk_session *session = relay->session;
  kv_zk->io_remove(&relay->plain);
  kv_zk->io_remove(&relay->secure);
  shutdown(relay->plain.fd, SHUT_RDWR);
  if (session->state == ZK_CLOSING) return;
  if (!problem || !*problem) problem = "the server closed the connection during TLS";
  if (!relay->shaken) zk_condemn(session, problem);
}

static bool shake(struct zk_relay *relay) {
  int result = tls_handshake(relay->tls);
  if (result == 0) {
    relay->shaken = true;
    return true;
  }
  if (result == TLS_AGAIN_READ) kv_zk->io_set(&relay->secure, KV_IO_READ);
  else if (result == TLS_AGAIN_WRITE) kv_zk->io_set(&relay->secure, KV_IO_WRITE);
  else end(relay);
  return false;
}

static void ready(struct kv_io *io, unsigned events) {
  struct zk_relay *relay = io->data;
  enum outcome up = MOVED, down = MOVED;
  unsigned wanted = 0;
  (void)events;
  if (!relay->shaken && !shake(relay)) return;
  for (int i = 0; i < ROUNDS && (up == MOVED || down == MOVED); i++) {
    wanted = 0;
    up = move_up(relay, &wanted);
    down = move_down(relay, &wanted);
    if (up == ENDED || down == ENDED) {
      end(relay);
      return;
    }
  }
  bool more = up == MOVED || down == MOVED; /* perhaps inside of TLS, where the poller does not see it */
  unsigned plain = (relay->up.size ? 0u : KV_IO_READ) | (relay->down.size ? KV_IO_WRITE : 0u);
  kv_zk->io_set(&relay->plain, plain);
  kv_zk->io_set(&relay->secure, wanted | (relay->down.size ? 0u : KV_IO_READ) | (more ? KV_IO_WRITE : 0u));
}
