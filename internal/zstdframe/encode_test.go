package zstdframe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/cocoonstack/epochfs/test/tier"
)

// Frames say what they hold, are one segment, and are the same whenever
// they are made: a chunk that did not change must not be sent again.
func TestEncode(t *testing.T) {
	for _, level := range []int{1, 3, 7, 19, MaxLevel} {
		t.Run(fmt.Sprint("level ", level), func(t *testing.T) {
			if level > 7 {
				tier.Long(t, "compresses thoroughly")
			}
			e, err := NewEncoder(level, 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{1, 255, 1000, 300 << 10} {
				src := text(n)
				frame := e.Encode(nil, src)
				if size, ok := ContentSize(frame); !ok || size != int64(n) || frame[4]&0x20 == 0 {
					t.Errorf("level %d, %d bytes: header %x", level, n, frame[:9])
				}
				if got, err := Decode(nil, frame, int64(n)); err != nil || !bytes.Equal(got, src) {
					t.Errorf("level %d, %d bytes: %v", level, n, err)
				}
				var wg sync.WaitGroup
				for i := range 4 {
					wg.Go(func() {
						e.Encode(nil, text(5000*i))
						if !bytes.Equal(e.Encode(make([]byte, 10), src), frame) {
							t.Errorf("level %d, %d bytes: another frame", level, n)
						}
					})
				}
				wg.Wait()
			}
		})
	}
	for _, level := range []int{-1, 0, MaxLevel + 1} {
		if _, err := NewEncoder(level, 1); err == nil {
			t.Errorf("level %d", level)
		}
	}
}

func TestStream(t *testing.T) {
	e, err := NewEncoder(3, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, streamRead, 5*streamRead + 3} {
		src := text(n)
		r, err := e.Stream(bytes.NewReader(src), int64(n))
		if err != nil {
			t.Fatal(err)
		}
		frame, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if size, ok := ContentSize(frame); !ok || size != int64(n) {
			t.Errorf("%d bytes: header %x", n, frame[:9])
		}
		if got, err := Decode(nil, frame, int64(n)); err != nil || !bytes.Equal(got, src) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	r, err := e.Stream(bytes.NewReader(make([]byte, 10)), 11)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a source that is short: %v", err)
	}
}
