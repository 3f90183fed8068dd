#!/bin/sh
# image.sh DIR: makes DIR/disk.raw, a Debian guest on 2 GiB of ext4 that works
# in a loop and prints "LOOP n" on its serial line after each turn, and its
# kernel, DIR/vmlinuz and DIR/initrd. The guest's program is read from stdin.
# Takes root, debootstrap, e2fsprogs and a Debian mirror.
set -eu
dir=$1
root=$dir/root
trap 'rm -rf "$root"' EXIT
rm -rf "$root"
debootstrap --variant=minbase \
	--include=python3,systemd-sysv,procps,perl,initramfs-tools,linux-image-cloud-amd64 \
	bookworm "$root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$dir/debootstrap.log"

# The kernel is QEMU's to load. The modules that the guest needs are in the initrd.
mv "$root"/boot/vmlinuz-* "$dir/vmlinuz"
mv "$root"/boot/initrd.img-* "$dir/initrd"
rm -rf "$root"/boot/* "$root"/lib/modules "$root"/var/cache/apt/archives/*.deb

cat >"$root/root/work.py"
unit=etc/systemd/system
cat >"$root/$unit/work.service" <<'U'
[Service]
ExecStart=/usr/bin/python3 -u /root/work.py
StandardOutput=tty
TTYPath=/dev/ttyS0
[Install]
WantedBy=multi-user.target
U
mkdir -p "$root/$unit/multi-user.target.wants"
# The console is the guest's own: a getty would hang up on it.
ln -s /dev/null "$root/$unit/serial-getty@ttyS0.service"
ln -s ../work.service "$root/$unit/multi-user.target.wants/work.service"

truncate -s 2G "$dir/disk.raw"
mke2fs -q -t ext4 -F -d "$root" "$dir/disk.raw"
