#!/usr/bin/env bash
# run.sh [NAME]: lists the measurements, or runs one. Called by `make bench`.
#
# The peer is Docker from Debian's packages, unpacked below .cache/bench and
# never installed or started on this system: it runs only inside the bench's own
# hosts. These are read from the environment:
#   SKEP=FILE    measure this binary instead of a fresh build
#   PEER=no      measure skep alone
#   RUNS=N       instead of the measurement's own number of runs
#   SETTLE=SEC   how long to wait at most for a quiet machine before each run (3)
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/.cache/bench
mkdir -p "$work"
go build -o "$work/bench" ./bench
[ -n "${1:-}" ] || exec "$work/bench"

if [ "$(id -u)" != 0 ]; then
	echo "The bench makes network namespaces and containers: run it as root." >&2
	exit 1
fi
if [ -z "${SKEP:-}" ]; then
	make -s build >&2
	SKEP=$PWD/bin/skep
fi
scripts/deps.sh test

# The image of the tasks: busybox, and the bench's own end inside a container.
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/inside" ./bench/inside
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
mkdir -p "$root/bin" "$root/etc" "$root/tmp"
cp "$work/inside" "$root/bin/bench"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh sleep true; do ln "$root/bin/busybox" "$root/bin/$applet"; done
echo root:x:0:0:root:/:/bin/sh >"$root/etc/passwd"
# A registry that refuses at once: Docker asks it for each task it starts.
scripts/pack-image.sh "$root" "$work/image.tar" 2026-01-01T00:00:00Z "$(dpkg --print-architecture)" \
	'{"Cmd":["sleep","3600"],"Env":["PATH=/bin"],"StopSignal":"SIGKILL"}' 127.0.0.1:1/bench:1

[ "${PEER:-}" = no ] || bench/peer.sh "$work/peer"
SKEP=$SKEP "$work/bench" "$1"
