/*
 * messages.c - see messages.h. Field numbers are those of etcd's rpc.proto and kv.proto (3.3 to 3.6 agree on all of
 * them).
 *
 * Each reader walks over the fields once with one switch; what it does not know is passed over, as protobuf wants. A
 * known field of the wrong wire type makes the message malformed.
 */
#include "messages.h"

#include <string.h>

/* ------------------------------------------------------------------ requests */

static void write_slice(struct pb_writer *out, uint32_t field, kv_slice slice) {
  pb_bytes(out, field, slice.data, slice.size);
}

void etcd_write_range(struct pb_writer *out, const struct etcd_range *range) {
  enum { SORT_BY_CREATE = 2 };
  write_slice(out, 1, range->key);
  write_slice(out, 2, range->end);
  pb_number(out, 3, range->limit);
  pb_number(out, 4, range->revision);
  pb_number(out, 5, (uint64_t)range->by_create);
  if (range->by_create != ETCD_UNSORTED) pb_number(out, 6, SORT_BY_CREATE);
  pb_number(out, 7, range->serializable);
  pb_number(out, 8, range->keys_only);
  pb_number(out, 13, range->max_create);
}

void etcd_write_put(struct pb_writer *out, const struct etcd_put *put) {
  write_slice(out, 1, put->key);
  write_slice(out, 2, put->value);
  pb_number(out, 3, put->lease);
  pb_number(out, 4, put->previous);
}

void etcd_write_delete(struct pb_writer *out, kv_slice key, kv_slice end) {
  write_slice(out, 1, key);
  write_slice(out, 2, end);
}

void etcd_write_grant(struct pb_writer *out, uint64_t id, uint64_t ttl) {
  pb_number(out, 1, ttl);
  pb_number(out, 2, id);
}

void etcd_write_lease(struct pb_writer *out, uint64_t id) {
  pb_number(out, 1, id);
}

void etcd_write_authenticate(struct pb_writer *out, const char *name, const char *password) {
  pb_bytes(out, 1, name, strlen(name));
  pb_bytes(out, 2, password, strlen(password));
}

void etcd_write_watch_create(struct pb_writer *out, const struct etcd_watch_create *create) {
  enum { NO_PUT = 0 };
  size_t mark = pb_begin(out, 1);
  write_slice(out, 1, create->key);
  write_slice(out, 2, create->end);
  pb_number(out, 3, create->from);
  pb_number(out, 4, !create->deletes_only); /* progress_notify */
  if (create->deletes_only) {
    uint8_t filter = NO_PUT;
    pb_bytes(out, 5, &filter, 1); /* packed repeated enum */
  }
  pb_number(out, 8, true); /* fragment */
  pb_end(out, mark);
}

void etcd_write_watch_cancel(struct pb_writer *out, uint64_t id) {
  size_t mark = pb_begin(out, 2);
  pb_number(out, 1, id);
  pb_end(out, mark);
}

void etcd_write_compare(struct pb_writer *out, const struct etcd_compare *compare) {
  size_t mark = pb_begin(out, 1);
  pb_number(out, 2, (uint64_t)compare->target);
  write_slice(out, 3, compare->key);
  /* 0 must be told apart from "not given". */
  pb_number_always(out, compare->target == ETCD_CREATE ? 5 : 6, compare->value);
  write_slice(out, 64, compare->end);
  pb_end(out, mark);
}

void etcd_write_range_in(struct pb_writer *out, enum etcd_branch branch, const struct etcd_range *range) {
  size_t step = pb_begin(out, (uint32_t)branch), mark = pb_begin(out, 1);
  etcd_write_range(out, range);
  pb_end(out, mark);
  pb_end(out, step);
}

void etcd_write_put_in(struct pb_writer *out, enum etcd_branch branch, const struct etcd_put *put) {
  size_t step = pb_begin(out, (uint32_t)branch), mark = pb_begin(out, 2);
  etcd_write_put(out, put);
  pb_end(out, mark);
  pb_end(out, step);
}

void etcd_write_delete_in(struct pb_writer *out, enum etcd_branch branch, kv_slice key, kv_slice end) {
  size_t step = pb_begin(out, (uint32_t)branch), mark = pb_begin(out, 3);
  etcd_write_delete(out, key, end);
  pb_end(out, mark);
  pb_end(out, step);
}

/* ------------------------------------------------------------------ fields */

static kv_slice slice_of(const struct pb_field *field) {
  return (kv_slice){(const char *)field->data, field->size};
}

static void message_reader(struct pb_reader *reader, kv_slice message) {
  pb_reader_init(reader, message.data, message.size);
}

