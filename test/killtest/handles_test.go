package killtest

import (
	"bytes"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// What has a handle of a file (NFS) finds it again when the kernel has
// forgotten the inode and another worker serves the mount.
func TestHandlesOutliveWorkers(t *testing.T) {
	t.Parallel()
	w := small(t)
	w.mount()
	handles := map[string]unix.FileHandle{}
	for _, f := range w.files {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, w.path("mnt", f.Name), 0)
		w.must(err)
		handles[f.Name] = h
	}
	first := w.serving(0)
	w.signal(first, unix.SIGKILL)
	w.serving(first)
	w.must(os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	dir, err := os.Open(w.path("mnt"))
	w.must(err)
	defer dir.Close()
	for _, f := range w.files {
		fd, err := unix.OpenByHandleAt(int(dir.Fd()), handles[f.Name], unix.O_RDONLY)
		w.must(err)
		file := os.NewFile(uintptr(fd), f.Name)
		got, err := io.ReadAll(file)
		if err != nil || !bytes.Equal(got, f.Data) {
			t.Errorf("%s: %d bytes, %v", f.Name, len(got), err)
		}
		file.Close()
	}
	dir.Close()
	w.poll("no handle is left", func() bool { return w.opened() == 0 })
	w.unmount()
}
