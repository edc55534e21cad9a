/*
 * watch.c - all watches of a store on one stream.
 *
 * A watcher is a feed of the core, or a lock waiter that wants to know when one key goes away. It waits for a stream,
 * is sent, and becomes open when the server has named its id; the server answers creations in the order in which they
 * were sent, which is how an answer finds its watcher (a refused creation has no id to go by). When the stream ends,
 * every watcher is given back: the core opens feeds again behind what they have seen.
 *
 * Where the store was restored from a backup, what we know of its history is void, and a watch from a revision would
 * wait for ever or miss changes in silence. It shows by the cluster's id, or by a revision that is smaller than what
 * was seen. Only a linearizable read tells the latter from a member that lags behind. Such a watch is lost with
 * KV_COMPACTED, and the core lists again.
 *
 * Events are fed as they come, but a revision is only committed when all its events are there: of a message that came
 * in fragments, the events of the last revision are held back until the next fragment. What is held is bounded.
 *
 * Callbacks may close any watcher, the one that is being fed included: `feeding` tells.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../names.h"
#include "etcd.h"

#define HELD_MAX ((size_t)64 << 20) /* of all watchers together */
#define BUCKETS_FIRST 16

enum watcher_state { WATCHER_WAITING, WATCHER_CREATING, WATCHER_OPEN };

struct etcd_watcher {
  struct kv_list node;
  struct etcd_watcher *chain; /* in its bucket */
  struct kv_feed *feed;       /* or */
  struct etcd_call *call;     /* KV_QUEUE_WAIT; neither: closed before the server answered */
  int64_t id;
  enum watcher_state state;
  struct pb_writer *held;     /* events of a revision that is not complete yet */
  struct etcd_call *doubt;    /* asks whether the store went back in time, or the entry went before it was watched */
};

/* ------------------------------------------------------------------ ids */

