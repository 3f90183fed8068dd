package cocoontest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Ways in which a file of a snapshot gets into a VM's directory.
const (
	linked   = "linked"
	symlink  = "symlinked"
	reflink  = "reflinked"
	sparsely = "copied by SEEK_DATA"
	wholly   = "copied"
)

// Names of files that a VM of the stand-in has beside the snapshot's.
const (
	HowFile   = "how"        // a line for each file of the snapshot: its name, and how it came
	ReadyFile = "ready"      // the VM's process id, once it runs
	SumFile   = "memory.sum" // the digest of the memory as the VM saw it, once it has ended
)

// vmFlags parses the arguments of clone and restore.
func vmFlags(args []string) (dir, name, mode string, err error) {
	mode = "mmap"
	for len(args) > 0 {
		if !strings.HasPrefix(args[0], "--") {
			name, args = args[0], args[1:]
			continue
		}
		if len(args) == 1 {
			return "", "", "", fmt.Errorf("flag needs an argument: %s", args[0])
		}
		switch args[0] {
		case "--from-dir":
			dir = args[1]
		case "--name":
			name = args[1]
		case "--restore-mode":
			mode = args[1]
		default:
			return "", "", "", fmt.Errorf("unknown flag: %s", args[0])
		}
		args = args[2:]
	}
	if dir == "" || name == "" || !slices.Contains([]string{"copy", "ondemand", "mmap"}, mode) {
		return "", "", "", errors.New("--from-dir, a name and a known --restore-mode are needed")
	}
	return dir, name, mode, nil
}

// clone makes a VM of a snapshot's directory and is its process, until a signal
// ends it.
func (s Store) clone(args []string, restore bool) error {
	src, name, mode, err := vmFlags(args)
	if err != nil {
		return err
	}
	dst := filepath.Join(s.Dir, "vms", name)
	if restore {
		err = os.RemoveAll(dst)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(dst), 0o755)
	}
	if err == nil {
		err = os.Mkdir(dst, 0o755)
	}
	if err != nil {
		return err
	}
	memory, err := CloneSnapshotFiles(dst, src)
	if err != nil {
		return err
	}
	return runVM(dst, memory, mode)
}

// CloneSnapshotFiles makes a VM's files of a snapshot's, as cocoon's function of
// that name: memory is linked, and symlinked if and only if that fails with EXDEV;
// disks are reflinked, or else what SEEK_DATA reports is copied; all else is copied
// whole. It returns the path of the memory file.
func CloneSnapshotFiles(dst, src string) (memory string, err error) {
	if err := checkSnapshot(src); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(src)
	if err != nil {
		return "", err
	}
	var how strings.Builder
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		from, to := filepath.Join(src, e.Name()), filepath.Join(dst, e.Name())
		way := wholly
		switch {
		case e.Name() == "mem" || strings.HasPrefix(e.Name(), "memory-range"):
			memory = to
			way, err = linkMemory(from, to)
		case strings.HasSuffix(e.Name(), ".raw") || strings.HasSuffix(e.Name(), ".qcow2"):
			way, err = copyDisk(from, to)
		default:
			err = copyWhole(from, to)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", e.Name(), err)
		}
		fmt.Fprintf(&how, "%s %s\n", e.Name(), way)
	}
	if memory == "" {
		return "", errors.New("the snapshot has no memory")
	}
	return memory, os.WriteFile(filepath.Join(dst, HowFile), []byte(how.String()), 0o644)
}

// checkSnapshot reads the envelope and checks that the listed files exist,
// and that the disk has the stated size.
func checkSnapshot(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "snapshot.json"))
	if err != nil {
		return err
	}
	var env struct {
		Config struct {
			Storage int64 `json:"storage"`
		} `json:"config"`
		Files []string `json:"files"`
	}
	if err := json.Unmarshal(raw, &env); err != nil {
		return fmt.Errorf("decode snapshot.json: %w", err)
	}
	for _, name := range env.Files {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("a listed file is missing: %w", err)
		}
	}
	st, err := os.Stat(filepath.Join(dir, "cow.raw"))
	if err == nil && st.Size() != env.Config.Storage {
		return fmt.Errorf("cow.raw has %d bytes, the snapshot says %d", st.Size(), env.Config.Storage)
	}
	return nil
}

func linkMemory(from, to string) (way string, err error) {
	err = os.Link(from, to)
	if err == nil {
		return linked, nil
	}
	if !errors.Is(err, syscall.EXDEV) {
		return "", err // whatever else it is, cocoon gives up
	}
	from, err = filepath.Abs(from)
	if err != nil {
		return "", err
	}
	return symlink, os.Symlink(from, to)
}

func copyDisk(from, to string) (way string, err error) {
	in, out, err := openBoth(from, to)
	if err != nil {
		return "", err
	}
	defer in.Close()
	defer func() { err = errors.Join(err, out.Close()) }()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return reflink, nil
	}
	st, err := in.Stat()
	if err != nil {
		return "", err
	}
	if err := out.Truncate(st.Size()); err != nil {
		return "", err
	}
	for at := int64(0); ; {
		data, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return sparsely, nil
		}
		if err != nil {
			return "", err
		}
		if at, err = unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE); err != nil {
			return "", err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, at-data)); err != nil {
			return "", err
		}
	}
}

func copyWhole(from, to string) (err error) {
	in, out, err := openBoth(from, to)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func openBoth(from, to string) (in, out *os.File, err error) {
	if in, err = os.Open(from); err != nil {
		return nil, nil, err
	}
	if out, err = os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644); err != nil {
		in.Close()
		return nil, nil, err
	}
	return in, out, nil
}
