/*
 * lock.h - a lock handle and its machine, shared by lock.c (the machine, reactor thread) and lock_handle.c (the
 * functions of kv.h, users' threads).
 */
#ifndef KV_RECIPES_LOCK_H
#define KV_RECIPES_LOCK_H

#include "recipes.h"

/* One entry in a lock's queue: made per acquire, counted, because renewals, guards of transactions and steps in flight
 * name it. */
struct kv_entry {
  struct kv_place pub; /* first: drivers see this part */
  atomic_uint references;
  char text[];         /* name and value */
};

enum kv_lock_phase {
  LOCK_FREE,
  LOCK_GRANTING,  /* waiting for a lease */
  LOCK_JOINING,   /* making our entry */
  LOCK_LOOKING,   /* who is ahead of us? */
  LOCK_WAITING,   /* until that one is gone */
  LOCK_CLAIMING,  /* verifying that we are first */
  LOCK_HELD,
  LOCK_SUSPENDED, /* held, but the renewal fails */
  LOCK_LEAVING,   /* removing our entry */
  LOCK_LOST,
  LOCK_STAY       /* no phase: an event that changes nothing */
};

enum kv_lock_event {
  LOCK_ACQUIRE,       /* a user wants it */
  LOCK_GIVE_UP,       /* he does not any more: answered, timed out, cancelled, refused */
  LOCK_RELEASE,
  LOCK_LOOK,          /* nothing but a look at the deadline */
  LOCK_CLOSE,         /* the store closes */
  LOCK_STEP_DONE,
  LOCK_PAUSE_OVER,
  LOCK_LEASE_READY,
  LOCK_LEASE_RENEWED,
  LOCK_LEASE_FAILING,
  LOCK_LEASE_ENDED
};

/* What a step gave, for LOCK_STEP_DONE. */
struct kv_outcome {
  kv_code code;
  const char *message;
  const struct kv_result *result;
};

struct kv_lock {
  /* Set once. */
  kv_store *store;
  struct kv_backend *backend;  /* counted */
  unsigned fork_count;
  double ttl;                  /* asked for */
  kv_slice name, shown, value; /* with the store's prefix; as the user says it. Owned, in one block */
  /* Any thread. */
  atomic_int state;               /* kv_lock_state */
  atomic_int_fast64_t deadline;   /* held until then; 0: not held */
  atomic_uint_fast64_t token;
  _Atomic double granted;
  pthread_mutex_t guard;
  struct kv_entry *held;          /* while it is held; guarded */
  struct kv_handle handle;
  /* Reactor. */
  struct kv_recipes *recipes;     /* NULL: the reactor does not know it */
  struct kv_lock *next, **link;   /* in recipes->locks */
  enum kv_lock_phase phase;
  bool busy;                      /* a step is in flight */
  bool stale;                     /* it belongs to an earlier phase: what this phase does begins when it is done */
  bool freed;                     /* the handle is gone */
  bool try_once;
  bool doubtful;                  /* an entry may appear late: the lease must not outlive the leave */
  unsigned failures, restarts, laps;
  int64_t not_before;             /* the phase's step is not to begin earlier */
  struct kv_entry *entry;
  struct kv_entry *entry_in_step;
  struct kv_lease *lease;         /* counted */
  struct kv_step step;
  struct kv_timer pause;
  struct kv_asked acquire, release;
  struct kv_op *lost_waiters;
  kv_code last_code;              /* of the last step that failed during this acquire or release; KV_OK: none */
  char problem[160];
  char reason[200];               /* why it was lost */
};

/* Take part in the machine from now on. False: *code and *message say why not. Reactor. */
bool kv_lock_attach(struct kv_lock *lock, kv_code *code, const char **message);
void kv_lock_event(struct kv_lock *lock, enum kv_lock_event event, const struct kv_outcome *outcome);
/* The handle is gone: what waits is given up; a held lock stays until it is lost or the store closes. */
void kv_lock_orphan(struct kv_lock *lock);
void kv_lock_destroy(struct kv_lock *lock); /* the memory */
bool kv_lock_is_held(const struct kv_lock *lock); /* by the local deadline. Any thread */

#endif
