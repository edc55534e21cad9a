/*
 * native.c - what the specs need of the system and plain Lua lacks: processes, free ports, temporary folders, a clock,
 * fork.
 *
 * A process made by spawn() is a userdata: it is killed when it is collected and when the test program ends, so that no
 * server outlives a crashed run. Nothing here knows kv. The module runs on every Lua from 5.1 and is loaded as
 * spec.native.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "free_port.h"

#include <lauxlib.h>
#include <lua.h>

#define PROCESS "spec.process"
#define ARGUMENTS_MAX 256
#define LINE_MAX_BYTES 65536

struct process {
  pid_t pid;
  bool reaped;
  int status;
  int in, out; /* our ends of its pipes, or -1 */
  size_t size; /* bytes read from `out` that were not asked for yet */
  char data[LINE_MAX_BYTES];
};

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void nap(double seconds) {
  if (!(seconds > 0)) return;
  struct timespec left = {.tv_sec = (time_t)seconds};
  left.tv_nsec = (long)((seconds - (double)left.tv_sec) * 1e9);
  while (nanosleep(&left, &left) < 0 && errno == EINTR) {
  }
}

static int failed(lua_State *L, const char *what) {
  lua_pushnil(L);
  lua_pushfstring(L, "%s: %s", what, strerror(errno));
  return 2;
}

/* ------------------------------------------------------------------ processes */

static struct process *process_of(lua_State *L) { return luaL_checkudata(L, 1, PROCESS); }

