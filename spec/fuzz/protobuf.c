/*
 * Fuzz what a hostile server may put into a message: each reader of csrc/drivers/etcd/messages.c gets the input, on top
 * of csrc/wire/protobuf.c. What they give must lie inside of the message and respect the limits that the driver counts
 * on, and a reader that refused must not have run past its end.
 */
#include "fuzz.h"

#include "drivers/etcd/messages.h"

static kv_slice message;

/* Readable, too: the sanitizer looks at each byte. */
static void check_inside(kv_slice slice) {
  unsigned sum = 0;
  if (!slice.size) return;
  MUST(slice.data >= message.data && slice.size <= message.size);
  MUST(slice.data - message.data <= (ptrdiff_t)(message.size - slice.size));
  for (size_t i = 0; i < slice.size; i++) sum += (unsigned char)slice.data[i];
  __asm__ volatile("" : : "r"(sum)); /* not to be optimised away */
}

static void check_pair(const struct etcd_pair *pair) {
  check_inside(pair->key);
  check_inside(pair->value);
  MUST(pair->revision < ETCD_REVISION_MAX && pair->created < ETCD_REVISION_MAX);
}

static bool on_pair(void *context, const struct etcd_pair *pair) {
  size_t *count = context;
  check_pair(pair);
  return ++*count < 1000;
}

static void read_fields(void) {
  struct pb_reader reader;
  struct pb_field field;
  size_t count = 0;
  pb_reader_init(&reader, message.data, message.size);
  while (pb_next(&reader, &field)) {
    MUST(field.number >= 1 && field.number < 1u << 29);
    if (field.type == PB_BYTES) check_inside((kv_slice){(const char *)field.data, field.size});
    MUST(++count <= message.size);
  }
  MUST(reader.at <= reader.end && (!pb_ok(&reader) || reader.at == reader.end));
  MUST(!pb_next(&reader, &field)); /* the end is the end, and so is a failure */
}

static void read_pairs(void) {
  struct etcd_range_reply range;
  struct etcd_put_reply put;
  struct etcd_delete_reply deleted;
  size_t count = 0;
  if (etcd_read_range(message, &range, on_pair, &count)) MUST(range.pairs == count);
  MUST(etcd_read_range(message, &range, NULL, NULL) || range.pairs <= message.size);
  if (etcd_read_put(message, &put) && put.had_previous) check_pair(&put.previous);
  etcd_read_delete(message, &deleted);
}

static void read_transaction(void) {
  static struct etcd_txn_reply reply;
  if (!etcd_read_txn(message, &reply)) return;
  MUST(reply.count <= ETCD_PARTS_MAX && reply.header.revision < ETCD_REVISION_MAX);
  for (size_t i = 0; i < reply.count; i++) {
    struct etcd_range_reply range;
    size_t count = 0;
    check_inside(reply.parts[i].message);
    MUST(reply.parts[i].kind >= ETCD_PART_RANGE && reply.parts[i].kind <= ETCD_PART_DELETE);
    etcd_read_range(reply.parts[i].message, &range, on_pair, &count);
  }
}

static void read_watch(void) {
  struct etcd_watch_reply reply;
  struct etcd_event event;
  struct pb_reader reader;
  size_t count = 0;
  bool good = etcd_read_watch(message, &reply);
  if (good) {
    check_inside(reply.reason);
    MUST(reply.events <= message.size && reply.compacted < ETCD_REVISION_MAX);
  }
  etcd_events_init(&reader, message);
  while (etcd_events_next(&reader, &event)) {
    check_pair(&event.pair);
    check_inside(event.raw);
    MUST(event.pair.revision > 0);
    count++;
  }
  if (good && pb_ok(&reader)) MUST(count == reply.events);
}

static void read_others(void) {
  struct etcd_lease_reply lease;
  struct etcd_status_reply status;
  struct etcd_event event;
  kv_slice token;
  etcd_read_lease(message, &lease);
  if (etcd_read_status(message, &status)) check_inside(status.version);
  if (etcd_read_authenticate(message, &token)) check_inside(token);
  if (etcd_read_event(message, &event)) check_pair(&event.pair);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  /* From the heap in its exact size, so that each step beyond is seen. */
  char *copy = malloc(size ? size : 1);
  if (!copy) abort();
  if (size > 0) memcpy(copy, data, size);
  message = (kv_slice){copy, size};
  read_fields();
  read_pairs();
  read_transaction();
  read_watch();
  read_others();
  free(copy);
  return 0;
}
