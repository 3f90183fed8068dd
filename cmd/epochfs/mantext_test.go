package main

// What manual pages say beyond what the commands know of themselves.

var exitMeanings = [][2]string{
	{"0", "Done."},
	{"1", "Failed in a way that has no code of its own."},
	{"2", "Called wrongly."},
	{"3", "No such reference, file, snapshot or mount."},
	{"4", "Not allowed: credentials are missing or were refused."},
	{"5", "The registry cannot be reached, or is too slow."},
	{"6", "Wrong content: a digest, size, map or name that must not be. Nothing of it was handed on as good."},
	{"7", "cocoon failed; its own words are in the message."},
	{"8", "The local disk or the cache: full, or not permitted."},
	{"9", "No FUSE here; the message says what is missing."},
}

var environment = [][2]string{
	{"EPOCHFS_CACHE_DIR", "The cache, where --cache-dir does not name it."},
	{"EPOCHFS_HOSTS_DIR", "A directory of hosts.toml files, as --hosts-dir."},
	{"EPOCHFS_RUNTIME_DIR", "Where mounts have the sockets that status asks; without it /run/epochfs for root, else a directory below XDG_RUNTIME_DIR, or the one for temporary files."},
	{"EPOCH_SERVER", "URL of the registry for references without a host; http://127.0.0.1:8080 without it."},
	{"EPOCH_REGISTRY_TOKEN", "Credentials for that server and no other."},
	{"EPOCH_CA_CERT", "PEM file with further root certificates."},
	{"EPOCH_COCOON_BINARY", "The cocoon to run, if it is not cocoon in the PATH."},
	{"DOCKER_CONFIG", "Directory of docker's config.json, which has credentials and names helpers; ~/.docker without it."},
	{"REGISTRY_AUTH_FILE", "A file with credentials in podman's form; without it containers/auth.json below XDG_RUNTIME_DIR and ~/.config."},
	{"HTTP_PROXY, HTTPS_PROXY, NO_PROXY", "Proxies."},
}

var files = [][2]string{
	{"/var/cache/epochfs, ~/.cache/epochfs", "The cache of root, and of others. It may be removed when nothing is mounted."},
	{"/run/epochfs", "Sockets of root's mounts."},
	{"/etc/epochfs/NAME.conf", "What the service epochfs@NAME mounts: REF, DIR and OPTIONS."},
	{"/etc/containerd/certs.d/HOST/hosts.toml", "Mirrors of a registry."},
	{"~/.docker/config.json, ~/.config/containers/auth.json", "Credentials."},
	{"/sbin/mount.fuse.epochfs", "What mount -t fuse.epochfs runs; see mount.fuse.epochfs(8)."},
}

const helperText = `mount(8) calls this for file systems of type fuse.epochfs. It is the program
epochfs under another name, and does what epochfs mount does: REF names a snapshot
in a registry, DIR is an empty directory. It returns when DIR is ready. umount(8)
ends the mount.

The options -s (ignore mount options nobody knows), -f (check, but do not mount),
-n, -v, -o and -t are those that mount(8) hands to its helpers.`

const helperOptions = `The flags of epochfs mount and those of all commands are mount options under
their names without dashes before them; dashes within may be underscores:
allow_other, cache_dir=/var/cache/vm, prefetch=all. A value cannot have a comma,
except an SELinux context in double quotes.

noexec is followed. context, fscontext, defcontext and rootcontext go to the kernel
where SELinux is enabled, else they are left out with a note.

Options of mount(8) that describe every mount (ro, nosuid, nodev, noatime, sync,
lazytime), or are for others (defaults, noauto, nofail, user, comment=, uhelper=,
_netdev, x-systemd.*), are accepted. A mount is read-only, also with rw. It is nosuid
and nodev, also with suid and dev, which a note says. remount is refused.`

var examples = map[string]string{
	"epochfs": `epochfs doctor registry.example/team/vm:v1
epochfs mount registry.example/team/vm:v1 /mnt/snap
epochfs status /mnt/snap
epochfs umount /mnt/snap`,
	"epochfs-mount": `epochfs mount registry.example/team/vm:v1 /mnt/snap
epochfs mount --prefetch all --metrics 9100 registry.example/team/vm:v1 /mnt/snap
mount -t fuse.epochfs -o allow_other registry.example/team/vm:v1 /mnt/snap`,
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

# /etc/fstab: mounted when somebody looks into the directory
registry.example/team/vm:v1 /mnt/snap fuse.epochfs noauto,x-systemd.automount,_netdev,allow_other 0 0`,
}

var seeAlso = map[string][]string{
	"epochfs":        {"mount.fuse.epochfs(8)"},
	"epochfs-mount":  {"mount.fuse.epochfs(8)", "epochfs-umount(1)", "epochfs-status(1)"},
	"epochfs-umount": {"umount(8)"},
}
