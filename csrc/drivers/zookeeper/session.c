/*
 * session.c - one session of the C client: from the first need of it to its end on the server.
 *
 *   DOWN -> DIALING -> LINKING -> READY -> DOWN ...     the same handle, so the same session, on a new connection
 *                                   |____ CLOSING -> GONE
 *
 * The library is only ever entered from here, from link.c and to make requests, and handles are given up in service()
 * alone, at the end of a turn, never inside a callback of the library.
 *
 * A session that was without a connection for as long as it may live is taken as expired: the server will say so only
 * after the next connection, which may never come. So is one whose handshake is cut off again and again, when nothing
 * depends on it: a server that lost its data refuses clients that have seen more than it has.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "zookeeper.h"

#define GOODBYE_SECONDS 1
#define REFUSALS_MAX 3
#define LASTING_SECONDS 1 /* a connection that is lost before is as good as none, for when to try again */
#define SYNCS_AT_ONCE 2
#define NOWHERE "127.0.0.1:1" /* see link.c */

static void service(struct kv_task *task);
static void run_held(struct zk_session *session);

static void wake_fired(struct kv_timer *timer) {
  zk_wake(timer->data);
}

static void limit_fired(struct kv_timer *timer) {
  struct zk_session *session = timer->data;
  if (session->state == ZK_CLOSING) zk_session_ended(session, false);
  else if (session->state == ZK_LINKING) zk_condemn(session, "no answer to the handshake within connect_timeout");
}

struct zk_session *zk_session_new(struct zk *zk, enum zk_role role, double ttl) {
  struct zk_session *session = calloc(1, sizeof *session);
  if (!session) return NULL;
  double milliseconds = ttl * 1000;
  session->zk = zk;
  session->role = role;
  session->timeout = milliseconds > 2e9 ? 2000000000 : milliseconds < 1 ? 1 : (int)(milliseconds + 0.5);
  session->link.io.fd = session->link.library = -1;
  session->service = (struct kv_task){.run = service, .data = session};
  session->wake = (struct kv_timer){.fire = wake_fired, .data = session};
  session->again = (struct kv_timer){.fire = wake_fired, .data = session};
  session->limit = (struct kv_timer){.fire = limit_fired, .data = session};
  kv_list_init(&session->node);
  kv_list_init(&session->waiting);
  kv_list_init(&session->running);
  kv_list_init(&session->held);
  kv_list_move(&zk->sessions, &session->node);
  return session;
}

struct zk_session *zk_main(struct zk *zk) {
  if (!zk->main) zk->main = zk_session_new(zk, ZK_MAIN, zk->config->session_ttl);
  return zk->main;
}

void zk_wake(struct zk_session *session) {
  session->awake = true;
  kv_zk->defer(&session->service);
}

void zk_condemn(struct zk_session *session, const char *problem) {
  session->condemned = true;
  snprintf(session->problem, sizeof session->problem, "%s", problem);
  zk_wake(session);
}

bool zk_session_lasts(const struct zk_session *session) {
  return session->state != ZK_GONE && session->state != ZK_CLOSING && !session->leaving;
}

void zk_session_leave(struct zk_session *session) {
  session->leaving = true;
  zk_wake(session);
}

/* ------------------------------------------------------------------ the handle */

/* Of the session: connected, expired... State is asked for where it matters; node events have watchers of their own. */
static void session_event(zhandle_t *handle, int type, int state, const char *path, void *context) {
  (void)handle;
  (void)type;
  (void)state;
  (void)path;
  (void)context;
}

/* The library's messages are for its own developers, and may name what is secret. */
static void silence(const char *message) {
  (void)message;
}

static void add_credentials(const struct zk_session *session, zhandle_t *handle) {
  const struct kv_config *config = session->zk->config;
  if (!config->username) return;
  const char *password = config->password ? config->password : "";
  size_t size = strlen(config->username) + strlen(password) + 2;
  char *text = malloc(size);
  if (!text) return; /* as good as wrong credentials */
  snprintf(text, size, "%s:%s", config->username, password);
  zoo_add_auth(handle, "digest", text, (int)size - 1, NULL, NULL);
  explicit_bzero(text, size);
  free(text);
}

zhandle_t *zk_session_handle(struct zk_session *session) {
  if (session->handle) return session->handle;
  session->handle =
    zookeeper_init2(NOWHERE, session_event, session->timeout, NULL, session, ZOO_NO_LOG_CLIENTENV, silence);
  if (!session->handle) return NULL;
  zoo_set_servers_resolution_delay(session->handle, -1);
  add_credentials(session, session->handle);
  return session->handle;
}

