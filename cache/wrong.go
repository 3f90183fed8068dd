package cache

import (
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// What a present piece was found wrong by. These are the keys of
// Counts.Wrong.
const (
	byStream    = "stream"    // all of a blob passed and had other bytes
	byFetch     = "fetch"     // a request for a range brought other bytes
	byCopy      = "copy"      // another cached file was copied from, or copied to
	byLate      = "late"      // a piece that was written after it was handed over
	byDigest    = "digest"    // a blob was hashed
	byDisk      = "disk"      // the disk gave back something else than was written
	byVerify    = "verify"    // Cache.Verify looked
	byElsewhere = "elsewhere" // another process found it
)

var foundBy = []string{byStream, byFetch, byCopy, byLate, byDigest, byDisk, byVerify, byElsewhere}

// found is how pieces were seen to be wrong.
type found struct {
	by    string
	cause error        // may be nil
	word  uint64       // of the one piece that was compared; 0: whatever the words are
	gone  func() []any // may be nil; called when nobody gets the pieces any more, for further attributes of the log line
}

// discard deals with pieces [from, to), whose bytes are not right, or differ
// from others that may be: it is the only way in which a piece that somebody
// may have read is given up for that. They are missing from now on, and so
// fetched again or, by the caller, replaced; the file is not sealed any more;
// the kernel's pages of them are dropped in every mount that shows them; one
// line is logged, and the pieces are counted. With a word, nothing happens
// unless that is still the piece's. It returns how many pieces were there.
func (e *entry) discard(from, to int, f found) int {
	if shown := e.cache.inUse(e); shown != nil { // e is open to be looked at alone
		defer shown.unuse()
		e = shown
	}
	if from == to {
		return 0
	}
	n := e.takeBack(from, to, f.word, true)
	if n == 0 && f.word != 0 {
		return 0
	}
	e.cache.counts.foundWrong(f.by, int64(max(n, 1)))
	var more []any
	if f.gone != nil {
		more = f.gone()
	}
	s := e.stretch(from, to)
	line := []any{"file", e.file.Name, "offset", s.off, "length", s.n, "found_by", f.by, "source", e.source(),
		"digest", e.file.Parts[e.grid.part(from)].Digest}
	if f.cause != nil {
		line = append(line, "cause", f.cause)
	}
	e.cache.log.Error("wrong bytes were dropped", append(line, more...)...)
	return n
}

// inUse returns the open entry of the same file that readers use, if e is
// another one. The caller ends its use.
func (c *Cache) inUse(e *entry) *entry {
	c.mu.Lock()
	o := c.entries[e.key]
	c.mu.Unlock()
	if o == nil || o == e || !o.use() {
		return nil
	}
	return o
}

// source names where the file's bytes come from; it is empty for a cached
// file that was opened without its source.
func (e *entry) source() string {
	if e.link == nil {
		return ""
	}
	return e.link.Origin()
}

// takeBack makes pieces [from, to) missing, on disk and in memory, and has
// those who keep copies of them drop these. wrong counts them as wrong. With a
// word, that must still be the one of piece from. It returns how many pieces
// were there.
func (e *entry) takeBack(from, to int, word uint64, wrong bool) (n int) {
	if word != 0 && e.state.word(from) != word {
		return 0
	}
	if word == 0 {
		e.drops.Add(1)
		defer e.drops.Add(1) // who began meanwhile may have seen some of it
	}
	sealed := e.state.sealed()
	e.state.unseal() // before a word changes: who sees the seal does not look at words
	c := &e.changes
	c.mu.Lock()
	moved, done := e.state.taking()
	c.begun.Add(moved) // nothing that has to be noticed
	for i := from; i < to; i++ {
		gone := false
		if word == 0 {
			gone = e.state.clear(i)
			gone = e.cache.spare.drop(e, i, i+1) || gone
		} else if gone = e.state.withdraw(i, word); gone {
			e.cache.spare.drop(e, i, i+1)
		}
		if gone {
			n++
		}
		if gone || word == 0 { // and told of below
			c.sawLocked(i, e.state.word(i))
		}
	}
	if n > 0 || word == 0 {
		c.todoLocked(e.stretch(from, to))
	}
	if wrong {
		c.wrong += done(n)
	} else {
		done(0)
	}
	c.mu.Unlock()
	if n == 0 && sealed && e.link != nil {
		e.checkComplete() // somebody else was quicker
	}
	return n
}

// Errors of readKept.
var (
	errGone      = errors.New("the piece is not there")
	errNotAsKept = errors.New("the disk gives back other bytes than were written")
)

// readKept reads piece i into buf and compares it with its checksum. word is
// the piece's; a piece that does not agree with it was looked at twice.
func (e *entry) readKept(i int, buf []byte) (word uint64, err error) {
	for range 2 { // it may have been replaced at the first look
		if word = e.state.word(i); word&wordPresent == 0 {
			return word, errGone
		}
		if err = e.load(i, buf); err == nil {
			if xxhash.Sum64(buf)&wordSum == word&wordSum {
				return word, nil
			}
			err = errNotAsKept
		}
	}
	return word, err
}

// compareKept compares piece i with its checksum, and discards it if the disk
// gives back other bytes. A piece to which that happens twice is not put on
// disk again by this process.
func (e *entry) compareKept(i int) {
	_, n := e.grid.extent(i)
	buf := getBuffer(n)
	defer putBuffer(buf)
	word, err := e.readKept(i, buf)
	if errors.Is(err, errNotAsKept) && word&wordSuspect == 0 {
		e.rotted(i, word)
	}
}

func (e *entry) rotted(i int, word uint64) {
	if e.discard(i, i+1, found{by: byDisk, cause: errNotAsKept, word: word}) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.rot == nil {
		e.rot = map[int]bool{}
	}
	if e.rot[i] {
		e.loseLocked(i)
	}
	e.rot[i] = true
}

// refute deals with a raw part that did not have its digest when pieces was
// hashed. Where what was hashed is not what is there, or not what was once
// kept, nothing is said of the part's source: it is hashed again. drops is
// what entry.drops was before.
func (e *entry) refute(part int, pieces *hashed, drops int64) {
	e.refuting.Lock() // of two who hashed the same bytes, one finds them
	defer e.refuting.Unlock()
	if len(pieces.unkept) > 0 && e.drops.Load() != drops {
		return
	}
	same := true
	for k, sum := range pieces.sums {
		i := e.grid.first[part] + k
		if _, inMemory := pieces.unkept[i]; inMemory {
			continue
		}
		word := e.state.word(i)
		switch {
		case word&wordPresent == 0:
			same = false
		case word&wordSum != sum&wordSum:
			same = false
			e.compareKept(i)
		}
	}
	if same {
		_ = e.drop(part, nil, "whole") // it is logged, and tried again unless it is out of service
	}
}

// strikesMost is how often a part may turn out wrong as a whole, after its
// bytes were handed out, before it is handed out no more.
const strikesMost = 2

// drop takes a part whose bytes are wrong out of the cache, tells their
// source, and returns what to tell readers. body is what they came in, nil
// where that is not known. The second time the part goes out of service,
// unless it can be had elsewhere.
func (e *entry) drop(part int, body io.ReadCloser, what string) error {
	err := e.wrong(part, what)
	err.all = true
	e.blame(&e.file.Parts[part], body, err)
	e.discard(e.grid.first[part], e.grid.first[part+1], found{by: byDigest, cause: err, gone: func() []any {
		return []any{"out_of_service", e.strike(part, err)}
	}})
	return err
}

// strike counts that a part was wrong as a whole. It reports whether the part
// is out of service now, because of err.
func (e *entry) strike(part int, err *contentError) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.strikes[part]++
	out := e.strikes[part] >= strikesMost && !err.elsewhere
	if out {
		e.condemned[part] = err
	}
	return out
}

