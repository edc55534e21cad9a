/*
 * test_local_faults.c - the embedded store when there is no room, no permission, or something else in its place.
 */
#include "local_store.h"

#include <lmdb.h>
#include <sys/resource.h>

#include "drivers/local/local.h"

/* ------------------------------------------------------------------ no room in the map */

/* Put values of `size` until one is refused; how many went in. */
static int fill(kv_store *store, const char *prefix, size_t size, kv_code *code) {
  static char value[70000];
  char key[64];
  int count = 0;
  for (;; count++) {
    snprintf(key, sizeof key, "%s/%05d", prefix, count);
    kv_request request = {.kind = KV_PUT, .key = text(key), .value = {value, size}};
    *code = ask(store, &request);
    if (*code != KV_OK) return count;
  }
}

static int count_below(kv_store *store, const char *directory) {
  char after[64] = "";
  kv_pair pair;
  int count = 0;
  do {
    kv_request request = {.kind = KV_LIST, .key = text(directory), .after = text(after)};
    if (ask(store, &request) != KV_OK) return -1;
    while (kv_reply_pair(last_reply, &pair)) {
      count++;
      snprintf(after, sizeof after, "%.*s", (int)pair.key.size, pair.key.data);
    }
  } while (last.more);
  return count;
}

static void full_and_healed(size_t size, int least) {
  kv_code code;
  char key[64];
  new_folder();
  kv_store *store = open_store("?map_size=1048576&sync=none");
  REQUIRE(store != NULL);
  kv_watch *watch = watch_tree(store, "later");
  CHECK(wait_synced(watch));
  int count = fill(store, "d", size, &code);
  CHECK_EQ(code, KV_NO_SPACE);
  CHECK(strstr(last.message, "map_size") != NULL);
  CHECK(count >= least);
  CHECK_EQ(count_below(store, "d"), count); /* nothing of the refused ones, all of the others */
  snprintf(key, sizeof key, "d/%05d", count - 1);
  CHECK(get(store, key) != NULL);
  kv_lock *lock = new_lock(store, "l", 5);
  kv_code locked = acquire(lock, 2);
  CHECK(locked == KV_OK || locked == KV_NO_SPACE);
  if (locked == KV_OK) CHECK_EQ(release(lock), KV_OK);
  kv_lock_free(lock);
  for (int i = 0; i < count / 2; i++) {
    snprintf(key, sizeof key, "d/%05d", i);
    CHECK_EQ(delete_key(store, key), KV_OK);
    CHECK(last.found);
  }
  for (int i = 0; i < count / 4; i++) {
    static char value[70000];
    snprintf(key, sizeof key, "e/%05d", i);
    kv_request request = {.kind = KV_PUT, .key = text(key), .value = {value, size}};
    CHECK_EQ(ask(store, &request), KV_OK);
  }
  CHECK_EQ(put(store, "later/a", "1"), KV_OK);
  CHECK(strncmp(next_event(watch, 5), "later/a=1@", 10) == 0);
  kv_watch_free(watch);
  close_store(store);
  store = open_store("?map_size=1048576&sync=none");
  REQUIRE(store != NULL);
  CHECK_EQ(count_below(store, "e"), count / 4);
  close_store(store);
}

TEST(a_full_map_refuses_and_heals) {
  full_and_healed(100, 1000);
  full_and_healed(3000, 100);
  full_and_healed(60000, 8);
}

TEST(a_full_map_can_be_emptied_at_once) {
  kv_code code;
  new_folder();
  for (int round = 0; round < 3; round++) {
    kv_store *store = open_store("?map_size=1048576&sync=none");
    REQUIRE(store != NULL);
    CHECK(fill(store, "d", 200, &code) > 500);
    CHECK_EQ(code, KV_NO_SPACE);
    kv_watch *watch = watch_tree(store, "d");
    CHECK(wait_synced(watch));
    kv_request request = {.kind = KV_DELETE_TREE, .key = text("d")};
    CHECK_EQ(ask(store, &request), KV_OK);
    CHECK_STR(list(store, ""), "");
    /* There was no room for the history of it: the watch is told all the same. */
    int left = 0;
    const char *event;
    do {
      event = next_event(watch, 2);
      left += *event == 'd' ? 1 : *event == '-' ? -1 : 0;
    } while (*event && (left || *event == 'd'));
    CHECK_EQ(left, 0);
    CHECK(*event == '-');
    kv_watch_free(watch);
    close_store(store);
  }
}

