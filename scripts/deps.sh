#!/bin/sh
# Installs what a build (and, with "test", the tests) needs of Debian's packages;
# does nothing, and needs no network, when all of it is there.
set -eu

need=
want() { # want PACKAGE COMMAND-OR-FILE
	command -v "$2" >/dev/null 2>&1 || [ -e "$2" ] || need="$need $1"
}

want gcc gcc
want libc6-dev /usr/include/stdio.h
want libseccomp-dev /usr/include/seccomp.h
want pkg-config pkg-config
want tini /usr/bin/tini-static
want ca-certificates /etc/ssl/certs/ca-certificates.crt
if [ "${1:-}" = test ]; then
	want busybox-static busybox
	want docker.io docker
	want binutils readelf
	want docker-registry docker-registry
	want curl curl
	want git git
fi
[ -n "$need" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "These packages are missing; run as root, or install them:$need" >&2
	exit 1
fi
echo "Installing:$need"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $need >/dev/null
