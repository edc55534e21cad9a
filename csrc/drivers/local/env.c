/*
 * env.c - a folder that is open. LMDB forbids to open one environment twice in a process, so all stores of a
 * process share it through a registry that knows folders by device and inode. A second copy of this code in the
 * process has its own registry: it is found by a file lock that is named after the process.
 *
 * A child after fork() inherits descriptors and the map. It starts with an empty registry, and closes the
 * descriptors whose file locks would otherwise outlive the parent; LMDB's own it leaves alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "local.h"

#define FORMAT 1
#define MAX_READERS 4096 /* slots of 64 bytes; each thread that reads takes one */
#define MAP_SIZE_MIN (UINT64_C(256) << 10)
#define MAP_SIZE_SMALLEST_DEFAULT (UINT64_C(64) << 20)
#define MAP_SIZE_DEFAULT (sizeof(void *) >= 8 ? UINT64_C(64) << 30 : UINT64_C(1) << 30)

static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static struct kv_local_env *environments;

/* ------------------------------------------------------------------ errors */

kv_code kv_local_fail(kv_error *error, kv_code code, const char *format, ...) {
  if (!error) return code;
  va_list arguments;
  va_start(arguments, format);
  error->code = code;
  vsnprintf(error->message, sizeof error->message, format, arguments);
  va_end(arguments);
  return code;
}

kv_code kv_local_code(int rc) {
  switch (rc) {
    case 0: return KV_OK;
    case MDB_MAP_FULL: case MDB_TXN_FULL: case ENOSPC: case EDQUOT: case EFBIG: return KV_NO_SPACE;
    case EACCES: case EPERM: case EROFS: return KV_DENIED;
    default: return KV_FAILED;
  }
}

/* ------------------------------------------------------------------ forks */

static void before_fork(void) {
  pthread_mutex_lock(&registry);
}

static void in_parent(void) {
  pthread_mutex_unlock(&registry);
}

static void in_child(void) {
  for (struct kv_local_env *env = environments; env; env = env->next) {
    if (env->owner_fd >= 0) close(env->owner_fd);
    if (env->process_fd >= 0) close(env->process_fd);
    env->owner_fd = env->process_fd = -1;
  }
  environments = NULL;
  changed = (pthread_cond_t)PTHREAD_COND_INITIALIZER; /* whoever waited is not here */
  pthread_mutex_unlock(&registry);
}

static void watch_forks(void) {
  pthread_atfork(before_fork, in_parent, in_child);
}

int kv_local_env_keep(int *slot, int directory, const char *name, int flags) {
  pthread_mutex_lock(&registry);
  *slot = openat(directory, name, flags | O_CLOEXEC, 0660);
  int fd = *slot;
  pthread_mutex_unlock(&registry);
  return fd;
}

void kv_local_env_unkeep(int *slot) {
  pthread_mutex_lock(&registry);
  if (*slot >= 0) close(*slot);
  *slot = -1;
  pthread_mutex_unlock(&registry);
}

/* ------------------------------------------------------------------ time */

int64_t kv_local_now(const struct kv_local_env *env) {
  return kv_local_host->now() + env->shift;
}

int64_t kv_local_deadline(int64_t now, double seconds) {
  const double longest = 1e9; /* thirty years are for ever enough, and cannot overflow */
  if (!(seconds > 0)) seconds = 0;
  if (seconds > longest) seconds = longest;
  return now + (int64_t)(seconds * (double)LOCAL_SECOND);
}

static int64_t clock_of(clockid_t clock) {
  struct timespec now;
  if (clock_gettime(clock, &now) != 0) clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * LOCAL_SECOND + now.tv_nsec;
}

/* What the folder knows of the boot under which its times were written. Store time goes on by the wall clock while
 * the machine is down, and never goes back. */
struct boot {
  char id[40];
  int64_t shift, wall; /* of that boot: store time - CLOCK_BOOTTIME; wall clock - CLOCK_BOOTTIME */
  int64_t last;        /* store time when this was written */
};

static void boot_now(struct boot *boot) {
  memset(boot, 0, sizeof *boot);
  int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    ssize_t got = read(fd, boot->id, sizeof boot->id - 1);
    if (got < 0) boot->id[0] = 0;
    close(fd);
  }
  int64_t since_boot = clock_of(CLOCK_BOOTTIME);
  boot->wall = clock_of(CLOCK_REALTIME) - since_boot;
  boot->shift = 0;
  boot->last = since_boot;
}

