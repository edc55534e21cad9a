/*
 * watch.c - blocking queries, shared by watches and lock waiters.
 *
 * A source is one thing that is watched: a key, or a tree. All feeds and waiters for the same thing share it. It
 * reads the whole state by a plain query, then asks to be told when the index has passed the one of that state, and
 * gets the state again; what did not change is found by the core. Somebody new is served by another plain query
 * beside the one that blocks; whichever state has the greater index counts.
 *
 * A blocking query is never given up before its time: the server would go on with it, and count its connection, all
 * the same. So they are short, and one that nobody wants any more is waited for.
 *
 * A server takes 200 connections from one address, and a blocking query holds one. So only so many sources have a
 * slot, which means a blocking query of their own; how many is found out slowly. For all others together there is one
 * query on the directory that they have in common: it gives nothing but names of one level, and comes back when
 * anything below has changed; then each of them is read once. Where that directory may not be listed, each is read now
 * and then. The index of that query is taken before they are read, so nothing is lost between; a pass over all of them
 * comes before the next question.
 *
 * Where a token is used, keys that a state of a tree does not have any more are looked after before they are told to be
 * gone: it may be the right to read them that is gone. Nothing else is asked for the tree meanwhile.
 *
 * Only service() begins and ends sources; it runs at the end of a turn, never inside of a callback.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "consul.h"

#define SLOTS_FIRST 6
#define SLOTS 24
#define SLOTS_MIN 2
#define MORE_AFTER CONSUL_SECOND    /* all slots in use without trouble for so long: a few more */
#define MORE 3
#define FEWER_FOR (120 * CONSUL_SECOND)
#define READS_AT_ONCE 8
#define WAIT_SECONDS 20   /* of a blocking query */
#define READ_TIMEOUT 20.0
#define EARLY (CONSUL_SECOND / 20)
#define EARLY_PAUSE_MAX 100 /* milliseconds between answers without news */
#define BACKOFF_MAX 1.0
#define DENIED_PAUSE 2.0   /* between looks at what has to be looked after one by one */
#define TEXT_BYTES 512
#define HIDDEN "the token may not read all of it"

enum source_kind { SOURCE_KEY, SOURCE_TREE, SOURCE_ANCESTOR };

/* A lock waiter: done when the key is gone, or another one of that name, or `holder` does not hold it any more. */
struct consul_waiter {
  struct consul_waiter *next, **link;
  struct consul_call *call;
  bool foreign;
  char holder[CONSUL_SESSION_SIZE];
  uint64_t created;          /* 0: whenever it was */
};

struct consul_read {
  struct http_request http;  /* first */
  struct consul_source *source;
  struct kv_buffer path, text;
  struct consul_pairs pairs;
  bool out;
  bool blocking;
  bool fresh;                /* the state is wanted even if it is known */
  bool probe;                /* portable mode: what is asked is whether a key stands where the tree should be */
  bool skip;                 /* what comes is known, or older than what is known */
  bool found;                /* a key: it is there, under this session, since this index */
  uint64_t created;
  char session[CONSUL_SESSION_SIZE];
  uint64_t coming;           /* the index of the answer that is coming in */
  uint64_t pass;             /* what its feeds are marked with */
  uint64_t mark;             /* a sum of what it holds */
  int64_t asked_at;
};

struct consul_source {
  struct consul_source *next, *chain;
  struct consul *consul;
  enum source_kind kind;
  struct kv_feed *feeds;
  struct consul_waiter *waiters;
  struct consul_read plain, block;
  struct kv_timer pause;
  struct consul_doubt doubt;
  uint64_t doubted;          /* the pass whose missing keys are looked after, 0: none */
  bool paused;
  bool slot;
  bool due;                  /* without a slot: something may have changed */
  bool restart;              /* the state is to be read: nobody has it, or somebody new has not */
  bool probed;               /* no key stands where the tree should be */
  bool reported;             /* the feeds were told that they are connected */
  bool retired;              /* an ancestor that is not needed any more */
  bool denied;               /* an ancestor that may not be read */
  uint64_t index;            /* of the state that is known, 0: none */
  uint64_t breaks;           /* of connections, when it was learned */
  uint64_t newest;           /* the index that came last, and when */
  int64_t newest_at;
  uint64_t pass;
  uint64_t mark;
  unsigned failures, early;
  uint32_t hash;
  size_t key_size;
  char key[];
};

