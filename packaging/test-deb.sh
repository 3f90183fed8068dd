#!/bin/sh
# test-deb.sh PACKAGE: install, use, upgrade, remove and purge it, as root in a
# mount namespace of one's own. All that is written goes to memory, over the file
# system of this machine: what is left behind in the end can be listed.
set -eu
package=$(realpath "$1")
tar=$(realpath snapshot/testdata/cocoon-export.tar)
over=$(mktemp -d)
mount -t tmpfs none "$over"
mkdir "$over/upper" "$over/work" "$over/root"
mount -t overlay -o "lowerdir=/,upperdir=$over/upper,workdir=$over/work" none "$over/root"
mount --rbind /dev "$over/root/dev"
mount --rbind /sys "$over/root/sys"
mount -t proc proc "$over/root/proc"
mount -t tmpfs none "$over/root/run"
mount -t tmpfs none "$over/root/tmp"
cp "$package" "$over/root/tmp/epochfs.deb"
cp "$tar" "$over/root/tmp/vm.tar"

cat >"$over/root/tmp/use.sh" <<'END'
set -eu
fail() { echo "test-deb: $*" >&2; exit 1; }
export HOME=/root XDG_CACHE_HOME=/root/.cache DEBIAN_FRONTEND=noninteractive
cat >/tmp/registry.yml <<EOF
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: /tmp/registry}}
http: {addr: 127.0.0.1:$PORT}
EOF
docker-registry serve /tmp/registry.yml >/tmp/registry.log 2>&1 &
registry=$!
trap 'umount -l /mnt/snap 2>/dev/null || true; kill $registry' EXIT
ref=127.0.0.1:$PORT/team/vm:v1

dpkg -i /tmp/epochfs.deb
man -w epochfs epochfs-mount mount.fuse.epochfs >/dev/null || fail "manual pages are missing"
dpkg -L epochfs | while read -r name; do [ -e "$name" ] || fail "$name is missing"; done
[ "$(stat -c %a /etc/epochfs)" = 755 ] || fail "/etc/epochfs"
bash -c '. /usr/share/bash-completion/completions/epochfs && complete -p epochfs' >/dev/null || fail "bash completion"
map=/usr/lib/epochfs/auto.epochfs
! $map registry.example+team+vm:v1 2>/dev/null || fail "the allow-list is not empty as installed"
echo registry.example/team >>/etc/epochfs/autofs.allow
[ "$($map registry.example+team+vm:v1)" = "-fstype=fuse.epochfs :registry.example/team/vm:v1" ] || fail "the map for autofs"
grep -q "^/epochfs program:$map " /etc/auto.master.d/epochfs.autofs || fail "the line for autofs"
if command -v systemd-analyze >/dev/null; then
	systemd-analyze verify --recursive-errors=no epochfs@web.service || fail "unit"
fi

tries=0
until epochfs push --quiet --input /tmp/vm.tar "$ref"; do
	tries=$((tries + 1))
	[ $tries -lt 50 ] || fail "no registry"
	sleep 0.1
done
mkdir -p /mnt/snap
mount -t fuse.epochfs -o allow_other "$ref" /mnt/snap
want=$(tar -xOf /tmp/vm.tar config.json | sha256sum)
[ "$(sha256sum </mnt/snap/config.json)" = "$want" ] || fail "wrong bytes"
exec 5</mnt/snap/memory-ranges
worker() { epochfs status --json /mnt/snap | sed -n 's/^ *"pid": \([0-9]*\),$/\1/p'; }

# An upgrade: the new binary takes over.
before=$(worker)
dpkg -i /tmp/epochfs.deb
after=$(worker)
[ -n "$after" ] && [ "$before" != "$after" ] || fail "after the upgrade process $after serves, as before"
head -c 4096 <&5 | cmp - /mnt/snap/memory-ranges -n 4096 || fail "reading over the upgrade"
exec 5<&-

# Removed while something is mounted: that goes on, until it is unmounted.
dpkg -r epochfs
[ "$(sha256sum </mnt/snap/config.json)" = "$want" ] || fail "wrong bytes after removal"
umount /mnt/snap
tries=0
while pgrep -f "epochfs.* /mnt/snap" >/dev/null; do
	tries=$((tries + 1))
	[ $tries -lt 100 ] || fail "processes stay behind"
	sleep 0.1
done
[ -d /var/cache/epochfs ] || fail "removal took the cache"
dpkg -P epochfs
rmdir /mnt/snap
END
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])' 2>/dev/null || echo 5988)
PORT=$port chroot "$over/root" sh /tmp/use.sh

# What dpkg and man-db note of every package is theirs. A character device is
# the overlay's note that something of this machine was removed.
left=$(cd "$over/upper" && find . ! -type d ! -type c | grep -Ev '^\./(var/lib/dpkg/|var/log/|var/cache/(man|ldconfig|debconf)/|var/lib/(man-db|systemd)/)' || true)
if [ -n "$left" ]; then
	echo "test-deb: left behind:" "$left" >&2
	exit 1
fi
gone=$(cd "$over/upper" && find etc usr var/cache -type d -name 'epochfs*' 2>/dev/null || true)
if [ -n "$gone" ]; then
	echo "test-deb: directories left behind:" "$gone" >&2
	exit 1
fi
echo "test-deb: installed, used, upgraded, removed and purged; nothing is left"
