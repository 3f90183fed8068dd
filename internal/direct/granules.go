package direct

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
)

// planGranules cuts a packed file into units of about usual bytes.
func (p *part) planGranules(x *layout.Index, usual int64) {
	p.packed = x
	p.perUnit = int(max(1, usual/x.Head.Granule))
	p.size = int64(p.perUnit) * x.Head.Granule
	p.count = (x.Granules() + p.perUnit - 1) / p.perUnit
}

// granules returns the first and the last granule of unit i.
func (p *part) granules(i int) (first, last int) {
	first = i * p.perUnit
	return first, min(first+p.perUnit, p.packed.Granules()) - 1
}

// fetchGranules returns unit i, which the caller has claimed. It fetches the
// granules that are not there, with one request for each range of a pack. It
// calls release before that if the cache keeps nothing.
func (f *fetcher) fetchGranules(i int, release func()) ([]byte, error) {
	p := f.p
	off, n := p.payload(i)
	first, last := p.granules(i)
	u := &granuleUnit{f: f, off: off, unit: i, first: first, filled: make([]bool, last-first+1)}
	u.data = f.d.memory.get(packed.DecodeRoom(n))[:n]
	wanted, err := u.load()
	if err != nil {
		f.d.memory.put(u.data)
		return nil, err
	}
	if p.keep == nil || !p.keep.Keeps() {
		release()
	}
	for _, r := range packed.Plan(wanted, packed.Gap, unitMost) {
		if err := u.fetch(r); err != nil {
			f.d.memory.put(u.data)
			return nil, err
		}
	}
	f.d.dispatch() // the time to an answer is known now
	return u.data, nil
}

// granuleUnit is a unit that is being filled with granules.
type granuleUnit struct {
	f    *fetcher
	unit int
	off  int64 // of data in the payload
	data []byte

	first  int    // granule of the unit
	filled []bool // granules that are in data
}

// load fills in the granules that are there, and returns the others.
func (u *granuleUnit) load() (wanted []packed.Wanted, err error) {
	p := u.f.p
	for k := range u.filled {
		i := u.first + k
		off, n := p.packed.Extent(i)
		if p.keep != nil && p.keep.Load(p.index, off, u.data[off-u.off:][:n]) {
			u.filled[k] = true
			continue
		}
		g, err := p.packed.Granule(p.ctx, i)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", p.name, err)
		}
		wanted = append(wanted, packed.Wanted{Granule: g, ID: i})
	}
	return wanted, nil
}

// fetch fetches one range. It retries once if the bytes were wrong, as they
// may have been damaged on the way, and again while another mirror can be
// asked.
func (u *granuleUnit) fetch(r packed.Range) error {
	f := u.f
	digest, size := f.p.packed.Pack(r.Pack)
	for bad := 0; ; {
		in, err := u.openPack(digest, size, r)
		if err != nil {
			return err
		}
		err = u.take(in, r)
		more := errors.Is(err, layout.ErrContent) && f.d.link.Blame(digest, in.body)
		in.close()
		if !errors.Is(err, layout.ErrContent) {
			return err
		}
		if f.d.packs.drop(digest); !more {
			bad++
		}
		if bad > 1 {
			return &contentError{fmt.Errorf("%q, pack %s: %w", f.p.name, digest, err)}
		}
	}
}

// take decodes the granules of a range, and keeps them.
func (u *granuleUnit) take(in *packBytes, r packed.Range) error {
	p := u.f.p
	index := p.packed
	memory, granule := &u.f.d.memory, index.Head.Granule
	stored, decoded := memory.get(packed.ReadRoom(granule)), memory.get(packed.DecodeRoom(granule))
	defer memory.put(stored)
	defer memory.put(decoded)
	_, err := packed.ReadFrames(in, in.at, r.Granules, stored, func(w packed.Wanted, frame []byte) error {
		off, n := index.Extent(w.ID)
		room := u.data[off-u.off:][:n]
		into := decoded
		if u.free(w.ID) {
			into = u.data[off-u.off:][:packed.DecodeRoom(n)]
			into = into[:n:len(into)]
		}
		data, err := packed.Decode(into, frame, n, w.Sum)
		if err != nil {
			return fmt.Errorf("%w: %w", layout.ErrContent, err)
		}
		if len(data) > 0 && &data[0] != &room[0] {
			copy(room, data)
		}
		u.filled[w.ID-u.first] = true
		if p.keep != nil {
			p.keep.Keep(p.index, off, room, true)
		}
		return nil
	})
	return transport.NoEOF(err)
}

