package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/cache/internal/buffers"
	"github.com/cocoonstack/epochfs/cache/internal/disk"
	"github.com/cocoonstack/epochfs/internal/crashpoint"
	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// A packed file is one part whose pieces are its granules. They lie in
// several packs, so a job makes several requests.

const (
	// rangeMost bounds the bytes of one request for granules, if there is
	// more than one granule in it.
	rangeMost = 4 << 20
	// rangesAtOnce is how many requests a job makes at a time.
	rangesAtOnce = 4
)

// packs is what an entry knows of its packs.
type packs struct {
	mu     sync.Mutex
	whole  map[int]chan struct{}   // packs that are being taken in whole; closed at the end
	byPack map[int][]packed.Wanted // the file's granules, by pack and offset; nil: not read yet
}

// claim returns done if the caller is to take in a pack, and must call it
// after that; else other is closed when another job has.
func (p *packs) claim(pack int) (other <-chan struct{}, done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.whole[pack]; c != nil {
		return c, nil
	}
	if p.whole == nil {
		p.whole = map[int]chan struct{}{}
	}
	c := make(chan struct{})
	p.whole[pack] = c
	return nil, func() {
		p.mu.Lock()
		delete(p.whole, pack)
		p.mu.Unlock()
		close(c)
	}
}

// fetchGranules fetches granules [from, to). It returns the first that did
// not come because of err.
func (j *job) fetchGranules(from, to int) (int, error) {
	wanted := make([]packed.Wanted, 0, to-from)
	for i := from; i < to; i++ {
		g, err := j.granule(i)
		if err != nil {
			return from, err
		}
		wanted = append(wanted, packed.Wanted{Granule: g, ID: i})
	}
	var g errgroup.Group
	g.SetLimit(rangesAtOnce)
	for _, r := range packed.Plan(wanted, packed.Gap, rangeMost) {
		g.Go(func() error { return j.fetchRange(r) })
	}
	err := g.Wait()
	if err == nil {
		return to, nil
	}
	var at *granuleError
	if errors.As(err, &at) {
		j.entry.flights.requeue(from, at.granule) // what of it has not come
		return at.granule, err
	}
	return from, err
}

// granule returns where granule i is stored.
func (j *job) granule(i int) (packed.Granule, error) {
	e := j.entry
	g, err := e.file.Index.Granule(j.ctx, i)
	if errors.Is(err, layout.ErrContent) {
		err = &contentError{error: fmt.Errorf("%q: %w", e.file.Name, err)}
	}
	return g, err
}

// granuleError is the error of a granule that did not come or was wrong.
type granuleError struct {
	error
	granule int
}

func (e *granuleError) Unwrap() error { return e.error }

// fetchRange fetches the granules of one range. If the registry ignores
// ranges, it takes in all of the pack.
func (j *job) fetchRange(r packed.Range) error {
	e := j.entry
	digest, size := e.file.Index.Pack(r.Pack)
	ask := transport.Range{Digest: digest, Size: size, Off: r.Offset, N: r.Length, Checked: true}
	var done func()
	body, whole, err := e.link.Open(j.ctx, ask, func() { _, done = e.packs.claim(r.Pack) })
	if done != nil {
		defer done()
	}
	switch {
	case err != nil:
		return &granuleError{err, r.Granules[0].ID}
	case whole && r.Length < size && done != nil:
		return j.takePack(r, body)
	case whole && r.Length < size:
		return j.fetchPack(r, body)
	}
	defer body.Close()
	return j.takeIn(digest, body, r.Offset, r.Granules)
}

// fetchPack is takePack for one job at a time; the others wait for that.
func (j *job) fetchPack(r packed.Range, body io.ReadCloser) error {
	e := j.entry
	for {
		other, done := e.packs.claim(r.Pack)
		if done != nil {
			defer done()
			if body == nil && j.allLanded(r.Granules) {
				return nil // another job had the pack until just now
			}
			return j.takePack(r, body)
		}
		if body != nil { // it comes already
			_ = body.Close()
			body = nil
		}
		select {
		case <-other:
		case <-j.ctx.Done():
			return &granuleError{context.Cause(j.ctx), r.Granules[0].ID}
		}
		if j.allLanded(r.Granules) {
			return nil
		}
	}
}

