/*
 * session.c - the store's own lease, for keys that live as long as the store is open and reachable. One per backend,
 * made when the first such key is put, shared by all, made again by the next one after it was lost.
 */
#include "recipes.h"

#include <stdlib.h>

static void answer_all(struct kv_recipes *recipes, struct kv_lease_ref *lease, kv_code code, const char *message) {
  struct kv_session_wait *wait = recipes->session_waits;
  recipes->session_waits = NULL;
  while (wait) {
    struct kv_session_wait *next = wait->next;
    if (lease) kv_lease_retain((struct kv_lease *)lease);
    wait->ready(wait, lease, code, message);
    wait = next;
  }
}

/* Operations that name it hold references of their own. */
static void forget(struct kv_recipes *recipes, struct kv_lease *lease) {
  recipes->session = NULL;
  lease->changed = NULL;
  kv_lease_release(lease);
}

static void give_up(struct kv_recipes *recipes, struct kv_lease *lease) {
  kv_lease_drop(lease);
  forget(recipes, lease);
}

static void changed(struct kv_lease *lease, enum kv_lease_news news, kv_code code, const char *message) {
  struct kv_recipes *recipes = lease->owner;
  switch (news) {
    case LEASE_READY: answer_all(recipes, &lease->ref, KV_OK, NULL); break;
    case LEASE_REFUSED: case LEASE_ENDED:
      forget(recipes, lease);
      answer_all(recipes, NULL, code, message);
      break;
    case LEASE_RENEWED: case LEASE_FAILING: case LEASE_REVOKE_FAILED: case LEASE_REVOKED: break;
  }
}

static struct kv_lease *begin(struct kv_recipes *recipes) {
  struct kv_lease *lease = kv_lease_make(recipes->backend, recipes->backend->config.session_ttl);
  if (!lease) return NULL;
  lease->ref.session = true;
  lease->changed = changed;
  lease->owner = recipes;
  recipes->session = lease; /* with the reference of kv_lease_make() */
  return lease;
}

void kv_session_get(struct kv_backend *backend, struct kv_session_wait *wait) {
  struct kv_recipes *recipes = kv_recipes_of(backend);
  if (!recipes || recipes->closing) {
    wait->ready(wait, NULL, recipes ? KV_CLOSED : KV_FAILED, recipes ? "the store was closed" : "out of memory");
    return;
  }
  struct kv_lease *lease = recipes->session;
  if (lease && kv_lease_usable(lease)) {
    kv_lease_retain(lease);
    wait->ready(wait, &lease->ref, KV_OK, NULL);
    return;
  }
  bool granting = lease && (lease->phase == LEASE_NEW || lease->phase == LEASE_GRANTING);
  if (lease && !granting) give_up(recipes, lease); /* its deadline has passed, and its timer comes after us */
  lease = granting ? lease : begin(recipes);
  if (!lease) {
    wait->ready(wait, NULL, KV_FAILED, "out of memory");
    return;
  }
  wait->next = recipes->session_waits;
  recipes->session_waits = wait;
  if (!granting) kv_lease_begin(lease, recipes);
}

void kv_session_forget(struct kv_backend *backend, struct kv_session_wait *wait) {
  struct kv_recipes *recipes = backend->recipes;
  if (!recipes) return;
  struct kv_session_wait **link = &recipes->session_waits;
  while (*link && *link != wait) link = &(*link)->next;
  if (*link) *link = wait->next;
  struct kv_lease *lease = recipes->session;
  if (recipes->session_waits || !lease || lease->phase != LEASE_GRANTING) return;
  give_up(recipes, lease); /* nobody waits for it any more */
}

void kv_session_lost(struct kv_backend *backend, const struct kv_lease_ref *lease) {
  struct kv_recipes *recipes = backend->recipes;
  if (recipes && recipes->session && &recipes->session->ref == lease) give_up(recipes, recipes->session);
}

void kv_session_close(struct kv_recipes *recipes) {
  if (recipes->session) give_up(recipes, recipes->session);
  answer_all(recipes, NULL, KV_CLOSED, "the store was closed");
}
