# Two commands set everything up: `make demo` and `make test`. The rest is listed by `make help`.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
TESTFLAGS ?=
FRAMES  ?= 100000
SEED    ?= 0

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/sluice: one static binary, no cgo, no clang.
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/sluice ./cmd/sluice

.PHONY: demo
demo: build ## Serve ClusterIPs end to end on this machine, in namespaces of its own (root).
	./bin/sluice demo

.PHONY: test
test: ## Run every unit and lab test with the race detector (root, gcc).
	$(GO) test -race -count=1 -timeout 10m $(TESTFLAGS) ./...

# FUZZ names the packages, FUZZTIME how long each of their targets is given.
FUZZ     ?= $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n1 dirname | sort -u | sed 's,^,./,')
FUZZTIME ?= 10s

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (10s); FUZZ=./nat for those of one package.
	@set -e; for package in $(FUZZ); do for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
		echo "$$package $$target"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
	done; done

.PHONY: differential
differential: ## Compare Sluice with the kernel's own NAT, byte for byte (root; FRAMES=1000000 SEED=1 for more of it).
	$(GO) run ./internal/differential -frames $(FRAMES) -seed $(SEED)

NATLABS := ^Test(FragmentedDatagrams|ShuffledFragments|Hairpin|Collisions|BulkTCP|Checksums)$$

.PHONY: nat-labs
nat-labs: ## Ordinary sockets through ClusterIPs, as many as a claim needs: fragments, hairpins, 1 GiB of TCP, checksums (root).
	@mkdir -p bin
	@SLUICE_FULL=1 $(GO) test -count 1 -timeout 30m -v -run '$(NATLABS)' ./dataplane >bin/nat-labs.txt || { cat bin/nat-labs.txt; exit 1; }
	@sed -n 's/^.*\(nat-labs: \)/\1/p' bin/nat-labs.txt

.PHONY: bench-quick
bench-quick: build kube ## Measure Sluice beside kube-proxy, eBPF and plain routing in three minutes: does it run, are results sane (root).
	./bin/sluice bench --quick --kubernetes bin/kube --output bin/bench-quick.json --html bin/bench-quick.html

.PHONY: bench-ci
bench-ci: build ## The same with those peers that are there: without bin/kube, kube-proxy is absent.
	./bin/sluice bench --quick --kubernetes bin/kube --output bin/bench-quick.json --html bin/bench-quick.html

# The full run goes on where it was stopped. BENCHFLAGS: see `sluice bench --help`.
BENCHFLAGS ?=

# CHAOS is how much of it: short is a minute, long an hour.
CHAOS ?= short
CHAOSFLAGS_short =
CHAOSFLAGS_long  = -conns 1000 -kills 100 -hangs 50 -restarts 20 -changes 1000 -churn 10000

.PHONY: chaos
chaos: build ## Kill, stop, restart and starve a daemon of its devices under traffic (root; CHAOS=long for an hour of it).
	$(GO) run ./internal/chaos -sluice bin/sluice $(CHAOSFLAGS_$(CHAOS)) $(CHAOSFLAGS)

.PHONY: bench
bench: build kube ## The full run, for hours on a machine with nothing else to do (root): report in docs/bench-report.md, bin/bench.html, bin/bench.json.
	./bin/sluice bench --kubernetes bin/kube --output bin/bench.json --resume --html bin/bench.html --markdown docs/bench-report.md $(BENCHFLAGS)

.PHONY: bench-micro
bench-micro: ## Run the micro-benchmarks of every room, for benchstat (TESTFLAGS='-count 10').
	$(GO) test -run '^$$' -bench '$(MICRO)' -benchmem $(TESTFLAGS) ./nat ./flowtable ./service ./xdpprog ./dataplane/... ./bench

# All but the table's peers, which take an hour: make bench-flowtable.
MICRO ?= ^Benchmark([^P]|P[^e]|Pe[^e])

# EVENTS is how many random histories of Services and EndpointSlices are gone through; 100000 take about a minute.
EVENTS ?= 20000

.PHONY: model
model: ## Check the flow table: 10^6 lookups in the kernel (root), 10^4 histories, every interleaving of its protocol; and histories of Services.
	SLUICE_TUPLES=1000000 $(GO) test -count 1 -run '^TestOracle$$' ./xdpprog
	SLUICE_HISTORIES=10000 $(GO) test -count 1 -run '^TestLinearizable' ./flowtable
	SLUICE_EVENT_HISTORIES=$(EVENTS) $(GO) test -count 1 -v -run '^TestHistories$$' ./service
	$(GO) run ./flowtable/model

