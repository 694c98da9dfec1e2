# `make demo` and `make test` are all that a newcomer needs: each installs what is missing, builds, and runs.

SHELL := /bin/bash
# What must be root runs through this; everything is built by whoever calls.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
AS_ROOT := $(if $(SUDO),--config 'target."cfg(unix)".runner = "$(SUDO)"')
LAGAN := target/release/lagan
# The last build whose records and volumes are there to be taken over.
BEFORE ?= bac3b8f
# Another Debian release in the virtual machine has to be installed first.
VM_GUEST := $(if $(filter-out bookworm,$(GUEST)),guest)
# A Go that .ci/prepare had to fetch comes first.
export PATH := $(CURDIR)/target/go/bin:$(CURDIR)/target/tools:$(PATH):/usr/sbin:/sbin

# No target is a file.
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*/\1/p' Makefile)

help: ## Say what there is
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build the one binary, target/release/lagan
	@.ci/prepare build
	cargo build --release --locked

demo: build ## Show the main job on a throw-away pool
	$(SUDO) $(LAGAN) demo

image: build ## Make the container image, an OCI archive below target/image, without a registry
	@.ci/prepare image
	deploy/image/build $$(dpkg --print-architecture) $(LAGAN) target/image

image-arm64: ## The same for arm64, its binary built here by a compiler for it
	@.ci/prepare build image cross
	deploy/image/cross
	deploy/image/build arm64 target/cross/target/aarch64-unknown-linux-gnu/release/lagan target/image

test-image: build ## Make it twice and compare; run what is in it on a root that cannot be written, as root
	@.ci/prepare image
	$(SUDO) deploy/image/check $(LAGAN)

test: ## Run every test
	@.ci/prepare build test vm
	@$(MAKE) --no-print-directory lint unit chart kernel sanity test-vm

lint: ## Formatting, lints, documentation
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

unit: ## Tests that need no root: values, logic, the whole API over a modelled kernel
	cargo test --locked --lib
	cargo test --locked --doc
	cargo test --locked --test api --test architecture --test proto --test cli --test cluster --test kubelet --test deploy --test fuzz --test simulate
	cargo run --locked --example locks

# More than the usual number is worth a build that takes longer and runs quicker.
simulate: ## Schedules of a modelled cluster, drawn by lot, against a reference: SEEDS=200000 FROM=20000; SEED=7 shows one of them
	SEEDS="$(SEEDS)" FROM="$(FROM)" SEED="$(SEED)" cargo test --locked $(if $(SEEDS),--profile fuzz) --test simulate -- --nocapture $(if $(SEED),schedules)

# What the tests read lies outside their module, where a cached result would not see a change. vet would also look into all of
# Kubernetes below them, for minutes.
chart: ## The Helm chart: linted, rendered, read as the API server would; schema, manifest, alerts, dashboard
	cd deploy/kubernetes/check && go test -count=1 -vet=off ./...

manifest: ## Make deploy/kubernetes/lagan.yaml from the chart
	cd deploy/kubernetes/check && go run . >../lagan.yaml.new && mv ../lagan.yaml.new ../lagan.yaml

kernel: ## Tests on real loop devices and filesystems, and the calls of each orchestrator replayed, as root
	cargo test $(AS_ROOT) --locked --test superblock --test contracts --test kernel --test replays --test faults

faults: ## Each error at each system call, SIGKILL before and after each, and two faults at once, as root: SEED=1 COUNT=3000 OPERATIONS="stage hide"
	@.ci/prepare build test
	FAULTS=all cargo test $(AS_ROOT) --locked --test faults -- --nocapture --skip torture::

torture: build ## SIGKILL of the release build without end under eight callers, beside a neighbour that verifies, as root: MINUTES=10 SEED=1
	@.ci/prepare test bench
	LAGAN=$(CURDIR)/$(LAGAN) FOR_SECONDS=$$((60 * $(or $(MINUTES),10))) cargo test $(AS_ROOT) --locked --test faults torture:: -- --nocapture

sanity: sanity-programs ## The real csi-sanity, twelve runs, four of them through a router, as root
	cargo build --release --locked
	$(SUDO) csi-sanity/run
	LAGAN=$(CURDIR)/$(LAGAN) cargo test --locked --test faults binary::

sanity-programs:
	cd csi-sanity && go build -o ../target/ github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity
	cd csi-sanity && go test -c -o ../target/csi-sanity-extra .

