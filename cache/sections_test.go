package cache

import (
	"bytes"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// Sections of an index stay while a cached file needs them, and go with
// the last one, whether that is pruned or evicted.
func TestSectionsGoWithTheirFiles(t *testing.T) {
	t.Parallel()
	rng := newRand(t)
	src, dir := &fakeSource{}, t.TempDir()
	c := openCache(t, dir, Options{})
	data := make([]byte, 40*packed.MinGranule)
	fillRandom(rng, data)
	first := packedArtifact(t, rng, src, c, "first", data)
	changed := bytes.Clone(data)
	fillRandom(rng, changed[:packed.MinGranule])
	second := packedArtifact(t, rng, src, c, "second", changed)
	there := func(a artifact) bool {
		_, err := c.Blob(digests.Format(a.file.Index.Head.Sections[0].Sum))
		return err == nil
	}
	for _, a := range []artifact{first, second} {
		h := openFile(t, c, a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
		must(t, h.Close())
	}
	// No reference lists the sections: they were fetched after the mount began.
	if _, err := c.Prune(t.Context(), PruneOptions{Older: time.Nanosecond, To: -1, DryRun: true}); err != nil || !there(first) {
		t.Fatalf("a dry run: %v", err)
	}
	for _, of := range []artifact{first, second} {
		if !there(of) {
			t.Fatalf("sections of %s are gone", of.file.Name)
		}
	}
	files, _ := c.dir.Usage()
	c.evict(files, 1) // the least recently used
	if there(first) || !there(second) {
		t.Errorf("after the eviction of the first: %v and %v", there(first), there(second))
	}
	must(t, c.PutBlob(src.put([]byte("of nobody")), []byte("of nobody")))
	h := openFile(t, c, second.file, src) // in use
	if _, err := c.Prune(t.Context(), PruneOptions{All: true}); err != nil || !there(second) {
		t.Errorf("sections of a file in use: %v, %v", err, there(second))
	}
	must(t, h.Close())
	eventually(t, "the file is closed", func() bool {
		_, err := c.Prune(t.Context(), PruneOptions{To: 0})
		must(t, err)
		files, _ := c.dir.Usage()
		return len(files) == 0
	})
	if there(second) {
		t.Error("sections stay behind their file")
	}
}
