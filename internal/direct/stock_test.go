package direct

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/packedtest"
)

// source is a registry in memory.
type source struct {
	blobs    map[string][]byte
	noRange  bool
	fail     func(n int64, off int64) fault // of the nth request
	requests atomic.Int64
	sent     atomic.Int64

	mu       sync.Mutex
	open     int
	mostOpen int
}

// fault is what goes wrong with a request.
type fault struct {
	err   error
	cut   int64 // end after so many bytes
	flip  bool  // change a byte
	at    int64 // which one
	stall bool  // bring nothing more instead of ending
}

func (s *source) OpenBlob(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	nth := s.requests.Add(1)
	var f fault
	if s.fail != nil {
		f = s.fail(nth, off)
	}
	if f.err != nil {
		return nil, false, f.err
	}
	data := s.blobs[digest]
	if data == nil || int64(len(data)) != size {
		return nil, false, final1{errors.New("no such blob")}
	}
	whole := s.noRange && n < size
	if !s.noRange {
		data = data[off : off+n]
	}
	if f.flip {
		data = bytes.Clone(data)
		data[f.at] ^= 1
	}
	var r io.Reader = bytes.NewReader(data)
	if f.stall {
		r = io.MultiReader(io.LimitReader(r, f.cut), &stuck{ctx})
	} else if f.cut > 0 {
		r = io.MultiReader(io.LimitReader(r, f.cut), iotest.ErrReader(errors.New("cut")))
	}
	s.mu.Lock()
	s.open++
	s.mostOpen = max(s.mostOpen, s.open)
	s.mu.Unlock()
	return &body{s: s, r: r}, whole, nil
}

type body struct {
	s *source
	r io.Reader
}

func (b *body) Read(p []byte) (int, error) {
	runtime.Gosched()
	n, err := b.r.Read(p[:min(len(p), 64<<10)])
	b.s.sent.Add(int64(n))
	return n, err
}

func (b *body) Close() error {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	b.s.open--
	return nil
}

type stuck struct{ ctx context.Context }

func (s *stuck) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

type final1 struct{ error }

func (final1) Temporary() bool { return false }

// stock makes files and the source that has them.
type stock struct {
	t     *testing.T // nil for the one that is shared
	seed  uint64
	rng   *rand.Rand
	src   *source
	files []*layout.File
	want  [][]byte
}

func newStock(t *testing.T) *stock {
	s := emptyStock()
	s.t = t
	t.Logf("seed %d", s.seed)
	return s
}

func emptyStock() *stock {
	seed := uint64(time.Now().UnixNano())
	return &stock{seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), src: &source{blobs: map[string][]byte{}}}
}

func (s *stock) bytes(n int) []byte {
	b := make([]byte, n)
	artifacttest.FillBits(b, s.rng.Uint64(), 0x3f)
	return b
}

func (s *stock) put(b []byte) string {
	sum := sha256.Sum256(b)
	digest := digests.Format(sum)
	s.src.blobs[digest] = b
	return digest
}

// raw adds a file of one raw blob, with digests of pieces if piece > 0.
func (s *stock) raw(size int, piece int64) {
	data := s.bytes(size)
	p := layout.Part{Digest: s.put(data), StoredSize: int64(size), Length: int64(size)}
	if piece > 0 {
		p.Pieces = &layout.Pieces{Size: piece}
		for off := 0; off < size; off += int(piece) {
			sum := sha256.Sum256(data[off:min(off+int(piece), size)])
			p.Pieces.Sums = append(p.Pieces.Sums, sum[:]...)
		}
	}
	s.add([]layout.Part{p}, data)
}

// frames adds a file of zstd frames of chunk bytes.
func (s *stock) frames(size, chunk int) {
	data := s.bytes(size)
	var parts []layout.Part
	for off := 0; off < size; off += chunk {
		piece := data[off:min(off+chunk, size)]
		frame := artifacttest.Frame(piece)
		parts = append(parts, layout.Part{
			Digest: s.put(frame), StoredSize: int64(len(frame)), Encoding: layout.Zstd,
			Offset: int64(off), Length: int64(len(piece)),
		})
	}
	s.add(parts, data)
}

// packed adds a packed file with holes.
func (s *stock) packed(size int) {
	data := s.bytes(size)
	var segs []sparse.Segment
	for off := 0; off < size; off += 1<<20 + 777 {
		segs = append(segs, sparse.Segment{Offset: int64(off + len(segs)*100_000), Length: int64(min(1<<20+777, size-off))})
	}
	m, err := sparse.New(segs, segs[len(segs)-1].Offset+segs[len(segs)-1].Length)
	if err != nil {
		panic(err)
	}
	f := &layout.File{Name: fmt.Sprint("file", len(s.files)), Map: m}
	packedtest.Pack(s.rng, f, data, packed.MinGranule, s.put)
	s.files, s.want = append(s.files, f), append(s.want, data)
}

func (s *stock) add(parts []layout.Part, data []byte) {
	s.files = append(s.files, &layout.File{
		Name: fmt.Sprint("file", len(s.files)), Parts: parts, Map: sparse.Dense(int64(len(data))),
	})
	s.want = append(s.want, data)
}

// everything adds a file of each kind, to a stock that has none.
func (s *stock) everything() {
	all := ofEachKind()
	s.t.Logf("files of seed %d", all.seed)
	s.src.blobs, s.files, s.want = maps.Clone(all.src.blobs), all.files, all.want
}

// ofEachKind is the stock whose files all tests with everything share: nobody
// writes to them, and making them takes longer than most tests that read them.
var ofEachKind = sync.OnceValue(func() *stock {
	s := emptyStock()
	s.raw(100, 0)
	s.raw(5<<20+17, 0)
	s.frames(3<<20+1, 1<<20)
	s.raw(0, 0)
	s.raw(6<<20+3, 256<<10)
	s.frames(9<<20, 9<<20)
	s.raw(7<<20, 0)
	s.packed(5<<20 + 3)
	return s
})

// read compares all files with what they must be.
func (s *stock) read(opts Options) error {
	if opts.Tardy == 0 {
		opts.Tardy = 10 * time.Second // where the machine is slow requests are not
	}
	d := New(s.src, s.files, opts)
	defer d.Close()
	for i, f := range s.files {
		r, err := d.OpenPayload(s.t.Context(), f)
		if err != nil {
			return err
		}
		same, err := reads(r, s.want[i])
		r.Close()
		if err != nil {
			if !same && !errors.Is(err, layout.ErrContent) {
				s.t.Errorf("%s: wrong bytes before %v", f.Name, err)
			}
			return err
		}
		if !same {
			s.t.Fatalf("%s: wrong bytes", f.Name)
		}
	}
	return nil
}

// reads reads to the end, or to an error, and reports whether all of want came,
// or a beginning of it. It keeps nothing: memory that is touched for the first
// time is what takes longest under the race detector.
func reads(r io.Reader, want []byte) (same bool, err error) {
	buf := make([]byte, 64<<10)
	for same = true; ; {
		n, err := r.Read(buf)
		same = same && n <= len(want) && bytes.Equal(buf[:n], want[:n])
		want = want[min(n, len(want)):]
		if err == io.EOF {
			return same && len(want) == 0, nil
		}
		if err != nil {
			return same, err
		}
	}
}

func (s *stock) stored() (n int64) {
	for _, f := range s.files {
		for i := range f.Parts {
			n += f.Parts[i].StoredSize // without an index, which does not come from the source
		}
	}
	return n
}
