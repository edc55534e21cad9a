/*
 * write.c - puts and transactions: both are a list of parts that becomes one /v1/txn.
 *
 * A put with a condition is a check and a write. What the parts become depends on what is known of the sessions on
 * the keys:
 *
 *   plain put        set K; and behind everything check-session K "", as the key must not die with a session
 *   a session H      unlock K by H, which also writes it
 *   put under S      lock K by S; or unlock K by H, lock K by S
 *
 * The first try assumes that there is no session. Should there be one, all of it is refused and the refusal names the
 * session; whether the key would die with it decides what the second try does. A session that would only let go of
 * the key belongs to somebody's lock: a plain put leaves that alone.
 *
 * Where 64 operations leave no room for the checks of sessions, the results tell which keys have one, and a second
 * transaction takes them off.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "consul.h"

#define ROUNDS_MAX 12
#define PARTS_MAX (KV_TXN_MAX + 2)

enum role { ROLE_CHECK, ROLE_ANCESTOR, ROLE_SET, ROLE_UNLOCK, ROLE_LOCK, ROLE_DELETE, ROLE_SESSION };

enum holder_kind { HOLDER_NONE, HOLDER_UNKNOWN, HOLDER_OWNS, HOLDER_LOCKS };

/* What is known of the session on the key of a part. */
struct holder {
  char session[CONSUL_SESSION_SIZE];
  enum holder_kind kind;
  bool single; /* made for this key alone by a put with a time to live */
};

struct consul_write {
  struct kv_part own[2];       /* of a put */
  const struct kv_part *parts;
  size_t part_count;
  struct holder holders[PARTS_MAX];
  char (*sessions)[CONSUL_SESSION_SIZE]; /* of parts with a time to live, made for them; NULL: none has */
  uint8_t roles[PARTS_MAX + CONSUL_TXN_OPS], part_of[PARTS_MAX + CONSUL_TXN_OPS];
  size_t count;                /* operations */
  bool checked;                /* sessions are */
  /* all was done, and is done once more without the checks, which were met, to take sessions off */
  bool after;
  bool is_dir;                 /* portable mode: a key is a directory; does a check fail before that? */
  size_t asking;               /* the part whose holder is being asked for, or whose children are */
  uint64_t revision, created;
};

void consul_write_free(struct consul_write *wrote) {
  free(wrote->sessions);
  free(wrote);
}

/* ------------------------------------------------------------------ operations of a transaction */

static void body_text(struct consul_call *call, const char *text) {
  if (!kv_buffer_add(&call->body, text, strlen(text))) call->failed = true;
}

static void body_number(struct consul_call *call, const char *name, uint64_t number) {
  char text[64];
  snprintf(text, sizeof text, ",\"%s\":%llu", name, (unsigned long long)number);
  body_text(call, text);
}

void consul_verb(struct consul_call *call, const struct consul_verb *verb) {
  body_text(call, call->body.size ? ",{\"KV\":{\"Verb\":\"" : "[{\"KV\":{\"Verb\":\"");
  body_text(call, verb->verb);
  body_text(call, "\",\"Key\":");
  if (!json_quote(&call->body, verb->key)) call->failed = true;
  if (verb->has_value) {
    body_text(call, ",\"Value\":\"");
    if (!base64_encode(&call->body, verb->value)) call->failed = true;
    body_text(call, "\"");
    body_number(call, "Flags", verb->flags);
  }
  if (verb->has_index) body_number(call, "Index", verb->index);
  if (verb->has_session) {
    body_text(call, ",\"Session\":\"");
    body_text(call, verb->session);
    body_text(call, "\"");
  }
  body_text(call, "}}");
}

void consul_send_txn(struct consul_call *call, bool write, void (*answered)(struct consul_call *call)) {
  body_text(call, "]");
  consul_send(call, "PUT", write, answered);
}

struct json *consul_txn_answer(struct consul_call *call) {
  if (call->http.status != 200 && call->http.status != 409) {
    consul_refuse(call);
    return NULL;
  }
  struct json *answer = json_read(call->http.answer);
  if (!answer) consul_garbled(call);
  return answer;
}

