package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

type command = func(ts *testscript.TestScript, neg bool, args []string)

func (w *world) commands() map[string]command {
	return map[string]command{
		"code":           code,
		"fails":          fails,
		"slowly":         w.slowly,
		"expected":       expected,
		"reset":          func(*testscript.TestScript, bool, []string) { w.front.Reset() },
		"cost":           w.cost,
		"disjoint":       w.disjoint,
		"fault":          w.fault,
		"clear":          func(*testscript.TestScript, bool, []string) { w.front.Clear() },
		"jsonvar":        jsonvar,
		"jsonequal":      jsonequal,
		"readers":        readers,
		"kill-pid":       killPID,
		"wait-for":       w.waitFor,
		"bigtar":         bigtar,
		"firecracker":    firecracker,
		"amend":          w.amend,
		"google":         w.google,
		"seed":           w.seed,
		"hostile":        w.hostile,
		"escapes":        w.escapes,
		"cloudimage":     w.cloudImage,
		"index":          w.index,
		"containerimage": w.containerImage,
		"hold":           w.hold,
		"held":           w.stillHeld,
		"until":          until,
		"registry":       w.registry,
		"nosecret":       nosecret,
		"secretless":     w.secretless,
		"hostsfile":      w.hostsFile,
		"dockerlogin":    w.dockerLogin,
		"storagefails":   w.storageFails,
		"for-each":       forEach,
		"shape":          shape,
		"oomscore":       oomscore,
		"release":        w.release,
		"scrape":         scrape,
		"journald":       journald,
		"automounted":    automounted,
		"foreign":        foreign,
		"watch":          watch,
		"untouched":      untouched,
	}
}

// code N command...: the command exits with N.
func code(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := exitOf(ts.Exec(args[1], args[2:]...)); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func exitOf(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// expected DIR: the directory holds the fixtures' snapshot, byte for byte.
func expected(ts *testscript.TestScript, _ bool, args []string) {
	raw, err := os.ReadFile(filepath.Join(ts.Getenv("FIXTURES"), "expected.json"))
	ts.Check(err)
	var want map[string]struct {
		Size   int64
		SHA256 string
	}
	ts.Check(json.Unmarshal(raw, &want))
	for name, w := range want {
		f, err := os.Open(ts.MkAbs(filepath.Join(args[0], name)))
		ts.Check(err)
		h := sha256.New()
		n, err := io.Copy(h, f)
		f.Close()
		ts.Check(err)
		if got := hex.EncodeToString(h.Sum(nil)); n != w.Size || got != w.SHA256 {
			ts.Fatalf("%s has %d bytes, sha256 %s; want %d, %s", name, n, got, w.Size, w.SHA256)
		}
	}
	dir, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(dir) != len(want)+1 {
		ts.Fatalf("%s holds %v", args[0], dir)
	}
}

// cost name<=N name==N...: what the registry was asked for since reset.
func (w *world) cost(ts *testscript.TestScript, _ bool, args []string) {
	c := w.front.Counts()
	have := map[string]int64{
		"requests":  int64(c.Manifests + c.Blobs),
		"manifests": int64(c.Manifests),
		"blobs":     int64(c.Blobs),
		"other":     int64(c.Other),
		"blobbytes": c.BlobBytes,
	}
	ts.Logf("since reset: %+v", c)
	for _, arg := range args {
		name, text, exact := strings.Cut(arg, "==")
		if !exact {
			name, text, _ = strings.Cut(arg, "<=")
		}
		limit, err := strconv.ParseInt(text, 10, 64)
		ts.Check(err)
		got, ok := have[name]
		if !ok || exact && got != limit || got > limit {
			ts.Fatalf("%s: it is %d", arg, got)
		}
	}
}

// disjoint [N]: since reset at most N requests, or none, asked for bytes of a
// blob that another had asked for. On a busy machine a request that stands
// still has a double.
func (w *world) disjoint(ts *testscript.TestScript, _ bool, args []string) {
	type span struct{ from, to int64 }
	doubles := 0
	if len(args) > 0 {
		n, err := strconv.Atoi(args[0])
		ts.Check(err)
		doubles = n
	}
	seen := map[string][]span{}
	for _, r := range w.front.Requests() {
		if !r.IsBlob() {
			continue
		}
		var s span
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &s.from, &s.to); err != nil {
			s = span{0, 1 << 62}
		}
		for _, o := range seen[r.Path] {
			if s.from > o.to || o.from > s.to {
				continue
			}
			if doubles--; doubles < 0 {
				ts.Fatalf("%s: %v and %v were both asked for", r.Path, o, s)
			}
		}
		seen[r.Path] = append(seen[r.Path], s)
	}
}

// fault KIND METHOD PATH N: from now on requests that match go wrong.
func (w *world) fault(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.ParseInt(args[3], 10, 64)
	ts.Check(err)
	f := &registrytest.Fault{Match: registrytest.Method(args[1], args[2])}
	switch args[0] {
	case "status":
		f.Status = int(n)
	case "cut":
		f.Cut = n
	case "flip":
		f.Flip = n
	case "stall":
		f.Stall = n
	case "stall-once":
		f.Stall, f.Times = n, 1
	case "drop":
		f.Drop = true
	default:
		ts.Fatalf("unknown fault %q", args[0])
	}
	if f.Status == http.StatusUnauthorized {
		f.Header = http.Header{"Www-Authenticate": {`Basic realm="test"`}}
	}
	w.front.Inject(f)
}

// jsonvar VAR KEY: the variable becomes what stdout has under the key.
func jsonvar(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], fmt.Sprint(field(ts, ts.ReadFile("stdout"), args[1])))
}

