/*
 * options.c - the options of a store: one table says what each is called, which values it takes and where it goes.
 *
 * The same table serves kv_options_set() (options from a program) and the query part of a URL, so both know the same
 * names and refuse the same values. Every field remembers whether it was given (a bit in `set`), so that two sources
 * can be laid over each other before the defaults fill the rest. Messages never show the text of an option: it may be
 * a secret.
 */
#include "options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum option_type {
  TEXT,    /* any bytes but NUL */
  WORD,    /* no control characters: these travel in headers */
  SECONDS, /* finite, > 0 */
  SIZE,    /* bytes, an integer > 0 */
  SWITCH,  /* true, false, 1, 0 */
  CHOICE   /* the first word stands for false, the second for true */
};

struct option {
  const char *name;
  enum option_type type;
  size_t offset; /* in struct kv_options */
  const char *choices[2];
};

#define AT(field) offsetof(struct kv_options, config.field)

static const struct option table[] = {
    {"prefix", TEXT, offsetof(struct kv_options, prefix), {0}},
    {"timeout", SECONDS, AT(timeout), {0}},
    {"connect_timeout", SECONDS, AT(connect_timeout), {0}},
    {"username", TEXT, AT(username), {0}},
    {"password", TEXT, AT(password), {0}},
    {"token", WORD, AT(token), {0}},
    {"datacenter", WORD, AT(datacenter), {0}},
    {"session_ttl", SECONDS, AT(session_ttl), {0}},
    {"acl", TEXT, AT(acl), {0}},
    {"leading_slash", SWITCH, AT(leading_slash), {0}},
    {"consistency", CHOICE, AT(fast_reads), {"strong", "fast"}},
    {"portable", SWITCH, AT(portable), {0}},
    {"sync", CHOICE, AT(sync_none), {"full", "none"}},
    {"map_size", SIZE, AT(map_size), {0}},
    {"tls.ca", TEXT, AT(tls_ca), {0}},
    {"tls.cert", TEXT, AT(tls_cert), {0}},
    {"tls.key", TEXT, AT(tls_key), {0}},
    {"tls.verify", SWITCH, AT(tls_verify), {0}},
    {"tls.server_name", WORD, AT(tls_server_name), {0}},
};

#define OPTION_COUNT (sizeof table / sizeof table[0])
_Static_assert(OPTION_COUNT <= 32, "one bit of `set` for each option");

static void *field(const kv_options *options, const struct option *option) {
  return (char *)(uintptr_t)options + option->offset;
}

static bool is_string(const struct option *option) {
  return option->type == TEXT || option->type == WORD;
}

/* ------------------------------------------------------------------ small helpers */

void kv_show(kv_slice name, char shown[KV_SHOWN_MAX]) {
  size_t used = 0;
  for (size_t at = 0; at < name.size; at++) {
    unsigned char byte = (unsigned char)name.data[at];
    if (at == 40) {
      memcpy(shown + used, "...", 3);
      used += 3;
      break;
    }
    if (byte >= 0x20 && byte < 0x7F && byte != '"' && byte != '\\')
      shown[used++] = (char)byte;
    else
      used += (size_t)snprintf(shown + used, 5, "\\x%02X", byte);
  }
  shown[used] = '\0';
}

char *kv_copy(kv_slice text) {
  char *copy = malloc(text.size + 1);
  if (!copy) return NULL;
  if (text.size) memcpy(copy, text.data, text.size);
  copy[text.size] = '\0';
  return copy;
}

void kv_free_secret(char *text) {
  if (!text) return;
  explicit_bzero(text, strlen(text));
  free(text);
}

/* ------------------------------------------------------------------ values */

static bool is_digit(char byte) {
  return byte >= '0' && byte <= '9';
}

