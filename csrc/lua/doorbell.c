/*
 * doorbell.c - a socket that tells of replies, for hosts that can read from sockets but not poll a descriptor:
 * OpenResty.
 *
 * Their sockets can only connect. So we listen, at a path in a private folder; the host connects; we take the
 * connection and remove the path. The queue sends a byte whenever its descriptor becomes readable.
 */
#include "binding.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct kvl_doorbell {
  int listener;
  char folder[sizeof ((struct sockaddr_un *)0)->sun_path];
  struct sockaddr_un address;
};

static void remove_path(struct kvl_doorbell *bell) {
  if (bell->listener >= 0) {
    close(bell->listener);
    unlink(bell->address.sun_path);
  }
  if (bell->folder[0]) rmdir(bell->folder);
}

void kvl_doorbell_free(struct kvl_state *state) {
  if (!state->doorbell) return;
  remove_path(state->doorbell);
  free(state->doorbell);
  state->doorbell = NULL;
}

static int failed(lua_State *L, struct kvl_state *state, const char *what, const char *folder) {
  kv_error error = {.code = KV_FAILED};
  int why = errno;
  snprintf(error.message, sizeof error.message, "%s in %.200s (socket_dir): %s", what, folder, strerror(why));
  kvl_doorbell_free(state);
  return kvl_fail(L, &error);
}

/* A folder of our own in `base`: nobody else can connect. False with errno. */
static bool make_folder(struct kvl_doorbell *bell, const char *base) {
  char name[sizeof bell->folder];
  int length = snprintf(name, sizeof name, "%s/kv-XXXXXX", base);
  if (length < 0 || (size_t)length + sizeof "/bell" > sizeof bell->address.sun_path) {
    errno = ENAMETOOLONG;
    return false;
  }
  if (mkdir(base, 0700) != 0 && errno != EEXIST) return false;
  if (!mkdtemp(name)) return false;
  memcpy(bell->folder, name, (size_t)length + 1);
  bell->address.sun_family = AF_UNIX;
  memcpy(bell->address.sun_path, name, (size_t)length);
  memcpy(bell->address.sun_path + length, "/bell", sizeof "/bell");
  return true;
}

static bool start_listening(struct kvl_doorbell *bell) {
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return false;
  /* bind() follows the descriptor's own mode, so that there is no moment at which others could connect. */
  if (fchmod(fd, 0600) == 0 && bind(fd, (struct sockaddr *)&bell->address, sizeof bell->address) == 0) {
    bell->listener = fd;
    return listen(fd, 1) == 0;
  }
  int why = errno;
  close(fd);
  errno = why;
  return false;
}

/* bell_open(folder or nil) -> path to connect to, or nil, message, code */
static int bell_open(lua_State *L) {
  struct kvl_state *state = kvl_state(L);
  const char *base = lua_tostring(L, 1);
  if (!base) base = getenv("TMPDIR");
  if (!base || !*base) base = "/tmp";
  kvl_doorbell_free(state);
  state->doorbell = calloc(1, sizeof *state->doorbell);
  if (!state->doorbell) return kvl_fail_text(L, KV_FAILED, "out of memory");
  state->doorbell->listener = -1;
  if (!make_folder(state->doorbell, base))
    return failed(L, state, "cannot make a folder for the notification socket", base);
  if (!start_listening(state->doorbell)) return failed(L, state, "cannot listen on the notification socket", base);
  lua_pushstring(L, state->doorbell->address.sun_path);
  return 1;
}

/* bell_answer() -> true when the connection was taken, false when it is not there yet; nil, message, code */
static int bell_answer(lua_State *L) {
  struct kvl_state *state = kvl_state(L);
  kv_error error;
  if (!state->doorbell) return kvl_fail_text(L, KV_FAILED, "the notification socket was not opened");
  kv_queue *queue = kvl_queue(state, &error);
  if (!queue) return kvl_fail(L, &error);
  int fd = accept4(state->doorbell->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0 && (errno == EAGAIN || errno == EINTR)) {
    lua_pushboolean(L, 0);
    return 1;
  }
  if (fd < 0) return failed(L, state, "cannot take the connection of the notification socket", state->doorbell->folder);
  kv_queue_notify(queue, fd);
  kvl_doorbell_free(state);
  lua_pushboolean(L, 1);
  return 1;
}

/* bell_close(): no socket is told any more */
static int bell_close(lua_State *L) {
  struct kvl_state *state = kvl_state(L);
  kvl_doorbell_free(state);
  if (state->queue) kv_queue_notify(state->queue, -1);
  return 0;
}

const luaL_Reg kvl_doorbell_functions[] = {
    {"bell_open", bell_open}, {"bell_answer", bell_answer}, {"bell_close", bell_close}, {NULL, NULL},
};
