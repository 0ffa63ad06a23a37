# Sendense. `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO     ?= go
TOOL   := $(GO) tool -modfile=internal/tools/go.mod
PKGS   := ./...
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# What the product, its tests and the demo need of Debian 12.
DEBIAN := gcc libc6-dev make pkg-config libnbd-dev libnbd-bin python3-libnbd \
	qemu-utils qemu-system-x86 qemu-block-extra seabios ipxe-qemu ovmf \
	nbdkit nbd-client fio libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients \
	mmdebstrap e2fsprogs util-linux lvm2 zstd xz-utils bzip2 lz4 lzop cpio b3sum \
	fdisk gdisk mdadm cryptsetup-bin thin-provisioning-tools xfsprogs btrfs-progs dosfstools exfatprogs ntfs-3g wimtools \
	fuse3 xorriso genisoimage isolinux udftools mtools python3-hivex libarchive-tools unzip curl

# What only the peers of the benchmark need. The appliance of libguestfs boots a
# kernel: that of the machine, if it has one.
BENCH_DEBIAN := guestfish $(if $(wildcard /boot/vmlinuz-*),,linux-image-cloud-amd64)

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# $(call install,PACKAGES) installs what is missing of Debian packages.
install = missing=""; for p in $(1); do \
	  dpkg-query -W -f='$${db:Status-Status}\n' $$p 2>/dev/null | grep -qx installed || missing+=" $$p"; done; \
	if [ -n "$$missing" ]; then \
	  sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$sudo apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	fi

deps: ## Install the Debian packages that building, testing and the demo need
	@$(call install,$(DEBIAN))

bench-deps: deps
	@$(call install,$(BENCH_DEBIAN))

build: deps ## Build the three binaries into bin/
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/ ./cmd/...

test: deps lint ## Lint, then every test with the real components
	cd third_party/libnbd && $(GO) vet ./... && $(GO) test -timeout 5m ./...
	$(GO) test -timeout 60m $(PKGS)

race: deps ## Every test under the race detector, the server's with one and four threads
	$(GO) test -race -timeout 40m $(PKGS)
	GOMAXPROCS=1 $(GO) test -race -count=1 -timeout 20m ./nbdserver/...
	GOMAXPROCS=4 $(GO) test -race -count=1 -timeout 20m ./nbdserver/...

lint: deps ## gofmt, vet, staticcheck, revive, errcheck, forbidigo
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt: $$bad"; exit 1; }
	$(GO) vet $(PKGS)
	$(TOOL) staticcheck $(PKGS)
	$(TOOL) revive -config .revive.toml -set_exit_status $(PKGS)
	$(TOOL) errcheck -ignoretests -exclude .errcheck $(PKGS)
	$(TOOL) forbidigo -tests=false '^time\.Now$$' -- $$($(GO) list $(PKGS) | grep -vE '/internal/(bench|demo)$$')

FUZZTIME ?= 30s
fuzz: ## Run every fuzz target for FUZZTIME (30s)
	@for pkg in $$($(GO) list $(PKGS)); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $$pkg; done; done

bench: build bench-deps ## Measure beside qemu-nbd, nbdkit, libguestfs and others; prints the table of docs/PERFORMANCE.md
	$(GO) run ./internal/bench

demo: build ## Boot a real guest, protect it while it runs, verify and export every point
	$(GO) run ./internal/demo

clean: ## Remove what was built, the cached guest included
	rm -rf bin build

.PHONY: help deps bench-deps build test race lint fuzz bench demo clean
