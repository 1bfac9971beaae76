#!/bin/sh
# Builds the image skep/whoami: one static binary, one layer, as a tar that
# docker load reads, into internal/whoami/bin, where the skep binary embeds it
# from. The same sources give the same image on every machine. `make runtime`
# calls this.
set -eu
cd "$(dirname "$0")/.."
embed=internal/whoami/bin
version=$(cat cmd/whoami/main.go scripts/build-whoami.sh scripts/pack-image.sh | sha256sum | cut -c1-12)
version="$version-$(go env GOVERSION)-$(go env GOARCH)"
if [ -s "$embed/whoami.tar.gz" ] && [ "$(cat "$embed/version" 2>/dev/null)" = "$version" ]; then
	exit 0
fi
echo "building skep/whoami" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
chmod 755 "$work/root"
CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags netgo,osusergo -ldflags '-s -w -buildid=' -o "$work/root/whoami" ./cmd/whoami
chmod 755 "$work/root/whoami"
# The values of ENV are templates that a node fills in for a task of a service,
# because of the label skep.env.templates.
scripts/pack-image.sh "$work/root" "$work/whoami.tar" 2026-01-01T00:00:00Z "$(go env GOARCH)" '{
"Entrypoint":["/whoami"],"ExposedPorts":{"80/tcp":{},"80/udp":{}},"StopSignal":"SIGTERM",
"Env":["SKEP_SERVICE_NAME={{.Service.Name}}","SKEP_TASK_NAME={{.Task.Name}}","SKEP_TASK_SLOT={{.Task.Slot}}","SKEP_NODE_HOSTNAME={{.Node.Hostname}}"],
"Labels":{"skep.env.templates":"true","skep.whoami":"'"$version"'"}}' skep/whoami:latest
gzip -9 -n -c "$work/whoami.tar" >"$embed/whoami.tar.gz.new"
mv "$embed/whoami.tar.gz.new" "$embed/whoami.tar.gz"
printf '%s\n' "$version" >"$embed/version"
