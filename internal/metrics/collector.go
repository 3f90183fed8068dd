package metrics

import (
	"slices"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/internal/control"
)

// metric is a metric's description with the function that reports its values
// for a mount.
type metric struct {
	desc desc
	kind kind
	tell func(m *control.Mount, now time.Time, value tell)
}

// tell is called with each value and its label values.
type tell func(v float64, labels ...string)

// desc describes a metric.
type desc struct {
	name, help string
	labels     []string // names
}

// kind is a metric's type in Prometheus's text form.
type kind string

const (
	counterKind   kind = "counter"
	gaugeKind     kind = "gauge"
	histogramKind kind = "histogram"
)

func describe(name, help string, labels ...string) desc {
	return desc{"epochfs_" + name, help, labels}
}

func counter(name, help string, value func(*control.Mount) int64) metric {
	return metric{describe(name, help), counterKind, func(m *control.Mount, _ time.Time, tell tell) {
		tell(float64(value(m)))
	}}
}

func gauge(name, help string, value func(*control.Mount) int64) metric {
	g := counter(name, help, value)
	g.kind = gaugeKind
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
func perHost(name, help string, kind kind, value func(p *control.Mirror, now time.Time) float64) metric {
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

// collect writes all metrics of a mount.
func collect(t *text, version string, m control.Mount, now time.Time) {
	m.Mirrors = byHost(m.Mirrors)
	t.begin(mountInfo, gaugeKind)
	t.value("", mountInfo.labels, []string{m.Digest, strings.ToValidUTF8(m.Dir, "\uFFFD"), m.Reference, version}, 1)
	for _, metric := range all {
		begun := false // a metric without values is left out
		metric.tell(&m, now, func(v float64, labels ...string) {
			if !begun {
				t.begin(metric.desc, metric.kind)
				begun = true
			}
			t.value("", metric.desc.labels, labels, v)
		})
	}
	t.latency(&m.Link.Latency)
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

// latency writes firstByte.
func (t *text) latency(h *control.Histogram) {
	t.begin(firstByte, histogramKind)
	n := int64(0)
	for i, times := range h.Counts {
		n += times
		if i < len(h.Bounds) {
			t.value("_bucket", []string{"le"}, []string{number(h.Bounds[i])}, float64(n))
		}
	}
	t.value("_bucket", []string{"le"}, []string{"+Inf"}, float64(n))
	t.value("_sum", nil, nil, h.Sum)
	t.value("_count", nil, nil, float64(n))
}
