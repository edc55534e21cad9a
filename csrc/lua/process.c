/*
 * process.c - kv.process: child processes and terminals for the command line (kv/process.so, not part of kv/core.so).
 *
 * `kv lock NAME -- COMMAND` has to start a command without a shell, wait for it and for the lock at once, pass signals
 * on and end the command when the lock is lost. Plain Lua can do none of that. One poll() waits for the child (a pidfd,
 * so that no SIGCHLD handler is needed and nobody else's children are touched) and for signals (a handler that writes a
 * byte into a pipe). Nothing here knows of stores; nothing here is loaded by require("kv").
 *
 *   spawn(argv [, {env = {NAME = VALUE}}]) -> child | nil, message, errno name ("ENOENT")
 *   child.pid
 *   child:wait([seconds]) -> "exit", status | "signal", number | "caught", number, from_terminal | nil, "timeout"
 *   child:kill(number) -> true | nil, message      child:close()
 *   catch(numbers)           from now on these signals are reported by wait() and caught()
 *   caught() -> number, from_terminal | nil
 *   reset(numbers)           the system's own behaviour for these signals
 *   signal(name) -> number   isatty(fd)   broken(fd): has the reader of this pipe or socket gone?
 *   columns(fd) -> width of this terminal | nil
 *   replaceable(path) -> the name, behind all links, of a file that is there or could be; nil: a device, a pipe
 *   clock() -> seconds of a steady clock   sleep(seconds)   getpid()   hostname()
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <lauxlib.h>
#include <lua.h>

#define CHILD_NAME "kv.process.child"
#define ARGUMENTS_MAX 100000
#define SLICE_MS 50 /* how often a child is looked at where the system has no pidfd */

extern char **environ;

struct child {
  pid_t pid; /* 0: reaped, or never there */
  int fd;    /* pidfd, or -1 */
};

/* ------------------------------------------------------------------ time */

static double clock_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Milliseconds from now to `until` for poll(), rounded up. */
static int remaining_ms(double until) {
  if (isinf(until)) return -1;
  double left = ceil((until - clock_now()) * 1000);
  if (left <= 0) return 0;
  return left > 3600000 ? 3600000 : (int)left;
}

static double until_from(lua_State *L, int index) {
  if (lua_isnoneornil(L, index)) return INFINITY;
  return clock_now() + luaL_checknumber(L, index);
}

/* ------------------------------------------------------------------ signals */

static int signal_pipe[2] = {-1, -1};

/* A signal travels as two bytes: number, and whether the terminal sent it (to its whole foreground group at once). */
static void on_signal(int number, siginfo_t *info, void *context) {
  (void)context;
  int saved = errno;
  unsigned char note[2] = {(unsigned char)number, info->si_code > 0};
  ssize_t written = write(signal_pipe[1], note, sizeof note); /* a full pipe holds enough of them */
  (void)written;
  errno = saved;
}

static bool next_signal(unsigned char note[2]) {
  return signal_pipe[0] >= 0 && read(signal_pipe[0], note, 2) == 2;
}

static bool add_signals(lua_State *L, int index, sigset_t *set) {
  luaL_checktype(L, index, LUA_TTABLE);
  sigemptyset(set);
  for (int i = 1;; i++) {
    lua_rawgeti(L, index, i);
    if (lua_isnil(L, -1)) break;
    if (!lua_isnumber(L, -1) || sigaddset(set, (int)lua_tointeger(L, -1)) != 0) return false;
    lua_pop(L, 1);
  }
  lua_pop(L, 1);
  return true;
}

static void handle_all(const sigset_t *set, const struct sigaction *action) {
  for (int number = 1; number < 32; number++)
    if (sigismember(set, number) == 1) sigaction(number, action, NULL);
}

static int process_catch(lua_State *L) {
  sigset_t set;
  if (!add_signals(L, 1, &set)) return luaL_argerror(L, 1, "signal numbers expected");
  if (signal_pipe[0] < 0 && pipe2(signal_pipe, O_CLOEXEC | O_NONBLOCK) != 0) {
    return luaL_error(L, "no pipe for signals: %s", strerror(errno));
  }
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigfillset(&action.sa_mask);
  handle_all(&set, &action);
  return 0;
}

