package cache

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
)

// stoppedAt has a process fetch wrong bytes of a file's first piece and stop
// at a step of writing them.
func stoppedAt(t *testing.T, dir string, a artifact, blobs map[string][]byte, step string) (stopped *File, stuck *stuckDisk, done chan error) {
	t.Helper()
	liar := &fakeSource{blobs: blobs, mangle: wrongIn(5)}
	stuck = newStuckDisk(step)
	stopped = openFile(t, openCache(t, dir, Options{before: stuck.before, grace: time.Minute}), a.file, liar)
	done = make(chan error, 1)
	go func() {
		_, err := stopped.ReadAt(context.Background(), make([]byte, 1), stopped.entry.grid.Stretch(0, 1).Off)
		done <- err
	}()
	<-stuck.began
	liar.heal(false)
	t.Cleanup(stuck.release)
	return stopped, stuck, done
}

// TestOvertaken has a process that fetched wrong bytes be stopped while it
// writes them, for longer than others wait: they fetch the piece, verify and
// seal the file. When it goes on, nothing wrong is left, in the cache or in
// anybody's copies.
func TestOvertaken(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"write", "write data", "mark"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			src, dir := &fakeSource{}, t.TempDir()
			a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
			stopped, stuck, done := stoppedAt(t, dir, a, src.blobs, step)
			f := find(t, dir, a, src, Options{patience: 20 * time.Millisecond, watch: time.Millisecond})
			checkRead(t, f.h, a.flat, 0, len(a.flat))
			eventually(t, "it is sealed", func() bool { _, ok := f.h.Backing(); return ok })
			stuck.release()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if step == "write" {
				if !f.h.entry.state.Sealed() {
					t.Error("nothing was written, and the file is not sealed any more")
				}
			} else if step == "write data" && stopped.entry.cache.Counts().Wrong[disk.ByFetch] != 1 {
				t.Errorf("counted are %v", stopped.entry.cache.Counts().Wrong)
			}
			checkRead(t, stopped, a.flat, 0, len(a.flat))
			checkRead(t, f.h, a.flat, 0, len(a.flat))
			eventually(t, "it is sealed", func() bool { _, ok := f.h.Backing(); return ok })
			b, _ := f.h.Backing()
			if onDisk, err := io.ReadAll(io.NewSectionReader(b, 0, 1<<40)); err != nil || !bytes.Equal(onDisk, a.flat) {
				t.Errorf("the sealed file has wrong bytes: %v", err)
			}
			if step == "write data" {
				eventually(t, "copies are dropped", func() bool { return len(f.copies.all()) > 0 })
			}
		})
	}
}

// TestWrongTransferCountsOnce has the blob be hashed between a wrong transfer's
// write and the mark that says so: what was found wrong is not marked then, or
// is found once more, but the source is not blamed twice.
func TestWrongTransferCountsOnce(t *testing.T) {
	t.Parallel()
	src, dir := &fakeSource{}, t.TempDir()
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	h := openFile(t, openCache(t, dir, Options{}), a.file, src)
	e := h.entry
	pieces := e.grid.Pieces()
	checkRead(t, h, a.flat, 0, int(e.grid.Stretch(pieces-1, pieces).Off))
	stuck := newStuckDisk("mark")
	other := openFile(t, openCache(t, dir, Options{before: stuck.before, grace: time.Minute}), a.file, src).entry
	stored := make(chan error, 1)
	go func() {
		_, err := other.store(&disk.Incoming{Payload: make([]byte, 128<<10)})
		stored <- err
	}()
	<-stuck.began
	checkRead(t, h, a.flat, int(e.grid.Stretch(pieces-1, pieces).Off), 1)
	eventually(t, "it was found", func() bool { return !e.state.Has(0) })
	stuck.release()
	if err := <-stored; err != nil {
		t.Fatal(err)
	}
	p := make([]byte, len(a.flat))
	eventually(t, "it is sealed", func() bool {
		if _, err := h.ReadAt(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
		e.checkComplete() // as a fetch of it would
		_, ok := h.Backing()
		return ok
	})
	checkRead(t, h, a.flat, 0, len(a.flat))
	e.verdicts.mu.Lock()
	defer e.verdicts.mu.Unlock()
	if n := e.verdicts.strikes[0]; n != 1 {
		t.Errorf("the source is blamed %d times", n)
	}
}
