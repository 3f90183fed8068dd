package ext4

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

// TestOldTags rewrites a journal to the second version of its checksums, whose
// tags have another size. Kernels read it and no longer write it.
func TestOldTags(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]string{"64bit": "-t ext4 -b 1024 -J size=4", "no 64bit": "-t ext4 -O ^64bit -b 1024 -J size=4"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dirty := copyWhileMounted(t, options, "", 11, 200)
			disk, err := os.ReadFile(dirty)
			if err != nil {
				t.Fatal(err)
			}
			rewritten := rewriteTags(t, disk)
			if err := os.WriteFile(dirty, disk, 0o644); err != nil {
				t.Fatal(err)
			}
			f, err := Open(guesttest.Bytes(disk))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(f.state, "recovered in memory (") || len(f.journal.home) == 0 || rewritten == 0 {
				t.Errorf("state %q, %d blocks replayed, %d descriptors", f.state, len(f.journal.home), rewritten)
			}
			dir, _ := guesttest.Mount(t, dirty, "ext4", "noatime")
			guesttest.Compare(t, f, dir, guesttest.Skip{Blocks: true})
		})
	}
}

// rewriteTags changes the tags of all descriptors in a journal, and returns
// how many there were.
func rewriteTags(t *testing.T, disk []byte) (descriptors int) {
	t.Helper()
	f, err := Open(guesttest.Bytes(disk))
	if err != nil {
		t.Fatal(err)
	}
	l, err := f.openLog()
	if err != nil || l.incompat&journalCsumV3 == 0 {
		t.Fatalf("features %#x, %v", l.incompat, err)
	}
	block := func(n int64) []byte {
		r, err := f.mapped(l.inode, n, n+1)
		if err != nil {
			t.Fatal(err)
		}
		at := int64(r.physical) * f.blockSize
		return disk[at : at+f.blockSize]
	}
	sum := func(seed uint32, b []byte, at int) {
		be.PutUint32(b[at:], 0)
		be.PutUint32(b[at:], crc32c(seed, b))
	}
	for n := l.first; n < l.end; n++ {
		b := block(n)
		if be.Uint32(b) != journalMagic || be.Uint32(b[4:]) != blockDescriptor {
			continue
		}
		descriptors++
		at := 12
		tags := l.tags(b)
		old := append([]byte(nil), b...)
		clear(b[12:])
		for k, tag := range tags {
			flags := uint16(0)
			if tag.escaped {
				flags |= tagEscaped
			}
			if k > 0 {
				flags |= tagSameUUID
			}
			if k == len(tags)-1 {
				flags |= tagLast
			}
			be.PutUint32(b[at:], uint32(tag.home))
			be.PutUint16(b[at+4:], uint16(tag.crc))
			be.PutUint16(b[at+6:], flags)
			at += 10
			if l.incompat&journal64bit != 0 {
				be.PutUint32(b[at-2:], uint32(tag.home>>32))
				at += 4
			}
			if k == 0 {
				at += copy(b[at:at+16], old[12+16:])
			}
		}
		sum(l.seed, b, len(b)-4)
	}
	s := block(0)
	be.PutUint32(s[0x28:], l.incompat&^journalCsumV3|journalCsumV2)
	sum(^uint32(0), s[:1024], 0xfc)
	return descriptors
}

// TestUnknownFeatures refuses what it does not know, by name.
func TestUnknownFeatures(t *testing.T) {
	t.Parallel()
	disk := guesttest.Sparse(t, 4<<20)
	guesttest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", disk)
	base, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	for bits, want := range map[uint32]string{0x1: "compression", 0x1000: "dirdata", 0x100000: "FEATURE_I20"} {
		changed := append([]byte(nil), base...)
		le.PutUint32(changed[1024+0x60:], le.Uint32(base[1024+0x60:])|bits)
		if _, err := Open(guesttest.Bytes(changed)); !errors.Is(err, vfs.ErrUnsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%#x: %v", bits, err)
		}
	}
}

// TestJournalIsReadOnce replays a journal of 64 MiB, of which 20 MB are used:
// in few reads, of little more than that.
func TestJournalIsReadOnce(t *testing.T) {
	t.Parallel()
	disk := guesttest.Sparse(t, 256<<20)
	guesttest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-J", "size=64", disk)
	dir, unmount := guesttest.Mount(t, disk, "ext4", "data=journal")
	const used = 20 << 20
	for n := range 20 {
		if err := os.WriteFile(dir+"/"+string(rune('a'+n)), make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		guesttest.Run(t, "sync", "-f", dir)
	}
	dirty := guesttest.Copy(t, disk)
	unmount()
	counted := guesttest.Count(guesttest.File(t, dirty))
	f, err := Open(counted)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.ReadAt(find(t, f, "t"), make([]byte, 5000), 0); n != 5000 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	t.Logf("%s, %d blocks: %d round trips, %d KiB", f.state, len(f.journal.home), counted.Trips, counted.Bytes>>10)
	if int64(len(f.journal.home))*f.blockSize < used || counted.Bytes > used+3<<20 || counted.Trips > 20 {
		t.Errorf("%d blocks:\n%s", len(f.journal.home), strings.Join(counted.Log, "\n"))
	}
}

// TestCasefold finds names in any case in directories that are made so. The
// kernel that mounts such file systems is not everywhere.
func TestCasefold(t *testing.T) {
	t.Parallel()
	disk := guesttest.Sparse(t, 4<<20)
	guesttest.Run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "casefold", disk)
	for _, command := range []string{"mkdir folded", "mkdir exact", "write /etc/hostname folded/Straße", "write /etc/hostname exact/Straße", "set_inode_field folded flags 0x40080000"} {
		guesttest.Run(t, "debugfs", "-w", "-R", command, disk)
	}
	f, err := Open(guesttest.File(t, disk))
	if err != nil {
		t.Fatal(err)
	}
	for path, found := range map[string]bool{"folded/Straße": true, "folded/sTRAßE": true, "exact/Straße": true, "exact/straße": false} {
		dir, name, _ := strings.Cut(path, "/")
		_, err := f.Lookup(find(t, f, dir), name)
		if found && err != nil || !found && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
