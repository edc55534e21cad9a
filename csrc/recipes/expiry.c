/*
 * expiry.c - deletes keys on time where the server would keep them too long. Each put with a time to live leaves an
 * entry (key, revision, time) in a hash table, replaced by the next put of the same key. At the time the key is deleted
 * if it still has that revision, so that a newer write is never touched. Failures are tried a few times: the server's
 * own expiry comes in the end.
 */
#include "recipes.h"

#include <stdlib.h>
#include <string.h>

#define DELETES_AT_ONCE 64
#define TRIES 6

struct expiry {
  struct expiry *next;    /* in its bucket, or in the list of due ones */
  struct kv_expiries *all;
  struct kv_timer timer;
  uint64_t revision;
  uint64_t hash;
  unsigned tries;
  struct kv_step *step;   /* while being deleted; allocated, because few entries are at that point at once */
  size_t size;
  char key[];
};

struct kv_expiries {
  struct kv_recipes *recipes;
  struct expiry **buckets;
  size_t bucket_count;    /* a power of two */
  size_t count;
  struct expiry *due, **due_end;
  unsigned deleting;
  struct expiry *in_flight[DELETES_AT_ONCE];
};

static void fire(struct kv_timer *timer);
static void delete_due(struct kv_expiries *all);

static uint64_t hash_of(kv_slice key) {
  uint64_t hash = UINT64_C(14695981039346656037);
  for (size_t i = 0; i < key.size; i++) hash = (hash ^ (unsigned char)key.data[i]) * UINT64_C(1099511628211);
  return hash ^ (hash >> 29);
}

static struct kv_expiries *expiries_of(struct kv_recipes *recipes) {
  struct kv_expiries *all = recipes->expiries;
  if (all) return all;
  all = calloc(1, sizeof *all);
  if (!all) return NULL;
  all->bucket_count = 64;
  all->buckets = calloc(all->bucket_count, sizeof *all->buckets);
  if (!all->buckets) {
    free(all);
    return NULL;
  }
  all->recipes = recipes;
  all->due_end = &all->due;
  recipes->expiries = all;
  return all;
}

static void grow(struct kv_expiries *all) {
  size_t count = all->bucket_count * 2;
  struct expiry **buckets = calloc(count, sizeof *buckets);
  if (!buckets) return; /* slower, but right */
  for (size_t i = 0; i < all->bucket_count; i++) {
    struct expiry *next;
    for (struct expiry *entry = all->buckets[i]; entry; entry = next) {
      next = entry->next;
      entry->next = buckets[entry->hash & (count - 1)];
      buckets[entry->hash & (count - 1)] = entry;
    }
  }
  free(all->buckets);
  all->buckets = buckets;
  all->bucket_count = count;
}

static struct expiry **find(struct kv_expiries *all, kv_slice key, uint64_t hash) {
  struct expiry **link = &all->buckets[hash & (all->bucket_count - 1)];
  for (; *link; link = &(*link)->next) {
    struct expiry *entry = *link;
    if (entry->hash == hash && entry->size == key.size && memcmp(entry->key, key.data, key.size) == 0) break;
  }
  return link;
}

static void insert(struct kv_expiries *all, struct expiry *entry, int64_t at) {
  if (++all->count > all->bucket_count) grow(all);
  struct expiry **bucket = &all->buckets[entry->hash & (all->bucket_count - 1)];
  entry->next = *bucket;
  *bucket = entry;
  kv_timer_set(&entry->timer, at);
}

void kv_expiry_schedule(struct kv_backend *backend, kv_slice key, uint64_t revision, int64_t at) {
  struct kv_recipes *recipes = kv_recipes_of(backend);
  struct kv_expiries *all = recipes && !recipes->closing ? expiries_of(recipes) : NULL;
  if (!all) return; /* the server's own expiry remains */
  uint64_t hash = hash_of(key);
  struct expiry *entry = *find(all, key, hash);
  if (entry) {
    if (entry->revision > revision) return; /* answers may overtake each other */
    entry->revision = revision;
    entry->tries = 0;
    kv_timer_set(&entry->timer, at);
    return;
  }
  entry = calloc(1, sizeof *entry + key.size);
  if (!entry) return;
  entry->all = all;
  entry->hash = hash;
  entry->revision = revision;
  entry->size = key.size;
  if (key.size) memcpy(entry->key, key.data, key.size);
  entry->timer.fire = fire;
  entry->timer.data = entry;
  insert(all, entry, at);
}