# Passes, not -count: the figures of one table are then taken at different times, each beside those of the others.
PASSES ?= 3
BENCHSTAT := golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

.PHONY: bench-flowtable
bench-flowtable: ## Run the flow table beside a Go map, sync.Map, xsync and a BPF hash map (root, 10 GiB, 15 min).
	@mkdir -p bin
	$(GO) test -c -o bin/flowtable.test ./flowtable
	{ echo "kernel: $$(uname -r)"; echo "go: $$($(GO) env GOVERSION)"; grep -m1 MemTotal /proc/meminfo; } >bin/flowtable.txt
	for pass in $$(seq $(PASSES)); do for flows in 1k 64k 1M 4M; do \
		echo "pass $$pass of $(PASSES), $$flows flows"; \
		bin/flowtable.test -test.run '^$$' -test.bench "^BenchmarkPeers$$/flows=$$flows$$" -test.benchtime 0.3s -test.timeout 1h $(TESTFLAGS) \
			>>bin/flowtable.txt || { tail bin/flowtable.txt; exit 1; }; \
	done; done
	$(GO) run $(BENCHSTAT) -row /flows,/op -col /impl bin/flowtable.txt

# The real Kubernetes components, for e2e and contract: built once (eight minutes on two cores), then only if their versions change.
KUBE_VERSION := v1.35.4
KUBE_LDFLAGS := -s -w -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION) -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=35

.PHONY: kube
kube: bin/kube/built tables ## Build kube-apiserver, kube-controller-manager, kube-proxy and etcd into bin/kube.

bin/kube/built: e2e/components/go.mod e2e/components/go.sum
	mkdir -p bin/kube
	cd e2e/components && CGO_ENABLED=0 $(GO) build -ldflags '$(KUBE_LDFLAGS)' -o ../../bin/kube/ \
		k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kube-proxy
	cd e2e/components && CGO_ENABLED=0 $(GO) build -ldflags '-s -w' -o ../../bin/kube/etcd go.etcd.io/etcd/server/v3
	touch $@

# What kube-proxy calls.
.PHONY: tables
tables:
	@command -v nft >/dev/null && command -v iptables >/dev/null || { \
		echo "installing nftables and iptables (Debian packages)"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nftables iptables >/dev/null; }

DATAPLANE ?= front
RUN       ?=

.PHONY: e2e
e2e: build kube ## Run upstream's end-to-end tests of ClusterIPs against a real control plane (root); DATAPLANE=nftables RUN=UDP for others.
	cd e2e && CGO_ENABLED=0 $(GO) run ./cmd/e2e -dataplane '$(DATAPLANE)' -run '$(RUN)'

HISTORIES ?= 8
JUDGES    ?= nftables,iptables

.PHONY: contract
contract: build kube ## Hold Sluice to what kube-proxy does, through random histories (root); HISTORIES=100 SEED=1 DATAPLANE=alone.
	cd e2e && CGO_ENABLED=0 $(GO) run ./cmd/contract -dataplane '$(DATAPLANE)' -judges '$(JUDGES)' -histories $(HISTORIES) -seed $(SEED)

.PHONY: lint
lint: ## gofmt, go vet, staticcheck.
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "gofmt would change: $$out"; exit 1; }
	$(GO) vet ./...
	cd e2e && $(GO) vet ./...
	$(GO) tool staticcheck ./...
	cd e2e && $(GO) tool -modfile=../go.mod staticcheck ./...

.PHONY: generate
generate: clang ## Compile the BPF programs and write their Go bindings again (needs clang).
	$(GO) generate ./xdpprog ./bench

.PHONY: check-generated
check-generated: generate ## Prove that the committed BPF programs are what their sources compile to.
	git diff --exit-code -- xdpprog bench
	@test -z "$$(git status --porcelain -- xdpprog bench)" || { git status --short -- xdpprog bench; exit 1; }

.PHONY: clang
clang:
	@command -v clang-14 >/dev/null && command -v llvm-strip-14 >/dev/null || { \
		echo "installing clang-14 and llvm-14 (Debian packages)"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends clang-14 llvm-14 >/dev/null; }

.PHONY: fmt
fmt: ## Format Go and C sources.
	gofmt -w $$(git ls-files '*.go')
	@command -v clang-format-14 >/dev/null && clang-format-14 -i $$(git ls-files '*.c' '*.h') || echo "clang-format-14 is not installed: C sources left alone"

.PHONY: clean
clean: ## Remove what the build made.
	rm -rf bin
