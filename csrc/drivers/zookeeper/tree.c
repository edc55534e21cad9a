/*
 * tree.c - list, delete_tree, and the look around that portable mode wants: pipelined walks over a tree.
 *
 * Each node is read once (data and how many children), and its children are asked for only when it has some, so that
 * a leaf costs one request. Many requests are under way at once, in whatever order; results are sorted at the end. A
 * walk is not one moment of the tree: each pair was there at some time during the call.
 *
 * The walk of a shallow listing goes below the direct children only to learn whether a key stands there: parents may
 * be left over from keys that are gone, and are no directories to anybody then. It does not go on below a child that
 * has shown one.
 */
#include <stdlib.h>
#include <string.h>

#include "zookeeper.h"

#define WINDOW 512 /* requests under way */

struct node {
  struct node *next;         /* to be read */
  struct walk *walk;
  struct node *top;          /* the direct child of the root that it stands below, or itself */
  char *value;               /* owned */
  int size;
  bool is_key, has_keys;     /* has_keys: of a direct child, below it */
  int64_t revision, created;
  char path[];
};

struct walk {
  struct zk_call *call;
  struct node **nodes;       /* owned, all that were met */
  size_t count, capacity;
  struct node *first, **end; /* to be read */
  size_t next_delete;
  bool values, shallow, any, removing;
  bool found;                /* `any`: a key */
  int failure;
  int64_t revision;
  char root[ZK_PATH_MAX];
  char ancestor[ZK_PATH_MAX]; /* of a root that is not there */
  void (*done)(struct zk_call *call);
};

static void go_on(struct walk *walk);
static bool ask_children(struct walk *walk, struct node *node);

static void free_walk(struct zk_call *call) {
  struct walk *walk = call->data;
  for (size_t i = 0; walk && i < walk->count; i++) {
    free(walk->nodes[i]->value);
    free(walk->nodes[i]);
  }
  if (walk) free(walk->nodes);
  free(walk);
}

/* In call->data. NULL: the call is finished. */
static struct walk *new_walk(struct zk_call *call, kv_slice root, void (*done)(struct zk_call *call)) {
  struct walk *walk = calloc(1, sizeof *walk);
  if (call->clear) call->clear(call); /* of an earlier round of a put */
  call->data = walk;
  call->clear = free_walk;
  if (!walk) {
    zk_finish(call, KV_FAILED, "out of memory");
    return NULL;
  }
  walk->call = call;
  walk->end = &walk->first;
  walk->done = done;
  zk_path(root, walk->root);
  return walk;
}

/* ------------------------------------------------------------------ nodes */

/* The library's own area and the server's stand at the root, and are nobody's keys. */
static bool is_hidden(const char *parent, const char *name) {
  return !parent[1] && (strcmp(name, ".kv") == 0 || strcmp(name, "zookeeper") == 0);
}

static bool add_node(struct walk *walk, const char *parent, const char *name, struct node *top) {
  size_t before = parent[1] ? strlen(parent) : 0, size = strlen(name);
  if (walk->count == walk->capacity) {
    size_t capacity = walk->capacity ? walk->capacity * 2 : 64;
    struct node **nodes = realloc(walk->nodes, capacity * sizeof *nodes);
    if (!nodes) return false;
    walk->nodes = nodes;
    walk->capacity = capacity;
  }
  struct node *node = calloc(1, sizeof *node + before + size + 2);
  if (!node) return false;
  memcpy(node->path, parent, before);
  node->path[before] = '/';
  memcpy(node->path + before + 1, name, size + 1);
  node->walk = walk;
  node->top = top ? top : node;
  walk->nodes[walk->count++] = node;
  *walk->end = node;
  walk->end = &node->next;
  return true;
}

static void see_revision(struct walk *walk, int64_t revision) {
  if (revision > walk->revision) walk->revision = revision;
}

static void fail_walk(struct walk *walk, int failure) {
  if (walk->failure == ZOK) walk->failure = failure;
}

/* Nothing more is to be learned below this one. */
static bool is_settled(const struct walk *walk, const struct node *node) {
  if (walk->any) return walk->found;
  return walk->shallow && node->top != node && node->top->has_keys;
}

