package transport

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// tardyBusy is the shortest time that counts as standing still on a
	// machine whose processors are short.
	tardyBusy = 250 * time.Millisecond
	// busyShare is the share of the time in which somebody waits for a
	// processor, from which they are.
	busyShare = 0.8
)

// pressure is how short the machine's processors are: the kernel's pressure
// stall information.
type pressure struct {
	read func() (waited time.Duration, ok bool) // since the machine started

	mu     sync.Mutex
	at     time.Time     // of the last look
	waited time.Duration // at that time
	busy   bool          // between that one and the one before
}

// isBusy reports whether processors were short since the last look, or in the
// last second.
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

// readPressure reads how long somebody has waited for a processor. It fails
// on kernels that do not count that.
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
