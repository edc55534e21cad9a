/*
 * tls.c - TLS for a connected, non-blocking socket, by OpenSSL 3.
 *
 * OpenSSL's own socket BIO writes with write(), which raises SIGPIPE when the peer is gone. A library must not depend
 * on what its host does with signals, so the bytes go through a BIO of ours that uses send() with MSG_NOSIGNAL.
 *
 * OpenSSL reports through a queue of errors per thread: it is emptied before each operation, or an old entry would
 * be taken for the reason of a new failure. Reasons are put into one line for people.
 */
#include "tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define PROBLEM_MAX 300
#define NAME_MAX_BYTES 256

struct tls_context {
  SSL_CTX *ssl;
  BIO_METHOD *method;
  bool verify;
  char alpn[32]; /* "" or the name */
};

struct tls_stream {
  SSL *ssl;
  int fd;
  bool verify;
  bool eof;    /* recv() said so */
  bool broken; /* sticky */
  bool ready;  /* handshake done */
  int error;   /* errno of the last send() or recv() that failed */
  char alpn[32];
  char name[NAME_MAX_BYTES];
  char problem[PROBLEM_MAX];
};

/* ------------------------------------------------------------------ bytes: a BIO over send() and recv() */

static int bio_write(BIO *bio, const char *data, int size) {
  struct tls_stream *stream = BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  if (size <= 0) return 0;
  ssize_t sent;
  do sent = send(stream->fd, data, (size_t)size, MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent >= 0) return (int)sent;
  if (errno == EAGAIN || errno == EWOULDBLOCK) BIO_set_retry_write(bio);
  else stream->error = errno;
  return -1;
}

static int bio_read(BIO *bio, char *data, int size) {
  struct tls_stream *stream = BIO_get_data(bio);
  BIO_clear_retry_flags(bio);
  if (size <= 0) return 0;
  ssize_t got;
  do got = recv(stream->fd, data, (size_t)size, 0);
  while (got < 0 && errno == EINTR);
  if (got > 0) return (int)got;
  if (got == 0) {
    stream->eof = true;
    return 0;
  }
  if (errno == EAGAIN || errno == EWOULDBLOCK) BIO_set_retry_read(bio);
  else stream->error = errno;
  return -1;
}

static long bio_control(BIO *bio, int command, long number, void *pointer) {
  (void)number;
  (void)pointer;
  struct tls_stream *stream = BIO_get_data(bio);
  if (command == BIO_CTRL_FLUSH || command == BIO_CTRL_DUP) return 1;
  if (command == BIO_CTRL_EOF) return stream->eof;
  return 0;
}

static BIO_METHOD *bio_method(void) {
  BIO_METHOD *method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "kv socket");
  if (method && BIO_meth_set_write(method, bio_write) && BIO_meth_set_read(method, bio_read) &&
      BIO_meth_set_ctrl(method, bio_control))
    return method;
  BIO_meth_free(method);
  return NULL;
}

/* ------------------------------------------------------------------ reasons */

/* The reason of the last failure in OpenSSL's words, which fit one line. */
static const char *ssl_reason(char *buffer, size_t size) {
  unsigned long code = ERR_peek_last_error();
  if (ERR_SYSTEM_ERROR(code)) return strerror_r(ERR_GET_REASON(code), buffer, size);
  const char *reason = code ? ERR_reason_error_string(code) : NULL;
  return reason ? reason : "unknown error";
}

/* Can it be read at all? 0 or errno: OpenSSL's own words for that differ from call to call, or are missing. */
static int unreadable(const char *file) {
  FILE *opened = fopen(file, "re");
  if (!opened) return errno;
  errno = 0;
  int result = getc(opened) == EOF && ferror(opened) ? errno : 0;
  fclose(opened);
  return result;
}

/* Why a file could not be used. */
static const char *file_reason(const char *file, char *buffer, size_t size) {
  int number = unreadable(file);
  if (number) return strerror_r(number, buffer, size);
  bool locked = false, damaged = false;
  for (unsigned long code; (code = ERR_get_error());) {
    locked = locked || (ERR_GET_LIB(code) == ERR_LIB_PEM && ERR_GET_REASON(code) == PEM_R_BAD_PASSWORD_READ);
    damaged = damaged || ERR_GET_LIB(code) == ERR_LIB_ASN1;
  }
  return locked    ? "it is protected by a password"
         : damaged ? "its PEM data is damaged"
                   : "no PEM data of that kind in it";
}

static int broken(struct tls_stream *stream, const char *format, const char *detail) {
  stream->broken = true;
  snprintf(stream->problem, sizeof stream->problem, format, detail);
  return TLS_BROKEN;
}

/* Why a certificate was refused. */
static int refused(struct tls_stream *stream, long result) {
  char detail[PROBLEM_MAX - 40];
  if (result == X509_V_ERR_HOSTNAME_MISMATCH || result == X509_V_ERR_IP_ADDRESS_MISMATCH)
    snprintf(detail, sizeof detail, "it is not for '%.200s'", stream->name);
  else
    snprintf(detail, sizeof detail, "%s", X509_verify_cert_error_string(result));
  return broken(stream, "certificate verify failed: %s", detail);
}