static void take(struct walk *walk, struct node *node, const char *value, int size, const struct Stat *stat) {
  see_revision(walk, stat->mzxid);
  see_revision(walk, stat->pzxid);
  node->is_key = zk_is_key(size, stat);
  node->revision = stat->mzxid;
  node->created = stat->czxid;
  if (node->is_key) walk->found = true;
  if (node->is_key && node->top != node) node->top->has_keys = true;
  if (!node->is_key || size <= 0 || !walk->values || (walk->shallow && node->top != node)) return;
  node->value = malloc((size_t)size);
  if (!node->value) {
    fail_walk(walk, ZSYSTEMERROR);
    return;
  }
  memcpy(node->value, value, (size_t)size);
  node->size = size;
}

/* ------------------------------------------------------------------ requests */

static void was_read(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct node *node = (struct node *)(uintptr_t)data;
  struct walk *walk = node->walk;
  if (!zk_answered(walk->call)) return;
  if (result == ZOK) {
    take(walk, node, value, size, stat);
    if (stat->numChildren > 0 && !is_settled(walk, node) && !ask_children(walk, node)) return;
  } else if (result != ZNONODE) {
    fail_walk(walk, result);
  }
  go_on(walk);
}

static void has_children(int result, const struct String_vector *names, const struct Stat *stat, const void *data) {
  struct node *node = (struct node *)(uintptr_t)data;
  struct walk *walk = node->walk;
  if (!zk_answered(walk->call)) return;
  if (result == ZOK) {
    see_revision(walk, stat->pzxid);
    for (int32_t i = 0; i < names->count; i++)
      if (!add_node(walk, node->path, names->data[i], node->top)) fail_walk(walk, ZSYSTEMERROR);
  } else if (result != ZNONODE) {
    fail_walk(walk, result);
  }
  go_on(walk);
}

static bool ask_children(struct walk *walk, struct node *node) {
  return zk_sent(walk->call, zoo_aget_children2(walk->call->session->handle, node->path, 0, has_children, node));
}

static void climbed(int result, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct walk *walk = call->data;
  if (result == ZOK) {
    see_revision(walk, stat->pzxid);
    see_revision(walk, stat->mzxid);
  } else if (result == ZNONODE && zk_parent(walk->ancestor)) {
    zk_sent(call, zoo_aexists(call->session->handle, walk->ancestor, 0, climbed, call));
    return;
  } else {
    fail_walk(walk, result);
  }
  go_on(walk);
}

/* The directory is not there: since when, its nearest ancestor tells. */
static void climb(struct zk_call *call) {
  struct walk *walk = call->data;
  memcpy(walk->ancestor, walk->root, sizeof walk->ancestor);
  if (!zk_parent(walk->ancestor)) go_on(walk);
  else zk_sent(call, zoo_aexists(call->session->handle, walk->ancestor, 0, climbed, call));
}

static bool is_strong(const struct zk_call *call) {
  return call->certain || !(call->op->flags & KV_FAST);
}

static void root_has(int result, const struct String_vector *names, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct walk *walk = call->data;
  result = zk_behind_sync(call, is_strong(call), result);
  if (result == ZNONODE) {
    climb(call);
    return;
  }
  if (result == ZOK) {
    see_revision(walk, stat->pzxid);
    for (int32_t i = 0; i < names->count; i++)
      if (!is_hidden(walk->root, names->data[i]) && !add_node(walk, walk->root, names->data[i], NULL))
        fail_walk(walk, ZSYSTEMERROR);
  } else {
    fail_walk(walk, result);
  }
  go_on(walk);
}

static void start_walk(struct walk *walk) {
  struct zk_call *call = walk->call;
  if (is_strong(call) && !(call->certain ? zk_commit : zk_sync)(call->session)) {
    zk_finish(call, KV_UNAVAILABLE, "the request could not be sent");
    return;
  }
  zk_sent(call, zoo_aget_children2(call->session->handle, walk->root, 0, root_has, call));
}

