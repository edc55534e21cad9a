/*
 * lock.h - a lock handle and its machine, shared by lock.c (the machine, reactor thread), lock_handle.c (the functions
 * of kv.h, users' threads), election.c and semaphore.c (what these add to both).
 */
#ifndef KV_RECIPES_LOCK_H
#define KV_RECIPES_LOCK_H

#include "recipes.h"

/* One entry in a lock's queue: made per acquire, counted, because renewals, guards of transactions and steps in flight
 * name it. */
struct kv_entry {
  struct kv_place pub; /* first: drivers see this part */
  atomic_uint references;
  kv_slice leader;     /* an election: what its leader's key says, once the token is known */
  char text[];         /* name, room for a token, value */
};

/* A semaphore: a wait for one of those before us to go. */
struct kv_wait {
  struct kv_wait *next, **link; /* in lock->waits */
  struct kv_lock *lock;
  struct kv_entry *entry;       /* counted */
  bool wanted, stopped;         /* by the last look; it is given up */
  struct kv_step step;
  struct kv_place place;        /* a copy of the entry's, with what is waited for in `ahead` */
};

#define KV_TOKEN_TEXT 16 /* bytes before the value in a leader's key: its token, in hex */

enum kv_lock_phase {
  LOCK_FREE,
  LOCK_GRANTING,  /* waiting for a lease */
  LOCK_JOINING,   /* making our entry */
  LOCK_LOOKING,   /* who is ahead of us? */
  LOCK_WAITING,   /* until that one is gone */
  LOCK_CLAIMING,  /* verifying that we are first */
  LOCK_ANNOUNCING, /* an election: writing the leader's key */
  LOCK_HELD,
  LOCK_SUSPENDED, /* held, but the renewal fails */
  LOCK_RETRACTING, /* an election: removing that key */
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
  struct kv_result *result;
};

struct kv_lock {
  /* Set once. */
  kv_store *store;
  uint64_t view;               /* the store's: the lock goes when it is closed */
  struct kv_backend *backend;  /* counted */
  unsigned fork_count;
  double ttl;                  /* asked for */
  /* With the store's prefix, as drivers get it; as the user says it. Owned, with the next one, in one block */
  kv_slice name, shown, value;
  kv_slice leader;             /* an election: the key that shows its leader. Else empty */
  const char *interop;         /* NULL, or the driver's name of a foreign layout */
  uint32_t limit;              /* a semaphore: how many hold it. Else 0 */
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
  bool turned_away;               /* it tried once, and is to be told when its entry is gone */
  bool doubtful;                  /* an entry may appear late: the lease must not outlive the leave */
  unsigned failures, restarts, laps;
  int64_t not_before;             /* the phase's step is not to begin earlier */
  struct kv_entry *entry;
  struct kv_entry *entry_in_step;
  struct kv_lease *lease;         /* counted */
  struct kv_step step;
  struct kv_part parts[2];        /* of a step that announces or retracts */
  struct kv_page *nearest;        /* a semaphore: those before us, as JOIN or CLAIM told. Owned */
  struct kv_wait *waits;          /* for some of them */
  unsigned disagreements;         /* looks that found somebody with another limit */
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

/* ------------------------------------------------------------------ lock_handle.c, for elections */

/* What a handle is for: the noun of its messages, and the part of the library's own area where its queue lies ("" for
 * locks, whose names are those of keys). */
struct kv_lock_use {
  const char *noun;
  const char *area;
};
struct kv_lock *kv_lock_make(kv_store *store, const kv_lock_options *options, const struct kv_lock_use *use,
                             kv_slice leader, kv_error *error);
/* Without a handle, and with nothing to do, it goes: at the end of the turn. */
void kv_lock_reap_later(struct kv_lock *lock);
bool kv_lock_inherited(const struct kv_lock *lock);
kv_code kv_lock_submit(struct kv_lock *lock, kv_queue *queue, const struct kv_recipe *recipe, kv_kind kind,
                       kv_slice value, double timeout, uint64_t tag, uint64_t *id, kv_error *error);
double kv_lock_timeout(const struct kv_lock *lock, double timeout); /* the store's where none is given */
extern const struct kv_recipe kv_lock_acquire_recipe, kv_lock_try_recipe, kv_lock_release_recipe;

/* ------------------------------------------------------------------ semaphore.c */

/* Take over the list of those before us from a result. The limit of one of them who knows another than we do; 0: all
 * agree. */
uint32_t kv_semaphore_look(struct kv_lock *lock, struct kv_result *result, bool *some_agree);
/* Wait for some of them to go: LOCK_STEP_DONE comes when one has. False: out of memory. */
bool kv_semaphore_wait(struct kv_lock *lock);
void kv_semaphore_stop(struct kv_lock *lock); /* all waits, and forget the list */

/* ------------------------------------------------------------------ election.c */

/* The two steps: of lock->entry, in lock->parts. */
void kv_election_announce_parts(struct kv_lock *lock);
void kv_election_retract_parts(struct kv_lock *lock);

#endif
