package cache

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// copies is who keeps copies of a file: it notes what it is told to drop.
type copies struct {
	mu   sync.Mutex
	told []disk.Stretch
}

func keepCopies(h *File) *copies {
	c := &copies{}
	h.OnDrop(func(off, n int64) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.told = append(c.told, disk.Stretch{Off: off, N: n})
	})
	return c
}

func (c *copies) all() []disk.Stretch {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.told)
}

// logged notes the lines that say what was found wrong.
type logged struct {
	slog.Handler
	mu    sync.Mutex
	lines []map[string]any
}

func newLogged() *logged { return &logged{Handler: slog.DiscardHandler} }

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }

func (l *logged) Handle(_ context.Context, r slog.Record) error {
	line := map[string]any{}
	r.Attrs(func(a slog.Attr) bool { line[a.Key] = a.Value.Any(); return true })
	if line["found_by"] != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lines = append(l.lines, line)
	}
	return nil
}

// finding is a file of which something was found wrong.
type finding struct {
	h      *File
	a      artifact
	copies *copies
	log    *logged
}

func find(t *testing.T, dir string, a artifact, src Source, opts Options) *finding {
	t.Helper()
	f := &finding{a: a, log: newLogged()}
	opts.Log = slog.New(f.log)
	f.h = openFile(t, openCache(t, dir, opts), a.file, src)
	f.copies = keepCopies(f.h)
	return f
}

// check wants pieces [from, to) to have been found wrong and nothing else, in
// so many times: they are counted, there is a line for each time, copies of
// them are dropped, and what is read is right.
func (f *finding) check(t *testing.T, by string, from, to, times int) {
	t.Helper()
	e := f.h.entry
	eventually(t, "it is found", func() bool { return e.cache.Counts().Wrong[by] > 0 })
	eventually(t, "copies are dropped", func() bool { return len(f.copies.all()) > 0 })
	eventually(t, "it is logged", func() bool {
		f.log.mu.Lock()
		defer f.log.mu.Unlock()
		return len(f.log.lines) >= times
	})
	checkRead(t, f.h, f.a.flat, 0, len(f.a.flat))
	for key, n := range e.cache.Counts().Wrong {
		if want := map[bool]int64{true: int64(max(times, to-from))}[key == by]; n != want {
			t.Errorf("%d pieces found by %s, not %d", n, key, want)
		}
	}
	whole := e.grid.Stretch(from, to)
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	if len(f.log.lines) != times {
		t.Errorf("%d lines, not %d: %v", len(f.log.lines), times, f.log.lines)
	}
	for _, line := range f.log.lines {
		off, _ := line["offset"].(int64)
		if line["file"] != f.a.file.Name || line["source"] != e.Source() || off < whole.Off || off >= whole.Off+whole.N {
			t.Errorf("the line is %v", line)
		}
	}
	covered := whole.Off
	for _, s := range f.copies.all() {
		if s.Off < whole.Off || s.Off+s.N > whole.Off+whole.N {
			t.Errorf("copies of %+v are dropped, which is more than %+v", s, whole)
		}
		covered = max(covered, s.Off+s.N)
	}
	if covered != whole.Off+whole.N {
		t.Errorf("copies of %v are dropped, not of %+v", f.copies.all(), whole)
	}
}

// heal has a source tell the truth.
func (s *fakeSource) heal(noRange bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mangle, s.noRange = nil, noRange
}

// read reads a byte, wrong or right.
func (f *finding) read(t *testing.T, off int64) {
	t.Helper()
	if _, err := f.h.ReadAt(t.Context(), make([]byte, 1), off); err != nil {
		t.Fatal(err)
	}
}

// place is where piece i begins in the file.
func (f *finding) place(i int) int64 { return f.h.entry.grid.Stretch(i, i+1).Off }

// TestFoundByStream has one range come wrong, and then the whole blob pass.
func TestFoundByStream(t *testing.T) {
	t.Parallel()
	for _, origin := range []string{"", "registry.example"} {
		fake := &fakeSource{}
		a := makeFile(t, newRand(t), fake, kinds[0], 4<<20)
		fake.mangle = wrongIn(128<<10 + 5)
		var src Source = fake
		if origin != "" {
			src = &named{fakeSource: fake, origin: origin, proven: true}
		}
		f := find(t, t.TempDir(), a, src, Options{})
		f.read(t, f.place(1))
		fake.heal(true)
		f.read(t, f.place(31))
		f.check(t, disk.ByStream, 1, 2, 1)
		eventually(t, "it is sealed", func() bool { _, ok := f.h.Backing(); return ok })
		if source := f.h.entry.Source(); source != origin {
			t.Errorf("the source is called %q", source)
		}
	}
}

