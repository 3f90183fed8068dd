package cache

import (
	"context"
	"errors"
	"io/fs"
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
	return noEOF(cause)
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
		} else if err := e.readRuns(p, l.off, off, end); err != nil {
			lost, last = append(lost, i), err
		}
		off = end
	}
	return lost, last
}

// readRuns copies payload [from, to) to where it belongs in p, which is the
// file from off on.
func (e *entry) readRuns(p []byte, off, from, to int64) error {
	for run := range e.file.Map.Payload(from, to-from) {
		at := run.Offset - off
		if _, err := e.cache.opts.readDisk(e.data, p[at:at+run.Length], run.Offset); err != nil {
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
		if e.lost == nil {
			e.lost = map[int]bool{}
		}
		e.lost[i] = true
	}
	e.mu.Unlock()
	e.state.unseal()
	for _, i := range pieces {
		e.state.clear(i)
	}
	e.cache.log.Warn("the disk does not give back what was kept; it is fetched again", "file", e.file.Name, "cause", cause)
}

func (e *entry) isLost(i int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lost[i]
}
