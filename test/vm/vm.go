// Package vm makes a real guest, saves it while it runs, and starts it again
// from a directory, with QEMU and without KVM, so that it takes the same way on
// every machine. The memory is mapped privately, as Cloud Hypervisor's restore
// does, and the disk is the backing file of an overlay.
package vm

import (
	"bytes"
	"context"
	_ "embed" // what runs outside of this program
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed guest/image.sh
var imageScript string

//go:embed guest/work.py
var workProgram []byte

//go:embed guest/readonly.c
var readonlySource string

// Names of a snapshot's files.
const (
	MemoryFile = "memory-ranges"
	DiskFile   = "cow.raw"
	StateFile  = "state.json"
)

// Snapshots are the names of a guest's snapshots, in the order in which they
// were saved, with the turns of its work that it had done.
var Snapshots = []struct {
	Name  string
	Turns int
}{{"m1", 20}, {"m2", 32}}

// Guest is a guest in a directory: kernel, image, and a directory a snapshot.
type Guest struct {
	dir string
}

// Path returns the guest's own directory.
func (g *Guest) Path() string { return g.dir }

// Dir returns the directory of a snapshot.
func (g *Guest) Dir(snapshot string) string { return filepath.Join(g.dir, snapshot) }

// Open returns the guest in dir. It makes what is missing, which takes root,
// a Debian mirror and some minutes; it reports its steps to progress.
func Open(ctx context.Context, dir string, progress func(string)) (*Guest, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	g := &Guest{dir}
	if missing := g.missing(); len(missing) > 0 {
		return nil, fmt.Errorf("a guest cannot be run here, missing: %s", strings.Join(missing, " "))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := g.preload(ctx); err != nil {
		return nil, err
	}
	if !g.has("disk.raw") {
		progress("making the guest's image, some minutes")
		if err := g.image(ctx); err != nil {
			return nil, err
		}
	}
	for _, s := range Snapshots {
		if !g.has(s.Name) {
			progress("running the guest to save it, some minutes")
			return g, g.save(ctx)
		}
	}
	return g, nil
}

func (g *Guest) has(name string) bool {
	_, err := os.Stat(filepath.Join(g.dir, name))
	return err == nil
}

// missing returns Debian's packages that have to be installed, and "root".
func (g *Guest) missing() (packages []string) {
	needs := [][2]string{{"qemu-system-x86_64", "qemu-system-x86"}, {"qemu-img", "qemu-utils"}, {"gcc", "gcc"}}
	if !g.has("disk.raw") {
		needs = append(needs, [2]string{"debootstrap", "debootstrap"}, [2]string{"mke2fs", "e2fsprogs"})
		if os.Geteuid() != 0 {
			packages = append(packages, "root")
		}
	}
	for _, n := range needs {
		if _, err := exec.LookPath(n[0]); err != nil {
			packages = append(packages, n[1])
		}
	}
	return packages
}

// image makes kernel and image. The image comes last: if it exists,
// everything does.
func (g *Guest) image(ctx context.Context) error {
	making, err := os.MkdirTemp(g.dir, "making-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(making)
	cmd := exec.CommandContext(ctx, "sh", "-c", imageScript, "image.sh", making)
	cmd.Stdin = bytes.NewReader(workProgram)
	if err := output(cmd); err != nil {
		return err
	}
	for _, name := range []string{"vmlinuz", "initrd", "disk.raw"} {
		if err := os.Rename(filepath.Join(making, name), filepath.Join(g.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// preload compiles what QEMU is started with.
func (g *Guest) preload(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "gcc", "-shared", "-fPIC", "-O2", "-x", "c", "-o", g.library(), "-", "-ldl")
	cmd.Stdin = strings.NewReader(readonlySource)
	return output(cmd)
}

func (g *Guest) library() string { return filepath.Join(g.dir, "readonly.so") }

// output runs a command; an error has what it said.
func output(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}
