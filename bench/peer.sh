#!/usr/bin/env bash
# peer.sh DIR: unpacks Docker from Debian's packages into DIR. Nothing is
# installed, so nothing is started. DIR/dockerd, DIR/docker and DIR/ctr start its
# programs with its own parts, whatever else the system has.
set -euo pipefail
dir=$1
[ -x "$dir/dockerd" ] && exit 0

echo "Fetching Docker from Debian's packages" >&2
rm -rf "$dir"
mkdir -p "$dir/deb"
cd "$dir/deb"
get() { apt-get -qq -o APT::Sandbox::User=root download docker.io containerd runc tini libdevmapper1.02.1; }
get 2>/dev/null || { apt-get -qq update && get; }
for p in *.deb; do dpkg-deb -x "$p" "$dir/root"; done
rm -rf "$dir/deb"
lib=$(echo "$dir"/root/lib/*-linux-gnu)
if LD_LIBRARY_PATH=$lib ldd "$dir/root/usr/sbin/dockerd" | grep 'not found' >&2; then
	echo "Docker's packages need these libraries; install them with apt-get." >&2
	exit 1
fi
for program in ctr docker dockerd; do
	cat >"$dir/$program.new" <<SH
#!/bin/sh
export PATH=$dir/root/usr/sbin:$dir/root/usr/bin:\$PATH LD_LIBRARY_PATH=$lib
exec $program "\$@"
SH
	chmod 755 "$dir/$program.new"
	mv "$dir/$program.new" "$dir/$program"
done