static bool same_boot(const struct boot *a, const struct boot *b) {
  return memcmp(a->id, b->id, sizeof a->id) == 0 && a->id[0];
}

/* Carry store time over from an older boot. */
static void boot_follow(struct boot *now, const struct boot *old) {
  int64_t since_boot = now->last;
  int64_t store_now = since_boot + now->wall - old->wall + old->shift;
  if (store_now < old->last) store_now = old->last; /* the wall clock was set back */
  now->shift = store_now - since_boot;
  now->last = store_now;
}

/* ------------------------------------------------------------------ the folder */

static int sync_folder(const char *path) {
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno;
  int rc = fsync(fd) == 0 ? 0 : errno;
  close(fd);
  return rc;
}

/* Make what is missing of `path`; each new entry is made durable in its parent. */
static int make_folders(const char *path) {
  char part[4096];
  size_t size = strlen(path);
  if (size >= sizeof part) return ENAMETOOLONG;
  for (size_t i = 1; i <= size; i++) {
    if (path[i] != '/' && path[i] != 0) continue;
    memcpy(part, path, i);
    part[i] = 0;
    if (mkdir(part, 0700) != 0) {
      struct stat there;
      int reason = errno; /* a part that may not be written may still be there */
      if (stat(part, &there) == 0 && S_ISDIR(there.st_mode)) continue;
      return reason == EEXIST ? ENOTDIR : reason;
    }
    char *slash = strrchr(part, '/');
    if (!slash) {
      sync_folder(".");
      continue;
    }
    *slash = 0;
    sync_folder(slash == part ? "/" : part);
  }
  return 0;
}

static char *make_temporary(int *rc) {
  const char *parent = getenv("TMPDIR");
  if (!parent || !*parent) parent = "/tmp";
  size_t size = strlen(parent) + sizeof "/kv-XXXXXX";
  char *path = malloc(size);
  if (!path) {
    *rc = ENOMEM;
    return NULL;
  }
  snprintf(path, size, "%s/kv-XXXXXX", parent);
  if (mkdtemp(path)) return path;
  *rc = errno;
  free(path);
  return NULL;
}

/* As soon as everything is open, so that nothing stays behind however the process ends. No other process looks
 * for it. */
static void remove_temporary(struct kv_local_env *env) {
  static const char *const names[] = {"data.mdb", "lock.mdb", "notify", "processes"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlinkat(env->folder_fd, names[i], 0);
  unlinkat(env->folder_fd, "owners", AT_REMOVEDIR);
  rmdir(env->path);
}

/* ------------------------------------------------------------------ one process, one copy */

/* A number for this process that no other process on this kernel has: pid namespace, pid, start time. 0: not known. */
static off_t process_number(void) {
  struct stat names;
  char text[1024];
  if (stat("/proc/self/ns/pid", &names) != 0) return 0;
  int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t got = read(fd, text, sizeof text - 1);
  close(fd);
  if (got <= 0) return 0;
  text[got] = 0;
  char *field = strrchr(text, ')'); /* the program's name may hold anything */
  unsigned long long start = 0;
  for (int i = 0; field && i < 20; i++) field = strchr(field + 1, ' ');
  if (field) start = strtoull(field, NULL, 10);
  uint64_t hash = UINT64_C(14695981039346656037);
  uint64_t parts[3] = {(uint64_t)names.st_ino, (uint64_t)getpid(), start};
  const unsigned char *bytes = (const unsigned char *)parts;
  for (size_t i = 0; i < sizeof parts; i++) hash = (hash ^ bytes[i]) * UINT64_C(1099511628211);
  return (off_t)(hash >> 2) | 1;
}

static kv_code claim_process(struct kv_local_env *env, kv_error *error) {
  off_t number = process_number();
  if (kv_local_env_keep(&env->process_fd, env->folder_fd, "processes", O_RDWR | O_CREAT) < 0)
    return kv_local_fail(error, kv_local_code(errno), "%s/processes: %s", env->path, strerror(errno));
  if (!number) return KV_OK;
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = number, .l_len = 1};
  if (fcntl(env->process_fd, F_OFD_SETLK, &lock) == 0) return KV_OK;
  if (errno == EAGAIN || errno == EACCES)
    return kv_local_fail(error, KV_FAILED, "%s is open already in this process, by another copy of this library",
                         env->path);
  return kv_local_fail(error, KV_FAILED, "%s/processes: %s", env->path, strerror(errno));
}

