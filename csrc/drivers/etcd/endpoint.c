/*
 * endpoint.c - which member to talk to, and whether to talk at all.
 *
 * Nothing is connected until there is work. A new connection proves itself first: within connect_timeout it must
 * answer Maintenance.Status, so that calls are never sent into something that is no etcd, or that accepts and is
 * silent; what fails before that was certainly not applied. Each endpoint is tried once in a round; when a round
 * failed, everything that waits is answered (the core tries again as long as the deadlines allow), and the next round
 * begins after a back-off. A member that has no leader is passed over, but where no other is to be had it will do: it
 * still answers reads that may be old.
 *
 * etcd_service() runs at the end of a turn of the reactor in which something changed. It is the one place that decides:
 * connect, log in, start what waits, flush, let old connections go.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "etcd.h"

#define BACKOFF_MAX 1.0 /* seconds; a server that comes back is not to be waited for any longer */
#define ACKNOWLEDGE_AFTER (ETCD_SECOND / 100)

void etcd_wake(struct etcd *etcd) {
  kv_etcd->defer(&etcd->service);
}

bool etcd_ready(const struct etcd *etcd) {
  const struct etcd_link *link = etcd->link;
  return link && link->state == ETCD_LINK_READY && etcd->auth == ETCD_AUTH_DONE && !link->retire && !link->condemned &&
         !grpc_draining(link->grpc) && !grpc_failed(link->grpc);
}

bool etcd_has_work(const struct etcd *etcd) {
  return !kv_list_empty(&etcd->waiting) || !kv_list_empty(&etcd->watches.waiting);
}

/* When it is another one (restored from a backup, say), revisions that we know mean nothing there: watch.c compares. */
void etcd_see_cluster(struct etcd *etcd, uint64_t cluster) {
  if (cluster) etcd->cluster = cluster;
}

/* ------------------------------------------------------------------ failing */

/* How long the next round waits. */
static void pause_dialling(struct etcd *etcd) {
  double pause = kv_etcd->backoff(etcd->rounds++);
  if (pause > BACKOFF_MAX) pause = BACKOFF_MAX;
  etcd->next_dial = kv_etcd->now() + (int64_t)(pause * (double)ETCD_SECOND);
}

static void attempt_failed(struct etcd *etcd, const char *problem) {
  snprintf(etcd->problem, sizeof etcd->problem, "%s", problem);
  etcd_wake(etcd);
  if (++etcd->attempts < etcd->config->address_count) return;
  bool once_more = etcd->leaderless && !etcd->any_member;
  etcd->attempts = 0;
  etcd->any_member = once_more;
  etcd->leaderless = false;
  if (once_more) return;
  pause_dialling(etcd);
  etcd_fail_waiting(etcd, KV_UNAVAILABLE, problem);
}

const char *etcd_pause_reason(const struct etcd *etcd) {
  return !etcd->link && !etcd->dialing && etcd->problem[0] && kv_etcd->now() < etcd->next_dial ? etcd->problem : NULL;
}

static const char *endpoint_name(const struct etcd *etcd, size_t address, char *text, size_t size) {
  const struct kv_address *at = &etcd->config->addresses[address];
  bool brackets = strchr(at->host, ':') != NULL;
  snprintf(text, size, "%s%s%s:%u", brackets ? "[" : "", at->host, brackets ? "]" : "", (unsigned)at->port);
  return text;
}

static void report(struct etcd_link *link, bool connected, const char *version) {
  char name[300];
  endpoint_name(link->etcd, link->address, name, sizeof name);
  kv_etcd->connected(link->etcd->backend, connected, name, version);
}

static void blame(struct etcd_link *link) {
  if (link->blamed) return;
  link->blamed = true;
  kv_etcd->endpoint_failed(link->etcd->backend, link->address);
}

