package mounting

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// stretch is bytes [off, off+n) of a blob that have a digest of their own:
// the head or a section of an index.
type stretch struct {
	name, digest string // repository and blob
	size, off, n int64
	own          string
}

// verified returns the bytes of a stretch. They are kept under its digest.
// Bytes that are wrong are requested once more.
func (d *downloader) verified(ctx context.Context, s stretch) ([]byte, error) {
	d.read(s.own)
	if data, err := d.cache.Blob(s.own); err == nil {
		return data, nil
	}
	if d.offline {
		return nil, fmt.Errorf("blob %s: %w", s.digest, ErrOffline)
	}
	ctx, cancel := d.within(ctx, 0)
	defer cancel()
	leave, err := d.indexes.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if data := d.indexes.cut(s); data != nil {
		d.keep(s.own, data)
		return data, nil
	}
	for bad := 0; ; {
		got, err := tries(ctx, d.lateness(), func(ctx context.Context) (brought, error) { return d.readStretch(ctx, s) })
		switch {
		case err != nil:
			return nil, err
		case digests.Of(got.data) == s.own:
			d.keep(s.own, got.data)
			return got.data, nil
		case d.reg.Blame(s.digest, got.body):
			continue
		}
		d.indexes.forget(s.digest)
		if bad++; bad > 1 {
			return nil, fmt.Errorf("bytes %d to %d of blob %s have another digest: %w", s.off, s.off+s.n, s.digest, layout.ErrContent)
		}
	}
}

// readStretch asks for a stretch. If all of the blob comes, it is held for
// the stretches that will be asked for.
func (d *downloader) readStretch(ctx context.Context, s stretch) (brought, error) {
	body, whole, err := d.reg.Source(s.name).OpenBlob(ctx, s.digest, s.size, s.off, s.n)
	if err != nil {
		return brought{}, err
	}
	defer body.Close()
	from := int64(0) // of data in body
	switch {
	case s.n == s.size:
	case !whole:
		d.indexes.rangesServed()
	case s.size <= mostIndexes:
		data := make([]byte, s.size)
		if _, err := io.ReadFull(body, data); err != nil {
			return brought{}, err
		}
		d.indexes.hold(s.digest, data)
		return brought{data[s.off:][:s.n:s.n], body}, nil
	default:
		from = s.off
	}
	if _, err := io.CopyN(io.Discard, body, from); err != nil {
		return brought{}, err
	}
	data := make([]byte, s.n)
	_, err = io.ReadFull(body, data)
	return brought{data, body}, err
}

// mostIndexes bounds the bytes of indexes that are held. It is 1.6 million
// granules, or 50 GiB of data in granules of 32 KiB.
const mostIndexes = 64 << 20

// indexes holds the indexes of an artifact if the registry sends no less than
// all of one.
type indexes struct {
	mu     sync.Mutex
	turn   chan struct{}
	served bool // ranges are
	size   int64
	held   map[string][]byte // by digest
}

// enter blocks until the caller may ask for a stretch: one does so at a time
// while it is not known that ranges are served. The caller calls leave after
// that.
func (x *indexes) enter(ctx context.Context) (leave func(), err error) {
	x.mu.Lock()
	if x.turn == nil {
		x.turn = make(chan struct{}, 1)
	}
	served := x.served
	x.mu.Unlock()
	if served {
		return func() {}, nil
	}
	select {
	case x.turn <- struct{}{}:
		return func() { <-x.turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (x *indexes) rangesServed() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.served = true
}

// hold holds an index, if there is room.
func (x *indexes) hold(digest string, data []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.held[digest] != nil || x.size+int64(len(data)) > mostIndexes {
		return
	}
	if x.held == nil {
		x.held = map[string][]byte{}
	}
	x.held[digest] = data
	x.size += int64(len(data))
}

// cut returns a stretch of an index that is held, or nil. An index that is
// wrong there is forgotten.
func (x *indexes) cut(s stretch) []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	data, ok := x.held[s.digest]
	if !ok || int64(len(data)) != s.size {
		return nil
	}
	data = data[s.off:][:s.n:s.n]
	if digests.Of(data) != s.own {
		x.forgetLocked(s.digest)
		return nil
	}
	return data
}

// forget lets go of an index that is wrong.
func (x *indexes) forget(digest string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.forgetLocked(digest)
}

func (x *indexes) forgetLocked(digest string) {
	x.size -= int64(len(x.held[digest]))
	delete(x.held, digest)
}
