/*
 * error.c - the words for codes and kinds, and the one way to fill a kv_error.
 *
 * Both tables are made from lists that others read too: KV_CODES in kv.h feeds the enum, Lua, the command line and the
 * checks of the documentation.
 */
#include "core.h"

#include <stdio.h>
#include <string.h>

static const char *const code_texts[KV_CODE_COUNT] = {
#define KV_CODE_TEXT(name, text, meaning) [name] = text,
    KV_CODES(KV_CODE_TEXT)
#undef KV_CODE_TEXT
};

static const char *const code_meanings[KV_CODE_COUNT] = {
#define KV_CODE_MEANING(name, text, meaning) [name] = meaning,
    KV_CODES(KV_CODE_MEANING)
#undef KV_CODE_MEANING
};

/* As they stand in a sentence: "cannot acquire lock "a": ...". */
static const char *const kind_texts[KV_KIND_COUNT] = {
    [KV_PING] = "ping",
    [KV_GET] = "get",
    [KV_PUT] = "put",
    [KV_DELETE] = "delete",
    [KV_LIST] = "list",
    [KV_DELETE_TREE] = "delete_tree",
    [KV_TXN] = "transaction",
    [KV_LEASE_GRANT] = "grant lease",
    [KV_LEASE_RENEW] = "renew lease",
    [KV_LEASE_REVOKE] = "revoke lease",
    [KV_QUEUE_JOIN] = "join lock queue",
    [KV_QUEUE_AHEAD] = "look ahead in lock queue",
    [KV_QUEUE_WAIT] = "wait in lock queue",
    [KV_QUEUE_CLAIM] = "claim lock",
    [KV_QUEUE_LEAVE] = "leave lock queue",
    [KV_QUEUE_HEAD] = "find holder of lock",
    [KV_LOCK_ACQUIRE] = "acquire lock",
    [KV_LOCK_RELEASE] = "release lock",
    [KV_LOCK_WAIT_LOST] = "wait for loss of lock",
    [KV_CAMPAIGN] = "campaign",
    [KV_RESIGN] = "resign",
    [KV_LEADER] = "find leader",
    [KV_LEASE_OPEN] = "open lease",
    [KV_LEASE_CLOSE] = "close lease",
    [KV_LEASE_WAIT_LOST] = "wait for loss of lease",
    [KV_WATCH_READY] = "watch",
};

const char *kv_code_text(kv_code code) {
  return (unsigned)code < KV_CODE_COUNT ? code_texts[code] : "failed";
}

const char *kv_code_meaning(kv_code code) {
  return (unsigned)code < KV_CODE_COUNT ? code_meanings[code] : "a code that does not exist";
}

const char *kv_kind_text(kv_kind kind) {
  return (unsigned)kind < KV_KIND_COUNT ? kind_texts[kind] : "request";
}

/* A message that had to be cut must not end in half a UTF-8 character. */
static void trim_cut(char *message, size_t size) {
  size_t end = size;
  while (end > 0 && size - end < 3 && ((unsigned char)message[end - 1] & 0xC0) == 0x80) end--;
  if (end == 0 || (unsigned char)message[end - 1] < 0xC0) return; /* ASCII, or no UTF-8 at all */
  unsigned char lead = (unsigned char)message[end - 1];
  size_t need = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (size - (end - 1) < need) message[end - 1] = '\0';
}

kv_code kv_fail_v(kv_error *error, kv_code code, const char *format, va_list arguments) {
  if (!error) return code;
  error->code = code;
  int length = vsnprintf(error->message, sizeof error->message, format, arguments);
  if (length < 0) error->message[0] = '\0';
  if (length >= (int)sizeof error->message) trim_cut(error->message, sizeof error->message - 1);
  return code;
}

kv_code kv_fail(kv_error *error, kv_code code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  kv_fail_v(error, code, format, arguments);
  va_end(arguments);
  return code;
}
