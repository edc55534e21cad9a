/*
 * http.c - requests: waiting for a connection, with libcurl, and given back. See http.h for what is promised and
 * http_internal.h for how it is kept.
 *
 * http_start() and http_cancel() may be called from inside libcurl's callbacks, where libcurl allows nothing. So they
 * only move transfers between lists, and pump(), which runs at the end of the turn, adds and removes them.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <openssl/ssl.h>

#include "http_internal.h"

#define POOL_MAX 128
#define PATH_MAX_BYTES ((size_t)64 << 10)
#define HEAD_MAX ((size_t)64 << 10)
#define SILENCE HTTP_SECOND /* a server that said nothing for so long, and did not answer in time, is in doubt */
#define KEPT_MAX 512L       /* connections that libcurl keeps at most; the pool's own cap is lower */

static void collect(struct http_client *client);

/* ------------------------------------------------------------------ lists */

static void list_init(struct http_list *list) {
  list->first = NULL;
  list->end = &list->first;
  list->count = 0;
}

static void queue_push(struct http_list *list, struct http_transfer *transfer, bool front) {
  if (front) {
    transfer->next = list->first;
    list->first = transfer;
    if (!transfer->next) list->end = &transfer->next;
  } else {
    transfer->next = NULL;
    *list->end = transfer;
    list->end = &transfer->next;
  }
  list->count++;
}

static struct http_transfer *queue_pop(struct http_list *list) {
  struct http_transfer *transfer = list->first;
  if (!transfer) return NULL;
  list->first = transfer->next;
  if (!list->first) list->end = &list->first;
  list->count--;
  return transfer;
}

static bool queue_remove(struct http_list *list, struct http_transfer *transfer) {
  for (struct http_transfer **at = &list->first; *at; at = &(*at)->next) {
    if (*at != transfer) continue;
    *at = transfer->next;
    if (list->end == &transfer->next) list->end = at;
    list->count--;
    return true;
  }
  return false;
}

static void link_in(struct http_transfer **list, struct http_transfer *transfer) {
  transfer->next = *list;
  if (transfer->next) transfer->next->link = &transfer->next;
  transfer->link = list;
  *list = transfer;
}

static void link_out(struct http_transfer *transfer) {
  *transfer->link = transfer->next;
  if (transfer->next) transfer->next->link = transfer->link;
  transfer->next = NULL;
  transfer->link = NULL;
}

/* ------------------------------------------------------------------ what libcurl calls */

static struct http_transfer *of(void *context) {
  return context;
}

/* Right before the request leaves on a connection, and again if libcurl wants to send it once more. */
static int about_to_send(void *context, char *remote, char *local, int remote_port, int local_port) {
  struct http_transfer *transfer = of(context);
  struct http_request *request = transfer->request;
  (void)remote, (void)local, (void)remote_port;
  if (!request) return CURL_PREREQFUNC_ABORT;
  if (!transfer->fresh && http_pool_is_dead(transfer->server, local_port)) {
    transfer->wants_socket = true;
    return CURL_PREREQFUNC_ABORT;
  }
  if (++transfer->sends > 1 && (request->write || request->lasting)) return CURL_PREREQFUNC_ABORT;
  transfer->server->heard = transfer->client->host->now(); /* it let us connect */
  request->sent = true;
  if (transfer->sends == 1 && request->on_sent) request->on_sent(request);
  return transfer->request ? CURL_PREREQFUNC_OK : CURL_PREREQFUNC_ABORT;
}

static void head_complete(struct http_transfer *transfer) {
  struct http_request *request = transfer->request;
  long status = 0;
  curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
  if (status < 200) return; /* 100: the real one follows */
  request->status = (int)status;
  request->head = (kv_slice){transfer->head.data, transfer->head.size};
  request->address = transfer->server->address;
  if (request->on_head) request->on_head(request);
}

