package cache

import (
	"context"
	"errors"
	"io/fs"

	"github.com/cespare/xxhash/v2"

	"github.com/cocoonstack/epochfs/internal/transport"
)

// mostLosses is how often a read finds pieces that the disk does not give
// back: another process may have put them there again meanwhile.
const mostLosses = 5

// readAgain fills p, of which the disk did not give something back: that is
// fetched anew, and handed over from memory.
func (e *entry) readAgain(ctx context.Context, p []byte, l look, unkept map[int][]byte, cause error) error {
	for range mostLosses {
		if errors.Is(cause, fs.ErrClosed) {
			break
		}
		clear(p)
		var lost []int
		if lost, cause = e.readPieces(p, l, unkept); cause == nil {
			return nil
		}
		e.lose(lost, cause)
		var err error
		if unkept, err = e.ready(ctx, l); err != nil {
			return err
		}
	}
	return transport.NoEOF(cause)
}

// readPieces fills p piece by piece, and returns those that the disk does
// not give back, with its last error.
func (e *entry) readPieces(p []byte, l look, unkept map[int][]byte) (lost []int, last error) {
	for off := l.from; off < l.to; {
		i := e.grid.at(off)
		start, n := e.grid.extent(i)
		end := min(start+n, l.to)
		if payload, ok := unkept[i]; ok {
			e.overlay(p, l.off, i, payload)
		} else if err := e.readPiece(i, p, l.off, off, end); err != nil {
			lost, last = append(lost, i), err
		}
		off = end
	}
	return lost, last
}

// readPiece copies payload [from, to), which is of piece i, to where it
// belongs in p, which is the file from off on.
func (e *entry) readPiece(i int, p []byte, off, from, to int64) error {
	if !e.state.unsafe() {
		return e.readRuns(p, off, from, to)
	}
	_, n := e.grid.extent(i)
	buf := getBuffer(n)
	defer putBuffer(buf)
	if err := e.loadAsKept(i, buf); err != nil {
		return err
	}
	e.overlay(p, off, i, buf)
	return nil
}

// loadChecked is load, of a file that may not be trusted, too.
func (e *entry) loadChecked(i int, buf []byte) error {
	if e.state.unsafe() {
		return e.loadAsKept(i, buf)
	}
	return e.load(i, buf)
}

// loadAsKept is load for a file of which the disk has failed to take
// something: what the kernel could not write it forgets, and then reads as
// it was before.
func (e *entry) loadAsKept(i int, buf []byte) error {
	word := e.state.word(i)
	if err := e.load(i, buf); err != nil {
		return err
	}
	if word&wordPresent == 0 || xxhash.Sum64(buf)&wordSum != word&wordSum {
		return errUnsafe
	}
	return nil
}

// readRuns copies payload [from, to) to where it belongs in p, which is the
// file from off on.
func (e *entry) readRuns(p []byte, off, from, to int64) error {
	for run := range e.file.Map.Payload(from, to-from) {
		at := run.Offset - off
		if _, err := e.readDisk(p[at:at+run.Length], run.Offset); err != nil {
			return err
		}
	}
	return nil
}

// lose marks pieces as missing that the disk does not give back. This
// process does not trust the disk with them again.
func (e *entry) lose(pieces []int, cause error) {
	e.mu.Lock()
	for _, i := range pieces {
		e.loseLocked(i)
	}
	e.mu.Unlock()
	e.state.unseal()
	for _, i := range pieces {
		if errors.Is(cause, errUnsafe) { // other bytes, which may have been read
			e.discard(i, i+1, found{by: byDisk, cause: cause})
		} else {
			e.state.clear(i)
		}
	}
	e.notGivenBack(cause)
}

func (e *entry) loseLocked(i int) {
	if e.lost == nil {
		e.lost = map[int]bool{}
	}
	e.lost[i] = true
}

func (e *entry) notGivenBack(cause error) {
	if e.cache.said.first("not given back " + e.key) {
		e.cache.log.Warn("the disk does not give back what was kept; it is fetched again", "file", e.file.Name, "cause", cause)
	}
}

// loseWithin marks those pieces of payload [off, off+n) as missing that the
// disk does not give back: who asks again has them fetched.
func (e *entry) loseWithin(off, n int64, cause error) {
	if e.cache.onlyRead || errors.Is(cause, fs.ErrClosed) {
		return // a Local changes nothing
	}
	var lost []int
	for i, end := e.grid.at(off), e.grid.at(off+n-1); i <= end; i++ {
		_, size := e.grid.extent(i)
		buf := getBuffer(size)
		if e.load(i, buf) != nil {
			lost = append(lost, i)
		}
		putBuffer(buf)
	}
	e.lose(lost, cause)
}

func (e *entry) isLost(i int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lost[i]
}
