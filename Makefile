# On a machine with Go, make demo and make test need nothing else: what is
# missing is installed with apt by root, and named to everybody else.

PREFIX    ?= /usr/local
SBINDIR   ?= /sbin
FUZZTIME  ?= 10m
TESTTIME  ?= 14m
SOAKTIME  ?= 30m
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# When the source was made, for what is packed
EPOCH     ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),0)
TARBALL    = epochfs-$(VERSION)-linux-$(shell $(GO) env GOARCH)

# The race detector writes over what it knows of fresh memory, up to 64 MiB:
# mapping it anew, as it does from 64 KiB on, costs more than the tests. At the
# end of a process it waits for races of its last moments, by default a second.
RACE       = clear_shadow_mmap_threshold=67108864 atexit_sleep_ms=100

GO        ?= go
export CGO_ENABLED ?= 1

# command:packages, for the demo and for the tests
DEMO_NEEDS = fusermount3:fuse3 mkfs.ext4:e2fsprogs
TEST_NEEDS = $(DEMO_NEEDS) gcc:gcc+libc6-dev docker-registry:docker-registry losetup:mount setpriv:util-linux \
	qemu-img:qemu-utils mkfs.xfs:xfsprogs mkfs.fat:dosfstools mcopy:mtools ntfs-3g:ntfs-3g pvcreate:lvm2 sfdisk:fdisk sgdisk:gdisk zstd:zstd git:git automount:autofs nginx:nginx

SITE_NEEDS  = fusermount3:fuse3 docker-registry:docker-registry nginx:nginx traffic_server:trafficserver+trafficserver-experimental-plugins

BENCH_NEEDS = fusermount3:fuse3 docker-registry:docker-registry curl:curl rclone:rclone fio:fio mkfs.xfs:xfsprogs

.PHONY: all build demo check test race test-deb bench bench-push bench-takeover bench-inside bench-packed bench-fleet bench-cold bench-vm lint fuzz soak site generate install dist clean demo-needs test-needs site-needs bench-needs

all: build

build:
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/epochfs ./cmd/epochfs

demo: demo-needs build
	bin/epochfs demo

# Many tests wait: more of them, and of their packages, run at once than there are
# processors. All of it was vetted before.
PACKAGES  := $(shell expr $$(nproc) + 1)
GOTEST     = $(GO) test -p $(PACKAGES) -vet=off -count=1 -parallel 4 -timeout $(TESTTIME)
GORACETEST = GORACE="$(RACE) $$GORACE" $(GOTEST) -race

# The three tiers. check needs Go alone: no root, no network, no other program.
check:
	$(GO) vet ./...
	$(GOTEST) -short ./...

# The test command: everything once, and the short tests under the race
# detector too. Campaigns are shortened; race and soak run them in full.
test: test-needs lint
	$(GORACETEST) -short ./...
	$(GOTEST) ./...

# Before a release: everything under the race detector, campaigns in full.
race: export EPOCHFS_FULL_CAMPAIGNS = 1
race: TESTTIME = 40m
race: TEST_NEEDS += fio:fio
race: test-needs lint
	$(GORACETEST) ./...

# Under 8 minutes; BENCHFLAGS may have -rows, -runs, -json FILE, -plot FILE.
# The page cache is dropped between runs, which takes root.
bench: bench-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o bin/bench ./test/bench
	bin/bench $(BENCHFLAGS)

# Pushes, and tars and directories of snapshots; the rows push-file and
# tar-no-range are for whom they are of interest.
bench-push: bench-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o bin/bench ./test/bench
	bin/bench -rows push-v1,push-v2,push-again,push-floor,tar-shaped,tar-cpu,tar-v2-shaped,tar-v2-cpu,tar-local,to-dir $(BENCHFLAGS)

# Processes of mounts that are killed and replaced, under 3 minutes.
bench-takeover: bench-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o bin/bench ./test/bench
	bin/bench -rows takeover,takeover-cost $(BENCHFLAGS)

# Looks into a guest's disk of 2 GiB with 20,000 files, under 3 minutes.
bench-inside: bench-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o bin/bench ./test/bench
	bin/bench -rows inside,inside-diff,inside-local $(BENCHFLAGS)

