/*
 * follow.c - the reactor's side of an open folder: watches, lock waiters, and what tells them that something happened.
 *
 * One reader of the history serves all watches. It is told of commits by inotify on the file `notify`, which every
 * committing process reads (its own commits too, so there is one way only). Each change is handed to the watches of
 * its key and of the directories above it, found by hash, so that thousands of watches cost nothing when others are
 * meant. A watch that begins behind that reader is first fed what it missed.
 *
 * While nobody watches or waits here, nothing is listened to, and commits of other processes wake nobody.
 * Without inotify (its instances are limited) the history is looked at from time to time while somebody waits.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "local.h"

#define SLICE 4096                       /* records looked at in one turn of the reactor */
#define PROGRESS_EVERY 4096              /* revisions: then idle watches are told how far we are */
#define POLL_EVERY (LOCAL_SECOND / 50)
#define POLLS_PER_SWEEP 10               /* looks for dead owners are rarer */
#define RETRY_EVERY (LOCAL_SECOND / 4)   /* when reading fails */
#define SUSPECT_FIRST (LOCAL_SECOND / 1000)
#define SUSPECT_TRIES 12

/* ------------------------------------------------------------------ feeds by what they watch */

static uint64_t hash_of(kv_slice key, bool tree) {
  uint64_t hash = UINT64_C(14695981039346656037) ^ (tree ? 1 : 0);
  for (size_t i = 0; i < key.size; i++) hash = (hash ^ (unsigned char)key.data[i]) * UINT64_C(1099511628211);
  return hash ^ hash >> 32;
}

static void link_feed(struct kv_local_follower *follower, struct kv_local_feed *own) {
  struct kv_local_feed **head = &follower->buckets[own->hash & (follower->bucket_count - 1)];
  own->next = *head;
  if (own->next) own->next->link = &own->next;
  own->link = head;
  *head = own;
}

/* Room for one more; false: out of memory, and there is no table at all. */
static bool grow(struct kv_local_follower *follower) {
  if (follower->feed_count < follower->bucket_count) return true;
  size_t count = follower->bucket_count ? follower->bucket_count * 2 : 16;
  struct kv_local_feed **old = follower->buckets, **buckets = calloc(count, sizeof *buckets);
  size_t old_count = follower->bucket_count;
  if (!buckets) return old != NULL; /* longer chains, then */
  follower->buckets = buckets;
  follower->bucket_count = count;
  for (size_t i = 0; i < old_count; i++) {
    struct kv_local_feed *own = old[i];
    while (own) {
      struct kv_local_feed *next = own->next;
      link_feed(follower, own);
      own = next;
    }
  }
  free(old);
  return true;
}

static void untouch(struct kv_local_feed *own) {
  if (!own->touched_link) return;
  *own->touched_link = own->touched_next;
  if (own->touched_next) own->touched_next->touched_link = own->touched_link;
  own->touched_link = NULL;
}

static void touch(struct kv_local_feed *own) {
  struct kv_local_follower *follower = own->follower;
  if (own->touched_link) return;
  own->touched_next = follower->touched;
  if (own->touched_next) own->touched_next->touched_link = &own->touched_next;
  own->touched_link = &follower->touched;
  follower->touched = own;
}

/* ------------------------------------------------------------------ handing out changes */

static void feed_change(struct kv_feed *feed, const struct kv_local_change *change) {
  kv_event_type type = change->type == LOCAL_PUT ? KV_EVENT_PUT : KV_EVENT_DELETE;
  kv_local_host->feed_event(feed, type, change->key, change->value, change->revision, change->created);
}

static bool is(const struct kv_feed *feed, kv_slice key, bool tree) {
  return feed->tree == tree && feed->key.size == key.size && memcmp(feed->key.data, key.data, key.size) == 0;
}

