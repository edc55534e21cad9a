/* base64.h - base64 with the usual alphabet and padding, as JSON interfaces carry values. */
#ifndef KV_BASE64_H
#define KV_BASE64_H

#include "../core/buffer.h"
#include "../kv.h"

#define BASE64_SIZE(size) (((size) + 2) / 3 * 4)

/* Append the encoded form. False: it does not fit the buffer. */
bool base64_encode(struct kv_buffer *out, kv_slice bytes);
/* Append what `text` stands for. False: it is no base64, or does not fit; *out is as before. */
bool base64_decode(struct kv_buffer *out, kv_slice text);

#endif
