package cache

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
)

// TestOthersAreTold has one process take pieces back that another shows: that
// one drops its copies of just those, and counts what was wrong.
func TestOthersAreTold(t *testing.T) {
	t.Parallel()
	src, dir := &fakeSource{}, t.TempDir()
	a := makeFile(t, newRand(t), src, kinds[0], 4<<20)
	f := find(t, dir, a, src, Options{watch: time.Millisecond})
	other := openFile(t, openCache(t, dir, Options{}), a.file, src).entry
	checkRead(t, f.h, a.flat, 0, len(a.flat))
	e := f.h.entry

	told := func() (all []disk.Stretch) { // one by one, if it was looked at meanwhile
		for _, s := range f.copies.all() {
			all = disk.Join(all, s)
		}
		return all
	}
	want := []disk.Stretch{e.grid.Stretch(5, 7), e.grid.Stretch(9, 10)}
	other.disk.TakeBack(5, 7) // nobody knows that they were wrong
	eventually(t, "copies are dropped", func() bool { return slices.Equal(told(), want[:1]) })
	if n := e.cache.Counts().Wrong[disk.ByElsewhere]; n != 0 {
		t.Errorf("%d pieces are counted as wrong", n)
	}
	checkRead(t, f.h, a.flat, 0, len(a.flat)) // what is put there again is nothing to be told
	other.disk.Discard(9, 10, disk.Found{By: disk.ByDigest})
	eventually(t, "copies are dropped", func() bool { return len(told()) == 2 })
	eventually(t, "they are counted", func() bool { return e.cache.Counts().Wrong[disk.ByElsewhere] > 0 })
	checkRead(t, f.h, a.flat, 0, len(a.flat))
	if n := e.cache.Counts().Wrong[disk.ByElsewhere]; n != 1 || !slices.Equal(told(), want) {
		t.Errorf("%d pieces are counted as wrong, not 1, and copies of %v are dropped", n, told())
	}
}

// TestReaderNotices: a read is enough for a look at what others have done.
func TestReaderNotices(t *testing.T) {
	t.Parallel()
	src, dir := &fakeSource{}, t.TempDir()
	a := makeFile(t, newRand(t), src, kinds[0], 1<<20+1)
	f := find(t, dir, a, src, Options{watch: time.Hour})
	other := openFile(t, openCache(t, dir, Options{}), a.file, src).entry
	checkRead(t, f.h, a.flat, 0, len(a.flat))
	other.disk.Discard(1, 2, disk.Found{By: disk.ByDigest})
	f.read(t, f.place(0))
	eventually(t, "copies are dropped", func() bool { return len(f.copies.all()) == 1 })
}

// TestTakenBackBefore has a piece be taken back before somebody begins to show
// the file in the place of another, whose copies are still there.
func TestTakenBackBefore(t *testing.T) {
	t.Parallel()
	src, dir := &fakeSource{}, t.TempDir()
	a := makeFile(t, newRand(t), src, kinds[0], 1<<20+1)
	other := openFile(t, openCache(t, dir, Options{}), a.file, src)
	checkRead(t, other, a.flat, 0, len(a.flat))
	other.entry.disk.Discard(2, 3, disk.Found{By: disk.ByDigest})
	f := find(t, dir, a, src, Options{watch: time.Hour})
	eventually(t, "copies are dropped", func() bool {
		return slices.Equal(f.copies.all(), []disk.Stretch{f.h.entry.grid.Stretch(2, 3)})
	})
	if n := f.h.entry.cache.Counts().Wrong[disk.ByElsewhere]; n != 0 {
		t.Errorf("%d pieces are counted that were wrong before", n)
	}
}

// TestDiedWhileTaking has a process die when it has taken a piece back and not
// said so.
func TestDiedWhileTaking(t *testing.T) {
	t.Parallel()
	src, dir := &fakeSource{}, t.TempDir()
	a := makeFile(t, newRand(t), src, kinds[0], 1<<20+1)
	f := find(t, dir, a, src, Options{watch: time.Millisecond})
	checkRead(t, f.h, a.flat, 0, len(a.flat))
	other := openFile(t, openCache(t, dir, Options{}), a.file, src).entry
	const begun = 96 // in the state: how often pieces were about to be taken back
	editState(t, other, begun, func(n uint64) uint64 { return n + 1 })
	eventually(t, "it was looked at", func() bool { return !f.h.entry.disk.Changed() })
	other.state.Clear(3)
	eventually(t, "copies are dropped", func() bool {
		return slices.Equal(f.copies.all(), []disk.Stretch{f.h.entry.grid.Stretch(3, 4)})
	})
}

// TestManyTurns has a piece be taken back as often as it takes for its turn to
// be what it was.
func TestManyTurns(t *testing.T) {
	t.Parallel()
	src, dir := &fakeSource{}, t.TempDir()
	a := makeFile(t, newRand(t), src, kinds[0], 1<<20+1)
	f := find(t, dir, a, src, Options{watch: time.Hour})
	other := openFile(t, openCache(t, dir, Options{}), a.file, src).entry
	checkRead(t, f.h, a.flat, 0, len(a.flat))
	before := other.state.Word(2) & disk.WordTurn
	for range disk.Turns {
		other.disk.TakeBack(2, 3)
		setWord(t, other, 2, disk.WordPresent|1|before)
	}
	for range disk.Turns - 1 {
		other.disk.TakeBack(2, 3)
	}
	f.h.entry.disk.Compare(true)
	eventually(t, "all copies are dropped", func() bool { return slices.Contains(f.copies.all(), disk.Stretch{}) })
}

// TestManyOfOnes: a process that takes many pieces back has copies of these
// dropped, and not of the whole file.
func TestManyOfOnes(t *testing.T) {
	t.Parallel()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 6<<20)
	f := find(t, t.TempDir(), a, src, Options{watch: time.Hour})
	checkRead(t, f.h, a.flat, 0, len(a.flat))
	e := f.h.entry
	for i := range disk.Turns + 3 {
		e.disk.Discard(i, i+1, disk.Found{By: disk.ByDigest})
	}
	if e.disk.Changed() {
		t.Error("what this process did is something to be noticed")
	}
	e.disk.Compare(true)
	want := e.grid.Stretch(0, disk.Turns+3)
	eventually(t, "copies are dropped", func() bool {
		told := f.copies.all()
		return len(told) > 0 && told[len(told)-1].Off+told[len(told)-1].N == want.Off+want.N
	})
	if slices.Contains(f.copies.all(), disk.Stretch{}) {
		t.Error("copies of the whole file are dropped")
	}
	if n := e.cache.Counts().Wrong; n[disk.ByElsewhere] != 0 || n[disk.ByDigest] != disk.Turns+3 {
		t.Errorf("counted are %v", n)
	}
}

// setWord stores a word, whatever it is.
func setWord(t *testing.T, e *entry, i int, w disk.Word) {
	t.Helper()
	editState(t, e, disk.StateHeader+8*int64(i), func(uint64) uint64 { return uint64(w) })
}

// editState changes a number in the state of a file that is open.
func editState(t *testing.T, e *entry, off int64, change func(n uint64) uint64) {
	t.Helper()
	f, err := e.cache.dir.OpenFile(filepath.Join(disk.Files, e.disk.Key+".state"), os.O_RDWR)
	must(t, err)
	defer f.Close()
	var b [8]byte
	_, err = f.ReadAt(b[:], off)
	must(t, err)
	binary.LittleEndian.PutUint64(b[:], change(binary.LittleEndian.Uint64(b[:])))
	_, err = f.WriteAt(b[:], off)
	must(t, err)
}
