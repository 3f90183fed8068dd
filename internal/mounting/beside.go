package mounting

import (
	"context"
	"errors"
	"time"

	"github.com/cocoonstack/epochfs/registry"
)

// The wait for a small answer before a second request is sent: four times as
// long as the manifest took, within these bounds.
const (
	lateLeast = 500 * time.Millisecond
	lateFirst = time.Second // before the first manifest arrived
	lateMost  = 2 * time.Second
	lateTimes = 4
)

// beside runs get, and a second time concurrently if it takes longer than
// late. It returns the first good result, or the first permanent error, and
// cancels the other.
func beside[T any](ctx context.Context, late time.Duration, get func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, 2)
	start := func() {
		v, err := get(ctx)
		results <- result{v, err}
	}
	go start()
	timer := time.NewTimer(late)
	defer timer.Stop()
	for running := 1; ; {
		select {
		case r := <-results:
			running--
			var e *registry.Error
			if r.err == nil || running == 0 || errors.As(r.err, &e) && !e.Temporary() {
				return r.value, r.err
			}
		case <-timer.C:
			running++
			go start()
		}
	}
}

// took records how long a manifest took to arrive.
func (d *downloader) took(t time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.late = min(max(lateTimes*t, lateLeast), lateMost)
}

// lateness returns how long to wait for a small answer before a second
// request is sent.
func (d *downloader) lateness() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.late == 0 {
		return lateFirst
	}
	return d.late
}
