/*
 * slow_disk.c - a disk that hangs, for fault tests: preloaded, it makes every sync of a file wait while the file that
 * $KV_SLOW_DISK names exists.
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int fdatasync(int fd);
EXPORT int fsync(int fd);
EXPORT int msync(void *address, size_t size, int flags);

static void wait_for_disk(void) {
  const char *path = getenv("KV_SLOW_DISK");
  while (path && access(path, F_OK) == 0) nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

/* The function that this one stands before. ISO C has no cast from an object's address to a function's. */
static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

EXPORT int fdatasync(int fd) {
  int (*real)(int);
  *(void **)&real = next("fdatasync");
  wait_for_disk();
  return real(fd);
}

EXPORT int fsync(int fd) {
  int (*real)(int);
  *(void **)&real = next("fsync");
  wait_for_disk();
  return real(fd);
}

EXPORT int msync(void *address, size_t size, int flags) {
  int (*real)(void *, size_t, int);
  *(void **)&real = next("msync");
  wait_for_disk();
  return real(address, size, flags);
}
