/*
 * slow_disk.c - a disk that hangs, for fault tests: preloaded, it makes every sync of a file wait while the file that
 * $KV_SLOW_DISK names exists. Or one that is slow, and counted: every sync takes 5 ms and adds a byte to the file that
 * $KV_COUNT_SYNCS names.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int fdatasync(int fd);
EXPORT int fsync(int fd);
EXPORT int msync(void *address, size_t size, int flags);

static void rest(void) { nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL); }

static void count_sync(const char *path) {
  int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0 || write(fd, "s", 1) != 1) abort();
  close(fd);
  rest();
}

static void wait_for_disk(void) {
  const char *path = getenv("KV_SLOW_DISK");
  while (path && access(path, F_OK) == 0) rest();
  path = getenv("KV_COUNT_SYNCS");
  if (path) count_sync(path);
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
