/*
 * watch.c - watches: the state that is there now, then every change, whatever happens to the connection.
 *
 * One machine per watch on the reactor:
 *   LISTING    pages of what is there; each pair is compared with what was delivered, the difference becomes events,
 *              and what was delivered but is not there any more becomes deletes
 *   STREAMING  the driver feeds changes behind `position`
 *   PAUSED     a new attempt waits for its time, or for a consumer who must take events first
 *   ENDED      final
 * Compaction, cleared history, a store that went back in time, a consumer who was too slow: all of them lead to
 * LISTING. A lost stream leads to PAUSED and on to STREAMING behind `position`.
 *
 * A watch that resumes behind a revision lists first what is there now (`base_revision`), without telling. Until it has
 * caught up with that, no listing could heal it: a key that went between the two is in neither. So a slow consumer
 * makes it wait instead of dropping the queue, and a history that is cut ends it.
 *
 * Where the driver feeds whole states (KV_CAN_SNAPSHOT) a slow consumer makes it wait too: the queue stays, and the
 * next state tells what it does not hold. A tree that is larger than a queue may be gets through in as many steps as
 * needed.
 *
 * `delivered` is the reactor's alone. It counts an event as delivered when it is queued; should the queue be dropped,
 * each of its events is taken back, newest first, so that the next listing sends what the consumer really missed.
 */
#include "watch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "delivered.h"
#include "event_queue.h"
#include "queue.h"

#define QUEUE_MAX ((size_t)8 << 20)      /* bytes of events that a slow consumer may leave lying */
#define LISTING_MAX (QUEUE_MAX / 4)      /* a listing waits while more than this lies there */
#define PAGES_MAX 64                     /* asked for at a time by all watches: ten thousand may begin at once */

enum state { LISTING, STREAMING, PAUSED, ENDED };

struct kv_watch {
  struct kv_feed feed; /* first: a driver's feed is ours */
  kv_reply ready;
  atomic_bool ready_queued;
  atomic_uint references;
  unsigned fork_count;
  kv_queue *queue;
  uint64_t view;
  uint16_t strip;
  bool no_initial, resume, previous;
  bool own;                  /* on a key of the library's own */

  /* reactor only */
  struct kv_watch *next, **link;
  struct kv_watch *page_next; /* in backend->page_first */
  bool page_queued;
  enum state state;
  bool feed_open, begun, was_synced, sweeping;
  uint32_t pass;
  unsigned failures;
  uint64_t position;         /* everything up to this revision was fed */
  uint64_t after;            /* resume */
  uint64_t base_revision;    /* resume: of the first listing */
  uint64_t listing_revision; /* of the listing under way */
  struct kv_step step;
  struct kv_timer retry;
  struct kv_delivered delivered;
  char *last_key;            /* owned: where the next page begins */

  struct kv_task task;       /* begin, and later `attend` */
  atomic_bool task_queued;

  pthread_mutex_t lock;      /* guards the rest */
  struct kv_event_queue events;
  struct kv_event_node *taken; /* the consumer's: what kv_watch_next() gave last */
  bool dropped;              /* the queue was: list again once the consumer comes */
  bool starved;              /* a listing, or catching up, waits for the consumer */
  bool closing, synced, connected, ended;
  kv_code end_code;
  char *end_message;
  uint64_t taken_position;
  int64_t current_at;        /* last time known to be current, 0: never */
};

/* ------------------------------------------------------------------ memory and waking */

static void watch_release(struct kv_watch *watch) {
  if (atomic_fetch_sub_explicit(&watch->references, 1, memory_order_acq_rel) != 1) return;
  struct kv_event_node *node;
  while ((node = kv_event_queue_pop(&watch->events))) kv_event_node_free(node);
  kv_event_node_free(watch->taken);
  kv_delivered_clear(&watch->delivered);
  kv_queue_release(watch->queue);
  kv_backend_release(watch->feed.backend);
  pthread_mutex_destroy(&watch->lock);
  free(watch->last_key);
  free(watch->end_message);
  free((char *)(uintptr_t)watch->feed.key.data);
  free(watch);
}

static void watch_retain(struct kv_watch *watch) {
  atomic_fetch_add_explicit(&watch->references, 1, memory_order_relaxed);
}

static struct kv_watch *of_reply(kv_reply *reply) {
  return (struct kv_watch *)(void *)((char *)reply - offsetof(struct kv_watch, ready));
}

static void ready_taken(kv_reply *reply) {
  atomic_store(&of_reply(reply)->ready_queued, false);
}