// free reports whether granule i can be decoded in its place: the decoder may
// write to some room behind it, in which no granule must be yet.
func (u *granuleUnit) free(i int) bool {
	index := u.f.p.packed
	off, n := index.Extent(i)
	for k := i + 1 - u.first; k < len(u.filled); k++ {
		if next, _ := index.Extent(u.first + k); next >= off+packed.DecodeRoom(n) {
			break
		}
		if u.filled[k] {
			return false
		}
	}
	return true
}

// packBytes reads a pack, or a range of it, in order.
type packBytes struct {
	r    io.Reader
	at   int64 // offset of the first byte in the pack
	body io.ReadCloser
	blob *transport.Reader // nil for a pack in memory
	done func()            // what close calls instead of closing blob, or nil
}

// openPack requests a range of a pack. If the registry sends the whole pack,
// it is held for readers of its other granules, unless it is too large.
func (u *granuleUnit) openPack(digest string, size int64, r packed.Range) (*packBytes, error) {
	f := u.f
	known, served := f.d.link.Ranges()
	switch {
	case known && !served && size > f.d.packs.most:
		return f.passPack(u.unit, digest, size, r)
	case known && !served:
		return f.wholePack(digest, size)
	}
	ask := transport.Range{Digest: digest, Size: size, Off: r.Offset, N: r.Length, Checked: true}
	var answer io.ReadCloser
	if !known && r.Length < size {
		in, body, err := f.probePack(ask)
		if err == nil && in == nil && body == nil {
			return u.openPack(digest, size, r) // by what is known now
		}
		if body == nil {
			return in, err
		}
		answer = body
	}
	blob := f.d.link.NewReader(f.p.ctx, ask, transport.ReaderOptions{Body: answer})
	if _, err := blob.Start(func() {}); err != nil {
		_ = blob.Close()
		return nil, err
	}
	return &packBytes{r: blob, at: blob.Offset(), body: blob.Body(), blob: blob}, nil
}

// probePack requests a range from a registry that may not honour ranges,
// with retries. It returns the answer, or the whole pack if the registry
// sends that, or nothing if that is too large to be held.
func (f *fetcher) probePack(ask transport.Range) (*packBytes, io.ReadCloser, error) {
	for began := time.Now(); ; {
		in, body, err := f.probeOnce(ask)
		if err == nil || transport.Final(err) || f.p.ctx.Err() != nil {
			return in, body, err
		}
		pause := f.d.link.Pause(err)
		if t := f.d.opts.ReadTimeout; t > 0 && time.Since(began)+pause > t {
			return nil, nil, fmt.Errorf("%w: %w", ErrTimeout, err)
		}
		select {
		case <-time.After(pause):
		case <-f.p.ctx.Done():
			return nil, nil, err
		}
	}
}

func (f *fetcher) probeOnce(ask transport.Range) (*packBytes, io.ReadCloser, error) {
	var end func([]byte)
	body, whole, err := f.d.link.Open(f.p.ctx, ask, func() {
		if ask.Size <= f.d.packs.most {
			_, end = f.d.packs.claim(ask.Digest)
		}
	})
	switch {
	case end != nil: // others wait for the result
		data, err := f.readPack(ask.Digest, ask.Size, body)
		end(data)
		if err != nil {
			return nil, nil, err
		}
		return &packBytes{r: bytes.NewReader(data), body: body}, nil, nil
	case err != nil:
		return nil, nil, err
	case whole:
		if body != nil {
			_ = body.Close() // another fetcher reads the pack
		}
		if ask.Size > f.d.packs.most {
			return nil, nil, nil
		}
		in, err := f.wholePack(ask.Digest, ask.Size)
		return in, nil, err
	}
	return nil, body, nil
}

func (b *packBytes) Read(p []byte) (int, error) {
	if b.blob != nil {
		b.blob.ResetTimeout()
	}
	return b.r.Read(p)
}

func (b *packBytes) close() {
	switch {
	case b.done != nil:
		b.done()
	case b.blob != nil:
		_ = b.blob.Close() // the bytes read were verified
	}
}