static void service_later(struct consul *consul) {
  if (!consul->calls.closed) kv_consul->defer(&consul->watches.service);
}

static kv_slice key_of(const struct consul_source *source) {
  return (kv_slice){source->key, source->key_size};
}

/* What is known, and that it is: from a server that lives on, as far as one can tell. */
static void know(struct consul_source *source, uint64_t index) {
  source->index = index;
  source->breaks = http_breaks(source->consul->calls.http);
}

/* The state is read from the beginning, as a server may have lost its data meanwhile. */
static void start_over(struct consul_source *source) {
  source->restart = true;
  source->index = source->newest = 0;
}

/* Who lost his data since would wait for an index that he comes to in an hour. */
static void check_current(struct consul_source *source) {
  if (source->index && source->breaks != http_breaks(source->consul->calls.http)) start_over(source);
}

static bool wanted(const struct consul_source *source) {
  return source->feeds || source->waiters || (source->kind == SOURCE_ANCESTOR && !source->retired);
}

/* ------------------------------------------------------------------ sources and their table */

static uint32_t hash_of(enum source_kind kind, kv_slice key) {
  uint32_t hash = 2166136261u ^ (uint32_t)kind;
  for (size_t i = 0; i < key.size; i++) hash = (hash ^ (unsigned char)key.data[i]) * 16777619u;
  return hash ^ (hash >> 15);
}

static void grow(struct consul_watches *watches) {
  size_t buckets = watches->buckets ? watches->buckets * 2 : 64;
  struct consul_source **table = calloc(buckets, sizeof *table);
  if (!table) return; /* it only gets slower */
  for (struct consul_source *source = watches->first; source; source = source->next) {
    source->chain = table[source->hash & (buckets - 1)];
    table[source->hash & (buckets - 1)] = source;
  }
  free(watches->table);
  watches->table = table;
  watches->buckets = buckets;
}

static struct consul_source *find(const struct consul_watches *watches, enum source_kind kind, kv_slice key) {
  if (!watches->buckets) return NULL;
  uint32_t hash = hash_of(kind, key);
  struct consul_source *source = watches->table[hash & (watches->buckets - 1)];
  while (source && !(source->hash == hash && source->kind == kind && source->key_size == key.size &&
                     memcmp(source->key, key.data, key.size) == 0))
    source = source->chain;
  return source;
}

static void pause_over(struct kv_timer *timer);
static bool take_pair(void *context, const struct consul_pair *pair);
static void doubt_over(struct consul_doubt *doubt, kv_code code);

static void read_init(struct consul_read *reader, struct consul_source *source) {
  reader->source = source;
  kv_buffer_init(&reader->path, (size_t)16 << 10);
  kv_buffer_init(&reader->text, TEXT_BYTES);
}

static struct consul_source *source_new(struct consul *consul, enum source_kind kind, kv_slice key) {
  struct consul_source *source = calloc(1, sizeof *source + key.size + 1);
  if (!source) return NULL;
  source->consul = consul;
  source->kind = kind;
  source->key_size = key.size;
  if (key.size) memcpy(source->key, key.data, key.size);
  source->hash = hash_of(kind, key);
  source->pause.fire = pause_over;
  source->pause.data = source;
  source->restart = true;
  source->doubt = (struct consul_doubt){.consul = consul, .done = doubt_over, .data = source};
  consul_doubt_init(&source->doubt);
  read_init(&source->plain, source);
  read_init(&source->block, source);
  return source;
}

static struct consul_source *add_source(struct consul *consul, enum source_kind kind, kv_slice key) {
  struct consul_watches *watches = &consul->watches;
  struct consul_source *source;
  if (watches->count >= watches->buckets) grow(watches);
  source = watches->buckets ? source_new(consul, kind, key) : NULL;
  if (!source) return NULL;
  source->chain = watches->table[source->hash & (watches->buckets - 1)];
  watches->table[source->hash & (watches->buckets - 1)] = source;
  *watches->end = source;
  watches->end = &source->next;
  watches->count++;
  return source;
}

