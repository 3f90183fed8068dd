package snapshot

import (
	"context"
	"sync"
)

// blobSet records the blobs of one push: each is uploaded once, however
// often it occurs.
type blobSet struct {
	mu      sync.Mutex
	flights map[string]*blobFlight
	sent    int64 // bytes sent, or that a dry run would send
	there   int64
	counted map[string]bool
}

// blobFlight is the upload of one blob.
type blobFlight struct {
	done chan struct{} // closed once err is final
	err  error
}

func newBlobSet() *blobSet {
	return &blobSet{flights: map[string]*blobFlight{}, counted: map[string]bool{}}
}

// once calls upload for the first caller with this blob; the others wait for
// its result.
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

// count adds a blob's size to the bytes that were sent, or to those that
// existed.
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