/* ------------------------------------------------------------------ opening */

/* The map is as large as asked for, and larger by the reserve. When more than that is there already, nothing new may be
 * written, but there is still room for what is needed to delete. */
static int size_map(struct kv_local_env *env, uint64_t size, uint64_t reserve) {
  MDB_stat stat;
  MDB_envinfo info;
  int rc = mdb_env_stat(env->mdb, &stat);
  if (!rc) rc = mdb_env_info(env->mdb, &info);
  if (rc) return rc;
  env->page_size = stat.ms_psize;
  env->reserve_pages = reserve / env->page_size;
  env->map_pages = (size + reserve) / env->page_size;
  uint64_t least = info.me_last_pgno + 1 + env->reserve_pages;
  if (env->map_pages >= least) return 0;
  return mdb_env_set_mapsize(env->mdb, (size_t)(least * env->page_size));
}

/* LMDB does so itself for its other descriptors. */
static int close_on_exec(MDB_env *mdb) {
  mdb_filehandle_t fd;
  int rc = mdb_env_get_fd(mdb, &fd);
  if (rc) return rc;
  return fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 ? 0 : errno;
}

static int open_map(struct kv_local_env *env, uint64_t size, bool nosync) {
  const uint64_t unit = 64 << 10; /* a multiple of every page size */
  int rc = mdb_env_create(&env->mdb);
  if (rc) return rc;
  uint64_t reserve = size / 64 / unit * unit;
  if (reserve < 4 * unit) reserve = 4 * unit;
  if (reserve > 256 * unit) reserve = 256 * unit;
  size = (size + unit - 1) / unit * unit;
  env->history_bytes = size / 8 < LOCAL_HISTORY_BYTES ? size / 8 : LOCAL_HISTORY_BYTES;
  env->history_count = LOCAL_HISTORY_COUNT;
  rc = mdb_env_set_maxreaders(env->mdb, MAX_READERS);
  if (!rc) rc = mdb_env_set_mapsize(env->mdb, (size_t)(size + reserve));
  unsigned flags = MDB_NOTLS | (nosync ? MDB_NOSYNC : 0u);
  if (!rc) rc = mdb_env_open(env->mdb, env->path, flags, 0660);
  if (!rc) rc = close_on_exec(env->mdb);
  if (!rc) rc = size_map(env, size, reserve);
  if (!rc) return 0;
  mdb_env_close(env->mdb);
  env->mdb = NULL;
  return rc;
}

static kv_code open_lmdb(struct kv_local_env *env, const struct kv_local_options *options, kv_error *error) {
  uint64_t size = options->map_size ? options->map_size : MAP_SIZE_DEFAULT;
  if (size < MAP_SIZE_MIN) size = MAP_SIZE_MIN;
  if (size > (uint64_t)SIZE_MAX / 2) return kv_local_fail(error, KV_INVALID, "map_size is too large");
  env->nosync = env->temporary || options->sync_none;
  int rc = open_map(env, size, env->nosync);
  /* Address space may be limited: by ulimit -v, or by a tool that we run under. */
  while ((rc == ENOMEM || rc == EINVAL) && !options->map_size && size > MAP_SIZE_SMALLEST_DEFAULT)
    rc = open_map(env, size /= 4, env->nosync);
  if (rc == EAGAIN || rc == EBUSY)
    return kv_local_fail(error, KV_FAILED, "%s: locked by another program", env->path);
  if (rc) return kv_local_fail(error, kv_local_code(rc), "%s: %s", env->path, mdb_strerror(rc));
  int dead = 0;
  mdb_reader_check(env->mdb, &dead);
  return KV_OK;
}

/* The version and the boot; 0, an LMDB error, or -1: this is not a store of ours. *current: nothing is to be
 * written. */
