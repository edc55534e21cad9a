/*
 * test_etcd2_memory.c - the driver for etcd's v2 API when memory runs out: every request is answered, nothing is used
 * that was freed, and the store works when there is memory again.
 */
#include "failing_memory.h"

extern const struct kv_driver kv_driver_etcd2;

TEST(each_allocation_fails) {
  char url[80];
  shared_server.extra[0] = "--enable-v2=true";
  if (!etcd_url()) return;
  kv_register(&kv_driver_etcd2, NULL);
  snprintf(url, sizeof url, "etcd2://127.0.0.1:%d", shared_server.port);
  fail_each(open_url(url, "/memory"));
}

CHECK_MAIN()
