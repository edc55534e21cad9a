# Builds kv: the Lua module (core.so, one shared object per backend), its tests and checks.
#
#   make                      for LUA=lua5.4, into build/lua5.4
#   make LUA=luajit           for another Lua: lua5.1 lua5.2 lua5.3 lua5.4 luajit
#   make all-luas             for every Lua whose headers are there
#   make demo                 install what is missing (Debian), build, show the main job
#   make test                 everything that must pass, on the embedded store and on a real etcd
#   make check                warnings as errors, linters, sanitizers, valgrind, fuzzers
#   make torture              faults for 30 minutes on each backend; MINUTES=, SEED=, BACKENDS= (docs/faults.md)
#   make docs                 pages of every function and the guides, into build/docs (LDoc)
#   make bench                measure, with the peers beside it
#   make rock                 a source rock for LuaRocks, into build/rocks
#   make install PREFIX=/usr/local DESTDIR=
#
# BACKENDS="local etcd" chooses backends; one whose library is missing is left out with a note. SANITIZE=address,undefined or
# SANITIZE=thread instruments everything, in a build folder of its own. WERROR=1 makes warnings errors. CC, CFLAGS,
# CPPFLAGS and LDFLAGS are yours; V=1 shows the commands.

LUA ?= lua5.4
BACKENDS ?= local etcd consul zookeeper etcd2
PREFIX ?= /usr/local
DESTDIR ?=
SANITIZE ?=
WERROR ?=
CFLAGS ?= -O2 -g
PKG_CONFIG ?= pkg-config
LUAROCKS ?= luarocks
FUZZ_SECONDS ?= 60

ALL_LUAS := lua5.4 lua5.3 lua5.2 lua5.1 luajit
TEST_LUAS ?= lua5.4 lua5.1 luajit
SMOKE_LUAS ?= lua5.3 lua5.2

# ---------------------------------------------------------------- where things are

comma := ,
BUILD ?= build$(if $(SANITIZE),/$(subst $(comma),-,$(SANITIZE)))
OUT := $(BUILD)/$(LUA)
OBJ := $(BUILD)/obj

lua_version = $(if $(filter luajit,$(1)),5.1,$(patsubst lua%,%,$(1)))
LUA_VERSION := $(call lua_version,$(LUA))
# Debian calls it lua5.4, others lua-5.4 or plain lua.
lua_package = $(firstword $(foreach name,$(if $(filter luajit,$(1)),luajit,$(1) lua-$(call lua_version,$(1))),\
  $(shell $(PKG_CONFIG) --exists $(name) 2>/dev/null && echo $(name))))
LUA_PACKAGE := $(call lua_package,$(LUA))
LUA_INCLUDE ?= $(if $(LUA_PACKAGE),$(shell $(PKG_CONFIG) --cflags $(LUA_PACKAGE)))
LUA_INTERPRETER ?= $(LUA)

# What a backend needs: libraries (by their pkg-config names, and what Debian calls them) and files of csrc/wire.
PACKAGES_local := lmdb
DEBIAN_local := liblmdb-dev
WIRE_local :=
PACKAGES_etcd := libnghttp2 openssl
DEBIAN_etcd := libnghttp2-dev libssl-dev
WIRE_etcd := grpc protobuf tls
PACKAGES_consul := libcurl jansson openssl
DEBIAN_consul := libcurl4-openssl-dev libjansson-dev libssl-dev
WIRE_consul := http json base64
PACKAGES_etcd2 := libcurl jansson openssl
DEBIAN_etcd2 := libcurl4-openssl-dev libjansson-dev libssl-dev
WIRE_etcd2 := http json base64

# The ZooKeeper C client comes without a pkg-config file: a program that is linked with it tells whether it is there.
PACKAGES_zookeeper := openssl
LIBS_zookeeper := -lzookeeper_st
DEBIAN_zookeeper := libzookeeper-st-dev libssl-dev
WIRE_zookeeper := tls
has_zookeeper = $(shell echo 'int main(void) { return zookeeper_process(0, 0) > 0; }' | $(CC) $(CPPFLAGS) $(CFLAGS) \
  -include zookeeper/zookeeper.h -x c -o /dev/null - $(LDFLAGS) $(LIBS_zookeeper) 2>/dev/null && echo yes)