/* ------------------------------------------------------------------ deleting */

static void add_due(struct expiry *entry) {
  struct kv_expiries *all = entry->all;
  entry->next = NULL;
  *all->due_end = entry;
  all->due_end = &entry->next;
}

/* Its time has come: out of the table, so that a newer put makes an entry of its own. */
static void fire(struct kv_timer *timer) {
  struct expiry *entry = timer->data;
  struct kv_expiries *all = entry->all;
  struct expiry **link = find(all, (kv_slice){entry->key, entry->size}, entry->hash);
  if (*link == entry) {
    *link = entry->next;
    all->count--;
  }
  add_due(entry);
  delete_due(all);
}

static void tried(struct expiry *entry) {
  struct kv_expiries *all = entry->all;
  for (size_t i = 0; i < DELETES_AT_ONCE; i++)
    if (all->in_flight[i] == entry) all->in_flight[i] = NULL;
  all->deleting--;
  free(entry->step);
  entry->step = NULL;
}

static void free_when_closed(struct kv_expiries *all) {
  if (!all->recipes->closing || all->deleting) return;
  all->recipes->expiries = NULL;
  free(all->buckets);
  free(all);
}

/* Back into the table, unless a newer put is there. */
static void try_later(struct expiry *entry) {
  struct kv_expiries *all = entry->all;
  if (*find(all, (kv_slice){entry->key, entry->size}, entry->hash)) {
    free(entry);
    return;
  }
  insert(all, entry, kv_deadline(kv_now(), kv_backoff(entry->tries + 3)));
}

static void deleted(struct kv_step *step, kv_code code, const char *message, struct kv_result *result) {
  struct expiry *entry = step->data;
  struct kv_expiries *all = entry->all;
  (void)message;
  (void)result;
  tried(entry);
  if (kv_code_passes(code) && ++entry->tries < TRIES && !all->recipes->closing)
    try_later(entry);
  else
    free(entry);
  kv_recipes_step_done(all->recipes);
  if (all->recipes->closing) free_when_closed(all);
  else delete_due(all);
}

static void delete_due(struct kv_expiries *all) {
  while (all->due && all->deleting < DELETES_AT_ONCE) {
    struct expiry *entry = all->due;
    all->due = entry->next;
    if (!all->due) all->due_end = &all->due;
    entry->step = calloc(1, sizeof *entry->step);
    if (!entry->step) {
      free(entry);
      continue;
    }
    *entry->step = (struct kv_step){.kind = KV_DELETE, .key = {entry->key, entry->size}, .condition = KV_IF_REVISION,
                                    .revision = entry->revision, .deadline = kv_step_deadline(all->recipes->backend),
                                    .done = deleted, .data = entry};
    size_t slot = 0;
    while (all->in_flight[slot]) slot++;
    all->in_flight[slot] = entry;
    all->deleting++;
    kv_recipes_step(all->recipes, entry->step);
  }
}

void kv_expiry_close(struct kv_recipes *recipes) {
  struct kv_expiries *all = recipes->expiries;
  struct expiry *next;
  if (!all) return;
  for (size_t i = 0; i < all->bucket_count; i++) {
    for (struct expiry *entry = all->buckets[i]; entry; entry = next) {
      next = entry->next;
      kv_timer_stop(&entry->timer);
      free(entry);
    }
    all->buckets[i] = NULL;
  }
  while (all->due) {
    next = all->due->next;
    free(all->due);
    all->due = next;
  }
  for (size_t i = 0; i < DELETES_AT_ONCE; i++)
    if (all->in_flight[i]) kv_step_cancel(all->in_flight[i]->step);
  free_when_closed(all);
}
