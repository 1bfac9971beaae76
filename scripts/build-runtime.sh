#!/bin/sh
# Builds runc and the shim from pinned modules into bin/runtime, copies Debian's
# static tini there, and puts them, compressed, into internal/runtime/bin, where
# the skep binary embeds them from. What is already there for the same sources is
# left alone. `make build` calls this.
set -eu
cd "$(dirname "$0")/.."
out=bin/runtime
embed=internal/runtime/bin
mkdir -p "$out" "$embed"

# build NAME KEY COMMAND…: runs the command, which leaves $out/NAME, unless it
# was last run for the same KEY.
build() {
	name=$1 key=$2
	shift 2
	if [ -s "$embed/$name.gz" ] && [ -x "$out/$name" ] && [ "$(cat "$out/$name.key" 2>/dev/null)" = "$key" ]; then
		return 0
	fi
	echo "building $name" >&2
	"$@"
	gzip -9 -n -c "$out/$name" >"$embed/$name.gz.new"
	mv "$embed/$name.gz.new" "$embed/$name.gz"
	printf '%s' "$key" >"$out/$name.key"
}

# runc is built from a copy of its pinned module with our patch on it (see
# docs/decisions/0014), with runc's own requirements.
build_runc() {
	src=$PWD/.cache/runc
	patch=$PWD/third_party/runc/seccomp-program.patch
	to=$PWD/$out/runc
	dir=$(cd third_party/runc && go mod download github.com/opencontainers/runc &&
		go list -m -f '{{.Dir}}' github.com/opencontainers/runc)
	rm -rf "$src"
	mkdir -p .cache
	cp -R "$dir" "$src"
	chmod -R u+w "$src"
	(cd "$src" && GIT_CEILING_DIRECTORIES=$(dirname "$src") git apply "$patch" &&
		grep -q SKEP_SECCOMP_CACHE libcontainer/seccomp_program_linux.go &&
		CGO_ENABLED=1 go build -trimpath \
			-tags 'seccomp urfave_cli_no_docs netgo osusergo' \
			-ldflags '-s -w -extldflags "-static"' \
			-o "$to" .)
	rm -rf "$src"
}

build_shim() {
	CGO_ENABLED=0 go build -trimpath -tags no_grpc -ldflags '-s -w' -o "$out/shim" ./internal/runtime/shim
}

# The init of --init is tini as Debian builds it (see docs/decisions/0053).
tini=/usr/bin/tini-static
build_init() {
	cp "$tini" "$out/init"
	"$out/init" --version | sed -n 's/^tini version \([^ ]*\).*/\1/p' >"$embed/init.version"
	[ -s "$embed/init.version" ]
}

sum() { cat "$@" | sha256sum | cut -d' ' -f1; }
if ! [ -x "$tini" ]; then
	echo "--init needs a static tini at $tini (Debian: tini)" >&2
	exit 1
fi
gover=$(go env GOVERSION)
if ! [ -f /usr/include/seccomp.h ]; then
	echo "runc needs libseccomp's headers and static library (Debian: libseccomp-dev)" >&2
	exit 1
fi
build runc "$gover $(sum third_party/runc/go.mod third_party/runc/go.sum third_party/runc/*.patch scripts/build-runtime.sh)" build_runc
build shim "$gover $(sum go.mod scripts/build-runtime.sh internal/runtime/shim/*.go internal/runtime/stdio/*.go)" build_shim
build init "$(sum "$tini" scripts/build-runtime.sh)" build_init
