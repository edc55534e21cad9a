/*
 * backend.c - an open backend. It is made without I/O, started by the first request, shut when its last view
 * is closed, and freed when nothing refers to it any more.
 *
 * Shutting, on the reactor: every request and watch is answered; the recipes give back locks and leases; the driver
 * closes; the reactor is let go.
 */
#include "backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "op.h"
#include "watch.h"

#define PORTABLE_VALUE_MAX ((size_t)512 * 1024)

/* What messages call it: the backend by its name, where its URLs do not say it ("zookeeper zk://host:2181"). */
static void make_label(struct kv_backend *backend) {
  const struct kv_config *config = &backend->config;
  const char *name = backend->driver->name;
  bool named = strncmp(config->scheme->name, name, strlen(name)) == 0;
  size_t size = sizeof backend->label;
  int used = snprintf(backend->label, size, "%s%s%s:%s", named ? "" : name, named ? "" : " ", config->scheme->name,
                      config->scheme->port ? "//" : "");
  if (!config->scheme->port) {
    if (config->path && used > 0) snprintf(backend->label + used, size - (size_t)used, "%.300s", config->path);
    return;
  }
  for (size_t i = 0; i < config->address_count && used > 0 && (size_t)used < size; i++) {
    bool ipv6 = strchr(config->addresses[i].host, ':') != NULL;
    used += snprintf(backend->label + used, size - (size_t)used, ipv6 ? "%s[%s]:%u" : "%s%s:%u", i ? "," : "",
                     config->addresses[i].host, config->addresses[i].port);
  }
}

struct kv_backend *kv_backend_new(const struct kv_driver *driver, struct kv_config *config, kv_error *error) {
  struct kv_backend *backend = calloc(1, sizeof *backend);
  if (!backend) {
    kv_config_clear(config);
    kv_fail(error, KV_FAILED, "out of memory");
    return NULL;
  }
  backend->driver = driver;
  backend->config = *config;
  backend->fork_count = kv_fork_count();
  backend->views = 1;
  backend->direct_deadline = KV_NEVER;
  backend->direct_timer.fire = kv_direct_scan;
  backend->direct_timer.data = backend;
  backend->direct_task.run = kv_direct_arm;
  backend->direct_task.data = backend;
  atomic_init(&backend->references, 1);
  pthread_mutex_init(&backend->lock, NULL);
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&backend->closed_changed, &attributes);
  pthread_condattr_destroy(&attributes);
  backend->info.backend = driver->name;
  make_label(backend);
  kv_error cause = {.code = KV_FAILED, .message = "out of memory"};
  if (config->address_count) backend->endpoints = kv_endpoints_new(&backend->config);
  if (!config->address_count || backend->endpoints)
    backend->state = driver->create(backend, &backend->config, &cause);
  if (!backend->state) {
    kv_fail(error, cause.code, "open %s: %s", backend->label, cause.message);
    kv_backend_release(backend);
    return NULL;
  }
  return backend;
}

void kv_backend_retain(struct kv_backend *backend) {
  atomic_fetch_add_explicit(&backend->references, 1, memory_order_relaxed);
}

void kv_backend_release(struct kv_backend *backend) {
  if (atomic_fetch_sub_explicit(&backend->references, 1, memory_order_acq_rel) != 1) return;
  if (backend->state) backend->driver->destroy(backend->state);
  kv_recipes_free(backend);
  kv_endpoints_free(backend->endpoints);
  kv_config_clear(&backend->config);
  pthread_cond_destroy(&backend->closed_changed);
  pthread_mutex_destroy(&backend->lock);
  free(backend);
}

/* May the reactor be lent to callers while this one is at work? */
static bool may_move(const struct kv_backend *backend) {
  uint32_t needed = backend->config.scheme->tls ? KV_CAN_MOVE : KV_CAN_MOVE | KV_CAN_MOVE_PLAIN;
  return (backend->driver->capabilities & needed) != 0;
}

