package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// busy is an error that asks to be left alone.
type busy struct{ after time.Duration }

func (busy) Error() string               { return "503" }
func (b busy) RetryAfter() time.Duration { return b.after }

// gone is a final error.
type gone struct{}

func (gone) Error() string   { return "404" }
func (gone) Temporary() bool { return false }

// users are the ways in which the schedulers use a link: each brings all of
// the stage's blob.
var users = map[string]func(t *testing.T, s *stage, l *Link){
	"ranges on demand": func(t *testing.T, s *stage, l *Link) {
		w := load{workers: 4, request: unit}
		w.run(t, s, l)
	},
	"in order": func(t *testing.T, s *stage, l *Link) {
		for off := int64(0); off < int64(len(s.blob)); off += unit {
			d := l.NewReader(t.Context(), s.span(off, unit), ReaderOptions{})
			if _, err := d.Start(func() {}); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, unit)
			if _, err := io.ReadFull(d, got); err != nil || !bytes.Equal(got, s.blob[off:off+unit]) {
				t.Fatalf("at %d: %v", off, err)
			}
			_ = d.Close()
		}
	},
	"as a stream": func(t *testing.T, s *stage, l *Link) {
		r := s.span(0, int64(len(s.blob)))
		r.Stream = true
		d := l.NewReader(t.Context(), r, ReaderOptions{})
		defer d.Close()
		if got, err := io.ReadAll(d); err != nil || !bytes.Equal(got, s.blob) {
			t.Errorf("%d bytes: %v", len(got), err)
		}
	},
	"as a stream that its owner begins again": func(t *testing.T, s *stage, l *Link) {
		r := s.span(0, int64(len(s.blob)))
		r.Stream = true
		for {
			b, _, err := l.Open(t.Context(), r, func() {})
			var got []byte
			if err == nil {
				d := l.NewReader(t.Context(), r, ReaderOptions{Body: b, Leave: true})
				got, err = io.ReadAll(d)
				_ = d.Close()
			}
			if err == nil {
				if !bytes.Equal(got, s.blob) {
					t.Errorf("%d bytes", len(got))
				}
				return
			}
			time.Sleep(l.Pause(err))
		}
	},
}

// TestFaults has every kind of fault, for every use of a link: all bytes
// come, they are right, within the time and the requests that it may take.
func TestFaults(t *testing.T) {
	t.Parallel()
	third := func(f fault) func(int, int64) fault {
		return func(n int, _ int64) fault {
			if n%3 == 0 {
				return f
			}
			return fault{delay: 10 * ms}
		}
	}
	first := func(times int, f fault) func(int, int64) fault {
		return func(n int, _ int64) fault {
			if n <= times {
				return f
			}
			return fault{delay: 10 * ms}
		}
	}
	all := func(f fault) func(int, int64) fault { return func(int, int64) fault { return f } }
	for name, c := range map[string]struct {
		script   func(n int, off int64) fault
		took     time.Duration // at most
		least    time.Duration
		requests int   // at most
		sent     int64 // at most, in blobs
	}{
		"none":                        {all(fault{delay: 10 * ms}), time.Second, 0, 8, 1},
		"refused":                     {third(fault{err: errCut}), 2 * time.Second, 0, 13, 1},
		"broken off":                  {third(fault{delay: 10 * ms, cut: 19 << 10}), 2 * time.Second, 0, 13, 2},
		"broken off at the start":     {first(3, fault{delay: 10 * ms, cut: 1}), 2 * time.Second, 0, 13, 2},
		"no answer":                   {third(fault{dead: true}), 2 * time.Second, 0, 13, 1},
		"late answer":                 {third(fault{delay: 30 * time.Second}), 2 * time.Second, 0, 13, 1},
		"no answer at first":          {first(1, fault{dead: true}), 11 * time.Second, 0, 10, 1},
		"stands still":                {third(fault{delay: 10 * ms, stall: 19 << 10}), 2 * time.Second, 0, 13, 2},
		"stands still from the start": {first(2, fault{delay: 10 * ms, stall: 1}), 11 * time.Second, 0, 12, 2},
		"busy for 30 s":               {first(1, fault{err: busy{30 * time.Second}}), 34 * time.Second, 30 * time.Second, 12, 1},
		"busy for an hour":            {first(1, fault{err: busy{time.Hour}}), 331 * time.Second, retryAfterMost, 12, 1},
		"busy now and then":           {third(fault{err: busy{time.Second}}), 20 * time.Second, time.Second, 13, 1},
		"slow":                        {all(fault{delay: 900 * ms}), 10 * time.Second, 0, 10, 1},
		"trickle":                     {all(fault{delay: 10 * ms, drip: 100 * ms}), 40 * time.Second, 0, 10, 1},
		"slow trickle":                {all(fault{delay: 500 * ms, drip: time.Second}), 300 * time.Second, 0, 10, 1},
		"ignores ranges":              {all(fault{delay: 10 * ms, whole: true}), 2 * time.Second, 0, 9, 9},
		"whole now and then":          {third(fault{delay: 10 * ms, whole: true}), 2 * time.Second, 0, 13, 9},
		"begins to ignore ranges": {func(n int, _ int64) fault {
			return fault{delay: 10 * ms, whole: n > 3}
		}, 5 * time.Second, 0, 13, 9},
		"does not ignore ranges any more": {first(2, fault{delay: 10 * ms, whole: true}), 2 * time.Second, 0, 9, 9},
	} {
		for user, use := range users {
			t.Run(name+"/"+user, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					s := newStage(8*unit, c.script)
					l := NewLink(s, Options{Tardy: tardyLeast})
					began := time.Now()
					use(t, s, l)
					took := time.Since(began)
					l.Close()
					n, sent := s.counts()
					if took > c.took || took < c.least && !strings.Contains(name, "now and then") {
						t.Errorf("it took %v", took)
					}
					if n > c.requests || sent > c.sent*int64(len(s.blob)) {
						t.Errorf("%d requests, %d bytes", n, sent)
					}
					if s.open != 0 {
						t.Errorf("%d bodies are open", s.open)
					}
				})
			})
		}
	}
}