static size_t bucket_of(const struct etcd_watches *watches, int64_t id) {
  return (size_t)(((uint64_t)id * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (watches->buckets - 1);
}

static bool grow(struct etcd_watches *watches) {
  size_t buckets = watches->buckets ? watches->buckets * 2 : BUCKETS_FIRST;
  struct etcd_watcher **table = calloc(buckets, sizeof *table), **old = watches->table;
  size_t old_buckets = watches->buckets;
  if (!table) return old_buckets > 0; /* it only gets slower */
  watches->table = table;
  watches->buckets = buckets;
  for (size_t i = 0; i < old_buckets; i++) {
    for (struct etcd_watcher *watcher = old[i], *next; watcher; watcher = next) {
      size_t at = bucket_of(watches, watcher->id);
      next = watcher->chain;
      watcher->chain = table[at];
      table[at] = watcher;
    }
  }
  free(old);
  return true;
}

static struct etcd_watcher *find(const struct etcd_watches *watches, int64_t id) {
  if (!watches->buckets) return NULL;
  struct etcd_watcher *watcher = watches->table[bucket_of(watches, id)];
  while (watcher && watcher->id != id) watcher = watcher->chain;
  return watcher;
}

static bool insert(struct etcd_watches *watches, struct etcd_watcher *watcher) {
  if (find(watches, watcher->id)) return false;
  if (watches->count >= watches->buckets && !grow(watches)) return false;
  size_t at = bucket_of(watches, watcher->id);
  watcher->chain = watches->table[at];
  watches->table[at] = watcher;
  watches->count++;
  return true;
}

static void take_out(struct etcd_watches *watches, struct etcd_watcher *watcher) {
  struct etcd_watcher **link = &watches->table[bucket_of(watches, watcher->id)];
  while (*link && *link != watcher) link = &(*link)->chain;
  if (!*link) return;
  *link = watcher->chain;
  watches->count--;
}

/* ------------------------------------------------------------------ watchers */

static void free_held(struct etcd_watches *watches, struct pb_writer *held) {
  if (!held) return;
  watches->held -= held->size;
  pb_writer_free(held);
  free(held);
}

static void watcher_free(struct etcd *etcd, struct etcd_watcher *watcher) {
  struct etcd_watches *watches = &etcd->watches;
  if (watcher->state == WATCHER_OPEN) take_out(watches, watcher);
  if (watches->feeding == watcher) watches->feeding = NULL;
  if (watcher->doubt) watcher->doubt->watcher = NULL;
  kv_list_remove(&watcher->node);
  free_held(watches, watcher->held);
  free(watcher);
}

static struct etcd_watcher *watcher_new(struct etcd *etcd) {
  struct etcd_watcher *watcher = calloc(1, sizeof *watcher);
  if (!watcher) return NULL;
  kv_list_init(&watcher->node);
  kv_list_move(&etcd->watches.waiting, &watcher->node);
  return watcher;
}

/* The watcher is over: tell whom it was for. */
static void lose(struct etcd *etcd, struct etcd_watcher *watcher, kv_code code, const char *problem) {
  struct kv_feed *feed = watcher->feed;
  struct etcd_call *call = watcher->call;
  watcher_free(etcd, watcher);
  if (feed) {
    feed->data = NULL;
    if (code == KV_COMPACTED) feed->history = 0;
    kv_etcd->feed_lost(feed, code, "%s", problem);
  } else if (call) {
    call->watcher = NULL;
    if (code == KV_DENIED || code == KV_UNAVAILABLE)
      etcd_finish(call, code, "%s", problem);
    else
      etcd_finish(call, KV_OK, NULL); /* look again: that is harmless */
  }
}

static void lose_all(struct etcd *etcd, struct kv_list *list, kv_code code, const char *problem) {
  struct kv_list batch;
  kv_list_init(&batch);
  while (!kv_list_empty(list)) kv_list_move(&batch, list->next);
  while (!kv_list_empty(&batch)) lose(etcd, kv_list_of(struct etcd_watcher, node, batch.next), code, problem);
}

void etcd_watches_fail(struct etcd *etcd, kv_code code, const char *problem) {
  lose_all(etcd, &etcd->watches.waiting, code, problem);
}

size_t etcd_watches_active(const struct etcd *etcd) {
  const struct etcd_watches *watches = &etcd->watches;
  return watches->count + !kv_list_empty(&watches->creating);
}

/* ------------------------------------------------------------------ the stream */

static bool on_message(struct grpc_call *grpc, const uint8_t *data, size_t size);

/* Why the server ended a stream or a watch. */
static kv_code reason_code(struct etcd *etcd, int status, const char *reason, uint64_t token_number) {
  if (etcd_token_refused(etcd, status, reason)) {
    etcd_token_drop(etcd, token_number);
    return KV_UNAVAILABLE;
  }
  if (strstr(reason, "permission denied") || strstr(reason, "user name is empty") || strstr(reason, "invalid auth"))
    return KV_DENIED;
  if (strstr(reason, "compacted")) return KV_COMPACTED;
  kv_code code = status == GRPC_OK ? KV_UNAVAILABLE : etcd_code(status, reason, false);
  return code == KV_DENIED || code == KV_UNSUPPORTED ? code : KV_UNAVAILABLE;
}

static void on_end(struct grpc_call *grpc, int status, const char *message) {
  struct etcd_stream *stream = kv_list_of(struct etcd_stream, grpc, grpc);
  struct etcd *etcd = stream->etcd;
  struct etcd_link *link = stream->link;
  kv_code code = reason_code(etcd, status, message, stream->token_number);
  stream->link = NULL;
  if (code == KV_COMPACTED) code = KV_UNAVAILABLE; /* said of one watch, not of all */
  if (link && etcd_member_unfit(status, message)) etcd_link_retire(link, message);
  lose_all(etcd, &etcd->watches.creating, code, message);
  lose_all(etcd, &etcd->watches.open, code, message);
}

static const struct grpc_handler handler = {.on_message = on_message, .on_end = on_end};

/* What is in etcd->out. The first message opens the stream. */
static bool send_out(struct etcd *etcd) {
  struct etcd_stream *stream = &etcd->watches.stream;
  struct grpc_metadata metadata[2];
  etcd_wake(etcd);
  if (etcd->out.failed) return false;
  if (stream->link) return grpc_send(stream->link->grpc, &stream->grpc, etcd->out.data, etcd->out.size);
  stream->grpc.handler = &handler;
  stream->token_number = etcd->token_number;
  if (!grpc_start(etcd->link->grpc, &stream->grpc, "/etcdserverpb.Watch/Watch", etcd->out.data, etcd->out.size, false,
                  metadata, etcd_metadata(etcd, false, metadata), -1))
    return false;
  stream->link = etcd->link;
  return true;
}

static void range_of(const struct etcd *etcd, const struct kv_feed *feed, struct etcd_key *key, struct etcd_key *end) {
  if (feed->tree)
    etcd_directory(etcd, feed->key, key, end);
  else
    etcd_key_of(etcd, feed->key, key);
}

static void write_feed(struct etcd *etcd, const struct kv_feed *feed) {
  struct etcd_key key, end = {.size = 0};
  range_of(etcd, feed, &key, &end);
  etcd_write_watch_create(&etcd->out, &(struct etcd_watch_create){
                                        .key = etcd_slice(&key), .end = etcd_slice(&end), .from = feed->from});
}

static kv_slice entry_ahead(const struct kv_place *place, struct etcd_lock_key *key) {
  etcd_lock_key(place, key);
  return (kv_slice){key->data, kv_append(key->data, key->prefix, sizeof key->data, place->ahead, strlen(place->ahead))};
}

/*
 * A lock waiter: when the entry before ours goes away, from now on. A watch from the revision of our look would be told
 * of nothing for up to 100 ms where other changes have come since: the server serves watches that are behind by a
 * timer. created() looks whether the entry went in between.
 */
static void write_place(struct etcd *etcd, const struct kv_place *place) {
  struct etcd_lock_key key;
  etcd_write_watch_create(&etcd->out,
                          &(struct etcd_watch_create){.key = entry_ahead(place, &key), .deletes_only = true});
}

static bool of_other_history(const struct etcd *etcd, const struct etcd_watcher *watcher) {
  const struct kv_feed *feed = watcher->feed;
  return feed && feed->history && etcd->cluster && feed->history != etcd->cluster;
}

static const char other_history[] = "the store is another one, or was restored from a backup";

static void create(struct etcd *etcd, struct etcd_watcher *watcher) {
  if (of_other_history(etcd, watcher)) {
    lose(etcd, watcher, KV_COMPACTED, other_history);
    return;
  }
  pb_clear(&etcd->out);
  if (watcher->feed)
    write_feed(etcd, watcher->feed);
  else
    write_place(etcd, watcher->call->op->place);
  if (!send_out(etcd)) {
    lose(etcd, watcher, KV_UNAVAILABLE, "the stream of watches could not be used");
    return;
  }
  watcher->state = WATCHER_CREATING;
  kv_list_move(&etcd->watches.creating, &watcher->node);
}

void etcd_watches_start(struct etcd *etcd) {
  struct kv_list batch;
  kv_list_init(&batch);
  while (!kv_list_empty(&etcd->watches.waiting)) kv_list_move(&batch, etcd->watches.waiting.next);
  while (!kv_list_empty(&batch)) {
    struct etcd_watcher *watcher = kv_list_of(struct etcd_watcher, node, batch.next);
    if (etcd_ready(etcd))
      create(etcd, watcher);
    else
      kv_list_move(&etcd->watches.waiting, &watcher->node);
  }
}

static void cancel_on_server(struct etcd *etcd, int64_t id) {
  if (!etcd->watches.stream.link) return;
  pb_clear(&etcd->out);
  etcd_write_watch_cancel(&etcd->out, (uint64_t)id);
  send_out(etcd); /* when it cannot be sent, the stream is ending */
}

/* The server still has it. */
static void lose_open(struct etcd *etcd, struct etcd_watcher *watcher, kv_code code, const char *problem) {
  int64_t id = watcher->id;
  lose(etcd, watcher, code, problem);
  cancel_on_server(etcd, id);
}

/* ------------------------------------------------------------------ events */

/* False: the watcher is gone. */
static bool feed_one(struct etcd *etcd, struct etcd_watcher *watcher, const struct etcd_event *event) {
  if (watcher->call) {
    if (!event->deleted) return true;
    lose_open(etcd, watcher, KV_OK, "");
    return false;
  }
  const struct etcd_pair *pair = &event->pair;
  bool silent = event->deleted || watcher->feed->keys_only;
  kv_etcd->feed_event(watcher->feed, event->deleted ? KV_EVENT_DELETE : KV_EVENT_PUT,
                      etcd_key_shown(etcd, pair->key), silent ? (kv_slice){NULL, 0} : pair->value, pair->revision,
                      pair->created);
  return etcd->watches.feeding != NULL;
}

static bool commit(struct etcd *etcd, struct etcd_watcher *watcher, uint64_t revision) {
  if (watcher->feed && revision) kv_etcd->feed_commit(watcher->feed, revision);
  return etcd->watches.feeding != NULL;
}

/* Keep the event until the rest of its revision came. */
static bool hold(struct etcd_watches *watches, struct etcd_watcher *watcher, const struct etcd_event *event) {
  if (!watcher->held) {
    watcher->held = malloc(sizeof *watcher->held);
    if (!watcher->held) return false;
    pb_writer_init(watcher->held, HELD_MAX);
  }
  size_t before = watcher->held->size;
  pb_bytes_always(watcher->held, 11, event->raw.data, event->raw.size);
  watches->held += watcher->held->size - before;
  return !watcher->held->failed && watches->held <= HELD_MAX;
}

/* The held events, which were read well before. False: the watcher is gone. */
static bool feed_held(struct etcd *etcd, struct etcd_watcher *watcher) {
  struct pb_writer *held = watcher->held;
  struct pb_reader reader;
  struct etcd_event event;
  bool alive = true;
  if (!held) return true;
  watcher->held = NULL;
  etcd_events_init(&reader, (kv_slice){(const char *)held->data, held->size});
  while (alive && etcd_events_next(&reader, &event)) alive = feed_one(etcd, watcher, &event);
  free_held(&etcd->watches, held);
  return alive;
}

/* The revision of the last event of a message, 0: none. False: malformed. */
static bool last_revision(kv_slice message, uint64_t *revision) {
  struct pb_reader reader;
  struct etcd_event event;
  *revision = 0;
  etcd_events_init(&reader, message);
  while (etcd_events_next(&reader, &event)) {
    if (event.pair.revision < *revision) return false; /* they come in order */
    *revision = event.pair.revision;
  }
  return pb_ok(&reader);
}

enum fed { FED, FED_GONE, FED_BAD };

/* Feed a message; `fragment`: more of it comes, and perhaps more of its last revision. */
static enum fed feed_message(struct etcd *etcd, struct etcd_watcher *watcher, kv_slice message, bool fragment) {
  struct pb_reader reader;
  struct etcd_event event;
  uint64_t last, complete = 0;
  if (!last_revision(message, &last)) return FED_BAD;
  etcd_events_init(&reader, message);
  while (etcd_events_next(&reader, &event)) {
    if (fragment && event.pair.revision == last) {
      if (!hold(&etcd->watches, watcher, &event)) return FED_BAD;
      continue;
    }
    if (watcher->held && !feed_held(etcd, watcher)) return FED_GONE;
    if (!feed_one(etcd, watcher, &event)) return FED_GONE;
    complete = event.pair.revision;
  }
  if (fragment) {
    if (complete >= last) complete = last - 1;
  } else {
    if (!feed_held(etcd, watcher)) return FED_GONE;
    complete = last;
  }
  return commit(etcd, watcher, complete) ? FED : FED_GONE;
}

/* ------------------------------------------------------------------ what the server says */

static void text_of(kv_slice slice, char *text, size_t size) {
  size_t length = slice.size < size - 1 ? slice.size : size - 1;
  for (size_t i = 0; i < length; i++) text[i] = slice.data[i] >= 0x20 && slice.data[i] < 0x7f ? slice.data[i] : '?';
  text[length] = '\0';
}

static void ended(struct etcd *etcd, struct etcd_watcher *watcher, const struct etcd_watch_reply *reply) {
  char reason[200];
  if (reply->compacted) {
    snprintf(reason, sizeof reason, "the server's history begins at revision %" PRIu64, reply->compacted);
    lose(etcd, watcher, KV_COMPACTED, reason);
    return;
  }
  text_of(reply->reason, reason, sizeof reason);
  uint64_t token_number = etcd->watches.stream.token_number;
  kv_code code = reason_code(etcd, GRPC_OK, reason, token_number);
  /* A stream keeps the token that it was opened with: where there is (or must be) a newer one, all of it is opened
   * anew. */
  bool stale = etcd->config->username && token_number != etcd->token_number &&
               (code == KV_DENIED || etcd_token_refused(etcd, GRPC_OK, reason));
  if (stale) code = KV_UNAVAILABLE;
  lose(etcd, watcher, code, reason[0] ? reason : "the server ended the watch");
  if (stale) etcd_stream_cancel(&etcd->watches.stream);
}

/* Only called within doubt(), while the watcher is there. */
static void encode_doubt(struct etcd_call *call, struct pb_writer *out) {
  const struct kv_feed *feed = call->watcher->feed;
  struct etcd_key key, end = {.size = 0};
  struct etcd_lock_key entry;
  if (!feed) {
    kv_slice ahead = entry_ahead(call->watcher->call->op->place, &entry);
    etcd_write_range(out, &(struct etcd_range){.key = ahead, .keys_only = true});
    return;
  }
  range_of(call->etcd, feed, &key, &end);
  etcd_write_range(out, &(struct etcd_range){
                          .key = etcd_slice(&key), .end = etcd_slice(&end), .limit = 1, .keys_only = true});
}

/* The entry's name may be used again, behind ours: then the one that we wait for is gone. */
static bool see_entry(void *context, const struct etcd_pair *pair) {
  struct etcd_call *call = context;
  const struct etcd_watcher *watcher = call->watcher;
  if (watcher && watcher->call) call->succeeded = pair->created < watcher->call->op->place->ahead_revision;
  return true;
}

static bool decode_doubt(struct etcd_call *call, kv_slice message) {
  struct etcd_range_reply reply;
  if (!etcd_read_range(message, &reply, see_entry, call)) return false;
  call->revision = reply.header.revision;
  return true;
}

/* A member that lags behind will come to `from` by itself. */
static void doubt_done(struct etcd_call *call) {
  struct etcd *etcd = call->etcd;
  struct etcd_watcher *watcher = call->watcher;
  uint64_t revision = call->revision;
  bool is_there = call->succeeded;
  call->watcher = NULL;
  etcd_finish(call, KV_OK, NULL);
  if (!watcher) return;
  watcher->doubt = NULL;
  if (watcher->call && !is_there)
    lose_open(etcd, watcher, KV_OK, "");
  else if (watcher->call)
    return; /* its end will be told */
  else if (revision + 1 < watcher->feed->from)
    lose_open(etcd, watcher, KV_COMPACTED, other_history);
  else
    kv_etcd->feed_connected(watcher->feed, true);
}

static bool doubt_refused(struct etcd_call *call, int status, const char *message) {
  struct etcd *etcd = call->etcd;
  struct etcd_watcher *watcher = call->watcher;
  if (etcd_token_refused(etcd, status, message)) etcd_token_drop(etcd, call->token_number);
  call->watcher = NULL;
  etcd_finish(call, KV_OK, NULL);
  if (!watcher) return true;
  watcher->doubt = NULL;
  lose_open(etcd, watcher, watcher->call ? etcd_code(status, message, false) : KV_UNAVAILABLE, message);
  return true;
}

static const struct etcd_exchange ask_revision = {.path = "/etcdserverpb.KV/Range", .urgent = true,
                                                  .encode = encode_doubt,
                                                  .decode = decode_doubt, .done = doubt_done, .refused = doubt_refused};

static void doubt(struct etcd *etcd, struct etcd_watcher *watcher) {
  struct etcd_call *call = etcd_ready(etcd) ? etcd_call_new(etcd, NULL) : NULL;
  if (!call) {
    lose_open(etcd, watcher, KV_UNAVAILABLE, "the server's revision could not be asked");
    return;
  }
  call->watcher = watcher;
  watcher->doubt = call;
  etcd_next(call, &ask_revision);
}

static bool created(struct etcd *etcd, const struct etcd_watch_reply *reply) {
  struct etcd_watches *watches = &etcd->watches;
  if (kv_list_empty(&watches->creating)) return false;
  struct etcd_watcher *watcher = kv_list_of(struct etcd_watcher, node, watches->creating.next);
  if (reply->cancelled) {
    ended(etcd, watcher, reply);
    return true;
  }
  watcher->id = reply->id;
  if (!watcher->feed && !watcher->call) { /* closed meanwhile */
    watcher_free(etcd, watcher);
    cancel_on_server(etcd, reply->id);
    return true;
  }
  if (!insert(watches, watcher)) return false;
  watcher->state = WATCHER_OPEN;
  kv_list_move(&watches->open, &watcher->node);
  if (of_other_history(etcd, watcher))
    lose_open(etcd, watcher, KV_COMPACTED, other_history);
  else if (watcher->feed && reply->header.revision + 1 < watcher->feed->from)
    doubt(etcd, watcher);
  else if (watcher->call && reply->header.revision >= watcher->call->op->place->ahead_revision)
    doubt(etcd, watcher);
  else if (watcher->feed)
    kv_etcd->feed_connected(watcher->feed, true);
  return true;
}

static bool on_message(struct grpc_call *grpc, const uint8_t *data, size_t size) {
  struct etcd *etcd = kv_list_of(struct etcd_stream, grpc, grpc)->etcd;
  kv_slice message = {(const char *)data, size};
  struct etcd_watch_reply reply;
  if (!etcd_read_watch(message, &reply)) return false;
  etcd_see_cluster(etcd, reply.header.cluster);
  if (reply.created) return created(etcd, &reply);
  struct etcd_watcher *watcher = find(&etcd->watches, reply.id);
  if (!watcher) return true; /* closed on our side */
  etcd->watches.feeding = watcher;
  enum fed fed = FED;
  if (reply.events)
    fed = feed_message(etcd, watcher, message, reply.fragment);
  else if (!reply.cancelled && !reply.fragment)
    fed = feed_held(etcd, watcher) && commit(etcd, watcher, reply.header.revision) ? FED : FED_GONE;
  etcd->watches.feeding = NULL;
  if (fed == FED && reply.cancelled) ended(etcd, watcher, &reply);
  return fed != FED_BAD;
}

/* ------------------------------------------------------------------ what the core wants */

void etcd_watch_open(void *state, struct kv_feed *feed) {
  struct etcd *etcd = state;
  struct etcd_watcher *watcher = watcher_new(etcd);
  if (!watcher) {
    kv_etcd->feed_lost(feed, KV_UNAVAILABLE, "out of memory");
    return;
  }
  watcher->feed = feed;
  feed->data = watcher;
  if (!feed->history) feed->history = etcd->cluster;
  if (etcd_ready(etcd))
    create(etcd, watcher);
  else
    etcd_wake(etcd);
}

/* Nobody listens any more. */
static void close_watcher(struct etcd *etcd, struct etcd_watcher *watcher) {
  watcher->feed = NULL;
  watcher->call = NULL;
  if (watcher->state == WATCHER_CREATING) return; /* its id is not known yet: created() goes on */
  bool open = watcher->state == WATCHER_OPEN;
  int64_t id = watcher->id;
  watcher_free(etcd, watcher);
  if (open) cancel_on_server(etcd, id);
}

void etcd_watch_close(void *state, struct kv_feed *feed) {
  struct etcd *etcd = state;
  struct etcd_watcher *watcher = feed->data;
  feed->data = NULL;
  if (watcher) close_watcher(etcd, watcher);
}

void etcd_watch_place(struct etcd *etcd, struct kv_op *op) {
  struct etcd_call *call = etcd_call_new(etcd, op);
  if (!call) return;
  struct etcd_watcher *watcher = watcher_new(etcd);
  if (!watcher) {
    etcd_finish(call, KV_FAILED, "out of memory");
    return;
  }
  call->state = ETCD_CALL_STREAMED;
  call->watcher = watcher;
  watcher->call = call;
  if (etcd_ready(etcd))
    create(etcd, watcher);
  else
    etcd_wake(etcd);
}

void etcd_watch_cancel(struct etcd_call *call) {
  struct etcd_watcher *watcher = call->watcher;
  call->watcher = NULL;
  close_watcher(call->etcd, watcher);
  etcd_finish(call, KV_CANCELLED, "cancelled");
}

void etcd_watches_init(struct etcd *etcd) {
  struct etcd_watches *watches = &etcd->watches;
  watches->stream.etcd = etcd;
  kv_list_init(&watches->waiting);
  kv_list_init(&watches->creating);
  kv_list_init(&watches->open);
}

void etcd_watches_free(struct etcd *etcd) {
  free(etcd->watches.table);
  etcd->watches.table = NULL;
  etcd->watches.buckets = 0;
}
