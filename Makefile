# Berth's build. `make help` lists the targets. Everything that is built lands in
# bin/, everything that is fetched in .cache/; both may be removed at any time.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VERSION ?= 0.1.0
export CGO_ENABLED := 0
COMPOSE := github.com/docker/compose/v5
LDFLAGS := -s -w -X github.com/berthvm/berth/host/version.Version=$(VERSION)

# On a Mac berth calls Virtualization.framework, which takes cgo, and an entitlement
# in a signature; an ad hoc one will do.
ifeq ($(shell uname -s),Darwin)
BERTH_CGO := CGO_ENABLED=1
SIGN      := codesign --force --sign - --entitlements cmd/berth/vz.entitlements bin/berth
else
SIGN      := true
endif

# Tools that checks and tests use, each built once from the module proxy.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
REGISTRY    := github.com/distribution/distribution/v3/cmd/registry@v3.1.2
BUILDX      := github.com/docker/buildx

PLATFORMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
# What is built for hosts that are not Linux.
ON_HOSTS  := ./cmd/berth ./cmd/berth-tray ./host/... ./vm/... ./guest/wire/...
IN_VM     := -exec "$(CURDIR)/scripts/invm"

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install what the build needs from Debian's packages (asks for root only if something is missing)
	@scripts/deps

.PHONY: build
build: deps ## build the programs and the guest image into bin/
	@scripts/step "building bin/berth"
	@$(BERTH_CGO) go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/berth ./cmd/berth-tray
	@$(SIGN)
	@scripts/step "building bin/berth-build"
	@go build -trimpath -ldflags "$(LDFLAGS) -X $(COMPOSE)/internal.Version=$$(go list -m -f '{{.Version}}' $(COMPOSE))" -o bin/berth-build ./cmd/berth-build
	@scripts/step "building the guest image"
	@go run ./images/build -o bin/image -version '$(VERSION)'

.PHONY: dist
dist: deps ## packages for every system into bin/dist (DIST_PLATFORMS=linux/amd64,... for some)
	@scripts/step "building packages"
	@go run ./scripts/dist -version '$(VERSION)' -o bin/dist -platforms '$(DIST_PLATFORMS)'
	@scripts/step "looking at the packages"
	@BERTH_DIST='$(CURDIR)/bin/dist' BERTH_DIST_VERSION='$(VERSION)' BERTH_DIST_PLATFORMS='$(DIST_PLATFORMS)' go test -count=1 -run TestMade ./scripts/dist

.PHONY: demo
demo: build ## build, boot the VM and run a container
	@scripts/demo

.PHONY: test
test: build check test-unit test-vm test-e2e ## all tests: what CI runs (under 30 minutes cold on two cores)

.PHONY: test-unit
test-unit: deps registry ## tests that need no VM
	@scripts/step "unit tests"
	@go test ./...

.PHONY: test-vm
test-vm: build ## tests that run inside a VM, and the contract suite against the real driver
	@scripts/step "tests on a guest kernel"
	@go test $(IN_VM) ./guest/container/... ./guest/network/... ./guest/oci/...
	@scripts/step "contract suite on QEMU, boot of the guest image"
	@BERTH_VM=1 go test -p 1 ./vm/qemu/... ./images/...

.PHONY: test-e2e
test-e2e: build registry docker ## the core end-to-end suite, in one VM
	@scripts/step "end-to-end suite"
	@BERTH_VM=1 go test -count=1 -timeout 20m -v ./host/e2e | scripts/testlog

.PHONY: check
check: tools typecheck-darwin ## vet and build for every platform, staticcheck, formatting, module tidiness
	@scripts/step "formatting"
	@test -z "$$(gofmt -l cmd guest host images scripts vm | tee /dev/stderr)"
	@scripts/step "go.mod"
	@go mod tidy -diff
	@# Compiling what berth-build imports takes minutes for each platform: elsewhere the type-checker looks at it.
	@for p in $(PLATFORMS); do scripts/step "vet and build $$p"; (export GOOS=$${p%/*} GOARCH=$${p#*/}; go vet $$(go list ./... | grep -v /cmd/berth-build$$); go build ./cmd/berth ./cmd/berth-tray); done
	@go vet ./cmd/berth-build
	@scripts/step "type-check of berth-build"
	@go run ./scripts/typecheck -platforms "$$(tr ' ' , <<<'$(PLATFORMS)')" ./cmd/berth-build
	@scripts/step "staticcheck"
	@bin/tools/staticcheck -checks inherit,-ST1005 ./... # docker's messages are capitalized
	@for os in darwin windows; do scripts/step "staticcheck $$os"; GOOS=$$os bin/tools/staticcheck -checks inherit,-ST1005 $(ON_HOSTS); done

