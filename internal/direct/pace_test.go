package direct

import (
	"runtime"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/transport"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// TestPace has few connections and large requests where the registry is
// near and one connection is faster than a processor hashes, and many of
// both everywhere else.
func TestPace(t *testing.T) {
	const limit = 16
	raw := &part{Part: &layout.Part{Encoding: layout.Raw}, size: 4 << 20, count: 100}
	frame := &part{Part: &layout.Part{Encoding: layout.Zstd}, size: 4 << 20, count: 1}
	large := &part{Part: frame.Part, size: 4 << 20, count: 100, cut: true}
	few, more := min(limit, runtime.GOMAXPROCS(0)+1), min(limit, 3*runtime.GOMAXPROCS(0))
	for name, c := range map[string]struct {
		delay       time.Duration
		speed       float64 // 0: nothing has come yet
		answers     int
		connections int
		frames      int // connections where each part is a frame
		units       int
	}{
		"nothing known":         {connections: probes, frames: probes, units: 1},
		"one answer, no bytes":  {delay: 20 * time.Millisecond, answers: 1, connections: probes, frames: probes, units: 1},
		"far":                   {delay: 20 * time.Millisecond, answers: 2, connections: limit, frames: limit, units: 1},
		"far and fast":          {delay: 20 * time.Millisecond, answers: 2, speed: 1 << 30, connections: limit, frames: limit, units: 1},
		"near and slow":         {delay: time.Millisecond, answers: 2, speed: 100 << 20, connections: limit, frames: limit, units: 1},
		"near and fast":         {delay: time.Millisecond, answers: 2, speed: 1 << 30, connections: few, frames: more, units: 8},
		"near, nothing arrived": {delay: time.Millisecond, answers: 5, connections: probes, frames: probes, units: 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := pace{transport.Best{Answers: c.answers, Delay: c.delay, Speed: c.speed}}
			if n := p.connections(raw, limit); n != c.connections {
				t.Errorf("%d connections, not %d", n, c.connections)
			}
			if n := p.connections(large, limit); n != c.connections {
				t.Errorf("%d connections for a large frame, not %d", n, c.connections)
			}
			if n := p.connections(frame, limit); n != c.frames {
				t.Errorf("%d connections for frames, not %d", n, c.frames)
			}
			if n := p.units(raw, 160<<20); n != c.units {
				t.Errorf("%d units a request, not %d", n, c.units)
			}
		})
	}
}

// TestPaceBounds keeps a request within a quarter of memory and within its
// part.
func TestPaceBounds(t *testing.T) {
	p := pace{transport.Best{Answers: 1, Delay: time.Millisecond, Speed: 1 << 30}}
	of := &part{size: 4 << 20, count: 100, next: 97}
	if n := p.units(of, 160<<20); n != 3 {
		t.Errorf("%d units at a part's end", n)
	}
	of.next = 0
	if n := p.units(of, 32<<20); n != 2 {
		t.Errorf("%d units of 4 MiB in a quarter of 32 MiB", n)
	}
}
