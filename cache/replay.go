package cache

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/cocoonstack/epochfs/cache/internal/overlay"
	"github.com/cocoonstack/epochfs/internal/transport"
)

const (
	// replayGap is the largest gap between runs of pieces that one request
	// of a replay brings, in bytes of payload, and replayMost bounds what
	// lies between the first and the last of them. The first pages that a
	// guest touches lie among those that it touches later: so in granules
	// of 32 KiB, a set of 2,500 granules comes in 280 requests and with a
	// fifth more bytes; stage by stage it would take 1,400.
	replayGap  = 64 << 10
	replayMost = 1 << 20
	// replayTries bounds how often a piece is asked for that does not come
	// although the link is well. A request that finds some of its pieces in
	// another file leaves out what lies behind them.
	replayTries = 64
)

// Extent is bytes [Off, Off+N) of a file.
type Extent struct{ Off, N int64 }

// Replay is recorded extents of a file that are being fetched.
type Replay struct {
	e         *entry
	ctx       context.Context
	stages    [][]int // pieces to be asked for, each list ascending
	onPresent func(x Extent, fetched bool)
	came      chan landing // has room for one of each piece, so that nobody waits for this replay
	present   chan []int   // pieces that were there already; has room for all stages
	done      chan struct{}

	// The rest belongs to run.
	wants  map[int][]Extent // by piece, what has not come yet
	tries  map[int]int      // by piece, how often it was asked for in vain
	left   []int            // pieces that a request has left out, to be asked for again
	failed []int            // pieces to be asked for again after a pause
}

// Replay prepares to fetch the data in stages of extents of the file: after
// what readers wait for or will want next, and before what is prefetched.
// Nothing is fetched before Next. A goroutine calls onPresent with each stretch
// of that data when the stretch can be read without the network, in the order
// in which the bytes come; fetched reports whether the bytes were missing
// before. The replay is done when all data has come, ctx has ended or the file
// is being closed. What cannot be had is left out, as is what lies beyond the
// end of the file.
func (f *File) Replay(ctx context.Context, stages [][]Extent, onPresent func(x Extent, fetched bool)) *Replay {
	e := f.entry
	r := &Replay{e: e, ctx: ctx, onPresent: onPresent, wants: map[int][]Extent{}, tries: map[int]int{}, done: make(chan struct{})}
	if !e.flights.use() {
		close(r.done)
		return r
	}
	stage := map[int]int{} // of a piece, the first
	for i, extents := range stages {
		for piece, more := range e.dataIn(extents) {
			if _, ok := stage[piece]; !ok {
				stage[piece] = i
			}
			r.wants[piece] = append(r.wants[piece], more...)
		}
	}
	r.stages = e.staged(slices.Sorted(maps.Keys(stage)), stage, len(stages))
	r.came, r.present = make(chan landing, len(stage)), make(chan []int, len(stages))
	go func() {
		defer e.flights.unuse()
		defer close(r.done)
		r.run()
	}()
	return r
}

// Done returns a channel that is closed when the replay is done.
func (r *Replay) Done() <-chan struct{} { return r.done }

// Next queues what is missing of the next stage, and with it what lies near.
// It returns false if there is no other stage.
func (r *Replay) Next() bool {
	if len(r.stages) == 0 {
		return false
	}
	present, _ := r.ask(r.stages[0])
	r.stages = r.stages[1:]
	r.present <- present
	return true
}

// staged deals out the ascending pieces to stages. Those that lie near each
// other go to the first stage of one of them.
func (e *entry) staged(pieces []int, stage map[int]int, stages int) [][]int {
	all := make([][]int, stages)
	for len(pieces) > 0 {
		n, first := 1, stage[pieces[0]]
		start, length := e.grid.Extent(pieces[0])
		for end := start + length; n < len(pieces); n++ {
			off, length := e.grid.Extent(pieces[n])
			if off-end > replayGap || off+length-start > replayMost {
				break
			}
			end, first = off+length, min(first, stage[pieces[n]])
		}
		all[first] = append(all[first], pieces[:n]...)
		pieces = pieces[n:]
	}
	return all
}

