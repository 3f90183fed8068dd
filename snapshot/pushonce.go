package snapshot

import (
	"context"
	"sync"
)

// blobSet knows the blobs of one push: each is uploaded once, however
// often it occurs.
type blobSet struct {
	mu      sync.Mutex
	flights map[string]*blobFlight
	sent    int64 // bytes, or what would be in a dry run
	there   int64
	counted map[string]bool
}

// blobFlight is one blob on its way.
type blobFlight struct {
	done chan struct{} // closed once err is final
	err  error
}

func newBlobSet() *blobSet {
	return &blobSet{flights: map[string]*blobFlight{}, counted: map[string]bool{}}
}

// once calls upload for the first who has this blob; the others wait for
// that.
func (s *blobSet) once(ctx context.Context, digest string, upload func() error) error {
	s.mu.Lock()
	f, ok := s.flights[digest]
	if !ok {
		f = &blobFlight{done: make(chan struct{})}
		s.flights[digest] = f
	}
	s.mu.Unlock()
	if !ok {
		f.err = upload()
		close(f.done)
		return f.err
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// count adds a blob's size to what was sent or to what was there.
func (s *blobSet) count(digest string, size int64, sent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.counted[digest]:
	case sent:
		s.sent += size
	default:
		s.there += size
	}
	s.counted[digest] = true
}
