/*
 * watch.c - feeds, made of the server's one-shot watches.
 *
 * A watcher has a spot for each node that it follows: one for a key; for a tree, its root and every node below. A
 * spot is read with a watch (data for what may be a key, names for what may have children), the watch fires once, and
 * reading again arms it again: nothing can happen between the reading and the arming, as they are one. What is read
 * is compared by its transaction numbers, so that a node that was deleted and made again is seen as what it is.
 *
 * A pass reads everything and feeds it as a whole state: at the beginning, and when the session of the root has expired
 * with all its watches. After that only what fired is read again and fed as an event. When a connection is lost and the
 * session survives, the library arms its watches again on the new connection, and only what was being read is read
 * again.
 *
 * That a node is gone is told by the names in its directory, and at which revision by that directory's pzxid at the
 * same moment; for the root of a watcher, by the nearest ancestor that is there.
 *
 * The library sends all paths that it watches in one packet when it connects again, and a server takes no more than a
 * megabyte: so spots are spread over sessions.
 */
#include <stdlib.h>
#include <string.h>

#include "zookeeper.h"

#define WINDOW 512 /* reads under way for one watcher */
#define SKIPS_MAX 64 /* spots without a connection that are looked at in vain */

enum { DATA = 1, NAMES = 2, ABSENCE = 4 };

struct watcher;

struct spot {
  struct watcher *watcher;
  struct spot *parent;
  struct spot *first, *next, **link; /* children; siblings */
  struct spot *chain;                /* in its bucket */
  struct kv_list todo;               /* to be read */
  struct zk_session *session;
  uint64_t generation;               /* of the session, when it was armed */
  unsigned want, reading, armed;     /* DATA, NAMES, ABSENCE */
  unsigned pass;                     /* the reading of the directory that saw it last */
  unsigned dependents;               /* children that are not freed, the dead ones too: their paths begin with ours */
  int64_t known;                     /* the revision of the key that was fed; 0: none */
  bool dead;                         /* to be freed */
  uint16_t size, bytes;
  char name[];                       /* of a root: its whole path */
};

struct watcher {
  struct kv_list node;    /* zk.feeds, or to be freed */
  struct zk *zk;
  struct kv_feed *feed;   /* NULL: closed */
  struct spot *root;
  struct kv_list todo;
  struct kv_list graves;  /* dead spots, linked by `todo` */
  struct spot **buckets;  /* by parent and name */
  size_t bucket_count, count;
  size_t in_flight;
  unsigned passes;
  bool live;              /* the whole state was fed */
  bool tree;
  bool begun;             /* else it waits for its first connection, or for what type_read() will say */
  bool connected;
  int64_t revision;       /* the highest seen */
  int64_t gone_at;        /* of the root, being found out */
  char *climbing;         /* owned: the ancestor being looked at */
  struct kv_task bury;
};

static void pump(struct watcher *watcher);
static void data_event(zhandle_t *handle, int type, int state, const char *path, void *context);
static void names_event(zhandle_t *handle, int type, int state, const char *path, void *context);
static void absence_event(zhandle_t *handle, int type, int state, const char *path, void *context);

/* ------------------------------------------------------------------ spots */

static size_t path_of(const struct spot *spot, char path[ZK_PATH_MAX * 4]) {
  if (!spot->parent) {
    memcpy(path, spot->name, (size_t)spot->size + 1);
    return spot->size;
  }
  size_t size = path_of(spot->parent, path);
  if (size == 1) size = 0; /* the root */
  path[size] = '/';
  memcpy(path + size + 1, spot->name, (size_t)spot->size + 1);
  return size + 1 + spot->size;
}

static uint32_t hash_of(const struct spot *parent, const char *name) {
  uint32_t hash = 2166136261u ^ (uint32_t)((uintptr_t)parent >> 4);
  for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 16777619u;
  return hash ^ hash >> 15;
}

static void grow(struct watcher *watcher) {
  size_t count = watcher->bucket_count ? watcher->bucket_count * 2 : 16;
  struct spot **buckets = calloc(count, sizeof *buckets);
  if (!buckets) return; /* slower, but right */
  for (size_t i = 0; i < watcher->bucket_count; i++) {
    for (struct spot *spot = watcher->buckets[i], *next; spot; spot = next) {
      size_t at = hash_of(spot->parent, spot->name) & (count - 1);
      next = spot->chain;
      spot->chain = buckets[at];
      buckets[at] = spot;
    }
  }
  free(watcher->buckets);
  watcher->buckets = buckets;
  watcher->bucket_count = count;
}

