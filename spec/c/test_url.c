/*
 * URLs, options, and the config that comes of both. The drivers here are only names; a small registry stands in where
 * the test is linked without the core's own.
 */
#include "check.h"
#include "core/core.h"

/* ------------------------------------------------------------------ drivers that are only names */

static void attach(const struct kv_host *host) {
  (void)host;
}

static const struct kv_scheme net_schemes[] = {{"tnet", false, 2379}, {"tnets", true, 2380}, {0}};
static const struct kv_scheme path_schemes[] = {{"tlocal", false, 0}, {0}};
static const struct kv_driver net = {.abi = KV_DRIVER_ABI, .name = "net", .schemes = net_schemes, .attach = attach};
static const struct kv_driver folder = {
    .abi = KV_DRIVER_ABI, .name = "folder", .schemes = path_schemes, .attach = attach};

static const struct kv_driver *stub_drivers[2];
static size_t stub_count;

__attribute__((weak)) kv_code kv_register(const struct kv_driver *driver, kv_error *error) {
  (void)error;
  if (stub_count < 2) stub_drivers[stub_count++] = driver;
  return KV_OK;
}

__attribute__((weak)) const char *kv_driver_name(size_t index) {
  return index < stub_count ? stub_drivers[index]->name : NULL;
}

__attribute__((weak)) const struct kv_scheme *kv_scheme_find(kv_slice name, const struct kv_driver **driver) {
  for (size_t i = 0; i < stub_count; i++) {
    for (const struct kv_scheme *scheme = stub_drivers[i]->schemes; scheme->name; scheme++) {
      if (strlen(scheme->name) != name.size || memcmp(scheme->name, name.data, name.size) != 0) continue;
      if (driver) *driver = stub_drivers[i];
      return scheme;
    }
  }
  return NULL;
}

static void register_drivers(void) {
  static bool done;
  if (done) return;
  done = true;
  CHECK_EQ(kv_register(&net, NULL), KV_OK);
  CHECK_EQ(kv_register(&folder, NULL), KV_OK);
}

/* ------------------------------------------------------------------ parsing */

static kv_error error;

/* The message of a URL that must be refused. */
static const char *refused(const char *text) {
  struct kv_url url;
  memset(&error, 0, sizeof error);
  CHECK_EQ(kv_url_parse(text, &url, &error), KV_INVALID);
  CHECK_EQ(error.code, KV_INVALID);
  CHECK(url.scheme == NULL && url.addresses == NULL && url.options == NULL);
  return error.message;
}

#define CHECK_REFUSED(text, words) CHECK(strstr(refused(text), words))

TEST(all_parts) {
  struct kv_url url;
  const char *text = "ETCDs://me:s%40cret@one:1,two,[fe80::1%25eth0]:65535,[::1]/a/b%20c?timeout=0.5&consistency=fast";
  REQUIRE(kv_url_parse(text, &url, &error) == KV_OK);
  CHECK_STR(url.scheme, "etcds");
  CHECK_STR(url.username, "me");
  CHECK_STR(url.password, "s@cret");
  CHECK_STR(url.path, "/a/b c");
  REQUIRE(url.address_count == 4);
  CHECK_STR(url.addresses[0].host, "one");
  CHECK_EQ(url.addresses[0].port, 1);
  CHECK_STR(url.addresses[1].host, "two");
  CHECK_EQ(url.addresses[1].port, 0);
  CHECK_STR(url.addresses[2].host, "fe80::1%eth0");
  CHECK_EQ(url.addresses[2].port, 65535);
  CHECK_STR(url.addresses[3].host, "::1");
  CHECK(url.options->config.timeout == 0.5);
  CHECK(url.options->config.fast_reads);
  kv_url_clear(&url);
  kv_url_clear(&url);
}