// TestDeadRegistry has nothing answered for ten minutes: it is tried again,
// less and less often, and the bytes come when it is back.
func TestDeadRegistry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		back := time.Now().Add(10 * time.Minute)
		s := newStage(8*unit, func(int, int64) fault { return fault{dead: time.Now().Before(back), delay: 10 * ms} })
		l := NewLink(s, Options{Tardy: tardyLeast})
		w := load{workers: 8, request: unit}
		w.run(t, s, l)
		l.Close()
		if w.took > 12*time.Minute || w.requests > 300 {
			t.Errorf("%d requests in %v", w.requests, w.took)
		}
	})
}

// TestFinalErrors end at once, with one request.
func TestFinalErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(1<<20, func(int, int64) fault { return fault{err: fmt.Errorf("get: %w", gone{})} })
		l := NewLink(s, Options{Tardy: tardyLeast})
		d := l.NewReader(t.Context(), s.span(0, 1000), ReaderOptions{})
		_, err := d.Start(func() {})
		if n, _ := s.counts(); n != 1 || !errors.As(err, new(gone)) || !Final(err) || Final(errCut) || Final(busy{}) {
			t.Errorf("%d requests, %v", n, err)
		}
	})
}

// TestCancel has the owner leave in each state that a request can be in.
func TestCancel(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault{
		"waits for an answer": {dead: true},
		"waits for bytes":     {stall: 1000},
		"pauses":              {err: errCut},
		"leaves it alone":     {err: busy{time.Hour}},
		"waits for its turn":  {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStage(1<<20, func(int, int64) fault { return f })
				limit := NewLimiter(0)
				if f == (fault{}) {
					limit = NewLimiter(1000)
				}
				l := NewLink(s, Options{Limit: limit, Tardy: tardyLeast})
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				began := time.Now()
				d := l.NewReader(ctx, s.span(0, 1<<19), ReaderOptions{})
				_, err := io.ReadAll(d)
				_ = d.Close()
				l.Close()
				if err == nil || time.Since(began) > 5*time.Second {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				if s.open != 0 {
					t.Errorf("%d bodies are open", s.open)
				}
			})
		})
	}
}

// TestTimeout ends a read of which too little came in time, and not one that
// only takes long.
func TestTimeout(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		f    fault
		ends bool
	}{
		"no answer":          {fault{dead: true}, true},
		"refused":            {fault{err: errCut}, true},
		"busy":               {fault{err: busy{time.Minute}}, true},
		"stands still":       {fault{cut: 30 << 10}, true},
		"brings too little":  {fault{stall: 1000}, true},
		"brings some":        {fault{delay: time.Second, cut: 1 << 20}, false},
		"brings it steadily": {fault{drip: 150 * ms}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const timeout = 30 * time.Second
				s := newStage(4<<20, func(int, int64) fault { return c.f })
				l := NewLink(s, Options{Timeout: timeout, Tardy: tardyLeast})
				began := time.Now()
				d := l.NewReader(t.Context(), s.span(0, 4<<20), ReaderOptions{})
				got, err := io.ReadAll(d)
				_ = d.Close()
				l.Close()
				took := time.Since(began)
				switch {
				case !c.ends && (err != nil || !bytes.Equal(got, s.blob)):
					t.Errorf("%d bytes, %v", len(got), err)
				case c.ends && (!errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || took > 40*timeout/30):
					t.Errorf("%v after %v", err, took)
				}
			})
		})
	}
}

