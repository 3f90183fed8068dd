package transport

import (
	"slices"
	"time"
)

// measures are the measurements of a link, guarded by Link.mu.
type measures struct {
	delay   smoothed  // from a request to its answer
	gap     smoothed  // waits for bytes of a body: each long one, otherwise the body's longest
	speed   float64   // smoothed bytes per second of one connection; 0 if unknown
	latency Histogram // of delay
	best    Best
}

// Best holds the best measurements of a link.
type Best struct {
	Answers int           // answered requests
	Delay   time.Duration // the shortest time to an answer
	Speed   float64       // the most bytes per second of one connection; 0 if unknown
}

// Best returns the link's best measurements so far.
func (l *Link) Best() Best {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.best
}

func newMeasures() measures { return measures{latency: NewLatency()} }

// smoothed is a smoothed mean and deviation of a duration, as TCP computes
// them for its retransmission timer (RFC 6298).
type smoothed struct {
	known     bool
	mean, dev time.Duration
}

func (s *smoothed) add(d time.Duration) {
	if !s.known {
		s.known, s.mean, s.dev = true, d, d/2
		return
	}
	s.dev += ((d - s.mean).Abs() - s.dev) / 4
	s.mean += (d - s.mean) / 8
}

// most returns a duration that few samples exceed.
func (s *smoothed) most() time.Duration { return s.mean + 4*s.dev }

// answered records that q was answered just now.
func (l *Link) answered(q *request) {
	for {
		newest := l.newest.Load()
		if newest >= int64(q.began) || l.newest.CompareAndSwap(newest, int64(q.began)) {
			break
		}
	}
	d := l.now() - q.began
	l.mu.Lock()
	defer l.mu.Unlock()
	l.givenUp = 0
	l.delay.add(d)
	l.latency.observe(d)
	if l.best.Answers == 0 || d < l.best.Delay {
		l.best.Delay = d
	}
	l.best.Answers++
	l.budget.earn(tokensAnswer, tokensFirst)
}

// longGap is the shortest wait within a body that is a sample by itself.
const longGap = tardyLeast / 2

// bytesCame records that bytes of a body were received just now, after a
// wait.
func (l *Link) bytesCame(gap time.Duration) {
	l.lastBytes.Store(int64(l.now()))
	if gap >= longGap {
		l.waited(gap)
	}
}

// waited records a wait for bytes of a body.
func (l *Link) waited(gap time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gap.add(gap)
}

// movedBytes records that n bytes took d; d is 0 if the time is not known.
func (l *Link) movedBytes(n int64, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures, l.last = 0, nil
	if n < 256<<10 || d <= 0 {
		return // too short for a sample of speed
	}
	s := float64(n) / d.Seconds()
	if l.speed == 0 {
		l.speed = s
	}
	l.speed += (s - l.speed) / 8
	l.best.Speed = max(l.best.Speed, s)
}

// RoundTrip returns the time from a request to its answer, or 0 if unknown.
func (l *Link) RoundTrip() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delay.mean
}

const (
	// plenty is the rate, in bytes per second, above which more
	// connections do not help, because the processor is the limit.
	plenty           = 1 << 30
	connectionsLeast = 3
	usualRequest     = 4 << 20 // bytes
)

// Connections returns how many concurrent connections fill the link, at most
// limit: fewer if one is faster, and limit if the speed is unknown.
func (l *Link) Connections(limit int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.speed == 0 {
		return limit
	}
	took := usualRequest/l.speed + l.delay.mean.Seconds()
	return min(max(int(plenty/(usualRequest/took))+1, connectionsLeast), limit)
}

// BandwidthDelay returns how many bytes one connection carries in one round
// trip, or 0 if unknown.
func (l *Link) BandwidthDelay() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.speed * l.delay.mean.Seconds())
}

// Stats holds what has been learned about a link.
type Stats struct {
	RangesKnown bool          // a range was requested and answered
	Ranges      bool          // ranges are honoured; otherwise only whole blobs
	RoundTrip   time.Duration // from a request to the first byte of its answer, smoothed; 0 if unknown
	Speed       float64       // bytes per second of one connection, smoothed; 0 if unknown
	Failures    int           // consecutive
	Err         error         // the last failure; nil after bytes were received
	Retry       time.Time     // when a pause that the source asked for ends; zero or past for no pause
	Latency     Histogram     // seconds from requests to their first bytes
	Slow        int64         // requests made because another stalled
}

// Stats returns what has been learned so far.
func (l *Link) Stats() Stats {
	ranges := l.ranges.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{
		RangesKnown: ranges != rangesUnknown, Ranges: ranges == rangesHonoured,
		RoundTrip: l.delay.mean, Speed: l.speed, Failures: l.failures, Err: l.last, Retry: l.asked,
		Latency: l.latency.clone(), Slow: l.slow,
	}
}

// Histogram counts durations, in seconds.
type Histogram struct {
	Bounds []float64 // upper bounds of the buckets, rising
	Counts []int64   // count of each bucket; the last is beyond all bounds
	Sum    float64
}

// latencies are bucket bounds for answers of registries: from one on this
// machine to one that is about to be given up.
var latencies = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}

// NewLatency returns an empty histogram of times to the first byte.
func NewLatency() Histogram {
	return Histogram{Bounds: latencies, Counts: make([]int64, len(latencies)+1)}
}

func (h *Histogram) observe(d time.Duration) {
	i, _ := slices.BinarySearch(h.Bounds, d.Seconds())
	h.Counts[i]++
	h.Sum += d.Seconds()
}

func (h *Histogram) clone() Histogram {
	return Histogram{Bounds: h.Bounds, Counts: slices.Clone(h.Counts), Sum: h.Sum}
}