# Many mounts and VMs on one node, under 4 minutes.
bench-fleet: bench-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o bin/bench ./test/bench
	bin/bench -rows fleet-memory,fleet-many,fleet-start,fleet-shared $(BENCHFLAGS)

# The packed format, under 6 minutes; the row granules compares sizes of
# granules, packed-touched counts the bytes of a start.
bench-packed: bench-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o bin/bench ./test/bench
	bin/bench -rows packed-size,packed-again,packed-push,packed-lives,packed-shared,packed-blocks,packed-seq,packed-random,packed-no-range,packed-tar,packed-start,packed-memory $(BENCHFLAGS)

# A cold read beside a download: its time, memory and kernel time, beside a mount
# that does nothing else, a slow disk and a slow start, under 11 minutes. It takes
# 13 GB of disk for a while.
bench-cold: bench-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o bin/bench ./test/bench
	bin/bench -rows cold-huge,cold-image,cold-brief,cold-slow-disk $(BENCHFLAGS)

# A real guest and the pages that one touches, started from cold mounts, under 10
# minutes. The guest is made once, in some minutes more, and kept among the
# user's caches.
bench-vm: BENCH_NEEDS += debootstrap:debootstrap qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils gcc:gcc+libc6-dev mke2fs:e2fsprogs
bench-vm: bench-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o bin/bench ./test/bench
	bin/bench -rows vm,vm-slow,vm-again,vm-child,vm-record,touches,touches-ways,touches-other,touches-whole,replay-reader $(BENCHFLAGS)

# The manual pages, from the commands, and the table of imports.
generate:
	$(GO) test -count=1 -run TestManualPages ./cmd/epochfs -update
	$(GO) test -count=1 -run TestImportsAreInTheDocs ./test/deptest -update

lint:
	@bad=$$(gofmt -l .); \
	if [ -n "$$bad" ]; then echo "gofmt would change:" $$bad; exit 1; fi
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# Each fuzz target in turn, FUZZTIME each: go test takes one at a time.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

# Mounts under all kinds of faults, and damaged disks of guests, as root.
soak: demo-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '-X main.version=other' -o bin/epochfs-other ./cmd/epochfs
	EPOCHFS_FULL_CAMPAIGNS=1 $(GO) test -count=1 -timeout 60m -run 'TestDiskFaults|TestFaultCampaign' ./cache ./test/soak
	EPOCHFS_DAMAGED_IMAGES=2000 $(GO) test -count=1 -timeout 60m -run TestDamage ./internal/guestfs/... ./internal/inside/reader
	$(GO) run -buildvcs=false ./test/soak -epochfs bin/epochfs -other bin/epochfs-other -for $(SOAKTIME)

# Site caches, as docs/mirrors has them, between a registry and up to 32 mounts,
# as root, in some 5 minutes: what docs/operations.md recommends goes by the
# table, which is printed as it comes.
site: site-needs
	cd test/mirrors && EPOCHFS_SITE=1 $(GO) test -count=1 -timeout 30m -run TestSite

