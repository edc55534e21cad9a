/*
 * Tests of csrc/wire/tls.c against OpenSSL's server side in the same process and thread, over a socket pair. Keys and
 * certificates are made on the spot in a temporary folder.
 */
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "check.h"
#include "wire/tls.h"

/* ------------------------------------------------------------------ keys and certificates */

static char folder[] = "/tmp/test_tls.XXXXXX";
static char text[8][80]; /* for path() */

static const char *path(const char *name) {
  static int turn;
  char *into = text[turn++ % 8];
  snprintf(into, sizeof text[0], "%s/%s", folder, name);
  return into;
}

static void write_file(const char *name, const char *content) {
  FILE *file = fopen(path(name), "w");
  if (!file || fputs(content, file) < 0 || fclose(file) != 0) abort();
}

static void write_key(const char *name, EVP_PKEY *key, const char *password) {
  FILE *file = fopen(path(name), "w");
  if (!file || !PEM_write_PrivateKey(file, key, password ? EVP_aes_128_cbc() : NULL, (const unsigned char *)password,
                                     password ? (int)strlen(password) : 0, NULL, NULL))
    abort();
  fclose(file);
}

static void write_cert(const char *name, X509 *cert, EVP_PKEY *key) {
  FILE *file = fopen(path(name), "w");
  if (!file || !PEM_write_X509(file, cert)) abort();
  if (key && !PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL)) abort();
  fclose(file);
}

static EVP_PKEY *new_key(void) {
  EVP_PKEY *key = EVP_EC_gen("P-256");
  if (!key) abort();
  return key;
}

static void extend(X509 *cert, int what, const char *value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, cert, cert, NULL, NULL, 0);
  X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, what, value);
  if (!extension || !X509_add_ext(cert, extension, -1)) abort();
  X509_EXTENSION_free(extension);
}

/* issuer NULL: signed by itself. days: valid until then, from two days ago. */
static X509 *new_cert(const char *name, EVP_PKEY *key, const char *names, X509 *issuer, EVP_PKEY *issuer_key,
                      int days) {
  static long serial = 1;
  X509 *cert = X509_new();
  if (!cert) abort();
  X509_set_version(cert, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(cert), serial++);
  X509_gmtime_adj(X509_getm_notBefore(cert), -2 * 86400L);
  X509_gmtime_adj(X509_getm_notAfter(cert), days * 86400L);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
  X509_set_issuer_name(cert, X509_get_subject_name(issuer ? issuer : cert));
  X509_set_pubkey(cert, key);
  if (!names) extend(cert, NID_basic_constraints, "critical,CA:TRUE");
  else extend(cert, NID_subject_alt_name, names);
  if (!X509_sign(cert, issuer ? issuer_key : key, EVP_sha256())) abort();
  return cert;
}

static struct {
  EVP_PKEY *ca_key, *key, *client_key;
  X509 *ca, *cert, *old, *alone, *client;
} made;

