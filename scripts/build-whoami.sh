#!/bin/sh
# Builds the image skep/whoami: one static binary, one layer, as a tar that
# docker load reads, into internal/whoami/bin, where the skep binary embeds it
# from. The same sources give the same image on every machine. `make runtime`
# calls this.
set -eu
cd "$(dirname "$0")/.."
embed=internal/whoami/bin
version=$(cat cmd/whoami/main.go scripts/build-whoami.sh | sha256sum | cut -c1-12)
version="$version-$(go env GOVERSION)-$(go env GOARCH)"
if [ -s "$embed/whoami.tar.gz" ] && [ "$(cat "$embed/version" 2>/dev/null)" = "$version" ]; then
	exit 0
fi
echo "building skep/whoami" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root" "$work/image"
CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags netgo,osusergo -ldflags '-s -w -buildid=' -o "$work/root/whoami" ./cmd/whoami
chmod 755 "$work/root/whoami"

# sametar FILE DIR NAME…: a tar that depends on nothing but its contents
sametar() {
	out=$1 dir=$2
	shift 2
	tar -C "$dir" --format=ustar --sort=name --mtime='2026-01-01 00:00:00Z' --owner=0 --group=0 --numeric-owner -cf "$out" "$@"
}
sametar "$work/image/layer.tar" "$work/root" whoami
diff=$(sha256sum <"$work/image/layer.tar" | cut -d' ' -f1)
# The values of ENV are templates that a node fills in for a task of a service,
# because of the label skep.env.templates.
cat >"$work/image/config.json" <<JSON
{"architecture":"$(go env GOARCH)","os":"linux","created":"2026-01-01T00:00:00Z",
"config":{"Entrypoint":["/whoami"],"ExposedPorts":{"80/tcp":{},"80/udp":{}},"StopSignal":"SIGTERM",
"Env":["SKEP_SERVICE_NAME={{.Service.Name}}","SKEP_TASK_NAME={{.Task.Name}}","SKEP_TASK_SLOT={{.Task.Slot}}","SKEP_NODE_HOSTNAME={{.Node.Hostname}}"],
"Labels":{"skep.env.templates":"true","skep.whoami":"$version"}},
"rootfs":{"type":"layers","diff_ids":["sha256:$diff"]},
"history":[{"created":"2026-01-01T00:00:00Z","created_by":"scripts/build-whoami.sh","comment":"ships with skep"}]}
JSON
printf '[{"Config":"config.json","RepoTags":["skep/whoami:latest"],"Layers":["layer.tar"]}]\n' >"$work/image/manifest.json"
sametar "$work/whoami.tar" "$work/image" layer.tar config.json manifest.json
gzip -9 -n -c "$work/whoami.tar" >"$embed/whoami.tar.gz.new"
mv "$embed/whoami.tar.gz.new" "$embed/whoami.tar.gz"
printf '%s\n' "$version" >"$embed/version"