TEST(small_urls) {
  static const struct {
    const char *text, *host, *path, *username, *password;
  } good[] = {
      {"local:", NULL, NULL, NULL, NULL},
      {"local:?sync=none", NULL, NULL, NULL, NULL},
      {"local:data/kv", NULL, "data/kv", NULL, NULL},
      {"local:/var/lib/kv?map_size=1073741824", NULL, "/var/lib/kv", NULL, NULL},
      {"local:///var/lib/kv", NULL, "/var/lib/kv", NULL, NULL},
      {"local:a@b:c", NULL, "a@b:c", NULL, NULL},
      {"local:a%3Fb", NULL, "a?b", NULL, NULL},
      {"local://", NULL, NULL, NULL, NULL},
      {"zk://h", "h", NULL, NULL, NULL},
      {"zk://h/", "h", "/", NULL, NULL},
      {"zk://h?", "h", NULL, NULL, NULL},
      {"zk://h?&&timeout=1&", "h", NULL, NULL, NULL},
      {"zk://h/@me", "h", "/@me", NULL, NULL},
      {"zk://10.0.0.1", "10.0.0.1", NULL, NULL, NULL},
      {"zk://a_b.example-1.org/x/y", "a_b.example-1.org", "/x/y", NULL, NULL},
      {"zk://u@h", "h", NULL, "u", NULL},
      {"zk://u:@h", "h", NULL, "u", ""},
      {"zk://:p@h", "h", NULL, "", "p"},
      {"zk://u:a:b,c@d@h", "h", NULL, "u", "a:b,c@d"},
      {"zk://%75:%70@%68", "h", NULL, "u", "p"},
      {"a+b-c.d1://h", "h", NULL, NULL, NULL},
  };
  for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
    struct kv_url url;
    error.message[0] = '\0';
    if (kv_url_parse(good[i].text, &url, &error) != KV_OK) {
      CHECK_STR(error.message, good[i].text);
      continue;
    }
    CHECK_STR(url.address_count ? url.addresses[0].host : NULL, good[i].host);
    CHECK_STR(url.path, good[i].path);
    CHECK_STR(url.username, good[i].username);
    CHECK_STR(url.password, good[i].password);
    kv_url_clear(&url);
  }
}

TEST(bad_shapes) {
  CHECK_REFUSED("", "must begin with a scheme");
  CHECK_REFUSED("hello", "must begin with a scheme");
  CHECK_REFUSED("/var/lib", "must begin with a scheme");
  CHECK_REFUSED("://h", "must begin with a scheme");
  CHECK_REFUSED("1a://h", "must begin with a scheme");
  CHECK_REFUSED("a b://h", "must begin with a scheme");
  CHECK_REFUSED("?a:b", "must begin with a scheme");
  CHECK_REFUSED("abcdefghijklmnopqrstuvwxyzabcdefg://h", "must begin with a scheme");
  CHECK_REFUSED(NULL, "there is none");
  CHECK_REFUSED("zk://u@", "a host is empty");
  CHECK_REFUSED("zk://,h", "a host is empty");
  CHECK_REFUSED("zk://h,", "a host is empty");
  CHECK_REFUSED("zk://h,,i", "a host is empty");
  CHECK_REFUSED("zk://:2181", "a host is empty");
  CHECK_REFUSED("zk://[]", "a host is empty");
  CHECK_REFUSED("zk://[::1", "\"[\" without \"]\"");
  CHECK_REFUSED("zk://[::1]x", "only a port may follow");
  CHECK_REFUSED("zk://::1", "IPv6 addresses stand in brackets");
  CHECK_REFUSED("zk://a%3Ab", "IPv6 addresses stand in brackets");
  CHECK_REFUSED("zk://a b", "\" \" cannot stand in a host name");
  CHECK_REFUSED("zk://a%0D%0Ab", "\"\\x0D\" cannot stand in a host name");
  CHECK_REFUSED("zk://\xC3\xA9", "cannot stand in a host name");
  static const char *const ports[] = {"zk://h:", "zk://h:0", "zk://h:65536", "zk://h:-1", "zk://h:1x", "zk://h:+1",
                                      "zk://h: 1", "zk://h:99999999999999999999", "zk://[::1]:", "zk://h:00"};
  for (size_t i = 0; i < sizeof ports / sizeof ports[0]; i++) CHECK_REFUSED(ports[i], "from 1 to 65535");
  CHECK_REFUSED("zk://h/%", "path: a \"%\" must be followed by two hexadecimal digits");
  CHECK_REFUSED("zk://h/%4", "two hexadecimal digits");
  CHECK_REFUSED("zk://h/%zz", "two hexadecimal digits");
  CHECK_REFUSED("zk://h/%4g", "two hexadecimal digits");
  CHECK_REFUSED("zk://h/a%00b", "%00 is not allowed");
  CHECK_REFUSED("local:a%00b", "%00 is not allowed");
  CHECK_REFUSED("zk://%00", "%00 is not allowed");
  CHECK_REFUSED("zk://h?timeout", "option=value");
  CHECK_REFUSED("zk://h?=1", "unknown option \"\"");
  CHECK_REFUSED("zk://h?colour=red", "unknown option \"colour\"");
  CHECK_REFUSED("zk://h?timeout=1&timeout=2", "\"timeout\" is given twice");
  CHECK_REFUSED("zk://h?token=%0A", "control characters");
}