static void remove_files(void) {
  static const char *const names[] = {"ca.pem",     "client.pem", "both.pem",  "client.key", "other.key",
                                      "locked.key", "noise.pem",  "empty.pem", "damaged.pem"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(path(names[i]));
  rmdir(folder);
  EVP_PKEY_free(made.ca_key);
  EVP_PKEY_free(made.key);
  EVP_PKEY_free(made.client_key);
  X509_free(made.ca);
  X509_free(made.cert);
  X509_free(made.old);
  X509_free(made.alone);
  X509_free(made.client);
}

static void make_files(void) {
  if (made.ca) return;
  if (!mkdtemp(folder)) abort();
  atexit(remove_files);
  made.ca_key = new_key();
  made.key = new_key();
  made.client_key = new_key();
  made.ca = new_cert("a CA", made.ca_key, NULL, NULL, NULL, 10);
  made.cert = new_cert("server", made.key, "DNS:etcd.example,DNS:*.many.example,IP:127.0.0.1,IP:::1", made.ca,
                       made.ca_key, 10);
  made.old = new_cert("server", made.key, "DNS:etcd.example", made.ca, made.ca_key, -1);
  made.alone = new_cert("server", made.key, "DNS:etcd.example", NULL, NULL, 10);
  made.client = new_cert("client", made.client_key, "DNS:client.example", made.ca, made.ca_key, 10);
  write_cert("ca.pem", made.ca, NULL);
  write_cert("client.pem", made.client, NULL);
  write_cert("both.pem", made.client, made.client_key);
  write_key("client.key", made.client_key, NULL);
  write_key("other.key", made.key, NULL);
  write_key("locked.key", made.client_key, "open sesame");
  write_file("noise.pem", "This is no certificate.\n");
  write_file("damaged.pem", "-----BEGIN CERTIFICATE-----\nMIIBAAAA\n-----END CERTIFICATE-----\n");
  write_file("empty.pem", "");
}

/* ------------------------------------------------------------------ two ends */

struct ends {
  int client_fd, server_fd;
  SSL_CTX *server_context;
  SSL *server;
  struct tls_context *context;
  struct tls_stream *client;
  char problem[300];
};

static int choose_h2(SSL *ssl, const unsigned char **out, unsigned char *length, const unsigned char *in, unsigned size,
                     void *data) {
  (void)ssl;
  (void)data;
  for (unsigned at = 0; at < size; at += in[at] + 1u)
    if (in[at] == 2 && memcmp(in + at + 1, "h2", 2) == 0) {
      *out = in + at + 1;
      *length = 2;
      return SSL_TLSEXT_ERR_OK;
    }
  return SSL_TLSEXT_ERR_NOACK;
}

enum { ALPN = 1, WANT_CLIENT = 2, OLD_TLS = 4, TLS12 = 8 };

static void ends_open(struct ends *ends, struct tls_options options, const char *name, X509 *cert, unsigned flags) {
  int pair[2];
  make_files();
  memset(ends, 0, sizeof *ends);
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) != 0) abort();
  ends->client_fd = pair[0];
  ends->server_fd = pair[1];
  SSL_CTX *context = ends->server_context = SSL_CTX_new(TLS_server_method());
  SSL_CTX_use_certificate(context, cert);
  SSL_CTX_use_PrivateKey(context, made.key);
  if (flags & ALPN) SSL_CTX_set_alpn_select_cb(context, choose_h2, NULL);
  if (flags & WANT_CLIENT) {
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context), made.ca);
  }
  if (flags & TLS12) SSL_CTX_set_max_proto_version(context, TLS1_2_VERSION);
  if (flags & OLD_TLS) {
    SSL_CTX_set_security_level(context, 0);
    SSL_CTX_set_max_proto_version(context, TLS1_1_VERSION);
  }
  ends->server = SSL_new(context);
  SSL_set_fd(ends->server, ends->server_fd);
  SSL_set_accept_state(ends->server);
  ends->context = tls_context_new(&options, ends->problem, sizeof ends->problem);
  ends->client = ends->context ? tls_stream_new(ends->context, ends->client_fd, name) : NULL;
}

static void ends_close(struct ends *ends) {
  tls_stream_free(ends->client);
  tls_context_free(ends->context);
  SSL_free(ends->server);
  SSL_CTX_free(ends->server_context);
  close(ends->client_fd);
  if (ends->server_fd >= 0) close(ends->server_fd);
  ERR_clear_error();
}

/* Both go on until the client is done or broken, and the server has said what it has to. */
static int handshake(struct ends *ends) {
  int result = TLS_AGAIN_READ;
  for (int i = 0; i < 100; i++) {
    if (result == TLS_AGAIN_READ || result == TLS_AGAIN_WRITE) result = tls_handshake(ends->client);
    ERR_clear_error();
    SSL_do_handshake(ends->server);
  }
  ERR_clear_error();
  return result;
}

