package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// automounterWorld makes a mount namespace with this machine's files, of which
// what is written to goes to memory, with what the package installs for
// autofs. Its first process lives as long as its stdin.
const automounterWorld = `set -e
` + leaveOthers + `
mount -t tmpfs tmpfs "$WORLD"
mkdir "$WORLD/upper" "$WORLD/work" "$WORLD/root"
mount -t overlay -o "lowerdir=/,upperdir=$WORLD/upper,workdir=$WORLD/work" overlay "$WORLD/root"
cd "$WORLD/root"
mount --rbind /dev dev
mount --rbind /proc proc
mount -t tmpfs tmpfs run
mount --bind "$SITE" ".$SITE"
mkdir -p etc/epochfs usr/lib/epochfs
rm -f etc/auto.master.d/*
ln -sf "$(command -v auto.epochfs)" usr/lib/epochfs/auto.epochfs
ln -sf "$(command -v mount.fuse.epochfs)" sbin/mount.fuse.epochfs
cp "$PACKAGING/autofs.allow" etc/epochfs/
sed "s|^/epochfs .*|&$OPTIONS|" "$PACKAGING/epochfs.autofs" >etc/auto.master.d/epochfs.autofs
exec chroot . sh -c 'echo ready; exec cat'
`

// automounter is one that runs in a namespace of its own.
type automounter struct {
	site *site
	pid  string    // of the namespace's first process
	cmd  *exec.Cmd // the automounter
	log  *os.File
}

// newAutomounter starts one with what the package installs, and options of
// mounts after it.
func newAutomounter(s *site, options string) *automounter {
	t := s.t
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("root only")
	}
	if _, err := exec.LookPath("automount"); err != nil {
		t.Skip("no automount (Debian package autofs)")
	}
	packaging, err := filepath.Abs("../../packaging/autofs")
	must(t, err)
	world := filepath.Join(s.dir, "world")
	must(t, os.Mkdir(world, 0o700))
	holder := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", automounterWorld)
	holder.Env = append(s.env, "WORLD="+world, "SITE="+s.dir, "PACKAGING="+packaging, "OPTIONS="+options)
	stdin, err := holder.StdinPipe()
	must(t, err)
	stdout, err := holder.StdoutPipe()
	must(t, err)
	holder.Stderr = os.Stderr
	must(t, holder.Start())
	a := &automounter{site: s, pid: strconv.Itoa(holder.Process.Pid)}
	a.log, err = os.Create(filepath.Join(s.dir, "log"))
	must(t, err)
	t.Cleanup(func() {
		a.stop(unix.SIGKILL)
		for _, name := range a.mounted() {
			_, _, _ = a.try("umount", "--lazy", "/epochfs/"+name)
		}
		stdin.Close()
		_ = holder.Wait()
		if t.Failed() {
			t.Logf("automount: %s", a.said())
		}
		a.log.Close()
	})
	if _, err := io.ReadFull(stdout, make([]byte, len("ready\n"))); err != nil {
		t.Fatal("no namespace:", err)
	}
	a.start()
	return a
}

// inside is a command beside the automounter.
func (a *automounter) inside(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"-t", a.pid, "--mount", "--root", "--wd"}, args...)...)
	cmd.Env = a.site.env
	return cmd
}

