/*
 * Fuzz URLs, as they are and as the password of one. Whatever is parsed must obey the limits, whatever is refused
 * must be said in printable words, and no message may show the password.
 */
#include "fuzz.h"

#include "core/core.h"

/* Schemes as the real drivers have them; weak, for a link with the real table. */
static const struct kv_scheme schemes[] = {{"zk", false, 2181}, {"zks", true, 2181}, {"local", false, 0}, {0}};
static const struct kv_driver driver = {.abi = KV_DRIVER_ABI, .name = "fuzz", .schemes = schemes};

__attribute__((weak)) const char *kv_driver_name(size_t index) {
  return index == 0 ? driver.name : NULL;
}

__attribute__((weak)) const struct kv_scheme *kv_scheme_find(kv_slice name, const struct kv_driver **found) {
  for (const struct kv_scheme *scheme = schemes; scheme->name; scheme++) {
    if (strlen(scheme->name) != name.size || memcmp(scheme->name, name.data, name.size) != 0) continue;
    if (found) *found = &driver;
    return scheme;
  }
  return NULL;
}

static void check_message(kv_code code, const kv_error *error) {
  MUST(code == KV_INVALID || code == KV_UNSUPPORTED);
  MUST(error->code == code && error->message[0] != '\0');
  for (const char *at = error->message; *at; at++) MUST((unsigned char)*at >= 0x20 && *at != 0x7F);
}

static void check_addresses(const struct kv_address *addresses, size_t count) {
  MUST(count <= 64);
  for (size_t i = 0; i < count; i++) {
    MUST(addresses[i].host[0] != '\0' && strlen(addresses[i].host) <= 255);
    for (const char *at = addresses[i].host; *at; at++) MUST(*at > 0x20 && *at < 0x7F && !strchr("@/?#[],", *at));
  }
}

static void parse(const char *text) {
  struct kv_url url;
  kv_error error = {0};
  kv_code code = kv_url_parse(text, &url, &error);
  if (code == KV_OK) {
    MUST(url.scheme && url.scheme[0] && url.options);
    check_addresses(url.addresses, url.address_count);
  } else {
    check_message(code, &error);
    MUST(!url.scheme && !url.username && !url.password && !url.path && !url.addresses && !url.options);
  }
  kv_url_clear(&url);
}

/* `secret` must not be seen in a message. NULL: anything may. */
static void make(const char *text, const char *secret) {
  struct kv_config config;
  kv_error error = {0};
  char prefix[KV_KEY_MAX];
  size_t size = 0;
  kv_code code = kv_config_make(text, NULL, &config, prefix, &size, &error);
  if (code == KV_OK) {
    MUST(size == 0 || kv_key_is_canonical((kv_slice){prefix, size}));
    MUST(config.timeout > 0 && config.connect_timeout > 0 && config.session_ttl > 0);
    MUST((config.scheme->port == 0) == (config.address_count == 0));
    for (size_t i = 0; i < config.address_count; i++) MUST(config.addresses[i].port != 0);
    check_addresses(config.addresses, config.address_count);
  } else {
    check_message(code, &error);
    MUST(!secret || !strstr(error.message, secret));
    MUST(!config.addresses && !config.password);
  }
  kv_config_clear(&config);
}

/* The input around a mark, in the place of a password. With a '=' in it the whole can be a valid URL in which the mark
 * is no password. */
static void as_password(const char *text) {
  static const char *const ends[] = {"h", "h:0", "h/..", "h?x=1", ""};
  size_t size = strlen(text), half = size / 2;
  if (size > 2000 || strchr(text, '=')) return;
  for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
    char url[2100];
    snprintf(url, sizeof url, "zk://root:%.*sSekr1t%s@%s", (int)half, text, text + half, ends[i]);
    make(url, "Sekr1t");
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *text = malloc(size + 1);
  if (!text) abort();
  if (size) memcpy(text, data, size);
  text[size] = '\0';
  parse(text);
  make(text, NULL);
  as_password(text);
  free(text);
  return 0;
}
