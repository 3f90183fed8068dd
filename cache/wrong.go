package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// contentError is an error of the bytes, not of the way to them.
type contentError struct {
	error
	elsewhere bool // the source has another upstream to try
	all       bool // a blob is wrong as a whole, and nobody knows where
}

func (e *contentError) Unwrap() error { return e.error }

// wrong returns the error of bytes that their digest does not vouch for.
func (e *entry) wrong(part int, what string) *contentError {
	return &contentError{error: fmt.Errorf("%q, blob %s, %s: digest does not agree: %w",
		e.file.Name, e.file.Parts[part].Digest, what, layout.ErrContent)}
}

// blame reports to the source that it sent wrong bytes of a part, if err says
// that they were. body is what they came in, or nil.
func (e *entry) blame(part int, body io.ReadCloser, err error) {
	var wrong *contentError
	if errors.As(err, &wrong) {
		wrong.elsewhere = e.link.Blame(e.file.Parts[part].Digest, body)
	}
}

// checkPiece compares a piece's payload with its own digest, if it has one or
// has been found to have. verified is false if there is none.
func (e *entry) checkPiece(i int, payload []byte) (verified bool, err error) {
	want, ok := e.grid.Sum(i)
	if !ok {
		if want, ok = e.held.Vouched(i); !ok {
			return false, nil
		}
	}
	if sha256.Sum256(payload) != want {
		off, n := e.grid.Extent(i)
		return false, e.wrong(e.grid.Part(i), fmt.Sprintf("piece at %d, %d bytes", off, n))
	}
	return true, nil
}

// hashed are the pieces of a part as they were hashed. By the time that the
// part's digest is known, the disk may hold something else.
type hashed struct {
	sums []uint64                  // checksums of its pieces, in order
	held map[int][sha256.Size]byte // digests of those that were in memory
}

func (h *hashed) add(payload []byte) { h.sums = append(h.sums, disk.Sum(payload)) }

func (h *hashed) inMemory(piece int, payload []byte) {
	if h.held == nil {
		h.held = map[int][sha256.Size]byte{}
	}
	h.held[piece] = sha256.Sum256(payload)
}

// vouch marks those pieces of a part as verified that are what was hashed:
// another process may have put other bytes in the place of some meanwhile.
// The digests of those that were in memory are noted.
func (e *entry) vouch(part int, pieces *hashed) {
	for i, sum := range pieces.sums {
		e.state.SetVerified(e.grid.First[part]+i, sum)
	}
	e.held.Vouch(pieces.held)
}

// refute deals with a raw part that did not have its digest when pieces was
// hashed. If what was hashed is not what is there, or not what was once kept,
// nothing is said of the part's source: it is hashed again. drops is what
// disk.File.Drops was before.
func (e *entry) refute(part int, pieces *hashed, drops int64) {
	e.refuting.Lock() // if two have hashed the same bytes, one finds them
	defer e.refuting.Unlock()
	if len(pieces.held) > 0 && e.disk.Drops() != drops {
		return
	}
	same := true
	for k, sum := range pieces.sums {
		i := e.grid.First[part] + k
		if _, inMemory := pieces.held[i]; inMemory {
			continue
		}
		word := e.state.Word(i)
		switch {
		case !word.Present():
			same = false
		case !word.HasSum(sum):
			same = false
			e.compareKept(i)
		}
	}
	if same {
		_ = e.drop(part, nil, "whole") // it is logged, and tried again unless it is out of service
	}
}

// compareKept compares piece i with its checksum, and discards it if the disk
// gives back other bytes. A piece to which that happens twice is not put on
// disk again by this process.
func (e *entry) compareKept(i int) {
	_, n := e.grid.Extent(i)
	buf := buffers.Get(n)
	defer buffers.Put(buf)
	word, err := e.disk.LoadAsKept(i, buf)
	if errors.Is(err, disk.ErrNotAsKept) && word&disk.WordSuspect == 0 &&
		e.disk.Discard(i, i+1, disk.Found{By: disk.ByDisk, Cause: err, Word: word}) > 0 {
		e.held.Rotted(i)
	}
}

// drop takes a part whose bytes are wrong out of the cache, blames their
// source, and returns the error for readers. body is what they came in, nil if
// that is not known. The second time the part goes out of service, unless it
// can be had elsewhere.
func (e *entry) drop(part int, body io.ReadCloser, what string) error {
	err := e.wrong(part, what)
	err.all = true
	e.blame(part, body, err)
	first, end := e.grid.Of(part)
	e.disk.Discard(first, end, disk.Found{By: disk.ByDigest, Cause: err, Gone: func() []any {
		return []any{"out_of_service", e.verdicts.strike(part, err)}
	}})
	return err
}

// strikesMost is how often a part may turn out wrong as a whole, after its
// bytes were handed out, before it is handed out no more.
const strikesMost = 2

// verdicts are the parts of a file that were wrong as a whole.
type verdicts struct {
	mu        sync.Mutex
	strikes   map[int]int   // how often
	condemned map[int]error // parts that are out of service, why
}

// strike counts that a part was wrong. It reports whether the part is out of
// service now, because of err.
func (v *verdicts) strike(part int, err *contentError) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.strikes == nil {
		v.strikes, v.condemned = map[int]int{}, map[int]error{}
	}
	v.strikes[part]++
	out := v.strikes[part] >= strikesMost && !err.elsewhere
	if out {
		v.condemned[part] = err
	}
	return out
}

// struck reports whether a part was ever wrong.
func (v *verdicts) struck(part int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.strikes[part] > 0
}

// against returns why one of pieces [from, to) is out of service, or nil.
func (v *verdicts) against(g *disk.Grid, from, to int) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for part, err := range v.condemned {
		if from < g.First[part+1] && to > g.First[part] {
			return err
		}
	}
	return nil
}

// forgetUnseen makes a frame missing whose pieces are all there, but were
// left by a process that did not get to compare its digest. The stored
// bytes are gone, so nothing else can show whether the pieces are right.
func (e *entry) forgetUnseen(part int) {
	first, end := e.grid.Of(part)
	if e.file.Parts[part].Encoding == layout.Raw || e.grid.Whole(part) || !e.state.HasAll(first, end) || e.flights.streaming(part) {
		return
	}
	if ok, err := e.state.TryLockPieces(first, end); err != nil || !ok {
		return // another process is at it
	}
	defer e.state.UnlockPieces(first, end)
	if !e.disk.PartVerified(part) {
		e.disk.TakeBack(first, end)
	}
}