static size_t take_header(char *data, size_t unit, size_t count, void *context) {
  struct http_transfer *transfer = of(context);
  size_t size = unit * count;
  if (!transfer->request) return 0;
  if (size > 5 && memcmp(data, "HTTP/", 5) == 0) transfer->head.size = 0; /* begins (again) */
  if (size <= 2 && (data[0] == '\r' || data[0] == '\n')) {
    head_complete(transfer);
    return transfer->request ? size : 0;
  }
  if (kv_buffer_add(&transfer->head, data, size)) return size;
  transfer->overflow = true;
  return 0;
}

static size_t take_body(char *data, size_t unit, size_t count, void *context) {
  struct http_transfer *transfer = of(context);
  struct http_request *request = transfer->request;
  size_t size = unit * count;
  if (!request) return 0;
  if (request->on_body && size && !request->on_body(request, data, size)) {
    if (transfer->request) transfer->overflow = true;
    return 0;
  }
  if (!transfer->request) return 0; /* cancelled in there */
  if (request->on_body || kv_buffer_add(&transfer->answer, data, size)) return size;
  transfer->overflow = true;
  return 0;
}

static int set_timer(CURLM *multi, long milliseconds, void *context) {
  struct http_client *client = context;
  (void)multi;
  if (milliseconds < 0)
    client->host->timer_stop(&client->curl_timer);
  else
    client->host->timer_set(&client->curl_timer, client->host->now() + milliseconds * (HTTP_SECOND / 1000));
  return 0;
}

/* ------------------------------------------------------------------ making */

static bool options_of_tls(const struct kv_config *config, CURL *easy) {
  bool good = true;
  good &= curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, config->tls_verify ? 1L : 0L) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, config->tls_verify ? 2L : 0L) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2) == CURLE_OK;
  if (config->tls_ca) good &= curl_easy_setopt(easy, CURLOPT_CAINFO, config->tls_ca) == CURLE_OK;
  if (config->tls_cert) {
    const char *key = config->tls_key ? config->tls_key : config->tls_cert; /* both in one file is usual */
    good &= curl_easy_setopt(easy, CURLOPT_SSLCERT, config->tls_cert) == CURLE_OK;
    good &= curl_easy_setopt(easy, CURLOPT_SSLKEY, key) == CURLE_OK;
    good &= curl_easy_setopt(easy, CURLOPT_KEYPASSWD, "") == CURLE_OK; /* instead of a question on the terminal */
  }
  return good;
}

/* What is the same for every request. */
static bool options_of_all(struct http_transfer *transfer) {
  CURL *easy = transfer->easy;
  bool good = true;
  good &= curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_PROXY, "") == CURLE_OK; /* whatever the environment says */
  good &= curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, transfer->problem) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_PREREQFUNCTION, about_to_send) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_PREREQDATA, transfer) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, take_header) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_HEADERDATA, transfer) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take_body) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer) == CURLE_OK;
  good &= curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 65536L) == CURLE_OK;
  http_pool_setup(transfer->client, easy, transfer);
  return good && (!transfer->client->config->scheme->tls || options_of_tls(transfer->client->config, easy));
}

static void transfer_free(struct http_transfer *transfer) {
  curl_easy_cleanup(transfer->easy);
  curl_slist_free_all(transfer->headers);
  kv_buffer_free(&transfer->path);
  kv_buffer_free(&transfer->body);
  kv_buffer_free(&transfer->answer);
  kv_buffer_free(&transfer->head);
  free(transfer);
}

static struct http_transfer *transfer_new(struct http_client *client) {
  struct http_transfer *transfer = client->pool;
  if (transfer) {
    link_out(transfer);
    client->pooled--;
    return transfer;
  }
  transfer = calloc(1, sizeof *transfer);
  if (!transfer) return NULL;
  transfer->client = client;
  transfer->fd = -1;
  kv_buffer_init(&transfer->path, PATH_MAX_BYTES);
  kv_buffer_init(&transfer->head, HEAD_MAX);
  transfer->easy = curl_easy_init();
  if (transfer->easy && options_of_all(transfer)) return transfer;
  transfer_free(transfer);
  return NULL;
}

