package direct

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/cocoonstack/epochfs/internal/zstdframe"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/test/artifacttest"
)

func TestMain(m *testing.M) {
	// The decoders that all share must not be made within the bubble of a test.
	if _, err := zstdframe.Decode(nil, artifacttest.Frame([]byte("x")), 1); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func TestRead(t *testing.T) {
	for _, noRange := range []bool{false, true} {
		for _, conc := range []int{1, 2, 16} {
			for _, mem := range []int64{LeastMemory, 64 << 20} {
				t.Run(fmt.Sprint(noRange, conc, mem>>20), func(t *testing.T) {
					t.Parallel()
					s := newStock(t)
					s.everything()
					s.src.noRange = noRange
					if err := s.read(Options{Concurrency: conc, Memory: mem}); err != nil {
						t.Fatal(err)
					}
					if got := s.src.sent.Load(); got != s.stored() {
						t.Errorf("%d bytes were sent, not %d", got, s.stored())
					}
					if s.src.mostOpen > conc {
						t.Errorf("%d requests at a time", s.src.mostOpen)
					}
				})
			}
		}
	}
}

func TestBlobsAreStreamedSideBySide(t *testing.T) {
	s := newStock(t)
	s.src.noRange = true
	for range 3 {
		s.raw(2<<20, 0)
	}
	d := New(s.src, s.files, Options{Memory: 64 << 20})
	defer d.Close()
	if _, err := d.OpenPayload(t.Context(), s.files[0]); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); s.src.sent.Load() < 3<<20; {
		if time.Now().After(end) {
			t.Fatalf("%d bytes came while nobody read", s.src.sent.Load())
		}
		time.Sleep(time.Millisecond)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	for _, noRange := range []bool{false, true} {
		s := newStock(t)
		s.src.noRange = noRange
		for range 4 {
			s.raw(12<<20, 0)
		}
		const mem = 16 << 20
		d := New(s.src, s.files, Options{Memory: mem})
		if _, err := d.OpenPayload(t.Context(), s.files[0]); err != nil {
			t.Fatal(err)
		}
		// Nobody reads: the fetches must come to rest within the bound.
		last, since := int64(-1), time.Now()
		for time.Since(since) < 200*time.Millisecond {
			if n := s.src.sent.Load(); n != last {
				last, since = n, time.Now()
			}
			time.Sleep(time.Millisecond)
		}
		d.memory.mu.Lock()
		held := d.memory.held
		d.memory.mu.Unlock()
		// A body may have come to a buffer's length of the socket's.
		if last > mem+4*(64<<10) || held > mem {
			t.Errorf("no ranges %v: %d bytes came, %d are held", noRange, last, held)
		}
		d.Close()
	}
}

func TestFaultsAreMended(t *testing.T) {
	for name, fail := range map[string]func(n, off int64) fault{
		"error": func(n, _ int64) (f fault) {
			if n%3 == 0 {
				f.err = errors.New("refused")
			}
			return f
		},
		"cut": func(n, _ int64) (f fault) {
			if n%3 == 0 {
				f.cut = 70000
			}
			return f
		},
		"stall": func(n, _ int64) (f fault) {
			f.stall = n == 2
			return f
		},
	} {
		for _, noRange := range []bool{false, true} {
			t.Run(fmt.Sprint(name, noRange), func(t *testing.T) {
				t.Parallel()
				s := newStock(t)
				s.everything()
				s.src.noRange, s.src.fail = noRange, fail
				opts := Options{Concurrency: 4}
				if name == "stall" {
					// A third of it is waited for.
					opts.ReadTimeout = 9 * time.Second
				}
				if err := s.read(opts); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

func TestDamageOnTheWayOnce(t *testing.T) {
	s := newStock(t)
	s.frames(3<<20, 1<<20)
	s.raw(3<<20, 256<<10)
	var flipped sync.Map
	s.src.fail = func(n, off int64) (f fault) {
		_, again := flipped.LoadOrStore(off, true)
		f.flip = !again && n%2 == 0
		return f
	}
	if err := s.read(Options{}); err != nil {
		t.Fatal(err)
	}
}

func TestWrongBytes(t *testing.T) {
	for name, add := range map[string]func(*stock){
		"raw":    func(s *stock) { s.raw(3<<20, 0) },
		"pieces": func(s *stock) { s.raw(3<<20, 256<<10) },
		"small":  func(s *stock) { s.raw(300, 0) },
		"chunks": func(s *stock) { s.frames(3<<20, 1<<20) },
		"frame":  func(s *stock) { s.frames(9<<20, 9<<20) },
	} {
		for _, noRange := range []bool{false, true} {
			t.Run(fmt.Sprint(name, noRange), func(t *testing.T) {
				s := newStock(t)
				add(s)
				s.src.noRange = noRange
				s.src.fail = func(int64, int64) fault { return fault{flip: true} }
				if err := s.read(Options{Memory: LeastMemory}); !errors.Is(err, layout.ErrContent) {
					t.Fatalf("read: %v", err)
				}
			})
		}
	}
}

func TestFinalErrorEndsAtOnce(t *testing.T) {
	s := newStock(t)
	s.raw(3<<20, 0)
	s.src.fail = func(int64, int64) fault { return fault{err: final1{errors.New("gone")}} }
	if err := s.read(Options{Concurrency: 1}); !errors.As(err, &final1{}) {
		t.Fatal(err)
	}
	if n := s.src.requests.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestReadTimeout(t *testing.T) {
	for name, f := range map[string]fault{"errors": {err: errors.New("refused")}, "stalls": {stall: true}, "trickles": {cut: 30000, stall: true}} {
		t.Run(name, func(t *testing.T) {
			s := newStock(t)
			s.raw(3<<20, 0)
			s.src.fail = func(int64, int64) fault { return f }
			opts := Options{ReadTimeout: 300 * time.Millisecond}
			done := make(chan error, 1)
			go func() { done <- s.read(opts) }()
			select {
			case err := <-done:
				if err == nil {
					t.Fatal("read went well")
				}
				if name != "stalls" && !errors.Is(err, ErrTimeout) {
					t.Fatal(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the timeout has no effect")
			}
		})
	}
}

// A unit may take longer than the timeout while steps of it come. The clock
// is one that stands still while anything is done.
func TestReadTimeoutCountsSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStock(t)
		s.raw(4<<20, 0)
		s.src.fail = func(int64, int64) fault { return fault{cut: 1 << 20, stall: true} }
		if err := s.read(Options{ReadTimeout: 1500 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestOrderAndCancel(t *testing.T) {
	s := newStock(t)
	s.raw(10, 0)
	s.raw(3<<20, 0)
	s.src.fail = func(n, _ int64) fault { return fault{stall: n > 1} }
	d := New(s.src, s.files, Options{})
	defer d.Close()
	if _, err := d.OpenPayload(t.Context(), s.files[1]); err == nil {
		t.Fatal("the second file was opened first")
	}
	if _, err := d.OpenPayload(t.Context(), s.files[0]); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r, err := d.OpenPayload(ctx, s.files[1])
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// shelf is a Store by function.
type shelf func(part int) io.Reader

func (s shelf) Part(part int) io.Reader { return s(part) }

func TestLocalPartsAreNotFetched(t *testing.T) {
	s := newStock(t)
	s.raw(3<<20, 0)
	s.frames(3<<20, 1<<20)
	s.raw(10, 0)
	opts := Options{Store: func(file int) Store {
		if file != 1 {
			return nil
		}
		return shelf(func(part int) io.Reader {
			if part == 1 {
				return nil
			}
			p := s.files[1].Parts[part]
			return bytes.NewReader(s.want[1][p.Offset:p.End()])
		})
	}}
	if err := s.read(opts); err != nil {
		t.Fatal(err)
	}
	if got, want := s.src.sent.Load(), 3<<20+10+s.files[1].Parts[1].StoredSize; got != want {
		t.Errorf("%d bytes were sent, not %d", got, want)
	}
}

// TestWriteTo writes each kind of part, after a read of some of it, and
// hands on what it is written to says.
func TestWriteTo(t *testing.T) {
	s := newStock(t)
	s.everything()
	d := New(s.src, s.files, Options{Memory: LeastMemory})
	defer d.Close()
	for i, f := range s.files {
		r, err := d.OpenPayload(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, min(10, len(s.want[i])))
		if _, err := io.ReadFull(r, head); err != nil {
			t.Fatal(err)
		}
		got := bytes.NewBuffer(head)
		n, err := r.(io.WriterTo).WriteTo(got)
		if err != nil || n != int64(len(s.want[i])-min(10, len(s.want[i]))) || !bytes.Equal(got.Bytes(), s.want[i]) {
			t.Errorf("%s: %d bytes, %v", f.Name, n, err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%s: after its end %d, %v", f.Name, n, err)
		}
		r.Close()
	}
}

// full takes n writes and no more.
type full int

var errFull = errors.New("full")

func (f *full) Write(p []byte) (int, error) {
	if *f--; *f < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteToEnds(t *testing.T) {
	s := newStock(t)
	s.raw(9<<20, 256<<10)
	s.raw(9<<20, 0)
	d := New(s.src, s.files, Options{})
	defer d.Close()
	r, err := d.OpenPayload(t.Context(), s.files[0])
	if err != nil {
		t.Fatal(err)
	}
	room := full(1)
	if n, err := r.(io.WriterTo).WriteTo(&room); !errors.Is(err, errFull) || n == 0 {
		t.Errorf("%d bytes written, %v", n, err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, errFull) {
		t.Errorf("a read after that: %v", err)
	}
	s = newStock(t)
	s.raw(9<<20, 0)
	s.src.fail = func(int64, int64) fault { return fault{flip: true} }
	d = New(s.src, s.files, Options{})
	defer d.Close()
	if r, err = d.OpenPayload(t.Context(), s.files[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := r.(io.WriterTo).WriteTo(io.Discard); !errors.Is(err, layout.ErrContent) {
		t.Errorf("wrong bytes: %v", err)
	}
}
