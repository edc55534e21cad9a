/*
 * recipes.h - what the recipes share: locks, leases, the store's session and late expiry, built on steps that every
 * driver offers. Private to csrc/recipes; core.h has what the core asks of them.
 *
 * Every machine here runs on the reactor thread alone. A user's thread makes and frees handles, submits requests, and
 * reads a few atomics. A handle is freed by a task that is posted behind all its requests, so that a request on
 * its way never finds it gone.
 */
#ifndef KV_RECIPES_H
#define KV_RECIPES_H

#include "../core/core.h"

/* One per backend, in backend->recipes, made at first use and kept until the backend is freed. */
struct kv_recipes {
  struct kv_backend *backend;
  struct kv_lock *locks;               /* of which the reactor knows */
  struct kv_lease *leases;             /* being granted, alive, or being revoked */
  struct kv_lease *spares;             /* of locks that were let go, for the next ones; each one counted */
  unsigned spare_count;
  struct kv_lease *session;            /* the store's own, or NULL */
  struct kv_session_wait *session_waits;
  struct kv_expiries *expiries;
  struct kv_holder *holders;           /* questions who holds a lock */
  unsigned busy;                       /* steps in flight */
  bool closing;
  bool over;                           /* grace is gone: nothing new is started */
  bool settled;
  void (*closed)(struct kv_backend *backend);
  struct kv_timer grace;
  struct kv_task settle;
};

/* NULL: out of memory. */
struct kv_recipes *kv_recipes_of(struct kv_backend *backend);
/* kv_step_start() and the end of the step, counted, so that closing knows when the driver has let go of everything. */
void kv_recipes_step(struct kv_recipes *recipes, struct kv_step *step);
void kv_recipes_step_done(struct kv_recipes *recipes);
/* Something ended: look (a little later) whether closing is complete. */
void kv_recipes_settle(struct kv_recipes *recipes);
/* When a step that begins now has had long enough to be tried again by its machine. */
int64_t kv_step_deadline(const struct kv_backend *backend);
/* The same for a step that serves a request (or NULL): a little before its deadline, so that the failure can be
 * told. */
int64_t kv_step_deadline_for(const struct kv_backend *backend, const struct kv_op *op);
/* May the same step help later? (The others are refusals.) */
bool kv_code_passes(kv_code code);

/* The part of a public handle that gets it freed: run() comes on the reactor behind everything that was posted, or at
 * once when the backend is closed or was never started (the reactor then knows nothing of the handle). */
struct kv_handle {
  struct kv_task task;
  void (*run)(struct kv_handle *handle);
};
void kv_handle_free(struct kv_backend *backend, struct kv_handle *handle, void (*run)(struct kv_handle *handle));

/* A user's request that waits for a machine, with the machine's own look at its deadline: just before the core would
 * answer KV_TIMEOUT, the machine can say more. */
struct kv_asked {
  struct kv_op *op; /* NULL: none */
  struct kv_timer timer;
};
void kv_asked_take(struct kv_asked *asked, struct kv_op *op, void (*late)(struct kv_timer *timer), void *data);
/* Answer and forget; nothing happens when there is no op. */
void kv_asked_answer(struct kv_asked *asked, kv_code code, const char *format, ...) KV_PRINTF(3, 4);

/* Lists of requests, linked by op->next. */
void kv_op_list_add(struct kv_op **list, struct kv_op *op);
bool kv_op_list_remove(struct kv_op **list, const struct kv_op *op);
void kv_op_list_answer(struct kv_op **list, kv_code code, const char *message); /* and empty it */

/* ------------------------------------------------------------------ lease.c */

enum kv_lease_phase {
  LEASE_NEW,       /* nothing was asked */
  LEASE_GRANTING,
  LEASE_ALIVE,
  LEASE_SUSPENDED, /* renewal fails, the deadline lies ahead */
  LEASE_REVOKING,  /* given up, or lost: what may be left on the server is removed */
  LEASE_GONE
};

/* How the owner uses it. */
enum kv_lease_use {
  LEASE_USED,    /* renew it */
  LEASE_IDLE,    /* when it would have to be renewed, revoke it */
  LEASE_RESTING  /* leave it alone until its deadline */
};

enum kv_lease_news {
  LEASE_READY,          /* granted */
  LEASE_REFUSED,        /* not granted, with the reason; it is as good as gone */
  LEASE_RENEWED,        /* after every renewal, out of LEASE_SUSPENDED too */
  LEASE_FAILING,        /* now LEASE_SUSPENDED */
  LEASE_ENDED,          /* lost, with the reason; or given up after idling */
  LEASE_REVOKE_FAILED,  /* one try to revoke failed, with the reason */
  LEASE_REVOKED         /* the end: revoked, or certainly expired by itself (code KV_LOST) */
};

