# Bare `make` explains itself; every target works from a clean clone.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X github.com/skep-dev/skep/internal/version.Version=$(VERSION) -X github.com/skep-dev/skep/internal/version.Commit=$(COMMIT)
IMAGES  ?= nginx busybox redis-7.0 redis-8.0
FLEET   ?= /var/lib/skep-machines

.PHONY: help
help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: deps runtime ## Build bin/skep, with everything it needs inside
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/skep ./cmd/skep
	@ls -lh bin/skep | awk '{print "built bin/skep, " $$5}'

.PHONY: deps
deps: ## Install the packages a build needs, if they are missing
	@scripts/deps.sh

.PHONY: runtime
runtime: deps ## Build the runtime parts that are embedded: shim, runc, whoami
	@scripts/build-runtime.sh
	@scripts/build-whoami.sh

.PHONY: demo
demo: build ## Start a swarm of five hosts here, with a service on it
	@SKEP_MACHINES=$(FLEET) scripts/demo.sh

.PHONY: demo-down
demo-down: ## Take the demo away again
	@[ ! -x bin/skep ] || SKEP_MACHINES=$(FLEET) bin/skep machine rm -f --all

.PHONY: check
check: deps runtime ## Formatting, vet, staticcheck, house rules, unit tests (-race)
	@scripts/check.sh

.PHONY: test
test: build ## What CI runs: check, engine and network on real parts, several hosts
	@scripts/deps.sh test
	@scripts/test.sh

.PHONY: transcripts
transcripts: build images ## Docker's transcripts and every flag, typed at several hosts
	@go test -count=1 -timeout 40m ./test/transcripts/...

.PHONY: images
images: ## Build the images of real software that the tests use
	@scripts/deps.sh test
	@images/build.sh $(IMAGES)

.PHONY: bench
bench: ## List the measurements; make bench NAME=scheduler runs one
	@bench/run.sh $(NAME)

.PHONY: clean
clean: ## Remove what builds made
	rm -rf bin .cache
