package transport

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

const ms = time.Millisecond

// TestStallingRegistry has every third request stand still, before its first
// byte or after some, at a registry that answers in 10 ms.
func TestStallingRegistry(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]fault{
		"before the first byte": {dead: true},
		"long before it":        {delay: 20 * time.Second},
		"after some":            {delay: 10 * ms, stall: 10 << 10},
	} {
		for _, workers := range []int{1, 4, 16} {
			for first := range 3 {
				t.Run(fmt.Sprint(name, workers, first), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						s := newStage(45*unit, func(n int, _ int64) fault {
							if n > 1 && (n+first)%3 == 0 {
								return bad
							}
							return fault{delay: 10 * ms}
						})
						l := NewLink(s, Options{Tardy: tardyLeast})
						defer l.Close()
						w := load{workers: workers, request: unit}
						w.run(t, s, l)
						if w.longest > 500*ms || w.took > 5*time.Second {
							t.Error("too long")
						}
					})
				})
			}
		}
	}
}

// TestNoStorm has all answers become slow at once, after which hardly any
// request is made twice.
func TestNoStorm(t *testing.T) {
	t.Parallel()
	spread := func(n int) time.Duration { return time.Duration(n*389%800) * ms }
	for name, later := range map[string]func(n int) fault{
		"800 ms":         func(int) fault { return fault{delay: 800 * ms} },
		"400 to 1200":    func(n int) fault { return fault{delay: 400*ms + spread(n)} },
		"3 s":            func(int) fault { return fault{delay: 3 * time.Second} },
		"bodies":         func(int) fault { return fault{delay: 10 * ms, drip: 300 * ms} },
		"bodies as well": func(n int) fault { return fault{delay: 500 * ms, drip: 100*ms + spread(n)/2} },
	} {
		for _, workers := range []int{1, 4, 16} {
			t.Run(fmt.Sprint(name, workers), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					slow := false
					s := newStage(64*unit, func(n int, _ int64) fault {
						if slow {
							return later(n)
						}
						return fault{delay: 10 * ms}
					})
					l := NewLink(s, Options{Tardy: tardyLeast})
					defer l.Close()
					warm := load{workers: workers, request: unit}
					warm.run(t, s, l)
					slow = true
					w := load{workers: workers, request: unit}
					w.run(t, s, l)
					most := 64 / 10
					if name == "800 ms" {
						most = 64 / 20
					}
					if needed := w.requests - int(w.slow); needed != 64 || int(w.slow) > most {
						t.Errorf("%d requests, of which %d were not needed", w.requests, w.slow)
					}
					if float64(w.sent) > 1.02*float64(len(s.blob)) {
						t.Errorf("%d bytes", w.sent)
					}
				})
			})
		}
	}
}
