package fs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// Whether a kernel asks again for what was declined is tried and not known. A
// process must not use a mount of its own, and a mount that is left behind
// would be seen. So a child makes a mount in a mount namespace of its own,
// which ends with it, and a child of that one reads from it.

// tryEnv is set for the two processes: to tryServe, or to the path of the file
// to read.
const (
	tryEnv   = "EPOCHFS_TRY_READS"
	tryServe = "serve"
)

// tryTime bounds the test. It takes some 50 ms.
const tryTime = 5 * time.Second

// trySize is the size of the file, in bytes: several windows of 2 MiB, which
// are touched in 16 places.
const trySize = 8 << 20

// IsTry reports whether a mount has started this process to try the kernel.
// Then main calls TryMain, before anything else is set up.
func IsTry() bool { return os.Getenv(tryEnv) != "" }

// TryMain is the main function of that process. It returns its exit code: 0
// if the kernel repeats, page by page, what was declined, and readers see no
// error.
func TryMain() int {
	do := tryServeReads
	if path := os.Getenv(tryEnv); path != tryServe {
		do = func() error { return tryRead(path) }
	}
	if err := do(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// tryDeclining finds out whether the kernel plays along.
func tryDeclining(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	cmd := tryCommand(ctx, tryServe)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
	}
	stdin, err := cmd.StdinPipe() // the child ends with this process
	if err != nil {
		return err
	}
	defer stdin.Close()
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(words.Bytes()))
	}
	return nil
}

func tryCommand(ctx context.Context, what string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), tryEnv+"="+what)
	cmd.Dir = "/"
	return cmd
}

// kernelAsksAgain is whether READs can be declined: false until that is known.
var kernelAsksAgain atomic.Bool

var tryOnce sync.Once

// TryDeclining finds out, in the background and once for the process, whether
// READs can be declined. No mount declines one before. It is for who will want
// to; to start it early is to decline sooner.
func TryDeclining() {
	tryOnce.Do(func() {
		go func() {
			if tryDeclining(context.Background()) == nil {
				kernelAsksAgain.Store(true)
			}
		}()
	})
}

// tryServeReads mounts a file out of sight of other processes, declines what
// it can, and lets a child read.
func tryServeReads() error {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	data := make([]byte, trySize)
	for off := 0; off < trySize; off += 8 {
		binary.NativeEndian.PutUint64(data[off:], tryWord(off))
	}
	all := func(string, int64, int64) bool { return true }
	var files []File
	for _, name := range []string{"read", "mapped"} {
		files = append(files, File{Name: name, Mode: 0o444, Map: sparse.Dense(trySize), Content: BytesContent(data)})
	}
	m, err := Mount(os.TempDir(), files, Options{FSName: "epochfs-try", Decline: all, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())})
	if err != nil {
		return err
	}
	kernelAsksAgain.Store(true)
	for _, f := range files {
		cmd := tryCommand(context.Background(), filepath.Join(m.Dir(), f.Name))
		cmd.Stderr = os.Stderr
		before := m.tree.declinedReads.Load()
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		if m.tree.declinedReads.Load() == before {
			return fmt.Errorf("%s: no READ of several pages came", f.Name)
		}
	}
	return nil
}

// tryWord returns the contents of the file at an offset.
func tryWord(off int) uint64 { return uint64(off) * 0x9e3779b97f4a7c15 }

var errTry = errors.New("wrong bytes")

// tryRead reads a file in the way that its name selects, and compares it.
func tryRead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var data []byte
	if filepath.Base(path) == "read" {
		data = make([]byte, 64<<10)
		if _, err := io.ReadFull(f, data); err != nil {
			return err
		}
	} else {
		if data, err = unix.Mmap(int(f.Fd()), 0, trySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE); err != nil {
			return os.NewSyscallError("mmap", err)
		}
		_ = unix.Madvise(data, unix.MADV_HUGEPAGE) // not every kernel knows it
	}
	for at := 0; at+8 <= len(data); at += len(data) / 16 {
		if binary.NativeEndian.Uint64(data[at:]) != tryWord(at) {
			return errTry
		}
	}
	return nil
}
