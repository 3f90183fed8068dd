package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helpDrain reads a file from start to end, or touches every page of a
// mapping, and prints how long that took, in ns. "cold" drops the file's
// pages first.
func helpDrain(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	if strings.Contains(args[1], "cold") {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
	}
	began := time.Now()
	if strings.Contains(args[1], "mmap") {
		b, _, err := mapFile(args[0])
		if err != nil {
			return err
		}
		sum := 0
		for i := 0; i < len(b); i += 4096 {
			sum += int(b[i])
		}
		fmt.Fprintln(os.Stderr, sum)
	} else {
		buf := make([]byte, 1<<20)
		for n := 1; n > 0; {
			if n, err = unix.Read(int(f.Fd()), buf); err != nil {
				return err
			}
		}
	}
	fmt.Println(int64(time.Since(began)))
	return nil
}

// BenchmarkRead compares a file on disk with the same file seen through a
// mount, in page cache below.
func BenchmarkRead(b *testing.B) {
	const size = 1 << 30
	if _, err := os.Stat(fuseDevice); err != nil {
		b.Skip(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "epochfs-bench-")
	if err != nil {
		b.Skip(err)
	}
	defer os.RemoveAll(dir)
	local, mnt := filepath.Join(dir, "local"), filepath.Join(dir, "mnt")
	noError(b, os.Mkdir(mnt, 0o755))
	f, err := os.Create(local)
	noError(b, err)
	defer f.Close()
	for i := range uint64(size >> 20) {
		_, err := f.Write(randomBytes(1<<20, i))
		noError(b, err)
	}
	for _, tc := range []struct {
		name, how string
		ready     bool
		readAhead int
	}{
		{"local", "read", false, 0},
		{"local", "mmap", false, 0},
		{"passthrough", "read", true, 0},
		{"passthrough", "mmap", true, 0},
		{"cached", "read cold", false, 0},
		{"cached", "mmap cold", false, 0},
		{"cached", "read warm", false, 0},
		{"cached", "mmap warm", false, 0},
		{"cached-ra128K", "read cold", false, 128 << 10},
		{"cached-ra4M", "read cold", false, 4 << 20},
	} {
		b.Run(tc.name+"/"+strings.ReplaceAll(tc.how, " ", "-"), func(b *testing.B) {
			path := local
			if tc.name != "local" {
				c := &fileContent{file: f}
				c.ready.Store(tc.ready)
				m, err := Mount(mnt, []File{fileOf("f", size, c)}, Options{ReadAhead: tc.readAhead})
				noError(b, err)
				defer func() { noError(b, Unmount(mnt, true)); m.Wait() }()
				path = filepath.Join(mnt, "f")
			}
			if strings.HasSuffix(tc.how, "warm") {
				noError(b, helperCmd("drain", path, tc.how).Run())
			}
			var took int64
			for range b.N {
				out, err := helperCmd("drain", path, tc.how).Output()
				noError(b, err)
				ns, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
				noError(b, err)
				took += ns
			}
			b.ReportMetric(float64(size)*float64(b.N)/float64(took), "GB/s")
		})
	}
}

func noError(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