.PHONY: typecheck-darwin
typecheck-darwin: ## type-check what is built with cgo on a Mac, on any host
	@scripts/step "type-check of macOS with cgo"
	@go run ./scripts/typecheck -cgo ./cmd/berth ./cmd/berth-tray ./vm/vz

.PHONY: tools
tools: bin/tools/staticcheck

bin/tools/staticcheck: Makefile
	@scripts/step "building staticcheck"
	@GOBIN=$(CURDIR)/bin/tools go install $(STATICCHECK)

.PHONY: registry
registry: bin/tools/registry

bin/tools/registry: Makefile
	@scripts/step "building the test registry"
	@GOBIN=$(CURDIR)/bin/tools go install $(REGISTRY)

.PHONY: docker
docker: bin/tools/docker

bin/tools/docker: scripts/docker
	@scripts/step "unpacking Debian's docker client"
	@scripts/docker bin/tools

.PHONY: compose
compose: ## compose's own program, for the long tests
	@scripts/step "building compose's own program"
	@go build -o bin/tools/docker-compose $(COMPOSE)/cmd

.PHONY: buildx
buildx: bin/tools/docker-buildx ## buildx's own program, for the long tests

# In a module of its own: it has drivers that berth leaves out, with what they need.
bin/tools/docker-buildx: go.mod
	@scripts/step "building buildx's own program"
	@version=$$(go list -m -f '{{.Version}}' $(BUILDX)) && GOBIN=$(CURDIR)/bin/tools go install -ldflags "-X $(BUILDX)/version.Version=$$version" $(BUILDX)/cmd/buildx@$$version
	@mv bin/tools/buildx $@

.PHONY: testimages
testimages: ## build the images of the long tests from Debian's packages (as root)
	@scripts/step "building test images"
	@go run ./scripts/testimages

.PHONY: bench
bench: build docker ## the figures Berth promises, each as a ratio within one run
	@BERTH_VM=1 go test -count=1 -timeout 60m -run '^$$' -bench . -benchtime 1x -p 1 ./vm/qemu ./host/e2e

FUZZTIME ?= 20s
.PHONY: fuzz
fuzz: ## every fuzzer for FUZZTIME each
	@scripts/fuzz $(FUZZTIME)

.PHONY: test-full
test-full: test-full-race test-full-oci test-full-e2e test-full-arm64 test-full-tray test-full-fuzz test-full-windows ## what is longer than `make test`; each part can be run alone, and again

.PHONY: test-full-race test-full-oci test-full-e2e test-full-arm64 test-full-tray test-full-fuzz test-full-windows
test-full-race: registry
	@scripts/deps gcc libc6-dev fish zsh
	@scripts/once $@ env CGO_ENABLED=1 go test -race ./cmd/... ./guest/... ./host/... ./images/... ./vm/...
test-full-oci: deps
	@scripts/once $@ guest/oci/suite
test-full-e2e: build registry docker compose buildx testimages
	@scripts/deps samba
	@scripts/once $@ env BERTH_VM=1 BERTH_FULL=1 go test -count=1 -timeout 80m -v ./host/e2e
test-full-arm64:
	@scripts/deps qemu-system-arm
	@scripts/step "building the guest image for arm64"
	@go run ./images/build -arch arm64 -o bin/image-arm64 -version '$(VERSION)'
	@scripts/once $@ env BERTH_VM=1 BERTH_FULL=1 go test -count=1 -timeout 30m -v -run TestArm64 ./images
test-full-tray: build # the icon on a real desktop; its pictures are in bin/tray
	@scripts/deps xvfb openbox xfce4-panel dbus librsvg2-common imagemagick xdotool
	@scripts/once $@ env BERTH_VM=1 BERTH_TRAY=1 go test -count=1 -timeout 20m -v -run TestTray ./host/e2e
test-full-fuzz: deps
	@scripts/once $@ scripts/fuzz $(FUZZTIME)

test-full-windows: deps
	@scripts/once $@ scripts/check-windows

.PHONY: check-windows
check-windows: deps ## what runs on Windows, under Wine: tests, the call path to Hyper-V, the command line
	@scripts/check-windows

.PHONY: clean
clean: ## remove bin/ (machines and downloads stay)
	rm -rf bin
