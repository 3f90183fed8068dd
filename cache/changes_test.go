package cache

import (
	"slices"
	"testing"
	"time"
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

	other.takeBack(5, 7, 0, false) // nobody knows that they were wrong
	eventually(t, "copies are dropped", func() bool { return slices.Equal(f.copies.all(), []stretch{e.stretch(5, 7)}) })
	if n := e.cache.Counts().Wrong[byElsewhere]; n != 0 {
		t.Errorf("%d pieces are counted as wrong", n)
	}
	checkRead(t, f.h, a.flat, 0, len(a.flat)) // what is put there again is nothing to be told
	other.discard(9, 10, found{by: byDigest})
	eventually(t, "copies are dropped", func() bool { return len(f.copies.all()) == 2 })
	if told := f.copies.all(); told[1] != e.stretch(9, 10) {
		t.Errorf("copies of %v are dropped", told)
	}
	if n := e.cache.Counts().Wrong[byElsewhere]; n != 1 {
		t.Errorf("%d pieces are counted as wrong, not 1", n)
	}
	checkRead(t, f.h, a.flat, 0, len(a.flat))
}

// TestReaderNotices: a read is enough for a look at what others have done.
func TestReaderNotices(t *testing.T) {
	t.Parallel()
	src, dir := &fakeSource{}, t.TempDir()
	a := makeFile(t, newRand(t), src, kinds[0], 1<<20+1)
	f := find(t, dir, a, src, Options{watch: time.Hour})
	other := openFile(t, openCache(t, dir, Options{}), a.file, src).entry
	checkRead(t, f.h, a.flat, 0, len(a.flat))
	other.discard(1, 2, found{by: byDigest})
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
	other.entry.discard(2, 3, found{by: byDigest})
	f := find(t, dir, a, src, Options{watch: time.Hour})
	eventually(t, "copies are dropped", func() bool {
		return slices.Equal(f.copies.all(), []stretch{f.h.entry.stretch(2, 3)})
	})
	if n := f.h.entry.cache.Counts().Wrong[byElsewhere]; n != 0 {
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
	other.state.taking()
	eventually(t, "it was looked at", f.h.entry.noticed)
	other.state.clear(3)
	eventually(t, "copies are dropped", func() bool {
		return slices.Equal(f.copies.all(), []stretch{f.h.entry.stretch(3, 4)})
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
	before := other.state.word(2) & wordTurn
	for range turns {
		other.takeBack(2, 3, 0, false)
		other.state.set(2, 1, false)
		other.state.words[2] |= before
	}
	for range turns - 1 {
		other.takeBack(2, 3, 0, false)
	}
	f.h.entry.compareTurns(true)
	eventually(t, "all copies are dropped", func() bool { return slices.Contains(f.copies.all(), stretch{}) })
}

// TestTurns changes a word back and forth: who looked at it before does not
// take it for what it was.
func TestTurns(t *testing.T) {
	t.Parallel()
	src := &fakeSource{}
	a := makeFile(t, newRand(t), src, kinds[0], 1<<20+1)
	s := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src).entry.state
	must(t, s.reserve(1))
	for range 2 * turns {
		old := s.word(1)
		if !s.put(1, old, 7, true) || !s.verified(1) || s.word(1)&wordSum != 7 {
			t.Fatalf("the word is %#x", s.word(1))
		}
		if s.put(1, old, 8, false) {
			t.Fatal("a piece was put where another had been put meanwhile")
		}
		if !s.clear(1) || s.has(1) || s.word(1)&wordTurn == old&wordTurn {
			t.Fatalf("the word is %#x, and was %#x", s.word(1), old)
		}
		if s.put(1, old, 7, true) {
			t.Fatal("a piece was put where one had been taken back meanwhile")
		}
	}
	before := s.word(1)
	if s.clear(1) || s.word(1) == before {
		t.Error("who is just about to put it there does not learn of that")
	}
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
	for i := range turns + 3 {
		e.discard(i, i+1, found{by: byDigest})
	}
	if !e.noticed() {
		t.Error("what this process did is something to be noticed")
	}
	e.compareTurns(true)
	want := e.stretch(0, turns+3)
	eventually(t, "copies are dropped", func() bool {
		told := f.copies.all()
		return len(told) > 0 && told[len(told)-1].off+told[len(told)-1].n == want.off+want.n
	})
	if slices.Contains(f.copies.all(), stretch{}) {
		t.Error("copies of the whole file are dropped")
	}
	if n := e.cache.Counts().Wrong; n[byElsewhere] != 0 || n[byDigest] != turns+3 {
		t.Errorf("counted are %v", n)
	}
}
