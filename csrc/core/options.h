/*
 * options.h - what url.c and options.c share: setting options found in a URL, and laying them over each other.
 */
#ifndef KV_OPTIONS_H
#define KV_OPTIONS_H

#include "core.h"

/* Longest text of a single option. */
#define KV_OPTION_MAX 8192

/* Put `name` into `shown` so that it can stand in a message: odd bytes escaped, cut at about 40 bytes. */
#define KV_SHOWN_MAX 168
void kv_show(kv_slice name, char shown[KV_SHOWN_MAX]);

/* As kv_options_set(), for a counted name; an option that is already set is refused (`once`). With `hide` an unknown
 * name is not shown: it may be a piece of a password. */
kv_code kv_options_put(kv_options *options, kv_slice name, kv_slice value, bool once, bool hide, kv_error *error);

/* Copy what `over` has set into `base`. False: out of memory. */
bool kv_options_merge(kv_options *base, const kv_options *over);

/* Move everything out: empty strings become NULL, the caller owns the rest. `options` stays to be freed. */
void kv_options_take(kv_options *options, struct kv_config *config, char **prefix);

/* The name of a set option that starts with `prefix`, or NULL. */
const char *kv_options_find(const kv_options *options, const char *prefix);

/* A terminated copy, NULL when out of memory. */
char *kv_copy(kv_slice text);
/* Overwrite and free a string that may be a secret. */
void kv_free_secret(char *text);

#endif
