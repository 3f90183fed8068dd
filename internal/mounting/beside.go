package mounting

import (
	"context"
	"errors"
	"time"

	"github.com/cocoonstack/epochfs/registry"
)

// How long something small is waited for before it is asked for once more:
// four times as long as the manifest took, within these bounds.
const (
	lateLeast = 500 * time.Millisecond
	lateFirst = time.Second // while no manifest came
	lateMost  = 2 * time.Second
	lateTimes = 4
)

// beside runs get, and once more beside it if it takes longer than late. It
// returns the first result that is good, or an error that waiting does not
// mend, and cancels the other.
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

// took notes how long a manifest took to come.
func (d *downloader) took(t time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.late = min(max(lateTimes*t, lateLeast), lateMost)
}

// lateness returns how long something small is waited for before it is asked
// for once more.
func (d *downloader) lateness() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.late == 0 {
		return lateFirst
	}
	return d.late
}
