/*
 * proxy.c - a TCP proxy on 127.0.0.1 that misbehaves when told to, for fault tests:
 *
 *     proxy TARGET_PORT [LISTEN_PORT]     0 as target: only the modes that need no server
 *
 * It prints its port, then reads commands from its input, one a line, and answers each with "ok" or a number. It ends
 * when its input does. A mode holds for connections made from then on; "now MODE" changes those that are open as well.
 *
 *   pass              forward both ways
 *   silent            accept, read, never answer (the server is not asked)
 *   drop-answers      forward requests, throw answers away
 *   hold-answers      forward requests, keep answers until the mode changes ("now pass" sends them)
 *   hold-requests     keep requests until the mode changes;  hold-all: both
 *   half-close-server the server is told that no more requests come, answers still pass;
 *   half-close-client the reverse
 *   close             accept and close;          reset: the same by RST
 *   garbage           answer with bytes that are no HTTP/2
 *   oversized         a good SETTINGS frame, then a frame that says it has 16 MB
 *   bad-settings      SETTINGS whose length is no multiple of six
 *   goaway            SETTINGS, then GOAWAY with no stream processed, then the connection stays open
 *   status N          a fake gRPC server: every call ends with grpc-status N and no data
 *   no-status         every call gets headers with the end of the stream and no grpc-status
 *   http N            every call, and every request of HTTP/1.1, gets status N (three digits) as a proxy would answer
 *   long-message      every call gets a message that says it has 4 GB
 *   half-message      every call gets a message cut short, then good trailers
 *   bad-message       every call gets a message that is no protobuf, then good trailers
 *   flood             every call gets headers without end (CONTINUATION-like growth by large header blocks)
 *
 *   cut               close all connections now;  cut-reset: the same by RST
 *   cut-after N       close each connection after N more bytes of answers (in the middle of a frame)
 *   corrupt-after N   after N more bytes of answers, flip bits in the next 64
 *   connections       how many were accepted so far; open: how many are open; requests: bytes that clients sent
 *   delay N           what comes waits N milliseconds before it goes on, both ways; 0: not any more
 *   stop-at N         of ZooKeeper's small requests: the next of type N waits, with all behind it on its connection,
 *                     until another N is told; 0: none waits.  stopped: how many connections wait so
 *   one I MODE        the mode of the connection that was accepted as the I-th (from 0) of those that are open
 *   refuse            stop listening;  listen: listen again on the same port
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 256
#define BUFFER_SIZE (1 << 20)

enum mode {
  PASS, SILENT, DROP_ANSWERS, HOLD_ANSWERS, HOLD_ALL, HOLD_REQUESTS, HALF_CLOSE_SERVER, HALF_CLOSE_CLIENT, CLOSE, RESET,
  GARBAGE, OVERSIZED, BAD_SETTINGS, GOAWAY,
  STATUS, NO_STATUS, HTTP, LONG_MESSAGE, HALF_MESSAGE, BAD_MESSAGE, FLOOD, MODE_COUNT
};

static const char *const mode_names[MODE_COUNT] = {
    "pass", "silent", "drop-answers", "hold-answers", "hold-all", "hold-requests", "half-close-server",
    "half-close-client", "close", "reset", "garbage", "oversized", "bad-settings", "goaway", "status", "no-status",
    "http", "long-message", "half-message", "bad-message", "flood"};

struct stream {
  uint8_t *data;
  size_t size;
  bool ended;  /* no more will come */
  int64_t due; /* what is there goes on from then, in milliseconds; 0: nothing is there */
};

struct connection {
  int client, server; /* -1: none */
  enum mode mode;
  int argument;
  bool half_closed;                /* that was done */
  struct stream requests, answers; /* to the server, to the client */
  bool greeted;                    /* fake server: the preface came, and was answered */
  bool stopped;                    /* the next request is of the type that is to wait */
};

