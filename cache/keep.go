package cache

import (
	"bytes"
	"errors"
	"sync"

	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/cache/internal/quota"
)

// keep writes a piece that has arrived, and hands it to its waiting readers. A
// disk that does not take it does not fail the readers, and a disk that takes
// long is not waited for: they get the piece from memory. later counts what is
// still to be written, and may be nil.
func (e *entry) keep(p *disk.Incoming, later *sync.WaitGroup) {
	i := p.Piece
	if word, other := e.state.OtherHanded(i, p.Sum()); other {
		e.disk.Discard(i, i+1, disk.Found{By: p.By, Word: word}) // somebody has read that
	} else if held := e.held.Peek(i); held != nil && !bytes.Equal(held, p.Payload) {
		e.disk.Discard(i, i+1, disk.Found{By: p.By})
	}
	p.Drops = e.disk.Drops()
	// What comes as part of a whole blob, or to be hashed with all of its part, would
	// have to be fetched again before it is read.
	p.Spare = p.By == disk.ByFetch && (p.Verified || e.link.Proven()) && !e.link.IgnoresRanges() && (p.Read || e.flights.awaited(i))
	again, err := e.store(p)
	switch {
	case err == nil:
		if p.Read {
			e.passing.add(i, int64(len(p.Payload)))
		}
		e.flights.land(i, nil)
		return
	case errors.Is(err, disk.ErrOvertaken):
		e.flights.requeue(i, i+1) // to be looked for, and if need be fetched again
		return
	}
	data := e.held.Put(i, p.Payload)
	slow, measuring := errors.Is(err, errSlowDisk), errors.Is(err, quota.ErrMeasuring)
	if p.Read && (slow || measuring) {
		e.passing.add(i, int64(len(p.Payload))) // it may be on disk before its pages are dropped
	}
	e.flights.land(i, data)
	if measuring {
		p.Payload, p.By, p.Clone, p.Spare = data, disk.ByLate, nil, false
		e.keepLater(p, again, later)
		return
	}
	if !p.Verified {
		e.state.Hand(i, p.Sum())
	}
	if slow {
		e.backlog.add(p)
	}
}
