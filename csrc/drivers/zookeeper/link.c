/*
 * link.c - the connection under a session.
 *
 * The library resolves names, connects and rotates by itself, and would block while it does, and zookeeper_close()
 * waits for the server. So it is given an address at which nobody listens, and the descriptor that it makes for that
 * attempt is replaced (dup3) by a socket that the core has connected, before the library looks at it again. What it
 * then does on it, the handshake first of all, never blocks.
 *
 * Of each connection we keep a descriptor of our own. It stands in the poll set (the library closes its own whenever
 * it likes); it serves to end a session without waiting: the goodbye goes out on it, the server's answer is awaited
 * in the reactor, and the library is cut off before it is asked to close. To cut it off, its descriptor is replaced
 * by one that cannot be read.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "zookeeper.h"

#define GOODBYE_NUMBER 0x7f, 0xff, 0xff, 0xff /* the library counts up to it */
#define MESSAGES_A_TURN 2000 /* so that one busy session leaves the others their turns */

static void dialled(struct kv_dial *dial, int fd, size_t address, const char *problem);
static void link_ready(struct kv_io *io, unsigned events);

bool zk_link_dial(struct zk_session *session) {
  struct zk_link *link = &session->link;
  link->dial.done = dialled;
  link->dial.data = session;
  kv_zk->dial(session->zk->backend, &link->dial);
  return true;
}

/* Have the library make a descriptor, and put ours in its place. */
static const char *adopt(struct zk_session *session, int fd) {
  struct zk_link *link = &session->link;
  zhandle_t *handle = zk_session_handle(session);
  if (!handle) return "out of memory";
  struct timeval timeout;
  int library = -1, interest = 0, result = ZOK;
  /* After a failure the library wants to wait once before it tries again: when to try is decided here. */
  for (int tries = 0; tries < 2 && library < 0 && result == ZOK; tries++)
    result = zookeeper_interest(handle, &library, &interest, &timeout);
  if (result != ZOK || library < 0) return "the ZooKeeper library could not begin to connect";
  if (zoo_state(handle) != ZOO_CONNECTING_STATE || dup3(fd, library, O_CLOEXEC) < 0)
    return "the ZooKeeper library could not be given the connection";
  link->library = library;
  return NULL;
}

/* With TLS: the library gets one end of a relay instead. */
static const char *secure(struct zk_session *session, int *fd, char *reason, size_t size) {
  int library = -1;
  if (!session->zk->config->scheme->tls) return NULL;
  session->link.relay = zk_relay_new(session, *fd, &library, reason, size);
  if (!session->link.relay) return reason;
  *fd = library;
  return NULL;
}

static void dialled(struct kv_dial *dial, int fd, size_t address, const char *problem) {
  struct zk_session *session = dial->data;
  struct zk_link *link = &session->link;
  link->address = address;
  if (fd < 0) {
    zk_session_linked(session, problem);
    return;
  }
  char reason[300];
  problem = secure(session, &fd, reason, sizeof reason);
  if (!problem) problem = adopt(session, fd);
  if (problem) {
    close(fd);
    zk_relay_free(link->relay);
    link->relay = NULL;
    zk_session_linked(session, problem);
    return;
  }
  link->io = (struct kv_io){.fd = fd, .ready = link_ready, .data = session};
  zk_session_linked(session, NULL);
}

void zk_link_interest(struct zk_session *session) {
  struct zk_link *link = &session->link;
  struct timeval timeout = {0, 0};
  int library = -1, interest = 0;
  if (link->io.fd < 0) return;
  /* Asked now, the library would end a handshake that takes two thirds of the session's time; it has connect_timeout,
   * for which there is a timer of ours. */
  if (session->state == ZK_LINKING) {
    bool begins = zoo_state(session->handle) == ZOO_CONNECTING_STATE;
    kv_zk->io_set(&link->io, begins ? KV_IO_READ | KV_IO_WRITE : KV_IO_READ);
    return;
  }
  int result = zookeeper_interest(session->handle, &library, &interest, &timeout);
  if (result != ZOK) {
    zk_session_check(session);
    return;
  }
  if (library != link->library) { /* it lost the connection and began another one by itself */
    link->library = library;
    zk_condemn(session, "the connection was lost");
    return;
  }
  unsigned events = 0;
  if (interest & ZOOKEEPER_READ) events |= KV_IO_READ;
  if (interest & ZOOKEEPER_WRITE) events |= KV_IO_WRITE;
  kv_zk->io_set(&link->io, events);
  int64_t wait = (int64_t)timeout.tv_sec * ZK_SECOND + (int64_t)timeout.tv_usec * 1000;
  kv_zk->timer_set(&session->wake, kv_zk->now() + wait + ZK_SECOND / 1000);
}

