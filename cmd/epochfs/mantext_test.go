package main

// The text of the manual pages that is not in the commands.

var exitMeanings = [][2]string{
	{"0", "Done."},
	{"1", "Failed for a reason without a code of its own."},
	{"2", "Wrong usage."},
	{"3", "No such reference, file, snapshot or mount."},
	{"4", "Not allowed: credentials are missing or were refused."},
	{"5", "The registry cannot be reached, or is too slow."},
	{"6", "Wrong content: an invalid digest, size, map or name. No wrong bytes were passed on as good."},
	{"7", "cocoon failed; the message contains its error."},
	{"8", "The local disk or the cache: full, or not permitted."},
	{"9", "FUSE is not available; the message says what is missing."},
}

var environment = [][2]string{
	{"EPOCHFS_CACHE_DIR", "Directory of the cache, without --cache-dir."},
	{"EPOCHFS_HOSTS_DIR", "Directory of hosts.toml files, without --hosts-dir."},
	{"EPOCHFS_RUNTIME_DIR", "Directory of the mounts' status sockets; by default /run/epochfs for root, else a directory below XDG_RUNTIME_DIR or the directory for temporary files."},
	{"OCI_REGISTRY", "Registry for references without a host: a host, or a host and the path before the name."},
	{"EPOCH_SERVER", "URL of the epoch server for references without a host, without OCI_REGISTRY; by default http://127.0.0.1:8080. epoch is legacy, and stays supported."},
	{"EPOCH_REGISTRY_TOKEN", "Credentials for the epoch server only."},
	{"EPOCH_CA_CERT", "PEM file with additional root certificates."},
	{"EPOCH_COCOON_BINARY", "The cocoon binary; by default cocoon in the PATH."},
	{"DOCKER_CONFIG", "Directory of docker's config.json, which has credentials and names helpers; by default ~/.docker."},
	{"REGISTRY_AUTH_FILE", "File with credentials in podman's format; by default containers/auth.json below XDG_RUNTIME_DIR and ~/.config."},
	{"GOOGLE_APPLICATION_CREDENTIALS", "File with Google's application-default credentials, for Google's registries."},
	{"HTTP_PROXY, HTTPS_PROXY, NO_PROXY", "Proxies."},
}

var files = [][2]string{
	{"/var/cache/epochfs, ~/.cache/epochfs", "The cache of root, and of other users. It may be removed when nothing is mounted."},
	{"/run/epochfs", "Sockets of root's mounts."},
	{"/etc/epochfs/NAME.conf", "What the service epochfs@NAME mounts: REF, DIR and OPTIONS."},
	{"/etc/containerd/certs.d/HOST/hosts.toml", "Mirrors of a registry."},
	{"~/.docker/config.json, ~/.config/containers/auth.json", "Credentials."},
	{"/sbin/mount.fuse.epochfs", "The helper of mount -t fuse.epochfs; see mount.fuse.epochfs(8)."},
}

const helperText = `mount(8) runs this helper for file systems of type fuse.epochfs. It is the program
epochfs under another name, and works like epochfs mount: REF names a snapshot in a
registry, DIR is an empty directory. It returns when the mount is ready. umount(8)
ends the mount.

The options -s (ignore unknown mount options), -f (check, but do not mount), -n, -v,
-o and -t are those that mount(8) passes to its helpers.`

const helperOptions = `The flags of epochfs mount, and those of all commands, are mount options without
their leading dashes; other dashes may be underscores: allow_other,
cache_dir=/var/cache/vm, prefetch=all. A value cannot contain a comma, except an
SELinux context in double quotes.

noexec has its usual meaning. context, fscontext, defcontext and rootcontext are
passed to the kernel if SELinux is enabled, else they are ignored with a note.

Options of mount(8) that every mount has (ro, nosuid, nodev, noatime, sync, lazytime),
or that are for other programs (defaults, noauto, nofail, user, comment=, uhelper=,
_netdev, x-systemd.*), are accepted. A mount is always read-only, nosuid and nodev: rw
has no effect, and suid and dev have none but a note. remount is refused.`

var examples = map[string]string{
	"epochfs": `epochfs doctor registry.example/team/vm:v1
epochfs mount registry.example/team/vm:v1 /mnt/snap
epochfs status /mnt/snap
epochfs umount /mnt/snap`,
	"epochfs-mount": `epochfs mount registry.example/team/vm:v1 /mnt/snap
epochfs mount --prefetch all --metrics 9100 registry.example/team/vm:v1 /mnt/snap
mount -t fuse.epochfs -o allow_other registry.example/team/vm:v1 /mnt/snap`,
	"epochfs-record": `epochfs record --runs 3 --push registry.example/team/vm:v1 -- start-vm {}
epochfs record -o vm.set registry.example/team/vm:v1 first.set second.set`,
	"epochfs-umount":      `epochfs umount /mnt/snap`,
	"epochfs-materialize": "epochfs materialize registry.example/team/vm:v1\nepochfs materialize -o vm.tar registry.example/team/vm:v1\nepochfs materialize --to-dir /srv/vm registry.example/team/vm:v1",
	"epochfs-push":        "epochfs push myvm registry.example/team/vm:v1\nepochfs push --input vm.tar --zstd 3 --chunk 64MiB registry.example/team/vm:v2",
	"epochfs-ls":          `epochfs ls -l registry.example/team/vm:v1`,
	"epochfs-cat":         `epochfs cat --offset 0 --length 512 registry.example/team/vm:v1 cow.raw`,
	"epochfs-inspect":     `epochfs inspect --json registry.example/team/vm:v1`,
	"epochfs-status":      "epochfs status --map /mnt/snap\nepochfs status --watch=5s",
	"epochfs-doctor":      `epochfs doctor registry.example/team/vm:v1`,
	"epochfs-cache-prune": `epochfs cache prune --older 7d --to 20GiB --dry-run`,
	"epochfs-restart":     `epochfs restart /mnt/snap`,
	"mount.fuse.epochfs": `mount -t fuse.epochfs registry.example/team/vm:v1 /mnt/snap

# /etc/fstab: mounted when the directory is first used
registry.example/team/vm:v1 /mnt/snap fuse.epochfs noauto,x-systemd.automount,_netdev,allow_other 0 0`,
}

var seeAlso = map[string][]string{
	"epochfs":        {"mount.fuse.epochfs(8)"},
	"epochfs-mount":  {"mount.fuse.epochfs(8)", "epochfs-umount(1)", "epochfs-status(1)"},
	"epochfs-umount": {"umount(8)"},
}
