/*
 * http_internal.h - what http.c (requests) and http_pool.c (servers, sockets, dialling) share.
 *
 * Who owns a socket: dialled by the core, kept in `spare` or handed to a transfer, taken by libcurl in its opensocket
 * callback, given back in its closesocket callback. `live` of a server counts those that libcurl has and that are not
 * known to be dead; `running` its transfers; the difference is how many requests may be started on kept connections.
 */
#ifndef KV_HTTP_INTERNAL_H
#define KV_HTTP_INTERNAL_H

#include <curl/curl.h>

#include "http.h"

#if LIBCURL_VERSION_NUM < 0x075000
#error "libcurl 7.80 or later is needed: CURLOPT_PREREQFUNCTION tells when a request is sent"
#endif

#define HTTP_SECOND INT64_C(1000000000)
#define HTTP_DIALS 16
#define HTTP_SPARES 16

struct http_server;

struct http_socket {
  struct http_socket *next, **link; /* of its server */
  struct http_server *server;
  struct http_transfer *transfer;   /* that opened it or uses it now; NULL: nobody */
  struct kv_io io;
  int local_port;                   /* tells it from others where libcurl does not name the socket */
  bool in_use;                      /* libcurl waits for it */
  bool dead;                        /* not counted in `live` any more */
};

struct http_server {
  struct http_client *client;
  size_t address;
  unsigned live, running;
  int64_t heard;                    /* when bytes came last */
  struct http_socket *sockets;
  char *base;                       /* "http://host:port" */
  struct curl_slist *connect_to;
  char name[300];                   /* host:port for people */
};

enum http_state { HTTP_IDLE, HTTP_WAITING, HTTP_RUNNING, HTTP_DYING };

struct http_transfer {
  struct http_transfer *next, **link; /* waiting, running, dying, or the pool */
  struct http_client *client;
  struct http_request *request;     /* NULL: cancelled */
  struct http_server *server;
  CURL *easy;
  enum http_state state;
  int fd;                           /* dialled for it; -1: taken, or a kept connection is to be used */
  bool wants_socket;                /* libcurl found no kept connection after all */
  bool fresh;                       /* on a connection that nothing was sent on before */
  bool overflow;
  unsigned sends;
  uint64_t breaks;                  /* the client's, when it was asked for */
  int64_t started;
  struct curl_slist *headers;       /* own ones, in front of the client's; or NULL */
  struct kv_buffer path, body, answer, head;
  char problem[CURL_ERROR_SIZE];
};

struct http_spare {
  int fd;
  struct http_server *server;
  int64_t since, usable_at;
};

struct http_dial {
  struct kv_dial dial;
  struct http_client *client;
  bool busy;
  int64_t since;
};

struct http_list {
  struct http_transfer *first, **end;
  size_t count;
};

struct http_client {
  const struct kv_host *host;
  struct kv_backend *backend;
  const struct kv_config *config;
  CURLM *multi;                     /* made at the first request */
  struct curl_slist *headers;
  struct http_server *servers;      /* config->address_count */
  struct http_list waiting, waiting_long; /* long polls wait apart: they must leave a connection for the others */
  struct http_transfer *running, *dying, *pool;
  struct http_request *refused;     /* for want of memory; to be told */
  size_t running_count, lasting, pooled;
  uint64_t breaks;                  /* see http_breaks() */
  const char *probe_path;
  size_t probing;                   /* new connections that are being proved */
  struct kv_task pump;
  struct kv_timer curl_timer, dial_timer;
  struct http_socket **by_fd;
  size_t by_fd_size;
  struct http_dial dials[HTTP_DIALS];
  unsigned dialling;
  unsigned failures, rounds;        /* dials that failed in a row; rounds over all servers */
  int64_t next_dial;
  struct http_spare spares[HTTP_SPARES];
  size_t spare_count;
  size_t most;                      /* connections for short requests */
  int64_t crowded_until;
  bool tell_crowded;                /* at the next turn of the pump */
  void (*crowded)(void *context);
  void *context;
  const struct http_server *told;   /* host->connected(true) named this one */
  bool closed;
};

/* http.c */
void http_pump_later(struct http_client *client);
bool http_run(struct http_transfer *transfer, struct http_server *server, int fd);
/* Give everything that waits back. */
void http_fail_waiting(struct http_client *client, enum http_outcome outcome, const char *problem);
void http_act(struct http_client *client, curl_socket_t fd, int events);

/* http_pool.c */
bool http_pool_init(struct http_client *client);
void http_pool_close(struct http_client *client);
void http_pool_free(struct http_client *client);
void http_pool_setup(struct http_client *client, CURL *easy, struct http_transfer *transfer);
/* A server with a kept connection that nobody uses. */
struct http_server *http_pool_idle(struct http_client *client);
/* May one more long poll begin, so that a connection is left for short requests? */
bool http_pool_long_may_begin(const struct http_client *client);
/* A dialled socket that waits to be used. */
bool http_pool_spare(struct http_client *client, struct http_server **server, int *fd);
void http_pool_dial(struct http_client *client);
/* An answer came from it. */
void http_pool_answered(struct http_client *client, struct http_server *server);
/* Is the kept connection that is about to be used known to be dead, or closed by now? */
bool http_pool_is_dead(struct http_server *server, int local_port);
/* A new connection was of no use. */
void http_pool_unproved(struct http_client *client, struct http_server *server, const char *problem);
/* A connection to it broke, or could not be used. */
void http_pool_trouble(struct http_client *client, struct http_server *server);
void http_pool_silent(struct http_client *client, struct http_server *server);
int http_pool_socket(CURL *easy, curl_socket_t fd, int what, void *context, void *own);

#endif