TEST(one_large_value_does_not_spoil_the_others) {
  static char value[900000];
  new_folder();
  kv_store *store = open_store("?map_size=1048576&sync=none");
  REQUIRE(store != NULL);
  uint64_t first = last_tag + 1;
  kv_reply *reply = NULL;
  char key[64];
  for (int i = 0; i < 20; i++) { /* together, so that they are one commit */
    snprintf(key, sizeof key, "k%02d", i);
    kv_request request = {.kind = KV_PUT, .key = text(key), .value = {value, i == 10 ? sizeof value : 10}};
    CHECK_EQ(kv_submit(store, queue, &request, ++last_tag, NULL, &reply, NULL), KV_OK);
  }
  for (int i = 0; i < 20; i++) CHECK_EQ(keep_reply(next_reply(first + (uint64_t)i)), i == 10 ? KV_NO_SPACE : KV_OK);
  CHECK_EQ(count_below(store, ""), 19);
  close_store(store);
}

TEST(a_map_that_was_made_smaller_still_lets_delete) {
  kv_code code;
  new_folder();
  kv_store *store = open_store("?map_size=4194304&sync=none");
  REQUIRE(store != NULL);
  fill(store, "d", 1000, &code);
  CHECK_EQ(code, KV_NO_SPACE);
  close_store(store);
  store = open_store("?map_size=1048576&sync=none");
  REQUIRE(store != NULL);
  CHECK_EQ(put(store, "a", "1"), KV_NO_SPACE);
  kv_request request = {.kind = KV_DELETE_TREE, .key = text("d")};
  CHECK_EQ(ask(store, &request), KV_OK);
  CHECK_STR(list(store, ""), "");
  close_store(store);
}

TEST(what_expires_makes_room) {
  static char value[20000];
  char key[64];
  new_folder();
  kv_store *store = open_store("?map_size=1048576&sync=none");
  REQUIRE(store != NULL);
  kv_code code = KV_OK;
  for (int i = 0; code == KV_OK; i++) {
    snprintf(key, sizeof key, "d/%05d", i);
    kv_request request = {.kind = KV_PUT, .key = text(key), .value = {value, sizeof value}, .ttl = 0.5};
    code = ask(store, &request);
  }
  CHECK_EQ(code, KV_NO_SPACE);
  double until = seconds_now() + 10;
  do {
    usleep(10000);
    kv_request request = {.kind = KV_PUT, .key = text("big"), .value = {value, sizeof value}};
    code = ask(store, &request);
  } while (code == KV_NO_SPACE && seconds_now() < until);
  CHECK_EQ(code, KV_OK);
  close_store(store);
}

/* A reader keeps what it sees from being overwritten, so that a small map is full of what nobody else needs. */
static void read_for_long(void *argument) {
  MDB_env *env;
  MDB_txn *txn = NULL;
  (void)argument;
  bool good = mdb_env_create(&env) == 0 && mdb_env_open(env, folder, MDB_NOTLS, 0600) == 0 &&
              mdb_txn_begin(env, NULL, MDB_RDONLY, &txn) == 0;
  say(good ? 'r' : 'f');
  hear();
  mdb_txn_abort(txn);
  say('e');
  for (;;) pause();
}

TEST(readers_of_the_past) {
  static char value[20000];
  kv_request request = {.kind = KV_PUT, .key = text("a"), .value = {value, sizeof value}};
  for (int killed = 0; killed < 2; killed++) {
    new_folder();
    kv_store *store = open_store("?map_size=1048576&sync=none");
    REQUIRE(store != NULL);
    CHECK_EQ(ask(store, &request), KV_OK);
    struct child child = start_child(read_for_long, NULL);
    REQUIRE(listen_to(&child) == 'r');
    int count = 0;
    while (ask(store, &request) == KV_OK && count++ < 1000) continue;
    CHECK_EQ(last.code, KV_NO_SPACE);
    CHECK(count < 100);
    if (killed) {
      kill_child(&child); /* what it held is found and freed */
    } else {
      kv_reply *reply = NULL;
      uint64_t tag = ++last_tag;
      int64_t patience = kv_local_patience;
      kv_local_patience = 20 * LOCAL_SECOND; /* the child may be late */
      CHECK_EQ(kv_submit(store, queue, &request, tag, NULL, &reply, NULL), KV_OK);
      tell(&child, 'e');
      CHECK_EQ(keep_reply(next_reply(tag)), KV_OK); /* it waited for the reader */
      kv_local_patience = patience;
      CHECK_EQ(listen_to(&child), 'e');
      kill_child(&child);
    }
    for (int i = 0; i < 200; i++) CHECK_EQ(ask(store, &request), KV_OK);
    close_store(store);
  }
}

/* ------------------------------------------------------------------ no room on the disk */

