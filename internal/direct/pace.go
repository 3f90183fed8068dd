package direct

import (
	"runtime"
	"time"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// pace is what the answers so far say of the way to the registry. A
// request costs both sides some milliseconds of work, and every further
// connection takes processors and memory. Where the registry is near and
// one connection brings bytes faster than they can be hashed, few
// connections and large requests do best; everywhere else, many of both.
type pace struct {
	answers int           // requests that were answered, up to enough
	delay   time.Duration // the shortest that one took to be
	speed   float64       // bytes per second, the most of one connection
}

const (
	// probes is how many requests there are until something is known.
	probes = 2
	// near bounds what a registry takes to answer that is near: most of it
	// is spent by the registry, not on the way.
	near = 10 * time.Millisecond
	// fast is the speed of a connection, in bytes per second, of which few
	// do.
	fast = 256 << 20
	// fastRequest is what a request asks for where that is so, in bytes.
	fastRequest = 32 << 20
)

// answered notes how long a request took to be answered.
func (p *pace) answered(delay time.Duration) {
	if p.answers == 0 || delay < p.delay {
		p.delay = delay
	}
	p.answers++
}

// moved notes how fast bytes came.
func (p *pace) moved(n int64, d time.Duration) {
	if n >= unitLeast && d > 0 {
		p.speed = max(p.speed, float64(n)/d.Seconds())
	}
}

func (p *pace) isFast() bool { return p.answers > 0 && p.delay < near && p.speed >= fast }

// isKnown says that there was enough to tell by.
func (p *pace) isKnown() bool {
	return p.speed > 0 || p.answers >= probes && p.delay >= near
}

// connections is how many of limit to use for a part.
func (p *pace) connections(of *part, limit int) int {
	switch {
	case !p.isKnown():
		limit = min(limit, probes)
	case p.isFast() && of.Encoding != layout.Raw && !of.cut:
		// A frame is a request, most of which is waiting for the registry.
		limit = min(limit, 3*runtime.GOMAXPROCS(0))
	case p.isFast():
		limit = min(limit, runtime.GOMAXPROCS(0)+1) // all hash, while one waits
	}
	return limit
}

// units is how many units of a part to ask for with one request.
func (p *pace) units(of *part, memory int64) int {
	n := int64(1)
	if p.isFast() {
		n = max(1, min(fastRequest, memory/4)/of.size)
	}
	return int(min(n, int64(of.count-of.next)))
}

// asked notes that a request was answered after delay.
func (d *Payloads) asked(delay time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := d.pace.isKnown()
	d.pace.answered(delay)
	if !known && d.pace.isKnown() {
		d.dispatchLocked()
	}
}

// moved notes that n bytes of a unit came within t.
func (d *Payloads) moved(n int64, t time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pace.moved(n, t)
}
