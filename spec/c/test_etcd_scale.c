/*
 * test_etcd_scale.c - many watches, idleness, and large listings on a real etcd: what they cost in this process.
 */
#include <dirent.h>
#include <malloc.h>

#include "etcd_server.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define INSTRUMENTED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(INSTRUMENTED)
enum { MEASURED = false }; /* sizes mean nothing there */
#else
enum { MEASURED = true };
#endif

/* Bytes in use. */
static size_t heap(void) {
  struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

static size_t status_kb(const char *field) {
  char line[200];
  size_t value = 0;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (strncmp(line, field, strlen(field)) == 0) value = strtoul(line + strlen(field) + 1, NULL, 10);
  if (file) fclose(file);
  return value;
}

/* Of the network: those that keep ports are not counted. */
static int sockets(void) {
  int count = 0;
  DIR *folder = opendir("/proc/self/fd");
  for (struct dirent *entry; folder && (entry = readdir(folder));) {
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    count += getsockname(atoi(entry->d_name), (void *)&address, &size) == 0 && address.ss_family == AF_INET;
  }
  if (folder) closedir(folder);
  return count;
}

/* How often any thread went to sleep. */
static long sleeps(void) {
  long total = 0;
  char path[400], line[200];
  DIR *folder = opendir("/proc/self/task");
  for (struct dirent *entry; folder && (entry = readdir(folder));) {
    snprintf(path, sizeof path, "/proc/self/task/%s/status", entry->d_name);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
      if (strncmp(line, "voluntary_ctxt_switches:", 24) == 0) total += strtol(line + 24, NULL, 10);
    if (file) fclose(file);
  }
  if (folder) closedir(folder);
  return total;
}

/* Wait until no more happens than that we look, and somebody looks after the server. */
static void rest(void) {
  long before;
  double until = now() + 20;
  do {
    before = sleeps();
    nap(0.5);
  } while (sleeps() - before > 2 && now() < until);
}

TEST(many_watches) {
  WITH_ETCD(store, "/many");
  enum { COUNT = 10000 };
  static kv_watch *watches[COUNT];
  kv_watch *first = watch_key(store, "first", false);
  WAIT_FOR(10, kv_watch_connected(first));
  size_t heap_before = heap(), rss_before = status_kb("VmRSS");
  for (int i = 0; i < COUNT; i++) {
    char key[30];
    snprintf(key, sizeof key, "watched/%d", i);
    watches[i] = watch_key(store, key, false);
    REQUIRE(watches[i] != NULL);
  }
  int connected = 0;
  for (double until = now() + 60; connected < COUNT && now() < until;) {
    kv_reply_free(next_reply(0.1));
    while (connected < COUNT && kv_watch_connected(watches[connected])) connected++;
  }
  CHECK_EQ(connected, COUNT);
  for (kv_reply *reply; (reply = next_reply(0.2));) kv_reply_free(reply);
  size_t each = (heap() - heap_before) / COUNT, resident = (status_kb("VmRSS") - rss_before) * 1024 / COUNT;
  if (MEASURED) CHECK(each <= 1024);
  if (MEASURED) CHECK(resident <= 2048);
  if (MEASURED) printf("a watch: %zu bytes of heap, %zu resident\n", each, resident);
  CHECK_EQ(sockets(), 1);
  /* Nothing happens: nobody wakes up but to see whether the server is there. */
  rest();
  long before = sleeps();
  nap(3);
  if (MEASURED) CHECK(sleeps() - before <= 4); /* a sanitizer has a thread of its own */
  /* All live. */
  for (int i = 0; i < COUNT; i += 100) {
    char key[30], expected[50];
    snprintf(key, sizeof key, "watched/%d", i);
    CHECK(submit(store, &(kv_request){.kind = KV_PUT, .key = text(key), .value = KV_TEXT("v"), .timeout = 30}));
    snprintf(expected, sizeof expected, "+%s=v", key);
    CHECK_STR(next_event(watches[i], 10), expected);
  }
  for (int i = 0; i < COUNT; i++) kv_watch_free(watches[i]);
  kv_watch_free(first);
  for (kv_reply *reply; (reply = next_reply(0.5));) kv_reply_free(reply);
  if (MEASURED) WAIT_FOR(10, heap() < heap_before + (1 << 20));
  close_store(store);
}

TEST(idle_store) {
  WITH_ETCD(store, "/idle");
  CHECK_EQ(put(store, "k", "v"), KV_OK);
  rest();
  long before = sleeps();
  nap(2);
  size_t with = heap(); /* now it is idle: buffers of the put are given back a moment after it */
  if (MEASURED) CHECK(sleeps() - before <= 2);
  close_store(store);
  /* What an idle connection holds, and what malloc() had put aside for the thread that has ended: tens of kilobytes. */
  if (MEASURED) CHECK(with - heap() < 128 << 10);
  if (MEASURED) printf("an idle store: %zu bytes\n", with - heap());
}

TEST(large_listing_in_pages) {
  WITH_ETCD(store, "/list");
  enum { COUNT = 100000, SIZE = 256, BATCH = 2000 };
  static char value[SIZE];
  size_t bytes = 0;
  memset(value, 'v', sizeof value);
  for (int i = 0; i < COUNT; i++) {
    char key[40];
    bytes += (size_t)snprintf(key, sizeof key, "tree/%07d", i) + SIZE;
    REQUIRE(submit(store, &(kv_request){.kind = KV_PUT, .key = text(key), .value = {value, SIZE}, .timeout = 60}));
    if ((i + 1) % BATCH == 0) CHECK_EQ(gather(BATCH, KV_OK, 60), BATCH);
  }
  size_t before = heap(), peak = before;
  static kv_reply *pages[1000];
  size_t count = 0, seen = 0;
  char after[60] = "";
  uint64_t revision = 0;
  for (bool more = true; more && count < 1000;) {
    kv_pair pair;
    kv_reply *reply = ask(store, &(kv_request){.kind = KV_LIST, .key = KV_TEXT("tree"), .after = text(after),
                                               .revision = revision, .timeout = 30});
    REQUIRE(reply && kv_reply_code(reply) == KV_OK);
    while (kv_reply_pair(reply, &pair)) {
      snprintf(after, sizeof after, "%.*s", (int)pair.key.size, pair.key.data);
      seen++;
    }
    more = kv_reply_more(reply);
    revision = kv_reply_revision(reply);
    pages[count++] = reply;
    if (heap() > peak) peak = heap();
  }
  CHECK_EQ(seen, COUNT);
  if (MEASURED) CHECK(peak - before <= bytes * 2);
  double ratio = (double)(peak - before) / (double)bytes;
  if (MEASURED) printf("a listing: %.2f times its %zu bytes, in %zu pages\n", ratio, bytes, count);
  for (size_t i = 0; i < count; i++) kv_reply_free(pages[i]);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_DELETE_TREE, .timeout = 60}), KV_OK);
  close_store(store);
}

CHECK_MAIN()