/* Completions of what is in flight come inside, with an error. */
static void discard(struct zk_session *session) {
  zhandle_t *handle = session->handle;
  zk_link_drop(session);
  if (!handle) return;
  session->handle = NULL;
  zookeeper_close(handle);
  session->generation++;
  session->established = false;
  session->refusals = 0;
}

/*
 * A send that failed closes the library's descriptor without telling those who wait for answers. It tells them when
 * its next connection fails, so it gets one that does.
 */
static void flush(struct zk_session *session) {
  struct timeval timeout;
  int library = -1, interest;
  if (!session->handle || zoo_state(session->handle) != ZOO_NOTCONNECTED_STATE) return;
  for (int i = 0; i < 2 && library < 0; i++)
    if (zookeeper_interest(session->handle, &library, &interest, &timeout) != ZOK) return;
  session->link.library = library;
  zk_link_cut(session);
  session->link.library = -1;
}

/* ------------------------------------------------------------------ connection lost and found */

static void tell_core(const struct zk_session *session, bool connected) {
  const struct kv_config *config = session->zk->config;
  char endpoint[300];
  if (session->role != ZK_MAIN) return;
  if (session->link.address < config->address_count) {
    const struct kv_address *address = &config->addresses[session->link.address];
    bool bracket = strchr(address->host, ':') != NULL;
    snprintf(endpoint, sizeof endpoint, bracket ? "[%s]:%u" : "%s:%u", address->host, (unsigned)address->port);
  }
  kv_zk->connected(session->zk->backend, connected,
                   connected && session->link.address < config->address_count ? endpoint : NULL, NULL);
}

static void back_off(struct zk_session *session) {
  session->next_dial += (int64_t)(kv_zk->backoff(session->rounds) * (double)ZK_SECOND);
  if (session->rounds < 100) session->rounds++;
}

/* No connection this time. After a round over all endpoints those who wait are told. */
static void attempt_failed(struct zk_session *session) {
  session->next_dial = kv_zk->now();
  if (++session->attempts < session->zk->config->address_count) return;
  session->attempts = 0;
  back_off(session);
  zk_calls_fail(session, KV_UNAVAILABLE, session->problem);
}

static void lost(struct zk_session *session, const char *problem) {
  bool was_ready = session->state == ZK_READY, was_linking = session->state == ZK_LINKING;
  if (!session->condemned) snprintf(session->problem, sizeof session->problem, "%s", problem);
  session->condemned = false;
  kv_zk->timer_stop(&session->limit);
  zk_link_drop(session);
  session->state = ZK_DOWN;
  flush(session);
  session->syncs = 0;
  while (!kv_list_empty(&session->held)) kv_list_move(&session->waiting, session->held.next);
  if (was_linking) {
    kv_zk->endpoint_failed(session->zk->backend, session->link.address);
    bool is_refused = session->established && ++session->refusals >= REFUSALS_MAX;
    if (is_refused && session->role <= ZK_SHARD) session->expired = true;
    attempt_failed(session);
  }
  if (was_ready) {
    session->lost_at = session->next_dial = kv_zk->now();
    session->attempts = 0;
    bool lasted = session->lost_at - session->ready_at >= LASTING_SECONDS * ZK_SECOND;
    if (lasted) session->rounds = 0;
    else back_off(session);
    tell_core(session, false);
    zk_watches_down(session);
  }
  zk_wake(session);
}

static void ready(struct zk_session *session) {
  kv_zk->timer_stop(&session->limit);
  kv_zk->timer_stop(&session->again);
  session->state = ZK_READY;
  session->established = true;
  session->ready_at = session->told_at = kv_zk->now();
  session->granted = zoo_recv_timeout(session->handle) / 1000.0;
  session->attempts = session->refusals = 0;
  session->problem[0] = '\0';
  tell_core(session, true);
  zk_calls_run(session);
  zk_watches_ready(session);
  zk_wake(session);
}

void zk_session_linked(struct zk_session *session, const char *problem) {
  if (problem) {
    session->state = ZK_DOWN;
    snprintf(session->problem, sizeof session->problem, "%s", problem);
    attempt_failed(session);
  } else {
    session->state = ZK_LINKING;
    double limit = session->zk->config->connect_timeout;
    kv_zk->timer_set(&session->limit, kv_zk->now() + (int64_t)(limit * (double)ZK_SECOND));
  }
  zk_wake(session);
}

