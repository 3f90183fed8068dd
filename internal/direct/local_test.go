package direct

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

// TestDiskDoesNotGiveBack has every part there, on a disk that gives back
// a third of each, or nothing: the rest is fetched, with all before it,
// within the least memory.
func TestDiskDoesNotGiveBack(t *testing.T) {
	for _, share := range []int64{0, 3} {
		s := newStock(t)
		s.everything()
		opened := 0
		opts := Options{Memory: LeastMemory, Store: func(file int) Store {
			return shelf(func(part int) io.Reader {
				p := s.files[file].Parts[part]
				var there []byte
				if share > 0 {
					there = s.want[file][p.Offset : p.Offset+p.Length/share]
				}
				opened++
				return io.MultiReader(bytes.NewReader(there), iotest.ErrReader(unix.EIO))
			})
		}}
		if err := s.read(opts); err != nil {
			t.Errorf("1/%d there: %v", share, err)
		}
		var stored int64
		for _, f := range s.files {
			for _, p := range f.Parts {
				stored += p.StoredSize
			}
		}
		if got := s.src.sent.Load(); opened == 0 || got < stored || got > stored*11/10 {
			t.Errorf("1/%d there: %d bytes were sent, of %d that are stored", share, got, stored)
		}
	}
}