/* Back into the pool, with large buffers let go. */
static void transfer_recycle(struct http_transfer *transfer) {
  struct http_client *client = transfer->client;
  curl_slist_free_all(transfer->headers);
  transfer->headers = NULL;
  if (client->pooled >= POOL_MAX || client->closed) {
    transfer_free(transfer);
    return;
  }
  kv_buffer_free(&transfer->body);
  if (transfer->answer.capacity > 65536) kv_buffer_free(&transfer->answer);
  transfer->path.size = transfer->answer.size = transfer->head.size = 0;
  transfer->request = NULL;
  transfer->server = NULL;
  transfer->state = HTTP_IDLE;
  transfer->fd = -1;
  transfer->wants_socket = transfer->overflow = false;
  transfer->sends = 0;
  client->pooled++;
  link_in(&client->pool, transfer);
}

static void curl_once(void) {
  /* The reactor thread may still run when exit() comes: OpenSSL must not take itself apart under it. */
  OPENSSL_init_ssl(OPENSSL_INIT_NO_ATEXIT, NULL);
  curl_global_init(CURL_GLOBAL_DEFAULT);
}

static bool begin(struct http_client *client) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  if (client->multi) return true;
  pthread_once(&once, curl_once);
  client->multi = curl_multi_init();
  if (!client->multi) return false;
  curl_multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, http_pool_socket);
  curl_multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client);
  curl_multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, set_timer);
  curl_multi_setopt(client->multi, CURLMOPT_TIMERDATA, client);
  curl_multi_setopt(client->multi, CURLMOPT_MAXCONNECTS, KEPT_MAX);
  curl_multi_setopt(client->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);
  return true;
}

/* ------------------------------------------------------------------ ending */

static void forget_server(struct http_transfer *transfer) {
  if (transfer->fd >= 0) { /* libcurl did not even ask for it */
    close(transfer->fd);
    transfer->fd = -1;
    if (transfer->server->live) transfer->server->live--;
  }
  if (transfer->server) transfer->server->running--;
}

static void count_bytes(struct http_transfer *transfer) {
  long request_size = 0, header_size = 0;
  curl_off_t up = 0, down = 0;
  curl_easy_getinfo(transfer->easy, CURLINFO_REQUEST_SIZE, &request_size);
  curl_easy_getinfo(transfer->easy, CURLINFO_HEADER_SIZE, &header_size);
  curl_easy_getinfo(transfer->easy, CURLINFO_SIZE_UPLOAD_T, &up);
  curl_easy_getinfo(transfer->easy, CURLINFO_SIZE_DOWNLOAD_T, &down);
  uint64_t sent = (uint64_t)request_size, received = (uint64_t)header_size + (uint64_t)down;
  if (up > request_size) sent += (uint64_t)up; /* a small body is counted with the request */
  transfer->client->host->count_bytes(transfer->client->backend, sent, received);
}

/* Out of libcurl. */
static void take_back(struct http_transfer *transfer) {
  struct http_client *client = transfer->client;
  curl_multi_remove_handle(client->multi, transfer->easy);
  link_out(transfer);
  client->running_count--;
  if (transfer->state == HTTP_RUNNING && transfer->request && transfer->request->lasting) client->lasting--;
  count_bytes(transfer);
  forget_server(transfer);
}

static void give_back(struct http_transfer *transfer, enum http_outcome outcome, const char *problem) {
  struct http_request *request = transfer->request;
  transfer->state = HTTP_IDLE;
  request->outcome = outcome;
  request->problem = problem;
  request->answer = (kv_slice){transfer->answer.data, transfer->answer.size};
  request->head = (kv_slice){transfer->head.data, transfer->head.size};
  request->transfer = NULL;
  request->done(request); /* may free the request */
  transfer_recycle(transfer);
}

static enum http_outcome outcome_of(const struct http_transfer *transfer, CURLcode code) {
  bool sent = transfer->request->sent;
  switch (code) {
    case CURLE_OK: return transfer->request->status ? HTTP_ANSWERED : HTTP_LOST; /* ended within its head */
    case CURLE_WRITE_ERROR: return transfer->overflow ? HTTP_TOO_LONG : HTTP_LOST;
    case CURLE_SSL_CERTPROBLEM: case CURLE_SSL_CACERT_BADFILE: case CURLE_URL_MALFORMAT:
      return sent ? HTTP_LOST : HTTP_REFUSED;
    case CURLE_OUT_OF_MEMORY: return sent ? HTTP_LOST : HTTP_FAILED;
    default: return sent ? HTTP_LOST : HTTP_NOT_SENT;
  }
}