bool consul_txn_error(const struct json *answer, size_t index, kv_slice *what) {
  const struct json *errors = json_member(answer, "Errors");
  for (size_t i = 0; i < json_count(errors); i++) {
    uint64_t its;
    if (json_number(json_member(json_item(errors, i), "OpIndex"), &its) && its == index &&
        json_text(json_member(json_item(errors, i), "What"), what))
      return true;
  }
  return false;
}

bool consul_txn_denied(const struct json *answer, kv_slice *what) {
  const struct json *errors = json_member(answer, "Errors");
  for (size_t i = 0; i < json_count(errors); i++) {
    kv_slice text;
    if (!json_text(json_member(json_item(errors, i), "What"), &text) || !http_begins(text, "Permission denied"))
      continue;
    *what = text;
    return true;
  }
  return false;
}

bool consul_txn_result(const struct json *answer, kv_slice key, struct kv_buffer *value, struct consul_pair *pair) {
  const struct json *results = json_member(answer, "Results");
  for (size_t i = json_count(results); i-- > 0;) {
    kv_slice its;
    const struct json *object = json_member(json_item(results, i), "KV");
    if (json_text(json_member(object, "Key"), &its) && its.size == key.size &&
        memcmp(its.data, key.data, key.size) == 0)
      return consul_read_pair(object, value, pair);
  }
  return false;
}

/* failed session check for key "k", current session "ID" != "" - the key itself may hold any character. */
bool consul_current_session(kv_slice what, char *session) {
  static const char words[] = "\", current session \"";
  size_t size = sizeof words - 1;
  for (size_t i = what.size; i-- > 0;) {
    if (what.size - i < size + 36 || memcmp(what.data + i, words, size) != 0) continue;
    const char *from = what.data + i + size;
    for (size_t j = 0; j < 36; j++)
      if (!strchr("0123456789abcdef-", from[j]) || !from[j]) return false;
    memcpy(session, from, 36);
    session[36] = '\0';
    return true;
  }
  return false;
}

/* ------------------------------------------------------------------ from parts to operations */

static void note(struct consul_write *wrote, enum role role, size_t part) {
  wrote->roles[wrote->count] = (uint8_t)role;
  wrote->part_of[wrote->count++] = (uint8_t)part;
}

static bool is_ancestor(kv_slice ancestor, kv_slice key) {
  return key.size > ancestor.size && key.data[ancestor.size] == '/' &&
         memcmp(key.data, ancestor.data, ancestor.size) == 0;
}

/* A part before the `index`-th requires the same of this ancestor already. */
static bool is_settled(const struct consul_write *wrote, size_t index, kv_slice ancestor) {
  for (size_t i = 0; i < wrote->part_count; i++) {
    const struct kv_part *part = &wrote->parts[i];
    if (part->type == KV_PART_PUT && i < index && is_ancestor(ancestor, part->key)) return true;
  }
  return false;
}

/* Portable mode: no value may stand where a directory is needed. */
static void add_ancestors(struct consul_call *call, size_t index) {
  struct consul_write *wrote = call->wrote;
  kv_slice key = wrote->parts[index].key;
  for (size_t i = 1; i < key.size; i++) {
    kv_slice ancestor = {key.data, i};
    if (key.data[i] != '/' || is_settled(wrote, index, ancestor) || wrote->count >= CONSUL_TXN_OPS) continue;
    consul_verb(call, &(struct consul_verb){.verb = "check-not-exists", .key = ancestor});
    note(wrote, ROLE_ANCESTOR, index);
  }
}

/* The session under which a part is to be put, or NULL. */
static const char *session_of(const struct consul_call *call, size_t index) {
  const struct consul_write *wrote = call->wrote;
  if (wrote->parts[index].lease) return wrote->parts[index].lease->text;
  return wrote->sessions && wrote->sessions[index][0] ? wrote->sessions[index] : NULL;
}

static void add_value(struct consul_call *call, size_t index, const char *verb, const char *session, enum role role) {
  const struct kv_part *part = &call->wrote->parts[index];
  consul_verb(call, &(struct consul_verb){.verb = verb, .key = part->key, .has_value = true, .value = part->value,
                                          .flags = call->flags, .has_session = session != NULL, .session = session});
  note(call->wrote, role, index);
}