/* To all who watch exactly `key`, or the directory of this name. A feed may be closed inside feed_event(). */
static void feed_watchers(struct kv_local_follower *follower, kv_slice key, bool tree,
                          const struct kv_local_change *change) {
  uint64_t hash = hash_of(key, tree);
  struct kv_local_feed *own = follower->buckets[hash & (follower->bucket_count - 1)];
  for (; own; own = follower->next_feed) {
    follower->next_feed = own->next;
    if (own->hash != hash || !is(own->feed, key, tree)) continue;
    touch(own);
    feed_change(own->feed, change);
  }
  follower->next_feed = NULL;
}

static void hand_out(struct kv_local_follower *follower, const struct kv_local_change *change) {
  kv_slice key = change->key;
  if (!follower->feed_count) return;
  feed_watchers(follower, key, false, change);
  feed_watchers(follower, (kv_slice){"", 0}, true, change);
  for (size_t i = 1; i < key.size; i++)
    if (key.data[i] == '/') feed_watchers(follower, (kv_slice){key.data, i}, true, change);
}

/* Everything up to `revision` was fed. */
static void commit_touched(struct kv_local_follower *follower, uint64_t revision) {
  struct kv_local_feed *own;
  while ((own = follower->touched)) {
    untouch(own);
    kv_local_host->feed_commit(own->feed, revision);
  }
}

static void tell_progress(struct kv_local_follower *follower, uint64_t revision) {
  if (revision < follower->told_revision + PROGRESS_EVERY) return;
  follower->told_revision = revision;
  for (size_t i = 0; i < follower->bucket_count; i++)
    for (struct kv_local_feed *own = follower->buckets[i]; own; own = own->next) touch(own);
  commit_touched(follower, revision);
}

static void drop_feed(struct kv_local_feed *own) {
  struct kv_local_follower *follower = own->follower;
  if (follower->next_feed == own) follower->next_feed = own->next;
  if (follower->current == own) follower->current = NULL;
  untouch(own);
  if (own->link) {
    *own->link = own->next;
    if (own->next) own->next->link = own->link;
    follower->feed_count--;
  }
  own->feed->data = NULL;
  free(own);
}

static void lose_feed(struct kv_local_feed *own, kv_code code, const char *why) {
  struct kv_feed *feed = own->feed;
  drop_feed(own);
  kv_local_host->feed_lost(feed, code, "%s", why);
}

/* ------------------------------------------------------------------ lock waiters */

static struct kv_op **wait_bucket(struct kv_local_follower *follower, uint64_t order) {
  return &follower->waits[order % LOCAL_WAIT_BUCKETS];
}

static void unlink_wait(struct kv_local_follower *follower, struct kv_op *op) {
  if (op->previous)
    op->previous->next = op->next;
  else
    *wait_bucket(follower, op->place->ahead_revision) = op->next;
  if (op->next) op->next->previous = op->previous;
  op->next = op->previous = NULL;
  follower->wait_count--;
}

static void end_wait(struct kv_local_follower *follower, struct kv_op *op, kv_code code) {
  unlink_wait(follower, op);
  kv_local_finish(op, code, "let go");
}

/* The place `order` is gone. */
static void wake_waits(struct kv_local_follower *follower, uint64_t order) {
  struct kv_op *op = *wait_bucket(follower, order), *next;
  for (; op; op = next) {
    next = op->next;
    if (op->place->ahead_revision == order) end_wait(follower, op, KV_OK);
  }
}

/* To finish early is harmless: they look who is ahead, and wait again. */
static void wake_all(struct kv_local_follower *follower) {
  for (size_t i = 0; i < LOCAL_WAIT_BUCKETS; i++)
    while (follower->waits[i]) end_wait(follower, follower->waits[i], KV_OK);
}

/* ------------------------------------------------------------------ reading the history */

static bool behind(const struct kv_local_change *change, uint64_t revision, uint32_t sequence) {
  return change->revision < revision || (change->revision == revision && change->sequence < sequence);
}

static void look(struct kv_local_change *change, const MDB_val *key, const MDB_val *value, int *rc) {
  if (!*rc && !kv_local_change_read(key, value, change)) *rc = MDB_CORRUPTED;
}

