/*
 * record.c - how things lie in the database. Numbers inside keys are big-endian, so that their order is LMDB's order;
 * numbers inside values are the machine's (LMDB files do not move between byte orders either).
 *
 *   META what                       version, boot
 *   LEASE 'l' id                    a lease;  LEASE 'k'|'q' id ref: a key or place that goes with it
 *   EXPIRY time type ref            what goes when
 *   QUEUE name 0 order              a place in a lock's queue
 *   DATA key                        a user's pair
 *   HISTORY revision sequence       a change
 *
 * What is read from a file may be damaged: every length is checked.
 */
#include <string.h>

#include "local.h"

#define TOP 56 /* the byte above a revision (below 2^53) holds flags */
#define LOW_MASK ((UINT64_C(1) << TOP) - 1)

enum { HAS_EXPIRY = 1, HAS_LEASE = 2 };

static void add(struct kv_local_key *key, const void *bytes, size_t size) {
  size_t room = sizeof key->bytes - key->size;
  if (size > room) size = room; /* cannot be: lengths are limited by the core */
  if (size) memcpy(key->bytes + key->size, bytes, size);
  key->size += size;
}

static void add_byte(struct kv_local_key *key, int byte) {
  unsigned char one = (unsigned char)byte;
  add(key, &one, 1);
}

static void add_number(struct kv_local_key *key, uint64_t number, int bytes) {
  unsigned char out[8];
  for (int i = 0; i < bytes; i++) out[i] = (unsigned char)(number >> (8 * (bytes - 1 - i)));
  add(key, out, (size_t)bytes);
}

uint64_t kv_local_number(const void *big_endian) {
  const unsigned char *bytes = big_endian;
  uint64_t number = 0;
  for (int i = 0; i < 8; i++) number = number << 8 | bytes[i];
  return number;
}

MDB_val kv_local_val(struct kv_local_key *key) {
  return (MDB_val){.mv_size = key->size, .mv_data = key->bytes};
}

bool kv_local_of_library(kv_slice key) {
  return key.size > 4 && memcmp(key.data, ".kv/", 4) == 0;
}

void kv_local_key_meta(struct kv_local_key *key, char what) {
  key->size = 0;
  add_byte(key, LOCAL_META);
  add_byte(key, what);
}

void kv_local_key_data(struct kv_local_key *key, kv_slice name) {
  key->bytes[0] = LOCAL_DATA;
  key->size = 1;
  add(key, name.data, name.size);
}

void kv_local_key_history(struct kv_local_key *key, uint64_t revision, uint32_t sequence) {
  key->size = 0;
  add_byte(key, LOCAL_HISTORY);
  add_number(key, revision, 8);
  add_number(key, sequence, 4);
}

void kv_local_key_lease(struct kv_local_key *key, uint64_t id) {
  key->size = 0;
  add_byte(key, LOCAL_LEASE);
  add_byte(key, LOCAL_OF_LEASE);
  add_number(key, id, 8);
}

void kv_local_key_attached(struct kv_local_key *key, uint64_t lease, char type, kv_slice ref) {
  key->size = 0;
  add_byte(key, LOCAL_LEASE);
  add_byte(key, type);
  add_number(key, lease, 8);
  add(key, ref.data, ref.size);
}

void kv_local_key_expiry(struct kv_local_key *key, int64_t at, char type, kv_slice ref) {
  key->size = 0;
  add_byte(key, LOCAL_EXPIRY);
  add_number(key, at < 0 ? 0 : (uint64_t)at, 8);
  if (!type) return;
  add_byte(key, type);
  add(key, ref.data, ref.size);
}

void kv_local_key_place(struct kv_local_key *key, kv_slice name, uint64_t order) {
  key->size = 0;
  add_byte(key, LOCAL_QUEUE);
  add(key, name.data, name.size);
  add_byte(key, 0);
  add_number(key, order, 8);
}

bool kv_local_begins(const MDB_val *key, const struct kv_local_key *prefix, size_t size) {
  return key->mv_size >= size && memcmp(key->mv_data, prefix->bytes, size) == 0;
}

/* ------------------------------------------------------------------ values */

static uint64_t load(const char *from) {
  uint64_t number;
  memcpy(&number, from, sizeof number);
  return number;
}

static void store(unsigned char *to, uint64_t number) {
  memcpy(to, &number, sizeof number);
}