void zk_session_check(struct zk_session *session) {
  if (!session->handle || (session->state != ZK_LINKING && session->state != ZK_READY)) return;
  int state = zoo_state(session->handle);
  if (state == ZOO_EXPIRED_SESSION_STATE || state == ZOO_AUTH_FAILED_STATE) {
    session->auth_refused = state == ZOO_AUTH_FAILED_STATE;
    session->expired = true;
    lost(session, session->auth_refused ? "the server refused the credentials" : "the session has expired");
    return;
  }
  bool connected = state == ZOO_CONNECTED_STATE;
  bool connecting = state == ZOO_CONNECTING_STATE || state == ZOO_ASSOCIATING_STATE;
  if (session->state == ZK_LINKING && connected) ready(session);
  else if (session->state == ZK_LINKING && !connecting)
    lost(session, "the server closed the connection during the handshake");
  else if (session->state == ZK_READY && !connected) lost(session, "the connection was lost");
}

/* ------------------------------------------------------------------ the end */

/* `over`: the server said so, or there never was anything there. */
static void gone(struct zk_session *session, kv_code code, const char *problem, bool over) {
  struct zk_call *closer = session->closer;
  session->state = ZK_GONE;
  session->closer = NULL;
  kv_zk->timer_stop(&session->limit);
  kv_zk->timer_stop(&session->again);
  discard(session);
  zk_lookouts_lost(session);
  zk_leases_lost(session);
  zk_calls_fail(session, code, problem);
  if (closer && over) zk_finish(closer, KV_OK, NULL);
  else if (closer) zk_finish(closer, KV_UNKNOWN, "the server did not answer to the end of the session");
  zk_wake(session);
}

/* Somebody wants to know that it is over, so that it is said again on another connection until the server answers. */
static bool is_insisted(const struct zk_session *session) {
  return session->ending && session->established && !session->zk->closing;
}

void zk_session_ended(struct zk_session *session, bool answered) {
  if (answered || !is_insisted(session)) {
    zk_link_cut(session);
    gone(session, KV_CLOSED, "the session was ended", answered);
  } else {
    session->state = ZK_READY;
    zk_link_cut(session);
    lost(session, "the server did not answer to the end of the session");
  }
}

static void leave(struct zk_session *session) {
  if (session->state == ZK_READY) zk_link_interest(session); /* perhaps half a message of this turn was sent */
  if (session->state == ZK_READY && !session->condemned && zk_link_say_goodbye(session)) {
    double patience = is_insisted(session) ? session->zk->config->connect_timeout : GOODBYE_SECONDS;
    session->state = ZK_CLOSING;
    kv_zk->timer_stop(&session->wake);
    kv_zk->timer_set(&session->limit, kv_zk->now() + (int64_t)(patience * (double)ZK_SECOND));
    return;
  }
  if (is_insisted(session)) return; /* at the next opportunity */
  bool was_there = session->established;
  zk_link_cut(session);
  gone(session, KV_CLOSED, "the session was ended", !was_there);
}

/* The session does not exist any more, or is to be treated so. */
static void expire(struct zk_session *session) {
  bool denied = session->auth_refused;
  session->expired = session->auth_refused = false;
  if (session->link.io.fd >= 0) zk_link_cut(session);
  if (session->state != ZK_DOWN) lost(session, "the session has expired");
  discard(session);
  zk_lookouts_lost(session);
  if (denied) zk_calls_fail(session, KV_DENIED, "the server refused the credentials");
  if (session->role == ZK_LEASE || session->role == ZK_LOCKS) {
    gone(session, KV_LOST, "the session has expired", true);
  } else {
    zk_watches_expired(session);
  }
}

/* ------------------------------------------------------------------ at the end of a turn */

static bool is_wanted(const struct zk_session *session) {
  return !kv_list_empty(&session->waiting) || session->places > 0 || zk_watches_any(session);
}

static void service_down(struct zk_session *session) {
  int64_t now = kv_zk->now(), ends = INT64_MAX;
  if (session->established) ends = session->lost_at + (int64_t)(session->granted * (double)ZK_SECOND);
  if (now >= ends) {
    expire(session);
    if (session->state != ZK_DOWN) return;
    ends = INT64_MAX;
  }
  bool wanted = is_wanted(session);
  if (wanted && now >= session->next_dial && session->state == ZK_DOWN) {
    session->state = ZK_DIALING;
    zk_link_dial(session);
    return;
  }
  int64_t at = wanted && session->next_dial < ends ? session->next_dial : ends;
  kv_zk->timer_set(&session->again, at);
}