/* Go on in the history by one slice. 0: there is more, MDB_NOTFOUND: that was all. */
static int walk(struct kv_local_follower *follower, MDB_cursor *cursor) {
  struct kv_local_key from;
  struct kv_local_change change;
  MDB_val key, value;
  kv_local_key_history(&from, follower->revision, follower->sequence);
  key = kv_local_val(&from);
  int rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
  look(&change, &key, &value, &rc);
  for (int i = 0; !rc && i < SLICE; i++) {
    if (change.type == LOCAL_GONE)
      wake_waits(follower, change.created);
    else if (change.type != LOCAL_NOTHING)
      hand_out(follower, &change);
    follower->revision = change.revision;
    follower->sequence = change.sequence + 1;
    rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    look(&change, &key, &value, &rc);
  }
  return rc;
}

/* The history no longer reaches back to where we were. */
static void lose_all(struct kv_local_follower *follower) {
  for (size_t i = 0; i < follower->bucket_count; i++)
    while (follower->buckets[i]) lose_feed(follower->buckets[i], KV_COMPACTED, "the history was cut");
  wake_all(follower);
}

static void arm(struct kv_local_follower *follower, int64_t due);

static int read_news(struct kv_local_follower *follower, MDB_txn *txn) {
  struct kv_local_change newest, oldest;
  MDB_cursor *cursor;
  bool found;
  int rc = mdb_cursor_open(txn, follower->env->dbi, &cursor);
  if (rc) return rc;
  rc = kv_local_history_ends(cursor, &newest, &oldest, &found);
  if (!rc && !kv_local_history_reaches(&newest, &oldest, follower->revision, follower->sequence)) {
    follower->revision = newest.revision + 1;
    follower->sequence = 0;
    lose_all(follower);
  } else if (!rc && found && !behind(&newest, follower->revision, follower->sequence)) {
    rc = walk(follower, cursor);
    follower->behind = rc == 0;
    if (rc == MDB_NOTFOUND) {
      follower->revision = newest.revision + 1;
      follower->sequence = 0;
      rc = 0;
    }
    if (!rc) commit_touched(follower, follower->revision - 1); /* the last one may be half done */
    if (!rc) tell_progress(follower, follower->revision - 1);
  }
  mdb_cursor_close(cursor);
  return rc;
}

static void retry_later(struct kv_local_follower *follower) {
  kv_local_host->timer_set(&follower->poll_timer, kv_local_host->now() + RETRY_EVERY);
}

static void post(struct kv_local_env *env) {
  pthread_mutex_lock(&env->lock);
  if (env->follower.active && !env->follower.posted) {
    env->follower.posted = true;
    kv_local_host->post(&env->follower.task);
  }
  pthread_mutex_unlock(&env->lock);
}

static void dispatch(struct kv_local_follower *follower) {
  struct kv_local_env *env = follower->env;
  struct kv_local_reader *reader;
  if (kv_local_reader_take(env, &reader) != 0) {
    retry_later(follower);
    return;
  }
  follower->behind = false;
  int rc = read_news(follower, reader->txn);
  int64_t due = kv_local_next_expiry(reader->txn, env->dbi);
  kv_local_reader_give(reader);
  arm(follower, due);
  if (rc) retry_later(follower);
  if (follower->behind) post(env);
}

/* ------------------------------------------------------------------ listening */

/* Not by the folder's path, which may have been relative to a working directory of before. */
static bool watch_files(struct kv_local_follower *follower) {
  char path[64];
  int folder = follower->env->folder_fd;
  if (follower->env->temporary) return false; /* only our own commits count */
  if (follower->inotify < 0) follower->inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (follower->inotify < 0) return false;
  snprintf(path, sizeof path, "/proc/self/fd/%d/notify", folder);
  follower->notify_watch = inotify_add_watch(follower->inotify, path, IN_ACCESS);
  if (follower->notify_watch < 0) return false;
  snprintf(path, sizeof path, "/proc/self/fd/%d/owners", folder);
  follower->owners_watch = inotify_add_watch(follower->inotify, path, IN_CLOSE_WRITE);
  if (follower->owners_watch >= 0) return true;
  inotify_rm_watch(follower->inotify, follower->notify_watch);
  return false;
}

