package cache

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/test/tier"
)

// openReader opens the cache in dir to be read, until the test ends.
func openReader(t *testing.T, dir string) *Reader {
	t.Helper()
	r, err := OpenReader(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func localFile(t *testing.T, r *Reader, f *layout.File, src Source) *Local {
	t.Helper()
	l, err := r.File(f, src)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func openLocal(t *testing.T, dir string, f *layout.File, src Source) *Local {
	return localFile(t, openReader(t, dir), f, src)
}

// contents is what a directory holds, without times.
func contents(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(p)
		b.WriteString(p + "\n" + string(text) + "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// loaded reads all that l has of a file, piece by piece, and returns
// how many bytes that were; each must be the file's.
func loaded(t *testing.T, l *Local, a artifact) (n int64) {
	t.Helper()
	for i := range a.file.Parts {
		p := &a.file.Parts[i]
		want := a.data[p.Offset:p.End()]
		if r := l.Part(i); r != nil {
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("part %d has %d bytes of %d, %v", i, len(got), len(want), err)
			}
			n += int64(len(got))
			continue
		}
		for piece := l.entry.grid.First[i]; piece < l.entry.grid.First[i+1]; piece++ {
			start, size := l.entry.grid.Extent(piece)
			off, buf := start-p.Offset, make([]byte, size)
			release, err := l.Claim(t.Context(), i, off, int64(len(buf)))
			if err != nil {
				t.Fatal(err)
			}
			if here := l.Here(i, off, int64(len(buf))); here != l.Load(i, off, buf) {
				t.Errorf("part %d at %d: here %v, and not loaded", i, off, here)
			} else if here {
				n += int64(len(buf))
				if !bytes.Equal(buf, want[off:off+int64(len(buf))]) {
					t.Errorf("part %d at %d has other bytes", i, off)
				}
			}
			l.Keep(i, off, want[off:off+int64(len(buf))], true)
			release()
		}
	}
	return n
}

// TestReaderKeepsNothing reads what a cache has, all and in part, and keeps
// what it is given nowhere.
func TestReaderKeepsNothing(t *testing.T) {
	tier.Long(t, "fills caches with files of all kinds")
	t.Parallel()
	src := &fakeSource{}
	dir := t.TempDir()
	half, all, digest := fillCache(t, dir, src)
	before := contents(t, dir)
	r := openReader(t, dir)
	for n, a := range all {
		l := localFile(t, r, a.file, src)
		if l.Cached() != int64(len(a.data)) {
			t.Errorf("kind %d: %d bytes of %d are there", n, l.Cached(), len(a.data))
		}
		if got := loaded(t, l, a); got != int64(len(a.data)) {
			t.Errorf("kind %d: %d bytes of %d were read", n, got, len(a.data))
		}
	}
	for n, a := range half {
		l := localFile(t, r, a.file, src)
		here := l.Cached()
		if n != 4 && (here < int64(len(a.data))/3 || here == int64(len(a.data))) { // a frame is not checked before its end
			t.Errorf("kind %d: %d bytes of %d are there", n, here, len(a.data))
		}
		if got := loaded(t, l, a); got != here {
			t.Errorf("kind %d: %d bytes were read, %d are there", n, got, here)
		}
	}
	fresh := makeFile(t, newRand(t), src, kinds[0], 1<<20)
	if l := localFile(t, r, fresh.file, src); l.Cached() != 0 || loaded(t, l, fresh) != 0 {
		t.Errorf("%d bytes of a file that is not there", l.Cached())
	}
	if blob, err := r.Blob(digest); err != nil || string(blob) != "manifest" {
		t.Errorf("blob: %q, %v", blob, err)
	}
	if got, _, err := r.Ref("host/vm:latest"); err != nil || got != digest {
		t.Errorf("reference: %q, %v", got, err)
	}
	if contents(t, dir) != before {
		t.Error("something was written")
	}
}

// TestReaderBorrows reads parts that another file has. That file is in use
// only while it is read.
func TestReaderBorrows(t *testing.T) {
	t.Parallel()
	for _, k := range []kind{kinds[0], kinds[1], kinds[2], kinds[3]} {
		src := &fakeSource{}
		rng := newRand(t)
		dir := t.TempDir()
		a := makeFile(t, rng, src, k, 3<<20)
		c := openCache(t, dir, Options{})
		h := openFile(t, c, a.file, src)
		checkRead(t, h, a.flat, 0, len(a.flat))
		eventually(t, "it is sealed", func() bool { _, ok := h.Backing(); return ok })
		_ = h.Close()
		f := *a.file
		f.Map, _ = spread(t, rng, a.data)
		before := contents(t, dir)
		r := openReader(t, dir)
		r.cache.opts.peerIdle = time.Millisecond
		l := localFile(t, r, &f, src)
		if l.Cached() != int64(len(a.data)) || loaded(t, l, artifact{&f, nil, a.data}) != int64(len(a.data)) {
			t.Errorf("%s: %d bytes of %d", k.name, l.Cached(), len(a.data))
		}
		if contents(t, dir) != before {
			t.Errorf("%s: something was written", k.name)
		}
		late := l.Part(0)
		eventually(t, "the other file can be removed", func() bool { return c.dir.Remove(a.file.Key()) == nil })
		eventually(t, "what it had is gone", func() bool { return l.Cached() == 0 })
		if n, err := late.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s: %d bytes of a file that is gone, %v", k.name, n, err)
		}
	}
}

// TestReaderDropsWhatIsWrong has wrong bytes in the cache that no digest has
// vouched for: they are handed out once, to be hashed, and not again.
func TestReaderDropsWhatIsWrong(t *testing.T) {
	t.Parallel()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 2<<20)
	dir := t.TempDir()
	h := openFile(t, openCache(t, dir, Options{}), a.file, src)
	var dropped atomic.Bool
	h.OnDrop(func(int64, int64) { dropped.Store(true) })
	k := h.Filler()
	k.Keep(0, 0, a.data[:k.Grain(0)], true)
	k.Keep(0, k.Grain(0), bytes.Repeat([]byte{7}, int(2*k.Grain(0))), false)
	l := openLocal(t, dir, a.file, src)
	if l.Cached() != 3*k.Grain(0) || !l.Load(0, 0, make([]byte, 3*k.Grain(0))) {
		t.Fatalf("%d bytes are there", l.Cached())
	}
	l.Drop(0)
	if again := openLocal(t, dir, a.file, src); again.Cached() != 0 || h.Cached() != 0 {
		t.Errorf("%d bytes are there", h.Cached())
	}
	checkRead(t, h, a.flat, 0, len(a.flat)) // looks at what others have taken back
	eventually(t, "a mount is told", dropped.Load)
}

// TestReaderAfterReboot looks at what is there from before the last boot.
func TestReaderAfterReboot(t *testing.T) {
	tier.Long(t, "fills caches with files of all kinds")
	t.Parallel()
	src := &fakeSource{}
	dir := t.TempDir()
	half, _, _ := fillCache(t, dir, src)
	for n, a := range half[:4] {
		name := filepath.Join(dir, disk.Files, a.file.Key())
		otherBoot(t, name+".state")
		l := openLocal(t, dir, a.file, src)
		right := loaded(t, l, a)
		data, err := os.OpenFile(name+".data", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		at := a.file.Map.Segments()[0].Offset
		if _, err := data.WriteAt([]byte{^a.flat[at]}, at); err != nil {
			t.Fatal(err)
		}
		_ = data.Close()
		before := contents(t, dir)
		l = openLocal(t, dir, a.file, src)
		if left := loaded(t, l, a); right == 0 || left != right-l.Grain(0) {
			t.Errorf("kind %d: %d bytes were right, and %d with one changed", n, right, left)
		}
		if contents(t, dir) != before {
			t.Errorf("kind %d: something was written", n)
		}
	}
}

// TestReaderRefuses opens what is no cache, or not to be trusted.
func TestReaderRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := OpenReader(filepath.Join(dir, "gone"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	if found, err := os.ReadDir(dir); err != nil || len(found) != 0 {
		t.Errorf("it made %v, %v", found, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReader(file, nil); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReader(open, nil); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("one that others can write: %v", err)
	}
	r := openReader(t, dir)
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 1<<20)
	if l := localFile(t, r, a.file, src); l.Cached() != 0 {
		t.Errorf("%d bytes of an empty directory", l.Cached())
	}
}

// TestReaderCopiesPieces reads what others have of a part in pieces: of a blob
// of which half is there, if with that a stretch is complete, and of packed
// files that share granules, whatever they share.
func TestReaderCopiesPieces(t *testing.T) {
	t.Parallel()
	src := &fakeSource{}
	rng := newRand(t)
	dir := t.TempDir()
	c := openCache(t, dir, Options{})
	a := makeFile(t, rng, src, kinds[1], 3<<20)
	h := openFile(t, c, a.file, src)
	h.Filler().Keep(0, 0, a.data[:1<<20], true)
	f := *a.file
	f.Map, _ = spread(t, rng, a.data)

	const g = packed.MinGranule
	data := make([]byte, 40*g)
	fillRandom(rng, data)
	old := packedArtifact(t, rng, src, c, "memory-ranges", data)
	whole := openFile(t, c, old.file, src)
	checkRead(t, whole, data, 0, len(data))
	eventually(t, "all of it is on disk", func() bool { _, sealed := whole.Backing(); return sealed })
	changed := bytes.Clone(data)
	fillRandom(rng, changed[20*g:21*g])
	newer := packedArtifact(t, rng, src, c, "memory-ranges", changed)

	for name, want := range map[string]struct {
		a    artifact
		here int64
		held int
	}{"half a blob": {artifact{&f, nil, a.data}, 1 << 20, 0}, "granules": {newer, int64(len(data)) - g, 39}} {
		before := contents(t, dir)
		l := openLocal(t, dir, want.a.file, src)
		if n := loaded(t, l, want.a); n != want.here {
			t.Errorf("%s: %d bytes of %d were read", name, n, want.here)
		}
		p := &want.a.file.Parts[0]
		release, err := l.Claim(t.Context(), 0, 0, p.Length) // not all of it is there
		if err != nil {
			t.Fatal(err)
		}
		if l.Here(0, 0, p.Length) || len(l.held) != want.held {
			t.Errorf("%s: %d pieces are held, not %d", name, len(l.held), want.held)
		}
		if release(); len(l.held) > 0 {
			t.Errorf("%s: %d pieces are held after that", name, len(l.held))
		}
		if contents(t, dir) != before {
			t.Errorf("%s: something was written", name)
		}
	}
}