library_there = $(if $(LIBS_$(1)),$(has_$(1)),yes)
packages_there = $(if $(library_there),$(shell $(PKG_CONFIG) --exists $(PACKAGES_$(1)) 2>/dev/null && echo yes))
sources_there = $(wildcard csrc/drivers/$(1)/*.c)
USED := $(foreach name,$(BACKENDS),$(if $(call sources_there,$(name)),$(if $(call packages_there,$(name)),$(name))))
LEFT_OUT := $(filter-out $(USED),$(BACKENDS))
ALL_PACKAGES := $(sort $(foreach name,$(USED),$(PACKAGES_$(name))))
DRIVER_CFLAGS := $(if $(ALL_PACKAGES),$(shell $(PKG_CONFIG) --cflags $(ALL_PACKAGES) 2>/dev/null))
driver_libs = $(if $(PACKAGES_$(1)),$(shell $(PKG_CONFIG) --libs $(PACKAGES_$(1)) 2>/dev/null)) $(LIBS_$(1))

# ---------------------------------------------------------------- flags

WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wsign-conversion -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
  -Wundef -Wvla $(if $(WERROR),-Werror)
KV_CFLAGS := -std=c11 -D_GNU_SOURCE -fPIC -fvisibility=hidden -Icsrc -pthread $(WARNINGS)
# The fuzzer's main() is linked into fuzzers only.
SANITIZE_COMPILE := $(if $(SANITIZE),-fsanitize=$(subst fuzzer,fuzzer-no-link,$(SANITIZE)) -fno-omit-frame-pointer)
SANITIZE_LINK := $(SANITIZE_COMPILE)
ifneq ($(findstring undefined,$(SANITIZE)),)
SANITIZE_COMPILE += -fno-sanitize-recover=undefined
endif
Q := $(if $(V),,@)
say = $(if $(V),:,echo '  $(1)')
COMPILE = $(CC) $(KV_CFLAGS) $(DRIVER_CFLAGS) $(SANITIZE_COMPILE) $(CPPFLAGS) $(CFLAGS) -MMD -MP
# nodelete: the reactor thread may outlive the Lua state that loaded us.
LINK_SHARED = $(CC) -shared -pthread -Wl,-z,nodelete $(SANITIZE_LINK) $(CFLAGS) $(LDFLAGS)
LINK = $(CC) -pthread $(SANITIZE_LINK) $(CFLAGS) $(LDFLAGS)

# ---------------------------------------------------------------- files

CORE_C := $(wildcard csrc/core/*.c csrc/recipes/*.c)
LUA_C := $(filter-out csrc/lua/driver_entry.c csrc/lua/process.c,$(wildcard csrc/lua/*.c))
LUA_SOURCES := $(shell find lua -name '*.lua' 2>/dev/null)
driver_c = $(wildcard csrc/drivers/$(1)/*.c) $(foreach part,$(WIRE_$(1)),$(wildcard csrc/wire/$(part)*.c)) csrc/core/buffer.c
ALL_DRIVER_C := $(sort $(foreach name,$(USED),$(call driver_c,$(name))))

object = $(patsubst %.c,$(OBJ)/%.o,$(1))
lua_object = $(patsubst %.c,$(OBJ)/$(LUA)/%.o,$(1))

CORE_SO := $(OUT)/kv/core.so
PROCESS_SO := $(OUT)/kv/process.so
DRIVER_SO := $(patsubst %,$(OUT)/kv/driver/%.so,$(USED))
LAUNCHER := $(OUT)/bin/kv
COMPLETIONS := $(OUT)/completions/kv.bash $(OUT)/completions/_kv
SUPPORT_SO := $(OUT)/spec/native.so
PROXY := $(BUILD)/support/proxy
SLOW_DISK := $(BUILD)/support/slow_disk.so
STEPPED_CLOCK := $(BUILD)/support/stepped_clock.so
HOST := $(BUILD)/support/host
STATIC := $(BUILD)/libkv-static.a
C_UNITS := $(patsubst spec/c/%.c,$(BUILD)/c/%,$(wildcard spec/c/test_*.c))
FUZZERS := $(patsubst spec/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard spec/fuzz/*.c))

# Recursive builds use all processors unless -j was given.
JOBS := $(if $(findstring j,$(filter-out --%,$(MAKEFLAGS))),,-j$(shell nproc 2>/dev/null || echo 1))
MAKE_ALL = $(MAKE) --no-print-directory $(JOBS)

# No built-in rules: they would try to make the included .d files out of objects.
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all all-luas demo test check torture bench docs rock install install-module uninstall clean c-units support host fuzz fuzzers notes FORCE

all: notes $(CORE_SO) $(PROCESS_SO) $(DRIVER_SO) $(LAUNCHER)

notes:
	@command -v '$(PKG_CONFIG)' >/dev/null || echo "kv: $(PKG_CONFIG) was not found, and nothing can be found without it" >&2
	@$(if $(LUA_INCLUDE),:,echo "kv: lua.h of $(LUA) was not found; scripts/install-packages.sh build installs what is needed" >&2; exit 1)
	@$(foreach name,$(LEFT_OUT),echo "kv: backend $(name) is left out: $(strip $(PACKAGES_$(name)) $(LIBS_$(name))) not found \
	(Debian: $(or $(DEBIAN_$(name)),see the Makefile))" >&2;) $(if $(strip $(USED)),:,echo "kv: no backend can be built" >&2; exit 1)

all-luas:
	@for lua in $(ALL_LUAS); do \
	  if $(MAKE) -s --no-print-directory LUA=$$lua lua-headers-there >/dev/null 2>&1; \
	  then $(MAKE) --no-print-directory LUA=$$lua all || exit 1; \
	  else echo "kv: $$lua is left out: its lua.h was not found"; fi; \
	done

.PHONY: lua-headers-there
lua-headers-there:
	@test -n "$(LUA_INCLUDE)"

# Objects are made again when the flags change.
FLAGS := $(COMPILE)
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(FLAGS)' | cmp -s - $@ || echo '$(FLAGS)' >$@

$(OBJ)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@$(call say,CC $@)
	$(Q)$(COMPILE) -c -o $@ $<

$(OBJ)/$(LUA)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@$(call say,CC $@)
	$(Q)$(COMPILE) $(LUA_INCLUDE) -c -o $@ $<

$(OBJ)/$(LUA)/csrc/lua/driver_entry-%.o: csrc/lua/driver_entry.c $(BUILD)/flags
	@mkdir -p $(@D)
	@$(call say,CC $@)
	$(Q)$(COMPILE) $(LUA_INCLUDE) -DKV_DRIVER_NAME=$* -c -o $@ $<

$(CORE_SO): $(call object,$(CORE_C)) $(call lua_object,$(LUA_C))
	@mkdir -p $(@D)
	@$(call say,LINK $@)
	$(Q)$(LINK_SHARED) -o $@ $^ -lm

# Child processes for the command line; the module itself does without.
$(PROCESS_SO): $(call lua_object,csrc/lua/process.c)
	@mkdir -p $(@D)
	@$(call say,LINK $@)
	$(Q)$(LINK_SHARED) -o $@ $^ -lm

define driver_rule
$(OUT)/kv/driver/$(1).so: $(call object,$(call driver_c,$(1))) $(OBJ)/$(LUA)/csrc/lua/driver_entry-$(1).o
	@mkdir -p $$(@D)
	@$$(call say,LINK $$@)
	$$(Q)$$(LINK_SHARED) -o $$@ $$^ $(call driver_libs,$(1))
endef
$(foreach name,$(USED),$(eval $(call driver_rule,$(name))))

# ---------------------------------------------------------------- the command

# $(1): folder of Lua files, $(2): folder of shared objects
define launcher_text
#!/bin/sh
# kv's command line, run by the Lua that it was built for.
share='$(1)'
lib='$(2)'
exec $(LUA_INTERPRETER) -e "package.path = [==[$$share/?.lua;$$share/?/init.lua;]==] .. package.path
package.cpath = [==[$$lib/?.so;]==] .. package.cpath" "$$share/kv/cli.lua" "$$@"
endef

$(LAUNCHER): export TEXT = $(call launcher_text,$(CURDIR)/lua,$(abspath $(OUT)))
# Made again when the folder has moved.
$(LAUNCHER): FORCE
	@mkdir -p $(@D)
	@printf '%s\n' "$$TEXT" | cmp -s - $@ || { printf '%s\n' "$$TEXT" >$@ && chmod 755 $@; }

# Made from the command line's own tables; sourced where bash and zsh look for them.
$(OUT)/completions/kv.bash: KIND := bash
$(OUT)/completions/_kv: KIND := zsh
$(COMPLETIONS): $(wildcard lua/kv/cli/*.lua)
	@mkdir -p $(@D)
	@$(LUA_INTERPRETER) lua/kv/cli/completion.lua $(KIND) >$@

SHARE := $(PREFIX)/share/lua/$(LUA_VERSION)
LIB := $(PREFIX)/lib/lua/$(LUA_VERSION)

install: export TEXT = $(call launcher_text,$(SHARE),$(LIB))
install: install-module $(COMPLETIONS)
	install -d '$(DESTDIR)$(PREFIX)/bin'
	@printf '%s\n' "$$TEXT" >'$(DESTDIR)$(PREFIX)/bin/kv' && chmod 755 '$(DESTDIR)$(PREFIX)/bin/kv'
	install -D -m 644 $(OUT)/completions/kv.bash '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/kv'
	install -D -m 644 $(OUT)/completions/_kv '$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_kv'

# All but the command; LuaRocks makes that itself.
install-module: all
	install -d '$(DESTDIR)$(LIB)/kv/driver' '$(DESTDIR)$(SHARE)/kv'
	install -m 755 $(CORE_SO) $(PROCESS_SO) '$(DESTDIR)$(LIB)/kv/'
	$(if $(DRIVER_SO),install -m 755 $(DRIVER_SO) '$(DESTDIR)$(LIB)/kv/driver/')
	@cd lua && find . -name '*.lua' | while read -r file; do \
	  install -D -m 644 "$$file" '$(DESTDIR)$(SHARE)'/"$$file" || exit 1; done

# One file that `luarocks install` takes, with the sources in it: build/rocks/kv-scm-1.src.rock.
ROCK := kv-scm-1
rock:
	@rm -rf $(BUILD)/rocks && mkdir -p $(BUILD)/rocks/$(ROCK)
	@cp -r Makefile LICENSE README.md csrc lua $(BUILD)/rocks/$(ROCK)
	@tar -C $(BUILD)/rocks -czf $(BUILD)/rocks/$(ROCK).tar.gz $(ROCK)
	@sed 's|"file://\."|"file://$(abspath $(BUILD))/rocks/$(ROCK).tar.gz"|' $(ROCK).rockspec >$(BUILD)/rocks/$(ROCK).rockspec
	@cd $(BUILD)/rocks && $(LUAROCKS) pack $(ROCK).rockspec

uninstall:
	rm -rf '$(DESTDIR)$(LIB)/kv' '$(DESTDIR)$(SHARE)/kv' '$(DESTDIR)$(PREFIX)/bin/kv' \
	  '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/kv' '$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_kv'

# ---------------------------------------------------------------- tests

# Everything but the Lua binding, for tests in C. An archive, so that each test takes what it needs.
$(STATIC): $(call object,$(sort $(CORE_C) $(ALL_DRIVER_C) $(wildcard csrc/wire/*.c)))
	@$(call say,AR $@)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

STATIC_LIBS := $(foreach name,$(USED),$(call driver_libs,$(name))) -lm

$(BUILD)/c/%: $(OBJ)/spec/c/%.o $(STATIC)
	@mkdir -p $(@D)
	@$(call say,LINK $@)
	$(Q)$(LINK) -o $@ $< $(STATIC) $(STATIC_LIBS)

$(OBJ)/spec/c/%.o: KV_CFLAGS += -Ispec/c
# Its allocators can fail.
$(BUILD)/c/test_local_memory: LDFLAGS += -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc
$(addprefix $(BUILD)/c/,test_etcd2_memory test_consul_memory test_zookeeper_memory): LDFLAGS += -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=free

c-units: $(C_UNITS) $(PROXY)

# What the specs need beside Lua: processes, ports and a proxy that misbehaves.
support: $(SUPPORT_SO) $(PROXY) $(SLOW_DISK) $(STEPPED_CLOCK) $(COMPLETIONS)

$(SUPPORT_SO): $(OBJ)/$(LUA)/spec/support/native.o
	@mkdir -p $(@D)
	@$(call say,LINK $@)
	$(Q)$(LINK_SHARED) -o $@ $^

$(PROXY): $(OBJ)/spec/support/proxy.o
	@mkdir -p $(@D)
	@$(call say,LINK $@)
	$(Q)$(LINK) -o $@ $^

# Preloaded into any program, so without a sanitizer's runtime.
$(SLOW_DISK) $(STEPPED_CLOCK): $(BUILD)/support/%.so: spec/support/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	@$(call say,LINK $@)
	$(Q)$(CC) -shared $(KV_CFLAGS) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $< -ldl

# A Lua interpreter of our own, so that a sanitizer's runtime is there from the start.
LUA_STATIC = $(shell $(PKG_CONFIG) --variable=libdir $(LUA_PACKAGE))/lib$(LUA).a
host: $(HOST)
$(HOST): $(OBJ)/$(LUA)/spec/support/host.o
	@mkdir -p $(@D)
	@$(call say,LINK $@)
	$(Q)$(LINK) -Wl,-E -o $@ $^ -Wl,--whole-archive $(LUA_STATIC) -Wl,--no-whole-archive -lm -ldl

demo:
	@scripts/install-packages.sh build
	@$(MAKE_ALL) all
	@LUA_PATH='$(CURDIR)/lua/?.lua;$(CURDIR)/lua/?/init.lua;;' LUA_CPATH='$(abspath $(OUT))/?.so;;' \
	  $(LUA_INTERPRETER) examples/demo.lua

test:
	@scripts/install-packages.sh build test
	@for lua in $(TEST_LUAS) $(SMOKE_LUAS); do $(MAKE_ALL) LUA=$$lua all support || exit 1; done
	@$(MAKE_ALL) c-units
	@TEST_LUAS='$(TEST_LUAS)' SMOKE_LUAS='$(SMOKE_LUAS)' BUILD='$(BUILD)' scripts/run-tests

check:
	@scripts/install-packages.sh build test check
	@FUZZ_SECONDS='$(FUZZ_SECONDS)' MAKE='$(MAKE)' BUILD='$(BUILD)' scripts/run-checks

torture:
	@scripts/install-packages.sh build test
	@$(MAKE_ALL) LUA=lua5.4 all support
	@BUILD='$(BUILD)' BACKENDS='$(BACKENDS)' LUA=lua5.4 scripts/run-torture

bench:
	@scripts/install-packages.sh build test bench
	@$(MAKE_ALL) LUA=lua5.4 all support
	@$(MAKE_ALL) LUA=luajit all support
	@BUILD='$(BUILD)' scripts/run-bench

docs:
	@scripts/install-packages.sh docs
	@LUA='$(LUA_INTERPRETER)' BUILD='$(BUILD)' scripts/make-docs

fuzz:
	@$(MAKE_ALL) CC=clang SANITIZE=fuzzer,address BUILD=$(BUILD)/fuzzers fuzzers
	@BUILD=$(BUILD)/fuzzers FUZZ_SECONDS='$(FUZZ_SECONDS)' scripts/run-fuzzers

fuzzers: $(FUZZERS)

$(BUILD)/fuzz/%: $(OBJ)/spec/fuzz/%.o $(STATIC)
	@mkdir -p $(@D)
	@$(call say,LINK $@)
	$(Q)$(CC) -pthread -fsanitize=$(SANITIZE) $(CFLAGS) $(LDFLAGS) -o $@ $< $(STATIC) $(STATIC_LIBS)

clean:
	rm -rf build

$(OBJ)/%.d: ;

-include $(shell find $(OBJ) -name '*.d' 2>/dev/null)
