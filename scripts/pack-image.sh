#!/bin/sh
# pack-image.sh ROOT OUT CREATED ARCH CONFIG TAG…: packs the directory ROOT as an
# image of one layer into OUT, a tar that docker load reads. CONFIG is the JSON
# of the image's "config", CREATED an RFC 3339 moment. The same contents give
# the same bytes.
set -eu
root=$1 out=$2 created=$3 arch=$4 config=$5
shift 5
by=$(basename "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pack() { # pack FILE DIR NAME…
	file=$1 dir=$2
	shift 2
	tar -C "$dir" --format=gnu --sort=name --mtime="$created" --owner=0 --group=0 --numeric-owner -cf "$file" "$@"
}

pack "$work/layer.tar" "$root" .
diff=$(sha256sum <"$work/layer.tar" | cut -d' ' -f1)
cat >"$work/config.json" <<JSON
{"architecture":"$arch","os":"linux","created":"$created","config":$config,
"rootfs":{"type":"layers","diff_ids":["sha256:$diff"]},
"history":[{"created":"$created","created_by":"$by","comment":"packed from files"}]}
JSON
tags=
for t in "$@"; do tags="$tags${tags:+,}\"$t\""; done
printf '[{"Config":"config.json","RepoTags":[%s],"Layers":["layer.tar"]}]\n' "$tags" >"$work/manifest.json"
pack "$work/image.tar" "$work" layer.tar config.json manifest.json
mkdir -p "$(dirname "$out")"
mv "$work/image.tar" "$out.new"
mv "$out.new" "$out"