static int process_reset(lua_State *L) {
  sigset_t set;
  if (!add_signals(L, 1, &set)) return luaL_argerror(L, 1, "signal numbers expected");
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = SIG_DFL;
  handle_all(&set, &action);
  return 0;
}

static int process_caught(lua_State *L) {
  unsigned char note[2];
  if (!next_signal(note)) return 0;
  lua_pushinteger(L, note[0]);
  lua_pushboolean(L, note[1]);
  return 2;
}

static int process_signal(lua_State *L) {
  static const struct {
    const char *name;
    int number;
  } names[] = {{"HUP", SIGHUP},   {"INT", SIGINT},   {"QUIT", SIGQUIT}, {"KILL", SIGKILL}, {"USR1", SIGUSR1},
               {"USR2", SIGUSR2}, {"PIPE", SIGPIPE}, {"TERM", SIGTERM}, {"CONT", SIGCONT}, {"STOP", SIGSTOP}};
  const char *name = luaL_checkstring(L, 1);
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if (strcmp(name, names[i].name) == 0) {
      lua_pushinteger(L, names[i].number);
      return 1;
    }
  }
  return luaL_argerror(L, 1, "no such signal");
}

/* ------------------------------------------------------------------ spawn */

static int push_errno(lua_State *L, const char *what, int code) {
  lua_pushnil(L);
  lua_pushfstring(L, "%s: %s", what, strerror(code));
  lua_pushstring(L, code == ENOENT ? "ENOENT" : code == EACCES ? "EACCES" : "");
  return 3;
}

/* argv from the table at `index`; the strings stay owned by Lua. The array is a userdata left on the stack. */
static char **push_argv(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TTABLE);
  size_t count = 0;
  for (;; count++) {
    lua_rawgeti(L, index, (int)count + 1);
    bool end = lua_isnil(L, -1), text = lua_type(L, -1) == LUA_TSTRING;
    lua_pop(L, 1);
    if (end) break;
    if (!text || count >= ARGUMENTS_MAX) luaL_argerror(L, index, "array of strings expected");
  }
  if (count == 0) luaL_argerror(L, index, "the command is missing");
  char **argv = lua_newuserdata(L, (count + 1) * sizeof *argv);
  for (size_t i = 0; i < count; i++) {
    lua_rawgeti(L, index, (int)i + 1);
    argv[i] = (char *)(uintptr_t)lua_tostring(L, -1); /* posix_spawn does not write to it */
    lua_pop(L, 1);
  }
  argv[count] = NULL;
  return argv;
}

/* Does "NAME=value" at `entry` set a name that the table at `index` sets? */
static bool is_replaced(lua_State *L, int index, const char *entry) {
  const char *equals = strchr(entry, '=');
  if (!equals) return false;
  lua_pushlstring(L, entry, (size_t)(equals - entry));
  lua_rawget(L, index);
  bool replaced = !lua_isnil(L, -1);
  lua_pop(L, 1);
  return replaced;
}

/* The environment with the additions of the table at `index`. Leaves an array and a table of its strings on the
 * stack. */
static char **push_environment(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TTABLE);
  size_t count = 0;
  while (environ && environ[count]) count++;
  lua_newtable(L);
  int strings = lua_gettop(L), added = 0;
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
    if (lua_type(L, -2) != LUA_TSTRING || !lua_isstring(L, -1)) luaL_argerror(L, index, "env takes names and strings");
    lua_pushfstring(L, "%s=%s", lua_tostring(L, -2), lua_tostring(L, -1));
    lua_rawseti(L, strings, ++added);
  }
  char **result = lua_newuserdata(L, (count + (size_t)added + 1) * sizeof *result);
  size_t kept = 0;
  for (size_t i = 0; i < count; i++)
    if (!is_replaced(L, index, environ[i])) result[kept++] = environ[i];
  for (int i = 1; i <= added; i++) {
    lua_rawgeti(L, strings, i);
    result[kept++] = (char *)(uintptr_t)lua_tostring(L, -1); /* kept alive by the table of strings */
    lua_pop(L, 1);
  }
  result[kept] = NULL;
  return result;
}

