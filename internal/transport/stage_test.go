package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errCut = errors.New("connection reset")

// fault is what goes wrong with a request. Times are virtual.
type fault struct {
	err   error         // instead of an answer
	delay time.Duration // before the answer
	dead  bool          // no answer until the request ends
	cut   int64         // end after so many bytes, if > 0
	stall int64         // bring nothing more after so many bytes, if > 0
	drip  time.Duration // before each sip
	whole bool          // ignore the range
	flip  bool          // change the first byte
}

// A range of most tests, and what a body brings at a time.
const (
	unit = 64 << 10
	sip  = 4 << 10
)

// noise are bytes that all stages share, and nobody writes to.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 16<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // it does not fail
	return b
})

// stage is a registry with one blob.
type stage struct {
	blob   []byte
	script func(n int, off int64) fault // of the nth request, from 1 on; nil: all goes well

	mu       sync.Mutex
	requests int
	sent     int64
	open     int // bodies
	trusted  int // requests of OpenTrusted
	blamed   []io.ReadCloser
}

func newStage(size int, script func(n int, off int64) fault) *stage {
	return &stage{blob: noise()[:size], script: script}
}

func (s *stage) OpenBlob(ctx context.Context, _ string, size, off, n int64) (io.ReadCloser, bool, error) {
	s.mu.Lock()
	s.requests++
	var f fault
	if s.script != nil {
		f = s.script(s.requests, off)
	}
	s.mu.Unlock()
	if f.dead {
		<-ctx.Done()
	}
	if err := sleep(ctx, f.delay); err != nil {
		return nil, false, err
	}
	if f.err != nil {
		return nil, false, f.err
	}
	whole := f.whole && n < size
	if whole {
		off, n = 0, size
	}
	part := s.blob[off : off+n]
	if f.flip {
		part = bytes.Clone(part)
		part[0] ^= 1
	}
	s.mu.Lock()
	s.open++
	s.mu.Unlock()
	return &stageBody{s: s, ctx: ctx, f: f, left: part}, whole, nil
}

func (s *stage) OpenTrusted(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	s.mu.Lock()
	s.trusted++
	s.mu.Unlock()
	return s.OpenBlob(ctx, digest, size, off, n)
}

func (s *stage) Blame(_ string, body io.ReadCloser) (more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blamed = append(s.blamed, body)
	return true
}

// counts returns how many requests there were, and how many bytes were read
// of their answers.
func (s *stage) counts() (requests int, sent int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.sent
}

type stageBody struct {
	s    *stage
	ctx  context.Context
	f    fault
	left []byte
	came int64
}

func (b *stageBody) Read(p []byte) (int, error) {
	if err := sleep(b.ctx, b.f.drip); err != nil {
		return 0, err
	}
	most := int64(sip)
	if b.f.stall > 0 {
		if most = min(most, b.f.stall-b.came); most == 0 {
			<-b.ctx.Done()
		}
	}
	if b.f.cut > 0 {
		if most = min(most, b.f.cut-b.came); most == 0 {
			return 0, errCut
		}
	}
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if len(b.left) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.left[:min(most, int64(len(b.left)))])
	b.left = b.left[n:]
	b.came += int64(n)
	b.s.mu.Lock()
	b.s.sent += int64(n)
	b.s.mu.Unlock()
	return n, nil
}

func (b *stageBody) Close() error {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	b.s.open--
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// span is a range of the stage's blob.
func (s *stage) span(off, n int64) Range {
	return Range{Digest: "d", Size: int64(len(s.blob)), Off: off, N: n, Checked: true}
}

// fetch reads a range with one request and its doubles, and compares it.
func (s *stage) fetch(ctx context.Context, t *testing.T, l *Link, off, n int64) error {
	b, whole, err := l.Open(ctx, s.span(off, n), func() {})
	if err != nil {
		return err
	}
	if whole {
		off, n = 0, int64(len(s.blob))
	}
	if b == nil {
		r := s.span(off, n)
		r.Stream = true
		if b, _, err = l.Open(ctx, r, nil); err != nil {
			return err
		}
	}
	defer b.Close()
	got := make([]byte, n)
	if _, err := io.ReadFull(b, got); err != nil {
		return err
	}
	if !bytes.Equal(got, s.blob[off:off+n]) {
		t.Errorf("wrong bytes at %d", off)
	}
	return nil
}

// load is what readers of a blob see when several connections fetch it.
type load struct {
	workers  int
	request  int64
	longest  time.Duration // that one range took
	took     time.Duration
	requests int
	sent     int64
	slow     int64 // requests beside those that were needed
}

// run fetches all of the stage's blob, range by range, each until it is there.
func (w *load) run(t *testing.T, s *stage, l *Link) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	next, size := int64(0), int64(len(s.blob))
	before, sent := s.counts()
	slow := l.Stats().Slow
	began := time.Now()
	for range w.workers {
		wg.Go(func() {
			for {
				mu.Lock()
				off := next
				next += w.request
				mu.Unlock()
				if off >= size {
					return
				}
				at := time.Now()
				for {
					err := s.fetch(t.Context(), t, l, off, min(w.request, size-off))
					if err == nil {
						break
					}
					if !errors.Is(err, ErrSlow) {
						time.Sleep(l.Pause(err))
					}
				}
				mu.Lock()
				w.longest = max(w.longest, time.Since(at))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	w.took = time.Since(began)
	w.requests, w.sent = s.counts()
	w.requests, w.sent, w.slow = w.requests-before, w.sent-sent, l.Stats().Slow-slow
	t.Logf("%d connections: %.1fs, a range %v at most, %d requests (%d of them doubles or again), %.3f of the bytes",
		w.workers, w.took.Seconds(), w.longest.Round(time.Millisecond), w.requests, w.slow, float64(w.sent)/float64(size))
}
