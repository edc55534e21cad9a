/* watch.h - the core's side of watches: what drivers feed them, and closing. */
#ifndef KV_WATCH_H
#define KV_WATCH_H

#include "core.h"

/* As in struct kv_host. */
void kv_feed_event(struct kv_feed *feed, kv_event_type type, kv_slice key, kv_slice value, uint64_t revision,
                   uint64_t created);
void kv_feed_commit(struct kv_feed *feed, uint64_t revision);
void kv_feed_begin(struct kv_feed *feed);
void kv_feed_pair(struct kv_feed *feed, kv_slice key, kv_slice value, uint64_t revision, uint64_t created);
void kv_feed_missing(struct kv_feed *feed, void (*visit)(void *argument, kv_slice key), void *argument);
void kv_feed_end(struct kv_feed *feed, uint64_t revision);
void kv_feed_connected(struct kv_feed *feed, bool connected);
void kv_feed_gone(struct kv_feed *feed, kv_slice dir, uint64_t revision);
void kv_feed_lost(struct kv_feed *feed, kv_code code, const char *format, ...) KV_PRINTF(3, 4);

/* Watch one key of the library's own, by its full name. As kv_watch_open() with the key alone in its options. */
kv_code kv_watch_open_own(kv_store *store, kv_queue *queue, kv_slice key, uint64_t tag, kv_watch **out,
                          kv_error *error);

/* End the watches of one view, or all (0), with KV_CLOSED. Reactor. */
void kv_watches_close_view(struct kv_backend *backend, uint64_t view);

#endif
