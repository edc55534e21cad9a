/*
 * test_etcd_secure.c - the etcd driver with users and passwords, and over TLS, on real servers.
 */
#include "etcd_server.h"

#include "recipes/recipes.h"

static bool have_etcd(void) {
  return etcd_url() != NULL;
}

/* ------------------------------------------------------------------ users */

/* Users root and app; app may read and write below /app/ only. */
static bool secure_server(struct server *server) {
  static const char *const commands[] = {
    "user add root:secret", "user grant-role root root", "role add app",
    "role grant-permission app readwrite /app/ /app0", "user add app:p@ss/word", "user grant-role app app",
    "auth enable"};
  if (!server_start(server) || !etcdctl(server, "role add root")) return false;
  for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
    if (!etcdctl(server, commands[i])) return false;
  return true;
}

static kv_store *open_as(const struct server *server, const char *user, const char *rest) {
  char url[300];
  snprintf(url, sizeof url, "etcd://%s127.0.0.1:%d%s", user, server->port, rest);
  return open_url(url, NULL);
}

TEST(users) {
  struct server server = {.extra = {NULL}};
  if (!have_etcd()) return;
  REQUIRE(secure_server(&server));
  kv_store *app = open_as(&server, "app:p%40ss%2Fword@", "/app");
  CHECK_EQ(put(app, "k", "1"), KV_OK);
  CHECK_STR(get(app, "k"), "1");
  CHECK_STR(list(app, "", 0, 0), "k");
  CHECK_EQ(ping(app, 5), KV_OK);
  kv_watch *watch = watch_key(app, "", true);
  CHECK_STR(next_event(watch, 10), "*k=1");
  CHECK_EQ(put(app, "k", "2"), KV_OK);
  CHECK_STR(next_event(watch, 10), "+k=2");

  kv_store *elsewhere = open_as(&server, "app:p%40ss%2Fword@", "/other");
  CHECK_EQ(put(elsewhere, "k", "1"), KV_DENIED);
  CHECK_STR(get(elsewhere, "k"), "denied");
  CHECK_STR(list(elsewhere, "", 0, 0), "denied");
  kv_request create = {.kind = KV_PUT, .key = KV_TEXT("k"), .condition = KV_IF_ABSENT};
  CHECK_EQ(code_of(elsewhere, &create), KV_DENIED);
  CHECK_EQ(code_of(elsewhere, &(kv_request){.kind = KV_DELETE_TREE}), KV_DENIED);
  kv_watch *denied = watch_key(elsewhere, "", true);
  CHECK_STR(next_event(denied, 10), "denied");
  kv_watch_free(denied);
  close_store(elsewhere);

  kv_store *wrong = open_as(&server, "app:wrong@", "/app");
  CHECK_EQ(put(wrong, "k", "1"), KV_DENIED);
  CHECK(strstr(last_message, "wrong") == NULL);
  CHECK_STR(get(wrong, "k"), "denied");
  close_store(wrong);
  kv_store *nobody = open_as(&server, "", "/app");
  CHECK_EQ(put(nobody, "k", "1"), KV_DENIED);
  CHECK_STR(get(nobody, "k"), "denied");
  denied = watch_key(nobody, "", true);
  CHECK_STR(next_event(denied, 10), "denied");
  kv_watch_free(denied);
  close_store(nobody);

  /* Rights that are taken away are no deletes. */
  CHECK(etcdctl(&server, "--user=root:secret role revoke-permission app /app/ /app0"));
  CHECK_EQ(put(app, "k", "3"), KV_DENIED);
  CHECK_STR(next_event(watch, 0.1), "");
  server_kill(&server);
  REQUIRE(server_launch(&server));
  CHECK_STR(next_event(watch, 15), "denied");
  kv_watch_free(watch);
  CHECK(etcdctl(&server, "--user=root:secret role grant-permission app readwrite /app/ /app0"));
  CHECK_STR(get(app, "k"), "2");
  close_store(app);
  server_end(&server);
}

/* Simple tokens live in the server's memory, and the auth store's revision is in them: both ways they go stale under
 * us. */
