/*
 * lease.c - leases.
 *
 * A lease for keys is a session of its own: the server gives it its own time to live, and ends it with all its keys
 * in one step; that of an election, which has a key beside its entry, too. The leases of locks share one session for
 * each time to live that was asked for, because a server allows one address 60 connections unless it is told otherwise.
 * So what may be left of a lock's lease, its entry in
 * a queue, is removed by name when the lease is given up, and the attempt is repeated until the entry is certainly
 * gone, or the session is.
 *
 * A heartbeat is a multi with a check in it: the server commits it by quorum, while a ping is answered by any server,
 * a deposed leader included. It checks the entry of a lock that is held, or else the root.
 *
 * But the leader, who ends sessions, does not count from that: it hears twice a tick from its followers whom they have
 * heard of, and what came through a follower that is cut off right behind it does not count at all. So a heartbeat has
 * two parts: something is asked, and the check follows when the leader must have been told. Its success says that the
 * session lives from the *first* part on, which is when the renewal began. A connection made since does for the
 * first part, as the leader is asked before a session is taken up.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "zookeeper.h"

struct zk_lease {
  struct kv_list node;
  uint64_t id;
  struct zk_session *session;
  bool shared;                     /* the session is not its own */
  char *queue;                     /* owned: an entry may be in this queue; NULL: certainly not */
  char entry[ZK_ENTRY_MAX];        /* what its name begins with */
  struct zk_call *cleaner;         /* removes it */
  struct zk_call *revoker;         /* waits for that, or NULL */
};

static void clean(struct zk_lease *lease);

static struct zk_lease *find(struct zk *zk, const struct kv_lease_ref *ref) {
  for (struct kv_list *at = zk->leases.next; at != &zk->leases; at = at->next) {
    struct zk_lease *lease = kv_list_of(struct zk_lease, node, at);
    if (lease->id == ref->id) {
      kv_list_remove(&lease->node); /* those in use are found soon */
      kv_list_move(zk->leases.next, &lease->node);
      return lease;
    }
  }
  return NULL;
}

struct zk_session *zk_lease_session(struct zk *zk, const struct kv_lease_ref *ref) {
  struct zk_lease *lease = find(zk, ref);
  return lease && !lease->session->ending ? lease->session : NULL;
}

bool zk_lease_note(struct zk *zk, const struct kv_lease_ref *ref, const char *queue, const char *entry) {
  struct zk_lease *lease = find(zk, ref);
  if (!lease) return true;
  char *copy = queue ? strdup(queue) : NULL;
  if (queue && !copy) return false;
  free(lease->queue);
  lease->queue = copy;
  snprintf(lease->entry, sizeof lease->entry, "%s", entry ? entry : "");
  return true;
}

/* Out of the table. The session goes with its last lease. */
static void forget(struct zk_lease *lease) {
  struct zk_session *session = lease->session;
  struct zk_call *revoker = lease->revoker;
  if (lease->cleaner) lease->cleaner->data = NULL;
  if (revoker) revoker->data = NULL;
  kv_list_remove(&lease->node);
  free(lease->queue);
  free(lease);
  if (--session->places == 0 && session->state != ZK_GONE) zk_session_leave(session);
  if (revoker) zk_finish(revoker, KV_OK, NULL);
}

static bool next_of(struct zk *zk, const struct zk_session *session, struct zk_lease **lease) {
  for (struct kv_list *at = zk->leases.next; at != &zk->leases; at = at->next) {
    *lease = kv_list_of(struct zk_lease, node, at);
    if (!session || (*lease)->session == session) return true;
  }
  return false;
}

void zk_leases_lost(struct zk_session *session) {
  struct zk_lease *lease;
  while (next_of(session->zk, session, &lease)) forget(lease);
}

void zk_leases_free(struct zk *zk) {
  struct zk_lease *lease;
  while (next_of(zk, NULL, &lease)) {
    kv_list_remove(&lease->node);
    free(lease->queue);
    free(lease);
  }
}

/* ------------------------------------------------------------------ grant */

static struct zk_session *session_for(struct zk *zk, const struct kv_lease_ref *ref) {
  bool shared = ref->for_lock && !ref->with_key;
  struct zk_session *fresh = zk_session_new(zk, shared ? ZK_LOCKS : ZK_LEASE, ref->ttl);
  if (!fresh || !shared) return fresh;
  for (struct kv_list *at = zk->sessions.next; at != &zk->sessions; at = at->next) {
    struct zk_session *session = kv_list_of(struct zk_session, node, at);
    bool is_alike = session != fresh && session->role == ZK_LOCKS && session->timeout == fresh->timeout;
    if (!is_alike || !zk_session_lasts(session) || session->expired) continue;
    kv_list_remove(&fresh->node);
    free(fresh);
    return session;
  }
  return fresh;
}

