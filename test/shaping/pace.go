package shaping

import (
	"sync"
	"time"
)

// paceCredit is how much lost time is made up for: enough for the
// imprecision of timers, too little for a burst to show.
const paceCredit = 5 * time.Millisecond

// pace spreads bytes evenly over time. A nil pace does not limit.
type pace struct {
	rate int64 // bytes per second

	mu   sync.Mutex
	next time.Time // when all that was taken has passed
}

func newPace(rate int64) *pace {
	if rate == 0 {
		return nil
	}
	return &pace{rate: rate}
}

// take books n bytes and returns how long to wait, from now on, until the
// last of them has passed.
func (p *pace) take(now time.Time, n int64) time.Duration {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if earliest := now.Add(-paceCredit); p.next.Before(earliest) {
		p.next = earliest
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	return p.next.Sub(now)
}
