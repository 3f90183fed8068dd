package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/test/tier"
)

// autofsUnit is Debian's unit of the automounter.
const autofsUnit = "/lib/systemd/system/autofs.service"

// prepareAutofs has a systemd's namespace know the map below the site's
// directory, and the helper for mount(8).
const prepareAutofs = `set -e
mkdir /run/site
mount --bind "$SITE" /run/site
for dir in /etc /usr/sbin /tmp; do # to /tmp autofs writes when it starts
	over=/run/site/over/$dir
	mkdir -p $over/up $over/work
	mount -t overlay -o "lowerdir=$dir,upperdir=$over/up,workdir=$over/work" overlay $dir
done
mkdir -p "$SITE"
mount --bind /run/site "$SITE"
mkdir -p /etc/epochfs
echo "$REF" >/etc/epochfs/autofs.allow
rm -f /etc/auto.master.d/*
sed "s|^/epochfs program:[^ ]*|$SITE/epochfs program:$MAP|" "$PACKAGING/epochfs.autofs" >/etc/auto.master.d/epochfs.autofs
ln -sf "$HELPER" /usr/sbin/mount.fuse.epochfs
`

// A restart of the automounter's service leaves the processes of its mounts
// alone, although they are in its control group.
func TestAutomounterService(t *testing.T) {
	tier.Long(t, "boots systemd, runs autofs")
	t.Parallel()
	if _, err := os.Stat(autofsUnit); err != nil {
		t.Skip("no unit of autofs (Debian package autofs)")
	}
	s := newSite(t)
	must(t, os.MkdirAll(filepath.Join(s.dir, "units/autofs.service.d"), 0o700))
	unit, err := os.ReadFile(autofsUnit)
	must(t, err)
	conf, err := os.ReadFile("../../packaging/autofs/service.conf")
	must(t, err)
	for name, text := range map[string]string{
		"units/basic.target": "[Unit]\nDefaultDependencies=no\n",
		"units/autofs.service": strings.NewReplacer("[Unit]\n", "[Unit]\nDefaultDependencies=no\n",
			"[Service]\n", fmt.Sprintf("[Service]\nEnvironment=EPOCHFS_CACHE_DIR=%s/cache EPOCHFS_RUNTIME_DIR=%[1]s/run GORACE=atexit_sleep_ms=0\n", s.dir)).Replace(string(unit)),
		"units/autofs.service.d/epochfs.conf": string(conf),
	} {
		must(t, os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600))
	}
	d := s.bootSystemd()
	program, err := exec.LookPath(automapName)
	must(t, err)
	helper, err := exec.LookPath("mount.fuse.epochfs")
	must(t, err)
	packaging, err := filepath.Abs("../../packaging/autofs")
	must(t, err)
	d.run("env", "SITE="+s.dir, "REF="+s.ref, "MAP="+program, "HELPER="+helper, "PACKAGING="+packaging, "sh", "-c", prepareAutofs)
	d.run("systemctl", "start", "autofs")
	dir := filepath.Join(s.dir, "epochfs", automapped(s.ref))
	sum := s.expected()["memory-ranges"].SHA256
	reads := func() {
		t.Helper()
		if got := d.run("sha256sum", dir+"/memory-ranges"); !strings.HasPrefix(got, sum) {
			t.Fatalf("memory-ranges has the sum %s", got)
		}
	}
	reads()
	before := d.run("epochfs", "status", "--json", dir)
	// Somebody keeps it busy.
	user := exec.Command("nsenter", d.enter("sh", "-c", `cd "$1" && echo here && exec cat`, "sh", dir)...)
	in, err := user.StdinPipe()
	must(t, err)
	defer in.Close()
	out, err := user.StdoutPipe()
	must(t, err)
	must(t, user.Start())
	if _, err := io.ReadFull(out, make([]byte, len("here\n"))); err != nil {
		t.Fatal(err)
	}
	d.run("systemctl", "restart", "autofs")
	reads()
	if after := d.run("epochfs", "status", "--json", dir); pidIn(after) != pidIn(before) {
		t.Errorf("another process serves: %s, %s", pidIn(before), pidIn(after))
	}
	in.Close()
	must(t, user.Wait())
	d.run("umount", dir)
	d.run("systemctl", "stop", "autofs")
}

// pidIn is the line of status --json that names the process.
func pidIn(status string) string {
	_, rest, _ := strings.Cut(status, `"pid":`)
	line, _, _ := strings.Cut(rest, ",")
	return strings.TrimSpace(line)
}