kv_code kv_backend_start(struct kv_backend *backend, kv_error *error) {
  kv_code code = KV_OK;
  pthread_mutex_lock(&backend->lock);
  if (backend->closing) {
    code = kv_fail(error, KV_CLOSED, "%s: the store was closed", backend->label);
  } else if (!backend->started) {
    code = kv_reactor_retain(error);
    if (code == KV_OK) {
      backend->started = true;
      if (!may_move(backend)) kv_reactor_bind(1);
      kv_backend_retain(backend); /* the reactor's, until kv_backend_closed() */
    }
  }
  pthread_mutex_unlock(&backend->lock);
  return code;
}

bool kv_backend_add_view(struct kv_backend *backend) {
  pthread_mutex_lock(&backend->lock);
  bool open = !backend->closing;
  if (open) backend->views++;
  pthread_mutex_unlock(&backend->lock);
  if (open) kv_backend_retain(backend);
  return open;
}

/* ------------------------------------------------------------------ closing */

static void recipes_closed(struct kv_backend *backend) {
  backend->driver->close(backend->state);
}

static void run_close(struct kv_task *task) {
  struct kv_close_request *request = task->data;
  struct kv_backend *backend = request->backend;
  bool last = request->last;
  if (last) backend->shut = true;
  kv_ops_close_view(backend, last ? 0 : request->view);
  kv_watches_close_view(backend, last ? 0 : request->view);
  if (last)
    kv_recipes_close(backend, recipes_closed);
  else
    kv_recipes_close_view(backend, request->view);
  free(request);
  kv_backend_release(backend);
}

static void mark_closed(struct kv_backend *backend) {
  pthread_mutex_lock(&backend->lock);
  backend->closed = true;
  pthread_cond_broadcast(&backend->closed_changed);
  pthread_mutex_unlock(&backend->lock);
}

void kv_backend_close_view(struct kv_close_request *request) {
  struct kv_backend *backend = request->backend;
  pthread_mutex_lock(&backend->lock);
  request->last = --backend->views == 0;
  if (request->last) backend->closing = true;
  bool started = backend->started;
  pthread_mutex_unlock(&backend->lock);
  if (started) {
    request->task.run = run_close;
    request->task.data = request;
    kv_post(&request->task);
    return;
  }
  if (request->last) mark_closed(backend);
  free(request);
  kv_backend_release(backend);
}

/* On the reactor, because its timers end here. */
static void finish_close(struct kv_task *task) {
  struct kv_backend *backend = task->data;
  kv_timer_stop(&backend->direct_timer);
  if (!may_move(backend)) kv_reactor_bind(-1);
  mark_closed(backend);
  kv_backend_release(backend);
  kv_reactor_release();
}

void kv_backend_closed(struct kv_backend *backend) {
  backend->closed_task.run = finish_close;
  backend->closed_task.data = backend;
  kv_post(&backend->closed_task);
}

/* ------------------------------------------------------------------ what is known of the server */

size_t kv_backend_value_max(const struct kv_backend *backend) {
  size_t limit = backend->driver->limits.value_max;
  return backend->config.portable && (!limit || limit > PORTABLE_VALUE_MAX) ? PORTABLE_VALUE_MAX : limit;
}

void kv_backend_connected(struct kv_backend *backend, bool connected, const char *endpoint, const char *version) {
  kv_info *info = &backend->info;
  pthread_mutex_lock(&backend->lock);
  bool was = info->connected;
  info->connected = connected;
  if (endpoint) snprintf(info->endpoint, sizeof info->endpoint, "%s", endpoint);
  if (version) snprintf(info->server_version, sizeof info->server_version, "%s", version);
  pthread_mutex_unlock(&backend->lock);
  if (!connected || was) return;
  if (atomic_load(&backend->counters[KV_COUNT_connects])) kv_count(backend, KV_COUNT_reconnects, 1);
  kv_count(backend, KV_COUNT_connects, 1);
}

void kv_count(struct kv_backend *backend, enum kv_counter counter, int64_t by) {
  atomic_fetch_add_explicit(&backend->counters[counter], (uint64_t)by, memory_order_relaxed);
}