static void add_put(struct consul_call *call, size_t index) {
  struct consul_write *wrote = call->wrote;
  struct holder *holder = &wrote->holders[index];
  const char *session = session_of(call, index);
  bool taken = holder->kind == HOLDER_OWNS && !(session && strcmp(session, holder->session) == 0);
  if (taken) add_value(call, index, "unlock", holder->session, ROLE_UNLOCK);
  if (session)
    add_value(call, index, "lock", session, ROLE_LOCK);
  else if (!taken)
    add_value(call, index, "set", NULL, ROLE_SET);
}

static void add_part(struct consul_call *call, size_t index) {
  struct consul_write *wrote = call->wrote;
  const struct kv_part *part = &wrote->parts[index];
  struct consul_lock_key lock;
  if (wrote->after && part->type != KV_PART_PUT) return;
  if (wrote->is_dir && part->type >= KV_PART_PUT) return;
  switch (part->type) {
    case KV_PART_CHECK:
      consul_verb(call, &(struct consul_verb){
                            .verb = "check-index", .key = part->key, .has_index = true, .index = part->revision});
      note(wrote, ROLE_CHECK, index);
      break;
    case KV_PART_ABSENT:
      consul_verb(call, &(struct consul_verb){.verb = "check-not-exists", .key = part->key});
      note(wrote, ROLE_CHECK, index);
      break;
    case KV_PART_GUARD: /* the token is the index at which the lock's key became ours: any change of it makes another */
      consul_lock_key(part->place, &lock);
      if (part->place->limit) /* a ticket of this name is ours, as long as our session has it */
        consul_verb(call, &(struct consul_verb){.verb = "check-session", .key = {lock.data, lock.size},
                                                .has_session = true, .session = part->place->lease->text});
      else
        consul_verb(call, &(struct consul_verb){.verb = "check-index", .key = {lock.data, lock.size},
                                                .has_index = true, .index = part->place->token});
      note(wrote, ROLE_CHECK, index);
      break;
    case KV_PART_PUT: add_put(call, index); break;
    case KV_PART_DELETE:
      consul_verb(call, &(struct consul_verb){.verb = "delete", .key = part->key});
      note(wrote, ROLE_DELETE, index);
      break;
  }
}

/* Does the key of this put need a look at its session afterwards? */
static bool wants_check(const struct consul_call *call, size_t index) {
  const struct consul_write *wrote = call->wrote;
  return wrote->parts[index].type == KV_PART_PUT && wrote->holders[index].kind != HOLDER_LOCKS &&
         (session_of(call, index) || wrote->holders[index].kind == HOLDER_NONE);
}

static void add_session_checks(struct consul_call *call) {
  struct consul_write *wrote = call->wrote;
  size_t wanted = 0;
  for (size_t i = 0; i < wrote->part_count; i++) wanted += wants_check(call, i);
  wrote->checked = wrote->count + wanted <= CONSUL_TXN_OPS;
  if (!wrote->checked) return;
  for (size_t i = 0; i < wrote->part_count; i++) {
    if (!wants_check(call, i)) continue;
    const char *session = session_of(call, i);
    consul_verb(call, &(struct consul_verb){.verb = "check-session", .key = wrote->parts[i].key, .has_session = true,
                                            .session = session ? session : ""});
    note(wrote, ROLE_SESSION, i);
  }
}

static void answered(struct consul_call *call);

static void tell_is_dir(struct consul_call *call) {
  consul_finish(call, KV_IS_DIR, "the key is a directory");
}

