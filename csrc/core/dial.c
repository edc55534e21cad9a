/*
 * dial.c - connecting: which of a backend's endpoints is due, its addresses, and a socket that is connected.
 *
 * One dial tries one endpoint: its name is resolved, and its addresses are tried one after the other, the next one as
 * soon as one fails or has been silent for a moment (they then race); connect_timeout covers all of it. The outcome
 * is noted for the endpoint: one that failed is left alone for a while that grows, but an endpoint is always found:
 * when all are dead, the one that is dead for the shortest time to come is tried.
 *
 * Everything but kv_endpoints_new(), kv_endpoints_free() and kv_backoff() runs on the reactor thread.
 */
#include "resolve.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEAD_START (KV_SECOND / 4)   /* of one address before the next one may race it */
#define DEAD_FIRST (KV_SECOND / 2)   /* how long an endpoint is left after its first failure; doubled each time */
#define DEAD_MAX (15 * KV_SECOND)
#define FORGIVEN_AFTER (60 * KV_SECOND) /* a failure this long ago does not count any more */
#define PROBLEM_MAX 500

struct endpoint {
  int64_t dead_until;
  int64_t failed_at;
  unsigned failures;
};

struct kv_endpoints {
  const struct kv_config *config;
  size_t next;
  struct endpoint list[];
};

/* ------------------------------------------------------------------ endpoints */

struct kv_endpoints *kv_endpoints_new(const struct kv_config *config) {
  struct kv_endpoints *endpoints = calloc(1, sizeof *endpoints + config->address_count * sizeof endpoints->list[0]);
  if (!endpoints) return NULL;
  endpoints->config = config;
  if (config->address_count) endpoints->next = (size_t)(kv_random() % config->address_count);
  return endpoints;
}

void kv_endpoints_free(struct kv_endpoints *endpoints) {
  free(endpoints);
}

/* The next one in turn that is not dead, or the one that is dead for the shortest time. There is at least one. */
static size_t choose(struct kv_endpoints *endpoints) {
  size_t count = endpoints->config->address_count, best = endpoints->next;
  int64_t now = kv_now();
  for (size_t i = 0; i < count; i++) {
    size_t at = (endpoints->next + i) % count;
    int64_t until = endpoints->list[at].dead_until;
    if (until <= now) {
      best = at;
      break;
    }
    if (until < endpoints->list[best].dead_until) best = at;
  }
  endpoints->next = (best + 1) % count;
  return best;
}

void kv_endpoint_failed(struct kv_endpoints *endpoints, size_t address) {
  if (address >= endpoints->config->address_count) return;
  struct endpoint *endpoint = &endpoints->list[address];
  int64_t now = kv_now();
  if (now - endpoint->failed_at > FORGIVEN_AFTER) endpoint->failures = 0;
  if (endpoint->failures < 16) endpoint->failures++;
  int64_t pause = DEAD_FIRST << (endpoint->failures - 1);
  if (pause > DEAD_MAX) pause = DEAD_MAX;
  /* A quarter more or less, so that a crowd of clients does not come back at once. */
  pause = pause * 3 / 4 + (int64_t)(kv_random() % (uint64_t)(pause / 2));
  endpoint->failed_at = now;
  endpoint->dead_until = now + pause;
}

double kv_backoff(unsigned n) {
  double cap = n < 7 ? 0.020 * (double)(1u << n) : 2.0;
  if (cap > 2.0) cap = 2.0;
  double part = (double)(kv_random() >> 11) / 9007199254740992.0; /* [0, 1) */
  return 0.001 + part * (cap - 0.001);
}

/* ------------------------------------------------------------------ attempts */

/* A dial under way: dial->core points here. */
struct attempt {
  struct kv_dial *dial; /* NULL: cancelled before it began */
  struct kv_endpoints *endpoints;
  size_t address;
  struct kv_task begin;
  struct kv_resolve resolve;
  struct kv_timer limit; /* connect_timeout */
  struct kv_timer race;  /* HEAD_START is over */
  struct kv_ips ips;
  unsigned started, open;
  int reason; /* errno of the last address that failed */
  struct kv_io sockets[KV_IPS_MAX]; /* fd < 0: not open */
};

static const struct kv_address *address_of(const struct attempt *attempt) {
  return &attempt->endpoints->config->addresses[attempt->address];
}

static void close_socket(struct attempt *attempt, struct kv_io *io) {
  if (io->fd < 0) return;
  kv_io_remove(io);
  close(io->fd);
  io->fd = -1;
  attempt->open--;
}

