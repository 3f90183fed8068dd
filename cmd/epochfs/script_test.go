package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	fusefs "github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/test/cocoontest"
	"github.com/cocoonstack/epochfs/test/epochlike"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
)

const epochToken = "epoch-token-of-the-test"

// patience bounds every wait for something that must come.
const patience = time.Minute

func TestMain(m *testing.M) {
	if fusefs.IsTry() { // started by a mount, without the name of a command
		os.Exit(fusefs.TryMain())
	}
	testscript.Main(runner{m}, map[string]func(){
		"epochfs":            mainOfTests,
		"mount.fuse.epochfs": main,
		automapName:          main,
		"mapper":             mapper,
		"cocoon":             cocoontest.Main,
		"toucher":            toucher,
	})
}

// reportEnv is how often a command tells of its progress, in scripts.
const reportEnv = "EPOCHFS_TEST_REPORT_EVERY"

// tardyEnv is the shortest wait that counts as a stall, in scripts that count
// requests or bytes: on a busy machine others have doubles.
const tardyEnv = "EPOCHFS_TEST_TARDY"

func mainOfTests() {
	if d, err := time.ParseDuration(os.Getenv(reportEnv)); err == nil {
		reportEvery = d
	}
	if d, err := time.ParseDuration(os.Getenv(tardyEnv)); err == nil {
		tardy = d
	}
	main()
}

// registries are the registries that a script runs against, where they are not
// only the one in memory.
var registries = map[string][]string{
	"flow.txtar":        {"memory", "debian", "epoch"},
	"artifacts.txtar":   {"memory", "epoch"},
	"secrets.txtar":     {"guarded"},
	"credentials.txtar": {"guarded"},
	"restart.txtar":     {"debian"},
	"slow.txtar":        {"epoch"},
	"takeover.txtar":    {"debian"},
	"holes.txtar":       {"memory"},
	"whole.txtar":       {"debian", "epoch"},
	"reflink.txtar":     {"memory"},
	"odd.txtar":         {"memory"},
	"keep.txtar":        {"memory"},
}

// long are scripts that make check leaves out, and what they do.
var long = map[string]string{
	"codes.txtar":         "waits for registries that are away",
	"credentials.txtar":   "looks for FUSE",
	"demo.txtar":          "mounts",
	"doctor.txtar":        "looks for FUSE",
	"errors.txtar":        "waits for registries that are away",
	"hostile.txtar":       "waits for time-outs",
	"inside.txtar":        "runs the tools that make disks",
	"insidediff.txtar":    "runs the tools that make disks",
	"insidehostile.txtar": "runs the tools that make disks",
	"offline.txtar":       "waits for registries that are away",
	"progress.txtar":      "waits for slow registries",
	"secrets.txtar":       "mounts",
}

func TestScript(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		on := registries[name]
		if on == nil {
			on = []string{"memory"}
		}
		for _, kind := range on {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel() // each has a registry and a cache of its own
				leaveOut(t, file)
				runScript(t, file, kind)
			})
		}
	}
}

// builtIn is the directory of the program that plain made, for all tests; ""
// if no test asked.
var builtIn string

