/*
 * test_zookeeper_memory.c - the ZooKeeper driver when memory runs out: every request is answered, nothing is used that
 * was freed, and the store works when there is memory again.
 */
#include "failing_memory.h"

#include "zookeeper_server.h"

TEST(each_allocation_fails) {
  const char *url = zk_url();
  if (url) fail_each(open_zk(url, "/memory"));
}

CHECK_MAIN()
