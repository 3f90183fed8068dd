package cache

import (
	"context"

	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// carve takes one job from the beginning of a span, or returns nil if the span
// needs none. idle is the number of requests that could start now: a span is
// shared among them. The job is a user of the entry.
func (f *flights) carve(s span, p priority, idle int) (j *job, rest span) {
	e := f.entry
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return nil, span{}
	}
	i := s.from
	for i < s.to && !f.wantedLocked(i) {
		i++
	}
	if i == s.to {
		return nil, span{}
	}
	j = &job{entry: e, part: e.grid.Part(i), from: i, to: i, priority: p}
	end := min(s.to, e.grid.First[j.part+1])
	j.stream = f.streamed(j.part)
	most := end - i
	if !j.stream {
		most = f.requestSize(most, j.part, s.request, p, idle)
	}
	for j.to < end && j.to-i < most && (j.stream || f.wantedLocked(j.to)) {
		if f.wantedLocked(j.to) {
			fl := f.flightLocked(j.to)
			fl.running = true
			j.alone = j.alone || fl.alone
		}
		j.to++
	}
	rest = s
	rest.from = j.to
	if j.stream {
		if f.streams[j.part] {
			return nil, rest // it will pass them
		}
		f.streams[j.part] = true
	}
	j.ctx, j.cancel = context.WithCancelCause(e.ctx)
	f.useLocked()
	return j, rest
}

// streamed reports whether the part can only be had from its start: a large
// frame, or a blob in pieces at a registry that ignores ranges.
func (f *flights) streamed(part int) bool {
	e := f.entry
	return e.file.Index == nil && !e.grid.Whole(part) && (e.file.Parts[part].Encoding != layout.Raw || e.link.IgnoresRanges())
}

// requestSize returns how many of n wanted pieces of a part one request takes:
// asked bytes, or an even share for each connection that is idle, but enough
// that the time to the first byte does not dominate.
func (f *flights) requestSize(n, part int, asked int64, p priority, idle int) int {
	size := f.entry.grid.Size[part]
	if asked > 0 {
		return int(max(1, asked/size))
	}
	most := int64(requestMost)
	if p >= replayed {
		most = prefetchMost
	}
	least := max(requestLeast, min(f.entry.link.BandwidthDelay(), most))
	share := (int64(n)*size + int64(idle) - 1) / int64(idle)
	return int(max(1, min(max(share, least), most)/size))
}