// TestLimit keeps to a rate: what is wanted is fetched once, in the time that
// the rate gives, and nothing is learned from that time.
func TestLimit(t *testing.T) {
	t.Parallel()
	for user, use := range users {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const rate = 256 << 10
				s := newStage(8<<20, func(int, int64) fault { return fault{delay: 10 * ms} })
				l := NewLink(s, Options{Limit: NewLimiter(rate), Timeout: time.Minute, Tardy: tardyLeast})
				began := time.Now()
				use(t, s, l)
				l.Close()
				took, want := time.Since(began), time.Duration(len(s.blob)/rate)*time.Second
				if took > want+2*time.Second || took < want-2*time.Second {
					t.Errorf("it took %v, not %v", took, want)
				}
				stats := l.Stats()
				if n, sent := s.counts(); n > len(s.blob)/unit || sent != int64(len(s.blob)) || stats.Slow != 0 {
					t.Errorf("%d requests, %d bytes; %+v", n, sent, stats)
				}
				if stats.RoundTrip > 20*ms || stats.Speed > 0 && stats.Speed < 1<<20 {
					t.Errorf("%+v", stats)
				}
			})
		})
	}
}

// TestOneProbe has many ranges wanted at once: one request finds out whether
// they are served, and the others do not wait for each other after that.
func TestOneProbe(t *testing.T) {
	t.Parallel()
	for _, whole := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newStage(8*unit, func(int, int64) fault { return fault{delay: 100 * ms, whole: whole} })
			l := NewLink(s, Options{Tardy: tardyLeast})
			var wg sync.WaitGroup
			var adopted, none atomic.Int64
			began := time.Now()
			for i := range int64(8) {
				wg.Go(func() {
					b, isWhole, err := l.Open(t.Context(), s.span(i*unit, unit), func() { adopted.Add(1) })
					if err != nil || isWhole != whole {
						t.Error(isWhole, err)
						return
					}
					if b == nil {
						none.Add(1)
						return
					}
					_ = b.Close()
				})
			}
			time.Sleep(50 * ms)
			if n, _ := s.counts(); n != 1 {
				t.Errorf("%d requests while nothing is known", n)
			}
			wg.Wait()
			l.Close()
			n, _ := s.counts()
			if took := time.Since(began); took != 200*ms && !whole || took != 100*ms && whole {
				t.Errorf("it took %v", took)
			}
			if whole && (n != 1 || adopted.Load() != 1 || none.Load() != 7) || !whole && n != 8 {
				t.Errorf("%d requests, %d adopted, %d without a body", n, adopted.Load(), none.Load())
			}
			if known, served := l.Ranges(); !known || served == whole || l.IgnoresRanges() != whole {
				t.Error(known, served)
			}
		})
	}
}

// TestBlame names the body that wrong bytes came in, also if a double brought
// them, and asks trusted places for what has no digest.
func TestBlame(t *testing.T) {
	t.Parallel()
	for _, doubled := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newStage(1<<20, func(n int, _ int64) fault { return fault{flip: true, dead: doubled && n == 1} })
			l := NewLink(s, Options{Tardy: tardyLeast})
			r := s.span(1000, 1000)
			r.Checked = false
			d := l.NewReader(t.Context(), r, ReaderOptions{})
			if more := l.Blame(r.Digest, d.Body()); !more || s.blamed[0] != nil {
				t.Error("before the first answer", more, s.blamed)
			}
			if got, err := io.ReadAll(d); err != nil || len(got) != 1000 {
				t.Fatal(len(got), err)
			}
			n, _ := s.counts()
			if more := l.Blame(r.Digest, d.Body()); !more || s.trusted != n {
				t.Errorf("more %v, %d of %d requests to trusted places", more, s.trusted, n)
			}
			if b, ok := s.blamed[1].(*stageBody); !ok || b.came != 1000 {
				t.Errorf("%T is blamed", s.blamed[1])
			}
			_ = d.Close()
			l.Close()
		})
	}
	one := struct{ Source }{newStage(1, nil)}
	if NewLink(one, Options{}).Blame("d", nil) {
		t.Error("a source without mirrors has more of them")
	}
}

// TestFirstGoesOn has a double that is slower than the request beside it: the
// first one's bytes are used, and the double is cancelled when they come.
func TestFirstGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(1<<20, func(n int, _ int64) fault {
			return fault{delay: []time.Duration{10 * ms, 300 * ms, time.Minute}[min(n-1, 2)]}
		})
		l := NewLink(s, Options{Tardy: tardyLeast})
		for off := range int64(2) {
			if err := s.fetch(t.Context(), t, l, off<<19, 1<<19); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		l.Close() // waits for doubles
		n, sent := s.counts()
		if n < 3 || n > 4 || sent != 1<<20 || time.Since(began) > 0 {
			t.Errorf("%d requests, %d bytes, %v until the doubles had ended", n, sent, time.Since(began))
		}
	})
}
