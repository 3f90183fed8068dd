package cache

import (
	"math/rand/v2"
	"testing"
	"time"
)

// While a source does not bring bytes, the file tells who waits for what,
// and why; then no more.
func TestWaiting(t *testing.T) {
	src := &busySource{fakeSource: &fakeSource{}, left: 3, after: 50 * time.Millisecond}
	src.gate = make(chan struct{})
	a := makeFile(t, rand.New(rand.NewPCG(7, 7)), src.fakeSource, kinds[1], 2<<20)
	c, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.File(a.file, src)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := f.ReadAt(t.Context(), make([]byte, len(a.flat)), 0)
		done <- err
	}()
	deadline := time.Now().Add(10 * time.Second)
	var w []Wait
	for len(w) == 0 || w[0].Err == nil {
		if w = f.Waiting(); time.Now().After(deadline) {
			t.Fatalf("nobody waits, or not for a reason: %+v", w)
		}
		time.Sleep(time.Millisecond)
	}
	first, _ := a.file.Map.SeekData(0)
	if len(w) != 1 || w[0].Offset != first || w[0].Length != 2<<20 || w[0].Digest != a.file.Parts[0].Digest || w[0].Readers != 1 {
		t.Errorf("waiting: %+v", w)
	}
	if w[0].Since.Before(before) || w[0].Since.After(time.Now()) {
		t.Errorf("since %v", w[0].Since)
	}
	close(src.gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if w := f.Waiting(); len(w) != 0 || c.Retries() == 0 {
		t.Errorf("at the end %d retries and waiting: %+v", c.Retries(), w)
	}
}