static void poll_later(struct kv_local_follower *follower) {
  if (!follower->env->temporary) kv_local_host->timer_set(&follower->poll_timer, kv_local_host->now() + POLL_EVERY);
}

/* From here on everything that is committed is seen. */
static void start_listening(struct kv_local_follower *follower) {
  struct kv_local_env *env = follower->env;
  struct kv_local_change newest;
  struct kv_local_reader *reader;
  MDB_cursor *cursor;
  if (follower->listening) return;
  follower->listening = true;
  follower->polling = !watch_files(follower);
  if (follower->polling) {
    poll_later(follower);
  } else {
    follower->io.fd = follower->inotify;
    kv_local_host->io_set(&follower->io, KV_IO_READ);
  }
  atomic_store(&env->polled, follower->polling);
  follower->revision = 0;
  follower->sequence = 0;
  follower->behind = false;
  if (kv_local_reader_take(env, &reader) == 0) {
    bool found = false;
    if (mdb_cursor_open(reader->txn, env->dbi, &cursor) == 0) {
      if (kv_local_history_ends(cursor, &newest, NULL, &found) == 0) follower->revision = newest.revision + 1;
      mdb_cursor_close(cursor);
    }
    int64_t due = kv_local_next_expiry(reader->txn, env->dbi);
    kv_local_reader_give(reader);
    arm(follower, due);
  }
  follower->told_revision = follower->revision;
  if (!follower->revision) retry_later(follower);
}

static void stop_listening(struct kv_local_follower *follower) {
  if (!follower->listening) return;
  follower->listening = false;
  atomic_store(&follower->env->polled, false);
  kv_local_host->timer_stop(&follower->poll_timer);
  kv_local_host->timer_stop(&follower->suspect_timer);
  follower->suspect_count = 0;
  if (follower->polling) return;
  kv_local_host->io_remove(&follower->io);
  inotify_rm_watch(follower->inotify, follower->notify_watch);
  inotify_rm_watch(follower->inotify, follower->owners_watch);
}

static void stop_if_alone(struct kv_local_follower *follower) {
  if (!follower->feed_count && !follower->wait_count) stop_listening(follower);
}

/* ------------------------------------------------------------------ owners that end */

/* Is the place alive that this one waits for? */
static bool stands(struct kv_local_env *env, const struct kv_place *place) {
  struct kv_local_reader *reader;
  struct kv_local_key name;
  struct kv_local_place entry;
  MDB_val value;
  if (kv_local_reader_take(env, &reader) != 0) return false;
  struct kv_local_moment moment = {.env = env, .txn = reader->txn};
  kv_local_key_place(&name, place->name, place->ahead_revision);
  MDB_val key = kv_local_val(&name);
  bool there = mdb_get(reader->txn, env->dbi, &key, &value) == 0 && kv_local_place_read(&value, &entry) &&
               kv_local_place_alive(&moment, &entry);
  kv_local_reader_give(reader);
  return there;
}

/* Who waited for a place of the dead need not wait for its removal too, which takes a commit. */
static void wake_fallen(struct kv_local_follower *follower) {
  for (size_t i = 0; i < LOCAL_WAIT_BUCKETS; i++) {
    struct kv_op *op = follower->waits[i], *next;
    for (; op; op = next) {
      next = op->next;
      if (!stands(follower->env, op->place)) end_wait(follower, op, KV_OK);
    }
  }
}

/* An owner closed its file. That is told a moment before its lock is gone: then look again. True: it is settled. */
static bool look_at_owner(struct kv_local_follower *follower, uint64_t owner) {
  if (kv_local_owner_alive(follower->env, owner)) return false;
  wake_fallen(follower);
  kv_local_write_owner(follower->env, owner);
  return true;
}

