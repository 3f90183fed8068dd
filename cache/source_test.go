package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/faultdisk"
	"github.com/cocoonstack/epochfs/test/packedtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(faultdisk.Env) != "" {
		watchedProcess()
		return
	}
	if dir := os.Getenv(crashDirEnv); dir != "" {
		crashingProcess(dir)
		return
	}
	if name := os.Getenv(lockFileEnv); name != "" {
		stoppingProcess(name)
		return
	}
	if dir := os.Getenv(readerDirEnv); dir != "" {
		readingProcess(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// fakeSource has blobs in memory, counts what is asked of it, and fails
// as told.
type fakeSource struct {
	noRange bool
	gate    chan struct{} // when set, each request waits for one token or its closing
	mangle  func(digest string, off int64, body []byte) ([]byte, error)

	mu       sync.Mutex
	blobs    map[string][]byte
	requests int
	bytes    int64
}

var errCut = errors.New("connection reset")

type finalError struct{}

func (finalError) Error() string   { return "gone" }
func (finalError) Temporary() bool { return false }

func (s *fakeSource) OpenBlob(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	if s.gate != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	blob, ok := s.blobs[digest]
	if !ok {
		return nil, false, finalError{}
	}
	if int64(len(blob)) != size || off < 0 || n < 0 || off+n > size {
		return nil, false, fmt.Errorf("asked for [%d,%d) of %d, blob has %d", off, off+n, size, len(blob))
	}
	whole := s.noRange
	if whole {
		off, n = 0, size
	}
	body := blob[off : off+n]
	var end error = io.EOF
	if s.mangle != nil {
		var err error
		if body, err = s.mangle(digest, off, bytes.Clone(body)); err != nil {
			end = err
		}
	}
	return &fakeBody{ctx, s, bytes.NewReader(body), end}, whole, nil
}

type fakeBody struct {
	ctx context.Context // a real body ends with its request's
	s   *fakeSource
	r   *bytes.Reader
	end error
}

func (b *fakeBody) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	b.s.mu.Lock()
	b.s.bytes += int64(n)
	b.s.mu.Unlock()
	if err == io.EOF {
		err = b.end
	}
	return n, err
}

func (b *fakeBody) Close() error { return nil }

// reset returns and clears the counts.
func (s *fakeSource) reset() (requests int, fetched int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests, fetched = s.requests, s.bytes
	s.requests, s.bytes = 0, 0
	return requests, fetched
}

func (s *fakeSource) put(b []byte) string {
	sum := sha256.Sum256(b)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if s.blobs == nil {
		s.blobs = map[string][]byte{}
	}
	s.blobs[digest] = b
	return digest
}

// kind is a way in which a payload is stored.
type kind struct {
	name   string
	chunk  int  // split every so many bytes; 0: one part
	zstd   bool // each part is a frame
	pieces int64
	packed bool
}

var kinds = []kind{
	{name: "raw"},
	{name: "raw with piece digests", pieces: 256 << 10},
	{name: "raw chunks", chunk: 1 << 20},
	{name: "zstd chunks", chunk: 1 << 20, zstd: true},
	{name: "large frame", zstd: true},
	{name: "packed", packed: true},
}

// artifact is a file and what its readers should see.
type artifact struct {
	file *layout.File
	flat []byte
	data []byte // the payload
}

// blobs returns how many blobs the file's data is stored in.
func (a *artifact) blobs() int {
	if a.file.Index != nil {
		return len(a.file.Index.Head.Packs)
	}
	return len(a.file.Parts)
}

// makeFile stores a payload of the given size, spread out by a random map,
// in src.
func makeFile(t testing.TB, rng *rand.Rand, src *fakeSource, k kind, size int) artifact {
	t.Helper()
	var data []byte
	var whole *frame // that is all of the file
	if k.zstd && k.chunk == 0 {
		whole = src.newFrame(size)
		data = whole.data
	} else {
		data = make([]byte, size)
		fillRandom(rng, data)
	}
	m, flat := spread(t, rng, data)
	f := &layout.File{Name: "memory-ranges", Mode: 0o600, Map: m}
	if k.packed {
		packedtest.Pack(rng, f, data, packed.MinGranule, src.put)
		return artifact{f, flat, data}
	}
	if whole != nil {
		f.Parts = []layout.Part{{
			Digest: src.put(bytes.Clone(whole.stored)), StoredSize: int64(len(whole.stored)), Encoding: layout.Zstd, Length: int64(size),
		}}
		return artifact{f, flat, data}
	}
	chunk := size
	if k.chunk > 0 {
		chunk = k.chunk
	}
	for off := 0; off < size; off += chunk {
		part := data[off:min(off+chunk, size)]
		f.Parts = append(f.Parts, storePart(t, src, k, part, int64(off)))
	}
	return artifact{f, flat, data}
}

// fillRandom makes bytes that compress, but are nowhere the same.
func fillRandom(rng *rand.Rand, data []byte) { fillLines(rng, data, 64) }

// fillLines has eight random bytes in each line of so many, again and again.
//
//go:norace
func fillLines(rng *rand.Rand, data []byte, length int) {
	x := rng.Uint64() | 1
	line := make([]byte, length)
	for i := 0; i < len(data); i += length {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(line, x)
		for n := 8; n < length; n *= 2 {
			copy(line[n:], line[:n])
		}
		copy(data[i:], line)
	}
}

// encoder is one for all: its tables are large, and memory that is touched
// for the first time is what takes longest under the race detector.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		panic(err)
	}
	return enc
})