/* Turn the result of an SSL_*() call that did not succeed into one of ours. */
static int outcome(struct tls_stream *stream, int result) {
  char buffer[160];
  switch (SSL_get_error(stream->ssl, result)) {
    case SSL_ERROR_WANT_READ: return TLS_AGAIN_READ;
    case SSL_ERROR_WANT_WRITE: return TLS_AGAIN_WRITE;
    case SSL_ERROR_ZERO_RETURN: return TLS_EOF;
    default: break;
  }
  long verified = SSL_get_verify_result(stream->ssl);
  if (!stream->ready && stream->verify && verified != X509_V_OK) return refused(stream, verified);
  if (stream->error) return broken(stream, "%s", strerror_r(stream->error, buffer, sizeof buffer));
  if (stream->eof)
    return broken(stream, "%s", stream->ready ? "the server closed the connection without closing TLS"
                                              : "the server closed the connection during the TLS handshake");
  if (ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_WRONG_VERSION_NUMBER)
    return broken(stream, "%s", "the server does not speak TLS on this port (or none of a version from 1.2 on)");
  return broken(stream, "TLS: %s", ssl_reason(buffer, sizeof buffer));
}

/* ------------------------------------------------------------------ the context: files and rules */

static pthread_once_t once = PTHREAD_ONCE_INIT;

/* The reactor thread may still run when exit() comes: OpenSSL must not take itself apart under it. */
static void initialize(void) { OPENSSL_init_ssl(OPENSSL_INIT_NO_ATEXIT, NULL); }

/* Instead of OpenSSL's question on the terminal. */
static int no_password(char *buffer, int size, int writing, void *data) {
  (void)buffer;
  (void)size;
  (void)writing;
  (void)data;
  return -1;
}

static bool load_files(SSL_CTX *ssl, const struct tls_options *options, char *problem, size_t size) {
  char buffer[160];
  ERR_clear_error();
  if (options->ca) {
    if (SSL_CTX_load_verify_file(ssl, options->ca) != 1) {
      snprintf(problem, size, "cannot read the CA certificates in '%s': %s", options->ca,
               file_reason(options->ca, buffer, sizeof buffer));
      return false;
    }
  } else if (options->verify && SSL_CTX_set_default_verify_paths(ssl) != 1) {
    snprintf(problem, size, "cannot read the system's CA certificates: %s", ssl_reason(buffer, sizeof buffer));
    return false;
  }
  if (!options->cert) {
    if (options->key) snprintf(problem, size, "the key '%s' is of no use without a certificate", options->key);
    return !options->key;
  }
  if (SSL_CTX_use_certificate_chain_file(ssl, options->cert) != 1) {
    snprintf(problem, size, "cannot read the certificate in '%s': %s", options->cert,
             file_reason(options->cert, buffer, sizeof buffer));
    return false;
  }
  const char *key = options->key ? options->key : options->cert; /* both in one file is usual */
  ERR_clear_error();
  if (SSL_CTX_use_PrivateKey_file(ssl, key, SSL_FILETYPE_PEM) != 1) {
    bool mismatch = ERR_GET_REASON(ERR_peek_last_error()) == X509_R_KEY_VALUES_MISMATCH ||
                    ERR_GET_REASON(ERR_peek_last_error()) == X509_R_KEY_TYPE_MISMATCH;
    if (mismatch) snprintf(problem, size, "the key in '%s' does not fit the certificate in '%s'", key, options->cert);
    else snprintf(problem, size, "cannot read the key in '%s': %s", key, file_reason(key, buffer, sizeof buffer));
    return false;
  }
  if (SSL_CTX_check_private_key(ssl) != 1) {
    snprintf(problem, size, "the key in '%s' does not fit the certificate in '%s'", key, options->cert);
    return false;
  }
  return true;
}