static void suspect(struct kv_local_follower *follower, uint64_t owner) {
  if (look_at_owner(follower, owner)) return;
  for (size_t i = 0; i < follower->suspect_count; i++)
    if (follower->suspects[i].owner == owner) return;
  if (follower->suspect_count == LOCAL_SUSPECTS) { /* that many at once: look at all owners instead */
    kv_local_write_owner(follower->env, 0);
    return;
  }
  follower->suspects[follower->suspect_count++] = (struct kv_local_suspect){.owner = owner};
  kv_local_host->timer_set(&follower->suspect_timer, kv_local_host->now() + SUSPECT_FIRST);
}

static void suspects_due(struct kv_timer *timer) {
  struct kv_local_follower *follower = timer->data;
  unsigned least = SUSPECT_TRIES;
  size_t left = 0;
  for (size_t i = 0; i < follower->suspect_count; i++) {
    struct kv_local_suspect each = follower->suspects[i];
    if (look_at_owner(follower, each.owner) || ++each.tries == SUSPECT_TRIES) continue;
    if (each.tries < least) least = each.tries;
    follower->suspects[left++] = each;
  }
  follower->suspect_count = left;
  if (left) kv_local_host->timer_set(timer, kv_local_host->now() + (SUSPECT_FIRST << least));
}

/* ------------------------------------------------------------------ news */

struct news {
  bool commits, overflow;
};

static void read_events(struct kv_local_follower *follower, struct news *news) {
  _Alignas(struct inotify_event) char bytes[4096];
  ssize_t got;
  while ((got = read(follower->inotify, bytes, sizeof bytes)) > 0) {
    for (ssize_t at = 0; at + (ssize_t)sizeof(struct inotify_event) <= got;) {
      const struct inotify_event *event = (const struct inotify_event *)(const void *)(bytes + at);
      at += (ssize_t)(sizeof *event + event->len);
      if (event->mask & IN_Q_OVERFLOW) {
        news->overflow = true;
      } else if (event->wd == follower->notify_watch) {
        news->commits = true;
      } else if (event->wd == follower->owners_watch && event->len) {
        uint64_t owner = kv_local_owner_parse(event->name);
        if (owner) suspect(follower, owner);
      }
    }
  }
}

static void news_ready(struct kv_io *io, unsigned events) {
  struct kv_local_follower *follower = io->data;
  struct news news = {false, false};
  (void)events;
  read_events(follower, &news);
  if (news.overflow) kv_local_write_owner(follower->env, 0);
  if (news.commits || news.overflow) dispatch(follower);
  stop_if_alone(follower);
}

/* Without inotify, or after a failure. */
static void poll_due(struct kv_timer *timer) {
  struct kv_local_follower *follower = timer->data;
  if (!follower->listening) return;
  if (follower->polling) {
    poll_later(follower);
    if (++follower->polls % POLLS_PER_SWEEP == 0) kv_local_write_owner(follower->env, 0);
  }
  dispatch(follower);
  stop_if_alone(follower);
}

/* ------------------------------------------------------------------ what is due */

/* Let the timer fire at `due` (store time), if that is earlier than it would; true: it has to be set. */
static bool move_forward(struct kv_local_follower *follower, int64_t due) {
  int64_t before = atomic_load(&follower->armed);
  while (due < before)
    if (atomic_compare_exchange_weak(&follower->armed, &before, due)) return true;
  return false;
}

static void set_due_timer(struct kv_local_follower *follower) {
  int64_t at = atomic_load(&follower->armed);
  if (at != LOCAL_NEVER) kv_local_host->timer_set(&follower->due_timer, at - follower->env->shift);
}

static void arm(struct kv_local_follower *follower, int64_t due) {
  if (move_forward(follower, due)) set_due_timer(follower);
}