/* A limit on the size of files is as good as a full disk: writing behind it fails. */
static void fill_the_disk(void *argument) {
  kv_code code;
  char path[100];
  struct stat file;
  struct rlimit limit;
  (void)argument;
  signal(SIGXFSZ, SIG_IGN);
  kv_store *store = open_store(NULL);
  CHECK_EQ(put(store, "a", "1"), KV_OK);
  snprintf(path, sizeof path, "%s/data.mdb", folder);
  CHECK_EQ(stat(path, &file), 0);
  CHECK_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  rlim_t before = limit.rlim_cur;
  limit.rlim_cur = (rlim_t)file.st_size + 300000;
  CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  int count = fill(store, "d", 2000, &code);
  CHECK_EQ(code, KV_NO_SPACE);
  CHECK(count > 10);
  CHECK_EQ(count_below(store, "d"), count);
  CHECK_STR(get(store, "a"), "1");
  limit.rlim_cur = before;
  CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  CHECK_EQ(put(store, "a", "2"), KV_OK); /* as soon as there is room */
  for (int i = 0; i < 100; i++) CHECK_EQ(put(store, "b", "3"), KV_OK);
  CHECK_EQ(count_below(store, "d"), count);
  close_store(store);
}

TEST(a_full_disk_refuses_and_heals) {
  new_folder();
  struct child child = start_child(fill_the_disk, NULL);
  CHECK_EQ(join_child(&child), 0);
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  CHECK_STR(get(store, "a"), "2");
  close_store(store);
}

/* ------------------------------------------------------------------ what cannot be opened */

/* The first request tells why, with the path. */
static kv_code fails_to_open(const char *path, const char *word) {
  char url[300];
  snprintf(url, sizeof url, "local:%s", path);
  kv_store *store = open_store(url);
  if (!store) return KV_CODE_COUNT;
  kv_code code = put(store, "a", "1");
  CHECK(strstr(last.message, path) != NULL);
  CHECK(strstr(last.message, word) != NULL);
  if (!strstr(last.message, word)) fprintf(stderr, "%s\n", last.message);
  CHECK_EQ((get(store, "a"), last.code), code);
  kv_watch *watch = watch_tree(store, "");
  char expected[40];
  snprintf(expected, sizeof expected, "!%s", kv_code_text(code));
  CHECK_STR(next_event(watch, 10), expected);
  kv_watch_free(watch);
  close_store(store);
  return code;
}

static void write_file(const char *name, const void *bytes, size_t size) {
  char path[200];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  CHECK(fd >= 0 && write(fd, bytes, size) == (ssize_t)size);
  close(fd);
}

TEST(folders_that_cannot_be_used) {
  char path[300];
  new_folder();
  write_file("file", "x", 1);
  snprintf(path, sizeof path, "%s/file", folder);
  CHECK_EQ(fails_to_open(path, "Not a directory"), KV_FAILED);
  snprintf(path, sizeof path, "%s/file/below", folder);
  CHECK_EQ(fails_to_open(path, "Not a directory"), KV_FAILED);
  CHECK(fails_to_open("/proc/kv-test", "") != KV_OK);
  snprintf(path, sizeof path, "/tmp/%0256d", 0);
  CHECK_EQ(fails_to_open(path, ""), KV_FAILED);
}

static void open_where_forbidden(void *argument) {
  char path[300];
  (void)argument;
  if (geteuid() == 0 && setuid(65534) != 0) _exit(77);
  snprintf(path, sizeof path, "%s/closed", folder);
  CHECK_EQ(fails_to_open(path, "Permission denied"), KV_DENIED);
  snprintf(path, sizeof path, "%s/closed/below", folder);
  CHECK_EQ(fails_to_open(path, "Permission denied"), KV_DENIED);
}

TEST(folders_without_permission) {
  char path[300];
  new_folder();
  chmod(folder, 0755);
  snprintf(path, sizeof path, "%s/closed", folder);
  CHECK_EQ(mkdir(path, 0555), 0);
  struct child child = start_child(open_where_forbidden, NULL);
  CHECK_EQ(join_child(&child), 0);
}

TEST(files_that_are_none_of_ours) {
  static char garbage[20000];
  memset(garbage, 'g', sizeof garbage);
  new_folder();
  write_file("data.mdb", garbage, sizeof garbage);
  CHECK_EQ(fails_to_open(folder, "MDB_INVALID"), KV_FAILED);
  new_folder();
  MDB_env *env;
  MDB_txn *txn;
  MDB_dbi dbi;
  MDB_val key = {3, "abc"}, value = {1, "1"};
  REQUIRE(mdb_env_create(&env) == 0 && mdb_env_open(env, folder, 0, 0600) == 0);
  REQUIRE(mdb_txn_begin(env, NULL, 0, &txn) == 0);
  REQUIRE(mdb_dbi_open(txn, NULL, 0, &dbi) == 0 && mdb_put(txn, dbi, &key, &value, 0) == 0 && mdb_txn_commit(txn) == 0);
  mdb_env_close(env);
  CHECK_EQ(fails_to_open(folder, "another program"), KV_FAILED);
}

