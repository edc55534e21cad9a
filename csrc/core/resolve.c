/*
 * resolve.c - names to addresses without blocking the reactor.
 *
 * getaddrinfo() can take half a minute and cannot be cancelled, so each lookup runs in a detached helper thread of
 * its own that touches nothing but its struct lookup and ends by posting it to the reactor. Whoever waits for the
 * same name shares the lookup; giving up only leaves the list of those who wait. Literal addresses need no thread,
 * and answers are kept for a while in a small fixed cache.
 *
 * All tables belong to the reactor thread. A running lookup holds a reference on the reactor, so there is one to post
 * to. In a child after fork() the helper threads do not exist and the tables may be half written: they are emptied,
 * not freed.
 */
#include "resolve.h"

#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_SIZE 32
#define CACHE_TIME (30 * KV_SECOND)
#define RUNNING_MAX 8
#define NAME_MAX_BYTES 255
#define PROBLEM_MAX 400

struct lookup {
  struct kv_task task;
  struct kv_resolve *waiting;
  struct lookup *next;
  bool running; /* a thread works on it; otherwise it is in line for one */
  char host[NAME_MAX_BYTES + 1];
  /* written by the thread */
  struct kv_ips ips; /* count 0: failed */
  char problem[PROBLEM_MAX];
};

struct entry {
  int64_t until; /* 0: free */
  struct kv_ips ips;
  char host[NAME_MAX_BYTES + 1];
};

static struct {
  unsigned fork_count;
  unsigned running;
  struct lookup *lookups; /* in the order in which they were asked for */
  struct entry cache[CACHE_SIZE];
} table;

static void forget_parent(void) {
  if (table.fork_count == kv_fork_count()) return;
  memset(&table, 0, sizeof table);
  table.fork_count = kv_fork_count();
}

/* ------------------------------------------------------------------ cache */

static struct entry *cached(const char *host) {
  for (size_t i = 0; i < CACHE_SIZE; i++)
    if (table.cache[i].until && strcmp(table.cache[i].host, host) == 0) return &table.cache[i];
  return NULL;
}

static void remember(const struct lookup *lookup) {
  struct entry *entry = cached(lookup->host);
  for (size_t i = 0; !entry && i < CACHE_SIZE; i++)
    if (!table.cache[i].until) entry = &table.cache[i];
  if (!entry) {
    entry = &table.cache[0];
    for (size_t i = 1; i < CACHE_SIZE; i++)
      if (table.cache[i].until < entry->until) entry = &table.cache[i];
  }
  entry->until = kv_now() + CACHE_TIME;
  entry->ips = lookup->ips;
  memcpy(entry->host, lookup->host, sizeof entry->host);
}

void kv_resolve_forget(const char *host) {
  forget_parent();
  struct entry *entry = cached(host);
  if (entry) entry->until = 0;
}

/* ------------------------------------------------------------------ getaddrinfo */

static bool take_ip(const struct addrinfo *from, union kv_ip *ip) {
  memset(ip, 0, sizeof *ip);
  if (from->ai_addrlen > sizeof *ip) return false;
  if (from->ai_family != AF_INET && from->ai_family != AF_INET6) return false;
  memcpy(ip, from->ai_addr, from->ai_addrlen);
  return true;
}

/* Families in turn, so that one that is not routed costs one attempt and no more. */
static void collect(const struct addrinfo *found, struct kv_ips *ips) {
  union kv_ip kinds[2][KV_IPS_MAX];
  unsigned counts[2] = {0, 0};
  int first = found ? found->ai_family : 0;
  for (const struct addrinfo *at = found; at; at = at->ai_next) {
    int kind = at->ai_family != first;
    if (counts[kind] < KV_IPS_MAX && take_ip(at, &kinds[kind][counts[kind]])) counts[kind]++;
  }
  ips->count = 0;
  for (unsigned i = 0; i < KV_IPS_MAX; i++)
    for (int kind = 0; kind < 2; kind++)
      if (i < counts[kind] && ips->count < KV_IPS_MAX) ips->list[ips->count++] = kinds[kind][i];
}

static int ask_system(const char *host, int flags, struct kv_ips *ips) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
  struct addrinfo *found = NULL;
  ips->count = 0;
  int failed = getaddrinfo(host, NULL, &hints, &found);
  if (failed) return failed;
  collect(found, ips);
  freeaddrinfo(found);
  return ips->count ? 0 : EAI_NONAME;
}

