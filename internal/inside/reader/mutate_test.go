package reader_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
	"github.com/cocoonstack/epochfs/internal/inside/reader"
	"github.com/cocoonstack/epochfs/internal/sandbox"
)

// damagedEnv is how many damaged images of each format are looked into;
// make soak sets it.
const damagedEnv = "EPOCHFS_DAMAGED_IMAGES"

func TestMain(m *testing.M) {
	if sandbox.Is() {
		os.Exit(reader.Main())
	}
	goleak.VerifyTestMain(m)
}

// disk is an image in memory.
type disk []byte

func (d disk) Size() int64 { return int64(len(d)) }

func (d disk) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return copy(p, d[off:]), nil // the session keeps within Size
}

func (d disk) ReadOn(ctx context.Context, p []byte, off int64) (int, error) {
	return d.ReadAt(ctx, p, off)
}

// formats make images of some files.
var formats = map[string]string{
	"ext4":  `mkfs.ext4 -q -O inline_data -d tree disk 8M`,
	"ext2":  `mkfs.ext2 -q -b 1024 -d tree disk 4M`,
	"gpt":   `mkfs.ext2 -q -d tree part 4M; truncate -s 8M disk; echo 'start=2048,size=8192' | sfdisk -q -X gpt disk; dd if=part of=disk bs=1M seek=1 conv=notrunc status=none`,
	"vfat":  `mkfs.vfat -C disk 4096 >/dev/null`,
	"ntfs":  `truncate -s 8M disk; mkfs.ntfs -q -F -Q disk`,
	"xfs":   `truncate -s 300M disk; mkfs.xfs -q disk`,
	"qcow2": `mkfs.ext4 -q -d tree part 8M; qemu-img convert -c -O qcow2 part disk`,
}

// makeDisk makes an image of a format, which stays mapped, and returns the
// numbers of the sectors that are not zero.
func makeDisk(t *testing.T, format string) (whole disk, used []int64) {
	t.Helper()
	dir := t.TempDir()
	script := `set -e; PATH=$PATH:/usr/sbin:/sbin; mkdir -p tree/a/b tree/big
for i in $(seq 120); do echo $i >tree/big/a-rather-long-name-of-a-file-$i; done
head -c 300000 /dev/urandom >tree/a/data; ln -s data tree/a/link; ln -s /a/b/../../a tree/loop; mkfifo tree/a/fifo; echo x >tree/a/b/small
` + formats[format]
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.Open(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	size := info.Size() / sector * sector
	if whole, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_PRIVATE); err != nil {
		t.Fatal(err)
	}
	var zeros [sector]byte
	for end := int64(0); ; {
		// Most of it is a hole.
		at, err := f.Seek(end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && at >= size {
			return whole, used
		}
		if err != nil {
			t.Fatal(err)
		}
		if end, err = f.Seek(at, unix.SEEK_HOLE); err != nil {
			t.Fatal(err)
		}
		for i := at / sector; i < min(end, size)/sector; i++ {
			if !bytes.Equal(whole[i*sector:(i+1)*sector], zeros[:]) {
				used = append(used, i)
			}
		}
	}
}

// damaged is an image of which some sectors have changed.
type damaged struct {
	disk
	sectors map[int64][]byte
}

const sector = 512

func (d damaged) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := d.disk.ReadAt(ctx, p, off)
	for number, data := range d.sectors {
		if at := number*sector - off; at > -sector && at < int64(n) {
			copy(p[max(at, 0):], data[max(-at, 0):])
		}
	}
	return n, err
}

func (d damaged) ReadOn(ctx context.Context, p []byte, off int64) (int, error) {
	return d.ReadAt(ctx, p, off)
}

