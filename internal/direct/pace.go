package direct

import (
	"runtime"
	"time"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// pace is what the answers so far say of the way to the registry. A
// request costs both sides some milliseconds of work, and every further
// connection takes processors and memory. Where the registry is near and
// one connection brings bytes faster than they can be hashed, few
// connections and large requests do best; everywhere else, many of both.
type pace struct{ transport.Best }

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

func (p *pace) isFast() bool { return p.Answers > 0 && p.Delay < near && p.Speed >= fast }

// isKnown says that there was enough to tell by.
func (p *pace) isKnown() bool {
	return p.Speed > 0 || p.Answers >= probes && p.Delay >= near
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