// frame is a payload, and the same as a frame.
type frame struct{ data, stored []byte }

// frames are those of newFrame: all tests share them, for the race detector
// makes the encoder slow.
var frames sync.Map

// newFrame returns a frame of a size, of data that s has not.
func (s *fakeSource) newFrame(size int) *frame {
	for seed := uint64(1); ; seed++ {
		made, _ := frames.LoadOrStore([2]uint64{uint64(size), seed}, sync.OnceValue(func() *frame {
			data := make([]byte, size)
			fillLines(rand.New(rand.NewPCG(uint64(size), seed)), data, 128)
			return &frame{data, encoder().EncodeAll(data, nil)}
		}))
		f := made.(func() *frame)()
		if s.blobs[digests.Of(f.stored)] == nil {
			return f
		}
	}
}

func storePart(t testing.TB, src *fakeSource, k kind, part []byte, off int64) layout.Part {
	p := layout.Part{Offset: off, Length: int64(len(part))}
	stored := part
	if k.zstd {
		stored = encoder().EncodeAll(part, nil)
		p.Encoding = layout.Zstd
	}
	p.StoredSize = int64(len(stored))
	p.Digest = src.put(stored)
	if k.pieces > 0 {
		p.Pieces = &layout.Pieces{Size: k.pieces}
		for b := part; len(b) > 0; b = b[min(int64(len(b)), k.pieces):] {
			sum := sha256.Sum256(b[:min(int64(len(b)), k.pieces)])
			p.Pieces.Sums = append(p.Pieces.Sums, sum[:]...)
		}
	}
	return p
}

// spread cuts data into segments of random, unaligned lengths with holes
// of random length before each.
//
//go:norace
func spread(t testing.TB, rng *rand.Rand, data []byte) (*sparse.Map, []byte) {
	t.Helper()
	var segs []sparse.Segment
	end := 0
	for rest := len(data); rest > 0; {
		hole := rng.IntN(200_000)
		if rng.IntN(8) == 0 {
			hole = 0
		}
		n := min(1+rng.IntN(300_000), rest)
		segs = append(segs, sparse.Segment{Offset: int64(end + hole), Length: int64(n)})
		end += hole + n
		rest -= n
	}
	flat := make([]byte, end+rng.IntN(100_000))
	for _, s := range segs {
		data = data[copy(flat[s.Offset:s.Offset+s.Length], data):]
	}
	m, err := sparse.New(segs, int64(len(flat)))
	if err != nil {
		t.Fatal(err)
	}
	return m, flat
}

func newRand(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func openCache(t testing.TB, dir string, opts Options) *Cache {
	t.Helper()
	if opts.grace == 0 {
		opts.grace = 10 * time.Second // where the machine is slow the disk is not
	}
	if opts.Tardy == 0 {
		opts.Tardy = 10 * time.Second // and neither are requests
	}
	c, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	c.pace.patient()
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// patient has no disk count as slow, where the machine is: it is never most jobs that
// write.
func (p *pace) patient() { p.jobs = func() int { return math.MaxInt / 2 } }

func openFile(t testing.TB, c *Cache, f *layout.File, src Source) *File {
	t.Helper()
	h, err := c.File(f, src)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// readBuffers are buffers that were read into before.
var readBuffers = make(chan []byte, 64)

func giveBack(p []byte) {
	select {
	case readBuffers <- p:
	default:
	}
}

func readBuffer(n int) []byte {
	select {
	case p := <-readBuffers:
		if cap(p) >= n {
			clear(p[:n]) // or what was read before might pass for read
			return p[:n]
		}
	default:
	}
	return make([]byte, n)
}

func checkRead(t testing.TB, h *File, flat []byte, off, n int) {
	t.Helper()
	p := readBuffer(n)
	defer giveBack(p)
	got, err := h.ReadAt(context.Background(), p, int64(off))
	want := flat[min(off, len(flat)):min(off+n, len(flat))]
	if err != nil && !(errors.Is(err, io.EOF) && len(want) < n) {
		t.Fatalf("read [%d,%d): %v", off, off+n, err)
	}
	if !same(p[:got], want) {
		t.Fatalf("read [%d,%d): wrong bytes (%d of %d)", off, off+n, got, len(want))
	}
}

// same compares what was read with what should be read, which is always there:
// the race detector need not look at that.
func same(got, want []byte) bool {
	return string(got) == unsafe.String(unsafe.SliceData(want), len(want))
}

// eventually polls until ok, for at most a minute.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