test-vm: sanity-programs ## Tests on LVM and device-mapper in a virtual machine, as root: FULL=1, GUEST=trixie, FSTYPES="ext4 xfs btrfs"
	@.ci/prepare vm $(VM_GUEST)
	cargo build --release --locked
	$(SUDO) env VM_TIMEOUT=$${VM_TIMEOUT:-4500} tests/vm/run env FULL="$(FULL)" FSTYPES="$(FSTYPES)" tests/vm/all $$(tests/vm/programs contracts thin kernel power)

test-upgrade: ## From an earlier build to this one and back, under a volume in use, as root: BEFORE=commit
	@.ci/prepare build test
	rm -rf target/before/source && mkdir -p target/before/source
	git archive $(BEFORE) | tar -x -C target/before/source
	cargo build --locked --manifest-path target/before/source/Cargo.toml --target-dir target/before/build
	LAGAN_BEFORE=$(CURDIR)/target/before/build/debug/lagan cargo test $(AS_ROOT) --locked --test upgrade

test-nomad: ## The real Nomad, server and two clients, built from Go modules at first, as root
	@.ci/prepare build nomad
	cargo build --release --locked
	$(SUDO) env PATH="$$PATH" tests/nomad/run

test-kubernetes: image ## Lagan in a real Kubernetes of two nodes on this machine, as root; the first time half an hour of building: CASES="10-volumes"
	@.ci/prepare kubernetes
	tests/kubernetes/build
	$(SUDO) tests/kubernetes/run

soak: build ## The release daemon for HOURS=1, or MINUTES: lives of volumes by the thousand and a fault every 30 seconds, as root
	$(SUDO) unshare --mount env LAGAN="$(LAGAN)" HOURS="$(HOURS)" MINUTES="$(MINUTES)" VOLUMES="$(VOLUMES)" CALLERS="$(CALLERS)" \
		"$$(cargo test --locked --no-run --test soak --message-format json | sed -n 's/.*"executable":"\([^"]*soak-[^"]*\)".*/\1/p' | tail -1)"

mutants: ## Break the driver on purpose, once for each patch of tests/mutants: a test must see it: ONLY="locks-*"
	@.ci/prepare build test
	tests/mutants/run $(ONLY)

fuzz: ## Hostile calls of every service and hostile bytes for every parser: REQUESTS=10000000, SEED=1
	@.ci/prepare build
	FUZZ_SEED=$(or $(SEED),1) FUZZ_INPUTS=$$(($(or $(REQUESTS),10000000) / 10)) FUZZ_SECONDS=20 \
		cargo test --profile fuzz --locked --lib hostile -- --nocapture
	FUZZ_SEED=$(or $(SEED),1) FUZZ_REQUESTS=$(or $(REQUESTS),10000000) cargo test --profile fuzz --locked --test fuzz -- --nocapture

bench: build ## Measure on an xfs of its own beside floors and baselines, and hold it to the goals, as root: ARGUMENTS="--scenario life", HOSTPATH=program
	@.ci/prepare bench
	$(SUDO) env PATH="$$PATH" HOSTPATH="$(HOSTPATH)" benches/run $(ARGUMENTS)

bench-router: ## Measure what a router adds to a call
	@.ci/prepare build
	cargo bench --locked --bench router

bench-vm: ## Measure a thin pool beside the commands of LVM, in the virtual machine, as root
	@.ci/prepare build vm bench
	$(SUDO) env VM_TIMEOUT=$${VM_TIMEOUT:-7200} tests/vm/run "$$(cargo bench --locked --no-run --bench thin --message-format json | \
		sed -n 's/.*"executable":"\([^"]*thin-[^"]*\)".*/\1/p' | tail -1)"

torture-vm: sanity-programs ## The same at every point: POINTS=all, or so many; COMMANDS=500 of LVM beside; in pieces: ONLY="thin kills::" OPERATIONS="clone grow"
	@.ci/prepare build test vm $(VM_GUEST)
	cargo build --release --locked
	$(SUDO) env VM_TIMEOUT=$${VM_TIMEOUT:-28800} tests/vm/run env FULL=1 POINTS=$${POINTS:-all} COMMANDS=$${COMMANDS:-500} \
		ONLY="$(ONLY)" OPERATIONS="$(OPERATIONS)" FSTYPES="$(or $(FSTYPES),ext4 xfs btrfs)" tests/vm/all $$(tests/vm/programs contracts thin kernel power)

audit: ## Licences, bans and sources of everything that is linked (compiles cargo-deny first)
	@.ci/prepare build
	command -v cargo-deny >/dev/null || cargo install --locked cargo-deny@0.20.2
	cargo deny --locked check licenses bans sources

clean: ## Remove what was built
	cargo clean
