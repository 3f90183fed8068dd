package qcow2

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

// read reads a disk, also one that seems to be large, from its beginning, its
// middle and its end.
func read(img vfs.Image) error {
	q, err := Open(img, nil)
	if err != nil {
		return err
	}
	p := make([]byte, 100000)
	q.Prefetch([]vfs.Extent{{Offset: 0, Length: q.Size()}})
	for _, at := range []int64{0, q.Size() / 4, q.Size() / 2, q.Size() - 1000, q.Size() - int64(len(p))} {
		if at = max(0, at); at == q.Size() {
			continue
		}
		if n, err2 := q.ReadAt(p[:min(int64(len(p)), q.Size()-at)], at); err == nil && n < len(p) {
			err = err2
		}
	}
	return err
}

func TestDamage(t *testing.T) {
	t.Parallel()
	data := contents(9, 256<<10)
	for _, options := range []string{"cluster_size=4k", "compression_type=zlib -c", "compression_type=zstd,extended_l2=on -c"} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			options, compress := strings.CutSuffix(options, " -c")
			img := guesttest.File(t, make1(t, data, options, compress))
			if compress {
				guesttest.Damage(t, img, read)
			}
			guesttest.DamageAt(t, img, tables(t, img), read)
		})
	}
}

// tables are the places of the header and of the entries of tables.
func tables(t *testing.T, img vfs.Image) (places []int64) {
	t.Helper()
	q, err := Open(img, nil)
	if err != nil {
		t.Fatal(err)
	}
	for at := range int64(120) {
		places = append(places, at)
	}
	perTable := q.clusters() << q.clusterBits
	for off := int64(0); off < q.size; off += perTable {
		table, err := q.table(off)
		if err != nil {
			t.Fatal(err)
		}
		for at := range int64(8) {
			places = append(places, q.l1+off/perTable*8+at)
		}
		for at := range min(perTable, q.size-off) >> q.clusterBits * q.entrySize() {
			places = append(places, table+at)
		}
	}
	return places
}

// TestConcurrently reads with several goroutines.
func TestConcurrently(t *testing.T) {
	t.Parallel()
	data := contents(9, 1<<20)
	q, err := Open(guesttest.File(t, make1(t, data, "compression_type=zstd", true)), nil)
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			if !bytes.Equal(readAll(t, q), data) {
				t.Error("contents differ")
			}
		})
	}
	wait.Wait()
}

// FuzzOpen changes a small file: bytes are laid over it from an offset on.
func FuzzOpen(f *testing.F) {
	var bases [][]byte
	for _, options := range []string{"cluster_size=512", "compression_type=zstd,cluster_size=512"} {
		base, err := os.ReadFile(make1(f, contents(4, 16<<10), options, true))
		if err != nil {
			f.Fatal(err)
		}
		bases = append(bases, base)
	}
	f.Add(false, uint32(8), []byte{1, 2, 3, 4})
	f.Add(true, uint32(1024), []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, second bool, at uint32, change []byte) {
		base := bases[0]
		if second {
			base = bases[1]
		}
		img := append(guesttest.Bytes(nil), base...)
		copy(img[int(at)%len(img):], change)
		_ = read(img)
	})
}
