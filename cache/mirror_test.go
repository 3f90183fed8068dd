package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// twoPlaces is a Mirrored source: a place that serves wrong bytes, and the
// right one.
type twoPlaces struct {
	*fakeSource
	mu      sync.Mutex
	blamed  map[string]bool
	trusted int  // requests for the trusted place only
	anyhow  int  // the others
	blind   bool // Blame was called without a body
}

type placed struct {
	io.ReadCloser
	wrong bool
}

func (s *twoPlaces) OpenBlob(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	s.mu.Lock()
	s.anyhow++
	bad := !s.blamed[digest]
	s.mu.Unlock()
	body, whole, err := s.fakeSource.OpenBlob(ctx, digest, size, off, n)
	if err != nil || !bad {
		return &placed{body, false}, whole, err
	}
	raw, err := io.ReadAll(body)
	if err != nil {
		return nil, false, err
	}
	raw[len(raw)/2] ^= 1
	return &placed{io.NopCloser(bytes.NewReader(raw)), true}, whole, nil
}

func (s *twoPlaces) OpenTrusted(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	s.mu.Lock()
	s.trusted++
	s.mu.Unlock()
	body, whole, err := s.fakeSource.OpenBlob(ctx, digest, size, off, n)
	return &placed{body, false}, whole, err
}

func (s *twoPlaces) Blame(digest string, body io.ReadCloser) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := body.(*placed)
	s.blind = s.blind || !ok
	if ok && b.wrong {
		s.blamed[digest] = true
	}
	return ok && b.wrong
}

// What has digests comes from anywhere, and after wrong bytes from
// elsewhere; what has none comes from the trusted place at once.
func TestWrongBytesComeFromElsewhere(t *testing.T) {
	t.Parallel()
	for _, limited := range []int64{0, 1 << 30} {
		for _, k := range kinds {
			t.Run(k.name, func(t *testing.T) {
				src := &twoPlaces{fakeSource: &fakeSource{}, blamed: map[string]bool{}}
				a := makeFile(t, rand.New(rand.NewPCG(5, 5)), src.fakeSource, k, 3<<20)
				f := openFile(t, openCache(t, t.TempDir(), Options{LimitRate: limited}), a.file, src)
				got := make([]byte, len(a.flat))
				if _, err := f.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, a.flat) {
					t.Fatalf("read: %v, right: %v", err, bytes.Equal(got, a.flat))
				}
				src.mu.Lock()
				defer src.mu.Unlock()
				if src.blind {
					t.Error("a body was not the one the source had made")
				}
				if unchecked := !f.entry.grid.Checked(0); unchecked != (src.anyhow == 0) || unchecked != (src.trusted > 0) {
					t.Errorf("%d requests for the trusted place, %d for any", src.trusted, src.anyhow)
				}
			})
		}
	}
}

// busy is an error that says for how long it is one.
type busy struct{ after time.Duration }

func (busy) Error() string               { return "503" }
func (b busy) RetryAfter() time.Duration { return b.after }
func (busy) Temporary() bool             { return true }

// busySource refuses its first requests.
type busySource struct {
	*fakeSource
	mu    sync.Mutex
	left  int
	after time.Duration
	times []time.Time
}

func (s *busySource) OpenBlob(ctx context.Context, digest string, size, off, n int64) (io.ReadCloser, bool, error) {
	s.mu.Lock()
	s.times = append(s.times, time.Now())
	s.left--
	no := s.left >= 0
	s.mu.Unlock()
	if no {
		return nil, false, busy{s.after}
	}
	return s.fakeSource.OpenBlob(ctx, digest, size, off, n)
}

// A source that asks to be left alone is, also by readers who come anew.
func TestRetryAfter(t *testing.T) {
	const after = 300 * time.Millisecond
	src := &busySource{fakeSource: &fakeSource{}, left: 1, after: after}
	a := makeFile(t, rand.New(rand.NewPCG(6, 6)), src.fakeSource, kinds[1], 2<<20)
	f := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
	var readers sync.WaitGroup
	for i := range 8 {
		readers.Go(func() {
			buf := make([]byte, 1000)
			off := int64(i) * int64(len(a.flat)-len(buf)) / 8
			if _, err := f.ReadAt(t.Context(), buf, off); err != nil || !bytes.Equal(buf, a.flat[off:off+1000]) {
				t.Errorf("read at %d: %v", off, err)
			}
		})
	}
	readers.Wait()
	src.mu.Lock()
	defer src.mu.Unlock()
	if d := src.times[1].Sub(src.times[0]); d < after {
		t.Errorf("the second request came after %v", d)
	}
}

// A reader that gives up does not wait for as long as the source asks for.
func TestRetryAfterIsNoPrison(t *testing.T) {
	t.Parallel()
	src := &busySource{fakeSource: &fakeSource{}, left: 1 << 30, after: time.Hour}
	a := makeFile(t, rand.New(rand.NewPCG(6, 6)), src.fakeSource, kinds[1], 2<<20)
	c, err := Open(t.TempDir(), Options{ReadTimeout: 2 * time.Second, Tardy: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c.pace.patient()
	f, err := c.File(a.file, src)
	if err != nil {
		t.Fatal(err)
	}
	var told busy
	if _, err := f.ReadAt(t.Context(), make([]byte, len(a.flat)), 0); !errors.Is(err, ErrTimeout) || !errors.As(err, &told) {
		t.Errorf("read: %v", err)
	}
	if err := errors.Join(f.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if len(src.times) == 0 || len(src.times) > 16 { // as many as go out before the first answer
		t.Errorf("%d requests", len(src.times))
	}
}
