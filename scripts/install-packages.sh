#!/bin/sh
# Installs what kv needs from Debian, by groups: build, test, openresty, bench, check, docs.
#
#   scripts/install-packages.sh build test
#
# Says what it will install, and installs only what is missing (apt-get, as root or by sudo). When nothing is
# missing it ends at once. "a|b" in a group is satisfied by either; the first is installed when there is none.
set -eu

packages_of() {
  case $1 in
    build) echo gcc libc6-dev make 'pkg-config|pkgconf' lua5.4 liblua5.4-dev lua-cjson liblmdb-dev libnghttp2-dev libssl-dev \
      libcurl4-openssl-dev libjansson-dev libzookeeper-st-dev ;;
    # luajit2 rather than luajit: it is the one that nginx's Lua module needs, and they exclude each other.
    test) echo lua5.1 liblua5.1-0-dev 'luajit2|luajit' 'libluajit2-5.1-dev|libluajit-5.1-dev' lua-busted etcd-server \
      etcd-client openssl curl lua-cqueues lua-luv lua-copas lua-socket \
      nginx-light libnginx-mod-http-lua lua-resty-core zookeeper libzookeeper-java default-jre-headless \
      python3-kazoo libcurator-recipes-java libbsh-java \
      zsh lua5.3 liblua5.3-dev lua5.2 liblua5.2-dev luarocks chromium chromium-driver lua-ldoc lua-discount ;;
    openresty) echo 'luajit2|luajit' 'libluajit2-5.1-dev|libluajit-5.1-dev' nginx-light libnginx-mod-http-lua lua-resty-core ;;
    bench) echo golang-go golang-etcd-server-dev golang-github-docker-libkv-dev nghttp2-client wrk ;;
    check) echo clang libclang-rt-dev lua-check shellcheck cppcheck valgrind lua5.2 liblua5.2-dev lua5.3 liblua5.3-dev luarocks \
      util-linux ;;
    docs) echo lua-ldoc lua-discount ;;
    *) return 1 ;;
  esac
}

is_installed() {
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing_of() {
  for wanted in $(packages_of "$1"); do
    there=no
    for name in $(echo "$wanted" | tr '|' ' '); do
      if is_installed "$name"; then there=yes; fi
    done
    if [ $there = no ]; then echo "${wanted%%|*}"; fi
  done
}

if [ $# -eq 0 ]; then
  echo "usage: $0 build|test|openresty|bench|check|docs..." >&2
  exit 2
fi
for group in "$@"; do
  if ! packages_of "$group" >/dev/null; then
    echo "$0: there is no group '$group' (build, test, openresty, bench, check, docs)" >&2
    exit 2
  fi
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "kv: this is not Debian; please install what corresponds to these packages by hand:" >&2
  for group in "$@"; do echo "  $group: $(packages_of "$group")" >&2; done
  exit 0
fi

missing=
for group in "$@"; do
  missing="$missing $(missing_of "$group")"
done
missing=$(echo "$missing" | tr ' ' '\n' | sed '/^$/d' | sort -u | tr '\n' ' ')
if [ -z "$missing" ]; then exit 0; fi

echo "kv: will install from Debian: $missing"
as_root=
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "kv: neither root nor sudo; please run: apt-get install $missing" >&2
    exit 1
  fi
  as_root=sudo
fi

# Servers that come along (etcd) are for tests, which start their own: RUNLEVEL=1 keeps packages from starting them.
install_missing() {
  # shellcheck disable=SC2086
  $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends $missing
}

# The package lists are fetched when they do not know a package, or are too old for what they name to be there still.
# shellcheck disable=SC2086
if ! apt-get install -s --no-install-recommends $missing >/dev/null 2>&1 || ! install_missing; then
  $as_root apt-get update
  install_missing
fi