# Everything that a package has. mount(8) finds its helper in /sbin alone.
install: build
	install -D -m 0755 bin/epochfs $(DESTDIR)$(PREFIX)/bin/epochfs
	install -d $(DESTDIR)$(SBINDIR) $(DESTDIR)/etc/epochfs
	ln -sf $(PREFIX)/bin/epochfs $(DESTDIR)$(SBINDIR)/mount.fuse.epochfs
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/bin/epochfs|$(PREFIX)/bin/epochfs|' packaging/epochfs@.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/epochfs@.service
	chmod 0644 $(DESTDIR)$(PREFIX)/lib/systemd/system/epochfs@.service
	install -d $(DESTDIR)$(PREFIX)/lib/epochfs
	ln -sf ../../bin/epochfs $(DESTDIR)$(PREFIX)/lib/epochfs/auto.epochfs
	install -D -m 0644 packaging/autofs/service.conf $(DESTDIR)$(PREFIX)/lib/systemd/system/autofs.service.d/epochfs.conf
	[ -e $(DESTDIR)/etc/epochfs/autofs.allow ] || install -m 0644 packaging/autofs/autofs.allow $(DESTDIR)/etc/epochfs/autofs.allow
	[ -e $(DESTDIR)/etc/auto.master.d/epochfs.autofs ] || { install -d $(DESTDIR)/etc/auto.master.d && \
		sed 's|/usr/lib/epochfs|$(PREFIX)/lib/epochfs|' packaging/autofs/epochfs.autofs >$(DESTDIR)/etc/auto.master.d/epochfs.autofs; }
	for page in docs/man/*; do install -D -m 0644 $$page $(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/}; done
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/doc/epochfs README.md CHANGELOG.md docs/*.*
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/doc/epochfs/mirrors docs/mirrors/*.conf
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/doc/epochfs/mirrors/trafficserver docs/mirrors/trafficserver/*
	install -m 0644 LICENSE $(DESTDIR)$(PREFIX)/share/doc/epochfs/copyright
	for c in bash:bash-completion/completions/epochfs zsh:zsh/site-functions/_epochfs fish:fish/vendor_completions.d/epochfs.fish; do \
		install -D -m 0644 /dev/null $(DESTDIR)$(PREFIX)/share/$${c#*:} && \
		bin/epochfs completion $${c%%:*} >$(DESTDIR)$(PREFIX)/share/$${c#*:} || exit 1; \
	done

# A tarball to unpack in /usr/local, and a package for Debian. The same source
# makes the same bytes.
dist: export SOURCE_DATE_EPOCH = $(EPOCH)
dist: export ARCH = $(shell $(GO) env GOARCH)
dist: export DEB_VERSION = $(if $(filter v%,$(VERSION)),$(subst -,+,$(VERSION:v%=%)),0~$(shell date -u -d @$(EPOCH) +%Y%m%d).$(subst -,+,$(VERSION)))
dist: build
	rm -rf dist && mkdir dist
	$(MAKE) -s install DESTDIR=dist/root PREFIX=/usr SBINDIR=/usr/sbin
	gzip -9n dist/root/usr/share/man/man?/*
	mv dist/root/usr/share/zsh/site-functions dist/root/usr/share/zsh/vendor-completions
	mv dist/root/etc dist/etc
	find dist/root dist/etc -exec touch -h -d @$(EPOCH) {} +
	$(GO) tool -modfile=packaging/nfpm/go.mod nfpm package --config packaging/nfpm.yaml --packager deb --target dist/
	$(MAKE) -s install DESTDIR=dist/local PREFIX=/usr/local
	mv dist/local/usr/local dist/$(TARBALL)
	tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@$(EPOCH) -C dist -c $(TARBALL) | gzip -9n >dist/$(TARBALL).tar.gz
	rm -rf dist/root dist/etc dist/local dist/$(TARBALL)
	cd dist && sha256sum *.deb *.tar.gz >SHA256SUMS && cat SHA256SUMS

# The package is installed, used, upgraded, removed and purged; as root, in
# namespaces, so that this machine is left as it is.
test-deb: test-needs dist
	unshare --mount --propagation slave sh packaging/test-deb.sh dist/*.deb

clean:
	rm -rf bin dist

demo-needs:
	@$(call need,$(DEMO_NEEDS),warn)

test-needs:
	@$(call need,$(TEST_NEEDS),fail)

site-needs:
	@$(call need,$(SITE_NEEDS),fail)

# What cannot be installed is named in the table instead.
bench-needs:
	-@$(call need,$(BENCH_NEEDS),warn)

# need looks for commands, also in the places of root's PATH. Where they
# cannot be installed, a demo goes on without them; tests do not.
define need
	PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	for n in $(1); do command -v $${n%%:*} >/dev/null || missing="$$missing $$(echo $${n#*:} | tr + ' ')"; done; \
	if [ -n "$$missing" ] && ! { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; }; then \
		echo "missing packages:$$missing" >&2; [ $(2) = warn ]; \
	fi
endef
