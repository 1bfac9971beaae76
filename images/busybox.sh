# busybox: the static build, every applet.
fetch bookworm busybox-static
put /bin/busybox
for applet in $("$dst/bin/busybox" --list); do
	[ "$applet" = busybox ] || ln -f "$dst/usr/bin/busybox" "$dst/usr/bin/$applet"
done
tags="busybox:latest busybox:1"
config='{"Cmd":["sh"],"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}'
