/*
 * consul_server.h - a real Consul for tests in C: in a folder and on ports of its own. What asks a store is that of
 * etcd_server.h.
 */
#ifndef KV_CONSUL_SERVER_H
#define KV_CONSUL_SERVER_H

#include "etcd_server.h"

extern const struct kv_driver kv_driver_consul;

static struct server consul_server;

static inline void end_consul(void) {
  server_end(&consul_server);
}

/* Where scripts/get-consul finds one; the tests run in the project's folder. */
static inline bool consul_program(char *path, size_t size) {
  FILE *from = popen("scripts/get-consul", "r");
  bool good = from && fgets(path, (int)size, from);
  if (from && pclose(from) != 0) good = false;
  if (good) path[strcspn(path, "\n")] = '\0';
  return good;
}

static inline bool consul_start(char *program) {
  struct server *server = &consul_server;
  char http[40], peer[40], serf[40], file[800], log[800];
  if (!make_folder(server->dir, sizeof server->dir)) return false;
  server->port = free_port();
  snprintf(server->url, sizeof server->url, "consul://127.0.0.1:%d", server->port);
  snprintf(http, sizeof http, "-http-port=%d", server->port);
  snprintf(peer, sizeof peer, "-server-port=%d", free_port());
  snprintf(serf, sizeof serf, "-serf-lan-port=%d", free_port());
  snprintf(file, sizeof file, "%s/config.json", server->dir);
  snprintf(log, sizeof log, "%s/log", server->dir);
  FILE *to = fopen(file, "w");
  if (!to) return false;
  fputs("{\"session_ttl_min\": \"1s\", \"disable_update_check\": true, \"performance\": {\"raft_multiplier\": 1}}", to);
  fclose(to);
  char *arguments[] = {program,
                       "agent",
                       "-dev",
                       "-bind=127.0.0.1",
                       http,
                       peer,
                       serf,
                       "-serf-wan-port=-1",
                       "-dns-port=-1",
                       "-grpc-port=-1",
                       "-config-file",
                       file,
                       NULL};
  server->pid = spawn(arguments, log);
  return server->pid > 0;
}

/* Until it has a leader. */
static inline bool consul_await(void) {
  for (double until = now() + START_SECONDS; now() < until; nap(0.05)) {
    kv_store *store = open_url(consul_server.url, NULL);
    kv_code code = store ? ping(store, 2) : KV_FAILED;
    if (store) close_store(store);
    if (server_ended(&consul_server)) return false;
    if (code == KV_OK) return true;
  }
  return false;
}

/* NULL: there is none on this machine. */
static inline const char *consul_url(void) {
  static bool tried, installed, there;
  if (!tried) {
    char program[500];
    tried = true;
    kv_register(&kv_driver_consul, NULL);
    installed = consul_program(program, sizeof program);
    there = installed && consul_start(program) && consul_await();
    atexit(end_consul);
  }
  if (!there) no_server("Consul", installed);
  return there ? consul_server.url : NULL;
}

#define WITH_CONSUL(store, rest)                        \
  const char *url_of_##store = consul_url();            \
  if (!url_of_##store) return;                          \
  kv_store *store = open_url(url_of_##store, rest);     \
  REQUIRE(store != NULL)

#endif