static void ready_release(kv_reply *reply) {
  watch_release(of_reply(reply));
}

static void notify(struct kv_watch *watch) {
  if (atomic_exchange(&watch->ready_queued, true)) return;
  watch_retain(watch);
  kv_reply_send(watch->queue, &watch->ready);
}

/* ------------------------------------------------------------------ ending */

static void close_feed(struct kv_watch *watch) {
  if (!watch->feed_open) return;
  watch->feed_open = false;
  watch->feed.backend->driver->watch_close(watch->feed.backend->state, &watch->feed);
}

static void set_connected(struct kv_watch *watch, bool connected) {
  pthread_mutex_lock(&watch->lock);
  bool changed = watch->connected != connected;
  watch->connected = connected;
  if (changed) watch->current_at = kv_now();
  pthread_mutex_unlock(&watch->lock);
  if (changed) notify(watch);
}

static void end(struct kv_watch *watch, kv_code code, const char *message) {
  if (watch->state == ENDED) return;
  watch->state = ENDED;
  close_feed(watch);
  kv_timer_stop(&watch->retry);
  kv_step_cancel(&watch->step);
  kv_count(watch->feed.backend, KV_COUNT_watches, -1);
  set_connected(watch, false);
  char text[KV_MESSAGE_MAX];
  kv_slice key = watch->feed.key;
  size_t strip = watch->strip < key.size ? watch->strip : key.size;
  snprintf(text, sizeof text, "%s \"%.*s\" on %s: %s", watch->feed.tree ? "watch_tree" : "watch",
           key.size - strip > 160 ? 160 : (int)(key.size - strip), key.data + strip, watch->feed.backend->label,
           message);
  pthread_mutex_lock(&watch->lock);
  watch->ended = true;
  watch->end_code = code;
  watch->end_message = strdup(text);
  pthread_mutex_unlock(&watch->lock);
  notify(watch);
  if (watch->link) {
    *watch->link = watch->next;
    if (watch->next) watch->next->link = watch->link;
    watch->link = NULL;
    watch_release(watch); /* the list's */
  }
}

/* ------------------------------------------------------------------ events */

static bool concerns(const struct kv_watch *watch, kv_slice key) {
  kv_slice own = watch->feed.key;
  if (!kv_key_is_canonical(key) || kv_key_is_own(key) != watch->own) return false;
  if (!watch->feed.tree) return key.size == own.size && memcmp(key.data, own.data, own.size) == 0;
  if (!own.size) return true;
  return key.size > own.size + 1 && key.data[own.size] == '/' && memcmp(key.data, own.data, own.size) == 0;
}

/* Take back what nobody took. */
static void drop_queue(struct kv_watch *watch) {
  struct kv_event_node *node;
  pthread_mutex_lock(&watch->lock);
  watch->dropped = true;
  while ((node = kv_event_queue_pop_last(&watch->events))) {
    kv_slice key = {node->bytes, node->key_size};
    if (node->had_before) {
      struct kv_known *known = kv_delivered_add(&watch->delivered, key);
      if (known) {
        known->revision = node->before_revision;
        known->created = node->before_created;
        known->stamp = node->before_stamp;
        known->pass = watch->pass ? watch->pass : 1;
        free(known->value);
        known->value = node->before_value;
        known->value_size = node->before_size;
        node->before_value = NULL;
      }
    } else {
      struct kv_known *known = kv_delivered_find(&watch->delivered, key);
      if (known) kv_delivered_remove(&watch->delivered, known);
    }
    kv_event_node_free(node);
  }
  pthread_mutex_unlock(&watch->lock);
  close_feed(watch);
  watch->state = PAUSED;
  kv_count(watch->feed.backend, KV_COUNT_resyncs, 1);
  notify(watch);
}

static bool is_catching_up(const struct kv_watch *watch) {
  return watch->resume && watch->position < watch->base_revision;
}

/* Go on when the consumer has taken most of what is there: behind `position`, or with a whole state. */
static void wait_for_consumer(struct kv_watch *watch) {
  close_feed(watch);
  watch->state = PAUSED;
  pthread_mutex_lock(&watch->lock);
  watch->starved = true;
  pthread_mutex_unlock(&watch->lock);
  notify(watch);
}

/* The queue is over its cap. */
static void shed(struct kv_watch *watch) {
  if (!(watch->feed.backend->driver->capabilities & KV_CAN_SNAPSHOT)) {
    drop_queue(watch);
    return;
  }
  wait_for_consumer(watch);
  kv_count(watch->feed.backend, KV_COUNT_resyncs, 1);
}

