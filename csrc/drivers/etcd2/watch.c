/*
 * watch.c - watches: one long poll for each, which gives one event, and then the next one from the index behind it. The
 * server keeps the last 1000 events of the whole store; when what we ask for is no longer among them, the core lists.
 *
 * A poll that nothing came to is asked again after a while, from the same index: its head may have come, and the event
 * behind it be lost on the way. On a server that has much to do that costs a listing now and then. The head tells the
 * index of the server. One that is smaller than what was seen: a member that lags behind, as followers do while they
 * have no leader, and it will tell what we wait for; or the server has lost its data. Which of the two, time tells. In
 * that case, and when the cluster is another, the core lists.
 *
 * A whole directory is deleted by one event, which the server gives to all who watch something in it too.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "etcd2.h"

#define POLL_AGAIN (600 * ETCD2_SECOND)
#define PATH_BYTES ((size_t)16 << 10)
#define BACKOFF_MAX 1.0
#define LAGS_MAX 10             /* looks at an index that is too small, about 3 s: elections take 1 to 2 */

struct etcd2_poll {
  struct http_request http;   /* first */
  struct etcd2_poll *next, **link;
  struct etcd2 *etcd2;
  struct kv_feed *feed;
  struct kv_buffer path;
  struct kv_timer timer;      /* out: ask once more; otherwise: ask */
  bool out;
  uint64_t index;             /* of the next event at the earliest */
  uint64_t begun;             /* the server's index when the poll began, 0: not told */
  unsigned failures, empty, lags;
};

static void ask(struct etcd2_poll *poll);

static void poll_free(struct etcd2_poll *poll) {
  http_cancel(poll->etcd2->calls.http, &poll->http);
  kv_etcd2->timer_stop(&poll->timer);
  poll->feed->data = NULL;
  *poll->link = poll->next;
  if (poll->next) poll->next->link = poll->link;
  kv_buffer_free(&poll->path);
  free(poll);
}

/* The poll is gone afterwards. */
static void lose(struct etcd2_poll *poll, kv_code code, const char *problem) {
  struct kv_feed *feed = poll->feed;
  poll_free(poll);
  kv_etcd2->feed_lost(feed, code, "%s", problem);
}

static void ask_later(struct etcd2_poll *poll, double seconds) {
  kv_etcd2->timer_set(&poll->timer, kv_etcd2->now() + (int64_t)(seconds * (double)ETCD2_SECOND));
}

static double pause_of(unsigned n) {
  double pause = kv_etcd2->backoff(n);
  return pause < BACKOFF_MAX ? pause : BACKOFF_MAX;
}

/* ------------------------------------------------------------------ what comes */

static bool header_hex(const struct http_request *http, const char *name, uint64_t *value) {
  kv_slice text;
  *value = 0;
  if (!http_header(http, name, &text) || !text.size || text.size > 16) return false;
  for (size_t i = 0; i < text.size; i++) {
    const char *digits = "0123456789abcdef";
    const char *digit = text.data[i] ? strchr(digits, text.data[i]) : NULL;
    if (!digit) return false;
    *value = *value << 4 | (uint64_t)(digit - digits);
  }
  return true;
}

static void on_head(struct http_request *http) {
  struct etcd2_poll *poll = (struct etcd2_poll *)http;
  struct kv_feed *feed = poll->feed;
  uint64_t cluster;
  if (http->status != 200 || !http_header_number(http, "X-Etcd-Index", &poll->begun)) return;
  if (!header_hex(http, "X-Etcd-Cluster-Id", &cluster)) cluster = feed->history;
  bool other = feed->history && cluster != feed->history, lags = poll->begun + 1 < poll->index;
  feed->history = cluster;
  if (other || (lags && poll->lags >= LAGS_MAX)) {
    lose(poll, KV_COMPACTED, "the server has lost what it had told");
  } else if (lags) {
    poll->begun = 0;
    ask_later(poll, pause_of(poll->lags++));
  } else {
    poll->lags = 0;
    kv_etcd2->feed_connected(feed, true);
  }
}

static void tell(struct kv_feed *feed, const struct etcd2_event *event) {
  const struct etcd2_node *node = &event->node;
  struct kv_buffer room;
  kv_slice value = {NULL, 0};
  if (event->action == ETCD2_GONE && node->dir) {
    kv_etcd2->feed_gone(feed, node->key, node->modified);
  } else if (event->action == ETCD2_GONE || (event->action == ETCD2_PUT && node->dir && event->replaced)) {
    kv_etcd2->feed_event(feed, KV_EVENT_DELETE, node->key, value, node->modified, 0);
  } else if (event->action == ETCD2_PUT && !node->dir) {
    kv_buffer_init(&room, ETCD2_LEAF_MAX);
    if (!etcd2_value(node, &room, &value)) value = node->text;
    kv_etcd2->feed_event(feed, KV_EVENT_PUT, node->key, value, node->revision, node->created);
    kv_buffer_free(&room);
  }
}