static struct spot **find_child(struct watcher *watcher, const struct spot *parent, const char *name) {
  static struct spot *nothing;
  if (!watcher->bucket_count) return &nothing;
  struct spot **at = &watcher->buckets[hash_of(parent, name) & (watcher->bucket_count - 1)];
  while (*at && ((*at)->parent != parent || strcmp((*at)->name, name) != 0)) at = &(*at)->chain;
  return at;
}

/* A session with room for that many bytes of paths. */
static struct zk_session *room_for(struct zk *zk, size_t bytes) {
  struct zk_session *main = zk_main(zk);
  if (!main || main->watch_bytes + bytes <= ZK_WATCH_BYTES_MAX) return main;
  for (struct kv_list *at = zk->sessions.next; at != &zk->sessions; at = at->next) {
    struct zk_session *session = kv_list_of(struct zk_session, node, at);
    bool has_room = session->role == ZK_SHARD && session->watch_bytes + bytes <= ZK_WATCH_BYTES_MAX;
    if (has_room && zk_session_lasts(session)) return session;
  }
  return zk_session_new(zk, ZK_SHARD, zk->config->session_ttl);
}

static struct spot *spot_new(struct watcher *watcher, struct spot *parent, const char *name, size_t path_size) {
  size_t size = strlen(name);
  struct spot *spot = calloc(1, sizeof *spot + size + 1);
  struct zk_session *session = spot ? room_for(watcher->zk, 2 * path_size + 16) : NULL;
  if (!session) {
    free(spot);
    return NULL;
  }
  memcpy(spot->name, name, size + 1);
  spot->size = (uint16_t)size;
  spot->bytes = (uint16_t)(2 * path_size + 16);
  spot->watcher = watcher;
  spot->parent = parent;
  spot->session = session;
  session->watch_bytes += spot->bytes;
  session->calls++;
  zk_wake(session);
  kv_list_init(&spot->todo);
  return spot;
}

static struct spot *child_new(struct spot *parent, const char *name, size_t parent_size) {
  struct watcher *watcher = parent->watcher;
  if (watcher->count >= watcher->bucket_count) grow(watcher);
  if (!watcher->bucket_count) return NULL;
  struct spot *spot = spot_new(watcher, parent, name, parent_size + 1 + strlen(name));
  if (!spot) return NULL;
  struct spot **bucket = &watcher->buckets[hash_of(parent, name) & (watcher->bucket_count - 1)];
  spot->chain = *bucket;
  *bucket = spot;
  watcher->count++;
  spot->next = parent->first;
  if (spot->next) spot->next->link = &spot->next;
  spot->link = &parent->first;
  parent->first = spot;
  parent->dependents++;
  return spot;
}

static void want(struct spot *spot, unsigned what) {
  if (spot->dead || !what) return;
  spot->want |= what;
  if (kv_list_empty(&spot->todo)) kv_list_move(&spot->watcher->todo, &spot->todo);
}

static bool is_stale(const struct spot *spot) {
  return spot->generation != spot->session->generation;
}

/* Its watches are the library's no more. */
static void disarm(struct spot *spot) {
  char path[ZK_PATH_MAX * 4];
  zhandle_t *handle = spot->session->handle;
  if (handle && spot->armed && !is_stale(spot)) {
    path_of(spot, path);
    if (spot->armed & DATA) zoo_aremove_watches(handle, path, ZWATCHTYPE_DATA, data_event, spot, 1, NULL, NULL);
    if (spot->armed & ABSENCE) zoo_aremove_watches(handle, path, ZWATCHTYPE_DATA, absence_event, spot, 1, NULL, NULL);
    if (spot->armed & NAMES) zoo_aremove_watches(handle, path, ZWATCHTYPE_CHILD, names_event, spot, 1, NULL, NULL);
  }
  spot->armed = 0;
}

