/* poller_epoll.c - the poller on Linux. */
#include "poller.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#define MAX_EVENTS 64

int kv_poller_open(void) {
  return epoll_create1(EPOLL_CLOEXEC);
}

void kv_poller_close(int poller) {
  close(poller);
}

bool kv_poller_set(int poller, int fd, unsigned events, void *data, bool is_new) {
  struct epoll_event event = {.data.ptr = data};
  if (events & KV_IO_READ) event.events |= EPOLLIN | EPOLLRDHUP;
  if (events & KV_IO_WRITE) event.events |= EPOLLOUT;
  return epoll_ctl(poller, is_new ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event) == 0;
}

void kv_poller_remove(int poller, int fd) {
  struct epoll_event unused = {0};
  epoll_ctl(poller, EPOLL_CTL_DEL, fd, &unused);
}

/* Round up, so that a timer is due when the wait ends; capped, so that an int holds it. */
static int milliseconds_until(int64_t until) {
  if (until == KV_NEVER) return -1;
  int64_t left = until - kv_clock();
  if (left <= 0) return 0;
  int64_t milliseconds = (left + 999999) / 1000000;
  return milliseconds > 3600000 ? 3600000 : (int)milliseconds;
}

int kv_poller_wait(int poller, struct kv_poller_event *events, int max, int64_t until) {
  struct epoll_event ready[MAX_EVENTS];
  int count = epoll_wait(poller, ready, max < MAX_EVENTS ? max : MAX_EVENTS, milliseconds_until(until));
  if (count < 0) return errno == EINTR ? -1 : 0;
  for (int i = 0; i < count; i++) {
    uint32_t seen = ready[i].events;
    unsigned out = 0;
    if (seen & (EPOLLIN | EPOLLRDHUP)) out |= KV_IO_READ;
    if (seen & EPOLLOUT) out |= KV_IO_WRITE;
    if (seen & (EPOLLERR | EPOLLHUP)) out |= KV_IO_READ | KV_IO_WRITE;
    events[i].data = ready[i].data.ptr;
    events[i].events = out;
  }
  return count;
}