// takePack takes in all granules of a pack that this job has claimed. body
// is its content from the first byte, or nil if it is still to be asked for.
func (j *job) takePack(r packed.Range, body io.ReadCloser) error {
	e := j.entry
	if body != nil {
		defer body.Close()
	}
	all, err := j.inPack(r.Pack)
	if err != nil {
		return &granuleError{err, r.Granules[0].ID}
	}
	digest, size := e.file.Index.Pack(r.Pack)
	if body == nil {
		again, _, err := e.link.Open(j.ctx, transport.Range{Digest: digest, Size: size, N: size, Checked: true, Stream: true}, nil)
		if err != nil {
			return &granuleError{err, r.Granules[0].ID}
		}
		defer again.Close()
		body = again
	}
	return j.takeIn(digest, body, 0, all)
}

// allLanded reports whether nobody waits for any of granules.
func (j *job) allLanded(granules []packed.Wanted) bool {
	for _, w := range granules {
		if !j.entry.flights.landed(w.ID) {
			return false
		}
	}
	return true
}

// inPack returns the file's granules in a pack, by offset. It reads all of
// the index, once.
func (j *job) inPack(pack int) ([]packed.Wanted, error) {
	e := j.entry
	p := &e.packs
	p.mu.Lock()
	byPack := p.byPack
	p.mu.Unlock()
	if byPack == nil {
		byPack = map[int][]packed.Wanted{}
		for i := range e.file.Index.Granules() {
			w, err := j.granule(i)
			if err != nil {
				return nil, err
			}
			byPack[w.Pack] = append(byPack[w.Pack], packed.Wanted{Granule: w, ID: i})
		}
		for _, all := range byPack {
			packed.Plan(all, 0, 0) // sorts them
		}
		p.mu.Lock()
		p.byPack = byPack
		p.mu.Unlock()
	}
	return byPack[pack], nil
}

// takeIn reads granules out of body, which is the pack from offset at on.
// Each is checked, and handed to its readers, as soon as it is there.
func (j *job) takeIn(digest string, body io.ReadCloser, at int64, granules []packed.Wanted) error {
	e := j.entry
	granule := e.file.Index.Head.Granule
	release, err := j.memory(packed.DecodeRoom(granule) + packed.ReadRoom(granule))
	if err != nil {
		return &granuleError{err, granules[0].ID}
	}
	defer release()
	stored, data := buffers.Get(packed.ReadRoom(granule)), buffers.Get(packed.DecodeRoom(granule))
	defer buffers.Put(stored)
	defer buffers.Put(data)
	failed, err := packed.ReadFrames(body, at, granules, stored, func(w packed.Wanted, frame []byte) error {
		crashpoint.Reach("granule fetched")
		if e.state.Has(w.ID) {
			e.flights.land(w.ID, nil)
			return nil
		}
		_, n := e.grid.Extent(w.ID)
		payload, err := packed.Decode(data, frame, n, w.Sum)
		if err != nil {
			return j.wrongGranule(digest, w, body, err)
		}
		e.keep(&disk.Incoming{Piece: w.ID, Payload: payload, Verified: true, By: disk.ByFetch, Read: j.forReader()}, nil)
		return nil
	})
	if err != nil {
		return &granuleError{transport.NoEOF(err), failed.ID}
	}
	return nil
}

// wrongGranule reports to the source that it sent wrong bytes, and returns
// the error for the granule's readers.
func (j *job) wrongGranule(digest string, w packed.Wanted, body io.ReadCloser, cause error) error {
	return &contentError{
		error:     fmt.Errorf("%q, pack %s at byte %d: %w: %w", j.entry.file.Name, digest, w.Offset, layout.ErrContent, cause),
		elsewhere: j.entry.link.Blame(digest, body),
	}
}