/* What we catch or ignore must not be ignored or blocked in the child. */
static int prepare_attributes(posix_spawnattr_t *attributes) {
  sigset_t none, normal;
  sigemptyset(&none);
  sigemptyset(&normal);
  int numbers[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGUSR1, SIGUSR2};
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    struct sigaction now;
    /* What our caller ignores (nohup) stays ignored. */
    if (sigaction(numbers[i], NULL, &now) == 0 && now.sa_handler != SIG_IGN) sigaddset(&normal, numbers[i]);
  }
  int code = posix_spawnattr_setsigmask(attributes, &none);
  if (!code) code = posix_spawnattr_setsigdefault(attributes, &normal);
  if (!code) code = posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  return code;
}

static int process_spawn(lua_State *L) {
  lua_settop(L, 2);
  struct child *child = lua_newuserdata(L, sizeof *child);
  child->pid = 0;
  child->fd = -1;
  luaL_getmetatable(L, CHILD_NAME);
  lua_setmetatable(L, -2);
  char **argv = push_argv(L, 1), **environment = environ;
  if (!lua_isnil(L, 2)) {
    luaL_checktype(L, 2, LUA_TTABLE);
    lua_getfield(L, 2, "env");
    if (!lua_isnil(L, -1)) environment = push_environment(L, lua_gettop(L));
  }
  posix_spawnattr_t attributes;
  int code = posix_spawnattr_init(&attributes);
  if (code) return push_errno(L, "spawn", code);
  code = prepare_attributes(&attributes);
  pid_t pid = 0;
  if (!code) code = posix_spawnp(&pid, argv[0], NULL, &attributes, argv, environment);
  posix_spawnattr_destroy(&attributes);
  if (code) return push_errno(L, argv[0], code);
  child->pid = pid;
#ifdef SYS_pidfd_open
  child->fd = (int)syscall(SYS_pidfd_open, pid, 0); /* close-on-exec by itself; -1 on kernels before 5.3 */
#endif
  lua_pushvalue(L, 3);
  return 1;
}

/* ------------------------------------------------------------------ children */

static struct child *check_child(lua_State *L) { return luaL_checkudata(L, 1, CHILD_NAME); }

static void forget(struct child *child) {
  if (child->fd >= 0) close(child->fd);
  child->fd = -1;
  child->pid = 0;
}

static int push_status(lua_State *L, int status) {
  if (WIFSIGNALED(status)) {
    lua_pushliteral(L, "signal");
    lua_pushinteger(L, WTERMSIG(status));
  } else {
    lua_pushliteral(L, "exit");
    lua_pushinteger(L, WIFEXITED(status) ? WEXITSTATUS(status) : 1);
  }
  return 2;
}

static int child_wait(lua_State *L) {
  struct child *child = check_child(L);
  double until = until_from(L, 2);
  for (;;) {
    int status;
    if (child->pid == 0) return luaL_error(L, "this process was waited for already");
    pid_t found = waitpid(child->pid, &status, WNOHANG);
    if (found == child->pid || (found < 0 && errno == ECHILD)) { /* ECHILD: somebody ignores SIGCHLD; status is lost */
      if (found < 0) status = 0;
      forget(child);
      return push_status(L, status);
    }
    unsigned char note[2];
    if (next_signal(note)) {
      lua_pushliteral(L, "caught");
      lua_pushinteger(L, note[0]);
      lua_pushboolean(L, note[1]);
      return 3;
    }
    int wait = remaining_ms(until);
    if (wait == 0) break;
    if (child->fd < 0 && (wait < 0 || wait > SLICE_MS)) wait = SLICE_MS;
    struct pollfd polled[2] = {{.fd = signal_pipe[0], .events = POLLIN}, {.fd = child->fd, .events = POLLIN}};
    poll(polled, 2, wait); /* poll() passes over negative descriptors */
  }
  lua_pushnil(L);
  lua_pushliteral(L, "timeout");
  return 2;
}