void etcd_link_broken(struct etcd_link *link) {
  struct etcd *etcd = link->etcd;
  bool current = etcd->link == link, usable = link->state == ETCD_LINK_READY;
  char name[300], problem[sizeof link->problem + sizeof name];
  snprintf(problem, sizeof problem, "%s: %s", endpoint_name(etcd, link->address, name, sizeof name),
           link->problem[0] ? link->problem : "the connection broke");
  if (current) {
    etcd->link = NULL;
    kv_etcd->timer_stop(&etcd->answer_timer);
    blame(link);
    if (usable) report(link, false, NULL);
  }
  link->state = ETCD_LINK_DEAD;
  grpc_break(link->grpc, problem);
  etcd_link_free(link);
  if (current && !usable) attempt_failed(etcd, problem);
  etcd_wake(etcd);
}

void etcd_link_condemn(struct etcd_link *link, const char *problem) {
  if (link->condemned) return;
  link->condemned = true;
  if (problem != link->problem) snprintf(link->problem, sizeof link->problem, "%s", problem);
  etcd_wake(link->etcd);
}

void etcd_link_retire(struct etcd_link *link, const char *problem) {
  if (link->etcd->config->address_count < 2 || link->etcd->link != link) return;
  (void)problem;
  link->retire = true;
  etcd_wake(link->etcd);
}

/* ------------------------------------------------------------------ connecting */

/* A number that changes when one of the files does: certificates are replaced while programs run. */
static uint64_t tls_files(const struct kv_config *config) {
  const char *const paths[] = {config->tls_ca, config->tls_cert, config->tls_key};
  uint64_t sum = 1;
  for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
    struct stat info;
    if (!paths[i] || stat(paths[i], &info) != 0) continue;
    const uint64_t parts[] = {(uint64_t)info.st_ino, (uint64_t)info.st_size, (uint64_t)info.st_mtim.tv_sec,
                              (uint64_t)info.st_mtim.tv_nsec};
    for (size_t j = 0; j < sizeof parts / sizeof *parts; j++) sum = (sum ^ parts[j]) * UINT64_C(0x100000001b3);
  }
  return sum;
}

/* New files that are no good (half written, say) leave what we have. */
static bool prepare_tls(struct etcd *etcd) {
  const struct kv_config *config = etcd->config;
  char problem[300];
  if (!config->scheme->tls) return true;
  uint64_t files = tls_files(config);
  if (etcd->tls && (files == etcd->tls_files || !kv_list_empty(&etcd->old))) return true;
  struct tls_options options = {.ca = config->tls_ca, .cert = config->tls_cert, .key = config->tls_key,
                                .verify = config->tls_verify, .alpn = "h2"};
  struct tls_context *tls = tls_context_new(&options, problem, sizeof problem);
  if (tls) {
    tls_context_free(etcd->tls); /* no connection uses it: we are about to make one */
    etcd->tls = tls;
    etcd->tls_files = files;
  }
  if (etcd->tls) return true;
  etcd_fail_waiting(etcd, KV_INVALID, problem);
  return false;
}

static void dialled(struct kv_dial *dial, int fd, size_t address, const char *problem) {
  struct etcd *etcd = dial->data;
  etcd->dialing = false;
  if (fd < 0) {
    attempt_failed(etcd, problem);
    return;
  }
  struct etcd_link *link = etcd_link_new(etcd, fd, address);
  if (!link) {
    attempt_failed(etcd, "out of memory");
    return;
  }
  etcd->link = link;
  kv_etcd->timer_set(&etcd->answer_timer,
                     kv_etcd->now() + (int64_t)(etcd->config->connect_timeout * (double)ETCD_SECOND));
  if (!etcd_link_begin(link)) etcd_link_broken(link);
  etcd_wake(etcd);
}

static void connect_now(struct etcd *etcd) {
  if (etcd->dialing || etcd->closed) return;
  if (kv_etcd->now() < etcd->next_dial) {
    kv_etcd->timer_set(&etcd->dial_timer, etcd->next_dial);
    return;
  }
  if (!prepare_tls(etcd)) return;
  etcd->dialing = true;
  kv_etcd->dial(etcd->backend, &etcd->dial);
}