func field(ts *testscript.TestScript, text, key string) any {
	var all map[string]any
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	ts.Check(dec.Decode(&all))
	value, ok := all[key]
	if list, rest, dotted := strings.Cut(key, ".0."); !ok && dotted { // of the first of a list
		if l, isList := all[list].([]any); isList && len(l) > 0 {
			value, ok = l[0].(map[string]any)[rest]
		}
	}
	if !ok {
		ts.Fatalf("no %q in %s", key, text)
	}
	return value
}

// jsonequal KEY FILE FILE: both have the same there.
func jsonequal(ts *testscript.TestScript, _ bool, args []string) {
	a, err := json.Marshal(field(ts, ts.ReadFile(args[1]), args[0]))
	ts.Check(err)
	b, err := json.Marshal(field(ts, ts.ReadFile(args[2]), args[0]))
	ts.Check(err)
	if string(a) != string(b) {
		ts.Fatalf("%s differs:\n%s\n%s", args[0], a, b)
	}
}

// readers N OFFSET LENGTH FILE...: N readers of each file at once.
func readers(ts *testscript.TestScript, _ bool, args []string) {
	var num [3]int64
	for i := range num {
		var err error
		num[i], err = strconv.ParseInt(args[i], 10, 64)
		ts.Check(err)
	}
	var g errgroup.Group
	var mu sync.Mutex
	sums := map[string]bool{}
	for _, name := range args[3:] {
		f, err := os.Open(ts.MkAbs(name))
		ts.Check(err)
		defer f.Close()
		if num[0] > 1 { // on a busy machine they get apart, and the kernel reads ahead of each
			ts.Check(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM))
		}
		for range num[0] {
			g.Go(func() error {
				h := sha256.New()
				n, err := io.Copy(h, io.NewSectionReader(f, num[1], num[2]))
				if err == nil && n != num[2] {
					err = io.ErrUnexpectedEOF
				}
				mu.Lock()
				defer mu.Unlock()
				sums[string(h.Sum(nil))] = true
				return err
			})
		}
	}
	ts.Check(g.Wait())
	if len(sums) != 1 {
		ts.Fatalf("readers saw %d different contents", len(sums))
	}
}