/* In portable mode each watch of a tree has its own: each is to be told if a key stands there when it begins. */
static struct consul_source *source_of(struct consul *consul, enum source_kind kind, kv_slice key) {
  bool shared = kind != SOURCE_TREE || !consul->config->portable;
  struct consul_source *source = shared ? find(&consul->watches, kind, key) : NULL;
  return source ? source : add_source(consul, kind, key);
}

static void ended(struct consul_read *reader) {
  struct consul_source *source = reader->source;
  reader->out = false;
  consul_pairs_free(&reader->pairs);
  if (!reader->blocking && !source->slot && source->kind != SOURCE_ANCESTOR) source->consul->watches.reading--;
}

static void give_up(struct consul_read *reader) {
  if (!reader->out) return;
  http_cancel(reader->source->consul->calls.http, &reader->http);
  ended(reader);
}

static void source_free(struct consul_source *source) {
  give_up(&source->plain);
  give_up(&source->block);
  consul_doubt_drop(&source->doubt);
  kv_consul->timer_stop(&source->pause);
  kv_buffer_free(&source->plain.path);
  kv_buffer_free(&source->plain.text);
  kv_buffer_free(&source->block.path);
  kv_buffer_free(&source->block.text);
  free(source);
}

/* Out of the list (`at` points to it) and the table. */
static void remove_source(struct consul_watches *watches, struct consul_source **at) {
  struct consul_source *source = *at, **link = &watches->table[source->hash & (watches->buckets - 1)];
  while (*link != source) link = &(*link)->chain;
  *link = source->chain;
  *at = source->next;
  if (watches->end == &source->next) watches->end = at;
  watches->count--;
  if (source->slot) watches->slots--;
  source_free(source);
}

/* ------------------------------------------------------------------ feeds: callbacks may close any of them */

static void add_feed(struct consul_source *source, struct kv_feed *feed) {
  feed->data = source;
  feed->number = 0;
  feed->previous = NULL;
  feed->next = source->feeds;
  if (feed->next) feed->next->previous = feed;
  source->feeds = feed;
}

static void remove_feed(struct consul_source *source, struct kv_feed *feed) {
  struct consul_watches *watches = &source->consul->watches;
  if (watches->next_feed == feed) watches->next_feed = feed->next;
  if (feed->previous)
    feed->previous->next = feed->next;
  else
    source->feeds = feed->next;
  if (feed->next) feed->next->previous = feed->previous;
  feed->data = NULL;
}

#define EACH_FEED(source, feed)                                                                             \
  for (struct kv_feed *feed = ((source)->consul->watches.next_feed = (source)->feeds);                     \
       feed && ((source)->consul->watches.next_feed = feed->next, true); feed = (source)->consul->watches.next_feed)

static void tell_connected(struct consul_source *source, bool connected) {
  if (source->reported == connected && !connected) return;
  source->reported = connected;
  EACH_FEED(source, feed) kv_consul->feed_connected(feed, connected);
}

static void lose_all(struct consul_source *source, kv_code code, const char *problem) {
  struct kv_feed *feed;
  while ((feed = source->feeds)) {
    remove_feed(source, feed);
    kv_consul->feed_lost(feed, code, "%s", problem);
  }
  while (source->waiters) consul_finish(source->waiters->call, code, "%s", problem);
}

/* ------------------------------------------------------------------ reading */

static uint64_t mix(uint64_t mark, uint64_t value) {
  return (mark ^ value) * UINT64_C(0x9e3779b97f4a7c15) + (mark >> 29);
}

static bool take_pair(void *context, const struct consul_pair *pair) {
  struct consul_read *reader = context;
  struct consul_source *source = reader->source;
  reader->mark = mix(mix(mix(reader->mark, pair->revision), pair->created), pair->flags);
  if (source->kind == SOURCE_KEY) {
    if (pair->key.size != source->key_size || memcmp(pair->key.data, source->key, pair->key.size) != 0) return false;
    reader->found = true;
    reader->created = pair->created;
    memcpy(reader->session, pair->session, sizeof reader->session);
  }
  EACH_FEED(source, feed) {
    if (feed->number != reader->pass) continue;
    feed->stamp = pair->flags; /* random: a server that lost its data may give the same index to another write */
    kv_consul->feed_pair(feed, pair->key, pair->value, pair->revision, pair->created);
  }
  return true;
}

