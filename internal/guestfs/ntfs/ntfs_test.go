package ntfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

// mount mounts by ntfs-3g, which needs no loop device.
func mount(t testing.TB, disk, options string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	guesttest.Run(t, "ntfs-3g", "-o", options, disk, dir)
	done := false
	unmount = func() {
		if !done {
			done = true
			guesttest.Run(t, "umount", dir)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

func make1(t testing.TB, options ...string) string {
	t.Helper()
	disk := guesttest.Sparse(t, 64<<20)
	guesttest.Run(t, "mkntfs", append(append([]string{"-q", "-f", "-F", "-L", "Läbel", "-p", "0", "-H", "0", "-S", "0"}, options...), disk)...)
	return disk
}

// loses are what NTFS does not have, or ntfs-3g shows in its own way.
var loses = guesttest.Skip{Links: true, Owner: true, Mode: true, DirSizes: true, Extents: true, Xattrs: true, Blocks: true}

func TestAsNtfs3g(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]string{
		"default":         {"-s", "512"},
		"clusters of 512": {"-s", "512", "-c", "512"},
		"clusters of 64k": {"-s", "512", "-c", "65536"},
		"sectors of 4k":   {"-s", "4096"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := make1(t, options...)
			dir, unmount := mount(t, disk, "special_files=wsl,compression")
			guesttest.Populate(t, dir, guesttest.Contents{Many: 1000, Large: 1 << 20, NoXattrs: true, NoDevices: true, Plain: true})
			if !strings.HasSuffix(name, "64k") { // only those up to 4 KiB are compressed
				compressed(t, dir)
			}
			hardLinks(t, dir)
			unmount()
			f, err := Open(guesttest.File(t, disk))
			if err != nil {
				t.Fatal(err)
			}
			if d := f.Describe(); d.State != "clean" || d.Label != "Läbel" {
				t.Errorf("%+v", d)
			}
			dir, _ = mount(t, disk, "ro,special_files=wsl,noatime")
			if n := guesttest.Compare(t, f, dir, loses); n < 700 {
				t.Errorf("compared %d files", n)
			}
		})
	}
}

// compressed makes files in a directory whose files are compressed: some that
// are smaller for it, some that are not, and some in between.
func compressed(t testing.TB, dir string) {
	t.Helper()
	dir = filepath.Join(dir, "compressed")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(dir, "system.ntfs_attrib_be", []byte{0, 0, 0x08, 0}, 0); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{100, 5000, 65536, 65537, 300000} {
		for kind, fill := range map[string]func(k int) byte{
			"zeros":  func(int) byte { return 0 },
			"text":   func(k int) byte { return "some words that come again and again "[k%37] },
			"mixed":  func(k int) byte { return byte(k * k >> (k >> 12 % 9)) },
			"noise":  func(k int) byte { return byte(k*k*k>>7 ^ k*2654435761>>13) },
			"ramped": func(k int) byte { return byte(k >> 3) },
		} {
			b := make([]byte, size)
			for k := range b {
				b[k] = fill(k)
			}
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d", kind, size)), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// hardLinks gives a file so many names that they need records of their own.
func hardLinks(t testing.TB, dir string) {
	t.Helper()
	for n := range 60 {
		if err := os.Link(filepath.Join(dir, "large"), filepath.Join(dir, "a", fmt.Sprintf("%s-%d", strings.Repeat("link", 20), n))); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMounted copies a file system while it is mounted: nobody can tell
// whether what is in the log was written to its place.
func TestMounted(t *testing.T) {
	t.Parallel()
	disk := make1(t, "-s", "512")
	dir, _ := mount(t, disk, "")
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	// ntfs-3g does not use the log: what Windows leaves in it is made here.
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(guesttest.Bytes(b))
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.record(recordLog)
	if err != nil {
		t.Fatal(err)
	}
	log, err := f.stream(r, typeData, "")
	if err != nil {
		t.Fatal(err)
	}
	for n := range int64(2) {
		at, _ := f.place(log, n*4096)
		page := b[at : at+4096]
		clear(page)
		copy(page, "RSTR")
		le.PutUint16(page[4:], 30)
		le.PutUint16(page[6:], 9)
		le.PutUint16(page[24:], 48)
		le.PutUint64(page[48:], uint64(100+n))
	}
	if f, err = Open(guesttest.Bytes(b)); err != nil {
		t.Fatal(err)
	}
	if state := f.Describe().State; state != "journal not replayed: may be older than the snapshot" {
		t.Errorf("state %q", state)
	}
}

// TestOtherForms refuses a file whose contents Windows keeps elsewhere.
func TestOtherForms(t *testing.T) {
	t.Parallel()
	disk := make1(t, "-s", "512")
	dir, unmount := mount(t, disk, "")
	name := filepath.Join(dir, "system file")
	if err := os.WriteFile(name, []byte("zeros"), 0o644); err != nil {
		t.Fatal(err)
	}
	point := make([]byte, 8+16)
	le.PutUint32(point, 0x80000017) // compressed by WOF
	le.PutUint16(point[4:], 16)
	if err := unix.Setxattr(name, "system.ntfs_reparse_data", point, 0); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "junction")
	if err := os.Mkdir(link, 0o755); err != nil {
		t.Fatal(err)
	}
	target := []byte{}
	for _, c := range `\??\C:\Users` + "\x00" + `C:\Users` + "\x00" {
		target = le.AppendUint16(target, uint16(c))
	}
	point = make([]byte, 16)
	le.PutUint32(point, tagMountPoint)
	le.PutUint16(point[4:], uint16(8+len(target)))
	le.PutUint16(point[10:], 24)
	le.PutUint16(point[12:], 26)
	le.PutUint16(point[14:], 16)
	if err := unix.Setxattr(link, "system.ntfs_reparse_data", append(point, target...), 0); err != nil {
		t.Fatal(err)
	}
	unmount()
	f, err := Open(guesttest.File(t, disk))
	if err != nil {
		t.Fatal(err)
	}
	inode, err := f.Lookup(f.Root(), "SYSTEM FILE")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(inode, make([]byte, 5), 0); err == nil || !strings.Contains(err.Error(), "0x80000017") {
		t.Errorf("ReadAt: %v", err)
	}
	if inode, err = f.Lookup(f.Root(), "junction"); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Readlink(inode); got != "C:/Users" || err != nil {
		t.Errorf("Readlink: %q, %v", got, err)
	}
	if info, err := f.Stat(inode); err != nil || info.Type != vfs.Symlink || info.Size != 8 {
		t.Errorf("Stat: %+v, %v", info, err)
	}
}
