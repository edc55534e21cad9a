/*
 * json.h - JSON from servers, read by jansson; and two ways in which a large answer is kept from being one large tree.
 *
 * A listing is an array that may be as long as the store is large. json_elements cuts it into its elements as bytes
 * arrive, so that no more than one element is ever held as text, and each is read on its own.
 */
#ifndef KV_JSON_H
#define KV_JSON_H

#include <stdint.h>

#include "../core/buffer.h"
#include "../kv.h"

/* ------------------------------------------------------------------ values */

struct json; /* a value; those inside of another belong to it */

/* NULL: malformed (or out of memory). Numbers are exact up to 2^53. */
struct json *json_read(kv_slice text);
void json_free(struct json *value);
/* NULL: it is no object, or has no such member. `value` may be NULL. */
const struct json *json_member(const struct json *value, const char *name);
/* NULL: it is no array, or not that long. `value` may be NULL. */
const struct json *json_item(const struct json *value, size_t index);
size_t json_count(const struct json *value);
/* False: it is no string. The bytes belong to the value. */
bool json_text(const struct json *value, kv_slice *text);
/* False: it is no whole number from 0 to 2^53. */
bool json_number(const struct json *value, uint64_t *number);
/* A number below 2^64 as near as a double tells it; 0: it is none. */
uint64_t json_rounded(const struct json *value);
/* Is it `true`? */
bool json_flag(const struct json *value);

/* ------------------------------------------------------------------ the elements of an array, as they come */

struct json_elements {
  /* One element, complete. False: stop. */
  bool (*element)(void *context, kv_slice text);
  void *context;
  struct kv_buffer held; /* the beginning of an element whose end is still to come */
  int state;             /* json.c's */
  unsigned depth;
  bool in_string, escaped;
};

/* `element_max` caps the text of one element. */
void json_elements_init(struct json_elements *elements, size_t element_max,
                        bool (*element)(void *context, kv_slice text), void *context);
/* False: malformed, an element over its cap, or element() said stop. Final. */
bool json_elements_feed(struct json_elements *elements, const char *data, size_t size);
/* Has the array ended? */
bool json_elements_complete(const struct json_elements *elements);
void json_elements_free(struct json_elements *elements);

/* ------------------------------------------------------------------ the innermost objects, as they come */

/*
 * A tree may be as large as the store, and nested. json_leaves finds the objects that hold no other object or array,
 * at any depth, and gives each as text of its own: of a tree these are its leaves. What stands around them is only
 * checked for its brackets.
 */
struct json_leaves {
  /* One object, complete, of the depth at which it stands (the outermost: 1). False: stop. */
  bool (*leaf)(void *context, kv_slice text, unsigned depth);
  void *context;
  struct kv_buffer held; /* of the object whose end is still to come */
  unsigned depth;
  bool inside;           /* of an object that has been a leaf so far */
  bool in_string, escaped, begun, broken;
};

/* `leaf_max` caps the text of one leaf. */
void json_leaves_init(struct json_leaves *leaves, size_t leaf_max,
                      bool (*leaf)(void *context, kv_slice text, unsigned depth), void *context);
/* False: malformed, an object over its cap, or leaf() said stop. Final. */
bool json_leaves_feed(struct json_leaves *leaves, const char *data, size_t size);
/* Has the outermost value ended? */
bool json_leaves_complete(const struct json_leaves *leaves);
void json_leaves_free(struct json_leaves *leaves);

/* ------------------------------------------------------------------ writing */

/* Append as a JSON string, with its quotes. `text` must be UTF-8. */
bool json_quote(struct kv_buffer *out, kv_slice text);

#endif