static bool take_number(struct pb_reader *reader, const struct pb_field *field, uint64_t *value) {
  if (field->type != PB_VARINT) return pb_reject(reader);
  *value = field->value;
  return true;
}

static bool take_signed(struct pb_reader *reader, const struct pb_field *field, int64_t *value) {
  if (field->type != PB_VARINT) return pb_reject(reader);
  memcpy(value, &field->value, sizeof field->value); /* two's complement on the wire */
  return true;
}

static bool take_revision(struct pb_reader *reader, const struct pb_field *field, uint64_t *value) {
  if (field->type != PB_VARINT || field->value >= ETCD_REVISION_MAX) return pb_reject(reader);
  *value = field->value;
  return true;
}

static bool take_flag(struct pb_reader *reader, const struct pb_field *field, bool *value) {
  if (field->type != PB_VARINT) return pb_reject(reader);
  *value = field->value != 0;
  return true;
}

static bool take_slice(struct pb_reader *reader, const struct pb_field *field, kv_slice *value) {
  if (field->type != PB_BYTES) return pb_reject(reader);
  *value = slice_of(field);
  return true;
}

static bool take_header(struct pb_reader *reader, const struct pb_field *field, struct etcd_header *header) {
  struct pb_reader inner;
  struct pb_field part;
  if (field->type != PB_BYTES) return pb_reject(reader);
  message_reader(&inner, slice_of(field));
  while (pb_next(&inner, &part)) {
    switch (part.number) {
      case 1: take_number(&inner, &part, &header->cluster); break;
      case 2: take_number(&inner, &part, &header->member); break;
      case 3: take_revision(&inner, &part, &header->revision); break;
      default: break;
    }
  }
  return pb_ok(&inner) || pb_reject(reader);
}

static bool take_pair(struct pb_reader *reader, const struct pb_field *field, struct etcd_pair *pair) {
  struct pb_reader inner;
  struct pb_field part;
  memset(pair, 0, sizeof *pair);
  if (field->type != PB_BYTES) return pb_reject(reader);
  message_reader(&inner, slice_of(field));
  while (pb_next(&inner, &part)) {
    switch (part.number) {
      case 1: take_slice(&inner, &part, &pair->key); break;
      case 2: take_revision(&inner, &part, &pair->created); break;
      case 3: take_revision(&inner, &part, &pair->revision); break;
      case 5: take_slice(&inner, &part, &pair->value); break;
      case 6: take_number(&inner, &part, &pair->lease); break;
      default: break;
    }
  }
  return pb_ok(&inner) || pb_reject(reader);
}

/* ------------------------------------------------------------------ replies */

bool etcd_read_range(kv_slice message, struct etcd_range_reply *reply, etcd_each_pair *each, void *context) {
  struct pb_reader reader;
  struct pb_field field;
  struct etcd_pair pair;
  memset(reply, 0, sizeof *reply);
  message_reader(&reader, message);
  while (pb_next(&reader, &field)) {
    switch (field.number) {
      case 1: take_header(&reader, &field, &reply->header); break;
      case 2:
        if (!take_pair(&reader, &field, &pair)) break;
        reply->pairs++;
        if (each && !each(context, &pair)) return false;
        break;
      case 3: take_flag(&reader, &field, &reply->more); break;
      default: break;
    }
  }
  return pb_ok(&reader);
}

bool etcd_read_put(kv_slice message, struct etcd_put_reply *reply) {
  struct pb_reader reader;
  struct pb_field field;
  memset(reply, 0, sizeof *reply);
  message_reader(&reader, message);
  while (pb_next(&reader, &field)) {
    if (field.number == 1) take_header(&reader, &field, &reply->header);
    if (field.number == 2) reply->had_previous = take_pair(&reader, &field, &reply->previous);
  }
  return pb_ok(&reader);
}

bool etcd_read_delete(kv_slice message, struct etcd_delete_reply *reply) {
  struct pb_reader reader;
  struct pb_field field;
  memset(reply, 0, sizeof *reply);
  message_reader(&reader, message);
  while (pb_next(&reader, &field)) {
    if (field.number == 1) take_header(&reader, &field, &reply->header);
    if (field.number == 2) take_number(&reader, &field, &reply->deleted);
  }
  return pb_ok(&reader);
}

