/* driver_table.c - the drivers that are known, and what the core offers to them. */
#include <string.h>

#include "backend.h"
#include "op.h"
#include "watch.h"

#define MAX_DRIVERS 32

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static const struct kv_driver *drivers[MAX_DRIVERS];
static size_t driver_count;

/* The table itself is good at any moment: the count follows the entry. */
void kv_drivers_forget_parent(void) {
  guard = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

static void host_dial(struct kv_backend *backend, struct kv_dial *dial) {
  kv_dial_start(backend->endpoints, dial);
}

static void host_endpoint_failed(struct kv_backend *backend, size_t address) {
  kv_endpoint_failed(backend->endpoints, address);
}

static void host_count_bytes(struct kv_backend *backend, uint64_t sent, uint64_t received) {
  if (sent) kv_count(backend, KV_COUNT_bytes_sent, (int64_t)sent);
  if (received) kv_count(backend, KV_COUNT_bytes_received, (int64_t)received);
}

const struct kv_host kv_host_table = {
    .abi = KV_DRIVER_ABI,
    .now = kv_now,
    .io_set = kv_io_set,
    .io_remove = kv_io_remove,
    .timer_set = kv_timer_set,
    .timer_stop = kv_timer_stop,
    .post = kv_post,
    .defer = kv_defer,
    .finish = kv_op_finish,
    .pair = kv_op_pair_found,
    .pair_bytes = kv_op_pair_bytes,
    .hold_replies = kv_replies_hold,
    .release_replies = kv_replies_release,
    .dial = host_dial,
    .dial_cancel = kv_dial_cancel,
    .endpoint_failed = host_endpoint_failed,
    .backoff = kv_backoff,
    .connected = kv_backend_connected,
    .count_bytes = host_count_bytes,
    .feed_event = kv_feed_event,
    .feed_commit = kv_feed_commit,
    .feed_begin = kv_feed_begin,
    .feed_pair = kv_feed_pair,
    .feed_missing = kv_feed_missing,
    .feed_end = kv_feed_end,
    .feed_connected = kv_feed_connected,
    .feed_gone = kv_feed_gone,
    .feed_lost = kv_feed_lost,
    .closed = kv_backend_closed,
    .random = kv_random,
};

static const struct kv_scheme *find(kv_slice name, const struct kv_driver **driver) {
  for (size_t i = 0; i < driver_count; i++) {
    for (const struct kv_scheme *scheme = drivers[i]->schemes; scheme->name; scheme++) {
      if (strlen(scheme->name) != name.size || memcmp(scheme->name, name.data, name.size) != 0) continue;
      if (driver) *driver = drivers[i];
      return scheme;
    }
  }
  return NULL;
}

const struct kv_scheme *kv_scheme_find(kv_slice name, const struct kv_driver **driver) {
  pthread_mutex_lock(&guard);
  const struct kv_scheme *scheme = find(name, driver);
  pthread_mutex_unlock(&guard);
  return scheme;
}

bool kv_scheme_known(kv_slice scheme) {
  return kv_scheme_find(scheme, NULL) != NULL;
}

static kv_code add(const struct kv_driver *driver, kv_error *error) {
  for (size_t i = 0; i < driver_count; i++)
    if (drivers[i] == driver) return KV_OK;
  for (const struct kv_scheme *scheme = driver->schemes; scheme->name; scheme++)
    if (find((kv_slice){scheme->name, strlen(scheme->name)}, NULL))
      return kv_fail(error, KV_INVALID, "driver %s: scheme %s is taken by another driver", driver->name, scheme->name);
  if (driver_count == MAX_DRIVERS) return kv_fail(error, KV_INVALID, "driver %s: too many drivers", driver->name);
  driver->attach(&kv_host_table);
  drivers[driver_count++] = driver;
  return KV_OK;
}

kv_code kv_register(const struct kv_driver *driver, kv_error *error) {
  if (driver->abi != KV_DRIVER_ABI)
    return kv_fail(error, KV_INVALID, "driver was built for interface version %u, this is version %u",
                   (unsigned)driver->abi, (unsigned)KV_DRIVER_ABI);
  pthread_mutex_lock(&guard);
  kv_code code = add(driver, error);
  pthread_mutex_unlock(&guard);
  return code;
}

const char *kv_driver_name(size_t index) {
  pthread_mutex_lock(&guard);
  const char *name = index < driver_count ? drivers[index]->name : NULL;
  pthread_mutex_unlock(&guard);
  return name;
}
