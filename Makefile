# Gatehouse: `make run` boots the image, `make test` proves it. Both install what they lack.
GO      ?= go
BUILD   := build
export CGO_ENABLED ?= 0
# keys are erased from the stack and the heap behind their use (docs/decisions/0039)
export GOEXPERIMENT ?= runtimesecret
# what machines the image is for: amd64, arm64, arm64-cloud
ARCH    ?= amd64

# command-or-file=package, looked up before anything is installed
BUILD_NEEDS := git=git dpkg=dpkg node=nodejs npm=npm
ARM_NEEDS := qemu-system-aarch64=qemu-system-arm /usr/share/AAVMF/AAVMF_CODE.fd=qemu-efi-aarch64
RUN_NEEDS := $(BUILD_NEEDS) qemu-system-x86_64=qemu-system-x86 swtpm=swtpm swtpm_ioctl=swtpm-tools /usr/share/OVMF/OVMF_CODE_4M.fd=ovmf
CHECK_NEEDS := $(RUN_NEEDS) gcc=gcc /usr/include/stdio.h=libc6-dev ip=iproute2 nft=nftables ping=iputils-ping \
	qemu-img=qemu-utils sbverify=sbsigntool fsck.fat=dosfstools mtype=mtools \
	/usr/sbin/sshd=openssh-server /usr/lib/openssh/sftp-server=openssh-sftp-server
TEST_NEEDS := $(CHECK_NEEDS) asciinema=asciinema script=bsdutils avahi-daemon=avahi-daemon unshare=util-linux mke2fs=e2fsprogs chromium=chromium \
	/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf=fonts-dejavu-core rsync=rsync ssh=openssh-client bmaptool=bmap-tools

# what needs no machine of its own; the rest lies under tests/
UNIT = $$($(GO) list ./... | grep -v /tests/) ./tests/arch/...
# those of them that check runs in part: shorter, or not under the race detector
LONG = $$(grep -rlE 'testing\.Short\(\)|^//go:build !race' --include='*_test.go' cmd appliance tpm netfilter image firmware | xargs -n1 dirname | sort -u | sed 's,^,./,')

# xterm.js for the console's pages, bundled from a lock file; go build works without it
XTERM := appliance/console/xterm

.PHONY: run test check soak image bench fmt lock clean tools

run: ## build the image and boot it in QEMU with UEFI and a software TPM (ARCH=arm64-cloud: for that)
	@sh .ci/need $(RUN_NEEDS) $(if $(filter arm64%,$(ARCH)),$(ARM_NEEDS))
	@$(MAKE) --no-print-directory image
	@$(BUILD)/gatehouse run --arch $(ARCH)

image: tools ## build the tool, the image and its forms under build/ (ARCH=arm64: for that)
	@sh .ci/need $(BUILD_NEEDS)
	$(BUILD)/gatehouse image build --arch $(ARCH)

tools: $(XTERM)/dist/xterm.js ## build the operator's tool, and the box's program for a host
	@mkdir -p $(BUILD)
	$(GO) build -trimpath -o $(BUILD)/gatehouse ./cmd/gatehouse
	$(GO) build -trimpath -ldflags '-s -w' -o $(BUILD)/gatehoused ./cmd/gatehoused

$(XTERM)/dist/xterm.js: $(addprefix $(XTERM)/,package-lock.json package.json build.mjs entry.js styles.js)
	@sh .ci/need node=nodejs npm=npm
	cd $(XTERM) && npm ci --prefer-offline --ignore-scripts --no-audit --no-fund && node build.mjs

# The race detector waits a second at the end of each process, for races that
# come late; a tenth is enough, and there are hundreds of processes.
check: $(XTERM)/dist/xterm.js ## format, vet, staticcheck, architecture, short unit tests with the race detector
	@sh .ci/need $(CHECK_NEEDS)
	@test -z "$$(gofmt -l cmd appliance tpm netfilter image firmware tests 2>/dev/null)" || { gofmt -l cmd appliance tpm netfilter image firmware tests; echo "run make fmt"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags alone ./appliance/relay
	$(GO) test -count=1 -run ForARM64 ./tests/arch
	$(GO) tool staticcheck ./...
	CGO_ENABLED=1 GORACE=atexit_sleep_ms=100 $(GO) test -race -short -timeout 20m $(UNIT)

test: ## every test, on the real thing
	@sh .ci/need $(TEST_NEEDS)
	$(MAKE) check
	$(GO) test -count=1 -timeout 10m $(LONG)
	$(GO) test -count=1 -timeout 10m -tags alone ./appliance/relay
	$(MAKE) image
	$(GO) test -count=1 -timeout 20m -p 1 ./tests/script/... ./tests/netns/...
	$(GO) test -count=1 -timeout 30m -p 2 ./tests/hosted/... ./tests/web/...
	$(GO) test -count=1 -timeout 40m ./tests/boot/...

soak: ## the counts in hundreds that `make test` samples
	@sh .ci/need $(TEST_NEEDS) $(ARM_NEEDS)
	$(MAKE) image
	$(MAKE) image ARCH=arm64
	$(MAKE) image ARCH=arm64-cloud
	GATEHOUSE_SOAK=1 $(GO) test -count=1 -timeout 12h -p 1 -tags alone ./...

bench: ## the figures of docs/performance.md
	@sh .ci/need $(TEST_NEEDS) haproxy=haproxy /usr/sbin/sshd=openssh-server ssh=openssh-client
	$(MAKE) image
	$(GO) test -count=1 -timeout 60m -run '^$$' -bench . ./tests/bench/... ./tests/boot/... ./tpm/... ./firmware/... ./appliance/vault/... ./appliance/carrier/... ./netfilter/... ./tests/netns/...

fmt:
	gofmt -w cmd appliance tpm netfilter image firmware tests

lock: tools ## take the newest packages of the archive into the lock file
	$(BUILD)/gatehouse image lock --arch $(ARCH)

clean:
	rm -rf $(BUILD) $(XTERM)/node_modules $(XTERM)/dist/xterm.*