TEST(tokens_refresh) {
  struct server server = {.extra = {NULL}};
  if (!have_etcd()) return;
  REQUIRE(secure_server(&server));
  kv_store *app = open_as(&server, "app:p%40ss%2Fword@", "/app");
  kv_watch *watch = watch_key(app, "", true);
  WAIT_FOR(10, kv_watch_connected(watch));
  CHECK_EQ(put(app, "k", "1"), KV_OK);
  CHECK_STR(next_event(watch, 10), "+k=1");
  kv_lease *lease = NULL;
  REQUIRE(kv_lease_open(app, queue, 15, 5, 5, NULL, &lease, NULL) == KV_OK);
  CHECK_EQ(code_and_free(reply_tagged(5, 10)), KV_OK);
  CHECK_EQ(code_of(app, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("leased"), .lease = lease}), KV_OK);
  CHECK_STR(next_event(watch, 10), "+leased=");
  /* The auth store moves on: the old token's revision is refused for writes. */
  CHECK(etcdctl(&server, "--user=root:secret user add more:more"));
  enum { MANY = 50 };
  for (int i = 0; i < MANY; i++)
    CHECK(submit(app, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("2")}));
  CHECK_EQ(gather(MANY, KV_OK, 20), MANY);
  for (int i = 0; i < MANY; i++) CHECK_STR(next_event(watch, 10), "+k=2");
  /* A new password: our token is gone, and so is the right to a new one. */
  CHECK(etcdctl(&server, "--user=root:secret user delete more"));
  server_kill(&server);
  REQUIRE(server_launch(&server)); /* all tokens are forgotten */
  CHECK_EQ(put(app, "k", "3"), KV_OK);
  CHECK_STR(next_event(watch, 10), "+k=3");
  int64_t deadline = atomic_load(&lease->deadline);
  WAIT_FOR(20, atomic_load(&lease->deadline) > deadline); /* renewed with the new token */
  CHECK(kv_lease_alive(lease));
  CHECK_STR(get(app, "leased"), "");
  /* Authentication is switched off, and on again. */
  CHECK(etcdctl(&server, "--user=root:secret auth disable"));
  CHECK_EQ(put(app, "k", "4"), KV_OK);
  CHECK_STR(next_event(watch, 10), "+k=4");
  CHECK(etcdctl(&server, "auth enable"));
  CHECK_EQ(put(app, "k", "5"), KV_OK);
  CHECK_STR(next_event(watch, 10), "+k=5");
  kv_watch_free(watch);
  kv_lease_free(lease);
  close_store(app);
  server_end(&server);
}

/* The token dies on the server (its time is over) while streams and calls go on. */
TEST(tokens_expire) {
  struct server server = {.extra = {"--auth-token-ttl", "1"}};
  if (!have_etcd()) return;
  REQUIRE(secure_server(&server));
  kv_store *app = open_as(&server, "app:p%40ss%2Fword@", "/app");
  kv_watch *watch = watch_key(app, "", true);
  WAIT_FOR(10, kv_watch_connected(watch));
  CHECK_EQ(put(app, "k", "1"), KV_OK);
  CHECK_STR(next_event(watch, 10), "+k=1");
  nap(3); /* nothing else will tell */
  CHECK_EQ(put(app, "k", "2"), KV_OK);
  CHECK_STR(next_event(watch, 10), "+k=2");
  nap(3);
  kv_watch *second = watch_key(app, "k", false); /* first a read, with a new token; then a watch on the old stream */
  CHECK_STR(next_event(second, 10), "*k=2");
  WAIT_FOR(10, kv_watch_connected(second));
  CHECK_EQ(put(app, "k", "3"), KV_OK);
  CHECK_STR(next_event(second, 10), "+k=3");
  CHECK_STR(next_event(watch, 10), "+k=3");
  kv_watch_free(second);
  kv_watch_free(watch);
  close_store(app);
  server_end(&server);
}

/* ------------------------------------------------------------------ TLS */

static char folder[64];

static bool openssl(const char *arguments) {
  char command[900], log[100];
  snprintf(command, sizeof command, "openssl %s", arguments);
  snprintf(log, sizeof log, "%s/openssl", folder);
  return run_tool(command, log);
}

static bool make_ca(const char *name) {
  char arguments[500];
  snprintf(arguments, sizeof arguments,
           "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=%s "
           "-keyout %s/%s.key -out %s/%s.pem", name, folder, name, folder, name);
  return openssl(arguments);
}

static bool make_certificate(const char *name, const char *alternative) {
  char arguments[700], file[100];
  snprintf(arguments, sizeof arguments,
           "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=%s -keyout %s/%s.key -out %s/%s.csr", name,
           folder, name, folder, name);
  if (!openssl(arguments)) return false;
  snprintf(file, sizeof file, "%s/%s.ext", folder, name);
  FILE *extension = fopen(file, "w");
  if (!extension) return false;
  fprintf(extension, "subjectAltName=%s\n", alternative);
  fclose(extension);
  snprintf(arguments, sizeof arguments,
           "x509 -req -in %s/%s.csr -CA %s/ca.pem -CAkey %s/ca.key -CAcreateserial -days 2 -out %s/%s.pem -extfile %s",
           folder, name, folder, folder, folder, name, file);
  return openssl(arguments);
}

