package cache

import (
	"bytes"
	"context"
	"io"
	"sync"
	"syscall"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/tier"
)

// endless has every blob: its byte at i is i/4096.
type endless struct{}

func (endless) OpenBlob(_ context.Context, _ string, _, off, n int64) (io.ReadCloser, bool, error) {
	return io.NopCloser(io.LimitReader(&endlessBody{off}, n)), false, nil
}

type endlessBody struct{ at int64 }

// pages have the low byte of their number everywhere.
var pages = sync.OnceValue(func() *[256][4096]byte {
	all := new([256][4096]byte)
	for i := range all {
		copy(all[i][:], bytes.Repeat([]byte{byte(i)}, 4096))
	}
	return all
})

func (b *endlessBody) Read(p []byte) (int, error) {
	n := copy(p, pages()[byte(b.at>>12)][b.at&4095:])
	b.at += int64(n)
	return n, nil
}

// TestClaimsTakeNoRoom opens files of as many bytes as a manifest may
// claim. What nobody reads takes no room, on disk or in memory.
func TestClaimsTakeNoRoom(t *testing.T) {
	tier.Long(t, "opens files of the largest sizes")
	for _, c := range []*Cache{openCache(t, t.TempDir(), Options{}), openCache(t, t.TempDir(), Options{Size: 1})} {
		for i := range 40 {
			size := int64(8 << 40)
			if i%4 == 0 {
				size = sparse.MaxSize // more than most file systems take
			}
			f := &layout.File{Name: "x", Map: sparse.Dense(size), Parts: []layout.Part{{
				Digest: "sha256:" + string(bytes.Repeat([]byte{'a' + byte(i%6)}, 63)) + string(rune('0'+i/6)), StoredSize: size, Length: size,
			}}}
			h := openFile(t, c, f, endless{})
			if n := h.Cached(); n != 0 || h.Complete() || h.Verified() {
				t.Fatalf("%d bytes of a new file are there", n)
			}
			off := size/2 + int64(i)<<30
			p := make([]byte, 8192)
			if _, err := h.ReadAt(context.Background(), p, off); err != nil || p[0] != byte(off>>12) || p[4096] != byte(off>>12)+1 {
				t.Fatalf("read at %d: %d, %d, %v", off, p[0], p[4096], err)
			}
			state, err := h.entry.disk.Hold()
			if err != nil {
				t.Fatal(err)
			}
			info, err := state.Stat()
			_ = state.Close()
			if err != nil {
				t.Fatal(err)
			}
			if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 256<<10 {
				t.Fatalf("its state takes %d bytes", used)
			}
		}
	}
}