static void push(struct kv_watch *watch, struct kv_event_node *node) {
  node->strip = watch->strip;
  kv_count(watch->feed.backend, KV_COUNT_events, 1);
  pthread_mutex_lock(&watch->lock);
  kv_event_queue_push(&watch->events, node);
  bool over = watch->events.bytes > QUEUE_MAX;
  pthread_mutex_unlock(&watch->lock);
  notify(watch);
  /* In the middle of a sweep `delivered` must not change. */
  if (over && watch->state == STREAMING && !watch->sweeping && !is_catching_up(watch)) shed(watch);
}

/* Keep what was known of the key with the event, and make the event what is known. False: out of memory. */
static bool remember(struct kv_watch *watch, struct kv_event_node *node, struct kv_known *known, kv_slice value) {
  node->had_before = known->revision != 0 || known->pass != 0;
  node->before_revision = known->revision;
  node->before_created = known->created;
  node->before_stamp = known->stamp;
  node->before_value = known->value;
  node->before_size = known->value_size;
  known->value = NULL;
  known->value_size = 0;
  if (!watch->previous || node->type == KV_EVENT_DELETE) return true;
  known->value = malloc(value.size + 1);
  if (!known->value) return false;
  if (value.size) memcpy(known->value, value.data, value.size);
  known->value_size = (uint32_t)value.size;
  return true;
}

static void out_of_memory(struct kv_watch *watch) {
  end(watch, KV_FAILED, "out of memory");
}

static void deliver_put(struct kv_watch *watch, struct kv_known *known, kv_slice key, kv_slice value,
                        uint64_t revision, uint64_t created, bool initial) {
  kv_slice shown = watch->feed.keys_only ? (kv_slice){NULL, 0} : value;
  struct kv_event_node *node = kv_event_node_new(key, shown);
  if (!node) {
    out_of_memory(watch);
    return;
  }
  node->type = KV_EVENT_PUT;
  node->initial = initial;
  node->revision = revision;
  node->created = created;
  bool remembered = remember(watch, node, known, value);
  known->revision = revision;
  known->created = created;
  known->stamp = watch->feed.stamp;
  known->pass = watch->pass ? watch->pass : 1;
  push(watch, node);
  if (!remembered) out_of_memory(watch);
}

static void deliver_delete(struct kv_watch *watch, struct kv_known *known, kv_slice key, uint64_t revision) {
  struct kv_event_node *node = kv_event_node_new(key, (kv_slice){NULL, 0});
  if (!node) {
    out_of_memory(watch);
    return;
  }
  node->type = KV_EVENT_DELETE;
  node->revision = revision;
  if (known) {
    remember(watch, node, known, (kv_slice){NULL, 0});
    kv_delivered_remove(&watch->delivered, known);
  }
  push(watch, node);
}

/* ------------------------------------------------------------------ listing */

static void list_page(struct kv_watch *watch);
static void open_stream(struct kv_watch *watch);

/* One pair that is there: an event if the consumer does not know it in this form. */
static void see_pair(struct kv_watch *watch, const kv_pair *pair) {
  if (watch->state == ENDED || !concerns(watch, pair->key)) return;
  struct kv_known *known = kv_delivered_add(&watch->delivered, pair->key);
  if (!known) {
    out_of_memory(watch);
    return;
  }
  bool is_new = !known->pass;
  /* Before the first synchronisation these only tell what exists, not what changed. */
  bool silent = !watch->was_synced && (watch->no_initial || watch->resume);
  bool same = !is_new && known->revision == pair->revision && known->created == pair->created &&
              (known->stamp == watch->feed.stamp || !known->stamp || !watch->feed.stamp);
  /* Resumed: keys that only the base listing knew, unchanged since `after`. */
  if (!is_new && !known->revision && pair->revision <= watch->after) silent = true;
  if (same) {
    known->pass = watch->pass;
    if (watch->feed.stamp) known->stamp = watch->feed.stamp;
    return;
  }
  if (!silent) {
    deliver_put(watch, known, pair->key, pair->value, pair->revision, pair->created, !watch->was_synced);
    return;
  }
  known->pass = watch->pass;
  known->revision = watch->resume && !watch->was_synced ? 0 : pair->revision;
  known->created = known->revision ? pair->created : 0;
  known->stamp = watch->feed.stamp;
  if (watch->previous && !watch->resume) {
    free(known->value);
    known->value = malloc(pair->value.size + 1);
    known->value_size = known->value ? (uint32_t)pair->value.size : 0;
    if (known->value && pair->value.size) memcpy(known->value, pair->value.data, pair->value.size);
  }
}

