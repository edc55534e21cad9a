/* backend.h - open backends: the life between the first request and the last view's close, and the table of drivers. */
#ifndef KV_BACKEND_H
#define KV_BACKEND_H

#include "core.h"

/* Takes over *config. NULL: *error says why, and *config was cleared. One view is counted. */
struct kv_backend *kv_backend_new(const struct kv_driver *driver, struct kv_config *config, kv_error *error);
/* Start at first use: the reactor is referenced from here until the driver has closed. Any thread. */
kv_code kv_backend_start(struct kv_backend *backend, kv_error *error);
/* A view more; false when the backend is closing. */
bool kv_backend_add_view(struct kv_backend *backend);
/* A view less. The last one closes the backend. `request` is consumed. Any thread. */
struct kv_close_request {
  struct kv_task task;
  struct kv_backend *backend; /* counted */
  uint64_t view;
  bool last;
};
void kv_backend_close_view(struct kv_close_request *request);
/* The largest value that may be put, 0: not known here. Any thread. */
size_t kv_backend_value_max(const struct kv_backend *backend);
/* For struct kv_host. */
void kv_backend_closed(struct kv_backend *backend);
void kv_backend_connected(struct kv_backend *backend, bool connected, const char *endpoint, const char *version);

extern const struct kv_host kv_host_table; /* driver_table.c */

#endif