static bool some_feed_wants_values(const struct consul_source *source) {
  for (const struct kv_feed *feed = source->feeds; feed; feed = feed->next)
    if (!feed->keys_only) return true;
  return false;
}

/* Everybody has seen the state of this index; or a later one came while this was on its way. */
static bool is_known(const struct consul_read *reader) {
  const struct consul_source *source = reader->source;
  if (reader->coming < source->newest && source->newest_at > reader->asked_at) return true;
  return source->index && reader->coming == source->index && !source->restart && !reader->fresh;
}

static bool gives_state(const struct consul_read *reader) {
  return !reader->probe && !reader->skip && reader->coming && reader->source->kind != SOURCE_ANCESTOR &&
         !consul_filtered(&reader->http);
}

static void on_head(struct http_request *http) {
  struct consul_read *reader = (struct consul_read *)http;
  struct consul_source *source = reader->source;
  if (http->status != 200 && http->status != 404) return;
  if (!http_header_number(http, "X-Consul-Index", &reader->coming)) reader->coming = 0;
  reader->skip = is_known(reader);
  if (!gives_state(reader)) return;
  source->newest = reader->coming;
  source->newest_at = kv_consul->now();
  source->restart = false;
  reader->found = false;
  reader->mark = 0;
  reader->pass = ++source->pass;
  reader->pairs.values = some_feed_wants_values(source);
  EACH_FEED(source, feed) {
    feed->number = reader->pass;
    kv_consul->feed_begin(feed);
  }
}

static bool on_body(struct http_request *http, const char *data, size_t size) {
  struct consul_read *reader = (struct consul_read *)http;
  if (http->status == 200) return gives_state(reader) ? consul_pairs_feed(&reader->pairs, data, size) : true;
  size_t room = TEXT_BYTES - reader->text.size;
  kv_buffer_add(&reader->text, data, size < room ? size : room);
  return true;
}

/* ------------------------------------------------------------------ what came of it */

static void pause_over(struct kv_timer *timer) {
  struct consul_source *source = timer->data;
  source->paused = false;
  service_later(source->consul);
}

static void pause(struct consul_source *source, double seconds) {
  source->paused = true;
  kv_consul->timer_set(&source->pause, kv_consul->now() + (int64_t)(seconds * (double)CONSUL_SECOND));
}

static void drop_doubt(struct consul_source *source) {
  consul_doubt_drop(&source->doubt);
  source->doubted = 0;
}

static void mark_others_due(struct consul_watches *watches) {
  for (struct consul_source *source = watches->first; source; source = source->next)
    if (!source->slot) source->due = true;
}

/*
 * What stands for all that has no slot cannot be asked: nothing is known of them, and they are read when it can be. If
 * it is only that the directory's names may not be read, they are read now and then instead.
 */
static void lose_others(const struct consul_source *ancestor) {
  struct consul_watches *watches = &ancestor->consul->watches;
  mark_others_due(watches);
  for (struct consul_source *source = watches->first; source && !ancestor->denied; source = source->next) {
    if (source->slot) continue;
    source->restart = true;
    tell_connected(source, false);
  }
}

/* It will be tried again. */
static void interrupted(struct consul_source *source) {
  double seconds = kv_consul->backoff(source->failures++);
  drop_doubt(source);
  start_over(source);
  tell_connected(source, false);
  if (source->kind == SOURCE_ANCESTOR) lose_others(source);
  if (source->denied) seconds = DENIED_PAUSE;
  else if (seconds > BACKOFF_MAX) seconds = BACKOFF_MAX;
  pause(source, seconds);
}

static void finish_waiters(struct consul_source *source, const struct consul_read *reader) {
  struct consul_waiter *next;
  for (struct consul_waiter *waiter = source->waiters; waiter; waiter = next) {
    next = waiter->next;
    bool held = reader->found && (!waiter->foreign || strcmp(reader->session, waiter->holder) == 0);
    if (waiter->created && reader->created != waiter->created) held = false;
    if (!held) consul_finish(waiter->call, KV_OK, NULL);
  }
}