static void something_due(struct kv_timer *timer) {
  struct kv_local_follower *follower = timer->data;
  atomic_store(&follower->armed, LOCAL_NEVER); /* the writer sets it anew */
  kv_local_write_due(follower->env);
}

void kv_local_follow_committed(struct kv_local_env *env, int64_t due) {
  bool earlier = move_forward(&env->follower, due);
  if (earlier || atomic_load(&env->polled)) post(env);
}

static void attend(struct kv_task *task) {
  struct kv_local_follower *follower = task->data;
  struct kv_local_env *env = follower->env;
  pthread_mutex_lock(&env->lock);
  follower->posted = false;
  bool active = follower->active;
  if (!active) pthread_cond_broadcast(&env->wake); /* kv_local_follow_settle() */
  pthread_mutex_unlock(&env->lock);
  if (!active) return;
  set_due_timer(follower);
  if (follower->listening && (follower->polling || follower->behind)) dispatch(follower);
  stop_if_alone(follower);
}

/* ------------------------------------------------------------------ a watch begins */

static bool concerns(const struct kv_feed *feed, kv_slice key) {
  kv_slice own = feed->key;
  if (!feed->tree) return is(feed, key, false);
  if (!own.size) return true;
  return key.size > own.size && key.data[own.size] == '/' && memcmp(key.data, own.data, own.size) == 0;
}

/* Feed what lies between the watch's beginning and where the follower is. */
static int feed_missed(struct kv_local_feed *own, MDB_cursor *cursor) {
  struct kv_local_follower *follower = own->follower;
  struct kv_local_key from;
  struct kv_local_change change;
  MDB_val key, value;
  kv_local_key_history(&from, own->feed->from, 0);
  key = kv_local_val(&from);
  int rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
  look(&change, &key, &value, &rc);
  uint64_t revision = rc ? 0 : change.revision;
  while (!rc && behind(&change, follower->revision, follower->sequence)) {
    /* Revision by revision, so that a watch that cannot take it all may go on from there later. */
    if (change.revision > revision) {
      kv_local_host->feed_commit(own->feed, revision);
      if (follower->current != own) return 0;
      revision = change.revision;
    }
    if ((change.type == LOCAL_PUT || change.type == LOCAL_DELETE) && concerns(own->feed, change.key)) {
      feed_change(own->feed, &change);
      if (follower->current != own) return 0; /* closed meanwhile */
    }
    rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    look(&change, &key, &value, &rc);
  }
  return rc == MDB_NOTFOUND ? 0 : rc;
}

/* 0; an LMDB error; or -1: the history does not have what was asked for. */
static int catch_up(struct kv_local_feed *own) {
  struct kv_local_env *env = own->follower->env;
  struct kv_local_change newest, oldest;
  struct kv_local_reader *reader;
  MDB_cursor *cursor;
  bool found;
  int rc = kv_local_reader_take(env, &reader);
  if (rc) return rc;
  rc = mdb_cursor_open(reader->txn, env->dbi, &cursor);
  if (!rc) {
    rc = kv_local_history_ends(cursor, &newest, &oldest, &found);
    if (!rc && !kv_local_history_reaches(&newest, &oldest, own->feed->from, 0)) rc = -1;
    if (!rc) rc = feed_missed(own, cursor);
    mdb_cursor_close(cursor);
  }
  kv_local_reader_give(reader);
  return rc;
}

void kv_local_follow_open(struct kv_local_env *env, struct kv_feed *feed) {
  struct kv_local_follower *follower = &env->follower;
  struct kv_local_feed *own = grow(follower) ? calloc(1, sizeof *own) : NULL;
  if (!own) {
    kv_local_host->feed_lost(feed, KV_FAILED, "out of memory");
    return;
  }
  own->feed = feed;
  own->follower = follower;
  own->hash = hash_of(feed->key, feed->tree);
  feed->data = own;
  start_listening(follower);
  follower->current = own;
  kv_local_host->feed_connected(feed, true);
  int rc = catch_up(own);
  bool closed = follower->current != own;
  follower->current = NULL;
  if (!closed && !rc) {
    link_feed(follower, own);
    follower->feed_count++;
    kv_local_host->feed_commit(feed, follower->revision - 1);
  } else if (!closed) {
    lose_feed(own, rc == -1 ? KV_COMPACTED : KV_UNAVAILABLE, rc == -1 ? "the history was cut" : mdb_strerror(rc));
  }
  stop_if_alone(follower);
}