func (a *automounter) try(args ...string) (code int, stdout, stderr string) {
	var out, errOut strings.Builder
	cmd := a.inside(args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	return exitOf(cmd.Run()), out.String(), errOut.String()
}

func (a *automounter) run(args ...string) string {
	a.site.t.Helper()
	code, out, stderr := a.try(args...)
	if code != 0 {
		a.site.t.Fatalf("%q: exit code %d: %s", args, code, stderr)
	}
	return out
}

// start starts it, and returns when it looks after /epochfs.
func (a *automounter) start() {
	a.site.t.Helper()
	a.cmd = a.inside("automount", "--foreground", "--pid-file", "/run/autofs.pid", "--verbose", "/etc/auto.master")
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its group alone sees what is below the mounts
	const ready = "mounted indirect on /epochfs"
	before := strings.Count(a.said(), ready)
	must(a.site.t, a.cmd.Start())
	eventually(a.site.t, "automount", func() bool { return strings.Count(a.said(), ready) > before })
}

// said is what all of them have logged.
func (a *automounter) said() string {
	raw, err := os.ReadFile(a.log.Name())
	must(a.site.t, err)
	return string(raw)
}

// stop ends it, and leaves its mounts.
func (a *automounter) stop(by unix.Signal) {
	if a.cmd == nil {
		return
	}
	must(a.site.t, a.cmd.Process.Signal(by))
	_ = exits(a.site.t, a.cmd)
	a.cmd = nil
}

// mounted returns the names of the snapshots that are mounted.
func (a *automounter) mounted() (names []string) {
	for line := range strings.Lines(a.run("cat", "/proc/mounts")) {
		fields := strings.Fields(line)
		if name, ok := strings.CutPrefix(fields[1], "/epochfs/"); ok && strings.HasPrefix(fields[2], "fuse") {
			names = append(names, name)
		}
	}
	return names
}

// allow writes the list of registries.
func (a *automounter) allow(entries ...string) {
	a.site.t.Helper()
	a.run(append([]string{"sh", "-c", `printf '%s\n' "$@" >/etc/epochfs/autofs.allow`, "sh"}, entries...)...)
}

// automapped is the name of the directory of a reference.
func automapped(ref string) string { return strings.ReplaceAll(ref, "/", "+") }

// sum is what sha256sum prints for a file of the fixtures' snapshot.
func (a *automounter) sum(name string) string {
	return a.site.expected()[name].SHA256
}

// expires has it unmount at once what nobody uses, until only these are left.
func (a *automounter) expires(left ...string) {
	a.site.t.Helper()
	asked := time.Time{}
	eventually(a.site.t, "expiry", func() bool {
		if time.Since(asked) > time.Second/4 {
			must(a.site.t, a.cmd.Process.Signal(unix.SIGUSR1))
			asked = time.Now()
		}
		return strings.Join(a.mounted(), " ") == strings.Join(left, " ")
	})
}

// mapper maps a file, and closes it; with a second argument it touches every
// page. When its stdin ends it prints the sum of what is mapped.
func mapper() {
	f, err := os.Open(os.Args[1])
	var mem []byte
	if err == nil {
		var st os.FileInfo
		if st, err = f.Stat(); err == nil {
			mem, err = unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
		}
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	f.Close()
	if len(os.Args) > 2 {
		_ = sha256.Sum256(mem)
	}
	fmt.Println("mapped")
	_, _ = io.Copy(io.Discard, os.Stdin)
	sum := sha256.Sum256(mem)
	fmt.Println(hex.EncodeToString(sum[:]))
}

// maps has a process map a file. The result ends it, and returns the sum of
// what it had mapped.
func (a *automounter) maps(path string) (end func() string) {
	t := a.site.t
	t.Helper()
	cmd := a.inside("mapper", path)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	said := make([]byte, len("mapped\n"))
	if _, err := io.ReadFull(out, said); err != nil || string(said) != "mapped\n" {
		t.Fatalf("%s is not mapped: %q, %v", path, said, err)
	}
	return func() string {
		in.Close()
		sum, err := io.ReadAll(out)
		must(t, err)
		return strings.TrimSpace(string(sum))
	}
}

// Whoever looks into the directory of a snapshot that may be looked at finds
// it mounted, once for all who look at the same time.
func TestAutomounter(t *testing.T) {
	tier.Long(t, "runs autofs")
	t.Parallel()
	s := newSite(t)
	a := newAutomounter(s, "")
	name, before := automapped(s.ref)+":latest", len(s.front.Requests())
	if code, _, _ := a.try("ls", "/epochfs/"+name); code == 0 || len(s.front.Requests()) != before {
		t.Errorf("nothing is allowed as installed: exit code %d, %d requests", code, len(s.front.Requests())-before)
	}
	a.allow(s.front.Host)
	a.stop(unix.SIGTERM) // and it forgets that the name was none
	a.start()
	processes := len(processesOn(filepath.Join(s.dir, "cache"))) // the automounter's
	var looks sync.WaitGroup
	for range 16 {
		looks.Go(func() {
			code, out, stderr := a.try("sha256sum", "/epochfs/"+name+"/config.json")
			if code != 0 || !strings.HasPrefix(out, a.sum("config.json")) {
				t.Errorf("exit code %d: %q, %s", code, out, stderr)
			}
		})
	}
	looks.Wait()
	if got := a.mounted(); len(got) != 1 || got[0] != name {
		t.Errorf("mounted are %q", got)
	}
	asked := 0
	for _, r := range s.front.Requests() {
		if r.Method == "GET" && strings.HasSuffix(r.Path, "/manifests/latest") {
			asked++
		}
	}
	if asked < 1 || asked > 2 { // a mount asks once more where the answer is late
		t.Errorf("the registry was asked %d times for 16 looks", asked)
	}
	a.badNames()
	a.expires()
	eventually(t, "the end of all processes", func() bool { return len(processesOn(filepath.Join(s.dir, "cache"))) == processes })
}

// badNames looks for what is no snapshot, or none that may be looked at.
func (a *automounter) badNames() {
	t, s := a.site.t, a.site
	t.Helper()
	there := strings.Join(a.mounted(), " ")
	s.front.Reset()
	good := automapped(s.ref)
	var looks sync.WaitGroup
	for _, name := range []string{
		"vm", "*", "&", "-fstype=tmpfs", " ", "\n", "\\", `"`, "'", "$(touch ran)", "`touch ran`", ";touch ran",
		good + ":v1 -o allow_other", good + ",allow_other", good + "\n" + good, good + `"`, good + "+..+vm", "..+" + good, good + ":$HOST", good + ":&", good + "#",
		strings.ToUpper(good), "x@" + good, "127.0.0.1:1+vm", strings.Repeat("x", 255), good + ":" + strings.Repeat("v", 129), good + ":\xff\xfe", good + "@sha256:" + strings.Repeat("0", 63) + "G",
	} {
		looks.Go(func() {
			if code, out, _ := a.try("stat", "--", "/epochfs/"+name); code == 0 {
				t.Errorf("%q is there: %s", name, out)
			}
		})
	}
	looks.Wait()
	if code, _, _ := a.try("stat", "--", "/epochfs/"+strings.Repeat("x", 256)); code == 0 {
		t.Error("a name that is too long is there")
	}
	if n := len(s.front.Requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	if code, _, _ := a.try("stat", "/ran"); code == 0 {
		t.Error("a name was run")
	}
	if got := strings.Join(a.mounted(), " "); got != there {
		t.Errorf("mounted are %q and not %q", got, there)
	}
}

// A registry that is away is an error for who looks, in time, and holds up
// nobody who looks elsewhere.
func TestAutomounterWithoutRegistry(t *testing.T) {
	tier.Long(t, "runs autofs")
	t.Parallel()
	s := newSite(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer silent.Close()
	a := newAutomounter(s, ",mount_timeout=1s")
	a.allow(s.front.Host, silent.Addr().String(), "127.0.0.1:1")
	waits := make(chan int, 1)
	began := time.Now()
	go func() {
		code, _, _ := a.try("ls", "/epochfs/"+silent.Addr().String()+"+vm:v1")
		waits <- code
	}()
	conn, err := silent.Accept() // it is asked
	must(t, err)
	defer conn.Close()
	if code, _, _ := a.try("ls", "/epochfs/127.0.0.1:1+vm:v1"); code == 0 {
		t.Error("a registry that refuses connections has something")
	}
	if out := a.run("sha256sum", "/epochfs/"+automapped(s.ref)+"/config.json"); !strings.HasPrefix(out, a.sum("config.json")) {
		t.Errorf("sum: %s", out)
	}
	if code := <-waits; code == 0 || time.Since(began) > patience {
		t.Errorf("exit code %d after %v", code, time.Since(began))
	}
	a.expires()
}

// What a process has mapped is not unmounted: not when it expires, and not
// when the automounter is stopped or killed. The next one goes on with it.
func TestAutomounterKeepsWhatIsUsed(t *testing.T) {
	tier.Long(t, "runs autofs")
	t.Parallel()
	s := newSite(t)
	a := newAutomounter(s, "")
	a.allow(s.ref)
	used, idle := automapped(s.ref)+":latest", automapped(s.ref)
	for i, by := range []unix.Signal{0, unix.SIGTERM, unix.SIGKILL} {
		end := a.maps("/epochfs/" + used + "/memory-ranges")
		a.run("ls", "/epochfs/"+idle)
		if by == 0 {
			a.expires(used)
		} else {
			a.stop(by)
			if got := strings.Join(a.mounted(), " "); !strings.Contains(got, used) {
				t.Fatalf("after signal %v mounted are %q", by, got)
			}
			a.start()
			a.run("ls", "/epochfs/"+idle, "/epochfs/"+used)
			a.expires(used)
		}
		if got := end(); got != a.sum("memory-ranges") {
			t.Errorf("round %d: other bytes are mapped", i)
		}
		a.expires()
	}
}