/* A query that should wait and comes back at once without news must not become a spin. */
static void slow_down(struct consul_read *reader, bool news) {
  struct consul_source *source = reader->source;
  bool early = reader->blocking && kv_consul->now() - reader->asked_at < EARLY;
  source->early = early && !news ? source->early + 1 : 0;
  if (source->early < 3) return;
  double milliseconds = source->early < 10 ? (double)(1u << (source->early - 3)) : EARLY_PAUSE_MAX;
  pause(source, (milliseconds < EARLY_PAUSE_MAX ? milliseconds : EARLY_PAUSE_MAX) / 1000);
}

static void end_pass(struct consul_source *source) {
  EACH_FEED(source, feed)
    if (feed->number == source->pass) kv_consul->feed_end(feed, source->index);
}

struct missing {
  struct consul_source *source;
  uint64_t sum; /* of the keys of one feed */
};

static void add_missing(void *argument, kv_slice key) {
  struct missing *missing = argument;
  missing->sum += mix(hash_of(SOURCE_KEY, key), key.size);
  consul_doubt_add(&missing->source->doubt, key);
}

/* Are there keys to be looked after before the pass can end? */
static bool doubts(struct consul_source *source) {
  struct missing missing = {.source = source};
  uint64_t first = 0;
  drop_doubt(source);
  if (source->kind != SOURCE_TREE || !source->consul->config->token) return false;
  for (struct kv_feed *feed = source->feeds; feed; feed = feed->next) {
    size_t before = source->doubt.keys.size;
    if (feed->number != source->pass) continue;
    missing.sum = 0;
    kv_consul->feed_missing(feed, add_missing, &missing);
    if (first && missing.sum == first) source->doubt.keys.size = before; /* mostly all miss the same */
    if (!first) first = missing.sum;
  }
  return source->doubt.failed || source->doubt.keys.size;
}

static void doubt_over(struct consul_doubt *doubt, kv_code code) {
  struct consul_source *source = doubt->data;
  bool current = source->doubted == source->pass; /* else a later one has begun */
  source->doubted = 0;
  if (code == KV_DENIED) lose_all(source, KV_DENIED, HIDDEN);
  else if (code != KV_OK) interrupted(source);
  else if (current) end_pass(source);
  service_later(source->consul);
}

/* The whole state of a key or tree is there. True: it is news. */
static bool complete_state(struct consul_read *reader) {
  struct consul_source *source = reader->source;
  bool news = reader->mark != source->mark;
  if (reader->pass != source->pass) return true; /* a later one has begun */
  know(source, reader->coming);
  source->mark = reader->mark;
  if (doubts(source)) {
    source->doubted = source->pass;
    consul_doubt_ask(&source->doubt);
  } else {
    end_pass(source);
  }
  finish_waiters(source, reader);
  return news;
}

static void complete(struct consul_read *reader) {
  struct consul_source *source = reader->source;
  bool news = false;
  source->failures = 0;
  source->denied = false;
  if (source->kind == SOURCE_ANCESTOR) {
    news = reader->coming != source->index;
    know(source, reader->coming);
    source->restart = false;
    if (news) mark_others_due(&source->consul->watches);
  } else if (!reader->skip) {
    news = complete_state(reader);
  } else if (reader->coming == source->index) {
    EACH_FEED(source, feed) kv_consul->feed_commit(feed, reader->coming);
  }
  tell_connected(source, true);
  slow_down(reader, news);
}

static void refused(struct consul_read *reader) {
  struct consul_source *source = reader->source;
  char shown[200];
  int status = reader->http.status;
  kv_slice text = {reader->text.data, reader->text.size};
  kv_code code = consul_code(status, text, false);
  http_shown(text, shown, sizeof shown);
  if (status == 429) http_crowded(source->consul->calls.http);
  if (code == KV_UNAVAILABLE || source->kind == SOURCE_ANCESTOR) {
    source->denied = code != KV_UNAVAILABLE;
    interrupted(source);
  } else {
    char problem[240];
    snprintf(problem, sizeof problem, "%s%sHTTP status %d", shown, shown[0] ? ", " : "", status);
    lose_all(source, code, problem);
  }
}

