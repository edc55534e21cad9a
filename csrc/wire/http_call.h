/*
 * http_call.h - what drivers of HTTP interfaces have in common: an operation as a chain of requests, each answer of
 * which leads to the next request or to the end; and closing with some of them still under way.
 *
 * A driver embeds HTTP_CALL_FIELDS (through struct http_call) at the beginning of a call of its own. Everything runs
 * on the reactor thread.
 */
#ifndef KV_HTTP_CALL_H
#define KV_HTTP_CALL_H

#include "http.h"

#define HTTP_CALL_TEXT 4096 /* bytes of a refusal that are kept */

struct http_call;

/* All calls of one backend. Zero it, fill the first part, then http_calls_init(). */
struct http_calls {
  const struct kv_host *host;
  struct kv_backend *backend;
  struct http_client *http;
  const char *server;                          /* "Consul": whose answer is not what it should be */
  size_t answer_max;                           /* bytes of a body that is gathered */
  /* A call ends, for this cause: free what the driver has in it, and its memory. Its op is answered right after. */
  void (*release)(struct http_call *call, kv_code code, const char *cause);
  void (*sent)(struct http_call *call);        /* optional: the first byte of a write is about to leave */
  void (*came)(struct http_call *call);        /* optional: an answer came, whatever it says. Must not end the call */
  void (*closing_now)(void *context);          /* optional: end what is no call */
  void *context;
  /* http_call.c's */
  struct http_call *first;
  bool closing, closed;
  int64_t close_until;
  struct kv_timer close_timer;
  struct kv_task close_task;
};

#define HTTP_CALL_FIELDS                                                                              \
  struct http_request http;       /* first */                                                         \
  struct http_calls *calls;                                                                           \
  struct http_call *next, **link;                                                                     \
  struct kv_op *op;               /* NULL: something of the driver's own */                           \
  void (*on_answer)(struct http_call *call);                                                          \
  /* A piece of the body of a 200; anything else is kept in `text`. NULL: all is gathered. */         \
  bool (*on_piece)(struct http_call *call, const char *data, size_t size);                            \
  bool write;                     /* the request that is out: its loss leaves a doubt */              \
  bool undo;                      /* when cancelled it goes on without op: what it did is taken back */ \
  bool applied;                   /* an earlier request has written: that a later one was not sent is no proof */ \
  bool lasting;                   /* as in http.h, of the next request */                             \
  const char *content_type;       /* of the body of the next request, or NULL. Static */              \
  bool has_query;                                                                                     \
  bool failed;                    /* out of memory on the way */                                      \
  struct kv_buffer path, body, text;

struct http_call {
  HTTP_CALL_FIELDS
};

void http_calls_init(struct http_calls *calls);
/* close(): what is still under way, which is the driver's own, gets so many seconds; then host->closed(). */
void http_calls_close(struct http_calls *calls, double grace);

/* A call of `size` bytes, zeroed but for its fields. Out of memory finishes op; NULL then. */
void *http_call_new(struct http_calls *calls, size_t size, struct kv_op *op);
/* Begin the next request: its path is `prefix`, `key` percent-encoded, then `tail`. */
void http_call_path(struct http_call *call, const char *prefix, kv_slice key, const char *tail);
/* Add "name" or "name=value" to the query. */
void http_call_query(struct http_call *call, const char *text);
void http_call_query_number(struct http_call *call, const char *name, uint64_t number);
void http_call_body(struct http_call *call, const char *data, size_t size);
/* Send it. on_answer() comes with any status; without an answer the call ends as that deserves, perhaps at once. */
void http_call_send(struct http_call *call, const char *method, bool write, void (*on_answer)(struct http_call *call));
/* The end of the call and its op. format: NULL with KV_OK. */
void http_call_finish(struct http_call *call, kv_code code, const char *format, ...) KV_PRINTF(3, 4);
void http_call_garbled(struct http_call *call);
void http_call_no_memory(struct http_call *call);
void http_call_cancel(struct http_call *call);
/* What the server said, of whatever status. */
kv_slice http_call_text(const struct http_call *call);

/* What it means that a request had no answer. */
kv_code http_lost_code(enum http_outcome outcome, bool write);

/* ------------------------------------------------------------------ text from servers */

bool http_says(kv_slice text, const char *words);
bool http_begins(kv_slice text, const char *words);
bool http_ends(kv_slice text, const char *words);
/* One line of `text` that can be shown. */
const char *http_shown(kv_slice text, char *out, size_t size);

/* "Authorization: Basic ...", or NULL: out of memory. The caller overwrites and frees it. */
char *http_login_header(const char *username, const char *password);
/* What goes into a header must not end it. NULL is fine. */
bool http_is_header_text(const char *text);

#endif