/*
 * The library sends each request in two pieces, and each would be a packet of its own. So packets are held back while
 * a turn makes requests. The kernel lets go of them by itself after 200 ms, should the turn take that long.
 */
void zk_link_cork(struct zk_session *session, bool on) {
  struct zk_link *link = &session->link;
  int value = on;
  if (link->corked == on || link->relay || link->io.fd < 0) return;
  link->corked = on;
  setsockopt(link->io.fd, IPPROTO_TCP, TCP_CORK, &value, sizeof value);
}

/* ------------------------------------------------------------------ events */

static void keep_last(struct zk_link *link, const unsigned char *data, size_t size) {
  size_t room = sizeof link->last, fresh = size < room ? size : room;
  memmove(link->last, link->last + fresh, room - fresh);
  memcpy(link->last + room - fresh, data + size - fresh, fresh);
}

/* The last that came is the answer to the goodbye: length, its number, a revision, no error. */
static bool is_answered(const struct zk_link *link) {
  static const unsigned char head[8] = {0, 0, 0, 16, GOODBYE_NUMBER}, no_error[4];
  return memcmp(link->last, head, sizeof head) == 0 && memcmp(link->last + 16, no_error, sizeof no_error) == 0;
}

/* The goodbye went out: whatever comes, until the server closes. */
static void drain(struct zk_session *session) {
  struct zk_link *link = &session->link;
  unsigned char data[4096];
  ssize_t got;
  do {
    got = recv(link->io.fd, data, sizeof data, MSG_DONTWAIT);
    if (got > 0) keep_last(link, data, (size_t)got);
  } while (got > 0 || (got < 0 && errno == EINTR));
  if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) zk_session_ended(session, is_answered(link));
}

static void link_ready(struct kv_io *io, unsigned events) {
  struct zk_session *session = io->data;
  if (session->state == ZK_CLOSING) {
    drain(session);
    return;
  }
  int wanted = 0;
  if (events & KV_IO_READ) wanted |= ZOOKEEPER_READ;
  if (events & KV_IO_WRITE) wanted |= ZOOKEEPER_WRITE;
  zk_link_cork(session, true);
  int result = zookeeper_process(session->handle, wanted);
  for (int i = 0; i < MESSAGES_A_TURN && result == ZOK && (events & KV_IO_READ); i++)
    result = zookeeper_process(session->handle, ZOOKEEPER_READ);
  /* The server can begin while answers are handed out. Reads of this turn cannot share a sync that has left. */
  zk_link_cork(session, false);
  session->synced = false;
  zk_session_check(session);
  zk_wake(session); /* what the library waits for may be something else now */
}

/* ------------------------------------------------------------------ ends */

void zk_link_drop(struct zk_session *session) {
  struct zk_link *link = &session->link;
  kv_zk->dial_cancel(&link->dial);
  kv_zk->timer_stop(&session->wake);
  if (link->io.fd >= 0) {
    kv_zk->io_remove(&link->io);
    close(link->io.fd);
  }
  link->io.fd = link->library = -1;
  link->corked = false;
  zk_relay_free(link->relay);
  link->relay = NULL;
}

void zk_link_cut(struct zk_session *session) {
  struct zk_link *link = &session->link;
  if (link->library < 0 || !session->handle) return;
  int nothing = open("/dev/null", O_RDWR | O_CLOEXEC), turns = MESSAGES_A_TURN;
  bool replaced = nothing >= 0 && dup3(nothing, link->library, O_CLOEXEC) >= 0;
  if (nothing >= 0) close(nothing);
  if (!replaced) shutdown(link->library, SHUT_RDWR); /* without descriptors: what came before is read first */
  while (zookeeper_process(session->handle, ZOOKEEPER_READ) == ZOK && --turns > 0) { /* until it is closed */
  }
}

bool zk_link_say_goodbye(struct zk_session *session) {
  /* length, number, kind: in network order */
  static const unsigned char goodbye[12] = {0, 0, 0, 8, GOODBYE_NUMBER, 0xff, 0xff, 0xff, 0xf5};
  struct zk_link *link = &session->link;
  zk_link_cork(session, false);
  if (link->io.fd < 0 || (link->io.events & KV_IO_WRITE)) return false; /* the library holds back half a message */
  ssize_t sent = send(link->io.fd, goodbye, sizeof goodbye, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent != (ssize_t)sizeof goodbye) return false;
  memset(link->last, 0, sizeof link->last);
  kv_zk->io_set(&link->io, KV_IO_READ);
  return true;
}
