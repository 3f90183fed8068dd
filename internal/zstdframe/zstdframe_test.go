package zstdframe

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/tier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// text is n bytes that compress somewhat.
func text(n int) []byte {
	b := make([]byte, n)
	artifacttest.FillBits(b, uint64(n), 3)
	return b
}

func encode(t testing.TB, data []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(data, nil)
}

// unsized is a frame whose header does not say how much it holds.
func unsized(t testing.TB, data []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var buf bytes.Buffer
	e, err := zstd.NewWriter(&buf, opts...)
	if err != nil {
		t.Fatal(err)
	}
	first := data[:min(1, len(data))] // flushed alone, or it knows the size after all
	if _, err := e.Write(first); err != nil {
		t.Fatal(err)
	}
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Write(data[len(first):]); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func both(frame []byte, want int64) map[string]func() ([]byte, error) {
	return map[string]func() ([]byte, error){
		"Decode": func() ([]byte, error) { return Decode(nil, frame, want) },
		"NewReader": func() ([]byte, error) {
			r, err := NewReader(bytes.NewReader(frame), want)
			if err != nil {
				return nil, err
			}
			defer r.Close()
			return io.ReadAll(r)
		},
	}
}

func TestContentSize(t *testing.T) {
	tier.Long(t, "decodes frames of many sizes")
	for _, n := range []int{1, 255, 256, 65535, 65536 + 255, 65536 + 256, 1 << 20, 5<<20 + 1} {
		for _, single := range []bool{false, true} {
			if n < 256 && !single {
				continue // has no field for it
			}
			frame := encode(t, text(n), zstd.WithSingleSegment(single))
			if got, ok := ContentSize(frame[:min(HeaderSize, len(frame))]); !ok || got != int64(n) {
				t.Errorf("%d, single %v: %d, %v", n, single, got, ok)
			}
		}
	}
	frame := encode(t, text(1<<20))
	for n := range 6 {
		if _, ok := ContentSize(frame[:n]); ok {
			t.Errorf("%d bytes of a header are enough", n)
		}
	}
	if _, ok := ContentSize(unsized(t, text(1<<20))); ok {
		t.Error("a size where there is none")
	}
	if _, ok := ContentSize([]byte("no frame at all, but long")); ok {
		t.Error("a size of text")
	}
	huge := append([]byte{0x28, 0xB5, 0x2F, 0xFD, 0xE0}, bytes.Repeat([]byte{0xFF}, 13)...)
	if _, ok := ContentSize(huge); ok {
		t.Error("a size of 2^64-1")
	}
}

func TestWhole(t *testing.T) {
	tier.Long(t, "decodes frames of many sizes")
	for _, n := range []int{0, 1, 100, 1 << 20, 3<<20 + 7} {
		data := text(n)
		frames := map[string][]byte{
			"sized":   encode(t, data, zstd.WithZeroFrames(true)),
			"single":  encode(t, data, zstd.WithZeroFrames(true), zstd.WithSingleSegment(true)),
			"unsized": unsized(t, data, zstd.WithZeroFrames(true)),
		}
		for form, frame := range frames {
			for name, decode := range both(frame, int64(n)) {
				if got, err := decode(); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s of %s %d: %d bytes, %v", name, form, n, len(got), err)
				}
			}
		}
	}
}