TEST(sizes_are_bounded) {
  char text[9000] = "zk://h/";
  memset(text + 7, 'a', 8192 - 7);
  struct kv_url url;
  CHECK_EQ(kv_url_parse(text, &url, &error), KV_OK);
  kv_url_clear(&url);
  text[8192] = 'a';
  CHECK_REFUSED(text, "longer than 8192 bytes");
  char hosts[1000] = "zk://h";
  for (int i = 0; i < 63; i++) strcat(hosts, ",h");
  CHECK_EQ(kv_url_parse(hosts, &url, &error), KV_OK);
  CHECK_EQ(url.address_count, 64);
  kv_url_clear(&url);
  strcat(hosts, ",h");
  CHECK_REFUSED(hosts, "more than 64 hosts");
  char host[400] = "zk://";
  memset(host + 5, 'h', 255);
  CHECK_EQ(kv_url_parse(host, &url, &error), KV_OK);
  kv_url_clear(&url);
  host[260] = 'h';
  CHECK_REFUSED(host, "longer than 255");
}

/* Whatever is wrong, and however the password was forgotten to be encoded: no message shows a piece of it. */
TEST(no_message_shows_a_password) {
  static const char *const passwords[] = {"Sekr1t",       "Sekr1t/zw9",  "Sekr1t?zw9",    "Sekr1t@zw9",  "Se%zzkr1t",
                                          "123/Sekr1t",   "123?Sekr1t",   "123?Sekr1t=1",   "Sekr1t:zw9",  "Sekr1t,zw9",
                                          "p@q/Sekr1t",   "p@q?Sekr1t=1", "p@Sekr1t/zw9",  "%00Sekr1t",    "Sekr1t zw9",
                                          "[Sekr1t",      "Sekr1t]",      "Sekr1t%",        "1,2:3/Sekr1t",
                                          "Sekr1t&zw9",
                                          "p@Sekr1t z?x", "p@Sekr1t%21?x"};
  static const char *const rests[] = {"h", "h:0", "h:x", "", "h/%zz", "h?x=1", "h?timeout=0", "h,", "h b", "h/../x",
                                      "[::1"};
  unsigned refusals = 0;
  register_drivers();
  for (size_t i = 0; i < sizeof passwords / sizeof passwords[0]; i++) {
    for (size_t j = 0; j < sizeof rests / sizeof rests[0]; j++) {
      char text[200], prefix[KV_KEY_MAX];
      size_t size;
      struct kv_config config;
      snprintf(text, sizeof text, "tnet://root:%s@%s", passwords[i], rests[j]);
      memset(&error, 0, sizeof error);
      if (kv_config_make(text, NULL, &config, prefix, &size, &error) == KV_OK) {
        for (size_t n = 0; n < config.address_count; n++) CHECK(!strstr(config.addresses[n].host, "ekr1t"));
        CHECK(!memmem(prefix, size, "ekr1t", 5));
        kv_config_clear(&config);
      } else {
        refusals++;
        CHECK(error.message[0] != '\0');
        if (strstr(error.message, "kr1t") || strstr(error.message, "zw9")) CHECK_STR(error.message, text);
      }
    }
  }
  CHECK(refusals > 100);
}

/* ------------------------------------------------------------------ options */

static const char *option(const char *name, const char *value) {
  kv_options *options = kv_options_new();
  error.message[0] = '\0';
  kv_code code = kv_options_set(options, name, (kv_slice){value, strlen(value)}, &error);
  CHECK(code == KV_OK || code == KV_INVALID);
  kv_options_free(options);
  return code == KV_OK ? NULL : error.message;
}