/* digits [. digits] [e [sign] digits], nothing else: strtod() would ask the locale, and take "inf" and "0x1p4". */
static bool parse_number(kv_slice text, double *number) {
  const char *at = text.data, *end = text.data + text.size;
  double value = 0;
  int exponent = 0, written = 0, digits = 0;
  bool negative = false;
  if (text.size > 64) return false;
  for (; at < end && is_digit(*at); at++, digits++) value = value * 10 + (*at - '0');
  if (at < end && *at == '.')
    for (at++; at < end && is_digit(*at); at++, digits++, exponent--) value = value * 10 + (*at - '0');
  if (digits == 0) return false;
  if (at < end && (*at == 'e' || *at == 'E')) {
    at++;
    if (at < end && (*at == '+' || *at == '-')) negative = *at++ == '-';
    if (at == end) return false;
    for (; at < end && is_digit(*at) && written < 1000; at++) written = written * 10 + (*at - '0');
    exponent += negative ? -written : written;
  }
  if (at != end || exponent > 300 || exponent < -300) return false;
  double power = 1;
  for (int i = exponent < 0 ? -exponent : exponent; i > 0; i--) power *= 10;
  *number = exponent < 0 ? value / power : value * power;
  return *number < 1e300;
}

static const char out_of_memory[] = "out of memory";

static const char *set_string(const struct option *option, void *where, kv_slice value) {
  if (value.size > KV_OPTION_MAX) return "is too long";
  if (value.size && memchr(value.data, '\0', value.size)) return "must not contain a zero byte";
  for (size_t i = 0; option->type == WORD && i < value.size; i++)
    if ((unsigned char)value.data[i] < 0x20 || value.data[i] == 0x7F) return "must not contain control characters";
  char *copy = kv_copy(value);
  if (!copy) return out_of_memory;
  kv_free_secret(*(char **)where);
  *(char **)where = copy;
  return NULL;
}

static const char *set_seconds(void *where, kv_slice value) {
  double seconds;
  if (!parse_number(value, &seconds) || !(seconds > 0)) return "must be a number of seconds larger than 0";
  *(double *)where = seconds;
  return NULL;
}

static const char *set_size(void *where, kv_slice value) {
  double size;
  if (!parse_number(value, &size) || size < 1 || size > 9007199254740992.0 || size != (double)(uint64_t)size)
    return "must be a whole number of bytes larger than 0";
  *(uint64_t *)where = (uint64_t)size;
  return NULL;
}

static bool is_word(kv_slice value, const char *word) {
  return value.size == strlen(word) && memcmp(value.data, word, value.size) == 0;
}

static const char *set_switch(void *where, kv_slice value) {
  if (value.size == 0) return "must be true or false";
  bool on = is_word(value, "true") || is_word(value, "1");
  if (!on && !is_word(value, "false") && !is_word(value, "0")) return "must be true or false";
  *(bool *)where = on;
  return NULL;
}

static const char *set_choice(const struct option *option, void *where, kv_slice value) {
  static const char *const wrong[2] = {"must be \"strong\" or \"fast\"", "must be \"full\" or \"none\""};
  for (int i = 0; value.size && i < 2; i++) {
    if (!is_word(value, option->choices[i])) continue;
    *(bool *)where = i == 1;
    return NULL;
  }
  return wrong[strcmp(option->name, "sync") == 0];
}

/* NULL, or what is wrong with the value, to be read behind the option's name. */
static const char *set_value(const struct option *option, void *where, kv_slice value) {
  switch (option->type) {
    case TEXT:
    case WORD: return set_string(option, where, value);
    case SECONDS: return set_seconds(where, value);
    case SIZE: return set_size(where, value);
    case SWITCH: return set_switch(where, value);
    case CHOICE: return set_choice(option, where, value);
  }
  return "is of no known type";
}

/* ------------------------------------------------------------------ options */

kv_options *kv_options_new(void) {
  kv_options *options = calloc(1, sizeof *options);
  if (!options) return NULL;
  options->config.timeout = 5;
  options->config.connect_timeout = 2;
  options->config.session_ttl = 15;
  options->config.leading_slash = true;
  options->config.tls_verify = true;
  return options;
}

