package cache

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestCopyOfLargePieces copies a file whose pieces are there, larger than
// what is held of one, and pass bit by bit: nothing of it is written, so
// that it can be a second name for the same blocks.
func TestCopyOfLargePieces(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kind{chunk: 4 << 20}, 9<<20)
	h := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	checkRead(t, h, a.flat, 0, len(a.flat))
	dst, err := os.Create(filepath.Join(t.TempDir(), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := dst.Truncate(a.file.Size()); err != nil {
		t.Fatal(err)
	}
	c := h.NewCopy(dst)
	if _, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{bytes.NewReader(a.data)}, make([]byte, 256<<10)); err != nil {
		t.Fatal(err)
	}
	if len(c.wrote) != 0 {
		t.Errorf("%v were written, and are in the cache", c.wrote)
	}
	if ok, err := c.Finish(t.Context()); !ok || err != nil {
		t.Error(ok, err)
	}
	if got, err := os.ReadFile(dst.Name()); err != nil || !bytes.Equal(got, a.flat) {
		t.Errorf("other bytes, %v", err)
	}
}
