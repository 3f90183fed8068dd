package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/overlay"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/tier"
)

// named is a source of which it is known who it is.
type named struct {
	*fakeSource
	origin string
	proven bool
}

func (n *named) Origin() string { return n.origin }
func (n *named) Proven() bool   { return n.proven }

// unchecked are the kinds of which bytes can be handed out before their
// blob is complete.
var unchecked = []kind{kinds[0], kinds[4]}

// wrongIn has byte at of each stored blob flipped, wherever it is asked for.
func wrongIn(at int64) func(string, int64, []byte) ([]byte, error) {
	return func(_ string, off int64, b []byte) ([]byte, error) {
		if i := at - off; i >= 0 && i < int64(len(b)) {
			b[i] ^= 0x40
		}
		return b, nil
	}
}

// TestUnprovenSource reads from a source that proves nothing: no byte
// comes before the digest of its blob was compared.
func TestUnprovenSource(t *testing.T) {
	tier.Long(t, "fetches large frames again and again")
	for _, k := range unchecked {
		t.Run(k.name, func(t *testing.T) {
			src := &named{fakeSource: &fakeSource{}, origin: "plain"}
			a := makeFile(t, newRand(t), src.fakeSource, k, disk.WholeLimit+1<<20)
			stored := a.file.Parts[0].StoredSize
			src.mangle = wrongIn(stored - 5)
			h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
			off := a.file.Map.Segments()[0].Offset
			p := make([]byte, 10)
			for range 3 {
				if n, err := h.ReadAt(context.Background(), p, off); !errors.Is(err, layout.ErrContent) {
					t.Fatalf("%d bytes of a blob that is wrong at its end: %v", n, err)
				}
			}

			src.mu.Lock()
			src.mangle = nil
			src.mu.Unlock()
			h = openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
			checkRead(t, h, a.flat, int(off), 1)
			if !h.Verified() {
				t.Error("a byte was handed out before all of its blob was verified")
			}
			src.reset()
			checkRead(t, h, a.flat, 0, len(a.flat))
			if n, _ := src.reset(); n != 0 {
				t.Errorf("%d requests for what was verified", n)
			}
		})
	}
}

// TestUnprovenWithoutRoom has no room to keep a blob until it is hashed:
// it is hashed on its way, and its bytes are compared with what they were
// then when they are fetched again.
func TestUnprovenWithoutRoom(t *testing.T) {
	tier.Long(t, "fetches blobs that are larger than memory may hold")
	for _, k := range unchecked {
		for _, size := range []int64{1, 40 << 20} { // for nothing, and for some
			src := &named{fakeSource: &fakeSource{}, origin: "plain"}
			a := makeFile(t, newRand(t), src.fakeSource, k, 72<<20)
			c := openCache(t, t.TempDir(), Options{Size: size})
			h := openFile(t, c, a.file, src)
			at := int(a.file.Map.Segments()[0].Offset)
			checkRead(t, h, a.flat, at, 4096)
			_, fetched := src.reset()
			if fetched > a.file.StoredSize()*11/10 {
				t.Errorf("%s: %d bytes were fetched to prove %d", k.name, fetched, a.file.StoredSize())
			}
			for off := range 4 {
				checkRead(t, h, a.flat, off*len(a.flat)/4, 100_000)
			}
			if held := c.memory.Held(); held > overlay.Size {
				t.Errorf("%s: %d bytes are held in memory", k.name, held)
			}
			_ = h.Close()

			src.mu.Lock()
			src.mangle = wrongIn(a.file.Parts[0].StoredSize - 5)
			src.mu.Unlock()
			h = openFile(t, c, a.file, src)
			if n, err := h.ReadAt(context.Background(), make([]byte, 10), int64(at)); !errors.Is(err, layout.ErrContent) && size == 1 {
				t.Errorf("%s: %d bytes of a blob that is wrong at its end: %v", k.name, n, err)
			}
			_ = h.Close()
		}
	}
}

