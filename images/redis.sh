# redis-7.0 and redis-8.0, each from the Debian release that has it.
case $version in
6.0) suite=bullseye ;;
7.0) suite=bookworm ;;
8.0) suite=trixie ;;
*)
	echo "there is no redis $version; there are 6.0, 7.0 and 8.0" >&2
	exit 2
	;;
esac
fetch "$suite" redis-server redis-tools busybox-static
put /usr/bin/redis-server /usr/bin/redis-cli
tools sh cat ls ps sleep hostname ip nslookup ping kill env
mkdir "$dst/data"
tags="redis:$version"
config='{"Cmd":["redis-server","--protected-mode","no","--bind","0.0.0.0"],"WorkingDir":"/data","Volumes":{"/data":{}},"ExposedPorts":{"6379/tcp":{}},
"Env":["LC_ALL=C","PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}'