static int child_kill(lua_State *L) {
  struct child *child = check_child(L);
  int number = (int)luaL_checkinteger(L, 2);
  int code = child->pid == 0 ? ESRCH : kill(child->pid, number) == 0 ? 0 : errno;
  if (code) return push_errno(L, "kill", code);
  lua_pushboolean(L, 1);
  return 1;
}

/* Forgetting a child does not end it; it is reaped if it has ended. */
static int child_close(lua_State *L) {
  struct child *child = check_child(L);
  if (child->pid != 0) waitpid(child->pid, NULL, WNOHANG);
  forget(child);
  return 0;
}

static int child_index(lua_State *L) {
  struct child *child = check_child(L);
  const char *name = lua_tostring(L, 2);
  if (name && strcmp(name, "pid") == 0) {
    if (child->pid == 0) return 0;
    lua_pushinteger(L, child->pid);
    return 1;
  }
  lua_pushvalue(L, 2);
  lua_rawget(L, lua_upvalueindex(1));
  return 1;
}

/* ------------------------------------------------------------------ terminals and the rest */

static int process_isatty(lua_State *L) {
  lua_pushboolean(L, isatty((int)luaL_checkinteger(L, 1)));
  return 1;
}

static int process_columns(lua_State *L) {
  struct winsize size;
  memset(&size, 0, sizeof size);
  if (ioctl((int)luaL_checkinteger(L, 1), TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 0;
  lua_pushinteger(L, size.ws_col);
  return 1;
}

static int process_broken(lua_State *L) {
  struct pollfd polled = {.fd = (int)luaL_checkinteger(L, 1), .events = 0};
  lua_pushboolean(L, poll(&polled, 1, 0) == 1 && (polled.revents & (POLLERR | POLLNVAL)));
  return 1;
}

static int process_replaceable(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  char real[PATH_MAX];
  struct stat about;
  if (stat(path, &about) == 0 && !S_ISREG(about.st_mode)) return 0;
  lua_pushstring(L, realpath(path, real) ? real : path);
  return 1;
}

static int process_clock(lua_State *L) {
  lua_pushnumber(L, clock_now());
  return 1;
}

static int process_sleep(lua_State *L) {
  double until = until_from(L, 1);
  for (int wait = remaining_ms(until); wait != 0; wait = remaining_ms(until)) poll(NULL, 0, wait);
  return 0;
}

static int process_getpid(lua_State *L) {
  lua_pushinteger(L, getpid());
  return 1;
}

static int process_hostname(lua_State *L) {
  char name[256] = "";
  if (gethostname(name, sizeof name - 1) != 0) name[0] = '\0';
  lua_pushstring(L, name);
  return 1;
}

static void set_functions(lua_State *L, const luaL_Reg *functions) {
  for (; functions->name; functions++) {
    lua_pushcfunction(L, functions->func);
    lua_setfield(L, -2, functions->name);
  }
}

__attribute__((visibility("default"))) int luaopen_kv_process(lua_State *L);

int luaopen_kv_process(lua_State *L) {
  static const luaL_Reg methods[] = {{"wait", child_wait}, {"kill", child_kill}, {"close", child_close}, {NULL, NULL}};
  static const luaL_Reg functions[] = {
      {"spawn", process_spawn},   {"catch", process_catch},   {"caught", process_caught},   {"reset", process_reset},
      {"signal", process_signal}, {"isatty", process_isatty}, {"broken", process_broken},   {"clock", process_clock},
      {"columns", process_columns}, {"replaceable", process_replaceable},
      {"sleep", process_sleep},   {"getpid", process_getpid}, {"hostname", process_hostname}, {NULL, NULL}};
  luaL_newmetatable(L, CHILD_NAME);
  lua_newtable(L);
  set_functions(L, methods);
  lua_pushcclosure(L, child_index, 1);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, child_close);
  lua_setfield(L, -2, "__gc");
  lua_pop(L, 1);
  lua_newtable(L);
  set_functions(L, functions);
  return 1;
}