static int look_at_meta(struct kv_local_env *env, MDB_txn *txn, const struct boot *now, struct boot *old,
                        bool *current) {
  struct kv_local_key name;
  MDB_val key, value;
  MDB_stat stat;
  *current = false;
  memset(old, 0, sizeof *old);
  kv_local_key_meta(&name, 'v');
  key = kv_local_val(&name);
  int rc = mdb_get(txn, env->dbi, &key, &value);
  if (rc == MDB_NOTFOUND) {
    rc = mdb_stat(txn, env->dbi, &stat);
    return rc ? rc : stat.ms_entries ? -1 : 0;
  }
  if (rc) return rc;
  uint32_t version = 0;
  if (value.mv_size != sizeof version) return -1;
  memcpy(&version, value.mv_data, sizeof version);
  if (version != FORMAT) return -1;
  kv_local_key_meta(&name, 'b');
  key = kv_local_val(&name);
  rc = mdb_get(txn, env->dbi, &key, &value);
  if (rc || value.mv_size != sizeof *old) return rc == MDB_NOTFOUND ? 0 : rc ? rc : -1;
  memcpy(old, value.mv_data, sizeof *old);
  *current = same_boot(old, now);
  return 0;
}

static int write_meta(struct kv_local_env *env, MDB_txn *txn, struct boot *now, const struct boot *old) {
  struct kv_local_key name;
  uint32_t version = FORMAT;
  kv_local_key_meta(&name, 'v');
  MDB_val key = kv_local_val(&name), value = {sizeof version, &version};
  int rc = mdb_put(txn, env->dbi, &key, &value, 0);
  if (old->last) boot_follow(now, old);
  kv_local_key_meta(&name, 'b');
  key = kv_local_val(&name);
  value = (MDB_val){sizeof *now, now};
  return rc ? rc : mdb_put(txn, env->dbi, &key, &value, 0);
}

/* Read what the folder says of itself; write it when it is new, or when the machine was booted since. */
static int open_meta(struct kv_local_env *env) {
  struct boot now, old;
  bool current = false;
  boot_now(&now);
  for (int writing = 0; writing < 2; writing++) {
    MDB_txn *txn;
    int rc = mdb_txn_begin(env->mdb, NULL, writing ? 0 : MDB_RDONLY, &txn);
    if (rc) return rc;
    rc = mdb_dbi_open(txn, NULL, 0, &env->dbi);
    if (!rc) rc = look_at_meta(env, txn, &now, &old, &current);
    if (!rc && writing && !current) rc = write_meta(env, txn, &now, &old);
    if (rc || !writing)
      mdb_txn_abort(txn);
    else
      rc = mdb_txn_commit(txn);
    if (rc) return rc;
    if (current) now.shift = old.shift;
    if (current || writing) break;
  }
  env->shift = now.shift;
  return 0;
}

static int open_notify(struct kv_local_env *env) {
  int fd = openat(env->folder_fd, "notify", O_RDWR | O_CREAT | O_CLOEXEC, 0660);
  if (fd < 0) return errno;
  struct stat there;
  int rc = fstat(fd, &there) == 0 && (there.st_size > 0 || pwrite(fd, "\n", 1, 0) == 1) ? 0 : errno;
  close(fd);
  if (rc) return rc;
  env->notify_fd = openat(env->folder_fd, "notify", O_RDONLY | O_CLOEXEC | O_NOATIME);
  if (env->notify_fd < 0) env->notify_fd = openat(env->folder_fd, "notify", O_RDONLY | O_CLOEXEC);
  if (env->notify_fd < 0) return errno;
  return mkdirat(env->folder_fd, "owners", 0770) == 0 || errno == EEXIST ? 0 : errno;
}

static kv_code open_files(struct kv_local_env *env, const struct kv_local_options *options, kv_error *error) {
  kv_code code = claim_process(env, error);
  if (code == KV_OK) code = open_lmdb(env, options, error);
  if (code != KV_OK) return code;
  int rc = open_notify(env);
  if (rc) return kv_local_fail(error, kv_local_code(rc), "%s: %s", env->path, strerror(rc));
  rc = open_meta(env);
  if (rc == -1)
    return kv_local_fail(error, KV_FAILED, "%s holds another program's LMDB database, or one of another version",
                         env->path);
  if (rc == EAGAIN || rc == EACCES) /* LMDB marks readers by process id with file locks */
    return kv_local_fail(error, KV_FAILED, "%s: another container's process with our process id has it open",
                         env->path);
  if (rc) return kv_local_fail(error, kv_local_code(rc), "%s: %s", env->path, mdb_strerror(rc));
  if (!env->temporary && !options->sync_none) {
    rc = sync_folder(env->path);
    if (rc) return kv_local_fail(error, kv_local_code(rc), "%s: %s", env->path, strerror(rc));
  }
  return KV_OK;
}