/* Not freed yet: the library may be about to call us for it. Its children are dead already. */
static void kill(struct spot *spot) {
  struct watcher *watcher = spot->watcher;
  disarm(spot);
  spot->dead = true;
  spot->want = 0;
  kv_list_move(&watcher->graves, &spot->todo);
  if (spot->link) {
    struct spot **chain = find_child(watcher, spot->parent, spot->name);
    *chain = spot->chain;
    watcher->count--;
    *spot->link = spot->next;
    if (spot->next) spot->next->link = spot->link;
    spot->link = NULL;
  }
  kv_zk->defer(&watcher->bury);
}

static void kill_tree(struct spot *spot) {
  while (spot->first) kill_tree(spot->first);
  kill(spot);
}

static void spot_free(struct spot *spot) {
  struct zk_session *session = spot->session;
  if (spot->parent) spot->parent->dependents--;
  kv_list_remove(&spot->todo);
  session->watch_bytes -= spot->bytes;
  session->calls--;
  if (!session->watch_bytes && session->role == ZK_SHARD) zk_session_leave(session);
  if (session->state == ZK_GONE) zk_wake(session);
  free(spot);
}

/* At the end of a turn: what the library cannot know any more goes. Children were killed before their parents. */
static void bury(struct kv_task *task) {
  struct watcher *watcher = task->data;
  struct kv_list *next;
  for (struct kv_list *at = watcher->graves.next; at != &watcher->graves; at = next) {
    struct spot *spot = kv_list_of(struct spot, todo, at);
    next = at->next;
    if (!spot->reading && !spot->dependents) spot_free(spot);
  }
  if (watcher->feed || watcher->in_flight || !kv_list_empty(&watcher->graves)) return;
  kv_list_remove(&watcher->node);
  free(watcher->climbing);
  free(watcher->buckets);
  free(watcher);
}

/* ------------------------------------------------------------------ feeding */

/* The core may close the feed in any of these. */

static void close_watcher(struct watcher *watcher) {
  watcher->feed = NULL;
  if (watcher->root) kill_tree(watcher->root);
  watcher->root = NULL;
  kv_zk->defer(&watcher->bury);
}

static void lose(struct watcher *watcher, kv_code code, const char *problem) {
  struct kv_feed *feed = watcher->feed;
  if (!feed) return;
  feed->data = NULL;
  close_watcher(watcher);
  kv_zk->feed_lost(feed, code, "%s", problem);
}

static void set_connected(struct watcher *watcher, bool connected) {
  if (!watcher->feed || watcher->connected == connected) return;
  watcher->connected = connected;
  kv_zk->feed_connected(watcher->feed, connected);
}

static void see_revision(struct watcher *watcher, int64_t revision) {
  if (revision > watcher->revision) watcher->revision = revision;
}

static void feed_put(struct spot *spot, const char *value, int size, const struct Stat *stat) {
  struct watcher *watcher = spot->watcher;
  char path[ZK_PATH_MAX * 4];
  path_of(spot, path);
  kv_slice shown = {size > 0 ? value : NULL, size > 0 ? (size_t)size : 0};
  uint64_t revision = (uint64_t)stat->mzxid, created = (uint64_t)stat->czxid;
  /* A server that lost its data numbers the same transactions the same again, but not at the same time. */
  watcher->feed->stamp = (uint64_t)stat->mtime;
  spot->known = stat->mzxid;
  if (watcher->live) kv_zk->feed_event(watcher->feed, KV_EVENT_PUT, zk_key(path), shown, revision, created);
  else kv_zk->feed_pair(watcher->feed, zk_key(path), shown, revision, created);
}

static void feed_delete(struct spot *spot, int64_t revision) {
  char path[ZK_PATH_MAX * 4];
  struct watcher *watcher = spot->watcher;
  if (!spot->known || !watcher->feed) return;
  spot->known = 0;
  path_of(spot, path);
  kv_zk->feed_event(watcher->feed, KV_EVENT_DELETE, zk_key(path), (kv_slice){NULL, 0}, (uint64_t)revision, 0);
}

static bool remove_below(struct spot *spot, int64_t revision);

/*
 * A node that is gone, with all below. A key that was made later than that stays: another session, which is ahead, has
 * told it, and where it was missed it will be seen to come, or to be gone again. False: something stays.
 */