void kv_local_follow_close(struct kv_feed *feed) {
  struct kv_local_feed *own = feed->data;
  if (!own) return;
  struct kv_local_follower *follower = own->follower;
  drop_feed(own);
  if (!follower->current && !follower->next_feed) stop_if_alone(follower);
}

/* ------------------------------------------------------------------ a waiter comes */

void kv_local_follow_wait(struct kv_local_env *env, struct kv_op *op) {
  struct kv_local_follower *follower = &env->follower;
  struct kv_op **head = wait_bucket(follower, op->place->ahead_revision);
  start_listening(follower);
  kv_local_op_set(op, LOCAL_OP_WAITING);
  op->previous = NULL;
  op->next = *head;
  if (op->next) op->next->previous = op;
  *head = op;
  follower->wait_count++;
  /* Looked at after we began to listen, so that it cannot go unseen. */
  if (!stands(env, op->place)) end_wait(follower, op, KV_OK);
  stop_if_alone(follower);
}

void kv_local_follow_cancel(struct kv_local_env *env, struct kv_op *op) {
  end_wait(&env->follower, op, KV_CANCELLED);
  stop_if_alone(&env->follower);
}

void kv_local_follow_leave(struct kv_local_env *env, struct kv_local_store *store) {
  struct kv_local_follower *follower = &env->follower;
  for (size_t i = 0; i < LOCAL_WAIT_BUCKETS; i++) {
    struct kv_op *op = follower->waits[i], *next;
    for (; op; op = next) {
      next = op->next;
      if (op->data == store) end_wait(follower, op, KV_CLOSED);
    }
  }
  stop_if_alone(follower);
}

/* ------------------------------------------------------------------ beginning and end */

void kv_local_follow_init(struct kv_local_env *env) {
  struct kv_local_follower *follower = &env->follower;
  follower->env = env;
  follower->inotify = follower->notify_watch = follower->owners_watch = -1;
  follower->io = (struct kv_io){.fd = -1, .ready = news_ready, .data = follower};
  follower->due_timer = (struct kv_timer){.fire = something_due, .data = follower};
  follower->suspect_timer = (struct kv_timer){.fire = suspects_due, .data = follower};
  follower->poll_timer = (struct kv_timer){.fire = poll_due, .data = follower};
  follower->task = (struct kv_task){.run = attend, .data = follower};
  atomic_init(&follower->armed, LOCAL_NEVER);
}

static void set_active(struct kv_local_env *env, bool active) {
  pthread_mutex_lock(&env->lock);
  env->follower.active = active;
  pthread_mutex_unlock(&env->lock);
}

void kv_local_follow_start(struct kv_local_env *env) {
  set_active(env, true);
}

void kv_local_follow_stop(struct kv_local_env *env) {
  struct kv_local_follower *follower = &env->follower;
  set_active(env, false);
  stop_listening(follower);
  kv_local_host->timer_stop(&follower->due_timer);
  atomic_store(&follower->armed, LOCAL_NEVER);
}

void kv_local_follow_settle(struct kv_local_env *env) {
  pthread_mutex_lock(&env->lock);
  while (env->follower.posted) pthread_cond_wait(&env->wake, &env->lock);
  pthread_mutex_unlock(&env->lock);
}

void kv_local_follow_shut(struct kv_local_env *env) {
  if (env->follower.inotify >= 0) close(env->follower.inotify);
  env->follower.inotify = -1;
}

void kv_local_follow_free(struct kv_local_env *env) {
  free(env->follower.buckets);
}