static void sweep_one(void *argument, struct kv_known *known) {
  struct kv_watch *watch = argument;
  if (known->pass == watch->pass || watch->state == ENDED) return;
  char key[KV_KEY_MAX];
  size_t size = known->key_size;
  memcpy(key, known->key, size);
  deliver_delete(watch, known, (kv_slice){key, size}, watch->listing_revision);
}

static void new_pass(struct kv_watch *watch) {
  if (++watch->pass == 0) watch->pass = 1;
}

/* The whole state was seen. */
static void pass_complete(struct kv_watch *watch, uint64_t revision) {
  watch->listing_revision = revision;
  watch->sweeping = true;
  kv_delivered_each(&watch->delivered, sweep_one, watch);
  watch->sweeping = false;
  if (watch->state == ENDED) return;
  if (watch->resume && !watch->was_synced) {
    watch->position = watch->after;
    watch->base_revision = revision;
  } else {
    watch->position = revision;
  }
  watch->was_synced = true;
  watch->failures = 0;
  pthread_mutex_lock(&watch->lock);
  watch->synced = true;
  watch->current_at = kv_now();
  if (watch->events.last)
    watch->events.last->position = watch->position;
  else
    watch->taken_position = watch->position;
  pthread_mutex_unlock(&watch->lock);
  notify(watch);
}

static void start_listing(struct kv_watch *watch) {
  close_feed(watch);
  watch->feed.stamp = 0; /* listings have none */
  watch->state = LISTING;
  new_pass(watch);
  free(watch->last_key);
  watch->last_key = NULL;
  watch->listing_revision = 0;
  list_page(watch);
}

static void retry_due(struct kv_timer *timer) {
  struct kv_watch *watch = timer->data;
  if (watch->state != PAUSED) return;
  if (watch->was_synced && watch->begun)
    open_stream(watch);
  else
    start_listing(watch);
}

static void pause(struct kv_watch *watch) {
  watch->state = PAUSED;
  kv_timer_set(&watch->retry, kv_deadline(kv_now(), kv_backoff(watch->failures++)));
}

static bool remember_last_key(struct kv_watch *watch, kv_slice key) {
  char *copy = malloc(key.size + 1);
  if (!copy) return false;
  memcpy(copy, key.data, key.size);
  free(watch->last_key);
  watch->last_key = copy;
  watch->step.after = (kv_slice){copy, key.size};
  return true;
}

/* True when the listing must wait for the consumer: attend() goes on. */
static bool must_wait(struct kv_watch *watch) {
  pthread_mutex_lock(&watch->lock);
  watch->starved = watch->events.bytes > LISTING_MAX;
  bool wait = watch->starved;
  pthread_mutex_unlock(&watch->lock);
  return wait;
}

static void forget_revision(void *argument, struct kv_known *known) {
  (void)argument;
  known->revision = known->created = 0;
}

/* The store is behind what it had told: it has lost its data, and the same revision may be another write's now. */
static void begin_anew(struct kv_watch *watch) {
  kv_delivered_each(&watch->delivered, forget_revision, NULL);
  watch->after = 0;
}

static void page_done(struct kv_watch *watch, struct kv_result *result) {
  size_t offset = 0;
  kv_pair pair, last = {.key = {NULL, 0}};
  if (!watch->listing_revision && watch->was_synced && result->revision < watch->position) begin_anew(watch);
  while (result->page && kv_page_next(result->page, &offset, &pair)) {
    see_pair(watch, &pair);
    last = pair;
  }
  if (watch->state == ENDED) return;
  if (!watch->listing_revision) watch->listing_revision = result->revision;
  if (!result->more || !last.key.size) {
    pass_complete(watch, watch->listing_revision);
    if (watch->state != ENDED) open_stream(watch);
  } else if (!remember_last_key(watch, last.key)) {
    out_of_memory(watch);
  } else if (!must_wait(watch)) {
    list_page(watch);
  }
}

static void wait_for_turn(struct kv_watch *watch) {
  struct kv_backend *backend = watch->feed.backend;
  if (watch->page_queued) return;
  watch->page_queued = true;
  watch->page_next = NULL;
  watch_retain(watch);
  if (backend->page_first)
    backend->page_last->page_next = watch;
  else
    backend->page_first = watch;
  backend->page_last = watch;
}