static void *lookup_main(void *argument) {
  struct lookup *lookup = argument;
  int failed = ask_system(lookup->host, 0, &lookup->ips);
  if (failed) {
    char text[128];
    const char *reason = failed == EAI_SYSTEM ? strerror_r(errno, text, sizeof text) : gai_strerror(failed);
    lookup->ips.count = 0;
    snprintf(lookup->problem, sizeof lookup->problem, "cannot resolve %s: %s", lookup->host, reason);
  }
  kv_post(&lookup->task);
  return NULL;
}

/* ------------------------------------------------------------------ lookups */

static bool start_thread(struct lookup *lookup) {
  sigset_t all, before;
  pthread_attr_t attributes;
  pthread_t thread;
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int failed = pthread_create(&thread, &attributes, lookup_main, lookup);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return failed == 0;
}

static void unlink_lookup(struct lookup *lookup) {
  for (struct lookup **at = &table.lookups; *at; at = &(*at)->next) {
    if (*at != lookup) continue;
    *at = lookup->next;
    return;
  }
}

/* Tell everyone who waits, and free it. */
static void answer(struct lookup *lookup) {
  unlink_lookup(lookup);
  struct kv_resolve *resolve;
  lookup->running = true; /* so that a done() that cancels the last other one does not free it */
  /* A done() may cancel another one of the list: always take the first. */
  while ((resolve = lookup->waiting)) {
    lookup->waiting = resolve->next;
    resolve->lookup = NULL;
    resolve->done(resolve, lookup->ips.count ? &lookup->ips : NULL, lookup->problem);
  }
  free(lookup);
}

static void run_next(void);

static void lookup_done(struct kv_task *task) {
  struct lookup *lookup = task->data;
  table.running--;
  if (lookup->ips.count) remember(lookup);
  answer(lookup);
  run_next();
  kv_reactor_release();
}

static bool run(struct lookup *lookup) {
  if (kv_reactor_retain(NULL) != KV_OK) return false;
  lookup->running = true;
  table.running++;
  if (start_thread(lookup)) return true;
  lookup->running = false;
  table.running--;
  kv_reactor_release();
  return false;
}

/* Give threads to the lookups that are in line for one. */
static void run_next(void) {
  struct lookup *lookup = table.lookups;
  while (lookup && table.running < RUNNING_MAX) {
    if (lookup->running) {
      lookup = lookup->next;
    } else if (run(lookup)) {
      lookup = lookup->next;
    } else {
      snprintf(lookup->problem, sizeof lookup->problem, "cannot resolve %s: no thread for it", lookup->host);
      answer(lookup);
      lookup = table.lookups; /* anything may have happened in there */
    }
  }
}

static struct lookup *find_or_add(const char *host) {
  struct lookup **at = &table.lookups;
  for (; *at; at = &(*at)->next)
    if (strcmp((*at)->host, host) == 0) return *at;
  struct lookup *lookup = calloc(1, sizeof *lookup);
  if (!lookup) return NULL;
  memcpy(lookup->host, host, strlen(host) + 1);
  lookup->task.run = lookup_done;
  lookup->task.data = lookup;
  *at = lookup;
  return lookup;
}

void kv_resolve_start(struct kv_resolve *resolve, const char *host) {
  forget_parent();
  resolve->lookup = NULL;
  if (strlen(host) > NAME_MAX_BYTES) {
    resolve->done(resolve, NULL, "cannot resolve a name of more than 255 bytes");
    return;
  }
  struct kv_ips ips;
  if (ask_system(host, AI_NUMERICHOST, &ips) == 0) {
    resolve->done(resolve, &ips, NULL);
    return;
  }
  struct entry *entry = cached(host);
  if (entry && entry->until > kv_now()) {
    ips = entry->ips; /* done() may change the cache */
    resolve->done(resolve, &ips, NULL);
    return;
  }
  struct lookup *lookup = find_or_add(host);
  if (!lookup) {
    resolve->done(resolve, NULL, "out of memory");
    return;
  }
  resolve->lookup = lookup;
  resolve->next = lookup->waiting;
  lookup->waiting = resolve;
  if (!lookup->running) run_next();
}

void kv_resolve_cancel(struct kv_resolve *resolve) {
  struct lookup *lookup = resolve->lookup;
  if (!lookup) return;
  resolve->lookup = NULL;
  for (struct kv_resolve **at = &lookup->waiting; *at; at = &(*at)->next) {
    if (*at != resolve) continue;
    *at = resolve->next;
    break;
  }
  if (lookup->waiting || lookup->running) return; /* a running one ends by itself and fills the cache */
  unlink_lookup(lookup);
  free(lookup);
}
