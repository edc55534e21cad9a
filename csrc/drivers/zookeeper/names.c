/*
 * names.c - keys to paths and back, what makes a node a key, and access control lists.
 *
 * The server tells nobody that a node has a time to live. So nodes that get one carry it in their access control
 * list, as an entry for an identity that nobody can have, and their list is set once more after they were made: a
 * list that was ever set (aversion > 0) is a hint that costs nothing, as it comes with every answer, and the list
 * itself is the proof.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../names.h"
#include "zookeeper.h"

#define MARK_SCHEME "digest"
#define MARK_BEGIN "kv-ttl-"
#define ACL_MAX 64
#define REAPED_LATER 3000 /* milliseconds */
#define TTL_MAX INT64_C(0xffffffffff) /* of the server, milliseconds */

void zk_path(kv_slice key, char *path) {
  size_t size = key.size < KV_KEY_MAX ? key.size : KV_KEY_MAX;
  path[0] = '/';
  if (size) memcpy(path + 1, key.data, size);
  path[size + 1] = '\0';
}

char *zk_path_copy(kv_slice key) {
  char path[ZK_PATH_MAX];
  zk_path(key, path);
  return strdup(path);
}

kv_slice zk_key(const char *path) {
  return (kv_slice){path + 1, strlen(path) - 1};
}

bool zk_is_reserved(kv_slice key) {
  static const char reserved[] = "zookeeper";
  size_t size = sizeof reserved - 1;
  return key.size >= size && memcmp(key.data, reserved, size) == 0 && (key.size == size || key.data[size] == '/');
}

bool zk_is_key(int size, const struct Stat *stat) {
  return size > 0 || (size == 0 && (stat->version > 0 || stat->ephemeralOwner != 0));
}

bool zk_is_blank(const struct Stat *stat) {
  return !stat->version && !stat->dataLength && !stat->ephemeralOwner;
}

int zk_sets(int version) {
  return version < ZK_SETS_MAX ? version + 1 : 1;
}

int64_t zk_milliseconds(double ttl) {
  double milliseconds = ttl * 1000;
  if (milliseconds >= (double)TTL_MAX) return TTL_MAX;
  return milliseconds < 1 ? 1 : (int64_t)milliseconds;
}

int64_t zk_reaped(int64_t ttl) {
  return ttl > TTL_MAX - REAPED_LATER ? TTL_MAX : ttl + REAPED_LATER;
}

bool zk_parent(char *path) {
  char *slash = strrchr(path, '/');
  if (!slash || !path[1]) return false;
  if (slash == path) slash++;
  *slash = '\0';
  return true;
}

/* ------------------------------------------------------------------ lock queues */

void zk_entry_name(const struct kv_place *place, char *name) {
  const char *id = place->id;
  if (!place->interop)
    snprintf(name, ZK_ENTRY_MAX, "%s-lock-", id);
  else if (strcmp(place->interop, "kazoo") == 0)
    snprintf(name, ZK_ENTRY_MAX, "%s__lock__", id);
  else
    snprintf(name, ZK_ENTRY_MAX, "_c_%.8s-%.4s-%.4s-%.4s-%s-lock-", id, id + 8, id + 12, id + 16, id + 20);
}

/* As others spell it, but for slashes that say nothing. */
static char *foreign_path(kv_slice name) {
  char *path = malloc(name.size + 2), *at = path;
  if (!path) return NULL;
  for (size_t i = 0; i < name.size; i++) {
    if (name.data[i] == '/') continue;
    if (i == 0 || name.data[i - 1] == '/') *at++ = '/';
    *at++ = name.data[i];
  }
  *at = '\0';
  return path;
}

char *zk_queue_path(const struct kv_place *place) {
  static const char area[] = "/.kv/lock/";
  if (place->interop) return foreign_path(place->name);
  size_t room = sizeof area - 1 + kv_escaped_size(place->name);
  char *path = malloc(room + 1);
  if (!path) return NULL;
  size_t size = kv_append(path, 0, room, area, sizeof area - 1);
  size = kv_append_escaped(path, size, room, place->name);
  path[size] = '\0';
  return path;
}

/* ------------------------------------------------------------------ access control lists */