bool kv_local_record_read(const MDB_val *from, struct kv_local_record *record) {
  const char *at = from->mv_data;
  size_t size = from->mv_size, head = 16;
  if (size < head) return false;
  uint64_t second = load(at + 8);
  unsigned flags = (unsigned)(second >> TOP);
  record->revision = load(at);
  record->created = second & LOW_MASK;
  record->expiry = 0;
  record->lease = 0;
  if (flags) {
    if (flags & HAS_EXPIRY) {
      if (size < head + 8) return false;
      record->expiry = (int64_t)load(at + head);
      head += 8;
    }
    if (flags & HAS_LEASE) {
      if (size < head + 8) return false;
      record->lease = load(at + head);
      head += 8;
    }
  }
  record->value = (kv_slice){at + head, size - head};
  return true;
}

size_t kv_local_record_head(const struct kv_local_record *record, unsigned char *out) {
  size_t head = 16;
  uint64_t flags = (record->expiry ? HAS_EXPIRY : 0u) | (record->lease ? HAS_LEASE : 0u);
  store(out, record->revision);
  store(out + 8, record->created | flags << TOP);
  if (record->expiry) {
    store(out + head, (uint64_t)record->expiry);
    head += 8;
  }
  if (record->lease) {
    store(out + head, record->lease);
    head += 8;
  }
  return head;
}

bool kv_local_lease_read(const MDB_val *from, struct kv_local_lease *lease) {
  if (from->mv_size != sizeof *lease) return false;
  memcpy(lease, from->mv_data, sizeof *lease);
  return true;
}

bool kv_local_place_read(const MDB_val *from, struct kv_local_place *place) {
  const char *at = from->mv_data;
  if (from->mv_size < LOCAL_PLACE_HEAD) return false;
  place->expiry = (int64_t)load(at);
  place->ttl = (int64_t)load(at + 8);
  place->owner = load(at + 16);
  place->lease = load(at + 24);
  memcpy(place->id, at + 32, sizeof place->id);
  place->value = (kv_slice){at + LOCAL_PLACE_HEAD, from->mv_size - LOCAL_PLACE_HEAD};
  return true;
}

void kv_local_place_head(const struct kv_local_place *place, unsigned char *out) {
  store(out, (uint64_t)place->expiry);
  store(out + 8, (uint64_t)place->ttl);
  store(out + 16, place->owner);
  store(out + 24, place->lease);
  memcpy(out + 32, place->id, sizeof place->id);
}

/* Head of a change: created with the type above it, both totals, size of the key and a spare number. */
bool kv_local_change_read(const MDB_val *key, const MDB_val *from, struct kv_local_change *change) {
  const unsigned char *name = key->mv_data;
  const char *at = from->mv_data;
  uint32_t key_size;
  if (key->mv_size != 13 || name[0] != LOCAL_HISTORY || from->mv_size < LOCAL_CHANGE_HEAD) return false;
  memcpy(&key_size, at + 24, sizeof key_size);
  if (key_size > from->mv_size - LOCAL_CHANGE_HEAD) return false;
  uint64_t first = load(at);
  if (first >> TOP > LOCAL_GONE) return false;
  change->revision = kv_local_number(name + 1);
  change->sequence = (uint32_t)name[9] << 24 | (uint32_t)name[10] << 16 | (uint32_t)name[11] << 8 | name[12];
  change->type = (enum kv_local_change_type)(first >> TOP);
  change->created = first & LOW_MASK;
  change->total_bytes = load(at + 8);
  change->total_count = load(at + 16);
  change->key = (kv_slice){at + LOCAL_CHANGE_HEAD, key_size};
  change->value = (kv_slice){at + LOCAL_CHANGE_HEAD + key_size, from->mv_size - LOCAL_CHANGE_HEAD - key_size};
  return true;
}

void kv_local_change_head(const struct kv_local_change *change, unsigned char *out) {
  uint32_t sizes[2] = {(uint32_t)change->key.size, 0};
  store(out, change->created | (uint64_t)change->type << TOP);
  store(out + 8, change->total_bytes);
  store(out + 16, change->total_count);
  memcpy(out + 24, sizes, sizeof sizes);
}

uint64_t kv_local_change_bytes(size_t key, size_t value) {
  return (uint64_t)key + value + LOCAL_CHANGE_HEAD + 13 + 10;
}