static bool remove_spot(struct spot *spot, int64_t revision) {
  struct watcher *watcher = spot->watcher;
  bool stays = !remove_below(spot, revision) || spot->known > revision;
  if (stays || !watcher->feed) return false; /* without a feed all are dead already */
  feed_delete(spot, revision);
  if (watcher->feed) kill(spot);
  return true;
}

static bool remove_below(struct spot *spot, int64_t revision) {
  const struct watcher *watcher = spot->watcher;
  bool all = true;
  for (struct spot *child = spot->first, *next; child && watcher->feed; child = next) {
    next = child->next;
    if (!remove_spot(child, revision)) all = false;
  }
  return all;
}

/* ------------------------------------------------------------------ reading */

/* One of two servers is behind: the names above are read once more, as new as can be. */
static void ask_above(struct spot *spot) {
  struct spot *parent = spot->parent;
  if (parent->session == spot->session || parent->dead) return;
  if (parent->session->state == ZK_READY) zk_sync(parent->session);
  want(parent, NAMES);
}

/* Errors that a read may meet; true: dealt with. */
static bool failed(struct spot *spot, int result, unsigned what) {
  if (result == ZOK || result == ZNONODE) return false;
  kv_code code = zk_code(result, false);
  if (code == KV_UNAVAILABLE) want(spot, what); /* when there is a connection again */
  else lose(spot->watcher, code, zerror(result));
  return true;
}

/* In every completion: false when nobody is interested. */
static bool read_done(struct spot *spot, int result, unsigned what) {
  struct watcher *watcher = spot->watcher;
  watcher->in_flight--;
  spot->reading &= ~what;
  if (result == ZOK || (what == ABSENCE && result == ZNONODE)) {
    spot->armed |= what;
    spot->generation = spot->session->generation;
  }
  if (!spot->dead) return true;
  disarm(spot);
  kv_zk->defer(&watcher->bury);
  pump(watcher); /* others may have waited for room */
  return false;
}

static void root_is_gone(struct watcher *watcher);

static void data_read(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct spot *spot = (struct spot *)(uintptr_t)data;
  struct watcher *watcher = spot->watcher;
  if (!read_done(spot, result, DATA)) return;
  if (failed(spot, result, DATA)) {
    pump(watcher);
    return;
  }
  if (result == ZNONODE) {
    if (!spot->parent) root_is_gone(watcher);
    else ask_above(spot);
  } else {
    see_revision(watcher, stat->mzxid);
    if (zk_is_key(size, stat)) feed_put(spot, value, size, stat);
    else feed_delete(spot, stat->mzxid);
  }
  pump(watcher);
}

static bool is_hidden(const struct spot *spot, const char *name) {
  return !spot->parent && spot->size == 1 && (strcmp(name, ".kv") == 0 || strcmp(name, "zookeeper") == 0);
}

static bool see_names(struct spot *spot, const struct String_vector *names, size_t path_size) {
  struct watcher *watcher = spot->watcher;
  unsigned pass = ++watcher->passes;
  for (int32_t i = 0; i < names->count; i++) {
    const char *name = names->data[i];
    if (is_hidden(spot, name) || path_size + strlen(name) + 2 > KV_KEY_MAX + 2) continue;
    struct spot *child = *find_child(watcher, spot, name);
    if (!child) child = child_new(spot, name, path_size);
    if (!child) return false;
    child->pass = pass;
    if (is_stale(child)) child->armed = 0;
    want(child, (DATA | NAMES) & ~(child->armed | child->reading));
  }
  return true;
}

static void names_read(int result, const struct String_vector *names, const struct Stat *stat, const void *data) {
  struct spot *spot = (struct spot *)(uintptr_t)data;
  struct watcher *watcher = spot->watcher;
  if (!read_done(spot, result, NAMES)) return;
  char path[ZK_PATH_MAX * 4];
  if (failed(spot, result, NAMES)) {
    pump(watcher);
    return;
  }
  if (result == ZNONODE) {
    if (!spot->parent) root_is_gone(watcher);
    else ask_above(spot);
  } else if (see_names(spot, names, path_of(spot, path))) {
    see_revision(watcher, stat->pzxid);
    for (struct spot *child = spot->first, *next; child && watcher->feed; child = next) {
      next = child->next;
      if (child->pass != watcher->passes) remove_spot(child, stat->pzxid);
    }
  } else {
    lose(watcher, KV_FAILED, "out of memory");
  }
  pump(watcher);
}

