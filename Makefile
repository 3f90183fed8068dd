# On a machine with Go, make demo and make test need nothing else: what is
# missing is installed with apt by root, and named to everybody else.

PREFIX    ?= /usr/local
FUZZTIME  ?= 10m
TESTTIME  ?= 10m
SOAKTIME  ?= 30m
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

GO        ?= go
export CGO_ENABLED ?= 1

# command:packages, for the demo and for the tests
DEMO_NEEDS = fusermount3:fuse3 mkfs.ext4:e2fsprogs
TEST_NEEDS = $(DEMO_NEEDS) gcc:gcc+libc6-dev docker-registry:docker-registry losetup:mount setpriv:util-linux

BENCH_NEEDS = fusermount3:fuse3 docker-registry:docker-registry curl:curl rclone:rclone fio:fio mkfs.xfs:xfsprogs

.PHONY: all build demo test bench bench-push bench-takeover lint fuzz soak install clean demo-needs test-needs bench-needs

all: build

build:
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/epochfs ./cmd/epochfs

demo: demo-needs build
	bin/epochfs demo

test: test-needs lint
	$(GO) test -race -count=1 -timeout $(TESTTIME) ./...

# Under 8 minutes; BENCHFLAGS may have -rows, -runs, -json FILE, -plot FILE.
# The page cache is dropped between runs, which takes root.
bench: bench-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o bin/bench ./internal/bench
	bin/bench $(BENCHFLAGS)

# Pushes, and tars and directories of snapshots.
bench-push: bench-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o bin/bench ./internal/bench
	bin/bench -rows push-v1,push-file,push-v2,push-again,tar-shaped,tar-cpu,tar-v2-shaped,tar-v2-cpu,tar-no-range,tar-local,to-dir $(BENCHFLAGS)

# Processes of mounts that are killed and replaced, under 3 minutes.
bench-takeover: bench-needs build
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -o bin/bench ./internal/bench
	bin/bench -rows takeover,takeover-cost $(BENCHFLAGS)

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

# Mounts under all kinds of faults, as root.
soak: demo-needs build
	$(GO) run -buildvcs=false ./internal/soak -epochfs bin/epochfs -for $(SOAKTIME)

# mount(8) finds its helper for the type fuse.epochfs in /sbin.
install: build
	install -D -m 0755 bin/epochfs $(DESTDIR)$(PREFIX)/bin/epochfs
	install -d $(DESTDIR)/sbin
	ln -sf $(PREFIX)/bin/epochfs $(DESTDIR)/sbin/mount.fuse.epochfs

clean:
	rm -rf bin dist

demo-needs:
	@$(call need,$(DEMO_NEEDS),warn)

test-needs:
	@$(call need,$(TEST_NEEDS),fail)

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