static kv_code open_all(struct kv_local_env *env, const struct kv_local_options *options, kv_error *error) {
  kv_code code = open_files(env, options, error);
  if (env->temporary) remove_temporary(env);
  return code;
}

/* ------------------------------------------------------------------ memory */

static struct kv_local_env *env_new(void) {
  struct kv_local_env *env = aligned_alloc(64, (sizeof *env + 63) / 64 * 64);
  if (!env) return NULL;
  memset(env, 0, sizeof *env);
  env->references = 1;
  env->owner_fd = env->process_fd = env->folder_fd = env->notify_fd = -1;
  pthread_mutex_init(&env->writing, NULL);
  pthread_mutex_init(&env->lock, NULL);
  pthread_cond_init(&env->wake, NULL);
  kv_local_follow_init(env);
  return env;
}

void kv_local_env_free(struct kv_local_env *env) {
  kv_local_follow_free(env);
  pthread_cond_destroy(&env->wake);
  pthread_mutex_destroy(&env->lock);
  pthread_mutex_destroy(&env->writing);
  free(env->items);
  free(env->path);
  free(env);
}

/* Close whatever is open. */
static void env_close(struct kv_local_env *env) {
  for (size_t i = 0; i < LOCAL_READERS; i++)
    if (env->readers[i].txn) mdb_txn_abort(env->readers[i].txn);
  if (env->mdb) mdb_env_close(env->mdb);
  env->mdb = NULL;
  kv_local_follow_shut(env);
  if (env->folder_fd >= 0) kv_local_owner_drop(env);
  if (env->notify_fd >= 0) close(env->notify_fd);
  kv_local_env_unkeep(&env->process_fd);
  if (env->folder_fd >= 0) close(env->folder_fd);
  env->notify_fd = env->folder_fd = -1;
}

/* ------------------------------------------------------------------ the registry */

static void unlink_env(struct kv_local_env *env) {
  struct kv_local_env **link = &environments;
  while (*link && *link != env) link = &(*link)->next;
  if (*link) *link = env->next;
}

/* Share the folder if it is open, or enter it as being opened: then *is_new. */
static struct kv_local_env *enter(struct kv_local_env *fresh, bool *is_new) {
  *is_new = false;
  pthread_mutex_lock(&registry);
  for (;;) {
    struct kv_local_env *env = environments;
    while (env && (env->device != fresh->device || env->inode != fresh->inode)) env = env->next;
    if (!env) {
      fresh->state = LOCAL_OPENING;
      fresh->next = environments;
      environments = fresh;
      *is_new = true;
      env = fresh;
    } else if (env->state != LOCAL_OPEN) {
      pthread_cond_wait(&changed, &registry);
      continue;
    } else {
      env->references++;
    }
    pthread_mutex_unlock(&registry);
    return env;
  }
}

static kv_code find_folder(struct kv_local_env *env, const struct kv_local_options *options, kv_error *error) {
  int rc = 0;
  env->temporary = !options->path;
  env->path = options->path ? strdup(options->path) : make_temporary(&rc);
  if (!env->path) {
    env->temporary = false;
    if (rc) return kv_local_fail(error, kv_local_code(rc), "cannot make a temporary folder: %s", strerror(rc));
    return kv_local_fail(error, KV_FAILED, "out of memory");
  }
  rc = make_folders(env->path);
  if (rc) return kv_local_fail(error, kv_local_code(rc), "%s: %s", env->path, strerror(rc));
  env->folder_fd = open(env->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  struct stat there;
  if (env->folder_fd < 0 || fstat(env->folder_fd, &there) != 0)
    return kv_local_fail(error, kv_local_code(errno), "%s: %s", env->path, strerror(errno));
  env->device = there.st_dev;
  env->inode = there.st_ino;
  return KV_OK;
}

struct kv_local_env *kv_local_env_open(const struct kv_local_options *options, kv_error *error) {
  pthread_once(&fork_once, watch_forks);
  struct kv_local_env *fresh = env_new();
  if (!fresh) {
    kv_local_fail(error, KV_FAILED, "out of memory");
    return NULL;
  }
  bool is_new = false;
  kv_code code = find_folder(fresh, options, error);
  struct kv_local_env *env = code == KV_OK ? enter(fresh, &is_new) : fresh;
  if (env != fresh) { /* open already */
    env_close(fresh);
    kv_local_env_free(fresh);
    return env;
  }
  if (code == KV_OK) code = open_all(env, options, error);
  if (code != KV_OK) env_close(env);
  pthread_mutex_lock(&registry);
  if (code == KV_OK)
    env->state = LOCAL_OPEN;
  else
    unlink_env(env);
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&registry);
  if (code == KV_OK) return env;
  kv_local_env_free(env);
  return NULL;
}

