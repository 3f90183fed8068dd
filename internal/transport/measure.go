package transport

import (
	"slices"
	"time"
)

// measures are what a link gives. They are under Link.mu.
type measures struct {
	delay   smoothed  // from a request to its answer
	gap     smoothed  // waits for bytes of a body: each long one, or the longest of a body without
	speed   float64   // smoothed bytes per second of one connection; 0 while unknown
	latency Histogram // of delay
	best    Best
}

// Best is the best that a link has shown.
type Best struct {
	Answers int           // requests that were answered
	Delay   time.Duration // the shortest that one took to be
	Speed   float64       // the most bytes per second of one connection; 0 while unknown
}

// Best returns the best that the link has shown so far.
func (l *Link) Best() Best {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.best
}

func newMeasures() measures { return measures{latency: NewLatency()} }

// smoothed is a time that is measured again and again, as TCP does it for
// its retransmission timer (RFC 6298).
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

// most returns a time that few are longer than.
func (s *smoothed) most() time.Duration { return s.mean + 4*s.dev }

// answered notes that q was answered just now.
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

// longGap is how long a wait for bytes of a body is that counts by itself.
const longGap = tardyLeast / 2

// bytesCame notes that bytes of a body came just now, after a wait.
func (l *Link) bytesCame(gap time.Duration) {
	l.lastBytes.Store(int64(l.now()))
	if gap >= longGap {
		l.waited(gap)
	}
}

// waited notes how long bytes of a body were waited for.
func (l *Link) waited(gap time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gap.add(gap)
}

// movedBytes notes that n bytes were waited for d; 0 if that says nothing.
func (l *Link) movedBytes(n int64, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures, l.last = 0, nil
	if n < 256<<10 || d <= 0 {
		return // too short to say anything about speed
	}
	s := float64(n) / d.Seconds()
	if l.speed == 0 {
		l.speed = s
	}
	l.speed += (s - l.speed) / 8
	l.best.Speed = max(l.best.Speed, s)
}

// RoundTrip returns how long a request takes to be answered; 0 while unknown.
func (l *Link) RoundTrip() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delay.mean
}

const (
	// plenty is the rate, in bytes per second, beyond which more connections
	// only take turns: the processor is what is short.
	plenty           = 1 << 30
	connectionsLeast = 3
	usualRequest     = 4 << 20 // bytes
)

// Connections returns how many connections at a time fill the link, at most
// limit: fewer the faster one is, limit while that is not known.
func (l *Link) Connections(limit int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.speed == 0 {
		return limit
	}
	took := usualRequest/l.speed + l.delay.mean.Seconds()
	return min(max(int(plenty/(usualRequest/took))+1, connectionsLeast), limit)
}

// BandwidthDelay returns how many bytes one connection carries in the time
// that a request takes to be answered; 0 while unknown.
func (l *Link) BandwidthDelay() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.speed * l.delay.mean.Seconds())
}

// Stats are what has been learned about a link.
type Stats struct {
	RangesKnown bool          // a range was asked for and answered
	Ranges      bool          // ranges are served; else whole blobs only
	RoundTrip   time.Duration // from a request to the first byte of its answer, smoothed; 0 while unknown
	Speed       float64       // bytes per second of one connection, smoothed; 0 while unknown
	Failures    int           // in a row
	Err         error         // the last of them; nil since bytes arrived
	Retry       time.Time     // when the pause that the source asked for ends; past or zero: there is none
	Latency     Histogram     // seconds from requests to their first bytes
	Slow        int64         // requests made because another stood still
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
	Counts []int64   // of each bucket, and of what is beyond the last bound
	Sum    float64
}

// latencies are the bounds for answers of registries: from one on this
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