static void send_parts(struct consul_call *call) {
  struct consul_write *wrote = call->wrote;
  wrote->count = 0;
  call->flags = consul_flags();
  consul_path(call, "/v1/txn", (kv_slice){NULL, 0}, "");
  size_t checks = 0;
  while (checks < wrote->part_count && wrote->parts[checks].type < KV_PART_PUT) add_part(call, checks++);
  if (call->op->flags & KV_PORTABLE)
    for (size_t i = 0; i < wrote->part_count; i++)
      if (wrote->parts[i].type == KV_PART_PUT && !(wrote->is_dir && i > wrote->asking)) add_ancestors(call, i);
  for (size_t i = checks; i < wrote->part_count; i++) add_part(call, i);
  if (call->failed) {
    consul_no_memory(call);
    return;
  }
  if (wrote->is_dir && !wrote->count) {
    tell_is_dir(call);
    return;
  }
  if (!wrote->is_dir) add_session_checks(call);
  if (wrote->count > CONSUL_TXN_OPS) {
    consul_finish(call, KV_FAILED, "moving keys from one lease to another takes more than %d operations",
                  CONSUL_TXN_OPS);
    return;
  }
  if (call->body.size + 1 > CONSUL_TXN_BYTES) {
    if (call->op->kind == KV_PUT)
      consul_large_go(call);
    else
      consul_finish(call, KV_TOO_LARGE, "the transaction is larger than Consul takes (512 KB)");
    return;
  }
  consul_send_txn(call, !wrote->is_dir, answered);
}

/* ------------------------------------------------------------------ whose session is it? */

static void settle_holders(struct consul_call *call);

static void set_holder(struct consul_write *wrote, const char *session, enum holder_kind kind, bool single) {
  for (size_t i = 0; i < wrote->part_count; i++) {
    struct holder *holder = &wrote->holders[i];
    if (strcmp(holder->session, session) != 0) continue;
    holder->kind = kind;
    holder->single = single;
  }
}

static void holder_told(struct consul_call *call) {
  struct consul_write *wrote = call->wrote;
  struct holder *holder = &wrote->holders[wrote->asking];
  struct json *answer = call->http.status == 200 ? json_read(call->http.answer) : NULL;
  kv_slice behavior, name;
  char session[CONSUL_SESSION_SIZE];
  if (!answer) {
    consul_refuse(call);
    return;
  }
  memcpy(session, holder->session, sizeof session);
  const struct json *info = json_item(answer, 0);
  if (!json_text(json_member(info, "Behavior"), &behavior)) {
    set_holder(wrote, session, HOLDER_NONE, false); /* gone by now */
  } else {
    bool deletes = behavior.size == 6 && memcmp(behavior.data, "delete", 6) == 0;
    bool single = json_text(json_member(info, "Name"), &name) && name.size == 6 && memcmp(name.data, "kv ttl", 6) == 0;
    set_holder(wrote, session, deletes ? HOLDER_OWNS : HOLDER_LOCKS, single);
  }
  json_free(answer);
  settle_holders(call);
}

/* Ask for each session that we know nothing of, then try again. */
static void settle_holders(struct consul_call *call) {
  struct consul_write *wrote = call->wrote;
  for (size_t i = 0; i < wrote->part_count; i++) {
    struct holder *holder = &wrote->holders[i];
    if (holder->kind == HOLDER_LOCKS && session_of(call, i)) {
      consul_finish(call, KV_FAILED, "the key is somebody's lock: it cannot have a time to live");
      return;
    }
    if (holder->kind != HOLDER_UNKNOWN) continue;
    wrote->asking = i;
    consul_path(call, "/v1/session/info/", (kv_slice){holder->session, strlen(holder->session)}, "");
    consul_query(call, "consistent");
    consul_send(call, "GET", false, holder_told);
    return;
  }
  send_parts(call);
}

static void learn_holder(struct holder *holder, const char *session) {
  if (holder->kind != HOLDER_NONE && strcmp(holder->session, session) == 0) return;
  memcpy(holder->session, session, CONSUL_SESSION_SIZE);
  holder->kind = HOLDER_UNKNOWN;
}

/* "lock is already held", and no room was left to be told by whom. */
static void key_read(struct consul_call *call) {
  struct consul_write *wrote = call->wrote;
  struct json *answer = call->http.status == 200 ? json_read(call->http.answer) : NULL;
  struct consul_pair pair;
  if (call->http.status != 200 && call->http.status != 404) {
    consul_refuse(call);
    return;
  }
  bool good = answer && consul_read_pair(json_item(answer, 0), NULL, &pair);
  json_free(answer);
  if (good && pair.session[0]) learn_holder(&wrote->holders[wrote->asking], pair.session);
  settle_holders(call);
}