static void completed(struct http_transfer *transfer, CURLcode code) {
  struct http_client *client = transfer->client;
  struct http_server *server = transfer->server;
  struct http_request *request = transfer->request;
  char problem[CURL_ERROR_SIZE + 340];
  take_back(transfer);
  if (!request) {
    transfer_recycle(transfer);
    return;
  }
  request->transfer = NULL;
  /* its kept connection was dead: wait for another */
  if (code != CURLE_OK && transfer->wants_socket && !request->sent) {
    request->transfer = transfer;
    transfer->state = HTTP_WAITING;
    transfer->server = NULL;
    queue_push(request->lasting ? &client->waiting_long : &client->waiting, transfer, true);
    http_pump_later(client);
    return;
  }
  enum http_outcome outcome = outcome_of(transfer, code);
  const char *why = transfer->problem[0] ? transfer->problem : curl_easy_strerror(code);
  if (code == CURLE_OK) why = "the connection ended in the middle of an answer";
  snprintf(problem, sizeof problem, "%s: %s", server->name, why);
  if (outcome == HTTP_ANSWERED) http_pool_answered(client, server);
  bool refused = outcome == HTTP_LOST && transfer->fresh && !transfer->head.size && code != CURLE_OPERATION_TIMEDOUT;
  if (outcome == HTTP_LOST && !refused && code != CURLE_OPERATION_TIMEDOUT) client->breaks++;
  if (refused && server->live) http_crowded(client);
  else if (code == CURLE_OPERATION_TIMEDOUT && request->sent) http_pool_silent(client, server);
  else if (outcome == HTTP_LOST || outcome == HTTP_NOT_SENT) http_pool_trouble(client, server);
  give_back(transfer, outcome, outcome == HTTP_ANSWERED ? NULL : problem);
}

static void collect(struct http_client *client) {
  CURLMsg *message;
  int left;
  while (!client->closed && (message = curl_multi_info_read(client->multi, &left))) {
    char *transfer = NULL;
    if (message->msg != CURLMSG_DONE) continue;
    CURLcode code = message->data.result;
    curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
    completed((struct http_transfer *)(void *)transfer, code);
  }
  if (!client->closed && (client->waiting.count || client->waiting_long.count || client->dying))
    http_pump_later(client);
}

void http_act(struct http_client *client, curl_socket_t fd, int events) {
  int running;
  if (client->closed) return;
  client->host->hold_replies();
  curl_multi_socket_action(client->multi, fd, events, &running);
  collect(client);
  client->host->release_replies();
}

static void timer_due(struct kv_timer *timer) {
  http_act(timer->data, CURL_SOCKET_TIMEOUT, 0);
}

static void fail_list(struct http_list *list, enum http_outcome outcome, const char *problem) {
  struct http_list batch = *list;
  if (!batch.first) return;
  list_init(list);
  struct http_transfer *transfer;
  while ((transfer = queue_pop(&batch))) {
    if (transfer->request)
      give_back(transfer, outcome, problem);
    else /* cancelled by one before it */
      transfer_recycle(transfer);
  }
}

void http_fail_waiting(struct http_client *client, enum http_outcome outcome, const char *problem) {
  client->host->hold_replies();
  fail_list(&client->waiting, outcome, problem);
  fail_list(&client->waiting_long, outcome, problem);
  client->host->release_replies();
}

/* ------------------------------------------------------------------ beginning */