static void judge(struct consul_read *reader) {
  struct consul_source *source = reader->source;
  const struct http_request *http = &reader->http;
  bool answer = http->outcome == HTTP_ANSWERED, state = answer && (http->status == 200 || http->status == 404);
  if (!wanted(source)) return;
  if (state && reader->probe && http->status == 200) {
    lose_all(source, KV_NOT_DIR, "it has a value (portable mode)");
  } else if (state && reader->probe) {
    source->probed = true;
  } else if (state && consul_filtered(http) && source->kind != SOURCE_ANCESTOR) {
    lose_all(source, KV_DENIED, HIDDEN);
  } else if (state && reader->coming &&
             (!gives_state(reader) || http->status == 404 || consul_pairs_complete(&reader->pairs))) {
    complete(reader);
  } else if (http->outcome == HTTP_REFUSED) {
    lose_all(source, KV_INVALID, http->problem);
  } else if (answer && !state) {
    refused(reader);
  } else {
    source->denied = false;
    interrupted(source);
  }
}

static void on_done(struct http_request *http) {
  struct consul_read *reader = (struct consul_read *)http;
  struct consul *consul = reader->source->consul;
  judge(reader);
  ended(reader);
  service_later(consul);
}

/* ------------------------------------------------------------------ asking */

static bool add_text(struct kv_buffer *path, const char *text) {
  return kv_buffer_add(path, text, strlen(text));
}

static bool make_path(struct consul_read *reader) {
  const struct consul_source *source = reader->source;
  struct kv_buffer *path = &reader->path;
  const char *datacenter = source->consul->config->datacenter;
  char text[80];
  path->size = 0;
  bool good = add_text(path, "/v1/kv/") && http_escape(path, key_of(source), true);
  if (source->kind != SOURCE_KEY && source->key_size && !reader->probe) good = good && add_text(path, "/");
  good = good && add_text(path, "?consistent");
  if (source->kind == SOURCE_TREE && !reader->probe) good = good && add_text(path, "&recurse");
  if (source->kind == SOURCE_ANCESTOR) good = good && add_text(path, "&keys&separator=%2F");
  if (datacenter)
    good = good && add_text(path, "&dc=") && http_escape(path, (kv_slice){datacenter, strlen(datacenter)}, false);
  snprintf(text, sizeof text, "&index=%" PRIu64 "&wait=%ds", source->index, WAIT_SECONDS);
  return good && (!reader->blocking || add_text(path, text));
}

static void ask(struct consul_read *reader, bool blocking) {
  struct consul_source *source = reader->source;
  struct consul *consul = source->consul;
  reader->blocking = blocking;
  reader->fresh = source->restart && !blocking;
  reader->probe = consul->config->portable && source->kind == SOURCE_TREE && source->key_size && !source->probed;
  if (!reader->probe && !blocking) source->restart = source->due = false;
  if (!make_path(reader)) {
    interrupted(source);
    return;
  }
  memset(&reader->http, 0, sizeof reader->http);
  consul_pairs_init(&reader->pairs, true, take_pair, reader);
  reader->text.size = 0;
  reader->skip = false;
  reader->coming = 0;
  reader->out = true;
  reader->asked_at = kv_consul->now();
  reader->http.method = "GET";
  reader->http.path = &reader->path;
  reader->http.lasting = blocking;
  /* the server adds up to a sixteenth */
  reader->http.timeout = blocking ? WAIT_SECONDS + WAIT_SECONDS / 16.0 + 8 : READ_TIMEOUT;
  reader->http.on_head = on_head;
  reader->http.on_body = on_body;
  reader->http.done = on_done;
  if (!blocking && !source->slot && source->kind != SOURCE_ANCESTOR) consul->watches.reading++;
  http_start(consul->calls.http, &reader->http);
}

/* ------------------------------------------------------------------ the one place that decides */

/* The directory that all sources without a slot have in common. False: there is no such source. */
static bool common_directory(const struct consul_watches *watches, kv_slice *common) {
  bool any = false;
  for (const struct consul_source *source = watches->first; source; source = source->next) {
    if (source->slot) continue;
    kv_slice dir = key_of(source);
    if (source->kind == SOURCE_KEY)
      while (dir.size && dir.data[dir.size - 1] != '/') dir.size--;
    if (source->kind == SOURCE_KEY && dir.size) dir.size--;
    if (any) {
      size_t same = 0, shorter = dir.size < common->size ? dir.size : common->size;
      while (same < shorter && dir.data[same] == common->data[same]) same++;
      bool whole = same == shorter && (same == dir.size || dir.data[same] == '/') &&
                   (same == common->size || common->data[same] == '/');
      while (!whole && same && dir.data[same - 1] != '/') same--;
      dir.size = whole ? same : same ? same - 1 : 0;
    }
    *common = dir;
    any = true;
  }
  return any;
}