static const char *path_of(const char *file) {
  static char paths[8][120];
  static int next;
  char *path = paths[next++ % 8];
  snprintf(path, sizeof paths[0], "%s/%s", folder, file);
  return path;
}

static bool tls_server(struct server *server, const char *certificate, bool ask_clients) {
  char pem[40], key[40];
  snprintf(pem, sizeof pem, "%s.pem", certificate);
  snprintf(key, sizeof key, "%s.key", certificate);
  size_t count = 0;
  server->tls = true;
  server->extra[count++] = "--cert-file";
  server->extra[count++] = path_of(pem);
  server->extra[count++] = "--key-file";
  server->extra[count++] = path_of(key);
  if (ask_clients) {
    server->extra[count++] = "--client-cert-auth";
    server->extra[count++] = "--trusted-ca-file";
    server->extra[count++] = path_of("ca.pem");
  }
  server->extra[count] = NULL;
  return server_start(server);
}

static kv_store *open_tls(const struct server *server, const char *host, const char *options) {
  char url[900], rest[600] = "", *to = rest;
  /* "ca=F" stands for tls.ca=FOLDER/F, and so on */
  char copy[300];
  snprintf(copy, sizeof copy, "%s", options);
  for (char *left = copy, *word; (word = strsep(&left, " "));) {
    char *value = strchr(word, '=');
    if (!value) continue;
    *value++ = '\0';
    bool is_file = strcmp(word, "ca") == 0 || strcmp(word, "cert") == 0 || strcmp(word, "key") == 0;
    to += sprintf(to, "%ctls.%s=%s%s%s", to == rest ? '?' : '&', word, is_file ? folder : "", is_file ? "/" : "",
                  value);
  }
  snprintf(url, sizeof url, "etcds://%s:%d/%s", host, server->port, rest);
  return open_url(url, NULL);
}

/* What a put answers. */
static kv_code tls_put_within(double seconds, const struct server *server, const char *host, const char *options) {
  kv_store *store = open_tls(server, host, options);
  if (!store) return KV_CODE_COUNT;
  kv_request request = {.kind = KV_PUT, .key = KV_TEXT("k"), .value = KV_TEXT("v"), .timeout = seconds};
  kv_code code = code_of(store, &request);
  kv_close(store);
  CHECK(kv_close_wait(store, 5));
  kv_store_free(store);
  return code;
}

static kv_code tls_put(const struct server *server, const char *host, const char *options) {
  return tls_put_within(1, server, host, options);
}

