package registry

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A source that takes an hour keeps a request waiting and does not end it;
// a registry that is silent for the limit does.
func TestSlowSourceIsNotTheRegistrysSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var barked atomic.Int32
		w := newWatchdog(time.Minute, func() { barked.Add(1) })
		w.kick()
		for range 3 {
			w.hold()
			time.Sleep(time.Hour)
			w.kick()
		}
		time.Sleep(time.Minute - time.Second)
		synctest.Wait()
		if barked.Load() != 0 {
			t.Error("a slow source was taken for silence")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if barked.Load() != 1 {
			t.Error("silence was not noticed")
		}
	})
}
