package guesttest

import (
	"encoding/binary"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Contents selects what Populate makes.
type Contents struct {
	// Many is the number of files in the directory with an index.
	Many int
	// Large is the number of bytes of the largest file.
	Large int
	// NoXattrs, NoDevices and NoLinks leave out what a format lacks.
	NoXattrs, NoDevices, NoLinks bool
	// Plain leaves out what Windows has not: permissions, odd names and links
	// to any text.
	Plain bool
	// Zeros fills files with zeros, so that all other bytes are metadata.
	Zeros bool
}

// Populate fills a directory with files of each kind.
func Populate(t testing.TB, dir string, c Contents) {
	t.Helper()
	p := &populating{t: t, dir: dir, random: rand.New(rand.NewSource(1)), plain: c.Plain, zeros: c.Zeros}
	p.files(c.Large)
	p.directories(c.Many)
	if !c.NoLinks {
		p.links()
	}
	if !c.NoDevices {
		p.devices()
	}
	if !c.NoXattrs {
		p.attributes()
	}
}

// Few fills a directory with a few small files, for a fuzz target.
func Few(t testing.TB, dir string) {
	t.Helper()
	p := &populating{t: t, dir: dir, zeros: true}
	p.must(os.Mkdir(p.path("directory"), 0o755))
	for k := range 40 {
		p.file(fmt.Sprintf("directory/a name of a file %d", k), 0)
	}
	p.file("small", 10)
	p.file("large", 30000)
	p.must(os.Symlink("small", p.path("link")))
	f, err := os.Create(p.path("sparse"))
	p.must(err)
	_, err = f.WriteAt([]byte("x"), 100000)
	p.must(err)
	p.must(f.Close())
}

type populating struct {
	t      testing.TB
	dir    string
	random *rand.Rand
	plain  bool
	zeros  bool
}

func (p *populating) path(name string) string { return filepath.Join(p.dir, name) }

func (p *populating) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *populating) bytes(n int) []byte {
	b := make([]byte, n)
	if !p.zeros {
		p.random.Read(b)
	}
	return b
}

func (p *populating) file(name string, size int) {
	p.t.Helper()
	p.must(os.WriteFile(p.path(name), p.bytes(size), 0o644))
}

// files makes files of sizes about the borders of blocks and of inline data,
// with holes, with preallocated space and in many pieces.
func (p *populating) files(large int) {
	for _, size := range []int{0, 1, 59, 60, 61, 100, 155, 156, 200, 1023, 1024, 1025, 4095, 4096, 4097, 12 << 10, 13<<10 + 1, 70001} {
		p.file(fmt.Sprintf("size-%d", size), size)
	}
	p.file("large", large)
	if !p.plain {
		p.must(os.Chmod(p.path("size-59"), 0o4755))
		p.must(os.Chmod(p.path("size-60"), 0o2751))
	}
	f, err := os.Create(p.path("sparse"))
	p.must(err)
	for _, at := range []int64{5000, 1 << 20, 5<<20 + 123, 70 << 20} {
		_, err := f.WriteAt(p.bytes(6000), at)
		p.must(err)
	}
	p.must(f.Truncate(100<<20 + 17))
	p.must(f.Close())
	f, err = os.Create(p.path("hole at the end"))
	p.must(err)
	_, err = f.WriteAt(p.bytes(10), 0)
	p.must(err)
	p.must(f.Truncate(1 << 20))
	p.must(f.Close())
	f, err = os.Create(p.path("only a hole"))
	p.must(err)
	p.must(f.Truncate(12345678))
	p.must(f.Close())
	p.pieces()
	p.preallocated()
}

// pieces makes a file whose every other block is a hole, so that it takes
// a deep tree.
func (p *populating) pieces() {
	f, err := os.Create(p.path("pieces"))
	p.must(err)
	for k := range int64(600) {
		_, err := f.WriteAt(p.bytes(100), k*16384)
		p.must(err)
	}
	p.must(f.Close())
}