// dataIn returns where the data of extents lies in the file, by piece.
func (e *entry) dataIn(extents []Extent) map[int][]Extent {
	wants := map[int][]Extent{}
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
		e.addWants(wants, e.file.Map.PayloadAt(off), e.file.Map.PayloadAt(end))
	}
	return wants
}

// addWants adds payload [from, to) to wants.
func (e *entry) addWants(wants map[int][]Extent, from, to int64) {
	for from < to {
		i := e.grid.At(from)
		start, n := e.grid.Extent(i)
		end := min(start+n, to)
		for run := range e.file.Map.Payload(from, end-from) {
			wants[i] = append(wants[i], Extent{run.Offset, run.Length})
		}
		from = end
	}
}

func (r *Replay) run() {
	pause := time.NewTicker(prefetchPause)
	defer pause.Stop()
	for len(r.wants) > 0 {
		if len(r.left) > 0 && len(r.came) == 0 { // pages that were left out together are requested together
			r.askAgain(&r.left)
		}
		select {
		case pieces := <-r.present:
			r.give(pieces, false)
		case l := <-r.came:
			r.landed(l)
		case <-pause.C:
			r.askAgain(&r.failed)
		case <-r.ctx.Done():
			return
		case <-r.e.ctx.Done():
			return
		}
	}
}

// askAgain asks for pieces, unless the file is being closed: its context ends
// then.
func (r *Replay) askAgain(pieces *[]int) {
	var again []int
	for _, i := range *pieces {
		if r.wants[i] != nil { // it was not given up
			again = append(again, i)
		}
	}
	*pieces = nil
	slices.Sort(again)
	present, _ := r.ask(again)
	r.give(present, false)
}

// landed deals with the end of a flight.
func (r *Replay) landed(l landing) {
	var wrong *contentError
	switch {
	case r.e.readable(l.piece):
		r.give([]int{l.piece}, true)
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

// ask has the ascending pieces fetched, and returns those that are present. ok
// is false if the file is being closed.
func (r *Replay) ask(pieces []int) (present []int, ok bool) {
	e := r.e
	var missing []int
	for _, i := range pieces {
		e.recheck(i, i+1)
		switch err := e.verdicts.against(e.grid, i, i+1); {
		case e.readable(i):
			present = append(present, i)
		case err != nil:
			r.came <- landing{i, err}
		default:
			missing = append(missing, i)
		}
	}
	want, err := e.flights.watch(missing, r.came)
	e.cache.queue.push(replayed, e.nearby(want)...)
	return present, err == nil
}

// give tells of pieces that are present.
func (r *Replay) give(pieces []int, fetched bool) {
	for _, i := range pieces {
		for _, x := range r.wants[i] {
			r.onPresent(x, fetched)
		}
		delete(r.wants, i)
	}
}

// readable reports whether piece i can be read without the network.
func (e *entry) readable(i int) bool {
	return e.state.Has(i) || e.held.Peek(i) != nil
}

// nearby returns the ascending pieces as spans. Those that lie near each other
// are in one span, with those between.
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

// FetchAhead has what is missing of bytes [off, off+n) fetched as for a reader
// that will want them next. It returns at once.
func (f *File) FetchAhead(off, n int64) {
	e := f.entry
	off, n = f.within(off, n)
	if a := e.access(off, n); a.From < a.To {
		i, j := e.grid.In(a.From, a.To)
		e.flights.queueMissing(ahead, i, j, 0)
	}
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

// Data returns how many bytes of [off, off+n) are data.
func (f *File) Data(off, n int64) int64 {
	off, n = f.within(off, n)
	return f.entry.file.Map.PayloadAt(off+n) - f.entry.file.Map.PayloadAt(off)
}