TEST(tls) {
  struct server server = {.extra = {NULL}};
  if (!have_etcd()) return;
  REQUIRE(make_folder(folder, sizeof folder));
  REQUIRE(make_ca("ca") && make_ca("other") && make_certificate("server", "DNS:localhost,DNS:etcd.test,IP:127.0.0.1") &&
          make_certificate("client", "DNS:client"));
  REQUIRE(tls_server(&server, "server", false));
  CHECK_EQ(tls_put_within(20, &server, "127.0.0.1", "ca=ca.pem"), KV_OK);
  CHECK_EQ(tls_put_within(20, &server, "localhost", "ca=ca.pem"), KV_OK);
  CHECK_EQ(tls_put_within(20, &server, "127.0.0.1", "ca=ca.pem server_name=etcd.test"), KV_OK);
  CHECK_EQ(tls_put(&server, "127.0.0.1", "ca=other.pem"), KV_UNAVAILABLE);
  CHECK(strstr(last_message, "certificate") != NULL);
  CHECK_EQ(tls_put(&server, "127.0.0.1", ""), KV_UNAVAILABLE); /* the system does not know our authority */
  CHECK(strstr(last_message, "certificate") != NULL);
  CHECK_EQ(tls_put(&server, "127.0.0.1", "ca=ca.pem server_name=else.test"), KV_UNAVAILABLE);
  CHECK(strstr(last_message, "else.test") != NULL);
  CHECK_EQ(tls_put(&server, "127.0.0.2", "ca=ca.pem"), KV_UNAVAILABLE); /* nobody listens there */
  CHECK_EQ(tls_put_within(20, &server, "127.0.0.1", "verify=false"), KV_OK);
  CHECK_EQ(tls_put(&server, "127.0.0.1", "ca=missing.pem"), KV_INVALID);
  CHECK_EQ(tls_put(&server, "127.0.0.1", "ca=server.key"), KV_INVALID);

  /* Large values, pages and watches through it. */
  kv_store *store = open_tls(&server, "localhost", "ca=ca.pem");
  kv_watch *watch = watch_key(store, "large", true);
  WAIT_FOR(10, kv_watch_connected(watch));
  static char value[200000];
  memset(value, 'v', sizeof value);
  for (int i = 0; i < 30; i++) {
    char key[20];
    snprintf(key, sizeof key, "large/%02d", i);
    kv_request request = {.kind = KV_PUT, .key = text(key), .value = {value, sizeof value}, .timeout = 30};
    CHECK(submit(store, &request));
  }
  int events = 0, replies = 0;
  for (double until = now() + 30; (events < 30 || replies < 30) && now() < until;) {
    kv_event event;
    while (kv_watch_next(watch, &event, NULL) == 1) {
      CHECK_EQ(event.value.size, sizeof value);
      events++;
    }
    kv_reply *reply = next_reply(0.1);
    if (reply && kv_reply_kind(reply) == KV_PUT) {
      CHECK_EQ(kv_reply_code(reply), KV_OK);
      replies++;
    }
    kv_reply_free(reply);
  }
  CHECK_EQ(events, 30);
  CHECK_EQ(replies, 30);
  CHECK(strncmp(list(store, "large", 0, 0), "large/00 large/01", 17) == 0);
  kv_watch_free(watch);
  close_store(store);
  /* Without TLS on either side. */
  char url[100];
  snprintf(url, sizeof url, "etcd://127.0.0.1:%d", server.port);
  store = open_url(url, NULL);
  CHECK_EQ(code_of(store, &(kv_request){.kind = KV_PUT, .key = KV_TEXT("k"), .timeout = 1}), KV_UNAVAILABLE);
  close_store(store);
  CHECK_EQ(tls_put(&shared_server, "127.0.0.1", "ca=ca.pem"), KV_UNAVAILABLE);
  server_end(&server);
}

static bool copy_file(const char *from, const char *to) {
  char command[300], log[100];
  snprintf(command, sizeof command, "cp %s/%s %s/%s", folder, from, folder, to);
  snprintf(log, sizeof log, "%s/cp", folder);
  return run_tool(command, log);
}

/* Certificates are replaced while a store is open: the next connection uses the new ones, and keeps the old ones if
 * they are no good. */
TEST(certificates_are_replaced) {
  struct server server = {.extra = {NULL}};
  if (!have_etcd()) return;
  REQUIRE(folder[0] && tls_server(&server, "server", false));
  REQUIRE(copy_file("other.pem", "now.pem"));
  kv_store *store = open_tls(&server, "127.0.0.1", "ca=now.pem");
  kv_request request = {.kind = KV_PUT, .key = KV_TEXT("k"), .timeout = 1};
  CHECK_EQ(code_of(store, &request), KV_UNAVAILABLE);
  REQUIRE(copy_file("ca.pem", "now.pem"));
  request.timeout = 10;
  CHECK_EQ(code_of(store, &request), KV_OK);
  REQUIRE(copy_file("server.key", "now.pem")); /* not a certificate */
  server_kill(&server);
  REQUIRE(server_launch(&server));
  CHECK_EQ(code_of(store, &request), KV_OK);
  close_store(store);
  server_end(&server);
}

TEST(client_certificates) {
  struct server server = {.extra = {NULL}};
  if (!have_etcd()) return;
  REQUIRE(folder[0] && tls_server(&server, "server", true));
  CHECK_EQ(tls_put_within(20, &server, "127.0.0.1", "ca=ca.pem cert=client.pem key=client.key"), KV_OK);
  CHECK_EQ(tls_put(&server, "127.0.0.1", "ca=ca.pem"), KV_UNAVAILABLE);
  CHECK(strstr(last_message, "certificate") != NULL);
  CHECK_EQ(tls_put(&server, "127.0.0.1", "ca=ca.pem cert=other.pem key=other.key"), KV_UNAVAILABLE);
  CHECK_EQ(tls_put(&server, "127.0.0.1", "ca=ca.pem cert=client.pem key=server.key"), KV_INVALID);
  server_end(&server);
  remove_folder(folder);
}

CHECK_MAIN()