/* Ask as much as the window allows; when nothing is under way the walk is done. */
static void go_on(struct walk *walk) {
  struct zk_call *call = walk->call;
  bool stop = walk->failure != ZOK || (walk->any && walk->found);
  while (walk->first && !stop && call->pending < WINDOW) {
    struct node *node = walk->first;
    walk->first = node->next;
    if (!walk->first) walk->end = &walk->first;
    if (is_settled(walk, node)) continue;
    if (!zk_sent(call, zoo_aget(call->session->handle, node->path, 0, was_read, node))) return;
  }
  if (call->pending) return;
  if (walk->failure == ZSYSTEMERROR) zk_finish(call, KV_FAILED, "out of memory");
  else if (walk->failure != ZOK) zk_fail(call, walk->failure);
  else walk->done(call);
}

/* ------------------------------------------------------------------ list */

static int by_path(const void *left, const void *right) {
  const struct node *const *a = left, *const *b = right;
  return strcmp((*a)->path, (*b)->path);
}

static bool is_behind(kv_slice key, kv_slice after) {
  size_t common = key.size < after.size ? key.size : after.size;
  int order = memcmp(key.data, after.data, common);
  return order ? order > 0 : key.size > after.size;
}

/* False: out of memory. */
static bool give(struct zk_call *call, const struct node *node) {
  struct kv_op *op = call->op;
  kv_slice value = {node->value, (size_t)node->size};
  if (op->flags & KV_SHALLOW) {
    if (node->top != node || (!node->is_key && !node->has_keys)) return true; /* the core arranges the rest */
    return kv_zk->pair(op, zk_key(node->path), value, (uint64_t)node->revision, (uint64_t)node->created, !node->is_key);
  }
  if (!node->is_key) return true;
  return kv_zk->pair(op, zk_key(node->path), value, (uint64_t)node->revision, (uint64_t)node->created, false);
}

static void list_done(struct zk_call *call) {
  struct walk *walk = call->data;
  struct kv_op *op = call->op;
  bool shallow = (op->flags & KV_SHALLOW) != 0;
  uint32_t given = 0;
  if (walk->count) qsort(walk->nodes, walk->count, sizeof *walk->nodes, by_path);
  op->result.revision = (uint64_t)walk->revision;
  for (size_t i = 0; i < walk->count; i++) {
    struct node *node = walk->nodes[i];
    bool is_wanted = shallow || (node->is_key && (!op->after.size || is_behind(zk_key(node->path), op->after)));
    if (is_wanted && !shallow && op->limit && given == op->limit) {
      op->result.more = true;
      break;
    }
    if (is_wanted && !give(call, node)) {
      zk_finish(call, KV_FAILED, "out of memory");
      return;
    }
    if (is_wanted && node->is_key) given++;
    free(node->value); /* so that there are not two copies of the whole */
    node->value = NULL;
  }
  op->result.found = true;
  zk_finish(call, KV_OK, NULL);
}

static void list_go(struct zk_call *call) {
  struct kv_op *op = call->op;
  struct walk *walk = new_walk(call, op->key, list_done);
  if (!walk) return;
  walk->values = !(op->flags & KV_KEYS_ONLY);
  walk->shallow = (op->flags & KV_SHALLOW) != 0;
  start_walk(walk);
}

static void list_looked(struct zk_call *call) {
  if (call->is_key) zk_finish(call, KV_NOT_DIR, "a key, not a directory");
  else list_go(call);
}

static void list_portable(struct zk_call *call) {
  zk_look(call, !(call->op->flags & KV_FAST), list_looked);
}

void zk_list_tree(struct zk *zk, struct kv_op *op) {
  struct zk_call *call = zk_call_new(zk, zk_main(zk), op);
  if (call) zk_call_start(call, (op->flags & KV_PORTABLE) && op->key.size ? list_portable : list_go);
}

/* ------------------------------------------------------------------ delete_tree */

static void delete_more(struct walk *walk);

static void was_removed(struct walk *walk, int result) {
  if (result != ZOK && result != ZNONODE) fail_walk(walk, result);
  delete_more(walk);
}

static void value_removed(int result, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)stat;
  if (call) was_removed(call->data, result);
}

/* A node that was made below meanwhile keeps it; its value goes. */
static void remove_value(struct zk_call *call, const char *path) {
  zk_sent(call, zoo_aset(call->session->handle, path, NULL, -1, -1, value_removed, call));
}

