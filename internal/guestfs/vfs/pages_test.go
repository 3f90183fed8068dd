package vfs_test

import (
	"slices"
	"testing"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/test/guesttest"
)

// noted keeps the reads of an image, in pages.
type noted struct {
	guesttest.Bytes
	reads []vfs.Extent
	hints []vfs.Extent
}

func (n *noted) ReadAt(p []byte, off int64) (int, error) {
	n.reads = append(n.reads, vfs.Extent{Offset: off / vfs.PageSize, Length: int64(len(p)) / vfs.PageSize})
	return n.Bytes.ReadAt(p, off)
}

func (n *noted) Prefetch(ranges []vfs.Extent) {
	for _, r := range ranges {
		n.hints = append(n.hints, vfs.Extent{Offset: r.Offset / vfs.PageSize, Length: (r.Length + vfs.PageSize - 1) / vfs.PageSize})
	}
}

// TestPagesAreExact reads no page that nobody has asked for, and those that
// were asked for together in few steps.
func TestPagesAreExact(t *testing.T) {
	t.Parallel()
	const reach = vfs.Reach / vfs.PageSize
	img := &noted{Bytes: make(guesttest.Bytes, 400*vfs.PageSize)}
	c := vfs.NewPages(img)
	read := func(page, pages int64) {
		t.Helper()
		if _, err := c.Bytes(page*vfs.PageSize+1, int(pages*vfs.PageSize)-1); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		what  string
		do    func()
		reads []vfs.Extent
		hints []vfs.Extent
	}{
		{"one", func() { read(3, 1) }, []vfs.Extent{{Offset: 3, Length: 1}}, nil},
		{"it again", func() { read(3, 1) }, nil, nil},
		{"a run around it", func() { read(2, 4) }, []vfs.Extent{{Offset: 2, Length: 1}, {Offset: 4, Length: 2}}, nil},
		{"a hint", func() {
			c.Prefetch([]vfs.Extent{{Offset: 0, Length: 30 * vfs.PageSize}, {Offset: 300 * vfs.PageSize, Length: 1}})
		}, nil, []vfs.Extent{{Offset: 0, Length: 30}, {Offset: 300, Length: 1}}},
		{"its first", func() { read(0, 1) }, []vfs.Extent{{Offset: 0, Length: 2}}, nil},
		{"the next", func() { read(6, 1) }, []vfs.Extent{{Offset: 6, Length: reach}}, nil},
		{"its last", func() { read(29, 1) }, []vfs.Extent{{Offset: 29, Length: 1}}, nil},
		{"after it", func() { read(30, 1) }, []vfs.Extent{{Offset: 30, Length: 1}}, nil},
		{"more than reach", func() { read(100, reach+4) },
			[]vfs.Extent{{Offset: 100, Length: reach}, {Offset: 100 + reach, Length: 4}}, []vfs.Extent{{Offset: 100, Length: reach + 4}}},
	} {
		img.reads, img.hints = nil, nil
		step.do()
		if !slices.Equal(img.reads, step.reads) || !slices.Equal(img.hints, step.hints) {
			t.Errorf("%s: reads %v, hints %v, want %v and %v", step.what, img.reads, img.hints, step.reads, step.hints)
		}
	}
}