static bool set_method(struct http_transfer *transfer, const struct http_request *request) {
  CURL *easy = transfer->easy;
  bool get = strcmp(request->method, "GET") == 0, body = !get && strcmp(request->method, "DELETE") != 0;
  bool good = true;
  if (body) {
    const char *data = transfer->body.size ? transfer->body.data : "";
    good &= curl_easy_setopt(easy, CURLOPT_POST, 1L) == CURLE_OK;
    good &= curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)transfer->body.size) == CURLE_OK;
    good &= curl_easy_setopt(easy, CURLOPT_POSTFIELDS, data) == CURLE_OK;
  } else {
    good &= curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L) == CURLE_OK;
  }
  good &= curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, get ? NULL : request->method) == CURLE_OK;
  return good;
}

static bool set_headers(struct http_transfer *transfer, const struct http_request *request) {
  const struct http_client *client = transfer->client;
  char type[120];
  struct curl_slist *headers = client->headers;
  if (request->content_type) {
    /* Ours goes in front of the client's list, which is shared and stays. */
    snprintf(type, sizeof type, "Content-Type: %s", request->content_type);
    for (const struct curl_slist *at = client->headers; at; at = at->next) {
      bool typed = strncmp(at->data, "Content-Type:", 13) == 0;
      struct curl_slist *more = curl_slist_append(transfer->headers, typed ? type : at->data);
      if (!more) return false;
      transfer->headers = more;
    }
    headers = transfer->headers;
  }
  return curl_easy_setopt(transfer->easy, CURLOPT_HTTPHEADER, headers) == CURLE_OK;
}

static bool set_url(struct http_transfer *transfer) {
  size_t base = strlen(transfer->server->base);
  char *url = malloc(base + transfer->path.size + 1);
  if (!url) return false;
  memcpy(url, transfer->server->base, base);
  memcpy(url + base, transfer->path.data, transfer->path.size);
  url[base + transfer->path.size] = '\0';
  bool good = curl_easy_setopt(transfer->easy, CURLOPT_URL, url) == CURLE_OK &&
              curl_easy_setopt(transfer->easy, CURLOPT_CONNECT_TO, transfer->server->connect_to) == CURLE_OK;
  free(url);
  return good;
}

/* Hand it to libcurl. `fd` is a connected socket for it, or -1 to use a kept connection. */
bool http_run(struct http_transfer *transfer, struct http_server *server, int fd) {
  struct http_client *client = transfer->client;
  struct http_request *request = transfer->request;
  const struct kv_config *config = client->config;
  transfer->server = server;
  transfer->fd = fd;
  transfer->state = HTTP_RUNNING;
  transfer->started = client->host->now();
  transfer->wants_socket = false;
  transfer->fresh = fd >= 0;
  transfer->problem[0] = '\0';
  transfer->head.size = transfer->answer.size = 0;
  server->running++;
  if (fd >= 0) server->live++;
  bool good = set_method(transfer, request) && set_headers(transfer, request) && set_url(transfer);
  good = good && curl_easy_setopt(transfer->easy, CURLOPT_FRESH_CONNECT, fd >= 0 ? 1L : 0L) == CURLE_OK;
  good = good && curl_easy_setopt(transfer->easy, CURLOPT_TIMEOUT_MS, (long)(request->timeout * 1000)) == CURLE_OK;
  good = good && curl_easy_setopt(transfer->easy, CURLOPT_CONNECTTIMEOUT_MS,
                                  (long)(config->connect_timeout * 1000)) == CURLE_OK;
  good = good && curl_multi_add_handle(client->multi, transfer->easy) == CURLM_OK;
  if (!good) {
    forget_server(transfer);
    return false;
  }
  link_in(&client->running, transfer);
  client->running_count++;
  if (request->lasting) client->lasting++;
  return true;
}

static void start_one(struct http_transfer *transfer, struct http_server *server, int fd) {
  if (!transfer->request) {
    if (fd >= 0) close(fd);
    transfer_recycle(transfer);
  } else if (!http_run(transfer, server, fd)) {
    give_back(transfer, HTTP_FAILED, "out of memory");
  }
}

static void reap(struct http_client *client) {
  while (client->dying) {
    struct http_transfer *transfer = client->dying;
    take_back(transfer);
    transfer_recycle(transfer);
  }
}