static bool covers(const struct consul_source *ancestor, kv_slice dir) {
  return !ancestor->key_size ||
         (dir.size >= ancestor->key_size && memcmp(dir.data, ancestor->key, ancestor->key_size) == 0 &&
          (dir.size == ancestor->key_size || dir.data[ancestor->key_size] == '/'));
}

/* An ancestor that is not needed any more ends with its query. */
static void retire(struct consul_watches *watches) {
  struct consul_source *source = watches->ancestor;
  watches->ancestor = NULL;
  source->retired = true;
  source->next = watches->retired;
  watches->retired = source;
}

static void tend_ancestor(struct consul *consul) {
  struct consul_watches *watches = &consul->watches;
  kv_slice common = {NULL, 0};
  bool needed = common_directory(watches, &common);
  if (watches->ancestor && (!needed || !covers(watches->ancestor, common))) retire(watches);
  for (struct consul_source **at = &watches->retired; *at;) {
    struct consul_source *source = *at;
    if (source->block.out && source->block.http.sent) {
      at = &source->next;
      continue;
    }
    *at = source->next;
    source_free(source);
  }
  if (!needed || watches->ancestor) return;
  watches->ancestor = source_new(consul, SOURCE_ANCESTOR, common);
}

/* What nobody wants goes when its blocking query is over. */
static void drop_unwanted(struct consul_watches *watches) {
  struct consul_source **at = &watches->first;
  while (*at) {
    struct consul_source *source = *at;
    if (wanted(source)) {
      at = &source->next;
      continue;
    }
    give_up(&source->plain);
    if (!source->block.out || !source->block.http.sent)
      remove_source(watches, at);
    else
      at = &source->next;
  }
}

static void slots_change(struct kv_timer *timer) {
  struct consul_watches *watches = timer->data;
  if (watches->slots_max < SLOTS) watches->slots_max += MORE;
  if (watches->slots_max > SLOTS) watches->slots_max = SLOTS;
  kv_consul->defer(&watches->service);
}

static void give_slots(struct consul_watches *watches) {
  bool more = false;
  for (struct consul_source *source = watches->first; source; source = source->next) {
    if (source->slot || !wanted(source) || source->plain.out) continue;
    more = watches->slots >= watches->slots_max;
    if (more) break;
    source->slot = true;
    watches->slots++;
  }
  if (!more || watches->slots_max >= SLOTS || watches->growth.slot) return;
  kv_consul->timer_set(&watches->growth, kv_consul->now() + (watches->fewer ? FEWER_FOR : MORE_AFTER));
  watches->fewer = false;
}

/* The server takes no more connections from here. Queries that have none give their slots up; the next look at
 * whether there may be more comes late. */
void consul_watches_crowded(struct consul *consul) {
  struct consul_watches *watches = &consul->watches;
  for (struct consul_source *source = watches->first; source; source = source->next) {
    if (!source->slot || (source->block.out && source->block.http.sent) || source->plain.out) continue;
    give_up(&source->block);
    source->slot = false;
    source->due = true;
    watches->slots--;
  }
  watches->slots_max = watches->slots > SLOTS_MIN ? watches->slots - 1 : SLOTS_MIN;
  watches->fewer = true;
  kv_consul->timer_stop(&watches->growth);
  service_later(consul);
}

/* A slot too many is given up when its query is over. */
static void return_slot(struct consul_watches *watches, struct consul_source *source) {
  if (!source->slot || watches->slots <= watches->slots_max || source->block.out || source->plain.out) return;
  source->slot = false;
  source->due = true;
  watches->slots--;
}