static struct tls_options with_ca(void) {
  make_files();
  return (struct tls_options){.ca = path("ca.pem"), .verify = true, .alpn = "h2"};
}

/* ------------------------------------------------------------------ trust */

static void connects(struct tls_options options, const char *name, X509 *cert, unsigned flags) {
  struct ends ends;
  ends_open(&ends, options, name, cert, flags);
  CHECK_STR(ends.problem, "");
  CHECK(ends.client != NULL);
  if (ends.client) {
    CHECK_EQ(handshake(&ends), 0);
    CHECK_STR(tls_problem(ends.client), "");
    CHECK_EQ(tls_handshake(ends.client), 0);
    char byte = 0;
    CHECK_EQ(SSL_write(ends.server, "x", 1), 1);
    CHECK_EQ(tls_read(ends.client, &byte, 1), 1);
    CHECK_EQ(byte, 'x');
  }
  ends_close(&ends);
}

static void fails(struct tls_options options, const char *name, X509 *cert, unsigned flags, const char *problem) {
  struct ends ends;
  ends_open(&ends, options, name, cert, flags);
  CHECK(ends.client != NULL);
  if (ends.client) {
    char byte;
    CHECK_EQ(handshake(&ends), TLS_BROKEN);
    CHECK_STR(tls_problem(ends.client), problem);
    CHECK_EQ(tls_handshake(ends.client), TLS_BROKEN); /* it stays so */
    CHECK_EQ(tls_read(ends.client, &byte, 1), TLS_BROKEN);
    CHECK_EQ(tls_write(ends.client, "x", 1), TLS_BROKEN);
    CHECK_STR(tls_problem(ends.client), problem);
  }
  ends_close(&ends);
}

TEST(names_and_addresses) {
  make_files();
  connects(with_ca(), "etcd.example", made.cert, ALPN);
  connects(with_ca(), "etcd.example", made.cert, ALPN | TLS12);
  connects(with_ca(), "etcd.example.", made.cert, ALPN);
  connects(with_ca(), "ETCD.example", made.cert, ALPN);
  connects(with_ca(), "one.many.example", made.cert, ALPN);
  connects(with_ca(), "127.0.0.1", made.cert, ALPN);
  connects(with_ca(), "::1", made.cert, ALPN);
  connects(with_ca(), "[::1]", made.cert, ALPN);
  fails(with_ca(), "other.example", made.cert, ALPN, "certificate verify failed: it is not for 'other.example'");
  fails(with_ca(), "127.0.0.2", made.cert, ALPN, "certificate verify failed: it is not for '127.0.0.2'");
  fails(with_ca(), "::2", made.cert, ALPN, "certificate verify failed: it is not for '::2'");
  fails(with_ca(), "a.b.many.example", made.cert, ALPN, "certificate verify failed: it is not for 'a.b.many.example'");
}

TEST(names_that_are_none) {
  struct ends ends;
  char longest[600];
  memset(longest, 'a', sizeof longest - 1);
  longest[sizeof longest - 1] = '\0';
  ends_open(&ends, with_ca(), "", made.cert, ALPN);
  CHECK(ends.context != NULL);
  CHECK(ends.client == NULL);
  CHECK(tls_stream_new(ends.context, ends.client_fd, longest) == NULL);
  ends_close(&ends);
}

TEST(certificates_that_cannot_be_trusted) {
  make_files();
  fails(with_ca(), "etcd.example", made.alone, ALPN, "certificate verify failed: self-signed certificate");
  fails(with_ca(), "etcd.example", made.old, ALPN, "certificate verify failed: certificate has expired");
  struct tls_options system = {.verify = true, .alpn = "h2"};
  fails(system, "etcd.example", made.cert, ALPN, "certificate verify failed: unable to get local issuer certificate");
}