static void read_key(struct consul_call *call, size_t part) {
  call->wrote->asking = part;
  consul_path(call, "/v1/kv/", call->wrote->parts[part].key, "");
  consul_query(call, "consistent");
  consul_send(call, "GET", false, key_read);
}

/* ------------------------------------------------------------------ refusals */

static void make_sessions(struct consul_call *call);
static void session_made(struct consul_call *call);

/* The first operation of this role that was refused. */
static bool refused_role(const struct consul_write *wrote, const struct json *answer, enum role role, size_t *part,
                         kv_slice *what) {
  for (size_t i = 0; i < wrote->count; i++) {
    if (wrote->roles[i] != role || !consul_txn_error(answer, i, what)) continue;
    *part = wrote->part_of[i];
    return true;
  }
  return false;
}

static void check_failed(struct consul_call *call, size_t part) {
  struct kv_op *op = call->op;
  if (op->kind == KV_TXN) op->result.failed_check = (int)part;
  if (op->kind == KV_PUT && op->condition == KV_IF_ABSENT)
    consul_finish(call, KV_EXISTS, "the key is there");
  else
    consul_finish(call, KV_MODIFIED, "the key was changed, or is gone");
}

/* Every key whose session was in the way. */
static bool learn_holders(struct consul_write *wrote, const struct json *answer) {
  bool learned = false;
  for (size_t i = 0; i < wrote->count; i++) {
    kv_slice what;
    char session[CONSUL_SESSION_SIZE];
    struct holder *holder = &wrote->holders[wrote->part_of[i]];
    if (!consul_txn_error(answer, i, &what)) continue;
    if (wrote->roles[i] == ROLE_UNLOCK) {
      *holder = (struct holder){.kind = HOLDER_NONE};
      learned = true;
    } else if (wrote->roles[i] == ROLE_SESSION && consul_current_session(what, session)) {
      learn_holder(holder, session);
      learned = true;
    }
  }
  return learned;
}

/* A session is gone: that of a lease for good, those that were made for this are made again. */
static void session_gone(struct consul_call *call, size_t part) {
  if (call->wrote->parts[part].lease) {
    consul_finish(call, KV_LOST, "the lease is gone");
    return;
  }
  memset(call->wrote->sessions, 0, PARTS_MAX * sizeof *call->wrote->sessions);
  make_sessions(call);
}

static void refused(struct consul_call *call, const struct json *answer) {
  struct consul_write *wrote = call->wrote;
  size_t part;
  kv_slice what;
  char shown[200];
  call->op->sent = call->applied; /* it was refused as a whole */
  if (consul_txn_denied(answer, &what)) {
    consul_finish(call, KV_DENIED, "%s", http_shown(what, shown, sizeof shown));
  } else if (refused_role(wrote, answer, ROLE_CHECK, &part, &what)) {
    check_failed(call, part);
  } else if (refused_role(wrote, answer, ROLE_ANCESTOR, &part, &what)) {
    consul_finish(call, KV_NOT_DIR, "a key stands where a directory is needed");
  } else if (call->rounds++ >= ROUNDS_MAX) {
    consul_finish(call, KV_UNAVAILABLE, "the sessions of the keys change all the time");
  } else if (refused_role(wrote, answer, ROLE_LOCK, &part, &what) && http_ends(what, "lock delay")) {
    consul_finish(call, KV_UNAVAILABLE, "the key is under a lock-delay");
  } else if (refused_role(wrote, answer, ROLE_LOCK, &part, &what) &&
             (http_begins(what, "invalid session") || http_begins(what, "failed session lookup"))) {
    session_gone(call, part);
  } else if (learn_holders(wrote, answer)) {
    settle_holders(call);
  } else if (refused_role(wrote, answer, ROLE_LOCK, &part, &what) && http_ends(what, "already held")) {
    read_key(call, part);
  } else {
    bool told = json_text(json_member(json_item(json_member(answer, "Errors"), 0), "What"), &what);
    consul_finish(call, KV_FAILED, "%s", told ? http_shown(what, shown, sizeof shown) : "refused");
  }
}

