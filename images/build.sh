#!/bin/bash
# build.sh NAME…: makes images of real software out of Debian's packages, without
# running their scripts, as tars that `docker load` reads: .cache/images/NAME.tar
# (or below $SKEP_CACHE). What was built by the same scripts is left alone.
#
#   images/build.sh nginx busybox redis-7.0 redis-8.0
#
# Each NAME is described by images/NAME.sh, or for NAME-VERSION by NAME.sh given
# VERSION. Packages come from where the system's own apt sources say.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${SKEP_CACHE:-$here/../.cache}
mkdir -p "$cache/images" "$cache/apt"
cache=$(cd "$cache" && pwd)

if [ $# = 0 ]; then
	sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
	exit 2
fi

# mirror prints the URI of the system's first Debian source.
mirror() {
	{
		cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p'
		cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | sed -n 's/^deb *\(\[[^]]*\]\)\{0,1\} *\([^ ]*\) .* main.*/\2/p'
	} | head -1
}

# fetch SUITE PACKAGE…: unpacks the packages and all they depend on into $src.
fetch() {
	local suite=$1 dir apt deb
	shift
	dir=$cache/apt/$suite
	mkdir -p "$dir/lists/partial" "$dir/archives/partial"
	: >"$dir/status"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main" >"$dir/sources.list"
	apt=(apt-get -qq -o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/nonexistent
		-o "Dir::State::lists=$dir/lists" -o "Dir::State::status=$dir/status" -o "Dir::State::extended_states=$dir/extended"
		-o "Dir::Cache=$dir" -o "Dir::Cache::archives=$dir/archives" -o APT::Sandbox::User=root
		-o APT::Install-Recommends=false -o Acquire::Languages=none -o Binary::apt-get::APT::Keep-Downloaded-Packages=true)
	if [ -z "$(find "$dir/lists" -name '*Packages*' -mtime -7 | head -1)" ]; then
		"${apt[@]}" update >&2
	fi
	if ! "${apt[@]}" -y -d install "$@" >"$dir/log" 2>&1; then
		cat "$dir/log" >&2
		return 1
	fi
	# Newer suites ship /lib and the like only as links into /usr.
	mkdir -p "$src"/usr/{bin,sbin,lib,lib64}
	for l in bin sbin lib lib64; do ln -s "usr/$l" "$src/$l"; done
	"${apt[@]}" -s -y install "$@" | sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1 \2/p' | while read -r name version; do
		deb=$(ls "$dir/archives/${name%%:*}_${version//:/%3a}"_*.deb)
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$src" --keep-directory-symlink --no-same-owner \
			--exclude='./usr/share/doc*' --exclude='./usr/share/man*' --exclude='./usr/share/locale*' --exclude='./usr/share/info*'
	done
}

# put PATH…: copies files, folders and links from $src to $dst, with every
# library that they need.
put() {
	local p s t l d
	for p; do
		s=$src$p
		if [ -L "$s" ]; then
			[ -L "$dst$p" ] && continue
			mkdir -p "$dst${p%/*}"
			cp -P "$s" "$dst$p"
			t=$(readlink "$s")
			case $t in
			/*) put "$t" ;;
			*) put "$(realpath -ms "${p%/*}/$t")" ;;
			esac
		elif [ -d "$s" ]; then
			mkdir -p "$dst$p"
			for l in "$s"/* "$s"/.[!.]*; do
				if [ -e "$l" ] || [ -L "$l" ]; then put "${l#"$src"}"; fi
			done
		elif [ -e "$s" ]; then
			[ -e "$dst$p" ] && continue
			mkdir -p "$dst${p%/*}"
			cp -p "$s" "$dst$p"
			[ "$(head -c4 "$s" | tail -c3)" = ELF ] || continue
			for l in $(readelf -dl "$s" 2>/dev/null | sed -n 's/.*NEEDED.*\[\(.*\)\].*/\1/p; s/.*interpreter: \(.*\)\]/\1/p'); do
				case $l in
				/*) put "$l" ;;
				*)
					d=$(library "$l")
					put "$d"
					;;
				esac
			done
		else
			echo "no $p in the packages" >&2
			return 1
		fi
	done
}

# library NAME prints the path of a shared library.
library() {
	local d
	for d in "$src"/usr/lib/*-linux-gnu "$src/usr/lib" "$src"/usr/lib/*-linux-gnu/*; do
		if [ -e "$d/$1" ]; then
			echo "${d#"$src"}/$1"
			return
		fi
	done
	echo "no library $1 in the packages" >&2
	return 1
}

# tools APPLET…: adds busybox under the given names, so that health checks and
# exec have a shell.
tools() {
	put /bin/busybox
	local a
	for a; do ln -sf busybox "$dst/usr/bin/$a"; done
}

# skeleton makes what every image has.
skeleton() {
	mkdir -p "$dst"/usr/{bin,sbin,lib,lib64} "$dst"/{etc,run,tmp,root,var/log,var/lib}
	for l in bin sbin lib lib64; do ln -s "usr/$l" "$dst/$l"; done
	chmod 1777 "$dst/tmp"
	printf '%s\n' root:x:0:0:root:/root:/bin/sh www-data:x:33:33::/var/www:/bin/false redis:x:999:999::/data:/bin/false nobody:x:65534:65534::/:/bin/false >"$dst/etc/passwd"
	printf '%s\n' root:x:0: www-data:x:33: redis:x:999: nogroup:x:65534: >"$dst/etc/group"
	echo 'hosts: files dns' >"$dst/etc/nsswitch.conf"
}

for image; do
	script=$here/$image.sh version=
	if [ ! -f "$script" ]; then
		version=${image##*-}
		script=$here/${image%-*}.sh
	fi
	if [ ! -f "$script" ]; then
		echo "there is no image $image; images/*.sh describe what there is" >&2
		exit 2
	fi
	out=$cache/images/$image.tar
	key=$(cat "$0" "$script" "$here/../scripts/pack-image.sh" | sha256sum | cut -d' ' -f1)
	if [ -s "$out" ] && [ "$(cat "$out.key" 2>/dev/null)" = "$key" ]; then
		continue
	fi
	echo "building image $image" >&2
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	src=$work/src dst=$work/dst
	mkdir "$src" "$dst"
	chmod 755 "$dst"
	skeleton
	# shellcheck disable=SC1090
	. "$script" # fills $dst, sets config and tags
	"$here/../scripts/pack-image.sh" "$dst" "$out" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(dpkg --print-architecture)" "$config" $tags
	echo "$key" >"$out.key"
	rm -rf "$work"
done