TEST(option_values) {
  static const char *const good_seconds[] = {"1", "0.25", ".5", "5.", "1e3", "1E-3", "1e+2", "2.5e0", "100000000000"};
  static const char *const bad_seconds[] = {"", "0", "0.0", "-1", "1s", "nan", "inf", " 1", "1 ", "0x1", "1e", "1e+",
                                            ".", "e1", "1e999", "1e-999", "1,5", "--1",
                                            "99999999999999999999999999999999999999999999999999999999999999999"};
  for (size_t i = 0; i < sizeof good_seconds / sizeof good_seconds[0]; i++)
    CHECK_STR(option("timeout", good_seconds[i]), NULL);
  for (size_t i = 0; i < sizeof bad_seconds / sizeof bad_seconds[0]; i++)
    CHECK_STR(option("connect_timeout", bad_seconds[i]),
              "option \"connect_timeout\" must be a number of seconds larger than 0");
  static const char *const good_sizes[] = {"1", "1073741824", "1e9", "4096.0", "9007199254740992"};
  static const char *const bad_sizes[] = {"0", "-1", "1.5", "x", "1k", "9007199254740993000", "0.5", ""};
  for (size_t i = 0; i < sizeof good_sizes / sizeof good_sizes[0]; i++)
    CHECK_STR(option("map_size", good_sizes[i]), NULL);
  for (size_t i = 0; i < sizeof bad_sizes / sizeof bad_sizes[0]; i++) CHECK(option("map_size", bad_sizes[i]) != NULL);
  static const char *const switches[] = {"leading_slash", "portable", "tls.verify"};
  for (size_t i = 0; i < 3; i++) {
    CHECK_STR(option(switches[i], "true"), NULL);
    CHECK_STR(option(switches[i], "false"), NULL);
    CHECK_STR(option(switches[i], "1"), NULL);
    CHECK_STR(option(switches[i], "0"), NULL);
    CHECK(option(switches[i], "yes") != NULL);
    CHECK(option(switches[i], "") != NULL);
    CHECK(option(switches[i], "TRUE") != NULL);
  }
  CHECK_STR(option("consistency", "strong"), NULL);
  CHECK_STR(option("consistency", "fast"), NULL);
  CHECK_STR(option("consistency", "full"), "option \"consistency\" must be \"strong\" or \"fast\"");
  CHECK_STR(option("sync", "full"), NULL);
  CHECK_STR(option("sync", "none"), NULL);
  CHECK_STR(option("sync", ""), "option \"sync\" must be \"full\" or \"none\"");
  CHECK_STR(option("token", "a\nb"), "option \"token\" must not contain control characters");
  CHECK_STR(option("password", "a\nb"), NULL);
  CHECK_STR(option("colour\n", "red"), "unknown option \"colour\\x0A\"");
  CHECK(option("", "x") != NULL && option("tls", "x") != NULL && option("Timeout", "1") != NULL);
  static const char *const texts[] = {"prefix", "username", "password", "token", "datacenter", "acl", "tls.ca",
                                      "tls.cert", "tls.key", "tls.server_name"};
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
    kv_options *options = kv_options_new();
    CHECK_STR(option(texts[i], "x"), NULL);
    CHECK_EQ(kv_options_set(options, texts[i], KV_TEXT("a\0b"), &error), KV_INVALID);
    CHECK_EQ(kv_options_set(options, texts[i], KV_TEXT("once"), &error), KV_OK);
    CHECK_EQ(kv_options_set(options, texts[i], KV_TEXT("again"), &error), KV_OK);
    kv_options_free(options);
  }
  kv_options_free(NULL);
}

/* ------------------------------------------------------------------ configs */

static struct kv_config config;
static char prefix[KV_KEY_MAX];
static size_t prefix_size;

static kv_code make(const char *url, const kv_options *options) {
  register_drivers();
  kv_config_clear(&config);
  memset(&error, 0, sizeof error);
  return kv_config_make(url, options, &config, prefix, &prefix_size, &error);
}

static const char *made_prefix(void) {
  static char text[KV_KEY_MAX + 1];
  memcpy(text, prefix, prefix_size);
  text[prefix_size] = '\0';
  return text;
}

TEST(defaults) {
  REQUIRE(make("tnet://h", NULL) == KV_OK);
  CHECK(config.timeout == 5 && config.connect_timeout == 2 && config.session_ttl == 15);
  CHECK(config.leading_slash && config.tls_verify);
  CHECK(!config.fast_reads && !config.portable && !config.sync_none && config.map_size == 0);
  CHECK(!config.username && !config.password && !config.token && !config.path && !config.tls_ca);
  CHECK_EQ(config.addresses[0].port, 2379);
  CHECK_STR(config.scheme->name, "tnet");
  CHECK_EQ(prefix_size, 0);
  REQUIRE(make("tnets://h,i:5", NULL) == KV_OK);
  CHECK_EQ(config.addresses[0].port, 2380);
  CHECK_EQ(config.addresses[1].port, 5);
  kv_config_clear(&config);
  kv_config_clear(&config);
}

