#!/usr/bin/env bash
# Formatting, vet, staticcheck, the house's rules and the unit tests.
set -euo pipefail
cd "$(dirname "$0")/.."

unformatted=$(gofmt -l $(git ls-files '*.go'))
if [ -n "$unformatted" ]; then
	printf 'Not gofmt-ed:\n%s\n' "$unformatted" >&2
	exit 1
fi
go vet ./...
go tool staticcheck ./...
go test .

# With -race: the rooms that are pure logic or talk over memory. The rooms on
# real parts are tested by scripts/test.sh; compiling containerd twice buys little.
rooms=$(go list ./internal/... | grep -Ev '/internal/(engine|runtime|image|network|volume|machine|daemon|whoami|httpapi|cli)(/|$)')
go test -race -timeout 10m $rooms