/* A page was answered: those who wait, if they still want one. */
static void next_turns(struct kv_backend *backend) {
  while (backend->page_first && backend->pages_asked < PAGES_MAX) {
    struct kv_watch *watch = backend->page_first;
    backend->page_first = watch->page_next;
    watch->page_queued = false;
    if (watch->state == LISTING) list_page(watch);
    watch_release(watch);
  }
}

static void step_done(struct kv_step *step, kv_code code, const char *message, struct kv_result *result) {
  struct kv_watch *watch = step->data;
  watch->feed.backend->pages_asked--;
  if (watch->state == ENDED) {
    /* only the step's reference is left */
  } else if (code == KV_OK) {
    page_done(watch, result);
  } else if (code == KV_COMPACTED || code == KV_UNAVAILABLE || code == KV_UNKNOWN || code == KV_TIMEOUT) {
    watch->begun = false; /* list from the beginning */
    pause(watch);
  } else {
    end(watch, code, message);
  }
  next_turns(watch->feed.backend);
  watch_release(watch);
}

static void list_page(struct kv_watch *watch) {
  struct kv_step *step = &watch->step;
  if (watch->feed.backend->pages_asked >= PAGES_MAX) {
    wait_for_turn(watch);
    return;
  }
  watch->feed.backend->pages_asked++;
  kv_slice after = watch->last_key ? step->after : (kv_slice){NULL, 0};
  *step = (struct kv_step){.kind = watch->feed.tree ? KV_LIST : KV_GET,
                           .key = watch->feed.key,
                           .after = after,
                           .revision = watch->listing_revision,
                           .deadline = KV_NEVER,
                           .done = step_done,
                           .data = watch};
  bool needs_values = watch->previous || (!watch->feed.keys_only && !(watch->resume && !watch->was_synced));
  if (!needs_values) step->flags |= KV_KEYS_ONLY;
  if (!watch->feed.tree) step->flags |= KV_DATED;
  if (watch->feed.backend->config.portable) step->flags |= KV_PORTABLE;
  watch_retain(watch);
  kv_step_start(watch->feed.backend, step);
}

/* ------------------------------------------------------------------ streaming */

static void open_stream(struct kv_watch *watch) {
  watch->state = STREAMING;
  watch->begun = true;
  watch->feed.from = watch->position + 1;
  watch->feed.data = NULL;
  watch->feed.number = 0;
  watch->feed.next = watch->feed.previous = NULL;
  watch->feed_open = true;
  watch->feed.backend->driver->watch_open(watch->feed.backend->state, &watch->feed);
}

static struct kv_watch *of_feed(struct kv_feed *feed) {
  return (struct kv_watch *)feed;
}

void kv_feed_event(struct kv_feed *feed, kv_event_type type, kv_slice key, kv_slice value, uint64_t revision,
                   uint64_t created) {
  struct kv_watch *watch = of_feed(feed);
  bool is_stream = !(feed->backend->driver->capabilities & KV_CAN_SNAPSHOT); /* else there is no `from` */
  if (watch->state != STREAMING || (is_stream && revision < feed->from) || !concerns(watch, key)) return;
  struct kv_known *known = kv_delivered_find(&watch->delivered, key);
  if (known && revision <= known->revision) return; /* told already */
  if (type == KV_EVENT_DELETE) {
    /* A key that the consumer never saw has nothing to lose, unless he resumed and may know it from before. */
    if (known || watch->resume) deliver_delete(watch, known, key, revision);
    return;
  }
  if (!known) known = kv_delivered_add(&watch->delivered, key);
  if (known)
    deliver_put(watch, known, key, value, revision, created, false);
  else
    out_of_memory(watch);
}

void kv_feed_commit(struct kv_feed *feed, uint64_t revision) {
  struct kv_watch *watch = of_feed(feed);
  if (watch->state != STREAMING) return;
  bool catching_up = is_catching_up(watch);
  watch->failures = 0;
  if (revision > watch->position) watch->position = revision;
  pthread_mutex_lock(&watch->lock);
  watch->current_at = kv_now();
  if (watch->events.last)
    watch->events.last->position = watch->position;
  else
    watch->taken_position = watch->position;
  bool over = watch->events.bytes > QUEUE_MAX;
  pthread_mutex_unlock(&watch->lock);
  if (catching_up && over) wait_for_consumer(watch);
}

struct gone {
  struct kv_watch *watch;
  kv_slice dir;
  uint64_t revision;
};