TEST(verification_can_be_switched_off) {
  struct tls_options options = {.verify = false, .alpn = "h2"};
  make_files();
  connects(options, "etcd.example", made.alone, ALPN);
  connects(options, "other.example", made.old, ALPN);
  connects(options, "10.0.0.1", made.cert, ALPN);
}

TEST(alpn) {
  struct tls_options without = with_ca();
  fails(with_ca(), "etcd.example", made.cert, 0, "the server does not offer 'h2' over TLS (ALPN)");
  without.alpn = NULL;
  connects(without, "etcd.example", made.cert, 0);
  connects(without, "etcd.example", made.cert, ALPN);
}

TEST(client_certificates) {
  struct tls_options options = with_ca();
  options.cert = path("client.pem");
  options.key = path("client.key");
  connects(options, "etcd.example", made.cert, ALPN | WANT_CLIENT);
  connects(options, "etcd.example", made.cert, ALPN | WANT_CLIENT | TLS12);
  connects(options, "etcd.example", made.cert, ALPN);
  options.cert = path("both.pem");
  options.key = NULL;
  connects(options, "etcd.example", made.cert, ALPN | WANT_CLIENT);
}

TEST(missing_client_certificate_is_told) {
  struct ends ends;
  ends_open(&ends, with_ca(), "etcd.example", made.cert, ALPN | WANT_CLIENT);
  REQUIRE(ends.client != NULL);
  CHECK_EQ(handshake(&ends), 0); /* TLS 1.3: the client is done before the server looks */
  char byte;
  CHECK_EQ(tls_read(ends.client, &byte, 1), TLS_BROKEN);
  CHECK(strstr(tls_problem(ends.client), "certificate required") != NULL);
  ends_close(&ends);
  fails(with_ca(), "etcd.example", made.cert, ALPN | WANT_CLIENT | TLS12, "TLS: sslv3 alert handshake failure");
}

TEST(old_versions_are_refused) {
  struct ends ends;
  ends_open(&ends, with_ca(), "etcd.example", made.cert, ALPN | OLD_TLS);
  REQUIRE(ends.client != NULL);
  CHECK_EQ(handshake(&ends), TLS_BROKEN);
  CHECK(tls_problem(ends.client)[0] != '\0');
  ends_close(&ends);
}

/* ------------------------------------------------------------------ files */

static void bad_files(const char *ca, const char *cert, const char *key, const char *format, const char *one,
                      const char *two) {
  char problem[300], wanted[300];
  struct tls_options options = {.ca = ca, .cert = cert, .key = key, .verify = true, .alpn = "h2"};
  CHECK(tls_context_new(&options, problem, sizeof problem) == NULL);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  snprintf(wanted, sizeof wanted, format, one, two);
#pragma GCC diagnostic pop
  CHECK_STR(problem, wanted);
  CHECK(strchr(problem, '\n') == NULL);
  CHECK_EQ(ERR_peek_error(), 0);
}

TEST(files_that_do_not_fit) {
  make_files();
  const char *none = path("none.pem"), *noise = path("noise.pem"), *empty = path("empty.pem");
  const char *cert = path("client.pem"), *other = path("other.key"), *locked = path("locked.key");
  bad_files(none, NULL, NULL, "cannot read the CA certificates in '%s': No such file or directory", none, "");
  bad_files(noise, NULL, NULL, "cannot read the CA certificates in '%s': no PEM data of that kind in it", noise, "");
  bad_files(empty, NULL, NULL, "cannot read the CA certificates in '%s': no PEM data of that kind in it", empty, "");
  bad_files(NULL, none, NULL, "cannot read the certificate in '%s': No such file or directory", none, "");
  bad_files(NULL, noise, NULL, "cannot read the certificate in '%s': no PEM data of that kind in it", noise, "");
  bad_files(NULL, cert, none, "cannot read the key in '%s': No such file or directory", none, "");
  bad_files(NULL, cert, noise, "cannot read the key in '%s': no PEM data of that kind in it", noise, "");
  bad_files(NULL, cert, NULL, "cannot read the key in '%s': no PEM data of that kind in it", cert, "");
  bad_files(NULL, cert, other, "the key in '%s' does not fit the certificate in '%s'", other, cert);
  bad_files(NULL, NULL, other, "the key '%s' is of no use without a certificate", other, "");
  bad_files(NULL, cert, locked, "cannot read the key in '%s': it is protected by a password", locked, "");
  bad_files(path("damaged.pem"), NULL, NULL, "cannot read the CA certificates in '%s': its PEM data is damaged",
            path("damaged.pem"), "");
  bad_files(NULL, folder, NULL, "cannot read the certificate in '%s': Is a directory", folder, "");
}

