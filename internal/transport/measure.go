package transport

import (
	"slices"
	"time"
)

// measures are what a link gives. They are under Link.mu.
type measures struct {
	delay   time.Duration // smoothed time from a request to its first byte; 0 while unknown
	speed   float64       // smoothed bytes per second of one connection; 0 while unknown
	latency Histogram     // of that time
}

func newMeasures() measures { return measures{latency: NewLatency()} }

// tookToFirstByte notes how long a request took to be answered.
func (l *Link) tookToFirstByte(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.delay == 0 {
		l.delay = d
	}
	l.delay += (d - l.delay) / 8
	l.latency.observe(d)
}

// Moved notes that n bytes came within d.
func (l *Link) Moved(n int64, d time.Duration) {
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
}

// Bounds of the patience with one request.
const (
	patienceLeast = time.Second
	patienceFirst = 10 * time.Second // while nothing is known of the link
	patienceMost  = 30 * time.Second
)

// Patience is how long to wait for a request of n bytes before it must be
// taken for stuck: several times what such a one takes on this link.
func (l *Link) Patience(n int64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.speed == 0 {
		return patienceFirst
	}
	usual := l.delay + time.Duration(float64(n)/l.speed*float64(time.Second))
	return min(max(4*usual, patienceLeast), patienceMost)
}

// RoundTrip returns how long a request takes to be answered; 0 while unknown.
func (l *Link) RoundTrip() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delay
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
	took := usualRequest/l.speed + l.delay.Seconds()
	return min(max(int(plenty/(usualRequest/took))+1, connectionsLeast), limit)
}

// BandwidthDelay returns how many bytes one connection carries in the time
// that a request takes to be answered; 0 while unknown.
func (l *Link) BandwidthDelay() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.speed * l.delay.Seconds())
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
}

// Stats returns what has been learned so far.
func (l *Link) Stats() Stats {
	ranges := l.ranges.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{
		RangesKnown: ranges != rangesUnknown, Ranges: ranges == rangesHonoured,
		RoundTrip: l.delay, Speed: l.speed, Failures: l.failures, Err: l.last, Retry: l.asked,
		Latency: l.latency.clone(),
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
