# Everything works from a fresh clone: what is missing is installed (apt) or built first.
# Nothing is built inside the checkout: see hack/env.sh for where, hack/cargo.sh for how clones share it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Test programs of the binary crate with a target of their own: `make test-model` runs fs/atoll-fs/tests/model.rs.
suites := $(patsubst fs/atoll-fs/tests/%.rs,%,$(wildcard fs/atoll-fs/tests/*.rs))

.PHONY: help
help: ## Show this help
	@echo 'Atoll: a replicated file system for each Kubernetes volume.'
	@echo
	@sed -nE 's/^([a-z-]+): .*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-22s %s\n", $$1, $$2 }'
	@for suite in $(suites); do \
	  printf '  make %-15s %s\n' "test-$$suite" "$$(sed -nE '1s|^//! (.*)|\1|p' fs/atoll-fs/tests/$$suite.rs)"; \
	done
	@. hack/env.sh; echo; echo "Built files: $$CARGO_TARGET_DIR (CARGO_TARGET_DIR); RocksDB: $$ATOLL_CACHE (ATOLL_CACHE)"

.PHONY: setup
setup: ## Install the Debian packages that building and testing need
	@hack/setup.sh

.PHONY: build
build: ## Build the programs as they are shipped
	@hack/setup.sh build
	@hack/ship.sh

.PHONY: verify
verify: ## Format, lints, documentation, the rules of the house, dependencies, what is generated
	@hack/setup.sh verify
	@hack/verify.sh

.PHONY: fix
fix: ## Format, and apply what the lints suggest
	@hack/setup.sh build
	hack/cargo.sh clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

.PHONY: test
test: ## Run every test (.ci/run does the same)
	@hack/test.sh

.PHONY: chart
chart: ## Prove the Helm chart: the same objects as the kustomize bases, each platform's values, refusals
	@hack/setup.sh build
	@hack/chart.sh

.PHONY: alerts
alerts: ## Test the alerts: each fires on what it is for, and is quiet otherwise (builds promtool once per machine)
	@hack/alerts.sh

.PHONY: demo
demo: ## Mount a file system with 3 copies, fill it, kill it, compare every byte
	@hack/setup.sh
	@hack/ship.sh >/dev/null
	@hack/demo.sh

.PHONY: csi-sanity
csi-sanity: ## Run the CSI project's own tests against the driver, with real clusters and mounts
	@hack/setup.sh
	@hack/cargo.sh build --workspace --bins --examples
	@hack/csi-sanity.sh

.PHONY: bench
bench: ## Measure Atoll beside other file systems (ARGS=--quick: short; ARGS='--against COMMIT': what has changed)
	@hack/setup.sh
	@hack/bench.sh --build $(ARGS)
	@hack/bench.sh $(ARGS)

.PHONY: bench-failover
bench-failover: ## Measure how long applications wait when a server dies or stops (ATOLL_KILLS=20 of each kind)
	@hack/setup.sh
	@hack/cargo.sh build --workspace --bins
	@hack/cargo.sh test --workspace --bench failover

.PHONY: bench-growth
bench-growth: ## Measure what operations cost with more and more files (ARGS='10000 10000000': other numbers of them)
	@hack/setup.sh
	@hack/bench/growth.sh $(ARGS)

.PHONY: demo-kube
demo-kube: ## The same through Kubernetes: install, a PVC, pods on three nodes, pods killed, every byte compared
	@hack/setup.sh
	@hack/ship.sh >/dev/null
	@hack/cargo.sh build --workspace --bin atoll-provisioner
	@hack/demo-kube.sh

.PHONY: e2e
e2e: ## Prove the promises that need a whole Kubernetes (ARGS=--short, ARGS=--list, ARGS=NAME)
	@hack/setup.sh
	@case '$(ARGS)' in *--short* | *--list*) ;; *) hack/ship.sh --next >/dev/null ;; esac
	@hack/ship.sh >/dev/null
	@hack/cargo.sh build --workspace --bin atoll-provisioner --bin atoll-e2e
	@hack/e2e.sh $(ARGS)

.PHONY: kube-up
kube-up: ## Raise a Kubernetes of several nodes on this machine (NODES=3, ATOLL_KUBE_NAME=atoll)
	@hack/setup.sh kube
	@hack/cargo.sh build --workspace --bin atoll-provisioner
	@NODES=$(or $(NODES),3) hack/kube/up

.PHONY: kube-down
kube-down: ## Remove it, with everything that belongs to it
	@hack/kube/down

.PHONY: kube-status
kube-status: ## Show its processes, nodes, pods and volumes
	@hack/kube/status

.PHONY: images
images: ## Build the images of Atoll and of the tests, load them into the cluster if it runs
	@hack/setup.sh kube
	@hack/ship.sh >/dev/null
	@hack/images/check
	@hack/kube/load --build

.PHONY: kube-test
kube-test: ## Prove the test cluster, on one of its own (ARGS=--short: under 2 minutes)
	@hack/setup.sh
	@hack/cargo.sh build --workspace --bin atoll-provisioner
	@hack/kube/test $(ARGS)

.PHONY: kube-leaks
kube-leaks: ## Show that a test cluster leaves nothing, wherever it is interrupted (ARGS=--shared: on a busy machine)
	@hack/setup.sh kube
	@hack/cargo.sh build --workspace --bin atoll-provisioner
	@hack/kube/leaks $(ARGS)

# As part of all tests a short run; asked for alone, the long one.
test-powercut: export ATOLL_CUTS ?= 50
test-crash: export ATOLL_KILLS ?= 200

.PHONY: sim
sim: ## Run simulated worlds with their own time (SEEDS=1000, FIRST=1: the seed of the first)
	@hack/setup.sh build
	@hack/cargo.sh build --workspace --bin atoll-sim
	@. hack/env.sh; exec "$$CARGO_TARGET_DIR/debug/atoll-sim" --seeds $(or $(SEEDS),1000) --first $(or $(FIRST),1) $(ARGS)

.PHONY: sim-faults
sim-faults: ## Show that the simulation finds planted faults: each one, in at most SEEDS=10000 worlds
	@hack/setup.sh build
	@hack/cargo.sh build --workspace --bin atoll-sim --features atoll-sim/planted-faults
	@. hack/env.sh; exec "$$CARGO_TARGET_DIR/debug/atoll-sim" --planted-faults --seeds $(or $(SEEDS),10000) $(ARGS)

.PHONY: fuzz
fuzz: ## Feed what reads bytes from outside with bytes that are wrong, a minute each (TARGETS='frame record', SECONDS=60)
	@hack/setup.sh build
	@ATOLL_FUZZ_SECONDS=$(or $(SECONDS),60) hack/fuzz.sh $(TARGETS)

.PHONY: miri
miri: ## Run under Miri what it can of the tests of structures in shared memory and on the kernel's interface
	@hack/miri.sh

.PHONY: test-operator-scale
test-operator-scale: ## Count what an operator of many clusters at rest asks of the API server (CLUSTERS=1000)
	@hack/setup.sh build
	@ATOLL_CLUSTERS=$(or $(CLUSTERS),1000) hack/cargo.sh test --workspace --bin atoll-operator -- --nocapture clusters_at_rest

.PHONY: test-mount-kills
test-mount-kills: ## Kill clients, mount hosts, holders and node plugins, KILLS=100 times, while programs use a mount
	@hack/setup.sh build
	@hack/cargo.sh build --workspace --bins
	@ATOLL_KILLS=$(or $(KILLS),100) hack/cargo.sh test --workspace --test random_kills -- --nocapture
	@ATOLL_CALLS=$(or $(CALLS),1000) hack/cargo.sh test --workspace --test random_calls -- --nocapture

.PHONY: test-operator-kills
test-operator-kills: ## Kill the operator at random points of a volume's life, KILLS=50 times in each of LIVES=20
	@hack/setup.sh build
	@ATOLL_OPERATOR_KILLS=$(or $(KILLS),50) ATOLL_OPERATOR_LIVES=$(or $(LIVES),20) \
	  hack/cargo.sh test --workspace --bin atoll-operator -- --nocapture killed_at_random

.PHONY: fsx
fsx: ## Run fsx on a mount in all its modes (installs it into the cache; takes long)
	@hack/setup.sh
	@hack/ship.sh >/dev/null
	@hack/fsx.sh

.PHONY: stress
stress: ## Run stress-ng's file system stressors on a mount (installs Debian's package; takes long)
	@hack/setup.sh
	@hack/ship.sh >/dev/null
	@hack/stress.sh

.PHONY: $(addprefix test-,$(suites))
$(addprefix test-,$(suites)): test-%:
	@hack/test.sh --test $*
