/*
 * call.c - calls: what an operation is on its way to the server and back.
 *
 * A call makes one request or several at once, and goes on in their completions. It may be given up at any time (its
 * operation is finished then); it lives until the last completion came. So each completion begins with zk_answered(),
 * which tells whether anybody still waits.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "zookeeper.h"

#define ROUNDS_MAX 200
#define QUOTA_EXCEEDED (-125) /* ZooKeeper 3.7 and later */

struct zk_call *zk_call_new(struct zk *zk, struct zk_session *session, struct kv_op *op) {
  struct zk_call *call = session ? calloc(1, sizeof *call) : NULL;
  if (!call) {
    if (op) kv_zk->finish(op, KV_FAILED, "out of memory");
    return NULL;
  }
  call->zk = zk;
  call->session = session;
  call->op = op;
  call->own = !op;
  kv_list_init(&call->node);
  session->calls++;
  if (!op) return call;
  op->data = call;
  if (!op->key.size) return call;
  call->path = zk_path_copy(op->key);
  if (call->path) return call;
  zk_finish(call, KV_FAILED, "out of memory");
  return NULL;
}

static void call_free(struct zk_call *call) {
  struct zk_session *session = call->session;
  kv_list_remove(&call->node);
  if (call->clear) call->clear(call);
  free(call->path);
  free(call);
  if (--session->calls == 0 && session->state == ZK_GONE) zk_wake(session);
}

/* Free it once nobody can come back to it. */
static void settle(struct zk_call *call) {
  if (!call->op && !call->own && !call->pending) call_free(call);
}

void zk_call_start(struct zk_call *call, void (*run)(struct zk_call *call)) {
  struct zk_session *session = call->session;
  call->run = run;
  if (session->state == ZK_READY) {
    kv_list_move(&session->running, &call->node);
    zk_link_cork(session, true);
    run(call);
  } else if (session->state == ZK_GONE || session->state == ZK_CLOSING) {
    zk_finish(call, session->role >= ZK_LEASE ? KV_LOST : KV_CLOSED, "the session was ended");
  } else {
    kv_list_move(&session->waiting, &call->node);
    zk_wake(session);
  }
}

void zk_calls_run(struct zk_session *session) {
  struct kv_list batch;
  kv_list_init(&batch);
  while (!kv_list_empty(&session->waiting)) kv_list_move(&batch, session->waiting.next);
  while (!kv_list_empty(&batch)) {
    struct zk_call *call = kv_list_of(struct zk_call, node, batch.next);
    kv_list_remove(&call->node);
    zk_call_start(call, call->run);
  }
}

void zk_calls_fail(struct zk_session *session, kv_code code, const char *problem) {
  struct kv_list batch;
  char text[300];
  snprintf(text, sizeof text, "%s", problem);
  kv_list_init(&batch);
  while (!kv_list_empty(&session->waiting)) kv_list_move(&batch, session->waiting.next);
  while (!kv_list_empty(&session->held)) kv_list_move(&batch, session->held.next);
  while (!kv_list_empty(&batch)) {
    struct zk_call *call = kv_list_of(struct zk_call, node, batch.next);
    kv_list_remove(&call->node);
    zk_finish(call, code, "%s", text);
  }
}

/* ------------------------------------------------------------------ requests and answers */

bool zk_sent(struct zk_call *call, int result) {
  zk_wake(call->session);
  if (result == ZOK) {
    call->pending++;
    return true;
  }
  if (result == ZBADARGUMENTS) zk_finish(call, KV_FAILED, "the ZooKeeper library refused the request");
  else zk_finish(call, KV_UNAVAILABLE, "the request could not be sent: %s", zerror(result));
  return false;
}

struct zk_call *zk_answered(const void *data) {
  struct zk_call *call = (struct zk_call *)(uintptr_t)data;
  call->pending--;
  if (call->op || call->own) return call;
  settle(call);
  return NULL;
}

/* Of the list until its end, so that it is found when the store closes. */
void zk_finish(struct zk_call *call, kv_code code, const char *format, ...) {
  struct kv_op *op = call->op;
  char message[KV_MESSAGE_MAX] = "";
  if (format) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
  }
  call->op = NULL;
  if (call->own && call->failed && code != KV_OK) call->failed(call, code, message);
  call->own = false;
  if (op && format) kv_zk->finish(op, code, "%s", message);
  else if (op) kv_zk->finish(op, code, NULL);
  settle(call);
}