static void ask_for(struct consul_watches *watches, struct consul_source *source) {
  const struct consul_source *ancestor = watches->ancestor;
  if (source->slot && !source->plain.out && !source->block.out) check_current(source);
  bool plain = source->restart || (!source->slot && source->due);
  if (!source->slot && ancestor && ancestor->failures && !ancestor->denied) return; /* it would fail like that one */
  if (!wanted(source) || source->paused || source->doubted) return;
  if (plain && !source->plain.out && (source->slot || watches->reading < READS_AT_ONCE)) ask(&source->plain, false);
  if (source->slot && !source->restart && source->index && !source->plain.out && !source->block.out)
    ask(&source->block, true);
}

static void ask_all(struct consul_watches *watches) {
  struct consul_source *ancestor = watches->ancestor;
  bool all_read = true;
  for (struct consul_source *source = watches->first; source; source = source->next) {
    return_slot(watches, source);
    ask_for(watches, source);
    if (!source->slot && wanted(source) && (source->due || source->restart || source->plain.out)) all_read = false;
  }
  if (!ancestor || ancestor->paused || ancestor->plain.out || ancestor->block.out) return;
  check_current(ancestor);
  if (ancestor->restart || !ancestor->index)
    ask(&ancestor->plain, false);
  else if (all_read)
    ask(&ancestor->block, true);
}

static void service(struct kv_task *task) {
  struct consul *consul = task->data;
  struct consul_watches *watches = &consul->watches;
  if (consul->calls.closed) return;
  drop_unwanted(watches);
  give_slots(watches);
  tend_ancestor(consul);
  ask_all(watches);
}

/* ------------------------------------------------------------------ for the core */

void consul_watches_init(struct consul *consul) {
  struct consul_watches *watches = &consul->watches;
  watches->end = &watches->first;
  watches->slots_max = SLOTS_FIRST;
  watches->service.run = service;
  watches->service.data = consul;
  watches->growth.fire = slots_change;
  watches->growth.data = watches;
}

void consul_watches_close(struct consul *consul) {
  struct consul_watches *watches = &consul->watches;
  struct consul_source *source;
  kv_consul->timer_stop(&watches->growth);
  if (watches->ancestor) retire(watches);
  while ((source = watches->retired)) {
    watches->retired = source->next;
    source_free(source);
  }
  while (watches->first) remove_source(watches, &watches->first);
}

void consul_watches_free(struct consul *consul) {
  free(consul->watches.table);
}

void consul_watch_open(void *state, struct kv_feed *feed) {
  struct consul *consul = state;
  struct consul_source *source = source_of(consul, feed->tree ? SOURCE_TREE : SOURCE_KEY, feed->key);
  if (!source) {
    kv_consul->feed_lost(feed, KV_FAILED, "out of memory");
    return;
  }
  add_feed(source, feed);
  source->restart = true;
  service_later(consul);
}

void consul_watch_close(void *state, struct kv_feed *feed) {
  struct consul *consul = state;
  if (feed->data) remove_feed(feed->data, feed);
  service_later(consul);
}

void consul_wait_gone(struct consul_call *call, kv_slice key, uint64_t index, const char *holder, uint64_t created) {
  struct consul *consul = call->consul;
  struct consul_source *source = source_of(consul, SOURCE_KEY, key);
  struct consul_waiter *waiter = source ? calloc(1, sizeof *waiter) : NULL;
  if (!waiter) {
    consul_no_memory(call);
    return;
  }
  waiter->call = call;
  waiter->foreign = holder != NULL;
  waiter->created = created;
  if (holder) snprintf(waiter->holder, sizeof waiter->holder, "%s", holder);
  waiter->next = source->waiters;
  if (waiter->next) waiter->next->link = &waiter->next;
  waiter->link = &source->waiters;
  source->waiters = waiter;
  call->waiter = waiter;
  /* What was there at that index is known to him: when nothing is known here yet, it is enough to wait behind it. */
  bool known = !source->index && !source->plain.out && !source->feeds && !waiter->next;
  if (known) know(source, index);
  source->restart = !known;
  source->due = true;
  service_later(consul);
}

void consul_waiter_free(struct consul_call *call) {
  struct consul_waiter *waiter = call->waiter;
  *waiter->link = waiter->next;
  if (waiter->next) waiter->next->link = waiter->link;
  free(waiter);
  call->waiter = NULL;
  service_later(call->consul);
}
