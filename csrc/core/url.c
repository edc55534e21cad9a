/*
 * url.c - what a URL says, and the config that comes of it.
 *
 *     scheme://[user[:password]@]host[:port][,host[:port]...][/prefix][?option=value&...]
 *     local:PATH[?option=value&...]
 *
 * The text alone tells the two shapes apart: hosts follow "://", a path follows ":" (and "local:///PATH" is a path
 * too, its host part being empty). Whether a scheme wants hosts or a path is known by its driver, and checked when
 * the config is made.
 *
 * No message shows a password, or what could be a piece of one: people forget to percent-encode '/', '?' and '@', and
 * then a password's rest lands in what looks like port, prefix or option. So ports are never shown, and an '@' in the
 * prefix is refused where a password could stand before it.
 */
#include "options.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define URL_MAX 8192
#define HOSTS_MAX 64
#define HOST_MAX 255
#define SCHEME_MAX 32

static kv_code no_memory(kv_error *error) {
  return kv_fail(error, KV_FAILED, "out of memory");
}

static kv_code bad(kv_error *error, const char *reason) {
  return kv_fail(error, KV_INVALID, "invalid URL: %s", reason);
}

/* What options.c said about a part of the URL, said of the URL. */
static kv_code bad_option(kv_error *error, kv_code code, const kv_error *cause) {
  if (code != KV_INVALID) return kv_fail(error, code, "%s", cause->message);
  return kv_fail(error, code, "invalid URL: %s", cause->message);
}

/* ------------------------------------------------------------------ slices */

/* Cut `text` at the first `mark`: what is behind it goes to *rest (data NULL when there is no mark). */
static kv_slice cut(kv_slice text, char mark, kv_slice *rest) {
  const char *at = text.size ? memchr(text.data, mark, text.size) : NULL;
  *rest = (kv_slice){0};
  if (!at) return text;
  size_t before = (size_t)(at - text.data);
  *rest = (kv_slice){at + 1, text.size - before - 1};
  return (kv_slice){text.data, before};
}

static bool has(kv_slice text, char mark) {
  return text.size && memchr(text.data, mark, text.size);
}

static int hex_digit(char byte) {
  if (byte >= '0' && byte <= '9') return byte - '0';
  if (byte >= 'a' && byte <= 'f') return byte - 'a' + 10;
  if (byte >= 'A' && byte <= 'F') return byte - 'A' + 10;
  return -1;
}

/* Percent-decode into a new string. `part` is what a message calls it. */
static kv_code decode(kv_slice text, const char *part, char **decoded, kv_error *error) {
  char *out = malloc(text.size + 1);
  size_t used = 0;
  if (!out) return no_memory(error);
  for (size_t at = 0; at < text.size; at++, used++) {
    out[used] = text.data[at];
    if (text.data[at] != '%') continue;
    int high = at + 1 < text.size ? hex_digit(text.data[at + 1]) : -1;
    int low = at + 2 < text.size ? hex_digit(text.data[at + 2]) : -1;
    if (high < 0 || low < 0 || high + low == 0) {
      kv_fail(error, KV_INVALID, "invalid URL: %s: %s", part,
              high < 0 || low < 0 ? "a \"%\" must be followed by two hexadecimal digits" : "%00 is not allowed");
      out[used] = '\0';
      kv_free_secret(out);
      return KV_INVALID;
    }
    out[used] = (char)(high * 16 + low);
    at += 2;
  }
  out[used] = '\0';
  *decoded = out;
  return KV_OK;
}

/* ------------------------------------------------------------------ hosts */