static bool take_part(struct pb_reader *reader, const struct pb_field *field, struct etcd_part *out) {
  struct pb_reader inner;
  struct pb_field part;
  bool seen = false;
  if (field->type != PB_BYTES) return pb_reject(reader);
  message_reader(&inner, slice_of(field));
  while (pb_next(&inner, &part)) {
    if (part.number < ETCD_PART_RANGE || part.number > ETCD_PART_DELETE) continue;
    out->kind = (enum etcd_part_kind)part.number;
    seen = take_slice(&inner, &part, &out->message);
  }
  return (seen && pb_ok(&inner)) || pb_reject(reader);
}

bool etcd_read_txn(kv_slice message, struct etcd_txn_reply *reply) {
  struct pb_reader reader;
  struct pb_field field;
  memset(&reply->header, 0, sizeof reply->header);
  reply->succeeded = false;
  reply->count = 0;
  message_reader(&reader, message);
  while (pb_next(&reader, &field)) {
    switch (field.number) {
      case 1: take_header(&reader, &field, &reply->header); break;
      case 2: take_flag(&reader, &field, &reply->succeeded); break;
      case 3:
        if (reply->count == ETCD_PARTS_MAX) return false;
        if (take_part(&reader, &field, &reply->parts[reply->count])) reply->count++;
        break;
      default: break;
    }
  }
  return pb_ok(&reader);
}

bool etcd_read_lease(kv_slice message, struct etcd_lease_reply *reply) {
  struct pb_reader reader;
  struct pb_field field;
  memset(reply, 0, sizeof *reply);
  message_reader(&reader, message);
  while (pb_next(&reader, &field)) {
    switch (field.number) {
      case 1: take_header(&reader, &field, &reply->header); break;
      case 2: take_number(&reader, &field, &reply->id); break;
      case 3: take_signed(&reader, &field, &reply->ttl); break;
      default: break;
    }
  }
  return pb_ok(&reader);
}

bool etcd_read_status(kv_slice message, struct etcd_status_reply *reply) {
  struct pb_reader reader;
  struct pb_field field;
  memset(reply, 0, sizeof *reply);
  message_reader(&reader, message);
  while (pb_next(&reader, &field)) {
    switch (field.number) {
      case 1: take_header(&reader, &field, &reply->header); break;
      case 2: take_slice(&reader, &field, &reply->version); break;
      case 4: take_number(&reader, &field, &reply->leader); break;
      default: break;
    }
  }
  return pb_ok(&reader);
}

bool etcd_read_authenticate(kv_slice message, kv_slice *token) {
  struct pb_reader reader;
  struct pb_field field;
  *token = (kv_slice){NULL, 0};
  message_reader(&reader, message);
  while (pb_next(&reader, &field))
    if (field.number == 2) take_slice(&reader, &field, token);
  return pb_ok(&reader);
}

/* ------------------------------------------------------------------ watching */

bool etcd_read_watch(kv_slice message, struct etcd_watch_reply *reply) {
  struct pb_reader reader;
  struct pb_field field;
  memset(reply, 0, sizeof *reply);
  message_reader(&reader, message);
  while (pb_next(&reader, &field)) {
    switch (field.number) {
      case 1: take_header(&reader, &field, &reply->header); break;
      case 2: take_signed(&reader, &field, &reply->id); break;
      case 3: take_flag(&reader, &field, &reply->created); break;
      case 4: take_flag(&reader, &field, &reply->cancelled); break;
      case 5: take_revision(&reader, &field, &reply->compacted); break;
      case 6: take_slice(&reader, &field, &reply->reason); break;
      case 7: take_flag(&reader, &field, &reply->fragment); break;
      case 11:
        if (field.type != PB_BYTES) pb_reject(&reader);
        reply->events++;
        break;
      default: break;
    }
  }
  return pb_ok(&reader);
}

bool etcd_read_event(kv_slice message, struct etcd_event *event) {
  struct pb_reader reader;
  struct pb_field field;
  uint64_t type = 0;
  bool has_pair = false;
  memset(event, 0, sizeof *event);
  event->raw = message;
  message_reader(&reader, message);
  while (pb_next(&reader, &field)) {
    if (field.number == 1) take_number(&reader, &field, &type);
    if (field.number == 2) has_pair = take_pair(&reader, &field, &event->pair);
  }
  event->deleted = type == 1;
  return pb_ok(&reader) && has_pair && type <= 1 && event->pair.revision > 0;
}

void etcd_events_init(struct pb_reader *reader, kv_slice message) {
  message_reader(reader, message);
}

bool etcd_events_next(struct pb_reader *reader, struct etcd_event *event) {
  struct pb_field field;
  while (pb_next(reader, &field)) {
    if (field.number != 11) continue;
    if (field.type != PB_BYTES || !etcd_read_event(slice_of(&field), event)) return pb_reject(reader);
    return true;
  }
  return false;
}