/* LMDB must not be opened twice in a process: its file locks would be lost. Another copy of this library would lock the
 * byte of this process, as this test does with all of them. */
TEST(another_copy_of_the_library_is_refused) {
  char path[200];
  new_folder();
  kv_store *store = open_store(NULL);
  REQUIRE(store != NULL);
  CHECK_EQ(put(store, "a", "1"), KV_OK);
  close_store(store);
  snprintf(path, sizeof path, "%s/processes", folder);
  int fd = open(path, O_RDWR);
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  REQUIRE(fd >= 0 && fcntl(fd, F_OFD_SETLK, &lock) == 0);
  CHECK_EQ(fails_to_open(folder, "another copy of this library"), KV_FAILED);
  close(fd);
  store = open_store(NULL);
  REQUIRE(store != NULL);
  CHECK_STR(get(store, "a"), "1");
  close_store(store);
}

TEST(a_store_opens_once_the_reason_is_gone) {
  char path[200];
  new_folder();
  write_file("x", "x", 1);
  snprintf(path, sizeof path, "local:%s/x", folder);
  kv_store *store = open_store(path);
  REQUIRE(store != NULL);
  CHECK_EQ(put(store, "a", "1"), KV_FAILED);
  CHECK_EQ(unlink(path + 6), 0);
  CHECK_EQ(put(store, "a", "1"), KV_OK);
  CHECK_STR(get(store, "a"), "1");
  close_store(store);
}

TEST(missing_folders_are_made) {
  char path[300];
  new_folder();
  snprintf(path, sizeof path, "local:%s/one/two//three/", folder);
  kv_store *store = open_store(path);
  REQUIRE(store != NULL);
  CHECK_EQ(put(store, "a", "1"), KV_OK);
  close_store(store);
  snprintf(path, sizeof path, "%s/one/two/three/data.mdb", folder);
  CHECK_EQ(access(path, F_OK), 0);
}

/* ------------------------------------------------------------------ damaged records */

/* Overwrite every record of the user's keys and the history by `size` bytes. */
static void damage(size_t size) {
  MDB_env *env;
  MDB_txn *txn;
  MDB_dbi dbi;
  MDB_cursor *cursor;
  MDB_val key, value;
  static char bytes[64];
  memset(bytes, 0xff, sizeof bytes);
  int rc = mdb_env_create(&env);
  if (!rc) rc = mdb_env_set_mapsize(env, 1 << 24);
  if (!rc) rc = mdb_env_open(env, folder, 0, 0600);
  if (!rc) rc = mdb_txn_begin(env, NULL, 0, &txn);
  if (rc) {
    fprintf(stderr, "%s: %s\n", folder, mdb_strerror(rc));
    abort();
  }
  if (mdb_dbi_open(txn, NULL, 0, &dbi) || mdb_cursor_open(txn, dbi, &cursor)) abort();
  while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
    if (*(unsigned char *)key.mv_data == 1) continue; /* what the folder says of itself */
    MDB_val other = {size, bytes};
    if (mdb_cursor_put(cursor, &key, &other, MDB_CURRENT)) abort();
  }
  mdb_cursor_close(cursor);
  if (mdb_txn_commit(txn)) abort();
  mdb_env_close(env);
}

TEST(damaged_records_are_errors_and_no_more) {
  static const size_t sizes[] = {0, 1, 15, 16, 31, 40, 64};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    new_folder();
    kv_store *store = open_store("?sync=none");
    REQUIRE(store != NULL);
    CHECK_EQ(put(store, "a", "1"), KV_OK);
    CHECK_EQ(put_ttl(store, "b", "1", 100), KV_OK);
    kv_lock *lock = new_lock(store, "l", 5), *other = new_lock(store, "l", 5);
    CHECK_EQ(acquire(lock, 5), KV_OK);
    kv_lock_free(lock);
    close_store(store);
    damage(sizes[i]);
    store = open_store("?sync=none");
    REQUIRE(store != NULL);
    get(store, "a");
    CHECK(last.code == KV_FAILED || last.code == KV_OK);
    list(store, "");
    CHECK(last.code == KV_FAILED || last.code == KV_OK);
    CHECK_EQ(put(store, "a", "2"), KV_FAILED);
    CHECK_EQ(delete_key(store, "b"), KV_FAILED);
    kv_lock_free(other);
    other = new_lock(store, "l", 5);
    CHECK(acquire(other, 1) != KV_OK);
    kv_watch *watch = watch_tree(store, "");
    next_event(watch, 0.1);
    kv_watch_free(watch);
    kv_lock_free(other);
    close_store(store);
  }
}

CHECK_MAIN()