/* ------------------------------------------------------------------ success */

static void abandon_old_sessions(struct consul_call *call) {
  struct consul_write *wrote = call->wrote;
  for (size_t i = 0; i < wrote->part_count; i++)
    if (wrote->holders[i].kind == HOLDER_OWNS && wrote->holders[i].single)
      consul_session_abandon(call->consul, wrote->holders[i].session);
}

static void index_told(struct consul_call *call) {
  uint64_t index = 0;
  if (http_header_number(&call->http, "X-Consul-Index", &index)) call->op->result.revision = index;
  consul_finish(call, KV_OK, NULL);
}

static void succeed(struct consul_call *call) {
  struct kv_op *op = call->op;
  abandon_old_sessions(call);
  op->result.revision = call->wrote->revision;
  op->result.created = call->wrote->created;
  call->kept = true; /* the sessions are the keys' now */
  if (op->result.revision) {
    consul_finish(call, KV_OK, NULL);
    return;
  }
  /* Nothing was put, so no result has the index. That of the whole store is not smaller. */
  call->applied = true;
  consul_path(call, "/v1/kv/.kv/none", (kv_slice){NULL, 0}, "");
  consul_query(call, "consistent");
  consul_send(call, "GET", false, index_told);
}

/* Without room for checks: which keys are still under a session? They are taken off it now. False: none. */
static bool take_sessions_off(struct consul_call *call, const struct json *answer) {
  struct consul_write *wrote = call->wrote;
  bool any = false;
  for (size_t i = 0; i < wrote->part_count; i++) {
    struct consul_pair pair;
    const struct kv_part *part = &wrote->parts[i];
    if (part->type != KV_PART_PUT || session_of(call, i) || wrote->holders[i].kind == HOLDER_LOCKS) continue;
    if (!consul_txn_result(answer, part->key, NULL, &pair) || !pair.session[0]) continue;
    learn_holder(&wrote->holders[i], pair.session);
    any = true;
  }
  return any;
}

/* False: an answer that lacks something, or no memory for it. */
static bool put_results(struct consul_call *call, const struct json *answer, bool last) {
  struct consul_write *wrote = call->wrote;
  for (size_t i = 0; i < wrote->part_count; i++) {
    struct consul_pair pair;
    const struct kv_part *part = &wrote->parts[i];
    if (part->type != KV_PART_PUT) continue;
    if (!consul_txn_result(answer, part->key, NULL, &pair)) return false;
    wrote->revision = pair.revision;
    wrote->created = pair.created;
    if (call->op->kind == KV_TXN && last &&
        !kv_consul->pair(call->op, part->key, (kv_slice){NULL, 0}, pair.revision, pair.created, false))
      return false;
  }
  return true;
}

static void answered(struct consul_call *call) {
  struct consul_write *wrote = call->wrote;
  struct json *answer = consul_txn_answer(call);
  if (!answer) return;
  if (call->http.status == 409) {
    refused(call, answer);
    json_free(answer);
    return;
  }
  if (wrote->is_dir) {
    json_free(answer);
    tell_is_dir(call);
    return;
  }
  bool again = !wrote->checked && take_sessions_off(call, answer) && call->rounds++ < ROUNDS_MAX;
  bool good = put_results(call, answer, !again);
  json_free(answer);
  if (!good) {
    consul_garbled(call);
  } else if (again) {
    wrote->after = call->applied = true;
    settle_holders(call);
  } else {
    succeed(call);
  }
}

/* ------------------------------------------------------------------ beginning */

static void ask_for_children(struct consul_call *call, size_t from);

static void children_told(struct consul_call *call) {
  if (call->http.status == 200) {
    call->wrote->is_dir = true;
    send_parts(call);
    return;
  }
  if (call->http.status != 404) {
    consul_refuse(call);
    return;
  }
  ask_for_children(call, call->wrote->asking + 1);
}

/* Portable mode: no key may be put that is a directory. No check of a transaction can say that, so it is asked
 * before. */