void zk_call_cancel(struct zk_call *call) {
  if (call->session->closer == call) call->session->closer = NULL;
  kv_list_remove(&call->node);
  zk_finish(call, KV_CANCELLED, "cancelled");
}

void zk_writing(struct zk_call *call) {
  call->write_sent = true;
  if (call->op) call->op->sent = true;
}

bool zk_again(struct zk_call *call) {
  if (++call->rounds < ROUNDS_MAX) return true;
  zk_finish(call, KV_UNAVAILABLE, "other clients kept changing the node");
  return false;
}

/* ------------------------------------------------------------------ what errors mean */

kv_code zk_code(int result, bool write_sent) {
  switch (result) {
    case ZOK: return KV_OK;
    case ZCONNECTIONLOSS: case ZOPERATIONTIMEOUT: case ZCLOSING: case ZSESSIONEXPIRED: case ZRUNTIMEINCONSISTENCY:
    case ZINVALIDSTATE: case ZMARSHALLINGERROR: return write_sent ? KV_UNKNOWN : KV_UNAVAILABLE;
    case ZSESSIONMOVED: case ZTHROTTLEDOP: case ZNOTREADONLY: return KV_UNAVAILABLE;
    case ZNOAUTH: case ZAUTHFAILED: case ZSESSIONCLOSEDREQUIRESASLAUTH: return KV_DENIED;
    case ZINVALIDACL: return KV_INVALID;
    case ZUNIMPLEMENTED: case ZNOCHILDRENFOREPHEMERALS: case ZEPHEMERALONLOCALSESSION: return KV_UNSUPPORTED;
    case QUOTA_EXCEEDED: return KV_NO_SPACE;
    default: return KV_FAILED;
  }
}

void zk_fail(struct zk_call *call, int result) {
  kv_code code = zk_code(result, call->write_sent);
  bool lost = code == KV_UNKNOWN || (code == KV_UNAVAILABLE && result != ZTHROTTLEDOP);
  /* What was pipelined behind it may have been applied. */
  if (code == KV_UNAVAILABLE && call->write_sent && call->pending) code = KV_UNKNOWN;
  if (lost && call->session->role >= ZK_LEASE && result == ZSESSIONEXPIRED && code != KV_UNKNOWN) code = KV_LOST;
  if (result == ZNOCHILDRENFOREPHEMERALS)
    zk_finish(call, code, "ZooKeeper keeps no keys below a key that is kept alive or leased (an ephemeral node)");
  else if (result == QUOTA_EXCEEDED)
    zk_finish(call, code, "the server's quota is exceeded");
  else if (result == ZINVALIDACL)
    zk_finish(call, code, "the server refused the access control list of option \"acl\"");
  else
    zk_finish(call, code, "%s", zerror(result));
}

/* ------------------------------------------------------------------ parents */

/*
 * Made without data, so that they are no keys. The server answers in order: when the last answer came, all are there
 * that can be. One that may not be made may be there all the same (rights are looked at first), so the caller tries
 * on; when he comes back because a parent is missing, he is told why.
 */
static void parent_made(int result, const char *path, const void *data) {
  struct zk_call *call = zk_answered(data);
  (void)path;
  if (!call) return;
  if (result != ZOK && result != ZNODEEXISTS && result != ZNONODE && call->parents == ZOK) call->parents = result;
  if (call->pending) return;
  kv_code code = zk_code(call->parents, false);
  if (code == KV_UNAVAILABLE) zk_fail(call, call->parents);
  else call->run(call);
}

void zk_make_parents(struct zk_call *call, void (*run)(struct zk_call *call)) {
  char *path = call->path;
  zhandle_t *handle = call->session->handle;
  if (call->parents != ZOK) {
    zk_fail(call, call->parents);
    return;
  }
  call->run = run;
  for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = '\0';
    bool sent = zk_sent(call, zoo_acreate(handle, path, NULL, -1, &call->zk->acl.vector, 0, parent_made, call));
    if (!sent) return; /* the call may be gone */
    *slash = '/';
  }
  if (!call->pending) run(call);
}
