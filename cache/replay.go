package cache

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/overlay"
	"github.com/cocoonstack/epochfs/internal/transport"
)

const (
	// replayGap is the largest gap, in bytes of payload, over which a replay
	// joins two runs of pieces to one request. The touches of a real guest
	// come soonest over a link of 125 MB/s and 20 ms with gaps of 64 KiB:
	// wider ones fetch more than the requests cost that they save.
	replayGap = 64 << 10
	// replayTries bounds how often a piece is asked for that does not come
	// although the link is well. A request that finds some of its pieces in
	// another file leaves out what lies behind them.
	replayTries = 64
)

// Extent is bytes [Off, Off+N) of a file.
type Extent struct{ Off, N int64 }

// Replay has the data in extents of the file fetched: after what readers wait
// for or will want next, and before what is prefetched. It calls onPresent,
// one call at a time, with each stretch of that data when the stretch can be
// read without the network, in the order in which the bytes come; fetched
// reports whether the bytes were missing before. Replay returns when all data
// has come, or ctx has ended. What cannot be had is left out, as is what lies
// beyond the end of the file.
func (f *File) Replay(ctx context.Context, extents []Extent, onPresent func(x Extent, fetched bool)) error {
	e := f.entry
	if !e.flights.use() {
		return errClosed
	}
	defer e.flights.unuse()
	r := replay{e: e, wants: map[int][]Extent{}, tries: map[int]int{}, onPresent: onPresent}
	r.want(extents)
	r.came = make(chan landing, len(r.wants))
	pieces := make([]int, 0, len(r.wants))
	for i := range r.wants {
		pieces = append(pieces, i)
	}
	slices.Sort(pieces)
	return r.run(ctx, pieces)
}

// want notes where the data of extents lies in the file, by piece.
func (r *replay) want(extents []Extent) {
	e := r.e
	size := e.file.Size()
	sorted := slices.SortedFunc(slices.Values(extents), func(a, b Extent) int { return cmp.Compare(a.Off, b.Off) })
	done := int64(0) // of the file
	for _, x := range sorted {
		if x.N <= 0 || x.Off >= size {
			continue
		}
		off := max(x.Off, done)
		end := x.Off + min(x.N, size-max(x.Off, 0))
		if off >= end {
			continue
		}
		done = end
		r.wantPayload(e.file.Map.PayloadAt(off), e.file.Map.PayloadAt(end))
	}
}

// wantPayload notes payload [from, to).
func (r *replay) wantPayload(from, to int64) {
	e := r.e
	for from < to {
		i := e.grid.At(from)
		start, n := e.grid.Extent(i)
		end := min(start+n, to)
		for run := range e.file.Map.Payload(from, end-from) {
			r.wants[i] = append(r.wants[i], Extent{run.Offset, run.Length})
		}
		from = end
	}
}

// replay is one call of Replay.
type replay struct {
	e         *entry
	wants     map[int][]Extent // by piece, what has not come yet
	came      chan landing     // has room for one of each piece, so that nobody waits for this replay
	tries     map[int]int      // by piece, how often it was asked for in vain
	left      []int            // pieces that a request has left out, to be asked for again
	failed    []int            // pieces to be asked for again after a pause
	onPresent func(x Extent, fetched bool)
}

func (r *replay) run(ctx context.Context, pieces []int) error {
	if err := r.ask(pieces); err != nil {
		return err
	}
	pause := time.NewTicker(prefetchPause)
	defer pause.Stop()
	for len(r.wants) > 0 {
		if len(r.left) > 0 && len(r.came) == 0 { // what was left out together is asked for together
			if err := r.askAgain(&r.left); err != nil {
				return err
			}
		}
		select {
		case l := <-r.came:
			r.landed(l)
		case <-pause.C:
			if err := r.askAgain(&r.failed); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-r.e.ctx.Done():
			return errClosed
		}
	}
	return nil
}

