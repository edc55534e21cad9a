/* test_delivered.c - the table of what a watch has delivered, and the event queue beside it. */
#include "check.h"

#include "core/delivered.h"
#include "core/event_queue.h"

static kv_slice name(int number, char *room) {
  return (kv_slice){room, (size_t)snprintf(room, 32, "key/%d", number)};
}

static void count_one(void *argument, struct kv_known *known) {
  (void)known;
  ++*(int *)argument;
}

static struct kv_delivered table;

static void remove_odd(void *argument, struct kv_known *known) {
  (void)argument;
  if (known->revision % 2) kv_delivered_remove(&table, known);
}

TEST(keys_are_found_until_they_are_removed) {
  char room[32];
  CHECK(kv_delivered_find(&table, name(0, room)) == NULL);
  for (int i = 0; i < 1000; i++) {
    struct kv_known *known = kv_delivered_add(&table, name(i, room));
    REQUIRE(known != NULL);
    CHECK_EQ(known->revision, 0);
    known->revision = (uint64_t)i;
  }
  CHECK(kv_delivered_add(&table, name(7, room)) == kv_delivered_find(&table, name(7, room)));
  CHECK_EQ(table.count, 1000);
  kv_delivered_each(&table, remove_odd, NULL);
  int count = 0;
  kv_delivered_each(&table, count_one, &count);
  CHECK_EQ(count, 500);
  for (int i = 0; i < 1000; i++) {
    struct kv_known *known = kv_delivered_find(&table, name(i, room));
    CHECK_EQ(known != NULL, i % 2 == 0);
    if (known) CHECK_EQ(known->revision, i);
  }
  kv_delivered_clear(&table);
  CHECK_EQ(table.count, 0);
}

TEST(events_leave_from_both_ends) {
  struct kv_event_queue queue = {0};
  for (int i = 0; i < 3; i++) {
    char room[32];
    struct kv_event_node *node = kv_event_node_new(name(i, room), (kv_slice){"value", 5});
    REQUIRE(node != NULL);
    node->revision = (uint64_t)i;
    kv_event_queue_push(&queue, node);
  }
  CHECK(queue.bytes > 3 * sizeof(struct kv_event_node));
  struct kv_event_node *node = kv_event_queue_pop(&queue);
  CHECK_EQ(node->revision, 0);
  CHECK(memcmp(node->bytes, "key/0value", 10) == 0);
  kv_event_node_free(node);
  node = kv_event_queue_pop_last(&queue);
  CHECK_EQ(node->revision, 2);
  kv_event_node_free(node);
  node = kv_event_queue_pop_last(&queue);
  CHECK_EQ(node->revision, 1);
  kv_event_node_free(node);
  CHECK(kv_event_queue_pop(&queue) == NULL);
  CHECK(kv_event_queue_pop_last(&queue) == NULL);
  CHECK_EQ(queue.bytes, 0);
}

CHECK_MAIN()