static struct connection connections[CONNECTIONS_MAX];
static size_t connection_count;
static int listener = -1, reserved = -1, listen_port, target_port; /* reserved: keeps the port while none listens */
static enum mode new_mode = PASS;
static int new_argument;
static long cut_after = -1, corrupt_after = -1;
static int delay, stop_at;
static unsigned long accepted, request_bytes;

static struct sockaddr_in loopback(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

static bool reserve(void) {
  reserved = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  int one = 1;
  setsockopt(reserved, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = loopback(listen_port);
  socklen_t size = sizeof address;
  if (bind(reserved, (struct sockaddr *)&address, size) < 0) return false;
  getsockname(reserved, (struct sockaddr *)&address, &size);
  listen_port = ntohs(address.sin_port);
  return true;
}

static bool start_listening(void) {
  if (reserved < 0 && !reserve()) return false;
  if (listen(reserved, 64) < 0) return false;
  listener = reserved;
  reserved = -1;
  return true;
}

/* The port stays ours: nobody else is to listen there meanwhile. */
static bool stop_listening(void) {
  close(listener);
  listener = -1;
  return reserve();
}

static void close_connection(struct connection *connection, bool reset) {
  if (reset) {
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(connection->client, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
  }
  close(connection->client);
  if (connection->server >= 0) close(connection->server);
  free(connection->requests.data);
  free(connection->answers.data);
  *connection = connections[--connection_count];
}

static void close_all(bool reset) {
  while (connection_count > 0) close_connection(&connections[connection_count - 1], reset);
}

static bool keeps_answers(enum mode mode) { return mode == HOLD_ANSWERS || mode == HOLD_ALL; }

static bool keeps_requests(enum mode mode) { return mode == HOLD_REQUESTS || mode == HOLD_ALL; }

static bool wants_server(enum mode mode) { return mode <= HALF_CLOSE_CLIENT && mode != SILENT; }

static int64_t now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* Its time has come, or it has none. */
static bool is_due(struct stream *stream) {
  if (delay == 0 || stream->size == 0) {
    stream->due = 0;
    return true;
  }
  int64_t now = now_ms();
  if (stream->due == 0) stream->due = now + delay;
  if (now < stream->due) return false;
  stream->due = 0;
  return true;
}

static void half_close(struct connection *connection) {
  if (connection->half_closed) return;
  if (connection->mode == HALF_CLOSE_SERVER) shutdown(connection->server, SHUT_WR);
  if (connection->mode == HALF_CLOSE_CLIENT) shutdown(connection->client, SHUT_WR);
  connection->half_closed = connection->mode == HALF_CLOSE_SERVER || connection->mode == HALF_CLOSE_CLIENT;
}

/* One way is shut: what would go there is lost. */
static bool is_shut(const struct connection *connection, bool to_client) {
  return connection->half_closed && connection->mode == (to_client ? HALF_CLOSE_CLIENT : HALF_CLOSE_SERVER);
}

/* False: there is none any more. */
static bool accept_connection(void) {
  int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (client < 0) return false;
  accepted++;
  int one = 1;
  setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (connection_count == CONNECTIONS_MAX || new_mode == CLOSE) {
    close(client);
    return true;
  }
  struct connection *connection = &connections[connection_count++];
  *connection = (struct connection){.client = client, .server = -1, .mode = new_mode, .argument = new_argument};
  connection->requests.data = malloc(BUFFER_SIZE);
  connection->answers.data = malloc(BUFFER_SIZE);
  if (!connection->requests.data || !connection->answers.data) abort();
  if (new_mode == RESET) {
    close_connection(connection, true);
    return true;
  }
  if (!wants_server(new_mode)) return true;
  connection->server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  setsockopt(connection->server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct sockaddr_in address = loopback(target_port);
  if (connect(connection->server, (struct sockaddr *)&address, sizeof address) < 0) {
    close_connection(connection, true);
    return true;
  }
  fcntl(connection->server, F_SETFL, O_NONBLOCK);
  return true;
}

/* ------------------------------------------------------------------ a fake server */

static void put(struct connection *connection, const void *data, size_t size) {
  if (connection->answers.size + size > BUFFER_SIZE) return;
  memcpy(connection->answers.data + connection->answers.size, data, size);
  connection->answers.size += size;
}

static void put_frame(struct connection *connection, uint8_t type, uint8_t flags, uint32_t stream, const void *data,
                      size_t size) {
  uint8_t head[9] = {(uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size, type, flags,
                     (uint8_t)(stream >> 24), (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream};
  put(connection, head, sizeof head);
  put(connection, data, size);
}

/* A header field without indexing, after HPACK: literal name, literal value, both short. */
static size_t field(uint8_t *out, const char *name, const char *value) {
  size_t name_size = strlen(name), value_size = strlen(value), at = 0;
  out[at++] = 0;
  out[at++] = (uint8_t)name_size;
  memcpy(out + at, name, name_size);
  at += name_size;
  out[at++] = (uint8_t)value_size;
  memcpy(out + at, value, value_size);
  return at + value_size;
}

enum { HEADERS = 1, SETTINGS = 4, PING = 6, GOAWAY_FRAME = 7, END_STREAM = 1, ACK = 1, END_HEADERS = 4 };

static void put_headers(struct connection *connection, uint32_t stream, int http, int status, bool last) {
  uint8_t block[512];
  char number[16];
  snprintf(number, sizeof number, "%d", http);
  size_t size = field(block, ":status", number);
  size += field(block + size, "content-type", http == 200 ? "application/grpc" : "text/html");
  if (status >= 0) {
    snprintf(number, sizeof number, "%d", status);
    size += field(block + size, "grpc-status", number);
    size += field(block + size, "grpc-message", "told so by the test");
  }
  put_frame(connection, HEADERS, (uint8_t)(END_HEADERS | (last ? END_STREAM : 0)), stream, block, size);
}

static void put_trailers(struct connection *connection, uint32_t stream) {
  uint8_t block[64];
  size_t size = field(block, "grpc-status", "0");
  put_frame(connection, HEADERS, END_HEADERS | END_STREAM, stream, block, size);
}

static void put_flood(struct connection *connection, uint32_t stream) {
  static uint8_t block[16000];
  char name[16], value[101];
  memset(value, 'x', 100);
  value[100] = 0;
  size_t size = 0;
  for (int i = 0; size + 128 < sizeof block; i++) {
    snprintf(name, sizeof name, "x-%d", i);
    size += field(block + size, name, value);
  }
  uint8_t first[16];
  size_t first_size = field(first, ":status", "200");
  put_frame(connection, HEADERS, 0, stream, first, first_size);
  for (int i = 0; i < 40; i++) put_frame(connection, 9 /* CONTINUATION */, 0, stream, block, size);
}

static void answer_call(struct connection *connection, uint32_t stream) {
  static const uint8_t long_message[] = {0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3};
  static const uint8_t half_message[] = {0, 0, 0, 0, 100, 1, 2, 3};
  static const uint8_t bad_message[] = {0, 0, 0, 0, 8, 0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
  switch (connection->mode) {
    case STATUS: put_headers(connection, stream, 200, connection->argument, true); break;
    case NO_STATUS: put_headers(connection, stream, 200, -1, true); break;
    case HTTP: put_headers(connection, stream, connection->argument, -1, true); break;
    case FLOOD: put_flood(connection, stream); break;
    default:
      put_headers(connection, stream, 200, -1, false);
      if (connection->mode == LONG_MESSAGE) {
        put_frame(connection, 0, 0, stream, long_message, sizeof long_message);
      } else if (connection->mode == HALF_MESSAGE) {
        put_frame(connection, 0, 0, stream, half_message, sizeof half_message);
        put_trailers(connection, stream);
      } else {
        put_frame(connection, 0, 0, stream, bad_message, sizeof bad_message);
        put_trailers(connection, stream);
      }
  }
}

static void greet(struct connection *connection) {
  static const uint8_t oversized[] = {0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1, 'x', 'x'};
  static const uint8_t no_stream[8] = {0};
  static const char garbage[] = "\xff\xfe\x80 this is no HTTP/2 at all, sorry about that\r\n\r\n";
  connection->greeted = true;
  switch (connection->mode) {
    case GARBAGE:
      put(connection, garbage, sizeof garbage);
      break;
    case BAD_SETTINGS: put_frame(connection, SETTINGS, 0, 0, "12345", 5); break;
    default:
      put_frame(connection, SETTINGS, 0, 0, "", 0);
      if (connection->mode == OVERSIZED) put(connection, oversized, sizeof oversized);
      if (connection->mode == GOAWAY) put_frame(connection, GOAWAY_FRAME, 0, 0, no_stream, sizeof no_stream);
  }
}

#define PREFACE_SIZE 24

static void drop_requests(struct connection *connection, size_t size) {
  connection->requests.size -= size;
  memmove(connection->requests.data, connection->requests.data + size, connection->requests.size);
}

static void play_frame(struct connection *connection, const uint8_t *head) {
  uint32_t stream = ((uint32_t)head[5] << 24 | (uint32_t)head[6] << 16 | (uint32_t)head[7] << 8 | head[8]) & 0x7fffffff;
  if (head[3] == SETTINGS && !(head[4] & ACK)) put_frame(connection, SETTINGS, ACK, 0, "", 0);
  if (head[3] == PING && !(head[4] & ACK)) put_frame(connection, PING, ACK, 0, head + 9, 8);
  if (head[3] == HEADERS) answer_call(connection, stream);
}

/* Of each request the end of its head is enough. */
static void play_http1(struct connection *connection) {
  struct stream *requests = &connection->requests;
  const uint8_t *end;
  char answer[80];
  snprintf(answer, sizeof answer, "HTTP/1.1 %d Told So\r\nContent-Length: 0\r\n\r\n", connection->argument);
  while ((end = memmem(requests->data, requests->size, "\r\n\r\n", 4))) {
    drop_requests(connection, (size_t)(end - requests->data) + 4);
    put(connection, answer, strlen(answer));
  }
}

/* Look at the frames that the client sent, and answer calls. */
static void play_server(struct connection *connection) {
  struct stream *requests = &connection->requests;
  if (!connection->greeted) {
    if (requests->size < PREFACE_SIZE) return;
    if (connection->mode == HTTP && memcmp(requests->data, "PRI ", 4) != 0) {
      play_http1(connection);
      return;
    }
    greet(connection);
    drop_requests(connection, PREFACE_SIZE);
  }
  while (requests->size >= 9) {
    const uint8_t *head = requests->data;
    size_t size = 9 + ((size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2]);
    if (requests->size < size) break;
    if (connection->mode >= STATUS) play_frame(connection, head);
    drop_requests(connection, size);
  }
}

/* ------------------------------------------------------------------ moving bytes */

/* Read what is there. False: the connection is over. */
static bool receive(int fd, struct stream *stream, unsigned long *counter) {
  if (stream->size == BUFFER_SIZE) return true;
  ssize_t got = read(fd, stream->data + stream->size, BUFFER_SIZE - stream->size);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) {
    stream->ended = true;
    return false;
  }
  stream->size += (size_t)got;
  if (counter) *counter += (unsigned long)got;
  return true;
}

static bool give(int fd, struct stream *stream, size_t most) {
  size_t size = stream->size < most ? stream->size : most;
  if (size == 0) return true;
  ssize_t done = send(fd, stream->data, size, MSG_NOSIGNAL);
  if (done < 0) return errno == EAGAIN || errno == EINTR;
  stream->size -= (size_t)done;
  memmove(stream->data, stream->data + done, stream->size);
  return true;
}

static void corrupt(struct stream *answers) {
  if (corrupt_after < 0) return;
  if ((size_t)corrupt_after >= answers->size) {
    corrupt_after -= (long)answers->size;
    return;
  }
  for (size_t i = (size_t)corrupt_after; i < answers->size && i < (size_t)corrupt_after + 64; i++)
    answers->data[i] ^= 0xa5;
  corrupt_after = -1;
}

/* Answers to the client, up to where they are to be cut. False: close the connection. */
static bool give_answers(struct connection *connection) {
  struct stream *answers = &connection->answers;
  if (keeps_answers(connection->mode)) return true;
  if (connection->mode == DROP_ANSWERS || is_shut(connection, true)) answers->size = 0;
  if (!is_due(answers)) return true;
  if (cut_after >= 0 && answers->size >= (size_t)cut_after) {
    give(connection->client, answers, (size_t)cut_after);
    cut_after = -1;
    return false;
  }
  size_t before = answers->size;
  if (!give(connection->client, answers, BUFFER_SIZE)) return false;
  if (cut_after >= 0) cut_after -= (long)(before - answers->size);
  return true;
}

static uint32_t number_at(const uint8_t *data) {
  return (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 | data[3];
}

/* ZooKeeper's requests: a size of what follows, a number, a type. Those before the one that is to wait, in bytes. */
static size_t before_stop(struct connection *connection) {
  const struct stream *requests = &connection->requests;
  size_t at = 0, size = 0;
  connection->stopped = false;
  if (!stop_at) return BUFFER_SIZE;
  while (requests->size - at >= 12 && !connection->stopped) {
    size = 4 + (size_t)number_at(requests->data + at);
    if (requests->size - at < size) break;
    connection->stopped = number_at(requests->data + at + 8) == (uint32_t)stop_at;
    if (!connection->stopped) at += size;
  }
  return at;
}

/* One turn for one connection. False: it is over. */
static bool serve(struct connection *connection, short client_events, short server_events) {
  half_close(connection);
  if (client_events && !receive(connection->client, &connection->requests, &request_bytes)) return false;
  if (server_events) {
    struct stream fresh = {.data = connection->answers.data + connection->answers.size};
    size_t before = connection->answers.size;
    bool alive = receive(connection->server, &connection->answers, NULL);
    fresh.size = connection->answers.size - before;
    if (fresh.size > 0) corrupt(&fresh);
    if (!alive) {
      give_answers(connection);
      return false;
    }
  }
  if (connection->mode == SILENT || is_shut(connection, false)) {
    connection->requests.size = 0;
  } else if (wants_server(connection->mode)) {
    if (!keeps_requests(connection->mode) && is_due(&connection->requests) &&
        !give(connection->server, &connection->requests, before_stop(connection)))
      return false;
  } else {
    play_server(connection);
  }
  return give_answers(connection);
}

/* ------------------------------------------------------------------ commands */

static void change_mode(struct connection *connection, enum mode mode, int argument) {
  if (wants_server(connection->mode)) connection->greeted = true; /* by the real server */
  connection->mode = mode;
  connection->argument = argument;
  half_close(connection);
}

enum whose { NEW, ALL, ONE };

static bool set_mode(const char *text, enum whose whose, size_t one) {
  char name[32];
  int argument = 0;
  if (sscanf(text, "%31s %d", name, &argument) < 1) return false;
  for (int mode = 0; mode < MODE_COUNT; mode++) {
    if (strcmp(name, mode_names[mode]) != 0) continue;
    for (size_t i = 0; i < connection_count; i++)
      if (whose == ALL || (whose == ONE && i == one)) change_mode(&connections[i], (enum mode)mode, argument);
    if (whose == ONE) return one < connection_count;
    new_mode = (enum mode)mode;
    new_argument = argument;
    return true;
  }
  return false;
}

static void command(char *line) {
  size_t one;
  int mode_at = 0;
  if (strcmp(line, "cut") == 0) {
    close_all(false);
  } else if (strcmp(line, "cut-reset") == 0) {
    close_all(true);
  } else if (sscanf(line, "cut-after %ld", &cut_after) == 1 || sscanf(line, "corrupt-after %ld", &corrupt_after) == 1) {
    /* done by sscanf */
  } else if (sscanf(line, "delay %d", &delay) == 1) {
    /* as well */
  } else if (sscanf(line, "stop-at %d", &stop_at) == 1) {
    for (size_t i = 0; i < connection_count; i++) connections[i].stopped = false; /* look again */
  } else if (strcmp(line, "stopped") == 0) {
    size_t stopped = 0;
    for (size_t i = 0; i < connection_count; i++) stopped += connections[i].stopped;
    printf("%zu\n", stopped);
    return;
  } else if (strcmp(line, "connections") == 0) {
    printf("%lu\n", accepted);
    return;
  } else if (strcmp(line, "open") == 0) {
    printf("%zu\n", connection_count);
    return;
  } else if (strcmp(line, "requests") == 0) {
    printf("%lu\n", request_bytes);
    return;
  } else if (strcmp(line, "refuse") == 0) {
    if (listener >= 0 && !stop_listening()) {
      puts("cannot keep the port");
      return;
    }
  } else if (strcmp(line, "listen") == 0) {
    if (listener < 0 && !start_listening()) {
      puts("cannot listen");
      return;
    }
  } else if (sscanf(line, "one %zu %n", &one, &mode_at) == 1 && mode_at > 0) {
    if (!set_mode(line + mode_at, ONE, one)) {
      puts("no such connection or mode");
      return;
    }
  } else if (!(strncmp(line, "now ", 4) == 0 ? set_mode(line + 4, ALL, 0) : set_mode(line, NEW, 0))) {
    printf("no such command: %s\n", line);
    return;
  }
  puts("ok");
}

/* Commands that came. False: the input ended. */
static bool read_commands(void) {
  static char buffer[4096];
  static size_t size;
  ssize_t got = read(0, buffer + size, sizeof buffer - size);
  if (got <= 0) return got < 0 && errno == EINTR;
  size += (size_t)got;
  char *end;
  while ((end = memchr(buffer, '\n', size))) {
    *end = 0;
    command(buffer);
    size -= (size_t)(end + 1 - buffer);
    memmove(buffer, end + 1, size);
  }
  fflush(stdout);
  return size < sizeof buffer;
}

static void turn(void) {
  struct pollfd polls[2 + 2 * CONNECTIONS_MAX] = {{.fd = 0, .events = POLLIN}, {.fd = listener, .events = POLLIN}};
  size_t count = connection_count;
  int limit = -1; /* what waits for its time is looked at every 2 ms */
  for (size_t i = 0; i < count; i++) {
    struct connection *connection = &connections[i];
    bool may_give = !keeps_answers(connection->mode) && connection->answers.size > 0 && connection->answers.due == 0;
    bool may_ask = !keeps_requests(connection->mode) && connection->requests.size > 0 && connection->server >= 0 &&
                   connection->requests.due == 0 && !connection->stopped;
    if (connection->answers.due > 0 || connection->requests.due > 0) limit = 2;
    polls[2 + 2 * i] = (struct pollfd){.fd = connection->client, .events = (short)(POLLIN | (may_give ? POLLOUT : 0))};
    polls[3 + 2 * i] = (struct pollfd){.fd = connection->server, .events = (short)(POLLIN | (may_ask ? POLLOUT : 0))};
  }
  if (poll(polls, 2 + 2 * count, limit) < 0) return;
  /* From the end: closing one moves the last into its place. */
  for (size_t i = count; i-- > 0;)
    if (!serve(&connections[i], polls[2 + 2 * i].revents & (POLLIN | POLLHUP | POLLERR),
               polls[3 + 2 * i].revents & (POLLIN | POLLHUP | POLLERR)))
      close_connection(&connections[i], false);
  /* All of them, before a command: it counts them, or changes the mode for those that come later. */
  while (polls[1].revents && accept_connection()) {
  }
  if (polls[0].revents && !read_commands()) exit(0);
}

int main(int count, char **words) {
  if (count < 2) {
    fprintf(stderr, "usage: %s TARGET_PORT [LISTEN_PORT]\n", words[0]);
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  target_port = atoi(words[1]);
  listen_port = count > 2 ? atoi(words[2]) : 0;
  if (!start_listening()) {
    perror("listen");
    return 1;
  }
  printf("%d\n", listen_port);
  fflush(stdout);
  for (;;) turn();
}
