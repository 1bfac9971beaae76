#!/usr/bin/env bash
# A swarm of three managers and two workers on this one machine, with a service
# published on port 8080. $SKEP_MACHINES names the fleet.
set -euo pipefail
cd "$(dirname "$0")/.."
skep=$PWD/bin/skep
managers=(manager1 manager2 manager3)
workers=(worker1 worker2)

if [ "$(id -u)" != 0 ]; then
	echo "The demo makes network namespaces and containers: run it as root." >&2
	exit 1
fi
if [ -n "$("$skep" machine ls -q)" ]; then
	echo "There are machines already (see: bin/skep machine ls). Take them away first: make demo-down" >&2
	exit 1
fi

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
on() { local m=$1; shift; DOCKER_HOST=unix://$SKEP_MACHINES/$m/skep.sock "$skep" "$@"; }

say "Five hosts"
"$skep" machine create "${managers[@]}" "${workers[@]}"

say "One swarm"
on manager1 swarm init --advertise-addr eth0
lead=$("$skep" machine ip manager1):2377
for m in manager2 manager3; do on $m swarm join --advertise-addr eth0 --token "$(on manager1 swarm join-token -q manager)" "$lead"; done
for m in "${workers[@]}"; do on $m swarm join --advertise-addr eth0 --token "$(on manager1 swarm join-token -q worker)" "$lead"; done
on manager1 node ls

say "One service: five replicas, published on port 8080 of every host"
on manager1 service create --name web --no-resolve-image --replicas 5 --publish 8080:80 skep/whoami
on manager1 service ps web

say "It answers on all five machines, with the client's own address"
for m in "${managers[@]}" "${workers[@]}"; do
	url=http://$("$skep" machine ip $m):8080
	for try in $(seq 50); do
		answer=$(curl -sf --max-time 2 "$url") && break
		[ "$try" != 50 ] || { echo "$url does not answer" >&2; exit 1; }
		sleep 0.1
	done
	printf '%-9s %-24s ' "$m" "$url"
	awk -F': ' '/^(Task|Node|Client)/ {printf "%s %s  ", tolower($1), $2}' <<<"$answer"
	echo
done

cat <<TEXT

Try next (both skep and the real docker command understand this):

  export PATH=$PWD/bin:\$PATH${FLEET_HINT:-}
  eval \$(skep machine env manager1)
  skep node ls
  skep service scale web=10
  skep service update --env-add COLOUR=blue web
  skep machine kill worker1          # a power cut: its tasks run elsewhere
  skep service ps web
  skep machine start worker1         # back, and Ready
  skep machine kill manager1         # the leader; then ask manager2
  curl http://$("$skep" machine ip worker2):8080

Take it all away again with: make demo-down
TEXT