TEST(options_win_over_the_url) {
  kv_options *options = kv_options_new();
  CHECK_EQ(kv_options_set(options, "timeout", KV_TEXT("7"), NULL), KV_OK);
  CHECK_EQ(kv_options_set(options, "password", KV_TEXT("theirs"), NULL), KV_OK);
  CHECK_EQ(kv_options_set(options, "prefix", KV_TEXT("/other//"), NULL), KV_OK);
  CHECK_EQ(kv_options_set(options, "leading_slash", KV_TEXT("false"), NULL), KV_OK);
  CHECK_EQ(kv_options_set(options, "token", KV_TEXT(""), NULL), KV_OK);
  REQUIRE(make("tnet://me:mine@h/mine?timeout=3&connect_timeout=4&token=t&portable=1", options) == KV_OK);
  kv_options_free(options);
  CHECK(config.timeout == 7 && config.connect_timeout == 4 && config.portable && !config.leading_slash);
  CHECK_STR(config.username, "me");
  CHECK_STR(config.password, "theirs");
  CHECK_STR(config.token, NULL);
  CHECK_STR(made_prefix(), "other");
  kv_config_clear(&config);
}

TEST(prefixes) {
  REQUIRE(make("tnet://h//a//b/", NULL) == KV_OK);
  CHECK_STR(made_prefix(), "a/b");
  REQUIRE(make("tnet://h/?prefix=c%2Fd", NULL) == KV_OK);
  CHECK_STR(made_prefix(), "c/d");
  REQUIRE(make("tlocal:/var/x?prefix=e", NULL) == KV_OK);
  CHECK_STR(made_prefix(), "e");
  CHECK_STR(config.path, "/var/x");
  REQUIRE(make("tlocal:", NULL) == KV_OK);
  CHECK_STR(config.path, NULL);
  REQUIRE(make("tlocal:///abs", NULL) == KV_OK);
  CHECK_STR(config.path, "/abs");
  CHECK_EQ(make("tnet://h/a?prefix=b", NULL), KV_INVALID);
  CHECK(strstr(error.message, "\"prefix\" is given twice"));
  CHECK_EQ(make("tnet://h/a/../b", NULL), KV_INVALID);
  CHECK(strstr(error.message, "invalid prefix \"/a/../b\":"));
  CHECK_EQ(make("tnet://h/.kv", NULL), KV_INVALID);
  CHECK_EQ(make("tnet://u@h?username=v", NULL), KV_INVALID);
  CHECK(strstr(error.message, "\"username\" is given twice"));
  CHECK(config.addresses == NULL && config.username == NULL);
}

TEST(shape_and_scheme_must_suit) {
  CHECK_EQ(make("nothing://h", NULL), KV_UNSUPPORTED);
  CHECK(strstr(error.message, "\"nothing:\"") && strstr(error.message, "net, folder"));
  CHECK_EQ(make("localhost:2379", NULL), KV_UNSUPPORTED);
  CHECK_EQ(make("tnet:", NULL), KV_INVALID);
  CHECK(strstr(error.message, "names no host: tnet://host"));
  CHECK_EQ(make("tnet://", NULL), KV_INVALID);
  CHECK_EQ(make("tnet:///prefix", NULL), KV_INVALID);
  CHECK_EQ(make("tnet:h:2379", NULL), KV_INVALID);
  CHECK_EQ(make("tlocal://h/x", NULL), KV_INVALID);
  CHECK(strstr(error.message, "tlocal:PATH"));
  CHECK_EQ(make("tnet://h?tls.ca=/x", NULL), KV_INVALID);
  CHECK(strstr(error.message, "\"tls.ca\"") && strstr(error.message, "tnets:// does"));
  CHECK_EQ(make("tnets://h?tls.ca=/x&tls.verify=false", NULL), KV_OK);
  CHECK_STR(config.tls_ca, "/x");
  CHECK(!config.tls_verify);
  kv_config_clear(&config);
}

CHECK_MAIN()