/* ------------------------------------------------------------------ a root that is not there */

static void absence_read(int result, const struct Stat *stat, const void *data) {
  struct spot *spot = (struct spot *)(uintptr_t)data;
  struct watcher *watcher = spot->watcher;
  (void)stat;
  if (!read_done(spot, result, ABSENCE)) return;
  if (failed(spot, result, ABSENCE)) {
    pump(watcher);
    return;
  }
  if (result == ZOK) { /* there again */
    want(spot, watcher->tree ? NAMES : DATA);
  } else {
    remove_below(spot, watcher->gone_at);
    if (watcher->feed && !watcher->tree) feed_delete(spot, watcher->gone_at);
  }
  pump(watcher);
}

static void climb(struct watcher *watcher);

static void climbed(int result, const struct Stat *stat, const void *data) {
  struct spot *root = (struct spot *)(uintptr_t)data;
  struct watcher *watcher = root->watcher;
  watcher->in_flight--;
  root->reading &= ~(unsigned)ABSENCE;
  if (root->dead) {
    kv_zk->defer(&watcher->bury);
    return;
  }
  if (result == ZNONODE && zk_parent(watcher->climbing)) {
    climb(watcher);
  } else if (!failed(root, result, watcher->tree ? NAMES : DATA)) {
    if (result == ZOK) watcher->gone_at = stat->pzxid;
    see_revision(watcher, watcher->gone_at);
    want(root, ABSENCE);
  }
  pump(watcher);
}

static void climb(struct watcher *watcher) {
  struct spot *root = watcher->root;
  zk_wake(root->session);
  if (zoo_aexists(root->session->handle, watcher->climbing, 0, climbed, root) != ZOK) {
    want(root, watcher->tree ? NAMES : DATA);
    return;
  }
  root->reading |= ABSENCE;
  watcher->in_flight++;
}

/* Since when? Its nearest ancestor knows. Then, if it is still not there, what was below is told to be gone. */
static void root_is_gone(struct watcher *watcher) {
  struct spot *root = watcher->root;
  if (root->reading & ABSENCE) return;
  free(watcher->climbing);
  watcher->climbing = strdup(root->name);
  if (!watcher->climbing || !zk_parent(watcher->climbing)) lose(watcher, KV_FAILED, "out of memory");
  else climb(watcher);
}

/* ------------------------------------------------------------------ what fires */

/*
 * A deleted node below the root is not read again: its directory's names are, and want it read if it was made anew.
 * Another session may have read them before this one heard of it.
 */
static bool fired(struct spot *spot, int type, unsigned what) {
  if (type == ZOO_SESSION_EVENT) return false;
  spot->armed &= ~what;
  if (spot->dead || !spot->parent || type != ZOO_DELETED_EVENT) return !spot->dead;
  ask_above(spot);
  pump(spot->watcher);
  return false;
}

static void data_event(zhandle_t *handle, int type, int state, const char *path, void *context) {
  struct spot *spot = context;
  (void)handle, (void)state, (void)path;
  if (!fired(spot, type, DATA)) return;
  want(spot, DATA);
  pump(spot->watcher);
}

static void names_event(zhandle_t *handle, int type, int state, const char *path, void *context) {
  struct spot *spot = context;
  (void)handle, (void)state, (void)path;
  if (!fired(spot, type, NAMES)) return;
  want(spot, NAMES);
  pump(spot->watcher);
}

static void absence_event(zhandle_t *handle, int type, int state, const char *path, void *context) {
  struct spot *spot = context;
  (void)handle, (void)state, (void)path;
  if (!fired(spot, type, ABSENCE)) return;
  want(spot, spot->watcher->tree ? NAMES : DATA);
  pump(spot->watcher);
}

/* ------------------------------------------------------------------ moving on */

/* It was found through another session, whose server may be ahead: what stood there before is not to be told. */
static bool may_be_old(const struct spot *spot) {
  return spot->watcher->live && spot->parent && !spot->armed && spot->session != spot->parent->session;
}

