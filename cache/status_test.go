package cache

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"
)

// While a source does not bring bytes, the file tells who waits for what,
// and why; then no more.
func TestWaiting(t *testing.T) {
	src := &busySource{fakeSource: &fakeSource{}, left: 3, after: 50 * time.Millisecond}
	src.gate = make(chan struct{})
	a := makeFile(t, rand.New(rand.NewPCG(7, 7)), src.fakeSource, kinds[1], 2<<20)
	c := openCache(t, t.TempDir(), Options{})
	f := openFile(t, c, a.file, src)
	before := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := f.ReadAt(t.Context(), make([]byte, len(a.flat)), 0)
		done <- err
	}()
	var w []Wait
	eventually(t, "somebody waits, for a reason", func() bool {
		w = f.Waiting()
		return len(w) > 0 && w[0].Err != nil
	})
	first, _ := a.file.Map.SeekData(0)
	if len(w) != 1 || w[0].Offset != first || w[0].Length != 2<<20 || w[0].Digest != a.file.Parts[0].Digest || w[0].Readers != 1 {
		t.Errorf("waiting: %+v", w)
	}
	if n := c.Counts().Waiting; n != 1 {
		t.Errorf("%d reads wait", n)
	}
	if w[0].Since.Before(before) || w[0].Since.After(time.Now()) {
		t.Errorf("since %v", w[0].Since)
	}
	close(src.gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if w := f.Waiting(); len(w) != 0 || c.Counts().Retries["other"] == 0 || c.Counts().Waiting != 0 {
		t.Errorf("at the end counts are %+v, waiting: %+v", c.Counts(), w)
	}
}

// Cells tell of each stretch what it holds.
func TestCells(t *testing.T) {
	for _, k := range kinds {
		src := &fakeSource{}
		a := makeFile(t, rand.New(rand.NewPCG(8, 8)), src, k, 3<<20)
		f := openFile(t, openCache(t, t.TempDir(), Options{}), a.file, src)
		const size = 10_000
		data := make([]bool, (len(a.flat)+size-1)/size)
		for run := range a.file.Map.Payload(0, a.file.PayloadSize()) {
			for i := run.Offset / size; i <= (run.Offset+run.Length-1)/size; i++ {
				data[i] = true
			}
		}
		check := func(when string, allowed ...Cell) {
			t.Helper()
			cells := f.Cells(size)
			if len(cells) != len(data) {
				t.Fatalf("%s, %s: %d cells, not %d", k.name, when, len(cells), len(data))
			}
			for i, cell := range cells {
				if data[i] != (cell != 0) || data[i] && !slices.Contains(allowed, cell) {
					t.Fatalf("%s, %s: cell %d is %b, data: %t", k.name, when, i, cell, data[i])
				}
			}
		}
		check("nothing read", CellMissing)
		if _, err := f.ReadAt(t.Context(), make([]byte, len(a.flat)), 0); err != nil {
			t.Fatal(err)
		}
		check("all read", CellPresent, CellVerified, CellPresent|CellVerified)
		eventually(t, "it is verified", f.Verified)
		check("verified", CellVerified)
	}
}

// Reads, misses, failures and the latency of requests are counted.
func TestCounts(t *testing.T) {
	src := &fakeSource{}
	a := makeFile(t, rand.New(rand.NewPCG(9, 9)), src, kinds[1], 2<<20)
	c := openCache(t, t.TempDir(), Options{})
	f := openFile(t, c, a.file, src)
	first, _ := a.file.Map.SeekData(0)
	if _, err := f.ReadAt(t.Context(), make([]byte, 100), first); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len(a.flat))
	for range 3 {
		if _, err := f.ReadAt(t.Context(), buf, 0); err != nil {
			t.Fatal(err)
		}
	}
	n := c.Counts()
	if n.Reads != 4 || n.Misses != 2 || n.Failed != 0 || n.Bytes != 3*int64(len(buf))+100 || len(n.Retries) != 0 {
		t.Errorf("after four reads: %+v", n)
	}
	l := c.Link(src)
	sum := int64(0)
	for _, n := range l.Latency.Counts {
		sum += n
	}
	requests, _ := src.reset()
	if sum != int64(requests) || l.Latency.Sum <= 0 || !l.RangesKnown || !l.Ranges || l.RoundTrip <= 0 || l.Err != nil {
		t.Errorf("after %d requests: %+v", requests, l)
	}
	if s := c.Space(); s.Used < int64(len(a.file.Parts)) || s.Limit <= s.Used || s.Full {
		t.Errorf("space: %+v", s)
	}

	b := makeFile(t, rand.New(rand.NewPCG(10, 10)), src, kinds[1], 1<<20)
	src.blobs = nil // all of them are gone for good
	g, err := c.File(b.file, src)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := g.ReadAt(t.Context(), make([]byte, len(b.flat)), 0); err == nil {
		t.Error("blobs that are gone were read")
	}
	if n := c.Counts(); n.Failed != 1 || n.Reads != 5 || n.Retries["other"] == 0 {
		t.Errorf("after a read that failed: %+v", n)
	}
	if l := c.Link(src); l.Err == nil || l.Failures == 0 {
		t.Errorf("a link that fails: %+v", l)
	}
}

// What was measured is used for as long as measuring it has earned.
func TestMeasured(t *testing.T) {
	var m measured
	times := int64(0)
	measure := func() int64 { times++; return times }
	if n := m.get(measure); n != 1 {
		t.Fatal(n)
	}
	m.until = time.Now().Add(time.Hour)
	if n := m.get(measure); n != 1 {
		t.Errorf("it was measured again, and is %d", n)
	}
	m.until = time.Now().Add(-time.Nanosecond)
	if n := m.get(measure); n != 2 {
		t.Errorf("it was not measured again, and is %d", n)
	}
	before := time.Now()
	m.until = before
	m.get(func() int64 {
		for time.Since(before) < time.Millisecond {
			runtime.Gosched()
		}
		return 3
	})
	if good := m.until.Sub(before); good < measureShare*time.Millisecond {
		t.Errorf("what took a millisecond is good for %s", good)
	}
}