static struct zk_lease *make(struct zk *zk, const struct kv_lease_ref *ref) {
  struct zk_lease *lease = calloc(1, sizeof *lease);
  struct zk_session *session = lease ? session_for(zk, ref) : NULL;
  if (!session) {
    free(lease);
    return NULL;
  }
  lease->id = ref->id;
  lease->session = session;
  lease->shared = ref->for_lock && !ref->with_key;
  session->places++;
  kv_list_init(&lease->node);
  kv_list_move(&zk->leases, &lease->node);
  zk_wake(session);
  return lease;
}

static void granted(struct zk_call *call) {
  call->op->lease->granted = call->session->granted;
  zk_finish(call, KV_OK, NULL);
}

/* On a session that others keep nothing is asked of the server, which heard of it some time ago: the library sends a
 * ping every third of its time at the latest. */
static double behind(const struct zk_session *session) {
  if (!session->established) return 0;
  double most = session->granted * 0.3, since = (double)(kv_zk->now() - session->told_at) / (double)ZK_SECOND;
  return since < most ? since : most;
}

void zk_lease_grant(struct zk *zk, struct kv_op *op) {
  struct zk_lease *lease = find(zk, op->lease);
  if (!lease) lease = make(zk, op->lease);
  if (!lease) {
    kv_zk->finish(op, KV_FAILED, "out of memory");
    return;
  }
  op->lease->behind = behind(lease->session);
  struct zk_call *call = zk_call_new(zk, lease->session, op);
  if (call) zk_call_start(call, granted);
}

/* ------------------------------------------------------------------ renew */

/* Between the two parts: half a tick as servers are delivered, and some time on the way. Short sessions are kept by
 * servers whose ticks are short. */
#define RELAY_SECONDS 1.25
#define RELAY_PART 8.0 /* of the session's time at the most */

struct heartbeat {
  int64_t begun;
  struct kv_timer relay;
  zoo_op_t op;
  zoo_op_result_t result;
  char path[];
};

static void free_beat(struct zk_call *call) {
  struct heartbeat *beat = call->data;
  if (beat) kv_zk->timer_stop(&beat->relay);
  free(beat);
}

static void renewed(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  bool answered = zk_code(result, false) != KV_UNAVAILABLE;
  if (call->op->place && (result == ZNONODE || result == ZBADVERSION)) {
    zk_finish(call, KV_LOST, "our entry in the queue is gone");
  } else if (answered) { /* whatever it says of the root: a quorum says it to this session */
    const struct heartbeat *beat = call->data;
    call->op->lease->granted = call->session->granted;
    if (call->session->told_at < beat->begun) call->session->told_at = beat->begun;
    zk_finish(call, KV_OK, NULL);
  } else {
    zk_fail(call, result);
  }
}

static void check(struct zk_call *call) {
  struct heartbeat *beat = call->data;
  zoo_check_op_init(&beat->op, beat->path, call->op->place ? 0 : -1);
  zk_sent(call, zoo_amulti(call->session->handle, 1, &beat->op, &beat->result, renewed, call));
}

static void relayed(struct kv_timer *timer) {
  zk_call_start(timer->data, check);
}

static void touched(int result, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)stat;
  if (!call) return;
  if (zk_code(result, false) == KV_UNAVAILABLE) {
    zk_fail(call, result);
    return;
  }
  struct heartbeat *beat = call->data;
  double seconds = call->session->granted / RELAY_PART;
  if (seconds > RELAY_SECONDS) seconds = RELAY_SECONDS;
  beat->relay.fire = relayed;
  beat->relay.data = call;
  kv_zk->timer_set(&beat->relay, kv_zk->now() + (int64_t)(seconds * (double)ZK_SECOND));
}

static void renew(struct zk_call *call) {
  const struct heartbeat *beat = call->data;
  if (call->session->ready_at >= beat->begun) check(call);
  else zk_sent(call, zoo_aexists(call->session->handle, "/", 0, touched, call));
}