// TestFoundByDigest has a blob be wrong as a whole: when it is complete, and
// where a reader waits for its digest.
func TestFoundByDigest(t *testing.T) {
	t.Parallel()
	for _, proven := range []bool{true, false} {
		fake := &fakeSource{}
		a := makeFile(t, newRand(t), fake, kinds[0], 2<<20)
		fake.mangle = wrongIn(5)
		src := &named{fakeSource: fake, origin: "registry.example", proven: proven}
		f := find(t, t.TempDir(), a, src, Options{})
		f.h.Prefetch()
		var reader sync.WaitGroup
		if !proven {
			reader.Go(func() { _, _ = f.h.ReadAt(t.Context(), make([]byte, 1), f.place(0)) }) // as it likes
		}
		eventually(t, "it is found", func() bool { return f.h.entry.cache.Counts().Wrong[disk.ByDigest] > 0 })
		fake.heal(false)
		f.h.entry.verdicts.mu.Lock()
		f.h.entry.verdicts.strikes, f.h.entry.verdicts.condemned = map[int]int{}, map[int]error{} // it may have come wrong twice by now
		f.h.entry.verdicts.mu.Unlock()
		eventually(t, "it is right", func() bool {
			f.h.Prefetch()
			_, err := f.h.ReadAt(t.Context(), make([]byte, 1), f.place(0))
			_, sealed := f.h.Backing()
			return err == nil && sealed
		})
		reader.Wait()
		checkRead(t, f.h, a.flat, 0, len(a.flat))
		if told := f.copies.all(); len(told) == 0 || told[0] != f.h.entry.grid.Stretch(0, 16) {
			t.Errorf("copies of %v are dropped, not of all", told)
		}
	}
}

// TestFoundByDisk has bits of a piece rot before its part is hashed: that one
// piece is fetched again, and nothing is said of the source.
func TestFoundByDisk(t *testing.T) {
	t.Parallel()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	dir := t.TempDir()
	f := find(t, dir, a, src, Options{})
	e := f.h.entry
	last := f.place(e.grid.Pieces() - 1)
	if _, err := f.h.ReadExactly(t.Context(), make([]byte, last), 0); err != nil { // and nothing ahead
		t.Fatal(err)
	}
	must(t, flip(filepath.Join(dir, disk.Files, e.disk.Key+".data"), f.place(3)))
	f.read(t, last)
	f.check(t, disk.ByDisk, 3, 4, 1)
	eventually(t, "it is sealed", func() bool { _, ok := f.h.Backing(); return ok })
	if e.verdicts.strikes[0] != 0 {
		t.Error("its source is blamed")
	}
}

// TestFoundByCopy copies from a file with a piece that has rotted, and from
// one whose bytes were wrong when they came.
func TestFoundByCopy(t *testing.T) {
	t.Parallel()
	t.Run("rotten", func(t *testing.T) {
		src, dir := &fakeSource{}, t.TempDir()
		rng := newRand(t)
		a := makeFile(t, rng, src, kinds[0], 2<<20)
		f := find(t, dir, a, src, Options{})
		checkRead(t, f.h, a.flat, 0, len(a.flat))
		eventually(t, "it is sealed", func() bool { _, ok := f.h.Backing(); return ok })
		must(t, flip(filepath.Join(dir, disk.Files, f.h.entry.disk.Key+".data"), f.place(3)))
		b := a
		other := *a.file
		other.Map, b.flat = spread(t, rng, a.data)
		b.file = &other
		h := openFile(t, f.h.entry.cache, b.file, src)
		checkRead(t, h, b.flat, 0, len(b.flat))
		f.check(t, disk.ByCopy, 3, 4, 1)
	})
	t.Run("wrong", func(t *testing.T) {
		src, dir := &fakeSource{}, t.TempDir()
		rng := newRand(t)
		a := makeFile(t, rng, src, kinds[0], 2<<20)
		src.mangle = wrongIn(128<<10 + 5)
		stuck := newStuckDisk("never")
		f := find(t, dir, a, src, Options{before: stuck.before})
		e := f.h.entry
		e.asked.Store(true) // nobody hashes it
		checkRead(t, f.h, a.flat, 0, int(f.place(1)))
		f.read(t, f.place(1))
		f.h.Prefetch()
		eventually(t, "all is there", f.h.Complete)
		src.heal(false)
		more := makeFile(t, rng, src, kinds[0], 1<<20)
		b := artifact{file: &layout.File{Name: "other", Mode: 0o600}, data: append(slices.Clone(a.data), more.data...)}
		second := more.file.Parts[0]
		second.Offset = a.file.Parts[0].Length
		b.file.Parts = []layout.Part{a.file.Parts[0], second}
		b.file.Map, b.flat = spread(t, rng, b.data)
		h := openFile(t, e.cache, b.file, src)
		checkRead(t, h, b.flat, 0, len(b.flat))
		f.check(t, disk.ByCopy, 0, e.grid.Pieces(), e.grid.Pieces())
	})
}

