/*
 * zookeeper_server.h - a real ZooKeeper for tests in C: in a folder and on a port of its own. What asks a store is that
 * of etcd_server.h.
 */
#ifndef KV_ZOOKEEPER_SERVER_H
#define KV_ZOOKEEPER_SERVER_H

#include "etcd_server.h"

extern const struct kv_driver kv_driver_zookeeper;

#define CLASSES "/usr/share/java/zookeeper.jar"

/* ------------------------------------------------------------------ servers */

static inline bool zk_prepare(struct server *server) {
  server->port = free_port();
  snprintf(server->url, sizeof server->url, "zk://127.0.0.1:%d", server->port);
  return make_folder(server->dir, sizeof server->dir);
}

static inline void zk_write_config(const struct server *server) {
  char path[100];
  snprintf(path, sizeof path, "%s/zoo.cfg", server->dir);
  FILE *file = fopen(path, "w");
  if (!file) return;
  fprintf(file,
          "tickTime=200\ndataDir=%s/data\nclientPort=%d\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n"
          "4lw.commands.whitelist=*\nadmin.enableServer=false\nmaxSessionTimeout=60000\n",
          server->dir, server->port);
  fclose(file);
}

/* What a four-letter word is answered. Static. */
static inline const char *four_letters(const struct server *server, const char *word) {
  static char answer[200000];
  struct sockaddr_in address = {
    .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)server->port)};
  size_t size = 0;
  ssize_t got = 1;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct timeval limit = {.tv_sec = 2}; /* one that has just begun to start accepts, and may never answer */
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (connect(fd, (void *)&address, sizeof address) == 0 && send(fd, word, 4, MSG_NOSIGNAL) == 4)
    while (got > 0 && size < sizeof answer - 1) {
      got = recv(fd, answer + size, sizeof answer - 1 - size, 0);
      if (got > 0) size += (size_t)got;
    }
  answer[size] = '\0';
  close(fd);
  return answer;
}

static inline bool zk_launch(struct server *server, const char *extended_types) {
  char config[100], log[100], types[80];
  snprintf(config, sizeof config, "%s/zoo.cfg", server->dir);
  snprintf(log, sizeof log, "%s/log", server->dir);
  snprintf(types, sizeof types, "-Dzookeeper.extendedTypesEnabled=%s", extended_types);
  zk_write_config(server);
  char *arguments[] = {"java", "-cp", CLASSES, "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", types,
                       "-Dznode.container.checkIntervalMs=300", "-Dzookeeper.forceSync=no",
                       "org.apache.zookeeper.server.quorum.QuorumPeerMain", config, NULL};
  if (access(CLASSES, R_OK) != 0) return false;
  server->pid = spawn(arguments, log);
  for (double until = now() + START_SECONDS; now() < until; nap(0.05)) {
    bool well = strstr(four_letters(server, "srvr"), "Mode:") != NULL;
    if (server_ended(server)) return false;
    if (well) return true;
  }
  return false;
}

static struct server zk_shared;

static inline void end_zk(void) {
  server_end(&zk_shared);
}

static inline const char *zk_url(void) {
  static bool tried, there;
  if (!tried) {
    tried = true;
    there = zk_prepare(&zk_shared) && zk_launch(&zk_shared, "true");
    atexit(end_zk);
  }
  if (!there) no_server("ZooKeeper", access(CLASSES, R_OK) == 0);
  return there ? zk_shared.url : NULL;
}

static inline kv_store *open_zk(const char *url, const char *rest) {
  kv_register(&kv_driver_zookeeper, NULL);
  return open_url(url, rest);
}

#endif
