/*
 * owner.c - proof that a process lives. A process that owns places in lock queues or session leases holds a write
 * lock on owners/ID, on an open file description: the kernel lets go of it when the process ends, however it ends.
 * Other processes ask for the lock without taking it. No process ids: containers may share the folder and not
 * those.
 *
 * The file gets its name after it was locked, so a file that is not locked is a dead owner's.
 * Only an owner opens its file for writing: that inotify tells of such a file being closed means that an owner ended.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "local.h"

static void file_name(char *out, size_t size, const char *prefix, uint64_t owner) {
  snprintf(out, size, "owners/%s%016" PRIx64, prefix, owner);
}

uint64_t kv_local_owner_parse(const char *name) {
  uint64_t owner = 0;
  size_t size = strlen(name);
  if (size != 16) return 0;
  for (size_t i = 0; i < size; i++) {
    char c = name[i];
    unsigned digit;
    if (c >= '0' && c <= '9')
      digit = (unsigned)(c - '0');
    else if (c >= 'a' && c <= 'f')
      digit = (unsigned)(c - 'a') + 10;
    else
      return 0;
    owner = owner << 4 | digit;
  }
  return owner;
}

static bool lock_whole(int fd) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

static int make_file(struct kv_local_env *env, uint64_t owner) {
  char draft[64], name[64];
  file_name(draft, sizeof draft, "new-", owner);
  file_name(name, sizeof name, "", owner);
  int fd = kv_local_env_keep(&env->owner_fd, env->folder_fd, draft, O_RDWR | O_CREAT | O_EXCL);
  if (fd < 0) return errno;
  if (!lock_whole(fd) || renameat(env->folder_fd, draft, env->folder_fd, name) != 0) {
    int reason = errno;
    unlinkat(env->folder_fd, draft, 0);
    kv_local_env_unkeep(&env->owner_fd);
    return reason;
  }
  return 0;
}

uint64_t kv_local_owner_ensure(struct kv_local_env *env) {
  uint64_t owner = atomic_load(&env->owner);
  if (owner) return owner;
  do owner = kv_local_host->random();
  while (!owner);
  int reason = env->temporary ? 0 : make_file(env, owner); /* nobody else can ask for a private store's */
  if (reason) {
    errno = reason;
    return 0;
  }
  atomic_store(&env->owner, owner);
  return owner;
}

bool kv_local_owner_alive(struct kv_local_env *env, uint64_t owner) {
  if (!owner || owner == atomic_load(&env->owner)) return true;
  char name[64];
  file_name(name, sizeof name, "", owner);
  int fd = openat(env->folder_fd, name, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno != ENOENT; /* not to be judged when we are out of descriptors */
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  bool alive = fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
  close(fd);
  return alive;
}

void kv_local_owner_forget(struct kv_local_env *env, uint64_t owner) {
  char name[64];
  file_name(name, sizeof name, "", owner);
  unlinkat(env->folder_fd, name, 0);
}

size_t kv_local_owner_dead(struct kv_local_env *env, uint64_t *owners, size_t max) {
  size_t count = 0;
  if (env->temporary) return 0;
  int fd = openat(env->folder_fd, "owners", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *directory = fd < 0 ? NULL : fdopendir(fd);
  if (!directory) {
    if (fd >= 0) close(fd);
    return 0;
  }
  struct dirent *entry;
  while (count < max && (entry = readdir(directory))) {
    uint64_t owner = kv_local_owner_parse(entry->d_name);
    if (owner && !kv_local_owner_alive(env, owner)) owners[count++] = owner;
  }
  closedir(directory);
  return count;
}

void kv_local_owner_drop(struct kv_local_env *env) {
  uint64_t owner = atomic_load(&env->owner);
  if (owner && env->owner_fd >= 0) kv_local_owner_forget(env, owner);
  kv_local_env_unkeep(&env->owner_fd);
}