static void tell_refused(struct http_client *client) {
  struct http_request *request;
  while ((request = client->refused)) {
    client->refused = request->next;
    request->outcome = client->closed ? HTTP_NOT_SENT : HTTP_FAILED;
    request->problem = client->closed ? "the store was closed" : "out of memory";
    request->done(request);
  }
}

/* ------------------------------------------------------------------ proving new connections */

/* A request of our own. */
struct probe {
  struct http_request http; /* first */
  struct http_client *client;
  struct http_server *server;
};

static void proved(struct http_request *http) {
  struct probe *probe = (struct probe *)http;
  struct http_client *client = probe->client;
  client->probing--;
  if (http->outcome == HTTP_REFUSED)
    http_fail_waiting(client, HTTP_REFUSED, http->problem);
  else if (http->outcome != HTTP_ANSWERED)
    http_pool_unproved(client, probe->server, http->problem);
  free(probe);
  http_pump_later(client);
}

static void prove(struct http_client *client, struct http_server *server, int fd) {
  struct probe *probe = calloc(1, sizeof *probe);
  struct http_transfer *transfer = probe ? transfer_new(client) : NULL;
  if (!transfer || !kv_buffer_add(&transfer->path, client->probe_path, strlen(client->probe_path))) {
    if (transfer) transfer_recycle(transfer);
    free(probe);
    close(fd);
    return;
  }
  probe->client = client;
  probe->server = server;
  probe->http.method = "GET";
  probe->http.timeout = client->config->connect_timeout;
  probe->http.answer_max = 1 << 20;
  probe->http.done = proved;
  probe->http.transfer = transfer;
  transfer->answer.limit = probe->http.answer_max;
  transfer->request = &probe->http;
  client->probing++;
  start_one(transfer, server, fd);
}

static void forget_probe(struct http_transfer *transfer) {
  if (!transfer->request || transfer->request->done != proved) return;
  free(transfer->request);
  transfer->request = NULL;
}

/* Who asked for a long poll counted on what a server had told that may be another one by now. */
static bool is_outdated(const struct http_transfer *transfer) {
  const struct http_request *request = transfer->request;
  return request && request->lasting && transfer->breaks != transfer->client->breaks;
}

/* Start what waits in the list as long as there are connections. */
static bool start_waiting(struct http_client *client, struct http_list *list) {
  struct http_server *server;
  bool added = false;
  int fd = -1;
  while (list->first && (list == &client->waiting || http_pool_long_may_begin(client))) {
    const struct http_request *request = list->first->request;
    bool unproved = client->probe_path && request && request->write;
    if (is_outdated(list->first)) {
      give_back(queue_pop(list), HTTP_NOT_SENT, "a connection broke before it could be sent");
      continue;
    }
    fd = -1;
    server = http_pool_idle(client);
    if (!server && ((unproved && client->probing >= list->count) || !http_pool_spare(client, &server, &fd))) break;
    if (fd >= 0 && unproved) {
      prove(client, server, fd);
      added = true;
      continue;
    }
    start_one(queue_pop(list), server, fd);
    added = true;
  }
  return added;
}

static void pump(struct kv_task *task) {
  struct http_client *client = task->data;
  tell_refused(client);
  if (client->closed || !client->multi) return;
  reap(client);
  bool added = start_waiting(client, &client->waiting);
  added = start_waiting(client, &client->waiting_long) || added;
  http_pool_dial(client);
  if (client->tell_crowded) {
    client->tell_crowded = false;
    if (client->crowded) client->crowded(client->context);
  }
  if (added) http_act(client, CURL_SOCKET_TIMEOUT, 0);
}

void http_pump_later(struct http_client *client) {
  if (!client->closed) client->host->defer(&client->pump);
}

/* ------------------------------------------------------------------ for drivers */