/* ------------------------------------------------------------------ servers that are none */

TEST(server_that_does_not_speak_tls) {
  struct ends ends;
  ends_open(&ends, with_ca(), "etcd.example", made.cert, ALPN);
  REQUIRE(ends.client != NULL);
  CHECK_EQ(tls_handshake(ends.client), TLS_AGAIN_READ);
  CHECK_EQ(write(ends.server_fd, "HTTP/1.1 400 Bad Request\r\n\r\n", 28), 28);
  CHECK_EQ(tls_handshake(ends.client), TLS_BROKEN);
  CHECK_STR(tls_problem(ends.client), "the server does not speak TLS on this port (or none of a version from 1.2 on)");
  ends_close(&ends);
}

TEST(server_that_hangs_up) {
  struct ends ends;
  ends_open(&ends, with_ca(), "etcd.example", made.cert, ALPN);
  REQUIRE(ends.client != NULL);
  CHECK_EQ(tls_handshake(ends.client), TLS_AGAIN_READ);
  shutdown(ends.server_fd, SHUT_WR);
  CHECK_EQ(tls_handshake(ends.client), TLS_BROKEN);
  CHECK_STR(tls_problem(ends.client), "the server closed the connection during the TLS handshake");
  ends_close(&ends);
}

TEST(ends_with_and_without_goodbye) {
  for (int polite = 0; polite < 2; polite++) {
    struct ends ends;
    char data[20];
    ends_open(&ends, with_ca(), "etcd.example", made.cert, ALPN);
    REQUIRE(ends.client != NULL);
    CHECK_EQ(handshake(&ends), 0);
    CHECK_EQ(tls_read(ends.client, data, sizeof data), TLS_AGAIN_READ);
    CHECK_EQ(SSL_write(ends.server, "last", 4), 4);
    if (polite) SSL_shutdown(ends.server);
    shutdown(ends.server_fd, SHUT_WR);
    CHECK_EQ(tls_read(ends.client, data, sizeof data), 4);
    CHECK_EQ(tls_read(ends.client, data, sizeof data), polite ? TLS_EOF : TLS_BROKEN);
    CHECK_EQ(tls_read(ends.client, data, sizeof data), polite ? TLS_EOF : TLS_BROKEN);
    CHECK_STR(tls_problem(ends.client), polite ? "" : "the server closed the connection without closing TLS");
    ends_close(&ends);
  }
}

TEST(writing_to_a_dead_socket_raises_no_signal) {
  struct ends ends;
  signal(SIGPIPE, SIG_DFL);
  ends_open(&ends, with_ca(), "etcd.example", made.cert, ALPN);
  REQUIRE(ends.client != NULL);
  CHECK_EQ(handshake(&ends), 0);
  close(ends.server_fd);
  ends.server_fd = -1;
  CHECK_EQ(tls_write(ends.client, "hello", 5), TLS_BROKEN);
  CHECK_STR(tls_problem(ends.client), "Broken pipe");
  ends_close(&ends);
  ends_open(&ends, with_ca(), "etcd.example", made.cert, ALPN); /* and closing politely */
  REQUIRE(ends.client != NULL);
  CHECK_EQ(handshake(&ends), 0);
  close(ends.server_fd);
  ends.server_fd = -1;
  ends_close(&ends);
}