static bool set_rules(struct tls_context *context, const struct tls_options *options) {
  SSL_CTX *ssl = context->ssl;
  SSL_CTX_set_options(ssl, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_clear_mode(ssl, SSL_MODE_AUTO_RETRY);
  SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_read_ahead(ssl, 1); /* one recv() for many records */
  SSL_CTX_set_default_read_buffer_len(ssl, 65536);
  SSL_CTX_set_default_passwd_cb(ssl, no_password);
  SSL_CTX_set_verify(ssl, options->verify ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, NULL);
  if (SSL_CTX_set_min_proto_version(ssl, TLS1_2_VERSION) != 1) return false;
  if (!context->alpn[0]) return true;
  unsigned char list[sizeof context->alpn + 1];
  size_t length = strlen(context->alpn);
  list[0] = (unsigned char)length;
  memcpy(list + 1, context->alpn, length);
  return SSL_CTX_set_alpn_protos(ssl, list, (unsigned)length + 1) == 0;
}

struct tls_context *tls_context_new(const struct tls_options *options, char *problem, size_t problem_size) {
  pthread_once(&once, initialize);
  ERR_clear_error();
  snprintf(problem, problem_size, "out of memory for TLS");
  struct tls_context *context = calloc(1, sizeof *context);
  if (!context) return NULL;
  context->verify = options->verify;
  context->method = bio_method();
  context->ssl = SSL_CTX_new(TLS_client_method());
  if (options->alpn) snprintf(context->alpn, sizeof context->alpn, "%s", options->alpn);
  if (!context->method || !context->ssl || !set_rules(context, options) ||
      !load_files(context->ssl, options, problem, problem_size)) {
    tls_context_free(context);
    ERR_clear_error();
    return NULL;
  }
  problem[0] = '\0';
  return context;
}

void tls_context_free(struct tls_context *context) {
  if (!context) return;
  SSL_CTX_free(context->ssl);
  BIO_meth_free(context->method);
  free(context);
}

/* ------------------------------------------------------------------ streams */

static bool is_address(const char *name) {
  unsigned char buffer[16];
  return inet_pton(AF_INET, name, buffer) == 1 || inet_pton(AF_INET6, name, buffer) == 1;
}

/* The name as certificates have it: without the brackets of [::1], without the dot at the end. */
static bool plain_name(char *into, size_t size, const char *name) {
  size_t length = strlen(name);
  if (length >= 2 && name[0] == '[' && name[length - 1] == ']') {
    name++;
    length -= 2;
  }
  if (length > 1 && name[length - 1] == '.') length--;
  if (length == 0 || length >= size) return false;
  memcpy(into, name, length);
  into[length] = '\0';
  return true;
}

static bool expect_name(SSL *ssl, const char *name, bool verify) {
  X509_VERIFY_PARAM *rules = SSL_get0_param(ssl);
  if (is_address(name)) return !verify || X509_VERIFY_PARAM_set1_ip_asc(rules, name) == 1;
  if (SSL_set_tlsext_host_name(ssl, name) != 1) return false;
  X509_VERIFY_PARAM_set_hostflags(rules, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  return !verify || X509_VERIFY_PARAM_set1_host(rules, name, 0) == 1;
}

struct tls_stream *tls_stream_new(struct tls_context *context, int fd, const char *name) {
  struct tls_stream *stream = calloc(1, sizeof *stream);
  if (!stream) return NULL;
  ERR_clear_error();
  stream->fd = fd;
  stream->verify = context->verify;
  memcpy(stream->alpn, context->alpn, sizeof stream->alpn);
  stream->ssl = SSL_new(context->ssl);
  BIO *bio = stream->ssl ? BIO_new(context->method) : NULL;
  if (!bio || !plain_name(stream->name, sizeof stream->name, name) ||
      !expect_name(stream->ssl, stream->name, context->verify)) {
    BIO_free(bio);
    SSL_free(stream->ssl);
    free(stream);
    ERR_clear_error();
    return NULL;
  }
  BIO_set_data(bio, stream);
  BIO_set_init(bio, 1);
  SSL_set_bio(stream->ssl, bio, bio); /* owns the BIO from here */
  SSL_set_connect_state(stream->ssl);
  return stream;
}

void tls_stream_free(struct tls_stream *stream) {
  if (!stream) return;
  ERR_clear_error();
  if (stream->ready && !stream->broken) SSL_shutdown(stream->ssl);
  SSL_free(stream->ssl);
  ERR_clear_error();
  free(stream);
}

int tls_handshake(struct tls_stream *stream) {
  if (stream->broken) return TLS_BROKEN;
  if (stream->ready) return 0;
  ERR_clear_error();
  int result = SSL_do_handshake(stream->ssl);
  if (result != 1) {
    int how = outcome(stream, result);
    return how == TLS_EOF ? broken(stream, "%s", "the server closed the connection during the TLS handshake") : how;
  }
  if (stream->alpn[0]) {
    const unsigned char *chosen = NULL;
    unsigned length = 0;
    SSL_get0_alpn_selected(stream->ssl, &chosen, &length);
    if (length != strlen(stream->alpn) || memcmp(chosen, stream->alpn, length) != 0)
      return broken(stream, "the server does not offer '%s' over TLS (ALPN)", stream->alpn);
  }
  stream->ready = true;
  return 0;
}

ptrdiff_t tls_read(struct tls_stream *stream, void *data, size_t size) {
  size_t total = 0;
  if (stream->broken) return TLS_BROKEN;
  while (total < size) {
    size_t got = 0;
    ERR_clear_error();
    int result = SSL_read_ex(stream->ssl, (char *)data + total, size - total, &got);
    if (result != 1) {
      int how = outcome(stream, result);
      return total > 0 ? (ptrdiff_t)total : how; /* a failure comes again with the next call */
    }
    total += got;
  }
  return (ptrdiff_t)total;
}

ptrdiff_t tls_write(struct tls_stream *stream, const void *data, size_t size) {
  size_t sent = 0;
  if (stream->broken) return TLS_BROKEN;
  if (size == 0) return 0;
  ERR_clear_error();
  int result = SSL_write_ex(stream->ssl, data, size, &sent);
  return result == 1 ? (ptrdiff_t)sent : outcome(stream, result);
}

const char *tls_problem(const struct tls_stream *stream) { return stream->problem; }