// condemnedLocked is why one of pieces [from, to) is out of service.
func (e *entry) condemnedLocked(from, to int) error {
	for part, err := range e.condemned {
		if from < e.grid.first[part+1] && to > e.grid.first[part] {
			return err
		}
	}
	return nil
}

// forgetUnseen makes a frame missing whose pieces are all there, but were
// left by a process that did not get to compare its digest. The stored
// bytes are gone, so nothing else can tell whether the pieces are right.
func (e *entry) forgetUnseen(part int) {
	first, end := e.grid.first[part], e.grid.first[part+1]
	if e.file.Parts[part].Encoding == layout.Raw || e.grid.whole(part) || !e.state.hasAll(first, end) {
		return
	}
	if e.streaming(part) {
		return
	}
	if ok, err := e.state.tryLockPieces(first, end); err != nil || !ok {
		return // another process is at it
	}
	defer e.state.unlockPieces(first, end)
	if !e.partVerified(part) {
		e.takeBack(first, end, 0, false)
	}
}

// wrong makes the error for bytes that their digest does not vouch for.
func (e *entry) wrong(part int, what string) *contentError {
	return &contentError{error: fmt.Errorf("%q, blob %s, %s: digest does not agree: %w",
		e.file.Name, e.file.Parts[part].Digest, what, layout.ErrContent)}
}

// contentError is an error of the bytes, not of the way to them.
type contentError struct {
	error
	elsewhere bool // the source knows another place to try
	all       bool // a blob is wrong as a whole, and nobody knows where
}

func (e *contentError) Unwrap() error { return e.error }
