/*
 * test_consul_memory.c - the Consul driver when memory runs out: every request is answered, nothing is used that was
 * freed, and the store works when there is memory again.
 */
#include "failing_memory.h"

#include "consul_server.h"

TEST(each_allocation_fails) {
  const char *url = consul_url();
  if (url) fail_each(open_url(url, "/memory"));
}

CHECK_MAIN()
