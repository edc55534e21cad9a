/*
 * proxy.h - starts spec/support/proxy.c, a proxy that misbehaves when told to, for tests in C. Includes etcd_server.h.
 */
#ifndef KV_PROXY_H
#define KV_PROXY_H

#include "etcd_server.h"

struct proxy {
  pid_t pid;
  int port;
  FILE *to, *from;
  char url[100];
};

static inline bool proxy_start(struct proxy *proxy, const char *scheme, int target) {
  char path[500], argument[20];
  int in[2], out[2];
  ssize_t size = readlink("/proc/self/exe", path, sizeof path - 40);
  if (size < 0 || pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) return false;
  path[size] = '\0';
  strcpy(strrchr(path, '/'), "/../support/proxy");
  snprintf(argument, sizeof argument, "%d", target);
  proxy->pid = fork();
  if (proxy->pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(in[0], 0);
    dup2(out[1], 1);
    execl(path, path, argument, (char *)NULL);
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  proxy->to = fdopen(in[1], "w");
  proxy->from = fdopen(out[0], "r");
  char line[40] = "";
  if (!fgets(line, sizeof line, proxy->from)) return false;
  proxy->port = atoi(line);
  snprintf(proxy->url, sizeof proxy->url, "%s://127.0.0.1:%d", scheme, proxy->port);
  return proxy->port > 0;
}

static inline long tell(struct proxy *proxy, const char *command) {
  char line[100] = "";
  fprintf(proxy->to, "%s\n", command);
  fflush(proxy->to);
  CHECK(fgets(line, sizeof line, proxy->from) != NULL);
  if (strncmp(line, "ok", 2) == 0) return 0;
  char *end;
  long number = strtol(line, &end, 10);
  CHECK(end > line);
  return number;
}

static inline void proxy_stop(struct proxy *proxy) {
  fclose(proxy->to);
  fclose(proxy->from);
  kill(proxy->pid, SIGKILL);
  waitpid(proxy->pid, NULL, 0);
}

#endif