// kill-pid SIGNAL PID
func killPID(ts *testscript.TestScript, _ bool, args []string) {
	pid, err := strconv.Atoi(args[1])
	ts.Check(err)
	sig, ok := map[string]syscall.Signal{
		"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT,
	}[args[0]]
	if !ok {
		ts.Fatalf("unknown signal %q", args[0])
	}
	ts.Check(syscall.Kill(pid, sig))
}

// wait-for mount DIR, unmount DIR, text FILE TEXT, exit PID, blobs N,
// asked TEXT (in a request's path): it comes to that. DIR may be a pattern.
func (w *world) waitFor(ts *testscript.TestScript, _ bool, args []string) {
	mountedOn := func() bool {
		for _, dir := range w.mounts() {
			if ok, _ := filepath.Match(ts.MkAbs(args[1]), dir); ok {
				return true
			}
		}
		return false
	}
	so := map[string]func() bool{
		"mount":   mountedOn,
		"unmount": func() bool { return !mountedOn() },
		"file": func() bool {
			_, err := os.Stat(ts.MkAbs(args[1]))
			return err == nil
		},
		"no-process": func() bool { return len(w.processes()) == 0 },
		"text": func() bool {
			raw, _ := os.ReadFile(ts.MkAbs(args[1]))
			return strings.Contains(string(raw), args[2])
		},
		"exit": func() bool {
			stat, err := os.ReadFile("/proc/" + args[1] + "/stat")
			if err != nil {
				return true
			}
			// Who should reap it may be slow. What it has open is closed by the
			// last of its threads, which need not be the first.
			threads, err := os.ReadDir("/proc/" + args[1] + "/task")
			return err != nil || len(threads) == 1 && strings.Contains(string(stat), ") Z ")
		},
		"idle": func() bool { // what the kernel reads ahead comes after the reader is done
			before := w.front.Counts()
			for range 10 { // and not in one go: the machine may stand still meanwhile
				time.Sleep(50 * time.Millisecond)
				if w.front.Counts() != before {
					return false
				}
			}
			return true
		},
		"local": func() bool { return attr(ts, args[1], "cached") == attr(ts, args[1], "data") },
		"asked": func() bool {
			return slices.ContainsFunc(w.front.Requests(), func(r *registrytest.Request) bool { return strings.Contains(r.Path, args[1]) })
		},
		"blobs": func() bool {
			n, err := strconv.Atoi(args[1])
			return err == nil && w.front.Counts().Blobs >= n
		},
	}[args[0]]
	if so == nil || !poll(so) {
		ts.Fatalf("did not come: %q", args)
	}
}

// attr is an xattr of a file of a mount.
func attr(ts *testscript.TestScript, name, which string) string {
	var b [64]byte
	n, err := unix.Getxattr(ts.MkAbs(name), "user.epochfs."+which, b[:])
	ts.Check(err)
	return string(b[:n])
}

// hold FILE: the test has it open, until release or the script's end.
func (w *world) hold(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	w.held = f
	ts.Defer(func() { f.Close() })
}

func (w *world) release(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(w.held.Close()) }

// journald DIR: from now on what comes to DIR/socket goes to DIR/lines, as
// the journal would get it.
func journald(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.Mkdir(dir, 0o700))
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unixgram"})
	ts.Check(err)
	out, err := os.Create(filepath.Join(dir, "lines"))
	ts.Check(err)
	var g errgroup.Group
	g.Go(func() error {
		buf := make([]byte, 64<<10)
		for {
			n, err := l.Read(buf)
			if err != nil {
				return out.Close() // the script has ended
			}
			if _, err := out.Write(append(buf[:n], '\n')); err != nil {
				return err
			}
		}
	})
	ts.Defer(func() {
		l.Close()
		ts.Check(g.Wait())
	})
}

// scrape FILE OUT: OUT becomes the metrics of the mount that FILE, made by
// status --json, tells of.
func scrape(ts *testscript.TestScript, _ bool, args []string) {
	var s control.Status
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &s))
	resp, err := http.Get("http://" + s.Mounts[0].Metrics + "/metrics")
	ts.Check(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), raw, 0o600))
	ts.Setenv("METRICS", s.Mounts[0].Metrics)
}
