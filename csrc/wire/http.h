/*
 * http.h - HTTP/1.1 for drivers: many requests to one of several equal servers, by libcurl's multi_socket interface,
 * driven by the reactor.
 *
 * What libcurl does here: the protocol, TLS, and keeping connections. What it does not do: names, connecting,
 * choosing a server. The core dials; libcurl gets sockets that are connected.
 *
 *   - A request is told exactly whether it was sent: `sent` is set (and on_sent() called) right before its first byte
 *     may leave.
 *   - A write is never sent a second time. libcurl would do that when a kept connection turns out to be dead.
 *   - Nothing here retries. A request that could not be sent, or whose answer was lost, is given back as such.
 *   - Each body has a cap, and is gathered (`answer`) or handed on as it comes (on_body).
 *
 * Everything runs on the reactor thread but http_client_new() and http_client_free(). done() never comes inside
 * http_start() or http_cancel(). on_sent, on_head and on_body come from inside libcurl: they may start and cancel
 * requests, this one included.
 */
#ifndef KV_HTTP_H
#define KV_HTTP_H

#include "../core/buffer.h"
#include "../drivers/driver.h"

struct http_client;
struct http_transfer;

enum http_outcome {
  HTTP_ANSWERED,  /* `status` and the whole body are there */
  HTTP_NOT_SENT,  /* no connection: certainly nothing reached a server */
  HTTP_REFUSED,   /* as NOT_SENT, and trying again will not help: a certificate file that cannot be used */
  HTTP_LOST,      /* sent, and no (whole) answer came, or one that is no HTTP */
  HTTP_TOO_LONG,  /* the answer is over its cap, or on_body() gave up */
  HTTP_FAILED     /* out of memory */
};

/* One request. Embedded in its owner; zero it, fill the first part, and leave it alone until done() or http_cancel().
 * */
struct http_request {
  const char *method;        /* static: "GET", "PUT", "POST", "DELETE" */
  struct kv_buffer *path;    /* path and query, not terminated, percent-encoded. Copied by http_start() */
  struct kv_buffer *body;    /* or NULL. Its bytes are taken by http_start(), which leaves it empty */
  const char *content_type;  /* of the body, or NULL */
  bool write;                /* must not be sent twice */
  bool lasting;              /* a long poll: has a connection beside those that the cap counts. It is not sent any more,
                              * or again, when a connection broke meanwhile (see http_breaks()) */
  double timeout;            /* seconds from being sent; 0: the owner cancels when he has waited enough */
  size_t answer_max;         /* bytes of body */
  void (*on_sent)(struct http_request *request);
  /* The head is complete: `status` is set, http_header() works. Optional. */
  void (*on_head)(struct http_request *request);
  /* A piece of the body. False: give up (HTTP_TOO_LONG). NULL: gathered in `answer`. */
  bool (*on_body)(struct http_request *request, const char *data, size_t size);
  void (*done)(struct http_request *request);
  void *data;
  /* What came of it. */
  enum http_outcome outcome;
  bool sent;
  int status;
  kv_slice answer;           /* valid during done() */
  kv_slice head;             /* header lines, valid from on_head() to done() */
  size_t address;            /* the server that answered */
  const char *problem;       /* for people, when there is no answer; valid during done() */
  /* http.c's */
  struct http_transfer *transfer;
  struct http_request *next;
};

struct http_options {
  const struct kv_host *host;
  struct kv_backend *backend;
  const struct kv_config *config;
  const char *const *headers;   /* "Name: value" for every request, ended by NULL; copied */
  /* Optional, static. A GET that every healthy server answers at once: a new connection has to, before a write is sent
   * on it. A server that is over its limit of connections accepts one all the same, and what was sent on it is in
   * doubt. */
  const char *probe_path;
  /* Optional. The server refuses more connections from here: give up long polls. Not inside of any other callback. */
  void (*crowded)(void *context);
  void *context;
};

/* No I/O, no descriptor. NULL: out of memory. */
struct http_client *http_client_new(const struct http_options *options);
/* Close all connections; requests still out there are dropped without done(). On the reactor, outside of callbacks. */
void http_client_close(struct http_client *client);
void http_client_free(struct http_client *client); /* after close(), or when nothing was ever started */

void http_start(struct http_client *client, struct http_request *request);
/* done() will not come. Harmless when the request is not out. The connection is closed if it was sent. */
void http_cancel(struct http_client *client, struct http_request *request);
/* The owner waited for this request in vain. A server that has been silent all the time is left alone for a while. */
void http_doubt(struct http_client *client, const struct http_request *request);
/* The server refuses connections because we have too many: do with fewer for a while. */
void http_crowded(struct http_client *client);
/* How many connections broke: a server that answers after another one of them may have begun anew since, without the
 * state that a long poll counts on. */
uint64_t http_breaks(const struct http_client *client);
/* Requests that are out or wait for a connection. */
size_t http_running(const struct http_client *client);

/* A header of the answer (the last one of that name), without case. False: it is not there. Valid from on_head() to
 * done(). */
bool http_header(const struct http_request *request, const char *name, kv_slice *value);
bool http_header_number(const struct http_request *request, const char *name, uint64_t *value);

/* Split "Name: value\r\n". False: it is no header line. */
bool http_split_header(kv_slice line, kv_slice *name, kv_slice *value);
/* Digits only, below 2^64. */
bool http_number(kv_slice text, uint64_t *value);
/* Append percent-encoded: everything but letters, digits and "-._~", and "/" when `slashes`. */
bool http_escape(struct kv_buffer *out, kv_slice text, bool slashes);

#endif