func (r *replay) askAgain(pieces *[]int) error {
	again := *pieces
	*pieces = nil
	slices.Sort(again)
	return r.ask(again)
}

// landed deals with the end of a flight.
func (r *replay) landed(l landing) {
	var wrong *contentError
	switch {
	case r.readable(l.piece):
		r.give(l.piece, true)
		return
	case l.err == nil:
		r.left = append(r.left, l.piece)
		r.tries[l.piece]++
	case errors.As(l.err, &wrong):
		r.failed = append(r.failed, l.piece)
		r.tries[l.piece]++
	case transport.Final(l.err):
		delete(r.wants, l.piece)
	default:
		r.failed = append(r.failed, l.piece)
	}
	if r.tries[l.piece] >= replayTries {
		delete(r.wants, l.piece)
	}
}

// ask gives what is present of the ascending pieces, and has the rest
// fetched.
func (r *replay) ask(pieces []int) error {
	e := r.e
	var missing []int
	for _, i := range pieces {
		if r.wants[i] == nil {
			continue // given up
		}
		e.recheck(i, i+1)
		if r.readable(i) {
			r.give(i, false)
		} else {
			missing = append(missing, i)
		}
	}
	missing = slices.DeleteFunc(missing, func(i int) bool {
		err := e.verdicts.against(e.grid, i, i+1)
		if err != nil {
			r.came <- landing{i, err}
		}
		return err != nil
	})
	want, err := e.flights.watch(missing, r.came)
	e.cache.queue.push(replayed, e.nearby(want)...)
	return err
}

// give calls onPresent with a piece that is present.
func (r *replay) give(piece int, fetched bool) {
	for _, x := range r.wants[piece] {
		r.onPresent(x, fetched)
	}
	delete(r.wants, piece)
}

// readable reports whether piece i can be read without the network.
func (r *replay) readable(i int) bool {
	e := r.e
	return e.state.Has(i) || e.held.Peek(i) != nil
}

// nearby returns the ascending pieces as spans, with the pieces between those
// that lie near each other.
func (e *entry) nearby(pieces []int) (spans []span) {
	end := int64(0) // of the last span, in the payload
	for _, i := range pieces {
		off, n := e.grid.Extent(i)
		if k := len(spans); k > 0 && off-end <= replayGap {
			spans[k-1].to = i + 1
		} else {
			spans = append(spans, span{entry: e, from: i, to: i + 1})
		}
		end = off + n
	}
	return spans
}

// Present reports whether bytes [off, off+n) of the file can be read without
// the network.
func (f *File) Present(off, n int64) bool {
	e := f.entry
	off, n = f.within(off, n)
	from, to := e.file.Map.PayloadAt(off), e.file.Map.PayloadAt(off+n)
	return from == to || e.state.HasAll(e.grid.In(from, to))
}

// within returns the part of [off, off+n) that lies within the file.
func (f *File) within(off, n int64) (int64, int64) {
	size := f.entry.file.Size()
	off = min(max(off, 0), size)
	return off, min(max(n, 0), size-off)
}

// ReadPresent fills p from offset off on if all of p lies within the file and
// can be read without the network, and reports whether it has. It does not
// count as a read.
func (f *File) ReadPresent(p []byte, off int64) bool {
	e := f.entry
	if off < 0 || off > e.file.Size()-int64(len(p)) {
		return false
	}
	a := e.access(off, int64(len(p)))
	var held overlay.Pieces
	if a.From < a.To {
		for i, end := e.grid.In(a.From, a.To); i < end; i++ {
			if e.state.Has(i) {
				continue
			}
			data := e.held.Peek(i)
			if data == nil {
				return false
			}
			held = held.With(i, data)
		}
		if !e.proofs.proved(a.From, a.To, held) {
			return false
		}
	}
	if e.state.Unsafe() || e.disk.ReadAt(p, a.Off, a.From, a.To) != nil {
		return false
	}
	for i, payload := range held {
		e.grid.Spread(p, off, i, payload)
	}
	return true
}
