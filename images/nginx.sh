# nginx: serves a page on port 80 in the foreground, logs to stdout and stderr.
fetch bookworm nginx nginx-common busybox-static
put /usr/sbin/nginx /etc/nginx/mime.types /usr/share/nginx/html
tools sh cat ls ps sleep hostname wget ip nslookup ping kill env
mkdir -p "$dst/var/lib/nginx" "$dst/var/log/nginx" "$dst/etc/nginx/conf.d"
ln -s /dev/stdout "$dst/var/log/nginx/access.log"
ln -s /dev/stderr "$dst/var/log/nginx/error.log"
cat >"$dst/etc/nginx/nginx.conf" <<'CONF'
user www-data;
worker_processes 1;
error_log /var/log/nginx/error.log notice;
pid /run/nginx.pid;
events {
	worker_connections 1024;
}
http {
	include /etc/nginx/mime.types;
	default_type application/octet-stream;
	access_log /var/log/nginx/access.log;
	sendfile on;
	keepalive_timeout 65;
	include /etc/nginx/conf.d/*.conf;
}
CONF
cat >"$dst/etc/nginx/conf.d/default.conf" <<'CONF'
server {
	listen 80;
	server_name localhost;
	location / {
		root /usr/share/nginx/html;
		index index.html;
	}
}
CONF
tags="nginx:latest"
config='{"Cmd":["nginx","-g","daemon off;"],"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGQUIT",
"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}'
