package mounting

import (
	"os"
	"time"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/snapshot"
)

// Status tells how the mount m of o, which began at since, is doing.
func (o *Opened) Status(m *fs.Mounted, since time.Time) control.Mount {
	n := o.Registry.Stats()
	s := control.Mount{
		Reference: o.Reference.String(),
		Digest:    o.Artifact.Digest,
		Dir:       m.Dir(),
		PID:       os.Getpid(),
		Since:     since,
		Network:   control.Network{Requests: n.Requests, Bytes: n.Bytes, Retries: n.Retries + o.Cache.Retries()},
		Files:     []control.File{},
		Waiting:   []control.Wait{},
	}
	if text := o.Artifact.Envelope; text != nil {
		n := int64(len(text))
		s.Files = append(s.Files, control.File{
			Name: snapshot.EnvelopeName, Size: n, Data: n, Local: n, Verified: true, Mode: openMode(m.Usage(snapshot.EnvelopeName)),
		})
	}
	for _, f := range o.Artifact.Files {
		open, err := o.File(f)
		if err != nil {
			continue // the mount could not have begun without it
		}
		s.Files = append(s.Files, control.File{
			Name: f.Name, Size: f.Size(), Data: f.PayloadSize(), Local: open.Cached(),
			Mode: openMode(m.Usage(f.Name)), Verified: open.Verified(),
		})
		for _, w := range open.Waiting() {
			wait := control.Wait{
				File: f.Name, Offset: w.Offset, Length: w.Length, Digest: w.Digest, Since: w.Since, Readers: w.Readers,
			}
			if w.Err != nil {
				wait.Error = w.Err.Error()
			}
			s.Waiting = append(s.Waiting, wait)
		}
	}
	return s
}

// openMode is how the kernel reads a file, in one word.
func openMode(u fs.Usage) string {
	switch {
	case u.Passthrough > 0:
		return "passthrough"
	case u.Cached > 0:
		return "cached"
	case u.Direct > 0:
		return "direct"
	}
	return ""
}
