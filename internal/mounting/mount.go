package mounting

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// MountOptions configure a mount.
type MountOptions struct {
	AllowOther bool     // accessible to other users
	NoExec     bool     // no program is run from it
	Contexts   []string // see fs.Options
	UID, GID   uint32   // owner of everything
	Crash      bool     // a panic ends the process: another takes over
	// Record is told which bytes of which of the artifact's files are read,
	// and how long after the mount was ready; nil records nothing.
	Record func(file int, off, n int64, after time.Duration)
	Since  time.Time // when the mount began; only for Mount
	Log    *slog.Logger
}

// Mount shows the artifact's files in a directory, the envelope first. It
// returns when the mount is ready. o must stay open until the mount is gone.
func (o *Opened) Mount(dir string, opts MountOptions) (*fs.Mounted, error) {
	files, err := o.mountFiles()
	if err != nil {
		return nil, err
	}
	fsOpts := o.options(opts)
	if fsOpts.Note, err = o.note(files, opts.Since); err != nil {
		return nil, err
	}
	m, err := fs.Mount(dir, files, fsOpts)
	if err != nil {
		return nil, err
	}
	o.forgetWith(m)
	return m, nil
}

// Resume takes over the live mount on dir whose note o was opened with; see
// fs.Resume. With strict, for a caller that has an alternative, it also
// fails if a file cannot be stored in the cache.
func (o *Opened) Resume(kept fs.Kept, n *Note, dir string, opts MountOptions, strict bool, begin func() error) (*fs.Mounted, error) {
	files, err := o.mountFiles()
	if err != nil {
		return nil, err
	}
	if names := shape(files); !slices.Equal(names, n.Files) {
		return nil, errors.New("this binary would show different files than the mount")
	}
	if strict {
		for name, open := range o.opened() {
			if !open.Kept() && !open.ReadOnly() {
				return nil, fmt.Errorf("%s: this binary cannot use the cached file", name)
			}
		}
	}
	m, err := fs.Resume(kept, dir, files, o.options(opts), begin)
	if err != nil {
		return nil, err
	}
	o.forgetWith(m)
	return m, nil
}

// Note is what a mount passes to the process that takes over.
type Note struct {
	Since time.Time       `json:"since"` // when the mount began
	Files []string        `json:"files"` // the shown files, in order
	Known json.RawMessage `json:"known"` // for Config.Known
}

// ReadNote reads the note from a mount's memory.
func ReadNote(memory *os.File) (*Note, error) {
	text, err := fs.Note(memory)
	if err != nil {
		return nil, err
	}
	n := &Note{}
	if err := json.Unmarshal(text, n); err != nil {
		return nil, fmt.Errorf("the mount's note: %w", err)
	}
	return n, nil
}

func (o *Opened) note(files []fs.File, since time.Time) ([]byte, error) {
	o.known.mu.Lock()
	defer o.known.mu.Unlock()
	text, err := json.Marshal(o.known)
	if err != nil {
		return nil, err
	}
	return json.Marshal(Note{Since: since, Files: shape(files), Known: text})
}

// shape returns what must not change when a mount is taken over: inode
// numbers are positions in it.
func shape(files []fs.File) []string {
	var all []string
	for _, f := range files {
		all = append(all, fmt.Sprintf("%o %d %s", f.Mode, f.Map.Size(), f.Name))
	}
	return all
}

// Holds returns descriptors that keep the mounted files from being evicted
// while any process has them open.
func (o *Opened) Holds() (holds []*os.File, err error) {
	for _, open := range o.opened() {
		hold, err := open.Hold()
		if err != nil {
			for _, h := range holds {
				h.Close()
			}
			return nil, err
		}
		if hold != nil {
			holds = append(holds, hold)
		}
	}
	return holds, nil
}

func (o *Opened) options(opts MountOptions) fs.Options {
	return fs.Options{
		AllowOther: opts.AllowOther,
		NoExec:     opts.NoExec,
		Contexts:   opts.Contexts,
		UID:        opts.UID,
		GID:        opts.GID,
		Time:       o.Artifact.Created,
		FSName:     o.Reference.String(),
		Crash:      opts.Crash,
		Record:     o.recording(opts.Record),
		Log:        opts.Log,
		Decline:    o.decline,
		Asked:      o.asked,
	}
}

// recording returns what makes a mount record, or nil. A mount shows the
// envelope before the artifact's files.
func (o *Opened) recording(touch func(file int, off, n int64, after time.Duration)) *fs.Recording {
	if touch == nil {
		return nil
	}
	first := 0
	if o.Artifact.Envelope != nil {
		first = 1
	}
	return &fs.Recording{Touch: func(i int, off, n int64, after time.Duration) { touch(i-first, off, n, after) }}
}

// mountFiles opens the files of a mount.
func (o *Opened) mountFiles() ([]fs.File, error) {
	var files []fs.File
	if text := o.Artifact.Envelope; text != nil {
		files = append(files, fs.File{
			Name:      snapshot.EnvelopeName,
			MediaType: "application/json",
			Digest:    digests.Of(text),
			Mode:      0o444,
			Map:       sparse.Dense(int64(len(text))),
			Content:   fs.BytesContent(text),
		})
	}
	for _, f := range o.Artifact.Files {
		open, err := o.File(f)
		if err != nil {
			return nil, err
		}
		files = append(files, fs.File{
			Name:      f.Name,
			MediaType: f.MediaType,
			Digest:    f.Digest(),
			Mode:      f.Mode,
			Map:       f.Map,
			Content:   open,
		})
	}
	return files, nil
}

// forgetWith makes the mount drop pages with bytes that turn out to be
// wrong. With passthrough, the kernel reads the file as it is on disk and never
// asks for the bytes: they are queued as a prefetch. If they cannot be written
// then, open passthrough handles keep the wrong ones. Pages that no open will
// use any more are dropped too.
func (o *Opened) forgetWith(m *fs.Mounted) {
	for name, open := range o.opened() {
		open.OnSealed(func() { m.DropUnused(name) })
		m.DropUnused(name) // it may be sealed already, and this process have taken over
		open.OnDrop(func(off, n int64) {
			m.Forget(name, off, n)
			if m.Usage(name).Passthrough > 0 {
				open.Prefetch()
			}
		})
	}
}