func TestDecodeUsesDst(t *testing.T) {
	data := text(1000)
	dst := make([]byte, 5, 4096)
	got, err := Decode(dst, encode(t, data), 1000)
	if err != nil || !bytes.Equal(got, data) || &got[0] != &dst[0] {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestWrong(t *testing.T) {
	data := text(1 << 20)
	sized, loose := encode(t, data), unsized(t, data)
	flip := bytes.Clone(sized)
	flip[len(flip)/2] ^= 0x40
	for name, c := range map[string]struct {
		frame []byte
		want  int64
	}{
		"too short":           {sized, 1<<20 + 1},
		"too long":            {sized, 1<<20 - 1},
		"too short, unsized":  {loose, 1<<20 + 1},
		"too long, unsized":   {loose, 1<<20 - 1},
		"nothing wanted":      {loose, 0},
		"cut":                 {sized[:len(sized)-9], 1 << 20},
		"cut in the header":   {sized[:6], 1 << 20},
		"nothing":             {nil, 1},
		"garbage":             {[]byte("not a frame"), 11},
		"garbage after":       {append(bytes.Clone(sized), "garbage"...), 1 << 20},
		"twice":               {append(bytes.Clone(sized), sized...), 1 << 20},
		"a flipped bit":       {flip, 1 << 20},
		"a window of 256 MiB": {[]byte{0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x90, 0x19, 0, 0, 1, 2, 3}, 3},
	} {
		for how, decode := range both(c.frame, c.want) {
			got, err := decode()
			if !errors.Is(err, ErrFrame) || int64(len(got)) > c.want {
				t.Errorf("%s of %s: %d bytes, %v", how, name, len(got), err)
			}
		}
	}
}

// A few bytes that say they are a gigabyte must not cost one.
func TestMemoryIsBounded(t *testing.T) {
	bomb := encode(t, make([]byte, 64<<20))
	bomb = append(bomb, bomb...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, decode := range both(bomb, 1000) {
		if _, err := decode(); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 48<<20 {
		t.Errorf("%d bytes for a frame that was refused", used)
	}
}

func TestReaderPassesOnTheSourcesError(t *testing.T) {
	frame := encode(t, text(1<<20))
	broken := errors.New("connection reset")
	for _, cut := range []int{0, 3, 20, len(frame) / 2, len(frame)} {
		r, err := NewReader(io.MultiReader(bytes.NewReader(frame[:cut]), iotest.ErrReader(broken)), 1<<20)
		if err == nil {
			_, err = io.ReadAll(r)
			r.Close()
		}
		if !errors.Is(err, broken) || errors.Is(err, ErrFrame) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
}

func TestReaderInSmallSteps(t *testing.T) {
	data := text(300000)
	r, err := NewReader(iotest.HalfReader(bytes.NewReader(encode(t, data))), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(r, data); err != nil {
		t.Error(err)
	}
	r.Close()
	if _, err := r.Read(make([]byte, 1)); err == nil {
		t.Error("read after close")
	}
}

func TestDecodeConcurrently(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 16 {
		data := text(200000 + i)
		frame := encode(t, data)
		wg.Go(func() {
			if got, err := Decode(nil, frame, int64(len(data))); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// FuzzDecode holds the two ways of decoding, and what the header says,
// against each other.
func FuzzDecode(f *testing.F) {
	f.Add(encode(f, text(300)), 300)
	f.Add(unsized(f, text(300)), 300)
	f.Add(encode(f, make([]byte, 1000)), 999)
	f.Add([]byte{0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x90, 0x19, 0, 0, 1, 2, 3}, 3)
	f.Fuzz(func(t *testing.T, frame []byte, want int) {
		want &= 0xFFFF
		got, err := Decode(nil, frame, int64(want))
		if err == nil && len(got) != want || err != nil && !errors.Is(err, ErrFrame) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		r, rerr := NewReader(bytes.NewReader(frame), int64(want))
		if rerr != nil {
			t.Fatal(rerr)
		}
		defer r.Close()
		streamed, rerr := io.ReadAll(r)
		if rerr == nil && len(streamed) != want || len(streamed) > want {
			t.Fatalf("streamed %d of %d bytes, %v", len(streamed), want, rerr)
		}
		if err == nil && rerr == nil && !bytes.Equal(got, streamed) {
			t.Fatal("two contents of one frame")
		}
		header := frame[:min(len(frame), HeaderSize)]
		if n, ok := ContentSize(header); err == nil && ok && n != int64(want) {
			t.Fatalf("the header says %d bytes, and there are %d", n, want)
		}
		if n := Window(header); n < 0 || n > MaxWindow {
			t.Fatalf("a window of %d bytes", n)
		}
	})
}