// preallocated has blocks that were not written, in the middle and beyond the
// end.
func (p *populating) preallocated() {
	f, err := os.Create(p.path("preallocated"))
	p.must(err)
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 1<<20); err != nil {
		return // ext2 and ext3 cannot
	}
	_, err = f.WriteAt(p.bytes(9000), 300000)
	p.must(err)
	p.must(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 1<<20, 1<<20))
}

func (p *populating) directories(many int) {
	p.must(os.Mkdir(p.path("empty"), 0o700))
	p.must(os.MkdirAll(p.path("a/b/c/d/e/f"), 0o755))
	p.file("a/b/c/d/e/f/deep", 5000)
	p.must(os.Mkdir(p.path("sticky"), 0o777))
	p.must(unix.Chmod(p.path("sticky"), 0o1777))
	p.file("a/"+strings.Repeat("n", 255), 10)
	p.file("a/ä ö ü ß", 10)
	if !p.plain {
		p.file("a/tab\tquote\"backslash\\", 10)
	}
	p.must(os.Mkdir(p.path("many"), 0o755))
	for k := range many {
		p.file(fmt.Sprintf("many/%d-%s", k, strings.Repeat("x", k%40)), k%7*10)
	}
	for k := 0; k < many; k += 3 {
		p.must(os.Remove(p.path(fmt.Sprintf("many/%d-%s", k, strings.Repeat("x", k%40)))))
	}
	p.must(os.Mkdir(p.path("some"), 0o755))
	for k := range 30 {
		p.file(fmt.Sprintf("some/%d", k), 100)
	}
}

func (p *populating) links() {
	for _, n := range []int{1, 58, 59, 60, 61, 150, 1000} {
		p.must(os.Symlink(strings.Repeat("t", n), p.path(fmt.Sprintf("link-%d", n))))
	}
	p.must(os.Link(p.path("size-4097"), p.path("a/hard")))
}

func (p *populating) devices() {
	p.must(unix.Mknod(p.path("fifo"), unix.S_IFIFO|0o600, 0))
	p.must(unix.Mknod(p.path("socket"), unix.S_IFSOCK|0o600, 0))
	p.must(unix.Mknod(p.path("char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	p.must(unix.Mknod(p.path("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	p.must(unix.Mknod(p.path("whiteout"), unix.S_IFCHR, 0))
	p.file("owned", 10)
	p.must(os.Chown(p.path("owned"), 100000, 4000000000))
	p.must(unix.UtimesNanoAt(unix.AT_FDCWD, p.path("owned"), []unix.Timespec{{Sec: 1, Nsec: 5}, {Sec: 2<<32 + 7, Nsec: 999999999}}, 0))
	p.file("old", 10)
	p.must(unix.UtimesNanoAt(unix.AT_FDCWD, p.path("old"), []unix.Timespec{{Sec: -1000}, {Sec: -5}}, 0))
}

func (p *populating) attributes() {
	set := func(name, attr string, value []byte) {
		p.t.Helper()
		p.must(unix.Lsetxattr(p.path(name), attr, value, 0))
	}
	p.file("attributes", 5)
	set("attributes", "user.small", []byte("v"))
	set("attributes", "user.empty", nil)
	set("attributes", "trusted.overlay.opaque", []byte("y"))
	set("attributes", "security.something", []byte("\x00\x01"))
	p.file("attributes in a block", 5)
	set("attributes in a block", "user.medium", p.bytes(700))
	set("attributes in a block", "user.small", []byte("v"))
	set("empty", "user.directory", []byte("d"))
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, ^uint32(0)}, {2, 5, 1000}, {4, 4, ^uint32(0)}, {16, 7, ^uint32(0)}, {32, 0, ^uint32(0)}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	set("attributes", "system.posix_acl_access", acl)
	set("a", "system.posix_acl_default", acl)
}