/* An event; feeding it may close the feed. */
static void take_event(struct etcd2_poll *poll) {
  struct kv_feed *feed = poll->feed;
  struct etcd2_event event;
  struct json *answer = json_read(poll->http.answer);
  if (!answer || !etcd2_read_event(answer, &event) || event.node.modified < poll->index) {
    json_free(answer);
    lose(poll, KV_COMPACTED, "an event that is none of etcd's");
    return;
  }
  uint64_t index = event.node.modified;
  poll->index = index + 1;
  poll->failures = poll->empty = poll->lags = 0;
  /* It is the first since we asked: nothing had happened up to where the server was then. */
  if (poll->begun && index > poll->begun) kv_etcd2->feed_commit(feed, poll->begun);
  if (feed->data == poll) tell(feed, &event);
  json_free(answer);
  if (feed->data == poll) kv_etcd2->feed_commit(feed, index);
  if (feed->data == poll && !poll->out) ask(poll);
}

static void interrupted(struct etcd2_poll *poll) {
  struct kv_feed *feed = poll->feed;
  double pause = pause_of(poll->failures++);
  ask_later(poll, pause);
  kv_etcd2->feed_connected(feed, false);
}

static void refused(struct etcd2_poll *poll) {
  struct etcd2_error error;
  char told[300];
  int status = poll->http.status;
  etcd2_read_error(poll->http.answer, &error);
  kv_code code = etcd2_code(status, &error, false);
  if (status == 429) http_crowded(poll->etcd2->calls.http);
  if (code == KV_UNAVAILABLE)
    interrupted(poll);
  else
    lose(poll, code, etcd2_told(status, &error, poll->http.answer, told, sizeof told));
}

static bool is_blank(kv_slice text) {
  for (size_t i = 0; i < text.size; i++)
    if (text.data[i] != '\n' && text.data[i] != '\r' && text.data[i] != ' ') return false;
  return true;
}

static void on_done(struct http_request *http) {
  struct etcd2_poll *poll = (struct etcd2_poll *)http;
  poll->out = false;
  kv_etcd2->timer_stop(&poll->timer);
  if (http->outcome == HTTP_REFUSED)
    lose(poll, KV_INVALID, http->problem);
  else if (http->outcome == HTTP_TOO_LONG)
    lose(poll, KV_COMPACTED, "an event that is too large");
  else if (http->outcome != HTTP_ANSWERED)
    interrupted(poll);
  else if (http->status != 200)
    refused(poll);
  else if (!is_blank(http->answer))
    take_event(poll);
  else /* the server ends its polls */
    ask_later(poll, pause_of(poll->empty++));
}

/* ------------------------------------------------------------------ asking */

static bool make_path(struct etcd2_poll *poll) {
  static const char tree[] = "?wait=true&recursive=true&waitIndex=", single[] = "?wait=true&waitIndex=";
  struct kv_buffer *path = &poll->path;
  const char *query = poll->feed->tree ? tree : single;
  char number[24];
  path->size = 0;
  snprintf(number, sizeof number, "%" PRIu64, poll->index);
  return kv_buffer_add(path, "/v2/keys/", 9) && http_escape(path, poll->feed->key, true) &&
         kv_buffer_add(path, query, strlen(query)) && kv_buffer_add(path, number, strlen(number));
}

static void ask(struct etcd2_poll *poll) {
  if (!make_path(poll)) {
    lose(poll, KV_FAILED, "out of memory");
    return;
  }
  memset(&poll->http, 0, sizeof poll->http);
  poll->http.method = "GET";
  poll->http.path = &poll->path;
  poll->http.lasting = true;
  poll->http.answer_max = ETCD2_ANSWER_MAX;
  poll->http.on_head = on_head;
  poll->http.done = on_done;
  poll->begun = 0;
  poll->out = true;
  kv_etcd2->timer_set(&poll->timer, kv_etcd2->now() + POLL_AGAIN);
  http_start(poll->etcd2->calls.http, &poll->http);
}

/* Nothing came for long, or a pause is over. */
static void time_is_up(struct kv_timer *timer) {
  struct etcd2_poll *poll = timer->data;
  if (poll->out) {
    http_cancel(poll->etcd2->calls.http, &poll->http);
    poll->out = false;
  }
  ask(poll);
}

/* ------------------------------------------------------------------ for the core */

void etcd2_watch_open(void *state, struct kv_feed *feed) {
  struct etcd2 *etcd2 = state;
  if (etcd2_is_hidden(feed->key)) {
    kv_etcd2->feed_lost(feed, KV_UNSUPPORTED, "etcd v2 hides names that begin with \"_\"");
    return;
  }
  struct etcd2_poll *poll = calloc(1, sizeof *poll);
  if (!poll) {
    kv_etcd2->feed_lost(feed, KV_FAILED, "out of memory");
    return;
  }
  kv_buffer_init(&poll->path, PATH_BYTES);
  poll->etcd2 = etcd2;
  poll->feed = feed;
  poll->index = feed->from;
  poll->timer.fire = time_is_up;
  poll->timer.data = poll;
  poll->next = etcd2->polls;
  if (poll->next) poll->next->link = &poll->next;
  poll->link = &etcd2->polls;
  etcd2->polls = poll;
  feed->data = poll;
  ask(poll);
}

void etcd2_watch_close(void *state, struct kv_feed *feed) {
  (void)state;
  if (feed->data) poll_free(feed->data);
}

void etcd2_watches_close(struct etcd2 *etcd2) {
  while (etcd2->polls) poll_free(etcd2->polls);
}
