package vfs_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"slices"
	"sync"
	"testing"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

func TestJoin(t *testing.T) {
	t.Parallel()
	got := vfs.Join([]vfs.Extent{{Offset: 900, Length: 500}, {Offset: 10, Length: 10}, {Offset: 25, Length: 5}, {Offset: 12, Length: 2},
		{Offset: 100, Length: 10}, {Offset: -5, Length: 3}, {Offset: 2000, Length: 1}, {Offset: 50, Length: 0}}, 10, 1000)
	want := []vfs.Extent{{Offset: 10, Length: 20}, {Offset: 100, Length: 10}, {Offset: 900, Length: 100}}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func TestSection(t *testing.T) {
	t.Parallel()
	base := guesttest.Bytes("0123456789")
	s := vfs.Section(base, 3, 4)
	p := make([]byte, 10)
	if n, err := s.ReadAt(p, 1); n != 3 || err != io.EOF || string(p[:n]) != "456" {
		t.Errorf("%q, %v", p[:n], err)
	}
	if n, err := s.ReadAt(p[:2], 2); n != 2 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for _, off := range []int64{4, 100, -1} {
		if n, err := s.ReadAt(p, off); n != 0 || err == nil {
			t.Errorf("at %d: %d, %v", off, n, err)
		}
	}
	if size := vfs.Section(base, 8, 100).Size(); size != 2 {
		t.Errorf("cut at the end: %d", size)
	}
	if size := vfs.Section(base, 80, 100).Size(); size != 0 {
		t.Errorf("beyond the end: %d", size)
	}
	if err := vfs.ReadFull(s, p[:5], 0); !errors.Is(err, vfs.ErrDamaged) {
		t.Errorf("more than there is: %v", err)
	}
}

// TestSectionHints passes hints to the image below, where they belong.
func TestSectionHints(t *testing.T) {
	t.Parallel()
	counted := guesttest.Count(guesttest.Bytes(make([]byte, 10*vfs.PageSize)))
	vfs.Prefetch(vfs.Section(counted, 2*vfs.PageSize, 3*vfs.PageSize), []vfs.Extent{{Offset: vfs.PageSize, Length: 100 * vfs.PageSize}})
	if counted.Trips != 1 || counted.Bytes != 2*vfs.PageSize {
		t.Errorf("%d, %d: %v", counted.Trips, counted.Bytes, counted.Log)
	}
}

// TestPages reads at random, with several goroutines, from an image larger
// than what is kept.
func TestPages(t *testing.T) {
	t.Parallel()
	base := make(guesttest.Bytes, (vfs.MaxPages+30)*vfs.PageSize+123)
	rand.New(rand.NewSource(1)).Read(base)
	c := vfs.NewPages(base)
	var wait sync.WaitGroup
	for g := range int64(4) {
		wait.Go(func() {
			random := rand.New(rand.NewSource(g))
			for range 200 {
				off := random.Int63n(c.Size())
				n := int(min(c.Size()-off, random.Int63n(200000)))
				b, err := c.Bytes(off, n)
				if err != nil || !bytes.Equal(b, base[off:off+int64(n)]) {
					t.Errorf("%d bytes at %d: %v", n, off, err)
					return
				}
			}
		})
	}
	wait.Wait()
	for _, off := range []int64{-1, c.Size() - 1, c.Size() + 5} {
		if _, err := c.Bytes(off, 2); !errors.Is(err, vfs.ErrDamaged) {
			t.Errorf("at %d: %v", off, err)
		}
	}
	kept := 0
	for off := int64(0); off < c.Size(); off += vfs.PageSize {
		if c.Has(off) {
			kept++
		}
	}
	if kept > vfs.MaxPages {
		t.Errorf("%d pages kept", kept)
	}
}

// TestPagesFail keeps nothing of a read that failed.
func TestPagesFail(t *testing.T) {
	t.Parallel()
	f := &failing{Bytes: make(guesttest.Bytes, vfs.PageSize), err: errors.New("no")}
	c := vfs.NewPages(f)
	if _, err := c.Bytes(5, 5); err != f.err {
		t.Error(err)
	}
	f.err = nil
	if _, err := c.Bytes(5, 5); err != nil {
		t.Error(err)
	}
}

type failing struct {
	guesttest.Bytes
	err error
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.Bytes.ReadAt(p, off)
}

// TestNeighbours asks for those that follow, once.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	var n vfs.Neighbours
	if got := n.Next(5); got != nil {
		t.Error(got)
	}
	err := n.Remember(func(add func(uint64) bool) error {
		for k := uint64(100); k < 110; k++ {
			add(k)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := n.Next(103); len(got) != 7 || got[0] != 103 {
		t.Error(got)
	}
	if got := n.Next(104); got != nil {
		t.Error(got)
	}
	if got := n.Next(7); got != nil {
		t.Error(got)
	}
}