static void ask_for_children(struct consul_call *call, size_t from) {
  struct consul_write *wrote = call->wrote;
  for (size_t i = from; i < wrote->part_count; i++) {
    if (wrote->parts[i].type != KV_PART_PUT) continue;
    wrote->asking = i;
    consul_path(call, "/v1/kv/", wrote->parts[i].key, "/");
    consul_query(call, "keys");
    consul_query(call, "separator=%2F");
    consul_query(call, "consistent");
    consul_send(call, "GET", false, children_told);
    return;
  }
  send_parts(call);
}

static void go(struct consul_call *call) {
  if (call->op->flags & KV_PORTABLE)
    ask_for_children(call, 0);
  else
    send_parts(call);
}

/* One session for all parts with the same time to live. */
static void make_sessions(struct consul_call *call) {
  struct consul_write *wrote = call->wrote;
  for (size_t i = 0; i < wrote->part_count; i++) {
    const struct kv_part *part = &wrote->parts[i];
    if (part->type != KV_PART_PUT || !(part->ttl > 0) || wrote->sessions[i][0]) continue;
    wrote->asking = i;
    consul_ttl_session(call, part->ttl, call->op->kind == KV_PUT, session_made);
    return;
  }
  go(call);
}

static void session_made(struct consul_call *call) {
  struct consul_write *wrote = call->wrote;
  double ttl = wrote->parts[wrote->asking].ttl;
  for (size_t i = 0; i < wrote->part_count; i++)
    if (wrote->parts[i].type == KV_PART_PUT && wrote->parts[i].ttl == ttl)
      memcpy(wrote->sessions[i], call->session, sizeof call->session);
  make_sessions(call);
}

/* Those that were made for a write that certainly did not happen are for nobody. */
void consul_write_abandon(struct consul_call *call) {
  const struct consul_write *wrote = call->wrote;
  for (size_t i = 0; wrote->sessions && i < wrote->part_count; i++) {
    bool told = !wrote->sessions[i][0];
    for (size_t j = 0; j < i && !told; j++) told = strcmp(wrote->sessions[i], wrote->sessions[j]) == 0;
    if (!told) consul_session_abandon(call->consul, wrote->sessions[i]);
  }
}

static void begin(struct consul_call *call) {
  struct consul_write *wrote = call->wrote;
  bool lives = false;
  for (size_t i = 0; i < wrote->part_count; i++)
    lives = lives || (wrote->parts[i].type == KV_PART_PUT && wrote->parts[i].ttl > 0);
  if (lives) wrote->sessions = calloc(PARTS_MAX, sizeof *wrote->sessions);
  if (lives && !wrote->sessions)
    consul_no_memory(call);
  else
    make_sessions(call);
}

static struct consul_call *new_write(struct consul *consul, struct kv_op *op) {
  struct consul_call *call = consul_call_new(consul, op);
  if (!call) return NULL;
  call->wrote = calloc(1, sizeof *call->wrote);
  if (call->wrote) return call;
  consul_no_memory(call);
  return NULL;
}

void consul_put(struct consul *consul, struct kv_op *op) {
  struct consul_call *call = new_write(consul, op);
  if (!call) return;
  struct consul_write *wrote = call->wrote;
  wrote->parts = wrote->own;
  if (op->condition == KV_IF_ABSENT)
    wrote->own[wrote->part_count++] = (struct kv_part){.type = KV_PART_ABSENT, .key = op->key};
  if (op->condition == KV_IF_REVISION)
    wrote->own[wrote->part_count++] = (struct kv_part){.type = KV_PART_CHECK, .key = op->key, .revision = op->revision};
  wrote->own[wrote->part_count++] =
    (struct kv_part){.type = KV_PART_PUT, .key = op->key, .value = op->value, .ttl = op->ttl, .lease = op->lease};
  begin(call);
}

void consul_txn(struct consul *consul, struct kv_op *op) {
  struct consul_call *call = new_write(consul, op);
  if (!call) return;
  call->wrote->parts = op->parts;
  call->wrote->part_count = op->part_count;
  begin(call);
}