static void gone_one(void *argument, struct kv_known *known) {
  struct gone *gone = argument;
  kv_slice dir = gone->dir;
  char key[KV_KEY_MAX];
  size_t size = known->key_size;
  bool below = !dir.size || (size >= dir.size && memcmp(known->key, dir.data, dir.size) == 0 &&
                             (size == dir.size || known->key[dir.size] == '/'));
  if (!below || known->revision >= gone->revision || gone->watch->state != STREAMING) return;
  memcpy(key, known->key, size);
  deliver_delete(gone->watch, known, (kv_slice){key, size}, gone->revision);
}

void kv_feed_gone(struct kv_feed *feed, kv_slice dir, uint64_t revision) {
  struct kv_watch *watch = of_feed(feed);
  if (watch->state != STREAMING || revision < feed->from) return;
  if (is_catching_up(watch)) { /* what was there is in no listing of ours */
    end(watch, KV_COMPACTED, "a whole directory was deleted since, and the history does not tell its keys");
    return;
  }
  struct gone gone = {.watch = watch, .dir = dir, .revision = revision};
  watch->sweeping = true;
  kv_delivered_each(&watch->delivered, gone_one, &gone);
  watch->sweeping = false;
}

void kv_feed_begin(struct kv_feed *feed) {
  new_pass(of_feed(feed));
}

void kv_feed_pair(struct kv_feed *feed, kv_slice key, kv_slice value, uint64_t revision, uint64_t created) {
  kv_pair pair = {.key = key, .value = value, .revision = revision, .created = created};
  if (of_feed(feed)->state == STREAMING) see_pair(of_feed(feed), &pair);
}

struct missing {
  uint32_t pass;
  void (*visit)(void *argument, kv_slice key);
  void *argument;
};

static void missing_one(void *argument, struct kv_known *known) {
  const struct missing *missing = argument;
  if (known->pass != missing->pass) missing->visit(missing->argument, (kv_slice){known->key, known->key_size});
}

void kv_feed_missing(struct kv_feed *feed, void (*visit)(void *argument, kv_slice key), void *argument) {
  struct kv_watch *watch = of_feed(feed);
  struct missing missing = {.pass = watch->pass, .visit = visit, .argument = argument};
  if (watch->state == STREAMING) kv_delivered_each(&watch->delivered, missing_one, &missing);
}

void kv_feed_end(struct kv_feed *feed, uint64_t revision) {
  struct kv_watch *watch = of_feed(feed);
  if (watch->state != STREAMING) return;
  pass_complete(watch, revision);
  pthread_mutex_lock(&watch->lock);
  bool over = watch->events.bytes > QUEUE_MAX;
  pthread_mutex_unlock(&watch->lock);
  if (over && watch->state == STREAMING) shed(watch);
}

void kv_feed_connected(struct kv_feed *feed, bool connected) {
  struct kv_watch *watch = of_feed(feed);
  if (watch->state != STREAMING) return;
  if (connected) watch->failures = 0;
  set_connected(watch, connected);
}

void kv_feed_lost(struct kv_feed *feed, kv_code code, const char *format, ...) {
  struct kv_watch *watch = of_feed(feed);
  char message[KV_MESSAGE_MAX] = "";
  if (format) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
  }
  watch->feed_open = false;
  if (watch->state != STREAMING) return;
  set_connected(watch, false);
  if (code == KV_COMPACTED) {
    bool from_elsewhere = watch->resume && watch->position == watch->after && watch->after > watch->base_revision;
    if (is_catching_up(watch) || from_elsewhere) {
      end(watch, KV_COMPACTED, "the history no longer reaches back to the revision to resume behind");
      return;
    }
    kv_count(feed->backend, KV_COUNT_resyncs, 1);
    watch->begun = false;
    pause(watch);
  } else if (code == KV_UNAVAILABLE || code == KV_UNKNOWN || code == KV_TIMEOUT) {
    pause(watch);
  } else {
    end(watch, code, message);
  }
}

/* ------------------------------------------------------------------ from the consumer's side, on the reactor */

/* He has taken what was there, or closed: go on with what waited for that. */
static void attend(struct kv_task *task) {
  struct kv_watch *watch = task->data;
  atomic_store(&watch->task_queued, false);
  pthread_mutex_lock(&watch->lock);
  bool closing = watch->closing, dropped = watch->dropped, starved = watch->starved;
  watch->dropped = watch->starved = false;
  pthread_mutex_unlock(&watch->lock);
  if (closing) {
    end(watch, KV_CLOSED, "the watch was closed");
  } else if (watch->state == PAUSED && dropped) {
    start_listing(watch);
  } else if (watch->state == PAUSED && starved) {
    open_stream(watch);
  } else if (watch->state == LISTING && starved) {
    list_page(watch);
  }
  watch_release(watch);
}

