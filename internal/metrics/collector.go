package metrics

import (
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cocoonstack/epochfs/internal/control"
)

// collector converts a mount's status to metrics each time it is scraped.
type collector struct {
	version string
	status  func() control.Mount
}

// metric is a metric's description with the function that reports its values
// for a mount.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	tell func(m *control.Mount, now time.Time, value tell)
}

// tell is called with each value and its label values.
type tell func(v float64, labels ...string)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("epochfs_"+name, help, labels, nil)
}

func counter(name, help string, value func(*control.Mount) int64) metric {
	return metric{describe(name, help), prometheus.CounterValue, func(m *control.Mount, _ time.Time, tell tell) {
		tell(float64(value(m)))
	}}
}

func gauge(name, help string, value func(*control.Mount) int64) metric {
	g := counter(name, help, value)
	g.kind = prometheus.GaugeValue
	return g
}

// flag returns a gauge that is 0 or 1.
func flag(name, help string, value func(*control.Mount) bool) metric {
	return gauge(name, help, func(m *control.Mount) int64 { return int64(oneIf(value(m))) })
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// places returns a metric with a value for each mirror and the registry.
func perHost(name, help string, kind prometheus.ValueType, value func(p *control.Mirror, now time.Time) float64) metric {
	return metric{describe(name, help, "host"), kind, func(m *control.Mount, now time.Time, tell tell) {
		for i := range m.Mirrors {
			tell(value(&m.Mirrors[i], now), m.Mirrors[i].Host)
		}
	}}
}

// sum adds up value over all files.
func sum(value func(*control.File) int64) func(*control.Mount) int64 {
	return func(m *control.Mount) (n int64) {
		for i := range m.Files {
			n += value(&m.Files[i])
		}
		return n
	}
}

// count counts the files for which is returns true.
func count(is func(*control.File) bool) func(*control.Mount) int64 {
	return sum(func(f *control.File) int64 { return int64(oneIf(is(f))) })
}

// Describe sends the descriptions of all metrics.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	out <- mountInfo
	out <- firstByte
	for _, m := range all {
		out <- m.desc
	}
}

// Collect sends the metrics of the mount's current status.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	m, now := c.status(), time.Now()
	m.Mirrors = byHost(m.Mirrors)
	out <- prometheus.MustNewConstMetric(mountInfo, prometheus.GaugeValue, 1,
		c.version, strings.ToValidUTF8(m.Dir, "\uFFFD"), m.Reference, m.Digest)
	for _, metric := range all {
		metric.tell(&m, now, func(v float64, labels ...string) {
			out <- prometheus.MustNewConstMetric(metric.desc, metric.kind, v, labels...)
		})
	}
	out <- latency(&m.Link.Latency)
}

// byHost merges mirrors on the same host: a label's value must be unique.
func byHost(places []control.Mirror) (all []control.Mirror) {
	for _, p := range places {
		i := slices.IndexFunc(all, func(q control.Mirror) bool { return q.Host == p.Host })
		if i < 0 {
			all = append(all, p)
			continue
		}
		q := &all[i]
		q.Requests, q.Bytes, q.Wrong = q.Requests+p.Requests, q.Bytes+p.Bytes, q.Wrong+p.Wrong
		if p.Resting.Before(q.Resting) {
			q.Resting = p.Resting
		}
	}
	return all
}

func latency(h *control.Histogram) prometheus.Metric {
	buckets := map[float64]uint64{}
	var n uint64
	for i, times := range h.Counts {
		n += uint64(times)
		if i < len(h.Bounds) {
			buckets[h.Bounds[i]] = n
		}
	}
	return prometheus.MustNewConstHistogram(firstByte, n, h.Sum, buckets)
}