static bool is_host_byte(char byte, bool bracketed) {
  if ((byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || (byte >= '0' && byte <= '9')) return true;
  return byte == '.' || byte == '-' || byte == '_' || (bracketed && (byte == ':' || byte == '%'));
}

/* With a zone or without. */
static bool is_ipv6(const char *host) {
  unsigned char address[16];
  char plain[HOST_MAX + 1];
  size_t size = strcspn(host, "%");
  memcpy(plain, host, size);
  plain[size] = '\0';
  return inet_pton(AF_INET6, plain, address) == 1;
}

/* Only the character is shown, not the host: what stands here may be the rest of a password with an '@' in it. */
static kv_code check_host(const char *host, bool bracketed, kv_error *error) {
  size_t size = strlen(host);
  if (size == 0) return bad(error, "a host is empty");
  if (size > HOST_MAX) return bad(error, "a host is longer than 255 bytes");
  for (size_t i = 0; i < size; i++) {
    if (is_host_byte(host[i], bracketed)) continue;
    char shown[KV_SHOWN_MAX];
    kv_show((kv_slice){host + i, 1}, shown);
    return kv_fail(error, KV_INVALID, "invalid URL: \"%s\" cannot stand in a host name%s", shown,
                   host[i] == ':' ? " (IPv6 addresses stand in brackets)" : "");
  }
  if (bracketed && !is_ipv6(host)) return bad(error, "what stands in brackets is no IPv6 address");
  return KV_OK;
}

static kv_code parse_port(kv_slice text, uint16_t *port, kv_error *error) {
  unsigned value = 0;
  for (size_t i = 0; i < text.size; i++) {
    if (text.data[i] < '0' || text.data[i] > '9' || value > 65535) value = 65536;
    if (value <= 65535) value = value * 10 + (unsigned)(text.data[i] - '0');
  }
  if (value == 0 || value > 65535) return bad(error, "a port must be a number from 1 to 65535");
  *port = (uint16_t)value;
  return KV_OK;
}

/* host[:port] or [IPv6][:port]. */
static kv_code parse_host(kv_slice text, struct kv_address *address, kv_error *error) {
  kv_slice host = text, port = {0};
  bool bracketed = text.size && text.data[0] == '[';
  if (bracketed) {
    host = cut((kv_slice){text.data + 1, text.size - 1}, ']', &port);
    if (!port.data) return bad(error, "a \"[\" without \"]\"");
    if (port.size && port.data[0] != ':') return bad(error, "only a port may follow \"]\"");
    port = port.size ? (kv_slice){port.data + 1, port.size - 1} : (kv_slice){0};
  } else {
    host = cut(text, ':', &port);
    if (has(port, ':')) return bad(error, "a host with more than one colon (IPv6 addresses stand in brackets)");
  }
  kv_code code = decode(host, "host", &address->host, error);
  if (code == KV_OK) code = check_host(address->host, bracketed, error);
  if (code == KV_OK && port.data) code = parse_port(port, &address->port, error);
  return code;
}

static kv_code parse_hosts(kv_slice hosts, struct kv_url *url, kv_error *error) {
  size_t count = 1;
  for (size_t i = 0; i < hosts.size; i++) count += hosts.data[i] == ',';
  if (count > HOSTS_MAX) return bad(error, "more than 64 hosts");
  url->addresses = calloc(count, sizeof *url->addresses);
  if (!url->addresses) return no_memory(error);
  for (size_t i = 0; i < count; i++) {
    kv_slice rest, host = cut(hosts, ',', &rest);
    url->address_count = i + 1;
    kv_code code = parse_host(host, &url->addresses[i], error);
    if (code != KV_OK) return code;
    hosts = rest;
  }
  return KV_OK;
}

/* [user[:password]@]hosts. The last '@' counts: one in a password that was not encoded does no harm. */
static kv_code parse_authority(kv_slice authority, struct kv_url *url, kv_error *error) {
  const char *sign = memrchr(authority.data, '@', authority.size);
  if (!sign) return parse_hosts(authority, url, error);
  size_t before = (size_t)(sign - authority.data);
  kv_slice password, user = cut((kv_slice){authority.data, before}, ':', &password);
  kv_code code = decode(user, "user name", &url->username, error);
  if (code == KV_OK && password.data) code = decode(password, "password", &url->password, error);
  if (code != KV_OK) return code;
  return parse_hosts((kv_slice){sign + 1, authority.size - before - 1}, url, error);
}

/* ------------------------------------------------------------------ the other parts */

static kv_code parse_option(kv_slice pair, bool hide, kv_options *options, kv_error *error) {
  kv_slice raw, raw_name = cut(pair, '=', &raw);
  char *name = NULL, *value = NULL;
  if (!raw.data) return bad(error, "what follows \"?\" must be option=value, joined by \"&\"");
  kv_code code = decode(raw_name, "option name", &name, error);
  if (code == KV_OK) code = decode(raw, "option value", &value, error);
  if (code == KV_OK) {
    kv_error cause;
    kv_slice text = {value, strlen(value)};
    code = kv_options_put(options, (kv_slice){name, strlen(name)}, text, true, hide, &cause);
    if (code != KV_OK) bad_option(error, code, &cause);
  }
  free(name);
  kv_free_secret(value);
  return code;
}

static kv_code parse_query(kv_slice query, struct kv_url *url, kv_error *error) {
  url->options = kv_options_new();
  if (!url->options) return no_memory(error);
  bool hide = has(query, '@');
  while (query.size) {
    kv_slice rest, pair = cut(query, '&', &rest);
    kv_code code = pair.size ? parse_option(pair, hide, url->options, error) : KV_OK;
    if (code != KV_OK) return code;
    query = rest;
  }
  return KV_OK;
}

static kv_code parse_scheme(kv_slice scheme, struct kv_url *url, kv_error *error) {
  bool good = scheme.size > 0 && scheme.size <= SCHEME_MAX;
  for (size_t i = 0; good && i < scheme.size; i++) {
    char byte = scheme.data[i];
    bool letter = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
    good = letter || (i > 0 && ((byte >= '0' && byte <= '9') || byte == '+' || byte == '-' || byte == '.'));
  }
  if (!good) return bad(error, "it must begin with a scheme, as in etcd://host or local:PATH");
  url->scheme = kv_copy(scheme);
  if (!url->scheme) return no_memory(error);
  for (char *at = url->scheme; *at; at++)
    if (*at >= 'A' && *at <= 'Z') *at = (char)(*at - 'A' + 'a');
  return KV_OK;
}

/* What stands between ":" and "?". */
static kv_code parse_place(kv_slice place, struct kv_url *url, kv_error *error) {
  kv_slice path = place;
  if (place.size >= 2 && memcmp(place.data, "//", 2) == 0) {
    kv_slice behind = {place.data + 2, place.size - 2};
    const char *slash = memchr(behind.data, '/', behind.size);
    kv_slice authority = {behind.data, slash ? (size_t)(slash - behind.data) : behind.size};
    path = (kv_slice){behind.data + authority.size, behind.size - authority.size};
    if (has(path, '@') && (has(authority, ':') || has(authority, '@')))
      return bad(error, "an \"@\" behind the hosts (write \"/\", \"?\" and \"@\" of a password as %2F, %3F and %40, "
                        "and \"@\" of a prefix as %40)");
    kv_code code = authority.size ? parse_authority(authority, url, error) : KV_OK;
    if (code != KV_OK) return code;
  }
  return path.size ? decode(path, "path", &url->path, error) : KV_OK;
}

kv_code kv_url_parse(const char *text, struct kv_url *url, kv_error *error) {
  *url = (struct kv_url){0};
  if (!text) return bad(error, "there is none");
  size_t size = strnlen(text, URL_MAX + 1);
  if (size > URL_MAX) return bad(error, "it is longer than 8192 bytes");
  kv_slice rest, query;
  kv_slice before = cut((kv_slice){text, size}, '?', &query);
  kv_slice scheme = cut(before, ':', &rest);
  kv_code code = rest.data ? parse_scheme(scheme, url, error) : parse_scheme((kv_slice){0}, url, error);
  if (code == KV_OK) code = parse_place(rest, url, error);
  if (code == KV_OK) code = parse_query(query, url, error);
  if (code != KV_OK) kv_url_clear(url);
  return code;
}

void kv_url_clear(struct kv_url *url) {
  free(url->scheme);
  free(url->username);
  kv_free_secret(url->password);
  free(url->path);
  for (size_t i = 0; i < url->address_count; i++) free(url->addresses[i].host);
  free(url->addresses);
  kv_options_free(url->options);
  *url = (struct kv_url){0};
}

/* ------------------------------------------------------------------ the config */

static kv_code unknown_scheme(const char *scheme, kv_error *error) {
  char known[200] = "";
  size_t used = 0;
  for (size_t i = 0; kv_driver_name(i) && used < sizeof known; i++)
    used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", kv_driver_name(i));
  return kv_fail(error, KV_UNSUPPORTED, "no backend for URLs that start with \"%s:\" (there is: %s)", scheme,
                 used ? known : "none");
}

/* The scheme of the same driver that speaks TLS, for a hint. */
static const char *tls_scheme(const struct kv_driver *driver) {
  for (const struct kv_scheme *scheme = driver ? driver->schemes : NULL; scheme && scheme->name; scheme++)
    if (scheme->tls) return scheme->name;
  return NULL;
}

/* Does the URL's shape suit the scheme? And would an option be without effect that people rely on? */
static kv_code check_shape(const struct kv_url *url, const kv_options *options, const struct kv_scheme *scheme,
                           const struct kv_driver *driver, kv_error *error) {
  if (scheme->port == 0) {
    if (url->address_count == 0) return KV_OK;
    return kv_fail(error, KV_INVALID, "invalid URL: %s takes a path and no hosts: %s:PATH", scheme->name, scheme->name);
  }
  if (url->address_count == 0)
    return kv_fail(error, KV_INVALID, "invalid URL: it names no host: %s://host[:port][/prefix]", scheme->name);
  const char *option = scheme->tls ? NULL : kv_options_find(options, "tls.");
  if (!option) return KV_OK;
  const char *with_tls = tls_scheme(driver);
  return kv_fail(error, KV_INVALID, "option \"%s\" has no effect: %s:// does not use TLS%s%s%s", option, scheme->name,
                 with_tls ? ", " : "", with_tls ? with_tls : "", with_tls ? ":// does" : "");
}

/* Parts of the URL that are options by other means. */
static kv_code put_part(kv_options *options, const char *name, const char *text, kv_error *error) {
  kv_error cause;
  if (!text || !*text) return KV_OK;
  kv_slice value = {text, strlen(text)};
  kv_code code = kv_options_put(options, (kv_slice){name, strlen(name)}, value, true, true, &cause);
  return code == KV_OK ? KV_OK : bad_option(error, code, &cause);
}

static kv_code gather(struct kv_url *url, const kv_options *options, bool path_is_prefix, kv_error *error) {
  kv_code code = put_part(url->options, "username", url->username, error);
  if (code == KV_OK) code = put_part(url->options, "password", url->password, error);
  /* A bare "/" behind the hosts says nothing: ?prefix= may still do. */
  bool has_prefix = path_is_prefix && url->path && url->path[strspn(url->path, "/")];
  if (code == KV_OK && has_prefix) code = put_part(url->options, "prefix", url->path, error);
  if (code == KV_OK && !kv_options_merge(url->options, options)) code = no_memory(error);
  return code;
}

/* Move what the parsed URL has into the config. */
static void take(struct kv_url *url, const struct kv_scheme *scheme, struct kv_config *config, char **prefix) {
  kv_options_take(url->options, config, prefix);
  config->scheme = scheme;
  config->addresses = url->addresses;
  config->address_count = url->address_count;
  url->addresses = NULL;
  url->address_count = 0;
  for (size_t i = 0; i < config->address_count; i++)
    if (config->addresses[i].port == 0) config->addresses[i].port = scheme->port;
  if (scheme->port == 0) {
    config->path = url->path;
    url->path = NULL;
  }
}

kv_code kv_config_make(const char *url_text, const kv_options *options, struct kv_config *config, char *prefix,
                       size_t *prefix_size, kv_error *error) {
  struct kv_url url;
  const struct kv_driver *driver = NULL;
  const struct kv_scheme *scheme = NULL;
  char *raw_prefix = NULL;
  *config = (struct kv_config){0};
  *prefix_size = 0;
  kv_code code = kv_url_parse(url_text, &url, error);
  if (code != KV_OK) return code;
  scheme = kv_scheme_find((kv_slice){url.scheme, strlen(url.scheme)}, &driver);
  if (!scheme) code = unknown_scheme(url.scheme, error);
  if (code == KV_OK) code = gather(&url, options, scheme->port != 0, error);
  if (code == KV_OK) code = check_shape(&url, url.options, scheme, driver, error);
  if (code == KV_OK) {
    take(&url, scheme, config, &raw_prefix);
    kv_slice text = {raw_prefix, raw_prefix ? strlen(raw_prefix) : 0};
    code = kv_key_make("prefix", text, true, prefix, prefix_size, error);
    if (code != KV_OK) kv_config_clear(config);
  }
  free(raw_prefix);
  kv_url_clear(&url);
  return code;
}