static void ask_to_attend(struct kv_watch *watch) {
  if (atomic_exchange(&watch->task_queued, true)) return;
  watch_retain(watch);
  watch->task.run = attend;
  watch->task.data = watch;
  if (!kv_post_if_running(&watch->task)) watch_release(watch); /* ended with its store long ago */
}

static void begin(struct kv_task *task) {
  struct kv_watch *watch = task->data;
  struct kv_backend *backend = watch->feed.backend;
  atomic_store(&watch->task_queued, false);
  watch->next = backend->watches;
  if (watch->next) watch->next->link = &watch->next;
  watch->link = &backend->watches;
  backend->watches = watch;
  kv_count(backend, KV_COUNT_watches, 1);
  if (backend->shut) {
    end(watch, KV_CLOSED, "the store was closed");
    return;
  }
  pthread_mutex_lock(&watch->lock);
  bool closing = watch->closing;
  pthread_mutex_unlock(&watch->lock);
  if (closing)
    end(watch, KV_CLOSED, "the watch was closed");
  else if (backend->driver->capabilities & KV_CAN_SNAPSHOT)
    open_stream(watch);
  else
    start_listing(watch);
}

void kv_watches_close_view(struct kv_backend *backend, uint64_t view) {
  struct kv_watch *watch = backend->watches;
  while (watch) {
    struct kv_watch *next = watch->next;
    if (!view || watch->view == view) end(watch, KV_CLOSED, "the store was closed");
    watch = next;
  }
}

/* ------------------------------------------------------------------ public */

static kv_code check(kv_store *store, const kv_watch_options *options, char *key, size_t *size, kv_error *error) {
  uint32_t can = store->backend->driver->capabilities;
  const char *what = options->tree ? "watch_tree" : "watch";
  kv_code code = kv_store_key(store, what, options->key, options->tree, key, size, error);
  if (code == KV_OK && !(can & KV_CAN_WATCH))
    code = kv_fail(error, KV_UNSUPPORTED, "watch on %s: this backend has no watches", store->label);
  if (code == KV_OK && options->resume && !(can & KV_CAN_RESUME))
    code = kv_fail(error, KV_UNSUPPORTED, "watch on %s: this backend cannot resume behind a revision", store->label);
  return code == KV_OK ? kv_store_ready(store, error) : code;
}

/* `key`: the full one. */
static kv_code open_watch(kv_store *store, kv_queue *queue, const kv_watch_options *options, const char *key,
                          size_t size, uint64_t tag, kv_watch **out, kv_error *error) {
  struct kv_watch *watch = calloc(1, sizeof *watch);
  char *own_key = malloc(size + 1);
  if (!watch || !own_key) {
    free(watch);
    free(own_key);
    return kv_fail(error, KV_FAILED, "out of memory");
  }
  memcpy(own_key, key, size);
  watch->feed.backend = store->backend;
  watch->feed.key = (kv_slice){own_key, size};
  watch->feed.tree = options->tree;
  watch->feed.keys_only = options->keys_only && !options->previous;
  watch->no_initial = options->no_initial;
  watch->resume = options->resume;
  watch->after = options->after;
  watch->previous = options->previous;
  watch->own = kv_key_is_own(watch->feed.key);
  watch->strip = (uint16_t)(store->prefix_size && !watch->own ? store->prefix_size + 1 : 0);
  watch->view = store->view;
  watch->queue = queue;
  watch->fork_count = kv_fork_count();
  watch->ready.kind = KV_WATCH_READY;
  watch->ready.tag = tag;
  watch->ready.taken = ready_taken;
  watch->ready.release = ready_release;
  watch->retry.fire = retry_due;
  watch->retry.data = watch;
  watch->task.run = begin;
  watch->task.data = watch;
  atomic_init(&watch->task_queued, true);
  atomic_init(&watch->references, 2); /* the user's, the backend's list's */
  pthread_mutex_init(&watch->lock, NULL);
  kv_queue_retain(queue);
  kv_backend_retain(store->backend);
  *out = watch;
  kv_post(&watch->task);
  return KV_OK;
}

kv_code kv_watch_open(kv_store *store, kv_queue *queue, const kv_watch_options *options, uint64_t tag,
                      kv_watch **out, kv_error *error) {
  char key[KV_KEY_MAX];
  size_t size = 0;
  *out = NULL;
  kv_code code = check(store, options, key, &size, error);
  return code == KV_OK ? open_watch(store, queue, options, key, size, tag, out, error) : code;
}