struct kv_lease {
  struct kv_lease_ref ref; /* first: drivers see this part */
  atomic_uint references;
  unsigned fork_count;
  /* Any thread. */
  atomic_int_fast64_t deadline; /* the lease is alive until then as far as we know; 0: it is not */
  _Atomic double granted;
  /* Reactor. */
  enum kv_lease_phase phase;
  enum kv_lease_use use;
  struct kv_recipes *recipes;
  struct kv_lease *next, **link;  /* in recipes->leases; counted there */
  struct kv_lease *next_spare;    /* in recipes->spares */
  void (*changed)(struct kv_lease *lease, enum kv_lease_news news, kv_code code, const char *message); /* or NULL */
  void *owner;
  struct kv_place *place;         /* renewals prove it too; or NULL. Counted */
  struct kv_place *place_in_step; /* that of the renewal in flight. Counted */
  struct kv_step step;
  bool busy;
  bool granted_once;
  bool asked;                     /* something was sent that may have made it */
  int64_t sent;                   /* when the step in flight began */
  int64_t good;                   /* when the last grant or renewal that succeeded was sent, or the first grant */
  int64_t next_try;
  int64_t suspect_at;             /* no answer to a renewal by then: LEASE_SUSPENDED */
  int64_t gone_at;                /* REVOKING: by then it has expired by itself */
  /* a grant's try ends by then, so that its failure can be told in time; 0: no matter */
  int64_t try_until;
  unsigned failures;
  struct kv_timer timer;
  char problem[160];              /* why the last grant or renewal failed */
  kv_code problem_code;           /* of a grant */
  /* Of public handles, lease_handle.c. */
  kv_store *store;
  uint64_t view;                  /* of that store; 0: the lease is no user's */
  struct kv_backend *backend;     /* counted */
  struct kv_handle handle;
  struct kv_asked open, close;
  struct kv_op *lost_waiters;
  kv_code end;                    /* KV_OK: not ended. KV_LOST, or KV_NOT_HELD after an own close */
  char reason[200];
};

/* A lease that nobody has asked the server for yet: one reference, the caller's. NULL: out of memory. */
struct kv_lease *kv_lease_make(const struct kv_backend *backend, double ttl);
/* Have it granted, and renewed. `changed` comes later, never inside this call. */
void kv_lease_begin(struct kv_lease *lease, struct kv_recipes *recipes);
/* Give it up: revoked in the background until that is certain or it has expired. The owner may forget it (changed =
 * NULL). */
void kv_lease_drop(struct kv_lease *lease);
void kv_lease_set_use(struct kv_lease *lease, enum kv_lease_use use);
/* What renewals prove from now on, or NULL. */
void kv_lease_set_place(struct kv_lease *lease, struct kv_place *place);
/* Closing, and the grace is gone: stop at once. */
void kv_lease_abandon(struct kv_lease *lease);
void kv_lease_retain(struct kv_lease *lease);
void kv_lease_release(struct kv_lease *lease); /* any thread */
bool kv_lease_usable(const struct kv_lease *lease); /* granted, and the deadline lies ahead */

/* ------------------------------------------------------------------ spare.c */

/* Keep a lease whose entry is gone for whoever needs one next; takes over the caller's reference. False: not wanted. */
bool kv_spare_put(struct kv_recipes *recipes, struct kv_lease *lease);
/* One that is alive and was asked for with this ttl and for this use, with its reference; NULL: there is none. */
struct kv_lease *kv_spare_take(struct kv_recipes *recipes, double ttl, bool with_key);

/* ------------------------------------------------------------------ session.c, expiry.c, lock.c: for closing */

void kv_session_close(struct kv_recipes *recipes);
void kv_spares_close(struct kv_recipes *recipes);
void kv_expiry_close(struct kv_recipes *recipes);
void kv_locks_close(struct kv_recipes *recipes, uint64_t view); /* let go of all, or of those of one view */
/* nothing of them is on the server as far as we can tell */
bool kv_locks_settled(const struct kv_recipes *recipes);
void kv_locks_cancel(struct kv_recipes *recipes);               /* steps in flight */
void kv_locks_detach(struct kv_recipes *recipes);               /* the reactor forgets them */
void kv_holders_cancel(struct kv_recipes *recipes);

void kv_place_retain(struct kv_place *place);

#endif
