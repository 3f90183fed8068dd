package direct

import (
	"runtime"
	"time"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// pace describes the connection to the registry as seen so far. A request
// costs both sides some milliseconds of work, and every further connection
// takes processors and memory. If the registry is near and one connection
// transfers faster than its bytes can be hashed, few connections and large
// requests are best; otherwise, many of both.
type pace struct{ transport.Best }

const (
	// probes is the number of requests before the first answers.
	probes = 2
	// near is the time to an answer up to which a registry counts as near:
	// the registry itself spends most of it.
	near = 10 * time.Millisecond
	// fast is the speed of a connection, in bytes per second, from which few
	// connections are used.
	fast = 256 << 20
	// fastRequest is the size of a request then, in bytes.
	fastRequest = 32 << 20
)

func (p *pace) isFast() bool { return p.Answers > 0 && p.Delay < near && p.Speed >= fast }

// isKnown reports whether there were enough answers.
func (p *pace) isKnown() bool {
	return p.Speed > 0 || p.Answers >= probes && p.Delay >= near
}

// connections returns how many of limit connections to use for a part.
func (p *pace) connections(of *part, limit int) int {
	switch {
	case !p.isKnown():
		limit = min(limit, probes)
	case p.isFast() && of.Encoding != layout.Raw && !of.cut:
		// Each frame is a request, which mostly waits for the registry.
		limit = min(limit, 3*runtime.GOMAXPROCS(0))
	case p.isFast():
		limit = min(limit, runtime.GOMAXPROCS(0)+1) // all hash, while one waits
	}
	return limit
}

// units returns the number of units of a part to request at once.
func (p *pace) units(of *part, memory int64) int {
	n := int64(1)
	if p.isFast() {
		n = max(1, min(fastRequest, memory/4)/of.size)
	}
	return int(min(n, int64(of.count-of.next)))
}
