package cache

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// countingLog counts records, and prints those of a test that fails.
type countingLog struct {
	mu      sync.Mutex
	records []string
}

func (l *countingLog) logger() *slog.Logger { return slog.New(l) }

func (l *countingLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *countingLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *countingLog) WithGroup(string) slog.Handler            { return l }

func (l *countingLog) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, r.Message)
	return nil
}

func (l *countingLog) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.records)
}

// TestSaidOnce reads many pieces of several files where none can be kept:
// the cache is full, its disk is, or it does not give back what it took.
func TestSaidOnce(t *testing.T) {
	read := func(t *testing.T, dir string, opts Options) {
		log := &countingLog{}
		opts.Log = log.logger()
		c := openCache(t, dir, opts)
		src := &fakeSource{}
		for range 3 {
			a := makeFile(t, newRand(t), src, kinds[1], 8<<20)
			h := openFile(t, c, a.file, src)
			for off := 0; off < len(a.flat); off += 256 << 10 {
				checkRead(t, h, a.flat, off, 256<<10)
			}
		}
		if n := log.count(); n != 1 {
			t.Errorf("%d log records, want one: %q", n, log.records)
		}
	}
	t.Run("quota", func(t *testing.T) { read(t, t.TempDir(), Options{Size: 4 << 20}) })
	t.Run("disk", func(t *testing.T) {
		tier.Long(t, "mounts")
		if os.Geteuid() != 0 {
			t.Skip("mounting a tmpfs needs root")
		}
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=0700"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		read(t, dir, Options{Size: 1 << 30})
	})
	t.Run("read back", func(t *testing.T) {
		log := &countingLog{}
		src := &fakeSource{}
		a := makeFile(t, newRand(t), src, kinds[1], 8<<20)
		disk := &badDisk{with: unix.EIO}
		h := openFile(t, openCache(t, t.TempDir(), Options{Log: log.logger(), readDisk: disk.ReadAt}), a.file, src)
		disk.to.Store(int64(len(a.flat)))
		for off := 0; off < len(a.flat); off += 256 << 10 {
			checkRead(t, h, a.flat, off, 256<<10)
		}
		if n := log.count(); n != 1 {
			t.Errorf("%d log records, want one: %q", n, log.records)
		}
	})
}