static void destroy(struct zk_session *session) {
  struct zk *zk = session->zk;
  kv_list_remove(&session->node);
  if (zk->main == session) zk->main = NULL;
  free(session);
  if (zk->closing) kv_zk->defer(&zk->close_task);
}

static void service(struct kv_task *task) {
  struct zk_session *session = task->data;
  if (session->state == ZK_READY && !kv_list_empty(&session->held)) run_held(session);
  session->synced = session->awake = false;
  zk_link_cork(session, false);
  if (session->state == ZK_LINKING || session->state == ZK_READY) {
    if (session->condemned) zk_link_cut(session);
    zk_session_check(session);
  }
  session->condemned = false;
  if (session->expired && session->state != ZK_GONE && session->state != ZK_CLOSING) expire(session);
  if (session->leaving && session->state != ZK_GONE && session->state != ZK_CLOSING) leave(session);
  if (session->state == ZK_CLOSING && session->ending && session->zk->closing) {
    session->ending = false;
    kv_zk->timer_set(&session->limit, kv_zk->now() + GOODBYE_SECONDS * ZK_SECOND);
  }
  if (session->state == ZK_DOWN) service_down(session);
  if (session->state == ZK_LINKING || session->state == ZK_READY) zk_link_interest(session);
  if (session->state == ZK_GONE && !session->calls && !session->awake) destroy(session);
}

/* ------------------------------------------------------------------ strong reads */

static void synced(int result, const char *value, const void *data) {
  struct zk_session *session = (struct zk_session *)(uintptr_t)data;
  (void)value;
  session->sync_result = result;
  if (session->syncs) session->syncs--;
  if (!kv_list_empty(&session->held)) zk_wake(session);
}

/* One for all reads of a turn: they were all asked for before it was sent. */
bool zk_sync(struct zk_session *session) {
  if (session->synced) return true;
  zk_link_cork(session, true);
  if (zoo_async(session->handle, "/", synced, session) != ZOK) return false;
  session->synced = true;
  session->syncs++;
  zk_wake(session);
  return true;
}

struct barrier {
  struct zk_session *session;
  zoo_op_t op;
  zoo_op_result_t result;
};

static void committed(int result, const void *data) {
  struct barrier *barrier = (struct barrier *)(uintptr_t)data;
  /* Whatever it says of the root: a quorum says it. */
  barrier->session->sync_result = zk_code(result, false) == KV_UNAVAILABLE ? result : ZOK;
  free(barrier);
}

/* A leader takes a sync for nothing: see read.c. */
bool zk_commit(struct zk_session *session) {
  struct barrier *barrier = calloc(1, sizeof *barrier);
  if (!barrier) return false;
  barrier->session = session;
  zk_link_cork(session, true);
  zoo_check_op_init(&barrier->op, "/", -1);
  zk_wake(session);
  if (zoo_amulti(session->handle, 1, &barrier->op, &barrier->result, committed, barrier) == ZOK) return true;
  free(barrier);
  return false;
}

/*
 * When many read at once, a sync for each handful of them would be half of the server's work. So no more than a few
 * are in flight; reads that come meanwhile share the next one. They would not be answered before it anyway.
 */
bool zk_sync_hold(struct zk_call *call) {
  struct zk_session *session = call->session;
  if (session->synced || session->syncs < SYNCS_AT_ONCE) return false;
  kv_list_move(&session->held, &call->node);
  return true;
}

static void run_held(struct zk_session *session) {
  struct kv_list batch;
  if (session->syncs >= SYNCS_AT_ONCE) return;
  kv_list_init(&batch);
  while (!kv_list_empty(&session->held)) kv_list_move(&batch, session->held.next);
  while (!kv_list_empty(&batch)) {
    struct zk_call *call = kv_list_of(struct zk_call, node, batch.next);
    kv_list_remove(&call->node);
    zk_call_start(call, call->run);
  }
}

/* Answers come in order, so that the last sync that was answered is the one that a read stands behind. */
int zk_behind_sync(const struct zk_call *call, bool strong, int result) {
  bool answered = result == ZOK || result == ZNONODE;
  return strong && answered && call->session->sync_result != ZOK ? call->session->sync_result : result;
}