// TestFoundByVerify has bits rot in a file that is open, which Verify finds,
// in the process that has it open and in another.
func TestFoundByVerify(t *testing.T) {
	t.Parallel()
	for _, by := range []string{disk.ByVerify, disk.ByElsewhere} {
		src, dir := &fakeSource{}, t.TempDir()
		a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
		f := find(t, dir, a, src, Options{watch: time.Millisecond})
		checkRead(t, f.h, a.flat, 0, len(a.flat))
		eventually(t, "it is sealed", func() bool { _, ok := f.h.Backing(); return ok })
		must(t, flip(filepath.Join(dir, disk.Files, f.h.entry.disk.Key+".data"), f.place(3)))
		c := f.h.entry.cache
		if by == disk.ByElsewhere {
			c = openCache(t, dir, Options{})
		}
		if v, err := c.Verify(t.Context(), func(int64) {}); err != nil || len(v.Wrong) != 1 || v.Wrong[0].Offset != f.place(3) {
			t.Fatalf("%+v, %v", v, err)
		}
		f.check(t, by, 3, 4, 1)
	}
}

// TestFoundLate hands a piece over before it is known whether there is room
// for it. When it is written, another process has put other bytes there.
func TestFoundLate(t *testing.T) {
	t.Parallel()
	fake, dir := &fakeSource{}, t.TempDir()
	a := makeFile(t, newRand(t), fake, kinds[0], 4<<20)
	peer := openFile(t, openCache(t, dir, Options{}), a.file, &fakeSource{blobs: fake.blobs})
	fake.mangle = wrongIn(5)
	stuck := newStuckDisk("measure")
	f := find(t, dir, a, fake, Options{before: stuck.before, grace: time.Millisecond})
	f.read(t, f.place(0))
	checkRead(t, peer, a.flat, int(f.place(0)), 1)
	fake.heal(false)
	stuck.release()
	eventually(t, "it is found", func() bool { return f.h.entry.cache.Counts().Wrong[disk.ByLate] == 1 })
	eventually(t, "copies are dropped", func() bool { return slices.Contains(f.copies.all(), f.h.entry.grid.Stretch(0, 1)) })
	eventually(t, "it is right", func() bool {
		f.h.Prefetch()
		_, sealed := f.h.Backing()
		return sealed
	})
	checkRead(t, f.h, a.flat, 0, len(a.flat))
}

// TestFoundByFetch has a range come other than what is there by then.
func TestFoundByFetch(t *testing.T) {
	t.Parallel()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	f := find(t, t.TempDir(), a, src, Options{})
	f.read(t, f.place(2))
	e := f.h.entry
	_, n := e.grid.Extent(2)
	e.keep(&disk.Incoming{Piece: 2, Payload: make([]byte, n), By: disk.ByFetch}, nil)
	e.keep(&disk.Incoming{Piece: 2, Payload: a.data[2*n : 3*n], By: disk.ByFetch}, nil)
	f.check(t, disk.ByFetch, 2, 3, 2)
}

// TestFoundAfterHandingOver has a wrong piece be handed over that was never on
// disk: because there is no room, or because its process died before it was
// known whether there is. When others come in its place, copies are dropped.
func TestFoundAfterHandingOver(t *testing.T) {
	t.Parallel()
	t.Run("no room", func(t *testing.T) {
		src := &fakeSource{}
		a := makeFile(t, newRand(t), src, kinds[0], 4<<20)
		src.mangle = wrongIn(128<<10 + 5)
		f := find(t, t.TempDir(), a, src, Options{Size: 1})
		f.read(t, f.place(1))
		e := f.h.entry
		e.held.Drop(1)
		src.heal(true)
		f.read(t, f.place(31))
		f.check(t, disk.ByStream, 1, 2, 1)
	})
	t.Run("died", func(t *testing.T) {
		src, dir := &fakeSource{}, t.TempDir()
		a := makeFile(t, newRand(t), src, kinds[0], 4<<20)
		src.mangle = wrongIn(128<<10 + 5)
		stuck := newStuckDisk("measure")
		c := openCache(t, dir, Options{before: stuck.before, grace: time.Millisecond})
		died := openFile(t, c, a.file, src)
		e := died.entry
		if _, err := died.ReadAt(t.Context(), make([]byte, 1), e.grid.Stretch(1, 2).Off); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is noted", func() bool { _, other := e.state.OtherHanded(1, 0); return other })
		_ = died.Close()
		stuck.release()
		_ = c.Close()
		src.heal(true)
		f := find(t, dir, a, src, Options{})
		f.read(t, f.place(31))
		f.check(t, disk.ByStream, 1, 2, 1)
	})
}
