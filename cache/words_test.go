package cache

import "sync/atomic"

// set marks piece i present whatever its word is.
func (s *state) set(i int, sum uint64, verified bool) {
	w := wordPresent | sum&wordSum
	if verified {
		w |= wordVerified
	}
	atomic.StoreUint64(&s.words[i], w)
}
