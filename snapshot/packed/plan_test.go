package packed

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

// ReadFrames hands on each granule's own bytes, whatever gaps lie between them
// and however few bytes a read returns, and leaves what comes after the last.
func TestReadFrames(t *testing.T) {
	const most = 300
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		pack := make([]byte, 20_000)
		for i := range pack {
			pack[i] = byte(rng.Uint32())
		}
		var granules []Wanted
		first, end := int64(rng.IntN(100)), int64(0)
		for at := first; at < 15_000; {
			n := 1 + rng.Int64N(most)
			for range 1 + rng.IntN(2) { // several may share a frame
				granules = append(granules, Wanted{Granule: Granule{Offset: at, Stored: n}, ID: len(granules)})
			}
			end = at + n
			if at = end; rng.IntN(3) == 0 {
				at += rng.Int64N(1000)
			}
		}
		rest := bytes.NewReader(pack[first:])
		var in io.Reader = rest
		if round%2 == 1 {
			in = iotest.HalfReader(rest)
		}
		seen := 0
		failed, err := ReadFrames(in, first, granules, make([]byte, most+rng.IntN(3*most)), func(w Wanted, frame []byte) error {
			if w.ID != seen || !bytes.Equal(frame, pack[w.Offset:][:w.Stored]) {
				t.Fatalf("round %d: granule %d: other bytes than at %d, or out of turn", round, w.ID, w.Offset)
			}
			seen++
			return nil
		})
		if err != nil || seen != len(granules) || rest.Len() != len(pack)-int(end) {
			t.Fatalf("round %d: granule %d: %v; %d of %d granules, %d bytes left behind byte %d", round, failed.ID, err, seen, len(granules), rest.Len(), end)
		}
	}
}

// A pack that ends early fails the granule that it cuts, after those before.
func TestReadFramesOfShortPack(t *testing.T) {
	granules := []Wanted{
		{Granule: Granule{Offset: 0, Stored: 10}, ID: 0},
		{Granule: Granule{Offset: 10, Stored: 10}, ID: 1},
		{Granule: Granule{Offset: 20, Stored: 10}, ID: 2},
	}
	for _, n := range []int{20, 25} {
		seen := 0
		failed, err := ReadFrames(bytes.NewReader(make([]byte, n)), 0, granules, make([]byte, 64), func(Wanted, []byte) error {
			seen++
			return nil
		})
		if seen != 2 || failed.ID != 2 || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes: %d granules, then granule %d: %v", n, seen, failed.ID, err)
		}
	}
}