static void close_pipe(int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

/* Has it ended? Waits for it at most `seconds`, negative: for ever. */
static bool process_ended(struct process *process, double seconds) {
  if (process->reaped) return true;
  double until = now() + seconds;
  int fd = (int)syscall(SYS_pidfd_open, process->pid, 0);
  for (;;) {
    pid_t got = waitpid(process->pid, &process->status, seconds < 0 && fd < 0 ? 0 : WNOHANG);
    if (got == process->pid || (got < 0 && errno == ECHILD)) {
      process->reaped = true;
      break;
    }
    double left = until - now();
    if (seconds >= 0 && left <= 0) break;
    if (fd >= 0) {
      struct pollfd poller = {.fd = fd, .events = POLLIN};
      poll(&poller, 1, seconds < 0 ? -1 : (int)(left * 1000) + 1);
    } else {
      nap(0.005);
    }
  }
  if (fd >= 0) close(fd);
  return process->reaped;
}

static int process_gc(lua_State *L) {
  struct process *process = process_of(L);
  close_pipe(&process->in);
  close_pipe(&process->out);
  if (process->pid > 0 && !process->reaped) {
    kill(process->pid, SIGKILL);
    process_ended(process, -1);
  }
  return 0;
}

/* process:wait([seconds]) -> "exit"|"signal", number; nil when it still runs */
static int process_wait(lua_State *L) {
  struct process *process = process_of(L);
  if (!process_ended(process, luaL_optnumber(L, 2, -1))) return 0;
  bool signalled = WIFSIGNALED(process->status);
  lua_pushstring(L, signalled ? "signal" : "exit");
  lua_pushinteger(L, signalled ? WTERMSIG(process->status) : WEXITSTATUS(process->status));
  return 2;
}

/* The state of a thread, as the system shows it: T is stopped. '\0': it is gone. */
static char thread_state(pid_t pid, const char *thread) {
  char path[320], text[256];
  snprintf(path, sizeof path, "/proc/%d/task/%s/stat", (int)pid, thread);
  FILE *file = fopen(path, "re");
  if (!file) return '\0';
  size_t size = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[size] = '\0';
  const char *behind_name = strrchr(text, ')');
  return behind_name && behind_name[1] == ' ' ? behind_name[2] : '\0';
}

static bool all_stopped(pid_t pid) {
  char path[40];
  bool stopped = true;
  snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
  DIR *threads = opendir(path);
  if (!threads) return true;
  for (const struct dirent *entry; stopped && (entry = readdir(threads));) {
    char state = entry->d_name[0] == '.' ? '\0' : thread_state(pid, entry->d_name);
    stopped = !state || strchr("TtZX", state);
  }
  closedir(threads);
  return stopped;
}

/* process:kill([signal]) -> was it running? After "STOP" it stands still: the signal alone begins to work when one of
 * its threads gets a processor, and the others go on until then. */
static int process_kill(lua_State *L) {
  static const char *const names[] = {"TERM", "KILL", "STOP", "CONT", "INT", "HUP", "USR1", "QUIT", NULL};
  static const int numbers[] = {SIGTERM, SIGKILL, SIGSTOP, SIGCONT, SIGINT, SIGHUP, SIGUSR1, SIGQUIT};
  struct process *process = process_of(L);
  int number = numbers[luaL_checkoption(L, 2, "TERM", names)];
  bool sent = !process_ended(process, 0) && kill(process->pid, number) == 0;
  while (sent && number == SIGSTOP && !all_stopped(process->pid))
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  lua_pushboolean(L, sent);
  return 1;
}

static int process_running(lua_State *L) {
  lua_pushboolean(L, !process_ended(process_of(L), 0));
  return 1;
}

/* The number of the socket that listens on a port, as the system shows it, in one of its tables; 0: none. */
static unsigned long listener_in(const char *table, unsigned port) {
  char line[512];
  unsigned long found = 0;
  FILE *file = fopen(table, "re");
  while (file && !found && fgets(line, sizeof line, file)) {
    unsigned at, state;
    unsigned long inode;
    if (sscanf(line, " %*d: %*[^:]:%x %*[^:]:%*x %x %*s %*s %*s %*d %*d %lu", &at, &state, &inode) == 3 && at == port &&
        state == 0x0a)
      found = inode;
  }
  if (file) fclose(file);
  return found;
}

static bool has_socket(pid_t pid, unsigned long inode) {
  char path[300], wanted[40], target[40];
  bool found = false;
  snprintf(wanted, sizeof wanted, "socket:[%lu]", inode);
  snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
  DIR *folder = opendir(path);
  for (const struct dirent *entry; folder && !found && (entry = readdir(folder));) {
    snprintf(path, sizeof path, "/proc/%d/fd/%s", (int)pid, entry->d_name);
    ssize_t size = readlink(path, target, sizeof target - 1);
    target[size > 0 ? size : 0] = '\0';
    found = strcmp(target, wanted) == 0;
  }
  if (folder) closedir(folder);
  return found;
}

/* process:listens(port) -> is it this one, and no other, that accepts connections there? */
static int process_listens(lua_State *L) {
  struct process *process = process_of(L);
  unsigned port = (unsigned)luaL_checkinteger(L, 2);
  unsigned long inode = listener_in("/proc/net/tcp", port);
  if (!inode) inode = listener_in("/proc/net/tcp6", port);
  lua_pushboolean(L, inode && !process_ended(process, 0) && has_socket(process->pid, inode));
  return 1;
}

static int process_pid(lua_State *L) {
  lua_pushinteger(L, process_of(L)->pid);
  return 1;
}

static int process_write(lua_State *L) {
  struct process *process = process_of(L);
  size_t size;
  const char *data = luaL_checklstring(L, 2, &size);
  while (size > 0) {
    ssize_t done = write(process->in, data, size);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return failed(L, "write");
    data += done;
    size -= (size_t)done;
  }
  lua_pushboolean(L, 1);
  return 1;
}

static int process_close_input(lua_State *L) {
  close_pipe(&process_of(L)->in);
  return 0;
}

/* Push the first `size` bytes as a line and drop them with what ends it. */
static int take_line(lua_State *L, struct process *process, size_t size, size_t end) {
  lua_pushlstring(L, process->data, size);
  process->size -= size + end;
  memmove(process->data, process->data + size + end, process->size);
  return 1;
}

/* process:line([seconds]) -> the next line of its output; nil, "timeout" or "eof" */
static int process_line(lua_State *L) {
  struct process *process = process_of(L);
  double seconds = luaL_optnumber(L, 2, 10), until = now() + seconds;
  for (;;) {
    char *end = memchr(process->data, '\n', process->size);
    if (end) return take_line(L, process, (size_t)(end - process->data), 1);
    if (process->size == sizeof process->data) return take_line(L, process, process->size, 0);
    double left = until - now();
    struct pollfd poller = {.fd = process->out, .events = POLLIN};
    int ready = poll(&poller, 1, left < 0 ? 0 : (int)(left * 1000) + 1);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      lua_pushnil(L);
      lua_pushstring(L, "timeout");
      return 2;
    }
    ssize_t got = read(process->out, process->data + process->size, sizeof process->data - process->size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      if (process->size > 0) return take_line(L, process, process->size, 0);
      lua_pushnil(L);
      lua_pushstring(L, "eof");
      return 2;
    }
    process->size += (size_t)got;
  }
}