static bool send_read(struct spot *spot, unsigned what) {
  char path[ZK_PATH_MAX * 4];
  zhandle_t *handle = spot->session->handle;
  int result;
  path_of(spot, path);
  if (may_be_old(spot) && !zk_sync(spot->session)) return false;
  if (what == DATA) result = zoo_awget(handle, path, data_event, spot, data_read, spot);
  else if (what == NAMES) result = zoo_awget_children2(handle, path, names_event, spot, names_read, spot);
  else result = zoo_awexists(handle, path, absence_event, spot, absence_read, spot);
  if (result != ZOK) return false;
  spot->want &= ~what;
  spot->reading |= what;
  spot->watcher->in_flight++;
  zk_wake(spot->session);
  return true;
}

/* What was asked while it is being read waits: the answer under way may be older. */
static bool read_spot(struct spot *spot) {
  static const unsigned all[] = {DATA, NAMES, ABSENCE};
  unsigned due = spot->want & ~spot->reading;
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if ((due & all[i]) && !send_read(spot, all[i])) return false;
  return true;
}

static bool uses(const struct spot *spot, const struct zk_session *session) {
  if (spot->session == session) return true;
  for (const struct spot *child = spot->first; child; child = child->next)
    if (uses(child, session)) return true;
  return false;
}

/* Is a session that it uses without a connection? Walks over it only while some session with watches is. */
static bool is_cut(const struct watcher *watcher) {
  const struct kv_list *sessions = &watcher->zk->sessions;
  for (struct kv_list *at = sessions->next; at != sessions; at = at->next) {
    const struct zk_session *session = kv_list_of(struct zk_session, node, at);
    if (session->state != ZK_READY && zk_watches_any(session) && uses(watcher->root, session)) return true;
  }
  return false;
}

static void settle(struct watcher *watcher) {
  bool cut = !watcher->connected && is_cut(watcher);
  if (!watcher->live) {
    watcher->live = true;
    kv_zk->feed_end(watcher->feed, (uint64_t)watcher->revision);
  } else if (!cut) {
    kv_zk->feed_commit(watcher->feed, (uint64_t)watcher->revision);
  }
  if (!cut) set_connected(watcher, true);
}

/* Read what is to be read; when nothing is under way any more, all that was known to change has been fed. */
static void pump(struct watcher *watcher) {
  struct kv_list later;
  int skips = 0;
  kv_list_init(&later);
  /* When nothing is under way, nobody would come back to what stands behind those that are skipped. */
  while (watcher->feed && !kv_list_empty(&watcher->todo) && watcher->in_flight < WINDOW &&
         (skips < SKIPS_MAX || !watcher->in_flight)) {
    struct spot *spot = kv_list_of(struct spot, todo, watcher->todo.next);
    bool ready = spot->session->state == ZK_READY && read_spot(spot);
    if (!ready) skips++;
    if (ready && !spot->want) kv_list_remove(&spot->todo);
    else kv_list_move(&later, &spot->todo);
  }
  while (!kv_list_empty(&later)) kv_list_move(&watcher->todo, later.next);
  if (watcher->feed && kv_list_empty(&watcher->todo) && !watcher->in_flight) settle(watcher);
}

/* A whole state from here on. */
static void begin_pass(struct watcher *watcher) {
  struct spot *root = watcher->root;
  watcher->live = false;
  watcher->begun = true;
  kv_zk->feed_begin(watcher->feed);
  if (root->session->state == ZK_READY) zk_sync(root->session);
  root->armed = 0;
  want(root, watcher->tree ? NAMES : DATA);
  pump(watcher);
}

/* ------------------------------------------------------------------ portable mode: is it a directory? */

static void type_read(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct spot *root = (struct spot *)(uintptr_t)data;
  struct watcher *watcher = root->watcher;
  (void)value;
  watcher->in_flight--;
  root->reading &= ~(unsigned)DATA;
  if (root->dead) {
    kv_zk->defer(&watcher->bury);
    return;
  }
  if (result == ZOK && zk_is_key(size, stat)) {
    lose(watcher, KV_NOT_DIR, "a key, not a directory");
  } else if (zk_code(result, false) == KV_DENIED) {
    lose(watcher, KV_DENIED, zerror(result));
  } else if (result == ZOK || result == ZNONODE) {
    begin_pass(watcher);
  }
}