void etcd_link_connected(struct etcd_link *link) {
  etcd_probe(link);
}

void etcd_link_usable(struct etcd_link *link, kv_slice version, bool leader) {
  struct etcd *etcd = link->etcd;
  char text[64];
  if (link->state != ETCD_LINK_PROBE) return;
  if (!leader && etcd->config->address_count > 1 && !etcd->any_member) {
    etcd->leaderless = true;
    link->blamed = true; /* it is there, and may be needed in a moment */
    etcd_link_condemn(link, "the member has no leader");
    return;
  }
  link->state = ETCD_LINK_READY;
  link->leaderless = !leader;
  kv_etcd->timer_stop(&etcd->answer_timer);
  etcd->attempts = 0;
  etcd->leaderless = etcd->any_member = false;
  etcd->next_dial = 0;
  if (leader) etcd->rounds = 0;
  snprintf(text, sizeof text, "%.*s", version.size > 60 ? 60 : (int)version.size, version.size ? version.data : "");
  report(link, true, version.size ? text : NULL);
  etcd_wake(etcd);
}

static void answer_late(struct kv_timer *timer) {
  struct etcd *etcd = timer->data;
  if (!etcd->link || etcd->link->state == ETCD_LINK_READY) return;
  snprintf(etcd->link->problem, sizeof etcd->link->problem, "connected, but no answer within %g s",
           etcd->config->connect_timeout);
  etcd_link_broken(etcd->link);
}

static void dial_due(struct kv_timer *timer) {
  etcd_wake(timer->data);
}

/* ------------------------------------------------------------------ is the server there? */

static bool active(const struct etcd *etcd) {
  return etcd->running > 0 || etcd_watches_active(etcd) > 0 || !kv_list_empty(&etcd->leases.renewals);
}

static void alive_due(struct kv_timer *timer) {
  struct etcd *etcd = timer->data;
  int64_t next, soonest = INT64_MAX;
  etcd->alive_armed = false;
  for (struct kv_list *node = etcd->old.next, *after; node != &etcd->old; node = after) {
    struct etcd_link *link = kv_list_of(struct etcd_link, node, node);
    after = node->next;
    if (!etcd_link_check(link, &next))
      etcd_link_condemn(link, link->problem);
    else if (next < soonest)
      soonest = next;
  }
  if (etcd->link && etcd->link->state == ETCD_LINK_READY && active(etcd)) {
    if (!etcd_link_check(etcd->link, &next))
      etcd_link_condemn(etcd->link, etcd->link->problem);
    else if (next < soonest)
      soonest = next;
  }
  if (soonest == INT64_MAX) return;
  etcd->alive_armed = true;
  kv_etcd->timer_set(&etcd->alive_timer, soonest);
}

static void arm_alive(struct etcd *etcd) {
  if (etcd->alive_armed) return;
  bool link = etcd->link && etcd->link->state == ETCD_LINK_READY && active(etcd);
  if (link || !kv_list_empty(&etcd->old)) alive_due(&etcd->alive_timer);
}

/* ------------------------------------------------------------------ the one place that decides */

/* The current link takes nothing new: its calls come to their end while another is opened. Streams would never end. */
static void let_go(struct etcd *etcd) {
  struct etcd_link *link = etcd->link;
  if (link->state != ETCD_LINK_READY) {
    etcd_link_condemn(link, grpc_draining(link->grpc) ? "the server closes the connection" : "the server is of no use");
    etcd_link_broken(link);
    return;
  }
  if (link->retire) blame(link);
  if (link->leaderless) { /* all of them were tried a moment ago */
    snprintf(etcd->problem, sizeof etcd->problem, "no member has a leader");
    pause_dialling(etcd);
  }
  etcd->link = NULL;
  link->state = ETCD_LINK_OLD;
  kv_list_move(&etcd->old, &link->node);
  report(link, false, NULL);
  if (etcd->watches.stream.link == link) etcd_stream_cancel(&etcd->watches.stream);
  if (etcd->leases.stream.link == link) etcd_stream_cancel(&etcd->leases.stream);
}