/* What the child does between fork and exec: nothing that could wait for a thread of the parent. */
static void run_child(char **arguments, char **environment, int in, int out, int err) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  signal(SIGPIPE, SIG_DFL);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (in >= 0) dup2(in, 0);
  if (out >= 0) dup2(out, 1);
  if (err >= 0) dup2(err, 2);
  if (environment)
    for (; *environment; environment++) putenv(*environment);
  execvp(arguments[0], arguments);
  _exit(127);
}

/* A file for the child's output named in the table at 1, or -1. */
static int output_field(lua_State *L, const char *name) {
  lua_getfield(L, 1, name);
  const char *path = lua_tostring(L, -1);
  int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
  lua_pop(L, 1);
  return fd;
}

static size_t strings_of(lua_State *L, int table, char **list) {
  size_t count = 0;
  for (; count < ARGUMENTS_MAX - 1; count++) {
    lua_rawgeti(L, table, (int)count + 1);
    list[count] = (char *)(uintptr_t)lua_tostring(L, -1); /* stays alive: the table holds it */
    lua_pop(L, 1);
    if (!list[count]) break;
  }
  list[count] = NULL;
  return count;
}

/*
 * spawn{program, argument..., stdout=file, stderr=file, pipe=true, env={"NAME=value"...}} -> process
 * pipe: its input and output are ours, by :write() and :line().
 */
static int spawn(lua_State *L) {
  char *arguments[ARGUMENTS_MAX], *environment[ARGUMENTS_MAX];
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  if (strings_of(L, 1, arguments) == 0) return luaL_argerror(L, 1, "a program is needed");
  lua_getfield(L, 1, "env");
  bool has_environment = lua_istable(L, -1);
  if (has_environment) strings_of(L, lua_gettop(L), environment);
  lua_getfield(L, 1, "pipe");
  bool piped = lua_toboolean(L, -1);

  struct process *process = lua_newuserdata(L, sizeof *process);
  *process = (struct process){.pid = -1, .in = -1, .out = -1};
  luaL_getmetatable(L, PROCESS);
  lua_setmetatable(L, -2);
  int to[2] = {-1, -1}, from[2] = {-1, -1};
  if (piped && (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0)) return failed(L, "pipe");
  process->in = to[1];
  process->out = from[0];
  int in = piped ? to[0] : open("/dev/null", O_RDONLY | O_CLOEXEC);
  int out = piped ? from[1] : output_field(L, "stdout");
  int err = output_field(L, "stderr");
  pid_t pid = fork();
  if (pid == 0) run_child(arguments, has_environment ? environment : NULL, in, out, err);
  if (in >= 0) close(in);
  if (out >= 0) close(out);
  if (err >= 0) close(err);
  if (pid < 0) return failed(L, "fork");
  process->pid = pid;
  return 1;
}

/* ------------------------------------------------------------------ the rest */

static int lua_now(lua_State *L) {
  lua_pushnumber(L, now());
  return 1;
}

static int lua_sleep(lua_State *L) {
  nap(luaL_checknumber(L, 1));
  return 0;
}

/* tempdir() -> a new private folder */
static int tempdir(lua_State *L) {
  const char *base = getenv("TMPDIR");
  lua_pushfstring(L, "%s/kv-spec-XXXXXX", base && *base ? base : "/tmp");
  char path[512];
  size_t size;
  const char *pattern = lua_tolstring(L, -1, &size);
  if (size >= sizeof path) return luaL_error(L, "TMPDIR is too long");
  memcpy(path, pattern, size + 1);
  if (!mkdtemp(path)) return failed(L, path);
  lua_pushstring(L, path);
  return 1;
}