// damage changes some of the sectors of an image that have data.
func damage(rng *rand.Rand, whole disk, used []int64) damaged {
	d := damaged{whole, map[int64][]byte{}}
	pick := func() int64 { return used[rng.IntN(len(used))] }
	original := func(number int64) []byte { return whole[number*sector : (number+1)*sector] }
	for range 1 + rng.IntN(12) {
		number := pick()
		if d.sectors[number] == nil {
			d.sectors[number] = bytes.Clone(original(number))
		}
		data, i := d.sectors[number], rng.IntN(sector-8)
		switch rng.IntN(6) {
		case 0:
			data[i] ^= 1 << rng.IntN(8)
		case 1:
			data[i] = byte(rng.Uint32())
		case 2:
			copy(data[i:], "\xff\xff\xff\xff")
		case 3:
			binary.NativeEndian.PutUint64(data[i:], rng.Uint64())
		case 4:
			clear(data)
		case 5:
			copy(data, original(pick()))
		}
	}
	return d
}

// TestDamage looks into damaged disks: each look ends, with an error of a
// kind that is known or without one, and none in this process.
func TestDamage(t *testing.T) {
	t.Parallel()
	count := 5
	if n, err := strconv.Atoi(os.Getenv(damagedEnv)); err == nil {
		count = n
	}
	for format := range formats {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			whole, used := makeDisk(t, format)
			if err := explore(t, whole, format); err != nil {
				t.Fatalf("undamaged: %v", err)
			}
			misbehaved := 0
			for i := range count {
				seed := uint64(i)
				err := explore(t, damage(rand.New(rand.NewPCG(seed, 1)), whole, used), format)
				switch {
				case errors.Is(err, inside.ErrMisbehaved):
					misbehaved++
					t.Logf("seed %d: %v", seed, err)
				case err != nil && !known(err):
					t.Errorf("seed %d: %v", seed, err)
				}
			}
			if misbehaved > count/50 {
				t.Errorf("%d of %d children failed", misbehaved, count)
			}
		})
	}
}

func known(err error) bool {
	for _, is := range []error{vfs.ErrDamaged, vfs.ErrUnsupported, vfs.ErrNoBase, fs.ErrNotExist, fs.ErrInvalid} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// explore does all that a command can with a disk.
func explore(t *testing.T, d inside.Reader, format string) error {
	t.Helper()
	image := inside.Image{Reader: d}
	if format == "qcow2" {
		image.Format = inside.Qcow2
	}
	s, err := inside.Open(t.Context(), image, inside.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	volumes, err := s.Volumes()
	for _, v := range volumes {
		for _, upper := range []bool{false, true} {
			f, openErr := s.FS(v.Number, upper)
			if openErr != nil {
				if !upper {
					err = errors.Join(err, openErr)
				}
				continue
			}
			err = errors.Join(err, walk(f))
		}
	}
	rawErr := s.RawRange(0, min(s.Size(), 1<<20), func(int64, []byte) error { return nil })
	return errors.Join(err, rawErr)
}

// walk reads what is in a file system, up to a bound.
func walk(f *inside.FS) error {
	_ = f.PrepareTree(f.Root) // the walk meets the same errors
	var errs []error
	todo, seen, left := []uint64{f.Root}, map[uint64]bool{}, 500
	for len(todo) > 0 && left > 0 {
		dir := todo[0]
		todo = todo[1:]
		if seen[dir] {
			continue
		}
		seen[dir] = true
		var files []inside.File
		err := f.List(dir, true, func(file inside.File) error {
			if len(files) < left {
				files = append(files, file)
			}
			return nil
		})
		errs = append(errs, err)
		left -= len(files)
		for _, file := range files {
			switch vfs.Type(file.Type) {
			case vfs.Directory:
				todo = append(todo, file.Inode)
			case vfs.Regular:
				errs = append(errs, read(f, &file))
			}
			if errors.Is(errors.Join(errs...), inside.ErrMisbehaved) {
				return errors.Join(errs...)
			}
		}
	}
	_, err := f.Resolve("/loop/link", true)
	if err != nil && !known(err) {
		errs = append(errs, fmt.Errorf("resolve: %w", err))
	}
	return errors.Join(errs...)
}

func read(f *inside.FS, file *inside.File) error {
	nothing := func(int64, []byte) error { return nil }
	_, xattrErr := f.Xattrs(file.Inode)
	_, extentErr := f.Extents(file.Inode, file.Size)
	return errors.Join(xattrErr, extentErr, f.Contents(file, 0, min(file.Size, 1<<20), nothing))
}