static void tend_old(struct etcd *etcd) {
  for (struct kv_list *node = etcd->old.next, *after; node != &etcd->old; node = after) {
    struct etcd_link *link = kv_list_of(struct etcd_link, node, node);
    after = node->next;
    grpc_acknowledge(link->grpc);
    if (link->condemned || !etcd_link_flush(link))
      etcd_link_broken(link);
    else if (!grpc_calls(link->grpc))
      etcd_link_free(link);
  }
}

static void tend_current(struct etcd *etcd) {
  struct etcd_link *link = etcd->link;
  if (link && link->condemned) etcd_link_broken(link);
  link = etcd->link;
  if (link && (link->retire || grpc_draining(link->grpc))) let_go(etcd);
}

static void acknowledge_due(struct kv_timer *timer) {
  struct etcd *etcd = timer->data;
  etcd->acknowledge_armed = false;
  if (etcd->link) grpc_acknowledge(etcd->link->grpc);
  etcd_wake(etcd);
}

static void arm_acknowledge(struct etcd *etcd) {
  if (etcd->acknowledge_armed || !etcd->link || !grpc_owes_acknowledgement(etcd->link->grpc)) return;
  etcd->acknowledge_armed = true;
  kv_etcd->timer_set(&etcd->acknowledge_timer, kv_etcd->now() + ACKNOWLEDGE_AFTER);
}

void etcd_service(struct kv_task *task) {
  struct etcd *etcd = task->data;
  if (etcd->closed) return;
  tend_current(etcd);
  etcd_share_turn(etcd);
  if (!etcd->link && etcd_has_work(etcd)) connect_now(etcd);
  if (etcd->link && etcd->link->state == ETCD_LINK_READY && etcd_has_work(etcd)) {
    if (etcd->auth == ETCD_AUTH_NEEDED) etcd_auth_begin(etcd);
    if (etcd_ready(etcd)) {
      etcd_start_waiting(etcd);
      etcd_watches_start(etcd);
    }
  }
  if (etcd->link && !etcd_link_flush(etcd->link)) etcd_link_broken(etcd->link);
  tend_old(etcd);
  arm_alive(etcd);
  arm_acknowledge(etcd);
}

void etcd_endpoint_init(struct etcd *etcd) {
  kv_list_init(&etcd->old);
  etcd->dial.done = dialled;
  etcd->dial.data = etcd;
  etcd->service.run = etcd_service;
  etcd->dial_timer.fire = dial_due;
  etcd->answer_timer.fire = answer_late;
  etcd->alive_timer.fire = alive_due;
  etcd->acknowledge_timer.fire = acknowledge_due;
  etcd->service.data = etcd->dial_timer.data = etcd->answer_timer.data = etcd->alive_timer.data =
    etcd->acknowledge_timer.data = etcd;
}

void etcd_disconnect(struct etcd *etcd, const char *problem) {
  kv_etcd->dial_cancel(&etcd->dial);
  etcd->dialing = false;
  kv_etcd->timer_stop(&etcd->dial_timer);
  kv_etcd->timer_stop(&etcd->answer_timer);
  kv_etcd->timer_stop(&etcd->alive_timer);
  kv_etcd->timer_stop(&etcd->acknowledge_timer);
  while (!kv_list_empty(&etcd->old)) {
    struct etcd_link *link = kv_list_of(struct etcd_link, node, etcd->old.next);
    snprintf(link->problem, sizeof link->problem, "%s", problem);
    etcd_link_broken(link);
  }
  if (etcd->link) {
    struct etcd_link *link = etcd->link;
    snprintf(link->problem, sizeof link->problem, "%s", problem);
    etcd->link->blamed = true;
    etcd_link_broken(link);
  }
}
