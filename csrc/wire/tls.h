/*
 * tls.h - TLS for a connected, non-blocking socket, by OpenSSL. A thin layer with the shape of read() and write().
 */
#ifndef KV_TLS_H
#define KV_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tls_context;
struct tls_stream;

struct tls_options {
  const char *ca, *cert, *key;  /* PEM files or NULL; without `ca` the system's store, without `key` it is in `cert` */
  bool verify;                  /* certificate chain and name */
  const char *alpn;             /* "h2", or NULL */
};

/* NULL with the reason in `problem` (files that cannot be read, key that does not fit...). */
struct tls_context *tls_context_new(const struct tls_options *options, char *problem, size_t problem_size);
void tls_context_free(struct tls_context *context);

/* name: for SNI and the certificate check (host name or IP address). Does not own fd. NULL: out of memory, or the name
 * can be none. The stream must be freed before its context. */
struct tls_stream *tls_stream_new(struct tls_context *context, int fd, const char *name);
void tls_stream_free(struct tls_stream *stream); /* sends close_notify if it can without blocking */

enum { TLS_AGAIN_READ = -1, TLS_AGAIN_WRITE = -2, TLS_BROKEN = -3, TLS_EOF = -4 };

/* 0 when done and ALPN agreed, else one of the above. */
int tls_handshake(struct tls_stream *stream);
/*
 * Bytes moved (> 0), or one of the above. Read until the buffer is not filled: bytes may wait inside, where poll() does
 * not see them. A write that answered TLS_AGAIN_* must come again with the same bytes in front (the buffer may have
 * moved, and more may follow). Either may want the other direction (TLS_AGAIN_READ from a write). No SIGPIPE.
 */
ptrdiff_t tls_read(struct tls_stream *stream, void *data, size_t size);
ptrdiff_t tls_write(struct tls_stream *stream, const void *data, size_t size);
/* Why TLS_BROKEN, for people ("certificate verify failed: self-signed certificate"). */
const char *tls_problem(const struct tls_stream *stream);

#endif
