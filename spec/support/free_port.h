/* free_port.h - ports for servers that C tests and specs start. */
#ifndef KV_FREE_PORT_H
#define KV_FREE_PORT_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Is the port ours from now on? Nothing listens on it until the server does: so that no process that runs beside gets
 * it too, a socket with its name is kept until the process ends. */
static inline bool keep_port(int port) {
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  int size = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "kv-test-port-%d", port);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(fd, (void *)&name, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)size)) == 0) return true;
  close(fd);
  return false;
}

/* Below the range from which the system takes ports for outgoing connections, so that none is taken before the server
 * listens, or while it is down. */
static inline int free_port(void) {
  static int next;
  /* Far from the ports of tests that run beside, whose process ids are neighbours. */
  if (!next) next = 20000 + (int)(((unsigned)getpid() * 2654435761u >> 8) % 12000);
  for (int tries = 0; tries < 2000; tries++) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = next;
    next = next >= 31999 ? 20000 : next + 1;
    address.sin_port = htons((uint16_t)port);
    bool good = bind(fd, (void *)&address, sizeof address) == 0;
    close(fd);
    if (good && keep_port(port)) return port;
  }
  return 0;
}

#endif