kv_code kv_watch_open_own(kv_store *store, kv_queue *queue, kv_slice key, uint64_t tag, kv_watch **out,
                          kv_error *error) {
  const kv_watch_options options = {.key = key};
  *out = NULL;
  if (kv_store_closed(store)) return kv_fail(error, KV_CLOSED, "watch on %s: the store was closed", store->label);
  kv_code code = kv_store_ready(store, error);
  return code == KV_OK ? open_watch(store, queue, &options, key.data, key.size, tag, out, error) : code;
}

static bool inherited(const kv_watch *watch) {
  return watch->fork_count != kv_fork_count();
}

static void fill(kv_event *event, const struct kv_event_node *node) {
  /* Where changes are joined, what stood there before may be of an earlier life of the key. */
  bool same_life = node->type == KV_EVENT_DELETE || node->before_created == node->created;
  *event = (kv_event){.type = node->type,
                      .key = {node->bytes + node->strip, (size_t)(node->key_size - node->strip)},
                      .value = {node->bytes + node->key_size, node->value_size},
                      .previous = {same_life ? node->before_value : NULL, same_life ? node->before_size : 0},
                      .has_previous = same_life && node->before_value != NULL,
                      .initial = node->initial,
                      .revision = node->revision,
                      .created = node->created};
}

static int tell_end(const kv_watch *watch, kv_error *error) {
  if (watch->closing)
    kv_fail(error, KV_CLOSED, "the watch was closed");
  else
    kv_fail(error, watch->end_code, "%s", watch->end_message ? watch->end_message : kv_code_meaning(watch->end_code));
  return -1;
}

int kv_watch_next(kv_watch *watch, kv_event *event, kv_error *error) {
  if (inherited(watch)) {
    kv_fail(error, KV_CLOSED, "the watch belongs to the parent process");
    return -1;
  }
  pthread_mutex_lock(&watch->lock);
  kv_event_node_free(watch->taken);
  watch->taken = watch->closing ? NULL : kv_event_queue_pop(&watch->events);
  int result = 0;
  if (watch->taken) {
    fill(event, watch->taken);
    if (watch->taken->position > watch->taken_position) watch->taken_position = watch->taken->position;
    result = 1;
  } else if (watch->closing || watch->ended) {
    result = tell_end(watch, error);
  }
  bool hungry = (watch->dropped && !watch->taken) || (watch->starved && watch->events.bytes < LISTING_MAX / 2);
  pthread_mutex_unlock(&watch->lock);
  if (hungry) ask_to_attend(watch);
  return result;
}

/* The lock is taken for reading too: const means that callers see no change. */
static struct kv_watch *locked(const kv_watch *watch) {
  struct kv_watch *own = (struct kv_watch *)(uintptr_t)watch;
  pthread_mutex_lock(&own->lock);
  return own;
}

bool kv_watch_synced(const kv_watch *watch) {
  if (inherited(watch)) return false;
  struct kv_watch *own = locked(watch);
  bool synced = own->synced;
  pthread_mutex_unlock(&own->lock);
  return synced;
}

bool kv_watch_connected(const kv_watch *watch) {
  if (inherited(watch)) return false;
  struct kv_watch *own = locked(watch);
  bool connected = own->connected && !own->ended && !own->closing;
  pthread_mutex_unlock(&own->lock);
  return connected;
}

uint64_t kv_watch_revision(const kv_watch *watch) {
  if (inherited(watch)) return 0;
  struct kv_watch *own = locked(watch);
  uint64_t revision = own->taken_position;
  pthread_mutex_unlock(&own->lock);
  return revision;
}

double kv_watch_age(const kv_watch *watch) {
  if (inherited(watch)) return HUGE_VAL;
  struct kv_watch *own = locked(watch);
  double age = HUGE_VAL;
  if (own->synced && own->connected)
    age = 0;
  else if (own->current_at)
    age = (double)(kv_clock() - own->current_at) / (double)KV_SECOND;
  pthread_mutex_unlock(&own->lock);
  return age;
}

void kv_watch_close(kv_watch *watch) {
  if (inherited(watch)) return;
  pthread_mutex_lock(&watch->lock);
  bool first = !watch->closing;
  watch->closing = true;
  pthread_mutex_unlock(&watch->lock);
  if (first) {
    ask_to_attend(watch);
    notify(watch);
  }
}

void kv_watch_free(kv_watch *watch) {
  if (!watch || inherited(watch)) return;
  kv_watch_close(watch);
  watch_release(watch);
}