// TestProofNotGivenBack has the disk fail to give back what is to be
// compared with its digest: that is fetched again, and compared.
func TestProofNotGivenBack(t *testing.T) {
	for _, with := range []error{unix.EIO, io.EOF} {
		src := &named{fakeSource: &fakeSource{}, origin: "plain"}
		a := makeFile(t, newRand(t), src.fakeSource, kinds[0], 4<<20)
		disk := &badDisk{with: with}
		at := a.file.Map.Segments()[0].Offset
		disk.from.Store(at)
		disk.to.Store(at + 1)
		h := openFile(t, openCache(t, t.TempDir(), Options{readDisk: disk.ReadAt}), a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
		if disk.failed.Load() == 0 {
			t.Error("the disk was not asked")
		}
		if _, fetched := src.reset(); fetched > a.file.StoredSize()+2<<20 {
			t.Errorf("%d bytes were fetched of %d", fetched, a.file.StoredSize())
		}
		if err := h.Settle(context.Background()); err != nil {
			t.Errorf("settled: %v", err)
		}

		// What comes in their place is compared with what was right.
		h.entry.held.Close()
		src.mu.Lock()
		src.mangle = wrongIn(0)
		src.mu.Unlock()
		if n, err := h.ReadAt(context.Background(), make([]byte, 1), at); !errors.Is(err, layout.ErrContent) {
			t.Errorf("%d wrong bytes: %v", n, err)
		}
	}
}

// TestOriginsAreApart fills a cache from a source that lies, with bytes
// that nothing has vouched for. Another source's readers do not see them:
// neither in the same file, nor in another that holds the same blob.
func TestOriginsAreApart(t *testing.T) {
	liar := &named{fakeSource: &fakeSource{}, origin: "liar", proven: true}
	a := makeFile(t, newRand(t), liar.fakeSource, kinds[0], 8<<20)
	honest := &named{fakeSource: &fakeSource{blobs: liar.blobs}, origin: "honest", proven: true}
	liar.mangle = func(_ string, _ int64, b []byte) ([]byte, error) {
		clear(b)
		return b, nil
	}
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	h := openFile(t, c, a.file, liar)
	at := int(a.file.Map.Segments()[0].Offset)
	p := make([]byte, 4096)
	if _, err := h.ReadAt(context.Background(), p, int64(at)); err != nil || bytes.Equal(p, a.flat[at:at+len(p)]) {
		t.Fatal("the liar does not lie", err)
	}
	other := *a.file // the same blob under another key
	m, err := sparse.New(a.file.Map.Segments(), a.file.Size()+4096)
	if err != nil {
		t.Fatal(err)
	}
	other.Map = m
	checkRead(t, openFile(t, openCache(t, dir, Options{}), &other, honest), append(bytes.Clone(a.flat), make([]byte, 4096)...), 0, len(a.flat)+4096)
	checkRead(t, openFile(t, c, a.file, honest), a.flat, 0, len(a.flat))
}

// TestProofOfWhatWasHashed has another process, which was stopped meanwhile,
// put wrong bytes in the place of a piece that has just been hashed: the
// digest of the whole does not vouch for them.
func TestProofOfWhatWasHashed(t *testing.T) {
	for _, proven := range []bool{false, true} {
		src := &named{fakeSource: &fakeSource{}, origin: "plain", proven: proven}
		a := makeFile(t, newRand(t), src.fakeSource, kinds[0], 2<<20)
		dir := t.TempDir()
		other := openFile(t, openCache(t, dir, Options{}), a.file, src).entry
		off, _ := other.grid.Extent(other.grid.Pieces() - 1)
		var last int64
		for run := range a.file.Map.Payload(off, 1) {
			last = run.Offset
		}
		var wrote sync.Once
		late := func(f *os.File, p []byte, off int64) (int, error) {
			if off >= last {
				wrote.Do(func() {
					if _, err := other.store(&disk.Incoming{Payload: make([]byte, 128<<10)}); err != nil && !errors.Is(err, disk.ErrOvertaken) {
						t.Error(err)
					}
				})
			}
			return f.ReadAt(p, off)
		}
		h := openFile(t, openCache(t, dir, Options{readDisk: late}), a.file, src)
		h.Prefetch()
		if proven {
			eventually(t, "it was compared", func() bool {
				_, sealed := h.Backing()
				return sealed || h.entry.verdicts.struck(0)
			})
		}
		p := make([]byte, len(a.flat))
		if _, err := h.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, a.flat) {
			t.Errorf("proven %v: wrong bytes, %v", proven, err)
		}
	}
}
