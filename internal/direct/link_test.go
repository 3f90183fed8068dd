package direct

import (
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// usual is what counts as standing still where nothing else says so.
const usual = 80 * time.Millisecond

// busy is an error that asks to be left alone.
type busy struct{ after time.Duration }

func (busy) Error() string               { return "503" }
func (b busy) RetryAfter() time.Duration { return b.after }
func (busy) Temporary() bool             { return true }

// TestRetryAfter has a registry that asks to be left alone: no request goes
// out meanwhile, on any connection.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const after = 20 * time.Second
		s := newStock(t)
		for range 8 {
			s.raw(1<<20, 0)
		}
		var mu sync.Mutex
		var asked time.Time
		s.src.fail = func(n, _ int64) (f fault) {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case n == 3:
				asked, f.err = time.Now(), busy{after}
			case n > 3 && time.Since(asked) < after:
				t.Errorf("request %d came after %v", n, time.Since(asked))
			}
			return f
		}
		if err := s.read(Options{Concurrency: 1}); err != nil {
			t.Fatal(err)
		}
		if n := s.src.requests.Load(); n != 9 {
			t.Errorf("%d requests for 8 files and one refusal", n)
		}
	})
}

// TestRetryAfterBeyondTheTimeout does not wait for longer than the caller.
func TestRetryAfterBeyondTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStock(t)
		s.raw(1<<20, 0)
		s.src.fail = func(int64, int64) fault { return fault{err: busy{time.Hour}} }
		began := time.Now()
		err := s.read(Options{ReadTimeout: 10 * time.Second})
		if !errors.Is(err, ErrTimeout) || !errors.As(err, new(busy)) || time.Since(began) > 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// TestDamageInSeveralPlaces has each unit of a blob damaged on the way once,
// in the same stream, and then one of them twice.
func TestDamageInSeveralPlaces(t *testing.T) {
	for _, twice := range []bool{false, true} {
		s := newStock(t)
		s.raw(4<<20, 256<<10)
		s.src.noRange = true
		s.src.fail = func(n, _ int64) (f fault) {
			if n <= 4 {
				f.flip, f.at = true, (n-1)<<20
			}
			if twice && n > 1 {
				f.flip, f.at = true, 1<<20
			}
			return f
		}
		err := s.read(Options{Memory: 32 << 20})
		if twice != errors.Is(err, layout.ErrContent) || !twice && err != nil {
			t.Errorf("twice in one place %v: %v", twice, err)
		}
	}
}

// TestClosedEarly closes the payloads of files that were fetched ahead: their
// memory is there for the next file, and their requests end.
func TestClosedEarly(t *testing.T) {
	for _, noRange := range []bool{false, true} {
		s := newStock(t)
		s.raw(40<<20, 0)
		s.frames(8<<20, 1<<20)
		s.raw(5<<20, 256<<10)
		s.src.noRange = noRange
		d := New(s.src, s.files, Options{Memory: 16 << 20})
		for i, f := range s.files {
			r, err := d.OpenPayload(t.Context(), f)
			if err != nil {
				t.Fatal(err)
			}
			n := 100
			if i == 2 {
				n = len(s.want[i])
			}
			got := make([]byte, n)
			if _, err := io.ReadFull(r, got); err != nil || string(got) != string(s.want[i][:n]) {
				t.Fatalf("%s: %v", f.Name, err)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Read(got); err == nil {
				t.Error("a closed payload was read")
			}
		}
		_ = d.Close()
		if d.free != d.opts.Memory {
			t.Errorf("no ranges %v: %d bytes of memory of %d are free", noRange, d.free, d.opts.Memory)
		}
		s.src.mu.Lock()
		if s.src.open != 0 {
			t.Errorf("%d bodies were not closed", s.src.open)
		}
		s.src.mu.Unlock()
	}
}

// TestStallingRegistry reads 45 MiB while every third request stands still,
// before its first byte or after some.
func TestStallingRegistry(t *testing.T) {
	for _, cut := range []int64{0, 100_000} {
		synctest.Test(t, func(t *testing.T) {
			s := newStock(t)
			s.raw(40<<20, 0)
			s.frames(5<<20, 1<<20)
			s.src.fail = func(n, _ int64) (f fault) {
				time.Sleep(10 * time.Millisecond)
				if n%3 == 0 {
					f.stall, f.cut = true, cut
				}
				return f
			}
			began := time.Now()
			if err := s.read(Options{Tardy: usual}); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("stalled after %d bytes: it took %v", cut, took)
			}
		})
	}
}

// TestLimitRate keeps to the rate and fetches each byte once.
func TestLimitRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStock(t)
		s.raw(8<<20, 0)
		began := time.Now()
		if err := s.read(Options{LimitRate: 256 << 10, ReadTimeout: 10 * time.Second, Tardy: usual}); err != nil {
			t.Fatal(err)
		}
		took, want := time.Since(began), 32*time.Second
		if sent := s.src.sent.Load(); sent != s.stored() || took > want+time.Second || took < want-2*time.Second {
			t.Errorf("%d bytes of %d in %v", sent, s.stored(), took)
		}
	})
}