TEST(client_says_goodbye) {
  struct ends ends;
  char byte;
  ends_open(&ends, with_ca(), "etcd.example", made.cert, ALPN);
  REQUIRE(ends.client != NULL);
  CHECK_EQ(handshake(&ends), 0);
  tls_stream_free(ends.client);
  ends.client = NULL;
  CHECK_EQ(SSL_get_error(ends.server, SSL_read(ends.server, &byte, 1)), SSL_ERROR_ZERO_RETURN);
  ends_close(&ends);
}

/* ------------------------------------------------------------------ much data */

#define MUCH ((size_t)3 << 20)

static uint8_t at(size_t position) { return (uint8_t)(position * 31 + position / 257); }

TEST(much_data_both_ways) {
  struct ends ends;
  static uint8_t buffer[50000], other[50000];
  size_t sent = 0, taken = 0, back = 0, got = 0;
  bool right = true, waited = false;
  ends_open(&ends, with_ca(), "etcd.example", made.cert, ALPN);
  REQUIRE(ends.client != NULL);
  SSL_set_mode(ends.server, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  CHECK_EQ(handshake(&ends), 0);
  while (sent < MUCH || taken < MUCH || back < MUCH || got < MUCH) {
    ptrdiff_t result = 1;
    for (int turn = 0; result > 0 && sent < MUCH; turn++) {
      uint8_t *from = turn % 2 ? buffer : other; /* the buffer moves between tries */
      size_t size = MUCH - sent < sizeof buffer ? MUCH - sent : sizeof buffer;
      for (size_t i = 0; i < size; i++) from[i] = at(sent + i);
      result = tls_write(ends.client, from, size);
      if (result > 0) sent += (size_t)result;
      else CHECK_EQ(result, TLS_AGAIN_WRITE), waited = true;
    }
    int size;
    while ((size = SSL_read(ends.server, buffer, 7000)) > 0) {
      for (int i = 0; i < size; i++) right = right && buffer[i] == at(taken + (size_t)i);
      taken += (size_t)size;
    }
    size = 1;
    while (size > 0 && back < MUCH) {
      size_t piece = MUCH - back < 30000 ? MUCH - back : 30000;
      for (size_t i = 0; i < piece; i++) buffer[i] = at(back + i);
      size = SSL_write(ends.server, buffer, (int)piece);
      if (size > 0) back += (size_t)size;
    }
    while ((result = tls_read(ends.client, other, sizeof other)) > 0) {
      for (ptrdiff_t i = 0; i < result; i++) right = right && other[i] == at(got + (size_t)i);
      got += (size_t)result;
    }
    CHECK_EQ(result, TLS_AGAIN_READ);
    if (result != TLS_AGAIN_READ) break;
    ERR_clear_error();
  }
  CHECK(right);
  CHECK(waited);
  CHECK_EQ(taken, MUCH);
  CHECK_EQ(got, MUCH);
  CHECK_EQ(tls_write(ends.client, "", 0), 0);
  ends_close(&ends);
}

/* A read takes all records that are there: the rest would wait where poll() does not see it. */
TEST(one_read_takes_many_records) {
  struct ends ends;
  char data[200];
  ends_open(&ends, with_ca(), "etcd.example", made.cert, ALPN);
  REQUIRE(ends.client != NULL);
  CHECK_EQ(handshake(&ends), 0);
  for (int i = 0; i < 50; i++) CHECK_EQ(SSL_write(ends.server, "abc", 3), 3);
  CHECK_EQ(tls_read(ends.client, data, sizeof data), 150);
  CHECK_EQ(tls_read(ends.client, data, sizeof data), TLS_AGAIN_READ);
  ends_close(&ends);
}

TEST(free_of_nothing) {
  tls_stream_free(NULL);
  tls_context_free(NULL);
}

CHECK_MAIN()
