package transport

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// tardyBusy is the shortest wait that counts as a stall while the
	// processors are overloaded.
	tardyBusy = 250 * time.Millisecond
	// busyShare is the share of time with tasks waiting for a processor
	// above which the processors count as overloaded.
	busyShare = 0.8
)

// pressure measures the load of the processors by the kernel's pressure
// stall information.
type pressure struct {
	read func() (waited time.Duration, ok bool) // since the machine started

	mu     sync.Mutex
	at     time.Time     // of the last reading
	waited time.Duration // the last reading
	busy   bool          // overloaded between the last two readings
}

// isBusy reports whether the processors were overloaded since the last
// reading, if that was within the last second.
func (p *pressure) isBusy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	passed := now.Sub(p.at)
	if passed < 10*time.Millisecond {
		return p.busy
	}
	waited, ok := p.read()
	p.busy = ok && passed <= time.Second && float64(waited-p.waited) > busyShare*float64(passed)
	p.at, p.waited = now, waited
	return p.busy
}

// readPressure returns the total time in which tasks waited for a processor.
// ok is false if the kernel does not measure it.
func readPressure() (waited time.Duration, ok bool) {
	text, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return 0, false
	}
	return parsePressure(string(text))
}

func parsePressure(text string) (waited time.Duration, ok bool) {
	some, _, _ := strings.Cut(text, "\n")
	_, total, ok := strings.Cut(some, " total=")
	n, err := strconv.ParseInt(total, 10, 64)
	return time.Duration(n) * time.Microsecond, ok && err == nil
}
