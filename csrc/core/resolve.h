/*
 * resolve.h - names to addresses, for dial.c. Everything here is called on the reactor thread.
 */
#ifndef KV_RESOLVE_H
#define KV_RESOLVE_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "core.h"

#define KV_IPS_MAX 8

union kv_ip {
  struct sockaddr any;
  struct sockaddr_in v4;
  struct sockaddr_in6 v6;
};

/* The addresses of a name, IPv4 and IPv6 in turn, the system's first choice first. Ports are 0. */
struct kv_ips {
  unsigned count;
  union kv_ip list[KV_IPS_MAX];
};

struct lookup;

/* One who wants a name resolved. Embedded in its owner; zero it, set done. */
struct kv_resolve {
  /* Comes once, perhaps inside kv_resolve_start(). ips: NULL when it failed, `problem` says why. Both are valid during
   * the call. */
  void (*done)(struct kv_resolve *resolve, const struct kv_ips *ips, const char *problem);
  void *data;
  struct lookup *lookup; /* resolve.c's */
  struct kv_resolve *next;
};

void kv_resolve_start(struct kv_resolve *resolve, const char *host);
/* done() will not come. Harmless when nothing is under way. */
void kv_resolve_cancel(struct kv_resolve *resolve);
/* What is known of this name did not work: ask again next time. */
void kv_resolve_forget(const char *host);

#endif