void kv_options_free(kv_options *options) {
  if (!options) return;
  for (size_t i = 0; i < OPTION_COUNT; i++)
    if (is_string(&table[i])) kv_free_secret(*(char **)field(options, &table[i]));
  free(options);
}

kv_code kv_options_put(kv_options *options, kv_slice name, kv_slice value, bool once, bool hide, kv_error *error) {
  for (size_t i = 0; i < OPTION_COUNT; i++) {
    const struct option *option = &table[i];
    if (name.size == 0 || !is_word(name, option->name)) continue;
    if (once && (options->set >> i & 1))
      return kv_fail(error, KV_INVALID, "option \"%s\" is given twice", option->name);
    const char *wrong = set_value(option, field(options, option), value);
    if (wrong == out_of_memory) return kv_fail(error, KV_FAILED, "%s", out_of_memory);
    if (wrong) return kv_fail(error, KV_INVALID, "option \"%s\" %s", option->name, wrong);
    options->set |= 1u << i;
    return KV_OK;
  }
  if (hide) return kv_fail(error, KV_INVALID, "unknown option");
  char shown[KV_SHOWN_MAX];
  kv_show(name, shown);
  return kv_fail(error, KV_INVALID, "unknown option \"%s\"", shown);
}

kv_code kv_options_set(kv_options *options, const char *name, kv_slice value, kv_error *error) {
  if (!options || !name) return kv_fail(error, KV_INVALID, "no options, or no name of an option");
  return kv_options_put(options, (kv_slice){name, strlen(name)}, value, false, false, error);
}

static bool copy_field(const struct option *option, kv_options *base, const kv_options *over) {
  void *to = field(base, option), *from = field(over, option);
  switch (option->type) {
    case TEXT:
    case WORD: {
      const char *text = *(char **)from;
      char *copy = kv_copy((kv_slice){text, strlen(text)});
      if (!copy) return false;
      kv_free_secret(*(char **)to);
      *(char **)to = copy;
      return true;
    }
    case SECONDS: *(double *)to = *(double *)from; return true;
    case SIZE: *(uint64_t *)to = *(uint64_t *)from; return true;
    case SWITCH:
    case CHOICE: *(bool *)to = *(bool *)from; return true;
  }
  return true;
}

bool kv_options_merge(kv_options *base, const kv_options *over) {
  for (size_t i = 0; over && i < OPTION_COUNT; i++) {
    if (!(over->set >> i & 1)) continue;
    if (!copy_field(&table[i], base, over)) return false;
    base->set |= 1u << i;
  }
  return true;
}

const char *kv_options_find(const kv_options *options, const char *prefix) {
  for (size_t i = 0; i < OPTION_COUNT; i++)
    if ((options->set >> i & 1) && strncmp(table[i].name, prefix, strlen(prefix)) == 0) return table[i].name;
  return NULL;
}

/* ------------------------------------------------------------------ configs */

static char **config_string(struct kv_config *config, const struct option *option) {
  return (char **)(void *)((char *)config + (option->offset - offsetof(struct kv_options, config)));
}

void kv_options_take(kv_options *options, struct kv_config *config, char **prefix) {
  for (size_t i = 0; i < OPTION_COUNT; i++) {
    if (!is_string(&table[i])) continue;
    char **text = field(options, &table[i]);
    if (!*text || **text) continue;
    free(*text);
    *text = NULL;
  }
  *config = options->config;
  *prefix = options->prefix;
  *options = (kv_options){0};
}

void kv_config_clear(struct kv_config *config) {
  for (size_t i = 0; i < OPTION_COUNT; i++)
    if (is_string(&table[i]) && table[i].offset != offsetof(struct kv_options, prefix))
      kv_free_secret(*config_string(config, &table[i]));
  for (size_t i = 0; i < config->address_count; i++) free(config->addresses[i].host);
  free(config->addresses);
  free(config->path);
  *config = (struct kv_config){0};
}
