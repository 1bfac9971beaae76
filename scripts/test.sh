#!/usr/bin/env bash
# What CI runs: the checks, the rooms on real parts, several hosts. Whatever the
# tests leave on the machine fails the run.
set -euo pipefail
cd "$(dirname "$0")/.."

inventory() { # what tests could leave behind, one thing a line
	ip -o link | awk -F': ' '{sub(/@.*/, "", $2); print "link " $2}'
	ls /run/netns 2>/dev/null | sed 's/^/netns /'
	awk '{print "mount " $2}' /proc/self/mounts
	find /sys/fs/cgroup -mindepth 2 -type d 2>/dev/null | sed 's/^/cgroup /'
	pgrep -a -f 'skep|containerd-shim' | grep -v "test.sh\|make\|pgrep" | awk '{print "process " $2, $3, $4}' || true
	ls -d /var/lib/skep-test-* /run/skep* 2>/dev/null | sed 's/^/folder /' || true
}

# What an earlier run that was killed may have left.
for fleet in /var/lib/skep-test-*; do
	[ -d "$fleet" ] && SKEP_MACHINES=$fleet bin/skep machine rm -f --all
done
before=$(inventory | sort)

scripts/check.sh
make --no-print-directory images
go test -p 1 -count=1 -timeout 20m ./cmd/... ./internal/{engine,runtime,image,network,volume,machine,daemon,whoami,httpapi,cli}/...
go test -p 1 -count=1 -timeout 40m ./test/...

left=$(comm -13 <(echo "$before") <(inventory | sort))
if [ -n "$left" ]; then
	printf 'The tests left this on the machine:\n%s\n' "$left" >&2
	exit 1
fi
echo "Nothing left on the machine."
