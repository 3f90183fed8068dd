package cache

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

// ends has do begin, waits until the disk is stuck in it, and cancels: do
// must end while the disk still is.
func ends(t *testing.T, what string, disk *stuckDisk, do func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	<-disk.began
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(20 * time.Second):
		t.Errorf("%s waits for the disk", what)
		disk.release()
		<-done
	}
}

// TestClaimIsInterrupted has the disk hang in all that a claim asks of it.
// What the claim has taken is given back when the disk answers.
func TestClaimIsInterrupted(t *testing.T) {
	t.Parallel()
	for _, work := range []string{"index", "donor", "measure", "read"} {
		src := &fakeSource{}
		rng := newRand(t)
		dir := t.TempDir()
		a := makeFile(t, rng, src, kinds[2], 2<<20)
		c := openCache(t, dir, Options{})
		h := openFile(t, c, a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
		_ = h.Close()
		f := *a.file
		f.Map, _ = spread(t, rng, a.data)
		disk := newStuckDisk(work)
		readDisk := func(f *os.File, p []byte, off int64) (int, error) {
			disk.before("read")
			return f.ReadAt(p, off)
		}
		c = openCache(t, dir, Options{before: disk.before, readDisk: readDisk, grace: time.Millisecond})
		h = openFile(t, c, &f, src)
		t.Cleanup(disk.release) // before the cache is closed
		if work != "index" {
			awaitIndex(t, c)
		}
		ends(t, "a claim stuck in "+work, disk, func(ctx context.Context) error {
			release, err := h.Filler().Claim(ctx, 0, 0, f.Parts[0].Length)
			if err == nil {
				release()
			}
			return err
		})
		disk.release()
		release, err := h.Filler().Claim(t.Context(), 0, 0, f.Parts[0].Length)
		if err != nil {
			t.Fatalf("%s: the next claim: %v", work, err)
		}
		release()
		eventually(t, "nothing is claimed", func() bool {
			ok, err := h.entry.state.TryLockPieces(0, h.entry.grid.Pieces())
			return ok && err == nil
		})
	}
}

// TestSpoolIsInterrupted has the disk hang while a spool grows, and while it
// is written.
func TestSpoolIsInterrupted(t *testing.T) {
	t.Parallel()
	for _, work := range []string{"measure", "spool"} {
		disk := newStuckDisk(work)
		c := openCache(t, t.TempDir(), Options{before: disk.before, grace: time.Millisecond})
		t.Cleanup(disk.release)
		var s *Spool
		ends(t, "a spool stuck in "+work, disk, func(ctx context.Context) error {
			var err error
			if s, err = c.Spool(ctx); err == nil {
				_, err = s.WriteAt(bytes.Repeat([]byte("x"), 1<<20), 0)
			}
			return err
		})
		disk.release()
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", work, err)
		}
	}
}
