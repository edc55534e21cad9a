/*
 * lmdb_put - the peer for durable local writes: LMDB's own C API, one writer, one commit and one sync for each put.
 *
 *   lmdb_put FOLDER SECONDS VALUE_SIZE
 *
 * Prints "puts-per-second cpu-microseconds-per-put". It writes 1,000 keys in turn with MDB_NOSYNC off and without
 * MDB_WRITEMAP, which is LMDB as it comes; the folder must exist, and should lie on the disk on which the other side is
 * measured.
 */
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static void check(int code, const char *what) {
  if (code) {
    fprintf(stderr, "lmdb_put: %s: %s\n", what, mdb_strerror(code));
    exit(1);
  }
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static double cpu(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void put(MDB_env *env, MDB_dbi dbi, unsigned long i, char *value, size_t size) {
  char name[32];
  MDB_txn *txn;
  MDB_val key = {.mv_size = (size_t)snprintf(name, sizeof name, "bench/%lu", i % 1000), .mv_data = name};
  MDB_val data = {.mv_size = size, .mv_data = value};
  check(mdb_txn_begin(env, NULL, 0, &txn), "begin");
  check(mdb_put(txn, dbi, &key, &data, 0), "put");
  check(mdb_txn_commit(txn), "commit");
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: lmdb_put FOLDER SECONDS VALUE_SIZE\n");
    return 2;
  }
  double seconds = atof(argv[2]);
  size_t size = (size_t)atoi(argv[3]);
  char *value = malloc(size + 1);
  if (!value) return 1;
  memset(value, 'x', size);

  MDB_env *env;
  MDB_txn *txn;
  MDB_dbi dbi;
  check(mdb_env_create(&env), "create");
  check(mdb_env_set_mapsize(env, (size_t)1 << 30), "map size");
  check(mdb_env_open(env, argv[1], 0, 0600), "open");
  check(mdb_txn_begin(env, NULL, 0, &txn), "begin");
  check(mdb_dbi_open(txn, NULL, 0, &dbi), "open database");
  check(mdb_txn_commit(txn), "commit");

  unsigned long warm = 0, count = 0;
  double begin = now();
  while (now() - begin < seconds / 5) put(env, dbi, warm++, value, size);
  double used = cpu();
  begin = now();
  while (now() - begin < seconds * 4 / 5) put(env, dbi, warm + count++, value, size);
  double elapsed = now() - begin;
  used = cpu() - used;
  printf("%.1f %.2f\n", (double)count / elapsed, used / (double)count * 1e6);
  mdb_env_close(env);
  free(value);
  return 0;
}
