# Sallyport: make help

GO       ?= go
VERSION  := $(shell git describe --tags --exact-match 2>/dev/null || git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
PROGRAMS := sallyport sally sallyctl
FUZZTIME ?= 20s
FUZZ     ?= .
LISTEN   ?= 127.0.0.1:8443
SOAK     ?= 10m
CRASH    ?= 5m

.DEFAULT_GOAL := help

.PHONY: build run test check bench bench-quick fuzz soak crash gen fmt lint help peers

build: ## build bin/sallyport, bin/sally, bin/sallyctl (static, reproducible)
	@mkdir -p bin
	@set -e; for p in $(PROGRAMS); do \
		echo "build bin/$$p ($(VERSION))"; \
		CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/$$p ./cmd/$$p; \
	done
	@ln -sf sally bin/tsh

run: build ## start the demo on LISTEN (127.0.0.1:8443) and print what to try
	@bin/sallyport demo --listen=$(LISTEN)

peers: ## get the programs that tests talk to: Debian's (OpenSSH, PostgreSQL; needs root), and Kubernetes, which is built once
	@tools/peers/install
	@tools/peers/kubernetes

test: ## all tests, with the race detector and real peers ("make check" vets them)
	@tools/peers/install
	$(GO) test -race -vet=off -shuffle=on -timeout 30m ./...

check: ## what CI runs, besides the tests: format, vet, import policy, generated files
	@tools/check

bench: ## measure, about two and a half hours on a quiet machine; keeps raw results in bench/results and writes BENCHMARKS.md
	@tools/peers/install
	$(GO) run ./bench

bench-quick: ## the same with small loads, under 10 minutes once the peers are built: tries the harness, the figures mean little
	@tools/peers/install
	$(GO) run ./bench -quick

fuzz: ## each fuzz target for FUZZTIME (20s); FUZZ=expression picks some
	@tools/fuzz $(FUZZTIME) '$(FUZZ)'

soak: ## load a gateway with everything right and wrong for SOAK (10m), and see that it is as before
	$(GO) test ./test/soak -count=1 -v -timeout 2h -soak $(SOAK)

crash: ## kill auth, gateway and agent at random for CRASH (5m) under load, and compare what was acknowledged with what is there
	$(GO) test ./test/crash -count=1 -v -timeout 2h -crash $(CRASH)

gen: ## generated files: API code, docs of commands, configuration and API
	$(GO) run ./tools/gen
	$(GO) run ./tools/docs
	$(GO) test -count=1 ./controlplane/api -run TestDocs -update

fmt: ## format
	gofmt -w $$(git ls-files '*.go' | grep -v '^wire/')

help: ## this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
