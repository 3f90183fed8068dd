package registry

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/cocoonstack/epochfs/test/registrytest"
)

// BenchmarkRange reads ranges of 8 MiB from Debian's registry, several at
// a time.
func BenchmarkRange(b *testing.B) {
	const size, part = 64 << 20, 8 << 20
	reg := registrytest.Debian(b, registrytest.DebianOptions{})
	r := client(b, reg.URL, Options{})
	digest, _, err := r.UploadBlob(context.Background(), "vm", bytes.NewReader(random(size)))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(part)
	b.SetParallelism(4)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 256<<10)
		for i := int64(0); pb.Next(); i++ {
			body, _, err := r.Source("vm").OpenBlob(context.Background(), digest, size, i%(size/part)*part, part)
			if err != nil {
				b.Error(err)
				return
			}
			if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, body, buf); n != part || err != nil {
				b.Error(n, err)
			}
			body.Close()
		}
	})
}

// BenchmarkUpload uploads a blob of 64 MiB to Debian's registry.
func BenchmarkUpload(b *testing.B) {
	const size = 64 << 20
	reg := registrytest.Debian(b, registrytest.DebianOptions{})
	r := client(b, reg.URL, Options{})
	data := random(size)
	b.SetBytes(size)
	for b.Loop() {
		data[0]++ // another blob
		if _, _, err := r.UploadBlob(context.Background(), "vm", bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	}
}
