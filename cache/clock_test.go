package cache

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestClockJumps finds a cache that was used in the future, or long ago, as
// it looks when the clock was set: what it holds is used, room is made in
// it, and what is old goes while what is yet to be stays.
func TestClockJumps(t *testing.T) {
	const years = 10 * 365 * 24 * time.Hour
	for _, by := range []time.Duration{years, -years} {
		rng := newRand(t)
		src := &fakeSource{}
		dir := t.TempDir()
		c := openCache(t, dir, Options{})
		var files []artifact
		for range 3 {
			a := makeFile(t, rng, src, kinds[0], 3<<20)
			h := openFile(t, c, a.file, src)
			checkRead(t, h, a.flat, 0, len(a.flat))
			_ = h.Close()
			files = append(files, a)
		}
		if err := c.PutRef("host/vm:latest", src.put([]byte("manifest"))); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		then := time.Now().Add(by)
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return os.Chtimes(p, then, then)
		})
		if err != nil {
			t.Fatal(err)
		}
		src.reset()

		c = openCache(t, dir, Options{Size: 14 << 20})
		h := openFile(t, c, files[0].file, src)
		checkRead(t, h, files[0].flat, 0, len(files[0].flat))
		if n, _ := src.reset(); n != 0 {
			t.Errorf("%v: %d requests for what is there", by, n)
		}
		if _, _, err := c.Ref("host/vm:latest"); err != nil {
			t.Errorf("%v: %v", by, err)
		}
		b := makeFile(t, rng, src, kinds[0], 3<<20)
		h = openFile(t, c, b.file, src)
		checkRead(t, h, b.flat, 0, len(b.flat))
		if h.Cached() != int64(len(b.data)) {
			t.Errorf("%v: no room was made: %d bytes kept", by, h.Cached())
		}
		p, err := c.Prune(context.Background(), PruneOptions{Older: time.Hour, To: -1})
		if err != nil || (len(p.Files) > 0) != (by < 0) {
			t.Errorf("%v: pruned %d files, %v", by, len(p.Files), err)
		}
	}
}