static void attempt_free(struct attempt *attempt) {
  kv_timer_stop(&attempt->limit);
  kv_timer_stop(&attempt->race);
  kv_resolve_cancel(&attempt->resolve);
  for (unsigned i = 0; i < attempt->started; i++) close_socket(attempt, &attempt->sockets[i]);
  free(attempt);
}

static void fail(struct attempt *attempt, const char *problem) {
  struct kv_dial *dial = attempt->dial;
  size_t address = attempt->address;
  kv_endpoint_failed(attempt->endpoints, address);
  kv_resolve_forget(address_of(attempt)->host);
  attempt_free(attempt);
  dial->core = NULL;
  dial->done(dial, -1, address, problem);
}

static void fail_connect(struct attempt *attempt, const char *reason) {
  const struct kv_address *address = address_of(attempt);
  bool bracket = strchr(address->host, ':') != NULL;
  char problem[PROBLEM_MAX];
  snprintf(problem, sizeof problem, "cannot connect to %s%s%s:%u: %s", bracket ? "[" : "", address->host,
           bracket ? "]" : "", (unsigned)address->port, reason);
  fail(attempt, problem);
}

static void succeed(struct attempt *attempt, struct kv_io *io) {
  struct kv_dial *dial = attempt->dial;
  size_t address = attempt->address;
  int fd = io->fd;
  kv_io_remove(io);
  io->fd = -1;
  attempt->open--;
  attempt->endpoints->list[address].dead_until = 0;
  attempt_free(attempt);
  dial->core = NULL;
  dial->done(dial, fd, address, NULL);
}

/* ------------------------------------------------------------------ sockets */

static bool same_ip(const union kv_ip *left, const union kv_ip *right) {
  if (left->any.sa_family != right->any.sa_family) return false;
  if (left->any.sa_family == AF_INET)
    return left->v4.sin_port == right->v4.sin_port && left->v4.sin_addr.s_addr == right->v4.sin_addr.s_addr;
  return left->v6.sin6_port == right->v6.sin6_port &&
         memcmp(&left->v6.sin6_addr, &right->v6.sin6_addr, sizeof left->v6.sin6_addr) == 0;
}

/* 0: connected. EINPROGRESS: not yet. Anything else: failed. */
static int outcome(int fd) {
  int reason = 0;
  socklen_t size = sizeof reason;
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &reason, &size) != 0) return errno;
  if (reason) return reason;
  union kv_ip ours, theirs;
  memset(&ours, 0, sizeof ours);
  memset(&theirs, 0, sizeof theirs);
  socklen_t ours_size = sizeof ours, theirs_size = sizeof theirs;
  if (getpeername(fd, &theirs.any, &theirs_size) != 0) return errno == ENOTCONN ? EINPROGRESS : errno;
  if (getsockname(fd, &ours.any, &ours_size) != 0) return errno;
  /* Where nobody listens on a port of this machine, a socket for which the system chose that very port meets itself. */
  return same_ip(&ours, &theirs) ? ECONNREFUSED : 0;
}

static void socket_ready(struct kv_io *io, unsigned events);

