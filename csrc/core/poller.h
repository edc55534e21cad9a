/*
 * poller.h - the seam under the reactor: what tells which descriptors are ready. poller_epoll.c is the one for Linux.
 */
#ifndef KV_POLLER_H
#define KV_POLLER_H

#include "core.h"

struct kv_poller_event {
  void *data;
  unsigned events; /* KV_IO_READ | KV_IO_WRITE; errors and hang-ups count as both */
};

/* A descriptor of its own (close-on-exec), or -1. */
int kv_poller_open(void);
void kv_poller_close(int poller);
/* Watch `fd` for `events` (KV_IO_*; 0: errors only), or change what it is watched for. False: errno says why. */
bool kv_poller_set(int poller, int fd, unsigned events, void *data, bool is_new);
void kv_poller_remove(int poller, int fd);
/* Wait until `until` (kv_clock(), KV_NEVER: for ever). Returns the number of events, 0 when time is up, -1
 * when interrupted by a signal. */
int kv_poller_wait(int poller, struct kv_poller_event *events, int max, int64_t until);

#endif