static char *copy(const char *text, size_t size) {
  char *made = malloc(size + 1);
  if (!made) return NULL;
  memcpy(made, text, size);
  made[size] = '\0';
  return made;
}

static bool parse_permissions(const char *text, size_t size, int32_t *permissions) {
  static const struct {
    char letter;
    int bit;
  } known[] = {{'r', 1}, {'w', 2}, {'c', 4}, {'d', 8}, {'a', 16}};
  *permissions = 0;
  for (size_t i = 0; i < size; i++) {
    int bit = 0;
    for (size_t k = 0; k < sizeof known / sizeof *known; k++)
      if (known[k].letter == text[i]) bit = known[k].bit;
    if (!bit) return false;
    *permissions |= bit;
  }
  return size > 0;
}

/* SCHEME:ID:PERMISSIONS, where the id may hold colons. */
static bool parse_entry(struct ACL *entry, const char *text, size_t size, const char **problem) {
  const char *first = memchr(text, ':', size), *last = first;
  for (const char *at = text; at < text + size; at++)
    if (*at == ':') last = at;
  *problem = "option \"acl\": an entry is scheme:id:permissions, with permissions out of \"cdrwa\"";
  if (!first || first == last || first == text) return false;
  if (!parse_permissions(last + 1, (size_t)(text + size - last - 1), &entry->perms)) return false;
  entry->id.scheme = copy(text, (size_t)(first - text));
  entry->id.id = copy(first + 1, (size_t)(last - first - 1));
  *problem = "out of memory";
  return entry->id.scheme && entry->id.id;
}

static const char *expand(const char *text) {
  if (!text || strcmp(text, "open") == 0) return "world:anyone:cdrwa";
  if (strcmp(text, "creator") == 0) return "auth::cdrwa";
  if (strcmp(text, "read") == 0) return "world:anyone:r";
  return text;
}

bool zk_acl_make(struct zk_acl *acl, const char *text, const char **problem) {
  text = expand(text);
  size_t count = 1;
  for (const char *at = text; *at; at++) count += *at == ',';
  if (count > ACL_MAX) {
    *problem = "option \"acl\": too many entries";
    return false;
  }
  acl->vector.data = calloc(count, sizeof *acl->vector.data);
  acl->marked.data = calloc(count + 1, sizeof *acl->marked.data);
  *problem = "out of memory";
  if (!acl->vector.data || !acl->marked.data) return false;
  acl->vector.count = (int32_t)count;
  for (size_t i = 0; i < count; i++) {
    size_t size = strcspn(text, ",");
    if (!parse_entry(&acl->vector.data[i], text, size, problem)) return false;
    acl->marked.data[i] = acl->vector.data[i];
    text += size + 1;
  }
  acl->marked.count = (int32_t)count + 1;
  acl->marked.data[count] = (struct ACL){.perms = 1, .id = {.scheme = (char *)(uintptr_t)MARK_SCHEME, .id = acl->mark}};
  return true;
}

void zk_acl_free(struct zk_acl *acl) {
  for (int32_t i = 0; acl->vector.data && i < acl->vector.count; i++) {
    free(acl->vector.data[i].id.scheme);
    free(acl->vector.data[i].id.id);
  }
  free(acl->vector.data);
  free(acl->marked.data);
}

bool zk_acl_may_admin(const struct zk_acl *acl) {
  for (int32_t i = 0; i < acl->vector.count; i++)
    if (acl->vector.data[i].perms & ZOO_PERM_ADMIN) return true;
  return false;
}

struct ACL_vector *zk_acl_mark(struct zk_acl *acl, int64_t ttl) {
  snprintf(acl->mark, sizeof acl->mark, MARK_BEGIN "%lld:kv", (long long)ttl);
  return &acl->marked;
}

int64_t zk_acl_marked(const struct ACL_vector *vector) {
  for (int32_t i = 0; vector && i < vector->count; i++) {
    const struct Id *id = &vector->data[i].id;
    if (!id->scheme || !id->id || strcmp(id->scheme, MARK_SCHEME) != 0) continue;
    if (strncmp(id->id, MARK_BEGIN, sizeof MARK_BEGIN - 1) != 0) continue;
    long long ttl = strtoll(id->id + sizeof MARK_BEGIN - 1, NULL, 10);
    if (ttl > 0) return ttl;
  }
  return 0;
}
