/*
 * stepped_clock.c - a wall clock that somebody sets, for fault tests: preloaded, it adds to the time of day the seconds
 * that the file named by $KV_STEPPED_CLOCK says. Clocks that only run are left alone.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int clock_gettime(clockid_t clock, struct timespec *now);
EXPORT int gettimeofday(struct timeval *restrict now, void *restrict zone);
EXPORT time_t time(time_t *now);

static long step(void) {
  char text[32] = "";
  const char *path = getenv("KV_STEPPED_CLOCK");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) return 0;
  ssize_t size = read(fd, text, sizeof text - 1);
  close(fd);
  return size > 0 ? strtol(text, NULL, 10) : 0;
}

/* ISO C has no cast from an object's address to a function's. */
EXPORT int clock_gettime(clockid_t clock, struct timespec *now) {
  int (*real)(clockid_t, struct timespec *);
  *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += step();
  return result;
}

EXPORT int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  int (*real)(struct timeval *, void *);
  *(void **)&real = dlsym(RTLD_NEXT, "gettimeofday");
  int result = real(now, zone);
  if (result == 0) now->tv_sec += step();
  return result;
}

EXPORT time_t time(time_t *now) {
  struct timespec full;
  clock_gettime(CLOCK_REALTIME, &full);
  if (now) *now = full.tv_sec;
  return full.tv_sec;
}