/* Begin to connect to one address. 0 or EINPROGRESS: the socket is open. */
static int open_socket(struct attempt *attempt, struct kv_io *io, union kv_ip *ip) {
  bool v6 = ip->any.sa_family == AF_INET6;
  int fd = socket(ip->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return errno;
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (v6)
    ip->v6.sin6_port = htons(address_of(attempt)->port);
  else
    ip->v4.sin_port = htons(address_of(attempt)->port);
  int reason = connect(fd, &ip->any, v6 ? sizeof ip->v6 : sizeof ip->v4) == 0 ? outcome(fd) : errno;
  if (reason == EINTR) reason = EINPROGRESS; /* goes on by itself */
  if (reason != 0 && reason != EINPROGRESS) {
    close(fd);
    return reason;
  }
  *io = (struct kv_io){.fd = fd, .ready = socket_ready, .data = attempt};
  attempt->open++;
  return reason;
}

static void next_socket(struct attempt *attempt) {
  while (attempt->started < attempt->ips.count) {
    unsigned at = attempt->started++;
    struct kv_io *io = &attempt->sockets[at];
    io->fd = -1;
    int reason = open_socket(attempt, io, &attempt->ips.list[at]);
    if (reason == 0) {
      succeed(attempt, io);
      return;
    }
    if (reason == EINPROGRESS) {
      kv_io_set(io, KV_IO_WRITE);
      if (attempt->started < attempt->ips.count) kv_timer_set(&attempt->race, kv_now() + HEAD_START);
      return;
    }
    attempt->reason = reason;
  }
  if (attempt->open > 0) return;
  char text[128];
  fail_connect(attempt, strerror_r(attempt->reason, text, sizeof text));
}

static void socket_ready(struct kv_io *io, unsigned events) {
  (void)events;
  struct attempt *attempt = io->data;
  int reason = outcome(io->fd);
  if (reason == EINPROGRESS) return;
  if (reason == 0) {
    succeed(attempt, io);
    return;
  }
  attempt->reason = reason;
  close_socket(attempt, io);
  next_socket(attempt);
}

/* ------------------------------------------------------------------ the steps */

static void race_over(struct kv_timer *timer) {
  next_socket(timer->data);
}

static void limit_over(struct kv_timer *timer) {
  struct attempt *attempt = timer->data;
  fail_connect(attempt, attempt->ips.count ? "no answer within connect_timeout"
                                           : "its name was not resolved within connect_timeout");
}

static void resolved(struct kv_resolve *resolve, const struct kv_ips *ips, const char *problem) {
  struct attempt *attempt = resolve->data;
  if (!ips) {
    fail(attempt, problem);
    return;
  }
  attempt->ips = *ips;
  next_socket(attempt);
}

/* Runs after kv_dial_start() has returned, so that nothing in here can call done() inside of it. */
static void begin(struct kv_task *task) {
  struct attempt *attempt = task->data;
  if (!attempt->dial) {
    free(attempt);
    return;
  }
  attempt->begin.data = NULL; /* begun */
  kv_timer_set(&attempt->limit, kv_deadline(kv_now(), attempt->endpoints->config->connect_timeout));
  kv_resolve_start(&attempt->resolve, address_of(attempt)->host);
}

/* ------------------------------------------------------------------ dials that could not even begin */

/* Linked through dial->core, answered by one task. */
static struct {
  unsigned fork_count;
  struct kv_dial *first;
  bool posted;
  struct kv_task task;
} refused;

static void answer_refused(struct kv_task *task) {
  (void)task;
  struct kv_dial *dial;
  refused.posted = false;
  while ((dial = refused.first)) {
    refused.first = dial->core;
    dial->core = NULL;
    dial->done(dial, -1, 0, "out of memory, or no host to connect to");
  }
}

static void refuse(struct kv_dial *dial) {
  if (refused.fork_count != kv_fork_count()) {
    refused.first = NULL;
    refused.posted = false;
    refused.fork_count = kv_fork_count();
  }
  dial->core = refused.first;
  refused.first = dial;
  if (refused.posted) return;
  refused.posted = true;
  refused.task = (struct kv_task){.run = answer_refused};
  kv_post(&refused.task);
}

static bool take_refused(struct kv_dial *dial) {
  for (struct kv_dial *at = refused.first, *before = NULL; at; before = at, at = at->core) {
    if (at != dial) continue;
    if (before)
      before->core = dial->core;
    else
      refused.first = dial->core;
    return true;
  }
  return false;
}

/* ------------------------------------------------------------------ what drivers call */

void kv_dial_start(struct kv_endpoints *endpoints, struct kv_dial *dial) {
  struct attempt *attempt = endpoints->config->address_count ? calloc(1, sizeof *attempt) : NULL;
  if (!attempt) {
    refuse(dial);
    return;
  }
  dial->core = attempt;
  attempt->dial = dial;
  attempt->endpoints = endpoints;
  attempt->address = choose(endpoints);
  attempt->begin = (struct kv_task){.run = begin, .data = attempt};
  attempt->resolve = (struct kv_resolve){.done = resolved, .data = attempt};
  attempt->limit = (struct kv_timer){.fire = limit_over, .data = attempt};
  attempt->race = (struct kv_timer){.fire = race_over, .data = attempt};
  kv_defer(&attempt->begin);
}

void kv_dial_cancel(struct kv_dial *dial) {
  if (take_refused(dial)) {
    dial->core = NULL;
    return;
  }
  struct attempt *attempt = dial->core;
  if (!attempt) return;
  dial->core = NULL;
  if (attempt->begin.data)
    attempt->dial = NULL; /* begin() has not run yet, and frees it */
  else
    attempt_free(attempt);
}