static struct heartbeat *beat_new(const struct kv_place *place) {
  char *queue = place ? zk_queue_path(place) : NULL;
  size_t size = (queue ? strlen(queue) : 0) + KV_TICKET_MAX + 2;
  struct heartbeat *beat = place && !queue ? NULL : calloc(1, sizeof *beat + size);
  if (beat) snprintf(beat->path, size, "%s/%s", queue ? queue : "", queue ? place->ticket : "");
  if (beat) beat->begun = kv_zk->now();
  free(queue);
  return beat;
}

void zk_lease_renew(struct zk *zk, struct kv_op *op) {
  struct zk_session *session = zk_lease_session(zk, op->lease);
  if (!session) {
    kv_zk->finish(op, KV_LOST, "the session has expired");
    return;
  }
  struct zk_call *call = zk_call_new(zk, session, op);
  if (!call) return;
  call->data = beat_new(op->place);
  call->clear = free_beat;
  if (call->data) zk_call_start(call, renew);
  else zk_finish(call, KV_FAILED, "out of memory");
}

/* ------------------------------------------------------------------ removing the entry of a lock that was given up */

static void clean_failed(struct zk_call *call, kv_code code, const char *problem) {
  struct zk_lease *lease = call->data;
  (void)problem;
  if (!lease) return;
  lease->cleaner = NULL;
  if (code == KV_UNAVAILABLE || code == KV_UNKNOWN) clean(lease); /* when there is a connection again */
  else if (code != KV_FAILED) forget(lease); /* not allowed, or the session is gone: it goes by itself */
}

static void cleaned(struct zk_call *call, int result) {
  struct zk_lease *lease = call->data;
  if (result != ZOK && result != ZNONODE) {
    zk_fail(call, result);
    return;
  }
  zk_finish(call, KV_OK, NULL);
  if (!lease) return;
  lease->cleaner = NULL;
  forget(lease);
}

static void entry_deleted(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (call) cleaned(call, result);
}

static void queue_read(int result, const struct String_vector *names, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  const struct zk_lease *lease = call->data;
  const char *name = result == ZOK && lease ? zk_queue_find(names, lease->entry) : NULL;
  if (!name) {
    cleaned(call, result);
    return;
  }
  size_t size = strlen(lease->queue) + strlen(name) + 2;
  char *path = malloc(size);
  if (!path) {
    cleaned(call, ZOPERATIONTIMEOUT); /* again */
    return;
  }
  snprintf(path, size, "%s/%s", lease->queue, name);
  zk_sent(call, zoo_adelete(call->session->handle, path, -1, entry_deleted, call));
  free(path);
}

/* A request to create it that was not answered is behind us: what was sent before on this session is settled. */
static void look_for_entry(struct zk_call *call) {
  const struct zk_lease *lease = call->data;
  if (!lease) zk_finish(call, KV_OK, NULL);
  else if (!zk_sync(call->session)) zk_fail(call, ZINVALIDSTATE);
  else zk_sent(call, zoo_aget_children(call->session->handle, lease->queue, 0, queue_read, call));
}

static void clean(struct zk_lease *lease) {
  if (lease->cleaner) return;
  struct zk_call *call = zk_call_new(lease->session->zk, lease->session, NULL);
  if (!call) return; /* the next attempt to revoke it comes here again */
  call->data = lease;
  call->failed = clean_failed;
  lease->cleaner = call;
  zk_call_start(call, look_for_entry);
}

/* ------------------------------------------------------------------ revoke */

static void detach_revoker(struct zk_call *call) {
  struct zk_lease *lease = call->data;
  if (lease && lease->revoker == call) lease->revoker = NULL;
}

/* The session is ended, and its keys with it. The lease is known until then. */
static void end_session(struct zk_call *call) {
  struct zk_session *session = call->session;
  session->closer = call;
  session->ending = true;
  zk_session_leave(session);
}

void zk_lease_revoke(struct zk *zk, struct kv_op *op) {
  struct zk_lease *lease = find(zk, op->lease);
  if (!lease) {
    kv_zk->finish(op, KV_OK, NULL);
    return;
  }
  struct zk_call *call = zk_call_new(zk, lease->session, op);
  if (!call) return;
  if (lease->shared && lease->queue) {
    call->data = lease;
    call->clear = detach_revoker;
    lease->revoker = call;
    clean(lease);
  } else if (lease->shared) {
    forget(lease);
    zk_finish(call, KV_OK, NULL);
  } else if (!lease->session->established || lease->session->ending) {
    end_session(call);
  } else {
    zk_call_start(call, end_session);
  }
}