static struct sockaddr_in loopback(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

/* port() -> a TCP port of 127.0.0.1 that was free a moment ago */
static int port(lua_State *L) {
  int found = free_port();
  if (!found) return failed(L, "port");
  lua_pushinteger(L, found);
  return 1;
}

/* listening(port) -> does something accept connections there? */
static int listening(lua_State *L) {
  struct sockaddr_in address = loopback((int)luaL_checkinteger(L, 1));
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return failed(L, "socket");
  lua_pushboolean(L, connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
  close(fd);
  return 1;
}

/* exchange(port, text, seconds) -> what is answered until the other side closes; nil when it cannot be reached.
 * `seconds` is for each silence. */
static int exchange(lua_State *L) {
  struct sockaddr_in address = loopback((int)luaL_checkinteger(L, 1));
  size_t size;
  const char *text = luaL_checklstring(L, 2, &size);
  double seconds = luaL_checknumber(L, 3);
  struct timeval limit = {(time_t)seconds, (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6)};
  char piece[4096];
  luaL_Buffer answer;
  ssize_t part;
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return failed(L, "socket");
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0 ||
      send(fd, text, size, MSG_NOSIGNAL) != (ssize_t)size) {
    close(fd);
    lua_pushnil(L);
    return 1;
  }
  luaL_buffinit(L, &answer);
  while ((part = recv(fd, piece, sizeof piece, 0)) > 0) luaL_addlstring(&answer, piece, (size_t)part);
  close(fd);
  luaL_pushresult(&answer);
  return 1;
}

static int lua_fork(lua_State *L) {
  pid_t pid = fork();
  if (pid < 0) return failed(L, "fork");
  lua_pushinteger(L, pid);
  return 1;
}

/* Ends the process at once: a child after fork() must not run the test program's end. */
static int lua_exit(lua_State *L) { _exit((int)luaL_optinteger(L, 1, 0)); }

/* reap(pid) -> exit status of a forked child, or nil when a signal ended it */
static int reap(lua_State *L) {
  int status = 0;
  pid_t pid = (pid_t)luaL_checkinteger(L, 1);
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status)) return 0;
  lua_pushinteger(L, WEXITSTATUS(status));
  return 1;
}

/* setenv(name[, value]): without a value it is removed */
static int lua_setenv(lua_State *L) {
  const char *name = luaL_checkstring(L, 1), *value = luaL_optstring(L, 2, NULL);
  if (value) {
    setenv(name, value, 1);
  } else {
    unsetenv(name);
  }
  return 0;
}

/* poll(fd, seconds) -> is it readable? */
static int lua_poll(lua_State *L) {
  struct pollfd poller = {.fd = (int)luaL_checkinteger(L, 1), .events = POLLIN};
  int ready = poll(&poller, 1, (int)(luaL_optnumber(L, 2, 0) * 1000));
  lua_pushboolean(L, ready > 0);
  return 1;
}

static void set_functions(lua_State *L, const luaL_Reg *functions) {
  for (; functions->name; functions++) {
    lua_pushcfunction(L, functions->func);
    lua_setfield(L, -2, functions->name);
  }
}

__attribute__((visibility("default"))) int luaopen_spec_native(lua_State *L);

int luaopen_spec_native(lua_State *L) {
  static const luaL_Reg methods[] = {
      {"wait", process_wait}, {"kill", process_kill},   {"running", process_running},         {"pid", process_pid},
      {"line", process_line}, {"write", process_write}, {"close_input", process_close_input}, {"__gc", process_gc},
      {"listens", process_listens},
      {NULL, NULL}};
  static const luaL_Reg functions[] = {
      {"spawn", spawn},         {"now", lua_now},   {"sleep", lua_sleep}, {"tempdir", tempdir}, {"port", port},
      {"listening", listening}, {"fork", lua_fork}, {"exit", lua_exit},   {"reap", reap},       {"setenv", lua_setenv},
      {"poll", lua_poll},       {"exchange", exchange}, {NULL, NULL}};
  signal(SIGPIPE, SIG_IGN);
  luaL_newmetatable(L, PROCESS);
  lua_pushvalue(L, -1);
  lua_setfield(L, -2, "__index");
  set_functions(L, methods);
  lua_pop(L, 1);
  lua_newtable(L);
  set_functions(L, functions);
  return 1;
}