// plain makes the program without the race detector, which takes time and
// memory of its own. Without it the program of the scripts is that already.
var plain = sync.OnceValues(func() (string, error) {
	if !underRace {
		return exec.LookPath("epochfs")
	}
	var err error
	if builtIn, err = os.MkdirTemp("", "epochfs-plain-"); err != nil {
		return "", err
	}
	bin := filepath.Join(builtIn, "epochfs")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-ldflags=-s -w", "-o", bin, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

func buildPlain(t *testing.T) string {
	t.Helper()
	bin, err := plain()
	must(t, err)
	return bin
}

// runner runs the tests, and removes what they made for each other.
type runner struct{ *testing.M }

func (r runner) Run() int {
	defer func() { _ = os.RemoveAll(builtIn) }()
	return r.M.Run()
}

// world is what a script has around it.
type world struct {
	t       *testing.T
	plain   string // the program to run, where it is not to be the one under the race detector
	work    string
	front   *registrytest.Front
	debian  *registrytest.Registry // behind front, where it is Debian's
	guarded *guarded               // behind front, where secrets are kept
	held    *os.File               // by the command hold
}

func runScript(t *testing.T, file, kind string) {
	w := &world{t: t}
	w.startRegistry(kind)
	testscript.Run(t, testscript.Params{
		Files:               []string{file},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               w.setup,
		Cmds:                w.commands(),
		Condition:           condition,
	})
}

func startRegistry(t *testing.T, kind string) *registrytest.Front {
	w := &world{t: t}
	w.startRegistry(kind)
	return w.front
}

func (w *world) startRegistry(kind string) {
	switch kind {
	case "debian":
		w.debian = registrytest.Debian(w.t, registrytest.DebianOptions{})
		w.front = registrytest.Before(w.t, w.debian.URL)
	case "epoch":
		w.front = registrytest.NewFront(w.t, &epochlike.Server{Token: epochToken})
	case "guarded":
		w.guarded = newGuarded(w.t)
		w.front = registrytest.NewFront(w.t, w.guarded)
	default:
		w.front = registrytest.InMemory(w.t)
	}
}

func (w *world) setup(env *testscript.Env) error {
	w.work = env.WorkDir
	fixtures, err := filepath.Abs("../../snapshot/testdata")
	if err != nil {
		return err
	}
	for key, value := range map[string]string{
		"REG":                  w.front.Host,
		"FIXTURES":             fixtures,
		"HOME":                 filepath.Join(w.work, ".home"),
		"DOCKER_CONFIG":        filepath.Join(w.work, ".docker"),
		mounting.CacheDirEnv:   w.cacheDir(),
		control.DirEnv:         filepath.Join(w.work, ".run"),
		cocoontest.DirEnv:      filepath.Join(w.work, ".cocoon"),
		"EPOCH_SERVER":         w.front.URL,
		"EPOCH_REGISTRY_TOKEN": epochToken,
		"GORACE":               "atexit_sleep_ms=0 " + os.Getenv("GORACE"),
	} {
		env.Setenv(key, value)
	}
	if w.debian != nil {
		env.Setenv("DIRECT", w.debian.Host)
	}
	if w.plain != "" {
		env.Setenv("PATH", filepath.Dir(w.plain)+string(os.PathListSeparator)+env.Getenv("PATH"))
	}
	env.Defer(w.cleanUp)
	return nil
}

func (w *world) cacheDir() string { return filepath.Join(w.work, ".cache") }

// cleanUp takes away what a script left, and a script that did not fail
// must have left nothing.
func (w *world) cleanUp() {
	w.front.Clear()
	var left []string
	for _, dir := range w.mounts() {
		left = append(left, "mount "+dir)
		_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	}
	if len(left) > 0 && !w.t.Failed() {
		w.t.Errorf("left behind: %v", left)
	}
	if !poll(func() bool { return len(w.processes()) == 0 }) {
		for _, pid := range w.processes() {
			if !w.t.Failed() {
				w.t.Errorf("process %d does not end", pid)
			}
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// mounts are the mounts in the script's directory, the last one first.
func (w *world) mounts() (dirs []string) {
	table, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[1], w.work+"/") {
			dirs = append(dirs, f[1])
		}
	}
	slices.Reverse(dirs)
	return dirs
}

// processes are those behind mounts: ours, by the environment they got.
func (w *world) processes() (pids []int) { return processesOn(w.cacheDir()) }

func processesOn(cacheDir string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	mark := []byte("\x00" + mounting.CacheDirEnv + "=" + cacheDir)
	for _, file := range files {
		var pid int
		_, _ = fmt.Sscanf(file, "/proc/%d/", &pid)
		if env, err := os.ReadFile(file); err == nil && pid != os.Getpid() && bytes.Contains(env, mark) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// needs is a condition without which a script is skipped as a whole.
var needs = regexp.MustCompile(`(?m)^\[!\w+\] skip`)

// leaveOut skips what of the scripts make check does not run. What of them
// needs FUSE or root is left out by condition.
func leaveOut(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if needs.Match(text) {
		tier.Long(t, "mounts, or needs root")
	}
	if what, ok := long[filepath.Base(file)]; ok {
		tier.Long(t, what)
	}
}

func condition(cond string) (bool, error) {
	if testing.Short() {
		return false, nil
	}
	switch cond {
	case "root":
		return os.Geteuid() == 0, nil
	case "oom":
		return exec.Command("sh", "-c", "echo -900 >/proc/self/oom_score_adj").Run() == nil, nil
	case "fuse":
		f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
		if err == nil {
			f.Close()
		}
		return err == nil, nil
	case "autofs":
		table, err := os.ReadFile("/proc/filesystems")
		return os.Geteuid() == 0 && bytes.Contains(table, []byte("\tautofs\n")), err
	case "xfs":
		_, err := exec.LookPath("mkfs.xfs")
		_, noLoop := os.Stat("/dev/loop-control")
		return os.Geteuid() == 0 && err == nil && noLoop == nil, nil
	case "loop":
		_, err := os.Stat("/dev/loop-control")
		return os.Geteuid() == 0 && err == nil, nil
	}
	return false, fmt.Errorf("unknown condition %q", cond)
}

// poll asks until it is so, or patience has run out. It leaves most of the time
// to what it waits for, also where processes are started to ask.
func poll(so func() bool) bool {
	for end := time.Now().Add(patience); ; {
		began := time.Now()
		if so() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		time.Sleep(max(5*time.Millisecond, 3*time.Since(began)))
	}
}

// tree lists the files below dir, but for the cache and what the system
// keeps there.
func tree(dir string) (names []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		names = append(names, path)
		return err
	})
	return names, err
}