struct http_client *http_client_new(const struct http_options *options) {
  struct http_client *client = calloc(1, sizeof *client);
  if (!client) return NULL;
  client->host = options->host;
  client->backend = options->backend;
  client->config = options->config;
  client->crowded = options->crowded;
  client->probe_path = options->probe_path;
  client->context = options->context;
  client->pump.run = pump;
  client->curl_timer.fire = timer_due;
  client->pump.data = client->curl_timer.data = client;
  list_init(&client->waiting);
  list_init(&client->waiting_long);
  static const char *const always[] = {"Expect:", "Content-Type:", "Accept:", NULL};
  bool good = http_pool_init(client);
  for (int list = 0; good && list < 2; list++) {
    const char *const *header = list ? options->headers : always;
    for (; header && *header && good; header++) {
      struct curl_slist *more = curl_slist_append(client->headers, *header);
      if (more) client->headers = more;
      good = more != NULL;
    }
  }
  if (good) return client;
  http_client_free(client);
  return NULL;
}

void http_client_close(struct http_client *client) {
  struct http_transfer *transfer;
  if (client->closed) return;
  http_pool_close(client);
  client->closed = true;
  client->refused = NULL;
  client->host->timer_stop(&client->curl_timer);
  while ((transfer = queue_pop(&client->waiting)) || (transfer = queue_pop(&client->waiting_long)))
    transfer_recycle(transfer);
  while ((transfer = client->dying) || (transfer = client->running)) {
    take_back(transfer);
    forget_probe(transfer);
    transfer_recycle(transfer);
  }
  while ((transfer = client->pool)) {
    link_out(transfer);
    transfer_free(transfer);
  }
  if (client->multi) curl_multi_cleanup(client->multi);
  client->multi = NULL;
  client->host->timer_stop(&client->curl_timer);
}

void http_client_free(struct http_client *client) {
  if (!client) return;
  http_pool_free(client);
  curl_slist_free_all(client->headers);
  free(client);
}

static void refuse_later(struct http_client *client, struct http_request *request) {
  request->next = client->refused;
  client->refused = request;
  client->host->defer(&client->pump);
}

void http_start(struct http_client *client, struct http_request *request) {
  struct http_transfer *transfer = !client->closed && begin(client) ? transfer_new(client) : NULL;
  request->sent = false;
  request->status = 0;
  request->answer = request->head = (kv_slice){NULL, 0};
  request->problem = NULL;
  request->transfer = NULL;
  if (transfer && !kv_buffer_add(&transfer->path, request->path->data, request->path->size)) {
    transfer_recycle(transfer);
    transfer = NULL;
  }
  if (!transfer) {
    refuse_later(client, request);
    return;
  }
  transfer->answer.limit = request->answer_max;
  if (request->body) {
    transfer->body = *request->body;
    kv_buffer_init(request->body, request->body->limit);
  }
  transfer->request = request;
  transfer->breaks = client->breaks;
  transfer->state = HTTP_WAITING;
  request->transfer = transfer;
  queue_push(request->lasting ? &client->waiting_long : &client->waiting, transfer, false);
  http_pump_later(client);
}

void http_cancel(struct http_client *client, struct http_request *request) {
  struct http_transfer *transfer = request->transfer;
  if (!transfer) {
    struct http_request **at = &client->refused;
    while (*at && *at != request) at = &(*at)->next;
    if (*at) *at = request->next;
    return;
  }
  request->transfer = NULL;
  if (transfer->request != request) return;
  if (transfer->state == HTTP_RUNNING) {
    if (request->lasting) client->lasting--;
    transfer->request = NULL;
    transfer->state = HTTP_DYING;
    link_out(transfer);
    link_in(&client->dying, transfer);
    http_pump_later(client);
  } else if (transfer->state == HTTP_WAITING) {
    transfer->request = NULL;
    if (queue_remove(request->lasting ? &client->waiting_long : &client->waiting, transfer))
      transfer_recycle(transfer); /* else http_fail_waiting() has it */
  }
}

void http_doubt(struct http_client *client, const struct http_request *request) {
  const struct http_transfer *transfer = request->transfer;
  int64_t now = client->host->now();
  if (!transfer || transfer->state != HTTP_RUNNING || now - transfer->started < SILENCE) return;
  if (now - transfer->server->heard >= SILENCE) http_pool_silent(client, transfer->server);
}

uint64_t http_breaks(const struct http_client *client) {
  return client->breaks;
}

size_t http_running(const struct http_client *client) {
  return client->running_count + client->waiting.count + client->waiting_long.count;
}
