package mounting

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cocoonstack/epochfs/test/registrytest"
)

// A manifest or config whose request stands still is asked for once more.
func TestSmallThingsThatStandStill(t *testing.T) {
	t.Parallel()
	p := newPlace(t, registrytest.NewHandler(), simple())
	p.cfg.ReadTimeout = time.Minute
	for _, path := range []string{"/manifests/", "/blobs/"} {
		p.front.Inject(&registrytest.Fault{Match: registrytest.Path(path), Times: 1, Delay: time.Hour})
	}
	began := time.Now()
	p.mustOpen(p.ref)
	if took := time.Since(began); took > p.cfg.ReadTimeout/4 {
		t.Errorf("it took %v", took)
	}
	if m, b := p.cost(); m != 2 || b != 2 {
		t.Errorf("%d requests for manifests, %d for blobs", m, b)
	}
}

func TestBeside(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	type step struct {
		after time.Duration
		err   error
	}
	for name, c := range map[string]struct {
		steps []step
		asked int
		took  time.Duration
		err   error
	}{
		"in time":                   {[]step{{time.Second / 2, nil}}, 1, time.Second / 2, nil},
		"fails in time":             {[]step{{time.Second / 2, broken}}, 1, time.Second / 2, broken},
		"the first is good":         {[]step{{3 * time.Second, nil}, {time.Hour, nil}}, 2, 3 * time.Second, nil},
		"the second is good":        {[]step{{time.Hour, nil}, {time.Second, nil}}, 2, 2 * time.Second, nil},
		"the second fails, goes on": {[]step{{5 * time.Second, nil}, {time.Second, broken}}, 2, 5 * time.Second, nil},
		"both fail":                 {[]step{{5 * time.Second, broken}, {time.Second, broken}}, 2, 5 * time.Second, broken},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var asked atomic.Int64
				_, err := beside(t.Context(), time.Second, func(ctx context.Context) (int, error) {
					s := c.steps[asked.Add(1)-1]
					select {
					case <-time.After(s.after):
						return 0, s.err
					case <-ctx.Done():
						return 0, ctx.Err()
					}
				})
				if int(asked.Load()) != c.asked || time.Since(began) != c.took || err != c.err {
					t.Error(asked.Load(), time.Since(began), err)
				}
			})
		})
	}
}

// A registry that is slow with everything is not asked for each thing twice.
func TestLatenessFollowsTheManifest(t *testing.T) {
	t.Parallel()
	d := &downloader{}
	for _, c := range [][2]time.Duration{{0, lateFirst}, {10 * time.Millisecond, lateLeast}, {200 * time.Millisecond, 800 * time.Millisecond}, {time.Minute, lateMost}} {
		if c[0] > 0 {
			d.took(c[0])
		}
		if got := d.lateness(); got != c[1] {
			t.Errorf("%v after %v", got, c[0])
		}
	}
}
