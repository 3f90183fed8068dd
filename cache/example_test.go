package cache_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// oneBlob is a Source with one blob, which counts what is asked for.
type oneBlob struct {
	data     []byte
	requests int
}

func (b *oneBlob) OpenBlob(_ context.Context, _ string, _, off, n int64) (io.ReadCloser, bool, error) {
	b.requests++
	return io.NopCloser(bytes.NewReader(b.data[off : off+n])), false, nil
}

// A cached file is read like any other. What is missing is fetched from its
// Source, checked and kept, so that the second read asks for nothing.
func Example() {
	dir, err := os.MkdirTemp("", "cache")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	c, err := cache.Open(dir, cache.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()

	src := &oneBlob{data: []byte("the memory of a VM")}
	size := int64(len(src.data))
	f := &layout.File{Name: "memory-ranges", Map: sparse.Dense(size), Parts: []layout.Part{{
		Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(src.data)), StoredSize: size, Length: size,
	}}}
	open, err := c.File(f, src)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer open.Close()
	for range 2 {
		p := make([]byte, 6)
		if _, err := open.ReadAt(context.Background(), p, 4); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s, after %d request\n", p, src.requests)
	}
	fmt.Println("complete:", open.Complete(), "verified:", open.Verified())
	// Output:
	// memory, after 1 request
	// memory, after 1 request
	// complete: true verified: true
}