static void *end_helper(void *argument) {
  kv_local_env_end(argument);
  return NULL;
}

static void run_closed(struct kv_task *task) {
  kv_local_store_closed(task->data);
}

void kv_local_env_end(struct kv_local_env *env) {
  env_close(env);
  pthread_mutex_lock(&registry);
  unlink_env(env);
  struct kv_local_store *store = env->closer;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&registry);
  if (!store) {
    kv_local_env_free(env);
    return;
  }
  /* Behind whatever this environment has posted; the reactor frees it. */
  store->closed_task.run = run_closed;
  store->closed_task.data = store;
  kv_local_host->post(&store->closed_task);
}

void kv_local_env_use(struct kv_local_env *env, const struct kv_local_options *options) {
  pthread_mutex_lock(&registry);
  if (!options->sync_none && !env->temporary) atomic_store(&env->durable, true);
  if (env->users++ == 0) kv_local_follow_start(env);
  pthread_mutex_unlock(&registry);
}

/* One reference less; true: it was the last one. With the registry held. */
static bool unref(struct kv_local_env *env, struct kv_local_store *store) {
  if (--env->references) return false;
  env->state = LOCAL_CLOSING;
  env->closer = store;
  return true;
}

void kv_local_env_drop(struct kv_local_env *env) {
  pthread_mutex_lock(&registry);
  bool last = unref(env, NULL);
  pthread_mutex_unlock(&registry);
  if (!last) return;
  kv_local_follow_settle(env);
  if (!kv_local_write_stop(env)) kv_local_env_end(env);
}

bool kv_local_env_release(struct kv_local_env *env, struct kv_local_store *store) {
  pthread_mutex_lock(&registry);
  /* While we have our reference the environment cannot end, so nobody else can be closing it. */
  if (--env->users == 0) kv_local_follow_stop(env);
  bool last = unref(env, store);
  pthread_mutex_unlock(&registry);
  if (!last) return true;
  if (!kv_local_write_stop(env) && !kv_local_thread(end_helper, env)) kv_local_env_end(env);
  return false;
}

bool kv_local_env_abandon(struct kv_local_env *env, struct kv_local_store *store) {
  bool waiting = false;
  pthread_mutex_lock(&registry);
  for (struct kv_local_env *each = environments; each; each = each->next) {
    if (each != env || each->closer != store) continue;
    each->closer = NULL;
    waiting = true;
  }
  pthread_mutex_unlock(&registry);
  return waiting;
}

/* ------------------------------------------------------------------ the map */

int kv_local_env_remap(struct kv_local_env *env) {
  /* Nobody may be inside of a transaction when the map moves. */
  for (size_t i = 0; i < LOCAL_READERS; i++) {
    while (atomic_exchange(&env->readers[i].busy, true)) sched_yield();
    if (env->readers[i].txn) mdb_txn_abort(env->readers[i].txn);
    env->readers[i].txn = NULL;
  }
  int rc = mdb_env_set_mapsize(env->mdb, 0);
  MDB_envinfo info;
  if (!rc && mdb_env_info(env->mdb, &info) == 0 && info.me_mapsize / env->page_size > env->map_pages)
    env->map_pages = info.me_mapsize / env->page_size;
  for (size_t i = 0; i < LOCAL_READERS; i++) atomic_store(&env->readers[i].busy, false);
  return rc;
}
