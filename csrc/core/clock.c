/*
 * clock.c - time, chance and forks: the three things that a process gets from outside and everything else here must not
 * ask for in passing.
 *
 * The clock counts through suspend (CLOCK_BOOTTIME), as it guards locks. Random numbers are splitmix64, one state per
 * thread, seeded by the system; a state that was seeded before a fork is seeded again, so that parent and child never
 * choose the same ids.
 */
#include "core.h"

#include <errno.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

int64_t kv_clock(void) {
  struct timespec now;
  if (clock_gettime(CLOCK_BOOTTIME, &now) != 0) clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * KV_SECOND + now.tv_nsec;
}

int64_t kv_deadline(int64_t now, double seconds) {
  if (!(seconds >= 0)) return KV_NEVER; /* negative, or not a number */
  double room = (double)(KV_NEVER - (now > 0 ? now : 0));
  double nanoseconds = seconds * (double)KV_SECOND;
  /* Doubles this large are multiples of 1024: stay a few of them below the end. */
  if (nanoseconds >= room - 4096) return KV_NEVER;
  return now + (int64_t)nanoseconds;
}

/* ------------------------------------------------------------------ forks */

static atomic_uint forks;
static pthread_once_t watch_once = PTHREAD_ONCE_INIT;

/* Other threads of the parent may have held locks at that moment; here is one thread, and it holds none. */
static void in_child(void) {
  atomic_fetch_add_explicit(&forks, 1, memory_order_relaxed);
  kv_reactor_forget_parent();
  kv_drivers_forget_parent();
}

static void watch_forks(void) {
  pthread_atfork(NULL, NULL, in_child);
}

void kv_fork_watch(void) {
  pthread_once(&watch_once, watch_forks);
}

unsigned kv_fork_count(void) {
  return atomic_load_explicit(&forks, memory_order_relaxed);
}

/* ------------------------------------------------------------------ chance */

static _Thread_local struct {
  uint64_t state;
  unsigned fork_count;
  bool seeded;
} source;

static uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
  value = (value ^ (value >> 27)) * UINT64_C(0x94D049BB133111EB);
  return value ^ (value >> 31);
}

static uint64_t seed(void) {
  uint64_t bytes = 0;
  ssize_t got;
  do got = getrandom(&bytes, sizeof bytes, GRND_NONBLOCK);
  while (got < 0 && errno == EINTR);
  if (got == (ssize_t)sizeof bytes) return bytes;
  /* Right after boot, or forbidden by a sandbox: not the same in two processes or threads will do. */
  return mix((uint64_t)kv_clock()) ^ mix((uint64_t)getpid() << 32) ^ mix((uint64_t)(uintptr_t)&source);
}

uint64_t kv_random(void) {
  if (!source.seeded || source.fork_count != kv_fork_count()) {
    kv_fork_watch();
    source.state = seed();
    source.fork_count = kv_fork_count();
    source.seeded = true;
  }
  source.state += UINT64_C(0x9E3779B97F4A7C15);
  return mix(source.state);
}