static void node_removed(int result, const void *data) {
  const struct node *node = data;
  struct walk *walk = node->walk;
  if (!zk_answered(walk->call)) return;
  if (result == ZNOTEMPTY && node->is_key) remove_value(walk->call, node->path);
  else was_removed(walk, result == ZNOTEMPTY ? ZOK : result);
}

static void root_removed(int result, const void *data) {
  struct zk_call *call = zk_answered(data);
  if (!call) return;
  struct walk *walk = call->data;
  if (result == ZNOTEMPTY) remove_value(call, walk->root);
  else was_removed(walk, result);
}

/* What stands below goes first: paths backwards, and the server keeps the order. */
static void delete_more(struct walk *walk) {
  struct zk_call *call = walk->call;
  zhandle_t *handle = call->session->handle;
  while (walk->next_delete > 0 && walk->failure == ZOK && call->pending < WINDOW) {
    struct node *node = walk->nodes[--walk->next_delete];
    if (!zk_sent(call, zoo_adelete(handle, node->path, -1, node_removed, node))) return;
  }
  if (call->pending) return;
  if (walk->failure != ZOK) {
    zk_fail(call, walk->failure);
  } else if (walk->root[1] && !walk->removing && !(call->op->flags & KV_BELOW)) {
    walk->removing = true;
    zk_sent(call, zoo_adelete(handle, walk->root, -1, root_removed, call));
  } else {
    call->op->result.revision = (uint64_t)walk->revision;
    zk_finish(call, KV_OK, NULL);
  }
}

static void delete_done(struct zk_call *call) {
  struct walk *walk = call->data;
  if (walk->count) qsort(walk->nodes, walk->count, sizeof *walk->nodes, by_path);
  walk->next_delete = walk->count;
  zk_writing(call);
  delete_more(walk);
}

/* What it does not see it leaves. */
static void delete_go(struct zk_call *call) {
  call->certain = true;
  struct walk *walk = new_walk(call, call->op->key, delete_done);
  if (walk) start_walk(walk);
}

void zk_delete_tree(struct zk *zk, struct kv_op *op) {
  struct zk_call *call = zk_call_new(zk, zk_main(zk), op);
  if (call) zk_call_start(call, delete_go);
}

/* ------------------------------------------------------------------ portable mode */

/* The walk is over: what is its own is given back, as the call goes on with other things. */
static void end_walk(struct zk_call *call) {
  free_walk(call);
  call->data = NULL;
  call->clear = NULL;
}

/* A key is in the way, or was: what was seen may be old. */
static void is_in_the_way(struct zk_call *call, kv_code code, const char *message) {
  end_walk(call);
  if (call->certain) {
    zk_finish(call, code, "%s", message);
  } else {
    call->certain = true;
    zk_check_portable(call, zk_key(call->path), call->run);
  }
}

static void surroundings_seen(struct zk_call *call) {
  struct walk *walk = call->data;
  if (walk->found) {
    is_in_the_way(call, KV_IS_DIR, "the key is a directory");
  } else {
    end_walk(call);
    call->run(call);
  }
}

static void ancestor_read(int result, const char *value, int size, const struct Stat *stat, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)value;
  if (!call) return;
  struct walk *walk = call->data;
  if (result == ZOK && zk_is_key(size, stat)) walk->found = true;
  else if (result != ZOK && result != ZNONODE) fail_walk(walk, result);
  if (call->pending) return;
  if (walk->failure != ZOK) {
    zk_fail(call, walk->failure);
  } else if (walk->found) {
    is_in_the_way(call, KV_NOT_DIR, "a key stands where a directory is needed");
  } else {
    walk->any = true;
    start_walk(walk);
  }
}

void zk_check_portable(struct zk_call *call, kv_slice key, void (*run)(struct zk_call *call)) {
  struct walk *walk = new_walk(call, key, surroundings_seen);
  char *path = call->path;
  if (!walk) return;
  call->run = run;
  if (!(call->certain ? zk_commit : zk_sync)(call->session)) {
    zk_finish(call, KV_UNAVAILABLE, "the request could not be sent");
    return;
  }
  for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    bool sent = zk_sent(call, zoo_aget(call->session->handle, path, 0, ancestor_read, call));
    if (!sent) return;
    *slash = '/';
  }
  if (call->pending) return;
  walk->any = true;
  start_walk(walk);
}