static void start(struct watcher *watcher) {
  struct spot *root = watcher->root;
  bool ask = watcher->tree && watcher->zk->config->portable && root->name[1];
  if (!ask) {
    begin_pass(watcher);
  } else if (root->session->state == ZK_READY && !(root->reading & DATA) && zk_sync(root->session) &&
             zoo_aget(root->session->handle, root->name, 0, type_read, root) == ZOK) {
    root->reading |= DATA;
    watcher->in_flight++;
  }
}

/* ------------------------------------------------------------------ what becomes of sessions */

bool zk_watches_any(const struct zk_session *session) {
  return session->watch_bytes > 0;
}

void zk_watches_down(struct zk_session *session) {
  struct kv_list *feeds = &session->zk->feeds, *next;
  for (struct kv_list *at = feeds->next; at != feeds; at = next) {
    struct watcher *watcher = kv_list_of(struct watcher, node, at);
    next = at->next;
    if (watcher->feed && uses(watcher->root, session)) set_connected(watcher, false);
  }
}

void zk_watches_ready(struct zk_session *session) {
  struct kv_list *feeds = &session->zk->feeds, *next;
  if (!zk_watches_any(session)) return;
  for (struct kv_list *at = feeds->next; at != feeds; at = next) {
    struct watcher *watcher = kv_list_of(struct watcher, node, at);
    next = at->next;
    if (!watcher->feed || !uses(watcher->root, session)) continue;
    /* A new session knows of no state that it must not fall behind: the member may. */
    if (watcher->begun) zk_sync(session);
    if (watcher->begun) pump(watcher);
    else start(watcher);
  }
}

/* What the session watched is to be read again; for a whole state everything is: what others watch stays armed. */
static void read_again(struct spot *spot, const struct zk_session *session, bool whole) {
  bool forgotten = spot->session == session;
  if (forgotten) spot->armed = 0;
  if (whole) spot->known = 0; /* the core knows; and of another history it says nothing */
  if (forgotten || whole) want(spot, spot->parent ? DATA | NAMES : spot->watcher->tree ? NAMES : DATA);
  for (struct spot *child = spot->first; child; child = child->next) read_again(child, session, whole);
}

/*
 * Everything that it watched is read again. With the root's session the whole is, also what other sessions watch that
 * live on, and fed as a state: numbers went back if a server has lost its data.
 */
void zk_watches_expired(struct zk_session *session) {
  struct kv_list *feeds = &session->zk->feeds, *next;
  for (struct kv_list *at = feeds->next; at != feeds; at = next) {
    struct watcher *watcher = kv_list_of(struct watcher, node, at);
    next = at->next;
    if (!watcher->feed || !uses(watcher->root, session)) continue;
    bool whole = session == watcher->root->session && watcher->begun;
    set_connected(watcher, false);
    read_again(watcher->root, session, whole);
    if (!whole) continue;
    watcher->revision = 0;
    begin_pass(watcher);
  }
}

/* ------------------------------------------------------------------ for the core */

void zk_watch_open(void *state, struct kv_feed *feed) {
  struct zk *zk = state;
  char path[ZK_PATH_MAX];
  struct watcher *watcher = calloc(1, sizeof *watcher);
  if (zk_is_reserved(feed->key)) {
    free(watcher);
    kv_zk->feed_lost(feed, KV_UNSUPPORTED, "\"zookeeper\" at the root is the server's own");
    return;
  }
  zk_path(feed->key, path);
  if (watcher) {
    watcher->zk = zk;
    watcher->feed = feed;
    watcher->tree = feed->tree;
    watcher->bury = (struct kv_task){.run = bury, .data = watcher};
    kv_list_init(&watcher->node);
    kv_list_init(&watcher->todo);
    kv_list_init(&watcher->graves);
    watcher->root = spot_new(watcher, NULL, path, strlen(path));
  }
  if (!watcher || !watcher->root) {
    free(watcher);
    kv_zk->feed_lost(feed, KV_FAILED, "out of memory");
    return;
  }
  feed->data = watcher;
  kv_list_move(&zk->feeds, &watcher->node);
  if (watcher->root->session->state == ZK_READY) start(watcher);
}

void zk_watch_close(void *state, struct kv_feed *feed) {
  struct zk *zk = state;
  struct watcher *watcher = feed->data;
  (void)zk;
  feed->data = NULL;
  if (watcher) close_watcher(watcher);
}
