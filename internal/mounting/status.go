package mounting

import (
	"errors"
	"os"
	"time"

	"github.com/cocoonstack/epochfs/cache"
	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// Status returns the state of the mount m of o, which began at since.
func (o *Opened) Status(m *fs.Mounted, since time.Time) control.Mount {
	s := control.Mount{
		Reference: o.Reference.String(),
		Digest:    o.Artifact.Digest,
		Dir:       m.Dir(),
		DirBytes:  control.Bytes(m.Dir()),
		Device:    m.Device(),
		PID:       os.Getpid(),
		Since:     since,
		Network:   o.networkStatus(),
		Link:      o.linkStatus(),
		Mirrors:   o.mirrorStatus(),
		Files:     []control.File{},
		Waiting:   []control.Wait{},
	}
	n := o.Cache.Counts()
	s.Reads = control.Reads{Count: n.Reads, Bytes: n.Bytes, Misses: n.Misses, Failed: n.Failed, Waiting: n.Waiting}
	s.Wrong.FoundBy = n.Wrong
	for _, pieces := range n.Wrong {
		s.Wrong.Pieces += pieces
	}
	space := o.Cache.Space()
	s.Cache = control.Cache{Dir: o.Cache.Dir(), Used: space.Used, Limit: space.Limit, Full: space.Full, Copied: n.Copied, NotKept: n.NotKept}
	if text := o.Artifact.Envelope; text != nil {
		n := int64(len(text))
		f := control.File{
			Name: snapshot.EnvelopeName, Size: n, Data: n, Local: n, Verified: true,
			Map: &control.Map{Cell: max(n, 1), Cells: string(control.Verified)},
		}
		setOpen(&f, m)
		s.Files = append(s.Files, f)
	}
	for _, f := range o.Artifact.Files {
		open, err := o.File(f)
		if err != nil {
			continue // the mount could not have begun without it
		}
		file := fileStatus(f, open)
		setOpen(&file, m)
		s.Files = append(s.Files, file)
		for _, w := range open.Waiting() {
			s.Waiting = append(s.Waiting, waitStatus(f.Name, w))
		}
	}
	return s
}

func (o *Opened) networkStatus() control.Network {
	n := o.Registry.Stats()
	s := control.Network{
		Requests: n.Requests, Bytes: n.Bytes, Retries: n.Retries,
		Causes: o.Registry.Reasons(), Limit: o.cfg.LimitRate,
	}
	for why, times := range o.Cache.Counts().Retries {
		s.Retries += times
		s.Causes[why] += times
	}
	return s
}

func (o *Opened) linkStatus() control.Link {
	l := o.Cache.Link(o.source)
	s := control.Link{
		Ranges: "unknown", RoundTrip: l.RoundTrip.Seconds(), Connection: int64(l.Speed), Failures: l.Failures,
		Latency: control.Histogram{Bounds: l.Latency.Bounds, Counts: l.Latency.Counts, Sum: l.Latency.Sum},
	}
	switch {
	case l.RangesKnown && l.Ranges:
		s.Ranges = "served"
	case l.RangesKnown:
		s.Ranges = "ignored"
	}
	if l.Err != nil {
		s.Error = l.Err.Error()
	}
	return s
}

func (o *Opened) mirrorStatus() []control.Mirror {
	all := []control.Mirror{}
	for _, p := range o.Registry.Upstreams() {
		m := control.Mirror{
			Host: p.Host, Registry: p.Own, Trusted: p.Trusted, Requests: p.Stats.Requests, Bytes: p.Stats.Bytes,
			Failures: p.Failures, Resting: p.Resting, Missing: p.Missing, Wrong: p.Wrong,
		}
		if p.Err != nil {
			m.Error = brief(p.Err)
		}
		all = append(all, m)
	}
	return all
}

func fileStatus(f *layout.File, open *cache.File) control.File {
	size := control.CellSize(f.Size())
	cells := open.Cells(size)
	letters := make([]byte, len(cells))
	for i, c := range cells {
		letters[i] = control.Letter(c&cache.CellMissing != 0, c&cache.CellPresent != 0, c&cache.CellVerified != 0)
	}
	return control.File{
		Name: f.Name, Size: f.Size(), Data: f.PayloadSize(), Local: open.Cached(),
		Verified: open.Verified(), Fetching: open.Fetching(),
		Map: &control.Map{Cell: size, Cells: string(letters)},
	}
}

func waitStatus(file string, w cache.Wait) control.Wait {
	s := control.Wait{
		File: file, Offset: w.Offset, Length: w.Length, Digest: w.Digest, Since: w.Since, Readers: w.Readers,
	}
	if w.Err != nil {
		s.Error, s.Cause = w.Err.Error(), brief(w.Err)
	}
	return s
}

// brief returns the short form of an error, if it has one.
func brief(err error) string {
	var e *registry.Error
	if errors.As(err, &e) {
		return e.Brief()
	}
	return err.Error()
}

// setOpen records how the kernel reads a file.
func setOpen(f *control.File, m *fs.Mounted) {
	u := m.Usage(f.Name)
	f.Open = u.Passthrough + u.Cached + u.Direct
	switch {
	case u.Passthrough > 0:
		f.Mode = "passthrough"
	case u.Cached > 0:
		f.Mode = "cached"
	case u.Direct > 0:
		f.Mode = "direct"
	}
}
