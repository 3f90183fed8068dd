package qcow2

import (
	"bytes"
	"errors"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

// contents are made of random, repeated and zero clusters.
func contents(seed int64, size int) []byte {
	random := rand.New(rand.NewSource(seed))
	b := make([]byte, size)
	for at := 0; at < size; at += 16 << 10 {
		part := b[at:min(size, at+16<<10)]
		switch random.Intn(4) {
		case 0:
			random.Read(part)
		case 1:
			copy(part, bytes.Repeat([]byte{byte(random.Intn(256)), 1, 2}, 6000))
		}
	}
	return b
}

// variants are options of qemu-img, each with what it does to the format.
var variants = []struct{ name, options string }{
	{"version 2", "compat=0.10"},
	{"version 3", "compat=1.1"},
	{"clusters of 512", "cluster_size=512"},
	{"clusters of 4k", "cluster_size=4k"},
	{"clusters of 2M", "cluster_size=2M"},
	{"extended", "extended_l2=on,cluster_size=128k"},
	{"extended 16k", "extended_l2=on,cluster_size=16k"},
	{"refcounts of 1 bit", "refcount_bits=1"},
	{"refcounts of 64 bits", "refcount_bits=64"},
	{"lazy refcounts", "lazy_refcounts=on"},
	{"metadata", "preallocation=metadata"},
	{"falloc", "preallocation=falloc"},
	{"full", "preallocation=full"},
	{"zlib -c", "compression_type=zlib"},
	{"zstd -c", "compression_type=zstd"},
	{"zstd 512 -c", "compression_type=zstd,cluster_size=512"},
	{"zlib 2M -c", "compression_type=zlib,cluster_size=2M"},
	{"extended zstd -c", "compression_type=zstd,extended_l2=on"},
	{"version 2 -c", "compat=0.10"},
}

func write(t testing.TB, data []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// make1 makes a qcow2 file of raw contents.
func make1(t testing.TB, data []byte, options string, compress bool) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "qcow2")
	args := []string{"convert", "-f", "raw", "-O", "qcow2", "-o", options}
	if compress {
		args = append(args, "-c")
	}
	guesttest.Run(t, "qemu-img", append(args, write(t, data), to)...)
	return to
}

// readAll reads an image in pieces of random sizes.
func readAll(t testing.TB, img vfs.Image) []byte {
	t.Helper()
	random := rand.New(rand.NewSource(5))
	all := make([]byte, img.Size())
	for at := 0; at < len(all); {
		n := min(len(all)-at, random.Intn(300000)+1)
		if m, err := img.ReadAt(all[at:at+n], int64(at)); m != n || err != nil {
			t.Fatalf("ReadAt %d of %d: %d, %v", n, at, m, err)
		}
		at += n
	}
	return all
}

func TestAsQemu(t *testing.T) {
	t.Parallel()
	data := contents(1, 5<<20+1536)
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			name := make1(t, data, v.options, strings.HasSuffix(v.name, "-c"))
			counted := guesttest.Count(guesttest.File(t, name))
			q, err := Open(counted, nil)
			if err != nil {
				t.Fatal(err)
			}
			if counted.Trips > 1 {
				t.Errorf("opened with %d round trips", counted.Trips)
			}
			if !bytes.Equal(readAll(t, q), data) {
				t.Error("contents differ")
			}
		})
	}
}

// TestOverlay reads disks above a backing file, written by qemu-io with
// zeros, discards, internal snapshots and a resize.
func TestOverlay(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"cluster_size=64k", "extended_l2=on", "cluster_size=4k", "compat=0.10"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			data := contents(2, 3<<20)
			base := write(t, data)
			dir := t.TempDir()
			top := filepath.Join(dir, "top")
			guesttest.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-F", "raw", "-b", base, top, "4M")
			guesttest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 100000 5000", "-c", "write -P 2 1M 300000",
				"-c", "write -z 512k 128k", "-c", "write -P 3 3500000 3000", top)
			guesttest.Run(t, "qemu-img", "snapshot", "-c", "first", top)
			guesttest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 4 102000 70000", "-c", "discard 1M 64k", "-c", "write -z -u 600k 300k", top)
			raw := filepath.Join(dir, "raw")
			guesttest.Run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, raw)
			want, err := os.ReadFile(raw)
			if err != nil {
				t.Fatal(err)
			}
			q, err := Open(guesttest.File(t, top), func(name string) (vfs.Image, error) {
				if name != base {
					t.Errorf("asked for the base %q", name)
				}
				return guesttest.Bytes(data), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(readAll(t, q), want) {
				t.Error("contents differ")
			}
			withoutBase(t, top, base, want)
		})
	}
}

// withoutBase reads what was written, and not what is unknown.
func withoutBase(t *testing.T, top, base string, want []byte) {
	t.Helper()
	q, err := Open(guesttest.File(t, top), nil)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1000)
	if _, err := q.ReadAt(p, 2<<20); !errors.Is(err, vfs.ErrNoBase) || !strings.Contains(err.Error(), base) {
		t.Errorf("unallocated cluster: %v", err)
	}
	if n, err := q.ReadAt(p, 102400); n != len(p) || err != nil || !bytes.Equal(p, want[102400:103400]) {
		t.Errorf("written cluster: %d, %v", n, err)
	}
	failed := errors.New("no")
	if _, err := Open(guesttest.File(t, top), func(string) (vfs.Image, error) { return nil, failed }); !errors.Is(err, failed) {
		t.Errorf("base that cannot be opened: %v", err)
	}
}

// TestRefused names what is not read.
func TestRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string, args ...string) string {
		path := filepath.Join(dir, name)
		guesttest.Run(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "1M")...)
		return path
	}
	external := file("external", "-o", "data_file="+filepath.Join(dir, "data")+",data_file_raw=on")
	encrypted := file("encrypted", "--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
	for name, want := range map[string]string{external: "external data file", encrypted: "encrypted"} {
		_, err := Open(guesttest.File(t, name), nil)
		if !errors.Is(err, vfs.ErrUnsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestPrefetch reads a fragmented file in few round trips.
func TestPrefetch(t *testing.T) {
	t.Parallel()
	data := contents(3, 8<<20)
	counted := guesttest.Count(guesttest.File(t, make1(t, data, "cluster_size=64k", true)))
	q, err := Open(counted, nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Prefetch([]vfs.Extent{{Offset: 0, Length: 4 << 20}, {Offset: 6 << 20, Length: 1 << 20}})
	trips := counted.Trips
	if trips > 4 {
		t.Errorf("%d round trips:\n%s", trips, strings.Join(counted.Log, "\n"))
	}
	p := make([]byte, 4<<20)
	if _, err := q.ReadAt(p, 0); err != nil || !bytes.Equal(p, data[:len(p)]) {
		t.Errorf("contents differ, %v", err)
	}
	if counted.Trips != trips {
		t.Errorf("%d more round trips for what was asked for", counted.Trips-trips)
	}
}
