/*
 * spare.c - leases of locks that were let go, kept for the next acquire of any handle. Granting and revoking a lease
 * are writes to the server, as many as taking the lock and letting it go: a program that takes one lock after the
 * other pays them once.
 *
 * A lease serves one place in a queue at a time, so it comes here only after its entry is certainly gone. While it lies
 * here it is not renewed: when that would be due it is given back to the server.
 */
#include "recipes.h"

#define SPARES_MAX 16

static void forget(struct kv_recipes *recipes, struct kv_lease *lease) {
  struct kv_lease **link = &recipes->spares;
  while (*link && *link != lease) link = &(*link)->next_spare;
  if (!*link) return;
  *link = lease->next_spare;
  recipes->spare_count--;
  lease->changed = NULL;
}

static void spare_changed(struct kv_lease *lease, enum kv_lease_news news, kv_code code, const char *message) {
  (void)code;
  (void)message;
  if (news != LEASE_ENDED && news != LEASE_REVOKED) return;
  forget(lease->owner, lease);
  kv_lease_release(lease);
}

bool kv_spare_put(struct kv_recipes *recipes, struct kv_lease *lease) {
  if (recipes->closing || recipes->spare_count >= SPARES_MAX || lease->phase != LEASE_ALIVE) return false;
  kv_lease_set_place(lease, NULL);
  lease->owner = recipes;
  lease->changed = spare_changed;
  lease->next_spare = recipes->spares;
  recipes->spares = lease;
  recipes->spare_count++;
  kv_lease_set_use(lease, LEASE_IDLE);
  return true;
}

void kv_spares_close(struct kv_recipes *recipes) {
  struct kv_lease *lease;
  while ((lease = recipes->spares)) {
    forget(recipes, lease);
    kv_lease_drop(lease);
    kv_lease_release(lease);
  }
}

struct kv_lease *kv_spare_take(struct kv_recipes *recipes, double ttl, bool with_key) {
  double least = recipes->backend->driver->limits.lease_min;
  if (ttl < least) ttl = least;
  for (struct kv_lease *lease = recipes->spares; lease; lease = lease->next_spare) {
    /* What was asked for and what is wanted come from the same number, or are different wishes. */
    bool same = !(lease->ref.ttl < ttl) && !(lease->ref.ttl > ttl) && lease->ref.with_key == with_key;
    if (!same || lease->phase != LEASE_ALIVE || !kv_lease_usable(lease)) continue;
    forget(recipes, lease);
    return lease;
  }
  return NULL;
}
