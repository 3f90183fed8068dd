// Package buffers reuses large byte slices, by size class: powers of two from
// 64 KiB to 32 MiB. It does not bound them.
package buffers

import "sync"

const (
	smallest = 16 // log2
	largest  = 25
)

var pools [largest - smallest + 1]sync.Pool

func class(n int64) int {
	c := 0
	for c < len(pools) && int64(1)<<(c+smallest) < n {
		c++
	}
	return c
}

// Get returns a buffer of n bytes whose content is anything.
func Get(n int64) []byte {
	c := class(n)
	if c == len(pools) {
		return make([]byte, n)
	}
	if b, ok := pools[c].Get().(*[]byte); ok {
		return (*b)[:n]
	}
	return make([]byte, n, int64(1)<<(c+smallest))
}

// Put gives back a buffer that Get has returned. It must not be used any more.
func Put(b []byte) {
	if c := class(int64(cap(b))); c < len(pools) && cap(b) == 1<<(c+smallest) {
		pools[c].Put(&b)
	}
}
